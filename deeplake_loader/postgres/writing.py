"""Values of statements and rows of bulk inserts for PostgreSQL: blobs go to shards, vectors with the row itself."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from deeplake_loader import codecs, scalars
from deeplake_loader.errors import InputError
from deeplake_loader.postgres import values as native
from deeplake_loader.postgres.copying import packed_rows
from deeplake_loader.postgres.types import is_native
from deeplake_loader.postgres.vectors import SENT, Form, from_wire, rows_to_wire, stored_form
from deeplake_loader.rows import Blob, Vector
from deeplake_loader.scalar_columns import encode_column
from deeplake_loader.types import Column, ColumnType, Table, quote_identifier, quote_identifiers
from deeplake_loader.writing import Bound, Writer, sample_of

if TYPE_CHECKING:
    from deeplake_loader.postgres.catalog import PostgresCatalog
    from deeplake_loader.sql.plan import Bind, Plan


class PostgresWriter(Writer):
    """Encodes parameters and rows for a store whose catalog is a PostgreSQL database."""

    _catalog: PostgresCatalog

    def real(self, table: str) -> str:
        """The table in which the rows of a table are written, as SQL names it."""
        return self._target(table)

    # -- single statements -----------------------------------------------------------------------------------------

    def _keep_column(
        self, bound: Bound, i: int, plan: Plan, bind: Bind, kind: ColumnType | None, value: object, where: str
    ) -> None:
        plain = kind is None or bind.score or bind.many or value is None
        if kind is not None and not plain and kind.is_vector:
            bound.values[i] = native.vector(kind, value, where)
        elif kind is not None and not plain and kind.is_scalar:
            bound.values[i] = native.scalar(kind, value, where)
            if bind.column is not None:
                sample_of(bound, bind.column).scalars[bind.column] = _documented(bound.values[i])
        else:
            super()._keep_column(bound, i, plan, bind, kind, value, where)

    def _loose(self, bind: Bind, kind: ColumnType | None, value: object, where: str) -> Any:
        if bind.many:
            return native.many(kind, value, where)
        if value is None:
            return None
        if kind is not None and not kind.is_scalar:
            if kind.is_vector:
                return native.query(kind, value, where) if bind.score else native.vector(kind, value, where)
            return self._blob_address(value, where)
        if isinstance(value, Blob):
            return self._blob_address(value, where)
        if kind is not None and kind.name == "JSON":
            return scalars.to_sql(kind)(value, where)
        return native.plain(value, where)

    def _read_back(self, table: str, rowid: int, _bound: Bound) -> dict[str, object] | None:
        definition = self._catalog.tables()[table.lower()]
        kept = [c for c in definition.columns if c.type.is_scalar]
        key = quote_identifier(definition.primary_key[0])
        row = self._catalog.fetchone(
            f"SELECT {quote_identifiers(c.name for c in kept)} FROM {self._target(table)} WHERE {key} = ?",
            (rowid,),
        )
        if row is None:
            return None
        return {c.name: _documented(_stored(c.type, v)) for c, v in zip(kept, row, strict=True)}

    # -- bulk ------------------------------------------------------------------------------------------------------

    def _scalar_column(self, kind: ColumnType, values: Any, where: str, first_row: int) -> Sequence[Any]:
        if kind.name == "NUMERIC" or is_native(kind) or kind.name == "INTERVAL":
            return [native.scalar(kind, v, f"{where}, row {row}") for row, v in enumerate(values, first_row)]
        if kind.name == "TIMESTAMP" and _are_naive_times(values):  # packed while the server reads: see `copying`
            checked: Sequence[Any] = values
            return checked
        return encode_column(kind, values, where, first_row=first_row)

    def _vector_column(
        self, table: str, column: Column, values: Sequence[Any], where: str, first_row: int
    ) -> Sequence[Any]:
        form = stored_form(self._catalog.fetchone, self._catalog.history.real(table), column.name)
        values = [v.array() if isinstance(v, Vector) else v for v in values] if not hasattr(values, "dtype") else values
        holes = not hasattr(values, "dtype") and any(v is None for v in values)
        present = [v for v in values if v is not None] if holes else values
        if not len(present):
            return [None] * len(values)
        data = self._encoded(column, present, values if holes else None, where, first_row)
        wire = iter(rows_to_wire(_matrix(column.type, data, form), form))
        return [None if v is None else next(wire) for v in values] if holes else list(wire)

    def _encoded(
        self, column: Column, present: Sequence[Any], whole: Sequence[Any] | None, where: str, first_row: int
    ) -> bytes | memoryview:
        try:
            return codecs.encode_vectors(column.type, present, where=where, first_row=first_row)
        except InputError:
            for row, value in enumerate(whole or (), first_row):  # rows were counted without the NULLs
                if value is not None:
                    codecs.encode_vector(column.type, value, f"{where}, row {row}")
            raise

    def _insert_rows(self, table: Table, encoded: Mapping[str, Sequence[Any]]) -> None:
        kinds = {c.name: c.type for c in table.columns}
        names, target = quote_identifiers(encoded), self._target(table.name)
        if any(is_native(kinds[name]) or kinds[name].name == "INTERVAL" for name in encoded):
            marks = ", ".join("?" * len(encoded))
            sql = f"INSERT INTO {target} ({names}) VALUES ({marks})"
            columns = [self._by_value(table, kinds[name], name, values) for name, values in encoded.items()]
            self._catalog.executemany(sql, list(zip(*columns, strict=True)))
            return
        messages = packed_rows({name: (kinds[name], values) for name, values in encoded.items()})
        self._catalog.copy_in(f"COPY {target} ({names}) FROM STDIN (FORMAT binary)", messages)

    def _by_value(self, table: Table, kind: ColumnType, name: str, values: Sequence[Any]) -> Sequence[Any]:
        """A column's values for the driver: vectors are bytes of COPY so far."""
        if not kind.is_vector:
            return values
        form = stored_form(self._catalog.fetchone, self._catalog.history.real(table.name), name)
        return [None if value is None else SENT[form](from_wire(value, form)) for value in values]

    def _defaults(
        self, table: Table, encoded: Mapping[str, Sequence[Any]], key: str | None, _after_rowid: int
    ) -> dict[str, Sequence[Any]]:
        missing = [c for c in table.columns if c.type.is_scalar and c.name not in encoded]
        if not missing or key is None:
            return {}
        ids = encoded[key]
        names = quote_identifiers([key, *(c.name for c in missing)])
        sql = f"SELECT {names} FROM {self._target(table.name)} WHERE {quote_identifier(key)} = ANY(?)"
        rows = self._catalog.fetchall(sql, (list(ids),))
        by_id = {row[0]: row[1:] for row in rows}
        return {c.name: [_stored(c.type, by_id[i][at]) for i in ids] for at, c in enumerate(missing)}

    def _documented(self, table: Table, columns: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
        scalar = {c.name for c in table.columns if c.type.is_scalar}
        return {name: list(map(_plain_number, values)) for name, values in columns.items() if name in scalar}


def _matrix(kind: ColumnType, data: bytes | memoryview, form: Form) -> Any:
    import numpy as np

    matrix = np.frombuffer(data, np.dtype(kind.dtype).newbyteorder("<")).reshape(-1, kind.dimension)
    return matrix if form == "halfvec" or kind.dtype == "float32" else matrix.astype(np.float32)


def _are_naive_times(values: Any) -> bool:
    if not isinstance(values, list) or not set(map(type, values)) <= {dt.datetime, type(None)}:
        return False
    return not any(value is not None and value.tzinfo is not None for value in values)


def _stored(kind: ColumnType, value: Any) -> Any:
    """A value that PostgreSQL gave as the embedded catalog would hold it."""
    if value is None or kind.name == "NUMERIC":
        return value
    if is_native(kind) or kind.name == "INTERVAL":
        return str(value)
    return value if isinstance(value, float) else scalars.to_sql(kind)(value, "a default")


def _documented(value: Any) -> object:
    """A value as a sample's document has it."""
    return scalars.jsonable(_plain_number(value))


def _plain_number(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() and abs(value) < 2**53 else float(value)
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, dt.datetime):
        return scalars.format_timestamp(value)
    return value if isinstance(value, str | int | float | bytes | None) else str(value)
