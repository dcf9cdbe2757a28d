"""A column of videos encoded anew into another column of the same rows, a few rows at a time.

Every few rows are one commit, and rows that have their new video already are left out, so a job that was stopped goes
on where it was. Frames pass one by one from the decoder to the encoder; sound is left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

from deeplake_loader import kernels
from deeplake_loader.errors import CorruptionError, DecodeError, InputError, MediaError, NotFoundError, StoreError
from deeplake_loader.progress import progress_bar
from deeplake_loader.rows import Blob, RowSet
from deeplake_loader.sql.reader import condition
from deeplake_loader.types import ColumnType, Table, quote_identifier, quote_identifiers

if TYPE_CHECKING:
    from deeplake_loader.codecs.encoding import Timed

BAD = (CorruptionError, DecodeError, MediaError, StoreError)
"""What is the matter with one row, and not with the job."""


class Store(Protocol):
    """What the jobs need of a Database."""

    def execute(self, sql: str, params: Any = None) -> RowSet: ...
    def executemany(self, sql: str, rows: Any) -> RowSet: ...
    def insert(self, table: str, rows: object) -> int: ...
    def tables(self) -> Mapping[str, Table]: ...
    def transaction(self, message: str | None = None) -> AbstractContextManager[None]: ...


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was left out: its primary key and why."""

    key: tuple[Any, ...]
    error: Exception


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a bulk job did: ``rows`` written, and the rows that are ``bad``, which keep a NULL and come again next
    time."""

    rows: int
    bad: tuple[BadRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """How videos are encoded: the column type with its options; ``size`` as `Database.transcode` takes it."""

    type: ColumnType
    size: int | tuple[int, int] | None
    fps: Fraction | None


def find_column(db: Store, table: str, column: str, kind: str) -> tuple[Table, str]:
    """(the table, the column's name as it was declared). Raises NotFoundError, or InputError for another type."""
    definition = next((t for name, t in db.tables().items() if name.lower() == table.lower()), None)
    if definition is None:
        raise NotFoundError(f"there is no table {table!r}; tables: {', '.join(db.tables()) or 'none yet'}")
    found = definition.column(column)
    if found is None:
        known = ", ".join(c.name for c in definition.columns)
        raise NotFoundError(f"{definition.name} has no column {column!r}; its columns are {known}")
    if found.type.name != kind:
        raise InputError(f"{definition.name}.{found.name} is {found.type}; this takes a {kind} column")
    return definition, found.name


def transcode(
    db: Store,
    table: str,
    column: str,
    into: str,
    recipe: Recipe,
    *,
    where: str | None,
    params: Mapping[str, Any] | None,
    progress: bool,
) -> JobResult:
    """See `Database.transcode`."""
    (definition, column), chosen = find_column(db, table, column, "VIDEO"), condition(where)
    if into.lower() == column.lower():
        raise InputError(f"into={into!r} is the column itself; name another one, which is added where it is missing")
    if definition.column(into) is None:
        db.execute(f"ALTER TABLE {quote_identifier(definition.name)} ADD COLUMN {quote_identifier(into)} {recipe.type}")
        definition = db.tables()[definition.name]
    find_column(db, definition.name, into, "VIDEO")
    keys = definition.primary_key
    rows = db.execute(
        f"SELECT {quote_identifiers((*keys, column))} FROM {quote_identifier(definition.name)} "
        f"WHERE {chosen}{quote_identifier(column)} IS NOT NULL AND {quote_identifier(into)} IS NULL "
        f"ORDER BY {quote_identifiers(keys)}",
        dict(params or {}) or None,
    )
    matched = " AND ".join(f"{quote_identifier(key)} = ?" for key in keys)
    update = f"UPDATE {quote_identifier(definition.name)} SET {quote_identifier(into)} = ? WHERE {matched}"
    return _in_batches(db, rows, update, lambda blob: encode_anew(blob, recipe), progress)


def _in_batches(db: Store, rows: RowSet, update: str, work: Callable[[Blob], bytes], progress: bool) -> JobResult:
    cores = os.cpu_count() or 1
    done, bad = 0, []
    with (
        ThreadPoolExecutor(cores, thread_name_prefix="deeplake-transcode") as pool,
        progress_bar(len(rows), progress, unit=" videos", scale=False) as tell,
    ):
        for start in range(0, len(rows), 2 * cores):
            batch = rows[start : start + 2 * cores]
            good = []
            for row, made in zip(batch, pool.map(lambda r: _attempt(work, r[-1]), batch), strict=True):
                if isinstance(made, bytes):
                    good.append((made, *row[:-1]))
                else:
                    bad.append(BadRow(tuple(row[:-1]), made))
            if good:
                db.executemany(update, good)
            done += len(good)
            tell(len(batch))
    return JobResult(done, tuple(bad))


def _attempt(work: Callable[[Blob], bytes], blob: Blob) -> bytes | Exception:
    try:
        return work(blob)
    except BAD as error:
        return error


def encode_anew(blob: Blob, recipe: Recipe) -> bytes:
    """The stored video as the recipe says, its frames shown when they were. Raises one of BAD."""
    from deeplake_loader.codecs.encoding import encode_timed
    from deeplake_loader.codecs.info import BadMedia

    try:
        frames, base, rate = _timed_frames(blob, recipe)
        type = ColumnType("VIDEO", options=tuple(sorted({**dict(recipe.type.options), "fps": str(rate)}.items())))
        return encode_timed(type, frames, base, f"{blob.key}")[0]
    except BadMedia as error:
        raise DecodeError(f"video {blob.key} cannot be decoded: {error}", key=blob.key) from error


def _timed_frames(blob: Blob, recipe: Recipe) -> tuple[Iterator[Timed], Fraction, Fraction]:
    """(frames with their ticks, seconds per tick, frames per second)."""
    from deeplake_loader.codecs.video import iterate_frames, scan_packets

    data = blob.bytes()
    packets = scan_packets(data)
    rate = Fraction(packets.fps or 24).limit_denominator(100_000)
    count, table = packets.count, packets.table
    seconds = [i / float(rate) for i in range(count)] if table is None else table.seconds.tolist()
    frames = (_resized(pixels, recipe.size) for pixels in iterate_frames(data))
    if recipe.fps is not None:
        shown = _at_rate(seconds, packets.duration or count / float(rate), float(recipe.fps))
        return _repeated(frames, shown), 1 / recipe.fps, recipe.fps
    if table is None:
        return enumerate(frames), 1 / rate, rate
    return zip((table.times - table.times[0]).tolist(), frames, strict=True), table.base, rate


def _at_rate(seconds: Sequence[float], length: float, fps: float) -> Sequence[int]:
    from deeplake_loader.decode.sampling import frames_between

    return frames_between(seconds, 0.0, length, fps)


def _repeated(frames: Iterator[Any], shown: Sequence[int]) -> Iterator[Timed]:
    """Each of the ascending numbers' frames, at ticks 0, 1, 2 ..."""
    number, pixels = 0, next(frames)
    for tick, wanted in enumerate(shown):
        while number < wanted:
            number, pixels = number + 1, next(frames)
        yield tick, pixels


def _resized(pixels: Any, size: int | tuple[int, int] | None) -> Any:
    import numpy as np

    if size is None:
        return pixels
    height, width = pixels.shape[:2]
    if isinstance(size, int):
        scale = size / min(height, width)
        size = (max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2))
    out = np.empty((*size, 3), np.uint8)
    kernels.resize_into(
        np.ascontiguousarray(pixels), out, box=(0.0, 0.0, float(width), float(height)), flip=False, layout="HWC"
    )
    return out
