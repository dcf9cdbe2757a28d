"""Operators: which types PostgreSQL takes on each side, and what they become on SQLite."""

from __future__ import annotations

from dataclasses import replace

from deeplake_loader.sql import tree
from deeplake_loader.sql.casts import TYPED_PARAMETERS, as_text, common, convert, settle
from deeplake_loader.sql.values import (
    ATOM,
    BITS,
    BOOLEAN,
    DATE,
    DOUBLE,
    EQUAL,
    INTEGER,
    INTERVAL,
    JOINED,
    JSON,
    LESS,
    MOMENTS,
    NOT,
    NUMBERS,
    NUMERIC,
    PRODUCT,
    SUM,
    TEXT,
    TIMESTAMP,
    UNARY,
    WHOLE,
    Context,
    Value,
    described,
    quoted_text,
)
from deeplake_loader.types import ColumnType

LISTED = (*TYPED_PARAMETERS, "JSON")
"""Types whose members in a list parameter are written in the catalog's form."""

COMPARISONS = {"=": EQUAL, "<>": EQUAL, "<": LESS, "<=": LESS, ">": LESS, ">=": LESS}
JSON_OPERATORS = {
    "->": ("_dl_json_get", "JSON"), "->>": ("_dl_json_text", "TEXT"), "#>": ("_dl_json_path", "JSON"),
    "#>>": ("_dl_json_path_text", "TEXT"), "@>": ("_dl_json_contains", "BOOLEAN"), "?": ("_dl_json_has", "BOOLEAN"),
    "<@": ("_dl_json_contained", "BOOLEAN"), "?|": ("_dl_json_has_any", "BOOLEAN"),
    "?&": ("_dl_json_has_all", "BOOLEAN"),
}  # fmt: skip
REGULAR = {"~": (0, False), "~*": (1, False), "!~": (0, True), "!~*": (1, True)}


def matched(context: Context, left: Value, right: Value, pos: int) -> tuple[Value, Value]:
    """Both sides of a comparison in one form; an error where PostgreSQL has no such comparison."""
    if left.type is not None and left.type.is_scalar and right.untyped:
        right = settle(context, right, left.type, pos, bare=True)
    elif right.type is not None and right.type.is_scalar and left.untyped:
        left = settle(context, left, right.type, pos, bare=True)
    if left.type is None or right.type is None:
        return left, right
    for kind in (left.type, right.type):
        if not kind.is_scalar or kind.name == "JSON":
            hint = "compare a part: value ->> 'key'" if kind.name == "JSON" else "compare a score, or test IS NULL"
            context.refuse(f"{kind} values cannot be compared; {hint}", pos)
    shared = common(left.type, right.type)
    if shared is None:
        context.fail(f"cannot compare {left.type} with {right.type}; cast one side", pos)
    if shared.name == "INTERVAL":
        return _span(left), _span(right)
    if shared.name in MOMENTS:
        return convert(context, left, shared, pos), convert(context, right, shared, pos)
    return left, right


def _span(value: Value) -> Value:
    """Intervals are compared by their length, a month as 30 days."""
    return replace(value, sql=f"_dl_span({value.sql})", level=ATOM)


def sign(context: Context, node: tree.Unary, value: Value) -> Value:
    """-value, +value, ~value."""
    if value.name == "INTERVAL" and node.operator == "-":
        return replace(value, sql=f"_dl_interval_times({value.sql}, -1)", level=ATOM)
    if value.literal is not None:
        context.fail(f"{node.operator}{value.literal!r}: a string has no sign; cast it", node.pos)
    allowed = WHOLE if node.operator == "~" else NUMBERS
    if value.type is not None and value.name not in allowed:
        context.fail(f"{node.operator} needs a number, not {value.type}", node.pos)
    if node.operator == "+":
        return value
    return replace(value, sql=f"{node.operator}{value.at(ATOM)}", level=UNARY, bind=None)


