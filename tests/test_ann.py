"""Vector indexes: their lists choose rows, never scores; what they cannot serve is scanned; results are never short."""

from __future__ import annotations

import json
import sys
from array import array
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deeplake_loader as deeplake
from deeplake_loader import ann, matrices
from deeplake_loader.errors import CorruptionError, InputError, NotFoundError, SQLError, UnsupportedSQLError
from deeplake_loader.recall import measure
from deeplake_loader.search.approximate import narrowed
from deeplake_loader.search.candidates import Candidates, Part
from deeplake_loader.types import VectorIndex

pytest.importorskip("faiss")

ROWS, WIDTH = 12_000, 24
rng = np.random.default_rng(5)
CENTRES = rng.standard_normal((60, WIDTH))
POINTS = (CENTRES[rng.integers(0, 60, ROWS)] + 0.6 * rng.standard_normal((ROWS, WIDTH))).astype(np.float32)
POINTS *= rng.uniform(0.5, 2, (ROWS, 1)).astype(np.float32)  # unnormalised, so that the metrics disagree
QUERIES = (CENTRES[rng.integers(0, 60, 20)] + 0.6 * rng.standard_normal((20, WIDTH))).astype(np.float32)


def truth(points: np.ndarray, query: np.ndarray, metric: str) -> np.ndarray:
    """Scores in float64, the largest best."""
    points, query = points.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        return -np.sqrt(((points - query) ** 2).sum(1))
    products = points @ query
    return products if metric == "inner" else products / np.linalg.norm(points, axis=1) / np.linalg.norm(query)


def everything(rows: np.ndarray) -> np.ndarray:
    return rows


class Plain:
    """A matrix in memory."""

    def __init__(self, points: np.ndarray) -> None:
        self.layout = matrices.Layout(points.shape[1], str(points.dtype))  # type: ignore[arg-type]
        self.count, self.view = len(points), memoryview(points.tobytes())

    def verify(self, rows: Any) -> None:
        assert rows == range(self.count)


@pytest.fixture(scope="module", params=["cosine", "l2", "inner"])
def made(request: pytest.FixtureRequest) -> ann.Lists:
    return ann.make(Plain(POINTS), request.param, 60)


# -- lists -------------------------------------------------------------------------------------------------------------


def test_every_row_is_in_exactly_one_list_with_the_nearest_centre(made: ann.Lists) -> None:
    assert sorted(made.rows.tolist()) == list(range(ROWS)) and len(made) == 60
    points = POINTS / np.linalg.norm(POINTS, axis=1, keepdims=True) if made.metric == "cosine" else POINTS
    distances = np.stack([((points - centre) ** 2).sum(1) for centre in made.centres])
    nearest = distances.min(0)
    for number in range(60):
        rows = made.members(np.array([number]))
        assert (np.diff(rows) > 0).all()
        np.testing.assert_allclose(distances[number, rows], nearest[rows], rtol=1e-4, atol=1e-4)


def test_the_recall_that_is_promised_is_about_the_recall_that_comes(made: ann.Lists) -> None:
    probes = [made.probes(r) for r in (0.5, 0.8, 0.95, 1)]
    assert probes == sorted(probes) and probes[-1] == 60
    found, examined = 0, 0
    for query in QUERIES:
        best = np.argsort(-truth(POINTS, query, made.metric))[:10]
        rows = ann.choose(made, query, 10, made.probes(0.95), everything)
        assert rows is not None and (np.diff(rows) > 0).all()
        found, examined = found + int(np.isin(best, rows).sum()), examined + len(rows)
    assert found >= 0.85 * 10 * len(QUERIES)
    assert examined < 0.75 * ROWS * len(QUERIES)


def test_looking_into_every_list_is_left_to_a_scan(made: ann.Lists) -> None:
    assert ann.choose(made, QUERIES[0], 10, 60, everything) is None
    assert ann.choose(made, QUERIES[0], ROWS, 1, everything) is None
    assert ann.choose(made, np.full(WIDTH, np.nan, np.float32), 1, 1, everything) is None


