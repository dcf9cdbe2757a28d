"""Approximate searches: fewer candidates, chosen by the lists of a vector index, and then the exact engine.

What lists cannot serve stays as it is: rows that rest in the catalog, files without lists, files of which so few rows
are wanted that scoring them all costs no more. So a result may miss a near row, and never has a wrong score, a dead row
or fewer rows than there are.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING

from deeplake_loader import ann
from deeplake_loader.errors import InputError
from deeplake_loader.search.candidates import Candidates, Part
from deeplake_loader.search.statements import Found

if TYPE_CHECKING:
    import numpy as np

    from deeplake_loader.scoring import Metric
    from deeplake_loader.search.engine import Searcher

RECALL = 0.95
"""What a search aims at that says neither ``nprobe`` nor ``recall``."""

_WORTH = 0.5  # lists that leave more than this share of the candidates are not worth their scattered reads

Find = Callable[[int], "ann.Lists | None"]
"""The lists of the file of that number; None where it has none."""


class ByLists:
    """Chooses winners by way of lists: of one column, for one metric, at one effort."""

    def __init__(
        self, searcher: Searcher, find: Find, *, nprobe: int | None = None, recall: float | None = None
    ) -> None:
        check(nprobe, recall)
        self._searcher, self._find = searcher, find
        self._nprobe, self._recall = nprobe, recall

    def found(self, metric: Metric, candidates: Candidates, query: bytes, k: int) -> Found:
        """The winners of one query (float32 bytes): near rows, or by a scan where the lists do not lead to ``k``."""
        fewer = narrowed(candidates, self._find, query, k, nprobe=self._nprobe, recall=self._recall)
        if fewer is not candidates:
            winners = self._searcher.winners(metric, fewer, query, k, metric != "l2")
            if winners is not None:
                return Found(winners, fewer.count, exact=False)
        return Found(self._searcher.winners(metric, candidates, query, k, metric != "l2"), candidates.count)


def check(nprobe: object, recall: object) -> None:
    """Refuses a number of lists, or a recall, that makes no sense."""
    if nprobe is not None and recall is not None:
        raise InputError("give nprobe or recall, not both")
    if nprobe is not None and (type(nprobe) is not int or nprobe < 1):
        raise InputError(f"nprobe={nprobe!r}: expected a whole number of lists, 1 or more")
    if recall is not None and not (isinstance(recall, int | float) and 0 < recall <= 1):
        raise InputError(f"recall={recall!r}: expected a number above 0 and at most 1")


def narrowed(
    candidates: Candidates, find: Find, query: bytes, k: int, *, nprobe: int | None = None, recall: float | None = None
) -> Candidates:
    """The candidates near ``query`` (float32 bytes), at least ``k`` of each file; the same object where no file has
    lists that help.

    Args:
        nprobe: lists to look into in each file; None takes as many as ``recall`` (default 0.95) took in its sample.
            More where only some rows of a file are candidates.
    """
    parts = tuple(_narrowed(part, find(part.file), query, k, nprobe, recall or RECALL) for part in candidates.parts)
    return candidates if all(a is b for a, b in zip(parts, candidates.parts, strict=True)) else Candidates(parts)


def _narrowed(part: Part, lists: ann.Lists | None, query: bytes, k: int, nprobe: int | None, recall: float) -> Part:
    import numpy as np

    if lists is None or len(query) != 4 * lists.centres.shape[1]:
        return part
    share = part.count / len(lists.rows)
    probes = ann.widened(lists, nprobe or lists.probes(recall), share)
    if part.count < ann.MIN_ROWS // 2 or probes >= _WORTH * len(lists):
        return part
    rows = ann.choose(lists, np.frombuffer(query, np.float32), k, probes, _wanted(part, len(lists.rows)))
    if rows is None or len(rows) > _WORTH * part.count or not len(rows):
        return part
    return Part(part.file, len(rows), int(rows[-1]), array("q", rows.tobytes()))


def _wanted(part: Part, count: int) -> Callable[[np.ndarray], np.ndarray]:
    """Keeps the candidates among ascending rows."""
    import numpy as np

    if part.count == count:
        return lambda rows: rows
    if part.bitmap is not None:
        return _by_bitmap(np.frombuffer(part.bitmap, np.uint8))
    held = np.frombuffer(part.rows or array("q"), np.int64)
    return lambda rows: rows[held[np.minimum(held.searchsorted(rows), len(held) - 1)] == rows]


def _by_bitmap(bitmap: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    import numpy as np

    def wanted(rows: np.ndarray) -> np.ndarray:
        rows = rows[: rows.searchsorted(8 * len(bitmap))]
        bits = bitmap[rows >> 3] >> (rows & 7).astype(bitmap.dtype)
        return np.compress(bits & 1, rows)

    return wanted
