"""The verbs of a Database that look for vectors: search, similar, near_duplicates."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from deeplake_loader.catalog import Participant
from deeplake_loader.errors import InputError, NotFoundError
from deeplake_loader.progress import progress_bar
from deeplake_loader.rows import Row, packed
from deeplake_loader.search.results import SearchResult
from deeplake_loader.search.statements import Answer, Lists
from deeplake_loader.sql.reader import condition
from deeplake_loader.types import ColumnType, Table, quote_identifier

if TYPE_CHECKING:
    import numpy as np

    from deeplake_loader.catalog import Catalog
    from deeplake_loader.indexes import Indexes
    from deeplake_loader.parts import Parts
    from deeplake_loader.rows import RowSet, Source
    from deeplake_loader.search.device import TorchDevice
    from deeplake_loader.search.duplicates import NearDuplicates
    from deeplake_loader.sql.plan import Plan
    from deeplake_loader.vectors import Vectors
    from deeplake_loader.views import Views

SearchMetric = Literal["cosine", "l2", "inner"]
_MOST = 1 << 62  # rows that one may ask for: all there are
_SCORES = {"cosine": ("cosine_similarity", "DESC"), "l2": ("l2_distance", "ASC"), "inner": ("inner_product", "DESC")}


class _Devices(Participant):
    """The devices that a handle has searched on; rows of a rolled-back transaction leave them, as their addresses are
    given out again."""

    def __init__(self) -> None:
        self.known: dict[str, TorchDevice] = {}

    def rollback_to(self, _token: object) -> None:
        self.rolled_back()

    def rolled_back(self) -> None:
        for device in self.known.values():
            device.forget()

    def forked(self) -> None:
        self.known.clear()


class SearchVerbs:
    """What Database inherits; ``_begin_searching`` gets the parts that the verbs work on."""

    _catalog: Catalog
    _vectors: Vectors
    _views: Views
    _indexes: Indexes

    def _begin_searching(self, parts: Parts) -> None:
        self._copies, self._searcher, self._statements = parts.copies, parts.searcher, parts.statements
        self._devices = _Devices()
        self._catalog.participants.append(self._devices)

    def _end_searching(self) -> None:
        """Lets go of mapped copies and of the devices' memory."""
        self._copies.close()
        self._devices.rolled_back()

    if TYPE_CHECKING:  # what Database itself is asked for

        def execute(self, sql: str, params: Any = None) -> RowSet: ...
        def vectors(self, addresses: np.ndarray) -> np.ndarray: ...
        def _plan(self, sql: str) -> Plan: ...
        def _table(self, name: str) -> Table: ...
        def _typed_errors(self) -> AbstractContextManager[None]: ...

    def search(
        self,
        table: str,
        column: str,
        q: Any,
        *,
        k: int = 10,
        where: str | None = None,
        params: Mapping[str, Any] | None = None,
        metric: SearchMetric = "cosine",
        device: str = "cpu",
        exact: bool = True,
        nprobe: int | None = None,
        recall: float | None = None,
    ) -> SearchResult | list[SearchResult]:
        """The k best rows with a ``score`` column, best first: exact, filtered before scoring, never short.

        A `SearchResult` has ``addresses``, ``scores``, ``exact`` and ``rows_examined`` beside the rows. Rows whose
        vector is NULL are left out; a vector without a score (all zero under ``cosine``) comes last. Of a table with a
        column ``score`` of its own, ``row.score`` is that column.

        Args:
            q: a query vector (D,), or a batch (Q, D) for a list of results: its rows are chosen once, and one scan
                serves all queries.
            where: an SQL condition on the table, its parameters as ``:name`` in ``params``.
            metric: ``cosine`` similarity or ``inner`` product (largest first), ``l2`` distance (smallest first).
            device: where the vectors are scanned: ``cpu``, or a torch device such as ``cuda``, on which this handle
                then keeps the matrices it searched.
            exact: False lets a vector index choose the rows to score, where the column has one for this metric and it
                pays; the result says whether it is ``exact`` after all.
            nprobe, recall: how many lists of each file it looks into, or the share of the true rows it aims at (0.95).

        Raises:
            InputError: an unknown metric or device, k below 0, a condition that is not one, parameters without names,
                or nprobe or recall where they make no sense.
            SQLError: a bad condition. DimensionError: a query of another length. NotFoundError: no such table.

        >>> db.search("generations", "clip_embedding", q, k=20, where="steps >= 25")    # doctest: +SKIP
        """
        function, order = _SCORES[_known(metric)]
        held, name = self._searched(table, column)
        score = f"{function}({name}, :_dl_query)"
        sql = (
            f"SELECT *, {score} AS score FROM {held} WHERE {condition(where)}{name} IS NOT NULL "
            f"ORDER BY {score} {order} LIMIT :_dl_k"
        )
        lists = self._lists(table, column, metric, exact, nprobe, recall)
        shared = {**_named(params), "_dl_k": _count(k)}
        queries = list(q) if _depth(q) == 2 else [q]
        if any(query is None for query in queries):
            raise InputError("q holds None; expected a vector (D,) or a batch (Q, D)")
        given = [{**shared, "_dl_query": query} for query in queries]
        with self._catalog.snapshot(), self._typed_errors():
            plan = self._plan(sql)
            answers = self._answers(plan, given, sql, device, lists) if given else []
            if plan.fast is None and given and self._catalog.dialect == "postgres":
                counted = f"SELECT count(*) FROM {held} WHERE {condition(where)}{name} IS NOT NULL"
                examined = int(self.execute(counted, _named(params)).scalar())
                answers = [replace(answer, examined=examined) for answer in answers]
        found = [self._result(plan, column, answer) for answer in answers]
        return found if _depth(q) == 2 else found[0]

    def _searched(self, table: str, column: str) -> tuple[str, str]:
        """The names of a table and its VECTOR column as SQL writes them; refuses what is none."""
        held = self._table(table)
        found = held.column(column) if isinstance(column, str) else None
        if found is None or not found.type.is_vector:
            known = ", ".join(c.name for c in held.columns if c.type.is_vector) or "none"
            raise NotFoundError(f"{table!r} has no VECTOR column {column!r}; VECTOR columns: {known}")
        return quote_identifier(held.name), quote_identifier(found.name)

    def _lists(
        self, table: str, column: str, metric: SearchMetric, exact: bool, nprobe: int | None, recall: float | None
    ) -> Lists | None:
        if exact:
            if nprobe is not None or recall is not None:
                raise InputError("nprobe and recall are for approximate searches; write exact=False with them")
            return None
        from deeplake_loader.search.approximate import ByLists, check

        check(nprobe, recall)
        find = self._indexes.finder(self._table(table).name, column, metric)
        return None if find is None else ByLists(self._searcher, find, nprobe=nprobe, recall=recall)

    def _answers(
        self, plan: Plan, given: Sequence[Mapping[str, Any]], sql: str, device: str, lists: Lists | None
    ) -> list[Answer]:
        self._views.refresh(plan.reads)
        if plan.fast is None:  # a volatile condition: every query chooses rows of its own
            return [self._statements.plain(plan, params, sql) for params in given]
        on = None if device == "cpu" else self._device(device)
        return self._statements.answers(plan, plan.fast, given, sql, device=on, lists=lists)

    def _device(self, name: str) -> TorchDevice:
        from deeplake_loader.search.device import TorchDevice

        if name not in self._devices.known:
            self._devices.known[name] = TorchDevice(name)
        return self._devices.known[name]

    def _result(self, plan: Plan, column: str, answer: Answer) -> SearchResult:
        names: Sequence[str] = [c.name for c in plan.results]
        types: Sequence[ColumnType | None] = [c.type for c in plan.results]
        if answer.rows is not None:
            names, types = answer.rows.names, answer.rows.types
        held = next(name for name in names if name.lower() == column.lower())
        return SearchResult(
            names, types, answer.records, column=held, exact=answer.exact, rows_examined=answer.examined,
            source=cast("Source", self), decoded=answer.rows is not None,
        )  # fmt: skip

    def similar(
        self,
        table: str,
        column: str,
        row: Any,
        *,
        k: int = 10,
        where: str | None = None,
        params: Mapping[str, Any] | None = None,
        metric: SearchMetric = "cosine",
        device: str = "cpu",
    ) -> SearchResult:
        """The k rows most similar to a row of the table, best first, without the row itself: see `search`.

        Args:
            row: a Row of this table with its key, or its primary key (a tuple where that has several columns).

        Raises:
            NotFoundError: no row has this key, or its vector is NULL.

        >>> db.similar("generations", "clip_embedding", 17, k=5)                        # doctest: +SKIP
        """
        keys, values = self._key(table, row)
        chosen = " AND ".join(f"{quote_identifier(key)} = ?" for key in keys)
        held, name = self._searched(table, column)
        listed = ", ".join((*map(quote_identifier, keys), name))
        stored = self.execute(f"SELECT {listed} FROM {held} WHERE {chosen}", values).fetchone()
        if stored is None or stored[-1] is None:
            raise NotFoundError(f"{table!r} has no row {values!r} with a vector in {column!r}")
        options: dict[str, Any] = {"where": where, "params": params, "metric": metric, "device": device}
        found = cast(SearchResult, self.search(table, column, stored[-1], k=_count(k) + 1, **options))
        return found.without(keys, tuple(stored[:-1]), _count(k))

    def _key(self, table: str, row: Any) -> tuple[tuple[str, ...], list[Any]]:
        """The names of the table's key and the row's values of it."""
        names = self._table(table).primary_key
        if isinstance(row, Row):
            missing = [name for name in names if name not in row.keys()]  # noqa: SIM118
            if missing or not names:
                raise InputError(f"the row lacks the key of {table!r} ({', '.join(names)}); select it with the row")
            return names, [row[name] for name in names]
        values = list(row) if isinstance(row, tuple) else [row]
        if len(values) != len(names):
            raise InputError(f"the key of {table!r} is ({', '.join(names)}); got {row!r}")
        return names, values

    def near_duplicates(
        self,
        table: str,
        column: str,
        threshold: float,
        *,
        where: str | None = None,
        params: Mapping[str, Any] | None = None,
        metric: SearchMetric = "cosine",
        max_pairs: int = 10_000_000,
        progress: bool = False,
    ) -> NearDuplicates:
        """Every pair of rows whose score reaches ``threshold`` (``l2``: whose distance does not exceed it), exactly as
        SQL scores them. ``groups()`` of the result are the rows that hang together.

        All rows are compared with all others, as products of blocks: 100,000 rows of 768 are 15 TFLOP.

        Args:
            where: an SQL condition on the table, its parameters as ``:name`` in ``params``.
            max_pairs: refuse to collect more pairs than this (24 bytes each).
            progress: show a progress bar.

        >>> db.near_duplicates("generations", "clip_embedding", 0.98).groups()[0]       # doctest: +SKIP
        [12, 407, 1181]
        """
        from deeplake_loader.search import duplicates

        _known(metric)
        if not isinstance(threshold, int | float) or threshold != threshold:
            raise InputError(f"threshold={threshold!r}: expected a number")
        (held, name), keys = self._searched(table, column), self._table(table).primary_key
        listed = ", ".join((*map(quote_identifier, keys), name))
        sql = f"SELECT {listed} FROM {held} WHERE {condition(where)}{name} IS NOT NULL"
        rows = self.execute(sql, _named(params))
        addresses, read = self._compared(rows, len(keys))
        named = [row[0] if len(keys) == 1 else tuple(row[:-1]) for row in rows]
        count = len(addresses)
        with progress_bar(count * (count + 1) // 2, progress, unit=" pairs") as bar:
            return duplicates.find(named, addresses, read, threshold, metric, max_pairs=max_pairs, progress=bar)

    def _compared(self, rows: RowSet, i: int) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """Numbers of the vectors in column i, and what gives the vectors of such numbers."""
        import numpy as np

        kind = rows.types[i]
        if not rows.decoded or kind is None:
            return np.array(rows.raw(i), np.int64), self.vectors
        flat = np.frombuffer(b"".join(packed(kind, v) for v in rows.raw(i)), np.dtype(kind.dtype).newbyteorder("<"))
        matrix = flat.reshape(-1, kind.dimension)
        return np.arange(len(matrix)), lambda numbers: matrix[numbers]


def _known(metric: SearchMetric) -> SearchMetric:
    if metric not in get_args(SearchMetric):
        raise InputError(f"unknown metric {metric!r}; known are {', '.join(_SCORES)}")
    return metric


def _count(k: object) -> int:
    try:
        found = operator.index(k)  # type: ignore[arg-type]
    except TypeError:
        found = -1
    if found < 0:
        raise InputError(f"k={k!r}: expected a whole number of rows, 0 or more")
    return min(found, _MOST)


def _named(params: Mapping[str, Any] | None) -> dict[str, Any]:
    if not isinstance(params or {}, Mapping):
        raise InputError(f"params is a {type(params).__name__}; write :name in where= and give a dict of the names")
    return dict(params or {})


def _depth(q: Any) -> int:
    """1 for a vector, 2 for a batch of them, without importing numpy."""
    shape = getattr(q, "shape", None)
    if shape is not None:
        return len(shape)
    if not isinstance(q, list | tuple) or not q:
        return 1
    within = getattr(q[0], "shape", None)  # () of a number that torch or numpy made
    return 2 if within or (within is None and isinstance(q[0], list | tuple)) else 1
