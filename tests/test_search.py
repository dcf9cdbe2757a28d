"""Searches against numpy in float64: which rows, which scores, and that nothing is short, stale or foreign."""

from __future__ import annotations

import pickle
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deeplake_loader as deeplake
from deeplake_loader import errors, kernels
from deeplake_loader.search import copies, duplicates, engine
from deeplake_loader.search.candidates import Candidates
from deeplake_loader.search.verbs import SearchResult

D = 16
TABLE = f"CREATE TABLE g (id BIGINT PRIMARY KEY, part INTEGER, v VECTOR({D}), h VECTOR({D}, float16))"
METRICS = ("cosine", "l2", "inner")
FUNCTIONS = {"cosine": "cosine_similarity", "l2": "l2_distance", "inner": "inner_product"}


def vectors(count: int, *, seed: int = 0, dimension: int = D) -> np.ndarray:
    """Rows with exact repeats, a few of them all zero."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, dimension)).astype(np.float32)
    rows[rng.integers(0, count, count // 5)] = rows[: count // 5]
    rows[rng.integers(0, count, count // 50)] = 0
    return rows


def truth(rows: np.ndarray, query: np.ndarray, metric: str) -> np.ndarray:
    """Scores in float64, larger is better, -inf where there is none."""
    x, q = rows.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        return -np.linalg.norm(x - q, axis=1)
    if metric == "inner":
        return x @ q
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(q)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(lengths > 0, x @ q / lengths, -np.inf)


class Model:
    """The rows that a table should hold: id -> (part, vector or None)."""

    def __init__(self, tolerance: float = 1e-9) -> None:
        self.rows: dict[int, tuple[int, np.ndarray | None]] = {}
        self.tolerance = tolerance

    def put(self, first: int, rows: np.ndarray) -> None:
        self.rows |= {first + i: ((first + i) % 1000, row) for i, row in enumerate(rows)}

    def check(
        self,
        found: Any,
        query: np.ndarray,
        k: int,
        metric: str = "cosine",
        wanted: Callable[[int], bool] = lambda _: True,
        tolerance: float = 0.0,
    ) -> None:
        """The result holds the k best scores, each row with its own score, best first, none twice."""
        off = max(tolerance, self.tolerance)
        chosen = {i: v for i, (part, v) in self.rows.items() if v is not None and wanted(part)}
        ids = list(chosen)
        scores = truth(np.array([chosen[i] for i in ids]).reshape(-1, D), query, metric)
        by_id = dict(zip(ids, scores.tolist(), strict=True))
        got = [by_id[row.id] for row in found]
        best = np.sort(scores)[::-1][:k]
        assert len({r.id for r in found}) == len(found) == min(k, len(ids))
        np.testing.assert_allclose(got, best, rtol=0, atol=off)
        shown = [-np.inf if r.score is None else -r.score if metric == "l2" else r.score for r in found]
        np.testing.assert_allclose(shown, got, rtol=0, atol=off)


@pytest.fixture
def model(catalog_kind: str) -> Model:
    return Model(1e-9 if catalog_kind == "sqlite" else 2e-6)  # pgvector adds up in float32


@pytest.fixture
def filled(db: deeplake.Database, model: Model) -> deeplake.Database:
    """Several sealed files and a tail; some rows deleted, some changed, some NULL."""
    db.execute(TABLE)
    for start, count in ((1, 3000), (3001, 2000), (5001, 40)):
        rows = vectors(count, seed=start)
        db.insert(
            "g", {"id": np.arange(start, start + count), "part": np.arange(start, start + count) % 1000, "v": rows}
        )
        model.put(start, rows)
        if start < 5000:
            db.optimize()
    db.execute("DELETE FROM g WHERE id % 7 = 0")
    db.execute("UPDATE g SET v = NULL WHERE id % 11 = 0")
    for i in list(model.rows):
        if i % 7 == 0:
            del model.rows[i]
        elif i % 11 == 0:
            model.rows[i] = model.rows[i][0], None
    fresh = vectors(20, seed=9)
    for i, row in enumerate(fresh):
        change(db, model, 100 + 13 * i, row)
    return db


def change(db: deeplake.Database, model: Model, row_id: int, row: np.ndarray) -> None:
    if row_id in model.rows:
        db.execute("UPDATE g SET v = %s WHERE id = %s", [row, row_id])
        model.rows[row_id] = model.rows[row_id][0], row


def query(seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(D).astype(np.float32)


# -- which rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("limit", [0, 1, 2, 100, 500, 1000])
def test_filters_of_no_row_to_all_rows_give_numpys_best(
    filled: deeplake.Database, model: Model, metric: Any, limit: int
) -> None:
    for k in (1, 10, 300):
        found = filled.search("g", "v", query(), k=k, where="part < :n", params={"n": limit}, metric=metric)
        model.check(found, query(), k, metric, lambda part: part < limit)


@pytest.mark.parametrize("metric", METRICS)
def test_the_whole_table_gives_numpys_best_and_says_how(filled: deeplake.Database, model: Model, metric: Any) -> None:
    held = [v for _, v in model.rows.values() if v is not None]
    for k in (1, 10, len(held), len(held) + 50):
        found = filled.search("g", "v", query(), k=k, metric=metric)
        assert isinstance(found, SearchResult)
        model.check(found, query(), k, metric)
        assert found.exact and found.rows_examined == len(held)
        stored = filled.vectors(found.addresses)
        shown = -found.scores if metric == "l2" else found.scores
        shown = np.where(np.isnan(shown), -np.inf, shown)
        np.testing.assert_allclose(shown, truth(stored, query(), metric), rtol=0, atol=1e-9)


@pytest.mark.both_catalogs
def test_a_batch_gives_what_its_queries_give_alone(filled: deeplake.Database, model: Model) -> None:
    queries = np.stack([query(i) for i in range(9)])
    queries[4] = 0  # has no cosine score with anything
    for metric in METRICS:
        found = filled.search("g", "v", queries, k=7, metric=metric, where="part <> 3")
        assert isinstance(found, list) and len(found) == 9
        for q, one in zip(queries, found, strict=True):
            if q.any():
                model.check(one, q, 7, metric, lambda part: part != 3)
            alone = filled.search("g", "v", q, k=7, metric=metric, where="part <> 3")
            np.testing.assert_array_equal(one.scores, alone.scores)
    assert filled.search("g", "v", np.zeros((0, D), np.float32)) == []


def test_a_batch_chooses_its_candidates_once_and_scans_once(
    filled: deeplake.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = kernels.topk
    monkeypatch.setattr(kernels, "topk", lambda m, q, *a, **o: asked.append(len(q)) or real(m, q, *a, **o))
    statements: list[str] = []
    filled._catalog.connection.set_trace_callback(statements.append)
    filled.search("g", "v", np.stack([query(i) for i in range(8)]), where="part < 900")
    filled._catalog.connection.set_trace_callback(None)
    assert set(asked) == {8} and len(asked) == len({a >> 30 for a in filled.execute("SELECT v FROM g").raw(0) if a})
    assert sum("group_concat" in s for s in statements) == 1


def test_equal_scores_at_the_edge_are_settled_by_the_rest_of_the_order(db: deeplake.Database) -> None:
    db.execute(TABLE)
    rows = np.repeat(vectors(10, seed=2)[:4], 50, axis=0)
    db.insert("g", {"id": np.arange(200, 0, -1), "part": np.arange(200), "v": rows})
    sql = "SELECT id FROM g ORDER BY cosine_similarity(v, :q) DESC, id LIMIT 70"
    ids = [r.id for r in db.execute(sql, {"q": rows[0]})]
    order = np.lexsort((np.arange(200, 0, -1), -truth(rows, rows[0], "cosine").round(12)))
    assert ids == np.arange(200, 0, -1)[order][:70].tolist()
    batch = db.search("g", "v", np.stack([rows[0], rows[60]]), k=30)
    assert [{tuple(v) for v in db.vectors(r.addresses)} for r in batch] == [{tuple(rows[0])}, {tuple(rows[60])}]


def test_float16_columns_are_scored_as_they_are_stored(db: deeplake.Database) -> None:
    db.execute(TABLE)
    rows = vectors(9000, seed=4).astype(np.float16)
    db.insert("g", {"id": np.arange(9000), "h": rows})
    db.optimize(scan_copies=True)
    for metric in METRICS:
        found = db.search("g", "h", query(), k=12, metric=metric)
        best = np.sort(truth(rows, query(), metric))[::-1][:12]
        np.testing.assert_allclose(-found.scores if metric == "l2" else found.scores, best, rtol=0, atol=1e-9)
    assert not list(Path(db.root).rglob("*.f16"))


# -- rows that come and go ---------------------------------------------------------------------------------------------


@pytest.mark.both_catalogs
def test_the_live_rows_follow_every_change(filled: deeplake.Database, model: Model) -> None:
    q = query()
    rng = np.random.default_rng(0)
    for step in range(12):
        model.check(filled.search("g", "v", q, k=5), q, 5)
        best = filled.search("g", "v", q, k=1)[0].id
        if step % 3 == 0:
            filled.execute("DELETE FROM g WHERE id = %s", [best])
            del model.rows[best]
        elif step % 3 == 1:
            change(filled, model, best, rng.standard_normal(D).astype(np.float32))
        else:
            row = (q + rng.standard_normal(D) / 10).astype(np.float32)
            new = filled.execute("INSERT INTO g (part, v) VALUES (0, %s) RETURNING id", [row]).scalar()
            model.rows[new] = 0, row


def test_few_changes_are_taken_from_the_log_and_not_from_the_table(filled: deeplake.Database) -> None:
    filled.search("g", "v", query())
    statements: list[str] = []
    filled.execute("DELETE FROM g WHERE id IN (1, 2, 3)")
    filled._catalog.connection.set_trace_callback(statements.append)
    filled.search("g", "v", query())
    filled.search("g", "v", query())
    filled._catalog.connection.set_trace_callback(None)
    joined = [s for s in statements if "group_concat" in s]
    assert len(joined) == 2 and all("_dl_log_g" in s for s in joined)


@pytest.mark.both_catalogs
def test_a_vector_that_two_rows_share_stays_while_one_of_them_lives(db: deeplake.Database) -> None:
    db.execute(TABLE)
    q = query()
    db.insert("g", {"id": np.arange(1, 101), "v": vectors(100)})
    db.execute("UPDATE g SET v = %s WHERE id = 5", [q])
    db.execute("INSERT INTO g (id, v) SELECT 500, v FROM g WHERE id = 5")
    assert {r.id for r in db.search("g", "v", q, k=2)} == {5, 500}
    db.execute("DELETE FROM g WHERE id = 5")
    assert db.search("g", "v", q, k=1)[0].id == 500
    db.execute("INSERT INTO g (id, v) SELECT 501, v FROM g WHERE id = 500")
    assert {r.id for r in db.search("g", "v", q, k=2)} == {500, 501}
    db.execute("UPDATE g SET v = NULL WHERE id >= 500")
    assert db.search("g", "v", q, k=1)[0].score < 0.99


@pytest.mark.both_catalogs
def test_rows_of_a_rolled_back_transaction_are_gone(filled: deeplake.Database, model: Model) -> None:
    q = query()
    with pytest.raises(RuntimeError), filled.transaction():
        filled.execute("INSERT INTO g (id, v) VALUES (90001, %s)", [q])
        assert filled.search("g", "v", q, k=1)[0].id == 90001
        filled.execute("UPDATE g SET v = %s WHERE id = 90001", [-q])
        assert filled.search("g", "v", q, k=1)[0].id != 90001
        raise RuntimeError
    model.check(filled.search("g", "v", q, k=8), q, 8)
    with filled.transaction():
        with pytest.raises(RuntimeError), filled.transaction():
            filled.execute("DELETE FROM g WHERE id < 4000")
            filled.search("g", "v", q)
            raise RuntimeError
        model.check(filled.search("g", "v", q, k=8), q, 8)


def test_rows_of_another_process_are_found_at_the_next_search(filled: deeplake.Database, model: Model) -> None:
    q = query()
    model.check(filled.search("g", "v", q, k=3), q, 3)
    code = (
        "import sys, deeplake_loader as d, numpy as np\n"
        "db = d.connect(sys.argv[1]); q = np.random.default_rng(5).standard_normal(16).astype('float32')\n"
        "db.execute('INSERT INTO g (id, v) VALUES (70000, %s)', [q])\n"
        "rows = np.random.default_rng(1).standard_normal((9000, 16)).astype('float32')\n"
        "db.insert('g', {'id': np.arange(80000, 89000), 'v': rows})\n"
        "db.execute('DELETE FROM g WHERE id BETWEEN 3000 AND 3500')\n"
    )
    subprocess.run([sys.executable, "-c", code, filled.root], check=True, cwd=Path(__file__).parents[1])
    model.rows[70000] = 0, q
    model.rows |= {
        80000 + i: (0, v) for i, v in enumerate(np.random.default_rng(1).standard_normal((9000, D)).astype(np.float32))
    }
    model.rows = {i: r for i, r in model.rows.items() if not 3000 <= i <= 3500}
    found = filled.search("g", "v", q, k=20)
    assert found[0].id == 70000
    model.check(found, q, 20)


def test_other_tools_may_change_a_row_twice_in_one_commit_of_ours(filled: deeplake.Database, model: Model) -> None:
    import sqlite3

    q = query()
    with sqlite3.connect(Path(filled.root, "catalog.sqlite")) as other:
        for source in (2, 3, 4):
            model.check(filled.search("g", "v", q, k=6000), q, 6000)
            other.execute("UPDATE g SET v = (SELECT v FROM g WHERE id = ?) WHERE id = 1", (source,))
            other.commit()
            model.rows[1] = model.rows[1][0], model.rows[source][1]
    other.close()
    model.check(filled.search("g", "v", q, k=6000), q, 6000)


def test_history_that_was_forgotten_does_not_matter(filled: deeplake.Database, model: Model) -> None:
    q = query()
    filled.search("g", "v", q)
    best = filled.search("g", "v", q, k=1)[0].id
    with deeplake.connect(filled.root) as other:
        other.execute("DELETE FROM g WHERE id = %s", [best])
        other.execute("INSERT INTO g (id, v) VALUES (60000, %s)", [q])
        other.optimize(keep=0)
    del model.rows[best]
    model.rows[60000] = 0, q
    model.check(filled.search("g", "v", q, k=9), q, 9)


# -- branches ----------------------------------------------------------------------------------------------------------


def test_a_branch_finds_its_rows_and_never_anothers(filled: deeplake.Database, model: Model) -> None:
    q = query()
    filled.tag("before")
    filled.branch("other")
    filled.checkout("main")
    theirs = Model()
    theirs.rows = dict(model.rows)
    before = dict(model.rows)
    with deeplake.connect(filled.root, branch="other") as branch:
        for round_ in range(3):
            branch.execute("INSERT INTO g (id, part, v) VALUES (%s, 1, %s)", [40000 + round_, q])
            theirs.rows[40000 + round_] = 1, q
            filled.execute("DELETE FROM g WHERE id = %s", [best := filled.search("g", "v", q, k=1)[0].id])
            del model.rows[best]
            mine = branch.search("g", "v", q, k=4)[3].id
            branch.execute("UPDATE g SET v = %s WHERE id = %s", [-q, mine])
            theirs.rows[mine] = theirs.rows[mine][0], -q
            theirs.check(branch.search("g", "v", q, k=30), q, 30)
            theirs.check(branch.search("g", "v", q, k=30, where="part < 500"), q, 30, wanted=lambda p: p < 500)
            model.check(filled.search("g", "v", q, k=30), q, 30)
    then = Model()
    then.rows = before
    with filled.at("before") as past:
        then.check(past.search("g", "v", q, k=30), q, 30)
        filled.execute("DELETE FROM g WHERE id < 500")
        then.check(past.search("g", "v", q, k=30), q, 30)
    filled.checkout("other")
    theirs.check(filled.search("g", "v", q, k=30), q, 30)
    filled.checkout("main")
    model.rows = {i: r for i, r in model.rows.items() if i >= 500}
    model.check(filled.search("g", "v", q, k=30), q, 30)


# -- never different from plain SQL ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[deeplake.Database]:
    with deeplake.connect(tmp_path_factory.mktemp("pair")) as db:
        db.execute(TABLE)
        for start in (0, 9000):
            rows = vectors(9000, seed=start)
            db.insert("g", {"id": np.arange(start, start + 9000), "part": np.arange(9000) % 97, "v": rows, "h": rows})
            db.optimize(scan_copies=True)
        db.execute("INSERT INTO g (part, v, h) SELECT part, v, h FROM g WHERE id < 30")
        db.execute("DELETE FROM g WHERE id % 5 = 1")
        yield db


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_searches_give_the_rows_of_the_plain_statement(pair: deeplake.Database, data: st.DataObject) -> None:
    metric = data.draw(st.sampled_from(METRICS))
    column, k = data.draw(st.sampled_from("vh")), data.draw(st.integers(1, 40))
    where = data.draw(st.sampled_from([None, "part = 3", "part < 60", "part < 0", "id >= 17990", "part <> 4"]))
    seed = data.draw(st.integers(0, 30))
    q = query(seed) if data.draw(st.booleans()) else vectors(9000, seed=0)[seed]
    order = "ASC" if metric == "l2" else "DESC"
    condition = f"({where}) AND {column} IS NOT NULL" if where else f"{column} IS NOT NULL"
    sql = (
        f"SELECT id, {FUNCTIONS[metric]}({column}, :q) AS score FROM g WHERE {condition} "
        f"ORDER BY score {order} NULLS LAST, id LIMIT :k"
    )
    plan = pair._plan(sql)
    given_ = {"q": q, "k": k}
    plain = pair._catalog.fetchall(plan.sql, pair._writer.bind(plan, given_).values)
    assert plan.fast is not None
    assert [tuple(r) for r in pair.execute(sql, given_)] == plain
    found = pair.search("g", column, q, k=k, where=where, metric=metric)
    assert [r.score for r in found] == [score for _, score in plain]
    batch = pair.search("g", column, np.stack([q, -q]), k=k, where=where, metric=metric)
    assert [r.score for r in batch[0]] == [score for _, score in plain]


def test_the_worst_rows_are_found_as_plain_sql_finds_them(pair: deeplake.Database) -> None:
    for name, order in (("cosine_similarity", "ASC"), ("l2_distance", "DESC"), ("inner_product", "ASC")):
        sql = f"SELECT id, {name}(v, :q) s FROM g ORDER BY {name}(v, :q) {order} NULLS LAST, id LIMIT 9"
        plan = pair._plan(sql)
        plain = pair._catalog.fetchall(plan.sql, pair._writer.bind(plan, {"q": query()}).values)
        assert [tuple(r) for r in pair.execute(sql, {"q": query()})] == plain


@pytest.mark.parametrize("condition", ["part = 3", "part = 3 AND id > 10", "part IN (3, 4) OR part = 5"])
def test_the_winners_are_read_by_their_vectors_whatever_other_index_there_is(
    filled: deeplake.Database, condition: str
) -> None:
    filled.execute("CREATE INDEX of_part ON g (part)")
    text = f"SELECT * FROM g WHERE {condition} ORDER BY cosine_similarity(v, :q) DESC LIMIT 3"
    fast = filled.compiled(text).fast
    assert fast is not None
    steps = filled._catalog.fetchall(f"EXPLAIN QUERY PLAN {fast.final_sql}", [None] * fast.final_sql.count("?"))
    assert "_dl_vector.g.v" in steps[0][3] and not any("of_part" in step[3] for step in steps)
    slow = f"SELECT * FROM g WHERE {condition} ORDER BY cosine_similarity(v, :q) + 0 DESC NULLS LAST, id LIMIT 3"
    assert [r.id for r in filled.execute(text.replace("DESC", "DESC, id"), {"q": query()})] == [
        r.id for r in filled.execute(slow, {"q": query()})
    ]


def test_only_a_whole_table_is_searched_without_asking_sql(pair: deeplake.Database) -> None:
    score = "ORDER BY cosine_similarity(v, :q) DESC LIMIT 3"
    for sql, whole in (
        (f"SELECT id FROM g {score}", True),
        (f"SELECT id FROM g AS x WHERE x.v IS NOT NULL {score}", True),
        (f"SELECT id FROM g WHERE h IS NOT NULL {score}", False),
        (f"SELECT id FROM g WHERE v IS NULL {score}", False),
        (f"SELECT id FROM g WHERE part = 1 {score}", False),
        ("SELECT a.id FROM g a JOIN g b USING (id) ORDER BY cosine_similarity(a.v, :q) DESC LIMIT 3", False),
    ):
        plan = pair._plan(sql)
        assert plan.fast is not None and plan.fast.whole is whole, sql


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_a_weighted_sum_of_scores_scans_each_run_once_for_each_query(
    pair: deeplake.Database, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = {f"q{i}": query(100 * count + i) for i in range(count)}
    calls: list[int] = []
    real = kernels.scores
    monkeypatch.setattr(kernels, "scores", lambda m, n, *a, **o: calls.append(n) or real(m, n, *a, **o))
    terms = " + ".join(f"{i + 1} * cosine_similarity(v, :q{i})" for i in range(count))
    found = pair.execute(
        f"SELECT id, {terms} - 0.01 * part AS s, v FROM g ORDER BY s DESC NULLS LAST LIMIT 20", queries
    )
    held = pair.execute("SELECT id, part, v FROM g WHERE v IS NOT NULL")
    rows = pair.vectors(np.array(held.raw(2), np.int64))
    sums = sum((i + 1) * truth(rows, q, "cosine") for i, q in enumerate(queries.values())) - 0.01 * np.array(
        held.raw(1)
    )
    np.testing.assert_allclose([r.s for r in found], np.sort(sums)[::-1][:20], rtol=0, atol=1e-9)
    runs = len({a >> 12 for a in held.raw(2)})
    assert sum(n > 1 for n in calls) <= runs * count and len(calls) <= 17 * runs * count


# -- scan copies -------------------------------------------------------------------------------------------------------


def copies_of(db: deeplake.Database) -> list[Path]:
    return sorted(Path(db.root).rglob("*.f16"))


@pytest.fixture
def copied(db: deeplake.Database, model: Model) -> deeplake.Database:
    db.execute(TABLE)
    rows = vectors(20_000, seed=8)
    db.insert("g", {"id": np.arange(20_000), "part": np.arange(20_000) % 1000, "v": rows})
    db.optimize(scan_copies=True)
    model.put(0, rows)
    return db


def test_a_copy_is_the_rows_in_float16_and_its_bounds_hold(copied: deeplake.Database) -> None:
    (path,) = copies_of(copied)
    held = np.load(path, mmap_mode="r")
    rows = copied.vectors(np.array(copied.execute("SELECT v FROM g ORDER BY id").raw(0)))
    assert held.dtype == np.float16 and np.array_equal(held, rows.astype(np.float16))
    copied.search("g", "v", query())
    (copy,) = copied._copies._open.values()
    exact = rows.astype(np.float64)
    for metric in METRICS:
        with np.errstate(invalid="ignore"):
            missed = np.abs(truth(held, query(), metric) - truth(exact, query(), metric))
        fixed, by_length = copy.error(metric)
        assert np.nanmax(missed) <= fixed + by_length * np.linalg.norm(query()) < 0.1


@pytest.mark.parametrize("metric", METRICS)
def test_searches_by_a_copy_are_exact(copied: deeplake.Database, model: Model, metric: Any) -> None:
    for q in (query(), model.rows[0][1], query(3) * 1e3):
        assert q is not None
        model.check(copied.search("g", "v", q, k=25, metric=metric), q, 25, metric, tolerance=1e-6)
        some = copied.search("g", "v", q, k=25, metric=metric, where="part < 700")
        model.check(some, q, 25, metric, lambda part: part < 700, tolerance=1e-6)
    assert copied._copies._open
    model.check(copied.search("g", "v", np.stack([query()] * 3), k=9, metric=metric)[2], query(), 9, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_files_with_copies_without_and_the_tail_are_searched_as_one(
    copied: deeplake.Database, model: Model, metric: Any
) -> None:
    """Each file begins with what those before it found, by scores of different precision."""
    for first, count in ((20_000, 9_000), (30_000, 8_500), (40_000, 30)):
        rows = vectors(count, seed=first)
        copied.insert("g", {"id": np.arange(first, first + count), "part": np.arange(count) % 1000, "v": rows})
        model.put(first, rows)
        copied.optimize(scan_copies=first == 20_000)
    many = np.stack([query(seed) for seed in range(12)])
    several = copied.search("g", "v", many, k=40, metric=metric)
    assert len(copies_of(copied)) == 2
    for q, batch in zip(many, several, strict=True):
        alone = copied.search("g", "v", q, k=40, metric=metric)
        model.check(alone, q, 40, metric, tolerance=1e-6)
        assert [row.id for row in batch] == [row.id for row in alone]
        assert batch.scores.tobytes() == alone.scores.tobytes()


def test_a_copy_is_what_is_scanned(copied: deeplake.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[str] = []
    real = kernels.reaching
    monkeypatch.setattr(kernels, "reaching", lambda m, n, d, t, *a, **o: kinds.append(t) or real(m, n, d, t, *a, **o))
    copied.search("g", "v", query())
    copied.search("g", "v", query(), where="part = 5")  # so few rows that the file itself is read
    assert kinds == ["float16", "float32"]


@pytest.mark.parametrize("where", ["header", "rows", "checks", "trailer", "cut", "empty", "longer"])
def test_a_damaged_copy_is_dropped_and_made_again(copied: deeplake.Database, model: Model, where: str) -> None:
    (path,) = copies_of(copied)
    whole = path.read_bytes()
    at = {"header": 40, "rows": 200_000, "checks": 128 + 20_000 * 2 * D + 1, "trailer": len(whole) - 30}.get(where)
    with deeplake.connect(copied.root) as fresh:
        path.unlink()
        if at is not None:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        else:
            path.write_bytes({"cut": whole[:-1000], "empty": b"", "longer": whole + b"x"}[where])
        model.check(fresh.search("g", "v", query(), k=10), query(), 10)
        assert not copies_of(fresh)
        fresh.optimize(scan_copies=True)
        assert path.read_bytes() == whole
        model.check(fresh.search("g", "v", np.stack([query(), query(2)]), k=10)[1], query(2), 10)


def test_a_copy_of_other_bytes_is_passed_over(copied: deeplake.Database, model: Model) -> None:
    (path,) = copies_of(copied)
    copied.insert("g", {"id": np.arange(50_000, 70_000), "v": vectors(20_000, seed=77)})
    model.put(50_000, vectors(20_000, seed=77))
    for i in range(50_000, 70_000):
        model.rows[i] = 0, model.rows[i][1]
    copied.optimize()
    (other,) = [p for p in Path(copied.root, "vectors").rglob("*.npy") if p.stem != path.stem]
    other.with_suffix(".f16").write_bytes(path.read_bytes())
    with deeplake.connect(copied.root) as fresh:
        model.check(fresh.search("g", "v", query(), k=10), query(), 10)
        fresh.optimize(scan_copies=True)
        assert np.array_equal(np.load(other.with_suffix(".f16")), np.load(other).astype(np.float16))


def test_a_damaged_vector_file_is_an_error_with_and_without_a_copy(copied: deeplake.Database) -> None:
    root = copied.root
    copied.close()
    (path,) = Path(root, "vectors").rglob("*.npy")
    data = bytearray(path.read_bytes())
    data[128 : len(data) : 4096] = bytes(b ^ 64 for b in data[128 : len(data) : 4096])
    path.write_bytes(data)
    for _ in range(2):
        with deeplake.connect(root) as fresh:
            with pytest.raises(errors.CorruptionError, match="crc32c"):
                fresh.search("g", "v", query(), k=10)
            with pytest.raises(errors.CorruptionError, match="crc32c"):
                fresh.search("g", "v", np.stack([query(), query(2)]), k=10)
        for copy in path.parent.glob("*.f16"):
            copy.unlink()


@pytest.mark.parametrize("bad", [1e5, 1e-9])
def test_rows_that_float16_cannot_hold_have_no_copy(db: deeplake.Database, bad: float) -> None:
    db.execute(TABLE)
    rows = vectors(9000, seed=3)
    rows[77] = bad * np.arange(1, D + 1) / 7
    db.insert("g", {"id": np.arange(9000), "v": rows})
    db.optimize(scan_copies=True)
    assert not copies_of(db)
    assert db.search("g", "v", rows[77], k=1)[0].id == 77


def test_a_disk_that_is_full_leaves_no_half_copy(copied: deeplake.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = copies_of(copied)
    path.unlink()
    copied._copies.close()

    def full(*_: Any) -> int:
        raise errors.StoreError("no space left")

    monkeypatch.setattr(copies.store, "write_at", full)
    with pytest.raises(errors.StoreError, match="no space"):
        copied.optimize(scan_copies=True)
    assert [p.suffix for p in path.parent.iterdir()] == [".npy"]


def test_gc_takes_the_copy_with_its_file(copied: deeplake.Database) -> None:
    (path,) = copies_of(copied)
    assert copied.gc(older_than_s=0).files == ()
    copied.execute("DELETE FROM g")
    copied.optimize(keep=0)
    gone = copied.gc(older_than_s=0, dry_run=False).files
    assert {Path(name).name for name in gone} >= {path.name, path.with_suffix(".npy").name}
    assert not path.exists()


# -- devices -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_a_device_gives_the_rows_of_the_cpu_as_they_change(
    filled: deeplake.Database, model: Model, metric: Any
) -> None:
    q = query()
    for _ in range(3):
        found = filled.search("g", "v", q, k=12, metric=metric, device="cpu:0")
        model.check(found, q, 12, metric)
        model.check(filled.search("g", "v", np.stack([q, -q]), k=4, metric=metric, device="cpu:0")[1], -q, 4, metric)
        some = filled.search("g", "v", q, k=12, metric=metric, where="part < 300", device="cpu:0")
        model.check(some, q, 12, metric, lambda part: part < 300)
        row = (q + 0.01).astype(np.float32)
        new = filled.execute("INSERT INTO g (part, v) VALUES (999, %s) RETURNING id", [row]).scalar()
        model.rows[new] = 999, row


def test_a_device_sends_each_row_once_and_forgets_what_was_rolled_back(
    filled: deeplake.Database, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deeplake_loader.search.device import TorchDevice

    sent: list[int] = []
    real = TorchDevice._sent
    monkeypatch.setattr(
        TorchDevice, "_sent", lambda self, m, first: sent.append(m.count - first) or real(self, m, first)
    )
    q = query()
    filled.search("g", "v", q, device="cpu:0")
    assert sum(sent) >= 5000
    sent.clear()
    filled.search("g", "v", q, device="cpu:0")
    assert sent == []
    filled.execute("INSERT INTO g (id, v) VALUES (70000, %s)", [q])
    model.rows[70000] = 0, q
    filled.search("g", "v", q, device="cpu:0")
    assert sent == [1]
    with pytest.raises(RuntimeError), filled.transaction():
        filled.execute("INSERT INTO g (id, v) VALUES (70001, %s)", [2 * q])
        filled.search("g", "v", q, device="cpu:0", metric="inner")
        raise RuntimeError
    filled.execute("INSERT INTO g (id, v) VALUES (70002, %s)", [-q])
    model.rows[70002] = 0, -q
    model.check(filled.search("g", "v", q, k=5, device="cpu:0", metric="inner"), q, 5, "inner")


def test_a_device_that_is_not_there_is_refused(filled: deeplake.Database) -> None:
    with pytest.raises(errors.InputError, match="device='nonsense'"):
        filled.search("g", "v", query(), device="nonsense")


# -- similar rows and duplicates ---------------------------------------------------------------------------------------


def test_similar_leaves_out_the_row_itself_and_keeps_its_doubles(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE s (a INTEGER, b TEXT, v VECTOR(16), PRIMARY KEY (a, b))")
    rows = vectors(40, seed=6)
    rows[:3] = rows[3]
    db.insert("s", [{"a": i, "b": str(i), "v": row} for i, row in enumerate(rows)])
    found = db.similar("s", "v", (1, "1"), k=5)
    assert {r.a for r in found[:3]} == {0, 2, 3} and len(found) == 5
    scores = np.sort(np.delete(truth(rows, rows[1], "cosine"), 1))[::-1]
    np.testing.assert_allclose(found.scores, scores[:5], atol=1e-9)
    again = db.similar("s", "v", db.execute("SELECT b, a FROM s WHERE a = 1")[0], k=5)
    assert again.fetchall() == found.fetchall()
    assert [r.a for r in db.similar("s", "v", (1, "1"), k=99, where="a > 37")] == [
        38 + int(i) for i in np.argsort(-truth(rows[38:], rows[1], "cosine"))
    ]
    with pytest.raises(errors.NotFoundError, match="no row"):
        db.similar("s", "v", (1, "2"))
    with pytest.raises(errors.InputError, match="a, b"):
        db.similar("s", "v", 1)
    with pytest.raises(errors.InputError, match="lacks the key"):
        db.similar("s", "v", db.execute("SELECT v FROM s")[0])


@pytest.mark.parametrize("column", ["v", "h"])
@pytest.mark.parametrize(("metric", "threshold"), [("cosine", 0.8), ("l2", 2.5), ("inner", 20.0), ("cosine", 1.0)])
def test_near_duplicates_are_numpys_pairs(
    db: deeplake.Database, monkeypatch: pytest.MonkeyPatch, metric: Any, threshold: float, column: str
) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", 128)
    db.execute(TABLE)
    rows = vectors(700, seed=2)
    db.insert("g", {"id": np.arange(700), "part": np.arange(700) % 3, "v": rows, "h": rows})
    held = (rows if column == "v" else rows.astype(np.float16)).astype(np.float64)
    found = db.near_duplicates("g", column, threshold, metric=metric, where="part < :n", params={"n": 2})
    ids = [i for i in range(700) if i % 3 < 2]
    expected = set()
    for n, i in enumerate(ids):
        scores = truth(held[ids[n + 1 :]], held[i], metric)
        reached = scores >= (-threshold if metric == "l2" else threshold) - 1e-12
        expected |= {(i, j) for j, near in zip(ids[n + 1 :], reached, strict=True) if near}
    assert {(a, b) for a, b, _ in found} == expected and len(found) == len(expected) > 0
    for a, b, score in list(found)[:20]:
        sql = f"SELECT {FUNCTIONS[metric]}(x.{column}, y.{column}) FROM g x, g y WHERE x.id = %s AND y.id = %s"
        assert db.execute(sql, [a, b]).scalar() == score
    scores = [score for *_, score in found]
    assert scores == sorted(scores, reverse=metric != "l2")


def test_groups_are_what_pairs_hang_together() -> None:
    numbers = np.array
    found = duplicates.NearDuplicates("abcdefg", numbers([0, 2, 5, 1]), numbers([1, 3, 6, 4]), np.ones(4))
    assert found.groups() == [["a", "b", "e"], ["c", "d"], ["f", "g"]]


@pytest.mark.both_catalogs
def test_too_many_duplicates_are_refused_before_they_fill_the_memory(db: deeplake.Database) -> None:
    db.execute(TABLE)
    db.insert("g", {"id": np.arange(200), "v": np.ones((200, D), np.float32)})
    with pytest.raises(errors.InputError, match="more than 100 pairs"):
        db.near_duplicates("g", "v", 0.9, max_pairs=100)
    assert len(db.near_duplicates("g", "v", 0.9, progress=True)) == 199 * 100


# -- results and refusals ----------------------------------------------------------------------------------------------


def test_a_result_is_a_rowset_that_pickles(filled: deeplake.Database) -> None:
    found = filled.search("g", "v", query(), k=4)
    copy = pickle.loads(pickle.dumps(found))
    assert copy.rows_examined == found.rows_examined and copy.exact
    assert copy.addresses.tolist() == found.addresses.tolist() and copy.scores.tolist() == found.scores.tolist()
    assert found.to_pandas().shape == (4, 5)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"metric": "dot"}, errors.InputError, "cosine, l2, inner"),
        ({"where": "nothing > 3"}, errors.SQLError, "nothing"),
        ({"exact": True, "nprobe": 3}, errors.InputError, "exact=False"),
        ({"k": -1}, errors.InputError, "k=-1"),
        ({"k": 1.5}, errors.InputError, "whole number"),
        ({"k": None}, errors.InputError, "whole number"),
        ({"where": 5}, errors.InputError, "SQL condition"),
        ({"where": "part = ?", "params": [3]}, errors.InputError, "dict of the names"),
        ({"device": None}, errors.InputError, "cannot be used"),
        ({"device": "meta"}, errors.InputError, "cannot be used"),
    ],
)
def test_wrong_options_are_refused(filled: deeplake.Database, options: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        filled.search("g", "v", query(), **options)


@pytest.mark.both_catalogs
def test_a_table_may_have_a_score_of_its_own(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE photos (id BIGINT PRIMARY KEY, score REAL, v VECTOR(2))")
    db.insert("photos", {"id": [1, 2, 3], "score": [9.0, 5.0, 7.0], "v": [[0, 1], [1, 0], [1, 1]]})
    found = db.search("photos", "v", [1, 0], k=2)
    assert [(row.id, row.score) for row in found] == [(2, 5.0), (3, 7.0)]
    np.testing.assert_allclose(found.scores, [1, 0.5**0.5])
    assert [row.id for row in db.search("photos", "v", [[1, 0]], k=3, where="score > 6")[0]] == [3, 1]
    assert [row.id for row in db.similar("photos", "v", 2)] == [3, 1]


@pytest.mark.parametrize(
    "where", ["1=1) --", "1=1) OR (1=1", "part = 3) UNION SELECT * FROM g WHERE (1=1", "')' = ')')"]
)
def test_a_condition_cannot_end_the_statement_around_it(filled: deeplake.Database, where: str) -> None:
    for verb in (
        lambda: filled.search("g", "v", query(), where=where),
        lambda: filled.similar("g", "v", 1, where=where),
    ):
        with pytest.raises(errors.InputError, match="closes a parenthesis"):
            verb()
    with pytest.raises(errors.InputError, match="closes a parenthesis"):
        filled.near_duplicates("g", "v", 0.9, where=where)


@pytest.mark.both_catalogs
def test_a_condition_may_hold_comments_and_parentheses_in_text(filled: deeplake.Database, model: Model) -> None:
    for where in ("part = 3 -- the third )", "/* ( */ part = 3", "(part) = (3) AND ')(' = ')('"):
        model.check(filled.search("g", "v", query(), where=where), query(), 10, wanted=lambda part: part == 3)


@pytest.mark.both_catalogs
def test_numbers_of_torch_and_numpy_in_a_list_are_one_query(filled: deeplake.Database) -> None:
    torch = pytest.importorskip("torch")
    alone = [row.id for row in filled.search("g", "v", query())]
    for q in (list(query()), list(torch.tensor(query())), [np.array(x) for x in query()], tuple(query().tolist())):
        assert [row.id for row in filled.search("g", "v", q)] == alone
    for several in ([query()], [torch.tensor(query())], (query().tolist(),), torch.tensor(query())[None]):
        assert [[row.id for row in found] for found in filled.search("g", "v", several)] == [alone]


@pytest.mark.both_catalogs
def test_a_key_given_as_text_is_the_row_itself_too(filled: deeplake.Database) -> None:
    for key in (1, "1", 1.0, (1,), np.int64(1)):
        found = filled.similar("g", "v", key, k=5)
        assert len(found) == 5 and 1 not in [row.id for row in found]


@pytest.mark.both_catalogs
def test_what_is_no_vector_column_is_not_found(filled: deeplake.Database) -> None:
    filled.execute("CREATE TABLE plain (id BIGINT PRIMARY KEY, name TEXT)")
    for table, column in (("nothing", "v"), (None, "v"), ("g", "w"), ("g", "part"), ("plain", "name"), ("g", None)):
        with pytest.raises(errors.NotFoundError, match=r"no table|no VECTOR column"):
            filled.search(table, column, query())
        with pytest.raises(errors.NotFoundError, match=r"no table|no VECTOR column"):
            filled.near_duplicates(table, column, 0.5)
    assert len(filled.search("G", "V", query())) == 10


@pytest.mark.parametrize("threshold", [float("nan"), "0.9", None, [0.9]])
def test_a_threshold_that_is_no_number_is_refused(filled: deeplake.Database, threshold: Any) -> None:
    with pytest.raises(errors.InputError, match="expected a number"):
        filled.near_duplicates("g", "v", threshold)


@pytest.mark.both_catalogs
def test_queries_of_another_length_are_refused(filled: deeplake.Database) -> None:
    for q in (np.ones(D + 1, np.float32), np.ones((2, D - 1), np.float32)):
        with pytest.raises(errors.DimensionError):
            filled.search("g", "v", q)


@pytest.mark.both_catalogs
def test_a_condition_that_changes_its_mind_is_asked_for_each_query(filled: deeplake.Database) -> None:
    found = filled.search("g", "v", np.stack([query(), query(1)]), k=3, where="random() IS NOT NULL")
    assert [len(one) for one in found] == [3, 3]


def test_candidates_of_no_row_find_nothing() -> None:
    searcher = engine.Searcher(lambda file, row: pytest.fail("no file is to be read"), pytest.fail)
    assert Candidates.parse(None).count == 0
    assert searcher.winners("cosine", Candidates.parse(None), array("f", [1]).tobytes(), 1, True) is None


# -- real embeddings ---------------------------------------------------------------------------------------------------


REAL = {
    "prompts_minilm_l6_v2_384.npy": ("cosine", "inner", "l2"),  # texts that were written twice: exact duplicates
    "clip_graffiti/clip_embeddings.npy": ("cosine", "inner", "l2"),  # not normalised
    "bigann10k/base.npy": ("l2", "cosine"),  # uint8
}


@pytest.mark.parametrize("name", REAL)
def test_real_embeddings_are_found_as_by_brute_force(sample_data: Path, db: deeplake.Database, name: str) -> None:
    path = sample_data / "embeddings" / name
    if not path.exists():
        pytest.skip(f"no {path}")
    rows = np.load(path).astype(np.float32)
    rows = np.concatenate([rows, rows[:: max(1, len(rows) // 500)]])
    db.execute(f"CREATE TABLE e (id BIGINT PRIMARY KEY, v VECTOR({rows.shape[1]}))")
    db.insert("e", {"id": np.arange(len(rows)), "v": rows})
    db.optimize(scan_copies=True)
    asked = rows[:: len(rows) // 8] + np.float32(1e-3)
    for metric in REAL[name]:
        batch = db.search("e", "v", asked, k=30, metric=metric)  # type: ignore[arg-type]
        for q, found in zip(asked, batch, strict=True):
            exact = truth(rows, q, metric)
            best, scale = np.sort(exact)[::-1][:30], max(1.0, float(np.abs(exact).max()))
            alone = db.search("e", "v", q, k=30, metric=metric)  # type: ignore[arg-type]
            for result in (found, alone):
                ids = [r.id for r in result]
                assert len(set(ids)) == 30
                np.testing.assert_allclose(exact[ids], best, rtol=0, atol=1e-12 * scale)
            assert found.scores.tolist() == alone.scores.tolist()


def test_the_published_neighbours_of_bigann_are_found(sample_data: Path, db: deeplake.Database) -> None:
    folder = sample_data / "embeddings" / "bigann10k"
    if not folder.exists():
        pytest.skip(f"no {folder}")
    base, asked, known = (np.load(folder / f"{name}.npy") for name in ("base", "queries", "groundtruth"))
    db.execute("CREATE TABLE e (id BIGINT PRIMARY KEY, v VECTOR(128))")
    db.insert("e", {"id": np.arange(len(base)), "v": base.astype(np.float32)})
    db.optimize(scan_copies=True)
    for q, found, truth_ids in zip(
        asked, db.search("e", "v", asked.astype(np.float32), k=100, metric="l2"), known, strict=True
    ):
        distances = np.linalg.norm(base[truth_ids].astype(np.float64) - q, axis=1)
        np.testing.assert_allclose(found.scores, np.sort(distances), rtol=0, atol=1e-9)
