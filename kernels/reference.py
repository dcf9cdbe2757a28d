"""What each operation means, in numpy: the specification that every other implementation is tested against.

``scores`` fixes even the order of the sums. The elements of row and query are taken as float64 and dealt to 16 lanes
(element i to lane i % 16); each lane adds its products in order; the lanes are folded in halves (8 + 8, 4 + 4, 2 + 2,
1 + 1). A product of two float32 numbers is exact in float64, so a fused multiply-add changes nothing, no sum of squares
overflows, and a sum is finite exactly when every element is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LANES = 16


def scores(matrix: NDArray[Any], query: NDArray[np.float32], metric: str) -> NDArray[np.float64]:
    """One score per row of a 2-D float matrix; NaN where there is none (see ``search.scores``)."""
    import numpy as np

    with np.errstate(all="ignore"):  # NaN and infinity are expected here, and answered with NaN
        rows, wanted = _lanes(matrix), _lanes(query[None, :])
        if metric == "l2":
            total = _fold(rows, wanted, difference=True)
            return np.where(np.isfinite(total), np.sqrt(total), np.nan)
        dot, of_query = _fold(rows, wanted), _fold(wanted, wanted)
        if metric == "inner":
            return np.where(np.isfinite(dot) & np.isfinite(of_query), dot, np.nan)
        of_rows = _fold(rows, rows)
        known = np.isfinite(of_rows) & (of_rows > 0) & np.isfinite(of_query) & (of_query > 0)
        return np.where(known, np.clip(dot / np.sqrt(of_rows * of_query), -1, 1), np.nan)


def _lanes(matrix: NDArray[Any]) -> NDArray[np.float64]:
    """(steps, rows, 16): the elements as float64, padded with zeros, which change no sum."""
    import numpy as np

    rows, dimension = matrix.shape
    steps = -(-dimension // LANES)
    padded = np.zeros((rows, steps * LANES))
    padded[:, :dimension] = matrix
    return padded.reshape(rows, steps, LANES).transpose(1, 0, 2)


def _fold(a: NDArray[np.float64], b: NDArray[np.float64], *, difference: bool = False) -> NDArray[np.float64]:
    import numpy as np

    sums = np.zeros((a.shape[1], LANES))
    for x, y in zip(a, b, strict=True):
        sums += (x - y) ** 2 if difference else x * y
    for half in (8, 4, 2, 1):
        sums = sums[:, :half] + sums[:, half:]
    return sums.ravel()


def kth_best(scores: memoryview | NDArray[np.float64], k: int, largest: bool) -> float:
    """The k-th largest (smallest) score, NaN left out; NaN if there are fewer."""
    import numpy as np

    values = np.asarray(scores, dtype=np.float64)
    values = values[~np.isnan(values)]
    if len(values) < k:
        return float("nan")
    place = len(values) - k if largest else k - 1
    return float(np.partition(values, place)[place])


def at_least(scores: memoryview | NDArray[np.float64], threshold: float, largest: bool) -> NDArray[np.int64]:
    """The positions of the scores >= (<=) the threshold."""
    import numpy as np

    values = np.asarray(scores, dtype=np.float64)
    return np.flatnonzero(values >= threshold if largest else values <= threshold).astype(np.int64)


def topk(
    matrix: NDArray[Any],
    queries: NDArray[np.float32],
    k: int,
    metric: str,
    rows: NDArray[np.int64] | None = None,
    bitmap: NDArray[np.uint8] | None = None,
    scale: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(q, k) row numbers and scores, best first, ties by the lowest row; -1 and NaN where there is none."""
    import numpy as np

    chosen = np.arange(len(matrix)) if rows is None else np.unique(rows)
    if bitmap is not None:
        chosen = np.flatnonzero(np.unpackbits(bitmap, bitorder="little", count=len(matrix)))
    floats = dequantized(matrix[chosen], None if scale is None else scale[chosen])
    numbers = np.full((len(queries), k), -1, np.int64)
    best = np.full((len(queries), k), np.nan)
    for i, query in enumerate(queries):
        found = scores(floats, query, metric)
        order = np.argsort(found if metric == "l2" else -found, kind="stable")  # NaN goes last
        order = order[: min(k, int(np.isfinite(found).sum()))]
        numbers[i, : len(order)], best[i, : len(order)] = chosen[order], found[order]
    return numbers, best


