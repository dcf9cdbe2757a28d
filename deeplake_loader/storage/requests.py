"""One request to object storage: retried with backoff and jitter, under a deadline, a straggler raced by a second one.

Retries wait about 0.1, 0.2, 0.4 ... seconds, each times a random 0.5 to 1.5, so that clients that failed together do
not come back together. A GET that takes longer than 1.5 times the 95th percentile of recent ones of its size is sent a
second time and the first answer counts; at most one request in twenty is, so that a slow store is not asked for twice
as much.
"""

from __future__ import annotations

import asyncio
import errno
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from deeplake_loader.errors import CorruptionError, DeeplakeError, NotFoundError, StoreError
from deeplake_loader.storage.traffic import Counters

T = TypeVar("T")

_RECENT = 128
_KNOWN = 8  # requests after which their 95th percentile means something
_TRANSIENT_STATUS = {408, 409, 425, 429}  # beside every 5xx; 409 is S3's "another conditional write is under way"
_SHORT_ATTEMPTS = 3  # a connection cuts one body, an object that is too short every one
_FINAL = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotImplementedError, TypeError)


class _ShortError(OSError):
    """A body of another length than was asked for: cut on its way, or the object is that short."""

    def __init__(self, found: int, wanted: int) -> None:
        super().__init__(errno.EIO, "short body")
        self.found, self.wanted = found, wanted


@dataclass(frozen=True, slots=True)
class Policy:
    """How requests are sent.

    Fields: ``attempts``, of one request; ``deadline_s``, of one attempt, plus a second for each MB; ``backoff_s``, the
    first wait; ``hedge_s``, after which a GET is raced before enough are known, and at the least; ``concurrency``,
    requests under way at once.
    """

    attempts: int = 7
    deadline_s: float = 10.0
    backoff_s: float = 0.1
    hedge_s: float = 0.5
    concurrency: int = 16


