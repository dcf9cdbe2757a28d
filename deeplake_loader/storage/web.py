"""Files on plain web servers, which may give ranges or not, and whose urls may hold a signature.

A server that knows no ranges answers with the whole file, which may be of any size: it is told by the answer's status,
before its body is read. Lengths are asked for by a GET of one byte, because a signed url is good for one method. No
error here names the url, nor carries one that does. The host of a url was named by the caller, or checked where it came
from a catalog (`adopted`); every other one that a redirect leads to is checked before it is asked.
"""

from __future__ import annotations

import errno
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import urlsplit

from deeplake_loader.adopted import TRUSTED_HOSTS, may_be_asked
from deeplake_loader.errors import CorruptionError, DeeplakeError, InputError, StoreError

_CHUNK = 1 << 18
_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)\Z")  # RFC 9110, section 14.4
_MOST = 1 << 50  # a file's size is what its server says: nothing is allocated by a larger one
_UNTOUCHED = {"Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class WebFile:
    """What a server says of a file: its ``size`` in bytes, None where it says none; whether it gives ``ranges``."""

    size: int | None
    ranges: bool


class WebError(OSError):
    """A request that failed, by its ``status`` or by the system's number: aiohttp's own errors may quote the url."""

    def __init__(self, number: int | None, name: str, status: int | None = None) -> None:
        super().__init__(number, name)
        self.status = status


def guarded(url: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the filesystem of a url, such that its session asks the url's host, public and trusted ones."""
    from fsspec.config import apply_config
    from fsspec.implementations.http import HTTPFileSystem

    given = apply_config(HTTPFileSystem, dict(options))  # what is given below would go before all that is configured
    client = dict(given.get("client_kwargs") or {})
    client["middlewares"] = (*client.get("middlewares", ()), _only(urlsplit(url).netloc.lower()))
    return {**given, "client_kwargs": client}


def _only(named: str) -> Callable[[Any, Callable[[Any], Awaitable[Any]]], Awaitable[Any]]:
    """A step before each request of aiohttp's, those that follow a redirect too: what it sees is what is connected to.

    Raises:
        InputError: another host, which is neither public nor trusted. (A StoreError is an OSError, which aiohttp words
            anew.)
    """

    async def check(request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        asked = request.url.raw_authority
        if asked != named and not may_be_asked(asked):
            raise InputError(
                f"the server {named!r} leads to another that is not public, {asked.rpartition('@')[2]!r}; name that "
                f"in ${TRUSTED_HOSTS} where you trust it, or download the file"
            )
        return await handler(request)

    return check


async def look(filesystem: Any, url: str) -> WebFile:
    """The size of a file and whether parts of it can be had."""
    async with _answer(filesystem, url, "bytes=0-0") as answer:
        if answer.status in (206, 416):  # 416: an empty file has no first byte
            _, total = _placed(answer)
            if answer.status == 416 and total != 0:
                raise WebError(None, "refused", 416)
            if total is not None and total > _MOST:
                raise WebError(errno.EFBIG, "refused")
            return WebFile(total, ranges=True)
        length = answer.headers.get("Content-Length", "")
        plain = answer.headers.get("Content-Encoding", "identity") == "identity"
        return WebFile(int(length) if plain and length.isdigit() else None, ranges=False)


async def read(filesystem: Any, url: str, start: int, stop: int, where: str) -> bytes:
    """The bytes of a range, fewer where the file ends before.

    Raises:
        StoreError: the server answers with something else than the range.
    """
    async with _answer(filesystem, url, f"bytes={start}-{stop - 1}") as answer:
        if answer.status == 416:
            raise WebError(None, "refused", 416)
        if (_placed(answer)[0] if answer.status == 206 else 0) != start:
            raise _no_ranges(where)
        body = bytearray()
        async for part in answer.content.iter_chunked(_CHUNK):
            body += part
            if len(body) > stop - start:
                raise _no_ranges(where)
        return bytes(body)


async def fetch(filesystem: Any, url: str, file: IO[bytes], size: int, where: str) -> None:
    """Writes the whole file, of the size that was found, over what ``file`` holds.

    Raises:
        CorruptionError: it is of another size.
    """
    file.seek(0)
    file.truncate()
    found = 0
    async with _answer(filesystem, url, None) as answer:
        async for part in answer.content.iter_chunked(_CHUNK):
            found += len(part)
            if found > size:
                break
            file.write(part)
    if found != size:
        raise CorruptionError(f"{where}: {size} bytes were announced and {'more' if found > size else found} came")


def _no_ranges(where: str) -> StoreError:
    return StoreError(f"cannot read {where} in place: its server answers no ranges; download it, then ingest the file")


def _placed(answer: Any) -> tuple[int | None, int | None]:
    """(where the body begins, the file's size) of a Content-Range."""
    match = _RANGE.match(answer.headers.get("Content-Range", ""))
    if match is None:
        return None, None
    start, total = match.groups()
    return None if start is None else int(start), int(total) if total.isdigit() else None


@asynccontextmanager
async def _answer(filesystem: Any, url: str, span: str | None) -> AsyncIterator[Any]:
    """The answer to a GET, its body unread."""
    import aiohttp
    from yarl import URL

    given = dict(filesystem.kwargs)
    headers = {**given.pop("headers", {}), **_UNTOUCHED, **({"Range": span} if span else {})}
    with _told(aiohttp.ClientError):
        address = URL(url, encoded="?" in url)  # a signature is of the letters as they are
        session = await filesystem.set_session()
        limit = aiohttp.ClientTimeout(total=None)  # the caller's deadline counts
        async with session.get(address, headers=headers, timeout=limit, **given) as answer:
            if answer.status == 404:
                raise FileNotFoundError
            if answer.status not in (200, 206, 416):
                raise WebError(None, "refused", answer.status)
            yield answer


@contextmanager
def _told(kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except DeeplakeError:
        raise
    except (kind, ValueError) as error:
        number = getattr(error, "errno", None)
        raise WebError(number if isinstance(number, int) else None, type(error).__name__) from None
