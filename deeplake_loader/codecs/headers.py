"""Image headers read by hand, because opening a JPEG with Pillow costs ten times the walk over its segments.

Each reader takes the whole file, walks its structure to the end marker, and raises ValueError saying what is wrong.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple


class Header(NamedTuple):
    """Pixels as stored, Pillow's name of their mode, EXIF orientation (1 where none is written)."""

    width: int
    height: int
    mode: str
    orientation: int


_JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_JPEG_PROCESSES = frozenset((0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA))  # the frame headers libjpeg-turbo decodes
_JPEG_SEGMENTS = frozenset((0xC4, 0xCC, 0xDB, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xFE))
_PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

_BRANDS = {
    b"avif": "avif", b"avis": "avif", b"heic": "heic", b"heix": "heic", b"hevc": "heic", b"heim": "heic",
    b"heis": "heic", b"hevm": "heic", b"mif1": "heic", b"msf1": "heic",
}  # fmt: skip
_MAGICS = (
    (b"\xff\xd8\xff", "jpg"), (_PNG_MAGIC, "png"), (b"GIF87a", "gif"), (b"GIF89a", "gif"), (b"BM", "bmp"),
    (b"II*\0", "tif"), (b"MM\0*", "tif"), (b"II+\0", "tif"), (b"MM\0+", "tif"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "jp2"), (b"\xff\x4f\xff\x51", "jp2"),
)  # fmt: skip


def sniff_image(data: bytes | memoryview) -> str | None:
    """The image format's extension by its first bytes ("jpg", "png", "webp", "heic" ...); None for anything else."""
    head = bytes(data[:64])
    for magic, extension in _MAGICS:
        if head.startswith(magic):
            return extension
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp":
        return _sniff_heif(head)
    return None


def _sniff_heif(head: bytes) -> str | None:
    brands = [head[8:12], *(head[i : i + 4] for i in range(16, min(struct.unpack(">I", head[:4])[0], len(head)), 4))]
    kinds = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
    return "avif" if "avif" in kinds else kinds[0] if kinds else None


def read_jpeg(data: bytes) -> Header:
    """Walks the segments up to the scan, then asks for an end-of-image marker behind enough coded data."""
    position, size, orientation = 2, len(data), 1
    width = height = components = process = 0
    while True:
        if position + 4 > size or data[position] != 0xFF:
            raise ValueError(f"JPEG: no segment marker at byte {position} of {size}")
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        length = data[position + 2] << 8 | data[position + 3]
        if length < 2 or position + 2 + length > size:
            raise ValueError(f"JPEG: segment {marker:#04x} at byte {position} is cut short")
        if marker == 0xDA:
            break
        if marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            orientation = read_orientation(data[position + 10 : position + 2 + length])
        elif marker in _JPEG_PROCESSES:
            if length < 8 or width:
                raise ValueError(f"JPEG: frame header at byte {position} is malformed or repeated")
            height, width = data[position + 5] << 8 | data[position + 6], data[position + 7] << 8 | data[position + 8]
            components, process = data[position + 9], marker
        elif marker not in _JPEG_SEGMENTS:
            raise ValueError(
                f"JPEG: marker {marker:#04x} at byte {position} cannot be decoded or does not belong there"
            )
        position += 2 + length
    _check_scan(data, position + 2 + length, width, height, process)
    return Header(width, height, _JPEG_MODES.get(components, f"{components} components"), orientation)


def _check_scan(data: bytes, start: int, width: int, height: int, process: int) -> None:
    if not width or not height:
        raise ValueError("JPEG: no frame header with a size before the scan")
    end = len(data) - 2 if data.endswith(b"\xff\xd9") else data.rfind(b"\xff\xd9", start)
    if end < start:
        raise ValueError("JPEG: no end-of-image marker; the file is cut short")
    # a Huffman-coded block of 8 x 8 pixels takes one bit at the very least (processes C0-C2)
    blocks = (width + 7 >> 3) * (height + 7 >> 3)
    if process <= 0xC2 and (end - start) * 8 < blocks:
        raise ValueError(f"JPEG: {end - start} bytes of coded data cannot hold {width}x{height} pixels")


def read_orientation(tiff: bytes) -> int:
    """The EXIF orientation 1-8 of a TIFF structure; 1 where it holds none or an impossible one."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 10:
        return 1
    start = struct.unpack_from(order + "I", tiff, 4)[0]
    if start + 2 > len(tiff):
        return 1
    count = min(struct.unpack_from(order + "H", tiff, start)[0], (len(tiff) - start - 2) // 12)
    for entry in range(start + 2, start + 2 + count * 12, 12):
        if struct.unpack_from(order + "H", tiff, entry)[0] == 0x0112:
            value: int = struct.unpack_from(order + "H", tiff, entry + 8)[0]
            return value if 1 <= value <= 8 else 1
    return 1


def read_png(data: bytes) -> Header:
    """Walks the chunks to IEND, checking the sums of all but the pixel data."""
    if len(data) < 33 or data[12:16] != b"IHDR" or data[8:12] != b"\0\0\0\r":
        raise ValueError("PNG: the file does not begin with its header chunk")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    if not width or not height or depth not in _PNG_DEPTHS.get(colour, ()):
        raise ValueError(f"PNG: impossible header ({width}x{height}, {depth} bits, colour type {colour})")
    kinds = _walk_png(data)
    if "IDAT" not in kinds:
        raise ValueError("PNG: no pixel data")
    mode = "1" if (colour, depth) == (0, 1) else f"{_PNG_MODES[colour]};16" if depth == 16 else _PNG_MODES[colour]
    return Header(width, height, mode, read_orientation(kinds.get("eXIf", b"")))


def _walk_png(data: bytes) -> dict[str, bytes]:
    position, size, kinds, view = 8, len(data), {}, memoryview(data)
    while position + 12 <= size:
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > size:
            break
        if kind != b"IDAT" and zlib.crc32(view[position + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise ValueError(f"PNG: chunk {kind!r} at byte {position} fails its checksum")
        kinds[kind.decode("latin-1")] = data[position + 8 : end - 4] if kind == b"eXIf" else b""
        if kind == b"IEND":
            return kinds
        position = end
    raise ValueError(f"PNG: no end chunk; the file is cut short at byte {position}")
