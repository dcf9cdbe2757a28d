"""Vectors as PostgreSQL holds them: the forms of a column, its bytes on the wire, and the score functions in SQL.

A VECTOR column is pgvector's ``vector(n)``, or ``halfvec(n)`` for float16; ``real[]`` with a CHECK on its length where
pgvector is missing or the vector longer than it takes. On the wire (binary):

    vector, halfvec   int16 n | int16 0 | n big-endian float32 (float16)
    real[]            int32 1 | int32 0 | int32 700 | int32 n | int32 1 | n times (int32 4 | big-endian float32)

Numbers are turned round all at once, never one by one.
"""

from __future__ import annotations

import json
import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from deeplake_loader.errors import CorruptionError, StoreError
from deeplake_loader.types import ColumnType, quote_identifier

if TYPE_CHECKING:
    import numpy as np
    from psycopg import Connection
    from typing_extensions import Buffer

    Array = np.ndarray[Any, np.dtype[Any]]

Form = Literal["vector", "halfvec", "real[]"]

MAX_PGVECTOR = 16_000
"""Numbers that a vector of pgvector can have."""

FLOAT4, REALS = 700, 1021
"""PostgreSQL's numbers of the types real and real[]."""

_HEAD = struct.Struct("!hh")
_ARRAY_HEAD = struct.Struct("!iiiii")
_CODES = {"vector": "f", "halfvec": "H"}


def form_of(kind: ColumnType, *, pgvector: bool) -> Form:
    """What a VECTOR column is in PostgreSQL.

    >>> form_of(ColumnType.parse("VECTOR(768, float16)"), pgvector=True)
    'halfvec'
    """
    if not pgvector or kind.dimension > MAX_PGVECTOR:
        return "real[]"
    return "halfvec" if kind.dtype == "float16" else "vector"


def declared(kind: ColumnType, *, pgvector: bool, schema: str = "public") -> str:
    """The type of a VECTOR column as CREATE TABLE writes it; ``schema`` is where pgvector is."""
    form = form_of(kind, pgvector=pgvector)
    return form if form == "real[]" else f"{quote_identifier(schema)}.{form}({kind.dimension})"


def stored_form(fetchone: Callable[[str, Sequence[Any]], Any], table: str, column: str) -> Form:
    """What a VECTOR column of a table is in the database: a store may have got pgvector after the table was made.

    Raises:
        SQLError: no such table. StoreError: no such column, or one of another type.
    """
    row = fetchone(_STORED, (table, column))
    if row is None or row[0] not in _FORMS:
        raise StoreError(f"column {column!r} of {table} is no VECTOR column in the database any more; connect again")
    return _FORMS[row[0]]


_STORED = (
    "SELECT t.typname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid "
    "WHERE a.attrelid = ?::regclass AND a.attname = ? AND NOT a.attisdropped"
)
_FORMS: dict[str, Form] = {"vector": "vector", "halfvec": "halfvec", "_float4": "real[]"}


def check_of(column: str, kind: ColumnType) -> str:
    """The condition that a ``real[]`` column has in place of a dimension, and of float16's range.

    >>> check_of("v", ColumnType.parse("VECTOR(3)"))
    'array_ndims("v") = 1 AND cardinality("v") = 3 AND array_position("v", NULL) IS NULL'
    """
    name = quote_identifier(column)
    shape = f"array_ndims({name}) = 1 AND cardinality({name}) = {kind.dimension}"
    shape += f" AND array_position({name}, NULL) IS NULL"
    return shape if kind.dtype != "float16" else f"{shape} AND 65504 >= ALL({name}) AND -65504 <= ALL({name})"


# -- one vector ----------------------------------------------------------------------------------------------------


def to_wire(data: Buffer, form: Form) -> bytes:
    """The bytes that PostgreSQL takes for one vector: ``data`` is little-endian, float16 for ``halfvec``.

    >>> to_wire(array("f", [1.0]), "vector").hex()
    '000100003f800000'
    """
    numbers = array(_CODES.get(form, "f"), memoryview(data).cast("B").tobytes())
    _turn(numbers)
    if form != "real[]":
        return _HEAD.pack(len(numbers), 0) + numbers.tobytes()
    items = numbers.tobytes()
    head = _ARRAY_HEAD.pack(1, 0, FLOAT4, len(numbers), 1)
    return head + b"".join(b"\0\0\0\4" + items[i : i + 4] for i in range(0, len(items), 4))


