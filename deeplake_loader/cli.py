"""The command ``deeplake-loader``.

Exit codes: 0 done; 1 the store refused (one line on stderr says why and what to do next; ``--debug`` shows where);
2 the command line is wrong; 3 a measured figure misses the one that was asked for.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

import deeplake_loader
from deeplake_loader.errors import DeeplakeError

if TYPE_CHECKING:
    from deeplake_loader.recall import Report

REFUSED, MISSED = 1, 3
_CODES = """\b
Exit codes:
  0  done
  1  the store refused: one line on stderr says why and what to do next
  2  the command line is wrong
  3  a measured figure misses the one that was asked for"""


class _Program(click.Group):
    """Errors of this package become one line and exit code 1."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except DeeplakeError as error:
            if context.params.get("debug"):
                traceback.print_exc()
            else:
                click.echo(f"Error: {' '.join(str(error).split())}", err=True)
            context.exit(REFUSED)


@click.group(cls=_Program, epilog=_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(deeplake_loader.__version__, prog_name="deeplake-loader")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def program(debug: bool) -> None:
    """A database you can train from: the command line."""


@program.command()
@click.argument("store")
@click.argument("table")
@click.argument("column")
@click.option("--queries", default=100, show_default=True, type=click.IntRange(1, 100_000), help="Stored rows to ask.")
@click.option("--queries-file", type=click.Path(exists=True, dir_okay=False), help="Ask these vectors instead (.npy).")
@click.option("--k", default=10, show_default=True, type=click.IntRange(1, 10_000), help="Nearest rows of a query.")
@click.option("--nprobe", type=click.IntRange(min=1), help="Lists to look into, instead of a recall to aim at.")
@click.option("--aim", type=click.FloatRange(0, 1), help="Recall that the search shall aim at.")
@click.option("--metric", type=click.Choice(["cosine", "l2", "inner"]), help="Default: that of the column's index.")
@click.option("--min-recall", type=click.FloatRange(0, 1), help="Exit with 3 if the measured recall is lower.")
@click.option("--seed", default=0, show_default=True, help="Which rows are asked.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def recall(
    store: str, table: str, column: str, *, queries: int, queries_file: str | None, k: int, nprobe: int | None,
    aim: float | None, metric: str | None, min_recall: float | None, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """How much approximate searches of COLUMN in TABLE find, and how fast.

    Every answer is compared with a scan of all rows in float64. Nothing is written.

    \b
    Example:
      deeplake-loader recall ./video-pipeline generations clip_embedding --queries 200 --k 20
    """
    from deeplake_loader.database import connect
    from deeplake_loader.recall import measure

    if nprobe is not None and aim is not None:
        raise click.UsageError("give --nprobe or --aim, not both")
    with connect(store, create=False, read_only=True) as db:
        index = next((i for i in db.indexes() if (i.table, i.column) == (table, column)), None)
        chosen: Any = metric or ("cosine" if index is None else index.metric)
        asked = queries if queries_file is None else _vectors(queries_file)
        report = measure(
            db, table, column, queries=asked, k=k, metric=chosen, nprobe=nprobe, recall=aim, seed=seed
        )  # fmt: skip
        click.echo(json.dumps(asdict(report)) if as_json else _told(report, indexed=index is not None))
    if min_recall is not None and report.recall < min_recall:
        click.echo(f"recall {report.recall:.4f} is below {min_recall:g}; try a larger --nprobe or --aim", err=True)
        sys.exit(MISSED)


def _vectors(path: str) -> Any:
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, OSError) as error:
        raise click.BadParameter(f"{path} is no .npy of vectors: {error}", param_hint="--queries-file") from error
    if found.ndim != 2 or not len(found) or found.dtype.kind not in "fiu":
        raise click.BadParameter(f"{path} holds {found.dtype} {found.shape}; expected numbers (queries, dimension)")
    return found


def _told(report: Report, *, indexed: bool) -> str:
    lines = [
        f"recall@{report.k}      {report.recall:.4f} (worst query {report.worst:.4f})",
        f"rows examined  {report.examined:,.0f} of {report.rows:,} ({report.examined / report.rows:.2%})",
        f"latency        {report.approximate_ms:.2f} ms, exact {report.exact_ms:.2f} ms: {report.speedup:.1f}x",
        f"queries        {report.queries}, of which {report.exact} were answered exactly",
    ]
    if not indexed:
        lines.append("The column has no index, so every search scans: db.create_index(table, column) makes one.")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; ends the process with one of the documented codes."""
    program.main(args=None if arguments is None else list(arguments), prog_name="deeplake-loader")


if __name__ == "__main__":
    main()
