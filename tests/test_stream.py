"""Streams over a store of known content: every row once, exact states under every loader, nothing left behind."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import moving_frames
from stream_store import FEW, NAMES, ROWS, Store, epoch_of, flat, ids, latent, picture, vector
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from deeplake_loader import kernels
from deeplake_loader.codecs import encode
from deeplake_loader.decode import cpu
from deeplake_loader.decode.transforms import Image, Tensor, Video
from deeplake_loader.errors import CorruptionError, DecodeError, InputError, StateError, TypeMismatchError
from deeplake_loader.rows import RowSet
from deeplake_loader.shards import Member
from deeplake_loader.stream import Stream, build_stream
from deeplake_loader.stream.clock import Clock
from deeplake_loader.types import ColumnType

OWN_FILES = 20  # shards that the test's own store holds open


pytestmark = [
    pytest.mark.both_catalogs,
    pytest.mark.filterwarnings(
        "ignore:.*fork.*:DeprecationWarning", "ignore:Length of IterableDataset", "ignore:.*set_vital"
    ),
]


@pytest.fixture
def store(catalog_kind: str, shared: Callable[..., Any]) -> Store:
    made: Store = shared(catalog_kind, Store.at)
    return made


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    files = open_files()
    yield
    gc.collect()
    assert [t.name for t in threading.enumerate() if t.name.startswith("deeplake")] == []
    assert open_files() <= files + OWN_FILES


def open_files() -> int:
    return sum("shards" in os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd"))


def test_a_batch_holds_the_rows_that_were_inserted(store: Store) -> None:
    seen = []
    for batch in store.stream():
        for place, i in enumerate(ids(batch)):
            assert np.array_equal(batch["photo"][place].numpy().transpose(1, 2, 0), picture(i))
            assert np.array_equal(batch["latent"][place].numpy(), latent(i))
            assert np.array_equal(batch["embedding"][place].numpy(), vector(i))
            assert batch["prompt"][place] == f"prompt {i}" and bool(batch["flag"][place]) == (i % 2 == 0)
            assert batch["score"][place] == i / 2
        assert batch["photo"].dtype == torch.uint8 and batch["score"].dtype == torch.float32
        assert batch["latent"].dtype == torch.float16 and batch["flag"].dtype == torch.bool
        seen += ids(batch)
    assert sorted(seen) == list(range(ROWS))


def test_every_pass_is_the_next_epoch_and_another_order(store: Store) -> None:
    stream = store.stream(FEW)
    passes = [flat(stream) for _ in range(3)]
    assert all(sorted(p) == list(range(ROWS)) for p in passes)
    assert passes[0] != passes[1] != passes[2]
    assert passes == [epoch_of(store, e) for e in range(3)]
    assert passes[0] != epoch_of(store, 0, seed=1)
    assert len(stream) == 13


def test_threads_and_prefetch_do_not_change_what_comes(store: Store) -> None:
    expected = epoch_of(store, 0)
    for threads, prefetch in ((1, 0), (4, 1), (2, 20)):
        assert epoch_of(store, 0, num_threads=threads, prefetch=prefetch) == expected


def test_an_unshuffled_stream_keeps_the_order_that_was_asked_for(store: Store) -> None:
    backwards = store.rowset(records=store.records[::-1])
    asked = build_stream(store.where, backwards, batch_size=10)
    assert flat(asked) == list(range(ROWS))[::-1]
    stored = build_stream(store.where, backwards, batch_size=10, ordered=False)
    assert flat(stored) == list(range(ROWS))


def test_rows_in_another_order_give_the_same_shuffled_epoch(store: Store) -> None:
    mixed = store.records[:]
    random.Random(0).shuffle(mixed)
    streams = [
        build_stream(store.where, store.rowset(records=r), batch_size=8, shuffle=True) for r in (mixed, store.records)
    ]
    assert flat(streams[0]) == flat(streams[1])
    assert streams[0].state_dict() == streams[1].state_dict()


# -- batches -----------------------------------------------------------------------------------------------------------


def test_sizes_that_differ_give_a_list_and_a_size_gives_a_tensor(tmp_path: Path) -> None:
    store = Store(tmp_path, 20, ragged=True)
    batch = next(iter(store.stream(["photo", "id"], shuffle=False)))
    assert [tuple(t.shape) for t in batch["photo"]] == [(3, 6 + i % 3, 8) for i in ids(batch)]
    assert all(
        np.array_equal(t.numpy().transpose(1, 2, 0), picture(i, 6 + i % 3)) for i, t in enumerate(batch["photo"])
    )
    batch = next(iter(store.stream(["photo", "id"], transforms={"photo": Image(size=(4, 5))})))
    assert batch["photo"].shape == (8, 3, 4, 5)


def test_nulls_make_lists_everywhere_in_the_stream(store: Store) -> None:
    records = [list(r) for r in store.records[:20]]
    records[13][:7] = [None] * 3 + [13] + [None] * 3
    rows = store.rowset(records=[tuple(r) for r in records])
    first, second, third = build_stream(store.where, rows, batch_size=8)
    for batch in (first, second, third):
        for name in ("photo", "latent", "embedding", "flag", "score", "prompt"):
            assert isinstance(batch[name], list), name
            assert [v is None for v in batch[name]] == [i == 13 for i in ids(batch)]
    assert np.array_equal(second["embedding"][4].numpy(), vector(12))
    assert np.array_equal(third["photo"][1].numpy().transpose(1, 2, 0), picture(17))


def test_a_kept_batch_never_changes(store: Store) -> None:
    stream = store.stream(prefetch=1)
    kept = [(batch, pickle.dumps(batch)) for batch in stream]
    list(stream)
    assert all(pickle.dumps(batch) == before for batch, before in kept)
    pointers = [batch["photo"].data_ptr() for batch, _ in kept]
    assert len(set(pointers)) == len(pointers)


def test_augmentation_depends_on_row_and_epoch_and_not_on_batches(store: Store) -> None:
    transform = {"photo": Image(size=4, crop="random_resized", flip=0.5), "latent": Tensor("float32")}

    def pictures(epoch: int, **options: Any) -> dict[int, bytes]:
        stream = store.stream(["photo", "latent", "id"], transforms=transform, **options)
        stream.set_epoch(epoch)
        return {i: p.numpy().tobytes() for b in stream for i, p in zip(ids(b), b["photo"], strict=True)}

    assert pictures(1) == pictures(1, batch_size=5, num_threads=1)
    assert pictures(1) != pictures(2)
    assert pictures(1) != pictures(1, seed=9)


def test_video_tensors_of_any_type_and_large_blobs_stream_too(tmp_path: Path) -> None:
    store = Store(tmp_path, 0)
    kinds = [ColumnType.parse(t) for t in ("VIDEO", "TENSOR(bfloat16, 2)", "BLOB")]
    halves = [torch.tensor([i, -i], dtype=torch.bfloat16) for i in range(3)]
    large = [os.urandom((5 << 20) + i) for i in range(3)]
    clips = [encode(kinds[0], moving_frames(9, 48, 64, seed=i), where="test") for i in range(3)]
    rows = [[c, encode(kinds[1], h, where="t"), encode(kinds[2], b, where="t")]
            for c, h, b in zip(clips, halves, large, strict=True)]  # fmt: skip
    with store.catalog.transaction():
        members = [[Member("cth"[j], e.data, e.extension, e.info.to_json()) for j, e in enumerate(r)] for r in rows]
        staged = store.shards.stage("t", members)
        store.shards.write(staged, [{}] * 3)
    records = [(*a, i, i) for i, a in enumerate(staged.addresses)]
    rowset = RowSet(["clip", "half", "large", "id", "_dl_key_0"], [*kinds, None, None], records)
    transform = Video(num_frames=4, size=(24, 32))
    (batch,) = build_stream(store.where, rowset, batch_size=3, transforms={"clip": transform})
    assert batch["clip"].shape == (3, 4, 3, 24, 32)
    for got, clip in zip(batch["clip"], clips, strict=True):
        assert np.array_equal(got.numpy(), cpu.decode(clip.data, clip.info, transform))
    assert torch.equal(batch["half"], torch.stack(halves)) and batch["half"].dtype == torch.bfloat16
    assert batch["large"] == large


def test_a_stream_of_scalars_alone_needs_no_addresses(store: Store) -> None:
    assert sorted(flat(store.stream(["id"]))) == list(range(ROWS))


def test_an_empty_set_gives_no_batches(store: Store) -> None:
    stream = build_stream(store.where, store.rowset(records=[]), batch_size=4, shuffle=True)
    assert len(stream) == 0 and list(stream) == []
    stream.load_state_dict(stream.state_dict())
    assert list(stream) == []


@pytest.mark.parametrize(
    ("names", "options", "error", "said"),
    [
        (["id", "id"], {}, InputError, "2 columns named 'id'"),
        (["id"], {"transforms": {"nothing": Image()}}, InputError, "'nothing', but the query's columns are id"),
        (["id"], {"transforms": {"id": Image()}}, TypeMismatchError, "SQL values"),
        (["photo"], {"transforms": {"photo": Video()}}, TypeMismatchError, "photo.*image items take"),
        (["embedding"], {"transforms": {"embedding": Tensor()}}, TypeMismatchError, "VECTOR"),
        (["id"], {"batch_size": 0}, InputError, "batch_size"),
        (["id"], {"prefetch": -1}, InputError, "prefetch"),
        (["id"], {"num_threads": 0}, InputError, "num_threads"),
        (["id"], {"on_error": "ignore"}, InputError, "raise, skip, replace"),
        (["id"], {"seed": "x"}, InputError, "seed"),
        (["id"], {"device": "tpu9"}, InputError, "tpu9"),
        (["id"], {"device": "meta"}, InputError, "'cpu' or 'cuda"),
        (["id"], {"tail": "drop", "batch_size": 999}, InputError, "leave nothing"),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(
    store: Store, names: list[str], options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        store.stream(names, **options)


# -- state -------------------------------------------------------------------------------------------------------------


def test_a_state_taken_anywhere_goes_on_exactly_there(store: Store) -> None:
    full, rng = [epoch_of(store, e) for e in range(4)], random.Random(1)
    for _ in range(12):
        got: list[int] = []
        state = None
        for _ in range(4):
            stream = store.stream(FEW, num_threads=rng.choice([1, 3]), prefetch=rng.randrange(4))
            if state is not None:
                stream.load_state_dict(json.loads(json.dumps(state)))
            for _ in range(rng.choice([1, 1, 2])):
                for batch, _ in zip(stream, range(rng.randrange(1, 9)), strict=False):
                    got += ids(batch)
                    state = stream.state_dict()
                    assert state == stream.state_at(batch)
                stream.load_state_dict(state)
            assert len(json.dumps(state)) < 1024
        assert got == [i for epoch in full for i in epoch][: len(got)]


def test_a_state_goes_on_with_other_ranks_and_batch_sizes(store: Store) -> None:
    rng = random.Random(2)
    for _ in range(6):
        got: list[int] = []
        state: dict[str, Any] | None = None
        while state is None or state["epoch"] == 0:
            world, size = rng.choice([1, 2, 4]), rng.choice([4, 16])
            streams = [store.stream(FEW, rank=r, world_size=world, batch_size=size) for r in range(world)]
            if state is not None:
                for stream in streams:
                    stream.load_state_dict(state)
            passes = [iter(s) for s in streams]
            for _ in range(rng.randrange(1, 4)):
                batches = [next(p, None) for p in passes]
                if batches[0] is None:
                    break
                for batch in batches:
                    assert batch is not None
                    valid = batch.get("valid", torch.ones(len(batch["id"]), dtype=torch.bool))
                    got += batch["id"][valid].tolist()
                states = [s.state_dict() for s in streams]
                assert all(s == states[0] for s in states)
                state = states[0]
                if state["epoch"] == 1:
                    break
        assert sorted(got) == list(range(ROWS))


def test_iterating_after_a_break_is_the_next_epoch_and_a_state_says_where_it_stood(store: Store) -> None:
    stream = store.stream(FEW)
    start = stream.state_dict()
    assert (start["epoch"], start["position"]) == (0, 0)
    batches = iter(stream)
    assert stream.state_dict() == start  # nothing was delivered yet
    next(batches)
    assert stream.state_dict()["position"] == 8
    del batches
    state = stream.state_dict()
    assert flat(stream) == epoch_of(store, 1)
    stream.load_state_dict(state)
    assert flat(stream) == epoch_of(store, 0)[8:]
    assert flat(stream) == epoch_of(store, 1)


def test_an_iterator_that_gave_nothing_takes_no_epoch(store: Store) -> None:
    stream = store.stream(FEW)
    iter(stream)
    iter(stream)
    assert flat(stream) == epoch_of(store, 0)


def test_set_epoch_keeps_the_position_of_a_loaded_state(store: Store) -> None:
    first = store.stream(FEW)
    first.set_epoch(3)
    next(iter(first))
    second = store.stream(FEW)
    second.load_state_dict(first.state_dict())
    second.set_epoch(3)
    assert flat(second) == epoch_of(store, 3)[8:]
    second.set_epoch(3)
    assert flat(second) == epoch_of(store, 3)


def test_a_state_of_something_else_is_refused(store: Store) -> None:
    state = store.stream(FEW).state_dict()
    others: list[tuple[Stream, str]] = [
        (store.stream(FEW, seed=1), "the seed"),
        (store.stream(FEW, shuffle=False), "shuffle"),
        (store.stream(FEW, lanes=8), "lanes"),
        (store.stream(FEW, query="SELECT 2"), "query"),
        (build_stream(store.where, store.rowset(FEW, store.records[1:]), batch_size=8, shuffle=True, query="SELECT"),
         "rows"),
        (build_stream(store.where, store.rowset(FEW, [*store.records[1:], store.records[5]]), batch_size=8,
                shuffle=True, query="SELECT"), "digest"),
    ]  # fmt: skip
    for stream, said in others:
        with pytest.raises(StateError, match=said):
            stream.load_state_dict(state)
    stream = store.stream(FEW, commit=5)
    stream.load_state_dict(state)  # another commit with the same rows is the same stream
    for broken in ({}, {**state, "order_version": 2}, {**state, "position": ROWS + 1}, {**state, "epoch": -1}):
        with pytest.raises(StateError):
            stream.load_state_dict(broken)
    with pytest.raises(StateError, match="_cursor"):
        stream.state_at({"id": 1})


# -- ends of a pass ----------------------------------------------------------------------------------------------------


def test_close_break_and_exceptions_end_the_threads(store: Store) -> None:
    def alive() -> int:
        return sum(t.name.startswith("deeplake") for t in threading.enumerate())

    stream = store.stream(FEW)
    for _ in stream:
        assert alive() == 4  # two that read, two that decode
        break
    assert alive() == 0
    with pytest.raises(ZeroDivisionError):
        for _ in stream:
            _ = 1 / 0
    assert alive() == 0
    with iter(stream) as batches:
        next(batches)
    assert alive() == 0 and next(batches, None) is None
    batches.close()
    list(stream)
    assert alive() == 0


def test_a_newer_pass_ends_the_older_one(store: Store) -> None:
    stream = store.stream(FEW)
    older, newer = iter(stream), iter(stream)
    next(older)
    next(newer)
    with pytest.raises(InputError, match="newer"):
        next(older)
    assert len(flat(newer)) == ROWS - 8
    list(stream)
    assert next(newer, None) is None  # it was through already


def run(code: str, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(here), str(here.parent)])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.mark.sqlite_only("the program is told the folder")
def test_the_interpreter_exits_while_batches_wait(store: Store) -> None:
    rows = pickle.dumps(store.rowset()).hex()
    code = """
        import pickle, sys
        from deeplake_loader.stream import build_stream
        stream = build_stream(sys.argv[1], pickle.loads(bytes.fromhex(sys.argv[2])), batch_size=4, prefetch=8)
        batches = iter(stream)
        print(len(next(batches)["id"]))
    """
    done = run(code, store.root, rows)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_reads_for_itself_and_leaves_the_parents_pass_alone(store: Store) -> None:
    stream = store.stream(FEW)
    batches = iter(stream)
    got = ids(next(batches))
    ours, theirs = multiprocessing.Pipe()
    pid = os.fork()
    if pid == 0:
        try:
            try:
                next(batches)
                answer: object = "the parent's iterator worked"
            except InputError:
                answer = flat(stream)
            theirs.send(answer)
        finally:
            os._exit(0)
    assert ours.poll(300)
    assert ours.recv() == epoch_of(store, 1)
    os.waitpid(pid, 0)
    assert got + flat(batches) == epoch_of(store, 0)
    ours.close(), theirs.close()


def test_an_error_is_raised_in_its_turn_and_ends_the_pass(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from deeplake_loader.stream import loading

    real = loading.Loader.read

    def failing(self: Any, step: Any) -> Any:
        if 50 in step.rows:
            raise ValueError("a bug")
        return real(self, step)

    monkeypatch.setattr(loading.Loader, "read", failing)
    stream = store.stream(FEW, shuffle=False, prefetch=5)
    batches = iter(stream)
    for _ in range(6):
        next(batches)
    with pytest.raises(ValueError, match="a bug"):
        next(batches)
    assert next(batches, None) is None
    assert stream.state_dict()["position"] == 48


# -- DataLoader --------------------------------------------------------------------------------------------------------

LOADERS = [
    pytest.param({"num_workers": 0}, id="in-process"),
    pytest.param({"num_workers": 2}, id="fork"),
    pytest.param({"num_workers": 2, "persistent_workers": True}, id="persistent"),
    pytest.param(
        {"num_workers": 2, "multiprocessing_context": "spawn", "persistent_workers": True}, id="spawn-persistent"
    ),
    pytest.param({"num_workers": 1, "multiprocessing_context": "forkserver"}, id="forkserver", marks=pytest.mark.slow),
]


@pytest.mark.sqlite_only("spawned processes cost seconds, and PostgreSQL's are tested with its searches")
@pytest.mark.parametrize("options", LOADERS)
def test_dataloader_gives_whole_epochs_in_order(store: Store, options: dict[str, Any]) -> None:
    stream = store.stream(FEW)
    loader = DataLoader(stream, batch_size=None, **options)
    assert len(loader) == 13
    assert [flat(loader) for _ in range(2)] == [epoch_of(store, e) for e in range(2)]
    stream.set_epoch(6)
    assert flat(loader) == epoch_of(store, 6)
    assert flat(loader) == epoch_of(store, 7)


def test_a_loader_that_is_left_early_does_not_repeat_or_lose_epochs(store: Store) -> None:
    stream = store.stream(FEW)
    loader = DataLoader(stream, batch_size=None, num_workers=2)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    again = iter(loader)  # the first pass is still held
    assert flat(again) == epoch_of(store, 1)
    del batches


def test_a_reseeded_program_still_gets_new_epochs(store: Store) -> None:
    loader = DataLoader(store.stream(FEW), batch_size=None, num_workers=2)
    passes = []
    for _ in range(2):
        torch.manual_seed(0)  # the loader draws the same base seed again
        passes.append(flat(loader))
    assert passes == [epoch_of(store, 0), epoch_of(store, 1)]


def test_workers_decode_media_like_the_process_itself(store: Store) -> None:
    loader = DataLoader(store.stream(), batch_size=None, num_workers=2)
    for batch in loader:
        for place, i in enumerate(ids(batch)):
            assert np.array_equal(batch["photo"][place].numpy().transpose(1, 2, 0), picture(i))


def test_a_plain_loader_with_workers_has_no_state_and_says_what_has(store: Store) -> None:
    stream = store.stream(FEW)
    batches = iter(DataLoader(stream, batch_size=None, num_workers=2, prefetch_factor=4))
    got = [next(batches) for _ in range(7)]
    with pytest.raises(StateError, match=r"state_at.*StatefulDataLoader"):
        stream.state_dict()
    other = store.stream(FEW)
    other.load_state_dict(stream.state_at(got[-1]))
    rest = DataLoader(other, batch_size=None, num_workers=1)
    assert flat(got) + flat(rest) == epoch_of(store, 0)
    del batches


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("every", [1, 3])
def test_stateful_dataloader_stops_and_goes_on_anywhere(store: Store, workers: int, every: int) -> None:
    full = [i for e in range(3) for i in epoch_of(store, e)]
    rng = random.Random(workers + every)
    for _ in range(2):
        got: list[int] = []
        state = None
        for _ in range(3):
            loader = StatefulDataLoader(
                store.stream(FEW), batch_size=None, num_workers=workers, snapshot_every_n_steps=every
            )
            if state is not None:
                loader.load_state_dict(state)
            batches = iter(loader)
            for _ in range(rng.randrange(1, 5)):
                got += ids(next(batches))
            state = loader.state_dict()
            del batches
        loader = StatefulDataLoader(
            store.stream(FEW), batch_size=None, num_workers=workers, snapshot_every_n_steps=every
        )
        loader.load_state_dict(state)
        got += flat(loader)  # the rest of epoch 0
        got += flat(loader)  # and the next one is epoch 1
        assert got == full[: 2 * ROWS]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_finished_with_an_epoch_goes_on_with_the_next(store: Store, workers: int) -> None:
    loader = StatefulDataLoader(store.stream(FEW), batch_size=None, num_workers=workers)
    assert flat(loader) == epoch_of(store, 0)
    state = loader.state_dict()
    other = StatefulDataLoader(store.stream(FEW), batch_size=None, num_workers=workers)
    other.load_state_dict(state)
    assert flat(other) == epoch_of(store, 1)


def test_persistent_workers_of_a_stateful_loader_go_through_the_epochs(store: Store) -> None:
    def make() -> StatefulDataLoader:
        return StatefulDataLoader(store.stream(FEW), batch_size=None, num_workers=2, persistent_workers=True)

    loader = make()
    assert [flat(loader), flat(loader)] == [epoch_of(store, 0), epoch_of(store, 1)]
    batches = iter(loader)
    got = flat(next(batches) for _ in range(5))
    other = make()
    other.load_state_dict(loader.state_dict())
    assert got + flat(other) == epoch_of(store, 2)
    assert flat(other) == epoch_of(store, 3)


@pytest.fixture
def as_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process takes itself for the only worker of a DataLoader, whose own error path costs 5 s."""
    from deeplake_loader.stream import dataset

    monkeypatch.setattr(dataset, "get_worker_info", lambda: SimpleNamespace(id=0, num_workers=1, seed=5))


