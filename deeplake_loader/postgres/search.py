"""Searches over PostgreSQL: the candidates' keys out of SQL, scores from the column's matrix, winners back by key.

    keys of the block's rows (one bytea)  -> rows of the matrix --.
    keys written since its snapshot       -> their vectors -------'-> winners' keys -> user's statement

All of it in one REPEATABLE READ snapshot. The last step is the user's own statement with one more condition, so scores
and order are PostgreSQL's; the engine only has to leave no row out. PostgreSQL adds up in float32, so every row that
comes as near to the k-th best as that can be off is a winner, too. Where there is no matrix (few rows, a branch, a key
of several columns, none made yet), the statement runs as it was written: PostgreSQL's own scan, which is exact.
"""

from __future__ import annotations

import math
import warnings
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from deeplake_loader import kernels
from deeplake_loader.errors import CorruptionError, InputError
from deeplake_loader.indexes import Indexes
from deeplake_loader.matrices import Layout, Tail
from deeplake_loader.postgres.matrices import LONGEST, SHORTEST, Held, Matrices, key_of
from deeplake_loader.rows import packed
from deeplake_loader.search.candidates import Candidates, Part
from deeplake_loader.search.engine import Searcher, as_array
from deeplake_loader.search.statements import Answer, Lists, Statements
from deeplake_loader.types import MAX_FILE, MAX_ORDINAL, ORDINAL_BITS, ColumnType, Table, quote_identifier

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Buffer

    from deeplake_loader.matrices import Matrix
    from deeplake_loader.postgres.catalog import PostgresCatalog
    from deeplake_loader.rows import RowSet
    from deeplake_loader.scoring import Metric
    from deeplake_loader.search.candidates import LiveRows
    from deeplake_loader.search.engine import Device
    from deeplake_loader.sql.plan import FastPath, Plan
    from deeplake_loader.types import VectorIndex
    from deeplake_loader.writing import Writer

    Array = np.ndarray[Any, np.dtype[Any]]

T = TypeVar("T")
Select = Callable[["Plan", str, Sequence[Any], str], "RowSet"]
"""Runs a text with values in place of a plan's own, for the user's statement, and gives its rows."""

FRESH = 20_000
"""Rows whose vectors a search asks for one by one: 60 MB of 768 float32. With more, PostgreSQL's own scan is faster."""

_FRESH_FILE = MAX_FILE
_EPSILON = 2.0**-24


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a search looks at: rows of the matrix and, as a file of its own, vectors that are not (so) in it."""

    held: Held
    candidates: Candidates
    keys: Array
    fresh: Tail
    longest: float

    def find(self, file: int, _ordinal: int) -> Matrix:
        return self.fresh if file == _FRESH_FILE else self.held.matrix

    def slack(self, metric: Metric, query: Buffer) -> float:
        """By how much PostgreSQL's score of a row may miss ours, twice: of a row and of the k-th best."""
        dimension = self.held.matrix.layout.dimension
        length = math.hypot(*memoryview(query).cast("B").cast("f"))
        off = 2 * (dimension + 8) * _EPSILON
        if metric == "cosine":
            return 2 * off + 2 * kernels.score_error(dimension)
        return off * length * self.longest if metric == "inner" else off * (length + self.longest)

    def named(self, addresses: Sequence[int]) -> str:
        """The winners' keys, as the text of an array."""
        keys = (
            self.keys[a & MAX_ORDINAL] if a >> ORDINAL_BITS == _FRESH_FILE else self.held.keys[a & MAX_ORDINAL]
            for a in addresses
        )
        return f"{{{','.join(map(str, keys))}}}"


