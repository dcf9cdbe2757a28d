"""Orders checked against plain Python: every row once, the same for every rank, worker and world size."""

from __future__ import annotations

import hashlib
import itertools
import random
import tracemalloc
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplake_loader.errors import InputError
from deeplake_loader.order import LANES, ORDER_VERSION, WINDOW_BLOCKS, Order, Share, canonical, cut_blocks, random_words
from deeplake_loader.types import pack_address


def addresses_of(files: list[int]) -> np.ndarray:
    return np.array([pack_address(f + 1, i) for f, size in enumerate(files) for i in range(size)], np.int64)


def order_of(files: list[int], length: int = 60_000, **options: object) -> Order:
    addresses = addresses_of(files)
    return Order(cut_blocks(addresses, np.full(len(addresses), length, np.int64)), **options)  # type: ignore[arg-type]


@given(
    st.lists(st.integers(1, 400), max_size=8), st.integers(1, 100), st.integers(1, 6), st.integers(), st.integers(0, 9)
)
@settings(deadline=None, max_examples=60)
def test_every_epoch_holds_every_row_once(
    files: list[int], lanes: int, window_blocks: int, seed: int, epoch: int
) -> None:
    order = order_of(files, lanes=lanes, window_blocks=window_blocks)
    assert sorted(order.positions(seed, epoch).tolist()) == list(range(sum(files)))


def plain_positions(order: Order, seed: int, epoch: int) -> list[int]:
    """The order of an epoch as the module describes it, one row at a time."""
    sizes = np.diff(order.starts).tolist()
    words = random_words(len(sizes), seed=seed, epoch=epoch, purpose=0).tolist()
    blocks = sorted(range(len(sizes)), key=lambda b: words[b])
    dealt = [(place, order.starts[b] + i) for place, b in enumerate(blocks) for i in range(sizes[b])]
    count, length = len(dealt), len(dealt) // order.lanes
    edges = [length * lane for lane in range(order.lanes + 1)] if length else [0]
    windows: list[list[int]] = []
    for begin, end in itertools.pairwise([*edges, count]):
        chosen = range(begin, end)
        first = dealt[begin][0] if begin < end else 0
        groups = itertools.groupby(chosen, key=lambda d: (dealt[d][0] - first) // order.window_blocks)
        windows += [list(group) for _, group in groups]
    random_bits = random_words(count, seed=seed, epoch=epoch, purpose=1).tolist()
    kept = 64 - len(windows).bit_length() - max(map(len, windows)).bit_length()
    shuffled = [dealt[d][1] for w in windows for d in sorted(w, key=lambda d: (random_bits[d] >> (64 - kept), d))]
    body = [shuffled[lane * length + t] for t in range(length) for lane in range(order.lanes)]
    return [int(row) for row in [*body, *shuffled[length * order.lanes :]]]


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**64),
    st.data(),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_any_positions_of_an_epoch_are_those_of_the_plain_description(
    sizes: list[int], lanes: int, window_blocks: int, seed: int, data: st.DataObject
) -> None:
    order = Order(np.append(0, np.cumsum(sizes)), lanes, window_blocks)
    plain = plain_positions(order, seed, 3)
    assert order.positions(seed, 3).tolist() == plain
    some = order.epoch(seed, 3)
    for _ in range(3):
        asked = data.draw(st.lists(st.integers(0, sum(sizes) - 1), max_size=20))
        assert some.rows(np.array(asked, np.int64)).tolist() == [plain[p] for p in asked]


