"""Copies of a table by its own CREATE TABLE and CREATE INDEX text: other name, same columns and constraints.

Foreign keys are left out: the copy's rows refer to rows of a branch, which no constraint of SQLite can see.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from deeplake_loader.types import quote_identifier

_TOKEN = re.compile(
    r"""--[^\n]*|/\*.*?\*/|\s+|(?P<token>'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|[\w$]+|.)""", re.DOTALL
)


def copied_table(sql: str, table: str, name: str, *, temporary: bool = False) -> str:
    """The CREATE TABLE of a copy of ``table``, which ``sql`` created; a temporary one gives out no ids of its own.

    >>> copied_table("CREATE TABLE t (id INTEGER PRIMARY KEY, p INT NOT NULL REFERENCES p (id) ON DELETE CASCADE)",
    ...              "t", "copy")
    'CREATE TABLE main."copy" (id INTEGER PRIMARY KEY, p INT NOT NULL)'
    """
    tokens = list(_tokens(sql))
    start = tokens.index(_Token("("))
    parts, end = _definitions(tokens, start)
    kept = [_bare(_without_references(part), table) for part in parts if not _is_foreign_key(part)]
    if temporary:
        kept = [[token for token in part if token.upper() != "AUTOINCREMENT"] for part in kept]
    body, rest = ", ".join(map(_joined, kept)), _joined(tokens[end + 1 :])
    where = "temp" if temporary else "main"
    return f"CREATE TABLE {where}.{quote_identifier(name)} ({body}){' ' + rest if rest else ''}"


def deferred_columns(sql: str) -> set[tuple[str, ...]]:
    """The columns, in lower case, of each foreign key of a CREATE TABLE that is checked at the transaction's end.

    >>> deferred_columns("CREATE TABLE t (a INT REFERENCES p DEFERRABLE INITIALLY DEFERRED, b INT REFERENCES p)")
    {('a',)}
    """
    tokens = list(_tokens(sql))
    parts, _ = _definitions(tokens, tokens.index(_Token("(")))
    found = set()
    for part in parts:
        words = [token.upper() for token in part]
        if "REFERENCES" in words and ("INITIALLY", "DEFERRED") in pairwise(words):
            start = words.index("KEY") + 2 if _is_foreign_key(part) else 0
            end = part.index(_Token(")")) if start else 1
            found.add(tuple(_unquoted(token).lower() for token in part[start:end] if token != ","))
    return found


@dataclass(frozen=True, slots=True)
class Constraint:
    """One constraint of a CREATE TABLE: its name if it has one, its columns; ``text``, the condition of a CHECK or the
    expression of a generated column."""

    kind: Literal["primary", "unique", "foreign", "check", "generated"]
    name: str | None
    columns: tuple[str, ...]
    text: str = ""


def constraints(sql: str) -> list[Constraint]:
    """The constraints of a CREATE TABLE, those of its columns included.

    >>> constraints("CREATE TABLE t (a INT UNIQUE, CONSTRAINT small CHECK (a < 3), FOREIGN KEY (a) REFERENCES p)")[1]
    Constraint(kind='check', name='small', columns=(), text='a < 3')
    """
    tokens = list(_tokens(sql))
    parts, _ = _definitions(tokens, tokens.index(_Token("(")))
    return [found for part in parts for found in _constraints(part)]


def index_terms(sql: str) -> tuple[list[str], str | None]:
    """The terms of a CREATE INDEX, and its condition if it has one.

    >>> index_terms("CREATE INDEX i ON t (lower(a), b DESC) WHERE b > 0")
    (['lower(a)', 'b DESC'], 'b > 0')
    """
    tokens = list(_tokens(sql))
    parts, end = _definitions(tokens, tokens.index(_Token("(")))
    rest = tokens[end + 1 :]
    return list(map(_joined, parts)), _joined(rest[1:]) if rest else None


_KINDS: dict[str, Literal["primary", "unique", "foreign", "check", "generated"]] = {
    "PRIMARY": "primary", "UNIQUE": "unique", "FOREIGN": "foreign", "REFERENCES": "foreign", "CHECK": "check",
    "AS": "generated",
}  # fmt: skip


def _constraints(part: list[_Token]) -> Iterator[Constraint]:
    """Those of one definition: a column's, or the one of the whole table that it is."""
    words = [token.upper() for token in part]
    whole = words[0] in ("CONSTRAINT", "PRIMARY", "UNIQUE", "FOREIGN", "CHECK")
    column = () if whole else (_unquoted(part[0]),)
    depth = 0
    for at, word in enumerate(words):
        depth += (word == "(") - (word == ")")
        kind = _KINDS.get(word)
        if kind is None or depth or (whole and word == "REFERENCES"):
            continue
        name = _unquoted(part[at - 1]) if at > 1 and words[at - 2] == "CONSTRAINT" else None
        inside = _inside(part, at) if whole or kind in ("check", "generated") else []
        if kind in ("check", "generated"):
            yield Constraint(kind, name, column, _joined(inside))
        else:
            yield Constraint(kind, name, column or tuple(_unquoted(token) for token in inside if token != ","))


