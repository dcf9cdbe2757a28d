"""What one search on a device is about, and the numbers that its engines share."""

from __future__ import annotations

import os
import shutil
import sysconfig
from dataclasses import dataclass, replace
from functools import cache
from importlib import util
from typing import Literal, Protocol

import torch

Metric = Literal["cosine", "l2", "inner"]
METRICS: tuple[Metric, ...] = ("cosine", "l2", "inner")

GROUP = 32
"""Rows per group: a scan stores one number for each (0.5 % of what it reads at 768 float16 and 64 queries)."""

LANES = 16
"""Partial sums of a score (``reference.scores``)."""

TINY = 1e-27
"""Shorter rows are not judged by a scan: tensor cores may take their subnormal products for zero."""

MOST_POWER = 60
"""l2 queries whose largest element is beyond 2**60, or below 2**-60, are not judged by a scan, which is in float32."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Rows to search and queries, checked; positions count ``rows`` where there is such a list, else the matrix."""

    matrix: torch.Tensor
    queries: torch.Tensor
    metric: Metric
    norms: torch.Tensor
    scale: torch.Tensor | None
    rows: torch.Tensor | None
    bitmap: torch.Tensor | None

    @property
    def dimension(self) -> int:
        return self.matrix.shape[1]

    @property
    def positions(self) -> int:
        return len(self.matrix if self.rows is None else self.rows)

    @property
    def groups(self) -> int:
        return -(-self.positions // GROUP)

    def of(self, queries: torch.Tensor) -> Problem:
        """The same rows for other queries."""
        return replace(self, queries=queries)


class Engine(Protocol):
    """One way to run the two passes over the matrix."""

    def scan(self, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
        """(keys (q, groups) int64, facts (q, 3) float64).

        A key packs what no score of the group's rows exceeds, in the query's own scale, above the group's number;
        facts are a query's squared length in that scale, the scale (a power of two), and 1 where it has no scores.
        """

    def rescore(self, problem: Problem, groups: torch.Tensor) -> torch.Tensor:
        """(q, groups * GROUP) float64 scores of those groups (q, m), exact, l2 negated; -inf where there is none."""


def slack_of(dimension: int, kind: torch.dtype) -> float:
    """How far a float32 sum of a scan may lie from the exact one, as a share of |row| * |query|.

    Tensor cores cut sums off instead of rounding them, so each of D additions may cost 2**-23; three products of
    tf32 halves stand for one of float32 and miss 2**-20 of it.
    """
    return (dimension + 64) * 2.0**-23 + (2.0**-19 if kind == torch.float32 else 0.0)


def interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _can_launch() -> bool:
    """Whether Triton is installed, and the C compiler and Python's headers with which it builds its launcher."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
    return bool(compiler) and headers and util.find_spec("triton") is not None


def engine_of(tensor: torch.Tensor) -> Literal["triton", "torch"]:
    """What runs the kernels on a tensor: Triton where it can, on CUDA or under its interpreter."""
    return "triton" if interpreting() or (tensor.is_cuda and _can_launch()) else "torch"
