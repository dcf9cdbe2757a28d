"""Clips of long videos as rows of their own: the same stored bytes, the seconds from and to, the source's key.

Shots are found where the picture's colours change at once: each frame is shrunk to 64x36, its pixels are counted in a
histogram of 8 hues x 4 saturations x 4 brightnesses, and a cut is where half the sum of the absolute differences
between one frame's shares and the next one's exceeds a threshold (0 nothing changed, 1 no colour stayed). Fades and
dissolves are not found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from deeplake_loader.errors import DecodeError, InputError
from deeplake_loader.progress import progress_bar
from deeplake_loader.rows import Blob
from deeplake_loader.sql.reader import condition
from deeplake_loader.transcoding import BAD, BadRow, JobResult, Store, find_column
from deeplake_loader.types import Table, quote_identifier, quote_identifiers

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

DEFAULT_THRESHOLD = 0.4
_SMALL = (36, 64)
_BINS = (8, 4, 4)
_MIN_SHOT_S = 0.25  # shorter ones belong to the shot before: a flash of light is no cut

Span = tuple[float, float]


def make_clips(
    db: Store,
    table: str,
    column: str,
    into: str,
    *,
    seconds: float,
    shots: bool | float,
    where: str | None,
    params: Mapping[str, Any] | None,
    progress: bool,
) -> JobResult:
    """See `Database.clips`."""
    _check(seconds, shots)
    (definition, column), chosen = find_column(db, table, column, "VIDEO"), condition(where)
    keys = {key: f"source_{key}" for key in definition.primary_key}
    held = next((t for name, t in db.tables().items() if name.lower() == into.lower()), None)
    if held is None:
        db.execute(_create(definition, column, into, keys))
    elif missing := [c for c in (*keys.values(), column, "clip_start", "clip_end") if held.column(c) is None]:
        raise InputError(f"the table {into!r} is there and has no column {missing[0]!r}; clips take one of their own")
    same = " AND ".join(
        f"c.{quote_identifier(source)} = {quote_identifier(definition.name)}.{quote_identifier(key)}"
        for key, source in keys.items()
    )
    rows = db.execute(
        f"SELECT {quote_identifiers((*keys, column))} FROM {quote_identifier(definition.name)} "
        f"WHERE {chosen}{quote_identifier(column)} IS NOT NULL AND NOT EXISTS "
        f"(SELECT 1 FROM {quote_identifier(into)} AS c WHERE {same}) "
        f"ORDER BY {quote_identifiers(tuple(keys))}",
        dict(params or {}) or None,
    )
    done, bad = 0, []
    with progress_bar(len(rows), progress, unit=" videos", scale=False) as tell:
        for row in rows:
            try:
                spans = list(_spans(row[-1], seconds, shots))
            except BAD as error:
                bad.append(BadRow(tuple(row[:-1]), error))
                continue
            shared = {**dict(zip(keys.values(), row[:-1], strict=True)), column: row[-1]}
            done += db.insert(into, [{**shared, "clip_start": a, "clip_end": b} for a, b in spans])
            tell(1)
    return JobResult(done, tuple(bad))


def _check(seconds: float, shots: bool | float) -> None:
    if not (isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds <= 86_400):
        raise InputError(f"seconds={seconds!r}: expected the length of a clip, above 0 and at most a day")
    if not isinstance(shots, bool) and not (isinstance(shots, int | float) and 0 < shots < 1):
        raise InputError(f"shots={shots!r}: expected True, False or a threshold between 0 and 1")


def _create(table: Table, column: str, into: str, keys: Mapping[str, str]) -> str:
    sources = [f"{quote_identifier(name)} {c.type}" for key, name in keys.items() if (c := table.column(key))]
    columns = ["id BIGINT PRIMARY KEY", *sources, f"{quote_identifier(column)} VIDEO NOT NULL"]
    times = ["clip_start DOUBLE PRECISION NOT NULL", "clip_end DOUBLE PRECISION NOT NULL"]
    return f"CREATE TABLE {quote_identifier(into)} ({', '.join(columns + times)})"


def _spans(blob: Blob, seconds: float, shots: bool | float) -> Iterator[Span]:
    length = blob.info.duration
    if length is None:
        raise DecodeError(f"video {blob.key} does not tell how long it is", key=blob.key)
    if shots is not False:
        return iter(find_shots(blob, DEFAULT_THRESHOLD if shots is True else shots))
    return even_spans(length, seconds)


def even_spans(length: float, seconds: float) -> Iterator[Span]:
    """Parts of that many seconds; a last one of less than half of it joins the one before.

    >>> list(even_spans(5.2, 2.0)), list(even_spans(0.5, 2.0))
    ([(0.0, 2.0), (2.0, 4.0), (4.0, 5.2)], [(0.0, 0.5)])
    """
    count = max(1, int(length / seconds + 0.5))
    for i in range(count):
        yield i * seconds, length if i == count - 1 else (i + 1) * seconds


def find_shots(blob: Blob, threshold: float = DEFAULT_THRESHOLD) -> list[Span]:
    """(start, end) in seconds of each shot; all frames are decoded. Raises DecodeError."""
    from deeplake_loader.codecs.info import BadMedia
    from deeplake_loader.codecs.video import iterate_frames, scan_packets

    data = blob.bytes()
    try:
        packets = scan_packets(data)
        length = packets.duration or packets.count / 24
        times = packets.table.seconds.tolist() if packets.table else None
        cuts, before = [0.0], None
        for number, pixels in enumerate(iterate_frames(data, size=_SMALL)):
            now = _histogram(pixels)
            time = times[number] if times else number * length / packets.count
            if before is not None and abs(now - before).sum() / 2 > threshold and time - cuts[-1] >= _MIN_SHOT_S:
                cuts.append(time)
            before = now
    except BadMedia as error:
        raise DecodeError(f"video {blob.key} cannot be decoded: {error}", key=blob.key) from error
    return list(zip(cuts, [*cuts[1:], length], strict=True))


def _histogram(pixels: Array) -> Array:
    """The shares of the picture's pixels in each bin of hue, saturation and brightness."""
    import numpy as np

    colours = pixels.reshape(-1, 3).astype(np.float32)
    high, low = colours.max(axis=1), colours.min(axis=1)
    span = np.maximum(high - low, 1e-6)
    red, green, blue = colours.T
    sector = np.select(
        [high == red, high == green], [(green - blue) / span % 6, (blue - red) / span + 2], (red - green) / span + 4
    )
    scaled = (sector / 6, (high - low) / np.maximum(high, 1), high / 255)
    bins = [np.minimum((part * n).astype(np.int64), n - 1) for part, n in zip(scaled, _BINS, strict=True)]
    counts = np.bincount(np.ravel_multi_index(tuple(bins), _BINS), minlength=int(np.prod(_BINS)))
    shares: Array = counts / len(colours)
    return shares
