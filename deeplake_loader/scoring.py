"""Scores of stored vectors as SQL functions.

SQL names a vector by its address (an integer); a query comes as a float32 blob or as text '[0.1, 0.2]'. One kernel does
all scoring and gives a row the same bits alone, in a list and in a full scan, so the plain statement and the fast path
cannot disagree.

SQLite calls a function once per row, and one kernel call per row costs 5 us. So a function remembers its query: after a
few rows of one run of 4,096 it scores the whole run in one call, and from then on a call is a look-up (0.2 us). An
address never changes its meaning, so what is remembered stays true until a transaction is rolled back.
"""

from __future__ import annotations

import operator
import sqlite3
import struct
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from deeplake_loader import kernels
from deeplake_loader.errors import DeeplakeError, DimensionError, TypeMismatchError
from deeplake_loader.matrices import Dtype, Matrix
from deeplake_loader.types import ColumnType, unpack_address

if TYPE_CHECKING:
    from typing_extensions import Buffer

Metric = Literal["cosine", "l2", "inner"]
Finish = Callable[[float], float]
Find = Callable[[int, int], Matrix]
"""The matrix of a file that holds at least the row of that ordinal."""

FUNCTIONS: dict[str, tuple[Metric, Finish | None]] = {
    "cosine_similarity": ("cosine", None),
    "cosine_distance": ("cosine", lambda score: 1.0 - score),
    "l2_distance": ("l2", None),
    "inner_product": ("inner", None),
    "negative_inner_product": ("inner", operator.neg),
}
"""SQL name -> (metric, what is done to the metric's score)."""

_RUN_BITS = 12
_RUN = 1 << _RUN_BITS
_RUN_MASK = _RUN - 1
_TRIES = 16  # rows of a run scored alone before the run is scanned: 16 calls cost a quarter of a scan at 768 float32
_MAX_RUNS = 4_096  # remembered per function: 16 million scores, 128 MB
_MAX_QUERIES = 32  # remembered per function: statements that compare with several vectors in turn


class _Query:
    """One query, the runs already scored against it, keyed by address >> 12, and the query that was asked after it: a
    statement that compares with several vectors asks for them in turn, row by row."""

    __slots__ = ("data", "following", "runs", "tries", "value")

    def __init__(self, value: object, data: Buffer) -> None:
        self.value, self.data = value, data
        self.runs: dict[int, array[float]] = {}
        self.tries: dict[int, int] = {}
        self.following = self


