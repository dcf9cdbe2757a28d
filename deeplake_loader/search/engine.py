"""The best of many candidate rows, exactly: file by file by the fastest way there is, each beginning with the k-th best
score of those before it.

A file is scanned in its own bytes or, where there is one, in a copy of half or a quarter of the size. A score from the
copy misses the exact one by at most ``Copy.error``. So every row that belongs to the best by its exact score reaches
the k-th best score from the copy less twice that error; those few rows are scored again from the file itself. Where an
int8 copy leaves too many of them, the next better copy or the file is scanned.
"""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from deeplake_loader import kernels
from deeplake_loader.errors import CorruptionError, DimensionError
from deeplake_loader.matrices import Matrix
from deeplake_loader.search.candidates import Candidates, Part
from deeplake_loader.search.forms import FORMS
from deeplake_loader.types import ORDINAL_BITS

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Buffer

    from deeplake_loader.scoring import Find, Metric
    from deeplake_loader.search.copies import Copies, Copy

MAX_WINNERS = 10_000
"""More ties than this at the k-th place, and the statement runs as it was written."""

_COPY_ROWS = 4_096  # candidates in a file from which its copy pays for scoring the best of them twice
_PASSING = 512  # rows beyond 2 k that may pass an int8 copy: 532 of 768 elements are scored in 0.15 ms
_SPARE = 16  # rows beyond k that a batch asks for: ties of the k-th place as a rule end there
_GATHERED = 8_192  # rows of a batch that are scored again at once: 25 MB of 768 float32
_THREADS = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

Rows = tuple["array[int]", "array[float]"]
"""Row numbers of a file or addresses, and their exact scores."""


Gather = Callable[["np.ndarray"], "np.ndarray"]
"""The vectors (n, d) of addresses."""

Slack = Callable[["Metric", "Buffer"], float]
"""By how much a score may miss the k-th best and still tie with it in SQL, for a metric and a query."""


