"""The rows of a query column by column: what a stream keeps of them.

Rows leave SQL in chunks small enough that Python's collector never looks at them, and each chunk goes into one growing
array per column: 8 bytes per number, the UTF-8 bytes and 8 more per text, 1 per row where some are NULL. A million rows
of three integers take 0.5 s and 24 MB; as a list of tuples 0.5 to 0.8 s and 200 MB, all of which a forked worker would
copy, because counting references writes into it. (`group_concat` of every column takes 0.25 s, but it holds 17 bytes of
text per number twice, ends at 1 GB, and rounds reals.)
"""

from __future__ import annotations

import hashlib
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

import numpy as np
import numpy.typing as npt

from deeplake_loader import kernels, scalars, store
from deeplake_loader.rows import Given, RowSet, packed
from deeplake_loader.types import ColumnType

Indices = npt.NDArray[np.int64]

_SLAB = 65_536
_SLAB_BYTES = 64 << 20
CHUNK = 256
"""Rows per step out of SQL: tuples below the collector's threshold; with 2,000 a step takes half as long again."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """A column of int64 or float64; ``nulls`` marks the rows without one, None where there is none."""

    values: npt.NDArray[Any]
    nulls: npt.NDArray[np.bool_] | None

    def __getitem__(self, row: int) -> Any:
        return None if self.nulls is not None and self.nulls[row] else self.values[row].item()

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Indices) -> Numbers:
        return Numbers(self.values[rows], None if self.nulls is None else self.nulls[rows])

    def at(self, rows: Indices) -> list[Any]:
        return self.take(rows).tolist()

    def tolist(self) -> list[Any]:
        return _with_nulls(self.values.tolist(), self.nulls)

    def parts(self) -> list[bytes | memoryview]:
        """What a digest is taken of."""
        nulls = b"" if self.nulls is None else self.nulls.data
        return [self.values.dtype.str.encode(), np.ascontiguousarray(self.values).view(np.uint8).data, nulls]


@dataclass(frozen=True, slots=True)
class Texts:
    """A column of text, or of bytes (``binary``): row i is ``data[offsets[i]:offsets[i + 1]]``."""

    data: npt.NDArray[np.uint8]
    offsets: Indices
    nulls: npt.NDArray[np.bool_] | None
    binary: bool

    def __getitem__(self, row: int) -> Any:
        if self.nulls is not None and self.nulls[row]:
            return None
        item = self.data[self.offsets[row] : self.offsets[row + 1]].tobytes()
        return item if self.binary else item.decode("utf-8", "surrogatepass")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: Indices) -> Texts:
        sizes = self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.append(0, np.cumsum(sizes))
        data = np.empty(int(offsets[-1]), np.uint8)
        for i in range(0, len(rows), _SLAB):  # whose places take 8 bytes per byte of text
            part, begin, end = slice(i, i + _SLAB), offsets[i], offsets[min(i + _SLAB, len(rows))]
            shift = np.repeat(self.offsets[rows[part]] - offsets[:-1][part], sizes[part])
            data[begin:end] = self.data[shift + np.arange(begin, end)]
        return Texts(data, offsets, None if self.nulls is None else self.nulls[rows], self.binary)

    def at(self, rows: Indices) -> list[Any]:
        data = self.data.data  # slices of a memoryview take half the time of an array's
        pairs = zip(self.offsets[rows].tolist(), self.offsets[rows + 1].tolist(), strict=True)
        items: list[Any]
        if self.binary:
            items = [bytes(data[a:b]) for a, b in pairs]
        else:
            items = [str(data[a:b], "utf-8", "surrogatepass") for a, b in pairs]
        return _with_nulls(items, None if self.nulls is None else self.nulls[rows])

    def tolist(self) -> list[Any]:
        return self.at(np.arange(len(self)))

    def parts(self) -> list[bytes | memoryview]:
        """What a digest is taken of."""
        nulls = b"" if self.nulls is None else self.nulls.data
        return [b"b" if self.binary else b"t", self.offsets.view(np.uint8).data, self.data.data, nulls]


@dataclass(frozen=True, slots=True)
class Objects:
    """A column whose values are of several types, which SQLite allows."""

    values: list[Any]

    def __getitem__(self, row: int) -> Any:
        return self.values[row]

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Indices) -> Objects:
        return Objects(self.at(rows))

    def at(self, rows: Indices) -> list[Any]:
        return [self.values[i] for i in rows.tolist()]

    def tolist(self) -> list[Any]:
        return self.values

    def parts(self) -> list[bytes | memoryview]:
        """What a digest is taken of."""
        return [repr(self.values).encode("utf-8", "surrogatepass")]


@dataclass(frozen=True, slots=True)
class Held:
    """A column of vectors whose numbers came with the rows: row i is ``matrix[places[i]]``, NULL where that is -1.

    ``matrix`` lies in a file without a name: of many vectors no process keeps a copy.
    """

    matrix: npt.NDArray[Any]
    places: Indices

    def __getitem__(self, row: int) -> npt.NDArray[Any] | None:
        place = int(self.places[row])
        return None if place < 0 else np.array(self.matrix[place])

    def __len__(self) -> int:
        return len(self.places)

    def take(self, rows: Indices) -> Held:
        return Held(self.matrix, self.places[rows])

    def at(self, rows: Indices) -> list[Any]:
        return [self[i] for i in rows.tolist()]

    def tolist(self) -> list[Any]:
        return self.at(np.arange(len(self)))

    def parts(self) -> list[bytes | memoryview]:
        """What a digest is taken of: a checksum of every so many rows."""
        sums, step = [], max(1, _SLAB_BYTES // max(1, self.matrix.itemsize * self.matrix.shape[1]))
        for start in range(0, len(self), step):
            places = self.places[start : start + step]
            sums.append(kernels.crc32c(self.matrix.take(places[places >= 0], axis=0).view(np.uint8).data))
        return [self.matrix.dtype.str.encode(), (self.places < 0).tobytes(), array("q", sums).tobytes()]


Column = Numbers | Texts | Objects | Held


@dataclass(frozen=True, slots=True)
class Values:
    """A scalar column as Python values, which are made when they are asked for."""

    column: Column
    kind: ColumnType | None

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, row: int) -> Any:
        value = self.column[row]
        decode = None if self.kind is None or value is None else scalars.from_sql(self.kind)
        return value if decode is None else decode(value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.take(np.arange(len(self))))

    def take(self, rows: Indices) -> list[Any]:
        """The values of these rows; None for NULL."""
        raw = self.column.at(rows)
        decode = None if self.kind is None else scalars.from_sql(self.kind)
        return raw if decode is None else [None if v is None else decode(v) for v in raw]


@dataclass(frozen=True, slots=True)
class ColumnarRows:
    """The rows of one query. Fields: ``names`` and ``types`` of its columns; ``columns``, as SQL holds the values, or
    Python's own where ``decoded``; ``keys``, the hidden primary key columns, empty where the query has none."""

    names: tuple[str, ...]
    types: tuple[ColumnType | None, ...]
    columns: tuple[Column, ...]
    keys: tuple[Column, ...]
    count: int
    decoded: bool = False

    def __len__(self) -> int:
        return self.count

    def column(self, i: int) -> npt.NDArray[Any] | Values | Held:
        """Column i for a loader: int64 addresses (0 for NULL) of blobs and vectors, or the vectors themselves; int64,
        float64, float32 (REAL) or bool where every row has a number; else `Values`."""
        found, kind = self.columns[i], self.types[i]
        if isinstance(found, Held):
            return found
        if self.decoded and kind is not None and kind.is_scalar:
            return self._decoded(found, kind)
        if kind is not None and not kind.is_scalar:
            return _addresses(found)
        if not isinstance(found, Numbers) or found.nulls is not None:
            return Values(found, kind)
        if kind is not None and kind.name == "BOOLEAN":
            return found.values.astype(np.bool_) if set(np.unique(found.values)) <= {0, 1} else Values(found, kind)
        if kind is not None and scalars.from_sql(kind) is not None:
            return Values(found, kind)
        real = kind is not None and kind.name == "REAL" and found.values.dtype == np.float64
        return found.values.astype(np.float32) if real else found.values

    def _decoded(self, found: Column, kind: ColumnType) -> npt.NDArray[Any] | Values:
        """A column that holds Python's values already."""
        if kind.name == "BOOLEAN" and isinstance(found, Numbers):
            return found.values.astype(np.bool_) if found.nulls is None else Values(found, kind)
        if not isinstance(found, Numbers) or found.nulls is not None:
            return Values(found, None)
        real = kind.name == "REAL" and found.values.dtype == np.float64
        return found.values.astype(np.float32) if real else found.values

    def addresses(self) -> list[npt.NDArray[Any]]:
        """The columns of blobs, and of vectors that are stored apart, as int64 addresses, 0 for NULL."""
        pairs = zip(self.columns, self.types, strict=True)
        apart = [c for c, kind in pairs if kind is not None and not kind.is_scalar and not isinstance(c, Held)]
        return [_addresses(column) for column in apart]

    def take(self, order: Indices) -> ColumnarRows:
        """The same columns with the rows in the given order."""
        columns, keys = ([c.take(order) for c in group] for group in (self.columns, self.keys))
        return ColumnarRows(self.names, self.types, tuple(columns), tuple(keys), len(order), self.decoded)

    def digest(self) -> str:
        """Hex sha256 over names, order and content: keys and addresses where the rows have keys, else every value."""
        digest = hashlib.sha256(repr((self.names, self.count)).encode())
        pairs = zip(self.columns, self.types, strict=True)
        chosen = [c for c, kind in pairs if not self.keys or (kind is not None and not kind.is_scalar)]
        for column in (*chosen, *self.keys):
            for part in column.parts():
                digest.update(len(part).to_bytes(8, "little"))
                digest.update(part)
        return digest.hexdigest()


