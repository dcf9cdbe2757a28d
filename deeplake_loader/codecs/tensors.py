"""TENSOR values: numpy's .npy file, written and read without numpy's parser.

bfloat16, which numpy lacks, is stored under the descriptor '|V2' (two raw bytes, little-endian), as the ml_dtypes
package does: ``numpy.load(f).view(ml_dtypes.bfloat16)`` or
``torch.from_numpy(numpy.load(f).view("uint16")).view(torch.bfloat16)``.
"""

from __future__ import annotations

import math
import re
import struct
from typing import TYPE_CHECKING, Any

from deeplake_loader.codecs.info import Encoded, MediaInfo
from deeplake_loader.codecs.sources import describe, read_source, to_array
from deeplake_loader.errors import CorruptionError, DimensionError, MediaError, TypeMismatchError
from deeplake_loader.types import ColumnType

if TYPE_CHECKING:
    import numpy as np
    import torch

    Array = np.ndarray[Any, np.dtype[Any]]

MAGIC = b"\x93NUMPY"
_NAMES = {
    "b1": "bool", "u1": "uint8", "i1": "int8", "u2": "uint16", "i2": "int16", "u4": "uint32", "i4": "int32",
    "u8": "uint64", "i8": "int64", "f2": "float16", "V2": "bfloat16", "f4": "float32", "f8": "float64",
    "c8": "complex64", "c16": "complex128",
}  # fmt: skip
_HEADER = re.compile(r"\{'descr': '([<>|][A-Za-z]\d+)', 'fortran_order': (False|True), 'shape': \(([\d, ]*)\), \} *\n?")
_MAX_HEADER = 10_000  # numpy's own limit for what it will parse


def encode_tensor(type: ColumnType, value: object, where: str, *, check: bool = True) -> Encoded:
    """The tensor as .npy bytes; dtype and shape must be exactly the column's. Bytes and paths must hold a .npy file."""
    array = to_array(value, where)
    if array is not None:
        dtype = _dtype_name(array.dtype.str, where)
        _check_type(type, dtype, array.shape, where)
        data, shape = _write(array), tuple(array.shape)
    else:
        data = _source(type, value, where)
        if not check:
            return Encoded(data, "npy", MediaInfo("tensor", codec="npy"))
        dtype, shape = _check_file(type, data, where)
    return Encoded(data, "npy", MediaInfo("tensor", codec="npy", dtype=dtype, shape=shape))


def _source(type: ColumnType, value: object, where: str) -> bytes:
    data = read_source(value, where)
    if data is None:
        raise TypeMismatchError(
            f"{where} expects {type}, got {describe(value)}; pass a numpy array, a torch tensor, or .npy bytes or path"
            f" (numpy.asarray(value, dtype={type.dtype or 'float32'!r}) makes one of nested lists)"
        )
    return data


def _dtype_name(descriptor: str, where: str) -> str:
    name = _NAMES.get(descriptor[1:])
    if name is None:
        raise TypeMismatchError(
            f"{where}: tensors of dtype {descriptor!r} cannot be stored; use one of {', '.join(_NAMES.values())}"
        )
    return name


def _check_type(type: ColumnType, dtype: str, shape: tuple[int, ...], where: str) -> None:
    if type.dtype is not None and dtype != type.dtype:
        raise TypeMismatchError(f"{where} expects {type}, got dtype {dtype}; convert the value to {type.dtype} first")
    expected = type.shape
    if expected is None:
        return
    if len(shape) != len(expected) or any(e is not None and e != s for e, s in zip(expected, shape, strict=False)):
        raise DimensionError(
            f"{where} expects {type}, got shape {shape}; reshape the value or change the column's type"
        )


