"""PostgreSQL's errors as this package's own: what a caller can do about it decides the class. No password in any."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import errors as pg

from deeplake_loader.errors import (
    ConstraintError,
    CorruptionError,
    DeeplakeError,
    InputError,
    LockedError,
    NotFoundError,
    SQLError,
    StoreError,
    TypeMismatchError,
    UnsupportedSQLError,
)

Place = Callable[[int], int]
"""For a position in the text that the database got, the one in the user's."""

_OVERLAY = re.compile(r"^_dl_b\d+_")
"""A branch's own copy of a table; the user knows the table by what follows."""
_KEY = re.compile(r"\(((?:[^()]|\([^()]*\))*)\)\s*=")
_VECTOR_OPERATOR = re.compile(r"operator does not exist: .*(<=>|<->|<#>)")
_OF_PGVECTOR = re.compile(
    r'type "(vector|halfvec|sparsevec)" does not exist|access method "(hnsw|ivfflat)" does not exist|'
    r'operator class "(vector|halfvec)_\w+" does not exist|malformed array literal: "\s*\[|'
    r"function (vector_dims|vector_norm|l1_distance|l2_normalize|subvector|binary_quantize)\("
)
"""What a statement names that is the extension's; a vector's text in brackets is read by it alone."""
_CONSTRAINTS = {
    "23502": "NOT NULL",
    "23503": "FOREIGN KEY",
    "23505": "UNIQUE",
    "23514": "CHECK",
    "23P01": "EXCLUDE",
}  # fmt: skip


def is_lost(error: BaseException, connection: psycopg.Connection[tuple[Any, ...]]) -> bool:
    """Whether the connection itself is gone, not only the statement."""
    return isinstance(error, psycopg.Error) and (connection.closed or connection.broken)


def wants_retry(error: BaseException | None) -> bool:
    """Whether the database asks for the whole transaction to be run again."""
    return isinstance(error, pg.SerializationFailure | pg.DeadlockDetected) or _is_made_twice(error)


def is_overtaken(error: BaseException | None) -> bool:
    """Whether a prepared statement's columns are not those that it had."""
    return isinstance(error, pg.FeatureNotSupported) and "cached plan" in str(error)


def _is_made_twice(error: BaseException | None) -> bool:
    """Whether another transaction made an object of that name at the same time: IF NOT EXISTS does not wait for it."""
    if isinstance(error, pg.UniqueViolation):
        return error.diag.schema_name == "pg_catalog"
    return isinstance(error, pg.InternalError_) and "tuple concurrently updated" in str(error)


def translate_error(error: Exception, sql: str | None = None, *, lost: bool = False) -> DeeplakeError:
    """This package's error for one of psycopg; SQL errors quote ``sql``, the user's own text."""
    state = getattr(error, "sqlstate", None) or ""
    text = first_line(error)
    if lost:
        return StoreError(f"the connection to the database was lost ({text}); nothing of this transaction was kept")
    if _is_made_twice(error):
        return LockedError(f"another transaction made the same thing at the same time ({text}); run it again")
    if state[:2] == "23":
        return _constraint_error(error, state, text)
    if state in ("40001", "40P01"):
        return LockedError(f"another transaction changed the same rows ({text}); run it again")
    if state == "55P03":
        return LockedError(f"another writer holds what this statement needs ({text}); try again or raise timeout_s")
    if state == "57014":
        return StoreError(f"the statement did not end in time ({text}); narrow it or raise the timeout")
    if state == "25006":
        return StoreError(f"opened read-only ({text}); connect without read_only to write")
    if state == "42501":
        return StoreError(f"the database's role may not do this ({text}); ask the owner of the store for the privilege")
    if state in ("XX001", "XX002"):
        return CorruptionError(f"the catalog's database is damaged ({text}); restore it from a copy")
    if state[:2] in ("08", "53", "57", "58", "25", "XX"):
        return StoreError(f"the catalog cannot be read or written ({text}); nothing of this statement was kept")
    if isinstance(error, psycopg.DataError) and not state:  # the driver's own, before anything was sent
        return TypeMismatchError(f"PostgreSQL cannot hold a value of this statement ({text})")
    if state == "54000" or isinstance(error, OverflowError):
        return InputError(f"a value is larger than PostgreSQL can hold ({text})")
    if state == "42883" and (operator := _VECTOR_OPERATOR.search(text)):
        return UnsupportedSQLError(
            f"{operator[1]} is an operator of the extension pgvector, on columns of its types ({text}): where it is "
            "missing, order by cosine_similarity, l2_distance or inner_product, or add it before the table is made",
            sql=sql,
            position=_position(error, sql),
        )
    if state in ("42704", "42883", "22P02") and _OF_PGVECTOR.search(text):
        return UnsupportedSQLError(
            f"this is the extension pgvector's, on columns of its types ({text}): where it is missing, VECTOR columns "
            "are real[], the score functions and db.search work, and a vector is a parameter or a text like '{1,2,3}'",
            sql=sql,
            position=_position(error, sql),
        )
    return SQLError(f"the statement cannot be run: {text}", sql=sql, position=_position(error, sql))


def open_error(error: psycopg.Error, where: str, secrets: tuple[str, ...]) -> DeeplakeError:
    """The error for a database that cannot be reached; ``secrets`` are taken out of what the driver says."""
    state = error.sqlstate or ""
    text = " ".join(str(error).split()) or type(error).__name__
    for secret in secrets:
        text = text.replace(secret, "***")
    if state == "3D000" or ("database" in text and "does not exist" in text):
        return NotFoundError(f"cannot open {where}: {text}; create the database first")
    return StoreError(f"cannot open {where}: {text}; check host, port, role and password")


def first_line(error: BaseException) -> str:
    """What the database says, without the statement's text that libpq puts below it."""
    found = getattr(getattr(error, "diag", None), "message_primary", None)
    return found or str(error).strip().split("\n", 1)[0] or type(error).__name__


def placed(error: Exception, place: Place) -> Exception:
    """The error, with the place in the user's own text that it names."""
    found = getattr(getattr(error, "diag", None), "statement_position", None)
    if found:
        error._dl_position = place(int(found) - 1)  # type: ignore[attr-defined]
    return error


def _position(error: Exception, sql: str | None) -> int | None:
    """The place that the database names, in the user's own text."""
    return getattr(error, "_dl_position", None) if sql is not None else None


def _constraint_error(error: Exception, state: str, text: str) -> ConstraintError:
    diag = getattr(error, "diag", None)
    kind = _CONSTRAINTS.get(state)
    table = getattr(diag, "table_name", None)
    table = None if table is None else _OVERLAY.sub("", table)
    columns = _columns(diag)
    if kind in ("UNIQUE", "NOT NULL") and table and columns:
        message = f"{kind} constraint on column {', '.join(map(repr, columns))} of {table!r} refused the statement"
    else:
        name = getattr(diag, "constraint_name", None)
        detail = f" {name!r}" if name else ""
        message = f"{kind or 'a'} constraint{detail} refused the statement: {text}"
    return ConstraintError(message, constraint=kind, table=table, columns=columns)


def _columns(diag: object) -> tuple[str, ...]:
    single = getattr(diag, "column_name", None)
    if single:
        return (single,)
    match = _KEY.search(getattr(diag, "message_detail", None) or "")
    return tuple(part.strip().strip('"') for part in match[1].split(",")) if match else ()
