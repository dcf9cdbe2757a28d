"""A tar's samples by the compiled scan and by the walk in Python: the same rows, the same index, the same refusals."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deeplake_loader import kernels
from deeplake_loader.ingest.inference import Choice, Proposal
from deeplake_loader.ingest.scanning import Scan, scan
from deeplake_loader.types import Column, ColumnType

pytestmark = pytest.mark.skipif(kernels.backend()["scan_tar"] == "python", reason="the compiled kernels were not built")

FIELDS = {
    "key": ("", "TEXT"), "jpg": ("jpg", "IMAGE"), "seg": ("seg.png", "IMAGE"), "bin": ("bin", "BLOB"),
    "txt": ("txt", "TEXT"), "cls": ("cls", "BIGINT"), "caption": ("json.caption", "TEXT"), "v": ("npy", "VECTOR(4)"),
}  # fmt: skip
PROPOSAL = Proposal("t", tuple(Choice(Column(n, ColumnType.parse(k)), f) for n, (f, k) in FIELDS.items()), "id")


def picture(form: str, shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8 + shade, 9), (shade, 0, 0)).save(file, form)
    return file.getvalue()


def vector(values: list[float]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(values, np.float32))
    return file.getvalue()


CONTENTS = {
    "jpg": [*(picture("JPEG", i) for i in range(3)), picture("PNG", 4), picture("WEBP", 5), b"no picture", b"",
            picture("JPEG", 1)[:-2]],
    "seg.png": [picture("PNG", 1), picture("PNG", 2)[:-9]],
    "bin": [b"", b"abc", bytes(70_000)],
    "txt": [b"a caption", "Grüße\n".encode(), b"\xff\xfe", b"x" * 70_000, b""],
    "cls": [b"7", b" 8\n", b"cat"],
    "json": [b'{"caption": "hi"}', b'{"other": 1}', b"{", b"[]"],
    "npy": [vector([1, 2, 3, 4]), b"no array"],
    "pyd": [b"pickle"], "PNG": [picture("PNG", 3)],
}  # fmt: skip
NAMES = ["a", "b", "c/d", "c/é", "x" * 120, "odd key"]
member = st.sampled_from(sorted(CONTENTS)).flatmap(
    lambda kind: st.tuples(st.sampled_from(NAMES), st.just(kind), st.sampled_from(CONTENTS[kind]))
)


def archive(files: list[tuple[str, bytes]], form: int, kinds: Callable[[int], bytes] = lambda _: b"0") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for i, (name, data) in enumerate(files):
            info = tarfile.TarInfo(name)
            info.size, info.type, info.mtime = len(data), kinds(i), 1.5  # type: ignore[assignment]
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def both(data: bytes) -> tuple[Scan, Scan]:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        read = lambda offset, length: data[offset : offset + length]  # noqa: E731
        return scan(read, len(data), PROPOSAL, "a.tar", fd=file.fileno()), scan(read, len(data), PROPOSAL, "a.tar")


def shown(found: Scan) -> object:
    """All of it, blobs by where they lie instead of by number, which has gaps where a sample was left out."""
    at = {row[0]: row[1:] for row in found.index.rows()}
    blobs = [i for i, name in enumerate(found.names) if name in ("jpg", "seg", "bin")]
    columns = [[at.get(v) for v in c] if i in blobs else c for i, c in enumerate(found.columns)]
    values = json.dumps(columns, default=lambda v: v.hex() if isinstance(v, bytes) else v.tolist())
    return found.keys, values, found.problems, found.fatal, found.unused, [row[1:] for row in found.index.rows()]


@settings(max_examples=150, deadline=None)
@given(st.lists(member, max_size=14), st.sampled_from((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)))
def test_samples_are_the_same_by_the_compiled_scan_and_by_the_walk(
    files: list[tuple[str, str, bytes]], form: int
) -> None:
    fast, slow = both(archive([(f"{key}.{kind}", data) for key, kind, data in files], form))
    assert shown(fast) == shown(slow)
    offsets = [row[4] for row in fast.index.rows()]
    assert offsets == sorted(offsets)  # blobs are numbered as they lie, so that rows in order read forwards


@settings(max_examples=60, deadline=None)
@given(st.lists(member, min_size=2, max_size=14), st.data())
def test_they_are_the_same_of_odd_and_damaged_archives(
    files: list[tuple[str, str, bytes]], chosen: st.DataObject
) -> None:
    kinds = chosen.draw(st.lists(st.sampled_from((b"0", b"0", b"\0", b"7", b"2", b"5")), min_size=14, max_size=14))
    data = bytearray(archive([(f"{k}.{e}", d) for k, e, d in files], tarfile.PAX_FORMAT, lambda i: kinds[i]))
    for at in chosen.draw(st.lists(st.integers(0, len(data) - 1), max_size=2)):
        data[at] ^= chosen.draw(st.integers(1, 255))
    cut = chosen.draw(st.none() | st.integers(0, len(data)))
    fast, slow = both(bytes(data[:cut]))
    assert (fast.fatal, fast.problems) == (slow.fatal, slow.problems)
    if fast.fatal is None:
        assert shown(fast) == shown(slow)


def test_names_without_extension_between_all_samples_are_listed_in_order() -> None:
    files = [(name, b"x") for i in range(300) for name in (f"{i}.txt", f"._{i}.txt", f"d/README{i}")]
    fast, slow = both(archive(files, tarfile.USTAR_FORMAT))
    assert shown(fast) == shown(slow) and len(fast.problems) == 600 and len(fast.keys) == 300


def test_a_second_value_is_told_by_the_member_as_it_is_named() -> None:
    fast, slow = both(archive([("a.jpg", picture("JPEG", 1)), ("a.JPG", picture("JPEG", 2))], tarfile.USTAR_FORMAT))
    assert shown(fast) == shown(slow) and fast.keys == [] and not fast.index
    assert fast.problems == [("a.JPG", "the sample 'a' has a second value for the column 'jpg'")]


def test_the_second_of_two_values_is_the_later_one_whichever_way_they_are_read() -> None:
    files = [("a.jpg", picture("WEBP", 5)), ("a.jpg", b"no picture"), ("a.jpg", picture("JPEG", 1))]
    fast, slow = both(archive(files, tarfile.USTAR_FORMAT))
    assert shown(fast) == shown(slow)
    assert [reason.startswith("the sample 'a' has a second value") for _, reason in fast.problems] == [False, True]
