"""Branches, tags and time travel: every statement on a branch does what it does on main, and main never notices."""

from __future__ import annotations

import datetime as dt
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest

import deeplake_loader as deeplake
from deeplake_loader import errors

pytestmark = pytest.mark.both_catalogs
Connect = Callable[..., deeplake.Database]

NAMES = ["experiment/ddim-scheduler", 'it\'s "quoted"; DROP TABLE t; --'.replace(" ", "_"), "ветка/né", "a.b-c", "%s"]


def rows(db: deeplake.Database, sql: str = "SELECT * FROM t ORDER BY id") -> list[tuple[Any, ...]]:
    return [tuple(row) for row in db.execute(sql)]


def tables(db: deeplake.Database) -> None:
    db.execute(
        "CREATE TABLE t (id BIGINT PRIMARY KEY, a TEXT NOT NULL, b INTEGER UNIQUE, c INTEGER CHECK (c < 100), "
        "d INTEGER DEFAULT 7, g INTEGER GENERATED ALWAYS AS (c * 2) STORED)"
    )
    db.execute("CREATE TABLE src (id BIGINT PRIMARY KEY, a TEXT, b INTEGER)")
    db.execute("INSERT INTO src VALUES (2, 's2', 20), (50, 's50', 50), (51, 's51', 51)")
    db.execute(
        "INSERT INTO t (id, a, b, c) VALUES (1, 'one', 10, 1), (2, 'two', 20, 2), (3, 'three', 30, 3), "
        "(4, 'four', NULL, 4), (5, 'five', 50, 5)"
    )


STATEMENTS = [
    "INSERT INTO t (id, a, b) VALUES (1, 'dup', 99)",
    "INSERT INTO t (id, a, b) VALUES (9, 'dupb', 20)",
    "INSERT INTO t (a, b, c) VALUES ('auto', 60, 6) RETURNING id, a, d, g",
    "INSERT INTO t (id, a) VALUES (20, NULL)",
    "INSERT INTO t (id, a, c) VALUES (21, 'x', 100)",
    "UPDATE t SET c = c + 1 WHERE b IN (20, 30) RETURNING id, c, g",
    "UPDATE t SET b = 10 WHERE id = 2",
    "UPDATE t SET b = 50 WHERE id = 50",
    "UPDATE t SET a = 'z' WHERE id = 777",
    "INSERT INTO t (id, a, b) VALUES (2, 'up', 21) ON CONFLICT (id) DO UPDATE SET a = excluded.a, b = excluded.b "
    "RETURNING id, a, b, c",
    "INSERT INTO t (id, a, b) VALUES (30, 'upb', 30) ON CONFLICT (b) DO UPDATE SET a = t.a || excluded.a RETURNING *",
    "INSERT INTO t (id, a) VALUES (1, 'no') ON CONFLICT DO NOTHING",
    "INSERT INTO t (id, a) VALUES (1, 'no'), (31, 'yes') ON CONFLICT DO NOTHING RETURNING id",
    "UPDATE t SET a = src.a FROM src WHERE src.id = t.id RETURNING t.id, t.a",
    "INSERT INTO t (id, a, b) SELECT id + 100, a, b + 1000 FROM src WHERE id NOT IN (SELECT id FROM t)",
    "INSERT INTO t (id, a) SELECT id + 200, a FROM t WHERE id < 3 RETURNING id",
    "DELETE FROM t WHERE id IN (SELECT id FROM t WHERE c >= 5) RETURNING id, a",
    "DELETE FROM t WHERE id = 1",
    "INSERT INTO t (id, a, b) VALUES (1, 'again', 10) RETURNING *",
    "UPDATE t SET id = id + 1000 WHERE id = 3 RETURNING id",
    "INSERT INTO t (id, a) VALUES (3, 'reuse')",
    "DELETE FROM t WHERE id = 3",
    "UPDATE t SET c = (SELECT max(x.c) FROM t x) WHERE id < 10 RETURNING id, c",
    "WITH w AS (SELECT id FROM t WHERE id > 100) UPDATE t SET d = 8 WHERE id IN (SELECT id FROM w) RETURNING id, d",
    "DELETE FROM t USING src WHERE t.id = src.id + 100 RETURNING t.id",
    "UPDATE t AS q SET a = 'al' WHERE q.id > 0 RETURNING q.a",
    "UPDATE t SET d = 1 WHERE random() < 2",
    "DELETE FROM t WHERE random() < 0",
    "DELETE FROM t RETURNING id",
    "INSERT INTO t (a) VALUES ('after delete') RETURNING a",
    "INSERT INTO t (a, b) VALUES ('x', 1), ('y', 1)",
]
MOVES = [  # what main does after the branch was made; none of it may be seen there
    "UPDATE t SET a = 'MAIN', b = b + 7 WHERE id IN (1, 2)",
    "DELETE FROM t WHERE id = 3",
    "INSERT INTO t (id, a, b, c) VALUES (60, 'main60', 20, 1)",
    "INSERT INTO t (id, a) VALUES (3, 'again')",
    "UPDATE src SET a = 'MAIN'",
]


