"""One open tar shard on disk: appended at its committed end, cut back to it, synced, and finished with its sidecar."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from deeplake_loader import store
from deeplake_loader.behind import Behind
from deeplake_loader.errors import CorruptionError
from deeplake_loader.tar import END

SIDECAR = ".idx"
_HASH_STEP = 4 << 20
_FIRST_CALL = 1000  # buffers of the call that makes an append visible; below the system's limit of 1024


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a shard goes: ``end`` of its members in bytes (the end-of-archive follows), ``count`` of ordinals given
    out, ``resting`` bytes of its blobs that are still in the catalog."""

    end: int = 0
    count: int = 0
    resting: int = 0


class ShardFile:
    """An open shard that this process holds the lock of.

    ``mark`` is where it stands now and ``committed`` where the last commit left it, None for a file that was made in
    the running transaction. ``planned`` bytes and ``pending`` parts were reserved and are not yet written. ``rolled``:
    no more rows go in, and it is sealed at the end of the transaction. ``sent``: the name of its object on a storage.
    """

    __slots__ = (
        "behind", "committed", "dirty", "failed", "fd", "finisher", "id", "mark", "name", "path", "pending", "planned",
        "rolled", "sent", "table", "url",
    )  # fmt: skip

    def __init__(self, file: int, table: str, url: str, path: str, fd: int, *, committed: Mark | None) -> None:
        self.id, self.table, self.url, self.path, self.fd = file, table, url, path, fd
        self.name = os.path.basename(url).partition(".")[0]
        self.committed = committed
        self.mark = committed or Mark()
        self.planned = self.pending = 0
        self.dirty = self.rolled = self.failed = False
        self.finisher: Finisher | None = None
        self.sent: str | None = None
        self.behind = Behind()

    @classmethod
    def create(cls, root: store.Root, folder: str, table: str) -> ShardFile:
        """A new, empty, locked shard; its number is set when the catalog has given it one."""
        path = root.make_folder(folder)
        name = store.unique_name() + ".tar"
        path = os.path.join(path, name)
        with store.file_errors("make the shard", path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        shard = cls(0, table, f"{folder}/{name}", path, fd, committed=None)
        store.try_lock(fd)
        store.write_at(fd, [END], 0, path)
        return shard

    @classmethod
    def adopt(
        cls, file: int, table: str, url: str, path: str, committed: Callable[[], Mark | None], *, make: bool = False
    ) -> ShardFile | None:
        """The shard if its owner is gone and it holds all its committed bytes, cut back to them; else None.

        ``make``: the file may be made anew: on a storage it holds none of the bytes before it is sealed.

        ``committed`` tells, once the lock is held, how far they go; None: the shard cannot be had.
        """
        try:
            if make:
                store.make_folder(os.path.dirname(path))
            fd = os.open(path, os.O_RDWR | (os.O_CREAT if make else 0), 0o666)
        except OSError:
            return None  # readers report a missing file; a writer takes another one
        shard = cls(file, table, url, path, fd, committed=Mark())
        try:
            mark = committed() if store.try_lock(fd) else None
            if mark is None or os.fstat(fd).st_size < mark.end:
                shard.close()
                return None
            shard.committed = mark
            shard.cut(mark)
        except OSError:
            shard.close()
            return None
        return shard

    @property
    def used(self) -> int:
        """Bytes that the shard will have once everything promised to it is written."""
        return self.mark.end + self.mark.resting + self.planned

    def append(self, buffers: Sequence[bytes | memoryview], size: int, *, behind: bool = False) -> None:
        """Writes whole members (``size`` bytes in all) and the end-of-archive over the old one.

        The part that covers the old end-of-archive is written last, so that a reader sees the archive before or after.
        ``behind``: a thread writes and syncs them; whatever else is done with the file waits for it.
        """
        self.dirty, at = True, self.mark.end
        if behind:
            self.behind.run(lambda: self._write_through(buffers, at))
        else:
            self.behind.wait()
            self._write(buffers, at)
        self.mark = Mark(at + size, self.mark.count, self.mark.resting)

    def _write_through(self, buffers: Sequence[bytes | memoryview], at: int) -> None:
        self._write(buffers, at)
        self.failed = True
        with store.file_errors("sync", self.path):
            store.sync_data(self.fd)
        self.failed = False

    def _write(self, buffers: Sequence[bytes | memoryview], at: int) -> None:
        first, rest = buffers[:_FIRST_CALL], buffers[_FIRST_CALL:]
        if rest:
            store.write_at(self.fd, [*rest, END], at + sum(map(len, first)), self.path)
            store.write_at(self.fd, first, at, self.path)
        else:
            store.write_at(self.fd, [*first, END], at, self.path)

    def cut(self, mark: Mark) -> None:
        """Takes back what lies behind ``mark``; the archive is whole before, between and after the two steps."""
        self.behind.forget()
        self.mark = mark
        if os.fstat(self.fd).st_size != mark.end + len(END) or self.dirty:
            store.write_at(self.fd, [END], mark.end, self.path)
            with store.file_errors("cut", self.path):
                os.ftruncate(self.fd, mark.end + len(END))

    def sync(self) -> None:
        """Makes the members durable, and the file's name when it is new. A shard whose sync failed takes no more rows:
        the system may have dropped its pages and call a second sync a success."""
        self.behind.wait()
        self.failed = True
        with store.file_errors("sync", self.path):
            if self.dirty or self.committed is None:
                store.sync_data(self.fd)
            if self.committed is None:
                store.sync_folder(os.path.dirname(self.path))
        self.failed = False

    def start_finishing(self, storage: store.Storage | None = None) -> Finisher:
        """Begins to sync and hash the whole file, and to upload it, on a thread of its own.

        The object has a name that no upload had before: what an earlier attempt left there is not this file.
        """
        self.behind.wait()
        send: Callable[[], None] | None = None
        if storage is not None:
            fresh = self.committed is not None or self.sent is not None
            name = f"{os.path.dirname(self.url)}/{store.unique_name()}.tar" if fresh else self.url
            self.sent, path = name, self.path
            send = lambda: storage.upload(name, path)  # noqa: E731
        self.finisher = Finisher(self.path, self.mark.end + len(END), send)
        self.finisher.start()
        return self.finisher

    def finish(self) -> str:
        """The sha256 of the synced file, waiting for it."""
        finisher = self.finisher or self.start_finishing()
        self.failed = True
        digest = finisher.result()
        with store.file_errors("sync", self.path):
            store.sync_folder(os.path.dirname(self.path))
        self.failed = False
        return digest

    def reopen(self) -> None:
        """Undoes the decision to seal."""
        finisher, self.finisher, self.rolled = self.finisher, None, False
        if finisher is not None:
            finisher.join()
            self.failed = self.failed or finisher.error is not None
            with suppress(OSError):
                os.unlink(sidecar_path(self.path))

    def settle(self) -> None:
        """What is there now is committed."""
        self.committed, self.dirty = self.mark, False
        self.planned = self.pending = 0

    def discard(self) -> None:
        """Removes a file that no commit ever named."""
        self.reopen()
        with suppress(OSError):
            os.unlink(self.path)
        self.close()

    def close(self) -> None:
        """Lets go of the file and of its lock."""
        self.behind.forget()
        self._release()

    def _release(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self._release()  # a handle that was dropped without close() must not keep its shard from being adopted


class Finisher(threading.Thread):
    """Syncs, hashes and sends one complete file while the writer goes on with the next."""

    def __init__(self, path: str, size: int, send: Callable[[], None] | None = None) -> None:
        super().__init__(name=f"finish {os.path.basename(path)}", daemon=True)
        self.path, self.size, self.send = path, size, send
        self.digest = ""
        self.error: BaseException | None = None

    def run(self) -> None:
        import hashlib

        try:
            with store.file_errors("read", self.path), open(self.path, "rb", buffering=0) as file:
                found = os.fstat(file.fileno()).st_size
                if found != self.size:
                    raise CorruptionError(f"{self.path} has {found} bytes, expected {self.size}; it is not sealed")
                store.sync_data(file.fileno())
                digest = hashlib.sha256()
                while data := file.read(_HASH_STEP):
                    digest.update(data)
            if self.send is not None:
                self.send()
            self.digest = digest.hexdigest()
        except BaseException as error:  # handed to the thread that waits for the result
            self.error = error

    def result(self) -> str:
        self.join()
        if self.error is not None:
            raise self.error
        return self.digest


def sidecar_path(path: str) -> str:
    return path.removesuffix(".tar") + SIDECAR


def write_sidecar(path: str, members: Sequence[tuple[Any, ...]], facts: dict[str, str]) -> None:
    """Writes a shard's index beside it as an Arrow IPC file, durable and complete or not there at all.

    Args:
        path: of the shard.
        members: (ordinal, key, column, extension, offset, length, checks, info) of every blob, by offset.
        facts: text kept in the schema's metadata.
    """
    import pyarrow as pa

    names = ("ordinal", "key", "column", "extension", "offset", "length", "checks", "info")
    types = (
        pa.int32(), pa.string(), pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int32(), pa.string()),
        pa.int64(), pa.int64(), pa.binary(), pa.string(),
    )  # fmt: skip
    schema = pa.schema(list(zip(names, types, strict=True)), metadata=facts)
    columns = zip(*members, strict=True) if members else ((),) * len(names)
    arrays = [pa.array(list(column), kind) for column, kind in zip(columns, types, strict=True)]
    final = sidecar_path(path)
    partial = final + ".part"
    with store.file_errors("write", final):
        with open(partial, "wb") as file:
            with pa.ipc.new_file(file, schema) as writer:
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, final)
        store.sync_folder(os.path.dirname(final))
