"""A bounded pipeline of threads: some read, some decode, and the consumer's own calls drive how far ahead they go.

No thread ever waits for room: a step is submitted only when the consumer takes a batch, so at most ``prefetch`` batches
are under way and closing needs no more than a flag. Threads know the queues and not the pipeline, so that a pipeline
nobody holds is collected, and its finalizer (also run at exit) ends them.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Generic, Protocol, TypeAlias, TypeVar

from deeplake_loader.errors import InputError, StalledError
from deeplake_loader.stream.stats import Times

_WAIT_S = 0.1
_JOIN_S = 10.0
_JOIN_STALLED_S = 0.1  # for threads of which one is known to hang
_LAST_STEP_S = 2.0  # that the interpreter's exit waits for daemon threads which take batches

_Queue: TypeAlias = "SimpleQueue[Callable[[], None] | None]"
Step = TypeVar("Step")
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


@dataclass(frozen=True, slots=True)
class WholeBatch:
    """A task for the one thread that decodes whole batches, which would only keep a decoding thread waiting."""

    run: Callable[[], None]

    def __call__(self) -> None:
        self.run()


class Work(Protocol[Result_co]):
    """What reading one step leaves to do."""

    @property
    def tasks(self) -> Sequence[Callable[[], None]]:
        """Independent pieces for the decoding threads; a `WholeBatch` is for the thread of that name."""

    def finish(self) -> Result_co:
        """The result, once every task is done; called once, on the thread that ended the last one."""

    def release(self) -> None:
        """Gives buffers back; called once after the last task, also after an error."""


class _Slot(Generic[Step, Result]):
    """One step's way through the pipeline: its result or its error once ``done`` is set."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.done = threading.Event()
        self.results: list[Result] = []
        self.error: BaseException | None = None
        self.times = Times()
        self.stage, self.moved = "waiting to be read", time.monotonic()
        self._pieces = self._left = 0
        self._lock = threading.Lock()

    def read(self, read: Callable[[Step], Work[Result]], decodes: _Queue, wholes: _Queue) -> None:
        """Reads the step and hands its tasks to the decoding threads."""
        begun = self._enter("being read")
        try:
            work = read(self.step)
        except BaseException as error:  # raised again where the batch is awaited
            self.error = error
            self._end()
            return
        self.times.read_s = self._enter("being decoded") - begun
        tasks = work.tasks
        self._pieces = self._left = len(tasks)
        if not tasks:
            self._finish(work)
        for task in tasks:
            queue = wholes if isinstance(task, WholeBatch) else decodes
            queue.put(partial(self._decode, task, work))

    def _enter(self, stage: str) -> float:
        self.stage, self.moved = stage, time.monotonic()
        return self.moved

    def _decode(self, task: Callable[[], None], work: Work[Result]) -> None:
        begun = time.monotonic()
        if self.error is None:
            try:
                task()
            except BaseException as error:
                self.error = error
        with self._lock:
            self.moved = time.monotonic()
            self.times.decode_s += self.moved - begun
            self._left -= 1
            last = not self._left
        if last:
            self._finish(work)

    def _finish(self, work: Work[Result]) -> None:
        begun = self._enter("being put together")
        try:
            if self.error is None:
                self.results.append(work.finish())
        except BaseException as error:
            self.error = error
        finally:
            work.release()
            self.times.finish_s = time.monotonic() - begun
            self._end()

    def _end(self) -> None:
        self.times.ready = time.monotonic()
        self.done.set()

    def describe(self) -> str:
        """How far it has come."""
        pieces = f" ({self._left} of {self._pieces} pieces left)" if self.stage == "being decoded" else ""
        return f"{self.stage}{pieces}"


class _Threads:
    """The threads of one pipeline and the three queues they take from."""

    def __init__(self, readers: int, decoders: int, wholes: int, begin: Callable[[], None]) -> None:
        self.pid = os.getpid()
        self.stop = threading.Event()
        self.stalled = False
        self.reads: _Queue = SimpleQueue()
        self.decodes: _Queue = SimpleQueue()
        self.wholes: _Queue = SimpleQueue()
        self._queues = [self.reads] * readers + [self.wholes] * wholes + [self.decodes] * decoders
        names = ["read"] * readers + ["whole"] * wholes + ["decode"] * decoders
        self.threads = [
            threading.Thread(target=_serve, args=(queue, self.stop, begin), name=f"deeplake-{name}", daemon=True)
            for queue, name in zip(self._queues, names, strict=True)
        ]
        for thread in self.threads:
            thread.start()

    def end(self) -> bool:
        """Stops and joins; whether all have ended."""
        self.stop.set()
        for queue in self._queues:
            queue.put(None)
        deadline = time.monotonic() + (_JOIN_STALLED_S if self.stalled else _JOIN_S)
        others = [thread for thread in self.threads if thread is not threading.current_thread()]
        for thread in others:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in others)


