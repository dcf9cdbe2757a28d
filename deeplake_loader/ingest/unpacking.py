"""Compressed archives as a stream of what is in them, within limits: a small file may unpack to terabytes of zeros."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from deeplake_loader.errors import CorruptionError, InputError

MAX_EXPANSION = 100
"""How many times its size an archive may unpack to, beyond `FREE_BYTES`."""

FREE_BYTES = 256 << 20

Read = Callable[[int, int], bytes]


@contextmanager
def unpack(name: str, size: int, read: Read) -> Iterator[Read]:
    """A function that reads ranges of the unpacked archive, in ascending order only.

    It raises CorruptionError where the compressed data is damaged or cut, or swells beyond the limit.

    Args:
        name: whose suffix tells the compression: gz, tgz, bz2, xz or zst.
        size: of the compressed file.
        read: gives ranges of the compressed file.
    """
    with _open(name, _File(size, read)) as file:
        yield _Forward(name, size, file)


class _File(io.RawIOBase):
    """The compressed file as Python's decompressors take one."""

    def __init__(self, size: int, read: Read) -> None:
        self._size, self._read, self._at = size, read, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._read(self._at, min(len(buffer), self._size - self._at))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seekable(self) -> bool:
        return False


class _Forward:
    """Ranges of a stream, in ascending order."""

    def __init__(self, name: str, size: int, file: IO[bytes]) -> None:
        self._name, self._file, self._at = name, file, 0
        self._limit = FREE_BYTES + MAX_EXPANSION * size

    def __call__(self, offset: int, length: int) -> bytes:
        while self._at < offset:
            if not self._take(min(offset - self._at, 1 << 20)):
                return b""
        parts: list[bytes] = []
        while length and (data := self._take(length)):
            parts.append(data)
            length -= len(data)
        return b"".join(parts)

    def _take(self, length: int) -> bytes:
        import lzma

        try:
            data = self._file.read(min(length, 8 << 20))
        except (zlib.error, lzma.LZMAError, EOFError, OSError) as error:
            raise CorruptionError(f"{self._name}: the compressed data is damaged or cut: {error}") from error
        self._at += len(data)
        if self._at > self._limit:
            raise CorruptionError(f"{self._name} unpacks to more than {self._limit} bytes; unpack it if you trust it")
        return data


def _open(name: str, file: _File) -> Any:
    import bz2
    import gzip
    import lzma

    lower = name.lower()
    buffered: Any = io.BufferedReader(file, 1 << 20)
    if lower.endswith("gz"):
        return gzip.GzipFile(fileobj=buffered, mode="rb")
    if lower.endswith("bz2"):
        return bz2.BZ2File(buffered)
    if lower.endswith("xz"):
        return lzma.LZMAFile(buffered)
    if lower.endswith("zst"):
        import pyarrow as pa

        return pa.CompressedInputStream(pa.PythonFile(buffered, mode="r"), "zstd")
    raise InputError(f"{name} is compressed in no known way: gz, bz2, xz and zst are")