class PostgresStatements(Statements):
    """Runs the statements of one handle that have a fast path."""

    _catalog: PostgresCatalog

    def __init__(
        self, catalog: PostgresCatalog, writer: Writer, searcher: Searcher, live: LiveRows, matrices: Matrices,
        on_main: Callable[[], bool], select: Select,
    ) -> None:  # fmt: skip
        super().__init__(catalog, writer, searcher, live)
        self._matrices, self._on_main, self._select = matrices, on_main, select

    def optimize(self) -> int:
        return self._matrices.build()

    def damaged(self) -> list[tuple[str, str, Callable[[], object]]]:
        return [(h.matrix.url, wrong, partial(self._rebuild, h)) for h, wrong in self._matrices.damaged()]

    def _rebuild(self, held: Held) -> None:
        self._matrices.give_up(held)
        self._matrices.build()

    def fetch(self, plan: Plan, fast: FastPath, params: object, sql: str, fetch: Callable[..., T]) -> T | None:
        wanted, query = self._wanted(plan, fast, params), self._query(plan, fast, params)
        chosen = None if wanted is None or query is None else self._chosen(plan, fast, params, sql)
        if chosen is None or wanted is None or query is None or not _fits(query):
            return None
        (winners,) = self._winners(fast, chosen, [query], wanted, None)
        if winners is None:
            return None
        final = self._writer.bind(plan, params, binds=fast.final_binds, winners=chosen.named(winners))
        return fetch(fast.final_sql, final.values, user_sql=sql)

    def answers(
        self,
        plan: Plan,
        fast: FastPath,
        given: Sequence[Mapping[str, Any]],
        sql: str,
        *,
        device: Device | None = None,
        lists: Lists | None = None,  # noqa: ARG002
    ) -> list[Answer]:
        wanted = self._wanted(plan, fast, given[0]) or 0
        queries = [self._query(plan, fast, params) or b"" for params in given]
        chosen = self._chosen(plan, fast, given[0], sql) if all(map(_fits, queries)) else None
        if chosen is None:
            examined = len(self._keys(plan, fast, given[0], sql))
            return [Answer((rows := self._plain(plan, p, sql))._records, examined, rows=rows) for p in given]
        found = self._winners(fast, chosen, queries, wanted, device)
        return [self._answer(plan, fast, p, sql, chosen, w) for p, w in zip(given, found, strict=True)]

    def _winners(
        self, fast: FastPath, chosen: Chosen, queries: Sequence[bytes], wanted: int, device: Device | None
    ) -> list[list[int] | None]:
        """The addresses of each query's winners; None where the statement must run as it was written."""
        searcher = Searcher(chosen.find, self._never, slack=chosen.slack)
        try:
            if device is None and len(queries) == 1:
                return [searcher.winners(fast.metric, chosen.candidates, queries[0], wanted, fast.largest)]
            on = None if device is None else _Beside(device)
            return searcher.winners_of_each(fast.metric, chosen.candidates, queries, wanted, on)
        except CorruptionError as error:
            warnings.warn(f"{error}; until db.optimize() PostgreSQL scans the table", RuntimeWarning, stacklevel=2)
            self._matrices.give_up(chosen.held)
            return [None] * len(queries)

    def _answer(
        self, plan: Plan, fast: FastPath, params: object, sql: str, chosen: Chosen, winners: list[int] | None
    ) -> Answer:
        if winners is None:
            rows = self._plain(plan, params, sql)
        else:
            bound = self._writer.bind(plan, params, binds=fast.final_binds, winners=chosen.named(winners))
            rows = self._select(plan, fast.final_sql, bound.values, sql)
        return Answer(rows._records, chosen.candidates.count, rows=rows)

    def plain(self, plan: Plan, params: object, sql: str) -> Answer:
        rows = self._plain(plan, params, sql)
        return Answer(rows._records, len(rows), rows=rows)

    def _plain(self, plan: Plan, params: object, sql: str) -> RowSet:
        return self._select(plan, plan.sql, self._writer.bind(plan, params).values, sql)

    def _query(self, plan: Plan, fast: FastPath, params: object) -> bytes | None:
        """The query's numbers; a literal beside a ``halfvec`` is one, too, and rounded as such."""
        query = super()._query(plan, fast, params)
        if query is None or fast.query.source is not None or fast.query.type is None:
            return query
        return _rounded(query) if fast.query.type.dtype == "float16" else query

    # -- candidates ----------------------------------------------------------------------------------------------------

    def _chosen(self, plan: Plan, fast: FastPath, params: object, sql: str) -> Chosen | None:
        """What to look at, or None where PostgreSQL had better look itself: also in a transaction, whose statements
        see what others commit between them."""
        if self._catalog.in_transaction:
            return None
        table = self._catalog.table(fast.table)
        key = None if table is None else key_of(table)
        held = self._matrices.of(table.name, fast.column) if table is not None and self._on_main() else None
        if held is None or key is None or table is None:
            return None
        changed = self._matrices.changed(table.name, key, held)
        keys = None if fast.whole else self._keys(plan, fast, params, sql)
        wanted = changed if keys is None else changed[_within(changed, keys)]
        if len(wanted) > FRESH:
            return None
        own, fresh = self._vectors(table, key, fast.column, wanted, held.matrix.layout)
        longest = _longest(fresh)
        if longest is None:
            return None
        places = _without(held.keys, changed) if keys is None else _places(held.keys, keys, changed)
        parts = [part for part in (_part(held.file, places), _part(_FRESH_FILE, _all(fresh.count))) if part is not None]
        return Chosen(held, Candidates(tuple(parts)), own, fresh, max(held.longest, longest))

    def _keys(self, plan: Plan, fast: FastPath, params: object, sql: str) -> Array:
        """The keys of the rows that the block's FROM and WHERE let through, ascending, each once."""
        import numpy as np

        values = self._writer.bind(plan, params, binds=fast.candidate_binds).values
        data = self._ask(fast.candidates_sql, values, sql)[0][0] or b""
        keys = np.frombuffer(data, ">i8").astype(np.int64)
        return keys if bool((keys[1:] > keys[:-1]).all()) else np.unique(keys)

    def _vectors(self, table: Table, key: str, column: str, keys: Array, layout: Layout) -> tuple[Array, Tail]:
        """The vectors that these keys have now: the keys of those that have one, and their vectors."""
        import numpy as np

        rows: list[Any] = []
        if len(keys):
            real, name, by = self._catalog.history.real(table.name), quote_identifier(column), quote_identifier(key)
            sql = f"SELECT {by}::bigint, {name} FROM {real} WHERE {by} = ANY($1::bigint[]) AND {name} IS NOT NULL"
            rows = self._ask(sql, [f"{{{','.join(map(str, keys.tolist()))}}}"], sql)
        held = b"".join(_little_endian(value, layout) for _, value in rows)
        return np.array([row[0] for row in rows], np.int64), Tail(layout, held)

    def _ask(self, sql: str, values: Sequence[Any], user_sql: str) -> list[Any]:
        """The rows of a statement with ``$n``, in PostgreSQL's binary form."""
        return self._catalog.raw(sql, values, user_sql=user_sql, place=lambda _: 0, binary=True).fetchall()

    @staticmethod
    def _never(_: Array) -> Array:
        raise InputError("a search over PostgreSQL has no scan copies to score again")


