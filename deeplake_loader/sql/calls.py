"""Calls: scores, scalar functions by their table, aggregates, window functions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from deeplake_loader.errors import DimensionError, SQLError
from deeplake_loader.sql import moments, tree
from deeplake_loader.sql.aggregation import aggregate_call, window_call
from deeplake_loader.sql.arguments import json_argument, listed
from deeplake_loader.sql.casts import as_text, convert, settle
from deeplake_loader.sql.functions import (
    AGGREGATE_NAMES,
    FUNCTIONS,
    METRICS,
    SCORE_OPERATORS,
    WINDOWS,
)
from deeplake_loader.sql.plan import Bind
from deeplake_loader.sql.scope import Scope
from deeplake_loader.sql.tree import Expression
from deeplake_loader.sql.values import (
    DOUBLE,
    JSON,
    TEXT,
    Context,
    Target,
    Value,
    quoted_text,
)
from deeplake_loader.types import ColumnType

if TYPE_CHECKING:
    from deeplake_loader.sql.expressions import ExpressionCompiler

__all__ = ["SCORE_OPERATORS", "call", "score"]


def call(compiler: ExpressionCompiler, scope: Scope, node: tree.Call, target: Target | None) -> Value:
    """Any function call."""
    name = node.name
    if node.window is not None:
        return window_call(compiler, scope, node)
    if name in AGGREGATE_NAMES:
        return aggregate_call(compiler, scope, node)
    extras = node.distinct or node.star or node.order or node.within or node.filter is not None
    if extras or name in WINDOWS:
        need = "OVER (...)" if name in WINDOWS else "no DISTINCT, *, ORDER BY, FILTER or WITHIN GROUP"
        compiler.context.fail(f"{name} takes {need}", node.pos)
    if name in METRICS:
        if len(node.arguments) != 2:
            compiler.context.fail(f"{name} takes two vectors", node.pos)
        return score(compiler, scope, name, (node.arguments[0], node.arguments[1]), node.pos)
    if name in ("coalesce", "nullif", "greatest", "least"):
        return _choice(compiler, scope, node, target)
    special = {"concat": _concat, "concat_ws": _concat, "extract": _extract, "date_part": _extract,
               "date_trunc": _date_trunc, "to_char": _to_char, "json_build_object": _json_object,
               "jsonb_build_object": _json_object, "json_build_array": _json_array, "jsonb_build_array": _json_array,
               "to_json": _to_json, "to_jsonb": _to_json}.get(name)  # fmt: skip
    if special is not None:
        return special(compiler, scope, node)
    return listed(compiler, scope, node, FUNCTIONS)


# -- scores --------------------------------------------------------------------------------------------------------


def score(
    compiler: ExpressionCompiler, scope: Scope, name: str, sides: tuple[Expression, Expression], pos: int
) -> Value:
    """A similarity or distance of two vectors; at least one is a column, or both are literals."""
    values = [compiler.expression(scope, side) for side in sides]
    kinds = [value.type for value in values if value.type is not None]
    for kind in kinds:
        if not kind.is_vector:
            compiler.context.fail(f"{name} needs vectors, found {kind}", pos)
    if len(kinds) == 2 and kinds[0].dimension != kinds[1].dimension:
        raise DimensionError(f"{name} of {kinds[0]} and {kinds[1]}: both must have the same dimension")
    sql = [_vector(compiler.context, value, kinds[0] if kinds else None, name, pos) for value in values]
    return Value(f"{name}({', '.join(sql)})", DOUBLE, score=True)


def _vector(context: Context, value: Value, kind: ColumnType | None, name: str, pos: int) -> str:
    if value.literal is not None:
        _check_vector_text(context, value.literal, kind, name, pos)
        return value.sql
    if value.bind is None:
        return value.sql
    if kind is None:
        context.fail(f"{name} of two parameters: which dimension? one side must be a vector column", pos)
    context.binds[value.bind] = Bind(context.binds[value.bind].source, kind, score=True)
    return value.sql


def _check_vector_text(context: Context, text: str, kind: ColumnType | None, name: str, pos: int) -> None:
    try:
        numbers = json.loads(text)
    except ValueError:
        numbers = None
    if not isinstance(numbers, list) or not all(isinstance(n, int | float) for n in numbers):
        context.fail(f"{name} needs a vector such as '[0.1, 0.2]', found {text!r}", pos)
    if kind is not None and len(numbers) != kind.dimension:
        raise DimensionError(f"{name} of {kind} and a literal of {len(numbers)} numbers: both must have one dimension")


# -- calls with their own rules ------------------------------------------------------------------------------------


def _choice(compiler: ExpressionCompiler, scope: Scope, node: tree.Call, target: Target | None) -> Value:
    name = node.name
    value_path = target if name == "coalesce" else None
    values = [compiler.expression(scope, argument, value_path) for argument in node.arguments]
    if not values or (name == "nullif" and len(values) != 2):
        compiler.context.fail(f"{name} takes {'two values' if name == 'nullif' else 'values'}", node.pos)
    if name != "nullif":
        values = compiler.unified(values, node.pos, name.upper())
    else:
        from deeplake_loader.sql.operators import matched

        matched(compiler.context, values[0], values[1], node.pos)
        values = compiler.unified(values, node.pos, name.upper())
    if name == "coalesce" and len(values) == 1:
        return values[0]
    function = {"coalesce": "coalesce", "nullif": "nullif", "greatest": "_dl_greatest", "least": "_dl_least"}[name]
    nullable = name == "nullif" or all(v.nullable for v in values)
    sql = f"{function}({', '.join(v.sql for v in values)})"
    return Value(sql, values[0].type, nullable=nullable, score=any(v.score for v in values))


def _shown(compiler: ExpressionCompiler, value: Value, pos: int) -> Value:
    """A value as concat writes it: like ||, but true is t."""
    if value.name == "BOOLEAN":
        return Value(f"CASE {value.sql} WHEN 1 THEN 't' WHEN 0 THEN 'f' END", TEXT)
    return as_text(compiler.context, value, pos)


def _concat(compiler: ExpressionCompiler, scope: Scope, node: tree.Call) -> Value:
    values = [_shown(compiler, compiler.expression(scope, a), node.pos) for a in node.arguments]
    return Value(f"_dl_{node.name}({', '.join(v.sql for v in values)})", TEXT, nullable=False)


FIELD_SPELLINGS = {
    "days": "day", "years": "year", "months": "month", "hours": "hour", "minutes": "minute", "weeks": "week",
    "seconds": "second", "millisecond": "milliseconds", "microsecond": "microseconds",
}  # fmt: skip


def _field(compiler: ExpressionCompiler, node: tree.Call) -> str:
    first = node.arguments[0] if len(node.arguments) == 2 else None
    if not isinstance(first, tree.Literal_) or first.kind != "string":
        compiler.context.refuse(f"{node.name} takes a literal field such as 'year' and a value", node.pos)
    field = first.text.lower()
    return FIELD_SPELLINGS.get(field, field)


def _extract(compiler: ExpressionCompiler, scope: Scope, node: tree.Call) -> Value:
    field, value = _field(compiler, node), compiler.expression(scope, node.arguments[1])
    if value.untyped:
        compiler.context.fail(f"{node.name} needs a typed value; cast it: value::timestamp", node.pos)
    if value.name not in ("TIMESTAMP", "TIMESTAMPTZ", "DATE", "TIME", "INTERVAL"):
        compiler.context.fail(f"{node.name} needs a date or time, not {value.type}; cast it", node.pos)
    clock = field in moments.CLOCK_FIELDS
    known = field in moments.INTERVAL_FIELDS if value.name == "INTERVAL" else field in moments.FIELDS
    if not known or (value.name == "TIME" and not clock) or (value.name == "DATE" and clock and field != "epoch"):
        compiler.context.refuse(f"{node.name} of {field} from {value.type} is not supported", node.pos)
    function = "_dl_extract_interval" if value.name == "INTERVAL" else "_dl_extract"
    whole = ColumnType("NUMERIC") if field in ("second", "milliseconds", "epoch") else ColumnType(
        "NUMERIC", options=(("precision", 15), ("scale", 0)))  # fmt: skip
    sql = f"{function}('{field}', {value.sql})"
    return Value(sql, whole) if node.name == "extract" else Value(f"CAST({sql} AS REAL)", DOUBLE)


def _date_trunc(compiler: ExpressionCompiler, scope: Scope, node: tree.Call) -> Value:
    field, value = _field(compiler, node), compiler.expression(scope, node.arguments[1])
    if field not in moments.TRUNCATIONS:
        known = ", ".join(moments.TRUNCATIONS)
        compiler.context.refuse(f"date_trunc to {field!r} is not supported; known are {known}", node.pos)
    if value.untyped:
        value = settle(compiler.context, value, ColumnType("TIMESTAMPTZ"), node.pos)
    if value.name not in ("TIMESTAMP", "TIMESTAMPTZ", "DATE"):
        compiler.context.fail(f"date_trunc needs a timestamp, not {value.type}; cast it", node.pos)
    if value.name == "DATE":
        value = convert(compiler.context, value, ColumnType("TIMESTAMPTZ"), node.pos)
    return Value(f"_dl_truncate('{field}', {value.sql})", value.type)


def _to_char(compiler: ExpressionCompiler, scope: Scope, node: tree.Call) -> Value:
    pattern = node.arguments[1] if len(node.arguments) == 2 else None
    if not isinstance(pattern, tree.Literal_) or pattern.kind != "string":
        compiler.context.refuse("to_char takes a timestamp and a literal format", node.pos)
    value = compiler.expression(scope, node.arguments[0])
    if value.name not in ("TIMESTAMP", "TIMESTAMPTZ", "DATE"):
        compiler.context.refuse(f"to_char of {value.type} is not supported; only of timestamps", node.pos)
    try:
        moments.check_format(pattern.text)
    except SQLError as error:
        compiler.context.refuse(str(error.args[0]), pattern.pos)
    return Value(f"_dl_to_char({value.sql}, {quoted_text(pattern.text)})", TEXT)


def _json_object(compiler: ExpressionCompiler, scope: Scope, node: tree.Call) -> Value:
    if len(node.arguments) % 2:
        compiler.context.fail(f"{node.name} takes keys and values in turn", node.pos)
    parts = [json_argument(compiler, scope, argument) for argument in node.arguments]
    return Value(f"_dl_json_object({', '.join(parts)})", JSON, nullable=False)


def _json_array(compiler: ExpressionCompiler, scope: Scope, node: tree.Call) -> Value:
    parts = [json_argument(compiler, scope, argument) for argument in node.arguments]
    return Value(f"_dl_json_array({', '.join(parts)})", JSON, nullable=False)


def _to_json(compiler: ExpressionCompiler, scope: Scope, node: tree.Call) -> Value:
    if len(node.arguments) != 1:
        compiler.context.fail(f"{node.name} takes one value", node.pos)
    return Value(f"_dl_to_json({json_argument(compiler, scope, node.arguments[0])})", JSON)