def binary(context: Context, node: tree.Binary, left: Value, right: Value) -> Value:
    """left operator right, for every operator but AND, OR and the scores."""
    operator = node.operator
    score = left.score or right.score
    if operator in COMPARISONS:
        return _comparison(context, node, left, right)
    if operator in JSON_OPERATORS:
        return _json(context, node, left, right)
    if operator in REGULAR:
        return _regular(context, node, left, right)
    if operator == "||":
        return _joined(context, node, left, right)
    if operator in ("&", "|"):
        return _bits(context, node, left, right)
    if operator in ("+", "-", "*", "/", "%", "^"):
        found = _temporal(context, node, left, right) or _arithmetic(context, node, left, right)
        return replace(found, score=score, nullable=left.nullable or right.nullable)
    context.refuse(f"the operator {operator} is not supported", node.pos)


def _comparison(context: Context, node: tree.Binary, left: Value, right: Value) -> Value:
    left, right = matched(context, left, right, node.pos)
    level = COMPARISONS[node.operator]
    sql = f"{left.at(level + 1)} {node.operator} {right.at(level + 1)}"
    return Value(sql, BOOLEAN, level, nullable=left.nullable or right.nullable)


def _joined(context: Context, node: tree.Binary, left: Value, right: Value) -> Value:
    if "JSON" in (left.name, right.name):
        context.refuse("|| of JSON is not supported; build the value in Python", node.pos)
    if left.type is not None and right.type is not None and "TEXT" not in (left.name, right.name):
        context.fail(f"|| needs text on one side, found {left.type} and {right.type}; cast one", node.pos)
    left, right = as_text(context, left, node.pos), as_text(context, right, node.pos)
    return Value(f"{left.at(JOINED)} || {right.at(JOINED + 1)}", TEXT, JOINED, nullable=left.nullable or right.nullable)


def _bits(context: Context, node: tree.Binary, left: Value, right: Value) -> Value:
    left, right = _numbers(context, node, left, right)
    kind = common(left.type or INTEGER, right.type or INTEGER)
    if kind is None or kind.name not in WHOLE:
        context.fail(f"{node.operator} needs whole numbers", node.pos)
    return Value(f"{left.at(BITS)} {node.operator} {right.at(BITS + 1)}", kind, BITS)


def _numbers(context: Context, node: tree.Binary, left: Value, right: Value) -> tuple[Value, Value]:
    """Both sides settled; a number where a type is known."""
    if left.untyped and not right.untyped and right.type is not None:
        left = _settled_number(context, left, right.type, node.pos)
    elif right.untyped and not left.untyped and left.type is not None:
        right = _settled_number(context, right, left.type, node.pos)
    for value in (left, right):
        if value.literal is not None:
            context.fail(f"{value.literal!r} is a string; cast it for {node.operator}", node.pos)
        if value.type is not None and value.name not in NUMBERS:
            known = f"{described(left.type)} {node.operator} {described(right.type)}"
            context.fail(f"there is no operator {known}; cast one side", node.pos)
    return left, right


def _settled_number(context: Context, value: Value, kind: ColumnType, pos: int) -> Value:
    """A parameter beside a number stays what is passed: 1 or 1.5."""
    return value if value.bind is not None else settle(context, value, kind, pos, bare=True)


def _arithmetic(context: Context, node: tree.Binary, left: Value, right: Value) -> Value:
    left, right = _numbers(context, node, left, right)
    operator = node.operator
    if operator == "^":
        floats = {"REAL", "DOUBLE"} & {left.name, right.name}
        numeric = "NUMERIC" in (left.name, right.name) and not floats
        return Value(f"_dl_power({left.sql}, {right.sql})", NUMERIC if numeric else DOUBLE)
    kind = None if left.type is None or right.type is None else common(left.type, right.type)
    if "NUMERIC" in (left.name, right.name) and (kind is None or kind.name == "NUMERIC"):
        return Value(f"_dl_numeric_op('{operator}', {left.sql}, {right.sql})", NUMERIC)
    if operator == "%" and kind is not None and kind.name not in WHOLE:
        context.fail(f"there is no operator {left.type} % {right.type}; cast both to NUMERIC", node.pos)
    if operator in ("/", "%"):
        right = _nonzero(right)
    level = SUM if operator in ("+", "-") else PRODUCT
    return Value(f"{left.at(level)} {operator} {right.at(level + 1)}", kind, level)


