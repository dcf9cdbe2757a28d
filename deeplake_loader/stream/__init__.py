"""A query as a training set: `Stream`, an IterableDataset of batches with an exact, tiny state.

    rows -> order -> this rank's and worker's steps -> read (1 thread) -> decode (n threads) -> batch -> device

A Stream itself is small and holds neither threads nor open files; every pass over it has its own, in the process that
iterates (`Batches`).
"""

from __future__ import annotations

from deeplake_loader.stream.access import Located
from deeplake_loader.stream.buckets import Budget
from deeplake_loader.stream.build import build_stream
from deeplake_loader.stream.collate import Pad
from deeplake_loader.stream.dataset import Batches, Stream
from deeplake_loader.stream.failures import BadSample
from deeplake_loader.stream.mixing import mix
from deeplake_loader.stream.payloads import Payloads
from deeplake_loader.stream.state import state_from_loader
from deeplake_loader.stream.stats import Stats

__all__ = [
    "BadSample",
    "Batches",
    "Budget",
    "Located",
    "Pad",
    "Payloads",
    "Stats",
    "Stream",
    "build_stream",
    "mix",
    "state_from_loader",
]
