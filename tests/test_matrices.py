"""Mapped vector files: every way of asking for rows verifies the blocks that hold them, once per process and file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplake_loader import kernels, matrices
from deeplake_loader.errors import CorruptionError
from deeplake_loader.matrices import BLOCK, Layout, Sealed

LAYOUTS = [Layout(7, "float32"), Layout(100_003, "float32"), Layout(300_001, "float32")]  # below a block, and above
ROWS = {7: 120_000, 100_003: 12, 300_001: 5}


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda layout: str(layout.dimension))
def written(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Layout, bytes]]:
    layout = request.param
    count = ROWS[layout.dimension]
    rows = np.arange(count * layout.dimension, dtype=np.float32)
    data = layout.header(count) + rows.tobytes()
    path = tmp_path_factory.mktemp("matrices") / "rows.npy"
    path.write_bytes(data)
    yield path, layout, kernels.crc32c_blocks(data, BLOCK)


def opened(written: tuple[Path, Layout, bytes]) -> Sealed:
    path, layout, checks = written
    return Sealed(str(path), path.name, layout, ROWS[layout.dimension], checks)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "_known", {})


def age(path: Path) -> None:
    """Waits until the file's times have come to rest."""
    while time.time_ns() - os.stat(path).st_ctime_ns < matrices._SETTLED_NS:
        time.sleep(0.01)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_rows_in_any_order_verify_the_blocks_that_ascending_ones_do(
    written: tuple[Path, Layout, bytes], data: st.DataObject
) -> None:
    last = ROWS[written[1].dimension] - 1
    rounds = data.draw(st.lists(st.lists(st.integers(0, last), min_size=1, max_size=20), min_size=1, max_size=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrices, "_SETTLED_NS", 1 << 62)  # no file is settled: each map keeps flags of its own
        by_array, by_list = opened(written), opened(written)
        for rows in rounds:
            by_array.verify_array(np.array(rows, np.int64))
            by_list.verify(sorted(rows))
            assert by_array._verified == by_list._verified and any(by_list._verified)
            assert by_array._unverified == by_list._verified.count(0)


def test_damage_is_found_by_the_rows_of_its_block_alone(
    written: tuple[Path, Layout, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, layout, checks = written
    stride, data = layout.stride, bytearray(path.read_bytes())
    data[128 + 2 * stride] ^= 1  # the first byte of row 2
    (tmp_path / path.name).write_bytes(data)
    damaged, last = (128 + 2 * stride) // BLOCK, ROWS[layout.dimension] - 1
    sealed = opened((tmp_path / path.name, layout, checks))
    assert (128 + last * stride) // BLOCK > damaged
    sealed.verify_array(np.array([last, last], np.int64))
    with pytest.raises(CorruptionError, match=f"block {damaged} "):
        sealed.verify_array(np.array([last, 2], np.int64))


def test_what_was_verified_is_not_verified_again_by_a_later_map(
    written: tuple[Path, Layout, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(monkeypatch)
    age(written[0])
    first = opened(written)
    first.verify(range(first.count))
    monkeypatch.setattr(kernels, "crc32c_blocks", lambda *_: pytest.fail("a checksum was computed again"))
    second = opened(written)
    second.verify_array(np.arange(second.count))
    second.verify(range(second.count))
    with pytest.raises(pytest.fail.Exception):
        opened((*written[:2], bytes(len(written[2])))).verify([0])  # other checksums: nothing is known of them


def test_a_changed_or_replaced_file_is_verified_again(
    written: tuple[Path, Layout, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(monkeypatch)
    path, layout, checks = tmp_path / "rows.npy", *written[1:]
    for change in ("in place", "by another file"):
        path.write_bytes(written[0].read_bytes())
        age(path)
        opened((path, layout, checks)).verify(range(ROWS[layout.dimension]))
        target = path if change == "in place" else tmp_path / "other.npy"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        target.write_bytes(data)
        os.replace(target, path)
        age(path)
        with pytest.raises(CorruptionError, match="crc32c"):
            opened((path, layout, checks)).verify([ROWS[layout.dimension] - 1])


def test_a_file_just_written_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch)
    layout, rows = Layout(4, "float32"), np.ones((9, 4), np.float32)
    data = layout.header(9) + rows.tobytes()
    path = tmp_path / "rows.npy"
    path.write_bytes(data)
    monkeypatch.setattr(time, "time_ns", lambda: os.stat(path).st_ctime_ns + 1)
    Sealed(str(path), "rows", layout, 9, kernels.crc32c_blocks(data, BLOCK)).verify([0])
    assert not matrices._known


def test_what_is_remembered_is_bounded(
    written: tuple[Path, Layout, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(monkeypatch)
    monkeypatch.setattr(matrices, "_KNOWN", 3)
    monkeypatch.setattr(matrices, "_SETTLED_NS", 0)
    layout = Layout(4, "float32")
    for i in range(10):
        data = layout.header(1) + np.full(4, i, np.float32).tobytes()
        (tmp_path / f"{i}.npy").write_bytes(data)
        Sealed(str(tmp_path / f"{i}.npy"), "rows", layout, 1, kernels.crc32c_blocks(data, BLOCK)).verify([0])
        assert len(matrices._known) <= 3
