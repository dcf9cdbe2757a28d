"""VIDEO values given as frames: encoded by PyAV into a file whose frames are evenly timed and whose colours are tagged.

H.264 and HEVC store 4:2:0 colour where both sides are even, else 4:4:4, so that the size read back is the size given.
FFV1 stores RGB as it is.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from deeplake_loader.codecs.containers import reason
from deeplake_loader.codecs.info import MAX_PIXELS
from deeplake_loader.codecs.sources import describe, to_array
from deeplake_loader.errors import DeeplakeError, DimensionError, InputError, MediaError, TypeMismatchError
from deeplake_loader.types import ColumnType

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


class Encoder(NamedTuple):
    """FFmpeg's encoder, the container it goes into, the default constant rate factor and its largest value (None: it
    loses nothing), the option that ``preset`` sets, fixed options, and the pixel formats for even and odd sizes."""

    name: str
    container: str
    crf: int | None
    max_crf: int
    preset: str | None
    options: dict[str, str]
    even: str = "yuv420p"
    odd: str = "yuv420p"


ENCODERS = {
    "h264": Encoder("libx264", "mp4", 18, 51, "preset", {"preset": "fast"}, odd="yuv444p"),
    "hevc": Encoder(
        "libx265", "mp4", 20, 51, "preset", {"preset": "fast", "x265-params": "log-level=none"}, odd="yuv444p"
    ),
    "vp9": Encoder("libvpx-vp9", "webm", 30, 63, "cpu-used", {"b": "0", "deadline": "good", "cpu-used": "5"}),
    "av1": Encoder("libsvtav1", "mp4", 30, 63, "preset", {"preset": "8"}),
    "ffv1": Encoder("ffv1", "matroska", None, 0, None, {"level": "3", "slicecrc": "1"}, even="bgr0", odd="bgr0"),
}
_ALIASES = {"h265": "hevc", "x264": "h264", "x265": "hevc"}
_EXTENSIONS = {"matroska": "mkv"}
_RGB = ("bgr0", "gbrp", "rgb24", "bgra", "gbrp10le", "gbrp12le")
OPTIONS = ("codec", "crf", "preset", "gop", "pixel_format", "fps")
DEFAULT_FPS = 24
DEFAULT_GOP = 24  # a window of a clip then costs at most 23 frames decoded in vain
_MAX_FPS = 1000

Timed = tuple[int, "Array"]
"""A frame (H, W, 3) uint8 and when it is shown, in ticks."""


def encode_frames(type: ColumnType, value: object, where: str) -> tuple[bytes, str]:
    """(file bytes, extension) of (T, H, W, 3) uint8 frames, by the column's options: see ``encode_timed``."""
    frames = _frames(type, value, where)
    return encode_timed(type, enumerate(frames), 1 / _rate(type, where), where)


def encode_timed(type: ColumnType, frames: Iterable[Timed], base: Fraction, where: str) -> tuple[bytes, str]:
    """(file bytes, extension) of frames of one size, taken one at a time, shown at multiples of ``base`` seconds.

    Options of the column: ``codec`` (ENCODERS; default h264), ``crf``, ``preset`` (the encoder's own word or number),
    ``gop`` (frames from key frame to key frame; 1: every frame is one), ``pixel_format``, ``fps``. FFV1 keeps every
    pixel as it is. Raises InputError for an option that cannot be had, MediaError where encoding fails.
    """
    import av

    settings = _settings(type, where)
    if settings.codec == "av1":  # the encoder tells its settings on stderr unless it is asked not to
        os.environ.setdefault("SVT_LOG", "1")
    file = io.BytesIO()
    try:
        # bitexact: no random ids in the file; x264 may still write other bytes for equal frames
        with av.open(file, "w", format=settings.encoder.container, options={"fflags": "+bitexact"}) as container:
            _write(container, settings, frames, base, where)
    except (OSError, ValueError, RuntimeError) as error:  # PyAV's errors derive from these
        if isinstance(error, DeeplakeError):
            raise
        raise MediaError(f"{where}: the frames cannot be encoded as {settings.codec}: {reason(error)}") from error
    container_name = settings.encoder.container
    return file.getvalue(), _EXTENSIONS.get(container_name, container_name)


