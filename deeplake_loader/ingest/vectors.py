"""Matrices as rows: .npy, .fvecs and .fbin, with the keys or paths that lie beside them in a text or .npy file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from deeplake_loader.errors import CorruptionError, DimensionError, InputError
from deeplake_loader.ingest.target import Whole
from deeplake_loader.store import file_errors
from deeplake_loader.types import MAX_DIMENSION, ColumnType

if TYPE_CHECKING:
    from deeplake_loader.ingest.inference import Proposal
    from deeplake_loader.ingest.sources import Source
    from deeplake_loader.ingest.target import Batch, Target

_ROWS = 65_536
_KEYS = ("_keys", "_ids", "_paths", ".keys", ".ids")
MAX_KEYS = 1 << 30


class VectorsReading(Whole):
    """A matrix, one vector a row, beside its keys where there are any."""

    has_keys, plain_names = False, True

    def __init__(self, source: Source) -> None:
        self.source = source
        self._names: dict[str, str] = {}

    def observe(self) -> Iterator[Mapping[str, ColumnType | None]]:
        matrix = _matrix(self.source)
        dtype = "float16" if matrix.dtype == "float16" else "float32"
        found: dict[str, ColumnType | None] = {"vector": ColumnType("VECTOR", dtype, (matrix.shape[1],))}
        if _keys_path(self.source) is not None:
            found["key"] = ColumnType("TEXT")
        yield found

    def prepare(self, proposal: Proposal) -> None:
        self._names = {choice.field: choice.column.name for choice in proposal.choices}

    def batches(self, _target: Target) -> Iterator[Batch]:
        import numpy as np

        matrix = _matrix(self.source)
        keys = self._keys(len(matrix))
        for start in range(0, len(matrix), _ROWS):
            stop = min(start + _ROWS, len(matrix))
            part = matrix[start:stop]
            rows: dict[str, Any] = {}
            if "vector" in self._names:
                rows[self._names["vector"]] = np.ascontiguousarray(part, None if part.dtype == "float16" else "<f4")
            if keys is not None and "key" in self._names:
                rows[self._names["key"]] = keys[start:stop]
            yield [f"row {i}" for i in range(start, stop)], rows

    def _keys(self, count: int) -> list[str] | None:
        path = _keys_path(self.source)
        if path is None:
            return None
        keys = _read_keys(path)
        if len(keys) != count:
            raise DimensionError(
                f"{self.source.name} has {count} vectors and {path} {len(keys)} keys: which belongs to which is not "
                "known; write them anew with one key per vector"
            )
        return keys


def _keys_path(source: Source) -> str | None:
    """The file of keys beside a matrix: its own name with _keys, _ids or _paths, or the only image_paths around."""
    folder, name = os.path.split(str(source.path))
    stem = name.rpartition(".")[0]
    base = stem.removesuffix("_embeddings").removesuffix("_vectors")
    names = [f"{s}{k}" for s in dict.fromkeys((stem, base)) for k in _KEYS] + ["image_paths"]
    for each in names:
        for suffix in (".txt", ".npy"):
            path = os.path.join(folder, each + suffix)
            if each + suffix != name and os.path.isfile(path):
                return path
    return None


def _read_keys(path: str) -> list[str]:
    with file_errors("read", path):
        if os.path.getsize(path) > MAX_KEYS:
            raise InputError(f"{path}: more than {MAX_KEYS} bytes of keys")
        if path.endswith(".txt"):
            with open(path, encoding="utf-8-sig") as file:
                return file.read().splitlines()
        array = _load(path)
    if array.ndim != 1 or array.dtype.kind not in "US":
        raise InputError(f"{path}: expected one text per vector, found {array.dtype} of shape {array.shape}")
    return [text if isinstance(text, str) else text.decode() for text in array.tolist()]


def _matrix(source: Source) -> Any:
    """The (n, d) matrix of a file, its length checked against what its header says."""
    path, name = str(source.path), source.name
    with file_errors("read", path):
        matrix = _load(path) if path.lower().endswith(".npy") else _headed(path, name)
    if matrix.ndim == 3 and matrix.shape[1] == 1:
        matrix = matrix[:, 0]
    if matrix.ndim != 2 or matrix.dtype.kind not in "fui" or not 1 <= matrix.shape[1] <= MAX_DIMENSION:
        raise DimensionError(f"{name}: expected vectors of numbers, one a row; found {matrix.dtype} {matrix.shape}")
    if matrix.dtype.kind in "ui" and matrix.dtype.itemsize > 2:
        raise InputError(f"{name}: {matrix.dtype} numbers do not fit float32 exactly; convert them")
    return matrix


def _load(path: str) -> Any:
    import numpy as np

    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise CorruptionError(
            f"{path} is no .npy file of plain numbers or texts (pickles are refused): {error}"
        ) from error


def _headed(path: str, name: str) -> Any:
    """fvecs: every row begins with its length as int32. fbin: rows and length as uint32 at the file's beginning."""
    import numpy as np

    size = os.path.getsize(path)
    head = np.fromfile(path, "<u4", 2)
    if path.lower().endswith(".fbin"):
        rows, width = (int(n) for n in head) if len(head) == 2 else (0, 0)
        if not rows or 8 + rows * width * 4 != size:
            raise CorruptionError(f"{name}: the header tells of {rows} x {width} float32, the file has {size} bytes")
        return np.memmap(path, "<f4", "r", 8, (rows, width))
    width = int(head[0]) if len(head) else 0
    if not 1 <= width <= MAX_DIMENSION or size % (4 + 4 * width):
        raise CorruptionError(f"{name}: {size} bytes are no whole rows of {width} float32 with their length each")
    table = np.memmap(path, "<f4", "r", 0, (size // (4 + 4 * width), width + 1))
    if (table[:, 0].view("<i4") != width).any():
        raise CorruptionError(f"{name}: not every row is {width} long")
    return table[:, 1:]