def outcome(db: deeplake.Database, statement: str) -> Any:
    try:
        result = db.execute(statement)
    except errors.ConstraintError as error:
        return type(error), error.constraint, error.table, error.columns, rows(db)
    found = sorted(map(tuple, result), key=repr) if result.returns_rows else None
    return found, result.rowcount, rows(db)


@pytest.fixture
def reference(new_store: Callable[[], Any]) -> Iterator[deeplake.Database]:
    with new_store().connect() as db:
        tables(db)
        db.execute("INSERT INTO t (id, a) VALUES (60, 'x')")
        db.execute("DELETE FROM t WHERE id = 60")
        yield db


@pytest.mark.parametrize("depth", [1, 2])
def test_a_branch_behaves_as_main_statement_by_statement(
    db: deeplake.Database, reference: deeplake.Database, depth: int
) -> None:
    tables(db)
    for name in NAMES[:depth]:
        db.branch(name)
        if depth == 2 and name == NAMES[0]:
            db.execute("UPDATE t SET d = 7 WHERE id IN (1, 4)")
            db.execute("UPDATE src SET a = a WHERE id = 50")
    with db.checkout("main"):
        for statement in MOVES:
            db.execute(statement)
        after = rows(db)
    for statement in STATEMENTS:
        assert outcome(db, statement) == outcome(reference, statement), statement
    db.checkout("main")
    assert rows(db) == after
    assert db.execute("INSERT INTO t (a) VALUES ('next') RETURNING id").scalar() > 202  # ids come from one sequence


def seen_by_others(place: Any, branch: str) -> list[tuple[Any, ...]]:
    """The keys of a branch's table as the databases' own tools read them."""
    quoted = branch.replace('"', '""')
    if place.kind == "sqlite":
        with closing(sqlite3.connect(f"{place.folder}/catalog.sqlite")) as other:
            return other.execute(f'SELECT id FROM "t@{quoted}"').fetchall()
    import psycopg

    with psycopg.connect(place.url) as session:
        return session.execute(f'SELECT id FROM "{quoted}".t'.encode()).fetchall()


@pytest.mark.parametrize("name", NAMES)
def test_a_branch_may_have_any_name_that_git_allows(
    db: deeplake.Database, place: Any, reconnect: Connect, name: str
) -> None:
    tables(db)
    before = rows(db)
    db.branch(name)
    db.execute("DELETE FROM t WHERE id > 1")
    assert db.current_branch == name and len(rows(db)) == 1
    assert seen_by_others(place, name) == [(1,)]
    db.checkout("main")
    assert rows(db) == before
    with reconnect(branch=name) as second:
        assert second.execute("SELECT count(*) FROM t").scalar() == 1
    db.rename_branch(name, "new")
    with db.checkout("new"):
        assert len(rows(db)) == 1
    assert db.current_branch == "main"
    db.delete_branch("new")
    assert [b.name for b in db.branches()] == ["main"]
    with pytest.raises(errors.NotFoundError):
        db.checkout("new")


@pytest.mark.parametrize(
    "name", ["", "a b", "-a", "a..b", "a.lock", "/a", "a/", "a//b", "@", "a~1", "a\n", ".a", "x/.y"]
)
def test_a_name_that_git_forbids_is_refused(db: deeplake.Database, name: str) -> None:
    with pytest.raises(errors.InputError):
        db.branch(name)
    assert len(db.branches()) == 1


