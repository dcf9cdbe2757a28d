"""Which columns go to a CUDA device as bytes and become floats there, behind the copy: a quarter of the traffic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from deeplake_loader.decode.normalize import Normalize, to_bytes
from deeplake_loader.decode.transforms import Image, Video
from deeplake_loader.stream.columns import Column
from deeplake_loader.stream.device import OnDevice
from deeplake_loader.stream.media import Media
from deeplake_loader.stream.options import Options
from deeplake_loader.stream.source import Source


def late_floats(sources: Sequence[Source], options: Options) -> tuple[list[Source], dict[str, OnDevice]]:
    """The sources with columns of bytes in place of floats, and what makes floats of them on the device.

    Columns that the user's own functions see on the host (``collate``, ``map``, ragged rules, values put in for bad
    samples) are floats already there, and so are columns that several sources normalise in different ways.
    """
    shaping = options.shaping
    if callable(options.on_error) or shaping.maps or shaping.rules or shaping.collate is not None:
        return list(sources), {}
    wanted: dict[str, set[Normalize | None]] = {}
    for source in sources:
        for column in source.columns:
            wanted.setdefault(column.name, set()).add(_step(column))
    steps = {name: step for name, found in wanted.items() if len(found) == 1 and (step := found.pop()) is not None}
    changed = [replace(s, columns=tuple(_as_bytes(c) if c.name in steps else c for c in s.columns)) for s in sources]
    return changed, {name: step.on_device for name, step in steps.items()}


def _step(column: Column) -> Normalize | None:
    return Normalize.of(column.transform) if isinstance(column, Media) and column.variants is None else None


def _as_bytes(column: Column) -> Column:
    if isinstance(column, Media) and isinstance(column.transform, Image | Video):
        return replace(column, transform=to_bytes(column.transform))
    return column
