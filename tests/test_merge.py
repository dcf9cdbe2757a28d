"""Merging by key over the best common ancestors: every case has an outcome, whichever way the branches lie."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deeplake_loader as deeplake
from deeplake_loader.errors import ConflictError, ConstraintError, InputError, NotFoundError
from deeplake_loader.merging.graph import Graph

pytestmark = pytest.mark.both_catalogs

TABLE = "CREATE TABLE t (id BIGINT PRIMARY KEY, a TEXT, u INTEGER UNIQUE, n INTEGER)"
ROWS = ["INSERT INTO t VALUES (1, 'one', 10, 1), (2, 'two', 20, 2), (3, 'three', 30, NULL)"]
FAMILY = [
    "CREATE TABLE p (id BIGINT PRIMARY KEY, name TEXT UNIQUE)",
    "CREATE TABLE c (id BIGINT PRIMARY KEY, p BIGINT REFERENCES p (id) ON DELETE CASCADE, note TEXT)",
    "INSERT INTO p VALUES (1, 'p1'), (2, 'p2')",
    "INSERT INTO c VALUES (1, 1, 'c1'), (2, 2, 'c2')",
]
FRESH = {1: ("one", 10, 1), 2: ("two", 20, 2), 3: ("three", 30, None)}


@dataclass(frozen=True)
class Sides:
    """Two lines of history that parted after the same rows: ``theirs`` is to be merged into ``ours``."""

    db: deeplake.Database
    ours: str
    theirs: str

    def run(self, branch: str, *statements: str) -> None:
        with self.db.checkout(branch):
            for statement in statements:
                self.db.execute(statement)

    def rows(self, branch: str, table: str = "t") -> dict[Any, tuple[Any, ...]]:
        with self.db.checkout(branch):
            found = self.db.execute(f"SELECT * FROM {table}").fetchall()
        assert len({row[0] for row in found}) == len(found)
        return {row[0]: tuple(row[1:]) for row in found}

    def merge(self, **options: Any) -> Any:
        return self.db.merge(self.theirs, self.ours, **options)


NAMES = {"branch into main": ("main", "exp/b"), "main into branch": ("exp/b", "main"), "between branches": ("o", "t")}
LIES = tuple(NAMES)


def build(db: deeplake.Database, lie: str, statements: Sequence[str] = (TABLE, *ROWS)) -> Sides:
    """The rows on main, and two lines that lie as said: the names are the target's and the source's."""
    for statement in statements:
        db.execute(statement)
    names = {
        "branch into main": ("main", "exp/b"),
        "main into branch": ("exp/b", "main"),
        "between branches": ("o", "t"),
    }
    ours, theirs = names[lie]
    for name in {ours, theirs} - {"main"}:
        with db.branch(name, from_="main"):
            pass
    return Sides(db, ours, theirs)


@pytest.fixture(params=LIES)
def sides(db: deeplake.Database, request: pytest.FixtureRequest) -> Sides:
    return build(db, request.param)


@pytest.fixture(params=LIES)
def family(db: deeplake.Database, request: pytest.FixtureRequest) -> Sides:
    return build(db, request.param, FAMILY)


def other_tool(place: Any) -> Any:
    """A connection of the database's own driver."""
    if place.kind == "sqlite":
        return sqlite3.connect(place.folder / "catalog.sqlite")
    import psycopg

    return psycopg.connect(place.url)


def conflicts_of(call: Callable[[], object]) -> list[Any]:
    with pytest.raises(ConflictError) as caught:
        call()
    return list(caught.value.conflicts)


# -- what merges without a conflict ------------------------------------------------------------------------------------

