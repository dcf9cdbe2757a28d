"""Files of a store opened for reading blobs one at a time: local ones by pread, remote ones through the cache.

What is remote is told by its place: a path is local, a url is not. The cache is imported with the first url.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from deeplake_loader import store

if TYPE_CHECKING:
    from deeplake_loader.storage.mirror import Mirror

MAX_OPEN_FILES = 64


class Opened(Protocol):
    """A file that bytes are read from."""

    def read(self, offset: int, length: int, where: str) -> bytes:
        """Exactly these bytes; ``where`` names the item in errors."""

    def reread(self, offset: int, length: int) -> bytes | None:
        """The bytes from where the copy comes from, after what was read was wrong; None where this is no copy."""


class LocalFile:
    """A file descriptor that closes when the last reader lets go of it."""

    __slots__ = ("fd",)

    def __init__(self, path: str) -> None:
        self.fd = -1
        with store.file_errors("open", path):
            self.fd = os.open(path, os.O_RDONLY)

    def read(self, offset: int, length: int, where: str) -> bytes:
        return store.read_at(self.fd, offset, length, where)

    def reread(self, offset: int, length: int) -> bytes | None:  # noqa: ARG002
        return None

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class RemoteFile:
    """An object, read through the cache."""

    __slots__ = ("mirror", "name")

    def __init__(self, url: str, root: store.Root) -> None:
        self.mirror, self.name = find_mirror(url, root)

    def read(self, offset: int, length: int, where: str) -> bytes:  # noqa: ARG002
        return self.mirror.read(self.name, offset, offset + length)

    def reread(self, offset: int, length: int) -> bytes | None:
        return self.mirror.read(self.name, offset, offset + length, fresh=True)


class OpenFiles:
    """The most recently read files, kept open; threads may share them.

    ``place`` gives a file's path or full url for its url in the catalog.
    """

    def __init__(self, root: store.Root, place: Callable[[str], str]) -> None:
        self._root, self._place = root, place
        self._lock = threading.Lock()
        self._files: OrderedDict[str, Opened] = OrderedDict()

    def get(self, url: str) -> Opened:
        """The file, opened unless it is."""
        with self._lock:
            file = self._files.get(url)
            if file is None:
                file = self._files[url] = open_file(self._place(url), self._root)
                if len(self._files) > MAX_OPEN_FILES:
                    self._files.popitem(last=False)
            else:
                self._files.move_to_end(url)
            return file


def open_file(place: str, root: store.Root) -> Opened:
    """The file at a path or url."""
    return RemoteFile(place, root) if "://" in place else LocalFile(place)


def find_mirror(url: str, root: store.Root) -> tuple[Mirror, str]:
    """The mirror through which an object is read, and its name there."""
    from deeplake_loader.storage.mirror import Mirror, mirror_of

    return mirror_of(url, root.storage if isinstance(root.storage, Mirror) else None)
