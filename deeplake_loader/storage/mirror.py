"""A storage as a store uses it: objects written once, and read through the local cache as if they were files.

fetch(spans) -> which pages are missing -> locks -> ranged GETs at the same time -> pages written and marked
                                       '-> no room, disk full: the bytes themselves
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from deeplake_loader import store
from deeplake_loader.errors import CorruptionError, NotFoundError, StoreError
from deeplake_loader.storage.cache import Cache, Limits, segments_of
from deeplake_loader.storage.objects import Span, clean_url
from deeplake_loader.storage.pages import PAGE, SEGMENT, Copy, Spans, runs
from deeplake_loader.storage.remote import Remote
from deeplake_loader.storage.traffic import Counters, Traffic

_GAP = 1 << 20  # bytes that are cheaper read over than asked around: a request's latency at 50 MB/s
_PASSED_GAP = 64 << 10
_OPEN = 256
_WARMED = 16 * SEGMENT  # bytes under way at once while prewarming

Expected = Mapping[str, npt.NDArray[np.bool_]]
"""Per object the pages that somebody will want, which are fetched with their neighbours."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """Bytes that were read past the cache: (start, body) by object; a range that is not in it lies in the copy."""

    bodies: dict[str, list[tuple[int, bytes | bytearray]]] = field(default_factory=dict)

    def find(self, name: str, start: int, stop: int) -> memoryview | None:
        """Those bytes, if they are here."""
        for at, body in self.bodies.get(name, ()):
            if at <= start and stop <= at + len(body):
                return memoryview(body)[start - at : stop - at]
        return None


class Mirror:
    """The objects below one url with their local copies; picklable, its repr shows no credentials."""

    def __init__(self, url: str, *, options: Mapping[str, Any] | None = None, limits: Limits | None = None) -> None:
        self._limits = limits or Limits.of()
        self.objects = Remote(clean_url(url), options=options)
        self._begin()

    def _begin(self) -> None:
        self.url = self.objects.url
        self.cache = Cache(self._limits, self.objects.counters)
        self.folder = self.cache.folder_of(self.url)
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._copies: OrderedDict[str, Copy] = OrderedDict()
        self._sizes: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<Mirror {self.url}>"

    def __reduce__(self) -> Any:
        return _rebuilt, (self.objects, self._limits)

    @property
    def counters(self) -> Counters:
        """What this process asked for."""
        return self.objects.counters

    @property
    def traffic(self) -> Traffic:
        """The numbers now."""
        return self.counters.snapshot()

    def path(self, name: str) -> str:
        """The local copy's path; of an object that is still being written, its file."""
        return os.path.join(self.folder, *name.split("/"))

    # -- reading ---------------------------------------------------------------------------------------------------

    def learn(self, name: str, size: int) -> None:
        """Tells an object's size, which is then not asked for."""
        self._sizes.setdefault(name, size)

    def size(self, name: str) -> int:
        """Bytes of the object, asked for once."""
        if name not in self._sizes:
            self._sizes[name] = self.objects.size(name)
        return self._sizes[name]

    def copy(self, name: str) -> Copy | None:
        """The object's local copy; None where there can be none: no room at all, a folder that cannot be written."""
        if self._pid != os.getpid():  # the parent's lock may have been held at the fork
            self._begin()
        with self._lock:
            found = self._copies.get(name)
            if found is not None and not found.given_up:
                self._copies.move_to_end(name)
                return found
        if not self._limits.max_bytes:
            return None
        try:
            found = self._open(name)
        except OSError:
            return None
        with self._lock:
            self._copies[name] = found
            while len(self._copies) > _OPEN:
                self._copies.popitem(last=False)
        return found

    def _open(self, name: str) -> Copy:
        path = self.path(name)
        try:
            return Copy(path, None)
        except FileNotFoundError:
            return Copy(path, self.size(name))
        except CorruptionError:
            with suppress(FileNotFoundError):
                os.unlink(path + ".map")
            return Copy(path, self.size(name))

    def is_ours(self, name: str) -> bool:
        """Whether the object is being written here, so that its file is all there is of it."""
        path = self.path(name)
        return not os.path.exists(path + ".map") and os.path.exists(path)

    def fetch(
        self, wanted: Mapping[str, Spans], expected: Expected | None = None, *, keep_only: bool = False
    ) -> Fetched:
        """Makes these ranges present in their copies, every missing one fetched at the same time; ``keep_only``:
        somebody reads them later, so those for which there is no room are not fetched, and none is counted as found.

        Raises:
            NotFoundError: an object is gone. CorruptionError: one ends earlier. StoreError: the storage is out of
                reach.
        """
        fetched, found = Fetched(), 0
        missing: list[tuple[str, Copy, list[int]]] = []
        for name, spans in wanted.items():
            copy = self.copy(name)
            if copy is None:
                if not keep_only and not self.is_ours(name):
                    self._pass(name, spans, fetched)
                continue
            if (spans[spans[:, 0] >= copy.size, 1] > copy.size).any():
                raise CorruptionError(
                    f"{self.url}/{name}: cut, it ends at byte {copy.size}, before what was asked for; restore it from "
                    "a copy"
                )
            copy.use(spans)
            pages = copy.missing(spans, None if expected is None else expected.get(name))
            found += 0 if keep_only else copy.present(spans)
            if len(pages):
                missing.append((name, copy, pages.tolist()))
        if missing:
            self._fill(missing, {} if keep_only else wanted, fetched)
        self.counters.add(hits=found)  # at the end: what failed is asked for again
        return fetched

    def _fill(
        self, missing: Sequence[tuple[str, Copy, list[int]]], wanted: Mapping[str, Spans], fetched: Fetched
    ) -> None:
        """Fetches missing pages under the locks of their segments."""
        keys = [f"{self.url}/{name}:{s}" for name, _, pages in missing for s in segments_of(pages, PAGE)]
        try:
            with self.cache.fetching(keys):
                self._fill_locked(missing, wanted, fetched)
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            for name, _, _ in missing:  # the cache's folder cannot be written
                self._pass(name, wanted.get(name), fetched)

    def _fill_locked(
        self, missing: Sequence[tuple[str, Copy, list[int]]], wanted: Mapping[str, Spans], fetched: Fetched
    ) -> None:
        jobs: list[tuple[str, Span]] = []
        copies: list[Copy] = []
        promised = 0
        for name, copy, pages in missing:
            absent = np.array([p for p in pages if not copy.pages[p]], np.int64)  # others may have fetched meanwhile
            if not len(absent):
                continue
            if not self.cache.make_room(len(absent) * PAGE):
                self._pass(name, wanted.get(name), fetched)
                continue
            promised += len(absent) * PAGE
            found = runs(absent, copy.size, gap=_GAP)
            jobs += [(name, span) for span in found]
            copies += [copy] * len(found)
        if jobs:
            self._get(jobs, copies, fetched, promised)

    def _get(self, jobs: Sequence[tuple[str, Span]], copies: Sequence[Copy], fetched: Fetched, promised: int) -> None:
        landings = [_Landing(copy, *span) for copy, (_, span) in zip(copies, jobs, strict=True)]
        refused: list[int] = []

        def done(number: int) -> None:
            body = landings[number].end()
            if body is not None:
                name, (start, _) = jobs[number]
                refused.append(len(body))
                fetched.bodies.setdefault(name, []).append((start, body))

        try:
            self.objects.read_each([(*job, land.take) for job, land in zip(jobs, landings, strict=True)], done)
        except BaseException:
            self.cache.forget(promised)
            raise
        if refused:
            self.cache.forget(sum(refused))

    def _pass(self, name: str, spans: Spans | None, fetched: Fetched) -> None:
        """Reads exactly these bytes past the cache."""
        if spans is None:  # kept, or not at all
            return
        merged: list[Span] = []
        for start, stop in sorted(spans.tolist()):
            if merged and start - merged[-1][1] <= _PASSED_GAP:
                merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
            else:
                merged.append((start, stop))
        bodies = self.objects.read_many(name, merged)
        fetched.bodies.setdefault(name, []).extend(zip((start for start, _ in merged), bodies, strict=True))
        self.counters.add(passed=sum(map(len, bodies)))

    def read(self, name: str, start: int, stop: int, *, fresh: bool = False) -> bytes:
        """These bytes, not verified; ``fresh``: fetched again and put over what the copy has, whose checksum was
        wrong."""
        if start >= stop:
            return b""
        if self.is_ours(name):
            return self._read_file(self.path(name), start, stop)
        if fresh:
            return self._refetch(name, start, stop)
        fetched = self.fetch({name: _one(start, stop)})
        copy, data = self.copy(name), bytearray(stop - start)
        if copy is not None:
            data[:] = store.read_at(copy.fd, start, stop - start, f"{self.url}/{name}")
        for at, body in fetched.bodies.get(name, ()):  # over what the copy has not
            first, last = max(at, start), min(at + len(body), stop)
            if first < last:
                data[first - start : last - start] = body[first - at : last - at]
        return bytes(data)

    @staticmethod
    def _read_file(path: str, start: int, stop: int) -> bytes:
        with store.file_errors("read", path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return store.read_at(fd, start, stop - start, path)
            finally:
                os.close(fd)

    def _refetch(self, name: str, start: int, stop: int) -> bytes:
        copy = self.copy(name)
        first = start // PAGE * PAGE
        last = stop if copy is None else min(-(-stop // PAGE) * PAGE, copy.size)
        body = self.objects.read(name, first, last)
        self.counters.add(refetched=len(body))
        if copy is not None:
            with suppress(OSError):
                copy.put(first, body)
        return body[start - first : stop - first]

    # -- writing ---------------------------------------------------------------------------------------------------

    def upload(self, name: str, path: str) -> None:
        """Makes an object of a local file."""
        self.objects.upload(name, path)

    def keep(self, name: str, size: int) -> None:
        """The file at the object's `path` was uploaded: from now on it is a copy, which the cache may give up."""
        self.learn(name, size)
        path = self.path(name)
        with suppress(OSError, CorruptionError):
            if self.cache.make_room(size):
                Copy(path, size).fill()
                return
        with suppress(OSError):
            os.unlink(path)

    def prewarm(self, names: Sequence[str]) -> int:
        """Bytes fetched so that these objects are here whole; stops where the cache is full."""
        done = 0
        for name in names:
            copy = self.copy(name)
            if copy is None:
                raise NotFoundError(f"the cache {self._limits.folder} cannot be written, or holds 0 bytes")
            before = copy.held
            for start in range(0, copy.size, _WARMED):
                stop = min(start + _WARMED, copy.size)
                self.fetch({name: _one(start, stop)}, keep_only=True)
                if copy.present(_one(start, stop)) < stop - start:
                    return done + copy.held - before
            done += copy.held - before
        return done


class _Landing:
    """A range on its way into a copy; where the disk takes no more, into memory, to be used once."""

    def __init__(self, copy: Copy, start: int, stop: int) -> None:
        self._copy, self._start, self._stop = copy, start, stop
        self._body: bytearray | None = None

    def take(self, offset: int, piece: memoryview) -> None:
        """A piece of it."""
        if self._body is None:
            try:
                self._copy.write(self._start + offset, piece)
                return
            except OSError:  # the disk is full; what came before is there
                before = os.pread(self._copy.fd, self._stop - self._start, self._start)
                self._body = bytearray(before.ljust(self._stop - self._start, b"\0"))
        self._body[offset : offset + len(piece)] = piece

    def end(self) -> bytearray | None:
        """It is whole: its pages are marked, or it is given back."""
        if self._body is None:
            self._copy.mark(self._start, self._stop)
        return self._body


_mirrors: dict[str, Mirror] = {}


def mirror_of(url: str, own: Mirror | None = None) -> tuple[Mirror, str]:
    """The mirror through which an object is read, and the object's name there: ``own`` where it lies below that, else
    one of its folder, with the environment's credentials."""
    if own is not None and url.startswith(own.url + "/"):
        return own, url[len(own.url) + 1 :]
    folder, _, name = url.rpartition("/")
    if folder not in _mirrors:
        _mirrors[folder] = Mirror(folder)
    return _mirrors[folder], name


def _one(start: int, stop: int) -> Spans:
    return np.array([(start, stop)], np.int64)


def _rebuilt(objects: Remote, limits: Limits) -> Mirror:
    mirror = Mirror.__new__(Mirror)
    mirror._limits, mirror.objects = limits, objects
    mirror._begin()
    return mirror
