"""What a pass costs and where: counted per batch by the consumer's thread, so that no sample takes a lock.

DataLoader's workers each write one line of numbers into a shared file after every batch, and the main process adds the
lines up.
"""

from __future__ import annotations

import os
import struct
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from multiprocessing import context, reduction
from typing import Any, NamedTuple

from deeplake_loader.storage.traffic import Traffic
from deeplake_loader.stream.failures import BadSample, Failures
from deeplake_loader.stream.shared import anonymous_file

_MOST_WORKERS = 1_024
_LATE = 0.05  # below this share of waiting the training step decides the speed


@dataclass(slots=True)
class Times:
    """Where one batch spent its time, in seconds; ``ready`` is the moment it was finished."""

    read_s: float = 0.0
    decode_s: float = 0.0
    finish_s: float = 0.0
    late_s: float = 0.0
    early_s: float = 0.0
    ready: float = 0.0

    def settle(self, asked: float, given: float) -> None:
        """The batch was asked for and given then."""
        self.late_s, self.early_s = given - asked, max(0.0, asked - self.ready)


@dataclass(frozen=True, slots=True)
class Stats:
    """One pass so far.

    Fields: ``samples`` and ``batches`` delivered; ``bytes`` read from the store for them, every one verified against a
    checksum; ``seconds`` since the first batch was asked for, until the newest was given. Seconds of work, added up
    over threads and workers: ``read_s``, ``decode_s``, ``finish_s`` (putting batches together). ``late_s``: the
    consumer waited for batches; ``early_s``: finished batches waited for the consumer. ``queue``: batches ready now, of
    ``prefetch``; ``readers`` and ``threads``, those that read and that decode. ``bad``: samples that were skipped or
    replaced, ``skipped`` the newest 1,000 of them (of this process: DataLoader's workers only count theirs, and name
    them in each batch's ``_bad``). ``retries``: samples read a second time. ``workers``: DataLoader's, 0 without.
    ``epoch`` and ``position``: the cursor behind the newest batch. What this process asked of object storage since the
    pass began: ``gets``, requests for bytes, ``fetched``, bytes that came, ``hits``, bytes of samples that were in
    the cache when they were read (brought by reading ahead, by batches before or long ago), ``resent``, requests sent
    again after a failure, ``hedges``, second requests beside slow ones.
    """

    samples: int = 0
    batches: int = 0
    bytes: int = 0
    seconds: float = 0.0
    read_s: float = 0.0
    decode_s: float = 0.0
    finish_s: float = 0.0
    late_s: float = 0.0
    early_s: float = 0.0
    queue: int = 0
    prefetch: int = 0
    readers: int = 0
    threads: int = 0
    bad: int = 0
    retries: int = 0
    workers: int = 0
    epoch: int = 0
    position: int = 0
    gets: int = 0
    fetched: int = 0
    hits: int = 0
    resent: int = 0
    hedges: int = 0
    skipped: tuple[BadSample, ...] = ()

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_s(self) -> float:
        return self.bytes / self.seconds if self.seconds else 0.0

    @property
    def late(self) -> float:
        """The share of the time for which the consumer waited for a batch."""
        return min(1.0, self.late_s / self.seconds / max(1, self.workers)) if self.seconds else 0.0

    def busy(self) -> dict[str, float]:
        """For how much of the time each stage's threads worked, 0 to 1."""
        whole = self.seconds * max(1, self.workers)
        readers, threads = (max(1, count // max(1, self.workers)) for count in (self.readers, self.threads))
        shares = {"read": self.read_s / readers, "decode": (self.decode_s + self.finish_s) / threads}
        return {stage: min(1.0, share / whole) if whole else 0.0 for stage, share in shares.items()}

    def report(self) -> str:
        """The bottleneck and the speed in one line."""
        if not self.batches:
            return "nothing was read yet"
        busy = self.busy()
        stage = max(busy, key=lambda name: busy[name])
        if self.workers == 0 and self.late < _LATE:
            said = f"step-bound: a batch lay ready for {1 - self.late:.0%} of the time"
        else:
            wait = "" if self.workers else f", the consumer waited for {self.late:.0%} of it"
            said = f"{stage}-bound: its threads worked for {busy[stage]:.0%} of the time{wait}"
        bad = f", {self.bad:,} bad" if self.bad else ""
        rates = f"{self.samples_per_s:,.0f} samples/s, {self.bytes_per_s / 1e6:,.0f} MB/s"
        return f"{said}; {rates}, {self.samples:,} samples in {self.batches:,} batches{bad}"


class _Totals(NamedTuple):
    """What is counted per batch: fields of `Stats`. Replaced as a whole, for another thread may ask; making one takes a
    tenth of the 30 us of a dataclass."""

    samples: int = 0
    batches: int = 0
    bytes: int = 0
    retries: int = 0
    read_s: float = 0.0
    decode_s: float = 0.0
    finish_s: float = 0.0
    late_s: float = 0.0
    early_s: float = 0.0
    seconds: float = 0.0
    epoch: int = 0
    position: int = 0


class Meter:
    """Counts one pass in one process."""

    def __init__(self, *, prefetch: int, readers: int, threads: int, max_errors: int | None) -> None:
        self._fixed = Stats(prefetch=prefetch, readers=readers, threads=threads)
        self._begun = time.monotonic()
        self._totals = _Totals()
        self.failures = Failures(max_errors)

    def add(self, times: Times, *, samples: int, nbytes: int, retries: int, cursor: tuple[int, int]) -> None:
        """Takes note of one batch, before it is delivered."""
        before = self._totals
        self._totals = _Totals(
            before.samples + samples,
            before.batches + 1,
            before.bytes + nbytes,
            before.retries + retries,
            before.read_s + times.read_s,
            before.decode_s + times.decode_s,
            before.finish_s + times.finish_s,
            before.late_s + times.late_s,
            before.early_s + times.early_s,
            time.monotonic() - self._begun,
            *cursor,
        )

    def snapshot(self, queue: int, traffic: Traffic) -> Stats:
        """The numbers now."""
        failures, totals = self.failures, self._totals._asdict()
        return replace(
            self._fixed,
            queue=queue,
            bad=failures.count,
            skipped=tuple(failures.newest),
            gets=traffic.gets,
            fetched=traffic.bytes_read,
            hits=traffic.hits,
            resent=traffic.retries,
            hedges=traffic.hedges,
            **totals,
        )


_SHARED = tuple(field.name for field in fields(Stats) if field.name != "skipped")
_LINE = struct.Struct(f"<{len(_SHARED) + 1}d")


class Board:
    """One line of numbers for each DataLoader worker, in an anonymous file that forked and spawned workers share."""

    def __init__(self) -> None:
        self._adopt(anonymous_file("stats"))

    def _adopt(self, fd: int) -> None:
        self._fd = fd
        weakref.finalize(self, os.close, fd)

    def write(self, worker: int, stats: Stats) -> None:
        """Replaces the worker's line."""
        if worker < _MOST_WORKERS:
            line = _LINE.pack(time.time(), *(float(getattr(stats, name)) for name in _SHARED))
            os.pwrite(self._fd, line, worker * _LINE.size)

    def read(self) -> Stats:
        """The sum over the workers of the newest pass."""
        data = os.pread(self._fd, _MOST_WORKERS * _LINE.size, 0)
        lines = [line for line in _LINE.iter_unpack(data[: len(data) // _LINE.size * _LINE.size]) if line[0]]
        if not lines:
            return Stats()
        newest = _stats(max(lines)[1:])
        return _sum([s for s in (_stats(line[1:]) for line in lines) if s.workers == newest.workers])

    def __getstate__(self) -> dict[str, Any]:
        spawning = context.get_spawning_popen() is not None
        return {"handle": reduction.DupFd(self._fd) if spawning else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._adopt(anonymous_file("stats") if state["handle"] is None else state["handle"].detach())


def _stats(numbers: Sequence[float]) -> Stats:
    return _made(dict(zip(_SHARED, numbers, strict=True)))


def _sum(lines: Sequence[Stats]) -> Stats:
    most = ("seconds", "prefetch", "workers")
    total = _made({n: (max if n in most else sum)(getattr(s, n) for s in lines) for n in _SHARED})
    epoch, position = max((s.epoch, s.position) for s in lines)
    return replace(total, epoch=epoch, position=position)


def _made(numbers: dict[str, float]) -> Stats:
    kinds = {field.name: field.type for field in fields(Stats)}
    values: dict[str, Any] = {n: number if kinds[n] == "float" else int(number) for n, number in numbers.items()}
    return Stats(**values)
