"""What a query chose: a RowSet of scalars and addresses, its Rows, and the lazy handles for blobs and vectors.

Nothing here reads bytes. A RowSet keeps the raw records (SQL values, addresses as integers); a Row turns them into
Python values when it is looked at, and a handle asks the `Source` that made it only when its data is wanted.
"""

from __future__ import annotations

import gc
import json
import operator
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from typing import TYPE_CHECKING, Any, Protocol, cast, overload

from deeplake_loader import scalars
from deeplake_loader.errors import InputError, StoreError
from deeplake_loader.types import ColumnType

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import torch

    from deeplake_loader.codecs import MediaInfo

KEY_PREFIX = "_dl_key_"
"""Hidden trailing columns of a streamed query: the primary keys of the rows."""


class Place(Protocol):
    """Where a blob lies: the file's URL below the store's root, the member's key, its byte range there."""

    @property
    def url(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...


class Source(Protocol):
    """What handles ask for data; the database facade is one."""

    def read_blob(self, address: int) -> bytes: ...
    def blob_info(self, address: int) -> MediaInfo: ...
    def locate(self, address: int) -> Place: ...
    def decode_blob(self, address: int, transform: object | None, options: dict[str, Any]) -> torch.Tensor: ...
    def decode_array(self, address: int, transform: object | None, options: dict[str, Any]) -> np.ndarray: ...
    def vector(self, address: int) -> np.ndarray: ...
    def vectors(self, addresses: np.ndarray) -> np.ndarray: ...


class Answer(Protocol):
    """The rows of a statement as its driver holds them, which become records when they are looked at."""

    @property
    def count(self) -> int: ...
    def records(self) -> list[tuple[Any, ...]]: ...
    def arrow(self, i: int, kind: ColumnType | None, wanted: pa.DataType | None) -> pa.Array | None:
        """Column i as an array, or None where that goes by way of Python's values."""
        ...


Given = bytes | Sequence[float]
"""A vector as a driver gives it: little-endian numbers of its column's dtype, or a list of numbers."""


def packed(kind: ColumnType, numbers: Given) -> bytes:
    """The little-endian numbers of a VECTOR column's value.

    >>> packed(ColumnType.parse("VECTOR(2, float16)"), [1.0, -2.0]).hex()
    '003c00c0'
    """
    if isinstance(numbers, bytes):
        return numbers
    if kind.dtype == "float32" and isinstance(numbers, array) and numbers.typecode == "f":
        return numbers.tobytes()
    return struct.pack(f"<{len(numbers)}{'e' if kind.dtype == 'float16' else 'f'}", *numbers)


class _Handle:
    """A blob or vector by address; equal to another handle of the same store and address."""

    __slots__ = ("_address", "_source", "type")
    _address: Any

    def __init__(self, source: Source, kind: ColumnType, address: int) -> None:
        self._source, self.type, self._address = source, kind, address

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Handle):
            return NotImplemented
        return self._address == other._address and self._source is other._source

    def __hash__(self) -> int:
        return hash((self._address, id(self._source)))

    def address_in(self, source: object) -> int | None:
        """The address if the handle belongs to this source, so that it can be stored again without copying bytes."""
        return self._address if self._source is source and isinstance(self._address, int) else None


