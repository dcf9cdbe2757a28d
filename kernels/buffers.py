"""The address of any buffer (bytes, mmap, array.array, numpy), read-only ones included, without importing numpy.

ctypes gives addresses of writable buffers only, and mmaps of shards are read-only; so the buffer protocol itself is
asked, through the C functions that Python exports. The structure is part of Python's stable interface since 3.11.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from deeplake_loader.errors import InputError, TypeMismatchError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Buffer

INT64 = "ql"
INT32 = "i"
FLOAT64 = "d"


class _View(ctypes.Structure):
    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get = ctypes.pythonapi.PyObject_GetBuffer
_get.argtypes = (ctypes.py_object, ctypes.POINTER(_View), ctypes.c_int)
_get.restype = ctypes.c_int
_release = ctypes.pythonapi.PyBuffer_Release
_release.argtypes = (ctypes.POINTER(_View),)
_release.restype = None
_WRITABLE = 1  # PyBUF_WRITABLE; 0 is PyBUF_SIMPLE: contiguous bytes


class Pin:
    """Holds a buffer still inside a ``with`` block: ``address`` and ``nbytes`` of its contiguous bytes."""

    __slots__ = ("_view", "address", "nbytes")

    def __init__(self, name: str, data: Buffer, *, writable: bool = False) -> None:
        self._view = _View()
        try:
            _get(data, ctypes.byref(self._view), _WRITABLE if writable else 0)
        except (TypeError, BufferError, ValueError) as error:
            wanted = "a writable contiguous buffer" if writable else "a contiguous buffer"
            raise TypeMismatchError(f"{name} is {type(data).__name__}; expected {wanted} ({error})") from error
        self.address: int = self._view.buf or 0
        self.nbytes: int = self._view.len

    def __enter__(self) -> Pin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _release(ctypes.byref(self._view))


def items(name: str, data: Buffer, formats: str, what: str) -> memoryview:
    """``data`` as a memoryview whose items have one of the struct letters ``formats`` (``what``, in words)."""
    try:
        view = memoryview(data)
    except TypeError as error:
        raise TypeMismatchError(f"{name} is {type(data).__name__}; expected a buffer of {what}") from error
    if view.format.lstrip("@=<") not in tuple(formats) or not view.c_contiguous:
        found = f"{'contiguous' if view.c_contiguous else 'strided'} items of format {view.format!r}"
        raise TypeMismatchError(f"{name} has {found}; expected contiguous {what}")
    return view


def flat(name: str, data: Buffer) -> memoryview:
    """The bytes of ``data`` as one memoryview."""
    try:
        return memoryview(data).cast("B")
    except (TypeError, ValueError, NotImplementedError) as error:
        raise TypeMismatchError(f"{name} is {type(data).__name__}; expected a contiguous buffer ({error})") from error


def same_length(**views: memoryview) -> int:
    """The common number of items of the arguments named."""
    counts = {name: view.nbytes // view.itemsize for name, view in views.items()}
    if len(set(counts.values())) != 1:
        raise InputError(f"the arguments differ in length: {counts}; give one entry per item in each")
    return next(iter(counts.values()))
