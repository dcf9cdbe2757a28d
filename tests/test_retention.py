"""Old history and unreached bytes go when they are asked to, and not before; what anything needs stays."""

from __future__ import annotations

import datetime as dt
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import deeplake_loader as deeplake
from deeplake_loader.errors import ConflictError, InputError, NotFoundError

pytestmark = pytest.mark.both_catalogs


@pytest.fixture
def db(place: Any) -> Iterator[deeplake.Database]:
    with place.connect() as database:
        database.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, n INTEGER)")
        database.execute("INSERT INTO t VALUES (1, 0), (2, 0)")
        yield database


def logged(db: deeplake.Database) -> int:
    return int(db._catalog.fetchone("SELECT count(*) FROM _dl_log_t")[0])


def count_up(db: deeplake.Database, times: int) -> None:
    for _ in range(times):
        db.execute("UPDATE t SET n = n + 1")


def numbers(db: deeplake.Database) -> list[int]:
    return [row.n for row in db.execute("SELECT n FROM t ORDER BY id")]


# -- undo logs ---------------------------------------------------------------------------------------------------------


def test_the_log_is_pruned_to_the_time_to_keep_and_says_so(db: deeplake.Database) -> None:
    count_up(db, 50)
    old, before = db.log()[10], logged(db)
    db.optimize(keep=dt.timedelta(days=1))
    assert logged(db) == before, "everything happened within a day"
    db.optimize()
    assert logged(db) == before
    db.optimize(keep=0)
    assert logged(db) < before / 10
    assert numbers(db) == [50, 50]
    assert next(c for c in db.log() if c.id == old.id).changes is None
    with pytest.raises(NotFoundError, match="older than the history that is kept"):
        db.at(old.id)
    count_up(db, 1)
    assert db.log(limit=1)[0].changes == {"t": deeplake_counts(changed=2)}


def deeplake_counts(**counts: int) -> object:
    from deeplake_loader.merging.diff import Counts

    return Counts(**counts)


def test_tags_and_branches_keep_the_history_they_stand_on(db: deeplake.Database) -> None:
    count_up(db, 3)
    db.tag("three")
    count_up(db, 3)
    with db.branch("six"):
        db.execute("UPDATE t SET n = 100 WHERE id = 1")
    count_up(db, 20)
    before = logged(db)
    db.optimize(keep=0)
    assert logged(db) < before
    with db.at("three") as then:
        assert numbers(then) == [3, 3]
    with db.checkout("six"):
        assert numbers(db) == [100, 6]
    db.untag("three")
    db.optimize(keep=0)
    with db.checkout("six"):
        assert numbers(db) == [100, 6]
    with pytest.raises(ConflictError) as caught:
        db.merge("six", "main")
    (conflict,) = caught.value.conflicts
    assert (conflict.base["n"], conflict.ours["n"], conflict.theirs["n"]) == (6, 26, 100)


def test_merge_bases_on_a_deleted_branch_stay(db: deeplake.Database) -> None:
    with db.branch("parent"):
        db.execute("UPDATE t SET n = 7 WHERE id = 1")
        for child in ("a", "b"):
            with db.branch(child):
                pass
        db.execute("UPDATE t SET n = 8 WHERE id = 1")
    db.delete_branch("parent")
    db.optimize(keep=0)
    for child in ("a", "b"):
        with db.checkout(child):
            assert numbers(db) == [7, 0]
            db.execute(f"UPDATE t SET n = {10 if child == 'a' else 20} WHERE id = 1")
    with pytest.raises(ConflictError) as caught:
        db.merge("a", "b")
    assert caught.value.conflicts[0].base["n"] == 7
    db.delete_branch("a")
    db.delete_branch("b")
    db.optimize(keep=0)
    listed = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table'",
        "postgres": "SELECT relname FROM pg_class",
    }
    left = [name for (name,) in db._catalog.fetchall(listed[db._catalog.dialect]) if re.match(r"_dl_[bs]\d", name)]
    assert left == [], "nothing needs their overlays any more"
    assert numbers(db) == [0, 0]


def test_a_branch_brought_up_to_date_lets_old_history_go(db: deeplake.Database) -> None:
    with db.branch("b"):
        db.execute("UPDATE t SET n = 100 WHERE id = 1")
    for _ in range(30):
        db.execute("UPDATE t SET n = n + 1 WHERE id = 2")
    db.optimize(keep=0)
    assert logged(db) >= 30
    db.merge("main", into="b")
    db.optimize(keep=0)
    assert logged(db) < 5
    with db.checkout("b"):
        assert numbers(db) == [100, 30]
    db.merge("b", into="main")
    assert numbers(db) == [100, 30]


@pytest.mark.parametrize("wrong", [-1, float("nan"), "1 day", dt.timedelta(days=-1)])
def test_what_is_no_duration_is_refused(db: deeplake.Database, wrong: Any) -> None:
    with pytest.raises(InputError, match="keep is a timedelta or a number of seconds, zero or more"):
        db.optimize(keep=wrong)
    with pytest.raises(InputError, match="older_than_s is a timedelta or a number of seconds, zero or more"):
        db.gc(older_than_s=wrong)


