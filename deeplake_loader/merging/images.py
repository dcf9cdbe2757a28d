"""Rows of a merge at several points side by side: TEMP tables over one set of keys.

They live inside the caller's transaction and go with it or with `close`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from deeplake_loader.merging.comparison import ABSENT, AMBIGUOUS, PRESENT, Comparison
from deeplake_loader.types import MAX_ORDINAL, ORDINAL_BITS, quote_identifier

if TYPE_CHECKING:
    from deeplake_loader.branches import Point
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.history import StoredColumn
    from deeplake_loader.merging.contents import Contents
    from deeplake_loader.types import ColumnType, Table

_numbers = count(1)


class Images(Comparison):
    """One table's rows at several points, for the keys on which the points may differ."""

    def __init__(self, catalog: Catalog, table: Table, contents: Contents) -> None:
        super().__init__(catalog, table)
        self._contents = contents
        self._made: list[str] = []
        self._read: list[str] = []

    # -- key sets and images -------------------------------------------------------------------------------------------

    def candidates(self, points: Sequence[Point]) -> str | None:
        """A key set of every key on which the points can differ; None when there is no such key."""
        sql, params = self._catalog.history.candidate_keys(self.table.name, points)
        if self._catalog.fetchone(f"SELECT 1 FROM ({sql}) c LIMIT 1", params) is None:
            return None
        keys = self.create()
        self._catalog.execute(
            f"INSERT INTO {keys} ({self.key}) SELECT {self.key} FROM ({sql}) c WHERE TRUE ON CONFLICT DO NOTHING",
            params,
        )
        return keys

    def chosen(self, source: str, where: str) -> str:
        """A key set of the keys that ``SELECT key FROM source WHERE where`` gives."""
        keys = self.create()
        self._catalog.execute(f"INSERT INTO {keys} ({self.key}) SELECT {self.key} FROM {source} WHERE {where}")
        return keys

    def read(self, point: Point, keys: str) -> str:
        """The images of a key set at a point."""
        sql, params = self._catalog.history.select(self.table.name, point)
        images = self.create_images()
        self._catalog.execute(
            f"INSERT INTO {images} ({self.names}, _dl_state) SELECT {self.names}, {PRESENT} FROM ({sql}) r "
            f"WHERE {self.contains('', keys)}",
            params,
        )
        self._fill(images, keys, ABSENT)
        for column, type in self.addressed():
            self._compare_contents(images, column, type)
        self._read.append(images)
        return images

    def merge(self, rows: str, other: str, base: str) -> str:
        """Two images over a base as one: what either changed, and ambiguous where both did, differently."""
        merged, values = self.create_images(), f"({self.names}, _dl_state)"
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

    def _compare_contents(self, images: str, column: StoredColumn, type: ColumnType) -> None:
        """Note which addresses of these images hold the same bytes as another one of the same key."""
        name = quote_identifier(column.name)
        members = "" if type.is_vector else f"{_member('m', f'n.{name}')} {_member('x', f'e.{name}')}"
        alike = "" if type.is_vector else " AND m.length = x.length AND m.checks = x.checks"
        for earlier in self._read:
            pairs = self._catalog.fetchall(
                f"SELECT DISTINCT n.{name}, e.{name} FROM {images} n {self.join('n', earlier, 'e')} {members} "
                f"WHERE n.{name} <> e.{name}{alike}"
            )
            same = [(a, b) for a, b in pairs if self._contents.same(type, a, b)]
            if same:
                self._note([*same, *((b, a) for a, b in same)])

    def _note(self, pairs: list[tuple[int, int]]) -> None:
        if self.equal_contents is None:
            self.equal_contents = self._name()
            columns = "a BIGINT NOT NULL, b BIGINT NOT NULL, PRIMARY KEY (a, b)"
            self._catalog.execute(f"CREATE TEMP TABLE {self.equal_contents} ({columns})")
        sql = f"INSERT INTO {self.equal_contents} (a, b) VALUES (?, ?) ON CONFLICT DO NOTHING"
        self._catalog.executemany(sql, pairs)

    # -- TEMP tables ---------------------------------------------------------------------------------------------------

    def create(self, others: Iterable[str] = ()) -> str:
        """A TEMP table of keys with further columns, empty."""
        name = self._name()
        self._catalog.execute(self.dialect.create_temp(name, self.key_columns, list(others)))
        return name

    def create_images(self) -> str:
        """A TEMP table of images, empty."""
        others = (f"{quote_identifier(c.name)} {c.declared}" for c in self.shape.columns if not c.key)
        return self.create((*others, "_dl_state INTEGER NOT NULL"))

    def _name(self) -> str:
        self._made.append(f"_dl_images_{next(_numbers)}")
        return self._made[-1]

    def _fill(self, images: str, keys: str, state: int) -> None:
        self._catalog.execute(
            f"INSERT INTO {images} ({self.key}, _dl_state) SELECT {self.key}, {state} FROM {keys} WHERE TRUE "
            "ON CONFLICT DO NOTHING"
        )

    # -- results -------------------------------------------------------------------------------------------------------

    def pairs(self, before: str, after: str, keys: str) -> list[tuple[Any, ...]]:
        """Per key of the set in key order: (state before, state after, row before ..., row after ...)."""
        return self._catalog.fetchall(
            f"SELECT a._dl_state, b._dl_state, {self.columns('a')}, {self.columns('b')} "
            f"FROM {before} a {self.join('a', after, 'b')} WHERE {self.contains('a', keys)} ORDER BY {self.order('a')}"
        )


def _member(alias: str, address: str) -> str:
    """JOIN text for a blob's row: where lengths or checksums differ, so do the bytes."""
    place = f"{alias}.file = {address} >> {ORDINAL_BITS} AND {alias}.ordinal = {address} & {MAX_ORDINAL}"
    return f"JOIN _dl_members {alias} ON {place}"