def test_a_workers_state_is_refused_where_its_steps_would_mean_other_rows(store: Store, as_worker: None) -> None:
    stream = store.stream(FEW)
    next(iter(stream))
    state = stream.state_dict()
    with pytest.raises(StateError, match="step was 8 and is 4"):
        store.stream(FEW, batch_size=4).load_state_dict(state)
    with pytest.raises(StateError, match=r"workers was 2 and is 1.*state_from_loader"):
        store.stream(FEW).load_state_dict({**state, "workers": 2})


def test_a_workers_state_is_no_state_of_the_main_process(store: Store) -> None:
    stream = store.stream(FEW)
    with pytest.raises(StateError, match="StatefulDataLoader"):
        stream.load_state_dict({**stream.state_dict(), "next": 0})


def test_cuda_in_a_worker_is_refused_at_once(store: Store, as_worker: None) -> None:
    with pytest.raises(InputError, match="device='cpu'"):
        iter(store.stream(FEW, device="cuda"))


def test_a_stream_pickles_small_and_its_copy_stands_alone(store: Store) -> None:
    stream = store.stream(FEW)
    next(iter(stream))
    copy = pickle.loads(pickle.dumps(stream))
    assert flat(copy) == epoch_of(store, 1) == flat(stream)
    assert len(pickle.dumps(stream)) < 64 * ROWS + 4096


