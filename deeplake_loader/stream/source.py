"""What one query brings to a stream: its columns, where their bytes lie, and what names its rows.

In memory: 8 bytes per row for a number or an address, the bytes and 8 more for a text, 36 per row of a media column for
where it lies, 8 per key. A source over 16 MB moves to a memory-mapped file without a name (`shared.Mapping`), and a
worker process is handed the mapping, never the rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import context
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from deeplake_loader.catalog import Location
from deeplake_loader.columnar import Column as Stored
from deeplake_loader.columnar import ColumnarRows, Numbers
from deeplake_loader.extents import Extents
from deeplake_loader.order import canonical, cut_blocks
from deeplake_loader.reader import Reader, location_of
from deeplake_loader.stream.columns import Column, HeldVectors, Media, Vectors, make_columns
from deeplake_loader.stream.shared import Mapped

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Source:
    """The rows of one query, in the order that row numbers count.

    Fields: ``location`` of the store; ``query``, a hash of its text; ``digest`` of its rows; ``starts``, the first row
    of every block of the order; ``keys``, the primary key columns, empty if the query has none; ``extents``, where
    blobs lie, by column; ``mapped``, the file that the arrays lie in, once there is one.
    """

    location: Location
    columns: tuple[Column, ...]
    count: int
    starts: Indices
    digest: str
    query: str = ""
    commit: int | str | None = None
    keys: tuple[Stored, ...] = ()
    extents: dict[str, Extents] = field(default_factory=dict)
    mapped: list[Mapped] = field(default_factory=list)

    def places(self, reader: Reader) -> Mapping[str, Extents]:
        """Where blobs lie, looked up again while some rest in the catalog."""
        for column in self.columns:
            if isinstance(column, Media):
                known = self.extents[column.name]
                if bool(((known.offset < 0) & (known.file >= 0)).any()):
                    self.extents[column.name] = reader.resolve(column.addresses)
        return self.extents

    def keys_at(self, rows: Indices) -> Indices | list[Any]:
        """The primary keys of these rows: int64 where they are integers, else a list, of tuples if the key has several
        columns (or the query several tables)."""
        if len(self.keys) != 1:
            return list(zip(*(key.at(rows) for key in self.keys), strict=True))
        (key,) = self.keys
        found: Indices | list[Any] = key.values[rows] if _is_whole(key) else key.at(rows)
        return found

    def _parts(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__dataclass_fields__ if name != "mapped")

    def __reduce__(self) -> tuple[Any, ...]:
        if context.get_spawning_popen() is None:
            return Source, self._parts()
        if not self.mapped:  # which must live until the worker has its descriptor
            self.mapped.append(Mapped.write(self._parts()))
        return _received, (self.mapped[0],)


def _received(mapped: Mapped) -> Source:
    source = Source(*mapped.read())
    source.mapped.append(mapped)
    return source


def make_source(
    where: str | Location,
    rows: ColumnarRows,
    *,
    transforms: Mapping[str, object],
    keep_order: bool,
    query: str = "",
    commit: int | str | None = None,
) -> Source:
    """The source of a query's rows.

    Args:
        where: the store's location, or its folder.
        keep_order: rows stay as they come; else they are put in the order they are stored in.
        query: its text.
    """
    location = location_of(where)
    rows, columns, extents = _located(location, rows, transforms, keep_order)
    source = Source(
        location=location,
        columns=columns,
        count=len(rows),
        starts=_blocks(columns, extents, len(rows)),
        digest=rows.digest(),
        query=hashlib.sha256(query.encode()).hexdigest()[:16],
        commit=commit,
        keys=rows.keys,
        extents=extents,
    )
    mapped = Mapped.write_large(source._parts())
    return source if mapped is None else _received(mapped)


def _located(
    location: Location, rows: ColumnarRows, transforms: Mapping[str, object], keep_order: bool
) -> tuple[ColumnarRows, tuple[Column, ...], dict[str, Extents]]:
    """Rows in the order that positions count, their columns, and where the blobs lie."""
    columns = make_columns(rows, transforms)
    media = [c for c in columns if isinstance(c, Media)]
    extents: dict[str, Extents] = {}
    if media:
        reader = Reader(location)
        try:
            extents = {c.name: reader.resolve(c.addresses) for c in media}
        finally:
            reader.close()
    if keep_order:
        return rows, columns, extents
    media.sort(key=lambda c: -int(extents[c.name].length.sum()))
    vectors = [c for c in columns if isinstance(c, Vectors)]
    addresses = [c.addresses for c in media] + [c.addresses for c in vectors]
    keys: list[Any] = [key.values if _is_whole(key) else key.tolist() for key in rows.keys]
    order = canonical(addresses, keys)
    if order is None:
        return rows, columns, extents
    rows = rows.take(order)
    columns = make_columns(rows, transforms)
    held = {c.name: c.addresses for c in columns if isinstance(c, Media)}
    moved = {name: _taken(found, order, held[name]) for name, found in extents.items()}
    return rows, columns, moved


def _is_whole(key: Stored) -> TypeGuard[Numbers]:
    return isinstance(key, Numbers) and key.nulls is None and key.values.dtype == np.int64


def _taken(extents: Extents, order: Indices, addresses: Indices) -> Extents:
    file, offset, length, check = (
        extents.file[order],
        extents.offset[order],
        extents.length[order],
        extents.check[order],
    )
    return Extents(extents.paths, file, offset, length, check, addresses)


def _blocks(columns: Sequence[Column], extents: Mapping[str, Extents], count: int) -> Indices:
    """Blocks of the column that has the most bytes."""
    media = max(extents.values(), key=lambda e: int(e.length.sum()), default=None)
    if media is not None:
        return cut_blocks(media.address, media.length)
    for column in columns:
        if isinstance(column, Vectors):
            return cut_blocks(column.addresses, np.full(count, column.row_bytes, np.int64))
        if isinstance(column, HeldVectors):
            return cut_blocks(np.zeros(count, np.int64), np.full(count, column.row_bytes, np.int64))
    return cut_blocks(np.zeros(count, np.int64), np.ones(count, np.int64))
