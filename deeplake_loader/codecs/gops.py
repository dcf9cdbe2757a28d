"""Where the frames of a video file lie: their times, the frames that decoding can begin at, and the bytes of each group
of pictures, so that a few frames are read without the rest of the file.

Packed for the catalog, a table is base64 of zlib of: the byte 1; then seven arrays, each as one byte (its width: 1, 2,
4 or 8), its length (4 bytes) and its signed little-endian differences, the lowest bytes of all first. The arrays: time
base (numerator, denominator), presentation times, key frames, first byte of each span, length of each span, key frames
per span and whether frames may be skipped (0, 1), index ranges (start, stop, start, ...).
"""

from __future__ import annotations

import base64
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

Indices = np.ndarray[Any, np.dtype[np.int64]]
Range = tuple[int, int]

MAX_PACKED = 60_000
"""Characters of a packed table; a longer one gets wider spans (all-intra files), and an hour of frames of jittering
times none at all: such a file is read whole."""

SEEK_GAP = 16
"""Frames that are decoded and dropped rather than sought over: a seek costs about as much as that many frames."""

_WIDTHS = (1, 2, 4, 8)
_MAX_NUMBERS = 1 << 26
_MAX_BYTES = 1 << 28


@dataclass(frozen=True, slots=True, eq=False)
class GopTable:
    """The frames of one video stream in showing order.

    Fields: ``base``, seconds per tick; ``times`` (int64), the presentation time of each frame in ticks, ascending;
    ``keyframes`` (int64), numbers of the frames that decoding can begin at; ``starts``, ``stops`` (int64), the bytes
    from which ``per_span`` groups of pictures decode, none where the file has no index; ``index``, the byte ranges that
    opening the file and seeking in it read; ``skippable``, whether frames that nothing refers to may be left out of
    decoding.
    """

    base: Fraction
    times: Indices
    keyframes: Indices
    starts: Indices
    stops: Indices
    per_span: int
    index: tuple[Range, ...]
    skippable: bool = False

    @property
    def seconds(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """When each frame is shown, from the first one on."""
        seconds: np.ndarray[Any, np.dtype[np.float64]] = (self.times - self.times[0]) * float(self.base)
        return seconds

    def segments(self, wanted: Sequence[int]) -> list[tuple[int, list[int]]]:
        """(frame to start decoding at, frames wanted from there): a new start where a key frame skips more than
        SEEK_GAP. ``wanted``: ascending."""
        return segments(wanted, self.keyframes.tolist())

    def ranges(self, wanted: Sequence[int]) -> list[Range] | None:
        """The bytes that decoding these frames reads, ascending, apart from each other; None: the whole file."""
        if not len(self.starts):
            return None
        keys, found = self.keyframes.tolist(), list(self.index)
        for start, numbers in self.segments(wanted):
            first, last = (max(0, bisect_right(keys, n) - 1) // self.per_span for n in (start, numbers[-1]))
            found.append((int(self.starts[first : last + 1].min()), int(self.stops[first : last + 1].max())))
        return merge(found)


def segments(wanted: Sequence[int], keyframes: Sequence[int]) -> list[tuple[int, list[int]]]:
    """See `GopTable.segments`."""
    found: list[tuple[int, list[int]]] = []
    position = 0
    for number in wanted:
        place = bisect_right(keyframes, number) - 1
        key = keyframes[place] if place >= 0 else 0
        if key - position > SEEK_GAP:
            found.append((key, []))
        elif not found:
            found.append((0, []))
        found[-1][1].append(number)
        position = number + 1
    return found


def merge(ranges: Iterable[Range], *, gap: int = 0) -> list[Range]:
    """The ranges in order; those that overlap, or lie no more than ``gap`` bytes apart, as one.

    >>> merge([(40, 50), (0, 10), (8, 20)])
    [(0, 20), (40, 50)]
    """
    merged: list[Range] = []
    for start, stop in sorted(r for r in ranges if r[0] < r[1]):
        if merged and start <= merged[-1][1] + gap:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return merged


def spans(numbers: Indices, positions: Indices, sizes: Indices, keyframes: Indices) -> tuple[Indices, Indices]:
    """(first bytes, bytes after the last) of each group of pictures.

    ``numbers``: per packet in stored order the frame it holds, -1 for one that is not shown; ``positions``, ``sizes``:
    its bytes. A group is what decoding from its key frame needs for all frames before the next one: frames that are
    shown before that, but stored after it, belong to it.
    """
    count = int(numbers.max()) + 1
    stored = np.empty(count, np.int64)
    stored[numbers[numbers >= 0]] = np.flatnonzero(numbers >= 0)
    firsts = stored[keyframes]
    lasts = np.maximum.reduceat(stored, keyframes)
    ends = positions + sizes
    bounds = [(positions[a : b + 1].min(), ends[a : b + 1].max()) for a, b in zip(firsts, lasts, strict=True)]
    starts, stops = np.array(bounds, np.int64).T
    return starts, stops


def pack(table: GopTable) -> str | None:
    """The table as text of at most MAX_PACKED characters; None where that is not enough."""
    while True:
        arrays = (
            np.array(table.base.as_integer_ratio()), table.times, table.keyframes,
            table.starts, table.stops - table.starts, np.array([table.per_span, table.skippable]),
            np.array(table.index, np.int64).reshape(-1),
        )  # fmt: skip
        text = base64.b64encode(zlib.compress(b"\1" + b"".join(map(_pack_array, arrays)))).decode()
        if len(text) <= MAX_PACKED:
            return text
        if len(table.starts) < 64:
            return None
        table = _widened(table)


def _widened(table: GopTable) -> GopTable:
    """Spans of twice as many groups."""
    pairs = range(0, len(table.starts), 2)
    return GopTable(
        table.base, table.times, table.keyframes, np.minimum.reduceat(table.starts, pairs),
        np.maximum.reduceat(table.stops, pairs), table.per_span * 2, table.index, table.skippable,
    )  # fmt: skip


def _pack_array(values: Indices) -> bytes:
    steps = np.diff(values, prepend=0)
    width = next(w for w in _WIDTHS if not len(steps) or np.abs(steps).max() < 1 << (8 * w - 1))
    planes = steps.astype(f"<i{width}").view(np.uint8).reshape(-1, width).T
    return struct.pack("<BI", width, len(steps)) + planes.tobytes()


@lru_cache(maxsize=64)  # a table is asked for by every clip of its file
def unpack(text: str) -> GopTable:
    """The table that ``pack`` wrote; ValueError for anything else."""
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(text, validate=True), _MAX_BYTES)
        if data[:1] != b"\1":
            raise ValueError(f"a table of version {data[:1].hex() or None}")
        arrays, place = [], 1
        for _ in range(7):
            values, place = _unpack_array(data, place)
            arrays.append(values)
        base, times, keys, starts, lengths, (per_span, skippable), index = arrays
        pairs = zip(index[::2].tolist(), index[1::2].tolist(), strict=True)
        return GopTable(
            Fraction(*base.tolist()), times, keys, starts, starts + lengths, int(per_span), tuple(pairs),
            bool(skippable),
        )  # fmt: skip
    except (zlib.error, struct.error, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"no table of groups of pictures: {error}") from error


def _unpack_array(data: bytes, place: int) -> tuple[Indices, int]:
    width, count = struct.unpack_from("<BI", data, place)
    stop = place + 5 + width * count
    if width not in _WIDTHS or count > _MAX_NUMBERS or stop > len(data):
        raise ValueError("a table cut short")
    planes = np.frombuffer(data[place + 5 : stop], np.uint8).reshape(width, count)
    steps = np.ascontiguousarray(planes.T).view(f"<i{width}").reshape(-1)
    return np.cumsum(steps, dtype=np.int64), stop
