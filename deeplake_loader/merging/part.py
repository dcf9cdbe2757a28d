"""One table of a merge, between deciding and writing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deeplake_loader.merging.comparison import PRESENT

if TYPE_CHECKING:
    from deeplake_loader.merging.images import Images

KEEP, TAKE, CONFLICT = 0, 1, 2
"""What is chosen for a key that differs: the target's row stays, the source's comes, or neither can be said."""


@dataclass(frozen=True, slots=True)
class Part:
    """Images of both sides and of their base, and the TEMP table of choices by key (column ``choice``)."""

    images: Images
    ours: str
    theirs: str
    base: str
    choices: str

    @property
    def name(self) -> str:
        """The table's name."""
        return self.images.table.name

    def taken(self, alias: str) -> str:
        """FROM text of the merged keys: ``alias`` their rows on the source, o on the target; ends in a WHERE."""
        images = self.images
        return (
            f"{self.choices} v {images.join('v', self.theirs, alias)} {images.join('v', self.ours, 'o')} "
            f"WHERE v.choice = {TAKE}"
        )

    def is_taken(self, row: str) -> str:
        """A condition: the merge replaces the row ``row`` of the target."""
        same = self.images.same_key("w", row)
        return f"EXISTS (SELECT 1 FROM {self.choices} w WHERE {same} AND w.choice = {TAKE})"

    def coming(self, alias: str) -> str:
        """FROM text of the rows that the merge brings; ends in a WHERE."""
        images = self.images
        return (
            f"{self.choices} v {images.join('v', self.theirs, alias)} "
            f"WHERE v.choice = {TAKE} AND {alias}._dl_state = {PRESENT}"
        )
