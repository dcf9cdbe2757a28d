"""A stream's columns: what each keeps in memory, and how its rows of one step become a tensor or a list.

What a column gives does not change from batch to batch: numbers are a tensor only if no row of the whole set is NULL,
and a nullable vector or media column is a list everywhere. The one exception follows from the media: without a fixed
size, a batch whose items happen to agree is a tensor and any other a list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deeplake_loader.columnar import ColumnarRows, Held, Values
from deeplake_loader.decode import transforms
from deeplake_loader.errors import DeeplakeError, InputError, TypeMismatchError
from deeplake_loader.reader import DAMAGE, Reader
from deeplake_loader.stream.media import Media as Media
from deeplake_loader.stream.parts import Ready
from deeplake_loader.stream.windows import bounds_of
from deeplake_loader.types import ColumnType

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Scalars:
    """A column of SQL values: a number array where every row has a number of one kind, else the Python values."""

    name: str
    values: npt.NDArray[Any] | Values

    def part(self, rows: Indices) -> Ready:
        if isinstance(self.values, np.ndarray):
            return Ready(torch.from_numpy(self.values[rows]))
        return Ready(self.values.take(rows))


@dataclass(frozen=True, slots=True)
class Vectors:
    """A vector column by address; ``nullable`` if some row has none."""

    name: str
    addresses: Indices
    nullable: bool
    row_bytes: int

    def part(self, rows: Indices, reader: Reader) -> Ready:
        addresses = self.addresses[rows]
        present = np.flatnonzero(addresses) if self.nullable else np.arange(len(rows))
        found, errors = _gather(reader, addresses[present])
        bad = {int(present[k]): error for k, error in errors.items()}
        nbytes = (len(present) - len(bad)) * self.row_bytes
        if not self.nullable and found is not None:
            return Ready(torch.from_numpy(found), bad, nbytes, len(bad))
        content: list[torch.Tensor | None] = [None] * len(rows)
        for k, i in enumerate(present.tolist()):
            if found is not None and i not in bad:
                content[i] = torch.from_numpy(found[k].copy())
        return Ready(content, bad, nbytes, len(bad))


def _gather(reader: Reader, addresses: Indices) -> tuple[npt.NDArray[Any] | None, dict[int, DeeplakeError]]:
    """The vectors as rows of a matrix, None without a good one, and the errors of those that cannot be read."""
    if not len(addresses):
        return None, {}
    try:
        return reader.vectors(addresses), {}
    except DAMAGE:
        pass  # found out below which of them it was
    matrix: npt.NDArray[Any] | None = None
    errors: dict[int, DeeplakeError] = {}
    for k in range(len(addresses)):
        try:
            row = reader.vectors(addresses[k : k + 1])
        except DAMAGE as error:
            errors[k] = error
            continue
        if matrix is None:
            matrix = np.zeros((len(addresses), row.shape[1]), row.dtype)
        matrix[k] = row[0]
    return matrix, errors


@dataclass(frozen=True, slots=True)
class HeldVectors:
    """A vector column whose numbers came with the query's rows; ``nullable`` if some row has none."""

    name: str
    held: Held
    nullable: bool

    @property
    def row_bytes(self) -> int:
        return int(self.held.matrix.itemsize * self.held.matrix.shape[1])

    def part(self, rows: Indices) -> Ready:
        places = self.held.places[rows]
        if not self.nullable:
            return Ready(torch.from_numpy(self.held.matrix.take(places, axis=0)), {}, len(rows) * self.row_bytes)
        content = [None if place < 0 else torch.from_numpy(self.held.matrix[place].copy()) for place in places.tolist()]
        return Ready(content, {}, int((places >= 0).sum()) * self.row_bytes)


Column = Scalars | Vectors | HeldVectors | Media


OWN_KEYS = ("_cursor", "_rows", "_keys", "_source", "_bad", "valid")
"""What a batch holds beside the columns."""


def make_columns(rowset: ColumnarRows, chosen: Mapping[str, object]) -> tuple[Column, ...]:
    """The columns of a row set, with the user's transforms.

    Raises:
        InputError: two columns of one name, a name that batches use themselves, a transform for no column.
        TypeMismatchError: a transform of another medium than its column.
    """
    names = rowset.names
    _check_names(names, chosen)
    kinds = enumerate(zip(names, rowset.types, strict=True))
    return tuple(_column(rowset, i, name, kind, chosen) for i, (name, kind) in kinds)


def _check_names(names: Sequence[str], chosen: Mapping[str, object]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"the query has {names.count(name)} columns named {name!r}; name them apart with AS")
        if name in OWN_KEYS:
            raise InputError(f"a batch uses the key {name!r} itself; rename the column with AS")
    for name in chosen:
        if name not in names:
            raise InputError(f"transforms has {name!r}, but the query's columns are {', '.join(names)}")


def _column(rowset: ColumnarRows, i: int, name: str, kind: ColumnType | None, chosen: Mapping[str, object]) -> Column:
    values = rowset.column(i)
    if kind is None or kind.is_scalar:
        if name in chosen:
            raise TypeMismatchError(f"transforms[{name!r}]: the column holds SQL values, which are not decoded")
        return Scalars(name, values)  # type: ignore[arg-type]
    if kind.is_vector and name in chosen:
        raise TypeMismatchError(f"transforms[{name!r}]: the column is a {kind}, which needs no decoding")
    if isinstance(values, Held):
        return HeldVectors(name, values, bool((values.places < 0).any()))
    addresses = np.asarray(values)
    nullable = bool((addresses == 0).any())
    if kind.is_vector:
        return Vectors(name, addresses, nullable, kind.dimension * (2 if kind.dtype == "float16" else 4))
    transform = _transform(name, kind, chosen.get(name))
    return Media(name, addresses, nullable, transform, bounds=bounds_of(rowset, name, transform))


def _transform(name: str, kind: ColumnType, chosen: object) -> transforms.Transform | transforms.Raw | None:
    if isinstance(chosen, transforms.Raw):
        return chosen
    try:
        return transforms.choose(kind.name.lower(), chosen)
    except TypeMismatchError as error:
        raise TypeMismatchError(f"transforms[{name!r}]: {error}") from error
