"""Many rows a statement against one row a statement."""

from __future__ import annotations

import sqlite3

import pytest

from deeplake_loader.inserts import insert_columns


@pytest.mark.parametrize("width", [1, 2, 7, 499, 500, 501, 1200])
@pytest.mark.parametrize("count", [0, 1, 2, 71, 72, 500, 1003])
def test_every_number_of_rows_and_columns_is_inserted_in_order(width: int, count: int) -> None:
    if width * count > 200_000:
        count = 3
    columns = {f"c {i}": range(i, i + count) for i in range(width)}
    connection = sqlite3.connect(":memory:")
    connection.execute(f"CREATE TABLE t ({', '.join(f'[{name}]' for name in columns)})")
    insert_columns(connection, "t", columns)
    found = connection.execute("SELECT * FROM t ORDER BY rowid").fetchall()
    connection.close()
    assert found == [tuple(range(row, row + width)) for row in range(count)]


def test_columns_of_different_lengths_insert_nothing() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (a, b)")
    with pytest.raises(ValueError, match="size"):
        insert_columns(connection, "t", {"a": [1, 2], "b": [1]})
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
    connection.close()
