"""The room that a decoded item goes into, its own array or its place in a batch, and how pictures come into it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from deeplake_loader import kernels
from deeplake_loader.codecs.info import MAX_DECODED_BYTES, BadMedia, MediaInfo
from deeplake_loader.decode.transforms import Box, Draw, Image, Size, Video, crop_box
from deeplake_loader.errors import DimensionError

Array = np.ndarray[Any, np.dtype[Any]]


def size_of(transform: Image | Video) -> Size | None:
    size = transform.size
    return (size, size) if isinstance(size, int) else size


def upright_size(info: MediaInfo | None, turned: bool) -> Size | None:
    if info is None or info.width is None or info.height is None:
        return None
    return (info.width, info.height) if turned else (info.height, info.width)


def fill(array: Array, out: Array | None) -> Array:
    """The array in ``out``, or as a copy of its own (it may be a view of the stored bytes)."""
    if out is None:
        return np.array(array, order="C")
    check_out(out, array.shape)
    out[...] = array
    return out


def check_out(out: Array, shape: tuple[int, ...]) -> None:
    if out.shape != shape:
        raise DimensionError(f"it decodes to shape {shape}, the batch has room for {out.shape}")


def allocate(shape: tuple[int, ...], out: Array | None) -> Array:
    if out is not None:
        check_out(out, shape)
        return out
    if math.prod(shape) > MAX_DECODED_BYTES:
        raise BadMedia(f"{shape} uint8 is more than {MAX_DECODED_BYTES} bytes; ask for fewer frames or a smaller size")
    return np.empty(shape, np.uint8)


def place(pixels: Array, target: Array, transform: Image | Video, draw: Draw | None, layout: Any) -> None:
    """The (H, W, C) picture cropped, mirrored and resized into its slot."""
    height, width = pixels.shape[:2]
    size = target.shape[1:] if layout == "CHW" else target.shape[:2]
    box, mirrored = crop_box(transform, width, height, (size[0], size[1]), draw)
    put(pixels, target, transform, box, mirrored, layout)


def put(pixels: Array, target: Array, transform: Image | Video, box: Box, mirrored: bool, layout: Any) -> None:
    """The picture's box, which lies in it, mirrored if asked and resized into the slot."""
    height, width = pixels.shape[:2]
    view = target.transpose(1, 2, 0) if layout == "CHW" else target
    if box == (0, 0, width, height) and view.shape == pixels.shape:
        view[...] = pixels[:, ::-1] if mirrored else pixels
        return
    kernels.resize_into(
        np.ascontiguousarray(pixels), target, box=box, flip=mirrored, layout=layout,
        interpolation=transform.interpolation, antialias=transform.antialias,
    )  # fmt: skip
