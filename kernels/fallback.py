"""What runs where there is no compiled library: the same answers from numpy, google-crc32c and Pillow, more slowly."""

from __future__ import annotations

import os
import re
from array import array
from typing import TYPE_CHECKING, Any

from deeplake_loader.errors import InputError

from . import reference
from .buffers import INT64, flat, items

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer

_SCORE_CHUNK = 4096  # rows taken to float64 at a time: 25 MB at 768 dimensions
SMALLEST, LARGEST = 1e-25, 1e25  # squared lengths between which float32 sums of squares lose nothing that counts
_INTEGERS = re.compile(rb"-?[0-9]+(?:,-?[0-9]+)*")


def crc32c(data: Buffer, value: int) -> int:
    import google_crc32c

    return int(google_crc32c.extend(value, bytes(flat("data", data))))


def crc32c_blocks(data: Buffer, block: int) -> bytes:
    view = flat("data", data)
    sums = (crc32c(view[start : start + block], 0) for start in range(0, len(view), block))
    return b"".join(value.to_bytes(4, "little") for value in sums)


def parse_integers(raw: bytes) -> array[int]:
    if not _INTEGERS.fullmatch(raw):
        raise InputError(f"{raw[:40]!r} is not a list of int64 numbers; expected '12,34,-56'")
    try:
        return array("q", map(int, raw.split(b",")))
    except (OverflowError, ValueError) as error:  # ValueError: more digits than Python's limit for int()
        raise InputError(f"a number in {raw[:40]!r}... does not fit int64; expected '12,34,-56'") from error


def sort_unique(numbers: array[int]) -> array[int]:
    import numpy as np

    return array("q", np.unique(np.frombuffer(numbers, np.int64)).tobytes())


def set_bits(bitmap: bytearray, numbers: memoryview, on: bool) -> int:
    import numpy as np

    rows = np.frombuffer(numbers, np.int64)
    bad = ((rows < 0) | (rows >= 8 * len(bitmap))).nonzero()[0]
    if len(bad):
        raise InputError(f"numbers[{bad[0]}] is {rows[bad[0]]}; the bitmap has bits 0..{8 * len(bitmap) - 1}")
    flags = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
    before = int(flags.sum())
    flags[rows] = on
    bitmap[:] = np.packbits(flags, bitorder="little").tobytes()
    return abs(int(flags.sum()) - before)


def scores(
    matrix: Buffer, count: int, dimension: int, dtype: str, query: Buffer, metric: str, rows: memoryview | None
) -> array[float]:
    import numpy as np

    table = np.frombuffer(memoryview(matrix), dtype=f"<f{2 if dtype == 'float16' else 4}", count=count * dimension)
    table = table.reshape(count, dimension)
    wanted = np.frombuffer(memoryview(query), dtype="<f4")
    chosen = None if rows is None else np.frombuffer(rows, dtype=np.int64)
    if chosen is not None:
        _check_rows(chosen, count)
    out = array("d")
    for start in range(0, count if chosen is None else len(chosen), _SCORE_CHUNK):
        part = slice(start, start + _SCORE_CHUNK)
        out.frombytes(reference.scores(table[part if chosen is None else chosen[part]], wanted, metric).tobytes())
    return out


def chosen_rows(count: int, rows: Buffer | None, bitmap: Buffer | None) -> NDArray[np.int64]:
    """The numbers of the rows to search, ascending, each once."""
    import numpy as np

    if rows is not None:
        listed = np.frombuffer(items("rows", rows, INT64, "int64 row numbers"), np.int64)
        _check_rows(listed, count)
        return np.unique(listed)
    if bitmap is not None:
        bits = np.frombuffer(memoryview(bitmap), np.uint8)
        return np.flatnonzero(np.unpackbits(bits, bitorder="little", count=count))
    return np.arange(count)


def reaching(
    matrix: Buffer,
    count: int,
    dimension: int,
    dtype: str,
    query: Buffer,
    metric: str,
    k: int,
    slack: float,
    rows: Buffer | None,
    bitmap: Buffer | None,
) -> tuple[array[int], array[float]]:
    import numpy as np

    table = np.frombuffer(memoryview(matrix), f"<f{4 if dtype == 'float32' else 2}", count * dimension)
    wanted = np.frombuffer(memoryview(query), "<f4")[None, :]
    chosen = chosen_rows(count, rows, bitmap)
    [(found, best)] = best_rows(table.reshape(count, dimension), wanted, k, metric, chosen, None, slack)
    return array("q", found.tobytes()), array("d", best.tobytes())


Best = tuple["NDArray[np.int64]", "NDArray[np.float64]"]


def best_rows(
    matrix: NDArray[Any],
    queries: NDArray[np.float32],
    k: int,
    metric: str,
    chosen: NDArray[np.int64],
    scale: NDArray[np.float32] | None,
    slack: float | None,
) -> list[Best]:
    """Rows and scores for each query, best first: ``k`` of them, or with ``slack`` all within it of the k-th best."""
    import numpy as np

    sign = -1.0 if metric == "l2" else 1.0
    best: list[Best] = [(np.zeros(0, np.int64), np.zeros(0)) for _ in queries]
    for start in range(0, len(chosen), _SCORE_CHUNK):
        numbers = chosen[start : start + _SCORE_CHUNK]
        floats = reference.dequantized(matrix[numbers], None if scale is None else scale[numbers])
        lower, upper = _intervals(floats.astype(np.float32), queries, metric)
        for i, query in enumerate(queries):
            reach = max(_kth(best[i][1], k), _kth(lower[:, i], k)) - (slack or 0.0)
            candidates = np.flatnonzero(upper[:, i] >= reach)
            scored = sign * reference.scores(floats[candidates], query, metric)
            best[i] = _merged(best[i], (numbers[candidates], scored), k, slack)
    return [(rows, sign * scored) for rows, scored in best]


