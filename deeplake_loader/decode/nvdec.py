"""Which clips the video engine (NVDEC) of a CUDA device decodes: the table of NVIDIA's NVDEC application note 13.0,
narrowed to what DALI hands through (4:2:0 alone, because it asks every chip for NV12 pictures).

A chip is named by its compute capability. What the table lacks is decoded on the CPU, so an unknown newer chip is
treated as the newest one listed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from deeplake_loader.codecs.info import MediaInfo

_Formats = frozenset[tuple[str, int]]
"""(codec, bits per sample), all 4:2:0."""

_VOLTA: _Formats = frozenset(
    {("h264", 8), ("hevc", 8), ("hevc", 10), ("vp8", 8), ("vp9", 8), ("mpeg4", 8)}
)  # fmt: skip
_AV1: _Formats = _VOLTA | {("av1", 8), ("av1", 10)}
_BLACKWELL: _Formats = _AV1 | {("h264", 10)}

_CHIPS: tuple[tuple[tuple[int, int], _Formats], ...] = (
    ((7, 0), _VOLTA),  # Volta, Turing (7.5)
    ((8, 0), _VOLTA),  # GA100
    ((8, 6), _AV1),  # GA10x, Orin (8.7), Ada (8.9)
    ((9, 0), _VOLTA),  # Hopper: as GA100, neither AV1 nor High 10
    ((10, 0), _BLACKWELL),  # and later
)

_PLANAR = re.compile(r"yuvj?(?P<chroma>4\d\d)p(?P<bits>\d+)?(le|be)?")
_NEAREST = {"nv12": ("420", 8), "p010le": ("420", 10)}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a stored picture is sampled: chroma "420", "422", "444" and bits per sample."""

    chroma: str
    bits: int


def sampling(pixel_format: str | None) -> Sampling | None:
    """The sampling of a pixel format, or None for one that is not planar YUV without alpha.

    >>> sampling("yuv420p10le"), sampling("rgb24")
    (Sampling(chroma='420', bits=10), None)
    """
    if pixel_format in _NEAREST:
        return Sampling(*_NEAREST[pixel_format])
    found = _PLANAR.fullmatch(pixel_format or "")
    return Sampling(found["chroma"], int(found["bits"] or 8)) if found else None


def decodes(capability: tuple[int, int], info: MediaInfo) -> bool:
    """Whether the NVDEC of that compute capability decodes the clip.

    False where a fact is missing, and for odd sizes, whose half-size chroma planes the conversion to RGB does not
    cover.

    >>> decodes((9, 0), MediaInfo("video", codec="av1", pixel_format="yuv420p", width=640, height=360))
    False
    """
    format = sampling(info.pixel_format)
    if format is None or format.chroma != "420" or info.codec is None or info.width is None or info.height is None:
        return False
    formats: _Formats = max((chip for chip in _CHIPS if chip[0] <= capability), default=((0, 0), frozenset()))[1]
    return (info.codec, format.bits) in formats and info.width % 2 == 0 and info.height % 2 == 0
