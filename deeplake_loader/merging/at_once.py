"""A merge written into PostgreSQL's tables by one statement, where foreign keys stand.

Deleting a row and inserting it anew would fire ON DELETE CASCADE or RESTRICT at its children, and any order of single
statements fails for some merge (a child moves from a parent that goes to one that comes and takes its unique value). So
all tables are written by one statement of data-modifying WITH clauses: the database checks foreign keys and carries out
their actions when the statement ends, and finds nothing left to do, since `integrity` looked before. Within a table
deletions run before updates and those before insertions: each clause counts the rows of the one before.

Unique values that swap between rows: a unique index is checked row by row. Such rows are deleted and inserted anew,
too, or, where some foreign key would act on that, get interim values first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deeplake_loader.merging.comparison import PRESENT
from deeplake_loader.merging.constraints import UniqueIndex, unique_indexes
from deeplake_loader.types import quote_identifier

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.merging.images import Images

_FIXED = (
    "SELECT attname::text FROM pg_attribute WHERE attrelid = CAST(? AS regclass) AND attidentity = 'a' AND attnum > 0"
)
_COLUMN = (
    "SELECT NOT attnotnull, format_type(atttypid, NULL) FROM pg_attribute "
    "WHERE attrelid = CAST(? AS regclass) AND attname = ?"
)
_WHOLE = {"smallint", "integer", "bigint", "numeric", "real", "double precision"}


@dataclass(frozen=True, slots=True)
class Write:
    """The rows that the real table ``real`` (as SQL names it) shall have: images ``wanted``, absent where none.

    ``reinsert``: a row may be deleted and inserted anew within a statement.
    """

    images: Images
    real: str
    wanted: str
    reinsert: bool


@dataclass(frozen=True, slots=True)
class _Keys:
    """Three sets of a write's keys: rows to delete, to update, to insert; a row may be in the first and the last."""

    deleted: str
    changed: str
    added: str


def write_at_once(catalog: Catalog, writes: Sequence[Write]) -> None:
    """Make the tables hold what is wanted (caller's transaction, nothing that they forbid)."""
    clauses: list[str] = []
    for number, write in enumerate(writes):
        clauses += _clauses(catalog, write, _sort(catalog, write), number)
    if clauses:
        counts = ", ".join(f"(SELECT count(*) FROM _dl_i{number})" for number in range(len(writes)))
        catalog.execute(f"WITH {', '.join(clauses)} SELECT {counts}")
    catalog.execute("SET CONSTRAINTS ALL IMMEDIATE")  # an offence is this merge's error, not its commit's


def _sort(catalog: Catalog, write: Write) -> _Keys:
    there = write.images.held("w", write.real)
    keys = _Keys(
        _chosen(catalog, write, f"{write.wanted} w WHERE w._dl_state <> {PRESENT} AND {there}"),
        _chosen(catalog, write, f"{write.wanted} w WHERE w._dl_state = {PRESENT} AND {there}"),
        _chosen(catalog, write, f"{write.wanted} w WHERE w._dl_state = {PRESENT} AND NOT {there}"),
    )
    for index in unique_indexes(catalog, write.images.shape):
        swapped = _swapped(catalog, write, keys, index)
        if swapped is not None and write.reinsert:
            _move(catalog, write, swapped, keys)
        elif swapped is not None:
            _park(catalog, write, index, swapped)
    return keys


def _chosen(catalog: Catalog, write: Write, source: str) -> str:
    """A key set of the rows ``w`` that a FROM text with a WHERE chooses."""
    keys = write.images.create()
    catalog.execute(f"INSERT INTO {keys} ({write.images.key}) SELECT {write.images.keys_of('w')} FROM {source}")
    return keys


def _swapped(catalog: Catalog, write: Write, keys: _Keys, index: UniqueIndex) -> str | None:
    """Rows to change whose values in the index another row to change takes; None without such."""
    images = write.images
    takers = f"SELECT {images.columns('y')} FROM {keys.changed} c {images.join('c', write.wanted, 'y')}"
    found = _chosen(
        catalog,
        write,
        f"{keys.changed} c {images.join('c', write.real, 'w')} WHERE {index.covers('w', images.shape.columns)} "
        f"AND EXISTS (SELECT 1 FROM ({takers}) x WHERE {index.equal('w', images.shape.columns)} "
        f"AND NOT ({images.same_key('x', 'w')}))",
    )
    return None if catalog.fetchone(f"SELECT 1 FROM {found} LIMIT 1") is None else found


def _move(catalog: Catalog, write: Write, swapped: str, keys: _Keys) -> None:
    """Delete these rows and insert them anew, instead of changing them."""
    images = write.images
    catalog.execute(f"DELETE FROM {keys.changed} WHERE {images.contains('', swapped)}")
    for into in (keys.deleted, keys.added):
        insert = f"INSERT INTO {into} ({images.key}) SELECT {images.key} FROM {swapped} ON CONFLICT DO NOTHING"
        catalog.execute(insert)


def _park(catalog: Catalog, write: Write, index: UniqueIndex, swapped: str) -> None:
    """Give these rows interim values in the index: NULL, or one that no row has. Where there is none, the statement
    will fail on the index, and the merge with it."""
    images, real = write.images, write.real
    for column in (c for c in index.columns if c is not None and c not in images.shape.key):
        nullable, declared = catalog.fetchone(_COLUMN, (real, column))
        name = quote_identifier(column)
        value = "NULL" if nullable and not index.nulls_equal else _interim(real, name, declared)
        if value is not None:
            catalog.execute(
                f"UPDATE {real} t SET {name} = {value} FROM (SELECT {images.key}, row_number() OVER () AS _dl_n "
                f"FROM {swapped}) k WHERE {images.same_key('t', 'k')}"
            )
            return


def _interim(real: str, name: str, declared: str) -> str | None:
    """A value per row (numbered k._dl_n) below all others, or one that nobody has; None for types without such."""
    if declared in _WHOLE:
        return f"(SELECT least(min({name}), 0) FROM {real}) - k._dl_n"
    if declared in ("text", "character varying"):
        return "'_dl_' || gen_random_uuid()"
    return "gen_random_uuid()" if declared == "uuid" else None


def _clauses(catalog: Catalog, write: Write, keys: _Keys, n: int) -> Iterator[str]:
    images, real = write.images, write.real
    yield f"_dl_d{n} AS (DELETE FROM {real} t WHERE {images.contains('t', keys.deleted)} RETURNING 1)"
    fixed = {name for (name,) in catalog.fetchall(_FIXED, (real,))}
    names = [quote_identifier(c.name) for c in images.shape.columns if c.name not in fixed]
    after = f"(SELECT count(*) FROM _dl_d{n}) >= 0"
    yield (
        f"_dl_u{n} AS (UPDATE {real} t SET {', '.join(f'{name} = x.{name}' for name in names)} FROM {write.wanted} x "
        f"WHERE {images.same_key('t', 'x')} AND {images.contains('x', keys.changed)} AND {after} RETURNING 1)"
    )
    yield (
        f"_dl_i{n} AS (INSERT INTO {real} ({images.names}) OVERRIDING SYSTEM VALUE SELECT {images.columns('x')} "
        f"FROM {write.wanted} x WHERE {images.contains('x', keys.added)} AND {after} "
        f"AND (SELECT count(*) FROM _dl_u{n}) >= 0 RETURNING 1)"
    )
