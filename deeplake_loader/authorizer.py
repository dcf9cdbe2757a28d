"""What a user's statement may reach in SQLite: the second line behind the compiler, which knows only the user's tables.

SQLite asks while it prepares a statement. Triggers and views of the store reach the bookkeeping for the user's rows and
may; the statement itself may not.
"""

from __future__ import annotations

import sqlite3

BOOKKEEPING = frozenset(
    f"_dl_{name}"
    for name in (
        "branches", "commits", "files", "forks", "head", "members", "meta", "nodes", "overlays", "plans", "quarantine",
        "resting", "sources", "tables", "tags", "tail",
    )
)  # fmt: skip
"""Tables that hold the store together; a branch's own tables and the undo logs hold the user's rows."""

_ROWS = {
    sqlite3.SQLITE_READ: "reads",
    sqlite3.SQLITE_INSERT: "inserts into",
    sqlite3.SQLITE_UPDATE: "updates",
    sqlite3.SQLITE_DELETE: "deletes from",
    sqlite3.SQLITE_DROP_TABLE: "drops",
}
_COMMANDS = {
    sqlite3.SQLITE_ATTACH: "ATTACH",
    sqlite3.SQLITE_DETACH: "DETACH",
    sqlite3.SQLITE_PRAGMA: "PRAGMA",
    sqlite3.SQLITE_CREATE_VTABLE: "CREATE VIRTUAL TABLE",
    sqlite3.SQLITE_CREATE_TRIGGER: "CREATE TRIGGER",
    sqlite3.SQLITE_CREATE_TEMP_TRIGGER: "CREATE TRIGGER",
}
_OWN_PRAGMAS = frozenset({"quick_check"})
"""What SQLite runs by itself, within ALTER TABLE ... ADD COLUMN with a CHECK."""
_EXTENSIONS = frozenset({"load_extension", "fts3_tokenizer"})


def refusal(action: int, first: str | None, second: str | None, within: str | None) -> str | None:
    """Why SQLite shall not prepare a user's statement that does this, or None where it may.

    The arguments are those of ``sqlite3_set_authorizer``: ``within`` is the trigger or view that does it.

    >>> refusal(sqlite3.SQLITE_READ, "_dl_meta", "value", None)
    'it reads _dl_meta, which is the store\\'s own'
    >>> refusal(sqlite3.SQLITE_READ, "generations", "prompt", None) is None
    True
    """
    if action in _COMMANDS and first not in _OWN_PRAGMAS:
        return f"{_COMMANDS[action]} is not for statements of users"
    if action == sqlite3.SQLITE_FUNCTION and second is not None and second.lower() in _EXTENSIONS:
        return f"{second}() is not for statements of users"
    if action in _ROWS and within is None and first is not None and first.lower() in BOOKKEEPING:
        return f"it {_ROWS[action]} {first}, which is the store's own"
    return None
