"""Main of a store in PostgreSQL as a catalog in a file, for readers without a server: its tables and rows at one time.

Blobs keep their addresses, so their files stay what they are; vectors, which lie in the server's rows, become vector
files. Left behind are branches and history, and of each table what only writers need: defaults, checks, indexes,
references.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from deeplake_loader import adopted
from deeplake_loader.care.contents import COLUMNS
from deeplake_loader.care.publishing import copy_file
from deeplake_loader.errors import InputError
from deeplake_loader.rows import StoredBlobs
from deeplake_loader.sqlite_catalog import SqliteCatalog
from deeplake_loader.types import ORDINAL_BITS, Column, Table, quote_identifier, unpack_address

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.rows import RowSet

_ROWS = 8_192
_FACTS = ("max_shard_bytes", "store_id", adopted.ROOTS)
_COPIED = (
    ("_dl_members", 'file, ordinal, key, column_name, extension, "offset", length, checks, info', "file = ?"),
    ("_dl_resting", "address, data, document", f"address >> {ORDINAL_BITS} = ?"),
)


@contextmanager
def crossed(open_handle: Callable[[Catalog], Any], catalog: Catalog, path: str) -> Iterator[Catalog]:
    """The snapshot of a store in PostgreSQL at a path, as `publishing.Copying` says.

    Args:
        open_handle: makes a `Database` of a catalog.
    """
    with (
        closing(open_handle(catalog.location.open(read_only=True))) as source,
        closing(open_handle(SqliteCatalog.open(f"{path}.store"))) as target,
    ):
        _fill(source, target)
        target._take_digests()
        with target._catalog.snapshot():
            copy_file(target._catalog, path)
        yield target._catalog


def _fill(source: Any, target: Any) -> None:
    """Fills an empty store with the tables and rows that main shows, in one commit."""
    catalog = source._catalog
    with catalog.snapshot(), target.transaction("published"):
        for key in _FACTS:
            if (value := catalog.meta(key)) is not None:
                target._catalog.set_meta(key, value)
        tables = list(catalog.tables().values())
        for table in tables:
            target.execute(_declaration(table))
        files = _copy_files(catalog, target._catalog, tables)
        for table in tables:
            for rows in _parts(source, table):
                target.insert(table.name, _columns(table, rows, target))
        target._vectors.seal()
        target.quarantine([bad for bad in source.quarantined() if unpack_address(bad.address)[0] in files])


def _declaration(table: Table) -> str:
    if not table.primary_key:
        raise InputError(f"the table {table.name!r} has no primary key, which a catalog in a file needs; give it one")
    for column in table.columns:
        if (native := column.type.option("native")) is not None:
            raise InputError(f"{table.name}.{column.name} is of PostgreSQL's type {native}, which a catalog in a file "
                             "has not; publish a store without it, or keep it as TEXT or JSON")  # fmt: skip
    columns = [
        f"{quote_identifier(c.name)} {c.type}{'' if c.nullable or c.name in table.primary_key else ' NOT NULL'}"
        for c in table.columns
    ]
    key = ", ".join(map(quote_identifier, table.primary_key))
    return f"CREATE TABLE {quote_identifier(table.name)} ({', '.join(columns)}, PRIMARY KEY ({key}))"


def _copy_files(catalog: Catalog, target: Catalog, tables: Sequence[Table]) -> set[int]:
    """The files that main's rows lead to, with their indexes and what of them rests."""
    files = set[int]()
    for table in tables:
        for column in table.blobs:
            name = quote_identifier(column.name)
            found = catalog.fetchall(
                f"SELECT DISTINCT {name} >> {ORDINAL_BITS} FROM {catalog.history.real(table.name)} "
                f"WHERE {name} IS NOT NULL"
            )
            files |= {file for (file,) in found}
    for file in sorted(files):
        _copy(catalog, target, "_dl_files", COLUMNS, "id = ?", file)
        for table_name, columns, where in _COPIED:
            _copy(catalog, target, table_name, columns, where, file)
    return files


def _copy(catalog: Catalog, target: Catalog, table: str, columns: str, where: str, file: int) -> None:
    places = ", ".join("?" for _ in columns.split(","))
    for rows in catalog.chunks(f"SELECT {columns} FROM {table} WHERE {where}", (file,), size=_ROWS):
        target.executemany(f"INSERT INTO {table} ({columns}) VALUES ({places})", rows)


def _parts(source: Any, table: Table) -> Iterator[RowSet]:
    """All rows, in the order of their key, some at a time."""
    names = ", ".join(map(_selected, table.columns))
    keys = ", ".join(map(quote_identifier, table.primary_key))
    places = [next(i for i, c in enumerate(table.columns) if c.name == name) for name in table.primary_key]
    marks = ["CAST(%s AS REAL)" if table.columns[i].type.name == "REAL" else "%s" for i in places]
    after, bound = "", list[Any]()
    while True:
        sql = f"SELECT {names} FROM {quote_identifier(table.name)} {after} ORDER BY {keys} LIMIT {_ROWS}"
        rows: RowSet = source.execute(sql, bound)
        if len(rows):
            yield rows
        if len(rows) < _ROWS:
            return
        bound = [rows[-1][i] for i in places]
        after = f"WHERE ({keys}) > ({', '.join(marks)})"


def _selected(column: Column) -> str:
    """JSON as its text, which tells its own null from NULL, and a string from the text of another value."""
    name = quote_identifier(column.name)
    return f"CAST({name} AS TEXT) AS {name}" if column.type.name == "JSON" else name


def _columns(table: Table, rows: RowSet, target: Any) -> dict[str, Sequence[Any]]:
    """The rows by column, as the target takes them: its own blobs by their addresses, numbers of vectors."""
    found: dict[str, Sequence[Any]] = {}
    for i, (column, values) in enumerate(zip(table.columns, zip(*rows, strict=True), strict=True)):
        if column.type.is_blob:
            found[column.name] = StoredBlobs(target, column.type, rows.raw(i))
        elif column.type.is_vector:
            found[column.name] = [None if value is None else value.array() for value in values]
        else:
            found[column.name] = values
    return found
