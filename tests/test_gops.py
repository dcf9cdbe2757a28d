"""Tables of groups of pictures, files read in parts, and clips that read only what they need."""

from __future__ import annotations

import io
import os
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import deeplake_loader as deeplake
from deeplake_loader.codecs import encode, gops, video
from deeplake_loader.codecs.sparse import SparseFile
from deeplake_loader.decode import cpu
from deeplake_loader.decode.transforms import Draw, Video
from deeplake_loader.decode.video import chosen_frames, needed_ranges
from deeplake_loader.errors import CorruptionError, DecodeError, InputError
from deeplake_loader.types import ColumnType

DATA = Path(os.environ.get("DEEPLAKE_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
CLIPS = sorted((DATA / "videos" / "good").glob("*")) if DATA.is_dir() else []
BLOCK = 4096


def table_of(times: np.ndarray, keys: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> gops.GopTable:
    return gops.GopTable(Fraction(1, 30_000), times, keys, starts, stops, 1, ((0, 900), (5_000, 5_100)), True)


steps = st.lists(st.integers(-(1 << 40), 1 << 40), min_size=1, max_size=30)


@given(steps, steps, steps, steps, st.fractions(min_value=Fraction(1, 10**6), max_value=10, max_denominator=10**6))
def test_a_packed_table_comes_back_as_it_was(times, keys, starts, stops, base):
    size = min(len(starts), len(stops))
    arrays = [np.array(a, np.int64) for a in (times, keys, starts[:size], stops[:size])]
    table = gops.GopTable(base, *arrays, 3, ((1, 2),), True)
    again = gops.unpack(gops.pack(table))
    assert (again.base, again.per_span, again.index, again.skippable) == (base, 3, ((1, 2),), True)
    for mine, theirs in zip(arrays, (again.times, again.keyframes, again.starts, again.stops), strict=True):
        assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("gop", [1, 24, 250])
def test_the_table_of_an_hour_stays_below_64_kb(gop):
    rng = np.random.default_rng(0)
    times = np.arange(108_000) * 1001
    keys = np.arange(0, 108_000, gop)
    sizes = rng.integers(20_000, 90_000, len(keys))
    starts = np.cumsum(sizes) - sizes
    text = gops.pack(table_of(times, keys, starts, starts + sizes))
    assert text is not None and len(text) < 64 << 10
    again = gops.unpack(text)
    assert np.array_equal(again.times, times) and np.array_equal(again.keyframes, keys)
    for wanted in ([0], [50_000, 50_010], [107_999]):
        (a, b), *_ = again.ranges(wanted)[-1:]
        key = np.searchsorted(keys, wanted[0], "right") - 1
        assert a <= starts[key] and b >= starts[key] + sizes[key]


@pytest.mark.parametrize(
    "text", ["", "AAAA", "not base64!", gops.pack(table_of(*[np.arange(3)] * 4))[:-8] + "AAAAAAA="]
)
def test_what_is_no_table_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        gops.unpack(text)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8))
def test_merged_ranges_hold_the_same_bytes_in_order_and_apart(pairs):
    merged = gops.merge(pairs)
    assert {b for a, z in merged for b in range(a, z)} == {b for a, z in pairs for b in range(a, z)}
    assert all(a[1] < b[0] for a, b in pairwise(merged))


@settings(max_examples=60)
@given(st.binary(min_size=1, max_size=300), st.integers(1, 40), st.data())
def test_a_sparse_file_reads_as_the_bytes_do(content, block, data):
    ranges = data.draw(st.lists(st.tuples(st.integers(0, 299), st.integers(1, 300)), max_size=3))
    fetched = []

    def fetch(start: int, stop: int) -> bytes:
        assert start % block == 0 and (stop % block == 0 or stop == len(content))
        fetched.append((start, stop))
        return content[start:stop]

    file = SparseFile(len(content), fetch, block=block)
    file.announce([(a, min(b, len(content))) for a, b in ranges if a < min(b, len(content))])
    announced = len(fetched)
    for _ in range(4):
        place, size = data.draw(st.integers(0, 320)), data.draw(st.integers(0, 100))
        file.seek(place)
        got = b""
        while len(got) < size and (piece := file.read(size - len(got))):
            got += piece
        assert got == content[place : place + size] and file.tell() == max(place, min(place + size, len(content)))
    assert file[3:50] == content[3:50] and file.missed == len(fetched) - announced
    assert file.fetched == sum(b - a for a, b in fetched)


def indexed() -> list[Path]:
    return [p for p in CLIPS if p.stat().st_size < 2_000_000]


@pytest.mark.skipif(not CLIPS, reason="no sample data (set DEEPLAKE_TEST_DATA)")
@pytest.mark.parametrize("path", indexed(), ids=lambda p: p.name)
def test_a_clip_read_in_parts_is_the_clip_read_whole(path):
    data = path.read_bytes()
    info = encode(ColumnType("VIDEO"), data, where="x").info
    transform = Video(num_frames=4, sampling="contiguous", size=(48, 64))
    ranges = None if info.gops is None else gops.unpack(info.gops).ranges(chosen_frames(info, transform, None))
    if ranges is None:
        assert needed_ranges(info, transform, None, len(data)) is None
        return
    for draw in (None, Draw(0, 0, 1, "x"), Draw(0, 0, 2, "x")):
        file = SparseFile(len(data), lambda a, b: data[a:b], block=BLOCK)
        ranges = gops.unpack(info.gops).ranges(sorted(set(chosen_frames(info, transform, draw))))
        file.announce(ranges)
        out = cpu.decode(file, info, transform, draw=draw)
        assert np.array_equal(out, cpu.decode(data, info, transform, draw=draw))
        assert file.missed == 0, "a read that nothing announced"
        assert file.fetched <= sum(b - a + 2 * BLOCK for a, b in ranges)


@pytest.mark.skipif(not CLIPS, reason="no sample data (set DEEPLAKE_TEST_DATA)")
def test_most_indexed_files_are_read_in_parts():
    found = [encode(ColumnType("VIDEO"), p, where="x").info for p in indexed()]
    tables = [gops.unpack(i.gops) for i in found if i.gops]
    assert sum(len(t.starts) > 0 for t in tables) >= 40 and all(len(i.gops or "") < 1000 for i in found)


def noise(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 128, 128, 3), np.uint8)


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory) -> Path:
    """9 MB of H.264 in groups of 12 frames; stored as one blob, its blocks of 1 MB have a checksum each."""
    root = tmp_path_factory.mktemp("long")
    with deeplake.connect(root) as db:
        db.execute("CREATE TABLE films (id BIGINT PRIMARY KEY, film VIDEO(codec='h264', crf=10, gop=12, fps=10))")
        db.insert("films", {"film": [noise(400)]})
    return root


