"""Columns of a query against the rows that the plain path gives of the same query."""

from __future__ import annotations

import datetime as dt
import tracemalloc
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplake_loader.columnar import ColumnarRows, Numbers, Texts, Values, columnar, gather
from deeplake_loader.database import Database, connect
from deeplake_loader.rows import RowSet
from deeplake_loader.types import ColumnType

CELLS = st.one_of(
    st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(max_size=5), st.binary(max_size=5)
)
COLUMNS = st.one_of(
    st.lists(CELLS, max_size=12),
    *(st.lists(st.one_of(st.none(), one), max_size=12) for one in (st.integers(-9, 9), st.text(max_size=3))),
    st.lists(st.floats(allow_nan=False), max_size=12),
)
VALUES: dict[str, Any] = {
    "BIGINT": 2**62 + 1, "SMALLINT": -7, "REAL": 0.1, "DOUBLE PRECISION": 1 / 3, "NUMERIC(8, 2)": Decimal("12.30"),
    "TEXT": "naïve ✓", "BOOLEAN": True, "TIMESTAMP": dt.datetime(2026, 1, 2, 3, 4, 5, 6),
    "TIMESTAMPTZ": dt.datetime(2026, 1, 2, tzinfo=dt.UTC), "DATE": dt.date(2026, 1, 2), "TIME": dt.time(1, 2, 3),
    "JSON": {"a": [1, None]}, "UUID": UUID(int=5), "BYTEA": b"\0\xff",
}  # fmt: skip


def chunked(values: list[Any], size: int) -> list[list[tuple[Any]]]:
    return [[(v,) for v in values[i : i + size]] for i in range(0, len(values), size)]


def typed(values: list[Any]) -> list[tuple[type, Any]]:
    return [(type(v), v) for v in values]


@given(COLUMNS, st.integers(1, 5), st.data())
@settings(deadline=None, max_examples=200)
def test_a_column_gives_back_what_came_in_whatever_the_chunks(
    values: list[Any], size: int, data: st.DataObject
) -> None:
    rows = gather(["a"], [None], chunked(values, size))
    (column,) = rows.columns
    assert len(rows) == len(column) == len(values)
    assert typed(column.tolist()) == typed(values)
    assert typed([column[i] for i in range(len(values))]) == typed(values)
    places = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=9)) if values else []
    order = np.array(places, np.int64)
    assert typed(column.at(order)) == typed(column.take(order).tolist()) == typed([values[i] for i in places])
    assert rows.digest() == gather(["a"], [None], chunked(values, 100)).digest()


@given(COLUMNS, COLUMNS)
@settings(deadline=None, max_examples=200)
def test_digests_are_equal_only_for_equal_rows(first: list[Any], second: list[Any]) -> None:
    a, b = (gather(["a"], [None], chunked(v, 100)).digest() for v in (first, second))
    assert (a == b) == (repr(first) == repr(second))


def test_a_taken_column_of_long_texts_is_moved_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeplake_loader.columnar._SLAB", 3)
    texts = [f"{'é' * (i % 4)}{i}" for i in range(20)]
    (column,) = gather(["a"], [None], chunked(texts, 7)).columns
    order = np.arange(20)[::-1].repeat(2)
    assert isinstance(column, Texts) and column.take(order).tolist() == [texts[i] for i in order]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Database:
    db = connect(tmp_path_factory.mktemp("store"))
    for number, kind in enumerate(VALUES):
        db.execute(f"CREATE TABLE t{number} (id BIGINT PRIMARY KEY, full_ {kind} NOT NULL, holes {kind})")
        value = list(VALUES.values())[number]
        rows = [{"id": i, "full_": value, "holes": None if i % 3 == 1 else value} for i in range(7)]
        db.insert(f"t{number}", rows)
    return db


