"""Tools that know nothing of this package open the catalog's file and read main, every branch, and where blobs lie."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deeplake_loader as deeplake

ON_MAIN = "SELECT id, prompt, steps FROM generations ORDER BY id"
ON_BRANCH = 'SELECT id, prompt, steps FROM "generations@experiment/x" ORDER BY id'
FILES = "SELECT id, url, byte_offset, byte_length FROM generations_files ORDER BY id"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[deeplake.Database]:
    """Three rows on main, of which a branch changed one, removed one and added one."""
    with deeplake.connect(tmp_path_factory.mktemp("tools") / "store") as db:
        db.execute(
            "CREATE TABLE generations (id BIGINT PRIMARY KEY, prompt TEXT, steps INTEGER, photo IMAGE, e VECTOR(4))"
        )
        rng = np.random.default_rng(0)
        photos = [rng.integers(0, 256, (200, 200, 3), dtype=np.uint8) for _ in range(3)]
        vectors = np.eye(4, dtype=np.float32)[:3]
        db.insert(
            "generations", {"prompt": ["a fox", "ein Bär", None], "steps": [10, 20, 30], "photo": photos, "e": vectors}
        )
        with db.branch("experiment/x", from_="main") as branch:
            branch.execute("UPDATE generations SET steps = 99 WHERE id = 1")
            branch.execute("DELETE FROM generations WHERE id = 2")
            branch.execute("INSERT INTO generations (prompt, steps) VALUES ('new', 1)")
        yield db


@pytest.fixture(scope="module")
def expected(store: deeplake.Database) -> dict[str, list[tuple[Any, ...]]]:
    """What this package gives for the same rows."""
    with deeplake.connect(store.root, branch="experiment/x") as branch:
        places = [(row.id, row.photo) for row in store.execute("SELECT id, photo FROM generations ORDER BY id")]
        return {
            ON_MAIN: [tuple(row) for row in store.execute(ON_MAIN)],
            ON_BRANCH: [tuple(r) for r in branch.execute("SELECT id, prompt, steps FROM generations ORDER BY id")],
            FILES: [(i, p.url, store.locate(p._address).offset, len(p.bytes())) for i, p in places],
        }


@pytest.mark.parametrize("sql", [ON_MAIN, ON_BRANCH, FILES])
def test_the_sqlite3_command_reads_main_branches_and_places(
    store: deeplake.Database, expected: dict[str, list[tuple[Any, ...]]], sql: str
) -> None:
    command = shutil.which("sqlite3")
    if command is None:
        pytest.skip("the command sqlite3 is not installed")
    file = os.path.join(store.root, "catalog.sqlite")
    done = subprocess.run([command, "-separator", "|", file, sql], capture_output=True, text=True, check=True)
    shown = ["|".join("" if v is None else str(v) for v in row) for row in expected[sql]]
    assert done.stdout.splitlines() == shown


@pytest.mark.parametrize("sql", [ON_MAIN, ON_BRANCH, FILES])
def test_datasette_serves_main_branches_and_places(
    store: deeplake.Database, expected: dict[str, list[tuple[Any, ...]]], sql: str
) -> None:
    datasette = pytest.importorskip("datasette.app").Datasette([os.path.join(store.root, "catalog.sqlite")])
    answer = asyncio.run(datasette.client.get("/catalog.json", params={"sql": sql, "_shape": "arrays"}))
    assert answer.status_code == 200, answer.text
    assert [tuple(row) for row in answer.json()["rows"]] == expected[sql]


def test_datasette_lists_the_table_with_its_key(store: deeplake.Database) -> None:
    datasette = pytest.importorskip("datasette.app").Datasette([os.path.join(store.root, "catalog.sqlite")])
    answer = asyncio.run(datasette.client.get("/catalog/generations/1.json", params={"_shape": "objects"}))
    assert answer.json()["rows"][0]["prompt"] == "a fox"
    tables = {t["name"]: t for t in asyncio.run(datasette.client.get("/catalog.json")).json()["tables"]}
    assert tables["generations"]["primary_keys"] == ["id"] and tables["generations"]["count"] == 3


@pytest.mark.parametrize("sql", [ON_MAIN, ON_BRANCH, FILES])
def test_duckdb_attaches_the_catalog(
    store: deeplake.Database, expected: dict[str, list[tuple[Any, ...]]], sql: str
) -> None:
    duckdb = pytest.importorskip("duckdb")
    connection = duckdb.connect()
    try:
        connection.execute("SET autoinstall_known_extensions = false")  # nothing is to be downloaded
        connection.execute("LOAD sqlite_scanner")
    except duckdb.Error as error:
        pytest.skip(f"DuckDB's sqlite extension is not installed: {str(error).splitlines()[0]}")
    connection.execute(f"ATTACH '{store.root}/catalog.sqlite' AS store (TYPE sqlite); USE store")
    assert connection.execute(sql).fetchall() == expected[sql]


def test_what_another_tool_writes_on_main_is_on_record(tmp_path: Path) -> None:
    command = shutil.which("sqlite3")
    if command is None:
        pytest.skip("the command sqlite3 is not installed")
    with deeplake.connect(tmp_path / "store") as db:
        db.execute("CREATE TABLE g (id BIGINT PRIMARY KEY, prompt TEXT)")
        db.insert("g", {"prompt": ["a", "b"]})
        db.tag("before")
        statements = "PRAGMA foreign_keys = ON; UPDATE g SET prompt = 'c' WHERE id = 2; REPLACE INTO g VALUES (1, 'd');"
        subprocess.run([command, f"{db.root}/catalog.sqlite", statements], check=True)
        counts = db.diff("before", "main").counts["g"]
        assert (counts.added, counts.changed, counts.removed) == (0, 2, 0)
        with db.at("before") as then:
            assert [tuple(row) for row in then.execute("SELECT id, prompt FROM g ORDER BY id")] == [(1, "a"), (2, "b")]
