"""Finds the compiled library, chooses an instruction set, and says which implementation runs and why.

The library is plain C reached through ctypes: it needs no Python headers and no numpy, one file serves every Python
version, and ctypes releases the GIL around each call. ``DEEPLAKE_KERNELS`` forces a choice:

* ``native``: the best instruction set the processor has; an error where there is no library (unset, it falls back);
* ``avx512``, ``avx2``, ``portable``: that instruction set, an error where it cannot run;
* ``python``: no library (numpy, google-crc32c and Pillow do the work).
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from deeplake_loader.errors import InputError

if TYPE_CHECKING:
    from array import array

ABI = 6
"""Raised with every change of the C functions, so that a library built from older sources is set aside, not called."""

LEVELS = ("portable", "avx2", "avx512")
_CHOICES = ("native", "avx512", "avx2", "portable", "python")
_VARIABLE = "DEEPLAKE_KERNELS"

_I32, _I64, _PTR = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
_SIGNATURES: dict[str, tuple[type, tuple[type, ...]]] = {
    "dl_crc32c": (ctypes.c_uint32, (_I32, ctypes.c_uint32, _PTR, _I64)),
    "dl_image_facts": (_I64, (_PTR, _I64)),
    "dl_scan_tar": (_I32, (_I32, _PTR, _PTR, _PTR, _PTR, _PTR, _PTR, _PTR, _I32)),
    "dl_crc32c_blocks": (type(None), (_I32, _PTR, _I64, _I64, _PTR, _I32)),
    "dl_parse_integers": (_I64, (_PTR, _I64, _PTR, _I64)),
    "dl_sort_unique": (_I64, (_PTR, _I64)),
    "dl_subtract": (type(None), (_PTR, _I64, _I64)),
    "dl_set_bits": (_I64, (_PTR, _I64, _I32, _PTR, _I64)),
    "dl_scores": (_I64, (_I32, _PTR, _I64, _I64, _I32, _PTR, _I32, _PTR, _I64, _PTR, _I32)),
    "dl_kth_best": (_I32, (_PTR, _I64, _I64, _I32, _PTR)),
    "dl_at_least": (_I64, (_PTR, _I64, ctypes.c_double, _I32, _PTR)),
    "dl_topk": (_I64, (_I32, _PTR, _PTR, _PTR)),
    "dl_reaching": (_I64, (_I32, _PTR, _PTR, _PTR, _PTR)),
    "dl_release": (type(None), (_PTR,)),
    "dl_read_batch": (_I32, (_I32, _I64, _PTR, _PTR, _PTR, _PTR, _PTR, _I64, _PTR, _PTR, _I32)),
    "dl_resize": (_I32, (_I32, _PTR, _PTR, _PTR)),
    "dl_normalize": (type(None), (_I32, _PTR, _PTR, _PTR, _PTR, _PTR, _I32)),
    "dl_normalize_yuv": (type(None), (_PTR, _PTR, _PTR, _PTR, _PTR, _PTR, _I32)),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """What runs: ``library`` (None: the Python fallback), ``level`` (an index of LEVELS) and why."""

    library: ctypes.CDLL | None
    level: int
    reason: str


@cache
def choice() -> Choice:
    """The implementation of this process, decided at the first call."""
    wanted = os.environ.get(_VARIABLE, "")
    if wanted not in ("", *_CHOICES):
        raise InputError(f"{_VARIABLE} is {wanted!r}; it can be {', '.join(_CHOICES)} or unset")
    if wanted == "python":
        return Choice(None, 0, f"{_VARIABLE}=python")
    library, problem = _load()
    if library is None:
        if wanted:
            raise InputError(f"{_VARIABLE} is {wanted!r}, but {problem}")
        return Choice(None, 0, problem)
    best = int(library.dl_level())
    if wanted in LEVELS:
        return _forced(library, wanted, best)
    return Choice(library, best, f"the best of {', '.join(LEVELS)} that this processor has")


def _forced(library: ctypes.CDLL, wanted: str, best: int) -> Choice:
    level = LEVELS.index(wanted)
    if level > best:
        raise InputError(f"{_VARIABLE} is {wanted!r}, but this processor goes up to {LEVELS[best]!r}")
    return Choice(library, level, f"{_VARIABLE}={wanted}")


def _load() -> tuple[ctypes.CDLL | None, str]:
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_kernels.so")
    if sys.byteorder != "little":
        return None, "the compiled kernels need a little-endian machine"
    if not os.path.exists(path):
        return None, f"{path} was not built; with a C compiler: python setup.py build_ext --inplace, or install again"
    try:
        library = ctypes.CDLL(path)
        found = int(library.dl_abi())
    except (OSError, AttributeError) as error:
        return None, f"{path} cannot be loaded: {error}"
    if found != ABI:
        return None, f"{path} was built from other sources (interface {found}, expected {ABI}); build it again"
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype = None if result is type(None) else result
        function.argtypes = arguments
    return library, ""


def backend() -> dict[str, str]:
    """Which implementation each operation runs on, and why under ``"reason"``.

    The values are ``native-avx512``, ``native-avx2``, ``native-portable``, or the Python package that does the work
    where there is no library (``numpy``, ``google-crc32c``, ``pillow``, ``python``).

    >>> sorted(backend())[:3]
    ['at_least', 'crc32c', 'crc32c_blocks']
    """
    chosen = choice()
    found = {"reason": chosen.reason}
    for name, (best, fallback) in _OPERATIONS.items():
        found[name] = f"native-{LEVELS[min(best, chosen.level)]}" if chosen.library else fallback
    return found


_OPERATIONS = {  # the highest level that has code of its own, and the fallback
    "crc32c": (2, "google-crc32c"),
    "crc32c_blocks": (2, "google-crc32c"),
    "parse_integers": (0, "python"),
    "split": (0, "numpy"),
    "set_bits": (0, "numpy"),
    "scores": (2, "numpy"),
    "kth_best": (0, "numpy"),
    "at_least": (0, "numpy"),
    "reaching": (2, "numpy"),
    "topk": (2, "numpy"),
    "read_batch": (2, "google-crc32c"),
    "scan_tar": (2, "python"),
    "image_facts": (0, "python"),
    "resize_into": (2, "pillow"),
    "normalize": (2, "numpy"),
    "normalize_yuv": (0, "numpy"),
}


def address(numbers: array[int] | array[float]) -> int:
    """Where the items of an array.array lie."""
    return numbers.buffer_info()[0]
