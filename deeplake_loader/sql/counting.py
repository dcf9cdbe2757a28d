"""Counts over a table that is shown as main's rows, less the hidden ones, plus the branch's.

SQLite reads an aggregate over such a union row by row. Counts and sums of whole numbers can instead be taken of each
part, and added: main's own count comes from an index, and the other parts are small. Other aggregates stay as they are:
a sum of floats would depend on the order.
"""

from __future__ import annotations

from deeplake_loader.sql import sources, tree
from deeplake_loader.sql.functions import VOLATILE
from deeplake_loader.sql.plan import less_name, more_name
from deeplake_loader.sql.queries import QueryCompiler
from deeplake_loader.sql.scope import Scope
from deeplake_loader.sql.values import Context, identifier
from deeplake_loader.types import quote_identifier

KEYS = ("TEXT", "SMALLINT", "INTEGER", "BIGINT", "BOOLEAN", "DATE", "TIMESTAMP", "UUID")
"""Types whose equal values are the same value, whichever part they come from."""


def counted(context: Context, query: tree.Query) -> tuple[str, str] | None:
    """The table, and the statement's text over its parts; None where it is no plain count."""
    body = query.body
    if not isinstance(body, tree.Select) or not isinstance(body.source, tree.TableRef) or not _plain(query, body):
        return None
    compiler, scope = QueryCompiler(context), Scope()
    table = context.table(body.source.name)
    sources.table_text(compiler, scope, body.source)
    keys = [_text(compiler, scope, key, KEYS) for key in body.group]
    if None in keys:
        return None
    columns: list[str] = []
    outer: list[str] = []
    for item in body.items:
        found = _item(compiler, scope, item.expression, keys, columns)
        if found is None:
            return None
        outer.append(found)
    scope.place = "WHERE"
    where = "" if body.where is None else f" WHERE {compiler.condition(scope, body.where, 'WHERE').sql}"
    grouped = f" GROUP BY {', '.join(str(key) for key in keys)}" if keys else ""
    named = [f"{key} AS k{i}" for i, key in enumerate(keys)]
    alias = identifier(scope.sources[0].alias)
    arms = []
    less, more = (f"temp.{quote_identifier(name(table.name))}" for name in (less_name, more_name))
    for sign, source in (("", f"main.{quote_identifier(table.name)}"), ("-", less), ("", more)):
        parts = [*named, *(f"{sign}{c} AS a{i}" for i, c in enumerate(columns)), f"{sign}count(*) AS n"]
        arms.append(f"SELECT {', '.join(parts)} FROM {source} AS {alias}{where}{grouped}")
    tail = f" GROUP BY {', '.join(f'k{i}' for i in range(len(keys)))} HAVING sum(n) > 0" if keys else ""
    return table.name, f"SELECT {', '.join(outer)} FROM ({' UNION ALL '.join(arms)}){tail}{_order(body, query)}"


def _plain(query: tree.Query, body: tree.Select) -> bool:
    if query.ctes or query.limit is not None or query.offset is not None or not body.items:
        return False
    if body.distinct or body.distinct_on or body.having is not None or body.windows:
        return False
    if not all(_ordered(body, key) is not None for key in query.order):
        return False
    nodes = list(tree.walk(body.where)) if body.where is not None else []
    return not any(isinstance(n, tree.Query) or (isinstance(n, tree.Call) and n.name in VOLATILE) for n in nodes)


def _text(compiler: QueryCompiler, scope: Scope, node: tree.Expression, kinds: tuple[str, ...]) -> str | None:
    if not isinstance(node, tree.ColumnRef) or scope.sources[0].column(node.name) is None:
        return None  # GROUP BY may also name an item of the select list
    value = compiler.expression(scope, node)
    return value.sql if value.name in kinds else None


def _item(
    compiler: QueryCompiler, scope: Scope, node: tree.Expression, keys: list[str | None], columns: list[str]
) -> str | None:
    """An item of the outer select list; what it adds up is appended to ``columns``."""
    if isinstance(node, tree.ColumnRef):
        key = _text(compiler, scope, node, KEYS)
        return f"k{keys.index(key)}" if key is not None and key in keys else None
    if not isinstance(node, tree.Call) or node.distinct or node.filter is not None or node.window is not None:
        return None
    if node.name == "count" and node.star:
        return "sum(n)"
    if node.name not in ("count", "sum") or len(node.arguments) != 1 or node.order:
        return None
    kinds = ("SMALLINT", "INTEGER") if node.name == "sum" else (*KEYS, "REAL", "DOUBLE", "NUMERIC")
    argument = _text(compiler, scope, node.arguments[0], kinds)
    if argument is None:
        return None
    columns.append(f"count({argument})")
    number = f"sum(a{len(columns) - 1})"
    if node.name == "count":
        return number
    columns.append(f"sum({argument})")  # NULL where no value is left, as sum is
    return f"CASE WHEN {number} > 0 THEN sum(a{len(columns) - 1}) END"


def _ordered(body: tree.Select, key: tree.OrderKey) -> int | None:
    """The place of the select-list item by which the result is ordered, from 1."""
    node = key.expression
    label = node.name.text if isinstance(node, tree.ColumnRef) and node.table is None else None
    named = [item.alias.text if item.alias is not None else None for item in body.items]
    if label is not None and label in named:
        return named.index(label) + 1
    same = [place for place, item in enumerate(body.items, 1) if item.expression == node and item.alias is None]
    return same[0] if same else None


def _order(body: tree.Select, query: tree.Query) -> str:
    parts = []
    for key in query.order:
        first = key.descending if key.nulls is None else key.nulls == "first"  # PostgreSQL's place for NULLs
        direction = " DESC" if key.descending else ""
        parts.append(f"{_ordered(body, key)}{direction} NULLS {'FIRST' if first else 'LAST'}")
    return f" ORDER BY {', '.join(parts)}" if parts else ""
