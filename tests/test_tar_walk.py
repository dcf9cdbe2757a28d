"""The walk through a tar, against tarfile: the same members, or a problem that says what is missing."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplake_loader.errors import CorruptionError
from deeplake_loader.ingest import tar_walk, unpacking
from deeplake_loader.ingest.tar_walk import BLOCK, Member, Problem, walk
from deeplake_loader.ingest.unpacking import unpack

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def made(files: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def walked(data: bytes, *, size_known: bool = True) -> tuple[list[tuple[str, bytes]], list[Problem]]:
    found = list(walk(lambda offset, length: data[offset : offset + length], len(data) if size_known else None))
    members = [item for item in found if isinstance(item, Member)]
    assert all(data[m.offset : m.offset + m.size] == m.data for m in members)
    return [(m.name, m.data) for m in members], [item for item in found if isinstance(item, Problem)]


def by_tarfile(data: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        return [(m.name, tar.extractfile(m).read()) for m in tar.getmembers() if m.isreg()]  # type: ignore[union-attr]


names = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=150)
contents = st.lists(st.tuples(names, st.binary(max_size=1_500)), max_size=12)


@given(contents, st.sampled_from((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)), st.booleans())
def test_every_archive_that_tarfile_writes_is_read_as_tarfile_reads_it(
    files: list[tuple[str, bytes]], form: int, size_known: bool
) -> None:
    data = made(files, form)
    assert walked(data, size_known=size_known) == (files, [])
    assert by_tarfile(data) == files


@given(contents, st.sampled_from(FORMATS[1:]))
def test_members_read_many_at_a_time_are_those_read_one_by_one(files: list[tuple[str, bytes]], form: int) -> None:
    data = made(files, form)
    fast = walked(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar_walk, "_FEW", 1 << 30)
        slow = walked(data)
        patch.setattr(tar_walk, "_FEW", 1)
        patch.setattr(tar_walk, "_STEP", 2_048)
        small_steps = walked(data)
    assert fast == slow == small_steps


FILES = [
    (f"{i:03d}.{kind}", bytes([i, n]) * (200 + 300 * i)) for i in range(6) for n, kind in enumerate(("jpg", "txt"))
]


@pytest.mark.parametrize("size_known", [True, False])
def test_a_cut_at_any_block_is_told(size_known: bool) -> None:
    data = made(FILES)
    end = len(data.rstrip(b"\0")) // BLOCK * BLOCK + BLOCK
    for cut in range(0, end, BLOCK):
        members, problems = walked(data[:cut], size_known=size_known)
        assert members == FILES[: len(members)] and problems and problems[-1].fatal


def test_a_cut_inside_a_block_is_told() -> None:
    data = made(FILES)
    for cut in range(7, 9_000, 333):
        assert walked(data[:cut])[1][-1].fatal


def test_a_block_of_zeros_over_any_header_is_told() -> None:
    data = made(FILES)
    headers = [m.offset - BLOCK for m in walk(lambda o, n: data[o : o + n], len(data)) if isinstance(m, Member)]
    for at in headers:
        damaged = data[:at] + bytes(BLOCK) + data[at + BLOCK :]
        members, problems = walked(damaged)
        assert members == FILES[: headers.index(at)]
        assert "behind the end-of-archive mark" in problems[-1].reason and problems[-1].fatal


@settings(max_examples=200)
@given(st.integers(0, len(FILES) - 1), st.integers(0, BLOCK - 1), st.integers(1, 255))
def test_a_changed_byte_of_a_header_never_loses_a_member_unsaid(number: int, byte: int, change: int) -> None:
    data = bytearray(made(FILES))
    at = [m.offset - BLOCK for m in walk(lambda o, n: bytes(data[o : o + n]), len(data)) if isinstance(m, Member)][
        number
    ]
    data[at + byte] ^= change
    members, problems = walked(bytes(data))
    assert members == FILES or (problems and problems[-1].fatal)


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(BLOCK)
    block[: len(name)], block[124:136], block[156:157], block[257:263] = name, size.ljust(12, b"\0"), kind, b"ustar\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = bytes(2 * BLOCK)


def test_a_size_in_base_256_is_read() -> None:
    data = header(b"a.txt", b"\x80" + (5).to_bytes(11, "big")) + b"hello" + bytes(507) + END
    assert walked(data) == ([("a.txt", b"hello")], [])


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\x80" + b"\x7f" * 11, b"00000000x10", b"-0000000010"])
def test_impossible_sizes_end_the_walk(size: bytes) -> None:
    members, problems = walked(header(b"a.txt", size) + bytes(512) + END)
    assert not members and problems[-1].fatal


def test_a_huge_size_allocates_nothing() -> None:
    members, problems = walked(header(b"a.txt", b"77777777777") + END)
    assert not members and "the archive is cut" in problems[0].reason


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (b"1", "hard link"), (b"2", "symbolic link"), (b"3", "device"), (b"6", "FIFO"), (b"S", "sparse"),
        (b"Q", "unknown kind"),
    ],
)  # fmt: skip
def test_what_is_no_regular_file_is_listed_and_the_rest_is_read(kind: bytes, word: str) -> None:
    data = header(b"odd", b"0", kind) + header(b"a.txt", b"2") + b"hi" + bytes(510) + END
    members, problems = walked(data)
    assert members == [("a.txt", b"hi")]
    assert [p.name for p in problems] == ["odd"] and word in problems[0].reason and not problems[0].fatal


def test_pax_headers_beyond_the_limits_end_the_walk() -> None:
    huge = header(b"x", b"%o" % (2 << 20), b"x") + bytes(2 << 20) + END
    assert "beyond the limit" in walked(huge)[1][-1].reason
    record = b"12 path=abc\n"
    chain = (header(b"x", b"%o" % len(record), b"x") + record + bytes(500)) * 40 + END
    assert "extended headers" in walked(chain)[1][-1].reason
    shared = b"12 path=abc\n"
    everyone = header(b"g", b"%o" % len(shared), b"g") + shared + bytes(500) + header(b"a.txt", b"0") + END
    assert "all members the same path" in walked(everyone)[1][-1].reason


@pytest.mark.parametrize(
    "record", [b"999 path=a\n", b"path=a\n", b"9 path=ab", b"13 path=a\0b\n\n", b"11 size=-5\n", b"12 size=\xd9\xa3x\n"]
)
def test_malformed_pax_records_end_the_walk(record: bytes) -> None:
    data = header(b"x", b"%o" % len(record), b"x") + record.ljust(512, b"\0") + header(b"a.txt", b"0") + END
    assert walked(data)[1][-1].fatal


def test_a_prefix_and_a_name_that_is_no_utf8_are_read() -> None:
    long = "d" * 90 + "/" + "n" * 90
    assert walked(made([(long, b"x")]))[0] == [(long, b"x")]
    assert walked(header(b"caf\xe9.txt", b"0") + END)[0] == [("café.txt", b"")]


def test_one_block_of_zeros_at_the_end_is_enough() -> None:
    assert walked(header(b"a.txt", b"0") + bytes(BLOCK)) == ([("a.txt", b"")], [])


def test_real_archives_are_read_as_tarfile_reads_them(sample_data: Path) -> None:
    compared = 0
    for path in sorted((sample_data / "shards").glob("*/*")):
        data = path.read_bytes()
        members, problems = walked(data) if path.suffix != ".tgz" else ([], [])
        if path.suffix == ".tgz" or problems or path.name == "tar-stream_gnu-incremental.tar":
            continue  # of which tarfile takes an access time for a folder's name
        assert members == by_tarfile(data), path.name
        compared += 1
    assert compared >= 30


def test_the_damaged_archives_whose_members_others_lose_are_refused(sample_data: Path) -> None:
    for path in sorted((sample_data / "shards" / "tar_corrupt").iterdir()):
        assert walked(path.read_bytes())[1][-1].fatal, path.name


# -- compressed archives -----------------------------------------------------------------------------------------------

PACKED: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("suffix", PACKED)
def test_compressed_archives_are_the_same_stream(suffix: str) -> None:
    data = made(FILES)
    packed = PACKED[suffix](data)
    with unpack(f"a.tar{suffix}", len(packed), lambda o, n: packed[o : o + n]) as read:
        assert [m.data for m in walk(read, None) if isinstance(m, Member)] == [d for _, d in FILES]
    with unpack(f"a.tar{suffix}", len(packed), lambda o, n: packed[o : o + n]) as read:
        assert (read(5, 700), read(2_000, 10)) == (data[5:705], data[2_000:2_010])


@pytest.mark.parametrize("suffix", PACKED)
def test_cut_compressed_data_is_told(suffix: str) -> None:
    packed = PACKED[suffix](made(FILES) + bytes(range(256)) * 40)[:-9]
    whole = unpack(f"a.tar{suffix}", len(packed), lambda o, n: packed[o : o + n])
    with whole as read, pytest.raises(CorruptionError, match="damaged or cut"):
        read(0, 1 << 20)


def test_zstandard_is_read() -> None:
    import pyarrow as pa

    packed = pa.compress(made(FILES), "zstd", asbytes=True)
    with unpack("a.tar.zst", len(packed), lambda o, n: packed[o : o + n]) as read:
        assert len([m for m in walk(read, None) if isinstance(m, Member)]) == len(FILES)


def test_what_swells_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "FREE_BYTES", 1 << 20)
    packed = gzip.compress(bytes(8 << 20))
    bomb = unpack("a.tar.gz", len(packed), lambda o, n: packed[o : o + n])
    with bomb as read, pytest.raises(CorruptionError, match="unpacks to more than"):
        read(0, 8 << 20)
