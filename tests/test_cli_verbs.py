"""Commands over branches, history, searches, care and other people's data do what the verbs of Database do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_store import ROWS, VECTORS, build, ran, run
from test_cli import nothing_checked_out, write_tars  # noqa: F401

import deeplake_loader as deeplake


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verbs") / "store"
    build(folder)
    return folder


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Path:
    """A store of the test's own."""
    return Path(shutil.copytree(built, tmp_path / "store"))


def told(store: Path, *arguments: str) -> Any:
    return json.loads(ran(store, *arguments, "--json"))


def count(store: Path, *options: str) -> int:
    return int(ran(store, "sql", "SELECT count(*) FROM generations", "--no-header", *options))


# -- branches ----------------------------------------------------------------------------------------------------------


def test_a_branch_is_made_renamed_checked_out_and_forgotten(store: Path) -> None:
    ran(store, "branch", "idea", "--from", "experiment", "--checkout")
    assert count(store) == ROWS + 1 and count(store, "-b", "main") == ROWS
    ran(store, "branch", "idea", "--rename", "better")
    found = {branch["name"]: branch["current"] for branch in told(store, "branches")}
    assert found == {"main": False, "experiment": False, "better": True}
    assert "* | better" in ran(store, "branches")
    ran(store, "branch", "better", "--delete")
    assert count(store) == ROWS and "better" not in ran(store, "branches")
    assert run(store, "branch", "main").exit_code == 2


def test_a_merge_counts_and_conflicts_are_code_1(store: Path) -> None:
    dry = told(store, "merge", "experiment", "--dry-run")
    assert (dry["added"], dry["changed"], dry["commit"]) == (1, 1, None) and count(store) == ROWS
    ran(store, "sql", "UPDATE generations SET steps = 50 WHERE id = 2")
    for extra in ((), ("--dry-run",)):
        refused = run(store, "merge", "experiment", *extra)
        assert refused.exit_code == 1 and "steps=99" in refused.stdout and "steps=50" in refused.stdout
        assert "changed on both" in refused.stdout
    as_json = run(store, "merge", "experiment", "--json")
    assert as_json.exit_code == 1
    (conflict,) = json.loads(as_json.stdout)["conflicts"]
    assert (conflict["key"], conflict["ours"]["steps"], conflict["theirs"]["steps"]) == (2, 50, 99)
    assert conflict["base"]["steps"] == 21 and count(store) == ROWS
    merged = told(store, "merge", "experiment", "--into", "main", "--on-conflict", "theirs", "-m", "bring it")
    assert merged["added"] == 1 and len(merged["commit"]) == 32 and count(store) == ROWS + 1
    assert json.loads(ran(store, "log", "-n", "1", "--json"))["message"] == "bring it"
    assert "nothing to merge" in ran(store, "merge", "experiment")


def test_a_diff_is_counts_or_rows_and_its_exit_code_can_tell(store: Path) -> None:
    assert told(store, "diff", "main", "experiment") == {"generations": {"added": 1, "changed": 1, "removed": 0}}
    lines = ran(store, "diff", "main", "experiment", "--rows", "--json").splitlines()
    changes = {row["key"]: row for row in map(json.loads, lines)}
    assert changes[2]["kind"] == "changed" and changes[77]["before"] is None and changes[77]["after"]["prompt"] == "new"
    assert (changes[2]["before"]["steps"], changes[2]["after"]["steps"]) == (21, 99)
    text = ran(store, "diff", "main", "experiment", "--rows")
    assert "steps=99" in text and "prompt=new" in text
    assert run(store, "diff", "main", "experiment", "--exit-code").exit_code == 1
    assert run(store, "diff", "main", "v1", "--exit-code").exit_code == 0
    assert run(store, "diff", "main", "experiment", "--table", "nope").exit_code == 3


def test_the_log_and_tags_are_those_of_the_store(store: Path) -> None:
    ran(store, "tag", "v2", "--at", "experiment", "-m", "second")
    with deeplake.connect(store, read_only=True) as db:
        log, tags = db.log("experiment"), db.tags()
    found = [json.loads(line) for line in ran(store, "log", "experiment", "--json").splitlines()]
    assert [c["id"] for c in found] == [c.id for c in log]
    assert found[0]["changes"] == {"generations": {"added": 1, "changed": 0, "removed": 0}}
    assert [t["name"] for t in told(store, "tags")] == [t.name for t in tags] == ["v1", "v2"]
    assert log[0].id[:12] in ran(store, "log", "experiment").splitlines()[2] and "second" in ran(store, "tags")
    assert count(store, "--at", "v2") == ROWS + 1
    ran(store, "tag", "v2", "--delete")
    assert run(store, "tag", "v2", "--delete").exit_code == 3


