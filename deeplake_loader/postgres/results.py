"""What the columns of a result are: by the table column each one comes from, by PostgreSQL's type, by the plan.

libpq tells for each result column which table's (or view's) column it is, also out of subqueries and CTEs, so an IMAGE
column is an image whatever the shape of the query, the compiler's knowledge of it included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deeplake_loader.postgres.types import OIDS
from deeplake_loader.types import ColumnType

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from deeplake_loader.postgres.catalog import PostgresCatalog
    from deeplake_loader.sql.plan import Plan

Types = tuple[ColumnType | None, ...]
_SCALAR = {oid: ColumnType(name) for oid, name in OIDS.items()}
_ORIGINS = (
    "SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
    "WHERE c.oid = %s AND a.attnum = %s"
)


class ResultTypes:
    """The types of result columns, remembered per origin for as long as the schema stays."""

    def __init__(self, catalog: PostgresCatalog) -> None:
        self._catalog = catalog
        self._origins: dict[tuple[int, int], ColumnType | None] = {}
        self._forms: dict[int, str] = {}

    def forget(self) -> None:
        """After a change of the schema."""
        self._origins.clear()

    def of(self, result: PGresult, plan: Plan) -> tuple[tuple[str, ...], Types]:
        """The names and types of a result's columns."""
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
            return found
        scalar = _SCALAR.get(oid)
        if known is not None and not known.is_scalar and (scalar is None or scalar.name == "BIGINT"):
            return known
        if scalar is None:
            return self._other(result, i, oid)
        return known if known is not None and known.name == scalar.name else scalar

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
            row: Any = self._catalog.fetchone(_ORIGINS, key, native=True)
            found = None if row is None else self._catalog.table(row[0])
            named = None if found is None or row is None else found.column(row[1])
            self._origins[key] = None if named is None else named.type
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
