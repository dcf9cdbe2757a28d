"""What object storage was asked for: counted by every request, read as one consistent set of numbers."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests and bytes between this process and object storage so far.

    Fields: ``gets``, ``puts``, ``lists``, ``heads``, ``deletes``, requests sent, those that failed or were sent twice
    included (a multipart upload counts its parts and the two requests around them); ``bytes_read`` and
    ``bytes_written``, payload that arrived whole; ``hits``, bytes that readers found in the local cache (each time
    one of them read them, whoever had brought them there; reading ahead and prewarming read nothing);
    ``retries``, requests sent again after a failure, ``hedges``, second requests sent while a slow one still ran;
    ``refetched``, bytes fetched again because a checksum was wrong; ``evicted``, bytes the cache gave up;
    ``passed``, bytes that were read past the cache because it had no room.

    >>> Traffic(gets=3, bytes_read=10) - Traffic(gets=1, bytes_read=4)
    Traffic(gets=2, bytes_read=6)
    """

    gets: int = 0
    puts: int = 0
    lists: int = 0
    heads: int = 0
    deletes: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    hits: int = 0
    retries: int = 0
    hedges: int = 0
    refetched: int = 0
    evicted: int = 0
    passed: int = 0

    def __sub__(self, earlier: Traffic) -> Traffic:
        return Traffic(*(getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)))

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __repr__(self) -> str:
        counted = ((f.name, getattr(self, f.name)) for f in fields(self))
        return f"Traffic({', '.join(f'{name}={count}' for name, count in counted if count)})"


class Counters:
    """Adds up traffic; every thread of a process may. A forked child counts from nothing."""

    def __init__(self) -> None:
        self._pid, self._lock, self._counts = os.getpid(), threading.Lock(), dict.fromkeys(_NAMES, 0)

    def add(self, **counts: int) -> None:
        """Adds these counts, named as the fields of `Traffic`."""
        if os.getpid() != self._pid:  # the parent's lock may have been held at the fork
            self.__init__()  # type: ignore[misc]
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count

    def snapshot(self) -> Traffic:
        """The numbers now."""
        if os.getpid() != self._pid:
            self.__init__()  # type: ignore[misc]
        with self._lock:
            return Traffic(**self._counts)


_NAMES = tuple(f.name for f in fields(Traffic))
