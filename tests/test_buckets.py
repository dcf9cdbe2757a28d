"""Bins against a plain walk over the order: each row joins its bucket's open bin."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplake_loader.errors import InputError
from deeplake_loader.order import Order, Tail
from deeplake_loader.stream.buckets import (
    BinSchedule,
    Bucketed,
    Budget,
    LimitedBins,
    bucket_codes,
    checked_costs,
)
from deeplake_loader.stream.picks import Limited, Ordered
from deeplake_loader.stream.weights import weighted


def ordered(count: int, seed: int = 0) -> Ordered:
    starts = np.unique(np.append(np.arange(0, count, 3), count)).astype(np.int64)
    return Ordered(Order(starts, lanes=4), seed)


def walked(order: list[int], binner: Bucketed) -> list[list[int]]:
    """The bins, by the definition."""
    runs: dict[int, list[list[int]]] = {}
    done: list[list[int]] = []
    done_at: list[int] = []
    seen: dict[int, int] = {}
    for place, row in enumerate(order):
        bucket = 0 if binner.buckets is None else int(binner.buckets[row])
        run = runs.setdefault(bucket, [[]])
        seen[row] = place
        if not fits([*run[-1], row], binner):
            if len(run) == binner.group:  # its last bin is full by the row that does not fit
                done += run
                done_at += [seen[run[-1][-1]]] * len(run)
                run[:] = []
            run.append([])
        run[-1].append(row)
        if len(run[-1]) == binner.batch_size and len(run) == binner.group:
            done += run
            done_at += [place] * len(run)
            runs[bucket] = [[]]
    order_of_done = sorted(range(len(done)), key=lambda i: (done_at[i], i))
    rest = sorted((run for run in runs.values() if run[0]), key=lambda run: seen[[b for b in run if b][-1][-1]])
    return [done[i] for i in order_of_done] + [b for run in rest for b in run if b]


def fits(rows: list[int], binner: Bucketed) -> bool:
    if len(rows) > binner.batch_size:
        return False
    if binner.costs is None:
        return True
    costs = binner.costs[rows]
    return bool((len(rows) * costs.max() if binner.padded else costs.sum()) <= binner.limit)


@st.composite
def binners(draw: Any, *, budget: bool | None = None) -> Bucketed:
    count = draw(st.integers(1, 60))
    buckets = draw(st.none() | st.lists(st.integers(0, 3), min_size=count, max_size=count))
    if buckets is not None:
        buckets = np.unique(buckets, return_inverse=True)[1]
    with_budget = draw(st.booleans()) if budget is None else budget
    costs = np.array(draw(st.lists(st.integers(0, 20), min_size=count, max_size=count))) if with_budget else None
    return Bucketed(
        ordered(count, draw(st.integers(0, 5))), draw(st.integers(1, 7)), buckets, costs,
        limit=draw(st.integers(20, 60)), padded=draw(st.booleans()), group=draw(st.integers(1, 3)),
    )  # fmt: skip


def rows_of(binner: Any, epoch: int) -> list[list[int]]:
    bins = binner.bins(epoch)
    return [np.asarray(bins.picks.rows)[a:b].tolist() for a, b in zip(bins.starts, bins.stops, strict=True)]


@settings(max_examples=300)
@given(binners(), st.integers(0, 3))
def test_bins_are_those_of_a_walk_over_the_order(binner: Bucketed, epoch: int) -> None:
    order = np.asarray(binner.picker.picks(epoch).rows).tolist()
    assert rows_of(binner, epoch) == walked(order, binner)
    if binner.count is not None:
        assert binner.count == len(rows_of(binner, epoch))


@given(binners())
def test_bins_keep_bucket_budget_and_size(binner: Bucketed) -> None:
    found = rows_of(binner, 0)
    assert sorted(r for b in found for r in b) == list(range(binner.picker.count))
    for rows in found:
        assert fits(rows, binner)
        assert binner.buckets is None or len(set(binner.buckets[rows].tolist())) == 1


@settings(max_examples=60)
@given(binners(), st.integers(1, 4), st.sampled_from(["short", "pad"]), st.integers(0, 1000))
def test_bins_are_the_same_for_every_world_size_also_after_a_stop(
    binner: Bucketed, world: int, tail: Tail, stop: int
) -> None:
    """Some steps of one rank, the rest on ``world`` ranks: every bin once, marked repeats apart, in equal counts."""
    one = BinSchedule(binner, tail=tail)
    before = list(one.batches((0, 0)))[: stop % (one.steps((0, 0)) + 1)]
    cursor = before[-1].after if before else (0, 0)
    ranks = [BinSchedule(binner, rank, world, tail) for rank in range(world)]
    after = [list(s.batches(cursor)) for s in ranks] if cursor[0] == 0 else []
    assert len({len(steps) for steps in after}) <= 1
    assert len({step.after for steps in after for step in steps[-1:]}) <= 1
    seen = [own(step) for step in before] + [
        own(steps[i]) for i in range(len(after[0]) if after else 0) for steps in after
    ]
    assert [rows for rows in seen if rows] == rows_of(binner, 0)


def own(step: Any) -> list[int]:
    rows: list[int] = (step.rows if step.valid is None else step.rows[step.valid]).tolist()
    return rows


@given(binners(budget=False), st.integers(1, 4))
def test_pad_fills_every_batch_and_drop_leaves_out_what_is_not_full(binner: Bucketed, world: int) -> None:
    padded = [step for r in range(world) for step in BinSchedule(binner, r, world, "pad").batches((0, 0))]
    assert {len(step.rows) for step in padded} == {binner.batch_size}
    dropped = [BinSchedule(binner, r, world, "drop") for r in range(world)]
    steps = [step for s in dropped for step in s.batches((0, 0))]
    assert {len(step.rows) for step in steps} <= {binner.batch_size}
    assert all(step.valid is None for step in steps)
    full = sum(len(b) == binner.batch_size for b in rows_of(binner, 0))
    assert len(steps) == full // world * world and dropped[0].steps((0, 0)) == full // world


@given(binners(), st.integers(1, 5), st.integers(1, 3))
def test_the_shares_of_workers_make_up_the_whole(binner: Bucketed, workers: int, world: int) -> None:
    schedule = BinSchedule(binner, 0, world)
    whole = [(step.rows.tolist(), step.after) for step in schedule.batches((0, 0))]
    shares = [list(schedule.batches((0, 0), first=w, stride=workers)) for w in range(workers)]
    for j, expected in enumerate(whole):
        step = shares[j % workers][j // workers]
        assert (step.rows.tolist(), step.after) == expected
    assert schedule.steps((0, 0)) == len(whole) == sum(map(len, shares))


def test_bins_of_one_bucket_run_together_so_that_all_ranks_of_a_step_have_it() -> None:
    buckets = np.arange(400) % 3
    binner = Bucketed(ordered(400), 5, buckets, group=4)
    bins = rows_of(binner, 0)
    for step in range(len(bins) // 4 - 3):  # the last runs are unfinished
        assert len({int(buckets[b[0]]) for b in bins[4 * step : 4 * step + 4]}) == 1


def test_a_limit_takes_the_first_bins_and_following_wraps() -> None:
    binner = LimitedBins(Bucketed(ordered(50), 4), 3)
    assert rows_of(binner, 1) == rows_of(binner.inner, 1)[:3] and binner.count == 3
    schedule = BinSchedule(binner, 0, 2)
    assert schedule.steps((0, 0)) == 2 and schedule.following((0, 4)) == (1, 0)
    assert schedule.locate(0, 1) == (0, rows_of(binner, 0)[1][0])
    assert binner.identity() != binner.inner.identity()
    with pytest.raises(InputError, match="at least 1 batch"):
        LimitedBins(binner, 0)


def test_limits_and_weights_below_buckets_keep_counts_right() -> None:
    buckets = np.arange(40) % 3
    for picker in (Limited(ordered(40), 17), weighted(np.ones(40), (), count=33, seed=1)):
        binner = Bucketed(picker, 4, buckets)
        schedule = BinSchedule(binner)
        for epoch in range(3):
            assert schedule.steps((epoch, 0)) == len(rows_of(binner, epoch)) == len(list(schedule.batches((epoch, 0))))


def test_a_schedule_is_small_as_a_pickle_and_gives_the_same() -> None:
    schedule = BinSchedule(Bucketed(ordered(30), 4, np.arange(30) % 2, np.arange(30), limit=40))
    schedule.steps((0, 0))
    copy = pickle.loads(pickle.dumps(schedule))
    assert [s.rows.tolist() for s in copy.batches((1, 0))] == [s.rows.tolist() for s in schedule.batches((1, 0))]
    assert copy.identity() == schedule.identity()


def test_the_identity_tells_bins_apart() -> None:
    base = Bucketed(ordered(30), 4, np.arange(30) % 2)
    others = [
        Bucketed(ordered(30), 5, np.arange(30) % 2), Bucketed(ordered(30), 4, np.arange(30) % 3),
        Bucketed(ordered(30), 4), Bucketed(ordered(30), 4, np.arange(30) % 2, group=2),
        Bucketed(ordered(30), 4, np.arange(30) % 2, np.ones(30, np.int64), limit=9),
    ]  # fmt: skip
    found = [repr(sorted(b.identity().items())) for b in [base, *others]]
    assert len(set(found)) == 6
    assert BinSchedule(base, tail="drop").identity() != BinSchedule(base).identity()


def test_bins_of_buckets_are_planned_without_a_step_per_row() -> None:
    """Counted, not timed: without a budget no function is called for each row or bin."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    binner = Bucketed(Ordered(Order(np.array([0, 100_000]), lanes=1)), 8, np.arange(100_000) % 7)
    sys.setprofile(count)
    try:
        binner.bins(0)
    finally:
        sys.setprofile(None)
    assert calls < 5_000


