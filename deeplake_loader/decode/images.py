"""Image items decoded on the CPU, in the calling thread, straight into their slot.

JPEG goes through simplejpeg (libjpeg-turbo), every other format through Pillow; what becomes of orientations, colours,
depths, transparency and animations is one rule, told in ``codecs.images``. A JPEG several times as large as needed
is decoded at a half, quarter or eighth of its size: the inverse cosine transform of each block gives fewer pixels,
which the resize kernel then brings to size.
"""

from __future__ import annotations

import numpy as np

from deeplake_loader.codecs.headers import Header, sniff_image
from deeplake_loader.codecs.images import backwards, decode_jpeg, decode_rgb, read_jpeg_header, upright
from deeplake_loader.codecs.info import MediaInfo
from deeplake_loader.decode.slots import Array, allocate, put, size_of, upright_size
from deeplake_loader.decode.transforms import Box, Draw, Image, Size, crop_box

SHRINKS = ((8, 20.0), (4, 6.0), (2, 3.0))
"""(by how much, from how much larger than needed on): what is left then takes the resize kernel's antialiasing, so that
the result is about 1.6 grey levels at most from the full way, in the mean over photographs; a little sharper (one of
fine texture is up to 7 levels away). libjpeg's other eighths (7, 6, 5 and 3) have no vector code: they take longer than
the full size or as long as the half."""


def image_output(info: MediaInfo | None, transform: Image) -> tuple[str, tuple[int, ...]] | None:
    size = size_of(transform) or upright_size(info, (info.orientation or 1) >= 5 if info else False)
    return None if size is None else ("uint8", _shape(transform, size))


def _shape(transform: Image, size: Size) -> tuple[int, ...]:
    channels = 1 if transform.mode == "L" else 3
    return (channels, *size) if transform.layout == "CHW" else (*size, channels)


def decode_image(data: bytes | memoryview, transform: Image, out: Array | None, draw: Draw | None) -> Array:
    """The image as uint8, in ``out`` if given. Raises BadMedia, DimensionError."""
    if sniff_image(data) == "jpg":
        return _decode_jpeg(bytes(data), transform, out, draw)
    pixels = decode_rgb(data)
    height, width = pixels.shape[:2]
    size = size_of(transform) or (height, width)
    result = allocate(_shape(transform, size), out)
    box, mirrored = crop_box(transform, width, height, size, draw)
    put(_coloured(pixels, transform), result, transform, box, mirrored, transform.layout)
    return result


def _decode_jpeg(data: bytes, transform: Image, out: Array | None, draw: Draw | None) -> Array:
    header = read_jpeg_header(data)
    width, height = header.width, header.height
    if header.orientation >= 5:
        width, height = height, width
    size = size_of(transform) or (height, width)
    result = allocate(_shape(transform, size), out)
    box, mirrored = crop_box(transform, width, height, size, draw)
    pixels = _coloured(decode_jpeg(data, header, shrink(transform, box, size)), transform)
    if _takes_one_pixel(transform):  # of two equally near ones the later, as they lie in the picture
        put(upright(pixels, header.orientation), result, transform, box, mirrored, transform.layout)
        return result
    slot = result.transpose(1, 2, 0) if transform.layout == "CHW" else result
    slot, box = as_stored(slot[:, ::-1] if mirrored else slot, box, (height, width), header.orientation)
    put(pixels, slot, transform, _scaled(box, header, pixels), False, "HWC")
    return result


def _takes_one_pixel(transform: Image) -> bool:
    return transform.interpolation == "nearest" or (transform.interpolation == "area" and not transform.antialias)


def as_stored(slot: Array, box: Box, size: Size, orientation: int) -> tuple[Array, Box]:
    """The (H, W, C) slot and the box of an upright picture of that size, as they lie for its stored pixels: nothing is
    turned but the places that the result is written to."""
    (height, width), (x0, y0, x1, y1) = size, box
    rows, columns = backwards(orientation)
    if rows:
        slot, y0, y1 = slot[::-1], height - y1, height - y0
    if columns:
        slot, x0, x1 = slot[:, ::-1], width - x1, width - x0
    return (slot.swapaxes(0, 1), (y0, x0, y1, x1)) if orientation >= 5 else (slot, (x0, y0, x1, y1))


def _scaled(box: Box, header: Header, pixels: Array) -> Box:
    """The box in the pixels that a shrunk JPEG has, which may end in a part of one."""
    height, width = pixels.shape[:2]
    across, down = width / header.width, height / header.height
    return box[0] * across, box[1] * down, min(box[2] * across, width), min(box[3] * down, height)


def shrink(transform: Image, box: Box, size: Size) -> int:
    """By how much a JPEG is shrunk while it is decoded: 1, 2, 4 or 8."""
    if transform.interpolation == "nearest" or not transform.antialias:
        return 1
    larger = min((box[2] - box[0]) / size[1], (box[3] - box[1]) / size[0])
    return next((factor for factor, least in SHRINKS if larger >= least), 1)


def _coloured(pixels: Array, transform: Image) -> Array:
    return _grey(pixels) if transform.mode == "L" else pixels


def _grey(pixels: Array) -> Array:
    """Pillow's luma (BT.601 in 16-bit fixed point), (H, W, 1)."""
    weights = np.array([19595, 38470, 7471], np.uint32)
    grey: Array = ((pixels @ weights + 0x8000) >> 16).astype(np.uint8)[:, :, None]
    return grey