# -- bad samples -------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Store, str, int]:
    """A store in which the bytes of row 5's photo were changed behind its back; its key and row."""
    store = Store(tmp_path, 30)
    place = store.shards.locate(store.records[5][0])
    path = Path(store.root) / place.url
    data = bytearray(path.read_bytes())
    data[place.offset + place.length // 2] ^= 0xFF
    path.write_bytes(data)
    return store, place.key, 5


@pytest.fixture
def undecodable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, str, int]:
    """A store whose row 5 has intact bytes that no decoder takes."""
    from deeplake_loader.decode import cpu

    store = Store(tmp_path, 30)
    bad = store.shards.read(store.records[5][0])
    for name in ("decode", "decode_into"):
        real = getattr(cpu, name)

        def fails(data: Any, *rest: Any, _real: Any = real, **named: Any) -> Any:
            if bytes(data) == bad:
                raise DecodeError("this image cannot be decoded: no")
            return _real(data, *rest, **named)

        monkeypatch.setattr(cpu, name, fails)
    return store, store.shards.locate(store.records[5][0]).key, 5


@pytest.mark.parametrize("kind", ["damaged", "undecodable"])
def test_a_bad_sample_raises_is_skipped_or_replaced(kind: str, request: pytest.FixtureRequest) -> None:
    store, key, row = request.getfixturevalue(kind)
    options: dict[str, Any] = {"names": ["photo", "id"], "shuffle": False, "batch_size": 10}
    with pytest.raises((CorruptionError, DecodeError), match=key):
        list(store.stream(**options))
    first, *others = store.stream(on_error="skip", **options)
    assert ids(first) == [i for i in range(10) if i != row] and first["photo"].shape[0] == 9
    assert first["_bad"] == [key] and [b["_bad"] for b in others] == [[], []]
    first, *others = store.stream(on_error="replace", **options)
    assert ids(first) == [6 if i == row else i for i in range(10)]
    assert first["valid"].tolist() == [i != row for i in range(10)] and all(b["valid"].all() for b in others)
    assert np.array_equal(first["photo"][row].numpy().transpose(1, 2, 0), picture(6))
    assert first["_bad"] == [key]


