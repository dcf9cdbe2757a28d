"""db.ingest as a user with odd data meets it: several at once, odd names, odd texts, what other libraries leave out."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image, PngImagePlugin
from tars import tar

import deeplake_loader as deeplake
from deeplake_loader.errors import DeeplakeError, InputError

pytestmark = pytest.mark.both_catalogs


def jpeg(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(file, "JPEG")
    return file.getvalue()


def test_two_who_take_in_the_same_sources_at_once_add_each_once(
    db: deeplake.Database, reconnect: Callable[..., deeplake.Database], tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for n in range(4):
        tar(shards / f"{n}.tar", {f"{n}-{i}.jpg": jpeg(i) for i in range(20)})
        (shards / f"{n}.csv").write_text("a\n" + "\n".join(map(str, range(50))))
        (tmp_path / f"{n}.jpg").write_bytes(jpeg(n))
    db.ingest("samples", shards / "0.tar")
    db.ingest("rows", shards / "0.csv")
    db.ingest("files", tmp_path / "0.jpg")
    added: list[int] = []
    failed: list[BaseException] = []
    start = threading.Barrier(2)

    def work() -> None:
        try:
            with reconnect() as other:
                start.wait()
                for table, what in (("samples", "shards/*.tar"), ("rows", "shards/*.csv"), ("files", "*.jpg")):
                    added.append(other.ingest(table, str(tmp_path / what)).added)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    counts = [db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("samples", "rows", "files")]
    assert counts == [80, 200, 4] and sum(added) == 60 + 150 + 3


def test_single_files_are_few_commits(db: deeplake.Database, tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    commits = len(db.log())
    names = [tmp_path / f"{i}.jpg" for i in range(30)]
    assert db.ingest("files", names).sources == 30 and len(db.log()) == commits + 1
    (tmp_path / "30.jpg").write_bytes(jpeg(30))
    report = db.ingest("files", str(tmp_path / "*.jpg"))
    assert (report.added, report.present) == (1, 30)
    assert db.execute("SELECT image FROM files WHERE key = '7.jpg'").fetchone()[0].bytes() == jpeg(7)


def test_a_file_whose_name_is_no_text_is_listed(db: deeplake.Database, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "line\nbreak.jpg").write_bytes(jpeg(1))
    bad = os.fsencode(folder) + b"/\xff.jpg"
    try:
        Path(os.fsdecode(bad)).write_bytes(jpeg(2))
    except OSError:
        pytest.skip("this file system takes no such name")
    report = db.ingest("files", folder, on_error="skip")
    assert [s.member for s in report.skipped] == ["\\xff.jpg"] and str(report)
    assert [r.key for r in db.execute("SELECT key FROM files")] == ["line\nbreak.jpg"]
    with pytest.raises(InputError, match="no UTF-8 text"):
        db.ingest("files", os.fsdecode(bad))


def test_settings_behind_much_other_text_are_found(db: deeplake.Database, tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("notes", "x" * 1_500_000)
    info.add_text("parameters", "a cat" + " very" * 300_000 + "\nSteps: 20, Sampler: Euler, Seed: 5")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    db.ingest("made", tmp_path / "a.png")
    [row] = db.execute("SELECT prompt, steps, seed FROM made")
    assert row.prompt.startswith("a cat very") and len(row.prompt) > 1_000_000 and (row.steps, row.seed) == (20, 5)


def test_texts_beside_numbers_stay_what_they_were(db: deeplake.Database, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": "x"}\n{"a": [1]}\n{"a": "7"}\n')
    db.ingest("t", tmp_path / "a.jsonl")
    assert [r.a for r in db.execute("SELECT a FROM t ORDER BY id")] == [1, "x", [1], "7"]
    tar(tmp_path / "a.tar", {f"{i}.json": json.dumps({"a": a}).encode() for i, a in enumerate((1, "x", [1], "7"))})
    db.ingest("u", tmp_path / "a.tar")
    assert [r.a for r in db.execute("SELECT a FROM u ORDER BY id")] == [1, "x", [1], "7"]


def test_csv_with_semicolons_is_told_by_its_first_line(db: deeplake.Database, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("\ufeffname;wert\nä,b;1\n".encode())
    db.ingest("t", tmp_path / "a.csv")
    assert [tuple(r) for r in db.execute("SELECT name, wert FROM t")] == [("ä,b", 1)]


def test_csv_in_another_encoding_is_refused(db: deeplake.Database, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("name\nfür\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"a\.csv: the column 'name' holds bytes that are no UTF-8"):
        db.ingest("t", tmp_path / "a.csv")


def dataset(folder: Path, rows: list[dict[str, object]]) -> Path:
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())])
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    folder.mkdir(exist_ok=True)
    with pa.OSFile(str(folder / "data.arrow"), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_classes_of_a_dataset_come_by_name_and_its_files_by_path(db: deeplake.Database, tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(jpeg(1))
    dataset(folder, [
        {"image": {"bytes": None, "path": "a.jpg"}, "label": 1},
        {"image": {"bytes": jpeg(2), "path": "gone.jpg"}, "label": 0}, {"image": None, "label": -1},
    ])  # fmt: skip
    db.ingest("d", folder)
    found = [(r.image and r.image.bytes(), r.label) for r in db.execute("SELECT image, label FROM d ORDER BY id")]
    assert found == [(jpeg(1), "dog"), (jpeg(2), "cat"), (None, None)]


@pytest.mark.parametrize("path", ["../b.jpg", "/etc/hostname", "missing.jpg"])
def test_a_file_that_a_dataset_names_elsewhere_is_refused(db: deeplake.Database, tmp_path: Path, path: str) -> None:
    (tmp_path / "b.jpg").write_bytes(jpeg(1))
    folder = dataset(tmp_path / "dataset", [{"image": {"bytes": None, "path": path}, "label": 1}])
    with pytest.raises(DeeplakeError, match=r"b\.jpg|hostname|missing"):
        db.ingest("d", folder)
    assert "d" not in db.tables()


def test_a_class_without_a_name_is_refused(db: deeplake.Database, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="class 2, and 2 classes have names"):
        db.ingest("d", dataset(tmp_path / "dataset", [{"image": None, "label": 2}]))


def test_references_of_an_export_are_refused_where_bytes_are_expected(db: deeplake.Database, tmp_path: Path) -> None:
    db.execute("CREATE TABLE photos (id BIGINT PRIMARY KEY, image IMAGE)")
    db.execute("CREATE TABLE again (id BIGINT PRIMARY KEY, image IMAGE)")
    db.insert("photos", [{"image": jpeg(1)}])
    db.optimize()
    db.export("photos", to=tmp_path / "out", format="parquet", blobs="reference")
    with pytest.raises(InputError, match=r"\(url, offset, length, key\) where bytes or a file are expected.*inline"):
        db.ingest("again", tmp_path / "out" / "*.parquet")
    assert db.execute("SELECT count(*) FROM again").scalar() == 0
