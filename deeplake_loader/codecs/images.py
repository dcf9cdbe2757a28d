"""IMAGE values: files kept byte for byte once their structure holds, arrays and Pillow images written as PNG or JPEG,
and the one rule by which any of them becomes RGB.

That rule: the first frame; EXIF orientation applied; alpha dropped, not blended; 16-bit grey divided by 257 and
16-bit colour by its upper byte; CMYK, LAB,
YCbCr, palettes and 1-bit as Pillow converts them; colour profiles ignored. 32-bit integer and float pixels have no
defined range and are refused (they are TENSORs).
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from deeplake_loader.codecs.headers import Header, read_jpeg, read_png, sniff_image
from deeplake_loader.codecs.info import MAX_PIXELS, BadMedia, Encoded, MediaInfo
from deeplake_loader.codecs.sources import describe, read_source, to_array
from deeplake_loader.errors import DimensionError, InputError, MediaError, TypeMismatchError
from deeplake_loader.types import ColumnType

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image as Pillow

    Array = np.ndarray[Any, np.dtype[Any]]

Validate = Literal["structure", "decode", "none"]

# Pillow's plugins that are let near a file: no PostScript (it starts a program), no rare formats of the 1990s
_FORMATS = {
    "jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF", "jp2": "JPEG2000",
    "avif": "AVIF",
}  # fmt: skip
_CODECS = {"jpg": "jpeg", "tif": "tiff", "jp2": "jpeg2000"}
_ENCODERS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


def encode_image(type: ColumnType, value: object, where: str, *, validate: Validate) -> Encoded:
    """The image as it is stored: bytes and files untouched, arrays and Pillow images as ``IMAGE(codec=...,
    quality=...)`` says (default PNG, lossless)."""
    data = read_source(value, where)
    if data is None:
        return _encode_pixels(type, _to_pillow(type, value, where), where)
    extension = sniff_image(data)
    if extension not in _FORMATS:
        raise MediaError(f"{where} expects {type}, got {len(data)} bytes that are {_what(extension)}")
    if validate == "none":
        return Encoded(data, extension, MediaInfo("image", codec=_CODECS.get(extension, extension)))
    try:
        header = read_header(data, extension)
        if validate == "decode":
            _check_pixels_decode(data, extension, header)
    except BadMedia as error:
        raise MediaError(
            f"{where} expects {type}, got {len(data)} bytes that no image can be read from: {error}"
        ) from error
    return Encoded(data, extension, image_info(header, extension))


def _what(extension: str | None) -> str:
    if extension == "heic":
        return "a HEIC image, which cannot be decoded here; convert it to JPEG, AVIF or PNG"
    return f"no image of a known format ({', '.join(_FORMATS)})"


@lru_cache(maxsize=1024)  # the images of a column are of few sizes
def image_info(header: Header, extension: str) -> MediaInfo:
    """The facts of an image file with this header."""
    width, height, mode, orientation = header
    return MediaInfo(
        "image",
        _CODECS.get(extension, extension),
        mode,
        width,
        height,
        orientation if orientation > 1 else None,
    )


def read_header(data: bytes, extension: str) -> Header:
    """Size, mode and orientation, after the structure was checked: JPEG and PNG by a walk to their end marker, WebP by
    its length, the other formats by decoding. Raises BadMedia."""
    try:
        header = read_jpeg(data) if extension == "jpg" else read_png(data) if extension == "png" else None
    except (ValueError, IndexError) as error:
        raise BadMedia(str(error)) from error
    if header is not None:
        _check_pixels(header.width, header.height)
        if extension == "png":  # Pillow's own limits (compressed text) would refuse it at every read
            open_pillow(data, extension)
        elif header.mode not in ("L", "RGB", "CMYK"):
            raise BadMedia(f"JPEG of {header.mode}; only grey, RGB and CMYK can be decoded")
        return header
    if extension == "webp" and int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise BadMedia(
            f"WebP: the header tells of {int.from_bytes(data[4:8], 'little') + 8} bytes; the file is cut short"
        )
    image = open_pillow(data, extension)
    mode = image.mode
    if extension != "webp":
        _pillow_rgb(image)
    # asked after loading, because Pillow turns a TIFF upright while it loads
    orientation = image.getexif().get(0x0112, 1)
    return Header(image.width, image.height, mode, orientation if orientation in range(1, 9) else 1)


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadMedia(f"{width}x{height} pixels are more than the limit of {MAX_PIXELS}")


def open_pillow(data: bytes | memoryview, extension: str) -> Pillow.Image:
    """The file opened (header only) by the one Pillow plugin its first bytes call for. Raises BadMedia."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=(_FORMATS[extension],))
    except (
        Exception
    ) as error:  # plugins raise OSError, ValueError, TypeError, SyntaxError, bomb errors ... on damaged files
        raise BadMedia(_reason(error)) from error
    _check_pixels(image.width, image.height)
    return image


