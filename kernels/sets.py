"""Sets of row numbers: a list of addresses taken apart by file, and bitmaps of the rows of one file."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING

from deeplake_loader.errors import InputError

from . import fallback
from .buffers import INT64, Pin, items
from .library import address, choice

if TYPE_CHECKING:
    from typing_extensions import Buffer


def split(numbers: array[int], bits: int) -> list[tuple[int, array[int]]]:
    """(upper part, lower ``bits`` bits of all numbers with it): ascending, each number once. int64, none negative.

    ``numbers`` are the caller's to give away: they are sorted in place.

    >>> from array import array
    >>> [(upper, lower.tolist()) for upper, lower in split(array("q", [9, 17, 8, 9]), 3)]
    [(1, [0, 1]), (2, [1])]
    """
    items("numbers", numbers, INT64, "int64 numbers")
    unique = _sort_unique(numbers)
    if len(unique) and min(unique[0], unique[-1]) < 0:
        raise InputError(f"numbers hold {min(unique[0], unique[-1])}; expected none below zero")
    parts, start = [], 0
    while start < len(unique):
        upper = unique[start] >> bits
        stop = bisect_left(unique, (upper + 1) << bits, start)
        lower = unique[start:stop]
        _subtract(lower, upper << bits)
        parts.append((upper, lower))
        start = stop
    return parts


def _sort_unique(numbers: array[int]) -> array[int]:
    library = choice().library
    if library is None:
        return fallback.sort_unique(numbers)
    kept = library.dl_sort_unique(address(numbers), len(numbers))
    if kept < 0:
        raise MemoryError(f"no memory to sort {len(numbers)} numbers")
    return numbers if kept == len(numbers) else numbers[:kept]


def _subtract(numbers: array[int], base: int) -> None:
    library = choice().library
    if library is None:
        numbers[:] = array("q", [number - base for number in numbers])
    else:
        library.dl_subtract(address(numbers), len(numbers), base)


def set_bits(bitmap: bytearray, numbers: Buffer, *, on: bool = True) -> int:
    """How many bits changed when those of ``numbers`` (int64) were set, or cleared: bit i % 8 of byte i // 8.

    >>> from array import array
    >>> bits = bytearray(2)
    >>> set_bits(bits, array("q", [0, 9, 9])), bits.hex()
    (2, '0102')
    """
    view = items("numbers", numbers, INT64, "int64 numbers")
    chosen = choice()
    if chosen.library is None:
        return fallback.set_bits(bitmap, view, on)
    with Pin("bitmap", bitmap, writable=True) as bits, Pin("numbers", view) as pin:
        size = 8 * bits.nbytes
        changed = int(chosen.library.dl_set_bits(pin.address, pin.nbytes // 8, on, bits.address, size))
    if changed < 0:
        raise InputError(f"numbers[{-1 - changed}] is {view[-1 - changed]}; the bitmap has bits 0..{size - 1}")
    return changed
