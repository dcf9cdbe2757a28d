"""The undo log against snapshots taken with plain SQLite before the changes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplake_loader import history
from deeplake_loader.catalog import Catalog
from deeplake_loader.errors import InputError
from deeplake_loader.sqlite_catalog import SqliteCatalog

PLAIN = "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, a TEXT, b INTEGER UNIQUE)"
ROWS = [(1, "x", 1), (2, "y", 2), (3, "z", None), (4, "z", None)]


def make(folder: Path, ddl: str = PLAIN, rows: list[tuple[object, ...]] = ROWS) -> Catalog:
    catalog = SqliteCatalog.open(folder)
    with catalog.transaction():
        catalog.execute(ddl)
        history.install(catalog, "t")
        for row in rows:
            catalog.execute(f"INSERT INTO t VALUES ({', '.join('?' * len(row))})", row)
    return catalog


def table(catalog: Catalog) -> list[tuple[object, ...]]:
    names = history.read_shape(catalog, "t").names
    return sorted(catalog.fetchall(f"SELECT {names} FROM t"), key=repr)


def as_of(catalog: Catalog, point: int) -> list[tuple[object, ...]]:
    return sorted(catalog.fetchall(history.as_of_sql(catalog, "t"), (point,)), key=repr)


def foreign(catalog: Catalog, *statements: str, recursive: bool = False) -> None:
    """Another tool's connection: none of our settings, as DBeaver or the sqlite3 shell would open the file."""
    with sqlite3.connect(catalog.root.catalog) as other:
        other.execute(f"PRAGMA recursive_triggers = {int(recursive)}")
        for statement in statements:
            other.execute(statement)
    other.close()


CHANGES = {
    "insert, then several updates": ["INSERT INTO t VALUES (9, 'n', 9)", "UPDATE t SET a = 'q' WHERE id IN (1, 9)",
                                     "UPDATE t SET a = 'r' WHERE id = 1", "DELETE FROM t WHERE id = 9"],
    "delete and insert again": ["DELETE FROM t WHERE id = 1", "INSERT INTO t VALUES (1, 'again', 7)",
                                "DELETE FROM t WHERE id = 1", "INSERT INTO t VALUES (1, 'x', 1)"],
    "keys swapped": ["UPDATE t SET id = 10 WHERE id = 1", "UPDATE t SET id = 1 WHERE id = 2",
                     "UPDATE t SET id = 2 WHERE id = 10"],
    "keys shifted": ["UPDATE t SET id = id + 100", "UPDATE t SET id = id - 101 WHERE id > 101"],
    "key changed by its rowid name": ["UPDATE t SET rowid = 77 WHERE id = 3"],
    "REPLACE on the key": ["REPLACE INTO t VALUES (1, 'r', 1)"],
    "REPLACE on another row's unique value": ["REPLACE INTO t VALUES (50, 'r', 2)"],
    "REPLACE without a key": ["REPLACE INTO t (a, b) VALUES ('n', 2)"],
    "REPLACE of a new row": ["INSERT INTO t VALUES (60, 'n', 60)", "REPLACE INTO t VALUES (60, 'n', 2)",
                             "UPDATE OR REPLACE t SET id = 3 WHERE id = 60"],
    "UPDATE OR REPLACE": ["UPDATE OR REPLACE t SET b = 2 WHERE id = 1"],
    "upsert": ["INSERT INTO t VALUES (1, 'u', 1) ON CONFLICT (id) DO UPDATE SET a = excluded.a, b = 77",
               "INSERT INTO t VALUES (99, 'u', 2) ON CONFLICT (b) DO UPDATE SET a = 'ub'",
               "INSERT INTO t VALUES (1, 'u', 1) ON CONFLICT DO NOTHING", "INSERT OR IGNORE INTO t VALUES (2, 'u', 1)"],
    "everything deleted": ["DELETE FROM t"],
}  # fmt: skip


