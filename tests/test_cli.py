"""The command line as a whole: help, examples, exit codes, errors in a line, pipes, Ctrl-C, store and branch."""

from __future__ import annotations

import ast
import errno
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from cli_store import ROOT, WIDTH, build, ran, run, start
from PIL import Image

import deeplake_loader as deeplake
from deeplake_loader import cli, errors
from deeplake_loader.cli.codes import MEANINGS, Code, code_of
from deeplake_loader.cli.program import HOMES, Verb

COMMANDS = sorted(HOMES)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "store"
    build(folder)
    return folder


@pytest.fixture(autouse=True)
def nothing_checked_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("DEEPLAKE_STORE", raising=False)
    monkeypatch.delenv("DEEPLAKE_BRANCH", raising=False)
    yield


def write_tars(count: int) -> None:
    """shards-0000.tar ... with two samples each, in the working folder."""
    for i in range(count):
        with tarfile.open(f"shards-{i:04d}.tar", "w") as tar:
            for j in range(2):
                for extension, data in (("png", png(8 + i + j)), ("txt", f"caption {i} {j}".encode())):
                    member = tarfile.TarInfo(f"{i:04d}{j}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def png(side: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), (200, 40, 10)).save(out, "PNG")
    return out.getvalue()


def command(name: str) -> Verb:
    found = cli.program.get_command(None, name)
    assert isinstance(found, Verb)
    return found


def examples(name: str) -> list[str]:
    return re.split(r"\n(?=deeplake-loader|echo)", command(name).example)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_example_and_the_exit_codes(name: str) -> None:
    text = run(None, name, "--help").stdout
    assert run(None, name, "-h").stdout == text
    for line in command(name).example.splitlines():
        assert line.strip() in text
    assert "Exit codes:" in text and re.search(r"^ *0 +done$", text, re.MULTILINE)
    assert (re.search(r"^ *1 ", text, re.MULTILINE) is not None) == (command(name).no is not None)
    assert max(map(len, text.splitlines())) <= 100


def test_the_help_of_all_lists_every_command_and_every_exit_code() -> None:
    text = run(None, "--help").stdout
    table = text.split("Exit codes:")[1]
    assert [int(line.split()[0]) for line in table.splitlines()[1:]] == [int(code) for code in Code]
    assert set(MEANINGS) == set(Code)
    assert set(re.findall(r"^  (\w+) ", text.split("Commands:")[1].split("Exit")[0], re.MULTILINE)) == set(COMMANDS)
    assert run(None, "--version").stdout.split()[-1] == deeplake.__version__


@pytest.mark.parametrize(("name", "example"), [(n, e) for n in COMMANDS for e in examples(n)])
def test_every_example_runs(
    name: str, example: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "recall":
        pytest.importorskip("faiss")
    shutil.copytree(store, tmp_path / "copy")
    monkeypatch.setenv("DEEPLAKE_STORE", str(tmp_path / "copy"))
    monkeypatch.chdir(tmp_path)
    np.save("query.npy", np.ones(WIDTH, np.float32))
    Path("changes.sql").write_text("UPDATE generations SET steps = 30; DELETE FROM generations WHERE id = 3;")
    write_tars(2)
    text, _, line = example.rpartition(" | ") if example.startswith("echo") else (None, "", example)
    words = shlex.split(line.replace("\\\n", " "))
    assert words[0] == "deeplake-loader" and words[1] == name
    done = run(None, *words[1:], text=None if text is None else shlex.split(text)[1])
    assert done.exit_code == 0, done.output


def test_every_error_of_the_package_has_an_exit_code_of_its_own_kind() -> None:
    def tree(kind: type[errors.DeeplakeError]) -> Iterator[type[errors.DeeplakeError]]:
        for child in kind.__subclasses__():
            if child.__module__.startswith("deeplake_loader"):
                yield child
                yield from tree(child)

    found = {kind.__name__: code_of(kind("said")) for kind in tree(errors.DeeplakeError)}
    assert set(found.values()) <= set(Code) - {Code.DONE, Code.BUG, Code.INTERRUPTED, Code.PIPE}
    wanted = {"SQLError": Code.USAGE, "NotFoundError": Code.MISSING, "ConstraintError": Code.CONSTRAINT,
              "CorruptionError": Code.DAMAGED, "DecodeError": Code.DAMAGED, "StoreError": Code.STORE,
              "LockedError": Code.LOCKED, "ConflictError": Code.NO}  # fmt: skip
    assert wanted.items() <= found.items()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [(["head", "nope"], 3, "tables: generations"), (["sql", "SELEC 1"], 2, "SELEC"),
     (["sql", "SELECT nope FROM generations"], 2, "(line 1, column 8)"),
     (["sql", "INSERT INTO generations (id, prompt) VALUES (1, 'again')"], 4, "id"),
     (["sql", "INSERT INTO generations (prompt, steps) VALUES ('x', -1)"], 4, "CHECK"),
     (["--branch", "nope", "tables"], 3, "branches: main"), (["head", "generations", "--columns", "x"], 3, "columns"),
     (["describe", "generations", "--debug"], 0, ""), (["search", "generations", "steps", "--row", "1"], 3, "VECTOR"),
     (["search", "generations", "clip_embedding", "--vector", "none.npy"], 3, "none.npy"),
     (["show", "generations", "1", "99", "nine"], 3, "no row '99', 'nine'"),
     (["show", "generations", "--columns", "steps"], 2, "picture"), (["tag", "v1"], 2, "v1"),
     (["diff", "main", "nope"], 3, "nope"), (["sql", "-f", "no/such/file.sql"], 3, "no/such/file.sql")],
)  # fmt: skip
def test_an_error_is_one_line_with_the_next_step_and_a_code_of_its_kind(
    store: Path, arguments: list[str], code: int, said: str
) -> None:
    done = run(store, *arguments)
    assert done.exit_code == code, done.output
    if code:
        assert done.stdout == "" and done.stderr.startswith("Error: ") and said in done.stderr
        assert done.stderr.count("\n") == 1
        assert "Traceback (most recent call last)" in run(store, "--debug", *arguments).stderr
        assert "Traceback (most recent call last)" in run(store, *arguments, "--debug").stderr


@pytest.mark.parametrize(
    "arguments",
    [["unknown"], ["sql", "--nope"], ["search", "t", "v"], ["head"], ["gc", "--older-than", "soon"],
     ["head", "t", "-n", "x"],
     ["recall", "t", "v", "--nprobe", "1", "--aim", "0.5"], ["show", "t", "1", "--where", "true"],
     ["branch", "x", "-d", "--from", "main"], ["merge"]],
)  # fmt: skip
def test_a_wrong_command_line_is_code_2_with_the_usage(store: Path, arguments: list[str]) -> None:
    done = run(store, *arguments)
    assert done.exit_code == 2 and "Usage:" in done.stderr and done.stdout == ""


def test_an_error_that_nobody_foresaw_is_one_line_too(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(deeplake.Database, "tags", broken)
    done = run(store, "tags")
    assert done.exit_code == 70 and done.stderr.count("\n") == 1 and "ZeroDivisionError: by zero" in done.stderr


# -- which store, which branch -----------------------------------------------------------------------------------


def test_the_store_is_named_by_an_option_the_environment_or_the_working_folder(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = ["sql", "SELECT count(*) FROM generations", "--no-header"]
    assert ran(store, *count) == "6\n"
    assert run(None, *count, "-s", str(store)).stdout == "6\n"
    monkeypatch.chdir(tmp_path)
    missing = run(None, *count)
    assert missing.exit_code == 3 and "--store" in missing.stderr and not list(tmp_path.glob("*.sqlite"))
    named = run("no-such-folder", *count)
    assert named.exit_code == 3 and "no store in" in named.stderr and not Path("no-such-folder").exists()
    monkeypatch.setenv("DEEPLAKE_STORE", str(store))
    assert run(None, *count).stdout == "6\n"
    monkeypatch.delenv("DEEPLAKE_STORE")
    monkeypatch.chdir(store)
    assert run(None, *count).stdout == "6\n"


def test_a_branch_is_named_by_an_option_the_environment_or_a_checkout(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = ["sql", "SELECT count(*) FROM generations", "--no-header"]
    assert ran(store, *count, "--branch", "experiment") == ran(store, "-b", "experiment", *count) == "7\n"
    ran(store, "checkout", "experiment")
    assert ran(store, *count) == "7\n" and ran(store, "-b", "main", *count) == "6\n"
    (memory,) = (tmp_path / "state" / "deeplake_loader").iterdir()
    assert memory.read_text() == "experiment\n" and str(store) not in memory.name
    monkeypatch.setenv("DEEPLAKE_BRANCH", "main")
    assert ran(store, *count) == "6\n"
    monkeypatch.delenv("DEEPLAKE_BRANCH")
    monkeypatch.chdir(store)
    assert run(None, *count).stdout == "7\n", "the same store by another name"
    other = tmp_path / "other"
    ran(other, "init")
    assert '"current": true' in ran(other, "branches", "--json")
    ran(store, "checkout", "main")
    assert ran(store, *count) == "6\n" and not memory.exists()


def test_a_checked_out_branch_that_is_gone_says_how_to_go_on(store: Path, tmp_path: Path) -> None:
    ran(store, "branch", "short", "--checkout")
    with deeplake.connect(store) as db:
        db.delete_branch("short")
    done = run(store, "tables")
    assert done.exit_code == 3 and "deeplake-loader checkout main" in done.stderr
    ran(store, "checkout", "main")
    assert "generations" in ran(store, "tables")


# -- as a process ------------------------------------------------------------------------------------------------


def numbers(count: int) -> str:
    return f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) SELECT i FROM n"


def test_a_reader_that_leaves_ends_the_command_quietly(store: Path) -> None:
    process = start(store, "sql", numbers(200_000), "--format", "csv")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == b"i\n"
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(300) == Code.PIPE and said == b""
    process.stderr.close()


@pytest.mark.parametrize(
    ("closed", "code", "out"), [("<&-", Code.USAGE, b""), (">&-", Code.DONE, b""), ("<&- >&- 2>&-", Code.DONE, b"")]
)
def test_a_stream_that_the_caller_closed_is_an_empty_one(store: Path, closed: str, code: Code, out: bytes) -> None:
    statement = () if closed == "<&-" else ("SELECT 1",)
    command = [sys.executable, "-m", "deeplake_loader.cli", "-s", str(store), "sql", *statement]
    done = subprocess.run(["sh", "-c", f'exec "$0" "$@" {closed}', *command], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stdout) == (code, out)
    assert done.stderr == b"" or b"there is no statement" in done.stderr


def test_ctrl_c_stops_a_running_statement_and_undoes_what_was_not_committed(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "copy")
    endless = numbers(10**12).replace("SELECT i FROM n", "SELECT count(*) FROM n")
    process = start(tmp_path / "copy", "sql", f"DELETE FROM generations; {endless}")
    wal = tmp_path / "copy" / "catalog.sqlite-wal"
    deadline = time.monotonic() + 300
    while not wal.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=300)
    assert process.returncode == Code.INTERRUPTED and out == b"" and b"Interrupted" in said and b"Trace" not in said
    assert ran(tmp_path / "copy", "sql", "SELECT count(*) FROM generations", "--no-header") == "6\n"


def test_what_a_terminal_cannot_show_is_escaped_and_machine_formats_stay_utf8(store: Path) -> None:
    options = {"env": {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "latin-1"}}
    for format_, wanted in (("table", b'take 0, "\xe9" \\u6f22'), ("csv", '"take 0, ""é"" 漢"'.encode())):
        arguments = ["sql", "SELECT prompt FROM generations WHERE id = 1", "-F", format_]
        command_line = [sys.executable, "-m", "deeplake_loader.cli", "-s", str(store), *arguments]
        done = subprocess.run(command_line, capture_output=True, **options)
        assert done.returncode == 0 and done.stdout.splitlines()[-1] == wanted


def test_no_colour_and_no_escape_codes_are_written_into_a_pipe(store: Path) -> None:
    for arguments in (["head", "generations"], ["show", "generations", "-n", "1"], ["stats", "generations"]):
        assert "\x1b" not in ran(store, *arguments)


def test_data_cannot_drive_the_terminal(tmp_path: Path) -> None:
    with deeplake.connect(tmp_path / "s") as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, x TEXT)")
        db.insert("t", {"x": ["\x1b[31mred\x1b]0;title\x07\rover", "[red]markup[/red]", "\u202eesrever"]})
    shown = ran(tmp_path / "s", "sql", "SELECT x FROM t ORDER BY id")
    assert "\x1b" not in shown and "\r" not in shown and "\u202e" not in shown
    assert "\\x1b[31mred" in shown and "[red]markup[/red]" in shown


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal")
def test_a_terminal_gets_drawn_tables_and_pictures_in_colour(store: Path) -> None:
    import pty

    said = {}
    for arguments in (("head", "generations", "-c", "id,prompt"), ("show", "generations", "-n", "1", "--width", "20")):
        leader, follower = pty.openpty()
        process = start(store, *arguments, stdout=follower, stdin=follower)
        os.close(follower)
        parts = []
        with os.fdopen(leader, "rb", buffering=0) as terminal:
            try:
                while part := terminal.read(65_536):
                    parts.append(part)
            except OSError as error:
                assert error.errno == errno.EIO  # Linux: the other side was closed
        assert process.communicate(timeout=300)[1] == b"" and process.returncode == 0
        said[arguments[0]] = b"".join(parts).decode()
    assert ("漢" in said["head"] and "━" in said["head"]) or "─" in said["head"]
    assert "▀" in said["show"] and "\x1b[38;" in said["show"]


def test_the_console_script_is_the_command_and_help_imports_nothing_heavy() -> None:
    setup = (ROOT / "setup.py").read_text()
    calls = [n for n in ast.walk(ast.parse(setup)) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "setup"]
    found = {k.arg: k.value for k in calls[0].keywords}
    (script,) = ast.literal_eval(found["entry_points"])["console_scripts"]
    assert script == "deeplake-loader = deeplake_loader.cli:main" and callable(cli.main)
    assert {"click", "rich"} <= {re.split(r"\W", need)[0] for need in ast.literal_eval(found["install_requires"])}
    heavy = ("torch", "numpy", "pyarrow", "rich", "PIL", "sqlite3", "av", "fsspec")
    for words in (["--help"], ["sql", "--help"]):
        code = f"import sys; from deeplake_loader import cli\ntry: cli.main({words!r})\nexcept SystemExit: pass\n"
        code += f"print([m for m in {heavy!r} if m in sys.modules])"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        assert done.stdout.splitlines()[-1] == "[]"


def test_the_program_is_a_click_group_that_knows_no_other_name() -> None:
    assert cli.program.get_command(None, "nope") is None
    assert cli.program.list_commands(click.Context(cli.program)) == COMMANDS


def test_a_command_leaves_no_thread_and_no_wakeup_behind(store: Path) -> None:
    before = set(threading.enumerate())  # of which those of earlier tests may end meanwhile
    ran(store, "tables")
    assert set(threading.enumerate()) <= before
    assert signal.set_wakeup_fd(-1) == -1
