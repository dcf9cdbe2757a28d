"""``show``: pictures of rows, in the terminal and as a contact sheet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

import click

from deeplake_loader.cli.output import is_terminal, note
from deeplake_loader.cli.program import Session, verb
from deeplake_loader.cli.rows import find_table, first_rows, listed_columns
from deeplake_loader.cli.values import cell, printable
from deeplake_loader.errors import CorruptionError, DecodeError, InputError, NotFoundError, StoreError
from deeplake_loader.types import Table, quote_identifiers

if TYPE_CHECKING:
    from deeplake_loader.database import Database
    from deeplake_loader.pictures import Tile
    from deeplake_loader.rows import Blob, Row

PICTURED = ("IMAGE", "VIDEO", "AUDIO")


@verb("show", example="deeplake-loader show generations -n 4 --frames 4 --sheet sheet.png")
@click.argument("table")
@click.argument("keys", nargs=-1)
@click.option("-n", "count", default=6, show_default=True, type=click.IntRange(1, 10_000), help="Rows, without KEYS.")
@click.option("--columns", "-c", metavar="A,B", help="Columns of pictures. Default: all images, videos and sounds.")
@click.option("--where", metavar="SQL", help="A condition on the rows.")
@click.option("--caption", metavar="A,B", help="Columns below a picture. Default: the key.")
@click.option(
    "--frames", default=1, show_default=True, type=click.IntRange(1, 64), help="Frames of a video as a strip."
)
@click.option("--size", default=160, show_default=True, type=click.IntRange(8, 4096), help="Pixels on a sheet: the "
              "longer side of a picture, or the height of a strip.")  # fmt: skip
@click.option("--sheet", metavar="FILE.png", help="Write a contact sheet instead of drawing in the terminal.")
@click.option("--across", default=6, show_default=True, type=click.IntRange(1, 100), help="Pictures in a sheet's row.")
@click.option("--width", type=click.IntRange(4, 400), help="Characters of a picture in the terminal.")
@click.option("--at", metavar="REF", help="As of a tag, a commit id or a UTC time.")
def show_command(
    session: Session, table: str, keys: tuple[str, ...], count: int, columns: str | None, where: str | None,
    caption: str | None, frames: int, size: int, sheet: str | None, across: int, width: int | None, at: str | None,
) -> None:  # fmt: skip
    """Pictures of TABLE's rows, of the first ones or of those with these KEYS: images, videos by their frames, sounds
    by their waves.

    In a terminal as half blocks in colour, in a pipe as characters from dark to light; as a PNG with --sheet. A value
    that cannot be decoded is named on stderr and left out.
    """
    if keys and where is not None:
        raise click.UsageError("give KEYS or --where, not both")
    with session.open(at=at) as db:
        definition = find_table(db, table)
        pictured = _pictured(definition, columns)
        captions = listed_columns(definition, caption) if caption else list(definition.primary_key)
        chosen = quote_identifiers(dict.fromkeys((*captions, *pictured)))
        sql = f"SELECT {chosen} {first_rows(definition, _by_keys(db, definition, keys) if keys else where)}"
        rows = db.execute(f"{sql} LIMIT {len(keys) or count}", list(keys) or None)
        tiles = [
            tile for row in rows for name in pictured
            if (tile := _tile(row, name, captions, len(pictured) > 1, frames, size)) is not None
        ]  # fmt: skip
    if sheet is not None:
        _write_sheet(tiles, sheet, across)
    else:
        _draw(tiles, width)


def _pictured(table: Table, columns: str | None) -> list[str]:
    known = [column.name for column in table.columns if column.type.name in PICTURED]
    if not known:
        raise InputError(f"{table.name} has no IMAGE, VIDEO or AUDIO column; `head` shows its rows")
    found = listed_columns(table, columns) if columns else known
    if other := [name for name in found if name not in known]:
        raise InputError(f"there is no picture of {table.name}.{other[0]}; columns with pictures: {', '.join(known)}")
    return found


def _by_keys(db: Database, table: Table, keys: Sequence[str]) -> str:
    """Compared as text, which is what a key on the command line is; NotFoundError for keys of no row."""
    if len(table.primary_key) != 1:
        raise InputError(f"the key of {table.name} is ({', '.join(table.primary_key)}); choose its rows by --where")
    key = f"CAST({quote_identifiers(table.primary_key)} AS TEXT)"
    chosen = f"{key} IN ({', '.join('?' * len(keys))})"
    there = {row[0] for row in db.execute(f"SELECT {key} {first_rows(table, chosen)}", list(keys))}
    if missing := [name for name in keys if name not in there]:
        raise NotFoundError(f"{table.name} has no row {', '.join(map(repr, missing))}; `head` shows its first keys")
    return chosen


def _tile(row: Row, name: str, captions: Sequence[str], several: bool, frames: int, size: int) -> Tile | None:
    """The picture of one value, without pixels where it is damaged; None of NULL."""
    from deeplake_loader.pictures import Tile, strip, thumbnail

    blob: Blob | None = row[name]
    if blob is None:
        return None
    caption = ", ".join(cell(row[column]) for column in captions)
    caption = f"{caption} {name}" if several else caption
    try:
        many = frames > 1 and blob.info.media == "video"
        pixels = strip(blob, frames=frames, height=size) if many else thumbnail(blob, size=size)
    except (CorruptionError, DecodeError, StoreError) as error:
        note(f"{printable(caption)}: {' '.join(str(error).split())}")
        pixels = None
    return Tile(pixels, caption)


def _write_sheet(tiles: Sequence[Tile], path: str, across: int) -> None:
    from deeplake_loader.pictures import contact_sheet

    if not tiles:
        raise InputError("there is nothing to show; the rows are none, or hold NULL")
    with click.open_file(path, "wb", atomic=True) as out:
        contact_sheet(tiles, columns=across).save(out, "PNG")
    note(f"wrote {path}: {len(tiles)} pictures")


def _draw(tiles: Sequence[Tile], width: int | None) -> None:
    from deeplake_loader.pictures import half_blocks

    colours: Any = _colours()
    most = width or max(4, min(100, get_terminal_size().columns - 1))
    for tile in tiles:
        if tile.pixels is not None:
            click.echo(half_blocks(tile.pixels, width=most, colours=colours), color=colours != "none")
            click.echo(printable(tile.caption))


def _colours() -> str:
    """What the terminal can show: all colours, xterm's 256, or none in a pipe and with $NO_COLOR."""
    if not is_terminal() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return "none"
    return "truecolor" if os.environ.get("COLORTERM") in ("truecolor", "24bit") else "256"
