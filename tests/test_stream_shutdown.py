"""Every way a pass can end: no thread, process or open file is left, nothing hangs, nothing is written to stderr."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stream_store import FEW, Store, epoch_of, flat, ids
from torch.utils.data import DataLoader

from deeplake_loader.errors import InputError
from deeplake_loader.stream import dataset, loading, pipeline

SOON_S = 60  # far more than any of this takes, far less than a hang


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert running() == 0
    deadline = time.monotonic() + SOON_S
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert multiprocessing.active_children() == []


def running() -> int:
    """Threads of passes."""
    return sum(thread.name.startswith("deeplake") for thread in threading.enumerate())


class Holder:
    """Something that holds itself and a pass: only the cycle collector finds it."""

    def __init__(self, batches: Any) -> None:
        self.batches, self.itself = batches, self


def test_a_pass_in_a_cycle_ends_with_the_cycle(store: Store) -> None:
    batches = iter(store.stream(FEW))
    next(batches)
    Holder(batches)
    gc.disable()  # the pass's own threads make garbage, too, and nobody knows when that would be enough
    try:
        del batches
        assert running() > 0
    finally:
        gc.enable()
    gc.collect()
    assert running() == 0


def test_a_dropped_stream_ends_with_its_last_pass(store: Store) -> None:
    batches = iter(store.stream(FEW, prefetch=8))  # nothing else holds the stream
    got = ids(next(batches))
    gc.collect()
    assert got + flat(batches) == epoch_of(store, 0)


def test_an_exception_in_a_step_ends_the_pass_although_its_traceback_is_kept(store: Store) -> None:
    stream = store.stream(FEW)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), iter(stream) as batches:
            for _ in batches:
                _ = 1 / 0
        assert running() == 0
    assert stream.epoch == 3


def test_ctrl_c_while_a_batch_is_awaited_comes_at_once_and_ends_the_pass(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading stands still until the pass is being ended."""
    stands, goes_on, in_time = threading.Event(), threading.Event(), list[bool]()
    real_read, real_end = loading.Loader.read, pipeline._Threads.end

    def read(self: Any, step: Any) -> Any:
        stands.set()
        in_time.append(goes_on.wait(SOON_S))
        return real_read(self, step)

    def end(self: Any) -> bool:
        goes_on.set()
        return real_end(self)

    def press() -> None:
        if stands.wait(SOON_S):  # so the main thread is inside of next()
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loading.Loader, "read", read)
    monkeypatch.setattr(pipeline._Threads, "end", end)
    batches, pressing = iter(store.stream(FEW)), threading.Thread(target=press)
    with pytest.raises(KeyboardInterrupt):
        pressing.start()
        next(batches)
    pressing.join()
    assert in_time and all(in_time)
    assert running() == 0 and next(batches, None) is None


def test_cuda_is_refused_when_a_worker_makes_its_iterator(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Info:
        id, num_workers, seed = 1, 2, 8

    stream = store.stream(FEW, device="cuda:0")
    monkeypatch.setattr(dataset, "get_worker_info", lambda: Info)
    with pytest.raises(InputError, match=r"worker cannot give batches on cuda:0.*device='cpu'.*without workers"):
        iter(stream)
    monkeypatch.undo()
    assert stream.epoch == 0  # no epoch was taken


@pytest.mark.parametrize("persistent", [False, True])
def test_loader_workers_end_after_break_exception_and_deletion(store: Store, persistent: bool) -> None:
    loader = DataLoader(store.stream(FEW), batch_size=None, num_workers=2, persistent_workers=persistent)
    for _ in loader:
        break
    with pytest.raises(ZeroDivisionError):
        for _ in loader:
            _ = 1 / 0
    batches = iter(loader)
    next(batches)
    del batches, loader
    gc.collect()


# -- whole processes ---------------------------------------------------------------------------------------------------

BEGIN = """
    import gc, os, pickle, signal, sys, threading, time
    from torch.utils.data import DataLoader
    from deeplake_loader.stream import build_stream

    def make(**options):
        rows = pickle.loads(bytes.fromhex(sys.argv[2]))
        return build_stream(sys.argv[1], rows, **{"batch_size": 2, "prefetch": 16, "shuffle": True, **options})
"""


def start(store: Store, code: str) -> subprocess.Popen[str]:
    here = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    rows = pickle.dumps(store.rowset()).hex()
    program = textwrap.dedent(BEGIN) + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", program, store.root, rows],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, out, err


def test_the_interpreter_exits_quietly_with_passes_of_every_kind_open(store: Store) -> None:
    code = """
        held = [iter(make()), iter(make(prefetch=0)), iter(make(num_threads=7))]
        unstarted = iter(make())
        loaders = [DataLoader(make(), batch_size=None, num_workers=2, persistent_workers=p) for p in (False, True)]
        held += [iter(loader) for loader in loaders]
        for batches in held:
            next(batches)
        cycle = [iter(make())]
        cycle.append(cycle)
        next(cycle[0])
        print(len(held))
    """
    assert finish(start(store, code)) == (0, "5\n", "")


def test_sys_exit_in_a_training_step_and_in_a_thread_ends_the_process(store: Store) -> None:
    code = """
        def train():
            for batch in make():
                time.sleep(0.01)

        threading.Thread(target=train, daemon=True).start()
        for batch in make():
            sys.exit(7)
    """
    assert finish(start(store, code)) == (7, "", "")


def test_a_daemon_thread_that_takes_batches_ends_before_the_interpreter_does(store: Store) -> None:
    """Ended later, inside PyTorch and wherever it next asked for the GIL, it would take the process with it."""
    code = """
        import atexit

        def train():
            try:
                while True:
                    for batch in make():
                        pass
            finally:
                print("ended")

        thread = threading.Thread(target=train, daemon=True)
        thread.start()
        atexit.register(lambda: print(thread.join(20), thread.is_alive()))
        for batch in make():
            sys.exit(7)
    """
    assert finish(start(store, code)) == (7, "ended\nNone False\n", "")


def test_an_uncaught_exception_writes_its_traceback_and_nothing_else(store: Store) -> None:
    code = """
        loader = DataLoader(make(), batch_size=None, num_workers=1)
        for a, b in zip(make(), loader):
            raise ValueError("the step failed")
    """
    status, out, err = finish(start(store, code))
    assert (status, out) == (1, "") and err.count("Traceback") == 1 and err.endswith("ValueError: the step failed\n")


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_in_a_terminal_ends_the_process_and_its_workers(store: Store, workers: int) -> None:
    code = f"""
        stream = make()
        loader = DataLoader(stream, batch_size=None, num_workers={workers}) if {workers} else stream
        for i, batch in enumerate(loader):
            if i == 5:
                print(os.getpid(), flush=True)
                while True:  # a step without an end: CPython loses a Ctrl-C that meets the fork of a worker
                    time.sleep(0.01)
    """
    process = start(store, code)
    assert process.stdout is not None
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    status, _, err = finish(process)
    assert status in (-signal.SIGINT, 130, 1) and err.rstrip().endswith("KeyboardInterrupt")
    assert err.count("Traceback") == 1
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody of the group is left


def test_a_process_killed_by_a_signal_leaves_the_store_usable(store: Store) -> None:
    process = start(store, "for i, batch in enumerate(make()): print(i, flush=True); time.sleep(0.01)")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert len(epoch_of(store, 0)) == len(store.records)
