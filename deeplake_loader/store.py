"""The folder that a store lies in: paths that cannot leave it, durable files and folders, locks, exact reads.

Every byte of a store is read and written through here, so what a crash or a hostile catalog row can do is decided here:
a path is refused unless it stays under the root, a new file counts only after its folder was synced, and an error of
the operating system becomes a StoreError that names the file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from deeplake_loader.errors import CorruptionError, InputError, NotFoundError, StoreError

CATALOG = "catalog.sqlite"
SHARDS = "shards"
VECTORS = "vectors"
POINTER = "published.json"

_IOV_MAX = 1024  # Linux's limit of buffers in one pwritev
_F_FULLFSYNC = 51  # macOS; Python names it there only
_SAFE = re.compile(r"[A-Za-z0-9_-]+\Z")
_SAFE_PATH = re.compile(r"[A-Za-z0-9_./-]+\Z")


class Storage(Protocol):
    """Where the bytes of a store lie when they lie elsewhere: see `storage.mirror.Mirror`."""

    @property
    def url(self) -> str:
        """Without credentials, without a slash at its end."""

    @property
    def folder(self) -> str:
        """The local folder of copies, and of files on their way there."""

    def upload(self, name: str, path: str) -> None:
        """Makes an object of a local file; it is there whole or not at all."""

    def keep(self, name: str, size: int) -> None:
        """Makes the uploaded file below ``folder`` a copy."""

    def learn(self, name: str, size: int) -> None:
        """Tells how long an object is."""


@dataclass(frozen=True, slots=True)
class Root:
    """Where one store lies: the absolute ``folder`` of its catalog, and its bytes there, below the folder ``data``, or
    on a ``storage`` of which the folder has copies. ``foreign``: the catalog is somebody else's, published: no file of
    this machine that it names is opened, but those below ``data``.

    >>> Root("/tmp/store").path("shards/cats/one.tar")
    '/tmp/store/shards/cats/one.tar'
    """

    folder: str
    storage: Storage | None = field(default=None, compare=False, repr=False)
    data: str | None = None
    foreign: bool = False

    def __post_init__(self) -> None:
        if not os.path.isabs(self.folder):
            raise InputError(f"a store's folder must be an absolute path, got {self.folder!r}")

    @property
    def catalog(self) -> str:
        return os.path.join(self.folder, CATALOG)

    @property
    def base(self) -> str:
        """The folder below which bytes are written, and read from."""
        return self.storage.folder if self.storage is not None else self.data or self.folder

    def place(self, url: str) -> str:
        """Where the bytes of a url are read: its path, or its full url where it lies on a storage.

        Raises:
            StoreError: as `path`.
        """
        path = self.path(url)
        return path if self.storage is None else f"{self.storage.url}/{object_of(url)}"

    def path(self, url: str) -> str:
        """The absolute path of a url relative to the root, on a storage of its local copy; refused when it would leave
        the root, also by a link.

        Raises:
            StoreError: an absolute url, one with ``..``, a scheme or a NUL, or one that a link leads outside.
        """
        parts = object_of(url).split("/")
        if not url or "\0" in url or "\\" in url or ":" in parts[0] or any(p in ("", ".", "..") for p in parts):
            raise StoreError(f"the catalog names the file {url!r}, no plain path under {self.base}; refused")
        path = os.path.join(self.base, *parts)
        real, root = os.path.realpath(path), _real(self.base)
        if os.path.commonpath((real, root)) != root:
            raise StoreError(f"the file {url!r} leads outside the store ({real}); only files under {root} are read")
        return path

    def make_folder(self, url: str) -> str:
        """The absolute path of a folder under the root, made durable with every parent it needed."""
        path = self.path(url)
        with file_errors("make the folder", path):
            make_folder(path)
        return path


@contextmanager
def file_errors(doing: str, path: str) -> Iterator[None]:
    """Turns an OSError of the block into a StoreError that says what was done to which file."""
    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError as error:
        raise NotFoundError(f"cannot {doing} {path}: it does not exist") from error
    except OSError as error:
        raise StoreError(f"cannot {doing} {path}: {error.strerror or error}{_remedy(error)}") from error


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "; nothing of this statement was written: free space and run it again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "; check the permissions of the store's folder, or of the cache's (cache_dir=) where the store is remote"
    return ""


def make_folder(path: str) -> None:
    """Makes a folder and its parents; each new entry is synced in the folder that holds it."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_folder(parent)
    try:
        os.mkdir(path)
    except FileExistsError:
        return
    sync_folder(parent)


