"""Which part of a clip, and which of its frames: plain numbers in, frame numbers out."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from deeplake_loader.errors import DimensionError, InputError

if TYPE_CHECKING:
    import numpy as np

    Times = Sequence[float] | np.ndarray[Any, np.dtype[np.float64]]

Uniforms = Callable[[int, str], list[float]]
"""Numbers in [0, 1) for a purpose: how many, which."""

MAX_FRAMES = 1 << 20
"""The most frames of one clip: a file of a thousand bytes may claim to last a million years."""

_EPSILON = 1e-6
"""Seconds: times are told in other units than they are stored in."""


def check_window(name: str, start: object, end: object, duration: object) -> None:
    """Raises InputError for what is no part of a clip: seconds or columns' names for ``start`` and ``end``."""
    for field, value in (("start", start), ("end", end)):
        if value is None or (isinstance(value, str) and value):
            continue
        if isinstance(value, bool | str) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise InputError(f"{name}({field}={value!r}): expected seconds from 0 on, or the name of a column of them")
    if isinstance(start, int | float) and isinstance(end, int | float) and start >= end:
        raise InputError(f"{name}(start={start!r}, end={end!r}): the end must lie after the start")
    if duration is not None and not (isinstance(duration, int | float) and 0 < duration <= 86_400):
        raise InputError(f"{name}(duration={duration!r}): expected seconds, at most a day")


def window(
    length: float, start: float | str | None, end: float | str | None, duration: float | None, draw: Uniforms | None
) -> tuple[float, float]:
    """(first, last) second of the part: from ``start`` to ``end``, of that a drawn (else the middle) ``duration``."""
    if isinstance(start, str) or isinstance(end, str):
        column = start if isinstance(start, str) else end
        raise InputError(f"{column!r} names a column, which only the rows of a stream have; pass seconds here")
    low, high = start or 0.0, min(length, math.inf if end is None else end)
    if low >= length:
        raise DimensionError(f"the part from {low:g} s on was asked of a clip of {length:g} s")
    spare = high - low - (duration or math.inf)
    if spare > 0 and duration is not None:
        low += spare * (0.5 if draw is None else draw(1, "window")[0])
        high = low + duration
    return low, high


def frames_between(times: Times, low: float, high: float, fps: float | None) -> Sequence[int]:
    """Frames shown from ``low`` on and before ``high``; with ``fps``, the frame that a player shows at each moment of
    that rate, repeats allowed. At least one. Raises DimensionError over MAX_FRAMES."""
    if fps is None:
        first, last = bisect_left(times, low - _EPSILON), bisect_left(times, high - _EPSILON)
        return range(first, last) if first < last else [max(0, min(first, len(times)) - 1)]
    moments = max(1, math.floor((high - low) * fps + 0.5))
    if moments > MAX_FRAMES:
        raise DimensionError(
            f"{high - low:g} s at {fps:g} frames a second are more than the limit of {MAX_FRAMES} frames"
        )
    return [max(0, bisect_right(times, low + i / fps + _EPSILON) - 1) for i in range(moments)]


def places(count: int, wanted: int, sampling: str, stride: int, draw: Uniforms | None) -> list[int]:
    """``wanted`` of ``count`` places, ascending; the last one is repeated where there are too few.

    >>> places(8, 4, "uniform", 1, None), places(2, 4, "uniform", 1, None)
    ([1, 3, 5, 7], [0, 1, 1, 1])
    """
    if sampling == "contiguous":
        spare = max(0, count - ((wanted - 1) * stride + 1))
        start = spare // 2 if draw is None else math.floor(draw(1, "start")[0] * (spare + 1))
        return [min(start + i * stride, count - 1) for i in range(wanted)]
    if wanted >= count:
        return [min(i, count - 1) for i in range(wanted)]
    if sampling == "uniform" or draw is None:
        return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]
    uniforms = draw(wanted, "frames")
    if sampling == "segments":
        return [math.floor((i + u) * count / wanted) for i, u in enumerate(uniforms)]
    return _distinct(count, wanted, uniforms)


def _distinct(count: int, wanted: int, uniforms: Sequence[float]) -> list[int]:
    """Every set equally likely (Floyd, Communications of the ACM 30, 1987)."""
    chosen: set[int] = set()
    for last, u in zip(range(count - wanted, count), uniforms, strict=True):
        place = math.floor(u * (last + 1))
        chosen.add(last if place in chosen else place)
    return sorted(chosen)
