"""A file of which only some blocks are here: what FFmpeg reads when a clip needs a part of a long video."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable

from deeplake_loader.codecs.gops import Range, merge


class SparseFile(io.RawIOBase):
    """A read-only file of ``length`` bytes; blocks that are not here yet are fetched when they are read.

    ``fetch(start, stop)`` gives verified bytes; ``start`` is a multiple of ``block``, ``stop`` one or the length.
    ``fetched``: bytes fetched so far; ``missed``: how many times a read fetched because nothing had announced it.
    """

    def __init__(self, length: int, fetch: Callable[[int, int], bytes], *, block: int) -> None:
        super().__init__()
        self._length, self._fetch, self._block = length, fetch, block
        self._blocks: dict[int, memoryview] = {}
        self._position = 0
        self.fetched = self.missed = 0

    def __len__(self) -> int:
        return self._length

    def announce(self, ranges: Iterable[Range]) -> None:
        """Fetches the blocks that hold these bytes, neighbouring ones in one piece."""
        block = self._block
        wide = merge((start // block * block, min(-(-stop // block) * block, self._length)) for start, stop in ranges)
        for start, stop in wide:
            self._hold(start, stop)

    def _hold(self, start: int, stop: int) -> None:
        data = memoryview(self._fetch(start, stop))
        self.fetched += len(data)
        for place in range(0, len(data), self._block):
            self._blocks[(start + place) // self._block] = data[place : place + self._block]

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._length)
        self._position = start
        pieces = []
        while self._position < stop and (piece := self.read(stop - self._position)):
            pieces.append(piece)
        self._position = 0
        return b"".join(pieces)

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes: no more than the block holds that the position is in."""
        if self._position >= self._length:
            return b""
        number, place = divmod(self._position, self._block)
        if number not in self._blocks:
            self.missed += 1
            self._hold(number * self._block, min((number + 1) * self._block, self._length))
        block = self._blocks[number]
        piece = bytes(block[place:] if size < 0 else block[place : place + size])
        self._position += len(piece)
        return piece

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
