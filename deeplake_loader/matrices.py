"""One vector file: a .npy matrix written once and then only mapped, or the rows that still rest in the catalog.

A sealed file is a plain version 1.0 .npy: a header of 128 bytes, then the rows, little-endian, C order, so row 0 lies
at a 64-byte multiple and ``numpy.load`` reads it. Its checksums are crc32c of every 1 MB of the file, header included.
Reading maps the file and verifies a block the first time that a process touches it; what was verified is kept beyond
the map, by the identity of the file.

Writing overlaps four things: one thread computes block checksums and hands bytes to the system, one pushes them to the
disk, and one reads them back for the sha256 (the slowest of the three at 1.8 GB/s a core), while the caller goes on
with the rows that name the vectors.
"""

from __future__ import annotations

import mmap
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from deeplake_loader import kernels
from deeplake_loader.behind import Behind
from deeplake_loader.errors import CorruptionError, DeeplakeError
from deeplake_loader.store import file_errors, read_at, sync_folder, write_at
from deeplake_loader.types import ColumnType

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

BLOCK = 1 << 20
"""Bytes per checksum."""

HEADER = 128
"""Bytes before row 0: the longest header there can be, padded to the next multiple of 64."""

_PIECE = 8 * BLOCK  # one write; small enough that checksum and copy find the bytes in the cache
_SYNC = 32 * BLOCK  # a sync per this many bytes keeps the disk busy while the rest is written
_THREADED = 8  # blocks from which verifying on two threads pays for starting one (60 us)

_KNOWN = 4096  # files whose verified blocks are remembered, a byte for each
_SETTLED_NS = 100_000_000  # what changed this lately may change again under the same time: clocks tick in up to 10 ms

_INTACT = 0x48674BC7  # the crc32c of any bytes followed by their own

Dtype = Literal["float32", "float16"]
_ITEM = {"float32": 4, "float16": 2}


@dataclass(frozen=True, slots=True)
class Layout:
    """The shape of a row: its number of elements and their type.

    >>> Layout(768, "float16").stride
    1536
    """

    dimension: int
    dtype: Dtype

    @classmethod
    def of(cls, kind: ColumnType) -> Layout:
        return cls(kind.dimension, cast(Dtype, kind.dtype))

    @property
    def stride(self) -> int:
        """Bytes per row."""
        return self.dimension * _ITEM[self.dtype]

    def header(self, count: int) -> bytes:
        """The first 128 bytes of a .npy of that many rows."""
        shape = f"({count}, {self.dimension})"
        text = f"{{'descr': '<f{_ITEM[self.dtype]}', 'fortran_order': False, 'shape': {shape}, }}"
        return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + text.encode().ljust(HEADER - 11) + b"\n"

    def size(self, count: int) -> int:
        """Bytes of a file of that many rows."""
        return HEADER + count * self.stride


class Matrix(Protocol):
    """Rows that lie side by side: what the score kernels and the readers need of a file."""

    @property
    def layout(self) -> Layout: ...
    @property
    def count(self) -> int: ...
    @property
    def view(self) -> memoryview: ...

    def verify(self, rows: Sequence[int]) -> None:
        """Raises CorruptionError unless the bytes of these rows, in ascending order, are what was written."""

    def verify_array(self, rows: Array) -> None:
        """The same for an int64 array of rows in any order, without a step per row."""


@dataclass(frozen=True, slots=True)
class Tail:
    """Rows of an open file as the catalog holds them: one immutable copy in memory, replaced when rows are added."""

    layout: Layout
    data: bytes

    @property
    def count(self) -> int:
        return len(self.data) // self.layout.stride

    @property
    def view(self) -> memoryview:
        return memoryview(self.data)

    def verify(self, rows: Sequence[int]) -> None:
        """Nothing to do: each run was verified when it left the catalog."""

    def verify_array(self, rows: Array) -> None:
        """Nothing to do."""


def pack_run(data: memoryview) -> bytes:
    """Rows as one value of the catalog: their bytes and a little-endian crc32c."""
    return b"".join((data, kernels.crc32c(data).to_bytes(4, "little")))


def unpack_run(value: bytes, where: str) -> memoryview:
    """The rows of ``pack_run``.

    Raises:
        CorruptionError: the checksum differs; ``where`` names the run.
    """
    data = memoryview(value)[:-4]
    if kernels.crc32c(value) != _INTACT:
        found, stored = kernels.crc32c(data), int.from_bytes(value[-4:], "little")
        raise CorruptionError(f"{where}: {len(data)} resting bytes have crc32c {found:08x}, written as {stored:08x}")
    return data


