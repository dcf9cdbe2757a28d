"""``info`` and ``stats``: what a store holds in all, and what each column of a table holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING

import click

from deeplake_loader.cli.output import amount, note, print_facts, print_json, print_table
from deeplake_loader.cli.program import Session, verb
from deeplake_loader.cli.rows import find_table
from deeplake_loader.cli.values import cell
from deeplake_loader.errors import InputError, StoreError

if TYPE_CHECKING:
    from deeplake_loader.inventory import ColumnStatistics, Files, Histogram, TableStatistics

_UNITS = {"value": "", "bytes": "bytes", "seconds": "s", "frames": "frames"}


@verb("info", example="deeplake-loader info --json")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON.")
def info_command(session: Session, as_json: bool) -> None:
    """The store at a glance: where it lies, tables, files, bytes, commits."""
    with session.open() as db:
        found = db.info()
    if as_json:
        print_json(asdict(found))
        return
    history = f"commits {found.commits:,}, branches {found.branches:,}, tags {found.tags:,}"
    facts = [("store", found.location), ("branch", found.branch), ("made", f"{found.created_at} UTC"),
             ("history", history), ("catalog", _amount(found.catalog_bytes)), ("shards", _files(found.shards)),
             ("vectors", _files(found.vectors))]  # fmt: skip
    print_facts([(name, value) for name, value in facts if value])
    if found.tables:
        click.echo()
        rows = [[t.name, f"{t.rows:,}", amount(t.bytes), f"{len(t.columns)}"] for t in found.tables]
        print_table(["table", "rows", "files", "columns"], rows, right=[1, 2, 3])


def _files(files: Files) -> str:
    parts = [f"files {files.files:,}", amount(files.bytes), f"values {files.values:,}"]
    parts += [f"open {files.open:,}"] if files.open else []
    parts += [f"in the catalog still {amount(files.resting)}"] if files.resting else []
    return ", ".join(parts)


@verb("stats", example="deeplake-loader stats generations frames steps --png histograms")
@click.argument("table")
@click.argument("columns", nargs=-1)
@click.option("--bins", default=12, show_default=True, type=click.IntRange(1, 1000), help="Bars of a histogram.")
@click.option("--plots/--no-plots", default=True, show_default=True, help="Draw histograms below the table.")
@click.option("--png", metavar="FOLDER", help="Write each histogram there as TABLE.COLUMN.QUANTITY.png.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON.")
@click.option("--at", metavar="REF", help="As of a tag, a commit id or a UTC time.")
def stats_command(
    session: Session, table: str, columns: tuple[str, ...], bins: int, plots: bool, png: str | None, as_json: bool,
    at: str | None,
) -> None:  # fmt: skip
    """What the columns of TABLE hold: values, bytes, ranges, codecs, sizes, durations.

    No media byte is read: the facts were measured when the rows were inserted.
    """
    with session.open(at=at) as db:
        keys = () if columns else find_table(db, table).primary_key
        found = db.statistics(table, columns or None, bins=bins)
    if as_json:
        print_json(asdict(found))
    else:
        _print(found, [column for column in found.columns if column.name not in keys] if plots else [])
    if png is not None:
        for path in _write_pictures(found, Path(png)):
            note(f"wrote {path}")


def _print(found: TableStatistics, plotted: Sequence[ColumnStatistics]) -> None:
    rows = [
        [
            c.name,
            c.type,
            f"{c.values:,}",
            f"{c.rows - c.values:,}",
            _amount(c.bytes),
            _told(c),
        ]
        for c in found.columns
    ]
    print_table(["column", "type", "values", "nulls", "bytes", "what"], rows, right=[2, 3, 4])
    for column in plotted:
        for histogram in column.histograms:
            _plot(f"{found.table}.{column.name}", histogram)


def _amount(size: int | None) -> str:
    return "" if size is None else amount(size)


def _told(column: ColumnStatistics) -> str:
    """The facts of a column in one line."""
    parts = []
    if column.minimum is not None:
        parts.append(f"{cell(column.minimum)[:40]} .. {cell(column.maximum)[:40]}")
    if column.mean is not None:
        parts.append(f"mean {column.mean:.6g}")
    if column.distinct is not None:
        parts.append(f"{column.distinct:,} distinct")
    for counted in (column.codecs, column.sizes[:3]):
        if counted:
            parts.append(", ".join(f"{name} ({count:,})" for name, count in counted))
    parts += [f"{h.mean * column.values:,.1f} s in all" for h in column.histograms if h.quantity == "seconds"]
    return "; ".join(parts)


def _plot(title: str, histogram: Histogram) -> None:
    from deeplake_loader.pictures.charts import bar_lines

    unit = _UNITS[histogram.quantity]
    middle = f"median {_number(histogram.median)}, mean {_number(histogram.mean)}"
    click.echo(f"\n{title}, {histogram.quantity}: {middle} {unit}".rstrip())
    edges = histogram.edges
    labels = [f"{_number(low)} .. {_number(high)}" for low, high in pairwise(edges)]
    for line in bar_lines(labels, histogram.counts, width=min(100, get_terminal_size().columns)):
        click.echo(line)


def _number(value: float) -> str:
    """Whole numbers whole, others with six digits."""
    return f"{value:,.0f}" if abs(value) >= 1e5 or (value.is_integer() and abs(value) < 1e15) else f"{value:,.6g}"


def _write_pictures(found: TableStatistics, folder: Path) -> Iterator[Path]:
    from deeplake_loader.pictures.charts import histogram_picture
    from deeplake_loader.store import encode_name

    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is no folder; --png takes the folder for the histograms")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for column in found.columns:
            for histogram in column.histograms:
                parts = (found.table, column.name, histogram.quantity)
                path = folder / f"{'.'.join(map(encode_name, parts))}.png"
                unit = _UNITS[histogram.quantity]
                histogram_picture(histogram.edges, histogram.counts, title=".".join(parts), unit=unit).save(path)
                yield path
    except OSError as error:
        raise StoreError(f"cannot write the histograms to {folder}: {error}") from error
