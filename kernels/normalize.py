"""Pixels to the numbers a network takes: (value / 255 - mean) / std as floats, channels moved in the same pass."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from deeplake_loader.errors import DimensionError, InputError, TypeMismatchError

from . import fallback
from .library import choice
from .resize import Layout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]

FloatType = Literal["float32", "float16", "bfloat16"]
FLOAT_TYPES: tuple[FloatType, ...] = ("float32", "float16", "bfloat16")
Matrix = Literal["bt601", "bt709"]
Range = Literal["limited", "full"]
_LUMA: dict[str, tuple[float, float]] = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}
"""How much red and blue weigh in the luma of each matrix (ITU-R BT.601 and BT.709)."""

_MOST_CHANNELS = 4


def normalize(
    batch: NDArray[np.uint8],
    mean: float | Sequence[float],
    std: float | Sequence[float],
    dtype: FloatType = "float32",
    layout: Layout = "CHW",
    *,
    source: Layout = "HWC",
    out: Array | None = None,
    threads: int = 1,
) -> Array:
    """(N, C, H, W) floats, or (N, H, W, C) with ``layout="HWC"``: (value / 255 - mean) / std of each uint8 pixel.

    ``batch``: (N, H, W, C), or (N, C, H, W) with ``source="CHW"``; 1 to 4 channels, any strides (those of a single
    pass over the pixels are read in place, others copied first). ``mean``, ``std``: one number, or one for each
    channel, in units of 0..1; ``mean=0, std=1`` scales to 0..1. ``out``: an array of the result's shape and type to
    fill; bfloat16, which numpy lacks, is dtype "V2" (or uint16 in ``out``).

    One float32 multiply-add for each value (the factors 1 / (255 std) and -mean / std are rounded to float32 first),
    then rounded once more for float16 and bfloat16: every compiled form gives the same bits, and float32 results are
    within one unit in the last place of ``reference.normalize``.

    >>> import numpy as np
    >>> normalize(np.full((1, 2, 2, 3), 255, np.uint8), 0.5, 0.5)[0, 0].round(6).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    _check_bytes("batch", batch, 4)
    if source not in ("CHW", "HWC") or layout not in ("CHW", "HWC"):
        raise InputError(f"source is {source!r} and layout {layout!r}; expected 'CHW' or 'HWC'")
    pixels = batch.transpose(0, 2, 3, 1) if source == "CHW" else batch
    count, height, width, channels = pixels.shape
    if not 1 <= channels <= _MOST_CHANNELS:
        raise DimensionError(f"batch {batch.shape} has {channels} channels as {source}; expected 1 to 4")
    scale, shift = factors(mean, std, channels)
    shape = (count, channels, height, width) if layout == "CHW" else pixels.shape
    target = _target(out, shape, dtype)
    if target.size:
        view = target.transpose(0, 2, 3, 1) if layout == "CHW" else target
        _fill(pixels, view, scale, shift, dtype, threads)
    return target


def factors(
    mean: float | Sequence[float], std: float | Sequence[float], channels: int
) -> tuple[list[float], list[float]]:
    """What each channel's value is multiplied by, and what is added, rounded to float32."""
    means, stds = _per_channel("mean", mean, channels), _per_channel("std", std, channels)
    if min(stds) <= 0:
        raise InputError(f"std is {std!r}; expected numbers above 0")
    scale = [_float32(1 / (255 * s)) for s in stds]
    shift = [_float32(-m / s) for m, s in zip(means, stds, strict=True)]
    if not all(abs(255 * a) + abs(b) < 3e38 for a, b in zip(scale, shift, strict=True)):
        raise InputError(f"mean {mean!r} and std {std!r} give numbers beyond float32")
    return scale, shift


