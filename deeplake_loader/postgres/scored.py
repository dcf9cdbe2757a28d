"""What of a user's statement has to do with scores: where to say that missing scores come last, and which parts of the
text choose the rows of the block that a score orders.

PostgreSQL runs the user's text. Two things are said in addition, by words put into it: ``NULLS LAST`` behind a score
that is ordered from the largest (PostgreSQL would begin with the rows that have none), and our own schema before
``cosine_distance``, because pgvector's function of that name gives NaN for an all-zero vector.

    SELECT <items> FROM <source> [WHERE <where>] ORDER BY <score> ... LIMIT k
                        '------ candidates ------'
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from deeplake_loader.errors import SQLError
from deeplake_loader.postgres.matrices import key_of
from deeplake_loader.sql import tree
from deeplake_loader.sql.definitions import parse
from deeplake_loader.sql.fast import ScoredBlock, scored_block
from deeplake_loader.sql.functions import METRICS, SCORE_OPERATORS
from deeplake_loader.sql.plan import WINNERS, Bind, FastPath
from deeplake_loader.sql.queries import QueryCompiler
from deeplake_loader.sql.reader import Reading, Token
from deeplake_loader.sql.values import Context
from deeplake_loader.types import Table, quote_identifier

Span = tuple[int, int]
Insertion = tuple[int, str]
"""A place in the user's text and what is put in there."""

_AFTER_ORDER = frozenset({"limit", "offset", "fetch", "for", "rows", "range", "groups"})
_NO_CALL_BEFORE = frozenset({"into", "with", "table", "as", "update", "join", "function", "recursive"})


def insertions(reading: Reading, own_schema: str = "_dl") -> tuple[Insertion, ...]:
    """What is put into a statement before PostgreSQL gets it, by place; nothing into one that our parser refuses.

    >>> from deeplake_loader.sql.reader import read
    >>> insertions(read("SELECT id FROM t ORDER BY cosine_similarity(v, :q) DESC LIMIT 3"))
    ((55, ' NULLS LAST'),)
    """
    own = f"{quote_identifier(own_schema)}."
    found = [(token.start, own) for token in _calls(reading.tokens, "cosine_distance")]
    try:
        statement = parse(reading)
    except (SQLError, RecursionError):
        return tuple(found)
    for node in tree.walk(statement):
        if isinstance(node, tree.Query | tree.Window):
            found += _last(reading.tokens, node)
    return tuple(sorted(found))


def render(reading: Reading, span: Span, numbers: dict[int | str, int], put_in: Sequence[Insertion] = ()) -> str:
    """A span of the user's text for PostgreSQL: ``$n`` for its placeholders, numbered in ``numbers`` as they come, and
    what falls into it put in."""
    edits: list[tuple[int, int, str | Token]] = [(at, at, text) for at, text in put_in if span[0] <= at <= span[1]]
    inside = (t for t in reading.tokens if span[0] <= t.start and t.stop <= span[1])
    edits += [(t.start, t.stop, t) for t in inside if t.kind == "parameter" and t.source is not None]
    parts, at = list[str](), span[0]
    for start, stop, what in sorted(edits, key=lambda edit: edit[:2]):
        number = None if isinstance(what, str) else numbers.setdefault(what.source or 0, len(numbers) + 1)
        parts += [_plain(reading, at, start), f"${number}" if number is not None else str(what)]
        at = stop
    return "".join((*parts, _plain(reading, at, span[1])))


def _plain(reading: Reading, start: int, stop: int) -> str:
    text = reading.sql[start:stop]
    return text.replace("%%", "%") if reading.percent else text


def _calls(tokens: Sequence[Token], name: str) -> Iterator[Token]:
    before = ""
    for token, after in pairwise(tokens):
        called = token.kind == "word" and token.text == name and after[:2] == ("operator", "(")
        if called and before != "." and before not in _NO_CALL_BEFORE:
            yield token
        before = token.text


def _last(tokens: Sequence[Token], query: tree.Query | tree.Window) -> Iterator[Insertion]:
    for key in query.order:
        if key.descending and key.nulls is None and _is_score(_meant(query, key.expression)):
            yield _end_of_key(tokens, key.pos), " NULLS LAST"


def _meant(query: tree.Query | tree.Window, node: tree.Expression) -> tree.Expression:
    """The expression behind a place or a name of the select list."""
    items = query.body.items if isinstance(query, tree.Query) and isinstance(query.body, tree.Select) else ()
    if isinstance(node, tree.Literal_) and node.text.isdigit() and 1 <= int(node.text) <= len(items):
        return items[int(node.text) - 1].expression
    if isinstance(node, tree.ColumnRef) and node.table is None:
        for item in items:
            if item.alias is not None and item.alias.text == node.name.text:
                return item.expression
    return node


def _is_score(node: tree.Expression) -> bool:
    """Whether it is a score, or made of one."""
    for part in tree.walk(node):
        if isinstance(part, tree.Call) and part.name in METRICS:
            return True
        if isinstance(part, tree.Binary) and part.operator in SCORE_OPERATORS:
            return True
    return False


