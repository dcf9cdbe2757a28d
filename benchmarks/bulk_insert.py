"""Bulk insert of scalars and a 768-d vector, committed: ours (durable), deeplake's append and commit, a plain file.

deeplake calls fsync nowhere; `deeplake_durable` is the same followed by an fsync of its files, which is what ours does
before it returns. The limit writes the same bytes to one file and syncs it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import harness
import numpy as np
import workload

from deeplake_loader.database import connect
from deeplake_loader.writing import Validate

Contestant = Callable[[str, workload.Columns], float]


def ours(folder: str, given: workload.Columns, validate: Validate = "structure") -> float:
    with workload.new_store(os.path.join(folder, "store"), images="image" in given) as db:
        return harness.timed(lambda: db.insert("generations", given, validate=validate))


def deeplake(folder: str, given: workload.Columns, durable: bool = False) -> float:
    images = "image" in given
    dataset = workload.new_deeplake(os.path.join(folder, "store"), images=images)
    rows = workload.for_deeplake(given)

    def insert() -> None:
        workload.append_deeplake(dataset, rows, batch=1_000 if images else 10_000)
        for path in harness.files_below(folder) if durable else ():
            harness.sync_file(path)

    return harness.timed(insert)


def plain_file(folder: str, given: workload.Columns) -> float:
    buffers = [workload.scalar_bytes(given), given["clip_embedding"], *given.get("image", ())]
    return harness.timed(lambda: harness.write_durably(os.path.join(folder, "plain"), buffers))


def contestants() -> dict[str, Contestant]:
    """Ours, the plain file, and deeplake where it is installed."""
    found: dict[str, Contestant] = {"ours": ours, "plain_file": plain_file}
    if harness.installed("deeplake"):
        found |= {"deeplake": deeplake, "deeplake_durable": partial(deeplake, durable=True)}
    return found


def turn(contestant: Contestant, make: Callable[[int], workload.Columns], folder: str, rows: int) -> float:
    """The seconds of one insert in this fresh process, after a small one that loads every library."""
    target = os.path.join(folder, "target")
    for given in (make(500), make(rows)):
        os.mkdir(target)
        try:
            seconds = contestant(target, given)
        finally:
            shutil.rmtree(target)
    return seconds


def compare(
    chosen: dict[str, Contestant], make: Callable[[int], workload.Columns], folder: str, rows: int, rounds: int
) -> harness.Times:
    """The seconds of every insert, each in a process of its own, in turns."""
    turns = {name: partial(harness.in_process, turn, c, make, folder, rows) for name, c in chosen.items()}
    return harness.take_turns(turns, rounds)


def check(folder: str, rows: int) -> None:
    """What was inserted reads back equal, value for value, from ours and from deeplake."""
    given = workload.columns(rows)
    with workload.new_store(os.path.join(folder, "check")) as db:
        assert db.insert("generations", given) == rows
    with connect(os.path.join(folder, "check"), create=False) as db:
        found = db.execute("SELECT * FROM generations ORDER BY id")
        read = {name: [row[name] for row in found] for name in workload.SCALARS}
        vectors = np.stack([row.clip_embedding.array() for row in found])
    equal(given, {**read, "created_at": np.array(read["created_at"], "M8[us]"), "clip_embedding": vectors}, "ours")
    if harness.installed("deeplake"):
        dataset = workload.new_deeplake(os.path.join(folder, "check-deeplake"))
        workload.append_deeplake(dataset, workload.for_deeplake(given))
        equal(workload.for_deeplake(given), {name: dataset[name][:] for name in given}, "deeplake")


def equal(given: workload.Columns, read: dict[str, Any], who: str) -> None:
    for name, values in given.items():
        if not np.array_equal(np.asarray(values), np.asarray(read[name])):
            raise AssertionError(f"{who}: column {name!r} did not read back as it was inserted")


def main() -> None:
    options = harness.arguments(__doc__, rows=100_000, rounds=5).parse_args()
    with harness.scratch(options.folder) as folder:
        harness.in_process(check, folder, min(options.rows, 3_000))
        times = compare(contestants(), workload.columns, folder, options.rows, options.rounds)
    harness.report(
        "bulk insert of scalars and a 768-d vector, with commit",
        times,
        unit="rows/s",
        work=options.rows,
        peers=["deeplake", "deeplake_durable"],
        limits=["plain_file"],
        goal={"deeplake": 1.2},
        rows=options.rows,
    )


if __name__ == "__main__":
    main()
