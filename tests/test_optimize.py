"""Small files become larger ones under the addresses they have; readers, writers and kills change nothing."""

from __future__ import annotations

import os
import signal
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from object_store import Proxy, fresh_url, s3_server

import deeplake_loader as deeplake
from deeplake_loader import store
from deeplake_loader.care import compaction

WIDTH, PER = 8, 5


def vector(i: int) -> np.ndarray:
    return np.random.default_rng(i).normal(size=WIDTH).astype(np.float32)


def blob(i: int) -> bytes:
    return bytes([i % 251]) * (1_000 + 37 * i)


def add(db: deeplake.Database, first: int, count: int = PER) -> None:
    """One transaction whose bytes go to files of their own."""
    rows = range(first, first + count)
    with db.transaction():
        db.insert("t", [{"id": i, "data": blob(i), "e": vector(i)} for i in rows])
    with db._catalog.transaction("seal"):
        db._shards.seal()
        db._vectors.seal()


def fill(db: deeplake.Database, files: int = 4) -> None:
    db.execute(f"CREATE TABLE t (id BIGINT PRIMARY KEY, data BLOB, e VECTOR({WIDTH}))")
    for k in range(files):
        add(db, 1 + PER * k)


def contents(db: deeplake.Database) -> list[tuple[int, bytes, list[float]]]:
    return [(r.id, r.data.bytes(), r.e.tolist()) for r in db.execute("SELECT id, data, e FROM t ORDER BY id")]


def expected(count: int) -> list[tuple[int, bytes, list[float]]]:
    return [(i, blob(i), vector(i).tolist()) for i in range(1, count + 1)]


def addresses(db: deeplake.Database) -> list[Any]:
    return db._catalog.fetchall("SELECT id, data, e FROM t ORDER BY id")


def files(folder: Path) -> dict[str, int]:
    """How many files of each kind there are."""
    found = [p for top in ("shards", "vectors") for p in (folder / top).rglob("*") if p.is_file()]
    return {kind: sum(p.suffix == kind for p in found) for kind in (".tar", ".idx", ".npy")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def db(folder: Path) -> Iterator[deeplake.Database]:
    with deeplake.connect(folder) as database:
        fill(database)
        yield database


# -- addresses ---------------------------------------------------------------------------------------------------------


def test_small_files_become_one_and_no_address_changes(db: deeplake.Database, folder: Path) -> None:
    before = addresses(db)
    assert files(folder) == {".tar": 4, ".idx": 4, ".npy": 4}
    db.optimize()
    assert addresses(db) == before and contents(db) == expected(20)
    db.gc(dry_run=False, older_than_s=0)
    assert files(folder) == {".tar": 1, ".idx": 1, ".npy": 1}
    assert contents(db) == expected(20) and db.verify().problems == ()
    with deeplake.connect(folder) as other:
        assert contents(other) == expected(20)
        assert [r.id for r in other.search("t", "e", vector(13), k=1)] == [13]


def test_the_merged_files_are_read_by_tarfile_and_numpy(db: deeplake.Database, folder: Path) -> None:
    db.optimize()
    db.gc(dry_run=False, older_than_s=0)
    (shard,), (matrix,) = folder.glob("shards/t/*.tar"), folder.glob("vectors/t/e/*.npy")
    with tarfile.open(shard) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar.getmembers() if m.name.endswith(".bin")}  # type: ignore[union-attr]
    assert sorted(members.values()) == sorted(blob(i) for i in range(1, 21))
    assert np.array_equal(np.load(matrix), np.stack([vector(i) for i in range(1, 21)]))
    row = db.execute("SELECT data FROM t WHERE id = 17")[0].data
    with open(folder / row.url, "rb") as file:
        file.seek(db.locate(row._address).offset)
        assert file.read(len(blob(17))) == blob(17)


def test_merged_files_merge_again_and_large_ones_stay(db: deeplake.Database, folder: Path) -> None:
    db.optimize()
    for k in range(4, 8):
        add(db, 1 + PER * k)
    before = addresses(db)
    db.optimize()
    db.gc(dry_run=False, older_than_s=0)
    assert files(folder) == {".tar": 1, ".idx": 1, ".npy": 1}
    assert addresses(db) == before and contents(db) == expected(40) and db.verify().problems == ()
    add(db, 41, 1)
    assert compaction.merge_small(db._catalog) == 0, "a byte moves only with as many others"
    assert compaction.merge_small(db._catalog, small=10) == 0


def test_a_full_file_takes_no_more(db: deeplake.Database, folder: Path) -> None:
    size = max(p.stat().st_size for p in folder.glob("shards/t/*.tar"))
    compaction.merge_small(db._catalog, full=2 * size)
    db.gc(dry_run=False, older_than_s=0)
    assert files(folder)[".tar"] == 2 and contents(db) == expected(20)


