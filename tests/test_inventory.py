"""What a store holds, compared with what its files, numpy and a scan of its rows say."""

from __future__ import annotations

import json
import sqlite3
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cli_store import ROWS, VECTORS, WIDTH, build, fill, ran, run
from conftest import Store
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import deeplake_loader as deeplake
from deeplake_loader.errors import InputError, NotFoundError
from deeplake_loader.inventory import histogram_of


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inventory") / "store"
    build(folder)
    with deeplake.connect(folder) as db:
        db.optimize()
    return folder


@pytest.fixture
def db(store: Path) -> Iterator[deeplake.Database]:
    with deeplake.connect(store, read_only=True) as database:
        yield database


@given(st.lists(st.floats(-1e6, 1e6) | st.integers(-500, 500).map(float), min_size=1, max_size=60), st.integers(1, 30))
def test_a_histogram_counts_as_numpy_does_over_its_edges(values: list[float], bins: int) -> None:
    found = histogram_of("value", [(value, 1) for value in values], bins)
    assert found is not None and sum(found.counts) == len(values) and len(found.counts) <= bins
    assert found.minimum == min(values) and found.maximum == max(values)
    assert found.median == pytest.approx(statistics.median(values)) and found.mean == pytest.approx(
        statistics.fmean(values)
    )
    if len(found.counts) > 1:
        assert list(found.counts) == np.histogram(values, found.edges)[0].tolist()
    if all(value.is_integer() for value in values):
        assert all(edge.is_integer() for edge in found.edges)
    doubled = histogram_of("value", [(value, 2) for value in values], bins)
    assert (
        doubled is not None and doubled.counts == tuple(2 * c for c in found.counts) and doubled.median == found.median
    )


def test_nothing_and_what_is_no_number_makes_no_histogram() -> None:
    assert histogram_of("value", [], 5) is None
    assert histogram_of("value", [(float("nan"), 3), (float("inf"), 1)], 5) is None
    found = histogram_of("value", [(float("nan"), 3), (2.5, 1)], 5)
    assert found is not None and found.counts == (1,)


def test_info_counts_what_lies_in_the_folder(store: Path, db: deeplake.Database) -> None:
    info = db.info()
    shards, vectors = list((store / "shards").rglob("*.tar")), list((store / "vectors").rglob("*.npy"))
    ends = 1024 * len(shards)  # a tar's end is no value's
    assert (info.shards.files, info.shards.bytes + ends) == (len(shards), sum(f.stat().st_size for f in shards))
    assert (info.vectors.files, info.vectors.bytes) == (len(vectors), sum(f.stat().st_size for f in vectors))
    assert info.vectors.values == sum(len(np.load(f)) for f in vectors) and info.shards.resting == info.shards.open == 0
    assert info.catalog_bytes == (store / "catalog.sqlite").stat().st_size
    assert info.tables[0].rows == ROWS and info.tables[0].bytes == info.shards.bytes + info.vectors.bytes
    with sqlite3.connect(f"file:{store}/catalog.sqlite?mode=ro", uri=True) as catalog:
        assert info.commits == catalog.execute("SELECT count(*) FROM _dl_commits").fetchone()[0]
    assert (info.branches, info.tags) == (2, 1)
    assert info.branch == "main" and str(store) in info.location
    assert json.loads(ran(store, "info", "--json"))["shards"]["bytes"] == info.shards.bytes
    assert f"{ROWS}" in ran(store, "tables").splitlines()[2]


def test_media_are_counted_as_their_handles_tell(db: deeplake.Database) -> None:
    found = {c.name: c for c in db.statistics("generations").columns}
    for name in ("frames", "thumbnail", "sound", "latent"):
        blobs = [row[0] for row in db.execute(f"SELECT {name} FROM generations") if row[0] is not None]
        column = found[name]
        assert column.values == len(blobs) and column.bytes == sum(len(b.bytes()) for b in blobs)
        codecs = Counter(b.info.dtype or b.info.codec for b in blobs)
        assert dict(column.codecs) == codecs
        lengths = next(h for h in column.histograms if h.quantity == "bytes")
        assert lengths.median == statistics.median(b.info.nbytes for b in blobs)
    assert found["frames"].sizes == (("64x48", ROWS),) and found["latent"].sizes == (("2x4", ROWS),)
    frames = {h.quantity: h for h in found["frames"].histograms}
    assert frames["frames"].minimum == 12 and frames["frames"].maximum == 17
    seconds = [row[0].info.duration for row in db.execute("SELECT frames FROM generations")]
    assert frames["seconds"].mean == pytest.approx(statistics.fmean(seconds))


def test_scalars_and_vectors_are_counted_as_pandas_counts_them(db: deeplake.Database) -> None:
    frame = db.execute("SELECT steps, cfg, prompt, meta, created_at FROM generations").to_pandas()
    found = {c.name: c for c in db.statistics("generations", ["steps", "cfg", "prompt", "meta", "created_at"]).columns}
    for name in ("steps", "cfg"):
        assert found[name].mean == pytest.approx(frame[name].mean()) and found[name].distinct == frame[name].nunique()
        assert (found[name].minimum, found[name].maximum) == (frame[name].min(), frame[name].max())
    assert found["meta"].values == ROWS - 1 and found["meta"].rows == ROWS
    common = found["prompt"].common
    assert len(common) == 5 and set(common) <= set(frame["prompt"].value_counts().items())
    assert found["created_at"].minimum == frame["created_at"].min().to_pydatetime()
    vectors = db.statistics("generations", ["clip_embedding"]).columns[0]
    assert (vectors.values, vectors.bytes) == (ROWS, ROWS * WIDTH * 4)