def _per_channel(name: str, value: float | Sequence[float], channels: int) -> list[float]:
    numbers = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]
    if len(numbers) not in (1, channels) or not all(math.isfinite(v) for v in numbers):
        raise InputError(f"{name} is {value!r}; expected one finite number, or one for each of {channels} channels")
    return numbers if len(numbers) == channels else numbers * channels


def _float32(value: float) -> float:
    return ctypes.c_float(value).value


def _check_bytes(name: str, array: Array, dimensions: int) -> None:
    if array.ndim != dimensions or array.dtype.str != "|u1":
        raise TypeMismatchError(f"{name} is {array.ndim}-D {array.dtype}; expected {dimensions}-D uint8")


def _target(out: Array | None, shape: tuple[int, ...], dtype: FloatType) -> Array:
    import numpy as np

    if dtype not in FLOAT_TYPES:
        raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(FLOAT_TYPES)}")
    kinds = {"float32": ("<f4",), "float16": ("<f2",), "bfloat16": ("|V2", "<u2")}[dtype]
    if out is None:
        return np.empty(shape, kinds[0])
    if out.dtype.str not in kinds:
        raise TypeMismatchError(f"out is {out.dtype}; expected {dtype}")
    if out.shape != shape:
        raise DimensionError(f"out is {out.shape}; expected {shape}")
    if not out.flags.writeable:
        raise TypeMismatchError("out is read-only; expected a writable array")
    return out


class _Pixels(ctypes.Structure):
    """The arguments of dl_normalize; the order is that of the C structure."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            "images", "channels", "count", "in_image", "in_channel", "in_pixel", "out_image", "out_channel",
            "out_pixel", "dtype",
        )
    )  # fmt: skip


def _fill(pixels: Array, view: Array, scale: list[float], shift: list[float], dtype: FloatType, threads: int) -> None:
    """``view`` (N, H, W, C) from ``pixels`` (N, H, W, C), whatever the strides of both."""
    import numpy as np

    chosen = choice()
    if chosen.library is None:
        view[...] = fallback.normalize(pixels, scale, shift, dtype)
        return
    if not _one_pass(pixels):
        pixels = np.ascontiguousarray(pixels)
    target = view if _one_pass(view) else np.empty(view.shape, view.dtype)
    count, height, width, channels = pixels.shape
    inside, outside = pixels.strides, [s // view.itemsize for s in target.strides]
    shape = _Pixels(
        count, channels, height * width, inside[0], inside[3], inside[2], outside[0], outside[3], outside[2],
        FLOAT_TYPES.index(dtype),
    )  # fmt: skip
    numbers = ctypes.c_float * channels
    chosen.library.dl_normalize(
        chosen.level, pixels.ctypes.data, target.ctypes.data, ctypes.byref(shape), numbers(*scale), numbers(*shift),
        threads,
    )  # fmt: skip
    if target is not view:
        view[...] = target


def _one_pass(array: Array) -> bool:
    """Whether one stride leads from each pixel of (N, H, W, C) to the next, over the ends of rows too."""
    return array.strides[1] == array.shape[2] * array.strides[2] and all(s % array.itemsize == 0 for s in array.strides)


def normalize_yuv(
    y: NDArray[np.uint8],
    u: NDArray[np.uint8],
    v: NDArray[np.uint8],
    mean: float | Sequence[float],
    std: float | Sequence[float],
    dtype: FloatType = "float32",
    layout: Layout = "CHW",
    *,
    matrix: Matrix,
    range: Range,
    out: Array | None = None,
    threads: int = 1,
) -> Array:
    """(N, 3, H, W) floats, or (N, H, W, 3) with ``layout="HWC"``, of 4:2:0 frames: RGB, then ``normalize``.

    ``y``: (N, H, W) uint8; ``u``, ``v``: (N, ceil(H / 2), ceil(W / 2)) uint8 of equal strides. NV12's interleaved
    chroma is ``chroma[..., 0]`` and ``chroma[..., 1]``. ``matrix`` and ``range`` have no default: the stream tells
    them, and a wrong guess shifts every colour. Each chroma sample stands for its 2 x 2 pixels; RGB is cut off at
    0..255 and not rounded to whole levels. Within 1e-5 / std of ``reference.yuv_to_rgb`` normalised.

    >>> import numpy as np
    >>> y, grey = np.full((1, 2, 2), 235, np.uint8), np.full((1, 1, 1), 128, np.uint8)
    >>> normalize_yuv(y, grey, grey, 0, 1, matrix="bt709", range="limited")[0, :, 0, 0].round(5).tolist()
    [1.0, 1.0, 1.0]
    """
    for name, plane in (("y", y), ("u", u), ("v", v)):
        _check_bytes(name, plane, 3)
    count, height, width = y.shape
    small = (count, (height + 1) // 2, (width + 1) // 2)
    if u.shape != small or v.shape != small:
        raise DimensionError(f"u {u.shape} and v {v.shape} do not go with y {y.shape}; expected {small}")
    if layout not in ("CHW", "HWC"):
        raise InputError(f"layout is {layout!r}; expected 'CHW' or 'HWC'")
    numbers = yuv_factors(matrix, range, mean, std)
    target = _target(out, (count, 3, height, width) if layout == "CHW" else (count, height, width, 3), dtype)
    if target.size:
        _fill_yuv((y, u, v), target.transpose(0, 2, 3, 1) if layout == "CHW" else target, numbers, dtype, threads)
    return target


def yuv_factors(
    matrix: Matrix, range: Range, mean: float | Sequence[float], std: float | Sequence[float]
) -> list[float]:
    """Luma's scale and shift; V in red, U and V in green, U in blue; then the scales and shifts of ``normalize``."""
    if matrix not in _LUMA or range not in ("limited", "full"):
        raise InputError(
            f"matrix is {matrix!r} and range {range!r}; expected 'bt601' or 'bt709', and 'limited' or 'full'"
        )
    red, blue = _LUMA[matrix]
    green = 1 - red - blue
    luma, chroma = (255 / 219, 255 / 224) if range == "limited" else (1.0, 1.0)
    of_v, of_u = 2 * (1 - red) * chroma, 2 * (1 - blue) * chroma
    scale, shift = factors(mean, std, 3)
    shares = [luma, -16 * luma if range == "limited" else 0.0, of_v, -of_u * blue / green, -of_v * red / green, of_u]
    return [*shares, *scale, *shift]


