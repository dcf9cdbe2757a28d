"""Four processes write on three branches while a fifth merges: nothing lost, nothing twice, only typed conflicts."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest

from deeplake_loader.errors import ConflictError, ConstraintError

pytestmark = pytest.mark.both_catalogs

BRANCHES = ("main", "left", "right/é")
WRITERS = ("main", "left", "right/é", "left")
ROWS = 60
SHARED = 3
"""Rows that every writer updates, so that merges meet conflicts."""


def write(place: Any, writer: int, branch: str, ready: Any) -> None:
    """Inserts its own rows, one commit each, deletes every third again, and counts up the shared rows."""
    with place.connect(branch=branch, timeout_s=300) as db:
        ready.wait()
        for i in range(ROWS):
            row = db.execute(
                "INSERT INTO t (writer, number, code) VALUES (%s, %s, %s) RETURNING id", [writer, i, f"{writer}-{i}"]
            ).scalar()
            if i % 3 == 2:
                db.execute("DELETE FROM t WHERE id = %s", [row])
            if i % 5 == 0:
                db.execute("UPDATE t SET number = number + 1 WHERE id = %s", [i % SHARED + 1])


def keep_merging(place: Any, ready: Any, finished: Any, conflicts: Any) -> None:
    """Merges every branch into every other, until the writers are done."""
    with place.connect(timeout_s=300) as db:
        ready.wait()
        turn = 0
        while not finished.is_set():
            source, target = BRANCHES[turn % 3], BRANCHES[(turn + 1 + turn // 3 % 2) % 3]
            turn += 1
            try:
                db.merge(source, target, on_conflict=("raise", "ours", "theirs")[turn % 3])
            except ConflictError as error:
                assert error.conflicts
                assert {c.key for c in error.conflicts} <= set(range(1, SHARED + 1))
                conflicts.value += 1


def test_writers_and_a_merger_lose_nothing(place: Any) -> None:
    with place.connect() as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, writer INTEGER, number INTEGER NOT NULL, code TEXT UNIQUE)")
        db.execute("INSERT INTO t (writer, number) VALUES (-1, 0), (-1, 0), (-1, 0)")
        for name in BRANCHES[1:]:
            with db.branch(name, from_="main"):
                pass
    context = multiprocessing.get_context("spawn")
    ready, finished, conflicts = context.Barrier(5), context.Event(), context.Value("i", 0)
    writers = [context.Process(target=write, args=(place, i, b, ready)) for i, b in enumerate(WRITERS)]
    merger = context.Process(target=keep_merging, args=(place, ready, finished, conflicts))
    for process in (*writers, merger):
        process.start()
    for process in writers:
        process.join(300)
    finished.set()
    merger.join(300)
    assert [process.exitcode for process in (*writers, merger)] == [0] * 5

    kept = {(writer, i) for writer in range(4) for i in range(ROWS) if i % 3 != 2}
    with place.connect() as db:
        for source, target in (("left", "main"), ("right/é", "main"), ("main", "left"), ("main", "right/é")):
            db.merge(source, target, on_conflict="ours")
        states = []
        for name in BRANCHES:
            with db.checkout(name):
                rows = db.execute("SELECT writer, number, id FROM t WHERE writer >= 0").fetchall()
                assert len(rows) == len({row.id for row in rows}) == len(kept)
                assert {(row.writer, row.number) for row in rows} == kept
                states.append(db.execute("SELECT * FROM t ORDER BY id").fetchall())
                try:
                    db.execute("INSERT INTO t (number, code) VALUES (0, '0-0')")
                    raise AssertionError("the unique code was given twice")
                except ConstraintError:
                    pass
        assert states[0] == states[1]
        assert [row for row in states[0] if row.writer >= 0] == [row for row in states[2] if row.writer >= 0]
