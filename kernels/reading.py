"""One call reads and verifies a whole batch: Python threads make raw reading slower, threads below the GIL do not."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from deeplake_loader.errors import InputError

from . import fallback
from .buffers import INT32, INT64, Pin, flat, items, same_length
from .library import address, choice

if TYPE_CHECKING:
    from typing_extensions import Buffer


def read_batch(
    fds: Buffer,
    offsets: Buffer,
    lengths: Buffer,
    checks: Buffer,
    out: Buffer,
    out_offsets: Buffer,
    threads: int = 2,
) -> array[int]:
    """One status per item: 0 read and verified, 1 the file ends early, 2 checksum mismatch, -errno a failed read.

    Item i is ``lengths[i]`` bytes at ``offsets[i]`` of the open file ``fds[i]``; it goes to ``out_offsets[i]`` of the
    writable buffer ``out`` and its CRC-32C is compared with ``checks[i]`` (-1: not compared). ``fds`` is int32, the
    others int64. Bytes of an item whose status is not 0 are undefined. Raises InputError, before anything is read,
    for an item that is negative or does not fit ``out``.

    >>> from array import array
    >>> import tempfile
    >>> with tempfile.TemporaryFile() as file:
    ...     _ = file.write(b"..hello.."), file.flush()
    ...     q, out = lambda n: array("q", [n]), bytearray(5)
    ...     read_batch(array("i", [file.fileno()]), q(2), q(5), q(0x9A71BB4C), out, q(0)).tolist(), bytes(out)
    ([0], b'hello')
    """
    views = {
        "offsets": items("offsets", offsets, INT64, "int64"),
        "lengths": items("lengths", lengths, INT64, "int64"),
        "checks": items("checks", checks, INT64, "int64"),
        "out_offsets": items("out_offsets", out_offsets, INT64, "int64"),
    }
    files = items("fds", fds, INT32, "int32 file descriptors")
    count = same_length(fds=files, **views)
    chosen = choice()
    with Pin("out", out, writable=True) as target:
        if chosen.library is None:
            _check(views, target.nbytes)
            return fallback.read_batch(files, views, flat("out", out))
        status = array("i", bytes(4 * count))
        with (
            Pin("fds", files) as f,
            Pin("offsets", offsets) as start,
            Pin("lengths", lengths) as length,
            Pin("checks", checks) as check,
            Pin("out_offsets", out_offsets) as place,
        ):
            refused = chosen.library.dl_read_batch(
                chosen.level, count, f.address, start.address, length.address, check.address,
                target.address, target.nbytes, place.address, address(status), threads,
            )  # fmt: skip
        if refused:
            _check(views, target.nbytes)
    return status


def _check(views: dict[str, memoryview], size: int) -> None:
    columns = zip(views["offsets"], views["lengths"], views["out_offsets"], strict=True)
    for i, (offset, length, place) in enumerate(columns):
        if offset < 0 or length < 0 or place < 0 or place + length > size:
            raise InputError(
                f"item {i}: {length} bytes at {offset} of its file cannot go to {place} of a buffer of {size} bytes"
            )
