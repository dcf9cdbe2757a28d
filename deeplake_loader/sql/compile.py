"""The compiler's front door: a statement and a schema in, a Plan out. Pure: it reads and changes nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from deeplake_loader.errors import SQLError
from deeplake_loader.sql import tree
from deeplake_loader.sql.counting import counted
from deeplake_loader.sql.definitions import parse
from deeplake_loader.sql.fast import fast_path
from deeplake_loader.sql.plan import Bind, Counted, Kind, Plan, ResultColumn
from deeplake_loader.sql.queries import QueryCompiler
from deeplake_loader.sql.reader import Reading, Token, read
from deeplake_loader.sql.tables import Definition, TableCompiler
from deeplake_loader.sql.values import Context
from deeplake_loader.sql.writes import Write, WriteCompiler
from deeplake_loader.types import Table


def compile_statement(sql: str, schema: Mapping[str, Table], *, physical: Mapping[str, str] | None = None) -> Plan:
    """The plan of one PostgreSQL statement against these tables (name -> definition).

    Raises SQLError for text that PostgreSQL would not take either, UnsupportedSQLError for what cannot be run here with
    PostgreSQL's result (each with the position), DimensionError for vectors that do not fit.

    ``physical``: where a written table's rows really lie, by its name; the plan of an UPDATE or DELETE then also gives
    the keys that the statement chooses.

    >>> compile_statement("SELECT 1 + 1 AS two", {}).sql
    'SELECT 1 + 1 AS two'
    """
    reading = read(sql)
    context = Context(reading, schema, physical)
    try:
        plan = _plan(context, parse(reading))
    except RecursionError:
        raise SQLError("the statement is nested too deeply", sql=sql) from None
    if physical is not None and plan.kind == "select":
        plan = _with_count(Context(reading, schema), parse(reading), plan)
    return replace(plan, style=reading.style, parameters=reading.parameters)


def _with_count(context: Context, statement: tree.Statement, plan: Plan) -> Plan:
    found = counted(context, statement) if isinstance(statement, tree.Query) else None
    if found is None:
        return plan
    sql, binds = context.finish(found[1])
    return replace(plan, counted=Counted(found[0], sql, binds))


def stream_keys(sql: str, schema: Mapping[str, Table]) -> Plan:
    """The plan of a SELECT with the primary keys of its tables as hidden last columns ``_dl_key_0`` ...

    A grouped, DISTINCT or set query has no such keys and comes back as it is.
    """
    reading = read(sql)
    statement = parse(reading)
    body = statement.body if isinstance(statement, tree.Query) else None
    if not isinstance(statement, tree.Query):
        raise SQLError("only a SELECT can be streamed", sql=sql, position=0)
    if not isinstance(body, tree.Select) or body.distinct or body.distinct_on or body.source is None:
        return compile_statement(sql, schema)
    context = Context(reading, schema)
    plan = _select(context, statement, hidden=True)
    return replace(plan, style=reading.style, parameters=reading.parameters)


def _plan(context: Context, statement: tree.Statement) -> Plan:
    if isinstance(statement, tree.Query):
        return _select(context, statement)
    if isinstance(statement, tree.Insert):
        return _write(context, "insert", WriteCompiler(context).insert(statement))
    if isinstance(statement, tree.Update):
        return _write(context, "update", WriteCompiler(context).update(statement))
    if isinstance(statement, tree.Delete):
        return _write(context, "delete", WriteCompiler(context).delete(statement))
    tables = TableCompiler(context)
    if isinstance(statement, tree.CreateTable):
        return _defined("create_table", tables.create(statement), statement.missing_ok)
    if isinstance(statement, tree.CreateIndex):
        return _defined("create_index", tables.index(statement), statement.missing_ok)
    if isinstance(statement, tree.CreateVectorIndex):
        index = tables.vector_index(statement)
        return Plan("create_index", "", target=index.name, index=index, missing_ok=statement.missing_ok)
    if isinstance(statement, tree.Drop):
        kind: Kind = "drop_table" if statement.what == "table" else "drop_index"
        return _defined(kind, tables.drop(statement), statement.missing_ok)
    return _defined("alter_table", tables.alter(statement), statement.missing_ok)


def _select(context: Context, statement: tree.Query, *, hidden: bool = False) -> Plan:
    if isinstance(statement.body, tree.Select) and not statement.body.items:
        context.refuse("a SELECT of no columns is not supported; name one", statement.body.pos)
    compiler = QueryCompiler(context, hidden=hidden)
    found = compiler.query(statement, top=True)
    sql, binds = _finished(context, found.sql)
    results = tuple(ResultColumn(field.name, field.type) for field in found.fields)
    fast = fast_path(context, statement, compiler.blocks, hidden=hidden)
    reads, ordered = tuple(context.reads), bool(statement.order)
    return Plan("select", sql, binds, results=results, fast=fast, reads=reads, ordered=ordered)


def _write(context: Context, kind: Kind, write: Write) -> Plan:
    sql, binds = _finished(context, write.sql)
    keys, key_binds = (None, ()) if write.keys is None else context.finish(write.keys)
    return Plan(
        kind, sql, binds, results=write.results, target=write.table.name, insert_columns=write.columns,
        returning=bool(write.results), reads=tuple(context.reads), keys_sql=keys, keys_binds=key_binds,
        keys_once=write.once,
    )  # fmt: skip


def _defined(kind: Kind, found: Definition, missing_ok: bool) -> Plan:
    return Plan(
        kind, found.sql, target=found.target, definition=found.table, missing_ok=missing_ok, renames=found.renames
    )


# -- passing the user's own text through ---------------------------------------------------------------------------


def _finished(context: Context, text: str) -> tuple[str, tuple[Bind, ...]]:
    """The statement for SQLite: the user's text byte for byte where the compiler changed nothing in it."""
    sql, binds = context.finish(text)
    own = _unchanged(context.reading, sql)
    return (sql if own is None else own), binds


def _unchanged(reading: Reading, sql: str) -> str | None:
    user = reading.sql
    if "/*" in user or (reading.percent and "%%" in user):
        return None
    if _signature(user, reading.tokens) != _signature(sql, read(sql).tokens):
        return None
    parts, at = [], 0
    for token in reading.tokens:
        if token.kind == "parameter":
            parts += [user[at : token.start], "?"]
            at = token.stop
    end = reading.tokens[-2].stop
    return "".join(parts) + user[at:end]


def _signature(sql: str, tokens: tuple[Token, ...]) -> list[str]:
    """The tokens as SQLite tells them apart: words without case, everything else as written."""
    out = []
    for token in tokens:
        if token.kind == "parameter":
            out.append("?")
        elif token.kind == "word":
            out.append(token.text)
        elif token.kind != "end":
            out.append(sql[token.start : token.stop])
    return out
