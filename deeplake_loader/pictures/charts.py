"""Histograms as lines of text and as images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deeplake_loader.errors import InputError

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_BACK, _INK, _BAR, _FAINT = (255, 255, 255), (40, 40, 46), (66, 133, 244), (222, 222, 228)
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 36, 44


def bar_lines(labels: Sequence[str], counts: Sequence[int], *, width: int = 72) -> list[str]:
    """A line for each label: the label, a bar in eighths of a character, the count. The longest bar fills the width.

    >>> for line in bar_lines(["0-1 s", "1-2 s"], [4, 1], width=20): print(line)
    0-1 s ███████████▋ 4
    1-2 s ██▉          1
    """
    _check(labels, counts)
    before, behind = max(map(len, labels)), max(len(f"{count:,}") for count in counts)
    room = max(4, width - before - behind - 2)
    most = max(*counts, 1)
    lines = []
    for label, count in zip(labels, counts, strict=True):
        eighths = round(count / most * (room * 8 - 3)) if count else 0
        eighths = max(eighths, 1 if count else 0)
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        lines.append(f"{label:>{before}} {bar:<{room}} {count:,}")
    return lines


def histogram_picture(
    edges: Sequence[float],
    counts: Sequence[int],
    *,
    title: str = "",
    unit: str = "",
    size: tuple[int, int] = (720, 360),
) -> Image.Image:
    """The histogram as an RGB Pillow image of ``size`` (width, height): bars between their edges, which are told below
    it in ``unit``, the counts to its left.

    Raises:
        InputError: not one edge more than counts, no count, or a size below 240x160.
    """
    from PIL import Image, ImageDraw

    _check(edges[:-1], counts)
    if len(edges) != len(counts) + 1 or size[0] < 240 or size[1] < 160:
        raise InputError(f"{len(counts)} counts need one edge more and 240x160 pixels; got {len(edges)} and {size}")
    picture = Image.new("RGB", size, _BACK)
    pen = ImageDraw.Draw(picture)
    width, height = size[0] - _LEFT - _RIGHT, size[1] - _TOP - _BOTTOM
    floor, most = _TOP + height, max(*counts, 1)
    _grid(pen, most, floor, height, width)
    for i, count in enumerate(counts):
        left, right = (_LEFT + round(width * j / len(counts)) for j in (i, i + 1))
        top = floor - (max(1, round(height * count / most)) if count else 0)
        if count:
            pen.rectangle((left + 1, top, max(left + 1, right - 1), floor - 1), fill=_BAR)
    _axis(pen, edges, unit, floor, width)
    pen.text((_LEFT, 10), title, fill=_INK, font=_font())
    return picture


def _check(labels: Sequence[object], counts: Sequence[int]) -> None:
    if not counts or len(labels) != len(counts) or min(counts) < 0:
        raise InputError(f"a histogram needs a count of zero or more for each bar, got {len(counts)} counts")


def _grid(pen: ImageDraw.ImageDraw, most: int, floor: int, height: int, width: int) -> None:
    for share in (0, 0.5, 1):
        y = floor - round(height * share)
        pen.line((_LEFT, y, _LEFT + width, y), fill=_FAINT)
        text = f"{most * share:,.0f}" if share != 0.5 or most % 2 == 0 else ""
        pen.text((_LEFT - 6, y), text, fill=_INK, font=_font(), anchor="rm")


def _axis(pen: ImageDraw.ImageDraw, edges: Sequence[float], unit: str, floor: int, width: int) -> None:
    steps = min(6, len(edges) - 1)
    for i in range(steps + 1):
        at = round(i * (len(edges) - 1) / steps)
        x = _LEFT + round(width * at / (len(edges) - 1))
        text = f"{edges[at]:,.4g}" if abs(edges[at]) < 1e4 else f"{edges[at]:,.0f}"
        pen.line((x, floor, x, floor + 4), fill=_INK)
        pen.text((x, floor + 8), text, fill=_INK, font=_font(), anchor="ma")
    pen.text((_LEFT + width, floor + 24), unit, fill=_INK, font=_font(), anchor="ra")


def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(12)
