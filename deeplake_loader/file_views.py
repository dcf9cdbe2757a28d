"""Where the bytes behind a table's blobs lie, for tools that know only SQL: a view ``<table>_files`` beside each table.

One row per blob: the row's primary key, ``column_name``, ``address`` as the table holds it, ``url`` of the shard below
the store's storage (absolute for an adopted tar), ``member`` (the name within a tar of the store), ``byte_offset`` and
``byte_length`` of the member's data and ``info``, its media facts as JSON. The offset is NULL while a small blob still
rests in the catalog, the member in an adopted tar, of whose names only the key is kept.

    SELECT g.prompt, f.url, f.byte_offset, f.byte_length
    FROM generations g JOIN generations_files f ON f.id = g.id AND f.column_name = 'frames'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deeplake_loader.types import MAX_ORDINAL, ORDINAL_BITS, quote_identifier

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.types import Table

_SUFFIX, _OTHER = "_files", "~"
_MAX_BYTES = 63 - len(_SUFFIX + _OTHER)
"""Of a table's name: PostgreSQL cuts names at 63 bytes without a word. A table with a longer one has no such view."""


def drop(catalog: Catalog, table: str, *, within: str = "") -> None:
    """Take the view away, before its table changes; ``within`` is main's schema as SQL names it, with its point."""
    if not _fits(table):
        return
    for name in (table + _SUFFIX, table + _SUFFIX + _OTHER):
        if catalog.table(name) is None:
            catalog.execute(f"DROP VIEW IF EXISTS {within}{quote_identifier(name)}")


def create(catalog: Catalog, table: Table, *, within: str = "") -> str | None:
    """The name of the view, made for a table with blobs; where a table has that name, ``<table>_files~``."""
    if not table.blobs or not _fits(table.name):
        return None
    name = table.name + _SUFFIX
    name += "" if catalog.table(name) is None else _OTHER
    catalog.execute(f"CREATE VIEW {within}{quote_identifier(name)} AS {select(table)}")
    return name


def make_way(catalog: Catalog, name: str, *, within: str = "") -> None:
    """Before a table of this name is made: the view that has it takes its other name."""
    owner = catalog.table(name.removesuffix(_SUFFIX)) if name.endswith(_SUFFIX) else None
    if owner is None or not owner.blobs or not _fits(owner.name):
        return
    drop(catalog, owner.name, within=within)
    catalog.execute(f"CREATE VIEW {within}{quote_identifier(owner.name + _SUFFIX + _OTHER)} AS {select(owner)}")


def select(table: Table) -> str:
    """The view's SELECT, in the SQL that both databases share."""
    return " UNION ALL ".join(_of_column(table, column.name) for column in table.blobs)


def _of_column(table: Table, column: str) -> str:
    keys = "".join(f"t.{quote_identifier(key)}, " for key in table.primary_key)
    address, literal = f"t.{quote_identifier(column)}", "'" + column.replace("'", "''") + "'"
    return (
        f"SELECT {keys}{literal} AS column_name, {address} AS address, f.url, "
        "CASE WHEN f.url NOT LIKE '%://%' THEN m.key || '.' || m.column_name || '.' || m.extension END AS member, "
        "m.offset AS byte_offset, "
        f"m.length AS byte_length, m.info FROM {quote_identifier(table.name)} t "
        f"JOIN _dl_members m ON m.file = {address} >> {ORDINAL_BITS} AND m.ordinal = {address} & {MAX_ORDINAL} "
        "JOIN _dl_files f ON f.id = m.file"
    )


def _fits(table: str) -> bool:
    return len(table.encode()) <= _MAX_BYTES