@settings(max_examples=40)
@given(live=st.integers(0, 40), k=st.integers(1, 30), nprobe=st.integers(1, 60), seed=st.integers(0, 9))
def test_the_rows_are_short_only_when_fewer_are_wanted(live: int, k: int, nprobe: int, seed: int) -> None:
    wanted = np.sort(np.random.default_rng(seed).choice(ROWS, live, replace=False))
    rows = ann.choose(_shared(), QUERIES[seed], k, nprobe, lambda given: given[np.isin(given, wanted)])
    assert rows is None or (len(rows) >= k and set(rows.tolist()) <= set(wanted.tolist()))
    if live < k:
        assert rows is None


def parts(wanted: np.ndarray) -> list[Part]:
    """The same candidates as a list and as a bitmap."""
    bits = np.packbits(np.isin(np.arange(ROWS), wanted), bitorder="little").tobytes().rstrip(b"\0")
    count, last = len(wanted), int(wanted[-1])
    return [Part(7, count, last, rows=array("q", wanted.tolist())), Part(7, count, last, bitmap=bytearray(bits))]


@pytest.mark.parametrize("share", [1.0, 0.7])
def test_lists_and_bitmaps_of_candidates_are_narrowed_alike_to_candidates_near_the_query(share: float) -> None:
    wanted = np.sort(np.random.default_rng(3).choice(ROWS, int(share * ROWS), replace=False))
    for query in QUERIES[:5]:
        found = [
            narrowed(Candidates((part,)), lambda _: _shared(), query.tobytes(), 5, nprobe=2) for part in parts(wanted)
        ]
        (a,), (b,) = (candidates.parts for candidates in found)
        assert a == b and a.rows is not None and set(a.rows) <= set(wanted.tolist())
        assert a.count == len(a.rows) < 0.3 * len(wanted) and a.last == a.rows[-1]


def test_what_lists_cannot_serve_stays_as_it_is() -> None:
    whole, few = parts(np.arange(ROWS))[1], parts(np.arange(0, ROWS, 9))[0]
    query = QUERIES[0].tobytes()
    for candidates, lists, options in (
        (Candidates((whole,)), None, {"nprobe": 1}),
        (Candidates((few,)), _shared(), {"nprobe": 1}),
        (Candidates((whole,)), _shared(), {"nprobe": 40}),
        (Candidates((whole,)), _shared(), {"recall": 1.0}),
        (Candidates((whole,)), replace(_shared(), centres=_shared().centres[:, 1:]), {"nprobe": 1}),
    ):
        assert narrowed(candidates, lambda _, lists=lists: lists, query, 5, **options) is candidates
    mixed = Candidates((whole, replace(few, file=8)))
    found = narrowed(mixed, lambda file: _shared() if file == 7 else None, query, 5, nprobe=2)
    assert found.parts[0].count < whole.count and found.parts[1] is mixed.parts[1]


@cache
def _shared() -> ann.Lists:
    return ann.make(Plain(POINTS), "cosine", 60)


def test_half_floats_and_rows_of_zeros_are_parted_too() -> None:
    points = POINTS.astype(np.float16)
    points[::7] = 0
    lists = ann.make(Plain(points), "cosine", None)
    assert len(lists) == 12 and sorted(lists.rows.tolist()) == list(range(ROWS))
    assert np.isfinite(lists.centres).all()


def test_the_same_file_gives_the_same_lists() -> None:
    again = ann.make(Plain(POINTS), "cosine", 60)
    assert again.rows.tobytes() == _shared().rows.tobytes()


def test_a_filter_widens_the_search() -> None:
    lists = _shared()
    assert ann.widened(lists, 5, 1.0) == 5 and ann.widened(lists, 5, 0.5) == 10 and ann.widened(lists, 5, 0.001) == 60


# -- the file ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    ann.save(str(tmp_path / "m.npy"), _shared(), "ab" * 32)
    return tmp_path / "m.ivf"


def load(path: Path, source: str = "ab" * 32, metric: Any = "cosine") -> ann.Lists | None:
    return ann.load(str(path.with_suffix(".npy")), source, ROWS, WIDTH, metric)