CLEAN: dict[str, tuple[list[str], list[str], dict[int, tuple[Any, ...]]]] = {
    "only the source changed": (
        [],
        ["UPDATE t SET a = 'x' WHERE id = 1", "DELETE FROM t WHERE id = 2", "INSERT INTO t VALUES (9, 'new', 90, 9)"],
        {1: ("x", 10, 1), 3: ("three", 30, None), 9: ("new", 90, 9)},
    ),
    "both changed other rows": (
        ["UPDATE t SET a = 'o' WHERE id = 1", "INSERT INTO t VALUES (8, 'o', 80, 8)"],
        ["UPDATE t SET a = 't' WHERE id = 2", "DELETE FROM t WHERE id = 3"],
        {1: ("o", 10, 1), 2: ("t", 20, 2), 8: ("o", 80, 8)},
    ),
    "both updated to the same": (
        ["UPDATE t SET a = 'same', n = 5 WHERE id = 1"],
        ["UPDATE t SET n = 5, a = 'same' WHERE id = 1"],
        {**FRESH, 1: ("same", 10, 5)},
    ),
    "both deleted": (["DELETE FROM t WHERE id = 1"], ["DELETE FROM t WHERE id = 1"], {2: FRESH[2], 3: FRESH[3]}),
    "both added the same": (
        ["INSERT INTO t VALUES (5, 'e', 50, 5)"],
        ["INSERT INTO t VALUES (5, 'e', 50, 5)"],
        {**FRESH, 5: ("e", 50, 5)},
    ),
    "changed and changed back": (
        ["UPDATE t SET a = 'o' WHERE id = 1"],
        ["UPDATE t SET a = 'x' WHERE id = 1", "UPDATE t SET a = 'one' WHERE id = 1"],
        {**FRESH, 1: ("o", 10, 1)},
    ),
    "unique values swapped between rows": (
        ["UPDATE t SET a = 'o' WHERE id = 3"],
        ["UPDATE t SET u = 99 WHERE id = 1", "UPDATE t SET u = 10 WHERE id = 2", "UPDATE t SET u = 20 WHERE id = 1"],
        {1: ("one", 20, 1), 2: ("two", 10, 2), 3: ("o", 30, None)},
    ),
    "a unique value handed on to a new row": (
        [],
        ["DELETE FROM t WHERE id = 1", "INSERT INTO t VALUES (7, 'heir', 10, 7)"],
        {2: FRESH[2], 3: FRESH[3], 7: ("heir", 10, 7)},
    ),
    "a key changed": ([], ["UPDATE t SET id = 40 WHERE id = 1"], {2: FRESH[2], 3: FRESH[3], 40: FRESH[1]}),
    "deleted and added again": (
        [],
        ["DELETE FROM t WHERE id = 1", "INSERT INTO t VALUES (1, 'again', 11, 1)"],
        {**FRESH, 1: ("again", 11, 1)},
    ),
}


@pytest.mark.parametrize("case", CLEAN)
def test_changes_that_do_not_clash_come_together(sides: Sides, case: str) -> None:
    ours, theirs, expected = CLEAN[case]
    sides.run(sides.ours, *ours)
    sides.run(sides.theirs, *theirs)
    source = sides.rows(sides.theirs)
    sides.merge()
    assert sides.rows(sides.ours) == expected
    assert sides.rows(sides.theirs) == source
    assert sides.merge().commit is None, "a merge repeated does nothing"
    assert sides.rows(sides.ours) == expected


def test_a_merge_counts_what_it_did_and_log_repeats_it(sides: Sides) -> None:
    sides.run(sides.theirs, *CLEAN["only the source changed"][1])
    done = sides.merge(message="take it")
    assert (done.added, done.changed, done.removed) == (1, 1, 1)
    newest = sides.db.log(sides.ours, limit=1)[0]
    assert (newest.id, newest.message, dict(newest.changes)) == (done.commit, "take it", done.tables)


# -- conflicts ---------------------------------------------------------------------------------------------------------

CLASHING: dict[str, tuple[list[str], list[str], int]] = {
    "update and update": (["UPDATE t SET a = 'o' WHERE id = 1"], ["UPDATE t SET a = 't' WHERE id = 1"], 1),
    "updates of different columns": (["UPDATE t SET a = 'o' WHERE id = 1"], ["UPDATE t SET n = 7 WHERE id = 1"], 1),
    "update and delete": (["UPDATE t SET a = 'o' WHERE id = 1"], ["DELETE FROM t WHERE id = 1"], 1),
    "delete and update": (["DELETE FROM t WHERE id = 1"], ["UPDATE t SET a = 't' WHERE id = 1"], 1),
    "the same key added differently": (
        ["INSERT INTO t VALUES (5, 'o', 50, 5)"],
        ["INSERT INTO t VALUES (5, 't', 51, 5)"],
        5,
    ),
    "NULL against a value": (["UPDATE t SET n = NULL WHERE id = 1"], ["UPDATE t SET n = 7 WHERE id = 1"], 1),
    "a value against NULL": (["UPDATE t SET n = 7 WHERE id = 3"], ["UPDATE t SET a = NULL WHERE id = 3"], 3),
    "letters of another case": (["UPDATE t SET a = 'X' WHERE id = 1"], ["UPDATE t SET a = 'x' WHERE id = 1"], 1),
}


