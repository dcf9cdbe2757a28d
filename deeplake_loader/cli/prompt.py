"""``sql`` in a terminal: statements as they are typed, up to a semicolon, and a few of psql's commands.

The prompt is psql's: the branch instead of the database, then ``=`` or what the text lies inside of, ``*`` in a
transaction and ``!`` in one that failed. An error is one line and the prompt comes again; one in a transaction leaves
ROLLBACK only, over either catalog.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Literal

import click

import deeplake_loader
from deeplake_loader.cli.output import note, print_table
from deeplake_loader.cli.remembered import Remembered
from deeplake_loader.cli.rows import find_table, print_description
from deeplake_loader.cli.statements import Statement, split_typed
from deeplake_loader.cli.values import printable
from deeplake_loader.errors import InputError

if TYPE_CHECKING:
    from deeplake_loader.database import Database

_WORDS = {
    "begin": re.compile(r"(BEGIN|START\s+TRANSACTION)(\s+(WORK|TRANSACTION))?", re.IGNORECASE),
    "commit": re.compile(r"(COMMIT|END)(\s+(WORK|TRANSACTION))?", re.IGNORECASE),
    "rollback": re.compile(r"(ROLLBACK|ABORT)(\s+(WORK|TRANSACTION))?", re.IGNORECASE),
}
_COMMAND = re.compile(r"\s*\\(\S*)\s*(.*?)\s*;?\s*\Z", re.DOTALL)
_HELP = (
    ("STATEMENT ;", "run it; it may go over several lines"),
    ("BEGIN; COMMIT; ROLLBACK;", "several statements as one commit, or none"),
    ("\\dt", "the tables"),
    ("\\d TABLE", "its columns, keys and indexes"),
    ("\\branch", "the branches"),
    ("\\branch NAME", "work on that one here"),
    ("\\r", "forget what is typed so far (so does Ctrl-C)"),
    ("\\?", "this help"),
    ("\\q", "leave (so does Ctrl-D)"),
)

Show = Callable[[Statement], None]
"""Runs a statement and shows its rows."""

Tell = Callable[[Exception], object]
"""Says what went wrong."""


class _Undo(Exception):
    """Leaves a transaction without its changes."""


class Prompt:
    """Asks until the user leaves."""

    def __init__(self, db: Database, show: Show, tell: Tell, *, at: str | None = None) -> None:
        self._db, self._show, self._tell, self._at = db, show, tell, at
        self._typed = ""
        self._open: AbstractContextManager[None] | None = None
        self._state: Literal["", "*", "!"] = ""
        self._history = Remembered()
        self._commands: dict[str, Callable[[str], None]] = {
            "d": self._describe, "dt": self._tables, "branch": self._branch, "r": self._reset, "?": self._help,
        }  # fmt: skip

    def run(self) -> None:
        """Reads, runs and shows; an open transaction is rolled back at the end."""
        note(
            f"deeplake-loader {deeplake_loader.__version__}, branch {printable(self._db.current_branch)}; \\? for help"
        )
        try:
            while self._stepped():
                pass
        finally:
            if self._open is not None:
                self._leave(keep=False)
                note("ROLLBACK: the transaction was not committed")

    def _stepped(self) -> bool:
        """One line, or what Ctrl-C leaves of it: nothing; False to leave."""
        try:
            return self._step()
        except KeyboardInterrupt:
            self._typed = ""
        with suppress(KeyboardInterrupt):  # who is impatient presses it twice
            click.echo()
        return True

    def _step(self) -> bool:
        try:
            line = input(self._sign())
            line.encode()  # some locales give half characters, others refuse the line
        except EOFError:
            click.echo()
            return False
        except UnicodeError:
            self._typed = ""
            self._fail()
            self._tell(InputError("what was typed is no UTF-8 text and is forgotten; set the terminal to UTF-8"))
            return True
        return self._take(line)

    def _sign(self) -> str:
        """psql's prompt, as ``main=> ``; escaped, because a branch's name is somebody's text."""
        place = printable(self._db.current_branch) + (f"@{printable(self._at)}" if self._at else "")
        inside = split_typed(self._typed).inside if self._typed else "="
        return f"{place}{inside or '-'}{self._state}> "

    def _take(self, line: str) -> bool:
        inside = split_typed(self._typed).inside
        bare = line.strip().rstrip(";").strip().lower()
        if line.lstrip().startswith("\\") and inside in ("", "-", "("):
            self._history.add(line)
            return self._command(line)
        if not self._typed and bare in ("exit", "quit", "help"):
            return self._command("\\?" if bare == "help" else "\\q")
        self._typed += f"{line}\n"
        typed = split_typed(self._typed)
        if typed.statements:
            self._history.add(self._typed[: len(self._typed) - len(typed.rest)].rstrip())
        self._typed = typed.rest if typed.inside else ""
        for statement in typed.statements:
            if not self._guarded(lambda one=statement: self._run(one)):  # type: ignore[misc]
                self._typed = ""  # as what follows may have been meant for what failed
                break
        return True

    def _guarded(self, work: Callable[[], None]) -> bool:
        """Whether it worked; else says why."""
        try:
            work()
        except (BrokenPipeError, click.ClickException):
            raise
        except Exception as error:
            self._tell(error)
            return False
        return True

    # -- statements ------------------------------------------------------------------------------------------------

    def _run(self, statement: Statement) -> None:
        text = re.sub(r"--[^\n]*|/\*.*?\*/", " ", statement.text, flags=re.DOTALL).strip()
        word = next((word for word, pattern in _WORDS.items() if pattern.fullmatch(text)), None)
        if word == "begin":
            self._begin()
        elif word is not None:
            self._end(keep=word == "commit")
        elif self._state == "!":
            raise InputError("the transaction has failed: nothing runs before ROLLBACK")
        elif statement.word in ("BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE"):
            raise InputError(f"{statement.word} with more behind it, and savepoints, are not for the prompt: "
                             "BEGIN, COMMIT and ROLLBACK are")  # fmt: skip
        else:
            self._try(statement)

    def _try(self, statement: Statement) -> None:
        """Runs it; one that fails, or is stopped, fails the transaction that is open."""
        try:
            self._show(statement)
        except BaseException:
            self._fail()
            raise

    def _fail(self) -> None:
        self._state = "!" if self._open is not None else ""

    def _begin(self) -> None:
        if self._open is not None:
            note("a transaction is open already; COMMIT or ROLLBACK ends it")
            return
        block = self._db.transaction()
        block.__enter__()
        self._open, self._state = block, "*"
        note("BEGIN")

    def _end(self, *, keep: bool) -> None:
        if self._open is None:
            note("no transaction is open; BEGIN opens one")
            return
        keep = keep and self._state == "*"
        self._leave(keep=keep)
        note("COMMIT" if keep else "ROLLBACK")

    def _leave(self, *, keep: bool) -> None:
        block, self._open, self._state = self._open, None, ""
        if block is None:
            return
        if keep:
            block.__exit__(None, None, None)
            return
        undo = _Undo()
        with suppress(_Undo):
            block.__exit__(_Undo, undo, None)

    # -- commands --------------------------------------------------------------------------------------------------

    def _command(self, line: str) -> bool:
        """Runs a command; False to leave."""
        found = _COMMAND.match(line)
        name, argument = (found[1], found[2]) if found else ("", "")
        if name in ("q", "q;"):
            return False
        command = self._commands.get(name.rstrip(";"))
        if command is None:
            note(f"there is no command \\{printable(name)}; \\? for help")
        else:
            self._guarded(lambda: command(argument))
        return True

    def _describe(self, name: str) -> None:
        if not name:
            self._tables("")
            return
        print_description(self._db.describe(find_table(self._db, name.strip('"')).name))

    def _tables(self, _argument: str) -> None:
        rows = [[printable(name), f"{len(table.columns)}"] for name, table in self._db.tables().items()]
        print_table(["table", "columns"], rows, right=[1])

    def _branch(self, name: str) -> None:
        if name:
            if self._open is not None:
                raise InputError("a transaction is open; COMMIT or ROLLBACK ends it, then go to another branch")
            self._db.checkout(name.strip('"'))
            note(f"on branch {printable(self._db.current_branch)}")
            return
        print_table(["", "branch"], [["*" if b.current else "", printable(b.name)] for b in self._db.branches()])

    def _reset(self, _argument: str) -> None:
        self._typed = ""

    def _help(self, _argument: str) -> None:
        width = max(len(name) for name, _ in _HELP)
        for name, meaning in _HELP:
            click.echo(f"{name:<{width}}  {meaning}")
