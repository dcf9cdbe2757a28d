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
from deeplake_loader.sql import tree
from deeplake_loader.sql.definitions import parse
from deeplake_loader.sql.fast import ScoredBlock, scored_block
from deeplake_loader.sql.functions import METRICS, SCORE_OPERATORS
from deeplake_loader.sql.plan import Bind, Metric
from deeplake_loader.sql.queries import QueryCompiler
from deeplake_loader.sql.reader import Reading, Token, read
from deeplake_loader.sql.values import Context
from deeplake_loader.types import ColumnType, Table, quote_identifier

Span = tuple[int, int]
Insertion = tuple[int, str]
"""A place in the user's text and what is put in there."""

_AFTER_ORDER = frozenset({"limit", "offset", "fetch", "for", "rows", "range", "groups"})
_NO_CALL_BEFORE = frozenset({"into", "with", "table", "as", "update", "join", "function", "recursive"})


@dataclass(frozen=True, slots=True)
class FastText:
    """The parts of a statement whose rows one score chooses; each span is one of the user's text.

    ``head``: WITH ... in front of the block, empty where there is none; ``source``, what follows FROM; ``where``, what
    follows WHERE, None without one; ``end``, where the block's condition ends; ``alias`` of the table there.
    """

    head: Span
    source: Span
    where: Span | None
    end: int
    table: str
    alias: str
    column: str
    type: ColumnType
    metric: Metric
    largest: bool
    query: Bind
    limit: Bind | int
    offset: Bind | int
    whole: bool


def insertions(sql: str, own_schema: str = "_dl") -> tuple[Insertion, ...]:
    """What is put into a statement before PostgreSQL gets it, by place; nothing into one that our reader refuses.

    >>> insertions("SELECT id FROM t ORDER BY cosine_similarity(v, :q) DESC LIMIT 3")
    ((55, ' NULLS LAST'),)
    """
    try:
        reading = read(sql)
        statement = parse(reading)
    except SQLError:
        return ()
    own = f"{quote_identifier(own_schema)}."
    found = [(token.start, own) for token in _calls(reading.tokens, "cosine_distance")]
    for node in tree.walk(statement):
        if isinstance(node, tree.Query | tree.Window):
            found += _last(reading.tokens, node)
    return tuple(sorted(found))


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


def fast_text(sql: str, schema: Mapping[str, Table]) -> FastText | None:
    """The parts of a SELECT that is answered by looking at scores first, or None.

    None for a score written as an operator: those are pgvector's, which may answer them by an index.
    """
    try:
        reading = read(sql)
        statement = parse(reading)
        if not isinstance(statement, tree.Query):
            return None
        context = Context(reading, schema)
        compiler = QueryCompiler(context)
        compiler.query(statement, top=True)
    except (SQLError, RecursionError):
        return None
    found = scored_block(context, compiler.blocks)
    if found is None or found.by_operator or not _stands_alone(statement, found):
        return None
    spans = _spans(reading, found.block.node)
    return None if spans is None else _text(statement, found, *spans)


def _stands_alone(statement: tree.Query, found: ScoredBlock) -> bool:
    """Whether the block's FROM and WHERE mean the same by themselves, behind the statement's own WITH."""
    within = [q for q in tree.walk(statement) if isinstance(q, tree.Query) and q.ctes]
    return within in ([], [statement]) and (not within or found.block.node is statement.body)


def _text(statement: tree.Query, found: ScoredBlock, source: Span, where: Span | None, end: int) -> FastText:
    scored, node = found.scored, found.block.node
    head = (statement.pos, node.pos) if statement.ctes else (0, 0)
    return FastText(
        head, source, where, end, scored.table, scored.alias, scored.column, scored.type, scored.metric,
        scored.largest, scored.query, found.limit, found.offset, found.whole,
    )  # fmt: skip


def _spans(reading: Reading, node: tree.Select) -> tuple[Span, Span | None, int] | None:
    """What follows the block's FROM, what follows its WHERE, and where that ends."""
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
                found = (begin, token.start)
                return (found, None, token.start) if source is None else (source, found, token.start)
        if depth < 0:
            return None
        previous = token.text
    return None
