"""PEP 249: a store through Python's database API, for the tools that speak it.

    >>> import tempfile
    >>> from deeplake_loader import dbapi
    >>> connection = dbapi.connect(tempfile.mkdtemp())
    >>> cursor = connection.cursor()
    >>> _ = cursor.execute("CREATE TABLE notes (id BIGINT PRIMARY KEY, text TEXT)")
    >>> _ = cursor.execute("INSERT INTO notes (text) VALUES (%(text)s)", {"text": "first"})
    >>> connection.commit()
    >>> cursor.execute("SELECT id, text FROM notes").fetchall()
    [Row(id=1, text='first')]

A transaction begins by itself with the first statement that changes something, and keeps other writers out until
`commit` or `rollback`; a SELECT outside of one reads the newest commit and keeps nobody out. ``BEGIN`` takes the lock
before the first read; ``SAVEPOINT``, ``ROLLBACK TO`` and ``RELEASE`` are run as well.

Threads may share the module, but not a connection: one whose transaction is open refuses other threads. A forked child
has no part in its parent's transaction, and may use the connection for its own after `Connection.rollback`.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from deeplake_loader import database, errors
from deeplake_loader.rows import Row, RowSet
from deeplake_loader.types import ColumnType

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import TracebackType

    import pyarrow as pa

    from deeplake_loader.catalog import Location

apilevel = "2.0"
threadsafety = 1
paramstyle = "pyformat"
"""``%s`` with a list, ``%(name)s`` with a dict; ``?``, ``:name`` and ``$1`` are read as well."""

Parameters = Sequence[Any] | Mapping[str, Any]


# -- errors ------------------------------------------------------------------------------------------------------------


class Warning(Exception):
    """Never raised; PEP 249 wants the name."""


class Error(Exception):
    """The root of PEP 249's errors. Each one raised here is of its class below and of the package's own as well, so
    that ``except dbapi.IntegrityError`` and ``except ConstraintError`` both catch it."""


class InterfaceError(Error):
    """A closed connection or cursor was used."""


class DatabaseError(Error):
    """What went wrong in the database."""


class DataError(DatabaseError):
    """A value that does not fit its column."""


class OperationalError(DatabaseError):
    """The store cannot be opened, read, written or locked."""


class IntegrityError(DatabaseError):
    """A constraint refused the rows."""


class InternalError(DatabaseError):
    """The store is damaged."""


class ProgrammingError(DatabaseError):
    """The statement or the call is wrong."""


class NotSupportedError(DatabaseError):
    """A statement that is right in PostgreSQL and not supported here."""


_COUNTERPARTS: dict[type[errors.DeeplakeError], type[Error]] = {
    errors.UnsupportedSQLError: NotSupportedError,
    errors.TypeMismatchError: DataError,
    errors.DimensionError: DataError,
    errors.DecodeError: DataError,
    errors.InputError: ProgrammingError,
    errors.ConstraintError: IntegrityError,
    errors.CorruptionError: InternalError,
    errors.NotFoundError: OperationalError,
    errors.StoreError: OperationalError,
    errors.DeeplakeError: DatabaseError,
}


_joined: dict[type[errors.DeeplakeError], type[errors.DeeplakeError]] = {}


def _both(own: type[errors.DeeplakeError]) -> type[errors.DeeplakeError]:
    """The class of an error that is the package's and PEP 249's: named like the package's, made once."""
    if own in _joined:
        return _joined[own]
    counterpart = next(_COUNTERPARTS[base] for base in own.__mro__ if base in _COUNTERPARTS)

    def reduce(self: errors.DeeplakeError) -> tuple[Any, ...]:
        reduced: tuple[Any, ...] = own.__reduce__(self)  # type: ignore[assignment]
        plain = [own if part is type(self) else part for part in (reduced[0], *reduced[1])]
        return _rebuilt, tuple(plain)

    made = type(own.__name__, (own, counterpart), {"__module__": own.__module__, "__reduce__": reduce})
    return _joined.setdefault(own, made)


def _rebuilt(function: Any, *arguments: Any) -> BaseException:
    return _converted(function(*arguments))


def _converted(error: errors.DeeplakeError) -> errors.DeeplakeError:
    """The same error, which PEP 249's names catch as well."""
    if not isinstance(error, Error):
        error.__class__ = _both(type(error))
    return error


