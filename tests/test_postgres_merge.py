"""Merging in a PostgreSQL database: SQLite's outcomes, foreign keys that act, others who write meanwhile."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import deeplake_loader as deeplake
from deeplake_loader.errors import ConflictError, LockedError

pytestmark = pytest.mark.both_catalogs
postgres_only = pytest.mark.postgres_only("SQLite has one writer, and no other tool's foreign keys in a merge")

Connect = Callable[..., deeplake.Database]
NAMES = {"branch into main": ("main", "b"), "main into branch": ("b", "main"), "between branches": ("a", "b")}


def run(db: deeplake.Database, branch: str, *statements: str) -> None:
    with db.checkout(branch):
        for statement in statements:
            db.execute(statement)


def rows(db: deeplake.Database, branch: str, table: str = "t") -> list[tuple[Any, ...]]:
    with db.checkout(branch):
        return [tuple(row) for row in db.execute(f"SELECT * FROM {table} ORDER BY id").fetchall()]


def fork(db: deeplake.Database, *names: str) -> None:
    for name in names:
        with db.branch(name, from_="main"):
            pass


@pytest.fixture
def twins(db: deeplake.Database, tmp_path: Path) -> Iterator[tuple[deeplake.Database, deeplake.Database]]:
    """A store in PostgreSQL and one on SQLite."""
    with ExitStack() as stack:
        yield db, stack.enter_context(deeplake.connect(tmp_path / "twin"))


# -- the same outcomes -------------------------------------------------------------------------------------------------

CLASHING = [
    ("UPDATE {} SET a = 'o' WHERE id = 1", "UPDATE {} SET a = 't' WHERE id = 1"),
    ("UPDATE {} SET a = 'o' WHERE id = 1", "DELETE FROM {} WHERE id = 1"),
    ("DELETE FROM {} WHERE id = 1", "UPDATE {} SET n = 7 WHERE id = 1"),
    ("INSERT INTO {} VALUES (5, 'o', 50)", "INSERT INTO {} VALUES (5, 't', 51)"),
    ("UPDATE {} SET n = NULL WHERE id = 1", "UPDATE {} SET n = 7 WHERE id = 1"),
    ("UPDATE {} SET a = 'X' WHERE id = 1", "UPDATE {} SET a = 'x' WHERE id = 1"),
    ("INSERT INTO {} VALUES (5, 'o', 60)", "INSERT INTO {} VALUES (6, 't', 60)"),
]


def clash(db: deeplake.Database, ours: str, theirs: str) -> list[Any]:
    tables = [f"t{i}" for i in range(len(CLASHING))]
    for table in tables:
        db.execute(f"CREATE TABLE {table} (id BIGINT PRIMARY KEY, a TEXT, n INTEGER UNIQUE)")
        db.execute(f"INSERT INTO {table} VALUES (1, 'one', 1), (2, 'two', 2)")
    fork(db, *{ours, theirs} - {"main"})
    for branch, side in ((ours, 0), (theirs, 1)):
        run(db, branch, *(case[side].format(table) for case, table in zip(CLASHING, tables, strict=True)))
    run(db, theirs, *(f"INSERT INTO {table} VALUES (77, 'harmless', 77)" for table in tables))
    with pytest.raises(ConflictError) as caught:
        db.merge(theirs, ours)
    found: list[Any] = [caught.value.conflicts, str(caught.value)]
    for side in ("theirs", "ours"):
        shown = db.merge(theirs, ours, on_conflict=side, dry_run=True)
        found += [shown.conflicts, list(shown.diff or ())]
    done = db.merge(theirs, ours, on_conflict="ours")
    found += [done.conflicts, done.tables, *(rows(db, ours, table) for table in tables)]
    assert db.merge(theirs, ours).commit is None
    return found


@postgres_only
@pytest.mark.parametrize("lie", NAMES)
def test_conflicts_and_their_settlement_are_those_of_sqlite(twins: tuple[deeplake.Database, ...], lie: str) -> None:
    here, there = (clash(db, *NAMES[lie]) for db in twins)
    assert here == there


def step(draw: random.Random, names: list[str]) -> Callable[[deeplake.Database], object]:
    """One move of a random history: a statement, a branch, a merge."""
    branch, other, key = draw.choice(names), draw.choice(names), draw.randrange(6)
    value, kind = draw.randrange(3), draw.random()
    if kind < 0.6:
        sql = draw.choice([
            f"UPDATE t SET n = {value} WHERE id = {key}", f"DELETE FROM t WHERE id = {key}",
            f"INSERT INTO t VALUES ({key}, {value}) ON CONFLICT (id) DO UPDATE SET n = excluded.n",
        ])  # fmt: skip
        return lambda db: run(db, branch, sql)
    if kind < 0.7 and len(names) < 5:
        name = f"b{len(names)}"
        names.append(name)

        def make(db: deeplake.Database) -> None:
            with db.branch(name, from_=branch):
                pass

        return make
    on_conflict = draw.choice(["raise", "ours", "theirs"])

    def merge(db: deeplake.Database) -> object:
        try:
            done = db.merge(branch, other, on_conflict=on_conflict)
        except ConflictError as error:
            return error.conflicts
        return done.commit is None, done.tables, done.conflicts

    return merge if branch != other else lambda db: db.merge


@postgres_only
@pytest.mark.parametrize("seed", range(3))
def test_random_histories_are_those_of_sqlite(twins: tuple[deeplake.Database, ...], seed: int) -> None:
    """Merges each way over few keys, so that bases move and cross; SQLite's are held against a model elsewhere."""
    draw, names = random.Random(seed), ["main"]
    for db in twins:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, n INTEGER)")
        fork(db, "b1")
    names.append("b1")
    for _ in range(40):
        move = step(draw, names)
        found = [move(db) for db in twins]
        if isinstance(found[0], tuple):
            assert found[0] == found[1]
        for name in names:
            assert rows(twins[0], name) == rows(twins[1], name)
    for db in twins:
        db.optimize(keep=0)
    for name in names[1:]:
        shown = [[(c.key, c.kind, c.before, c.after) for c in db.diff("main", name)] for db in twins]
        assert shown[0] == shown[1]


