"""The main job end to end: tables, inserts, queries across modalities, results, transactions, failures."""

from __future__ import annotations

import datetime as dt
import io
import json
import sqlite3
import tarfile
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from conftest import moving_frames
from PIL import Image as Pillow

import deeplake_loader as deeplake
from deeplake_loader import errors, scalars

pytestmark = pytest.mark.both_catalogs


@pytest.fixture
def db(any_branch: deeplake.Database) -> deeplake.Database:
    """What holds on main holds on every branch."""
    return any_branch


GENERATIONS = """CREATE TABLE generations (id BIGINT PRIMARY KEY, prompt TEXT NOT NULL, clip_embedding VECTOR(8),
    frames VIDEO, thumbnail IMAGE, latent TENSOR(float16, 4, *), model_version TEXT, cfg_scale REAL, steps INTEGER,
    created_at TIMESTAMP)"""
HYBRID = """SELECT prompt, frames, cosine_similarity(clip_embedding, :query_vec) AS score FROM generations
    WHERE model_version = 'sdxl-1.0' AND steps >= 25 ORDER BY score DESC LIMIT 20"""


def fill(db: deeplake.Database, count: int = 200, seed: int = 0) -> np.ndarray:
    """A table of generations without media; returns their (count, 8) embeddings in id order."""
    db.execute(GENERATIONS)
    vectors = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)
    db.insert(
        "generations",
        [
            {
                "prompt": f"p{i}",
                "clip_embedding": vectors[i],
                "model_version": ("sdxl-1.0", "sd3")[i % 2],
                "steps": i % 50,
            }
            for i in range(count)
        ],
    )
    return vectors


def cosine(vectors: np.ndarray, q: np.ndarray) -> np.ndarray:
    a, b = vectors.astype(np.float64), np.asarray(q, np.float64)
    scores: np.ndarray = a @ b / (np.linalg.norm(a, axis=1) * np.linalg.norm(b))
    return scores


def jpeg(seed: int = 0, size: tuple[int, int] = (40, 30)) -> bytes:
    out = io.BytesIO()
    Pillow.fromarray(moving_frames(1, size[1], size[0], seed)[0]).save(out, "JPEG", quality=90)
    return out.getvalue()


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_advertised_page_runs_call_for_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPLAKE_HOME", str(tmp_path))
    db = deeplake.connect("deeplake://my-org/video-pipeline")
    db.execute(GENERATIONS.replace("VECTOR(8)", "VECTOR(768)"))
    prompt_text = "a lighthouse in a storm"
    clip_vector = np.random.default_rng(0).normal(size=768).astype(np.float32)
    frame_tensors = torch.from_numpy(moving_frames(12))
    db.execute(
        """INSERT INTO generations (prompt, clip_embedding, frames, model_version, cfg_scale, steps, created_at)
           VALUES (%s, %s, %s, %s, %s, %s, NOW())""",
        [prompt_text, clip_vector, frame_tensors, "sdxl-1.0", 7.5, 30],
    )
    before = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    rows = db.execute(HYBRID, {"query_vec": clip_vector})
    assert rows.keys() == ("prompt", "frames", "score")
    (row,) = rows
    assert row.prompt == row["prompt"] == row[0] == prompt_text
    assert row.score == pytest.approx(1.0, abs=1e-6)
    assert row.frames.info.num_frames == 12 and row.frames.info.codec == "h264"
    assert row.frames.info.nbytes == len(row.frames.bytes())
    decoded = row.frames.decode(num_frames=12)
    assert decoded.shape == (12, 3, 48, 64) and decoded.dtype == torch.uint8
    assert (decoded.permute(0, 2, 3, 1).float() - frame_tensors.float()).abs().mean() < 6  # H.264 is lossy
    stored = db.execute("SELECT created_at, cfg_scale FROM generations")[0]
    assert abs((before - stored.created_at).total_seconds()) < 60 and stored.cfg_scale == 7.5
    assert (tmp_path / "my-org" / "video-pipeline" / "catalog.sqlite").exists()
    db.close()


def test_the_stores_url_stays_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPLAKE_HOME", str(tmp_path))
    for url in ("deeplake://../x", "deeplake://a//b", "deeplake://", "deeplake://a/..", "deeplake://a\\b"):
        with pytest.raises(errors.InputError):
            deeplake.connect(url)
    with pytest.raises(errors.InputError, match="schema"):
        deeplake.connect("postgresql://host/db?schema=pg_catalog")
    assert list(tmp_path.iterdir()) == []


# -- values in and out -------------------------------------------------------------------------------------------------


def test_every_scalar_type_comes_back_as_postgresqls_python_type(db: deeplake.Database) -> None:
    db.execute("""CREATE TABLE s (id SERIAL PRIMARY KEY, t TEXT, i2 SMALLINT, i4 INTEGER, i8 BIGINT, r REAL,
                  d DOUBLE PRECISION, n NUMERIC(10, 2), b BOOLEAN, ts TIMESTAMP, tz TIMESTAMPTZ, da DATE, j JSON,
                  u UUID, y BYTEA)""")
    values = {
        "t": "é\n'\"", "i2": -3, "i4": 2**31 - 1, "i8": 2**62, "r": 0.5, "d": 1e300, "n": Decimal("1.25"), "b": True,
        "ts": dt.datetime(2026, 1, 2, 3, 4, 5, 678), "tz": dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
        "da": dt.date(2026, 1, 2), "j": {"a": [1, None]}, "u": UUID(int=7), "y": b"\0\xff",
    }  # fmt: skip
    names = list(values)
    marks = ", ".join(["%s"] * len(names))
    db.execute(f"INSERT INTO s ({', '.join(names)}) VALUES ({marks})", list(values.values()))
    db.insert("s", [values])
    db.insert("s", [dict.fromkeys(names)])
    rows = db.execute(f"SELECT {', '.join(names)} FROM s ORDER BY id").fetchall()
    assert rows[0]._asdict() == rows[1]._asdict() == values
    assert set(rows[2]) == {None}
    assert [type(v) for v in rows[0]] == [type(v) for v in values.values()]