@contextmanager
def _pep249() -> Iterator[None]:
    try:
        yield
    except errors.DeeplakeError as error:
        _converted(error)
        raise


# -- types -------------------------------------------------------------------------------------------------------------


class TypeObject:
    """Equal to the type codes that it stands for: ``cursor.description[0][1] == dbapi.STRING``."""

    def __init__(self, *names: str) -> None:
        self.names = frozenset(names)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ColumnType):
            return other.name in self.names
        return self is other

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        return f"<{', '.join(sorted(self.names)) or 'no type'}>"


STRING = TypeObject("TEXT", "JSON", "UUID")
BINARY = TypeObject("BYTEA", "BLOB", "IMAGE", "VIDEO", "AUDIO", "TENSOR", "VECTOR")
NUMBER = TypeObject("SMALLINT", "INTEGER", "BIGINT", "REAL", "DOUBLE", "NUMERIC", "BOOLEAN")
DATETIME = TypeObject("TIMESTAMP", "TIMESTAMPTZ", "DATE", "TIME", "INTERVAL")
ROWID = TypeObject()
"""No column is of this type: a table without a key gets a BIGINT column ``id``."""

Date, Time, Timestamp, Binary = dt.date, dt.time, dt.datetime, bytes


def DateFromTicks(ticks: float) -> dt.date:
    """The local date at so many seconds after 1970."""
    return dt.date(*time.localtime(ticks)[:3])


def TimeFromTicks(ticks: float) -> dt.time:
    """The local time of day at so many seconds after 1970."""
    return dt.time(*time.localtime(ticks)[3:6])


def TimestampFromTicks(ticks: float) -> dt.datetime:
    """The local date and time at so many seconds after 1970."""
    return dt.datetime(*time.localtime(ticks)[:6])


# -- connections -------------------------------------------------------------------------------------------------------


def connect(
    dsn: str | os.PathLike[str],
    *,
    storage: str | os.PathLike[str] | None = None,
    branch: str = "main",
    create: bool = True,
    read_only: bool = False,
    timeout_s: float = 30.0,
    autocommit: bool = False,
) -> Connection:
    """A Connection of its own to the store at ``dsn``: a folder's path, ``deeplake://org/name``, or the
    ``postgresql://`` URL of a shared catalog.

    Args:
        storage: where a store with a shared catalog keeps its bytes, needed when it is made.
        branch: the branch that it reads and writes.
        create: make the store when there is none; False raises OperationalError instead.
        read_only: refuse every write.
        timeout_s: seconds to wait for another writer before OperationalError.
        autocommit: commit every statement by itself.
    """
    with _pep249():
        handle = database.connect(
            dsn, storage=storage, branch=branch, create=create, read_only=read_only, timeout_s=timeout_s
        )
    return Connection(handle, autocommit=autocommit)


def reconnect(location: Location, **options: Any) -> Connection:
    """A Connection of its own to the store whose catalog is at ``location``; options: branch, read_only, timeout_s."""
    with _pep249():
        return Connection(database.reopen(location, **options))


_CONTROL = re.compile(
    r"""\s*(?:(begin|commit|rollback)(?:\s+(?:transaction|work))?
        |(savepoint|release|rollback\s+to)(?:\s+savepoint)?\s+"?(\w+)"?)\s*;?\s*""",
    re.IGNORECASE | re.VERBOSE,
)