def test_skipping_moves_no_position(undecodable: tuple[Store, str, int]) -> None:
    store, _, row = undecodable
    stream = store.stream(["photo", "id"], on_error="skip")
    batches = iter(stream)
    got = ids(next(batches))
    other = store.stream(["photo", "id"], on_error="skip")
    other.load_state_dict(stream.state_dict())
    assert sorted(got + flat(other)) == [i for i in range(30) if i != row]


def test_a_batch_of_nothing_but_bad_samples_repeats_the_next_good_row(undecodable: tuple[Store, str, int]) -> None:
    store, key, row = undecodable
    options: dict[str, Any] = {"names": ["photo", "id"], "shuffle": False, "batch_size": 1}
    for policy in ("skip", "replace"):
        batches = list(store.stream(on_error=policy, **options))
        assert len(batches) == 30
        assert ids(batches[row]) == [row + 1] and batches[row]["valid"].tolist() == [False]
        assert batches[row]["_bad"] == [key]
        assert np.array_equal(batches[row]["photo"][0].numpy().transpose(1, 2, 0), picture(row + 1))


def test_a_typed_error_crosses_the_worker(undecodable: tuple[Store, str, int]) -> None:
    store, key, _ = undecodable
    loader = DataLoader(store.stream(["photo", "id"]), batch_size=None, num_workers=1)
    with pytest.raises(DecodeError, match=key):
        list(loader)