def test_lists_come_back_as_they_were_saved_and_plain_numpy_reads_them(saved: Path) -> None:
    lists = load(saved)
    assert lists is not None and lists.rows.tobytes() == _shared().rows.tobytes()
    assert lists.centres.tobytes() == _shared().centres.tobytes() and lists.probes(0.9) == _shared().probes(0.9)
    raw = saved.read_bytes()
    length = int.from_bytes(raw[8:12], "little")
    header = json.loads(raw[12 : 12 + length])
    start = -(-(12 + length) // 64) * 64
    centres = np.frombuffer(raw, "<f4", header["lists"] * header["dimension"], start)
    assert centres.tobytes() == _shared().centres.tobytes()
    assert [p.name for p in saved.parent.iterdir()] == ["m.ivf"]


def test_lists_of_other_bytes_or_another_metric_are_none(saved: Path) -> None:
    assert load(saved, source="cd" * 32) is None and load(saved, metric="l2") is None
    saved.unlink()
    assert load(saved) is None


def test_a_damaged_file_is_told_from_a_whole_one_at_every_cut_and_in_every_part(saved: Path) -> None:
    whole = saved.read_bytes()
    for size in (0, 5, 11, 40, 200, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:size])
        with pytest.raises(CorruptionError):
            load(saved)
    for place in (0, 9, 12, 512, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        with pytest.raises(CorruptionError):
            load(saved)


@pytest.mark.parametrize(
    "field",
    [{"lists": 1 << 40}, {"lists": 0}, {"count": 1 << 50}, {"dimension": -1}, {"depths": 1 << 60}, {"lists": "9"}],
)
def test_a_hostile_header_allocates_nothing(saved: Path, field: dict[str, Any]) -> None:
    raw = saved.read_bytes()
    length = int.from_bytes(raw[8:12], "little")
    header = json.loads(raw[12 : 12 + length]) | field
    text = json.dumps(header).encode()
    head = raw[:8] + len(text).to_bytes(4, "little") + text
    saved.write_bytes(head.ljust(-(-len(head) // 64) * 64, b"\0") + raw[-(-(12 + length) // 64) * 64 :])
    with pytest.raises(CorruptionError):
        load(saved)


def test_lists_that_name_rows_that_are_not_there_are_damage(tmp_path: Path) -> None:
    rows = _shared().rows.copy()
    rows[3] = ROWS
    ann.save(str(tmp_path / "m.npy"), replace(_shared(), rows=rows), "ab" * 32)
    with pytest.raises(CorruptionError, match="do not part"):
        load(tmp_path / "m.ivf")


# -- definitions -------------------------------------------------------------------------------------------------------


def fill(db: deeplake.Database, rows: int = ROWS) -> None:
    db.execute(f"CREATE TABLE t (id BIGINT PRIMARY KEY, v VECTOR({WIDTH}), part INTEGER, other VECTOR(3))")
    db.insert("t", {"id": np.arange(rows) + 1, "v": POINTS[:rows], "part": np.arange(rows) % 10})


def list_files(db: deeplake.Database) -> list[str]:
    return sorted(p.name for p in Path(db.root).rglob("*.ivf"))


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("CREATE INDEX i ON t USING ivf (v) WITH (lists = 20)", VectorIndex("i", "t", "v", "ivf", "cosine", 20)),
        ("create index concurrently on t using ivfflat (v vector_l2_ops) with (lists = '20')",
         VectorIndex("t_v_idx", "t", "v", "ivf", "l2", 20)),
        ("CREATE INDEX IF NOT EXISTS i ON T USING ivfflat (V vector_ip_ops);",
         VectorIndex("i", "t", "v", "ivf", "inner", None)),
    ],
)  # fmt: skip
def test_an_index_is_made_as_pgvectors_users_write_it(db: deeplake.Database, sql: str, expected: VectorIndex) -> None:
    fill(db)
    db.execute(sql)
    assert db.indexes() == [expected] and len(list_files(db)) == 1
    db.execute(f"DROP INDEX {expected.name}")
    assert db.indexes() == [] and list_files(db) == []


@pytest.mark.parametrize(
    ("sql", "error", "said"),
    [
        ("CREATE INDEX i ON t USING hnsw (v)", UnsupportedSQLError, r"USING ivf \(column\)"),
        ("CREATE UNIQUE INDEX i ON t USING ivf (v)", SQLError, "UNIQUE"),
        ("CREATE INDEX i ON t USING ivf (v) WITH (probes = 3)", UnsupportedSQLError, "lists = 100"),
        ("CREATE INDEX i ON t USING ivf (v) WITH (lists = 0)", SQLError, "1 to 32768"),
        ("CREATE INDEX i ON t USING ivf (v) WITH (lists = 99999)", SQLError, "1 to 32768"),
        ("CREATE INDEX i ON t USING ivf (v bit_hamming_ops)", UnsupportedSQLError, "vector_cosine_ops"),
        ("CREATE INDEX i ON t USING ivf (part)", SQLError, "VECTOR columns"),
        ("CREATE INDEX i ON t USING ivf (w)", SQLError, "no column 'w'"),
        ("CREATE INDEX i ON t USING ivf (v) WHERE part = 1", SQLError, "should end here"),
        ("CREATE INDEX _dl_i ON t USING ivf (v)", SQLError, "reserved"),
    ],
)  # fmt: skip
def test_an_index_that_cannot_be_is_refused_with_what_to_write(
    db: deeplake.Database, sql: str, error: type[Exception], said: str
) -> None:
    db.execute(f"CREATE TABLE t (id BIGINT PRIMARY KEY, v VECTOR({WIDTH}), part INTEGER)")
    with pytest.raises(error, match=said):
        db.execute(sql)
    assert db.indexes() == []


def test_names_of_indexes_are_one_space(db: deeplake.Database) -> None:
    fill(db, 50)
    db.create_index("t", "v", name="i")
    for taken in (
        "CREATE INDEX i ON t USING ivf (other)",
        "CREATE INDEX i ON t (part)",
        "CREATE INDEX j ON t USING ivf (v)",
    ):
        with pytest.raises(InputError, match=r"already|has the index 'i'"):
            db.execute(taken)
    db.execute("CREATE INDEX IF NOT EXISTS i ON t USING ivf (other)")
    db.execute("CREATE INDEX p ON t (part)")
    with pytest.raises(InputError, match="already"):
        db.create_index("t", "other", name="P")
    with pytest.raises(NotFoundError, match="vector indexes: i"):
        db.drop_index("p")
    assert [index.name for index in db.indexes()] == ["i"]
    db.execute("DROP INDEX IF EXISTS nothing")
    db.execute("DROP INDEX IF EXISTS i")
    assert db.indexes() == []


def test_an_index_follows_its_column_and_goes_with_it(db: deeplake.Database) -> None:
    fill(db)
    db.create_index("t", "v", lists=20)
    db.execute("ALTER TABLE t RENAME COLUMN v TO w")
    assert [index.column for index in db.indexes()] == ["w"] and len(list_files(db)) == 1
    db.execute("ALTER TABLE t DROP COLUMN w")
    assert db.indexes() == [] and list_files(db) == []
    db.create_index("t", "other")
    db.execute("DROP TABLE t")
    assert db.indexes() == []


def test_what_is_rolled_back_left_index_and_lists_as_they_were(db: deeplake.Database) -> None:
    fill(db)
    with pytest.raises(ZeroDivisionError), db.transaction():
        db.execute("CREATE INDEX i ON t USING ivf (v)")
        raise ZeroDivisionError
    assert db.indexes() == [] and list_files(db) == []
    db.create_index("t", "v")
    with pytest.raises(ZeroDivisionError), db.transaction():
        db.drop_index("t_v_idx")
        raise ZeroDivisionError
    assert len(db.indexes()) == 1 and len(list_files(db)) == 1
    with db.transaction():
        with pytest.raises(ZeroDivisionError), db.transaction():
            db.drop_index("t_v_idx")
            raise ZeroDivisionError
        db.execute("DELETE FROM t WHERE id = 1")
    assert len(db.indexes()) == 1 and len(list_files(db)) == 1
    assert not db.search("t", "v", QUERIES[0], exact=False, nprobe=2).exact


def test_lists_are_made_by_optimize_where_they_are_missing_damaged_or_new(db: deeplake.Database) -> None:
    fill(db)
    with db.transaction():
        db.execute("CREATE INDEX i ON t USING ivf (v)")
    assert list_files(db) == []
    db.optimize()
    (name,) = list_files(db)
    path = next(Path(db.root).rglob(name))
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    db.optimize()
    assert path.read_bytes() == good
    before = path.stat().st_mtime_ns
    db.insert("t", {"v": POINTS, "part": np.zeros(ROWS, np.int64)})
    db.insert("t", {"v": POINTS[:9], "part": np.zeros(9, np.int64)})
    db.optimize()
    assert len(list_files(db)) == 2 and path.stat().st_mtime_ns == before


def test_gc_takes_the_lists_with_their_file(db: deeplake.Database) -> None:
    fill(db)
    db.create_index("t", "v")
    db.execute("DELETE FROM t")
    db.optimize(keep=0)
    garbage = db.gc(dry_run=False, older_than_s=0)
    assert {name.rpartition(".")[2] for name in garbage.files} >= {"npy", "ivf"} and list_files(db) == []


def test_without_faiss_an_index_is_refused_with_the_extra_to_install(
    db: deeplake.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(db, 10)
    monkeypatch.setitem(sys.modules, "faiss", None)
    for make in (lambda: db.create_index("t", "v"), lambda: db.execute("CREATE INDEX i ON t USING ivf (v)")):
        with pytest.raises(InputError, match=r"deeplake-loader\[ann\]"):
            make()
    assert db.indexes() == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"kind": "hnsw"}, "ivf"), ({"metric": "dot"}, "inner"), ({"lists": 0}, "1 to"), ({"lists": True}, "1 to"),
     ({"column": "part"}, "VECTOR columns"), ({"column": "nope"}, "no column")],
)  # fmt: skip
def test_wrong_options_of_create_index_are_refused(db: deeplake.Database, arguments: dict[str, Any], said: str) -> None:
    fill(db, 10)
    with pytest.raises((InputError, NotFoundError), match=said):
        db.create_index("t", **{"column": "v", **arguments})


