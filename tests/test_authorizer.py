"""Statements of users reach the user's rows, whatever the compiler lets through."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

import deeplake_loader as deeplake
from deeplake_loader import authorizer, errors
from deeplake_loader.sqlite_catalog import SqliteCatalog


@pytest.fixture
def catalog(db: deeplake.Database) -> SqliteCatalog:
    """The catalog below a store with a table: statements given to it have passed no compiler."""
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, a TEXT)")
    db.execute("INSERT INTO t (a) VALUES ('x')")
    found = db._catalog
    assert isinstance(found, SqliteCatalog)
    return found


@pytest.mark.parametrize("table", sorted(authorizer.BOOKKEEPING - {"_dl_quarantine"}))
def test_a_users_statement_cannot_touch_the_bookkeeping(catalog: SqliteCatalog, table: str) -> None:
    before = catalog.fetchall(f"SELECT * FROM {table}")
    for sql in (f"SELECT * FROM {table}", f"DELETE FROM main.{table}", f"SELECT 1 FROM t, {table.upper()}"):
        with pytest.raises(errors.SQLError, match="the store's own"):
            catalog.execute(sql, user_sql=sql)
    assert catalog.fetchall(f"SELECT * FROM {table}") == before


@pytest.mark.parametrize(
    "sql",
    [
        "ATTACH ':memory:' AS other",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA writable_schema = ON",
        "SELECT load_extension('evil')",
        "CREATE TRIGGER r AFTER INSERT ON t BEGIN DELETE FROM t; END",
        "DROP TABLE _dl_files",
    ],
)
def test_commands_that_reach_beyond_the_rows_are_refused(catalog: SqliteCatalog, sql: str) -> None:
    with pytest.raises(errors.SQLError, match="refused"):
        catalog.execute(sql, user_sql=sql)


def test_what_the_store_itself_runs_is_not_asked(catalog: SqliteCatalog) -> None:
    assert catalog.fetchone("SELECT value FROM _dl_meta WHERE key = 'format'") is not None
    catalog.execute("PRAGMA user_version")


def test_a_refusal_leaves_the_next_statement_alone(catalog: SqliteCatalog) -> None:
    with pytest.raises(errors.SQLError):
        catalog.execute("SELECT * FROM _dl_meta", user_sql="SELECT * FROM _dl_meta")
    assert catalog.fetchall("SELECT a FROM t", user_sql="SELECT a FROM t") == [("x",)]


def test_triggers_log_what_a_user_writes(db: deeplake.Database, catalog: SqliteCatalog) -> None:
    db.execute("UPDATE t SET a = 'y'")
    assert catalog.fetchall("SELECT a FROM _dl_log_t WHERE _dl_op = 'U'") == [("x",)]


def test_scores_read_stored_vectors_within_a_users_statement(tmp_path: Path) -> None:
    with deeplake.connect(tmp_path / "store") as db:
        db.execute("CREATE TABLE v (id BIGINT PRIMARY KEY, e VECTOR(2))")
        db.insert("v", [{"e": [1.0, 0.0]}, {"e": [0.0, 1.0]}])
    with deeplake.connect(tmp_path / "store") as again:  # nothing is prepared yet
        rows = again.execute("SELECT id FROM v WHERE cosine_similarity(e, %s) > 0.5", [[1.0, 0.1]])
        assert [row.id for row in rows] == [1]


def test_the_list_names_every_table_of_a_new_store(db: deeplake.Database) -> None:
    with sqlite3.connect(f"{db.root}/catalog.sqlite") as plain:
        names = {name for (name,) in plain.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert names - authorizer.BOOKKEEPING - {"sqlite_sequence"} == set()
