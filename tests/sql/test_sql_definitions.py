"""CREATE TABLE and its relatives: what SQLite is given, what another tool may do with it, what is refused."""

from __future__ import annotations

import sqlite3

import pytest
from playground import Playground

from deeplake_loader.errors import ConstraintError, DeeplakeError, SQLError, UnsupportedSQLError
from deeplake_loader.sql import compile_statement
from deeplake_loader.types import Table

PAGE = """CREATE TABLE generations (id BIGINT PRIMARY KEY, prompt TEXT NOT NULL, clip_embedding VECTOR(768),
          frames VIDEO, thumbnail IMAGE, latent TENSOR(float16, 4, *, 64), model_version TEXT, cfg_scale REAL,
          steps INTEGER, created_at TIMESTAMP)"""


def definition(sql: str) -> Table:
    table = compile_statement(sql, {}).definition
    assert table is not None
    return table


def test_the_page_example_becomes_a_plain_table() -> None:
    plan = compile_statement(PAGE, {})
    table = definition(PAGE)
    assert [str(c.type) for c in table.columns][2:6] == ["VECTOR(768)", "VIDEO", "IMAGE", "TENSOR(float16, 4, *, 64)"]
    assert table.primary_key == ("id",) and not table.columns[0].nullable and not table.columns[1].nullable
    db = sqlite3.connect(":memory:")
    db.execute(plan.table_sql or "")
    stored = {row[1]: row[2] for row in db.execute("PRAGMA table_info(generations)")}
    assert stored["clip_embedding"] == stored["latent"] == "BIGINT" and stored["created_at"] == "TIMESTAMP"
    db.execute("INSERT INTO generations (prompt, frames) VALUES ('a', 216173881625411589)")
    assert db.execute("SELECT id, typeof(frames) FROM generations").fetchall() == [(1, "integer")]
    for wrong in ("'x'", "1.5", "x'00'"):
        with pytest.raises(sqlite3.IntegrityError):
            db.execute(f"INSERT INTO generations (prompt, frames) VALUES ('a', {wrong})")
    db.execute("DELETE FROM generations")
    db.execute("INSERT INTO generations (prompt) VALUES ('b')")
    assert db.execute("SELECT id FROM generations").fetchall() == [(2,)], "ids are never given twice"


@pytest.mark.parametrize(
    ("sql", "start"),
    [
        ("CREATE TABLE t (a TEXT)", "id INTEGER CONSTRAINT _dl_added_key PRIMARY KEY AUTOINCREMENT, a TEXT"),
        ("CREATE TABLE t (id INT)", "row_id INTEGER CONSTRAINT _dl_added_key PRIMARY KEY AUTOINCREMENT, id INTEGER"),
        ("CREATE TABLE t (id SERIAL PRIMARY KEY)", "id INTEGER PRIMARY KEY AUTOINCREMENT"),
        ("CREATE TABLE t (k INT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, b BIGSERIAL)", None),
        ("CREATE TABLE t (k INTEGER, v TEXT, PRIMARY KEY (k))", "k INTEGER PRIMARY KEY AUTOINCREMENT, v TEXT"),
        ("CREATE TABLE t (k TEXT PRIMARY KEY)", "k TEXT NOT NULL PRIMARY KEY"),
        ("CREATE TABLE t (a INT, b TEXT, PRIMARY KEY (a, b))",
         "a INTEGER NOT NULL, b TEXT NOT NULL, PRIMARY KEY (a, b)"),
        ("CREATE TABLE t (id UUID PRIMARY KEY, j JSONB)", "id UUID TEXT NOT NULL PRIMARY KEY, j JSON TEXT"),
        ("CREATE TABLE t (id INT PRIMARY KEY, v VARCHAR(3))",
         "id INTEGER PRIMARY KEY AUTOINCREMENT, v TEXT CHECK (length"),
        ("CREATE TABLE t (id INT PRIMARY KEY, x NUMERIC(10,2) DEFAULT 1.50 CHECK (x > 0))",
         "id INTEGER PRIMARY KEY AUTOINCREMENT, x NUMERIC(10, 2) DEFAULT 1.5 CHECK (x > 0))"),
    ],
)  # fmt: skip
def test_keys_and_types(sql: str, start: str | None) -> None:
    if start is None:
        with pytest.raises(UnsupportedSQLError, match="SERIAL and IDENTITY"):
            compile_statement(sql, {})
        return
    assert compile_statement(sql, {}).sql.startswith(f"CREATE TABLE t ({start}")


def test_unquoted_names_fold_to_lower_case_as_in_postgresql() -> None:
    table = definition('CREATE TABLE Things (createdAt TIMESTAMP, "Mixed" TEXT)')
    assert (table.name, [c.name for c in table.columns]) == ("things", ["id", "createdat", "Mixed"])


