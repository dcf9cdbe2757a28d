"""Lists and bitmaps of rows, in every implementation, against Python's own sets."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_backends import NAMES, using

from deeplake_loader import kernels
from deeplake_loader.errors import InputError

NUMBERS = st.lists(st.integers(0, 2**53 - 1) | st.integers(0, 40) | st.integers(1 << 30, (1 << 30) + 40), max_size=200)


@pytest.mark.parametrize("name", NAMES)
@given(NUMBERS)
def test_a_list_is_taken_apart_by_its_upper_part(name: str, numbers: list[int]) -> None:
    with using(name):
        parts = kernels.split(array("q", numbers), 30)
    assert [(upper << 30) + lower for upper, lowers in parts for lower in lowers] == sorted(set(numbers))
    assert [upper for upper, _ in parts] == sorted({n >> 30 for n in numbers})


@pytest.mark.parametrize("name", NAMES)
def test_numbers_below_zero_are_refused(name: str) -> None:
    with using(name):
        for numbers in ([-1], [3, -5, 7], [-3, 4]):
            with pytest.raises(InputError, match=str(min(numbers))):
                kernels.split(array("q", numbers), 30)


@pytest.mark.parametrize("name", NAMES)
@given(st.lists(st.integers(0, 71)), st.lists(st.integers(0, 71)))
def test_bits_are_set_and_cleared_and_counted(name: str, numbers: list[int], cleared: list[int]) -> None:
    bitmap = bytearray(9)
    with using(name):
        assert kernels.set_bits(bitmap, array("q", numbers)) == len(set(numbers))
        gone = kernels.set_bits(bitmap, array("q", cleared), on=False)
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
    assert set(np.flatnonzero(bits).tolist()) == set(numbers) - set(cleared)
    assert gone == len(set(numbers) & set(cleared))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [-1, 16, 2**40])
def test_a_bit_outside_the_bitmap_is_refused(name: str, number: int) -> None:
    with using(name), pytest.raises(InputError, match=rf"numbers\[1\] is {number}"):
        kernels.set_bits(bytearray(2), array("q", [0, number]))