class Blob(_Handle):
    """An image, video, audio clip, tensor or plain blob that has not been read yet.

    >>> row.frames.info.num_frames, row.frames.decode(num_frames=16).shape      # doctest: +SKIP
    (49, torch.Size([16, 3, 480, 720]))
    """

    __slots__ = ()

    @property
    def info(self) -> MediaInfo:
        """The media facts measured at insert: codec, width, height, num_frames, fps, duration, dtype, shape ..."""
        return self._source.blob_info(self._address)

    @property
    def key(self) -> str:
        """The sample key in its shard: the member is ``<key>.<column>.<extension>``."""
        return self._source.locate(self._address).key

    @property
    def url(self) -> str:
        """The shard's URL, relative to the store's root."""
        return self._source.locate(self._address).url

    def bytes(self) -> bytes:
        """The stored bytes, exactly as they were inserted; verified against their checksum."""
        return self._source.read_blob(self._address)

    def decode(self, transform: object | None = None, **options: Any) -> torch.Tensor:
        """The decoded tensor: image (3, H, W) uint8, video (T, 3, H, W) uint8, audio (C, S) float32, tensor as stored.

        ``transform`` is a deeplake.Image, Video, Audio or Tensor; its fields may be given as keywords instead.
        """
        return self._source.decode_blob(self._address, transform, options)

    def array(self, transform: object | None = None, **options: Any) -> np.ndarray:
        """What `decode` gives as a numpy array, without torch; bfloat16, which numpy lacks, as raw dtype 'V2'."""
        return self._source.decode_array(self._address, transform, options)

    def __repr__(self) -> str:
        try:
            return f"<{self.type.name} {self.info.describe()}>"
        except StoreError as error:
            return f"<{self.type.name} unreadable: {error}>"


class StoredBlobs(Sequence["Blob | None"]):
    """Blobs of one source by their addresses, None for NULL: a column to be inserted without a handle for each."""

    __slots__ = ("_addresses", "_source", "type")

    def __init__(self, source: Source, kind: ColumnType, addresses: Sequence[int | None]) -> None:
        self._source, self.type, self._addresses = source, kind, addresses

    def __len__(self) -> int:
        return len(self._addresses)

    @overload
    def __getitem__(self, item: int) -> Blob | None: ...
    @overload
    def __getitem__(self, item: slice) -> StoredBlobs: ...
    def __getitem__(self, item: int | slice) -> Blob | StoredBlobs | None:
        if isinstance(item, slice):
            return StoredBlobs(self._source, self.type, self._addresses[item])
        address = self._addresses[item]
        return None if address is None else Blob(self._source, self.type, address)

    def addresses_in(self, source: object, kind: ColumnType) -> Sequence[int | None] | None:
        """The addresses if the blobs belong to this source and are of this type."""
        return self._addresses if self._source is source and self.type == kind else None


def all_stored(rows: object, blobs: Iterable[str]) -> bool:
    """Whether rows to be inserted come as columns and bring no blob of these columns that is not stored already."""
    return isinstance(rows, Mapping) and all(isinstance(rows.get(name, _NONE), StoredBlobs) for name in blobs)


_NONE = StoredBlobs(cast("Source", None), ColumnType("BLOB"), ())  # what a column that is not given brings


class Vector(_Handle):
    """A stored vector, read when it is asked for; where the database itself holds vectors, the handle has its numbers
    already. numpy takes it for an array."""

    __slots__ = ()

    @classmethod
    def of(cls, source: Source | None, kind: ColumnType, numbers: Given) -> Vector:
        """A vector that is here: its numbers as its driver gives them, see `packed`."""
        vector = cls(cast("Source", source), kind, 0)  # which is never asked
        vector._address = packed(kind, numbers)
        return vector

    @property
    def numbers(self) -> bytes | None:
        """The little-endian numbers, if the handle holds them."""
        return self._address if isinstance(self._address, bytes) else None

    def array(self) -> np.ndarray:
        """A fresh (n,) array of the column's dtype."""
        if self.numbers is None:
            return self._source.vector(self._address)
        import numpy as np

        return np.frombuffer(self.numbers, np.dtype(self.type.dtype).newbyteorder("<")).astype(self.type.dtype)

    def tolist(self) -> list[float]:
        values: list[float] = self.array().tolist()
        return values

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        array = self.array()
        return array if dtype is None else array.astype(dtype, copy=False)  # type: ignore[call-overload]

    def __len__(self) -> int:
        return self.type.dimension

    def __iter__(self) -> Iterator[float]:
        return iter(self.tolist())

    def __repr__(self) -> str:
        return f"<{self.type}>"


