"""Pictures in a terminal: each character is an upper half block, whose two halves are two pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from deeplake_loader.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.uint8]]

Colours = Literal["truecolor", "256", "none"]

_RAMP = " .:-=+*#%@"
_BLOCK, _RESET = "▀", "\x1b[0m"


def half_blocks(pixels: Array, *, width: int = 60, height: int | None = None, colours: Colours = "truecolor") -> str:
    """The (h, w, 3) uint8 picture as lines of text, at most ``width`` characters wide and ``height`` lines high, never
    enlarged.

    Args:
        colours: ``truecolor`` or ``256``, as escape codes of terminals, two pixels a character; ``none``: characters
            from dark to light, one for two rows of pixels.

    Raises:
        InputError: pixels of another shape, a width or height below 1, or unknown colours.

    >>> import numpy as np
    >>> half_blocks(np.array([[[0] * 3, [255] * 3]] * 2, np.uint8), colours="none")
    ' @'
    """
    import numpy as np

    if colours not in get_args(Colours):
        raise InputError(f"colours={colours!r} is none of {', '.join(get_args(Colours))}")
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size or pixels.dtype != np.uint8:
        raise InputError(f"expected pixels (h, w, 3) uint8, got {pixels.dtype} {pixels.shape}")
    if width < 1 or (height is not None and height < 1):
        raise InputError(f"width={width!r}, height={height!r}: expected at least 1")
    shrunk = _even(_shrunk(pixels, width, None if height is None else 2 * height))
    top, bottom = shrunk[::2], shrunk[1::2]
    if colours == "none":
        return "\n".join(_grey_line((a.astype(float) + b) / 2) for a, b in zip(top, bottom, strict=True))
    code = _true if colours == "truecolor" else _indexed
    return "\n".join(_line(a, b, code) for a, b in zip(top, bottom, strict=True))


def _shrunk(pixels: Array, width: int, height: int | None) -> Array:
    import numpy as np
    from PIL import Image

    scale = min(1.0, width / pixels.shape[1], 1.0 if height is None else height / pixels.shape[0])
    if scale == 1.0:
        return pixels
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


def _even(pixels: Array) -> Array:
    """With an even number of rows: the last one twice."""
    import numpy as np

    return pixels if len(pixels) % 2 == 0 else np.concatenate([pixels, pixels[-1:]])


def _grey_line(row: Any) -> str:
    luma = row @ [0.299, 0.587, 0.114]
    return "".join(_RAMP[min(len(_RAMP) - 1, int(v * len(_RAMP) / 256))] for v in luma)


def _line(top: Array, bottom: Array, code: Any) -> str:
    """One line of characters; a colour is told only where it changes."""
    parts: list[str] = []
    before: tuple[str, str] | None = None
    for upper, lower in zip(top.tolist(), bottom.tolist(), strict=True):
        colours = code(upper), code(lower)
        parts.append(_BLOCK if colours == before else f"\x1b[38;{colours[0]};48;{colours[1]}m{_BLOCK}")
        before = colours
    return "".join(parts) + _RESET


def _true(colour: list[int]) -> str:
    return f"2;{colour[0]};{colour[1]};{colour[2]}"


def _indexed(colour: list[int]) -> str:
    """The nearest of xterm's cube of 6x6x6 colours, numbers 16 to 231."""
    r, g, b = (round(value / 51) for value in colour)
    return f"5;{16 + 36 * r + 6 * g + b}"
