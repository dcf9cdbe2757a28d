"""Small pictures of one stored value: an image, the frames of a video side by side, the wave of a sound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deeplake_loader.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from deeplake_loader.codecs import MediaInfo
    from deeplake_loader.rows import Blob

    Array = np.ndarray[Any, np.dtype[np.uint8]]

MAX_SIDE = 4096
_GAP = 2  # pixels between the frames of a strip
_DARK, _WAVE = (24, 24, 28), (110, 190, 250)


def thumbnail(blob: Blob, *, size: int = 160) -> Array:
    """The picture as (h, w, 3) uint8, its longer side ``size`` pixels or what it has where that is less: an image
    upright, the middle frame of a video, the wave of a sound (``size`` wide, half as high).

    Raises:
        InputError: a value that is no image, video or sound; a size outside 8..4096.
        DecodeError, CorruptionError: what is stored cannot be decoded.
    """
    _check(size)
    media = _pictured(blob)
    if media == "audio":
        return _wave(blob, size, max(1, size // 2))
    if media == "image":
        return _image(blob, (size, size))
    frame: Array = _frames(blob, 1, (size, size))[0]
    return frame


def strip(blob: Blob, *, frames: int = 8, height: int = 96) -> Array:
    """A video's frames side by side as (height, w, 3) uint8, evenly spaced over its length; fewer where it has fewer.
    An image or the wave of a sound at that height.

    Raises:
        InputError: a value that is no image, video or sound; frames outside 1..64, a height outside 8..4096.
        DecodeError, CorruptionError: what is stored cannot be decoded.
    """
    import numpy as np

    _check(height)
    if not 1 <= frames <= 64:
        raise InputError(f"frames={frames!r}: expected 1..64 of a video side by side")
    media = _pictured(blob)
    if media == "audio":
        return _wave(blob, min(MAX_SIDE, 4 * height), height)
    if media == "image":
        return _image(blob, (height, MAX_SIDE))
    shown = _frames(blob, frames, (height, MAX_SIDE))
    wide = shown.shape[2] + _GAP
    out = np.full((shown.shape[1], len(shown) * wide - _GAP, 3), _DARK, np.uint8)
    for i, frame in enumerate(shown):
        out[:, i * wide : i * wide + shown.shape[2]] = frame
    return out


def _check(size: object) -> None:
    if not isinstance(size, int) or not 8 <= size <= MAX_SIDE:
        raise InputError(f"a picture of {size!r} pixels: expected 8..{MAX_SIDE}")


def _pictured(blob: Blob) -> str:
    media = blob.info.media
    if media not in ("image", "video", "audio"):
        raise InputError(f"there is no picture of a {blob.type.name} value; images, videos and sounds have one")
    return media


def _image(blob: Blob, box: tuple[int, int]) -> Array:
    from deeplake_loader.decode.transforms import Image

    transform = Image(size=_fitted(blob.info, box), crop="none", layout="HWC")
    return _within(_decoded(blob, transform), box)


def _frames(blob: Blob, count: int, box: tuple[int, int]) -> Array:
    """(T, h, w, 3) of T evenly spaced frames."""
    from deeplake_loader.decode.transforms import Video

    info = blob.info
    count = min(count, info.num_frames or count)
    size = _fitted(info, box)
    decoded = _decoded(blob, Video(num_frames=count, size=size, crop="none", layout="THWC"))
    if size is not None:
        return decoded
    import numpy as np

    return np.stack([_within(frame, box) for frame in decoded])


def _decoded(blob: Blob, transform: Any) -> Array:
    found: Array = blob.array(transform)
    return found


def _fitted(info: MediaInfo, box: tuple[int, int]) -> tuple[int, int] | None:
    """(height, width) inside the box, in the picture's own shape, never larger than it; None where the facts tell no
    size."""
    from deeplake_loader.decode.slots import upright_size

    turned = info.rotation in (90, -90) or (info.orientation or 1) >= 5
    own = upright_size(info, turned)
    if own is None:
        return None
    scale = min(1.0, box[0] / own[0], box[1] / own[1])
    return max(1, round(own[0] * scale)), max(1, round(own[1] * scale))


def _within(pixels: Array, box: tuple[int, int]) -> Array:
    """The picture brought to size after all, where its facts had told none."""
    if pixels.shape[0] <= box[0] and pixels.shape[1] <= box[1]:
        return pixels
    import numpy as np
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((box[1], box[0]))
    return np.asarray(image)


def _wave(blob: Blob, width: int, height: int) -> Array:
    """The lowest and highest sample of each column of pixels, channels mixed."""
    import numpy as np

    from deeplake_loader.decode.transforms import Audio

    out = np.full((height, width, 3), _DARK, np.uint8)
    samples: Any = _decoded(blob, Audio(channels=1))[0]
    if not len(samples):
        return out
    starts = (np.arange(width) * len(samples)) // width
    low, high = np.minimum.reduceat(samples, starts), np.maximum.reduceat(samples, starts)
    top = ((1 - np.clip(high, -1, 1)) / 2 * (height - 1)).round().astype(int)
    bottom = ((1 - np.clip(low, -1, 1)) / 2 * (height - 1)).round().astype(int)
    rows = np.arange(height)[:, None]
    out[(rows >= top) & (rows <= bottom)] = _WAVE
    return out