class Device(Protocol):
    """Where the matrices may lie instead of in this machine's memory."""

    def best(
        self, file: int, matrix: Matrix, part: Part, queries: np.ndarray, k: int, metric: Metric
    ) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers (q, k) int64 and exact scores (q, k), best first, -1 and NaN where there is none."""


class Searcher:
    """Chooses the winners among candidates of one store's vectors."""

    def __init__(self, find: Find, gather: Gather, copies: Copies | None = None, slack: Slack | None = None) -> None:
        self._find, self._gather, self._copies = find, gather, copies
        self._slack = _slack if slack is None else slack

    def winners(self, metric: Metric, candidates: Candidates, query: Buffer, k: int, largest: bool) -> list[int] | None:
        """Every address, ascending, whose score reaches the ``k``-th best of the candidates, each counted once.

        ``query``: float32 bytes; ``largest``: whether large scores are the best. Ties with the k-th are never cut. None
        where fewer than ``k`` candidates have a score, where more than 10,000 + k would win, and for the largest l2
        distances: then the statement runs as it was written.

        Raises:
            DimensionError: the query's length is not the column's.
            CorruptionError: bytes changed on disk.
        """
        if k <= 0 or not candidates.parts:
            return [] if k <= 0 else None
        towards = _towards(metric, query, largest)
        if towards is None or k > candidates.count:
            return None
        slack = self._slack(metric, query)
        found, scores = array("q"), array("d")
        for part in candidates.parts:
            kth = kernels.kth_best(scores, k, metric != "l2")  # NaN at first: no threshold
            rows, theirs = self._reaching(part, metric, towards, k, slack, kth)
            base = part.file << ORDINAL_BITS
            found.extend([base + row for row in rows])
            scores.extend(theirs)
        return _chosen(metric, found, scores, k, slack)

    def _reaching(self, part: Part, metric: Metric, query: Buffer, k: int, slack: float, threshold: float) -> Rows:
        """Rows of one file, among them all that reach its k-th best score, and ``threshold``, less ``slack``."""
        matrix = self._matrix(part, metric, query)
        for kind, passing in (("int8", _passing), ("float16", _passing_halves)):
            copy = self._copy(part, matrix, kind)
            if copy is None or self._copies is None:
                continue
            try:
                rows = passing(copy, part, metric, query, k, slack + 2 * _error(copy, metric, query), threshold)
                if rows is not None:
                    return self._rescored(matrix, metric, query, rows)
            except CorruptionError:
                _check(matrix, part)  # in the file itself it is an error
                self._copies.drop(part.file, matrix, copy.form)
        return _scan(matrix, part, metric, query, k, slack, threshold)

    def _rescored(self, matrix: Matrix, metric: Metric, query: Buffer, rows: Sequence[int]) -> Rows:
        chosen = array("q", sorted(rows))
        matrix.verify(chosen)
        layout = matrix.layout
        scores = kernels.scores(
            matrix.view, matrix.count, layout.dimension, layout.dtype, query, metric, chosen, threads=1
        )
        return chosen, scores

    def _copy(self, part: Part, matrix: Matrix, kind: str) -> Copy | None:
        if self._copies is None or part.count < _COPY_ROWS:
            return None
        return self._copies.of(part.file, matrix, FORMS[kind])

    def _matrix(self, part: Part, metric: Metric, query: Buffer) -> Matrix:
        matrix = self._find(part.file, part.last)
        dimension, found = matrix.layout.dimension, memoryview(query).nbytes
        if found != 4 * dimension:
            raise DimensionError(
                f"the {metric} score compares a vector of {dimension} with one of {found / 4:g}; pass a float32 vector "
                f"of {dimension}"
            )
        return matrix

    # -- batches -------------------------------------------------------------------------------------------------------

    def winners_of_each(
        self, metric: Metric, candidates: Candidates, queries: Sequence[bytes], k: int, device: Device | None = None
    ) -> list[list[int] | None]:
        """``winners`` for each of some queries, the best first as the metric has it, by one scan for all of them."""
        import numpy as np

        if k <= 0 or k > candidates.count:
            return [self.winners(metric, candidates, query, k, metric != "l2") for query in queries]
        dimensions = {len(query) // 4 for query in queries}
        if len(dimensions) > 1:
            raise DimensionError(f"the queries of a batch have {dimensions} elements; give all of them the column's")
        best = _Best(metric, np.frombuffer(b"".join(queries), "<f4").reshape(len(queries), -1))
        for part in candidates.parts:
            self._take(best, part, min(k + _SPARE, candidates.count), device)
        left, merits = best.left(), self._exact(best, k)
        slack = max(self._slack(metric, query) for query in queries)
        edges = np.partition(merits, -k, axis=1)[:, -k] - slack
        # no merit at the edge: too few scores. As good a row left out: ties, or a scan too coarse to tell
        return [
            np.sort(best.addresses[i][merits[i] >= edges[i]]).tolist() if left[i] < edges[i]
            else None if edges[i] == -np.inf and left[i] == -np.inf
            else self.winners(metric, candidates, query, k, metric != "l2")
            for i, query in enumerate(queries)
        ]  # fmt: skip

    def _take(self, best: _Best, part: Part, wanted: int, device: Device | None) -> None:
        """Lets one file's rows in among the ``wanted`` best of each query."""
        matrix, metric, queries = self._matrix(part, best.metric, best.queries[0]), best.metric, best.queries
        if device is not None:
            return best.add(part, wanted, *device.best(part.file, matrix, part, queries, wanted, metric))
        copy = self._copy(part, matrix, "float16")  # a batch waits for sums, not for memory: int8 would spare nothing
        if copy is not None and self._copies is not None:
            try:
                found = _scan_batch(copy.matrix, part, metric, queries, wanted, best.thresholds())
                best.allow(*copy.error(metric))
                return best.add(part, wanted, *found)
            except CorruptionError:
                _check(matrix, part)
                self._copies.drop(part.file, matrix, copy.form)
        return best.add(part, wanted, *_scan_batch(matrix, part, metric, queries, wanted, best.thresholds()))

    def _exact(self, best: _Best, k: int) -> np.ndarray:
        """The merits from the files themselves, of the rows that may be among the ``k`` best; -inf of the others."""
        import numpy as np

        if not best.copied:
            return best.merits
        least = best.merits[:, k - 1] - 2 * best.errors - self._slack(best.metric, best.queries[0])
        held = (best.merits >= least[:, None]) & (best.merits > -np.inf)
        merits, step = np.full(held.shape, -np.inf), max(1, _GATHERED // held.shape[1])
        for start in range(0, len(held), step):
            here = slice(start, start + step)
            if held[here].any():
                rows = self._gather(best.addresses[here][held[here]])
                merits[here][held[here]] = _scored(rows, best.queries[here], held[here].sum(axis=1), best.metric)
        return merits


class _Best:
    """The best rows of each query so far, best first: their ``addresses`` and ``merits`` (larger is better, -inf where
    there is no score), both (q, n). With ``copied``, some merits
    come from a copy, and may be off by ``errors`` (q,)."""

    __slots__ = ("addresses", "copied", "errors", "lengths", "merits", "metric", "queries")

    def __init__(self, metric: Metric, queries: np.ndarray) -> None:
        import numpy as np

        self.metric, self.queries, self.copied = metric, queries, False
        self.addresses, self.merits = np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0))
        self.errors, self.lengths = np.zeros(len(queries)), np.linalg.norm(queries.astype(np.float64), axis=1)

    def add(self, part: Part, wanted: int, rows: np.ndarray, scores: np.ndarray) -> None:
        """Lets in ``wanted`` rows (q, wanted) of a file, -1 and NaN where there is none; as many are kept."""
        import numpy as np

        addresses = np.concatenate([self.addresses, (part.file << ORDINAL_BITS) + rows], axis=1)
        merits = np.concatenate([self.merits, _merits(self.metric, scores)], axis=1)
        order = np.argsort(-merits, axis=1, kind="stable")[:, :wanted]
        self.addresses, self.merits = np.take_along_axis(addresses, order, 1), np.take_along_axis(merits, order, 1)

    def allow(self, fixed: float, by_length: float) -> None:
        """Scores from a copy may be off by so much, partly times the query's length."""
        import numpy as np

        self.copied = True
        self.errors = np.maximum(self.errors, fixed + by_length * self.lengths)

    def left(self) -> np.ndarray:
        """(q,) The most merit, at most, of any row that was not let in."""
        import numpy as np

        return np.asarray(self.merits[:, -1] + self.errors)

    def thresholds(self) -> np.ndarray | None:
        """(q,) The score that a row must reach to be let in; None where any may be."""
        import numpy as np

        if not self.merits.shape[1]:
            return None
        least = self.merits[:, -1]
        return np.asarray(-least if self.metric == "l2" else least)


