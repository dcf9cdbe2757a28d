"""Every sample image: what becomes of it at insert and at decoding, held to a table; photographs beside Pillow."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageOps

from deeplake_loader.codecs import MediaInfo, encode
from deeplake_loader.codecs.images import Validate
from deeplake_loader.decode import cpu
from deeplake_loader.decode.transforms import Image
from deeplake_loader.errors import DecodeError, MediaError, TypeMismatchError
from deeplake_loader.types import ColumnType

DATA = Path(os.environ.get("DEEPLAKE_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
EXPECTED = Path(__file__).parent / "expected" / "images.tsv"
IMAGE = MediaInfo("image")
FOLDERS = ("photos", "tricky", "corrupt")
pytestmark = [
    pytest.mark.skipif(not (DATA / "images").is_dir(), reason="no sample images (set DEEPLAKE_TEST_DATA)"),
    pytest.mark.filterwarnings("ignore"),
]


def at_insert(path: Path, validate: Validate) -> str:
    """kept | refused"""
    try:
        item = encode(ColumnType("IMAGE"), path, where=path.name, validate=validate)
    except (MediaError, TypeMismatchError):
        return "refused"
    assert item.data == path.read_bytes()
    return "kept"


def at_decode(path: Path) -> str:
    """The shape, or "error": a DecodeError that names the item, as for bytes stored without any check."""
    data = path.read_bytes()
    try:
        out = cpu.decode(data, IMAGE, Image(layout="HWC"), key=path.name)
    except DecodeError as error:
        assert path.name in str(error) and error.key == path.name
        return "error"
    assert out.dtype == np.uint8 and out.shape[2] == 3
    return "x".join(map(str, out.shape[:2]))


def outcomes() -> list[str]:
    """One line per file: name, outcome at insert (structure, decode), at decode (the upright height x width)."""
    lines = []
    for folder in FOLDERS:
        for path in sorted((DATA / "images" / folder).iterdir()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = (at_insert(path, "structure"), at_insert(path, "decode"), at_decode(path))
            lines.append("\t".join((f"{folder}/{path.name}", *found)))
    return lines


def test_every_file_comes_to_the_end_that_the_table_says():
    found, expected = outcomes(), EXPECTED.read_text().splitlines()[1:]
    names = [line.split("\t")[0] for line in found]
    known = {line.split("\t")[0]: line for line in expected}
    if set(names) != set(known):
        pytest.skip("the sample images are not those of the table")
    assert [line for line in found if known[line.split("\t")[0]] != line] == []


def test_the_table_keeps_what_decodes_and_refuses_what_does_not():
    rows = [line.split("\t") for line in EXPECTED.read_text().splitlines()[1:]]
    assert len(rows) == 434
    for name, structure, whole, decoded in rows:
        assert (whole == "kept") == (structure == "kept" and decoded != "error"), name
        if name.startswith("photos/"):
            assert (structure, whole) == ("kept", "kept"), name
    damaged = [row for row in rows if row[0].startswith("corrupt/")]
    assert sum(row[2] == "refused" for row in damaged) >= 55


@pytest.mark.parametrize("size", [224, (96, 160)])
def test_photographs_come_out_as_pillow_resizes_them(size: int | tuple[int, int]):
    height, width = (size, size) if isinstance(size, int) else size
    gaps, shrunk = [], []
    for path in sorted((DATA / "images" / "photos").iterdir())[::3]:
        data = path.read_bytes()
        with Pillow.open(io.BytesIO(data)) as image:
            if image.mode.startswith(("I", "F", "LAB")):
                continue
            large = image.format == "JPEG" and image.mode != "CMYK"
            whole = ImageOps.exif_transpose(image).convert("RGB")
        scale = min(whole.width / width, whole.height / height)
        left, top = max(0, whole.width - width * scale) / 2, max(0, whole.height - height * scale) / 2
        box = (left, top, whole.width - left, whole.height - top)
        expected = np.asarray(whole.resize((width, height), Pillow.Resampling.BILINEAR, box=box)).astype(int)
        found = cpu.decode(data, IMAGE, Image(size=size, layout="HWC"))
        gap = np.abs(found - expected)
        if scale >= 3 and large:
            shrunk.append(gap.mean())
        else:
            gaps.append(gap.max())
    assert len(gaps) > 30 and max(gaps) <= 1
    assert shrunk and np.mean(shrunk) <= 1.5 and max(shrunk) < 6  # a little sharper, worst in fine texture


if __name__ == "__main__":
    EXPECTED.write_text("\n".join(("file\tinsert structure\tinsert decode\tdecode", *outcomes())) + "\n")