@pytest.mark.parametrize(
    "given",
    [
        [0.5, -1, 2, 0, 0, 0, 0, 3],
        np.array([0.5, -1, 2, 0, 0, 0, 0, 3], np.float64),
        torch.tensor([0.5, -1, 2, 0, 0, 0, 0, 3]),
        "[0.5, -1, 2, 0, 0, 0, 0, 3]",
    ],
    ids=["list", "numpy", "torch", "text"],
)
def test_a_vector_may_be_given_in_any_form(db: deeplake.Database, given: Any) -> None:
    db.execute(GENERATIONS)
    db.execute("INSERT INTO generations (prompt, clip_embedding) VALUES (%s, %s)", ["a", given])
    db.insert("generations", [{"prompt": "b", "clip_embedding": given}])
    for row in db.execute(
        "SELECT clip_embedding AS v, cosine_similarity(clip_embedding, %s) AS s FROM generations", [given]
    ):
        assert row.v.tolist() == [0.5, -1, 2, 0, 0, 0, 0, 3] and row.s == pytest.approx(1)
        assert np.asarray(row.v).dtype == np.float32 and len(row.v) == 8


def test_tensors_come_back_bit_for_bit(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, x TENSOR)")
    given = [
        torch.randn(3, 5),
        torch.randn(4, 4).to(torch.bfloat16),
        np.arange(6, dtype=">i4").reshape(2, 3)[:, ::-1],
        torch.tensor(float("nan")),
        np.zeros((0, 3), np.float16),
        torch.tensor([True, False]),
    ]
    for x in given:
        db.execute("INSERT INTO t (x) VALUES (%s)", [x])
    for x, row in zip(given, db.execute("SELECT x FROM t ORDER BY id"), strict=True):
        expected = (
            x
            if isinstance(x, torch.Tensor)
            else torch.from_numpy(np.ascontiguousarray(x).astype(x.dtype.newbyteorder("=")))
        )
        found = row.x.decode()
        assert found.dtype == expected.dtype and found.shape == expected.shape
        assert found.numel() == 0 or found.reshape(-1).view(torch.uint8).equal(expected.reshape(-1).view(torch.uint8))
        assert torch.equal(found, expected) or bool(torch.isnan(found).all())


def test_files_are_stored_untouched(db: deeplake.Database, tmp_path: Path) -> None:
    picture, clip = tmp_path / "p.jpg", tmp_path / "c.mp4"
    picture.write_bytes(jpeg())
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in moving_frames(7):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    db.execute(GENERATIONS)
    insert = "INSERT INTO generations (prompt, frames, thumbnail) VALUES (%s, %s, %s)"
    db.execute(insert, ["path", clip, str(picture)])
    db.execute(insert, ["bytes", clip.read_bytes(), picture.read_bytes()])
    db.insert("generations", [{"prompt": "bulk", "frames": clip, "thumbnail": picture.read_bytes()}])
    rows = db.execute("SELECT frames, thumbnail FROM generations").fetchall()
    assert len(rows) == 3
    for row in rows:
        assert row.frames.bytes() == clip.read_bytes() and row.thumbnail.bytes() == picture.read_bytes()
        assert (row.frames.info.num_frames, row.frames.info.codec, row.frames.info.width) == (7, "mpeg4", 64)
        assert row.thumbnail.decode().shape == (3, 30, 40)
        assert "64x48" in repr(row.frames) and "7 frames" in repr(row.frames)


def test_a_handle_inserted_again_copies_no_bytes(db: deeplake.Database) -> None:
    db.execute(GENERATIONS)
    db.execute("INSERT INTO generations (prompt, thumbnail) VALUES ('a', %s)", [jpeg()])
    handle = db.execute("SELECT thumbnail FROM generations")[0].thumbnail
    db.execute("INSERT INTO generations (prompt, thumbnail) VALUES ('b', %s)", [handle])
    db.insert("generations", [{"prompt": "c", "thumbnail": handle}])
    db.execute("INSERT INTO generations (prompt, thumbnail) SELECT 'd', thumbnail FROM generations WHERE prompt = 'a'")
    handles = {row.thumbnail for row in db.execute("SELECT thumbnail FROM generations")}
    assert handles == {handle}


# -- refusals leave no trace -------------------------------------------------------------------------------------------

