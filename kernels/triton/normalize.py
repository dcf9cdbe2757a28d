"""uint8 pixels and 4:2:0 frames to normalised floats on a device, in one pass; by torch where Triton is missing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deeplake_loader.errors import DimensionError, InputError, TypeMismatchError

from ..normalize import FLOAT_TYPES, FloatType, Matrix, Range, factors, yuv_factors
from ..resize import Layout
from .problem import engine_of


def normalize(
    batch: torch.Tensor,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    dtype: FloatType = "float32",
    layout: Layout = "CHW",
    *,
    source: Layout = "HWC",
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """(N, C, H, W) floats, or (N, H, W, C) with ``layout="HWC"``: (value / 255 - mean) / std of each uint8 pixel.

    ``kernels.normalize`` on the batch's device and its current stream: one float32 multiply-add for each value, then
    rounded once more for float16 and bfloat16 (by torch, without Triton: two roundings). ``batch``: (N, H, W, C), or
    (N, C, H, W) with ``source="CHW"``; 1 to 4 channels. ``mean``, ``std``: one number, or one for each channel, in
    units of 0..1. ``out``: a contiguous tensor of the result's shape and type to fill.

    >>> import torch
    >>> normalize(torch.full((1, 2, 2, 3), 255, dtype=torch.uint8), 0.5, 0.5)[0, 0].tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    _check_bytes("batch", batch, 4)
    if source not in ("CHW", "HWC") or layout not in ("CHW", "HWC"):
        raise InputError(f"source is {source!r} and layout {layout!r}; expected 'CHW' or 'HWC'")
    pixels = batch.permute(0, 2, 3, 1) if source == "CHW" else batch
    count, height, width, channels = pixels.shape
    if not 1 <= channels <= 4:
        raise DimensionError(f"batch {tuple(batch.shape)} has {channels} channels as {source}; expected 1 to 4")
    scale, shift = factors(mean, std, channels)
    target = _target(out, (count, channels, height, width) if layout == "CHW" else pixels.shape, dtype, batch.device)
    view = target.permute(0, 2, 3, 1) if layout == "CHW" else target
    if not target.numel():
        return target
    if engine_of(batch) == "torch":
        view.copy_(_scaled(pixels.float(), scale, shift))
        return target
    from . import pixels as kernels

    kernels.normalize(pixels if _one_pass(pixels) else pixels.contiguous(), view, scale, shift)
    return target


def normalize_yuv(
    y: torch.Tensor,
    u: torch.Tensor,
    v: torch.Tensor,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    dtype: FloatType = "float32",
    layout: Layout = "CHW",
    *,
    matrix: Matrix,
    range: Range,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """(N, 3, H, W) floats, or (N, H, W, 3) with ``layout="HWC"``, of 4:2:0 frames: RGB, then ``normalize``.

    ``kernels.normalize_yuv`` on the frames' device. ``y``: (N, H, W) uint8; ``u``, ``v``: (N, ceil(H / 2),
    ceil(W / 2)) uint8, any strides: NV12's interleaved chroma is ``chroma[..., 0]`` and ``chroma[..., 1]``.
    ``matrix`` and ``range`` come from the stream. Each chroma sample stands for its 2 x 2 pixels. ``out``: a
    contiguous tensor to fill. Within 1e-5 / std of ``reference.yuv_to_rgb`` normalised.

    >>> import torch
    >>> y, grey = torch.full((1, 2, 2), 235, dtype=torch.uint8), torch.full((1, 1, 1), 128, dtype=torch.uint8)
    >>> round(normalize_yuv(y, grey, grey, 0, 1, matrix="bt709", range="limited")[0, 0, 0, 0].item(), 5)
    1.0
    """
    for name, plane in (("y", y), ("u", u), ("v", v)):
        _check_bytes(name, plane, 3)
    count, height, width = y.shape
    small = (count, (height + 1) // 2, (width + 1) // 2)
    if u.shape != small or v.shape != small or not y.device == u.device == v.device:
        raise DimensionError(
            f"u {tuple(u.shape)} and v {tuple(v.shape)} do not go with y {tuple(y.shape)}; expected {small}"
        )
    if layout not in ("CHW", "HWC"):
        raise InputError(f"layout is {layout!r}; expected 'CHW' or 'HWC'")
    numbers = yuv_factors(matrix, range, mean, std)
    target = _target(out, (count, 3, height, width) if layout == "CHW" else (count, height, width, 3), dtype, y.device)
    view = target.permute(0, 2, 3, 1) if layout == "CHW" else target
    if not target.numel():
        return target
    if engine_of(y) == "torch":
        view.copy_(_scaled(_rgb(y, u, v, numbers), numbers[6:9], numbers[9:]))
        return target
    from . import pixels as kernels

    kernels.normalize_yuv((y, u, v), view, numbers)
    return target


def _check_bytes(name: str, tensor: torch.Tensor, dimensions: int) -> None:
    if tensor.ndim != dimensions or tensor.dtype != torch.uint8:
        raise TypeMismatchError(f"{name} is {tensor.ndim}-D {tensor.dtype}; expected {dimensions}-D uint8")


def _target(out: torch.Tensor | None, shape: Sequence[int], dtype: FloatType, device: torch.device) -> torch.Tensor:
    if dtype not in FLOAT_TYPES:
        raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(FLOAT_TYPES)}")
    kind: torch.dtype = getattr(torch, dtype)
    if out is None:
        return torch.empty(tuple(shape), dtype=kind, device=device)
    if out.dtype != kind or out.device != device or not out.is_contiguous():
        found = f"{'' if out.is_contiguous() else 'strided '}{out.dtype} on {out.device}"
        raise TypeMismatchError(f"out is {found}; expected contiguous {kind} on {device}")
    if out.shape != tuple(shape):
        raise DimensionError(f"out is {tuple(out.shape)}; expected {tuple(shape)}")
    return out


def _one_pass(pixels: torch.Tensor) -> bool:
    """Whether one stride leads from each pixel of (N, H, W, C) to the next, over the ends of rows too."""
    return pixels.shape[1] == 1 or pixels.stride(1) == pixels.shape[2] * pixels.stride(2)


def _scaled(pixels: torch.Tensor, scale: list[float], shift: list[float]) -> torch.Tensor:
    return pixels * torch.tensor(scale, device=pixels.device) + torch.tensor(shift, device=pixels.device)


def _rgb(y: torch.Tensor, u: torch.Tensor, v: torch.Tensor, numbers: list[float]) -> torch.Tensor:
    """(N, H, W, 3) float32 in 0..255."""
    height, width = y.shape[1:]
    blue, red = (p.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :height, :width].float() - 128.0 for p in (u, v))
    luma = y.float() * numbers[0] + numbers[1]
    green = luma + numbers[3] * blue + numbers[4] * red
    return torch.stack([luma + numbers[2] * red, green, luma + numbers[5] * blue], dim=3).clamp(0, 255)
