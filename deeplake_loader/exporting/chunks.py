"""A query's rows with their bytes, some at a time: blobs are read many in one native call and verified."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from deeplake_loader.errors import InputError
from deeplake_loader.types import ColumnType

if TYPE_CHECKING:
    from deeplake_loader.blobs import BlobReader
    from deeplake_loader.extents import Extents
    from deeplake_loader.reader import Reader
    from deeplake_loader.rows import RowSet

_ROWS = 1_024
_BYTES = 64 << 20
_KEYS = ("__key__", "key")
_UNSAFE = re.compile(r"[^A-Za-z0-9_./\-]|(^|/)(\.|/|$)")


@dataclass(frozen=True, slots=True)
class Places:
    """Where the blobs of one column lie, and the extensions of their files, None for NULL."""

    extents: Extents
    extensions: Sequence[str | None]


@dataclass(frozen=True, slots=True)
class Sheet:
    """A query's rows by column: ``keys``, ``scalars`` as Python values with their types, ``vectors`` as arrays (None
    for NULL), ``blobs``."""

    keys: Sequence[str]
    scalars: Mapping[str, Sequence[Any]]
    types: Mapping[str, ColumnType | None]
    vectors: Mapping[str, Sequence[Any]]
    blobs: Mapping[str, Places]

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class Chunk:
    """The rows from ``start`` to ``stop``: the bytes of each blob column, None for NULL."""

    start: int
    stop: int
    blobs: Mapping[str, Sequence[memoryview | None]]


class Source(Protocol):
    """What is asked of a Database."""

    _shards: BlobReader

    def vectors(self, addresses: Any) -> Any: ...


def read_sheet(db: Source, rows: RowSet, *, dots: bool) -> Sheet:
    """The rows of a query, without the bytes of its blobs; ``dots``: keys may hold them."""
    scalars: dict[str, Sequence[Any]] = {}
    vectors: dict[str, Sequence[Any]] = {}
    blobs: dict[str, Places] = {}
    for i, (name, kind) in enumerate(zip(rows.names, rows.types, strict=True)):
        if kind is None or kind.is_scalar:
            scalars[name] = list(rows.column(i))
        elif kind.is_vector:
            vectors[name] = _vectors(db, rows, i)
        else:
            addresses = np.asarray(rows.column(i))
            blobs[name] = Places(db._shards.resolve(addresses), db._shards.extensions(addresses))
    if len(scalars) + len(vectors) + len(blobs) < len(rows.names):
        raise InputError(f"two columns have one name: {', '.join(rows.names)}; name them apart with AS")
    return Sheet(keys_of(rows, dots=dots), scalars, dict(zip(rows.names, rows.types, strict=True)), vectors, blobs)


def _vectors(db: Source, rows: RowSet, i: int) -> Sequence[Any]:
    if rows.decoded:
        return [None if row[i] is None else row[i].array() for row in rows]
    addresses = np.asarray(rows.column(i))
    found = iter(db.vectors(addresses[addresses != 0])) if addresses.any() else iter(())
    return [next(found) if address else None for address in addresses.tolist()]


def keys_of(rows: RowSet, *, dots: bool) -> list[str]:
    """A distinct name for each row: its column ``__key__`` or ``key``, percent-encoded where a file's name could not
    hold it, dots as well unless ``dots``; else its number.

    Raises:
        InputError: two rows with one key.
    """
    column = next((rows.names.index(name) for name in _KEYS if name in rows.names), None)
    if column is None:
        return [f"{i:09d}" for i in range(len(rows))]
    values = [f"{i:09d}" if value is None else str(value) for i, value in enumerate(rows.raw(column))]
    keys = [_encoded(v) if _UNSAFE.search(v) or (not dots and "." in v) else v for v in values]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"two rows have the key {twice!r}; select another column AS __key__, or leave the key out")
    return keys


def _encoded(key: str) -> str:
    from urllib.parse import quote

    text = "/".join(quote(part, safe="").replace(".", "%2E").replace("~", "%7E") or "%" for part in key.split("/"))
    return text or "%"


def chunks(sheet: Sheet, reader: Reader) -> Iterator[Chunk]:
    """The rows in order, so many at a time that their blobs fit a buffer.

    Raises:
        CorruptionError, NotFoundError, StoreError: a blob cannot be read.
    """
    lengths = np.zeros(len(sheet), np.int64)
    for found in sheet.blobs.values():
        lengths += np.maximum(found.extents.length, 0)
    for start, stop in _cuts(lengths):
        wanted = np.arange(start, stop)
        read = reader.read([(found.extents, wanted) for found in sheet.blobs.values()]) if sheet.blobs else []
        for items in read:
            for error in items.errors.values():
                raise error
        yield Chunk(start, stop, {n: [m[i] for i in range(len(m))] for n, m in zip(sheet.blobs, read, strict=True)})


def _cuts(lengths: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    start, total = 0, 0
    for i, length in enumerate(lengths.tolist()):
        if i > start and (total + length > _BYTES or i - start >= _ROWS):
            yield start, i
            start, total = i, 0
        total += length
    if start < len(lengths):
        yield start, len(lengths)
