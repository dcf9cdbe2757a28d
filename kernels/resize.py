"""Antialiased resize straight into a batch: one pass from the decoded image to its slot, crop and flip included."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Literal

from deeplake_loader.errors import DimensionError, InputError, TypeMismatchError

from . import fallback
from .library import choice

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Box = tuple[float, float, float, float]

Layout = Literal["CHW", "HWC"]
Interpolation = Literal["nearest", "area", "bilinear", "bicubic", "lanczos"]
INTERPOLATIONS: tuple[Interpolation, ...] = ("nearest", "area", "bilinear", "bicubic", "lanczos")

MAX_SIDE = 1 << 20  # keeps the sizes of the filter tables far from overflow


def resize_into(
    source: NDArray[np.uint8],
    target: NDArray[np.uint8],
    *,
    box: Box | None = None,
    flip: bool = False,
    layout: Layout = "CHW",
    interpolation: Interpolation = "bilinear",
    antialias: bool = True,
) -> None:
    """Fills ``target`` with ``source`` resized to its size: within one grey level of Pillow under the same filter,
    except where Pillow cuts off what a cubic or a Lanczos filter puts beyond black and white in another order.

    ``source`` is (height, width, 1 to 4 channels) uint8, its pixels contiguous within a row; ``target`` a writable
    uint8 view, (C, H, W) or, with ``layout="HWC"``, (H, W, C), of any strides. ``box`` = (x0, y0, x1, y1) crops the
    source first, in pixels, fractions allowed; ``flip`` mirrors left and right. ``interpolation``: Pillow's NEAREST
    (equal), BOX ("area"), BILINEAR, BICUBIC (a = -0.5) or LANCZOS (three lobes). ``antialias`` widens the filter when
    reducing, as Pillow does; without it each target pixel sees only the source pixels at its centre, as torch's
    ``interpolate`` does.

    >>> import numpy as np
    >>> slot = np.zeros((3, 2, 2), np.uint8)
    >>> resize_into(np.full((4, 4, 3), 7, np.uint8), slot, flip=True)
    >>> slot.ravel().tolist()
    [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]
    """
    crop, view = _checked(source, target, box, layout)
    if interpolation not in INTERPOLATIONS:
        raise InputError(f"interpolation is {interpolation!r}; expected one of {', '.join(INTERPOLATIONS)}")
    if flip:
        view = view[:, ::-1]
    chosen = choice()
    if chosen.library is None:
        view[...] = fallback.resize(source, (view.shape[0], view.shape[1]), crop, interpolation, antialias)
        return
    shape = _Shape(
        *source.shape, *view.shape[:2], source.strides[0], *view.strides, *crop,
        INTERPOLATIONS.index(interpolation), antialias,
    )  # fmt: skip
    if chosen.library.dl_resize(chosen.level, source.ctypes.data, view.ctypes.data, ctypes.byref(shape)):
        raise MemoryError(f"no memory to resize {source.shape} to {view.shape}")


def _checked(
    source: NDArray[np.uint8], target: NDArray[np.uint8], box: Box | None, layout: Layout
) -> tuple[Box, NDArray[np.uint8]]:
    """The box, and the target as an (H, W, C) view."""
    for name, image in (("source", source), ("target", target)):
        if image.ndim != 3 or image.dtype.str != "|u1":
            raise TypeMismatchError(f"{name} is {image.ndim}-D {image.dtype}; expected 3-D uint8")
    if not target.flags.writeable:
        raise TypeMismatchError("target is read-only; expected a writable view")
    if layout not in ("CHW", "HWC"):
        raise InputError(f"layout is {layout!r}; expected 'CHW' or 'HWC'")
    view = target.transpose(1, 2, 0) if layout == "CHW" else target
    height, width, channels = source.shape
    if not (1 <= channels <= 4 and view.shape[2] == channels and source[:1].flags.c_contiguous):
        raise DimensionError(
            f"source {source.shape} with strides {source.strides} cannot fill {layout} {target.shape}; "
            "expected the same 1 to 4 channels and contiguous pixels"
        )
    if min(height, width, *view.shape) < 1 or max(height, width, *view.shape) > MAX_SIDE:
        raise DimensionError(f"source {source.shape} to {layout} {target.shape}: expected sides of 1..{MAX_SIDE}")
    x0, y0, x1, y1 = box or (0.0, 0.0, float(width), float(height))
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise InputError(f"box {box} is not inside an image of {width} x {height} (x0, y0, x1, y1)")
    return (x0, y0, x1, y1), view


class _Shape(ctypes.Structure):
    """The arguments of dl_resize; the order is that of the C structure."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("height", "width", "channels", "out_height", "out_width")),
        *((name, ctypes.c_int64) for name in ("row_stride", "out_y_stride", "out_x_stride", "out_c_stride")),
        *((name, ctypes.c_double) for name in ("x0", "y0", "x1", "y1")),
        *((name, ctypes.c_int64) for name in ("kind", "antialias")),
    )
