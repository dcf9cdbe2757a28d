"""The parts of a Database over the embedded catalog, and how its statements run in SQLite.

A statement goes  text -> plan (cached in the catalog) -> bound values -> SQLite -> RowSet.  A hybrid query whose plan
has a fast path goes  candidates by SQL -> scores by one kernel call -> the user's own statement over the winners,  all
in one snapshot; it can only be faster, never different.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from deeplake_loader import history
from deeplake_loader.catalog import Catalog, weakly
from deeplake_loader.errors import DeeplakeError, InputError, LockedError, SQLError, StoreError
from deeplake_loader.indexes import Indexes
from deeplake_loader.overlays import BranchWriter
from deeplake_loader.parts import Parts
from deeplake_loader.plans import Plans
from deeplake_loader.references import References
from deeplake_loader.rows import KEY_PREFIX, RowSet, Source
from deeplake_loader.schema import Schema
from deeplake_loader.search.candidates import LiveRows
from deeplake_loader.search.copies import Copies
from deeplake_loader.search.engine import Searcher
from deeplake_loader.search.statements import Statements
from deeplake_loader.shards import Shards
from deeplake_loader.sql import compile_statement, compile_stream, shims
from deeplake_loader.sql.plan import Plan
from deeplake_loader.sqlite_catalog import SqliteCatalog
from deeplake_loader.states import SqliteHistory
from deeplake_loader.types import ColumnType, Table, quote_identifier
from deeplake_loader.vectors import Vectors
from deeplake_loader.views import Views
from deeplake_loader.writing import Bound, Validate, Writer

if TYPE_CHECKING:
    from deeplake_loader.batches import Batch
    from deeplake_loader.columnar import ColumnarRows
    from deeplake_loader.inspection import Description

T = TypeVar("T")


def assemble(catalog: Catalog, source: Source) -> Parts:
    """The parts of the handle ``source`` on a store whose catalog is a SQLite file."""
    if not isinstance(catalog, SqliteCatalog):
        raise StoreError(f"{catalog!r} is no catalog in a SQLite file")
    catalog.history = SqliteHistory(catalog)
    shards, vectors = Shards(catalog), Vectors(catalog)
    indexes, views = Indexes(catalog, vectors), Views(catalog)
    overlays = BranchWriter(catalog, views)
    references = References(catalog, views, overlays)
    writer = Writer(catalog, shards, vectors, source, overlays.target)
    copies = Copies(catalog, vectors.matrix)
    searcher = Searcher(vectors.matrix, vectors.gather, copies)
    statements = Statements(catalog, writer, searcher, LiveRows(catalog, views))
    runner = EmbeddedRunner(catalog, source, vectors, indexes, views, overlays, references, writer, statements)
    catalog.add_hook(vectors.register)
    clock = weakly(catalog.now)
    catalog.add_hook(lambda connection: shims.register(connection, clock))
    return Parts(
        shards, vectors, indexes, views, overlays, references, writer, copies, searcher, statements, runner
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Read:
    """A SELECT that was run on main: its plan, the plans' state and the schema's number then, its columns, and what its
    records are."""

    plan: Plan
    state: int
    version: int
    names: tuple[str, ...]
    types: tuple[ColumnType | None, ...]
    make: type[tuple[Any, ...]]


class EmbeddedRunner:
    """Runs statements of the PostgreSQL language in SQLite."""

    def __init__(
        self, catalog: SqliteCatalog, source: Source, vectors: Vectors, indexes: Indexes, views: Views,
        overlays: BranchWriter, references: References, writer: Writer, statements: Statements,
    ) -> None:  # fmt: skip
        self._catalog, self._source, self._vectors, self._indexes = catalog, source, vectors, indexes
        self._views, self._overlays, self._references = views, overlays, references
        self._writer, self._statements = writer, statements
        self._schema, self._plans = Schema(catalog, views, indexes), Plans(catalog)
        self._reads: dict[str, _Read] = {}

    # -- plans -----------------------------------------------------------------------------------------------------

    def plan(self, sql: str) -> Plan:
        if self._views.on_main:
            return self._plans.get(sql, sql, compile_statement)
        branch = self._views.branch
        return self._plans.get(f"{KEY_PREFIX}{branch}:{sql}", sql, self._compile_on_branch)

    def _compile_on_branch(self, sql: str, tables: Mapping[str, Table]) -> Plan:
        physical = {table.name: self._overlays.target(table.name) for table in tables.values()}
        return compile_statement(sql, tables, physical=physical)

    def stream_plan(self, sql: str) -> Plan:
        return self._plans.get(f"{KEY_PREFIX}:{sql}", sql, compile_stream)

    # -- statements ------------------------------------------------------------------------------------------------

    def execute(self, sql: str, params: object) -> RowSet:
        known = self._reads.get(sql) if isinstance(sql, str) and self._views.on_main else None
        found = None if known is None else self._read(known, params)
        return self._execute(sql, params) if found is None else found

    def _read(self, known: _Read, params: object) -> RowSet | None:
        """The rows of a SELECT that was run before; None where the long way has to be gone.

        Errors included: a plan that the schema has overtaken may make them, and the long way finds their causes.
        """
        plan = known.plan
        if known.state != self._plans.state:
            return None
        try:
            values = self._writer.bind(plan, params).values if plan.binds or params else ()
            records = self._catalog.read(plan.sql, values, known.make, schema=known.version)
        except LockedError:
            raise
        except DeeplakeError:
            return None
        return None if records is None else RowSet(known.names, known.types, records, source=self._source)

    def _remember(self, sql: str, plan: Plan, rows: RowSet) -> None:
        if plan.fast is not None or not self._views.on_main:
            return
        if len(self._reads) >= 1_000:
            self._reads.clear()
        self._reads[sql] = _Read(
            plan, self._plans.state, self._plans.version, rows.names, rows.types, rows.record_class()
        )

    def _execute(self, sql: str, params: object) -> RowSet:
        kind = self.plan(sql).kind  # and planned again under the lock: until then another process may ALTER the table
        if kind == "select":
            with self._catalog.snapshot():
                plan = self.plan(sql)
                rows = self.select(plan, params, sql)
                self._remember(sql, plan, rows)
                return rows
        if kind in ("insert", "update", "delete"):
            return self._modify(sql, params)
        with self._catalog.transaction():
            plan = self.plan(sql)
            self._schema.change(plan, sql)
        index = None if plan.index is None else self._indexes.named(plan.index.name)
        if index is not None and not self._catalog.in_transaction:
            self._indexes.build(index)
        return RowSet((), (), [], rowcount=0, returns_rows=False)

    def executemany(self, sql: str, rows: Iterable[Any]) -> int:
        with self._catalog.transaction(), self.typed_errors():
            plan = self.plan(sql)
            if plan.kind not in ("insert", "update", "delete") or plan.returning:
                raise InputError(
                    "executemany runs INSERT, UPDATE or DELETE without RETURNING; use execute for the rest"
                )
            bound = [(self._writer.bind(plan, params, row=i), params) for i, params in enumerate(rows)]
            return sum(self._run(plan, b, params, sql)[1] for b, params in bound)

    def select(self, plan: Plan, params: object, sql: str) -> RowSet:
        return self._rowset(plan, self._fetch(plan, params, sql, self._catalog.fetchall))

    def columnar(self, plan: Plan, params: object, sql: str) -> ColumnarRows:
        from deeplake_loader.columnar import CHUNK, gather

        names, types = [c.name for c in plan.results], [c.type for c in plan.results]

        def fetch(text: str, values: Sequence[Any], *, user_sql: str) -> ColumnarRows:
            return gather(names, types, self._catalog.chunks(text, values, size=CHUNK, user_sql=user_sql))

        return self._fetch(plan, params, sql, fetch)

    def _fetch(self, plan: Plan, params: object, sql: str, fetch: Callable[..., T]) -> T:
        """What ``fetch`` makes of the statement's rows, by the fastest of the ways to them."""
        with self.typed_errors():
            self._views.refresh(plan.reads)
            found = None if plan.fast is None else self._statements.fetch(plan, plan.fast, params, sql, fetch)
            if plan.counted is not None and self._views.in_parts(plan.counted.table):
                values = self._writer.bind(plan, params, binds=plan.counted.binds).values
                found = fetch(plan.counted.sql, values, user_sql=sql)
            if found is None:
                found = fetch(plan.sql, self._writer.bind(plan, params).values, user_sql=sql)
        return found

    def _rowset(self, plan: Plan, records: list[tuple[Any, ...]]) -> RowSet:
        return RowSet([c.name for c in plan.results], [c.type for c in plan.results], records, source=self._source)

    def _modify(self, sql: str, params: object) -> RowSet:
        with self._catalog.transaction(), self.typed_errors():
            plan = self.plan(sql)
            bound = self._writer.bind(plan, params)
            records, rowcount, lastrowid = self._run(plan, bound, params, sql)
        if plan.returning:
            return self._rowset(plan, records)
        return RowSet((), (), [], rowcount=rowcount, lastrowid=lastrowid, returns_rows=False)

    def _run(self, plan: Plan, bound: Bound, params: object, sql: str) -> tuple[list[tuple[Any, ...]], int, int | None]:
        """Records, rows changed, and the id of a single inserted row."""
        if not self._views.on_main:
            self._overlays.before(plan, lambda: self._writer.bind(plan, params, binds=plan.keys_binds).values, sql)
        cursor: Any = self._catalog.execute(plan.sql, bound.values, user_sql=sql)
        records = cursor.fetchall() if plan.returning else []
        rowcount = len(records) if plan.returning else cursor.rowcount
        lastrowid = cursor.lastrowid if plan.kind == "insert" and rowcount == 1 else None
        if not self._views.on_main:
            self._overlays.after(plan)
            self._references.settle(plan.target or "")
        self._writer.finish(bound, plan, rowcount=rowcount, lastrowid=lastrowid)
        return records, rowcount, lastrowid

    @contextmanager
    def typed_errors(self) -> Iterator[None]:
        """SQLite reports only that a function failed; the function kept the real error."""
        self._vectors.take_error()
        shims.take_error()
        try:
            yield
        except SQLError as error:
            kept = self._vectors.take_error() or shims.take_error()
            if kept is None:
                raise
            raise kept from error

    # -- bulk ------------------------------------------------------------------------------------------------------

    def insert_batch(self, table: Table, batch: Batch, first_row: int, validate: Validate) -> None:
        real = self._overlays.ensure(self._views.branch, table.name)
        columns, last = dict(batch.columns), self._last_rowid(table, real)
        key = self._integer_key(table)
        if key is not None and not any(str(name).lower() == key.lower() for name in columns):
            columns = {key: range(last + 1, last + 1 + batch.count), **columns}
        bulk = key is None or _all_above(columns, key, last)
        if bulk:  # the guards against REPLACE and the log's insert trigger have nothing to find: see history
            self._catalog.execute("UPDATE _dl_head SET bulk = 1")
        first = last if bulk else None
        self._writer.insert_columns(
            table, columns, batch.count, first_row=first_row, validate=validate, key=key, after_rowid=first
        )
        if bulk:
            history.log_bulk_insert(self._catalog, real, after_rowid=last)
            self._catalog.execute("UPDATE _dl_head SET bulk = 0")
        if real != table.name:
            self._overlays.return_ids(table.name)
            self._references.settle(table.name)

    def _last_rowid(self, table: Table, real: str) -> int:
        """The highest rowid in use or ever used, on main or the branch, so that new ids follow it."""
        row = self._catalog.fetchone(
            "SELECT max(coalesce((SELECT max(seq) FROM main.sqlite_sequence WHERE name IN (?, ?)), 0), "
            f"coalesce((SELECT max(rowid) FROM main.{quote_identifier(real)}), 0))",
            (table.name, real),
        )
        return int(row[0])

    def _integer_key(self, table: Table) -> str | None:
        """The key column that is SQLite's rowid, if there is one."""
        info = self._catalog.fetchall(f"PRAGMA main.table_info({quote_identifier(table.name)})")
        keys = [(name, declared) for _, name, declared, _, _, key in info if key]
        return keys[0][0] if len(keys) == 1 and keys[0][1].upper() == "INTEGER" else None

    def describe(self, table: Table) -> Description:
        from deeplake_loader.inspection import describe

        return describe(self._catalog, table, self._indexes.all())


def _all_above(columns: Mapping[str, Sequence[Any]], key: str, last: int) -> bool:
    values: Any = next(v for name, v in columns.items() if str(name).lower() == key.lower())
    if isinstance(values, range):
        return len(values) > 0 and min(values[0], values[-1]) > last
    if getattr(getattr(values, "dtype", None), "kind", "") in ("i", "u"):  # numpy, whose numbers are no int
        return len(values) > 0 and bool(values.min() > last)
    return len(values) > 0 and all(isinstance(v, int) and v > last for v in values)
