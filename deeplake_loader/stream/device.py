"""Batches onto a CUDA device: pinned memory, a copy stream of our own, and the hand-over to the consumer's stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from deeplake_loader.errors import InputError

Batch = dict[str, Any]

_HOST_KEYS = frozenset(("_rows", "_cursor", "_bad"))


@dataclass(frozen=True, slots=True)
class Sent:
    """A batch whose copies are under way: the device's batch, the pinned one, and the event after the last copy."""

    mover: Mover
    batch: Batch
    pinned: Batch
    done: torch.cuda.Event

    def receive(self) -> Batch:
        """The batch, for the calling thread's current stream."""
        return self.mover.receive(self)


class Mover:
    """Copies batches to one CUDA device beside the computation.

    A batch is always a fresh allocation: a user may keep it, and only its use on a third stream needs the user's own
    ``record_stream``.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._held: deque[tuple[torch.cuda.Event, Batch]] = deque()

    @classmethod
    def to(cls, device: torch.device) -> Mover:
        """A mover to this device; "cuda" alone is the calling thread's current one, which other threads do not share.

        Raises:
            InputError: torch sees no such device.
        """
        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = torch.cuda.current_device() if device.index is None and seen else device.index or 0
        if index >= seen:
            raise InputError(f"device={str(device)!r}, but torch sees {seen} CUDA devices; use device='cpu' or another")
        return cls(torch.device("cuda", index))

    def send(self, batch: Batch) -> Sent:
        """Begins the copies, on whichever thread has made the batch."""
        pinned = {k: v if k in _HOST_KEYS else _mapped(v, _pinned) for k, v in batch.items()}
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            moved = {k: v if k in _HOST_KEYS else _mapped(v, self._copied) for k, v in pinned.items()}
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
        return Sent(self, moved, pinned, done)

    def receive(self, sent: Sent) -> Batch:
        """The batch, for the caller's current stream, which waits for the copies; the host does not."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(sent.done)
        for value in sent.batch.values():
            _mapped(value, lambda tensor: _record(tensor, current))
        self._held.append((sent.done, sent.pinned))
        while self._held and self._held[0][0].query():  # type: ignore[no-untyped-call]
            self._held.popleft()
        return dict(sent.batch)

    def _copied(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device, non_blocking=True)


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_pinned() else tensor.pin_memory()


def _record(tensor: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    if tensor.is_cuda:
        tensor.record_stream(stream)
    return tensor


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    return [_mapped(v, change) for v in value] if isinstance(value, list) else value
