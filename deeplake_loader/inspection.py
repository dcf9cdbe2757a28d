"""What a table is made of, for tools that look before they write: defaults, keys, constraints, indexes.

Columns, types and the primary key are the catalog's `Table`; the rest is SQLite's to tell. Its PRAGMAs know no names of
constraints and no text of a CHECK, which are read from the table's CREATE TABLE.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from deeplake_loader import table_text
from deeplake_loader.sql.tables import ADDED_KEY, DEFAULT_NOW, DEFAULT_UUID
from deeplake_loader.types import RESERVED_PREFIX, Table, VectorIndex, quote_identifier

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog

Named = TypeVar("Named", "UniqueKey", "ForeignKey", "Check")

_WRITTEN = {DEFAULT_NOW["TIMESTAMP"]: "now()", DEFAULT_NOW["TIMESTAMPTZ"]: "now()", DEFAULT_NOW["DATE"]: "CURRENT_DATE",
            DEFAULT_UUID: "gen_random_uuid()"}  # fmt: skip
"""A default as SQLite holds it -> as it is written."""


@dataclass(frozen=True, slots=True)
class UniqueKey:
    """UNIQUE over columns; ``name`` is None where it was given none."""

    name: str | None
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """Columns that refer to another table's; actions are SQL's words, None for NO ACTION."""

    name: str | None
    columns: tuple[str, ...]
    table: str
    targets: tuple[str, ...]
    on_update: str | None = None
    on_delete: str | None = None
    deferred: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """A CHECK of the user's, as SQLite holds it."""

    name: str | None
    condition: str


@dataclass(frozen=True, slots=True)
class Index:
    """An index of the user's: ``columns`` has None for an expression, ``where`` the condition of a partial one,
    ``using`` the kind of a vector index."""

    name: str
    columns: tuple[str | None, ...]
    expressions: tuple[str, ...]
    unique: bool = False
    where: str | None = None
    using: str | None = None


@dataclass(frozen=True, slots=True)
class Description:
    """A table: its definition, ``key_name`` of the primary key's constraint; ``counted``, the key column that counts by
    itself; ``added_key``, the key column of a table that was declared without one; by column, the SQL of its default,
    the length of a VARCHAR, the SQL of what generates it; constraints by name, those without one first."""

    table: Table
    key_name: str | None
    counted: str | None
    added_key: str | None
    defaults: dict[str, str]
    lengths: dict[str, int]
    generated: dict[str, str]
    unique: tuple[UniqueKey, ...]
    foreign_keys: tuple[ForeignKey, ...]
    checks: tuple[Check, ...]
    indexes: tuple[Index, ...]


def describe(catalog: Catalog, table: Table, vector_indexes: Iterable[VectorIndex]) -> Description:
    """The description of one table, which is the same on every branch."""
    sql = catalog.fetchone("SELECT sql FROM main.sqlite_master WHERE type = 'table' AND name = ?", (table.name,))[0]
    written = table_text.constraints(sql)
    info = catalog.fetchall(f"PRAGMA main.table_xinfo({quote_identifier(table.name)})")
    key_name = next((part.name for part in written if part.kind == "primary"), None)
    counted = next((row[1] for row in info if row[5] and row[2].upper() == "INTEGER"), None)
    return Description(
        table=table,
        key_name=None if key_name == ADDED_KEY else key_name,
        counted=counted if "AUTOINCREMENT" in sql.upper() else None,
        added_key=counted if key_name == ADDED_KEY else None,
        defaults={row[1]: _WRITTEN.get(f"({row[4]})", row[4]) for row in info if row[4] is not None},
        generated={part.columns[0]: part.text for part in written if part.kind == "generated"},
        lengths={part.columns[0]: int(found[1]) for part in written if (found := _limit(part))},
        unique=_by_name(_unique(catalog, table, written)),
        foreign_keys=_by_name(_foreign_keys(catalog, table, written, table_text.deferred_columns(sql))),
        checks=_by_name(Check(part.name, part.text) for part in written if _is_own(part)),
        indexes=(*_indexes(catalog, table), *_of_vectors(table, vector_indexes)),
    )


def _by_name(found: Iterable[Named]) -> tuple[Named, ...]:
    return tuple(sorted(found, key=lambda constraint: constraint.name or ""))


def _limit(part: table_text.Constraint) -> re.Match[str] | None:
    """The check that a VARCHAR's length is kept."""
    known = part.kind == "check" and part.name is None and part.columns
    return re.fullmatch(r"length\([^()]+\) <= (\d+)", part.text) if known else None


def _is_own(part: table_text.Constraint) -> bool:
    """Whether it is a CHECK of the user's: not the one that an address is an integer, nor a length."""
    return part.kind == "check" and not part.text.startswith("typeof(") and not _limit(part)


def _name(written: list[table_text.Constraint], kind: str, columns: tuple[str, ...]) -> str | None:
    return next((part.name for part in written if (part.kind, part.columns) == (kind, columns)), None)


def _unique(catalog: Catalog, table: Table, written: list[table_text.Constraint]) -> Iterator[UniqueKey]:
    for _, index, _, origin, _ in catalog.fetchall(f"PRAGMA main.index_list({quote_identifier(table.name)})"):
        if origin == "u":
            columns = tuple(str(column) for column in _columns(catalog, index))
            yield UniqueKey(_name(written, "unique", columns), columns)


def _foreign_keys(
    catalog: Catalog, table: Table, written: list[table_text.Constraint], deferred: set[tuple[str, ...]]
) -> Iterator[ForeignKey]:
    found: dict[int, list[tuple[str, ...]]] = {}
    for number, *row in catalog.fetchall(f"PRAGMA main.foreign_key_list({quote_identifier(table.name)})"):
        found.setdefault(number, []).append(tuple(row))
    for rows in reversed(found.values()):  # SQLite numbers them from the last one
        other, on_update, on_delete = rows[0][1], *(None if a == "NO ACTION" else a for a in rows[0][4:6])
        columns, targets = tuple(row[2] for row in rows), tuple(row[3] for row in rows)
        target = catalog.table(other)
        if targets[0] is None and target is not None:
            targets = target.primary_key
        late = tuple(column.lower() for column in columns) in deferred
        name = _name(written, "foreign", columns)
        yield ForeignKey(name, columns, target.name if target else other, targets, on_update, on_delete, late)


def _columns(catalog: Catalog, index: str) -> list[str | None]:
    rows = catalog.fetchall(f"PRAGMA main.index_xinfo({quote_identifier(index)})")
    return [name for _, _, name, _, _, is_key in rows if is_key]


def _indexes(catalog: Catalog, table: Table) -> Iterator[Index]:
    query = "SELECT name, sql FROM main.sqlite_master WHERE type = 'index' AND tbl_name = ? AND sql IS NOT NULL"
    for name, sql in catalog.fetchall(f"{query} ORDER BY name", (table.name,)):
        if not name.startswith(RESERVED_PREFIX):
            terms, where = table_text.index_terms(sql)
            unique = sql[:20].upper().startswith("CREATE UNIQUE")
            yield Index(name, tuple(_columns(catalog, name)), tuple(terms), unique, where)


def _of_vectors(table: Table, indexes: Iterable[VectorIndex]) -> Iterator[Index]:
    for index in indexes:
        if index.table == table.name:
            yield Index(index.name, (index.column,), (index.column,), using=index.kind)