def test_constraints_and_defaults_work_in_any_sqlite_tool() -> None:
    ground = Playground()
    ground.run("CREATE TABLE parent (id BIGINT PRIMARY KEY, name TEXT UNIQUE)")
    ground.run(
        """CREATE TABLE child (id BIGINT PRIMARY KEY, p BIGINT REFERENCES parent(id) ON DELETE CASCADE,
           a INTEGER DEFAULT 5, b BOOLEAN DEFAULT true, j JSONB DEFAULT '{"k": 1}', t TIMESTAMP DEFAULT now(),
           z TIMESTAMPTZ DEFAULT now(), d DATE DEFAULT CURRENT_DATE, u UUID DEFAULT gen_random_uuid(),
           r REAL DEFAULT -1.5, s TEXT DEFAULT 'x', twice INTEGER GENERATED ALWAYS AS (a * 2) STORED,
           CONSTRAINT small CHECK (a < 100 AND s LIKE 'x%'),
           UNIQUE (a, s), FOREIGN KEY (s) REFERENCES parent (name) DEFERRABLE INITIALLY DEFERRED)"""
    )
    ground.run("INSERT INTO parent VALUES (1, 'x')")
    other = ground.connection  # as another tool would: no function of ours is called
    other.execute("INSERT INTO child (p) VALUES (1)")
    row = ground.run("SELECT a, b, j, twice, r, s, t > '2000-01-01', u IS NULL, length(u::text) FROM child")
    assert row == [(5, True, {"k": 1}, 10, -1.5, "x", True, False, 36)]
    stamp = other.execute("SELECT t, z, d FROM child").fetchone()
    assert len(stamp[0]) == 26 and stamp[1].endswith("+00:00") and len(stamp[1]) == 32 and stamp[2] == stamp[0][:10]
    for bad in ("(1, 200, 'x')", "(1, 5, 'X')", "(9, 6, 'x')", "(1, 5, 'x')"):
        with pytest.raises(ConstraintError):
            ground.run(f"INSERT INTO child (p, a, s) VALUES {bad}")
    ground.run("DELETE FROM parent")
    assert ground.run("SELECT count(*) FROM child") == [(0,)]


def test_indexes_are_native() -> None:
    ground = Playground()
    ground.run(PAGE)
    ground.run("CREATE INDEX ON generations (steps DESC NULLS LAST, model_version) WHERE steps > 10")
    ground.run("CREATE UNIQUE INDEX IF NOT EXISTS u ON generations USING btree (prompt, (steps + 1))")
    names = [r[1] for r in ground.connection.execute("PRAGMA index_list(generations)")]
    assert set(names) == {"u", "generations_steps_model_version_idx"}
    ground.run("DROP INDEX u")
    with pytest.raises(UnsupportedSQLError):
        ground.run("CREATE INDEX v ON generations (clip_embedding)")
    with pytest.raises(UnsupportedSQLError, match="functions of ours"):
        ground.run("CREATE INDEX v ON generations (lower(prompt))")
    with pytest.raises(UnsupportedSQLError, match="USING hnsw"):
        ground.run("CREATE INDEX v ON generations USING hnsw (clip_embedding)")


def test_alter_table_gives_the_table_as_it_is_afterwards() -> None:
    ground = Playground()
    ground.run(PAGE)
    ground.run("INSERT INTO generations (prompt) VALUES ('a')")
    ground.run("ALTER TABLE generations ADD COLUMN score REAL NOT NULL DEFAULT 0.5")
    ground.run("ALTER TABLE generations ADD COLUMN IF NOT EXISTS extra VECTOR(3)")
    plan = ground.plan("ALTER TABLE generations RENAME COLUMN steps TO num_steps")
    assert plan.renames == (("steps", "num_steps"),)
    ground.run("ALTER TABLE generations RENAME steps TO num_steps")
    ground.run("ALTER TABLE generations DROP COLUMN model_version")
    names = [c.name for c in ground.schema["generations"].columns]
    assert names == [r[1] for r in ground.connection.execute("PRAGMA table_info(generations)")]
    assert ground.run("SELECT score, extra, num_steps FROM generations") == [(0.5, None, None)]
    for bad in ("ADD COLUMN score INT", "ADD COLUMN b INT NOT NULL", "ADD COLUMN c INT UNIQUE", "DROP COLUMN id",
                "ADD COLUMN d TIMESTAMP DEFAULT now()", "RENAME TO other", "ALTER COLUMN prompt TYPE INT",
                "ADD CONSTRAINT x CHECK (1 = 1)", "DROP COLUMN nope"):  # fmt: skip
        with pytest.raises(SQLError):
            ground.run(f"ALTER TABLE generations {bad}")
    ground.run("DROP TABLE IF EXISTS generations")
    ground.run("DROP TABLE IF EXISTS generations") if "generations" in ground.schema else None
    with pytest.raises(SQLError, match="there is no table"):
        ground.run("DROP TABLE generations")


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE _dl_x (a INT)",
        "CREATE TABLE t (_dl_a INT)",
        "CREATE TABLE sqlite_x (a INT)",
        "CREATE TABLE t (a INT, A TEXT)",
        "CREATE TABLE t (rowid INT)",
        "CREATE TABLE t (a INT[])",
        "CREATE TABLE t (a INTERVAL)",
        "CREATE TABLE t (a CHAR(3))",
        "CREATE TABLE t (a MONEY)",
        "CREATE TABLE t (a VECTOR)",
        "CREATE TABLE t (a VECTOR(0))",
        "CREATE TABLE t (a VECTOR(3, float64))",
        "CREATE TABLE t (a TENSOR(float17, 3))",
        "CREATE TABLE t (a NUMERIC(40, 2))",
        "CREATE TABLE t (a VECTOR(3) PRIMARY KEY)",
        "CREATE TABLE t (a IMAGE UNIQUE)",
        "CREATE TABLE t (a INT DEFAULT 'x')",
        "CREATE TABLE t (a TEXT CHECK (a ~ 'x'))",
        "CREATE TABLE t (a INT CHECK (a))",
        "CREATE TABLE t (a INT CHECK (b > 1))",
        "CREATE TABLE t (a INT CHECK (a > (SELECT 1)))",
        "CREATE TABLE t (a INT DEFAULT %s)",
        "CREATE TABLE t (a INT PRIMARY KEY, b INT PRIMARY KEY)",
        "CREATE TABLE t (a INT, PRIMARY KEY (b))",
        "CREATE TABLE t AS SELECT 1",
        "CREATE TEMP TABLE t (a INT)",
        "CREATE TABLE t (a TEXT COLLATE \"de_DE\")",
        "CREATE TABLE t (a INT) PARTITION BY RANGE (a)",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TABLE other.t (a INT)",
    ],
)  # fmt: skip
def test_definitions_that_cannot_be_kept_are_refused(sql: str) -> None:
    with pytest.raises(DeeplakeError):
        compile_statement(sql, {})


@pytest.mark.parametrize(
    ("sql", "hint"),
    [
        ("BEGIN", "db.transaction"),
        ("COMMIT", "db.transaction"),
        ("ROLLBACK TO a", "db.transaction"),
        ("SAVEPOINT a", "db.transaction"),
        ("PRAGMA journal_mode = DELETE", "PRAGMA"),
        ("ATTACH 'x.db' AS y", "connect"),
        ("COPY g FROM STDIN", "db.insert"),
        ("TRUNCATE g", "DELETE FROM"),
        ("MERGE INTO g USING h ON 1=1 WHEN MATCHED THEN DELETE", "ON CONFLICT"),
        ("REPLACE INTO g VALUES (1)", "ON CONFLICT"),
        ("INSERT OR REPLACE INTO g VALUES (1)", "ON CONFLICT"),
        ("VACUUM", "optimize"),
        ("SET search_path TO x", "settings"),
        ("EXPLAIN SELECT 1", "plans"),
        ("SELECT load_extension('x')", "extensions"),
        ("SELECT * FROM sqlite_master", "no table"),
        ("SELECT * FROM _dl_head", "no table"),
        ("SELECT * FROM pg_catalog.pg_class", "db.tables"),
        ("SELECT * FROM information_schema.tables", "db.tables"),
        ("SELECT * FROM generations FOR UPDATE", "db.transaction"),
        ("DELETE FROM _dl_tables", "no table"),
        ("UPDATE sqlite_sequence SET seq = 0", "no table"),
        ("SELECT name FROM pragma_table_info('g')", "not supported in FROM"),
        ("SELECT writefile('x', 'y')", "not supported"),
    ],
)
def test_what_is_not_the_users_is_refused_with_the_way_to_go(sql: str, hint: str) -> None:
    schema = {"generations": definition(PAGE)}
    with pytest.raises(SQLError, match=hint):
        compile_statement(sql, schema)


def test_deep_nesting_is_a_typed_error() -> None:
    for sql in ("SELECT " + "(" * 500 + "1" + ")" * 500, "SELECT " + "NOT " * 5000 + "true",
                "SELECT " + " + ".join(["1"] * 20_000), "SELECT 1" + " UNION ALL SELECT 1" * 5000,
                "SELECT " + "CASE WHEN true THEN " * 300 + "1" + " END" * 300):  # fmt: skip
        with pytest.raises(SQLError, match="nested"):
            compile_statement(sql, {})


def test_long_generated_conditions_and_lists_compile() -> None:
    schema = {"generations": definition(PAGE)}
    chain = " OR ".join(f"(id = {i} AND steps > %s)" for i in range(900))
    assert len(compile_statement(f"SELECT prompt FROM generations WHERE {chain}", schema).binds) == 900
    numbers = ", ".join(map(str, range(20_000)))
    assert compile_statement(f"SELECT prompt FROM generations WHERE id IN ({numbers})", schema).sql.endswith("19999)")
    rows = ", ".join(["(%s, %s)"] * 1000)
    assert len(compile_statement(f"INSERT INTO generations (prompt, steps) VALUES {rows}", schema).binds) == 2000
