"""`deeplake-loader sql` in a terminal, by a pseudo-terminal: prompts, statements, commands, Ctrl-C, history."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_store import ROOT, run
from hypothesis import given
from hypothesis import strategies as st

import deeplake_loader as deeplake
from deeplake_loader.cli.prompt import Prompt
from deeplake_loader.cli.statements import split_statements, split_typed

RUN = """import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C is a signal
from deeplake_loader.cli import main
main()"""
LONG_S = 300.0  # until a terminal that says nothing more is given up


class Terminal:
    """The command line in a pseudo-terminal."""

    def __init__(self, store: Path, home: Path, *options: str) -> None:
        self._end, other = pty.openpty()
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(home), "TERM": "dumb", "INPUTRC": os.devnull,
            "NO_COLOR": "1", "COLUMNS": "200",
        }  # fmt: skip
        environment.pop("DEEPLAKE_BRANCH", None)
        command = [sys.executable, "-c", RUN, "--store", str(store), "sql", *options]
        self.process = subprocess.Popen(
            command, stdin=other, stdout=other, stderr=other, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(other)

    def until(self, wanted: str) -> str:
        """What comes up to and with the text."""
        seen, deadline = "", time.monotonic() + LONG_S
        while wanted not in seen:
            ready, _, _ = select.select([self._end], [], [], max(0.0, deadline - time.monotonic()))
            try:
                data = os.read(self._end, 1) if ready else b""
                while ready and data[-1:] >= b"\x80" and len(data) < 4 and not _whole(data):
                    data += os.read(self._end, 1)
            except OSError:  # Linux's end of a terminal
                data = b""
            assert data, f"{wanted!r} never came; there was {seen!r}"
            seen += data.decode().replace("\r", "")
        return seen

    def type(self, text: str, wanted: str) -> str:
        """What a line is answered with, up to the prompt that is wanted; without blanks at ends of lines and empty
        lines, of which tables have some."""
        os.write(self._end, f"{text}\n".encode())
        self.until(f"{text}\n")  # its echo
        return re.sub(r"\s*\n", "\n", self.until(wanted).removesuffix(wanted)).removeprefix("\n")

    def press(self, key: bytes) -> None:
        os.write(self._end, key)

    def says_more(self, seconds: float) -> bool:
        """Whether anything comes within that time."""
        return bool(select.select([self._end], [], [], seconds)[0])

    def worked(self) -> int:
        """Hundredths of a second of processor time."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def leave(self) -> int:
        try:
            return self.process.wait(LONG_S)
        finally:
            os.close(self._end)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def _whole(data: bytes) -> bool:
    try:
        return bool(data.decode())
    except UnicodeDecodeError:
        return False


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with deeplake.connect(tmp_path / "store") as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, x TEXT NOT NULL)")
        db.insert("t", {"x": ["a", "b"]})
        with db.branch("tidy/up"):
            db.execute("DELETE FROM t WHERE id = 1")
    return tmp_path / "store"


