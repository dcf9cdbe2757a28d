"""Ranges of S3 objects over connections of our own, whose bodies are handed on a MB at a time, out of one buffer each.

aiohttp collects a body in pieces of at most 256 KB and joins them: 16 bodies of 8 MB fill 256 MB of fresh memory before
the first of them is written. What is written while it still lies in the processor's cache costs a third. Whatever is
not a plain answer (a redirect, refused credentials, a certificate that is not trusted, an encoded body) raises
UnusualError, and is for s3fs to settle and to word.
"""

from __future__ import annotations

import asyncio
import errno
import re
import ssl
import time
from collections.abc import Callable
from typing import cast

from deeplake_loader.storage.signing import Access, utc

_CONNECT_S = 5.0
_NEXT_S = 0.25  # after which another address of a host is tried beside the first
_IDLE_S = 10.0  # S3 closes what was silent for longer
_HEAD = 16 << 10
_PIECE = 1 << 20
_MOST_SAID = 64 << 10
_BUSY = (408, 429)  # beside every 5xx
Take = Callable[[int, memoryview], None]
"""Is given each piece of a body with the number of bytes before it; the piece is its own only meanwhile."""

_CODE = re.compile(rb"<Code>([A-Za-z]{1,49})</Code>")


class UnusualError(Exception):
    """An answer that only a client library understands."""


class RefusedError(OSError):
    """An answer with another status; ``response`` has it and S3's word for it, as botocore's errors do."""

    def __init__(self, status: int, said: bytes) -> None:
        super().__init__(errno.EIO, f"status {status}")
        code = _CODE.search(said)
        self.response = {
            "ResponseMetadata": {"HTTPStatusCode": status},
            "Error": {"Code": code[1].decode() if code else ""},
        }


Answer = tuple[int, int, bytes]
"""Status, bytes of the body, and what an answer that is none says."""


