"""The compiled scan of tars and pictures, against the walk in Python, tarfile and Pillow."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Iterator

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_backends import using
from PIL import Image

from deeplake_loader import kernels
from deeplake_loader.codecs import headers
from deeplake_loader.codecs.images import read_header
from deeplake_loader.codecs.info import BadMedia
from deeplake_loader.errors import InputError
from deeplake_loader.ingest.tar_walk import Member, walk

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
LEVELS = ("portable", "avx2", "avx512")


@pytest.fixture(params=LEVELS, scope="module", autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with using(request.param):
        yield request.param


def made(files: list[tuple[str, bytes]], form: int, mtime: float = 0) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def scanned(data: bytes, position: int = 0, threads: int = 2) -> kernels.Run:
    """One run, every extension's data kept; big enough for the tests' archives."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        run = kernels.scan_tar(file.fileno(), position, len(data), {"jpg": "sum", "txt": "keep"}, threads=threads)
    assert run is not None
    return run


def members(run: kernels.Run) -> list[tuple[str, int, int]]:
    found = table(run).tolist()
    assert [run.name(row[6]).rpartition("/")[2].partition(".")[0] for row in found if row[7] >= 0] == [
        run.keys[row[7]].rpartition("/")[2] for row in found if row[7] >= 0
    ]
    return [(run.name(row[6]), row[1], row[2]) for row in found]


def table(run: kernels.Run) -> np.ndarray:
    return np.frombuffer(run.table, np.int64).reshape(-1, 8)


plain = st.text(st.characters(codec="utf-8", exclude_characters="\0/."), min_size=1, max_size=140)
files = st.lists(
    st.tuples(st.builds("{}.{}".format, plain, st.sampled_from(("jpg", "TXT", "seg.png"))), st.binary(max_size=2_000)),
    max_size=10,
)


@settings(max_examples=60)
@given(files, st.sampled_from(FORMATS[1:]), st.sampled_from((0, 1700000000.25)), st.integers(1, 3))
def test_all_members_that_tarfile_writes_are_found_with_their_sums_and_data(
    files: list[tuple[str, bytes]], form: int, mtime: float, threads: int
) -> None:
    data = made(files, form, mtime)
    run = scanned(data, threads=threads)
    assert [name for name, _, _ in members(run)] == [name for name, _ in files]
    for (name, content), row in zip(files, table(run).tolist(), strict=True):
        code, offset, size, crc, facts, kept, _, key = row
        assert run.keys[key] == name[: -len(run.extensions[code]) - 1]
        assert run.extensions[code] == name.rpartition("/")[2].partition(".")[2].lower()
        assert data[offset : offset + size] == content and facts == -1
        assert crc == (google_crc32c.value(content) if run.extensions[code] == "jpg" else -1)
        assert (run.kept[kept : kept + size] == content) if run.extensions[code] == "txt" else kept == -1
    assert not run.more and data[run.stop : run.stop + 512] == bytes(512)


SAMPLE = [(f"{'d' * (60 * (i % 3))}/{i:03d}.{kind}", bytes([i, n]) * (100 + 300 * i))
          for i in range(5) for n, kind in enumerate(("jpg", "txt"))]  # fmt: skip
ARCHIVES = [made(SAMPLE, form, mtime) for form in FORMATS for mtime in ((0,) if form != FORMATS[2] else (0, 1.5))]


@settings(max_examples=400)
@given(st.sampled_from(range(len(ARCHIVES))), st.data())
def test_a_damaged_archive_is_never_read_otherwise_than_by_the_walk(which: int, chosen: st.DataObject) -> None:
    """Whatever the scan finds is what the walk finds, up to where the scan leaves the rest to it."""
    data = bytearray(ARCHIVES[which])
    for _ in range(chosen.draw(st.integers(1, 3))):
        at = chosen.draw(st.integers(0, len(data) // 512 - 1)) * 512 + chosen.draw(st.sampled_from(
            (0, 99, 100, 124, 125, 134, 135, 147, 148, 153, 154, 155, 156, 157, 257, 262, 345, 346, 499, 508)
        ) | st.integers(0, 511))  # fmt: skip
        data[at] = chosen.draw(st.integers(0, 255))
        if chosen.draw(st.booleans()):  # with a sum that is right, so that the change itself is looked at
            block = at // 512 * 512
            data[block + 148 : block + 156] = b" " * 8
            data[block + 148 : block + 156] = b"%06o\0 " % sum(data[block : block + 512])
    if chosen.draw(st.booleans()):
        del data[chosen.draw(st.integers(0, len(data))) :]
    run, whole = scanned(bytes(data)), bytes(data)
    found = list(walk(lambda o, n: whole[o : o + n], len(whole)))
    wanted = [(m.name, m.offset, m.size) for m in found if isinstance(m, Member)]
    assert members(run) == wanted[: len(members(run))]
    assert all(item.offset >= run.stop for item in found if not isinstance(item, Member))
    assert all(offset - 512 >= run.stop for _, offset, _ in wanted[len(members(run)) :])


def test_a_run_ends_where_its_rooms_are_full_and_the_next_goes_on_there() -> None:
    data = made([(f"{i}.txt", b"x" * 60_000) for i in range(200)], FORMATS[0])
    at, names = 0, []
    while True:
        run = scanned(data, at)
        names += [name for name, _, _ in members(run)]
        at = run.stop
        if not run.more:
            break
    assert names == [f"{i}.txt" for i in range(200)]


