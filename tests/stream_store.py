"""A small store of exactly known content, written through the storage layers, and its rows as a query gives them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Store as Place

from deeplake_loader.catalog import Catalog
from deeplake_loader.codecs import encode
from deeplake_loader.rows import KEY_PREFIX, RowSet
from deeplake_loader.shards import Member, Shards
from deeplake_loader.sqlite_catalog import SqliteCatalog
from deeplake_loader.stream import Stream, build_stream, pipeline, stats
from deeplake_loader.types import ColumnType
from deeplake_loader.vectors import Vectors

ROWS = 103
DIMENSION = 4
TYPES = [ColumnType.parse(t) for t in ("IMAGE", "TENSOR(float16, 3)", "VECTOR(4)", "BIGINT", "TEXT", "BOOLEAN", "REAL")]
FEW = ["id", "embedding"]
NAMES = ["photo", "latent", "embedding", "id", "prompt", "flag", "score"]


def picture(i: int, height: int = 6, width: int = 8) -> np.ndarray:
    """(H, W, 3) uint8 that no other row has."""
    flat = np.arange(height * width * 3) * 7 + i * 11
    flat[0] = i
    return (flat % 256).astype(np.uint8).reshape(height, width, 3)


def vector(i: int) -> np.ndarray:
    return np.array([i, 1, 0.5, -i], np.float32)


def latent(i: int) -> np.ndarray:
    return np.array([i, i + 0.5, -1], np.float16)


class Clock:
    """What the pipeline takes for the time while a test holds it: it stands still, and every look at it is ``pace_s``
    later, so that no pause of the machine is measured."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now, self.pace_s = 0.0, 0.0
        self._lock, self.time = threading.Lock(), time.time
        for module in (pipeline, stats):
            patch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return self.advance(self.pace_s)

    def advance(self, seconds: float) -> float:
        """The time, so much later."""
        with self._lock:
            self.now += seconds
            return self.now


def wait_until(condition: Callable[[], object], what: str, within_s: float = 60.0) -> None:
    """Returns once the condition holds; a test that waits for longer than any machine pauses has failed."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"waited for {within_s:g} s: {what}"
        time.sleep(0.01)


class Store:
    """The store in a folder, by default with its catalog there; ``records`` are its rows as the catalog's driver gives
    them: from PostgreSQL the vectors themselves, from SQLite their addresses."""

    def __init__(
        self, folder: Path, rows: int = ROWS, *, ragged: bool = False, shard_bytes: int = 40_000,
        catalog: Catalog | None = None,
    ) -> None:  # fmt: skip
        self.root = str(folder)
        self.catalog = SqliteCatalog.open(self.root) if catalog is None else catalog
        self.where, self.decoded = self.catalog.location, self.catalog.dialect == "postgres"
        self.shards = Shards(self.catalog, max_shard_bytes=shard_bytes)
        self.vectors = Vectors(self.catalog)
        self.records: list[tuple[Any, ...]] = []
        for start in range(0, rows, 40):  # the second statement of three rests in the catalog
            self.add(range(start, min(rows, start + 40)), bulk=start != 40, ragged=ragged)

    @classmethod
    def at(cls, place: Place) -> Store:
        """The store in a place of either catalog."""
        if place.kind == "sqlite":
            return cls(place.folder)
        from deeplake_loader.postgres.catalog import PostgresCatalog

        return cls(place.folder, catalog=PostgresCatalog.open(place.url, storage=place.folder))

    def close(self) -> None:
        self.catalog.close()

    def add(self, numbers: range, *, bulk: bool, ragged: bool) -> None:
        blobs = []
        for i in numbers:
            photo = encode(TYPES[0], picture(i, 6 + (i % 3 if ragged else 0)), where="test")
            tensor = encode(TYPES[1], latent(i), where="test")
            pair = zip(("photo", "latent"), (photo, tensor), strict=True)
            blobs.append([Member(name, e.data, e.extension, e.info.to_json()) for name, e in pair])
        with self.catalog.transaction():
            staged = self.shards.stage("t", blobs, bulk=bulk)
            self.shards.write(staged, [{"id": i} for i in numbers])
            data = np.stack([vector(i) for i in numbers])
            places: list[Any] = [row.tobytes() for row in data]
            if not self.decoded:
                places = list(self.vectors.append("t", "embedding", TYPES[2], data.data, len(data)))
        for i, (photo_at, latent_at), place in zip(numbers, staged.addresses, places, strict=True):
            text, flag, score = f"prompt {i}", i % 2 == 0, i / 2
            self.records.append((photo_at, latent_at, place, i, text, flag if self.decoded else int(flag), score, i))

    def rowset(self, names: list[str] | None = None, records: list[tuple[Any, ...]] | None = None) -> RowSet:
        chosen = [NAMES.index(n) for n in names or NAMES]
        kept = [(*(r[i] for i in chosen), r[-1]) for r in (self.records if records is None else records)]
        names = [*(NAMES[i] for i in chosen), f"{KEY_PREFIX}0"]
        return RowSet(names, [*(TYPES[i] for i in chosen), None], kept, decoded=self.decoded)

    def stream(self, names: list[str] | None = None, **options: Any) -> Stream:
        options = {"batch_size": 8, "shuffle": True, "query": "SELECT", "num_threads": 2, **options}
        return build_stream(self.where, self.rowset(names), **options)


def ids(batch: dict[str, Any]) -> list[int]:
    found: list[int] = batch["id"].tolist()
    return found


def flat(batches: Any) -> list[int]:
    return [i for batch in batches for i in ids(batch)]


def epoch_of(store: Store, epoch: int, **options: Any) -> list[int]:
    stream = store.stream(FEW, **options)
    stream.set_epoch(epoch)
    return flat(stream)