@pytest.mark.parametrize("case", CLASHING)
def test_what_both_changed_is_a_conflict_and_nothing_is_merged(sides: Sides, case: str) -> None:
    ours, theirs, key = CLASHING[case]
    sides.run(sides.ours, *ours)
    sides.run(sides.theirs, *theirs, "INSERT INTO t VALUES (77, 'harmless', 77, 7)")
    before, commits = sides.rows(sides.ours), len(sides.db.log(sides.ours))
    images = [FRESH, before, sides.rows(sides.theirs)]

    (conflict,) = conflicts_of(sides.merge)

    named = [
        None if key not in image else dict(zip(("id", "a", "u", "n"), (key, *image[key]), strict=True))
        for image in images
    ]
    assert (conflict.table, conflict.key, conflict.reason) == ("t", key, "changed on both")
    assert [conflict.base, conflict.ours, conflict.theirs] == named
    assert sides.rows(sides.ours) == before
    assert len(sides.db.log(sides.ours)) == commits


@pytest.mark.sqlite_only("test_postgres_merge settles them in one store, beside a twin on SQLite")
@pytest.mark.parametrize("case", CLASHING)
@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_a_conflict_is_settled_for_the_side_that_is_named(sides: Sides, case: str, side: str) -> None:
    ours, theirs, key = CLASHING[case]
    sides.run(sides.ours, *ours)
    sides.run(sides.theirs, *theirs, "INSERT INTO t VALUES (77, 'harmless', 77, 7)")
    winner = sides.rows(sides.ours if side == "ours" else sides.theirs)
    done = sides.merge(on_conflict=side)
    after = sides.rows(sides.ours)
    assert after.get(key) == winner.get(key)
    assert after[77] == ("harmless", 77, 7)
    assert [c.key for c in done.conflicts] == [key]
    assert sides.merge().commit is None


def test_a_dry_run_shows_the_changes_and_the_conflicts_and_changes_nothing(sides: Sides) -> None:
    sides.run(sides.ours, "UPDATE t SET a = 'o' WHERE id = 1")
    sides.run(sides.theirs, "UPDATE t SET a = 't' WHERE id = 1", "DELETE FROM t WHERE id = 2")
    before, commits = sides.rows(sides.ours), len(sides.db.log(sides.ours))
    shown = sides.merge(dry_run=True)
    assert shown.commit is None
    assert [(c.key, c.kind) for c in shown.diff] == [(2, "removed")]
    assert [c.key for c in shown.conflicts] == [1]
    assert (sides.rows(sides.ours), len(sides.db.log(sides.ours))) == (before, commits)
    settled = sides.merge(dry_run=True, on_conflict="theirs")
    assert [(c.key, c.kind) for c in settled.diff] == [(1, "changed"), (2, "removed")]


def test_a_unique_value_that_another_row_took_is_a_conflict(sides: Sides) -> None:
    sides.run(sides.ours, "INSERT INTO t VALUES (5, 'o', 50, 5)")
    sides.run(sides.theirs, "INSERT INTO t VALUES (6, 't', 50, 6)", "INSERT INTO t VALUES (7, 'fine', 70, 7)")
    before = sides.rows(sides.ours)
    (conflict,) = conflicts_of(sides.merge)
    assert (conflict.key, conflict.reason, conflict.ours) == (6, "unique value taken", None)
    assert conflict.theirs == {"id": 6, "a": "t", "u": 50, "n": 6}
    assert conflicts_of(lambda: sides.merge(on_conflict="theirs"))[0].key == 6
    assert sides.rows(sides.ours) == before
    sides.merge(on_conflict="ours")
    assert sides.rows(sides.ours) == {**before, 7: ("fine", 70, 7)}


@pytest.mark.parametrize("lie", LIES)
def test_partial_and_expression_indexes_are_heeded(db: deeplake.Database, lie: str) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, n INTEGER, live BOOLEAN)")
    db.execute("CREATE UNIQUE INDEX t_negated ON t ((n * -1)) WHERE live")
    sides = build(db, lie, ())
    sides.run(sides.ours, "INSERT INTO t VALUES (1, 7, TRUE), (2, 8, FALSE)")
    sides.run(sides.theirs, "INSERT INTO t VALUES (3, 7, TRUE), (4, 8, TRUE), (5, 7, FALSE)")
    assert [c.key for c in conflicts_of(sides.merge)] == [3]
    sides.merge(on_conflict="ours")
    assert sorted(sides.rows(sides.ours)) == [1, 2, 4, 5]


