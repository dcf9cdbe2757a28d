"""The best rows of a matrix for each query: exact, filtered, as fast as memory is read.

A scan in float32 (or, for batches, bfloat16) gives every row an interval that holds its score. The k-th best lower end
is a threshold; only rows whose upper end reaches it are scored again, in float64, by the kernel of ``scores``. So the
result is exactly that of scoring and sorting everything, whatever the scan's own precision.
"""

from __future__ import annotations

import ctypes
import math
from array import array
from typing import TYPE_CHECKING, Any, Literal

from deeplake_loader.errors import DimensionError, InputError, TypeMismatchError

from . import fallback
from .buffers import INT64, Pin, items
from .library import choice
from .search import METRICS, Dtype, Metric, check_matrix

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer

VectorType = Literal["float32", "float16", "bfloat16", "int8"]

_TYPES: tuple[VectorType, ...] = ("float32", "float16", "bfloat16", "int8")
_MOST_RESULTS = 1 << 31  # entries of one result: 34 GB


def topk(
    matrix: NDArray[Any],
    queries: NDArray[np.float32],
    k: int,
    metric: Metric,
    *,
    rows: Buffer | None = None,
    bitmap: Buffer | None = None,
    scale: NDArray[np.float32] | None = None,
    thresholds: NDArray[np.float64] | None = None,
    threads: int = 2,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The row numbers (q, k) int64 and scores (q, k) float64 of the ``k`` best rows for each query, best first.

    ``matrix``: (n, d) float32, float16, bfloat16 (as uint16 or "V2") or int8 with ``scale`` (n,) float32; each row
    contiguous, rows any stride apart, at any address; a memory map will do. ``queries``: (q, d) or (d,) float32.
    ``metric``: "cosine" and "inner" (largest first), "l2" (smallest first). ``rows``: int64 numbers of the rows to
    search, in any order, repeats counted once; ``bitmap``: uint8, bit i % 8 of byte i // 8 stands for row i. Neither:
    all rows. ``thresholds``: (q,) float64, the least score of interest to each query (l2: the largest), NaN where all
    are: rows that miss it may be left out, which spares a scan of one of several matrices what it would find first.
    ``threads``: at most that many, the caller's included.

    The scores are those of ``scores`` to the last bit (bfloat16 and int8: of the rows as float32, int8 times its
    row's scale). Equal scores: the lowest row first. Rows and queries that hold NaN or infinity, or are all zero under
    "cosine", have no score and never appear. Where fewer than ``k`` rows have one, the rest is -1 and NaN.

    Raises InputError, DimensionError or TypeMismatchError before anything is read where the arguments do not fit.

    >>> import numpy as np
    >>> rows, scores = topk(np.eye(4, dtype=np.float32), np.array([[0, 1, 0, 0]], np.float32), 2, "cosine")
    >>> rows.tolist(), scores.tolist()
    ([[1, 0]], [[1.0, 0.0]])
    """
    import numpy as np

    wanted = np.ascontiguousarray(np.atleast_2d(queries))
    _check_arrays(matrix, wanted, scale, thresholds)
    _check_choice(k, len(wanted), metric, rows, bitmap, len(matrix))
    numbers = np.full((len(wanted), k), -1, np.int64)
    best = np.full((len(wanted), k), np.nan)
    if choice().library is None:
        chosen = fallback.chosen_rows(len(matrix), rows, bitmap)
        for i, (found, scores) in enumerate(fallback.best_rows(matrix, wanted, k, metric, chosen, scale, None)):
            numbers[i, : len(found)], best[i, : len(scores)] = found, scores
        return numbers, best
    scales = None if scale is None else np.ascontiguousarray(scale)
    least = None if thresholds is None else np.ascontiguousarray(thresholds)
    search = _Search(
        matrix.ctypes.data, *matrix.shape, matrix.strides[0], None if scales is None else scales.ctypes.data,
        wanted.ctypes.data, len(wanted), k, None, 0, None, -1.0, None if least is None else least.ctypes.data,
        _TYPES.index(type_of(matrix)), METRICS[metric], threads,
    )  # fmt: skip
    _run("dl_topk", search, rows, bitmap, numbers.ctypes.data, best.ctypes.data)
    return numbers, best


def reaching(
    matrix: Buffer,
    count: int,
    dimension: int,
    dtype: Dtype,
    query: Buffer,
    metric: Metric,
    k: int,
    *,
    slack: float = 0.0,
    threshold: float | None = None,
    rows: Buffer | None = None,
    bitmap: Buffer | None = None,
    threads: int = 2,
) -> tuple[array[int], array[float]]:
    """Every row whose score reaches the ``k``-th best score, or misses it by ``slack`` at most; best first.

    Returns row numbers (int64) and their float64 scores, ties by the lowest row: all scored rows where there are not
    ``k`` of them. Rows that miss ``threshold`` by more than ``slack`` may be left out, too. The other arguments are
    those of ``scores`` and ``topk``. This is ``topk`` for one query without numpy, and without a choice among equals:
    SQL goes on from here with the other terms of its ORDER BY.

    >>> from array import array
    >>> rows, scores = reaching(array("f", [3, 1, 3, 2]), 4, 1, "float32", array("f", [1]), "inner", 1)
    >>> rows.tolist(), scores.tolist()
    ([0, 2], [3.0, 3.0])
    """
    check_matrix(matrix, count, dimension, dtype, query, metric)
    _check_choice(k, 1, metric, rows, bitmap, count)
    if not slack >= 0:
        raise InputError(f"slack is {slack}; expected at least 0")
    library = choice().library
    if library is None:
        return fallback.reaching(matrix, count, dimension, dtype, query, metric, k, slack, rows, bitmap)
    code, least = _TYPES.index(dtype), ctypes.c_double(math.nan if threshold is None else threshold)
    with Pin("matrix", matrix) as m, Pin("query", query) as q:
        search = _Search(
            m.address, count, dimension, dimension * (4 if dtype == "float32" else 2), None, q.address, 1, k, None, 0,
            None, slack, ctypes.addressof(least), code, METRICS[metric], threads,
        )  # fmt: skip
        return _reaching(library, search, rows, bitmap)


def _reaching(
    library: ctypes.CDLL, search: _Search, rows: Buffer | None, bitmap: Buffer | None
) -> tuple[array[int], array[float]]:
    numbers, scores, held = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int64()
    found, best = array("q"), array("d")
    try:
        _run("dl_reaching", search, rows, bitmap, *(ctypes.byref(place) for place in (numbers, scores, held)))
        found.frombytes(ctypes.string_at(numbers, 8 * held.value))
        best.frombytes(ctypes.string_at(scores, 8 * held.value))
    finally:
        for memory in (numbers, scores):
            library.dl_release(memory)
    return found, best


class _Search(ctypes.Structure):
    """What the C functions are given; the order is that of struct search in native/topk.c."""

    _fields_ = (
        ("matrix", ctypes.c_void_p), ("count", ctypes.c_int64), ("dimension", ctypes.c_int64),
        ("stride", ctypes.c_int64), ("scale", ctypes.c_void_p), ("queries", ctypes.c_void_p),
        ("wanted", ctypes.c_int64), ("k", ctypes.c_int64), ("rows", ctypes.c_void_p), ("listed", ctypes.c_int64),
        ("bitmap", ctypes.c_void_p), ("slack", ctypes.c_double), ("thresholds", ctypes.c_void_p),
        ("dtype", ctypes.c_int32), ("metric", ctypes.c_int32), ("threads", ctypes.c_int32),
    )  # fmt: skip


def _run(name: str, search: _Search, rows: Buffer | None, bitmap: Buffer | None, *out: object) -> None:
    """Calls a C function with the filter pinned, and raises what it reports."""
    chosen = choice()
    listed = None if rows is None else items("rows", rows, INT64, "int64 row numbers")
    with Pin("rows", b"" if listed is None else listed) as r, Pin("bitmap", b"" if bitmap is None else bitmap) as b:
        # a filter of nothing may have no address, and is not the lack of a filter: any address will do
        search.rows = None if listed is None else r.address or ctypes.addressof(search)
        search.bitmap = None if bitmap is None else b.address or ctypes.addressof(search)
        search.listed = r.nbytes // 8
        bad = getattr(chosen.library, name)(chosen.level, ctypes.byref(search), *out)
    if bad < 0:
        raise MemoryError(f"no memory for the best {search.k} of {search.count} rows for {search.wanted} queries")
    if bad > 0 and listed is not None:
        raise InputError(f"rows[{bad - 1}] is {listed[bad - 1]}; the matrix has rows 0..{search.count - 1}")


def topk_error(dimension: int, dtype: VectorType) -> float:
    """How far a scan's score may lie from the exact one, as a share of its scale; only its speed depends on it.

    The scale is that of ``score_error``, but ``|row| * |query| + |row| ** 2`` for the square of an l2 distance. A
    float32 sum rounds once per element of a lane and once per fold; batches also round row and query to bfloat16,
    which holds bfloat16 and int8 rows exactly.

    >>> topk_error(768, "float32") < 0.005
    True
    """
    if dtype not in _TYPES:
        raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(_TYPES)}")
    halves = 2.0**-8 if dtype in ("float32", "float16") else 2.0**-9
    return (4 * dimension + 64) * 2.0**-24 + halves + 2.0**-16


def _check_arrays(
    matrix: NDArray[Any], queries: NDArray[Any], scale: NDArray[Any] | None, thresholds: NDArray[Any] | None
) -> None:
    kind = type_of(matrix)
    if queries.dtype.str != "<f4":
        raise TypeMismatchError(f"queries are {queries.dtype}; expected float32")
    if queries.ndim != 2 or queries.shape[1] != matrix.shape[1]:
        raise DimensionError(f"queries are {queries.shape}; expected (q, {matrix.shape[1]})")
    if (scale is not None) != (kind == "int8"):
        raise InputError(f"the matrix is {kind} and scale is {'given' if scale is not None else None}; int8 needs one")
    if scale is not None and (scale.dtype.str != "<f4" or scale.shape != matrix.shape[:1]):
        raise DimensionError(f"scale is {scale.shape} {scale.dtype}; expected ({len(matrix)},) float32")
    if thresholds is not None and (thresholds.dtype.str != "<f8" or thresholds.shape != queries.shape[:1]):
        found = f"{thresholds.shape} {thresholds.dtype}"
        raise DimensionError(f"thresholds are {found}; expected ({len(queries)},) float64")


def type_of(matrix: NDArray[Any]) -> VectorType:
    """What the elements of a matrix are; refuses what is no matrix of contiguous rows."""
    kinds: dict[str, VectorType] = {
        "<f4": "float32", "<f2": "float16", "<u2": "bfloat16", "|V2": "bfloat16", "<V2": "bfloat16", "|i1": "int8",
    }  # fmt: skip
    kind = kinds.get(matrix.dtype.str)
    if kind is None:
        raise TypeMismatchError(f"the matrix is {matrix.dtype}; expected one of {', '.join(_TYPES)}")
    if matrix.ndim != 2 or matrix.shape[1] < 1:
        raise DimensionError(f"the matrix is {matrix.shape}; expected (n, d) with d of at least 1")
    if matrix.size and matrix.shape[1] > 1 and matrix.strides[1] != matrix.itemsize:
        raise TypeMismatchError(f"the elements of a row lie {matrix.strides[1]} bytes apart; expected contiguous rows")
    return kind


def _check_choice(k: int, queries: int, metric: str, rows: object, bitmap: Buffer | None, count: int) -> None:
    if metric not in METRICS:
        raise InputError(f"metric is {metric!r}; expected one of {', '.join(METRICS)}")
    if k < 1 or k * queries > _MOST_RESULTS:
        raise InputError(f"k is {k} for {queries} queries; expected at least 1, and {_MOST_RESULTS} results at most")
    if rows is not None and bitmap is not None:
        raise InputError("rows and bitmap are both given; expected one of them")
    if bitmap is not None and items("bitmap", bitmap, "B", "uint8").nbytes < (count + 7) // 8:
        found = memoryview(bitmap).nbytes
        raise DimensionError(f"bitmap holds {found} bytes; {count} rows need {(count + 7) // 8}")
