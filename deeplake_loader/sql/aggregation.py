"""Aggregate and window calls."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from deeplake_loader.sql import tree
from deeplake_loader.sql.arguments import json_argument, listed
from deeplake_loader.sql.casts import as_text, settle
from deeplake_loader.sql.functions import AGGREGATE_NAMES, AGGREGATES, COLLECTORS, ORDERED, WINDOWS
from deeplake_loader.sql.ordering import order_text
from deeplake_loader.sql.scope import Scope
from deeplake_loader.sql.tree import Expression
from deeplake_loader.sql.values import BIGINT, DOUBLE, INTEGER, JSON, TEXT, Value
from deeplake_loader.types import ColumnType

if TYPE_CHECKING:
    from deeplake_loader.sql.expressions import ExpressionCompiler


def is_aggregate(node: object) -> bool:
    """Whether the node is an aggregate call, not a window over one."""
    return isinstance(node, tree.Call) and node.name in AGGREGATE_NAMES and node.window is None


def aggregate_call(compiler: ExpressionCompiler, scope: Scope, node: tree.Call) -> Value:
    context = compiler.context
    if scope.place:
        context.fail(f"the aggregate {node.name} cannot stand in {scope.place}", node.pos)
    if scope.inside_aggregate:
        context.fail("an aggregate cannot stand inside another; use a subquery", node.pos)
    scope.aggregates = True
    scope.inside_aggregate = True
    value = _aggregate(compiler, scope, node)
    condition = None if node.filter is None else compiler.condition(scope, node.filter, "the condition of FILTER")
    scope.inside_aggregate = False
    if condition is None:
        return value
    return replace(value, sql=f"{value.sql} FILTER (WHERE {condition.sql})")


def _aggregate(compiler: ExpressionCompiler, scope: Scope, node: tree.Call) -> Value:
    context = compiler.context
    if node.within or node.name in ORDERED:
        return _ordered_set(compiler, scope, node)
    if node.name in COLLECTORS:
        return _collector(compiler, scope, node)
    if node.order:
        context.refuse(f"ORDER BY inside {node.name} makes no difference; leave it away", node.pos)
    if node.name == "count":
        return _count(compiler, scope, node)
    if node.star:
        context.fail(f"{node.name}(*) is not there; only count(*)", node.pos)
    distinct = "DISTINCT " if node.distinct else ""
    if node.name in ("min", "max"):
        value = _extreme(compiler, scope, node)
    elif node.name in ("json_object_agg", "jsonb_object_agg"):
        parts = [json_argument(compiler, scope, argument) for argument in node.arguments]
        return Value(f"_dl_json_object_agg({', '.join(parts)})", JSON)
    else:
        value = listed(compiler, scope, node, AGGREGATES)
    return replace(value, sql=value.sql.replace("(", f"({distinct}", 1)) if distinct else value


def _count(compiler: ExpressionCompiler, scope: Scope, node: tree.Call) -> Value:
    if node.star:
        return Value("count(*)", BIGINT, nullable=False)
    if len(node.arguments) != 1:
        compiler.context.fail("count takes one value, or *", node.pos)
    value = compiler.expression(scope, node.arguments[0])
    if node.distinct and value.type is not None and not value.type.is_scalar:
        compiler.context.refuse(f"{value.type} values cannot be compared, so DISTINCT cannot count them", node.pos)
    return Value(f"count({'DISTINCT ' if node.distinct else ''}{value.sql})", BIGINT, nullable=False)


def _extreme(compiler: ExpressionCompiler, scope: Scope, node: tree.Call) -> Value:
    if len(node.arguments) != 1:
        compiler.context.fail(f"{node.name} takes one value; of several in a row: greatest, least", node.pos)
    value = compiler.expression(scope, node.arguments[0])
    if value.literal is not None:
        value = settle(compiler.context, value, TEXT, node.pos)
    if value.type is not None and (not value.type.is_scalar or value.name in ("BOOLEAN", "JSON", "UUID", "INTERVAL")):
        hint = "; write bool_and or bool_or" if value.name == "BOOLEAN" else ""
        compiler.context.refuse(f"{node.name} of {value.type} is not there{hint}", node.pos)
    return Value(f"{node.name}({value.sql})", value.type, score=value.score)


ARRAYS = ("", "TEXT", "SMALLINT", "INTEGER", "BIGINT", "REAL", "DOUBLE", "BOOLEAN")
"""Types whose array_agg is the same list when it travels as JSON."""


def _collector(compiler: ExpressionCompiler, scope: Scope, node: tree.Call) -> Value:
    """string_agg, array_agg, json_agg: with their own ORDER BY and DISTINCT."""
    context = compiler.context
    if len(node.arguments) != (2 if node.name == "string_agg" else 1):
        takes = "a text and a separator" if node.name == "string_agg" else "one value"
        context.fail(f"{node.name} takes {takes}", node.pos)
    value = compiler.expression(scope, node.arguments[0])
    if value.untyped:
        value = settle(context, value, TEXT, node.pos, bare=True)
    if node.name == "string_agg":
        if value.name not in ("TEXT", ""):
            context.fail(f"string_agg needs text, not {value.type}; cast it: value::text", node.pos)
        separator = as_text(context, compiler.expression(scope, node.arguments[1]), node.pos)
        if not node.order and not node.distinct:
            return Value(f"group_concat({value.sql}, {separator.sql})", TEXT)
        mode, kind, other = "text", TEXT, separator.sql
    else:
        if value.type is not None and not value.type.is_scalar:
            context.refuse(f"{node.name} of {value.type} is not supported", node.pos)
        if node.name == "array_agg" and value.name not in ARRAYS:
            context.refuse(f"array_agg of {value.type} is not supported; cast it to text", node.pos)
        mode, kind, other = value.name, JSON, "NULL"
    keys = [_aggregate_key(compiler, scope, key) for key in node.order]
    sql = f"_dl_collect('{mode}', {int(node.distinct)}, {other}, {value.sql}{''.join(keys)})"
    return Value(sql, kind)


def _aggregate_key(compiler: ExpressionCompiler, scope: Scope, key: tree.OrderKey) -> str:
    value = compiler.expression(scope, key.expression)
    first = key.nulls == "first" or (key.nulls is None and key.descending and not value.score)
    return f", {int(key.descending)}, {int(first)}, {value.sql}"


def _ordered_set(compiler: ExpressionCompiler, scope: Scope, node: tree.Call) -> Value:
    """percentile_cont(0.5) WITHIN GROUP (ORDER BY value)."""
    context = compiler.context
    if node.name not in ORDERED or len(node.within) != 1:
        context.refuse(f"{node.name} WITHIN GROUP is not supported; {', '.join(sorted(ORDERED))} are", node.pos)
    key = node.within[0]
    value = compiler.expression(scope, key.expression)
    if node.name == "mode":
        return Value(f"_dl_mode({value.sql}, {int(key.descending)})", value.type)
    if len(node.arguments) != 1:
        context.fail(f"{node.name} takes one fraction", node.pos)
    fraction = compiler.expression(scope, node.arguments[0])
    if node.name == "percentile_cont":
        if value.type is not None and value.name not in ("SMALLINT", "INTEGER", "BIGINT", "NUMERIC", "REAL", "DOUBLE"):
            context.refuse(f"percentile_cont of {value.type} is not supported", node.pos)
        return Value(f"_dl_percentile_cont({fraction.sql}, {value.sql}, {int(key.descending)})", DOUBLE)
    return Value(f"_dl_percentile_disc({fraction.sql}, {value.sql}, {int(key.descending)})", value.type)


SLIDING = {"_dl_sum", "_dl_avg"}
"""Our aggregates that can also be computed over a sliding window."""


def window_call(compiler: ExpressionCompiler, scope: Scope, node: tree.Call) -> Value:
    context = compiler.context
    if scope.place:
        context.fail(f"the window function {node.name} cannot stand in {scope.place}", node.pos)
    if scope.inside_window or scope.inside_aggregate:
        context.fail("a window function cannot stand inside another or an aggregate; use a subquery", node.pos)
    scope.inside_window = True
    value = _windowed(compiler, scope, node)
    filtered = ""
    if node.filter is not None:
        condition = compiler.condition(scope, node.filter, "the condition of FILTER")
        filtered = f" FILTER (WHERE {condition.sql})"
    window = _over(compiler, scope, node)
    scope.inside_window = False
    return replace(value, sql=f"{value.sql}{filtered} OVER {window}")


def _windowed(compiler: ExpressionCompiler, scope: Scope, node: tree.Call) -> Value:
    context = compiler.context
    if node.name in AGGREGATE_NAMES:
        if node.distinct or node.order or node.within:
            context.refuse("DISTINCT and ORDER BY inside a window function are not supported", node.pos)
        value = _aggregate(compiler, scope, replace(node, filter=None, window=None))
        function = value.sql.partition("(")[0]
        if function.startswith("_dl_") and function not in SLIDING:
            context.refuse(f"{node.name} OVER is not supported; use a subquery with GROUP BY", node.pos)
        return value
    if node.name not in WINDOWS:
        context.fail(f"{node.name} is no window function", node.pos)
    fewest, most, result = WINDOWS[node.name]
    if not fewest <= len(node.arguments) <= most:
        context.fail(f"{node.name} takes {fewest} to {most} arguments", node.pos)
    values = [compiler.expression(scope, argument) for argument in node.arguments]
    if len(values) == 3:
        values[0], values[2] = compiler.unified([values[0], values[2]], node.pos, node.name)
    if len(values) > 1 and values[1].untyped:
        values[1] = settle(context, values[1], INTEGER, node.pos, bare=True)
    kind = values[0].type if result == "=" else ColumnType(result)
    return Value(f"{node.name}({', '.join(v.sql for v in values)})", kind, score=any(v.score for v in values[:1]))


def _over(compiler: ExpressionCompiler, scope: Scope, node: tree.Call) -> str:
    window = node.window
    assert window is not None
    if window.base is not None and not (window.partition or window.order or window.frame):
        if window.base.text not in scope.windows:
            compiler.context.fail(f"there is no window {window.base.text!r}", window.pos)
        window = scope.windows[window.base.text]
    elif window.base is not None:
        base = scope.windows.get(window.base.text)
        if base is None:
            compiler.context.fail(f"there is no window {window.base.text!r}", window.pos)
        partition, order = base.partition or window.partition, base.order or window.order
        window = replace(window, base=None, partition=partition, order=order)
    return f"({_window_text(compiler, scope, window)})"


def _window_text(compiler: ExpressionCompiler, scope: Scope, window: tree.Window) -> str:
    parts = []
    if window.partition:
        parts.append("PARTITION BY " + ", ".join(compiler.expression(scope, p).sql for p in window.partition))
    if window.order:
        keys = [order_text(compiler.context, key, compiler.expression(scope, key.expression)) for key in window.order]
        parts.append("ORDER BY " + ", ".join(keys))
    if window.frame is not None:
        parts.append(_frame_text(compiler, scope, window.frame))
    return " ".join(parts)


def _frame_text(compiler: ExpressionCompiler, scope: Scope, frame: tree.Frame) -> str:
    def end(part: tuple[str, Expression | None]) -> str:
        words, offset = part
        if offset is None:
            return words.upper()
        value = compiler.expression(scope, offset)
        if value.name == "INTERVAL":
            compiler.context.refuse("a window frame by INTERVAL is not supported; use ROWS", offset.pos)
        return f"{value.sql} {words.upper()}"

    text = end(frame.start) if frame.end is None else f"BETWEEN {end(frame.start)} AND {end(frame.end)}"
    exclude = f" EXCLUDE {frame.exclude.upper()}" if frame.exclude else ""
    return f"{frame.unit.upper()} {text}{exclude}"
