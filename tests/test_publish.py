"""A published store is read by whoever has its url, as it was when it was published, and by nothing it names itself."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import shutil
import sqlite3
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_store import VECTORS, build, ran, run
from object_store import Proxy, fresh_url, s3_server
from tars import tar

import deeplake_loader as deeplake
from deeplake_loader.care.publishing import Publication
from deeplake_loader.codecs import encode
from deeplake_loader.errors import CorruptionError, InputError, LockedError, NotFoundError, StoreError
from deeplake_loader.storage.objects import Local, open_folder
from deeplake_loader.storage.published import Pointer, read_pointer
from deeplake_loader.types import ColumnType


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("origin") / "store"
    build(folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEEPLAKE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(origin: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(origin, tmp_path / "store"))


@pytest.fixture
def db(folder: Path) -> Iterator[deeplake.Database]:
    with deeplake.connect(folder) as database:
        yield database


@pytest.fixture(scope="module")
def s3() -> Iterator[Proxy]:
    with s3_server() as proxy:
        yield proxy


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """A static file server that knows ranges, as every real one does."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, span = path.read_bytes(), re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, stop = (int(span[1]), int(span[2] or len(data) - 1) + 1) if span else (0, len(data))
        self.send_response(206 if span else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data[start:stop])))
        if span:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(data[start:stop])

    def log_message(self, *_: Any) -> None:
        """Silence."""