@pytest.mark.parametrize("kind", VALUES)
def test_a_stream_holds_the_values_that_a_query_gives_of_every_type(database: Database, kind: str) -> None:
    table = f"t{list(VALUES).index(kind)}"
    plain = database.execute(f"SELECT id, full_, holes FROM {table} ORDER BY id")
    stream = database.stream(f"SELECT id, full_, holes FROM {table} ORDER BY id", batch_size=7)
    (batch,) = stream
    for name in ("id", "full_", "holes"):
        values = [row[name] for row in plain]
        got = batch[name] if isinstance(batch[name], list) else batch[name].tolist()
        if kind == "REAL" and name == "full_":
            values = [float(np.float32(v)) for v in values]
        assert typed(got) == typed(values)
    assert isinstance(batch["holes"], list)
    assert batch["_keys"].tolist() == batch["id"].tolist()


def test_a_column_is_an_array_only_where_every_row_has_a_number_of_one_kind() -> None:
    kinds = {"REAL": np.float32, "DOUBLE": np.float64, "BIGINT": np.int64, "BOOLEAN": np.bool_}
    cells = {"REAL": 0.5, "DOUBLE": 0.5, "BIGINT": 3, "BOOLEAN": 1}
    for kind, dtype in kinds.items():
        rows = gather(["a", "b"], [ColumnType(kind)] * 2, [[(cells[kind], None)], [(cells[kind], cells[kind])]])
        full, holes = rows.column(0), rows.column(1)
        assert isinstance(full, np.ndarray) and full.dtype == dtype
        assert isinstance(holes, Values) and holes.take(np.arange(2))[0] is None
    mixed = gather(["a"], [None], [[(1,)], [(1.5,)]]).column(0)
    assert list(mixed) == [1, 1.5]


def test_addresses_of_nulls_are_zero() -> None:
    image = ColumnType("IMAGE")
    rows = gather(["a", "b"], [image, image], [[(None, None), (5, None)]])
    assert rows.column(0).tolist() == [0, 5] and rows.column(1).tolist() == [0, 0]  # type: ignore[union-attr]


def test_a_rowset_and_its_records_make_the_same_columns() -> None:
    records = [(i, f"p{i}", None if i == 3 else i / 2, i * 10) for i in range(9)]
    names = ["id", "text", "score", "_dl_key_0"]
    rowset = RowSet(names, [None] * 4, records)
    assert columnar(rowset).digest() == gather(names[:3], [None] * 3, [records]).digest()
    assert isinstance(columnar(rowset).keys[0], Numbers) and columnar(rowset).names == ("id", "text", "score")


def test_numbers_take_eight_bytes_a_row() -> None:
    chunk = [(i, i << 30) for i in range(1000)]

    def measured(chunks: int) -> tuple[ColumnarRows, int, int]:
        tracemalloc.start()
        rows = gather(["a", "b"], [None, None], (chunk for _ in range(chunks)))
        held, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return rows, held, most

    rows, held, most = measured(300)
    assert len(rows) == 300_000 and held < 300_000 * 16 * 1.15 and most < 300_000 * 16 * 1.8


def test_a_query_on_a_branch_or_a_tag_streams_its_rows(tmp_path: Path) -> None:
    db = connect(tmp_path)
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, a TEXT)")
    db.insert("t", [{"id": i, "a": f"main {i}"} for i in range(4)])
    db.tag("v1")
    db.branch("other")
    db.execute("UPDATE t SET a = 'changed' WHERE id = 2")
    (batch,) = db.stream("SELECT a FROM t ORDER BY id", batch_size=9)
    assert batch["a"] == ["main 0", "main 1", "changed", "main 3"] and batch["_keys"].tolist() == [0, 1, 2, 3]
    with db.at("v1") as then:
        (batch,) = then.stream("SELECT a FROM t ORDER BY id", batch_size=9)
    assert batch["a"] == [f"main {i}" for i in range(4)]
    db.close()


def test_a_query_without_rows_gives_an_empty_epoch(tmp_path: Path) -> None:
    with connect(tmp_path) as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, photo IMAGE, v VECTOR(3), a TEXT)")
        for shuffle in (False, True):
            stream = db.stream("SELECT * FROM t", batch_size=4, shuffle=shuffle)
            assert len(stream) == 0 and list(stream) == [] and list(stream) == []
