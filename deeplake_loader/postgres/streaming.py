"""A stream's rows out of PostgreSQL: by a cursor of the server's, column by column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import psycopg

from deeplake_loader.columnar import ColumnarRows, gather
from deeplake_loader.postgres.failures import translate_error
from deeplake_loader.postgres.results import lists_in, with_lists
from deeplake_loader.rows import KEY_PREFIX

if TYPE_CHECKING:
    from deeplake_loader.postgres.catalog import PostgresCatalog
    from deeplake_loader.postgres.results import ResultTypes
    from deeplake_loader.sql.plan import Plan

_CHUNK = 2_000
"""Rows per step out of a cursor: a step is a message to the server and its answer."""


def columnar(
    catalog: PostgresCatalog, types: ResultTypes, plan: Plan, values: Sequence[Any], user_sql: str
) -> ColumnarRows:
    """The rows of a plan column by column, within the open snapshot: memory holds some rows and the finished columns,
    and vectors go to a file."""
    binary = any(column.type is not None and column.type.is_vector for column in plan.results)
    try:
        with psycopg.RawServerCursor(catalog.connection, "_dl_stream") as cursor:
            cursor.execute(plan.sql, values or None, binary=binary)
            if cursor.pgresult is None:
                return gather([], [], [], decoded=True)
            names, kinds = types.of(cursor.pgresult, plan)
            visible = sum(not name.startswith(KEY_PREFIX) for name in names)
            chunks = _chunks(cursor, lists_in(cursor.pgresult, kinds))
            return gather(names[:visible], kinds[:visible], chunks, decoded=True)
    except psycopg.Error as error:
        raise translate_error(error, user_sql) from error


def _chunks(cursor: psycopg.RawServerCursor[Any], lists: Sequence[int]) -> Iterator[list[Any]]:
    while rows := cursor.fetchmany(_CHUNK):
        yield with_lists(rows, lists) if lists else rows