class Ranges:
    """The objects of one bucket; used on the thread of one event loop only."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._idle: list[_Connection] = []
        self._watch: asyncio.TimerHandle | None = None
        self._context: ssl.SSLContext | None = None

    async def get(self, name: str, start: int, stop: int, take: Take) -> int:
        """How many of these bytes the storage has; they were given to ``take``.

        Raises:
            FileNotFoundError: there is no such object. UnusualError: see there. OSError: broken off, or refused.
        """
        status, length, said = await self._ask(self._access.request(name, start, stop, utc()), stop - start, take)
        if status == 206 or (status == 200 and start == 0 and length == stop):
            return length
        if status == 404:
            raise FileNotFoundError(errno.ENOENT, "no such object", name)
        if status == 416 or status in _BUSY or status >= 500:
            raise RefusedError(status, said)
        raise UnusualError(f"status {status}")

    async def _ask(self, request: bytes, most: int, take: Take) -> Answer:
        while True:
            connection = self._take()
            used = connection is not None
            if connection is None:
                connection = await self._open()
            try:
                answer = await connection.ask(request, most, take)
            except ConnectionError:
                if used and connection.silent:  # it was closed while nobody used it
                    continue
                raise
            if connection.usable:
                self._idle.append(connection)
                self._watch_idle()
            return answer

    def _watch_idle(self) -> None:
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(_IDLE_S, self._close_idle)

    def _close_idle(self) -> None:
        """Closes what nobody used lately: not every server does, and nobody may ask here again."""
        self._watch, late = None, time.monotonic() - _IDLE_S
        for connection in self._idle:
            if connection.since <= late:
                connection.close()
        self._idle = [connection for connection in self._idle if connection.usable]
        if self._idle:
            self._watch_idle()

    def _take(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and time.monotonic() - connection.since < _IDLE_S:
                return connection
            connection.close()
        return None

    async def _open(self) -> _Connection:
        access = self._access
        if access.tls and self._context is None:
            try:
                self._context = ssl.create_default_context(cafile=access.trusted)
            except OSError as error:
                raise UnusualError("no certificates") from error
        loop = asyncio.get_running_loop()
        making = loop.create_connection(
            _Connection, access.host, access.port, ssl=self._context, happy_eyeballs_delay=_NEXT_S
        )
        try:
            _, connection = await asyncio.wait_for(making, _CONNECT_S)
        except ssl.SSLError as error:
            raise UnusualError("no secure connection") from error
        return connection


class _Connection(asyncio.BufferedProtocol):
    """One connection: a request, its answer, and the next request."""

    def __init__(self) -> None:
        self._head = bytearray(_HEAD)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self.since = time.monotonic()
        self._begin(0, _ignore)

    def _begin(self, most: int, take: Take) -> None:
        self._most, self._take, self._said = most, take, bytearray()
        self._filled = self._status = 0  # bytes of the head; its status, once it is known
        self._length = self._given = self._held = 0  # bytes of the body, those handed on, those in the piece
        self._piece = memoryview(b"")
        self._kept = True  # whether the connection may be used again after this answer

    @property
    def silent(self) -> bool:
        """Whether nothing came of the answer."""
        return self._filled == 0

    @property
    def usable(self) -> bool:
        """Whether it is open and waits for a request."""
        return self._transport is not None and not self._transport.is_closing() and self._answer is None

    async def ask(self, request: bytes, most: int, take: Take) -> Answer:
        """One answer, whose body may have ``most`` bytes."""
        self._begin(most, take)
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError(errno.ECONNRESET, "the connection was closed")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._answer
        except BaseException:
            self.close()
            raise
        finally:
            self._answer, self.since = None, time.monotonic()
            self._take, self._piece = _ignore, memoryview(b"")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # -- what the event loop calls ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._fail(ConnectionResetError(errno.ECONNRESET, "the connection was closed"))

    def eof_received(self) -> bool:
        return False

    @property
    def _is_asked(self) -> bool:
        return self._answer is not None and not self._answer.done()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        if not self._is_asked:
            return memoryview(self._head)
        if self._status:
            return self._piece[self._held : self._length - self._given]
        return memoryview(self._head)[self._filled :]

    def buffer_updated(self, count: int) -> None:
        if not self._is_asked:
            self.close()  # what nobody asked for
            return
        try:
            if self._status:
                self._held += count
                self._hand_on()
            else:
                self._filled += count
                self._read_head()
        except (ValueError, IndexError):
            self._fail(UnusualError("no HTTP"))
        except Exception as error:
            self._fail(error)

    def _read_head(self) -> None:
        end = self._head.find(b"\r\n\r\n", 0, self._filled)
        if end < 0:
            if self._filled == _HEAD:
                raise UnusualError("a long head")
            return
        self._understand(bytes(self._head[:end]))
        rest = min(self._filled - end - 4, self._length)
        if end + 4 + rest < self._filled:
            if self._status < 300:
                raise UnusualError("more than was announced")
            self._kept = False
        self._piece = memoryview(bytearray(min(self._length, _PIECE)))
        self._piece[:rest] = self._head[end + 4 : end + 4 + rest]
        self._held = rest
        self._hand_on()

    def _understand(self, head: bytes) -> None:
        """Takes the status and the bytes that are to come."""
        first, *lines = head.split(b"\r\n")
        version, status = first.split(None, 2)[:2]
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        good = status in (b"200", b"206")
        encoded = b"transfer-encoding" in fields or fields.get(b"content-encoding", b"identity") != b"identity"
        length = -1 if encoded else int(fields.get(b"content-length", b"-1"))
        self._kept = version == b"HTTP/1.1" and fields.get(b"connection", b"").lower() != b"close"
        if good and not 0 <= length <= self._most:
            raise UnusualError("another body")
        if not good:
            self._take = self._hear
            if not 0 <= length <= _MOST_SAID:  # what it says is not waited for
                self._kept, length = False, 0
        self._status, self._length = int(status), length
        if self._status < 200:
            raise UnusualError("no answer yet")

    def _hear(self, _: int, piece: memoryview) -> None:
        self._said += piece

    def _hand_on(self) -> None:
        """Hands the piece on when it is full, and the answer out when it is whole."""
        whole = self._given + self._held == self._length
        if self._held == len(self._piece) or whole:
            self._take(self._given, self._piece[: self._held])
            self._given, self._held = self._given + self._held, 0
        if whole:
            answer = self._answer
            if not self._kept:
                self.close()
            if answer is not None:
                answer.set_result((self._status, self._length, bytes(self._said)))

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self.close()


def _ignore(offset: int, piece: memoryview) -> None:
    """Nothing was asked for."""
