"""A store whose bytes lie on S3: written, queried, searched and streamed as a local one, counted and under faults."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from object_store import BUCKET, Proxy, first_get, fresh_url, s3_server
from torch.utils.data import DataLoader

import deeplake_loader as deeplake
from deeplake_loader.errors import CorruptionError, InputError, StoreError
from deeplake_loader.ownership import OWNER
from deeplake_loader.storage import remote
from deeplake_loader.storage.pages import SEGMENT
from deeplake_loader.storage.requests import Policy
from deeplake_loader.storage.traffic import Traffic

ROWS = 400
BLOB = 45_000


def blob(i: int) -> bytes:
    return np.random.default_rng(i).bytes(BLOB + i)


def vector(i: int) -> np.ndarray:
    return np.random.default_rng(1_000 + i).normal(size=768).astype(np.float32)


@dataclass
class Remote:
    """A store of `ROWS` rows, its folder, its storage, and a cache that tests throw away."""

    folder: Path
    url: str
    cache: Path

    def connect(self, **options: Any) -> deeplake.Database:
        return deeplake.connect(self.folder, cache_dir=self.cache, **options)

    @property
    def objects(self) -> dict[str, int]:
        prefix = self.url.removeprefix(f"s3://{BUCKET}/")
        listed = boto3.client("s3").list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/").get("Contents", ())
        return {found["Key"]: found["Size"] for found in listed}


def fill(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE clips (id BIGINT PRIMARY KEY, data BLOB, v VECTOR(768))")
    db.insert("clips", [{"id": i, "data": blob(i), "v": vector(i)} for i in range(ROWS)])


@pytest.fixture(scope="module")
def s3() -> Iterator[Proxy]:
    with s3_server() as proxy:
        yield proxy


@pytest.fixture(scope="module")
def filled(s3: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Remote:
    folder = tmp_path_factory.mktemp("remote")
    store = Remote(folder / "store", fresh_url(), folder / "cache")
    with store.connect(storage=store.url) as db:
        fill(db)
    return store


@pytest.fixture
def store(filled: Remote, s3: Proxy, tmp_path: Path) -> Remote:
    """The filled store with an empty cache."""
    s3.clear()
    s3.released.clear()
    return Remote(filled.folder, filled.url, tmp_path / "cache")


@pytest.fixture
def fresh(s3: Proxy, tmp_path: Path) -> Remote:
    """No store yet."""
    s3.clear()
    return Remote(tmp_path / "store", fresh_url(), tmp_path / "cache")


def ids(stream: Any) -> list[int]:
    return [int(i) for batch in stream for i in batch["id"]]


QUERY = "SELECT id, data FROM clips"
CALM = Policy(hedge_s=60.0, deadline_s=60.0)  # however busy the machine: no request counts twice because it was slow


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "Policy", lambda: CALM)


def test_an_epoch_is_complete_exact_and_asks_for_each_segment_once(store: Remote, s3: Proxy) -> None:
    with store.connect() as db:
        stream = db.stream(QUERY, batch_size=32, shuffle=True, num_threads=2)
        seen = {}
        for batch in stream:
            seen |= {int(i): bytes(data) for i, data in zip(batch["id"], batch["data"], strict=True)}
        assert sorted(seen) == list(range(ROWS))
        assert all(seen[i] == blob(i) for i in seen)
        segments = -(-max(store.objects.values()) // SEGMENT)
        assert len(s3.gets) <= segments + 2
        assert set(s3.counts()) == {"GET"}, "neither sizes nor listings were asked for"
        assert stream.stats.gets == len(s3.gets)
        assert stream.stats.fetched <= max(store.objects.values())
        s3.clear()
        assert sorted(ids(stream)) == list(range(ROWS))
        assert not s3.log, "the second epoch lies in the cache"


def test_the_order_is_that_of_a_local_store(store: Remote, tmp_path: Path) -> None:
    with store.connect() as db, deeplake.connect(tmp_path / "local") as local:
        fill(local)
        options = {"batch_size": 32, "shuffle": True, "seed": 3}
        assert ids(db.stream(QUERY, **options)) == ids(local.stream(QUERY, **options))


def test_a_cold_hybrid_query_is_that_of_numpy_in_few_requests(store: Remote, s3: Proxy) -> None:
    query = vector(7)
    matrix = np.stack([vector(i) for i in range(ROWS)])
    scores = matrix @ query / np.linalg.norm(matrix, axis=1) / np.linalg.norm(query)
    expected = [i for i in np.argsort(-scores) if i >= 100][:5]
    with store.connect() as db:
        rows = db.execute(
            "SELECT id, cosine_similarity(v, %s) AS score FROM clips WHERE id >= 100 ORDER BY score DESC LIMIT 5",
            [query],
        )
        assert [row.id for row in rows] == expected
        assert len(s3.gets) <= 4


def test_a_stream_of_vectors_is_exact(store: Remote, s3: Proxy) -> None:
    with store.connect() as db:
        for batch in db.stream("SELECT id, v FROM clips", batch_size=64, shuffle=True):
            for i, found in zip(batch["id"].tolist(), batch["v"].numpy(), strict=True):
                np.testing.assert_array_equal(found, vector(i))
        assert len(s3.gets) <= 6


def test_one_blob_is_read_alone(store: Remote, s3: Proxy) -> None:
    with store.connect() as db:
        row = db.execute("SELECT data FROM clips WHERE id = 5").fetchall()[0]
        assert not s3.log, "a row is not its bytes"
        assert row.data.bytes() == blob(5)
        assert len(s3.gets) == 1 and db.stats.bytes_read <= 1 << 20


def test_a_part_of_a_long_blob_fetches_its_blocks_alone(fresh: Remote, s3: Proxy) -> None:
    long = np.random.default_rng(0).bytes(24 << 20)
    with fresh.connect(storage=fresh.url) as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, data BLOB)")
        db.insert("t", [{"id": 1, "data": long}])
    shutil.rmtree(fresh.cache)
    s3.clear()
    with fresh.connect() as db:
        address = db._catalog.fetchone("SELECT data FROM t")[0]
        assert db._shards.read_range(address, 20_000_000, 20_000_010) == long[20_000_000:20_000_010]
        assert db.stats.bytes_read <= 2 << 20
        assert db._shards.read(address) == long


def test_what_comes_back_spoiled_one_time_in_ten_leaves_nothing_out(store: Remote, s3: Proxy) -> None:
    rng, spoiled = random.Random(4), Counter[object]()

    def spoil(number: int, request: object) -> str | None:
        if number % 5 != 2 or spoiled[request] == 2:  # three times in a row, one is lost
            return None
        spoiled[request] += 1
        return rng.choice(["503", "reset", "cut", "short"])

    s3.fault = spoil
    with store.connect() as db:
        assert Counter(ids(db.stream(QUERY, batch_size=16, shuffle=True))) == Counter(range(ROWS))


def test_one_request_in_ten_refused_costs_less_than_a_third_more(store: Remote, s3: Proxy) -> None:
    with store.connect(cache_bytes=0) as db:
        assert sorted(ids(db.stream(QUERY, batch_size=16, shuffle=True))) == list(range(ROWS))
    plain = len(s3.gets)
    s3.clear()
    rng = random.Random(2)
    s3.fault = lambda number, request: "503" if rng.random() < 0.1 else None
    with store.connect(cache_bytes=0) as db:
        assert Counter(ids(db.stream(QUERY, batch_size=16, shuffle=True))) == Counter(range(ROWS))
    assert plain > 50
    assert len(s3.gets) <= 1.3 * plain


def test_a_flipped_bit_is_fetched_again_and_never_delivered(store: Remote, s3: Proxy) -> None:
    s3.fault = first_get("flip")
    with store.connect() as db:
        for batch in db.stream(QUERY, batch_size=16):
            assert all(bytes(d) == blob(int(i)) for i, d in zip(batch["id"], batch["data"], strict=True))
        assert db.stats.refetched > 0


def test_a_flipped_bit_of_a_vector_is_fetched_again(store: Remote, s3: Proxy) -> None:
    s3.fault = first_get("flip")
    with store.connect() as db:
        rows = db.execute("SELECT id, v FROM clips ORDER BY id").fetchall()
        assert all((np.asarray(row.v) == vector(row.id)).all() for row in rows)


def test_an_object_that_is_damaged_for_good_is_a_typed_error_that_names_it(fresh: Remote, s3: Proxy) -> None:
    with fresh.connect(storage=fresh.url) as db:
        fill(db)
    shutil.rmtree(fresh.cache)
    client = boto3.client("s3")
    for key in fresh.objects:
        if key.endswith((".tar", ".npy")):
            body = bytearray(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())
            body[len(body) // 2] ^= 1
            client.put_object(Bucket=BUCKET, Key=key, Body=bytes(body))
    with fresh.connect() as db:
        with pytest.raises(CorruptionError, match="shards/clips"):
            ids(db.stream(QUERY, batch_size=16))
        stream = db.stream(QUERY, batch_size=16, on_error="skip")
        assert len(ids(stream)) == ROWS - 1 and stream.stats.bad == 1
        with pytest.raises(CorruptionError, match="vectors/clips"):
            ids(db.stream("SELECT id, v FROM clips", batch_size=16))


def test_a_damaged_copy_is_mended_from_the_object(store: Remote) -> None:
    with store.connect() as db:
        assert len(ids(db.stream(QUERY, batch_size=16))) == ROWS
    (copy,) = store.cache.rglob("*.tar")
    damaged = bytearray(copy.read_bytes())
    for place in range(100_000, len(damaged), 500_000):
        damaged[place] ^= 255
    copy.write_bytes(bytes(damaged))
    with store.connect() as db:
        for batch in db.stream(QUERY, batch_size=16):
            assert all(bytes(d) == blob(int(i)) for i, d in zip(batch["id"], batch["data"], strict=True))
        assert db.stats.refetched > 0


def test_a_storage_out_of_reach_stops_the_stream_even_when_bad_samples_are_skipped(
    store: Remote, s3: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.connect() as db:
        monkeypatch.setattr(db._catalog.root.storage.objects, "_policy", Policy(attempts=2, backoff_s=0.01))
        stream = db.stream(QUERY, batch_size=16, on_error="skip")
        s3.fault = lambda number, request: "503"
        with pytest.raises(StoreError, match="503"):
            ids(stream)


@pytest.mark.parametrize("limit", [0, 3 << 20])
def test_a_cache_too_small_for_the_epoch_gives_the_same_rows(store: Remote, limit: int) -> None:
    with store.connect(cache_bytes=limit) as db:
        for batch in db.stream("SELECT id, data, v FROM clips", batch_size=32, shuffle=True):
            for i, data, found in zip(batch["id"].tolist(), batch["data"], batch["v"].numpy(), strict=True):
                assert bytes(data) == blob(i)
                np.testing.assert_array_equal(found, vector(i))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_workers_of_a_loader_share_what_they_fetch(store: Remote, s3: Proxy, method: str) -> None:
    with store.connect() as db:
        stream = db.stream(QUERY, batch_size=32, shuffle=True, num_threads=1)
        loader = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context=method)
        assert sorted(ids(loader)) == list(range(ROWS))
    sizes = store.objects.values()
    assert sum(_length(request.bytes_range) for request in s3.gets) <= max(sizes)


def _length(bytes_range: str | None) -> int:
    assert bytes_range is not None
    first, last = bytes_range.removeprefix("bytes=").split("-")
    return int(last) - int(first) + 1


def test_prewarming_leaves_nothing_to_fetch(store: Remote, s3: Proxy) -> None:
    with store.connect() as db:
        assert db.prewarm(QUERY + " WHERE id < 40") < max(store.objects.values()) / 2
        s3.clear()
        assert sorted(ids(db.stream(QUERY + " WHERE id < 40", batch_size=8))) == list(range(40))
        assert not s3.log
        db.prewarm()
        s3.clear()
        assert len(ids(db.stream("SELECT id, data, v FROM clips", batch_size=16))) == ROWS
        assert not s3.log and db.prewarm() == 0


def test_what_the_cache_had_is_counted_once_however_often_it_was_looked_for(store: Remote, s3: Proxy) -> None:
    total = sum(BLOB + i for i in range(ROWS))
    with store.connect() as db:
        db.prewarm()
        before = db.stats
        s3.clear()
        assert db.prewarm() == 0 and db.stats == before, "prewarming reads nothing"
        stream = db.stream(QUERY, batch_size=32, shuffle=True, num_threads=2)  # which has a thread that reads ahead
        for _ in range(2):
            assert len(ids(stream)) == ROWS
            assert (stream.stats.hits, stream.stats.bytes, stream.stats.gets) == (total, total, 0)
        assert not s3.log
        before = db.stats
        sample = stream.sample(7)
        assert bytes(sample["data"]) == blob(int(sample["id"]))
        assert (db.stats - before).hits == len(bytes(sample["data"]))


def test_small_inserts_write_no_object_and_larger_ones_at_most_three(fresh: Remote, s3: Proxy) -> None:
    with fresh.connect(storage=fresh.url) as db:
        db.execute("CREATE TABLE clips (id BIGINT PRIMARY KEY, data BLOB, v VECTOR(768))")
        s3.clear()
        insert = "INSERT INTO clips (data, v) VALUES (%s, %s)"
        db.execute(insert, [b"small", vector(1)])
        assert not s3.log
        db.execute(insert, [blob(1) * 4, vector(2)])
        assert s3.counts()["PUT"] <= 3 and set(s3.counts()) == {"PUT"}
        s3.clear()
        db.branch("experiment")
        db.execute("UPDATE clips SET v = %s WHERE id = 1", [vector(3)])
        db.merge("experiment", into="main")
        assert len(s3.log) <= 2
        db.checkout("main")
        assert [row.data.bytes() for row in db.execute("SELECT data FROM clips ORDER BY id")] == [b"small", blob(1) * 4]


def test_every_sealed_shard_is_a_tar_that_others_read(store: Remote) -> None:
    import io
    import tarfile

    (key,) = (key for key in store.objects if key.endswith(".tar"))
    body = boto3.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        found = [tar.extractfile(m).read() for m in tar.getmembers() if not m.name.endswith(".json")]  # type: ignore[union-attr]
    assert found == [blob(i) for i in range(ROWS)]


def test_a_rolled_back_transaction_leaves_nothing_that_a_row_names(fresh: Remote) -> None:
    with fresh.connect(storage=fresh.url) as db:
        db.execute("CREATE TABLE clips (id BIGINT PRIMARY KEY, data BLOB, v VECTOR(768))")
        with pytest.raises(RuntimeError), db.transaction():
            db.insert("clips", [{"id": 1, "data": blob(1) * 4, "v": vector(1)}])
            assert db.execute("SELECT data FROM clips").fetchall()[0].data.bytes() == blob(1) * 4, "its own bytes"
            raise RuntimeError
        assert [name for name in fresh.objects if not name.endswith(OWNER)] == []
        db.insert("clips", [{"id": 1, "data": blob(2) * 4, "v": vector(1)}])
    shutil.rmtree(fresh.cache)
    with fresh.connect() as db:
        assert db.execute("SELECT data FROM clips").fetchall()[0].data.bytes() == blob(2) * 4


def test_a_failed_upload_commits_nothing_and_can_be_run_again(
    fresh: Remote, s3: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "Policy", lambda: Policy(attempts=1))
    with fresh.connect(storage=fresh.url) as db:
        db.execute("CREATE TABLE clips (id BIGINT PRIMARY KEY, data BLOB)")
        s3.fault = lambda number, request: "503" if request.method == "PUT" else None
        with pytest.raises(StoreError, match="cannot write"):
            db.insert("clips", [{"id": 1, "data": blob(1) * 4}])
        assert db.execute("SELECT count(*) FROM clips").scalar() == 0
        s3.fault = None
        db.insert("clips", [{"id": 1, "data": blob(1) * 4}])
        assert db.execute("SELECT data FROM clips").fetchall()[0].data.bytes() == blob(1) * 4


def test_the_catalog_remembers_the_storage_and_never_a_secret(fresh: Remote, s3: Proxy) -> None:
    secret = {"key": "tester", "secret": "not-to-be-found"}
    with fresh.connect(storage=fresh.url, storage_options=secret) as db:
        fill_one(db)
        assert "not-to-be-found" not in repr(db) + repr(db._catalog.location) + repr(db._catalog.root)
        for batch in db.stream(QUERY, batch_size=1):
            assert bytes(batch["data"][0]) == blob(1)
    stored = b"".join(path.read_bytes() for path in fresh.folder.rglob("*") if path.is_file())
    assert fresh.url.encode() in stored and b"not-to-be-found" not in stored
    with pytest.raises(InputError, match="keeps its bytes"):
        fresh.connect(storage=fresh_url())


def fill_one(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE clips (id BIGINT PRIMARY KEY, data BLOB)")
    db.insert("clips", [{"id": 1, "data": blob(1)}])


def test_bytes_may_lie_in_another_folder_or_in_memory(tmp_path: Path) -> None:
    with deeplake.connect(tmp_path / "a", storage=tmp_path / "bytes") as db:
        fill_one(db)
    assert list((tmp_path / "bytes").rglob("*.tar")) and not list((tmp_path / "a").rglob("*.tar"))
    with deeplake.connect(tmp_path / "a") as db:
        assert ids(db.stream(QUERY, batch_size=1)) == [1]
    with deeplake.connect(tmp_path / "b", storage=f"memory://{tmp_path}", cache_dir=tmp_path / "cache") as db:
        fill_one(db)
        assert ids(db.stream(QUERY, batch_size=1)) == [1]


def test_a_store_whose_cache_is_lost_goes_on(fresh: Remote) -> None:
    with fresh.connect(storage=fresh.url) as db:
        db.execute("CREATE TABLE clips (id BIGINT PRIMARY KEY, data BLOB)")
        db.execute("INSERT INTO clips (id, data) VALUES (1, %s)", [b"rests"])
    shutil.rmtree(fresh.cache)
    with fresh.connect() as db:
        db.execute("INSERT INTO clips (id, data) VALUES (2, %s)", [b"rests, too"])
        db.insert("clips", [{"id": 3, "data": blob(3)}])
    shutil.rmtree(fresh.cache)
    with fresh.connect() as db:
        rows = db.execute("SELECT data FROM clips ORDER BY id").fetchall()
        assert [row.data.bytes() for row in rows] == [b"rests", b"rests, too", blob(3)]


def test_a_local_store_asks_nobody_and_loads_nothing_for_it(tmp_path: Path) -> None:
    code = f"""
import sys
import deeplake_loader as deeplake
with deeplake.connect({str(tmp_path / "store")!r}) as db:
    db.execute("CREATE TABLE clips (id BIGINT PRIMARY KEY, data BLOB)")
    db.insert("clips", [{{"id": i, "data": bytes(100_000)}} for i in range(4)])
    assert len([b for b in db.stream("SELECT id, data FROM clips", batch_size=2)]) == 2
    print(db.stats)
loaded = [m for m in sys.modules if m.startswith("deeplake_loader.storage.")]
assert not set(loaded) & {{"deeplake_loader.storage.mirror", "deeplake_loader.storage.remote"}}, loaded
assert "s3fs" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == repr(Traffic())
