"""VECTOR values: any sequence of numbers to little-endian float32 or float16, finite and of the column's length.

A list of Python floats is encoded without numpy, because a query's vector is part of the cold start.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from deeplake_loader.codecs.sources import describe, is_numpy, is_torch, to_array
from deeplake_loader.errors import DimensionError, TypeMismatchError
from deeplake_loader.types import ColumnType

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

_FORMATS = {"float32": "f", "float16": "e"}
_LIMITS = {"float32": 3.4028235e38, "float16": 65504.0}


def encode_vector(type: ColumnType, value: object, where: str) -> bytes:
    """``type.dimension`` little-endian numbers of ``type.dtype``.

    ``value``: a list, tuple, array.array, numpy array or torch tensor of any real dtype, shape (n,), or the text
    '[0.1, 0.2]'. Raises DimensionError for another length, TypeMismatchError for NaN, infinity or overflow.

    >>> from deeplake_loader.types import ColumnType
    >>> encode_vector(ColumnType.parse("VECTOR(2)"), [1.0, 2.0], "column 'v'").hex()
    '0000803f00000040'
    """
    if is_numpy(value) or is_torch(value):
        if type.dtype == "float32" and _is_plain(value, type.dimension):
            return value.tobytes()
        array = to_array(value, where)
        return b"" if array is None else _encode_array(type, array, value, where).tobytes()
    numbers = _numbers(type, value, where)
    if len(numbers) != type.dimension:
        raise _wrong_length(type, f"({len(numbers)},)", where)
    try:
        data = struct.pack(f"<{type.dimension}{_FORMATS[type.dtype or 'float32']}", *numbers)
    except OverflowError as error:
        raise _overflow(type, where) from error
    except (struct.error, TypeError, ValueError) as error:
        raise TypeMismatchError(
            f"{where} expects {type}, got {describe(value)} holding something else than numbers"
        ) from error
    # a sum of finite float32 values is finite as a double; NaN and infinity survive every addition
    if not math.isfinite(sum(numbers, 0.0)):
        raise _not_finite(type, numbers, where)
    return data


def _is_plain(value: object, dimension: int) -> TypeGuard[Array]:
    """Whether a numpy array is the vector as stored, every number finite: five times as fast as converting it."""
    if not is_numpy(value) or value.shape != (dimension,) or value.dtype.str != "<f4" or hasattr(value, "mask"):
        return False
    import numpy as np

    with np.errstate(all="ignore"):
        return math.isfinite(value.dot(value))  # NaN and infinity survive; an overflow is looked into


def _numbers(type: ColumnType, value: object, where: str) -> Sequence[Any]:
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, str):
        return _from_text(type, value, where)
    if not isinstance(value, (bytes, bytearray)) and value is not None:
        try:
            view = memoryview(value)  # type: ignore[arg-type]
        except TypeError:
            view = None
        if view is not None and view.ndim == 1 and view.format in ("f", "d", "e", "b", "h", "i", "l", "q"):
            return view.tolist()
        if hasattr(value, "__array__"):
            import numpy as np

            return _encode_array(type, np.asarray(value), value, where).tolist()  # type: ignore[no-any-return]
    raise TypeMismatchError(
        f"{where} expects {type}, got {describe(value)}; "
        "pass a list of floats, a numpy array, a torch tensor or '[0.1, 0.2]'"
    )


def _from_text(type: ColumnType, text: str, where: str) -> Sequence[Any]:
    try:
        numbers = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TypeMismatchError(f"{where} expects {type}, got the text {text[:60]!r}; write '[0.1, 0.2]'") from error
    if not isinstance(numbers, list):
        raise TypeMismatchError(f"{where} expects {type}, got the text {text[:60]!r}; write '[0.1, 0.2]'")
    return numbers


def _encode_array(type: ColumnType, array: Array, value: object, where: str) -> Array:
    if array.shape != (type.dimension,):
        raise _wrong_length(type, str(tuple(array.shape)), where)
    return _convert(type, array[None], value, where, None)[0]  # type: ignore[no-any-return]


def encode_vectors(type: ColumnType, values: object, where: str, *, first_row: int = 0) -> bytes | memoryview:
    """N vectors as one buffer of N * dimension little-endian numbers, a view of ``values`` where nothing had to change.

    ``values``: an (N, dimension) numpy array or torch tensor (checked without a Python step per row), or a sequence of
    what ``encode_vector`` takes. Errors name the row, counted from ``first_row``.
    """
    if is_numpy(values) or is_torch(values):
        array = to_array(values, where)
        return b"" if array is None else _encode_matrix(type, array, values, where, first_row)
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        raise TypeMismatchError(
            f"{where} expects vectors of {type}, got {describe(values)}; pass an (N, {type.dimension}) array"
        )
    if values and all(_stacks(v, type.dimension, values[0]) for v in values):
        import numpy as np

        return _encode_matrix(type, np.stack(values), values[0], where, first_row)
    return b"".join([encode_vector(type, v, f"{where}, row {first_row + i}") for i, v in enumerate(values)])


def _stacks(value: Any, dimension: int, first: Any) -> bool:
    return is_numpy(value) and value.shape == (dimension,) and value.dtype == first.dtype and not hasattr(value, "mask")


def _encode_matrix(type: ColumnType, array: Array, value: object, where: str, first_row: int) -> bytes | memoryview:
    if array.ndim != 2 or array.shape[1] != type.dimension:
        raise _wrong_length(type, f"{tuple(array.shape)} for the whole batch", where)
    if not len(array):
        return b""
    return _convert(type, array, value, where, first_row).data.cast("B")


def _convert(type: ColumnType, array: Array, value: object, where: str, first_row: int | None) -> Array:
    """The rows as contiguous numbers of the column's dtype, every one finite."""
    import numpy as np

    if array.dtype.kind == "V":  # bfloat16: the upper half of a float32
        array = (np.ascontiguousarray(array).view("<u2").astype("<u4") << 16).view("<f4")
    if array.dtype.kind not in "fiu":
        raise TypeMismatchError(f"{where} expects {type}, got {describe(value)}; convert it to {type.dtype}")
    with np.errstate(all="ignore"):
        result = np.ascontiguousarray(array, "<f4" if type.dtype == "float32" else "<f2")
        if not math.isfinite(result.sum(dtype=np.float32)):  # one pass, no temporary; false alarms are looked into
            _refuse_rows(type, array, result, where, first_row)
    return result


