"""How statements run in PostgreSQL: the user's own text, values bound by what the compiler knows of it.

A query outside of a transaction is one message to the server and its answer: it has a snapshot of its own. A plan that
another process's ALTER TABLE has overtaken shows by the statement's failure, and is then made again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from deeplake_loader.errors import DeeplakeError, InputError
from deeplake_loader.postgres.failures import is_overtaken
from deeplake_loader.postgres.keys import Keys
from deeplake_loader.postgres.results import Answer, ResultTypes
from deeplake_loader.postgres.schema import PostgresSchema
from deeplake_loader.rows import KEY_PREFIX, RowSet
from deeplake_loader.sql.plan import Plan
from deeplake_loader.sql.reader import read
from deeplake_loader.types import quote_identifier

if TYPE_CHECKING:
    import psycopg

    from deeplake_loader.batches import Batch
    from deeplake_loader.columnar import ColumnarRows
    from deeplake_loader.inspection import Description
    from deeplake_loader.plans import Plans
    from deeplake_loader.postgres.branching import PostgresBranchWriter
    from deeplake_loader.postgres.catalog import PostgresCatalog
    from deeplake_loader.postgres.search import PostgresStatements
    from deeplake_loader.postgres.writing import PostgresWriter
    from deeplake_loader.references import References
    from deeplake_loader.rows import Source
    from deeplake_loader.types import Table
    from deeplake_loader.views import Views
    from deeplake_loader.writing import Bound, Validate

    Cursor = psycopg.RawCursor[tuple[Any, ...]]

_DEFINITIONS = frozenset({"create_table", "drop_table", "alter_table", "create_index", "drop_index"})


class PostgresRunner:
    """Runs statements as the user wrote them."""

    def __init__(
        self, catalog: PostgresCatalog, source: Source, plans: Plans, writer: PostgresWriter, schema: PostgresSchema,
        views: Views, overlays: PostgresBranchWriter, references: References, statements: PostgresStatements,
    ) -> None:  # fmt: skip
        self._catalog, self._source, self._plans, self._writer = catalog, source, plans, writer
        self._schema, self._views, self._overlays, self._references = schema, views, overlays, references
        self._types, self._keys, self._statements = ResultTypes(catalog), Keys(catalog), statements
        self._reads: dict[str, Plan] = {}

    # -- plans -----------------------------------------------------------------------------------------------------

    def plan(self, sql: str) -> Plan:
        return self._plans.get(sql, sql, self._compile)

    def _compile(self, sql: str, tables: Mapping[str, Table]) -> Plan:
        from deeplake_loader.postgres.reading import native_plan  # a cached plan needs no compiler

        return native_plan(sql, tables, self._catalog.address.bookkeeping)

    def stream_plan(self, sql: str) -> Plan:
        return self._plans.get(f"{KEY_PREFIX}:{sql}", sql, self._compile_stream)

    def _compile_stream(self, sql: str, tables: Mapping[str, Table]) -> Plan:
        from deeplake_loader.postgres.reading import native_stream_plan

        return native_stream_plan(sql, tables, self._catalog.address.bookkeeping)

    # -- statements ------------------------------------------------------------------------------------------------

    def execute(self, sql: str, params: object) -> RowSet:
        known = self._reads.get(sql) if isinstance(sql, str) else None
        if known is None:
            known = self.plan(sql)
            if known.kind == "select":
                self._remember(sql, known)
        if known.kind == "select":
            return self._query(known, params, sql)
        return self._catalog.retry(lambda: self._change(sql, params))

    def _remember(self, sql: str, plan: Plan) -> None:
        if len(self._reads) >= 1_000:
            self._reads.clear()
        self._reads[sql] = plan

    def _query(self, plan: Plan, params: object, sql: str) -> RowSet:
        if self._catalog.in_transaction or plan.fast is not None or not self._views.on_main:
            with self._catalog.snapshot():
                return self.select(plan, params, sql)
        try:
            return self.select(plan, params, sql)
        except DeeplakeError as error:
            self._reads.pop(sql, None)
            self._types.forget()
            again = self.plan(sql)
            if again == plan and not is_overtaken(error.__cause__):
                raise
        self._catalog.forget_prepared()
        with self._catalog.snapshot():
            return self.select(again, params, sql)

    def select(self, plan: Plan, params: object, sql: str) -> RowSet:
        self._views.refresh(plan.reads)
        if plan.fast is not None:
            found = self._statements.fetch(
                plan, plan.fast, params, sql, lambda text, values, user_sql: self.rows(plan, text, values, user_sql)
            )
            if found is not None:
                return found
        values = self._writer.bind(plan, params).values if plan.parameters or params else ()
        return self.rows(plan, plan.sql, values, sql)

    def rows(self, plan: Plan, text: str, values: Sequence[Any], sql: str) -> RowSet:
        """The rows of a text in place of a query's own."""
        return self._rowset(plan, self._run(plan, text, values, sql, question=True))

    def columnar(self, plan: Plan, params: object, sql: str) -> ColumnarRows:
        from deeplake_loader.postgres.streaming import columnar

        self._views.refresh(plan.reads)
        return columnar(self._catalog, self._types, plan, self._writer.bind(plan, params).values, sql)

    def _run(self, plan: Plan, text: str, values: Sequence[Any], sql: str, *, question: bool = False) -> Cursor:
        binary = bool([c for c in plan.results if c.type is not None and c.type.is_vector])
        return self._catalog.raw(
            text, values, user_sql=sql, place=lambda at: self._place(sql, at), binary=binary, question=question
        )

    def _place(self, sql: str, position: int) -> int:
        from deeplake_loader.postgres.reading import place_in
        from deeplake_loader.postgres.scored import insertions

        reading = read(sql, native=True)
        return place_in(reading, insertions(reading, self._catalog.address.bookkeeping), position)

    def _rowset(self, plan: Plan, cursor: Cursor) -> RowSet:
        result = cursor.pgresult
        if result is None or not result.nfields:
            return RowSet((), (), [], rowcount=cursor.rowcount, returns_rows=False)
        names, types = self._types.of(result, plan)
        answer = Answer(cursor, result, names, types)
        return RowSet(names, types, [], source=self._source, decoded=True, answer=answer)

    # -- changes ---------------------------------------------------------------------------------------------------

    def _change(self, sql: str, params: object) -> RowSet:
        with self._catalog.transaction():
            plan = self.plan(sql)
            self._views.refresh(plan.reads)
            if plan.kind in _DEFINITIONS:
                self._schema.change(plan, sql)
                self._types.forget()
                return RowSet((), (), [], rowcount=0, returns_rows=False)
            return self._modify(plan, params, sql)

    def _modify(self, plan: Plan, params: object, sql: str) -> RowSet:
        bound = self._writer.bind(plan, params)
        key = self._returned_key(plan, sql)
        text = plan.sql if key is None else f"{plan.sql} RETURNING {quote_identifier(key)}"
        cursor = self._written(plan, text, bound, sql)
        lastrowid = None
        if key is not None:
            rows = cursor.fetchall()
            lastrowid = rows[0][0] if len(rows) == 1 else None
        self._follow_ids(plan)
        self._writer.finish(bound, plan, rowcount=cursor.rowcount, lastrowid=lastrowid)
        if plan.returning or (plan.kind == "other" and cursor.description is not None):
            return self._rowset(plan, cursor)
        return RowSet((), (), [], rowcount=cursor.rowcount, lastrowid=lastrowid, returns_rows=False)

    def _written(self, plan: Plan, text: str, bound: Bound, sql: str) -> Cursor:
        text = self._overlays.prepare(plan, text, bound.values, lambda keys, values: self._run(plan, keys, values, sql))
        return self._run(plan, text, bound.values, sql)

    def _follow_ids(self, plan: Plan) -> None:
        """The next ids follow those that an INSERT gave."""
        table = None if plan.kind != "insert" or plan.target is None else self._catalog.table(plan.target)
        if table is not None:
            self._keys.follow(table, self._writer.real(table.name), plan.insert_columns)

    def _returned_key(self, plan: Plan, sql: str) -> str | None:
        """The key that an INSERT of few rows shall give back: a whole number, and nothing else comes back."""
        from deeplake_loader.postgres.reading import brings_values

        table = None if plan.kind != "insert" or plan.returning else self._catalog.table(plan.target or "")
        if table is None or not brings_values(sql):
            return None
        return self._keys.whole_number(table)

    def executemany(self, sql: str, rows: Iterable[Any]) -> int:
        given = list(rows)
        return self._catalog.retry(lambda: self._change_many(sql, given))

    def _change_many(self, sql: str, rows: Sequence[Any]) -> int:
        with self._catalog.transaction():
            plan = self.plan(sql)
            if plan.kind not in ("insert", "update", "delete") or plan.returning:
                raise InputError(
                    "executemany runs INSERT, UPDATE or DELETE without RETURNING; use execute for the rest"
                )
            bound = [self._writer.bind(plan, params, row=i) for i, params in enumerate(rows)]
            if not bound:
                return 0
            self._views.refresh(plan.reads)
            total = self._write_many(plan, bound, sql)
            self._follow_ids(plan)
            for one in bound:
                self._writer.finish(one, plan, rowcount=-1, lastrowid=None)
            return total

    def _write_many(self, plan: Plan, bound: Sequence[Bound], sql: str) -> int:
        def run(text: str, values: Sequence[Sequence[Any]]) -> int:
            return self._catalog.raw_many(text, values, user_sql=sql, place=lambda at: self._place(sql, at))

        rows = [one.values for one in bound]
        text = self._overlays.prepare_many(plan, rows, run)
        if text is not None:
            return run(text, rows)
        return sum(self._written(plan, plan.sql, one, sql).rowcount for one in bound)

    @contextmanager
    def typed_errors(self) -> Iterator[None]:
        """PostgreSQL's errors tell their cause by themselves."""
        yield

    # -- bulk ------------------------------------------------------------------------------------------------------

    def insert_batch(self, table: Table, batch: Batch, first_row: int, validate: Validate) -> None:
        self._views.refresh([table.name])
        self._overlays.ensure(self._views.branch, table.name)
        columns, key = dict(batch.columns), self._keys.counted(table)
        given = key is not None and any(str(name).lower() == key.lower() for name in columns)
        if key is not None and not given and table.blobs:  # its samples' documents name it
            columns = {key: self._keys.take(table, key, batch.count), **columns}
        self._writer.insert_columns(
            table, columns, batch.count, first_row=first_row, validate=validate, key=key, after_rowid=0
        )
        if given:
            self._keys.follow(table, self._writer.real(table.name), tuple(map(str, columns)))
        if not self._views.on_main:
            self._references.settle(table.name)

    def describe(self, table: Table) -> Description:
        from deeplake_loader.postgres.inspection import describe

        return describe(self._catalog, table)