def _merits(metric: Metric, scores: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.where(np.isnan(scores), -np.inf, -scores if metric == "l2" else scores)


def _scored(rows: np.ndarray, queries: np.ndarray, counts: np.ndarray, metric: Metric) -> np.ndarray:
    """The merits of rows (n, d) float32, of which the first ``counts[0]`` are the first query's, and so on."""
    import numpy as np

    scores, stops = array("d"), np.cumsum(counts).tolist()
    for query, start, stop in zip(queries, [0, *stops], stops, strict=False):
        part = rows[start:stop].reshape(-1).data
        scores += kernels.scores(part, stop - start, rows.shape[1], "float32", query.data, metric, threads=1)
    return _merits(metric, np.array(scores))


def _scan_batch(
    matrix: Matrix, part: Part, metric: Metric, queries: np.ndarray, k: int, thresholds: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    _check(matrix, part)
    rows, bitmap = _filter(part)
    held = as_array(matrix)[: part.last + 1]
    return kernels.topk(held, queries, k, metric, rows=rows, bitmap=bitmap, thresholds=thresholds, threads=_THREADS)


def as_array(matrix: Matrix) -> np.ndarray:
    """The rows (n, d) without a copy, not yet verified."""
    import numpy as np

    layout = matrix.layout
    flat = np.frombuffer(matrix.view, layout.dtype, matrix.count * layout.dimension)
    return flat.reshape(matrix.count, layout.dimension)


def _scan(matrix: Matrix, part: Part, metric: Metric, query: Buffer, k: int, slack: float, threshold: float) -> Rows:
    _check(matrix, part)
    layout, (rows, bitmap) = matrix.layout, _filter(part)
    return kernels.reaching(
        matrix.view, part.last + 1, layout.dimension, layout.dtype, query, metric, k,
        slack=slack, threshold=threshold, rows=rows, bitmap=bitmap, threads=_THREADS,
    )  # fmt: skip


def _error(copy: Copy, metric: Metric, query: Buffer) -> float:
    """How far a score from the copy may be off."""
    fixed, by_length = copy.error(metric)
    return fixed + by_length * math.hypot(*memoryview(query).cast("B").cast("f"))


def _passing_halves(
    copy: Copy, part: Part, metric: Metric, query: Buffer, k: int, wide: float, threshold: float
) -> Sequence[int]:
    """The rows that reach the ``k``-th best score from a float16 copy, and ``threshold``, less ``wide``."""
    return _scan(copy.matrix, part, metric, query, k, wide, threshold)[0]


def _passing(
    copy: Copy, part: Part, metric: Metric, query: Buffer, k: int, wide: float, threshold: float
) -> Sequence[int] | None:
    """The same from an int8 copy; None where they may be more than it pays to score again."""
    import numpy as np

    _check(copy.matrix, part)
    count, dimension = copy.matrix.count, copy.matrix.layout.dimension
    held = np.frombuffer(copy.matrix.view, np.int8, count * dimension).reshape(count, dimension)[: part.last + 1]
    most = min(2 * k + _PASSING, part.count)
    rows, bitmap = _filter(part)
    least = None if threshold != threshold else np.array([threshold + wide if metric == "l2" else threshold - wide])
    found, scores = kernels.topk(
        held, np.frombuffer(memoryview(query), "<f4"), most, metric, rows=rows, bitmap=bitmap,
        scale=None if copy.steps is None else copy.steps[: part.last + 1], thresholds=least, threads=_THREADS,
    )  # fmt: skip
    merits = _merits(metric, scores[0])  # best first, -inf where there is none
    edge = -np.inf if k > most else merits[k - 1] - wide
    if most < part.count and merits[-1] >= edge and merits[-1] > -np.inf:
        return None
    chosen: list[int] = found[0][(merits >= edge) & (merits > -np.inf)].tolist()
    return chosen


def _check(matrix: Matrix, part: Part) -> None:
    matrix.verify(range(part.last + 1) if part.rows is None else part.rows)


def _filter(part: Part) -> tuple[Buffer | None, Buffer | None]:
    """The rows, or the bitmap, that tells a kernel what to look at; neither where it is all rows."""
    return (None, None) if part.count == part.last + 1 else (part.rows, part.bitmap)


def _towards(metric: Metric, query: Buffer, largest: bool) -> Buffer | None:
    """The query whose best scores the wanted ones are: the worst rows for a vector are the best for its negative, bit
    for bit. There is none for the largest distances."""
    if largest == (metric != "l2"):
        return query
    return None if metric == "l2" else array("f", [-x for x in memoryview(query).cast("B").cast("f")])


def _slack(metric: Metric, query: Buffer) -> float:
    """By how much a score may miss the k-th best and still tie with it in SQL, where 1 - cosine rounds."""
    return 2 * kernels.score_error(memoryview(query).nbytes // 4) if metric == "cosine" else 0.0


def _chosen(metric: Metric, found: array[int], scores: array[float], k: int, slack: float) -> list[int] | None:
    largest = metric != "l2"
    kth = kernels.kth_best(scores, k, largest)
    if kth != kth:
        return None
    winners = kernels.at_least(scores, kth - slack if largest else kth + slack, largest)
    return sorted(found[i] for i in winners) if len(winners) <= MAX_WINNERS + k else None
