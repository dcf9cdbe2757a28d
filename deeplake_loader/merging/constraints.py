"""The unique indexes and foreign keys of tables, as the database itself describes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deeplake_loader.history import index_predicate
from deeplake_loader.types import quote_identifier

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.history import Shape, StoredColumn


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """``table (columns)`` references ``parent (referenced)``; ``acts``: a parent's change can change the child."""

    table: str
    columns: tuple[str, ...]
    parent: str
    referenced: tuple[str, ...]
    acts: bool = True


@dataclass(frozen=True, slots=True)
class UniqueIndex:
    """A unique index other than the primary key's: the text of each term with its collation ("" for none), the names
    of the columns where a term is one, the WHERE of a partial index, and whether NULLs equal each other."""

    terms: tuple[tuple[str, str], ...]
    columns: tuple[str | None, ...]
    predicate: str | None
    nulls_equal: bool

    def equal(self, row: str, others: Sequence[StoredColumn]) -> str:
        """A condition inside ``FROM <other rows>``: the one relation there holds the values of ``row``."""
        terms = (
            (
                f"({text}){collation}",
                _over(row, f"({text})", others) if name is None else f"{row}.{quote_identifier(name)}",
            )
            for (text, collation), name in zip(self.terms, self.columns, strict=True)
        )  # a column is named plainly, so that the planner can join by it
        equal = [f"{a} IS NOT DISTINCT FROM {b}" if self.nulls_equal else f"{a} = {b}" for a, b in terms]
        if self.predicate is not None:
            equal.append(f"({self.predicate})")
        return " AND ".join(equal)

    def covers(self, row: str, columns: Sequence[StoredColumn]) -> str:
        """A condition: the index holds the row ``row``."""
        return "TRUE" if self.predicate is None else _over(row, f"({self.predicate})", columns)


def _over(row: str, expression: str, columns: Sequence[StoredColumn]) -> str:
    """An expression over unqualified columns, evaluated over ``row`` by a one-row copy, so its text serves as it is."""
    copy = ", ".join(f"{row}.{q} AS {q}" for q in (quote_identifier(c.name) for c in columns))
    return f"(SELECT {expression} FROM (SELECT {copy}) one)"


def unique_indexes(catalog: Catalog, shape: Shape) -> list[UniqueIndex]:
    """The table's unique indexes but the primary key's."""
    found = _postgres_indexes if catalog.dialect == "postgres" else _sqlite_indexes
    return list(found(catalog, shape))


def foreign_keys(catalog: Catalog, tables: Sequence[str]) -> list[ForeignKey]:
    """Every foreign key from one of these tables to another."""
    found = _postgres_keys if catalog.dialect == "postgres" else _sqlite_keys
    return list(found(catalog, tables))


# -- SQLite ------------------------------------------------------------------------------------------------------------


def _sqlite_indexes(catalog: Catalog, shape: Shape) -> Iterator[UniqueIndex]:
    listed = catalog.fetchall(f"PRAGMA main.index_list({quote_identifier(shape.table)})")
    indexes = [row for row in listed if row[2] and row[3] != "pk"]
    for row, terms in zip(indexes, shape.uniques[1:], strict=True):
        texts = tuple((t.expression, f" COLLATE {t.collation}") for t in terms)
        yield UniqueIndex(texts, tuple(t.column for t in terms), _predicate(catalog, row[1]) if row[4] else None, False)


def _predicate(catalog: Catalog, index: str) -> str | None:
    query = "SELECT sql FROM main.sqlite_master WHERE type = 'index' AND name = ?"
    return index_predicate(str(catalog.fetchone(query, (index,))[0]))


def _sqlite_keys(catalog: Catalog, tables: Sequence[str]) -> Iterator[ForeignKey]:
    for table in tables:
        rows = catalog.fetchall(f"PRAGMA main.foreign_key_list({quote_identifier(table)})")
        for number in sorted({row[0] for row in rows}):
            parts = sorted((row for row in rows if row[0] == number), key=lambda row: row[1])
            parent = next((t for t in tables if t.lower() == parts[0][2].lower()), parts[0][2])
            referenced = tuple(row[4] for row in parts)
            if None in referenced:
                referenced = _primary_key(catalog, parent)
            yield ForeignKey(table, tuple(row[3] for row in parts), parent, referenced)


def _primary_key(catalog: Catalog, table: str) -> tuple[str, ...]:
    info = catalog.fetchall(f"PRAGMA main.table_info({quote_identifier(table)})")
    return tuple(row[1] for row in sorted((row for row in info if row[5]), key=lambda row: row[5]))


# -- PostgreSQL --------------------------------------------------------------------------------------------------------

_INDEXES = """
SELECT pg_get_expr(i.indpred, i.indrelid),
  coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, FALSE),
  ARRAY(SELECT pg_get_indexdef(i.indexrelid, n, TRUE) FROM generate_series(1, i.indnkeyatts) n ORDER BY n),
  ARRAY(SELECT a.attname::text FROM generate_series(1, i.indnkeyatts) n
    LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[n - 1] AND a.attnum > 0 ORDER BY n),
  ARRAY(SELECT quote_ident(s.nspname) || '.' || quote_ident(c.collname) FROM generate_series(1, i.indnkeyatts) n
    LEFT JOIN pg_collation c ON c.oid = i.indcollation[n - 1] LEFT JOIN pg_namespace s ON s.oid = c.collnamespace
    ORDER BY n)
FROM pg_index i WHERE i.indrelid = CAST(? AS regclass) AND i.indisunique AND NOT i.indisprimary AND i.indisvalid
ORDER BY i.indexrelid
"""

_KEYS = """
SELECT CAST(c.confrelid AS bigint), c.confdeltype <> 'a' OR c.confupdtype <> 'a',
  ARRAY(SELECT a.attname::text FROM unnest(c.conkey) WITH ORDINALITY k (number, n)
    JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.number ORDER BY k.n),
  ARRAY(SELECT a.attname::text FROM unnest(c.confkey) WITH ORDINALITY k (number, n)
    JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.number ORDER BY k.n)
FROM pg_constraint c WHERE c.contype = 'f' AND c.conrelid = CAST(? AS regclass) AND c.conparentid = 0
ORDER BY c.conname
"""


def _postgres_indexes(catalog: Catalog, shape: Shape) -> Iterator[UniqueIndex]:
    for predicate, nulls_equal, texts, columns, collations in catalog.fetchall(
        _INDEXES, (catalog.history.real(shape.table),)
    ):
        named = (f" COLLATE {c}" if c is not None and c != 'pg_catalog."default"' else "" for c in collations)
        yield UniqueIndex(tuple(zip(texts, named, strict=True)), tuple(columns), predicate, nulls_equal)


def _postgres_keys(catalog: Catalog, tables: Sequence[str]) -> Iterator[ForeignKey]:
    reals = {table: catalog.history.real(table) for table in tables}
    query = "SELECT CAST(CAST(? AS regclass) AS bigint)"
    names = {int(catalog.fetchone(query, (real,))[0]): table for table, real in reals.items()}
    for table, real in reals.items():
        for parent, acts, columns, referenced in catalog.fetchall(_KEYS, (real,)):
            if parent in names:  # a table of somebody else's is not merged, and the database checks such a key
                yield ForeignKey(table, tuple(columns), names[parent], tuple(referenced), acts)