# -- reader ------------------------------------------------------------------------------------------------------------


def test_resting_blobs_are_read_and_found_again_once_they_have_moved(tmp_path: Path) -> None:
    store = Store(tmp_path, 90)
    stream = store.stream(["photo", "id"])
    batches = iter(stream)
    got = ids(next(batches))
    with store.catalog.transaction():
        store.shards.seal()
    for batch in batches:
        got += ids(batch)
        assert np.array_equal(batch["photo"][0].numpy().transpose(1, 2, 0), picture(ids(batch)[0]))
    assert sorted(got) == list(range(90)) == sorted(flat(stream))


def test_a_truncated_shard_is_an_error_that_names_it(tmp_path: Path) -> None:
    store = Store(tmp_path, 30)
    place = store.shards.locate(store.records[29][0])
    os.truncate(Path(store.root) / place.url, place.offset + 3)
    with pytest.raises(CorruptionError, match=os.path.basename(place.url)):
        list(store.stream(["photo", "id"]))


def test_many_shards_are_read_with_few_open_files(store: Store) -> None:
    from deeplake_loader.reader import Reader

    reader = Reader(store.where, max_files=1)
    try:
        addresses = np.array([r[0] for r in store.records], np.int64)
        extents = reader.resolve(addresses)
        assert len(extents.paths) > 2
        expected = [kernels.crc32c(store.shards.read(int(a))) for a in addresses]
        before = open_files()
        for _ in range(3):
            (items,) = reader.read([(extents, np.arange(ROWS))])
            assert items.errors == {} and open_files() <= before + 1
            assert [kernels.crc32c(items[i]) for i in range(ROWS)] == expected
    finally:
        reader.close()