def test_two_handles_work_on_two_branches_of_one_store(db: deeplake.Database, reconnect: Connect) -> None:
    tables(db)
    db.branch("a")
    with reconnect() as other:
        other.branch("b")
        for i in range(10):
            db.execute("INSERT INTO t (a, b) VALUES (%s, %s)", [f"a{i}", 1000 + i])
            other.execute("UPDATE t SET a = a || %s WHERE id = 1", [str(i)])
            with reconnect() as third:
                third.execute("UPDATE t SET c = c + 1 WHERE id = 2")
            assert len(rows(db)) == 6 + i and rows(db)[1][3] == 2
            assert rows(other)[0][1] == "one" + "".join(map(str, range(i + 1))) and rows(other)[1][3] == 2
        with db.checkout("main"):
            assert rows(db)[1][3] == 12 and len(rows(db)) == 5
        other.delete_branch("a") if other.current_branch == "x" else None
        other.checkout("main")
        other.delete_branch("b")
        with pytest.raises(errors.NotFoundError):
            other.checkout("b")


def test_a_handle_on_a_branch_that_was_deleted_says_so(db: deeplake.Database, reconnect: Connect) -> None:
    tables(db)
    db.branch("a")
    db.execute("DELETE FROM t")
    with reconnect() as other:
        other.delete_branch("a")
    with pytest.raises(errors.NotFoundError, match="deleted"):
        rows(db)
    with pytest.raises(errors.NotFoundError, match="deleted"):
        db.execute("INSERT INTO t (a) VALUES ('x')")
    db.checkout("main")
    assert len(rows(db)) == 5


def test_rolled_back_work_leaves_neither_rows_nor_branch(db: deeplake.Database) -> None:
    tables(db)
    before = rows(db)
    with pytest.raises(ZeroDivisionError), db.transaction():
        db.branch("gone")
        db.execute("DELETE FROM t")
        1 / 0  # noqa: B018
    assert db.current_branch == "main" and rows(db) == before and len(db.branches()) == 1
    db.branch("kept")
    db.execute("UPDATE t SET a = 'k' WHERE id = 1")
    inside = rows(db)
    with pytest.raises(ZeroDivisionError), db.transaction():
        db.execute("DELETE FROM t WHERE id < 3")
        with pytest.raises(errors.ConstraintError):
            db.execute("INSERT INTO t (id, a) VALUES (4, 'x')")
        assert len(rows(db)) == 3
        1 / 0  # noqa: B018
    assert rows(db) == inside
    with db.checkout("main"):
        assert rows(db) == before


def test_rows_of_a_deleted_branch_are_all_there_or_refused(db: deeplake.Database, reconnect: Connect) -> None:
    tables(db)
    with db.branch("gone"):
        db.execute("DELETE FROM t WHERE id > 1")
    with reconnect(branch="gone") as other:
        db.delete_branch("gone")
        with other.branch("rescued"):
            assert len(rows(other)) == 1
        db.delete_branch("rescued")
        db.optimize(keep=0)
        for verb in (other.branch, other.tag):
            with pytest.raises(errors.NotFoundError, match=r"deleted|older"):
                verb("late")
        assert [b.name for b in db.branches()] == ["main"] and db.tags() == []


def test_work_after_a_rollback_across_branches_is_logged_where_it_was_done(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, v TEXT)")
    db.execute("INSERT INTO t VALUES (1, 'main')")
    with db.branch("a"):
        pass
    with db.transaction(), db.checkout("a"):
        db.execute("UPDATE t SET v = 'a'")
        with suppress(KeyError), db.transaction():
            db.checkout("main")
            db.execute("UPDATE t SET v = 'lost'")
            raise KeyError
        assert db.current_branch == "a" and db.execute("SELECT v FROM t").scalar() == "a"
    changes = {name: [c.changes["t"].changed for c in db.log(name) if c.changes] for name in ("main", "a")}
    assert changes == {"main": [0], "a": [1]}  # main: the row that was inserted at first


