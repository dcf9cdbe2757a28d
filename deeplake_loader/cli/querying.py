"""``sql``: statements from the command line, a file, stdin or, in a terminal, the prompt."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from deeplake_loader.cli.formats import Format, chosen_format, format_option, write_rows
from deeplake_loader.cli.output import note
from deeplake_loader.cli.program import Session, tell, verb
from deeplake_loader.cli.statements import Statement, split_statements
from deeplake_loader.cli.values import parameter, read_file
from deeplake_loader.errors import DeeplakeError, InputError

if TYPE_CHECKING:
    from deeplake_loader.database import Database
    from deeplake_loader.rows import RowSet

_COUNTED = ("INSERT", "UPDATE", "DELETE")


@verb(
    "sql",
    example="""deeplake-loader sql "SELECT id, prompt FROM generations WHERE steps >= :least" -p least=25
deeplake-loader sql "SELECT prompt, cosine_similarity(clip_embedding, :q) AS score
  FROM generations ORDER BY score DESC LIMIT 3" -p q=@query.npy --format jsonl
deeplake-loader sql -f changes.sql
echo "SELECT count(*) FROM generations" | deeplake-loader sql --format csv""",
)
@click.argument("statement", required=False)
@click.option("--file", "-f", "path", metavar="FILE", help="Read the statements there; - is stdin.")
@click.option(
    "--param", "-p", "params", multiple=True, metavar="NAME=VALUE",
    help="What :NAME stands for: JSON, @FILE (.npy: its array, else its bytes), or text.",
)  # fmt: skip
@format_option
@click.option("--no-header", is_flag=True, help="Leave the column names out.")
@click.option("--null", metavar="TEXT", help="What stands for NULL. Default: NULL in tables, nothing in CSV.")
@click.option("--each", is_flag=True, help="Commit every statement by itself; those before an error stay.")
@click.option("--read-only", is_flag=True, help="Refuse whatever writes.")
@click.option("--at", metavar="REF", help="Read as of a tag, a commit id or a UTC time.")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing about rows changed.")
def sql_command(
    session: Session, statement: str | None, path: str | None, params: tuple[str, ...], format_: str | None,
    output: str | None, no_header: bool, null: str | None, each: bool, read_only: bool, at: str | None, quiet: bool,
) -> None:  # fmt: skip
    """Run SQL: STATEMENT, the statements of a file, or those on stdin. In a terminal without any, ask for them.

    Several statements, with semicolons between them, are one transaction: all of them or none. With --each every one
    is committed by itself. Rows go to stdout, counts of changed rows to stderr.

    A table shows the first numbers of a vector and the facts of a blob. CSV and JSON hold whole vectors, and of a blob
    its shard's URL and its key there; JSON also its size and media facts. Arrow is a stream in a pipe and a file with
    --output.

    The prompt in a terminal is like psql's: statements end with a semicolon, \\dt lists tables, \\d TABLE describes
    one, \\branch NAME changes the branch, \\? tells the rest. Each statement is committed, unless BEGIN opens a
    transaction. An error is shown and the prompt comes again. Statements are remembered in
    $XDG_STATE_HOME/deeplake_loader/sql_history, but those that begin with a blank or name a password.
    """
    if statement is None and path is None and sys.stdin.isatty():
        if output is not None:
            raise click.UsageError("--output takes the rows of a statement that is given, not of those at the prompt")
        with session.open(read_only=read_only or at is not None, at=at) as db:
            looks = _Looks(chosen_format(format_, None), not no_header, null, quiet)
            _ask(db, dict(map(parameter, params)), looks, at)
        return
    statements = split_statements(_text(statement, path))
    if not statements:
        raise InputError("there is no statement; give one as argument, by --file, or on stdin")
    given = dict(map(parameter, params))
    with session.open(read_only=read_only or at is not None, at=at) as db:
        results = _run(db, statements, given, each)
        if not quiet:
            for one, result in zip(statements, results, strict=True):
                _count(one, result)
        shown = [result for result in results if result.returns_rows]
        if shown:
            write_rows(shown, chosen_format(format_, output), output, header=not no_header, null=null)


@dataclass(frozen=True, slots=True)
class _Looks:
    """How rows are shown at the prompt."""

    format_: Format
    header: bool
    null: str | None
    quiet: bool


def _ask(db: Database, given: dict[str, Any], looks: _Looks, at: str | None) -> None:
    """The prompt, until the user leaves it."""
    from deeplake_loader.cli.prompt import Prompt

    def show(one: Statement) -> None:
        result = db.execute(one.text, {n: v for n, v in given.items() if _names(one.text, n)} or None)
        if result.returns_rows:
            write_rows([result], looks.format_, None, header=looks.header, null=looks.null)
            if looks.format_ == "table" and looks.header:
                click.echo(f"({len(result)} row{'' if len(result) == 1 else 's'})\n")
        elif not looks.quiet:
            _count(one, result)

    debug = bool(click.get_current_context().find_root().obj.get("debug"))
    Prompt(db, show, lambda error: tell(error, debug=debug), at=at).run()


def _count(one: Statement, result: RowSet) -> None:
    """Says what a statement without rows did."""
    if not result.returns_rows:
        note(f"{one.word} {result.rowcount}" if one.word in _COUNTED else one.word)


def _text(statement: str | None, path: str | None) -> str:
    if statement is not None and path is not None:
        raise click.UsageError("give a statement or --file, not both")
    if statement is not None and statement != "-":
        return statement
    if path is not None and path != "-":
        return _decoded(read_file(path), path)
    return _decoded(sys.stdin.buffer.read(), "stdin")


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is no UTF-8 text ({error.reason} at byte {error.start}); convert it") from error


def _run(db: Database, statements: Sequence[Statement], given: dict[str, Any], each: bool) -> list[RowSet]:
    named = [{name: value for name, value in given.items() if _names(one.text, name)} for one in statements]
    unknown = set(given).difference(*named)
    if unknown:
        raise InputError(f"no statement has a placeholder :{min(unknown)}; the parameters are {', '.join(given)}")
    together = len(statements) > 1 and not each and not _only_read(statements)
    with db.transaction() if together else nullcontext():
        return [_execute(db, one, i, params) for i, (one, params) in enumerate(zip(statements, named, strict=True), 1)]


def _names(text: str, name: str) -> bool:
    return re.search(rf":{re.escape(name)}\b|%\({re.escape(name)}\)s", text) is not None


def _only_read(statements: Sequence[Statement]) -> bool:
    """Whether no lock is needed: a read-only store refuses transactions that could write."""
    return all(one.word in ("SELECT", "VALUES", "TABLE") for one in statements)


def _execute(db: Database, one: Statement, number: int, params: dict[str, Any]) -> RowSet:
    try:
        return db.execute(one.text, params or None)
    except DeeplakeError as error:
        if number > 1 or one.line > 1:
            error.add_note(f"in statement {number}, which begins in line {one.line}")
        raise
