"""What `db.verify` finds and mends: every kind of damage is made by hand, and a sound store has none."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cli_store import ran, run
from conftest import moving_frames
from object_store import Proxy, fresh_url, s3_server
from tars import tar

import deeplake_loader as deeplake
from deeplake_loader.care import compaction
from deeplake_loader.care.report import VerifyReport
from deeplake_loader.errors import DeeplakeError, InputError

WIDTH = 8


def fill(db: deeplake.Database, rows: int = 6) -> None:
    db.execute(f"CREATE TABLE photos (id BIGINT PRIMARY KEY, label TEXT, photo IMAGE, e VECTOR({WIDTH}))")
    vectors = np.random.default_rng(1).normal(size=(rows, WIDTH)).astype(np.float32)
    photos = [moving_frames(1, seed=i)[0] for i in range(rows)]
    db.insert("photos", [{"label": f"n{i}", "photo": photos[i], "e": vectors[i]} for i in range(rows)])
    with db.branch("other"):
        db.execute("UPDATE photos SET label = 'theirs' WHERE id = 2")
    db.execute("UPDATE photos SET label = 'ours' WHERE id = 1")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed store with digests; tests damage copies of it."""
    folder = tmp_path_factory.mktemp("sound") / "store"
    with deeplake.connect(folder) as db:
        fill(db)
        db.optimize()
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "store"))


def verified(folder: Path | str, **options: Any) -> VerifyReport:
    with deeplake.connect(folder, create=False) as db:
        return db.verify(**options)


def kinds(report: VerifyReport) -> set[str]:
    return {problem.kind for problem in report.problems}


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def sql(folder: Path, text: str, *values: Any) -> list[Any]:
    """Runs a statement on the catalog as a stranger would."""
    with sqlite3.connect(folder / "catalog.sqlite") as connection:
        rows = connection.execute(text, values).fetchall()
    connection.close()
    return rows


# -- a sound store -----------------------------------------------------------------------------------------------------


def test_a_sound_store_has_no_problem_before_and_after_it_is_sealed_and_changed(tmp_path: Path) -> None:
    with deeplake.connect(tmp_path / "s") as db:
        fill(db)
        first = db.verify()
        assert first.ok and not first.problems and first.digests == 0 and first.blobs == 6
        db.optimize()
        second = db.verify()
        assert second.ok and not second.problems and second.digests and (second.blobs, second.vectors) == (6, 6)
        assert "sound" in str(second)
        db.execute("UPDATE photos SET label = upper(label)")
        db.execute("DELETE FROM photos WHERE id = 3")
        db.execute("INSERT INTO photos (label) VALUES ('new')")
        later = db.verify()
        assert later.ok and not later.problems and later.digests == second.digests
        db.optimize(keep=0)
        db.optimize()
        assert not db.verify().problems


def test_a_digest_of_what_has_not_changed_is_not_taken_again(folder: Path) -> None:
    taken = "SELECT kind, name, upto, digest FROM _dl_digests WHERE kind <> 'commits' ORDER BY 1, 2"
    before = sql(folder, taken)
    with deeplake.connect(folder) as db:
        db.execute("CREATE TABLE u (id BIGINT PRIMARY KEY)")
        db.optimize()
    after = [row for row in sql(folder, taken) if not row[1].endswith("u")]
    assert after == before


def test_a_table_of_many_columns_is_sealed_and_verified(tmp_path: Path) -> None:
    with deeplake.connect(tmp_path / "s") as db:
        db.execute(f"CREATE TABLE wide (id BIGINT PRIMARY KEY, {', '.join(f'c{i} INTEGER' for i in range(1_500))})")
        db.insert("wide", [{"c0": 1}, {"c1499": 2}])
        db.optimize()
        found = db.verify()
        assert found.ok and found.digests >= 2


def test_verify_refuses_an_open_transaction(folder: Path) -> None:
    with deeplake.connect(folder) as db, db.transaction(), pytest.raises(InputError, match="outside of a transaction"):
        db.verify()


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_flipped_byte_of_a_blob_is_found_and_named_and_cannot_be_repaired(folder: Path) -> None:
    at, key = sql(folder, 'SELECT "offset" + 5, key FROM _dl_members WHERE ordinal = 2')[0]
    flip(only(folder, "shards/photos/*.tar"), at)
    report = verified(folder, repair=True)
    assert not report.ok and kinds(report) == {"blob"} and key in report.problems[0].where
    assert "put the file back from a copy" in str(report)