class Row(tuple[Any, ...]):
    """One row: a tuple whose values are also attributes and keys; ``dict(row)`` works."""

    __slots__ = ()
    _fields: tuple[str, ...] = ()

    @overload  # type: ignore[override]
    def __getitem__(self, item: str | int) -> Any: ...
    @overload
    def __getitem__(self, item: slice) -> tuple[Any, ...]: ...
    def __getitem__(self, item: str | int | slice) -> Any:
        if isinstance(item, str):
            try:
                item = self._fields.index(item)
            except ValueError:
                raise KeyError(f"no column {item!r}; the row has {', '.join(self._fields)}") from None
        return tuple.__getitem__(self, item)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no column {name!r}; the row has {', '.join(self._fields)}")

    def keys(self) -> tuple[str, ...]:
        """The column names, in order."""
        return self._fields

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(self._fields, self, strict=True))

    def __repr__(self) -> str:
        return f"Row({', '.join(f'{k}={v!r}' for k, v in zip(self._fields, self, strict=True))})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_row, (self._fields, tuple(self))


def _rebuild_row(names: tuple[str, ...], values: tuple[Any, ...]) -> Row:
    return row_class(names)(values)


@lru_cache(maxsize=512)
def row_class(names: tuple[str, ...]) -> type[Row]:
    """The Row subclass of these column names; of equal names the first one gives the attribute. A column that is named
    like a method that dict() and pickling need is reached by its key alone."""
    getters: dict[str, Any] = {}
    for i, name in enumerate(names):
        if name.isidentifier() and not name.startswith("__") and name not in Row.__dict__:
            getters.setdefault(name, property(_getter(i)))
    return type("Row", (Row,), {"_fields": names, "__slots__": (), **getters})


def rows_of(make: Callable[[Any], Any], records: Sequence[tuple[Any, ...]]) -> list[Any]:
    """What ``make``, the class of some rows, makes of records."""
    return list(map(make, records)) if len(records) < _FEW else at_once(lambda: list(map(make, records)))


def at_once(build: Callable[[], list[Any]]) -> list[Any]:
    """The many rows that ``build`` makes of what is in memory already.

    Python's collector waits meanwhile: it would look at the new rows again and again, which takes three times as long
    as to make them.
    """
    if not gc.isenabled():
        return build()
    gc.disable()
    try:
        return build()
    finally:
        gc.enable()


_FEW = 100


def _getter(i: int) -> Callable[[Row], Any]:
    return lambda row: tuple.__getitem__(row, i)


