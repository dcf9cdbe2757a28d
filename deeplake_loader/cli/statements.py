"""A text of several SQL statements cut into them: semicolons in strings, names, comments and $$ bodies cut nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass

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


def split_statements(text: str) -> list[Statement]:
    """The statements of a text, those of nothing but blanks and comments left out.

    >>> [(s.text, s.line) for s in split_statements("SELECT ';';\\n-- done;\\nSELECT 2;")]
    [("SELECT ';'", 1), ('SELECT 2', 3)]
    """
    found: list[Statement] = []
    at = first = 0
    empty = True
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:  # the last alternative takes any character
            break
        end = _end_of(token, text)
        if token["end"]:
            if not empty:
                found.append(_statement(text, first, at))
            empty = True
        elif not (token["blank"] or token["comment"]):
            first = at if empty else first
            empty = False
        at = end
    if not empty:
        found.append(_statement(text, first, len(text)))
    return found


def _statement(text: str, start: int, end: int) -> Statement:
    return Statement(text[start:end].rstrip(), text.count("\n", 0, start) + 1)


def _end_of(token: re.Match[str], text: str) -> int:
    """Where what the token begins ends: a comment may hold comments, a $$ body ends with its own tag."""
    if token["tag"]:
        close = text.find(token[0], token.end())
        return len(text) if close < 0 else close + len(token[0])
    if not token["comment"]:
        return token.end()
    depth = 0
    for mark in _COMMENT.finditer(text, token.start()):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    return len(text)
