"""Every error this package raises on purpose, in one tree grouped by what a caller would do about it.

    DeeplakeError
    ├── InputError (ValueError)         the call is wrong: change the call
    │   ├── SQLError                    the statement cannot be read, translated or run
    │   │   └── UnsupportedSQLError     valid SQL that this catalog cannot run with the right result
    │   ├── TypeMismatchError (TypeError)   a value does not fit its column
    │   │   └── MediaError              bytes that are not the media the column holds
    │   ├── DimensionError              a vector or tensor of another shape
    │   └── StateError                  a stream state that belongs to another query, order or commit
    ├── NotFoundError (KeyError)        a table, branch, key or file that is not there
    ├── ConstraintError                 the database's own constraints refused the rows
    ├── ConflictError                   two histories changed the same rows
    ├── CorruptionError                 stored bytes differ from what was written
    ├── DecodeError                     one item could not be decoded; names the item
    ├── SampleErrors                    more samples in a row were bad than a stream allows; lists their keys
    ├── StalledError (TimeoutError)     a stream's batch made no progress; names what was being read
    └── StoreError (OSError)            the store cannot be read or written
        └── LockedError                 another process holds what this one needs

Each class has a stable ``kind`` for programs; builtin parents are kept so that ``except ValueError`` goes on working.
"""

from __future__ import annotations

from typing import ClassVar


class DeeplakeError(Exception):
    """The root: catch it to catch everything this package raises on purpose."""

    kind: ClassVar[str] = "error"

    def __str__(self) -> str:  # KeyError would print its repr
        return str(self.args[0]) if self.args else ""


class InputError(DeeplakeError, ValueError):
    """The call is wrong; nothing was written."""

    kind = "input"


class SQLError(InputError):
    """A statement that cannot be read or run; ``position`` is the character offset in the user's text, or None."""

    kind = "sql"

    def __init__(self, message: str, *, sql: str | None = None, position: int | None = None) -> None:
        super().__init__(message)
        self.sql, self.position = sql, position

    def __str__(self) -> str:
        text = super().__str__()
        if self.sql is None:
            return text
        if self.position is None or not 0 <= self.position <= len(self.sql):
            return f"{text}\n  in: {_shorten(self.sql)}"
        start = self.sql.rfind("\n", 0, self.position) + 1
        start = max(start, self.position - 100)
        line = self.sql[start : self.position + 100].split("\n", 1)[0]
        row = self.sql.count("\n", 0, self.position) + 1
        return f"{text}\n  line {row}: {line}\n  {' ' * (len(f'line {row}: ') + self.position - start)}^"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_sql_error, (type(self), self.args[0], self.sql, self.position)


class UnsupportedSQLError(SQLError):
    """Valid PostgreSQL that this catalog cannot run with PostgreSQL's result; says what to write instead."""

    kind = "unsupported-sql"


class TypeMismatchError(InputError, TypeError):
    """A value that does not fit its column or placeholder."""

    kind = "type"


class MediaError(TypeMismatchError):
    """Bytes that are not the media their column holds, or that break a limit."""

    kind = "media"


class DimensionError(InputError):
    """A vector or tensor whose shape differs from the column's, or from the other side of a score."""

    kind = "dimension"


class StateError(InputError):
    """A stream state that belongs to another query, order version, row set or commit."""

    kind = "state"


class NotFoundError(DeeplakeError, KeyError):
    """Something named in the call does not exist."""

    kind = "not-found"


class ConstraintError(DeeplakeError):
    """UNIQUE, NOT NULL, CHECK or FOREIGN KEY refused the statement; nothing of it was written.

    ``constraint`` is that word or None, ``table`` and ``columns`` name what it is on, where the database tells.
    """

    kind = "constraint"

    def __init__(
        self, message: str, *, constraint: str | None = None, table: str | None = None, columns: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.constraint, self.table, self.columns = constraint, table, columns

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_constraint_error, (self.args[0], self.constraint, self.table, self.columns)


class ConflictError(DeeplakeError):
    """Two histories changed the same rows; ``conflicts`` lists them, each with table, key, base, ours and theirs."""

    kind = "conflict"

    def __init__(self, message: str, *, conflicts: tuple[object, ...] = ()) -> None:
        super().__init__(message)
        self.conflicts = conflicts

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_conflict_error, (self.args[0], self.conflicts)


class CorruptionError(DeeplakeError):
    """Stored bytes differ from what was written: names file, key, offset, expected and found checksum."""

    kind = "corruption"


class DecodeError(DeeplakeError):
    """One item that could not be decoded; ``key`` names it."""

    kind = "decode"

    def __init__(self, message: str, *, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_decode_error, (type(self), self.args[0], self.key)


class SampleErrors(DeeplakeError):
    """More samples in a row could not be read or decoded than ``max_errors``; ``keys`` names them."""

    kind = "samples"

    def __init__(self, message: str, *, keys: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.keys = keys

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_sample_errors, (self.args[0], self.keys)


class StalledError(DeeplakeError, TimeoutError):
    """A batch of a stream made no progress for ``timeout_s``; the message names its files, keys and stage."""

    kind = "stalled"


class StoreError(DeeplakeError, OSError):
    """The store cannot be opened, read or written."""

    kind = "store"


class LockedError(StoreError):
    """Another process holds a lock that this call waited for; try again or raise the timeout."""

    kind = "locked"


def _rebuild_sql_error(cls: type[SQLError], message: str, sql: str | None, position: int | None) -> SQLError:
    return cls(message, sql=sql, position=position)


def _rebuild_decode_error(cls: type[DecodeError], message: str, key: str | None) -> DecodeError:
    return cls(message, key=key)


def _rebuild_sample_errors(message: str, keys: tuple[str, ...]) -> SampleErrors:
    return SampleErrors(message, keys=keys)


def _rebuild_constraint_error(
    message: str, constraint: str | None, table: str | None, columns: tuple[str, ...]
) -> ConstraintError:
    return ConstraintError(message, constraint=constraint, table=table, columns=columns)


def _rebuild_conflict_error(message: str, conflicts: tuple[object, ...]) -> ConflictError:
    return ConflictError(message, conflicts=conflicts)


def _shorten(text: str, limit: int = 400) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 3] + "..."
