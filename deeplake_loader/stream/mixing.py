"""Several streams as one: `mix`, and the pure function that says whose turn it is.

A pass over a mix takes a fixed number of units (rows, or batches) of every source: its share of the pass, by weight.
The k-th of n units of a source has its place at a random point of the k-th n-th part of the pass, and the units of all
sources are sorted by it. So any stretch of the pass has every source's share of it, to within one unit a source. Each
source goes through its own epochs without a gap: pass p takes its units p * n to (p + 1) * n - 1, counted over epochs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from hashlib import blake2b
from typing import Any, Literal

import numpy as np

from deeplake_loader.errors import InputError, TypeMismatchError
from deeplake_loader.order import random_words
from deeplake_loader.stream.buckets import Binner, Bins, BinSchedule, Bucketed
from deeplake_loader.stream.collate import Shaping
from deeplake_loader.stream.columns import Column, HeldVectors, Scalars, Vectors
from deeplake_loader.stream.dataset import Stream
from deeplake_loader.stream.options import Options, whole
from deeplake_loader.stream.picks import Indices, Picker, Picks, concatenated
from deeplake_loader.stream.schedule import RowSchedule
from deeplake_loader.stream.source import Source

MIX_VERSION = 1
"""Part of the state of every mix. A change of anything below that changes a turn must raise it."""

_TURNS = 17  # which question the random words answer; order.py and weights.py have their own

Stop = Literal["first", "cycle"] | int
_Identity = dict[str, int | str | bool | float]


def mix(
    streams: Mapping[Stream, float] | Iterable[tuple[Stream, float]] | Sequence[Stream],
    *,
    seed: int = 0,
    stop: Stop = "first",
    batches: Literal["mixed", "single"] = "mixed",
    names: Sequence[str] | None = None,
) -> Stream:
    """One stream over several: of other queries, tables or stores. It has batch size, ranks and options of the first.

    Every source keeps its own order, seed, limit and weights, and goes through its own epochs: each row once in each,
    also over the end of a pass. Which source a position is of is a pure function of (seed, pass, position): the mix is
    as deterministic, elastic and resumable as its parts. Batches have ``_source``, (N,) int64: the number of each
    row's stream.

    Args:
        streams: each with its weight, above 0; without weights each has as much weight as it has rows. Shares of a pass
            are the weights' to within one row. A mix may be a part of another one.
        seed: of the turns and of augmentation.
        stop: what a pass is: "first" ends it when the first stream has given all its rows; "cycle" when the last one
            has, shorter ones begin again meanwhile; a number is that many rows.
        batches: "mixed" batches hold rows of several streams, whose columns must agree (``_weight``, which an option
            adds, is left out unless all have it); each of "single" is of one stream, whose columns may be its own, and
            weights count batches (buckets and batch sizes may differ).
        names: one per stream: ``_source`` is then a list of names.

    Raises:
        InputError: a weight, ``stop`` or option that does not fit, with what it should be.
        TypeMismatchError: streams whose columns cannot be joined, naming the difference.

    >>> both = deeplake.mix({photos: 0.7, drawings: 0.3}, seed=1, stop="cycle")         # doctest: +SKIP
    """
    parts, weights = _pairs(streams)
    if batches not in ("mixed", "single"):
        raise InputError(f"batches={batches!r} is none of 'mixed', 'single'")
    _check_alike(parts)
    first = parts[0]._options
    shaping = replace(first.shaping, names=_checked_names(names, parts))
    options = replace(first, seed=whole("seed", seed), shaping=shaping)
    firsts = np.cumsum([0, *(len(part._sources) for part in parts)]).tolist()[:-1]
    sources = tuple(source for part in parts for source in part._sources)
    if batches == "single":
        return Stream(sources, _of_bins(parts, weights, firsts, options.seed, stop), options)
    sources = _without_measures(sources)
    _check_columns(sources)
    return Stream(sources, _of_rows(parts, weights, firsts, options.seed, stop), options)


def _of_rows(
    parts: Sequence[Stream], weights: Sequence[Fraction] | None, firsts: list[int], seed: int, stop: Stop
) -> RowSchedule:
    pickers, shares = [], []
    for number, part in enumerate(parts):
        schedule = part._schedule
        if not isinstance(schedule, RowSchedule):
            raise InputError(f"stream {number} makes its batches by bucket or budget; mix it with batches='single'")
        pickers.append(schedule.picker)
        shares.append(schedule.share)
    if len({share.batch_size for share in shares}) > 1:
        sizes = ", ".join(str(share.batch_size) for share in shares)
        raise InputError(f"the streams have batch sizes {sizes}; rows of several in one batch need one size")
    counts = [picker.count for picker in pickers]
    picker = MixedRows(tuple(pickers), tuple(firsts), pass_counts(counts, weights or counts, stop), seed)
    return RowSchedule(picker, replace(shares[0], count=picker.count, lanes=1))


def _of_bins(
    parts: Sequence[Stream], weights: Sequence[Fraction] | None, firsts: list[int], seed: int, stop: Stop
) -> BinSchedule:
    binners: list[Binner] = []
    counts: list[int] = []
    for number, part in enumerate(parts):
        schedule = part._schedule
        if isinstance(schedule, RowSchedule):
            binner: Binner = Bucketed(schedule.picker, schedule.share.batch_size)
        elif isinstance(schedule, BinSchedule):
            binner = schedule.binner
        else:
            raise InputError(f"stream {number} has a {type(schedule).__name__}, which cannot be mixed")
        if binner.count is None:
            raise InputError(
                f"stream {number} has another number of batches in every epoch (a budget, or buckets with weights or a "
                "limit of rows), so its share cannot be counted; mix streams of fixed batches"
            )
        binners.append(binner)
        counts.append(binner.count)
    first = parts[0]._schedule
    tail = first.share.tail if isinstance(first, RowSchedule) else first.tail  # type: ignore[attr-defined]
    mixed = MixedBins(tuple(binners), tuple(firsts), pass_counts(counts, weights or counts, stop), seed)
    return BinSchedule(mixed, first.rank, first.world_size, tail)


# -- whose turn it is ----------------------------------------------------------------------------------------------


def pass_counts(counts: Sequence[int], weights: Sequence[Fraction | int], stop: Stop) -> tuple[int, ...]:
    """Units that one pass takes of each source, of ``counts`` in an epoch of each: in proportion to the weights.

    >>> pass_counts([10, 100], [1, 2], "first"), pass_counts([10, 100], [1, 2], "cycle"), pass_counts([9, 9], [1, 2], 8)
    ((10, 20), (50, 100), (3, 5))
    """
    for number, count in enumerate(counts):
        if count < 1:
            raise InputError(f"stream {number} has no rows; leave it out of the mix")
    per_weight = [Fraction(count) / weight for count, weight in zip(counts, weights, strict=True)]
    if stop == "first":
        shares = [min(per_weight) * weight for weight in weights]
    elif stop == "cycle":
        shares = [max(per_weight) * weight for weight in weights]
    elif isinstance(stop, int) and not isinstance(stop, bool) and stop >= 1:
        shares = [Fraction(stop) * weight / sum(weights) for weight in weights]
    else:
        raise InputError(f"stop={stop!r} is none of 'first', 'cycle' and a number of rows")
    taken = _rounded(shares)
    for number, units in enumerate(taken):
        if units < 1:
            raise InputError(
                f"stream {number} has so little weight that a pass of {sum(taken)} rows or batches would hold none of "
                "it; raise its weight or the length of a pass (stop='cycle' or a number)"
            )
    return taken


def _rounded(shares: Sequence[Fraction]) -> tuple[int, ...]:
    """Whole numbers with the rounded sum of the shares, each within one of its share: largest remainders first."""
    taken = [int(share) for share in shares]
    missing = round(sum(shares)) - sum(taken)
    by_remainder = sorted(range(len(shares)), key=lambda i: (taken[i] - shares[i], i))
    for i in by_remainder[:missing]:
        taken[i] += 1
    return tuple(taken)


def turns(counts: Sequence[int], *, seed: int, number: int) -> Indices:
    """Where pass ``number`` takes its units from: indices into all sources' units, put one behind the other.

    >>> (turns([2, 4], seed=0, number=0) >= 2).astype(int).tolist()
    [1, 1, 0, 1, 0, 1]
    """
    total = sum(counts)
    words = random_words(total, seed=seed, epoch=number, purpose=_TURNS)
    uniform = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    sizes = np.repeat(np.array(counts, np.int64), counts)
    within = np.concatenate([np.arange(count) for count in counts])
    return np.argsort((within + uniform) / sizes, kind="stable").astype(np.int64, copy=False)


def own_epochs(first: int, units: int, count: int) -> list[tuple[int, int, int]]:
    """(epoch, start, stop) of the stretches of a source's epochs that units first .. first + units - 1 fill.

    >>> own_epochs(8, 15, 10)
    [(0, 8, 10), (1, 0, 10), (2, 0, 3)]
    """
    stretches = []
    while units:
        epoch, start = divmod(first, count)
        taken = min(units, count - start)
        stretches.append((epoch, start, start + taken))
        first, units = first + taken, units - taken
    return stretches


@dataclass(frozen=True, slots=True)
class MixedRows:
    """Rows of several pickers in one order.

    Args:
        firsts: the number that each picker's source 0 has among the sources of the mix.
        counts: rows of each in a pass.
    """

    pickers: tuple[Picker, ...]
    firsts: tuple[int, ...]
    counts: tuple[int, ...]
    seed: int = 0

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def lanes(self) -> int:
        return 1

    def picks(self, epoch: int) -> Picks:
        parts: list[Picks] = []
        epochs: list[int] = []
        firsts: list[int] = []
        for picker, first, units in zip(self.pickers, self.firsts, self.counts, strict=True):
            for own, start, stop in own_epochs(epoch * units, units, picker.count):
                parts.append(picker.picks(own).take(slice(start, stop)))
                epochs.append(own)
                firsts.append(first)
        return concatenated(parts, epochs, firsts).take(turns(self.counts, seed=self.seed, number=epoch))

    def identity(self) -> _Identity:
        return _identity("rows", [picker.identity() for picker in self.pickers], self.counts, self.seed)


@dataclass(frozen=True, slots=True)
class MixedBins:
    """Bins of several binners in one order; fields as of `MixedRows`."""

    binners: tuple[Binner, ...]
    firsts: tuple[int, ...]
    counts: tuple[int, ...]
    seed: int = 0

    @property
    def count(self) -> int | None:
        return sum(self.counts)

    def bins(self, epoch: int) -> Bins:
        parts: list[Bins] = []
        epochs: list[int] = []
        firsts: list[int] = []
        for binner, first, units in zip(self.binners, self.firsts, self.counts, strict=True):
            for own, start, stop in own_epochs(epoch * units, units, binner.count or 0):
                parts.append(binner.bins(own).take(np.arange(start, stop)))
                epochs.append(own)
                firsts.append(first)
        picks = concatenated([part.picks for part in parts], epochs, firsts)
        shifts = np.cumsum([0, *(len(part.picks) for part in parts)])
        together = Bins(
            picks,
            np.concatenate([part.starts + shift for part, shift in zip(parts, shifts, strict=False)]),
            np.concatenate([part.stops + shift for part, shift in zip(parts, shifts, strict=False)]),
            np.concatenate([part.full for part in parts]),
            np.concatenate([part.sizes for part in parts]),
        )
        return together.take(turns(self.counts, seed=self.seed, number=epoch))

    def identity(self) -> _Identity:
        return _identity("bins", [binner.identity() for binner in self.binners], self.counts, self.seed)


def _identity(unit: str, parts: list[_Identity], counts: tuple[int, ...], seed: int) -> _Identity:
    digest = blake2b(repr((unit, [sorted(part.items()) for part in parts], counts)).encode(), digest_size=16)
    return {"order_version": MIX_VERSION, "seed": seed, "mix": digest.hexdigest()}


# -- what may be mixed ---------------------------------------------------------------------------------------------


def _pairs(streams: object) -> tuple[list[Stream], list[Fraction] | None]:
    """The streams and their weights, None where none are given."""
    if isinstance(streams, Stream) or not isinstance(streams, Iterable):
        raise InputError(f"mix() takes {{stream: weight}} or (stream, weight) pairs, got {streams!r}")
    pairs: list[Any] = list(streams.items() if isinstance(streams, Mapping) else streams)
    if not pairs:
        raise InputError("mix() needs at least one stream")
    if all(isinstance(pair, Stream) for pair in pairs):
        return pairs, None
    parts: list[Stream] = []
    weights: list[Fraction] = []
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], Stream)):
            raise InputError(f"mix() takes {{stream: weight}} or (stream, weight) pairs, got {pair!r}")
        parts.append(pair[0])
        weights.append(_weight(pair[1], len(weights)))
    return parts, weights


def _weight(value: Any, number: int) -> Fraction:
    try:
        weight = Fraction(value)
    except (TypeError, ValueError, OverflowError):
        weight = Fraction(0)
    if weight <= 0 or isinstance(value, (bool, str)):
        raise InputError(f"stream {number} has weight {value!r}; weights are finite numbers above 0")
    return weight


def _checked_names(names: Sequence[str] | None, parts: Sequence[Stream]) -> tuple[str, ...] | None:
    """A name per source of the mix: a mix inside a mix gives its name to all of its sources."""
    if names is None:
        return None
    if isinstance(names, str) or not isinstance(names, Sequence) or len(names) != len(parts):
        raise InputError(f"names={names!r}: expected {len(parts)}, one per stream")
    return tuple(name for name, part in zip(names, parts, strict=True) for _ in part._sources)


def _check_alike(parts: Sequence[Stream]) -> None:
    first = parts[0]
    for number, part in enumerate(parts):
        ranks, expected = [(s._schedule.rank, s._schedule.world_size) for s in (part, first)]
        if ranks != expected:
            raise InputError(
                f"stream {number} is for rank {ranks[0]} of {ranks[1]}, the first one for rank {expected[0]} of "
                f"{expected[1]}; make all streams of a mix with the same ranks"
            )
        for field in fields(Options):
            own, wanted = (_comparable(getattr(s._options, field.name)) for s in (part, first))
            if field.name != "seed" and own != wanted:
                raise InputError(
                    f"stream {number} has {field.name}={own!r} and the first one {wanted!r}; give all streams of a mix "
                    "the same, and map() the mix"
                )


def _comparable(option: Any) -> Any:
    return replace(option, names=None) if isinstance(option, Shaping) else option


def _without_measures(sources: Sequence[Source]) -> tuple[Source, ...]:
    """The sources without the columns that `Database.stream` added for its options, where not all have them."""
    common = set.intersection(*({column.name for column in source.columns} for source in sources))
    odd = {"_weight", "_bucket", "_cost"} - common
    return tuple(replace(s, columns=tuple(c for c in s.columns if c.name not in odd)) for s in sources)


def _check_columns(sources: Sequence[Source]) -> None:
    """Whether rows of these sources fit into one batch."""
    first = {column.name: _kind(column) for column in sources[0].columns}
    for number, source in enumerate(sources[1:], start=1):
        own = {column.name: _kind(column) for column in source.columns}
        if own.keys() != first.keys():
            odd = ", ".join(sorted(own.keys() ^ first.keys()))
            raise TypeMismatchError(
                f"stream {number} and the first one differ in columns {odd}; name them alike with AS, or use "
                "batches='single'"
            )
        for name, found in own.items():
            if found != first[name] and not _listed(found, first[name]):
                raise TypeMismatchError(
                    f"column {name!r} of stream {number} holds {found}, of the first one {first[name]}; CAST it, give "
                    "it the same transform, or use batches='single'"
                )


def _listed(*kinds: str) -> bool:
    """Whether SQL values of these kinds come as a list of Python values, which may differ."""
    return "values" in kinds and all(kind == "values" or kind.endswith(" numbers") for kind in kinds)


def _kind(column: Column) -> str:
    """What a column's items are; "values" go with everything of SQL, as they come in a list."""
    if isinstance(column, Scalars):
        return f"{column.values.dtype} numbers" if isinstance(column.values, np.ndarray) else "values"
    if isinstance(column, Vectors | HeldVectors):
        return f"vectors of {column.row_bytes} bytes"
    return "bytes" if column.transform is None else repr(column.transform)
