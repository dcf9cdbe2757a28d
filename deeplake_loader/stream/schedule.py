"""Which rows make which batch: a `Schedule` gives every rank its steps, a pure function of a cursor.

A cursor is (epoch, position). What a position counts is the schedule's affair (rows, bins of a bucket ...), but every
step takes the same number of them, its ``pace``, on every rank: so one cursor means the same place to all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from deeplake_loader.order import Share
from deeplake_loader.stream.picks import Picker, limited

Cursor = tuple[int, int]
"""(epoch, position)."""

Indices = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Step:
    """One batch of one rank, to be made.

    Fields: ``rows``, the row number of each of its samples; ``valid``, which of them are no repeats, None in schedules
    that never repeat; ``after``, the cursor behind it; ``sources``, which source each row is of (None: all of source
    0); ``epochs``, the epoch that each row is augmented for where it is not ``epoch``.
    """

    rows: Indices
    valid: Bools | None
    epoch: int
    after: Cursor
    sources: Indices | None = None
    epochs: Indices | None = None


class Schedule(Protocol):
    """The batches of one rank, in every epoch. Small, picklable and without state."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def pace(self) -> int:
        """Positions that one step of all ranks takes; the last step of an epoch may find fewer."""

    def identity(self) -> dict[str, int | str | bool | float]:
        """What must agree between a state and this schedule: not the ranks, nor what may change within an epoch."""

    def length(self, epoch: int) -> int:
        """Positions in an epoch."""

    def steps(self, cursor: Cursor) -> int:
        """Batches of every rank from there to the end of that epoch: as many on each."""

    def following(self, cursor: Cursor) -> Cursor:
        """The same cursor, or (epoch + 1, 0) where no step is left of its epoch."""

    def batches(self, cursor: Cursor, *, first: int = 0, stride: int = 1) -> Iterator[Step]:
        """This rank's steps from there to the end of that epoch: number ``first``, ``first + stride`` and so on."""

    def locate(self, epoch: int, position: int) -> tuple[int, int]:
        """(source, row) at a position."""

    def limited(self, count: int) -> Schedule:
        """The same with the first ``count`` positions of every epoch alone."""


@dataclass(frozen=True, slots=True)
class RowSchedule:
    """The samples of a `picks.Picker`, dealt to ranks by `order.Share`.

    A position is a sample.
    """

    picker: Picker
    share: Share

    @property
    def rank(self) -> int:
        return self.share.rank

    @property
    def world_size(self) -> int:
        return self.share.world_size

    @property
    def pace(self) -> int:
        return self.share.step

    def identity(self) -> dict[str, int | str | bool | float]:
        return self.picker.identity()

    def length(self, epoch: int) -> int:  # noqa: ARG002  as many in every epoch
        return self.share.count

    def steps(self, cursor: Cursor) -> int:
        return self.share.steps(cursor[1])

    def following(self, cursor: Cursor) -> Cursor:
        return self.share.cursor(*cursor)

    def batches(self, cursor: Cursor, *, first: int = 0, stride: int = 1) -> Iterator[Step]:
        epoch, base = cursor
        picks = self.picker.picks(epoch)
        for j in range(first, self.steps(cursor), stride):
            position = base + j * self.pace
            own, valid = self.share.take(position)
            mine, after = picks.take(own), self.following((epoch, position + self.pace))
            rows, marks = np.asarray(mine.rows), valid if self.share.repeats else None
            yield Step(rows, marks, epoch, after, mine.sources, mine.epochs)

    def locate(self, epoch: int, position: int) -> tuple[int, int]:
        return self.picker.picks(epoch).sample(position)

    def limited(self, count: int) -> RowSchedule:
        picker = limited(self.picker, count)
        return RowSchedule(picker, replace(self.share, count=picker.count))
