"""Answers on stdout: tables drawn in a terminal and plain in a pipe, JSON, notes and progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from deeplake_loader.cli.values import dumps

if TYPE_CHECKING:
    from rich.console import Console

_MOST_DRAWN = 1_000  # rows: a drawn table takes a millisecond a row, a plain one 10 us


def console() -> Console:
    """rich's console on stdout, which leaves colours out where no terminal or $NO_COLOR is."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=False)


def is_terminal() -> bool:
    """Whether somebody looks at stdout."""
    return sys.stdout.isatty()


def shows_progress() -> bool:
    """Whether somebody looks at stderr, where progress bars go."""
    return sys.stderr.isatty()


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), header: bool = True
) -> None:
    """Rows of text below their headers: drawn and cut to the width in a terminal, else aligned and whole.

    Args:
        right: columns whose text stands at their right side.
        header: whether the headers are shown.
    """
    if is_terminal() and len(rows) <= _MOST_DRAWN:
        _draw(headers, rows, right, header)
        return
    for line in aligned(headers, rows, right=right, header=header):
        click.echo(line)


def _draw(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int], header: bool) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_header=header, pad_edge=False)
    for i, name in enumerate(headers):
        table.add_column(Text(name), justify="right" if i in right else "left", overflow="ellipsis", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(value, style="dim" if value == "NULL" else "") for value in row))
    console().print(table)


def aligned(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), header: bool = True
) -> list[str]:
    """The lines of a table as psql draws it: columns apart by `` | ``, the last one without blanks behind it.

    >>> aligned(["id", "name"], [["1", "fox"]], right=[0])
    ['id | name', '---+-----', ' 1 | fox']
    """
    from rich.cells import cell_len

    shown = [list(headers), *map(list, rows)] if header else list(map(list, rows))
    widths = [max((cell_len(row[i]) for row in shown), default=0) for i in range(len(headers))]
    lines = []
    for row in shown:
        blanks = [" " * (width - cell_len(value)) for value, width in zip(row, widths, strict=True)]
        parts = [b + v if i in right else v + b for i, (v, b) in enumerate(zip(row, blanks, strict=True))]
        lines.append(" | ".join(parts).rstrip())
    if header:
        lines.insert(1, "-+-".join("-" * width for width in widths))
    return lines


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """A line for each fact: its name, its value."""
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        click.echo(f"{name:<{width}}  {value}".rstrip())


def print_json(value: Any) -> None:
    """One line of JSON."""
    click.echo(dumps(value))


def note(text: str) -> None:
    """A line on stderr, beside the answer."""
    click.echo(text, err=True)


def amount(size: float) -> str:
    """Bytes as a person reads them.

    >>> amount(0), amount(1536), amount(111149056)
    ('0 B', '1.5 KiB', '106.0 MiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} PiB"
