"""The second step of decoding pictures: uint8 pixels to the floats that a transform asks for, where they are used.

The first step, whatever engine does it, gives uint8 in the transform's layout. On the CPU the floats go from there
straight into the batch; to a CUDA device the bytes are copied, a quarter of the floats', and become floats behind the
copy.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from deeplake_loader import kernels
from deeplake_loader.decode.transforms import Image, Video

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, np.dtype[Any]]

_KEPT_BYTES = 64 << 20
"""The largest array of bytes that a decoding thread keeps from one item to the next."""

_BEHIND = {"CHW": 3, "TCHW": 3, "CTHW": 4, "HWC": 1, "THWC": 1}
"""The place of the channels in each layout, counted from the end."""


@dataclass(frozen=True, slots=True)
class Normalize:
    """(value / 255 - mean) / std of each channel, as ``dtype``; ``layout`` is that of the pixels, before and after.

    >>> Normalize.of(Image(dtype="float32")).apply(np.full((3, 1, 1), 255, np.uint8)).round(6).ravel().tolist()
    [1.0, 1.0, 1.0]
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: Literal["float32", "float16", "bfloat16"]
    layout: str

    @classmethod
    def of(cls, transform: object) -> Normalize | None:
        """What the transform asks for; None where its pixels stay uint8, and for other media."""
        if not isinstance(transform, Image | Video) or transform.dtype == "uint8":
            return None
        mean, std = transform.normalize or ((0.0,), (1.0,))
        return cls(mean, std, transform.dtype, transform.layout)

    def apply(self, pixels: Array, out: Array | None = None, *, threads: int = 1) -> Array:
        """The floats of an item or a batch of them, contiguous uint8; in ``out`` if given (bfloat16: dtype "V2")."""
        flat, kind = self._flat(pixels.shape)
        room = None if out is None else out.reshape(flat)
        done: Array = kernels.normalize(
            pixels.reshape(flat), self.mean, self.std, self.dtype, kind, source=kind, out=room, threads=threads
        )
        return done.reshape(pixels.shape) if out is None else out

    def _flat(self, shape: Sequence[int]) -> tuple[tuple[int, int, int, int], Literal["HWC", "CHW"]]:
        """The shape as four axes, and where among them the channels are."""
        behind = _BEHIND[self.layout]
        if behind == 1:
            return (1, 1, math.prod(shape[:-1]), shape[-1]), "HWC"
        at = len(shape) - behind
        return (math.prod(shape[:at]), shape[at], 1, math.prod(shape[at + 1 :])), "CHW"

    def floats(self, pixels: torch.Tensor) -> torch.Tensor:
        """The floats of a contiguous uint8 tensor, where it is."""
        import torch

        if pixels.is_cuda:
            return self.on_device(pixels)
        done = torch.empty(pixels.shape, dtype=getattr(torch, self.dtype))
        self.apply(pixels.numpy(), as_array(done))
        return done

    def on_device(self, pixels: torch.Tensor) -> torch.Tensor:
        """The floats of a uint8 tensor on its device and current stream; other tensors as they are.

        One pass of a Triton kernel where Triton is installed and the tensor is contiguous; torch's operations else.
        """
        import torch

        from deeplake_loader.kernels import triton

        if pixels.dtype != torch.uint8:
            return pixels

        if pixels.is_contiguous() and triton.engine_of(pixels) == "triton":
            flat, kind = self._flat(pixels.shape)
            done = triton.normalize(pixels.view(flat), self.mean, self.std, self.dtype, kind, source=kind)
            return done.view(pixels.shape)
        scale, shift = _factors(self, pixels.device)
        return pixels.to(torch.float32).mul_(scale).add_(shift).to(getattr(torch, self.dtype))


@cache  # a copy to the device would wait for those under way, at every batch
def _factors(step: Normalize, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    count = max(len(step.mean), len(step.std))
    mean, std = (numbers * (count // len(numbers)) for numbers in (step.mean, step.std))
    shape = (count, *[1] * (_BEHIND[step.layout] - 1))
    scale = torch.tensor([1 / (255 * s) for s in std], dtype=torch.float32, device=device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32, device=device)
    return scale.view(shape), shift.view(shape)


def to_bytes(transform: Image | Video) -> Image | Video:
    """The transform's first step: the same picture as uint8.

    >>> to_bytes(Image(size=8, dtype="float16")) == Image(size=8)
    True
    """
    if transform.dtype == "uint8":
        return transform
    return dataclasses.replace(transform, dtype="uint8", normalize=None)


class _Room(threading.local):
    """The bytes of the item that the thread is decoding."""

    kept: Array | None = None


_room = _Room()


def scratch(shape: tuple[int, ...]) -> Array:
    """A uint8 array that the calling thread's next call may hand out again."""
    size = math.prod(shape)
    if size > _KEPT_BYTES:
        return np.empty(shape, np.uint8)
    if _room.kept is None or _room.kept.size < size:
        _room.kept = np.empty(size, np.uint8)
    return _room.kept[:size].reshape(shape)


def as_array(tensor: torch.Tensor) -> Array:
    """A CPU tensor's memory as numpy sees it; bfloat16 as dtype "V2"."""
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view("V2")
    array: Array = tensor.numpy()
    return array
