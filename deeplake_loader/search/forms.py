"""How a scan copy holds the rows of a float32 file in fewer bytes, and how far each row is then off.

``float16``: each element rounded, 2 bytes. ``int8``: each element a whole number from -127 to 127 of a step that is the
row's own, its largest element / 127; the steps, float32, are kept beside the rows. The row that is held is that number
times the step, rounded to float32: what the kernels score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from deeplake_loader.errors import InputError
from deeplake_loader.matrices import Layout

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["float16", "int8"]

_MOST = 127  # the largest whole number of an int8 row: -128 has no opposite


@dataclass(frozen=True, slots=True)
class Held:
    """Rows as a copy holds them: ``stored`` (n, d), ``steps`` (n,) float32 of int8 rows, and what they stand for,
    ``values`` (n, d) float64."""

    stored: np.ndarray
    steps: np.ndarray | None
    values: np.ndarray


@dataclass(frozen=True, slots=True)
class Form:
    """One kind of copy.

    ``suffix`` of its files, the ``magic`` in them, the ``layout`` of a file of some dimension, ``step_bytes`` a row
    beside the rows, the ``worst`` relative error of a row with which a copy is of use, and ``hold``, which makes rows
    (n, d) float32 what a copy holds.
    """

    kind: Kind
    suffix: str
    magic: bytes
    layout: Callable[[int], Layout]
    step_bytes: int
    worst: float
    hold: Callable[[np.ndarray], Held]


class Bytes(Layout):
    """The shape of a row of int8; ``dtype`` is that of the values, each a byte times the row's step."""

    __slots__ = ()

    @property
    def stride(self) -> int:
        """Bytes per row."""
        return self.dimension

    def header(self, count: int) -> bytes:
        """The first 128 bytes of a .npy of that many rows."""
        return Layout(self.dimension, "float32").header(count).replace(b"'<f4'", b"'|i1'")


def _halves(rows: np.ndarray) -> Held:
    import numpy as np

    with np.errstate(over="ignore"):
        halves = rows.astype("<f2")
    return Held(halves, None, halves.astype(np.float64))


def _bytes(rows: np.ndarray) -> Held:
    import numpy as np

    with np.errstate(all="ignore"):
        steps = (np.abs(rows).max(axis=1) / np.float32(_MOST)).astype("<f4")
        steps[~np.isfinite(steps)] = np.nan  # a row with NaN or infinity has no score in the copy either
        wholes = np.nan_to_num(np.rint(rows / steps[:, None]), nan=0, posinf=0, neginf=0)  # all zero: 0 / 0
        stored = np.clip(wholes, -_MOST, _MOST).astype(np.int8)
        return Held(stored, steps, (stored.astype(np.float32) * steps[:, None]).astype(np.float64))


FORMS: dict[str, Form] = {
    # 1 in 500: eight times the error of rows within float16's normal range
    "float16": Form("float16", "f16", b"dl-f16\x01\n", lambda d: Layout(d, "float16"), 0, 1 / 500, _halves),
    # 1 in 30: six times that of the flattest rows; with more, few searches would be settled by the copy
    "int8": Form("int8", "i8", b"dl-i8\x01\n\n", lambda d: Bytes(d, "float32"), 4, 1 / 30, _bytes),
}


def form_of(scan_copies: bool | str) -> Form | None:
    """What ``optimize(scan_copies=...)`` asks for: True is float16, False is None.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(scan_copies, bool):
        return FORMS["float16"] if scan_copies else None
    if scan_copies not in FORMS:
        raise InputError(f"scan_copies is {scan_copies!r}; expected True, False, {' or '.join(map(repr, FORMS))}")
    return FORMS[scan_copies]
