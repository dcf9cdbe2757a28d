"""``search`` and ``recall``: the nearest rows of a vector, and how much approximate searches find of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from deeplake_loader.cli.codes import Code
from deeplake_loader.cli.formats import chosen_format, format_option, write_rows
from deeplake_loader.cli.output import note, print_json
from deeplake_loader.cli.program import Session, verb
from deeplake_loader.cli.rows import find_table, listed_columns
from deeplake_loader.cli.values import file_value
from deeplake_loader.errors import InputError

if TYPE_CHECKING:
    from deeplake_loader.recall import Report
    from deeplake_loader.rows import RowSet

_METRIC = click.Choice(["cosine", "l2", "inner"])


@verb(
    "search",
    example="""deeplake-loader search generations clip_embedding --vector query.npy -k 5
deeplake-loader search generations clip_embedding --row 2 --where "steps >= 25" """.rstrip(),
)
@click.argument("table")
@click.argument("column")
@click.option("--vector", "-v", metavar="FILE", help="The query, a .npy of (D,) or (1, D) numbers.")
@click.option("--row", "-r", metavar="KEY", help="Or the row of this primary key; of several columns a JSON list.")
@click.option("-k", default=10, show_default=True, type=click.IntRange(1, 1_000_000), help="Rows.")
@click.option("--where", metavar="SQL", help="A condition on the rows.")
@click.option("--metric", type=_METRIC, default="cosine", show_default=True, help="What makes rows near.")
@click.option("--approximate", is_flag=True, help="Let the column's index choose the rows to score.")
@click.option("--columns", "-c", metavar="A,B", help="These columns and the score. Default: all but vectors.")
@format_option
@click.option("--at", metavar="REF", help="As of a tag, a commit id or a UTC time.")
def search_command(
    session: Session, table: str, column: str, vector: str | None, row: str | None, k: int, where: str | None,
    metric: Any, approximate: bool, columns: str | None, format_: str | None, output: str | None, at: str | None,
) -> None:  # fmt: skip
    """The rows of TABLE whose vector in COLUMN is nearest to a query, best first, with their score."""
    if (vector is None) == (row is None) or (approximate and row is not None):
        raise click.UsageError("give --vector, with or without --approximate, or --row")
    with session.open(at=at) as db:
        definition = find_table(db, table)
        chosen = listed_columns(definition, columns) if columns else None
        options: dict[str, Any] = {"k": k, "where": where, "metric": metric}
        found: Any
        if vector is not None:
            found = db.search(definition.name, column, _query(vector), exact=not approximate, **options)
        else:
            found = db.similar(definition.name, column, _key(row or ""), **options)
        write_rows([found], chosen_format(format_, output), output, columns=_shown(found, chosen))


def _query(path: str) -> Any:
    """The one query of a ``.npy``, as (D,)."""
    if not path.endswith(".npy"):
        raise InputError(f"{path} is no .npy; numpy.save writes a query as one")
    found = file_value(path)
    if found.ndim == 2 and len(found) == 1:
        found = found[0]
    if found.ndim != 1:
        raise InputError(f"{path} holds an array of {found.shape}; expected one query of (D,) numbers")
    return found


def _key(text: str) -> Any:
    """A primary key as it was typed: JSON where it is JSON, a tuple where that is a list, else the text."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return tuple(found) if isinstance(found, list) else found


def _shown(found: RowSet, names: list[str] | None) -> list[int]:
    """The places of these columns and the score, which is the last one; or of all but vectors."""
    last = len(found.names) - 1
    if names is None:
        return [i for i, kind in enumerate(found.types) if i == last or kind is None or not kind.is_vector]
    return [*(found.names.index(name) for name in names), last]


@verb(
    "recall", example="deeplake-loader recall generations clip_embedding --queries 3 --k 2",
    no="the measured recall is below --min-recall",
)  # fmt: skip
@click.argument("table")
@click.argument("column")
@click.option("--queries", default=100, show_default=True, type=click.IntRange(1, 100_000), help="Stored rows to ask.")
@click.option("--queries-file", metavar="FILE", help="Ask these vectors instead (.npy).")
@click.option("--k", default=10, show_default=True, type=click.IntRange(1, 10_000), help="Nearest rows of a query.")
@click.option("--nprobe", type=click.IntRange(min=1), help="Lists to look into, instead of a recall to aim at.")
@click.option("--aim", type=click.FloatRange(0, 1), help="Recall that the search shall aim at.")
@click.option("--metric", type=_METRIC, help="Default: that of the column's index.")
@click.option("--min-recall", type=click.FloatRange(0, 1), help="End with 1 if the measured recall is lower.")
@click.option("--seed", default=0, show_default=True, help="Which rows are asked.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON.")
def recall_command(
    session: Session, table: str, column: str, queries: int, queries_file: str | None, k: int, nprobe: int | None,
    aim: float | None, metric: str | None, min_recall: float | None, seed: int, as_json: bool,
) -> int:  # fmt: skip
    """How much approximate searches of COLUMN in TABLE find, and how fast.

    Every answer is compared with a scan of all rows in float64. Nothing is written.
    """
    from deeplake_loader.recall import measure

    if nprobe is not None and aim is not None:
        raise click.UsageError("give --nprobe or --aim, not both")
    with session.open() as db:
        index = next((i for i in db.indexes() if (i.table, i.column) == (table, column)), None)
        chosen: Any = metric or ("cosine" if index is None else index.metric)
        asked = queries if queries_file is None else _queries(queries_file)
        report = measure(
            db, table, column, queries=asked, k=k, metric=chosen, nprobe=nprobe, recall=aim, seed=seed
        )  # fmt: skip
    if as_json:
        print_json(asdict(report))
    else:
        click.echo(_told(report, indexed=index is not None))
    if min_recall is None or report.recall >= min_recall:
        return Code.DONE
    note(f"recall {report.recall:.4f} is below {min_recall:g}; try a larger --nprobe or --aim")
    return Code.NO


def _queries(path: str) -> Any:
    found = file_value(path) if path.endswith(".npy") else None
    if found is None or found.ndim != 2 or not len(found) or found.dtype.kind not in "fiu":
        what = "no .npy" if found is None else f"{found.dtype} {found.shape}"
        raise InputError(f"{path} is {what}; expected a .npy of numbers (queries, dimension)")
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