# -- foreign keys ------------------------------------------------------------------------------------------------------


def test_a_parent_deleted_while_the_target_gained_children_is_a_conflict(family: Sides) -> None:
    family.run(family.ours, "INSERT INTO c VALUES (9, 1, 'new child')")
    family.run(family.theirs, "DELETE FROM p WHERE id = 1")
    before = family.rows(family.ours, "p"), family.rows(family.ours, "c")
    (conflict,) = conflicts_of(family.merge)
    assert (conflict.table, conflict.key, conflict.reason) == ("p", 1, "children left")
    assert (conflict.ours, conflict.theirs) == ({"id": 1, "name": "p1"}, None)
    assert (family.rows(family.ours, "p"), family.rows(family.ours, "c")) == before
    family.merge(on_conflict="ours")
    assert family.rows(family.ours, "p") == before[0]
    assert family.rows(family.ours, "c") == {2: (2, "c2"), 9: (1, "new child")}


def test_a_child_whose_parent_the_target_deleted_is_a_conflict(family: Sides) -> None:
    family.run(family.ours, "DELETE FROM p WHERE id = 1")
    family.run(family.theirs, "INSERT INTO c VALUES (9, 1, 'orphan'), (10, 2, 'fine'), (11, NULL, 'free')")
    (conflict,) = conflicts_of(family.merge)
    assert (conflict.table, conflict.key, conflict.reason) == ("c", 9, "parent missing")
    assert conflicts_of(lambda: family.merge(on_conflict="theirs"))
    family.merge(on_conflict="ours")
    assert family.rows(family.ours, "c") == {2: (2, "c2"), 10: (2, "fine"), 11: (None, "free")}


def test_a_changed_parent_keeps_its_children(family: Sides) -> None:
    family.run(family.theirs, "UPDATE p SET name = 'renamed' WHERE id = 1")
    family.run(family.ours, "INSERT INTO c VALUES (9, 1, 'new child')")
    family.merge()
    assert family.rows(family.ours, "p")[1] == ("renamed",)
    assert sorted(family.rows(family.ours, "c")) == [1, 2, 9]


def test_a_family_deleted_on_one_side_goes_as_one(family: Sides) -> None:
    family.run(family.theirs, "DELETE FROM p WHERE id = 1", "INSERT INTO p VALUES (3, 'p3')")
    family.run(family.theirs, "INSERT INTO c VALUES (3, 3, 'c3')")
    done = family.merge()
    assert family.rows(family.ours, "p") == {2: ("p2",), 3: ("p3",)}
    assert family.rows(family.ours, "c") == {2: (2, "c2"), 3: (3, "c3")}
    assert (done.added, done.removed) == (2, 2)


@pytest.mark.parametrize("lie", LIES)
def test_what_hangs_on_a_refused_row_is_refused_with_it(db: deeplake.Database, lie: str) -> None:
    tree = "CREATE TABLE tree (id BIGINT PRIMARY KEY, up BIGINT REFERENCES tree (id) ON DELETE SET NULL)"
    sides = build(db, lie, [tree, "INSERT INTO tree VALUES (1, NULL), (2, NULL)"])
    sides.run(sides.ours, "DELETE FROM tree WHERE id = 1")
    sides.run(sides.theirs, "INSERT INTO tree VALUES (3, 1), (4, 3), (5, 2), (6, 5)")
    assert [c.key for c in conflicts_of(sides.merge)] == [3]
    done = sides.merge(on_conflict="ours")
    assert [c.key for c in done.conflicts] == [3, 4]
    assert sides.rows(sides.ours, "tree") == {2: (None,), 5: (2,), 6: (5,)}


def test_foreign_keys_are_checked_again_after_a_merge(family: Sides) -> None:
    family.run(family.theirs, "UPDATE p SET name = 'x' WHERE id = 1")
    family.merge()
    with pytest.raises(ConstraintError):
        family.run(family.ours, "INSERT INTO c VALUES (50, 999, 'no parent')")


# -- histories ---------------------------------------------------------------------------------------------------------