class _Planes(ctypes.Structure):
    """The arguments of dl_normalize_yuv; the order is that of the C structure."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            "images", "height", "width", "y_image", "y_row", "chroma_image", "chroma_row", "chroma_pixel",
            "out_image", "out_row", "out_pixel", "out_channel", "dtype",
        )
    )  # fmt: skip


def _fill_yuv(
    planes: tuple[Array, Array, Array], view: Array, numbers: list[float], dtype: FloatType, threads: int
) -> None:
    import numpy as np

    chosen = choice()
    if chosen.library is None:
        view[...] = fallback.normalize_yuv(*planes, numbers, dtype)
        return
    y, u, v = planes
    if y.strides[2] != 1:
        y = np.ascontiguousarray(y)
    if u.strides != v.strides:
        u, v = np.ascontiguousarray(u), np.ascontiguousarray(v)
    target = view if all(s % view.itemsize == 0 for s in view.strides) else np.empty(view.shape, view.dtype)
    outside = [s // view.itemsize for s in target.strides]
    shape = _Planes(*y.shape, *y.strides[:2], *u.strides, *outside, FLOAT_TYPES.index(dtype))
    chosen.library.dl_normalize_yuv(
        y.ctypes.data, u.ctypes.data, v.ctypes.data, target.ctypes.data, ctypes.byref(shape),
        (ctypes.c_float * len(numbers))(*numbers), threads,
    )  # fmt: skip
    if target is not view:
        view[...] = target
