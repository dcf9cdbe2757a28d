"""Branches: making one, merging, diffing, reading and writing on one, against deeplake and against plain sqlite3.

Limits: sqlite3 alone (WAL, synchronous=FULL), with one table and nobody's history: one durable transaction that writes
the rows a merge brings; the same reads; the same inserts. deeplake's branch and merge copy no rows either, call fsync
nowhere and check neither conflicts nor constraints; it has no diff, no UPDATE on a branch by SQL, and no constraints.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

import harness

from deeplake_loader.database import Database, connect

CHANGED = 1_000
EACH_SIDE = 8_000
SINGLES = 100
TABLE = """CREATE TABLE g (id BIGINT PRIMARY KEY, prompt TEXT NOT NULL, model TEXT, cfg REAL, steps INTEGER,
           x BIGINT UNIQUE)"""
PLAIN = TABLE.replace("id BIGINT PRIMARY KEY", "id INTEGER PRIMARY KEY AUTOINCREMENT")
INSERT = "INSERT INTO g (prompt, model, cfg, steps, x) VALUES (?, ?, ?, ?, ?)"
READS = {
    "point": "SELECT * FROM g WHERE id = 777",
    "count": "SELECT count(*) FROM g",
    "filtered aggregate": "SELECT count(*), sum(steps) FROM g WHERE model = 'sdxl-1.0' AND steps >= 25",
    "filtered ids": "SELECT id FROM g WHERE id BETWEEN 200000 AND 300000 AND steps = 40",
    "group by": "SELECT steps, count(*), sum(steps) FROM g GROUP BY steps ORDER BY steps",
}
GOALS = {"point": 1 / 1.2, "filtered aggregate": 1 / 1.6, "filtered ids": 1 / 1.6, "group by": 0.5}
"""Speed of reads on a branch with 8,000 changes on each side, against the plain table; count(*): 15 ms."""

_numbers = count(os.getpid() * 1_000)  # names and values that no other process of a run has used


def columns(rows: int, first: int = 0) -> dict[str, list[Any]]:
    numbers = range(first, first + rows)
    return {
        "prompt": [f"a castle beside a fox, take {i}" for i in numbers],
        "model": [("sdxl-1.0", "sd-3.5", "flux-dev", "wan-2")[i * 7 % 4] for i in numbers],
        "cfg": [i % 24 / 2 for i in numbers],
        "steps": [(15, 20, 25, 30, 40)[i * 3 % 5] for i in numbers],
        "x": list(numbers),
    }


def build(folder: str, rows: int) -> None:
    """The same rows in a store of ours and in a plain table."""
    given = columns(rows)
    with connect(os.path.join(folder, f"ours-{rows}")) as db:
        db.execute(TABLE)
        db.insert("g", given)
    plain = open_plain(folder, rows)
    plain.execute(PLAIN)
    plain.execute("BEGIN")
    plain.executemany(INSERT, zip(*given.values(), strict=True))
    plain.execute("COMMIT")
    plain.close()


def open_plain(folder: str, rows: int) -> sqlite3.Connection:
    connection = sqlite3.connect(os.path.join(folder, f"plain-{rows}.sqlite"), isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


# -- making a branch ---------------------------------------------------------------------------------------------------


def make_branch(db: Database) -> str:
    name = f"experiment/{next(_numbers)}"
    with db.branch(name, from_="main"):
        return name


def branch_times(folder: str, sizes: Sequence[int], rounds: int) -> harness.Times:
    stores = {f"ours_{rows}": connect(os.path.join(folder, f"ours-{rows}")) for rows in sizes}
    turns: dict[str, Callable[[], float]] = {
        name: partial(harness.timed, partial(make_branch, db)) for name, db in stores.items()
    }
    if harness.installed("deeplake"):
        dataset = new_deeplake(folder, sizes[0])
        turns["deeplake"] = lambda: harness.timed(lambda: dataset.branch(f"b{next(_numbers)}"))
    for turn in turns.values():
        turn()
    times = harness.take_turns(turns, rounds)
    return {"ours": times[f"ours_{sizes[-1]}"], "ours_small": times[f"ours_{sizes[0]}"], **times}


def new_deeplake(folder: str, rows: int) -> Any:
    import deeplake

    dataset = deeplake.create(os.path.join(folder, f"deeplake-{next(_numbers)}"))
    kinds = {"id": "int64", "prompt": "text", "model": "text", "cfg": "float32", "steps": "int32", "x": "int64"}
    for name, kind in kinds.items():
        dataset.add_column(name, kind)
    append_deeplake(dataset, columns(rows), 1)
    return dataset


def append_deeplake(dataset: Any, given: dict[str, list[Any]], first: int) -> None:
    rows = {"id": list(range(first, first + len(given["x"]))), **given}
    for start in range(0, len(given["x"]), 10_000):
        dataset.append({name: values[start : start + 10_000] for name, values in rows.items()})
    dataset.commit()


# -- merging and diffing -----------------------------------------------------------------------------------------------


def fresh(rows: int) -> dict[str, list[Any]]:
    return columns(rows, next(_numbers) * 100_000)


def merge_added(db: Database) -> float:
    name = make_branch(db)
    with db.checkout(name):
        db.insert("g", fresh(CHANGED))
    return harness.timed(lambda: db.merge(name, into="main"))


def merge_mixed(db: Database) -> float:
    """400 rows added, 400 changed, 200 removed; main changed 1,000 others since."""
    name = change_both(db, CHANGED, next(_numbers) % 1_000 * 3 * CHANGED)
    return harness.timed(lambda: db.merge(name, into="main"))


def change_both(db: Database, changes: int, base: int) -> str:
    name = make_branch(db)
    with db.checkout(name):
        db.insert("g", fresh(changes * 4 // 10))
        db.execute(f"UPDATE g SET cfg = cfg + 1 WHERE id >= {base} AND id < {base + changes * 4 // 10}")
        db.execute(f"DELETE FROM g WHERE id >= {base + changes} AND id < {base + changes * 12 // 10}")
    db.execute(f"UPDATE g SET cfg = cfg + 2 WHERE id >= {base + 2 * changes} AND id < {base + 3 * changes}")
    return name


def plain_writes(connection: sqlite3.Connection) -> float:
    rows = list(zip(*fresh(CHANGED).values(), strict=True))

    def write() -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(INSERT, rows)
        connection.execute("COMMIT")

    return harness.timed(write)


def merge_deeplake(dataset: Any) -> float:
    branch = dataset.branch(f"b{next(_numbers)}").open()
    append_deeplake(branch, fresh(CHANGED), 10_000_000)
    return harness.timed(lambda: dataset.merge(branch.current_branch.name))


def merge_times(folder: str, rows: int, rounds: int, ours: Callable[[Database], float]) -> harness.Times:
    db, plain = connect(os.path.join(folder, f"ours-{rows}")), open_plain(folder, rows)
    turns: dict[str, Callable[[], float]] = {"ours": lambda: ours(db), "sqlite": lambda: plain_writes(plain)}
    if harness.installed("deeplake"):
        dataset = new_deeplake(folder, 10_000)
        turns["deeplake"] = lambda: merge_deeplake(dataset)
    for turn in turns.values():
        turn()
    return harness.take_turns(turns, rounds)


def diff_times(folder: str, rows: int, rounds: int) -> harness.Times:
    db = connect(os.path.join(folder, f"ours-{rows}"))
    name = change_both(db, 1_500, rows - 5_000)
    assert len(db.diff("main", name)) == 3_000
    return harness.take_turns({"ours": lambda: harness.timed(lambda: db.diff("main", name))}, rounds)


# -- reading -----------------------------------------------------------------------------------------------------------


def read_times(folder: str, rows: int, rounds: int) -> dict[str, dict[str, harness.Times]]:
    """Per state of the branch and read: the branch, main on a handle of the same store, a plain table of those rows."""
    plain = open_plain(folder, rows)
    db = connect(os.path.join(folder, f"ours-{rows}"))
    assert db.execute("SELECT count(*) FROM g").scalar() == rows
    unchanged, changed = make_branch(db), make_branch(db)
    found = {"branch without changes": measure(connect(db.root, branch=unchanged), db, plain, rounds)}
    other = connect(db.root, branch=changed)
    for handle, column in ((other, "cfg"), (db, "steps")):
        step = rows // EACH_SIDE
        handle.execute(f"UPDATE g SET {column} = {column} + 1 WHERE id % {step} = {0 if handle is db else step // 2}")
    found["8,000 changes on each side"] = measure(other, db, plain, rounds)
    return found


def measure(branch: Database, main: Database, plain: sqlite3.Connection, rounds: int) -> dict[str, harness.Times]:
    times = {}
    for name, sql in READS.items():
        repeats = 200 if name == "point" else 1
        handles = {"ours": branch, "main": main, "sqlite": plain}
        turns = {who: partial(read, handle, sql, repeats) for who, handle in handles.items()}
        harness.take_turns(turns, 2)
        times[name] = harness.take_turns(turns, rounds)
    return times


def read(handle: Any, sql: str, repeats: int) -> float:
    return harness.timed(lambda: [handle.execute(sql).fetchall() for _ in range(repeats)]) / repeats


# -- writing -----------------------------------------------------------------------------------------------------------


def write_times(folder: str, rows: int, rounds: int) -> dict[str, harness.Times]:
    """Seconds per row of bulk and of single inserts, on a branch and on main of the same store."""
    db = connect(os.path.join(folder, f"ours-{rows}"))
    handles = {"ours": connect(db.root, branch=make_branch(db)), "main": db}
    bulk = {name: partial(_bulk, handle) for name, handle in handles.items()}
    single = {name: partial(_singles, handle) for name, handle in handles.items()}
    for turns in (bulk, single):
        harness.take_turns(turns, 1)
    return {"bulk": harness.take_turns(bulk, rounds), "single": harness.take_turns(single, rounds)}


def _bulk(db: Database) -> float:
    given = fresh(50_000)
    return harness.timed(lambda: db.insert("g", given)) / 50_000


def _singles(db: Database) -> float:
    rows = list(zip(*fresh(SINGLES).values(), strict=True))
    return harness.timed(lambda: [db.execute(INSERT, list(row)) for row in rows]) / SINGLES


# -- the claims --------------------------------------------------------------------------------------------------------


def main() -> None:
    options = harness.arguments(__doc__, rows=1_000_000, rounds=9).parse_args()
    rows, rounds, small = options.rows, options.rounds, 10_000
    with harness.scratch(options.folder) as folder:
        for size in (small, rows):
            harness.in_process(build, folder, size)
        reads = harness.in_process(read_times, folder, rows, rounds)
        made = harness.in_process(branch_times, folder, (small, rows), max(rounds, 25))
        added = harness.in_process(merge_times, folder, rows, rounds, merge_added)
        mixed = harness.in_process(merge_times, folder, rows, rounds, merge_mixed)
        diffs = harness.in_process(diff_times, folder, rows, rounds)
        written = harness.in_process(write_times, folder, rows, rounds)
    harness.report(
        "a new branch of main, durable",
        made,
        unit="ms",
        peers=["deeplake"],
        limits=["ours_small"],
        rows=rows,
        small_rows=small,
        goal_ms=3,
    )
    for claim, times, goal in (("1,000 added rows", added, 15), ("1,000 mixed changes, main changed too", mixed, 30)):
        harness.report(
            f"merge {claim}, durable", times, unit="ms", peers=["deeplake"], limits=["sqlite"], rows=rows, goal_ms=goal
        )
    harness.report("diff of 3,000 changes", diffs, unit="ms", rows=rows, goal_ms=15)
    for kind, goal in (("bulk", 0.5), ("single", 0.7)):
        harness.report(
            f"{kind} inserts on a branch, against main",
            written[kind],
            unit="rows/s",
            work=1,
            limits=["main"],
            goal={"main": goal},
        )
    for state, found in reads.items():
        for name, times in found.items():
            goal = {} if state.startswith("8,000") and name not in GOALS else {"main": 1.0}
            if state.startswith("8,000") and name in GOALS:
                goal = {"main": round(GOALS[name], 3)}
            harness.report(f"read, {state}: {name}", times, unit="ms", limits=["main", "sqlite"], goal=goal, rows=rows)


if __name__ == "__main__":
    main()
