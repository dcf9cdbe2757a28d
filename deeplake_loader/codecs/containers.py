"""Video and audio files opened with FFmpeg, which is told the format instead of guessing it.

FFmpeg's guess may be a playlist or a script that opens other files and URLs; only the formats below are ever opened.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, NamedTuple, Protocol

from deeplake_loader.codecs.info import BadMedia


class RandomFile(Protocol):
    """A file whose parts come when they are asked for; ``read`` may give less than was asked."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> bytes: ...
    def read(self, size: int = -1, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...


Source = bytes | memoryview | RandomFile
"""A media file: all its bytes, or a file."""


class Deadline:
    """A time limit that decoding looks at between packets.

    >>> Deadline(None).check()
    """

    __slots__ = ("_end", "_seconds")

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._end = None if seconds is None else monotonic() + seconds

    def check(self) -> None:
        """Raises BadMedia when the time is over."""
        if self._end is not None and monotonic() > self._end:
            raise BadMedia(f"decoding takes longer than {self._seconds:g} s; raise timeout_s or ask for less")


class Format(NamedTuple):
    """FFmpeg's demuxer and the file extension."""

    demuxer: str
    extension: str


_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof")
_MAGICS = (
    (b"FLV\x01", Format("flv", "flv")), (b"OggS", Format("ogg", "ogg")), (b"fLaC", Format("flac", "flac")),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Format("asf", "wmv")), (b"\0\0\x01\xba", Format("mpeg", "mpg")),
    (b"\0\0\x01\xb3", Format("mpegvideo", "m2v")), (b"ID3", Format("mp3", "mp3")), (b"DKIF", Format("ivf", "ivf")),
)  # fmt: skip
_NO_PROBE = {"probesize": "32", "analyzeduration": "0"}
_RIFF = {b"AVI ": Format("avi", "avi"), b"WAVE": Format("wav", "wav")}
_FORM = {b"AIFF": Format("aiff", "aif"), b"AIFC": Format("aiff", "aif")}


def sniff_container(data: Source) -> Format | None:
    """The container by its first bytes; None for what is not opened."""
    head = bytes(data[:512])
    for magic, format in _MAGICS:
        if head.startswith(magic):
            return format
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return Format("matroska", "webm" if b"webm" in head[:64] else "mkv")
    if head[4:8] in _MP4_BOXES:
        return _mp4(head)
    if head[:4] in (b"RIFF", b"RF64"):
        return _RIFF.get(head[8:12])
    return _FORM.get(head[8:12]) if head[:4] == b"FORM" else _sniff_stream(head)


def _mp4(head: bytes) -> Format | None:
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    if brand in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1"):
        return None
    extension = {b"qt  ": "mov", b"M4A ": "m4a", b"M4B ": "m4a"}.get(
        brand, "3gp" if brand.startswith(b"3gp") else "mp4"
    )
    return Format("mov", extension)


def _sniff_stream(head: bytes) -> Format | None:
    if len(head) > 376 and head[0] == head[188] == head[376] == 0x47:
        return Format("mpegts", "ts")
    if head[:1] == b"\xff" and len(head) > 2 and head[1] & 0xE0 == 0xE0:
        return Format("aac", "aac") if head[1] & 0x06 == 0 else Format("mp3", "mp3")
    return None


@contextmanager
def open_container(data: Source, *, quick: bool = False) -> Iterator[Any]:
    """An open PyAV input container; whatever decoding raises inside comes out as BadMedia.

    ``quick``: no packets are looked at before the first one is asked for, where the container itself says what it
    holds; pixel formats and rates may then be unknown until a frame is decoded.
    """
    import av

    format = sniff_container(data)
    if format is None:
        raise BadMedia(f"{len(data)} bytes of no known container")
    if format.demuxer == "matroska":
        _check_matroska(data)
    options = _NO_PROBE if quick and format.demuxer in ("mov", "matroska") else {}
    file = io.BytesIO(data) if isinstance(data, bytes | memoryview) else data
    file.seek(0)
    try:
        with av.open(file, format=format.demuxer, metadata_errors="ignore", options=options) as container:
            yield container
    except BadMedia:
        raise
    except (av.error.FFmpegError, UnicodeDecodeError, ValueError, IndexError, OverflowError, OSError) as error:
        raise BadMedia(reason(error)) from error


def _check_matroska(data: Source) -> None:
    """Raises BadMedia where the segment's declared size goes beyond the file: FFmpeg plays such a file without a
    word."""
    head = bytes(data[:256])
    segment = head.find(b"\x18\x53\x80\x67")
    if segment < 0 or segment + 12 > len(head) or not head[segment + 4]:
        return
    width = 9 - head[segment + 4].bit_length()
    size = int.from_bytes(head[segment + 4 : segment + 4 + width]) & (1 << 7 * width) - 1
    end = segment + 4 + width + size
    if size != (1 << 7 * width) - 1 and end > len(data):  # all ones: a live recording of unknown size
        raise BadMedia(f"the file is cut short: {len(data)} of {end} bytes")


def reason(error: BaseException) -> str:
    """What FFmpeg says, without its error number and the place where it keeps the bytes."""
    text = re.sub(r"\[Errno -?\d+\] ?|; last error log: .*|: '[^']*'$", "", str(error)).strip()
    return f"{error.__class__.__name__}: {text}" if text else error.__class__.__name__
