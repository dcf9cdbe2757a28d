"""Reading ahead of a pass: what its next steps need of remote files is brought into the cache before they are read.

The order of an epoch is known, so the steps are asked for once more, on a thread of their own that stays a bounded
number of steps before the consumer. Local streams have no such thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np

from deeplake_loader.stream.loading import Feed
from deeplake_loader.stream.media import Media
from deeplake_loader.stream.schedule import Step

_BYTES = 128 << 20
"""What is fetched before it is needed: 16 segments of 8 MB, as many as are under way at once."""

_MOST_STEPS = 1_000
_WAIT_S = 0.5


class Ahead:
    """The thread; `step` is called once for every batch that was delivered."""

    def __init__(self, steps: Iterator[Step], feeds: Sequence[Feed], *, prefetch: int, row_bytes: float) -> None:
        self._stop, self._gate = threading.Event(), threading.Semaphore(prefetch + 2)
        run = (steps, feeds, row_bytes, self._stop, self._gate)
        self._thread = threading.Thread(target=_run, args=run, name="reading ahead", daemon=True)
        self._thread.start()

    def step(self) -> None:
        """One more step may be fetched."""
        self._gate.release()

    def close(self) -> None:
        """Ends the thread, when what it is fetching has come."""
        self._stop.set()

    def __del__(self) -> None:
        self._stop.set()


def ahead_of(steps: Iterator[Step], feeds: Sequence[Feed], *, prefetch: int) -> Ahead | None:
    """Reading ahead of these steps, of which ``prefetch`` are ready before they are asked for; None where all files are
    local."""
    remote = [feed.reader.expect(extents) for feed in feeds for extents in feed.extents.values()]
    if not any(remote):
        return None
    row_bytes = max(sum(float(e.length.mean()) for e in f.extents.values() if len(e)) for f in feeds)
    return Ahead(steps, feeds, prefetch=prefetch, row_bytes=row_bytes)


def _run(
    steps: Iterator[Step], feeds: Sequence[Feed], row_bytes: float, stop: threading.Event, gate: threading.Semaphore
) -> None:
    begun = False
    for step in steps:
        if not begun:  # how many rows a step has, only the first one tells
            begun = True
            gate.release(1 + int(min(_MOST_STEPS, _BYTES / max(1.0, row_bytes * len(step.rows)))))
        while not stop.is_set() and not gate.acquire(timeout=_WAIT_S):
            continue
        if stop.is_set():
            return
        try:
            _fetch(step, feeds)
        except Exception:  # whoever reads the step meets the same, and says so
            return


def _fetch(step: Step, feeds: Sequence[Feed]) -> None:
    for number, feed in enumerate(feeds):
        rows = step.rows if step.sources is None else step.rows[np.flatnonzero(step.sources == number)]
        media = (column for column in feed.source.columns if isinstance(column, Media))
        feed.reader.prefetch([(feed.extents[column.name], rows) for column in media])