def test_every_point_of_history_can_be_read_again(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, v INTEGER)")
    db.execute("CREATE TABLE pair (a TEXT, b INTEGER, v INTEGER, PRIMARY KEY (a, b))")
    dice, seen = random.Random(5), []
    names = ["main"]
    for step in range(120):
        name = dice.choice(names)
        db.checkout(name)
        if dice.random() < 0.08 and len(names) < 5:
            names.append(f"b{step}")
            db.branch(names[-1])
        k, v = dice.randrange(8), dice.randrange(1000)
        for sql in ("INSERT INTO t VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET v = excluded.v",):
            db.execute(sql, [k, v])
        upsert = "INSERT INTO pair VALUES (%s, %s, %s) ON CONFLICT (a, b) DO UPDATE SET v = excluded.v"
        db.execute(upsert, ["xy"[k % 2], k % 3, v])
        if dice.random() < 0.3:
            db.execute("DELETE FROM t WHERE id = %s", [dice.randrange(8)])
            with suppress(errors.ConstraintError):
                db.execute("UPDATE pair SET b = b + 10 WHERE b = %s", [dice.randrange(20)])
        state = rows(db), rows(db, "SELECT * FROM pair ORDER BY a, b")
        seen.append((db.log(limit=1)[0].id, state))
        for other in names:  # two handles' worth of switching: no branch sees another's work
            db.checkout(other)
            last = next(
                (s for (_, s), n in zip(reversed(seen), reversed(owners(db, seen)), strict=True) if n == other), None
            )
            if last is not None:
                assert (rows(db), rows(db, "SELECT * FROM pair ORDER BY a, b")) == last, (step, other)
    for commit, (t, pair) in dice.sample(seen, 25):
        with db.at(commit) as then:
            assert rows(then) == t and rows(then, "SELECT * FROM pair ORDER BY a, b") == pair
            with pytest.raises(errors.StoreError):
                then.execute("DELETE FROM t")


def owners(db: deeplake.Database, seen: list[tuple[str, Any]]) -> list[str]:
    query = "SELECT c.id, b.name FROM _dl_commits c JOIN _dl_branches b ON b.id = c.branch"
    found = dict(db._catalog.fetchall(query))
    return [found[commit] for commit, _ in seen]


def test_tags_name_points_on_any_branch(db: deeplake.Database) -> None:
    tables(db)
    db.tag("v1")
    db.branch("x")
    db.execute("DELETE FROM t WHERE id > 2")
    db.tag("x1", message="two left")
    db.execute("DELETE FROM t")
    assert [(t.name, t.branch, t.message) for t in db.tags()] == [("v1", "main", None), ("x1", "x", "two left")]
    assert all(
        abs(t.created_at - dt.datetime.now(dt.UTC).replace(tzinfo=None)) < dt.timedelta(hours=1) for t in db.tags()
    )
    with db.at("x1") as then, db.at("v1") as first:
        assert [r[0] for r in rows(then)] == [1, 2] and len(rows(first)) == 5
    db.branch("from-tag", from_="x1")
    assert [r[0] for r in rows(db)] == [1, 2]
    db.execute("INSERT INTO t (a) VALUES ('more')")
    assert len(rows(db)) == 3
    db.checkout("x")
    assert rows(db) == []
    db.untag("x1")
    with pytest.raises(errors.NotFoundError):
        db.at("x1")
    with pytest.raises(errors.InputError):
        db.branch("v1")


def test_a_time_as_text_means_what_the_datetime_means(db: deeplake.Database) -> None:
    tables(db)
    time = db.log(limit=1)[0].created_at
    zoned = time.replace(tzinfo=dt.UTC).astimezone(dt.timezone(dt.timedelta(hours=5)))
    db.execute("DELETE FROM t WHERE id > 2")
    for ref in (time, str(time), time.isoformat(), f"{time.isoformat()}Z", str(zoned)):
        with db.at(ref) as then:
            assert len(rows(then)) == 5
        assert db.diff(ref, "main").counts["t"].removed == 3
    db.tag("2026-01-01")  # a name is a name, also where it reads as a time
    with db.at("2026-01-01") as then, db.at("9999-12-31 23:59") as late:
        assert len(rows(then)) == len(rows(late)) == 2
    for ref in ("2026-13-01", "2026-01-02x", "nope"):
        with pytest.raises(errors.NotFoundError):
            db.at(ref)


