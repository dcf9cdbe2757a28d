"""The command line: what it prints, where errors go, and which codes it ends with."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import deeplake_loader as deeplake
from deeplake_loader import cli
from deeplake_loader.recall import measure

ROOT = Path(__file__).resolve().parents[1]
ROWS, WIDTH = 10_000, 16


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Clustered vectors with lists."""
    pytest.importorskip("faiss")
    folder = tmp_path_factory.mktemp("cli") / "store"
    rng = np.random.default_rng(2)
    centres = rng.standard_normal((50, WIDTH)) * 2
    points = (centres[rng.integers(0, 50, ROWS)] + rng.standard_normal((ROWS, WIDTH))).astype(np.float32)
    with deeplake.connect(folder) as db:
        db.execute(f"CREATE TABLE t (id BIGINT PRIMARY KEY, v VECTOR({WIDTH}), w VECTOR({WIDTH}))")
        db.insert("t", {"v": points, "w": points})
        assert db.create_index("t", "v", lists=50) == 0  # 640 KB rest in the catalog still
        db.optimize()
        db.execute("CREATE TABLE bare (id BIGINT PRIMARY KEY, v VECTOR(3))")
    return str(folder)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.program, arguments)


def told(*arguments: str) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_recall_is_that_of_the_lists_and_grows_with_them(store: str) -> None:
    few, many = (told("recall", store, "t", "v", "--queries", "30", "--nprobe", n) for n in ("1", "15"))
    assert few["recall"] < many["recall"] and many["recall"] > 0.9 and few["worst"] <= few["recall"]
    assert few["examined"] < many["examined"] < ROWS and few["exact"] == many["exact"] == 0
    assert (few["rows"], few["queries"], few["k"]) == (ROWS, 30, 10)


def test_a_scan_finds_everything_and_says_so(store: str) -> None:
    found = told("recall", store, "t", "w", "--queries", "10")
    assert found["recall"] == found["worst"] == 1 and found["exact"] == 10 and found["examined"] == ROWS
    assert told("recall", store, "t", "v", "--queries", "5", "--metric", "l2")["exact"] == 5
    assert "create_index" in run("recall", store, "t", "w", "--queries", "3").stdout


def test_what_is_measured_is_what_a_loop_in_float64_measures(store: str) -> None:
    with deeplake.connect(store, read_only=True) as db:
        queries = db.vectors(np.array(db.execute("SELECT v FROM t ORDER BY id LIMIT 12").raw(0))) + np.float32(0.3)
        points = np.stack([row.v.array() for row in db.execute("SELECT v FROM t ORDER BY id")]).astype(np.float64)
        shares, examined = [], []
        for query in queries:
            found = db.search("t", "v", query, k=7, exact=False, nprobe=2)
            scores = points @ query / np.linalg.norm(points, axis=1)
            best = set((np.argsort(-scores)[:7] + 1).tolist())
            shares.append(len(best & {row.id for row in found}) / 7)
            examined.append(found.rows_examined)
        report = measure(db, "t", "v", queries=queries, k=7, nprobe=2)
    assert report.recall == pytest.approx(np.mean(shares)) and report.worst == pytest.approx(min(shares))
    assert report.recall < 1 and report.examined == np.mean(examined)


def test_queries_can_come_from_a_file(store: str, tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", np.eye(WIDTH, dtype=np.float32)[:5])
    found = told("recall", store, "t", "v", "--queries-file", str(tmp_path / "q.npy"), "--aim", "1")
    assert found["queries"] == found["exact"] == 5 and found["recall"] == 1
    np.save(tmp_path / "flat.npy", np.zeros(5))
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "words.npy", np.array([["a"] * WIDTH]))
    for name in ("flat", "text", "words"):
        wrong = run("recall", store, "t", "v", "--queries-file", str(tmp_path / f"{name}.npy"))
        assert wrong.exit_code == 2 and name in wrong.stderr


def test_a_table_of_one_row_has_no_other_to_be_found(tmp_path: Path) -> None:
    with deeplake.connect(tmp_path / "one") as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, v VECTOR(2))")
        db.insert("t", {"v": [[1, 2]]})
        assert measure(db, "t", "v").recall == measure(db, "t", "v", queries=np.ones((3, 2))).recall == 1
    assert told("recall", str(tmp_path / "one"), "t", "v")["rows"] == 1


@pytest.mark.parametrize("queries", [np.zeros((0, WIDTH)), np.zeros(WIDTH), np.array([["a"] * WIDTH]), 0])
def test_queries_that_are_none_are_refused(store: str, queries: Any) -> None:
    with deeplake.connect(store, read_only=True) as db, pytest.raises(deeplake.errors.InputError, match="expected"):
        measure(db, "t", "v", queries=queries)


def test_a_recall_below_the_wanted_one_is_exit_code_3(store: str) -> None:
    done = run("recall", store, "t", "v", "--queries", "20", "--nprobe", "1", "--min-recall", "1")
    assert done.exit_code == 3 and "larger --nprobe" in done.stderr and "recall@10" in done.stdout
    assert run("recall", store, "t", "w", "--queries", "3", "--min-recall", "1").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["no-such-folder", "t", "v"], "no store"), (["{store}", "nope", "v"], "tables: "),
     (["{store}", "t", "id"], "VECTOR"),
     (["{store}", "bare", "v"], "no vector")],
)  # fmt: skip
def test_what_the_store_refuses_is_one_line_and_exit_code_1(store: str, arguments: list[str], said: str) -> None:
    given = [a.format(store=store) for a in arguments]
    done = run("recall", *given)
    assert done.exit_code == 1 and done.stdout == ""
    assert done.stderr.startswith("Error: ") and said in done.stderr and done.stderr.count("\n") == 1
    assert "Traceback (most recent call last)" in run("--debug", "recall", *given).stderr


@pytest.mark.parametrize(
    "arguments",
    [["recall"], ["recall", "s", "t", "v", "--k", "0"], ["recall", "s", "t", "v", "--nprobe", "1", "--aim", "0.5"],
     ["recall", "s", "t", "v", "--metric", "dot"], ["unknown"]],
)  # fmt: skip
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2 and "Usage:" in done.stderr


def test_help_has_an_example_and_the_exit_codes() -> None:
    codes = run("--help").stdout
    assert [line.split()[0] for line in codes.split("Exit codes:")[1].splitlines()[1:]] == ["0", "1", "2", "3"]
    text = run("recall", "--help").stdout
    example = re.search(r"deeplake-loader (recall .*)", text)
    assert example is not None and set(re.findall(r"--[a-z-]+", example[1])) <= set(re.findall(r"--[a-z-]+", text))
    assert run("--version").stdout.split()[-1] == deeplake.__version__


def test_the_console_script_is_the_command_and_imports_no_torch() -> None:
    setup = (ROOT / "setup.py").read_text()
    calls = [n for n in ast.walk(ast.parse(setup)) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "setup"]
    found = {k.arg: k.value for k in calls[0].keywords}
    (script,) = ast.literal_eval(found["entry_points"])["console_scripts"]
    assert script == "deeplake-loader = deeplake_loader.cli:main" and callable(cli.main)
    code = "import sys; from deeplake_loader import cli\ntry: cli.main(['--version'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'numpy', 'pyarrow') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