class RowSet(Sequence[Row]):
    """The rows of one statement, in order, read in one snapshot: a sequence of Row, with DB-API fetches and exports.

    ``rowcount``: rows returned, or changed by a statement without RETURNING. ``lastrowid``: the id that a single-row
    INSERT got, else None. Pickling keeps records and types and drops the source, so blobs of a copy cannot be read.
    ``decoded`` says that the records hold Python's values (and the numbers of vectors, see `packed`), as PostgreSQL's
    driver gives them; ``answer`` is what it got them from, if they are made when they are asked for.
    """

    def __init__(
        self,
        names: Sequence[str],
        types: Sequence[ColumnType | None],
        records: list[tuple[Any, ...]],
        *,
        source: Source | None = None,
        rowcount: int | None = None,
        lastrowid: int | None = None,
        returns_rows: bool = True,
        decoded: bool = False,
        answer: Answer | None = None,
    ) -> None:
        visible = len(names)
        while visible and names[visible - 1].startswith(KEY_PREFIX):
            visible -= 1
        self.names, self.types = tuple(names[:visible]), tuple(types[:visible])
        self._count = len(records) if answer is None else answer.count
        self.rowcount = self._count if rowcount is None else rowcount
        self.lastrowid, self.returns_rows = lastrowid, returns_rows
        self._held, self._source, self._width, self._position = records, source, len(names), 0
        self._answer = answer
        self._decoded = decoded
        self._made_decoders: tuple[Callable[[Any], Any] | None, ...] | None = None

    @property
    def _decoders(self) -> tuple[Callable[[Any], Any] | None, ...]:
        if self._made_decoders is None:
            self._made_decoders = tuple(_decoder(kind, self._source, self._decoded) for kind in self.types)
        return self._made_decoders

    @property
    def _records(self) -> list[tuple[Any, ...]]:
        if self._answer is not None:
            self._held, self._answer = self._answer.records(), None
        return self._held

    @property
    def decoded(self) -> bool:
        """Whether the records hold Python's values and the numbers of vectors."""
        return self._decoded

    def record_class(self) -> type[tuple[Any, ...]]:
        """What records of these columns may be when they come: the rows themselves, or plain tuples."""
        return tuple if len(self.names) != self._width or any(self._decoders) else row_class(self.names)

    def keys(self) -> tuple[str, ...]:
        """The column names, in order."""
        return self.names

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        records = self._records[index]
        return self._rows(records) if isinstance(records, list) else self._rows([records])[0]

    def __iter__(self) -> Iterator[Row]:
        records = self._records
        return (row for start in range(0, len(records), _STEP) for row in self._rows(records[start : start + _STEP]))

    def _rows(self, records: list[Any]) -> list[Row]:
        """The rows of a list of records, which may be that list."""
        make, width = row_class(self.names), len(self.names)
        if records and type(records[0]) is make:
            return records
        if width != self._width:
            records = [r[:width] for r in records]
        decoders = self._decoders
        if not any(decoders):
            return rows_of(make, records)
        return [
            make([v if d is None or v is None else d(v) for v, d in zip(r, decoders, strict=True)]) for r in records
        ]

    def fetchone(self) -> Row | None:
        """The next row that no fetch has returned yet, or None at the end."""
        rows = self.fetchmany(1)
        return rows[0] if rows else None

    def fetchmany(self, size: int = 1) -> list[Row]:
        """The next ``size`` rows."""
        self._require_rows()
        rows = self[self._position : self._position + size]
        self._position += len(rows)
        return rows

    def fetchall(self) -> list[Row]:
        """The rows that no fetch has returned yet."""
        return self.fetchmany(self._count)

    def scalar(self) -> Any:
        """The first column of the first row, or None when there is no row."""
        self._require_rows()
        return self[0][0] if self._count else None

    def _require_rows(self) -> None:
        if not self.returns_rows:
            raise InputError("the statement returns no rows; add RETURNING to get the rows it changed")

    def raw(self, i: int) -> list[Any]:
        """Column i as SQL holds it: numbers, text, addresses; None for NULL."""
        records = self._records
        if records and type(records[0]) is not tuple:  # rows, whose items are looked up in Python
            return list(map(tuple.__getitem__, records, repeat(i)))
        return list(map(operator.itemgetter(i), records))

    def column(self, i: int) -> np.ndarray | list[Any]:
        """Column i for a loader: int64 addresses (0 for NULL) of vectors and blobs, else a list of Python values."""
        kind, raw = self.types[i], self.raw(i)
        if kind is not None and not kind.is_scalar:
            import numpy as np

            return np.fromiter((v or 0 for v in raw), np.int64, len(raw))
        decode = self._decoders[i]
        return raw if decode is None else [None if v is None else decode(v) for v in raw]

    def key_columns(self) -> list[list[Any]]:
        """The hidden primary-key columns of a streamed query, empty when the query has none."""
        return [self.raw(i) for i in range(len(self.names), self._width)]

    def take(self, order: np.ndarray) -> RowSet:
        """The same columns with the rows in the given order (indices, repeats allowed)."""
        names, types = self._all_names(), (*self.types, *(None for _ in range(self._width - len(self.types))))
        records = [self._records[i] for i in order.tolist()]
        return RowSet(names, types, records, source=self._source, decoded=self._decoded)

    def _all_names(self) -> tuple[str, ...]:
        return (*self.names, *(f"{KEY_PREFIX}{i}" for i in range(self._width - len(self.names))))

    def digest(self) -> str:
        """Hex sha256 over names, order and content: keys and addresses where the rows have keys, else every value."""
        import hashlib

        digest = hashlib.sha256(repr(self.names).encode())
        by_key = self._width > len(self.names)
        chosen = [i for i, kind in enumerate(self.types) if not by_key or (kind is not None and not kind.is_scalar)]
        for i in (*chosen, *range(len(self.names), self._width)):
            digest.update(repr(self.raw(i)).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def to_arrow(self) -> pa.Table:
        """A pyarrow.Table: vectors as fixed-size lists, blobs as struct(url, key, offset, length), scalars by type."""
        import pyarrow as pa

        columns = [self._arrow(i) for i in range(len(self.names))]
        return pa.Table.from_arrays(columns, names=list(self.names))

    def to_batches(self, max_rows: int = 65_536) -> pa.RecordBatchReader:
        """The same columns as `to_arrow`, as a pyarrow.RecordBatchReader of batches of at most ``max_rows`` rows.

        >>> duckdb.sql("SELECT avg(steps) FROM batches")   # with batches = rows.to_batches()  # doctest: +SKIP
        """
        import pyarrow as pa

        if not isinstance(max_rows, int) or max_rows < 1:
            raise InputError(f"max_rows must be a positive number of rows, got {max_rows!r}")
        table = self.to_arrow()
        return pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=max_rows))

    def _arrow(self, i: int) -> pa.Array:
        import pyarrow as pa

        kind = self.types[i]
        made = None if self._answer is None else self._answer.arrow(i, kind, _arrow_type(kind))
        if made is not None:
            return made
        if kind is not None and kind.is_vector:
            return self._arrow_vectors(i, kind)
        if kind is not None and kind.is_blob:
            fields = [("url", pa.string()), ("key", pa.string()), ("offset", pa.int64()), ("length", pa.int64())]
            return pa.array([self._place(a) for a in self.raw(i)], pa.struct(fields))
        plainly = kind is not None and kind.name in _STORED_PLAINLY and not self._decoded
        if kind is not None and plainly and (found := _cast(self.raw(i), kind)) is not None:
            return found
        values = self.column(i)
        if kind is not None and kind.name == "JSON":  # a column of mixed documents has no Arrow type
            values = list(map(_document, self.raw(i))) if self._decoded else self.raw(i)
        elif kind is not None and kind.name == "UUID":
            values = [None if v is None else str(v) for v in values]
        try:
            return pa.array(values, _arrow_type(kind))
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"column {self.names[i]!r} makes no Arrow array: {error}; CAST it in the query") from error

    def _arrow_vectors(self, i: int, kind: ColumnType) -> pa.Array:
        import numpy as np
        import pyarrow as pa

        if self._decoded:
            return _held_vectors(self.raw(i), kind)
        addresses = np.asarray(self.column(i))
        present = addresses != 0
        matrix = np.zeros((len(addresses), kind.dimension), kind.dtype)
        if present.any():
            matrix[present] = self._require_source().vectors(addresses[present])
        flat = pa.array(matrix.reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, kind.dimension, mask=pa.array(~present))

    def _place(self, address: int | None) -> dict[str, object] | None:
        if address is None:
            return None
        place = self._require_source().locate(address)
        return {"url": place.url, "key": place.key, "offset": place.offset, "length": place.length}

    def to_pandas(self) -> pd.DataFrame:
        """A DataFrame: scalars as pandas infers them, vectors as arrays, blobs as lazy handles."""
        import pandas as pd

        return pd.DataFrame({i: self._pandas(i) for i in range(len(self.names))}).set_axis(list(self.names), axis=1)

    def _pandas(self, i: int) -> pd.Series:
        import pandas as pd

        kind, raw = self.types[i], self.raw(i)
        if kind is None or kind.is_scalar:
            return pd.Series(self.column(i), dtype=None if raw else object)
        decode = self._decoders[i]
        handles = [None if a is None or decode is None else decode(a) for a in raw]
        values = [h.array() if isinstance(h, Vector) else h for h in handles]
        return pd.Series(values, dtype=object)

    def _require_source(self) -> Source:
        if self._source is None:
            raise InputError("this RowSet was unpickled and is not connected to a store; run the query again")
        return self._source

    def __repr__(self) -> str:
        if not self.returns_rows:
            return f"<RowSet: {self.rowcount} rows changed>"
        return f"<RowSet: {len(self)} rows of {', '.join(self.names)}>"

    def __getstate__(self) -> dict[str, Any]:
        records = list(map(tuple, self._records))  # rows would bring their names
        return {"names": self._all_names(), "types": self.types, "records": records, "rowcount": self.rowcount,
                "decoded": self._decoded}  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        hidden = (None,) * (len(state["names"]) - len(state["types"]))
        self.__init__(  # type: ignore[misc]
            state["names"], (*state["types"], *hidden), state["records"], rowcount=state["rowcount"],
            decoded=state["decoded"],
        )  # fmt: skip


