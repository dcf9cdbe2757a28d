"""Stored bytes as a batch holds them: views of the buffer that they were read into, not one copy of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch

Indices = npt.NDArray[np.int64]


class Payloads:
    """The stored bytes of N rows: item i is a read-only memoryview, or None for NULL.

    Making one copies nothing, and the buffer behind it is used again once neither it nor one of its views is held;
    ``bytes(payloads[i])`` is a copy. Equal to any list of equal bytes. A pickle holds the bytes themselves. (It is no
    ``collections.abc.Sequence``: DataLoader takes those apart, down to lists of single bytes.)

    >>> payloads = Payloads(memoryview(b"onetwo"), np.array([0, 3]), np.array([3, 3]))
    >>> len(payloads), bytes(payloads[1]), payloads.tolist()
    (2, b'two', [b'one', b'two'])
    """

    __slots__ = ("_data", "_sizes", "_starts")

    def __init__(self, data: memoryview, starts: Indices, sizes: Indices) -> None:
        self._data, self._starts, self._sizes = data, starts, sizes

    def __len__(self) -> int:
        return len(self._sizes)

    @overload
    def __getitem__(self, place: int) -> memoryview | None: ...
    @overload
    def __getitem__(self, place: slice) -> Payloads: ...
    def __getitem__(self, place: int | slice) -> memoryview | Payloads | None:
        if isinstance(place, slice):
            return Payloads(self._data, self._starts[place], self._sizes[place])
        start, size = int(self._starts[place]), int(self._sizes[place])
        return None if size < 0 else self._data[start : start + size]

    def __iter__(self) -> Iterator[memoryview | None]:
        data = self._data
        for start, size in zip(self._starts.tolist(), self._sizes.tolist(), strict=True):
            yield None if size < 0 else data[start : start + size]

    def take(self, places: Indices) -> Payloads:
        """The items at these places, repeats allowed."""
        return Payloads(self._data, self._starts[places], self._sizes[places])

    def replaced(self, place: int, value: bytes | bytearray | memoryview) -> Payloads:
        """A copy that has these bytes at that place."""
        items: list[bytes | bytearray | memoryview | None] = list(self)
        items[place] = value
        return _packed(items)

    @property
    def nbytes(self) -> int:
        """Bytes of all items."""
        return int(self._sizes[self._sizes > 0].sum())

    def tolist(self) -> list[bytes | None]:
        """A copy of each item's bytes."""
        return [None if view is None else bytes(view) for view in self]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Payloads | list | tuple):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Payloads: {len(self)} items, {self.nbytes} bytes>"

    def __reduce__(self) -> tuple[Any, ...]:
        """One tensor, which DataLoader's workers hand over through shared memory."""
        packed = bytearray().join(view for view in self if view is not None)
        return _unpacked, (torch.frombuffer(packed, dtype=torch.uint8) if packed else None, self._sizes)


def _packed(items: Sequence[bytes | bytearray | memoryview | None]) -> Payloads:
    sizes = np.array([-1 if item is None else len(item) for item in items], np.int64)
    return _laid_out(memoryview(b"".join(item for item in items if item is not None)), sizes)


def _unpacked(packed: torch.Tensor | None, sizes: Indices) -> Payloads:
    return _laid_out(memoryview(b"") if packed is None else packed.numpy().data.toreadonly(), sizes)


def _laid_out(data: memoryview, sizes: Indices) -> Payloads:
    """Items that lie behind one another."""
    lengths = np.maximum(sizes, 0)
    return Payloads(data, np.cumsum(lengths) - lengths, sizes)