# -- searches ----------------------------------------------------------------------------------------------------------


def ids(found: Any) -> list[int]:
    return [row.id for row in found]


def brute(points: np.ndarray, live: np.ndarray, query: np.ndarray, metric: str, k: int) -> set[int]:
    """The ids (row number + 1) of the best live rows."""
    scores = np.where(live, truth(points, query, metric), -np.inf)
    return set((np.argsort(-scores, kind="stable")[:k] + 1).tolist())


@pytest.fixture(params=["cosine", "l2", "inner"])
def indexed(request: pytest.FixtureRequest, db: deeplake.Database) -> tuple[deeplake.Database, Any]:
    fill(db)
    db.create_index("t", "v", lists=60, metric=request.param)
    return db, request.param


def test_an_approximate_search_scores_fewer_rows_and_gives_exact_scores(indexed: tuple[Any, Any]) -> None:
    db, metric = indexed
    shares = []
    for query in QUERIES:
        found = db.search("t", "v", query, k=10, metric=metric, exact=False, nprobe=4)
        assert not found.exact and 10 <= found.rows_examined < ROWS / 3 and len(found) == 10
        np.testing.assert_allclose(np.sort(np.abs(truth(POINTS[np.array(ids(found)) - 1], query, metric))),
                                   np.sort(np.abs(found.scores)), rtol=1e-6)  # fmt: skip
        shares.append(len(brute(POINTS, np.ones(ROWS, bool), query, metric, 10) & set(ids(found))) / 10)
    assert 0.5 < np.mean(shares) <= 1