# -- foreign keys that act ---------------------------------------------------------------------------------------------

ACTIONS = ["NO ACTION", "RESTRICT", "CASCADE", "SET NULL"]


@pytest.mark.parametrize("action", ACTIONS)
def test_unique_values_swap_between_parents_and_no_child_is_touched(db: deeplake.Database, action: str) -> None:
    db.execute("CREATE TABLE p (id BIGINT PRIMARY KEY, u INTEGER NOT NULL UNIQUE, name TEXT UNIQUE)")
    db.execute(f"CREATE TABLE c (id BIGINT PRIMARY KEY, p BIGINT REFERENCES p (id) ON DELETE {action})")
    db.execute("INSERT INTO p VALUES (1, 10, 'x'), (2, 20, 'y'), (3, 30, 'z')")
    db.execute("INSERT INTO c VALUES (1, 1), (2, 2), (3, 3)")
    fork(db, "b")
    run(db, "b", "UPDATE p SET u = 99, name = NULL WHERE id = 1", "UPDATE p SET u = 10, name = 'x' WHERE id = 2",
        "UPDATE p SET u = 20, name = 'y' WHERE id = 3", "UPDATE p SET u = 30, name = 'z' WHERE id = 1")  # fmt: skip
    db.execute("INSERT INTO c VALUES (4, 1)")
    db.merge("b", "main")
    assert rows(db, "main", "p") == [(1, 30, "z"), (2, 10, "x"), (3, 20, "y")]
    assert rows(db, "main", "c") == [(1, 1), (2, 2), (3, 3), (4, 1)]


