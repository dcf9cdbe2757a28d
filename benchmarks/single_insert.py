"""Durable single inserts of scalars, a 768-d vector and a 20 KB image, and what a thousand of them cost afterwards.

Limit: sqlite3 alone (WAL, synchronous=FULL) inserting the same bytes as one BLOB, each insert a transaction. deeplake's
append and commit of one row is there for comparison; it calls fsync nowhere. `afterwards` opens a store of single
inserts and one of a single bulk insert of the same rows and runs the hybrid query, in turns.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Any

import harness
import workload

from deeplake_loader.database import connect

BLOCK = 100
"""Inserts per turn: more than SQLite's log takes before it is written back, so that every turn pays for that."""
INSERT = """INSERT INTO generations (prompt, clip_embedding, image, model_version, cfg_scale, steps, created_at)
            VALUES (%s, %s, %s, %s, %s, %s, NOW())"""
COLUMNS = ("id", "prompt", "clip_embedding", "model_version", "cfg_scale", "steps", "created_at", "image")
INSERT_ALL = f"INSERT INTO generations ({', '.join(COLUMNS)}) VALUES ({', '.join(['%s'] * len(COLUMNS))})"

Rows = list[dict[str, Any]]


def load(rows: int) -> Rows:
    given, images = workload.columns(rows), workload.jpegs(100)
    given = {name: values.tolist() if name == "cfg_scale" else list(values) for name, values in given.items()}
    given["steps"], given["id"] = [int(v) for v in given["steps"]], [int(v) for v in given["id"]]
    given["created_at"] = [v.item() for v in given["created_at"]]
    given["image"] = [images[i % len(images)] for i in range(rows)]
    return [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]


class Blocks:
    """A contestant that inserts the next rows, one transaction each, and reports the seconds of a block."""

    def __init__(self, insert: Callable[[dict[str, Any]], object], rows: Rows) -> None:
        self._insert, self._rows, self._next = insert, rows, 0

    def __call__(self) -> float:
        block = self._rows[self._next : self._next + BLOCK]
        self._next += BLOCK
        return harness.timed(lambda: [self._insert(row) for row in block])


def our_insert(folder: str) -> Callable[[dict[str, Any]], object]:
    db = workload.new_store(os.path.join(folder, "ours"), images=True)
    names = ("prompt", "clip_embedding", "image", "model_version", "cfg_scale", "steps")
    return lambda row: db.execute(INSERT, [row[name] for name in names])


def sqlite_insert(folder: str) -> Callable[[dict[str, Any]], object]:
    connection = sqlite3.connect(os.path.join(folder, "plain.sqlite"), isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE plain (id INTEGER PRIMARY KEY, data BLOB NOT NULL)")
    return lambda row: connection.execute("INSERT INTO plain (data) VALUES (?)", (as_blob(row),))


def as_blob(row: dict[str, Any]) -> bytes:
    scalars = "|".join(str(row[name]) for name in workload.SCALARS).encode()
    return b"".join((scalars, row["clip_embedding"].tobytes(), row["image"]))


def deeplake_insert(folder: str) -> Callable[[dict[str, Any]], object]:
    dataset = workload.new_deeplake(os.path.join(folder, "deeplake"), images=True)

    def insert(row: dict[str, Any]) -> None:
        dataset.append([{**row, "created_at": int(row["created_at"].timestamp() * 1e6)}])
        dataset.commit()

    return insert


def inserts(folder: str, rounds: int) -> harness.Times:
    """Seconds per insert, in blocks that take turns on connections that stay open."""
    makers = {"ours": our_insert, "sqlite_blob": sqlite_insert}
    if harness.installed("deeplake"):
        makers["deeplake"] = deeplake_insert
    rows = load(BLOCK * (rounds + 1))
    blocks = {name: Blocks(make(folder), rows) for name, make in makers.items()}
    for block in blocks.values():
        block()  # libraries, plans and files that only the first insert pays
    times = harness.take_turns(blocks, rounds)
    return {name: [seconds / BLOCK for seconds in found] for name, found in times.items()}


def build(folder: str, count: int) -> None:
    """The same rows by single inserts and by one bulk insert, and the same answers from both."""
    rows, query = load(count), workload.query_vectors(1)[0]
    with workload.new_store(os.path.join(folder, "single"), images=True) as db:
        for row in rows:
            db.execute(INSERT_ALL, [row[name] for name in COLUMNS])
        single = db.execute(workload.QUERY, {"query_vec": query}).fetchall()
        images = [row.image.bytes() for row in db.execute("SELECT image FROM generations ORDER BY id LIMIT 50")]
    assert images == [row["image"] for row in rows[:50]]
    with workload.new_store(os.path.join(folder, "bulk"), images=True) as db:
        db.insert("generations", rows)
        assert db.execute(workload.QUERY, {"query_vec": query}).fetchall() == single
    workload.check_top(workload.columns(count), query, [row[0] for row in single], "ours")


def open_and_query(path: str) -> float:
    query = workload.query_vectors(1)[0]

    def ask() -> None:
        with connect(path, create=False) as db:
            db.execute(workload.QUERY, {"query_vec": query}).fetchone()

    return harness.timed(ask)


def afterwards(folder: str, rounds: int) -> harness.Times:
    turns = {n: partial(open_and_query, os.path.join(folder, n)) for n in ("single", "bulk")}
    harness.take_turns(turns, 2)
    times = harness.take_turns(turns, rounds)
    return {"ours": times["single"], "bulk": times["bulk"]}


def main() -> None:
    options = harness.arguments(__doc__, rows=1_000, rounds=7).parse_args()
    with harness.scratch(options.folder) as folder:
        harness.in_process(build, folder, options.rows)
        times = harness.in_process(inserts, folder, options.rounds)
        later = harness.in_process(afterwards, folder, max(options.rounds, 21))
    harness.report(
        "single durable inserts of scalars, a 768-d vector and a 20 KB image",
        times,
        unit="inserts/s",
        work=1,
        peers=["deeplake"],
        limits=["sqlite_blob"],
        goal={"sqlite_blob": 0.35},
    )
    harness.report(
        "open and hybrid query after single inserts, against one bulk insert of the same rows",
        later,
        unit="ms",
        limits=["bulk"],
        goal={"bulk": round(1 / 1.2, 3)},
        rows=options.rows,
    )


if __name__ == "__main__":
    main()
