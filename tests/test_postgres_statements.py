"""Statements on a PostgreSQL catalog: definitions read back, values and types as psycopg has them, COPY as INSERT."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from conftest import Store

import deeplake_loader as deeplake
from deeplake_loader import errors

psycopg = pytest.importorskip("psycopg")
pytestmark = pytest.mark.postgres_only("its own statements and types")

EVERY = """CREATE TABLE every (id BIGINT PRIMARY KEY, "te""xt" TEXT, s SMALLINT, i INTEGER, r REAL, d DOUBLE PRECISION,
    n NUMERIC(10, 2), b BOOLEAN, at TIMESTAMP, z TIMESTAMPTZ, day DATE, t TIME, j JSON, u UUID, raw BYTEA, v VECTOR(2),
    h VECTOR(3, float16), x BLOB)"""
ROWS: list[dict[str, Any]] = [
    {
        'te"xt': "tab\tline\nback\\slash é", "s": -1, "i": 2, "r": 0.5, "d": 1e300, "n": Decimal("1.25"), "b": True,
        "at": dt.datetime(2026, 1, 2, 3, 4, 5, 6), "z": dt.datetime(1999, 1, 2, tzinfo=dt.UTC),
        "day": dt.date(1969, 7, 20), "t": dt.time(1, 2, 3, 4), "j": {"a": [1, None]}, "u": uuid.UUID(int=7),
        "raw": b"\0\xff", "v": [1, 2], "h": [1, 2, 3], "x": b"blob",
    },
    dict.fromkeys(("i", "v", "x", 'te"xt')),
]  # fmt: skip


def tool(db: deeplake.Database) -> Any:
    """psql's way in."""
    return psycopg.connect(db._catalog.address.conninfo, autocommit=True)


def values(row: Any) -> list[Any]:
    """What the row holds, blobs and vectors read."""
    found = [value.tolist() if hasattr(value, "tolist") else value for value in row]
    return [value.bytes() if hasattr(value, "bytes") and not isinstance(value, uuid.UUID) else value for value in found]


def test_copied_rows_equal_inserted_ones_of_every_type(db: deeplake.Database) -> None:
    db.execute(EVERY)
    names = list(ROWS[0])
    quoted = ", ".join('"te""xt"' if name == 'te"xt' else name for name in names)
    marks = ", ".join(["%s"] * len(names))
    for row in ROWS:
        db.execute(f"INSERT INTO every ({quoted}) VALUES ({marks})", [row.get(name) for name in names])
    db.insert("every", [{name: row.get(name) for name in names} for row in ROWS])
    first, second, third, fourth = (values(row)[1:] for row in db.execute("SELECT * FROM every ORDER BY id"))
    assert first == third and second == fourth == [None] * len(names)
    assert first[:-3] == [ROWS[0][name] for name in names[:-3]]
    with tool(db) as psql:
        (row,) = psql.execute('SELECT "te""xt", n, at, z, j, v::text, h::text FROM every WHERE id = 3').fetchall()
    z = row[3].astimezone(dt.UTC)
    given = [ROWS[0][name] for name in ('te"xt', "n", "at", "z", "j")]
    assert [*row[:3], z, *row[4:]] == [*given, "[1,2]", "[1,2,3]"]


