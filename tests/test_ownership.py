"""One store below one storage, and a store that moves to another."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import deeplake_loader as deeplake
from deeplake_loader.errors import InputError, NotFoundError
from deeplake_loader.ownership import OWNER
from deeplake_loader.storage.objects import open_folder

Connect = Callable[..., deeplake.Database]
BLOB = bytes(range(256)) * 400


@pytest.fixture(params=["memory", "folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{tmp_path}" if request.param == "memory" else str(tmp_path / "bytes")


@pytest.fixture
def connect(tmp_path: Path) -> Connect:
    def connect(name: str, **options: object) -> deeplake.Database:
        return deeplake.connect(tmp_path / name, cache_dir=tmp_path / "cache", **options)  # type: ignore[arg-type]

    return connect


def fill(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, data BLOB, v VECTOR(3))")
    db.insert("t", [{"id": i, "data": BLOB + bytes([i]), "v": [i, 1, 2]} for i in range(4)])
    db.execute("INSERT INTO t (id, data, v) VALUES (9, %s, %s)", [b"rests", [9, 1, 2]])


def rows(db: deeplake.Database) -> list[tuple[int, bytes, list[float]]]:
    return [(r.id, r.data.bytes(), list(r.v)) for r in db.execute("SELECT id, data, v FROM t ORDER BY id")]


def test_a_second_store_below_the_same_storage_is_refused_and_removes_nothing(connect: Connect, place: str) -> None:
    with connect("one", storage=place) as db:
        fill(db)
        before = rows(db)
    with pytest.raises(InputError, match="another store"):
        connect("two", storage=place)
    shutil.rmtree(os.path.dirname(place) + "/cache", ignore_errors=True)
    with connect("one") as db:
        assert rows(db) == before
        assert db.verify().ok


def test_the_storage_says_whose_it_is(connect: Connect, place: str) -> None:
    with connect("one", storage=place) as db:
        held = json.loads(open_folder(place).read(OWNER))
        assert held == {"store": db._catalog.fetchone("SELECT value FROM _dl_meta WHERE key = 'store_id'")[0]}
        assert not db.log(), "a claim is no commit"
    open_folder(place).delete([OWNER])
    with connect("one"):
        assert not list(open_folder(place).list()), "what was claimed once is not asked about again"


def test_a_store_that_was_refused_a_storage_takes_another(connect: Connect, place: str) -> None:
    connect("one", storage=place).close()
    with pytest.raises(InputError, match="another store"):
        connect("two", storage=place)
    with connect("two", storage=place + "-own") as db:
        fill(db)
    with connect("two") as db:
        assert len(rows(db)) == 5
        with pytest.raises(InputError, match="relocate"):
            connect("two", storage=place + "-third")


def test_a_store_in_its_own_folder_claims_nothing(connect: Connect, tmp_path: Path) -> None:
    with connect("one") as db:
        fill(db)
    assert not (tmp_path / "one" / OWNER).exists()


def copy(source: str, target: str) -> None:
    found, copies = open_folder(source), open_folder(target)
    for stored in found.list():
        copies.write(stored.name, found.read(stored.name))


def test_a_store_moves_to_where_its_bytes_were_copied(connect: Connect, place: str) -> None:
    with connect("one", storage=place) as db:
        fill(db)
        before = rows(db)
        db.optimize()
        moved = place + "-moved"
        with pytest.raises(NotFoundError, match=r"lacks \d of the store's \d files"):
            db.relocate(moved)
        copy(place, moved)
        db.relocate(moved)
    open_folder(place).delete([stored.name for stored in open_folder(place).list()])
    with connect("one") as db:
        assert rows(db) == before
        assert db.verify().ok
        db.insert("t", [{"id": 20, "data": BLOB, "v": [0, 0, 1]}])
    with connect("one", storage=moved) as db:
        assert len(rows(db)) == 6


def test_a_store_in_a_folder_moves_to_object_storage_and_back(connect: Connect, tmp_path: Path) -> None:
    home, far = str(tmp_path / "one"), f"memory://{tmp_path}/far"
    with connect("one") as db:
        fill(db)
        before = rows(db)
        with pytest.raises(InputError, match="optimize"):
            db.relocate(far)
        db.optimize()
        for name in ("shards", "vectors"):
            copy(f"{home}/{name}", f"{far}/{name}")
        db.relocate(far)
    shutil.rmtree(f"{home}/shards")
    with connect("one") as db:
        assert rows(db) == before
        copy(f"{far}/shards", f"{home}/shards")
        db.relocate(home)
    with connect("one") as db:
        assert rows(db) == before


def test_a_store_does_not_move_onto_another(connect: Connect, place: str) -> None:
    connect("one", storage=place).close()
    with connect("two") as db, pytest.raises(InputError, match="another store"):
        db.relocate(place)


def test_storage_that_cannot_be_a_place_is_refused_with_the_reason(connect: Connect) -> None:
    pytest.importorskip("s3fs")
    for number, (storage, options, message) in enumerate(
        [
            ("s3://", None, "names no bucket"),
            ("s3:///prefix", None, "names no bucket"),
            ("s4://bucket/x", None, "cannot be opened"),
            ("s3://bucket/x", {"endpont_url": "http://127.0.0.1:9"}, "storage_options"),
            ("s3://bucket/x", {"endpoint_url": "nonsense"}, "storage_options"),
            ("s3://bucket/x", "secret", "storage_options"),
            (None, {"key": "forgotten-storage"}, "storage="),
        ]
    ):
        with pytest.raises(InputError, match=message) as caught:
            connect(f"s{number}", storage=storage, storage_options=options)
        assert "forgotten" not in str(caught.value) and "secret" not in str(caught.value)
