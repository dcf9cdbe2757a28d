"""Work that needs files which no row may name any more keeps them from gc, for as long as it lives and no longer."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from object_store import Proxy, fresh_url, s3_server
from tars import tar

import deeplake_loader as deeplake
from deeplake_loader.care import leases, publishing
from deeplake_loader.errors import InputError, LockedError
from deeplake_loader.merging import retention
from deeplake_loader.storage.objects import Local

KILLED = """
import os, signal, sys
import deeplake_loader as deeplake
from deeplake_loader.care import publishing
publishing._point = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
deeplake.connect(sys.argv[1]).publish()
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEEPLAKE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[deeplake.Database]:
    """Rows in sealed shards, and rows of a tar that was adopted."""
    with deeplake.connect(tmp_path / "s") as made:
        made.execute("CREATE TABLE b (id BIGINT PRIMARY KEY, data BLOB)")
        for i in range(3):
            made.insert("b", [{"data": body(i)}])
        made.ingest("t", str(tar(tmp_path / "a.tar", {f"k{i}.bin": body(i) for i in range(3)})))
        made.optimize()
        yield made


def body(i: int) -> bytes:
    return bytes([i + 1]) * 70_000


def check(reader: deeplake.Database) -> None:
    assert [r.data.bytes() for r in reader.execute("SELECT data FROM b ORDER BY id")] == [body(i) for i in range(3)]
    assert [r.bin.bytes() for r in reader.execute("SELECT bin FROM t ORDER BY key")] == [body(i) for i in range(3)]
    assert reader.verify().problems == ()


def lose_everything(folder: Path) -> retention.Garbage:
    """Forgets all rows and their history, and removes what nothing needs then."""
    with deeplake.connect(folder) as other:
        other.execute("DELETE FROM b")
        other.execute("DELETE FROM t")
        other.optimize(keep=0)
        return other.gc(dry_run=False, older_than_s=0)