class Connection:
    """One line of transactions; as a context it commits at the end, or rolls back after an exception.

    ``database`` is the handle below it, for what SQL has no words for: what it writes is part of the open transaction.
    """

    Warning, Error, InterfaceError, DatabaseError = Warning, Error, InterfaceError, DatabaseError
    DataError, OperationalError, IntegrityError = DataError, OperationalError, IntegrityError
    InternalError, ProgrammingError, NotSupportedError = InternalError, ProgrammingError, NotSupportedError

    def __init__(self, handle: database.Database, *, autocommit: bool = False) -> None:
        self.database = handle
        self._autocommit, self._closed = autocommit, False
        self._blocks: list[tuple[str, AbstractContextManager[None]]] = []
        self._owner = (0, 0)

    @property
    def autocommit(self) -> bool:
        """Whether every statement commits by itself; may be changed between transactions."""
        return self._autocommit

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        self._check()
        if self._blocks:
            raise ProgrammingError("autocommit cannot change inside a transaction; commit or roll back first")
        self._autocommit = value

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open, which keeps other writers out."""
        return bool(self._blocks)

    def cursor(self) -> Cursor:
        """A new cursor; cursors of one connection share its transaction."""
        self._check()
        return Cursor(self)

    def commit(self) -> None:
        """Make the open transaction's changes durable; without one nothing is done."""
        self._check()
        with _pep249():
            try:
                self._leave(0)
            except BaseException:
                self._leave(0, undo=True)
                raise

    def rollback(self) -> None:
        """Take the open transaction's changes back; in a forked child forget the parent's transaction."""
        self._check(inherited_ok=True)
        with _pep249():
            self._leave(0, undo=True)

    def close(self) -> None:
        """Roll back what is open and give the files back; the connection and its cursors refuse every later call."""
        self.rollback()
        self._closed = True
        with _pep249():
            self.database.close()

    def __enter__(self) -> Connection:
        self._check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.rollback()

    def _check(self, *, inherited_ok: bool = False) -> None:
        if self._closed:
            raise InterfaceError("the connection is closed; connect again")
        if not self._blocks:
            return
        process, thread = self._owner
        if process != os.getpid():
            if not inherited_ok:
                raise OperationalError("the open transaction is the parent process's; call rollback() here first")
        elif thread != threading.get_ident():
            raise ProgrammingError("another thread's transaction is open on this connection; give each thread its own")

    def _run(self, sql: str, parameters: Parameters | None) -> RowSet:
        control = _CONTROL.fullmatch(sql) if isinstance(sql, str) else None
        if control is not None:
            self._control(control)
            return RowSet((), (), [], rowcount=-1, returns_rows=False)
        with self._implied(sql):
            return self.database.execute(sql, parameters)

    def _run_many(self, sql: str, rows: Iterable[Parameters]) -> RowSet:
        with self._implied(sql):
            return self.database.executemany(sql, rows)

    @contextmanager
    def _implied(self, sql: str) -> Iterator[None]:
        """A transaction begins with the first change; if that one fails, nothing is left to be rolled back."""
        begins = not self._autocommit and not self._blocks and self.database.compiled(sql).writes
        if begins:
            self._enter("")
        try:
            yield
        except BaseException:
            if begins:
                self._leave(0, undo=True)
            raise

    # -- blocks: the transaction, then its savepoints --------------------------------------------------------------

    def _enter(self, name: str) -> None:
        block = self.database.transaction()
        block.__enter__()
        self._owner = (os.getpid(), threading.get_ident())
        self._blocks.append((name, block))

    def _leave(self, kept: int, *, undo: bool = False) -> None:
        """End every block but the first ``kept``, innermost first."""
        while len(self._blocks) > kept:
            _, block = self._blocks.pop()
            error = InterfaceError("rolled back") if undo else None
            block.__exit__(None if error is None else type(error), error, None)

    def _control(self, found: re.Match[str]) -> None:
        word, name = " ".join((found[1] or found[2]).lower().split()), (found[3] or "").lower()
        if word in ("commit", "rollback"):
            return self.commit() if word == "commit" else self.rollback()
        if word == "begin":
            if self._blocks:
                raise ProgrammingError("a transaction is open already; write SAVEPOINT for one inside of it")
            return self._enter("")
        if word == "savepoint":
            if not self._blocks:
                self._enter("")
            return self._enter(name)
        place = self._savepoint(name)
        self._leave(place, undo=word == "rollback to")
        return self._enter(name) if word == "rollback to" else None

    def _savepoint(self, name: str) -> int:
        for place in range(len(self._blocks) - 1, 0, -1):
            if self._blocks[place][0] == name:
                return place
        raise ProgrammingError(f"there is no savepoint {name!r} in the open transaction")


