"""Where the bytes behind a table's blobs lie, for tools that know only SQL: a view ``<table>_files`` beside each table.

One row per blob: the row's primary key, ``column_name``, ``address`` as the table holds it, ``url`` of the shard below
the store's storage, ``member`` (the name within that tar), ``byte_offset`` and ``byte_length`` of the member's data and
``info``, its media facts as JSON. The offset is NULL while a small blob still rests in the catalog.

    SELECT g.prompt, f.url, f.byte_offset, f.byte_length
    FROM generations g JOIN generations_files f ON f.id = g.id AND f.column_name = 'frames'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deeplake_loader.types import MAX_ORDINAL, ORDINAL_BITS, quote_identifier

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.types import Table

_SUFFIX = "_files"


def drop(catalog: Catalog, table: str) -> None:
    """Take the view away, before its table changes."""
    for name in _names(table):
        catalog.execute(f"DROP VIEW IF EXISTS {name}")


def create(catalog: Catalog, table: Table) -> None:
    """Make the view of a table with blobs; where a table has its name, ``<table>_files~`` takes its place."""
    if not table.blobs:
        return
    plain, other = _names(table.name)
    name = plain if catalog.table(table.name + _SUFFIX) is None else other
    catalog.execute(f"CREATE VIEW {name} AS {select(table)}")


def make_way(catalog: Catalog, name: str) -> None:
    """Before a table of this name is made: the view that has it takes its other name."""
    owner = catalog.table(name.removesuffix(_SUFFIX)) if name.endswith(_SUFFIX) else None
    if owner is not None:
        plain, other = _names(owner.name)
        catalog.execute(f"DROP VIEW IF EXISTS {plain}")
        if owner.blobs:
            catalog.execute(f"CREATE VIEW {other} AS {select(owner)}")


def select(table: Table) -> str:
    """The view's SELECT, in the SQL that both databases share."""
    return " UNION ALL ".join(_of_column(table, column.name) for column in table.blobs)


def _of_column(table: Table, column: str) -> str:
    keys = "".join(f"t.{quote_identifier(key)}, " for key in table.primary_key)
    address, literal = f"t.{quote_identifier(column)}", "'" + column.replace("'", "''") + "'"
    return (
        f"SELECT {keys}{literal} AS column_name, {address} AS address, f.url, "
        "m.key || '.' || m.column_name || '.' || m.extension AS member, m.offset AS byte_offset, "
        f"m.length AS byte_length, m.info FROM {quote_identifier(table.name)} t "
        f"JOIN _dl_members m ON m.file = {address} >> {ORDINAL_BITS} AND m.ordinal = {address} & {MAX_ORDINAL} "
        "JOIN _dl_files f ON f.id = m.file"
    )


def _names(table: str) -> tuple[str, str]:
    name = table + _SUFFIX
    return quote_identifier(name), quote_identifier(name + "~")