def _write(array: Array) -> bytes:
    """The bytes ``numpy.save`` would write for the C-ordered array, the data at a multiple of 64 bytes."""
    import numpy as np

    descriptor = array.dtype.str
    if descriptor.startswith(">"):
        array = array.astype(array.dtype.newbyteorder("<"))
        descriptor = array.dtype.str
    shape = f"({', '.join(map(str, array.shape))}{',' if array.ndim == 1 else ''})"
    head = f"{{'descr': '{descriptor}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    spare = 21 - len(str(array.shape[0] if array.ndim else "")) if array.ndim else 0  # numpy leaves room for growth
    head += b" " * spare
    pad = -(10 + len(head) + 1) % 64
    return b"".join(
        (
            MAGIC,
            b"\x01\x00",
            struct.pack("<H", len(head) + pad + 1),
            head,
            b" " * pad,
            b"\n",
            np.ascontiguousarray(array).tobytes(),
        )
    )


def _check_file(type: ColumnType, data: bytes, where: str) -> tuple[str, tuple[int, ...]]:
    if not data.startswith(MAGIC):
        raise MediaError(
            f"{where} expects {type}, got {len(data)} bytes that are no .npy file; write them with numpy.save"
        )
    try:
        descriptor, _, shape, start = _parse(data)
    except ValueError as error:
        raise MediaError(f"{where}: not a .npy file that can be stored: {error}") from error
    dtype = _dtype_name(descriptor, where)
    expected = math.prod(shape) * int(descriptor[2:])
    if len(data) - start != expected:
        raise MediaError(
            f"{where}: the .npy header tells of {expected} bytes of data, the file holds {len(data) - start}"
        )
    _check_type(type, dtype, shape, where)
    return dtype, shape


def _parse(data: bytes | memoryview) -> tuple[str, bool, tuple[int, ...], int]:
    """(descriptor, Fortran order, shape, start of the data) of a .npy file; ValueError for anything unusual."""
    if len(data) < 12 or data[6] not in (1, 2, 3):
        raise ValueError("the header is cut short or of an unknown version")
    size, start = struct.unpack_from("<H", data, 8)[0], 10
    if data[6] > 1:
        size, start = struct.unpack_from("<I", data, 8)[0], 12
    if size > _MAX_HEADER or start + size > len(data):
        raise ValueError(f"the header claims {size} bytes")
    text = bytes(data[start : start + size]).decode("latin-1")
    match = _HEADER.fullmatch(text)
    if match is not None:
        shape = tuple(int(part) for part in match[3].split(",") if part.strip())
        return match[1], match[2] == "True", shape, start + size
    return (*_parse_slowly(text), start + size)


def _parse_slowly(text: str) -> tuple[str, bool, tuple[int, ...]]:
    import ast

    try:
        header = ast.literal_eval(text)
        descriptor, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise ValueError(f"the header {text[:80]!r} cannot be read") from error
    if not isinstance(descriptor, str) or re.fullmatch(r"[<>|=][A-Za-z]\d+", descriptor) is None:
        raise ValueError(f"dtype {descriptor!r} is no plain number (objects and records are refused)")
    if (
        not isinstance(fortran, bool)
        or not isinstance(shape, tuple)
        or not all(type(n) is int and n >= 0 for n in shape)
    ):
        raise ValueError(f"the header {text[:80]!r} holds no shape")
    return descriptor, fortran, shape


def decode_tensor(data: bytes | memoryview) -> Array:
    """The stored array, a read-only view of ``data`` where the byte order is this machine's; bfloat16 comes as 'V2'.

    Raises CorruptionError where the bytes are no .npy file of plain numbers.
    """
    import numpy as np

    try:
        if bytes(data[:6]) != MAGIC:
            raise ValueError("they do not begin as one")
        descriptor, fortran, shape, start = _parse(data)
        array = np.frombuffer(data, np.dtype(descriptor), offset=start).reshape(shape, order="F" if fortran else "C")
    except (ValueError, TypeError) as error:
        raise CorruptionError(f"{len(data)} stored bytes are no .npy file: {error}") from error
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def tensor_to_torch(array: Array) -> torch.Tensor:
    """The array as a torch tensor that owns its memory; 'V2' (see ``decode_tensor``) becomes bfloat16."""
    import numpy as np
    import torch

    owned = np.array(array, order="C")
    if owned.dtype.kind == "V":
        return torch.from_numpy(owned.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(owned)
