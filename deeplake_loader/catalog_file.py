"""The catalog's file: opened durable, made whole or not at all, recognised before it is used."""

from __future__ import annotations

import os
import sqlite3
from datetime import UTC, datetime
from functools import lru_cache

from deeplake_loader import store
from deeplake_loader.driver_errors import translate_error
from deeplake_loader.errors import CorruptionError, DeeplakeError, InputError, NotFoundError, StoreError

FORMAT = 1
"""The version of everything on disk; a store of a higher one is refused."""

_BOOKKEEPING = """
CREATE TABLE _dl_meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE _dl_head (one INTEGER PRIMARY KEY CHECK (one = 1), bulk INTEGER NOT NULL DEFAULT 0);
CREATE TABLE _dl_commits (seq INTEGER PRIMARY KEY, id TEXT NOT NULL, created_at TEXT NOT NULL, author TEXT,
    message TEXT, branch INTEGER NOT NULL DEFAULT 1);
CREATE TABLE _dl_branches (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, head INTEGER NOT NULL,
    created_at TEXT NOT NULL, deleted_at TEXT);
CREATE TABLE _dl_nodes (id INTEGER PRIMARY KEY AUTOINCREMENT, branch INTEGER NOT NULL, seq INTEGER NOT NULL,
    parent INTEGER, other INTEGER);
CREATE INDEX _dl_nodes_by_branch ON _dl_nodes (branch, seq);
CREATE TABLE _dl_forks (branch INTEGER NOT NULL, seq INTEGER NOT NULL, main_seq INTEGER NOT NULL,
    PRIMARY KEY (branch, seq)) WITHOUT ROWID;
CREATE TABLE _dl_overlays (branch INTEGER NOT NULL, table_name TEXT NOT NULL,
    PRIMARY KEY (branch, table_name)) WITHOUT ROWID;
CREATE TABLE _dl_tags (name TEXT PRIMARY KEY, branch INTEGER NOT NULL, seq INTEGER NOT NULL, node INTEGER NOT NULL,
    created_at TEXT NOT NULL, message TEXT);
CREATE TABLE _dl_tables (name TEXT PRIMARY KEY, definition TEXT NOT NULL, ddl TEXT NOT NULL);
CREATE TABLE _dl_files (id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL CHECK (kind IN ('shard', 'vector')),
    table_name TEXT, column_name TEXT, url TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('open', 'sealed')), count INTEGER NOT NULL, size INTEGER NOT NULL,
    resting INTEGER NOT NULL DEFAULT 0, sha256 TEXT, checks BLOB, dtype TEXT, dimension INTEGER);
CREATE INDEX _dl_files_by_table ON _dl_files (table_name, kind, state);
CREATE TABLE _dl_members (file INTEGER NOT NULL, ordinal INTEGER NOT NULL, key TEXT NOT NULL, column_name TEXT NOT NULL,
    extension TEXT NOT NULL, offset INTEGER, length INTEGER NOT NULL, checks BLOB NOT NULL, info TEXT,
    PRIMARY KEY (file, ordinal)) WITHOUT ROWID;
CREATE TABLE _dl_resting (address INTEGER PRIMARY KEY, data BLOB NOT NULL, document BLOB);
CREATE TABLE _dl_tail (address INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE _dl_sources (table_name TEXT NOT NULL, url TEXT NOT NULL, commit_id TEXT NOT NULL, stamp TEXT NOT NULL,
    added INTEGER NOT NULL, PRIMARY KEY (table_name, url, commit_id)) WITHOUT ROWID;
CREATE TABLE _dl_plans (number INTEGER PRIMARY KEY, text TEXT NOT NULL, schema INTEGER NOT NULL, plan TEXT NOT NULL,
    UNIQUE (text, schema));
"""
STATEMENTS = tuple(text.strip() for text in _BOOKKEEPING.split(";\n") if text.strip())
"""What makes the tables of a new store."""


def utc_now() -> str:
    """The present UTC time as 'YYYY-MM-DD HH:MM:SS.ffffff', the form in which SQLite stores a TIMESTAMP."""
    return datetime.now(UTC).isoformat(" ", "microseconds")[:26]


@lru_cache(maxsize=1)
def author() -> str | None:
    """Who commits: $DEEPLAKE_AUTHOR, else the user's name; None where the system knows no name."""
    from getpass import getuser

    try:
        return os.environ.get("DEEPLAKE_AUTHOR") or getuser()
    except (OSError, KeyError, ImportError):
        return None


def connect(root: store.Root, *, read_only: bool, timeout_s: float) -> sqlite3.Connection:
    """A connection to the store's catalog: WAL, every commit synced, foreign keys checked.

    Raises:
        StoreError, LockedError, CorruptionError: the file cannot be opened, is locked, or is no database.
    """
    if not read_only:
        return _dial(root, "mode=rwc", timeout_s)
    try:
        return _dial(root, "mode=ro", timeout_s)
    except StoreError:
        # A cleanly closed WAL file needs a -shm beside it, which a read-only folder cannot get; nobody can be
        # writing there either, and without a -wal the file alone is the whole database.
        wal = root.catalog + "-wal"
        if os.path.exists(wal) and os.path.getsize(wal) > 0:
            raise
        return _dial(root, "mode=ro&immutable=1", timeout_s)


