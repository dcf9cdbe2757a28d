from __future__ import annotations

import math
from array import array
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_backends import NAMES, using

from deeplake_loader import kernels
from deeplake_loader.errors import DimensionError, InputError, TypeMismatchError

METRICS = ("cosine", "l2", "inner")
DTYPES = ("float32", "float16")


@pytest.fixture(params=NAMES, scope="module", autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with using(request.param):
        yield request.param


def vectors(rows: int, dimension: int, dtype: str = "float32", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.standard_normal((rows, dimension)).astype(dtype), random.standard_normal(dimension).astype(np.float32)


def score(matrix: np.ndarray, query: np.ndarray, metric: str, rows: object = None, threads: int = 2) -> np.ndarray:
    found = kernels.scores(matrix, *matrix.shape, str(matrix.dtype), query, metric, rows, threads)
    return np.asarray(found)


def plain(matrix: np.ndarray, query: np.ndarray, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """The scores by the textbook in float64, and the scale of their error."""
    m, q = matrix.astype(np.float64), query.astype(np.float64)
    norms = np.linalg.norm(m, axis=1) * np.linalg.norm(q)
    if metric == "l2":
        distance = np.linalg.norm(m - q, axis=1)
        return distance, distance
    return (m @ q / norms, np.ones(len(m))) if metric == "cosine" else (m @ q, norms)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (129, 15), (700, 16), (257, 17), (1500, 100), (1030, 768)])
def test_scores_are_those_of_numpy_within_the_stated_error(metric: str, dtype: str, shape: tuple[int, int]):
    matrix, query = vectors(*shape, dtype)
    expected, scale = plain(matrix, query, metric)
    assert np.all(np.abs(score(matrix, query, metric) - expected) <= kernels.score_error(shape[1]) * scale)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_alone_in_a_list_and_in_a_full_scan(metric: str, dtype: str):
    matrix, query = vectors(1000, 77, dtype)
    whole = score(matrix, query, metric)
    rows = np.random.default_rng(1).integers(0, 1000, 1777)
    assert score(matrix, query, metric, rows).tobytes() == whole[rows].tobytes()
    assert score(matrix, query, metric, rows, threads=1).tobytes() == whole[rows].tobytes()
    for row in (0, 5, 999):
        assert score(matrix, query, metric, array("q", [row]))[0] == whole[row]
        assert score(matrix[row : row + 1], query, metric)[0] == whole[row]


@given(st.integers(0, 40), st.integers(1, 70), st.sampled_from(METRICS), st.sampled_from(DTYPES), st.integers(0, 99))
def test_every_implementation_gives_the_same_bits(rows: int, dimension: int, metric: str, dtype: str, seed: int):
    matrix, query = vectors(rows, dimension, dtype, seed)
    matrix *= np.random.default_rng(seed).choice([1, 1e-6, 300], matrix.shape).astype(dtype)
    here = score(matrix, query, metric).tobytes()
    with using("python"):
        assert score(matrix, query, metric).tobytes() == here


def test_every_float16_reads_as_its_value():
    matrix = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 1)
    found = score(matrix, np.ones(1, np.float32), "inner")
    exact = matrix.ravel().astype(np.float64)
    assert np.array_equal(found, np.where(np.isfinite(exact), exact, np.nan), equal_nan=True)


def test_vectors_without_a_score_give_nan_and_extreme_ones_do_not():
    big = np.float32(3e38)
    matrix = np.array([[0, 0], [np.nan, 1], [np.inf, 0], [-np.inf, 1], [big, big], [1e-45, 0], [1, 0]], np.float32)
    query = np.array([1, 0], np.float32)
    known = [False, False, False, False, True, True, True]
    assert (~np.isnan(score(matrix, query, "cosine"))).tolist() == known
    for metric in ("l2", "inner"):
        assert (~np.isnan(score(matrix, query, metric))).tolist() == [True, *known[1:]]
    assert score(matrix, query, "cosine")[4] == pytest.approx(math.sqrt(0.5), abs=1e-15)
    assert score(matrix, query, "cosine")[5:].tolist() == [1.0, 1.0]
    for bad in ([np.nan, 0], [0, np.inf]):
        for metric in METRICS:
            assert np.isnan(score(matrix, np.array(bad, np.float32), metric)).all()
    assert np.isnan(score(matrix, np.zeros(2, np.float32), "cosine")).all()
    assert score(matrix, np.zeros(2, np.float32), "inner")[[0, 6]].tolist() == [0, 0]


