"""Calls: scores, scalar functions by their table, aggregates, window functions."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from deeplake_loader.errors import DimensionError, SQLError
from deeplake_loader.sql import moments, tree
from deeplake_loader.sql.casts import as_text, convert, settle
from deeplake_loader.sql.functions import (
    AGGREGATE_NAMES,
    AGGREGATES,
    COLLECTORS,
    FUNCTIONS,
    HINTS,
    METRICS,
    ORDERED,
    PREFERRED,
    SCORE_OPERATORS,
    WINDOWS,
    Signature,
    fits,
)
from deeplake_loader.sql.plan import Bind
from deeplake_loader.sql.scope import Scope
from deeplake_loader.sql.tree import Expression
from deeplake_loader.sql.values import (
    ATOM,
    BIGINT,
    DOUBLE,
    INTEGER,
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

__all__ = ["SCORE_OPERATORS", "call", "is_aggregate", "score"]


def is_aggregate(node: object) -> bool:
    """Whether the node is an aggregate call, not a window over one."""
    return isinstance(node, tree.Call) and node.name in AGGREGATE_NAMES and node.window is None


def call(compiler: ExpressionCompiler, scope: Scope, node: tree.Call, target: Target | None) -> Value:
    """Any function call."""
    name = node.name
    if node.window is not None:
        return _window_call(compiler, scope, node)
    if name in AGGREGATE_NAMES:
        return _aggregate_call(compiler, scope, node)
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
    return _listed(compiler, scope, node, FUNCTIONS)


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


# -- functions by their table --------------------------------------------------------------------------------------


def _listed(
    compiler: ExpressionCompiler, scope: Scope, node: tree.Call, table: dict[str, list[Signature]]
) -> Value:
    context = compiler.context
    values = [compiler.expression(scope, argument) for argument in node.arguments]
    if node.name not in table:
        hint = f"; {HINTS[node.name]}" if node.name in HINTS else ""
        context.refuse(f"the function {node.name} is not supported{hint}", node.pos)
    for implicit in (False, True):
        for signature in table[node.name]:
            if _takes(signature, values, implicit=implicit):
                return _apply(context, signature, values, node.pos)
    found = ", ".join("a parameter" if v.bind is not None else str(v.type or "text") for v in values)
    takes = " or ".join(f"({', '.join((*s.arguments, *([s.rest + ' ...'] if s.rest else [])))})" for s in table[node.name])
    context.fail(f"{node.name} takes {takes}, found ({found}); cast the arguments", node.pos)


def _takes(signature: Signature, values: list[Value], *, implicit: bool) -> bool:
    count = len(signature.arguments)
    if len(values) != count and (signature.rest is None or len(values) < count):
        return False
    words = [*signature.arguments, *[signature.rest or ""] * (len(values) - count)]
    return all(
        value.type is None or fits(word, value.name, implicit=implicit) for word, value in zip(words, values, strict=True)
    )


def _apply(context: Context, signature: Signature, values: list[Value], pos: int) -> Value:
    words = [*signature.arguments, *[signature.rest or ""] * (len(values) - len(signature.arguments))]
    ready = [_argument(context, word, value, pos) for word, value in zip(words, values, strict=True)]
    fixed = len(signature.arguments)
    texts = [value.sql for value in ready[:fixed]]
    rest = ", ".join(value.sql for value in ready[fixed:])
    kind = signature.result or (ready[0].type if ready else None)
    if signature.template == "!pg_typeof":
        return Value(quoted_text(str(ready[0].type or "unknown").lower()), TEXT)
    if "% " in signature.template:
        texts = [value.at(ATOM) for value in ready]
    template = signature.template.format(*texts, rest=rest)
    if kind is not None and kind.name == "NUMERIC" and signature.result is not None:
        kind = _scale_of(signature, values) or kind
    level = ATOM if "% " not in signature.template else 8
    return Value(template, kind, level, score=any(v.score for v in values))


def _scale_of(signature: Signature, values: list[Value]) -> ColumnType | None:
    """round(x, 2) has two decimals."""
    if not signature.template.startswith(("_dl_round(", "_dl_trunc(")):
        return None
    scale = values[1].sql if len(values) == 2 else "0"
    return ColumnType("NUMERIC", options=(("precision", 15), ("scale", int(scale)))) if scale.isdigit() else None


def _argument(context: Context, word: str, value: Value, pos: int) -> Value:
    if word == "any":
        return settle(context, value, TEXT, pos, bare=True) if value.literal is not None else value
    kind = ColumnType(PREFERRED[word])
    if value.untyped:
        return settle(context, value, kind, pos, bare=word != "json")
    if value.type is None or fits(word, value.name, implicit=False):
        return value
    return convert(context, value, kind, pos)


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


def _concat(compiler: ExpressionCompiler, scope: Scope, node: tree.Call) -> Value:
    values = [as_text(compiler.context, compiler.expression(scope, a), node.pos) for a in node.arguments]
    return Value(f"_dl_{node.name}({', '.join(v.sql for v in values)})", TEXT, nullable=False)


def _field(compiler: ExpressionCompiler, node: tree.Call) -> str:
    first = node.arguments[0] if len(node.arguments) == 2 else None
    if not isinstance(first, tree.Literal_) or first.kind != "string":
        compiler.context.refuse(f"{node.name} takes a literal field such as 'year' and a value", node.pos)
    field = first.text.lower()
    return {"days": "day", "years": "year", "months": "month", "hours": "hour", "minutes": "minute", "weeks": "week",
            "seconds": "second", "millisecond": "milliseconds", "microsecond": "microseconds"}.get(field, field)  # fmt: skip


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
    return Value(f"{function}('{field}', {value.sql})", whole if node.name == "extract" else DOUBLE)


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


def _json_argument(compiler: ExpressionCompiler, scope: Scope, node: Expression) -> str:
    """A value as the JSON shims take it: its type's name, then the value."""
    value = compiler.expression(scope, node)
    if value.literal is not None:
        value = settle(compiler.context, value, TEXT, node.pos)
    if value.type is not None and not value.type.is_scalar:
        compiler.context.refuse(f"{value.type} has no form in JSON", node.pos)
    return f"'{value.name}', {value.sql}"


