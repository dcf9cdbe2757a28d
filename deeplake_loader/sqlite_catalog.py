"""The embedded catalog: one SQLite file in the store's folder."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from deeplake_loader import authorizer, catalog_file, store
from deeplake_loader import catalog as shared
from deeplake_loader.catalog import Catalog, Parameters, Transaction, check_timeout, weakly
from deeplake_loader.driver_errors import DRIVER_ERRORS, translate_error
from deeplake_loader.errors import SQLError
from deeplake_loader.rows import rows_of
from deeplake_loader.storage import Access, open_root

_CHUNK = 256
"""Rows per step out of SQL, whose tuples Python makes again out of those of the step before."""


@dataclass(frozen=True, slots=True)
class FileLocation:
    """The folder of a store with a catalog of its own."""

    root: store.Root

    def open(self, *, create: bool = False, read_only: bool = False, timeout_s: float = 30.0) -> SqliteCatalog:
        """Its catalog."""
        return SqliteCatalog.open(self.root, create=create, read_only=read_only, timeout_s=timeout_s)

    def url(self) -> dict[str, Any]:
        return {"drivername": "deeplake", "database": self.root.folder}


class SqliteCatalog(Catalog):
    """One process's handle on ``<root>/catalog.sqlite``.

    >>> import tempfile
    >>> catalog = SqliteCatalog.open(tempfile.mkdtemp())
    >>> with catalog.transaction("first") as tx:
    ...     _ = catalog.execute("CREATE TABLE t (a INTEGER)")
    >>> catalog.head(), tx.seq
    (1, 1)
    """

    dialect = "sqlite"

    def _reset(self) -> None:
        super()._reset()
        self._changes_at_start = self._schema_at_start = 0
        self._keep_temporary = False
        self._checked = False
        self._refusal: str | None = None
        self._questions = 0

    @classmethod
    def open(
        cls,
        root: str | os.PathLike[str] | store.Root,
        *,
        storage: str | None = None,
        access: Access | None = None,
        create: bool = True,
        read_only: bool = False,
        timeout_s: float = 30.0,
    ) -> SqliteCatalog:
        """The catalog of the store in folder ``root``, made there when ``create`` and there is none.

        Args:
            storage: where the bytes lie, if not in that folder: see `storage.named`; a store remembers it.
            access: how that is reached.
            read_only: refuse every write; works on a read-only file system.
            timeout_s: how long a write waits for another writer before LockedError.

        Raises:
            InputError: ``storage`` is not where the store's bytes lie.
            NotFoundError: no store there and ``create`` is false.
            StoreError: the folder or file cannot be used, is no store, or was written by a newer release.
            CorruptionError: the catalog file is damaged.
        """
        check_timeout(timeout_s)
        known = root if isinstance(root, store.Root) else store.Root(os.path.abspath(os.fspath(root)))
        catalog = cls(known, read_only=read_only, timeout_s=timeout_s)
        try:
            make = create and not read_only
            catalog_file.prepare_folder(known, create=make)
            kept = catalog_file.prepare_tables(known, catalog.connection, create=make, storage=storage)
            if kept is not None and known.storage is None and not known.foreign:
                catalog.root = open_root(known.folder, kept, access)
        except BaseException:
            catalog.close()
            raise
        return catalog

    @property
    def name(self) -> str:
        if not self.root.foreign:
            return self.root.folder
        return self.root.base if self.root.storage is None else self.root.storage.url

    @property
    def location(self) -> FileLocation:
        return FileLocation(self.root)

    def _connect(self) -> sqlite3.Connection:
        connection = catalog_file.connect(self.root, read_only=self.read_only, timeout_s=self.timeout_s)
        connection.set_authorizer(weakly(self._authorize))
        return connection

    # -- statements ------------------------------------------------------------------------------------------------

    def _run(self, sql: str, params: Parameters, user_sql: str | None) -> sqlite3.Cursor:
        """The cursor of a statement, which SQLite checks against `authorizer` if it is a user's."""
        before, self._checked = self._checked, user_sql is not None  # a user's may call functions that read for us
        self._refusal = None
        try:  # the blank keeps a user's statement apart from our own of the same text, prepared unchecked
            cursor: sqlite3.Cursor = self.connection.execute(f"{sql} " if self._checked else sql, params)
        except DRIVER_ERRORS as error:
            if self._refusal is not None:
                raise SQLError(f"the statement is refused: {self._refusal}", sql=user_sql) from error
            raise translate_error(error, user_sql or sql) from error
        finally:
            self._checked = before
        return cursor

    def _authorize(
        self, action: int, first: str | None, second: str | None, _schema: str | None, within: str | None
    ) -> int:
        self._questions += 1
        refusal = authorizer.refusal(action, first, second, within) if self._checked else None
        if refusal is None:
            return sqlite3.SQLITE_OK
        self._refusal = refusal
        return sqlite3.SQLITE_DENY

    def execute(self, sql: str, params: Parameters = (), *, user_sql: str | None = None) -> sqlite3.Cursor:
        with self._guard():
            return self._run(sql, params, user_sql)

    def executemany(self, sql: str, rows: Iterable[Parameters], *, user_sql: str | None = None) -> sqlite3.Cursor:
        with self._guard():
            try:
                cursor: sqlite3.Cursor = self.connection.executemany(sql, rows)
            except DRIVER_ERRORS as error:
                raise translate_error(error, user_sql or sql) from error
            return cursor

    def fetchall(self, sql: str, params: Parameters = (), *, user_sql: str | None = None) -> list[Any]:
        with self._guard():
            try:
                return self._run(sql, params, user_sql).fetchall()
            except DRIVER_ERRORS as error:
                raise translate_error(error, user_sql or sql) from error

    def read(self, sql: str, params: Parameters, make: Callable[[Any], Any], *, schema: int) -> list[Any] | None:
        """The rows of one SELECT of the user's, each as ``make`` gives it: one statement is a snapshot by itself.

        None where a snapshot is open already, or the schema is not number ``schema`` any more. SQLite compiles a
        prepared statement again once the schema has changed, and asks the authorizer whenever it compiles; so the
        number, which costs as much as a small query, is looked at only after a question.
        """
        with self._lock:
            if self._snapshots:
                return None
            before, self._snapshots = self._questions, 1  # NOW() is one value
            try:
                cursor = self._run(sql, params, sql)
                rows = rows_of(make, cursor.fetchmany(_CHUNK))
                while len(rows) % _CHUNK == 0 and (more := cursor.fetchmany(_CHUNK)):
                    rows += rows_of(make, more)
            except DRIVER_ERRORS as error:
                raise translate_error(error, sql) from error
            finally:
                self._snapshots, self._snapshot_clock = 0, None
            return rows if self._questions == before or self.schema_version() == schema else None

    def chunks(
        self, sql: str, params: Parameters = (), *, size: int, user_sql: str | None = None
    ) -> Iterator[list[Any]]:
        with self._guard():
            try:
                cursor = self._run(sql, params, user_sql)
                while rows := cursor.fetchmany(size):
                    yield rows
            except DRIVER_ERRORS as error:
                raise translate_error(error, user_sql or sql) from error

    def fetchone(self, sql: str, params: Parameters = ()) -> Any:
        with self._guard():
            try:
                cursor = self._run(sql, params, None)
                row: Any = cursor.fetchone()
                cursor.close()
            except DRIVER_ERRORS as error:
                raise translate_error(error, sql) from error
            return row

    def one_of(self, expression: str, values: Sequence[int] | Sequence[str]) -> tuple[str, tuple[object, ...]]:
        return f"{expression} IN (SELECT value FROM json_each(?))", (json.dumps(values),)

    def has_own(self, table: str) -> bool:
        return self.fetchone("SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND name = ?", (table,)) is not None

    # -- transactions ----------------------------------------------------------------------------------------------

    def _start_writing(self) -> None:
        self.execute("BEGIN IMMEDIATE")
        self._changes_at_start = self.connection.total_changes
        self._schema_at_start = self.schema_version()

    def _is_open(self) -> bool:
        return bool(self.connection.in_transaction)

    def _undo(self) -> None:
        with suppress(sqlite3.Error):
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")

    def _record(self, tx: Transaction) -> None:
        changed = self.connection.total_changes != self._changes_at_start
        if not changed and tx.message is None and self.schema_version() == self._schema_at_start:
            return
        tx.seq = self._number(tx.id, tx.branch, tx.message)

    def _number(self, commit: str, branch: int, message: str | None) -> int:
        seq = self.head() + 1
        row = (seq, commit, self.now(), catalog_file.author(), message, branch)
        self.execute(
            "INSERT INTO _dl_commits (seq, id, created_at, author, message, branch) VALUES (?, ?, ?, ?, ?, ?)", row
        )
        return seq

    def seal(self, branch: int, message: str | None = None) -> int:
        seq = self._number(os.urandom(16).hex(), branch, message)
        self._changes_at_start = self.connection.total_changes
        return seq

    def number_commit(self) -> int:
        return self.head() + 1

    def _commit(self, tx: Transaction) -> None:
        try:
            self.connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._unclear(tx, error)
            if tx.seq is None:
                raise translate_error(error) from error
        else:
            self._finish(committed=True)

    def _settle(self) -> None:
        """Makes the outcome of a failed COMMIT certain.

        A COMMIT whose fsync failed leaves whole frames in the write-ahead log that a later recovery could still take
        for a commit. One more durable write overwrites them; only then may a participant cut its files.
        """
        tx = self._unsettled
        if tx is None:
            return
        self.execute("INSERT OR REPLACE INTO _dl_meta VALUES ('settled', ?)", (tx.id,))
        self._unsettled = None
        query = "SELECT 1 FROM _dl_commits WHERE seq = ? AND id = ?"  # its number was its own while it held the lock
        committed = self.fetchone(query, (tx.seq, tx.id)) is not None
        if not committed:
            tx.seq = None
        self._finish(committed=committed)

    def _start_reading(self) -> int:
        self.execute("BEGIN")
        try:
            return self.head()
        except BaseException:
            self._undo()
            raise

    def _stop_reading(self) -> None:
        """It only read: ROLLBACK is the cheapest way out and never fails halfway; COMMIT keeps TEMP tables."""
        kept, self._keep_temporary = self._keep_temporary, False
        with suppress(sqlite3.Error):
            if kept and self.connection.in_transaction:
                self.connection.execute("COMMIT")
        self._undo()

    @contextmanager
    def private(self) -> Iterator[None]:
        before = self.connection.total_changes
        try:
            yield
            self._keep_temporary = self._keep_temporary or self._snapshots > 0
        except BaseException:
            self._keep_temporary = False
            raise
        finally:
            self._changes_at_start += self.connection.total_changes - before

    @contextmanager
    def without_foreign_keys(self) -> Iterator[None]:
        """SQLite neither checks foreign keys nor runs their actions in transactions of the block, on this handle."""
        with self._guard():
            self.execute("PRAGMA foreign_keys = OFF")  # SQLite ignores it inside a transaction
            try:
                yield
            finally:
                self.execute("PRAGMA foreign_keys = ON")

    def schema_version(self) -> int:
        """SQLite's own counter of schema changes."""
        with self._guard():
            try:
                return int(self.connection.execute("PRAGMA schema_version").fetchone()[0])
            except DRIVER_ERRORS as error:
                raise translate_error(error) from error

    def changes(self) -> tuple[int, int]:
        with self._guard():
            version = self.connection.execute("PRAGMA data_version").fetchone()[0]
            return version, self.connection.total_changes

    def _save_plans(self, plans: Sequence[tuple[str, int, str]]) -> None:
        # A lost plan is compiled again, so it is worth neither an fsync nor a wait for another writer.
        with suppress(sqlite3.Error):
            self.connection.execute("PRAGMA synchronous = NORMAL")
            self.connection.execute("PRAGMA busy_timeout = 0")
            self.connection.executemany("INSERT OR REPLACE INTO _dl_plans (text, schema, plan) VALUES (?, ?, ?)", plans)
            newest = "SELECT max(number) FROM _dl_plans"
            self.connection.execute(f"DELETE FROM _dl_plans WHERE number <= ({newest}) - ?", (shared.MAX_PLANS,))
        with suppress(sqlite3.Error):
            self.connection.execute("PRAGMA synchronous = FULL")
            self.connection.execute(f"PRAGMA busy_timeout = {round(self.timeout_s * 1000)}")
