"""A query that is run again goes a shorter way: it gives what the first run gave, and what others changed since."""

from __future__ import annotations

import datetime as dt
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import deeplake_loader as deeplake
from deeplake_loader import errors

pytestmark = pytest.mark.both_catalogs

Reconnect = Callable[..., deeplake.Database]


def filled(db: deeplake.Database, rows: int) -> list[tuple[Any, ...]]:
    expected = [
        (i, f"p{i}" if i % 7 else None, i / 2, dt.datetime(2026, 1, 1, 0, 0, i % 60)) for i in range(1, rows + 1)
    ]
    db.execute("CREATE TABLE g (id BIGINT PRIMARY KEY, prompt TEXT, cfg DOUBLE PRECISION, created_at TIMESTAMP)")
    if rows:
        columns = zip(*expected, strict=True)
        db.insert("g", dict(zip(("id", "prompt", "cfg", "created_at"), map(list, columns), strict=True)))
    return expected


@pytest.mark.parametrize("rows", [0, 1, 255, 256, 257, 1_100])
def test_the_second_run_gives_what_was_stored_and_what_the_first_one_gave(db: deeplake.Database, rows: int) -> None:
    expected = filled(db, rows)
    for names, width in (("id, prompt, cfg", 3), ("id, prompt, cfg, created_at", 4)):
        sql = f"SELECT {names} FROM g ORDER BY id"
        first, second, third = (db.execute(sql) for _ in range(3))
        assert first.to_arrow().equals(second.to_arrow())
        assert [tuple(row) for row in second] == second.fetchall() == [row[:width] for row in expected]
        assert first.types == second.types and first.names == second.names and len(second) == rows
        assert first.fetchall() == third.fetchall()
        assert pickle.loads(pickle.dumps(third)).fetchall() == first[:]
        assert second.to_arrow().equals(first.to_arrow()), "after its rows were made, too"
        assert [row.prompt for row in second] == third.raw(1) == [row[1] for row in expected]


def test_a_list_of_rows_is_the_callers_own(db: deeplake.Database) -> None:
    filled(db, 3)
    for _ in range(2):
        rows = db.execute("SELECT id FROM g ORDER BY id")
        rows[:].clear()
        rows.fetchmany(3).clear()
        assert [row.id for row in rows] == [1, 2, 3]


def test_a_query_run_again_sees_what_another_handle_made_of_the_table(
    db: deeplake.Database, reconnect: Reconnect
) -> None:
    filled(db, 2)
    sql, other = "SELECT * FROM g ORDER BY id", reconnect()
    assert len(db.execute(sql).names) == len(db.execute(sql).names) == 4
    other.execute("ALTER TABLE g ADD COLUMN steps INTEGER DEFAULT 9")
    assert [row.steps for row in db.execute(sql)] == [9, 9]
    other.execute("DROP TABLE g")
    with pytest.raises(errors.SQLError):
        db.execute(sql)
    other.execute("CREATE TABLE g (id BOOLEAN PRIMARY KEY)")
    other.execute("INSERT INTO g VALUES (true)")
    assert db.execute(sql).fetchall() == [(True,)]
    assert db.execute(sql)[0].id is True


def test_a_query_run_again_knows_the_type_that_a_column_has_now(db: deeplake.Database, reconnect: Reconnect) -> None:
    sql, other = "SELECT flag FROM f WHERE id = %s", reconnect()
    for kind, given, expected in (
        ("INTEGER", 1, 1),
        ("BOOLEAN", True, True),
        ("DATE", "2026-01-02", dt.date(2026, 1, 2)),
    ):
        other.execute(f"CREATE TABLE f (id BIGINT PRIMARY KEY, flag {kind})")
        other.execute("INSERT INTO f VALUES (1, %s)", [given])
        for _ in range(3):
            assert repr(db.execute(sql, [1]).scalar()) == repr(expected)
        other.execute("DROP TABLE f")


def test_a_query_run_again_inside_and_after_a_transaction_that_is_given_up(db: deeplake.Database) -> None:
    filled(db, 1)
    sql = "SELECT count(*) FROM g"
    assert [db.execute(sql).scalar() for _ in range(2)] == [1, 1]
    with pytest.raises(ZeroDivisionError), db.transaction():
        db.execute("INSERT INTO g (id) VALUES (2)")
        assert [db.execute(sql).scalar() for _ in range(2)] == [2, 2]
        raise ZeroDivisionError
    assert db.execute(sql).scalar() == 1


def test_now_is_one_value_in_a_statement_run_again_and_moves_on(db: deeplake.Database) -> None:
    filled(db, 2_000)
    seen = [db.execute("SELECT DISTINCT now() AS t FROM g").column(0) for _ in range(3)]
    assert [len(times) for times in seen] == [1, 1, 1]
    assert seen[0][0] < seen[1][0] < seen[2][0]
    with db.transaction():
        inside = [db.execute("SELECT now()").scalar() for _ in range(2)]
    assert inside[0] == inside[1] > seen[2][0]


def test_a_query_that_fails_says_the_same_each_time_and_runs_again_once_it_can(db: deeplake.Database) -> None:
    filled(db, 2)
    sql = "SELECT 1 / (id - %s) FROM g WHERE id = 1"
    assert [db.execute(sql, [3]).scalar() for _ in range(2)] == [0, 0]
    messages = set()
    for _ in range(2):
        with pytest.raises(errors.SQLError, match="zero") as caught:
            db.execute(sql, [1])
        messages.add(str(caught.value))
    assert len(messages) == 1
    assert db.execute(sql, [2]).scalar() == -1
    with pytest.raises(errors.InputError, match="1 placeholders"):
        db.execute(sql, [])


@pytest.mark.parametrize("collecting", [True, False])
def test_the_collector_is_left_as_it_was(db: deeplake.Database, collecting: bool) -> None:
    filled(db, 600)
    try:
        if not collecting:
            gc.disable()
        for _ in range(2):
            assert len(db.execute("SELECT id FROM g").fetchall()) == 600
            assert gc.isenabled() is collecting
    finally:
        gc.enable()
