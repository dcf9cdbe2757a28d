"""The command psql on a store: it reads and writes main and branches, searches by pgvector, and it is on record."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from conftest import Psql, Store

import deeplake_loader as deeplake
from deeplake_loader import errors

pytestmark = pytest.mark.postgres_only("psql is PostgreSQL's")
ON_BRANCH = 'SET search_path TO "experiment/x", public;'


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)


@pytest.fixture
def table(db: deeplake.Database, vectors: np.ndarray) -> deeplake.Database:
    """Thirty rows on main, and a branch of them."""
    db.execute("CREATE TABLE g (id BIGINT PRIMARY KEY, prompt TEXT NOT NULL, steps INTEGER DEFAULT 20, e VECTOR(4))")
    db.insert("g", {"prompt": [f"p{i}" for i in range(30)], "steps": list(range(30)), "e": vectors})
    db.branch("experiment/x")
    db.checkout("main")
    db.tag("before")
    return db


def literal(vector: np.ndarray) -> str:
    return "'" + str(vector.tolist()).replace(" ", "") + "'"


def rows(db: deeplake.Database, sql: str) -> list[tuple[object, ...]]:
    return [tuple(row) for row in db.execute(sql)]


def test_what_psql_writes_on_main_is_in_the_log_and_the_diff(table: deeplake.Database, psql: Psql) -> None:
    commits = len(list(table.log()))
    assert psql("INSERT INTO g (prompt) VALUES ('new') RETURNING id, steps") == "31|20\n"
    psql("BEGIN; UPDATE g SET steps = 99 WHERE id IN (1, 2); DELETE FROM g WHERE id = 3; COMMIT")
    with pytest.raises(RuntimeError, match="null value in column"):
        psql("INSERT INTO g (prompt) VALUES (NULL)")
    assert len(list(table.log())) == commits + 2
    counts = table.diff("before", "main").counts["g"]
    assert (counts.added, counts.changed, counts.removed) == (1, 2, 1)
    with table.at("before") as then:
        assert rows(then, "SELECT count(*), sum(steps) FROM g") == [(30, sum(range(30)))]
    table.execute("INSERT INTO g (prompt) VALUES ('ours')")
    assert psql("SELECT id FROM g WHERE prompt = 'ours'") == "33\n"  # the refused row had taken 32


def test_what_psql_writes_on_a_branch_is_merged(table: deeplake.Database, psql: Psql) -> None:
    told = psql(
        ON_BRANCH
        + """
        INSERT INTO g (prompt, e) VALUES ('new', '[1,2,3,4]') RETURNING id, steps;
        UPDATE g SET steps = steps + 100 WHERE steps < 3 RETURNING id;
        DELETE FROM g WHERE id = 30 RETURNING prompt;
        SELECT count(*), sum(steps) FROM g;
    """
    )
    total = sum(range(30)) + 300 - 29 + 20
    assert told == f"31|20\n1\n2\n3\np29\n30|{total}\n"
    assert psql("SELECT count(*), sum(steps) FROM g") == f"30|{sum(range(30))}\n"
    counts = table.diff("main", "experiment/x").counts["g"]
    assert (counts.added, counts.changed, counts.removed) == (1, 3, 1)
    assert len(list(table.log("experiment/x"))) > len(list(table.log("main"))) - 1
    table.merge("experiment/x")
    assert psql("SELECT count(*), sum(steps) FROM g") == f"30|{total}\n"
    assert table.execute("SELECT e FROM g WHERE id = 31").scalar().tolist() == [1, 2, 3, 4]


def test_both_see_a_conflict_of_psql_with_us(table: deeplake.Database, psql: Psql) -> None:
    psql(ON_BRANCH + "UPDATE g SET steps = 1000 WHERE id = 5")
    table.execute("UPDATE g SET steps = 2000 WHERE id = 5")
    with pytest.raises(errors.ConflictError) as caught:
        table.merge("experiment/x")
    assert [conflict.key for conflict in caught.value.conflicts] == [5]
    assert psql("SELECT steps FROM g WHERE id = 5") == "2000\n"


@pytest.mark.parametrize("place_of", ["", ON_BRANCH])
def test_psql_searches_as_numpy_and_this_package_do(
    table: deeplake.Database, psql: Psql, vectors: np.ndarray, place_of: str
) -> None:
    q = np.array([0.5, -1.0, 2.0, 0.25], np.float32)
    cosine = vectors @ q / np.linalg.norm(vectors, axis=1) / np.linalg.norm(q)
    distance = np.linalg.norm(vectors - q, axis=1)
    for order, expected in (
        (f"e <=> {literal(q)}", np.argsort(-cosine)),
        (f"cosine_similarity(e, {literal(q)}) DESC", np.argsort(-cosine)),
        (f"e <-> {literal(q)}", np.argsort(distance)),
        (f"l2_distance(e, {literal(q)})", np.argsort(distance)),
        (f"e <#> {literal(q)}", np.argsort(-(vectors @ q))),
        (f"inner_product(e, {literal(q)}) DESC", np.argsort(-(vectors @ q))),
    ):
        found = psql(f"{place_of}SELECT id FROM g WHERE steps >= 10 ORDER BY {order} LIMIT 5")
        wanted = [i + 1 for i in expected.tolist() if i >= 10][:5]
        assert [int(line) for line in found.split()] == wanted, order
    assert [row.id for row in table.search("g", "e", q, k=5, where="steps >= 10")] == [
        i + 1 for i in np.argsort(-cosine).tolist() if i >= 10
    ][:5]
    score = psql(f"{place_of}SELECT cosine_similarity(e, {literal(q)}) FROM g WHERE id = 7")
    assert float(score) == pytest.approx(float(cosine[6]), rel=1e-5)
    assert psql(f"{place_of}SELECT cosine_similarity(e, '[0,0,0,0]') IS NULL FROM g WHERE id = 7") == "t\n"


def test_an_hnsw_index_serves_psql_and_changes_none_of_our_answers(
    table: deeplake.Database, psql: Psql, vectors: np.ndarray
) -> None:
    q = np.array([0.5, -1.0, 2.0, 0.25], np.float32)
    before = rows(table, "SELECT id FROM g ORDER BY e <=> '[0.5,-1,2,0.25]', id LIMIT 5")
    psql("CREATE INDEX near ON g USING hnsw (e vector_cosine_ops)")
    plan = psql(f"SET enable_seqscan = off; EXPLAIN SELECT id FROM g ORDER BY e <=> {literal(q)} LIMIT 5")
    assert "Index Scan using near on g" in plan
    assert rows(table, "SELECT id FROM g ORDER BY e <=> '[0.5,-1,2,0.25]', id LIMIT 5") == before
    psql(f"INSERT INTO g (prompt, e) VALUES ('itself', {literal(q)})")
    (best,) = table.search("g", "e", q, k=1)
    assert best.prompt == "itself"
    assert ("near", "hnsw") in [(index.name, index.using) for index in table.describe("g").indexes]
    psql(f"{ON_BRANCH} INSERT INTO g (prompt, e) VALUES ('there', {literal(q)})")
    assert psql(f"{ON_BRANCH} SELECT prompt FROM g ORDER BY e <=> {literal(q)} LIMIT 1") == "there\n"


@pytest.fixture
def reader(table: deeplake.Database, psql: Psql) -> Iterator[str]:
    """A role that may read main, and with it every later branch."""
    psql("""CREATE ROLE psql_reader LOGIN;
            GRANT USAGE ON SCHEMA public, _dl TO psql_reader;
            GRANT SELECT ON ALL TABLES IN SCHEMA public, _dl TO psql_reader;""")
    table.branch("later")
    table.execute("UPDATE g SET steps = 7 WHERE id = 1")
    table.checkout("main")
    yield "psql_reader"
    psql("DROP OWNED BY psql_reader; DROP ROLE psql_reader")


def test_a_reader_reads_main_and_later_branches_and_writes_nothing(psql: Psql, reader: str) -> None:
    assert psql("SELECT count(*), max(steps) FROM g", user=reader) == "30|29\n"
    assert psql("SET search_path TO later, public; SELECT steps FROM g WHERE id = 1", user=reader) == "7\n"
    assert psql("SELECT id FROM g ORDER BY e <=> '[1,0,0,0]' LIMIT 1", user=reader)
    for write in ("INSERT INTO g (prompt) VALUES ('x')", "UPDATE g SET steps = 1", "DELETE FROM g", "TRUNCATE g",
                  "CREATE TABLE t (a int)", "DROP TABLE g", "CREATE INDEX ON g (steps)", "DELETE FROM _dl._dl_commits",
                  "SET search_path TO later, public; UPDATE g SET steps = 1",
                  "SET search_path TO later, public; INSERT INTO g (prompt) VALUES ('x')",
                  "SELECT _dl._dl_close(2, 'g')", "SELECT _dl._dl_open(2, 'g')",
                  "CREATE TEMP TABLE t (a int); CREATE TRIGGER x BEFORE INSERT ON t FOR EACH ROW "
                  "EXECUTE FUNCTION _dl._dl_make_room('DROP TABLE public.g')",
                  "CREATE TEMP TABLE t (a int); CREATE TRIGGER x BEFORE INSERT ON t EXECUTE FUNCTION "
                  "_dl._dl_log_g()"):  # fmt: skip
        with pytest.raises(RuntimeError, match=r"permission denied|must be owner"):
            psql(write, user=reader)


def test_a_readers_handle_reads_searches_streams_and_is_told_so_when_it_writes(place: Store, reader: str) -> None:
    url = place.url.replace("postgres:@", f"{reader}@")
    with deeplake.connect(url, read_only=True) as handle:
        assert rows(handle, "SELECT count(*) FROM g") == [(30,)]
        assert len(handle.search("g", "e", [1, 0, 0, 0], k=3)) == 3
        assert sum(len(batch["prompt"]) for batch in handle.stream("SELECT prompt FROM g", batch_size=8)) == 30
        handle.checkout("later")
        assert rows(handle, "SELECT steps FROM g WHERE id = 1") == [(7,)]
        handle.checkout("main")
        for verb in (
            lambda: handle.execute("INSERT INTO g (prompt) VALUES ('x')"),
            lambda: handle.insert("g", {"prompt": ["x"]}),
            lambda: handle.execute("ALTER TABLE g ADD COLUMN a INT"),
            lambda: handle.branch("mine"),
            lambda: handle.merge("later"),
            lambda: handle.tag("v1"),
            lambda: handle.optimize(),
        ):
            with pytest.raises(errors.StoreError, match="read-only"):
                verb()


def test_nothing_that_runs_with_the_owners_rights_is_for_everybody(table: deeplake.Database, psql: Psql) -> None:
    with table.branch("other", from_="main") as branch:
        branch.execute("UPDATE g SET steps = 1")  # its overlay has a log of its own
        branch.execute("ALTER TABLE g ADD COLUMN note TEXT")
    told = psql("SELECT count(*), count(*) FILTER (WHERE has_function_privilege('public', oid, 'EXECUTE')) "
                "FROM pg_proc WHERE prosecdef AND pronamespace = '_dl'::regnamespace")  # fmt: skip
    count, public = map(int, told.split("|"))
    assert count >= 15 and public == 0


def test_a_role_that_may_write_main_by_psql_may_write_later_branches(table: deeplake.Database, psql: Psql) -> None:
    psql("""CREATE ROLE psql_writer LOGIN; GRANT USAGE ON SCHEMA public TO psql_writer;
            GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO psql_writer;
            GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO psql_writer;""")  # a branch's view draws its ids itself
    try:
        table.branch("later")
        table.checkout("main")
        psql("UPDATE g SET steps = 5 WHERE id = 2; INSERT INTO g (prompt) VALUES ('x')", user="psql_writer")
        psql("SET search_path TO later, public; DELETE FROM g WHERE id = 3; INSERT INTO g (prompt) VALUES ('y')",
             user="psql_writer")  # fmt: skip
        counts = table.diff("before", "later").counts["g"]
        assert (counts.added, counts.changed, counts.removed) == (1, 0, 1)
        assert next(iter(table.log())).author == "psql_writer"
    finally:
        psql("DROP OWNED BY psql_writer; DROP ROLE psql_writer")
