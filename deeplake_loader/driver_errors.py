"""SQLite's errors as this package's own: what a caller can do about it decides the class."""

from __future__ import annotations

import re
import sqlite3

from deeplake_loader.errors import (
    ConstraintError,
    CorruptionError,
    DeeplakeError,
    InputError,
    LockedError,
    SQLError,
    StoreError,
)

DRIVER_ERRORS = (sqlite3.Error, sqlite3.Warning, OverflowError, UnicodeEncodeError)
"""What the driver raises for a statement or a value that it cannot take."""

_CONSTRAINT = re.compile(r"(UNIQUE|NOT NULL|CHECK|FOREIGN KEY) constraint failed(?:: (.*))?", re.DOTALL)
_OVERLAY = re.compile(r"^_dl_b\d+_")
"""A branch's own copy of a table; the user knows the table by what follows."""
_STORE_CODES = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PROTOCOL,
)


def translate_error(error: Exception, sql: str | None = None) -> DeeplakeError:
    """This package's error for one of the SQLite driver; SQL errors quote ``sql``, the user's own text."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_CONSTRAINT:
        return _constraint_error(error)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LockedError(f"another writer holds the store ({error}); try again or raise timeout_s")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return CorruptionError(f"the catalog file is damaged ({error}); restore it from a copy")
    if code in _STORE_CODES:
        return StoreError(f"the catalog cannot be read or written ({error}); nothing of this statement was kept")
    if "decode to UTF-8" in str(error):  # the driver's own error, without a code
        return CorruptionError(f"the catalog holds text that is no UTF-8 ({error}); restore it from a copy")
    if code == sqlite3.SQLITE_TOOBIG:
        return InputError(f"a value is larger than SQLite can hold ({error})")
    return SQLError(f"the statement cannot be run: {error}", sql=sql)


def _constraint_error(error: Exception) -> ConstraintError:
    match = _CONSTRAINT.match(str(error))
    if match is None:
        return ConstraintError(f"a constraint refused the statement: {error}")
    kind, what = match[1], match[2]
    if kind in ("UNIQUE", "NOT NULL") and what:
        table, columns = what.split(", ")[0].partition(".")[0], [part.partition(".")[2] for part in what.split(", ")]
        table = _OVERLAY.sub("", table)
        return ConstraintError(
            f"{kind} constraint on column {', '.join(map(repr, columns))} of {table!r} refused the statement",
            constraint=kind,
            table=table,
            columns=tuple(columns),
        )
    detail = f" {what!r}" if what else ""
    return ConstraintError(f"{kind} constraint{detail} refused the statement", constraint=kind)
