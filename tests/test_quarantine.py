"""Samples set aside: streams leave them out, on every branch, until they are released."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Store as Place

import deeplake_loader as deeplake
from deeplake_loader.errors import InputError, NotFoundError, StoreError

SQL = "SELECT id, photo FROM t"


pytestmark = pytest.mark.both_catalogs


@pytest.fixture
def db(place: Place) -> Iterator[deeplake.Database]:
    with place.connect() as database:
        database.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, photo IMAGE, vec VECTOR(2))")
        rows = [{"photo": np.full((4, 4, 3), i, np.uint8), "vec": [i, 1]} for i in range(10)]
        database.insert("t", rows)
        yield database


def ids(db: deeplake.Database, sql: str = SQL, **options: Any) -> list[int]:
    return [i for batch in db.stream(sql, batch_size=4, **options) for i in batch["id"].tolist()]


def key(db: deeplake.Database, i: int) -> str:
    found: str = db.execute("SELECT photo FROM t WHERE id = %s", [i]).scalar().key
    return found


def test_streams_leave_out_what_was_set_aside_until_it_is_released(db: deeplake.Database) -> None:
    assert db.quarantined() == [] and db.release() == 0
    assert db.quarantine([key(db, 3), key(db, 7)], reason="blurred") == 2
    assert sorted(ids(db, shuffle=True)) == [1, 2, 4, 5, 6, 8, 9, 10]
    assert [(q.key, q.reason) for q in db.quarantined()] == [(key(db, 3), "blurred"), (key(db, 7), "blurred")]
    assert db.execute("SELECT count(*) FROM t").scalar() == 10
    assert db.quarantine(key(db, 3)) == 0  # it is there already
    assert db.release(key(db, 3)) == 1
    assert ids(db) == [1, 2, 3, 4, 5, 6, 8, 9, 10]
    assert db.release() == 1 and ids(db) == list(range(1, 11))
    assert {"quarantine 2 samples", "release from quarantine"} <= {commit.message for commit in db.log()}


def test_it_holds_on_every_branch_and_for_every_handle(
    db: deeplake.Database, reconnect: Callable[..., deeplake.Database]
) -> None:
    bad = key(db, 5)
    db.branch("idea")
    db.quarantine([bad])
    assert 5 not in ids(db)
    db.checkout("main")
    assert 5 not in ids(db)
    with reconnect(read_only=True) as other:
        assert 5 not in ids(other)
        with pytest.raises(StoreError):
            other.release()


def test_what_a_stream_skipped_is_set_aside_by_the_value_that_was_bad(db: deeplake.Database) -> None:
    place = db.execute("SELECT photo FROM t WHERE id = 4").scalar()
    where = db.locate(place.address_in(db))
    db.optimize()
    where = db.locate(place.address_in(db))
    path = Path(db.root) / where.url
    data = bytearray(path.read_bytes())
    data[where.offset + where.length // 2] ^= 1
    path.write_bytes(data)
    stream = db.stream(SQL, batch_size=4, on_error="skip")
    assert [i for batch in stream for i in batch["id"].tolist()] == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert [bad.key for bad in stream.stats.skipped] == [place.key]
    assert db.quarantine(stream.stats.skipped[0]) == 1 and db.quarantine(stream.stats.skipped) == 0
    assert "crc32c" in db.quarantined()[0].reason
    assert ids(db) == [1, 2, 3, 5, 6, 7, 8, 9, 10]  # without on_error: nobody reads it
    assert 4 in ids(db, "SELECT id, vec FROM t")  # whose vector is good


def test_a_key_that_is_not_there_sets_nothing_aside(db: deeplake.Database) -> None:
    with pytest.raises(NotFoundError, match="no such"):
        db.quarantine([key(db, 1), "no such"])
    assert db.quarantined() == []

    class Nowhere:
        key, address, reason = "row 1", 0, "lost"

    with pytest.raises(InputError, match="without an address"):
        db.quarantine([Nowhere()])


@pytest.mark.parametrize("given", [3, [3], None, [None]])
def test_what_names_no_sample_is_refused_by_name(db: deeplake.Database, given: Any) -> None:
    with pytest.raises(InputError, match=r"(3|None) names no sample; give keys"):
        db.quarantine(given)
    assert db.quarantined() == []
