"""Reads and verifies the bytes of many blobs at once, by where they lie; the tars around them are never parsed.

One native call reads a whole batch, of all its columns, into one buffer, and buffers are used again: fresh pages cost
more than the checksums do. A blob over 4 MB is read as its blocks of 1 MB, which have a checksum each. Blobs that rest
in the catalog are asked for together. What is left (files that have moved since their place was looked up, damage) is
read again one by one, which also words the errors.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from deeplake_loader import kernels
from deeplake_loader.blobs import CHECK_BLOCK, BlobReader
from deeplake_loader.catalog import Location
from deeplake_loader.codecs.sparse import SparseFile
from deeplake_loader.errors import CorruptionError, DeeplakeError, NotFoundError, StoreError
from deeplake_loader.extents import Extents
from deeplake_loader.fetching import Fetching, RemoteFile, Wanted
from deeplake_loader.sqlite_catalog import FileLocation
from deeplake_loader.storage.traffic import Traffic
from deeplake_loader.store import Root
from deeplake_loader.vectors import Vectors

Indices = npt.NDArray[np.int64]

DAMAGE = (CorruptionError, NotFoundError, StoreError)
"""What makes one item bad and leaves the others good."""

_ALIGN = 64
_MAX_FILES = 128


@dataclass(frozen=True, slots=True)
class Items:
    """The encoded bytes of some rows, in one buffer.

    Fields: ``starts`` and ``sizes``, int64, where each row's bytes lie in ``data``; a size is -1 for NULL and for a row
    that could not be read; ``errors``, why, by place; ``retries``, rows that had to be read a second time. The buffer
    is used again once nobody holds ``data`` or a view of it.
    """

    data: memoryview
    starts: Indices
    sizes: Indices
    errors: dict[int, DeeplakeError] = field(default_factory=dict)
    retries: int = 0

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, place: int) -> memoryview | None:
        """That row's bytes, read-only."""
        start, size = int(self.starts[place]), int(self.sizes[place])
        return None if size < 0 else self.data[start : start + size]

    @property
    def nbytes(self) -> int:
        """Bytes that were read and verified."""
        return int(self.sizes[self.sizes > 0].sum())


def location_of(where: str | Location) -> Location:
    """A store's location; a folder's path is one of a store with a catalog of its own."""
    return FileLocation(Root(os.path.abspath(where))) if isinstance(where, str) else where