def _encoder_of(type: ColumnType, where: str) -> tuple[str, Encoder]:
    """(codec, encoder) that the column asks for. Raises InputError, naming those that can be had."""
    import av

    asked = str(type.option("codec") or "h264").lower()
    codec = _ALIASES.get(asked, asked)
    had = [name for name, encoder in ENCODERS.items() if encoder.name in av.codecs_available]
    if codec not in had:
        raise InputError(f"{where}: {type} asks for codec {asked!r}; frames can be encoded as {', '.join(had)}")
    type.refuse_other_options(OPTIONS, where)
    return codec, ENCODERS[codec]


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the column's options say: the ``codec``, its ``encoder`` with ``options``, frames a second, frames between
    key frames, the pixel format that is asked for."""

    codec: str
    encoder: Encoder
    options: dict[str, str]
    rate: Fraction
    gop: int
    pixel_format: str | None


def check_options(type: ColumnType, where: str) -> None:
    """Raises InputError for a VIDEO column by whose options no frames could be encoded."""
    _settings(type, where)


def _settings(type: ColumnType, where: str) -> _Settings:
    codec, encoder = _encoder_of(type, where)
    options = dict(encoder.options)
    if encoder.crf is not None:
        options["crf"] = str(_number(type, "crf", encoder.crf, 0, encoder.max_crf, where))
    preset = type.option("preset")
    if preset is not None:
        if encoder.preset is None:
            raise InputError(f"{where}: {type} asks for a preset; {encoder.name} has none")
        options[encoder.preset] = str(preset)
    gop = _number(type, "gop", DEFAULT_GOP, 1, 10_000, where)
    return _Settings(codec, encoder, options, _rate(type, where), gop, _pixel_format(encoder, type, where))


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


def _write(container: Any, settings: _Settings, frames: Iterable[Timed], base: Fraction, where: str) -> None:
    stream: Any = None
    for ticks, pixels in frames:
        if stream is None:
            stream = _stream(container, settings, pixels, base)
        if pixels.shape != (stream.height, stream.width, 3):
            raise DimensionError(f"{where}: a frame of {pixels.shape} follows frames of {stream.width}x{stream.height}")
        for packet in stream.encode(_frame(stream.pix_fmt, pixels, ticks, base)):
            container.mux(packet)
    if stream is None:
        raise DimensionError(f"{where}: there are no frames to encode")
    for packet in stream.encode(None):
        container.mux(packet)


def _stream(container: Any, settings: _Settings, pixels: Array, base: Fraction) -> Any:
    encoder = settings.encoder
    stream = container.add_stream(encoder.name, rate=settings.rate, options=settings.options)
    stream.height, stream.width = pixels.shape[:2]
    is_odd = stream.width % 2 or stream.height % 2
    stream.pix_fmt = settings.pixel_format or (encoder.odd if is_odd else encoder.even)
    context = stream.codec_context
    context.time_base = base
    context.gop_size = settings.gop
    if stream.pix_fmt not in _RGB:
        _tag_colours(context)
    return stream


def _pixel_format(encoder: Encoder, type: ColumnType, where: str) -> str | None:
    import av

    asked = type.option("pixel_format")
    if asked is None:
        return None
    known = [format.name for format in av.codec.Codec(encoder.name, "w").video_formats or ()]
    if asked not in known:
        raise InputError(
            f"{where}: {type} asks for pixel_format {asked!r}; {encoder.name} writes {', '.join(sorted(known))}"
        )
    return str(asked)


def _tag_colours(context: Any) -> None:
    """BT.709, limited range, said in the file: untagged, players take the matrix from the picture's size."""
    from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc

    context.colorspace, context.color_range = 1, ColorRange.MPEG
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709


def _frame(format: str, pixels: Array, ticks: int, base: Fraction) -> Any:
    import av
    import numpy as np
    from av.video.reformatter import ColorRange, Colorspace

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    if format in _RGB:
        frame = frame.reformat(format=format, threads=1)
    else:
        frame = frame.reformat(
            format=format, dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, threads=1
        )
    frame.pts, frame.time_base = ticks, base
    return frame


def _rate(type: ColumnType, where: str) -> Fraction:
    """Frames per second: ``fps=24``, ``fps='30000/1001'`` or ``fps=29.97``."""
    value = type.option("fps")
    try:
        rate = Fraction(DEFAULT_FPS if value is None else value).limit_denominator(100_000)
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"{where}: {type} asks for fps {value!r}, which is no number") from error
    if not 0 < rate <= _MAX_FPS:
        raise InputError(f"{where}: {type} asks for fps {value!r}; it must be above 0 and at most {_MAX_FPS}")
    return rate


def _number(type: ColumnType, name: str, default: int, low: int, high: int, where: str) -> int:
    value = type.option(name)
    if value is None:
        return default
    if not isinstance(value, int) or not low <= value <= high:
        raise InputError(f"{where}: {type} asks for {name} {value!r}; it must be {low}..{high}")
    return value
