"""Objects by url: read whole or in ranges, written once, listed, deleted; a local folder and any fsspec store alike.

    open_folder("s3://bucket/prefix") -> Remote, open_folder("/data") -> Local; both are Objects

Names are paths below the folder's url, with slashes. Nothing is overwritten: a name is written by one writer, once.
Every error is one of ours and names the object by its url, which never holds credentials.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from deeplake_loader import store
from deeplake_loader.errors import CorruptionError, InputError, NotFoundError, StoreError
from deeplake_loader.storage.traffic import Counters

Span = tuple[int, int]
"""First byte and the one behind the last."""

SIGNED = ("http", "https")
"""Schemes whose query part may be a signature, which no message may show."""


BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
"""Schemes of object stores whose urls begin with a bucket's or container's name; they refuse to write over an object
when asked to."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One object of a listing: its name below the folder, bytes, and when it was written (seconds since 1970, 0 where
    the storage does not say)."""

    name: str
    size: int
    modified: float


class Objects(Protocol):
    """The objects below one url; threads may share it, a forked child too.

    ``url`` shows no credentials; ``counters`` count the requests of this process.
    """

    @property
    def url(self) -> str: ...
    @property
    def counters(self) -> Counters: ...

    def size(self, name: str) -> int:
        """Bytes of an object. Raises NotFoundError, StoreError."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Exactly the bytes from ``start`` to ``stop``, to the end by default.

        Raises:
            NotFoundError: there is no such object. CorruptionError: it ends before ``stop``.
            StoreError: the storage could not be reached, or refused.
        """

    def read_many(self, name: str, spans: Sequence[Span]) -> list[bytes]:
        """Several ranges of one object, fetched at the same time."""

    def write(self, name: str, data: bytes | memoryview, *, exclusive: bool = True) -> None:
        """Makes an object of these bytes; it is there whole or not at all.

        Raises:
            StoreError: with ``exclusive``, another writer made it with other bytes.
        """

    def read_tagged(self, name: str, most: int) -> tuple[bytes, str | None]:
        """(the bytes of a small object, the tag of what they are), for `replace`.

        Raises:
            NotFoundError: there is no such object. CorruptionError: it is longer than ``most``.
        """

    def replace(self, name: str, data: bytes, tag: str | None) -> bool:
        """Puts these bytes in place of the object that has this tag, None: that is not there; False if it is another
        one by now. A storage without conditional writes only looks before it writes."""

    def upload(self, name: str, path: str) -> None:
        """Makes an object of a local file, in parts where it is large."""

    def list(self, prefix: str = "") -> Iterator[Stored]:
        """The objects whose names begin with ``prefix``, a folder's name ending in a slash; sorted by name."""

    def delete(self, names: Iterable[str]) -> None:
        """Removes objects; one that is gone already is no error."""

    def abort_uploads(self, older_than_s: float) -> int:
        """How many unfinished uploads, begun that long ago, were given up; their parts cost space until then."""


def open_folder(url: str, *, options: Mapping[str, Any] | None = None) -> Objects:
    """The objects below a url or a local folder's path.

    Args:
        url: ``s3://bucket/prefix``, ``gs://``, ``az://``, ``memory://``, ``https://`` or any other of fsspec's;
            ``file:///folder`` or a path for a local folder.
        options: of fsspec's filesystem (``endpoint_url``, ``key`` and so on); by default the environment has them.

    Raises:
        InputError: a url with a password in it, or none at all.

    >>> folder = open_folder("memory://doctest-objects")
    >>> folder.write("a/b.bin", b"hello")
    >>> folder.read("a/b.bin", 1, 3), [found.name for found in folder.list("a/")]
    (b'el', ['a/b.bin'])
    """
    scheme, rest = split_scheme(url)
    if scheme in ("", "file"):
        return Local(os.path.abspath(rest))
    from deeplake_loader.storage.remote import Remote

    return Remote(clean_url(url), options=options)


def open_object(url: str, *, options: Mapping[str, Any] | None = None) -> tuple[Objects, str]:
    """The folder that holds the object of this url, and the object's name there.

    >>> open_object("/data/train/0001.tar")[1]
    '0001.tar'
    """
    folder, slash, name = url.rpartition("/")
    if not name or (not slash and not url):
        raise InputError(f"{shown(url)!r} names no object; give the url or path of one file")
    return open_folder(folder or ("/" if slash else "."), options=options), name


def split_scheme(url: str) -> tuple[str, str]:
    """(scheme, what follows it); the scheme is empty for a path.

    >>> split_scheme("s3://bucket/a"), split_scheme("/data"), split_scheme("file:///data")
    (('s3', 'bucket/a'), ('', '/data'), ('file', '/data'))
    """
    scheme, found, rest = url.partition("://")
    return (scheme.lower(), rest) if found and scheme.replace("+", "").isalnum() else ("", url)


