"""The rows of a query as a table, CSV, JSON, JSON lines or Arrow, on stdout or in a file that is whole or not there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast, get_args

import click

from deeplake_loader.cli.output import aligned, is_terminal, print_table
from deeplake_loader.cli.values import NULL, cell, dumps, text_of
from deeplake_loader.errors import InputError

if TYPE_CHECKING:
    from deeplake_loader.rows import RowSet

Format = Literal["table", "csv", "json", "jsonl", "arrow"]
FORMATS: tuple[Format, ...] = get_args(Format)
NUMBERS = ("SMALLINT", "INTEGER", "BIGINT", "REAL", "DOUBLE", "NUMERIC")


def format_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--format`` and ``--output`` of a command."""
    chosen = click.option(
        "--format", "-F", "format_", type=click.Choice(FORMATS), help="Default: by --output's extension, else table."
    )
    path = click.option("--output", "-o", metavar="FILE", help="Write there; an error leaves the old file.")
    return chosen(path(function))


def chosen_format(format_: str | None, output: str | None) -> Format:
    """The format that was asked for, or that the output's extension names."""
    if format_ is not None:
        return cast(Format, format_)
    extension = (output or "").rpartition(".")[2].lower()
    return extension if extension in FORMATS else "table"


def write_rows(
    results: Iterable[RowSet], format_: Format, output: str | None, *, columns: Sequence[int] | None = None,
    header: bool = True, null: str | None = None,
) -> None:  # fmt: skip
    """The results one after another.

    Args:
        columns: the places of those that are shown; None for all.
        null: what CSV has for NULL (default: nothing, where an empty text is ``""``), and a table ("NULL").

    Raises:
        InputError: Arrow of several results, or on a terminal; rows that make no Arrow table.
    """
    answers = [_Answer(result, columns or range(len(result.names)), header, null) for result in results]
    if format_ == "table" and output is None:
        for answer in answers:
            print_table(answer.names, answer.cells(), right=answer.right(), header=header)
        return
    if format_ == "arrow":
        _check_arrow(len(answers), output)
    with _opened(output) as out:
        for answer in answers:
            if format_ == "arrow":
                answer.write_arrow(out, in_file=output is not None)
            else:
                for line in getattr(answer, f"{format_}_lines")():
                    out.write(f"{line}\n".encode("utf-8", "backslashreplace"))


@dataclass(frozen=True, slots=True)
class _Answer:
    """One result: the columns of it that are shown, with or without their names, and what stands for NULL."""

    result: RowSet
    columns: Sequence[int]
    header: bool
    null: str | None

    @property
    def names(self) -> list[str]:
        return [self.result.names[i] for i in self.columns]

    def rows(self) -> Iterator[list[Any]]:
        for row in self.result:
            yield [row[i] for i in self.columns]

    def cells(self) -> list[list[str]]:
        null = NULL if self.null is None else self.null
        return [[null if value is None else cell(value) for value in row] for row in self.rows()]

    def right(self) -> list[int]:
        """Columns of numbers: by their type, or by their values where SQL tells none."""
        first = self.result[0] if len(self.result) else None
        found = []
        for place, i in enumerate(self.columns):
            kind = self.result.types[i]
            if kind.name in NUMBERS if kind is not None else first is not None and isinstance(first[i], int | float):
                found.append(place)
        return found

    def table_lines(self) -> list[str]:
        return aligned(self.names, self.cells(), right=self.right(), header=self.header)

    def csv_lines(self) -> Iterator[str]:
        if self.header:
            yield ",".join(map(_quoted, self.names))
        for row in self.rows():
            yield ",".join((self.null or "") if value is None else _quoted(text_of(value)) for value in row)

    def jsonl_lines(self) -> Iterator[str]:
        for row in self.rows():
            yield dumps(dict(zip(self.names, row, strict=True)))

    def json_lines(self) -> Iterator[str]:
        """An array whose rows have a line each."""
        before = "["
        for line in self.jsonl_lines():
            yield before + line
            before = ","
        yield "]" if before == "," else "[]"

    def write_arrow(self, out: BinaryIO, *, in_file: bool) -> None:
        """The stream format in a pipe, the file format (which Feather's readers take) in a file."""
        import pyarrow as pa

        table = self.result.to_arrow().select(list(self.columns))
        open_ = pa.ipc.new_file if in_file else pa.ipc.new_stream
        with open_(out, table.schema) as writer:
            writer.write_table(table)


def _quoted(text: str) -> str:
    """RFC 4180; an empty text is quoted, so that it is none."""
    if text and not any(mark in text for mark in ',"\r\n') and text.strip() == text:
        return text
    return '"' + text.replace('"', '""') + '"'


def _check_arrow(results: int, output: str | None) -> None:
    if results != 1:
        raise InputError(f"Arrow holds the rows of one query, got {results} results; run the statements apart")
    if output is None and is_terminal():
        raise InputError("Arrow is binary; write --output FILE or pipe it to a program")


@contextmanager
def _opened(output: str | None) -> Iterator[BinaryIO]:
    if output is None:
        sys.stdout.flush()
        yield sys.stdout.buffer
        return
    with click.open_file(output, "wb", atomic=True) as out:
        yield out  # type: ignore[misc]