def test_a_flipped_byte_between_blobs_is_found_though_every_blob_is_sound(folder: Path) -> None:
    flip(only(folder, "shards/photos/*.tar"), 3)
    report = verified(folder)
    assert kinds(report) == {"file"} and "every blob is sound" in report.problems[0].what


@pytest.mark.parametrize("pattern", ["shards/photos/*.tar", "vectors/photos/e/*.npy"])
@pytest.mark.parametrize("data", [True, False])
def test_a_file_that_is_gone_or_cut_is_found(folder: Path, pattern: str, data: bool) -> None:
    path = only(folder, pattern)
    os.truncate(path, path.stat().st_size - 100)
    assert not verified(folder, data=data).ok
    path.unlink()
    report = verified(folder, data=data)
    assert any(p.kind == "file" and "gone" in p.what for p in report.problems)


def test_a_flipped_byte_of_a_vector_is_found_by_its_block(folder: Path) -> None:
    flip(only(folder, "vectors/photos/e/*.npy"), 200)
    report = verified(folder)
    assert kinds(report) == {"vector"} and "bytes 0 to 1,048,576" in report.problems[0].what


def test_a_file_that_nothing_names_is_an_orphan_and_no_problem(folder: Path) -> None:
    stray = folder / "shards" / "photos" / "stray.tar"
    stray.write_bytes(b"left by a killed writer")
    report = verified(folder)
    assert report.ok and report.orphans == ("shards/photos/stray.tar",)


# -- what can be mended ------------------------------------------------------------------------------------------------


def lose_sidecar(folder: Path) -> None:
    only(folder, "shards/photos/*.idx").unlink()


def damage_sidecar(folder: Path) -> None:
    only(folder, "shards/photos/*.idx").write_bytes(b"ARROW1 no more")


def change_sidecar(folder: Path) -> None:
    path = only(folder, "shards/photos/*.idx")
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    lengths = pa.array([n + 1 for n in table["length"].to_pylist()], pa.int64())
    changed = table.set_column(table.schema.get_field_index("length"), "length", lengths)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, changed.schema) as writer:
        writer.write_table(changed)


def change_places(folder: Path) -> None:
    sql(folder, 'UPDATE _dl_members SET "offset" = "offset" + 512 WHERE ordinal = 1')
    sql(folder, "UPDATE _dl_members SET length = length - 1 WHERE ordinal = 2")
    sql(folder, "UPDATE _dl_members SET checks = X'00000000' WHERE ordinal = 3")


def change_key(folder: Path) -> None:
    sql(folder, "UPDATE _dl_members SET key = 'another', info = NULL WHERE ordinal = 4")


def lose_members(folder: Path) -> None:
    sql(folder, "DELETE FROM _dl_members WHERE ordinal > 3")


def change_checks(folder: Path) -> None:
    sql(folder, "UPDATE _dl_files SET checks = X'01020304' WHERE kind = 'vector'")


def change_hashes(folder: Path) -> None:
    sql(folder, "UPDATE _dl_files SET sha256 = replace(sha256, substr(sha256, 1, 1), 'x')")


def change_sizes(folder: Path) -> None:
    sql(folder, "UPDATE _dl_files SET size = size + 512 WHERE kind = 'shard'")


def leave_resting(folder: Path) -> None:
    sql(folder, "INSERT INTO _dl_resting (address, data) VALUES (12345, X'00')")


MENDED: list[Callable[[Path], None]] = [
    lose_sidecar, damage_sidecar, change_sidecar, change_places, change_key, lose_members, change_checks, change_hashes,
    change_sizes, leave_resting,
]  # fmt: skip


@pytest.mark.parametrize("damage", MENDED)
def test_what_two_witnesses_know_is_mended_and_reads_as_before(folder: Path, damage: Callable[[Path], None]) -> None:
    with deeplake.connect(folder) as db:
        before = [
            (r.id, r.label, r.photo.bytes(), r.e.tolist()) for r in db.execute("SELECT * FROM photos ORDER BY id")
        ]
        members = db._catalog.fetchall("SELECT * FROM _dl_members ORDER BY file, ordinal")
    damage(folder)
    assert not verified(folder).ok, "it only looks"
    report = verified(folder, repair=True)
    assert report.ok and report.problems and all(p.repaired for p in report.problems), str(report)
    assert verified(folder).problems == ()
    with deeplake.connect(folder) as db:
        rows = db.execute("SELECT * FROM photos ORDER BY id")
        assert [(r.id, r.label, r.photo.bytes(), r.e.tolist()) for r in rows] == before
        assert db._catalog.fetchall("SELECT * FROM _dl_members ORDER BY file, ordinal") == members
    table = pa.ipc.open_file(only(folder, "shards/photos/*.idx").read_bytes()).read_all()
    assert sorted(table["key"].to_pylist()) == sorted(row[2] for row in members)