@pytest.mark.parametrize("action", ["NO ACTION", "RESTRICT"])
def test_a_child_moves_to_a_new_parent_that_takes_the_old_ones_unique_value(db: deeplake.Database, action: str) -> None:
    db.execute("CREATE TABLE p (id BIGINT PRIMARY KEY, u INTEGER NOT NULL UNIQUE)")
    db.execute(f"CREATE TABLE c (id BIGINT PRIMARY KEY, p BIGINT NOT NULL REFERENCES p (id) ON DELETE {action})")
    db.execute("INSERT INTO p VALUES (1, 10)")
    db.execute("INSERT INTO c VALUES (1, 1)")
    fork(db, "b")
    run(db, "b", "INSERT INTO p VALUES (2, 20)", "UPDATE c SET p = 2", "DELETE FROM p WHERE id = 1",
        "UPDATE p SET u = 10")  # fmt: skip
    db.merge("b", "main")
    assert (rows(db, "main", "p"), rows(db, "main", "c")) == ([(2, 10)], [(1, 2)])
    newest = db.log(limit=1)[0]
    with db.at(db.log(limit=2)[1].id) as before:
        assert before.execute("SELECT id, u FROM p").fetchall() == [(1, 10)], "the log holds what the merge replaced"
    assert newest.changes is not None
    assert newest.changes["p"].added == newest.changes["p"].removed == 1


# -- others who write --------------------------------------------------------------------------------------------------


@postgres_only
def test_what_psql_wrote_on_main_and_on_a_branch_is_merged(db: deeplake.Database, place: Any) -> None:
    import psycopg

    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, n INTEGER)")
    db.execute("INSERT INTO t VALUES (1, 1), (2, 2), (3, 3)")
    fork(db, "exp/b")
    with psycopg.connect(place.url) as other:
        other.execute("UPDATE t SET n = 10 WHERE id = 1")
        other.execute('SET search_path = "exp/b"')
        other.execute("UPDATE t SET n = 20 WHERE id = 2")
        other.execute("DELETE FROM t WHERE id = 3")
        other.execute("INSERT INTO t VALUES (4, 4)")
    other.close()
    done = db.merge("exp/b", "main")
    assert (done.added, done.changed, done.removed) == (1, 1, 1)
    assert rows(db, "main") == [(1, 10), (2, 20), (4, 4)]
    db.merge("main", "exp/b")
    assert rows(db, "exp/b") == rows(db, "main")


@postgres_only
@pytest.mark.parametrize("target", ["main", "target"])
def test_mergers_at_once_lose_nothing(db: deeplake.Database, reconnect: Connect, target: str) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, n INTEGER)")
    fork(db, "target", *(f"b{i}" for i in range(3)))
    for i in range(3):
        run(db, f"b{i}", f"INSERT INTO t SELECT {i * 10} + g, {i} FROM generate_series(0, 4) g")
    handles = [reconnect() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda i: handles[i].merge(f"b{i}", target).added, range(3)))
    assert done == [5, 5, 5]
    assert rows(db, target) == [(i * 10 + g, i) for i in range(3) for g in range(5)]
    for i in range(3):
        assert db.merge(f"b{i}", target).commit is None


@postgres_only
@pytest.mark.parametrize("target", ["main", "target"])
def test_a_merge_beside_writers_loses_none_of_their_changes(
    db: deeplake.Database, reconnect: Connect, target: str
) -> None:
    """Each row is counted up by a writer and, on the branch, given another column; a row that both changed since the
    base is a conflict, settled for the writer's side. So no count may ever be lost."""
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, n INTEGER, mark INTEGER)")
    db.execute("INSERT INTO t SELECT g, 0, 0 FROM generate_series(1, 8) g")
    fork(db, "target", "source")
    counted, stop = [0] * 9, threading.Event()

    def count_up(handle: deeplake.Database, draw: random.Random) -> None:
        handle.checkout(target)
        while not stop.is_set():
            key = draw.randrange(1, 9)
            try:
                handle.execute("UPDATE t SET n = n + 1 WHERE id = %s", [key])
            except LockedError:
                continue
            counted[key] += 1

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(count_up, reconnect(), random.Random(1))
        try:
            for turn in range(6):
                run(db, "source", f"UPDATE t SET mark = {turn + 1} WHERE id > 4")
                db.merge("source", target, on_conflict="ours")
        finally:
            stop.set()
        writer.result()
    assert [n for _, n, _ in rows(db, target)] == counted[1:]