# -- clock -------------------------------------------------------------------------------------------------------------


def test_workers_of_one_pass_agree_and_a_late_one_finds_its_own() -> None:
    clock = Clock()
    assert clock.join(7, 0) == (0, 0)
    assert clock.join(8, 0) == (1, 0)  # a newer loader
    assert clock.join(7, 1) == (0, 0)  # the older one's second worker comes late
    assert clock.join(8, 1) == (1, 0)
    assert clock.join(7, 1) == (2, 0)  # the same token again is a new pass
    assert clock.by_workers and clock.peek() == (3, 0)
    assert clock.join(9, 0, start=(5, 40)) == (5, 40) == clock.join(9, 1, start=(5, 40))
    assert clock.peek() == (6, 0)


def test_every_column_of_the_test_store_was_streamed(store: Store) -> None:
    assert set(next(iter(store.stream()))) == {*NAMES, "_rows", "_keys", "_cursor"}


# -- device ------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_on_the_device_equal_those_on_the_host(store: Store) -> None:
    for host, device in zip(store.stream(), store.stream(device="cuda"), strict=True):
        assert device["photo"].is_cuda and not device["_rows"].is_cuda
        for name in ("photo", "latent", "embedding", "id", "flag", "score"):
            assert torch.equal(host[name], device[name].cpu())
        assert host["prompt"] == device["prompt"]