def test_branches_and_points_read_what_they_had(db: deeplake.Database, folder: Path) -> None:
    db.tag("v1")
    with db.branch("b"):
        db.execute("UPDATE t SET data = %s WHERE id = 3", [b"theirs" * 100])
    db.execute("DELETE FROM t WHERE id = 4")
    db.optimize()
    db.gc(dry_run=False, older_than_s=0)
    with db.at("v1") as then:
        assert contents(then) == expected(20)
    with db.checkout("b"):
        assert contents(db)[2][1] == b"theirs" * 100
    db.merge("b")
    assert len(contents(db)) == 19 and contents(db)[2][1] == b"theirs" * 100


def test_a_damaged_file_is_left_apart_with_a_warning(db: deeplake.Database, folder: Path) -> None:
    path = sorted(folder.glob("shards/t/*.tar"))[1]
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.warns(RuntimeWarning, match="small files stay apart"):
        db.optimize()
    assert files(folder)[".tar"] == 4 and not db.verify().ok


# -- beside readers and writers ----------------------------------------------------------------------------------------


def test_a_stream_reads_on_while_its_files_are_merged_and_removed(db: deeplake.Database, folder: Path) -> None:
    stream = db.stream("SELECT id, data, e FROM t", batch_size=1, shuffle=True, transforms={"data": deeplake.Raw()})
    seen = []
    for k, batch in enumerate(stream):
        seen.append((int(batch["id"][0]), bytes(batch["data"][0]), batch["e"][0].tolist()))
        if k == 0:
            with deeplake.connect(folder) as other:
                other.optimize()
                other.gc(dry_run=False, older_than_s=0)
    assert sorted(seen) == expected(20)


def test_files_that_were_emptied_stay_for_the_age_limit(db: deeplake.Database, folder: Path) -> None:
    for path in folder.rglob("*.*"):
        if path.suffix in (".tar", ".idx", ".npy"):
            os.utime(path, (1_000_000, 1_000_000))
    db.optimize()
    assert db.gc(older_than_s=60).files == ()
    assert len(db.gc(older_than_s=0).files) == 12


