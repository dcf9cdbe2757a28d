"""A remote object as memory: its copy, mapped; parts are loaded before they are looked at."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from deeplake_loader.storage.mirror import Mirror
from deeplake_loader.storage.objects import Span
from deeplake_loader.storage.pages import PAGE, SEGMENT, Spans
from deeplake_loader.store import Root


class Mapped:
    """The bytes of one object, of which only those that were loaded mean anything.

    ``memory`` is a private map of the local copy, so what cannot be kept there (no room, a full disk) is put into it
    all the same; without any copy it is memory alone.
    """

    def __init__(self, mirror: Mirror, name: str, size: int) -> None:
        self._mirror, self._name, self._touched = mirror, name, set[int]()
        mirror.learn(name, size)
        self._copy = mirror.copy(name)  # held: a copy that is given up meanwhile is still this one
        if self._copy is None:
            self.memory = mmap.mmap(-1, size)
        else:
            self.memory = mmap.mmap(self._copy.fd, size, access=mmap.ACCESS_COPY)

    def load(self, spans: Sequence[Span]) -> None:
        """Makes these bytes present.

        Raises:
            NotFoundError, CorruptionError, StoreError: they cannot be had.
        """
        wanted = np.array(spans, np.int64).reshape(-1, 2)
        fetched = self._mirror.fetch({self._name: wanted}, self._expected(wanted))
        for start, body in fetched.bodies.get(self._name, ()):
            self.memory[start : start + len(body)] = body
        if self._copy is not None and self._copy.given_up:  # fetched into its successor
            for start, stop in spans:
                self.memory[start:stop] = self._mirror.read(self._name, start, stop)

    def _expected(self, wanted: Spans) -> dict[str, npt.NDArray[np.bool_]]:
        """The pages of segments that are looked at for the second time: a few rows are fetched alone, a search or an
        epoch does not ask for every MB."""
        mask = np.zeros(-(-len(self.memory) // PAGE), np.bool_)
        for first, last in (wanted // SEGMENT).tolist():
            for segment in range(first, last + 1):
                if segment in self._touched:
                    mask[segment * SEGMENT // PAGE : (segment + 1) * SEGMENT // PAGE] = True
                self._touched.add(segment)
        return {self._name: mask}

    def reload(self, start: int, stop: int) -> None:
        """The same after their checksum was wrong: fetched again."""
        self.memory[start:stop] = self._mirror.read(self._name, start, stop, fresh=True)


def open_mapped(root: Root, url: str, size: int) -> Mapped | None:
    """The object of a store's file; None for a local file, and for one that is still being written here."""
    mirror = root.storage
    if not isinstance(mirror, Mirror) or mirror.is_ours(url):
        return None
    os.makedirs(os.path.dirname(mirror.path(url)), exist_ok=True)
    return Mapped(mirror, url, size)
