"""Decoding on the CPU, in the calling thread: simplejpeg and Pillow for images, PyAV for video and audio, npy for
tensors.

Every decoder releases Python's lock, so several items decode at once in threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deeplake_loader import kernels
from deeplake_loader.codecs.audio import decode_samples
from deeplake_loader.codecs.images import decode_rgb
from deeplake_loader.codecs.info import BadMedia, MediaInfo
from deeplake_loader.codecs.tensors import decode_tensor, tensor_to_torch
from deeplake_loader.codecs.video import read_frames, scan_packets
from deeplake_loader.decode.transforms import Audio, Draw, Image, Size, Tensor, Transform, Video, choose, crop_box
from deeplake_loader.errors import CorruptionError, DecodeError, DimensionError

if TYPE_CHECKING:
    import numpy as np
    import torch

    Array = np.ndarray[Any, np.dtype[Any]]

MAX_DECODED_BYTES = 8 << 30
"""The largest array one item may decode to."""


def decode(
    data: bytes | memoryview,
    info: MediaInfo,
    transform: Transform | None = None,
    *,
    draw: Draw | None = None,
    key: str | None = None,
) -> Array:
    """The item as a fresh array: image (3, H, W) uint8, video (T, 3, H, W) uint8, audio (C, S) float32, tensor as
    stored (bfloat16 as dtype 'V2', see ``to_torch``), BLOB (n,) uint8.

    ``draw`` gives the random choices; without it nothing is random. Raises DecodeError, with ``key`` in it, for damage,
    missing frames, and an item over MAX_DECODED_BYTES; TypeMismatchError for a transform of another media.
    """
    return _decode(data, info, transform, None, draw, key)


def decode_into(
    data: bytes | memoryview,
    info: MediaInfo,
    transform: Transform | None,
    out: Array,
    *,
    draw: Draw | None = None,
    key: str | None = None,
) -> None:
    """``decode`` into ``out``, a writable array of the shape that ``output`` told; images are resized straight into
    it."""
    _decode(data, info, transform, out, draw, key)


def _decode(
    data: bytes | memoryview, info: MediaInfo, transform: object, out: Array | None, draw: Draw | None, key: str | None
) -> Array:
    import numpy as np

    chosen = choose(info.media, transform)
    try:
        if isinstance(chosen, Image):
            return _image(data, chosen, out, draw)
        if isinstance(chosen, Video):
            return _video(data, info, chosen, out, draw)
        if isinstance(chosen, Audio):
            return _fill(_audio(data, chosen, draw), out)
        if isinstance(chosen, Tensor):
            return _fill(_tensor(data, chosen), out)
        return _fill(np.frombuffer(data, np.uint8), out)
    except (BadMedia, CorruptionError, DimensionError) as error:
        name = f"{info.media} {key}" if key else f"this {info.media}"
        raise DecodeError(f"{name} cannot be decoded: {error}", key=key) from error
    except MemoryError as error:
        raise DecodeError(
            f"there is no memory to decode {key or info.media}; ask for a smaller size", key=key
        ) from error


def to_torch(array: Array) -> torch.Tensor:
    """What ``decode`` gave as a torch tensor: the same memory, except that dtype 'V2' becomes bfloat16."""
    import torch

    if array.dtype.kind == "V" or not array.flags.writeable or not array.flags.c_contiguous:
        return tensor_to_torch(array)
    return torch.from_numpy(array)


def output(info: MediaInfo | None, transform: Transform | None) -> tuple[str, tuple[int, ...]] | None:
    """(dtype name, shape) that the item decodes to, or None where only decoding tells.

    Without ``info``: what every item of the transform's media decodes to, or None where it depends on the item.
    """
    if isinstance(transform, Image):
        return _image_output(info, transform)
    if isinstance(transform, Video):
        return _video_output(info, transform)
    if isinstance(transform, Audio):
        return _audio_output(info, transform)
    if isinstance(transform, Tensor) and info is not None and info.shape is not None:
        dtype = transform.dtype or info.dtype
        return None if dtype is None or dtype == "bfloat16" else (dtype, info.shape)
    return None


def _image_output(info: MediaInfo | None, transform: Image) -> tuple[str, tuple[int, ...]] | None:
    size = _size(transform) or _upright_size(info, (info.orientation or 1) >= 5 if info else False)
    if size is None:
        return None
    channels = 1 if transform.mode == "L" else 3
    return "uint8", (channels, *size) if transform.layout == "CHW" else (*size, channels)


def _video_output(info: MediaInfo | None, transform: Video) -> tuple[str, tuple[int, ...]] | None:
    size = _size(transform) or _upright_size(info, info.rotation in (90, -90) if info else False)
    frames = len(transform.frame_indices or ()) or transform.num_frames
    if frames is None and info is not None and info.num_frames is not None:
        frames = len(range(0, info.num_frames, transform.stride))
    return None if size is None or frames is None else ("uint8", _video_shape(transform, frames, size))


def _audio_output(info: MediaInfo | None, transform: Audio) -> tuple[str, tuple[int, ...]] | None:
    rate = transform.sample_rate or (info.sample_rate if info else None)
    channels = transform.channels or (info.channels if info else None)
    if transform.duration is None or rate is None or channels is None:
        return None
    return "float32", (channels, max(1, round(transform.duration * rate)))


def _size(transform: Image | Video) -> Size | None:
    size = transform.size
    return (size, size) if isinstance(size, int) else size


def _upright_size(info: MediaInfo | None, turned: bool) -> Size | None:
    if info is None or info.width is None or info.height is None:
        return None
    return (info.width, info.height) if turned else (info.height, info.width)


def _video_shape(transform: Video, frames: int, size: Size) -> tuple[int, ...]:
    return {"TCHW": (frames, 3, *size), "CTHW": (3, frames, *size), "THWC": (frames, *size, 3)}[transform.layout]


def _fill(array: Array, out: Array | None) -> Array:
    """The array in ``out``, or as a copy of its own (it may be a view of the stored bytes)."""
    import numpy as np

    if out is None:
        return np.array(array, order="C")
    _check_out(out, array.shape)
    out[...] = array
    return out


def _check_out(out: Array, shape: tuple[int, ...]) -> None:
    if out.shape != shape:
        raise DimensionError(f"it decodes to shape {shape}, the batch has room for {out.shape}")


def _allocate(shape: tuple[int, ...], out: Array | None) -> Array:
    import math

    import numpy as np

    if out is not None:
        _check_out(out, shape)
        return out
    if math.prod(shape) > MAX_DECODED_BYTES:
        raise BadMedia(f"{shape} uint8 is more than {MAX_DECODED_BYTES} bytes; ask for fewer frames or a smaller size")
    return np.empty(shape, np.uint8)


def _image(data: bytes | memoryview, transform: Image, out: Array | None, draw: Draw | None) -> Array:
    pixels = decode_rgb(data)
    if transform.mode == "L":
        pixels = _grey(pixels)
    size = _size(transform) or pixels.shape[:2]
    channels = pixels.shape[2]
    result = _allocate((channels, *size) if transform.layout == "CHW" else (*size, channels), out)
    _place(pixels, result, transform, draw, transform.layout)
    return result


def _grey(pixels: Array) -> Array:
    """Pillow's luma (BT.601 in 16-bit fixed point), (H, W, 1)."""
    import numpy as np

    weights = np.array([19595, 38470, 7471], np.uint32)
    grey: Array = ((pixels @ weights + 0x8000) >> 16).astype(np.uint8)[:, :, None]
    return grey


