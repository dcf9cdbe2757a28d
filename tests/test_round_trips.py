"""What an export writes comes in again: the same rows, columns, types and bytes, held against the rows before."""

from __future__ import annotations

import datetime as dt
import decimal
import io
import json
import tarfile
import uuid
import warnings
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import deeplake_loader as deeplake
from deeplake_loader.errors import CorruptionError, InputError

pytestmark = pytest.mark.both_catalogs
FORMS = ["webdataset", "parquet", "folder"]
COLUMNS = (
    'id BIGINT PRIMARY KEY, name TEXT, "Größe" DOUBLE PRECISION, r REAL, b BOOLEAN, si SMALLINT, i INTEGER, '
    "ts TIMESTAMP, tz TIMESTAMPTZ, day DATE, tm TIME, n NUMERIC(15,5), raw BYTEA, j JSON, u UUID, "
    "img IMAGE, vid VIDEO, snd AUDIO, bl BLOB, ten TENSOR(float32,2,2), v VECTOR(4), h VECTOR(4, float16), none AUDIO"
)


def picture(seed: int, form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 7, 3), np.uint8)).save(file, form)
    return file.getvalue()


def sound() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 8_000, 0, "NONE", ""))
        out.writeframes(bytes(1_600))
    return file.getvalue()


def rows() -> list[dict[str, Any]]:
    full = {
        "id": 7, "name": 'new\nline, "q"\t;', "Größe": 1e300, "r": 0.1, "b": True, "si": -32768, "i": 2**31 - 1,
        "ts": dt.datetime(2026, 1, 1, 1, 2, 3, 456789), "tz": dt.datetime(2026, 1, 1, 3, tzinfo=dt.UTC),
        "day": dt.date(1, 1, 1), "tm": dt.time(23, 59, 59, 5), "n": decimal.Decimal("1234567890.56789"),
        "raw": bytes(range(256)), "j": {"a": [1, None, {"b": "ü"}]}, "u": uuid.UUID(int=5), "img": picture(1, "PNG"),
        "vid": np.zeros((3, 32, 32, 3), np.uint8), "snd": sound(), "bl": b'{"json":1}',
        "ten": np.arange(4, dtype=np.float32).reshape(2, 2), "v": np.arange(4, dtype=np.float32) / 3,
        "h": np.arange(4, dtype=np.float16) / 3,
    }  # fmt: skip
    other = {
        "id": 8, "name": "ünï 🎉 漢字", "b": False, "n": decimal.Decimal("-0.00001"), "raw": b"", "j": "true",
        "img": picture(2, "JPEG"), "bl": b"", "day": dt.date(9999, 12, 31), "ts": dt.datetime(1, 1, 1),
    }  # fmt: skip
    return [full, other, {"id": 9, "name": "", "j": True}, {"id": 10, "name": "2020-01-01", "j": [1.5, "x"]}]


@pytest.fixture
def filled(db: deeplake.Database) -> deeplake.Database:
    db.execute(f"CREATE TABLE t ({COLUMNS})")
    for row in rows():
        columns = ", ".join(f'"{name}"' for name in row)
        values = [json.dumps(v) if name == "j" else v for name, v in row.items()]
        db.execute(f"INSERT INTO t ({columns}) VALUES ({', '.join(['%s'] * len(row))})", values)
    return db


def value(found: Any) -> Any:
    if hasattr(found, "bytes") and hasattr(found, "info"):
        return "blob", found.bytes()
    if hasattr(found, "array"):
        return str(found.array().dtype), found.array().tolist()
    return found.astimezone(dt.UTC) if isinstance(found, dt.datetime) and found.tzinfo else found


def table(db: deeplake.Database, name: str) -> list[dict[str, Any]]:
    return [{k: value(r[k]) for k in r.keys()} for r in db.execute(f"SELECT * FROM {name} ORDER BY id")]  # noqa: SIM118


def types(db: deeplake.Database, name: str) -> dict[str, str]:
    return {c.name: str(c.type) for c in db.tables()[name].columns}


