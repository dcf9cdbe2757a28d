"""The table of statements with PostgreSQL's own answers, run through the whole product on branches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cases import load
from playground import SETUP
from test_sql_postgres import REFUSED_HERE, same

import deeplake_loader as deeplake
from deeplake_loader.errors import DeeplakeError

CASES = load()
PRESENT = ("now(", "current_", "localtime", "clock_timestamp", "age(")
"""The recorded answers belong to one moment; the product's clock goes on."""


class _Undone(Exception):
    pass


@pytest.fixture(scope="module", params=["main", "branch", "branch of a branch"])
def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[deeplake.Database]:
    """SETUP's rows, where main has lost or changed them since: on a branch they are before-images and copies."""
    folder: Path = tmp_path_factory.mktemp("store")
    with deeplake.connect(folder) as db:
        for sql in SETUP:
            db.execute(sql)
        depth = ("main", "branch", "branch of a branch").index(request.param)
        for name in ("a", "a/b")[:depth]:
            db.branch(name)
            db.execute("UPDATE generations SET steps = steps WHERE id = 2")
        if depth:
            with db.checkout("main"):
                db.execute("UPDATE generations SET prompt = prompt || '!', steps = 1 WHERE id <> 3")
                db.execute("DELETE FROM generations WHERE id = 3")
                db.execute("INSERT INTO generations (prompt) VALUES ('Cat')")
                db.execute("DELETE FROM runs")
        yield db


@pytest.mark.parametrize("case", CASES, ids=[f"{i}" for i in range(len(CASES))])
def test_a_statement_gives_on_a_branch_what_postgresql_gives(case: dict[str, Any], ground: deeplake.Database) -> None:
    sql, params = case["sql"], case["params"]
    if "error" in case or any(mark in sql for mark in REFUSED_HERE):
        with pytest.raises(DeeplakeError):
            ground.execute(sql, params)
        return
    if any(mark in sql.lower() for mark in PRESENT):
        return
    try:
        with ground.transaction():
            result = ground.execute(sql, params)
            ours = [tuple(row) for row in result] if result.returns_rows else [(result.rowcount,)]
            raise _Undone
    except _Undone:
        pass
    assert same(ours, case["rows"]) or not case["rows"], f"{sql}\nours       {ours}\nPostgreSQL {case['rows']}"
    if case["names"] and result.returns_rows:
        assert list(result.names) == case["names"]
