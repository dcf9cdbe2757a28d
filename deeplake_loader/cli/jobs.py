"""``transcode``: a column of videos encoded anew."""

from __future__ import annotations

import click

from deeplake_loader.cli.codes import Code
from deeplake_loader.cli.output import note, print_json, shows_progress
from deeplake_loader.cli.program import Session, verb
from deeplake_loader.cli.values import cell


@verb(
    "transcode", example="deeplake-loader transcode generations frames frames_small --size 32 --fps 8",
    no="some videos could not be encoded; they are listed and keep a NULL",
)  # fmt: skip
@click.argument("table")
@click.argument("column")
@click.argument("into")
@click.option("--codec", default="h264", show_default=True, help="As in VIDEO(codec=...).")
@click.option("--gop", default=1, show_default=True, type=click.IntRange(1, 10_000), help="Frames between key frames.")
@click.option("--crf", type=click.IntRange(0, 63), help="Quality; a lower one is better and larger.")
@click.option("--preset", help="The encoder's preset.")
@click.option("--size", type=click.IntRange(2, 16_384), help="Pixels of the shorter side. Default: as they are.")
@click.option("--fps", type=click.FloatRange(min=0, min_open=True, max=1000), help="Default: each frame's own time.")
@click.option("--where", metavar="SQL", help="A condition on the rows.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON.")
def transcode_command(
    session: Session, table: str, column: str, into: str, codec: str, gop: int, crf: int | None, preset: str | None,
    size: int | None, fps: float | None, where: str | None, as_json: bool,
) -> int:  # fmt: skip
    """The videos in COLUMN encoded anew into column INTO of the same rows, which is added where it is missing.

    Rows that have a video there are left out, so a job that was stopped goes on.
    """
    with session.open(read_only=False) as db:
        result = db.transcode(
            table, column, into, codec=codec, gop=gop, crf=crf, preset=preset, size=size, fps=fps, where=where,
            progress=shows_progress(),
        )  # fmt: skip
    bad = [{"key": row.key, "error": " ".join(str(row.error).split())} for row in result.bad]
    if as_json:
        print_json({"rows": result.rows, "bad": bad})
    else:
        click.echo(f"{result.rows:,} videos written")
        for row in bad:
            note(f"{', '.join(map(cell, row['key']))}: {row['error']}")
    return Code.NO if bad else Code.DONE
