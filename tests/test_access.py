"""Chosen samples of a stream, and the memory that a stream's rows take in other processes."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from multiprocessing import context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Store as Place
from stream_store import NAMES, ROWS, Store, epoch_of, ids, latent, picture, vector

from deeplake_loader.database import connect
from deeplake_loader.decode.transforms import Image, Raw
from deeplake_loader.errors import CorruptionError, DeeplakeError, InputError, NotFoundError
from deeplake_loader.order import LANES, WINDOW_BLOCKS, Order, Share, cut_blocks
from deeplake_loader.reader import Reader
from deeplake_loader.stream import shared
from deeplake_loader.stream.shared import Mapped
from deeplake_loader.types import pack_address

pytestmark = pytest.mark.both_catalogs


@pytest.fixture
def store(catalog_kind: str, shared: Callable[..., Any]) -> Store:
    made: Store = shared(catalog_kind, Store.at)
    return made


def test_chosen_samples_come_as_they_were_inserted_in_the_order_asked_for(store: Store) -> None:
    stream = store.stream()
    wanted = [5, 99, 5, 0]
    batch = stream.take(keys=wanted)
    assert ids(batch) == batch["_keys"].tolist() == wanted
    for place, i in enumerate(wanted):
        assert np.array_equal(batch["photo"][place].numpy().transpose(1, 2, 0), picture(i))
        assert np.array_equal(batch["latent"][place].numpy(), latent(i))
        assert np.array_equal(batch["embedding"][place].numpy(), vector(i))
        assert batch["prompt"][place] == f"prompt {i}"
    assert set(batch) == {*NAMES, "_rows", "_keys"}
    assert stream.state_dict()["position"] == 0


def test_a_single_sample_is_a_batch_of_one_without_its_dimension(place: Place) -> None:
    with place.connect() as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, b BLOB, l BLOB, v VECTOR(3), a TEXT, x REAL, d DATE)")
        row = {"a": "ü", "x": 0.5, "d": "2026-01-02"}
        db.insert("t", [{**row, "id": i, "b": os.urandom(70 + i), "v": [i, 0, 1]} for i in range(60)])
        db.execute("UPDATE t SET b = NULL, v = NULL, a = NULL WHERE id = 7")
        db.execute("UPDATE t SET l = %s WHERE id = 9", [os.urandom(5 << 20)])
        stream = db.stream("SELECT b, l, v, a, x, d, id FROM t", batch_size=8, shuffle=True)
        for i in (0, 7, 9, 59):
            sample, batch = stream.sample(key=i), stream.take(keys=[i])
            assert list(sample) == [name for name in batch if not name.startswith("_")]
            for name, value in sample.items():
                one = batch[name][0]
                same = torch.equal(value, one) if isinstance(value, torch.Tensor) and one is not None else value == one
                assert same, (i, name)
        assert isinstance(stream.sample(3)["id"], int)


def test_one_key_is_found_as_a_list_of_it_is_and_a_wrong_one_is_refused_alike(place: Place) -> None:
    with place.connect() as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, a TEXT)")
        ids = [-(2**63), -5, 0, 3, 4, 9, 2**63 - 1]
        db.insert("t", [{"id": i, "a": str(i)} for i in reversed(ids)])
        stream = db.stream("SELECT id, a FROM t ORDER BY a", batch_size=2)
    for i in (*ids, np.int64(4)):
        assert stream.sample(key=i) == {"id": i, "a": str(i)}
        assert stream.take(keys=[i])["a"] == [str(i)]
    for missing in (-6, 5, 2**63 - 2):
        with pytest.raises(NotFoundError, match=f"{missing}"):
            stream.sample(key=missing)
    for wrong in ("4", 4.0, True, 2**63, -(2**63) - 1, [4]):
        with pytest.raises(DeeplakeError):
            stream.sample(key=wrong)


def test_a_single_decoded_or_damaged_sample_is_what_a_batch_gives(tmp_path: Path) -> None:
    store = Store(tmp_path, 60)
    stream = store.stream(["photo", "id"])
    assert np.array_equal(stream.sample(key=11)["photo"].numpy().transpose(1, 2, 0), picture(11))
    raw = store.stream(["photo", "id"], transforms={"photo": Raw()})
    assert raw.sample(key=11)["photo"] == bytes(raw.take(keys=[11])["photo"][0])
    row = int(raw.take(keys=[5])["_rows"][0])
    extents = raw._sources[0].extents["photo"]
    with open(extents.paths[extents.file[row]], "r+b") as file:
        file.seek(int(extents.offset[row]) + 3)
        file.write(b"\xff\x00\xff")
    with pytest.raises(CorruptionError):
        raw.sample(key=5)
    assert raw.sample(key=6)["id"] == 6
    for wrong in ({}, {"row": 1, "key": 1}, {"row": 60}, {"row": -1}):
        with pytest.raises(InputError):
            raw.sample(**wrong)


def test_rows_of_a_batch_can_be_taken_again_with_the_same_augmentation(store: Store) -> None:
    transform = {"photo": Image(size=4, crop="random_resized", flip=0.5)}
    stream = store.stream(["photo", "id"], transforms=transform)
    stream.set_epoch(2)
    for batch in stream:
        again = stream.take(batch["_rows"], epoch=2)
        assert torch.equal(again["photo"], batch["photo"]) and torch.equal(again["id"], batch["id"])
        by_key = stream.take(keys=batch["_keys"].tolist(), epoch=2)
        assert torch.equal(by_key["photo"], batch["photo"])


def test_a_position_names_its_sample(store: Store) -> None:
    stream = store.stream(["id", "prompt", "score", "embedding"])
    order = epoch_of(store, 3)
    for position in (0, 17, ROWS - 1):
        found = stream.locate(3, position)
        i = order[position]
        assert (found.epoch, found.position, found.source, found.key) == (3, position, 0, i)
        assert found.scalars == {"id": i, "prompt": f"prompt {i}", "score": i / 2}
        assert stream.take([found.row])["id"].tolist() == [i]
    for epoch, position in ((0, ROWS), (0, -1), (-1, 0)):
        with pytest.raises(InputError, match="positions 0 to 102"):
            stream.locate(epoch, position)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({}, InputError, "row numbers or keys="),
        ({"rows": [1], "keys": [1]}, InputError, "one of them"),
        ({"rows": [ROWS]}, InputError, "0 to 102"),
        ({"rows": [-1]}, InputError, "0 to 102"),
        ({"rows": [0.5]}, InputError, "row numbers"),
        ({"rows": []}, InputError, "at least one"),
        ({"keys": ["x"]}, InputError, "integer"),
        ({"keys": [3, 1000]}, NotFoundError, "1000"),
        ({"rows": [0], "source": 1}, InputError, "source=1"),
    ],
)
def test_what_cannot_be_taken_is_refused(
    store: Store, arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        store.stream(["id"]).take(**arguments)


def test_keys_of_text_or_of_several_columns_are_found_too(place: Place) -> None:
    with place.connect() as db:
        db.execute("CREATE TABLE a (name TEXT PRIMARY KEY, n BIGINT)")
        db.execute("CREATE TABLE b (x BIGINT, y TEXT, n BIGINT, PRIMARY KEY (x, y))")
        db.insert("a", [{"name": f"k{i}", "n": i} for i in range(5)])
        db.insert("b", [{"x": i // 2, "y": "uv"[i % 2], "n": i} for i in range(6)])
        names = db.stream("SELECT n FROM a", batch_size=2, shuffle=True)
        assert names.take(keys=["k3", "k0"])["n"].tolist() == [3, 0]
        assert {k: n for b in names for k, n in zip(b["_keys"], b["n"].tolist(), strict=True)} == {
            f"k{i}": i for i in range(5)
        }
        pairs = db.stream("SELECT n FROM b", batch_size=4)
        batch = pairs.take(keys=[(2, "v"), (0, "u")])
        assert batch["n"].tolist() == [5, 0] and batch["_keys"] == [(2, "v"), (0, "u")]
        with pytest.raises(NotFoundError, match=r"\(7, 'u'\)"):
            pairs.take(keys=[(7, "u")])
        grouped = db.stream("SELECT x, count(*) AS n FROM b GROUP BY x", batch_size=4)
        with pytest.raises(InputError, match="no primary key"):
            grouped.take(keys=[1])
        assert "_keys" not in next(iter(grouped)) and grouped.locate(0, 1).key is None


def test_taking_samples_leaves_no_file_open_once_the_stream_is_gone(store: Store) -> None:
    stream, before = store.stream(), open_files(store)
    stream.take([0, ROWS - 1])
    assert open_files(store) > before
    del stream
    assert open_files(store) <= before


def open_files(store: Store) -> int:
    """Those of the store's folder: others of the process come and go by themselves."""
    links = (f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd"))
    return sum(os.path.realpath(link).startswith(os.path.realpath(store.root)) for link in links)


# -- other processes ---------------------------------------------------------------------------------------------------


def test_a_mapped_value_is_the_same_and_cannot_be_written() -> None:
    value = {"a": np.arange(1000), "b": [np.ones(3, np.float32), "text"], "none": np.zeros(0)}
    read = Mapped.write(value).read()
    assert np.array_equal(read["a"], value["a"]) and read["b"][1] == "text" and len(read["none"]) == 0
    with pytest.raises(ValueError, match="read-only"):
        read["a"][0] = 1


def test_only_large_values_are_mapped(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    assert Mapped.write_large(np.zeros(10)) is None
    monkeypatch.setattr(shared, "_LARGE", 100)
    stream = store.stream()
    (source,) = stream._sources
    assert source.mapped and not source.starts.flags.writeable
    assert [i for b in stream for i in ids(b)] == epoch_of(store, 0)


class Handed:
    """A file descriptor on its way to a process that is being spawned."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def detach(self) -> int:
        return self.fd


class Spawning:
    """Stands for a process that is being spawned."""

    DupFd = Handed

    @staticmethod
    def duplicate_for_child(fd: int) -> int:
        return os.dup(fd)


@pytest.mark.parametrize("large", [False, True])
def test_a_spawned_process_is_sent_a_mapping_of_the_rows(
    large: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(shared, "_LARGE", 100)
    stream = store.stream()
    context.set_spawning_popen(Spawning)
    try:
        sent = pickle.dumps(stream)
    finally:
        context.set_spawning_popen(None)
    assert len(sent) < 20_000
    copy = pickle.loads(sent)
    assert not copy._sources[0].starts.flags.writeable
    assert [i for b in copy for i in ids(b)] == epoch_of(store, 0)


def test_a_large_source_is_sent_in_kilobytes(tmp_path: Path) -> None:
    with connect(tmp_path) as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, a TEXT, x REAL)")
        db.insert(
            "t", {"id": range(20_000), "a": [f"text {i}" for i in range(20_000)], "x": [i / 3 for i in range(20_000)]}
        )
        (source,) = db.stream("SELECT * FROM t", batch_size=64)._sources
    mapped = Mapped.write(source._parts())
    assert len(mapped._head) < 10_000 < 20_000 * 8 < sum(length for _, length in mapped._places)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.digest == source.digest and copy.keys_at(np.array([7])).tolist() == [7]


def test_a_copy_of_a_stream_looks_nothing_up_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    bulk = Store(Path(store.root).parent / "bulk", 80)  # ... of which the second 40 rest in the catalog
    for made, asked in ((bulk.stream(["photo"]), 1), (bulk.stream(["embedding"]), 0)):
        copy = pickle.loads(pickle.dumps(made))
        calls: list[int] = []
        original = Reader.resolve

        def resolve(self: Reader, addresses: Any, calls: list[int] = calls, original: Any = original) -> Any:
            calls.append(len(addresses))
            return original(self, addresses)

        with monkeypatch.context() as patch:
            patch.setattr(Reader, "resolve", resolve)
            next(iter(copy))
        assert len(calls) == asked


# -- which rank reads which block --------------------------------------------------------------------------------------


class BlockCounter:
    """A store that counts: one request brings a block, and a rank keeps the blocks of the windows it is in."""

    def __init__(self, starts: np.ndarray, length: int) -> None:
        self.starts, self.length = starts, length
        self.requests = self.bytes = self.most = 0

    def read(self, steps: list[np.ndarray]) -> None:
        """One rank's epoch: a block is asked for at its first row and let go of after its last."""
        blocks = [np.searchsorted(self.starts, rows, "right") - 1 for rows in steps]
        last = {b: i for i, step in enumerate(blocks) for b in step.tolist()}
        held: set[int] = set()
        for i, step in enumerate(blocks):
            fresh = set(step.tolist()) - held
            held |= fresh
            self.requests += len(fresh)
            self.bytes += sum(int(self.starts[b + 1] - self.starts[b]) * self.length for b in fresh)
            self.most = max(self.most, sum(int(self.starts[b + 1] - self.starts[b]) * self.length for b in held))
            held -= {b for b in held if last[b] == i}


@pytest.mark.parametrize(("ranks", "lanes"), [(1, LANES), (8, LANES), (64, LANES), (512, 512), (3, LANES), (8, 1)])
def test_each_block_is_read_by_one_rank_where_the_counts_divide(ranks: int, lanes: int) -> None:
    shards, per_shard, length = 128, 1024, 100_000
    addresses = np.array([pack_address(s + 1, i) for s in range(shards) for i in range(per_shard)], np.int64)
    starts = cut_blocks(addresses, np.full(len(addresses), length, np.int64))
    batch = max(8, lanes // ranks)
    epoch, step = Order(starts, lanes).epoch(0, 0), batch * ranks
    counted = [BlockCounter(starts, length) for _ in range(ranks)]
    for rank, counter in enumerate(counted):
        share = Share(len(addresses), batch, rank, ranks, lanes, "drop")
        counter.read([epoch.rows(share.take(position)[0]) for position in range(0, len(addresses) - step + 1, step)])
    blocks, total = len(starts) - 1, len(addresses) * length
    requests, read = sum(c.requests for c in counted), sum(c.bytes for c in counted)
    divides = lanes % ranks == 0 and step % lanes == 0
    if divides:  # a block may lie across the end of a lane, and then two ranks read it
        assert requests <= blocks + lanes and read <= total * (1 + lanes / blocks)
        held = lanes // ranks * (WINDOW_BLOCKS + 1) * int(np.diff(starts).max()) * length
        assert max(c.most for c in counted) <= held
    else:
        assert requests > 1.5 * blocks and read > 1.5 * total


def test_batches_mix_shards_almost_as_a_uniform_shuffle_does() -> None:
    shards, per_shard, batch = 64, 2000, 256
    addresses = np.array([pack_address(s + 1, i) for s in range(shards) for i in range(per_shard)], np.int64)
    order = Order(cut_blocks(addresses, np.full(len(addresses), 1_000_000, np.int64)))  # 8 MB blocks: 8 rows
    uniform = np.random.default_rng(0).permutation(len(addresses))

    def same_shard(rows: np.ndarray) -> float:
        shard = rows[: len(rows) // batch * batch].reshape(-1, batch) // per_shard
        counts = np.stack([np.bincount(step, minlength=shards) for step in shard])
        return float((counts * counts - counts).sum() / counts.sum() / (batch - 1))

    ideal = same_shard(uniform)
    for seed in range(4):
        assert same_shard(order.positions(seed, seed)) <= 1.3 * ideal