def _nonzero(value: Value) -> Value:
    """SQLite's NULL for a division by zero would be silent."""
    digits = value.sql.replace(".", "", 1)
    if digits.isdigit() and float(value.sql) != 0:
        return value
    return replace(value, sql=f"_dl_nonzero({value.sql})", level=ATOM)


# -- dates and intervals -------------------------------------------------------------------------------------------


def _temporal(context: Context, node: tree.Binary, left: Value, right: Value) -> Value | None:
    """Arithmetic with a date, timestamp, time or interval; None when there is none on either side."""
    if "INTERVAL" in (left.name, right.name) and (left.untyped or right.untyped):
        left, right = _settled_interval(context, node, left, right)
    elif left.name in ("TIMESTAMP", "TIMESTAMPTZ") and right.untyped and node.operator == "+":
        right = settle(context, right, INTERVAL, node.pos)
    elif left.name in MOMENTS and right.untyped and node.operator == "-":
        right = settle(context, right, left.type or TIMESTAMP, node.pos)
    kinds = (left.name, node.operator, right.name)
    if not any(name in (*MOMENTS, "TIME", "INTERVAL") for name in (left.name, right.name)):
        return None
    if left.name in ("INTERVAL", *WHOLE) and right.name in MOMENTS and node.operator == "+":
        left, right, kinds = right, left, (right.name, "+", left.name)
    found = _shifted(context, node, left, right) or _difference(context, node, left, right)
    if found is None and kinds[0] == "INTERVAL":
        found = _interval_arithmetic(node, left, right)
    if found is None and kinds[2] == "INTERVAL" and node.operator == "*" and left.name in (*NUMBERS, ""):
        found = Value(f"_dl_interval_times({right.sql}, {left.sql})", INTERVAL)
    if found is None:
        known = f"{described(left.type)} {node.operator} {described(right.type)}"
        context.fail(f"there is no operator {known}; cast one side", node.pos)
    return found


def _settled_interval(context: Context, node: tree.Binary, left: Value, right: Value) -> tuple[Value, Value]:
    if node.operator in ("*", "/"):
        return left, right
    if left.untyped and left.bind is None:
        return settle(context, left, INTERVAL, node.pos), right
    if right.untyped:
        return left, settle(context, right, INTERVAL, node.pos)
    context.refuse("the parameter may be a timestamp or an interval; cast it: %s::timestamp", node.pos)


def _shifted(context: Context, node: tree.Binary, left: Value, right: Value) -> Value | None:
    if node.operator not in ("+", "-"):
        return None
    direction = "1" if node.operator == "+" else "-1"
    if right.name == "INTERVAL" and left.name in MOMENTS:
        if left.name == "DATE":
            left = convert(context, left, TIMESTAMP, node.pos)
        return Value(f"_dl_shift({left.sql}, {right.sql}, {direction})", left.type)
    if left.name == "DATE" and (right.name in WHOLE or right.bind is not None):
        return Value(f"_dl_add_days({left.sql}, {right.sql}, {direction})", DATE)
    return None


def _difference(context: Context, node: tree.Binary, left: Value, right: Value) -> Value | None:
    if node.operator != "-" or left.name not in MOMENTS or right.name not in MOMENTS:
        return None
    if left.name == right.name == "DATE":
        return Value(f"_dl_days({left.sql}, {right.sql})", INTEGER)
    left, right = matched(context, left, right, node.pos)
    return Value(f"_dl_between({left.sql}, {right.sql})", INTERVAL)


def _interval_arithmetic(node: tree.Binary, left: Value, right: Value) -> Value | None:
    if right.name == "INTERVAL" and node.operator in ("+", "-"):
        direction = "1" if node.operator == "+" else "-1"
        return Value(f"_dl_interval_add({left.sql}, {right.sql}, {direction})", INTERVAL)
    if node.operator == "*" and right.name in (*NUMBERS, ""):
        return Value(f"_dl_interval_times({left.sql}, {right.sql})", INTERVAL)
    if node.operator == "/" and right.name in (*NUMBERS, ""):
        return Value(f"_dl_interval_times({left.sql}, 1.0 / _dl_nonzero({right.sql}))", INTERVAL)
    return None


