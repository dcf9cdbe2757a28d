"""Ctrl-C while the database works: Python hears of it only when the statement ends, so a thread stops the statement."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from deeplake_loader.errors import StoreError

if TYPE_CHECKING:
    from deeplake_loader.database import Database


@contextmanager
def stopping_on_interrupt(db: Database) -> Iterator[None]:
    """Lets Ctrl-C end the statement that the main thread waits for in SQLite; psycopg cancels by itself.

    The C handler of a signal writes its number to a socket at once; whoever reads it there need not be the main thread.
    Ctrl-C then raises KeyboardInterrupt as ever, as soon as the statement has come back.
    """
    if db._catalog.dialect != "sqlite" or threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        watcher = threading.Thread(target=_watch, args=(db, reader), name="deeplake-interrupts", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            writer.shutdown(socket.SHUT_WR)  # the watcher reads the end
            watcher.join()


def _watch(db: Database, reader: socket.socket) -> None:
    from sqlite3 import Error

    while numbers := reader.recv(64):
        with suppress(Error, StoreError):  # closed by now: nothing runs
            if signal.SIGINT in numbers:
                db._catalog.connection.interrupt()
