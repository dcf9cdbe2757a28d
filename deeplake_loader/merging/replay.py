"""Writing what a merge chose into its target, whose constraints were looked after before.

The merged keys are deleted and their rows inserted anew: values may then swap between rows freely.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deeplake_loader.branches import MAIN, Branch, branches_of, log_name, overlay_name, shadow_name
from deeplake_loader.history import SEQ
from deeplake_loader.merging.comparison import PRESENT
from deeplake_loader.merging.part import TAKE, Part
from deeplake_loader.types import quote_identifiers

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.overlays import BranchWriter


class Replay:
    """Writes into one branch; ``moved_to`` is main's commit on which the branch will stand, where main is merged."""

    def __init__(self, catalog: Catalog, writer: BranchWriter, branch: Branch, moved_to: int | None) -> None:
        self._catalog, self._writer, self._branch, self._moved_to = catalog, writer, branch, moved_to
        self._history, self._branches = catalog.history, branches_of(catalog)

    def write(self, parts: Sequence[Part]) -> None:
        """Write every part's rows, and move the branch's fork."""
        for part in parts:
            if self._branch.id == MAIN:
                self._write(part, part.name)
            elif self._moved_to is None:
                self._write_overlay(part)
            else:
                self._keep_aside(part)
        if self._moved_to is not None:
            self._move_fork(self._moved_to)

    def _write(self, part: Part, real: str, condition: str = "TRUE") -> None:
        """Delete the merged keys and insert their rows anew."""
        images, target = part.images, self._history.real(real)
        chosen = images.chosen(f"{part.choices} v", f"choice = {TAKE} AND {condition}")
        self._catalog.execute(f"DELETE FROM {target} WHERE {images.contains('', chosen)}")
        self._catalog.execute(
            f"INSERT INTO {target} ({images.names}) SELECT {images.names} FROM {part.theirs} "
            f"WHERE _dl_state = {PRESENT} AND {images.contains('', chosen)} ORDER BY {images.key}"
        )

    # -- a branch ------------------------------------------------------------------------------------------------------

    def _write_overlay(self, part: Part, condition: str = "TRUE") -> None:
        """The merged keys hide main's from now on, and the overlay holds their rows."""
        overlay = self._writer.ensure(self._branch.id, part.name)
        self._take_over(part, f"choice = {TAKE} AND {condition}")
        self._write(part, overlay, condition)

    def _take_over(self, part: Part, where: str) -> None:
        """Hide main's rows of these keys, and log that the overlay held none of them so far."""
        images, key = part.images, part.images.key
        own = overlay_name(self._branch.id, part.name)
        shadow, overlay, log = map(self._history.real, (shadow_name(self._branch.id, part.name), own, log_name(own)))
        keys = f"SELECT {images.keys_of('v')}, {SEQ} FROM {part.choices} v WHERE {where}"
        unlogged = f"NOT EXISTS (SELECT 1 FROM {log} l WHERE {images.same_key('l', 'v')} AND l._dl_seq = {SEQ})"
        self._catalog.execute(
            f"INSERT INTO {log} ({key}, _dl_seq, _dl_op) SELECT n.*, 'I' FROM ({keys} "
            f"AND NOT {images.contains('v', overlay)} AND {unlogged}) n"
        )
        self._catalog.execute(f"INSERT INTO {shadow} ({key}, _dl_seq) {keys} ON CONFLICT DO NOTHING")

    def _keep_aside(self, part: Part) -> None:
        """Before main becomes the base: rows that the branch keeps against main go into the overlay, and merged rows
        replace those that are there already."""
        images, kept = part.images, f"SELECT {part.images.key} FROM {part.choices} WHERE choice <> {TAKE}"
        if self._catalog.fetchone(f"{kept} LIMIT 1") is not None:
            own = self._history.real(self._writer.ensure(self._branch.id, part.name))
            self._take_over(part, f"choice <> {TAKE}")
            self._catalog.execute(
                f"INSERT INTO {own} ({images.names}) SELECT {images.names} FROM {part.ours} o "
                f"WHERE _dl_state = {PRESENT} AND {images.contains('o', f'({kept}) k')} "
                f"AND NOT {images.contains('o', own)}"
            )
        if part.name in self._branches.overlays(self._branch.id):
            owned = " OR ".join(
                images.contains("v", self._history.real(name(self._branch.id, part.name)))
                for name in (overlay_name, shadow_name)
            )
            self._write_overlay(part, f"({owned})")

    def _move_fork(self, main_seq: int) -> None:
        """From this commit on the branch stands on main's present; its own keys must hide main's."""
        for table in self._branches.overlays(self._branch.id):
            key = quote_identifiers(self._history.shape(table).key)
            overlay, shadow = (self._history.real(name(self._branch.id, table)) for name in (overlay_name, shadow_name))
            self._catalog.execute(
                f"INSERT INTO {shadow} ({key}, _dl_seq) SELECT {key}, {SEQ} FROM {overlay} WHERE TRUE "
                "ON CONFLICT DO NOTHING"
            )
        row = (self._branch.id, self._catalog.head() + 1, main_seq)
        self._catalog.execute(
            "INSERT INTO _dl_forks (branch, seq, main_seq) VALUES (?, ?, ?) "
            "ON CONFLICT (branch, seq) DO UPDATE SET main_seq = excluded.main_seq",
            row,
        )
