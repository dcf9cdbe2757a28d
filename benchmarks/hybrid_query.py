"""The hybrid query at 100,000 x 768 with its WHERE (15 % pass), in an open process: exact, recall 1.0.

Limit: numpy's exact scan over the survivors with the matrix in memory and its norms known, between two plain sqlite3
queries for the ids that pass and the rows that won. Peer: deeplake. Every round asks for another vector.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable
from typing import Any

import harness
import numpy as np
import workload

Ask = Callable[[workload.Vector], list[int]]


def our_ask(folder: str, given: workload.Columns) -> Ask:
    db = workload.new_store(os.path.join(folder, "ours"))
    db.insert("generations", given)
    return lambda query: [row.id for row in db.execute(workload.QUERY, {"query_vec": query})]


def numpy_ask(folder: str, given: workload.Columns) -> Ask:
    connection = sqlite3.connect(os.path.join(folder, "plain.sqlite"))
    connection.execute(workload.PLAIN_TABLE.replace("BIGINT PRIMARY", "INTEGER PRIMARY"))
    text = {**given, "created_at": np.datetime_as_string(given["created_at"])}
    rows = zip(
        *(text[n].tolist() if isinstance(text[n], np.ndarray) else text[n] for n in workload.SCALARS), strict=True
    )
    connection.executemany("INSERT INTO generations VALUES (?, ?, ?, ?, ?, ?)", rows)
    connection.commit()
    matrix = given["clip_embedding"]
    norms = np.linalg.norm(matrix, axis=1)

    def ask(query: workload.Vector) -> list[int]:
        found = connection.execute(f"SELECT id FROM generations WHERE {workload.WHERE}").fetchall()
        ids = np.fromiter((i for (i,) in found), np.int64, len(found))
        scores = matrix[ids - 1] @ query / (norms[ids - 1] * np.linalg.norm(query))
        top = np.argpartition(-scores, workload.TOP)[: workload.TOP]
        best = ids[top[np.argsort(-scores[top])]].tolist()
        marks = ",".join("?" * len(best))
        prompts = dict(connection.execute(f"SELECT id, prompt FROM generations WHERE id IN ({marks})", best))
        return [i for i in best if prompts[i]]

    return ask


def deeplake_ask(folder: str, given: workload.Columns) -> Ask:
    dataset = workload.new_deeplake(os.path.join(folder, "deeplake"))
    workload.append_deeplake(dataset, workload.for_deeplake(given))

    def ask(query: workload.Vector) -> list[int]:
        rows = dataset.query(workload.deeplake_query(query))
        return [int(i) for i in rows["id"][:]]

    return ask


class Asker:
    """A contestant that asks for the next vector and reports the seconds."""

    def __init__(self, ask: Ask, queries: Iterable[Any]) -> None:
        self._ask, self._queries = ask, iter(queries)

    def __call__(self) -> float:
        query = next(self._queries)
        return harness.timed(lambda: self._ask(query))


def compare(folder: str, rows: int, rounds: int) -> tuple[harness.Times, float]:
    """(seconds per query, share of the rows that pass), after every contestant gave the exact rows of every query."""
    given, queries = workload.columns(rows), workload.query_vectors(rounds)
    makers = {"ours": our_ask, "numpy": numpy_ask}
    if harness.installed("deeplake"):
        makers["deeplake"] = deeplake_ask
    asks = {name: make(folder, given) for name, make in makers.items()}
    for query in queries:
        for name, ask in asks.items():
            workload.check_top(given, query, ask(query), name)
    askers = {name: Asker(ask, queries) for name, ask in asks.items()}
    return harness.take_turns(askers, rounds), float(workload.passing(given).mean())


def main() -> None:
    options = harness.arguments(__doc__, rows=100_000, rounds=15).parse_args()
    with harness.scratch(options.folder) as folder:
        times, share = harness.in_process(compare, folder, options.rows, options.rounds)
    harness.report(
        "hybrid query in an open process, recall 1.0",
        times,
        unit="ms",
        peers=["deeplake"],
        limits=["numpy"],
        goal={"numpy": 1.0},
        rows=options.rows,
        passing=harness.short(share),
        recall=1.0,
    )


if __name__ == "__main__":
    main()
