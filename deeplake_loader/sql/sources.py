"""FROM: tables, subqueries, functions that give rows, joins; what each adds to the scope."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from deeplake_loader.sql import tree
from deeplake_loader.sql.casts import settle
from deeplake_loader.sql.plan import Bind
from deeplake_loader.sql.scope import Field, Scope, Visible, resolve, table_fields
from deeplake_loader.sql.tree import Name
from deeplake_loader.sql.values import (
    BIGINT,
    INTEGER,
    INTERVAL,
    JSON,
    NUMBERS,
    TEXT,
    TIMESTAMPTZ,
    WHOLE,
    Context,
    Value,
    bound,
    identifier,
)
from deeplake_loader.types import ColumnType

if TYPE_CHECKING:
    from deeplake_loader.sql.queries import QueryCompiler

JOIN_WORDS = {"inner": "JOIN", "left": "LEFT JOIN", "right": "RIGHT JOIN", "full": "FULL JOIN", "cross": "CROSS JOIN"}


def source_text(compiler: QueryCompiler, scope: Scope, source: tree.Source) -> str:
    """FROM's text; the sources become visible in the scope."""
    if isinstance(source, tree.TableRef):
        return table_text(compiler, scope, source)
    if isinstance(source, tree.Derived):
        return _derived(compiler, scope, source)
    if isinstance(source, tree.TableCall):
        return _table_call(compiler, scope, source)
    return _join(compiler, scope, source)


def table_text(compiler: QueryCompiler, scope: Scope, ref: tree.TableRef) -> str:
    context = compiler.context
    if ref.columns:
        context.refuse("column names behind a table's alias are not supported; rename in a subquery", ref.pos)
    alias = ref.alias.text if ref.alias is not None else ref.name.text
    fields = scope.cte(ref.name)
    if fields is not None:
        scope.add(context, Visible(alias, fields), ref.pos)
        name = ref.name.text
    else:
        table = context.table(ref.name)
        context.reads[table.name] = None
        scope.add(context, Visible(alias, table_fields(table), table), ref.pos)
        name = table.name
    return f"{identifier(name)} AS {identifier(alias)}" if ref.alias is not None else identifier(name)


def _derived(compiler: QueryCompiler, scope: Scope, ref: tree.Derived) -> str:
    found = compiler.query(ref.query, scope.parent)
    alias = ref.alias.text if ref.alias is not None else f"_dl_q{ref.pos}"
    fields = found.fields
    if len(ref.columns) > len(fields):
        compiler.context.fail(f"{len(ref.columns)} column names for {len(fields)} columns", ref.pos)
    sql = found.sql
    if ref.columns:
        names = [*(name.text for name in ref.columns), *(f.name for f in fields[len(ref.columns) :])]
        pairs = [f"{identifier(f.name)} AS {identifier(n)}" for f, n in zip(fields, names, strict=True)]
        sql = f"SELECT {', '.join(pairs)} FROM ({sql})"
        fields = tuple(replace(f, name=n) for f, n in zip(fields, names, strict=True))
    scope.add(compiler.context, Visible(alias, fields), ref.pos)
    return f"({sql}) AS {identifier(alias)}"


def _table_call(compiler: QueryCompiler, scope: Scope, ref: tree.TableCall) -> str:
    """A function in FROM is json_each over a JSON array; its column is json_each's ``value``."""
    call = ref.call
    makers = {"generate_series": _series, "unnest": _unnest}
    if call.name in ("json_array_elements", "jsonb_array_elements"):
        sql, kind = _elements(compiler, scope, call, "_dl_json_items"), JSON
    elif call.name in ("json_array_elements_text", "jsonb_array_elements_text"):
        sql, kind = _elements(compiler, scope, call, "_dl_json_item_texts"), TEXT
    elif call.name in ("json_object_keys", "jsonb_object_keys"):
        sql, kind = _elements(compiler, scope, call, "_dl_json_keys"), TEXT
    elif call.name in makers:
        sql, kind = makers[call.name](compiler, scope, call)
    else:
        compiler.context.refuse(f"the function {call.name} is not supported in FROM", ref.pos)
    alias = ref.alias.text if ref.alias is not None else call.name
    if len(ref.columns) > 1:
        compiler.context.fail(f"{call.name} gives one column", ref.pos)
    name = ref.columns[0].text if ref.columns else alias
    scope.add(compiler.context, Visible(alias, (Field(name, kind, sql_name="value"),)), ref.pos)
    return f"json_each({sql}) AS {identifier(alias)}"


