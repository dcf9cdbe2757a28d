"""The tables and stored views that hold a branch's own rows."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

import deeplake_loader as deeplake
from deeplake_loader.errors import SQLError


def stored_views(db: deeplake.Database) -> dict[str, list[tuple[object, ...]]]:
    """What another tool finds: every stored view and its rows."""
    with closing(sqlite3.connect(f"{db.root}/catalog.sqlite")) as other:
        names = [name for (name,) in other.execute("SELECT name FROM sqlite_master WHERE type = 'view'")]
        return {name: other.execute(f'SELECT * FROM "{name}" ORDER BY 1').fetchall() for name in names}


@pytest.fixture
def table(db: deeplake.Database) -> deeplake.Database:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, v TEXT)")
    db.execute("INSERT INTO t VALUES (1, 'main')")
    return db


def test_a_branch_that_a_merge_first_writes_has_the_view_of_its_name(table: deeplake.Database) -> None:
    table.branch("a", from_="main")
    table.branch("b", from_="main")
    table.execute("UPDATE t SET v = 'b'")
    table.merge("b", into="a")
    assert stored_views(table) == {"t@a": [(1, "b")], "t@b": [(1, "b")]}
    table.checkout("main")
    table.execute("ALTER TABLE t RENAME COLUMN v TO w")
    table.delete_branch("a")
    table.delete_branch("b")
    assert stored_views(table) == {}
    table.optimize(keep=0)
    table.execute("ALTER TABLE t RENAME COLUMN w TO v")


def test_branches_whose_names_differ_in_case_alone_have_a_view_each(table: deeplake.Database) -> None:
    for name in ("Exp", "exp"):
        table.branch(name, from_="main")
        table.execute("UPDATE t SET v = %s", [name])
    assert sorted(stored_views(table).values()) == [[(1, "Exp")], [(1, "exp")]]
    table.delete_branch("Exp")
    assert list(stored_views(table).values()) == [[(1, "exp")]]
    table.rename_branch("exp", "other")
    assert stored_views(table) == {"t@other": [(1, "exp")]}
    assert table.execute("SELECT v FROM t").scalar() == "exp"


def test_a_table_named_like_a_branchs_view_is_no_obstacle(table: deeplake.Database) -> None:
    table.execute('CREATE TABLE "t@a" (id BIGINT PRIMARY KEY, v TEXT)')
    table.execute("INSERT INTO \"t@a\" VALUES (7, 'mine')")
    table.branch("a")
    table.execute("UPDATE t SET v = 'a'")
    assert list(stored_views(table).values()) == [[(1, "a")]]
    assert table.merge("a", into="main").changed == 1
    table.checkout("main")
    table.delete_branch("a")
    assert stored_views(table) == {}
    assert table.execute('SELECT * FROM "t@a"').fetchall() == [(7, "mine")]


@pytest.mark.parametrize("written", [False, True])
def test_a_column_that_another_tool_added_is_never_given_made_up_values(
    table: deeplake.Database, written: bool
) -> None:
    table.tag("before")
    table.branch("a")
    if written:
        table.execute("UPDATE t SET v = 'a'")
    with closing(sqlite3.connect(f"{table.root}/catalog.sqlite")) as other, other:
        other.execute("ALTER TABLE t ADD COLUMN ext TEXT")
        other.execute("UPDATE t SET v = 'changed', ext = 'x'")
    with pytest.raises(SQLError, match=r"no such column: [tl]\.ext"):
        table.execute("SELECT * FROM t")
    with pytest.raises(SQLError, match=r"no such column: [tl]\.ext"):
        table.merge("main", into="a")
    with table.at("before") as past, pytest.raises(SQLError, match=r"no such column: [tl]\.ext"):
        past.execute("SELECT * FROM t")
