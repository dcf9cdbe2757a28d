"""A cold query imports no heavy library, and once its plan is cached not even the SQL compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Store

import deeplake_loader as deeplake

HEAVY = (
    "torch",
    "pyarrow",
    "sqlalchemy",
    "fsspec",
    "webdataset",
    "sqlglot",
    "av",
    "PIL",
    "pandas",
    "torchdata",
    "tqdm",
)
QUERY = """SELECT prompt, frames, cosine_similarity(clip_embedding, :query_vec) AS score FROM generations
           WHERE model_version = 'sdxl-1.0' AND steps >= 25 ORDER BY score DESC LIMIT 2"""


def imported_by(code: str, *arguments: str, names: tuple[str, ...] = (*HEAVY, "numpy")) -> set[str]:
    """Those of the modules that a fresh interpreter holds after running the code."""
    report = f"\nimport sys; print('|'.join(m for m in {names!r} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code + report, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    return set(filter(None, done.stdout.splitlines()[-1].split("|")))


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert imported_by("import deeplake_loader; deeplake_loader.connect") == set()


def test_a_cold_hybrid_query_with_a_cached_plan_loads_nothing_heavy(tmp_path: Path) -> None:
    with deeplake.connect(tmp_path) as db:
        db.execute("CREATE TABLE generations (id BIGINT PRIMARY KEY, prompt TEXT, clip_embedding VECTOR(4), "
                   "frames VIDEO, model_version TEXT, steps INTEGER)")  # fmt: skip
        rows = [{"prompt": str(i), "clip_embedding": [i, 1, 0, 0], "model_version": "sdxl-1.0", "steps": 30}
                for i in range(300)]  # fmt: skip
        db.insert("generations", rows)
        db.optimize()
        expected = [row.prompt for row in db.execute(QUERY, {"query_vec": [1, 0, 0, 0]})]
    code = (
        "import sys, deeplake_loader as deeplake\n"
        f"rows = deeplake.connect(sys.argv[1]).execute({QUERY!r}, {{'query_vec': [1.0, 0, 0, 0]}})\n"
        f"assert [r.prompt for r in rows] == {expected!r}, rows.fetchall()\n"
    )
    assert imported_by(code, str(tmp_path)) == set()


@pytest.mark.postgres_only("what a running server is asked with")
def test_a_cold_query_on_postgresql_loads_nothing_heavy_and_no_compiler(db: deeplake.Database, place: Store) -> None:
    db.execute("CREATE TABLE generations (id BIGINT PRIMARY KEY, prompt TEXT, photo IMAGE, clip_embedding VECTOR(4))")
    db.insert("generations", {"prompt": ["a", "b", "c"], "clip_embedding": [[1, 0, 0, 0]] * 3})
    query = "SELECT id, prompt, photo FROM generations WHERE id > %s ORDER BY id"
    assert len(db.execute(query, [1])) == 2
    db.branch("idea")
    code = (
        "import sys, deeplake_loader as deeplake\n"
        "for branch in ('main', 'idea'):\n"
        "    db = deeplake.connect(sys.argv[1], branch=branch)\n"
        f"    assert [row.prompt for row in db.execute({query!r}, [1])] == ['b', 'c']\n"
    )
    compiler = ("deeplake_loader.sql.tree", "deeplake_loader.sql.queries", "deeplake_loader.postgres.reading")
    assert imported_by(code, place.url, names=(*HEAVY, "numpy", *compiler)) == set()
