"""Every sample media file, good, tricky and corrupt: refused at insert, decoded right, or a typed error."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageOps

from deeplake_loader.codecs import encode
from deeplake_loader.decode import cpu
from deeplake_loader.decode.transforms import Image, Video
from deeplake_loader.errors import DecodeError, MediaError
from deeplake_loader.types import ColumnType

DATA = Path(os.environ.get("DEEPLAKE_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
pytestmark = [
    pytest.mark.skipif(not DATA.is_dir(), reason="no sample data (set DEEPLAKE_TEST_DATA)"),
    pytest.mark.filterwarnings("ignore"),
]
EXPECTED = Path(__file__).parent / "expected" / "videos.tsv"
IMAGES = sorted((DATA / "images").glob("*/*")) if DATA.is_dir() else []
CLIPS = sorted((DATA / "videos").glob("*/*")) if DATA.is_dir() else []
SOUND = [path for path in CLIPS if path.parent.name == "good"]


def outcome(path: Path, kind: str) -> str:
    """refused | undecodable | decoded; anything else fails the test."""
    try:
        item = encode(ColumnType(kind), path, where=path.name)
    except MediaError:
        return "refused"
    assert item.data == path.read_bytes()
    transform = Video(num_frames=4, size=(64, 64)) if kind == "VIDEO" else Image()
    try:
        out = cpu.decode(item.data, item.info, transform, key=path.name)
    except DecodeError as error:
        assert path.name in str(error)
        return "undecodable"
    assert out.dtype == np.uint8 and cpu.output(item.info, transform) == ("uint8", out.shape)
    return "decoded"


def test_every_image_file_is_refused_or_decoded_or_a_typed_error():
    found = Counter((path.parent.name, outcome(path, "IMAGE")) for path in IMAGES)
    assert found["photos", "decoded"] == 290 and found["generated", "decoded"] == 6
    assert found["tricky", "decoded"] >= 78 and found["corrupt", "refused"] >= 52


def test_images_that_pillow_reads_as_rgb_are_equal_to_pillows_bit_for_bit():
    compared = 0
    for path in IMAGES:
        if outcome(path, "IMAGE") != "decoded":
            continue
        with Pillow.open(path) as image:
            if image.mode.startswith(("I", "F", "LAB")):
                continue
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        item = encode(ColumnType("IMAGE"), path, where="x")
        assert np.array_equal(cpu.decode(item.data, item.info, Image(layout="HWC")), expected), path.name
        compared += 1
    assert compared > 360


def strict_outcome(path: Path) -> str:
    """refused by default | refused by validate="decode" | kept."""
    for validate in ("structure", "decode"):
        try:
            encode(ColumnType("VIDEO"), path, validate=validate, where=path.name)
        except MediaError:
            return f"refused by {validate}"
    return "kept"


def test_every_clip_is_refused_or_decoded_or_a_typed_error_as_the_table_says():
    lines = ["file\tdefault\tstrictest"]
    for path in CLIPS:
        large = path.stat().st_size > 2_000_000  # 4K: minutes for no other code path
        lines.append(
            f"{path.parent.name}/{path.name}\t{outcome(path, 'VIDEO')}\t{'' if large else strict_outcome(path)}"
        )
    assert lines == EXPECTED.read_text().splitlines()
    found = Counter((line.split("/")[0], line.split("\t")[1]) for line in lines[1:])
    assert found["good", "decoded"] == len(SOUND) and found["corrupt", "refused"] >= 10


@pytest.mark.parametrize("path", SOUND, ids=lambda path: path.name)
def test_frames_found_by_seeking_are_those_found_in_order(path):
    if path.stat().st_size > 2_000_000:
        pytest.skip("4K: minutes of decoding for no other code path")
    item = encode(ColumnType("VIDEO"), path, where="x")
    count = item.info.num_frames
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        run = range(count // 2, count // 2 + 6)  # a wrong order shows among neighbours alone
        wanted = sorted({0, count // 3, *run, count - 2, max(0, count - 2 - count % 7)} & set(range(count)))
        expected, decoded = {}, 0
        for number, frame in enumerate(container.decode(stream)):
            decoded += 1
            if number in wanted:
                expected[number] = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
    assert decoded == count
    for numbers in (tuple(wanted), tuple(wanted[-1:])):
        out = cpu.decode(item.data, item.info, Video(frame_indices=numbers, layout="THWC"))
        for number, pixels in zip(numbers, out, strict=True):
            assert np.array_equal(pixels, expected[number]), number


@pytest.mark.parametrize("path", SOUND[::6], ids=lambda path: path.name)
def test_clips_cut_short_are_refused_or_give_the_frames_they_count(path):
    data = path.read_bytes()
    for share in (0.3, 0.7, 0.97):
        cut = data[: int(len(data) * share)]
        try:
            item = encode(ColumnType("VIDEO"), cut, where="x")
            out = cpu.decode(item.data, item.info, Video(num_frames=8, size=(32, 32)))
        except (MediaError, DecodeError):
            continue
        assert len(out) == 8