def _serve(queue: _Queue, stop: threading.Event, begin: Callable[[], None]) -> None:
    begin()
    while (job := queue.get()) is not None:
        if not stop.is_set():
            job()
        del job  # or the last batch would live until the next one


_consumers: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def _consume() -> None:
    """Notes a daemon thread that takes results, and ends it, as CPython would, once the interpreter is about to exit.

    CPython ends a daemon thread where it next asks for the GIL. Inside PyTorch, where freeing a tensor asks for it,
    that is "terminate called without an active exception" and SIGABRT (5 of 1,600 exits beside such a thread).
    """
    thread, main = threading.current_thread(), threading.main_thread()
    if not thread.daemon or thread is main:  # a process that a daemon thread forked has it as its main thread
        return
    if not main.is_alive():
        raise SystemExit
    _consumers.add(thread)


@atexit.register
def _await_consumers() -> None:
    deadline = time.monotonic() + _LAST_STEP_S
    for thread in tuple(_consumers):
        thread.join(max(0.0, deadline - time.monotonic()))


class Pipeline(Generic[Step, Result]):
    """The results of ``steps``, in their order.

    Args:
        steps: advanced on the consumer's thread.
        read: turns a step into `Work`, on a reading thread; with several, of several steps at the same time.
        decoders: decoding threads, at least 1.
        prefetch: results under way beyond the one that the consumer waits for.
        readers: reading threads.
        close: called once when the threads have ended; not if one of them hangs and may still use what it closes.
        begin: called once in every thread, first.
        timeout_s: seconds that a step may go without any progress, None for ever.
        whole_batches: whether there are `WholeBatch` tasks.
        describe: names what a step reads, for the error.
    """

    def __init__(
        self,
        steps: Iterator[Step],
        read: Callable[[Step], Work[Result]],
        *,
        decoders: int,
        prefetch: int,
        readers: int = 1,
        close: Callable[[], None],
        begin: Callable[[], None] = lambda: None,
        timeout_s: float | None = None,
        whole_batches: bool = False,
        describe: Callable[[Step], str] = repr,
    ) -> None:
        _consume()
        self._steps, self._read, self._prefetch = steps, read, prefetch
        self._timeout_s, self._describe = timeout_s, describe
        self._slots: deque[_Slot[Step, Result]] = deque()
        self._threads = _Threads(readers, decoders, int(whole_batches), begin)
        self._finalizer = weakref.finalize(self, _shut, self._threads, close)
        self.times = Times()

    def __iter__(self) -> Pipeline[Step, Result]:
        return self

    def __next__(self) -> Result:
        _consume()
        while len(self._slots) <= self._prefetch and self._submit():
            pass
        if not self._slots:
            raise StopIteration
        slot, begun = self._slots.popleft(), time.monotonic()
        while not slot.done.wait(_WAIT_S if self._timeout_s is None else min(_WAIT_S, self._timeout_s)):
            self._check_alive()
            self._check_progress(slot, begun)
        slot.times.settle(begun, time.monotonic())
        self.times = slot.times
        if isinstance(slot.error, StopIteration):  # raised on, it would end the pass without a word
            raise InputError(f"a function raised StopIteration on {self._describe(slot.step)}") from slot.error
        if slot.error is not None:
            raise slot.error
        return slot.results.pop()

    @property
    def ready(self) -> int:
        """Results that wait for the consumer."""
        return sum(slot.done.is_set() for slot in tuple(self._slots))  # another thread may ask

    def _submit(self) -> bool:
        try:
            step = next(self._steps)
        except StopIteration:
            return False
        slot: _Slot[Step, Result] = _Slot(step)
        self._slots.append(slot)
        self._threads.reads.put(partial(slot.read, self._read, self._threads.decodes, self._threads.wholes))
        return True

    def _check_alive(self) -> None:
        _consume()
        if self._threads.stop.is_set():
            raise InputError("the stream's iterator was closed while a batch was awaited; iterate the stream again")
        if not all(thread.is_alive() for thread in self._threads.threads):
            raise InputError("the iterator's threads do not exist in this process; iterate the stream in it")

    def _check_progress(self, slot: _Slot[Step, Result], begun: float) -> None:
        if self._timeout_s is None or time.monotonic() - max(slot.moved, begun) < self._timeout_s:
            return
        self._threads.stalled = True
        raise StalledError(
            f"a batch made no progress for {self._timeout_s:g} s while {slot.describe()}: "
            f"{self._describe(slot.step)}; look at that storage, or raise timeout_s"
        )

    def close(self) -> None:
        """Ends the threads, within 10 s even if a read hangs; what was under way is dropped."""
        self._slots.clear()
        self._finalizer()


def _shut(threads: _Threads, close: Callable[[], None]) -> None:
    if os.getpid() == threads.pid and threads.end():
        close()
