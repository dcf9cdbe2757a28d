"""Changes of tables in PostgreSQL: the user's own statement, types exchanged, then the definition read back.

A definition belongs to main's schema, whatever the handle shows. What the table has become is what the database says:
its columns, keys and NOT NULLs also after statements that the compiler does not know.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from deeplake_loader import file_views
from deeplake_loader.errors import InputError, SQLError, UnsupportedSQLError
from deeplake_loader.postgres.bookkeeping import vectors_schema
from deeplake_loader.postgres.declarations import Declared, alter_table, create_table
from deeplake_loader.postgres.names import check_identifier
from deeplake_loader.postgres.types import type_of
from deeplake_loader.postgres.vectors import function_statements, register
from deeplake_loader.sql.reader import Reading, read
from deeplake_loader.types import Column, ColumnType, Table, quote_identifier

if TYPE_CHECKING:
    from deeplake_loader.postgres.catalog import PostgresCatalog
    from deeplake_loader.postgres.history import PostgresHistory
    from deeplake_loader.sql.plan import Plan

_COLUMNS = """
    SELECT a.attname, a.atttypid, a.atttypmod, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attnum
    FROM pg_attribute a WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
_KEY = """
    SELECT a.attname FROM pg_constraint c CROSS JOIN unnest(c.conkey) WITH ORDINALITY AS k(attnum, n)
    JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.attnum
    WHERE c.conrelid = %s::regclass AND c.contype = 'p' ORDER BY k.n
"""
_RIGID_KEYS = "SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'f' AND NOT condeferrable"


_INDEXES = """
    SELECT i.indexrelid::bigint, c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
    WHERE c.relnamespace = to_regnamespace(quote_ident(?))
"""


