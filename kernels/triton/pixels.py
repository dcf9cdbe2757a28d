"""Pixels to normalised floats as Triton kernels: every byte is read once, every float written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 1024
"""Bytes of a program whose bytes stay in place: 8 to a thread."""

_RUN = 512
"""Pixels of a program that moves channels: 4 to a thread, so that its single bytes are read from few cache lines."""


@triton.jit
def _of_channel(channel, a0, a1, a2, a3):
    """The number of each channel."""
    return tl.where(channel == 0, a0, tl.where(channel == 1, a1, tl.where(channel == 2, a2, a3)))


@triton.jit
def in_place_kernel(
    PIXELS, OUT, size, a0, a1, a2, a3, b0, b1, b2, b3, CHANNELS: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr
):
    """Bytes whose places stay: a plane of ``size`` pixels, or with LAST a run of pixels of all channels."""
    plane = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if LAST:
        at = plane * BLOCK + tl.arange(0, BLOCK)
        channel = at % CHANNELS
        plane = plane * 0
    else:
        channel = plane % CHANNELS
    value = tl.load(PIXELS + plane * size + at, mask=at < size, other=0).to(tl.float32)
    value = tl.fma(value, tl.zeros_like(value) + _of_channel(channel, a0, a1, a2, a3),
                   tl.zeros_like(value) + _of_channel(channel, b0, b1, b2, b3))  # fmt: skip
    tl.store(OUT + plane * size + at, value.to(OUT.dtype.element_ty), mask=at < size)


@triton.jit
def moving_kernel(
    PIXELS, OUT, size, in_image, in_channel, in_pixel, out_image, out_channel, out_pixel,
    a0, a1, a2, a3, b0, b1, b2, b3, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A run of one image's pixels, all channels, from one layout to another."""
    image = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    for channel in tl.static_range(CHANNELS):
        value = tl.load(PIXELS + image * in_image + channel * in_channel + at * in_pixel, mask=at < size, other=0)
        a, b = _of_channel(channel, a0, a1, a2, a3), _of_channel(channel, b0, b1, b2, b3)
        value = tl.fma(value.to(tl.float32), tl.zeros((BLOCK,), tl.float32) + a, tl.zeros((BLOCK,), tl.float32) + b)
        place = OUT + image * out_image + channel * out_channel + at * out_pixel
        tl.store(place, value.to(OUT.dtype.element_ty), mask=at < size)


@triton.jit
def yuv_kernel(
    Y, U, V, OUT, height, width, y_image, y_row, y_pixel, u_image, u_row, u_pixel, v_image, v_row, v_pixel,
    out_image, out_channel, out_pixel, luma, foot, red_v, green_u, green_v, blue_u, a0, a1, a2, b0, b1, b2,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A run of one 4:2:0 frame's pixels to RGB, cut off at 0..255, normalised."""
    image = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < height * width
    row, column = at // width, at % width
    y = tl.load(Y + image * y_image + row.to(tl.int64) * y_row + column * y_pixel, mask=inside, other=0)
    down, across = (row >> 1).to(tl.int64), column >> 1
    u = tl.load(U + image * u_image + down * u_row + across * u_pixel, mask=inside, other=0).to(tl.float32) - 128.0
    v = tl.load(V + image * v_image + down * v_row + across * v_pixel, mask=inside, other=0).to(tl.float32) - 128.0
    level = y.to(tl.float32) * luma + foot
    for channel in tl.static_range(3):
        if channel == 0:
            value = level + red_v * v
        elif channel == 1:
            value = level + green_u * u + green_v * v
        else:
            value = level + blue_u * u
        value = tl.minimum(tl.maximum(value, 0.0), 255.0)
        value = value * _of_channel(channel, a0, a1, a2, a2) + _of_channel(channel, b0, b1, b2, b2)
        place = OUT + image * out_image + channel * out_channel + at.to(tl.int64) * out_pixel
        tl.store(place, value.to(OUT.dtype.element_ty), mask=inside)


def normalize(pixels: torch.Tensor, out: torch.Tensor, scale: list[float], shift: list[float]) -> None:
    """``out`` from ``pixels``, both (N, H, W, C) views of whatever strides let one pixel follow the other."""
    count, height, width, channels = pixels.shape
    size = height * width
    padding = [0.0] * (4 - channels)
    numbers = (*scale, *padding, *shift, *padding)
    if pixels.is_contiguous() and out.is_contiguous():
        blocks = triton.cdiv(count * size * channels, _BLOCK)
        in_place_kernel[(blocks, 1)](
            pixels, out, count * size * channels, *numbers, channels, True, _BLOCK, enable_fp_fusion=True
        )
    elif pixels.permute(0, 3, 1, 2).is_contiguous() and out.permute(0, 3, 1, 2).is_contiguous():
        grid = (count * channels, triton.cdiv(size, _BLOCK))
        in_place_kernel[grid](pixels, out, size, *numbers, channels, False, _BLOCK, enable_fp_fusion=True)
    else:
        moving_kernel[(count, triton.cdiv(size, _RUN))](
            pixels, out, size, pixels.stride(0), pixels.stride(3), pixels.stride(2), out.stride(0), out.stride(3),
            out.stride(2), *numbers, channels, _RUN, enable_fp_fusion=True,
        )  # fmt: skip


def normalize_yuv(planes: tuple[torch.Tensor, ...], out: torch.Tensor, numbers: list[float]) -> None:
    """``out``, an (N, H, W, 3) view, from Y (N, H, W), U and V; ``numbers``: ``yuv_factors``."""
    count, height, width = planes[0].shape
    strides = [stride for plane in planes for stride in plane.stride()]
    yuv_kernel[(count, triton.cdiv(height * width, _RUN))](
        *planes,
        out,
        height,
        width,
        *strides,
        out.stride(0),
        out.stride(3),
        out.stride(2),
        *numbers,
        _RUN,
        enable_fp_fusion=True,
    )