def watched(monkeypatch) -> list[SparseFile]:
    opened: list[SparseFile] = []
    announce = SparseFile.announce

    def remember(self, ranges):
        opened.append(self)
        announce(self, ranges)

    monkeypatch.setattr(SparseFile, "announce", remember)
    return opened


def test_a_handle_of_a_long_video_reads_the_blocks_of_its_clip(long_clip, monkeypatch):
    with deeplake.connect(long_clip) as db:
        film = db.execute("SELECT film FROM films").scalar()
        whole = film.decode().numpy()
        opened = watched(monkeypatch)
        out = film.decode(num_frames=16, sampling="contiguous").numpy()
        assert np.array_equal(out, whole[192:208]) and len(opened) == 1
        assert opened[0].missed == 0 and opened[0].fetched <= 4 << 20 < film.info.nbytes
        assert np.array_equal(film.decode(num_frames=4).numpy(), whole[[50, 150, 250, 350]])
        assert len(opened) == 1, "frames all over the file: it is read whole"


def test_clips_of_a_long_video_are_rows_that_a_stream_reads_in_parts(long_clip, monkeypatch):
    with deeplake.connect(long_clip) as db:
        made = db.clips("films", "film", seconds=4.0)
        assert (made.rows, made.bad) == (10, ()) and db.clips("films", "film", seconds=4.0).rows == 0
        assert len({row.film for row in db.execute("SELECT film FROM clips")}) == 1
        whole = db.execute("SELECT film FROM films").scalar().decode().numpy()
        opened = watched(monkeypatch)
        transform = Video(num_frames=8, start="clip_start", end="clip_end")
        stream = db.stream(
            "SELECT film, clip_start, clip_end, source_id FROM clips ORDER BY id",
            batch_size=4, transforms={"film": transform},
        )  # fmt: skip
        rows = [(b["clip_start"][i].item(), b["film"][i].numpy()) for b in stream for i in range(len(b["film"]))]
    assert [start for start, _ in rows] == [4.0 * i for i in range(10)]
    for start, frames in rows:
        part = whole[round(start * 10) : round(start * 10) + 40]
        assert np.array_equal(frames, part[[(2 * i + 1) * 40 // 16 for i in range(8)]])
    assert len(opened) == 10 and sum(file.missed for file in opened) == 0
    assert max(file.fetched for file in opened) <= 4 << 20


def test_a_flipped_byte_in_a_block_that_a_clip_needs_is_an_error_and_elsewhere_it_is_not_met(long_clip):
    transform = Video(frame_indices=tuple(range(192, 208)))
    with deeplake.connect(long_clip) as db:
        film = db.execute("SELECT film FROM films").scalar()
        place, mega = db.locate(film.address_in(db)), 1 << 20
        ranges = gops.unpack(film.info.gops).ranges(list(transform.frame_indices))
        needed = {block for a, b in ranges for block in range(a // mega, (b - 1) // mega + 1)}
        free = next(block for block in range(place.length // mega) if block not in needed)
        shard = Path(db.root) / place.url
        sound = shard.read_bytes()
        expected = film.decode(transform)
        for block in (free, max(needed)):
            damaged = bytearray(sound)
            damaged[place.offset + block * mega + 100] ^= 1
            shard.write_bytes(damaged)
            stream = db.stream("SELECT film FROM films", batch_size=1, transforms={"film": transform})
            if block == free:
                assert torch.equal(film.decode(transform), expected)
                assert torch.equal(next(iter(stream))["film"][0], expected)
            else:
                with pytest.raises(CorruptionError, match=f"block {block}"):
                    film.decode(transform)
                with pytest.raises(CorruptionError, match=f"block {block}"):
                    next(iter(stream))
        shard.write_bytes(sound)


def test_columns_of_seconds_must_be_in_the_query_and_make_a_clip(long_clip):
    with deeplake.connect(long_clip) as db:
        for sql, match in (("SELECT film FROM films", "columns are film"), ("SELECT film, 'a' AS s FROM films", "'s'")):
            with pytest.raises(InputError, match=match):
                db.stream(sql, batch_size=1, transforms={"film": Video(num_frames=1, start="s")})
        transform = Video(num_frames=1, start="s", end="e")
        stream = db.stream("SELECT film, 3.0 AS s, 1.0 AS e FROM films", batch_size=1, transforms={"film": transform})
        with pytest.raises(DecodeError, match="end must lie after"):
            next(iter(stream))
        film = db.execute("SELECT film FROM films").scalar()
        with pytest.raises(InputError, match="only the rows of a stream"):
            film.decode(transform)
        stream = db.stream("SELECT film, 3.0 AS s, NULL AS e FROM films", batch_size=1, transforms={"film": transform})
        assert next(iter(stream))["film"].shape == (1, 1, 3, 128, 128)


def test_only_the_nearest_key_frame_and_what_follows_is_decoded(monkeypatch):
    item = encode(ColumnType.parse("VIDEO(gop=10)"), noise(60), where="x")
    packets = []
    original = video._read_segment

    def counted(container, stream, *rest):
        class Counted:
            streams = container.streams

            @staticmethod
            def demux(chosen):
                for packet in container.demux(chosen):
                    packets.append(packet.pts)
                    yield packet

        return original(Counted, stream, *rest)

    monkeypatch.setattr(video, "_read_segment", counted)
    keys = [k for k in item.info.keyframes if k <= 45]
    cpu.decode(item.data, item.info, Video(frame_indices=(45, 46)))
    assert len(packets) <= 47 - keys[-1] + 4 and keys[-1] > 16


def test_frames_left_out_of_decoding_change_no_other(tmp_path):
    path = tmp_path / "b.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"bf": "4", "b-pyramid": "normal", "crf": "30"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        y, x = np.mgrid[0:64, 0:64]
        for i in range(50):
            pixels = np.stack([(x * 3 + i * 4) % 256, (y * 2 + i) % 256, (x + y + i * 7) % 256], -1).astype(np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    item = encode(ColumnType("VIDEO"), path, where="x")
    assert gops.unpack(item.info.gops).skippable
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for wanted in [(i,) for i in range(0, 50, 3)] + [tuple(range(3, 50, 7)), tuple(range(50))]:
        out = cpu.decode(item.data, item.info, Video(frame_indices=wanted, layout="THWC"))
        assert all(np.array_equal(a, expected[i]) for a, i in zip(out, wanted, strict=True))


@pytest.mark.parametrize(
    ("container", "codec", "b_frames", "has_table"),
    [("avi", "libx264", 3, False), ("avi", "mpeg4", 2, False), ("avi", "mpeg2video", 2, False),
     ("avi", "mpeg4", 0, True), ("avi", "libx264", 0, True), ("matroska", "mpeg4", 2, True),
     ("flv", "libx264", 3, True), ("mpegts", "mpeg2video", 2, True), ("mpeg", "mpeg2video", 2, True)],
)  # fmt: skip
def test_frames_are_numbered_as_they_are_shown_in_every_container(container, codec, b_frames, has_table):
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=25, options={"bf": str(b_frames), "g": "12"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(30):
            pixels = np.zeros((48, 64, 3), np.uint8)
            pixels[:, :, 0], pixels[:, i * 2 : i * 2 + 4] = i * 8, 255
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    with av.open(io.BytesIO(file.getvalue())) as source:
        source.streams.video[0].codec_context.thread_count = 1
        expected = [frame.to_ndarray(format="rgb24", threads=1) for frame in source.decode(video=0)]
    item = encode(ColumnType("VIDEO"), file.getvalue(), where="x")
    assert (item.info.num_frames, item.info.gops is not None) == (len(expected), has_table)
    for wanted in (tuple(range(len(expected))), tuple(range(1, 30, 4)), (17,), (28, 2, 3)):
        out = cpu.decode(item.data, item.info, Video(frame_indices=wanted, layout="THWC"))
        assert all(np.array_equal(a, expected[i]) for a, i in zip(out, wanted, strict=True))
