"""Whose turn it is in a mix: exact shares everywhere, every source's epochs without a gap, the same for any ranks."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplake_loader.errors import InputError
from deeplake_loader.order import Order, Share, Tail
from deeplake_loader.stream.buckets import BinSchedule, Bucketed
from deeplake_loader.stream.mixing import MixedBins, MixedRows, own_epochs, pass_counts, turns
from deeplake_loader.stream.picks import Limited, Ordered
from deeplake_loader.stream.schedule import RowSchedule, Schedule, Step
from deeplake_loader.stream.weights import weighted


def ordered(count: int, seed: int = 0) -> Ordered:
    starts = np.unique(np.append(np.arange(0, count, 3), count)).astype(np.int64)
    return Ordered(Order(starts, lanes=4), seed)


COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=4)


@st.composite
def mixed_rows(draw: Any) -> MixedRows:
    sizes, units = draw(COUNTS), draw(st.lists(st.integers(1, 60), min_size=4, max_size=4))
    pickers = tuple(ordered(size, seed) for seed, size in enumerate(sizes))
    return MixedRows(pickers, tuple(range(len(sizes))), tuple(units[: len(sizes)]), draw(st.integers(0, 2**64)))


# -- shares ------------------------------------------------------------------------------------------------------------


@given(COUNTS, st.data())
def test_a_pass_ends_with_its_first_or_its_last_stream(counts: list[int], data: st.DataObject) -> None:
    weight = st.fractions(Fraction(1, 3), 3, max_denominator=7)
    weights = data.draw(st.lists(weight, min_size=len(counts), max_size=len(counts)))
    for stop in ("first", "cycle"):
        try:
            taken = pass_counts(counts, weights, stop)  # type: ignore[arg-type]
        except InputError:
            assert stop == "first"  # some stream would get less than one row
            continue
        epochs = [Fraction(n, count) for n, count in zip(taken, counts, strict=True)]
        if stop == "first":
            assert max(epochs) == 1
        else:
            assert min(epochs) == 1
        total = sum(weights)
        for n, weight_of in zip(taken, weights, strict=True):
            assert abs(n - sum(taken) * weight_of / total) <= 2


def test_a_number_of_rows_is_split_by_weight() -> None:
    assert pass_counts([5, 5, 5], [1, 1, 1], 10) == (4, 3, 3)
    assert pass_counts([5, 1000], [Fraction(0.25), Fraction(0.75)], 1000) == (250, 750)
    assert pass_counts([30, 50], [30, 50], "first") == (30, 50)
    for stop in (0, -1, True, "last", 2.5, None):
        with pytest.raises(InputError, match="is none of 'first', 'cycle'"):
            pass_counts([1], [1], stop)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"stream 1 has so little weight that a pass of 10"):
        pass_counts([10, 10], [1000, 1], "first")
    with pytest.raises(InputError, match="stream 1 has no rows"):
        pass_counts([3, 0], [1, 1], "first")


@given(st.lists(st.integers(1, 50), min_size=1, max_size=5), st.integers(0, 2**64), st.integers(0, 50))
def test_every_stretch_of_a_pass_has_every_streams_share(counts: list[int], seed: int, number: int) -> None:
    order = turns(counts, seed=seed, number=number)
    total, of = sum(counts), np.repeat(np.arange(len(counts)), counts)
    assert sorted(order.tolist()) == list(range(total))
    for stream, count in enumerate(counts):
        own = order[of[order] == stream]
        assert own.tolist() == sorted(own.tolist())  # a source's units keep their order
        seen = np.cumsum(of[order] == stream)
        ideal = np.arange(1, total + 1) * count / total
        assert np.abs(seen - ideal).max() <= len(counts)


def test_passes_differ_in_their_turns_and_a_pass_does_not() -> None:
    first, second = (turns([30, 70], seed=1, number=p).tolist() for p in (0, 1))
    assert first != second and first == turns([30, 70], seed=1, number=0).tolist()
    assert first != turns([30, 70], seed=2, number=0).tolist()


# -- epochs of the sources ---------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_stretches_go_on_where_the_last_one_ended(count: int, units: list[int]) -> None:
    seen, first = [], 0
    for n in units:
        seen += [(e, p) for e, start, stop in own_epochs(first, n, count) for p in range(start, stop)]
        first += n
    assert seen == [divmod(i, count) for i in range(first)]


@settings(max_examples=60)
@given(mixed_rows())
def test_every_source_runs_through_its_own_epochs_in_its_own_order(mixed: MixedRows) -> None:
    seen: dict[int, list[tuple[int, int]]] = {s: [] for s in range(len(mixed.pickers))}
    for number in range(3):
        picks = mixed.picks(number)
        assert len(picks) == mixed.count and picks.sources is not None and picks.epochs is not None
        counts = np.bincount(picks.sources, minlength=len(mixed.counts))
        assert tuple(counts.tolist()) == mixed.counts
        for s, e, r in zip(picks.sources, picks.epochs, np.asarray(picks.rows), strict=True):
            seen[int(s)].append((int(e), int(r)))
    for s, picker in enumerate(mixed.pickers):
        epochs = range(seen[s][-1][0] + 1)
        alone = [(e, r) for e in epochs for r in np.asarray(picker.picks(e).rows).tolist()]
        assert seen[s] == alone[: len(seen[s])]


def test_a_mix_in_a_mix_keeps_its_sources_apart() -> None:
    inner = MixedRows((ordered(6, 1), ordered(9, 2)), (0, 1), (6, 9), 3)
    outer = MixedRows((ordered(10, 4), inner), (0, 1), (10, 15), 5)
    picks = outer.picks(0)
    assert picks.sources is not None
    rows = np.asarray(picks.rows)
    for source, count in ((0, 10), (1, 6), (2, 9)):
        assert sorted(rows[picks.sources == source].tolist()) == list(range(count))
    alone = inner.picks(0)
    assert alone.sources is not None
    assert (rows[picks.sources > 0] == alone.rows).all()
    assert (picks.sources[picks.sources > 0] == alone.sources + 1).all()


# -- ranks, stops ------------------------------------------------------------------------------------------------------


def own(step: Step) -> list[tuple[int, int]]:
    keep = slice(None) if step.valid is None else step.valid
    assert step.sources is not None
    return list(zip(step.sources[keep].tolist(), step.rows[keep].tolist(), strict=True))


def remaining(schedules: list[Schedule], cursor: tuple[int, int]) -> list[list[tuple[int, int]]]:
    """What each step of all ranks holds, to the end of the epoch; every rank has as many."""
    steps = [list(schedule.batches(cursor)) for schedule in schedules]
    assert len({len(s) for s in steps}) == 1 and len(steps[0]) == schedules[0].steps(cursor)
    assert len({tuple(step.after for step in s) for s in steps}) == 1
    return [[pair for s in steps for pair in own(s[i])] for i in range(len(steps[0]))]


@settings(max_examples=60)
@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 4), st.sampled_from(["short", "pad"]), st.integers(0, 3))
def test_a_stopped_mix_goes_on_with_any_ranks(stop: int, before: int, after: int, tail: Tail, number: int) -> None:
    mixed = MixedRows((ordered(23, 1), ordered(40, 2)), (0, 1), (23, 31), 9)

    def ranks(world: int) -> list[Schedule]:
        return [RowSchedule(mixed, Share(mixed.count, 4, r, world, 1, tail)) for r in range(world)]

    first = ranks(before)
    steps = [list(s.batches((number, 0))) for s in first]
    stop %= len(steps[0])
    cursor = steps[0][stop - 1].after if stop else (number, 0)
    seen = [pair for s in steps for step in s[:stop] for pair in own(step)]
    seen += [pair for step in remaining(ranks(after), cursor) for pair in step]
    picks = mixed.picks(number)
    assert picks.sources is not None
    assert sorted(seen) == sorted(zip(picks.sources.tolist(), np.asarray(picks.rows).tolist(), strict=True))


@settings(max_examples=60)
@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
def test_bins_of_a_mix_are_each_of_one_source_and_go_on_with_any_ranks(
    stop: int, before: int, after: int, number: int
) -> None:
    binners = (Bucketed(ordered(23, 1), 4), Bucketed(ordered(40, 2), 6, np.arange(40) % 3))
    counts = tuple(b.count or 0 for b in binners)
    mixed = MixedBins(binners, (0, 1), (counts[0], counts[1] + 2), 7)

    def ranks(world: int) -> list[Schedule]:
        return [BinSchedule(mixed, r, world) for r in range(world)]

    steps = [list(s.batches((number, 0))) for s in ranks(before)]
    assert all(len(set(step.sources.tolist())) == 1 for s in steps for step in s if step.sources is not None)
    stop %= len(steps[0])
    cursor = steps[0][stop - 1].after if stop else (number, 0)
    found = [tuple(own(step)) for s in steps for step in s[:stop]]
    found += [tuple(own(step)) for s in ranks(after) for step in s.batches(cursor)]
    whole = [tuple(own(step)) for step in BinSchedule(mixed).batches((number, 0))]
    assert sorted(filter(None, found)) == sorted(whole) and len(whole) == mixed.count


def test_limits_and_weights_may_be_mixed() -> None:
    parts = (Limited(ordered(50), 7), weighted(np.arange(9), (), count=20, seed=1))
    picks = MixedRows(parts, (0, 1), (7, 20), 0).picks(1)
    assert picks.sources is not None and picks.epochs is not None
    rows = np.asarray(picks.rows)
    assert (rows[picks.sources == 0] == parts[0].picks(1).rows).all()
    assert (rows[picks.sources == 1] == parts[1].picks(1).rows).all()
    assert (picks.epochs[picks.sources == 1] == parts[1].picks(1).epochs).all()


def test_the_identity_tells_mixes_apart() -> None:
    base = MixedRows((ordered(9), ordered(8)), (0, 1), (9, 8), 0)
    others = [
        MixedRows((ordered(9), ordered(8)), (0, 1), (9, 8), 1),
        MixedRows((ordered(9), ordered(8)), (0, 1), (9, 7), 0),
        MixedRows((ordered(9), ordered(8, 1)), (0, 1), (9, 8), 0),
        MixedRows((Limited(ordered(9), 3), ordered(8)), (0, 1), (9, 8), 0),
    ]
    assert len({repr(m.identity()) for m in [base, *others]}) == 5