def test_a_numeric_of_forty_digits_comes_back_whole(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE wide (id BIGINT PRIMARY KEY, n NUMERIC(40, 10))")
    given = Decimal("123456789012345678901234567890.0123456789")
    db.execute("INSERT INTO wide (n) VALUES (%s)", [given])
    db.insert("wide", {"n": [given, -given]})
    db.execute(f"INSERT INTO wide (n) VALUES ({given})")
    assert [row.n for row in db.execute("SELECT n FROM wide ORDER BY id")] == [given, given, -given, given]


@pytest.mark.parametrize("branch", ["main", "idea"])
def test_arrow_is_what_adbc_reads(db: deeplake.Database, place: Store, branch: str) -> None:
    adbc = pytest.importorskip("adbc_driver_postgresql.dbapi")
    db.execute("CREATE TABLE g (id BIGINT PRIMARY KEY, a INTEGER, s SMALLINT, t TEXT, d DOUBLE PRECISION, r REAL, "
               "b BOOLEAN, day DATE, at TIMESTAMP)")  # fmt: skip
    rows = [{"a": i, "s": None, "t": f"ä{i}", "d": i / 7, "r": i / 8, "b": i % 2 == 0, "day": dt.date(2026, 1, 1 + i),
             "at": dt.datetime(2026, 1, 1, i, 2, 3, 456)} for i in range(20)]  # fmt: skip
    db.insert("g", [*rows, {"a": None}])
    if branch != "main":
        db.branch(branch)
        db.execute("UPDATE g SET a = a + 1 WHERE id < 5")
    sql = "SELECT * FROM g WHERE id > 2 ORDER BY id"
    with adbc.connect(place.url) as connection, connection.cursor() as cursor:
        cursor.execute(f"SET search_path TO {branch}, public" if branch != "main" else "SET search_path TO public")
        cursor.execute(sql)
        plain = cursor.fetch_arrow_table()
    ours = db.execute(sql).to_arrow()
    kinds = [table.drop_columns("r").schema.types for table in (ours, plain)]  # a REAL is a double here, as in a folder
    assert kinds[0] == kinds[1] and ours.to_pylist() == plain.to_pylist()
    batches = db.execute(sql).to_batches(7)
    assert batches.read_all().to_pylist() == plain.to_pylist()


def test_tables_without_keys_live_side_by_side(db: deeplake.Database) -> None:
    for name in ("a", "b", "c" * 63):
        db.execute(f"CREATE TABLE {name} (note TEXT)")
        assert db.describe(name).added_key == "id" and db.describe(name).key_name is None


def test_definitions_are_what_psql_would_find(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE p (code VARCHAR(5) PRIMARY KEY, photo IMAGE)")
    db.execute("CREATE TABLE c (note TEXT DEFAULT 'x', p TEXT REFERENCES p (code) ON DELETE CASCADE, tags TEXT[])")
    assert db.tables()["c"].primary_key == ("id",) and db.describe("c").added_key == "id"
    with tool(db) as psql:
        kinds = dict(psql.execute("SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
                                  "WHERE attrelid = 'p'::regclass AND attnum > 0").fetchall())  # fmt: skip
        assert kinds == {"code": "character varying(5)", "photo": "bigint"}
        late = "SELECT condeferrable, condeferred FROM pg_constraint WHERE contype = 'f'"
        assert psql.execute(late).fetchall() == [(True, False)]
    (key,) = db.describe("c").foreign_keys
    assert (key.columns, key.table, key.targets, key.on_delete) == (("p",), "p", ("code",), "CASCADE")
    assert db.describe("p").lengths == {"code": 5} and db.describe("c").defaults == {"note": "'x'::text"}
    db.execute("INSERT INTO c (tags) VALUES (%s)", [["a", "b"]])
    assert db.execute("SELECT tags FROM c").scalar() == ["a", "b"]
    db.insert("c", [{"tags": ["c"]}])
    assert db.execute("SELECT tags FROM c WHERE id = 2").scalar() == ["c"]
    db.execute("ALTER TABLE p ADD COLUMN clip VIDEO, ADD COLUMN size INTEGER NOT NULL DEFAULT 3")
    db.execute("ALTER TABLE p RENAME COLUMN photo TO picture")
    assert [str(c.type) for c in db.tables()["p"].columns] == ["TEXT", "IMAGE", "VIDEO", "INTEGER"]
    assert [c.name for c in db.tables()["p"].columns] == ["code", "picture", "clip", "size"]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT g.v, g.x FROM g, LATERAL (SELECT 1) one",
        "WITH made AS (UPDATE g SET n = 2 RETURNING v, x) SELECT v, x FROM made",
        "SELECT q.v, q.x FROM (SELECT * FROM g) q GROUP BY ROLLUP (q.v, q.x) HAVING NOT (q.x IS NULL OR q.v IS NULL)",
        "UPDATE g SET n = 3 RETURNING v, x",
    ],
)
def test_a_column_keeps_its_type_whatever_the_query(db: deeplake.Database, sql: str) -> None:
    db.execute("CREATE TABLE g (id BIGINT PRIMARY KEY, n INTEGER, v VECTOR(2), x BLOB)")
    db.execute("INSERT INTO g (n, v, x) VALUES (1, %s, %s)", [[1.5, 2], b"bytes"])
    (row,) = db.execute(sql)
    assert row.v.tolist() == [1.5, 2] and row.x.bytes() == b"bytes"


