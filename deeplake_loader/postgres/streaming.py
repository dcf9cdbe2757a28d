"""A stream's query in PostgreSQL: the keys of its rows selected beside what the user selects, rows by a cursor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg

from deeplake_loader.columnar import ColumnarRows, gather
from deeplake_loader.errors import SQLError
from deeplake_loader.postgres.failures import translate_error
from deeplake_loader.postgres.reading import native_plan, native_text
from deeplake_loader.postgres.scored import insertions
from deeplake_loader.rows import KEY_PREFIX
from deeplake_loader.sql import tree
from deeplake_loader.sql.definitions import parse
from deeplake_loader.sql.plan import Plan, ResultColumn
from deeplake_loader.sql.queries import QueryCompiler
from deeplake_loader.sql.reader import Reading, read
from deeplake_loader.sql.values import Context
from deeplake_loader.types import Table, quote_identifier

if TYPE_CHECKING:
    from deeplake_loader.postgres.catalog import PostgresCatalog
    from deeplake_loader.postgres.results import ResultTypes

_CHUNK = 2_000
"""Rows per step out of a cursor: a step is a message to the server and its answer."""


def stream_plan(sql: str, schema: Mapping[str, Table], own_schema: str = "_dl") -> Plan:
    """The plan of a SELECT with the primary keys of its rows as hidden last columns ``_dl_key_0`` ...

    A grouped, DISTINCT or set query has no such keys, and neither has one that our compiler cannot read.
    """
    plan, reading = native_plan(sql, schema, own_schema), read(sql)
    keys = _keys(reading, schema) if plan.kind == "select" else None
    if keys is None:
        return replace(plan, fast=None)
    place, names = keys
    listed = "".join(f', {name} AS "{KEY_PREFIX}{i}"' for i, name in enumerate(names))
    text, binds = native_text(reading, plan.binds, (*insertions(reading, own_schema), (place, f"{listed} ")))
    hidden = tuple(ResultColumn(f"{KEY_PREFIX}{i}", None) for i in range(len(names)))
    return replace(plan, sql=text, binds=binds, results=(*plan.results, *hidden) if plan.results else (), fast=None)


def _keys(reading: Reading, schema: Mapping[str, Table]) -> tuple[int, list[str]] | None:
    """Where the outermost FROM stands, and the key columns of the tables behind it."""
    try:
        statement, context = parse(reading), Context(reading, schema)
        body = statement.body if isinstance(statement, tree.Query) else None
        if not isinstance(statement, tree.Query) or not isinstance(body, tree.Select):
            return None
        compiler = QueryCompiler(context)
        compiler.query(statement, top=True)
    except (SQLError, RecursionError):
        return None
    block = next((b for b in compiler.blocks if b.node is body), None)
    if block is None or block.grouped or body.distinct or body.distinct_on:
        return None
    place = _before_from(reading, body)
    names = [
        f"{quote_identifier(source.alias)}.{quote_identifier(key)}"
        for source in block.scope.sources
        for key in (source.table.primary_key if source.table is not None else ())
    ]
    return None if place is None or not names else (place, names)


def _before_from(reading: Reading, body: tree.Select) -> int | None:
    depth, previous = 0, ""
    for token in reading.tokens:
        if token.start >= body.pos and token.kind == "operator" and token.text in ("(", ")"):
            depth += 1 if token.text == "(" else -1
        elif token[:2] == ("word", "from") and depth == 0 and previous != "distinct" and token.start > body.pos:
            return token.start
        previous = token.text
    return None


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
            return gather(names[:visible], kinds[:visible], _chunks(cursor), decoded=True)
    except psycopg.Error as error:
        raise translate_error(error, user_sql) from error


def _chunks(cursor: psycopg.RawServerCursor[Any]) -> Iterator[list[Any]]:
    while rows := cursor.fetchmany(_CHUNK):
        yield rows
