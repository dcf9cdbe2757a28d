"""Stored bytes in a batch: views without a copy, whose buffer comes back by itself."""

from __future__ import annotations

import gc
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stream_store import NAMES, Store
from torch.utils.data import DataLoader

import deeplake_loader as deeplake
from deeplake_loader.reader import _Buffers
from deeplake_loader.stream import Payloads
from deeplake_loader.stream.payloads import _packed

ITEMS = st.lists(st.none() | st.binary(max_size=20), max_size=8)
RAW = {"photo": deeplake.Raw(), "latent": deeplake.Raw()}


@given(ITEMS, st.data())
def test_they_are_a_sequence_of_bytes(items: list[bytes | None], data: st.DataObject) -> None:
    payloads = _packed(items)
    assert payloads == items and payloads.tolist() == items and len(payloads) == len(items)
    assert payloads.nbytes == sum(len(i) for i in items if i is not None)
    assert [None if v is None else bytes(v) for v in payloads] == items
    assert payloads[1:] == items[1:] and payloads[::-1] == items[::-1]
    assert pickle.loads(pickle.dumps(payloads)) == items
    if items:
        places = data.draw(st.lists(st.integers(0, len(items) - 1), max_size=8))
        assert payloads.take(np.array(places, np.int64)) == [items[i] for i in places]
        assert payloads.replaced(places[0] if places else 0, b"new").tolist().count(b"new") >= 1
        assert payloads != [*items, b"more"] and payloads != items[1:]


pytestmark = pytest.mark.both_catalogs


@pytest.fixture
def store(catalog_kind: str, shared: Callable[..., Any]) -> Store:
    made: Store = shared(catalog_kind, Store.at)
    return made


def test_a_raw_column_holds_the_stored_bytes(store: Store) -> None:
    seen = 0
    for batch in store.stream(["photo", "latent", "id"], transforms=RAW):
        view = batch["photo"][0]
        assert isinstance(batch["photo"], Payloads) and view is not None and view.readonly
        for name in ("photo", "latent"):
            at = NAMES.index(name)
            assert batch[name] == [store.shards.read(store.records[i][at]) for i in batch["id"].tolist()]
        assert np.load(io.BytesIO(batch["latent"][0])).shape == (3,)
        seen += len(batch["photo"])
    assert seen == len(store.records)


def test_workers_hand_raw_columns_over(store: Store) -> None:
    stream = store.stream(["photo", "id"], transforms={"photo": deeplake.Raw()}, shuffle=False)
    here = [batch["photo"].tolist() for batch in stream]
    stream.set_epoch(0)
    assert [batch["photo"].tolist() for batch in DataLoader(stream, batch_size=None, num_workers=1)] == here


def test_nulls_and_bad_rows_stay_where_they_are(store: Store) -> None:
    records: list[Any] = [list(r) for r in store.records[:12]]
    records[5][0] = None
    rows = store.rowset(["photo", "id"], [tuple(r) for r in records])
    (batch,) = deeplake.stream.build_stream(store.where, rows, batch_size=12, transforms={"photo": deeplake.Raw()})
    assert [i for i, view in enumerate(batch["photo"]) if view is None] == [5]
    assert bytes(batch["photo"][6]) == store.shards.read(store.records[6][0])


def test_a_buffer_is_used_again_only_when_its_last_view_is_gone() -> None:
    buffers = _Buffers(2)
    first = buffers.take(100)
    first[:3] = b"one"
    part = first.toreadonly()[:3]
    del first
    gc.collect()
    second = buffers.take(100)
    second[:3] = b"two"
    assert bytes(part) == b"one" and len(buffers._spare) == 0
    array = np.frombuffer(part, np.uint8)
    del part
    assert len(buffers._spare) == 0 and array.tobytes() == b"one"  # numpy's view holds it as well
    del array
    assert len(buffers._spare) == 1
    del second
    assert len(buffers._spare) == 2
    held = [buffers.take(10) for _ in range(5)]
    del held
    assert len(buffers._spare) == 2 and not buffers._lent  # no more than it was told to keep
