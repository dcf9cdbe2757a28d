"""Rows given by column into one table of the catalog, many a statement: half the time of one row a statement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from deeplake_loader.types import quote_identifier, quote_identifiers

_VARIABLES = 500  # per statement; more gain nothing, and every build of SQLite allows 999


class Executes(Protocol):
    """What inserting needs of the catalog."""

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> object: ...


def insert_columns(catalog: Executes, table: str, columns: Mapping[str, Sequence[Any]]) -> None:
    """Inserts the rows in order; every column has one value for each.

    >>> import sqlite3
    >>> connection = sqlite3.connect(":memory:")
    >>> _ = connection.execute("CREATE TABLE t (a, b)")
    >>> insert_columns(connection, "t", {"a": range(3), "b": "xyz"})
    >>> connection.execute("SELECT * FROM t").fetchall()
    [(0, 'x'), (1, 'y'), (2, 'z')]
    """
    width, count = len(columns), len(next(iter(columns.values())))
    flat: list[Any] = [None] * (width * count)
    for i, values in enumerate(columns.values()):
        flat[i::width] = values
    at_once = max(1, _VARIABLES // width)
    whole = count // at_once * at_once * width
    statement = f"INSERT INTO {quote_identifier(table)} ({quote_identifiers(columns)}) VALUES "
    row = f"({', '.join('?' * width)})"
    for rows, start, stop in ((at_once, 0, whole), (1, whole, len(flat))):
        sql = statement + ", ".join([row] * rows)
        catalog.executemany(sql, (flat[i : i + rows * width] for i in range(start, stop, rows * width)))