def dequantized(matrix: NDArray[Any], scale: NDArray[np.float32] | None) -> NDArray[Any]:
    """The rows as float16 or float32: bfloat16 (uint16 or V2) is exact, int8 times its row's scale is rounded once."""
    import numpy as np

    if scale is not None:
        with np.errstate(all="ignore"):
            return matrix.astype(np.float32) * scale[:, None]
    if matrix.dtype.itemsize == 2 and matrix.dtype.kind in "uV":
        return (matrix.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return matrix


def crc32c(data: bytes, value: int = 0) -> int:
    """CRC-32C bit by bit: reflected polynomial 0x82F63B78, start and end inverted."""
    crc = value ^ 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


SUPPORTS = {"nearest": 0.0, "area": 0.5, "bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}
"""Half the width of each filter in pixels."""


def resize(
    source: NDArray[np.uint8],
    size: tuple[int, int],
    box: tuple[float, float, float, float],
    interpolation: str = "bilinear",
    *,
    antialias: bool = True,
) -> NDArray[np.float64]:
    """(height, width, C) float64: the box (x0, y0, x1, y1) of an HWC image under a filter, before rounding.

    The filter is as wide as its support in source pixels when enlarging, and in target pixels when reducing with
    ``antialias``. What "bicubic" and "lanczos" put beyond 0..255 is cut off after each direction, down first.
    """
    import numpy as np

    down = _weights(source.shape[0], box[1], box[3], size[0], interpolation, antialias)
    across = _weights(source.shape[1], box[0], box[2], size[1], interpolation, antialias)
    rows: NDArray[np.float64] = np.einsum("yi,ijc->yjc", down, source.astype(np.float64), optimize=True).clip(0, 255)
    exact: NDArray[np.float64] = np.einsum("yjc,xj->yxc", rows, across, optimize=True).clip(0, 255)
    return exact


def _weights(
    held: int, start: float, stop: float, size: int, interpolation: str, antialias: bool
) -> NDArray[np.float64]:
    """(size, held): the weight of each source pixel in each target pixel, rows summing to one."""
    import numpy as np

    scale = (stop - start) / size
    step = max(scale, 1.0) if antialias else 1.0
    centers = start + (np.arange(size) + 0.5) * scale
    if interpolation == "nearest":  # the pixel under the centre; summed step by step as in Pillow, for centres on edges
        steps = np.cumsum([start + 0.5 * scale, *[scale] * (size - 1)])
        return np.eye(held)[np.minimum(steps.astype(np.int64), held - 1)]
    width = SUPPORTS[interpolation] * step
    pixels = np.arange(held)
    near = (pixels >= np.floor(centers - width + 0.5)[:, None]) & (pixels < np.floor(centers + width + 0.5)[:, None])
    weights: NDArray[np.float64] = near * _height((pixels + 0.5 - centers[:, None]) / step, interpolation)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def _height(x: NDArray[np.float64], interpolation: str) -> NDArray[np.float64]:
    """The filter's height at x; "bicubic" is Keys' cubic with a = -0.5."""
    import numpy as np

    far = np.abs(x)
    height: NDArray[np.float64]
    if interpolation == "area":
        height = ((x > -0.5) & (x <= 0.5)).astype(np.float64)
    elif interpolation == "bilinear":
        height = np.maximum(0.0, 1 - far)
    elif interpolation == "lanczos":
        height = np.where(far < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    else:
        inner, outer = (1.5 * far - 2.5) * far * far + 1, ((-0.5 * far + 2.5) * far - 4) * far + 2
        height = np.where(far < 1, inner, np.where(far < 2, outer, 0.0))
    return height


def normalize(pixels: NDArray[Any], mean: list[float], std: list[float]) -> NDArray[np.float64]:
    """(..., C) float64: (value / 255 - mean) / std of each channel, before it is rounded to a smaller type."""
    import numpy as np

    exact: NDArray[np.float64] = (pixels / 255 - np.array(mean)) / np.array(std)
    return exact


def yuv_to_rgb(
    y: NDArray[np.uint8], u: NDArray[np.uint8], v: NDArray[np.uint8], matrix: str, range: str
) -> NDArray[np.float64]:
    """(N, H, W, 3) float64 in 0..255, not rounded: 4:2:0 frames by the equations of ITU-R BT.601 or BT.709.

    Luma and chroma become E' in 0..1 and -0.5..0.5; then R = Y + 2 (1 - Kr) V, B = Y + 2 (1 - Kb) U, and G is what is
    left of Y = Kr R + Kg G + Kb B.
    """
    import numpy as np

    red, blue = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}[matrix]
    foot, luma, chroma = (16, 219, 224) if range == "limited" else (0, 255, 255)
    up = [np.repeat(np.repeat(p.astype(np.float64), 2, 1), 2, 2)[:, : y.shape[1], : y.shape[2]] for p in (u, v)]
    level, cb, cr = (y - float(foot)) / luma, (up[0] - 128) / chroma, (up[1] - 128) / chroma
    r, b = level + 2 * (1 - red) * cr, level + 2 * (1 - blue) * cb
    g = (level - red * r - blue * b) / (1 - red - blue)
    rgb: NDArray[np.float64] = np.stack([r, g, b], axis=3).clip(0, 1) * 255
    return rgb