def test_the_base_moves_with_every_merge(sides: Sides) -> None:
    for turn in range(4):
        sides.run(sides.theirs, f"UPDATE t SET n = {turn} WHERE id = 1")
        sides.run(sides.ours, f"UPDATE t SET n = {turn} WHERE id = 2")
        sides.merge()
        assert (sides.rows(sides.ours)[1][2], sides.rows(sides.ours)[2][2]) == (turn, turn)
    sides.run(sides.ours, "UPDATE t SET n = 50 WHERE id = 1")
    sides.run(sides.theirs, "UPDATE t SET n = 60 WHERE id = 1")
    (conflict,) = conflicts_of(sides.merge)
    assert conflict.base["n"] == 3


def test_branches_that_merged_each_other_agree(sides: Sides) -> None:
    sides.run(sides.ours, "UPDATE t SET a = 'o' WHERE id = 1")
    sides.run(sides.theirs, "UPDATE t SET a = 't' WHERE id = 2")
    sides.merge()
    sides.db.merge(sides.ours, sides.theirs)
    assert sides.rows(sides.ours) == sides.rows(sides.theirs) == {**FRESH, 1: ("o", 10, 1), 2: ("t", 20, 2)}
    assert sides.merge().commit is None
    assert len(sides.db.diff(sides.ours, sides.theirs)) == 0


def test_crossed_merges_have_a_base_made_of_both(db: deeplake.Database) -> None:
    """Each side takes the other's older state, so there are two best common ancestors; row 1 was changed on one line
    only and row 2 on the other, so neither is a conflict, though each ancestor alone would make one."""
    sides = build(db, "between branches")
    sides.run("o", "UPDATE t SET a = 'o1' WHERE id = 1")
    sides.run("t", "UPDATE t SET a = 't1' WHERE id = 2")
    for name in ("o", "t"):
        with db.branch(f"{name}-then", from_=name):
            pass
    db.merge("t-then", "o")
    db.merge("o-then", "t")
    sides.run("o", "UPDATE t SET a = 'o2' WHERE id = 1")
    sides.run("t", "UPDATE t SET a = 't2' WHERE id = 2")
    db.merge("t", "o")
    assert sides.rows("o") == {**FRESH, 1: ("o2", 10, 1), 2: ("t2", 20, 2)}


def test_crossed_merges_whose_ancestors_disagree_are_a_conflict(db: deeplake.Database) -> None:
    sides = build(db, "between branches")
    sides.run("o", "UPDATE t SET a = 'o1' WHERE id = 1")
    sides.run("t", "UPDATE t SET a = 't1' WHERE id = 1")
    for name in ("o", "t"):
        with db.branch(f"{name}-then", from_=name):
            pass
    db.merge("t-then", "o", on_conflict="ours")
    db.merge("o-then", "t", on_conflict="ours")
    (conflict,) = conflicts_of(lambda: db.merge("t", "o"))
    assert (conflict.base, conflict.ours["a"], conflict.theirs["a"]) == (None, "o1", "t1")


def test_main_into_a_branch_brings_it_up_to_date_and_keeps_its_work(db: deeplake.Database) -> None:
    sides = build(db, "main into branch")
    sides.run("main", "UPDATE t SET a = 'm' WHERE id = 1", "INSERT INTO t VALUES (4, 'm4', 40, 4)")
    sides.run("exp/b", "UPDATE t SET a = 'b' WHERE id = 2", "DELETE FROM t WHERE id = 3")
    sides.merge()
    assert sides.rows("exp/b") == {1: ("m", 10, 1), 2: ("b", 20, 2), 4: ("m4", 40, 4)}
    sides.run("main", "UPDATE t SET a = 'later' WHERE id = 1")
    assert sides.rows("exp/b")[1] == ("m", 10, 1), "main's later work does not show"
    before = sides.db.log("exp/b")[1]
    with sides.db.at(before.id) as then:
        assert then.execute("SELECT a FROM t WHERE id = 1").scalar() == "one", "the branch's past stands on main's past"


def test_a_branch_of_a_branch_merges_back_through_its_parent(db: deeplake.Database) -> None:
    sides = build(db, "branch into main")
    sides.run("exp/b", "UPDATE t SET a = 'parent' WHERE id = 1")
    with db.branch("child", from_="exp/b"):
        db.execute("UPDATE t SET a = 'child' WHERE id = 1")
        db.execute("INSERT INTO t VALUES (4, 'c', 40, 4)")
    sides.run("exp/b", "UPDATE t SET a = 'parent too' WHERE id = 2")
    db.merge("child", "exp/b")
    db.merge("exp/b", "main")
    assert sides.rows("main") == {**FRESH, 1: ("child", 10, 1), 2: ("parent too", 20, 2), 4: ("c", 40, 4)}
    assert db.merge("child", "main").commit is None