@pytest.mark.parametrize(
    ("values", "codes"),
    [
        (["b", "a", None, "b"], [2, 1, 0, 2]),
        (np.array([3.5, -1.0, 3.5]), [1, 0, 1]),
        ([1, "x", 1], [0, 1, 0]),
        ([True, False], [1, 0]),
    ],
)
def test_buckets_are_numbered_in_the_order_of_their_values(values: Any, codes: list[int]) -> None:
    found, number = bucket_codes(values)
    assert found.tolist() == codes
    assert [number[v] for v in (values.tolist() if isinstance(values, np.ndarray) else values)] == codes


def test_costs_are_checked_against_the_budget() -> None:
    budget = Budget("tokens", 100)
    assert checked_costs([1, 100], (), budget).dtype == np.int64
    assert checked_costs(np.array([0.5, 2.0]), (), budget).dtype == np.float64
    with pytest.raises(InputError, match=r"row with key 8 is 101 .*raise the limit"):
        checked_costs([1, 101], ([7, 8],), budget)
    for bad in (-1, float("nan")):
        with pytest.raises(InputError, match="row 1"):
            checked_costs([1, bad], (), budget)
    with pytest.raises(InputError, match="row 0 is None, not a number"):
        checked_costs([None, 1], (), budget)
    for wrong in (0, -1, float("inf"), "9", True):
        with pytest.raises(InputError, match="above 0"):
            Budget("tokens", wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a column or a SQL expression"):
        Budget(" ", 5)
