"""The user's statement as PostgreSQL is given it: what kind it is, what may not be run from here, its placeholders.

The text stays the user's own but for the placeholders, which become ``$1``, ``$2`` (psycopg's raw cursors take them, so
that a ``%`` is a ``%``). Our compiler says which values go into which columns; what it cannot read still runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from deeplake_loader.errors import SQLError, UnsupportedSQLError
from deeplake_loader.postgres.scored import Insertion, end_of, insertions, native_fast, render
from deeplake_loader.rows import KEY_PREFIX
from deeplake_loader.sql import compile_statement, compile_stream
from deeplake_loader.sql.definitions import REFUSED
from deeplake_loader.sql.extended import before_from
from deeplake_loader.sql.plan import Bind, Kind, Plan, ResultColumn
from deeplake_loader.sql.reader import Reading, Token, read
from deeplake_loader.types import RESERVED_PREFIX, Table

_CONTROL = (
    "begin", "start", "commit", "end", "rollback", "abort", "savepoint", "release", "copy", "prepare", "execute",
)  # fmt: skip
_REFUSED = {
    **{word: REFUSED[word] for word in _CONTROL},
    "set": "a handle's settings are its own; give options in the URL: ?options=-c%20work_mem%3D64MB",
    "reset": "a handle's settings are its own",
    "discard": "a handle's settings are its own",
    "deallocate": REFUSED["prepare"],
    "vacuum": "it cannot run inside a transaction; the server's autovacuum does it, or psql",
}
"""Statements that would take the connection's state out of this package's hands."""

_READING = frozenset({"select", "values", "table", "show", "explain", "("})
_CHANGING = frozenset({"insert", "update", "delete", "merge"})
_KINDS: dict[str, Kind] = {"insert": "insert", "update": "update", "delete": "delete"}


def native_plan(sql: str, schema: Mapping[str, Table], own_schema: str = "_dl", *, ours: bool = False) -> Plan:
    """The plan of one statement for PostgreSQL; ``sql`` of it takes ``binds`` as ``$1``, ``$2``, one per parameter.

    ``results`` is empty where the compiler cannot read the statement. ``ours``: names of our own may stand in it.

    Raises:
        SQLError: no statement, two of them, or a name that is reserved. UnsupportedSQLError: one that would end the
            transaction or change the connection. DimensionError: vectors that do not fit.
    """
    reading = read(sql, native=True)
    if not ours:
        refuse_reserved(reading)
    kind = kind_of(reading)
    target = None if kind == "select" else target_of(reading)
    plan = Plan(kind, "", style=reading.style, parameters=reading.parameters, target=target)
    if kind in ("select", "insert", "update", "delete"):
        plan = _compiled(plan, sql, schema)
    text, binds = native_text(reading, plan.binds, insertions(reading, own_schema))
    fast = native_fast(reading, schema, _by_source(plan.binds), own_schema) if plan.fast is not None else None
    returning = kind != "select" and _depth_zero(reading, "returning") is not None
    return replace(plan, sql=text, binds=binds, returning=returning, fast=fast)


def _compiled(plan: Plan, sql: str, schema: Mapping[str, Table]) -> Plan:
    try:
        found = compile_statement(sql, schema)
    except SQLError:  # beyond the compiler, or wrong: PostgreSQL knows
        return plan
    if found.kind != plan.kind:
        return plan
    return replace(
        plan, binds=found.binds, results=found.results, target=found.target, insert_columns=found.insert_columns,
        reads=found.reads, ordered=found.ordered, fast=found.fast,
    )  # fmt: skip


def native_text(
    reading: Reading, binds: Iterable[Bind], put_in: Sequence[Insertion] = ()
) -> tuple[str, tuple[Bind, ...]]:
    """The statement with ``$n`` for its placeholders and our own words put in, and what each placeholder takes."""
    known = _by_source(binds)
    numbers: dict[int | str, int] = {}
    text = render(reading, (0, end_of(reading)), numbers, put_in)
    return text, tuple(known.get(source, Bind(source)) for source in numbers)


def _by_source(binds: Iterable[Bind]) -> dict[int | str, Bind]:
    """One bind per parameter: the place that says most about its value."""
    found: dict[int | str, Bind] = {}
    for bind in binds:
        if bind.source is not None and _told(bind) >= _told(found.get(bind.source)):
            found[bind.source] = bind
    return found


def _told(bind: Bind | None) -> int:
    if bind is None:
        return -1
    return 4 * (bind.column is not None) + 2 * (bind.score or bind.many) + (bind.type is not None)


def place_in(reading: Reading, put_in: Sequence[Insertion], position: int) -> int:
    """For a position in the native text, the one in the user's own."""
    numbers, shift = dict[int | str, int](), 0
    edits = [(at, at, len(text)) for at, text in put_in]
    for token in reading.tokens:
        if token.kind == "parameter" and token.source is not None:
            number = numbers.setdefault(token.source, len(numbers) + 1)
            edits.append((token.start, token.stop, len(f"${number}")))
    for start, stop, length in sorted(edits):
        if position + shift <= start:
            break
        shift += (stop - start) - length
    return position + shift


def brings_values(sql: str) -> bool:
    """Whether an INSERT brings its rows itself, so that they are few."""
    reading = read(sql, native=True)
    return _depth_zero(reading, "values") is not None and _depth_zero(reading, "select") is None


# -- streams -----------------------------------------------------------------------------------------------------------