def test_the_log_tells_who_did_what(db: deeplake.Database) -> None:
    tables(db)
    db.branch("x")
    with db.transaction("clean up"):
        db.execute("DELETE FROM t WHERE id > 3")
        db.execute("UPDATE t SET a = 'u' WHERE id = 1")
        db.execute("INSERT INTO t (a) VALUES ('n'), ('m')")
    found = db.log()[0]
    assert (found.message, found.branch) == ("clean up", "x") and found.author
    counts = found.changes["t"]
    assert (counts.added, counts.changed, counts.removed) == (2, 1, 2)
    named = db.commit("a word")
    assert named.message == "a word" and db.log(limit=1)[0].id == named.id
    assert db.log("main")[0].changes["t"].added == 5


# -- tables that change ------------------------------------------------------------------------------------------------


def test_added_and_renamed_columns_appear_on_every_branch(db: deeplake.Database) -> None:
    tables(db)
    db.tag("before")
    for name in ("a", "b"):
        db.checkout("main")
        db.branch(name)
    db.execute("UPDATE t SET c = 50 WHERE id = 2")
    db.checkout("main")
    db.execute("UPDATE t SET c = 60 WHERE id = 2")
    db.execute("ALTER TABLE t ADD COLUMN e INTEGER NOT NULL DEFAULT 5 CHECK (e < 9)")
    db.execute("ALTER TABLE t RENAME COLUMN a TO name")
    db.execute("ALTER TABLE t RENAME COLUMN id TO key")
    for branch, c in (("main", 60), ("a", 2), ("b", 50)):
        db.checkout(branch)
        assert rows(db, "SELECT key, name, c, e FROM t WHERE key = 2") == [(2, "two", c, 5)]
        db.execute("UPDATE t SET e = 8 WHERE key IN (1, 2)")
        with pytest.raises(errors.ConstraintError):
            db.execute("UPDATE t SET e = 9")
        db.execute("INSERT INTO t (name, c) VALUES ('new', 0)")
        assert rows(db, "SELECT count(*), sum(e) FROM t") == [(6, 36)]
    with db.at("before") as then:
        assert rows(then, "SELECT key, name, c, e FROM t WHERE key = 2") == [(2, "two", 2, 5)]


def test_what_would_lose_a_branchs_data_is_refused_by_name(db: deeplake.Database) -> None:
    tables(db)
    db.execute("CREATE TABLE other (id BIGINT PRIMARY KEY, x TEXT)")
    db.branch("holder")
    db.execute("UPDATE t SET c = 50 WHERE id = 2")
    db.execute("INSERT INTO other (x) VALUES (NULL)")
    db.checkout("main")
    for statement in ("DROP TABLE t", "ALTER TABLE t DROP COLUMN d", "DROP TABLE src", "DROP TABLE other"):
        with pytest.raises(errors.InputError, match="'holder'"):
            db.execute(statement)
    db.execute("ALTER TABLE other DROP COLUMN x")
    with db.checkout("holder"):
        assert rows(db, "SELECT * FROM other") == [(1,)]
    db.delete_branch("holder")
    db.tag("kept")
    with pytest.raises(errors.InputError, match="'kept'"):
        db.execute("DROP TABLE t")
    db.untag("kept")
    db.execute("ALTER TABLE t DROP COLUMN d")
    for table in ("t", "src", "other"):
        db.execute(f"DROP TABLE {table}")
    db.branch("after")
    tables(db)
    assert len(rows(db)) == 5


def test_a_unique_index_holds_on_every_branch_or_is_not_made(db: deeplake.Database) -> None:
    tables(db)
    db.branch("x")
    db.execute("UPDATE t SET d = id")
    db.execute("INSERT INTO t (a, d) VALUES ('same', 1)")
    db.checkout("main")
    db.execute("UPDATE t SET d = 10 * id")
    with pytest.raises(errors.ConstraintError, match="'x'"):
        db.execute("CREATE UNIQUE INDEX u ON t (d)")
    with db.checkout("x"):
        db.execute("DELETE FROM t WHERE a = 'same'")
    db.execute("CREATE UNIQUE INDEX u ON t (d)")
    db.checkout("x")
    with pytest.raises(errors.ConstraintError):
        db.execute("INSERT INTO t (a, d) VALUES ('same', 1)")
    db.execute("INSERT INTO t (a, d) VALUES ('other', 10)")
    db.execute("DROP INDEX u")
    db.execute("INSERT INTO t (a, d) VALUES ('same', 1)")