@pytest.fixture
def terminal(store: Path, tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(store, tmp_path / "state")
    yield opened
    opened.kill()


def values(store: Path) -> list[str]:
    with deeplake.connect(store, read_only=True) as db:
        return [row[0] for row in db.execute("SELECT x FROM t ORDER BY id")]


def test_statements_commands_and_errors_come_and_the_prompt_again(terminal: Terminal, store: Path) -> None:
    assert "branch main; \\? for help" in terminal.until("main=> ")
    found = terminal.type("SELECT count(*) AS n FROM t;", "main=> ")
    assert re.search(r"\bn\b.*\b2\n\s*\(1 row\)", found, re.DOTALL)
    assert terminal.type("SELECT nope", "main-> ") == ""
    found = terminal.type("FROM t; SELECT 'never';", "main=> ")
    assert found.count("\n") == 1 and found.startswith("Error: ") and "nope" in found and "line 1" in found
    assert terminal.type("INSERT INTO t (x) VALUES ('it''s", "main'> ") == ""
    assert terminal.type("\\q;", "main'> ") == ""
    assert "INSERT 1" in terminal.type("two lines');", "main=> ")
    assert terminal.type("SELECT (", "main(> ") == ""
    assert terminal.type("\\r", "main=> ") == ""
    assert terminal.type("/* SELECT;", "main*> ") == ""
    assert terminal.type("*/ -- nothing", "main=> ") == ""
    assert re.search(r"\bt\b +2\n", terminal.type("\\dt", "main=> "))
    found = terminal.type("\\d T", "main=> ")
    assert "BIGINT" in found and 'PRIMARY KEY ("id")' in found
    assert "there is no table 'no'" in terminal.type("\\d no", "main=> ")
    assert "there is no command \\foo" in terminal.type("\\foo", "main=> ")
    assert "\\branch NAME" in terminal.type("\\?", "main=> ")
    terminal.press(b"\x04")
    assert terminal.leave() == 0
    assert values(store) == ["a", "b", "it's\n\\q;\ntwo lines"]


def test_a_branch_is_in_the_prompt_and_is_left_with_it(terminal: Terminal, store: Path, tmp_path: Path) -> None:
    terminal.until("main=> ")
    assert re.search(r"\*\s+main\n.*tidy/up", terminal.type("\\branch", "main=> "), re.DOTALL)
    assert "on branch tidy/up" in terminal.type("\\branch tidy/up", "tidy/up=> ")
    assert re.search(r"\b1\n\s*\(1 row\)", terminal.type("SELECT count(*) FROM t;", "tidy/up=> "))
    assert "'no'" in terminal.type("\\branch no", "tidy/up=> ")
    terminal.type("UPDATE t SET x = 'c';", "tidy/up=> ")
    terminal.press(b"\\q\n")
    assert terminal.leave() == 0
    assert values(store) == ["a", "b"]
    assert [p.name for p in (tmp_path / "state" / "deeplake_loader").iterdir()] == ["sql_history"]  # not checked out


def test_transactions_are_shown_and_one_that_failed_is_undone(terminal: Terminal, store: Path) -> None:
    terminal.until("main=> ")
    assert "BEGIN" in terminal.type("BEGIN;", "main=*> ")
    assert "open already" in terminal.type("begin work;", "main=*> ")
    assert "a transaction is open" in terminal.type("\\branch tidy/up", "main=*> ")
    terminal.type("INSERT INTO t (x) VALUES ('c');", "main=*> ")
    assert "Error: " in terminal.type("SELECT nope;", "main=!> ")
    assert "nothing runs before ROLLBACK" in terminal.type("SELECT 1;", "main=!> ")
    assert terminal.type("COMMIT;", "main=> ") == "ROLLBACK\n"
    assert "no transaction is open" in terminal.type("COMMIT;", "main=> ")
    assert "savepoints" in terminal.type("SAVEPOINT a;", "main=> ")
    terminal.type("START TRANSACTION;", "main=*> ")
    assert terminal.type("SELECT", "main-*> ") == ""
    terminal.type("1;", "main=*> ")
    terminal.type("INSERT INTO t (x) VALUES ('d');", "main=*> ")
    assert terminal.type("/* yes */ end;", "main=> ") == "COMMIT\n"
    terminal.type("BEGIN;", "main=*> ")
    terminal.type("DELETE FROM t;", "main=*> ")
    terminal.press(b"\x04")
    assert "not committed" in terminal.until("not committed")
    assert terminal.leave() == 0
    assert values(store) == ["a", "b", "d"]


def test_ctrl_c_clears_the_line_and_stops_a_statement(terminal: Terminal, store: Path) -> None:
    terminal.until("main=> ")
    terminal.type("SELECT 'a", "main'> ")
    terminal.press(b"x")
    terminal.until("x")
    terminal.press(b"\x03")
    deadline = time.monotonic() + LONG_S
    while not terminal.says_more(2.0):  # Python's line editor hears one only while it waits for a key
        assert time.monotonic() < deadline
        terminal.press(b"\x03")
    terminal.until("main=> ")
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n;"
    terminal.type("BEGIN;", "main=*> ")
    terminal.type("INSERT INTO t (x) VALUES ('c');", "main=*> ")
    before = terminal.worked()
    terminal.press(f"{endless}\n".encode())
    terminal.until(f"{endless}\n")
    while terminal.worked() < before + 50:  # half a second of work: the statement runs
        assert terminal.process.poll() is None and time.monotonic() < deadline + LONG_S
        time.sleep(0.02)
    os.kill(terminal.process.pid, signal.SIGINT)
    terminal.until("main=!> ")
    terminal.type("ROLLBACK;", "main=> ")
    assert re.search(r"\b2\n", terminal.type("SELECT count(*) FROM t;", "main=> "))
    terminal.type("exit", "")
    assert terminal.leave() == 0
    assert values(store) == ["a", "b"]


def test_history_is_the_users_alone_and_comes_back_by_the_arrow(store: Path, tmp_path: Path) -> None:
    state, file = tmp_path / "state", tmp_path / "state" / "deeplake_loader" / "sql_history"
    for number in range(2):
        terminal = Terminal(store, state)
        try:
            terminal.until("main=> ")
            if number:
                terminal.press(b"\x10\n")  # Ctrl-P, as the arrow upwards
                assert re.search(r"\b3 *\n", terminal.until("(1 row)"))
                terminal.until("main=> ")
            else:
                terminal.type("ALTER ROLE me PASSWORD 'hidden';", "main=> ")
                terminal.type(" SELECT 'hidden';", "main=> ")
                terminal.type("SELECT 1", "main-> ")
                terminal.type("+ 2;", "main=> ")
            terminal.press(b"\x04")
            assert terminal.leave() == 0
        finally:
            terminal.kill()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert file.read_bytes() == b"SELECT 1\x01+ 2;\n"
        file.chmod(0o644)
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_point_in_history_is_read_and_not_written(store: Path, tmp_path: Path) -> None:
    with deeplake.connect(store) as db:
        db.tag("v1")
        db.execute("DELETE FROM t")
    terminal = Terminal(store, tmp_path / "state", "--at", "v1", "-p", "least=2", "-F", "csv")
    try:
        terminal.until("main@v1=> ")
        assert terminal.type("SELECT x FROM t WHERE id >= :least;", "main@v1=> ") == "x\nb\n"
        assert "Error: " in terminal.type("DELETE FROM t;", "main@v1=> ")
        terminal.press(b"\x04")
        assert terminal.leave() == 0
    finally:
        terminal.kill()


def test_a_history_that_was_damaged_stops_nothing(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "state" / "deeplake_loader" / "sql_history"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"SELECT 'a\0b';\n\xff\xfe;\nSELECT 3;\n")
    terminal = Terminal(store, tmp_path / "state")
    try:
        terminal.until("main=> ")
        terminal.press(b"\x10\n")
        assert re.search(r"\b3 *\n", terminal.until("(1 row)"))
    finally:
        terminal.kill()


@pytest.mark.both_catalogs
@pytest.mark.parametrize("typed", [UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"), "SELECT '\udce9';"], ids=repr)
def test_a_line_that_is_no_text_is_told_and_fails_the_transaction(
    db: deeplake.Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, typed: Exception | str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, x TEXT)")
    lines = iter(["BEGIN;", "INSERT INTO t (x) VALUES ('a');", "SELECT", typed, "COMMIT;", typed, EOFError()])
    signs: list[str] = []

    def ask(sign: str) -> str:
        signs.append(sign)
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", ask)
    told: list[Exception] = []
    Prompt(db, lambda one: db.execute(one.text) and None, told.append).run()
    assert signs == [f"main{state}> " for state in ("=", "=*", "=*", "-*", "=!", "=", "=")]
    assert len(told) == 2 and all("no UTF-8 text" in str(error) for error in told)
    assert db.execute("SELECT count(*) FROM t").scalar() == 0


@pytest.mark.both_catalogs
def test_transactions_end_the_same_over_either_catalog(
    db: deeplake.Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, x TEXT NOT NULL)")
    lines = ["BEGIN;", "INSERT INTO t (x) VALUES ('a');", "SELECT nope;", "INSERT INTO t (x) VALUES ('b');", "END;",
             "BEGIN; INSERT INTO t (x) VALUES ('c'); COMMIT;", "BEGIN; INSERT INTO t (x) VALUES ('d');"]  # fmt: skip
    signs: list[str] = []

    def typed(sign: str) -> str:
        signs.append(sign)
        if len(signs) > len(lines):
            raise EOFError
        return lines[len(signs) - 1]

    monkeypatch.setattr("builtins.input", typed)
    told: list[Exception] = []
    Prompt(db, lambda one: db.execute(one.text) and None, told.append).run()
    assert signs == [f"main={state}> " for state in ("", "*", "*", "!", "!", "", "", "*")]
    assert len(told) == 2 and "ROLLBACK" in str(told[1])
    assert [row[0] for row in db.execute("SELECT x FROM t")] == ["c"]
    assert capsys.readouterr().err.splitlines()[1:] == [
        "BEGIN", "ROLLBACK", "BEGIN", "COMMIT", "BEGIN", "ROLLBACK: the transaction was not committed",
    ]  # fmt: skip


def test_without_a_terminal_nothing_has_changed(store: Path) -> None:
    assert run(store, "sql", text="SELECT count(*) AS n FROM t;\n").stdout == "n\n-\n2\n"
    assert run(store, "sql", text="").exit_code == 2


# -- what is typed -----------------------------------------------------------------------------------------------------

PIECES = ["SELECT 1", "'a;b'", '"x;y"', "'it''s;'", "/* c; /* d */ */", "-- d;\n", " ", "\n", "x", "$$ e; $$", "(", ")",
          "$t$ ; $$ ; $t$", ";", "E'\\';'"]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=10), st.sampled_from(["", "'b;", '"b;', "/* b;", "$q$ b;", "E'\\'"]))
def test_what_is_typed_is_cut_like_a_whole_text_and_its_open_end_is_told(pieces: list[str], tail: str) -> None:
    text = " ".join((*pieces, tail))
    typed = split_typed(text)
    whole = split_statements(text)
    assert list(typed.statements) == whole[: len(typed.statements)] and len(whole) - len(typed.statements) in (0, 1)
    assert text.endswith(typed.rest) and not split_typed(typed.rest).statements
    assert bool(split_statements(typed.rest)) == (len(whole) > len(typed.statements))
    if tail:
        assert typed.inside == {"'": "'", '"': '"', "/": "*", "$": "$", "E": "'"}[tail[0]]
    else:
        assert typed.inside in ("", "-", "(") and (typed.inside == "") == (len(whole) == len(typed.statements))
    for end in range(len(text) + 1):
        split_typed(text[:end])
