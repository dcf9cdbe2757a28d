"""A LeRobot dataset as rows: one an episode, with the frames' numbers as tensors and each camera's video.

A video file that holds several episodes is stored once a commit; its rows are clips of the same bytes, from
``<camera>.start`` to ``<camera>.end`` seconds, as `Database.clips` makes them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplake_loader.adopted import file_url
from deeplake_loader.errors import CorruptionError, InputError, NotFoundError
from deeplake_loader.ingest.lerobot import Dataset, Episode, Feature, read_dataset
from deeplake_loader.store import file_errors
from deeplake_loader.types import ColumnType, quote_identifier

if TYPE_CHECKING:
    from deeplake_loader.ingest.inference import Proposal
    from deeplake_loader.ingest.sources import Source
    from deeplake_loader.ingest.target import Batch, Known, Reading, Target
    from deeplake_loader.rows import Blob

_INDEX = "episode_index"
_GROUP = 100  # episodes of one commit, but those of one table are not parted
_ROWS = 50
_BYTES = 64 << 20  # of videos that are in memory at once, beside the last one


class EpisodesReading:
    """A dataset, or some of its episodes."""

    has_keys, plain_names = False, False

    def __init__(self, source: Source, dataset: Dataset | None = None) -> None:
        self.source = source
        self._dataset = dataset
        self._names: dict[str, str] = {}

    @property
    def dataset(self) -> Dataset:
        """Its metadata, read once."""
        if self._dataset is None:
            self._dataset = read_dataset(str(self.source.path), self.source.name)
        return self._dataset

    def split(self, known: Known) -> Iterator[Reading]:
        """The tables of frames that are new, with their episodes; some of them a commit."""
        part: list[Episode] = []
        for data, group in groupby(self.dataset.episodes, lambda episode: episode.data):
            if os.path.isfile(self._path(data)) and known(self._table(data)):
                continue
            part += group
            if len(part) >= _GROUP:
                yield self._part(part)
                part = []
        if part:
            yield self._part(part)

    def _part(self, episodes: Sequence[Episode]) -> EpisodesReading:
        files = {e.data for e in episodes} | {clip.path for e in episodes for clip in e.clips.values()}
        nbytes = sum(os.path.getsize(path) for file in files if os.path.isfile(path := self._path(file)))
        return EpisodesReading(replace(self.source, nbytes=nbytes), replace(self.dataset, episodes=tuple(episodes)))

    def _table(self, data: str) -> Source:
        path = self._path(data)
        with file_errors("read", path):
            facts = os.stat(path)
        return replace(self.source, name=path, url=file_url(path), stamp=f"{facts.st_size}:{facts.st_mtime_ns}")

    def _path(self, name: str) -> str:
        return os.path.join(str(self.source.path), name)

    def entries(self, added: Mapping[str, int]) -> Iterator[tuple[str, str, int]]:
        """What the ledger notes: every table of which an episode became a row."""
        for data, group in groupby(self.dataset.episodes, lambda episode: episode.data):
            count = sum(_name(episode) in added for episode in group)
            if count:
                found = self._table(data)
                yield found.url, found.stamp, count

    def observe(self) -> Iterator[Mapping[str, ColumnType | None]]:
        dataset = self.dataset
        double = ColumnType("DOUBLE")
        yield {
            _INDEX: ColumnType("BIGINT"), "task": ColumnType("TEXT"), "length": ColumnType("BIGINT"), "fps": double,
            **{n: ColumnType("TENSOR", dataset.features[n].dtype, (None, *dataset.features[n].frame_shape))
               for n in dataset.of()},
            **dict.fromkeys(dataset.of("string"), ColumnType("JSON")),
            **{name: kind for camera in dataset.of("video") for name, kind in
               ((camera, ColumnType("VIDEO")), (f"{camera}.start", double), (f"{camera}.end", double))},
        }  # fmt: skip

    def prepare(self, proposal: Proposal) -> None:
        self._names = {choice.field: choice.column.name for choice in proposal.choices}

    def batches(self, target: Target) -> Iterator[Batch]:
        """The episodes in order; a batch ends behind each that brings a video which later ones share."""
        for name in self.dataset.features:
            if name not in self._names:
                target.unused(name, len(self.dataset.episodes))
        videos = _Videos(target, self._names, self.dataset)
        names: list[str] = []
        rows: list[dict[str, Any]] = []
        size = 0
        for episode, frames in self._frames(target):
            row = self._row(target, episode, frames)
            if row is None:
                continue
            names.append(_name(episode))
            rows.append(row)
            size += videos.fill(row, episode, self._path)
            if videos.pending or len(rows) >= _ROWS or size >= _BYTES:
                yield names, self._columns(rows)
                videos.settle()
                names, rows, size = [], [], 0
        if rows:
            yield names, self._columns(rows)

    def _columns(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        return {column: [row.get(field) for row in rows] for field, column in self._names.items()}

    def _row(self, target: Target, episode: Episode, frames: Any) -> dict[str, Any] | None:
        """The episode without its videos; None where it cannot be taken, which is told."""
        lost = [
            c.path for key, c in episode.clips.items() if key in self._names and not os.path.isfile(self._path(c.path))
        ]
        try:
            if lost:
                raise ValueError(f"its video {lost[0]} is not there")
            if frames.num_rows != episode.length:
                raise ValueError(f"its table has {frames.num_rows} frames, its metadata {episode.length}")
            found = {
                n: self._values(frames.column(n), self.dataset.features[n]) for n in frames.column_names if n != _INDEX
            }
        except ValueError as error:
            target.skip(_name(episode), str(error), cause=error)
            return None
        task = "; ".join(episode.tasks) or None
        return {_INDEX: episode.index, "task": task, "length": episode.length, "fps": self.dataset.fps, **found}

    def _values(self, column: Any, feature: Feature) -> Any:
        """A feature's values of all frames: an array, or a list of texts.

        Raises:
            ValueError: a frame has none, or not as many as others; or they are no numbers of the feature's dtype.
        """
        if not feature.is_numeric:
            return column.to_pylist()
        import numpy as np
        import pyarrow.compute as pc
        import pyarrow.types as is_

        length, flat = len(column), column.combine_chunks()
        while is_.is_list(flat.type) or is_.is_fixed_size_list(flat.type) or is_.is_large_list(flat.type):
            if flat.null_count or len(pc.unique(pc.list_value_length(flat))) > 1:  # else those behind it would move up
                raise ValueError("a frame has no value, or not as many numbers as others")
            flat = flat.flatten()
        if flat.null_count:
            raise ValueError("a frame has no value")
        if not (is_.is_integer(flat.type) or is_.is_floating(flat.type) or is_.is_boolean(flat.type)):
            raise ValueError(f"its table holds {flat.type!s:.50}, its metadata says {feature.dtype}")
        values = flat.to_numpy(zero_copy_only=False)
        with np.errstate(invalid="ignore", over="ignore"):
            found = values.astype(feature.dtype)
        if found.dtype.kind in "iub" and not np.array_equal(found, values):
            raise ValueError(f"its table holds a number that is no {feature.dtype}, as its metadata says")
        return found.reshape(length, *feature.frame_shape)

    def _frames(self, target: Target) -> Iterator[tuple[Episode, Any]]:
        """Each episode with the rows of its table that are its own, in their order."""
        wanted = [n for n in (*self.dataset.of(), *self.dataset.of("string")) if n in self._names]
        for data, group in groupby(self.dataset.episodes, lambda episode: episode.data):
            try:
                table = self._read(data, wanted)
            except (CorruptionError, NotFoundError) as error:
                if target.on_error == "raise":
                    raise
                for episode in group:
                    target.skip(_name(episode), str(error))
                continue
            numbers = table.column(_INDEX).to_numpy()
            in_order = bool((numbers[1:] >= numbers[:-1]).all())
            for episode in group:
                if in_order:
                    start, stop = numbers.searchsorted(episode.index), numbers.searchsorted(episode.index, "right")
                    yield episode, table.slice(int(start), int(stop - start))
                else:
                    yield episode, table.filter(_mask(numbers == episode.index))

    def _read(self, data: str, wanted: Sequence[str]) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self._path(data)
        with file_errors("read", path):
            try:
                with pq.ParquetFile(path) as file:
                    schema = file.schema_arrow
                    lost = [n for n in (_INDEX, *wanted) if schema.names.count(n) != 1]
                    if lost:
                        raise InputError(f"{path} has no column {lost[0]!r}, or several, which meta/info.json names")
                    if not pa.types.is_integer(schema.field(_INDEX).type):
                        raise CorruptionError(f"{path}: {_INDEX} is {schema.field(_INDEX).type!s:.50}, no whole number")
                    return file.read(columns=[_INDEX, *wanted])
            except pa.ArrowException as error:
                raise CorruptionError(f"{path} is damaged or cut: {str(error)[:200]}") from error


def _mask(chosen: Any) -> Any:
    import pyarrow as pa

    return pa.array(chosen)


def _name(episode: Episode) -> str:
    return f"episode {episode.index}"


@dataclass(slots=True)
class _Pending:
    """A file that a row brings: where its handle is to be found once the row is stored."""

    field: str
    path: str
    episode: int
    before: set[Blob]


class _Videos:
    """The videos of rows: a file the first time, then the stored one's handle."""

    def __init__(self, target: Target, names: Mapping[str, str], dataset: Dataset) -> None:
        self._db, self._table, self._names = target.db, target.table, names
        self._stored: dict[tuple[str, str], Blob] = {}
        self._left: dict[tuple[str, str], int] = {}  # episodes that are still to come, by camera and file
        for episode in dataset.episodes:
            for key, clip in episode.clips.items():
                self._left[key, clip.path] = self._left.get((key, clip.path), 0) + 1
        self.pending: list[_Pending] = []

    def fill(self, row: dict[str, Any], episode: Episode, path_of: Any) -> int:
        """Puts the episode's clips into its row; gives the bytes of files that are new."""
        size = 0
        for key, clip in episode.clips.items():
            if key not in self._names:
                continue
            row[f"{key}.start"], row[f"{key}.end"] = clip.start, clip.end
            place = (key, clip.path)
            self._left[place] -= 1
            found = self._stored.get(place)
            row[key] = Path(path_of(clip.path)) if found is None else found
            if found is None:
                size += os.path.getsize(path_of(clip.path))
                if self._left[place]:
                    self.pending.append(_Pending(*place, episode.index, self._handles(key, episode.index)))
        return size

    def settle(self) -> None:
        """Finds the handles of what the last batch has stored; a row that was refused leaves none."""
        for one in self.pending:
            new = self._handles(one.field, one.episode) - one.before
            if len(new) == 1:
                self._stored[one.field, one.path] = new.pop()
        self.pending = []

    def _handles(self, field: str, episode: int) -> set[Blob]:
        """The videos of the rows with that episode's number."""
        if _INDEX not in self._names:
            raise InputError(f"columns= leaves {_INDEX} out, by which rows that share a video file are found")
        column, number = quote_identifier(self._names[field]), quote_identifier(self._names[_INDEX])
        rows = self._db.execute(f"SELECT {column} FROM {quote_identifier(self._table)} WHERE {number} = %s", [episode])
        return {row[0] for row in rows if row[0] is not None}