def test_revert_gives_the_rows_of_another_point_back(store: Path) -> None:
    ran(store, "sql", "DELETE FROM generations WHERE id > 2")
    assert told(store, "revert", "v1", "-m", "back")["added"] == ROWS - 2 and count(store) == ROWS


# -- rows --------------------------------------------------------------------------------------------------------------


def test_head_gives_the_first_rows_by_key(store: Path) -> None:
    rows = [
        json.loads(line)
        for line in ran(store, "head", "Generations", "-n", "3", "-c", "ID, steps", "-F", "jsonl").splitlines()
    ]
    assert rows == [{"id": i + 1, "steps": 20 + i} for i in range(3)]
    assert len(ran(store, "head", "generations", "--where", "steps > 23 -- two", "-F", "csv").splitlines()) == 3
    assert ran(store, "head", "generations", "-n", "0", "-F", "jsonl") == ""


def test_describe_tells_columns_keys_and_constraints(store: Path) -> None:
    with deeplake.connect(store) as db:
        db.execute("CREATE TABLE tags (id BIGINT PRIMARY KEY, g BIGINT REFERENCES generations (id), x TEXT UNIQUE)")
        db.execute("CREATE INDEX by_steps ON generations (steps) WHERE steps > 3")
    found = told(store, "describe", "generations")
    assert found["primary_key"] == ["id"] and found["checks"][0]["condition"] == "steps > 0"
    columns = {column["name"]: column for column in found["columns"]}
    assert columns["clip_embedding"]["type"] == "VECTOR(8)" and columns["model_version"]["default"] == "'sdxl-1.0'"
    assert not columns["prompt"]["nullable"] and columns["steps"]["nullable"] and not columns["id"]["nullable"]
    text = ran(store, "describe", "tags")
    assert 'FOREIGN KEY ("g") REFERENCES "generations" ("id")' in text and 'UNIQUE ("x")' in text
    assert 'INDEX "by_steps" (steps) WHERE steps > 3' in ran(store, "describe", "GENERATIONS")


# -- searches ----------------------------------------------------------------------------------------------------------


def test_a_search_by_file_and_by_row_is_numpys(store: Path, tmp_path: Path) -> None:
    query = np.ones(8, np.float32)
    cosine = VECTORS @ query / np.linalg.norm(VECTORS, axis=1) / np.linalg.norm(query)
    for shape in ((8,), (1, 8)):
        np.save(tmp_path / "q.npy", query.reshape(shape))
        lines = ran(
            store, "search", "generations", "clip_embedding", "-v", str(tmp_path / "q.npy"), "-k", "3", "-F", "jsonl"
        )
        rows = [json.loads(line) for line in lines.splitlines()]
        assert [row["id"] for row in rows] == (np.argsort(-cosine)[:3] + 1).tolist()
        assert [row["score"] for row in rows] == pytest.approx(np.sort(cosine)[::-1][:3].tolist(), abs=1e-6)
        assert "clip_embedding" not in rows[0] and "prompt" in rows[0]
    distance = np.linalg.norm(VECTORS - VECTORS[1], axis=1)
    options = ("--row", "2", "-k", "2", "--metric", "l2", "-c", "id", "--where", "id <> 3", "-F", "csv")
    by_row = ran(store, "search", "generations", "clip_embedding", *options).splitlines()
    order = [i + 1 for i in np.argsort(distance) if i not in (1, 2)][:2]
    assert by_row[0] == "id,score" and [int(line.split(",")[0]) for line in by_row[1:]] == order


def test_queries_that_are_none_are_refused(store: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "two.npy", np.zeros((2, 8)))
    np.save(tmp_path / "words.npy", np.array(["a"]))
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "q.bin").write_bytes(b"")
    for name in ("two.npy", "words.npy", "text.npy", "q.bin"):
        done = run(store, "search", "generations", "clip_embedding", "-v", str(tmp_path / name))
        assert done.exit_code == 2 and name in done.stderr
    assert run(store, "search", "generations", "clip_embedding", "--row", "999").exit_code == 3


# -- streams, jobs, care -----------------------------------------------------------------------------------------------


def test_stream_measures_a_query(store: Path) -> None:
    query = "SELECT frames, thumbnail, sound, steps FROM generations WHERE id < :n"
    text = ran(
        store, "stream", query, "-p", "n=2", "--batch-size", "1", "--batches", "2", "--size", "16", "--frames", "2"
    )
    assert "samples/s" in text and "bottleneck" in text
    found = told(store, "stream", "SELECT steps FROM generations", "--batch-size", "2", "--batches", "3")
    assert found["batch_size"] == 2 and found["rate"] > 0 and found["decode_rate"] is None


