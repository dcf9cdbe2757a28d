"""Matrices kept on a torch device from one search to the next, current as rows arrive.

A sealed file never changes: it crosses to the device once, as it is. Of a file that still grows, the new rows follow.
The search there is that of ``kernels.triton``, whose scores are those of the CPU to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deeplake_loader.errors import InputError
from deeplake_loader.search.engine import as_array

if TYPE_CHECKING:
    import numpy as np
    import torch

    from deeplake_loader.matrices import Matrix
    from deeplake_loader.scoring import Metric
    from deeplake_loader.search.candidates import Part

_CHUNK = 64 << 20  # bytes that cross at a time: what is verified is then still in the cache


@dataclass(slots=True)
class _Held:
    rows: torch.Tensor
    norms: torch.Tensor


class TorchDevice:
    """One device of torch and the matrices that lie there."""

    def __init__(self, name: str) -> None:
        import torch

        try:
            self._device = torch.device(name)
            torch.empty(0, device=self._device).cpu()  # from "meta" nothing comes back
        except (RuntimeError, AssertionError, TypeError) as error:
            raise InputError(f"device={name!r} cannot be used: {error}; device='cpu' always can") from error
        self._held: dict[int, _Held] = {}

    def best(
        self, file: int, matrix: Matrix, part: Part, queries: np.ndarray, k: int, metric: Metric
    ) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers (q, k) int64 and exact scores (q, k), best first, -1 and NaN where there is none."""
        import torch

        from deeplake_loader.kernels.triton import topk  # type: ignore[import-not-found, unused-ignore]

        held, count = self._current(file, matrix), part.last + 1
        rows = bitmap = None
        if part.rows is not None and part.count < count:
            rows = torch.frombuffer(bytearray(part.rows), dtype=torch.int64).to(self._device)
        elif part.bitmap is not None and part.count < count:
            bitmap = torch.frombuffer(bytearray(part.bitmap), dtype=torch.uint8).to(self._device)
        asked = torch.tensor(queries, device=self._device)
        found, scores = topk(held.rows[:count], asked, k, metric, rows=rows, bitmap=bitmap, norms=held.norms[:count])
        return found.cpu().numpy(), scores.cpu().numpy()

    def _current(self, file: int, matrix: Matrix) -> _Held:
        """The file's rows on the device, those that came since the last search added."""
        import torch

        from deeplake_loader.kernels.triton import row_norms  # type: ignore[import-not-found, unused-ignore]

        held = self._held.get(file)
        have = 0 if held is None else len(held.rows)
        if held is None or have < matrix.count:
            fresh = self._sent(matrix, have)
            norms = row_norms(fresh)
            if held is not None:
                fresh, norms = torch.cat([held.rows, fresh]), torch.cat([held.norms, norms])
            held = self._held[file] = _Held(fresh, norms)
        return held

    def _sent(self, matrix: Matrix, first: int) -> torch.Tensor:
        """The rows from ``first`` on, verified and copied to the device."""
        import torch

        kind = torch.float16 if matrix.layout.dtype == "float16" else torch.float32
        out = torch.empty((matrix.count - first, matrix.layout.dimension), dtype=kind, device=self._device)
        rows, step = as_array(matrix), max(1, _CHUNK // matrix.layout.stride)
        for start in range(first, matrix.count, step):
            stop = min(start + step, matrix.count)
            matrix.verify(range(start, stop))
            out[start - first : stop - first] = torch.tensor(rows[start:stop])
        return out

    def forget(self) -> None:
        """Gives the device's memory back."""
        self._held.clear()
