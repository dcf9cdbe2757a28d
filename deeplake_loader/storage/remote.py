"""Objects on what fsspec reaches: the one place that speaks to it and turns its errors into ours.

All requests of a process run on fsspec's event loop, so a deadline really ends one, and none needs a thread of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import IO, Any, TypeVar

from deeplake_loader.errors import CorruptionError, NotFoundError, StoreError
from deeplake_loader.storage import web
from deeplake_loader.storage.links import NO_LINK, S3, Link
from deeplake_loader.storage.objects import BUCKETS, SIGNED, Span, Stored, shown, split_scheme
from deeplake_loader.storage.ranges import Take, UnusualError
from deeplake_loader.storage.requests import Policy, Requests, status_of, storage_error
from deeplake_loader.storage.traffic import Counters

T = TypeVar("T")

_PART = 32 << 20
"""Bytes of a part of a large upload."""

_MAX_WHOLE = 64 << 20
_CHANGED = (409, 412)  # the object is not the one that was to be replaced
_MODIFIED = ("LastModified", "mtime", "updated", "last_modified", "created", "timeModified")


class Remote:
    """The objects below one url; see `objects.Objects`."""

    def __init__(
        self,
        url: str,
        *,
        options: Mapping[str, Any] | None = None,
        policy: Policy | None = None,
        counters: Counters | None = None,
    ) -> None:
        self.url, self.counters = shown(url), counters or Counters()
        self._full, self._options, self._policy = url, dict(options or {}), policy or Policy()
        self._scheme = split_scheme(url)[0]
        self._lock, self._link = threading.Lock(), NO_LINK

    def __repr__(self) -> str:
        return f"<Remote {self.url}>"

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_link", "counters")}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _link=NO_LINK, counters=Counters())

    # -- reading ---------------------------------------------------------------------------------------------------

    def size(self, name: str) -> int:
        async def ask() -> Any:
            if self._scheme in SIGNED:
                return {"size": (await web.look(self._link.plain, self._path(name))).size}
            return await self._link.plain._info(self._path(name))

        info = self._run(lambda: self._link.requests.send("heads", ask, "look at", self._where(name)))
        size: object = info.get("size")
        if not isinstance(size, int):
            raise StoreError(f"{self._where(name)} has no size: the server does not say how long it is")
        return size

    def look(self, name: str) -> web.WebFile:
        """What a web server says of one of its files."""

        async def ask() -> web.WebFile:
            return await web.look(self._link.plain, self._path(name))

        found: web.WebFile = self._run(lambda: self._link.requests.send("heads", ask, "look at", self._where(name)))
        return found

    def fetch(self, name: str, file: IO[bytes], size: int) -> None:
        """Writes a web server's file, whole and of that size, into a local one."""
        where = self._where(name)

        async def get() -> None:
            await web.fetch(self._link.plain, self._path(name), file, size, where)

        self._run(lambda: self._link.requests.send("gets", get, "read", where, size))
        self.counters.add(bytes_read=size)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        if stop is None:
            stop = self.size(name)
        return self.read_many(name, [(start, stop)])[0]

    def read_many(self, name: str, spans: Sequence[Span]) -> list[bytes]:
        bodies = [bytearray() for _ in spans]
        jobs = [(name, span, partial(_put, body)) for span, body in zip(spans, bodies, strict=True)]
        self.read_each(jobs, _ignore)
        return [bytes(body) for body in bodies]

    def read_each(self, wanted: Sequence[tuple[str, Span, Take]], done: Callable[[int], None]) -> None:
        """Fetches ranges of several objects at the same time: each is given, piece by piece, to what takes it, and its
        number to ``done`` when it is whole, on the thread of the loop. After a failure pieces come from the start
        again, and of a late answer and the second one at the same time."""

        async def one(number: int, name: str, span: Span, take: Take) -> None:
            await self._get(name, *span, take)
            done(number)

        self._run(lambda: self._gather(one(i, *job) for i, job in enumerate(wanted)), reading=True)

    async def _get(self, name: str, start: int, stop: int, take: Take) -> None:
        if start >= stop:
            return
        link, path = self._link, self._path(name)

        async def get() -> int:
            if link.ranges is not None:
                try:
                    return await link.ranges.get(path.partition("/")[2], start, stop, take)
                except UnusualError:
                    link.ranges = None
            await link.ready()
            if self._scheme in SIGNED:
                body = await web.read(link.plain, path, start, stop, self._where(name))
            else:
                body = bytes(await link.plain._cat_file(path, start=start, end=stop))
            take(0, memoryview(body)[: stop - start])
            return len(body)

        await link.requests.get(get, stop - start, self._where(name))

    @staticmethod
    async def _gather(jobs: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """The results in order; the first error ends the other jobs."""
        tasks = [asyncio.ensure_future(job) for job in jobs]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    # -- writing ---------------------------------------------------------------------------------------------------

    def write(self, name: str, data: bytes | memoryview, *, exclusive: bool = True) -> None:
        body, path, where = bytes(data), self._path(name), self._where(name)

        async def put() -> None:
            link = self._link.plain
            if self._checked_create:
                await link._pipe_file(path, body, mode="create" if exclusive else "overwrite")
            elif exclusive and await link._exists(path):
                raise FileExistsError(path)
            else:
                await link._pipe_file(path, body)

        try:
            self._run(lambda: self._link.requests.send("puts", put, "write", where, len(body)))
        except StoreError as error:
            if not isinstance(error.__cause__, FileExistsError) or not self._holds(name, body):
                raise  # else our own request, whose answer was lost, had made it
        self.counters.add(bytes_written=len(body))

    def read_tagged(self, name: str, most: int) -> tuple[bytes, str | None]:
        async def ask() -> Any:
            return await self._link.plain._info(self._path(name))

        info = self._run(lambda: self._link.requests.send("heads", ask, "look at", self._where(name)))
        size, tag = int(info.get("size") or 0), info.get("ETag") or info.get("etag")
        if size > most:
            raise CorruptionError(f"{self._where(name)}: {size} bytes where at most {most} are expected")
        data = self.read(name, 0, size)
        return data, str(tag or hashlib.sha256(data).hexdigest())

    def replace(self, name: str, data: bytes, tag: str | None) -> bool:
        if tag is None or self._scheme not in S3:
            return self._replace_looking(name, data, tag)
        bucket, _, key = self._path(name).partition("/")

        async def put() -> None:
            await self._link.plain._call_s3("put_object", Bucket=bucket, Key=key, Body=data, IfMatch=tag)

        try:
            self._run(lambda: self._link.requests.send("puts", put, "write", self._where(name), len(data)))
        except StoreError as error:
            if status_of(error) not in _CHANGED:
                raise
            return self._holds(name, data)  # else our own request, whose answer was lost, had made it
        self.counters.add(bytes_written=len(data))
        return True

    def _replace_looking(self, name: str, data: bytes, tag: str | None) -> bool:
        """Where the storage compares nothing but whether there is an object."""
        try:
            if tag is None:
                self.write(name, data)
                return True
            if self.read_tagged(name, _MAX_WHOLE)[1] != tag:
                return False
        except NotFoundError:
            return False
        except StoreError as error:
            if isinstance(error.__cause__, FileExistsError):
                return False
            raise
        self.write(name, data, exclusive=False)
        return True

    def _holds(self, name: str, body: bytes) -> bool:
        return self.size(name) == len(body) and self.read(name, 0, len(body)) == body

    def upload(self, name: str, path: str) -> None:
        try:
            size = os.path.getsize(path)
        except OSError as error:
            raise storage_error(error, "read", path) from error
        if size <= _MAX_WHOLE or self._scheme not in S3:
            with open(path, "rb") as file:
                self.write(name, file.read())
            return
        target = self._path(name)

        async def put() -> None:
            await self._link.in_parts._put_file(path, target, chunksize=_PART, max_concurrency=4)

        self._run(lambda: self._link.requests.send("puts", put, "write", self._where(name), size))
        self.counters.add(puts=-(-size // _PART) + 1, bytes_written=size)

    # -- care ------------------------------------------------------------------------------------------------------

    def list(self, prefix: str = "") -> Iterator[Stored]:
        top = self._path(prefix).rpartition("/")[0] if prefix else self._path("").rstrip("/")

        async def find() -> dict[str, dict[str, Any]]:
            try:
                found: dict[str, dict[str, Any]] = await self._link.plain._find(top, detail=True)
            except FileNotFoundError:
                return {}
            return found

        found = self._run(lambda: self._link.requests.send("lists", find, "list", self._where(prefix)))
        base = self._path("")
        for path, info in sorted(found.items()):
            name = path.removeprefix(base)
            if path.startswith(base) and name.startswith(prefix) and info.get("type") != "directory":
                yield Stored(name, int(info.get("size") or 0), _modified(info))

    def delete(self, names: Iterable[str]) -> None:
        async def remove(name: str) -> None:
            async def ask() -> None:
                with suppress(FileNotFoundError):
                    await self._link.plain._rm_file(self._path(name))

            await self._link.requests.send("deletes", ask, "remove", self._where(name))

        chosen = list(names)
        if chosen:
            self._run(lambda: self._gather(remove(name) for name in chosen))

    def abort_uploads(self, older_than_s: float) -> int:
        if self._scheme not in S3:
            return 0
        bucket, _, key = self._path("").partition("/")

        async def abort() -> int:
            call, before = self._link.plain._call_s3, time.time() - older_than_s
            listed = await call("list_multipart_uploads", Bucket=bucket, Prefix=key)
            old = [u for u in listed.get("Uploads", ()) if u["Initiated"].timestamp() <= before]
            for upload in old:
                await call("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
            return len(old)

        given_up: int = self._run(lambda: self._link.requests.send("lists", abort, "list the uploads of", self.url))
        return given_up

    # -- fsspec ----------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        base = self._connect().base
        return f"{base}/{name}"

    def _where(self, name: str) -> str:
        return shown(f"{self.url}/{name}") if name else self.url

    @property
    def _checked_create(self) -> bool:
        """Whether the storage itself refuses to write over what is there."""
        return self._scheme in BUCKETS

    def _run(self, make: Callable[[], Coroutine[Any, Any, T]], *, reading: bool = False) -> T:
        """The result of a coroutine, run on the loop's thread; ``reading``: one that gets ranges and nothing else."""
        link = self._connect()
        direct = reading and link.ranges is not None
        if not direct:
            link.open()

        async def entered() -> T:
            if not direct:
                await link.ready()
            return await make()

        future = asyncio.run_coroutine_threadsafe(entered(), link.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _connect(self) -> Link:
        if self._link.pid != os.getpid():
            if self._link.pid:
                self._lock = threading.Lock()  # the parent's may have been held at the fork
            with self._lock:
                if self._link.pid != os.getpid():
                    self._link = Link(self._full, self._options, Requests(self._policy, self.counters))
        return self._link


def _put(body: bytearray, offset: int, piece: memoryview) -> None:
    """A piece over what was there, or behind it: no more memory than what came."""
    body[offset : offset + len(piece)] = piece


def _ignore(number: int) -> None:
    """Nobody waits for a single one."""


def _modified(info: Mapping[str, Any]) -> float:
    found = next((info[key] for key in _MODIFIED if info.get(key) is not None), 0.0)
    if isinstance(found, datetime):
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    if isinstance(found, str):
        with suppress(ValueError):
            return datetime.fromisoformat(found).timestamp()
        return 0.0
    return float(found)