BAD = {
    "wrong dimension": ("clip_embedding", [1.0, 2.0], errors.DimensionError, "8"),
    "nan": ("clip_embedding", [float("nan")] * 8, errors.TypeMismatchError, "finite"),
    "text as number": ("steps", "many", errors.TypeMismatchError, "INTEGER"),
    "not an image": ("thumbnail", b"this is text", errors.MediaError, "thumbnail"),
    "half an image": ("thumbnail", jpeg()[:300], errors.MediaError, "thumbnail"),
    "an image as video": ("frames", jpeg(), errors.MediaError, "frames"),
    "wrong tensor dtype": ("latent", np.zeros((4, 2), np.float32), errors.TypeMismatchError, "float16"),
    "wrong tensor shape": ("latent", np.zeros((3, 2), np.float16), errors.DimensionError, "latent"),
    "missing file": ("thumbnail", "/no/such/file.png", errors.DeeplakeError, "no/such"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_refused_by_name_and_leaves_no_trace(db: deeplake.Database, name: str) -> None:
    column, value, kind, words = BAD[name]
    db.execute(GENERATIONS)
    db.execute("INSERT INTO generations (prompt, thumbnail) VALUES ('kept', %s)", [jpeg(9)])
    before = footprint(db)
    with pytest.raises(kind, match=words) as caught:
        db.execute(f"INSERT INTO generations (prompt, {column}) VALUES ('x', %s)", [value])
    assert column in str(caught.value) and "generations" in str(caught.value)
    with pytest.raises(kind, match="row 2"):
        good = db.execute("SELECT * FROM generations")[0][column]
        db.insert(
            "generations",
            [{"prompt": "a", column: good}, {"prompt": "b", column: None}, {"prompt": "c", column: value}],
        )
    with pytest.raises(kind):
        db.executemany(f"INSERT INTO generations (prompt, {column}) VALUES (%s, %s)", [("a", None), ("b", value)])
    assert footprint(db) == before
    assert db.execute("SELECT count(*) FROM generations").scalar() == 1


def outside(db: deeplake.Database, sql: str) -> list[tuple[Any, ...]]:
    """What another tool reads in the catalog's database."""
    if db._catalog.dialect == "sqlite":
        with sqlite3.connect(f"file:{db.root}/catalog.sqlite?mode=ro", uri=True) as other:
            rows = other.execute(sql).fetchall()
        other.close()
        return rows
    import psycopg

    with psycopg.connect(db._catalog.address.conninfo, options="-c search_path=public,_dl") as tool:
        return tool.execute(sql).fetchall()


def footprint(db: deeplake.Database) -> tuple[object, ...]:
    """Everything that a failed statement must not change: bookkeeping rows and the sizes of all files."""
    counts = [outside(db, f"SELECT count(*) FROM _dl_{t}") for t in ("members", "resting", "tail", "commits")]
    counts += outside(db, "SELECT id, count, size, resting FROM _dl_files ORDER BY id")
    sizes = sorted((str(p), p.stat().st_size) for p in Path(db.root).rglob("*.tar"))
    return (counts, sizes)


def test_constraints_are_the_databases_own(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE p (id BIGINT PRIMARY KEY, name TEXT UNIQUE NOT NULL, n INTEGER CHECK (n < 10))")
    db.execute("CREATE TABLE c (id BIGINT PRIMARY KEY, p BIGINT REFERENCES p (id))")
    db.execute("INSERT INTO p (name, n) VALUES ('a', 1)")
    for statement in (
        "INSERT INTO p (name) VALUES ('a')",
        "INSERT INTO p (name) VALUES (NULL)",
        "INSERT INTO p (name, n) VALUES ('b', 10)",
        "INSERT INTO p (id, name) VALUES (1, 'b')",
        "INSERT INTO c (p) VALUES (7)",
    ):
        with pytest.raises(errors.ConstraintError):
            db.execute(statement)
    with pytest.raises(errors.ConstraintError):
        db.insert("p", [{"name": "x"}, {"name": "a"}])
    assert db.execute("SELECT name FROM p").fetchall() == [("a",)]


def test_unknown_tables_columns_and_parameters_are_named(db: deeplake.Database) -> None:
    db.execute(GENERATIONS)
    with pytest.raises(errors.DeeplakeError, match="nothing_here"):
        db.execute("SELECT * FROM nothing_here")
    with pytest.raises(errors.DeeplakeError, match="promt"):
        db.execute("SELECT promt FROM generations")
    with pytest.raises(errors.NotFoundError, match="promt"):
        db.insert("generations", [{"promt": "x"}])
    with pytest.raises(errors.NotFoundError, match="nothing"):
        db.insert("nothing", [{"a": 1}])
    with pytest.raises(errors.InputError, match="2 placeholders"):
        db.execute("SELECT * FROM generations WHERE steps > %s AND steps < %s", [1])
    with pytest.raises(errors.InputError, match="lo"):
        db.execute("SELECT * FROM generations WHERE steps > :lo", {"hi": 1})


# -- writing -----------------------------------------------------------------------------------------------------------


def test_rowcount_returning_and_ids_are_right(db: deeplake.Database) -> None:
    db.execute(GENERATIONS)
    one = db.execute("INSERT INTO generations (prompt, steps) VALUES ('a', 1)")
    assert (one.rowcount, one.lastrowid) == (1, 1)
    more = db.execute("INSERT INTO generations (prompt, steps) VALUES ('b', 2), ('c', 3) RETURNING id, prompt")
    assert more.fetchall() == [(2, "b"), (3, "c")] and more.rowcount == 2
    assert db.execute("UPDATE generations SET steps = steps + 1 WHERE steps >= %s", [2]).rowcount == 2
    assert db.execute("DELETE FROM generations WHERE id = 99").rowcount == 0
    upsert = """INSERT INTO generations (id, prompt, steps) VALUES (%s, %s, %s)
                ON CONFLICT (id) DO UPDATE SET prompt = EXCLUDED.prompt RETURNING id, prompt, steps"""
    assert db.execute(upsert, [1, "z", 9]).fetchall() == [(1, "z", 1)]
    assert db.executemany("UPDATE generations SET steps = %s WHERE id = %s", [(7, 1), (8, 2), (9, 77)]).rowcount == 2
    with pytest.raises(errors.InputError, match="RETURNING"):
        one.fetchall()


def test_ids_are_never_given_twice(db: deeplake.Database) -> None:
    db.execute(GENERATIONS)
    db.insert("generations", [{"prompt": str(i)} for i in range(3)])
    db.execute("DELETE FROM generations WHERE id = 3")
    db.insert("generations", [{"prompt": "bulk"}])
    db.execute("INSERT INTO generations (prompt) VALUES ('single')")
    assert db.execute("SELECT id FROM generations ORDER BY id").fetchall() == [(1,), (2,), (4,), (5,)]


def test_bulk_insert_takes_what_the_field_uses(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, a TEXT, x DOUBLE PRECISION, v VECTOR(2), d INTEGER DEFAULT 5)")
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    table = pa.table({
        "a": ["p", "q", None],
        "x": [1.5, None, 2.5],
        "v": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 2),
    })  # fmt: skip
    frame = pd.DataFrame({"a": ["p", "q", None], "x": [1.5, float("nan"), 2.5], "v": list(vectors)})
    dicts = [{"a": a, "x": x, "v": v} for a, x, v in zip(["p", "q", None], [1.5, None, 2.5], vectors, strict=True)]
    columns = {"a": ["p", "q", None], "x": [1.5, None, 2.5], "v": vectors}
    for rows in (table, table.to_batches()[0], table.to_reader(), frame, dicts, iter(dicts), columns):
        assert db.insert("t", rows) == 3
        found = db.execute("SELECT a, x, v, d FROM t ORDER BY id").fetchall()
        assert [(r.a, r.x, r.v.tolist(), r.d) for r in found] == [
            ("p", 1.5, [0, 1], 5), ("q", None, [2, 3], 5), (None, 2.5, [4, 5], 5),
        ]  # fmt: skip
        db.execute("DELETE FROM t")
    assert db.insert("t", []) == 0
    assert db.insert("t", db.execute("SELECT a, x FROM t")) == 0


@pytest.mark.parametrize("any_branch", ["main"], indirect=True)
def test_bulk_insert_with_ids_of_ones_own_keeps_constraints_and_log(db: deeplake.Database) -> None:
    db.execute(GENERATIONS)
    db.insert("generations", [{"id": i, "prompt": str(i)} for i in (5, 3, 9)])
    with pytest.raises(errors.ConstraintError):
        db.insert("generations", [{"id": 10, "prompt": "x"}, {"id": 3, "prompt": "again"}])
    db.insert("generations", [{"prompt": "next"}, {"prompt": "after"}])
    assert db.execute("SELECT id FROM generations ORDER BY id").fetchall() == [(3,), (5,), (9,), (10,), (11,)]
    logged = outside(db, "SELECT DISTINCT id FROM _dl_log_generations WHERE _dl_op = 'I' ORDER BY id")
    assert logged == [(3,), (5,), (9,), (10,), (11,)]
    assert outside(db, "SELECT bulk FROM _dl_head") == [(0,)]


@pytest.mark.parametrize("any_branch", ["main"], indirect=True)
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "float64", "object"])
def test_bulk_insert_takes_ids_of_any_array_with_the_same_log(db: deeplake.Database, dtype: str) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, a INTEGER)")
    for ids in ([3, 4], [9, 7], [5, 1], []):  # above what is there, out of order, below it, none
        db.insert("t", {"id": np.array(ids, dtype), "a": np.array(ids, "int32")})
    for taken in ([1, 20], [21, 21]):
        with pytest.raises(errors.ConstraintError):
            db.insert("t", {"id": np.array(taken, dtype)})
    logged = outside(db, "SELECT id, _dl_op FROM _dl_log_t ORDER BY id")
    assert logged == [(i, "I") for i in (1, 3, 4, 5, 7, 9)]
    assert db.execute("SELECT id, a FROM t ORDER BY id").fetchall() == [(i, i) for i in (1, 3, 4, 5, 7, 9)]


