"""Contact sheets: many small pictures with a caption each, laid out in rows on one image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from deeplake_loader.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image, ImageDraw

    Array = np.ndarray[Any, np.dtype[np.uint8]]

MAX_PIXELS = 100_000_000
"""The largest sheet: 300 MB in memory."""

_BACK, _TEXT, _BAD = (24, 24, 28), (222, 222, 226), (120, 36, 36)
_PAD, _LINE, _FONT = 8, 15, 12


@dataclass(frozen=True, slots=True)
class Tile:
    """One place of a sheet: ``pixels`` (h, w, 3) uint8, None where there is no picture (a crossed box is drawn), and
    the ``caption`` below it, cut to its width, a line for each of its lines."""

    pixels: Array | None
    caption: str = ""

    def __repr__(self) -> str:
        shape = None if self.pixels is None else self.pixels.shape
        return f"Tile({shape}, {self.caption!r})"


def contact_sheet(tiles: Iterable[Tile], *, columns: int = 6, empty: int = 96) -> Image.Image:
    """The tiles from left to right in rows of ``columns``, as an RGB Pillow image; a row is as high as its highest
    tile, a column as wide as its widest.

    Args:
        empty: side of the box drawn for a tile without a picture, in pixels.

    Raises:
        InputError: no tile, ``columns`` below 1, or a sheet of more than 100 million pixels.

    >>> import numpy as np
    >>> contact_sheet([Tile(np.zeros((40, 60, 3), np.uint8), "black")] * 5, columns=3).size
    (212, 142)
    """
    from PIL import Image, ImageDraw

    listed = list(tiles)
    if not listed or columns < 1:
        raise InputError(f"a contact sheet needs a tile and a column, got {len(listed)} tiles, columns={columns}")
    rows = [listed[i : i + columns] for i in range(0, len(listed), columns)]
    widths = [max(_size(row[i], empty)[1] for row in rows if i < len(row)) for i in range(len(rows[0]))]
    heights = [max(_size(tile, empty)[0] + _LINE * len(tile.caption.splitlines()) for tile in row) for row in rows]
    width, height = sum(widths) + _PAD * (len(widths) + 1), sum(heights) + _PAD * (len(heights) + 1)
    if width * height > MAX_PIXELS:
        raise InputError(f"a sheet of {width}x{height} pixels is more than {MAX_PIXELS:,}; take fewer or smaller tiles")
    sheet = Image.new("RGB", (width, height), _BACK)
    pen, top = ImageDraw.Draw(sheet), _PAD
    for row, high in zip(rows, heights, strict=True):
        _put_row(sheet, pen, row, widths, top, empty)
        top += high + _PAD
    return sheet


def _put_row(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, row: Sequence[Tile], widths: Sequence[int], top: int, empty: int
) -> None:
    from PIL import Image

    left = _PAD
    for tile, width in zip(row, widths, strict=False):
        if tile.pixels is None:
            pen.rectangle((left, top, left + empty - 1, top + empty - 1), outline=_BAD, width=2)
            pen.line((left, top, left + empty - 1, top + empty - 1), fill=_BAD, width=2)
        else:
            sheet.paste(Image.fromarray(tile.pixels), (left, top))
        below = top + _size(tile, empty)[0]
        for i, line in enumerate(tile.caption.splitlines()):
            pen.text((left, below + 1 + i * _LINE), cut_text(line, width), fill=_TEXT, font=font())
        left += width + _PAD


def _size(tile: Tile, empty: int) -> tuple[int, int]:
    return (empty, empty) if tile.pixels is None else (tile.pixels.shape[0], tile.pixels.shape[1])


def cut_text(text: str, width: int) -> str:
    """As much of the text as is at most so many pixels wide, with an ellipsis where some is missing."""
    if font().getlength(text) <= width:
        return text
    kept = text[: max(1, width)]  # no letter is narrower than a pixel
    while kept and font().getlength(kept + "…") > width:
        kept = kept[:-1]
    return kept + "…" if kept else ""


@lru_cache(maxsize=1)
def font() -> Any:
    """The font that comes with Pillow, which knows Latin letters."""
    from PIL import ImageFont

    return ImageFont.load_default(_FONT)