def test_transcode_names_the_videos_that_it_could_not_encode(store: Path) -> None:
    with deeplake.connect(store) as db:
        db.optimize()
        place = db.locate(db.execute("SELECT frames FROM generations WHERE id = 2").raw(0)[0])
    with open(store / place.url, "r+b") as file:
        file.seek(place.offset + 200)
        file.write(b"\0" * 16)
    done = run(store, "transcode", "generations", "frames", "small", "--size", "16", "--json")
    assert done.exit_code == 1
    result = json.loads(done.stdout)
    assert result["rows"] == ROWS - 1 and [bad["key"] for bad in result["bad"]] == [[2]]
    size = json.loads(ran(store, "sql", "SELECT small FROM generations WHERE id = 1", "-F", "jsonl"))["small"]
    assert size["height"] == 16


def test_gc_lists_and_removes_only_when_told(store: Path) -> None:
    stray = store / "shards" / "generations" / "stray.tar"
    stray.write_bytes(b"x" * 100)
    found = told(store, "gc", "--older-than", "0")
    assert found == {"files": ["shards/generations/stray.tar"], "bytes": 100, "dry_run": True} and stray.exists()
    assert "stray" not in ran(store, "gc", "--older-than", "1h")
    assert "stray.tar" in ran(store, "gc", "--older-than", "0s", "--delete") and not stray.exists()


def test_optimize_seals_and_forgets(store: Path) -> None:
    ran(store, "optimize", "--keep", "0")
    assert told(store, "info")["shards"]["open"] == 0 and count(store) == ROWS


def test_init_makes_a_store_and_leaves_one_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPLAKE_HOME", str(tmp_path / "home"))
    done = run(None, "init", "deeplake://org/name")
    assert done.exit_code == 0 and (tmp_path / "home" / "org" / "name" / "catalog.sqlite").is_file()
    ran(tmp_path / "home" / "org" / "name", "sql", "CREATE TABLE t (id BIGINT PRIMARY KEY)")
    assert run(None, "init", "deeplake://org/name").exit_code == 0
    assert told(tmp_path / "home" / "org" / "name", "tables")[0]["name"] == "t"
    (tmp_path / "file").write_text("x")
    assert run(None, "init", str(tmp_path / "file")).exit_code == 6


# -- other people's data -----------------------------------------------------------------------------------------------


def test_tars_become_rows_once(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tars(2)
    dry = told(store, "ingest", "photos", "shards-{0000..0001}.tar", "--dry-run")
    assert dry["added"] == 0 and "CREATE TABLE" in dry["schema"] and len(told(store, "tables")) == 1
    first, again = (told(store, "ingest", "photos", "shards-*.tar") for _ in range(2))
    assert first["added"] == 4 and again["added"] == 0
    shown = ran(store, "head", "photos", "-F", "jsonl").splitlines()
    assert sorted(json.loads(line)["txt"] for line in shown) == sorted(
        f"caption {i} {j}" for i in (0, 1) for j in (0, 1)
    )
    assert run(store, "ingest", "photos", "shards-9*.tar").exit_code in (2, 3)
    assert run(store, "ingest", "photos", "x.tar", "-c", "image").exit_code == 2


def test_an_export_is_what_pyarrow_and_tarfile_read(store: Path, tmp_path: Path) -> None:
    import tarfile

    import pyarrow.parquet as pq

    query = "SELECT id AS key, thumbnail, steps FROM generations WHERE id <= :n"
    report = told(store, "export", query, "-p", "n=3", "--to", str(tmp_path / "tars"))
    assert report["rows"] == 3 and len(report["files"]) == 1
    with tarfile.open(tmp_path / "tars" / report["files"][0]) as tar:
        assert {name.partition(".")[0] for name in tar.getnames()} == {"1", "2", "3"}
    ran(
        store,
        "export",
        "generations",
        "--to",
        str(tmp_path / "rows"),
        "--format",
        "parquet",
        "--references",
        "--at",
        "v1",
    )
    read = pq.read_table(tmp_path / "rows")
    assert read["steps"].to_pylist() == [20 + i for i in range(ROWS)]
    assert run(store, "export", "generations", "--to", str(tmp_path / "rows")).exit_code == 2


def test_what_is_skipped_is_listed_with_code_1(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tars(2)
    cut = Path("shards-0001.tar").read_bytes()[:2500]
    Path("shards-0001.tar").write_bytes(cut)
    done = run(store, "ingest", "photos", "shards-*.tar", "--on-error", "skip")
    assert done.exit_code == 1 and "shards-0001.tar" in done.stdout and "2 rows added" in done.stdout
    assert run(store, "ingest", "photos", "shards-0001.tar").exit_code == 5
