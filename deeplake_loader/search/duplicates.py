"""Pairs of rows whose vectors are nearly the same: products of blocks, then the exact score wherever it could matter.

A block of rows against a block of rows is one matrix product in float32, whose error is bounded; only pairs that reach
the threshold within that bound are scored again, by the kernel that scores in SQL. Memory: two blocks of rows, one of
products, and the pairs that were found.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from deeplake_loader import kernels
from deeplake_loader.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from deeplake_loader.scoring import Metric

    Array = np.ndarray[Any, np.dtype[Any]]

BLOCK = 4_096
"""Rows of a block: its products are 64 MB."""


@dataclass(frozen=True, slots=True)
class NearDuplicates:
    """Pairs of rows that reach the threshold: rows ``left[i]`` and ``right[i]`` of ``keys`` score ``scores[i]``.

    ``keys``: the primary keys of all rows compared (tuples where they have several columns). Iterating gives (key, key,
    score), best pair first.
    """

    keys: Sequence[Any]
    left: Array
    right: Array
    scores: Array

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[tuple[Any, Any, float]]:
        pairs = zip(self.left.tolist(), self.right.tolist(), self.scores.tolist(), strict=True)
        return ((self.keys[a], self.keys[b], score) for a, b, score in pairs)

    def groups(self) -> list[list[Any]]:
        """The keys of rows that pairs hang together, each group in order of the rows, the largest first. Keeping one
        of each group leaves no pair."""
        parents = {row: row for pair in (self.left, self.right) for row in pair.tolist()}

        def root(row: int) -> int:
            while parents[row] != row:
                parents[row] = row = parents[parents[row]]
            return row

        for a, b in zip(self.left.tolist(), self.right.tolist(), strict=True):
            a, b = sorted((root(a), root(b)))
            parents[b] = a
        found: dict[int, list[int]] = {}
        for row in sorted(parents):
            found.setdefault(root(row), []).append(row)
        return [[self.keys[row] for row in rows] for rows in sorted(found.values(), key=len, reverse=True)]


def find(
    keys: Sequence[Any],
    addresses: Array,
    read: Callable[[Array], Array],
    threshold: float,
    metric: Metric,
    *,
    max_pairs: int,
    progress: Callable[[int], object],
) -> NearDuplicates:
    """The pairs of rows whose score reaches ``threshold`` (l2: whose distance does not exceed it).

    Args:
        read: gives the vectors of addresses, one a row, in any dtype of float.
        progress: called with the number of pairs compared since the last call.

    Raises:
        InputError: more than ``max_pairs``.
    """
    import numpy as np

    order = np.argsort(addresses, kind="stable")
    found: list[tuple[Array, Array, Array]] = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    total = 0
    for first in range(0, len(order), BLOCK):
        rows = _Block.of(order[first : first + BLOCK], addresses, read, metric)
        for other in range(first, len(order), BLOCK):
            others = rows if other == first else _Block.of(order[other : other + BLOCK], addresses, read, metric)
            pairs = _compared(rows, others, threshold, metric)
            progress(len(rows.rows) * len(others.rows))
            total += len(pairs[2])
            if total > max_pairs:
                raise InputError(
                    f"more than {max_pairs} pairs reach {threshold}; ask for nearer ones, fewer rows (where=), or "
                    "raise max_pairs (24 bytes a pair)"
                )
            found.append(pairs)
    left, right, scores = (np.concatenate([pairs[i] for pairs in found]) for i in range(3))
    left, right = np.minimum(left, right), np.maximum(left, right)
    best = np.lexsort((right, left, scores if metric == "l2" else -scores))
    return NearDuplicates(keys, left[best], right[best], scores[best])


@dataclass(frozen=True, slots=True)
class _Block:
    """Some rows: their numbers, vectors as stored, the same for the products (cosine: of length 1), squared lengths."""

    rows: Array
    stored: Array
    points: Array
    squares: Array

    @classmethod
    def of(cls, rows: Array, addresses: Array, read: Callable[[Array], Array], metric: Metric) -> _Block:
        import numpy as np

        stored = np.ascontiguousarray(read(addresses[rows]))
        points = stored.astype(np.float32)
        squares = np.einsum("ij,ij->i", stored, stored, dtype=np.float64)
        if metric == "cosine":
            lengths = np.sqrt(squares)
            points = (stored / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32)
        return cls(rows, stored, points, squares)


def _compared(a: _Block, b: _Block, threshold: float, metric: Metric) -> tuple[Array, Array, Array]:
    """(row, row, score) of the pairs of two blocks; of a block with itself, each pair once."""
    import numpy as np

    with np.errstate(all="ignore"):
        near = ~_surely_apart(a, b, threshold, metric)  # what overflowed is NaN, and scored
    if a is b:
        near = np.triu(near, 1)
    left, right = np.nonzero(near)
    scores = np.empty(len(left))
    for row in np.unique(left):
        held = slice(*np.searchsorted(left, (row, row + 1)))
        scores[held] = _scores(a.stored[row], b.stored, right[held], metric)
    reached = scores <= threshold if metric == "l2" else scores >= threshold
    return a.rows[left[reached]], b.rows[right[reached]], scores[reached]


def _surely_apart(a: _Block, b: _Block, threshold: float, metric: Metric) -> Array:
    """Which pairs cannot reach the threshold, whatever float32 rounded."""
    import numpy as np

    products = a.points @ b.points.T
    error = (a.points.shape[1] + 64) * 2.0**-23
    if metric == "cosine":
        return np.asarray(products < threshold - error)
    scale = np.sqrt(a.squares)[:, None] * np.sqrt(b.squares)[None, :]
    if metric == "inner":
        return np.asarray(products < threshold - error * scale)
    total = a.squares[:, None] + b.squares[None, :]
    return np.asarray(total - 2.0 * products > threshold**2 + 2 * error * (scale + total))


def _scores(row: Array, matrix: Array, rows: Array, metric: Metric) -> array[float]:
    import numpy as np

    dtype: Literal["float32", "float16"] = "float16" if matrix.dtype == np.float16 else "float32"
    return kernels.scores(
        matrix.view(np.uint8).data, len(matrix), matrix.shape[1], dtype,
        row.astype(np.float32).tobytes(), metric, array("q", rows.tolist()), threads=1,
    )  # fmt: skip