def test_writers_and_optimizers_at_once_lose_nothing(db: deeplake.Database, folder: Path) -> None:
    errors: list[BaseException] = []

    def run(work: Callable[[deeplake.Database], None]) -> None:
        try:
            with deeplake.connect(folder) as own:
                work(own)
        except BaseException as error:
            errors.append(error)

    def write(own: deeplake.Database) -> None:
        for k in range(4, 8):
            add(own, 1 + PER * k)

    def tidy(own: deeplake.Database) -> None:
        for _ in range(4):
            own.optimize()

    threads = [threading.Thread(target=run, args=(work,)) for work in (write, tidy, tidy)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    db.gc(dry_run=False, older_than_s=0)
    assert contents(db) == expected(40) and db.verify().problems == ()


def test_a_file_that_gc_is_about_to_remove_is_not_named(
    db: deeplake.Database, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gc without an age limit comes between the new file and the commit that names it."""
    real = compaction._switch

    def raced(*given: Any) -> bool:
        with deeplake.connect(folder) as other:
            assert any(name.endswith((".tar", ".npy")) for name in other.gc(dry_run=False, older_than_s=0).files)
        return real(*given)

    monkeypatch.setattr(compaction, "_switch", raced)
    assert compaction.merge_small(db._catalog) == 0
    monkeypatch.undo()
    assert contents(db) == expected(20) and db.verify().problems == ()
    assert compaction.merge_small(db._catalog) == 8
    db.gc(dry_run=False, older_than_s=0)
    assert files(folder) == {".tar": 1, ".idx": 1, ".npy": 1} and contents(db) == expected(20)
    assert db._catalog.fetchall("SELECT count(*) FROM _dl_retired WHERE retired_at > 0") == [(0,)]


# -- killed ------------------------------------------------------------------------------------------------------------

_STEPS = ("write_at", "sync_folder")
_CALLS = ("fsync", "replace", "unlink", "open")


def _kill_at(number: int) -> None:
    """Counts this process's state-changing calls and ends it before one of them."""
    count = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return call

    for name in _STEPS:
        setattr(store, name, counted(getattr(store, name)))
    for name in _CALLS:
        setattr(os, name, counted(getattr(os, name)))
    from deeplake_loader.sqlite_catalog import SqliteCatalog

    for name in ("execute", "executemany", "_commit"):
        setattr(SqliteCatalog, name, counted(getattr(SqliteCatalog, name)))


def _in_child(work: Callable[[], None]) -> int:
    """How a forked child ended."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_killed_at_any_step_the_store_is_whole(tmp_path: Path) -> None:
    import shutil

    with deeplake.connect(tmp_path / "origin") as db:
        fill(db, files=2)

    def work(folder: Path, number: int) -> None:
        with deeplake.connect(folder) as own:
            _kill_at(number)
            own.optimize()
            own.gc(dry_run=False, older_than_s=0)

    number, killed = 1, 0
    while True:
        folder = tmp_path / f"run{number}"
        shutil.copytree(tmp_path / "origin", folder)
        ended = _in_child(lambda folder=folder, number=number: work(folder, number))  # type: ignore[misc]
        assert ended in (0, -signal.SIGKILL)
        with deeplake.connect(folder) as db:
            assert contents(db) == expected(10), number
            assert db.verify().problems == (), number
            db.optimize()
            db.gc(dry_run=False, older_than_s=0)
            assert contents(db) == expected(10) and files(folder) == {".tar": 1, ".idx": 1, ".npy": 1}, number
        shutil.rmtree(folder)
        if ended == 0:
            break
        killed, number = killed + 1, number + 3 + number // 10
    assert killed > 10


# -- on an object storage ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3() -> Iterator[Proxy]:
    with s3_server() as proxy:
        yield proxy


def objects(url: str) -> list[str]:
    import boto3

    prefix = url.removeprefix("s3://bucket/") + "/"
    listed = boto3.client("s3").list_objects_v2(Bucket="bucket", Prefix=prefix).get("Contents", [])
    return [o["Key"].removeprefix(prefix) for o in listed]


def test_objects_are_merged_and_removed_and_unfinished_uploads_given_up(s3: Proxy, tmp_path: Path) -> None:
    import boto3

    url = fresh_url()
    with deeplake.connect(tmp_path / "s", storage=url, cache_dir=tmp_path / "cache") as db:
        fill(db, files=3)
        before = addresses(db)
        db.optimize()
        client = boto3.client("s3")
        client.create_multipart_upload(Bucket="bucket", Key=f"{url.removeprefix('s3://bucket/')}/shards/t/half.tar")
        client.put_object(Bucket="bucket", Key=f"{url.removeprefix('s3://bucket/')}/shards/t/stray.tar", Body=b"x")
        assert db.gc(older_than_s=3_600).files == ()
        done = db.gc(dry_run=False, older_than_s=0)
        assert len(done.files) == 10 and done.uploads == 1
        kept = [name for name in objects(url) if name.startswith(("shards/", "vectors/"))]
        assert sorted(Path(name).suffix for name in kept) == [".idx", ".npy", ".tar"]
        assert not client.list_multipart_uploads(Bucket="bucket").get("Uploads")
        assert addresses(db) == before and contents(db) == expected(15) and db.verify().problems == ()
    with deeplake.connect(tmp_path / "s", cache_dir=tmp_path / "fresh") as db:
        s3.clear()
        assert contents(db) == expected(15)
        assert len(s3.gets) <= 3, "one object of each kind"


@pytest.mark.parametrize("cache_bytes", [None, 0, 300_000])
def test_a_stream_from_a_storage_reads_on_while_its_objects_go(
    s3: Proxy, tmp_path: Path, cache_bytes: int | None
) -> None:
    with deeplake.connect(
        tmp_path / "s", storage=fresh_url(), cache_dir=tmp_path / "cache", cache_bytes=cache_bytes
    ) as db:
        fill(db, files=6)
        query = "SELECT id, data, e FROM t"
        stream = db.stream(query, batch_size=1, shuffle=True, prefetch=1, transforms={"data": deeplake.Raw()})
        seen = []
        for k, batch in enumerate(stream):
            seen.append((int(batch["id"][0]), bytes(batch["data"][0]), batch["e"][0].tolist()))
            if k == 0:
                with deeplake.connect(tmp_path / "s", cache_dir=tmp_path / "other") as other:
                    other.optimize()
                    assert len(other.gc(dry_run=False, older_than_s=0).files) == 18
        assert sorted(seen) == expected(30) == contents(db)


def test_a_merged_store_moves_to_another_folder(db: deeplake.Database, folder: Path, tmp_path: Path) -> None:
    import shutil

    db.optimize()
    db.gc(dry_run=False, older_than_s=0)
    for top in ("shards", "vectors"):
        shutil.copytree(folder / top, tmp_path / "new" / top)
    db.relocate(tmp_path / "new")
    for top in ("shards", "vectors"):
        shutil.rmtree(folder / top)
    with deeplake.connect(folder) as moved:
        assert contents(moved) == expected(20) and moved.verify().problems == ()


def test_shards_of_a_store_over_postgresql_are_merged(postgres_server: Any, tmp_path: Path) -> None:
    name = postgres_server.database()
    with deeplake.connect(postgres_server.url(name), storage=tmp_path / "bytes") as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, data BLOB)")
        for k in range(3):
            db.insert("t", [{"id": k * 2 + i, "data": blob(k * 2 + i)} for i in (1, 2)])
            with db._catalog.transaction("seal"):
                db._shards.seal()
        db.optimize()
        db.gc(dry_run=False, older_than_s=0)
        assert [r.data.bytes() for r in db.execute("SELECT data FROM t ORDER BY id")] == [blob(i) for i in range(1, 7)]
        assert files(tmp_path / "bytes")[".tar"] == 1 and db.verify().problems == ()
    postgres_server.drop(name)