def clean_url(url: str) -> str:
    """The url without a slash at its end.

    Raises:
        InputError: it holds a user's name or password, which belong into the environment or ``storage_options=``, or
            names no bucket.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc and parts.scheme not in ("abfs", "abfss", "az"):  # there the part before it is a container
        raise InputError(
            f"{shown(url)!r} has credentials in it, which would be stored; put them into the environment or into "
            "storage_options="
        )
    if parts.scheme in BUCKETS and not parts.netloc:
        raise InputError(f"{shown(url)!r} names no bucket; write {parts.scheme}://bucket/prefix")
    return url.rstrip("/")


def shown(url: str) -> str:
    """The url as messages may have it: no password, no signature.

    >>> shown("https://me:secret@host/a.tar?X-Signature=1")
    'https://host/a.tar'
    """
    scheme, rest = split_scheme(url)
    if not scheme:
        return url
    netloc, slash, path = rest.partition("/")
    if scheme in SIGNED:
        path = path.partition("?")[0]
    if "@" in netloc and scheme not in ("abfs", "abfss", "az"):
        netloc = netloc.rpartition("@")[2]
    return f"{scheme}://{netloc}{slash}{path}"


class Local:
    """A local folder as `Objects`: written under another name, synced and renamed."""

    def __init__(self, folder: str) -> None:
        self.url, self.counters = folder, Counters()

    def _path(self, name: str) -> str:
        return os.path.join(self.url, name)

    def size(self, name: str) -> int:
        with store.file_errors("look at", self._path(name)):
            return os.stat(self._path(name)).st_size

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        path = self._path(name)
        with store.file_errors("read", path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                end = os.fstat(fd).st_size if stop is None else stop
                return store.read_at(fd, start, end - start, path)
            finally:
                os.close(fd)

    def read_many(self, name: str, spans: Sequence[Span]) -> list[bytes]:
        return [self.read(name, start, stop) for start, stop in spans]

    def write(self, name: str, data: bytes | memoryview, *, exclusive: bool = True) -> None:
        path = self._path(name)
        with store.file_errors("write", path):
            store.make_folder(os.path.dirname(path))
            partial = f"{path}.{store.unique_name()}.part"
            try:
                with open(partial, "xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                if exclusive:
                    self._link(partial, path, data)
                else:
                    os.replace(partial, path)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(partial)
            store.sync_folder(os.path.dirname(path))

    def _link(self, partial: str, path: str, data: bytes | memoryview) -> None:
        try:
            os.link(partial, path)  # unlike a rename, never over what is there
        except FileExistsError:
            with open(path, "rb") as file:
                if file.read(len(data) + 1) != bytes(data):
                    raise StoreError(
                        f"cannot write {path}: another writer made it first; nothing was overwritten"
                    ) from None

    def read_tagged(self, name: str, most: int) -> tuple[bytes, str | None]:
        if (size := self.size(name)) > most:
            raise CorruptionError(f"{self._path(name)}: {size} bytes where at most {most} are expected")
        data = self.read(name)
        return data, hashlib.sha256(data).hexdigest()

    def replace(self, name: str, data: bytes, tag: str | None) -> bool:
        with store.file_errors("write", self.url):
            store.make_folder(self.url)
            fd = os.open(self.url, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if _present_tag(self, name) != tag:
                    return False
                self.write(name, data, exclusive=False)
                return True
            finally:
                os.close(fd)

    def upload(self, name: str, path: str) -> None:
        with store.file_errors("read", path), open(path, "rb") as file:
            self.write(name, file.read())

    def list(self, prefix: str = "") -> Iterator[Stored]:
        top = os.path.join(self.url, os.path.dirname(prefix))
        found = []
        for folder, _, files in os.walk(top):
            for file in files:
                path = os.path.join(folder, file)
                name = os.path.relpath(path, self.url).replace(os.sep, "/")
                if name.startswith(prefix):
                    with suppress(FileNotFoundError):
                        facts = os.stat(path)
                        found.append(Stored(name, facts.st_size, facts.st_mtime))
        return iter(sorted(found, key=lambda stored: stored.name))

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            with suppress(NotFoundError), store.file_errors("remove", self._path(name)):
                os.unlink(self._path(name))

    def abort_uploads(self, older_than_s: float) -> int:  # noqa: ARG002
        """Nothing: a folder has none."""
        return 0


def _present_tag(objects: Local, name: str) -> str | None:
    try:
        return hashlib.sha256(objects.read(name)).hexdigest()
    except NotFoundError:
        return None