class Source(Protocol):
    """A file's bytes that have to be fetched: see `storage.mapped.Mapped`."""

    @property
    def memory(self) -> mmap.mmap: ...
    def load(self, spans: Sequence[tuple[int, int]]) -> None:
        """Makes these bytes present."""

    def reload(self, start: int, stop: int) -> None:
        """Fetches these bytes again."""


class Sealed:
    """A finished .npy file, mapped; every block is verified before it is first used, and fetched before that where it
    lies on a storage.

    Raises:
        CorruptionError: the file's size or header differs from the catalog, so bytes were cut or replaced.
        NotFoundError: the file is not there.
    """

    __slots__ = ("_checks", "_map", "_source", "_unverified", "_verified", "count", "layout", "url", "view")

    def __init__(
        self,
        path: str,
        url: str,
        layout: Layout,
        count: int,
        checks: bytes,
        *,
        behind: int = 0,
        source: Source | None = None,
    ) -> None:
        """``behind``: bytes of the file that follow the rows and have checksums of their own. ``source``: where the
        file's bytes come from, instead of the path; its first block's checksum stands for its header."""
        self.layout, self.count, self.url, self._checks, self._source = layout, count, url, checks, source
        if source is not None:
            self._check_size(len(source.memory))
            self._map = source.memory
            self._verified = bytearray(len(checks) // 4)
        else:
            self._open(path, behind)
        self.view = memoryview(self._map)[HEADER : layout.size(count)]
        self._unverified = self._verified.count(0)

    def _open(self, path: str, behind: int) -> None:
        layout, count, url, checks = self.layout, self.count, self.url, self._checks
        with file_errors("open the vectors", path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                found = os.fstat(fd)
                self._check_size(found.st_size - behind)
                self._map = mmap.mmap(fd, layout.size(count), prot=mmap.PROT_READ)
            finally:
                os.close(fd)
        if self._map[:HEADER] != layout.header(count):
            raise CorruptionError(f"{url}: the header is not that of {count} rows of {layout.dimension} {layout.dtype}")
        self._verified = _verified_blocks(found, checks)

    def _check_size(self, size: int) -> None:
        expected, blocks = self.layout.size(self.count), len(self._checks) // 4
        if size != expected:
            raise CorruptionError(
                f"{self.url}: {size} bytes, but {self.count} rows of {self.layout.dimension} {self.layout.dtype} are "
                f"{expected}; the file was cut or replaced: put the original back"
            )
        if len(self._checks) != 4 * -(-size // BLOCK):
            raise CorruptionError(f"{self.url}: the catalog holds {blocks} checksums for {size} bytes")

    def verify(self, rows: Sequence[int]) -> None:
        if self._unverified:
            self._verify_blocks([b for b in self._blocks(rows) if not self._verified[b]])

    def verify_array(self, rows: Array) -> None:
        stride = self.layout.stride
        if not self._unverified:
            return
        if stride > BLOCK:
            self.verify(sorted(rows.tolist()))
            return
        import numpy as np

        begins = rows * stride + HEADER
        blocks = np.concatenate((begins, begins + (stride - 1))) // BLOCK
        fresh = ~np.frombuffer(self._verified, np.bool_).take(blocks)
        self._verify_blocks(np.unique(blocks[fresh]).tolist())

    def _blocks(self, rows: Sequence[int]) -> Iterable[int]:
        """The blocks that ascending rows touch, each once: one bisection per block, not one step per row."""
        stride, position, done = self.layout.stride, 0, -1
        while position < len(rows):
            start = HEADER + rows[position] * stride
            last = (start + stride - 1) // BLOCK
            yield from range(max(start // BLOCK, done + 1), last + 1)
            done = last
            beyond = ((last + 1) * BLOCK - HEADER) // stride  # the first row that reaches into the next block
            position = bisect_left(rows, beyond, position + 1)

    def _verify_blocks(self, blocks: list[int]) -> None:
        if self._source is not None:
            self._source.load([self._span(first, stop) for first, stop in _runs(blocks)])
        self._compare_all(blocks)
        bad = [b for b in blocks if not self._verified[b]]
        if bad and self._source is not None:
            for block in bad:
                self._source.reload(*self._span(block, block + 1))
            self._compare(bad)
            bad = [b for b in bad if not self._verified[b]]
        if bad:
            raise self._damaged(bad[0])
        self._unverified = self._verified.count(0)

    def _span(self, first: int, stop: int) -> tuple[int, int]:
        return first * BLOCK, min(stop * BLOCK, len(self._map))

    def _compare_all(self, blocks: list[int]) -> None:
        if len(blocks) < _THREADED:
            self._compare(blocks)
        else:
            helper = Thread(target=self._compare, args=(blocks[: len(blocks) // 2],), daemon=True)
            helper.start()
            self._compare(blocks[len(blocks) // 2 :])
            helper.join()

    def _compare(self, blocks: list[int]) -> None:
        for first, stop in _runs(blocks):
            found = self._sums(first, stop)
            for block in range(first, stop):
                at = 4 * (block - first)
                self._verified[block] = found[at : at + 4] == self._checks[4 * block : 4 * block + 4]

    def _sums(self, first: int, stop: int) -> bytes:
        with memoryview(self._map) as whole, whole[first * BLOCK : stop * BLOCK] as part:
            return kernels.crc32c_blocks(part, BLOCK)

    def _damaged(self, block: int) -> CorruptionError:
        expected = int.from_bytes(self._checks[4 * block : 4 * block + 4], "little")
        found = int.from_bytes(self._sums(block, block + 1), "little")
        start, stop = block * BLOCK, min((block + 1) * BLOCK, len(self._map))
        first, last = max(start - HEADER, 0) // self.layout.stride, (stop - HEADER - 1) // self.layout.stride
        return CorruptionError(
            f"{self.url}: block {block} (bytes {start} to {stop}, rows {first} to {last}) has crc32c {found:08x}, "
            f"written as {expected:08x}; put the original file back"
        )


class Part:
    """Some rows of a sealed file, side by side: those of one file that was merged into it."""

    __slots__ = ("_begin", "_whole", "count", "layout", "view")

    def __init__(self, whole: Sealed, begin: int, count: int) -> None:
        if begin < 0 or begin + count > whole.count:
            raise CorruptionError(f"{whole.url}: it holds {whole.count} rows, so none from {begin} to {begin + count}")
        stride = whole.layout.stride
        self._whole, self._begin, self.count, self.layout = whole, begin, count, whole.layout
        self.view = whole.view[begin * stride : (begin + count) * stride]

    def verify(self, rows: Sequence[int]) -> None:
        self._whole.verify([row + self._begin for row in rows])

    def verify_array(self, rows: Array) -> None:
        self._whole.verify_array(rows + self._begin)


_known: dict[tuple[int | bytes, ...], bytearray] = {}


def _verified_blocks(found: os.stat_result, checks: bytes) -> bytearray:
    """One flag per block, shared by all maps of this process of the unchanged file: a stream maps it in every epoch."""
    if time.time_ns() - found.st_ctime_ns < _SETTLED_NS:
        return bytearray(len(checks) // 4)
    identity = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, checks
    if len(_known) >= _KNOWN:
        _known.clear()
    return _known.setdefault(identity, bytearray(len(checks) // 4))  # one step: a lock could be held over a fork


def _runs(blocks: list[int]) -> Iterable[tuple[int, int]]:
    """Ascending numbers as half-open runs of neighbours."""
    start = 0
    for i in range(1, len(blocks) + 1):
        if i == len(blocks) or blocks[i] != blocks[i - 1] + 1:
            yield blocks[start], blocks[i - 1] + 1
            start = i


class Written:
    """A file whose bytes the system has, while its sha256 and the sync to disk still run behind.

    The caller's buffer is its own again once ``checks`` were asked for; ``finish`` waits for the rest.
    """

    __slots__ = (
        "_checks", "_digest", "_error", "_extended", "_fd", "_path", "_pid", "_queues", "_threads", "_writer", "size",
    )  # fmt: skip

    def __init__(self, path: str, header: bytes, data: memoryview) -> None:
        self._path, self._pid, self._digest, self._extended = path, os.getpid(), "", False
        self._error: Exception | None = None
        self.size = len(header) + len(data)
        with file_errors("make the vectors", path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._queues: tuple[SimpleQueue[int | None], ...] = (SimpleQueue(), SimpleQueue())
        runs = zip((self._hash, self._sync), self._queues, strict=True)
        self._threads = [Thread(target=self._guard, args=run, daemon=True) for run in runs]
        for thread in self._threads:
            thread.start()
        self._checks = b""
        self._writer = Behind()
        self._writer.run(lambda: self._write(header, data))

    @property
    def checks(self) -> bytes:
        """The crc32c of each block, once all bytes are written.

        Raises:
            StoreError: the disk is full or refuses.
        """
        self._writer.wait()
        return self._checks

    @property
    def path(self) -> str:
        """The file's."""
        return self._path

    def _write(self, header: bytes, data: memoryview) -> None:
        first = data[: _PIECE - HEADER]
        checks = [_first_checks(header, first)]
        offset = self._put([header, first], 0)
        for start in range(_PIECE - HEADER, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            checks.append(kernels.crc32c_blocks(piece, BLOCK))
            offset = self._put([piece], offset)
        self._tell(None)
        self._checks = b"".join(checks)

    def extend(self, header: bytes, data: memoryview) -> None:
        """Adds rows and puts the header of the new count in place; the sha256 is then computed once, by ``finish``."""
        self._join()
        self._extended = True
        try:
            for start in range(0, len(data), _PIECE):
                write_at(self._fd, [data[start : start + _PIECE]], self.size + start, self._path)
            write_at(self._fd, [header], 0, self._path)
            first = kernels.crc32c(read_at(self._fd, 0, min(BLOCK, self.size + len(data)), self._path))
        except DeeplakeError as error:
            self._error = error  # half extended: the file may not be committed any more
            raise
        checks = _more_checks(self._checks, self.size, data)
        self._checks = first.to_bytes(4, "little") + checks[4:]
        self.size += len(data)

    def _put(self, buffers: list[bytes | memoryview], offset: int) -> int:
        end = write_at(self._fd, buffers, offset, self._path)
        self._tell(end)
        return end

    def _tell(self, end: int | None) -> None:
        for queue in self._queues:
            queue.put(end)

    def _guard(self, run: Callable[[SimpleQueue[int | None]], None], queue: SimpleQueue[int | None]) -> None:
        try:
            with file_errors("write", self._path):
                run(queue)
        except Exception as error:
            self._error = error  # raised again by finish(), in the thread that asked for the file

    def _hash(self, queue: SimpleQueue[int | None]) -> None:
        self._digest = self._hashed(cast(Iterable[int], iter(queue.get, None)))

    def _hashed(self, ends: Iterable[int]) -> str:
        """The sha256 of the file, read as far as each end in turn."""
        import hashlib

        digest, buffer, offset = hashlib.sha256(), memoryview(bytearray(BLOCK)), 0
        for end in ends:
            while offset < end:
                got = os.preadv(self._fd, [buffer[: end - offset]], offset)
                if not got:
                    raise CorruptionError(f"{self._path}: ends at byte {offset} while it is being written")
                digest.update(buffer[:got])
                offset += got
        return digest.hexdigest()

    def _sync(self, queue: SimpleQueue[int | None]) -> None:
        synced = 0
        while (end := queue.get()) is not None:
            if end - synced >= _SYNC:
                os.fdatasync(self._fd)
                synced = end
        os.fsync(self._fd)

    def finish(self) -> str:
        """The sha256 in hexadecimal, once file and folder are on the disk.

        Raises:
            StoreError: the disk refused.
        """
        self._join()
        with file_errors("sync", self._path):
            if self._extended:
                os.fsync(self._fd)
                self._digest = self._hashed([self.size])
            sync_folder(os.path.dirname(self._path))
        self._close()
        return self._digest

    def discard(self) -> None:
        """Removes the file, of which the catalog will know nothing; a forked child leaves its parent's alone.

        Never raises: a file that cannot be removed is one that nothing points at.
        """
        if os.getpid() != self._pid:
            return
        self._writer.forget()
        self._tell(None)
        with suppress(DeeplakeError):
            self._join()
        self._close()
        with suppress(OSError):
            os.unlink(self._path)

    def _join(self) -> None:
        self._writer.wait()
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _first_checks(header: bytes, data: memoryview) -> bytes:
    """Checksums of the first piece without joining header and rows."""
    head, rest = data[: BLOCK - HEADER], data[BLOCK - HEADER :]
    first = kernels.crc32c(head, kernels.crc32c(header)).to_bytes(4, "little")
    return first + kernels.crc32c_blocks(rest, BLOCK) if len(rest) else first


def _more_checks(checks: bytes, size: int, data: memoryview) -> bytes:
    """The checksums of a file of ``size`` bytes after ``data`` was added to it."""
    room = -size % BLOCK
    if not room:
        return checks + kernels.crc32c_blocks(data, BLOCK)
    last = kernels.crc32c(data[:room], int.from_bytes(checks[-4:], "little")).to_bytes(4, "little")
    return checks[:-4] + last + kernels.crc32c_blocks(data[room:], BLOCK)