@pytest.mark.parametrize("form", FORMS)
def test_a_table_comes_in_again_as_it_was(filled: deeplake.Database, tmp_path: Path, form: Any) -> None:
    before = table(filled, "t")
    assert [r["name"] for r in before] == [r["name"] for r in rows()] and before[1]["j"] == "true" and before[2]["j"]
    filled.export("t", to=tmp_path / "out", format=form)
    report = filled.ingest("again", tmp_path / "out")
    assert (report.added, report.skipped, report.unused) == (4, (), {})
    assert types(filled, "again") == types(filled, "t") and filled.tables()["again"].primary_key == ("id",)
    assert table(filled, "again") == before
    assert filled.ingest("again", tmp_path / "out").added == 0


@pytest.mark.parametrize("form", FORMS)
def test_a_given_table_takes_what_was_exported(filled: deeplake.Database, tmp_path: Path, form: Any) -> None:
    filled.export("t", to=tmp_path / "out", format=form)
    filled.ingest("again", tmp_path / "out", schema=f"CREATE TABLE again ({COLUMNS})")
    assert table(filled, "again") == table(filled, "t")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("columns", ["id, img", "id, none", "id, v", "id, name", "id, img, name AS file_name"])
def test_few_columns_come_in_again(filled: deeplake.Database, tmp_path: Path, form: Any, columns: str) -> None:
    before = [[value(v) for v in row] for row in filled.execute(f"SELECT {columns} FROM t ORDER BY id")]
    filled.export(f"SELECT {columns} FROM t ORDER BY id", to=tmp_path / "out", format=form)
    filled.ingest("again", tmp_path / "out")
    names = ", ".join(column.rpartition(" ")[2] for column in columns.split(", "))
    assert [[value(v) for v in row] for row in filled.execute(f"SELECT {names} FROM again ORDER BY id")] == before


def test_keys_that_no_file_is_called_come_in_again(filled: deeplake.Database, tmp_path: Path) -> None:
    odd = ["a.b", "../x", "é", None]
    for i, key in enumerate(odd):
        filled.execute("UPDATE t SET name = %s WHERE id = %s", [key, 7 + i])
    for form in FORMS:
        filled.export("SELECT id, name AS key, img FROM t ORDER BY id", to=tmp_path / form, format=form)
        filled.ingest(form, tmp_path / form)
        assert [r.key for r in filled.execute(f"SELECT key FROM {form} ORDER BY id")] == odd


def test_an_export_without_its_types_is_inferred(filled: deeplake.Database, tmp_path: Path) -> None:
    """As Hugging Face's folders are, whose metadata name files by <column>_file_name."""
    filled.export("SELECT id, img, snd, ten, v, bl, name FROM t ORDER BY id", to=tmp_path / "out", format="folder")
    (tmp_path / "out" / ".deeplake_loader.json").unlink()
    filled.ingest("again", tmp_path / "out", key="id")
    expected = ["img", "snd", "ten", "bl", "v", "id", "name"]
    assert [c.name for c in filled.tables()["again"].columns] == expected
    found = types(filled, "again")
    assert (found["img"], found["ten"], found["v"]) == ("IMAGE", "TENSOR(float32, 2, 2)", "VECTOR(4)")
    before = filled.execute(f"SELECT {', '.join(expected)} FROM t ORDER BY id")
    after = filled.execute(f"SELECT {', '.join(expected)} FROM again ORDER BY id")
    assert [[value(v) for v in row] for row in after] == [[value(v) for v in row] for row in before]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_folders_of_pairs_are_rows(db: deeplake.Database, tmp_path: Path, ending: str) -> None:
    import pyarrow as pa

    found = []
    for split in ("train", "test"):
        folder = tmp_path / "pairs" / split
        (folder / "masks").mkdir(parents=True)
        listed = []
        for i in range(2):
            (folder / f"{i}.jpg").write_bytes(picture(i, "JPEG"))
            (folder / "masks" / f"{i}.png").write_bytes(picture(10 + i, "PNG"))
            listed.append({"file_name": f"{i}.jpg", "mask_file_name": f"masks/{i}.png", "n": i, "split": split})
            found.append([split, i, picture(i, "JPEG"), picture(10 + i, "PNG")])
        (folder / "more.jpg").write_bytes(picture(3, "JPEG"))
        if ending == "csv":
            lines = [",".join(listed[0]), *(",".join(map(str, row.values())) for row in listed)]
            (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
        elif ending == "jsonl":
            (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, listed)))
        else:
            pq.write_table(pa.Table.from_pylist(listed), folder / "metadata.parquet")
    report = db.ingest("pairs", tmp_path / "pairs")
    assert report.unused == {".jpg": 2}
    rows = db.execute("SELECT split, n, image, mask FROM pairs ORDER BY split DESC, n")
    assert [[r.split, r.n, r.image.bytes(), r.mask.bytes()] for r in rows] == found


