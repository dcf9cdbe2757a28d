"""Batches of rows that belong together: of one bucket (a shape, a length class), and within a budget of cost.

A **bin** is one rank's batch. Bins are formed of the epoch's global order alone: each row joins its bucket's open bin,
which is full at ``batch_size`` rows or when the next row would break the budget; full bins come in the order in which
they became full, and what is left open at the end comes last. A step takes the next ``world_size`` bins, so the bins
are the same for every number of ranks. A position is a bin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from numbers import Real
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deeplake_loader.errors import InputError
from deeplake_loader.order import Tail
from deeplake_loader.stream.picks import Indices, Picker, Picks
from deeplake_loader.stream.schedule import Bools, Cursor, Step
from deeplake_loader.stream.weights import Key, row_name

BINS_VERSION = 1
"""Part of the state of every stream of bins. A change of anything below that changes a bin must raise it."""


@dataclass(frozen=True, slots=True)
class Budget:
    """At most ``limit`` of a cost in every batch, beside at most ``batch_size`` rows.

    Fields: ``cost``, a column of the query or a SQL expression over its tables, a number of 0 or more for each row
    (tokens, frames x width x height); ``padded``: a batch costs its rows times its dearest row, as it does where
    shorter rows are padded; else the sum of its rows.

    >>> Budget("num_frames * width * height", 2_000_000).padded
    False
    """

    cost: str
    limit: float
    padded: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.cost, str) or not self.cost.strip():
            raise InputError(f"Budget({self.cost!r}, ...): the cost is a column or a SQL expression")
        if isinstance(self.limit, bool) or not isinstance(self.limit, Real) or not 0 < self.limit < np.inf:
            raise InputError(f"Budget({self.cost!r}, {self.limit!r}): the limit is a number above 0")


@dataclass(frozen=True, slots=True)
class Bins:
    """The bins of one epoch, in their order: bin i holds ``picks`` from ``starts[i]`` to ``stops[i]``.

    ``full``: those that closed before the epoch's end; ``sizes``: the rows to which each is padded, 0 for none.
    """

    picks: Picks
    starts: Indices
    stops: Indices
    full: Bools
    sizes: Indices

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, places: Indices) -> Bins:
        """The bins at these places."""
        return Bins(self.picks, self.starts[places], self.stops[places], self.full[places], self.sizes[places])


class Binner(Protocol):
    """The bins of every epoch: a pure function of its number."""

    @property
    def count(self) -> int | None:
        """Bins in an epoch; None where epochs differ."""

    def bins(self, epoch: int) -> Bins: ...

    def identity(self) -> dict[str, int | str | bool | float]:
        """What must agree between a state and these bins."""


@dataclass(frozen=True, slots=True)
class Bucketed:
    """Bins of a picker's rows.

    Args:
        picker: of one source.
        buckets: the number of each row's bucket; None puts all rows in one.
        costs: of each row, with ``limit`` and ``padded`` of `Budget`; None for no budget.
        batch_size: most rows of a bin.
        group: bins of one bucket come in runs of this many (but for the epoch's last), so that all ranks of a world
            size that divides it work on one bucket in every step.
    """

    picker: Picker
    batch_size: int
    buckets: Indices | None = None
    costs: npt.NDArray[Any] | None = None
    limit: float = 0
    padded: bool = False
    group: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.group < 1:
            raise InputError(f"batch_size {self.batch_size} and group {self.group} must be at least 1")

    @property
    def count(self) -> int | None:
        if self.costs is not None or (self.buckets is not None and self.picker.identity().get("weights") is not None):
            return None
        if self.buckets is None:
            return -(-self.picker.count // self.batch_size)
        if self.picker.count < len(self.buckets):
            return None  # a limit takes other rows in every epoch
        return int((-(-np.bincount(self.buckets) // self.batch_size)).sum())

    def bins(self, epoch: int) -> Bins:
        picks = self.picker.picks(epoch)
        buckets = np.zeros(len(picks), np.int64) if self.buckets is None else self.buckets[np.asarray(picks.rows)]
        small = buckets.astype(np.uint16) if buckets.max(initial=0) < 1 << 16 else buckets  # numpy sorts these by radix
        places = np.argsort(small, kind="stable")
        buckets, picks = buckets[places], picks.take(places)
        starts, full = self._cut(buckets, picks)
        stops = np.append(starts, len(buckets))[1:]
        order = self._emission(buckets[starts], places[stops - 1], full)
        sizes = np.full(len(starts), 0 if self.costs is not None else self.batch_size)
        return Bins(picks, starts, stops, full, sizes).take(order)

    def _cut(self, buckets: Indices, picks: Picks) -> tuple[Indices, Bools]:
        """Where bins begin in rows that are sorted by bucket, and which of the bins are full."""
        count = len(buckets)
        if count == 0:
            return np.zeros(0, np.int64), np.zeros(0, np.bool_)
        fresh = np.append(True, buckets[1:] != buckets[:-1])
        if self.costs is None:
            firsts = np.flatnonzero(fresh)
            within = np.arange(count) - np.repeat(firsts, np.diff(np.append(firsts, count)))
            starts = np.flatnonzero(within % self.batch_size == 0)
        else:
            costs = self.costs[np.asarray(picks.rows)].tolist()
            starts = np.array(_packed(fresh.tolist(), costs, self.batch_size, self.limit, padded=self.padded), np.int64)
        ends = np.append(starts[1:], count)
        last = np.append(fresh[starts[1:]], True)  # the last bin of its bucket
        return starts.astype(np.int64), ~last | (ends - starts == self.batch_size)

    def _emission(self, buckets: Indices, ends: Indices, full: Bools) -> Indices:
        """The order in which bins come: runs of ``group`` bins of a bucket, by the place of the last row of each run;
        unfinished runs behind all others."""
        if not len(buckets):
            return buckets
        number = np.arange(len(buckets))
        first = np.append(True, buckets[1:] != buckets[:-1])
        within = number - np.maximum.accumulate(np.where(first, number, 0))
        heads = np.flatnonzero(within % self.group == 0)
        run = np.cumsum(within % self.group == 0) - 1
        tails = np.append(heads[1:], len(buckets)) - 1
        finished = (tails - heads + 1 == self.group) & np.logical_and.reduceat(full, heads)
        return np.lexsort((number, ends[tails][run], ~finished[run])).astype(np.int64, copy=False)

    def identity(self) -> dict[str, int | str | bool | float]:
        picker = self.picker.identity()
        facts = (sorted(picker.items()), self.batch_size, self.limit, self.padded, self.group)
        digest = blake2b(repr(facts).encode(), digest_size=16)
        for array in (self.buckets, self.costs):
            digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
        return {"order_version": BINS_VERSION, "seed": picker.get("seed", 0), "bins": digest.hexdigest()}


def _packed(fresh: list[bool], costs: list[float], batch_size: int, limit: float, *, padded: bool) -> list[int]:
    """First row of every bin. A loop in plain Python: 0.2 s for a million rows."""
    starts: list[int] = []
    rows, cost, dearest = 0, 0.0, 0.0
    for place, (new, own) in enumerate(zip(fresh, costs, strict=True)):
        rows, cost, dearest = rows + 1, cost + own, max(dearest, own)
        if new or rows > batch_size or (rows * dearest if padded else cost) > limit:
            starts.append(place)
            rows, cost, dearest = 1, own, own
    return starts


@dataclass(frozen=True, slots=True)
class LimitedBins:
    """The first ``limit`` bins of another binner's epochs."""

    inner: Binner
    limit: int

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise InputError(f"limit({self.limit}): at least 1 batch of every epoch")

    @property
    def count(self) -> int | None:
        return None if self.inner.count is None else min(self.limit, self.inner.count)

    def bins(self, epoch: int) -> Bins:
        bins = self.inner.bins(epoch)
        return bins.take(np.arange(min(self.limit, len(bins))))

    def identity(self) -> dict[str, int | str | bool | float]:
        return {**self.inner.identity(), "limit": self.limit}


class _Counts:
    """Bins of the epochs planned last, so that a plan is not made for every cursor; a copy knows none."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}

    def of(self, binner: Binner, epoch: int, *, drop: bool) -> int:
        if epoch not in self._known:
            self.learn(epoch, _kept(binner.bins(epoch), drop=drop))
        return self._known[epoch]

    def learn(self, epoch: int, bins: Bins) -> None:
        self._known = {**dict(list(self._known.items())[-3:]), epoch: len(bins)}

    def __reduce__(self) -> tuple[type[_Counts], tuple[()]]:
        return _Counts, ()


def _kept(bins: Bins, *, drop: bool) -> Bins:
    return bins.take(np.flatnonzero(bins.full)) if drop else bins


@dataclass(frozen=True, slots=True)
class BinSchedule:
    """The bins of a `Binner`, the next ``world_size`` of them a step; a position is a bin.

    ``tail``: "drop" leaves out bins that are not full, and a last step with fewer bins than ranks; "pad" fills such
    bins with repeats of their own rows, and a rank without one repeats another's, all marked invalid; "short" leaves
    bins as they are, and a rank without one repeats a single row.
    """

    binner: Binner
    rank: int = 0
    world_size: int = 1
    tail: Tail = "short"
    _counts: _Counts = field(default_factory=_Counts, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise InputError(f"rank {self.rank} of {self.world_size}: the rank must be 0 .. world_size - 1")

    @property
    def pace(self) -> int:
        return self.world_size

    def identity(self) -> dict[str, int | str | bool | float]:
        return {**self.binner.identity(), "dropped": self.tail == "drop"}

    def length(self, epoch: int) -> int:
        count = self.binner.count
        if count is not None and self.tail != "drop":
            return count
        return self._counts.of(self.binner, epoch, drop=self.tail == "drop")

    def steps(self, cursor: Cursor) -> int:
        left = max(0, self.length(cursor[0]) - cursor[1])
        return left // self.pace if self.tail == "drop" else -(-left // self.pace)

    def following(self, cursor: Cursor) -> Cursor:
        return cursor if self.steps(cursor) else (cursor[0] + 1, 0)

    def batches(self, cursor: Cursor, *, first: int = 0, stride: int = 1) -> Iterator[Step]:
        epoch, base = cursor
        bins = _kept(self.binner.bins(epoch), drop=self.tail == "drop")
        self._counts.learn(epoch, bins)
        for j in range(first, self.steps(cursor), stride):
            position = base + j * self.pace
            places, valid = self._own(bins, position)
            mine, after = bins.picks.take(places), self.following((epoch, position + self.pace))
            rows, marks = np.asarray(mine.rows), valid if self._repeats else None
            yield Step(rows, marks, epoch, after, mine.sources, mine.epochs)

    @property
    def _repeats(self) -> bool:
        return self.tail == "pad" or (self.tail == "short" and self.world_size > 1)

    def _own(self, bins: Bins, position: int) -> tuple[Indices, Bools]:
        """This rank's rows of the step, by their places in the picks, and which of them are no repeats."""
        number = position + self.rank
        own = number < len(bins)
        if not own:
            number = position
        start, stop = int(bins.starts[number]), int(bins.stops[number])
        if not own and self.tail == "short":
            stop = start + 1
        rows, size = stop - start, stop - start
        if self.tail == "pad":
            size = max(rows, int(bins.sizes[number]))
        places = np.arange(size, dtype=np.int64)
        return start + places % rows, (places < rows) & own

    def locate(self, epoch: int, position: int) -> tuple[int, int]:
        """(source, row) of the first row of the bin."""
        bins = _kept(self.binner.bins(epoch), drop=self.tail == "drop")
        return bins.picks.sample(int(bins.starts[position]))

    def limited(self, count: int) -> BinSchedule:
        limited = LimitedBins(self.binner, count)
        if isinstance(self.binner, LimitedBins):  # a limit of a limit is the smaller one, with its identity
            limited = LimitedBins(self.binner.inner, min(limited.limit, self.binner.limit))
        return BinSchedule(limited, self.rank, self.world_size, self.tail)


def bucket_codes(values: npt.NDArray[Any] | Sequence[Any]) -> tuple[Indices, dict[Any, int]]:
    """Each row's bucket as a number, and the number of every value: in order of type name, then value.

    >>> bucket_codes(["wide", "tall", "wide", None])[0].tolist()
    [2, 1, 2, 0]
    """
    if isinstance(values, np.ndarray):
        distinct, codes = np.unique(values, return_inverse=True)
        return codes.astype(np.int64), {value: i for i, value in enumerate(distinct.tolist())}
    try:
        ordered = sorted(set(values), key=lambda v: (v is not None, type(v).__name__, 0 if v is None else v))
    except TypeError as error:
        raise InputError(f"bucket_by gives values that cannot be told apart: {error}; give text or numbers") from error
    number = {value: i for i, value in enumerate(ordered)}
    return np.fromiter((number[v] for v in values), np.int64, len(values)), number


def checked_costs(values: npt.NDArray[Any] | Sequence[Any], keys: Sequence[Key], budget: Budget) -> npt.NDArray[Any]:
    """The costs as integers or floats, each within the budget.

    Raises:
        InputError: a cost is no number, negative, or above the limit by itself; with the key of its row.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        row = next((i for i, v in enumerate(values) if not isinstance(v, (int, float))), 0)
        raise InputError(f"the cost of {row_name(keys, row)} is {values[row]!r}, not a number; CAST it in the query")
    array = array.astype(np.int64) if array.dtype.kind in "biu" else array.astype(np.float64)
    wrong = np.flatnonzero(~((array >= 0) & (array <= budget.limit)))
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"the cost of {row_name(keys, row)} is {array[row].item()!r} ({len(wrong)} such rows); the budget takes 0 "
            f"to {budget.limit} a batch: raise the limit or leave the rows out with WHERE"
        )
    return array
