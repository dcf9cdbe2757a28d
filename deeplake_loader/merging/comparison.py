"""The SQL by which rows of one table at two points are compared, and what differs, found in one statement.

Every relation of images has one row per key, with the table's stored columns and `_dl_state`: a row (1), no row (0), or
ambiguous (2: the ancestors of a merge disagree). Absent and ambiguous rows hold NULLs, so one comparison of states and
columns decides whether two points agree on a key. Addresses of blobs and vectors that differ are compared by what they
hold: no SQL can do that on every database, so it is done here for what SQL has left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from deeplake_loader.dialects import dialect
from deeplake_loader.types import quote_identifier, quote_identifiers

if TYPE_CHECKING:
    from deeplake_loader.branches import Point
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.history import StoredColumn
    from deeplake_loader.merging.contents import Contents
    from deeplake_loader.types import ColumnType, Table

ABSENT, PRESENT, AMBIGUOUS = 0, 1, 2

_Record = tuple[Any, ...]


class Comparison:
    """Text of SQL over images of one table; ``same`` knows of equal contents what ``equal_contents`` lists."""

    equal_contents: str | None = None
    """A table (a, b) of different addresses that hold the same bytes."""

    def __init__(self, catalog: Catalog, table: Table) -> None:
        self._catalog, self.table = catalog, table
        self.shape = catalog.history.shape(table.name)
        self.dialect = dialect(catalog.dialect)
        self.key = quote_identifiers(self.shape.key)
        self.names = quote_identifiers(c.name for c in self.shape.columns)
        by_name = {c.name: c for c in self.shape.columns}
        self.key_columns = [by_name[name] for name in self.shape.key]

    def columns(self, alias: str) -> str:
        """The stored columns, qualified."""
        return ", ".join(f"{alias}.{quote_identifier(c.name)}" for c in self.shape.columns)

    def keys_of(self, alias: str) -> str:
        """The key columns, qualified."""
        return ", ".join(f"{alias}.{quote_identifier(k)}" for k in self.shape.key)

    def join(self, left: str, images: str, alias: str) -> str:
        """JOIN text that puts the row of the same key beside ``left``."""
        return f"JOIN {images} {alias} ON {self.same_key(left, alias)}"

    def same_key(self, a: str, b: str) -> str:
        return " AND ".join(f"{a}.{quote_identifier(k)} = {b}.{quote_identifier(k)}" for k in self.shape.key)

    def same(self, a: str, b: str) -> str:
        """A condition: two images of the same key agree. Text is compared byte by byte, whatever its collation."""
        return " AND ".join((self.same_scalars(a, b), *(self._same_content(c, a, b) for c, _ in self.addressed())))

    def same_scalars(self, a: str, b: str) -> str:
        """The part of `same` that looks at no address."""
        addresses = {c.name for c, _ in self.addressed()}
        compared = (c for c in self.shape.columns if c.name not in addresses)
        return " AND ".join((f"{a}._dl_state = {b}._dl_state", *(self._identical(c, a, b) for c in compared)))

    def addressed(self) -> Iterator[tuple[StoredColumn, ColumnType]]:
        """The columns that hold addresses."""
        for stored in self.shape.columns:
            column = self.table.column(stored.name)
            if column is None or column.type.is_scalar or (column.type.is_vector and self.dialect.stores_vectors):
                continue
            yield stored, column.type

    def _identical(self, column: StoredColumn, a: str, b: str) -> str:
        left, right = (f"{alias}.{quote_identifier(column.name)}" for alias in (a, b))
        return self.dialect.identical(left, right, column.declared)

    def _same_content(self, column: StoredColumn, a: str, b: str) -> str:
        identical = self._identical(column, a, b)
        if self.equal_contents is None:
            return identical
        left, right = (f"{alias}.{quote_identifier(column.name)}" for alias in (a, b))
        listed = f"SELECT 1 FROM {self.equal_contents} e WHERE e.a = {left} AND e.b = {right}"
        return f"({identical} OR EXISTS ({listed}))"

    def contains(self, alias: str, keys: str) -> str:
        """A condition: the key of ``alias`` (none: of the only table) is among the keys of a table or SELECT."""
        columns = [f"{alias}.{quote_identifier(k)}" if alias else quote_identifier(k) for k in self.shape.key]
        return self.dialect.among(columns, f"SELECT {self.key} FROM {keys}")

    def held(self, alias: str, table: str) -> str:
        """A condition: a table, large and with an index on its key, has the key of ``alias``."""
        return f"EXISTS (SELECT 1 FROM {table} held WHERE {self.same_key('held', alias)})"

    def order(self, alias: str) -> str:
        """ORDER BY's terms: by key, texts by their bytes."""
        return ", ".join(
            self.dialect.order(f"{alias}.{quote_identifier(c.name)}", c.declared) for c in self.key_columns
        )

    # -- two points in one statement ---------------------------------------------------------------------------------

    def _sides(self, a: Point, b: Point) -> tuple[str, tuple[Any, ...]] | None:
        """WITH text that names the images a and b of every key on which the points can differ; None without such."""
        history = self._catalog.history
        candidates, params = history.candidate_keys(self.table.name, (a, b))
        if self._catalog.fetchone(f"SELECT 1 FROM ({candidates}) c LIMIT 1", params) is None:
            return None
        keys = ", ".join(
            f"{self.dialect.key(c, quote_identifier(c.name))} AS {quote_identifier(c.name)}" for c in self.key_columns
        )
        texts = [f"k AS (SELECT DISTINCT {keys} FROM ({candidates}) c)"]
        for name, point in (("a", a), ("b", b)):
            rows, more = history.select(self.table.name, point)
            found = f"SELECT {self.names}, {PRESENT} AS _dl_state FROM ({rows}) r WHERE {self.contains('', 'k')}"
            texts.append(f"{name}_found AS MATERIALIZED ({found})")  # in a LEFT JOIN, SQLite would read every row
            texts.append(f"{name} AS MATERIALIZED ({self._image(f'{name}_found')})")
            params += more
        return "WITH " + ", ".join(texts), params

    def _image(self, found: str) -> str:
        columns = ", ".join(
            f"{'k' if c.key else 's'}.{q} AS {q}" for c in self.shape.columns for q in (quote_identifier(c.name),)
        )
        return (
            f"SELECT {columns}, coalesce(s._dl_state, {ABSENT}) AS _dl_state "
            f"FROM k LEFT JOIN {found} s ON {self.same_key('s', 'k')}"
        )

    def differences(self, a: Point, b: Point, contents: Contents) -> list[_Record]:
        """Per key that differs, in key order: (state at a, state at b, row at a ..., row at b ...)."""
        sides = self._sides(a, b)
        if sides is None:
            return []
        text, params = sides
        found = self._catalog.fetchall(
            f"{text} SELECT {self.same_scalars('a', 'b')}, a._dl_state, b._dl_state, {self.columns('a')}, "
            f"{self.columns('b')} FROM a {self.join('a', 'b', 'b')} WHERE NOT ({self.same('a', 'b')}) "
            f"ORDER BY {self.order('a')}",
            params,
        )
        return [tuple(row[1:]) for row in found if not row[0] or self._holds_other(row[3:], contents)]

    def _holds_other(self, values: Sequence[Any], contents: Contents) -> bool:
        """Whether a row whose scalars are the same on both sides holds other bytes."""
        places = {c.name: i for i, c in enumerate(self.shape.columns)}
        pairs = ((type, places[c.name]) for c, type in self.addressed())
        return any(not contents.same(type, values[i], values[len(places) + i]) for type, i in pairs)

    def tally(self, a: Point, b: Point) -> Counter[tuple[bool, bool]]:
        """How many keys differ, by (present at a, present at b); bytes stored anew differ here."""
        sides = self._sides(a, b)
        if sides is None:
            return Counter()
        text, params = sides
        rows = self._catalog.fetchall(
            f"{text} SELECT a._dl_state, b._dl_state, count(*) FROM a {self.join('a', 'b', 'b')} "
            f"WHERE NOT ({self.same('a', 'b')}) GROUP BY 1, 2",
            params,
        )
        return Counter({(had == PRESENT, has == PRESENT): count for had, has, count in rows})
