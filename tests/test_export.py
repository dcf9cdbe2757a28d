"""db.export: what other readers find in the files is what the query gives."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

import deeplake_loader as deeplake
from deeplake_loader.errors import CorruptionError, InputError

pytestmark = pytest.mark.both_catalogs


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 7, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def vector(i: int) -> np.ndarray:
    return np.arange(3, dtype=np.float32) + i


@pytest.fixture
def photos(db: deeplake.Database) -> deeplake.Database:
    """12 rows, some of whose values are NULL."""
    db.execute(
        "CREATE TABLE photos (id BIGINT PRIMARY KEY, key TEXT, png IMAGE, seg IMAGE, emb VECTOR(3), txt TEXT, "
        "score DOUBLE PRECISION, made TIMESTAMP)"
    )
    rows = [
        {
            "id": i, "key": f"k/{i:03d}", "png": png(i), "seg": png(100 + i) if i % 3 else None,
            "emb": vector(i) if i % 4 else None, "txt": f"ä {i}", "score": i / 4 if i != 5 else None,
            "made": f"2024-01-{i + 1:02d} 10:00:00",
        }
        for i in range(12)
    ]  # fmt: skip
    db.insert("photos", rows)
    return db


def test_webdataset_reads_the_tars_equal(photos: deeplake.Database, tmp_path: Path) -> None:
    report = photos.export("SELECT * FROM photos ORDER BY id", to=tmp_path / "out", shard_bytes=20_000)
    assert report.rows == 12 and len(report.files) > 1
    found = list(webdataset.WebDataset([str(tmp_path / "out" / n) for n in report.files], shardshuffle=False))
    assert [s["__key__"] for s in found] == [f"k/{i:03d}" for i in range(12)]
    for i, sample in enumerate(found):
        assert (sample["png"], sample["txt"].decode()) == (png(i), f"ä {i}")
        assert sample.get("seg.png") == (png(100 + i) if i % 3 else None)
        assert ("emb.npy" in sample) == bool(i % 4)
        if i % 4:
            assert np.array_equal(np.load(io.BytesIO(sample["emb.npy"])), vector(i))
        document = json.loads(sample["json"])
        assert document == {"id": i, "score": i / 4 if i != 5 else None, "made": f"2024-01-{i + 1:02d}T10:00:00"}
    for name in report.files:
        with tarfile.open(tmp_path / "out" / name) as tar:
            assert all(member.isreg() for member in tar)
        assert (tmp_path / "out" / name).stat().st_size <= 20_000 + 1_024


def test_what_was_exported_comes_in_again(photos: deeplake.Database, tmp_path: Path) -> None:
    photos.export("photos", to=tmp_path / "out")
    photos.ingest("again", tmp_path / "out")
    sql = "SELECT key, png, seg, emb, txt, score FROM {} ORDER BY key"
    for a, b in zip(photos.execute(sql.format("photos")), photos.execute(sql.format("again")), strict=True):
        assert (a.key, a.png.bytes(), a.txt, a.score) == (b.key, b.png.bytes(), b.txt, b.score)
        assert (a.seg and a.seg.bytes()) == (b.seg and b.seg.bytes())
        assert (a.emb is None) == (b.emb is None) and (a.emb is None or np.array_equal(a.emb.array(), b.emb.array()))


def test_parquet_holds_values_by_type(photos: deeplake.Database, tmp_path: Path) -> None:
    photos.export("SELECT * FROM photos ORDER BY id", to=tmp_path / "out", format="parquet")
    table = pq.read_table(tmp_path / "out")
    assert [str(t) for t in table.schema.types] == [
        "int64", "string", "large_binary", "large_binary", "fixed_size_list<element: float>[3]", "string", "double",
        "timestamp[us]",
    ]  # fmt: skip
    rows = table.to_pylist()
    assert [r["png"] for r in rows] == [png(i) for i in range(12)]
    assert [r["emb"] for r in rows] == [vector(i).tolist() if i % 4 else None for i in range(12)]
    assert [r["seg"] is None for r in rows] == [i % 3 == 0 for i in range(12)]


def test_references_lead_to_the_bytes(photos: deeplake.Database, tmp_path: Path) -> None:
    photos.execute("INSERT INTO photos (id, key, png) VALUES (12, 'small', %s)", [png(12)])
    with pytest.raises(InputError, match="still rest in the catalog"):
        photos.export("photos", to=tmp_path / "no", format="parquet", blobs="reference")
    photos.optimize()
    photos.export("SELECT id, png FROM photos ORDER BY id", to=tmp_path / "out", format="parquet", blobs="reference")
    for row in pq.read_table(tmp_path / "out").to_pylist():
        path = row["png"]["url"].removeprefix("file://")
        with open(path, "rb") as file:
            file.seek(row["png"]["offset"])
            assert file.read(row["png"]["length"]) == png(row["id"])


def test_a_folder_is_what_imagefolder_reads(photos: deeplake.Database, tmp_path: Path) -> None:
    photos.export("SELECT key, png, score FROM photos ORDER BY id", to=tmp_path / "out", format="folder")
    lines = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert [(tmp_path / "out" / line["file_name"]).read_bytes() for line in lines] == [png(i) for i in range(12)]
    assert lines[4] == {"file_name": "png/k/004.png", "key": "k/004", "score": 1.0}


def test_an_export_is_exact_as_of_its_commit(photos: deeplake.Database, tmp_path: Path) -> None:
    photos.tag("v1")
    photos.execute("UPDATE photos SET txt = 'changed', png = %s", [png(7)])
    photos.execute("DELETE FROM photos WHERE id > 3")
    with photos.at("v1") as then:
        assert then.export("SELECT * FROM photos ORDER BY id", to=tmp_path / "then").rows == 12
    assert photos.export("SELECT key, txt FROM photos WHERE id = %s", [1], to=tmp_path / "now").rows == 1
    found = [s["txt"].decode() for s in webdataset.WebDataset(str(tmp_path / "then/000000.tar"), shardshuffle=False)]
    assert found == [f"ä {i}" for i in range(12)]


@pytest.mark.parametrize("form", ["webdataset", "parquet", "folder"])
def test_a_failed_export_leaves_nothing(photos: deeplake.Database, tmp_path: Path, form: str) -> None:
    photos.optimize()
    place = photos._shards.locate(photos.execute("SELECT png FROM photos WHERE id = 9")[0].png._address)
    path = Path(photos.root) / place.url
    data = bytearray(path.read_bytes())
    data[place.offset + 20] ^= 255
    path.chmod(0o600)
    path.write_bytes(data)
    with pytest.raises(CorruptionError):
        photos.export("photos", to=tmp_path / "out", format=form)  # type: ignore[arg-type]
    assert sorted(os.listdir(tmp_path)) == ["store"]


@pytest.mark.parametrize("form", ["webdataset", "parquet", "folder"])
def test_no_rows_are_an_export_too(photos: deeplake.Database, tmp_path: Path, form: str) -> None:
    report = photos.export("SELECT * FROM photos WHERE id > 99", to=tmp_path / "out", format=form)  # type: ignore[arg-type]
    assert report.rows == 0 and (tmp_path / "out").is_dir()


def test_odd_keys_are_encoded_and_equal_ones_refused(photos: deeplake.Database, tmp_path: Path) -> None:
    odd = ["a.b", "../x", "/etc/passwd", "", "é", "new\nline", "..", "a//b"]
    for i, key in enumerate(odd):
        photos.execute("UPDATE photos SET key = %s WHERE id = %s", [key, i])
    photos.export(f"SELECT key, png FROM photos WHERE id < {len(odd)} ORDER BY id", to=tmp_path / "out")
    found = list(webdataset.WebDataset(str(tmp_path / "out/000000.tar"), shardshuffle=False))
    assert [s["png"] for s in found] == [png(i) for i in range(len(odd))]
    assert len({s["__key__"] for s in found}) == len(odd)
    photos.export(f"SELECT key, png FROM photos WHERE id < {len(odd)}", to=tmp_path / "files", format="folder")
    assert len(list((tmp_path / "files" / "png").rglob("*.png"))) == len(odd)
    photos.execute("UPDATE photos SET key = 'same'")
    with pytest.raises(InputError, match="the key 'same'"):
        photos.export("SELECT key, png FROM photos", to=tmp_path / "twice")
    photos.export("SELECT id AS __key__, png FROM photos", to=tmp_path / "numbered")


def test_what_is_no_export_is_refused(photos: deeplake.Database, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InputError, match="is there already"):
        photos.export("photos", to=tmp_path / "full")
    with pytest.raises(InputError, match="needs a SELECT"):
        photos.export("DELETE FROM photos", to=tmp_path / "out")
    with pytest.raises(InputError, match="inside a transaction"), photos.transaction():
        photos.export("photos", to=tmp_path / "out")
    with pytest.raises(InputError, match="none of webdataset"):
        photos.export("photos", to=tmp_path / "out", format="zip")  # type: ignore[arg-type]
    assert photos.execute("SELECT count(*) FROM photos").scalar() == 12


def test_objects_take_an_export(photos: deeplake.Database, tmp_path: Path) -> None:
    import fsspec

    folder = f"/exports{tmp_path}"
    photos.export("SELECT key, txt FROM photos", to=f"memory:/{folder}")
    assert fsspec.filesystem("memory").ls(folder, detail=False) == [f"{folder}/000000.tar"]
    with pytest.raises(InputError, match="holds objects already"):
        photos.export("SELECT key, txt FROM photos", to=f"memory:/{folder}")