@pytest.mark.parametrize("any_branch", ["main"], indirect=True)
def test_the_documents_of_a_bulk_insert_are_what_json_writes_of_each_row(db: deeplake.Database) -> None:
    db.execute("""CREATE TABLE t (id BIGINT PRIMARY KEY, "100%s" TEXT, "sa""id" DOUBLE PRECISION, raw BYTEA, ok BOOLEAN,
                  v VECTOR(2), "w,é" VECTOR(2), n INTEGER DEFAULT 5, x BLOB)""")
    texts = ["plain", "two\nlines", 'quo"te\\', "é😀\u2028\x85", "%s %d", "", None]
    numbers = [0.1, float("inf"), -float("inf"), 1e300, None, -0.0, 2.0]
    columns = {
        "100%s": texts, 'sa"id': numbers, "raw": [b"\0\n", None, b"", *[b"x"] * 4],
        "ok": [True, False, None, *[True] * 4], "v": np.ones((7, 2), "f4"), "w,é": [None, *[[1, 2]] * 6],
        "x": [b"1", None, *[b"\n"] * 5],
    }  # fmt: skip
    db.insert("t", columns)
    db.insert("t", {"x": [b"alone"]})
    db.optimize()
    found = []
    for path in sorted(Path(db.root).glob("shards/t/*.tar")):
        with tarfile.open(path) as archive:
            found += [archive.extractfile(m).read().decode() for m in archive if m.name.endswith(".json")]
    columns = '"100%s", "sa""id", raw, ok, v, "w,é", id, n'
    stored = outside(db, f"SELECT {columns} FROM t WHERE x IS NOT NULL ORDER BY id")
    documents = [json.loads(text) for text in found]
    for document, (text, number, raw, ok, v, w, key, n), text_found in zip(documents, stored, found, strict=True):
        expected = {"id": key, "100%s": text, 'sa"id': scalars.jsonable(number), "raw": scalars.jsonable(raw), "ok": ok}
        expected |= {"n": n}
        if db._catalog.dialect == "sqlite":  # elsewhere the database itself holds vectors
            expected |= {"_dl": {"v": v, "w,é": w}}
        if text_found is found[-1]:
            expected = {"id": key, "100%s": None, 'sa"id': None, "raw": None, "ok": None, "n": 5}
        assert document == expected
        assert text_found == json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def test_arrays_may_change_once_insert_returned(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, v VECTOR(64))")
    given = np.random.default_rng(1).standard_normal((9_000, 64), np.float32)
    kept = given.copy()
    with db.transaction():
        for _ in range(3):
            given[:] = kept
            db.insert("t", {"v": given})
            given[:] = 7
    found = db.execute("SELECT v FROM t ORDER BY id")
    assert np.array_equal([row.v.array() for row in found], np.concatenate([kept] * 3))


