"""Streams at their edges: empty sets, threads that share an iterator, functions that fail, options of wrong types."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Store as Place
from torch.utils.data import DataLoader

import deeplake_loader as deeplake
from deeplake_loader.errors import InputError, NotFoundError, StateError
from deeplake_loader.stream import Budget, Stream, mix
from deeplake_loader.stream.stats import Board, Stats

ROWS = 61


pytestmark = pytest.mark.both_catalogs


@pytest.fixture
def db(catalog_kind: str, shared: Callable[..., Any]) -> deeplake.Database:
    made: deeplake.Database = shared(catalog_kind, filled)
    return made


def filled(place: Place) -> deeplake.Database:
    db = place.connect()
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, kind TEXT, cost BIGINT, raw BLOB, photo TENSOR)")
    rows = [
        {"id": i, "kind": "ab"[i % 2], "cost": 1 + i % 5, "raw": bytes([i]) * 90, "photo": np.full(3, i, np.uint8)}
        for i in range(ROWS)
    ]
    db.insert("t", rows)
    return db


def stream(db: deeplake.Database, **options: Any) -> Stream:
    return db.stream("SELECT id, kind, cost, raw, photo FROM t", **{"batch_size": 4, **options})


# -- empty sets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"shuffle": True}, {"bucket_by": "kind"}, {"budget": Budget("cost", 9)}, {"tail": "drop"}, {"ragged": "pad"}],
    ids=str,
)
def test_a_query_without_rows_gives_epochs_without_batches(db: deeplake.Database, options: dict[str, Any]) -> None:
    for rank in range(2):
        sql = "SELECT id, kind, cost, photo FROM t WHERE id < 0"
        empty = db.stream(sql, batch_size=4, rank=rank, world_size=2, **options)
        assert [list(empty) for _ in range(2)] == [[], []] and len(empty) == 0 and empty.epoch == 2
        assert list(DataLoader(empty, batch_size=None, num_workers=1)) == []


def test_a_query_without_rows_has_no_samples_to_take(db: deeplake.Database) -> None:
    empty = db.stream("SELECT id, kind FROM t WHERE id < 0", batch_size=4)
    chosen: Any
    for chosen in ({"rows": [0]}, {"keys": [3]}):
        with pytest.raises(InputError, match="has no rows"):
            empty.take(**chosen)
    for chosen in ({"row": 0}, {"key": 3}):
        with pytest.raises(InputError, match="has no rows"):
            empty.sample(**chosen)
    with pytest.raises(InputError, match="has no positions"):
        empty.locate(0, 0)


# -- threads -----------------------------------------------------------------------------------------------------------


def test_threads_that_share_an_iterator_get_every_batch_once(db: deeplake.Database) -> None:
    shared, seen, errors = iter(stream(db, prefetch=0)), list[int](), list[BaseException]()

    def consume() -> None:
        try:
            for batch in shared:
                seen.extend(batch["id"].tolist())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=consume) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and sorted(seen) == list(range(ROWS))


def test_the_workers_place_is_that_of_the_one_furthest_on() -> None:
    board = Board()
    for worker, (epoch, position) in enumerate([(0, 96), (1, 0), (0, 72)]):
        board.write(worker, Stats(samples=5, workers=3, epoch=epoch, position=position))
    found = board.read()
    assert (found.epoch, found.position, found.samples) == (1, 0, 15)


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"bucket_by": "kind"}], ids=str)
def test_a_limit_of_a_limit_is_the_smaller_one(db: deeplake.Database, options: dict[str, Any]) -> None:
    whole = stream(db, **options)
    small = whole.limit(3).state_dict()
    assert whole.limit(3).limit(9).state_dict() == whole.limit(9).limit(3).state_dict() == small
    with pytest.raises(StateError, match="limit was 3 and is 9"):
        whole.limit(9).load_state_dict(small)
    with pytest.raises(InputError, match="at least 1"):
        whole.limit(3).limit(0)


# -- functions of the user's -------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(place: Place) -> Iterator[deeplake.Database]:
    """Six rows; the first one's bytes and tensor are damaged."""
    with place.connect() as database:
        database.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, raw BLOB, photo TENSOR)")
        rows = [{"id": i, "raw": bytes([i]) * 5_000, "photo": np.full(9_000, i, np.uint8)} for i in range(6)]
        database.insert("t", rows)
        database.optimize()
        (shard,) = place.folder.rglob("*.tar")
        data = bytearray(shard.read_bytes())
        for column in ("raw", "photo"):
            blob = database.execute(f"SELECT {column} FROM t WHERE id = 0").scalar()
            data[database.locate(blob.address_in(database)).offset + 200] ^= 1
        shard.write_bytes(data)
        yield database


def judged(db: deeplake.Database, columns: str, answer: Any) -> list[dict[str, Any]]:
    raw = {columns: deeplake.Raw()} if columns == "raw" else {}
    return list(db.stream(f"SELECT id, {columns} FROM t ORDER BY id", batch_size=3, on_error=answer, transforms=raw))


