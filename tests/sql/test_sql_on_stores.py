"""The tables of statements on both catalogs: all run as written over PostgreSQL and give what psycopg was given; over
SQLite each is right or refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from cases import VERDICTS as VERDICTS_FILE
from cases import load
from playground import SETUP, filled
from test_sql_postgres import same

import deeplake_loader as deeplake
from deeplake_loader.errors import ConstraintError, DeeplakeError, SQLError

CASES = load()


class _Undo(Exception):
    """Takes a statement's changes back."""


@pytest.fixture(scope="module")
def shared(postgres_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[deeplake.Database]:
    """A store in PostgreSQL with SETUP's tables; every test takes its changes back."""
    name = postgres_server.database()
    with deeplake.connect(postgres_server.url(name), storage=tmp_path_factory.mktemp("store")) as db:
        for sql in SETUP:
            db.execute(sql)
        yield db
    postgres_server.drop(name)


def answer(db: deeplake.Database, sql: str, params: Any) -> tuple[list[list[Any]], list[str]]:
    """Rows and names as psycopg's `fetchall` and `description` have them; the row count for what returns none."""
    found: list[Any] = []
    try:
        with db.transaction():
            rows = db.execute(sql, params)
            found = [list(map(list, rows)), list(rows.names)] if rows.returns_rows else [[[rows.rowcount]], []]
            raise _Undo
    except _Undo:
        return found[0], found[1]


@pytest.mark.parametrize("case", CASES, ids=[f"{i}" for i in range(len(CASES))])
def test_a_statement_runs_as_written(case: dict[str, Any], shared: deeplake.Database) -> None:
    sql, params = case["sql"], case["params"]
    if "error" in case:
        with pytest.raises((DeeplakeError, ConstraintError)):
            answer(shared, sql, params)
        return
    rows, names = answer(shared, sql, params)
    assert same(rows, case["rows"]), f"{sql}\nours       {rows}\nPostgreSQL {case['rows']}"
    assert names == case["names"]


# -- the table of verdicts -----------------------------------------------------------------------------------------


VERDICTS = load(VERDICTS_FILE)


@pytest.mark.parametrize("case", VERDICTS, ids=[f"{i}" for i in range(len(VERDICTS))])
def test_an_ordinary_statement_is_right_or_refused_by_name_on_sqlite(case: dict[str, Any]) -> None:
    ground = filled()
    if case["sqlite"] is not None:
        with pytest.raises(SQLError) as caught:
            ground.run(case["sql"])
        assert " ".join(str(caught.value).split()).startswith(case["sqlite"]) and caught.value.position is not None
        return
    assert same(ground.run(case["sql"]), case["rows"])
    assert not case["names"] or [column.name for column in ground.plan(case["sql"]).results] == case["names"]


@pytest.mark.parametrize("case", VERDICTS, ids=[f"{i}" for i in range(len(VERDICTS))])
def test_an_ordinary_statement_is_right_on_postgresql(case: dict[str, Any], shared: deeplake.Database) -> None:
    rows, names = answer(shared, case["sql"], case["params"])
    assert same(rows, case["rows"]), f"{case['sql']}\nours       {rows}\nPostgreSQL {case['rows']}"
    assert names == case["names"]


def test_the_table_of_verdicts_is_large_and_mostly_runs_on_sqlite() -> None:
    assert len(VERDICTS) >= 120 and sum(case["sqlite"] is None for case in VERDICTS) >= 100
