"""What one query brings to a stream: its columns, where their bytes lie, and what names its rows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from deeplake_loader.extents import Extents
from deeplake_loader.order import canonical, cut_blocks
from deeplake_loader.reader import Reader
from deeplake_loader.rows import RowSet
from deeplake_loader.stream.columns import Column, Media, Vectors, make_columns

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Source:
    """The rows of one query, in the order that row numbers count.

    Fields: ``query``, a hash of its text; ``digest`` of its rows; ``starts``, the first row of every block of the
    order; ``keys``, the primary key columns, empty if the query has none; ``extents``, where blobs lie, by column: a
    copy in another process looks them up again.
    """

    root: str
    columns: tuple[Column, ...]
    count: int
    starts: Indices
    digest: str
    query: str = ""
    commit: int | str | None = None
    keys: tuple[list[Any], ...] = ()
    extents: dict[str, Extents] = field(default_factory=dict)

    def places(self, reader: Reader) -> Mapping[str, Extents]:
        """Where blobs lie, looked up again in a process that does not know and while some rest in the catalog."""
        for column in self.columns:
            if isinstance(column, Media):
                known = self.extents.get(column.name)
                if known is None or bool(((known.offset < 0) & (known.file >= 0)).any()):
                    self.extents[column.name] = reader.resolve(column.addresses)
        return self.extents

    def __reduce__(self) -> tuple[Any, ...]:
        bare = replace(self, extents={})
        return Source, tuple(getattr(bare, name) for name in self.__dataclass_fields__)


def make_source(
    root: str,
    rowset: RowSet,
    *,
    transforms: Mapping[str, object],
    keep_order: bool,
    query: str = "",
    commit: int | str | None = None,
) -> Source:
    """The source of a row set.

    Args:
        keep_order: rows stay as they come; else they are put in the order they are stored in.
        query: its text.
    """
    root = os.path.abspath(root)
    rowset, columns, extents = _located(root, rowset, transforms, keep_order)
    return Source(
        root=root,
        columns=columns,
        count=len(rowset),
        starts=_blocks(columns, extents, len(rowset)),
        digest=rowset.digest(),
        query=hashlib.sha256(query.encode()).hexdigest()[:16],
        commit=commit,
        keys=tuple(rowset.key_columns()),
        extents=extents,
    )


def _located(
    root: str, rowset: RowSet, transforms: Mapping[str, object], keep_order: bool
) -> tuple[RowSet, tuple[Column, ...], dict[str, Extents]]:
    """Rows in the order that positions count, their columns, and where the blobs lie."""
    columns = make_columns(rowset, transforms)
    media = [c for c in columns if isinstance(c, Media)]
    reader = Reader(root)
    try:
        extents = {c.name: reader.resolve(c.addresses) for c in media}
    finally:
        reader.close()
    if keep_order:
        return rowset, columns, extents
    media.sort(key=lambda c: -int(extents[c.name].length.sum()))
    vectors = [c for c in columns if isinstance(c, Vectors)]
    addresses = [c.addresses for c in media] + [c.addresses for c in vectors]
    order = canonical(addresses, rowset.key_columns())
    if order is None:
        return rowset, columns, extents
    rowset = rowset.take(order)
    moved = {name: _taken(found, order) for name, found in extents.items()}
    return rowset, make_columns(rowset, transforms), moved


def _taken(extents: Extents, order: npt.NDArray[np.int64]) -> Extents:
    arrays = (extents.file, extents.offset, extents.length, extents.check, extents.address)
    return Extents(extents.paths, *(a[order] for a in arrays))


def _blocks(columns: tuple[Column, ...], extents: Mapping[str, Extents], count: int) -> npt.NDArray[np.int64]:
    """Blocks of the column that has the most bytes."""
    media = max(extents.values(), key=lambda e: int(e.length.sum()), default=None)
    if media is not None:
        return cut_blocks(media.address, media.length)
    for column in columns:
        if isinstance(column, Vectors):
            return cut_blocks(column.addresses, np.full(count, column.row_bytes, np.int64))
    return cut_blocks(np.zeros(count, np.int64), np.ones(count, np.int64))
