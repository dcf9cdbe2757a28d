"""Conversions between types, as data: what a cast becomes on SQLite, and what PostgreSQL converts by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID as parse_uuid

from deeplake_loader.errors import SQLError
from deeplake_loader.sql import arithmetic, documents, moments
from deeplake_loader.sql.values import (
    ATOM,
    BOOLEAN,
    MOMENTS,
    NUMBERS,
    TEXT,
    WHOLE,
    Context,
    Target,
    Value,
    bound,
    described,
    quoted_text,
)
from deeplake_loader.sql.words import BOOLEAN_WORDS
from deeplake_loader.types import ColumnType

CASTS: dict[tuple[str, str], str] = {
    ("BOOLEAN", "TEXT"): "CASE {} WHEN 1 THEN 'true' WHEN 0 THEN 'false' END",
    ("BOOLEAN", "INTEGER"): "{}",
    ("INTEGER", "BOOLEAN"): "({} <> 0)",
    ("TEXT", "BOOLEAN"): "_dl_boolean({})",
    ("JSON", "BOOLEAN"): "_dl_json_boolean({})",
    ("JSON", "TEXT"): "_dl_json_show({})",
    ("TEXT", "JSON"): "_dl_json({})",
    ("TEXT", "UUID"): "_dl_uuid({})",
    ("UUID", "TEXT"): "{}",
    ("TEXT", "TIMESTAMP"): "_dl_timestamp({})",
    ("TEXT", "TIMESTAMPTZ"): "_dl_timestamptz({})",
    ("TEXT", "DATE"): "_dl_date({})",
    ("TEXT", "TIME"): "_dl_time({})",
    ("TEXT", "INTERVAL"): "_dl_interval({})",
    ("TIMESTAMP", "TEXT"): "_dl_moment_text({})",
    ("TIMESTAMPTZ", "TEXT"): "_dl_moment_text({})",
    ("TIME", "TEXT"): "_dl_moment_text({})",
    ("DATE", "TEXT"): "{}",
    ("DATE", "TIMESTAMP"): "({} || ' 00:00:00.000000')",
    ("DATE", "TIMESTAMPTZ"): "({} || ' 00:00:00.000000+00:00')",
    ("TIMESTAMP", "TIMESTAMPTZ"): "({} || '+00:00')",
    ("TIMESTAMPTZ", "TIMESTAMP"): "substr({}, 1, 26)",
    ("TIMESTAMP", "DATE"): "substr({}, 1, 10)",
    ("TIMESTAMPTZ", "DATE"): "substr({}, 1, 10)",
    ("TIMESTAMP", "TIME"): "substr({}, 12, 15)",
    ("TIMESTAMPTZ", "TIME"): "substr({}, 12, 15)",
    **{(whole, "TEXT"): "CAST({} AS TEXT)" for whole in WHOLE},
    **{(real, "TEXT"): "_dl_double_text({})" for real in ("REAL", "DOUBLE")},
    **{(source, real): "CAST({} AS REAL)" for source in (*WHOLE, "NUMERIC") for real in ("REAL", "DOUBLE")},
    ("REAL", "DOUBLE"): "{}",
    ("DOUBLE", "REAL"): "{}",
    **{("TEXT", real): "_dl_double({})" for real in ("REAL", "DOUBLE")},
    **{("JSON", real): "CAST(_dl_json_number({}) AS REAL)" for real in ("REAL", "DOUBLE")},
    **{("JSON", whole): f"_dl_whole_numeric(_dl_json_number({{}}), '{whole}')" for whole in WHOLE},
    **{("TEXT", whole): f"_dl_whole({{}}, '{whole}')" for whole in WHOLE},
    **{(real, whole): f"_dl_whole({{}}, '{whole}')" for real in ("REAL", "DOUBLE") for whole in WHOLE},
    **{("NUMERIC", whole): f"_dl_whole_numeric({{}}, '{whole}')" for whole in WHOLE},
    **{
        (wide, narrow): f"_dl_whole({{}}, '{narrow}')"
        for wide, narrow in (("BIGINT", "INTEGER"), ("BIGINT", "SMALLINT"), ("INTEGER", "SMALLINT"))
    },
    **{(narrow, "BIGINT"): "{}" for narrow in ("SMALLINT", "INTEGER")},
    ("SMALLINT", "INTEGER"): "{}",
}
"""(from, to) -> the SQLite expression; what is not here is refused. NUMERIC has a precision and is made in code."""

ASSIGNABLE = {(a, b) for a in NUMBERS for b in NUMBERS} | {(a, b) for a in MOMENTS for b in MOMENTS}
ASSIGNABLE |= {(a, "TEXT") for a in (*NUMBERS, *MOMENTS, "TIME", "BOOLEAN", "UUID", "JSON")}
ASSIGNABLE |= {("TIMESTAMP", "TIME"), ("TIMESTAMPTZ", "TIME")}
"""What PostgreSQL converts by itself when a value is stored in a column of another type."""

CONSTANT = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

TYPED_PARAMETERS = (*MOMENTS, "TIME", "UUID")
"""Types whose stored form differs from what a user passes, so that a parameter compared with one must be written so."""


def common(first: ColumnType, second: ColumnType) -> ColumnType | None:
    """The type both become where they meet (CASE, UNION, a comparison), or None."""
    if first == second:
        return first
    for order in (NUMBERS, MOMENTS_ORDER):
        if first.name in order and second.name in order:
            if first.name == second.name:
                return ColumnType(first.name)
            wider = first if order.index(first.name) > order.index(second.name) else second
            mixed = {first.name, second.name} == {"NUMERIC", "REAL"}
            return ColumnType("DOUBLE") if mixed else ColumnType(wider.name)
    return first if first.name == second.name and first.is_scalar else None


MOMENTS_ORDER = ("DATE", "TIMESTAMP", "TIMESTAMPTZ")


def cast(context: Context, value: Value, kind: ColumnType, pos: int, length: int | None = None) -> Value:
    """The value converted as an explicit CAST does."""
    if value.untyped:
        value = settle(context, value, kind, pos)
    if value.type is None:
        value = value.typed(TEXT)
    if kind.name == "NUMERIC":
        return _numeric(context, value, kind, pos)
    if length is not None and kind.name == "TEXT":
        text = convert(context, value, kind, pos)
        return replace(text, sql=f"substr({text.sql}, 1, {length})", level=ATOM)
    return convert(context, value, kind, pos)


def convert(context: Context, value: Value, kind: ColumnType, pos: int) -> Value:
    """The value as this type by the table of casts; an error where there is none."""
    if value.name == kind.name and not (kind.is_blob or kind.is_vector):
        return value.typed(kind)
    if value.name == "NUMERIC" and kind.name == "TEXT":
        return _numeric_text(context, value, pos)
    if kind.name == "NUMERIC":
        return _numeric(context, value, kind, pos)
    template = CASTS.get((value.name, kind.name))
    if value.name in ("SMALLINT", "BIGINT") and kind.name == "BOOLEAN":
        context.fail(f"cannot cast {value.name} to BOOLEAN; write value <> 0", pos)
    if template is None:
        context.refuse(f"cannot cast {described(value.type)} to {kind}", pos)
    if kind.name in ("REAL", "DOUBLE") and CONSTANT.fullmatch(value.sql):
        return replace(value, sql=repr(float(value.sql)), type=kind)
    if template == "{}":
        return replace(value, type=kind)
    sql = template.format(value.at(ATOM) if template[0] != "_" else value.sql)
    return replace(value, sql=sql, type=kind, level=ATOM)


def _numeric(context: Context, value: Value, kind: ColumnType, pos: int) -> Value:
    if value.name == "NUMERIC" and (value.type == kind or not kind.options):
        return value
    if value.name in WHOLE and not kind.options:
        return replace(value, type=kind)
    source = f"_dl_json_number({value.sql})" if value.name == "JSON" else value.sql
    if value.name not in (*NUMBERS, "TEXT", "JSON"):
        context.refuse(f"cannot cast {described(value.type)} to {kind}", pos)
    precision, scale = kind.option("precision"), kind.option("scale")
    if CONSTANT.fullmatch(value.sql) and precision is not None:
        try:
            number = arithmetic.numeric(float(value.sql), int(precision), int(scale or 0))
        except SQLError as error:
            context.fail(str(error.args[0]), pos)
        return replace(value, sql=repr(number), type=kind)
    arguments = f", {precision}, {scale}" if precision is not None else ""
    return Value(f"_dl_numeric({source}{arguments})", kind, nullable=value.nullable, score=value.score)


def _numeric_text(context: Context, value: Value, pos: int) -> Value:
    scale = value.type.option("scale") if value.type is not None else None
    if scale is None:
        context.refuse("the text of a NUMERIC without a scale is not known here; cast it to NUMERIC(p, s) first", pos)
    return Value(f"_dl_numeric_text({value.sql}, {scale})", TEXT, nullable=value.nullable)


def settle(context: Context, value: Value, kind: ColumnType, pos: int, *, bare: bool = False) -> Value:
    """A value whose place decides its type: a literal is read now, a parameter is marked; others are left as they are.

    ``bare``: a parameter of a plain type stays as it is (a comparison); else it is made to be of the type (a cast).
    """
    if value.null:
        return replace(value, type=kind, null=False)
    if value.literal is not None:
        return literal(context, value.literal, kind, pos)
    if value.bind is None:
        return value
    if kind.name in TYPED_PARAMETERS or (not bare and kind.name in ("JSON", "BOOLEAN", "NUMERIC", "BYTEA")):
        context.binds[value.bind] = replace(context.binds[value.bind], type=kind)
        return replace(value, type=kind, bind=None)
    if kind.name == "INTERVAL":
        return Value(f"_dl_interval({value.sql})", kind)
    if bare or kind.is_vector or kind.is_blob:
        return replace(value, type=kind if kind.is_scalar else None, bind=None)
    template = {"TEXT": "_dl_text({})"}.get(kind.name) or CASTS.get(("TEXT", kind.name), "{}")
    return Value(template.format(value.sql), kind)


def literal(context: Context, text: str, kind: ColumnType, pos: int) -> Value:
    """A string literal as a value of the type, in the form the catalog keeps, or PostgreSQL's error for its text."""
    reader = _READERS.get(kind.name)
    if reader is None:
        context.refuse(f"a string cannot stand for {kind} here; pass the value as a parameter", pos)
    try:
        sql = reader(text)
    except (ValueError, SQLError) as error:
        detail = f"; {error}" if isinstance(error, SQLError) else ""
        context.fail(f"{text!r} is no {kind}{detail}", pos)
    value = Value(sql, kind, nullable=False)
    return _numeric(context, value, kind, pos) if kind.options and kind.name == "NUMERIC" else value


