"""A text of several SQL statements cut into them: semicolons in strings, names, comments and $$ bodies cut nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

_TOKEN = re.compile(
    r"""(?P<blank>\s+|--[^\n]*)|(?P<comment>/\*)|(?P<tag>\$(?:[^\W\d]\w*)?\$)|(?P<end>;)
    |[eE]'(?:[^'\\]|\\.|'')*(?:'|\Z)|'(?:[^']|'')*(?:'|\Z)|"(?:[^"]|"")*(?:"|\Z)|\w[\w$]*|.""",
    re.DOTALL | re.VERBOSE,
)
_COMMENT = re.compile(r"/\*|\*/")


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement without its semicolon, and the line it begins in, from 1."""

    text: str
    line: int

    @property
    def word(self) -> str:
        """What it begins with, in capitals: SELECT, INSERT, CREATE ..."""
        found = re.search(r"[A-Za-z]+", re.sub(r"--[^\n]*|/\*.*?\*/", " ", self.text, flags=re.DOTALL))
        return found[0].upper() if found else ""


@dataclass(frozen=True, slots=True)
class Typed:
    """What somebody has typed so far: ``statements`` that are ended, the ``rest``, and what the rest's end lies
    ``inside`` of: "" nothing, - a statement, ( a parenthesis, ' or " quotes, $ a $$ body, * a comment."""

    statements: tuple[Statement, ...]
    rest: str
    inside: str


def split_statements(text: str) -> list[Statement]:
    """The statements of a text, those of nothing but blanks and comments left out.

    >>> [(s.text, s.line) for s in split_statements("SELECT ';';\\n-- done;\\nSELECT 2;")]
    [("SELECT ';'", 1), ('SELECT 2', 3)]
    """
    found, first = _cut(text, _tokens(text))
    if first is not None:
        found.append(_statement(text, first, len(text)))
    return found


@lru_cache(maxsize=1)  # the prompt asks of every line three times
def split_typed(text: str) -> Typed:
    """The statements that a semicolon ends, and how the text behind them goes on.

    >>> split_typed("SELECT 1; SELECT ('a").inside
    "'"
    """
    tokens = list(_tokens(text))
    found, first = _cut(text, tokens)
    depth, rest = 0, 0
    for token, end in tokens:
        if token["end"]:
            rest, depth = end, 0
        depth += {"(": 1, ")": -1}.get(token[0], 0)
    inside = _left_open(tokens[-1][0], text) if tokens else ""
    return Typed(tuple(found), text[rest:], inside or ("(" if depth > 0 else "-" if first is not None else ""))


def _tokens(text: str) -> Iterator[tuple[re.Match[str], int]]:
    """Each token and where what it begins ends."""
    at = 0
    while at < len(text) and (token := _TOKEN.match(text, at)):  # the last alternative takes any character
        at = _end_of(token, text)
        yield token, at


def _cut(text: str, tokens: Iterable[tuple[re.Match[str], int]]) -> tuple[list[Statement], int | None]:
    """The statements that are ended, and where one begins that is not."""
    found: list[Statement] = []
    first: int | None = None
    for token, _ in tokens:
        if token["end"]:
            if first is not None:
                found.append(_statement(text, first, token.start()))
            first = None
        elif first is None and not (token["blank"] or token["comment"]):
            first = token.start()
    return found, first


def _left_open(token: re.Match[str], text: str) -> str:
    """What the last token begins and the text does not end; "" for nothing."""
    if token["tag"]:
        return "" if text.find(token[0], token.end()) >= 0 else "$"
    if token["comment"]:
        return "*" if _comment_end(token, text) is None else ""
    quote = next((mark for mark in "'\"" if token[0].lstrip("eE").startswith(mark)), "")
    bare = re.sub(r"\\.", "", token[0], flags=re.DOTALL) if token[0][0] in "eE" else token[0]
    return quote if quote and bare.count(quote) % 2 else ""


def _statement(text: str, start: int, end: int) -> Statement:
    return Statement(text[start:end].rstrip(), text.count("\n", 0, start) + 1)


def _end_of(token: re.Match[str], text: str) -> int:
    """Where what the token begins ends: a comment may hold comments, a $$ body ends with its own tag."""
    if token["tag"]:
        close = text.find(token[0], token.end())
        return len(text) if close < 0 else close + len(token[0])
    if not token["comment"]:
        return token.end()
    end = _comment_end(token, text)
    return len(text) if end is None else end


def _comment_end(token: re.Match[str], text: str) -> int | None:
    """Behind the end of a comment, which may hold comments; None where it has none."""
    depth = 0
    for mark in _COMMENT.finditer(text, token.start()):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    return None
