"""A stream's media columns: stored bytes, or what the decoding threads make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deeplake_loader.codecs import MediaInfo
from deeplake_loader.decode import cpu, transforms
from deeplake_loader.errors import DecodeError, DeeplakeError
from deeplake_loader.reader import Items, Reader
from deeplake_loader.stream.parts import Part, Ready, kept, replaced
from deeplake_loader.stream.payloads import Payloads

Indices = npt.NDArray[np.int64]
Draw = Callable[[int], transforms.Draw]
"""The random numbers of the row at a place of the step."""

_ANY_IMAGE, _ANY_BYTES = MediaInfo("image"), MediaInfo("bytes")
_IMAGES_PER_TASK = 8  # about 10 ms of work; shorter tasks lose to the queue, longer ones leave threads idle at the end


@dataclass(frozen=True, slots=True)
class Media:
    """A blob column by address, and what its items become; ``transform`` None gives a list of bytes (BLOB)."""

    name: str
    addresses: Indices
    nullable: bool
    transform: transforms.Transform | transforms.Raw | None

    def part(self, rows: Indices, items: Items, reader: Reader, draw: Draw, pin: bool) -> Part:
        """The column's rows of one step, whose bytes were read."""
        if self.transform is None or isinstance(self.transform, transforms.Raw):
            payloads = Payloads(items.data, items.starts, items.sizes)
            content = payloads.tolist() if self.transform is None else payloads
            return Ready(content, items.errors, items.nbytes, items.retries)
        infos = self._infos(self.transform, rows, reader)
        return _Decoding(self.transform, self.nullable, items, infos, [draw(i) for i in range(len(rows))], pin)

    def _infos(self, transform: transforms.Transform, rows: Indices, reader: Reader) -> list[MediaInfo]:
        """The facts that decoding needs; an image of a fixed size needs none, which spares the catalog a query."""
        if isinstance(transform, transforms.Image) and transform.size is not None:
            return [_ANY_IMAGE] * len(rows)
        return [_ANY_BYTES if t is None else MediaInfo.from_json(t) for t in reader.infos(self.addresses[rows])]


class _Decoding:
    """The items of one media column and step, decoded in pieces by several threads."""

    def __init__(
        self,
        transform: transforms.Transform,
        nullable: bool,
        items: Items,
        infos: Sequence[MediaInfo],
        draws: Sequence[transforms.Draw],
        pin: bool,
    ) -> None:
        self._transform, self._nullable = transform, nullable
        self._infos, self._draws, self._pin = infos, draws, pin
        self.errors: dict[int, DeeplakeError] = dict(items.errors)
        self.nbytes, self.retries = items.nbytes, items.retries
        self._tensors: list[torch.Tensor | None] = [None] * len(infos)
        self._batch = self._allocate()
        size = _IMAGES_PER_TASK if isinstance(transform, transforms.Image) else 1
        self.tasks = [partial(self._decode, items, i, min(i + size, len(infos))) for i in range(0, len(infos), size)]

    def _allocate(self) -> torch.Tensor | None:
        """The batch tensor, where all items come out in one shape that is known before they are decoded."""
        outputs = {cpu.output(info, self._transform) for info in self._infos}
        known = outputs.pop()
        if self._nullable or outputs or known is None:
            return None
        dtype, shape = known
        return torch.empty((len(self._infos), *shape), dtype=getattr(torch, dtype), pin_memory=self._pin)

    def _decode(self, items: Items, start: int, stop: int) -> None:
        for i in range(start, stop):
            data = items[i]
            if data is not None:
                try:
                    self._decode_one(i, data)
                except DecodeError as error:
                    self.errors[i] = error

    def _decode_one(self, i: int, data: memoryview) -> None:
        info, transform, draw = self._infos[i], self._transform, self._draws[i]
        if self._batch is None:
            self._tensors[i] = cpu.to_torch(cpu.decode(data, info, transform, draw=draw))
        else:
            cpu.decode_into(data, info, transform, self._batch[i].numpy(), draw=draw)

    def put(self, place: int, value: Any) -> None:
        if self._batch is not None:
            replaced(self._batch, place, value)
        else:
            self._tensors[place] = torch.as_tensor(value)

    def value(self, keep: Indices | None) -> Any:
        if self._batch is not None:
            return kept(self._batch, keep)
        tensors: list[torch.Tensor | None] = kept(self._tensors, keep)
        present = [t for t in tensors if t is not None]
        if self._nullable or any(t.shape != present[0].shape for t in present):
            return tensors
        return torch.stack(present)

    def release(self) -> None:
        self.tasks = []  # which hold the bytes
