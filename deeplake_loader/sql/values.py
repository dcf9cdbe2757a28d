"""What an expression compiles to, and what all parts of the compiler share: errors, marks for parameters, names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

from deeplake_loader.errors import SQLError, UnsupportedSQLError
from deeplake_loader.sql.plan import Bind
from deeplake_loader.sql.reader import Reading
from deeplake_loader.sql.tree import Name
from deeplake_loader.types import ColumnType, Table

OR, AND, NOT, EQUAL, LESS, BITS, SUM, PRODUCT, JOINED, UNARY, ATOM = range(1, 12)
"""SQLite's precedence, loose to tight; an operand below its place gets parentheses."""

TEXT, SMALLINT = ColumnType("TEXT"), ColumnType("SMALLINT")
INTEGER, BIGINT = ColumnType("INTEGER"), ColumnType("BIGINT")
REAL, DOUBLE, NUMERIC, BOOLEAN = ColumnType("REAL"), ColumnType("DOUBLE"), ColumnType("NUMERIC"), ColumnType("BOOLEAN")
TIMESTAMP, TIMESTAMPTZ, DATE = ColumnType("TIMESTAMP"), ColumnType("TIMESTAMPTZ"), ColumnType("DATE")
TIME, INTERVAL, JSON, UUID = ColumnType("TIME"), ColumnType("INTERVAL"), ColumnType("JSON"), ColumnType("UUID")
BYTEA = ColumnType("BYTEA")

WHOLE = ("SMALLINT", "INTEGER", "BIGINT")
NUMBERS = (*WHOLE, "NUMERIC", "REAL", "DOUBLE")
"""Numeric types in PostgreSQL's order of promotion."""
MOMENTS = ("TIMESTAMP", "TIMESTAMPTZ", "DATE")

MARK = re.compile("\0(\\d+)\0")
PLAIN_NAME = re.compile(r"[a-z_][a-z0-9_]*")
SQLITE_WORDS = frozenset(
    {
        "add", "all", "alter", "and", "as", "autoincrement", "between", "case", "check", "collate", "commit",
        "constraint", "create", "cross", "current_date", "current_time", "current_timestamp", "default", "deferrable",
        "delete", "distinct", "drop", "else", "escape", "except", "exists", "filter", "foreign", "from", "full", "glob",
        "group", "having", "if", "in", "index", "indexed", "inner", "insert", "intersect", "into", "is", "isnull",
        "join", "left", "limit", "match", "natural", "not", "nothing", "notnull", "null", "on", "or", "order", "outer",
        "over", "primary", "references", "regexp", "returning", "right", "select", "set", "table", "then", "to",
        "transaction", "union", "unique", "update", "using", "values", "when", "where", "window", "with", "true",
        "false", "offset", "raise", "rowid", "oid", "_rowid_", "materialized", "partition", "temp", "temporary",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Value:
    """A compiled expression.

    Fields: ``sql``; ``type`` (None: not known yet, or only at run time); ``level`` of its outermost operator;
    ``literal``, the text of an untyped string literal; ``null`` for a bare NULL; ``bind``, the number of an untyped
    parameter; ``nullable``; ``score``, whether it holds a similarity score (those sort last when NULL).
    """

    sql: str
    type: ColumnType | None = None
    level: int = ATOM
    literal: str | None = None
    null: bool = False
    bind: int | None = None
    nullable: bool = True
    score: bool = False

    @property
    def name(self) -> str:
        """The type's name, "" while unknown."""
        return "" if self.type is None else self.type.name

    @property
    def untyped(self) -> bool:
        """Whether its place decides its type: a string literal, a parameter, NULL."""
        return self.type is None and (self.literal is not None or self.null or self.bind is not None)

    def at(self, level: int) -> str:
        """The SQL text for a place of this precedence."""
        return self.sql if self.level >= level else f"({self.sql})"

    def typed(self, kind: ColumnType | None) -> Value:
        return replace(self, type=kind, literal=None, null=False, bind=None)


@dataclass(frozen=True, slots=True)
class Target:
    """The column on whose value path an expression stands."""

    type: ColumnType
    column: str


class Context:
    """One compilation: the text, the tables, the parameters met so far."""

    def __init__(
        self, reading: Reading, schema: Mapping[str, Table], physical: Mapping[str, str] | None = None
    ) -> None:
        self.reading, self.physical = reading, physical
        self.schema = {name.lower(): table for name, table in schema.items()}
        self.binds: list[Bind] = []
        self.reads: dict[str, None] = {}
        self.claims: dict[int | str | None, Target] = {}

    def fail(self, message: str, pos: int) -> NoReturn:
        raise SQLError(message, sql=self.reading.sql, position=pos)

    def refuse(self, message: str, pos: int) -> NoReturn:
        raise UnsupportedSQLError(message, sql=self.reading.sql, position=pos)

    def mark(self, bind: Bind) -> int:
        self.binds.append(bind)
        return len(self.binds) - 1

    def finish(self, sql: str) -> tuple[str, tuple[Bind, ...]]:
        """The text with ``?`` for each mark, and their binds in order."""
        found = tuple(self.binds[int(number)] for number in MARK.findall(sql))
        return MARK.sub("?", sql), found

    def table(self, name: Name) -> Table:
        found = self.schema.get(name.text.lower())
        if found is None or (name.quoted and found.name != name.text):
            known = ", ".join(sorted(table.name for table in self.schema.values())) or "none"
            self.fail(f"there is no table {name.text!r}; tables are {known}", name.pos)
        return found


def bound(number: int) -> str:
    """The mark that stands for a parameter until the text is finished."""
    return f"\0{number}\0"


def quoted_text(text: str) -> str:
    """A string as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """A name as SQLite reads it: bare where that is the same name, else in double quotes."""
    if PLAIN_NAME.fullmatch(name) and name not in SQLITE_WORDS:
        return name
    return '"' + name.replace('"', '""') + '"'


def described(kind: ColumnType | None) -> str:
    return "unknown" if kind is None else str(kind)
