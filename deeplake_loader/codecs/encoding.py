"""VIDEO values given as frames: encoded by PyAV into a file whose frames are evenly timed and whose colours are tagged.

H.264 and HEVC store 4:2:0 colour where both sides are even, else 4:4:4, so that the size read back is the size given.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from deeplake_loader.codecs.containers import reason
from deeplake_loader.codecs.info import MAX_PIXELS
from deeplake_loader.codecs.sources import describe, to_array
from deeplake_loader.errors import DimensionError, InputError, MediaError, TypeMismatchError
from deeplake_loader.types import ColumnType

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


class Encoder(NamedTuple):
    """FFmpeg's encoder, the container it goes into, the default constant rate factor, fixed options."""

    name: str
    container: str
    crf: int
    options: dict[str, str]


ENCODERS = {
    "h264": Encoder("libx264", "mp4", 18, {"preset": "fast"}),
    "hevc": Encoder("libx265", "mp4", 20, {"preset": "fast", "x265-params": "log-level=none"}),
    "vp9": Encoder("libvpx-vp9", "webm", 30, {"b": "0", "deadline": "good", "cpu-used": "5"}),
}
DEFAULT_FPS = 24
DEFAULT_GOP = 24  # a window of a clip then costs at most 23 frames decoded in vain


def encode_frames(type: ColumnType, value: object, where: str) -> tuple[bytes, str]:
    """(file bytes, extension) of (T, H, W, 3) uint8 frames, by the column's options codec, crf, fps, gop."""
    frames = _frames(type, value, where)
    codec = str(type.option("codec") or "h264").lower()
    encoder = ENCODERS.get({"h265": "hevc", "x264": "h264"}.get(codec, codec))
    if encoder is None:
        raise InputError(f"{where}: {type} asks for codec {codec!r}; frames can be encoded as {', '.join(ENCODERS)}")
    try:
        return _encode(encoder, type, frames, where), encoder.container
    except (OSError, ValueError, RuntimeError) as error:  # PyAV's errors derive from these
        if isinstance(error, InputError):
            raise
        raise MediaError(
            f"{where}: frames of shape {frames.shape} cannot be encoded as {codec}: {reason(error)}"
        ) from error


def _frames(type: ColumnType, value: object, where: str) -> Array:
    import numpy as np

    array = to_array(value, where)
    if array is None and isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        array = _stack(type, value, where)
    if array is None:
        raise TypeMismatchError(
            f"{where} expects {type}, got {describe(value)}; "
            "pass the file's bytes or path, or uint8 frames (T, H, W, 3)"
        )
    if array.dtype != np.uint8:
        raise TypeMismatchError(
            f"{where} expects {type} of uint8 frames, got {describe(value)}; convert: (x * 255).round().astype('uint8')"
        )
    if array.ndim == 4 and array.shape[3] != 3 and array.shape[1] == 3:
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[3] != 3 or not array.size:
        raise DimensionError(
            f"{where} expects {type} frames of shape (T, H, W, 3) or (T, 3, H, W), got {tuple(array.shape)}"
        )
    if array.shape[1] * array.shape[2] > MAX_PIXELS:
        raise MediaError(
            f"{where}: frames of {array.shape[2]}x{array.shape[1]} are more than the limit of {MAX_PIXELS} pixels"
        )
    return array


def _stack(type: ColumnType, frames: Sequence[object], where: str) -> Array:
    import numpy as np

    arrays: list[Array] = []
    for number, frame in enumerate(frames):
        array = to_array(frame, where)
        if array is None and hasattr(frame, "convert"):  # a Pillow image
            array = np.asarray(frame.convert("RGB"))
        if array is None:
            raise TypeMismatchError(
                f"{where} expects {type}, got {describe(frame)} as frame {number}; pass uint8 arrays (H, W, 3)"
            )
        if arrays and (array.shape != arrays[0].shape or array.dtype != arrays[0].dtype):
            raise DimensionError(
                f"{where}: frame {number} is {describe(array)}, frame 0 {describe(arrays[0])}; all must be alike"
            )
        arrays.append(array)
    if not arrays:
        raise DimensionError(
            f"{where} expects {type} frames, got an empty {describe(frames)}; store NULL where there is no clip"
        )
    return np.stack(arrays)


def _encode(encoder: Encoder, type: ColumnType, frames: Array, where: str) -> bytes:
    from fractions import Fraction

    import av

    file, fps = io.BytesIO(), _number(type, "fps", DEFAULT_FPS, 1, 1000, where)
    options = {"crf": str(_number(type, "crf", encoder.crf, 0, 63, where)), **encoder.options}
    # bitexact: no random ids in the file; x264 may still write other bytes for equal frames
    with av.open(file, "w", format=encoder.container, options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(encoder.name, rate=Fraction(fps), options=options)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        odd = stream.width % 2 or stream.height % 2
        stream.pix_fmt = "yuv444p" if odd and encoder.container == "mp4" else "yuv420p"
        stream.codec_context.gop_size = _number(type, "gop", DEFAULT_GOP, 1, 10_000, where)
        _tag_colours(stream.codec_context)
        for packet in _packets(stream, frames):
            container.mux(packet)
    return file.getvalue()


def _tag_colours(context: Any) -> None:
    """BT.709, limited range, said in the file: untagged, players take the matrix from the picture's size."""
    from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc

    context.colorspace, context.color_range = 1, ColorRange.MPEG
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709


def _packets(stream: Any, frames: Array) -> Any:
    import av
    import numpy as np
    from av.video.reformatter import ColorRange, Colorspace

    for number, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(format=stream.pix_fmt, dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
        frame.pts = number
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _number(type: ColumnType, name: str, default: int, low: int, high: int, where: str) -> int:
    value = type.option(name)
    if value is None:
        return default
    if not isinstance(value, int) or not low <= value <= high:
        raise InputError(f"{where}: {type} asks for {name} {value!r}; it must be {low}..{high}")
    return value