class _Beside:
    """A device that keeps the matrices; the vectors of one search alone are scored on the CPU."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def best(
        self, file: int, matrix: Matrix, part: Part, queries: Array, k: int, metric: Metric
    ) -> tuple[Array, Array]:
        if file != _FRESH_FILE:
            return self._device.best(file, matrix, part, queries, k, metric)
        return kernels.topk(as_array(matrix), queries, k, metric)


class PostgresIndexes(Indexes):
    """Vector indexes are PostgreSQL's own: HNSW, made by CREATE INDEX and used through pgvector's operators alone."""

    def all(self) -> list[VectorIndex]:
        return []

    def create(self, index: VectorIndex) -> None:
        raise InputError(
            f"a store in PostgreSQL has no index of kind {index.kind!r}: its own searches are exact, over the "
            "matrices that db.optimize() makes; for approximate ones by pgvector write CREATE INDEX ON "
            f"{index.table} USING hnsw ({index.column} vector_cosine_ops), and ORDER BY {index.column} <=> :query in "
            "the statement that may use it"
        )


# -- keys and rows -----------------------------------------------------------------------------------------------------


def _within(values: Array, keys: Array) -> Array:
    """Which values are among ascending keys."""
    import numpy as np

    if not len(keys):
        return np.zeros(len(values), np.bool_)
    return np.asarray(keys.take(keys.searchsorted(values), mode="clip") == values)


def _without(keys: Array, changed: Array) -> Array:
    """The places of all keys but these."""
    import numpy as np

    kept = np.ones(len(keys), np.bool_)
    kept[keys.searchsorted(changed[_within(changed, keys)])] = False
    return np.flatnonzero(kept)


def _places(keys: Array, wanted: Array, changed: Array) -> Array:
    """Where the wanted keys are that have not changed; one that is not there had no vector and has none."""
    import numpy as np

    unchanged = wanted[~_within(wanted, changed)] if len(changed) else wanted
    places = keys.searchsorted(unchanged)
    return np.asarray(places[keys.take(places, mode="clip") == unchanged])


def _all(count: int) -> Array:
    import numpy as np

    return np.arange(count)


def _part(file: int, places: Array) -> Part | None:
    if not len(places):
        return None
    return Part(file, len(places), int(places[-1]), array("q", places.astype("<i8").tobytes()))


# -- vectors -----------------------------------------------------------------------------------------------------------


def _little_endian(value: Any, layout: Layout) -> bytes:
    """A vector as its adapter gives it, or the list of a ``real[]``, in the matrix's layout."""
    return packed(ColumnType("VECTOR", layout.dtype, (layout.dimension,)), value)


def _rounded(query: bytes) -> bytes:
    """float32 numbers that float16 can hold."""
    import numpy as np

    return np.frombuffer(query, "<f4").astype("<f2").astype("<f4").tobytes()


def _longest(fresh: Tail) -> float | None:
    """The longest vector; None where PostgreSQL would over- or underflow."""
    import numpy as np

    rows = np.frombuffer(fresh.data, fresh.layout.dtype).reshape(fresh.count, fresh.layout.dimension)
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    positive = lengths[lengths > 0]
    if not len(positive):
        return 0.0
    return float(lengths.max()) if positive.min() > SHORTEST and lengths.max() < LONGEST else None


def _fits(query: Buffer) -> bool:
    """Whether PostgreSQL's scores of this query neither over- nor underflow; an all-zero one has none by either."""
    length = math.hypot(*memoryview(query).cast("B").cast("f"))
    return length == 0 or SHORTEST < length < LONGEST
