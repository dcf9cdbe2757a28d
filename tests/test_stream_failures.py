"""Bad samples of every kind, and reads that hang: nothing else suffers, and the message says what it was."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Store as Place
from hypothesis import given
from hypothesis import strategies as st
from stream_store import Clock, Store, picture, vector, wait_until
from torch.utils.data import DataLoader

import deeplake_loader as deeplake
from deeplake_loader import kernels
from deeplake_loader.errors import CorruptionError, InputError, NotFoundError, SampleErrors, StalledError
from deeplake_loader.stream import BadSample, Stream
from deeplake_loader.stream.failures import mend

pytestmark = pytest.mark.both_catalogs

Batch = dict[str, Any]


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


class Damaged:
    """A store of 30 rows with a photo, a vector and a large blob, of which some are damaged."""

    def __init__(self, place: Place) -> None:
        self.db = place.connect()
        self.db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, photo IMAGE, vec VECTOR(4), large BLOB)")
        self.large = [os.urandom((4 << 20) + 7 + i) for i in range(6)]
        rows = [{"id": i, "photo": picture(i), "vec": vector(i), "large": self.large[i % 6]} for i in range(30)]
        for row in rows[6:]:
            row["large"] = None
        self.db.insert("t", rows)
        self.db.optimize()

    def place(self, column: str, i: int) -> tuple[Path, int]:
        blob = self.db.execute(f"SELECT {column} FROM t WHERE id = %s", [i]).scalar()
        where = self.db.locate(blob.address_in(self.db))
        return Path(self.db.root) / where.url, where.offset

    def key(self, i: int) -> str:
        found: str = self.db.execute("SELECT photo FROM t WHERE id = %s", [i]).scalar().key
        return found

    def stream(self, columns: str, **options: Any) -> Stream:
        where = "id < 6" if "large" in columns else "id >= 0"
        sql = f"SELECT id, {columns} FROM t WHERE {where} ORDER BY id"
        return self.db.stream(sql, **{"batch_size": 6, "num_threads": 2, **options})


@pytest.fixture
def damaged(place: Place) -> Iterator[Damaged]:
    store = Damaged(place)
    yield store
    store.db.close()


def test_a_block_of_a_large_blob_costs_only_its_own_sample(damaged: Damaged) -> None:
    assert [b for batch in damaged.stream("large") for b in batch["large"]] == damaged.large
    path, offset = damaged.place("large", 2)
    flip(path, offset + (3 << 20))  # in its fourth block
    with pytest.raises(CorruptionError, match="block 3"):
        list(damaged.stream("large"))
    (batch,) = damaged.stream("large", on_error="skip")
    assert batch["id"].tolist() == [0, 1, 3, 4, 5] and batch["_bad"] == [damaged.key(2)]
    assert batch["large"] == [b for i, b in enumerate(damaged.large) if i != 2]


def test_large_blobs_are_read_without_a_query_each(damaged: Damaged, monkeypatch: pytest.MonkeyPatch) -> None:
    from deeplake_loader.blobs import BlobReader

    def singly(self: Any, address: int) -> bytes:
        raise AssertionError("read on its own")

    monkeypatch.setattr(BlobReader, "read", singly)
    raw = {"large": deeplake.Raw()}
    (batch,) = damaged.stream("large", transforms=raw)
    assert batch["large"] == damaged.large


def test_a_damaged_vector_file_costs_the_rows_of_one_block(tmp_path: Path) -> None:
    with deeplake.connect(tmp_path / "store") as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, vec VECTOR(64))")
        values = np.random.default_rng(0).standard_normal((9_000, 64)).astype(np.float32)  # 2.3 MB: three blocks
        db.insert("t", {"id": range(9_000), "vec": values})
        db.optimize()
        (file,) = Path(db.root).rglob("*.npy")
        flip(file, (1 << 20) + 5)
        stream = db.stream("SELECT id, vec FROM t ORDER BY id", batch_size=100, on_error="skip", max_errors=None)
        got = {i: v for batch in stream for i, v in zip(batch["id"].tolist(), batch["vec"], strict=True)}
        lost = set(range(9_000)) - set(got)
        block = {(np.arange(1 << 20, 2 << 20) - 128)[k] // 256 for k in (0, -1)}
        assert min(lost) >= min(block) and max(lost) <= max(block) and len(lost) > 3_900
        assert all(np.array_equal(got[i].numpy(), values[i]) for i in list(got)[::50])
        assert stream.stats.bad >= len(lost) and "crc32c" in stream.stats.skipped[-1].reason


def test_a_missing_shard_costs_only_its_own_samples(tmp_path: Path) -> None:
    store = Store(tmp_path, 60)
    store.shards.seal()
    places = [store.shards.locate(r[0]) for r in store.records]
    gone = places[20].url
    os.unlink(Path(store.root) / gone)
    lost = {i for i, place in enumerate(places) if place.url == gone}
    assert 0 < len(lost) < 60
    with pytest.raises(NotFoundError, match=os.path.basename(gone)):
        list(store.stream(["photo", "id"]))
    got = [i for b in store.stream(["photo", "id"], on_error="skip", batch_size=60) for i in b["id"].tolist()]
    assert sorted(got) == sorted(set(range(60)) - lost)


def test_a_function_decides_for_each_bad_sample(damaged: Damaged) -> None:
    seen: list[BadSample] = []
    answers: dict[str, Any] = {}

    def judge(bad: BadSample) -> Any:
        seen.append(bad)
        return answers[bad.key]

    grey = torch.full((3, 6, 8), 127, dtype=torch.uint8)
    for i, answer in ((1, "skip"), (2, "replace"), (4, grey)):
        answers[damaged.key(i)] = answer
        path, offset = damaged.place("photo", i)
        flip(path, offset + 60)
    first, *others = damaged.stream("photo, vec", on_error=judge, transforms={"photo": deeplake.Image(size=(6, 8))})
    assert first["id"].tolist() == [0, 3, 3, 4, 5] and first["valid"].tolist() == [True, False, True, True, True]
    assert torch.equal(first["photo"][3], grey) and np.array_equal(first["vec"][3].numpy(), vector(4))
    assert first["_bad"] == [damaged.key(i) for i in (1, 2, 4)] and len(others) == 4
    assert [(bad.column, bad.row) for bad in seen] == [("photo", 1), ("photo", 2), ("photo", 4)]
    assert all("crc32c" in bad.reason and bad.address > 0 for bad in seen)


@pytest.mark.parametrize(
    ("answer", "error"), [("raise", CorruptionError), (None, InputError), (torch.ones(3), InputError)]
)
def test_what_a_function_may_not_answer_is_refused(damaged: Damaged, answer: Any, error: type[Exception]) -> None:
    path, offset = damaged.place("photo", 1)
    flip(path, offset + 60)
    with pytest.raises(error):
        list(damaged.stream("photo", on_error=lambda bad: answer, transforms={"photo": deeplake.Image(size=4)}))


@given(
    count=st.integers(1, 12),
    policy=st.lists(st.sampled_from(["good", "skip", "replace"]), min_size=12, max_size=12),
    invalid=st.sets(st.integers(0, 11)),
)
def test_good_samples_keep_their_order_and_nothing_bad_is_valid(
    count: int, policy: list[str], invalid: set[int]
) -> None:
    verdicts: dict[int, Any] = {i: p for i, p in enumerate(policy[:count]) if p != "good"}
    valid = np.array([i not in invalid for i in range(count)])
    mended = mend(count, verdicts, valid)
    good = [i for i in range(count) if i not in verdicts]
    left = [i for i in range(count) if verdicts.get(i) != "skip"]
    assert len(mended.keep) == len(mended.valid) == max(1, len(left))
    assert mended.elsewhere == (not good)
    if good:
        assert set(mended.keep.tolist()) <= set(good)
        assert [int(k) for k, i in zip(mended.keep, left, strict=True) if i in good] == good
        assert mended.valid.tolist() == [i in good and bool(valid[i]) for i in left]
    else:
        assert not mended.valid.any()


def test_ranks_stay_in_step_over_bad_samples(damaged: Damaged) -> None:
    for i in range(6, 12):
        path, offset = damaged.place("photo", i)
        flip(path, offset + 60)
    for policy in ("skip", "replace"):
        streams = [damaged.stream("photo", on_error=policy, rank=r, world_size=2, batch_size=3) for r in range(2)]
        batches = [list(s) for s in streams]
        assert len(batches[0]) == len(batches[1]) == 5
        assert [b["_cursor"] for b in batches[0]] == [b["_cursor"] for b in batches[1]]
        assert all(len(b["id"]) == len(b["photo"]) == len(b["valid"]) > 0 for side in batches for b in side)
        kept = [i for side in batches for b in side for i in b["id"][b["valid"]].tolist()]
        assert sorted(kept) == [i for i in range(30) if not 6 <= i < 12]
        assert batches[0][1]["id"].tolist() == [12] * (1 if policy == "skip" else 3)  # the next good row


def test_too_many_bad_samples_in_a_row_end_the_pass_and_are_listed(damaged: Damaged) -> None:
    bad = [3, 4, 5, 6, 9, 10]
    for i in bad:
        path, offset = damaged.place("photo", i)
        flip(path, offset + 60)
    assert len([i for b in damaged.stream("photo", on_error="skip", max_errors=4) for i in b["id"]]) == 24
    with pytest.raises(SampleErrors, match="4 samples in a row") as caught:
        list(damaged.stream("photo", on_error="skip", max_errors=3))
    assert caught.value.keys == tuple(damaged.key(i) for i in (3, 4, 5, 6))
    assert isinstance(caught.value.__cause__, CorruptionError)


def test_a_read_that_hangs_is_named_and_the_pass_ends(damaged: Damaged, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = damaged.place("photo", 0)
    clock, go, came = Clock(monkeypatch), threading.Event(), list[bool]()
    real = kernels.read_batch

    def slow(*arguments: Any) -> Any:
        clock.pace_s = 1.0
        came.append(go.wait(60))
        return real(*arguments)

    monkeypatch.setattr(kernels, "read_batch", slow)
    with pytest.raises(StalledError, match=f"being read: rows 0, 1.*{path.name}"):
        next(iter(damaged.stream("photo", timeout_s=0.3)))
    assert came == []  # it is still being read
    go.set()
    wait_until(lambda: not any(t.name.startswith("deeplake") for t in threading.enumerate()), "the pass's threads end")


def test_a_slow_batch_that_comes_forward_is_no_stall(damaged: Damaged, monkeypatch: pytest.MonkeyPatch) -> None:
    from deeplake_loader.decode import cpu

    clock, real = Clock(monkeypatch), cpu.decode_into

    def slow(*arguments: Any, **named: Any) -> None:
        time.sleep(0.06)
        clock.advance(0.06)
        real(*arguments, **named)

    monkeypatch.setattr(cpu, "decode_into", slow)
    transform = {"photo": deeplake.Image(size=4)}
    stream = damaged.stream("photo", timeout_s=1.0, batch_size=30, num_threads=1, transforms=transform)
    assert len(next(iter(stream))["id"]) == 30  # 1.8 s in pieces of 0.5 s


def test_workers_take_part_in_every_policy(damaged: Damaged) -> None:
    path, offset = damaged.place("photo", 7)
    flip(path, offset + 60)
    loader = DataLoader(damaged.stream("photo", on_error="replace"), batch_size=None, num_workers=1)
    batches = list(loader)
    assert [i for b in batches for i in b["_bad"]] == [damaged.key(7)]
    assert sum(int(b["valid"].sum()) for b in batches) == 29


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"on_error": "ignore"}, "raise, skip, replace"),
        ({"max_errors": -1}, "max_errors"),
        ({"timeout_s": 0}, "timeout_s"),
    ],
)
def test_options_out_of_range_are_refused(damaged: Damaged, options: Batch, said: str) -> None:
    with pytest.raises(InputError, match=said):
        damaged.stream("photo", **options)
