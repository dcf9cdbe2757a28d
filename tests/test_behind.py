"""Work on a thread behind the caller: in order, one at a time, its error kept until it was asked for."""

from __future__ import annotations

import os
import threading

import pytest

from deeplake_loader.behind import Behind


def test_jobs_run_in_order_and_never_two_at_once() -> None:
    behind, done, gates = Behind(), [], [threading.Event() for _ in range(3)]

    def job(i: int) -> None:
        gates[i].wait(60)
        done.append(i)

    behind.run(lambda: job(0))
    assert done == []
    threading.Timer(0.02, gates[0].set).start()
    behind.run(lambda: job(1))
    assert done == [0]
    gates[1].set()
    behind.wait()
    assert done == [0, 1]


def test_an_error_is_raised_until_it_is_forgotten_and_nothing_runs_meanwhile() -> None:
    behind, done = Behind(), []
    behind.run(lambda: done.append(1 // 0))
    for action in (behind.wait, lambda: behind.run(lambda: done.append(1)), behind.wait):
        with pytest.raises(ZeroDivisionError):
            action()
    behind.forget()
    behind.run(lambda: done.append(2))
    behind.wait()
    assert done == [2]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_does_not_wait_for_its_parents_thread() -> None:
    behind, gate = Behind(), threading.Event()
    behind.run(lambda: gate.wait(60))
    child = os.fork()
    if not child:
        code = 1
        try:
            behind.forget()
            code = 7
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    gate.set()
    behind.wait()
    assert os.waitstatus_to_exitcode(status) == 7