@pytest.mark.parametrize("name", ["../secret.jpg", "{root}/secret.jpg", "link.jpg", "a/../../secret.jpg", "lost.jpg"])
def test_only_files_of_the_folder_are_read(db: deeplake.Database, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "photos"
    (folder / "a").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(picture(1, "JPEG"))
    (folder / "b.jpg").write_bytes(picture(2, "JPEG"))
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    lines = [{"img_file_name": "b.jpg", "n": 1}, {"img_file_name": name.format(root=tmp_path), "n": 2}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(InputError, match="names the file"):
        db.ingest("photos", folder)
    assert "photos" not in db.tables()
    report = db.ingest("photos", folder, on_error="skip")
    assert [s.member for s in report.skipped] == ["line 2"]
    assert [(r.n, r.img.bytes()) for r in db.execute("SELECT n, img FROM photos")] == [(1, picture(2, "JPEG"))]


def test_text_that_is_no_base64_is_no_bytes(db: deeplake.Database, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": 1, "raw": "AAE="}\n{"n": 2, "raw": "no bytes"}\n{"n": 3, "raw": null}\n')
    report = db.ingest("a", tmp_path / "a.jsonl", schema={"n": "BIGINT", "raw": "BYTEA"}, on_error="skip")
    assert [list(r) for r in db.execute("SELECT n, raw FROM a ORDER BY n")] == [[1, b"\0\1"], [3, None]]
    assert [s.member for s in report.skipped] == ["line 2"]


def test_numbers_of_many_digits_are_one_type_in_parquet(db: deeplake.Database, tmp_path: Path) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, n NUMERIC, tz TIMESTAMPTZ)")
    late = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    numbers = [decimal.Decimal(i) if i < 1_500 else decimal.Decimal(i) / 1_000 for i in range(3_000)]
    db.insert("t", {"id": range(3_000), "n": numbers, "tz": [None if i < 1_500 else late for i in range(3_000)]})
    db.export("SELECT * FROM t ORDER BY id", to=tmp_path / "out", format="parquet")
    found = pq.read_table(tmp_path / "out")
    assert found["n"].to_pylist() == numbers and found["tz"].to_pylist()[1_499:1_501] == [None, late]


def test_other_readers_pass_over_what_a_tar_tells(filled: deeplake.Database, tmp_path: Path) -> None:
    filled.export("SELECT id, name AS key, img FROM t WHERE id < 9 ORDER BY id", to=tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "000000.tar") as tar, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [m.name.partition(".")[2] for m in tar] == ["img.png", "json", "img.jpg", "json"]
        assert tar.pax_headers["comment"].startswith("deeplake_loader {")


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', '{"format": 1, "columns": [{"name": "a"}]}'])
def test_what_an_export_wrote_is_read_or_refused(filled: deeplake.Database, tmp_path: Path, text: str) -> None:
    filled.export("SELECT id, img FROM t", to=tmp_path / "out", format="folder")
    (tmp_path / "out" / ".deeplake_loader.json").write_text(text)
    with pytest.raises(CorruptionError, match="wrote of its columns"):
        filled.ingest("again", tmp_path / "out")


def test_a_column_named_like_what_names_a_file_is_refused(filled: deeplake.Database, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="AS"):
        filled.export("SELECT img, bl, name AS img_file_name FROM t", to=tmp_path / "out", format="folder")


def test_exports_of_other_columns_are_joined(filled: deeplake.Database, tmp_path: Path) -> None:
    filled.export("SELECT name AS key, img, day FROM t WHERE id = 8", to=tmp_path / "a")
    filled.export("SELECT name AS key, img, b FROM t WHERE id = 7", to=tmp_path / "b")
    filled.ingest("joined", [tmp_path / "a", tmp_path / "b"], schema={"img": "IMAGE", "day": "DATE", "b": "BOOLEAN"})
    found = filled.execute("SELECT day, b FROM joined ORDER BY day")
    assert [list(r) for r in found] == [[dt.date(9999, 12, 31), None], [None, True]]
