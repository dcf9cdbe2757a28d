"""Scores of stored vectors against one query, and the selection of the best: exact search without numpy.

Every implementation sums in float64 in one fixed order (``reference.scores`` states it), so that a row has the same
score, to the last bit, alone, in a row list and in a full scan, on every processor and in the Python fallback.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Literal

from deeplake_loader.errors import DimensionError, InputError, TypeMismatchError

from . import fallback, reference
from .buffers import FLOAT64, INT64, Pin, items
from .library import address, choice

if TYPE_CHECKING:
    from typing_extensions import Buffer

Metric = Literal["cosine", "l2", "inner"]
Dtype = Literal["float32", "float16"]

METRICS = {"cosine": 0, "l2": 1, "inner": 2}
_DTYPES = {"float32": (0, 4, "fB"), "float16": (1, 2, "eB")}  # code, bytes, buffer formats (B: an mmap, bytes)


def scores(
    matrix: Buffer,
    count: int,
    dimension: int,
    dtype: Dtype,
    query: Buffer,
    metric: Metric,
    rows: Buffer | None = None,
    threads: int = 2,
) -> array[float]:
    """One float64 score per row: cosine similarity in [-1, 1], Euclidean distance ("l2") or inner product.

    ``matrix`` holds ``count`` rows of ``dimension`` elements of ``dtype``, row after row; ``query`` is float32 and
    ``dimension`` long; ``rows`` (int64) chooses rows, in its order, repeats allowed; None scores all. A row has no
    score, and NaN stands for it, when it or the query holds NaN or infinity, or is all zero under "cosine".

    >>> from array import array
    >>> scores(array("f", [1, 0, 0, 2]), 2, 2, "float32", array("f", [0, 1]), "cosine").tolist()
    [0.0, 1.0]
    """
    check_matrix(matrix, count, dimension, dtype, query, metric)
    wanted = None if rows is None else items("rows", rows, INT64, "int64 row numbers")
    chosen = choice()
    if chosen.library is None:
        return fallback.scores(matrix, count, dimension, dtype, query, metric, wanted)
    size = count if wanted is None else wanted.nbytes // 8
    out = array("d", bytes(8 * size))
    with Pin("matrix", matrix) as m, Pin("query", query) as q, Pin("rows", b"" if wanted is None else wanted) as r:
        bad = chosen.library.dl_scores(
            chosen.level, m.address, count, dimension, _DTYPES[dtype][0], q.address, METRICS[metric],
            None if wanted is None else r.address, size, address(out), threads,
        )  # fmt: skip
    if bad < 0:
        raise MemoryError(f"no memory for a query of {dimension} elements")
    if bad > 0 and wanted is not None:
        raise InputError(f"rows[{bad - 1}] is {wanted[bad - 1]}; the matrix has rows 0..{count - 1}")
    return out


def check_matrix(matrix: Buffer, count: int, dimension: int, dtype: str, query: Buffer, metric: str) -> None:
    """Refuses a matrix that holds less than it is said to hold, and a query of another length."""
    if metric not in METRICS:
        raise InputError(f"metric is {metric!r}; expected one of {', '.join(METRICS)}")
    if dtype not in _DTYPES:
        raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(_DTYPES)}")
    if count < 0 or dimension < 1:
        raise DimensionError(f"the matrix is said to have {count} rows of {dimension}; expected >= 0 rows of >= 1")
    _, size, formats = _DTYPES[dtype]
    held = items("matrix", matrix, formats, f"{dtype} items or bytes").nbytes
    if held < count * dimension * size:
        raise DimensionError(
            f"the matrix holds {held} bytes; {count} rows of {dimension} {dtype} are {count * dimension * size}"
        )
    found = items("query", query, "fB", "float32 items or bytes").nbytes
    if found != 4 * dimension:
        raise DimensionError(f"the query holds {found} bytes; a float32 vector of {dimension} is {4 * dimension}")


def score_error(dimension: int) -> float:
    """How far a score may lie from the same score in any other order of float64 sums, as a share of its scale.

    The scale is 1 for cosine, ``|row| * |query|`` for the inner product, the distance itself for l2. The backends
    here do not differ from each other at all.

    >>> score_error(768) < 2e-13
    True
    """
    return 2 * (dimension + 8) * 2.0**-53


def kth_best(scores: Buffer, k: int, largest: bool) -> float:
    """The ``k``-th largest (or smallest) of float64 ``scores``, repeats counted, NaN left out; NaN if there are fewer.

    >>> from array import array
    >>> kth_best(array("d", [3, 1, float("nan"), 2]), 2, largest=True)
    2.0
    """
    if k < 1:
        raise InputError(f"k is {k}; expected at least 1")
    view = items("scores", scores, FLOAT64, "float64 scores")
    chosen = choice()
    if chosen.library is None:
        return reference.kth_best(view, k, largest)
    out = array("d", [0.0])
    with Pin("scores", view) as pin:
        count = pin.nbytes // 8
        failed = chosen.library.dl_kth_best(pin.address, count, min(k, count + 1), bool(largest), address(out))
    if failed:
        raise MemoryError(f"no memory for the best {k} of {view.nbytes // 8} scores")
    return out[0]


def at_least(scores: Buffer, threshold: float, largest: bool) -> array[int]:
    """The ascending positions of float64 ``scores`` that are >= ``threshold`` (<= if not ``largest``), never of NaN.

    >>> from array import array
    >>> at_least(array("d", [3, 1, float("nan"), 2]), 2.0, largest=True).tolist()
    [0, 3]
    """
    view = items("scores", scores, FLOAT64, "float64 scores")
    chosen = choice()
    if chosen.library is None:
        return array("q", reference.at_least(view, threshold, largest).tobytes())
    with Pin("scores", view) as pin:
        arguments = (pin.address, pin.nbytes // 8, threshold, bool(largest))
        out = array("q", bytes(8 * chosen.library.dl_at_least(*arguments, None)))
        chosen.library.dl_at_least(*arguments, address(out))
    return out


def parse_integers(text: str | bytes) -> array[int]:
    """The numbers of ``"12,34,-56"`` as int64; empty text gives none. For SQLite's ``group_concat``.

    Raises InputError at anything but decimal int64 numbers with one comma between them.

    >>> parse_integers("12,34,-56").tolist()
    [12, 34, -56]
    """
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if not isinstance(raw, bytes):
        raise TypeMismatchError(f"text is {type(text).__name__}; expected str or bytes")
    chosen = choice()
    if not raw:
        return array("q")
    if chosen.library is None:
        return fallback.parse_integers(raw)
    out = array("q", bytes(8 * (raw.count(b",") + 1)))
    bad = chosen.library.dl_parse_integers(raw, len(raw), address(out), len(out))
    if bad >= 0:
        raise InputError(f"no int64 number at byte {bad} of {raw[max(0, bad - 20) : bad + 20]!r}; expected '12,34,-56'")
    return out
