"""The stream and its passes: who reads which step of which epoch, and what the state says about it."""

from __future__ import annotations

import hashlib
import operator
import os
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset, get_worker_info

from deeplake_loader.errors import InputError, StateError
from deeplake_loader.extents import Extents
from deeplake_loader.order import LANES, ORDER_VERSION, Order, Share, Tail, canonical, cut_blocks
from deeplake_loader.reader import Reader
from deeplake_loader.rows import RowSet
from deeplake_loader.stream.clock import Clock, Cursor
from deeplake_loader.stream.columns import Column, Media, Vectors, make_columns
from deeplake_loader.stream.device import Batch, Mover, Sent
from deeplake_loader.stream.loading import Loader, OnError, Step
from deeplake_loader.stream.pipeline import Pipeline

_MOST_THREADS = 16  # by default; more decoding threads than that wait for the interpreter
_IDENTITY = {
    "order_version": "the version of the order",
    "seed": "the seed",
    "shuffle": "shuffle",
    "lanes": "the number of lanes",
    "query": "the query's hash",
    "rows": "the number of rows",
    "digest": "the digest of the rows",
}
"""What must agree between a state and the stream that takes it on. The commit need not: equal rows are enough."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which steps of a pass are one process's: number ``first``, ``first + stride`` ..., counted from ``base``."""

    epoch: int
    base: int
    first: int = 0
    stride: int = 1