# -- foreign keys ------------------------------------------------------------------------------------------------------

FAMILY = [
    "CREATE TABLE p (id BIGINT PRIMARY KEY, code TEXT UNIQUE)",
    "CREATE TABLE strict (id BIGINT PRIMARY KEY, p BIGINT REFERENCES p (id))",
    "CREATE TABLE follow (id BIGINT PRIMARY KEY, p BIGINT REFERENCES p (id) ON DELETE CASCADE ON UPDATE CASCADE)",
    "CREATE TABLE leaf (id BIGINT PRIMARY KEY, f BIGINT NOT NULL REFERENCES follow (id) ON DELETE CASCADE)",
    "CREATE TABLE blank (id BIGINT PRIMARY KEY, code TEXT DEFAULT 'c1' REFERENCES p (code) ON DELETE SET NULL "
    "ON UPDATE SET DEFAULT)",
    "CREATE TABLE late (id BIGINT PRIMARY KEY, p BIGINT REFERENCES p (id) DEFERRABLE INITIALLY DEFERRED)",
    "CREATE TABLE tree (id BIGINT PRIMARY KEY, up BIGINT REFERENCES tree (id) ON DELETE CASCADE)",
    "INSERT INTO p (id, code) VALUES (1, 'c1'), (2, 'c2'), (3, 'c3'), (4, 'c4'), (5, 'c5')",
    "INSERT INTO strict (p) VALUES (1), (NULL)",
    "INSERT INTO follow (p) VALUES (2), (2), (3)",
    "INSERT INTO leaf (f) VALUES (1), (2), (3)",
    "INSERT INTO blank (code) VALUES ('c2'), ('c3'), ('c4')",
    "INSERT INTO late (p) VALUES (4)",
    "INSERT INTO tree VALUES (1, NULL), (2, 1), (3, 2), (4, 3), (5, NULL)",
]
DEEDS = [
    "INSERT INTO strict (p) VALUES (77)",
    "DELETE FROM p WHERE id = 1",
    "UPDATE p SET id = 10 WHERE id = 1",
    "UPDATE p SET code = 'new' WHERE code = 'c3'",
    "UPDATE p SET id = 20 WHERE id = 2",
    "DELETE FROM p WHERE id = 20",
    "DELETE FROM p WHERE id = 4",
    "UPDATE strict SET p = 3 WHERE p = 1",
    "DELETE FROM p WHERE id = 1",
    "INSERT INTO p (id, code) VALUES (1, 'c1') ON CONFLICT (id) DO UPDATE SET code = excluded.code",
    "UPDATE strict SET p = 9 WHERE p IS NULL",
    "DELETE FROM tree WHERE id = 2",
    "UPDATE tree SET up = 1 WHERE id = 5",
    "DELETE FROM tree WHERE id = 1",
    "INSERT INTO leaf (f) VALUES (3)",
    "DELETE FROM follow",
    "DELETE FROM p",
    "INSERT INTO late (p) VALUES (99)",
]


def everything(db: deeplake.Database) -> dict[str, Any]:
    return {t: rows(db, f"SELECT * FROM {t} ORDER BY id") for t in sorted(db.tables())}


