"""Draws with replacement against numpy's own search, and proportions against the weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeplake_loader.errors import InputError
from deeplake_loader.order import random_words
from deeplake_loader.stream.weights import Weighted, weighted

WEIGHTS = st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=40).filter(lambda w: sum(w) > 1e-3)


@given(WEIGHTS, st.integers(0, 2**64), st.integers(0, 1000))
def test_draws_are_inverse_sampling_of_uniform_numbers(weights: list[float], seed: int, epoch: int) -> None:
    picks = weighted(weights, (), count=50, seed=seed).picks(epoch)
    words = random_words(50, seed=seed, epoch=epoch, purpose=16)
    cumulative, total = [], 0.0
    for weight in weights:
        total += weight
        cumulative.append(total)
    for word, row in zip(words.tolist(), np.asarray(picks.rows).tolist(), strict=True):
        point = (word >> 11) * 2.0**-53 * total
        assert row == next(i for i, end in enumerate(cumulative) if end > point)
        assert weights[row] > 0


def test_rows_come_in_proportion_to_their_weights() -> None:
    weights = np.array([1.0, 0.0, 2.0, 5.0])
    counts = np.bincount(weighted(weights, (), count=80_000, seed=3).picks(7).rows, minlength=4)
    assert counts[1] == 0
    assert np.allclose(counts / 80_000, weights / 8, atol=0.006)  # 3.5 standard deviations


def test_every_epoch_draws_anew_and_the_same_epoch_again() -> None:
    drawn = weighted(np.ones(100), (), count=None, seed=1)
    first, second = drawn.picks(0), drawn.picks(1)
    assert drawn.count == 100 and len(first) == 100
    assert not np.array_equal(first.rows, second.rows)
    assert np.array_equal(first.rows, drawn.picks(0).rows)
    assert not np.array_equal(first.rows, weighted(np.ones(100), (), count=None, seed=2).picks(0).rows)


def test_repeats_of_a_row_in_one_epoch_are_augmented_apart() -> None:
    picks = weighted([1, 1, 1], (), count=100, seed=0).picks(5)
    assert picks.epochs is not None
    pairs = list(zip(np.asarray(picks.rows).tolist(), picks.epochs.tolist(), strict=True))
    assert len(set(pairs)) == 100
    assert sorted(e for r, e in pairs if r == 0) == [5 + (k << 32) for k in range(sum(r == 0 for r, _ in pairs))]


def test_the_largest_draw_stays_in_the_set() -> None:
    """Rounding up of u * total to the total itself must not give a row behind the end."""
    tiny = Weighted(np.cumsum([5e-324, 0.0]), 1000)
    assert set(np.asarray(tiny.picks(0).rows).tolist()) == {0}


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), None, "x"])
def test_a_weight_that_is_none_is_refused_with_its_key(bad: object) -> None:
    with pytest.raises(InputError, match=r"weight of the row with key 'k2' is .*COALESCE"):
        weighted([1.0, bad, 2.0], (["k1", "k2", "k3"],), count=None, seed=0)
    with pytest.raises(InputError, match="weight of row 1 is"):
        weighted([1.0, bad, 2.0], (), count=None, seed=0)


def test_nothing_to_draw_is_refused() -> None:
    for weights in ([], [0.0, 0.0], [1e308, 1e308]):
        with pytest.raises(InputError, match="nothing can be drawn"):
            weighted(weights, (), count=None, seed=0)
    with pytest.raises(InputError, match="num_samples=0"):
        weighted([1.0], (), count=0, seed=0)


def test_the_identity_tells_weights_seed_and_count_apart() -> None:
    same = weighted([1, 2], (), count=5, seed=0).identity()
    assert same == weighted(np.array([1.0, 2.0]), (), count=5, seed=0).identity()
    for other in (weighted([2, 2], (), count=5, seed=0), weighted([1, 2], (), count=6, seed=0)):
        assert other.identity() != same
