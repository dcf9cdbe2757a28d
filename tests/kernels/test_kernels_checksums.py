from __future__ import annotations

import mmap
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_backends import NAMES, using

from deeplake_loader import kernels
from deeplake_loader.errors import InputError, TypeMismatchError
from deeplake_loader.kernels import reference


@pytest.fixture(params=NAMES, scope="module", autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with using(request.param):
        yield request.param


DATA = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8).tobytes()


def test_the_published_check_values_come_out():
    assert kernels.crc32c(b"") == 0
    assert kernels.crc32c(b"123456789") == 0xE3069283
    assert kernels.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4
    assert kernels.crc32c(b"\xff" * 32) == 0x62A8AB43


def test_every_length_around_the_interleaved_blocks_agrees_with_google():
    lengths = {
        *range(70),
        *(n + d for n in (256, 768, 1024, 1280, 1536, 2048, 6144, 6912, 12288, 65536) for d in (-9, -1, 0, 1, 8, 100)),
    }
    for n in lengths:
        for start in (0, 1, 5):
            piece = DATA[start : start + n]
            assert kernels.crc32c(piece) == google_crc32c.value(piece), (n, start)


@given(st.binary(max_size=400), st.integers(0, 400), st.integers(0, 2**32 - 1))
def test_a_checksum_continues_over_any_cut(data: bytes, cut: int, value: int):
    assert kernels.crc32c(data[cut:], kernels.crc32c(data[:cut])) == reference.crc32c(data)
    assert kernels.crc32c(data, value) == reference.crc32c(data, value)


def test_any_contiguous_buffer_will_do(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(DATA)
    expected = google_crc32c.value(DATA)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        given_ = [DATA, bytearray(DATA), memoryview(DATA), array("B", DATA), np.frombuffer(DATA, "<u4"), mapped]
        assert {kernels.crc32c(data) for data in given_} == {expected}
    # the map closed: no call keeps a hold on what it was given


def test_blocks_are_the_checksums_of_the_pieces_whatever_the_threads():
    for block in (1, 1000, 4096, len(DATA), len(DATA) + 1, 2**63 - 1, 2**64 + 5):
        data = DATA[:3000] if block == 1 else DATA
        pieces = [data[i : i + block] for i in range(0, len(data), block)]
        expected = struct.pack(f"<{len(pieces)}I", *map(google_crc32c.value, pieces))
        assert kernels.crc32c_blocks(data, block) == kernels.crc32c_blocks(data, block, threads=3) == expected
    assert kernels.crc32c_blocks(b"") == b""


def test_wrong_arguments_are_refused():
    with pytest.raises(TypeMismatchError, match="data is str"):
        kernels.crc32c("text")  # type: ignore[arg-type]
    with pytest.raises(TypeMismatchError, match="data"):
        kernels.crc32c(np.arange(10)[::2])
    with pytest.raises(InputError, match="value is -1"):
        kernels.crc32c(b"", -1)
    with pytest.raises(InputError, match="block is 0"):
        kernels.crc32c_blocks(b"abc", 0)
