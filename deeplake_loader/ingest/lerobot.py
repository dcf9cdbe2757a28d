"""What a LeRobot dataset's ``meta`` folder says: its features, and of each episode which files hold it. Nothing of the
data is read here.

Format 2.x has a table and a video per episode and camera (``meta/episodes.jsonl``); 3.0 packs episodes into files, and
``meta/episodes/*/*.parquet`` has each one's files and, in a video, its seconds. Where files lie is told by templates in
``meta/info.json``. Source: LeRobot's documentation of LeRobotDataset v3.0, and datasets of both formats.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deeplake_loader.errors import CorruptionError, DeeplakeError, InputError
from deeplake_loader.ingest.members import read_json
from deeplake_loader.store import file_errors
from deeplake_loader.types import TENSOR_DTYPES

INFO = os.path.join("meta", "info.json")
_MAX_META = 1 << 30
_FIELD = re.compile(r"\{(\w+)(?::0(\d{1,2})d)?\}")
_NUMBERS = ("episode_index", "frame_index", "index")
"""Features that only count."""


@dataclass(frozen=True, slots=True)
class Feature:
    """What each frame has: ``dtype`` of numpy, or video, image, string; ``shape`` of one frame's value."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def is_numeric(self) -> bool:
        return self.dtype in TENSOR_DTYPES

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """The shape behind the axis of frames: a single number has none."""
        return () if self.shape == (1,) else self.shape


@dataclass(frozen=True, slots=True)
class Clip:
    """A part of a video file: its path below the folder, the seconds from and to."""

    path: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Episode:
    """One recording: its number, frames, tasks, the table that holds its frames, and a clip per camera."""

    index: int
    length: int
    tasks: tuple[str, ...]
    data: str
    clips: Mapping[str, Clip]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A LeRobot dataset: frames per second, features by name, episodes in order."""

    fps: float
    features: Mapping[str, Feature]
    episodes: tuple[Episode, ...]

    def of(self, *kinds: str) -> list[str]:
        """The features whose dtype is one of these; without any, the numeric ones."""
        return [n for n, f in self.features.items() if (f.dtype in kinds if kinds else f.is_numeric)]


def is_dataset(folder: str) -> bool:
    """Whether a folder holds a LeRobot dataset."""
    path = os.path.join(folder, INFO)
    if not os.path.isfile(path):
        return False
    with file_errors("read", path), open(path, "rb") as file:
        return b'"codebase_version"' in file.read(1 << 20)


def read_dataset(folder: str, name: str) -> Dataset:
    """What the folder's metadata says.

    Raises:
        InputError: another version of the format. CorruptionError: it is not what LeRobot writes.
    """
    try:
        info = read_json(_text(folder, INFO))
        version = str(info.get("codebase_version", ""))
        if not version.startswith(("v2.", "v3.")):
            raise InputError(
                f"{name} is a LeRobot dataset of version {version[:20]!r}, expected 2.x or 3.x; convert it with lerobot"
            )
        fps = float(info["fps"])
        if not 0 < fps < 1e6:
            raise ValueError(f"{fps} frames per second")
        features = {
            str(key): Feature(str(value["dtype"]), tuple(int(n) for n in value["shape"]))
            for key, value in info["features"].items() if key not in _NUMBERS
        }  # fmt: skip
        cameras = [key for key, feature in features.items() if feature.dtype == "video"]
        made = _packed if version.startswith("v3.") else _single
        episodes = sorted(made(folder, info, cameras, fps), key=lambda episode: episode.index)
    except DeeplakeError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CorruptionError(f"{name}: its meta folder is not what LeRobot writes: {error!r:.200}") from error
    if not episodes:
        raise InputError(f"{name} holds no episodes")
    return Dataset(fps, features, tuple(episodes))


def _single(folder: str, info: Mapping[str, Any], cameras: list[str], fps: float) -> Iterator[Episode]:
    """Episodes of format 2: a file each."""
    size = int(info["chunks_size"])
    for line in _text(folder, os.path.join("meta", "episodes.jsonl")).splitlines():
        if not line.strip():
            continue
        row = json.loads(line)
        index, length = int(row["episode_index"]), int(row["length"])
        numbers = {"episode_index": index, "episode_chunk": index // size}
        clips = {
            key: Clip(_path(info["video_path"], {**numbers, "video_key": key}), 0.0, length / fps) for key in cameras
        }
        yield Episode(index, length, _tasks(row.get("tasks")), _path(info["data_path"], numbers), clips)


def _packed(folder: str, info: Mapping[str, Any], cameras: list[str], _fps: float) -> Iterator[Episode]:
    """Episodes of format 3: several in a file."""
    top = os.path.join(folder, "meta", "episodes")
    for place, folders, names in os.walk(top):
        folders.sort()
        for name in sorted(names):
            if name.endswith(".parquet"):
                for row in _rows(os.path.join(place, name)):
                    yield _episode(row, info, cameras)


def _episode(row: Mapping[str, Any], info: Mapping[str, Any], cameras: list[str]) -> Episode:
    def path(template: str, before: str, key: str = "") -> str:
        numbers = {part: int(row[f"{before}/{part}"]) for part in ("chunk_index", "file_index")}
        return _path(info[template], {**numbers, "video_key": key})

    clips = {}
    for key in cameras:
        before = f"videos/{key}"
        times = (float(row[f"{before}/{part}_timestamp"]) for part in ("from", "to"))
        clips[key] = Clip(path("video_path", before, key), *times)
    index, length = int(row["episode_index"]), int(row["length"])
    return Episode(index, length, _tasks(row.get("tasks")), path("data_path", "data"), clips)


def _rows(path: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a table of episodes, without the statistics beside them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with file_errors("read", path):
        try:
            with pq.ParquetFile(path) as file:
                wanted = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
                for batch in file.iter_batches(columns=wanted):
                    yield from batch.to_pylist()
        except pa.ArrowException as error:
            raise CorruptionError(f"{path} is damaged or cut: {str(error)[:200]}") from error


def _tasks(value: Any) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(str(task) for task in value)


def _path(template: object, values: Mapping[str, int | str]) -> str:
    """The template filled in: numbers with leading zeros, names as they are; Python's own formatting could do more.

    >>> _path("data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    ...       {"episode_chunk": 0, "episode_index": 7})
    'data/chunk-000/episode_000007.parquet'
    """
    if not isinstance(template, str):
        raise TypeError(f"{template!r:.100} is no template of paths")
    path = _FIELD.sub(lambda found: str(values[found[1]]).zfill(int(found[2] or 0)), template)
    if "{" in path or "\0" in path or os.path.isabs(path) or ".." in path.replace("\\", "/").split("/"):
        raise ValueError(f"{template!r} leads to no file below the folder")
    return path


def _text(folder: str, name: str) -> str:
    path = os.path.join(folder, name)
    with file_errors("read", path), open(path, "rb") as file:
        data = file.read(_MAX_META + 1)
    if len(data) > _MAX_META:
        raise InputError(f"{path} holds more than {_MAX_META} bytes")
    return data.decode()
