"""The stream and its passes: who reads which step of which epoch, and what the state says about it."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from deeplake_loader.errors import InputError, StateError
from deeplake_loader.stream import state as states
from deeplake_loader.stream.access import Access, Located, checked_rows, describe
from deeplake_loader.stream.clock import Clock
from deeplake_loader.stream.collate import MapBatch
from deeplake_loader.stream.device import Batch
from deeplake_loader.stream.options import Options, whole
from deeplake_loader.stream.passes import Pass
from deeplake_loader.stream.schedule import Cursor, Schedule
from deeplake_loader.stream.source import Source
from deeplake_loader.stream.state import Assignment
from deeplake_loader.stream.stats import Board, Stats


class Stream(IterableDataset[Batch]):
    """Batches of a query's rows, decoded; iterating again is the next epoch.

    A batch is a dict: a column of numbers without NULLs is a tensor, vectors are (N, D) in their stored type, images
    (N, 3, H, W) and video (N, T, 3, H, W) uint8 where their sizes agree, everything else is a list of N values (bytes
    of BLOB columns, None for NULL). Beside the columns: ``_rows``, the row numbers; ``_keys``, the rows' primary keys,
    where the query's rows have one; ``_cursor``, what `state_at` reads; ``valid``, a bool tensor, in streams whose
    batches may repeat rows; ``_bad``, keys of bad samples, unless ``on_error="raise"``; ``_source``, whose row each
    is, in a `mix`.

    `Database.stream` makes one.

    >>> stream = db.stream("SELECT photo, label FROM photos", batch_size=32, shuffle=True)      # doctest: +SKIP
    >>> for batch in stream: step(batch["photo"], batch["label"])                               # doctest: +SKIP

    Args:
        sources: the rows; `Schedule` tells them apart by number.
        schedule: which rows make which batch.
        options: how batches are made.
    """

    def __init__(self, sources: tuple[Source, ...], schedule: Schedule, options: Options) -> None:
        self._sources, self._schedule, self._options = sources, schedule, options
        self._identity = states.identity(sources, schedule)
        self._clock, self._board = Clock(), Board()
        self._forget()

    def _with(
        self, *, sources: tuple[Source, ...] | None = None, schedule: Schedule | None = None, **options: Any
    ) -> Stream:
        """A stream of the same parts but these, which begins at its own epoch 0."""
        return Stream(sources or self._sources, schedule or self._schedule, replace(self._options, **options))

    # -- other streams of the same rows ----------------------------------------------------------------------------

    def limit(self, count: int) -> Stream:
        """A stream of the first ``count`` rows of every epoch (of its batches, where they are made by bucket or budget
        or mixed one by one); shuffled, these are others in each epoch."""
        return self._with(schedule=self._schedule.limited(whole("limit", count)))

    def map(self, fn: MapBatch) -> Stream:
        """A stream whose batches ``fn`` has changed: it is given each batch, a dict, and returns one.

        It runs in the stream's threads, beside training and before the copy to a device; several run one behind the
        other. Keys of the stream's own (``_cursor``, ``_rows``, ``_keys``, ``valid`` ...) that it leaves out are put
        back. What it raises ends the pass, with a note that names the batch's keys. DataLoader workers that are
        spawned need a function that pickles.

        >>> scaled = stream.map(lambda batch: {**batch, "photo": batch["photo"] / 255})          # doctest: +SKIP
        """
        return self._with(shaping=self._options.shaping.mapped(fn))

    def _forget(self) -> None:
        """What belongs to one process: nothing of it goes into a copy."""
        self._iterator: weakref.ref[Batches] | None = None
        self._seen: Cursor | None = None  # after the newest batch delivered in this process
        self._restored: Assignment | None = None  # a worker's, until its next pass begins
        self._assigned: Assignment | None = None  # a worker's: its pass and the next step it will deliver
        self._access: Access | None = None
        self._passes = 0  # a worker's: persistent workers name their passes by it
        self._stats = Stats()  # of the newest pass that has ended in this process

    def __getstate__(self) -> dict[str, Any]:
        own = ("_iterator", "_access", "_seen", "_restored", "_assigned", "_passes", "_stats")
        return {k: v for k, v in self.__dict__.items() if k not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        """Batches in an epoch, the same on every rank."""
        return self._schedule.steps(((self._seen or self._clock.peek())[0], 0))

    @property
    def epoch(self) -> int:
        """The epoch that the next pass reads, known under every loader: ``while stream.epoch < 10: for batch in ...``
        ends after ten epochs, also when a state was loaded before."""
        return self._clock.peek()[0]

    def remaining(self) -> int:
        """Batches left of the epoch in which `state_dict` stands, the same on every rank."""
        return self._schedule.steps(self._seen or self._clock.peek())

    def __repr__(self) -> str:
        names = ", ".join(dict.fromkeys(column.name for source in self._sources for column in source.columns))
        rank = f", rank {self._schedule.rank} of {self._schedule.world_size}" if self._schedule.world_size > 1 else ""
        return f"<Stream of {sum(s.count for s in self._sources)} rows ({names}) in {len(self)} batches{rank}>"

    # -- passes ----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Batches:
        """A pass over the next epoch, or over the rest of the one that a state was loaded for.

        It begins with its first batch; an older iterator of this stream then ends with an error.
        """
        info = get_worker_info()
        if info is None:
            return Batches(self, None, None)
        if self._options.device.type == "cuda":
            raise InputError(
                f"a DataLoader worker cannot give batches on {self._options.device}: give the stream device='cpu' and "
                "move them in the main process, or use the stream without workers (it decodes in threads of its own)"
            )
        return Batches(self, self._join(info.seed - info.id, info.id, info.num_workers), info.id)

    def _join(self, token: int, worker: int, workers: int) -> Assignment:
        """This worker's part of the pass that its siblings read too."""
        token = ((token * 1_000_003 + self._passes) * 1_000_003 + workers) & (1 << 62) - 1
        self._passes += 1
        restored, self._restored = self._restored, None
        if restored is None:
            epoch, base = self._clock.join(token, worker)
            self._assigned = Assignment(epoch, base, worker, workers)
        else:
            self._clock.join(token, worker, start=(restored.epoch, restored.base))
            self._assigned = restored
        return self._assigned

    def _begin(self, iterator: Batches, assigned: Assignment | None, worker: int | None) -> Pass:
        """The threads of a pass, which replaces the one before."""
        older = self._iterator() if self._iterator is not None else None
        if older is not None:
            older.replace()
        self._iterator = weakref.ref(iterator)
        if assigned is None:
            assigned = Assignment(*self._clock.begin())
            self._seen = assigned.epoch, assigned.base
        return Pass(self._sources, self._schedule, self._options, assigned, board=self._board, worker=worker)

    def _delivered(self, cursor: Cursor) -> None:
        """Called before a batch is handed out."""
        if self._assigned is None:
            self._seen = cursor
        else:
            self._assigned = replace(self._assigned, first=self._assigned.first + self._assigned.stride)

    # -- chosen samples --------------------------------------------------------------------------------------------

    def take(self, rows: Any = None, *, keys: Sequence[Any] | None = None, source: int = 0, epoch: int = 0) -> Batch:
        """A batch of chosen samples, decoded as in any other, in the order asked for, repeats allowed.

        It is read in the calling thread and moves no position; the files stay open for the next call. `map`,
        ``collate=`` and ``ragged=`` are not applied, and a bad sample raises its error.

        Args:
            rows: row numbers, as in a batch's ``_rows``.
            keys: primary keys instead, as in a batch's ``_keys``.
            source: which query of a mix.
            epoch: whose augmentation is drawn.

        Raises:
            InputError: neither or both given, no such row number, keys of a query without a primary key.
            NotFoundError: no row has the key.

        >>> stream.take(keys=[17, 4])["prompt"]                                         # doctest: +SKIP
        ['a red fox', 'two boats']
        """
        if (rows is None) == (keys is None):
            raise InputError("take needs row numbers or keys=, one of them")
        access = self._open_access(source)
        found = rows if keys is None else access.rows(keys, source)
        return access.take(checked_rows(found, self._sources[source].count), source, epoch)

    def sample(self, row: int | None = None, *, key: Any = None, source: int = 0, epoch: int = 0) -> dict[str, Any]:
        """One sample: `take` without the batch dimension, a number as Python has it, and 5 times as fast as a batch of
        one where nothing has to be decoded.

        >>> stream.sample(key=17)["prompt"]                                             # doctest: +SKIP
        'a red fox'
        """
        if (row is None) == (key is None):
            raise InputError("sample needs a row number or key=, one of them")
        access = self._open_access(source)
        row = access.row(key, source) if key is not None else whole("row", row)
        if not 0 <= row < self._sources[source].count:
            raise InputError(f"rows are numbered 0 to {self._sources[source].count - 1}, got {row}")
        return access.sample(row, source, epoch)

    def _open_access(self, source: int) -> Access:
        if not 0 <= source < len(self._sources):
            raise InputError(f"source={source}: the stream has {len(self._sources)}, counted from 0")
        if not self._sources[source].count:
            raise InputError("the stream has no rows to take; its query gave none")
        if self._access is None:
            self._access = Access(self._sources, self._options.seed)
        return self._access

    def locate(self, epoch: int, position: int) -> Located:
        """Which sample stands at that place: its key, row number, query and SQL values.

        A batch's ``_cursor`` is the position behind it, so the sample is one of the step that ends there.

        Raises:
            InputError: the epoch has no such position.
        """
        epoch, position = whole("epoch", epoch), whole("position", position)
        length = self._schedule.length(max(epoch, 0))
        if epoch < 0 or not 0 <= position < length:
            known = f"positions 0 to {length - 1}" if length else "no positions"
            raise InputError(f"epoch {epoch} has {known}, not {position}; epochs are counted from 0")
        source, row = self._schedule.locate(epoch, position)
        return Located(epoch, position, source, row, *describe(self._sources[source], row))

    # -- numbers ---------------------------------------------------------------------------------------------------

    @property
    def stats(self) -> Stats:
        """The numbers of the newest pass so far: samples, bytes, seconds per stage, bad samples. Under a DataLoader
        they are its workers' together."""
        if get_worker_info() is None and self._clock.by_workers:
            return self._board.read()
        running = self._iterator() if self._iterator is not None else None
        return self._stats if running is None else running.stats

    def report(self) -> str:
        """One line about the newest pass: what it waits for, and how fast it is.

        >>> stream.report()                                                             # doctest: +SKIP
        'decode-bound: its threads worked for 93% of the time, the consumer waited for 88% of it; 1,532 samples/s, ...'
        """
        return self.stats.report()

    # -- state -----------------------------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Makes the next pass read this epoch from its start; in every DataLoader worker, too.

        For the epoch that a loaded state stands in it changes nothing, so that a training loop may call it always.
        """
        epoch = whole("epoch", epoch)
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
                "stream.state_at(batch) of the last batch you trained on, or torchdata's StatefulDataLoader and its "
                "own state_dict()"
            )
        return self._state(*(self._seen or self._clock.peek()))

    def state_at(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The state after this batch, right under every loader and number of workers that gives batches in order (the
        default; not with ``in_order=False``)."""
        try:
            epoch, position = map(int, batch["_cursor"])
        except (KeyError, TypeError, ValueError) as error:
            raise StateError("the batch has no '_cursor'; keep that key of the stream's batches") from error
        return self._state(epoch, position)

    def _state(self, epoch: int, position: int) -> dict[str, Any]:
        return {**self._identity, "commit": states.commits(self._sources), "epoch": epoch, "position": position}

    def _worker_state(self) -> dict[str, Any]:
        """One worker's part; asked again before it delivered, a worker answers what it was given."""
        assigned = self._assigned or self._restored
        if assigned is None:
            raise StateError("this worker has begun no pass yet; iterate the stream first")
        return states.of_worker(self._state(assigned.epoch, assigned.base), assigned, self._schedule)

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Makes the next pass go on where the state was taken: each remaining row of the epoch once.

        World size, batch size, tail, workers and threads may be others than then. (A StatefulDataLoader's own state
        goes on with as many workers and the same batches; `state_from_loader` makes one of these of it.)

        Args:
            state: what `state_dict` or `state_at` gave.
            strict: False goes on, with a warning, where the state is of another query, order, seed or set of rows.

        Raises:
            StateError: the state is of another query, order, seed or set of rows, or is no state of a stream.
        """
        epoch, position = self._checked(state, strict)
        info = get_worker_info()
        if info is None:
            if "next" in state:
                raise StateError("this is the state of one DataLoader worker; load it through StatefulDataLoader")
            self._clock.set((epoch, position))
            self._seen = None
            return
        self._restored = states.to_worker(state, (epoch, position), info.num_workers, self._schedule)

    def _checked(self, state: Mapping[str, Any], strict: bool) -> Cursor:
        commit = states.commits(self._sources)
        epoch, position = states.check(state, self._identity, commit=commit, strict=strict)
        length = self._schedule.length(epoch) if epoch >= 0 else 0
        if epoch < 0 or position < 0 or (strict and position > length):
            raise StateError(f"epoch {epoch}, position {position} does not exist: the epoch has {length} positions")
        return self._schedule.following((epoch, position))


class Batches(Iterator[Batch]):
    """The batches of one pass. Its threads end with the last batch, with ``close()``, or when nobody holds it.

    Threads may share it: each batch goes to one of them.

    >>> with iter(stream) as batches:                                                   # doctest: +SKIP
    ...     first = next(batches)
    """

    def __init__(self, stream: Stream, assigned: Assignment | None, worker: int | None) -> None:
        self._stream, self._assigned, self._worker = stream, assigned, worker
        self._pass: Pass | None = None
        self._closed = self._replaced = False
        self._pid = os.getpid()
        self._turn = threading.Lock()  # of the threads that share this iterator
        self._stats = Stats()

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        if os.getpid() != self._pid:
            raise InputError("this iterator belongs to the parent process; iterate the stream in this one")
        with self._turn:
            return self._next()

    def _next(self) -> Batch:
        if self._replaced:
            raise InputError("this iterator was replaced by a newer iter(stream); one pass runs at a time")
        if self._closed:
            raise StopIteration
        try:
            if self._pass is None:
                self._pass = self._stream._begin(self, self._assigned, self._worker)
            batch = next(self._pass)
        except BaseException:
            self.close()
            raise
        self._stream._delivered(batch["_cursor"])
        return batch

    @property
    def stats(self) -> Stats:
        """The numbers of this pass so far."""
        running = self._pass  # which another thread may end meanwhile
        return self._stats if running is None else running.stats

    def replace(self) -> None:
        """Ends the pass in favour of a newer one: going on with it is then an error, unless it was through."""
        self._replaced = not self._closed
        self.close()

    def close(self) -> None:
        """Ends the pass; closing twice does nothing."""
        self._closed = True
        running, self._pass = self._pass, None
        if running is not None:
            self._stats = self._stream._stats = running.stats
            running.close()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
