"""A stream below torchdata's nodes: each sample once over any stops, states that restore, threads that end."""

from __future__ import annotations

import gc
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from stream_store import ROWS, Store
from torchdata.nodes import (
    BaseNode,
    Batcher,
    Loader,
    Mapper,
    MultiNodeWeightedSampler,
    ParallelMapper,
    PinMemory,
    Prefetcher,
    Unbatcher,
)

from deeplake_loader.errors import StateError
from deeplake_loader.nodes import StreamNode

FEW = ["id", "embedding"]


@pytest.fixture
def store(catalog_kind: str, shared: Callable[..., Any]) -> Store:
    made: Store = shared(catalog_kind, Store.at)
    return made


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    gc.disable()  # a loader refers to itself, and torchdata's threads must not be the ones that collect it
    yield
    gc.enable()
    gc.collect()
    deadline = time.monotonic() + 30  # torchdata's own threads look up every 0.1 s
    while any(t.name.startswith("deeplake") for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [t.name for t in threading.enumerate() if t.name.startswith("deeplake")] == []


def ids(items: Any) -> list[int]:
    return [int(i) for batch in items for i in batch["id"]]


def epoch_of(store: Store, epoch: int, **options: Any) -> list[int]:
    stream = store.stream(FEW, **options)
    stream.set_epoch(epoch)
    return ids(stream)


def plain(node: BaseNode) -> BaseNode:
    return node


def prefetched(node: BaseNode) -> BaseNode:
    return Prefetcher(node, prefetch_factor=3)


def mapped(node: BaseNode) -> BaseNode:
    return ParallelMapper(node, map_fn=dict, num_workers=2, method="thread", in_order=True)


def mapped_and_prefetched(node: BaseNode) -> BaseNode:
    return Prefetcher(Mapper(node, dict), prefetch_factor=2, snapshot_frequency=1)


PIPELINES = [plain, prefetched, mapped, mapped_and_prefetched]


@pytest.mark.both_catalogs
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_pass_of_a_loader_is_the_next_epoch(store: Store, pipeline: Any) -> None:
    loader = Loader(pipeline(StreamNode(store.stream(FEW))))
    assert [ids(loader) for _ in range(3)] == [epoch_of(store, e) for e in range(3)]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_state_goes_on_exactly_however_often_it_is_stopped(store: Store, pipeline: Any) -> None:
    expected = [i for epoch in range(3) for i in epoch_of(store, epoch)]
    rng = random.Random(1)
    for _ in range(4):
        got: list[int] = []
        state = None
        for _ in range(5):
            loader = Loader(pipeline(StreamNode(store.stream(FEW, prefetch=rng.randrange(3)))))
            if state is not None:
                loader.load_state_dict(json.loads(json.dumps(state)))
            for batch, _ in zip(loader, range(rng.randrange(1, 9)), strict=False):
                got += ids([batch])
                state = loader.state_dict()
        assert got == expected[: len(got)]


@pytest.mark.both_catalogs
def test_a_node_alone_goes_on_from_its_state(store: Store) -> None:
    node = StreamNode(store.stream(FEW))
    first = [next(node) for _ in range(3)]
    state = node.state_dict()
    rest = ids(node)
    assert ids(first) + rest == epoch_of(store, 0)
    node.reset(state)
    assert node.state_dict() == state and ids(node) == rest
    other = StreamNode(store.stream(FEW))
    other.reset(state)
    assert ids(other) == rest


def test_a_reset_in_mid_epoch_is_the_next_epoch_and_its_state_says_so(store: Store) -> None:
    node = StreamNode(store.stream(FEW))
    next(node)
    node.reset()
    state = node.state_dict()
    assert (state["epoch"], state["position"]) == (1, 0)
    node.reset()  # nothing was taken of it
    assert ids(node) == epoch_of(store, 1)
    node.reset()
    assert ids(node) == epoch_of(store, 2)


def test_a_state_of_a_finished_epoch_goes_on_with_the_next(store: Store) -> None:
    loader = Loader(StreamNode(store.stream(FEW)))
    assert ids(loader) == epoch_of(store, 0)
    state = loader.state_dict()
    again = Loader(StreamNode(store.stream(FEW)))
    again.load_state_dict(state)
    assert ids(again) == epoch_of(store, 1)


def test_samples_taken_apart_and_batched_again_resume_inside_a_batch(store: Store) -> None:
    def pipeline() -> Loader[Any]:
        rows = Mapper(StreamNode(store.stream(FEW)), lambda batch: batch["id"].tolist())
        return Loader(Prefetcher(Batcher(Unbatcher(rows), batch_size=5, drop_last=False), prefetch_factor=2))

    batches = list(pipeline())
    assert [i for b in batches for i in b] == epoch_of(store, 0)
    for stop in (1, 7, 20):
        loader = pipeline()
        for _, _ in zip(loader, range(stop), strict=False):
            state = loader.state_dict()
        again = pipeline()
        again.load_state_dict(state)
        assert list(again) == batches[stop:]


def test_two_streams_mixed_by_torchdata_give_every_row_of_both(store: Store) -> None:
    def mixed() -> Loader[Any]:
        nodes = {"a": StreamNode(store.stream(FEW)), "b": StreamNode(store.stream(FEW, seed=1))}
        return Loader(MultiNodeWeightedSampler(nodes, {"a": 1.0, "b": 1.0}, stop_criteria="ALL_DATASETS_EXHAUSTED"))

    whole = [ids([batch]) for batch in mixed()]
    assert sorted(i for b in whole for i in b) == sorted([*range(ROWS)] * 2)
    loader = mixed()
    for _, _ in zip(loader, range(9), strict=False):
        state = loader.state_dict()
    again = mixed()
    again.load_state_dict(state)
    assert [ids([batch]) for batch in again] == whole[9:]


def test_ranks_share_an_epoch_and_a_state_fits_another_number_of_ranks(store: Store) -> None:
    loaders = [Loader(StreamNode(store.stream(FEW, rank=r, world_size=2, tail="short"))) for r in range(2)]
    seen: list[int] = []
    for loader in loaders:
        for _, batch in zip(range(3), loader, strict=False):  # in this order, or zip takes one batch more
            seen += ids([batch])
    states = [loader.state_dict()["root"] for loader in loaders]
    assert states[0] == states[1]
    alone = StreamNode(store.stream(FEW))
    alone.reset(states[0])
    assert sorted(seen + ids(alone)) == list(range(ROWS))


def test_a_state_of_another_query_is_refused(store: Store) -> None:
    node = StreamNode(store.stream(FEW))
    with pytest.raises(StateError, match="seed"):
        node.reset(store.stream(FEW, seed=5).state_dict())


def test_batches_are_pinned_where_that_can_be(store: Store, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("pinned memory needs a CUDA device")
    batch = next(iter(Loader(PinMemory(StreamNode(store.stream(FEW))))))
    assert batch["embedding"].is_pinned()
