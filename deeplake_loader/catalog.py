"""The catalog: the database whose transaction is the store's only commit point. Here is what both databases share.

A transaction may have participants (the shards, the vectors) that keep bytes outside the database. When the outermost
transaction ends, each makes its bytes durable (``prepare``), then the commit row and the user's rows are committed by
one COMMIT, then each is told ``committed``; any failure before that rolls back both sides. A commit carries a
client-made id: when COMMIT itself reports an error, the outcome is settled by looking for that id, and until it is
settled no participant touches a file.

    BEGIN -> statements -> prepare() -> _dl_commits -> COMMIT -> committed()
                     '--- any exception: ROLLBACK -> rolled_back()

Statements of our own are written in the part of SQL that SQLite and PostgreSQL share, with ``?`` for values.
"""

from __future__ import annotations

import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypeVar

from deeplake_loader import store
from deeplake_loader.catalog_file import utc_now
from deeplake_loader.errors import DeeplakeError, InputError, LockedError, StoreError
from deeplake_loader.types import Table

if TYPE_CHECKING:
    from deeplake_loader.history import History

MAX_TIMEOUT_S = 1_000_000  # SQLite counts milliseconds in 31 bits
MAX_PLANS = 2_000
MAX_PLAN_TEXT = 100_000  # a longer statement is one of a kind: caching it would only fill the catalog

P = ParamSpec("P")
R = TypeVar("R")

Parameters = Sequence[Any] | Mapping[str, Any]
Hook = Callable[[Any], object]
Dialect = Literal["sqlite", "postgres"]


class Cursor(Protocol):
    """What a statement gives: its rows, how many it changed, and its columns."""

    @property
    def rowcount(self) -> int: ...
    @property
    def description(self) -> Any: ...
    def fetchone(self) -> Any: ...
    def fetchmany(self, size: int = ..., /) -> list[Any]: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...


class Location(Protocol):
    """Where a catalog is: small, picklable, without a password in its repr; another process opens the catalog by it."""

    @property
    def root(self) -> store.Root: ...
    def open(self, *, create: bool = False, read_only: bool = False, timeout_s: float = 30.0) -> Catalog: ...
    def url(self) -> dict[str, Any]:
        """The parts of the url by which SQLAlchemy's dialect knows the store, without a password."""


def weakly(method: Callable[P, R]) -> Callable[P, R]:
    """The bound method for the database to call, without holding its object: the garbage collector cannot look into
    what a connection holds, so a handle that was dropped without ``close()`` would keep files and locks for ever."""
    reference = weakref.WeakMethod(method)

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        found = reference()
        if found is None:
            raise StoreError("the store's handle is gone; connect again")
        return found(*args, **kwargs)

    return call


class Participant:
    """Somebody who keeps bytes outside the database and takes part in its transactions; the hooks do nothing by
    default.

    ``savepoint`` gives a token for the present state; ``rollback_to`` gets it back when the nested block failed.
    ``prepare`` runs before the commit, may still run SQL, and must leave every byte durable that the rows point at.
    ``committed`` and ``rolled_back`` run after the outcome is certain, and must not raise. ``forked`` runs in a child
    process: forget handles, touch nothing.
    """

    def savepoint(self) -> object:
        return None

    def rollback_to(self, token: object) -> None:
        """Forget what was done since ``token``; the database has rolled back its part already."""

    def prepare(self) -> None:
        """Make the transaction's bytes durable."""

    def committed(self) -> None:
        """The transaction is durable."""

    def rolled_back(self) -> None:
        """The transaction left nothing in the database: take back its bytes."""

    def forked(self) -> None:
        """This is a child process: the parent's handles and locks are not ours."""


@dataclass(slots=True)
class Transaction:
    """One outermost transaction: ``id`` of its commit, ``clock`` (UTC text, also NOW()), ``message`` (may be set until
    it ends), ``branch`` the commit is recorded for (may be set, too) and, once committed, ``seq``: the commit's number,
    None when there was nothing to commit."""

    id: str
    clock: str
    message: str | None = None
    seq: int | None = None
    branch: int = 1


