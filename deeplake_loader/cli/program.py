"""The program around the commands: which module holds which, the options of all, errors in one line, exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import update_wrapper
from importlib import import_module
from typing import Any

import click

import deeplake_loader
from deeplake_loader.cli.codes import Code, code_of, table
from deeplake_loader.cli.session import Session, locate
from deeplake_loader.errors import DeeplakeError, SQLError

HOMES = {
    "branch": "history",
    "branches": "history",
    "checkout": "history",
    "describe": "rows",
    "diff": "history",
    "export": "data",
    "gc": "care",
    "head": "rows",
    "info": "facts",
    "ingest": "data",
    "init": "care",
    "log": "history",
    "merge": "history",
    "optimize": "care",
    "prewarm": "care",
    "publish": "care",
    "recall": "searching",
    "revert": "history",
    "search": "searching",
    "show": "showing",
    "sql": "querying",
    "stats": "facts",
    "stream": "streaming",
    "tables": "rows",
    "tag": "history",
    "tags": "history",
    "transcode": "jobs",
    "verify": "care",
}
"""Command -> module of this room: calling one command imports one module."""


class Program(click.Group):
    """Loads a command's module when the command is called, and ends with the documented codes."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return sorted(HOMES)

    def get_command(self, _context: click.Context | None, name: str) -> click.Command | None:
        if name not in HOMES:
            return None
        found: click.Command = getattr(import_module(f"deeplake_loader.cli.{HOMES[name]}"), f"{name}_command")
        return found

    def invoke(self, context: click.Context) -> Any:
        try:
            code = super().invoke(context)
            sys.stdout.flush()
            return code
        except (BrokenPipeError, KeyboardInterrupt, click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except Exception as error:
            return tell(error, debug=bool(context.obj.get("debug")))

    def main(self, *args: Any, **options: Any) -> Any:
        """Runs the command line and ends the process with its code."""
        options["standalone_mode"] = False
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, ValueError):  # what a terminal cannot show is escaped, not an error
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        try:
            code = super().main(*args, **options)
        except click.ClickException as error:
            error.show()
            code = Code.USAGE
        except click.Abort:
            click.echo("Interrupted; what was not committed is undone.", err=True)
            code = Code.INTERRUPTED
        except (BrokenPipeError, SystemExit):  # click itself ends so when a pipe closes
            code = _unread()
        sys.exit(int(code or 0))

    def format_epilog(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit codes"):
            formatter.write_dl(table())


def tell(error: Exception, *, debug: bool) -> Code:
    """Says what went wrong in one line, or with where it did; gives the exit code."""
    if debug:
        traceback.print_exception(error)
    text = "; ".join((" ".join(_message(error).split()), *getattr(error, "__notes__", ())))
    if isinstance(error, DeeplakeError):
        click.echo(f"Error: {text}", err=True)
        return code_of(error)
    if isinstance(error, OSError):
        click.echo(f"Error: {text}; check the path and its permissions", err=True)
        return Code.STORE
    click.echo(f"Error: {type(error).__name__}: {text}; nobody foresaw this: run it again with --debug", err=True)
    return Code.BUG


def _message(error: Exception) -> str:
    """The error's text; of SQL the place as line and column instead of a drawing of it."""
    if not isinstance(error, SQLError) or error.sql is None or error.position is None:
        return str(error)
    lines = error.sql[: error.position].split("\n")
    return f"{error.args[0]} (line {len(lines)}, column {len(lines[-1]) + 1})"


def _unread() -> Code:
    """Nobody reads stdout: what Python flushes at its end goes nowhere, without a message."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return Code.PIPE


class Verb(click.Command):
    """A command with an example, and what its exit code 1 means, in its help."""

    def __init__(self, *args: Any, example: str, no: str | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.example, self.no = example, no

    def format_epilog(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Example"):
            for line in self.example.splitlines():
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
        with formatter.section("Exit codes"):
            rows = [("0", "done"), *([("1", self.no)] if self.no else [])]
            formatter.write_dl([*rows, ("2..", "errors: the table in deeplake-loader --help")])


def _debug(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    context.ensure_object(dict)
    if value:
        context.obj["debug"] = True


_DEBUG = click.option(
    "--debug", is_flag=True, expose_value=False, is_eager=True, callback=_debug, help="Show the traceback of an error."
)
_STORE = click.option(
    "--store", "-s", metavar="URL", help="The store. Default: $DEEPLAKE_STORE, else the working folder."
)
_BRANCH = click.option(
    "--branch",
    "-b",
    metavar="NAME",
    help="Default: $DEEPLAKE_BRANCH, else the one checked out, else main.",
)


def verb(name: str, *, example: str, no: str | None = None) -> Callable[[Callable[..., Any]], click.Command]:
    """A command of the function, which is called with a Session before its own arguments and gives its exit code."""

    def made(function: Callable[..., Any]) -> click.Command:
        @click.pass_context
        def called(context: click.Context, /, *, store: str | None, branch: str | None, **given: Any) -> Any:
            up: dict[str, Any] = context.obj
            return function(locate(store or up.get("store"), branch or up.get("branch")), **given)

        wrapped = update_wrapper(called, function)
        settings = {"help_option_names": ["-h", "--help"]}
        command = click.command(name, cls=Verb, example=example, no=no, context_settings=settings)
        return command(_STORE(_BRANCH(_DEBUG(wrapped))))

    return made


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(deeplake_loader.__version__, prog_name="deeplake-loader")
@_STORE
@_BRANCH
@_DEBUG
@click.pass_context
def program(context: click.Context, store: str | None, branch: str | None) -> None:
    """A database you can train from: look after a store from the command line."""
    context.obj.update(store=store, branch=branch)


__all__ = ["Session", "program", "tell", "verb"]
