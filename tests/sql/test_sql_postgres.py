"""Every statement of the table gives PostgreSQL's own answer, or is refused where PostgreSQL refuses it."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest
from cases import load
from playground import Playground, filled

from deeplake_loader.errors import ConstraintError, DeeplakeError, UnsupportedSQLError

CASES = load()
REFUSED_HERE = {
    "'a' LIKE 'a\\'": "PostgreSQL finds the bad pattern only when it reads so far",
    "GROUP BY ()": "written without GROUP BY",
    "SELECT ARRAY[1,2]": "arrays are searched, not shown",
    "sum(created_at - ": "INTERVAL has no aggregates here",
    "+ TIME '10:00'": "DATE + TIME is not in the table",
    "FMMonth": "FM and TH are not in to_char's table",
    "to_char(5": "to_char of numbers is not there",
    "(1.0/3)::text": "a quotient has no known number of decimals",
    "::jsonb = ": "JSON is kept as text, so equal documents may differ",
    "'d', ARRAY": "arrays are searched, not shown",
    "count(DISTINCT (": "rows are not values here",
    "> ALL (SELECT": "written with max()",
    "SELECT ;": "no columns",
    "LIMIT 1.5": "PostgreSQL rounds it",
    "gcd(": "not in the table",
    "SELECT now() - %s": "a parameter beside a timestamp is a timestamp until it is cast",
}
"""Statements that PostgreSQL runs and we refuse: the mark by which they are known, and why."""


def same(ours: Any, theirs: Any) -> bool:
    """Equal in type and value; fractions to 13 digits, since sums of floats depend on their order."""
    if isinstance(theirs, list):
        return isinstance(ours, list | tuple) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, float | Decimal):
        return ours == theirs or math.isclose(ours, theirs, rel_tol=1e-13)
    return bool(ours == theirs)


@pytest.fixture
def ground() -> Playground:
    return filled()


@pytest.mark.parametrize("case", CASES, ids=[f"{i}" for i in range(len(CASES))])
def test_a_statement_gives_what_postgresql_gives(case: dict[str, Any], ground: Playground) -> None:
    sql, params = case["sql"], case["params"]
    if "error" in case:
        with pytest.raises((DeeplakeError, ConstraintError)):
            ground.run(sql, params)
        return
    if any(mark in sql for mark in REFUSED_HERE):
        with pytest.raises(DeeplakeError):
            ground.run(sql, params)
        return
    ours = ground.run(sql, params)
    assert same(ours, case["rows"]), f"{sql}\nours       {ours}\nPostgreSQL {case['rows']}"
    if case["names"]:
        assert [column.name for column in ground.plan(sql).results] == case["names"]


def test_the_table_is_large_and_mostly_runs() -> None:
    assert len(CASES) >= 300
    assert sum("rows" in case for case in CASES) >= 250


def test_refusals_say_what_and_where(ground: Playground) -> None:
    with pytest.raises(UnsupportedSQLError, match=r"LATERAL is not supported; use a window function") as caught:
        ground.run("SELECT *\nFROM runs r,\n  LATERAL (SELECT 1) x")
    assert caught.value.position == 24
    assert "line 3" in str(caught.value) and str(caught.value).endswith("^")