class PostgresSchema:
    """Runs CREATE, ALTER and DROP for one handle."""

    def __init__(self, catalog: PostgresCatalog, history: PostgresHistory) -> None:
        self._catalog, self._history = catalog, history

    def change(self, plan: Plan, sql: str) -> None:
        """Do what a definition says, within the open transaction.

        Raises:
            SQLError: PostgreSQL refuses it, or a table's name differs from another one's in case alone.
            UnsupportedSQLError: a table would get another name, or be made elsewhere than in main.
            InputError: a name of more than 63 bytes; a branch or a tag would lose rows or values.
        """
        reading = read(sql, native=True)
        with self.in_main():
            run = {
                "create_table": self._create_table, "drop_table": self._drop_table, "alter_table": self._alter,
                "create_index": self._index, "drop_index": self._index,
            }.get(plan.kind, self._as_written)  # fmt: skip
            run(plan, reading)

    @contextmanager
    def in_main(self) -> Iterator[None]:
        """Names mean main's tables for the length of the block: a branch's schema comes first otherwise."""
        address, path = self._catalog.address, self._catalog.path
        setting = "SELECT set_config('search_path', ?, true)"
        if path:
            self._catalog.execute(setting, (address.search_path(),))
        yield
        if path:
            self._catalog.execute(setting, (address.search_path(path),))

    @property
    def pgvector(self) -> bool:
        """Whether the database has pgvector's types."""
        return bool(self._catalog.fetchone("SELECT to_regtype('vector') IS NOT NULL")[0])

    def _ready_for_vectors(self, declared: Declared) -> None:
        """Score functions of pgvector's types, before a store's first column of them: the extension may be younger."""
        if not self.pgvector or not any(kind.is_vector for kind in declared.apart.values()):
            return
        address, connection = self._catalog.address, self._catalog.connection
        known = "SELECT to_regprocedure(?) IS NOT NULL"
        if not self._catalog.fetchone(known, (f"{address.bookkeeping}.cosine_distance(vector, vector)",))[0]:
            for text in function_statements(address.schema, address.bookkeeping, vectors_schema(connection)):
                self._catalog.raw(text, user_sql=text, place=lambda at: at)
            register(connection)

    # -- tables ----------------------------------------------------------------------------------------------------

    def _create_table(self, plan: Plan, reading: Reading) -> None:
        name = check_identifier(plan.target or "", "table")
        self._refuse_elsewhere(reading)
        known = self._catalog.table(name)
        words = [t.text for t in reading.tokens[:6]]
        if known is not None and known.name == name and words[2:5] == ["if", "not", "exists"]:
            return
        if known is not None and known.name != name:
            message = f"there is already a table {known.name!r}; names must differ in more than case"
            raise SQLError(message, sql=reading.sql)
        declared = create_table(reading, name, pgvector=self.pgvector)
        self._ready_for_vectors(declared)
        file_views.make_way(self._catalog, name, within=self._main)
        self._run(declared, reading)
        self._loosen_references(name)
        made = self.introspect(name, declared.apart)
        self._catalog.put_table(made, reading.sql)
        self._history.install(name)
        self._show_files(made)

    def _drop_table(self, plan: Plan, reading: Reading) -> None:
        table = self._known(plan)
        if table is None:
            self._as_written(plan, reading)
            return
        self._history.refuse_loss(table.name, "true", f"the rows of {table.name!r}", "drop the table")
        self._history.drop(table.name)
        file_views.drop(self._catalog, table.name, within=self._main)
        self._as_written(plan, reading)
        self._catalog.drop_table(table.name)

    def _alter(self, plan: Plan, reading: Reading) -> None:
        table = self._known(plan)
        if table is None:
            self._as_written(plan, reading)
            return
        before = self._numbers(table.name)
        declared = alter_table(reading, pgvector=self.pgvector)
        self._refuse_lost_columns(table, reading)
        self._ready_for_vectors(declared)
        self._history.aside(table.name)
        file_views.drop(self._catalog, table.name, within=self._main)
        self._run(declared, reading)
        if self._catalog.fetchone("SELECT to_regclass(?)", (self._qualified(table.name),))[0] is None:
            raise UnsupportedSQLError(
                "ALTER TABLE ... RENAME TO is not supported: shards and logs carry the name", sql=reading.sql
            )
        renames = self._renames(before, self._numbers(table.name))
        apart = {renames.get(c.name, c.name): c.type for c in table.columns if not c.type.is_scalar}
        self._loosen_references(table.name)
        for old, new in renames.items():
            self._history.rename_column(table.name, old, new)
        after = self.introspect(table.name, {**apart, **declared.apart})
        self._catalog.put_table(after, reading.sql)
        self._history.rebuild(table.name)
        self._show_files(after)

    def _show_files(self, table: Table) -> None:
        """The view of a table's places, for those who may read the table."""
        view = file_views.create(self._catalog, table, within=self._main)
        if view is not None:
            names = self._qualified(table.name), self._qualified(view)
            self._catalog.execute(self._catalog.fetchone("SELECT _dl_grants(?::regclass, ?)", names)[0])

    def _refuse_lost_columns(self, table: Table, reading: Reading) -> None:
        words = [(t.kind, t.text) for t in reading.tokens]
        for i, word in enumerate(words):
            if word != ("word", "drop"):
                continue
            at = i + 1
            while words[at][0] == "word" and words[at][1] in ("column", "if", "exists"):
                at += 1
            column = table.column(words[at][1])
            stored = {c.name for c in self._history.shape(table.name).columns}  # a generated one can be made again
            if column is not None and column.name in stored:
                given = f"{quote_identifier(column.name)} IS NOT NULL"
                self._history.refuse_loss(table.name, given, f"values of {column.name!r}", "drop the column")

    def _known(self, plan: Plan) -> Table | None:
        found = self._catalog.table(plan.target or "")
        return found if found is not None and found.name == plan.target else None

    def _index(self, plan: Plan, reading: Reading) -> None:
        """Overlays get the indexes of their tables, and a unique one holds on every branch."""
        before = self._all_indexes()
        self._as_written(plan, reading)
        for table in sorted({table for _, table in before ^ self._all_indexes()}):
            self._history.rebuild(table)

    def _all_indexes(self) -> set[tuple[int, str]]:
        return {(number, table) for number, table in self._catalog.fetchall(_INDEXES, (self._catalog.address.schema,))}

    def _as_written(self, _plan: Plan, reading: Reading) -> None:
        self._run(Declared(_without_concurrently(reading)), reading)

    def _run(self, declared: Declared, reading: Reading) -> None:
        from deeplake_loader.postgres.reading import place_in

        self._catalog.raw(declared.sql, user_sql=reading.sql, place=lambda at: place_in(reading, declared.put_in, at))

    def _refuse_elsewhere(self, reading: Reading) -> None:
        tokens = reading.tokens
        for token, dot in itertools.pairwise(tokens):
            if token.text == "(":
                return
            if dot.text == "." and token.text != self._catalog.address.schema:
                raise UnsupportedSQLError(
                    f"a table is made in main, the schema {self._catalog.address.schema!r}; write its name alone",
                    sql=reading.sql, position=token.start,
                )  # fmt: skip

    def _loosen_references(self, table: str) -> None:
        """Foreign keys can then be checked at the end of a transaction: a merge needs it."""
        name = self._qualified(table)
        for (constraint,) in self._catalog.fetchall(_RIGID_KEYS, (name,), native=True):
            self._catalog.execute(
                f"ALTER TABLE {name} ALTER CONSTRAINT {quote_identifier(constraint)} DEFERRABLE INITIALLY IMMEDIATE"
            )

    # -- what a table is -------------------------------------------------------------------------------------------

    def introspect(self, table: str, apart: Mapping[str, ColumnType]) -> Table:
        """The table as the database describes it; ``apart`` are the columns whose types are this package's own."""
        name = self._qualified(table)
        columns = [
            Column(column, apart.get(column) or type_of(oid, modifier, spelled), not required)
            for column, oid, modifier, spelled, required, _ in self._catalog.fetchall(_COLUMNS, (name,), native=True)
        ]
        key = tuple(column for (column,) in self._catalog.fetchall(_KEY, (name,), native=True))
        if not key:
            raise InputError(f"the primary key of {table!r} cannot be dropped; branches and streams know rows by it")
        lower = [c.name.lower() for c in columns]
        twice = next((c.name for c in columns if lower.count(c.name.lower()) > 1), None)
        if twice is not None:
            raise SQLError(f"two columns are named {twice!r} (whatever the case)")
        return Table(table, tuple(columns), key)

    def _numbers(self, table: str) -> dict[int, str]:
        rows: list[Any] = self._catalog.fetchall(_COLUMNS, (self._qualified(table),), native=True)
        return {row[5]: row[0] for row in rows}

    @staticmethod
    def _renames(before: dict[int, str], after: dict[int, str]) -> dict[str, str]:
        return {name: after[number] for number, name in before.items() if number in after and after[number] != name}

    @property
    def _main(self) -> str:
        return quote_identifier(self._catalog.address.schema) + "."

    def _qualified(self, table: str) -> str:
        return self._main + quote_identifier(table)


def _without_concurrently(reading: Reading) -> str:
    """The statement without CONCURRENTLY, which cannot run inside a transaction."""
    sql, end = reading.sql, reading.tokens[-2].stop
    word = next((t for t in reading.tokens[:4] if (t.kind, t.text) == ("word", "concurrently")), None)
    return sql[:end] if word is None else sql[: word.start] + sql[word.stop : end]
