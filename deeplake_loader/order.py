"""The order of an epoch, a pure function of the rows, a seed and an epoch number, and each rank's share of a step.

Rows in canonical order are cut into **blocks**: runs of one file, about 8 MB each. An epoch permutes the blocks over
the whole set and deals them to L **lanes** of equal length; a lane shuffles its rows inside windows of k blocks.
Position ``p = t * L + lane`` of the epoch is row t of that lane. A **step** takes the next G positions, the same set
for every number of ranks; a rank takes the positions of its own lanes where that comes out even, so that each block is
read by one rank only, and else a slice of the step.

Nothing is stored: position p of epoch e is found again from the seed. The random words are raw Philox output, because
numpy keeps those stable over its versions and the streams of ``Generator`` not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.random  # which numpy leaves to its first use: 15 ms that the first batch would wait for
import numpy.typing as npt

from deeplake_loader.errors import InputError
from deeplake_loader.types import MAX_ORDINAL, ORDINAL_BITS

ORDER_VERSION = 1
"""Part of every stream state. A change of anything below that changes an order must raise it."""

LANES = 64
WINDOW_BLOCKS = 4
BLOCK_BYTES = 8 << 20
LEAST_BLOCKS = 4096
"""A set below 32 GB is cut into about this many blocks, smaller ones: with few blocks per lane every epoch would put
the same rows into the same batches, and in a set of that size the extra requests do not matter."""

Tail = Literal["drop", "pad", "short"]
Indices = npt.NDArray[np.int64]

_WORDS_PER_COUNT = 4  # of Philox 4x64
_BLOCKS, _ROWS = 0, 1  # which question a run of random words answers
_WORD = (1 << 64) - 1
_WORD_BITS = 63  # of an int64 that is not negative
_WHOLE = 1 << 17  # rows: windows of so few are small, and one by one they cost each batch 0.2 to 0.9 ms


def canonical(addresses: Sequence[Indices], keys: Sequence[Sequence[Any]] = ()) -> Indices | None:
    """The permutation that sorts rows by (file, ordinal) of the first address column, then by keys, then by the others.

    None when the rows are in that order already, which costs one pass to see. SQL gives rows without ORDER BY in any
    order it likes; the same query on the same data must give the same epoch.

    Takes 24 bytes per row while it sorts: address and row number are packed into one word, and words are sorted 8
    times as fast as an argsort; a set whose addresses repeat, or need more bits than that, costs a lexsort.

    >>> canonical([np.array([30, 10, 20])]).tolist()
    [1, 2, 0]
    """
    columns = [*addresses[:1], *map(_ranks, keys), *addresses[1:]]
    if not columns or _is_sorted(columns):
        return None
    found = _packed_order(columns[0])
    return np.lexsort(columns[::-1]).astype(np.int64, copy=False) if found is None else found


def _packed_order(column: Indices) -> Indices | None:
    """The permutation that sorts addresses without repeats; None where there are some, or one word is too small."""
    place_bits, ordinals = len(column).bit_length(), column & MAX_ORDINAL
    ordinal_bits = int(ordinals.max()).bit_length()
    words = column >> ORDINAL_BITS
    low = int(words.min())
    if (int(words.max()) - low).bit_length() + ordinal_bits + place_bits > _WORD_BITS:
        return None
    words -= low
    words <<= ordinal_bits
    words |= ordinals
    words <<= place_bits
    words |= np.arange(len(column))
    words.sort()
    if bool(((words[1:] >> place_bits) == (words[:-1] >> place_bits)).any()):
        return None
    words &= (1 << place_bits) - 1
    return words


def _is_sorted(columns: Sequence[Indices]) -> bool:
    tied: npt.NDArray[np.bool_] | None = None
    for column in columns:
        step = column[1:] > column[:-1]
        fall = column[1:] < column[:-1]
        if bool((fall if tied is None else fall & tied).any()):
            return False
        tied = ~step if tied is None else tied & ~step
        if not tied.any():
            return True
    return True


def _ranks(values: Sequence[Any]) -> Indices:
    """Integers that sort as the values do: NULLs first, then by type name, then by value."""
    if isinstance(values, np.ndarray) and values.dtype == np.int64:
        return values
    if set(map(type, values)) == {int} and min(values) >= -(1 << 63) and max(values) < 1 << 63:
        return np.array(values, np.int64)
    distinct = sorted(set(values), key=lambda v: (v is not None, type(v).__name__, v if v is not None else 0))
    number = {value: i for i, value in enumerate(distinct)}
    return np.fromiter((number[v] for v in values), np.int64, len(values))


def cut_blocks(addresses: Indices, lengths: Indices, *, block_bytes: int = BLOCK_BYTES) -> Indices:
    """First row of every block, and the row count at the end: blocks are runs of one file of about ``block_bytes``.

    Args:
        addresses: of the heaviest column, one per row, in canonical order; the file number is in their upper bits.
        lengths: bytes of each row.
    """
    count = len(addresses)
    if count == 0:
        return np.zeros(1, np.int64)
    weights = np.maximum(lengths, 1)
    ends = np.cumsum(weights)
    target = min(block_bytes, max(1, int(ends[-1]) // LEAST_BLOCKS))
    files = addresses >> ORDINAL_BITS
    starts = np.append(0, np.flatnonzero(files[1:] != files[:-1]) + 1)
    begins = np.subtract(ends, weights, out=weights)
    first = begins[starts]
    cuts = (np.append(first[1:], ends[-1]) - first - 1) // target  # inside each file, at multiples of the target
    number = np.arange(int(cuts.sum())) - np.repeat(np.cumsum(cuts) - cuts, cuts) + 1
    inside = np.searchsorted(begins, np.repeat(first, cuts) + number * target)
    return np.union1d(np.append(starts, count), inside).astype(np.int64, copy=False)


def random_words(count: int, *, seed: int, epoch: int, purpose: int, start: int = 0) -> npt.NDArray[np.uint64]:
    """``count`` uniform 64-bit words from number ``start`` on, a pure function of the arguments."""
    key = np.array([seed & _WORD, epoch & _WORD], np.uint64)  # as a list, words above 2**63 would pass through float
    before, skipped = divmod(start, _WORDS_PER_COUNT)
    philox = np.random.Philox(key=key, counter=np.array([before, 0, 0, purpose], np.uint64))
    return philox.random_raw(skipped + count)[skipped:]


@dataclass(frozen=True, slots=True)
class Order:
    """The order of every epoch of one row set.

    Args:
        starts: first row of every block, then the row count (`cut_blocks`).
        lanes: L; part of a stream's state.
        window_blocks: blocks of a lane that are shuffled among each other.
        shuffle: False gives the rows as they are.

    >>> Order(np.array([0, 2, 4, 6]), lanes=2).positions(seed=0, epoch=0).tolist()
    [4, 2, 0, 3, 1, 5]
    """

    starts: Indices
    lanes: int = LANES
    window_blocks: int = WINDOW_BLOCKS
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.lanes < 1 or self.window_blocks < 1:
            raise InputError(f"lanes and window_blocks must be at least 1, got {self.lanes} and {self.window_blocks}")

    @property
    def count(self) -> int:
        """Rows in an epoch."""
        return int(self.starts[-1])

    def epoch(self, seed: int, epoch: int) -> EpochOrder:
        """The order of one epoch, to be asked for any positions of it."""
        return EpochOrder(self, seed, epoch)

    def positions(self, seed: int, epoch: int) -> Indices:
        """The row number at every position of the epoch: each row once, 8 bytes each."""
        return self.epoch(seed, epoch).all()


class EpochOrder:
    """The order of one epoch, worked out where it is looked at.

    It keeps 24 bytes per block and 8 bytes per row of the windows in use: those of the lanes that are asked for, so a
    rank that reads R-th part of the lanes holds ``lanes / R * window_blocks`` blocks of row numbers, and never the
    epoch's; of up to 131,072 rows it holds the epoch's, 1 MB.
    """

    def __init__(self, order: Order, seed: int, epoch: int) -> None:
        self._order, self._seed, self._epoch = order, seed, epoch
        self._count, self._length = order.count, order.count // order.lanes
        self._held = np.zeros(0, np.int64)  # windows, ascending
        self._rows = np.zeros(0, np.int64)  # theirs, shuffled, one window behind the other
        self._at = np.zeros(0, np.int64)  # where each begins there
        self._whole: Indices | None = None  # of a small set, every position's row
        if order.shuffle and self._count:
            words = random_words(len(order.starts) - 1, seed=seed, epoch=epoch, purpose=_BLOCKS)
            blocks = np.argsort(words, kind="stable")
            self._first = order.starts[:-1][blocks]
            self._begins = np.append(0, np.cumsum(np.diff(order.starts)[blocks]))
            self._windows = np.append(self._window_starts(), self._count)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, places: Indices | slice | int) -> Indices:
        """As an array of the row numbers at all positions would give it."""
        if isinstance(places, slice):
            places = np.arange(*places.indices(self._count), dtype=np.int64)
        found = self.rows(np.atleast_1d(places))
        return found if np.ndim(places) else found[0]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self.all().astype(np.int64 if dtype is None else dtype, copy=False)

    def rows(self, positions: Indices) -> Indices:
        """The row number at each of these positions, in any order; what is near in the epoch is cheapest together."""
        if not self._order.shuffle or not len(positions):
            return np.asarray(positions, np.int64)
        if self._count <= _WHOLE:
            if self._whole is None:
                self._whole = self.all()
            return self._whole[positions]
        lane = positions % self._order.lanes
        in_lanes = positions < self._length * self._order.lanes
        dealt = np.where(in_lanes, lane * self._length + positions // self._order.lanes, positions)
        window = np.searchsorted(self._windows, dealt, "right") - 1
        place = np.searchsorted(self._held, window)
        if len(self._held) == 0 or bool((self._held.take(place, mode="clip") != window).any()):
            self._hold(np.unique(window))
            place = np.searchsorted(self._held, window)
        found: Indices = self._rows[self._at[place] + dealt - self._windows[window]]
        return found

    def all(self) -> Indices:
        """The row numbers at all positions: 40 bytes per row while they are made, 8 when done."""
        if not self._order.shuffle or not self._count:
            return np.arange(self._count, dtype=np.int64)
        rows, in_lanes = self._shuffled(0, len(self._windows) - 1), self._length * self._order.lanes
        body = rows[:in_lanes].reshape(self._order.lanes, self._length)
        return np.concatenate([body.T.reshape(-1), rows[in_lanes:]])

    def _window_starts(self) -> Indices:
        """The first dealt row of every shuffle window: lanes begin one, and so does every k-th block of a lane."""
        lanes = np.arange(self._order.lanes + 1) * self._length if self._length else np.zeros(1, np.int64)
        lanes = lanes[lanes < self._count]
        first = np.searchsorted(self._begins, lanes, "right") - 1  # the block that a lane begins in
        begins = self._begins[:-1]
        lane = np.searchsorted(lanes, begins, "right") - 1
        number = np.arange(len(begins)) - first[lane]
        return np.union1d(lanes, begins[number % self._order.window_blocks == 0])

    def _hold(self, needed: Indices) -> None:
        """Makes ``needed`` the windows that are held: those that are not yet are shuffled, neighbours in one go."""
        missing = np.setdiff1d(needed, self._held, assume_unique=True)
        sizes = np.diff(self._windows)[needed]
        parts = dict(zip(self._held.tolist(), np.split(self._rows, self._at[1:]), strict=True)) if len(self._at) else {}
        for run in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1) if len(missing) else ():
            first, last = int(run[0]), int(run[-1]) + 1
            cuts = self._windows[first + 1 : last] - self._windows[first]
            parts.update(zip(range(first, last), np.split(self._shuffled(first, last), cuts), strict=True))
        self._held, self._at = needed, np.cumsum(sizes) - sizes
        self._rows = np.concatenate([parts[w] for w in needed.tolist()])

    def _shuffled(self, first: int, last: int) -> Indices:
        """The rows of the windows ``first`` to ``last``, each in its shuffled order.

        One sort of packed words (window, random, place in the window): 10 times faster than a stable argsort. The
        random part keeps 32 bits or more up to a billion rows, and a tie falls to the place, so it is deterministic.
        """
        starts, begin, end = self._windows[first:last], int(self._windows[first]), int(self._windows[last])
        sizes = np.diff(self._windows[first : last + 1])
        place_bits = np.uint64(int(np.diff(self._windows).max()).bit_length())
        below = np.uint64(_WORD.bit_length() - (len(self._windows) - 1).bit_length())
        words = random_words(end - begin, seed=self._seed, epoch=self._epoch, purpose=_ROWS, start=begin)
        words >>= np.uint64(_WORD.bit_length()) - below + place_bits
        words <<= place_bits
        words |= (np.arange(begin, end) - np.repeat(starts, sizes)).astype(np.uint64)
        words |= np.repeat(np.arange(first, last, dtype=np.uint64), sizes) << below
        words.sort()
        words &= (np.uint64(1) << place_bits) - np.uint64(1)
        order = words.astype(np.int64) + np.repeat(starts - begin, sizes)
        found: Indices = self._dealt(begin, end)[order]
        return found

    def _dealt(self, begin: int, end: int) -> Indices:
        """The rows of the permuted blocks, one block behind the other: number ``begin`` to ``end``."""
        low, high = np.searchsorted(self._begins, [begin, end - 1], "right") - 1
        cuts = np.clip(self._begins[low : high + 2], begin, end)
        offset = self._first[low : high + 1] - self._begins[low : high + 1]
        return np.repeat(offset, np.diff(cuts)) + np.arange(begin, end)


@dataclass(frozen=True, slots=True)
class Share:
    """Which positions of each step are one rank's: how a global order becomes batches.

    Args:
        count: rows in an epoch.
        batch_size: rows of one rank's batch; a step takes ``batch_size * world_size`` positions.
        rank, world_size: this process among the data-parallel ones.
        lanes: the order's lanes, 1 for an unshuffled order.
        tail: what is done with the rows that do not fill the last step. "drop" leaves them out; "pad" fills the
            batches with repeats that are marked invalid; "short" deals them out evenly, and a rank that gets none
            repeats one, marked invalid. Every rank has the same number of batches under each of them.

    >>> share = Share(10, batch_size=2, rank=1, world_size=2, tail="pad")
    >>> share.take(4)[0].tolist(), share.take(8)[1].tolist()
    ([6, 7], [True, False])
    """

    count: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    lanes: int = 1
    tail: Tail = "short"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise InputError(f"rank {self.rank} of {self.world_size}: the rank must be 0 .. world_size - 1")
        if self.tail not in get_args(Tail):
            raise InputError(f"tail={self.tail!r} is none of {', '.join(get_args(Tail))}")
        if self.tail == "drop" and 0 < self.count < self.step:
            raise InputError(
                f"tail='drop' would leave nothing of {self.count} rows: one step takes {self.step} "
                f"(batch_size {self.batch_size} x {self.world_size} ranks); use tail='short' or 'pad'"
            )

    @property
    def step(self) -> int:
        """G, the positions that one step of all ranks takes."""
        return self.batch_size * self.world_size

    @property
    def repeats(self) -> bool:
        """Whether some batch may hold a row that it only repeats."""
        return self.tail == "pad" or (self.tail == "short" and self.world_size > 1)

    def steps(self, position: int = 0) -> int:
        """Steps from a position to the end of the epoch."""
        left = max(0, self.count - position)
        return left // self.step if self.tail == "drop" else -(-left // self.step)

    def cursor(self, epoch: int, position: int) -> tuple[int, int]:
        """(epoch, position) that comes next; a position with no step behind it is the next epoch's first."""
        return (epoch, position) if self.steps(position) else (epoch + 1, 0)

    def take(self, position: int) -> tuple[Indices, npt.NDArray[np.bool_]]:
        """This rank's positions of the step that begins at ``position``, and which of them are no repeats."""
        left = min(self.step, self.count - position)
        if left < self.step:
            return self._last(position, left)
        own = np.arange(position, position + self.step, dtype=np.int64)
        if self._by_lane:
            own = own[(own % self.lanes) * self.world_size // self.lanes == self.rank]
        else:
            own = own[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
        return own, np.ones(len(own), np.bool_)

    @property
    def _by_lane(self) -> bool:
        return self.world_size > 1 and self.lanes % self.world_size == 0 and self.step % self.lanes == 0

    def _last(self, position: int, left: int) -> tuple[Indices, npt.NDArray[np.bool_]]:
        """Of the last, unfilled step: every world_size-th row, so that the valid ones are spread over the ranks."""
        slots = np.arange(self.rank, self.step if self.tail == "pad" else left, self.world_size, dtype=np.int64)
        if not len(slots):
            return np.array([position], np.int64), np.zeros(1, np.bool_)
        return (position + slots) % self.count, slots < left
