"""Mixed, weighted, bucketed, limited, mapped and ragged streams over a real database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Store as Place
from torch.utils.data import DataLoader

import deeplake_loader as deeplake
from deeplake_loader.errors import DimensionError, InputError, SQLError, StateError, TypeMismatchError

PHOTOS, DRAWINGS = 61, 24
SIZES = [(8, 12), (12, 8), (10, 10)]


pytestmark = pytest.mark.both_catalogs


@pytest.fixture
def db(catalog_kind: str, shared: Callable[..., Any]) -> deeplake.Database:
    made: deeplake.Database = shared(catalog_kind, filled)
    return made


def filled(place: Place) -> deeplake.Database:
    db = place.connect()
    for table in ("photos", "drawings"):
        db.execute(
            f"CREATE TABLE {table} (id BIGINT PRIMARY KEY, kind TEXT, n BIGINT, tokens TENSOR(int64), picture IMAGE)"
        )
    for table, first, count in (("photos", 0, PHOTOS), ("drawings", 1000, DRAWINGS)):
        db.insert(table, [row(first + i) for i in range(count)])
    return db


def row(i: int) -> dict[str, Any]:
    height, width = SIZES[i % 3]
    return {
        "id": i, "kind": "abc"[i % 3], "n": 1 + i % 5, "tokens": np.arange(1 + i % 5),
        "picture": np.full((height, width, 3), i % 250, np.uint8),
    }  # fmt: skip


def stream(db: deeplake.Database, table: str = "photos", columns: str = "id, n", **options: Any) -> deeplake.Stream:
    options = {"batch_size": 4, "shuffle": True, "num_threads": 1, **options}
    return db.stream(f"SELECT {columns} FROM {table}", **options)


def ids(batches: Any) -> list[int]:
    return [i for batch in batches for i in batch["id"].tolist()]


def valid_ids(batches: Any) -> list[int]:
    return [i for b in batches for i in (b["id"][b["valid"]] if "valid" in b else b["id"]).tolist()]


# -- mixing ------------------------------------------------------------------------------------------------------------


def test_a_mix_gives_every_source_its_share_and_its_own_order(db: deeplake.Database) -> None:
    parts = [stream(db), stream(db, "drawings", seed=5)]
    mixed = deeplake.mix({parts[0]: 0.5, parts[1]: 0.5}, seed=3)
    batches = list(mixed)
    assert len(batches) == len(mixed) == 2 * DRAWINGS // 4
    sources = torch.cat([b["_source"] for b in batches]).tolist()
    found = ids(batches)
    assert Counter(sources) == {0: DRAWINGS, 1: DRAWINGS}
    assert [i for i, s in zip(found, sources, strict=True) if s] == ids(parts[1])
    assert [i for i, s in zip(found, sources, strict=True) if not s] == ids(parts[0])[:DRAWINGS]
    assert torch.equal(batches[0]["_keys"], batches[0]["id"])
    second = list(mixed)
    sources = torch.cat([b["_source"] for b in second]).tolist()
    following = [i for i, s in zip(ids(second), sources, strict=True) if not s]
    assert following == ids(db_pass(db, 0))[DRAWINGS : 2 * DRAWINGS]  # the first source goes on in its epoch 0


def db_pass(db: deeplake.Database, epoch: int) -> deeplake.Stream:
    found = stream(db)
    found.set_epoch(epoch)
    return found


@pytest.mark.parametrize("batches", ["mixed", "single"])
@pytest.mark.parametrize(("before", "after"), [(1, 3), (2, 1), (3, 2)])
def test_a_mix_stopped_anywhere_goes_on_for_another_world_size(
    db: deeplake.Database, batches: Any, before: int, after: int
) -> None:
    def mixes(world: int) -> list[deeplake.Stream]:
        ranks = ({"rank": r, "world_size": world, "tail": "short"} for r in range(world))
        return [deeplake.mix([stream(db, **o), stream(db, "drawings", **o)], seed=1, batches=batches) for o in ranks]

    whole = ids(mixes(1)[0])
    assert sorted(whole) == [*range(PHOTOS), *range(1000, 1000 + DRAWINGS)]
    for stop in (1, 3, 6):
        seen: list[int] = []
        states = []
        for mixed in mixes(before):
            with iter(mixed) as running:
                taken = [next(running) for _ in range(stop)]
            seen += valid_ids(taken)
            states.append(mixed.state_dict())
        assert all(state == states[0] for state in states) and len(str(states[0])) < 1024
        counts = set()
        for mixed in mixes(after):
            mixed.load_state_dict(states[0])
            rest = list(mixed)
            counts.add(len(rest))
            seen += valid_ids(rest)
        assert sorted(seen) == sorted(whole) and len(counts) == 1


def test_single_batches_are_each_of_one_source_whose_columns_are_its_own(db: deeplake.Database) -> None:
    mixed = deeplake.mix(
        [(stream(db, columns="id, kind"), 1), (stream(db, "drawings", columns="id, n", batch_size=6), 1)],
        batches="single", stop="cycle", names=["photo", "drawing"],
    )  # fmt: skip
    kinds = Counter()
    for batch in mixed:
        (name,) = set(batch["_source"])
        kinds[name] += 1
        assert ("kind" in batch, "n" in batch) == ((True, False) if name == "photo" else (False, True))
    assert kinds == {"photo": 16, "drawing": 16}


def test_mixes_of_pictures_join_them(db: deeplake.Database) -> None:
    options = {"columns": "id, picture", "transforms": {"picture": deeplake.Image(size=6)}}
    mixed = deeplake.mix([stream(db, **options), stream(db, "drawings", **options)])
    for batch in mixed:
        assert batch["picture"].shape == (len(batch["id"]), 3, 6, 6)
        assert torch.equal(batch["picture"][:, 0, 0, 0].long(), batch["id"] % 250)


def test_what_cannot_be_mixed_is_refused_by_name(db: deeplake.Database) -> None:
    plain = stream(db)
    with pytest.raises(TypeMismatchError, match="differ in columns kind"):
        deeplake.mix([plain, stream(db, columns="id, n, kind")])
    with pytest.raises(TypeMismatchError, match="column 'n' of stream 1 holds float64 numbers, of the first one int64"):
        deeplake.mix([plain, stream(db, columns="id, CAST(n AS DOUBLE PRECISION) AS n")])
    with pytest.raises(TypeMismatchError, match="column 'picture'"):
        pictures = [stream(db, columns="picture", transforms={"picture": deeplake.Image(size=s)}) for s in (4, 5)]
        deeplake.mix(pictures)
    for weight in (0, -1, float("nan"), float("inf"), "x", None, True):
        with pytest.raises(InputError, match="stream 0 has weight"):
            deeplake.mix([(plain, weight)])  # type: ignore[list-item]
    with pytest.raises(InputError, match="batch sizes 4, 5"):
        deeplake.mix([plain, stream(db, batch_size=5)])
    with pytest.raises(InputError, match="rank"):
        deeplake.mix([plain, stream(db, rank=0, world_size=2)])
    with pytest.raises(InputError, match="stream 1 has prefetch=5 and the first one 2"):
        deeplake.mix([plain, stream(db, prefetch=5)])
    with pytest.raises(InputError, match="batches='single'"):
        deeplake.mix([plain, stream(db, bucket_by="n")])
    with pytest.raises(InputError, match="another number of batches in every epoch"):
        deeplake.mix([plain, stream(db, budget=deeplake.Budget("n", 9))], batches="single")
    with pytest.raises(InputError, match="at least one stream"):
        deeplake.mix([])
    with pytest.raises(InputError, match="one per stream"):
        deeplake.mix([plain], names=["a", "b"])


def test_a_state_of_another_mix_is_refused(db: deeplake.Database) -> None:
    state = deeplake.mix([(stream(db), 1), (stream(db, "drawings"), 1)]).state_dict()
    for other in (
        deeplake.mix([(stream(db), 1), (stream(db, "drawings"), 2)]),
        deeplake.mix([(stream(db), 1), (stream(db, "drawings"), 1)], seed=1),
        stream(db),
    ):
        with pytest.raises(StateError):
            other.load_state_dict(state)
    bins = stream(db, bucket_by="kind")
    for one, other in (
        (bins, stream(db, columns="id, n, kind")),
        (bins, stream(db, bucket_by="n")),
        (stream(db), bins),
    ):
        with pytest.raises(StateError):
            other.load_state_dict(one.state_dict())


# -- weights -----------------------------------------------------------------------------------------------------------


def test_weights_by_expression_balance_classes(db: deeplake.Database) -> None:
    weighted = stream(db, weight="CASE kind WHEN 'a' THEN 3 WHEN 'b' THEN 1 ELSE 0 END", num_samples=2000)
    batches = list(weighted)
    drawn = ids(batches)
    assert len(drawn) == 2000 and {i % 3 for i in drawn} == {0, 1}
    assert abs(sum(i % 3 == 0 for i in drawn) / 2000 - 3 * 21 / (3 * 21 + 20)) < 0.04  # 4 standard deviations
    assert all(torch.equal(b["_weight"], torch.where(b["id"] % 3 == 0, 3, 1)) for b in batches)
    again = stream(db, weight="CASE kind WHEN 'a' THEN 3 WHEN 'b' THEN 1 ELSE 0 END", num_samples=2000)
    assert ids(again) == drawn != ids(again)


def test_weights_are_checked_and_name_the_row(db: deeplake.Database) -> None:
    with pytest.raises(InputError, match="weight of the row with key 7 is NULL"):
        stream(db, weight="CASE id WHEN 7 THEN NULL ELSE 1 END")
    with pytest.raises(InputError, match="weight of the row with key 0 is -1"):
        stream(db, weight="-n")
    with pytest.raises(SQLError):
        stream(db, weight="n) FROM drawings --")
    with pytest.raises(SQLError, match="DISTINCT"):
        db.stream("SELECT DISTINCT n FROM photos", batch_size=4, weight="n + 1")
    with pytest.raises(InputError, match="num_samples goes with weight="):
        stream(db, num_samples=4)


def test_a_row_drawn_twice_in_one_batch_is_augmented_in_two_ways(db: deeplake.Database) -> None:
    image = deeplake.Image(size=(8, 12), flip=0.5)
    db.execute("CREATE TABLE one (id BIGINT PRIMARY KEY, picture IMAGE)")
    gradient = np.broadcast_to(np.arange(0, 240, 20, dtype=np.uint8)[None, :, None], (8, 12, 3))
    db.insert("one", [{"id": 1, "picture": np.ascontiguousarray(gradient)}])
    (batch,) = db.stream(
        "SELECT id, picture FROM one", batch_size=32, weight="1", num_samples=32, transforms={"picture": image}
    )
    mirrored = batch["picture"][:, 0, 0, 0] > 100
    assert 4 < int(mirrored.sum()) < 28


# -- buckets and budgets -----------------------------------------------------------------------------------------------


def test_every_bucket_has_its_own_shape(db: deeplake.Database) -> None:
    sizes = {"a": (4, 6), "b": (6, 4), "c": (5, 5)}
    bucketed = stream(
        db, columns="id, kind, picture", bucket_by="kind",
        transforms={"picture": {kind: deeplake.Image(size=size) for kind, size in sizes.items()}},
    )  # fmt: skip
    seen = []
    for batch in bucketed:
        (kind,) = set(batch["kind"])
        assert batch["picture"].shape == (len(batch["id"]), 3, *sizes[kind])
        seen += batch["id"].tolist()
    assert sorted(seen) == list(range(PHOTOS)) and len(bucketed) == 6 + 5 + 5


@pytest.mark.parametrize(("before", "after"), [(1, 2), (3, 1), (2, 4)])
def test_buckets_within_a_budget_go_on_for_another_world_size(db: deeplake.Database, before: int, after: int) -> None:
    def streams(world: int) -> list[deeplake.Stream]:
        budget = deeplake.Budget("LENGTH(kind) * n", 9)
        ranks = ({"rank": r, "world_size": world, "tail": "short"} for r in range(world))
        return [stream(db, bucket_by="kind", columns="id, n, kind", budget=budget, **o) for o in ranks]

    bins = [frozenset(b["id"].tolist()) for b in streams(1)[0]]
    seen: list[frozenset[int]] = []
    states = []
    for one in streams(before):
        with iter(one) as running:
            taken = [next(running) for _ in range(3)]
        states.append(one.state_dict())
        seen += [frozenset(valid_ids([b])) for b in taken]
    for one in streams(after):
        one.load_state_dict(states[0])
        for batch in one:
            assert int(batch["n"].sum()) <= 9 and len(set(batch["kind"])) == 1
            seen.append(frozenset(valid_ids([batch])))
    assert sorted(map(sorted, filter(None, seen))) == sorted(map(sorted, bins))


def test_buckets_under_workers_are_the_same(db: deeplake.Database) -> None:
    alone = ids(stream(db, bucket_by="n"))
    loader = DataLoader(stream(db, bucket_by="n"), batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert ids(loader) == alone


@pytest.mark.sqlite_only("a spawned process costs seconds, and PostgreSQL's are tested with its searches")
def test_all_of_it_is_the_same_when_workers_are_spawned(db: deeplake.Database) -> None:
    def mixed() -> deeplake.Stream:
        parts = [stream(db, weight="n"), stream(db, "drawings").limit(9), stream(db, bucket_by="kind", columns="id")]
        return deeplake.mix(parts, seed=2, stop=20, batches="single").map(doubled)

    alone = list(mixed())
    loader = DataLoader(mixed(), batch_size=None, num_workers=2, multiprocessing_context="spawn")
    for expected, batch in zip(alone, loader, strict=True):
        assert torch.equal(expected["id"], batch["id"]) and torch.equal(expected["twice"], batch["twice"])
        assert torch.equal(expected["_source"], batch["_source"]) and tuple(batch["_cursor"]) == expected["_cursor"]


def doubled(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "twice": batch["id"] * 2}


def test_wrong_buckets_are_refused(db: deeplake.Database) -> None:
    image = deeplake.Image(size=4)
    with pytest.raises(InputError, match="lacks the bucket 'c'"):
        stream(db, columns="picture, kind", bucket_by="kind", transforms={"picture": {"a": image, "b": image}})
    with pytest.raises(InputError, match="say bucket_by="):
        stream(db, columns="picture", transforms={"picture": {"a": image}})
    with pytest.raises(TypeMismatchError, match=r"expected Image\(...\)"):
        video = dict.fromkeys("abc", deeplake.Video())
        stream(db, columns="picture, kind", bucket_by="kind", transforms={"picture": video})
    with pytest.raises(InputError, match="needs a column of SQL values, and 'picture' is none"):
        stream(db, columns="picture, n", bucket_by="picture")
    with pytest.raises(InputError, match=r"the cost of the row with key 3 is 4 .*the budget takes 0 to 3"):
        stream(db, columns="id", budget=deeplake.Budget("n", 3))


# -- limit, map, collate -----------------------------------------------------------------------------------------------


def test_a_limit_is_the_beginning_of_every_epoch(db: deeplake.Database) -> None:
    whole, limited = stream(db), stream(db).limit(10)
    assert len(limited) == 3
    for _ in range(2):
        assert ids(limited) == ids(whole)[:10]
    assert ids(stream(db).limit(1000)) == ids(stream(db))
    with pytest.raises(InputError, match=r"limit\(0\)"):
        stream(db).limit(0)
    with pytest.raises(StateError, match="limit missing"):
        limited.load_state_dict(whole.state_dict())


def test_maps_run_one_behind_the_other_and_own_keys_come_back(db: deeplake.Database) -> None:
    mapped = stream(db).map(lambda b: {"id": b["id"], "m": b["n"] + 1}).map(lambda b: {**b, "m": b["m"] * 10})
    reference = stream(db)
    for batch, expected in zip(mapped, reference, strict=True):
        assert torch.equal(batch["m"], (expected["n"] + 1) * 10) and "n" not in batch
        assert batch["_cursor"] == expected["_cursor"] and torch.equal(batch["_keys"], expected["_keys"])
    with iter(mapped) as running:
        next(running)
        rest = mapped.state_dict()
    again = stream(db)
    again.load_state_dict(rest)
    assert mapped.state_dict() == again.state_dict()


def test_an_error_in_a_map_names_the_batch_and_a_stop_iteration_is_no_end(db: deeplake.Database) -> None:
    def broken(batch: dict[str, Any]) -> dict[str, Any]:
        raise ZeroDivisionError("mine")

    first = next(iter(stream(db)))["_keys"].tolist()
    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        next(iter(stream(db).map(broken)))
    assert f"keys {', '.join(map(str, first))}" in caught.value.__notes__[0] and "broken" in caught.value.__notes__[0]
    with pytest.raises(InputError, match="raised StopIteration"):
        next(iter(stream(db).map(lambda _: next(iter(())))))
    with pytest.raises(InputError, match="gave NoneType for a batch"):
        next(iter(stream(db).map(lambda _: None)))  # type: ignore[arg-type, return-value]
    with pytest.raises(InputError, match="map takes a function"):
        stream(db).map(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="map takes a function, got None"):
        stream(db).map(None)  # type: ignore[arg-type]


def test_collate_makes_the_batch_of_samples(db: deeplake.Database) -> None:
    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {"pairs": [(int(s["id"]), len(s["tokens"])) for s in samples]}

    for batch in stream(db, columns="id, tokens", collate=collate).map(lambda b: {**b, "count": len(b["pairs"])}):
        assert batch["pairs"] == [(i, 1 + i % 5) for i in batch["_keys"].tolist()]
        assert batch["count"] == len(batch["pairs"]) and "id" not in batch
    with pytest.raises(InputError, match="drop ragged="):
        stream(db, columns="tokens", collate=collate, ragged="pad")


# -- ragged columns ----------------------------------------------------------------------------------------------------


def test_padded_nested_and_listed_tensors_hold_the_same(db: deeplake.Database) -> None:
    choices: list[Any] = ["list", "pad", "nested", deeplake.Pad(value=-1, multiple=8)]
    listed, padded, nested, wide = (list(stream(db, columns="id, tokens", ragged={"tokens": c})) for c in choices)
    for a, b, c, d in zip(listed, padded, nested, wide, strict=True):
        items = [torch.arange(1 + i % 5) for i in a["id"].tolist()]
        assert all(torch.equal(x, y) for x, y in zip(a["tokens"], items, strict=True))
        reference = torch.nn.utils.rnn.pad_sequence(items, batch_first=True)
        assert torch.equal(b["tokens"], reference)
        assert b["tokens_length"].tolist() == [len(x) for x in items]
        assert c["tokens"].layout is torch.jagged
        assert all(torch.equal(x, y) for x, y in zip(c["tokens"].unbind(), items, strict=True))
        assert d["tokens"].shape == (len(items), 8)
        assert int((d["tokens"] == -1).sum()) == 8 * len(items) - sum(map(len, items))


def test_pictures_of_several_sizes_are_padded_to_the_largest(db: deeplake.Database) -> None:
    for batch in stream(db, columns="id, picture", ragged="pad"):
        sizes = [(3, *SIZES[i % 3]) for i in batch["id"].tolist()]
        assert batch["picture_length"].tolist() == [list(size) for size in sizes]
        assert tuple(batch["picture"].shape[1:]) == tuple(np.max(sizes, axis=0))
        for item, (_, h, w), i in zip(batch["picture"], sizes, batch["id"].tolist(), strict=True):
            assert (item[:, :h, :w] == i % 250).all() and item.long().sum() == (i % 250) * 3 * h * w
    with pytest.raises(DimensionError, match="nested tensor has one ragged dimension"):
        list(stream(db, columns="picture", ragged={"picture": "nested"}))


def test_wrong_ragged_choices_are_refused(db: deeplake.Database) -> None:
    for choice, message in (
        ({"id": "pad"}, "items have one shape"),
        ({"nothing": "pad"}, "the query's columns are"),
        ({"tokens": "stack"}, "none of 'pad', 'list', 'nested'"),
    ):
        with pytest.raises(InputError, match=message):
            stream(db, columns="id, tokens", ragged=choice)
    with pytest.raises(InputError, match="'tokens_length'"):
        stream(db, columns="tokens, n AS tokens_length", ragged="pad")
    with pytest.raises(InputError, match="WHERE tokens IS NOT NULL"):
        db.stream(
            "SELECT p.id, d.tokens FROM photos p LEFT JOIN drawings d ON p.id = d.id", batch_size=4, ragged="nested"
        )


# -- exact evaluation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 3, 5])
def test_a_metric_over_ranks_by_valid_is_that_of_one_process(db: deeplake.Database, world: int) -> None:
    """Sum and count of valid rows, added over the ranks, are exact; every rank has as many batches."""

    def totals(**options: Any) -> tuple[int, int, int]:
        total = count = 0
        batches = list(stream(db, shuffle=False, tail="short", **options))
        for batch in batches:
            valid = batch.get("valid", torch.ones(len(batch["n"]), dtype=torch.bool))
            total, count = total + int(batch["n"][valid].sum()), count + int(valid.sum())
        return total, count, len(batches)

    ranks = [totals(rank=r, world_size=world) for r in range(world)]
    alone = totals()
    assert (sum(r[0] for r in ranks), sum(r[1] for r in ranks)) == alone[:2] == (sum(1 + i % 5 for i in range(61)), 61)
    assert len({r[2] for r in ranks}) == 1
