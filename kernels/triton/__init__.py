"""Search and normalising on a CUDA device: Triton kernels, or torch's operations where Triton is missing.

Nothing imports this package unless it is asked for: torch comes with it. The meaning is that of the CPU forms, with
tensors in and out; scores are the same to the last bit. ``TRITON_INTERPRET=1``, set before Python starts, runs the
kernels on CPU tensors, slowly: that is how they are tested without a device.
"""

from __future__ import annotations

from .normalize import normalize, normalize_yuv
from .problem import engine_of
from .search import row_norms, topk

__all__ = ["engine_of", "normalize", "normalize_yuv", "row_norms", "topk"]