class Requests:
    """Sends requests of one process to one storage; used on the thread of the event loop only."""

    def __init__(self, policy: Policy, counters: Counters) -> None:
        self.policy, self.counters = policy, counters
        self._gate = asyncio.Semaphore(policy.concurrency)
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._sent = self._hedged = 0

    async def get(self, make: Callable[[], Awaitable[int]], size: int, where: str) -> int:
        """Sends a GET of ``size`` bytes, which ``make`` has taken and counts; gives their number.

        Raises:
            NotFoundError: there is no such object. StoreError: every attempt failed.
        """

        async def attempt() -> int:
            found = await self._race(make, size)
            if found != size:
                raise _ShortError(found, size)
            self.counters.add(bytes_read=size)
            return size

        async with self._gate:
            return await self._retry(attempt, "read", where, size)

    async def send(self, kind: str, make: Callable[[], Awaitable[T]], doing: str, where: str, size: int = 0) -> T:
        """The result of any other request; ``kind`` is the counter's name."""

        async def attempt() -> T:
            self.counters.add(**{kind: 1})
            return await make()

        async with self._gate:
            return await self._retry(attempt, doing, where, size)

    async def _retry(self, attempt: Callable[[], Awaitable[T]], doing: str, where: str, size: int) -> T:
        policy, limit = self.policy, self.policy.deadline_s + size / 1e6
        for number in range(policy.attempts):
            try:
                return await asyncio.wait_for(attempt(), limit)
            except Exception as raised:
                error = _behind(raised)
                most = min(_SHORT_ATTEMPTS if isinstance(error, _ShortError) else policy.attempts, policy.attempts)
                if isinstance(error, DeeplakeError):
                    raise error from error.__cause__
                if number + 1 >= most or not is_transient(error):
                    raise storage_error(error, doing, where, number + 1) from error
            self.counters.add(retries=1)
            await asyncio.sleep(policy.backoff_s * 2.0**number * random.uniform(0.5, 1.5))
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _race(self, make: Callable[[], Awaitable[int]], size: int) -> int:
        """The first answer of a request, and of a second one where the first is late."""
        self.counters.add(gets=1)
        self._sent += 1
        begun = time.monotonic()
        tasks = {asyncio.ensure_future(make())}
        try:
            done, _ = await asyncio.wait(tasks, timeout=self._late_after(size))
            if not done and self._hedged * 20 <= self._sent:
                self._hedged += 1
                self.counters.add(gets=1, hedges=1)
                tasks.add(asyncio.ensure_future(make()))
            found = await _first_good(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._recent.append((time.monotonic() - begun) / (size + (1 << 20)))
        return found

    def _late_after(self, size: int) -> float:
        """Seconds after which a request of that size is a straggler."""
        floor = self.policy.hedge_s
        if len(self._recent) < _KNOWN:
            return floor * 4
        slow = sorted(self._recent)[int(0.95 * (len(self._recent) - 1))]
        return max(floor, 1.5 * slow * (size + (1 << 20)))


async def _first_good(tasks: Iterable[asyncio.Future[int]]) -> int:
    """The first result; an error only when no task is left."""
    waiting = set(tasks)
    while True:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        good = next((task for task in done if task.exception() is None), None)
        if good is not None or not waiting:
            return (good or done.pop()).result()


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed when it is sent again."""
    if isinstance(error, (DeeplakeError, *_FINAL)):
        return False
    status = status_of(error)
    if status is not None:
        return status >= 500 or status in _TRANSIENT_STATUS
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError"):
        return False
    return not isinstance(error, ValueError | AttributeError | KeyError | ImportError)


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an error of botocore, aiohttp, gcsfs or their translations, where it has one."""
    seen: BaseException | None = error
    while seen is not None:
        response: Any = getattr(seen, "response", None)
        if isinstance(response, dict):
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            found = getattr(seen, "status", None)
        if isinstance(found, int) and found >= 400:
            return found
        seen = seen.__cause__
    return None


def _behind(error: Exception) -> BaseException:
    """The error itself; where fsspec's HTTP file system says of a look that failed that there is no such file, why."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or cause is None or isinstance(cause, FileNotFoundError):
        return error
    status = status_of(cause)
    if status is None:
        failed = isinstance(cause, OSError | DeeplakeError) or type(cause).__module__.startswith("aiohttp")
    else:
        failed = status not in (404, 410)
    return cause if failed else error


def storage_error(error: BaseException, doing: str, where: str, attempts: int = 1) -> DeeplakeError:
    """Our error for one of fsspec or of what lies below it. Its own words are left out: they may quote a signed url."""
    if isinstance(error, DeeplakeError):
        return error
    if isinstance(error, _ShortError):
        return CorruptionError(
            f"{where}: cut, {error.found} bytes came where {error.wanted} were asked for; restore it from a copy"
        )
    if status_of(error) == 416:
        return CorruptionError(f"{where}: cut, it ends before the bytes that were asked for; restore it from a copy")
    if isinstance(error, FileNotFoundError):
        what = "its bucket or folder does not exist" if doing == "write" else "it does not exist"
        return NotFoundError(f"cannot {doing} {where}: {what}")
    if isinstance(error, FileExistsError):
        return StoreError(f"cannot {doing} {where}: another writer made it first; nothing was overwritten")
    if isinstance(error, ImportError):
        return StoreError(
            f"cannot {doing} {where}: {error.name or 'its filesystem'} is not installed; "
            "s3:// needs pip install deeplake-loader[s3], https:// [http], gs:// needs gcsfs, az:// needs adlfs"
        )
    tried = f" after {attempts} attempts" if attempts > 1 else ""
    return StoreError(f"cannot {doing} {where}{tried}: {_reason(error)}")


_HINTS = {
    "RequestTimeTooSkewed": "the clock of this machine differs from the storage's; set it",
    "AuthorizationHeaderMalformed": "the bucket lies in another region",
    "PermanentRedirect": "the bucket lies in another region",
    "IllegalLocationConstraintException": "the bucket lies in another region",
    "InvalidAccessKeyId": "the storage does not know the access key",
    "SignatureDoesNotMatch": "the secret key is not that of the access key",
    "ExpiredToken": "the session's token has expired",
    "InvalidToken": "the session's token is not valid",
}
"""Codes of S3 that say more than their status."""


def _reason(error: BaseException) -> str:
    name, status, code = type(error).__name__, status_of(error), _code(error)
    if code in _HINTS:
        region = "; give its region by AWS_DEFAULT_REGION or client_kwargs" if "region" in _HINTS[code] else ""
        return f"{_HINTS[code]} ({code}){region}; see the environment or storage_options="
    if isinstance(error, PermissionError) or status in (401, 403) or name.endswith("CredentialsError"):
        return f"access was refused ({code or name}); check the credentials in the environment or storage_options="
    if isinstance(error, TimeoutError):
        return "no answer before the deadline; check the network and the endpoint"
    if status is not None:
        return f"the storage answered with status {status}" + (f" ({code})" if code else "")
    if isinstance(error, OSError) and error.errno is not None:
        number = errno.errorcode.get(error.errno, str(error.errno))
        return f"{name} ({number}); check the network and the endpoint"
    return f"{name}; check the network, the endpoint and the url"


def _code(error: BaseException) -> str:
    """S3's word for what went wrong, empty where there is none."""
    seen: BaseException | None = error
    while seen is not None:
        response: Any = getattr(seen, "response", None)
        if isinstance(response, dict):
            found = str(response.get("Error", {}).get("Code", ""))
            return found if found.isalpha() and len(found) < 50 else ""
        seen = seen.__cause__
    return ""
