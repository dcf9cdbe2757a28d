"""Primary keys that count by themselves: their sequences, and how those follow ids that somebody gave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deeplake_loader.types import Table, quote_identifier

if TYPE_CHECKING:
    from deeplake_loader.postgres.catalog import PostgresCatalog

_WHOLE = frozenset({"SMALLINT", "INTEGER", "BIGINT"})


class Keys:
    """The counted keys of a store's tables."""

    def __init__(self, catalog: PostgresCatalog) -> None:
        self._catalog = catalog
        self._known: tuple[int, dict[str, str | None]] = (-1, {})

    def whole_number(self, table: Table) -> str | None:
        """The key of one whole-number column; None for another one."""
        column = table.column(table.primary_key[0]) if len(table.primary_key) == 1 else None
        return column.name if column is not None and column.type.name in _WHOLE else None

    def counted(self, table: Table) -> str | None:
        """The key column that has a sequence; None where there is none."""
        key = self.whole_number(table)
        return key if key is not None and self._sequence(table, key) is not None else None

    def take(self, table: Table, key: str, count: int) -> list[int]:
        """So many new ids."""
        sql = "SELECT nextval(?::regclass) FROM generate_series(1, ?)"
        return [row[0] for row in self._catalog.fetchall(sql, (self._sequence(table, key), count))]

    def follow(self, table: Table, real: str, columns: Sequence[str]) -> None:
        """Once rows with ids of their own were inserted: the next id is above all of them, as SQLite has it."""
        key = self.counted(table)
        if key is None or (columns and key.lower() not in (c.lower() for c in columns)):
            return
        sequence = self._sequence(table, key)
        self._catalog.fetchone(
            f"SELECT setval(?::regclass, m.id) FROM (SELECT max({quote_identifier(key)}) AS id FROM {real}) m "
            "WHERE m.id >= 1 AND m.id > (SELECT coalesce(pg_sequence_last_value(?::regclass), 0))",
            (sequence, sequence),
        )

    def _sequence(self, table: Table, key: str) -> str | None:
        version = self._catalog.schema_version()
        if self._known[0] != version:
            self._known = version, {}
        known = self._known[1]
        if table.name not in known:
            name = f"{quote_identifier(self._catalog.address.schema)}.{quote_identifier(table.name)}"
            known[table.name] = self._catalog.fetchone("SELECT pg_get_serial_sequence(?, ?)", (name, key))[0]
        return known[table.name]
