"""Scalar values of a bulk insert, a whole column at a time: what `scalars` accepts and gives, several times as fast.

A column whose values are all of one plain kind is checked at once. Every other one, and every one that fails the check,
goes through `scalars` value by value, so both ways give the same values and the same errors.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from deeplake_loader import scalars
from deeplake_loader.codecs.sources import is_numpy
from deeplake_loader.errors import TypeMismatchError
from deeplake_loader.types import ColumnType


def encode_column(kind: ColumnType, values: Any, where: str, *, first_row: int = 0) -> Sequence[scalars.SQLValue]:
    """What SQLite stores for each value (a list, a range or a numpy array); None passes as NULL.

    ``where`` names the column in the TypeMismatchError for a value that does not fit, and its row, counted from
    ``first_row``, is added.

    >>> encode_column(ColumnType("BOOLEAN"), [True, False], "column 'b'")
    [1, 0]
    """
    if hasattr(values, "dtype"):
        checked = _from_array(kind, values) if _is_plain_array(values) and len(values) else None
        values = values if checked is not None else _plain(kind, values)
    else:
        checked = None
    checked = _from_list(kind, values) if checked is None else checked
    return _one_by_one(kind, values, where, first_row) if checked is None else checked


def _one_by_one(kind: ColumnType, values: Sequence[Any], where: str, first_row: int) -> list[scalars.SQLValue]:
    encode = scalars.to_sql(kind)
    try:
        return [encode(value, where) for value in values]
    except TypeMismatchError:  # find the row only now: naming it for every value would cost more than encoding
        for row, value in enumerate(values, first_row):
            encode(value, f"{where}, row {row}")
        raise


def _plain(kind: ColumnType, array: Any) -> Sequence[Any]:
    """The elements of an array, tensor or Series as Python values: numpy's own would each take the slow way."""
    if is_numpy(array) and array.dtype.kind == "M" and kind.name != "DATE":
        array = array.astype("M8[us]")
    values: Sequence[Any] = array.tolist()
    return values


# -- lists: the types of all values are found first, in one pass of C --------------------------------------------------


def _from_list(kind: ColumnType, values: Sequence[Any]) -> Sequence[scalars.SQLValue] | None:
    found = set(map(type, values)) - {type(None)}
    if len(found) != 1:
        return None
    only = found.pop()
    if only is str and kind.name == "TEXT":
        return values if _is_text("".join(filter(None, values))) else None
    if only is int and kind.name in scalars.INTEGER_BITS:
        present = values if isinstance(values, range) else [v for v in values if v is not None]
        return values if _fits(kind, min(present), max(present)) else None
    if only is float and kind.name in ("REAL", "DOUBLE"):
        return values if all(map(operator.eq, values, values)) else None  # NaN alone differs from itself
    return None


def _is_text(joined: str) -> bool:
    if "\0" in joined:
        return False
    try:
        return joined.isascii() or bool(joined.encode())
    except UnicodeEncodeError:
        return False


def _fits(kind: ColumnType, least: int, largest: int) -> bool:
    limit = 1 << scalars.INTEGER_BITS[kind.name]
    return -limit <= least and largest < limit


# -- numpy arrays ------------------------------------------------------------------------------------------------------


def _is_plain_array(values: object) -> bool:
    """No subclass: a masked array's least element says nothing of the masked ones."""
    return is_numpy(values) and type(values).__name__ == "ndarray" and values.ndim == 1


def _from_array(kind: ColumnType, array: Any) -> Sequence[scalars.SQLValue] | None:
    letter, checked = array.dtype.kind, None
    if letter in ("i", "u") and kind.name in scalars.INTEGER_BITS:
        checked = array if _fits(kind, int(array.min()), int(array.max())) else None
    elif letter == "f" and kind.name in ("REAL", "DOUBLE") and array.dtype.itemsize <= 8:
        checked = array if (array == array).all() else None
    elif letter == "b" and kind.name == "BOOLEAN":
        checked = array.view("u1")
    elif letter == "M" and kind.name == "TIMESTAMP":
        checked = _timestamps(array)
    values: Sequence[scalars.SQLValue] | None = None if checked is None else checked.tolist()
    return values


def _timestamps(array: Any) -> Any:
    """The catalog's text of each time; None where one is missing or has no year of four digits."""
    import numpy as np

    times = array.astype("M8[us]")
    first, end = np.array(["0001", "10000"], "M8[Y]").astype("M8[us]")
    if not ((times >= first) & (times < end)).all():  # NaT is neither
        return None
    text = np.datetime_as_string(times, unit="us").astype("U26")
    text.view("U1")[10::26] = " "
    return text
