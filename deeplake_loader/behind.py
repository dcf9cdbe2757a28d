"""One job at a time on a thread behind the caller, who goes on meanwhile and waits before it counts on the outcome."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread


class Behind:
    """Runs jobs in order, each on a thread; a job that begins waits for the one before, so two are never in memory.

    After a job failed, ``run`` and ``wait`` raise its error until ``forget``: what came behind it is not done either.

    >>> behind, done = Behind(), []
    >>> behind.run(lambda: done.append(1))
    >>> behind.wait()
    >>> done
    [1]
    """

    __slots__ = ("_error", "_thread")

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def run(self, job: Callable[[], object]) -> None:
        """Begins the job once the one before is done."""
        self.wait()
        self._thread = Thread(target=self._guard, args=(job,), name="write behind", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Returns when the last job is done."""
        if self._thread is not None:
            self._thread.join()  # returns at once in a forked child, which has no such thread
            self._thread = None
        if self._error is not None:
            raise self._error

    def forget(self) -> None:
        """Waits, and lets go of an error."""
        if self._thread is not None:
            self._thread.join()
        self._thread = self._error = None

    def _guard(self, job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:  # raised again where the outcome is asked for
            self._error = error
