"""How good a column's approximate searches are: measured against every row, scored in float64 by numpy alone.

A result counts as found when its own score reaches the k-th best score there is, so equal rows may stand in for each
other. Queries are stored rows of the table, each left out of its own answer, or vectors that the caller brings.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from deeplake_loader.errors import InputError, NotFoundError
from deeplake_loader.types import Table, quote_identifier

if TYPE_CHECKING:
    import numpy as np

    from deeplake_loader.rows import RowSet
    from deeplake_loader.scoring import Metric

    Array = np.ndarray[Any, np.dtype[Any]]

_CHUNK = 64 << 20  # bytes of float64 rows compared at a time
_SLACK = 1e-9  # scores closer than this, as a share of their size, are equal: float64 sums in another order


class Store(Protocol):
    """What is needed of a Database."""

    def execute(self, sql: str, params: Any = None) -> RowSet: ...
    def search(
        self,
        table: str,
        column: str,
        q: Any,
        *,
        k: int = 10,
        metric: Metric = "cosine",
        exact: bool = True,
        nprobe: int | None = None,
        recall: float | None = None,
    ) -> Any: ...
    def tables(self) -> Mapping[str, Table]: ...
    def vectors(self, addresses: Array) -> Array: ...


@dataclass(frozen=True, slots=True)
class Report:
    """What `measure` found.

    ``rows`` that could be found; ``queries`` asked for the ``k`` nearest; ``recall``, the share of the true nearest
    that came, as mean and as the ``worst`` of a query; ``exact``, how many queries were answered by a scan after all;
    ``examined``, rows scored per query; medians of an exact and of an approximate search in milliseconds.
    """

    rows: int
    queries: int
    k: int
    recall: float
    worst: float
    exact: int
    examined: float
    exact_ms: float
    approximate_ms: float

    @property
    def speedup(self) -> float:
        """How many times faster the approximate search was."""
        return self.exact_ms / self.approximate_ms


def measure(
    db: Store,
    table: str,
    column: str,
    *,
    queries: int | Array = 100,
    k: int = 10,
    metric: Metric = "cosine",
    nprobe: int | None = None,
    recall: float | None = None,
    seed: int = 0,
) -> Report:
    """The `Report` of one column's approximate searches.

    Args:
        queries: how many stored rows to ask for, drawn by ``seed``; or vectors (Q, dimension).
        nprobe, recall: as for `Database.search`.

    Raises:
        NotFoundError: no such table or column, or it holds no vector.
        InputError: a number that makes no sense, or a store in PostgreSQL, which has no indexes of this kind.
    """
    if k < 1 or (isinstance(queries, int) and queries < 1):
        raise InputError(f"expected at least one query and k of at least 1, got {queries} and k={k}")
    addresses = _addresses(db, table, column)
    drawn, vectors = _asked(db, addresses, queries, seed)
    own = isinstance(queries, int)
    options: dict[str, Any] = {"k": k + own, "metric": metric}
    chances: dict[str, Any] = {**options, "exact": False, "nprobe": nprobe, "recall": recall}
    search = partial(db.search, table, column)
    (exact_ms, _), (approximate_ms, results) = _timed(search, vectors, options, chances)
    kept = [rows[rows != row][:k] for rows, row in zip([r.addresses for r in results], drawn, strict=True)]
    best = _brute_force(db, addresses, vectors, drawn, k, metric)
    possible = min(k, len(addresses) - own)
    shares = [
        _found(_scores(db.vectors(rows), vector, metric), worst) / possible if len(rows) else float(not possible)
        for vector, worst, rows in zip(vectors, best, kept, strict=True)
    ]
    return Report(
        len(addresses), len(vectors), k, statistics.fmean(shares), min(shares), sum(r.exact for r in results),
        statistics.fmean(r.rows_examined for r in results), exact_ms, approximate_ms,
    )  # fmt: skip


def _asked(db: Store, addresses: Array, queries: int | Array, seed: int) -> tuple[Array, Array]:
    """The queries (Q, dimension) float32, and the address of the row that each one is; 0 of the caller's own."""
    import numpy as np

    if isinstance(queries, int):
        drawn = np.random.default_rng(seed).choice(addresses, min(queries, len(addresses)), replace=False)
        return drawn, np.asarray(db.vectors(drawn), np.float32)
    given = np.asarray(queries)
    if given.ndim != 2 or not len(given) or given.dtype.kind not in "fiu":
        raise InputError(f"queries are {given.dtype} of shape {given.shape}; expected numbers (queries, dimension)")
    return np.zeros(len(given), np.int64), given.astype(np.float32)


def _addresses(db: Store, table: str, column: str) -> Array:
    import numpy as np

    definition = db.tables().get(table)
    known = None if definition is None else definition.column(column)
    if definition is None or known is None or not known.type.is_vector:
        raise NotFoundError(
            f"there is no VECTOR column {column!r} in a table {table!r}; tables: {', '.join(db.tables()) or 'none'}"
        )
    name = quote_identifier(known.name)
    rows = db.execute(f"SELECT {name} FROM {quote_identifier(definition.name)} WHERE {name} IS NOT NULL")
    if rows.decoded:
        raise InputError(
            "recall is measured of a store's own vector indexes, and a store in PostgreSQL has none: its searches are "
            "exact, and HNSW is used by the operators alone; to judge an HNSW index, compare the rows of "
            f"ORDER BY {column} <=> :query LIMIT :k with those of db.search"
        )
    if not len(rows):
        raise NotFoundError(f"column {column!r} of {table!r} holds no vector")
    return np.unique(np.array(rows.raw(0), np.int64))


def _timed(search: Callable[..., Any], vectors: Array, *ways: Mapping[str, Any]) -> list[tuple[float, list[Any]]]:
    """For each way of searching, asked in turn: the median time in milliseconds, and what each query found."""
    taken: list[tuple[list[float], list[Any]]] = [([], []) for _ in ways]
    for way in ways:
        search(vectors[0], **way)  # a file is verified when it is first read
    for vector in vectors:
        for way, (times, results) in zip(ways, taken, strict=True):
            start = time.perf_counter()
            results.append(search(vector, **way))
            times.append((time.perf_counter() - start) * 1e3)
    return [(statistics.median(times), results) for times, results in taken]


def _found(scores: Array, threshold: float) -> int:
    """How many scores (largest is best) reach the threshold."""
    return int((scores >= threshold - _SLACK * max(1.0, abs(threshold))).sum())


def _scores(rows: Array, query: Array, metric: Metric) -> Array:
    """(rows,) scores in float64, the largest best; -inf where a row has none."""
    import numpy as np

    points, q = rows.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        return np.asarray(-np.linalg.norm(points - q, axis=1))
    if metric == "inner":
        return np.asarray(points @ q)
    lengths = np.linalg.norm(points, axis=1) * np.linalg.norm(q)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(lengths > 0, points @ q / lengths, -np.inf)


def _brute_force(db: Store, addresses: Array, queries: Array, drawn: Array, k: int, metric: Metric) -> list[float]:
    """The k-th best score of each query over all rows but its own; the worst there is where they are fewer."""
    import numpy as np

    step = max(1, _CHUNK // (8 * queries.shape[1]))
    best = [np.empty(0)] * len(queries)
    for start in range(0, len(addresses), step):
        part = addresses[start : start + step]
        rows = db.vectors(part)
        for i, query in enumerate(queries):
            scores = _scores(rows, query, metric)
            best[i] = np.sort(np.concatenate([best[i], scores[part != drawn[i]]]))[-k:]
    return [float(scores[0]) if len(scores) else -np.inf for scores in best]