def columnar(rowset: RowSet) -> ColumnarRows:
    """The rows of a RowSet."""
    columns = [*(rowset.raw(i) for i in range(len(rowset.names))), *rowset.key_columns()]
    kinds = (*rowset.types, *(None for _ in columns[len(rowset.types) :]))
    growing = [_growing(kind, rowset.decoded) for kind in kinds]
    for column, values in zip(growing, columns, strict=True):
        column.extend(values)
    return _finished(rowset.names, rowset.types, growing, len(rowset), rowset.decoded)


def gather(
    names: Sequence[str],
    types: Sequence[ColumnType | None],
    chunks: Iterable[Sequence[tuple[Any, ...]]],
    *,
    decoded: bool = False,
) -> ColumnarRows:
    """The rows of a cursor, given as chunks of tuples; columns behind the named ones are the hidden primary keys.

    ``decoded``: the values are Python's own, and those of VECTOR columns what `rows.packed` takes.

    >>> gather(["a", "b"], [None, None], [[(1, "x"), (2, None)]]).columns[1].tolist()
    ['x', None]
    """
    growing, count = [_growing(kind, decoded) for kind in types], 0
    for rows in chunks:
        if not count:
            growing += [_Growing() for _ in range(len(rows[0]) - len(names))]
        count += len(rows)
        for column, values in zip(growing, zip(*rows, strict=True), strict=True):
            column.extend(values)
    return _finished(names, types, growing, count, decoded)