def test_a_transaction_commits_together_or_not_at_all(db: deeplake.Database) -> None:
    db.execute(GENERATIONS)
    with pytest.raises(RuntimeError), db.transaction():
        db.execute(
            "INSERT INTO generations (prompt, thumbnail, clip_embedding) VALUES ('a', %s, %s)", [jpeg(), [1.0] * 8]
        )
        db.insert("generations", [{"prompt": "b", "thumbnail": jpeg(2), "clip_embedding": [2.0] * 8}])
        inside = db.execute("SELECT thumbnail, clip_embedding FROM generations ORDER BY id").fetchall()
        assert [r.thumbnail.bytes() for r in inside] == [jpeg(), jpeg(2)]
        assert [r.clip_embedding.tolist()[0] for r in inside] == [1, 2]
        raise RuntimeError
    assert db.execute("SELECT count(*) FROM generations").scalar() == 0
    with db.transaction():
        db.execute("INSERT INTO generations (prompt, clip_embedding) VALUES ('c', %s)", [[3.0] * 8])
        with pytest.raises(errors.ConstraintError), db.transaction():
            db.execute("INSERT INTO generations (prompt, clip_embedding) VALUES ('d', %s)", [[4.0] * 8])
            db.execute("INSERT INTO generations (id, prompt) SELECT id, 'e' FROM generations LIMIT 1")
    (row,) = db.execute("SELECT prompt, clip_embedding FROM generations")
    assert row.prompt == "c" and row.clip_embedding.tolist() == [3.0] * 8


def test_a_blob_and_a_vector_can_be_replaced(db: deeplake.Database) -> None:
    db.execute(GENERATIONS)
    db.insert(
        "generations", [{"prompt": str(i), "thumbnail": jpeg(i), "clip_embedding": [i + 1.0] * 8} for i in range(3)]
    )
    db.execute("UPDATE generations SET thumbnail = %s, clip_embedding = %s WHERE id = 2", [jpeg(50), [-1.0] * 8])
    rows = db.execute("SELECT thumbnail, clip_embedding FROM generations ORDER BY id").fetchall()
    assert [r.thumbnail.bytes() for r in rows] == [jpeg(0), jpeg(50), jpeg(2)]
    assert [r.clip_embedding.tolist()[0] for r in rows] == [1, -1, 3]


def test_the_json_member_holds_the_row_as_inserted(db: deeplake.Database) -> None:
    import json
    import tarfile

    db.execute(
        "CREATE TABLE t (id BIGINT PRIMARY KEY, a TEXT, n INTEGER DEFAULT 7, at TIMESTAMP DEFAULT NOW(), x IMAGE)"
    )
    db.execute("INSERT INTO t (a, x) VALUES ('single', %s)", [jpeg()])
    db.insert("t", [{"a": "bulk", "x": jpeg(i)} for i in range(2)])
    rows = db.execute("SELECT id, a, n, at FROM t ORDER BY id").fetchall()
    db.optimize()
    described = {}
    for path in Path(db.root).rglob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    data = json.load(tar.extractfile(member))  # type: ignore[arg-type]
                    described[data["id"]] = (data["a"], data["n"], data["at"])
    assert described == {r.id: (r.a, r.n, r.at.strftime("%Y-%m-%d %H:%M:%S.%f")) for r in rows}


# -- asking ------------------------------------------------------------------------------------------------------------


def test_the_hybrid_query_equals_brute_force(db: deeplake.Database) -> None:
    vectors = fill(db, 400)
    q = np.random.default_rng(5).normal(size=8).astype(np.float32)
    scores = cosine(vectors, q)
    passing = [i for i in range(400) if i % 2 == 0 and i % 50 >= 25]
    expected = sorted(passing, key=lambda i: -scores[i])[:20]
    for _ in range(2):  # resting vectors, then sealed ones
        rows = db.execute(HYBRID, {"query_vec": q})
        assert [r.prompt for r in rows] == [f"p{i}" for i in expected]
        assert [r.score for r in rows] == pytest.approx([scores[i] for i in expected], abs=1e-6)
        db.optimize()