def test_another_tools_uncommitted_numbers_are_merged_too(sides: Sides, place: Any) -> None:
    sides.run(sides.theirs, "UPDATE t SET a = 't' WHERE id = 2")
    with closing(other_tool(place)) as other, other:
        other.execute("UPDATE t SET a = 'foreign' WHERE id = 1")
    sides.merge()
    if "main" in (sides.ours, sides.theirs):
        assert sides.rows(sides.ours)[1][0] == "foreign"
    assert sides.rows(sides.ours)[2][0] == "t"


def test_other_handles_see_the_merge(db: deeplake.Database, reconnect: Callable[..., deeplake.Database]) -> None:
    sides = build(db, "main into branch")
    with reconnect(branch="exp/b") as other:
        other.execute("UPDATE t SET a = 'b' WHERE id = 2")
        assert other.execute("SELECT a FROM t ORDER BY id").fetchall() == [("one",), ("b",), ("three",)]
        sides.run("main", "UPDATE t SET a = 'm' WHERE id = 1", "DELETE FROM t WHERE id = 3")
        sides.merge()
        assert other.execute("SELECT a FROM t ORDER BY id").fetchall() == [("m",), ("b",)]
        other.execute("INSERT INTO t (a) VALUES ('after')")
        assert sides.rows("exp/b") == {row[0]: tuple(row[1:]) for row in other.execute("SELECT * FROM t")}


def test_a_merge_leaves_no_temporary_tables(sides: Sides) -> None:
    def temporary() -> set[str]:
        listed = {
            "sqlite": "SELECT name FROM temp.sqlite_master WHERE name LIKE '%images%'",
            "postgres": "SELECT relname FROM pg_class WHERE relpersistence = 't' AND relname LIKE '%images%'",
        }
        return {name for (name,) in sides.db._catalog.fetchall(listed[sides.db._catalog.dialect])}

    sides.run(sides.ours, "UPDATE t SET a = 'o', u = 77 WHERE id = 1")
    sides.run(sides.theirs, "UPDATE t SET a = 't' WHERE id = 2", "INSERT INTO t VALUES (9, 'new', 90, 9)")
    sides.merge()
    sides.db.diff(sides.ours, sides.theirs)
    with sides.db.checkout(sides.ours):
        sides.db.revert(sides.theirs)
    assert temporary() == set()


# -- values of every kind ----------------------------------------------------------------------------------------------


def test_blobs_and_vectors_are_compared_by_what_they_hold(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, b BLOB, v VECTOR(2))")
    db.insert("t", [{"id": i, "b": b"base", "v": [1, 2]} for i in range(1, 6)])
    sides = build(db, "branch into main", ())
    for branch, blob, vector in (("main", b"ours", [7, 8]), ("exp/b", b"theirs", [8, 9])):
        with db.checkout(branch):
            db.execute("UPDATE t SET b = %s, v = %s WHERE id = 1", [b"the same", [3, 4]])  # equal bytes, two addresses
            db.execute("UPDATE t SET b = %s WHERE id = 2", [blob])
            db.execute("UPDATE t SET v = %s WHERE id = 3", [vector])
            db.execute("UPDATE t SET b = %s WHERE id = 4", [b"base"])  # stored anew, but no change
    with db.checkout("exp/b"):
        db.execute("UPDATE t SET b = NULL WHERE id = 5")
    found = conflicts_of(sides.merge)
    assert [c.key for c in found] == [2, 3]
    assert [c.theirs["b"].bytes() for c in found] == [b"theirs", b"base"]
    assert [c.ours["v"].tolist() for c in found] == [[1, 2], [7, 8]]
    sides.merge(on_conflict="theirs")
    rows = db.execute("SELECT * FROM t ORDER BY id").fetchall()
    assert [row.b and row.b.bytes() for row in rows] == [b"the same", b"theirs", b"base", b"base", None]
    np.testing.assert_array_equal(rows[2].v.array(), [8, 9])
    assert len(db.diff("main", "exp/b")) == 0