def test_damaged_scan_copies_are_found_and_made_again(tmp_path: Path) -> None:
    with deeplake.connect(tmp_path / "s") as db:
        db.execute("CREATE TABLE v (id BIGINT PRIMARY KEY, e VECTOR(64))")
        db.insert("v", {"e": np.random.default_rng(0).normal(size=(9_000, 64)).astype(np.float32)})
        db.optimize(scan_copies=True)
        copy = only(tmp_path / "s", "vectors/v/e/*.f16")
        whole = copy.read_bytes()
        flip(copy, 4_000)
        report = db.verify()
        assert kinds(report) == {"derived"} and not report.ok
        assert copy.exists(), "it only looks"
        assert db.verify(repair=True).ok and copy.read_bytes() == whole


# -- the catalog -------------------------------------------------------------------------------------------------------


def test_an_address_that_leads_nowhere_is_found_on_main_on_a_branch_and_in_the_log(folder: Path) -> None:
    for table in ("photos", "_dl_b2_photos", "_dl_log_photos"):
        copy = folder.with_name(f"copy-{table}")
        shutil.copytree(folder, copy)
        with sqlite3.connect(copy / "catalog.sqlite") as connection:
            names = [n for (n,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")]
            for name in names:
                connection.execute(f'DROP TRIGGER "{name}"')
            connection.execute(f"UPDATE {table} SET photo = (7 << 30) + 1, e = (1 << 30) + 99 WHERE photo IS NOT NULL")
        connection.close()
        found = {p.where for p in verified(copy).problems if p.kind == "address"}
        assert found == {f"{table}.photo", f"{table}.e"}


def test_flipped_bits_of_rows_are_found_where_sqlite_itself_finds_few(tmp_path: Path) -> None:
    """The catalog's file, a bit at a time, in pages of rows: a changed answer without an error must be reported."""
    folder = tmp_path / "store"
    with deeplake.connect(folder) as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, label TEXT, score DOUBLE PRECISION)")
        db.insert("t", [{"label": f"label {i}", "score": i / 7} for i in range(3_000)])
        db.optimize()
    connection = sqlite3.connect(folder / "catalog.sqlite")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    path = folder / "catalog.sqlite"
    original = path.read_bytes()

    def rows() -> object:
        with sqlite3.connect(f"file:{path}?immutable=1", uri=True) as reader:
            return reader.execute("SELECT id, label, score FROM t ORDER BY id").fetchall()

    truth, chosen, silent = rows(), random.Random(7), 0
    for _ in range(24):
        damaged = bytearray(original)
        damaged[chosen.randrange(len(original) // 20, len(original))] ^= 1 << chosen.randrange(8)
        path.write_bytes(damaged)
        try:
            if rows() == truth:
                continue
        except sqlite3.Error:
            continue
        silent += 1
        with suppress(DeeplakeError):  # said loudly
            assert not verified(folder).ok
    assert silent >= 3, "the seed must flip bits that matter"


def test_resting_bytes_and_tails_are_verified(tmp_path: Path) -> None:
    with deeplake.connect(tmp_path / "s") as db:
        db.execute("CREATE TABLE b (id BIGINT PRIMARY KEY, data BLOB, e VECTOR(4))")
        db.execute("INSERT INTO b (data, e) VALUES (%s, %s)", [b"small", np.ones(4, np.float32)])
        assert db.verify().ok
        db._catalog.execute("UPDATE _dl_resting SET data = ?", (b"smell",))
        assert kinds(db.verify()) == {"resting"}
        db._catalog.execute("UPDATE _dl_resting SET data = ?", (b"small",))
        db._catalog.execute("UPDATE _dl_tail SET data = X'0000803F00000000000000000000000000000000'")
        assert kinds(db.verify()) == {"resting"}
        db._catalog.execute("DELETE FROM _dl_tail")
        assert "0 readable vectors rest in the catalog where 1 should" in str(db.verify())


# -- elsewhere ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3() -> Iterator[Proxy]:
    with s3_server() as proxy:
        yield proxy


def test_objects_are_read_past_the_cache_and_mended_on_the_storage(s3: Proxy, tmp_path: Path) -> None:
    import boto3

    url = fresh_url()
    prefix = url.removeprefix("s3://bucket/")
    with deeplake.connect(tmp_path / "s", storage=url, cache_dir=tmp_path / "cache") as db:
        fill(db)
        db.optimize()
        assert db.verify().problems == ()
        client = boto3.client("s3")
        listed = [o["Key"] for o in client.list_objects_v2(Bucket="bucket", Prefix=prefix)["Contents"]]
        (sidecar,) = [key for key in listed if key.endswith(".idx")]
        (shard,) = [key for key in listed if key.endswith(".tar")]
        client.delete_object(Bucket="bucket", Key=sidecar)
        assert db.verify(repair=True).ok and db.verify().problems == ()
        body = bytearray(client.get_object(Bucket="bucket", Key=shard)["Body"].read())
        body[1500] ^= 1
        client.put_object(Bucket="bucket", Key=shard, Body=bytes(body))
        assert not db.verify().ok, "though the copy in the cache is sound"


def test_an_adopted_tar_is_verified_and_never_written(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {f"k{i}.bin": bytes([i]) * 2_000 for i in range(3)})
    with deeplake.connect(tmp_path / "s") as db:
        db.ingest("t", str(path))
        db.optimize()
        report = db.verify()
        assert report.ok and not report.problems and report.blobs == 3
        flip(path, 600)
        damaged = path.read_bytes()
        assert not db.verify(repair=True).ok
        assert path.read_bytes() == damaged


def test_a_store_over_postgresql_is_verified(postgres_server: Any, tmp_path: Path) -> None:
    name = postgres_server.database()
    with deeplake.connect(postgres_server.url(name), storage=tmp_path / "bytes") as db:
        fill(db)
        db.optimize()
        assert db.verify().problems == ()
        db.execute("UPDATE photos SET label = 'later' WHERE id = 4")
        assert db.verify().problems == () and db.verify().digests >= 4
        db._catalog.execute("ALTER TABLE photos DISABLE TRIGGER ALL")
        db._catalog.execute("UPDATE photos SET label = 'behind our back' WHERE id = 5")
        assert kinds(db.verify()) == {"digest"}
        only(tmp_path / "bytes", "shards/photos/*.idx").unlink()
        assert {p.kind: p.repaired for p in db.verify(repair=True).problems} == {"digest": False, "index": True}
    postgres_server.drop(name)


def test_a_damaged_matrix_over_postgresql_is_made_anew(postgres_server: Any, tmp_path: Path) -> None:
    name = postgres_server.database()
    vectors = np.random.default_rng(0).normal(size=(10_000, 8)).astype(np.float32)
    with deeplake.connect(postgres_server.url(name), storage=tmp_path / "bytes") as db:
        db.execute("CREATE TABLE v (id BIGINT PRIMARY KEY, e VECTOR(8))")
        db.insert("v", {"e": vectors})
        db.optimize()
        flip(only(tmp_path / "bytes", "matrices/v/e/*.npy"), 50_000)
    with deeplake.connect(postgres_server.url(name)) as db:
        assert kinds(db.verify()) == {"derived"}
        assert db.verify(repair=True).ok and db.verify().problems == ()
        assert np.load(only(tmp_path / "bytes", "matrices/v/e/*.npy")).tobytes() == vectors.tobytes()
    postgres_server.drop(name)


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_says_what_is_wrong_and_ends_with_1(folder: Path) -> None:
    assert "sound" in ran(folder, "verify")
    lose_sidecar(folder)
    done = run(folder, "verify")
    assert done.exit_code == 1 and "the sidecar is missing" in done.stdout
    assert run(folder, "verify", "--catalog-only").exit_code == 0
    assert "repaired" in ran(folder, "verify", "--repair")
    assert '"ok": true' in ran(folder, "verify", "--json").replace('"ok":true', '"ok": true')


@pytest.mark.parametrize("then", ["stopped", "published", "optimized"])
def test_history_that_was_pruned_is_held_against_no_older_digest(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    with deeplake.connect(folder) as db, monkeypatch.context() as patch:
        db.delete_branch("other")
        db.execute("UPDATE photos SET label = 'later'")
        db.optimize()

        def stop(_catalog: object) -> None:
            if then == "published":
                with deeplake.connect(folder) as other:
                    other.publish(tmp_path / "there")
            raise KeyboardInterrupt

        patch.setattr(compaction, "merge_small", stop)
        with pytest.raises(KeyboardInterrupt):
            db.optimize(keep=0)
    if then == "optimized":
        with deeplake.connect(folder) as db:
            db.optimize()
    assert verified(tmp_path / "there" if then == "published" else folder).problems == ()