@pytest.mark.parametrize("keep", [dt.timedelta.max, float("inf"), 1e18, 63_000_000_000])
def test_a_duration_beyond_the_calendar_keeps_everything(db: deeplake.Database, keep: Any) -> None:
    first = db.log()[0].id
    db.execute("UPDATE t SET n = 1")
    db.optimize(keep=keep)
    with db.at(first) as past:
        assert past.execute("SELECT sum(n) FROM t").scalar() == 0
    with db.at(dt.datetime(26, 1, 1)) as past:  # before everything, though "26" sorts after "2026"
        assert past.execute("SELECT count(*) FROM t").scalar() == 0
    assert db.gc(older_than_s=1e18).files == ()


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def media(db: deeplake.Database) -> deeplake.Database:
    """Sealed files: a shard of blobs and a file of vectors."""
    db.execute("CREATE TABLE m (id BIGINT PRIMARY KEY, b BLOB, v VECTOR(4))")
    db.insert("m", [{"id": i, "b": bytes([i]) * 100, "v": [i, 0, 0, 1]} for i in range(1, 4)])
    db.optimize()
    return db


def files(db: deeplake.Database) -> set[str]:
    return {
        os.path.relpath(os.path.join(folder, name), db.root)
        for top in ("shards", "vectors")
        for folder, _, names in os.walk(os.path.join(db.root, top))
        for name in names
    }


def check_media(db: deeplake.Database) -> None:
    for row in db.execute("SELECT * FROM m"):
        assert row.b.bytes() == bytes([row.id]) * 100
        np.testing.assert_array_equal(row.v.array(), [row.id, 0, 0, 1])


def test_reachable_bytes_stay_whoever_reaches_them(media: deeplake.Database, place: Any) -> None:
    db, before = media, files(media)
    assert before
    with db.branch("keeps"):
        db.execute("UPDATE m SET id = id + 10 WHERE id = 1")  # copied up: its addresses are in the overlay
        db.execute("UPDATE m SET id = id - 10 WHERE id = 11")
    db.tag("kept")
    db.execute("DELETE FROM m")
    assert db.gc(dry_run=False, older_than_s=0).files == ()
    db.optimize(keep=0)
    assert db.gc(dry_run=False, older_than_s=0).files == ()
    for handle in (db.at("kept"), place.connect(branch="keeps")):
        with handle:
            check_media(handle)
    db.untag("kept")
    db.optimize(keep=0)
    assert db.gc(dry_run=False, older_than_s=0).files == ()
    with db.checkout("keeps"):
        check_media(db)
    assert files(db) == before


def test_bytes_that_nothing_reaches_go_after_a_dry_run_and_the_age_limit(media: deeplake.Database) -> None:
    db, before = media, files(media)
    with db.branch("short-lived"):
        db.execute("DELETE FROM m WHERE id = 1")
    db.execute("DELETE FROM m")
    db.delete_branch("short-lived")
    db.optimize(keep=0)
    shown = db.gc(older_than_s=0)
    assert shown.dry_run and set(shown.files) == before == files(db)
    assert shown.size == sum(os.path.getsize(os.path.join(db.root, name)) for name in before)
    assert db.gc(dry_run=False).files == (), "files of today stay by default"
    done = db.gc(dry_run=False, older_than_s=0)
    assert (set(done.files), done.size) == (before, shown.size)
    assert files(db) == set()
    assert db.gc(older_than_s=0).files == ()
    db.insert("m", [{"id": 1, "b": b"\x01" * 100, "v": [1, 0, 0, 1]}])
    check_media(db)


def test_files_that_no_row_names_are_swept(media: deeplake.Database) -> None:
    db, before = media, files(media)
    for stray in ("shards/m/stray.tar", "vectors/m/v/stray.npy", "vectors/m/v/stray.float16"):
        os.makedirs(os.path.dirname(os.path.join(db.root, stray)), exist_ok=True)
        with open(os.path.join(db.root, stray), "wb") as file:
            file.write(b"left by a crash")
    assert db.gc(dry_run=False).files == ()
    assert len(db.gc(dry_run=False, older_than_s=0).files) == 3
    assert files(db) == before
    check_media(db)


def test_a_stream_keeps_its_commit_while_everything_changes(media: deeplake.Database) -> None:
    db = media
    stream = db.stream("SELECT id, b, v FROM m ORDER BY id", batch_size=3)
    with db.branch("other"):
        db.execute("DELETE FROM m WHERE id = 2")
        on_branch = db.stream("SELECT id, v FROM m ORDER BY id", batch_size=3)
    db.merge("other", into="main")
    db.execute("UPDATE m SET v = %s", [[9, 9, 9, 9]])
    db.gc(dry_run=False, older_than_s=0)
    (batch,), (other,) = list(stream), list(on_branch)
    assert batch["id"].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(batch["v"].numpy(), [[1, 0, 0, 1], [2, 0, 0, 1], [3, 0, 0, 1]])
    assert other["id"].tolist() == [1, 3]
    np.testing.assert_array_equal(other["v"].numpy(), [[1, 0, 0, 1], [3, 0, 0, 1]])