def test_a_vector_is_at_distance_zero_and_cosine_one_from_itself():
    matrix, _ = vectors(50, 333)
    for row in range(50):
        one = array("q", [row])
        assert score(matrix, matrix[row], "cosine", one)[0] == 1.0
        assert score(matrix, -matrix[row], "cosine", one)[0] == -1.0
        assert score(matrix, matrix[row], "l2", one)[0] == 0.0


def test_bytes_and_odd_addresses_are_read_as_they_lie():
    matrix, query = vectors(40, 21)
    shifted = memoryview(b"x" + matrix.tobytes() + b"rest")[1:]
    found = kernels.scores(shifted, 40, 21, "float32", memoryview(b"xyz" + query.tobytes())[3:], "l2")
    assert found.tobytes() == score(matrix, query, "l2").tobytes()


def test_an_empty_matrix_or_list_gives_no_scores():
    matrix, query = vectors(3, 4)
    assert len(score(matrix[:0], query, "cosine")) == 0
    assert len(score(matrix, query, "cosine", array("q"))) == 0


def test_arguments_that_do_not_fit_are_refused_before_any_read():
    matrix, query = vectors(3, 4)
    with pytest.raises(InputError, match=r"rows\[1\] is 3; the matrix has rows 0..2"):
        score(matrix, query, "cosine", array("q", [0, 3]))
    with pytest.raises(InputError, match=r"rows\[0\] is -1"):
        score(matrix, query, "cosine", array("q", [-1]))
    with pytest.raises(DimensionError, match="holds 48 bytes; 4 rows"):
        kernels.scores(matrix, 4, 4, "float32", query, "cosine")
    with pytest.raises(DimensionError, match="the query holds 12 bytes"):
        kernels.scores(matrix, 3, 4, "float32", query[:3], "cosine")
    with pytest.raises(TypeMismatchError, match="query has"):
        kernels.scores(matrix, 3, 4, "float32", query.astype(np.float64), "cosine")
    with pytest.raises(TypeMismatchError, match="rows has"):
        score(matrix, query, "cosine", np.zeros(1, np.int32))
    with pytest.raises(TypeMismatchError, match="matrix has"):
        kernels.scores(matrix.T, 3, 4, "float32", query, "cosine")
    with pytest.raises(InputError, match="metric is 'dot'"):
        score(matrix, query, "dot")
    with pytest.raises(InputError, match="dtype is 'float64'"):
        score(matrix.astype(np.float64), query, "l2")


numbers = st.lists(st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 1.0, 1.0, math.inf, -math.inf, math.nan])))


@given(numbers, st.integers(1, 12), st.booleans())
def test_the_kth_best_is_that_of_a_sorted_list(values: list[float], k: int, largest: bool):
    scored = sorted((v for v in values if not math.isnan(v)), reverse=largest)
    found = kernels.kth_best(array("d", values), k, largest)
    assert found == scored[k - 1] if k <= len(scored) else math.isnan(found)


@given(numbers, st.floats(), st.booleans())
def test_at_least_lists_the_positions_that_reach_the_threshold(values: list[float], threshold: float, largest: bool):
    expected = [i for i, v in enumerate(values) if (v >= threshold if largest else v <= threshold)]
    assert kernels.at_least(array("d", values), threshold, largest).tolist() == expected


def test_the_best_k_of_many_with_ties_agree_with_numpy():
    values = np.random.default_rng(0).integers(0, 500, 20_000).astype(np.float64)
    values[::7] = np.nan
    ordered = np.sort(values[~np.isnan(values)])
    for k in (1, 2, 100, 5000, len(ordered)):
        assert kernels.kth_best(values, k, largest=True) == ordered[-k]
        assert kernels.kth_best(values, k, largest=False) == ordered[k - 1]
    for k in (len(ordered) + 1, 2**64 + 1):
        assert math.isnan(kernels.kth_best(values, k, largest=True))
    with pytest.raises(InputError, match="k is 0"):
        kernels.kth_best(values, 0, largest=True)
    with pytest.raises(TypeMismatchError, match="scores has"):
        kernels.kth_best(values.astype(np.float32), 1, largest=True)


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_any_list_of_int64_comes_back_from_its_text(values: list[int]):
    text = ",".join(map(str, values))
    assert kernels.parse_integers(text) == kernels.parse_integers(text.encode()) == array("q", values)


@pytest.mark.parametrize(
    "text",
    [",", "1,", ",1", "1,,2", "1 ,2", "a", "1.5", "--1", "-", "1_0", "+1", "٣", "9" * 19, "9" * 5000, "-" + "9" * 19],
)
def test_text_that_is_no_list_of_int64_is_refused(text: str):
    with pytest.raises(InputError):
        kernels.parse_integers("12," + text)
    with pytest.raises(InputError):
        kernels.parse_integers(text)
