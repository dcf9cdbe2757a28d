"""One pass over a stream in one process: its files, threads and numbers, from the first batch to the last."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deeplake_loader.catalog import Location
from deeplake_loader.decode.engine import choose_engine
from deeplake_loader.decode.transforms import Image, Raw, Video
from deeplake_loader.errors import InputError
from deeplake_loader.reader import Reader
from deeplake_loader.storage.traffic import Traffic
from deeplake_loader.stream.ahead import Ahead, ahead_of
from deeplake_loader.stream.device import Batch, Mover
from deeplake_loader.stream.late import late_floats
from deeplake_loader.stream.loading import Feed, Loader, Made
from deeplake_loader.stream.media import Media
from deeplake_loader.stream.options import Options
from deeplake_loader.stream.pipeline import Pipeline
from deeplake_loader.stream.schedule import Schedule, Step
from deeplake_loader.stream.source import Source
from deeplake_loader.stream.state import Assignment
from deeplake_loader.stream.stats import Board, Meter, Stats

if TYPE_CHECKING:
    from tqdm import tqdm

    from deeplake_loader.decode.dali import DaliDecoder

_MOST_THREADS = 16  # by default; more decoding threads than that wait for the interpreter
_NONE = Traffic()
_READERS = 2  # one's Python then overlaps the other's read: 1.5 times as fast as one with two native threads


class Pass(Iterator[Batch]):
    """The batches of one assignment. Its threads end with ``close()``, or when nobody holds it.

    Args:
        worker: this process's number among DataLoader's workers, which write their numbers on the ``board``.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        schedule: Schedule,
        options: Options,
        assigned: Assignment,
        *,
        board: Board,
        worker: int | None,
    ) -> None:
        threads = options.num_threads or max(1, min(_MOST_THREADS, _cores() // assigned.stride))
        mover = None
        if options.device.type == "cuda":
            sources, on_device = late_floats(sources, options)
            mover = Mover.to(options.device, on_device)
        self._board, self._worker, self._workers = board, worker, assigned.stride
        readers = 1 if _decodes(sources) else min(_READERS, threads, options.prefetch + 1)
        self._meter = Meter(prefetch=options.prefetch, readers=readers, threads=threads, max_errors=options.max_errors)
        cursor = assigned.epoch, assigned.base
        self._bar = _bar(options, schedule, cursor) if worker is None else None
        feeds, close = open_feeds(sources, spare=options.prefetch + 2, threads=_READERS // readers)
        self._readers = [reader for reader in {id(f.reader): f.reader for f in feeds}.values() if reader.is_remote]
        self._ahead: Ahead | None = None
        try:
            steps = schedule.batches(cursor, first=assigned.first, stride=assigned.stride)
            self._ahead = ahead_of(steps, feeds, prefetch=options.prefetch)
            self._before = self._traffic()
            decoder = _decoder(sources, options, mover)
            loader = Loader(feeds, options.seed, options.on_error, mover, decoder, options.shaping)
            self._pipeline: Pipeline[Step, Made] = Pipeline(
                schedule.batches(cursor, first=assigned.first, stride=assigned.stride),
                loader.read,
                decoders=threads,
                prefetch=options.prefetch,
                readers=readers,
                close=close,
                begin=mover.begin if mover is not None else lambda: None,
                timeout_s=options.timeout_s,
                whole_batches=decoder is not None,
                describe=loader.describe,
            )
        except BaseException:
            close()
            raise

    def __next__(self) -> Batch:
        made = next(self._pipeline)
        if self._ahead is not None:
            self._ahead.step()
        self._meter.failures.add(made.bad, made.samples)
        batch = made.receive()
        self._meter.add(
            self._pipeline.times,
            samples=made.samples - len(made.bad),
            nbytes=made.nbytes,
            retries=made.retries,
            cursor=batch["_cursor"],
        )
        if self._worker is not None:
            self._board.write(self._worker, replace(self.stats, workers=self._workers))
        if self._bar is not None:
            self._bar.update()
        return batch

    @property
    def stats(self) -> Stats:
        """The numbers now."""
        traffic = self._traffic() - self._before if self._readers else _NONE
        return self._meter.snapshot(self._pipeline.ready, traffic)

    def _traffic(self) -> Traffic:
        return sum((reader.traffic for reader in self._readers), _NONE)

    def close(self) -> None:
        """Ends the threads and closes the files."""
        if self._ahead is not None:
            self._ahead.close()
        self._pipeline.close()
        if self._bar is not None:
            self._bar.close()


def open_feeds(sources: Sequence[Source], *, spare: int, threads: int) -> tuple[list[Feed], Callable[[], None]]:
    """The sources as this process reads them, with one reader for each store, and what closes the readers."""
    readers: dict[Location, Reader] = {}

    def close() -> None:
        for reader in readers.values():
            reader.close()

    try:
        for source in sources:
            if source.location not in readers:
                readers[source.location] = Reader(source.location, threads=threads, max_spare=spare)
        return [Feed(s, readers[s.location], s.places(readers[s.location])) for s in sources], close
    except BaseException:
        close()
        raise


def _decodes(sources: Sequence[Source]) -> bool:
    """Whether a column is decoded: reading is then not what a pass waits for, and one reader has the batches decoded in
    the order in which they are wanted."""
    media = (column for source in sources for column in source.columns if isinstance(column, Media))
    return any(column.transform is not None and not isinstance(column.transform, Raw) for column in media)


def _decoder(sources: Sequence[Source], options: Options, mover: Mover | None) -> DaliDecoder | None:
    """DALI, where a column wants it."""
    media = [column for source in sources for column in source.columns if isinstance(column, Media)]
    chosen = [t for c in media for t in (c.transform, *(c.variants.transforms if c.variants else ()))]
    if not any(isinstance(transform, Image | Video) for transform in chosen):
        return None
    if mover is None:
        return choose_engine(options.device, options.engine)
    shaping = options.shaping
    if shaping.maps or shaping.rules or shaping.collate is not None:
        if options.engine == "dali":
            raise InputError(
                "map(), collate= and ragged= see batches on the CPU, before they go to the GPU, where engine='dali' "
                "would have decoded them; use engine='auto'"
            )
        return None
    return choose_engine(mover.device, options.engine)


def _bar(options: Options, schedule: Schedule, cursor: tuple[int, int]) -> tqdm[Any] | None:
    """A progress bar over the epoch, which a resumed one enters in the middle."""
    if not options.progress:
        return None
    from tqdm import tqdm

    total = schedule.steps((cursor[0], 0))
    return tqdm(total=total, initial=total - schedule.steps(cursor), unit="batch", desc=f"epoch {cursor[0]}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