def _inside(part: list[_Token], at: int) -> list[_Token]:
    """What stands in the parentheses behind a word."""
    start = part.index(_Token("("), at)
    depth = 0
    for end in range(start, len(part)):
        depth += (part[end] == "(") - (part[end] == ")")
        if depth == 0:
            return part[start + 1 : end]
    return part[start + 1 :]


def _unquoted(token: str) -> str:
    if token[0] in '"`':
        return token[1:-1].replace(token[0] * 2, token[0])
    return token[1:-1] if token[0] == "[" else token


def copied_index(sql: str, name: str, table: str, *, schema: str, unique: bool = True) -> str:
    """The CREATE INDEX of the same index on a copy, not unique where ``unique`` is false.

    >>> copied_index("CREATE UNIQUE INDEX i ON t (lower(a)) WHERE b > 0", "j", "copy", schema="main")
    'CREATE UNIQUE INDEX main."j" ON "copy" (lower(a)) WHERE b > 0'
    """
    tokens = list(_tokens(sql))
    start = tokens.index(_Token("("))
    kind = "UNIQUE " if unique and tokens[1].upper() == "UNIQUE" else ""
    head = f"CREATE {kind}INDEX {schema}.{quote_identifier(name)} ON {quote_identifier(table)}"
    return f"{head} {_joined(tokens[start:])}"


class _Token(str):
    """One token with the blanks and comments before it, so that what is kept reads as it was written."""

    __slots__ = ("before",)
    before: str


def copied_alter(sql: str, name: str) -> str:
    """The same ALTER TABLE for a copy.

    >>> copied_alter("ALTER TABLE t ADD COLUMN p INT REFERENCES q", "copy")
    'ALTER TABLE main."copy" ADD COLUMN p INT'
    """
    rest = _without_references(list(_tokens(sql))[3:])
    return f"ALTER TABLE main.{quote_identifier(name)} {_joined(rest)}"


def _tokens(sql: str) -> Iterator[_Token]:
    before = ""
    for match in _TOKEN.finditer(sql):
        if match["token"] is None:
            before = f"{before} " if match[0].startswith("--") else before + match[0]
        else:
            token = _Token(match["token"])
            token.before, before = before, ""
            yield token


def _joined(tokens: list[_Token]) -> str:
    return "".join(token.before + token for token in tokens).strip()


def _definitions(tokens: list[_Token], start: int) -> tuple[list[list[_Token]], int]:
    """The definitions between the parentheses that open at ``start``, and where those close."""
    parts: list[list[_Token]] = [[]]
    depth = 0
    for i in range(start, len(tokens)):
        token = tokens[i]
        depth += (token == "(") - (token == ")")
        if depth == 0:
            return parts, i
        if token == "," and depth == 1:
            parts.append([])
        elif i > start:
            parts[-1].append(token)
    return parts, len(tokens)


def _is_foreign_key(part: list[_Token]) -> bool:
    words = [token.upper() for token in part[:4]]
    return words[:2] == ["FOREIGN", "KEY"] or (words[:1] == ["CONSTRAINT"] and words[2:4] == ["FOREIGN", "KEY"])


def _without_references(part: list[_Token]) -> list[_Token]:
    """A column's definition without its REFERENCES clause."""
    words = [token.upper() for token in part]
    depth = 0
    for start, word in enumerate(words):
        depth += (word == "(") - (word == ")")
        if word == "REFERENCES" and depth == 0:
            end = _end_of_reference(words, start + 2)
            named = start >= 2 and words[start - 2] == "CONSTRAINT"
            return _without_references(part[: start - 2 if named else start] + part[end:])
    return part


def _end_of_reference(words: list[str], at: int) -> int:
    if words[at : at + 1] == ["("]:
        at = words.index(")", at) + 1
    while at < len(words):
        if words[at] == "ON":
            at += 3 if words[at + 2] in ("CASCADE", "RESTRICT") else 4
        elif words[at] in ("MATCH", "INITIALLY"):
            at += 2
        elif words[at] == "DEFERRABLE":
            at += 1
        elif words[at : at + 2] == ["NOT", "DEFERRABLE"]:
            at += 2
        else:
            break
    return at


def _bare(part: list[_Token], table: str) -> list[_Token]:
    """Without ``table.`` before columns, which would name the original."""
    names = (table.lower(), quote_identifier(table).lower())
    dropped = {j for i, t in enumerate(part[:-1]) if t.lower() in names and part[i + 1] == "." for j in (i, i + 1)}
    return [token for i, token in enumerate(part) if i not in dropped]
