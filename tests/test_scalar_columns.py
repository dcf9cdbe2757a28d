"""Columns of a bulk insert against the encoders of single values: the same values, the same errors, the row named."""

from __future__ import annotations

import datetime as dt
import enum
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deeplake_loader import scalars
from deeplake_loader.errors import TypeMismatchError
from deeplake_loader.scalar_columns import encode_column
from deeplake_loader.types import ColumnType

WHERE = "column 'x' of 't'"
KINDS = [
    "TEXT", "SMALLINT", "INTEGER", "BIGINT", "REAL", "DOUBLE", "BOOLEAN", "TIMESTAMP", "TIMESTAMPTZ", "DATE",
    "NUMERIC(6,2)", "JSON", "UUID", "BYTEA",
]  # fmt: skip


class Level(enum.IntEnum):
    HIGH = 3


ODD = [
    None, "", "a", "naïve", "\0", "a\0b", "\ud800", "\udc00", "😀", "1", "true", "2026-01-02", "[1]", 0, 1, -1,
    2**15 - 1, 2**15, -(2**15) - 1, 2**31, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, True, False, Level.HIGH, 0.0, -0.0,
    1.5, 2.0,
    float("nan"), float("inf"), -float("inf"), 1e300, Decimal("1.25"), b"x", np.int64(5), np.float32(0.1), np.str_("s"),
    np.bool_(True), np.datetime64("2026-01-02T03:04:05", "us"), dt.datetime(2026, 1, 2, 3, 4, 5, 6),
    dt.datetime(1, 1, 1, tzinfo=dt.UTC), dt.date(2026, 1, 2), pd.Timestamp("2026-01-02"), pd.NA, pd.NaT, [1], {"a": 1},
]  # fmt: skip


def one_by_one(kind: ColumnType, values: list[object], first_row: int) -> list[object] | str:
    encode = scalars.to_sql(kind)
    found: list[object] = []
    for row, value in enumerate(values, first_row):
        try:
            found.append(encode(value, f"{WHERE}, row {row}"))
        except TypeMismatchError as error:
            return str(error)
    return found


def by_column(kind: ColumnType, values: object, first_row: int) -> list[object] | str:
    try:
        return list(encode_column(kind, values, WHERE, first_row=first_row))
    except TypeMismatchError as error:
        return str(error)


def same(kind_text: str, values: object, plain: list[object]) -> None:
    kind = ColumnType.parse(kind_text)
    column, single = by_column(kind, values, 7), one_by_one(kind, plain, 7)
    assert repr(column) == repr(single)
    if not isinstance(column, str):
        assert [type(v) for v in column] == [type(v) for v in single]


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_gives_what_its_values_give_one_by_one(kind: str) -> None:
    same(kind, [], [])
    for value in ODD:
        for values in ([value], [value, value], [value, None], ["a", value], [1, value], [1.5, value], [None, value]):
            same(kind, values, values)


@pytest.mark.parametrize("kind", KINDS)
@given(
    values=st.lists(st.one_of(st.none(), st.text(st.characters(), max_size=3), st.integers(), st.floats()), max_size=5)
)
def test_mixed_lists_give_what_their_values_give(kind: str, values: list[object]) -> None:
    same(kind, values, values)
    of_one_type = [v for v in values if type(v) is type(values[0])]
    same(kind, of_one_type, of_one_type)


ARRAYS = [
    np.array([], "i8"), np.arange(4, dtype=">i4"), np.array([-(2**63), 2**63 - 1]), np.array([2**63], "u8"),
    np.array([-(2**15), 2**15 - 1]), np.array([0, 2**15], "u2"), np.array([0, 2**31], "u4"), np.arange(8)[::-2],
    np.array([0.5, -0.0, np.inf], "f2"), np.array([0.1], "f4"), np.array([0.1, 1e300]), np.array([1.0, np.nan]),
    np.array([1.5], np.longdouble), np.array([1 + 2j]), np.array([True, False]), np.array([True, False, True])[::2],
    np.array(["a", "naïve"]), np.array(["a\0b", "c"]), np.array([b"a"]), np.array([1, None, "a", 2.5], object),
    np.array([[1, 2], [3, 4]]), np.ma.array([1, 2], mask=[True, False]), np.ma.array([1.0, 2.0], mask=[True, True]),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("array", ARRAYS, ids=str)
def test_an_array_gives_what_its_elements_give(kind: str, array: np.ndarray) -> None:
    same(kind, array, array.tolist())


TIMES = [
    np.array(["2026-01-02T03:04:05.678901", "0001-01-01", "9999-12-31T23:59:59.999999"], "M8[us]"),
    np.array(["1969-12-31T23:59:59.999999999", "2026-01-02"], "M8[ns]"), np.array(["2026-01-02"], "M8[D]"),
    np.array(["2026-01-02", "NaT"], "M8[s]"), np.array(["NaT"], "M8"), np.array(["10000-01-01"], "M8[us]"),
    np.array(["0000-12-31T23:59:59"], "M8[us]"), np.array(["2026-01"], "M8[M]")[::-1],
]  # fmt: skip


@pytest.mark.parametrize("kind", ["TIMESTAMP", "TIMESTAMPTZ", "TEXT", "BIGINT"])
@pytest.mark.parametrize("array", TIMES, ids=str)
def test_an_array_of_times_gives_what_its_datetimes_give(kind: str, array: np.ndarray) -> None:
    same(kind, array, array.astype("M8[us]").tolist())


def test_days_ranges_tensors_and_series_are_taken() -> None:
    assert by_column(ColumnType("DATE"), np.array(["2026-01-02"], "M8[D]"), 0) == ["2026-01-02"]
    assert by_column(ColumnType("INTEGER"), range(3), 0) == [0, 1, 2]
    assert "row 1" in by_column(ColumnType("SMALLINT"), range(2**15 - 1, 2**15 + 1), 0)
    assert by_column(ColumnType("INTEGER"), torch.arange(3), 0) == [0, 1, 2]
    assert by_column(ColumnType("DOUBLE"), pd.Series([0.5, 1.5]), 0) == [0.5, 1.5]
    times = pd.Series(pd.to_datetime(["2026-01-02T01:00"]).tz_localize("Europe/Paris"))
    assert by_column(ColumnType("TIMESTAMP"), times, 0) == ["2026-01-02 00:00:00.000000"]
    assert "row 1" in by_column(ColumnType("INTEGER"), pd.Series([1, None], dtype="Int64"), 0)
