"""What differs between two points: rows added, changed and removed, with both images, as rows and as Arrow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from deeplake_loader.errors import NotFoundError
from deeplake_loader.merging.comparison import PRESENT, Comparison
from deeplake_loader.rows import RowSet

if TYPE_CHECKING:
    import pyarrow as pa

    from deeplake_loader.branches import Point
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.merging.contents import Contents
    from deeplake_loader.rows import Row, Source
    from deeplake_loader.types import Table

Kind = Literal["added", "changed", "removed"]


@dataclass(frozen=True, slots=True)
class Change:
    """One row that differs: ``key`` is its primary key (a tuple where that has several columns); ``before`` and
    ``after`` are the row's columns by name, None on the side that has no such row."""

    table: str
    key: Any
    kind: Kind
    before: dict[str, Any] | None
    after: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Counts:
    """How many rows of a table were added, changed and removed."""

    added: int = 0
    changed: int = 0
    removed: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.added + other.added, self.changed + other.changed, self.removed + other.removed)


class Columns:
    """A table's stored columns, and how raw rows of them become Python values."""

    def __init__(self, comparison: Comparison, source: Source) -> None:
        names, key, table = [c.name for c in comparison.shape.columns], comparison.shape.key, comparison.table
        self.table, self.names, self._source = table, tuple(names), source
        self._decoded = comparison.dialect.gives_values
        self._key = [self.names.index(k) for k in key]
        declared = [table.column(name) for name in names]
        self._types = [None if c is None else c.type for c in declared]

    def rows(self, records: list[tuple[Any, ...]]) -> RowSet:
        return RowSet(self.names, self._types, records, source=self._source, decoded=self._decoded)

    def key(self, row: Row) -> Any:
        """The primary key: a value, or a tuple where it has several columns."""
        return row[self._key[0]] if len(self._key) == 1 else tuple(row[i] for i in self._key)


class TableDiff:
    """One table's part of a diff: records of (state before, state after, row before ..., row after ...)."""

    def __init__(self, columns: Columns, records: list[tuple[Any, ...]]) -> None:
        self.columns, self._records, self._width = columns, records, len(columns.names)

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Change]:
        name, key = self.columns.table.name, self.columns.key
        for record, before, after in zip(self._records, self._rows(2), self._rows(2 + self._width), strict=True):
            had, has = record[0] == PRESENT, record[1] == PRESENT
            old, new = before._asdict() if had else None, after._asdict() if has else None
            yield Change(name, key(before), _kind(had, has), old, new)

    def _rows(self, start: int) -> RowSet:
        """The rows of one side; absent ones hold nothing but their key."""
        return self.columns.rows([r[start : start + self._width] for r in self._records])

    def counts(self) -> Counts:
        found = Counter(_kind(r[0] == PRESENT, r[1] == PRESENT) for r in self._records)
        return Counts(found["added"], found["changed"], found["removed"])

    def to_arrow(self) -> pa.Table:
        import pyarrow as pa

        kinds = [_kind(r[0] == PRESENT, r[1] == PRESENT) for r in self._records]
        sides = [self._side(2, 0), self._side(2 + self._width, 1)]
        return pa.Table.from_arrays([pa.array(kinds, pa.string()), *sides], names=["change", "before", "after"])

    def _side(self, start: int, state: int) -> pa.Array:
        import pyarrow as pa

        found = self._rows(start).to_arrow()
        missing = pa.array([r[state] != PRESENT for r in self._records], pa.bool_())
        arrays = [column.combine_chunks() for column in found.columns]
        return pa.StructArray.from_arrays(arrays, names=list(self.columns.names), mask=missing)


class Diff:
    """The rows that differ between two points, table by table in key order; iterating gives a Change for each.

    >>> for change in db.diff("main", "experiment"):                                # doctest: +SKIP
    ...     print(change.table, change.key, change.kind)
    """

    def __init__(self, parts: Sequence[TableDiff]) -> None:
        self._parts = {part.columns.table.name: part for part in parts}

    def __iter__(self) -> Iterator[Change]:
        for part in self._parts.values():
            yield from part

    def __len__(self) -> int:
        return sum(map(len, self._parts.values()))

    @property
    def counts(self) -> dict[str, Counts]:
        """Added, changed and removed rows of each table that differs."""
        return {name: part.counts() for name, part in self._parts.items() if len(part)}

    def to_arrow(self, table: str) -> pa.Table:
        """One table's changes as a pyarrow.Table: ``change`` (added, changed, removed), and the structs ``before`` and
        ``after`` with the table's columns, null on the side that has no such row."""
        part = self._parts.get(table)
        if part is None:
            raise NotFoundError(f"this diff does not cover a table {table!r}; it covers {', '.join(self._parts)}")
        return part.to_arrow()

    def __repr__(self) -> str:
        shown = (f"{name} +{c.added} ~{c.changed} -{c.removed}" for name, c in self.counts.items())
        return f"<Diff: {', '.join(shown) or 'no differences'}>"


def compare(catalog: Catalog, tables: Sequence[Table], a: Point, b: Point, source: Source, contents: Contents) -> Diff:
    """The changes that lead from point ``a`` to point ``b``, within the caller's snapshot or transaction."""
    parts = []
    for table in tables:
        comparison = Comparison(catalog, table)
        parts.append(TableDiff(Columns(comparison, source), comparison.differences(a, b, contents)))
    return Diff(parts)


def _kind(had: bool, has: bool) -> Kind:
    return "changed" if had and has else "added" if has else "removed"