# -- JSON, LIKE, regular expressions -------------------------------------------------------------------------------


def _json(context: Context, node: tree.Binary, left: Value, right: Value) -> Value:
    function, result = JSON_OPERATORS[node.operator]
    both = node.operator in ("@>", "<@")
    if left.untyped:
        left = settle(context, left, JSON, node.pos)
    if left.name not in ("JSON", ""):
        context.fail(f"{node.operator} needs JSON on its left, not {left.type}; cast it: value::jsonb", node.pos)
    if both:
        right = settle(context, right, JSON, node.pos) if right.untyped else right
        if right.name not in ("JSON", ""):
            context.fail(f"{node.operator} needs JSON on its right, not {right.type}; cast it: value::jsonb", node.pos)
    elif node.operator in ("?|", "?&", "#>", "#>>"):
        right = _path(context, node, right)
    elif right.literal is not None:
        right = settle(context, right, TEXT, node.pos)
    elif right.name not in ("TEXT", "INTEGER", "SMALLINT", "BIGINT", ""):
        context.fail(f"{node.operator} needs a key or a position on its right, not {right.type}", node.pos)
    return Value(f"{function}({left.sql}, {right.sql})", ColumnType(result))


def _path(context: Context, node: tree.Binary, right: Value) -> Value:
    """The '{a,b}' literal of a path or a list of keys, as a JSON array."""
    import json

    text = right.literal
    if text is None or not text.startswith("{") or not text.endswith("}") or '"' in text or "\\" in text:
        context.refuse(f"{node.operator} takes a plain literal such as '{{a,b}}' on its right", node.pos)
    parts = [part.strip() for part in text[1:-1].split(",")] if text[1:-1].strip() else []
    return Value(quoted_text(json.dumps(parts, ensure_ascii=False)), TEXT)


def _regular(context: Context, node: tree.Binary, left: Value, right: Value) -> Value:
    insensitive, negated = REGULAR[node.operator]
    sides = [settle(context, side, TEXT, node.pos, bare=True) if side.untyped else side for side in (left, right)]
    for side in sides:
        if side.name not in ("TEXT", ""):
            context.fail(f"{node.operator} needs text, not {side.type}; cast it: value::text", node.pos)
    sql = f"_dl_regex({sides[0].sql}, {sides[1].sql}, {insensitive})"
    return Value(f"NOT {sql}", BOOLEAN, NOT) if negated else Value(sql, BOOLEAN)


def like(context: Context, node: tree.Like, value: Value, pattern: Value, escape: Value | None) -> Value:
    """LIKE with PostgreSQL's rules: it tells case apart, and a backslash escapes.

    A literal pattern becomes GLOB, or SQLite's own LIKE for ILIKE of ASCII text: both native and open to indexes.
    """
    negation = "NOT " if node.negated else ""
    if pattern.type is not None and pattern.name != "TEXT":
        context.fail(f"a pattern must be text, not {pattern.type}; cast it", node.pos)
    text = pattern.literal if escape is None else None
    if text is not None and not node.insensitive:
        return Value(f"{value.at(LESS)} {negation}GLOB {quoted_text(_glob(context, text, node.pos))}", BOOLEAN, EQUAL)
    if text is not None and text.isascii() and "\\" not in text:
        return Value(f"{value.at(LESS)} {negation}LIKE {quoted_text(text)}", BOOLEAN, EQUAL)
    mark = "'\\'" if escape is None else escape.sql
    pattern = settle(context, pattern, TEXT, node.pos, bare=True) if pattern.untyped else pattern
    sql = f"_dl_like({value.sql}, {pattern.sql}, {mark}, {int(node.insensitive)})"
    return Value(f"NOT {sql}", BOOLEAN, NOT) if node.negated else Value(sql, BOOLEAN)


def _glob(context: Context, pattern: str, pos: int) -> str:
    out, characters = [], iter(pattern)
    for char in characters:
        if char == "\\":
            char = next(characters, "")
            if not char:
                context.fail("a LIKE pattern must not end with the escape character", pos)
        elif char in "%_":
            out.append("*" if char == "%" else "?")
            continue
        out.append(f"[{char}]" if char in "*?[" else char)
    return "".join(out)
