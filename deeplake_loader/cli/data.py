"""``ingest`` and ``export``: other people's data as rows, rows as files for other programs."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from deeplake_loader.cli.codes import Code
from deeplake_loader.cli.output import note, print_json, shows_progress
from deeplake_loader.cli.program import Session, verb
from deeplake_loader.cli.values import parameter, read_file
from deeplake_loader.errors import InputError

if TYPE_CHECKING:
    from deeplake_loader.database import Database


@verb(
    "ingest", example="""deeplake-loader ingest photos "shards-{0000..0001}.tar" --dry-run
deeplake-loader ingest photos "shards-{0000..0001}.tar" --yes""",
    no="with --on-error skip: something was left out; it is listed",
)  # fmt: skip
@click.argument("table")
@click.argument("sources", nargs=-1, required=True)
@click.option("--schema", metavar="SQL", help="The table to make, as CREATE TABLE or @FILE. Default: inferred.")
@click.option("--column", "-c", "columns", multiple=True, metavar="COLUMN=FIELD", help="A column and what fills it: an "
              "extension (seg.png), json.ENTRY, a table's column, __key__.")  # fmt: skip
@click.option("--key", metavar="COLUMN", help="The primary key; rows whose key is there are not added again.")
@click.option("--on-error", type=click.Choice(["raise", "skip"]), default="raise", show_default=True, help="At a "
              "sample or source that cannot be stored.")  # fmt: skip
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 256), help="Sources read ahead.")
@click.option("--dry-run", is_flag=True, help="Write nothing; show the table.")
@click.option("--yes", "-y", is_flag=True, help="Make an inferred table without asking.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON.")
def ingest_command(
    session: Session, table: str, sources: tuple[str, ...], schema: str | None, columns: tuple[str, ...], yes: bool,
    dry_run: bool, as_json: bool, **options: Any,
) -> int:  # fmt: skip
    """Rows of TABLE from SOURCES: tars in the WebDataset format, which stay where they are; folders of media, tables,
    matrices and datasets, which are copied. The table is made if it is not there.

    SOURCES are paths or URLs, with * and {0000..0099} (quote them). What is in the table already is not added again.
    """
    if schema is not None and schema.startswith("@"):
        schema = read_file(schema[1:]).decode("utf-8-sig")
    options |= {"schema": schema, "columns": dict(map(_column, columns)) or None}
    with session.open(read_only=False) as db:
        if not dry_run and not yes and not as_json and schema is None:
            _ask(db, table, sources, options)
        report = db.ingest(table, list(sources), dry_run=dry_run, progress=shows_progress(), **options)
    if as_json:
        print_json(asdict(report))
    else:
        click.echo(str(report))
    return Code.NO if report.skipped else Code.DONE


def _ask(db: Database, table: str, sources: tuple[str, ...], options: dict[str, Any]) -> None:
    """Somebody at a terminal sees an inferred table before it is made."""
    if table.lower() in map(str.lower, db.tables()) or not sys.stdin.isatty():
        return
    note(db.ingest(table, list(sources), dry_run=True, **options).schema)
    click.confirm("Make this table?", default=True, abort=True, err=True)


def _column(text: str) -> tuple[str, str]:
    name, equals, field = text.partition("=")
    if not (name and equals and field):
        raise InputError(f"--column {text!r} is no COLUMN=FIELD; write for example -c image=jpg")
    return name, field


@verb(
    "export",
    example="""deeplake-loader export "SELECT id AS key, thumbnail, prompt FROM generations" --to out
deeplake-loader export generations --to rows --format parquet""",
)
@click.argument("query")
@click.option("--to", required=True, metavar="FOLDER", help="A new or empty folder, or a URL.")
@click.option("--param", "-p", "params", multiple=True, metavar="NAME=VALUE", help="As for `sql`.")
@click.option("--format", "-F", "format_", type=click.Choice(["webdataset", "parquet", "folder"]), default="webdataset",
              show_default=True, help="Tars, Parquet files, or a file for each blob.")  # fmt: skip
@click.option("--shard-mb", default=256, show_default=True, type=click.IntRange(1, 1 << 20), help="MiB of a tar or "
              "Parquet file.")  # fmt: skip
@click.option("--references", is_flag=True, help="In Parquet: where blobs lie, instead of their bytes.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON.")
@click.option("--at", metavar="REF", help="As of a tag, a commit id or a UTC time.")
def export_command(
    session: Session, query: str, to: str, params: tuple[str, ...], format_: Any, shard_mb: int, references: bool,
    as_json: bool, at: str | None,
) -> None:  # fmt: skip
    """The rows of QUERY, or of a table, as files for other programs, exact as of one commit."""
    with session.open(at=at) as db:
        report = db.export(
            query, dict(map(parameter, params)) or None, to=to, format=format_, shard_bytes=shard_mb << 20,
            blobs="reference" if references else "inline",
        )  # fmt: skip
    if as_json:
        print_json(asdict(report))
    else:
        click.echo(str(report))