def _reason(error: BaseException) -> str:
    import re

    text = re.sub(r" ?<_io\.BytesIO object at 0x[0-9a-f]+>", "", str(error)).strip()
    return f"{error.__class__.__name__}: {text}" if text else error.__class__.__name__


def decode_rgb(data: bytes | memoryview, extension: str | None = None) -> Array:
    """(height, width, 3) uint8, upright, by the rule above. Raises BadMedia, also for damage a decoder only warns
    of."""
    extension = extension or sniff_image(data)
    if extension not in _FORMATS:
        raise BadMedia(f"{len(data)} bytes that are {_what(extension)}")
    if extension == "jpg":
        data = bytes(data)
        header = read_jpeg_header(data)
        return upright(decode_jpeg(data, header), header.orientation)
    image = open_pillow(data, extension)
    pixels = _pillow_rgb(image)
    return upright(pixels, image.getexif().get(0x0112, 1))


def read_jpeg_header(data: bytes) -> Header:
    """A JPEG's header, its structure walked to the end marker, its size within the limit. Raises BadMedia."""
    try:
        header = read_jpeg(data)
    except (ValueError, IndexError) as error:
        raise BadMedia(str(error)) from error
    _check_pixels(header.width, header.height)
    return header


def decode_jpeg(data: bytes, header: Header, shrink: int = 1) -> Array:
    """The JPEG as it lies in the file, not turned upright; its sides divided by ``shrink`` (1, 2, 4 or 8) and rounded
    up while it is decoded, which saves a quarter to a third of the work; CMYK comes in full. Raises BadMedia."""
    return _jpeg_pixels(data, header, shrink=shrink)


def _check_pixels_decode(data: bytes, extension: str, header: Header) -> None:
    """Raises BadMedia unless every pixel decodes. A JPEG is drawn at an eighth of its size: every coded bit is read all
    the same, for 40 % of the time."""
    if extension == "jpg":
        _jpeg_pixels(data, header, shrink=8)
    else:
        decode_rgb(data, extension)


def _jpeg_pixels(data: bytes, header: Header, *, shrink: int) -> Array:
    """In full equal to Pillow's pixels, but damage that libjpeg only warns of (missing data shown as grey) is an
    error."""
    try:
        pixels = _simplejpeg(data, header, strict=True, shrink=shrink)
    except BadMedia as error:
        if "extraneous bytes before marker 0xd9" not in str(error):  # padding behind complete pixels
            raise
        pixels = _simplejpeg(data, header, strict=False, shrink=shrink)
    return _pillow_rgb(open_pillow(data, "jpg")) if header.mode == "CMYK" else pixels