class Stream(IterableDataset[Batch]):
    """Batches of a query's rows, decoded; iterating again is the next epoch.

    A batch is a dict: a column of numbers without NULLs is a tensor, vectors are (N, D) in their stored type, images
    (N, 3, H, W) and video (N, T, 3, H, W) uint8 where their sizes agree, everything else is a list of N values (bytes
    of BLOB columns, None for NULL). Beside the columns: ``_rows``, the row numbers; ``_cursor``, what `state_at` reads;
    ``valid``, a bool tensor, in streams whose batches may repeat rows; ``_bad``, keys of bad samples, unless
    ``on_error="raise"``.

    Args:
        root: folder of the store.
        rowset: the rows, as one query gave them.
        query: the query's text; part of the state.
        commit: the commit it was read at; told in the state.
        batch_size: rows in one rank's batch.
        shuffle: another order in every epoch, by ``seed``; else the rows in order.
        ordered: the order of ``rowset`` was asked for (ORDER BY) and an unshuffled stream keeps it; else rows are read
            in the order they are stored in.
        transforms: by column, deeplake.Image, Video, Audio or Tensor.
        device: "cpu" or "cuda[:n]"; batches are copied there beside the computation.
        rank, world_size: this process among the data-parallel ones; every rank gets as many batches.
        tail: "drop", "pad" or "short", see `order.Share`; by default "short" for one rank, "pad" for several.
        num_threads: decoding threads of a process, by default one per core, shared among DataLoader's workers.
        prefetch: batches made ahead.
        on_error: a sample that is damaged or cannot be decoded raises its error ("raise"), is left out of its batch
            ("skip"), or is replaced by another one of the batch, marked in ``valid`` ("replace"); a batch without one
            good sample raises under each of them.
        lanes: of the order; part of the state.

    Raises:
        InputError: an option out of range, columns that a batch cannot hold under one name.
        TypeMismatchError: a transform of another medium than its column.
    """

    def __init__(
        self,
        root: str,
        rowset: RowSet,
        *,
        batch_size: int,
        query: str = "",
        commit: int | str | None = None,
        shuffle: bool = False,
        seed: int = 0,
        ordered: bool = True,
        transforms: Mapping[str, object] | None = None,
        device: str | torch.device | None = None,
        rank: int = 0,
        world_size: int = 1,
        tail: Tail | None = None,
        num_threads: int | None = None,
        prefetch: int = 2,
        on_error: OnError = "raise",
        lanes: int = LANES,
    ) -> None:
        self._root, self._seed = os.path.abspath(root), _whole("seed", seed)
        self._device = _device(device)
        self._prefetch, self._on_error = _whole("prefetch", prefetch), on_error
        self._num_threads = None if num_threads is None else _whole("num_threads", num_threads)
        batch_size, lanes = _whole("batch_size", batch_size), _whole("lanes", lanes)
        rank, world_size = _whole("rank", rank), _whole("world_size", world_size)
        self._check_options()
        lanes = lanes if shuffle else 1
        tail = tail or ("short" if world_size == 1 else "pad")
        self._share = Share(len(rowset), batch_size, rank, world_size, lanes, tail)
        rowset, self._columns, self._extents = _located(self._root, rowset, transforms or {}, ordered and not shuffle)
        self._order = Order(_blocks(self._columns, self._extents, len(rowset)), lanes, shuffle=shuffle)
        self._identity: dict[str, Any] = {
            "order_version": ORDER_VERSION,
            "seed": self._seed,
            "shuffle": shuffle,
            "lanes": lanes,
            "commit": commit,
            "query": hashlib.sha256(query.encode()).hexdigest()[:16],
            "rows": len(rowset),
            "digest": rowset.digest(),
        }
        self._clock = Clock()
        self._forget()

    def _check_options(self) -> None:
        if self._prefetch < 0:
            raise InputError(f"prefetch must be 0 or more, got {self._prefetch}")
        if self._num_threads is not None and self._num_threads < 1:
            raise InputError(f"num_threads must be at least 1, got {self._num_threads}")
        if self._on_error not in get_args(OnError):
            raise InputError(f"on_error={self._on_error!r} is none of {', '.join(get_args(OnError))}")

    def _forget(self) -> None:
        """What belongs to one process: nothing of it goes into a copy."""
        self._iterator: weakref.ref[Batches] | None = None
        self._seen: Cursor | None = None  # after the newest batch delivered in this process
        self._restored: Assignment | None = None  # a worker's, until its next pass begins
        self._assigned: Assignment | None = None  # a worker's: its pass and the next step it will deliver
        self._passes = 0  # a worker's: persistent workers name their passes by it

    def __getstate__(self) -> dict[str, Any]:
        own = ("_iterator", "_seen", "_restored", "_assigned", "_passes")
        return {k: v for k, v in self.__dict__.items() if k not in own} | {"_extents": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        """Batches in an epoch, the same on every rank."""
        return self._share.steps()

    def __repr__(self) -> str:
        names = ", ".join(column.name for column in self._columns)
        return f"<Stream of {self._share.count} rows ({names}) in {len(self)} batches of {self._share.batch_size}>"

    # -- passes ----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Batches:
        """A pass over the next epoch, or over the rest of the one that a state was loaded for.

        It begins with its first batch; an older iterator of this stream then ends with an error.
        """
        info = get_worker_info()
        if info is None:
            return Batches(self, None)
        if self._device.type == "cuda":
            raise InputError(
                f"a DataLoader worker cannot give batches on {self._device}: give the stream device='cpu' and move "
                "them in the main process, or use the stream without workers (it decodes in threads of its own)"
            )
        return Batches(self, self._join(info.seed - info.id, info.id, info.num_workers))

    def _join(self, token: int, worker: int, workers: int) -> Assignment:
        """This worker's part of the pass that its siblings read too."""
        token, self._passes = (token * 1_000_003 + self._passes) & (1 << 62) - 1, self._passes + 1
        restored, self._restored = self._restored, None
        if restored is None:
            epoch, base = self._clock.join(token, worker)
            self._assigned = Assignment(epoch, base, worker, workers)
        else:
            self._clock.join(token, worker, start=(restored.epoch, restored.base))
            self._assigned = restored
        return self._assigned

    def _begin(self, iterator: Batches, assigned: Assignment | None) -> Pipeline[Step, Batch | Sent]:
        """The threads of a pass, which replaces the one before."""
        older = self._iterator() if self._iterator is not None else None
        if older is not None:
            older.replace()
        self._iterator = weakref.ref(iterator)
        if assigned is None:
            assigned = Assignment(*self._clock.begin())
            self._seen = assigned.epoch, assigned.base
        reader = Reader(self._root)
        try:
            loader = Loader(reader, self._columns, self._places(reader), self._seed, self._on_error, iterator.mover)
            threads = self._num_threads or max(1, min(_MOST_THREADS, _cores() // assigned.stride))
            return Pipeline(
                self._steps(assigned), loader.read, decoders=threads, prefetch=self._prefetch, close=reader.close
            )
        except BaseException:
            reader.close()
            raise

    def _places(self, reader: Reader) -> Mapping[str, Extents]:
        """Where blobs lie, looked up again in a process that does not know and while some rest in the catalog."""
        for column in self._columns:
            if isinstance(column, Media):
                known = self._extents.get(column.name)
                if known is None or bool(((known.offset < 0) & (known.file >= 0)).any()):
                    self._extents[column.name] = reader.resolve(column.addresses)
        return self._extents

    def _steps(self, assigned: Assignment) -> Iterator[Step]:
        share, epoch = self._share, assigned.epoch
        marked = share.repeats or self._on_error == "replace"
        rows = self._order.positions(self._seed, epoch)
        for j in range(assigned.first, share.steps(assigned.base), assigned.stride):
            position = assigned.base + j * share.step
            own, valid = share.take(position)
            yield Step(rows[own], valid if marked else None, epoch, share.cursor(epoch, position + share.step))

    def _delivered(self, cursor: Cursor) -> None:
        """Called before a batch is handed out."""
        if self._assigned is None:
            self._seen = cursor
        else:
            self._assigned = replace(self._assigned, first=self._assigned.first + self._assigned.stride)

    # -- state -----------------------------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Makes the next pass read this epoch from its start; in every DataLoader worker, too.

        For the epoch that a loaded state stands in it changes nothing, so that a training loop may call it always.
        """
        epoch = _whole("epoch", epoch)
        if epoch < 0:
            raise InputError(f"epoch must be 0 or more, got {epoch}")
        following = self._clock.peek()
        self._clock.set(following if following[0] == epoch else (epoch, 0))
        self._seen = None

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins: below 1 KB of JSON-able values, the same on every rank.

        It counts what was delivered, not what was made ahead. StatefulDataLoader asks its workers for it.

        Raises:
            StateError: plain DataLoader workers read the stream, and this process cannot know how far.
        """
        if get_worker_info() is not None:
            return self._worker_state()
        if self._clock.by_workers:
            raise StateError(
                "DataLoader workers read this stream, so this process does not know the position; use "
                "stream.state_at(batch) of the last batch you trained on, or torchdata's StatefulDataLoader"
            )
        return self._state(*(self._seen or self._clock.peek()))

    def state_at(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The state after this batch, right under every loader and number of workers."""
        try:
            epoch, position = map(int, batch["_cursor"])
        except (KeyError, TypeError, ValueError) as error:
            raise StateError("the batch has no '_cursor'; keep that key of the stream's batches") from error
        return self._state(epoch, position)

    def _state(self, epoch: int, position: int) -> dict[str, Any]:
        return {**self._identity, "epoch": epoch, "position": position}

    def _worker_state(self) -> dict[str, Any]:
        """One worker's part; asked again before it delivered, a worker answers what it was given."""
        assigned = self._assigned or self._restored
        if assigned is None:
            raise StateError("this worker has begun no pass yet; iterate the stream first")
        state = self._state(assigned.epoch, assigned.base)
        return {**state, "next": assigned.first, "workers": assigned.stride, "step": self._share.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes the next pass go on where the state was taken: each remaining row of the epoch once.

        World size, batch size, tail, workers and threads may be others than then. (A StatefulDataLoader's state holds
        its workers' own positions and goes on with as many workers and the same batches.)

        Raises:
            StateError: the state is of another query, order, seed or set of rows, or is no state of a stream.
        """
        epoch, position = self._checked(state)
        info = get_worker_info()
        if info is None:
            if "next" in state:
                raise StateError("this is the state of one DataLoader worker; load it through StatefulDataLoader")
            self._clock.set((epoch, position))
            self._seen = None
            return
        for key, present in (("workers", info.num_workers), ("step", self._share.step)):
            if state.get(key) != present:
                raise StateError(
                    f"a DataLoader's state goes on only as it was taken: {key} was {state.get(key)!r} and is {present} "
                    "(step: batch_size x world_size); to change that, load stream.state_at(batch) into the stream "
                    "before the loader is made"
                )
        self._restored = Assignment(epoch, position, int(state["next"]), int(state["workers"]))

    def _checked(self, state: Mapping[str, Any]) -> Cursor:
        if not isinstance(state, Mapping):
            raise StateError(f"this is no state of a stream but a {type(state).__name__}; pass what state_dict() gave")
        missing = [key for key in (*_IDENTITY, "epoch", "position") if key not in state]
        if missing:
            raise StateError(f"this is no state of a stream: {', '.join(missing)} missing; it has {', '.join(state)}")
        for key, meaning in _IDENTITY.items():
            if state[key] != self._identity[key]:
                raise StateError(
                    f"the state belongs to another stream: {meaning} was {state[key]!r} and is {self._identity[key]!r} "
                    f"(taken at commit {state.get('commit')!r}, this stream reads commit {self._identity['commit']!r})"
                )
        epoch, position = state["epoch"], state["position"]
        if not (isinstance(epoch, int) and isinstance(position, int)):
            raise StateError(f"epoch {epoch!r} and position {position!r} of the state must be integers")
        if epoch < 0 or not 0 <= position <= self._share.count:
            raise StateError(f"epoch {epoch}, position {position} does not exist in a set of {self._share.count} rows")
        return self._share.cursor(epoch, position)


class Batches(Iterator[Batch]):
    """The batches of one pass. Its threads end with the last batch, with ``close()``, or when nobody holds it.

    >>> with iter(stream) as batches:                                                   # doctest: +SKIP
    ...     first = next(batches)
    """

    def __init__(self, stream: Stream, assigned: Assignment | None) -> None:
        self._stream, self._assigned = stream, assigned
        self._pipeline: Pipeline[Step, Batch | Sent] | None = None
        self._closed = self._replaced = False
        self._pid = os.getpid()
        self.mover: Mover | None = None

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        if self._replaced:
            raise InputError("this iterator was replaced by a newer iter(stream); one pass runs at a time")
        if self._closed:
            raise StopIteration
        if os.getpid() != self._pid:
            raise InputError("this iterator belongs to the parent process; iterate the stream in this one")
        try:
            sent = next(self._started())
        except BaseException:
            self.close()
            raise
        batch = sent.receive() if isinstance(sent, Sent) else sent
        self._stream._delivered(batch["_cursor"])
        return batch

    def _started(self) -> Pipeline[Step, Batch | Sent]:
        if self._pipeline is None:
            if self._stream._device.type == "cuda":
                self.mover = Mover.to(self._stream._device)
            self._pipeline = self._stream._begin(self, self._assigned)
        return self._pipeline

    def replace(self) -> None:
        """Ends the pass in favour of a newer one: going on with it is then an error, unless it was through."""
        self._replaced = not self._closed
        self.close()

    def close(self) -> None:
        """Ends the pass; closing twice does nothing."""
        self._closed = True
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            pipeline.close()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _whole(name: str, value: object) -> int:
    """The option as an int, also where numpy holds it."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"{name} must be an integer, got {value!r}") from None


def _device(device: str | torch.device | None) -> torch.device:
    try:
        chosen = torch.device(device or "cpu")
    except RuntimeError as error:
        raise InputError(f"device={device!r} is no device: {error}") from error
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(f"device={device!r}: batches go to 'cpu' or 'cuda[:n]'")
    return chosen


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _located(
    root: str, rowset: RowSet, transforms: Mapping[str, object], keep_order: bool
) -> tuple[RowSet, tuple[Column, ...], dict[str, Extents]]:
    """Rows in the order that positions count, their columns, and where the blobs lie."""
    columns = make_columns(rowset, transforms)
    media = [c for c in columns if isinstance(c, Media)]
    reader = Reader(root)
    try:
        extents = {c.name: reader.resolve(c.addresses) for c in media}
    finally:
        reader.close()
    if keep_order:
        return rowset, columns, extents
    media.sort(key=lambda c: -int(extents[c.name].length.sum()))
    vectors = [c for c in columns if isinstance(c, Vectors)]
    addresses = [c.addresses for c in media] + [c.addresses for c in vectors]
    order = canonical(addresses, rowset.key_columns())
    if order is None:
        return rowset, columns, extents
    rowset = rowset.take(order)
    moved = {name: _taken(found, order) for name, found in extents.items()}
    return rowset, make_columns(rowset, transforms), moved


def _taken(extents: Extents, order: npt.NDArray[np.int64]) -> Extents:
    arrays = (extents.file, extents.offset, extents.length, extents.check, extents.address)
    return Extents(extents.paths, *(a[order] for a in arrays))


def _blocks(columns: tuple[Column, ...], extents: Mapping[str, Extents], count: int) -> npt.NDArray[np.int64]:
    """Blocks of the column that has the most bytes."""
    media = max(extents.values(), key=lambda e: int(e.length.sum()), default=None)
    if media is not None:
        return cut_blocks(media.address, media.length)
    for column in columns:
        if isinstance(column, Vectors):
            return cut_blocks(column.addresses, np.full(count, column.row_bytes, np.int64))
    return cut_blocks(np.zeros(count, np.int64), np.ones(count, np.int64))
