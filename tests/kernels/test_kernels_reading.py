from __future__ import annotations

import errno
import os
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from kernel_backends import NAMES, using

from deeplake_loader import kernels
from deeplake_loader.errors import InputError, TypeMismatchError


@pytest.fixture(params=NAMES, scope="module", autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with using(request.param):
        yield request.param


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[list[int], list[bytes]]]:
    """Three open files and their contents."""
    random = np.random.default_rng(0)
    held = [random.integers(0, 256, size, dtype=np.uint8).tobytes() for size in (1000, 700_000, 0)]
    fds = []
    for i, data in enumerate(held):
        (tmp_path / str(i)).write_bytes(data)
        fds.append(os.open(tmp_path / str(i), os.O_RDONLY))
    yield fds, held
    for fd in fds:
        os.close(fd)


def read(fds: list[int], items: list[tuple[int, int, int, int, int]], out: bytearray, threads: int = 2) -> list[int]:
    """Items are (file, offset, length, check, place)."""
    columns = [array("q", column) for column in zip(*items, strict=True)] or [array("q")] * 5
    chosen = array("i", [fds[file] for file in columns[0]])
    _, offsets, lengths, checks, places = columns
    return kernels.read_batch(chosen, offsets, lengths, checks, out, places, threads).tolist()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_items_of_several_files_land_in_their_places_verified(files: tuple[list[int], list[bytes]], threads: int):
    fds, held = files
    random = np.random.default_rng(1)
    items, expected, place = [], bytearray(2_000_000), 0
    for _ in range(60):
        file = int(random.integers(2))
        start = int(random.integers(len(held[file])))
        length = int(random.integers(min(len(held[file]) - start, 30_000) + 1))
        piece = held[file][start : start + length]
        items.append((file, start, length, google_crc32c.value(piece), place))
        expected[place : place + length] = piece
        place += length + 3
    items.append((1, 0, 700_000, google_crc32c.value(held[1]), place))  # longer than one read
    expected[place : place + 700_000] = held[1]
    out = bytearray(2_000_000)
    assert read(fds, items, out, threads) == [0] * 61
    assert out == expected


def test_each_item_has_its_own_status(files: tuple[list[int], list[bytes]]):
    fds, held = files
    closed = os.open(os.devnull, os.O_RDONLY)
    os.close(closed)
    right, out = google_crc32c.value(held[0][:10]), bytearray(100)
    items = [
        (0, 0, 10, right, 0),
        (0, 0, 10, right ^ 1, 10),
        (0, 0, 10, -1, 20),
        (0, 995, 10, -1, 30),
        (3, 0, 10, -1, 40),
    ]
    assert read([*fds, closed], [*items, (2, 0, 0, 0, 50)], out) == [0, 2, 0, 1, -errno.EBADF, 0]
    assert out[:10] == out[20:30] == held[0][:10]


def test_an_item_that_does_not_fit_is_refused_before_anything_is_read(files: tuple[list[int], list[bytes]]):
    fds, _ = files
    good = (0, 0, 10, -1, 0)
    big = 2**63 - 1
    for bad in [
        (0, 0, 10, -1, 91),
        (0, 0, -1, -1, 0),
        (0, -1, 10, -1, 0),
        (0, 0, 10, -1, -1),
        (0, 0, big, -1, 5),
        (0, 0, 5, -1, big),
    ]:
        out = bytearray(100)
        with pytest.raises(InputError, match="item 1: "):
            read(fds, [good, bad], out)
        assert out == bytes(100)


def test_arguments_of_other_types_are_refused(files: tuple[list[int], list[bytes]]):
    one = array("q", [0])
    with pytest.raises(TypeMismatchError, match="out is bytes; expected a writable"):
        kernels.read_batch(array("i", [0]), one, one, one, bytes(10), one)
    with pytest.raises(TypeMismatchError, match="fds has"):
        kernels.read_batch(one, one, one, one, bytearray(10), one)
    with pytest.raises(TypeMismatchError, match="offsets has"):
        kernels.read_batch(array("i", [0]), array("i", [0]), one, one, bytearray(10), one)
    with pytest.raises(InputError, match="differ in length"):
        kernels.read_batch(array("i", [0]), one, array("q"), one, bytearray(10), one)
    assert read([], [], bytearray()) == []


def test_python_threads_run_during_a_call(backend: str):
    if backend == "python":
        pytest.skip("the fallback is Python")
    data, seen, ended = np.zeros(200 << 20, np.uint8), [0], threading.Event()

    def tick() -> None:
        while not ended.wait(0.0005):
            seen[0] += 1

    def ticks() -> int:
        """Those inside of one call of about 100 ms: one at most, were the interpreter held."""
        begin = seen[0]
        kernels.crc32c(data)
        return seen[0] - begin

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        with using("portable"):
            assert any(ticks() >= 3 for _ in range(100))  # on a busy machine the thread may sleep through some calls
    finally:
        ended.set()
        thread.join()
