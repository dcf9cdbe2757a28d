"""LeRobot datasets of formats 2 and 3, made here with PyAV and pyarrow as LeRobot's documentation describes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import moving_frames

import deeplake_loader as deeplake
from deeplake_loader.errors import CorruptionError, InputError, NotFoundError
from deeplake_loader.ingest import infer
from deeplake_loader.ingest.lerobot import read_dataset

FPS = 10
CAMERA, WRIST = "observation.images.top", "observation.images.wrist"
LENGTHS = (8, 12, 5)
TASKS = (["pick up the cube"], ["pick up the cube", "drop it"], ["drop it"])

pytestmark = pytest.mark.both_catalogs


def write_video(path: Path, frames: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"crf": "10", "g": "4", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        out.mux(stream.encode())


def states(episode: int) -> np.ndarray:
    return np.random.default_rng(episode).normal(size=(LENGTHS[episode], 3)).astype(np.float32)


def frames_of(episode: int) -> pa.Table:
    n = LENGTHS[episode]
    start = sum(LENGTHS[:episode])
    return pa.table({
        "observation.state": pa.array(list(states(episode)), pa.list_(pa.float32(), 3)),
        "action": pa.array([a.tolist() for a in states(episode) * 2], pa.list_(pa.float32())),
        "next.done": pa.array([i == n - 1 for i in range(n)]),
        "timestamp": pa.array(np.arange(n, dtype=np.float32) / FPS),
        "frame_index": pa.array(range(n)), "episode_index": pa.array([episode] * n),
        "index": pa.array(range(start, start + n)), "task_index": pa.array([0] * n),
    })  # fmt: skip


def pictures(episode: int, camera: str) -> np.ndarray:
    return moving_frames(LENGTHS[episode], seed=10 * episode + (camera == WRIST))


def info(version: str, **paths: Any) -> dict[str, Any]:
    numbers = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64",
               "task_index": "int64"}  # fmt: skip
    return {
        "codebase_version": version, "robot_type": "so100", "fps": FPS, "chunks_size": 1000, **paths,
        "features": {
            "observation.state": {"dtype": "float32", "shape": [3], "names": ["a", "b", "c"]},
            "action": {"dtype": "float32", "shape": [3], "names": None},
            "next.done": {"dtype": "bool", "shape": [1], "names": None},
            CAMERA: {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]},
            WRIST: {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]},
            **{name: {"dtype": kind, "shape": [1], "names": None} for name, kind in numbers.items()},
        },
    }  # fmt: skip


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_table(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    folder = tmp_path / "v2"
    write_json(folder / "meta" / "info.json", info(
        "v2.1", data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    ))  # fmt: skip
    lines = [{"episode_index": i, "tasks": TASKS[i], "length": n} for i, n in enumerate(LENGTHS)]
    (folder / "meta" / "episodes.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for i in range(len(LENGTHS)):
        write_table(folder / f"data/chunk-000/episode_{i:06d}.parquet", frames_of(i))
        for camera in (CAMERA, WRIST):
            write_video(folder / f"videos/chunk-000/{camera}/episode_{i:06d}.mp4", pictures(i, camera))
    return folder


@pytest.fixture
def v3(tmp_path: Path) -> Path:
    """The top camera's episodes in one file, the wrist's in two, the second holding the last episode."""
    folder = tmp_path / "v3"
    write_json(folder / "meta" / "info.json", info(
        "v3.0", data_path="data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        video_path="videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    ))  # fmt: skip
    write_table(folder / "data/chunk-000/file-000.parquet", pa.concat_tables(map(frames_of, range(3))))
    starts = {CAMERA: (0.0, 0.8, 2.0), WRIST: (0.0, 0.8, 0.0)}
    rows = [
        {"episode_index": i, "tasks": TASKS[i], "length": n, "data/chunk_index": 0, "data/file_index": 0,
         "stats/action/max": [1.0],
         **{f"videos/{c}/{k}": v for c in starts for k, v in (
             ("chunk_index", 0), ("file_index", int(c == WRIST and i == 2)), ("from_timestamp", starts[c][i]),
             ("to_timestamp", starts[c][i] + n / FPS))}}
        for i, n in enumerate(LENGTHS)
    ]  # fmt: skip
    write_table(folder / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(rows))
    for camera, files in ((CAMERA, [(0, 1, 2)]), (WRIST, [(0, 1), (2,)])):
        for number, episodes in enumerate(files):
            joined = np.concatenate([pictures(i, camera) for i in episodes])
            write_video(folder / f"videos/{camera}/chunk-000/file-{number:03d}.mp4", joined)
    return folder


@pytest.fixture(params=["v2", "v3"])
def dataset(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def test_an_episode_is_a_row_with_its_numbers_and_clips(db: deeplake.Database, dataset: Path) -> None:
    report = db.ingest("robot", dataset)
    assert (report.added, report.skipped, report.unused) == (3, (), {})
    assert db.ingest("robot", dataset).present == 3
    rows = db.execute("SELECT * FROM robot ORDER BY episode_index")
    assert [row.episode_index for row in rows] == [0, 1, 2] and [row.length for row in rows] == list(LENGTHS)
    assert [row.task for row in rows] == ["pick up the cube", "pick up the cube; drop it", "drop it"]
    for i, row in enumerate(rows):
        values = dict(zip(rows.names, row, strict=True))
        np.testing.assert_array_equal(values["observation.state"].array(), states(i))
        np.testing.assert_array_equal(values["action"].array(), states(i) * 2)
        assert values["next.done"].array().tolist() == [False] * (LENGTHS[i] - 1) + [True]
        assert values["timestamp"].array().shape == (LENGTHS[i],) and values["fps"] == FPS
        for camera in (CAMERA, WRIST):
            clip = deeplake.Video(start=values[f"{camera}.start"], end=values[f"{camera}.end"], layout="THWC")
            found, own = values[camera].array(clip).astype(int), pictures(i, camera).astype(int)
            assert found.shape == own.shape
            apart = np.abs(found[:, None] - own[None]).mean(axis=(2, 3, 4))
            assert apart.argmin(axis=1).tolist() == list(range(LENGTHS[i])) and apart.diagonal().max() < 8


def test_episodes_of_one_file_share_its_bytes(db: deeplake.Database, v3: Path) -> None:
    db.ingest("robot", v3)
    rows = db.execute(f'SELECT "{CAMERA}" AS top, "{WRIST}" AS wrist FROM robot ORDER BY episode_index')
    assert len({row.top for row in rows}) == 1 and [rows[0].wrist == row.wrist for row in rows] == [True, True, False]
    assert db.execute("SELECT count(*) FROM robot").scalar() == 3 and db.verify().problems == ()


def test_episodes_stream_as_clips(db: deeplake.Database, v3: Path) -> None:
    db.ingest("robot", v3)
    clip = deeplake.Video(num_frames=4, start="first", end="last", size=32)
    stream = db.stream(
        f'SELECT episode_index, "{CAMERA}" AS video, "{CAMERA}.start" AS first, "{CAMERA}.end" AS last FROM robot',
        batch_size=3, transforms={"video": clip},
    )  # fmt: skip
    batch = next(iter(stream))
    assert isinstance(batch["video"], torch.Tensor) and batch["video"].numel() == 3 * 4 * 3 * 32 * 32
    assert sorted(batch["episode_index"].tolist()) == [0, 1, 2]


def test_a_dataset_that_grows_adds_its_new_episodes(db: deeplake.Database, v2: Path) -> None:
    listed = v2 / "meta" / "episodes.jsonl"
    whole = listed.read_text()
    listed.write_text("".join(whole.splitlines(keepends=True)[:2]))
    assert db.ingest("robot", v2).added == 2
    listed.write_text(whole)
    report = db.ingest("robot", v2)
    assert (report.added, report.present) == (1, 2)


def test_chosen_columns_bring_nothing_else(db: deeplake.Database, v3: Path) -> None:
    db.ingest("robot", v3, columns={"n": "episode_index", "state": "observation.state"})
    rows = db.execute("SELECT n, state FROM robot ORDER BY n")
    assert [row.state.array().shape for row in rows] == [(n, 3) for n in LENGTHS]
    with pytest.raises(InputError, match="leaves episode_index out"):
        db.ingest("other", v3, columns={"video": CAMERA})


@pytest.mark.parametrize("spoiled", ["video lost", "video damaged", "frames lost", "table lost", "table damaged"])
def test_an_episode_that_cannot_be_taken_is_told(db: deeplake.Database, v2: Path, spoiled: str) -> None:
    video = v2 / f"videos/chunk-000/{WRIST}/episode_000001.mp4"
    if spoiled == "video lost":
        video.unlink()
    elif spoiled == "video damaged":
        video.write_bytes(video.read_bytes()[:200])
    elif spoiled == "frames lost":
        write_table(v2 / "data/chunk-000/episode_000001.parquet", frames_of(1).slice(0, 7))
    elif spoiled == "table lost":
        (v2 / "data/chunk-000/episode_000001.parquet").unlink()
    else:
        (v2 / "data/chunk-000/episode_000001.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises((InputError, NotFoundError, CorruptionError), match="episode"):
        db.ingest("robot", v2)
    report = db.ingest("robot", v2, on_error="skip")
    assert report.added == 2 and [item.member for item in report.skipped] == ["episode 1"]
    assert [row[0] for row in db.execute("SELECT episode_index FROM robot ORDER BY 1")] == [0, 2]


def change(folder: Path, **changes: object) -> None:
    path = folder / "meta" / "info.json"
    write_json(path, {**json.loads(path.read_text()), **changes})


@pytest.mark.sqlite_only("nothing is written")
@pytest.mark.parametrize(
    "changes",
    [{"data_path": "../{episode_index:06d}.parquet"}, {"data_path": "/etc/{episode_index:06d}"}, {"fps": 0},
     {"data_path": "{episode_index.__class__}"}, {"data_path": "{episode_index:0999999999d}"}, {"features": [1]},
     {"video_path": None}, {"chunks_size": 0}, {"fps": 10**400}],
)  # fmt: skip
def test_metadata_that_leads_elsewhere_is_refused(v2: Path, changes: dict[str, object]) -> None:
    change(v2, **changes)
    with pytest.raises(CorruptionError, match="not what LeRobot writes"):
        infer(v2)


@pytest.mark.sqlite_only("nothing is written")
@pytest.mark.parametrize("line", ['{"episode_index": 1e999, "length": 8}', "[" * 100_000,
                                  '{"episode_index": 0, "length": 1' + "0" * 400 + "}"])  # fmt: skip
def test_episodes_beyond_all_numbers_are_refused(v2: Path, line: str) -> None:
    (v2 / "meta" / "episodes.jsonl").write_text(f"{line}\n")
    with pytest.raises(CorruptionError, match="not what LeRobot writes"):
        read_dataset(str(v2), "v2")


SPOILED: dict[str, tuple[str, Any]] = {
    "one has none and the next two": ("action", [None, [1.0] * 6] + [[1.0] * 3] * 10),
    "one has less and the next more": ("action", [[1.0] * 2, [1.0] * 4] + [[1.0] * 3] * 10),
    "words": ("action", ["1"] * 12),
    "records": ("action", [{"a": 1}] * 12),
    "no truth": ("next.done", [2] * 12),
    "a fraction": ("task_index", [0.5] * 12),
    "numbers as words": ("episode_index", ["1"] * 12),
}


@pytest.mark.sqlite_only("nothing of the catalog's")
@pytest.mark.parametrize("spoiled", SPOILED)
def test_frames_that_are_no_such_numbers_are_told(db: deeplake.Database, v2: Path, spoiled: str) -> None:
    name, values = SPOILED[spoiled]
    table = frames_of(1)
    table = table.set_column(table.column_names.index(name), name, pa.array(values))
    write_table(v2 / "data/chunk-000/episode_000001.parquet", table)
    report = db.ingest("robot", v2, on_error="skip")
    assert report.added == 2 and [item.member for item in report.skipped] == ["episode 1"]


@pytest.mark.sqlite_only("nothing is written")
def test_versions_that_are_not_read_and_folders_that_are_none(v2: Path, tmp_path: Path) -> None:
    change(v2, codebase_version="v1.6")
    with pytest.raises(InputError, match=r"version 'v1\.6'"):
        infer(v2)
    other = tmp_path / "other"
    write_json(other / "meta" / "info.json", {"title": "holidays"})
    write_video(other / "a.mp4", moving_frames(3))
    assert '"video" VIDEO' in str(infer(other))
