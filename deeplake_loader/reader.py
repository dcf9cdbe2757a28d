"""Reads and verifies the bytes of many blobs at once, by where they lie; the tars around them are never parsed.

One native call reads a whole batch into one buffer, and buffers are used again: fresh pages cost more than the
checksums do. What that call cannot serve (blobs that rest in the catalog, blobs verified by block, files that have
moved since their place was looked up, damage) goes the slower way, one by one, which also words the errors.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from deeplake_loader import kernels
from deeplake_loader.blobs import BlobReader
from deeplake_loader.catalog import Catalog
from deeplake_loader.errors import CorruptionError, DeeplakeError
from deeplake_loader.extents import Extents
from deeplake_loader.vectors import Vectors

Indices = npt.NDArray[np.int64]

_ALIGN = 64
_MAX_FILES = 128


@dataclass(frozen=True, slots=True)
class Items:
    """The encoded bytes of some rows.

    Fields: ``data``, per row its bytes, None for NULL and for a row that could not be read; ``errors``, why, by place.
    The bytes are views of a buffer that is used again after ``release()``.
    """

    data: list[memoryview | bytes | None]
    errors: dict[int, CorruptionError]
    _buffers: _Buffers
    _buffer: npt.NDArray[np.uint8] | None = field(repr=False)

    def release(self) -> None:
        """Gives the buffer back; call it once, when nothing looks at ``data`` any more."""
        self.data.clear()
        if self._buffer is not None:
            self._buffers.put(self._buffer)


class Reader:
    """Reads the blobs and vectors of one store in the process that made it; one thread reads, any may close.

    Args:
        root: folder of the store.
        threads: native threads of one batch.
        max_files: shards kept open.
    """

    def __init__(self, root: str, *, threads: int = 2, max_files: int = _MAX_FILES) -> None:
        self._catalog = Catalog.open(root, create=False, read_only=True)
        self._blobs, self._vectors = BlobReader(self._catalog), Vectors(self._catalog)
        self._threads = threads
        self._files = _Files(max_files)
        self._buffers = _Buffers()

    def resolve(self, addresses: Indices) -> Extents:
        """Where the blobs of these addresses lie now."""
        return self._blobs.resolve(addresses)

    def infos(self, addresses: Indices) -> list[str | None]:
        """The media facts of these addresses, as JSON."""
        return self._blobs.infos(addresses)

    def keys(self, addresses: Indices) -> list[str | None]:
        """The keys of these addresses' samples, to name them in messages."""
        return self._blobs.keys(addresses)

    def vectors(self, addresses: Indices) -> npt.NDArray[Any]:
        """The vectors of these addresses as rows of one fresh matrix."""
        return self._vectors.gather(addresses)

    def read(self, extents: Extents, rows: Indices) -> Items:
        """The verified bytes of some rows of ``extents``.

        A damaged or truncated item does not stop the others: its CorruptionError is in the result. A store that cannot
        be read at all raises StoreError.
        """
        file, offset, check = extents.file[rows], extents.offset[rows], extents.check[rows]
        length, count = extents.length[rows], len(rows)
        direct = np.flatnonzero((file >= 0) & (offset >= 0) & (check >= 0))
        places, total = _places(length[direct])
        buffer = self._buffers.take(total) if len(direct) else None
        data: list[memoryview | bytes | None] = [None] * count
        missed = (file >= 0).tolist()
        if buffer is not None:
            view = buffer.data
            status = self._fetch(
                extents.paths, file[direct], offset[direct], length[direct], check[direct], view, places
            )
            sizes = length[direct].tolist()
            for i, place, size, code in zip(direct.tolist(), places.tolist(), sizes, status, strict=True):
                if code == 0:
                    data[i], missed[i] = view[place : place + size], False
        items = Items(data, {}, self._buffers, buffer)
        self._read_singly(items, [i for i in range(count) if missed[i]], extents.address[rows])
        return items

    def _read_singly(self, items: Items, missed: Iterable[int], addresses: Indices) -> None:
        for i in missed:
            try:
                items.data[i] = self._blobs.read(int(addresses[i]))
            except CorruptionError as error:
                items.errors[i] = error
            except DeeplakeError:
                items.release()
                raise

    def _fetch(
        self,
        paths: tuple[str, ...],
        file: npt.NDArray[np.int32],
        offset: Indices,
        length: Indices,
        check: Indices,
        out: memoryview,
        places: Indices,
    ) -> list[int]:
        """The status of every item; files are opened in groups that fit the limit."""
        status = [0] * len(file)
        needed = np.unique(file)
        for start in range(0, len(needed), self._files.limit):
            group = needed[start : start + self._files.limit]
            chosen = np.flatnonzero((file >= group[0]) & (file <= group[-1]))
            fds = np.array([self._files.open(paths[i]) for i in group.tolist()], np.int32)
            chosen_fds = fds[np.searchsorted(group, file[chosen])]
            codes = kernels.read_batch(
                chosen_fds.data,
                offset[chosen].data,
                length[chosen].data,
                check[chosen].data,
                out,
                places[chosen].data,
                self._threads,
            )
            for i, code in zip(chosen.tolist(), codes, strict=True):
                status[i] = code
        return status

    def close(self) -> None:
        """Closes files and catalog."""
        self._files.close()
        self._blobs.close_files()
        self._catalog.close()


def _places(lengths: Indices) -> tuple[Indices, int]:
    """Aligned offsets of items in one buffer, and its size."""
    sizes = (lengths + (_ALIGN - 1)) & ~(_ALIGN - 1)
    ends = np.cumsum(sizes)
    return ends - sizes, int(ends[-1]) if len(ends) else 0


class _Files:
    """Open shards, the least recently used closed first. -1 stands for one that cannot be opened."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._open: OrderedDict[str, int] = OrderedDict()

    def open(self, path: str) -> int:
        fd = self._open.pop(path, None)
        if fd is None:
            while len(self._open) >= self.limit:
                os.close(self._open.popitem(last=False)[1])
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:  # its items are then read singly, which finds out whether they moved or are lost
                return -1
        self._open[path] = fd
        return fd

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


class _Buffers:
    """Read buffers to be used again, never more than were in use at once; any thread may give one back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spare: list[npt.NDArray[np.uint8]] = []

    def take(self, size: int) -> npt.NDArray[np.uint8]:
        with self._lock:
            for i, buffer in enumerate(self._spare):  # smallest first
                if len(buffer) >= size:
                    return self._spare.pop(i)
            if self._spare:
                self._spare.pop(0)
        return np.empty(size + size // 4, np.uint8)

    def put(self, buffer: npt.NDArray[np.uint8]) -> None:
        with self._lock:
            self._spare.append(buffer)
            self._spare.sort(key=len)