def test_long_members_are_left_to_the_caller() -> None:
    data = made(
        [("a.jpg", bytes((4 << 20) + 1)), ("b.txt", bytes((64 << 10) + 1)), ("c.jpg", bytes(4 << 20))], FORMATS[0]
    )
    found = table(scanned(data))
    assert found[:, 3].tolist() == [-1, -1, google_crc32c.value(bytes(4 << 20))] and (found[:, 5] == -1).all()


def test_bytes_that_cannot_be_read_are_left_to_the_caller() -> None:
    data = made([("a.jpg", bytes(9_000))], FORMATS[0])
    with tempfile.TemporaryFile() as file:
        file.write(data[:6_000])
        file.flush()
        run = kernels.scan_tar(file.fileno(), 0, len(data), {"jpg": "sum"})
    assert run is not None and run.keys == ["a"] and list(run.table[3:6]) == [-1, -1, -1]
    closed = os.dup(0)
    os.close(closed)
    gone = kernels.scan_tar(closed, 0, len(data), {"jpg": "sum"})
    assert gone is not None and not gone.table


def test_many_extensions_end_the_run_and_begin_the_next() -> None:
    data = made([(f"a.{i:x}x", b"") for i in range(300)], FORMATS[0])
    first = scanned(data)
    assert 100 < len(first.table) // 8 < 130 and len(set(first.extensions)) == len(first.extensions)
    assert members(scanned(data, first.stop))[0][0] == f"a.{len(first.table) // 8:x}x"


def test_actions_are_checked() -> None:
    with pytest.raises(InputError, match="at most"):
        kernels.scan_tar(0, 0, 0, {f"{i}": "sum" for i in range(65)})
    with pytest.raises(InputError, match="none empty"):
        kernels.scan_tar(0, 0, 0, {"": "sum"})


def test_without_a_library_nothing_is_found() -> None:
    with using("python"):
        assert kernels.scan_tar(0, 0, 0, {}) is None and kernels.image_facts(picture("RGB", "JPEG")) == -1


# -- pictures ----------------------------------------------------------------------------------------------------------


def picture(mode: str, form: str, size: tuple[int, int] = (37, 21), **options: object) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(file, form, **options)  # type: ignore[arg-type]
    return file.getvalue()


def exif(value: int, *, big: bool = False) -> bytes:
    order = ">" if big else "<"
    head = (b"MM\0*" if big else b"II*\0") + struct.pack(order + "I", 8)
    return b"Exif\0\0" + head + struct.pack(order + "HHHIHHI", 1, 0x0112, 3, 1, value, 0, 0)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PNG = picture("RGB", "PNG")
PICTURES = [
    *(picture(mode, "JPEG") for mode in ("L", "RGB", "CMYK")),
    picture("RGB", "JPEG", progressive=True),
    *(picture("RGB", "JPEG", exif=exif(value, big=value % 2 == 0)) for value in (0, 1, 6, 8, 9)),
    *(picture(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    PNG[:33] + png_chunk(b"tEXt", b"parameters\0a cat") + png_chunk(b"pHYs", bytes(9)) + PNG[33:],
]  # fmt: skip


@pytest.mark.parametrize("data", PICTURES, ids=range(len(PICTURES)))
def test_usual_pictures_are_told_as_the_codecs_tell_them(data: bytes) -> None:
    facts = kernels.image_facts(data)
    extension = headers.sniff_image(data)
    assert facts >= 0 and extension is not None
    found, *header = kernels.unpack_facts(facts)
    assert (found, headers.Header(*header)) == (extension, read_header(data, extension))  # type: ignore[arg-type]


@settings(max_examples=600)
@given(st.sampled_from(PICTURES), st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=3), st.data())
def test_a_damaged_picture_is_told_as_the_codecs_tell_it_or_left_to_them(
    data: bytes, changes: list[tuple[int, int]], chosen: st.DataObject
) -> None:
    spoilt = bytearray(data)
    for at, value in changes:
        spoilt[at % len(spoilt)] = value
    cut = bytes(spoilt[: chosen.draw(st.integers(0, len(spoilt)))]) if chosen.draw(st.booleans()) else bytes(spoilt)
    facts = kernels.image_facts(cut)
    if facts < 0:
        return
    extension = headers.sniff_image(cut)
    assert extension is not None
    try:
        wanted = read_header(cut, extension)
    except BadMedia as error:
        raise AssertionError(f"taken, where the codecs say {error}") from error
    found, *header = kernels.unpack_facts(facts)
    assert (found, headers.Header(*header)) == (extension, wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("inserted", [
    png_chunk(b"tRNS", bytes(6)), png_chunk(b"iTXt", b"a\0\0\0\0\0b"), png_chunk(b"eXIf", exif(6)[6:]),
    png_chunk(b"tEXt", b"a\0" + bytes(1 << 20)), png_chunk(b"PLTE", bytes(3 * 300)),
])  # fmt: skip
def test_rare_pictures_are_left_to_the_codecs(inserted: bytes) -> None:
    assert kernels.image_facts(PNG[:33] + inserted + PNG[33:]) == -1
    assert kernels.image_facts(picture("RGB", "WEBP")) == -1 and kernels.image_facts(b"") == -1
