"""Sampling with replacement: every draw of an epoch picks a row in proportion to its weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deeplake_loader.errors import InputError
from deeplake_loader.order import random_words
from deeplake_loader.stream.picks import Indices, Picks

WEIGHTS_VERSION = 1
"""Part of the state of every weighted stream. A change of anything below that changes a draw must raise it."""

_DRAWS = 16  # which question the random words answer; order.py has its own
_REPEAT_BITS = 32  # an epoch's k-th draw of one row is augmented as epoch + k * 2**32


class Key(Protocol):
    """A column of primary keys."""

    def __getitem__(self, row: int, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Weighted:
    """``count`` independent draws in every epoch; a row that comes twice in one is augmented in two ways.

    Args:
        cumulative: running sum of the weights, float64, one per row.
        count: draws in an epoch.

    >>> Weighted(np.cumsum([1.0, 0.0, 3.0]), 8).picks(0).rows.tolist()
    [2, 0, 2, 0, 2, 2, 2, 0]
    """

    cumulative: npt.NDArray[np.float64]
    count: int
    seed: int = 0

    @property
    def lanes(self) -> int:
        return 1

    def picks(self, epoch: int) -> Picks:
        words = random_words(self.count, seed=self.seed, epoch=epoch, purpose=_DRAWS)
        uniform = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
        total = self.cumulative[-1]
        last = np.searchsorted(self.cumulative, total, side="left")  # rounding up to the total must not leave the set
        rows = np.searchsorted(self.cumulative, uniform * total, side="right")
        rows = np.minimum(rows, last).astype(np.int64, copy=False)
        return Picks(rows, epochs=epoch + (_occurrences(rows) << _REPEAT_BITS))

    def identity(self) -> dict[str, int | str | bool | float]:
        digest = blake2b(self.cumulative.astype("<f8").tobytes(), digest_size=8).hexdigest()
        return {"order_version": WEIGHTS_VERSION, "seed": self.seed, "weights": digest, "num_samples": self.count}


def _occurrences(rows: Indices) -> Indices:
    """How often each place's row came before it.

    >>> _occurrences(np.array([5, 2, 5, 5])).tolist()
    [0, 0, 1, 2]
    """
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    first = np.append(True, ordered[1:] != ordered[:-1])
    places = np.arange(len(rows), dtype=np.int64)
    count = np.empty(len(rows), np.int64)
    count[order] = places - np.maximum.accumulate(np.where(first, places, 0))
    return count


def weighted(
    values: npt.NDArray[Any] | Sequence[Any], keys: Sequence[Key], *, count: int | None, seed: int
) -> Weighted:
    """The draws of a column of weights.

    Args:
        values: one weight per row: finite, 0 or more, one above 0.
        keys: the primary key columns, for messages.
        count: draws in an epoch, by default one per row.

    Raises:
        InputError: a weight is none, named by the key of its row; there is nothing to draw.
    """
    weights = _floats(values)
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(wrong):
        row = int(wrong[0])
        found = "NULL or no number" if np.isnan(weights[row]) else repr(float(weights[row]))
        raise InputError(
            f"the weight of {row_name(keys, row)} is {found} ({len(wrong)} such rows); weights are finite and 0 or "
            "more: write COALESCE(..., 0) or leave the rows out with WHERE"
        )
    with np.errstate(over="ignore"):
        cumulative = np.cumsum(weights)
    if not len(weights) or not 0 < cumulative[-1] < np.inf:
        raise InputError(f"the weights of {len(weights)} rows add up to {cumulative[-1:].sum()}; nothing can be drawn")
    count = len(weights) if count is None else count
    if count < 1:
        raise InputError(f"num_samples={count}: an epoch draws at least 1 row")
    return Weighted(cumulative, count, seed)


def _floats(values: npt.NDArray[Any] | Sequence[Any]) -> npt.NDArray[np.float64]:
    """The numbers, NaN where there is none."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        return values.astype(np.float64)
    return np.array([_float(value) for value in values], np.float64)


def _float(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return float("nan")


def row_name(keys: Sequence[Key], row: int) -> str:
    """What a message calls a row: its key, or its number where the query has none."""
    if not keys:
        return f"row {row}"
    key = [column[row] for column in keys]
    return f"the row with key {key[0] if len(key) == 1 else tuple(key)!r}"
