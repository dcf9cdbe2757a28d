"""The local cache of remote objects: shared by the processes of a machine, bounded by bytes, least recently used out.

    <folder>/<storage>/...           a sparse copy and a map for each object, under its own name: see `pages`
    <folder>/total                   bytes that all copies hold (u64), counted anew when room is made
    <folder>/locks/00 .. ff          who fetches: a segment's lock is one of them, so each is fetched once per machine

What was used in the last half minute is not given up: a pass that needs more than the cache holds reads the rest past
it, byte by byte, where giving up would fetch the same 8 MB again for every few samples.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from deeplake_loader.errors import CorruptionError, InputError
from deeplake_loader.storage.pages import SEGMENT, SUFFIX, Copy, can_punch
from deeplake_loader.storage.traffic import Counters

DEFAULT_BYTES = 20 << 30
"""What a cache may hold unless said otherwise."""

FRESH_S = 30.0
"""Seconds for which what was read is not given up."""

_KEPT = 0.9  # of the limit, once room was made: not for every page anew
_PATIENCE_S = 20.0  # then it is fetched again: whoever holds the lock hangs
_MAPPED = (".npy",)  # read by mmap, so never changed under a reader: given up whole


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a cache lies and what it may hold."""

    folder: str
    max_bytes: int = DEFAULT_BYTES
    fresh_s: float = FRESH_S

    @classmethod
    def of(cls, cache_dir: str | os.PathLike[str] | None = None, cache_bytes: int | None = None) -> Limits:
        """By default ``$DEEPLAKE_CACHE`` or ``~/.cache/deeplake_loader``, and ``$DEEPLAKE_CACHE_BYTES`` or 20 GB; 0
        bytes: nothing is kept.

        Raises:
            InputError: a size that is none.
        """
        folder = os.fspath(cache_dir or os.environ.get("DEEPLAKE_CACHE") or "~/.cache/deeplake_loader")
        given: object = os.environ.get("DEEPLAKE_CACHE_BYTES") if cache_bytes is None else cache_bytes
        try:
            size = DEFAULT_BYTES if given is None else int(str(given))
        except ValueError:
            size = -1
        if size < 0:
            raise InputError(f"cache_bytes must be a number of bytes, got {given!r}")
        return cls(os.path.abspath(os.path.expanduser(folder)), size)


class Cache:
    """The copies in one folder, as this process uses them."""

    def __init__(self, limits: Limits, counters: Counters) -> None:
        self.limits, self.counters = limits, counters

    def folder_of(self, url: str) -> str:
        """Where the copies of a storage's objects lie."""
        return os.path.join(self.limits.folder, hashlib.sha256(url.encode()).hexdigest()[:24])

    @contextmanager
    def fetching(self, segments: Iterable[str]) -> Iterator[None]:
        """Keeps other threads and processes from fetching these segments meanwhile, whatever name each has; after 20
        seconds of waiting for somebody who hangs, does not."""
        slots = sorted({int.from_bytes(hashlib.sha256(name.encode()).digest()[:1]) for name in segments})
        held: list[int] = []
        until = time.monotonic() + _PATIENCE_S
        try:
            for slot in slots:  # in one order everywhere: no two wait for each other
                held.append(self._lock(f"locks/{slot:02x}", until))
            yield
        finally:
            for fd in held:
                os.close(fd)

    def _lock(self, name: str, until: float) -> int:
        path = os.path.join(self.limits.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        wait = 0.001
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    return fd
                time.sleep(wait)
                wait = min(0.05, wait * 2)
            else:
                return fd

    def make_room(self, need: int) -> bool:
        """Whether ``need`` more bytes may be kept; what was not used lately is given up for them."""
        limit = self.limits.max_bytes
        if need > limit:
            return False
        return self._add(need) <= limit or self._evict(need)

    def forget(self, count: int) -> None:
        """Takes back bytes that were promised and not kept."""
        self._add(-count)

    def _add(self, count: int) -> int:
        """The bytes held, with these."""
        with self._total() as fd:
            held = struct.unpack("<q", os.pread(fd, 8, 0).ljust(8, b"\0"))[0]
            total = max(0, int(held) + count)
            os.pwrite(fd, struct.pack("<q", total), 0)
        return total

    @contextmanager
    def _total(self) -> Iterator[int]:
        fd = self._lock("total", time.monotonic() + _PATIENCE_S)
        try:
            yield fd
        finally:
            os.close(fd)

    def _evict(self, need: int) -> bool:
        """Gives up segments, the longest unused first, until there is room for ``need`` bytes and a tenth more; whether
        there is. Counts what is there, so what killed processes promised is forgotten."""
        limit = self.limits.max_bytes
        with self._total() as fd:
            copies = list(self.copies())
            found = [(used, n, size, copy) for copy in copies for used, n, size in copy.segments()]
            held = before = sum(copy.held for copy in copies)
            old = time.time() - self.limits.fresh_s
            for used, segment, size, copy in sorted(found, key=lambda entry: entry[:2]):
                if held + need <= limit * _KEPT or used > old:
                    break
                held -= self._drop(copy, segment, size, old)
            self.counters.add(evicted=before - held)
            fits = held + need <= limit
            os.pwrite(fd, struct.pack("<q", held + need * fits), 0)
        return fits

    @staticmethod
    def _drop(copy: Copy, segment: int, size: int, old: float) -> int:
        """Bytes given up."""
        if copy.given_up:
            return 0
        if can_punch() and not copy.path.endswith(_MAPPED):
            copy.drop(segment)
            return size
        if any(used > old for used, _, _ in copy.segments()):
            return 0
        freed = copy.held
        copy.give_up()
        return freed

    def copies(self) -> Iterator[Copy]:
        """Every copy in the folder."""
        for folder, _, names in os.walk(self.limits.folder):
            for name in names:
                if name.endswith(SUFFIX):
                    with suppress(OSError, CorruptionError, ValueError, struct.error):
                        yield Copy(os.path.join(folder, name.removesuffix(SUFFIX)), None)


def segments_of(pages: Sequence[int], page: int) -> list[int]:
    """The segments that hold these pages."""
    return sorted({number * page // SEGMENT for number in pages})
