"""Shared by the tests: hypothesis profiles, sample data that may be absent, small media made on the spot."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

import deeplake_loader as deeplake

settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile("long", deadline=None, max_examples=1_000)
settings.load_profile("default")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[deeplake.Database]:
    """An empty store."""
    with deeplake.connect(tmp_path / "store") as database:
        yield database


@pytest.fixture(params=["main", "branch", "branch of a branch"])
def any_branch(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[deeplake.Database]:
    """An empty store whose handle is on main, on a branch, on a branch of a branch."""
    with deeplake.connect(tmp_path / "store") as database:
        for name in ([], ["a"], ["a", "a/b"])[("main", "branch", "branch of a branch").index(request.param)]:
            database.branch(name)
        yield database


@pytest.fixture
def sample_data() -> Path:
    """The folder of real media, or a skip where it is not there."""
    folder = Path(os.environ.get("DEEPLAKE_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no sample data in {folder}; set DEEPLAKE_TEST_DATA")
    return folder


def moving_frames(count: int = 12, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """(count, height, width, 3) uint8 frames of a block moving over a gradient: compresses, and no two are equal."""
    y, x = np.mgrid[:height, :width]
    base = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 40 + seed % 100)], -1).astype(np.uint8)
    frames = np.repeat(base[None], count, 0)
    for t in range(count):
        frames[t, 8:24, 4 + 2 * t : 20 + 2 * t] = (250, 250 - 10 * (seed % 20), 30)
    return frames
