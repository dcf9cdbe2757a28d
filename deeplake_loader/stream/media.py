"""A stream's media columns: stored bytes, or what the decoding threads make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from deeplake_loader.codecs import MediaInfo
from deeplake_loader.codecs.containers import Source
from deeplake_loader.decode import cpu, transforms
from deeplake_loader.decode.engine import decode_batch, takes
from deeplake_loader.decode.normalize import Normalize, as_array, to_bytes
from deeplake_loader.errors import DecodeError, DeeplakeError
from deeplake_loader.extents import Extents
from deeplake_loader.reader import Items, Reader
from deeplake_loader.stream.parts import Part, Ready, kept, replaced
from deeplake_loader.stream.payloads import Payloads
from deeplake_loader.stream.pipeline import WholeBatch
from deeplake_loader.stream.windows import Bounds, Windows, open_windows

if TYPE_CHECKING:
    from deeplake_loader.decode.dali import DaliDecoder

Indices = npt.NDArray[np.int64]
Draw = Callable[[int], transforms.Draw]
"""The random numbers of the row at a place of the step."""

_ANY_IMAGE, _ANY_BYTES = MediaInfo("image"), MediaInfo("bytes")
_IMAGES_PER_TASK = 8  # about 10 ms of work; shorter tasks lose to the queue, longer ones leave threads idle at the end


@dataclass(frozen=True, slots=True)
class Variants:
    """Transforms by bucket: ``buckets`` holds the number of each row's, an index into ``transforms``."""

    buckets: Indices
    transforms: tuple[transforms.Transform, ...]


@dataclass(frozen=True, slots=True)
class Media:
    """A blob column by address, and what its items become; ``transform`` None gives a list of bytes (BLOB).

    ``variants`` take the transform's place in streams whose batches are each of one bucket; ``bounds`` give each row's
    clip a start and an end.
    """

    name: str
    addresses: Indices
    nullable: bool
    transform: transforms.Transform | transforms.Raw | None
    variants: Variants | None = None
    bounds: Bounds | None = None

    def at(self, rows: Indices) -> Media:
        """The column as the bucket of these rows has it."""
        if self.variants is None or not len(rows):
            return self
        chosen = self.variants.transforms[int(self.variants.buckets[rows[0]])]
        return replace(self, transform=chosen, variants=None)

    def windows(self, rows: Indices, extents: Extents, reader: Reader, draw: Draw) -> Windows | None:
        """What is read of each row's clip; None where items are read whole and alike."""
        if not isinstance(self.transform, transforms.Video | transforms.Audio):
            return None
        infos, draws = self._infos(self.transform, rows, reader), [draw(i) for i in range(len(rows))]
        return open_windows(self.transform, self.bounds, infos, draws, extents, rows, reader)

    def part(
        self,
        rows: Indices,
        items: Items,
        reader: Reader,
        draw: Draw,
        pin: bool,
        decoder: DaliDecoder | None = None,
        windows: Windows | None = None,
    ) -> Part:
        """The column's rows of one step, whose bytes were read; ``decoder`` decodes what it can as a batch."""
        if self.transform is None or isinstance(self.transform, transforms.Raw):
            payloads = Payloads(items.data, items.starts, items.sizes)
            content = payloads.tolist() if self.transform is None else payloads
            return Ready(content, items.errors, items.nbytes, items.retries)
        infos = self._infos(self.transform, rows, reader) if windows is None else windows.infos
        draws = [draw(i) for i in range(len(rows))]
        if (
            decoder is not None
            and self.bounds is None
            and not (windows and windows.files)
            and not self.nullable
            and isinstance(self.transform, transforms.Image | transforms.Video)
        ):
            by_dali = takes(decoder, self.transform, infos, [items[i] for i in range(len(rows))])
            output = _output(self.transform, infos)
            if by_dali and output is not None:
                room = decoder.empty((len(rows), *output[1]))
                return _BatchDecoding(decoder, room, by_dali, self.transform, items, infos, draws, windows)
        return _Decoding(self.transform, self.nullable, items, infos, draws, pin, windows)

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
        windows: Windows | None = None,
    ) -> None:
        self._transform, self._nullable = transform, nullable
        self._infos, self._draws, self._pin = infos, draws, pin
        self._transforms: Sequence[transforms.Transform] = windows.transforms if windows else [transform] * len(infos)
        self._files = dict(windows.files) if windows else {}
        self.errors: dict[int, DeeplakeError] = {**items.errors, **(windows.errors if windows else {})}
        self.nbytes = items.nbytes + sum(file.fetched for file in self._files.values())
        self.retries = items.retries
        self._tensors: list[torch.Tensor | None] = [None] * len(infos)
        self._batch = self._allocate()
        self.tasks: Sequence[Callable[[], None]] = self._pieces(items, range(len(infos)))

    def _pieces(self, items: Items, places: Sequence[int]) -> list[Callable[[], None]]:
        size = _IMAGES_PER_TASK if isinstance(self._transform, transforms.Image) else 1
        return [partial(self._decode, items, places[i : i + size]) for i in range(0, len(places), size)]

    def _allocate(self) -> torch.Tensor | None:
        """The batch tensor, where all items come out in one shape that is known before they are decoded."""
        known = None if self._nullable else _output(self._transform, self._infos)
        if known is None:
            return None
        dtype, shape = known
        return torch.empty((len(self._infos), *shape), dtype=getattr(torch, dtype), pin_memory=self._pin)

    def _decode(self, items: Items, places: Sequence[int]) -> None:
        for i in places:
            data: Source | None = self._files.pop(i, None) or items[i]
            if data is not None and i not in self.errors:
                try:
                    self._decode_one(i, data)
                except DecodeError as error:
                    self.errors[i] = error

    def _decode_one(self, i: int, data: Source) -> None:
        info, transform, draw = self._infos[i], self._transforms[i], self._draws[i]
        if self._batch is None:
            self._tensors[i] = cpu.to_torch(cpu.decode(data, info, transform, draw=draw))
        else:
            cpu.decode_into(data, info, transform, as_array(self._batch[i]), draw=draw)

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
        self._files.clear()


