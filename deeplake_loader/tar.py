"""Tar members as bytes: ustar headers made fast enough for bulk inserts, pax headers where ustar cannot say it.

Only writing is here; the store never parses a tar to find a sample. The headers are those of ``tarfile`` with a regular
file's mode 0644 and no owner.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

BLOCK = 512
END = bytes(2 * BLOCK)
"""The end-of-archive mark: what lies behind it is invisible to every tar reader, so members are written over it."""

_NAME = 100  # bytes of a ustar name
_MAX_SIZE = 0o77777777777  # 8 GiB - 1: eleven octal digits
_OWNER = b"0000644\x000000000\x000000000\x00"
_TAIL = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)
_ZEROS = bytes(BLOCK)
_SPACES = 8 * ord(" ")  # the checksum field counts as spaces
_MANY = 64  # headers from which making them together pays


def padding(size: int) -> bytes:
    """The zeros that fill a member of ``size`` bytes up to a whole block."""
    return _ZEROS[: -size % BLOCK]


def padded(size: int) -> int:
    """``size`` rounded up to whole blocks."""
    return size + -size % BLOCK


def global_comment(text: str) -> bytes:
    """A pax global header with a comment, which readers of tars pass over.

    >>> len(global_comment("made by hand"))
    1024
    """
    import tarfile

    return tarfile.TarInfo.create_pax_global_header({"comment": text})


class Headers:
    """Member headers of one append, all with the same modification time (seconds since 1970, default now).

    >>> header = Headers(0).header("a.txt", 5)
    >>> len(header), header[:5], header[124:136]
    (512, b'a.txt', b'00000000005\\x00')
    """

    __slots__ = ("_fixed_sum", "_mtime", "_time")

    def __init__(self, mtime: int | None = None) -> None:
        self._time = int(time.time()) if mtime is None else mtime
        self._mtime = b"%011o\0" % self._time
        self._fixed_sum = sum(_OWNER) + sum(self._mtime) + sum(_TAIL) + _SPACES

    def header(self, name: str, size: int) -> bytes:
        """What precedes the data of a member: one block, or three with a pax header for a long name or size."""
        encoded = name.encode()
        if len(encoded) > _NAME or size > _MAX_SIZE:
            return self._pax(name, size)
        digits = b"%011o\0" % size
        check = b"%06o\0 " % (self._fixed_sum + sum(encoded) + sum(digits))
        return b"".join((encoded.ljust(_NAME, b"\0"), _OWNER, digits, self._mtime, check, _TAIL))

    def many(self, names: Sequence[str], sizes: Sequence[int]) -> list[bytes] | list[memoryview]:
        """``header`` of every member, in a third of the time."""
        encoded = [name.encode() for name in names]
        if len(names) < _MANY or max(map(len, encoded)) > _NAME or max(sizes) > _MAX_SIZE:
            return list(map(self.header, names, sizes))
        import numpy as np

        blocks = np.empty((len(names), BLOCK), np.uint8)
        blocks[:] = np.frombuffer(self.header("", 0), np.uint8)
        blocks[:, :_NAME] = np.array(encoded, f"S{_NAME}").view(np.uint8).reshape(-1, _NAME)
        blocks[:, 124:135] = _octal(sizes, 11)
        sums = blocks[:, :_NAME].sum(axis=1, dtype=np.int64) + blocks[:, 124:135].sum(axis=1, dtype=np.int64)
        blocks[:, 148:154] = _octal(sums + self._fixed_sum, 6)
        whole = memoryview(blocks.tobytes())
        return [whole[start : start + BLOCK] for start in range(0, len(whole), BLOCK)]

    def _pax(self, name: str, size: int) -> bytes:
        import tarfile

        member = tarfile.TarInfo(name)
        member.size, member.mtime = size, self._time
        return member.tobuf(tarfile.PAX_FORMAT)


def _octal(numbers: Any, digits: int) -> Any:
    """A row of ASCII octal digits per number."""
    import numpy as np

    return (np.asarray(numbers, np.int64)[:, None] >> np.arange(3 * digits - 3, -1, -3) & 7) + ord("0")
