"""Other people's tars: adopting one beside reading it with webdataset, the index's size, and exporting it again.

    python benchmarks/ingest.py                     # 20,000 members, half a minute
    python benchmarks/ingest.py --full              # 100,000 members, 1 GB

Files are in the page cache. Adopting verifies every header, takes the crc32c of every member, reads every image's
header and commits the index; webdataset reads the members and checks nothing. Exported tars are compared with what
webdataset reads from the first one before a time counts.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import harness
import numpy as np
import webdataset
from PIL import Image

import deeplake_loader as deeplake


@cache
def pictures(count: int = 64) -> list[bytes]:
    """JPEGs of about 20 KB."""
    random, found = np.random.default_rng(0), []
    for _ in range(count):
        coarse = np.kron(random.integers(0, 255, (28, 28, 3), np.uint8), np.ones((10, 10, 1), np.uint8))
        file = io.BytesIO()
        noisy = (coarse + random.integers(0, 24, coarse.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(file, "JPEG", quality=60)
        found.append(file.getvalue())
    return found


def write_tar(path: Path, samples: int) -> None:
    """A picture and a caption per sample, by tarfile: the limit that an export is held against."""
    images = pictures()
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(samples):
            for kind, data in (("jpg", images[i % len(images)]), ("txt", f"a caption of sample {i}".encode())):
                info = tarfile.TarInfo(f"{i:08d}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def adopt(folder: Path, tar: Path) -> float:
    shutil.rmtree(folder / "store", ignore_errors=True)
    with deeplake.connect(folder / "store") as db:
        return timed(lambda: db.ingest("photos", tar))


def read_by_webdataset(tar: Path) -> float:
    return timed(lambda: sum(1 for _ in webdataset.WebDataset(str(tar), shardshuffle=False)))


def export(folder: Path) -> float:
    shutil.rmtree(folder / "out", ignore_errors=True)
    with deeplake.connect(folder / "store") as db:
        return timed(lambda: db.export("SELECT key, jpg, txt FROM photos", to=folder / "out", shard_bytes=8 << 30))


def write_again(folder: Path, samples: int) -> float:
    return timed(partial(write_tar, folder / "plain.tar", samples))


def check(folder: Path, tar: Path) -> None:
    """The exported samples are those of the first tar."""
    pairs = zip(
        *(webdataset.WebDataset(str(p), shardshuffle=False) for p in (tar, folder / "out/000000.tar")), strict=True
    )
    for a, b in pairs:
        if [a[k] for k in ("__key__", "jpg", "txt")] != [b[k] for k in ("__key__", "jpg", "txt")]:
            raise SystemExit(f"sample {a['__key__']} was exported otherwise")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    samples = 50_000 if options.full else 10_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tar = folder / "photos.tar"
        write_tar(tar, samples)
        adopt(folder, tar)
        export(folder)
        check(folder, tar)
        with deeplake.connect(folder / "store"):
            pass  # the last handle to close folds the log into the file
        share = os.path.getsize(folder / "store" / "catalog.sqlite") / tar.stat().st_size
        turns = harness.take_turns(
            {"ours": lambda: adopt(folder, tar), "webdataset": lambda: read_by_webdataset(tar)}, options.rounds
        )
        harness.report(
            "a tar adopted, beside webdataset reading it once", turns, unit="members/s", work=2 * samples,
            peers=("webdataset",), limits=(), goal={"webdataset": 5.0}, index_share=round(share, 4),
        )  # fmt: skip
        turns = harness.take_turns(
            {"ours": lambda: export(folder), "tarfile": lambda: write_again(folder, samples)}, options.rounds
        )
        harness.report(
            "samples exported as a tar, beside tarfile writing them from memory", turns, unit="members/s",
            work=2 * samples, peers=(), limits=("tarfile",), goal={"tarfile": 0.6},
        )  # fmt: skip


if __name__ == "__main__":
    main()
