"""What the columns of a result are: by the table column each one comes from, by PostgreSQL's type, by the plan.

libpq tells for each result column which table's (or view's) column it is, also out of subqueries and CTEs, so an IMAGE
column is an image whatever the shape of the query, the compiler's knowledge of it included.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.adapt import Buffer, Loader
from psycopg.pq import Format

from deeplake_loader.errors import StoreError
from deeplake_loader.postgres.failures import translate_error
from deeplake_loader.postgres.types import OIDS, is_native
from deeplake_loader.postgres.vectors import REALS
from deeplake_loader.postgres.vectors import register as register_vectors
from deeplake_loader.rows import KEY_PREFIX, at_once, row_class
from deeplake_loader.types import ColumnType

if TYPE_CHECKING:
    import pyarrow as pa
    from psycopg.pq.abc import PGresult

    from deeplake_loader.postgres.catalog import PostgresCatalog
    from deeplake_loader.sql.plan import Plan

Cursor = psycopg.RawCursor[tuple[Any, ...]]
Types = tuple[ColumnType | None, ...]
Shape = tuple[tuple[str, ...], Types]
_MAX_SHAPES, _MAX_ORIGINS = 1_000, 100_000  # views of a point in history are new ones in each transaction
_SCALAR = {oid: ColumnType(name) for oid, name in OIDS.items()}
_ORIGINS = (
    "SELECT c.relname, a.attnum, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
    "WHERE c.oid = %s AND a.attnum > 0"
)


class ResultTypes:
    """The types of result columns, remembered per origin for as long as the schema stays."""

    def __init__(self, catalog: PostgresCatalog) -> None:
        self._catalog = catalog
        self._origins: dict[tuple[int, int], ColumnType | None] = {}
        self._forms: dict[int, str] = {}
        self._shapes: dict[tuple[str, tuple[tuple[int, int, int], ...]], Shape] = {}

    def forget(self) -> None:
        """After a change of the schema."""
        self._origins.clear()
        self._shapes.clear()

    def of(self, result: PGresult, plan: Plan) -> Shape:
        """The names and types of a result's columns."""
        count = result.nfields
        seen = tuple([(result.ftype(i), result.ftable(i), result.ftablecol(i)) for i in range(count)])
        key = plan.sql, seen
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) >= _MAX_SHAPES:
                self._shapes.clear()
            shape = self._shapes[key] = self._described(result, plan)
        return shape

    def _described(self, result: PGresult, plan: Plan) -> Shape:
        count = result.nfields
        names = tuple((result.fname(i) or b"").decode() for i in range(count))
        planned = plan.results if len(plan.results) == count else (None,) * count
        types: list[ColumnType | None] = []
        for i, (name, told) in enumerate(zip(names, planned, strict=True)):
            known = told.type if told is not None and told.name == name else None
            types.append(self._type(result, i, known))
        return names, tuple(types)

    def _type(self, result: PGresult, i: int, known: ColumnType | None) -> ColumnType | None:
        oid = result.ftype(i)
        origin = result.ftable(i)
        found = self._origin(origin, result.ftablecol(i)) if origin else None
        if found is not None:
            return self._readable(found, oid)
        scalar = _SCALAR.get(oid)
        if known is not None and not known.is_scalar and (scalar is None or scalar.name == "BIGINT"):
            return known
        if scalar is None:
            return self._other(result, i, oid)
        return known if known is not None and known.name == scalar.name else scalar

    def _readable(self, kind: ColumnType, oid: int) -> ColumnType:
        """The type, unless it is one of pgvector's that this connection is older than."""
        connection = self._catalog.connection
        if kind.is_vector and oid != REALS and connection.adapters.get_loader(oid, Format.BINARY) is None:
            register_vectors(connection)
            raise StoreError("the database got pgvector after this handle had connected; run the statement again")
        return kind

    def _other(self, result: PGresult, i: int, oid: int) -> ColumnType | None:
        """A vector that no column names; None for a type that passes through."""
        if oid not in self._forms:
            row: Any = self._catalog.fetchone("SELECT typname FROM pg_type WHERE oid = %s", (oid,), native=True)
            self._forms[oid] = "" if row is None else str(row[0])
        dtype = {"vector": "float32", "halfvec": "float16"}.get(self._forms[oid])
        length = 0 if dtype is None else _length(result, i)
        return ColumnType("VECTOR", dtype, (length,)) if length else None

    def _origin(self, table: int, column: int) -> ColumnType | None:
        key = table, column
        if key not in self._origins:
            if len(self._origins) >= _MAX_ORIGINS:
                self._origins.clear()
            rows: list[Any] = self._catalog.fetchall(_ORIGINS, (table,), native=True)
            found = self._catalog.table(rows[0][0]) if rows else None
            for _, number, name in rows:
                named = None if found is None else found.column(name)
                self._origins[table, number] = None if named is None else named.type
            self._origins.setdefault(key, None)
        return self._origins[key]


