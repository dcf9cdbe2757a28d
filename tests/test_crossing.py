"""A store in PostgreSQL is published as a catalog in a file, which reads, streams and searches as the server does."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_store import VECTORS, fill
from conftest import Server
from tars import tar

import deeplake_loader as deeplake
from deeplake_loader.care import crossing, leases, publishing
from deeplake_loader.database import reopen
from deeplake_loader.errors import DeeplakeError, InputError

SCALARS = (
    "CREATE TABLE scalars (a TEXT, n INTEGER, yes BOOLEAN, i SMALLINT, x REAL, y DOUBLE PRECISION, c NUMERIC(10, 2), "
    "d DATE, t TIME, ts TIMESTAMP, tz TIMESTAMPTZ, u UUID, j JSON, b BYTEA, v VARCHAR(20), PRIMARY KEY (a, n))"
)
VALUES = (
    "INSERT INTO scalars VALUES ('é \"''', -5, true, 7, 0.1, 1e300, 12.50, '2026-02-28', '23:59:59.5', "
    "'1969-07-20 20:17:40.123456', '2026-01-01 12:00:00+02', '6ba7b810-9dad-11d1-80b4-00c04fd430c8', "
    "'{\"k\": [1, null]}', '\\x00ff', 'v')"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPLAKE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def db(postgres_server: Server, tmp_path: Path) -> Iterator[deeplake.Database]:
    name = postgres_server.database()
    with deeplake.connect(postgres_server.url(name), storage=tmp_path / "bytes") as made:
        yield made
    postgres_server.drop(name)


def contents(db: deeplake.Database) -> list[Any]:
    rows = db.execute("SELECT * FROM generations ORDER BY id")
    return [tuple(value.bytes() if hasattr(value, "bytes") else value for value in map(_plain, row)) for row in rows]


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, deeplake.rows.Vector) else value


def test_what_was_published_reads_streams_and_searches_as_the_server_does(
    db: deeplake.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crossing, "_ROWS", 4)  # more than one part
    fill(db)
    db.execute(SCALARS)
    db.execute(VALUES)
    db.execute("INSERT INTO scalars (a, n) VALUES ('é', 1), ('é', 2), ('z', 1), ('a', 9)")
    db.ingest("t", str(tar(tmp_path / "a.tar", {f"k{i}.bin": bytes([i]) * 2_000 for i in range(3)})))
    db.execute("CREATE TABLE nothing (id BIGINT PRIMARY KEY, picture IMAGE, v VECTOR(3, float16))")
    (bad,) = db.execute("SELECT thumbnail FROM generations WHERE id = 5")
    db.quarantine(bad.thumbnail.key, reason="blurred")
    db.execute("CREATE TABLE b (id BIGINT PRIMARY KEY, data BLOB)")
    db.insert("b", [{"data": bytes([i]) * 70_000} for i in range(9)])  # in a shard that is still open
    made = db.publish(tmp_path / "there")
    (tmp_path / "a.tar").unlink()
    with deeplake.connect(tmp_path / "there") as reader:
        assert (made.version, made.commit) == (1, reader.log()[0].id)
        assert contents(reader) == contents(db) and len(contents(reader)) == 6
        assert [r.data.bytes()[0] for r in reader.execute("SELECT data FROM b ORDER BY id")] == list(range(9))
        everything = "SELECT * FROM scalars ORDER BY n, a"
        assert [tuple(row) for row in reader.execute(everything)] == [tuple(row) for row in db.execute(everything)]
        assert {t.name: t.primary_key for t in reader.tables().values()} == {
            t.name: t.primary_key for t in db.tables().values()
        }
        query = "SELECT id, cosine_similarity(clip_embedding, %s) AS s FROM generations ORDER BY s DESC LIMIT 4"
        assert [row.id for row in reader.execute(query, [VECTORS[3]])] == [
            row.id for row in db.execute(query, [VECTORS[3]])
        ]
        found, wanted = (h.search("generations", "clip_embedding", VECTORS[2], k=3) for h in (reader, db))
        assert [row.id for row in found] == [row.id for row in wanted]
        streamed = [
            [(batch["id"].tolist(), batch["thumbnail"].tolist()) for batch in handle.stream(
                "SELECT id, thumbnail FROM generations WHERE thumbnail IS NOT NULL ORDER BY id", batch_size=2,
                shuffle=True, seed=3,
            )]
            for handle in (reader, db)
        ]  # fmt: skip
        assert streamed[0] == streamed[1] and sum(len(ids) for ids, _ in streamed[0]) == 4, "one was set aside"
        assert [row.bin.bytes() for row in reader.execute("SELECT bin FROM t ORDER BY key")] == [
            bytes([i]) * 2_000 for i in range(3)
        ]
        assert [q.key for q in reader.quarantined()] == [q.key for q in db.quarantined()]
        assert reader.verify().problems == ()


def test_nothing_that_main_does_not_show_is_published(db: deeplake.Database, tmp_path: Path) -> None:
    fill(db)
    db.execute("CREATE TABLE gone (id BIGINT PRIMARY KEY, data BLOB, note TEXT)")
    db.execute("INSERT INTO gone (data, note) VALUES (%s, 'a secret text')", [b"secret bytes" * 9])
    db.execute("DELETE FROM gone")
    with db.checkout("experiment"):
        db.publish(tmp_path / "there")
    with deeplake.connect(tmp_path / "there") as reader:
        assert contents(reader) == contents(db)
        assert [branch.name for branch in reader.branches()] == ["main"]
    (snapshot,) = (tmp_path / "there" / "published").glob("*.sqlite")
    data = snapshot.read_bytes()
    assert b"secret" not in data and str(tmp_path).encode() not in data
    with sqlite3.connect(snapshot) as connection:
        assert connection.execute("SELECT count(*) FROM generations WHERE id = 77").fetchone() == (0,)
    connection.close()


def test_versions_beside_the_stores_own_files_are_kept_and_replaced(db: deeplake.Database, tmp_path: Path) -> None:
    fill(db)
    first = db.publish()
    db.execute("DELETE FROM generations WHERE id = 1")
    second = db.publish()
    assert (first.version, second.version) == (1, 2)
    gone = db.gc(dry_run=False, older_than_s=0).files
    assert any(name.startswith("vectors/") for name in gone), "those of the first version"
    with deeplake.connect(f"file://{tmp_path}/bytes") as reader:
        assert contents(reader) == contents(db) and len(contents(reader)) == 5
        assert reader.verify().problems == ()


def test_a_gc_without_an_age_limit_leaves_what_is_being_published(
    db: deeplake.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(db)
    db.execute("CREATE TABLE b (id BIGINT PRIMARY KEY, data BLOB)")
    db.insert("b", [{"data": bytes([i]) * 70_000} for i in range(9)])
    db.optimize()
    known, found = publishing._Placing.place, []

    def place(*args: Any, **options: Any) -> None:
        with reopen(db._catalog.location) as other:
            other.execute("DROP TABLE b")
            other.optimize(keep=0)
            found.append(other.gc(dry_run=False, older_than_s=0))
        known(*args, **options)

    monkeypatch.setattr(publishing._Placing, "place", place)
    db.publish(tmp_path / "there")
    assert [one.held for one in found] == [1]
    with deeplake.connect(tmp_path / "there") as reader:
        assert [r.data.bytes()[0] for r in reader.execute("SELECT data FROM b ORDER BY id")] == list(range(9))
    assert any(name.startswith("shards/b/") for name in db.gc(older_than_s=0).files)


def test_leases_live_by_the_servers_clock(db: deeplake.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with leases.hold(db._catalog, ["shards/b/x.tar"]) as lease:
        for hours in (-48, 48):  # another machine's clock
            monkeypatch.setattr(leases, "time", SimpleNamespace(time=lambda by=hours: time.time() + by * 3_600))
            assert leases.held(db._catalog) == leases.Held(1, False, frozenset({"shards/b/x.tar"}))
            leases.forget_dead(db._catalog)
            lease.renew()
        monkeypatch.setattr(leases, "LIFE_S", -1.0)
        assert leases.held(db._catalog).count == 0


def test_a_value_that_a_file_cannot_hold_is_refused_by_its_column(db: deeplake.Database, tmp_path: Path) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, exact NUMERIC)")
    db.execute("INSERT INTO t VALUES (1, 1234567890123456789012.5)")
    with pytest.raises(DeeplakeError, match="exact"):
        db.publish(tmp_path / "there")
    assert not (tmp_path / "there" / "published.json").exists()


def test_a_column_of_a_type_that_a_file_has_not_is_named(db: deeplake.Database, tmp_path: Path) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, words TEXT[])")
    with pytest.raises(InputError, match=r"t\.words is of PostgreSQL's type text\[\]"):
        db.publish(tmp_path / "there")


def test_json_stays_the_value_that_it_is(db: deeplake.Database, tmp_path: Path) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, j JSON)")
    for i, text in enumerate(['"abc"', '"123"', "null", None, "1.5", '{"a": [null, "1"]}', '"[1]"', "true"]):
        db.execute("INSERT INTO t VALUES (%s, CAST(%s AS JSON))", [i, text])
    db.publish(tmp_path / "there")
    query = "SELECT id, j, j IS NULL FROM t ORDER BY id"
    with deeplake.connect(tmp_path / "there") as reader:
        found = [tuple(row) for row in reader.execute(query)]
    assert [row[1] for row in found] == ["abc", "123", None, None, 1.5, {"a": [None, "1"]}, "[1]", True]
    assert [row[2] for row in found] == [False, False, False, True, False, False, False, False]
    assert found == [tuple(row) for row in db.execute(query)]


@pytest.mark.parametrize("kind, keys", [("REAL", "(0.1), (0.2), (0.3), (7)"), ("NUMERIC", "(0.1), (0.25), (1e3)"),
                                        ("TEXT", "('a'), ('B'), ('-b'), ('\u00e9'), ('')")])  # fmt: skip
def test_parts_meet_at_any_key(
    db: deeplake.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, keys: str
) -> None:
    monkeypatch.setattr(crossing, "_ROWS", 1)
    db.execute(f'CREATE TABLE "T;""t" ("K ey" {kind} PRIMARY KEY)')
    db.execute(f'INSERT INTO "T;""t" VALUES {keys}')
    db.publish(tmp_path / "there")
    with deeplake.connect(tmp_path / "there") as reader:
        found, own = ({row[0] for row in one.execute('SELECT * FROM "T;""t"')} for one in (reader, db))
    assert found == own and len(own) == keys.count("(")
