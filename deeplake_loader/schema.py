"""Changes of the schema: a CREATE, ALTER or DROP with all that follows a table, in the caller's transaction.

A table has an undo log with its triggers (`history`), an index on every vector column, by which the fast path's last
statement finds its winners, and a recorded definition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deeplake_loader import history
from deeplake_loader.errors import SQLError, UnsupportedSQLError
from deeplake_loader.store import encode_name
from deeplake_loader.types import RESERVED_PREFIX, Table, quote_identifier

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.sql.plan import Plan


def change(catalog: Catalog, plan: Plan, sql: str) -> None:
    """Do what the plan of a definition says, or nothing where IF EXISTS or IF NOT EXISTS leaves nothing to do.

    Raises:
        SQLError: SQLite refuses the statement, or a table's name differs from another one's in case alone.
        UnsupportedSQLError: a table would get another name.
    """
    target = plan.target or ""
    known = catalog.table(target)
    if plan.kind == "create_table" and plan.definition is not None:
        if known is None or not plan.missing_ok:
            _create(catalog, plan.definition, known, plan.sql, sql)
    elif plan.kind == "drop_table":
        if known is not None or not plan.missing_ok:
            _drop(catalog, target, plan.sql, sql)
    elif plan.kind == "alter_table" and plan.definition is not None and known is not None:
        _alter(catalog, plan, known, plan.definition, sql)
    else:
        _change_index(catalog, plan, target, sql)


def _create(catalog: Catalog, table: Table, known: Table | None, text: str, sql: str) -> None:
    if known is not None and known.name != table.name:  # SQLite takes Ä and ä for two names, this catalog for one
        raise SQLError(f"there is already a table {known.name!r}; names must differ in more than case", sql=sql)
    catalog.execute(text, user_sql=sql)
    history.install(catalog, table.name)
    catalog.put_table(table, sql)
    _index_vectors(catalog, table)


def _drop(catalog: Catalog, name: str, text: str, sql: str) -> None:
    catalog.execute(text, user_sql=sql)
    history.drop(catalog, name)
    catalog.drop_table(name)


def _alter(catalog: Catalog, plan: Plan, known: Table, table: Table, sql: str) -> None:
    if table.name != plan.target:
        raise UnsupportedSQLError("ALTER TABLE ... RENAME TO is not supported: shards and logs carry the name", sql=sql)
    history.drop_triggers(catalog, table.name)
    for name in _vector_indexes(known):
        catalog.execute(f"DROP INDEX IF EXISTS {quote_identifier(name)}")
    catalog.execute(plan.sql, user_sql=sql)
    for old, new in plan.renames:
        history.rename_column(catalog, table.name, old, new)
    history.rebuild(catalog, table.name)
    catalog.put_table(table, sql)
    _index_vectors(catalog, table)


def _change_index(catalog: Catalog, plan: Plan, name: str, sql: str) -> None:
    before = _indexed_table(catalog, name)
    catalog.execute(plan.sql, user_sql=sql)
    table = before or _indexed_table(catalog, name)
    if table is not None:  # the log's guards know the table's unique indexes
        history.rebuild(catalog, table)


def _indexed_table(catalog: Catalog, index: str) -> str | None:
    row = catalog.fetchone("SELECT tbl_name FROM sqlite_master WHERE type = 'index' AND name = ?", (index,))
    return None if row is None else str(row[0])


def _index_vectors(catalog: Catalog, table: Table) -> None:
    for column, index in zip(table.vectors, _vector_indexes(table), strict=True):
        where = f"{quote_identifier(table.name)} ({quote_identifier(column.name)})"
        catalog.execute(f"CREATE INDEX {quote_identifier(index)} ON {where}")


def _vector_indexes(table: Table) -> list[str]:
    """A name per vector column that no other table's columns can give, as encoded names hold no dot."""
    return [f"{RESERVED_PREFIX}vector.{encode_name(table.name)}.{encode_name(c.name)}" for c in table.vectors]