def _kth(scored: NDArray[np.float64], k: int) -> float:
    """The k-th largest, or -inf where there are fewer."""
    import numpy as np

    return -np.inf if len(scored) < k else float(np.partition(scored, len(scored) - k)[len(scored) - k])


def _merged(old: Best, new: Best, k: int, slack: float | None) -> Best:
    import numpy as np

    known = ~np.isnan(new[1])
    rows, scored = np.concatenate([old[0], new[0][known]]), np.concatenate([old[1], new[1][known]])
    order = np.lexsort((rows, -scored))
    if len(order) > k:
        last = scored[order[k - 1]]
        order = order[:k] if slack is None else order[scored[order] >= last - slack]
    return rows[order], scored[order]


def scan_error(dimension: int) -> float:
    """Of a float32 sum in any order, and of what is computed from it."""
    return (dimension + 32) * 2.0**-23


def _intervals(
    floats: NDArray[np.float32], queries: NDArray[np.float32], metric: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two (rows, q) arrays between which the score lies, larger taken as better: -inf and inf where float32 fails."""
    import numpy as np

    error = scan_error(floats.shape[1])
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(queries.astype(np.float64), axis=1)
        dots = (floats @ (queries / lengths[:, None]).astype(np.float32).T) * lengths
        squares = np.einsum("ij,ij->i", floats, floats).astype(np.float64)[:, None]
        products = np.sqrt(squares) * lengths
        if metric == "l2":
            total, gap = squares - 2 * dots + lengths**2, 2 * error * (squares + products + lengths**2)
            lower, upper = -np.sqrt(total + gap), -np.sqrt(np.maximum(total - gap, 0))
        elif metric == "inner":
            lower, upper = dots - error * products, dots + error * products
        else:
            lower, upper = dots / products - error, dots / products + error
    plain = (squares > SMALLEST) & (squares < LARGEST) & (lengths > SMALLEST) & (lengths < LARGEST)
    return np.where(plain, lower, -np.inf), np.where(plain, upper, np.inf)


def _check_rows(rows: NDArray[np.int64], count: int) -> None:
    bad = ((rows < 0) | (rows >= count)).nonzero()[0]
    if len(bad):
        raise InputError(f"rows[{bad[0]}] is {rows[bad[0]]}; the matrix has rows 0..{count - 1}")


def read_batch(fds: memoryview, views: dict[str, memoryview], out: memoryview) -> array[int]:
    offsets, lengths, checks, places = (views[name] for name in ("offsets", "lengths", "checks", "out_offsets"))
    found = zip(fds, offsets, lengths, checks, places, strict=True)
    return array("i", (_read(fd, offset, out[at : at + size], check) for fd, offset, size, check, at in found))


def _read(fd: int, offset: int, out: memoryview, check: int) -> int:
    done = 0
    while done < len(out):
        try:
            got = os.preadv(fd, [out[done:]], offset + done)
        except OSError as error:
            return -(error.errno or 5)
        if not got:
            return 1
        done += got
    return 2 if check >= 0 and crc32c(out, 0) != check else 0


def resize(
    source: NDArray[np.uint8],
    size: tuple[int, int],
    box: tuple[float, float, float, float],
    interpolation: str,
    antialias: bool,
) -> NDArray[np.uint8]:
    """(height, width, C) uint8, one channel at a time: Pillow would weigh colours by a fourth one, as alpha."""
    import numpy as np
    from PIL import Image

    if not antialias and interpolation != "nearest":
        exact = reference.resize(source, size, box, interpolation, antialias=False)
        return np.clip(np.floor(exact + 0.5), 0, 255).astype(np.uint8)
    kind = Image.Resampling["BOX" if interpolation == "area" else interpolation.upper()]
    channels = (Image.fromarray(np.ascontiguousarray(source[:, :, c])) for c in range(source.shape[2]))
    return np.stack([np.asarray(c.resize((size[1], size[0]), kind, box=box)) for c in channels], axis=2)


def normalize(pixels: NDArray[np.uint8], scale: list[float], shift: list[float], dtype: str) -> NDArray[Any]:
    """(N, H, W, C): a byte has 256 values, so each channel is looked up in a table of them."""
    import numpy as np

    exact = np.arange(256)[:, None] * np.array(scale) + np.array(shift)
    tables = _rounded(exact, dtype)
    return np.stack([tables[pixels[..., c], c] for c in range(pixels.shape[3])], axis=3)


def normalize_yuv(
    y: NDArray[np.uint8], u: NDArray[np.uint8], v: NDArray[np.uint8], numbers: list[float], dtype: str
) -> NDArray[Any]:
    """(N, H, W, 3), of the factors that ``normalize.yuv_factors`` gives."""
    import numpy as np

    height, width = y.shape[1:]
    blue, red = (np.repeat(np.repeat(p, 2, 1), 2, 2)[:, :height, :width] - 128.0 for p in (u, v))
    luma = y * numbers[0] + numbers[1]
    green = luma + numbers[3] * blue + numbers[4] * red
    rgb = np.stack([luma + numbers[2] * red, green, luma + numbers[5] * blue], axis=3).clip(0, 255)
    return _rounded(rgb * np.array(numbers[6:9]) + np.array(numbers[9:]), dtype)


def _rounded(exact: NDArray[np.float64], dtype: str) -> NDArray[Any]:
    """The numbers as float32, then as ``dtype``; bfloat16, the upper half of a float32, as dtype V2."""
    import numpy as np

    values = exact.astype(np.float32)
    if dtype == "float32":
        return values
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).view("V2")
