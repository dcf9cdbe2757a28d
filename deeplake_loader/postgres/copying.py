"""Rows given by column as PostgreSQL's binary COPY: columns are packed as a whole, the rows are joined by one call.

    'PGCOPY\\n\\377\\r\\n\\0' | int32 0 | int32 0 | rows | int16 -1          row: int16 fields | fields
    field: int32 length (-1: NULL) | bytes                                 numbers big-endian, text UTF-8
    timestamps: microseconds since 2000; dates: days since 2000; jsonb: byte 1, then its text

Values are what `scalars` stores, naive datetimes as they are, and wire forms of vectors (`vectors.rows_to_wire`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from deeplake_loader.types import ColumnType

if TYPE_CHECKING:
    import numpy as np

    Part = np.ndarray[Any, Any] | Sequence[Any]

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
_NULL = b"\xff\xff\xff\xff"
_CHUNK = 1_024  # rows per message: they fit into the socket, so that the server reads while the next ones are packed
_DTYPES = {"SMALLINT": ">i2", "INTEGER": ">i4", "BIGINT": ">i8", "REAL": ">f4", "DOUBLE": ">f8", "BOOLEAN": "u1"}
_EPOCH_S, _EPOCH_DAYS = 946_684_800, 10_957  # 2000-01-01 since 1970


def packed_rows(columns: Mapping[str, tuple[ColumnType, Sequence[Any]]]) -> Iterator[bytes]:
    """The messages of one COPY: columns by name, each with its type and one value a row.

    >>> b"".join(packed_rows({"a": (ColumnType("SMALLINT"), [1])}))[19:].hex()
    '00010000000200' + '01ffff'
    """
    import numpy as np

    count = len(next(iter(columns.values()))[1])
    head = np.frombuffer(len(columns).to_bytes(2, "big"), np.uint8)
    yield HEADER
    for i in range(0, count, _CHUNK):
        fields = [part for kind, values in columns.values() for part in _fields(kind, values[i : i + _CHUNK])]
        first = np.broadcast_to(head, (min(_CHUNK, count - i), 2))
        yield b"".join(chain.from_iterable(zip(*_pieces([first, *fields]), strict=True)))
    yield TRAILER


def _pieces(parts: Sequence[Part]) -> Iterator[Sequence[Any]]:
    """What a row is joined of: neighbours of fixed length are one piece."""
    import numpy as np

    for fixed, run in groupby(parts, lambda part: hasattr(part, "dtype")):
        if fixed:
            yield _cut(np.hstack(list(run)))
        else:
            yield from cast("Iterator[Sequence[Any]]", run)


def _cut(matrix: Any) -> list[bytes]:
    flat, width = matrix.tobytes(), matrix.shape[1]
    return [flat[i : i + width] for i in range(0, len(flat), width)]


def _fields(kind: ColumnType, values: Sequence[Any]) -> list[Part]:
    """The fields of a column, in one or two parts."""
    present = [v for v in values if v is not None] if not hasattr(values, "dtype") else values
    if not len(present):
        return [[_NULL] * len(values)]
    packed = _packed(kind, present)
    if len(present) == len(values):
        return packed
    return [_spread(part, values, _NULL if i == 0 else b"") for i, part in enumerate(packed)]


def _spread(part: Part, values: Sequence[Any], empty: bytes) -> list[Any]:
    pieces = iter(_cut(part) if hasattr(part, "dtype") else part)
    return [empty if v is None else next(pieces) for v in values]


def _packed(kind: ColumnType, values: Sequence[Any]) -> list[Part]:
    if kind.is_blob:
        return [_numbers(values, ">i8")]
    if kind.name in _DTYPES:
        return [_numbers(values, _DTYPES[kind.name])]
    if kind.name in _TEMPORAL:
        numbers, dtype = _TEMPORAL[kind.name](values)
        return [_numbers(numbers, dtype)]
    return _sized(_BYTES.get(kind.name, _as_is)(values))


def _numbers(values: Any, dtype: str) -> np.ndarray[Any, Any]:
    """Fields of one length: it and the number side by side."""
    import numpy as np

    array = np.asarray(values).astype(dtype)
    size = array.dtype.itemsize
    both = np.empty((len(array), 4 + size), np.uint8)
    both[:, :4] = np.frombuffer(size.to_bytes(4, "big"), np.uint8)
    both[:, 4:] = array.view(np.uint8).reshape(len(array), size)
    return both


def _sized(data: Sequence[Any]) -> list[Part]:
    import numpy as np

    return [np.fromiter(map(len, data), ">i4", len(data)).view(np.uint8).reshape(-1, 4), data]


def _timestamps(values: Sequence[Any]) -> tuple[np.ndarray[Any, Any], str]:
    import numpy as np

    if isinstance(values[0], str):
        moments = np.array([v[:26] for v in values], "M8[us]")
    else:
        import pyarrow as pa

        moments = pa.array(values, pa.timestamp("us")).to_numpy()  # numpy takes eight times as long
    return moments.astype(np.int64) - _EPOCH_S * 1_000_000, ">i8"


def _dates(values: Sequence[str]) -> tuple[np.ndarray[Any, Any], str]:
    import numpy as np

    return np.array(values, "M8[D]").astype(np.int64) - _EPOCH_DAYS, ">i4"


def _times(values: Sequence[str]) -> tuple[np.ndarray[Any, Any], str]:
    import numpy as np

    return np.array([f"1970-01-01T{v}" for v in values], "M8[us]").astype(np.int64), ">i8"


def _texts(values: Sequence[str]) -> list[bytes]:
    return [v.encode() for v in values]


def _documents(values: Sequence[str]) -> list[bytes]:
    return [b"\x01" + v.encode() for v in values]


def _uuids(values: Sequence[str]) -> list[bytes]:
    return [UUID(v).bytes for v in values]


def _numerics(values: Sequence[Any]) -> list[bytes]:
    from psycopg.types.numeric import DecimalBinaryDumper

    dump = DecimalBinaryDumper(type(values[0])).dump
    return [bytes(dump(v) or b"") for v in values]


def _as_is(values: Sequence[Any]) -> list[Any]:
    return list(values)


_TEMPORAL: dict[str, Callable[[Sequence[Any]], tuple[Any, str]]] = {
    "TIMESTAMP": _timestamps, "TIMESTAMPTZ": _timestamps, "DATE": _dates, "TIME": _times,
}  # fmt: skip
_BYTES: dict[str, Callable[[Sequence[Any]], Sequence[Any]]] = {
    "TEXT": _texts,
    "JSON": _documents,
    "UUID": _uuids,
    "NUMERIC": _numerics,
}
