"""The rows of a merge's target, in a form that an index look-up per incoming row can search.

Main is its own tables, and a branch on PostgreSQL has stored views. On SQLite a branch is main's rows that it shows
as they are, the before-images of those that main changed since the fork, and its overlay. The images lie in the undo
log without an index on anything but the key, so they are copied into a TEMP table with the table's unique indexes: else
every incoming row would read the log from the fork on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from deeplake_loader.branches import MAIN, Point, branches_of, first_number, log_name, overlay_name, shadow_name
from deeplake_loader.types import RESERVED_PREFIX, quote_identifier

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.history import Shape
    from deeplake_loader.merging.images import Images
    from deeplake_loader.types import Table


class Target:
    """A branch as it is now, between the statements of a merge; ``make`` gives the TEMP tables their owner."""

    def __init__(self, catalog: Catalog, branch: int, make: Callable[[Table], Images]) -> None:
        self._catalog, self._branch, self._make = catalog, branch, make
        self._history = catalog.history
        self._seq = catalog.head() + 1  # every change so far was logged under a smaller number
        self._branches = branches_of(catalog)
        self._texts: dict[str, str] = {}

    def rows(self, table: str) -> str:
        """Text for a FROM clause: a table or a parenthesised SELECT of its stored columns; without parameters."""
        found = self._texts.get(table)
        if found is None:
            found = self._texts[table] = self._rows(table)
        return found

    def _rows(self, table: str) -> str:
        if self._branch == MAIN:
            return self._history.real(table)
        if self._catalog.dialect == "postgres":
            return self._history.real(f"{RESERVED_PREFIX}v{self._branch}_{table}")
        shape, log = self._history.shape(table), self._history.real(log_name(table))
        fork = self._branches.fork_at(self._branch, self._seq)
        start = first_number(self._catalog, log_name(table), fork)
        arms, same = [f"SELECT {shape.names} FROM {self._history.real(table)} t WHERE 1"], _same(shape.key)
        overlaid = table in self._branches.overlays(self._branch)
        if overlaid:
            shadow = self._history.real(shadow_name(self._branch, table))
            arms[0] += f" AND NOT EXISTS (SELECT 1 FROM {shadow} c WHERE {same} AND c._dl_seq < {self._seq:d})"
            arms.append(f"SELECT {shape.names} FROM {self._history.real(overlay_name(self._branch, table))}")
        if self._catalog.fetchone(f"SELECT 1 FROM {log} WHERE _dl_n >= ? LIMIT 1", (start,)):
            arms[0] += f" AND NOT EXISTS (SELECT 1 FROM {log} c WHERE {same} AND c._dl_seq >= {fork:d})"
            arms.append(f"SELECT {shape.names} FROM {self._images(shape, start)}")
        return f"({' UNION ALL '.join(arms)})"

    def _images(self, shape: Shape, start: int) -> str:
        """The before-images that the branch shows: of its rows on main's side, those whose key main's log names."""
        images = self._make(self._catalog.tables()[shape.table.lower()])
        sql, params = self._history.base(shape.table, Point(self._branch, self._seq))
        keys = images.create()
        self._catalog.execute(
            f"INSERT INTO {keys} SELECT {images.key} FROM {self._history.real(shape.log)} WHERE _dl_n >= ? "
            "ON CONFLICT DO NOTHING",
            (start,),
        )
        rows = images.create(f"{quote_identifier(c.name)} {c.declared}" for c in shape.columns if not c.key)
        self._catalog.execute(
            f"INSERT INTO {rows} ({shape.names}) SELECT {shape.names} FROM ({sql}) b WHERE {images.contains('', keys)}",
            params,
        )
        for number, terms in enumerate(shape.uniques[1:]):
            listed = ", ".join(f"{t.expression} COLLATE {t.collation}" for t in terms)
            self._catalog.execute(f"CREATE INDEX temp.{rows}_{number} ON {rows} ({listed})")
        return rows


def _same(key: tuple[str, ...]) -> str:
    return " AND ".join(f"c.{quote_identifier(k)} = t.{quote_identifier(k)}" for k in key)
