"""Shards: readable by everybody, whole after every failure, right in every read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import shard_workload as workload
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplake_loader.errors import CorruptionError, DeeplakeError, InputError, NotFoundError, StoreError
from deeplake_loader.shards import Member, Shards
from deeplake_loader.sqlite_catalog import SqliteCatalog
from deeplake_loader.types import pack_address

MB = 1 << 20


def facts(size: int) -> str:
    return json.dumps({"n": size})


class Store:
    """A catalog with its shards and a table of one blob column."""

    def __init__(self, root: Path, **options: int) -> None:
        self.root = root
        self.catalog = SqliteCatalog.open(root)
        self.shards = Shards(self.catalog, **options)
        with self.catalog.transaction():
            self.catalog.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, blob INTEGER)")

    def put(self, *blobs: bytes, bulk: bool = False, extension: str = "bin") -> list[int]:
        """The addresses of one row per blob, inserted in one transaction."""
        with self.catalog.transaction():
            staged = self.shards.stage("t", [[Member("blob", b, extension, facts(len(b)))] for b in blobs], bulk=bulk)
            self.catalog.executemany("INSERT INTO t (blob) VALUES (?)", [(a,) for (a,) in staged.addresses])
            self.shards.write(staged, [{"size": len(b)} for b in blobs])
        return [a for (a,) in staged.addresses]

    def files(self, state: str = "%") -> list[Path]:
        rows = self.catalog.fetchall(
            "SELECT url FROM _dl_files WHERE kind = 'shard' AND state LIKE ? ORDER BY id", (state,)
        )
        return [self.root / url for (url,) in rows]

    def close(self) -> None:
        self.shards.close()
        self.catalog.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "store")
    yield made
    made.close()


def readers(path: Path) -> list[dict[str, bytes]]:
    """The samples of a shard, on which webdataset, tarfile and tar must agree."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import webdataset

        samples = [dict(s) for s in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)]
    for sample in samples:
        sample.pop("__url__")
    found = [{k: v for k, v in s.items() if not k.startswith("__")} for s in samples]
    with tarfile.open(path, "r:") as archive:
        names = archive.getnames()
    fields = [f"{s['__key__']}.{field}" for s in samples for field in s if not field.startswith("__")]
    assert [name.lower() for name in names] == fields  # webdataset lowers what follows the key
    listed = subprocess.run(["tar", "-tf", path], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == names and listed.stderr == ""
    return found


# -- what others read ------------------------------------------------------------------------------------------------


def test_webdataset_tarfile_and_tar_read_an_open_shard_after_every_append(store: Store) -> None:
    expected = []
    for n in range(4):
        blobs = [os.urandom(1000 * n + i) for i in range(3)]
        store.put(*blobs, bulk=True)
        expected += [
            {"blob.bin": b, "json": json.dumps({"size": len(b)}, separators=(",", ":")).encode()} for b in blobs
        ]
        (path,) = store.files("open")
        assert readers(path) == expected


def test_webdataset_tarfile_and_tar_read_a_sealed_shard_that_held_resting_blobs(store: Store) -> None:
    small, big = [os.urandom(n) for n in (0, 1, 511, 512, 513)], os.urandom(100_000)
    store.put(*small)
    store.put(big)
    (path,) = store.files("open")
    assert [s["blob.bin"] for s in readers(path)] == [big]
    assert store.shards.seal() == 1
    assert [s["blob.bin"] for s in readers(path)] == [big, *small]
    assert all(json.loads(s["json"]) == {"size": len(s["blob.bin"])} for s in readers(path))


def test_an_append_of_thousands_of_members_is_one_readable_archive(store: Store) -> None:
    blobs = [b"%d" % i * (i % 7) for i in range(3000)]
    addresses = store.put(*blobs, bulk=True)
    (path,) = store.files()
    with tarfile.open(path) as archive:
        assert len(archive.getmembers()) == 6000
    assert [store.shards.read(a) for a in addresses[::97]] == blobs[::97]


def test_odd_column_names_and_unicode_scalars_are_readable_by_webdataset(store: Store) -> None:
    columns = ["plain", "two words", "dot.ted", "ünï/côdé", "x" * 200, "json"]
    with store.catalog.transaction():
        staged = store.shards.stage("odd.table/name", [[Member(c, c.encode(), "bin") for c in columns]], bulk=True)
        store.shards.write(staged, [{"text": "snow ☃"}])
    (path,) = store.files()
    (sample,) = readers(path)
    assert sorted(sample.values()) == sorted([*(c.encode() for c in columns), '{"text":"snow ☃"}'.encode()])
    assert store.shards.locate(staged.addresses[0][2]).column == "dot.ted"


def test_a_sealed_shard_has_a_sidecar_and_a_hash(store: Store) -> None:
    blobs = [os.urandom(70_000), os.urandom(5 * MB)]
    addresses = store.put(*blobs, bulk=True, extension="jpg")
    store.shards.seal("t")
    (path,) = store.files("sealed")
    digest, size, count = store.catalog.fetchone("SELECT sha256, size, count FROM _dl_files")
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (size + 1024, count) == (path.stat().st_size, 2)
    table = sidecar(path)
    assert table.schema.metadata[b"sha256"].decode() == digest
    rows = table.to_pylist()
    with open(path, "rb") as file:
        for row, blob in zip(rows, blobs, strict=True):
            assert os.pread(file.fileno(), row["length"], row["offset"]) == blob
    assert [store.shards.locate(a).key for a in addresses] == [row["key"] for row in rows]
    assert rows[0]["checks"] == google_crc32c.value(blobs[0]).to_bytes(4, "little")
    assert len(rows[1]["checks"]) == 4 * 5
    assert [(r["column"], r["extension"], r["info"]) for r in rows] == [("blob", "jpg", facts(len(b))) for b in blobs]


def test_shards_roll_over_at_their_limit_and_every_one_is_sealed(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", max_shard_bytes=MB)
    blobs = [os.urandom(100_000) for _ in range(35)]
    addresses = store.put(*blobs, bulk=True)
    addresses += store.put(os.urandom(3 * MB))  # one blob over the limit is a shard of its own
    addresses += store.put(blobs[0], bulk=True)
    assert [os.path.getsize(p) <= MB for p in store.files("sealed")] == [True] * 4 + [False]
    assert len(store.files("open")) == 1
    assert [store.shards.read(a) for a in addresses[:35]] == blobs
    assert [s["blob.bin"] for path in store.files()[:4] for s in readers(path)] == blobs
    store.close()


# -- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, MB - 1, 4 * MB, 4 * MB + 1, 5 * MB])
def test_ranges_are_parts_of_the_whole(store: Store, size: int) -> None:
    blob = os.urandom(size)
    (address,) = store.put(blob)
    assert store.shards.read(address) == blob
    for start, stop in [(0, 10), (MB - 5, MB + 5), (size - 3, size + 100), (5, 5), (-4, 3), (3 * MB, 9 * MB)]:
        assert store.shards.read_range(address, start, stop) == blob[max(start, 0) : max(stop, 0)]


def test_many_blobs_are_resolved_at_once(store: Store) -> None:
    large, small = [os.urandom(70_000 + i) for i in range(20)], [os.urandom(10) for _ in range(5)]
    addresses = store.put(*large) + store.put(*small) + store.put(os.urandom(5 * MB))
    wanted = np.array([addresses[i] for i in (25, 3, 3, 0, 24)] + [0])
    found = store.shards.resolve(wanted)
    assert found.address.tolist() == wanted.tolist() and len(found) == 6
    assert found.file.tolist() == [0, 0, 0, 0, 0, -1]
    assert found.length.tolist() == [5 * MB, 70_003, 70_003, 70_000, 10, 0]
    assert (found.offset >= 0).tolist() == [True, True, True, True, False, False]
    assert found.check.tolist() == [-1] + [google_crc32c.value(b) for b in (large[3], large[3], large[0], small[4])] + [
        -1
    ]
    with open(found.paths[0], "rb") as file:
        assert os.pread(file.fileno(), 70_003, int(found.offset[1])) == large[3]
    assert store.shards.infos(wanted) == [facts(n) for n in (5 * MB, 70_003, 70_003, 70_000, 10)] + [None]
    assert store.shards.keys(wanted)[1] == store.shards.locate(addresses[3]).key
    assert len(store.shards.resolve(np.array([], np.int64))) == 0
    store.shards.seal()
    assert (store.shards.resolve(wanted[:5]).offset >= 0).all()


@pytest.mark.parametrize("address", [0, -5, 1, pack_address(1, 7), pack_address(77, 0)])
def test_an_unknown_address_is_not_found(store: Store, address: int) -> None:
    store.put(b"one")
    for action in (store.shards.read, store.shards.info, store.shards.locate):
        with pytest.raises(NotFoundError, match=str(address)):
            action(address)
    if address:
        with pytest.raises(NotFoundError, match=str(address)):
            store.shards.resolve(np.array([address]))


@pytest.mark.parametrize("size", [70_000, 6 * MB])
def test_a_flipped_byte_is_found_and_named(store: Store, size: int) -> None:
    (address,) = store.put(os.urandom(size))
    place = store.shards.locate(address)
    flip(store.files()[0], place.offset + size - 9)
    with pytest.raises(CorruptionError, match=f"{place.key}.*offset {place.offset}"):
        store.shards.read(address)
    with pytest.raises(CorruptionError, match=place.key):
        store.shards.read_range(address, size - 10, size)
    if size > 4 * MB:
        assert len(store.shards.read_range(address, 0, 100)) == 100  # another block is still good


def test_a_flipped_byte_in_a_resting_blob_is_found(store: Store) -> None:
    (address,) = store.put(b"resting here")
    store.catalog.execute("UPDATE _dl_resting SET data = ? WHERE address = ?", (b"resting hear", address))
    with pytest.raises(CorruptionError, match="resting in the catalog"):
        store.shards.read(address)


def test_a_cut_or_missing_file_is_a_typed_error(store: Store) -> None:
    first, last = store.put(os.urandom(80_000), os.urandom(80_000))
    (path,) = store.files()
    os.truncate(path, store.shards.locate(last).offset + 512)
    assert len(store.shards.read(first)) == 80_000
    with pytest.raises(CorruptionError, match=f"{store.shards.locate(last).key}.*ends after 512"):
        store.shards.read(last)
    path.unlink()
    store.shards.close_files()
    with pytest.raises(NotFoundError, match=path.name):
        store.shards.read(first)


def test_a_catalog_row_cannot_point_outside_the_store(store: Store, tmp_path: Path) -> None:
    (address,) = store.put(os.urandom(80_000))
    (tmp_path / "secret").write_bytes(b"x" * 100_000)
    (store.root / "link").symlink_to(tmp_path)
    for url in ("../secret", str(tmp_path / "secret"), "link/secret", "file:///etc/passwd", "a\0b", ""):
        store.catalog.execute("UPDATE _dl_files SET url = ?", (url,))
        with pytest.raises(StoreError):
            store.shards.read(address)


def sidecar(path: Path) -> Any:
    import pyarrow as pa

    with pa.ipc.open_file(path.with_suffix(".idx")) as index:
        return index.read_all()


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        value = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([value ^ 1]))


# -- transactions ----------------------------------------------------------------------------------------------------


def test_staging_needs_a_transaction_and_plain_extensions(store: Store) -> None:
    with pytest.raises(InputError, match="transaction"):
        store.shards.stage("t", [[Member("blob", b"", "bin")]])
    for extension in ("", "JPG", "a/b", "tar.gz"):
        with pytest.raises(InputError, match="extension"):
            store.put(b"x", extension=extension)


def test_scalars_that_are_no_json_leave_nothing(store: Store) -> None:
    with pytest.raises(InputError, match="JSON"), store.catalog.transaction():
        staged = store.shards.stage("t", [[Member("blob", b"x", "bin")]])
        store.shards.write(staged, [{"bad": object()}])
    assert store.catalog.fetchone("SELECT count(*) FROM _dl_members") == (0,)
    assert list((store.root / "shards").rglob("*.tar")) == []


def test_a_rolled_back_append_is_invisible_and_the_next_one_overwrites_it(store: Store) -> None:
    kept = store.put(b"kept" * 30_000)
    (path,) = store.files()
    before = path.read_bytes()
    with pytest.raises(KeyError), store.catalog.transaction():
        store.put(os.urandom(200_000), bulk=True)
        raise KeyError
    assert path.read_bytes() == before
    (address,) = store.put(b"next", bulk=True)
    assert address == kept[0] + 1  # a number is given out once it is committed
    assert [s["blob.bin"] for s in readers(path)] == [b"kept" * 30_000, b"next"]


def test_a_rolled_back_rollover_goes_back_to_the_old_shard(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", max_shard_bytes=MB)
    store.put(os.urandom(600_000))
    with pytest.raises(KeyError), store.catalog.transaction():
        store.put(*[os.urandom(300_000) for _ in range(6)])
        raise KeyError
    (path,) = store.files("open")
    assert [p for p in (store.root / "shards").rglob("*") if p.is_file()] == [path]
    store.put(os.urandom(100_000))
    assert store.files() == [path] and len(readers(path)) == 2
    store.close()


def test_a_failed_statement_inside_a_transaction_takes_only_its_own_bytes(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", max_shard_bytes=MB)
    with store.catalog.transaction():
        (first,) = store.put(b"first" * 20_000, bulk=True)
        with pytest.raises(KeyError), store.catalog.transaction():
            store.put(*[os.urandom(300_000) for _ in range(6)])
            raise KeyError
        (last,) = store.put(b"last" * 20_000, bulk=True)
        with pytest.raises(KeyError), store.catalog.transaction():
            store.put(os.urandom(200_000))
            raise KeyError
    assert [s["blob.bin"] for p in store.files() for s in readers(p)] == [b"first" * 20_000, b"last" * 20_000]
    assert store.shards.read(first) == b"first" * 20_000 and store.shards.read(last) == b"last" * 20_000
    store.close()


def test_small_blobs_rest_in_the_catalog_and_move_together(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.shards.max_resting_bytes = 100_000
    syncs: list[str] = []
    fdatasync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (syncs.append("data"), fdatasync(fd)))
    blobs = [os.urandom(30_000) for _ in range(8)]
    addresses = [store.put(b)[0] for b in blobs]
    rests = [store.shards.locate(a).offset < 0 for a in addresses]
    assert rests == [False] * 6 + [True] * 2
    assert len(syncs) == 3  # the new file, and two moves; the other inserts cost the catalog's fsync alone
    assert [store.shards.read(a) for a in addresses] == blobs
    (resting,) = store.catalog.fetchone("SELECT sum(length(data) + length(document)) FROM _dl_resting")
    assert store.catalog.fetchone("SELECT resting FROM _dl_files") == (resting,)
    assert store.put(os.urandom(64 << 10)) and store.shards.locate(addresses[-1]).offset < 0


@settings(max_examples=40)
@given(data=st.data())
def test_any_mix_of_statements_reads_back_exactly(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Store(tmp_path_factory.mktemp("mix"), max_shard_bytes=200_000)
    expected: dict[int, bytes] = {}
    blob = st.tuples(st.sampled_from([0, 1, 511, 512, 4096, 66_000]), st.integers(0, 255)).map(
        lambda t: bytes([t[1]]) * t[0]
    )
    for action in data.draw(st.lists(st.sampled_from(["put", "bulk", "fail", "nest", "seal", "reopen"]), max_size=12)):
        blobs = data.draw(st.lists(blob, min_size=1, max_size=4))
        if action in ("put", "bulk"):
            expected.update(zip(store.put(*blobs, bulk=action == "bulk"), blobs, strict=True))
        elif action == "fail":
            with pytest.raises(KeyError), store.catalog.transaction():
                store.put(*blobs)
                store.put(*blobs, bulk=True)
                raise KeyError
        elif action == "nest":
            with store.catalog.transaction():
                expected.update(zip(store.put(*blobs), blobs, strict=True))
                with pytest.raises(KeyError), store.catalog.transaction():
                    store.put(*blobs, bulk=True)
                    store.shards.seal()
                    raise KeyError
                expected.update(zip(store.put(*blobs, bulk=True), blobs, strict=True))
        elif action == "seal":
            store.shards.seal()
        else:
            store.close()
            store = Store(store.root, max_shard_bytes=200_000)
    assert {a: store.shards.read(a) for a in expected} == expected
    store.shards.seal()
    assert {a: store.shards.read(a) for a in expected} == expected
    for path in store.files("sealed"):
        digest, count = store.catalog.fetchone(
            "SELECT sha256, (SELECT count(*) FROM _dl_members WHERE file = id) FROM _dl_files WHERE url LIKE ?",
            (f"%{path.name}",),
        )
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
        assert sidecar(path).num_rows == count
    found = [s["blob.bin"] for path in store.files() for s in workload.samples_of(str(path))]
    assert sorted(found) == sorted(expected.values())
    assert len(store.files("open")) <= 1
    store.close()


# -- processes -------------------------------------------------------------------------------------------------------


def script(code: str, *arguments: object) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    command = [sys.executable, "-c", "import sys, shard_workload as w\n" + code, *map(str, arguments)]
    return subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output


def test_a_writer_killed_anywhere_leaves_what_was_acknowledged_and_nothing_else(tmp_path: Path) -> None:
    code = "print(w.kill_everywhere(sys.argv[1]), w.kill_at_random(sys.argv[1], 25))"
    points, rounds = finish(script(code, tmp_path)).split()
    assert int(points) > 140 and int(rounds) == 25


def test_two_processes_write_at_once_each_to_its_own_shard(tmp_path: Path) -> None:
    code = """
catalog, shards = w.open_store(sys.argv[1])
w.create(catalog)
start = int(sys.argv[2])
for row in range(start, start + 120, 4):
    w.insert(catalog, shards, [row, row + 1, row + 2, row + 3], bulk=row % 8 == 0)
"""
    root = tmp_path / "s"
    workload.create(workload.open_store(str(root))[0])
    writers = [script(code, root, start) for start in (1000, 2000, 3000)]
    for writer in writers:
        finish(writer)
    catalog, shards = workload.open_store(str(root))
    rows = {row: addresses for row, *addresses in catalog.fetchall("SELECT * FROM samples")}
    assert set(rows) == {*range(1000, 1120), *range(2000, 2120), *range(3000, 3120)}
    workload.check_bytes(shards, rows)
    shards.seal()
    workload.check_tars(str(root), catalog, set(rows))


def test_the_open_shard_of_a_process_that_ended_is_adopted_and_a_live_one_is_left_alone(tmp_path: Path) -> None:
    first = Store(tmp_path / "s")
    first.put(b"one" * 30_000)
    second = Store(tmp_path / "s")
    second.put(b"two" * 30_000)
    assert len(second.files()) == 2
    assert second.shards.seal() == 1 and len(first.files("open")) == 1
    first.close()
    second.put(b"three" * 30_000)
    (path,) = second.files("open")
    assert [s["blob.bin"] for s in readers(path)] == [b"one" * 30_000, b"three" * 30_000]
    second.close()


def test_adoption_cuts_what_a_dead_writer_left_behind_the_committed_end(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    store.put(b"one" * 30_000)
    (path,) = store.files()
    store.close()
    whole = path.read_bytes()
    for garbage in (b"", b"\0" * 512, b"torn" * 1000, whole):
        path.write_bytes(whole[:-1024] + garbage)
        store = Store(tmp_path / "s")
        store.put(b"x")
        assert path.read_bytes() == whole
        store.close()


def test_a_shard_that_lost_committed_bytes_is_never_appended_to(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    (lost,) = store.put(b"one" * 30_000)
    (path,) = store.files()
    store.close()
    os.truncate(path, 5000)
    store = Store(tmp_path / "s")
    (address,) = store.put(b"two" * 30_000)
    assert path.stat().st_size == 5000 and len(store.files()) == 2
    assert store.shards.read(address) == b"two" * 30_000
    with pytest.raises(CorruptionError):
        store.shards.read(lost)
    store.close()


def test_a_forked_child_writes_to_a_shard_of_its_own(tmp_path: Path) -> None:
    code = """
import os
catalog, shards = w.open_store(sys.argv[1])
w.create(catalog)
w.insert(catalog, shards, [1], bulk=True)
child = os.fork()
if child == 0:
    w.insert(catalog, shards, [2], bulk=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
w.insert(catalog, shards, [3], bulk=True)
print(catalog.fetchone("SELECT count(*) FROM _dl_files")[0])
"""
    assert finish(script(code, tmp_path / "s")).strip() == "2"
    catalog, shards = workload.open_store(str(tmp_path / "s"))
    rows = {row: addresses for row, *addresses in catalog.fetchall("SELECT * FROM samples")}
    assert set(rows) == {1, 2, 3}
    workload.check_bytes(shards, rows)


# -- faults of the system --------------------------------------------------------------------------------------------


def fail_with(code: int) -> Callable[..., object]:
    def act(name: str, original: Callable[..., object], arguments: tuple[object, ...]) -> object:
        raise OSError(code, os.strerror(code))

    return act


def write_half(name: str, original: Callable[..., Any], arguments: tuple[Any, ...]) -> object:
    if name != "pwritev":
        return original(*arguments)
    fd, buffers, offset = arguments
    data = b"".join(buffers)
    return workload.PWRITE(fd, data[: max(1, len(data) // 2)], offset)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_every_call_may_fail_once_and_the_statement_can_be_repeated(tmp_path: Path, code: int) -> None:
    number, reached = 1, True
    while reached:
        at = workload.At(number, fail_with(code))
        errors = workload.run_retrying(str(tmp_path / str(number)), at)
        assert all(isinstance(e, DeeplakeError) for e in errors), (at.names[number], errors)
        workload.verify(str(tmp_path / str(number)), len(workload.steps()))
        reached = at.count >= number
        number += 1 if code == errno.EIO else 5
    assert number > 40


def test_a_short_write_is_continued(tmp_path: Path) -> None:
    number, reached, shortened = 1, True, 0
    while reached:
        at = workload.At(number, write_half)
        assert workload.run_retrying(str(tmp_path / str(number)), at) == []
        workload.verify(str(tmp_path / str(number)), len(workload.steps()))
        reached = at.count >= number
        shortened += reached and at.names[number] == "pwritev"
        number += 1
    assert shortened > 10


def test_a_shard_whose_sync_failed_takes_no_more_rows(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(b"one" * 30_000)
    (path,) = store.files()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", lambda fd: fail_with(errno.EIO)("", os.close, ()))
        with pytest.raises(StoreError, match=path.name):
            store.put(b"two" * 30_000)
    store.put(b"three" * 30_000)
    assert len(store.files()) == 2 and [s["blob.bin"] for s in readers(path)] == [b"one" * 30_000]


@pytest.mark.parametrize("call", ["pwritev", "fdatasync"])
def test_a_write_behind_that_fails_fails_its_transaction(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store.put(b"one", bulk=True)
    (path,) = store.files()
    with monkeypatch.context() as patched, pytest.raises(StoreError, match=path.name), store.catalog.transaction():
        patched.setattr(os, call, lambda *_: fail_with(errno.EIO)("", os.close, ()))
        staged = store.shards.stage("t", [[Member("blob", b"two", "bin")]], bulk=True)
        store.shards.write(staged, [{}], behind=True)
        with pytest.raises(StoreError, match=path.name):
            store.shards.read(staged.addresses[0][0])
        patched.undo()
        with pytest.raises(StoreError, match=path.name):
            store.shards.settle()
    assert [s["blob.bin"] for s in readers(path)] == [b"one"]
    store.put(b"three", bulk=True)
    assert len(store.files()) == (2 if call == "fdatasync" else 1)


def test_what_is_written_behind_can_be_read_at_once(store: Store) -> None:
    with store.catalog.transaction():
        blobs = [bytes([i]) * 100_000 for i in range(40)]
        staged = store.shards.stage("t", [[Member("blob", b, "bin")] for b in blobs], bulk=True)
        store.shards.write(staged, [{}] * 40, behind=True)
        assert [store.shards.read(a) for (a,) in staged.addresses] == blobs


def test_threads_read_while_another_writes(store: Store) -> None:
    addresses = store.put(*[bytes([i]) * 70_000 for i in range(50)])
    wrong: list[int] = []

    def read() -> None:
        wrong.extend(a for i, a in enumerate(addresses) if store.shards.read(a) != bytes([i]) * 70_000)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        store.put(b"more" * 20_000)
    for thread in threads:
        thread.join()
    assert wrong == []