def _growing(kind: ColumnType | None, decoded: bool) -> _Growing | _Spool:
    if not decoded or kind is None:
        return _Growing()
    return _Spool(kind) if kind.is_vector else _Flags() if kind.name == "BOOLEAN" else _Growing()


def _finished(
    names: Sequence[str],
    types: Sequence[ColumnType | None],
    growing: Sequence[_Growing | _Spool],
    count: int,
    decoded: bool,
) -> ColumnarRows:
    columns = tuple(column.finish() for column in growing)
    return ColumnarRows(tuple(names), tuple(types), columns[: len(names)], columns[len(names) :], count, decoded)


class _Spool:
    """A column of vectors while its rows come: their bytes go to a file, so that memory holds 8 bytes a row."""

    def __init__(self, kind: ColumnType) -> None:
        self._kind, self._dimension, self._dtype = kind, kind.dimension, np.dtype(kind.dtype).newbyteorder("<")
        with store.file_errors("write a query's vectors to", tempfile.gettempdir()):
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._places, self._count = array("q"), 0

    def extend(self, values: Sequence[Given | None]) -> None:
        present = [packed(self._kind, value) for value in values if value is not None]
        with store.file_errors("write a query's vectors to", tempfile.gettempdir()):
            self._file.writelines(present)
        if len(present) == len(values):
            self._places.extend(range(self._count, self._count + len(values)))
        else:
            numbers = iter(range(self._count, self._count + len(present)))
            self._places.extend([-1 if value is None else next(numbers) for value in values])
        self._count += len(present)

    def finish(self) -> Held:
        """The column; nothing may be added to it any more."""
        with self._file, store.file_errors("write a query's vectors to", tempfile.gettempdir()):
            self._file.flush()
            shape = (self._count, self._dimension)
            matrix = np.memmap(self._file, self._dtype, "r", shape=shape) if self._count else np.zeros(shape, "f4")
        return Held(np.asarray(matrix), np.frombuffer(self._places, np.int64))