def _length(result: PGresult, i: int) -> int:
    """How many numbers the vectors of a column have: as the type says, else as many as the first one; 0: unknown."""
    if result.fmod(i) > 0:
        return result.fmod(i)
    values = (result.get_value(row, i) for row in range(result.ntuples))
    first = next((value for value in values if value is not None), None)
    if first is None:
        return 0
    return int.from_bytes(first[:2], "big") if result.fformat(i) else first.count(b",") + 1


def lists_in(result: PGresult, types: Sequence[ColumnType | None]) -> tuple[int, ...]:
    """The columns of ``real[]`` that are no vectors; in a binary result `vectors` reads them as arrays."""
    return tuple(i for i, k in enumerate(types) if result.ftype(i) == REALS and not (k is not None and k.is_vector))


def with_lists(rows: Iterable[Sequence[Any]], places: Sequence[int]) -> list[tuple[Any, ...]]:
    """The rows with lists of the shortest decimals, as PostgreSQL's text has them, at these places."""
    return [
        tuple([list(map(_shortest, v)) if i in places and isinstance(v, array) else v for i, v in enumerate(row)])
        for row in rows
    ]


class Answer:
    """The rows of one statement, still as libpq holds them."""

    def __init__(self, cursor: Cursor, result: PGresult, names: Sequence[str], types: Types) -> None:
        self._cursor, self._result, self.count = cursor, result, result.ntuples
        self._names, self._plain = tuple(names), all(kind is None or kind.is_scalar for kind in types)
        self._lists = () if self._plain else lists_in(result, types)

    def records(self) -> list[tuple[Any, ...]]:
        if self._plain and not self._names[-1].startswith(KEY_PREFIX):  # they are the rows already
            make = row_class(self._names)
            self._cursor.row_factory = lambda _cursor: make
        try:
            rows = at_once(self._cursor.fetchall)
            return with_lists(rows, self._lists) if self._lists else rows
        except psycopg.Error as error:
            raise translate_error(error) from error

    def arrow(self, i: int, kind: ColumnType | None, wanted: pa.DataType | None) -> pa.Array | None:
        """A scalar column read by Arrow from PostgreSQL's text, a third of the time of Python's values."""
        if (
            kind is None
            or kind.name not in _READ_BY_ARROW
            or is_native(kind)
            or self._result.fformat(i)
            or wanted is None
        ):
            return None
        import pyarrow as pa

        cell = self._result.get_value
        data = pa.array([cell(row, i) for row in range(self.count)], pa.binary())
        try:
            return data.cast(pa.string()).cast(wanted)
        except pa.ArrowInvalid:  # 'infinity', a year before Christ: what Python makes of it
            return None


_READ_BY_ARROW = frozenset({"TEXT", "SMALLINT", "INTEGER", "BIGINT", "REAL", "DOUBLE", "TIMESTAMP", "DATE"})


# -- how psycopg reads -------------------------------------------------------------------------------------------------


class _ShortReal(Loader):
    """A REAL as its shortest decimals say it, as in PostgreSQL's text: 0.1, not 0.10000000149."""

    format = Format.BINARY

    def load(self, data: Buffer) -> float:
        return _shortest(_REAL.unpack(data)[0])


def _shortest(value: float) -> float:
    if value == int(value) if abs(value) < _EXACT else value != value:
        return value
    data, texts = _REAL.pack(value), (f"{value:.{digits}g}" for digits in range(1, 10))
    return next((float(text) for text in texts if _REAL.pack(float(text)) == data), value)


_REAL, _EXACT = struct.Struct("!f"), 1 << 24


def register(connection: psycopg.Connection[Any]) -> None:
    """Teaches a connection to give a REAL in a binary result as it does in text."""
    connection.adapters.register_loader("float4", _ShortReal)