def _whole(text: str) -> str:
    number = int(text.strip())
    if not -(2**63) <= number < 2**63:
        raise ValueError(text)
    return str(number) if number >= 0 else f"({number})"


def _real(text: str) -> str:
    number = float(text)
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError(text)
    return repr(number) if number >= 0 else f"({number!r})"


def _boolean(text: str) -> str:
    found = BOOLEAN_WORDS.get(text.strip().lower())
    if found is None:
        raise ValueError(text)
    return str(found)


def _json(text: str) -> str:
    return quoted_text(documents.compact(documents.load(text)))


def _bytes(text: str) -> str:
    if not text.startswith("\\x"):
        return f"x'{text.encode().hex()}'"
    return f"x'{bytes.fromhex(text[2:]).hex()}'"


def _checked_vector(text: str) -> str:
    if not isinstance(json.loads(text), list):
        raise ValueError(text)
    return quoted_text(text)


_READERS: dict[str, Callable[[str], str]] = {
    "TEXT": quoted_text,
    **dict.fromkeys(WHOLE, _whole),
    **dict.fromkeys(("REAL", "DOUBLE", "NUMERIC"), _real),
    "BOOLEAN": _boolean,
    "TIMESTAMP": lambda text: quoted_text(moments.timestamp(text)),
    "TIMESTAMPTZ": lambda text: quoted_text(moments.timestamp(text, zone=True)),
    "DATE": lambda text: quoted_text(moments.date(text)),
    "TIME": lambda text: quoted_text(moments.time(text)),
    "INTERVAL": lambda text: quoted_text(moments.interval(text)),
    "JSON": _json,
    "UUID": lambda text: quoted_text(str(parse_uuid(text))),
    "BYTEA": _bytes,
    "VECTOR": _checked_vector,
}


