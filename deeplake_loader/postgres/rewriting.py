"""Changes of a branch's table as text: the table that is written replaced, and the keys that are chosen asked for.

Only the statement's own text is cut and joined; nothing in it is understood beyond its clauses. What does not fit gives
None, and is run on the branch's view.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deeplake_loader.sql.functions import VOLATILE
from deeplake_loader.sql.reader import Reading, Token, read
from deeplake_loader.types import quote_identifier

_UNSTABLE = frozenset({*VOLATILE, "nextval", "clock_timestamp", "gen_random_uuid", "setval", "timeofday"})


Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Change:
    """``sql[start:stop]`` names the table; ``alias`` is the name it has in the statement, written there or not;
    ``chosen``, of an UPDATE or DELETE, are where the statement begins, the table's text, and the spans of its other
    sources and its condition; ``given``, of an INSERT with ON CONFLICT, where it begins and the span of its rows.
    """

    sql: str
    start: int
    stop: int
    alias: str
    aliased: bool
    tokens: tuple[Token, ...]
    chosen: tuple[int, str, Span | None, Span | None] | None = None
    given: tuple[int, Span] | None = None
    constraint: Token | None = None

    def on(self, table: str, constraint: str | None = None) -> str:
        """The statement on another table, which keeps the name by which the statement knows its own; ``constraint`` is
        what that table calls the one of ON CONFLICT ON CONSTRAINT."""
        name, rest = table if self.aliased else f"{table} AS {self.alias}", self.sql[self.stop :]
        if self.constraint is not None and constraint is not None:
            named = self.constraint
            rest = f"{self.sql[self.stop : named.start]}{constraint}{self.sql[named.stop :]}"
        return f"{self.sql[: self.start]}{name}{rest}"

    def keys(self, key: Sequence[str]) -> tuple[str, list[int]]:
        """A SELECT of the keys that the statement chooses, its values numbered anew, and which they were (from 0)."""
        if self.chosen is None:
            raise ValueError("an INSERT chooses no rows")
        begin, source, others, condition = self.chosen
        used: list[int] = []
        head = self._part((0, begin), used)
        listed = ", ".join(f"{self.alias}.{k}" for k in key)
        text = f"{head}SELECT {listed} FROM {source} AS {self.alias}"
        if others is not None:
            text += f", {self._part(others, used)}"
        if condition is not None:
            text += f" WHERE {self._part(condition, used)}"
        return text, used

    def rows_into(self, table: str) -> tuple[str, list[int]]:
        """An INSERT of an upsert's rows into another table, and which of the values (from 0) it has."""
        if self.given is None:
            raise ValueError("only an upsert has rows that may be there already")
        used: list[int] = []
        head = self._part((0, self.given[0]), used)
        return f"{head}INSERT INTO {table} {self._part(self.given[1], used)}", used

    def looks_elsewhere(self) -> bool:
        """Whether which rows the statement meets may depend on other rows than those themselves."""
        if self.chosen is None and self.given is None:
            return False
        others = self.chosen is not None and self.chosen[2] is not None
        return others or any(t.kind == "word" and t.text in ("select", "table", "with") for t in self.tokens)

    def _part(self, span: Span, used: list[int]) -> str:
        parts, at = list[str](), span[0]
        for token in self.tokens:
            if token.kind == "parameter" and span[0] <= token.start < span[1]:
                number = int(token.text.lstrip("$")) - 1 if token.source is None else int(token.source)
                if number not in used:
                    used.append(number)
                parts += [self.sql[at : token.start], f"${used.index(number) + 1}"]
                at = token.stop
        return "".join((*parts, self.sql[at : span[1]]))


def change_of(sql: str, table: str) -> Change | None:
    """An INSERT, UPDATE or DELETE of ``table`` taken apart; None where it has a form that is not known here.

    >>> change = change_of("UPDATE t SET a = $1 WHERE b = $2", "t")
    >>> change.on('"_dl"."_dl_b2_t"')
    'UPDATE "_dl"."_dl_b2_t" AS "t" SET a = $1 WHERE b = $2'
    >>> change.keys(["id"])
    ('SELECT "t".id FROM t AS "t" WHERE b = $1', [1])
    """
    reading = read(sql)
    flat = [(i, t) for i, (t, depth) in enumerate(_with_depth(reading.tokens)) if depth == 0]
    verb = next(
        (p for p, (_, t) in enumerate(flat) if t.kind == "word" and t.text in ("insert", "update", "delete")), None
    )
    if verb is None or _changes_inside(reading):
        return None
    at = verb + (1 if flat[verb][1].text == "update" else 2)
    return _Clauses(reading, [t for _, t in flat], verb, at, table).change()