def _refuse_rows(type: ColumnType, array: Array, result: Array, where: str, first_row: int | None) -> None:
    import numpy as np

    bad = np.flatnonzero(~np.isfinite(result).all(axis=1))
    if not len(bad):
        return
    row = int(bad[0])
    place = where if first_row is None else f"{where}, row {first_row + row}"
    raise _overflow(type, place) if np.isfinite(array[row]).all() else _not_finite(type, array[row].tolist(), place)


def _wrong_length(type: ColumnType, shape: str, where: str) -> DimensionError:
    return DimensionError(
        f"{where} expects {type.dimension} numbers, got shape {shape}; "
        "encode the vector again or make the column VECTOR of that length"
    )


def _overflow(type: ColumnType, where: str) -> TypeMismatchError:
    limit = _LIMITS[type.dtype or "float32"]
    return TypeMismatchError(f"{where} expects {type}, got a number beyond ±{limit:g}; scale the vector or use float32")


def _not_finite(type: ColumnType, numbers: Sequence[float], where: str) -> TypeMismatchError:
    index = next((i for i, x in enumerate(numbers) if not math.isfinite(x)), 0)
    return TypeMismatchError(
        f"{where} expects {type} of finite numbers, got {float(numbers[index])} at index {index}; "
        "store NULL where there is no vector"
    )
