"""Single samples and chosen ones of a stream: by row number, by primary key, or by their place in an epoch."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deeplake_loader.decode.transforms import Raw
from deeplake_loader.errors import InputError, NotFoundError
from deeplake_loader.stream.columns import HeldVectors, Scalars, Vectors
from deeplake_loader.stream.device import Batch
from deeplake_loader.stream.loading import Loader
from deeplake_loader.stream.passes import open_feeds
from deeplake_loader.stream.schedule import Step
from deeplake_loader.stream.source import Source

Indices = npt.NDArray[np.int64]

_SPARE = 2  # buffers kept for the next call
_THREADS = 2  # native ones of one call


@dataclass(frozen=True, slots=True)
class Located:
    """Which sample stands at a place of an epoch.

    Fields: ``source``, the number of its query; ``row``, its row number there; ``key``, its primary key (a tuple if the
    key has several columns, None if the query has none); ``scalars``, its SQL values by column.
    """

    epoch: int
    position: int
    source: int
    row: int
    key: Any
    scalars: Mapping[str, Any]


def describe(source: Source, row: int) -> tuple[Any, dict[str, Any]]:
    """A row's primary key and SQL values."""
    keys = [key[row] for key in source.keys]
    place = np.array([row], np.int64)
    columns = [column for column in source.columns if isinstance(column, Scalars)]
    taken = {c.name: c.values[place] if isinstance(c.values, np.ndarray) else c.values.take(place) for c in columns}
    scalars = {name: v[0].item() if isinstance(v, np.ndarray) else v[0] for name, v in taken.items()}
    return keys[0] if len(keys) == 1 else tuple(keys) or None, scalars


class Access:
    """Reads chosen samples in the calling thread; keeps its files open until it is dropped."""

    def __init__(self, sources: Sequence[Source], seed: int) -> None:
        feeds, close = open_feeds(sources, spare=_SPARE, threads=_THREADS)
        self._sources = sources
        self._loader = Loader(feeds, seed, "raise", None)
        self._finders: dict[int, KeyFinder] = {}
        weakref.finalize(self, close)

    def take(self, rows: Indices, source: int, epoch: int) -> Batch:
        """A batch of these rows."""
        sources = None if len(self._sources) == 1 else np.full(len(rows), source)
        work = self._loader.read(Step(rows, None, epoch, (epoch, 0), sources))
        try:
            for task in work.tasks:
                task()
            batch = work.finish().receive()
        finally:
            work.release()
        del batch["_cursor"]
        return batch

    def sample(self, row: int, source: int, epoch: int) -> dict[str, Any]:
        """One row's values: numbers as Python has them, tensors without a batch dimension, bytes where nothing decodes
        them."""
        feed = self._loader.feeds[source]
        found: dict[str, Any] = {}
        for column in feed.source.columns:
            if isinstance(column, Scalars):
                value = column.values[row]
                found[column.name] = value.item() if isinstance(value, np.generic) else value
            elif isinstance(column, Vectors):
                address = int(column.addresses[row])
                found[column.name] = torch.from_numpy(feed.reader.vector(address)) if address else None
            elif isinstance(column, HeldVectors):
                held = column.held[row]
                found[column.name] = None if held is None else torch.from_numpy(held)
            elif column.transform is None or isinstance(column.transform, Raw):
                found[column.name] = feed.reader.read_one(feed.extents[column.name], row)
            else:
                batch = self.take(np.array([row], np.int64), source, epoch)
                return {name: value[0] for name, value in batch.items() if not name.startswith("_")}
        return found

    def rows(self, keys: Sequence[Any], source: int) -> Indices:
        """The row numbers of these primary keys.

        Raises:
            NotFoundError: no row has one of them.
        """
        return self._finder(source).rows(keys)

    def row(self, key: Any, source: int) -> int:
        """The row number of one primary key, at a fifth of the cost of ``rows``.

        Raises:
            NotFoundError: no row has it.
        """
        return self._finder(source).row(key)

    def _finder(self, source: int) -> KeyFinder:
        if source not in self._finders:
            self._finders[source] = KeyFinder(self._sources[source])
        return self._finders[source]


class KeyFinder:
    """Row numbers by primary key: integers by bisection (16 bytes a row), others by a dict."""

    def __init__(self, source: Source) -> None:
        if not source.keys:
            raise InputError("the query's rows have no primary key (it groups or joins rows away); take them by number")
        found = source.keys_at(np.arange(source.count))
        self._whole = isinstance(found, np.ndarray)
        self._numbers: dict[Any, int] = {}
        if isinstance(found, np.ndarray):
            self._order = np.argsort(found, kind="stable")
            self._sorted = found[self._order]
        else:
            self._numbers = {key: row for row, key in reversed(list(enumerate(found)))}

    def rows(self, keys: Sequence[Any]) -> Indices:
        """The first row of each key."""
        if not self._whole:
            return np.array([self._row(key) for key in keys], np.int64)
        wanted = np.asarray(keys)
        if not wanted.size:
            return np.zeros(0, np.int64)
        if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
            raise InputError(f"the primary key is an integer; keys are a list of integers, got {keys!r:.80}")
        place = np.searchsorted(self._sorted, wanted)
        missing = self._sorted.take(place, mode="clip") != wanted if len(self._sorted) else np.ones(len(wanted), bool)
        if missing.any():
            raise _unknown(wanted[missing][0].item())
        return self._order[place]

    def row(self, key: Any) -> int:
        """The first row of one key."""
        if not self._whole or type(key) is not int or key.bit_length() > 63:
            return int(self.rows([key])[0])
        place = int(self._sorted.searchsorted(key))
        if place == len(self._sorted) or self._sorted[place] != key:
            raise _unknown(key)
        return int(self._order[place])

    def _row(self, key: Any) -> int:
        row = (
            self._numbers.get(tuple(key) if isinstance(key, list) else key)
            if isinstance(key, Hashable | list)
            else None
        )
        if row is None:
            raise _unknown(key)
        return row


def _unknown(key: object) -> NotFoundError:
    return NotFoundError(f"the stream has no row with the primary key {key!r}; its query or its data leave it out")


def checked_rows(rows: Any, count: int) -> Indices:
    """Row numbers as an array.

    Raises:
        InputError: one is no row number of a set of ``count`` rows.
    """
    found = np.asarray(rows)
    if found.ndim != 1 or (len(found) and found.dtype.kind not in "iu"):
        raise InputError(f"rows are a list of row numbers, got {rows!r:.80}")
    if len(found) and not 0 <= int(found.min()) <= int(found.max()) < count:
        raise InputError(f"rows are numbered 0 to {count - 1}, got {int(found.min())} to {int(found.max())}")
    if not len(found):
        raise InputError("take needs at least one row")
    return found.astype(np.int64, copy=False)
