"""What a stream can give and what it costs a training step, measured without training."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deeplake_loader.errors import InputError
from deeplake_loader.stream.dataset import Stream
from deeplake_loader.stream.stats import Stats


@dataclass(frozen=True, slots=True)
class Profile:
    """What `profile` measured.

    Fields: ``stats`` of the whole loader at work; ``batches`` that were timed, of ``batch_size`` samples;
    ``first_batch_s``, from asking for the first batch to having it; ``loader_s`` per batch at full speed. Samples/s
    that each stage alone would give: ``read_rate`` on its one thread, ``decode_rate`` on all decoding threads, None
    where nothing is decoded; ``finish_rate``, putting batches together. With a ``step``: ``cached_s`` it takes per call
    on one batch that is there already, ``trained_s`` per call on the stream.
    """

    stats: Stats
    batches: int
    batch_size: float
    first_batch_s: float
    loader_s: float
    read_rate: float
    decode_rate: float | None
    finish_rate: float
    cached_s: float | None = None
    trained_s: float | None = None

    @property
    def rate(self) -> float:
        """Samples/s of the whole loader."""
        return self.batch_size / self.loader_s

    def wait_s(self, step_s: float) -> float:
        """Seconds that a training step of so many seconds waits for its batch: batches are made beside the step, so
        only what they take longer than it."""
        return max(0.0, self.loader_s - step_s)

    @property
    def overhead(self) -> float | None:
        """What share the loader adds to the measured step, 0.02 for 2 %; None without a ``step``."""
        if self.cached_s is None or self.trained_s is None:
            return None
        return self.trained_s / self.cached_s - 1

    def __str__(self) -> str:
        lines = [
            f"loader      {self.rate:12,.0f} samples/s, {self.loader_s * 1e3:.2f} ms a batch of {self.batch_size:.0f}",
            f"  read      {self.read_rate:12,.0f} samples/s on its thread",
            f"  decode    {self.decode_rate:12,.0f} samples/s on {self.stats.threads} threads"
            if self.decode_rate is not None
            else "  decode               -",
            f"  finish    {self.finish_rate:12,.0f} samples/s",
            f"first batch {self.first_batch_s * 1e3:12,.1f} ms",
            f"bottleneck  {self.stats.report()}",
        ]
        if self.cached_s is None or self.trained_s is None:
            lines.append(f"a training step of {self.loader_s * 1e3:.2f} ms or more does not wait for this loader")
        else:
            lines.append(
                f"the step takes {self.cached_s * 1e3:.2f} ms on a cached batch, {self.trained_s * 1e3:.2f} ms on the "
                f"stream: {self.overhead:+.1%}"
            )
        return "\n".join(lines)


def profile(stream: Stream, *, batches: int = 100, step: Callable[[dict[str, Any]], object] | None = None) -> Profile:
    """How fast a stream is, where its time goes, and what it costs a training step.

    The stream itself does not move: another one of the same parts reads, from epoch 0 on.

    Args:
        batches: how many are timed, after the first one.
        step: a training step to time as well, first on one cached batch, then on the stream; on a GPU it should end
            with ``torch.cuda.synchronize()``.

    Raises:
        InputError: ``batches`` is below 1, or the stream has no rows.

    >>> print(deeplake.profile(stream, step=train_step))                                # doctest: +SKIP
    """
    if batches < 1:
        raise InputError(f"batches must be at least 1, got {batches}")
    begun = time.perf_counter()
    source = _Endless(stream._with(progress=False))
    try:
        first = source.next()
        first_batch_s = time.perf_counter() - begun
        loader_s = _timed(source, batches, lambda _: None)
        stats = source.stats
        cached_s = trained_s = None
        if step is not None:
            step(first)  # whatever it sets up once is not counted
            cached_s = _per_call(lambda: step(first), batches)
            trained_s = _timed(source, batches, step)
    finally:
        source.close()
    threads = max(1, stats.threads)
    return Profile(
        stats=stats,
        batches=batches,
        batch_size=stats.samples / stats.batches,
        first_batch_s=first_batch_s,
        loader_s=loader_s,
        read_rate=_rate(stats.samples, stats.read_s),
        decode_rate=_rate(stats.samples, stats.decode_s / threads) if stats.decode_s else None,
        finish_rate=_rate(stats.samples, stats.finish_s),
        cached_s=cached_s,
        trained_s=trained_s,
    )


class _Endless:
    """The batches of a stream over as many epochs as are asked for."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._batches = stream, iter(stream)

    def next(self) -> dict[str, Any]:
        for _ in range(2):
            batch = next(self._batches, None)
            if batch is not None:
                return batch
            self._batches = iter(self._stream)
        raise InputError("the stream has no rows to profile")

    @property
    def stats(self) -> Stats:
        return self._stream.stats

    def close(self) -> None:
        self._batches.close()


def _timed(source: _Endless, batches: int, step: Callable[[dict[str, Any]], object]) -> float:
    """Seconds per batch that is read and given to the step."""
    return _per_call(lambda: step(source.next()), batches)


def _per_call(call: Callable[[], object], times: int) -> float:
    begun = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begun) / times


def _rate(samples: int, seconds: float) -> float:
    return samples / seconds if seconds else float("inf")
