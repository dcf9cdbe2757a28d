"""Bytes on disk beside the payload: the index (sidecars and catalog), tar framing, and the whole against deeplake.

Payload is what the user gave: JPEGs of 22 KB, 768-d float32 vectors, and the scalars as text. `framing` is what the
tars hold besides the images: headers, padding, and the scalars once more as JSON.
"""

from __future__ import annotations

import os

import harness
import insert_images
import workload


def measure(folder: str, rows: int) -> dict[str, float | int]:
    """Bytes of each kind, all of them sealed, and the shares of the payload."""
    given = insert_images.load(rows)
    root = os.path.join(folder, "ours")
    with workload.new_store(root, images=True) as db:
        db.insert("generations", given)
        db.optimize()
        assert db.execute("SELECT count(image) FROM generations").scalar() == rows
    images, vectors = sum(map(len, given["image"])), given["clip_embedding"].nbytes
    payload = images + vectors + len(workload.scalar_bytes(given))
    sizes = by_kind(root)
    index = sizes["sidecars"] + sizes["catalog"]
    return {
        "payload": payload,
        **sizes,
        "index_share": harness.short(index / payload),
        "framing_share": harness.short((sizes["tars"] - images) / payload),
        "vector_share": harness.short((sizes["matrices"] - vectors) / payload),
        "whole_share": harness.short(sum(sizes.values()) / payload - 1),
    }


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


def main() -> None:
    options = harness.arguments(__doc__, rows=10_000, rounds=1).parse_args()
    with harness.scratch(options.folder) as folder:
        ours = harness.in_process(measure, folder, options.rows)
        peer: dict[str, float | str] = {"deeplake": "peer not installed"}
        if harness.installed("deeplake"):
            size = harness.in_process(measure_deeplake, folder, options.rows)
            peer = {"deeplake": harness.short(size / ours["payload"] - 1)}
    harness.emit(
        "index bytes on disk as a share of the payload",
        ours=ours["index_share"],
        peer={"whole_share": peer},
        limit={},
        ratio={},
        goal={"index_share": 0.03},
        sizes=ours,
        rows=options.rows,
    )


if __name__ == "__main__":
    main()
