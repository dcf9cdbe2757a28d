"""The best k rows against the specification (score everything in float64, sort), on every implementation."""

from __future__ import annotations

import subprocess
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_backends import NAMES, using

from deeplake_loader import kernels
from deeplake_loader.errors import DimensionError, InputError, TypeMismatchError
from deeplake_loader.kernels import library, reference

METRICS = ("cosine", "l2", "inner")
DTYPES = ("float32", "float16", "bfloat16", "int8")
Floats = np.ndarray


@pytest.fixture(params=NAMES, scope="module", autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with using(request.param):
        yield request.param


def stored(floats: Floats, dtype: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The rows in one of the stored types, and the scale that int8 needs."""
    if dtype == "bfloat16":
        return (floats.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16), None
    if dtype == "int8":
        scale = (np.abs(floats).max(axis=1, initial=1e-3) / 127).astype(np.float32)
        return np.rint(floats / scale[:, None]).clip(-128, 127).astype(np.int8), scale
    return floats.astype(dtype), None


def vectors(rows: int, dimension: int, queries: int, seed: int = 0) -> tuple[Floats, Floats]:
    random = np.random.default_rng(seed)
    return random.standard_normal((rows, dimension)), random.standard_normal((queries, dimension)).astype(np.float32)


def same(matrix: np.ndarray, queries: Floats, k: int, metric: str, **options: object) -> tuple[np.ndarray, np.ndarray]:
    """Asserts that ids and scores are the reference's, to the last bit, and gives them."""
    threads = options.pop("threads", 2)
    found, scores = kernels.topk(matrix, queries, k, metric, threads=threads, **options)  # type: ignore[arg-type]
    expected, exact = reference.topk(matrix, np.atleast_2d(queries), k, metric, **options)  # type: ignore[arg-type]
    assert (found.dtype, scores.dtype) == (np.int64, np.float64)
    np.testing.assert_array_equal(found, expected)
    assert scores.tobytes() == exact.tobytes() or np.array_equal(scores, exact, equal_nan=True)
    return found, scores


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "queries", "k"),
    [
        ((0, 5), 2, 3), ((1, 1), 1, 1), ((1, 16), 3, 4), ((129, 15), 1, 10), ((700, 16), 2, 256), ((257, 17), 17, 300),
        ((1500, 100), 33, 10), ((1030, 768), 5, 1), ((3000, 33), 1, 256), ((900, 31), 130, 3), ((65, 65), 64, 65),
    ],
)  # fmt: skip
def test_the_best_rows_are_those_of_the_specification(
    metric: str, dtype: str, shape: tuple[int, int], queries: int, k: int
):
    floats, wanted = vectors(*shape, queries)
    matrix, scale = stored(floats, dtype)
    same(matrix, wanted, k, metric, scale=scale)


@pytest.mark.parametrize("queries", range(1, 34))
def test_any_number_of_queries_gives_each_its_own_best(queries: int):
    floats, wanted = vectors(600, 40, queries)
    same(floats.astype(np.float16), wanted, 7, "cosine")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("queries", [1, 9])
def test_scores_have_the_bits_of_the_score_kernel(dtype: str, metric: str, queries: int):
    floats, wanted = vectors(2000, 129, queries)
    matrix = floats.astype(dtype)
    found, scores = kernels.topk(matrix, wanted, 20, metric)
    for i in range(queries):
        every = np.asarray(kernels.scores(matrix, *matrix.shape, dtype, wanted[i], metric))
        assert scores[i].tobytes() == every[found[i]].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("queries", [1, 6])
def test_filters_by_rows_and_by_bitmap_agree(dtype: str, metric: str, queries: int):
    floats, wanted = vectors(4000, 48, queries)
    matrix, scale = stored(floats, dtype)
    random = np.random.default_rng(1)
    for count in (0, 1, 4, 400, 2000, 4000):
        rows = np.sort(random.choice(4000, count, replace=False))
        mask = np.zeros(4000, bool)
        mask[rows] = True
        by_rows = same(matrix, wanted, 10, metric, scale=scale, rows=rows)
        by_bits = same(matrix, wanted, 10, metric, scale=scale, bitmap=np.packbits(mask, bitorder="little"))
        np.testing.assert_array_equal(by_rows[0], by_bits[0])
        assert np.isin(by_rows[0][by_rows[0] >= 0], rows).all()