def test_a_stop_iteration_in_on_error_does_not_end_the_pass_without_a_word(damaged: deeplake.Database) -> None:
    with pytest.raises(InputError, match=r"raised StopIteration on rows 0, 1, 2"):
        judged(damaged, "raw", lambda _: next(iter(())))


def test_what_on_error_raises_names_the_sample(damaged: deeplake.Database) -> None:
    def broken(_: object) -> Any:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        judged(damaged, "raw", broken)
    assert "column 'raw'" in caught.value.__notes__[0] and "crc32c" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("column", "answer"), [("photo", b"bytes"), ("photo", object()), ("raw", torch.ones(3)), ("raw", 7)]
)
def test_a_value_of_another_kind_than_the_column_is_refused(
    damaged: deeplake.Database, column: str, answer: Any
) -> None:
    with pytest.raises(InputError, match=f"on_error gave a {type(answer).__name__}"):
        judged(damaged, column, lambda _: answer)


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": True}, "batch_size must be an integer"),
        ({"batch_size": "8"}, "batch_size must be an integer"),
        ({"shuffle": "False"}, "shuffle must be True or False"),
        ({"tail": ""}, "tail='' is none of"),
        ({"timeout_s": "3"}, "timeout_s must be above 0"),
        ({"transforms": ["photo"]}, "transforms must be {column: transform}"),
        ({"transforms": deeplake.Tensor()}, "transforms must be {column: transform}"),
        ({"budget": ("cost", 3)}, r"budget must be a Budget\(cost, limit\)"),
        ({"weight": "cost", "num_samples": 4.5}, "num_samples must be an integer"),
        ({"group": 2}, "group=2 goes with bucket_by="),
        ({"device": 1.5}, "device=1.5 is no device"),
    ],
    ids=str,
)
def test_an_option_of_a_wrong_type_is_named(db: deeplake.Database, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        stream(db, **options)


def test_a_sample_is_chosen_by_a_list_of_numbers_or_keys(db: deeplake.Database) -> None:
    whole: Any = stream(db)
    for rows, keys in ((None, 4), (None, "4"), (3, None)):
        with pytest.raises(InputError, match="are a list"):
            whole.take(rows, keys=keys)
    for row in (1.5, True, "1"):
        with pytest.raises(InputError, match="row must be an integer"):
            whole.sample(row)
    with pytest.raises(InputError, match="position must be an integer"):
        whole.locate(0, 1.5)
    assert whole.sample(np.int64(3))["id"] == 3


def test_what_is_no_set_of_streams_cannot_be_mixed(db: deeplake.Database) -> None:
    whole = stream(db)
    for wrong in (whole, None, 3):
        with pytest.raises(InputError, match=r"mix\(\) takes"):
            mix(wrong)  # type: ignore[arg-type]
    assert whole.epoch == 0  # and none of its rows was read
    with pytest.raises(InputError, match="names=3: expected 1"):
        mix([whole], names=3)  # type: ignore[arg-type]


def test_a_weighted_stream_mixes_with_a_plain_one(db: deeplake.Database) -> None:
    weighted = stream(db, weight="cost * 2")
    both = mix([weighted, stream(db)], seed=1)
    batches = list(both)
    assert {*batches[0]} == {*next(iter(stream(db)))} | {"_source"}
    assert sum(len(batch["id"]) for batch in batches) == 2 * ROWS


def test_a_file_that_is_gone_is_named_with_the_sample_that_wanted_it(damaged: deeplake.Database) -> None:
    (shard,) = Path(damaged.root).rglob("*.tar")
    key = damaged.execute("SELECT raw FROM t WHERE id = 0").scalar().key
    shard.unlink()
    with pytest.raises(NotFoundError, match="does not exist") as caught:
        judged(damaged, "raw", "raise")
    assert f"column 'raw', sample {key!r}" in caught.value.__notes__[0]


def test_streams_of_other_ranks_are_told_apart_by_name(db: deeplake.Database) -> None:
    with pytest.raises(InputError, match="stream 1 is for rank 1 of 2, the first one for rank 0 of 1; make"):
        mix([stream(db), stream(db, rank=1, world_size=2)])


def test_an_unknown_option_is_told_with_the_one_that_was_meant(db: deeplake.Database) -> None:
    with pytest.raises(
        TypeError, match=r"^stream\(\) got an unexpected keyword argument 'shufle'; did you mean 'shuffle'\?$"
    ):
        stream(db, shufle=True)


def test_dropping_never_leaves_all_buckets_out_without_a_word(db: deeplake.Database) -> None:
    with pytest.raises(InputError, match="would leave nothing of 61 rows"):
        stream(db, bucket_by="kind", batch_size=8, tail="drop", rank=0, world_size=8)
    assert len(stream(db, bucket_by="kind", batch_size=8, tail="drop", rank=0, world_size=6)) == 1


def test_a_budgets_limit_may_be_a_number_of_numpy() -> None:
    assert Budget("cost", np.int64(9)).limit == 9  # type: ignore[arg-type]