def test_a_wanted_recall_comes_and_all_of_it_is_exact(indexed: tuple[Any, Any]) -> None:
    db, metric = indexed
    everything_ = np.ones(ROWS, bool)
    for wanted in (0.7, 0.95, 1.0):
        found = db.search("t", "v", QUERIES, k=10, metric=metric, exact=False, recall=wanted)
        best = [brute(POINTS, everything_, query, metric, 10) for query in QUERIES]
        share = np.mean([len(truths & set(ids(rows))) / 10 for truths, rows in zip(best, found, strict=True)])
        assert share >= wanted - 0.1
        if wanted == 1.0:
            assert share == 1 and all(rows.exact and rows.rows_examined == ROWS for rows in found)


def test_another_metric_and_plain_searches_do_not_use_the_lists(indexed: tuple[Any, Any]) -> None:
    db, metric = indexed
    other = "l2" if metric == "inner" else "inner"
    for found in (
        db.search("t", "v", QUERIES[0], metric=other, exact=False, nprobe=1),
        db.search("t", "v", QUERIES[0], metric=metric),
    ):
        assert found.exact and found.rows_examined == ROWS


def test_deleted_updated_and_new_rows_are_right_and_a_branch_sees_its_own(db: deeplake.Database) -> None:
    fill(db)
    db.create_index("t", "v", lists=60)
    query = QUERIES[0]
    first = ids(db.search("t", "v", query, k=10, exact=False, nprobe=2))
    db.branch("b")
    db.execute("DELETE FROM t WHERE id = ANY(%s)", [first[:5]])
    db.execute("UPDATE t SET v = %s WHERE id = %s", [-query, first[5]])
    db.execute("INSERT INTO t (id, v) VALUES (%s, %s)", [ROWS + 1, query])  # rests in the catalog: always scanned
    found = db.search("t", "v", query, k=10, exact=False, nprobe=2)
    assert not found.exact and ids(found)[0] == ROWS + 1 and len(found) == 10
    assert not set(ids(found)) & set(first[:6]) and set(first[6:]) <= set(ids(found))
    db.checkout("main")
    assert ids(db.search("t", "v", query, k=10, exact=False, nprobe=2)) == first