def sync_folder(path: str) -> None:
    """Makes the entries of a folder durable: a new file exists after a power loss only once its folder was synced."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def unique_name() -> str:
    """A file name that no other writer makes, sorting by the time of its making; only ``[0-9a-f-]``."""
    return f"{time.time_ns() // 1_000_000:012x}-{os.urandom(5).hex()}"


@lru_cache
def _real(folder: str) -> str:
    """The folder without links; asked for with every file of a store that is opened."""
    return os.path.realpath(folder)


def object_of(url: str) -> str:
    """The file that a url of the catalog names: after `optimize` several rows may name one, each with where its part
    begins behind a ``#``: the byte in a shard, the row in a vector file.

    >>> object_of("shards/t/a.tar#1024"), object_of("shards/t/a.tar")
    ('shards/t/a.tar', 'shards/t/a.tar')
    """
    return url.partition("#")[0]


def encode_name(name: str) -> str:
    """A table's or column's name as part of a file or member name: percent-encoded unless plain.

    >>> encode_name("clip_embedding"), encode_name("a.b/c")
    ('clip_embedding', 'a%2Eb%2Fc')
    """
    if _SAFE.match(name):
        return name
    from urllib.parse import quote

    return quote(name, safe="").replace(".", "%2E").replace("~", "%7E")


def decode_name(name: str) -> str:
    """The name that ``encode_name`` was given."""
    from urllib.parse import unquote

    return unquote(name)


def encode_path(path: str) -> str:
    """A file's path as part of a URI.

    >>> encode_path("/data/my store?/catalog.sqlite")
    '/data/my%20store%3F/catalog.sqlite'
    """
    if _SAFE_PATH.match(path):  # nearly every one: urllib would cost a cold start 3 ms
        return path
    from urllib.parse import quote

    return quote(path)


def try_lock(fd: int) -> bool:
    """Whether this open file now holds the exclusive lock; the kernel lets go of it when its process dies."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sync_data(fd: int) -> None:
    """Makes a file's bytes and length durable."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:  # macOS, where fsync stops at the drive's own cache
        fcntl.fcntl(fd, _F_FULLFSYNC)


def write_at(fd: int, buffers: Sequence[bytes | memoryview], offset: int, path: str) -> int:
    """The end offset after all buffers were written from ``offset`` on, as few calls as the system allows."""
    with file_errors("write", path):
        for start in range(0, len(buffers), _IOV_MAX):
            group = buffers[start : start + _IOV_MAX]
            end = offset + sum(map(len, group))
            written = os.pwritev(fd, group, offset)
            if offset + written < end:
                _write_rest(fd, group, written, offset)
            offset = end
    return offset


def _write_rest(fd: int, buffers: Sequence[bytes | memoryview], written: int, offset: int) -> None:
    """Goes on after a short write: every system limits one call to 2 GiB, a full disk may stop one earlier."""
    start = 0
    for buffer in buffers:
        stop = start + len(buffer)
        while written < stop:
            step = os.pwrite(fd, memoryview(buffer)[max(0, written - start) :], offset + written)
            if step == 0:
                raise OSError(errno.EIO, "the system wrote nothing")
            written += step
        start = stop


def read_at(fd: int, offset: int, length: int, where: str) -> bytes:
    """Exactly ``length`` bytes from ``offset``; ``where`` names the item in errors.

    Raises:
        CorruptionError: the file ends earlier.
        StoreError: the system cannot read it.
    """
    with file_errors("read", where):
        data = os.pread(fd, length, offset)
        if len(data) < length:  # reads over 2 GiB come back in parts; at the end of the file they come back empty
            parts = [data]
            while data and sum(map(len, parts)) < length:
                got = sum(map(len, parts))
                data = os.pread(fd, length - got, offset + got)
                parts.append(data)
            data = b"".join(parts)
    if len(data) < length:
        raise CorruptionError(f"{where}: cut, it ends after {len(data)} of the {length} bytes at offset {offset}")
    return data
