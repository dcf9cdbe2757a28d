"""What SQLite and PostgreSQL write differently, for SQL of our own that both run.

Such SQL keeps to the common subset: ON CONFLICT DO NOTHING, WHERE TRUE, an alias after every subquery, no PRAGMA. What
is left is here: TEMP tables, equality down to the byte, membership in a set of keys, the order of texts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from deeplake_loader.types import quote_identifier, quote_identifiers

_COMPARABLE = re.compile(
    r"(smallint|integer|bigint|numeric|real|double precision|boolean|date|uuid|bytea|jsonb|oid|inet|cidr|macaddr8?|"
    r"(public\.)?(vector|halfvec)|time(stamp)? )\b"
)
"""PostgreSQL's types whose = tells values apart; text obeys collations, json and xml have none, interval and citext
take different values for equal."""


class KeyColumn(Protocol):
    """What a key's column must say of itself."""

    @property
    def name(self) -> str: ...

    @property
    def declared(self) -> str: ...

    @property
    def collation(self) -> str: ...


class Dialect(Protocol):
    """How one database writes it."""

    @property
    def stores_vectors(self) -> bool:
        """Whether a VECTOR column holds the vector itself, and not its address."""
        ...

    @property
    def gives_values(self) -> bool:
        """Whether the driver gives Python's values for every scalar type."""
        ...

    def identical(self, a: str, b: str, declared: str, /) -> str:
        """A condition: both NULL, or the same value of the type ``declared`` to the byte, whatever the collation."""
        ...

    def create_temp(self, name: str, key: Sequence[KeyColumn], others: Sequence[str]) -> str:
        """A statement that makes a TEMP table with that primary key; it is dropped by its maker or with a rollback."""
        ...

    def key(self, column: KeyColumn, value: str, /) -> str:
        """``value`` compared as the key's column compares."""
        ...

    def among(self, columns: Sequence[str], keys: str) -> str:
        """A condition: these columns are a row of the SELECT ``keys``, in a form that reaches into a UNION ALL."""
        ...

    def order(self, column: str, declared: str, /) -> str:
        """A term of ORDER BY that compares texts by their bytes."""
        ...


class SqliteDialect:
    """SQLite's."""

    stores_vectors = gives_values = False

    def identical(self, a: str, b: str, _declared: str, /) -> str:
        return f"{a} IS {b} COLLATE BINARY"  # IS NOT DISTINCT FROM needs 3.39

    def create_temp(self, name: str, key: Sequence[KeyColumn], others: Sequence[str]) -> str:
        columns = [f"{quote_identifier(c.name)} {c.declared} COLLATE {c.collation}" for c in key]
        rowid = len(key) == 1 and key[0].declared.upper() == "INTEGER"
        listed = ", ".join((*columns, *others, f"PRIMARY KEY ({quote_identifiers(c.name for c in key)})"))
        return f"CREATE TEMP TABLE {name} ({listed}){'' if rowid else ' WITHOUT ROWID'}"

    def key(self, column: KeyColumn, value: str, /) -> str:
        return f"{value} COLLATE {column.collation}"

    def among(self, columns: Sequence[str], keys: str) -> str:
        return f"{_row(columns)} IN ({keys})"

    def order(self, column: str, _declared: str, /) -> str:
        return column  # keys of another collation than BINARY keep it, as they always did


class PostgresDialect:
    """PostgreSQL's."""

    stores_vectors = gives_values = True

    def identical(self, a: str, b: str, declared: str, /) -> str:
        if _COMPARABLE.match(declared) and not declared.endswith("[]"):
            return f"{a} IS NOT DISTINCT FROM {b}"
        return f'{a}::text COLLATE "C" IS NOT DISTINCT FROM {b}::text COLLATE "C"'

    def create_temp(self, name: str, key: Sequence[KeyColumn], others: Sequence[str]) -> str:
        columns = [f"{quote_identifier(c.name)} {c.declared}{_collate(c.collation)}" for c in key]
        listed = ", ".join((*columns, *others, f"PRIMARY KEY ({quote_identifiers(c.name for c in key)})"))
        return f"CREATE TEMP TABLE {name} ({listed})"

    def key(self, _column: KeyColumn, value: str, /) -> str:
        return value

    def among(self, columns: Sequence[str], keys: str) -> str:
        if len(columns) == 1:  # an array is a constant to the planner, which hands it down to both arms' indexes
            return f"{columns[0]} = ANY (ARRAY({keys}))"
        return f"{_row(columns)} IN ({keys})"

    def order(self, column: str, declared: str, /) -> str:
        return f'{column} COLLATE "C"' if re.match(r"text|character|citext|name", declared) else column


_DIALECTS: dict[str, Dialect] = {"sqlite": SqliteDialect(), "postgres": PostgresDialect()}


def dialect(name: str) -> Dialect:
    """The dialect of a catalog by its ``dialect``.

    >>> dialect("sqlite").among(["a", "b"], "SELECT a, b FROM keys")
    '(a, b) IN (SELECT a, b FROM keys)'
    """
    return _DIALECTS[name]


def _row(columns: Sequence[str]) -> str:
    return columns[0] if len(columns) == 1 else f"({', '.join(columns)})"


def _collate(collation: str) -> str:
    """A StoredColumn's collation is BINARY where the column has none of its own."""
    return "" if collation in ("BINARY", "") else f" COLLATE {collation}"
