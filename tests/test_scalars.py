"""What each scalar type accepts, how it is stored and what comes back."""

from __future__ import annotations

import datetime as dt
import sqlite3
from decimal import Decimal
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeplake_loader.errors import CorruptionError, TypeMismatchError
from deeplake_loader.scalars import from_sql, plain, to_sql
from deeplake_loader.types import ColumnType

EAST = dt.timezone(dt.timedelta(hours=2))
VALUES = {
    "SMALLINT": st.integers(-(2**15), 2**15 - 1),
    "INTEGER": st.integers(-(2**31), 2**31 - 1),
    "BIGINT": st.integers(-(2**63), 2**63 - 1),
    "DOUBLE": st.floats(allow_nan=False),
    "TEXT": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    "BOOLEAN": st.booleans(),
    "TIMESTAMP": st.datetimes(),
    "TIMESTAMPTZ": st.datetimes(dt.datetime(2, 1, 1), dt.datetime(9998, 1, 1), timezones=st.just(dt.UTC)),
    "DATE": st.dates(),
    "TIME": st.times(),
    "UUID": st.uuids(),
    "BYTEA": st.binary(),
    "JSON": st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    ).filter(lambda v: not isinstance(v, str) and v is not None),
    "NUMERIC(12, 3)": st.decimals(-(10**8), 10**8, places=3),
}


@pytest.mark.parametrize("name", VALUES)
def test_every_value_survives_sqlite(name: str) -> None:
    kind = ColumnType.parse(name)
    encode, decode = to_sql(kind), from_sql(kind)
    connection = sqlite3.connect(":memory:")
    affinity = {"BYTEA": "BLOB", "JSON": "JSON TEXT", "UUID": "UUID TEXT", "DOUBLE": "REAL"}.get(name, name)
    connection.execute(f"CREATE TABLE t (x {affinity})")

    @given(VALUES[name])
    def check(value: object) -> None:
        connection.execute("DELETE FROM t")
        connection.execute("INSERT INTO t VALUES (?)", (encode(value, "x"),))
        stored = connection.execute("SELECT x FROM t").fetchone()[0]
        found = stored if decode is None else decode(stored)
        assert found == value and type(found) is type(value)

    check()


@pytest.mark.parametrize(("name", "strategy"), [(n, VALUES[n]) for n in ("TIMESTAMP", "DATE", "TIME")])
def test_text_order_is_time_order(name: str, strategy: st.SearchStrategy[dt.datetime]) -> None:
    encode = to_sql(ColumnType(name))

    @given(strategy, strategy)
    def check(a: dt.datetime, b: dt.datetime) -> None:
        assert (encode(a, "x") < encode(b, "x")) == (a < b)  # type: ignore[operator]

    check()


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("INTEGER", np.int64(5), 5),
        ("INTEGER", 5.0, 5),
        ("REAL", np.float32(0.5), 0.5),
        ("REAL", 2, 2.0),
        ("BOOLEAN", np.bool_(True), 1),
        ("TIMESTAMP", "2026-11-01", "2026-11-01 00:00:00.000000"),
        (
            "TIMESTAMP",
            dt.datetime(2026, 1, 1, 2, tzinfo=EAST),
            "2026-01-01 00:00:00.000000",
        ),
        ("TIMESTAMP", np.datetime64("2026-01-01T00:00:00.5", "us"), "2026-01-01 00:00:00.500000"),
        ("TIMESTAMPTZ", "2026-01-01 00:00:00Z", "2026-01-01 00:00:00.000000+00:00"),
        ("NUMERIC(10, 2)", Decimal("1.235"), 1.24),
        ("NUMERIC(10, 2)", Decimal("-1.235"), -1.24),
        ("UUID", "12345678123456781234567812345678", "12345678-1234-5678-1234-567812345678"),
        ("JSON", '{"a": 1}', '{"a":1}'),
    ],
)
def test_common_forms_are_taken(name: str, value: object, stored: object) -> None:
    assert to_sql(ColumnType.parse(name))(value, "x") == stored


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("INTEGER", 5.5), ("INTEGER", True), ("INTEGER", 2**31), ("INTEGER", "5"), ("REAL", float("nan")),
        ("TEXT", 5), ("TEXT", "a\0b"), ("TEXT", "\ud800"), ("BOOLEAN", 2), ("TIMESTAMP", "soon"), ("TIMESTAMP", 10**18),
        ("DATE", dt.datetime(2026, 1, 1)), ("NUMERIC(4, 2)", 123.5), ("NUMERIC", Decimal("1." + "1" * 20)),
        ("NUMERIC(4, 2)", float("inf")), ("JSON", "{"), ("JSON", {1, 2}), ("JSON", float("nan")), ("UUID", "x"),
        ("BYTEA", "x"), ("INTERVAL", dt.timedelta(1)),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_place(name: str, value: object) -> None:
    with pytest.raises(TypeMismatchError, match="column 'c' of 't'"):
        to_sql(ColumnType.parse(name))(value, "column 'c' of 't'")


@pytest.mark.parametrize("name", ["TIMESTAMP", "DATE", "BOOLEAN", "UUID", "JSON", "NUMERIC"])
def test_what_another_tool_stored_wrongly_is_a_typed_error(name: str) -> None:
    decode = from_sql(ColumnType(name))
    assert decode is not None
    with pytest.raises(CorruptionError, match="nonsense"):
        decode("nonsense")


def test_a_placeholder_without_a_column_takes_plain_scalars_only() -> None:
    assert plain(np.int32(3), "p") == 3 and plain(UUID(int=1), "p") == str(UUID(int=1)) and plain(True, "p") == 1
    for value in (np.zeros(2), object(), {1}, 2**63):
        with pytest.raises(TypeMismatchError, match="p "):
            plain(value, "p")
