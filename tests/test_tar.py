"""Headers are byte for byte those of tarfile."""

from __future__ import annotations

import tarfile

from hypothesis import given
from hypothesis import strategies as st

from deeplake_loader.tar import BLOCK, END, Headers, padded, padding

NAMES = st.text(st.sampled_from("abcXYZ019-_.%"), min_size=1, max_size=160)


@given(name=NAMES, size=st.integers(0, 10**11), mtime=st.integers(0, 2**33 - 1))
def test_a_header_is_the_one_that_tarfile_writes(name: str, size: int, mtime: int) -> None:
    reference = tarfile.TarInfo(name)
    reference.size, reference.mtime = size, mtime
    short = len(name) <= 100 and size < 8 << 30
    expected = reference.tobuf(tarfile.USTAR_FORMAT if short else tarfile.PAX_FORMAT)
    header = Headers(mtime).header(name, size)
    assert len(header) % BLOCK == 0
    assert _without_devices(header) == _without_devices(expected)
    read = tarfile.TarInfo.frombuf(header[-BLOCK:], "utf-8", "strict")
    if short:
        assert (read.name, read.size, read.mtime, read.isreg()) == (name, size, mtime, True)


def _without_devices(header: bytes) -> bytes:
    """Without the device numbers (empty or zero both mean none) and the checksum over them."""
    last = header[-BLOCK:]
    return header[:-BLOCK] + last[:148] + last[156:329] + last[345:]


@given(st.lists(st.tuples(NAMES, st.integers(0, 10**11)), max_size=4), st.integers(0, 100))
def test_headers_made_together_are_those_made_one_by_one(members: list[tuple[str, int]], plain: int) -> None:
    members += [(f"{i}.json", 8**i % 10**9) for i in range(plain)]
    names, sizes = [name for name, _ in members], [size for _, size in members]
    headers = Headers(1_790_000_000)
    assert list(map(bytes, headers.many(names, sizes))) == [headers.header(*member) for member in members]


@given(size=st.integers(0, 10**7))
def test_padding_fills_whole_blocks(size: int) -> None:
    assert padded(size) % BLOCK == 0 and 0 <= padded(size) - size < BLOCK
    assert padding(size) == bytes(padded(size) - size)


def test_the_end_of_an_archive_is_two_empty_blocks() -> None:
    assert bytes(1024) == END