@pytest.mark.parametrize("depth", [1, 2])
def test_foreign_keys_hold_among_the_rows_of_a_branch(
    db: deeplake.Database, new_store: Callable[[], Any], depth: int
) -> None:
    with new_store().connect() as reference:
        for statement in FAMILY:
            db.execute(statement)
            reference.execute(statement)
        for name in ("a", "b")[:depth]:
            db.branch(name)
            if name == "a" and depth == 2:
                db.execute("UPDATE follow SET p = p")
        with db.checkout("main"):  # main's own children and parents are none of the branch's business
            db.execute("DELETE FROM strict")
            db.execute("DELETE FROM late")
            db.execute("DELETE FROM p WHERE id IN (1, 4)")
            db.execute("INSERT INTO follow (id, p) VALUES (50, 5)")
            db.execute("DELETE FROM p WHERE id = 3")
            untouched = everything(db)
        for deed in DEEDS:
            found = []
            for handle in (db, reference):
                try:
                    found.append(handle.execute(deed).rowcount)
                except errors.ConstraintError as error:
                    found.append(error.constraint)
            assert found[0] == found[1], deed
            assert everything(db) == everything(reference), deed
        for handle in (db, reference):
            with handle.transaction():
                handle.execute("INSERT INTO late (p) VALUES (99)")
                handle.execute("INSERT INTO p (id) VALUES (99)")
            with pytest.raises(errors.ConstraintError), handle.transaction():
                handle.execute("DELETE FROM p WHERE id = 99")
            with pytest.raises(errors.ConstraintError):
                handle.insert("strict", [{"p": 99}, {"p": 1234}])
        assert everything(db) == everything(reference)
    db.checkout("main")
    assert everything(db) == untouched


# -- counts ------------------------------------------------------------------------------------------------------------

COUNTS = [
    "SELECT count(*) FROM t",
    "SELECT count(*) AS n, count(b), sum(c), sum(d) FROM t WHERE c > %s",
    "SELECT d, count(*) FROM t GROUP BY d ORDER BY d",
    "SELECT a, sum(b) AS total, count(b) FROM t GROUP BY a ORDER BY total DESC, a",
    "SELECT c AS key, count(*) FROM t WHERE b IS NULL OR b < 1000 GROUP BY c ORDER BY key DESC",
    "SELECT x.d, x.a, count(*), sum(x.c) FROM t x WHERE x.id BETWEEN 1 AND 40 GROUP BY x.a, x.d ORDER BY x.d, x.a",
    "SELECT sum(b) FROM t WHERE id = -1",
    "SELECT count(*) FROM t WHERE a LIKE 'n%%' HAVING count(*) > 1",
    "SELECT g, count(*), max(c) FROM t GROUP BY g ORDER BY g",
]


def test_counts_over_the_parts_are_counts_over_the_rows(db: deeplake.Database, new_store: Callable[[], Any]) -> None:
    dice = random.Random(3)
    tables(db)
    with new_store().connect() as reference:
        tables(reference)

        def change(handle: deeplake.Database, seed: int) -> None:
            dice = random.Random(seed)
            for _ in range(6):
                values = [dice.choice(["one", "n1", "n2"]), dice.choice([None, dice.randrange(10**6)])]
                handle.execute("INSERT INTO t (a, b, c) VALUES (%s, %s, %s)", [*values, dice.choice([None, 1, 2])])
                handle.execute(
                    "UPDATE t SET d = %s, c = %s WHERE id = %s", [dice.choice([None, 1]), 3, dice.randrange(12)]
                )
                handle.execute("DELETE FROM t WHERE id = %s", [dice.randrange(30)])

        db.branch("x")
        for turn in range(4):
            seed = dice.randrange(10**6)
            change(db, seed)
            change(reference, seed)
            for sql in COUNTS:
                params = [0] if "%s" in sql else None
                assert rows_of(db, sql, params) == rows_of(reference, sql, params), (turn, sql)
            db.tag(f"t{turn}")
            with db.at(f"t{turn}") as then:
                assert rows_of(then, COUNTS[3], None) == rows_of(reference, COUNTS[3], None)
            with db.checkout("main"):
                db.execute("UPDATE t SET d = d + 1, a = a || 'm' WHERE id % 2 = %s", [turn % 2])
                db.execute("DELETE FROM t WHERE id = %s", [turn])
            keep_ids_equal(db, reference)


def keep_ids_equal(db: deeplake.Database, reference: deeplake.Database) -> None:
    top = max(h.execute("INSERT INTO t (a) VALUES ('top') RETURNING id").scalar() for h in (db, reference)) + 1
    for handle in (db, reference):
        handle.execute("INSERT INTO t (id, a) VALUES (%s, 'top')", [top])
        handle.execute("DELETE FROM t WHERE a = 'top'")


