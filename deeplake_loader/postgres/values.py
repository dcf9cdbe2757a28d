"""Python values as psycopg is given them, checked as the embedded catalog checks them.

A value on a column's value path is checked and written by `scalars`, whose text PostgreSQL reads as well; what
PostgreSQL holds and SQLite cannot (NaN, long NUMERICs, intervals) passes as it is. Elsewhere plain scalars pass.
"""

from __future__ import annotations

import datetime as dt
import math
import struct
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import UUID

from deeplake_loader import codecs, scalars
from deeplake_loader.errors import TypeMismatchError
from deeplake_loader.postgres.types import is_native
from deeplake_loader.postgres.vectors import MAX_PGVECTOR, HalfVectorValue, RealsValue, VectorValue
from deeplake_loader.rows import Blob, Vector
from deeplake_loader.types import ColumnType

_PLAIN = (str, int, float, bytes, Decimal, dt.datetime, dt.date, dt.time, dt.timedelta, UUID)


def scalar(kind: ColumnType, value: object, where: str) -> Any:
    """A column's scalar for psycopg; None passes.

    >>> scalar(ColumnType("BOOLEAN"), True, "column 'ok'"), scalar(ColumnType("DATE"), "2026-01-02", "column 'day'")
    (True, '2026-01-02')
    """
    if value is None or is_native(kind) or (kind.name == "INTERVAL" and isinstance(value, dt.timedelta | str)):
        return value
    if kind.name in ("REAL", "DOUBLE") and isinstance(value, float) and not math.isfinite(value):
        return float(value)
    if kind.name == "NUMERIC":
        return _numeric(value, where)
    stored = scalars.to_sql(kind)(value, where)
    return bool(stored) if kind.name == "BOOLEAN" and stored is not None else stored


def _numeric(value: object, where: str) -> Decimal:
    item = getattr(value, "item", None)
    given = item() if item is not None and getattr(value, "shape", None) == () else value
    if isinstance(given, bool) or not isinstance(given, int | float | str | Decimal):
        raise TypeMismatchError(f"{where} expects NUMERIC, got {type(value).__name__} {value!r}")
    try:
        return Decimal(repr(given) if isinstance(given, float) else given)
    except ArithmeticError:
        raise TypeMismatchError(f"{where} expects NUMERIC, got {value!r}") from None


def many(kind: ColumnType | None, value: object, where: str) -> list[Any]:
    """The list for ``= ANY``: items of one Python type, by which psycopg finds the array's."""
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        raise TypeMismatchError(f"{where} expects a list, got {type(value).__name__}")
    if kind is None or not kind.is_scalar or is_native(kind) or kind.name == "NUMERIC":
        return [plain(item, where) for item in value]
    encode, decode = scalars.to_sql(kind), scalars.from_sql(kind)
    stored = [encode(item, where) for item in value]
    return stored if decode is None else [None if item is None else decode(item) for item in stored]


def plain(value: object, where: str) -> Any:
    """A value whose place gives it no type: a scalar, a list of them for an array, JSON as text; a vector as such."""
    if value is None or isinstance(value, _PLAIN):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Vector):
        return vector(value.type, value, where)
    if isinstance(value, list | tuple):
        return [plain(item, where) for item in value]
    if getattr(value, "ndim", None) == 1:
        kind = ColumnType("VECTOR", "float32", (len(value),))  # type: ignore[arg-type]
        return vector(kind, value, where)
    return scalars.plain(value, where)


def vector(kind: ColumnType, value: object, where: str) -> VectorValue | HalfVectorValue | RealsValue:
    """A vector of the column's dtype as the adapters of `vectors` send it."""
    if kind.dimension > MAX_PGVECTOR:
        return _long(kind, value, where)
    own = isinstance(value, Vector) and value.type == kind and value.numbers is not None
    data = value.numbers if own else codecs.encode_vector(kind, _array(value), where)  # type: ignore[attr-defined]
    return (HalfVectorValue if kind.dtype == "float16" else VectorValue)(data)


def _long(kind: ColumnType, value: object, where: str) -> RealsValue:
    """A vector of more numbers than pgvector takes, rounded to the column's dtype."""
    data = codecs.encode_vector(kind, _array(value), where)
    if kind.dtype == "float16":
        numbers = struct.unpack(f"<{kind.dimension}e", data)
        data = struct.pack(f"<{kind.dimension}f", *numbers)
    return RealsValue(data)


def query(kind: ColumnType, value: object, where: str) -> VectorValue | RealsValue:
    """A score's query vector: float32, whatever the column's dtype."""
    wanted = ColumnType("VECTOR", "float32", kind.shape)
    sent = RealsValue if kind.dimension > MAX_PGVECTOR else VectorValue
    return sent(codecs.encode_vector(wanted, _array(value), where))


def _array(value: object) -> object:
    return value.array() if isinstance(value, Vector) else value


def address(source: object) -> Callable[[object, str], int]:
    """Turns a handle of a blob of this source into its address, for a comparison."""

    def take(value: object, where: str) -> int:
        found = value.address_in(source) if isinstance(value, Blob) else None
        if found is None:
            raise TypeMismatchError(
                f"{where} compares a blob column: pass a handle that a query of this store returned"
            )
        return found

    return take
