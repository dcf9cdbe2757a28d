"""Bulk insert of scalars, a 768-d vector and a 22 KB JPEG, committed, with the images validated.

`validate="structure"` against deeplake, which checks nothing, and against one plain file of the same bytes, synced.
`validate="decode"` against the bare decoder on as many threads as there are cores.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import bulk_insert
import harness
import workload

from deeplake_loader.database import Database
from deeplake_loader.errors import MediaError
from deeplake_loader.writing import Validate

DISTINCT = 400


def load(rows: int) -> workload.Columns:
    """The rows; of the images 400 are different, then they repeat, which neither side makes use of."""
    images = workload.jpegs(min(rows, DISTINCT))
    return {**workload.columns(rows), "image": [images[i % len(images)] for i in range(rows)]}


def bare_decoder(_folder: str, given: workload.Columns) -> float:
    import simplejpeg

    def decode_all() -> None:
        with ThreadPoolExecutor(harness.cores()) as pool:
            for _ in pool.map(simplejpeg.decode_jpeg, given["image"]):
                pass

    return harness.timed(decode_all)


def check(folder: str, rows: int) -> None:
    """Every image reads back byte for byte from ours, and a damaged one is refused; deeplake holds them too."""
    given = load(rows)
    with workload.new_store(os.path.join(folder, "check"), images=True) as db:
        refuses(db, given, "structure")
        refuses(db, given, "decode")
        db.insert("generations", given)
        found = [row.image.bytes() for row in db.execute("SELECT image FROM generations ORDER BY id")]
    assert found == given["image"], "ours: images did not read back as they were inserted"
    if harness.installed("deeplake"):
        dataset = workload.new_deeplake(os.path.join(folder, "check-deeplake"), images=True)
        workload.append_deeplake(dataset, workload.for_deeplake(given))
        assert [bytes(dataset["image"].get_bytes(i)) for i in range(rows)] == given["image"], "deeplake: other bytes"


def refuses(db: Database, given: workload.Columns, validate: Validate) -> None:
    damaged = {**given, "image": [*given["image"][:-1], given["image"][-1][:9_000]]}
    try:
        db.insert("generations", damaged, validate=validate)
    except MediaError:
        return
    raise AssertionError(f"validate={validate!r} took a JPEG that was cut short")


def main() -> None:
    parser = harness.arguments(__doc__, rows=10_000, rounds=5)
    parser.add_argument("--validate", choices=("structure", "decode", "both"), default="both")
    options = parser.parse_args()
    with harness.scratch(options.folder) as folder:
        harness.in_process(check, folder, min(options.rows, 500))
        if options.validate != "decode":
            structure(folder, options.rows, options.rounds)
        if options.validate != "structure":
            decode(folder, options.rows, options.rounds)


def structure(folder: str, rows: int, rounds: int) -> None:
    harness.report(
        "bulk insert of scalars, a 768-d vector and a 22 KB JPEG, structure validated, with commit",
        bulk_insert.compare(bulk_insert.contestants(), load, folder, rows, rounds),
        unit="rows/s",
        work=rows,
        peers=["deeplake", "deeplake_durable"],
        limits=["plain_file"],
        goal={"deeplake": 1.0, "plain_file": 0.6},
        rows=rows,
    )


def decode(folder: str, rows: int, rounds: int) -> None:
    chosen: dict[str, bulk_insert.Contestant] = {
        "ours": partial(bulk_insert.ours, validate="decode"),
        "bare_decoder": bare_decoder,
    }
    harness.report(
        "bulk insert of scalars, a 768-d vector and a 22 KB JPEG, every image decoded, with commit",
        bulk_insert.compare(chosen, load, folder, rows, rounds),
        unit="rows/s",
        work=rows,
        limits=["bare_decoder"],
        goal={"bare_decoder": 0.9},
        rows=rows,
    )


if __name__ == "__main__":
    main()
