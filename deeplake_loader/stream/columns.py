"""A stream's columns: what each keeps in memory, and how its rows of one step become a tensor or a list.

What a column gives does not change from batch to batch: numbers are a tensor only if no row of the whole set is NULL,
and a nullable vector or media column is a list everywhere. The one exception follows from the media: without a fixed
size, a batch whose items happen to agree is a tensor and any other a list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from deeplake_loader.codecs import MediaInfo
from deeplake_loader.decode import cpu, transforms
from deeplake_loader.errors import DecodeError, DeeplakeError, InputError, TypeMismatchError
from deeplake_loader.extents import Extents
from deeplake_loader.reader import Items, Reader
from deeplake_loader.rows import RowSet
from deeplake_loader.types import ColumnType

Indices = npt.NDArray[np.int64]
Draw = Callable[[int], transforms.Draw]
"""The random numbers of a row."""

_ANY_IMAGE, _ANY_BYTES = MediaInfo("image"), MediaInfo("bytes")
_IMAGES_PER_TASK = 8  # about 10 ms of work; shorter tasks lose to the queue, longer ones leave threads idle at the end


class Part(Protocol):
    """One column's rows of one step, on their way to a value."""

    @property
    def tasks(self) -> Sequence[Callable[[], None]]:
        """What the decoding threads have to do."""

    @property
    def errors(self) -> Mapping[int, DeeplakeError]:
        """Rows that could not be read or decoded, by place; complete once the tasks are done."""

    def value(self, keep: Indices | None) -> Any:
        """The value for the batch: of the rows at these places, or of all."""

    def release(self) -> None:
        """Gives the bytes read for it back."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A part that needs no decoding."""

    content: torch.Tensor | list[Any]
    tasks: Sequence[Callable[[], None]] = ()

    @property
    def errors(self) -> Mapping[int, DeeplakeError]:
        return {}

    def value(self, keep: Indices | None) -> Any:
        return _kept(self.content, keep)

    def release(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class Scalars:
    """A column of SQL values: a number array where every row has a number of one kind, else the Python values."""

    name: str
    values: npt.NDArray[Any] | list[Any]

    def part(self, rows: Indices) -> Ready:
        if isinstance(self.values, np.ndarray):
            return Ready(torch.from_numpy(self.values[rows]))
        return Ready([self.values[i] for i in rows.tolist()])


@dataclass(frozen=True, slots=True)
class Vectors:
    """A vector column by address; ``nullable`` if some row has none."""

    name: str
    addresses: Indices
    nullable: bool
    row_bytes: int

    def part(self, rows: Indices, reader: Reader) -> Ready:
        addresses = self.addresses[rows]
        if not self.nullable:
            return Ready(torch.from_numpy(reader.vectors(addresses)))
        content: list[torch.Tensor | None] = [None] * len(rows)
        present = np.flatnonzero(addresses)
        if len(present):
            for i, vector in zip(present.tolist(), reader.vectors(addresses[present]), strict=True):
                content[i] = torch.from_numpy(vector.copy())
        return Ready(content)


@dataclass(frozen=True, slots=True)
class Media:
    """A blob column by address, and what its items are decoded to; ``transform`` None gives the bytes (BLOB)."""

    name: str
    addresses: Indices
    nullable: bool
    transform: transforms.Transform | None

    def part(self, rows: Indices, extents: Extents, reader: Reader, draw: Draw, pin: bool) -> Part:
        infos = self._infos(rows, reader)
        items = reader.read(extents, rows)
        if self.transform is None:
            return _Plain([None if d is None else bytes(d) for d in items.data], items)
        return _Decoding(self, items, infos, [draw(row) for row in rows.tolist()], pin)

    def _infos(self, rows: Indices, reader: Reader) -> list[MediaInfo]:
        """The facts that decoding needs; an image of a fixed size needs none, which spares the catalog a query."""
        if self.transform is None:
            return []
        if isinstance(self.transform, transforms.Image) and self.transform.size is not None:
            return [_ANY_IMAGE] * len(rows)
        return [_ANY_BYTES if t is None else MediaInfo.from_json(t) for t in reader.infos(self.addresses[rows])]


@dataclass(frozen=True, slots=True)
class _Plain:
    """Bytes as they are stored."""

    content: list[bytes | None]
    items: Items
    tasks: Sequence[Callable[[], None]] = ()

    @property
    def errors(self) -> Mapping[int, DeeplakeError]:
        return self.items.errors

    def value(self, keep: Indices | None) -> list[Any]:
        kept: list[Any] = _kept(self.content, keep)
        return kept

    def release(self) -> None:
        self.items.release()


class _Decoding:
    """The items of one media column and step, decoded in pieces by several threads."""

    def __init__(
        self,
        column: Media,
        items: Items,
        infos: Sequence[MediaInfo],
        draws: Sequence[transforms.Draw],
        pin: bool,
    ) -> None:
        self._column, self._items, self._infos, self._draws, self._pin = column, items, infos, draws, pin
        self.errors: dict[int, DeeplakeError] = dict(items.errors)
        self._tensors: list[torch.Tensor | None] = [None] * len(infos)
        self._batch = self._allocate()
        size = _IMAGES_PER_TASK if isinstance(column.transform, transforms.Image) else 1
        self.tasks = [partial(self._decode, i, min(i + size, len(infos))) for i in range(0, len(infos), size)]

    def _allocate(self) -> torch.Tensor | None:
        """The batch tensor, where all items come out in one shape that is known before they are decoded."""
        outputs = {cpu.output(info, self._column.transform) for info in self._infos}
        known = outputs.pop()
        if self._column.nullable or outputs or known is None:
            return None
        dtype, shape = known
        return torch.empty((len(self._infos), *shape), dtype=getattr(torch, dtype), pin_memory=self._pin)

    def _decode(self, start: int, stop: int) -> None:
        for i in range(start, stop):
            data = self._items.data[i]
            if data is not None:
                try:
                    self._decode_one(i, data)
                except DecodeError as error:
                    self.errors[i] = error

    def _decode_one(self, i: int, data: memoryview | bytes) -> None:
        info, transform, draw = self._infos[i], self._column.transform, self._draws[i]
        if self._batch is None:
            self._tensors[i] = cpu.to_torch(cpu.decode(data, info, transform, draw=draw))
        else:
            cpu.decode_into(data, info, transform, self._batch[i].numpy(), draw=draw)

    def value(self, keep: Indices | None) -> Any:
        if self._batch is not None:
            return _kept(self._batch, keep)
        tensors: list[torch.Tensor | None] = _kept(self._tensors, keep)
        present = [t for t in tensors if t is not None]
        if self._column.nullable or any(t.shape != present[0].shape for t in present):
            return tensors
        return torch.stack(present)

    def release(self) -> None:
        self._items.release()


def _kept(content: Any, keep: Indices | None) -> Any:
    """The tensor's or list's values at these places."""
    if keep is None:
        return content
    return content[torch.from_numpy(keep)] if isinstance(content, torch.Tensor) else [content[i] for i in keep.tolist()]


Column = Scalars | Vectors | Media


OWN_KEYS = ("_cursor", "_rows", "_bad", "valid")
"""What a batch holds beside the columns."""


def make_columns(rowset: RowSet, chosen: Mapping[str, object]) -> tuple[Column, ...]:
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


def _column(rowset: RowSet, i: int, name: str, kind: ColumnType | None, chosen: Mapping[str, object]) -> Column:
    values = rowset.column(i)
    if kind is None or kind.is_scalar:
        if name in chosen:
            raise TypeMismatchError(f"transforms[{name!r}]: the column holds SQL values, which are not decoded")
        return Scalars(name, _numbers(list(values), kind))
    addresses = np.asarray(values, np.int64)
    nullable = bool((addresses == 0).any())
    if kind.is_vector:
        if name in chosen:
            raise TypeMismatchError(f"transforms[{name!r}]: the column is a {kind}, which needs no decoding")
        return Vectors(name, addresses, nullable, kind.dimension * (2 if kind.dtype == "float16" else 4))
    return Media(name, addresses, nullable, _transform(name, kind, chosen.get(name)))


def _transform(name: str, kind: ColumnType, chosen: object) -> transforms.Transform | None:
    try:
        return transforms.choose(kind.name.lower(), chosen)
    except TypeMismatchError as error:
        raise TypeMismatchError(f"transforms[{name!r}]: {error}") from error


def _numbers(values: list[Any], kind: ColumnType | None) -> npt.NDArray[Any] | list[Any]:
    """int64, float64, float32 (REAL columns) or bool, where every value is of the one Python type; else the list."""
    found = set(map(type, values))
    if found == {bool}:
        return np.array(values, np.bool_)
    if found == {int}:
        return np.array(values, np.int64)
    if found == {float}:
        return np.array(values, np.float32 if kind is not None and kind.name == "REAL" else np.float64)
    return values
