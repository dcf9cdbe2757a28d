"""What is known of one stored value: its bytes, its file extension and the facts measured from it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import Any, Literal

from deeplake_loader.errors import CorruptionError

Media = Literal["image", "video", "audio", "tensor", "bytes"]

MAX_BLOB_BYTES = 4 << 30
"""The largest value of a blob column; one value is held in memory whole."""

MAX_PIXELS = 178_956_970
"""The largest image or video frame, in pixels: what Pillow calls a decompression bomb begins here."""

MAX_DECODED_BYTES = 8 << 30
"""The largest array one item may decode to."""


class BadMedia(Exception):
    """Bytes that cannot be decoded; never leaves the package: callers turn it into an error that names the item."""


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """Facts of one value, measured from its bytes when it was written; None where a fact was not measured.

    ``codec``: "jpeg", "png", "h264", "vp9", "pcm_f32le" ...; ``pixel_format``: the stored pixels ("yuv420p", or
    Pillow's mode names "RGB", "L", "CMYK" for images); ``width``, ``height``: pixels as stored, before ``rotation``
    (video: degrees counterclockwise that a player turns the frame by) or ``orientation`` (images: EXIF, 1-8);
    ``num_frames``: packets that hold a frame to show (samples per channel of audio); ``fps``: frames by duration;
    ``duration``: seconds; ``keyframes``: numbers of the frames decoding can begin at, in showing order; ``gops``: times
    of a video's frames and the bytes of its groups of pictures, packed (`codecs.gops`); ``shape``: of a tensor;
    ``nbytes``: of a stored value, whose length the index holds.

    >>> MediaInfo("tensor", dtype="float16", shape=(4, 64, 64)).to_json()
    '{"media":"tensor","dtype":"float16","shape":[4,64,64]}'
    """

    media: Media
    codec: str | None = None
    pixel_format: str | None = None
    width: int | None = None
    height: int | None = None
    orientation: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    duration: float | None = None
    rotation: int | None = None
    channels: int | None = None
    sample_rate: int | None = None
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    keyframes: tuple[int, ...] | None = None
    gops: str | None = field(default=None, repr=False)
    nbytes: int | None = None

    def to_json(self) -> str:
        """The facts as compact JSON, unknown ones left out."""
        return _to_json(self)

    def describe(self) -> str:
        """The facts in one line, as a handle shows them.

        >>> MediaInfo("video", codec="h264", width=640, height=272, num_frames=250, duration=10.0).describe()
        'h264 640x272 250 frames 10 s'
        """
        parts = [
            self.codec if self.media != "tensor" else self.dtype,
            f"{self.shape}" if self.shape is not None else None,
            f"{self.width}x{self.height}" if self.width is not None else None,
            f"{self.num_frames} frames" if self.media == "video" and self.num_frames is not None else None,
            f"{self.sample_rate} Hz" if self.sample_rate is not None else None,
            f"{self.duration:g} s" if self.duration is not None else None,
            f"{self.nbytes} bytes" if self.nbytes is not None else None,
        ]
        return " ".join(part for part in parts if part) or self.media

    @classmethod
    def from_json(cls, text: str) -> MediaInfo:
        """The facts that ``to_json`` wrote; names that a later version added are left out."""
        try:
            data: dict[str, Any] = json.loads(text)
            known = {name: value for name, value in data.items() if name in _FIELDS}
            for name in ("shape", "keyframes"):
                if name in known:
                    known[name] = tuple(known[name])
            if "gops" in known:
                known["keyframes"] = _keyframes(known["gops"])
            return cls(**known)
        except (ValueError, TypeError, AttributeError) as error:
            raise CorruptionError(f"stored media facts cannot be read: {text[:200]!r} ({error})") from error


_FIELDS = tuple(MediaInfo.__dataclass_fields__)
_facts = attrgetter(*_FIELDS)
_dump = json.JSONEncoder(separators=(",", ":")).encode


@lru_cache(maxsize=1024)  # equal facts come in runs: a column's images are of few sizes
def _to_json(info: MediaInfo) -> str:
    facts = zip(_FIELDS, _facts(info), strict=True)
    kept = {name: value for name, value in facts if value is not None}
    if "gops" in kept:  # which holds the key frames, in a hundredth of the room
        kept.pop("keyframes", None)
    return _dump(kept)


def _keyframes(gops: str) -> tuple[int, ...]:
    from deeplake_loader.codecs.gops import unpack

    return tuple(unpack(gops).keyframes.tolist())


@dataclass(frozen=True, slots=True)
class Encoded:
    """A value as it is stored: its bytes, the extension of its file in the shard, and its facts."""

    data: bytes
    extension: str
    info: MediaInfo

    def __repr__(self) -> str:
        return f"Encoded({len(self.data)} bytes, {self.extension!r}, {self.info!r})"