@pytest.mark.parametrize("lie", LIES)
def test_keys_of_several_columns_and_of_text(db: deeplake.Database, lie: str) -> None:
    sides = build(db, lie, ["CREATE TABLE t (k TEXT, d DATE, a TEXT, PRIMARY KEY (k, d))",
                            "INSERT INTO t VALUES ('x', '2026-01-01', '1'), ('y', '2026-01-02', '2')"])  # fmt: skip
    sides.run(sides.ours, "UPDATE t SET a = 'o' WHERE k = 'x'", "INSERT INTO t VALUES ('z', '2026-01-01', 'o')")
    sides.run(sides.theirs, "UPDATE t SET a = 't' WHERE k = 'x'", "INSERT INTO t VALUES ('z', '2026-01-02', 't')")
    (conflict,) = conflicts_of(sides.merge)
    assert tuple(map(str, conflict.key)) == ("x", "2026-01-01")
    sides.merge(on_conflict="theirs")
    with sides.db.checkout(sides.ours):
        found = sides.db.execute("SELECT k, a FROM t ORDER BY k, d").fetchall()
    assert found == [("x", "t"), ("y", "2"), ("z", "o"), ("z", "t")]


@pytest.mark.parametrize("adding", ["ours", "theirs"])
def test_a_column_added_on_either_side_is_everywhere(sides: Sides, adding: str) -> None:
    sides.run(sides.theirs, "UPDATE t SET a = 't' WHERE id = 2")
    sides.run(sides.ours, "UPDATE t SET a = 'o' WHERE id = 1")
    sides.run(sides.ours if adding == "ours" else sides.theirs, "ALTER TABLE t ADD COLUMN extra INTEGER DEFAULT 5")
    sides.run(sides.theirs, "UPDATE t SET extra = 6 WHERE id = 3")
    sides.merge()
    expected = {1: ("o", 10, 1, 5), 2: ("t", 20, 2, 5), 3: ("three", 30, None, 6)}
    assert sides.rows(sides.ours) == expected
    assert sides.merge().commit is None


def test_a_table_made_after_the_fork_is_merged_like_any_other(sides: Sides) -> None:
    sides.run(sides.ours, "CREATE TABLE later (id BIGINT PRIMARY KEY, a TEXT)", "INSERT INTO later VALUES (1, 'o')")
    sides.run(sides.theirs, "INSERT INTO later VALUES (2, 't')")
    assert sides.rows(sides.theirs, "later") == {2: ("t",)}
    sides.merge()
    assert sides.rows(sides.ours, "later") == {1: ("o",), 2: ("t",)}
    assert sides.rows(sides.theirs, "later") == {2: ("t",)}


def test_a_handle_merges_into_the_branch_it_is_on(db: deeplake.Database) -> None:
    sides = build(db, "main into branch")
    sides.run("main", "UPDATE t SET a = 'm', u = 20 + id WHERE id > 1")
    db.checkout("exp/b")
    db.execute("UPDATE t SET a = 'b' WHERE id = 1")
    assert db.merge("main").changed == 2
    assert db.current_branch == "exp/b"
    assert db.execute("SELECT a, u FROM t ORDER BY id").fetchall() == [("b", 10), ("m", 22), ("m", 23)]
    with pytest.raises(ConstraintError):
        db.execute("INSERT INTO t (u) VALUES (22)")
    db.merge("exp/b", into="main")
    db.checkout("main")
    assert sides.rows("main") == sides.rows("exp/b")


def test_ids_go_on_after_the_highest_on_either_side(sides: Sides) -> None:
    sides.run(sides.theirs, "INSERT INTO t (a) VALUES ('t')")
    sides.run(sides.ours, "INSERT INTO t (a) VALUES ('o')")
    sides.merge()
    sides.run(sides.ours, "INSERT INTO t (a) VALUES ('after')")
    assert sorted(sides.rows(sides.ours)) == [1, 2, 3, 4, 5, 6]


# -- calls that cannot be ----------------------------------------------------------------------------------------------


def test_wrong_calls_say_what_is_wrong(sides: Sides) -> None:
    db = sides.db
    with pytest.raises(InputError, match="into itself"):
        db.merge(sides.ours, sides.ours)
    with pytest.raises(NotFoundError, match="no branch 'nobody'"):
        db.merge("nobody", sides.ours)
    with db.branch("short-lived", from_="main"):
        pass
    db.delete_branch("short-lived")
    kept = db._catalog.fetchone("SELECT name FROM _dl_branches WHERE deleted_at IS NOT NULL")[0]
    for name in ("short-lived", kept):
        with pytest.raises(NotFoundError, match="no branch"):
            db.merge(name, sides.ours)
    with pytest.raises(InputError, match="on_conflict"):
        sides.merge(on_conflict="mine")
    with pytest.raises(InputError, match="commit of its own"), db.transaction():
        sides.merge()
    with pytest.raises(NotFoundError, match="no table 'nothing'"):
        db.diff("main", "main", "nothing")


