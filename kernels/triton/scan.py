"""The two passes of a search as Triton kernels.

The shapes of the tiles are fixed, not tuned at run time: several programs of 60 to 100 KB of shared memory fit a
multiprocessor of Hopper (228 KB), so that one loads while another ends. Offsets into the matrix are 64 bits wide:
2.8 million rows of 768 pass 2**31 elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from .problem import GROUP, LANES, METRICS, MOST_POWER, TINY, Problem, interpreting, slack_of

COSINE: tl.constexpr = tl.constexpr(METRICS.index("cosine"))
L2: tl.constexpr = tl.constexpr(METRICS.index("l2"))
LEVELS: tl.constexpr = tl.constexpr(63.0)  # a query's int8 part: its elements, below 2, times 63, rounded ...
FINER: tl.constexpr = tl.constexpr(254.0)  # ... and what is left of them, times 254


@dataclass(frozen=True, slots=True)
class Tile:
    """How a scan is cut: rows and elements of a tile, tiles under way, warps, parts that a query is held in."""

    rows: int
    step: int
    stages: int
    warps: int
    parts: int


_NARROW = {
    torch.float32: Tile(128, 32, 3, 4, 1),
    torch.float16: Tile(128, 64, 3, 4, 2),
    torch.bfloat16: Tile(128, 64, 3, 4, 2),
    torch.int8: Tile(128, 128, 3, 4, 2),
}
"""Up to 32 queries."""

_WIDE = {
    torch.float32: Tile(128, 32, 4, 8, 1),
    torch.float16: Tile(256, 64, 4, 8, 1),
    torch.bfloat16: Tile(256, 64, 4, 8, 2),
    torch.int8: Tile(256, 128, 3, 8, 2),
}
"""33 to 64 queries: rows twice as many, since the queries come from the cache again for every tile."""


def tile_of(kind: torch.dtype, queries: int) -> Tile:
    return (_NARROW if queries <= 32 else _WIDE)[kind]


def scan_constants(problem: Problem) -> dict[str, Any]:
    """What the scan is compiled for."""
    kind, dimension = problem.matrix.dtype, problem.dimension
    width = max(16, triton.next_power_of_2(len(problem.queries)))
    tile = tile_of(kind, width)
    step = min(tile.step, max(32, triton.next_power_of_2(dimension)))
    return {
        "DIMENSION": dimension,
        "TILE": tile.rows,
        "STEP": step,
        "WIDTH": width,
        "PARTS": tile.parts,
        "IN_GROUP": GROUP,
        "METRIC": METRICS.index(problem.metric),
        "HAS_SCALE": problem.scale is not None,
        "HAS_ROWS": problem.rows is not None,
        "HAS_BITS": problem.bitmap is not None,
        "EVEN": dimension % step == 0,
        "SHORTEST": TINY,
        "WIDEN": kind == torch.bfloat16 and interpreting(),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "enable_fp_fusion": True,
    }


@triton.jit
def prepare_kernel(
    QUERIES, PARTS_OUT, SLACK, FACTS, queries, share,
    DIMENSION: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr, METRIC: tl.constexpr,
    HIGHEST: tl.constexpr,
):  # fmt: skip
    """One query: its parts in the matrix's type, what its bounds lie off, its facts (``Engine.scan``)."""
    query = tl.program_id(0)
    at = tl.arange(0, PADDED)
    given = tl.load(QUERIES + query * DIMENSION + at, mask=at < tl.where(query < queries, DIMENSION, 0), other=0.0)
    finite = tl.min((tl.abs(given) < float("inf")).to(tl.int32), 0)
    given = tl.where(finite > 0, given, 0.0)
    exponent = (tl.max(tl.abs(given), 0).to(tl.int32, bitcast=True) >> 23) - 127
    power = ((1023 + exponent).to(tl.int64) << 52).to(tl.float64, bitcast=True)
    hat = given.to(tl.float64) / power
    kind = PARTS_OUT.dtype.element_ty
    rest = hat
    for part in tl.static_range(PARTS):
        if kind == tl.int8:
            levels = LEVELS if part == 0 else LEVELS * FINER
            held = tl.floor((rest * levels).to(tl.float32) + 0.5).to(tl.int8)
            rest -= held.to(tl.float64) / levels
        else:
            held = rest.to(tl.float32).to(kind)
            rest -= held.to(tl.float32).to(tl.float64)
        tl.store(PARTS_OUT + (part * WIDTH + query) * DIMENSION + at, held, mask=at < DIMENSION)
    square = tl.sum(hat * hat, 0)
    slack = (share * tl.sqrt(square) + tl.sqrt(tl.sum(rest * rest, 0))) * 1.001
    if METRIC == L2:
        slack = tl.where((exponent > HIGHEST) | ((exponent < -HIGHEST) & (square > 0)), float("inf"), slack)
    dead = finite == 0
    if METRIC == COSINE:
        dead = dead | (square == 0)
    tl.store(SLACK + query, slack.to(tl.float32))
    tl.store(FACTS + query * 3, square)
    tl.store(FACTS + query * 3 + 1, power)
    tl.store(FACTS + query * 3 + 2, dead.to(tl.float64))


