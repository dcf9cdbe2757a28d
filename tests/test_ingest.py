"""db.ingest: other people's files become rows, each once, and what cannot is listed."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image, PngImagePlugin
from tars import tar

import deeplake_loader as deeplake
from deeplake_loader.errors import CorruptionError, DimensionError, InputError, NotFoundError, StoreError
from deeplake_loader.ingest import infer
from deeplake_loader.ingest.generations import read_graph, settings
from deeplake_loader.ingest.sources import expand_braces

pytestmark = pytest.mark.both_catalogs


def jpeg(seed: int, size: int = 24) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def samples(start: int, count: int) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for i in range(start, start + count):
        found[f"{i:04d}.jpg"] = jpeg(i)
        found[f"{i:04d}.txt"] = f"caption {i}".encode()
        found[f"{i:04d}.json"] = json.dumps({"width": i, "score": i / 2}).encode()
        found[f"{i:04d}.clip.npy"] = npy(np.arange(4, dtype=np.float32) + i)
    return found


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return [tar(tmp_path / f"train-{n:02d}.tar", samples(10 * n, 10)) for n in range(3)]


@pytest.fixture
def pattern(shards: list[Path]) -> str:
    return str(shards[0].parent / "train-{00..02}.tar")


def stored(db: deeplake.Database) -> int:
    return sum(os.path.getsize(os.path.join(f, n)) for f, _, found in os.walk(Path(db.root) / "shards") for n in found)


# -- tars --------------------------------------------------------------------------------------------------------------


def test_adopted_tars_hold_what_webdataset_reads_and_are_not_copied(
    db: deeplake.Database, shards: list[Path], pattern: str
) -> None:
    report = db.ingest("photos", pattern)
    assert (report.added, report.present, report.skipped, report.unused) == (30, 0, (), {})
    assert stored(db) == 0
    rows = db.execute("SELECT key, jpg, txt, width, score, clip FROM photos ORDER BY id")
    expected = list(webdataset.WebDataset([str(p) for p in shards], shardshuffle=False))
    for row, sample in zip(rows, expected, strict=True):
        assert (row.key, row.jpg.bytes(), row.txt.encode()) == (sample["__key__"], sample["jpg"], sample["txt"])
        document = json.loads(sample["json"])
        assert (row.width, row.score) == (document["width"], document["score"])
        assert np.array_equal(row.clip.array(), np.load(io.BytesIO(sample["clip.npy"])))
        assert row.jpg.info.width == 24


def test_adopted_samples_stream_like_inserted_ones(db: deeplake.Database, shards: list[Path], pattern: str) -> None:
    db.ingest("photos", pattern)
    batches = list(db.stream("SELECT jpg, width FROM photos", batch_size=8, shuffle=True, seed=1))
    assert sorted(int(w) for b in batches for w in b["width"]) == list(range(30))
    assert batches[0]["jpg"].shape[1:] == (3, 24, 24)


def test_running_twice_adds_nothing(db: deeplake.Database, pattern: str) -> None:
    db.ingest("photos", pattern)
    again = db.ingest("photos", pattern)
    assert (again.added, again.present) == (0, 30)
    assert db.execute("SELECT count(*) FROM photos").scalar() == 30


def test_an_interrupted_ingestion_goes_on_where_it_was(db: deeplake.Database, shards: list[Path], pattern: str) -> None:
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[:9_100])
    with pytest.raises(CorruptionError, match=r"train-01\.tar.*nothing of it was taken in"):
        db.ingest("photos", pattern, schema=str(infer(shards[0], table="photos").sql()))
    assert db.execute("SELECT count(*) FROM photos").scalar() == 10
    shards[1].write_bytes(whole)
    report = db.ingest("photos", pattern)
    assert (report.added, report.present) == (20, 10)


def test_a_source_that_is_skipped_leaves_nothing_and_is_listed(
    db: deeplake.Database, shards: list[Path], pattern: str
) -> None:
    shards[1].write_bytes(shards[1].read_bytes()[:9_100])
    report = db.ingest("photos", pattern, on_error="skip")
    assert report.added == 20 and [Path(s.source).name for s in report.skipped] == ["train-01.tar"]
    assert "skipped" in str(report) and "nothing of it was taken in" in str(report)


def test_the_table_is_shown_before_it_is_made(db: deeplake.Database, pattern: str) -> None:
    report = db.ingest("photos", pattern, dry_run=True)
    assert report.schema == str(infer(pattern, table="photos")) and '"clip" VECTOR(4)' in report.schema
    assert "photos" not in db.tables() and report.added == 0


def test_a_given_table_takes_the_columns_it_names(db: deeplake.Database, pattern: str) -> None:
    db.execute("CREATE TABLE pictures (name TEXT PRIMARY KEY, jpg IMAGE, caption TEXT)")
    report = db.ingest("pictures", pattern, columns={"name": "__key__", "jpg": "jpg", "caption": "txt"})
    assert report.added == 30 and report.unused == {"clip.npy": 30, "json": 30}
    assert list(db.execute("SELECT name, caption FROM pictures ORDER BY name LIMIT 1")[0]) == ["0000", "caption 0"]
    db.ingest("few", pattern, schema={"key": "TEXT", "width": "INTEGER"})
    assert [str(c.type) for c in db.tables()["few"].columns if c.name != "id"] == ["TEXT", "INTEGER"]


def test_a_key_column_keeps_rows_that_are_there_from_coming_again(db: deeplake.Database, tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", samples(0, 6))
    tar(tmp_path / "b.tar", samples(4, 6))
    db.ingest("photos", tmp_path / "a.tar", key="key")
    report = db.ingest("photos", tmp_path / "b.tar", key="key")
    assert (report.added, report.present) == (4, 2)


def test_members_apart_in_the_archive_make_one_row(db: deeplake.Database, tmp_path: Path) -> None:
    pictures = {f"{i}.jpg": jpeg(i) for i in range(5)}
    texts = {f"{i}.txt": str(i).encode() for i in range(5)}
    db.ingest("t", tar(tmp_path / "a.tar", pictures | texts))
    assert [(r.key, r.txt, r.jpg.bytes()) for r in db.execute("SELECT * FROM t ORDER BY id")] == [
        (str(i), str(i), jpeg(i)) for i in range(5)
    ]


def test_samples_that_cannot_be_stored_are_listed_by_member(db: deeplake.Database, tmp_path: Path) -> None:
    members = samples(0, 4) | {"0001.jpg": b"no picture", "0002.json": b"{", "readme": b"x"}
    path = tar(tmp_path / "a.tar", members)
    with tarfile.open(path, "a") as file:
        info = tarfile.TarInfo("0003.txt")
        file.addfile(info)
    schema = "CREATE TABLE t (id BIGINT PRIMARY KEY, key TEXT, jpg IMAGE, txt TEXT, width BIGINT)"
    with pytest.raises(InputError, match="on_error='skip'"):
        db.ingest("t", path, schema=schema)
    assert "t" not in db.tables()
    report = db.ingest("t", path, schema=schema, on_error="skip")
    assert report.added == 1
    assert {s.member for s in report.skipped} == {"0001.jpg", "0002.json", "readme", "0003.txt"}
    assert any("second value" in s.reason for s in report.skipped)


def test_a_tar_that_changed_is_refused_and_its_old_bytes_are_never_delivered(
    db: deeplake.Database, shards: list[Path]
) -> None:
    db.ingest("photos", shards[0])
    data = bytearray(shards[0].read_bytes())
    row = db.execute("SELECT jpg FROM photos LIMIT 1")[0]
    data[700] ^= 255
    shards[0].write_bytes(data)
    os.utime(shards[0], ns=(1, 1))
    with pytest.raises(CorruptionError):
        row.jpg.bytes()
    with pytest.raises(InputError, match="has changed since"):
        db.ingest("photos", shards[0])


def test_only_recorded_folders_are_read(db: deeplake.Database, shards: list[Path], tmp_path: Path) -> None:
    secret = shards[0]
    adopted = tmp_path / "data" / "a.tar"
    adopted.parent.mkdir()
    adopted.write_bytes(secret.read_bytes())
    db.ingest("photos", adopted)
    for url in (
        f"file://{secret}",
        f"file://{adopted.parent}/../{secret.name}",
        "pipe:cat /etc/passwd",
        "ftp://host/a.tar",
    ):
        with db._catalog.transaction():
            db._catalog.execute("UPDATE _dl_files SET url = ? WHERE kind = 'shard'", (url,))
        db._shards.close_files()
        with pytest.raises(StoreError, match="refused"):
            db.execute("SELECT jpg FROM photos LIMIT 1")[0].jpg.bytes()
    link = adopted.parent / "link.tar"
    link.symlink_to(secret)
    with db._catalog.transaction():
        db._catalog.execute("UPDATE _dl_files SET url = ? WHERE kind = 'shard'", (f"file://{link}",))
    db._shards.close_files()
    with pytest.raises(StoreError, match="never adopted"):
        db.execute("SELECT jpg FROM photos LIMIT 1")[0].jpg.bytes()


def test_gc_leaves_adopted_tars_alone(db: deeplake.Database, shards: list[Path]) -> None:
    before = shards[0].read_bytes()
    db.ingest("photos", shards[0])
    db.execute("DELETE FROM photos")
    db.execute("DROP TABLE photos")
    db.gc(older_than_s=0)
    assert shards[0].read_bytes() == before
    assert db.ingest("photos", shards[0]).added == 10


def test_one_tar_may_be_in_two_tables_and_on_two_branches(db: deeplake.Database, shards: list[Path]) -> None:
    db.ingest("first", shards[0])
    db.ingest("second", shards[0])
    with db.branch("experiment"):
        assert db.ingest("first", shards[0]).present == 10
        assert db.ingest("first", shards[1]).added == 10
    assert db.ingest("first", shards[1]).added == 10
    assert db.execute("SELECT count(*) FROM first").scalar() == 20
    assert db.execute("SELECT jpg FROM second LIMIT 1")[0].jpg.bytes() == jpeg(0)


def test_what_a_merge_brought_is_not_taken_in_again(db: deeplake.Database, shards: list[Path]) -> None:
    db.ingest("photos", shards[0])
    with db.branch("experiment"):
        db.ingest("photos", shards[1])
    db.merge("experiment", into="main")
    report = db.ingest("photos", shards[:2])
    assert (report.added, report.present) == (0, 20)


@pytest.mark.parametrize("packed", ["a.tar.gz", "a.tgz"])
def test_compressed_tars_are_copied_into_the_store(db: deeplake.Database, shards: list[Path], packed: str) -> None:
    path = shards[0].parent / packed
    path.write_bytes(gzip.compress(shards[0].read_bytes()))
    assert db.ingest("photos", path).added == 10
    path.unlink()
    shards[0].unlink()
    assert [r.jpg.bytes() for r in db.execute("SELECT jpg FROM photos ORDER BY id")] == [jpeg(i) for i in range(10)]
    assert stored(db) > 10 * len(jpeg(0))


def test_pickles_are_never_opened(db: deeplake.Database, tmp_path: Path) -> None:
    canary = tmp_path / "owned"
    payload = f"cos\nsystem\n(S'touch {canary}'\ntR.".encode()
    path = tar(tmp_path / "a.tar", {f"0.{e}": payload for e in ("pyd", "pkl", "pth", "npy")} | {"0.txt": b"x"})
    db.ingest("t", path)
    assert not canary.exists() and db.execute("SELECT pkl FROM t")[0].pkl.bytes() == payload


def test_patterns_expand_as_in_a_shell(db: deeplake.Database, pattern: str) -> None:
    assert list(expand_braces("x-{9..11}")) == ["x-9", "x-10", "x-11"]
    assert list(expand_braces("{a,b}{1..3..2}")) == ["a1", "a3", "b1", "b3"]
    assert list(expand_braces("plain{}")) == ["plain{}"]
    with pytest.raises(InputError, match="more than"):
        list(expand_braces("{0..99999999999}"))
    assert db.ingest("t", pattern.replace("{00..02}", "*")).added == 30
    with pytest.raises(NotFoundError):
        db.ingest("t", pattern.replace("{00..02}", "0[7-9]"))


# -- folders -----------------------------------------------------------------------------------------------------------


def test_folders_give_labels_captions_and_what_tables_beside_the_files_say(
    db: deeplake.Database, tmp_path: Path
) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "pets" / label / f"{i}.jpg").write_bytes(jpeg(i))
    (tmp_path / "pets" / "cat" / "0.txt").write_text("a cat")
    (tmp_path / "pets" / "cat" / "notes.xyz").write_text("?")
    report = db.ingest("pets", tmp_path / "pets")
    assert report.added == 6 and report.unused == {".xyz": 1}
    rows = db.execute("SELECT key, label, caption FROM pets ORDER BY key")
    assert list(rows[0]) == ["cat/0.jpg", "cat", "a cat"] and rows[5].label == "dog"
    (tmp_path / "pets" / "dog" / "9.jpg").write_bytes(jpeg(9))
    again = db.ingest("pets", tmp_path / "pets")
    assert (again.added, again.present) == (1, 6)


def test_metadata_names_files_that_are_there_and_files_that_are_not(db: deeplake.Database, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(jpeg(1))
    (folder / "metadata.csv").write_text('file_name,text,stars\na.jpg,"a, b",5\nlost.jpg,c,1\n')
    report = db.ingest("photos", folder, on_error="skip")
    assert list(db.execute("SELECT key, text, stars FROM photos")[0]) == ["a.jpg", "a, b", 5]
    assert [s.member for s in report.skipped] == ["lost.jpg"]


def test_metadata_that_names_no_file_is_listed(db: deeplake.Database, tmp_path: Path) -> None:
    (tmp_path / "photos" / "img").mkdir(parents=True)
    (tmp_path / "photos" / "img" / "a.jpg").write_bytes(jpeg(1))
    (tmp_path / "photos" / "metadata.jsonl").write_text('{"picture": "img/a.jpg", "text": "lost"}\n')
    assert db.ingest("photos", tmp_path / "photos").unused == {".jsonl": 1}


def test_settings_in_png_texts_are_columns(db: deeplake.Database, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for i, text in enumerate(
        ["a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 5", "bad"]
    ):
        info = PngImagePlugin.PngInfo()
        info.add_itxt("parameters", text, zip=i == 0) if i == 0 else info.add_text("parameters", text)
        Image.new("RGB", (8, 8)).save(folder / f"{i}.png", pnginfo=info)
    db.ingest("made", folder)
    rows = db.execute("SELECT prompt, negative_prompt, steps, sampler, cfg_scale, seed FROM made ORDER BY key")
    assert list(rows[0]) == ["a cat", "dog", 20, "Euler a", 7.5, 5]
    assert list(rows[1]) == ["bad", None, None, None, None, None]


def test_a_comfy_graph_gives_the_settings_of_its_sampler() -> None:
    graph = {
        "3": {"class_type": "KSampler", "inputs": {"seed": 7, "steps": 9, "cfg": 8, "sampler_name": "euler",
              "positive": ["6", 0], "negative": ["7", 0]}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a boat"}}, "7": {"inputs": {}},
    }  # fmt: skip
    row = read_graph(json.dumps(graph))
    assert (row["seed"], row["steps"], row["cfg_scale"], row["sampler"], row["prompt"]) == (
        7,
        9,
        8.0,
        "euler",
        "a boat",
    )
    assert "negative_prompt" not in row and read_graph("[1]") == read_graph("{") == settings(b"\x89PNG") == {}


# -- tables, texts, matrices, datasets ---------------------------------------------------------------------------------


def test_columns_that_some_files_lack_or_have_otherwise_are_joined(db: deeplake.Database, tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("prompt,cfg\na,7\n")
    (tmp_path / "new.csv").write_text('prompt,cfg,model\n"b\nc",7.5,x\n')
    (tmp_path / "more.jsonl").write_text('{"prompt": "d", "cfg": 1}\n\nnot json\n')
    report = db.ingest("logs", [tmp_path / n for n in ("old.csv", "new.csv", "more.jsonl")], on_error="skip")
    assert [list(r) for r in db.execute("SELECT prompt, cfg, model FROM logs ORDER BY id")] == [
        ["a", 7.0, None], ["b\nc", 7.5, "x"], ["d", 1.0, None],
    ]  # fmt: skip
    assert [(Path(s.source).name, s.member) for s in report.skipped] == [("more.jsonl", "line 3")]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_numbers_in_one_file_and_words_in_another_are_joined_and_told(
    db: deeplake.Database, tmp_path: Path, form: str
) -> None:
    columns: list[dict[str, list[Any]]] = [{"a": [1, 2]}, {"a": [2.5, 3.5]}, {"a": ["many", "007"]}]
    for n, values in enumerate(columns):
        write = pa.csv.write_csv if form == "csv" else pq.write_table
        write(pa.table(values), tmp_path / f"{n}.{form}")
    report = db.ingest("drift", str(tmp_path / f"*.{form}"))
    assert [row.a for row in db.execute("SELECT a FROM drift ORDER BY id")] == [1, 2, 2.5, 3.5, "many", "007"]
    assert "a: DOUBLE in some samples, TEXT in others; JSON" in str(report)


def test_truth_and_times_of_a_csv_keep_their_types(db: deeplake.Database, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("kept,day,made\ntrue,2026-01-02,2026-01-02 03:04:05\nfalse,,\n,2026-02-03,\n")
    db.ingest("inferred", tmp_path / "a.csv")
    db.execute("CREATE TABLE given (id BIGINT PRIMARY KEY, kept BOOLEAN, day DATE, made TIMESTAMP)")
    db.ingest("given", tmp_path / "a.csv")
    made = dt.datetime(2026, 1, 2, 3, 4, 5)
    rows = [(True, dt.date(2026, 1, 2), made), (False, None, None), (None, dt.date(2026, 2, 3), None)]
    for table in ("inferred", "given"):
        assert list(map(tuple, db.execute(f"SELECT kept, day, made FROM {table} ORDER BY id"))) == rows


def test_rows_of_another_width_are_listed_by_their_number(db: deeplake.Database, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n3\n4,5\n")
    report = db.ingest("t", path, on_error="skip")
    assert report.added == 2 and report.skipped[0].reason == "has 1 fields, expected 2"
    path = tmp_path / "headless.csv"
    path.write_text("0,0\n1,2\n")
    with pytest.raises(InputError, match="two columns are named '0'"):
        db.ingest("u", path)


def test_tsv_has_no_quotes(db: deeplake.Database, tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text('Prompt\tNote\na "quoted\tx\nb" c\ty\n')
    db.ingest("p", tmp_path / "p.tsv")
    rows = db.execute('SELECT "Prompt", "Note" FROM p ORDER BY id')
    assert list(map(tuple, rows)) == [('a "quoted', "x"), ('b" c', "y")]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_arrow_tables_keep_their_types(db: deeplake.Database, tmp_path: Path, suffix: str) -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    table = pa.table(
        {
            "n": [1, None, 3], "t": pa.array([0, 1, 2], pa.timestamp("us")), "emb": list(vectors),
            "image": [{"bytes": jpeg(i), "path": None} for i in range(3)], "tags": [["a"], [], None],
        }
    )  # fmt: skip
    path = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    db.ingest("t", path)
    rows = db.execute("SELECT n, emb, image, tags FROM t ORDER BY id")
    assert [r.n for r in rows] == [1, None, 3] and np.array_equal([r.emb.array() for r in rows], vectors)
    assert [r.image.bytes() for r in rows] == [jpeg(i) for i in range(3)] and rows[0].tags == ["a"]


def test_a_dataset_on_disk_is_read_in_its_order(db: deeplake.Database, tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["x", "y"]}}
    schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())])
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    for number in (1, 0):
        batch = pa.table({"image": [{"bytes": jpeg(number), "path": None}], "label": [number]}, schema)
        name = folder / f"data-0000{number}-of-00002.arrow"
        with pa.OSFile(str(name), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            writer.write_table(batch)
    files = [{"filename": f"data-0000{n}-of-00002.arrow"} for n in (0, 1)]
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    (folder / "dataset_info.json").write_text("{}")
    assert db.ingest("d", folder).added == 2 and db.ingest("d", folder).present == 2
    assert [(r.label, r.image.bytes()) for r in db.execute("SELECT label, image FROM d ORDER BY id")] == [
        ("x", jpeg(0)), ("y", jpeg(1)),
    ]  # fmt: skip
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../../etc/passwd"}]}))
    with pytest.raises(CorruptionError, match="which is not there"):
        db.ingest("e", folder)


def test_matrices_come_with_the_keys_beside_them_or_not_at_all(db: deeplake.Database, tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.save(tmp_path / "clip.npy", matrix)
    (tmp_path / "clip_keys.txt").write_text("\n".join("abcde"))
    db.ingest("v", tmp_path / "clip.npy")
    rows = db.execute("SELECT key, vector FROM v ORDER BY id")
    assert [r.key for r in rows] == list("abcde") and np.array_equal([r.vector.array() for r in rows], matrix)
    (tmp_path / "clip_keys.txt").write_text("a\nb")
    with pytest.raises(DimensionError, match=r"5 vectors and .* 2 keys"):
        db.ingest("w", tmp_path / "clip.npy")


def test_headed_matrices_are_held_against_their_size(db: deeplake.Database, tmp_path: Path) -> None:
    matrix = np.arange(12, dtype="<f4").reshape(4, 3)
    (tmp_path / "a.fbin").write_bytes(np.array([4, 3], "<u4").tobytes() + matrix.tobytes())
    lengths = np.full((4, 1), 3, "<i4").view("<f4")
    (tmp_path / "a.fvecs").write_bytes(np.hstack([lengths, matrix]).tobytes())
    for name in ("a.fbin", "a.fvecs"):
        table = name.replace(".", "_")
        db.ingest(table, tmp_path / name)
        rows = db.execute(f"SELECT vector FROM {table} ORDER BY id")
        assert np.array_equal([r.vector.array() for r in rows], matrix)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-4])
        with pytest.raises(CorruptionError):
            db.ingest("cut", tmp_path / name)
    np.save(tmp_path / "p.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(CorruptionError, match="pickles are refused"):
        db.ingest("p", tmp_path / "p.npy")


def test_the_prompt_tables_of_the_sample_data_go_in_whole(db: deeplake.Database, sample_data: Path) -> None:
    with (sample_data / "prompts/parti/PartiPrompts.tsv").open(encoding="utf-8", newline="") as file:
        expected = [tuple(row) for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)][1:]
    db.ingest("parti", sample_data / "prompts/parti/PartiPrompts.tsv")
    rows = db.execute('SELECT "Prompt", "Category", "Challenge", "Note" FROM parti ORDER BY id')
    assert [tuple(v or "" for v in r) for r in rows] == expected
    with (sample_data / "generations/open-prompts_1k.first700.csv").open(encoding="utf-8", newline="") as file:
        prompts = [row["prompt"] for row in csv.DictReader(file)]
    db.ingest("open", sample_data / "generations/open-prompts_1k.first700.csv")
    assert [r.prompt or "" for r in db.execute("SELECT prompt FROM open ORDER BY id")] == prompts
    logs = sorted((sample_data / "generations").glob("a1111_log_*.csv"))
    assert db.ingest("logs", logs).added == 5


def test_real_shards_hold_what_webdataset_reads(db: deeplake.Database, sample_data: Path) -> None:
    path = sample_data / "shards/webdataset/torchtitan_cc12m-train-0000.tar"
    db.ingest("cc", path)
    expected = [(s["__key__"], s["jpg"]) for s in webdataset.WebDataset(str(path), shardshuffle=False)]
    assert [(r.key, r.jpg.bytes()) for r in db.execute("SELECT key, jpg FROM cc ORDER BY id")] == expected
