"""Bytes on disk beside the payload: the index (sidecars and catalog), tar framing, and the whole against deeplake.

Payload is what the user gave: JPEGs of 22 KB, 768-d float32 vectors, and the scalars as text. `framing` is what the
tars hold besides the images: headers, padding, and the scalars once more as JSON.
"""

from __future__ import annotations

import os

import harness
import insert_images
import single_insert
import workload


def measure(folder: str, rows: int) -> tuple[dict[str, int], dict[str, float]]:
    """(bytes of each kind, all of them sealed; shares of the payload)."""
    given = insert_images.load(rows)
    root = os.path.join(folder, "ours")
    with workload.new_store(root, images=True) as db:
        db.insert("generations", given)
        db.optimize()
        assert db.execute("SELECT count(image) FROM generations").scalar() == rows
    images, vectors = sum(map(len, given["image"])), given["clip_embedding"].nbytes
    payload = images + vectors + len(workload.scalar_bytes(given))
    sizes = by_kind(root)
    beside = {
        "index": sizes["sidecars"] + sizes["catalog"],
        "framing": sizes["tars"] - images,
        "matrix_headers": sizes["matrices"] - vectors,
        "whole": sum(sizes.values()) - payload,
    }
    return {"payload": payload, **sizes}, {name: harness.short(size / payload) for name, size in beside.items()}


def by_kind(root: str) -> dict[str, int]:
    kinds = {".tar": "tars", ".idx": "sidecars", ".npy": "matrices"}
    sizes = dict.fromkeys((*kinds.values(), "catalog"), 0)
    for path in harness.files_below(root):
        sizes[kinds.get(os.path.splitext(path)[1], "catalog")] += os.path.getsize(path)
    return sizes


def measure_deeplake(folder: str, rows: int) -> int:
    given = insert_images.load(rows)
    dataset = workload.new_deeplake(os.path.join(folder, "deeplake"), images=True)
    workload.append_deeplake(dataset, workload.for_deeplake(given))
    return harness.bytes_below(os.path.join(folder, "deeplake"))


def after_single_inserts(folder: str) -> int:
    """The catalog's bytes after 500 single inserts were moved out of it: a file keeps the room it once needed."""
    root = os.path.join(folder, "singles")
    with workload.new_store(root, images=True) as db:
        for row in single_insert.load(500):
            db.execute(single_insert.INSERT_ALL, [row[name] for name in single_insert.COLUMNS])
        db.optimize()
    return by_kind(root)["catalog"]


def main() -> None:
    options = harness.arguments(__doc__, rows=10_000, rounds=1).parse_args()
    with harness.scratch(options.folder) as folder:
        sizes, shares = harness.in_process(measure, folder, options.rows)
        singles = harness.in_process(after_single_inserts, folder)
        peer: dict[str, float | str] = {"deeplake": "peer not installed"}
        if harness.installed("deeplake"):
            size = harness.in_process(measure_deeplake, folder, options.rows)
            peer = {"deeplake": harness.short(size / sizes["payload"] - 1)}
    harness.emit(
        "bytes on disk beside the payload, as a share of it",
        ours=shares,
        peer={"whole": peer},
        limit={"whole": {"plain_file": 0.0}},
        goal={"index": 0.03},
        bytes=sizes,
        catalog_after_500_single_inserts=singles,
        rows=options.rows,
    )


if __name__ == "__main__":
    main()
