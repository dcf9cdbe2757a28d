"""The two passes of a search in torch's operations: for devices without Triton, and to test the rest on the CPU."""

from __future__ import annotations

import numpy as np
import torch

from .problem import GROUP, LANES, MOST_POWER, TINY, Problem, slack_of

_CHUNK = 1024 * GROUP
"""Rows whose scores are held at a time."""


def scan(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    queries, facts, slack = _prepare(problem)
    keys = torch.empty(len(queries), problem.groups, dtype=torch.int64, device=queries.device)
    inverse = (1 / facts[:, 1]).float()
    for start in range(0, problem.positions, _CHUNK):
        rows, keep = _chosen(problem, torch.arange(start, min(start + _CHUNK, problem.positions), device=keys.device))
        dots = floats(problem, rows) @ queries.T
        bounds = _bounds(dots, problem.norms[rows][:, None], slack, inverse, problem.metric)
        bounds = torch.where(keep[:, None], bounds, -torch.inf)
        short = -len(bounds) % GROUP
        bounds = torch.nn.functional.pad(bounds, (0, 0, 0, short), value=-torch.inf)
        best = bounds.reshape(-1, GROUP, len(queries)).amax(dim=1).T
        keys[:, start // GROUP : start // GROUP + best.shape[1]] = _pack(best, start // GROUP)
    return keys, facts


def _prepare(problem: Problem) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries brought to a largest element of 1 to 2, their facts (``Engine.scan``), and how far a bound lies off."""
    finite = problem.queries.isfinite().all(dim=1)
    queries = torch.where(finite[:, None], problem.queries, 0.0).double()
    exponent = torch.frexp(queries.abs().amax(dim=1)).exponent - 1
    power = torch.ldexp(torch.ones_like(queries[:, 0]), exponent)
    queries /= power[:, None]
    square = queries.square().sum(dim=1)
    dead = ~finite | ((square == 0) & (problem.metric == "cosine"))
    share = slack_of(problem.dimension, problem.matrix.dtype)
    if torch.get_float32_matmul_precision() != "highest" or torch.backends.cuda.matmul.allow_tf32:
        share += 2.0**-7
    slack = (share * square.sqrt()).float()
    slack[(exponent.abs() > MOST_POWER) & (problem.metric == "l2")] = torch.inf
    return queries.float(), torch.stack([square, power, dead.double()], dim=1), slack


def _chosen(problem: Problem, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows at those positions, and which of them may be found."""
    rows = at if problem.rows is None else problem.rows[at]
    norms = problem.norms[rows]
    keep = ~norms.isnan() & ((norms > 0) | (problem.metric != "cosine"))
    if problem.bitmap is not None:
        keep &= (problem.bitmap[rows >> 3] >> (rows & 7) & 1) > 0
    return rows, keep


def floats(problem: Problem, rows: torch.Tensor) -> torch.Tensor:
    """Those rows as float32."""
    part = problem.matrix[rows].float()
    return part if problem.scale is None else part * problem.scale[rows][:, None]


def _bounds(
    dots: torch.Tensor, norms: torch.Tensor, slack: torch.Tensor, inverse: torch.Tensor, metric: str
) -> torch.Tensor:
    """What the scores do not exceed, in the queries' scales; infinity where float32 cannot tell."""
    if metric == "cosine":
        above = dots / norms + slack
    elif metric == "inner":
        above = dots + slack * norms
    else:
        square = norms * norms * inverse
        above = 2 * dots - square + (2 * slack * norms + square * 2.0**-20)
    judged = above.isfinite() & ((norms == 0) | (norms >= TINY))
    return torch.where(judged, above, torch.inf)


def _pack(bounds: torch.Tensor, first: int) -> torch.Tensor:
    """Keys that order by bound, then by group, the lower one above."""
    bits = bounds.contiguous().view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    groups = torch.arange(first, first + bounds.shape[1], device=bounds.device)
    return (ordered << 32) | (0xFFFFFFFF - groups)


def rescore(problem: Problem, groups: torch.Tensor) -> torch.Tensor:
    each = [_rescore_one(problem, q, of_query) for q, of_query in zip(problem.queries, groups, strict=True)]
    return torch.stack(each)


def _rescore_one(problem: Problem, query: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    at = (groups[:, None] * GROUP + torch.arange(GROUP, device=groups.device)).ravel()
    return torch.cat([_scores(problem, query, at[start : start + _CHUNK]) for start in range(0, len(at), _CHUNK)])


def _scores(problem: Problem, query: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    inside = at < problem.positions
    rows, keep = _chosen(problem, at.clamp(max=problem.positions - 1))
    padding = (0, -problem.dimension % LANES)
    x = torch.nn.functional.pad(floats(problem, rows).double(), padding).reshape(len(rows), -1, LANES)
    y = torch.nn.functional.pad(query.double(), padding).reshape(1, -1, LANES)
    if problem.metric == "l2":
        signed = -_root(_sums(x - y, x - y))
    elif problem.metric == "inner":
        signed = torch.where(_sums(y, y).isfinite(), _sums(x, y), torch.nan)
    else:
        signed = (_sums(x, y) / _root(_sums(x, x) * _sums(y, y))).clamp(-1, 1)
    return torch.where(inside & keep & signed.isfinite(), signed + 0.0, -torch.inf)


def _sums(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of the products, in the order that ``reference.scores`` states."""
    total = torch.zeros_like(a[:, 0] * b[:, 0])
    for step in range(a.shape[1]):
        total += a[:, step] * b[:, step]
    for half in (8, 4, 2, 1):
        total = total[:, :half] + total[:, half:]
    return total[:, 0]


def _root(values: torch.Tensor) -> torch.Tensor:
    """The square roots, rounded as IEEE 754 says; torch's own on the CPU may miss the last bit."""
    return values.sqrt() if values.is_cuda else torch.from_numpy(np.sqrt(values.numpy()))