def from_wire(data: Buffer, form: Form) -> bytes:
    """The little-endian numbers of one vector as PostgreSQL sends it.

    >>> array("f", from_wire(to_wire(array("f", [1.0, -2.5]), "real[]"), "real[]")).tolist()
    [1.0, -2.5]
    """
    view = memoryview(data)
    if form == "real[]":
        return _from_array(view)
    numbers = array(_CODES[form], view[_HEAD.size :].tobytes())
    if len(numbers) != _HEAD.unpack_from(view)[0]:
        raise CorruptionError(f"PostgreSQL sent a {form} of {_HEAD.unpack_from(view)[0]} with {len(numbers)} numbers")
    _turn(numbers)
    return numbers.tobytes()


def _from_array(view: memoryview) -> bytes:
    if view.nbytes == 12:  # no dimension: an empty array
        return b""
    ndim, _, oid, count, _ = _ARRAY_HEAD.unpack_from(view)
    items = view[_ARRAY_HEAD.size :]
    if ndim != 1 or oid != FLOAT4 or items.nbytes != 8 * count:
        raise CorruptionError("PostgreSQL sent an array that is no list of real numbers without NULLs")
    pairs = array("I", items.tobytes())
    numbers = pairs[1::2]
    _turn(numbers)
    return numbers.tobytes()


def from_text(text: str | bytes, form: Form) -> bytes:
    """The little-endian numbers of one vector in its text form, ``[0.1,0.2]`` or ``{0.1,0.2}``."""
    given = text.decode() if isinstance(text, bytes) else text
    numbers = json.loads(f"[{given[1:-1]}]")
    return struct.pack(f"<{len(numbers)}{'e' if form == 'halfvec' else 'f'}", *numbers)


def _turn(numbers: array[Any]) -> None:
    if sys.byteorder == "little":
        numbers.byteswap()


# -- many ----------------------------------------------------------------------------------------------------------


def rows_to_wire(matrix: Array, form: Form) -> list[memoryview]:
    """``to_wire`` for each row of a matrix (n, d) of float32, or of float16 for ``halfvec``: one copy for all."""
    import numpy as np

    count, dimension = matrix.shape
    if form == "real[]":
        pairs = np.empty((count, dimension, 2), ">i4")
        pairs[:, :, 0], pairs[:, :, 1] = 4, matrix.astype(">f4").view(">i4")
        head, body = _ARRAY_HEAD.pack(1, 0, FLOAT4, dimension, 1), pairs.reshape(count, -1).view(np.uint8)
    else:
        swapped = matrix.astype(">f4" if form == "vector" else ">f2")
        head, body = _HEAD.pack(dimension, 0), swapped.view(np.uint8).reshape(count, -1)
    whole = np.empty((count, len(head) + body.shape[1]), np.uint8)
    whole[:, : len(head)], whole[:, len(head) :] = np.frombuffer(head, np.uint8), body
    flat, width = whole.reshape(-1).data, whole.shape[1]
    return [flat[i : i + width] for i in range(0, count * width, width)]


def rows_from_wire(body: Array, form: Form, dimension: int) -> Array:
    """The vectors (n, d), little-endian, of values as PostgreSQL sends them: ``body`` is (n, bytes of a value) uint8.

    Raises:
        CorruptionError: a value has another dimension.
    """
    import numpy as np

    if form == "real[]":
        head, skip, dtype = _ARRAY_HEAD.pack(1, 0, FLOAT4, dimension, 1), 20, ">i4"
    else:
        head, skip, dtype = _HEAD.pack(dimension, 0), 4, ">f4" if form == "vector" else ">f2"
    if len(body) and not (body[:, :skip] == np.frombuffer(head, np.uint8)).all():
        raise CorruptionError(f"PostgreSQL sent a {form} that is not one of {dimension} numbers")
    numbers = np.ascontiguousarray(body[:, skip:]).view(dtype)
    if form == "real[]":
        return np.ascontiguousarray(numbers[:, 1::2]).view(">f4").astype("<f4")
    return numbers.astype(numbers.dtype.newbyteorder("<"))


