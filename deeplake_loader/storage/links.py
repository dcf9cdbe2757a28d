"""What one process holds of one storage: fsspec's filesystem and loop, and for S3 connections that ask for ranges.

s3fs is used twice: without its own retries (ours are bounded and counted), and for uploads in parts with botocore's,
which send a part again alone. fsspec would hand out a filesystem with the credentials and the endpoint of its first use
for as long as the process lives, so they are kept here, by what the environment says. Filesystems without coroutines
(memory, sftp) run on the loop's threads. Where options and environment say plainly how a bucket is asked (`signing`),
it is read past s3fs, which is then imported when something else is asked of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from deeplake_loader.errors import DeeplakeError, InputError
from deeplake_loader.storage import web
from deeplake_loader.storage.objects import SIGNED, shown, split_scheme
from deeplake_loader.storage.ranges import Ranges
from deeplake_loader.storage.requests import Requests, storage_error
from deeplake_loader.storage.signing import access_of

S3 = ("s3", "s3a")

_PART_ATTEMPTS = 5
_MOST_FILESYSTEMS = 64
_SAID_BY = ("AWS_", "GOOGLE_", "GCS", "AZURE_", "FSSPEC_")


class Link:
    """A storage as this process reaches it.

    Fields: ``base``, the url's path there; ``requests``, their bookkeeping; ``ranges``, what reads past s3fs, None
    where nothing does.

    Raises:
        InputError: url and options that its filesystem does not take. StoreError: its filesystem is not installed.
    """

    def __init__(self, url: str, options: Mapping[str, Any], requests: Requests) -> None:
        self.pid, self.loop, self.base, self.requests = os.getpid(), _loop(url), "", requests
        self.ranges: Ranges | None = None
        self._url, self._options, self._lock = url, options, threading.Lock()
        self._plain: Any = None
        self._in_parts: Any = None
        self._ready: asyncio.Future[None] | None = None
        scheme, rest = split_scheme(url)
        access = access_of(rest.partition("/")[0], options) if scheme in S3 and not _configured() else None
        if access is None:
            self.open()
        else:
            self.base, self.ranges = rest.rstrip("/"), Ranges(access)

    @property
    def plain(self) -> Any:
        """The filesystem, opened before."""
        return self._plain

    @property
    def in_parts(self) -> Any:
        """The one for large uploads."""
        return self._in_parts

    def open(self) -> None:
        """Makes the filesystems where there are none yet."""
        with self._lock:
            if self._plain is None:
                self._open()

    def _open(self) -> None:
        url, options = self._url, self._options
        try:
            if split_scheme(url)[0] in S3:
                in_parts, _ = _filesystem(url, _s3_options(options, attempts=_PART_ATTEMPTS))
                plain, self.base = _filesystem(url, _s3_options(options, attempts=1))
                plain.retries = 1
            else:
                plain, self.base = _filesystem(url, options)
                in_parts = plain
            self._in_parts, self._plain = _coroutines(in_parts), _coroutines(plain)
        except ImportError as error:
            raise storage_error(error, "reach", shown(url)) from error
        except Exception as error:
            raise InputError(
                f"{shown(url)!r} cannot be opened ({type(error).__name__}); check url and options"
            ) from error

    async def ready(self) -> None:
        """Waits for s3fs's client (0.2 s), so that no request looks late because it was the first."""
        ready = self._ready
        if ready is None or (ready.done() and (ready.cancelled() or ready.exception())):  # what failed is tried again
            ready = self._ready = asyncio.ensure_future(self._prepare())
        try:
            await asyncio.shield(ready)
        except DeeplakeError:
            raise
        except (TypeError, ValueError) as error:
            raise InputError(
                f"storage_options= of {shown(self._url)} or the environment's settings are none that its filesystem "
                f"takes ({type(error).__name__}); check their names and values"
            ) from error
        except Exception as error:
            raise storage_error(error, "reach", shown(self._url)) from error

    async def _prepare(self) -> None:
        await asyncio.to_thread(self.open)
        if hasattr(self._plain, "set_session"):
            await self._plain.set_session()


class _NoLink(Link):
    """Before the first request of a process."""

    def __init__(self) -> None:
        self.pid = 0


NO_LINK: Link = _NoLink()


def _loop(url: str) -> asyncio.AbstractEventLoop:
    try:
        from fsspec import asyn
    except ImportError as error:
        raise storage_error(error, "reach", shown(url)) from error
    loop: asyncio.AbstractEventLoop = asyn.get_loop()
    return loop


def _configured() -> bool:
    """Whether fsspec was told options of its own for S3: by a file, by the environment, by the program."""
    from fsspec.config import conf

    return any(conf.get(scheme) for scheme in S3)


_filesystems: OrderedDict[tuple[int, bytes], Any] = OrderedDict()


def _filesystem(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """fsspec's filesystem and the path of the url there; the same one while host, options and environment are."""
    from fsspec.core import url_to_fs

    scheme, rest = split_scheme(url)
    said = sorted(item for item in os.environ.items() if item[0].startswith(_SAID_BY))
    facts = repr((scheme, rest.partition("/")[0], sorted(options.items()), said))
    key = (os.getpid(), hashlib.sha256(facts.encode()).digest())
    found = _filesystems.get(key)
    if found is None:
        own = {"skip_instance_cache": True} if scheme in (*S3, *SIGNED) else {}
        given = web.guarded(url, options) if scheme in SIGNED else options
        found = _filesystems[key] = url_to_fs(url, **given, **own)[0]
        if len(_filesystems) > _MOST_FILESYSTEMS:
            _filesystems.popitem(last=False)
    return found, str(found._strip_protocol(url)).rstrip("/")


def _s3_options(options: Mapping[str, Any], *, attempts: int) -> dict[str, Any]:
    given = dict(options)
    own = {
        "retries": {"mode": "standard", "total_max_attempts": attempts},
        "max_pool_connections": 32,
        "connect_timeout": 5,
    }
    given["config_kwargs"] = {**own, **given.get("config_kwargs", {})}
    given.setdefault("use_listings_cache", False)
    return given


def _coroutines(filesystem: Any) -> Any:
    """The filesystem, or one whose coroutines run it on threads."""
    if getattr(filesystem, "async_impl", False):
        return filesystem
    from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

    return AsyncFileSystemWrapper(filesystem)
