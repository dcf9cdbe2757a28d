"""Columns added to a query for a stream: at the right FROM, and nothing but one expression."""

from __future__ import annotations

import pytest

from deeplake_loader.errors import SQLError
from deeplake_loader.sql.extended import extended


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT a FROM t", 'SELECT a, (b) AS "_w" FROM t'),
        ("WITH c AS (SELECT * FROM z) SELECT a FROM c", 'WITH c AS (SELECT * FROM z) SELECT a, (b) AS "_w" FROM c'),
        ("SELECT trim(both FROM a) FROM t", 'SELECT trim(both FROM a), (b) AS "_w" FROM t'),
        ("SELECT a IS DISTINCT FROM b FROM t", 'SELECT a IS DISTINCT FROM b, (b) AS "_w" FROM t'),
        ("SELECT (SELECT max(x) FROM z) FROM t", 'SELECT (SELECT max(x) FROM z), (b) AS "_w" FROM t'),
        ("SELECT 'from' /* from */ FROM t", "SELECT 'from' /* from */, (b) AS \"_w\" FROM t"),
        ("SELECT a FROM t WHERE c = %s LIMIT 3", 'SELECT a, (b) AS "_w" FROM t WHERE c = %s LIMIT 3'),
    ],
)
def test_a_column_is_added_before_the_outermost_from(sql: str, expected: str) -> None:
    assert extended(sql, {"_w": "b"}) == expected
    assert extended(sql, {}) == sql


@pytest.mark.parametrize(
    "text",
    ["", "1) , (2", "1 FROM t", "a AS b", "1; DROP TABLE x", "1 -- c", "DISTINCT a", "1 LIMIT 2", "a ORDER BY 1",
     "1) LIMIT (2", "1) UNION SELECT (2", "1) AS x, (2", "a = %s"],
)  # fmt: skip
def test_what_is_not_one_expression_is_refused(text: str) -> None:
    with pytest.raises(SQLError):
        extended("SELECT a FROM t", {"_w": text})


@pytest.mark.parametrize("sql", ["(SELECT a FROM t)", "SELECT a FROM t UNION SELECT b FROM u", "SELECT 1",
                                 "SELECT DISTINCT a FROM t", "DELETE FROM t"])  # fmt: skip
def test_a_query_without_one_plain_from_is_refused(sql: str) -> None:
    with pytest.raises(SQLError):
        extended(sql, {"_w": "b"})
