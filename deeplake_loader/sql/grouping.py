"""What PostgreSQL checks about rows: that a grouped query shows only what its groups decide, and what is one row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from deeplake_loader.sql import tree
from deeplake_loader.sql.aggregation import is_aggregate
from deeplake_loader.sql.scope import Found, Scope, resolve
from deeplake_loader.sql.tree import Expression

if TYPE_CHECKING:
    from deeplake_loader.sql.expressions import ExpressionCompiler


def canonical(compiler: ExpressionCompiler, scope: Scope, node: object) -> object:
    """A form in which two expressions are equal when they mean the same: ``m`` and ``g.m`` are one column."""
    if isinstance(node, tree.ColumnRef):
        found = resolve(compiler.context, scope, node)[1]
        return ("merged", node.name.text) if found is None else _column(found)
    if isinstance(node, tree.Query):
        return node
    if isinstance(node, tuple):
        return tuple(canonical(compiler, scope, part) for part in node)
    if hasattr(node, "__dataclass_fields__"):
        parts = (getattr(node, f.name) for f in fields(node) if f.compare)  # type: ignore[arg-type]
        return (type(node).__name__, *(canonical(compiler, scope, part) for part in parts))
    return node


def _column(found: Found) -> tuple[str, str, str, int]:
    return ("column", found.source.alias, found.column.name, found.depth)


def check(compiler: ExpressionCompiler, scope: Scope, keys: Sequence[Expression], nodes: Sequence[Expression]) -> None:
    """Refuses a column that is neither in GROUP BY nor inside an aggregate (SQLite would take it from any row)."""
    captured = list(scope.captured)
    groups = {canonical(compiler, scope, key) for key in keys}
    for node in nodes:
        _check_node(compiler, scope, groups, node)
    for found, pos in captured:
        _check_column(compiler, groups, found, pos)


def _check_node(compiler: ExpressionCompiler, scope: Scope, groups: set[object], node: object) -> None:
    if isinstance(node, tree.Query) or is_aggregate(node) or canonical(compiler, scope, node) in groups:
        return
    if isinstance(node, tree.ColumnRef):
        found = resolve(compiler.context, scope, node)[1]
        if found is None:
            compiler.context.fail(f"column {node.name.text!r} must be in GROUP BY or in an aggregate", node.pos)
        if found.depth == 0:
            _check_column(compiler, groups, found, node.pos)
        return
    for child in tree.children(node):
        _check_node(compiler, scope, groups, child)


def _check_column(compiler: ExpressionCompiler, groups: set[object], found: Found, pos: int) -> None:
    if ("column", found.source.alias, found.column.name, 0) in groups:
        return
    table = found.source.table
    if table is not None and table.primary_key:
        keys = {("column", found.source.alias, key, 0) for key in table.primary_key}
        if keys <= groups:
            return
    name = f"{found.source.alias}.{found.column.name}"
    compiler.context.fail(f"column {name!r} must be in GROUP BY or in an aggregate", pos)


def one_row(compiler: ExpressionCompiler, scope: Scope, where: Expression | None) -> bool:
    """Whether WHERE sets the whole primary key of the only table to values from outside it."""
    table = scope.sources[0].table
    if table is None or not table.primary_key:
        return False
    fixed: set[str] = set()
    for condition in _conjuncts(where):
        if isinstance(condition, tree.Binary) and condition.operator == "=":
            fixed |= _fixed(compiler, scope, condition.left, condition.right)
            fixed |= _fixed(compiler, scope, condition.right, condition.left)
    return set(table.primary_key) <= fixed


def _conjuncts(node: Expression | None) -> Iterator[Expression]:
    if isinstance(node, tree.Binary) and node.operator == "and":
        yield from _conjuncts(node.left)
        yield from _conjuncts(node.right)
    elif node is not None:
        yield node


def _fixed(compiler: ExpressionCompiler, scope: Scope, side: Expression, other: Expression) -> set[str]:
    if not isinstance(side, tree.ColumnRef):
        return set()
    found = resolve(compiler.context, scope, side)[1]
    if found is None or found.depth:
        return set()
    for part in tree.walk(other):
        if isinstance(part, tree.Query):
            return set()
        if isinstance(part, tree.ColumnRef):
            inner = resolve(compiler.context, scope, part)[1]
            if inner is None or inner.depth == 0:
                return set()
    return {found.column.name}
