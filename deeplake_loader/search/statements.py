"""SELECTs whose rows are chosen by one score: candidates by SQL, winners by the engine, the user's statement over them.

All three read one snapshot, and the last is the user's own statement with one more condition. So this way can be
faster than running the statement as it was written, and cannot give anything else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from deeplake_loader.search.candidates import Candidates, LiveRows

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.rows import RowSet
    from deeplake_loader.scoring import Metric
    from deeplake_loader.search.engine import Device, Searcher
    from deeplake_loader.sql.plan import Bind, FastPath, Plan
    from deeplake_loader.writing import Writer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
    """The winners' addresses (None: the statement must run as it was written), how many rows were scored for them, and
    whether none of the others could be better."""

    winners: list[int] | None
    examined: int
    exact: bool = True


class Lists(Protocol):
    """What finds winners by looking at some of the candidates only."""

    def found(self, metric: Metric, candidates: Candidates, query: bytes, k: int) -> Found: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """The records of one query, how many rows were scored for it, and whether none of the others could be better;
    ``rows``, the records with names and types, where the database gives those itself."""

    records: list[tuple[Any, ...]]
    examined: int
    exact: bool = True
    rows: RowSet | None = None


class Statements:
    """Runs the statements of one handle that have a fast path; inside its snapshot, views refreshed."""

    def __init__(self, catalog: Catalog, writer: Writer, searcher: Searcher, live: LiveRows) -> None:
        self._catalog, self._writer, self._searcher, self._live = catalog, writer, searcher, live

    def optimize(self) -> int:
        """Makes what is derived for searches and lacking; gives the number of columns that got some."""
        return 0

    def damaged(self) -> list[tuple[str, str, Callable[[], object]]]:
        """(file, what is wrong, what makes it anew) of what `optimize` made and is not what was written."""
        return []

    def fetch(self, plan: Plan, fast: FastPath, params: object, sql: str, fetch: Callable[..., T]) -> T | None:
        """What ``fetch`` makes of the statement's rows, or None where it must run as it was written."""
        wanted, query = self._wanted(plan, fast, params), self._query(plan, fast, params)
        if wanted is None or query is None:
            return None
        candidates = self._candidates(plan, fast, params)
        winners = self._searcher.winners(fast.metric, candidates, query, wanted, fast.largest)
        return None if winners is None else self._final(plan, fast, params, sql, winners, fetch)

    def answers(
        self,
        plan: Plan,
        fast: FastPath,
        given: Sequence[Mapping[str, Any]],
        sql: str,
        *,
        device: Device | None = None,
        lists: Lists | None = None,
    ) -> list[Answer]:
        """The answers to one statement asked with several query vectors, all else being equal: the candidates are
        chosen once, and one scan serves all queries."""
        wanted = self._wanted(plan, fast, given[0]) or 0
        queries = [self._query(plan, fast, params) or b"" for params in given]
        candidates = self._candidates(plan, fast, given[0])
        if lists is not None:
            found = [lists.found(fast.metric, candidates, query, wanted) for query in queries]
        else:
            best = self._best(fast, candidates, queries, wanted, device)
            found = [Found(winners, candidates.count) for winners in best]
        return [
            Answer(self._records(plan, fast, params, sql, one.winners), one.examined, one.exact)
            for params, one in zip(given, found, strict=True)
        ]

    def plain(self, plan: Plan, params: object, sql: str) -> Answer:
        """The answer of a statement without a fast path."""
        records = self._catalog.fetchall(plan.sql, self._writer.bind(plan, params).values, user_sql=sql)
        return Answer(records, len(records))

    def _best(
        self, fast: FastPath, candidates: Candidates, queries: list[bytes], wanted: int, device: Device | None
    ) -> list[list[int] | None]:
        if device is None and len(queries) == 1:  # without numpy
            return [self._searcher.winners(fast.metric, candidates, queries[0], wanted, fast.largest)]
        return self._searcher.winners_of_each(fast.metric, candidates, queries, wanted, device)

    def _records(
        self, plan: Plan, fast: FastPath, params: object, sql: str, winners: list[int] | None
    ) -> list[tuple[Any, ...]]:
        if winners is None:
            return self.plain(plan, params, sql).records
        return self._final(plan, fast, params, sql, winners, self._catalog.fetchall)

    def _final(
        self, plan: Plan, fast: FastPath, params: object, sql: str, winners: list[int], fetch: Callable[..., T]
    ) -> T:
        final = self._writer.bind(plan, params, binds=fast.final_binds, winners=json.dumps(winners))
        return fetch(fast.final_sql, final.values, user_sql=sql)

    def _candidates(self, plan: Plan, fast: FastPath, params: object) -> Candidates:
        if fast.whole:
            return self._live.candidates(fast.table, fast.column)
        values = self._writer.bind(plan, params, binds=fast.candidate_binds).values
        return Candidates.parse(self._catalog.fetchone(fast.candidates_sql, values)[0])

    def _query(self, plan: Plan, fast: FastPath, params: object) -> bytes | None:
        value = self._writer.bind(plan, params, binds=[fast.query]).values[0]
        return value if isinstance(value, bytes) else None

    def _wanted(self, plan: Plan, fast: FastPath, params: object) -> int | None:
        """LIMIT + OFFSET; None for LIMIT 0 and for what the database shall judge (NULL, negative, no integer)."""
        limit, offset = (self._count(plan, given, params) for given in (fast.limit, fast.offset))
        return None if not limit or offset is None else limit + offset

    def _count(self, plan: Plan, given: Bind | int, params: object) -> int | None:
        value = given if isinstance(given, int) else self._writer.bind(plan, params, binds=[given]).values[0]
        return value if isinstance(value, int) and value >= 0 else None