def width_of(form: Form, dimension: int) -> int:
    """Bytes of one value on the wire."""
    return {"vector": 4 + 4 * dimension, "halfvec": 4 + 2 * dimension, "real[]": 20 + 8 * dimension}[form]


# -- psycopg -------------------------------------------------------------------------------------------------------


_TYPES = (
    "SELECT t.typname, t.oid FROM pg_type t JOIN pg_depend d ON d.objid = t.oid AND d.deptype = 'e' "
    "JOIN pg_extension e ON e.oid = d.refobjid WHERE e.extname = 'vector' AND t.typname IN ('vector', 'halfvec')"
)


class VectorValue(bytes):
    """Little-endian float32 numbers that psycopg sends as a ``vector`` (``real[]`` where pgvector is missing)."""


class HalfVectorValue(bytes):
    """Little-endian float16 numbers that psycopg sends as a ``halfvec``."""


class RealsValue(bytes):
    """Little-endian float32 numbers that psycopg sends as ``real[]``: more of them than pgvector takes."""


SENT: dict[Form, type[bytes]] = {"vector": VectorValue, "halfvec": HalfVectorValue, "real[]": RealsValue}


def register(connection: Connection[Any]) -> bool:
    """Teaches a connection of psycopg to send `VectorValue`, `HalfVectorValue` and `RealsValue`, to give ``vector`` and
    ``halfvec`` columns as little-endian bytes, and ``real[]`` in a binary result as an array; whether pgvector is
    there."""
    found = dict(connection.execute(_TYPES))
    _register_sending(connection, RealsValue, "real[]", None)
    _register_arrays(connection)
    sent: tuple[tuple[type[bytes], Form], ...] = ((VectorValue, "vector"), (HalfVectorValue, "halfvec"))
    for value, form in sent:
        oid = found.get(form)
        _register_sending(connection, value, form if oid is not None else "real[]", oid)
        if oid is not None:
            _register_receiving(connection, form, oid)
    return bool(found)


def _register_sending(connection: Connection[Any], value: type[bytes], form: Form, oid: int | None) -> None:
    from psycopg.adapt import Dumper
    from psycopg.pq import Format

    class Sent(Dumper):
        format = Format.BINARY
        oid: int

        def dump(self, obj: Any) -> bytes:
            if form == "real[]" and isinstance(obj, HalfVectorValue):
                obj = struct.pack(f"<{len(obj) // 2}f", *struct.unpack(f"<{len(obj) // 2}e", obj))
            return to_wire(obj, form)

    Sent.oid = REALS if oid is None else oid
    connection.adapters.register_dumper(value, Sent)


def _register_receiving(connection: Connection[Any], form: Form, oid: int) -> None:
    from psycopg.adapt import Loader
    from psycopg.pq import Format

    class Text(Loader):
        def load(self, data: Any) -> bytes:
            return from_text(bytes(data), form)

    class Binary(Loader):
        format = Format.BINARY

        def load(self, data: Any) -> bytes:
            return from_wire(data, form)

    connection.adapters.register_loader(oid, Text)
    connection.adapters.register_loader(oid, Binary)


def _register_arrays(connection: Connection[Any]) -> None:
    from psycopg.types.array import ArrayBinaryLoader

    class Reals(ArrayBinaryLoader):
        """An ``array('f')``, in a thirtieth of the time that a list takes; a list where there are NULLs in it."""

        def load(self, data: Any) -> Any:
            plain = len(data) > _ARRAY_HEAD.size and data[:8] == _ONE_DIMENSION and len(data) == _array_size(data)
            return array("f", from_wire(data, "real[]")) if plain else super().load(data)

    connection.adapters.register_loader(REALS, Reals)


_ONE_DIMENSION = struct.pack("!ii", 1, 0)


def _array_size(data: Any) -> int:
    """Bytes of an array of one dimension without NULLs."""
    return _ARRAY_HEAD.size + 8 * int(_ARRAY_HEAD.unpack_from(data)[3])


# -- score functions -----------------------------------------------------------------------------------------------