@pytest.fixture
def website(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(url, folder) of a web server."""
    folder = tmp_path / "www"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: _Ranges(*a, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", folder
    server.shutdown()
    server.server_close()


def contents(db: deeplake.Database) -> list[Any]:
    rows = db.execute("SELECT id, prompt, steps, thumbnail, frames, clip_embedding FROM generations ORDER BY id")
    return [
        (
            r.id,
            r.prompt,
            r.steps,
            r.thumbnail and r.thumbnail.bytes(),
            r.frames and r.frames.bytes(),
            r.clip_embedding is not None and r.clip_embedding.tolist(),
        )
        for r in rows
    ]


def check(reader: deeplake.Database, db: deeplake.Database) -> None:
    """Everything that reads gives what the store itself gives."""
    assert contents(reader) == contents(db)
    with reader.checkout("experiment"), db.checkout("experiment"):
        assert contents(reader) == contents(db)
    with reader.at("v1") as then:
        assert len(contents(then)) == 6
    assert [r.id for r in reader.search("generations", "clip_embedding", VECTORS[3], k=2)] == [
        r.id for r in db.search("generations", "clip_embedding", VECTORS[3], k=2)
    ]
    stream = reader.stream("SELECT id, thumbnail FROM generations WHERE thumbnail IS NOT NULL", batch_size=2)
    assert sorted(int(i) for batch in stream for i in batch["id"]) == [1, 2, 3, 4, 5]
    assert reader.verify().problems == ()


# -- every kind of url -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "file", "memory", "s3", "http"])
def test_what_was_published_is_read_from_there(
    kind: str, db: deeplake.Database, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "http":
        url, target = request.getfixturevalue("website")
        db.publish(target / "birds")
        url = f"{url}/birds"
    else:
        if kind == "s3":
            request.getfixturevalue("s3")
        url = {
            "folder": str(tmp_path / "there"), "file": f"file://{tmp_path}/there", "memory": f"memory://p{tmp_path}",
            "s3": fresh_url(),
        }[kind]  # fmt: skip
        assert db.publish(url).version == 1
    with deeplake.connect(url) as reader:
        check(reader, db)
        for statement in ("DELETE FROM generations", "CREATE TABLE u (id BIGINT PRIMARY KEY)"):
            with pytest.raises(StoreError, match="read-only"):
                reader.execute(statement)


def test_workers_read_a_published_store(db: deeplake.Database, tmp_path: Path) -> None:
    from torch.utils.data import DataLoader

    url = f"file://{tmp_path}/there"
    db.publish(url)
    with deeplake.connect(url) as reader:
        stream = reader.stream("SELECT id, thumbnail FROM generations WHERE id < 5", batch_size=1)
        seen = [int(batch["id"][0]) for batch in DataLoader(stream, batch_size=None, num_workers=2)]
    assert sorted(seen) == [1, 2, 3, 4]


def test_the_cold_open_of_a_published_store_asks_little(db: deeplake.Database, s3: Proxy, cache: Path) -> None:
    url = fresh_url()
    db.publish(url)
    s3.clear()
    with deeplake.connect(url) as reader:
        reader.execute("SELECT count(*) FROM generations")
    cold = s3.counts()
    assert (cold["GET"], cold["HEAD"], cold["PUT"]) == (2, 1, 0), "the pointer with its size, the snapshot"
    s3.clear()
    with deeplake.connect(url) as reader:
        reader.execute("SELECT count(*) FROM generations")
    assert s3.counts()["GET"] == 1, "the pointer alone: the snapshot is in the cache"


# -- versions ----------------------------------------------------------------------------------------------------------


def test_publishing_again_is_a_new_version_and_old_readers_go_on(db: deeplake.Database, tmp_path: Path) -> None:
    target = tmp_path / "there"
    first = db.publish(target)
    with deeplake.connect(target) as old:
        before = contents(old)
        db.execute("UPDATE generations SET steps = 7")
        db.execute("DELETE FROM generations WHERE id = 1")
        second = db.publish(target)
        assert (first.version, second.version, second.copied) == (1, 2, 0)
        with deeplake.connect(target) as new:
            assert len(contents(new)) == 5
            assert contents(old) == before


def test_gc_keeps_what_published_versions_name_until_they_are_old(db: deeplake.Database, folder: Path) -> None:
    db.publish()
    with deeplake.connect(folder) as live:
        assert not live._catalog.root.foreign, "the store itself lies there"
    copy = folder.with_name("seen")
    names = json.loads(next((folder / "published").glob("*.json")).read_text())["files"]
    db.execute("DELETE FROM generations")
    db.delete_branch("experiment")
    db.untag("v1")
    db.optimize(keep=0)
    db.gc(dry_run=False, older_than_s=0)
    assert all((folder / name).exists() for name in names if name.endswith((".tar", ".npy")))
    shutil.copytree(folder, copy)
    (copy / "catalog.sqlite").unlink()
    with deeplake.connect(copy) as reader:
        assert len(contents(reader)) == 6
    db.publish()
    assert db.gc(older_than_s=3_600).files == ()
    gone = db.gc(dry_run=False, older_than_s=0).files
    assert any(name.endswith(".tar") for name in gone) and sum(n.startswith("published/") for n in gone) == 2
    assert db.verify().ok


def test_a_lost_catalog_comes_back_from_the_snapshot(db: deeplake.Database, folder: Path) -> None:
    db.publish()
    before = contents(db)
    db.close()
    for path in folder.glob("catalog.sqlite*"):
        path.unlink()
    pointer, _ = read_pointer(Local(str(folder)))
    assert pointer is not None
    shutil.copy(folder / pointer.snapshot, folder / "catalog.sqlite")
    with deeplake.connect(folder) as found:
        assert contents(found) == before and found.verify().problems == ()
        found.execute("INSERT INTO generations (prompt, steps) VALUES ('goes on', 3)")


def test_publishers_at_once_each_make_a_version(folder: Path, tmp_path: Path) -> None:
    made: list[Publication] = []

    def work() -> None:
        with deeplake.connect(folder) as own:
            made.append(own.publish(tmp_path / "there"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(p.version for p in made) == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["local", "s3", "memory"])
def test_a_pointer_is_replaced_only_while_it_is_what_was_read(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "s3":
        request.getfixturevalue("s3")
    url = {"local": str(tmp_path / "o"), "s3": fresh_url(), "memory": f"memory://r{tmp_path}"}[kind]
    objects = open_folder(url)
    assert objects.replace("a", b"one", None)
    assert not objects.replace("a", b"two", None), "it is there by now"
    data, tag = objects.read_tagged("a", 10)
    assert data == b"one" and objects.replace("a", b"three", tag)
    assert not objects.replace("a", b"four", tag), "it is another one by now"
    assert objects.read("a") == b"three"
    with pytest.raises(CorruptionError, match="at most 2"):
        objects.read_tagged("a", 2)


def test_a_replacement_whose_answer_is_lost_counts_once(s3: Proxy) -> None:
    objects = open_folder(fresh_url())
    objects.replace("a", b"one", None)
    _, tag = objects.read_tagged("a", 10)
    tried = []

    def fault(_number: int, request: Any) -> str | None:
        if request.method == "PUT":
            tried.append(request)
        return "cut" if request.method == "PUT" and len(tried) == 1 else None

    s3.fault = fault
    try:
        assert objects.replace("a", b"two", tag)
    finally:
        s3.clear()
    assert objects.read("a") == b"two"


def test_a_publisher_that_always_loses_says_so(
    db: deeplake.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Local, "replace", lambda *_: False)
    with pytest.raises(LockedError, match="publish again"):
        db.publish(tmp_path / "there")


# -- what is copied ----------------------------------------------------------------------------------------------------


def test_shards_that_another_process_holds_open_are_published_as_committed(folder: Path, tmp_path: Path) -> None:
    with deeplake.connect(folder) as writer, deeplake.connect(folder) as publisher:
        writer.execute("CREATE TABLE b (id BIGINT PRIMARY KEY, data BLOB)")
        writer.insert("b", [{"data": bytes([i]) * 70_000} for i in range(3)])
        writer.execute("INSERT INTO b (data) VALUES (%s)", [b"rests"])
        publisher.publish(tmp_path / "there")
        writer.insert("b", [{"data": b"later" * 20_000}])
        with deeplake.connect(tmp_path / "there") as reader:
            found = [r.data.bytes() for r in reader.execute("SELECT data FROM b ORDER BY id")]
            assert found == [*(bytes([i]) * 70_000 for i in range(3)), b"rests"]
            assert reader.verify().problems == ()
    for shard in (tmp_path / "there").rglob("*.tar"):
        with tarfile.open(shard) as tar:
            assert tar.getmembers()


def test_adopted_tars_of_this_machine_are_copied(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {f"k{i}.bin": bytes([i]) * 2_000 for i in range(3)})
    with deeplake.connect(tmp_path / "s") as db:
        db.ingest("t", str(path))
        db.publish(tmp_path / "there")
    shutil.rmtree(tmp_path / "s")
    path.unlink()
    with deeplake.connect(tmp_path / "there") as reader:
        column = reader.tables()["t"].blobs[0].name
        rows = reader.execute(f"SELECT {column} FROM t ORDER BY key")
        assert [r[0].bytes() for r in rows] == [bytes([i]) * 2_000 for i in range(3)]
        assert reader.verify().problems == ()


def test_nothing_published_names_a_folder_of_the_publishers_machine(tmp_path: Path) -> None:
    home = tmp_path / "a home"
    pictures = home / "pictures"
    pictures.mkdir(parents=True)
    for i in range(2):
        (pictures / f"{i}.png").write_bytes(
            encode(ColumnType.parse("IMAGE"), np.full((8, 8, 3), i, np.uint8), where="test").data
        )
    (home / "rows.csv").write_text("a,b\n1,x\n")
    np.save(home / "v.npy", np.eye(4, dtype=np.float32))
    path = tar(home / "a.tar", {f"k{i}.bin": bytes([i]) * 2_000 for i in range(3)})
    with deeplake.connect(home / "s") as db:
        names = {"t": path, "pictures": pictures, "one": pictures / "0.png", "rows": home / "rows.csv"}
        for table, source in {**names, "v": home / "v.npy"}.items():
            db.ingest(table, str(source))
        assert [c.message for c in db.log()][::-1] == [
            f"ingest {name}" for name in ("a.tar", "pictures", "0.png", "rows.csv", "v.npy")
        ]
        db.execute(f"SELECT count(*) FROM rows WHERE b = '{home}'")
        data = bytearray(path.read_bytes())
        data[600] ^= 1
        path.write_bytes(data)
        column = db.tables()["t"].blobs[0].name
        stream = db.stream(f"SELECT id, {column} FROM t", batch_size=1, on_error="skip")
        assert len(list(stream)) == 3
        assert "a%20home" in stream.stats.skipped[0].reason
        db.quarantine(stream.stats.skipped)
        db.quarantine("k1", reason=f"{home}/s/shards/x.tar is bad")
        data[600] ^= 1
        path.write_bytes(data)
        db.publish(tmp_path / "there")
    for file in (tmp_path / "there").rglob("*"):
        found = file.read_bytes() if file.is_file() else b""
        assert str(tmp_path).encode() not in found and b"a home" not in found and b"a%20home" not in found, file
    with deeplake.connect(tmp_path / "there") as reader:
        assert reader.quarantined()[0].reason.startswith("a.tar: key 'k0'")
        assert reader.quarantined()[1].reason == "shards/x.tar is bad"
        assert reader.verify().ok


def test_a_store_on_an_object_storage_is_published_beside_its_objects(s3: Proxy, tmp_path: Path) -> None:
    url = fresh_url()
    with deeplake.connect(tmp_path / "s", storage=url) as db:
        db.execute("CREATE TABLE b (id BIGINT PRIMARY KEY, data BLOB, e VECTOR(4))")
        db.insert("b", [{"data": bytes([i]) * 70_000, "e": np.full(4, i + 1, np.float32)} for i in range(3)])
        assert db.publish().copied == 0
        assert db.publish(fresh_url()).copied >= 2
    with deeplake.connect(url) as reader:
        assert [r.data.bytes()[0] for r in reader.execute("SELECT data FROM b ORDER BY id")] == [0, 1, 2]


# -- refused -----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_published_or_opened_is_refused(db: deeplake.Database, tmp_path: Path) -> None:
    with db.transaction(), pytest.raises(InputError, match="outside of a transaction"):
        db.publish(tmp_path / "there")
    with pytest.raises(NotFoundError, match="nothing was published"):
        deeplake.connect(f"memory://nothing{tmp_path}")
    db.publish(tmp_path / "there")
    with pytest.raises(InputError, match="published store"):
        deeplake.connect(tmp_path / "there", storage="s3://bucket/x")


def test_nothing_is_published_where_another_store_lies(db: deeplake.Database, tmp_path: Path) -> None:
    with deeplake.connect(tmp_path / "other"), pytest.raises(InputError, match="another store"):
        db.publish(tmp_path / "other")
    url = f"memory://claimed{tmp_path}"
    with deeplake.connect(tmp_path / "third", storage=url) as third:
        with pytest.raises(InputError, match="another store"):
            db.publish(url)
        assert third.publish().version == 1
        third.execute("CREATE TABLE t (id BIGINT PRIMARY KEY)")
        open_folder(f"{url}-moved").write("store.json", open_folder(url).read("store.json"))
        assert third.publish(f"{url}-moved").version == 1, "a place of the same store"


def _repointed(target: Path, change: Callable[[sqlite3.Connection], object]) -> None:
    """Publishes a hostile snapshot in place of the good one."""
    pointer, _ = read_pointer(Local(str(target)))
    assert pointer is not None
    path = target / pointer.snapshot
    with sqlite3.connect(path) as connection:
        change(connection)
    connection.close()
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    made = Pointer(pointer.version + 1, pointer.snapshot, len(data), digest, pointer.commit)
    (target / "published.json").write_bytes(made.to_json())


@pytest.mark.parametrize("kind", ["shards/**/*.tar", "vectors/**/*.npy"])
def test_a_damaged_file_is_found_before_it_is_published(folder: Path, tmp_path: Path, kind: str) -> None:
    with deeplake.connect(folder) as db:
        db.optimize()
    damaged = max(folder.glob(kind), key=lambda path: path.stat().st_size)
    body = bytearray(damaged.read_bytes())
    body[len(body) // 2] ^= 4
    damaged.write_bytes(body)
    told = rf"{re.escape(damaged.name)} is not as it was written"
    with deeplake.connect(folder) as db, pytest.raises(CorruptionError, match=told):
        db.publish(tmp_path / "there")
    assert not list((tmp_path / "there").glob("published*.json"))


@pytest.mark.parametrize("url", ["file:///etc/passwd", "../../secret.tar", "/etc/passwd", "file:///tmp/x#0"])
def test_a_snapshot_never_opens_files_of_the_readers_machine(db: deeplake.Database, tmp_path: Path, url: str) -> None:
    target = tmp_path / "there"
    db.publish(target)

    def change(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE _dl_files SET url = ? WHERE kind = 'shard'", (url,))
        connection.execute("INSERT OR REPLACE INTO _dl_meta VALUES ('adopted_roots', '[\"file:///\"]')")
        connection.execute("INSERT OR REPLACE INTO _dl_meta VALUES ('storage', '/')")

    _repointed(target, change)
    with deeplake.connect(target) as reader:
        with pytest.raises(StoreError, match=r"refused|leads outside|only files under"):
            reader.execute("SELECT thumbnail FROM generations WHERE id = 1")[0].thumbnail.bytes()
        assert not reader.verify().ok


@pytest.mark.parametrize(
    "wrong",
    [
        {"snapshot": "../../etc/passwd"},
        {"snapshot": "published/../x.sqlite"},
        {"size": -1},
        {"size": 1 << 60},
        {"sha256": "zz"},
        {"version": "1"},
        {"more": 1},
        {"format": 2},
    ],
)
def test_a_pointer_that_is_none_is_refused(db: deeplake.Database, tmp_path: Path, wrong: dict[str, Any]) -> None:
    target = tmp_path / "there"
    db.publish(target)
    good = json.loads((target / "published.json").read_text())
    (target / "published.json").write_text(json.dumps({**good, **wrong}))
    with pytest.raises((CorruptionError, StoreError), match=r"pointer|upgrade"):
        deeplake.connect(target)


def test_a_flipped_bit_of_the_snapshot_is_found_there_and_mended_in_the_cache(
    db: deeplake.Database, tmp_path: Path, cache: Path
) -> None:
    target = tmp_path / "there"
    db.publish(target)
    with deeplake.connect(target) as reader:
        before = contents(reader)
    (held,) = cache.rglob("catalog.sqlite")
    data = bytearray(held.read_bytes())
    data[len(data) // 2] ^= 1
    held.write_bytes(data)
    with deeplake.connect(target) as reader:
        assert contents(reader) == before, "fetched again"
    (snapshot,) = (target / "published").glob("*.sqlite")
    snapshot.write_bytes(data)
    shutil.rmtree(cache)
    with pytest.raises(CorruptionError, match="not what was published"):
        deeplake.connect(target)


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_publishes_and_others_read(folder: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "there")
    assert ran(folder, "publish", target).strip() == target
    assert json.loads(ran(folder, "publish", target, "--json"))["version"] == 2
    assert "6" in ran(f"file://{target}", "sql", "SELECT count(*) FROM generations", "--format", "csv")
    assert run(f"file://{target}", "sql", "DELETE FROM generations").exit_code != 0
    assert os.path.exists(folder / "catalog.sqlite")