class _Guard:
    """Lets one thread at a time in, again and again; a class, since a statement enters a dozen times and a generator
    would cost it 20 us. A forked child gets a new one while its parent's blocks unwind."""

    __slots__ = ("_lock", "_name", "_timeout_s")

    def __init__(self, name: str, timeout_s: float) -> None:
        self._lock, self._name, self._timeout_s = threading.RLock(), name, timeout_s

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=self._timeout_s):
            raise LockedError(
                f"another thread's transaction on {self._name} did not end within {self._timeout_s} s; "
                "end it, or open a handle of its own for this thread"
            )

    def __exit__(self, *_: object) -> None:
        try:
            self._lock.release()
        except RuntimeError:
            raise InputError(
                f"a transaction on {self._name} was left in another thread than it was entered in; keep it in one"
            ) from None


def check_timeout(timeout_s: object) -> None:
    """InputError unless it is a number of seconds that both databases can count."""
    if not isinstance(timeout_s, int | float) or not 0 <= timeout_s <= MAX_TIMEOUT_S:
        raise InputError(f"timeout_s must be a number of seconds from 0 to {MAX_TIMEOUT_S}, got {timeout_s!r}")


class Catalog(ABC):
    """One process's handle on the catalog of a store; threads may share it, a forked child reconnects by itself.

    `sqlite_catalog.SqliteCatalog` and `postgres.catalog.PostgresCatalog` are the two.
    """

    dialect: Dialect
    row_lock = ""
    """Ends a SELECT whose rows this transaction must have alone, and goes without those that it cannot; empty where
    writers wait for each other anyway."""
    history: History
    """Shapes of tables, undo logs and rows at any point; set by whoever puts a handle together."""

    def __init__(self, root: store.Root, *, read_only: bool, timeout_s: float) -> None:
        self.root = root
        self.read_only = read_only
        self.timeout_s = timeout_s
        self.branch = 1
        self.participants: list[Participant] = []
        self._hooks: list[Hook] = []
        self._connection: Any = None
        self._closed = False
        self._reset()
        _catalogs.add(self)

    def _reset(self) -> None:
        self._lock = _Guard(self.name, self.timeout_s)
        self._transaction: Transaction | None = None
        self._unsettled: Transaction | None = None
        self._depth = 0
        self._snapshots = 0
        self._snapshot_clock: str | None = None
        self._tables: tuple[int, Mapping[str, Table]] | None = None
        self._plans: dict[tuple[str, int], str] = {}
        self._unsaved_plans: list[tuple[str, int, str]] = []

    # -- what each database does in its own way ----------------------------------------------------------------------

    @property
    @abstractmethod
    def name(self) -> str:
        """The store as errors and reprs name it, without a password."""

    @property
    @abstractmethod
    def location(self) -> Location:
        """What another process needs to open the catalog."""

    @abstractmethod
    def _connect(self) -> Any:
        """A new connection of the driver."""

    @abstractmethod
    def execute(self, sql: str, params: Parameters = (), *, user_sql: str | None = None) -> Cursor:
        """The cursor of one statement; errors become this package's own and quote ``user_sql`` (else ``sql``)."""

    @abstractmethod
    def executemany(self, sql: str, rows: Iterable[Parameters], *, user_sql: str | None = None) -> Cursor:
        """The cursor of one statement run for every row of parameters."""

    @abstractmethod
    def fetchall(self, sql: str, params: Parameters = (), *, user_sql: str | None = None) -> list[Any]:
        """Every row of one statement; the way to read that other threads cannot come between."""

    @abstractmethod
    def chunks(
        self, sql: str, params: Parameters = (), *, size: int, user_sql: str | None = None
    ) -> Iterator[list[Any]]:
        """The rows of one statement, ``size`` at a time; other threads wait until the last one was taken."""

    @abstractmethod
    def fetchone(self, sql: str, params: Parameters = ()) -> Any:
        """The first row of one statement, or None."""

    @abstractmethod
    def one_of(self, expression: str, values: Sequence[int] | Sequence[str]) -> tuple[str, tuple[object, ...]]:
        """A condition, and its one parameter, that holds where ``expression`` is one of the values, however many."""

    def declare(self, statement: str) -> None:
        """Runs a CREATE of one of our own tables, written for SQLite: ``CREATE TABLE IF NOT EXISTS _dl_x (...)``."""
        self.execute(statement)

    def line_up(self, what: str) -> None:  # noqa: B027 SQLite lets nobody else write in the meantime
        """Waits until no other transaction that has called this with the same text is open; what is read from then on
        is what they wrote."""

    @abstractmethod
    def has_own(self, table: str) -> bool:
        """Whether there is a table of that name among the store's own."""

    @abstractmethod
    def schema_version(self) -> int:
        """A number that every change of the schema changes."""

    @abstractmethod
    def changes(self) -> tuple[int, int]:
        """A number that other connections' commits change, and one that this connection's own writes change."""

    @abstractmethod
    def private(self) -> AbstractContextManager[None]:
        """Changes to TEMP tables only: they make no commit, and outlive a snapshot."""

    def without_foreign_keys(self) -> AbstractContextManager[None]:
        """Foreign keys neither checked nor acted on in transactions of the block, where the database can do that only
        for a whole connection."""
        return nullcontext()

    @abstractmethod
    def _start_writing(self) -> None:
        """Begins the database's transaction."""

    @abstractmethod
    def _is_open(self) -> bool:
        """Whether the database's transaction still stands."""

    def _stands(self) -> bool:
        """Whether a savepoint of the database's transaction can be gone back to."""
        return self._is_open()

    @abstractmethod
    def _undo(self) -> None:
        """Rolls the database's transaction back, if it still stands; never fails."""

    @abstractmethod
    def _start_reading(self) -> int:
        """Begins a transaction whose reads are fixed; gives the newest commit it shows."""

    @abstractmethod
    def _stop_reading(self) -> None:
        """Ends it; never fails."""

    @abstractmethod
    def _record(self, tx: Transaction) -> None:
        """Writes the commit's row, if the transaction changed anything or has a message, and sets its number."""

    @abstractmethod
    def seal(self, branch: int, message: str | None = None) -> int:
        """Gives what was changed on the branch so far, by this transaction or by another tool, a commit number of its
        own, within the open transaction; what follows belongs to the next one."""

    @abstractmethod
    def number_commit(self) -> int:
        """The number that the open transaction's commit will have. Its rows are all written: what follows is
        bookkeeping about the commit."""

    @abstractmethod
    def _commit(self, tx: Transaction) -> None:
        """Commits, settles the outcome and finishes."""

    @abstractmethod
    def _settle(self) -> None:
        """Makes the outcome of a failed COMMIT certain."""

    @abstractmethod
    def _save_plans(self, plans: Sequence[tuple[str, int, str]]) -> None:
        """Keeps compiled statements for other processes; a store that cannot be written now goes without."""

    # -- connection ------------------------------------------------------------------------------------------------

    @property
    def connection(self) -> Any:
        """This process's connection of the driver, opened at first use."""
        if self._connection is None:
            if self._closed:
                raise StoreError(f"the store {self.name} was closed; connect again")
            self._connection = self._connect()
            for hook in self._hooks:
                hook(self._connection)
        return self._connection

    def add_hook(self, hook: Hook) -> None:
        """Calls ``hook(connection)`` now and for every later connection (after a fork, or a lost one)."""
        with self._guard():
            self._hooks.append(hook)
            hook(self.connection)

    def close(self) -> None:
        """Gives the connection back; an open transaction is rolled back. Closing twice does nothing."""
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # -- statements ------------------------------------------------------------------------------------------------

    def exclusive(self) -> AbstractContextManager[None]:
        """Waits until no other thread is inside a call or a transaction, and keeps them out for the block."""
        return self._guard()

    def _guard(self) -> _Guard:
        return self._lock

    def retry(self, work: Callable[[], R]) -> R:
        """What ``work`` gives; run again, outside of a transaction, where the database asks for that."""
        return work()

    # -- transactions ----------------------------------------------------------------------------------------------

    @property
    def in_transaction(self) -> bool:
        """Whether a ``transaction()`` of this handle is open."""
        return self._transaction is not None

    def now(self) -> str:
        """The transaction's clock: UTC text, the same for every call in one transaction or snapshot."""
        if self._transaction is not None:
            return self._transaction.clock
        if self._snapshots and self._snapshot_clock is None:
            self._snapshot_clock = utc_now()
        return self._snapshot_clock or utc_now()

    @contextmanager
    def transaction(self, message: str | None = None) -> Iterator[Transaction]:
        """One commit for all statements of the block; nested blocks are savepoints of the outermost.

        Raises:
            LockedError: another writer held the store for longer than ``timeout_s``.
            StoreError: a read-only store, or the commit could not be made durable.
        """
        with self._guard():
            if self._transaction is not None:
                with self._nested(self._transaction) as tx:
                    yield tx
                return
            tx = self._begin(message)
            try:
                yield tx
                self._check_open(tx)
                self._prepare(tx)
            except BaseException:
                self._roll_back(tx)
                raise
            self._commit(tx)

    def _begin(self, message: str | None) -> Transaction:
        if self.read_only:
            raise StoreError(f"{self.name} was opened read-only; connect without read_only to write")
        if self._snapshots:
            raise InputError("a transaction cannot begin inside a snapshot, whose reads are fixed; begin it first")
        self._settle()
        self._start_writing()
        tx = self._transaction = Transaction(os.urandom(16).hex(), utc_now(), message, branch=self.branch)
        self._depth = 0
        return tx

    def _check_open(self, tx: Transaction) -> None:
        if self._transaction is not tx:
            raise StoreError("this transaction belongs to the parent process; begin one in the process that writes")
        if self._closed:
            raise StoreError(f"the store {self.name} was closed; connect again")
        if not self._is_open():
            raise StoreError("the database rolled this transaction back after an earlier error; run it again")

    def _prepare(self, tx: Transaction) -> None:
        for participant in self.participants:
            participant.prepare()
        self._record(tx)

    @property
    def open_transaction(self) -> Transaction | None:
        """The outermost transaction, while it is open."""
        return self._transaction

    @property
    def nested(self) -> bool:
        """Whether the innermost block is a savepoint of a transaction that began outside."""
        return self._depth > 0

    def _unclear(self, tx: Transaction, error: Exception) -> None:
        """After an error of COMMIT: returns if the commit is there after all; raises if its outcome stays unclear."""
        self._unsettled = tx
        self._transaction = None
        self._undo()
        try:
            self._settle()
        except DeeplakeError:
            raise StoreError(
                f"the commit failed ({error}) and the store cannot yet tell its outcome; its files are left untouched, "
                f"and the next transaction looks for commit {tx.id} first"
            ) from error

    def _roll_back(self, tx: Transaction) -> None:
        if self._transaction is not tx:  # a forked child leaving its parent's block
            return
        self._undo()
        self._finish(committed=False)

    def _finish(self, *, committed: bool) -> None:
        self._transaction = None
        unsaved, self._unsaved_plans = self._unsaved_plans, []
        if not committed:
            self._forget_schema()
        for participant in self.participants:
            if committed:
                participant.committed()
            else:
                participant.rolled_back()
        if committed and unsaved:
            self._save_plans(unsaved)

    @contextmanager
    def _nested(self, tx: Transaction) -> Iterator[Transaction]:
        self._check_open(tx)
        self._depth += 1
        name = f"_dl_{self._depth}"
        self.execute(f"SAVEPOINT {name}")
        tokens = [(participant, participant.savepoint()) for participant in self.participants]
        branch = tx.branch
        try:
            yield tx
            self._check_open(tx)
            self.execute(f"RELEASE {name}")
        except BaseException:
            if self._transaction is tx and self._stands():
                self._back_to(name)
                self._forget_schema()
                tx.branch = branch  # the handle returns to it as well
                for participant, token in tokens:
                    participant.rollback_to(token)
            raise
        finally:
            self._depth -= 1

    def _back_to(self, savepoint: str) -> None:
        self.execute(f"ROLLBACK TO {savepoint}")
        self.execute(f"RELEASE {savepoint}")

    @contextmanager
    def snapshot(self) -> Iterator[int]:
        """One unchanging view for all reads of the block; gives the commit number it shows. Part of a transaction
        when one is open."""
        with self._guard():
            outermost = self._transaction is None and self._snapshots == 0
            head = self._start_reading() if outermost else self.head()
            if outermost:
                self._snapshot_clock = utc_now()
            inner = nullcontext() if outermost else self._reading_inside()
            self._snapshots += 1
            try:
                with inner:
                    yield head
            finally:
                self._snapshots -= 1
                if outermost:
                    self._snapshot_clock = None
                    self._stop_reading()

    def _reading_inside(self) -> AbstractContextManager[None]:
        """Around the reads of a snapshot within a transaction."""
        return nullcontext()

    def head(self) -> int:
        """The number of the newest commit, 0 in a new store; inside a transaction the one it builds on."""
        return int(self.fetchone("SELECT coalesce(max(seq), 0) FROM _dl_commits")[0])

    def meta(self, key: str) -> str | None:
        """A fact about the store, or None where it was never set."""
        row = self.fetchone("SELECT value FROM _dl_meta WHERE key = ?", (key,))
        return None if row is None else str(row[0])

    def set_meta(self, key: str, value: str) -> None:
        """Sets a fact about the store, within the open transaction."""
        sql = "INSERT INTO _dl_meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        self.execute(sql, (key, value))

    # -- table definitions and plans -------------------------------------------------------------------------------

    def _forget_schema(self) -> None:
        self._tables = None  # a rolled-back schema number comes back for another schema
        self._plans.clear()
        self._unsaved_plans.clear()

    def tables(self) -> Mapping[str, Table]:
        """Every table's definition by its lower-case name; read again only when the schema has changed."""
        with self._guard():
            version = self.schema_version()
            if self._tables is None or self._tables[0] != version:
                rows = self.fetchall("SELECT definition FROM _dl_tables ORDER BY name")
                found = (Table.from_json(definition) for (definition,) in rows)
                self._tables = version, {table.name.lower(): table for table in found}
            return self._tables[1]

    def table(self, name: str) -> Table | None:
        """The definition of the table of that name, compared without case; None where there is none."""
        return self.tables().get(name.lower())

    def put_table(self, table: Table, ddl: str) -> None:
        """Records a table's definition and the user's CREATE TABLE; the caller runs the statement itself, in the same
        transaction."""
        self.execute(
            "INSERT INTO _dl_tables (name, definition, ddl) VALUES (?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET definition = excluded.definition, ddl = excluded.ddl",
            (table.name.lower(), table.to_json(), ddl),
        )
        self._schema_changed()

    def drop_table(self, name: str) -> None:
        """Forgets a table's definition and sources; the caller drops the table itself, in the same transaction."""
        self.execute("DELETE FROM _dl_tables WHERE name = ?", (name.lower(),))
        self.execute("DELETE FROM _dl_sources WHERE lower(table_name) = ?", (name.lower(),))
        self._schema_changed()

    def _schema_changed(self) -> None:
        self._tables = None

    def plan(self, text: str) -> str | None:
        """The compiled plan stored for this statement under the present schema, or None."""
        with self._guard():
            key = text, self.schema_version()
            found = self._plans.get(key)
            if found is None:
                row = self.fetchone("SELECT plan FROM _dl_plans WHERE text = ? AND schema = ?", key)
                if row is not None:
                    found = self._remember_plan(key, str(row[0]))
            return found

    def put_plan(self, text: str, plan: str) -> None:
        """Keeps a plan for later processes; a store that cannot be written now simply goes without."""
        with self._guard():
            version = self.schema_version()
            self._remember_plan((text, version), plan)
            if self.read_only or len(text) > MAX_PLAN_TEXT:
                return
            if self._transaction is not None:
                self._unsaved_plans.append((text, version, plan))
            elif not self._snapshots:
                self._save_plans([(text, version, plan)])

    def _remember_plan(self, key: tuple[str, int], plan: str) -> str:
        if len(self._plans) >= MAX_PLANS:
            self._plans.clear()
        self._plans[key] = plan
        return plan


# -- fork ------------------------------------------------------------------------------------------------------------

_catalogs: weakref.WeakSet[Catalog] = weakref.WeakSet()
_inherited: list[object] = []


def _forget_parent() -> None:
    """In a forked child: a database's handles must not be used or closed after a fork, so they are kept, unused, for
    ever."""
    for catalog in list(_catalogs):
        _inherited.append(catalog._connection)
        catalog._connection = None
        catalog._reset()
        for participant in catalog.participants:
            participant.forked()


os.register_at_fork(after_in_child=_forget_parent)