_SIGNATURES: tuple[tuple[Form, Form], ...] = (("vector", "vector"), ("halfvec", "halfvec"), ("halfvec", "vector"))
_OWN = ("cosine_similarity", "negative_inner_product")
"""Names that pgvector does not have."""

_COSINE = (
    "CASE WHEN sum(x * x) > 0 AND sum(y * y) > 0 AND sum(x * y) <> 'NaN' "
    "THEN greatest(-1, least(1, sum(x * y) / (sqrt(sum(x * x)) * sqrt(sum(y * y))))) END"
)
_SUMS = {
    "inner_product": "nullif(sum(x * y), 'NaN')",
    "negative_inner_product": "-nullif(sum(x * y), 'NaN')",
    "l2_distance": "nullif(sqrt(sum((x - y) * (x - y))), 'NaN')",
    "cosine_similarity": _COSINE,
    "cosine_distance": f"1 - {_COSINE}",
}


def function_statements(schema: str, own_schema: str, pgvector: str | None) -> list[str]:
    """The statements that put the score functions into a database, each of them idempotent.

    ``schema`` (main's) gets ``cosine_similarity`` and ``negative_inner_product`` of vector, halfvec and (halfvec,
    vector), and all five of ``real[]`` and of (halfvec, vector). pgvector itself has ``l2_distance``, ``inner_product``
    and ``cosine_distance`` of two alike, which stay as they are: the first two give what ours would, the last gives
    NaN where ours gives NULL. So ``own_schema`` has a ``cosine_distance`` with our rule, for our own statements, of
    every form.

    None of them is ever answered by an HNSW index, which only the operators use: an inlined body is never an
    operator's call alone.

    Args:
        pgvector: the schema of the extension, None where it is missing.
    """
    out = [_refusal(own_schema)]
    if pgvector is not None:
        for left, right in _SIGNATURES:
            names = _OWN if left == right else tuple(_SUMS)
            out += [_function(schema, name, left, right, pgvector) for name in names]
            out.append(_function(own_schema, "cosine_distance", left, right, pgvector))
    places = [(schema, name) for name in _SUMS] + [(own_schema, "cosine_distance")]
    return out + [_array_function(place, own_schema, name, _SUMS[name]) for place, name in places]


def _function(schema: str, name: str, left: Form, right: Form, pgvector: str) -> str:
    at = quote_identifier(pgvector)
    a = "a" if left == right else f"a::{at}.{right}"
    cosine = f"nullif({a} OPERATOR({at}.<=>) b, 'NaN'::float8)"
    body = {
        "cosine_similarity": f"1 - {cosine}",
        "cosine_distance": f"{cosine} + 0",
        "l2_distance": f"{at}.l2_distance({a}, b)",
        "inner_product": f"{at}.inner_product({a}, b)",
        "negative_inner_product": f"-{at}.inner_product({a}, b)",  # never `a <#> b`, which an index could answer
    }[name]
    return _create(schema, name, f"{at}.{left}", f"{at}.{right}", body)


def _array_function(schema: str, own_schema: str, name: str, body: str) -> str:
    pairs = "FROM unnest(a::float8[], b::float8[]) AS pairs(x, y)"
    refused = f"{quote_identifier(own_schema)}.different_dimensions(cardinality(a), cardinality(b))"
    whole = f"CASE WHEN cardinality(a) = cardinality(b) THEN (SELECT {body} {pairs})"
    return _create(schema, name, "real[]", "real[]", f"{whole} WHEN a IS NOT NULL AND b IS NOT NULL THEN {refused} END")


def _create(schema: str, name: str, left: str, right: str, body: str) -> str:
    # not STRICT: PostgreSQL inlines a strict function only where its body is strict, which nullif is not
    return (
        f"CREATE OR REPLACE FUNCTION {quote_identifier(schema)}.{name}(a {left}, b {right}) RETURNS double precision "
        f"LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN {body}"
    )


def _refusal(own_schema: str) -> str:
    return (
        f"CREATE OR REPLACE FUNCTION {quote_identifier(own_schema)}.different_dimensions(a integer, b integer) "
        "RETURNS double precision LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$ BEGIN "
        "RAISE EXCEPTION 'different vector dimensions % and %', a, b USING ERRCODE = '22000'; END $$"
    )