@triton.jit
def _rows_at(ROWS, BITS, at, positions, HAS_ROWS: tl.constexpr, HAS_BITS: tl.constexpr):
    """The rows at those positions, and which of them are to be read."""
    keep = at < positions
    rows = at
    if HAS_ROWS:
        rows = tl.load(ROWS + at, mask=keep, other=0)
    if HAS_BITS:
        byte = tl.load(BITS + (rows >> 3), mask=keep, other=0).to(tl.int32)
        keep = keep & (((byte >> (rows & 7).to(tl.int32)) & 1) != 0)
    return rows, keep


@triton.jit
def _dots(
    X, PARTS_IN, rows, keep, row_stride,
    DIMENSION: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
    EVEN: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """(TILE, WIDTH) float32 products of rows and queries."""
    of_step = tl.arange(0, STEP)
    x_at = X + rows[:, None] * row_stride + of_step[None, :]
    q_at = PARTS_IN + tl.arange(0, WIDTH)[None, :] * DIMENSION + of_step[:, None]
    whole: tl.constexpr = X.dtype.element_ty == tl.int8
    kind: tl.constexpr = tl.int32 if whole else tl.float32
    total = tl.zeros((TILE, WIDTH), dtype=kind)
    fine = tl.zeros((TILE, WIDTH), dtype=kind)
    for k in tl.range(0, DIMENSION, STEP):
        x_mask = keep[:, None]
        q_mask = None
        if not EVEN:
            x_mask = x_mask & (of_step < DIMENSION - k)[None, :]
            q_mask = (of_step < DIMENSION - k)[:, None]
        x = tl.load(x_at + k, mask=x_mask, other=0)
        if WIDEN:
            x = x.to(tl.float32)
        for part in tl.static_range(PARTS):
            q = tl.load(q_at + (part * WIDTH * DIMENSION + k), mask=q_mask)
            if WIDEN:
                q = q.to(tl.float32)
            if whole and part > 0:
                fine = tl.dot(x, q, fine, out_dtype=kind)
            else:
                total = tl.dot(x, q, total, out_dtype=kind, input_precision="tf32x3")
    if whole:
        return (total.to(tl.float32) + fine.to(tl.float32) * (1 / FINER)) * (1 / LEVELS)
    else:
        return total


@triton.jit
def scan_kernel(
    X, PARTS_IN, SLACK, FACTS, NORMS, SCALE, BITS, ROWS, KEYS, positions, groups, queries, row_stride,
    DIMENSION: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
    IN_GROUP: tl.constexpr, METRIC: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_ROWS: tl.constexpr,
    HAS_BITS: tl.constexpr, EVEN: tl.constexpr, SHORTEST: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One tile of rows: the key of each of its groups for each query."""
    tile = tl.program_id(0).to(tl.int64)
    at = tile * TILE + tl.arange(0, TILE)
    rows, keep = _rows_at(ROWS, BITS, at, positions, HAS_ROWS, HAS_BITS)
    group = tile * (TILE // IN_GROUP) + tl.arange(0, TILE // IN_GROUP)
    query = tl.arange(0, WIDTH)
    bound = tl.full((TILE // IN_GROUP, WIDTH), float("-inf"), tl.float32)
    live = True
    if HAS_BITS:
        live = tl.max(keep.to(tl.int32), 0) > 0
    if live:
        dots = _dots(X, PARTS_IN, rows, keep, row_stride, DIMENSION, TILE, STEP, WIDTH, PARTS, EVEN, WIDEN)
        if HAS_SCALE:
            dots = dots * tl.load(SCALE + rows, mask=keep, other=0.0)[:, None]
        norm = tl.load(NORMS + rows, mask=keep, other=float("nan"))[:, None]
        slack = tl.load(SLACK + query)[None, :]
        if METRIC == COSINE:
            above = dots / norm + slack
            known = norm > 0
        elif METRIC == L2:
            square = norm * norm * (1 / tl.load(FACTS + query * 3 + 1)).to(tl.float32)[None, :]
            above = 2 * dots - square + (2 * slack * norm + square * 0.00000095367431640625)
            known = norm == norm
        else:
            above = dots + slack * norm
            known = norm == norm
        judged = (tl.abs(above) < float("inf")) & ((norm == 0) | (norm >= SHORTEST))
        above = tl.where(known, tl.where(judged, above, float("inf")), float("-inf"))
        bound = tl.max(tl.reshape(above, (TILE // IN_GROUP, IN_GROUP, WIDTH)), axis=1)
    bits = bound.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    key = (ordered << 32) | (4294967295 - group)[:, None]
    inside = (group < groups)[:, None] & (query < queries)[None, :]
    tl.store(KEYS + query[None, :].to(tl.int64) * groups + group[:, None], key, mask=inside)


@triton.jit
def _folded(sums, COUNT: tl.constexpr):
    """(COUNT,) sums of 16 lanes, folded in halves; two terms have but one order."""
    sums = tl.sum(tl.reshape(sums, (COUNT, 2, 8)), axis=1)
    sums = tl.sum(tl.reshape(sums, (COUNT, 2, 4)), axis=1)
    sums = tl.sum(tl.reshape(sums, (COUNT, 2, 2)), axis=1)
    return tl.sum(sums, axis=1)


@triton.jit
def rescore_kernel(
    X, QUERIES, NORMS, SCALE, BITS, ROWS, GROUPS, OUT, positions, taken, row_stride,
    DIMENSION: tl.constexpr, IN_GROUP: tl.constexpr, LANE_COUNT: tl.constexpr, UNROLLED: tl.constexpr,
    METRIC: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_BITS: tl.constexpr,
):  # fmt: skip
    """The exact scores of one group for one query, summed in the order of ``reference.scores``."""
    slot = tl.program_id(0)
    query = tl.program_id(1).to(tl.int64)
    group = tl.load(GROUPS + query * taken + slot)
    rows, keep = _rows_at(ROWS, BITS, group * IN_GROUP + tl.arange(0, IN_GROUP), positions, HAS_ROWS, HAS_BITS)
    norm = tl.load(NORMS + rows, mask=keep, other=float("nan"))
    keep = keep & (norm == norm)
    scale = norm
    if HAS_SCALE:
        scale = tl.load(SCALE + rows, mask=keep, other=0.0)
    lane = tl.arange(0, LANE_COUNT)
    product = tl.zeros((IN_GROUP, LANE_COUNT), tl.float64)
    of_row = tl.zeros((IN_GROUP, LANE_COUNT), tl.float64)
    of_query = tl.zeros((1, LANE_COUNT), tl.float64)
    for start in range(0, DIMENSION, LANE_COUNT * UNROLLED):
        for turn in tl.static_range(UNROLLED):  # loads that wait for no sum
            k = start + turn * LANE_COUNT + lane[None, :]
            x = tl.load(X + rows[:, None] * row_stride + k, mask=keep[:, None] & (k < DIMENSION), other=0)
            x = x.to(tl.float32)
            if HAS_SCALE:
                x = x * scale[:, None]
            x = x.to(tl.float64)
            y = tl.load(QUERIES + query * DIMENSION + k, mask=k < DIMENSION, other=0).to(tl.float64)
            if METRIC == L2:
                x = x - y
                product += x * x
            else:
                product += x * y
                of_row += x * x
                of_query += y * y
    score = _folded(product, IN_GROUP)
    if METRIC == L2:
        score = -tl.sqrt(score)
    elif METRIC == COSINE:
        score = score / tl.sqrt(_folded(of_row, IN_GROUP) * _folded(of_query, 1))
        score = tl.where(score > 1, 1.0, tl.where(score < -1, -1.0, score))
    else:
        score = tl.where(_folded(of_query, 1) < float("inf"), score, float("nan"))
    score = tl.where(keep & (tl.abs(score) < float("inf")), score + 0.0, float("-inf"))
    tl.store(OUT + (query * taken + slot) * IN_GROUP + tl.arange(0, IN_GROUP), score)


def scan(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    matrix, count = problem.matrix, len(problem.queries)
    constants = scan_constants(problem)
    width, parts = constants["WIDTH"], constants["PARTS"]
    device = matrix.device
    held = torch.empty((parts, width, problem.dimension), dtype=matrix.dtype, device=device)
    slack = torch.empty(width, dtype=torch.float32, device=device)
    facts = torch.empty((width, 3), dtype=torch.float64, device=device)
    keys = torch.empty((count, problem.groups), dtype=torch.int64, device=device)
    prepare_kernel[(width,)](
        problem.queries, held, slack, facts, count, slack_of(problem.dimension, matrix.dtype),
        problem.dimension, triton.next_power_of_2(problem.dimension), width, parts, constants["METRIC"], MOST_POWER,
        enable_fp_fusion=True,
    )  # fmt: skip
    scan_kernel[(triton.cdiv(problem.positions, constants["TILE"]),)](
        matrix, held, slack, facts, problem.norms, *_optional(problem), keys, problem.positions, problem.groups, count,
        matrix.stride(0), **constants,
    )  # fmt: skip
    return keys, facts[:count]


def rescore(problem: Problem, groups: torch.Tensor) -> torch.Tensor:
    queries, taken = groups.shape
    out = torch.empty((queries, taken * GROUP), dtype=torch.float64, device=groups.device)
    rescore_kernel[(taken, queries)](
        problem.matrix, problem.queries, problem.norms, *_optional(problem), groups, out, problem.positions, taken,
        problem.matrix.stride(0), **rescore_constants(problem),
    )  # fmt: skip
    return out


def rescore_constants(problem: Problem) -> dict[str, Any]:
    """What rescoring is compiled for; a fused multiply-add would change the last bit of an l2 score."""
    return {
        "DIMENSION": problem.dimension,
        "IN_GROUP": GROUP,
        "LANE_COUNT": LANES,
        "UNROLLED": min(8, triton.cdiv(problem.dimension, LANES)),
        "METRIC": METRICS.index(problem.metric),
        "HAS_SCALE": problem.scale is not None,
        "HAS_ROWS": problem.rows is not None,
        "HAS_BITS": problem.bitmap is not None,
        "num_warps": 4,
        "enable_fp_fusion": False,
    }


def _optional(problem: Problem) -> list[torch.Tensor]:
    """Scale, bitmap and row list; a tensor that is never read stands for one that is not given."""
    return [problem.norms if given is None else given for given in (problem.scale, problem.bitmap, problem.rows)]
