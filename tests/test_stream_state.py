"""States: global, exact after any stops, for other ranks, batch sizes and workers, and out of a StatefulDataLoader."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stream_store import FEW, ROWS, Store, epoch_of, flat, ids
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from deeplake_loader.errors import StateError
from deeplake_loader.stream import Stream, build_stream, dataset, state_from_loader
from deeplake_loader.stream.mixing import mix
from deeplake_loader.stream.schedule import RowSchedule

ONE = ["id"]
PROPERTY = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def store(catalog_kind: str, shared: Callable[..., Any]) -> Store:
    made: Store = shared(catalog_kind, Store.at)
    return made


@pytest.fixture(scope="module")
def first_epochs() -> dict[str, list[int]]:
    return {}


@pytest.fixture
def epochs(store: Store, catalog_kind: str, first_epochs: dict[str, list[int]]) -> list[int]:
    """The ids of the first epochs, one after the other, as one process reads them."""
    if catalog_kind not in first_epochs:
        first_epochs[catalog_kind] = [i for epoch in range(8) for i in epoch_of(store, epoch)]
    return first_epochs[catalog_kind]


def one(store: Store, **options: Any) -> Stream:
    return store.stream(ONE, **{"num_threads": 1, "prefetch": 0, **options})


# -- ranks, batch sizes and workers as the schedule deals them ---------------------------------------------------------

PARTS = st.tuples(
    st.integers(1, 8),  # ranks
    st.integers(1, 3),  # workers of each
    st.integers(1, 20),  # batch size
    st.integers(1, 12),  # steps until the next stop
)


def steps_of(schedule: RowSchedule, cursor: tuple[int, int], workers: int) -> list[Any]:
    """The steps of a rank in turn, each worker making its own."""
    shares = [schedule.batches(cursor, first=w, stride=workers) for w in range(workers)]
    found = []
    for j in itertools.count():
        step = next(shares[j % workers], None)
        if step is None:
            return found
        found.append(step)


@settings(parent=PROPERTY, max_examples=150)
@given(st.lists(PARTS, min_size=1, max_size=6), st.sampled_from(["short", "pad"]))
def test_each_row_comes_once_an_epoch_whatever_changes_at_the_stops(
    store: Store, parts: list[tuple[int, int, int, int]], tail: Any
) -> None:
    base = one(store)._schedule
    assert isinstance(base, RowSchedule)
    cursor, got = (0, 0), []
    for world, workers, size, stop in [*parts, (1, 1, 16, ROWS)]:
        shares = [replace(base.share, rank=r, world_size=world, batch_size=size, tail=tail) for r in range(world)]
        ranks = [steps_of(replace(base, share=share), cursor, workers) for share in shares]
        assert {len(steps) for steps in ranks} == {replace(base, share=shares[0]).steps(cursor)}
        for together in zip(*(steps[:stop] for steps in ranks), strict=True):
            assert len({step.after for step in together}) == 1 and {step.epoch for step in together} == {cursor[0]}
            got += [i for s in together for i in s.rows[slice(None) if s.valid is None else s.valid].tolist()]
            cursor = together[0].after
            assert len(got) == min(ROWS, cursor[1] if cursor[0] == 0 else ROWS)
        if cursor[0] == 1:
            break
    assert sorted(got) == list(range(ROWS))


@PROPERTY
@given(st.sampled_from([1, 2, 4, 8, 16]), st.integers(0, ROWS - 1))
def test_the_same_rows_make_a_step_for_any_number_of_ranks(store: Store, world: int, position: int) -> None:
    base = one(store)._schedule
    assert isinstance(base, RowSchedule)

    def first(ranks: int) -> set[int]:
        shares = [replace(base.share, rank=r, world_size=ranks, batch_size=16 // ranks) for r in range(ranks)]
        steps = [next(replace(base, share=share).batches((3, position))) for share in shares]
        return {int(i) for s in steps for i in (s.rows if s.valid is None else s.rows[s.valid])}

    assert first(world) == first(1)


@pytest.mark.both_catalogs
@pytest.mark.parametrize(("before", "after"), [(2, 4), (2, 1), (1, 3)])
def test_ranks_change_in_mid_epoch_and_change_again(store: Store, before: int, after: int) -> None:
    got: list[int] = []
    state: dict[str, Any] | None = None
    for world, stop in ((before, 3), (after, 1), (before, 2), (1, ROWS)):
        streams = [one(store, rank=r, world_size=world, batch_size=4) for r in range(world)]
        for stream in streams:
            if state is not None:
                stream.load_state_dict(json.loads(json.dumps(state)))
        for _, batches in zip(range(stop), zip(*streams, strict=True), strict=False):
            for batch in batches:
                got += batch["id"][batch.get("valid", torch.ones(len(batch["id"])).bool())].tolist()
            states = [stream.state_dict() for stream in streams]
            assert all(s == states[0] == stream.state_at(b) for s, b in zip(states, batches, strict=True))
            state = states[0]
        for stream in streams:
            iter(stream)
    assert sorted(got) == list(range(ROWS)) and state is not None and state["epoch"] == 1


# -- workers -----------------------------------------------------------------------------------------------------------


class Workers:
    """A StatefulDataLoader with workers, played in this process: copies of the stream that share its clock, as forked
    ones do, make batches ahead, and their states travel with the batches."""

    def __init__(self, stream: Stream, count: int, ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.copies, self.ahead, self._patch = [copy.copy(stream) for _ in range(count)], ahead, monkeypatch
        self.states: list[dict[str, Any]] = [{}] * count

    def _as(self, worker: int) -> Stream:
        info = SimpleNamespace(id=worker, num_workers=len(self.copies), seed=77 + worker)
        self._patch.setattr(dataset, "get_worker_info", lambda: info)
        return self.copies[worker]

    def load(self, state: dict[str, Any]) -> None:
        snapshots = state["_snapshot"]["_worker_snapshots"]
        for worker in range(len(self.copies)):
            self._as(worker).load_state_dict(snapshots[f"worker_{worker}"]["dataset_state"])

    def batches(self) -> Iterator[dict[str, Any]]:
        """One pass."""
        passes = []
        for worker in range(len(self.copies)):
            passes.append(iter(self._as(worker)))
            self.states[worker] = self._as(worker).state_dict()
        ready: list[list[Any]] = [[] for _ in passes]
        first = min(range(len(passes)), key=lambda w: self.states[w]["next"])  # whose turn it is
        for j in itertools.count(first):
            worker = j % len(passes)
            for w in [worker, *range(len(passes))]:
                while len(ready[w]) <= self.ahead * (w != worker):
                    stream = self._as(w)
                    ready[w].append((next(passes[w], None), stream.state_dict()))
            batch, self.states[worker] = ready[worker].pop(0)
            self._patch.setattr(dataset, "get_worker_info", lambda: None)
            if batch is None:
                return
            yield batch

    def state_dict(self) -> dict[str, Any]:
        parts = {f"worker_{w}": {"dataset_state": copy.deepcopy(s)} for w, s in enumerate(self.states)}
        return {"_snapshot": {"_worker_snapshots": parts}, "_steps_since_snapshot": 0}


@pytest.mark.both_catalogs
@settings(parent=PROPERTY, max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 15), st.sampled_from([8, 8, 5]), st.booleans()),
        min_size=1,
        max_size=4,
    )
)
def test_any_stops_with_any_workers_lose_and_repeat_nothing(
    store: Store, epochs: list[int], parts: list[tuple[int, int, int, int, bool]]
) -> None:
    got: list[int] = []
    state: dict[str, Any] = one(store).state_dict()
    raw: tuple[int, int, dict[str, Any]] | None = None  # the loader's own state, good for the same loader only
    for workers, ahead, stop, size, folded in parts:
        with pytest.MonkeyPatch.context() as patch:
            stream = one(store, batch_size=size, prefetch=ahead)
            if workers == 0:
                stream.load_state_dict(state)
                for _, batch in zip(range(stop), itertools.chain(stream, stream), strict=False):
                    got += ids(batch)
                    state = stream.state_dict()
                    assert state == stream.state_at(batch) and len(json.dumps(state)) < 1024
                raw = None
                continue
            loader = Workers(stream, workers, ahead, patch)
            if raw is None or raw[:2] != (workers, size) or folded:
                stream.load_state_dict(state)
            else:
                loader.load(json.loads(json.dumps(raw[2])))
            before = state
            for _, batch in zip(range(stop), loader.batches(), strict=False):
                got += ids(batch)
                state = stream.state_at(batch)
                before = state_from_loader(loader.state_dict())
                assert state == before
            assert before == state
            raw = None if stop == 0 else (workers, size, loader.state_dict())
    assert got == epochs[: len(got)]


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("every", [0, 1, 2, 5])
def test_a_loaders_state_folds_into_the_state_of_its_last_batch(store: Store, workers: int, every: int) -> None:
    stream = store.stream(FEW)

    def make() -> StatefulDataLoader:
        return StatefulDataLoader(store.stream(FEW), batch_size=None, num_workers=workers, snapshot_every_n_steps=every)

    loader = make()
    batches = iter(loader)
    assert state_from_loader(loader.state_dict()) == stream.state_dict()
    for _, batch in zip(range(6), batches, strict=False):
        assert state_from_loader(json.loads(json.dumps(loader.state_dict()))) == stream.state_at(batch)
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    for _ in range(2):
        for batch in resumed:
            assert state_from_loader(resumed.state_dict()) == stream.state_at(batch)
        assert state_from_loader(resumed.state_dict()) == stream.state_at(batch)
    del batches


@pytest.mark.both_catalogs
def test_a_loaders_state_goes_on_with_other_workers_and_batches(store: Store, epochs: list[int]) -> None:
    got: list[int] = []
    stream = store.stream(FEW)
    for workers, every, size, stop in ((2, 3, 8, 4), (3, 1, 5, 7), (0, 1, 8, 2), (1, 2, 4, 3)):
        fresh = store.stream(FEW, batch_size=size)
        fresh.load_state_dict(stream.state_dict())
        loader = StatefulDataLoader(fresh, batch_size=None, num_workers=workers, snapshot_every_n_steps=every)
        got += flat(batch for _, batch in zip(range(stop), loader, strict=False))
        stream.load_state_dict(state_from_loader(loader.state_dict()))
    assert got == epochs[: len(got)] and got + flat(stream) == epochs[:ROWS]


def test_a_loaders_state_is_not_taken_for_a_streams_nor_anything_else_for_a_loaders(store: Store) -> None:
    stream = store.stream(FEW)
    for workers in (0, 2):
        loader = StatefulDataLoader(store.stream(FEW), batch_size=None, num_workers=workers)
        next(iter(loader))
        with pytest.raises(StateError, match="state_from_loader"):
            stream.load_state_dict(loader.state_dict())
    for wrong in ({}, {"dataset_state": None}, stream.state_dict(), {"_snapshot": {}}, 3):
        with pytest.raises(StateError, match="no state of a StatefulDataLoader"):
            state_from_loader(wrong)  # type: ignore[arg-type]


def worker_states(state: dict[str, Any], *following: int, **changed: Any) -> dict[str, Any]:
    parts = [{**state, "next": n, "workers": len(following), "step": 8, "steps": 13} for n in following]
    parts[0] |= changed
    snapshots = {f"worker_{i}": {"dataset_state": part} for i, part in enumerate(parts)}
    return {"_snapshot": {"_worker_snapshots": snapshots}, "_steps_since_snapshot": 0}


def test_workers_that_are_not_in_step_are_refused(store: Store) -> None:
    state = store.stream(FEW).state_dict()
    assert state_from_loader(worker_states(state, 4, 3, 5)) == {**state, "position": 24}
    assert state_from_loader(worker_states(state, 14, 13)) == {**state, "epoch": 1}
    with pytest.raises(StateError, match=r"\[3, 6\].*in_order=True"):
        state_from_loader(worker_states(state, 6, 3))
    with pytest.raises(StateError, match="different passes"):
        state_from_loader(worker_states(state, 4, 3, position=8))


# -- the cases of torchdata's own suite --------------------------------------------------------------------------------

KINDS = [
    pytest.param({"num_workers": 0}, id="in-process"),
    pytest.param({"num_workers": 2}, id="fork"),
    pytest.param({"num_workers": 3, "persistent_workers": True}, id="persistent"),
]
START = [
    pytest.param({"num_workers": 2, "multiprocessing_context": "spawn"}, id="spawn"),
    pytest.param({"num_workers": 2, "multiprocessing_context": "forkserver"}, id="forkserver"),
]


def stateful(store: Store, every: int = 1, **options: Any) -> StatefulDataLoader:
    return StatefulDataLoader(store.stream(FEW), batch_size=None, snapshot_every_n_steps=every, **options)


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("every", [1, 2, 5])
def test_the_rest_after_a_state_is_what_the_loader_itself_gave(store: Store, options: Any, every: int) -> None:
    for interrupt in (0, 1, 10):
        loader = stateful(store, every, **options)
        batches = iter(loader)
        for _ in range(interrupt):
            next(batches)
        state = loader.state_dict()
        expected = flat(batches)
        other = stateful(store, every, **options)
        other.load_state_dict(state)
        assert flat(other) == expected and len(expected) == ROWS - 8 * interrupt


@pytest.mark.parametrize("options", START)
def test_spawned_and_forkserver_workers_restore_too(store: Store, options: Any, epochs: list[int]) -> None:
    loader = stateful(store, 3, persistent_workers=True, **options)
    batches = iter(loader)
    got = flat(next(batches) for _ in range(4))
    state = loader.state_dict()
    assert got + flat(batches) == epochs[:ROWS] and flat(loader) == epochs[ROWS : 2 * ROWS]
    other = store.stream(FEW)
    other.load_state_dict(state_from_loader(state))
    rest = DataLoader(other, batch_size=None, persistent_workers=True, **options)
    assert got + flat(rest) + flat(rest) == epochs[: 2 * ROWS]
    other.set_epoch(5)
    assert flat(rest) == epochs[5 * ROWS : 6 * ROWS]


@pytest.mark.parametrize("options", KINDS)
def test_a_state_taken_before_the_first_batch_begins_the_same_loader_again(store: Store, options: Any) -> None:
    loader = stateful(store, 10, **options)
    batches = iter(loader)
    start = loader.state_dict()
    first = flat(batches)
    for _ in range(2):
        loader.load_state_dict(start)
        assert flat(loader) == first


@pytest.mark.both_catalogs
@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("every", [1, 15])
def test_one_loader_goes_back_and_forth_between_its_states(store: Store, options: Any, every: int) -> None:
    loader = stateful(store, every, **options)
    batches = iter(loader)
    start = loader.state_dict()
    got = flat(next(batches) for _ in range(4))
    middle = loader.state_dict()
    loader.load_state_dict(middle)
    got += flat(loader)
    loader.load_state_dict(start)
    assert flat(loader) == got == epoch_of(store, 0)


@pytest.mark.parametrize("options", KINDS)
def test_a_state_of_the_end_goes_on_with_the_next_epoch_also_in_a_loader_in_use(store: Store, options: Any) -> None:
    loader = stateful(store, 10, **options)
    list(loader)
    end = loader.state_dict()
    expected = flat(loader)
    other = stateful(store, 10, **options)
    batches = iter(other)
    next(batches), next(batches)
    other.load_state_dict(end)
    assert flat(other) == expected == epoch_of(store, 1)


@pytest.mark.parametrize(("every", "interrupt"), [(0, 11), (17, 19)])
def test_a_state_asked_for_again_before_every_worker_gave_a_batch(store: Store, every: int, interrupt: int) -> None:
    def make(every: int) -> StatefulDataLoader:
        stream = store.stream(FEW, batch_size=4)
        return StatefulDataLoader(
            stream, batch_size=None, num_workers=4, persistent_workers=True, snapshot_every_n_steps=every
        )

    loader = make(every)
    batches = iter(loader)
    for _ in range(interrupt):
        next(batches)
    state = loader.state_dict()
    next(batches), next(batches)
    expected = flat(batches)
    loader.load_state_dict(state)
    again = iter(loader)
    next(again), next(again)
    other = make(1)
    other.load_state_dict(loader.state_dict())
    assert flat(other) == expected
    del again


@pytest.mark.parametrize("options", KINDS)
def test_a_loaders_state_is_json_also_in_its_second_epoch(store: Store, options: Any) -> None:
    loader = stateful(store, **options)
    list(loader)
    batches = iter(loader)
    for _ in range(4):
        next(batches)
    text = json.dumps(loader.state_dict())
    other = stateful(store, **options)
    other.load_state_dict(json.loads(text))
    assert flat(other) == flat(batches) == epoch_of(store, 1)[32:]


@pytest.mark.both_catalogs
def test_the_streams_state_is_stored_once_per_worker(store: Store) -> None:
    for workers in (0, 2):
        loader = stateful(store, num_workers=workers)
        batches = iter(loader)
        for _ in range(workers + 1):
            next(batches)
        state = loader.state_dict()
        parts = state["_snapshot"]["_worker_snapshots"].values() if workers else [state]
        for part in parts:
            assert part["dataset_state"]["epoch"] == 0 and part["fetcher_state"]["dataset_iter_state"] is None
        del batches


def test_two_loaders_at_once_do_not_disturb_each_other(store: Store) -> None:
    one_by_one = zip(stateful(store, num_workers=2), DataLoader(store.stream(FEW), None, num_workers=2), strict=True)
    both = [(ids(a), ids(b)) for a, b in one_by_one]
    assert [i for a, _ in both for i in a] == [i for _, b in both for i in b] == epoch_of(store, 0)


# -- clock and copies --------------------------------------------------------------------------------------------------


def test_loaders_of_other_widths_with_one_seed_read_passes_of_their_own(
    store: Store, epochs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = one(store)
    two, three = Workers(stream, 2, 0, monkeypatch), Workers(stream, 3, 0, monkeypatch)
    first, second = two.batches(), three.batches()
    got = flat(next(first) for _ in range(3))
    assert flat(second) == epochs[ROWS : 2 * ROWS]
    assert got + flat(first) == epochs[:ROWS]


@pytest.mark.both_catalogs
def test_the_next_epoch_is_known_under_every_loader(store: Store) -> None:
    stream = one(store)
    assert stream.epoch == 0
    next(iter(stream))
    assert stream.epoch == 1
    stream.load_state_dict(stream.state_dict())
    assert stream.epoch == 0
    for _ in DataLoader(stream, batch_size=None, num_workers=2):
        pass
    assert stream.epoch == 1
    seen = []
    while stream.epoch < 4:
        seen.append(stream.epoch)
        list(stream)
    assert seen == [1, 2, 3]


def test_a_changed_copy_begins_at_its_own_start(store: Store) -> None:
    stream = one(store)
    next(iter(stream))
    other = stream._with(prefetch=3)
    assert (other.epoch, stream.epoch) == (0, 1) and flat(other) == epoch_of(store, 0)
    assert stream.state_dict()["position"] == 8


# -- states of something else ------------------------------------------------------------------------------------------


@pytest.mark.both_catalogs
def test_every_difference_is_named_with_what_was_and_what_is(store: Store) -> None:
    state = one(store).state_dict()
    other = build_stream(store.where, store.rowset(ONE, store.records[:50]), batch_size=8, shuffle=True, seed=4)
    with pytest.raises(StateError) as caught:
        other.load_state_dict(state)
    message = str(caught.value)
    for said in ("the seed was 0 and is 4", "the number of rows was 103 and is 50", "query", "digest", "strict=False"):
        assert said in message


@pytest.mark.both_catalogs
def test_not_strict_goes_on_at_the_same_place_with_a_warning(store: Store) -> None:
    before = one(store)
    next(iter(before))
    state = before.state_dict()
    other = one(store, seed=4)
    with pytest.warns(UserWarning, match="the seed was 0 and is 4"):
        other.load_state_dict(state, strict=False)
    assert flat(other) == epoch_of(store, 0, seed=4)[8:]
    few = build_stream(store.where, store.rowset(ONE, store.records[:5]), batch_size=8, shuffle=True)
    with pytest.warns(UserWarning, match="rows"):
        few.load_state_dict(state, strict=False)
    assert few.epoch == 1  # none of the five is left of epoch 0


@pytest.mark.both_catalogs
def test_a_state_says_everything_in_less_than_a_kilobyte(store: Store) -> None:
    stream = store.stream(commit="3f" * 16, query="SELECT " + "x" * 10_000, seed=(1 << 63) - 1)
    stream.set_epoch(1 << 40)
    state = stream.state_dict()
    assert len(json.dumps(state)) < 1024 and json.loads(json.dumps(state)) == state
    assert {type(value) for value in state.values()} <= {int, str, bool, float}


@pytest.mark.both_catalogs
def test_the_states_of_several_sources_fold_into_one_of_the_same_size(store: Store) -> None:
    few = store.rowset(ONE, store.records[:50])
    many, other = one(store, query="SELECT 1", commit=4), build_stream(store.where, few, batch_size=8, query="SELECT 2")
    pairs = [many._with(sources=(*a._sources, *b._sources)) for a, b in ((many, other), (other, many))]
    states = [stream.state_dict() for stream in (many, *pairs)]
    assert [state["rows"] for state in states] == [ROWS, ROWS + 50, ROWS + 50]
    for key in ("query", "digest", "commit"):
        assert len({state[key] for state in states}) == 3
    assert all(state.keys() == states[0].keys() and len(json.dumps(state)) < 1024 for state in states)


@pytest.mark.both_catalogs
def test_torchs_distributed_checkpoint_takes_the_stream_itself(store: Store, tmp_path: Path) -> None:
    checkpoint = pytest.importorskip("torch.distributed.checkpoint")
    stream, other = one(store), one(store)
    for _ in zip(range(3), stream, strict=False):
        pass
    checkpoint.save({"stream": stream}, checkpoint_id=tmp_path, no_dist=True)
    checkpoint.load({"stream": other}, checkpoint_id=tmp_path, no_dist=True)
    assert other.state_dict() == stream.state_dict() and flat(other) == epoch_of(store, 0)[24:]


# -- every schedule ----------------------------------------------------------------------------------------------------

MADE = {
    "limit": lambda store: one(store).limit(50),
    "weight": lambda store: one(store, weight="id"),
    "bucket": lambda store: store.stream(["id", "flag"], num_threads=1, bucket_by="flag"),
    "mix": lambda store: mix({one(store): 3, one(store, seed=5): 1}, seed=2),
    "single": lambda store: mix({one(store): 3, one(store, seed=5, batch_size=4): 1}, seed=2, batches="single"),
    "ranks": lambda store: one(store, rank=1, world_size=3),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
@pytest.mark.parametrize("workers", [2, 3])
def test_every_schedule_goes_on_from_its_workers_states(
    store: Store, make: Any, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make(store)
    batches = [(ids(batch), plain.state_at(batch)) for _ in range(3) for batch in plain]
    done, state = 0, None
    for stop in (3, 2, 5):
        stream = make(store)
        loader = Workers(stream, workers, 1, monkeypatch)
        if state is not None:
            loader.load(json.loads(json.dumps(state)))
        for _, batch in zip(range(stop), loader.batches(), strict=False):
            assert (ids(batch), stream.state_at(batch)) == batches[done]
            done, state = done + 1, loader.state_dict()
            assert state_from_loader(state) == stream.state_at(batch)
    assert state is not None
    stream = make(store)
    stream.load_state_dict(state_from_loader(state))
    rest = [(ids(batch), stream.state_at(batch)) for _ in range(2) for batch in stream]
    assert rest == batches[done : done + len(rest)] and len(rest) > len(stream)
