"""The few operations that plain Python or numpy do too slowly: checksums, exact search, batch reads, resizing,
normalising, scans of tars.

Each has three forms with one meaning: a numpy specification (``reference``), compiled C with run-time dispatch
(``native/``), and a fallback from packages that are installed anyway. ``backend()`` says which one runs and why.
"""

from __future__ import annotations

from .archives import MAX_ACTIONS, Action, Run, image_facts, scan_tar, unpack_facts
from .checksums import crc32c, crc32c_blocks
from .library import backend
from .normalize import normalize, normalize_yuv
from .reading import read_batch
from .resize import resize_into
from .search import at_least, kth_best, parse_integers, score_error, scores
from .sets import set_bits, split
from .topk import reaching, topk, topk_error

__all__ = [
    "MAX_ACTIONS",
    "Action",
    "Run",
    "at_least",
    "backend",
    "crc32c",
    "crc32c_blocks",
    "image_facts",
    "kth_best",
    "normalize",
    "normalize_yuv",
    "parse_integers",
    "reaching",
    "read_batch",
    "resize_into",
    "scan_tar",
    "score_error",
    "scores",
    "set_bits",
    "split",
    "topk",
    "topk_error",
    "unpack_facts",
]