class Cursor:
    """Runs statements and hands out their rows: tuples whose values are attributes, too.

    Vectors and media come as handles that read nothing until asked (``row.photo.decode()``). ``rowcount`` is the rows
    returned or changed, -1 where there is no such number; ``lastrowid`` the id that an INSERT of one row got.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection, self.arraysize = connection, 1
        self.rowcount, self.lastrowid = -1, None  # type: int, int | None
        self._result: RowSet | None = None
        self._position, self._closed = 0, False

    @property
    def description(self) -> list[tuple[str, ColumnType | None, None, None, int | None, int | None, None]] | None:
        """(name, type code, None, None, precision, scale, None) per result column; None without a result. The type code
        is a `ColumnType`, None where a type is not known before there are values."""
        if self._result is None or not self._result.returns_rows:
            return None
        return [_described(name, kind) for name, kind in zip(self._result.names, self._result.types, strict=True)]

    @property
    def rownumber(self) -> int | None:
        """The number, from 0, of the row that the next fetch returns first; None without a result."""
        return None if self.description is None else self._position

    def execute(self, operation: str, parameters: Parameters | None = None) -> Cursor:
        """Run one statement; gives the cursor itself.

        Args:
            operation: PostgreSQL's language, see `Database.execute`; or BEGIN, COMMIT, ROLLBACK, SAVEPOINT name,
                ROLLBACK TO name, RELEASE name.
            parameters: a list for ``%s`` (``?``, ``$1``), a dict for ``%(name)s`` (``:name``).
        """
        self._begin()
        with _pep249():
            return self._keep(self.connection._run(operation, parameters))

    def executemany(self, operation: str, seq_of_parameters: Iterable[Parameters]) -> Cursor:
        """Run one INSERT, UPDATE or DELETE for every row of parameters, all or nothing; ``rowcount`` is the total."""
        self._begin()
        with _pep249():
            return self._keep(self.connection._run_many(operation, seq_of_parameters))

    def _begin(self) -> None:
        self._check()
        self._result, self._position = None, 0
        self.rowcount, self.lastrowid = -1, None

    def _keep(self, result: RowSet) -> Cursor:
        self._result, self.rowcount, self.lastrowid = result, result.rowcount, result.lastrowid
        return self

    def fetchone(self) -> Row | None:
        """The next row, or None at the end."""
        rows = self.fetchmany(1)
        return rows[0] if rows else None

    def fetchmany(self, size: int | None = None) -> list[Row]:
        """The next ``size`` rows (default: ``arraysize``)."""
        result = self._rows()
        with _pep249():
            rows = result[self._position : self._position + (self.arraysize if size is None else size)]
        self._position += len(rows)
        return rows

    def fetchall(self) -> list[Row]:
        """The rows that no fetch has returned yet."""
        return self.fetchmany(len(self._rows()))

    def fetch_arrow_table(self) -> pa.Table:
        """The rows that no fetch has returned yet as a pyarrow.Table: see `RowSet.to_arrow`."""
        result = self._rows()
        with _pep249():
            table = result.to_arrow().slice(self._position)
        self._position = len(result)
        return table

    def fetch_record_batch(self, max_rows: int = 65_536) -> pa.RecordBatchReader:
        """The rows that no fetch has returned yet as a pyarrow.RecordBatchReader: see `RowSet.to_batches`."""
        if self._position:
            table = self.fetch_arrow_table()
            return table.to_reader(max_chunksize=max_rows)
        result = self._rows()
        with _pep249():
            batches = result.to_batches(max_rows)
        self._position = len(result)
        return batches

    def __iter__(self) -> Iterator[Row]:
        while (row := self.fetchone()) is not None:
            yield row

    def setinputsizes(self, sizes: Sequence[object]) -> None:
        """Does nothing: values are bound as they are."""

    def setoutputsize(self, size: int, column: int | None = None) -> None:
        """Does nothing: large values are not read before they are asked for."""

    def close(self) -> None:
        """Let the rows go; the cursor refuses every later call but this one."""
        self._closed, self._result = True, None

    def __enter__(self) -> Cursor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _rows(self) -> RowSet:
        self._check()
        if self._result is None or not self._result.returns_rows:
            raise ProgrammingError("there are no rows to fetch; execute a SELECT, or a change with RETURNING, first")
        return self._result

    def _check(self) -> None:
        if self._closed:
            raise InterfaceError("the cursor is closed; ask the connection for another")
        self.connection._check()


def _described(
    name: str, kind: ColumnType | None
) -> tuple[str, ColumnType | None, None, None, int | None, int | None, None]:
    options = {} if kind is None else dict(kind.options)
    precision, scale = (int(options[word]) if word in options else None for word in ("precision", "scale"))
    return name, kind, None, None, precision, scale, None
