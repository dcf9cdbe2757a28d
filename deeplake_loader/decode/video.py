"""Video items decoded on the CPU: which frames, and each into its slot."""

from __future__ import annotations

from deeplake_loader.codecs.gops import unpack
from deeplake_loader.codecs.info import BadMedia, MediaInfo
from deeplake_loader.codecs.video import read_frames, scan_packets
from deeplake_loader.decode.slots import Array, allocate, place, size_of, upright_size
from deeplake_loader.decode.transforms import Draw, Size, Video


def video_output(info: MediaInfo | None, transform: Video) -> tuple[str, tuple[int, ...]] | None:
    size = size_of(transform) or upright_size(info, info.rotation in (90, -90) if info else False)
    frames = len(transform.frame_indices or ()) or transform.num_frames
    if frames is None and info is not None and info.num_frames is not None:
        frames = len(range(0, info.num_frames, transform.stride))
    return None if size is None or frames is None else ("uint8", _video_shape(transform, frames, size))


def _video_shape(transform: Video, frames: int, size: Size) -> tuple[int, ...]:
    return {"TCHW": (frames, 3, *size), "CTHW": (3, frames, *size), "THWC": (frames, *size, 3)}[transform.layout]


def decode_video(
    data: bytes | memoryview, info: MediaInfo, transform: Video, out: Array | None, draw: Draw | None
) -> Array:
    count = info.num_frames if info.num_frames is not None else scan_packets(data).count
    clip = _Clip(transform, transform.frame_numbers(count, draw), out, draw)
    read_frames(data, sorted(clip.places), clip.take, table=unpack(info.gops) if info.gops else None)
    return clip.result()


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
