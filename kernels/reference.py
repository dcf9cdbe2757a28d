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
    padded = np.zeros((rows, -(-dimension // LANES) * LANES))
    padded[:, :dimension] = matrix
    return padded.reshape(rows, -1, LANES).transpose(1, 0, 2)


def _fold(a: NDArray[np.float64], b: NDArray[np.float64], *, difference: bool = False) -> NDArray[np.float64]:
    import numpy as np

    sums = np.zeros((max(a.shape[1], b.shape[1]), LANES))
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


def crc32c(data: bytes, value: int = 0) -> int:
    """CRC-32C bit by bit: reflected polynomial 0x82F63B78, start and end inverted."""
    crc = value ^ 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def resize(
    source: NDArray[np.uint8], size: tuple[int, int], box: tuple[float, float, float, float]
) -> NDArray[np.float64]:
    """(height, width, C) float64 before rounding: the box (x0, y0, x1, y1) of an HWC image under a triangle filter.

    The filter is as wide as a source pixel when enlarging and as a target pixel when reducing: Pillow's BILINEAR.
    """
    import numpy as np

    down = _triangle(source.shape[0], box[1], box[3], size[0])
    across = _triangle(source.shape[1], box[0], box[2], size[1])
    exact: NDArray[np.float64] = np.einsum("yi,ijc,xj->yxc", down, source.astype(np.float64), across, optimize=True)
    return exact


def _triangle(held: int, start: float, stop: float, size: int) -> NDArray[np.float64]:
    """(size, held): the weight of each source pixel in each target pixel, rows summing to one."""
    import numpy as np

    scale = (stop - start) / size
    width = max(scale, 1.0)
    centers = start + (np.arange(size) + 0.5) * scale
    weights: NDArray[np.float64] = np.maximum(0.0, 1 - np.abs(np.arange(held) + 0.5 - centers[:, None]) / width)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights
