"""Branches in a PostgreSQL database as psql sees them: schemas of views that any tool reads and writes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deeplake_loader as deeplake
from deeplake_loader import errors

psycopg = pytest.importorskip("psycopg")
pytestmark = pytest.mark.both_catalogs
only = pytest.mark.postgres_only("other tools write branches in a PostgreSQL database alone")

TABLE = (
    "CREATE TABLE t (id BIGINT PRIMARY KEY, a TEXT DEFAULT 'd', b INTEGER UNIQUE, "
    "g INTEGER GENERATED ALWAYS AS (b * 2) STORED)"
)
ROWS = "INSERT INTO t (id, a, b) VALUES (1, 'one', 10), (2, 'two', 20), (3, 'three', NULL)"


@contextmanager
def psql(place: Any, branch: str | None = None) -> Iterator[Any]:
    """Another tool's session, which knows nothing but SQL."""
    with psycopg.connect(place.url, autocommit=True) as session:
        if branch is not None:
            session.execute(f'SET search_path = "{branch}"'.encode())
        yield session


def read(session: Any, sql: str = "SELECT * FROM t ORDER BY id") -> list[tuple[Any, ...]]:
    return list(session.execute(sql).fetchall())


def shown(db: deeplake.Database) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in db.execute("SELECT * FROM t ORDER BY id")]


@pytest.fixture
def table(db: deeplake.Database) -> deeplake.Database:
    db.execute(TABLE)
    db.execute(ROWS)
    return db


@only
def test_what_psql_writes_on_a_branch_is_what_a_table_would_hold(table: deeplake.Database, place: Any) -> None:
    table.branch("x/y")
    with psql(place) as plain, psql(place, "x/y") as branch:
        plain.execute("CREATE SCHEMA plain")
        plain.execute("CREATE TABLE plain.t (LIKE public.t INCLUDING ALL EXCLUDING IDENTITY)")
        plain.execute("INSERT INTO plain.t (id, a, b) SELECT id, a, b FROM public.t")
        plain.execute("ALTER TABLE plain.t ALTER id SET DEFAULT nextval('public.t_id_seq')")
        plain.execute("UPDATE public.t SET b = b + 7, a = 'main'")
        plain.execute("SET search_path = plain")
        for statement in (
            "INSERT INTO t (id, b) VALUES (7, 70) RETURNING *",
            "INSERT INTO t (id, a, b) VALUES (8, NULL, 80) RETURNING a, g",
            "INSERT INTO t (id, b) VALUES (1, 99)",
            "INSERT INTO t (id, b) VALUES (9, 20)",
            "UPDATE t SET b = b + 1 WHERE b > 10 RETURNING id, g",
            "UPDATE t SET id = 30 WHERE id = 3 RETURNING *",
            "UPDATE t SET a = v.a FROM (VALUES (1, 'x'), (1, 'x'), (2, 'y')) v (id, a) WHERE v.id = t.id",
            "MERGE INTO t USING (VALUES (2, 'm'), (50, 'n')) s (id, a) ON t.id = s.id "
            "WHEN MATCHED THEN UPDATE SET a = s.a WHEN NOT MATCHED THEN INSERT (id, a) VALUES (s.id, s.a)",
            "WITH w AS (DELETE FROM t WHERE id = 1 RETURNING *) INSERT INTO t (id, a) SELECT id + 500, a FROM w",
            "DELETE FROM t WHERE id = 2 RETURNING a",
            "DELETE FROM t WHERE id = 777",
        ):
            assert _outcome(branch, statement) == _outcome(plain, statement), statement
    assert {c.author for c in table.log("x/y", limit=3)} == {"postgres"}
    assert table.diff("main", "x/y").counts["t"].added == 5


def _outcome(session: Any, statement: str) -> Any:
    try:
        cursor = session.execute(statement)
    except psycopg.Error as error:
        return type(error), read(session)
    rows = sorted(cursor.fetchall(), key=repr) if cursor.description else None
    return rows, cursor.rowcount, read(session)


@only
def test_what_psql_writes_is_in_the_log_the_diff_and_the_merge(table: deeplake.Database, place: Any) -> None:
    with table.branch("x"):
        pass
    with psql(place, "x") as branch, psql(place) as main:
        with branch.transaction():
            branch.execute("UPDATE t SET a = 'psql' WHERE id = 1")
            branch.execute("DELETE FROM t WHERE id = 2")
        main.execute("INSERT INTO t (b) VALUES (70)")
    newest = table.log("x", limit=1)[0]
    assert (newest.changes["t"].changed, newest.changes["t"].removed) == (1, 1)
    assert table.log(limit=1)[0].changes["t"].added == 1
    assert [(c.key, c.kind) for c in table.diff("main", "x")] == [(1, "changed"), (2, "removed"), (4, "removed")]
    table.merge("x", into="main")
    with psql(place) as main:
        assert read(main, "SELECT id, a FROM t ORDER BY id") == [(1, "psql"), (3, "three"), (4, "d")]
    with table.at(newest.id) as then:
        assert [row[0] for row in shown(then)] == [1, 3]


@only
def test_a_fork_never_shows_rows_of_a_transaction_that_was_open(table: deeplake.Database, place: Any) -> None:
    with psql(place) as writer, psql(place) as other:
        with writer.transaction():
            writer.execute("UPDATE t SET a = 'open' WHERE id = 1")
            other.execute("UPDATE t SET a = 'done' WHERE id = 2")
            with table.branch("x"):
                before = shown(table)
            table.tag("v")
        with table.checkout("x"):
            assert shown(table) == before
        assert [row[1] for row in before] == ["one", "done", "three"]
        with table.at("v") as then:
            assert shown(then) == before
        other.execute("TRUNCATE t")
    with table.checkout("x"):
        assert shown(table) == before


@only
def test_increments_on_a_branch_are_never_lost(
    table: deeplake.Database, place: Any, reconnect: Callable[..., Any]
) -> None:
    table.execute("UPDATE t SET b = 1000 WHERE id = 1")
    table.branch("x")
    refused = [0, 0]

    def count(i: int) -> None:
        if i == 0:
            with reconnect(branch="x") as db:
                for _ in range(10):
                    db.execute("UPDATE t SET b = b + 1 WHERE id = 1")
            return
        with psql(place, "x") as session:
            for _ in range(10):
                while True:
                    try:
                        session.execute("UPDATE t SET b = b + 1 WHERE id = 1")
                        break
                    except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected):
                        refused[i - 1] += 1

    threads = [threading.Thread(target=count, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert table.execute("SELECT b FROM t WHERE id = 1").scalar() == 1030


@only
def test_a_branch_is_made_once(table: deeplake.Database, reconnect: Callable[..., Any]) -> None:
    found: list[object] = []
    handles = [reconnect() for _ in range(2)]

    def make(db: deeplake.Database) -> None:
        try:
            db.branch("same")
            found.append("made")
        except errors.InputError as error:
            found.append("already" in str(error))

    threads = [threading.Thread(target=make, args=(h,)) for h in handles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, found)) == ["True", "made"]


STEP = st.tuples(st.integers(0, 2), st.sampled_from(["put", "drop", "key"]), st.integers(1, 5), st.integers(0, 9))


@only
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEP, max_size=14))
def test_histories_by_psql_equal_a_model(place: Any, steps: list[tuple[int, str, int, int]]) -> None:
    with place.connect() as db:
        db.execute("DROP TABLE IF EXISTS h")
        db.execute("CREATE TABLE h (id BIGINT PRIMARY KEY, v INTEGER)")
        db.execute("INSERT INTO h VALUES (1, 1), (2, 2)")
        names, model = ["public", "a", "a/b"], [{1: 1, 2: 2}]
        for name in names[1:]:
            db.branch(name)
            model.append(dict(model[-1]))
        with psql(place) as session:
            for which, deed, key, value in steps:
                session.execute(f'SET search_path = "{names[which]}"'.encode())
                rows = model[which]
                if deed == "put" and key in rows:
                    session.execute("UPDATE h SET v = %s WHERE id = %s", [value, key])
                    rows[key] = value
                elif deed == "put":
                    session.execute("INSERT INTO h VALUES (%s, %s)", [key, value])
                    rows[key] = value
                elif deed == "drop":
                    session.execute("DELETE FROM h WHERE id = %s", [key])
                    rows.pop(key, None)
                elif key in rows and key + 10 not in rows:
                    session.execute("UPDATE h SET id = id + 10 WHERE id = %s", [key])
                    rows[key + 10] = rows.pop(key)
                for name, expected in zip(names, model, strict=True):
                    session.execute(f'SET search_path = "{name}"'.encode())
                    assert dict(read(session, "SELECT * FROM h")) == expected
        for name in ("a/b", "a"):
            db.checkout("main")
            db.delete_branch(name)


MANY = {
    "UPDATE t SET a = ? WHERE id = ?": [["x", 1], ["y", 2], ["z", 1], ["none", 99]],
    "DELETE FROM t WHERE b > ?": [[15], [5], [5]],
    "UPDATE t SET id = id + ? WHERE id = ?": [[10, 1], [10, 2], [10, 11]],
    "INSERT INTO t (id, a, b) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET a = excluded.a": [
        [1, "x", 70], [7, "y", 80], [7, "z", 90], [2, "w", 20],
    ],
    "INSERT INTO t (a, b) VALUES (?, ?) ON CONFLICT (b) DO UPDATE SET a = t.a || excluded.a": [
        ["x", 10], ["y", 11], ["z", 10],
    ],
    "INSERT INTO t (id, b) VALUES (?, ?) ON CONFLICT DO NOTHING": [[1, 1], [9, 20], [9, 21], [9, 22]],
    "UPDATE t SET b = b + ? WHERE b = (SELECT max(b) FROM t)": [[1], [-9], [100]],
    "DELETE FROM t USING (VALUES (?::bigint)) v (id) WHERE v.id = t.id": [[1], [2], [1]],
}  # fmt: skip


@only
@pytest.mark.parametrize("statement", MANY)
def test_a_change_for_many_rows_does_on_a_branch_what_it_does_on_main(table: deeplake.Database, statement: str) -> None:
    with table.branch("x"):
        pass
    on_main, expected = table.executemany(statement, MANY[statement]).rowcount, shown(table)
    table.checkout("x")
    assert table.executemany(statement, MANY[statement]).rowcount == on_main
    assert [row[1:] for row in shown(table)] == [row[1:] for row in expected]
    given = [row[0] for row in expected if row[0] < 4 or "id" in statement.partition("VALUES")[0]]
    assert set(given) <= {row[0] for row in shown(table)}


@only
def test_a_handle_at_a_point_keeps_nobody_from_changing_the_tables(table: deeplake.Database, place: Any) -> None:
    table.tag("v")
    table.execute("UPDATE t SET a = 'new'")
    table.branch("x", from_="main")
    with table.at("v") as then, psql(place) as other:
        assert [row.a for row in then.execute("SELECT * FROM t ORDER BY id")] == ["one", "two", "three"]
        table.execute("ALTER TABLE t DROP COLUMN g")
        assert then.execute("SELECT * FROM t WHERE id = 1").fetchall() == [(1, "one", 10)]
        table.execute("ALTER TABLE t ADD COLUMN c INTEGER DEFAULT 5")
        assert then.execute("SELECT * FROM t WHERE id = 1").fetchall() == [(1, "one", 10, 5)]
        assert then.execute("SELECT count(*), max(a) FROM t").fetchall() == [(3, "two")]
        with pytest.raises(errors.StoreError, match="read-only"):
            then.execute("WITH d AS (DELETE FROM t RETURNING *) SELECT * FROM d")
        assert read(other, "SELECT count(*) FROM pg_class WHERE relnamespace::regnamespace::text ~ '^pg_temp'") == [
            (0,)
        ]
        table.checkout("main")
        table.delete_branch("x")
        table.untag("v")
        table.execute("DROP TABLE t")
        with pytest.raises(errors.DeeplakeError, match="t"):
            then.execute("SELECT * FROM t")


@only
def test_an_upsert_names_a_constraint_of_the_table_on_main_and_on_a_branch(db: deeplake.Database) -> None:
    db.execute('CREATE TABLE t (id BIGINT PRIMARY KEY, a TEXT, b INTEGER, CONSTRAINT "only B" UNIQUE (b))')
    db.execute("INSERT INTO t VALUES (1, 'one', 1), (2, 'two', 2)")
    with db.branch("x"):
        pass
    found = []
    for branch in ("main", "x"):
        db.checkout(branch)
        for name, row in (('"only B"', [9, "nine", 2]), ("t_pkey", [1, "again", 7]), ("t_pkey", [3, "three", 3])):
            db.execute(
                f"INSERT INTO t VALUES (?, ?, ?) ON CONFLICT ON CONSTRAINT {name} DO UPDATE SET a = excluded.a", row
            )
        found.append(shown(db))
        with pytest.raises(errors.SQLError, match="nothing"):
            db.execute("INSERT INTO t VALUES (5, 'x', 5) ON CONFLICT ON CONSTRAINT nothing DO NOTHING")
    assert found[0] == found[1] == [(1, "again", 1), (2, "nine", 2), (3, "three", 3)]


@only
def test_truncate_empties_main_and_is_refused_by_name_on_a_branch(table: deeplake.Database, place: Any) -> None:
    before = shown(table)
    table.tag("v")
    table.branch("x")
    with pytest.raises(errors.UnsupportedSQLError, match="DELETE FROM t"):
        table.execute("TRUNCATE t")
    with psql(place, "x") as branch, pytest.raises(psycopg.errors.WrongObjectType):
        branch.execute("TRUNCATE t")
    with table.checkout("main"):
        table.execute("TRUNCATE t")
        assert shown(table) == []
    assert shown(table) == before
    with table.at("v") as then:
        assert shown(then) == before


@only
def test_first_writers_by_psql_are_asked_to_run_again_and_never_wait_for_each_other(
    table: deeplake.Database, place: Any
) -> None:
    with table.branch("x"):
        pass
    ready = threading.Barrier(4)

    def add(key: int) -> None:
        with psql(place, "x") as session:
            ready.wait()
            while True:
                try:
                    session.execute("INSERT INTO t (id, b) VALUES (%s, %s)", [key, key])
                    return
                except psycopg.errors.SerializationFailure:
                    continue

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(100, 104)))
    with table.checkout("x"):
        assert [row[0] for row in shown(table)] == [1, 2, 3, 100, 101, 102, 103]


