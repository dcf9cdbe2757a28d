"""The remote files that batches are read from: what a batch needs is made present at once, and ahead of it.

A stream tells at its start which rows it will read (`expect`): when a page of a segment is missed, the pages of that
segment that later batches want come with it, in one request, so that an epoch asks for every segment once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deeplake_loader.errors import CorruptionError, NotFoundError
from deeplake_loader.extents import Extents
from deeplake_loader.storage.shelves import find_mirror
from deeplake_loader.storage.traffic import Traffic
from deeplake_loader.store import Root

if TYPE_CHECKING:
    from deeplake_loader.storage.mirror import Mirror
    from deeplake_loader.storage.pages import Copy

Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class RemoteFile:
    """An object whose copy is read like a local file; ``fd`` is -1 where it has none."""

    __slots__ = ("_copy", "mirror", "name")

    def __init__(self, url: str, root: Root) -> None:
        self.mirror, self.name = find_mirror(url, root)
        self._copy: Copy | None = None

    def open(self) -> None:
        """Opens the copy, or its successor where it was given up."""
        if self._copy is None or self._copy.given_up:
            self._copy = self.mirror.copy(self.name)

    @property
    def fd(self) -> int:
        return -1 if self._copy is None else self._copy.fd


@dataclass(frozen=True, slots=True)
class Wanted:
    """Stretches of one object."""

    file: RemoteFile
    places: Indices
    starts: Indices
    stops: Indices


class Fetching:
    """Makes the bytes of remote files present; threads may share it."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._lists: dict[tuple[str, str], list[tuple[Indices, Indices]]] = {}
        self._masks: dict[tuple[str, str], Mask] = {}
        self._mirrors: dict[str, Mirror] = {}
        if root.storage is not None:
            mirror = find_mirror(f"{root.storage.url}/", root)[0]
            self._mirrors[mirror.url] = mirror

    @property
    def traffic(self) -> Traffic:
        """What this process asked of these storages so far, for whatever reader."""
        return sum((mirror.traffic for mirror in list(self._mirrors.values())), Traffic())

    def expect(self, extents: Extents) -> None:
        """Takes note that all these blobs will be read, those apart of which only parts may be."""
        for number, path in enumerate(extents.paths):
            if "://" in path:
                chosen = (extents.file == number) & (extents.offset >= 0) & (extents.check >= 0)
                mirror, name = find_mirror(path, self._root)
                starts = extents.offset[chosen]
                self._mirrors[mirror.url] = mirror
                with self._lock:
                    self._lists.setdefault((mirror.url, name), []).append((starts, starts + extents.length[chosen]))
                    self._masks.pop((mirror.url, name), None)

    def make_present(
        self, wanted: Sequence[Wanted], take: Callable[[int, memoryview], None], *, keep_only: bool = False
    ) -> set[int]:
        """Fetches what is missing; bytes that have no place in the cache go to ``take`` with their place. Gives the
        places of those that are lost: their object is gone, or shorter.

        Raises:
            StoreError: the storage is out of reach.
        """
        lost: set[int] = set()
        for mirror, group in _by_mirror(wanted).items():
            self._mirrors[mirror.url] = mirror
            try:
                self._fetch(mirror, group, take, keep_only)
            except (NotFoundError, CorruptionError):
                lost |= self._fetch_singly(mirror, group, take, keep_only)
        return lost

    def _fetch_singly(
        self, mirror: Mirror, group: Sequence[Wanted], take: Callable[[int, memoryview], None], keep_only: bool
    ) -> set[int]:
        lost: set[int] = set()
        for one in group:
            try:
                self._fetch(mirror, [one], take, keep_only)
            except (NotFoundError, CorruptionError):
                lost |= set(one.places.tolist())
        return lost

    def _fetch(
        self, mirror: Mirror, group: Sequence[Wanted], take: Callable[[int, memoryview], None], keep_only: bool
    ) -> None:
        spans = {one.file.name: np.stack((one.starts, one.stops), 1) for one in group}
        expected = {name: mask for name in spans if (mask := self._mask(mirror, name)) is not None}
        fetched = mirror.fetch(spans, expected, keep_only=keep_only)
        if not fetched.bodies:
            return
        for one in group:
            for place, start, stop in zip(one.places.tolist(), one.starts.tolist(), one.stops.tolist(), strict=True):
                found = fetched.find(one.file.name, start, stop)
                if found is not None:
                    take(place, found)

    def _mask(self, mirror: Mirror, name: str) -> Mask | None:
        """The pages of an object that somebody is going to want."""
        from deeplake_loader.storage.pages import PAGE

        key = (mirror.url, name)
        mask = self._masks.get(key)
        if mask is None and key in self._lists:
            with self._lock:
                starts, stops = (np.concatenate(found) for found in zip(*self._lists[key], strict=True))
            ends = np.zeros(-(-mirror.size(name) // PAGE) + 1, np.int64)
            np.add.at(ends, np.minimum(starts // PAGE, len(ends) - 1), 1)
            np.add.at(ends, np.minimum(-(-stops // PAGE), len(ends) - 1), -1)
            mask = self._masks[key] = np.cumsum(ends[:-1]) > 0
        return mask


def _by_mirror(wanted: Sequence[Wanted]) -> dict[Mirror, list[Wanted]]:
    groups: dict[Mirror, list[Wanted]] = {}
    for one in wanted:
        groups.setdefault(one.file.mirror, []).append(one)
    return groups
