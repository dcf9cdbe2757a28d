"""Decoding on the CPU, in the calling thread: simplejpeg and Pillow for images, PyAV for video and audio, npy for
tensors.

Every decoder releases Python's lock, so several items decode at once in threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deeplake_loader.codecs.containers import Source
from deeplake_loader.codecs.info import BadMedia, MediaInfo
from deeplake_loader.codecs.tensors import decode_tensor, tensor_to_torch
from deeplake_loader.decode.audio import audio_output, decode_audio
from deeplake_loader.decode.images import decode_image, image_output
from deeplake_loader.decode.normalize import Normalize, scratch, to_bytes
from deeplake_loader.decode.slots import Array, fill
from deeplake_loader.decode.transforms import Audio, Draw, Image, Tensor, Transform, Video, choose
from deeplake_loader.decode.video import decode_video, video_output
from deeplake_loader.errors import CorruptionError, DecodeError, DimensionError

if TYPE_CHECKING:
    import torch


def decode(
    data: Source,
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
    data: Source,
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
    data: Source, info: MediaInfo, transform: object, out: Array | None, draw: Draw | None, key: str | None
) -> Array:
    chosen = choose(info.media, transform)
    try:
        if isinstance(chosen, Image | Video):
            return _picture(data, info, chosen, out, draw)
        return _other(data, chosen, out, draw)
    except (BadMedia, CorruptionError, DimensionError) as error:
        name = f"{info.media} {key}" if key else f"this {info.media}"
        raise DecodeError(f"{name} cannot be decoded: {error}", key=key) from error
    except MemoryError as error:
        raise DecodeError(
            f"there is no memory to decode {key or info.media}; ask for a smaller size", key=key
        ) from error


def _picture(data: Source, info: MediaInfo, transform: Image | Video, out: Array | None, draw: Draw | None) -> Array:
    step = Normalize.of(transform)
    if step is None:
        return _pixels(data, info, transform, out, draw)
    room = None if out is None else scratch(out.shape)
    return step.apply(_pixels(data, info, to_bytes(transform), room, draw), out)


def _pixels(data: Source, info: MediaInfo, transform: Image | Video, out: Array | None, draw: Draw | None) -> Array:
    if isinstance(transform, Video):
        return decode_video(data, info, transform, out, draw)
    return decode_image(_whole(data), transform, out, draw)


def _other(data: Source, transform: Audio | Tensor | None, out: Array | None, draw: Draw | None) -> Array:
    import numpy as np

    if isinstance(transform, Audio):
        return fill(decode_audio(_whole(data), transform, draw), out)
    if isinstance(transform, Tensor):
        return fill(_tensor(_whole(data), transform), out)
    return fill(np.frombuffer(_whole(data), np.uint8), out)


def _whole(data: Source) -> bytes | memoryview:
    return data if isinstance(data, bytes | memoryview) else data[:]


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
        return _as_asked(image_output(info, transform), transform.dtype)
    if isinstance(transform, Video):
        return _as_asked(video_output(info, transform), transform.dtype)
    if isinstance(transform, Audio):
        return audio_output(info, transform)
    if isinstance(transform, Tensor) and info is not None and info.shape is not None:
        dtype, shape = transform.dtype or info.dtype, _sliced_shape(info.shape, transform)
        return None if dtype is None or dtype == "bfloat16" or shape is None else (dtype, shape)
    return None


def _as_asked(known: tuple[str, tuple[int, ...]] | None, dtype: str) -> tuple[str, tuple[int, ...]] | None:
    return None if known is None else (dtype, known[1])


def _sliced_shape(shape: tuple[int, ...], transform: Tensor) -> tuple[int, ...] | None:
    """The shape that the slice leaves, None where it does not fit: decoding then says so, with the item's name."""
    if transform.index is None:
        return shape
    import numpy as np

    try:
        left: tuple[int, ...] = np.broadcast_to(np.uint8(0), shape)[transform.index].shape
    except IndexError:
        return None
    return left


def _tensor(data: bytes | memoryview, transform: Tensor) -> Array:
    array = decode_tensor(data)
    if transform.index is not None:
        try:
            array = array[transform.index]
        except IndexError as error:
            raise DimensionError(f"its shape is {array.shape}, and slice={transform.slice!r} was asked for") from error
    if transform.dtype is None:
        return array
    if array.dtype.kind == "V":  # bfloat16 is the upper half of a float32
        array = (array.copy(order="C").view("<u2").astype("<u4") << 16).view("<f4")
    return array.astype(transform.dtype)
