"""Batches onto a CUDA device: pinned memory, a copy stream of our own, and the hand-over to the consumer's stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from deeplake_loader.errors import InputError

Batch = dict[str, Any]

OnDevice = Callable[[torch.Tensor], torch.Tensor]
"""What is done to a column on the device, behind its copy."""

_HOST_KEYS = frozenset(("_rows", "_keys", "_source", "_cursor", "_bad"))


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
    ``record_stream``. Pinned memory is torch's, which is not used again before the copies out of it are through; the
    pinned batches alive are those under way and one more.

    Args:
        device: a CUDA device with its index.
        on_device: by column, what is done to it behind the copy and on the copy's stream, as normalising.
    """

    def __init__(self, device: torch.device, on_device: Mapping[str, OnDevice] | None = None) -> None:
        self.device, self._on_device = device, dict(on_device or {})
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._held: deque[tuple[torch.cuda.Event, Batch]] = deque()

    @classmethod
    def to(cls, device: torch.device, on_device: Mapping[str, OnDevice] | None = None) -> Mover:
        """A mover to this device; "cuda" alone is the calling thread's current one, which other threads do not share.

        Raises:
            InputError: torch sees no such device.
        """
        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = torch.cuda.current_device() if device.index is None and seen else device.index or 0
        if index >= seen:
            raise InputError(f"device={str(device)!r}, but torch sees {seen} CUDA devices; use device='cpu' or another")
        return cls(torch.device("cuda", index), on_device)

    def begin(self) -> None:
        """Makes the device the calling thread's: pinning memory would else begin a context on device 0."""
        torch.cuda.set_device(self.device)

    def send(self, batch: Batch) -> Sent:
        """Begins the copies, on whichever thread has made the batch. What is on the device already must be
        complete, and stays."""
        pinned = {k: v if k in _HOST_KEYS else _mapped(v, _pinned) for k, v in batch.items()}
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            moved = {k: v if k in _HOST_KEYS else _mapped(v, self._copied) for k, v in pinned.items()}
            for name, change in self._on_device.items():
                moved[name] = _mapped(moved[name], change)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
        return Sent(self, moved, pinned, done)

    def receive(self, sent: Sent) -> Batch:
        """The batch, for the caller's current stream, which waits for the copies; the host does not."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(sent.done)
        for value in sent.batch.values():
            _mapped(value, lambda tensor: _record(tensor, current))
        self._held.append((sent.done, sent.pinned))
        while self._held and (len(self._held) > 1 or self._held[0][0].query()):  # type: ignore[no-untyped-call]
            self._held.popleft()[0].synchronize()  # of the batch before, whose copies are through as a rule
        return dict(sent.batch)

    def _copied(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, non_blocking=True)


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_cuda or tensor.is_pinned() else tensor.pin_memory()


def _record(tensor: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    if tensor.is_cuda:
        tensor.record_stream(stream)
    return tensor


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    return [_mapped(v, change) for v in value] if isinstance(value, list) else value
