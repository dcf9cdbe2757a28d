"""Scan copies: a float32 vector file again in float16 or int8, fewer bytes to read, with how far it may be off.

    .npy header 128 | rows | of int8 each row's step, float32 | crc32c of each 1 MB of header and rows, 4 bytes each |
    magic 8 | sha256 of the source 32 | rows 8 | worst relative, worst absolute error of a row, longest row, 8 each |
    crc32c of all behind the rows 4

A copy lies beside its source as ``<name>.f16`` or ``<name>.i8``, reads as a .npy, and is never more than a copy: one
that is missing, damaged or made of other bytes is passed over, and the file itself scanned. ``Copies.build`` makes what
is lacking. A file with a row that the form (`forms`) cannot hold well enough gets none.
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
from deeplake_loader.matrices import BLOCK, HEADER, Matrix, Sealed
from deeplake_loader.search.forms import FORMS, Form

if TYPE_CHECKING:
    import numpy as np

    from deeplake_loader.catalog import Catalog
    from deeplake_loader.scoring import Find, Metric

MIN_ROWS = 8_192
"""Rows from which a file gets a copy: fewer are scanned in less time than one more file is opened."""

_TRAILER = struct.Struct("<8s32sQ3d")
_CHUNK = 16 << 20
_FILES = "SELECT id, url, sha256 FROM _dl_files WHERE kind = 'vector' AND state = 'sealed' AND dtype = 'float32'"


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy: its rows, and for any row x of the source that has scores, and its copy y, the bounds of
    |x - y| / |x|, |x - y|, |x|. ``steps`` (n,): what each row of int8 is times."""

    form: Form
    matrix: Sealed
    steps: np.ndarray | None
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
        self._open: dict[tuple[int, str], Copy] = {}

    def of(self, file: int, matrix: Matrix, form: Form) -> Copy | None:
        """The copy of a sealed float32 file that this matrix is; None where there is none to be used."""
        known = self._open.get((file, form.kind))
        if known is None and isinstance(matrix, Sealed) and matrix.layout.dtype == "float32":
            known = self._load(file, matrix, form)
        return known

    def _load(self, file: int, matrix: Sealed, form: Form) -> Copy | None:
        path = self._path(matrix.url, form)
        if matrix.count < MIN_ROWS or not os.path.exists(path):
            return None
        row = self._catalog.fetchone("SELECT sha256 FROM _dl_files WHERE id = ?", (file,))
        try:
            found = _open(path, matrix, "" if row is None else str(row[0]), form)
        except NotFoundError:
            return None
        except CorruptionError:
            self.drop(file, matrix, form)
            return None
        if found is not None:
            self._open[file, form.kind] = found
        return found

    def drop(self, file: int, matrix: Matrix, form: Form) -> None:
        """Forgets and removes a copy that turned out to be damaged, so that the next ``build`` makes it again."""
        self._open.pop((file, form.kind), None)
        if isinstance(matrix, Sealed) and not self._catalog.read_only:
            with suppress(OSError):
                os.unlink(self._path(matrix.url, form))

    def close(self) -> None:
        """Lets go of every mapped copy."""
        self._open.clear()

    def damaged(self) -> Iterator[tuple[str, str, Form]]:
        """(path, what is wrong, form) of every copy whose bytes are not what was written; nothing is changed."""
        for form in FORMS.values():
            for file, url, sha256 in self._catalog.fetchall(_FILES):
                path = self._path(url, form)
                if not os.path.exists(path):
                    continue
                try:
                    matrix = self._find(file, 0)
                    found = _open(path, matrix, sha256, form) if isinstance(matrix, Sealed) else None
                    if found is not None:
                        found.matrix.verify(range(found.matrix.count))
                except CorruptionError as error:
                    if path in str(error):
                        yield path, str(error), form

    def build(self, form: Form) -> int:
        """Makes the copies that are lacking; gives the number of files that got one.

        Raises:
            StoreError: the disk is full or refuses.
            CorruptionError: bytes of a source changed.
        """
        made = 0
        for file, url, sha256 in self._catalog.fetchall(_FILES):
            matrix = self._find(file, 0)
            lacking = isinstance(matrix, Sealed) and matrix.count >= MIN_ROWS and self.of(file, matrix, form) is None
            if lacking and sha256 is not None:
                made += _make(self._path(url, form), matrix, sha256, form)
        return made

    def _path(self, url: str, form: Form) -> str:
        return f"{self._catalog.root.path(url).rpartition('.')[0]}.{form.suffix}"


