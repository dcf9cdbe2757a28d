"""Batches that several threads read at the same time through one reader: right, in order, and really at once."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from stream_store import ROWS, Clock, Store, wait_until

import deeplake_loader as deeplake
from deeplake_loader import kernels
from deeplake_loader.errors import StalledError
from deeplake_loader.reader import Reader
from deeplake_loader.stream.pipeline import Pipeline


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(params=[1, 128])
def reader(request: Any, store: Store) -> Iterator[Reader]:
    reader = Reader(store.root, threads=1, max_files=request.param)
    yield reader
    reader.close()


def test_threads_that_share_a_reader_each_get_their_own_bytes(store: Store, reader: Reader) -> None:
    addresses = np.array([r[0] for r in store.records], np.int64)
    extents = reader.resolve(addresses)
    expected = [kernels.crc32c(store.shards.read(int(a))) for a in addresses]

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(25):
            rows = rng.permutation(ROWS)[:17]
            (items,) = reader.read([(extents, rows)])
            assert items.errors == {} and items.retries == 0
            assert [kernels.crc32c(items[i] or b"") for i in range(17)] == [expected[row] for row in rows]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_a_file_let_go_of_stays_open_for_the_call_that_reads_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(store.root, threads=1, max_files=1)
    addresses = np.array([r[0] for r in store.records], np.int64)
    extents = reader.resolve(addresses)
    first, other = (int(np.flatnonzero(extents.file == n)[0]) for n in (0, 1))
    real, entered = kernels.read_batch, []

    def evicting(*arguments: Any) -> Any:
        entered.append(True)
        if len(entered) == 1:
            assert reader.read_one(extents, other) == store.shards.read(int(addresses[other]))
        return real(*arguments)

    monkeypatch.setattr(kernels, "read_batch", evicting)
    (items,) = reader.read([(extents, np.array([first]))])
    assert bytes(items[0] or b"") == store.shards.read(int(addresses[first])) and items.retries == 0
    reader.close()


def test_files_that_are_open_at_exit_make_no_noise(store: Store) -> None:
    code = """
        import ctypes, keyword, sys
        import numpy as np
        from deeplake_loader import reader as module
        reader = module.Reader(sys.argv[1])
        extents = reader.resolve(np.array([int(sys.argv[2])]))
        reader.read([(extents, np.array([0]))])
        keyword.held = reader
        for kept in (keyword, module):  # as extension modules keep some: emptied at exit, the newest first
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
        print(len(reader._files._open))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), store.root, str(store.records[0][0])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def together(monkeypatch: pytest.MonkeyPatch) -> threading.Barrier:
    """Holds every native read until two are under way."""
    barrier, real = threading.Barrier(2, timeout=20), kernels.read_batch

    def meeting(*arguments: Any) -> Any:
        barrier.wait()
        return real(*arguments)

    monkeypatch.setattr(kernels, "read_batch", meeting)
    return barrier


def test_a_pass_reads_two_batches_at_once_and_gives_them_in_order(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = store.stream(["id", "photo"], batch_size=-(-ROWS // 6), transforms={"photo": deeplake.Raw()})
    photos = [store.shards.read(int(record[0])) for record in store.records]
    together(monkeypatch)  # breaks unless reads come in pairs; the epoch has six
    batches = list(stream)
    rows = [row for batch in batches for row in batch["_rows"].tolist()]
    assert len(batches) == 6 and rows == [stream.locate(0, position).row for position in range(ROWS)]
    assert [bytes(photo) for batch in batches for photo in batch["photo"]] == [photos[row] for row in rows]


def readers() -> int:
    return sum(thread.name == "deeplake-read" for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"transforms": {"photo": deeplake.Raw()}}, 2),
        ({"transforms": {"photo": deeplake.Raw()}, "prefetch": 0}, 1),
        ({"transforms": {"photo": deeplake.Raw()}, "num_threads": 1}, 1),
        ({}, 1),
    ],
)
def test_two_threads_read_where_nothing_is_decoded_and_something_is_read_ahead(
    store: Store, options: dict[str, Any], expected: int
) -> None:
    with iter(store.stream(["id", "photo"], **options)) as batches:
        next(batches)
        assert readers() == batches.stats.readers == expected
    assert readers() == 0


class Done:
    """Work without anything left to do."""

    tasks = ()

    def __init__(self, value: int) -> None:
        self.value = value

    def finish(self) -> int:
        return self.value

    def release(self) -> None:
        pass


def piped(read: Callable[[int], Done], **options: Any) -> Pipeline[int, int]:
    return Pipeline(iter(range(8)), read, decoders=1, prefetch=3, readers=2, close=lambda: None, **options)


def test_a_step_that_is_read_first_waits_for_its_turn() -> None:
    second = threading.Event()

    def read(step: int) -> Done:
        if step == 0:
            assert second.wait(20)  # step 1 is read to its end before step 0
        elif step == 1:
            second.set()
        return Done(step)

    pipeline = piped(read)
    assert list(pipeline) == list(range(8))
    pipeline.close()


def test_one_reader_that_hangs_stalls_its_own_step_and_the_others_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, hangs, go = Clock(monkeypatch), threading.Event(), threading.Event()

    def read(step: int) -> Done:
        if step == 1:
            hangs.set()
            go.wait(60)
        return Done(step)

    pipeline = piped(read, timeout_s=0.2)
    assert next(pipeline) == 0 and hangs.wait(60)
    clock.pace_s = 1.0
    with pytest.raises(StalledError, match=r"being read: 1\b"):
        next(pipeline)
    clock.pace_s = 0.0
    go.set()
    pipeline.close()
    wait_until(lambda: readers() == 0, "the readers end")


def test_no_more_than_what_was_asked_for_is_read_ahead() -> None:
    begun: list[int] = []

    def read(step: int) -> Done:
        begun.append(step)
        return Done(step)

    pipeline = piped(read)
    next(pipeline)
    while len(begun) < 4:
        threading.Event().wait(0.01)
    threading.Event().wait(0.1)
    assert sorted(begun) == [0, 1, 2, 3]
    pipeline.close()