def as_boolean(context: Context, value: Value, pos: int, what: str) -> Value:
    """The value as a condition; PostgreSQL takes nothing but BOOLEAN there."""
    if value.untyped:
        value = settle(context, value, BOOLEAN, pos, bare=True)
    if value.type is not None and value.name != "BOOLEAN":
        context.fail(f"{what} must be BOOLEAN, not {value.type}; write a comparison such as value <> 0", pos)
    return value.typed(BOOLEAN)


def as_text(context: Context, value: Value, pos: int) -> Value:
    """The value as text, the way || and concat write it."""
    if value.bind is not None:
        return Value(f"_dl_text({value.sql})", TEXT)
    if value.untyped:
        return settle(context, value, TEXT, pos)
    return value if value.name in ("TEXT", "") else convert(context, value, TEXT, pos)


def assign(context: Context, value: Value, target: Target, pos: int) -> Value:
    """The value as the column stores it; a parameter takes the column's type, an address stays within its type."""
    kind, where = target.type, f"column {target.column!r}"
    if value.null:
        return value
    if value.bind is not None:
        _claim(context, value.bind, target, pos)
        return value.typed(kind)
    if kind.is_vector or kind.is_blob:
        return _assign_address(context, value, target, pos)
    if value.literal is not None:
        return literal(context, value.literal, kind, pos)
    if value.type is None or value.name == kind.name:
        return _numeric(context, value, kind, pos) if kind.name == "NUMERIC" and value.type is not None else value
    if (value.name, kind.name) not in ASSIGNABLE:
        context.fail(f"{where} is {kind}, but the expression is {value.type}; cast it", pos)
    return convert(context, value, kind, pos)


def _claim(context: Context, number: int, target: Target, pos: int) -> None:
    """Types a parameter by its column; one parameter cannot be of two types."""
    bind = context.binds[number]
    other = context.claims.setdefault(bind.source, target)
    if other.type != target.type and not (other.type.name in WHOLE and target.type.name in WHOLE):
        context.fail(
            f"the parameter {bind.source!r} is {other.type} for column {other.column!r} and {target.type} for "
            f"column {target.column!r}; use two parameters", pos,
        )  # fmt: skip
    context.binds[number] = replace(bind, type=target.type, column=target.column)


def _assign_address(context: Context, value: Value, target: Target, pos: int) -> Value:
    kind = target.type
    if value.literal is not None:
        from deeplake_loader.sql.plan import Bind

        number = context.mark(Bind(None, kind, target.column, constant=value.literal))
        return Value(bound(number), kind)
    same = value.type == kind if not kind.is_blob else value.name == kind.name
    if not same:
        context.fail(f"column {target.column!r} is {kind}, but the expression is {described(value.type)}", pos)
    return value