def _dial(root: store.Root, mode: str, timeout_s: float) -> sqlite3.Connection:
    uri = f"file:{store.encode_path(root.catalog)}?{mode}"
    connection = None
    try:
        connection = sqlite3.connect(
            uri, uri=True, timeout=timeout_s, isolation_level=None, check_same_thread=False, cached_statements=512
        )
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.execute("PRAGMA foreign_keys = ON")
        if mode == "mode=rwc":
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            connection.execute("PRAGMA synchronous = FULL")  # NORMAL loses acknowledged commits at power loss
            connection.execute("PRAGMA journal_size_limit = 67108864")
            # Debian's SQLite would write zeros over every resting blob that has moved into its shard
            connection.execute("PRAGMA secure_delete = OFF").fetchone()
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        raise _open_error(root, error) from error
    return connection


def _open_error(root: store.Root, error: sqlite3.Error) -> DeeplakeError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_NOTADB:
        return CorruptionError(f"{root.catalog} is no SQLite database, or its first page is damaged ({error})")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return translate_error(error)
    return StoreError(f"cannot open the catalog {root.catalog}: {error}; check the folder and its permissions")


def prepare_folder(root: store.Root, *, create: bool) -> None:
    """Makes the store's folder when ``create``; NotFoundError when there is no store and it may not be made."""
    lost = data_folder(root.folder)  # looked for before the catalog, which a store that is just being made gets first
    if os.path.exists(root.catalog):
        return
    if not create:
        raise NotFoundError(f"there is no store in {root.folder} ({store.CATALOG} is missing); check the path")
    if lost:
        raise _lost_catalog(root, lost)
    with store.file_errors("make the store's folder", root.folder):
        store.make_folder(root.folder)


def prepare_tables(
    root: store.Root, connection: sqlite3.Connection, *, create: bool, storage: str | None = None
) -> str | None:
    """Makes the bookkeeping tables of a new store in one transaction, and checks the format of an older one; gives
    where its bytes lie, None for the store's own folder.

    Raises:
        InputError: they do not lie in ``storage``.
    """
    try:
        names = sorted(n for (n,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'"))
        if "_dl_meta" not in names:
            if names:
                shown = ", ".join(names[:5])
                raise StoreError(f"{root.catalog} is another program's database ({shown}); choose another folder")
            if not create:
                raise StoreError(f"{root.folder} is a store whose creation never finished; open it for writing once")
            _make_tables(root, connection, storage)
            with store.file_errors("sync", root.folder):
                store.sync_folder(root.folder)
        found = dict(
            connection.execute("SELECT key, value FROM _dl_meta WHERE key IN ('format', 'storage', 'claimed')")
        )
        if create and storage not in (None, found.get("storage")) and "claimed" not in found:
            _replace_storage(connection, found, storage)
    except sqlite3.Error as error:
        raise translate_error(error) from error
    _check_format(root, str(found.get("format", "none")))
    kept: str | None = found.get("storage")
    if storage is not None and storage != (kept or root.folder):
        raise InputError(
            f"{root.folder} keeps its bytes in {kept or 'itself'}, not in {storage}; leave storage= out, "
            "or move it with Database.relocate"
        )
    return kept


def _replace_storage(connection: sqlite3.Connection, found: dict[str, str], storage: str | None) -> None:
    """What a new store was given before was none it could use, so it has nothing there."""
    if "storage" in found and connection.execute("SELECT 1 FROM _dl_files").fetchone() is None:
        connection.execute("UPDATE _dl_meta SET value = ? WHERE key = 'storage'", (storage,))
        found["storage"] = str(storage)


def _make_tables(root: store.Root, connection: sqlite3.Connection, storage: str | None) -> None:
    connection.execute("BEGIN IMMEDIATE")
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = '_dl_meta'").fetchone():
        if lost := data_folder(root.folder):
            raise _lost_catalog(root, lost)
        for statement in STATEMENTS:
            connection.execute(statement)
        facts = [("format", str(FORMAT)), ("store_id", os.urandom(16).hex()), ("created_at", utc_now())]
        if storage not in (None, root.folder):
            facts.append(("storage", str(storage)))
        connection.executemany("INSERT INTO _dl_meta VALUES (?, ?)", facts)
        connection.execute("INSERT INTO _dl_head (one) VALUES (1)")
        connection.execute("INSERT INTO _dl_nodes (id, branch, seq) VALUES (1, 1, 0)")
        connection.execute("INSERT INTO _dl_branches (name, head, created_at) VALUES ('main', 1, ?)", (utc_now(),))
    connection.execute("COMMIT")


def data_folder(folder: str) -> str | None:
    """The name of a folder with a store's bytes in ``folder``, or None."""
    return next((f for f in (store.SHARDS, store.VECTORS) if os.path.isdir(os.path.join(folder, f))), None)


def _lost_catalog(root: store.Root, folder: str) -> CorruptionError:
    """Bytes without a catalog have lost it: a new one would give out the old addresses again."""
    return CorruptionError(
        f"{root.folder} holds {folder}/ and no catalog: {root.catalog} was lost or emptied; restore it from a copy, or "
        "choose another folder for a new store"
    )


def _check_format(root: store.Root, found: str) -> None:
    if not found.isdigit():
        raise CorruptionError(f"{root.catalog} holds no format number (found {found!r})")
    if int(found) > FORMAT:
        raise StoreError(
            f"{root.folder} has store format {found}, this release reads up to {FORMAT}; upgrade deeplake_loader"
        )