def _simplejpeg(data: bytes, header: Header, *, strict: bool, shrink: int) -> Array:
    import simplejpeg

    # libjpeg's smallest scale that is not below these; 0 is the full size
    height, width = (-(-side // shrink) if shrink > 1 else 0 for side in (header.height, header.width))
    colours = "CMYK" if header.mode == "CMYK" else "RGB"
    try:
        pixels: Array = simplejpeg.decode_jpeg(data, colours, strict=strict, min_height=height, min_width=width)
    except (ValueError, RuntimeError, OSError) as error:
        raise BadMedia(f"JPEG: {error}") from error
    return pixels


def _pillow_rgb(image: Pillow.Image) -> Array:
    try:
        return _to_rgb(image)
    except Exception as error:
        raise BadMedia(_reason(error)) from error


def _to_rgb(image: Pillow.Image) -> Array:
    import numpy as np

    if image.mode.startswith("I;16"):
        samples = np.asarray(image).astype(np.uint32)
        return np.repeat(((samples + 128) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("32-bit integer or float pixels have no defined range; store them in a TENSOR column")
    return np.asarray(_lab_to_rgb(image) if image.mode == "LAB" else image.convert("RGB"))


def _lab_to_rgb(image: Pillow.Image) -> Pillow.Image:
    from PIL import ImageCms

    try:
        converted = ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except ImageCms.PyCMSError as error:
        raise ValueError(str(error)) from error
    if converted is None:
        raise ValueError("the LAB pixels could not be converted")
    return converted


def upright(pixels: Array, orientation: int) -> Array:
    """The pixels turned and mirrored as EXIF orientation 1-8 asks; (height, width, channels), contiguous."""
    import numpy as np

    if orientation not in range(2, 9):
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows, columns = backwards(orientation)
    return np.ascontiguousarray(pixels[:: -1 if rows else 1, :: -1 if columns else 1])


def backwards(orientation: int) -> tuple[bool, bool]:
    """Whether an image of that EXIF orientation, from 5 on after its sides are exchanged, stands upright with its rows
    and with its columns in reverse."""
    return orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)


def _to_pillow(type: ColumnType, value: object, where: str) -> Pillow.Image:
    from PIL import Image

    if isinstance(value, Image.Image):
        return _plain(type, value, where)
    array = to_array(value, where)
    if array is None:
        raise TypeMismatchError(
            f"{where} expects {type}, got {describe(value)}; "
            "pass the file's bytes or path, a Pillow image, or a uint8 array"
        )
    pixels = check_pixels(array, type, value, where)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _plain(type: ColumnType, image: Pillow.Image, where: str) -> Pillow.Image:
    """The image upright (what it was opened from may say how to turn it) and in a mode that PNG, JPEG and WebP can
    hold."""
    from PIL import Image, ImageOps

    try:
        image = ImageOps.exif_transpose(image)
        if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA") or image.mode.startswith("I;16"):
            return image
        return Image.fromarray(_to_rgb(image))
    except Exception as error:
        raise MediaError(f"{where} expects {type}, got a Pillow image that cannot be read: {_reason(error)}") from error


def check_pixels(array: Array, type: ColumnType, value: object, where: str) -> Array:
    """The array as (height, width, channels) uint8: (H, W), (H, W, 1|3|4), or (1|3|4, H, W) where the last is none of
    these."""
    import numpy as np

    if array.dtype != np.uint8:
        raise TypeMismatchError(
            f"{where} expects {type} of uint8 pixels, got {describe(value)}; convert: (x * 255).round().astype('uint8')"
        )
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        raise DimensionError(
            f"{where} expects {type} as (H, W), (H, W, 3), (H, W, 1), (H, W, 4) or (3, H, W), got {describe(value)}"
        )
    return np.ascontiguousarray(array)


def check_options(type: ColumnType, where: str) -> None:
    """Raises InputError for an IMAGE column by whose options no array could be encoded."""
    _settings(type, where)


def _settings(type: ColumnType, where: str) -> tuple[str, dict[str, Any]]:
    """(codec, options for Pillow) that the column asks for."""
    codec = str(type.option("codec") or "png").lower().replace("jpg", "jpeg")
    if codec not in _ENCODERS:
        raise InputError(f"{where}: {type} asks for codec {codec!r}; arrays are written as {', '.join(_ENCODERS)}")
    type.refuse_other_options(("codec", "quality"), where)
    quality = _quality(type, where)
    return codec, {"compress_level": 3} if codec == "png" else {"quality": quality}


def _encode_pixels(type: ColumnType, image: Pillow.Image, where: str) -> Encoded:
    codec, options = _settings(type, where)
    if image.width * image.height > MAX_PIXELS:
        raise MediaError(f"{where}: {image.width}x{image.height} pixels are more than the limit of {MAX_PIXELS}")
    from PIL import Image

    if codec == "jpeg" and image.mode not in ("L", "RGB"):
        image = Image.fromarray(_to_rgb(image))
    file = io.BytesIO()
    try:
        image.save(file, _ENCODERS[codec], **options)
    except Exception as error:
        raise MediaError(
            f"{where}: the image of mode {image.mode} cannot be written as {codec}: {_reason(error)}"
        ) from error
    extension = "jpg" if codec == "jpeg" else codec
    return Encoded(file.getvalue(), extension, image_info(Header(image.width, image.height, image.mode, 1), extension))


def _quality(type: ColumnType, where: str) -> int:
    quality = type.option("quality")
    if quality is None:
        return 95
    if not isinstance(quality, int) or not 1 <= quality <= 100:
        raise InputError(f"{where}: {type} asks for quality {quality!r}; it must be 1..100")
    return quality
