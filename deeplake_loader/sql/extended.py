"""A SELECT with more columns: what a stream wants to know of every row beside what the user selects."""

from __future__ import annotations

from collections.abc import Mapping

from deeplake_loader.errors import SQLError
from deeplake_loader.sql import tree
from deeplake_loader.sql.definitions import parse
from deeplake_loader.sql.reader import read


def extended(sql: str, expressions: Mapping[str, str]) -> str:
    """The query with one more column for each name: the expression, over the query's own tables.

    Raises:
        SQLError: an expression is none or has a placeholder; the query has no FROM, or is DISTINCT or made of several.

    >>> extended("SELECT a FROM t WHERE b > 2 LIMIT 5", {"_weight": "1 / b"})
    'SELECT a, (1 / b) AS "_weight" FROM t WHERE b > 2 LIMIT 5'
    """
    if not expressions:
        return sql
    place = before_from(sql)
    for name, text in expressions.items():
        _check(name, text)
    added = "".join(f', ({text.strip()}) AS "{name}"' for name, text in expressions.items())
    return f"{sql[:place].rstrip()}{added} {sql[place:]}"


def before_from(sql: str) -> int:
    """Where the outermost FROM stands."""
    reading = read(sql)
    statement = parse(reading)
    body = statement.body if isinstance(statement, tree.Query) else None
    if not isinstance(body, tree.Select) or body.distinct or body.distinct_on or body.source is None:
        raise SQLError(
            "an expression over a query's tables needs a plain SELECT ... FROM, without DISTINCT or UNION; select it "
            "as a column of the query and give the column's name",
            sql=sql, position=0,
        )  # fmt: skip
    depth, previous = 0, ""
    for token in reading.tokens:
        if token.kind == "operator" and token.text in ("(", ")"):
            depth += 1 if token.text == "(" else -1
        elif token[:2] == ("word", "from") and depth == 0 and previous != "distinct" and token.start > body.pos:
            return token.start  # the FROM of IS DISTINCT FROM is another one
        previous = token.text
    raise SQLError("this SELECT is wrapped in parentheses; write it without", sql=sql, position=0)


def _check(name: str, text: str) -> None:
    """Whether the text is one expression, so that it cannot reach beyond its parentheses."""
    reading = read(f"SELECT ({text})")
    if reading.parameters:
        raise SQLError(
            f"the expression for {name!r} has a placeholder; select it as a column of the query, whose parameters are "
            "given to stream(), and give the column's name",
            sql=text, position=0,
        )  # fmt: skip
    statement = parse(reading)
    items = (
        statement.body.items if isinstance(statement, tree.Query) and isinstance(statement.body, tree.Select) else ()
    )
    alone = tree.Query((), False, tree.Select(items, False, (), None, None, (), None, (), 0), (), None, None, 0)
    if len(items) != 1 or items[0].alias is not None or statement != alone:
        raise SQLError(f"{text!r} is not one SQL expression", sql=text, position=0)