def _open(path: str, source: Sealed, sha256: str, form: Form) -> Copy | None:
    """The copy at ``path``, or None for one of another source."""
    layout = form.layout(source.layout.dimension)
    size = layout.size(source.count)
    steps_size, checks_size = form.step_bytes * source.count, 4 * -(-size // BLOCK)
    with store.file_errors("open the scan copy", path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        held, tail = os.fstat(fd).st_size, steps_size + checks_size + _TRAILER.size + 4
        behind = store.read_at(fd, size, tail, path) if held == size + tail else b""
    finally:
        os.close(fd)
    if not behind or kernels.crc32c(behind[:-4]) != int.from_bytes(behind[-4:], "little"):
        raise CorruptionError(f"{path}: not a scan copy of {source.count} rows; db.optimize() makes it again")
    magic, made_of, count, *bounds = _TRAILER.unpack_from(behind, steps_size + checks_size)
    if magic != form.magic or made_of.hex() != sha256 or count != source.count:
        return None
    checks = bytes(behind[steps_size : steps_size + checks_size])
    matrix = Sealed(path, path, layout, count, checks, behind=tail)
    return Copy(form, matrix, _steps(behind[:steps_size]), *bounds)


def _steps(held: bytes) -> np.ndarray | None:
    if not held:
        return None
    import numpy as np

    return np.frombuffer(held, "<f4")


def _make(path: str, source: Matrix, sha256: str, form: Form) -> bool:
    """Writes a copy whole or not at all; False where the form cannot hold the rows well enough."""
    made = _Made([0.0, 0.0, 0.0], bytearray())
    fresh = f"{path}.{store.unique_name()}"
    with store.file_errors("write", fresh):
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            size = HEADER
            store.write_at(fd, [form.layout(source.layout.dimension).header(source.count)], 0, fresh)
            for rows in _converted(source, form, made):
                size = store.write_at(fd, [rows], size, fresh)
            fits = made.bounds[0] <= form.worst
            if fits:
                store.write_at(fd, [_behind(fd, size, fresh, sha256, source.count, form, made)], size, fresh)
                os.fsync(fd)
                os.replace(fresh, path)
        finally:
            os.close(fd)
            with suppress(FileNotFoundError):
                os.unlink(fresh)
    return fits


@dataclass(frozen=True, slots=True)
class _Made:
    """What grows while rows are converted: the worst errors and the longest row, and the rows' steps."""

    bounds: list[float]
    steps: bytearray


def _converted(source: Matrix, form: Form, made: _Made) -> Iterator[memoryview]:
    """The rows as the form holds them, some at a time, until one is too far off."""
    import numpy as np

    dimension = source.layout.dimension
    step = max(1, _CHUNK // (4 * dimension))
    for start in range(0, source.count, step):
        stop = min(start + step, source.count)
        source.verify(range(start, stop))
        rows = np.frombuffer(source.view, "<f4", (stop - start) * dimension, start * 4 * dimension)
        held = form.hold(rows.reshape(-1, dimension))
        _widen(made.bounds, rows.reshape(-1, dimension).astype(np.float64), held.values)
        if made.bounds[0] > form.worst:
            return
        if held.steps is not None:
            made.steps.extend(held.steps.tobytes())
        yield memoryview(held.stored.tobytes())


def _widen(bounds: list[float], rows: np.ndarray, held: np.ndarray) -> None:
    """``bounds`` grow to hold these rows; infinite where the copy overflows. Rows with NaN or infinity have no score,
    neither here nor there, and do not count: a NaN among the errors would hide all others."""
    import numpy as np

    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(rows, axis=1)
        missed = np.nan_to_num(np.linalg.norm(rows - held, axis=1), nan=np.inf)
        shares = np.where(missed > 0, missed / lengths, 0)
    scored = np.isfinite(lengths)
    for i, worst in enumerate((shares, missed, lengths)):
        bounds[i] = max(bounds[i], float(worst[scored].max(initial=0.0)))


def _behind(fd: int, size: int, path: str, sha256: str, count: int, form: Form, made: _Made) -> bytes:
    """What follows the rows, the checksums read back from the file."""
    checks = b"".join(
        kernels.crc32c(store.read_at(fd, at, min(BLOCK, size - at), path)).to_bytes(4, "little")
        for at in range(0, size, BLOCK)
    )
    behind = bytes(made.steps) + checks + _TRAILER.pack(form.magic, bytes.fromhex(sha256), count, *made.bounds)
    return behind + kernels.crc32c(behind).to_bytes(4, "little")