def _end_of_key(tokens: Sequence[Token], start: int) -> int:
    """Where the ORDER BY key that begins there ends."""
    depth, stop = 0, start
    for token in tokens:
        if token.start < start:
            continue
        if token.kind == "operator" and token.text in ("(", "[", ")", "]"):
            depth += 1 if token.text in ("(", "[") else -1
        ends = depth == 0 and (token.text == "," or (token.kind == "word" and token.text in _AFTER_ORDER))
        if token.kind == "end" or depth < 0 or (ends and token.kind in ("operator", "word")):
            return stop
        stop = token.stop
    return stop


def native_fast(
    reading: Reading, schema: Mapping[str, Table], known: Mapping[int | str, Bind], own_schema: str = "_dl"
) -> FastPath | None:
    """The fast path of a SELECT that one score orders, or None.

    ``candidates_sql`` gives the keys of the block's rows, 8 big-endian bytes each, as one bytea; ``final_sql`` takes
    the winners' keys as the text of an array. None for a table whose key is no single whole number, and for a score
    written as an operator: those are pgvector's, which may answer them by an index.

    ``known``: what is known of each parameter's value.
    """
    try:
        statement = parse(reading)
        if not isinstance(statement, tree.Query):
            return None
        context = Context(reading, schema)
        compiler = QueryCompiler(context)
        compiler.query(statement, top=True)
    except (SQLError, RecursionError):
        return None
    found = scored_block(context, compiler.blocks)
    key = None if found is None else key_of(schema[found.scored.table.lower()])
    if found is None or key is None or found.by_operator or not _stands_alone(statement, found):
        return None
    parts = _parts(reading, statement, found)
    return None if parts is None else _fast(reading, found, key, parts, known, insertions(reading, own_schema))


def _stands_alone(statement: tree.Query, found: ScoredBlock) -> bool:
    """Whether the block's FROM and WHERE mean the same by themselves, behind the statement's own WITH."""
    within = [q for q in tree.walk(statement) if isinstance(q, tree.Query) and q.ctes]
    return not within or (within == [statement] and found.block.node is statement.body)


@dataclass(frozen=True, slots=True)
class _Parts:
    """Spans of the user's text: ``head``, the WITH before the block (empty: none); ``source``, what follows FROM;
    ``where``, what follows WHERE, None without one. The block's condition ends at ``end``."""

    head: Span
    source: Span
    where: Span | None
    end: int


def _parts(reading: Reading, statement: tree.Query, found: ScoredBlock) -> _Parts | None:
    node = found.block.node
    head = (statement.pos, node.pos) if statement.ctes else (0, 0)
    depth, previous = 0, ""
    begin: int | None = None
    source: Span | None = None
    for token in reading.tokens:
        if token.start < node.pos:
            continue
        if token.kind == "operator" and token.text in ("(", ")"):
            depth += 1 if token.text == "(" else -1
        elif token.kind == "word" and depth == 0:
            if token.text == "from" and previous != "distinct" and begin is None:
                begin = token.stop
            elif token.text == "where" and begin is not None and source is None:
                source, begin = (begin, token.start), token.stop
            elif token.text == "order" and begin is not None:
                last = (begin, token.start)
                return _Parts(head, last if source is None else source, None if source is None else last, token.start)
        if depth < 0:
            return None
        previous = token.text
    return None


def _fast(
    reading: Reading, found: ScoredBlock, key: str, parts: _Parts, known: Mapping[int | str, Bind],
    put_in: tuple[Insertion, ...],
) -> FastPath:  # fmt: skip
    scored, place = found.scored, f"{quote_identifier(found.scored.alias)}.{quote_identifier(key)}"
    first: dict[int | str, int] = {}
    source = render(reading, parts.source, first, put_in)
    head = render(reading, parts.head, first, put_in) if parts.head[1] else ""
    # a line of its own for what follows the user's text, which may end with a comment
    condition = "" if parts.where is None else f"WHERE ({render(reading, parts.where, first, put_in)}\n)"
    candidates = f"{head}SELECT string_agg(int8send({place}::bigint), ''::bytea) FROM {source}\n{condition}"
    last: dict[int | str, int] = {}
    begin, end = (parts.end, parts.end) if parts.where is None else parts.where
    before = render(reading, (0, begin), last, put_in)
    own = "" if parts.where is None else f" ({render(reading, parts.where, last, put_in)}\n) AND"
    after = render(reading, (end, end_of(reading)), last, put_in)
    # the number of the winners is known only when the parameters behind them have got theirs
    final = f"{before}{'WHERE' if parts.where is None else ''}{own} {place} = ANY(${len(last) + 1}::bigint[]) {after}"
    binds = (*(known.get(s, Bind(s)) for s in last), Bind(WINNERS))
    return FastPath(
        candidates, tuple(known.get(s, Bind(s)) for s in first), final, binds, scored.table, scored.column,
        scored.metric, scored.largest, found.limit, found.offset, scored.query, found.whole,
    )  # fmt: skip


def end_of(reading: Reading) -> int:
    """Where the statement ends, a closing semicolon left out."""
    return reading.tokens[-2].stop if len(reading.tokens) > 1 else len(reading.sql)
