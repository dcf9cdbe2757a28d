"""What runs where there is no compiled library: the same answers from numpy, google-crc32c and Pillow, more slowly."""

from __future__ import annotations

import os
import re
from array import array
from typing import TYPE_CHECKING, Any

from deeplake_loader.errors import InputError

from . import reference
from .buffers import flat

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer

_SCORE_CHUNK = 4096  # rows taken to float64 at a time: 25 MB at 768 dimensions
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
    source: NDArray[np.uint8], size: tuple[int, int], box: tuple[float, float, float, float]
) -> NDArray[np.uint8]:
    """(height, width, C) uint8."""
    import numpy as np
    from PIL import Image

    image: Any = Image.fromarray(source if source.shape[2] > 1 else source[:, :, 0])
    done: NDArray[np.uint8] = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box))
    return done.reshape(*size, source.shape[2])