def _elements(compiler: QueryCompiler, scope: Scope, call: tree.Call, function: str) -> str:
    if len(call.arguments) != 1:
        compiler.context.fail(f"{call.name} takes one JSON value", call.pos)
    value = compiler.expression(scope, call.arguments[0])
    value = settle(compiler.context, value, JSON, call.pos) if value.untyped else value
    if value.name not in ("JSON", ""):
        compiler.context.fail(f"{call.name} needs JSON, not {value.type}; cast it: value::jsonb", call.pos)
    return f"{function}({value.sql})"


def _series(compiler: QueryCompiler, scope: Scope, call: tree.Call) -> tuple[str, ColumnType]:
    context = compiler.context
    values = [compiler.expression(scope, argument) for argument in call.arguments]
    if len(values) not in (2, 3):
        context.fail("generate_series takes a start, a stop and a step", call.pos)
    if any(v.name in ("TIMESTAMP", "TIMESTAMPTZ", "DATE") for v in values[:2]):
        if len(values) != 3:
            context.fail("generate_series of timestamps needs a step, such as INTERVAL '1 day'", call.pos)
        kind = next((v.type for v in values[:2] if v.type is not None and v.name != "DATE"), None) or TIMESTAMPTZ
        from deeplake_loader.sql.casts import convert

        ends = [settle(context, v, kind, call.pos) if v.untyped else convert(context, v, kind, call.pos)
                for v in values[:2]]  # fmt: skip
        step = settle(context, values[2], INTERVAL, call.pos) if values[2].untyped else values[2]
        return f"_dl_moments({ends[0].sql}, {ends[1].sql}, {step.sql})", kind
    for value in values:
        if value.type is not None and value.name not in WHOLE:
            context.refuse(f"generate_series of {value.type} is not supported", call.pos)
    step_sql = values[2].sql if len(values) == 3 else "1"
    kind = BIGINT if any(v.name == "BIGINT" for v in values) else INTEGER
    return f"_dl_series({values[0].sql}, {values[1].sql}, {step_sql})", kind


def _unnest(compiler: QueryCompiler, scope: Scope, call: tree.Call) -> tuple[str, ColumnType]:
    context = compiler.context
    node = call.arguments[0] if len(call.arguments) == 1 else None
    kind: ColumnType | None = None
    if isinstance(node, tree.Cast) and node.to.array:
        kind, node = node.to.type, node.operand
    if isinstance(node, tree.Parameter):
        if kind is None:
            context.fail("unnest of a parameter needs its type: unnest(%s::int[])", call.pos)
        listed = kind if kind.name not in (*NUMBERS, "TEXT", "BOOLEAN") else None
        return bound(context.mark(Bind(node.source, listed, many=True))), kind
    if isinstance(node, tree.Array):
        values = compiler.unified([compiler.expression(scope, item) for item in node.items], call.pos, "ARRAY")
        return f"json_array({', '.join(v.sql for v in values)})", kind or (values[0].type if values else TEXT) or TEXT
    context.refuse("unnest takes ARRAY[...] or a list parameter here", call.pos)


# -- joins ---------------------------------------------------------------------------------------------------------


