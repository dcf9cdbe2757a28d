"""What the command line ends with: one table, which every help shows or refers to."""

from __future__ import annotations

from enum import IntEnum

from deeplake_loader.errors import (
    ConflictError,
    ConstraintError,
    CorruptionError,
    DecodeError,
    DeeplakeError,
    InputError,
    LockedError,
    NotFoundError,
    SampleErrors,
    StalledError,
    StoreError,
)


class Code(IntEnum):
    """An exit code."""

    DONE = 0
    NO = 1
    USAGE = 2
    MISSING = 3
    CONSTRAINT = 4
    DAMAGED = 5
    STORE = 6
    LOCKED = 7
    BUG = 70
    INTERRUPTED = 130
    PIPE = 141


MEANINGS = {
    Code.DONE: "done",
    Code.NO: "the answer is no: the command's own help says when",
    Code.USAGE: "the command line, an SQL statement or a value is wrong",
    Code.MISSING: "a store, table, branch, row or file is not there",
    Code.CONSTRAINT: "the rows break a constraint of the database",
    Code.DAMAGED: "stored bytes are damaged or cannot be decoded",
    Code.STORE: "the store cannot be opened, read or written",
    Code.LOCKED: "another process holds what is needed; try again",
    Code.BUG: "an error that nobody foresaw; please report it",
    Code.INTERRUPTED: "Ctrl-C; what was not committed is undone",
    Code.PIPE: "nobody reads the output any more, as after | head",
}

_CLASSES: tuple[tuple[type[DeeplakeError], Code], ...] = (
    (ConflictError, Code.NO),
    (InputError, Code.USAGE),
    (NotFoundError, Code.MISSING),
    (ConstraintError, Code.CONSTRAINT),
    (CorruptionError, Code.DAMAGED),
    (DecodeError, Code.DAMAGED),
    (SampleErrors, Code.DAMAGED),
    (LockedError, Code.LOCKED),
    (StalledError, Code.LOCKED),
    (StoreError, Code.STORE),
)


def code_of(error: DeeplakeError) -> Code:
    """The exit code of an error, by what a caller would do about it.

    >>> code_of(InputError("no")).name
    'USAGE'
    """
    return next((code for kind, code in _CLASSES if isinstance(error, kind)), Code.STORE)


def table() -> list[tuple[str, str]]:
    """Every code with its meaning, as text."""
    return [(str(int(code)), meaning) for code, meaning in MEANINGS.items()]
