"""``stream``: how fast a query streams, and what holds it up."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from deeplake_loader.cli.output import print_json
from deeplake_loader.cli.program import Session, verb
from deeplake_loader.cli.values import parameter

if TYPE_CHECKING:
    from deeplake_loader.database import Database
    from deeplake_loader.stream.profile import Profile


@verb(
    "stream",
    example="""deeplake-loader stream "SELECT frames, prompt FROM generations" \\
  --batch-size 2 --frames 4 --size 64 --batches 4""",
)
@click.argument("query")
@click.option("--param", "-p", "params", multiple=True, metavar="NAME=VALUE", help="As for `sql`.")
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1, 1_000_000), help="Samples.")
@click.option(
    "--batches", default=100, show_default=True, type=click.IntRange(1, 1_000_000), help="How many are timed."
)
@click.option("--shuffle", is_flag=True, help="In a shuffled order.")
@click.option("--seed", default=0, show_default=True, help="Of the order.")
@click.option("--size", default=224, show_default=True, type=click.IntRange(1, 16_384), help="Pixels a side of images "
              "and videos.")  # fmt: skip
@click.option("--frames", default=16, show_default=True, type=click.IntRange(1, 4096), help="Frames of a video.")
@click.option("--seconds", default=1.0, show_default=True, type=click.FloatRange(0.001, 3600), help="Of a sound.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Decoding threads. Default: as the stream chooses.")
@click.option("--device", default="cpu", show_default=True, help="Where batches go: cpu, cuda.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON.")
@click.option("--at", metavar="REF", help="As of a tag, a commit id or a UTC time.")
def stream_command(
    session: Session, query: str, params: tuple[str, ...], batch_size: int, batches: int, as_json: bool,
    at: str | None, **options: Any,
) -> None:  # fmt: skip
    """Samples a second of QUERY through a stream, of each stage alone, and the bottleneck.

    Nothing is trained and nothing written; batches are read, decoded, put together and thrown away.
    """
    from deeplake_loader.stream.profile import profile

    with session.open(at=at) as db:
        stream = db.stream(
            query, dict(map(parameter, params)) or None, batch_size=batch_size, **_stream_options(db, query, options)
        )
        found = profile(stream, batches=batches)
    if as_json:
        print_json(_measured(found))
    else:
        click.echo(str(found))


def _stream_options(db: Database, query: str, given: dict[str, Any]) -> dict[str, Any]:
    """What `Database.stream` is asked for: every medium of the query brought to one size."""
    from deeplake_loader.decode.transforms import Audio, Image, Video

    size, frames, seconds = given["size"], given["frames"], given["seconds"]
    made = {"IMAGE": Image(size=size), "VIDEO": Video(num_frames=frames, size=size),
            "AUDIO": Audio(sample_rate=16_000, channels=1, duration=seconds)}  # fmt: skip
    columns = db.compiled(query).results
    transforms = {c.name: made[c.type.name] for c in columns if c.type is not None and c.type.name in made}
    options = {"transforms": transforms, "shuffle": given["shuffle"], "seed": given["seed"], "device": given["device"]}
    return options | ({"num_threads": given["threads"]} if given["threads"] else {})


def _measured(found: Profile) -> dict[str, Any]:
    names = ("batches", "batch_size", "first_batch_s", "loader_s", "rate", "read_rate", "decode_rate", "finish_rate")
    stats = {name: value for name, value in asdict(found.stats).items() if isinstance(value, int | float | str)}
    return {**{name: getattr(found, name) for name in names}, "report": found.stats.report(), "stats": stats}
