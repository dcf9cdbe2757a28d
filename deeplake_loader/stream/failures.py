"""What becomes of a batch with bad samples: which of its places are kept, repeated, or filled from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from deeplake_loader.errors import DeeplakeError, InputError, SampleErrors

Indices = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

Verdict = Literal["raise", "skip", "replace"]
OnError: TypeAlias = "Verdict | Callable[[BadSample], Any]"

_REMEMBERED = 1_000
"""Bad samples that a stream's statistics list; all of them are counted."""


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample that could not be read or decoded.

    Fields: ``key``, the sample's key in its shard, or what else names it; ``column`` that failed, ``error`` why;
    ``row``, its number in the stream (`Stream.locate`); ``address`` of the stored value, for `Database.quarantine`.
    """

    key: str
    column: str
    error: DeeplakeError
    row: int
    address: int = 0

    @property
    def reason(self) -> str:
        """The error in one line."""
        return " ".join(str(self.error).split())


@dataclass(frozen=True, slots=True)
class Mended:
    """Where a batch takes its rows from.

    Fields: ``keep``, a place for each row of the batch to be; ``valid``, which of them are what was asked for;
    ``elsewhere``: no place of the batch is good, and ``keep`` counts places of a stand-in instead.
    """

    keep: Indices
    valid: Bools
    elsewhere: bool = False


def check_policy(on_error: object) -> None:
    """Raises InputError for what is no policy."""
    if not callable(on_error) and on_error not in get_args(Verdict):
        known = ", ".join(get_args(Verdict))
        raise InputError(f"on_error={on_error!r} is none of {known}, and no function of a bad sample")


def mend(count: int, verdicts: Mapping[int, Verdict], valid: Bools | None) -> Mended:
    """The places of a batch of ``count`` rows some of which are to be skipped or replaced.

    A replaced row repeats the next good one. Without a single good one the batch must not vanish, or the ranks would
    fall out of step: as many rows as it would have, at least one, are then taken from elsewhere, none of them valid.

    >>> mend(4, {1: "replace", 2: "skip"}, None)
    Mended(keep=array([0, 3, 3]), valid=array([ True, False,  True]), elsewhere=False)
    """
    fresh = np.ones(count, np.bool_) if valid is None else valid.copy()
    bad = np.array(sorted(verdicts), np.int64)
    good = np.setdiff1d(np.arange(count), bad)
    left = np.array([i for i in range(count) if verdicts.get(i) != "skip"], np.int64)
    if not len(good):
        rows = max(1, len(left))
        return Mended(np.zeros(rows, np.int64), np.zeros(rows, np.bool_), elsewhere=True)
    source = np.arange(count)
    source[bad] = good[np.searchsorted(good, bad) % len(good)]
    fresh[bad] = False
    return Mended(source[left], fresh[left])


def let_go(error: BaseException | None) -> None:
    """Drops the frames that an error was raised through, and those of what caused it: they hold the batch's bytes."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


class Failures:
    """The bad samples of one pass, in the order of its batches."""

    def __init__(self, max_errors: int | None) -> None:
        self._limit = max_errors
        self._run: list[BadSample] = []
        self.count = 0
        self.newest: list[BadSample] = []

    def add(self, bad: Mapping[int, BadSample], samples: int) -> None:
        """Takes note of one batch of so many samples, before it is delivered.

        Raises:
            SampleErrors: more samples in a row were bad than are allowed.
        """
        if not bad:
            self._run.clear()
            return
        for sample in bad.values():
            let_go(sample.error)
        self.count += len(bad)
        self.newest = [*self.newest, *bad.values()][-_REMEMBERED:]
        for place in range(samples):
            self._step(bad.get(place))

    def _step(self, bad: BadSample | None) -> None:
        if bad is None:
            self._run.clear()
            return
        self._run.append(bad)
        if self._limit is None:
            self._run.clear()
        elif len(self._run) > self._limit:
            raise SampleErrors(
                f"{len(self._run)} samples in a row were bad (max_errors={self._limit}), the last one "
                f"{self._run[-1].key}: {self._run[-1].reason}",
                keys=tuple(b.key for b in self._run),
            ) from self._run[-1].error