def test_a_device_that_is_not_there_is_named(store: Store) -> None:
    with pytest.raises(InputError, match="cuda:99"):
        next(iter(store.stream(FEW, device="cuda:99")))


class FakeCuda:
    """What `Mover` asks of torch.cuda, writing down the order of events; its device is the host."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.finished = False

    def Stream(self, device: object) -> str:
        return "copy"

    def current_stream(self, device: object) -> Any:
        log = self.log
        return type("Current", (), {"wait_event": lambda self, event: log.append("consumer waits")})()

    def set_device(self, device: object) -> None:
        self.log.append(f"device {device}")

    def device(self, device: object) -> Any:
        return nullcontext()

    def stream(self, stream: str) -> Any:
        self.log.append(f"on {stream}")
        return nullcontext()

    def Event(self) -> Any:
        log = self.log
        calls = {
            "record": lambda self, stream: log.append(f"event on {stream}"),
            "query": lambda self_: self.finished,
            "synchronize": lambda self: log.append("host waits"),
        }
        return type("Event", (), calls)()


def test_a_batch_is_handed_over_by_an_event_and_its_pinned_copy_outlives_the_copying(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from deeplake_loader.stream import device

    cuda = FakeCuda()
    monkeypatch.setattr(device, "torch", SimpleNamespace(cuda=cuda, Tensor=torch.Tensor))
    monkeypatch.setattr(device, "_pinned", lambda tensor: tensor.clone())
    mover = device.Mover(torch.device("cpu"))
    mover.begin()
    assert cuda.log == ["device cpu"]
    cuda.log.clear()
    batch = {"x": torch.arange(3), "names": ["a"], "ragged": [torch.ones(2), None], "_rows": torch.arange(3)}
    first = mover.send({**batch, "_cursor": (0, 3)})
    assert cuda.log == ["on copy", "event on copy"]
    got = first.receive()
    assert cuda.log[2:] == ["consumer waits"] and got["_cursor"] == (0, 3) and got["names"] == ["a"]
    assert torch.equal(got["x"], batch["x"]) and torch.equal(got["ragged"][0], torch.ones(2))
    mover.send(batch).receive()
    assert len(mover._held) == 1 and cuda.log[-1] == "host waits"  # for the batch before: pinned memory is bounded
    cuda.finished = True
    mover.send(batch).receive()
    assert len(mover._held) == 0


def test_what_a_column_asks_for_on_the_device_runs_behind_its_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    from deeplake_loader.stream import device

    cuda = FakeCuda()
    monkeypatch.setattr(device, "torch", SimpleNamespace(cuda=cuda, Tensor=torch.Tensor))
    monkeypatch.setattr(device, "_pinned", lambda tensor: tensor.clone())

    def halve(pixels: torch.Tensor) -> torch.Tensor:
        cuda.log.append("halve")
        return pixels / 2

    mover = device.Mover(torch.device("cpu"), {"x": halve})
    batch = {"x": torch.arange(3), "list": [torch.ones(2)], "_rows": torch.arange(3), "_keys": torch.arange(3)}
    got = mover.send(batch).receive()
    assert cuda.log == ["on copy", "halve", "event on copy", "consumer waits"]
    assert got["x"].tolist() == [0, 0.5, 1] and torch.equal(got["list"][0], torch.ones(2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kept_batches_keep_their_values_while_others_are_made(store: Store) -> None:
    expected = [batch["photo"] for batch in store.stream(["photo", "id"])]
    index = torch.cuda.device_count() - 1
    kept = [batch["photo"] for batch in store.stream(["photo", "id"], device=f"cuda:{index}", prefetch=4)]
    assert all(tensor.device.index == index for tensor in kept)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(expected, kept, strict=True))
