"""The best rows of a matrix on a device: exact and filtered, at little more than the cost of reading the matrix once.

1. A scan on tensor cores stores, for each group of 32 rows, a bound that no exact score in it exceeds: no (q, n)
   scores are kept. 2. The groups of the k best bounds, and some more, are chosen by packed integer keys. 3. Their rows
   are scored again in float64, in the order of sums of ``reference.scores``. 4. The k best are sorted out. Where the
   k-th of them does not beat the bound of the best group left out, all groups whose bound reaches it are scored: the
   result is exact whatever the scan's precision, which decides only how often that happens.

Maxima of bins keep selection exact: Dr. Top-k, arXiv 2109.08219.
"""

from __future__ import annotations

import torch

from deeplake_loader.errors import DimensionError, InputError, TypeMismatchError

from .problem import GROUP, METRICS, Engine, Metric, Problem, engine_of

_KINDS = (torch.float32, torch.float16, torch.bfloat16, torch.int8)
_BATCH = 64
"""Queries of one scan: more would leave no room in shared memory for the rows under way."""

_ROOM = 1 << 20
"""Groups that one round of rescoring holds at most, 256 bytes each (of one query: as many as there are)."""

_LAST = 0xFFFFFFFF


def topk(
    matrix: torch.Tensor,
    queries: torch.Tensor,
    k: int,
    metric: Metric,
    *,
    rows: torch.Tensor | None = None,
    bitmap: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    norms: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The row numbers (q, k) int64 and scores (q, k) float64 of the ``k`` best rows for each query, best first.

    ``kernels.topk`` on the matrix's device, with the same results: scores to the last bit those of ``kernels.scores``,
    ties by the lowest row, -1 and NaN where there are fewer than ``k``.

    ``matrix``: (n, d) float32, float16, bfloat16, or int8 with ``scale`` (n,) float32; contiguous rows. Rows that
    begin at multiples of 16 bytes are read at full speed. ``queries``: (q, d) or (d,) float32. ``metric``: "cosine"
    and "inner" (largest first), "l2" (smallest first). ``rows``: int64 numbers of the rows to search, repeats counted
    once, fastest when ascending; ``bitmap``: uint8, bit i % 8 of byte i // 8 stands for row i; a list is the faster of
    the two below some 70 % of the rows. ``norms``: what ``row_norms`` gives for the matrix; without it every call
    reads the matrix once more. All on one device. Memory beside the result: n / 4 bytes for each of up to 64 queries.

    Raises InputError, DimensionError or TypeMismatchError where the arguments do not fit.

    >>> import torch
    >>> rows, scores = topk(torch.eye(4), torch.tensor([0.0, 1, 0, 0]), 2, "cosine")
    >>> rows.tolist(), scores.tolist()
    ([[1, 0]], [[1.0, 0.0]])
    """
    wanted = queries if queries.ndim != 1 else queries[None]
    _check_tensors(matrix, wanted, scale, norms)
    _check_choice(k, metric, rows, bitmap, matrix)
    known = row_norms(matrix, scale) if norms is None else norms
    problem = Problem(matrix, wanted.contiguous(), metric, known, scale, _ascending(rows, len(matrix)), bitmap)
    found = [_batch(problem.of(part), k) for part in _split(problem.queries, _BATCH)]
    return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])


def row_norms(matrix: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    """(n,) float32: the length of each row, NaN where the row holds NaN or infinity. To be kept beside the matrix.

    >>> row_norms(torch.tensor([[3.0, 4.0], [0.0, float("inf")]])).tolist()
    [5.0, nan]
    """
    _check_matrix(matrix, scale)
    norms = torch.empty(len(matrix), dtype=torch.float32, device=matrix.device)
    step = max(1, (64 << 20) // matrix.shape[1])
    for start in range(0, len(matrix), step):
        part = matrix[start : start + step]
        floats = part if scale is None else part.float() * scale[start : start + step, None]
        exact = torch.linalg.vector_norm(floats, dim=1, dtype=torch.float64)
        norms[start : start + step] = torch.where(exact.isfinite(), exact, float("nan"))
    return norms


def _check_matrix(matrix: torch.Tensor, scale: torch.Tensor | None) -> None:
    if matrix.dtype not in _KINDS:
        raise TypeMismatchError(f"the matrix is {matrix.dtype}; expected float32, float16, bfloat16 or int8")
    if matrix.ndim != 2 or matrix.shape[1] < 1:
        raise DimensionError(f"the matrix is {tuple(matrix.shape)}; expected (n, d) with d of at least 1")
    if matrix.numel() and matrix.shape[1] > 1 and matrix.stride(1) != 1:
        raise TypeMismatchError(
            f"the elements of a row lie {matrix.stride(1)} elements apart; expected contiguous rows"
        )
    if (scale is not None) != (matrix.dtype == torch.int8):
        raise InputError(f"the matrix is {matrix.dtype} and scale is {'given' if scale is not None else None}")
    if scale is not None:
        _check_column("scale", scale, matrix)


def _check_column(name: str, column: torch.Tensor, matrix: torch.Tensor) -> None:
    if column.dtype != torch.float32 or column.shape != matrix.shape[:1] or column.device != matrix.device:
        found = f"{tuple(column.shape)} {column.dtype} on {column.device}"
        raise DimensionError(f"{name} is {found}; expected ({len(matrix)},) float32 on {matrix.device}")
    if not column.is_contiguous():
        raise TypeMismatchError(f"{name} has gaps between its numbers; expected a contiguous tensor")


def _check_tensors(
    matrix: torch.Tensor, queries: torch.Tensor, scale: torch.Tensor | None, norms: torch.Tensor | None
) -> None:
    _check_matrix(matrix, scale)
    if queries.dtype != torch.float32:
        raise TypeMismatchError(f"queries are {queries.dtype}; expected float32")
    if queries.ndim != 2 or queries.shape[1] != matrix.shape[1] or queries.device != matrix.device:
        found = f"{tuple(queries.shape)} on {queries.device}"
        raise DimensionError(f"queries are {found}; expected (q, {matrix.shape[1]}) on {matrix.device}")
    if norms is not None:
        _check_column("norms", norms, matrix)


def _check_choice(
    k: int, metric: str, rows: torch.Tensor | None, bitmap: torch.Tensor | None, matrix: torch.Tensor
) -> None:
    if metric not in METRICS:
        raise InputError(f"metric is {metric!r}; expected one of {', '.join(METRICS)}")
    if k < 1:
        raise InputError(f"k is {k}; expected at least 1")
    if rows is not None and bitmap is not None:
        raise InputError("rows and bitmap are both given; expected one of them")
    for name, chosen, kind in (("rows", rows, torch.int64), ("bitmap", bitmap, torch.uint8)):
        if chosen is not None and (chosen.ndim != 1 or chosen.dtype != kind or chosen.device != matrix.device):
            found = f"{chosen.ndim}-D {chosen.dtype} on {chosen.device}"
            raise TypeMismatchError(f"{name} is {found}; expected 1-D {kind} on {matrix.device}")
    if bitmap is not None and (len(bitmap) < (len(matrix) + 7) // 8 or not bitmap.is_contiguous()):
        found = f"{len(bitmap)} bytes, {bitmap.stride(0)} apart"
        raise DimensionError(f"bitmap holds {found}; {len(matrix)} rows need {(len(matrix) + 7) // 8}, contiguous")


def _ascending(rows: torch.Tensor | None, count: int) -> torch.Tensor | None:
    """The rows in ascending order, each once; one question to the device when they are so already."""
    if rows is None or not len(rows):
        return rows
    if not bool((rows[1:] > rows[:-1]).all()):
        rows = torch.unique(rows, sorted=True)
    first, last = rows[[0, -1]].tolist()
    if first < 0 or last >= count:
        raise InputError(f"rows holds {first if first < 0 else last}; the matrix has rows 0..{count - 1}")
    return rows.contiguous()


def _split(tensor: torch.Tensor, size: int) -> list[torch.Tensor]:
    return [tensor[start : start + size] for start in range(0, max(1, len(tensor)), size)]


def _engine(problem: Problem) -> Engine:
    if engine_of(problem.matrix) == "triton":
        from . import scan

        return scan
    from . import plain

    return plain


def _batch(problem: Problem, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The result for up to 64 queries."""
    if not problem.positions or not len(problem.queries):
        shape, device = (len(problem.queries), k), problem.matrix.device
        empty = torch.full(shape, float("nan"), dtype=torch.float64, device=device)
        return torch.full(shape, -1, dtype=torch.int64, device=device), empty
    engine = _engine(problem)
    keys, facts = engine.scan(problem)
    groups, left_out = _best_groups(keys, k + k // 8 + 8)
    numbers, signed = _best_rows(problem, engine, groups, k)
    reach = _in_scan_units(signed[:, -1], facts, problem.metric)
    certain = (facts[:, 2] > 0) | left_out.isneginf() | (reach > left_out)
    unsure = (~certain).nonzero().ravel()
    if len(unsure):
        _search_again(problem, engine, (keys, reach, unsure), (numbers, signed))
    return numbers, torch.where(signed.isneginf(), float("nan"), signed.abs() if problem.metric == "l2" else signed)


def _best_groups(keys: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The groups of the largest keys, ascending (q, count), and the bound of the next one; -inf if none is left."""
    queries, groups = keys.shape
    if count >= groups:
        every = torch.arange(groups, device=keys.device).expand(queries, groups).contiguous()
        return every, torch.full((queries,), float("-inf"), device=keys.device)
    best = keys.topk(count + 1, dim=1).values
    return (_LAST - (best[:, :count] & _LAST)).sort(dim=1).values, _bounds(best[:, count])


def _bounds(keys: torch.Tensor) -> torch.Tensor:
    """The float32 bounds in the upper halves of the keys."""
    ordered = (keys >> 32).to(torch.int32)
    return torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(torch.float32)


def _best_rows(problem: Problem, engine: Engine, groups: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row numbers and exact scores (l2 negated) of the k best rows of those groups; -1 and -inf where there is none."""
    values, places = engine.rescore(problem, groups).sort(dim=1, descending=True, stable=True)
    values, places = values[:, :k], places[:, :k]
    at = groups.gather(1, places // GROUP) * GROUP + places % GROUP
    numbers = at if problem.rows is None else problem.rows[at.clamp(max=problem.positions - 1)]
    numbers = torch.where(values.isneginf(), -1, numbers)
    missing = (0, k - values.shape[1])
    return torch.nn.functional.pad(numbers, missing, value=-1), torch.nn.functional.pad(
        values, missing, value=-torch.inf
    )


def _in_scan_units(signed: torch.Tensor, facts: torch.Tensor, metric: Metric) -> torch.Tensor:
    """What a bound must stay below for its group to hold no row as good; float64's own rounding is taken off."""
    square, power = facts[:, 0], facts[:, 1]
    if metric == "cosine":
        return signed * square.sqrt()
    if metric == "inner":
        return signed / power
    whole, distance = square * power, signed * signed / power
    return torch.where(signed.isneginf(), signed, whole - distance - 2.0**-48 * (whole + distance))


def _search_again(
    problem: Problem,
    engine: Engine,
    doubts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    result: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Scores every group whose bound reaches the k-th score found so far, for the queries that are unsure."""
    keys, reach, unsure = doubts
    numbers, signed = result
    bounds = _bounds(keys[unsure])
    reaching = (bounds >= reach[unsure, None]) & ~bounds.isneginf()
    count = int(reaching.sum(dim=1).max())
    for part in _split(unsure, max(1, _ROOM // count)):
        groups, _ = _best_groups(keys[part], count)
        found = _best_rows(problem.of(problem.queries[part]), engine, groups, numbers.shape[1])
        numbers[part], signed[part] = found
