"""A fresh process to the first row of the hybrid query: import, connect, run, on 100,000 rows with the plan cached.

Peer: the same rows and query in deeplake. Limits: a process that only prints; one that opens the same catalog with
sqlite3 and runs the query's WHERE. Every process is `python -c`, timed from its start to the line it prints.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial

import harness
import workload

OURS = f"""import json, sys
from array import array
import deeplake_loader as deeplake
db = deeplake.connect(sys.argv[1])
query = array("f", open(sys.argv[2], "rb").read())
rows = db.execute({workload.QUERY!r}, {{"query_vec": query}})
print(json.dumps([row.id for row in rows]), flush=True)
"""
DEEPLAKE = """import json, sys
import deeplake
dataset = deeplake.open_read_only(sys.argv[1])
rows = dataset.query(open(sys.argv[2]).read())
print(json.dumps([int(rows[i]["id"]) for i in range(len(rows))]), flush=True)
"""
SQLITE = f"""import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
print(connection.execute({f"SELECT count(*) FROM generations WHERE {workload.WHERE}"!r}).fetchone()[0], flush=True)
"""
PYTHON = "print(1, flush=True)"


def build(folder: str, rows: int) -> None:
    """Both stores, the query in files, and the plan cached by a first run."""
    given, query = workload.columns(rows), workload.query_vectors(1)[0]
    with workload.new_store(os.path.join(folder, "ours")) as db:
        db.insert("generations", given)
        found = [row.id for row in db.execute(workload.QUERY, {"query_vec": query})]
    workload.check_top(given, query, found, "ours")
    query.tofile(os.path.join(folder, "query.f32"))
    if harness.installed("deeplake"):
        dataset = workload.new_deeplake(os.path.join(folder, "deeplake"))
        workload.append_deeplake(dataset, workload.for_deeplake(given))
        with open(os.path.join(folder, "query.tql"), "w") as file:
            file.write(workload.deeplake_query(query))


def contestants(folder: str) -> dict[str, Callable[[], float]]:
    at = partial(os.path.join, folder)
    commands = {
        "ours": (OURS, at("ours"), at("query.f32")),
        "python": (PYTHON,),
        "python_sqlite3": (SQLITE, at("ours", "catalog.sqlite")),
    }
    if harness.installed("deeplake"):
        commands["deeplake"] = (DEEPLAKE, at("deeplake"), at("query.tql"))
    return {name: partial(seconds, *command) for name, command in commands.items()}


def seconds(code: str, *args: str) -> float:
    return harness.first_line(code, *args)[0]


def check(folder: str, rows: int) -> None:
    """The very processes that are timed give the right rows; this also leaves their bytecode cached."""
    given, query = workload.columns(rows), workload.query_vectors(1)[0]
    at = partial(os.path.join, folder)
    _, line = harness.first_line(OURS, at("ours"), at("query.f32"))
    workload.check_top(given, query, json.loads(line), "ours")
    _, line = harness.first_line(SQLITE, at("ours", "catalog.sqlite"))
    assert int(line) == workload.passing(given).sum()
    if harness.installed("deeplake"):
        _, line = harness.first_line(DEEPLAKE, at("deeplake"), at("query.tql"))
        workload.check_top(given, query, json.loads(line), "deeplake")


def main() -> None:
    options = harness.arguments(__doc__, rows=100_000, rounds=9).parse_args()
    with harness.scratch(options.folder) as folder:
        harness.in_process(build, folder, options.rows)
        check(folder, options.rows)
        times = harness.take_turns(contestants(folder), options.rounds)
    harness.report(
        "fresh process to the first row of the hybrid query, plan cached",
        times,
        unit="ms",
        peers=["deeplake"],
        limits=["python", "python_sqlite3"],
        goal={"deeplake": 4.0},
        goal_ms=200,
        rows=options.rows,
    )


if __name__ == "__main__":
    main()
