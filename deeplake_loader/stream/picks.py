"""Which rows an epoch gives, in which order, before anybody makes batches of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from deeplake_loader.errors import InputError
from deeplake_loader.order import ORDER_VERSION, EpochOrder, Order

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Picks:
    """Samples in an order.

    Fields: ``rows``, their row numbers, which an `EpochOrder` works out as they are taken; ``sources``, which source
    each is of (None: all of source 0); ``epochs``, the epoch each is augmented for (None: the one that is asked for).
    """

    rows: Indices | EpochOrder
    sources: Indices | None = None
    epochs: Indices | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Indices | slice) -> Picks:
        """The samples at these places."""
        return Picks(
            self.rows[places],
            None if self.sources is None else self.sources[places],
            None if self.epochs is None else self.epochs[places],
        )

    def sample(self, place: int) -> tuple[int, int]:
        """(source, row) of one sample."""
        return 0 if self.sources is None else int(self.sources[place]), int(self.rows[place])


def concatenated(parts: list[Picks], epochs: list[int], first_sources: list[int]) -> Picks:
    """Several picks one behind the other: each part's epoch, and the number that its source 0 has among all."""
    pairs = list(zip(parts, epochs, first_sources, strict=True))
    return Picks(
        np.concatenate([np.asarray(part.rows, np.int64) for part in parts]),
        np.concatenate([np.full(len(p), first) if p.sources is None else p.sources + first for p, _, first in pairs]),
        np.concatenate([np.full(len(p), epoch) if p.epochs is None else p.epochs for p, epoch, _ in pairs]),
    )


class Picker(Protocol):
    """The samples of every epoch: a pure function of the epoch's number, as many in each."""

    @property
    def count(self) -> int: ...

    @property
    def lanes(self) -> int:
        """Of the order, for `order.Share`; 1 where positions have none."""

    def picks(self, epoch: int) -> Picks: ...

    def identity(self) -> dict[str, int | str | bool | float]:
        """What must agree between a state and this picker."""


@dataclass(frozen=True, slots=True)
class Ordered:
    """Every row of one source once an epoch."""

    order: Order
    seed: int = 0

    @property
    def count(self) -> int:
        return self.order.count

    @property
    def lanes(self) -> int:
        return self.order.lanes if self.order.shuffle else 1

    def picks(self, epoch: int) -> Picks:
        return Picks(self.order.epoch(self.seed, epoch))

    def identity(self) -> dict[str, int | str | bool | float]:
        order = self.order
        return {"order_version": ORDER_VERSION, "seed": self.seed, "shuffle": order.shuffle, "lanes": order.lanes}


@dataclass(frozen=True, slots=True)
class Limited:
    """The first ``limit`` samples of another picker's epochs.

    >>> Limited(Ordered(Order(np.array([0, 2, 4, 6]), lanes=2)), 3).picks(0).rows.tolist()
    [4, 2, 0]
    """

    inner: Picker
    limit: int

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise InputError(f"limit({self.limit}): at least 1 sample of every epoch")

    @property
    def count(self) -> int:
        return min(self.limit, self.inner.count)

    @property
    def lanes(self) -> int:
        return self.inner.lanes

    def picks(self, epoch: int) -> Picks:
        return self.inner.picks(epoch).take(slice(self.limit))

    def identity(self) -> dict[str, int | str | bool | float]:
        return {**self.inner.identity(), "limit": self.limit}


def limited(picker: Picker, limit: int) -> Limited:
    """The first ``limit`` samples; a limit of a limit is the smaller one, so that both have one identity."""
    found = Limited(picker, limit)
    return Limited(picker.inner, min(limit, picker.limit)) if isinstance(picker, Limited) else found
