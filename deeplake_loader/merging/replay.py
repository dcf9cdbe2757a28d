"""Writing what a merge chose into its target, whose constraints were looked after before.

Per table the rows that the target shall have for some keys are collected in a TEMP table of images, then written: on
SQLite, where foreign keys are off for the merge, the keys are deleted and their rows inserted anew, so that values may
swap between rows freely; on PostgreSQL by one statement for all tables (see `at_once`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deeplake_loader.branches import MAIN, Branch, branches_of, log_name, overlay_name, shadow_name
from deeplake_loader.history import SEQ
from deeplake_loader.merging.at_once import Write, write_at_once
from deeplake_loader.merging.comparison import PRESENT
from deeplake_loader.merging.constraints import foreign_keys
from deeplake_loader.merging.part import TAKE, Part
from deeplake_loader.types import quote_identifiers

if TYPE_CHECKING:
    from deeplake_loader.branches import Point
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.overlays import BranchWriter


class Replay:
    """Writes into one branch; ``moved_to`` is main's point on which the branch will stand, where main is merged."""

    def __init__(self, catalog: Catalog, writer: BranchWriter, branch: Branch, moved_to: Point | None) -> None:
        self._catalog, self._writer, self._branch, self._moved_to = catalog, writer, branch, moved_to
        self._history, self._branches = catalog.history, branches_of(catalog)

    def write(self, parts: Sequence[Part]) -> None:
        """Write every part's rows, and move the branch's fork."""
        writes = [found for part in parts if (found := self._prepare(part)) is not None]
        if self._moved_to is not None:
            self._move_fork(self._moved_to)
        if self._catalog.dialect == "postgres":
            write_at_once(self._catalog, writes)
            return
        for write in writes:
            self._rewrite(write)

    def _rewrite(self, write: Write) -> None:
        """Delete the keys and insert their rows anew."""
        images = write.images
        self._catalog.execute(f"DELETE FROM {write.real} WHERE {images.contains('', write.wanted)}")
        self._catalog.execute(
            f"INSERT INTO {write.real} ({images.names}) SELECT {images.names} FROM {write.wanted} "
            f"WHERE _dl_state = {PRESENT} ORDER BY {images.key}"
        )

    def _prepare(self, part: Part) -> Write | None:
        if self._branch.id == MAIN:
            wanted = part.images.create_images()
            self._want(part, wanted, part.theirs, f"choice = {TAKE}")
            return Write(part.images, self._history.real(part.name), wanted, reinsert=not self._is_acted_on(part.name))
        if self._moved_to is None:
            return self._prepare_overlay(part, f"choice = {TAKE}", None)
        return self._keep_aside(part)

    def _is_acted_on(self, table: str) -> bool:
        """Whether a foreign key would change or keep rows of other tables when one of this table is deleted."""
        names = [found.name for found in self._catalog.tables().values()]
        return any(f.parent == table and f.acts for f in foreign_keys(self._catalog, names))

    def _want(self, part: Part, wanted: str, rows: str, where: str) -> None:
        images = part.images
        self._catalog.execute(
            f"INSERT INTO {wanted} ({images.names}, _dl_state) SELECT {images.columns('r')}, r._dl_state "
            f"FROM {part.choices} v {images.join('v', rows, 'r')} WHERE {where}"
        )

    # -- a branch ------------------------------------------------------------------------------------------------------

    def _prepare_overlay(self, part: Part, taken: str, kept: str | None) -> Write:
        """The merged keys hide main's from now on, and the overlay will hold their rows."""
        overlay = self._history.real(self._writer.ensure(self._branch.id, part.name))
        wanted = part.images.create_images()
        if kept is not None:
            self._want(part, wanted, part.ours, f"{kept} AND NOT {part.images.held('v', overlay)}")
            self._take_over(part, kept)
        self._want(part, wanted, part.theirs, taken)
        self._take_over(part, taken)
        return Write(part.images, overlay, wanted, reinsert=True)

    def _keep_aside(self, part: Part) -> Write | None:
        """Before main becomes the base: rows that the branch keeps against main go into the overlay, and merged rows
        replace those that are there already."""
        kept = f"choice <> {TAKE}"
        if self._catalog.fetchone(f"SELECT 1 FROM {part.choices} WHERE {kept} LIMIT 1") is not None:
            self._writer.ensure(self._branch.id, part.name)
        if part.name not in self._branches.overlays(self._branch.id):
            return None
        owned = " OR ".join(
            part.images.held("v", self._history.real(name(self._branch.id, part.name)))
            for name in (overlay_name, shadow_name)
        )
        return self._prepare_overlay(part, f"choice = {TAKE} AND ({owned})", kept)

    def _take_over(self, part: Part, where: str) -> None:
        """Hide main's rows of these keys, and log that the overlay held none of them so far."""
        images, key = part.images, part.images.key
        own = overlay_name(self._branch.id, part.name)
        shadow, overlay, log = map(self._history.real, (shadow_name(self._branch.id, part.name), own, log_name(own)))
        keys = f"SELECT {images.keys_of('v')}{self._stamp} FROM {part.choices} v WHERE {where}"
        self._catalog.execute(
            f"INSERT INTO {log} ({key}{self._stamped}, _dl_op) SELECT n.*, 'I' FROM ({keys} "
            f"AND NOT {images.held('v', overlay)}{self._unlogged(part, log)}) n"
        )
        self._catalog.execute(f"INSERT INTO {shadow} ({key}{self._stamped}) {keys} ON CONFLICT DO NOTHING")

    @property
    def _stamped(self) -> str:
        """The column that says when, where it has no default."""
        return "" if self._catalog.dialect == "postgres" else ", _dl_seq"

    @property
    def _stamp(self) -> str:
        return "" if self._catalog.dialect == "postgres" else f", {SEQ}"

    def _unlogged(self, part: Part, log: str) -> str:
        """SQLite's log holds one image per key and number; on PostgreSQL the earliest counts."""
        if self._catalog.dialect == "postgres":
            return ""
        same = part.images.same_key("l", "v")
        return f" AND NOT EXISTS (SELECT 1 FROM {log} l WHERE {same} AND l._dl_seq = {SEQ})"

    def _move_fork(self, to: Point) -> None:
        """From this commit on the branch stands on main's present; its own keys must hide main's."""
        for table in self._branches.overlays(self._branch.id):
            key = quote_identifiers(self._history.shape(table).key)
            overlay, shadow = (self._history.real(name(self._branch.id, table)) for name in (overlay_name, shadow_name))
            self._catalog.execute(
                f"INSERT INTO {shadow} ({key}{self._stamped}) SELECT {key}{self._stamp} FROM {overlay} WHERE TRUE "
                "ON CONFLICT DO NOTHING"
            )
        if self._catalog.dialect == "postgres":  # whose forks count by the state they belong to; the views follow
            self._insert_fork(to.seq, to.seq)
            for found in self._catalog.tables().values():
                self._catalog.fetchone("SELECT _dl_show(?, ?)", (self._branch.id, found.name))
        else:
            self._insert_fork(self._catalog.head() + 1, to.seq)

    def _insert_fork(self, seq: int, main_seq: int) -> None:
        self._catalog.execute(
            "INSERT INTO _dl_forks (branch, seq, main_seq) VALUES (?, ?, ?) "
            "ON CONFLICT (branch, seq) DO UPDATE SET main_seq = excluded.main_seq",
            (self._branch.id, seq, main_seq),
        )