@pytest.mark.parametrize("recursive", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_the_past_survives_changes_by_another_tool(tmp_path: Path, name: str, recursive: bool) -> None:
    catalog = make(tmp_path)
    before, point = table(catalog), catalog.head()
    foreign(catalog, *CHANGES[name], recursive=recursive)
    assert table(catalog) != before or name == "delete and insert again"
    assert as_of(catalog, point) == before


SHAPES = {
    "composite text key": (
        "CREATE TABLE t (a TEXT NOT NULL, b INTEGER NOT NULL, v INTEGER, PRIMARY KEY (a, b))",
        [("x", 1, 1), ("x", 2, 1)],
        ["UPDATE t SET v = 9 WHERE b = 1", "DELETE FROM t WHERE b = 2", "REPLACE INTO t VALUES ('x', 1, 0)"],
    ),
    "key compared without case": (
        "CREATE TABLE t (a TEXT COLLATE NOCASE PRIMARY KEY NOT NULL, v INTEGER) WITHOUT ROWID",
        [("Ab", 1), ("c", 2)],
        ["UPDATE t SET v = 2 WHERE a = 'ab'", "DELETE FROM t WHERE a = 'ab'", "INSERT INTO t VALUES ('AB', 5)",
         "UPDATE t SET a = 'C' WHERE a = 'c'"],
    ),
    "generated and default columns": (
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v INTEGER, g INTEGER AS (v * 2) STORED, d INTEGER DEFAULT 7)",
        [],
        ["INSERT INTO t (v) VALUES (2)", "UPDATE t SET v = 3", "UPDATE t SET d = 9"],
    ),
    "columns with the log's own words": (
        "CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, seq INTEGER, op TEXT)",
        [(1, 1, 1, "I")],
        ["UPDATE t SET n = 2, seq = 3, op = 'D'"],
    ),
    "unique expression": (
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b INTEGER)",
        [(1, "x", 1), (2, "y", 2)],
        ["REPLACE INTO t VALUES (9, 'Y', 3)", "UPDATE OR REPLACE t SET a = 'X' WHERE id = 9"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_the_past_survives_on_tables_of_every_shape(tmp_path: Path, name: str) -> None:
    ddl, rows, changes = SHAPES[name]
    catalog = make(tmp_path, ddl, rows)
    if name == "unique expression":
        with catalog.transaction():
            catalog.execute("CREATE UNIQUE INDEX u ON t (lower(a) DESC, b - b) WHERE b > 0")
            history.rebuild(catalog, "t")
    before, point = table(catalog), catalog.head()
    foreign(catalog, *changes)
    assert table(catalog) != before
    assert as_of(catalog, point) == before


@pytest.mark.parametrize("recursive", [False, True])
def test_cascades_are_logged_also_when_replace_starts_them(tmp_path: Path, recursive: bool) -> None:
    catalog = SqliteCatalog.open(tmp_path)
    with catalog.transaction():
        catalog.execute("CREATE TABLE p (id INTEGER PRIMARY KEY, x INTEGER)")
        catalog.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, p INTEGER REFERENCES p (id) ON DELETE CASCADE)")
        history.install(catalog, "t")
        catalog.execute("INSERT INTO p VALUES (1, 1), (2, 2)")
        catalog.execute("INSERT INTO t VALUES (10, 1), (11, 2)")
    before, point = table(catalog), catalog.head()
    foreign(catalog, "PRAGMA foreign_keys = ON", recursive=recursive)
    other = sqlite3.connect(catalog.root.catalog)
    other.execute("PRAGMA foreign_keys = ON")
    other.execute("DELETE FROM p WHERE id = 1")
    other.execute("REPLACE INTO p VALUES (2, 3)")
    other.commit()
    other.close()
    assert table(catalog) == []
    assert as_of(catalog, point) == before


def test_a_column_added_later_reads_its_default_in_the_past(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    point = catalog.head()
    foreign(catalog, "UPDATE t SET a = 'early' WHERE id = 1")
    with catalog.transaction():
        history.drop_triggers(catalog, "t")
        catalog.execute("ALTER TABLE t ADD COLUMN z INTEGER DEFAULT 5")
        history.rebuild(catalog, "t")
    foreign(catalog, "UPDATE t SET z = 6 WHERE id = 2")
    assert as_of(catalog, point) == sorted([(*row, 5) for row in ROWS], key=repr)


def test_a_bulk_insert_is_logged_like_single_ones(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    before, point = table(catalog), catalog.head()
    with catalog.transaction():
        catalog.execute("UPDATE _dl_head SET bulk = 1")
        catalog.executemany("INSERT INTO t VALUES (?, ?, ?)", [(i, "bulk", i) for i in range(10, 20)])
        history.log_bulk_insert(catalog, "t", after_rowid=4)
        catalog.execute("UPDATE _dl_head SET bulk = 0")
    assert len(table(catalog)) == 14
    assert as_of(catalog, point) == before


def test_the_log_keeps_one_image_per_row_and_commit(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    logged = catalog.fetchone("SELECT count(*) FROM _dl_log_t")[0]
    foreign(catalog, *["UPDATE t SET a = a || '!' WHERE id < 3"] * 5)
    assert catalog.fetchone("SELECT count(*) FROM _dl_log_t")[0] == logged + 2


def test_rowcount_ids_and_returning_are_the_databases_own(tmp_path: Path) -> None:
    catalog = make(tmp_path)
    cursor = catalog.execute("INSERT INTO t (a, b) VALUES ('k', 40) RETURNING id, a")
    assert cursor.fetchall() == [(5, "k")]
    assert catalog.execute("INSERT INTO t (a, b) VALUES ('k', 41)").lastrowid == 6
    assert catalog.execute("UPDATE t SET a = 'z'").rowcount == 6


def test_a_table_without_a_key_is_refused(tmp_path: Path) -> None:
    catalog = SqliteCatalog.open(tmp_path)
    with pytest.raises(InputError, match="primary key"), catalog.transaction():
        catalog.execute("CREATE TABLE t (a TEXT)")
        history.install(catalog, "t")


KEYS = st.integers(1, 6)
VALUES = st.one_of(st.none(), st.integers(0, 4))
STATEMENT = st.one_of(
    st.tuples(st.just("INSERT OR IGNORE INTO t VALUES (?, ?, ?)"), st.tuples(KEYS, st.just("i"), VALUES)),
    st.tuples(st.just("REPLACE INTO t VALUES (?, ?, ?)"), st.tuples(KEYS, st.just("r"), VALUES)),
    st.tuples(st.just("UPDATE OR IGNORE t SET b = ? WHERE id = ?"), st.tuples(VALUES, KEYS)),
    st.tuples(st.just("UPDATE OR REPLACE t SET b = ?, a = a || 'u' WHERE id = ?"), st.tuples(VALUES, KEYS)),
    st.tuples(st.just("UPDATE OR REPLACE t SET id = ? WHERE id = ?"), st.tuples(KEYS, KEYS)),
    st.tuples(st.just("DELETE FROM t WHERE id = ?"), st.tuples(KEYS)),
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.one_of(STATEMENT, st.just(None)), max_size=25))
def test_every_commit_can_be_read_back_after_any_history(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, tuple[object, ...]] | None]
) -> None:
    catalog = make(tmp_path_factory.mktemp("history"))
    points = {catalog.head(): table(catalog)}
    for step in steps:
        with catalog.transaction("point" if step is None else None):
            if step is not None:
                catalog.execute(*step)
        points[catalog.head()] = table(catalog)
    assert {point: as_of(catalog, point) for point in points} == points
    catalog.close()


@pytest.mark.parametrize(
    ("statement", "terms"),
    [
        ("CREATE UNIQUE INDEX i ON t (lower(a) DESC, b) WHERE c > 0", ["(lower(a))", "(b)"]),
        ('CREATE UNIQUE INDEX i ON "t(x)" (substr(a, 1, 2) COLLATE NOCASE)', ["(substr(a, 1, 2))"]),
        ("CREATE UNIQUE INDEX i ON t (a || ',(' || b)", ["(a || ',(' || b)"]),
    ],
)
def test_index_terms_are_read_from_the_statement(statement: str, terms: list[str]) -> None:
    assert history.split_index_terms(statement) == terms
