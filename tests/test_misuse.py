"""What users get wrong: each call answers with a typed error that says what it expected, or does the right thing."""

from __future__ import annotations

import datetime as dt
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from conftest import Store as Place

import deeplake_loader as deeplake
from deeplake_loader import errors

pytestmark = pytest.mark.both_catalogs


@pytest.fixture
def db(place: Place) -> Iterator[deeplake.Database]:
    with place.connect() as handle:
        handle.execute(
            "CREATE TABLE t (id BIGINT PRIMARY KEY, a TEXT, n NUMERIC, d DOUBLE PRECISION, at TIMESTAMP, "
            "zoned TIMESTAMPTZ, data BLOB, v VECTOR(2), x TENSOR)"
        )
        yield handle


@pytest.mark.parametrize("url", ["", None, 5, "a\0b", b"folder"])
def test_what_names_no_store_is_refused(url: Any) -> None:
    with pytest.raises(errors.InputError, match="deeplake://org/name"):
        deeplake.connect(url)


@pytest.mark.parametrize("timeout", [-1, "1", None, float("nan"), 1e12])
def test_a_timeout_is_a_number_of_seconds(tmp_path: Path, timeout: Any) -> None:
    with pytest.raises(errors.InputError, match="timeout_s"):
        deeplake.connect(tmp_path, timeout_s=timeout)


@pytest.mark.sqlite_only("a database that was dropped is no file that was lost")
@pytest.mark.parametrize("how", ["removed", "emptied"])
def test_a_store_that_lost_its_catalog_is_not_begun_anew(db: deeplake.Database, tmp_path: Path, how: str) -> None:
    db.insert("t", [{"data": b"x" * 100_000}])
    db.close()
    copy = tmp_path / "copy"
    shutil.copytree(db.root, copy)
    for path in copy.glob("catalog.sqlite*"):
        path.unlink()
    if how == "emptied":
        (copy / "catalog.sqlite").touch()
    for create in (True, False):
        with pytest.raises(errors.DeeplakeError):
            deeplake.connect(copy, create=create)
    with pytest.raises(errors.CorruptionError, match="catalog"):
        deeplake.connect(copy)
    for path in Path(db.root).glob("catalog.sqlite*"):
        shutil.copy(path, copy)
    with deeplake.connect(copy) as restored:
        assert restored.execute("SELECT data FROM t")[0].data.bytes() == b"x" * 100_000


@pytest.mark.parametrize("sql", [None, 5, b"SELECT 1"])
def test_a_statement_that_is_no_text_is_refused(db: deeplake.Database, sql: Any) -> None:
    for call in (db.execute, lambda s: db.executemany(s, []), lambda s: db.stream(s, batch_size=1)):
        with pytest.raises(errors.InputError, match="statement"):
            call(sql)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ({"a": "abc"}, "'a' must be a list"),
        ({"a": 5}, "'a' must be a list"),
        ({"a": {"x"}}, "'a' must be a list"),
        ({"a": {"x": 1}}, "'a' must be a list"),
        ({"a": (c for c in "ab")}, "'a' must be a list"),
        ({1: ["x"]}, "no column 1"),
        ([{1: "x"}], "no column 1"),
        ([{"a": "x", "A": "y"}], "given twice"),
        (pd.Series(["x"]), "DataFrame"),
        (pa.array(["x"]), "table"),
        (pa.schema([("a", pa.string())]).field(0), "table"),
        (pd.DataFrame([["x", "y"]], columns=["a", "a"]), "two columns"),
        (pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["a", "a"]), "two columns"),
    ],
)
def test_rows_of_no_known_form_are_refused(db: deeplake.Database, rows: Any, match: str) -> None:
    with pytest.raises(errors.DeeplakeError, match=match):
        db.insert("t", rows)
    assert len(db.execute("SELECT * FROM t")) == 0


def test_an_unknown_way_to_validate_is_refused(db: deeplake.Database) -> None:
    with pytest.raises(errors.InputError, match="structure, decode, none"):
        db.insert("t", [{"a": "x"}], validate="everything")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("at", dt.datetime.max.replace(tzinfo=dt.timezone(dt.timedelta(hours=-5)))),
        ("zoned", dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=5)))),
        ("at", pd.NaT),
        ("n", Decimal("1e400")),
        ("d", Decimal("1e400")),
        ("d", 10**400),
        ("v", torch.ones(2, device="meta")),
        ("x", torch.ones(2, device="meta")),
        ("v", np.ma.array([1.0, 2.0], mask=[False, True])),
        ("v", np.ma.array(np.ones(2, np.float32), mask=[False, True])),
        ("x", np.ma.array([1.0, 2.0], mask=[False, True])),
    ],
)
def test_values_that_no_column_can_hold_are_refused_by_every_way_in(
    db: deeplake.Database, catalog_kind: str, column: str, value: Any
) -> None:
    if catalog_kind == "postgres" and column == "n":
        pytest.skip("PostgreSQL's NUMERIC holds it")
    insert = f"INSERT INTO t ({column}) VALUES (%s)"
    ways = (
        lambda: db.execute(insert, [value]),
        lambda: db.executemany(insert, [[value]]),
        lambda: db.insert("t", [{column: value}]),
        lambda: db.insert("t", {column: [value, value]}),
    )
    for way in ways:
        with pytest.raises(errors.TypeMismatchError, match=f"column '{column}'"):
            way()
    assert len(db.execute("SELECT * FROM t")) == 0


@pytest.mark.sqlite_only("PostgreSQL has NaN, which equals itself there")
def test_nan_is_no_value_to_compare_with(db: deeplake.Database) -> None:
    with pytest.raises(errors.TypeMismatchError, match="NaN"):
        db.execute("SELECT %s", [float("nan")])


