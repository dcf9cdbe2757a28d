"""Rows at several points side by side: TEMP tables over one set of keys, compared by SQL.

Every table of images has one row per key of the set, with the table's stored columns and `_dl_state`: a row (1), no row
(0), or ambiguous (2: the ancestors of a merge disagree). Absent and ambiguous rows hold NULLs, so one comparison of
states and columns decides whether two points agree on a key. Addresses of blobs and vectors that differ are compared by
what they hold. The TEMP tables live inside the caller's transaction or snapshot and go with it or with `close`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from deeplake_loader import history, states
from deeplake_loader.merging.contents import SAME_BLOB, SAME_VECTOR
from deeplake_loader.types import MAX_ORDINAL, ORDINAL_BITS, quote_identifier, quote_identifiers

if TYPE_CHECKING:
    from deeplake_loader.branches import Point
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.history import StoredColumn
    from deeplake_loader.types import Table

ABSENT, PRESENT, AMBIGUOUS = 0, 1, 2
KEEP, TAKE, CONFLICT = 0, 1, 2

_numbers = count(1)


class Images:
    """One table's rows at several points, for the keys on which the points may differ."""

    def __init__(self, catalog: Catalog, table: Table) -> None:
        self._catalog, self.table = catalog, table
        self.shape = history.read_shape(catalog, table.name)
        self.key = quote_identifiers(self.shape.key)
        self.names = self.shape.names
        self._made: list[str] = []

    # -- key sets and images -------------------------------------------------------------------------------------------

    def candidates(self, points: Sequence[Point]) -> str | None:
        """A key set of every key on which the points can differ; None when there is no such key."""
        sql, params = states.candidate_keys_sql(self._catalog, self.table.name, points)
        if self._catalog.fetchone(f"SELECT 1 FROM ({sql}) LIMIT 1", params) is None:
            return None
        keys = self._create(self._key_columns())
        self._catalog.execute(f"INSERT OR IGNORE INTO {keys} ({self.key}) {sql}", params)
        return keys

    def chosen(self, source: str, where: str) -> str:
        """A key set of the keys that ``SELECT key FROM source WHERE where`` gives."""
        keys = self._create(self._key_columns())
        self._catalog.execute(f"INSERT INTO {keys} ({self.key}) SELECT {self.key} FROM {source} WHERE {where}")
        return keys

    def read(self, point: Point, keys: str) -> str:
        """The images of a key set at a point."""
        sql, params = states.select_sql(self._catalog, self.table.name, point)
        images = self._create_images()
        self._catalog.execute(
            f"INSERT INTO {images} ({self.names}, _dl_state) SELECT {self.names}, {PRESENT} FROM ({sql}) "
            f"WHERE {self._row(self.key)} IN (SELECT {self.key} FROM {keys})",
            params,
        )
        self._fill(images, keys, ABSENT)
        return images

    def merge(self, rows: str, other: str, base: str) -> str:
        """Two images over a base as one: what either changed, and ambiguous where both did, differently."""
        merged, values = self._create_images(), f"({self.names}, _dl_state)"
        source = f"FROM {rows} r {self.join('r', other, 'o')} {self.join('r', base, 'b')}"
        same, unchanged, kept = (self.same(*pair) for pair in (("r", "o"), ("r", "b"), ("o", "b")))
        self._catalog.execute(
            f"INSERT INTO {merged} {values} SELECT {self.columns('r')}, r._dl_state {source} "
            f"WHERE ({same}) OR (NOT ({unchanged}) AND ({kept}))"
        )
        self._catalog.execute(
            f"INSERT INTO {merged} {values} SELECT {self.columns('o')}, o._dl_state {source} "
            f"WHERE NOT ({same}) AND ({unchanged})"
        )
        self._fill(merged, rows, AMBIGUOUS)
        return merged

    def close(self) -> None:
        """Drop the TEMP tables."""
        while self._made:
            self._catalog.execute(f"DROP TABLE IF EXISTS {self._made.pop()}")

    # -- text ----------------------------------------------------------------------------------------------------------

    def columns(self, alias: str) -> str:
        """The stored columns, qualified."""
        return ", ".join(f"{alias}.{quote_identifier(c.name)}" for c in self.shape.columns)

    def keys_of(self, alias: str) -> str:
        """The key columns, qualified."""
        return ", ".join(f"{alias}.{quote_identifier(k)}" for k in self.shape.key)

    def join(self, left: str, images: str, alias: str) -> str:
        """JOIN text that puts the row of the same key beside ``left``."""
        return f"JOIN {images} {alias} ON {self.same_key(left, alias)}"

    def same_key(self, a: str, b: str) -> str:
        return " AND ".join(f"{a}.{quote_identifier(k)} = {b}.{quote_identifier(k)}" for k in self.shape.key)

    def same(self, a: str, b: str) -> str:
        """A condition: two images of the same key agree. Text is compared byte by byte, whatever its collation."""
        compared = (c for c in self.shape.columns if not c.key or c.collation != "BINARY")  # joined by key already
        return " AND ".join((f"{a}._dl_state = {b}._dl_state", *(self._same(c, a, b) for c in compared)))

    def _same(self, column: StoredColumn, a: str, b: str) -> str:
        left, right = (f"{alias}.{quote_identifier(column.name)}" for alias in (a, b))
        equal = f"{left} IS {right} COLLATE BINARY"
        declared = self.table.column(column.name)
        if declared is None or declared.type.is_scalar:
            return equal
        if declared.type.is_vector:
            return f"({equal} OR {SAME_VECTOR}({left}, {right}))"
        return f"({equal} OR ({_fingerprint(left)} = {_fingerprint(right)} AND {SAME_BLOB}({left}, {right})))"

    def within(self, keys: str) -> str:
        """A condition on a table's own key columns: the key is in the key set."""
        return f"{self._row(self.key)} IN (SELECT {self.key} FROM {keys})"

    def contains(self, alias: str, keys: str) -> str:
        """A condition: the key of ``alias`` is among the keys of a table or parenthesised SELECT."""
        return f"{self._row(self.keys_of(alias))} IN (SELECT {self.key} FROM {keys})"

    def _row(self, columns: str) -> str:
        return f"({columns})" if len(self.shape.key) > 1 else columns

    # -- TEMP tables ---------------------------------------------------------------------------------------------------

    def create(self, columns: Iterable[str] = ()) -> str:
        """A TEMP table of keys with further columns, empty."""
        return self._create((*self._key_columns(), *columns))

    def _create_images(self) -> str:
        others = (f"{quote_identifier(c.name)} {c.declared}" for c in self.shape.columns if not c.key)
        return self._create((*self._key_columns(), *others, "_dl_state INTEGER NOT NULL"))

    def _key_columns(self) -> list[str]:
        by_name = {c.name: c for c in self.shape.columns}
        return [f"{quote_identifier(k)} {by_name[k].declared} COLLATE {by_name[k].collation}" for k in self.shape.key]

    def _create(self, columns: Iterable[str]) -> str:
        name = f"temp._dl_images_{next(_numbers)}"
        rowid = len(self.shape.key) == 1 and self._is_integer_key()
        tail = "" if rowid else " WITHOUT ROWID"
        self._catalog.execute(f"CREATE TABLE {name} ({', '.join(columns)}, PRIMARY KEY ({self.key})){tail}")
        self._made.append(name)
        return name

    def _is_integer_key(self) -> bool:
        return next(c.declared.upper() for c in self.shape.columns if c.key) == "INTEGER"

    def _fill(self, images: str, keys: str, state: int) -> None:
        self._catalog.execute(
            f"INSERT OR IGNORE INTO {images} ({self.key}, _dl_state) SELECT {self.key}, {state} FROM {keys}"
        )

    # -- results -------------------------------------------------------------------------------------------------------

    def pairs(self, before: str, after: str, keys: str | None = None) -> list[tuple[Any, ...]]:
        """Per differing key in key order: (state before, state after, row before ..., row after ...)."""
        differs = f"NOT ({self.same('a', 'b')})"
        where = differs if keys is None else self.contains("a", keys)
        return self._catalog.fetchall(
            f"SELECT a._dl_state, b._dl_state, {self.columns('a')}, {self.columns('b')} "
            f"FROM {before} a {self.join('a', after, 'b')} WHERE {where} ORDER BY {self.keys_of('a')}"
        )


def _fingerprint(address: str) -> str:
    """Length and checksums of a blob, as one text: where they differ, so do the bytes."""
    return (
        f"(SELECT length || ' ' || hex(checks) FROM _dl_members "
        f"WHERE file = {address} >> {ORDINAL_BITS} AND ordinal = {address} & {MAX_ORDINAL})"
    )