def _json_object(compiler: ExpressionCompiler, scope: Scope, node: tree.Call) -> Value:
    if len(node.arguments) % 2:
        compiler.context.fail(f"{node.name} takes keys and values in turn", node.pos)
    parts = [_json_argument(compiler, scope, argument) for argument in node.arguments]
    return Value(f"_dl_json_object({', '.join(parts)})", JSON, nullable=False)


def _json_array(compiler: ExpressionCompiler, scope: Scope, node: tree.Call) -> Value:
    parts = [_json_argument(compiler, scope, argument) for argument in node.arguments]
    return Value(f"_dl_json_array({', '.join(parts)})", JSON, nullable=False)


def _to_json(compiler: ExpressionCompiler, scope: Scope, node: tree.Call) -> Value:
    if len(node.arguments) != 1:
        compiler.context.fail(f"{node.name} takes one value", node.pos)
    return Value(f"_dl_to_json({_json_argument(compiler, scope, node.arguments[0])})", JSON)


# -- aggregates and windows ----------------------------------------------------------------------------------------


def _aggregate_call(compiler: ExpressionCompiler, scope: Scope, node: tree.Call) -> Value:
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
        parts = [_json_argument(compiler, scope, argument) for argument in node.arguments]
        return Value(f"_dl_json_object_agg({', '.join(parts)})", JSON)
    else:
        value = _listed(compiler, scope, node, AGGREGATES)
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


def _collector(compiler: ExpressionCompiler, scope: Scope, node: tree.Call) -> Value:
    """string_agg, array_agg, json_agg: with their own ORDER BY and DISTINCT."""
    context = compiler.context
    if len(node.arguments) != (2 if node.name == "string_agg" else 1):
        context.fail(f"{node.name} takes {'a text and a separator' if node.name == 'string_agg' else 'one value'}", node.pos)
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
        if node.name == "array_agg" and value.name not in ("", "TEXT", "SMALLINT", "INTEGER", "BIGINT", "REAL", "DOUBLE",
                                                           "BOOLEAN"):  # fmt: skip
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
        context.refuse(f"{node.name} WITHIN GROUP is not supported; percentile_cont, percentile_disc and mode are", node.pos)
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


def _window_call(compiler: ExpressionCompiler, scope: Scope, node: tree.Call) -> Value:
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
    values = [settle(context, v, INTEGER, node.pos, bare=True) if i == 1 and v.untyped else v for i, v in enumerate(values)]
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
        window = replace(window, base=None, partition=base.partition or window.partition, order=base.order or window.order)
    return f"({_window_text(compiler, scope, window)})"


def _window_text(compiler: ExpressionCompiler, scope: Scope, window: tree.Window) -> str:
    from deeplake_loader.sql.ordering import order_text

    parts = []
    if window.partition:
        parts.append("PARTITION BY " + ", ".join(compiler.expression(scope, p).sql for p in window.partition))
    if window.order:
        parts.append("ORDER BY " + ", ".join(
            order_text(compiler.context, key, compiler.expression(scope, key.expression)) for key in window.order))  # fmt: skip
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
            compiler.context.refuse("a window frame by INTERVAL is not supported; use ROWS, or days as numbers", offset.pos)
        return f"{value.sql} {words.upper()}"

    text = end(frame.start) if frame.end is None else f"BETWEEN {end(frame.start)} AND {end(frame.end)}"
    exclude = f" EXCLUDE {frame.exclude.upper()}" if frame.exclude else ""
    return f"{frame.unit.upper()} {text}{exclude}"