class ScoreFunction:
    """One SQL score function over (address | float32 blob | text | NULL) twice; NULL where there is no score.

    Scores are symmetric to the last bit, so either argument may be the query; an address is taken as the row.
    """

    __slots__ = ("_find", "_finish", "_metric", "_name", "_queries", "_report")

    def __init__(self, name: str, find: Find, report: Callable[[DeeplakeError], None]) -> None:
        self._name, self._find, self._report = name, find, report
        self._metric, self._finish = FUNCTIONS[name]
        self._queries: dict[object, _Query] = {}

    def forget(self) -> None:
        """Drops every remembered score (addresses of a rolled-back transaction are given out again)."""
        self._forget_runs()
        self._queries.clear()

    def _forget_runs(self) -> None:
        """Drops the scores and keeps the queries."""
        for query in self._queries.values():
            query.runs.clear()

    def register(self, connection: sqlite3.Connection) -> None:
        connection.create_function(self._name, 2, self._caller(), deterministic=True)

    def _caller(self) -> Callable[[object, object], float | None]:
        """The function SQLite calls: the look-up inline, because it runs once per row; all else in ``_score``."""
        current = _Query(None, b"")
        score, known = self._score, self._queries

        def call(row: object, query: object) -> float | None:
            nonlocal current
            guess = current.following
            if guess.value != query:  # comparing is cheap where hashing 3 KB is not
                guess = next((q for q in known.values() if q.value == query), guess)
            if guess.value == query:
                current.following = current = guess
                try:
                    return guess.runs[row >> _RUN_BITS][row & _RUN_MASK]  # type: ignore[operator]
                except (KeyError, IndexError, TypeError):
                    pass
            if row is None or query is None:
                return None
            if isinstance(query, int) and (
                not isinstance(row, int) or (row == current.value and query != current.value)
            ):
                return call(query, row)
            value, memory = score(row, query)
            if memory is not None and memory is not current:
                current.following = current = memory
            return value

        return call

    def _score(self, row: object, query: object) -> tuple[float, _Query | None]:
        try:
            if isinstance(row, int):
                return self._score_row(row, query)
            return self._score_values(row, query), None
        except DeeplakeError as error:
            self._report(error)
            raise

    def _score_row(self, address: int, value: object) -> tuple[float, _Query]:
        file, ordinal = unpack_address(address)
        matrix = self._find(file, ordinal)
        query = self._queries.get(value) or self._remember(value, matrix.layout.dimension)
        _check_dimension(query.data, matrix.layout.dimension, self._name)
        run, first = address >> _RUN_BITS, ordinal & ~_RUN_MASK
        known = query.runs.get(run)  # scored already, by a statement that asks for several queries in turn
        if known is not None and ordinal - first < len(known):
            return known[ordinal - first], query
        tries = query.tries[run] = query.tries.get(run, 0) + 1
        if tries < _TRIES:
            return self._scan(matrix, query, ordinal, ordinal + 1)[0], query
        if sum(len(other.runs) for other in self._queries.values()) >= _MAX_RUNS:
            self._forget_runs()
        query.runs[run] = self._scan(matrix, query, first, min(first + _RUN, matrix.count))
        return query.runs[run][ordinal - first], query

    def _scan(self, matrix: Matrix, query: _Query, first: int, stop: int) -> array[float]:
        matrix.verify(range(first, stop))
        layout = matrix.layout
        part = matrix.view[first * layout.stride : stop * layout.stride]
        return self._kernel(part, stop - first, layout.dimension, layout.dtype, query.data)

    def _kernel(self, part: Buffer, count: int, dimension: int, dtype: Dtype, query: Buffer) -> array[float]:
        threads = 1 if count < _RUN // 4 else 2
        scores = kernels.scores(part, count, dimension, dtype, query, self._metric, threads=threads)
        return scores if self._finish is None else array("d", map(self._finish, scores))

    def _remember(self, value: object, dimension: int) -> _Query:
        if len(self._queries) >= _MAX_QUERIES:
            self._queries.pop(next(iter(self._queries))).runs.clear()
        query = self._queries[value] = _Query(value, self._query_data(value, dimension))
        return query

    def _query_data(self, value: object, dimension: int) -> Buffer:
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            from deeplake_loader.codecs import encode_vector

            kind = ColumnType("VECTOR", dtype="float32", shape=(dimension,))
            return encode_vector(kind, value, f"the text given to {self._name}")
        if isinstance(value, int):
            return self._stored(value)
        raise TypeMismatchError(
            f"{self._name} was given a {type(value).__name__} ({value!r}); expected a VECTOR column, a bound vector or "
            "text such as '[0.1, 0.2]'"
        )

    def _stored(self, address: int) -> Buffer:
        """A stored row as float32, the form in which the kernels take a query."""
        file, ordinal = unpack_address(address)
        matrix = self._find(file, ordinal)
        matrix.verify(range(ordinal, ordinal + 1))
        stride = matrix.layout.stride
        data = matrix.view[ordinal * stride : (ordinal + 1) * stride]
        if matrix.layout.dtype == "float32":
            return data
        return array("f", struct.unpack(f"<{matrix.layout.dimension}e", data))

    def _score_values(self, left: object, right: object) -> float:
        """The score of two values of which neither is stored."""
        given = left if isinstance(left, bytes) else right
        dimension = len(given) // 4 if isinstance(given, bytes) else str(given).count(",") + 1
        row, query = self._query_data(left, dimension), self._query_data(right, dimension)
        _check_dimension(query, dimension, self._name)
        _check_dimension(row, dimension, self._name)
        return self._kernel(row, 1, dimension, "float32", query)[0]


def _check_dimension(query: Buffer, dimension: int, name: str) -> None:
    found = memoryview(query).nbytes
    if found != 4 * dimension:
        raise DimensionError(
            f"{name} compares a vector of {dimension} with one of {found / 4:g}; pass a float32 vector of {dimension}"
        )