def test_scores_are_right_in_every_place_of_a_statement(db: deeplake.Database) -> None:
    vectors = fill(db, 60)
    q, p = np.ones(8, np.float32), np.arange(8, dtype=np.float32)
    sq, sp = cosine(vectors, q), cosine(vectors, p)
    l2 = np.linalg.norm(vectors.astype(np.float64) - q, axis=1)

    def ids(sql: str, **params: Any) -> list[int]:
        return [r[0] - 1 for r in db.execute(sql, params)]

    assert sorted(ids("SELECT id FROM generations WHERE cosine_similarity(clip_embedding, :q) > 0.3", q=q)) == [
        i for i in range(60) if sq[i] > 0.3
    ]
    both = ids("SELECT id FROM generations ORDER BY cosine_similarity(clip_embedding, :q) + "
               "cosine_similarity(clip_embedding, :p) DESC LIMIT 5", q=q, p=p)  # fmt: skip
    assert both == np.argsort(-(sq + sp))[:5].tolist()
    assert ids("SELECT id FROM generations ORDER BY clip_embedding <-> :q LIMIT 7", q=q) == np.argsort(l2)[:7].tolist()
    assert ids("SELECT id FROM generations ORDER BY clip_embedding <=> :q LIMIT 7", q=q) == np.argsort(-sq)[:7].tolist()
    assert ids("SELECT id FROM generations ORDER BY clip_embedding <#> :q LIMIT 7", q=q) == (
        np.argsort(-(vectors @ q))[:7].tolist()
    )
    groups = db.execute("""SELECT model_version, max(cosine_similarity(clip_embedding, :q)) AS best FROM generations
                           GROUP BY model_version ORDER BY model_version""", {"q": q})  # fmt: skip
    assert [g.best for g in groups] == pytest.approx([max(sq[1::2]), max(sq[0::2])], abs=1e-6)
    pairs = db.execute("""SELECT a.id, b.id, cosine_similarity(a.clip_embedding, b.clip_embedding) AS s
                          FROM generations a JOIN generations b ON a.id < b.id ORDER BY s DESC LIMIT 3""")  # fmt: skip
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    upper = np.triu(unit.astype(np.float64) @ unit.T, 1) + np.tril(np.full((60, 60), -2.0))
    best = np.dstack(np.unravel_index(np.argsort(-upper, axis=None)[:3], (60, 60)))[0]
    assert [(r[0] - 1, r[1] - 1) for r in pairs] == [tuple(b) for b in best.tolist()]
    literal = db.execute(
        "SELECT cosine_similarity(clip_embedding, '[1,1,1,1,1,1,1,1]') AS s FROM generations ORDER BY id"
    )
    assert [r.s for r in literal] == pytest.approx(sq.tolist(), abs=1e-6)


def test_rows_without_a_score_sort_last_unless_asked_first(db: deeplake.Database) -> None:
    db.execute(GENERATIONS)
    for vector in ([1.0] + [0.0] * 7, None, [0.0] * 8, [0.5, 0.5] + [0.0] * 6):
        db.execute("INSERT INTO generations (prompt, clip_embedding) VALUES ('x', %s)", [vector])
    q = {"q": [1.0] + [0.0] * 7}
    sql = "SELECT id, cosine_similarity(clip_embedding, :q) AS s FROM generations ORDER BY s {} LIMIT 4"
    for order in ("DESC", "ASC", "DESC NULLS LAST"):
        rows = db.execute(sql.format(order), q).fetchall()
        assert {r.id for r in rows[2:]} == {2, 3} and [r.s for r in rows[2:]] == [None, None]
    first = db.execute(sql.format("DESC NULLS FIRST"), q).fetchall()
    assert {r.id for r in first[:2]} == {2, 3}


def test_limits_offsets_and_dimensions_have_defined_outcomes(db: deeplake.Database) -> None:
    vectors = fill(db, 30)
    q = np.ones(8, np.float32)
    order = np.argsort(-cosine(vectors, q)).tolist()
    sql = "SELECT id FROM generations ORDER BY cosine_similarity(clip_embedding, :q) DESC LIMIT :k OFFSET :o"

    def ids(k: int | None, o: int) -> list[int]:
        return [r.id - 1 for r in db.execute(sql, {"q": q, "k": k, "o": o})]

    assert ids(0, 0) == [] and ids(5, 3) == order[3:8] and ids(100, 0) == order and ids(5, 28) == order[28:]
    assert ids(5, 99) == [] and ids(10**12, 0) == order and ids(None, 25) == order[25:]
    with pytest.raises(errors.DimensionError, match="8"):
        db.execute(sql, {"q": [1.0, 2.0], "k": 1, "o": 0})
    with pytest.raises(errors.DimensionError):
        db.execute("SELECT cosine_similarity(clip_embedding, '[1,2]') FROM generations")
    with pytest.raises(errors.TypeMismatchError):
        db.execute(sql, {"q": [float("nan")] * 8, "k": 1, "o": 0})


def test_search_is_the_same_engine_without_sql(db: deeplake.Database) -> None:
    vectors = fill(db, 100)
    q = np.ones(8, np.float32)
    scores = cosine(vectors, q)
    passing = [i for i in range(100) if i % 50 >= 25]
    found = db.search("generations", "clip_embedding", q, k=5, where="steps >= :lo", params={"lo": 25})

    assert [r.id - 1 for r in found] == sorted(passing, key=lambda i: -scores[i])[:5]
    batch = db.search("generations", "clip_embedding", np.stack([q, -q]), k=3)
    assert [r.id - 1 for r in batch[1]] == np.argsort(scores)[:3].tolist()
    nearest = db.search("generations", "clip_embedding", vectors[7], k=1, metric="l2")
    assert (nearest[0].id, nearest[0].score) == (8, 0)


