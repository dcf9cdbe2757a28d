"""Scan copies: a float32 vector file again in float16, half the bytes to read, with how far it may be off.

    .npy header 128 | rows float16 | crc32c of each 1 MB so far, 4 bytes each | magic 8 | sha256 of the source 32 |
    rows 8 | worst relative, worst absolute error of a row, longest row, 8 each | crc32c of all behind the rows 4

A copy lies beside its source as ``<name>.f16``, reads as a .npy, and is never more than a copy: one that is missing,
damaged or made of other bytes is passed over, and the file itself scanned. ``Copies.build`` makes what is lacking. A
file whose rows float16 cannot hold to 1 in 500 gets none.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deeplake_loader import kernels, store
from deeplake_loader.errors import CorruptionError, NotFoundError
from deeplake_loader.matrices import BLOCK, HEADER, Layout, Matrix, Sealed

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.scoring import Find, Metric

SUFFIX = "f16"
MIN_ROWS = 8_192
"""Rows from which a file gets a copy: fewer are scanned in less time than one more file is opened."""

_MAGIC = b"dl-f16\x01\n"
_TRAILER = struct.Struct("<8s32sQ3d")
_WORST = 1 / 500  # relative error of a row: eight times that of rows within float16's normal range
_CHUNK = 16 << 20
_FILES = "SELECT id, url, sha256 FROM _dl_files WHERE kind = 'vector' AND state = 'sealed' AND dtype = 'float32'"


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy: its rows, and for any row x of the source and its copy y the bounds of |x - y| / |x|, |x - y|, |x|."""

    matrix: Sealed
    relative: float
    absolute: float
    longest: float

    def error(self, metric: Metric) -> tuple[float, float]:
        """(a, b): the score of a copied row may miss that of the row itself by a + b |query|: the angle between the two
        for cosine, their distance for l2, the distance times |query| for the inner product; and what float64 rounds."""
        rounding = 4 * kernels.score_error(self.matrix.layout.dimension)
        if metric == "cosine":
            return 1.01 * self.relative + rounding, 0.0
        if metric == "l2":
            return 1.01 * self.absolute + rounding * self.longest, rounding
        return 0.0, 1.01 * self.absolute + rounding * self.longest


class Copies:
    """The scan copies of one store as this process has opened them."""

    def __init__(self, catalog: Catalog, find: Find) -> None:
        self._catalog, self._find = catalog, find
        self._open: dict[int, Copy] = {}

    def of(self, file: int, matrix: Matrix) -> Copy | None:
        """The copy of a sealed float32 file that this matrix is; None where there is none to be used."""
        known = self._open.get(file)
        if known is None and isinstance(matrix, Sealed) and matrix.layout.dtype == "float32":
            known = self._load(file, matrix)
        return known

    def _load(self, file: int, matrix: Sealed) -> Copy | None:
        path = self._path(matrix.url)
        if matrix.count < MIN_ROWS or not os.path.exists(path):
            return None
        row = self._catalog.fetchone("SELECT sha256 FROM _dl_files WHERE id = ?", (file,))
        try:
            found = _open(path, matrix, "" if row is None else str(row[0]))
        except NotFoundError:
            return None
        except CorruptionError:
            self.drop(file, matrix)
            return None
        if found is not None:
            self._open[file] = found
        return found

    def drop(self, file: int, matrix: Matrix) -> None:
        """Forgets and removes a copy that turned out to be damaged, so that the next ``build`` makes it again."""
        self._open.pop(file, None)
        if isinstance(matrix, Sealed) and not self._catalog.read_only:
            with suppress(OSError):
                os.unlink(self._path(matrix.url))

    def close(self) -> None:
        """Lets go of every mapped copy."""
        self._open.clear()

    def damaged(self) -> Iterator[tuple[str, str]]:
        """(path, what is wrong) of every copy whose bytes are not what was written; nothing is changed."""
        for file, url, sha256 in self._catalog.fetchall(_FILES):
            path = self._path(url)
            if not os.path.exists(path):
                continue
            try:
                matrix = self._find(file, 0)
                found = _open(path, matrix, sha256) if isinstance(matrix, Sealed) else None
                if found is not None:
                    found.matrix.verify(range(found.matrix.count))
            except CorruptionError as error:
                if path in str(error):
                    yield path, str(error)

    def build(self) -> int:
        """Makes the copies that are lacking; gives the number of files that got one.

        Raises:
            StoreError: the disk is full or refuses.
            CorruptionError: bytes of a source changed.
        """
        made = 0
        for file, url, sha256 in self._catalog.fetchall(_FILES):
            matrix = self._find(file, 0)
            lacking = isinstance(matrix, Sealed) and matrix.count >= MIN_ROWS and self.of(file, matrix) is None
            if lacking and sha256 is not None:
                made += _make(self._path(url), matrix, sha256)
        return made

    def _path(self, url: str) -> str:
        return f"{self._catalog.root.path(url).rpartition('.')[0]}.{SUFFIX}"


