"""What a stream makes of each item: plain values that say size, frames and augmentation; no code runs in them.

Every random choice is a pure function of (seed, epoch, sample, column), so it is the same for any batch size, any
number of workers and after a resume.
"""

from __future__ import annotations

import builtins
import dataclasses
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from deeplake_loader.decode.sampling import MAX_FRAMES, check_window, frames_between, places, window
from deeplake_loader.errors import DimensionError, InputError, TypeMismatchError
from deeplake_loader.types import TENSOR_DTYPES

if TYPE_CHECKING:
    from deeplake_loader.decode.sampling import Times

Size = tuple[int, int]
Box = tuple[float, float, float, float]
Crop = Literal["center", "random", "random_resized", "none"]
Interpolation = Literal["nearest", "area", "bilinear", "bicubic", "lanczos"]
PixelType = Literal["uint8", "float32", "float16", "bfloat16"]
Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""(mean, std), each of one number or one for each channel."""
Sampling = Literal["uniform", "random", "contiguous", "segments"]

Part = int | slice | EllipsisType | tuple[int | None, int | None, int | None]
"""A slice of a tensor, also as (start, stop, step), an integer or ``...``."""

MAX_SIDE = 16_384
MIN_STD = 1e-6
DRAW_VERSION = 2
"""Changes with every change of which numbers a sample draws or what is made of them."""


@dataclass(frozen=True, slots=True)
class Draw:
    """The random numbers of one sample's column in one epoch.

    >>> Draw(seed=0, epoch=1, sample=7, column="frames").uniforms(2) == Draw(0, 1, 7, "frames").uniforms(2)
    True
    """

    seed: int
    epoch: int
    sample: int | str
    column: str

    def uniforms(self, count: int, purpose: str = "") -> list[float]:
        """``count`` numbers in [0, 1); another ``purpose`` gives others, a larger count begins with the same."""
        numbers: list[float] = []
        for block in range(math.ceil(count / 8)):
            text = repr((DRAW_VERSION, self.seed, self.epoch, self.sample, self.column, purpose, block))
            words = struct.unpack("<8Q", blake2b(text.encode(), digest_size=64).digest())
            numbers += [(word >> 11) * 2.0**-53 for word in words]
        return numbers[:count]


def _check_size(name: str, size: object) -> None:
    sides = (size, size) if isinstance(size, int) else size
    whole = isinstance(sides, tuple) and len(sides) == 2 and all(type(s) is int for s in sides)
    if size is not None and not (whole and all(1 <= s <= MAX_SIDE for s in sides)):  # type: ignore[attr-defined]
        raise InputError(f"{name}(size={size!r}): expected one side or (height, width), each 1..{MAX_SIDE}")


def _check_picture(picture: Image | Video, layouts: Sequence[str]) -> None:
    name = type(picture).__name__
    _check_size(name, picture.size)
    _check_choice(name, "crop", picture.crop, get_args(Crop))
    if picture.crop.startswith("random") and picture.size is None:
        raise InputError(f"{name}(crop={picture.crop!r}) needs a size to resize to")
    low, high = _pair(name, "scale", picture.scale, "a tuple of two shares of the area, 0 < low <= high <= 1")
    if not 0 < low <= high <= 1:
        raise InputError(f"{name}(scale={picture.scale!r}): expected two shares of the area, 0 < low <= high <= 1")
    low, high = _pair(name, "ratio", picture.ratio, "a tuple of two width-to-height ratios, 0 < low <= high")
    if not 0 < low <= high < math.inf:
        raise InputError(f"{name}(ratio={picture.ratio!r}): expected two width-to-height ratios, 0 < low <= high")
    if isinstance(picture.flip, bool) or not isinstance(picture.flip, int | float) or not 0 <= picture.flip <= 1:
        raise InputError(f"{name}(flip={picture.flip!r}): expected a probability in 0..1")
    _check_choice(name, "interpolation", picture.interpolation, get_args(Interpolation))
    if not isinstance(picture.antialias, bool):
        raise InputError(f"{name}(antialias={picture.antialias!r}): expected True or False")
    _check_choice(name, "dtype", picture.dtype, get_args(PixelType))
    _check_choice(name, "layout", picture.layout, layouts)


def _pair(name: str, field: str, value: object, expected: str) -> tuple[float, float]:
    if not isinstance(value, tuple) or len(value) != 2 or not all(isinstance(v, int | float) for v in value):
        raise InputError(f"{name}({field}={value!r}): expected {expected}")
    return value[0], value[1]


def _checked_normalize(picture: Image | Video, channels: int) -> Normalization | None:
    """(mean, std) as tuples, so that the transform stays a value that can be compared and hashed."""
    given = picture.normalize
    if given is None:
        return None
    name = type(picture).__name__
    if picture.dtype == "uint8":
        raise InputError(f"{name}(normalize=...) gives floats; say which: dtype='float32', 'float16' or 'bfloat16'")
    expected = f"(mean, std), each 1 or {channels} finite numbers in units of 0..1, std above 0"
    if not isinstance(given, Sequence) or len(given) != 2:
        raise InputError(f"{name}(normalize={given!r}): expected {expected}")
    mean, std = (tuple(v) if isinstance(v, Sequence) else (v,) for v in given)
    for numbers in (mean, std):
        real = all(isinstance(v, int | float) and math.isfinite(v) for v in numbers)
        if len(numbers) not in (1, channels) or not real:
            raise InputError(f"{name}(normalize={given!r}): expected {expected}")
    if min(std) < MIN_STD:
        raise InputError(f"{name}(normalize={given!r}): expected {expected} ({MIN_STD} or more)")
    return mean, std


def _check_choice(name: str, field: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"{name}({field}={value!r}): expected one of {', '.join(map(repr, known))}")


def _check_timeout(name: str, seconds: object) -> None:
    if seconds is not None and not (isinstance(seconds, int | float) and seconds > 0):
        raise InputError(f"{name}(timeout_s={seconds!r}): expected seconds, or None for no limit")


@dataclass(frozen=True, slots=True)
class Image:
    """Images as (3, H, W) uint8, upright, RGB.

    ``size``: None keeps each image's own; s means (s, s); or (height, width). ``crop``, with a size: "center" resizes
    the largest centred part of the size's shape, "random" the largest such part at a drawn place, "none" the whole
    image (its shape may change), "random_resized" a part of ``scale`` of the area and width-to-height ``ratio`` (drawn
    on a logarithmic scale, as torchvision's and DALI's random_resized_crop), shrunk where it does not fit. ``flip``:
    the probability of mirroring left and right. Where nothing is drawn (a handle's ``decode``), random crops are
    centred and nothing is flipped.

    ``interpolation``: Pillow's filters of these names ("area" is its BOX). ``antialias`` widens the filter when
    reducing, as Pillow always does and torchvision and DALI do by default; JPEG images at least 3, 6 or 20 times as
    large as needed are then decoded at a half, quarter or eighth of their size (within about 1.6 grey levels of the
    full way in the mean over photographs, up to 7 for one of fine texture), unless ``interpolation`` is "nearest".

    ``dtype``: a float type gives value / 255, or with ``normalize=(mean, std)``, both in units of 0..1 and of one
    number or one per channel, (value / 255 - mean) / std. ``mode`` "L" gives one grey channel; ``layout`` "HWC" puts
    channels last.

    >>> Image(size=224, crop="random_resized", flip=0.5, dtype="float32",
    ...       normalize=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))).size
    224
    """

    size: int | Size | None = None
    mode: Literal["RGB", "L"] = "RGB"
    crop: Crop = "center"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    layout: Literal["CHW", "HWC"] = "CHW"
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    dtype: PixelType = "uint8"
    normalize: Normalization | None = None

    def __post_init__(self) -> None:
        _check_picture(self, ("CHW", "HWC"))
        _check_choice("Image", "mode", self.mode, ("RGB", "L"))
        object.__setattr__(self, "normalize", _checked_normalize(self, 1 if self.mode == "L" else 3))


@dataclass(frozen=True, slots=True)
class Video:
    """Clips as (T, 3, H, W) uint8, upright, RGB.

    ``num_frames``: T; None takes every ``stride``-th frame. ``sampling``: "uniform" takes the middle frame of T equal
    parts, "segments" one frame drawn from each part (Wang and others, Temporal Segment Networks, 2016), "random" T
    different frames, "contiguous" every ``stride``-th frame from a start that is drawn (the middle where nothing is
    drawn). ``start``, ``end``: take them from this part, in seconds, or the names of columns of the stream's query that
    hold the seconds; ``duration``: from a part of that many seconds, drawn; ``fps``: from the frames that a player
    shows at that many moments a second. A clip of too few frames repeats its last one (``pad`` "repeat") or is an error
    ("error"). ``frame_indices`` names the frames instead, in any order, repeats allowed; one that the clip lacks is an
    error. ``size``, ``crop``, ``scale``, ``ratio``, ``flip``, ``interpolation``, ``antialias``, ``dtype`` and
    ``normalize`` as for Image, one choice for the whole clip; ``layout`` "TCHW", "CTHW" or "THWC"; ``stream`` is the
    number of the video stream in the file; decoding for longer than ``timeout_s`` seconds is an error.

    >>> Video(num_frames=16, size=(256, 256)).sampling
    'uniform'
    """

    num_frames: int | None = None
    frame_indices: tuple[int, ...] | None = None
    sampling: Sampling = "uniform"
    stride: int = 1
    size: int | Size | None = None
    crop: Crop = "center"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    layout: Literal["TCHW", "CTHW", "THWC"] = "TCHW"
    fps: float | None = None
    duration: float | None = None
    start: float | str | None = None
    end: float | str | None = None
    pad: Literal["repeat", "error"] = "repeat"
    stream: int = 0
    timeout_s: float | None = 120.0
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    dtype: PixelType = "uint8"
    normalize: Normalization | None = None

    def __post_init__(self) -> None:
        _check_picture(self, ("TCHW", "CTHW", "THWC"))
        object.__setattr__(self, "normalize", _checked_normalize(self, 3))
        check_window("Video", self.start, self.end, self.duration)
        _check_choice("Video", "sampling", self.sampling, get_args(Sampling))
        _check_choice("Video", "pad", self.pad, ("repeat", "error"))
        _check_timeout("Video", self.timeout_s)
        if self.num_frames is not None and not (type(self.num_frames) is int and 1 <= self.num_frames <= MAX_FRAMES):
            raise InputError(f"Video(num_frames={self.num_frames!r}): expected 1..{MAX_FRAMES}, or None")
        if type(self.stride) is not int or self.stride < 1:
            raise InputError(f"Video(stride={self.stride!r}): expected a positive integer")
        if self.stride > 1 and self.num_frames is not None and self.sampling != "contiguous":
            raise InputError(f"Video(stride={self.stride}) goes with sampling='contiguous', not {self.sampling!r}")
        if self.fps is not None and not (isinstance(self.fps, int | float) and 0 < self.fps <= 1000):
            raise InputError(f"Video(fps={self.fps!r}): expected frames per second, at most 1000")
        if type(self.stream) is not int or self.stream < 0:
            raise InputError(f"Video(stream={self.stream!r}): expected the number of a video stream, from 0 on")
        self._check_indices()

    def _check_indices(self) -> None:
        indices = self.frame_indices
        if indices is None:
            return
        if self.num_frames is not None or self.stride > 1 or self.is_timed:
            raise InputError("Video takes frame_indices, or num_frames, stride, fps, duration, start and end, not both")
        if not isinstance(indices, tuple) or not indices or not all(type(i) is int and i >= 0 for i in indices):
            raise InputError(f"Video(frame_indices={indices!r}): expected a tuple of frame numbers from 0 on")

    @property
    def is_timed(self) -> bool:
        """Whether the choice of frames depends on when they are shown."""
        return any(field is not None for field in (self.fps, self.duration, self.start, self.end))

    @property
    def fixed_count(self) -> int | None:
        """T where it is the same for every clip."""
        if self.frame_indices is not None:
            return len(self.frame_indices)
        if self.num_frames is None and self.fps is not None and self.duration is not None:
            return len(range(0, max(1, math.floor(self.duration * self.fps + 0.5)), self.stride))
        return self.num_frames

    def frame_numbers(
        self, count: int, draw: Draw | None, times: Times | None = None, length: float | None = None
    ) -> list[int]:
        """The frames to take of a clip of ``count``, which are shown at ``times`` (seconds) and last ``length``.

        Raises DimensionError where the clip lacks frames that are asked for.

        >>> Video(num_frames=4).frame_numbers(8, None), Video(num_frames=4).frame_numbers(2, None)
        ([1, 3, 5, 7], [0, 1, 1, 1])
        >>> Video(fps=2).frame_numbers(8, None, times=[i / 4 for i in range(8)], length=2.0)
        [0, 2, 4, 6]
        """
        if self.frame_indices is not None:
            if max(self.frame_indices) >= count:
                raise DimensionError(f"frame {max(self.frame_indices)} was asked of a clip of {count} frames")
            return list(self.frame_indices)
        uniforms = None if draw is None else draw.uniforms
        numbers: Sequence[int] = range(count)
        if self.is_timed:
            if times is None or length is None:
                raise DimensionError("the file does not tell when its frames are shown, so no times can be asked for")
            low, high = window(length, self.start, self.end, self.duration, uniforms)
            numbers = frames_between(times, low, high, self.fps)
        wanted = self.fixed_count
        every = numbers[:: self.stride]
        needed = len(every) if wanted is None else wanted
        if self.pad == "error" and len(every) < needed:
            raise DimensionError(f"{wanted} frames were asked of a clip that gives {len(every)}")
        if self.num_frames is None:
            return [every[min(i, len(every) - 1)] for i in range(needed)]
        return [numbers[i] for i in places(len(numbers), needed, self.sampling, self.stride, uniforms)]


@dataclass(frozen=True, slots=True)
class Audio:
    """Sound as (channels, samples) float32 in [-1, 1].

    ``sample_rate`` resamples, ``channels`` 1 or 2 mixes; None keeps the file's. ``start``, ``end``: this part, in
    seconds, or the names of columns of the stream's query that hold the seconds. ``duration``, seconds: of a longer
    sound a part that is drawn (the middle where nothing is drawn); a shorter one is followed by silence. Decoding for
    longer than ``timeout_s`` seconds is an error.

    >>> Audio(sample_rate=16_000, channels=1, duration=2.0).sample_rate
    16000
    """

    sample_rate: int | None = None
    channels: Literal[1, 2] | None = None
    duration: float | None = None
    start: float | str | None = None
    end: float | str | None = None
    timeout_s: float | None = 120.0

    def __post_init__(self) -> None:
        if self.sample_rate is not None and not (type(self.sample_rate) is int and 1 <= self.sample_rate <= 768_000):
            raise InputError(f"Audio(sample_rate={self.sample_rate!r}): expected samples per second, 1..768000")
        if self.channels not in (None, 1, 2):
            raise InputError(f"Audio(channels={self.channels!r}): expected 1, 2 or None")
        check_window("Audio", self.start, self.end, self.duration)
        _check_timeout("Audio", self.timeout_s)


@dataclass(frozen=True, slots=True)
class Tensor:
    """Tensors as stored, or converted to ``dtype``: a name of numpy's such as "float32" ("bfloat16" only as stored).

    ``slice``: the part to take, as numpy indexes: a slice, an integer (which drops its dimension), ``...``, or a tuple
    of these, which ``numpy.s_`` writes; a slice that reaches over an end is shorter, an integer beyond it and too many
    dimensions are errors of the item. It is kept with (start, stop, step) for each slice.

    >>> Tensor("float32", slice=(slice(16), ..., 0)).slice
    ((None, 16, None), Ellipsis, 0)
    """

    dtype: str | None = None
    slice: Part | tuple[Part, ...] | None = None

    def __post_init__(self) -> None:
        if self.slice is not None:
            object.__setattr__(self, "slice", _checked_parts(self.slice))
        if self.dtype is not None and (self.dtype not in TENSOR_DTYPES or self.dtype == "bfloat16"):
            known = ", ".join(name for name in TENSOR_DTYPES if name != "bfloat16")
            raise InputError(f"Tensor(dtype={self.dtype!r}): expected one of {known}")

    @property
    def index(self) -> tuple[Any, ...] | None:
        """``slice`` as numpy takes it, giving a view also of a single element; None for the whole."""
        if self.slice is None:
            return None
        parts = tuple(builtins.slice(*part) if isinstance(part, tuple) else part for part in cast(Any, self.slice))
        return parts if ... in parts else (*parts, ...)


def _checked_parts(given: object) -> tuple[object, ...]:
    """Slices as (start, stop, step), so that the transform stays a value that can be hashed and compared."""
    ends = given if isinstance(given, tuple) else (given,)
    parts = tuple((p.start, p.stop, p.step) if isinstance(p, builtins.slice) else p for p in ends)
    if not all(type(p) is int or p is ... or _is_span(p) for p in parts) or parts.count(...) > 1:
        raise InputError(
            f"Tensor(slice={given!r}): expected a slice with a step other than 0, an integer, ... once, or a tuple of "
            "these, as numpy.s_ writes them"
        )
    return parts


def _is_span(part: object) -> bool:
    """Whether it is the (start, stop, step) of a slice."""
    if not isinstance(part, tuple) or len(part) != 3:
        return False
    return part[2] != 0 and all(number is None or type(number) is int for number in part)


@dataclass(frozen=True, slots=True)
class Raw:
    """A stream's media column undecoded: the batch holds `deeplake_loader.stream.Payloads`, the stored bytes of each
    row as read-only memoryviews without a copy, verified against their checksums.

    >>> stream = db.stream("SELECT photo FROM t", batch_size=64, transforms={"photo": Raw()})   # doctest: +SKIP
    """


Transform = Image | Video | Audio | Tensor
OF_MEDIA: dict[str, type[Image] | type[Video] | type[Audio] | type[Tensor]] = {
    "image": Image,
    "video": Video,
    "audio": Audio,
    "tensor": Tensor,
}


def choose(media: str, transform: object | None = None, options: dict[str, Any] | None = None) -> Transform | None:
    """The transform for an item: the one given (of the item's media, else TypeMismatchError) or the default one, with
    ``options`` in place of its fields; None for plain bytes.

    >>> choose("video", None, {"num_frames": 8}).num_frames
    8
    """
    expected, options = OF_MEDIA.get(media), options or {}
    if expected is None:
        if transform is not None or options:
            raise TypeMismatchError("a BLOB holds bytes, which are not decoded; drop the transform")
        return None
    if transform is not None and not isinstance(transform, expected):
        raise TypeMismatchError(f"{media} items take a {expected.__name__}(...) transform, got {transform!r}")
    if not options:  # every decoded item comes by: the checks of a new value would cost 20 us
        return expected() if transform is None else transform
    known = [field.name for field in dataclasses.fields(expected)]
    if unknown := sorted(set(options) - set(known)):
        raise InputError(f"{expected.__name__} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    return dataclasses.replace(transform or expected(), **options)


def crop_box(transform: Image | Video, width: int, height: int, size: Size, draw: Draw | None) -> tuple[Box, bool]:
    """((x0, y0, x1, y1) in source pixels, whether to mirror) for a picture of that width and height."""
    flip, area, shape, x, y = draw.uniforms(5, "crop") if draw is not None else (1.0, 0.5, 0.5, 0.5, 0.5)
    mirrored = flip < transform.flip
    if transform.crop == "none":
        return (0.0, 0.0, float(width), float(height)), mirrored
    if transform.crop == "random_resized" and draw is not None:
        box = _random_box(transform, width, height, area, shape)
    else:
        scale = min(width / size[1], height / size[0])
        box = size[1] * scale, size[0] * scale
        if transform.crop != "random":
            x = y = 0.5
    wide, high = min(box[0], width), min(box[1], height)
    left, top = x * (width - wide), y * (height - high)
    return (left, top, min(left + wide, width), min(top + high, height)), mirrored


def _random_box(transform: Image | Video, width: int, height: int, area: float, shape: float) -> tuple[float, float]:
    low, high = transform.scale
    pixels = width * height * (low + area * (high - low))
    narrow, broad = math.log(transform.ratio[0]), math.log(transform.ratio[1])
    ratio = math.exp(narrow + shape * (broad - narrow))
    wide, tall = math.sqrt(pixels * ratio), math.sqrt(pixels / ratio)
    fit = min(1.0, width / wide, height / tall)
    return max(1.0, wide * fit), max(1.0, tall * fit)