# -- diff and revert ---------------------------------------------------------------------------------------------------


def test_a_diff_between_any_two_points(sides: Sides) -> None:
    db = sides.db
    db.tag("start", "main")
    sides.run(sides.theirs, *CLEAN["only the source changed"][1])
    found = {c.key: (c.kind, c.before, c.after) for c in db.diff("start", sides.theirs)}
    assert found == {
        1: ("changed", _named(1, "one", 10, 1), _named(1, "x", 10, 1)),
        2: ("removed", _named(2, "two", 20, 2), None),
        9: ("added", None, _named(9, "new", 90, 9)),
    }
    back = {c.key: (c.kind, c.after, c.before) for c in db.diff(sides.theirs, "start", "t")}
    swapped = {"added": "removed", "removed": "added", "changed": "changed"}
    assert back == {key: (swapped[kind], before, after) for key, (kind, before, after) in found.items()}
    first, last = db.log(sides.theirs)[2].id, db.log(sides.theirs)[0].id
    assert [(c.key, c.kind) for c in db.diff(first, last)] == [(2, "removed"), (9, "added")]


def test_a_diff_inside_a_transaction_sees_what_it_did_and_leaves_it_one_commit(sides: Sides) -> None:
    db = sides.db
    db.tag("start", sides.ours)
    with db.checkout(sides.ours):
        commits = len(db.log())
        with db.transaction():
            db.execute("UPDATE t SET a = 'x' WHERE id = 1")
            assert [c.key for c in db.diff("start", sides.ours)] == [1]
            db.execute("UPDATE t SET a = 'y' WHERE id = 2")
            assert [c.key for c in db.diff("start", sides.ours)] == [1, 2]
        assert len(db.log()) == commits + 1
        assert db.log(limit=1)[0].changes["t"].changed == 2


def test_a_diff_as_arrow(db: deeplake.Database) -> None:
    sides = build(db, "branch into main")
    sides.run("exp/b", *CLEAN["only the source changed"][1])
    found = db.diff("main", "exp/b").to_arrow("t").to_pylist()
    shown = [
        (row["change"], row["before"] and row["before"]["id"], row["after"] and row["after"]["a"]) for row in found
    ]
    assert shown == [("changed", 1, "x"), ("removed", 2, None), ("added", None, "new")]


def _named(*values: object) -> dict[str, object]:
    return dict(zip(("id", "a", "u", "n"), values, strict=True))


def test_revert_gives_back_the_rows_and_keeps_the_history(sides: Sides) -> None:
    db = sides.db
    with db.checkout(sides.ours):
        db.tag("before")
        db.execute("UPDATE t SET u = u + 1000, a = 'gone'")
        db.execute("DELETE FROM t WHERE id = 2")
        commits = len(db.log())
        done = db.revert("before")
        assert (done.added, done.changed, done.removed) == (1, 2, 0)
        assert sides.rows(sides.ours) == FRESH
        assert len(db.log()) == commits + 1
        assert db.revert("before").commit is None


# -- the graph ---------------------------------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> dict[int, tuple[int, ...]]:
    parents: dict[int, tuple[int, ...]] = {1: ()}
    for node in range(2, draw(st.integers(2, 12)) + 1):
        parents[node] = tuple(sorted(draw(st.sets(st.integers(1, node - 1), min_size=1, max_size=2))))
    return parents


@given(histories(), st.data())
@settings(max_examples=200)
def test_best_common_ancestors_by_their_definition(parents: dict[int, tuple[int, ...]], data: st.DataObject) -> None:
    def reach(node: int) -> set[int]:
        return {node}.union(*(reach(parent) for parent in parents[node]))

    a, b = (data.draw(st.sampled_from(sorted(parents))) for _ in range(2))
    common = reach(a) & reach(b)
    best = {n for n in common if not any(n != other and n in reach(other) for other in common)}
    graph = Graph(parents)
    assert set(graph.bases(a, b)) == best
    assert graph.ancestors(a) == reach(a)
    read: list[int] = []
    graph.virtual_base(a, b, lambda node: read.append(node) or node, lambda rows, other, base: rows)
    assert set(read) == set(graph.reachable_bases(a, b))