def _decoder(kind: ColumnType | None, source: Source | None, decoded: bool) -> Callable[[Any], Any] | None:
    if kind is None:
        return None
    if kind.is_scalar:
        return None if decoded else scalars.from_sql(kind)
    if kind.is_vector and decoded:
        return lambda numbers: Vector.of(source, kind, numbers)
    if source is None:
        return None
    return lambda address: (Vector if kind.is_vector else Blob)(source, kind, address)


def _document(value: Any) -> str | None:
    """A JSON document as SQL holds it."""
    return None if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _held_vectors(values: list[Given | None], kind: ColumnType) -> pa.Array:
    """Vectors whose numbers are here, NULL where there is none."""
    import numpy as np
    import pyarrow as pa

    dtype = np.dtype(kind.dtype).newbyteorder("<")
    empty = bytes(kind.dimension * dtype.itemsize)
    flat = np.frombuffer(b"".join(empty if v is None else packed(kind, v) for v in values), dtype)
    missing = np.array([v is None for v in values], np.bool_)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.astype(kind.dtype)), kind.dimension, mask=pa.array(missing))


_STEP = 1_000  # rows made at once while somebody goes through them

_STORED_PLAINLY = ("BOOLEAN", "TIMESTAMP", "TIMESTAMPTZ", "DATE")
"""Types whose text or number in SQL Arrow reads by itself, five times as fast as by way of Python's objects."""