class _BatchDecoding(_Decoding):
    """The same, some or all of the items decoded by DALI as a batch, where its results are; the others on the CPU."""

    def __init__(
        self,
        decoder: DaliDecoder,
        room: torch.Tensor,
        by_dali: Sequence[int],
        transform: transforms.Image | transforms.Video,
        items: Items,
        infos: Sequence[MediaInfo],
        draws: Sequence[transforms.Draw],
        windows: Windows | None,
    ) -> None:
        self._decoder, self._room, self._bytes = decoder, room, to_bytes(transform)
        self._by_cpu: dict[int, torch.Tensor] = {}
        self._given: dict[int, Any] = {}
        super().__init__(transform, False, items, infos, draws, False, windows)
        others = sorted(set(range(len(infos))) - set(by_dali))
        self.tasks = [WholeBatch(partial(self._decode_batch, transform, items, by_dali)), *self._pieces(items, others)]

    def _allocate(self) -> torch.Tensor:
        return self._room

    def _decode_batch(
        self, transform: transforms.Image | transforms.Video, items: Items, places: Sequence[int]
    ) -> None:
        data = [items[i] or b"" for i in places]
        infos, draws = [self._infos[i] for i in places], [self._draws[i] for i in places]
        slots = [self._room[i] for i in places]
        for i, found in zip(places, decode_batch(self._decoder, data, infos, transform, draws, slots), strict=True):
            if isinstance(found, DecodeError):
                self.errors[i] = found

    def _decode_one(self, i: int, data: Source) -> None:
        array = cpu.decode(data, self._infos[i], self._bytes, draw=self._draws[i])
        self._by_cpu[i] = cpu.to_torch(array)

    def put(self, place: int, value: Any) -> None:
        self._given[place] = value

    def value(self, keep: Indices | None) -> Any:
        with self._decoder.placing():
            for i, pixels in self._by_cpu.items():
                self._room[i].copy_(pixels)
            whole = self._as_asked(self._room)
            for place, given in self._given.items():
                replaced(whole, place, given)
            return kept(whole, keep)

    def _as_asked(self, pixels: torch.Tensor) -> torch.Tensor:
        """The floats that the transform asks for; where they are made behind the hand-over, it asks for none."""
        step = Normalize.of(self._transform)
        return pixels if step is None else step.floats(pixels)


def _output(transform: transforms.Transform, infos: Sequence[MediaInfo]) -> tuple[str, tuple[int, ...]] | None:
    """(dtype name, shape) of every item, where that is one and known before they are decoded."""
    outputs = {cpu.output(info, transform) for info in infos}
    return outputs.pop() if len(outputs) == 1 else None