def test_a_real_is_the_same_beside_a_vector(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE g (id BIGINT PRIMARY KEY, r REAL, v VECTOR(2))")
    given = [0.1, -7.25, 3.4e38, 1e-40, 16777216.0, float("inf"), 1 / 3]
    db.executemany("INSERT INTO g (r, v) VALUES (%s, %s)", [(r, [1, 2]) for r in given])
    alone = [row.r for row in db.execute("SELECT r FROM g ORDER BY id")]
    assert [row.r for row in db.execute("SELECT r, v FROM g ORDER BY id")] == alone
    assert alone[0] == 0.1 and np.float32(alone[6]) == np.float32(1 / 3)


@pytest.mark.parametrize(
    ("sql", "params", "position"),
    [
        ("SELECT nothing FROM t WHERE id = %s", [1], 7),
        ("SELECT id FROM t\nWHERE id = :a AND nothing = :b", {"a": 1, "b": 2}, 35),
        ("SELECT id FROM t WHERE a = '100%%' AND b = %s", ["x"], 39),
    ],
)
def test_errors_point_into_the_users_own_text(db: deeplake.Database, sql: str, params: Any, position: int) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, a TEXT)")
    with pytest.raises(errors.SQLError) as caught:
        db.execute(sql, params)
    assert abs((caught.value.position or 0) - position) <= 1


@pytest.mark.parametrize(
    "sql",
    ["BEGIN", "COMMIT", "SET search_path = pg_catalog", "COPY t TO '/tmp/x'", "VACUUM", "SELECT 1; SELECT 2",
     "SELECT * FROM _dl.t", "DELETE FROM _dl_files", "CREATE TABLE u AS SELECT 1", "SELECT 1 INTO u",
     "ALTER TABLE t RENAME TO u", "CREATE TABLE pg_temp.u (id INTEGER)"],
)  # fmt: skip
def test_what_would_take_the_connection_or_the_bookkeeping_is_refused(db: deeplake.Database, sql: str) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY)")
    with pytest.raises(errors.SQLError):
        db.execute(sql)
    assert db.execute("SELECT count(*) FROM t").scalar() == 0


def test_ids_follow_those_that_were_given(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, a INTEGER)")
    db.execute("INSERT INTO t (id, a) VALUES (10, 1)")
    assert db.execute("INSERT INTO t (a) VALUES (2)").lastrowid == 11
    db.insert("t", {"id": [20, 30]})
    db.insert("t", {"a": [3]})
    db.executemany("INSERT INTO t (id) VALUES (%s)", [[40]])
    assert db.execute("INSERT INTO t (a) VALUES (4) RETURNING id").scalar() == 41
    assert [row.id for row in db.execute("SELECT id FROM t ORDER BY id")] == [10, 11, 20, 30, 31, 40, 41]


def test_long_names_and_names_that_differ_in_case_are_refused(db: deeplake.Database) -> None:
    for sql in (f"CREATE TABLE {'x' * 64} (id INTEGER)", f"CREATE TABLE t (id INTEGER, {'y' * 64} TEXT)"):
        with pytest.raises(errors.InputError, match="63"):
            db.execute(sql)
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY)")
    with pytest.raises(errors.SQLError, match="case"):
        db.execute('CREATE TABLE "T" (id BIGINT PRIMARY KEY)')
