"""Which line of the function table a call meets, and its arguments as that line takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deeplake_loader.sql import tree
from deeplake_loader.sql.casts import convert, settle
from deeplake_loader.sql.functions import HINTS, PREFERRED, Signature, fits
from deeplake_loader.sql.scope import Scope
from deeplake_loader.sql.tree import Expression
from deeplake_loader.sql.values import ATOM, TEXT, Context, Value, quoted_text
from deeplake_loader.types import ColumnType

if TYPE_CHECKING:
    from deeplake_loader.sql.expressions import ExpressionCompiler


def listed(compiler: ExpressionCompiler, scope: Scope, node: tree.Call, table: dict[str, list[Signature]]) -> Value:
    context = compiler.context
    values = [compiler.expression(scope, argument) for argument in node.arguments]
    if node.name not in table:
        hint = f"; {HINTS[node.name]}" if node.name in HINTS else ""
        context.refuse(f"the function {node.name} is not supported{hint}", node.pos)
    for implicit in (False, True):
        fitting = [signature for signature in table[node.name] if _takes(signature, values, implicit=implicit)]
        if fitting:
            return _apply(context, min(fitting, key=lambda s: _conversions(s, values)), values, node.pos)
    found = ", ".join("a parameter" if v.bind is not None else str(v.type or "text") for v in values)
    takes = " or ".join(f"({', '.join((*s.arguments, *(['...'] * bool(s.rest))))})" for s in table[node.name])
    context.fail(f"{node.name} takes {takes}, found ({found}); cast the arguments", node.pos)


def _takes(signature: Signature, values: list[Value], *, implicit: bool) -> bool:
    count = len(signature.arguments)
    if len(values) != count and (signature.rest is None or len(values) < count):
        return False
    words = [*signature.arguments, *[signature.rest or ""] * (len(values) - count)]
    pairs = zip(words, values, strict=True)
    return all(value.type is None or fits(word, value.name, implicit=implicit) for word, value in pairs)


def _conversions(signature: Signature, values: list[Value]) -> int:
    """How many arguments would change their type; a string literal is text where that is possible."""
    pairs = zip(signature.arguments, values, strict=False)
    return sum(w != "text" if v.literal is not None else not fits(w, v.name, implicit=False) for w, v in pairs)


def _apply(context: Context, signature: Signature, values: list[Value], pos: int) -> Value:
    words = [*signature.arguments, *[signature.rest or ""] * (len(values) - len(signature.arguments))]
    ready = [_argument(context, word, value, pos) for word, value in zip(words, values, strict=True)]
    fixed = len(signature.arguments)
    texts = [value.sql for value in ready[:fixed]]
    rest = ", ".join(value.sql for value in ready[fixed:])
    kind = signature.result or (ready[0].type if ready else None)
    if signature.template == "!pg_typeof":
        return Value(quoted_text(SPELLED.get(ready[0].name, ready[0].name.lower() or "unknown")), TEXT)
    if "% " in signature.template:
        texts = [value.at(ATOM) for value in ready]
    template = signature.template.format(*texts, rest=rest)
    if kind is not None and kind.name == "NUMERIC" and signature.result is not None:
        kind = _scale_of(signature, values) or kind
    level = ATOM if "% " not in signature.template else 8
    return Value(template, kind, level, score=any(v.score for v in values))


SPELLED = {
    "TIMESTAMP": "timestamp without time zone", "TIMESTAMPTZ": "timestamp with time zone", "JSON": "jsonb",
    "TIME": "time without time zone", "DOUBLE": "double precision",
}  # fmt: skip
"""pg_typeof's names where they differ from ours."""


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


def json_argument(compiler: ExpressionCompiler, scope: Scope, node: Expression) -> str:
    """A value as the JSON shims take it: its type's name, then the value."""
    value = compiler.expression(scope, node)
    if value.literal is not None:
        value = settle(compiler.context, value, TEXT, node.pos)
    if value.type is not None and not value.type.is_scalar:
        compiler.context.refuse(f"{value.type} has no form in JSON", node.pos)
    return f"'{value.name}', {value.sql}"