def rows_of(db: deeplake.Database, sql: str, params: list[Any] | None) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in db.execute(sql, params)]


# -- random histories --------------------------------------------------------------------------------------------------

KIN = {
    "t": "CREATE TABLE t (id BIGINT PRIMARY KEY, v INTEGER)",
    "pair": "CREATE TABLE pair (a TEXT, b INTEGER, v INTEGER UNIQUE, PRIMARY KEY (a, b))",
    "u": "CREATE TABLE u (id BIGINT PRIMARY KEY, v INTEGER UNIQUE, t BIGINT REFERENCES t (id) ON DELETE CASCADE)",
}
State = dict[str, list[tuple[Any, ...]]]


def state(db: deeplake.Database) -> State:
    return {t: sorted(rows(db, f"SELECT * FROM {t}"), key=repr) for t in KIN}


def disturb(db: deeplake.Database, dice: random.Random) -> None:
    """One random change; a constraint may refuse it."""
    k, v, up = dice.randrange(1, 9), dice.choice([None, dice.randrange(12)]), dice.choice([None, dice.randrange(1, 9)])
    statements: list[tuple[str, list[Any]]] = [
        ("INSERT INTO t VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET v = excluded.v", [k, v]),
        ("DELETE FROM t WHERE id = %s", [k]),
        ("UPDATE t SET id = id + %s WHERE id = %s", [dice.randrange(-3, 4), k]),
        ("INSERT INTO pair VALUES (%s, %s, %s)", ["xy"[k % 2], k % 3, v]),
        ("UPDATE pair SET b = b + 1, v = %s WHERE a = %s", [v, "xy"[k % 2]]),
        ("INSERT INTO u VALUES (%s, %s, %s) ON CONFLICT (v) DO UPDATE SET t = excluded.t", [k, v, up]),
        ("UPDATE u SET v = v + 1 WHERE id > %s", [k]),
    ]
    with suppress(errors.ConstraintError):
        if dice.random() < 0.1:
            db.insert("u", [{"v": 100 + dice.randrange(10**6)} for _ in range(2)])
        else:
            db.execute(*dice.choice(statements))


def assert_constraints_hold(found: State) -> None:
    ids = {row[0] for row in found["t"]}
    assert all(row[2] is None or row[2] in ids for row in found["u"])
    for table, place in (("u", 1), ("pair", 2)):
        values = [row[place] for row in found[table] if row[place] is not None]
        assert len(values) == len(set(values))
    assert len({row[:2] for row in found["pair"]}) == len(found["pair"])


@pytest.mark.parametrize("seed", range(3))
def test_no_branch_is_disturbed_by_another_ones_history(db: deeplake.Database, reconnect: Connect, seed: int) -> None:
    dice = random.Random(seed)
    for statement in KIN.values():
        db.execute(statement)
    expected, tags = {"main": state(db)}, dict[str, State]()
    with reconnect() as second:
        for step in range(60):
            handle, other = dice.sample([db, second], 2)
            name, kind = dice.choice(list(expected)), dice.random()
            handle.checkout(name)
            if kind < 0.08 and len(expected) < 6:
                start = dice.choice([None, *tags])
                handle.branch(f"b{step}", from_=start)
                expected[f"b{step}"] = expected[name] if start is None else tags[start]
            elif kind < 0.11 and name != "main":
                for each in (handle, other):
                    each.checkout("main")
                handle.delete_branch(name)
                del expected[name]
            elif kind < 0.2:
                handle.tag(f"t{step}")
                tags[f"t{step}"] = expected[name]
            else:
                with suppress(ZeroDivisionError), handle.transaction():
                    for _ in range(dice.randrange(1, 4)):
                        disturb(handle, dice)
                    after = state(handle)
                    assert_constraints_hold(after)
                    if dice.random() < 0.2:
                        raise ZeroDivisionError
                    expected[name] = after
            for each in (handle, other):
                assert state(each) == expected[each.current_branch], step
        for name, found in expected.items():
            with second.checkout(name):
                assert state(second) == found
        for name, found in tags.items():
            with db.at(name) as then:
                assert state(then) == found