def _open(path: str, source: Sealed, sha256: str) -> Copy | None:
    """The copy at ``path``, or None for one of another source."""
    layout = Layout(source.layout.dimension, "float16")
    size = layout.size(source.count)
    checks_size = 4 * -(-size // BLOCK)
    with store.file_errors("open the scan copy", path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        held, tail = os.fstat(fd).st_size, checks_size + _TRAILER.size + 4
        behind = store.read_at(fd, size, tail, path) if held == size + tail else b""
    finally:
        os.close(fd)
    if not behind or kernels.crc32c(behind[:-4]) != int.from_bytes(behind[-4:], "little"):
        raise CorruptionError(f"{path}: not a scan copy of {source.count} rows; db.optimize() makes it again")
    magic, made_of, count, *bounds = _TRAILER.unpack_from(behind, checks_size)
    if magic != _MAGIC or made_of.hex() != sha256 or count != source.count:
        return None
    return Copy(Sealed(path, path, layout, count, behind[:checks_size], behind=tail), *bounds)


def _make(path: str, source: Matrix, sha256: str) -> bool:
    """Writes a copy whole or not at all; False where float16 cannot hold the rows well enough."""
    bounds = [0.0, 0.0, 0.0]
    fresh = f"{path}.{store.unique_name()}"
    with store.file_errors("write", fresh):
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            size = HEADER
            store.write_at(fd, [Layout(source.layout.dimension, "float16").header(source.count)], 0, fresh)
            for rows in _converted(source, bounds):
                size = store.write_at(fd, [rows], size, fresh)
            fits = bounds[0] <= _WORST
            if fits:
                store.write_at(fd, [_behind(fd, size, fresh, sha256, source.count, bounds)], size, fresh)
                os.fsync(fd)
                os.replace(fresh, path)
        finally:
            os.close(fd)
            with suppress(FileNotFoundError):
                os.unlink(fresh)
    return fits


def _converted(source: Matrix, bounds: list[float]) -> Iterator[memoryview]:
    """The rows in float16, some at a time; ``bounds`` grow to the worst errors, infinite where float16 overflows."""
    import numpy as np

    dimension = source.layout.dimension
    step = max(1, _CHUNK // (4 * dimension))
    for start in range(0, source.count, step):
        stop = min(start + step, source.count)
        source.verify(range(start, stop))
        rows = np.frombuffer(source.view, "<f4", (stop - start) * dimension, start * 4 * dimension)
        rows = rows.reshape(-1, dimension).astype(np.float64)
        with np.errstate(all="ignore"):
            halves = rows.astype("<f2")
            missed = np.nan_to_num(np.linalg.norm(rows - halves, axis=1), nan=np.inf)
            lengths = np.linalg.norm(rows, axis=1)
            shares = np.where(missed > 0, missed / lengths, 0)
        for i, worst in enumerate((shares, missed, lengths)):
            bounds[i] = max(bounds[i], float(worst.max()))
        if bounds[0] > _WORST:
            return
        yield memoryview(halves.tobytes())


def _behind(fd: int, size: int, path: str, sha256: str, count: int, bounds: list[float]) -> bytes:
    """What follows the rows, the checksums read back from the file."""
    checks = b"".join(
        kernels.crc32c(store.read_at(fd, at, min(BLOCK, size - at), path)).to_bytes(4, "little")
        for at in range(0, size, BLOCK)
    )
    behind = checks + _TRAILER.pack(_MAGIC, bytes.fromhex(sha256), count, *bounds)
    return behind + kernels.crc32c(behind).to_bytes(4, "little")
