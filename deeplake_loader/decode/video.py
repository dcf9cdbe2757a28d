"""Video items decoded on the CPU: which frames, which bytes hold them, and each into its slot."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from deeplake_loader.codecs.containers import Source
from deeplake_loader.codecs.gops import GopTable, Range, merge, unpack
from deeplake_loader.codecs.info import BadMedia, MediaInfo
from deeplake_loader.codecs.sparse import SparseFile
from deeplake_loader.codecs.video import read_frames, scan_packets
from deeplake_loader.decode.slots import Array, allocate, place, size_of, upright_size
from deeplake_loader.decode.transforms import Draw, Size, Video
from deeplake_loader.errors import DimensionError

_MIN_SPARSE, _BLOCK = 4 << 20, 1 << 20  # what has a checksum for each block, and that block
_MAX_PART = 0.8
"""A clip that needs more than this share of its file reads it whole: one long read costs less than many."""


def video_output(info: MediaInfo | None, transform: Video) -> tuple[str, tuple[int, ...]] | None:
    """What `decode.cpu.output` says of a clip."""
    if transform.stream:
        info = None
    size = size_of(transform) or upright_size(info, info.rotation in (90, -90) if info else False)
    frames = transform.fixed_count
    if frames is None and not transform.is_timed and info is not None and info.num_frames is not None:
        frames = len(range(0, info.num_frames, transform.stride))
    return None if size is None or frames is None else ("uint8", _video_shape(transform, frames, size))


def _video_shape(transform: Video, frames: int, size: Size) -> tuple[int, ...]:
    return {"TCHW": (frames, 3, *size), "CTHW": (3, frames, *size), "THWC": (frames, *size, 3)}[transform.layout]


def chosen_frames(info: MediaInfo, transform: Video, draw: Draw | None) -> list[int] | None:
    """The numbers of the frames that make the clip, by the facts recorded at insert; None where they do not tell.

    Raises DimensionError where the clip lacks frames that are asked for.
    """
    if transform.stream or info.num_frames is None:
        return None
    if not transform.is_timed:
        return transform.frame_numbers(info.num_frames, draw)
    table = unpack(info.gops) if info.gops else None
    return None if table is None else _timed_frames(transform, info.num_frames, table, info.duration, draw)


def needed_ranges(info: MediaInfo, transform: Video, draw: Draw | None, length: int) -> list[Range] | None:
    """The bytes of a file of ``length`` that decoding the clip reads; None where the whole file is as well read."""
    table = unpack(info.gops) if info.gops and not transform.stream else None
    numbers = None if table is None else chosen_frames(info, transform, draw)
    ranges = None if table is None or numbers is None else table.ranges(sorted(set(numbers)))
    if ranges is None:
        return None
    blocks = merge((start // _BLOCK, -(-stop // _BLOCK)) for start, stop in ranges)
    return None if sum(b - a for a, b in blocks) * _BLOCK > _MAX_PART * length else ranges


class Parts(Protocol):
    """What `deeplake_loader.blobs.BlobReader` does for clips."""

    def open_parts(self, address: int) -> SparseFile | None: ...


def open_clip(
    blobs: Parts, address: int, info: MediaInfo, transform: object, draw: Draw | None = None
) -> SparseFile | None:
    """The stored video with the parts that the clip needs read and verified; None where it is read whole.

    Raises CorruptionError: one of those parts is damaged.
    """
    if not isinstance(transform, Video) or info.gops is None or (info.nbytes or 0) < _MIN_SPARSE:
        return None
    try:
        ranges = needed_ranges(info, transform, draw, info.nbytes or 0)
    except DimensionError:  # decoding says what is wrong, with the item's name
        return None
    file = None if ranges is None else blobs.open_parts(address)
    if file is not None and ranges is not None:
        file.announce(ranges)
    return file


def decode_video(data: Source, info: MediaInfo, transform: Video, out: Array | None, draw: Draw | None) -> Array:
    """See `decode.cpu.decode`."""
    numbers = chosen_frames(info, transform, draw)
    table = unpack(info.gops) if info.gops and not transform.stream else None
    if numbers is None:
        packets = scan_packets(data, transform.stream)
        table, length = packets.table, packets.duration
        numbers = _timed_frames(transform, packets.count, table, length, draw)
    clip = _Clip(transform, numbers, out, draw)
    wanted = sorted(clip.places)
    read_frames(data, wanted, clip.take, table=table, stream=transform.stream, timeout_s=transform.timeout_s)
    return clip.result()


def _timed_frames(
    transform: Video, count: int, table: GopTable | None, length: float | None, draw: Draw | None
) -> list[int]:
    """Without presentation times the frames are taken as evenly spaced."""
    if not transform.is_timed or not length:
        return transform.frame_numbers(count, draw)
    times: Array = np.arange(count) * (length / count) if table is None else table.seconds
    return transform.frame_numbers(count, draw, times, length)


class _Clip:
    """The slots of one clip's frames, filled as frames come; the first frame tells the size where none is asked for."""

    def __init__(self, transform: Video, numbers: list[int], out: Array | None, draw: Draw | None) -> None:
        self._transform, self._count, self._out, self._draw = transform, len(numbers), out, draw
        self.places: dict[int, list[int]] = {}
        for slot, number in enumerate(numbers):
            self.places.setdefault(number, []).append(slot)
        self._slots: Array | None = None
        self._source: tuple[int, ...] | None = None

    def take(self, number: int, pixels: Array) -> None:
        if self._slots is None:
            size = size_of(self._transform) or (pixels.shape[0], pixels.shape[1])
            self._slots = allocate(_video_shape(self._transform, self._count, size), self._out)
            self._source = pixels.shape
        if self._transform.size is None and pixels.shape != self._source:
            raise BadMedia(f"frame {number} is {pixels.shape}, the first {self._source}; give a size")
        first, *repeats = (self._slot(i) for i in self.places[number])
        place(pixels, first, self._transform, self._draw, "HWC" if self._transform.layout == "THWC" else "CHW")
        for slot in repeats:
            slot[...] = first

    def _slot(self, place: int) -> Array:
        if self._slots is None:
            raise BadMedia("no frame was decoded")
        slot: Array = self._slots[:, place] if self._transform.layout == "CTHW" else self._slots[place]
        return slot

    def result(self) -> Array:
        if self._slots is None:
            raise BadMedia("no frame was decoded")
        return self._slots