# -- results -----------------------------------------------------------------------------------------------------------


def test_rows_are_tuples_with_attributes_and_keys(db: deeplake.Database) -> None:
    fill(db, 3)
    rows = db.execute("SELECT id, prompt, count(*) OVER () AS count FROM generations ORDER BY id")
    assert rows[0] == (1, "p0", 3) and rows[0].count == 3 and dict(rows[0]) == {"id": 1, "prompt": "p0", "count": 3}
    assert rows.fetchone() == (1, "p0", 3) and rows.fetchmany(1) == [(2, "p1", 3)] and len(rows.fetchall()) == 1
    assert rows.fetchone() is None and len(list(rows)) == 3 and rows[-1].id == 3 and len(rows[1:]) == 2
    with pytest.raises(AttributeError, match="prompt"):
        _ = rows[0].nothing
    with pytest.raises(KeyError, match="prompt"):
        _ = rows[0]["nothing"]


def test_results_go_to_arrow_and_pandas(db: deeplake.Database) -> None:
    vectors = fill(db, 5)
    db.execute("UPDATE generations SET thumbnail = %s WHERE id = 1", [jpeg()])
    db.execute("UPDATE generations SET clip_embedding = NULL WHERE id = 2")
    rows = db.execute("SELECT id, prompt, clip_embedding, thumbnail, steps > 2 AS late FROM generations ORDER BY id")
    table = rows.to_arrow()
    assert table.column("id").to_pylist() == [1, 2, 3, 4, 5] and str(table.schema.field("late").type) == "bool"
    found = table.column("clip_embedding").to_pylist()
    assert found[1] is None and np.allclose(found[0], vectors[0])
    place = table.column("thumbnail").to_pylist()
    assert place[1:] == [None] * 4 and set(place[0]) == {"url", "key", "offset", "length"}
    assert place[0]["length"] == len(jpeg())
    frame = rows.to_pandas()
    assert frame["prompt"].tolist() == ["p0", "p1", "p2", "p3", "p4"]
    assert np.allclose(frame["clip_embedding"][0], vectors[0]) and frame["clip_embedding"][1] is None
    assert frame["thumbnail"][0].bytes() == jpeg()
    assert db.execute("SELECT id FROM generations WHERE false").to_pandas().shape == (0, 1)


# -- handles and processes ---------------------------------------------------------------------------------------------


def test_what_one_handle_commits_another_reads(tmp_path: Path) -> None:
    with deeplake.connect(tmp_path) as a, deeplake.connect(tmp_path) as b:
        vectors = fill(a, 20)
        q = vectors[3]
        assert b.search("generations", "clip_embedding", q, k=1)[0].id == 4
        a.insert("generations", [{"prompt": "new", "clip_embedding": q * 2, "thumbnail": jpeg()}])
        assert {r.id for r in b.search("generations", "clip_embedding", q, k=2)} == {4, 21}
        assert b.execute("SELECT thumbnail FROM generations WHERE id = 21")[0].thumbnail.bytes() == jpeg()
        b.execute("INSERT INTO generations (prompt, thumbnail) VALUES ('b', %s)", [jpeg(3)])
        a.optimize()
        b.optimize()
        assert a.execute("SELECT thumbnail FROM generations WHERE id = 22")[0].thumbnail.bytes() == jpeg(3)


def test_threads_may_share_a_handle(db: deeplake.Database) -> None:
    vectors = fill(db, 50)
    failures: list[BaseException] = []

    def work(n: int) -> None:
        try:
            for i in range(20):
                db.execute("INSERT INTO generations (prompt, clip_embedding) VALUES (%s, %s)", [f"{n}-{i}", vectors[n]])
                assert len(db.execute(HYBRID, {"query_vec": vectors[n]})) <= 20
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert db.execute("SELECT count(*) FROM generations").scalar() == 130


def test_a_read_only_handle_reads_and_refuses_to_write(tmp_path: Path) -> None:
    with deeplake.connect(tmp_path) as db:
        fill(db, 10)
    with deeplake.connect(tmp_path, read_only=True) as db:
        assert len(db.search("generations", "clip_embedding", [1.0] * 8, k=3)) == 3
        with pytest.raises(errors.StoreError, match="read-only"):
            db.execute("DELETE FROM generations")
    with pytest.raises(errors.NotFoundError):
        deeplake.connect(tmp_path / "nothing", create=False)


@pytest.mark.parametrize("any_branch", ["main"], indirect=True)
def test_tables_change_and_keep_their_rows(db: deeplake.Database) -> None:
    vectors = fill(db, 5)
    db.execute("ALTER TABLE generations ADD COLUMN rating INTEGER DEFAULT 3")
    db.execute("ALTER TABLE generations ADD COLUMN t5 VECTOR(2)")
    db.execute("UPDATE generations SET t5 = %s, rating = 5 WHERE id = 1", [[1, 0]])
    rows = db.execute("SELECT id, rating, t5, clip_embedding FROM generations ORDER BY id").fetchall()
    assert [r.rating for r in rows] == [5, 3, 3, 3, 3] and rows[0].t5.tolist() == [1, 0] and rows[1].t5 is None
    assert np.allclose(rows[4].clip_embedding.array(), vectors[4])
    db.execute("CREATE UNIQUE INDEX by_prompt ON generations (prompt)")
    with pytest.raises(errors.ConstraintError):
        db.execute("INSERT INTO generations (prompt) VALUES ('p1')")
    db.execute("CREATE TABLE IF NOT EXISTS generations (id BIGINT PRIMARY KEY)")
    assert len(db.tables()["generations"].columns) == 12
    db.execute("DROP TABLE generations")
    db.execute("DROP TABLE IF EXISTS generations")
    assert dict(db.tables()) == {}
    catalog = {"sqlite": "SELECT name FROM sqlite_master", "postgres": "SELECT relname FROM pg_class"}
    assert not [name for (name,) in outside(db, catalog[db._catalog.dialect]) if "generations" in name]