def test_a_hundred_million_rows_take_the_memory_of_the_windows_in_use() -> None:
    rows, block, lanes = 100_000_000, 2500, 64
    order = Order(np.arange(0, rows + 1, block), lanes)
    tracemalloc.start()
    epoch = order.epoch(0, 0)
    for position in range(0, 64 * 200, 256):
        own = np.arange(position, position + 256)
        epoch.rows(own[own % lanes < lanes // 8])  # the lanes of the first of 8 ranks
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    windows = lanes // 8 * WINDOW_BLOCKS * block * 8
    assert held < 24 * (rows // block) + 1.5 * windows + 100_000


def test_planning_takes_a_few_words_per_row() -> None:
    count = 400_000
    addresses = addresses_of([2000] * (count // 2000))
    mixed, lengths = np.random.default_rng(0).permutation(addresses), np.full(count, 60_000, np.int64)
    peaks = []
    in_order = partial(canonical, [addresses], [addresses])
    for plan in (in_order, partial(canonical, [mixed]), partial(cut_blocks, addresses, lengths)):
        tracemalloc.start()
        plan()
        peaks.append(tracemalloc.get_traced_memory()[1] / count)
        tracemalloc.stop()
    assert peaks[0] < 4 and peaks[1] < 36 and peaks[2] < 30  # bytes


def test_the_order_of_version_1_never_changes() -> None:
    assert ORDER_VERSION == 1
    files = [1500, 1, 7000, 333]
    addresses = addresses_of(files)
    lengths = (np.arange(len(addresses)) * 7919 % 90_001 + 1).astype(np.int64)
    starts = cut_blocks(addresses, lengths)
    text = repr([Order(starts).positions(seed, epoch).tolist() for seed, epoch in ((0, 0), (-1, 3), (2**63 + 1, 1))])
    pinned = "ffa4d4babd20bd045ffe98cdf8ae77685e6f0796acfb8fd657f7e60d646b56a0"
    assert hashlib.sha256(text.encode()).hexdigest() == pinned
    assert random_words(2, seed=5, epoch=1, purpose=0).tolist() == [13238961171690054789, 7602554214342592423]


def test_blocks_are_runs_of_one_file_and_hold_about_the_wanted_bytes() -> None:
    rng = np.random.default_rng(0)
    files = [3000, 10, 1, 9000]
    addresses, lengths = addresses_of(files), rng.integers(1, 3_000_000, sum(files))
    starts = cut_blocks(addresses, lengths, block_bytes=1 << 23)
    number = addresses >> 30
    for a, b in itertools.pairwise(starts.tolist()):
        assert len(set(number[a:b].tolist())) == 1
        assert lengths[a:b].sum() < (1 << 23) + 3_000_000
    assert lengths.sum() / (len(starts) - 1) > 0.5 * min(1 << 23, lengths.sum() // 4096)


def test_a_small_set_is_shuffled_row_by_row() -> None:
    order = order_of([203])
    first = [order.positions(0, epoch)[:8].tolist() for epoch in range(400)]
    seen = np.bincount(np.ravel(first), minlength=203)
    assert seen.min() > 0 and seen.max() < 45  # expected 15.8 a row; a lane bound to its place would give 133 and 0


def test_batches_mix_files_almost_as_an_ideal_shuffle_does() -> None:
    files, batch = [2000] * 64, 256
    order = order_of(files, 1_000_000, lanes=64)  # 128 GB: real 8 MB blocks of 8 rows
    seq = order.positions(0, 0) // 2000
    pairs = [np.bincount(seq[i : i + batch], minlength=64) for i in range(0, len(seq) - batch, batch)]
    same = np.mean([(c * c - c).sum() / (batch * (batch - 1)) for c in pairs])
    assert same < 1.3 / 64


def test_seed_epoch_and_shuffle_decide_the_order() -> None:
    order = order_of([500, 500])
    assert np.array_equal(order.positions(1, 2), order.positions(1, 2))
    assert not np.array_equal(order.positions(1, 2), order.positions(1, 3))
    assert not np.array_equal(order.positions(1, 2), order.positions(2, 2))
    assert order_of([500, 500], shuffle=False).positions(1, 2).tolist() == list(range(1000))


@given(st.integers(0, 700), st.integers(1, 16), st.sampled_from([1, 2, 3, 4, 8, 64]), st.sampled_from([1, 64]))
@settings(deadline=None, max_examples=80)
def test_the_ranks_of_a_step_share_the_same_set_under_every_tail(
    count: int, batch_size: int, world: int, lanes: int
) -> None:
    for tail in ("drop", "pad", "short"):
        if tail == "drop" and 0 < count < batch_size * world:
            continue
        shares = [Share(count, batch_size, r, world, lanes, tail) for r in range(world)]  # type: ignore[arg-type]
        step, got = shares[0].step, []
        for j in range(shares[0].steps()):
            taken = [s.take(j * step) for s in shares]
            fresh = sorted(np.concatenate([p[v] for p, v in taken]).tolist())
            assert fresh == list(range(j * step, min(count, (j + 1) * step)))
            sizes = {len(p) for p, _ in taken}
            assert min(sizes) >= 1 and (tail == "short" or sizes == {batch_size})
            assert all(0 <= x < count for p, _ in taken for x in p.tolist())
            got += fresh
        assert got == list(range(count - count % step if tail == "drop" else count))


def test_a_rank_reads_the_positions_of_its_own_lanes() -> None:
    for world in (2, 8, 64):
        shares = [Share(4096, 256 // world, r, world, LANES) for r in range(world)]
        for rank, share in enumerate(shares):
            lanes = {p % LANES for position in (0, 256, 300) for p in share.take(position)[0].tolist()}
            assert lanes == set(range(rank * LANES // world, (rank + 1) * LANES // world))


def test_a_change_of_world_size_in_mid_epoch_still_gives_every_row_once() -> None:
    order = order_of([700, 433])
    rows, rng = order.positions(4, 7), random.Random(0)
    for _ in range(20):
        got, epoch, position = [], 7, 0
        while epoch == 7:
            world, batch = rng.choice([1, 2, 3, 4, 64]), rng.choice([1, 4, 8])
            shares = [Share(1133, batch, r, world, LANES, "pad") for r in range(world)]
            for _ in range(rng.randrange(1, 6)):
                got += [p for s in shares for p in s.take(position)[0][s.take(position)[1]].tolist()]
                epoch, position = shares[0].cursor(7, position + shares[0].step)
                if epoch != 7:
                    break
        assert sorted(got) == list(range(1133))
        assert sorted(rows[got].tolist()) == list(range(1133))


def test_the_cursor_after_the_last_step_is_the_next_epoch() -> None:
    assert Share(10, 4).cursor(3, 8) == (3, 8)
    assert Share(10, 4).cursor(3, 12) == (4, 0)
    assert Share(10, 4, tail="drop").cursor(3, 8) == (4, 0)
    assert Share(0, 4).steps() == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 4, "rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"batch_size": 4, "tail": "cut"}, "drop, pad, short"),
        ({"batch_size": 4, "world_size": 3, "tail": "drop"}, "leave nothing of 10 rows"),
    ],
)
def test_a_share_that_cannot_work_is_refused(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Share(10, **arguments)  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(0, 3), st.one_of(st.none(), st.text(max_size=2)), st.integers(0, 2))))
@settings(deadline=None)
def test_canonical_order_sorts_by_address_then_key(rows: list[tuple[int, str | None, int]]) -> None:
    first = np.array([r[0] for r in rows], np.int64)
    second = np.array([r[2] for r in rows], np.int64)
    order = canonical([first, second], [[r[1] for r in rows]])
    got = rows if order is None else [rows[i] for i in order]
    assert got == sorted(rows, key=lambda r: (r[0], r[1] is not None, r[1] or "", r[2]))


@given(st.lists(st.integers(0, 2**53 - 1), min_size=2, unique=True), st.booleans())
@settings(deadline=None)
def test_packed_sort_keys_give_the_order_of_the_addresses(addresses: list[int], wide: bool) -> None:
    column = np.array(addresses if wide else [(a % 7 + 1) << 30 | a % 4096 for a in addresses], np.int64)
    found = canonical([column], [range(len(addresses))])
    expected = sorted(range(len(addresses)), key=lambda i: (column[i], i))
    assert (list(range(len(addresses))) if found is None else found.tolist()) == expected


def test_rows_already_in_order_need_no_permutation() -> None:
    assert canonical([addresses_of([5, 5])]) is None
    assert canonical([]) is None
    keys = canonical([np.array([2, 2, 1])], [[2**70, 5, "x"]])
    assert keys is not None and keys.tolist() == [2, 1, 0]


@pytest.mark.parametrize(("lanes", "rows_per_block"), [(1, 7), (4, 3), (64, 1), (64, 50)])
def test_windows_worked_out_one_by_one_give_the_order_of_a_set_held_whole(
    monkeypatch: pytest.MonkeyPatch, lanes: int, rows_per_block: int
) -> None:
    order = Order(np.append(np.arange(0, 5_000, rows_per_block), 5_000), lanes=lanes)
    positions = np.random.default_rng(2).integers(0, 5_000, (40, 64))
    whole, runs = order.epoch(3, 1), np.arange(4_992).reshape(-1, 64)
    wanted = [whole.rows(step).tolist() for step in (*runs, *positions)]
    monkeypatch.setattr("deeplake_loader.order._WHOLE", 0)
    windowed = order.epoch(3, 1)
    assert [windowed.rows(step).tolist() for step in (*runs, *positions)] == wanted
    assert windowed._whole is None and whole._whole is not None
