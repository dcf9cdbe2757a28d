"""The shared catalog: a PostgreSQL database beside a folder of shards.

Writers do not wait for each other: a transaction is READ COMMITTED, as psql's, and commit numbers come from a sequence,
so they are names and no order. A snapshot is REPEATABLE READ. A connection that was lost outside of a transaction is
made anew without a word; inside one the transaction is over, and nothing of it was kept. When the answer to COMMIT is
lost, the outcome is settled on a new connection: first by the transaction's own number (an old backend that still holds
it is ended), then by looking for the commit's id.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from deeplake_loader import catalog as shared
from deeplake_loader import catalog_file, ownership, store
from deeplake_loader.catalog import Catalog, Parameters, Transaction, check_timeout
from deeplake_loader.errors import DeeplakeError, InputError, LockedError, StoreError
from deeplake_loader.postgres import bookkeeping
from deeplake_loader.postgres.connection import Address, Connection
from deeplake_loader.postgres.failures import Place, is_lost, placed, translate_error, wants_retry
from deeplake_loader.storage import Access, named, open_root

R = TypeVar("R")
PgCursor = psycopg.Cursor[tuple[Any, ...]]

DRIVER_ERRORS = (psycopg.Error, OverflowError, UnicodeEncodeError)
"""What the driver raises for a statement or a value that it cannot take."""

_TOKEN = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|%|\?")
_GRACE_S = 0.2  # a backend that has COMMIT in its hands needs no longer; one that waits for it would wait for ever
_ATTEMPTS = 5  # of a transaction that the database asks to be run again


@dataclass(frozen=True, slots=True)
class PostgresLocation:
    """A database and the folder of the bytes."""

    address: Address
    root: store.Root

    def open(self, *, create: bool = False, read_only: bool = False, timeout_s: float = 30.0) -> PostgresCatalog:
        """Its catalog."""
        return PostgresCatalog.open(
            self.address, root=self.root, create=create, read_only=read_only, timeout_s=timeout_s
        )

    def url(self) -> dict[str, Any]:
        return {"drivername": "deeplake+postgresql", **self.address.url()}


@lru_cache(maxsize=2_000)
def native(sql: str) -> str:
    """A statement of our own with ``?`` for values as psycopg takes it.

    >>> native("SELECT '?', a % 2 FROM t WHERE b = ?")
    "SELECT '?', a %% 2 FROM t WHERE b = %s"
    """
    return _TOKEN.sub(lambda m: {"?": "%s", "%": "%%"}.get(m[0], m[0].replace("%", "%%")), sql)


class PostgresCatalog(Catalog):
    """One process's handle on the catalog of a store in a database.

    ``native=True`` marks statements that have psycopg's own placeholders.
    """

    dialect = "postgres"
    row_lock = " FOR UPDATE SKIP LOCKED"

    def __init__(self, address: Address, root: store.Root, *, read_only: bool, timeout_s: float) -> None:
        self.address = address
        self.path: tuple[str, ...] = ()
        self._reading = "READ ONLY"
        super().__init__(root, read_only=read_only, timeout_s=timeout_s)

    def _reset(self) -> None:
        super()._reset()
        self._schema: int | None = None  # within a block
        self._prepared_for = -1
        self._writes = 0
        self._sealed_at: int | None = None
        self._xid: str | None = None
        self.block = 0
        """Counts transactions and snapshots."""

    @classmethod
    def open(
        cls, url: str | Address, *, storage: str | os.PathLike[str] | None = None, access: Access | None = None,
        root: store.Root | None = None, create: bool = True, read_only: bool = False, timeout_s: float = 30.0,
    ) -> PostgresCatalog:  # fmt: skip
        """The catalog of the store in a database, made there when ``create`` and there is none.

        Args:
            url: ``postgresql://user:password@host:port/database``, with libpq's parameters and ``schema=`` for a main
                branch elsewhere than in ``public``.
            storage: the folder or url of shards and vectors; a store remembers it.
            access: how a url is reached.
            root: the same, opened before.
            read_only: refuse every write; a role that may only read needs it.
            timeout_s: how long a connection, and a write for another writer, is waited for.

        Raises:
            InputError: an unreadable URL, a new store without ``storage``, or one whose bytes lie elsewhere.
            NotFoundError: no such database, or no store there and ``create`` is false.
            StoreError: the server cannot be reached or refuses the role, or the store's format is newer.
        """
        check_timeout(timeout_s)
        address = url if isinstance(url, Address) else Address.parse(url)
        place = None if storage is None else named(storage)
        connection = address.dial(read_only=read_only, timeout_s=timeout_s)
        try:
            kept = bookkeeping.prepare(connection, address, place, create=create and not read_only)
            root = root or open_root(None, kept.storage, access)
            if create and not read_only:
                with store.file_errors("make the store's folder", root.base):
                    store.make_folder(root.base)
            catalog = cls(address, root, read_only=read_only, timeout_s=timeout_s)
            catalog._connection = connection
            catalog._remember(kept, place, access)
        except psycopg.Error as error:
            connection.close()
            raise translate_error(error) from None
        except BaseException:
            connection.close()
            raise
        return catalog

    def _remember(
        self, kept: bookkeeping.Kept, storage: str | None, access: Access | None, *, default: str | None = None
    ) -> None:
        """Makes the storage of a new store its own, now that it could be opened; until then it has none."""
        if kept.remembered:
            return
        ownership.check_options(self.root, access)
        ownership.claim(self, kept.storage)
        found = bookkeeping.prepare(self.connection, self.address, storage, create=False, default=default)
        if found.storage != kept.storage:
            raise InputError(f"another process just made {self.name} with its bytes in {found.storage}; connect again")

    @property
    def name(self) -> str:
        return self.address.shown

    @property
    def location(self) -> PostgresLocation:
        return PostgresLocation(self.address, self.root)

    # -- connection ------------------------------------------------------------------------------------------------

    def _connect(self) -> Connection:
        return self.address.dial(read_only=self.read_only, timeout_s=self.timeout_s, path=self.path)

    def set_path(self, *schemas: str) -> None:
        """Schemas that names are looked for in before main's, from now on: those of a branch."""
        self.path = schemas
        if self._connection is not None:
            self.execute("SELECT set_config('search_path', ?, false)", (self.address.search_path(schemas),))

    def _ready(self) -> Connection:
        """The connection; outside of a block a lost one is replaced."""
        found: Connection | None = self._connection
        outside = self._transaction is None and not self._snapshots
        if found is not None and outside and (found.closed or found.broken):
            self._drop()
        connection: Connection = self.connection
        return connection

    def _drop(self) -> None:
        lost, self._connection = self._connection, None
        self._prepared_for = -1
        with suppress(psycopg.Error):
            lost.close()

    def _failed(self, error: Exception, sql: str | None) -> DeeplakeError:
        connection: Connection | None = self._connection
        return translate_error(error, sql, lost=connection is not None and is_lost(error, connection))

    def _again(self, ask: Callable[[Connection], R]) -> R:
        """What a question without consequences gives: outside of a block asked again when the connection is lost."""
        outside = self._transaction is None and not self._snapshots
        try:
            return ask(self._ready())
        except psycopg.Error as error:
            if not outside or self._connection is None or not is_lost(error, self._connection):
                raise
            return ask(self._ready())

    # -- statements ------------------------------------------------------------------------------------------------

    def execute(
        self, sql: str, params: Parameters = (), *, user_sql: str | None = None, native: bool = False
    ) -> PgCursor:
        with self._guard():
            try:
                cursor = self._ready().execute(_text(sql, native), params)
            except DRIVER_ERRORS as error:
                raise self._failed(error, user_sql or sql) from error
            return self._counted(cursor)

    def executemany(
        self, sql: str, rows: Iterable[Parameters], *, user_sql: str | None = None, native: bool = False
    ) -> PgCursor:
        with self._guard():
            try:
                cursor = self._ready().cursor()
                cursor.executemany(_text(sql, native), rows)
            except DRIVER_ERRORS as error:
                raise self._failed(error, user_sql or sql) from error
            self._writes += 1
            return cursor

    def fetchall(
        self, sql: str, params: Parameters = (), *, user_sql: str | None = None, native: bool = False
    ) -> list[Any]:
        with self._guard():
            try:
                text = _text(sql, native)
                return self._again(lambda connection: self._counted(connection.execute(text, params)).fetchall())
            except DRIVER_ERRORS as error:
                raise self._failed(error, user_sql or sql) from error

    def fetchone(self, sql: str, params: Parameters = (), *, native: bool = False) -> Any:
        with self._guard():
            try:
                text = _text(sql, native)
                return self._again(lambda connection: self._counted(connection.execute(text, params)).fetchone())
            except DRIVER_ERRORS as error:
                raise self._failed(error, sql) from error

    def chunks(
        self, sql: str, params: Parameters = (), *, size: int, user_sql: str | None = None, native: bool = False
    ) -> Iterator[list[Any]]:
        """Within a snapshot or a transaction the server keeps the rows until they are taken."""
        with self._guard():
            inside = self._transaction is not None or self._snapshots
            try:
                connection = self._ready()
                cursor: Any = connection.cursor("_dl_rows") if inside else connection.cursor()
                with cursor:
                    cursor.execute(_text(sql, native), params)
                    while rows := cursor.fetchmany(size):
                        yield rows
            except DRIVER_ERRORS as error:
                raise self._failed(error, user_sql or sql) from error

    def raw(
        self, sql: str, params: Sequence[Any] = (), *, user_sql: str, place: Place, binary: bool = False,
        question: bool = False,
    ) -> psycopg.RawCursor[tuple[Any, ...]]:  # fmt: skip
        """The cursor of a statement of the user's, whose values are ``$1``, ``$2``.

        Args:
            place: gives for a position in ``sql`` the one in ``user_sql``, which errors name.
            binary: results in PostgreSQL's binary format.
            question: it changes nothing, so that it may be asked again when the connection is lost.
        """

        def ask(connection: Connection) -> psycopg.RawCursor[tuple[Any, ...]]:
            cursor = psycopg.RawCursor(connection)
            cursor.execute(sql, params or None, binary=binary)
            return cursor

        with self._guard():
            try:
                cursor = self._again(ask) if question else ask(self._ready())
            except DRIVER_ERRORS as error:
                raise self._failed(placed(error, place), user_sql) from error
            if not question:
                self._counted(cursor)
            return cursor

    def raw_many(self, sql: str, rows: Sequence[Sequence[Any]], *, user_sql: str, place: Place) -> int:
        """The number of rows that a statement of the user's changed for all the rows of values, sent in one go."""
        with self._guard():
            try:
                cursor = psycopg.RawCursor(self._ready())
                cursor.executemany(sql, rows)
            except DRIVER_ERRORS as error:
                raise self._failed(placed(error, place), user_sql) from error
            self._writes += 1
            return max(cursor.rowcount, 0)

    def copy_in(self, sql: str, messages: Iterable[bytes]) -> None:
        """Runs COPY ... FROM STDIN with these bytes."""
        with self._guard():
            try:
                with self._ready().cursor().copy(sql) as copy:
                    for message in messages:
                        copy.write(message)
            except DRIVER_ERRORS as error:
                raise self._failed(error, None) from error
            self._writes += 1

    def one_of(self, expression: str, values: Sequence[int] | Sequence[str]) -> tuple[str, tuple[object, ...]]:
        kind = "text" if values and isinstance(values[0], str) else "bigint"
        return f"{expression} = ANY(?::{kind}[])", (list(values),)

    def declare(self, statement: str) -> None:
        self.fetchone("SELECT pg_advisory_xact_lock(hashtext('deeplake_loader'), 0)")  # two at once would collide
        self.execute(bookkeeping.declaration(statement, self.address.bookkeeping))

    def line_up(self, what: str) -> None:
        name = f"{self.address.bookkeeping}.{what}"
        self.fetchone("SELECT pg_advisory_xact_lock(hashtextextended(?, 2))", (name,))

    def has_own(self, table: str) -> bool:
        return self.fetchone(bookkeeping.HAS_TABLE, (self.address.bookkeeping, table), native=True) is not None

    def _counted(self, cursor: PgCursor) -> PgCursor:
        if not (cursor.statusmessage or "").startswith(("SELECT", "SHOW", "FETCH", "SAVEPOINT", "RELEASE", "ROLLBACK")):
            self._writes += 1
        return cursor

    def retry(self, work: Callable[[], R]) -> R:
        """What ``work`` gives; outside of a transaction run again when the database asks for it (a deadlock, or a row
        that another transaction changed first)."""
        if self._transaction is not None or self._snapshots:
            return work()
        for attempt in range(1, _ATTEMPTS):
            try:
                return work()
            except LockedError as error:
                if not wants_retry(error.__cause__):
                    raise
            time.sleep(random.uniform(0, 0.01 * 2**attempt))
        return work()

    # -- transactions ----------------------------------------------------------------------------------------------

    def _status(self) -> TransactionStatus:
        connection: Connection | None = self._connection
        return TransactionStatus.UNKNOWN if connection is None else connection.info.transaction_status

    def _start_writing(self) -> None:
        self._open_block("BEGIN ISOLATION LEVEL READ COMMITTED")
        self._sealed_at = self._xid = None

    def _start_reading(self) -> int:
        return self._open_block(f"BEGIN ISOLATION LEVEL REPEATABLE READ {self._reading}")

    def make_views_while_reading(self) -> None:
        """From now on a block of reads may make TEMP views, which go with it."""
        self._reading = "READ WRITE"

    def _open_block(self, begin: str) -> int:
        """The newest commit, with the schema's number: one question for all three, half of what a small query costs."""
        text = f"{begin}; SELECT schema, (SELECT coalesce(max(seq), 0) FROM _dl_commits) FROM _dl_head"
        try:
            cursor = self._again(lambda connection: connection.execute(text))
            cursor.nextset()
            row = cursor.fetchone()
        except DRIVER_ERRORS as error:
            failed = self._failed(error, None)
            self._undo()
            raise failed from error
        if row is None:
            self._undo()
            raise StoreError(f"the store in {self.name} has lost its bookkeeping; restore its catalog from a copy")
        self._schema = int(row[0])
        self.block += 1
        if self._schema != self._prepared_for:  # a prepared SELECT * fails once its columns have changed
            if self._prepared_for >= 0:
                # psycopg looks at what a statement did to its prepared ones only when the text is new to it
                self.execute(f"DEALLOCATE ALL -- schema {self._schema}")
            self._prepared_for = self._schema
        return int(row[1])

    def forget_prepared(self) -> None:
        """The next block begins without the statements that were prepared so far."""
        self._prepared_for = 0

    def _is_open(self) -> bool:
        return self._status() in (TransactionStatus.INTRANS, TransactionStatus.ACTIVE)

    def _stands(self) -> bool:
        return self._is_open() or self._status() == TransactionStatus.INERROR

    def _undo(self) -> None:
        self._schema = None
        connection: Connection | None = self._connection
        if connection is not None and self._stands():
            with suppress(psycopg.Error):
                connection.execute("ROLLBACK")

    def _stop_reading(self) -> None:
        self._undo()

    @contextmanager
    def _reading_inside(self) -> Iterator[None]:
        """A query that fails takes back only itself, as on SQLite: PostgreSQL would give the transaction up."""
        if self._snapshots > 1 or self._transaction is None:
            yield
            return
        name = f"_dl_read_{self._depth}"
        self.execute(f"SAVEPOINT {name}")
        try:
            yield
        except BaseException:
            if self._stands():
                self._back_to(name)
            raise
        self.execute(f"RELEASE {name}")

    def _back_to(self, savepoint: str) -> None:
        super()._back_to(savepoint)
        self._sealed_at = None  # what was sealed since the savepoint is gone

    def number_commit(self) -> int:
        tx = self._transaction
        if tx is None:
            raise StoreError("no transaction is open that could be numbered")
        row = self._number(tx.id, tx.branch, tx.message, whatever=True)
        if row is None:
            raise StoreError(f"the store in {self.name} took no commit; run the transaction again")
        tx.seq, self._xid = row
        return row[0]

    def _record(self, tx: Transaction) -> None:
        if tx.seq is not None:
            return
        if self._sealed_at is not None and self._writes == self._sealed_at and tx.message is None:
            return
        row = self._number(tx.id, tx.branch, tx.message, whatever=tx.message is not None)
        if row is not None:
            tx.seq, self._xid = row

    def _number(self, commit: str, branch: int, message: str | None, *, whatever: bool) -> tuple[int, str] | None:
        """The commit's number and the transaction's; None where nothing was changed, unless ``whatever``."""
        row = self.fetchone(
            "INSERT INTO _dl_commits (id, created_at, author, message, branch, snapshot, xid) "
            "SELECT ?, ?, ?, ?, ?, pg_current_snapshot()::text, pg_current_xact_id() "
            "WHERE ? OR pg_current_xact_id_if_assigned() IS NOT NULL RETURNING seq, xid::text",
            (commit, self.now(), catalog_file.author(), message, branch, whatever),
        )
        return None if row is None else (int(row[0]), str(row[1]))

    def seal(self, branch: int, message: str | None = None) -> int:
        row = self._number(os.urandom(16).hex(), branch, message, whatever=True)
        if row is None:
            raise StoreError(f"the store in {self.name} took no commit; run the transaction again")
        self._sealed_at = self._writes
        return row[0]

    def _commit(self, tx: Transaction) -> None:
        self._schema = None
        connection: Connection = self.connection
        try:
            connection.execute("COMMIT")
        except psycopg.Error as error:
            if not is_lost(error, connection):
                self._transaction = None
                self._undo()
                self._finish(committed=False)
                raise translate_error(error) from error
            self._unclear(tx, error)
            if tx.seq is None:
                raise translate_error(error, lost=True) from error
        else:
            self._finish(committed=True)

    def _settle(self) -> None:
        """Makes the outcome of a COMMIT whose answer was lost certain.

        The old backend may still be about to commit, or wait for a COMMIT that never reached it: its transaction's
        number tells, and after a moment of grace the backend is ended. Then the commit's row is there or never will be.
        """
        tx = self._unsettled
        if tx is None:
            return
        if tx.seq is not None:
            deadline = time.monotonic() + max(self.timeout_s, 1.0)
            self._wait_for_end(self._xid or "0", deadline)
            if self.fetchone("SELECT 1 FROM _dl_commits WHERE id = ?", (tx.id,)) is None:
                tx.seq = None
        self._unsettled = None
        self._finish(committed=tx.seq is not None)

    def _wait_for_end(self, xid: str, deadline: float) -> None:
        ask = "SELECT pg_xact_status(?::xid8)"
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_xid = ?::xid8::xid"
        patient_until = time.monotonic() + _GRACE_S
        while self.fetchone(ask, (xid,))[0] == "in progress":
            if time.monotonic() > deadline:
                raise StoreError(f"transaction {xid} on {self.name} has not ended yet")
            if time.monotonic() > patient_until:
                self.fetchone(end, (xid,))
            time.sleep(0.02)

    @contextmanager
    def private(self) -> Iterator[None]:
        """PostgreSQL keeps a TEMP table's rows with its transaction, so there is nothing to count or to keep."""
        yield

    # -- what changed ----------------------------------------------------------------------------------------------

    def schema_version(self) -> int:
        """A counter in the database, raised by every change of a table through this package; read once in a block."""
        if self._schema is not None:
            return self._schema
        return int(self.fetchone("SELECT schema FROM _dl_head")[0])

    def _schema_changed(self) -> None:
        super()._schema_changed()
        row = self.fetchone("UPDATE _dl_head SET schema = schema + 1 RETURNING schema")
        self._schema = int(row[0]) if self._transaction is not None else None
        self._writes += 1

    def changes(self) -> tuple[int, int]:
        """The server's snapshot as a number of this process: any commit in the cluster changes it."""
        row = self.fetchone("SELECT pg_current_snapshot()::text")
        return hash(row[0]), self._writes

    def _save_plans(self, plans: Sequence[tuple[str, int, str]]) -> None:
        # A lost plan is compiled again, so it is worth no wait for the disk.
        insert = "INSERT INTO _dl_plans (text, schema, plan) VALUES (?, ?, ?) ON CONFLICT (text, schema) DO NOTHING"
        forget = "DELETE FROM _dl_plans WHERE number <= (SELECT max(number) FROM _dl_plans) - ?"
        with suppress(psycopg.Error):
            connection = self._ready()
            with connection.transaction():
                connection.execute("SET LOCAL synchronous_commit = off")
                connection.execute("SET LOCAL lock_timeout = 100")
                connection.cursor().executemany(_text(insert, False), plans)
                connection.execute(_text(forget, False), (shared.MAX_PLANS,))


def _text(sql: str, is_native: bool) -> Any:
    return sql if is_native else native(sql)