@pytest.mark.sqlite_only("its types: elsewhere a vector column holds the vector")
@pytest.mark.parametrize("any_branch", ["main"], indirect=True)
def test_other_tools_see_an_ordinary_table(db: deeplake.Database) -> None:
    fill(db, 4)
    with sqlite3.connect(f"{db.root}/catalog.sqlite") as other:
        assert other.execute("SELECT prompt, steps FROM generations WHERE id = 2").fetchall() == [("p1", 1)]
        other.execute("INSERT INTO generations (prompt, steps) VALUES ('by hand', 99)")
        with pytest.raises(sqlite3.IntegrityError):
            other.execute("INSERT INTO generations (prompt, clip_embedding) VALUES ('x', 'not an address')")
    other.close()
    assert db.execute("SELECT prompt FROM generations WHERE steps = 99").scalar() == "by hand"


def test_values_never_reach_the_parser(db: deeplake.Database) -> None:
    fill(db, 2)
    nasty = "'); DROP TABLE generations; -- %s :x ? \""
    db.execute("INSERT INTO generations (prompt) VALUES (%s)", [nasty])
    db.insert("generations", [{"prompt": nasty}])
    assert db.execute("SELECT count(*) FROM generations WHERE prompt = :p", {"p": nasty}).scalar() == 2


def test_a_stream_cannot_begin_inside_a_transaction(db: deeplake.Database) -> None:
    fill(db, 4)
    with pytest.raises(errors.InputError, match="transaction"), db.transaction():
        db.stream("SELECT prompt FROM generations", batch_size=2)
    assert sum(len(batch["prompt"]) for batch in db.stream("SELECT prompt FROM generations", batch_size=2)) == 4


def test_an_interval_comes_back_as_a_timedelta(db: deeplake.Database) -> None:
    row = db.execute("SELECT now() - (now() - INTERVAL '2 days 3 hours') AS a, INTERVAL '1 month' AS b")[0]
    assert row.a == dt.timedelta(days=2, hours=3) and row.b == dt.timedelta(days=30)
    later = db.execute("SELECT TIMESTAMP '2026-01-01' + %s AS t", [dt.timedelta(hours=5)]).scalar()
    assert later == dt.datetime(2026, 1, 1, 5)


@pytest.mark.sqlite_only("elsewhere the database itself holds vectors, and winners are found by key")
def test_a_vector_columns_index_comes_and_goes_with_the_column(db: deeplake.Database) -> None:
    def indexes() -> set[str]:
        with sqlite3.connect(f"{db.root}/catalog.sqlite") as other:
            rows = other.execute(
                "SELECT name FROM sqlite_master WHERE type = 'index' AND name LIKE '\\_dl\\_vector.t.%' ESCAPE '\\'"
            )
            return {name for (name,) in rows}

    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, v VECTOR(2))")
    assert indexes() == {"_dl_vector.t.v"}
    db.execute("ALTER TABLE t ADD COLUMN w VECTOR(3)")
    assert indexes() == {"_dl_vector.t.v", "_dl_vector.t.w"}
    db.execute("ALTER TABLE t RENAME COLUMN v TO u")
    assert indexes() == {"_dl_vector.t.u", "_dl_vector.t.w"}
    db.execute("ALTER TABLE t DROP COLUMN u")
    assert indexes() == {"_dl_vector.t.w"}
    db.execute("INSERT INTO t (w) VALUES ('[1, 2, 3]')")
    assert db.search("t", "w", [1, 2, 3], k=1)[0].score == pytest.approx(1)


def test_a_handle_of_another_type_or_store_is_checked_like_any_value(db: deeplake.Database, tmp_path: Path) -> None:
    db.execute("CREATE TABLE a (id BIGINT PRIMARY KEY, picture IMAGE, clip VIDEO, x TENSOR(float32, 2))")
    db.execute("CREATE TABLE b (id BIGINT PRIMARY KEY, x TENSOR(float16, 4))")
    values = {"picture": jpeg(), "clip": moving_frames(3), "x": np.ones(2, np.float32)}
    db.insert("a", [values])
    row = db.execute("SELECT picture, clip, x FROM a")[0]
    for statement, wrong in (
        ("INSERT INTO a (picture) VALUES (%s)", row.clip),
        ("INSERT INTO b (x) VALUES (%s)", row.x),
    ):
        with pytest.raises(errors.InputError):
            db.execute(statement, [wrong])
    with pytest.raises(errors.MediaError):
        db.insert("a", [{"picture": row.clip}])
    with pytest.raises(errors.InputError):
        db.insert("b", [{"x": row.x}])
    with deeplake.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE a (id BIGINT PRIMARY KEY, picture IMAGE, clip VIDEO, x TENSOR(float32, 2))")
        other.insert("a", [row._asdict()])
        other.execute("INSERT INTO a (picture, clip, x) VALUES (%s, %s, %s)", list(row))
        for copy in other.execute("SELECT picture, clip, x FROM a"):
            assert copy.picture.bytes() == jpeg() and copy.clip.bytes() == row.clip.bytes()
            assert copy.x.array().tolist() == [1, 1]