def _join(compiler: QueryCompiler, scope: Scope, join: tree.Join) -> str:
    context = compiler.context
    start = len(scope.sources)
    left = source_text(compiler, scope, join.left)
    middle = len(scope.sources)
    right = source_text(compiler, scope, join.right)
    if join.kind == "comma":
        if any(isinstance(n, tree.Join) and n.kind in ("right", "full") for n in tree.walk(join)):
            context.refuse("a comma beside RIGHT or FULL JOIN is not supported; use a subquery", join.pos)
        return f"{left}, {right}"
    for source in scope.sources[start:middle]:
        source.optional = source.optional or join.kind in ("right", "full")
    for source in scope.sources[middle:]:
        source.optional = source.optional or join.kind in ("left", "full")
    text = f"{left} {JOIN_WORDS[join.kind]} {right}"
    if join.using:
        _merge(context, scope, join, start, middle)
        return f"{text} USING ({', '.join(identifier(name.text) for name in join.using)})"
    if join.on is None:
        return text
    scope.place = "JOIN ... ON"
    condition = compiler.condition(scope, join.on, "ON")
    scope.place = ""
    return f"{text} ON {condition.sql}"


def _merge(context: Context, scope: Scope, join: tree.Join, start: int, middle: int) -> None:
    """USING shows each column once: the left one, the right one of a RIGHT JOIN, either of a FULL JOIN."""
    for name in join.using:
        left = _one_side(context, scope, name, slice(start, middle))
        right = _one_side(context, scope, name, slice(middle, None))
        kinds = [v.type for v in (left, right) if v.type is not None]
        if len({k.name for k in kinds}) > 1 and not all(k.name in NUMBERS for k in kinds):
            context.refuse(f"USING ({name.text}) compares {kinds[0]} with {kinds[1]}; write ON with a cast", name.pos)
        sql = {"right": right.sql, "full": f"coalesce({left.sql}, {right.sql})"}.get(join.kind, left.sql)
        nullable = left.nullable if join.kind != "right" else right.nullable
        scope.merged[name.text] = (sql, Field(name.text, left.type, nullable))
    merged = frozenset(name.text for name in join.using)
    for source in scope.sources[start:]:
        source.merged |= merged & {column.name for column in source.columns}


def _one_side(context: Context, scope: Scope, name: Name, part: slice) -> Value:
    if name.text in scope.merged and part.stop is not None:
        sql, field = scope.merged[name.text]
        return Value(sql, field.type, nullable=field.nullable)
    side = Scope(sources=scope.sources[part])
    value, found = resolve(context, side, tree.ColumnRef(name, None, name.pos))
    if found is None:
        context.fail(f"there is no column {name.text!r} to join by", name.pos)
    return replace(value, sql=f"{identifier(found.source.alias)}.{value.sql}")


# -- what a star and hidden keys stand for -------------------------------------------------------------------------


def star_columns(context: Context, scope: Scope, star: tree.Star) -> Iterator[tree.ColumnRef]:
    """The columns of ``*`` or ``t.*``: those merged by USING first, then each source's others."""
    if star.table is None:
        for name in scope.merged:
            yield tree.ColumnRef(Name(name, True), None, star.pos)
    found = [source for source in scope.sources if star.table is None or source.alias == star.table.text]
    if not found and star.table is not None:
        context.fail(f"there is no table {star.table.text!r} in this query's FROM", star.pos)
    many = len(scope.sources) > 1
    for source in found:
        for column in source.columns:
            if star.table is not None or column.name not in source.merged:
                table = Name(source.alias, True) if many or star.table is not None else None
                yield tree.ColumnRef(Name(column.name, True), table, star.pos)


def key_columns(scope: Scope) -> list[str]:
    """The primary keys of the tables in FROM."""
    out = []
    for source in scope.sources:
        keys = source.table.primary_key if source.table is not None else ()
        out += [f"{identifier(source.alias)}.{identifier(key)}" for key in keys]
    return out
