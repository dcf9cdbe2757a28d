"""Changes of the schema: what was rolled back leaves nothing, names do not collide, and two handles do not undo each
other's ALTER."""

from __future__ import annotations

import gc
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import deeplake_loader as deeplake
from deeplake_loader import errors

pytestmark = pytest.mark.both_catalogs
Opens = Callable[..., deeplake.Database]


class Undo(Exception):
    pass


def columns(db: deeplake.Database, table: str = "t") -> list[str]:
    return [column.name for column in db.tables()[table].columns]


@pytest.mark.parametrize("nested", [False, True])
def test_a_table_made_again_after_a_rollback_is_not_taken_for_the_first_one(
    db: deeplake.Database, nested: bool
) -> None:
    def first() -> None:
        with pytest.raises(Undo), db.transaction():
            db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, a INTEGER, v VECTOR(2))")
            db.execute("INSERT INTO t (a, v) VALUES (?, ?)", [1, [1, 2]])
            assert db.execute("SELECT * FROM t").keys() == ("id", "a", "v")
            raise Undo

    def second() -> None:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, a TEXT, v VECTOR(3), b TEXT)")
        db.execute("INSERT INTO t (a, v) VALUES (?, ?)", ["one", [1, 2, 3]])

    if nested:
        with db.transaction():
            first()
            second()
    else:
        first()
        second()
    row = db.execute("SELECT * FROM t")[0]
    assert row.keys() == ("id", "a", "v", "b") and row.a == "one" and row.v.tolist() == [1, 2, 3]


def waiting(db: deeplake.Database, sql: str, params: list[object] | None = None) -> tuple[threading.Thread, list[str]]:
    """A thread that runs the statement while another handle's transaction holds the store."""
    failed: list[str] = []

    def run() -> None:
        try:
            db.execute(sql, params)
        except errors.DeeplakeError as error:
            failed.append(type(error).__name__)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.2)
    return thread, failed


def test_two_handles_that_alter_a_table_at_once_both_add_their_column(db: deeplake.Database, reconnect: Opens) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY)")
    with reconnect() as other:
        assert columns(other) == ["id"]
        with db.transaction():
            db.execute("ALTER TABLE t ADD COLUMN x INTEGER")
            thread, failed = waiting(other, "ALTER TABLE t ADD COLUMN y TEXT")
        thread.join()
        assert failed == [] and columns(db) == columns(other) == ["id", "x", "y"]


@pytest.mark.sqlite_only("PostgreSQL's own locks order an INSERT and an ALTER")
def test_a_value_that_waited_for_the_lock_is_checked_against_the_table_as_it_is_then(
    db: deeplake.Database, reconnect: Opens
) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, a TEXT)")
    with reconnect() as other:
        with db.transaction():
            db.execute("DROP TABLE t")
            db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, a INTEGER)")
            thread, failed = waiting(other, "INSERT INTO t (a) VALUES (%s)", ["no number"])
        thread.join()
    assert failed == ["TypeMismatchError"] and len(db.execute("SELECT * FROM t")) == 0


def test_a_quoted_upper_case_table_takes_every_verb(db: deeplake.Database) -> None:
    db.execute('CREATE TABLE "Shots" (id BIGINT PRIMARY KEY, a TEXT, data BLOB, v VECTOR(2))')
    db.execute('CREATE TABLE IF NOT EXISTS "Shots" (id BIGINT PRIMARY KEY)')
    db.execute('INSERT INTO "Shots" (a, data, v) VALUES (?, ?, ?)', ["one", b"1", [1, 2]])
    assert db.insert("Shots", [{"a": "two", "data": b"2", "v": [3, 4]}]) == 1
    assert [row.data.bytes() for row in db.execute('SELECT data FROM "Shots" ORDER BY id')] == [b"1", b"2"]
    found = db.search("Shots", "v", [3, 4], k=1)
    assert not isinstance(found, list) and found[0].a == "two"
    db.execute('ALTER TABLE "Shots" ADD COLUMN n INTEGER')
    db.execute('ALTER TABLE "Shots" RENAME COLUMN a TO title')
    db.execute('UPDATE "Shots" SET n = 1, title = %s', ["new"])
    assert columns(db, "shots") == ["id", "title", "data", "v", "n"]
    db.execute('DROP TABLE IF EXISTS "Shots"')
    assert list(db.tables()) == []


def test_names_that_end_like_our_own_do_not_collide(db: deeplake.Database) -> None:
    for table, column in [("t", "v"), ("t_key", "v"), ("a", "b_c"), ("a_b", "c"), ("log", "t_key"), ("x_log", "key")]:
        db.execute(f"CREATE TABLE {table} (id BIGINT PRIMARY KEY, {column} VECTOR(2))")
        db.insert(table, [{column: [1, 2]}])
    assert len(db.tables()) == 6


def test_a_table_whose_name_differs_in_case_alone_is_refused(db: deeplake.Database) -> None:
    db.execute('CREATE TABLE "Ähre" (id BIGINT PRIMARY KEY, a TEXT)')
    with pytest.raises(errors.SQLError, match="case"):
        db.execute('CREATE TABLE "ähre" (id BIGINT PRIMARY KEY)')
    assert columns(db, "ähre") == ["id", "a"]


@pytest.mark.sqlite_only("files of SQLite")
def test_a_handle_that_was_dropped_unclosed_gives_its_files_back(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, v VECTOR(2), data BLOB)")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        other = deeplake.connect(db.root)
        other.insert("t", [{"v": [1, 2], "data": b"x" * 100_000}])
        assert len(other.execute("SELECT id FROM t ORDER BY cosine_similarity(v, '[1, 2]') DESC, now() LIMIT 1")) == 1
        del other
        gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert len(list(Path(db.root, "shards", "t").glob("*.tar"))) == 1


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("VIDEO(codec='xvid')", "codec 'xvid'; frames can be encoded as h264"),
        ("VIDEO(crf=99)", "crf 99; it must be 0..51"),
        ("VIDEO(fps='fast')", "fps 'fast', which is no number"),
        ("VIDEO(codec='ffv1', preset=3)", "a preset; ffv1 has none"),
        ("VIDEO(pixel_format='rgb99')", "pixel_format 'rgb99'; libx264 writes"),
        ("VIDEO(speed=3)", "no option speed"),
        ("IMAGE(codec='gif')", "codec 'gif'; arrays are written as png"),
        ("IMAGE(quality='high')", "quality 'high'; it must be 1..100"),
        ("IMAGE(size=3)", "no option size"),
        ("AUDIO(sample_rate=0)", "sample_rate 0; it must be 1.."),
        ("AUDIO(codec='mp3')", "codec 'mp3'; samples are written as wav or flac"),
        ("AUDIO(channels=2)", "no option channels"),
        ("BLOB(codec='zip')", "BLOB has no options"),
    ],
)
def test_options_by_which_nothing_could_be_encoded_are_refused_when_the_column_is_made(
    db: deeplake.Database, kind: str, told: str
) -> None:
    with pytest.raises(errors.SQLError, match=re.escape(told)):
        db.execute(f"CREATE TABLE t (id BIGINT PRIMARY KEY, media {kind})")
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY)")
    with pytest.raises(errors.SQLError, match=re.escape(told)):
        db.execute(f"ALTER TABLE t ADD COLUMN media {kind}")
    assert columns(db) == ["id"]