def _place(pixels: Array, target: Array, transform: Image | Video, draw: Draw | None, layout: Any) -> None:
    """The (H, W, C) picture cropped, mirrored and resized into its slot."""
    import numpy as np

    height, width = pixels.shape[:2]
    view = target.transpose(1, 2, 0) if layout == "CHW" else target
    box, mirrored = crop_box(transform, width, height, (view.shape[0], view.shape[1]), draw)
    if box == (0, 0, width, height) and view.shape == pixels.shape:
        view[...] = pixels[:, ::-1] if mirrored else pixels
        return
    kernels.resize_into(np.ascontiguousarray(pixels), target, box=box, flip=mirrored, layout=layout)


def _video(data: bytes | memoryview, info: MediaInfo, transform: Video, out: Array | None, draw: Draw | None) -> Array:
    count = info.num_frames if info.num_frames is not None else scan_packets(data).count
    clip = _Clip(transform, transform.frame_numbers(count, draw), out, draw)
    read_frames(data, sorted(clip.places), clip.take, keyframes=info.keyframes)
    return clip.result()


class _Clip:
    """The slots of one clip's frames, filled as frames come; the first frame tells the size where none is asked for."""

    def __init__(self, transform: Video, numbers: list[int], out: Array | None, draw: Draw | None) -> None:
        self._transform, self._count, self._out, self._draw = transform, len(numbers), out, draw
        self.places: dict[int, list[int]] = {}
        for place, number in enumerate(numbers):
            self.places.setdefault(number, []).append(place)
        self._slots: Array | None = None
        self._source: tuple[int, ...] | None = None

    def take(self, number: int, pixels: Array) -> None:
        if self._slots is None:
            size = _size(self._transform) or (pixels.shape[0], pixels.shape[1])
            self._slots = _allocate(_video_shape(self._transform, self._count, size), self._out)
            self._source = pixels.shape
        if self._transform.size is None and pixels.shape != self._source:
            raise BadMedia(f"frame {number} is {pixels.shape}, the first {self._source}; give a size")
        first, *repeats = (self._slot(place) for place in self.places[number])
        _place(pixels, first, self._transform, self._draw, "HWC" if self._transform.layout == "THWC" else "CHW")
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


def _audio(data: bytes | memoryview, transform: Audio, draw: Draw | None) -> Array:
    import numpy as np

    samples, rate = decode_samples(data, sample_rate=transform.sample_rate, channels=transform.channels)
    if transform.duration is None:
        return samples
    wanted = max(1, round(transform.duration * rate))
    spare = samples.shape[1] - wanted
    if spare <= 0:
        return np.pad(samples, ((0, 0), (0, -spare)))
    start = spare // 2 if draw is None else int(draw.uniforms(1, "start")[0] * (spare + 1))
    return samples[:, start : start + wanted]


def _tensor(data: bytes | memoryview, transform: Tensor) -> Array:
    import numpy as np

    array = decode_tensor(data)
    if transform.dtype is None:
        return array
    if array.dtype.kind == "V":  # bfloat16 is the upper half of a float32
        array = (np.ascontiguousarray(array).view("<u2").astype("<u4") << 16).view("<f4")
    return array.astype(transform.dtype)
