"""``init``, ``verify``, ``optimize``, ``gc``, ``publish``, ``prewarm``: a store made, looked after and given away."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import timedelta
from typing import Literal

import click

from deeplake_loader.cli.codes import Code
from deeplake_loader.cli.output import amount, note, print_json, shows_progress
from deeplake_loader.cli.program import Session, verb
from deeplake_loader.cli.values import parameter

_PERIOD = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class Period(click.ParamType[timedelta]):
    """A time such as 90, 30m, 12h, 7d or 4w."""

    name = "TIME"

    def convert(self, value: str | timedelta, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        found = _PERIOD.fullmatch(value.strip())
        if found is None:
            self.fail(f"{value!r} is no time; write 90 (seconds), 30m, 12h, 7d or 4w", param, ctx)
        return timedelta(seconds=min(float(found[1]) * _SECONDS[found[2]], 86_400.0 * 36_525))


@verb("init", example="deeplake-loader init ./video-pipeline")
@click.argument("url", required=False)
@click.option("--storage", metavar="URL", help="Where shards and vectors lie, such as s3://bucket/prefix.")
def init_command(session: Session, url: str | None, storage: str | None) -> None:
    """Make a store in the folder URL (default: --store, $DEEPLAKE_STORE, the working folder).

    A store that is there stays as it is.
    """
    from deeplake_loader.database import connect

    with connect(url or session.store, storage=storage) as db:
        note(f"the store is {db.info().location}")


@verb("verify", example="deeplake-loader verify --repair", no="something is wrong, and not repaired")
@click.option("--repair", is_flag=True, help="Make anew what can be: sidecars, index rows, checksums, derived files.")
@click.option("--catalog-only", is_flag=True, help="Read no shard and no vector; only look whether each is there.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON.")
def verify_command(session: Session, repair: bool, catalog_only: bool, as_json: bool) -> int:
    """Hold every byte, checksum and address of the store against what its catalog says."""
    with session.open(read_only=not repair) as db:
        report = db.verify(repair=repair, data=not catalog_only, progress=shows_progress() and not catalog_only)
    if as_json:
        print_json({"ok": report.ok, **asdict(report)})
    else:
        click.echo(str(report))
    return Code.DONE if report.ok else Code.NO


@verb("optimize", example="deeplake-loader optimize --keep 30d")
@click.option("--keep", type=Period(), help="Forget history older than this that nothing needs: 90, 30m, 12h, 7d, 4w.")
@click.option(
    "--scan-copies", type=click.Choice(["float16", "int8"]), is_flag=False, flag_value="float16",
    help="Keep copies of large vector files, which searches read: float16 where nothing follows.",
)  # fmt: skip
@click.option("--snapshot", is_flag=True, help="Put a snapshot of the catalog beside the shards.")
def optimize_command(
    session: Session, keep: timedelta | None, scan_copies: Literal["float16", "int8"] | None, snapshot: bool
) -> None:
    """Seal open shards and resting vectors, merge small files, make what searches lack, take digests for `verify`."""
    with session.open(read_only=False) as db:
        db.optimize(keep=keep, scan_copies=scan_copies or False, snapshot=snapshot)


@verb("gc", example="deeplake-loader gc --older-than 7d")
@click.option("--delete", is_flag=True, help="Remove the files; without it they are only listed.")
@click.option("--older-than", type=Period(), default="1d", show_default=True, help="Leave what was written since then.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON.")
def gc_command(session: Session, delete: bool, older_than: timedelta, as_json: bool) -> None:
    """Files that no row of any branch, tag or undo log reaches: listed, and with --delete removed."""
    with session.open(read_only=not delete) as db:
        found = db.gc(dry_run=not delete, older_than_s=older_than.total_seconds())
    if as_json:
        print_json({"files": found.files, "bytes": found.size, "dry_run": found.dry_run})
        return
    for url in found.files:
        click.echo(url)
    held = f"; {found.held} publications or optimizations under way keep theirs" if found.held else ""
    note(f"{len(found.files):,} files, {amount(found.size)}{held}{'' if delete else '; --delete removes them'}")


@verb("publish", example="deeplake-loader publish ./for-everybody")
@click.argument("url", required=False)
@click.option("--json", "as_json", is_flag=True, help="A line of JSON.")
def publish_command(session: Session, url: str | None, as_json: bool) -> None:
    """Make the store as it is now readable by whoever has URL (default: where its own bytes lie).

    Anybody then opens it there by --store URL, read-only, without a server.
    """
    with session.open(read_only=False) as db:
        made = db.publish(url, progress=shows_progress())
    if as_json:
        print_json(asdict(made))
        return
    click.echo(made.url)
    note(f"version {made.version}: {made.files:,} files, {made.copied:,} copied, {amount(made.nbytes)} written")


@verb("prewarm", example='deeplake-loader prewarm "SELECT frames FROM generations WHERE steps >= 25"')
@click.argument("query", required=False)
@click.option("--param", "-p", "params", multiple=True, metavar="NAME=VALUE", help="As for `sql`.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON.")
def prewarm_command(session: Session, query: str | None, params: tuple[str, ...], as_json: bool) -> None:
    """Bring what QUERY reads, or without one every file, from the object storage into this machine's cache."""
    with session.open() as db:
        fetched = db.prewarm(query, dict(map(parameter, params)) or None)
    if as_json:
        print_json({"bytes": fetched})
    else:
        note(f"{amount(fetched)} fetched")