def _cast(values: list[Any], kind: ColumnType) -> pa.Array | None:
    """Values as SQL holds them, read by Arrow; None for what another tool wrote in another form."""
    import pyarrow as pa

    stored = pa.int64() if kind.name == "BOOLEAN" else pa.string()
    try:
        return pa.array(values, stored).cast(_arrow_type(kind))
    except (TypeError, ValueError):
        return None


def _arrow_type(kind: ColumnType | None) -> pa.DataType | None:
    import pyarrow as pa

    if kind is None or str(kind.option("native")).endswith("[]"):  # an array of PostgreSQL's
        return None
    if kind.name == "NUMERIC" and kind.option("precision") is not None:
        return pa.decimal128(int(kind.option("precision") or 0), int(kind.option("scale") or 0))
    simple = {
        "TEXT": pa.string(), "SMALLINT": pa.int16(), "INTEGER": pa.int32(), "BIGINT": pa.int64(), "REAL": pa.float64(),
        "DOUBLE": pa.float64(), "BOOLEAN": pa.bool_(), "TIMESTAMP": pa.timestamp("us"), "DATE": pa.date32(),
        "TIMESTAMPTZ": pa.timestamp("us", "UTC"), "TIME": pa.time64("us"), "JSON": pa.string(), "UUID": pa.string(),
        "BYTEA": pa.binary(),
    }  # fmt: skip
    return simple.get(kind.name)
