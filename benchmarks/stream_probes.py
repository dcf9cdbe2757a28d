"""What benchmarks/stream.py measures of our stream alone, each function in a process of its own."""

from __future__ import annotations

import json
import os
import time
from functools import wraps
from typing import Any

import numpy as np
import stream_contestants
from stream_contestants import SQL
from stream_data import BATCH, Rows

from deeplake_loader import Raw, Stream, connect

DRAWS = 20_000
_TRIES = 7


def samples(folder: str) -> float:
    """Seconds of DRAWS samples by primary key, one a call, every field of it."""
    stream = _stream(folder)
    keys = _drawn(folder)
    first = stream.sample(key=keys[0])
    rows = Rows(folder)
    assert bytes(first["photo"]) == rows.picture(keys[0] - 1) and first["label"] == keys[0] - 1
    begun = time.perf_counter()
    for key in keys:
        stream.sample(key=key)
    return time.perf_counter() - begun


def takes(folder: str) -> float:
    """The same in gets of 64."""
    stream, keys = _stream(folder), _drawn(folder)
    stream.take(keys=keys[:BATCH])
    begun = time.perf_counter()
    for i in range(0, len(keys), BATCH):
        for _photo in stream.take(keys=keys[i : i + BATCH])["photo"]:
            pass
    return time.perf_counter() - begun


def by_wids(folder: str) -> float:
    """The same from our tars by wids, by number, its fields as bytes."""
    dataset = stream_contestants.Wids.dataset(os.path.join(folder, "ours"))
    keys = _drawn(folder)
    for key in keys[:200]:
        dataset[key - 1]
    begun = time.perf_counter()
    for key in keys:
        for field in dataset[key - 1].values():
            if hasattr(field, "read"):
                field.read()
    return time.perf_counter() - begun


def resuming(folder: str) -> tuple[float, float, int]:
    """(seconds to the first batch from a state at 0 %, from one at 90 %, bytes of the state)."""
    _stream(folder).state_dict()
    times: dict[int, list[float]] = {0: [], 9: []}
    for _ in range(_TRIES):
        for tenth, found in times.items():
            stream = _stream(folder)
            state = stream.state_dict()
            state["position"] = len(Rows(folder)) * tenth // 10 // BATCH * BATCH
            begun = time.perf_counter()
            stream.load_state_dict(state)
            with iter(stream) as batches:
                next(batches)
            found.append(time.perf_counter() - begun)
    return float(np.median(times[0])), float(np.median(times[9])), len(json.dumps(state))


def planning(folder: str, rows: int) -> tuple[float, float, float, int]:
    """(seconds of the SQL, of making the stream of its rows, to its first batch, rows): each photograph many times."""
    from deeplake_loader.stream import build as streams

    repeats = max(1, rows // len(Rows(folder)))
    sql = f"SELECT p.photo, p.label, s.n FROM photos p CROSS JOIN generate_series(1, {repeats}) AS s(n)"
    begins: list[float] = []
    build = streams.build_stream

    @wraps(build)
    def build_stream(*args: Any, **options: Any) -> Stream:
        begins.append(time.perf_counter())
        return build(*args, **options)

    streams.build_stream = build_stream  # the seam between the SQL and the plan
    with connect(os.path.join(folder, "ours"), create=False) as db:
        begun = time.perf_counter()
        stream = db.stream(sql, batch_size=BATCH, shuffle=True, transforms={"photo": Raw()})
        made = time.perf_counter()
    with iter(stream) as batches:
        next(batches)
    return begins[0] - begun, made - begins[0], time.perf_counter() - made, repeats * len(Rows(folder))


def _stream(folder: str) -> Stream:
    with connect(os.path.join(folder, "ours"), create=False) as db:
        return db.stream(SQL, batch_size=BATCH, shuffle=True, transforms={"photo": Raw()})


def _drawn(folder: str) -> list[int]:
    found: list[int] = (np.random.default_rng(1).integers(0, len(Rows(folder)), DRAWS) + 1).tolist()
    return found
