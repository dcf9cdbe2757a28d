"""How things are called in the database: PostgreSQL cuts an identifier at 63 bytes without a word."""

from __future__ import annotations

import hashlib

from deeplake_loader.errors import InputError

MAX_BYTES = 63
_DIGITS = 12  # of a hash: enough to tell the tables of one store apart


def physical(name: str) -> str:
    """The name that the database gets: the same, or where it is longer than 63 bytes its beginning and a hash.

    >>> physical("generations")
    'generations'
    >>> len(physical("_dl_log_" + "x" * 80))
    63
    """
    data = name.encode()
    if len(data) <= MAX_BYTES:
        return name
    digest = hashlib.sha256(data).hexdigest()[:_DIGITS]
    return f"{data[: MAX_BYTES - 1 - _DIGITS].decode(errors='ignore')}~{digest}"


def check_identifier(name: str, what: str) -> str:
    """The name of a user's table, column or schema, which is never shortened.

    Raises:
        InputError: longer than 63 bytes: the database would cut it, and two names could become one.
    """
    if len(name.encode()) > MAX_BYTES:
        raise InputError(f"the {what} name {name!r} has more than {MAX_BYTES} bytes, PostgreSQL's limit; shorten it")
    return name


def bookkeeping_schema(schema: str) -> str:
    """The schema of the store's own tables, for a store whose main branch is ``schema``.

    >>> bookkeeping_schema("public"), bookkeeping_schema("team")
    ('_dl', '_dl_team')
    """
    return "_dl" if schema == "public" else physical(f"_dl_{schema}")