class _Growing:
    """A column while its rows come: typed by the first value that is not NULL, and a list once another type comes."""

    def __init__(self) -> None:
        self._type: type | None = None
        self._data: Any = array("q")
        self._sizes = array("q")
        self._nulls: bytearray | None = None
        self._count = 0

    def extend(self, values: Sequence[Any]) -> None:
        found = set(map(type, values))
        empty = NoneType in found
        found.discard(NoneType)
        if self._type is None and found:
            self._begin(found.pop() if len(found) == 1 else object)
        elif found - {self._type} and self._type is not object:
            self._type, self._data = object, self.finish().tolist()
        if empty or self._nulls is not None:
            self._mark([v is None for v in values])
        self._add(values)
        self._count += len(values)

    def _mark(self, nulls: Sequence[bool]) -> None:
        if self._nulls is None:
            self._nulls = bytearray(self._count)
        self._nulls.extend(nulls)

    def _begin(self, found: type) -> None:
        """The first value has come: until now every row was NULL."""
        self._type = found if found in (int, float, str, bytes) else object
        if self._type is object:
            self._data = [None] * self._count
        elif self._type in (str, bytes):
            self._data, self._sizes = bytearray(), array("q", bytes(8 * self._count))
        else:
            self._data = array("q" if self._type is int else "d", bytes(8 * self._count))

    def _add(self, values: Sequence[Any]) -> None:
        if self._type is None or self._type is object:
            self._data.extend([0] * len(values) if self._type is None else values)
            return
        if self._nulls is not None:
            empty = self._type()
            values = [empty if v is None else v for v in values]
        if self._type in (int, float):
            self._data.extend(array(self._data.typecode, values))
            return
        items = values if self._type is bytes else [v.encode("utf-8", "surrogatepass") for v in values]
        self._sizes.extend(array("q", map(len, items)))
        self._data += b"".join(items)

    def finish(self) -> Column:
        """The column; nothing may be added to it any more."""
        if self._type is object:
            return Objects(self._data)
        nulls = None if self._nulls is None else np.frombuffer(self._nulls, np.bool_)
        if self._type in (str, bytes):
            offsets = np.append(0, np.cumsum(np.frombuffer(self._sizes, np.int64)))
            return Texts(np.frombuffer(self._data, np.uint8), offsets, nulls, self._type is bytes)
        return Numbers(np.frombuffer(self._data, np.float64 if self._type is float else np.int64), nulls)


class _Flags(_Growing):
    """A column of True and False while its rows come: 1 and 0."""

    def extend(self, values: Sequence[Any]) -> None:
        super().extend([None if value is None else int(value) for value in values])


def _addresses(column: Column) -> Indices:
    if isinstance(column, Numbers):
        return column.values
    return np.fromiter((v or 0 for v in column.tolist()), np.int64, len(column))


def _with_nulls(values: list[Any], nulls: npt.NDArray[np.bool_] | None) -> list[Any]:
    if nulls is not None:
        for i in np.flatnonzero(nulls).tolist():
            values[i] = None
    return values