class _Clauses:
    """The clauses of one statement, by its tokens outside of parentheses."""

    def __init__(self, reading: Reading, flat: list[Token], verb: int, at: int, table: str) -> None:
        self.sql, self.tokens, self.flat = reading.sql, reading.tokens, flat
        self.verb, self.at, self.table = verb, at, table
        self.end = reading.tokens[-2].stop

    def change(self) -> Change | None:
        flat, at = self.flat, self.at
        start = flat[at].start
        if self._is_operator(at + 1, "."):
            return None  # another schema's, main's too: that is what is meant
        if flat[at].kind not in ("word", "name") or flat[at].text != self.table:
            return None  # ONLY, or something else
        stop, after = flat[at].stop, at + 1
        if self._is_operator(after, "*"):
            return None
        alias, aliased = quote_identifier(self.table), False
        if self._word(after) == "as":
            after += 1
            alias, aliased = self.sql[flat[after].start : flat[after].stop], True
            after += 1
        elif flat[self.verb].text != "insert" and flat[after].kind in ("word", "name") and self._word(after) not in (
            "set", "using", "where", "returning",
        ):  # fmt: skip
            alias, aliased = self.sql[flat[after].start : flat[after].stop], True
            after += 1
        chosen, given, constraint = None, None, None
        conflict = next((t for t in flat[after:] if t.kind == "word" and t.text == "conflict"), None)
        if flat[self.verb].text == "insert" and conflict is not None:
            before = flat[flat.index(conflict) - 1]
            given = flat[self.verb].start, (flat[after - 1].stop, before.start)
            place = flat.index(conflict)
            if (self._word(place + 1), self._word(place + 2)) == ("on", "constraint"):
                constraint = flat[place + 3]
        if flat[self.verb].text != "insert":
            if any(t.kind == "word" and t.text in _UNSTABLE for t in self.tokens):
                return None
            chosen = self._chosen(self.sql[start:stop], after)
        return Change(self.sql, start, stop, alias, aliased, self.tokens, chosen, given, constraint)

    def _chosen(self, source: str, after: int) -> tuple[int, str, Span | None, Span | None]:
        marks = {}
        wanted = {"update": ("from", "where", "returning"), "delete": ("using", "where", "returning")}
        for token in self.flat[after:]:
            if token.kind == "word" and token.text in wanted[self.flat[self.verb].text] and token.text not in marks:
                marks[token.text] = token
        ends = sorted([t.start for t in marks.values()] + [self.end])

        def span(word: str) -> Span | None:
            token = marks.get(word)
            return None if token is None else (token.stop, next(e for e in ends if e > token.start))

        others = span("from") if self.flat[self.verb].text == "update" else span("using")
        return self.flat[self.verb].start, source, others, span("where")

    def _is_operator(self, at: int, text: str) -> bool:
        return at < len(self.flat) and (self.flat[at].kind, self.flat[at].text) == ("operator", text)

    def _word(self, at: int) -> str:
        return self.flat[at].text if at < len(self.flat) and self.flat[at].kind == "word" else ""


def _with_depth(tokens: tuple[Token, ...]) -> Iterator[tuple[Token, int]]:
    depth = 0
    for token in tokens:
        if token.kind == "operator" and token.text in ("(", "["):
            yield token, depth
            depth += 1
            continue
        if token.kind == "operator" and token.text in (")", "]"):
            depth -= 1
        yield token, depth


def _changes_inside(reading: Reading) -> bool:
    """Whether a part in parentheses changes rows."""
    return any(
        t.kind == "word" and t.text in ("insert", "update", "delete", "merge") and depth > 0
        and (before.kind, before.text) == ("operator", "(")
        for before, (t, depth) in zip(reading.tokens, list(_with_depth(reading.tokens))[1:], strict=False)
    )  # fmt: skip
