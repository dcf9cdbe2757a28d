"""The pass clock: every process that reads one stream agrees here which epoch, from which position, comes next.

DataLoader copies a stream into its workers, and the copies cannot see each other: without a shared clock a new set of
workers repeats epoch 0 for ever, and workers that live on never hear of ``set_epoch``. The clock is a few hundred bytes
of JSON in an anonymous file, which forked workers inherit and spawned ones are handed; POSIX locks guard it, because
the system drops those when a process dies, where a semaphore would stay taken.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import context, reduction
from typing import Any

from deeplake_loader.stream.schedule import Cursor
from deeplake_loader.stream.shared import anonymous_file

_REMEMBERED = 16
"""Passes kept: a late worker of an abandoned loader must still find its own and not take the next epoch."""

_threads = threading.Lock()  # POSIX locks are per process; held for microseconds, so one serves every clock


def _renew_lock() -> None:
    global _threads
    _threads = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


class Clock:
    """Where the next pass begins, and which workers share a pass that has begun.

    A pickle made while a process is being spawned leads to the same clock; any other copy has a clock of its own.

    >>> clock = Clock()
    >>> clock.begin(), clock.begin(), clock.peek()
    ((0, 0), (1, 0), (2, 0))
    """

    def __init__(self) -> None:
        self._adopt(anonymous_file("clock"))
        self._write({"next": [0, 0], "passes": [], "by_workers": False})

    def _adopt(self, fd: int) -> None:
        self._fd = fd
        weakref.finalize(self, os.close, fd)

    def peek(self) -> Cursor:
        """Where the next pass will begin."""
        with self._locked() as data:
            return data["next"][0], data["next"][1]

    @property
    def by_workers(self) -> bool:
        """Whether the newest pass is read by DataLoader workers, whose position no other process knows."""
        with self._locked() as data:
            return bool(data["by_workers"])

    def set(self, cursor: Cursor) -> None:
        """Makes the next pass begin there."""
        with self._locked() as data:
            data["next"], data["by_workers"] = list(cursor), False

    def begin(self) -> Cursor:
        """Takes the next pass for this process alone; the one after it is the next epoch."""
        with self._locked() as data:
            data["by_workers"] = False
            return _advance(data)

    def join(self, token: int, worker: int, start: Cursor | None = None) -> Cursor:
        """The pass that the workers with this token read: the first to come takes it, its siblings get the same.

        Args:
            token: one number for all workers of a pass. It may come again (a loader draws it from torch's generator,
                which a program may reseed): a worker that has joined already begins a new pass.
            start: where a restored pass began, instead of the clock's next.
        """
        with self._locked() as data:
            for known in data["passes"]:
                if known["token"] == token and worker not in known["workers"]:
                    known["workers"].append(worker)
                    return known["start"][0], known["start"][1]
            if start is not None:
                data["next"] = list(start)
            data["by_workers"] = True
            cursor = _advance(data)
            data["passes"] = [{"token": token, "start": cursor, "workers": [worker]}, *data["passes"]][:_REMEMBERED]
            return cursor

    @contextmanager
    def _locked(self) -> Iterator[dict[str, Any]]:
        """The content; what the block changed of it is written back."""
        with _threads:
            fcntl.lockf(self._fd, fcntl.LOCK_EX)
            try:
                before = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
                data: dict[str, Any] = json.loads(before)
                yield data
                self._write(data)
            finally:
                fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def _write(self, data: dict[str, Any]) -> None:
        text = json.dumps(data).encode()
        os.pwrite(self._fd, text, 0)
        os.ftruncate(self._fd, len(text))

    def __getstate__(self) -> dict[str, Any]:
        if context.get_spawning_popen() is not None:
            return {"handle": reduction.DupFd(self._fd)}
        return {"next": self.peek()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "handle" in state:
            self._adopt(state["handle"].detach())
            return
        self.__init__()  # type: ignore[misc]
        self.set(state["next"])


def _advance(data: dict[str, Any]) -> Cursor:
    epoch, position = data["next"]
    data["next"] = [epoch + 1, 0]
    return epoch, position