def before(
    owner: Any, name: str, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch, *, times: int = 99
) -> None:
    """Lets ``act`` happen before each call."""
    known, left = getattr(owner, name), [times]

    def call(*args: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            act()
        return known(*args, **options)

    monkeypatch.setattr(owner, name, call)


STEPS = [(publishing, "_Placing"), (publishing._Placing, "place"), (publishing, "_seal"), (publishing, "_point")]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step[1])
@pytest.mark.parametrize("beside", [True, False], ids=["beside", "elsewhere"])
def test_what_a_publication_names_outlives_a_gc_without_an_age_limit(
    db: deeplake.Database, tmp_path: Path, step: tuple[Any, str], beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[retention.Garbage] = []
    before(*step, lambda: found.append(lose_everything(tmp_path / "s")), monkeypatch, times=1)
    db.publish(None if beside else tmp_path / "there")
    target = shutil.copytree(tmp_path / "s", tmp_path / "seen") if beside else tmp_path / "there"
    (tmp_path / "a.tar").unlink()
    if beside:
        (target / "catalog.sqlite").unlink()
    with deeplake.connect(target) as reader:
        check(reader)
    assert [one.held for one in found] == [1]
    after = db.gc(older_than_s=0)
    assert after.held == 0 and bool(after.files) != beside, "what was not published goes when the publication is over"


def test_all_is_held_until_the_snapshot_says_what_is_needed(
    db: deeplake.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_everything(tmp_path / "s")
    with db.transaction():
        db.insert("b", [{"data": body(9)}])
    (tmp_path / "s" / "shards" / "b" / "stray.tar").write_bytes(b"left by a killed writer")
    found: list[retention.Garbage] = []

    def collect() -> None:
        with deeplake.connect(tmp_path / "s") as other:
            found.append(other.gc(older_than_s=0))

    before(publishing, "copy_file", collect, monkeypatch)
    before(publishing, "_seal", collect, monkeypatch)
    db.publish(tmp_path / "there")
    assert [(len(one.files), one.held) for one in found] == [(0, 1), (1, 1)]
    assert db.gc(older_than_s=0).files == ("shards/b/stray.tar",)


@pytest.mark.parametrize("beside", [True, False], ids=["beside", "elsewhere"])
def test_a_shard_that_others_hold_open_is_kept_until_it_is_copied(
    db: deeplake.Database, tmp_path: Path, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish() -> None:
        with deeplake.connect(tmp_path / "s") as publisher:
            publisher.publish(None if beside else tmp_path / "there")

    def lose() -> None:
        db.execute("DELETE FROM b")
        db.optimize(keep=0)
        found.append(db.gc(dry_run=False, older_than_s=0))

    found: list[retention.Garbage] = []
    db.insert("b", [{"data": body(3)}])
    before(publishing._Placing, "place", lose, monkeypatch, times=1)
    publish()
    assert [one.held for one in found] == [1]
    target = shutil.copytree(tmp_path / "s", tmp_path / "seen") if beside else tmp_path / "there"
    if beside:
        (target / "catalog.sqlite").unlink()
    with deeplake.connect(target) as reader:
        assert [r.data.bytes() for r in reader.execute("SELECT data FROM b ORDER BY id")] == [body(i) for i in range(4)]


def test_a_killed_publication_holds_its_files_for_a_while(
    db: deeplake.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "s")], check=False)
    assert done.returncode == -signal.SIGKILL
    first = lose_everything(tmp_path / "s")
    assert first.held == 1 and not any(name.endswith(".tar") for name in first.files)
    assert leases.held(db._catalog).count == 1
    monkeypatch.setattr(leases, "LIFE_S", 0.0)
    gone = db.gc(dry_run=False, older_than_s=0)
    assert gone.held == 0 and sum(name.startswith("published/") for name in gone.files) == 2
    assert sum(name.endswith(".tar") for name in gone.files) == 2, "ours, and the copy of the one that was adopted"
    assert not db._catalog.fetchall("SELECT key FROM _dl_meta WHERE key LIKE 'lease %' OR key LIKE 'held %'")
    assert db.gc(older_than_s=0).files == () and db.verify().ok


def test_a_publication_that_gc_gave_up_says_so_and_is_not_pointed_at(
    db: deeplake.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lapse() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(leases, "LIFE_S", -1.0)
            lose_everything(tmp_path / "s")

    before(publishing, "_seal", lapse, monkeypatch)
    with pytest.raises(LockedError, match="stood still"):
        db.publish()
    assert not (tmp_path / "s" / "published.json").exists()


def test_a_lease_is_renewed_while_its_work_goes_on_and_gone_afterwards(
    db: deeplake.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_RENEWED_S", 0.01)
    renewed = threading.Event()
    known = leases._now

    def now(catalog: Any) -> str:
        if threading.current_thread() is not threading.main_thread():
            renewed.set()
        return known(catalog)

    monkeypatch.setattr(leases, "_now", now)
    with leases.hold(db._catalog, ["shards/b/x.tar"]):
        assert renewed.wait(60)
        assert leases.held(db._catalog) == leases.Held(1, False, frozenset({"shards/b/x.tar"}))
    assert leases.held(db._catalog) == leases.Held(0, False, frozenset())


def test_leases_are_no_commits_and_no_part_of_what_is_published(db: deeplake.Database, tmp_path: Path) -> None:
    commits = len(db.log())
    with leases.hold(db._catalog, ["a"]):
        assert len(db.log()) == commits
    db.publish(tmp_path / "there")
    with deeplake.connect(tmp_path / "there") as reader:
        assert leases.held(reader._catalog).count == 0
        assert not reader._catalog.fetchall("SELECT key FROM _dl_meta WHERE key LIKE 'held %'")


def test_a_copy_that_gc_is_removing_is_made_again_under_another_name(
    db: deeplake.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.publish()
    with db.transaction():
        rows = db.execute("SELECT key, bin FROM t ORDER BY key")
        assert len(rows) == 3
    for name in ("published.json", *(f"published/{p.name}" for p in (tmp_path / "s" / "published").iterdir())):
        (tmp_path / "s" / name).unlink()  # so the copy is one of nobody's

    def publish() -> None:
        with deeplake.connect(tmp_path / "s") as other:
            other.publish()

    before(Local, "delete", publish, monkeypatch, times=1)
    gone = db.gc(dry_run=False, older_than_s=0).files
    assert any("adopted-" in name for name in gone)
    target = shutil.copytree(tmp_path / "s", tmp_path / "seen")
    (target / "catalog.sqlite").unlink()
    with deeplake.connect(target) as reader:
        check(reader)


def test_a_store_opened_read_only_is_published_elsewhere_only(db: deeplake.Database, tmp_path: Path) -> None:
    with deeplake.connect(tmp_path / "s", read_only=True) as reader:
        with pytest.raises(InputError, match="read-only"):
            reader.publish()
        reader.publish(tmp_path / "there")
    with deeplake.connect(tmp_path / "there") as reader:
        check(reader)


@pytest.fixture(scope="module")
def s3() -> Iterator[Proxy]:
    with s3_server() as proxy:
        yield proxy


def test_a_gc_without_an_age_limit_leaves_what_optimize_is_uploading(
    s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deeplake_loader.storage.mirror import Mirror

    with deeplake.connect(tmp_path / "s", storage=fresh_url()) as db:
        db.execute("CREATE TABLE b (id BIGINT PRIMARY KEY, data BLOB)")
        for i in range(3):
            db.insert("b", [{"data": body(i)}])
        found: list[retention.Garbage] = []

        def collect() -> None:
            with deeplake.connect(tmp_path / "s") as other:
                found.append(other.gc(dry_run=False, older_than_s=0))

        before(Mirror, "upload", collect, monkeypatch)
        db.optimize()
        assert found and all(one.held == 1 and one.uploads == 0 for one in found)
        assert [r.data.bytes() for r in db.execute("SELECT data FROM b ORDER BY id")] == [body(i) for i in range(3)]
        assert db.verify().ok