@only
def test_branches_with_names_longer_than_an_identifier_stay_apart(db: deeplake.Database, place: Any) -> None:
    names = ["experiment/" + "long" * 20 + end for end in ("one", "two")]
    tables = ["t" * 60 + end for end in ("one", "two")]
    for name in tables:
        db.execute(f"CREATE TABLE {name} (id BIGINT PRIMARY KEY, {'c' * 63} INTEGER)")
        db.execute(f"INSERT INTO {name} VALUES (1, 1)")
    for i, branch in enumerate(names):
        with db.branch(branch, from_="main"):
            for j, name in enumerate(tables):
                db.execute(f"UPDATE {name} SET {'c' * 63} = {10 * i + j}")
    with psql(place) as session:
        places = [row[0] for row in read(session, "SELECT place FROM _dl._dl_branches WHERE id > 1 ORDER BY id")]
        for i, schema in enumerate(places):
            assert len(schema.encode()) <= 63
            found = [read(session, f'SELECT * FROM "{schema}".{name}') for name in tables]
            assert found == [[(1, 10 * i)], [(1, 10 * i + 1)]]
    for i, branch in enumerate(names):
        with db.checkout(branch):
            assert [db.execute(f"SELECT * FROM {name}").fetchall() for name in tables] == [
                [(1, 10 * i)], [(1, 10 * i + 1)],
            ]  # fmt: skip
        db.merge(branch, "main", on_conflict="theirs")
    assert [db.execute(f"SELECT * FROM {name}").fetchall() for name in tables] == [[(1, 10)], [(1, 11)]]


@only
def test_two_stores_in_one_database_have_branches_of_the_same_name(
    table: deeplake.Database, place: Any, tmp_path: Path
) -> None:
    url = f"{place.url}{'&' if '?' in place.url else '?'}schema=team"
    with deeplake.connect(url, storage=tmp_path / "team") as team:
        team.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, a TEXT)")
        team.execute("INSERT INTO t VALUES (1, 'team')")
        for db in (table, team):
            db.branch("x")
            db.execute("UPDATE t SET a = a || '!' WHERE id = 1")
        with psql(place, "x") as first, psql(place, "team@x") as second:
            assert read(first, "SELECT a FROM t WHERE id = 1") == [("one!",)]
            assert read(second) == [(1, "team!")]
            second.execute("INSERT INTO t VALUES (2, 'psql')")
        assert team.merge("x", "main").added == 1
        assert team.checkout("main") and shown(team) == [(1, "team!"), (2, "psql")]
        with table.checkout("main"):
            assert [row[1] for row in shown(table)] == ["one", "two", "three"]
        team.delete_branch("x")
        assert [b.name for b in table.branches()] == ["main", "x"]


@only
def test_a_role_may_do_on_a_branch_what_it_may_on_main(table: deeplake.Database, place: Any) -> None:
    role = f"r{os.urandom(6).hex()}"
    with psql(place) as admin:
        admin.execute(f"CREATE ROLE {role}")
        admin.execute(f"GRANT USAGE ON SCHEMA public TO {role}")
        admin.execute(f"GRANT SELECT ON t TO {role}")
        try:
            with table.branch("reads"):
                table.execute("UPDATE t SET a = 'theirs' WHERE id = 1")
            admin.execute(f"GRANT UPDATE ON t TO {role}")
            with table.branch("writes"):
                pass
            admin.execute(f"SET ROLE {role}")
            assert read(admin, 'SELECT a FROM "reads".t WHERE id = 1') == [("theirs",)]
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                admin.execute('UPDATE "reads".t SET a = NULL')
            admin.execute("UPDATE \"writes\".t SET a = 'ours' WHERE id = 1")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                admin.execute('DELETE FROM "writes".t')
            for own in ("_dl._dl_branches", "_dl._dl_log_t"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    admin.execute(f"SELECT * FROM {own}")
            admin.execute("RESET ROLE")
            with table.checkout("writes"):
                assert [row[1] for row in shown(table)] == ["ours", "two", "three"]
        finally:
            admin.execute("RESET ROLE")
            admin.execute(f"DROP OWNED BY {role}")
            admin.execute(f"DROP ROLE {role}")


def test_a_branch_can_be_read_at_the_moment_it_is_in(table: deeplake.Database) -> None:
    table.branch("x")
    table.execute("UPDATE t SET a = 'here' WHERE id = 1")
    with table.at("x") as then, table.at("main") as main:
        table.execute("DELETE FROM t")
        assert [row[1] for row in shown(then)] == ["here", "two", "three"]
        assert [row[1] for row in shown(main)] == ["one", "two", "three"]
