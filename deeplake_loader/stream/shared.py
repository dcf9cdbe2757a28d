"""Objects whose arrays lie in a memory-mapped file without a name, which every process of a training run shares.

A worker that is spawned gets the file's descriptor and a few kilobytes that say what lies where; a forked one has the
mapping already. Nobody has to remove the file: it is gone when the last process lets go of it.
"""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
import weakref
from collections.abc import Sequence
from multiprocessing import reduction
from typing import Any

from deeplake_loader import store

_ALIGN = 64
_LARGE = 16 << 20
_PATIENCE = 1 << 30  # bytes per write(2), which takes no more than 2 GB


def anonymous_file(name: str) -> int:
    """A descriptor of an empty file in memory, or where the system has none such, in the folder for temporary files."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(f"deeplake-{name}", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Mapped:
    """Arrays in an anonymous file, and the object they belong to without them.

    Pickles only while a process is being spawned, when the file's descriptor goes along.
    """

    def __init__(self, fd: int, head: bytes, places: list[tuple[int, int]]) -> None:
        self._fd, self._head, self._places = fd, head, places
        weakref.finalize(self, os.close, fd)

    @classmethod
    def write(cls, value: object) -> Mapped:
        """Copies the value's arrays to a file in the folder for temporary files.

        Raises:
            StoreError: that folder has no room for them.
        """
        return cls._written(*_taken_apart(value))

    @classmethod
    def write_large(cls, value: object) -> Mapped | None:
        """`write` for a value whose arrays hold over 16 MB; None for one whose do not."""
        head, views = _taken_apart(value)
        return cls._written(head, views) if sum(map(len, views)) > _LARGE else None

    @classmethod
    def _written(cls, head: bytes, views: Sequence[memoryview]) -> Mapped:
        places: list[tuple[int, int]] = []
        end = 0
        with store.file_errors("write a stream's rows to", tempfile.gettempdir()), tempfile.TemporaryFile() as file:
            for view in views:
                start = -(-end // _ALIGN) * _ALIGN
                _write_all(file.fileno(), view, start)
                places.append((start, len(view)))
                end = start + len(view)
            return cls(os.dup(file.fileno()), head, places)

    def read(self) -> Any:
        """The value, its arrays read-only views of the file."""
        size = max((start + length for start, length in self._places if length), default=0)
        view = memoryview(mmap.mmap(self._fd, size, access=mmap.ACCESS_READ)) if size else memoryview(b"")
        return pickle.loads(self._head, buffers=[view[start : start + length] for start, length in self._places])

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self._fd), self._head, self._places)


def _taken_apart(value: object) -> tuple[bytes, list[memoryview]]:
    """The value without its arrays, and their bytes."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return head, [buffer.raw() for buffer in buffers]


def _received(handle: Any, head: bytes, places: list[tuple[int, int]]) -> Mapped:
    return Mapped(handle.detach(), head, places)


def _write_all(fd: int, view: memoryview, start: int) -> None:
    while len(view):
        written = os.pwrite(fd, view[:_PATIENCE], start)
        view, start = view[written:], start + written