def test_row_numbers_in_any_order_and_repeated_count_once():
    floats, wanted = vectors(500, 20, 2)
    matrix = floats.astype(np.float32)
    rows = np.random.default_rng(2).integers(0, 500, 900)
    same(matrix, wanted, 50, "inner", rows=rows)
    same(matrix, wanted, 5, "inner", rows=np.array([7, 7, 7]))
    same(matrix, wanted, 5, "inner", rows=array("q", [499]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("queries", [1, 9])
def test_rows_that_reach_a_threshold_are_never_left_out(dtype: str, metric: str, queries: int):
    floats, wanted = vectors(3000, 40, queries)
    matrix, scale = stored(floats, dtype)
    every, theirs = reference.topk(matrix, wanted, 60, metric, scale=scale)
    for place in (0, 5, 59):
        thresholds = theirs[:, place].copy()
        thresholds[0] = np.nan if place == 5 else thresholds[0]
        found, scores = kernels.topk(matrix, wanted, 60, metric, scale=scale, thresholds=thresholds)
        for i in range(queries):
            sure = 60 if np.isnan(thresholds[i]) else place + 1
            assert found[i, :sure].tolist() == every[i, :sure].tolist()
            held = found[i] >= 0
            assert found[i, held].tolist() == every[i, : held.sum()].tolist()
            np.testing.assert_allclose(scores[i, held], theirs[i, : held.sum()], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_parts_scanned_in_turn_find_what_the_whole_would_give(metric: str):
    floats, wanted = vectors(6000, 40, 1)
    matrix, largest = floats.astype(np.float32), metric != "l2"
    rows, scores = array("q"), array("d")
    for start in range(0, 6000, 1500):
        threshold = kernels.kth_best(scores, 20, largest)
        part = matrix[start : start + 1500].tobytes()
        more = kernels.reaching(
            part, 1500, 40, "float32", wanted.tobytes(), metric, 20, slack=0.01, threshold=threshold
        )
        rows.extend(start + row for row in more[0])
        scores.extend(more[1])
    edge = kernels.kth_best(scores, 20, largest)
    kept = kernels.at_least(scores, edge - 0.01 if largest else edge + 0.01, largest)
    whole = kernels.reaching(matrix.tobytes(), 6000, 40, "float32", wanted.tobytes(), metric, 20, slack=0.01)
    assert sorted(rows[i] for i in kept) == sorted(whole[0])


def test_thresholds_of_another_shape_are_refused():
    floats, wanted = vectors(10, 4, 2)
    for thresholds in (np.zeros(3), np.zeros((2, 1)), np.zeros(2, np.float32)):
        with pytest.raises(DimensionError, match="thresholds are"):
            kernels.topk(floats.astype(np.float32), wanted, 1, "inner", thresholds=thresholds)


def test_bits_beyond_the_last_row_select_nothing():
    floats, wanted = vectors(13, 4, 1)
    matrix = floats.astype(np.float32)
    bitmap = np.full(8, 255, np.uint8)
    found, _ = kernels.topk(matrix, wanted, 20, "l2", bitmap=bitmap)
    np.testing.assert_array_equal(found, reference.topk(matrix, wanted, 20, "l2")[0])
    only_last = np.packbits(np.arange(13) == 12, bitorder="little")
    assert kernels.topk(matrix, wanted, 2, "l2", bitmap=only_last)[0].tolist() == [[12, -1]]
    assert kernels.topk(matrix, wanted, 2, "l2", rows=np.array([12]))[0].tolist() == [[12, -1]]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("queries", [1, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_of_equal_scores_the_lowest_rows_win(metric: str, queries: int, dtype: str):
    one, wanted = vectors(1, 33, queries)
    matrix, scale = stored(np.repeat(one, 5000, axis=0), dtype)
    found, _ = kernels.topk(matrix, wanted, 256, metric, scale=scale)
    assert (found == np.arange(256)).all()
    few, wanted = vectors(9, 24, queries, seed=3)
    matrix, scale = stored(few[np.random.default_rng(4).integers(0, 9, 3000)], dtype)
    same(matrix, wanted, 700, metric, scale=scale)


@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("metric", METRICS)
def test_scores_closer_than_a_float32_sum_can_tell_are_told_apart(queries: int, metric: str):
    random = np.random.default_rng(5)
    base = random.standard_normal(256) + 4
    matrix = (base + 1e-7 * random.standard_normal((4000, 256))).astype(np.float32)
    wanted = (base + 0.3 * random.standard_normal((queries, 256))).astype(np.float32)
    same(matrix, wanted, 40, metric)


def test_a_k_too_large_for_all_queries_at_once_is_served_in_groups(backend: str):
    if backend == "python":
        pytest.skip("the fallback keeps no lists to group")
    floats, wanted = vectors(70_000, 2, 40)  # lists of 2 k entries for 40 queries and two threads pass the budget
    matrix, some = floats.astype(np.float32), [0, 28, 29, 39]
    found, scores = kernels.topk(matrix, wanted, 70_000, "inner")
    for i in some:
        every = np.asarray(kernels.scores(matrix, 70_000, 2, "float32", wanted[i], "inner"))
        assert (found[i] == np.argsort(-every, kind="stable")).all()
        assert (scores[i] == every[found[i]]).all()


@pytest.mark.parametrize("rising", [True, False])
@pytest.mark.parametrize("queries", [1, 4])
def test_the_order_of_the_rows_does_not_matter(rising: bool, queries: int):
    matrix = np.sort(np.random.default_rng(6).random(20_000)).astype(np.float32)[:: 1 if rising else -1, None]
    same(np.ascontiguousarray(matrix), np.full((queries, 1), 2, np.float32), 10, "inner")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("queries", [1, 6])
def test_rows_without_a_score_never_appear_and_extreme_ones_do(metric: str, queries: int):
    floats, wanted = vectors(300, 19, queries)
    matrix = floats.astype(np.float32)
    matrix[::5, 3] = np.nan
    matrix[1::5, 0] = np.inf
    matrix[2::5] = 0
    matrix[3::10] *= np.float32(1e-42)
    matrix[8::10] *= np.float32(1e37)
    matrix[4, :] = -0.0
    found, _ = same(matrix, wanted, 300, metric)
    lost = np.arange(300) % 5 < (3 if metric == "cosine" else 2)
    lost[4] = metric == "cosine"
    assert sorted(set(found[0].tolist()) - {-1}) == np.flatnonzero(~lost).tolist()
    same(matrix[3:4], wanted, 2, metric)
    same(np.full((4, 19), np.nan, np.float32), wanted, 2, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_without_a_score_get_nothing_and_disturb_no_other(metric: str, dtype: str):
    floats, wanted = vectors(200, 21, 7)
    matrix, scale = stored(floats, dtype)
    wanted[0, 3], wanted[1, 20], wanted[2], wanted[3] = np.nan, -np.inf, 0, -0.0
    wanted[4] *= np.float32(1e-41)
    wanted[5] *= np.float32(3e37)
    found, scores = same(matrix, wanted, 5, metric, scale=scale)
    assert (found[:2] == -1).all() and np.isnan(scores[:2]).all()
    assert (found[2:4] == -1).all() == (metric == "cosine")
    for query in wanted:
        same(matrix, query, 5, metric, scale=scale)


def test_scales_that_are_no_numbers_or_negative_or_tiny_are_taken_as_they_are():
    floats, wanted = vectors(400, 24, 5)
    matrix, scale = stored(floats, "int8")
    scale[:6] = np.nan, np.inf, 0, -1, 1e-40, 3e38
    for metric in METRICS:
        same(matrix, wanted, 400, metric, scale=scale)
        same(matrix, wanted[0], 400, metric, scale=scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 6])
def test_strided_and_misaligned_rows_are_read_where_they_lie(dtype: str, queries: int):
    floats, wanted = vectors(200, 37, queries)
    matrix, scale = stored(floats, dtype)
    expected = same(matrix, wanted, 9, "cosine", scale=scale)[0]
    wide = np.zeros((200, 90), matrix.dtype)
    wide[:, 40:77] = matrix
    held = bytearray(matrix.nbytes + 1)
    held[1:] = matrix.tobytes()
    odd = np.frombuffer(held, np.uint8)[1:].view(matrix.dtype).reshape(matrix.shape)
    backwards = wide[::-1][:, 40:77]
    for view in (wide[:, 40:77], odd):
        np.testing.assert_array_equal(kernels.topk(view, wanted, 9, "cosine", scale=scale)[0], expected)
    turned = None if scale is None else scale[::-1]
    same(backwards, wanted, 9, "cosine", scale=turned)
    same(wide[::3, 40:77], wanted, 9, "l2", scale=None if scale is None else scale[::3])


def test_a_memory_map_and_a_view_of_bfloat16_are_searched(tmp_path: Path):
    floats, wanted = vectors(300, 24, 3)
    matrix, _ = stored(floats, "bfloat16")
    np.save(tmp_path / "rows.npy", floats.astype(np.float16))
    same(np.load(tmp_path / "rows.npy", mmap_mode="r"), wanted, 5, "cosine")
    by_bits = kernels.topk(matrix, wanted, 5, "l2")
    by_void = kernels.topk(matrix.view("V2"), wanted, 5, "l2")
    assert by_bits[1].tobytes() == by_void[1].tobytes()


@given(
    st.integers(0, 300), st.integers(1, 70), st.integers(1, 20), st.integers(1, 40), st.sampled_from(METRICS),
    st.sampled_from(DTYPES), st.integers(0, 99), st.integers(1, 3),
)  # fmt: skip
def test_any_small_search_is_that_of_the_specification(
    rows: int, dimension: int, queries: int, k: int, metric: str, dtype: str, seed: int, threads: int
):
    random = np.random.default_rng(seed)
    floats = random.integers(-3, 4, (rows, dimension)) * random.choice([1.0, 0.01, 1.0001], (rows, 1))
    wanted = random.integers(-3, 4, (queries, dimension)).astype(np.float32)
    matrix, scale = stored(floats, dtype)
    mask = random.random(rows) < random.random()
    same(matrix, wanted, k, metric, scale=scale, bitmap=np.packbits(mask, bitorder="little"), threads=threads)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_reaching_gives_all_that_tie_with_the_kth_or_miss_it_by_the_slack(metric: str, dtype: str):
    few, wanted = vectors(40, 24, 1, seed=7)
    matrix = few[np.random.default_rng(8).integers(0, 40, 6000)].astype(dtype)
    every = np.asarray(kernels.scores(matrix, 6000, 24, dtype, wanted[0], metric))
    sign = -1 if metric == "l2" else 1
    for k, slack in ((1, 0.0), (300, 0.0), (5, 0.25), (7000, 0.0)):
        rows, scores = kernels.reaching(matrix, 6000, 24, dtype, wanted[0], metric, k, slack=slack)
        reach = np.sort(sign * every)[-min(k, 6000)] - slack
        expected = np.flatnonzero(sign * every >= reach)
        expected = expected[np.argsort(-sign * every[expected], kind="stable")]
        assert rows.tolist() == expected.tolist()
        assert scores.tobytes() == every[expected].tobytes()


def test_reaching_takes_filters_and_finds_nothing_in_nothing():
    floats, wanted = vectors(500, 16, 1)
    matrix = floats.astype(np.float32)
    rows = np.arange(3, 500, 7)
    mask = np.zeros(500, bool)
    mask[rows] = True
    expected = reference.topk(matrix, wanted, 4, "l2", rows=rows)[0][0].tolist()
    listed, _ = kernels.reaching(matrix, 500, 16, "float32", wanted, "l2", 4, rows=rows[::-1].copy())
    bits, _ = kernels.reaching(matrix, 500, 16, "float32", wanted, "l2", 4, bitmap=np.packbits(mask, bitorder="little"))
    assert listed.tolist() == bits.tolist() == expected
    assert kernels.reaching(b"", 0, 16, "float32", wanted, "l2", 4) == (array("q"), array("d"))
    assert kernels.reaching(matrix, 500, 16, "float32", wanted, "l2", 4, rows=array("q"))[0] == array("q")


def test_reaching_needs_no_numpy_where_the_library_is(backend: str):
    if backend == "python":
        pytest.skip("the fallback is numpy")
    program = """
import sys
from array import array
from deeplake_loader import kernels
matrix, query, listed = array("f", [1, 0, 0, 2]), array("f", [0, 1]), array("q", [1, 0])
rows, scores = kernels.reaching(matrix, 2, 2, "float32", query, "cosine", 1, rows=listed)
assert (rows.tolist(), scores.tolist()) == ([1], [1.0])
assert "numpy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(library.__file__).parents[1])


def test_the_stated_error_of_the_scan_holds_for_float32_sums():
    floats, wanted = vectors(2000, 768, 1)
    matrix, query = floats.astype(np.float32), wanted[0]
    exact = matrix.astype(np.float64) @ query.astype(np.float64)
    scale = np.linalg.norm(floats, axis=1) * np.linalg.norm(query)
    assert np.max(np.abs(matrix @ query - exact) / scale) < kernels.topk_error(768, "float32")


def test_arguments_that_do_not_fit_are_refused_before_any_read():
    floats, wanted = vectors(10, 4, 2)
    matrix = floats.astype(np.float32)
    with pytest.raises(InputError, match=r"rows\[1\] is 10; the matrix has rows 0..9"):
        kernels.topk(matrix, wanted, 1, "cosine", rows=np.array([0, 10]))
    with pytest.raises(InputError, match=r"rows\[0\] is -1"):
        kernels.topk(matrix, wanted, 1, "cosine", rows=np.array([-1]))
    with pytest.raises(TypeMismatchError, match="rows has"):
        kernels.topk(matrix, wanted, 1, "cosine", rows=np.zeros(1, np.int32))
    with pytest.raises(InputError, match="rows and bitmap are both given"):
        kernels.topk(matrix, wanted, 1, "cosine", rows=np.array([0]), bitmap=np.zeros(2, np.uint8))
    with pytest.raises(DimensionError, match="bitmap holds 1 bytes; 10 rows need 2"):
        kernels.topk(matrix, wanted, 1, "cosine", bitmap=np.zeros(1, np.uint8))
    with pytest.raises(InputError, match="k is 0"):
        kernels.topk(matrix, wanted, 0, "cosine")
    with pytest.raises(InputError, match="results at most"):
        kernels.topk(matrix, wanted, 1 << 40, "cosine")
    with pytest.raises(InputError, match="metric is 'dot'"):
        kernels.topk(matrix, wanted, 1, "dot")  # type: ignore[arg-type]
    with pytest.raises(TypeMismatchError, match="queries are float64"):
        kernels.topk(matrix, wanted.astype(np.float64), 1, "cosine")
    with pytest.raises(DimensionError, match=r"queries are \(2, 3\); expected \(q, 4\)"):
        kernels.topk(matrix, wanted[:, :3], 1, "cosine")
    with pytest.raises(TypeMismatchError, match="the matrix is float64"):
        kernels.topk(floats, wanted, 1, "cosine")
    with pytest.raises(DimensionError, match=r"the matrix is \(10,\)"):
        kernels.topk(matrix[:, 0], wanted, 1, "cosine")
    with pytest.raises(TypeMismatchError, match="contiguous rows"):
        kernels.topk(matrix[:, ::2], wanted[:, :2], 1, "cosine")
    with pytest.raises(InputError, match="the matrix is int8 and scale is None"):
        kernels.topk(matrix.astype(np.int8), wanted, 1, "cosine")
    with pytest.raises(InputError, match="the matrix is float32 and scale is given"):
        kernels.topk(matrix, wanted, 1, "cosine", scale=np.ones(10, np.float32))
    with pytest.raises(DimensionError, match=r"scale is \(3,\)"):
        kernels.topk(matrix.astype(np.int8), wanted, 1, "cosine", scale=np.ones(3, np.float32))
    with pytest.raises(InputError, match="slack is -1"):
        kernels.reaching(matrix, 10, 4, "float32", wanted[0], "l2", 1, slack=-1)
    with pytest.raises(InputError, match="dtype is 'int4'"):
        kernels.topk_error(4, "int4")  # type: ignore[arg-type]