def test_statistics_are_those_of_the_branch_and_of_the_time(store: Path) -> None:
    with deeplake.connect(store, branch="experiment", read_only=True) as db:
        column = db.statistics("generations", ["steps"]).columns[0]
        assert (column.rows, column.maximum) == (ROWS + 1, 99)
        assert db.statistics("generations", ["frames"]).columns[0].values == ROWS
        with db.at("v1") as then:
            assert then.statistics("generations", ["steps"]).columns[0].maximum == 25
            assert then.statistics("generations", ["frames"]).columns[0].values == ROWS


@pytest.mark.both_catalogs
def test_both_catalogs_count_the_same(place: Store, store: Path) -> None:
    with place.connect() as db:
        fill(db)
        for branch in ("main", "experiment"):
            db.checkout(branch)
            with deeplake.connect(store, branch=branch, read_only=True) as other:
                columns = other.tables()["generations"].columns
                chosen = [c.name for c in columns if c.name != "frames"]  # x264's sizes vary by a few bytes
                assert db.statistics("generations", chosen) == other.statistics("generations", chosen)
                mine, theirs = (d.statistics("generations", ["frames"]).columns[0] for d in (db, other))
                assert (mine.codecs, mine.sizes, mine.values) == (theirs.codecs, theirs.sizes, theirs.values)
        found = db.info()
        assert (found.tables[0].rows, found.branch, found.branches, found.tags) == (ROWS + 1, "experiment", 2, 1)
        assert found.shards.values == 18 and (found.catalog_bytes is None) == (place.kind == "postgres")


@pytest.mark.both_catalogs
def test_the_command_line_works_on_both_catalogs(place: Store) -> None:
    with place.connect() as db:
        fill(db)
    assert ran(place.url, "sql", "SELECT id, steps FROM generations WHERE id < 3 ORDER BY id", "-F", "csv") == (
        "id,steps\n1,20\n2,21\n"
    )
    assert json.loads(ran(place.url, "diff", "main", "experiment", "--json"))["generations"]["changed"] == 1
    vector = ran(place.url, "head", "generations", "-n", "1", "-c", "clip_embedding,frames", "-F", "jsonl")
    np.testing.assert_array_equal(np.array(json.loads(vector)["clip_embedding"], np.float32), VECTORS[0])
    found = ran(place.url, "search", "generations", "clip_embedding", "--row", "2", "-k", "2", "-c", "id", "-F", "csv")
    cosine = VECTORS @ VECTORS[1] / np.linalg.norm(VECTORS, axis=1)
    assert [int(line.split(",")[0]) for line in found.splitlines()[1:]] == (np.argsort(-cosine)[1:3] + 1).tolist()
    assert json.loads(ran(place.url, "stats", "generations", "frames", "--json"))["columns"][0]["codecs"] == [
        ["h264", 6]
    ]
    assert run(place.url, "sql", "SELECT 1; SELEC 2").exit_code == 2
    assert run(place.url, "head", "nope").exit_code == 3


def test_bytes_that_two_rows_share_are_counted_once(tmp_path: Path) -> None:
    with deeplake.connect(tmp_path / "s") as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, x IMAGE)")
        db.insert("t", {"x": [np.zeros((9, 8, 3), np.uint8)]})
        db.execute("INSERT INTO t (x) SELECT x FROM t")
        column = db.statistics("t").columns[1]
        size = len(db.execute("SELECT x FROM t LIMIT 1").scalar().bytes())
    assert column.values == 2 and column.bytes == size and column.codecs == (("png", 2),)


def test_what_is_not_there_is_refused(db: deeplake.Database) -> None:
    with pytest.raises(NotFoundError, match="generations"):
        db.statistics("nope")
    with pytest.raises(NotFoundError, match="its columns are"):
        db.statistics("generations", ["nope"])
    for bins in (0, 1001, 2.5):
        with pytest.raises(InputError, match=r"1\.\.1000"):
            db.statistics("generations", bins=bins)


def test_stats_prints_the_facts_and_writes_the_histograms(store: Path, tmp_path: Path) -> None:
    text = ran(store, "stats", "generations", "frames", "steps", "--bins", "3", "--png", str(tmp_path / "h"))
    assert "h264 (6)" in text and "64x48 (6)" in text and "20 .. 25" in text and "generations.frames, seconds" in text
    found = sorted(path.name for path in (tmp_path / "h").iterdir())
    assert found == [f"generations.{n}.png" for n in ("frames.bytes", "frames.frames", "frames.seconds", "steps.value")]
    with Image.open(tmp_path / "h" / found[0]) as picture:
        assert picture.size == (720, 360)
    assert "█" not in ran(store, "stats", "generations", "--no-plots")
    told = json.loads(ran(store, "stats", "generations", "steps", "--json"))
    assert told["rows"] == ROWS and told["columns"][0]["maximum"] == 25