@pytest.mark.parametrize(("where", "live"), [("part < 7", lambda i: i % 10 < 7), ("id <= 15", lambda i: i < 15)])
def test_a_filtered_search_is_filtered_and_never_short(db: deeplake.Database, where: str, live: Any) -> None:
    fill(db)
    db.create_index("t", "v", lists=60)
    wanted = live(np.arange(ROWS))
    for query in QUERIES[:4]:
        found = db.search("t", "v", query, k=20, exact=False, nprobe=1, where=where)
        assert len(found) == min(20, wanted.sum()) and wanted[np.array(ids(found)) - 1].all()
        if where == "id <= 15":  # too few for lists
            assert found.exact and set(ids(found)) == set(range(1, 16))
        else:
            assert not found.exact and found.rows_examined < wanted.sum() / 2


def test_more_than_the_nearest_lists_hold_are_topped_up(db: deeplake.Database) -> None:
    fill(db)
    db.create_index("t", "v", lists=60)
    for k in (1, 150, 3_000, ROWS, ROWS + 1):
        found = db.search("t", "v", QUERIES[1], k=k, exact=False, nprobe=1)
        assert len(found) == min(k, ROWS) and found.rows_examined >= min(k, ROWS)
        assert (np.diff(found.scores) <= 0).all()
    assert found.exact


def test_a_query_without_a_score_is_scanned(db: deeplake.Database) -> None:
    fill(db)
    db.create_index("t", "v", lists=60)
    found = db.search("t", "v", np.zeros(WIDTH), k=3, exact=False, nprobe=1)
    assert found.exact and len(found) == 3 and np.isnan(found.scores).all()


def test_damaged_lists_are_told_and_the_search_is_exact(db: deeplake.Database) -> None:
    fill(db)
    db.create_index("t", "v", lists=60)
    path = next(Path(db.root).rglob("*.ivf"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(RuntimeWarning, match=r"db.optimize\(\) makes it again"):
        found = db.search("t", "v", QUERIES[0], exact=False, nprobe=1)
    assert found.exact and set(ids(found)) == brute(POINTS, np.ones(ROWS, bool), QUERIES[0], "cosine", 10)


@pytest.mark.parametrize(
    "options",
    [{"exact": False, "nprobe": 0}, {"exact": False, "nprobe": 1, "recall": 0.5}, {"exact": False, "recall": 1.5},
     {"nprobe": 3}, {"recall": 0.9}, {"exact": False, "nprobe": True}],
)  # fmt: skip
def test_wrong_efforts_are_refused(db: deeplake.Database, options: dict[str, Any]) -> None:
    fill(db, 10)
    with pytest.raises(InputError, match=r"nprobe|recall"):
        db.search("t", "v", QUERIES[0], **options)


def test_real_embeddings_with_duplicates_reach_the_recall_that_was_aimed_at(
    db: deeplake.Database, sample_data: Path
) -> None:
    file = sample_data / "embeddings" / "prompts_minilm_l6_v2_384.npy"
    if not file.is_file():
        pytest.skip(f"no {file}")
    points = np.load(file)
    db.execute(f"CREATE TABLE p (id BIGINT PRIMARY KEY, v VECTOR({points.shape[1]}))")
    db.insert("p", {"v": points})
    assert db.create_index("p", "v", lists=60) == 1
    reports = [measure(db, "p", "v", queries=25, recall=aim) for aim in (0.8, 0.95)]
    assert reports[0].recall > 0.7 and reports[1].recall > 0.85
    assert reports[0].examined < reports[1].examined < len(points)
