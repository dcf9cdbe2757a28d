"""Pictures of what a store holds, compared with what Pillow makes of the same values."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cli_store import ROOT, build, ran, run
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import deeplake_loader as deeplake
from deeplake_loader import pictures
from deeplake_loader.errors import DecodeError, InputError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "store"
    build(folder)
    return folder


@pytest.fixture
def row(store: Path) -> Iterator[deeplake.rows.Row]:
    with deeplake.connect(store, read_only=True) as db:
        yield db.execute("SELECT frames, thumbnail, sound, latent FROM generations WHERE id = 1")[0]


def gradient(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)


# -- thumbnails --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(300, 500), (500, 300), (40, 30), (1, 900)])
def test_a_thumbnail_is_pillows_to_a_few_grey_levels_and_never_larger(
    db: deeplake.Database, height: int, width: int
) -> None:
    pixels = gradient(height, width)
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, x IMAGE)")
    db.insert("t", {"x": [pixels]})
    found = pictures.thumbnail(db.execute("SELECT x FROM t").scalar(), size=100)
    scale = min(1, 100 / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    expected = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR), int)
    assert found.dtype == np.uint8 and found.shape == expected.shape and max(found.shape) <= 100
    assert np.abs(found - expected).max() <= 2


def test_a_picture_is_upright(db: deeplake.Database, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    Image.fromarray(gradient(60, 100)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, x IMAGE)")
    for validate in ("structure", "none"):
        db.insert("t", [{"x": str(tmp_path / "a.jpg")}], validate=validate)
    for (blob,) in db.execute("SELECT x FROM t"):
        found = pictures.thumbnail(blob, size=50)
        assert found.shape == (50, 30, 3)
        assert found[:, :, 0].astype(int)[-5:].mean() > 200, "the right side of the stored picture is below"


def test_a_video_is_its_middle_frame_or_a_strip_of_frames(row: deeplake.rows.Row) -> None:
    decoded = row.frames.decode(num_frames=4).permute(0, 2, 3, 1).numpy()
    found = pictures.strip(row.frames, frames=4, height=48)
    assert found.shape == (48, 4 * 64 + 3 * 2, 3)
    for i in range(4):
        np.testing.assert_array_equal(found[:, i * 66 : i * 66 + 64], decoded[i])
    middle = row.frames.decode(num_frames=1)[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(pictures.thumbnail(row.frames, size=64), middle)
    assert pictures.strip(row.frames, frames=64, height=48).shape[1] == 12 * 64 + 11 * 2, "it has 12 frames"
    assert pictures.strip(row.frames, frames=2, height=24).shape == (24, 2 * 32 + 2, 3)


def test_arrays_are_the_tensors_and_pictures_need_no_torch(row: deeplake.rows.Row, store: Path) -> None:
    np.testing.assert_array_equal(row.frames.array(num_frames=2), row.frames.decode(num_frames=2).numpy())
    np.testing.assert_array_equal(row.latent.array(), row.latent.decode().numpy())
    code = (
        "import sys, deeplake_loader as deeplake\n"
        "from deeplake_loader import pictures\n"
        "row = deeplake.connect(sys.argv[1], read_only=True).execute('SELECT frames FROM generations LIMIT 1')[0]\n"
        "pictures.contact_sheet([pictures.Tile(pictures.thumbnail(blob)) for blob in row])\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(store)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "False\n"


def test_an_image_beside_strips_has_their_height(row: deeplake.rows.Row) -> None:
    assert pictures.strip(row.thumbnail, height=24).shape == (24, 32, 3)
    assert pictures.strip(row.thumbnail, height=400).shape == (48, 64, 3)


def test_the_wave_of_a_sound_is_high_where_it_is_loud(db: deeplake.Database, tmp_path: Path) -> None:
    import wave

    quiet, loud = np.zeros(4000), np.sin(np.arange(4000)) * 30_000
    with wave.open(str(tmp_path / "a.wav"), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(np.concatenate([quiet, loud]).astype("<i2").tobytes())
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, x AUDIO)")
    db.insert("t", [{"x": str(tmp_path / "a.wav")}])
    found = pictures.thumbnail(db.execute("SELECT x FROM t").scalar(), size=100)
    lit = (found != found[0, 0]).any(2).sum(0)
    assert found.shape == (50, 100, 3) and lit[:48].max() <= 2 and lit[52:].min() > 40


def test_what_has_no_picture_and_sizes_that_are_none_are_refused(row: deeplake.rows.Row) -> None:
    with pytest.raises(InputError, match="TENSOR"):
        pictures.thumbnail(row.latent)
    for size in (7, 5000, 10.5, None):
        with pytest.raises(InputError, match=r"8\.\.4096"):
            pictures.thumbnail(row.thumbnail, size=size)
    with pytest.raises(InputError, match=r"1\.\.64"):
        pictures.strip(row.frames, frames=0)


# -- sheets ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(8, 60), st.integers(8, 60)), min_size=1, max_size=12), st.integers(1, 5))
def test_every_tile_is_on_the_sheet_where_its_row_and_column_are(sizes: list[tuple[int, int]], columns: int) -> None:
    rng = np.random.default_rng(len(sizes))
    tiles = [
        pictures.Tile(rng.integers(60, 256, (h, w, 3), np.uint8), "a\nb" if i % 2 else "")
        for i, (h, w) in enumerate(sizes)
    ]
    sheet = np.asarray(pictures.contact_sheet(tiles, columns=columns))
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    widths = [max(t.pixels.shape[1] for row in rows for t in row[i : i + 1]) for i in range(len(rows[0]))]
    top = 8
    for row in rows:
        left = 8
        for tile, width in zip(row, widths, strict=False):
            h, w, _ = tile.pixels.shape
            np.testing.assert_array_equal(sheet[top : top + h, left : left + w], tile.pixels)
            left += width + 8
        top += max(t.pixels.shape[0] + 15 * len(t.caption.splitlines()) for t in row) + 8
    assert sheet.shape[0] == top


def test_a_caption_is_cut_to_its_tile_and_a_missing_picture_is_a_crossed_box() -> None:
    long = pictures.contact_sheet([pictures.Tile(np.zeros((20, 60, 3), np.uint8), "a very long caption" * 50)])
    assert long.width == 76
    below = np.asarray(long)[28:, :].astype(int)
    assert (below.max(2) > 150).any() and not (np.asarray(long)[:, 70:].max(2) > 150).any()
    crossed = np.asarray(pictures.contact_sheet([pictures.Tile(None, "gone")], empty=40))
    assert (crossed[8, 8:48, 0] > 100).all() and crossed[8 + 20, 8 + 20, 0] > 100 and crossed[8 + 10, 8 + 30, 0] < 60
    assert repr(pictures.Tile(np.zeros((2, 3, 3), np.uint8), "x")) == "Tile((2, 3, 3), 'x')"


def test_sheets_that_cannot_be_are_refused() -> None:
    tile = pictures.Tile(np.zeros((4000, 4000, 3), np.uint8))
    for tiles, columns in (([], 3), ([tile], 0), ([tile] * 8, 4)):
        with pytest.raises(InputError, match=r"tile|pixels"):
            pictures.contact_sheet(tiles, columns=columns)


# -- terminal ----------------------------------------------------------------------------------------------------------


def colours(line: str) -> list[tuple[list[int], list[int]]]:
    """The two colours of each character."""
    found, now = [], None
    for code, blocks in re.findall(r"\x1b\[38;2;([\d;]+)m(▀+)", line):
        red, green, blue, _, _, *lower = map(int, code.split(";"))
        now = ([red, green, blue], lower)
        found += [now] * len(blocks)
    return found


@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 2**31))
def test_half_blocks_show_every_pixel(height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 3, (height, width, 3)).astype(np.uint8)
    lines = pictures.half_blocks(pixels, width=20).splitlines()
    assert len(lines) == (height + 1) // 2
    for i, line in enumerate(lines):
        lower = pixels[min(2 * i + 1, height - 1)].tolist()
        assert colours(line) == list(zip(pixels[2 * i].tolist(), lower, strict=True)) and line.endswith("\x1b[0m")


def test_a_picture_is_shrunk_to_the_terminal_and_grey_without_colours() -> None:
    pixels = np.repeat(np.linspace(0, 255, 400).astype(np.uint8)[None, :, None], 200, 0).repeat(3, 2)
    lines = pictures.half_blocks(pixels, width=40, colours="none").splitlines()
    assert len(lines) == 10 and {len(line) for line in lines} == {40}
    assert lines[0] == "".join(sorted(lines[0], key=" .:-=+*#%@".index)) and lines[0][0] == " " and lines[0][-1] == "@"
    assert len(pictures.half_blocks(pixels, width=400, height=5).splitlines()) == 5
    codes = re.findall(r"38;5;(\d+);48;5;(\d+)m", pictures.half_blocks(pixels, width=40, colours="256"))
    assert codes[0] == ("16", "16") and codes[-1] == ("231", "231")
    for wrong in ({"colours": "8"}, {"width": 0}, {"height": 0}):
        with pytest.raises(InputError):
            pictures.half_blocks(pixels, **wrong)
    with pytest.raises(InputError, match="uint8"):
        pictures.half_blocks(pixels.astype(float))


# -- charts ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=20), st.integers(10, 120))
def test_bars_are_as_long_as_their_counts(counts: list[int], width: int) -> None:
    labels = [f"{i}" for i in range(len(counts))]
    lines = pictures.bar_lines(labels, counts, width=width)
    lengths = [line.count("█") for line in lines]
    room = max(lengths)
    for line, count, length in zip(lines, counts, lengths, strict=True):
        assert line.endswith(f" {count:,}") and abs(length - count / max(*counts, 1) * (room + 1)) <= 2
        assert any(eighth in line for eighth in "█▏▎▍▌▋▊▉") == (count > 0)


def test_the_bars_of_a_histogram_picture_are_as_high_as_their_counts() -> None:
    counts = (1, 4, 0, 2)
    picture = np.asarray(pictures.histogram_picture((0, 1, 2, 3, 4), counts, title="t", unit="s", size=(480, 320)))
    blue = (picture == (66, 133, 244)).all(2)
    heights = [int(blue[:, round(64 + (480 - 88) * (i + 0.5) / 4)].sum()) for i in range(4)]
    assert heights == [round((320 - 80) * c / 4) for c in counts]
    for edges, counts_, size in (((0, 1), (), (480, 320)), ((0,), (1,), (480, 320)), ((0, 1), (1,), (10, 10))):
        with pytest.raises(InputError):
            pictures.histogram_picture(edges, counts_, size=size)


# -- show --------------------------------------------------------------------------------------------------------------


def test_show_writes_the_sheet_that_python_makes(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    done = run(store, "show", "generations", "--sheet", str(path), "-c", "thumbnail", "-n", "6", "--size", "48",
               "--caption", "id,steps", "--across", "3")  # fmt: skip
    assert done.exit_code == 0 and "5 pictures" in done.stderr and done.stdout == ""
    with deeplake.connect(store, read_only=True) as db:
        rows = db.execute("SELECT id, steps, thumbnail FROM generations WHERE thumbnail IS NOT NULL ORDER BY id")
        tiles = [pictures.Tile(pictures.thumbnail(r.thumbnail, size=48), f"{r.id}, {r.steps}") for r in rows]
    with Image.open(path) as found:
        np.testing.assert_array_equal(np.asarray(found), np.asarray(pictures.contact_sheet(tiles, columns=3)))


def test_show_takes_keys_and_frames(store: Path, tmp_path: Path) -> None:
    text = ran(store, "show", "generations", "2", "4", "-c", "thumbnail", "--width", "16")
    assert text.splitlines()[6] == "2" and text.splitlines()[-1] == "4" and len(text.splitlines()) == 14
    ran(
        store,
        "show",
        "generations",
        "1",
        "-c",
        "frames",
        "--frames",
        "3",
        "--size",
        "48",
        "--sheet",
        str(tmp_path / "s.png"),
    )
    with Image.open(tmp_path / "s.png") as found:
        assert found.size == (3 * 64 + 2 * 2 + 16, 48 + 15 + 16)
    assert run(store, "show", "generations", "-c", "thumbnail", "6", "--sheet", str(tmp_path / "n.png")).exit_code == 2


def test_a_damaged_picture_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    with deeplake.connect(tmp_path / "s") as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, x IMAGE)")
        db.insert("t", {"x": [gradient(40, 60 + i) for i in range(3)]})
        db.optimize()
        place = db.locate(db.execute("SELECT x FROM t WHERE id = 2").raw(0)[0])
    with open(tmp_path / "s" / place.url, "r+b") as file:
        file.seek(place.offset + 60)
        file.write(b"\0\0\0\0")
    done = run(tmp_path / "s", "show", "t", "--sheet", str(tmp_path / "sheet.png"))
    assert done.exit_code == 0 and done.stderr.startswith("2: ") and "3 pictures" in done.stderr
    with deeplake.connect(tmp_path / "s", read_only=True) as db, pytest.raises((DecodeError, deeplake.DeeplakeError)):
        pictures.thumbnail(db.execute("SELECT x FROM t WHERE id = 2").scalar())