class Reader:
    """Reads the blobs and vectors of one store in the process that made it; its threads may share it, and read batches
    at the same time.

    Args:
        where: the store's location, or its folder.
        threads: native threads of one batch.
        max_files: shards kept open, beside those that a batch under way holds.
        max_spare: buffers kept for the next batches.
    """

    def __init__(
        self, where: str | Location, *, threads: int = 2, max_files: int = _MAX_FILES, max_spare: int = 4
    ) -> None:
        self._catalog = location_of(where).open(read_only=True)
        self._blobs, self._vectors = BlobReader(self._catalog), Vectors(self._catalog)
        self._threads = threads
        self._lock = threading.Lock()  # of files and buffers; never held while bytes are read
        self._vector_lock = threading.Lock()
        self._fetching = Fetching(self._catalog.root)
        self._files = _Files(max_files, self._catalog.root)
        self._buffers = _Buffers(max_spare)

    def resolve(self, addresses: Indices) -> Extents:
        """Where the blobs of these addresses lie now."""
        return self._blobs.resolve(addresses)

    @property
    def is_remote(self) -> bool:
        """Whether the store, or a file that was read of it, lies on a storage."""
        return self._catalog.root.storage is not None or self._files.remote

    @property
    def traffic(self) -> Traffic:
        """What this process asked of the storages that were read."""
        return self._fetching.traffic

    def expect(self, extents: Extents) -> bool:
        """Takes note that all of these will be read; whether any of them is remote, so that `prefetch` may help."""
        remote = any("://" in path for path in extents.paths)
        if remote:
            self._fetching.expect(extents)
            self._files.numbers(extents.paths)
        return remote

    def prefetch(self, wanted: Sequence[tuple[Extents, Indices]]) -> None:
        """Brings what is remote of these rows into the cache, where there is room."""
        found = []
        for extents, rows in wanted:
            file = extents.file[rows]
            for number in np.unique(file[(file >= 0) & (extents.offset[rows] >= 0)]).tolist():
                if "://" in extents.paths[number]:
                    chosen = rows[(file == number) & (extents.check[rows] >= 0) & (extents.offset[rows] >= 0)]
                    starts = extents.offset[chosen]
                    remote = RemoteFile(extents.paths[number], self._catalog.root)
                    found.append(Wanted(remote, chosen, starts, starts + extents.length[chosen]))
        self._fetching.make_present([one for one in found if len(one.places)], _ignored, keep_only=True)

    def infos(self, addresses: Indices) -> list[str | None]:
        """The media facts of these addresses, as JSON."""
        return self._blobs.infos(addresses)

    def keys(self, addresses: Indices) -> list[str | None]:
        """The keys of these addresses' samples, to name them in messages."""
        return self._blobs.keys(addresses)

    def open_parts(self, address: int) -> SparseFile | None:
        """A blob over 4 MB as a file of which parts can be read; None for any other."""
        return self._blobs.open_parts(address)

    def vectors(self, addresses: Indices) -> npt.NDArray[Any]:
        """The vectors of these addresses as rows of one fresh matrix."""
        with self._vector_lock:
            return self._vectors.gather(addresses)

    def read(self, wanted: Sequence[tuple[Extents, Indices]]) -> list[Items]:
        """The verified bytes of some rows of each of these extents, read together.

        An item that is damaged, truncated or whose file is gone does not stop the others: its error is in the result.
        """
        ends = np.cumsum([len(rows) for _, rows in wanted]).tolist()
        with self._lock:
            batch = self._lay_out(wanted)
        slow = self._fetch(batch)
        errors = self._read_singly(batch, slow)
        return [batch.items(first, last, slow, errors) for first, last in pairwise([0, *ends])]

    def read_one(self, extents: Extents, row: int) -> bytes | None:
        """One row's verified bytes, None for NULL; for a single one several times as fast as ``read``.

        Raises:
            CorruptionError, NotFoundError, StoreError: it cannot be read.
        """
        file, check, length = int(extents.file[row]), int(extents.check[row]), int(extents.length[row])
        offset = int(extents.offset[row])
        if file < 0:
            return None
        if offset >= 0 and check >= 0:
            with self._lock:
                held = self._files.open(int(self._files.numbers(extents.paths)[file]))
            data = os.pread(held.fd, length, offset) if held.fd >= 0 else b""
            if len(data) == length and kernels.crc32c(data) == check:
                if isinstance(held, RemoteFile):
                    held.mirror.counters.add(hits=length)
                return data
        return self._blobs.read(int(extents.address[row]))

    def vector(self, address: int) -> npt.NDArray[Any]:
        """The vector of one address."""
        with self._vector_lock:
            found: npt.NDArray[Any] = self._vectors.array(address)
        return found

    def _lay_out(self, wanted: Sequence[tuple[Extents, Indices]]) -> _Batch:
        """The rows of all these extents behind one another, each with its place in a buffer."""
        chosen = [
            (self._files.numbers(e.paths)[e.file[r]], e.offset[r], e.length[r], e.check[r], e.address[r])
            for e, r in wanted
        ]
        columns = chosen[0] if len(chosen) == 1 else tuple(map(np.concatenate, zip(*chosen, strict=True)))
        file, offset, length, check, address = columns
        length[address == 0] = 0
        place, total = _places(length)
        return _Batch(file, offset, length, check, address, place, self._buffers.take(total))

    def _fetch(self, batch: _Batch) -> list[int]:
        """Reads what native calls can; the places of what they could not."""
        direct = (batch.offset >= 0) & (batch.check >= 0)
        if direct.all():
            return np.flatnonzero(self._call(batch.pieces(), batch)).tolist()
        failed = batch.address != 0
        whole = np.flatnonzero(direct)
        failed[whole] = self._call(batch.pieces(whole), batch) != 0
        blocked = np.flatnonzero((batch.offset >= 0) & (batch.check < 0) & (batch.address != 0))
        if len(blocked):
            failed[blocked] = self._read_blocks(batch, blocked)
        resting = np.flatnonzero((batch.offset < 0) & (batch.address != 0))
        if len(resting):
            failed[resting] = self._read_resting(batch, resting)
        return np.flatnonzero(failed).tolist()

    def _read_blocks(self, batch: _Batch, chosen: Indices) -> npt.NDArray[np.bool_]:
        """Reads blobs over 4 MB as blocks of 1 MB; which of them failed."""
        checks = [np.frombuffer(c, "<u4").astype(np.int64) for c in self._blobs.checks(batch.address[chosen])]
        counts = np.array([len(c) for c in checks], np.int64)
        owner = np.repeat(chosen, counts)
        start = (np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)) * CHECK_BLOCK
        length = np.minimum(batch.length[owner] - start, CHECK_BLOCK)
        pieces = _Pieces(
            batch.file[owner], batch.offset[owner] + start, length, np.concatenate(checks), batch.place[owner] + start
        )
        bad = owner[self._call(pieces, batch) != 0]
        failed: npt.NDArray[np.bool_] = np.isin(chosen, bad) | (counts != -(-batch.length[chosen] // CHECK_BLOCK))
        return failed

    def _read_resting(self, batch: _Batch, chosen: Indices) -> npt.NDArray[np.bool_]:
        """Reads blobs that rest in the catalog; which of them no longer do, or are damaged."""
        failed = np.ones(len(chosen), np.bool_)
        held = self._blobs.resting(batch.address[chosen])
        for k, (i, found) in enumerate(zip(chosen.tolist(), held, strict=True)):
            if found is not None and len(found) == batch.length[i]:
                batch.put(i, found)
                failed[k] = kernels.crc32c(found) != batch.check[i]
        return failed

    def _read_singly(self, batch: _Batch, slow: Sequence[int]) -> dict[int, DeeplakeError]:
        """Reads each of these again on its own way; the errors of those that are bad."""
        errors: dict[int, DeeplakeError] = {}
        for i in slow:
            try:
                batch.put(i, self._blobs.read(int(batch.address[i])))
            except DAMAGE as error:
                errors[i] = error
        return errors

    def _call(self, pieces: _Pieces, batch: _Batch) -> npt.NDArray[np.int32]:
        """The status of every piece; files are opened in groups that fit the limit."""
        needed = np.unique(pieces.file)
        if len(needed) <= self._files.limit:
            return self._call_group(pieces, needed, batch)
        status = np.empty(len(pieces.file), np.int32)
        for start in range(0, len(needed), self._files.limit):
            group = needed[start : start + self._files.limit]
            chosen = np.flatnonzero((pieces.file >= group[0]) & (pieces.file <= group[-1]))
            status[chosen] = self._call_group(pieces.at(chosen), group, batch)
        return status

    def _call_group(self, pieces: _Pieces, needed: npt.NDArray[np.int32], batch: _Batch) -> npt.NDArray[np.int32]:
        with self._lock:
            held = [self._files.open(number) for number in needed.tolist()]  # which keeps them open for the call
        owner = np.searchsorted(needed, pieces.file)
        passed: list[tuple[int, memoryview]] = []
        if self._files.remote:
            wanted = [
                Wanted(file, chosen, pieces.offset[chosen], pieces.offset[chosen] + pieces.length[chosen])
                for number, file in enumerate(held)
                if isinstance(file, RemoteFile) and len(chosen := np.flatnonzero(owner == number))
            ]
            self._fetching.make_present(wanted, lambda i, body: passed.append((i, body)))
        fds = np.array([file.fd for file in held], np.int32)
        found = kernels.read_batch(
            fds[owner].data,
            pieces.offset.data,
            pieces.length.data,
            pieces.check.data,
            batch.data,
            pieces.place.data,
            self._threads,
        )
        status = np.frombuffer(found, np.int32)
        if passed:
            status = status.copy()
            for i, body in passed:  # over what was read in its place from a copy that has it not
                start = int(pieces.place[i])
                batch.data[start : start + len(body)] = body
                status[i] = kernels.crc32c(body) != pieces.check[i]
        return status

    def close(self) -> None:
        """Closes files and catalog."""
        self._files.close()
        self._blobs.close_files()
        self._catalog.close()


@dataclass(frozen=True, slots=True)
class _Pieces:
    """What one native call reads: stretches of files, each with its checksum and its place in the buffer."""

    file: npt.NDArray[np.int32]
    offset: Indices
    length: Indices
    check: Indices
    place: Indices

    def at(self, chosen: Indices) -> _Pieces:
        return _Pieces(
            self.file[chosen], self.offset[chosen], self.length[chosen], self.check[chosen], self.place[chosen]
        )


@dataclass(frozen=True, slots=True)
class _Batch:
    """The rows of one read, and the buffer that their bytes go into."""

    file: npt.NDArray[np.int32]
    offset: Indices
    length: Indices
    check: Indices
    address: Indices
    place: Indices
    data: memoryview

    def pieces(self, chosen: Indices | None = None) -> _Pieces:
        pieces = _Pieces(self.file, self.offset, self.length, self.check, self.place)
        return pieces if chosen is None else pieces.at(chosen)

    def put(self, i: int, found: bytes) -> None:
        """That row's bytes, from elsewhere."""
        start = int(self.place[i])
        self.data[start : start + len(found)] = found

    def items(self, first: int, last: int, slow: Sequence[int], errors: dict[int, DeeplakeError]) -> Items:
        """The rows from ``first`` to ``last``."""
        sizes = np.where(self.address[first:last] == 0, -1, self.length[first:last])
        own = {i - first: error for i, error in errors.items() if first <= i < last}
        sizes[list(own)] = -1
        retries = sum(first <= i < last for i in slow)
        return Items(self.data.toreadonly(), self.place[first:last], sizes, own, retries)


def _places(lengths: Indices) -> tuple[Indices, int]:
    """Aligned offsets of items in one buffer, and its size."""
    sizes = (lengths + (_ALIGN - 1)) & ~(_ALIGN - 1)
    ends = np.cumsum(sizes)
    return ends - sizes, int(ends[-1]) if len(ends) else 0


class _File:
    """A file that closes when nobody holds it any more; ``fd`` is -1 for one that cannot be opened."""

    __slots__ = ("fd",)

    def __init__(self, path: str) -> None:
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # its items are then read singly, which finds out whether they moved or are lost
            self.fd = -1

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # bound: at exit the module may be empty
        if self.fd >= 0:
            close(self.fd)


class _Files:
    """Shards by number, the least recently used let go of first; ``remote``: whether any of them is."""

    def __init__(self, limit: int, root: Root) -> None:
        self.limit, self.remote, self._root = limit, False, root
        self._open: OrderedDict[int, _File | RemoteFile] = OrderedDict()
        self._paths: list[str] = []
        self._numbers: dict[str, int] = {}
        self._known: dict[int, tuple[tuple[str, ...], npt.NDArray[np.int32]]] = {}  # by id: hashing long tuples costs

    def numbers(self, paths: tuple[str, ...]) -> npt.NDArray[np.int32]:
        """The number of each path, the same for the same path wherever it is listed."""
        known = self._known.get(id(paths))
        if known is not None and known[0] is paths:
            return known[1]
        for path in paths:
            if path not in self._numbers:
                self._numbers[path] = len(self._paths)
                self._paths.append(path)
                self.remote = self.remote or "://" in path
        numbers = np.array([*(self._numbers[p] for p in paths), -1], np.int32)  # -1, which NULL has, is last
        self._known[id(paths)] = paths, numbers
        return numbers

    def open(self, number: int) -> _File | RemoteFile:
        file = self._open.get(number)
        if file is not None:
            self._open.move_to_end(number)
            if self.remote and isinstance(file, RemoteFile):
                file.open()
            return file
        while len(self._open) >= self.limit:
            self._open.popitem(last=False)
        path = self._paths[number]
        if "://" in path:
            remote = self._open[number] = RemoteFile(path, self._root)
            remote.open()
            return remote
        file = _File(path)
        if file.fd >= 0:
            self._open[number] = file
        return file

    def close(self) -> None:
        self._open.clear()


def _ignored(place: int, body: memoryview) -> None:
    """Prefetching gives nothing to anybody."""


class _Lease(np.ndarray[Any, np.dtype[np.uint8]]):
    """A buffer as handed out: plain arrays cannot be told apart from their views, so each loan is an object."""


class _Buffers:
    """Read buffers, used again when the last view of a loan is gone, on whichever thread that happens.

    What is handed out is a memoryview: numpy would let a view of a view outlive the loan between them.
    """

    def __init__(self, most: int) -> None:
        self._spare: deque[npt.NDArray[np.uint8]] = deque(maxlen=most)  # appending and popping need no lock
        self._lent: dict[int, weakref.ref[_Lease]] = {}

    def take(self, size: int) -> memoryview:
        """A writable buffer of that size; one caller at a time."""
        try:
            buffer = self._spare.pop()
        except IndexError:
            buffer = np.empty(0, np.uint8)
        if len(buffer) < size:
            buffer = np.empty(size + size // 4, np.uint8)
        lease = buffer[:size].view(_Lease)
        spare, lent, number = self._spare, self._lent, id(lease)

        def back(_: object) -> None:
            del lent[number]
            spare.append(buffer)

        lent[number] = weakref.ref(lease, back)
        return lease.data