def native_stream_plan(sql: str, schema: Mapping[str, Table], own_schema: str = "_dl") -> Plan:
    """The plan of a SELECT with the primary keys of its tables as hidden last columns, where it has such keys."""
    refuse_reserved(read(sql, native=True))
    try:
        found = compile_stream(sql, schema)
        keys = _hidden_keys(found.sql)
    except SQLError:
        keys = []
    if not keys:
        return native_plan(sql, schema, own_schema)
    place = before_from(sql)
    listed = "".join(f", {text} AS {KEY_PREFIX}{i}" for i, text in enumerate(keys))
    plan = native_plan(f"{sql[:place].rstrip()}{listed} {sql[place:]}", schema, own_schema, ours=True)
    hidden = tuple(ResultColumn(f"{KEY_PREFIX}{i}", None) for i in range(len(keys)))
    return replace(plan, results=(*found.results, *hidden), ordered=found.ordered)


def _hidden_keys(sql: str) -> list[str]:
    """The expressions that a compiled stream has for its hidden columns."""
    tokens, out = read(sql, native=True).tokens, list[str]()
    for i, token in enumerate(tokens):
        if token.kind == "word" and token.text.startswith(KEY_PREFIX):
            start = i - 2
            while tokens[start - 1].text != ",":
                start -= 1
            out.append(sql[tokens[start].start : tokens[i - 2].stop])
    return out


# -- what a statement is -----------------------------------------------------------------------------------------------


def kind_of(reading: Reading) -> Kind:
    """The kind of a statement by its words; "other" for what is neither a query, a change of rows nor of tables."""
    tokens = reading.tokens
    first = _word(tokens, 0)
    if first in _REFUSED:
        raise UnsupportedSQLError(
            f"{first.upper()} is not run from SQL here: {_REFUSED[first]}", sql=reading.sql, position=tokens[0].start
        )
    if first in ("create", "drop", "alter"):
        return _definition(tokens)
    changing = _changing_parts(tokens)
    if first == "with":
        return _after_with(tokens, changing)
    if first in _READING:
        _refuse_into(reading)
        return "other" if changing and (first != "explain" or _word(tokens, 1) == "analyze") else "select"
    if first in ("insert", "update", "delete"):
        return _KINDS[first]
    return "other"


def _word(tokens: tuple[Token, ...], i: int) -> str:
    return tokens[i].text if i < len(tokens) and tokens[i].kind in ("word", "operator") else ""


def _definition(tokens: tuple[Token, ...]) -> Kind:
    words = [_word(tokens, i) for i in range(1, 6)]
    if tokens[0].text == "create":
        if words[0] == "index" or words[:2] == ["unique", "index"]:
            return "create_index"
        return "create_table" if words[0] in ("table", "unlogged") and "table" in words[:2] else "other"
    if words[0] == "table":
        return "drop_table" if tokens[0].text == "drop" else "alter_table"
    return "drop_index" if tokens[0].text == "drop" and words[0] == "index" else "other"


def _changing_parts(tokens: tuple[Token, ...]) -> bool:
    """Whether a WITH query changes rows: AS (INSERT ...), AS MATERIALIZED (DELETE ...)."""
    return any(
        token.kind == "word" and token.text in _CHANGING and i > 1 and _word(tokens, i - 1) == "("
        and _word(tokens, i - 2) in ("as", "materialized")
        for i, token in enumerate(tokens)
    )  # fmt: skip


def _after_with(tokens: tuple[Token, ...], changing: bool) -> Kind:
    main = next((t.text for t, depth in _with_depth(tokens) if depth == 0 and t.kind == "word" and
                 t.text in (*_CHANGING, "select", "values", "table")), "select")  # fmt: skip
    if changing or main == "merge":
        return "other"
    return _KINDS.get(main, "select")


def _with_depth(tokens: tuple[Token, ...]) -> Iterable[tuple[Token, int]]:
    depth = 0
    for token in tokens:
        if token.kind == "operator" and token.text in ")]":
            depth -= 1
        yield token, depth
        if token.kind == "operator" and token.text in "([":
            depth += 1


def _depth_zero(reading: Reading, word: str) -> int | None:
    """The number of the token that is this word, outside of parentheses."""
    for i, (token, depth) in enumerate(_with_depth(reading.tokens)):
        if depth == 0 and token.kind == "word" and token.text == word:
            return i
    return None


def _refuse_into(reading: Reading) -> None:
    at = _depth_zero(reading, "into")
    if at is not None:
        raise UnsupportedSQLError(
            "SELECT INTO is not supported; CREATE TABLE, then INSERT ... SELECT",
            sql=reading.sql, position=reading.tokens[at].start,
        )  # fmt: skip


def refuse_reserved(reading: Reading) -> None:
    """The store's own tables and columns are not the user's."""
    for token in reading.tokens:
        if token.kind in ("word", "name") and (token.text == "_dl" or token.text.lower().startswith(RESERVED_PREFIX)):
            raise SQLError(
                f"names that begin with {RESERVED_PREFIX} are reserved", sql=reading.sql, position=token.start
            )


def target_of(reading: Reading) -> str | None:
    """The table that a statement changes, as it is named there."""
    tokens = reading.tokens
    for i, (token, depth) in enumerate(_with_depth(tokens)):
        if depth == 0 and token.kind == "word" and token.text in ("into", "update", "from", "table", "truncate"):
            return _name_after(tokens, i + 1)
    return None


def _name_after(tokens: tuple[Token, ...], i: int) -> str | None:
    while _word(tokens, i) in ("only", "if", "not", "exists", "table"):
        i += 1
    while i + 2 < len(tokens) and _word(tokens, i + 1) == ".":
        i += 2
    return tokens[i].text if i < len(tokens) and tokens[i].kind in ("word", "name") else None