@pytest.mark.parametrize("name", ["keys", "_fields", "_asdict", "count", "index", "class", "__len__", "mro"])
def test_a_column_may_be_named_like_something_of_ours(db: deeplake.Database, name: str) -> None:
    row = db.execute(f'SELECT 1 AS "{name}", 2 AS b')[0]
    assert dict(row) == row._asdict() == {name: 1, "b": 2} and row[name] == 1 and row.b == 2
    db.execute(f'CREATE TABLE named (id BIGINT PRIMARY KEY, "{name}" INTEGER, b INTEGER)')
    assert db.insert("named", [row]) == 1
    assert next(iter(db.stream("SELECT * FROM named", batch_size=1)))[name].tolist() == [1]


@pytest.mark.sqlite_only("PostgreSQL's columns hold only values of their type")
def test_what_arrow_cannot_hold_is_named(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE p (id BIGINT PRIMARY KEY, price NUMERIC(6, 2), n INTEGER)")
    assert db.execute("SELECT price FROM p").to_arrow().schema.field("price").type == pa.decimal128(6, 2)
    db.insert("p", [{"price": Decimal("1.5"), "n": 1}, {"price": None, "n": 2}])
    assert db.execute("SELECT price FROM p").to_arrow()["price"].to_pylist() == [Decimal("1.50"), None]
    with sqlite3.connect(f"{db.root}/catalog.sqlite") as other:
        other.execute("INSERT INTO p (n) VALUES ('many')")
    other.close()
    with pytest.raises(errors.InputError, match="column 'n'"):
        db.execute("SELECT n FROM p").to_arrow()


@pytest.mark.sqlite_only("PostgreSQL refuses it when it is written")
def test_text_that_is_no_utf8_is_damage(db: deeplake.Database) -> None:
    with sqlite3.connect(f"{db.root}/catalog.sqlite") as other:
        other.execute("INSERT INTO t (a) VALUES (CAST(x'ff' AS TEXT))")
    other.close()
    with pytest.raises(errors.CorruptionError, match="UTF-8"):
        db.execute("SELECT a FROM t")


@pytest.mark.parametrize("option", ["batch_size", "seed", "rank", "world_size", "num_threads", "prefetch", "lanes"])
def test_whole_numbers_are_taken_from_numpy_and_nothing_else_is(db: deeplake.Database, option: str) -> None:
    db.insert("t", [{"a": str(i)} for i in range(5)])
    plain = {"batch_size": 2, "shuffle": True, "rank": 0, "world_size": 2}
    for wrong in ("1", 1.5, [1]):
        with pytest.raises(errors.InputError, match=option):
            db.stream("SELECT a FROM t", **{**plain, option: wrong})  # type: ignore[arg-type]
    stream = db.stream("SELECT a FROM t", **{**plain, option: np.int64(1)})  # type: ignore[arg-type]
    assert len(list(stream)) == len(stream) and "int64" not in repr(stream.state_dict())


def test_what_is_no_state_is_refused(db: deeplake.Database) -> None:
    db.insert("t", [{"a": str(i)} for i in range(5)])
    stream = db.stream("SELECT a FROM t", batch_size=2)
    state = stream.state_dict()
    wrong: Any
    for wrong in (None, 5, "x", [], {}, {**state, "position": "x"}, {**state, "epoch": None}, {**state, "epoch": 1.5}):
        with pytest.raises(errors.StateError):
            stream.load_state_dict(wrong)
    for batch in (None, {}, {"_cursor": 1}, {"_cursor": ("a", 1)}):
        with pytest.raises(errors.StateError):
            stream.state_at(batch)  # type: ignore[arg-type]
    for epoch in (1.5, "1", None, -1):
        with pytest.raises(errors.InputError, match="epoch"):
            stream.set_epoch(epoch)  # type: ignore[arg-type]


def test_closing_inside_a_transaction_leaves_no_file(db: deeplake.Database) -> None:
    with pytest.raises(errors.StoreError, match="closed"), db.transaction():
        db.insert("t", [{"data": b"x" * 100_000, "v": [1, 2]}] * 3)
        db.insert("t", {"v": np.ones((200_000, 2), np.float32)})
        db.close()
    assert [path for folder in ("shards", "vectors") for path in Path(db.root, folder).rglob("*.*")] == []


def test_closing_waits_for_another_threads_transaction(
    db: deeplake.Database, reconnect: Callable[..., deeplake.Database]
) -> None:
    inside = threading.Event()

    def write() -> None:
        with db.transaction():
            db.insert("t", [{"data": b"x" * 100_000}])
            db.insert("t", {"v": np.ones((200_000, 2), np.float32)})
            inside.set()
            time.sleep(0.3)

    thread = threading.Thread(target=write)
    thread.start()
    inside.wait()
    db.close()
    thread.join()
    with reconnect() as again:
        assert again.execute("SELECT data FROM t WHERE data IS NOT NULL")[0].data.bytes() == b"x" * 100_000
        assert len(again.execute("SELECT v FROM t WHERE v IS NOT NULL")[-1].v.tolist()) == 2


def test_a_library_that_another_thread_still_imports_is_not_asked(
    db: deeplake.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", type(deeplake)("torch"))
    assert db.insert("t", [{"v": [1, 2], "x": np.ones(2)}]) == 1


def test_a_stream_begins_after_another_threads_transaction(db: deeplake.Database) -> None:
    inside = threading.Event()

    def write() -> None:
        with db.transaction():
            db.insert("t", [{"a": "x"}] * 3)
            inside.set()
            time.sleep(0.2)

    thread = threading.Thread(target=write)
    thread.start()
    inside.wait()
    assert [len(batch["a"]) for batch in db.stream("SELECT a FROM t", batch_size=2)] == [2, 1]
    thread.join()
