"""One remote object's local copy: a sparse file, and beside it a map of the pages that it holds.

The map (``<name>.map``) is 64 bytes: magic ``DLPAGES1``, the object's size (u64), bytes a page (u32), a u32 that is 1
once the copy was given up; then a u32 per segment of 8 MB, when it was last used (seconds since 1970); then a byte per
page, 1 when its bytes are here. All little-endian. A page is marked after its bytes were written, so a killed process
leaves pages that are missing, never wrong ones; after a power loss a page may hold zeros, which its reader's checksum
finds.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys
import time
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from deeplake_loader import store
from deeplake_loader.errors import CorruptionError

PAGE = 256 << 10
"""Bytes that are here or not: what is fetched for a single small item."""

SEGMENT = 8 << 20
"""Bytes that one request fetches, one lock guards and eviction gives up together."""

SUFFIX = ".map"

_HEAD = struct.Struct("<8sQII40x")
_MAGIC = b"DLPAGES1"
_PER_SEGMENT = SEGMENT // PAGE
_PUNCH = 0x03  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE

Span = tuple[int, int]
Spans = npt.NDArray[np.int64]
"""First bytes and those behind the last, (n, 2)."""


class Copy:
    """A local copy, open in this process; threads and processes may share it.

    Raises:
        CorruptionError: the map is none, or is that of an object of another size.
        OSError: the disk refuses.
    """

    __slots__ = ("_map", "_mapped", "_stamps", "fd", "pages", "path", "size")

    def __init__(self, path: str, size: int | None) -> None:
        """``size``: of the object; None opens only a copy that is there, and raises FileNotFoundError without one."""
        self.path, self.fd = path, -1
        self._map = _open_map(path + SUFFIX, size)
        if os.fstat(self._map).st_size < _HEAD.size:
            raise CorruptionError(f"{path + SUFFIX}: cut, it is no map; remove the cache's folder")
        self._mapped = mmap.mmap(self._map, 0)
        magic, self.size, page, _ = _HEAD.unpack_from(self._mapped)
        segments, count = -(-self.size // SEGMENT), -(-self.size // PAGE)
        whole = _HEAD.size + 4 * segments + count
        if magic != _MAGIC or page != PAGE or len(self._mapped) != whole or size not in (None, self.size):
            raise CorruptionError(f"{path + SUFFIX}: no map of {size} bytes; remove the cache's folder")
        self._stamps = np.frombuffer(self._mapped, np.uint32, segments, _HEAD.size)
        self.pages: npt.NDArray[np.uint8] = np.frombuffer(self._mapped, np.uint8, count, _HEAD.size + 4 * segments)
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if os.fstat(self.fd).st_size < self.size:
            os.ftruncate(self.fd, self.size)

    def __del__(self) -> None:
        for fd in (getattr(self, "fd", -1), getattr(self, "_map", -1)):
            if fd >= 0:
                os.close(fd)

    @property
    def given_up(self) -> bool:
        """Whether the files of this copy are no longer those of their names."""
        return self._mapped[20] == 1

    @property
    def held(self) -> int:
        """Bytes that are here."""
        pages = int(np.count_nonzero(self.pages))
        short = pages and self.pages[-1] and -self.size % PAGE
        return pages * PAGE - int(short or 0)

    def missing(self, spans: Spans, expected: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.int64]:
        """The pages of these bytes that are not here, and the ``expected`` ones of their segments, ascending."""
        if self.pages.all():
            return np.empty(0, np.int64)
        ends = np.zeros(len(self.pages) + 1, np.int64)
        np.add.at(ends, spans[:, 0] // PAGE, 1)
        np.add.at(ends, -(-np.minimum(spans[:, 1], self.size) // PAGE), -1)
        absent = self.pages == 0
        lacking = (np.cumsum(ends[:-1]) > 0) & absent
        if expected is not None and lacking.any():
            touched = np.unique(np.flatnonzero(lacking) // _PER_SEGMENT)
            near = np.isin(np.arange(len(absent)) // _PER_SEGMENT, touched)
            lacking |= near & absent & expected
        return np.flatnonzero(lacking)

    def present(self, spans: Spans) -> int:
        """How many of these bytes are here, of spans that are here whole."""
        absent = np.concatenate(([0], np.cumsum(self.pages == 0)))
        last = -(-np.minimum(spans[:, 1], self.size) // PAGE)
        whole = absent[last] == absent[np.minimum(spans[:, 0] // PAGE, last)]
        return int((spans[whole, 1] - spans[whole, 0]).sum())

    def use(self, spans: Spans) -> None:
        """Takes note that these bytes are being read."""
        now = int(time.time())
        first, last = spans[:, 0] // SEGMENT, (spans[:, 1] - 1) // SEGMENT
        self._stamps[first] = self._stamps[last] = now
        for start, stop in zip(first.tolist(), last.tolist(), strict=True) if (last - first > 1).any() else ():
            self._stamps[start:stop] = now

    def put(self, start: int, body: bytes) -> None:
        """Writes bytes that begin at a page's start, and marks their pages. Raises OSError: the disk is full."""
        self.write(start, memoryview(body))
        self.mark(start, start + len(body))

    def write(self, start: int, piece: memoryview) -> None:
        """Writes bytes whose pages are marked later. Raises OSError: the disk is full."""
        done = 0
        while done < len(piece):
            done += os.pwrite(self.fd, piece[done:], start + done)

    def mark(self, start: int, stop: int) -> None:
        """Takes note that these bytes, which begin at a page's start, are here."""
        self.pages[start // PAGE : -(-stop // PAGE)] = 1

    def fill(self) -> None:
        """Marks every page: the file is the object."""
        self.pages[:] = 1
        self._stamps[:] = int(time.time())

    def segments(self) -> list[tuple[int, int, int]]:
        """(last used, number, bytes here) of each segment that holds something."""
        padded = np.zeros(len(self._stamps) * _PER_SEGMENT, np.uint8)
        padded[: len(self.pages)] = self.pages
        counts = padded.reshape(-1, _PER_SEGMENT).sum(1)
        found = np.flatnonzero(counts).tolist()
        return [(int(self._stamps[s]), s, int(counts[s]) * PAGE) for s in found]

    def drop(self, segment: int) -> None:
        """Gives a segment's disk space back; whoever is reading it finds zeros, and by their checksum that they are."""
        self.pages[segment * _PER_SEGMENT : (segment + 1) * _PER_SEGMENT] = 0
        _punch(self.fd, segment * SEGMENT, min(SEGMENT, self.size - segment * SEGMENT))

    def give_up(self) -> None:
        """Removes both files; who has them open or mapped keeps what is in them."""
        struct.pack_into("<I", self._mapped, 20, 1)
        for path in (self.path + SUFFIX, self.path):
            with suppress(FileNotFoundError):
                os.unlink(path)


def can_punch() -> bool:
    """Whether a part of a file can be given back here."""
    return sys.platform == "linux"


def runs(pages: npt.NDArray[np.int64], size: int, *, gap: int) -> list[Span]:
    """Ascending pages as byte ranges for requests: neighbours of one segment, and those up to ``gap`` bytes apart.

    >>> found = runs(np.array([0, 1, 4, 40]), 100 * PAGE, gap=PAGE)
    >>> [(start // PAGE, stop // PAGE) for start, stop in found]
    [(0, 2), (4, 5), (40, 41)]
    """
    found: list[Span] = []
    for page in pages.tolist():
        start, stop = page * PAGE, min((page + 1) * PAGE, size)
        if found and start - found[-1][1] <= gap and found[-1][0] // SEGMENT == start // SEGMENT:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return found


def _open_map(path: str, size: int | None) -> int:
    """The map's file, made whole under another name and linked when there is none yet."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        if size is None:
            raise
    os.makedirs(os.path.dirname(path), exist_ok=True)
    partial = f"{path}.{store.unique_name()}"
    fd = os.open(partial, flags | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        os.pwrite(fd, _HEAD.pack(_MAGIC, size, PAGE, 0), 0)
        os.ftruncate(fd, _HEAD.size + 4 * -(-size // SEGMENT) + -(-size // PAGE))
        os.link(partial, path)
    except FileExistsError:
        os.close(fd)
        return os.open(path, flags)
    except BaseException:
        os.close(fd)
        raise
    finally:
        os.unlink(partial)
    return fd


def _punch(fd: int, offset: int, length: int) -> None:
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate(fd, _PUNCH, ctypes.c_long(offset), ctypes.c_long(length))  # one that refuses costs only space
