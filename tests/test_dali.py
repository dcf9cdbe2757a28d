"""DALI beside the CPU engine: the same boxes, frames and errors, nothing made up, and never a hang."""

from __future__ import annotations

import dataclasses
import gc
import io
import logging
import mmap
import os
import subprocess
import sys
import threading
import types
import weakref
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageOps

import deeplake_loader as deeplake
from deeplake_loader.codecs import MediaInfo, encode
from deeplake_loader.codecs.gops import pack, unpack
from deeplake_loader.decode import cpu, dali, engine, nvdec
from deeplake_loader.decode.dali import DaliDecoder
from deeplake_loader.decode.transforms import Draw, Image, Video
from deeplake_loader.errors import DecodeError, InputError, MediaError
from deeplake_loader.stream import passes
from deeplake_loader.types import ColumnType

pytest.importorskip("nvidia.dali", reason="the extra 'dali' is not installed")

IMAGE = MediaInfo("image")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def decoder() -> DaliDecoder:
    return DaliDecoder("cpu", num_threads=2)


@pytest.fixture
def fresh_engine(monkeypatch):
    """As in a process that has not chosen an engine yet."""
    monkeypatch.setattr(engine, "_decoders", {})
    monkeypatch.setattr(engine, "_told", set())


def photo(seed: int, width: int = 160, height: int = 120) -> Pillow.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 10, 3), np.uint8)
    return Pillow.fromarray(coarse).resize((width, height), Pillow.Resampling.BICUBIC)


def saved(image: Pillow.Image, format: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


JPEGS = [saved(photo(i, 100 + 13 * i, 90 + 7 * i), quality=90, progressive=i % 3 == 1) for i in range(8)]


def waves(frames: int, height: int, width: int, seed: int) -> np.ndarray:
    """(frames, height, width, 3) uint8 without sharp edges, where engines double chroma differently, and each frame
    far from its neighbours."""
    t, y, x = np.mgrid[:frames, :height, :width].astype(np.float64)
    angle = 2 * np.pi * (x / width + y / height * 0.5) + 0.9 * t + seed
    return (128 + 90 * np.stack([np.sin(angle), np.cos(angle), np.sin(angle + 1)], -1)).astype(np.uint8)


def clip(codec: str, frames: int = 20, width: int = 96, height: int = 64, seed: int = 0) -> tuple[bytes, MediaInfo]:
    """A clip of that codec, its key frames 8 apart, and its facts."""
    container = {"mjpeg": "avi", "vp8": "webm", "vp9": "webm"}.get(codec, "mp4")
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream({"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(codec, codec), rate=10)
        stream.width, stream.height, stream.gop_size = width, height, 8
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.bit_rate = 2_000_000
        for pixels in waves(frames, height, width, seed):
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    item = encode(ColumnType("VIDEO"), file.getvalue(), where="test")
    return item.data, item.info


CLIPS = {codec: clip(codec) for codec in ("vp8", "vp9", "mjpeg")}


def difference(ours: torch.Tensor, reference: np.ndarray) -> tuple[float, int]:
    """(mean, largest) of the grey levels between them, whose shapes agree."""
    assert ours.dtype == torch.uint8 and tuple(ours.shape) == reference.shape
    apart = np.abs(ours.numpy().astype(np.int64) - reference)
    return float(apart.mean()), int(apart.max())


# images


@settings(max_examples=20)
@given(
    size=st.sampled_from([None, 64, (60, 80), (150, 70)]),
    crop=st.sampled_from(["center", "none", "random", "random_resized"]),
    interpolation=st.sampled_from(["bilinear", "bicubic", "lanczos"]),
    antialias=st.booleans(),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    layout=st.sampled_from(["CHW", "HWC"]),
    epoch=st.integers(0, 5),
)
def test_both_engines_give_the_same_augmented_images(
    decoder, size, crop, interpolation, antialias, flip, layout, epoch
):  # fmt: skip
    crop = "center" if size is None else crop
    transform = Image(size=size, crop=crop, flip=flip, layout=layout, interpolation=interpolation, antialias=antialias)
    draws = [Draw(0, epoch, i, "photo") for i in range(len(JPEGS))]
    found = decoder.decode_images(JPEGS, transform, draws)
    for data, draw, ours in zip(JPEGS, draws, found, strict=True):
        mean, most = difference(ours, cpu.decode(data, IMAGE, transform, draw=draw))
        assert (mean, most) == (0, 0) if size is None else (mean < 0.3 and most <= 16)


def test_sample_photos_equal_pillows_pixels(decoder, sample_data):
    paths = sorted((sample_data / "images" / "photos").glob("*.jp*g"))[::12]
    found = decoder.decode_images([p.read_bytes() for p in paths], Image(), [None] * len(paths))
    assert len(paths) > 10
    for path, ours in zip(paths, found, strict=True):
        with Pillow.open(path) as image:
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).transpose(2, 0, 1)
        assert difference(ours, expected) == (0, 0), path.name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpegs_come_out_upright(decoder, orientation):
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    data = saved(photo(1), exif=exif)
    [ours] = decoder.decode_images([data], Image(), [None])
    assert difference(ours, cpu.decode(data, IMAGE)) == (0, 0)


def test_formats_and_modes_that_dali_has_no_rule_for_are_the_cpu_engines(decoder):
    grey = photo(2).convert("L")
    items = [
        saved(photo(2), "PNG"),
        saved(photo(2).convert("RGBA"), "WEBP", lossless=True),
        saved(photo(2).convert("CMYK")),
        saved(photo(2).convert("P"), "GIF"),
        saved(grey),
    ]
    assert [decoder.takes_image(data) for data in items] == [False, False, True, False, True]
    found = decoder.decode_images(items, Image(), [None] * len(items))
    for data, ours in zip(items, found, strict=True):
        assert difference(ours, cpu.decode(data, IMAGE)) == (0, 0)


def test_large_photos_are_close_to_those_that_the_cpu_engine_shrinks_while_it_decodes(decoder):
    large = [saved(photo(i, 900 + i, 700), quality=90) for i in range(4)]
    for size in (64, 200):
        found = decoder.decode_images(large, Image(size=size), [None] * 4)
        for data, ours in zip(large, found, strict=True):
            assert difference(ours, cpu.decode(data, IMAGE, Image(size=size)))[0] < 1.5


def test_a_filter_that_dali_lacks_is_the_cpu_engines(decoder):
    transform = Image(size=40, interpolation="area")
    [ours] = decoder.decode_images(JPEGS[:1], transform, [None])
    assert not decoder.takes(transform) and difference(ours, cpu.decode(JPEGS[0], IMAGE, transform)) == (0, 0)


def test_grey_images_have_one_channel(decoder):
    [ours] = decoder.decode_images([JPEGS[0]], Image(mode="L"), [None])
    assert difference(ours, cpu.decode(JPEGS[0], IMAGE, Image(mode="L"))) == (0, 0)


DAMAGED = {
    "half": JPEGS[3][: len(JPEGS[3]) // 2],
    "stub": JPEGS[3][:100],
    "garbage": b"\xff\xd8\xff" + bytes(range(256)) * 4,
    "text": b"not an image at all",
    "empty": b"",
    "coded data cut": JPEGS[3][: len(JPEGS[3]) // 3] + b"\xff\xd9",
    "huffman table broken": JPEGS[3].replace(b"\xff\xc4\x00", b"\xff\xc4\x7f", 1),
}


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_bad_image_is_one_typed_error_and_costs_no_other(decoder, kind, place):
    items = JPEGS[:5]
    items[place] = DAMAGED[kind]
    transform = Image(size=64)
    out = decoder.empty((5, 3, 64, 64))
    found = decoder.decode_images(items, transform, [None] * 5, out)
    for i, (data, ours) in enumerate(zip(items, found, strict=True)):
        if i == place and kind != "coded data cut":
            assert isinstance(ours, DecodeError)
            with pytest.raises(DecodeError) as reference:
                cpu.decode(data, IMAGE, transform)
            assert str(ours) == str(reference.value)
        elif i != place:
            assert difference(ours, cpu.decode(data, IMAGE, transform))[0] < 0.3
            assert ours.data_ptr() == out[i].data_ptr()
    assert not isinstance(decoder.decode_images(JPEGS[:1], transform, [None])[0], DecodeError)


def test_an_item_that_only_dali_refuses_is_decoded_on_the_cpu_and_said_once(decoder, monkeypatch, caplog):
    real = decoder._dali.decoders.image

    def fails(encoded, **options):
        if encoded.batch_size > 1 or encoded.shape[0][0] == len(JPEGS[1]):
            raise RuntimeError("nvImageCodec failure: '#4'")
        return real(encoded, **options)

    monkeypatch.setattr(decoder, "_told", False)
    monkeypatch.setattr(decoder._dali.decoders, "image", fails)
    with caplog.at_level(logging.WARNING, "deeplake_loader.decode"):
        for _ in range(2):
            found = decoder.decode_images(JPEGS[:3], Image(), [None] * 3)
            assert [difference(f, cpu.decode(d, IMAGE)) for f, d in zip(found, JPEGS, strict=False)] == [(0, 0)] * 3
    assert [record.message for record in caplog.records] == [
        "DALI did not decode item 1 of a batch; such items are decoded on the CPU: nvImageCodec failure: '#4'"
    ]


def test_batches_of_one_of_none_and_in_several_calls(decoder, monkeypatch):
    assert decoder.decode_images([], Image(size=8), []) == []
    assert decoder.decode_videos([], [], Video(size=8), []) == []
    whole = decoder.decode_images(JPEGS, Image(size=40), [None] * 8)
    monkeypatch.setattr(dali, "CHUNK_BYTES", 70_000)  # two or three pictures
    parts = decoder.decode_images(JPEGS, Image(size=40), [None] * 8)
    single = [decoder.decode_images([data], Image(size=40), [None])[0] for data in JPEGS]
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(whole, parts, single, strict=True))


def test_any_memory_can_be_decoded_from(decoder, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(JPEGS[0])
    with open(tmp_path / "photo.jpg", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)
        items = [JPEGS[0], memoryview(JPEGS[0]), memoryview(bytearray(JPEGS[0])), view]
        first, *others = decoder.decode_images(items, Image(size=32), [None] * 4)
        view.release()
    assert all(torch.equal(first, other) for other in others)


def test_results_are_the_callers_own_memory(decoder):
    kept = decoder.decode_images(JPEGS, Image(size=32), [None] * 8)
    clips = decoder.decode_videos([CLIPS["vp9"][0]], [CLIPS["vp9"][1]], Video(num_frames=4), [None])
    before = [t.clone() for t in (*kept, *clips)]
    for i in range(20):
        decoder.decode_images(JPEGS[i % 4 :], Image(size=32, crop="none"), [None] * (8 - i % 4))
    assert all(torch.equal(a, b) for a, b in zip(before, (*kept, *clips), strict=True))


def test_memory_stays_flat_over_batches_and_failures(decoder):
    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def work(rounds: int) -> None:
        for i in range(rounds):
            items = [*JPEGS, JPEGS[i % 8][:500]]
            decoder.decode_images(items, Image(size=64), [None] * 9)
            decoder.decode_videos([CLIPS["vp9"][0]], [CLIPS["vp9"][1]], Video(num_frames=4, size=32), [None])

    work(15)
    before = resident()
    work(45)
    assert resident() - before < 25_000_000


# clips


@settings(max_examples=12)
@given(
    codec=st.sampled_from(sorted(CLIPS)),
    frames=st.sampled_from([1, 4, 30, None]),
    sampling=st.sampled_from(["uniform", "random", "contiguous", "segments"]),
    size=st.sampled_from([None, 32, (24, 56)]),
    layout=st.sampled_from(["TCHW", "CTHW", "THWC"]),
    sample=st.integers(0, 9),
)
def test_both_engines_give_the_same_frames_and_boxes(decoder, codec, frames, sampling, size, layout, sample):
    crop = "center" if size is None else "random_resized"
    transform = Video(num_frames=frames, sampling=sampling, size=size, crop=crop, flip=0.5, layout=layout)
    data, info = CLIPS[codec]
    draw = Draw(0, 0, sample, "frames")
    [ours] = decoder.decode_videos([data], [info], transform, [draw])
    mean, most = difference(ours, cpu.decode(data, info, transform, draw=draw))
    assert mean <= 2 and most <= 32


def test_clips_of_several_sizes_codecs_and_lengths_in_one_batch(decoder):
    clips = [*CLIPS.values(), clip("vp9", 9, 128, 96, seed=3), clip("libx264", 6, seed=4)]
    items, infos = [c[0] for c in clips], [c[1] for c in clips]
    assert [decoder.takes_video(d, i) for d, i in clips] == [True, True, True, True, False]
    transform = Video(num_frames=5, size=32)
    out = decoder.empty((5, 5, 3, 32, 32))
    decoder.decode_videos(items, infos, transform, [None] * 5, out)
    for data, info, ours in zip(items, infos, out, strict=True):
        mean, most = difference(ours, cpu.decode(data, info, transform))
        assert mean <= 2 and most <= 32


def test_sample_clips_agree_with_pyav(decoder, sample_data):
    compared = 0
    for path in sorted((sample_data / "videos" / "good").iterdir()):
        if path.suffix not in (".webm", ".AVI"):
            continue
        item = encode(ColumnType("VIDEO"), path, where=path.name)
        if decoder.takes_video(item.data, item.info):
            transform = Video(num_frames=3, size=112)
            [ours] = decoder.decode_videos([item.data], [item.info], transform, [None])
            mean, most = difference(ours, cpu.decode(item.data, item.info, transform))
            assert mean <= 2 and most <= 32, path.name
            compared += 1
    assert compared >= 5


@pytest.mark.parametrize("codec", ["vp8", "vp9"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_clip_is_an_error_and_never_a_made_up_frame(decoder, codec, share):
    data, info = CLIPS[codec]
    cut = data[: int(len(data) * share)]
    wanted = Video(frame_indices=(0, 19))
    good, bad, last = decoder.decode_videos([data, cut, data], [info] * 3, wanted, [None] * 3)
    assert info.num_frames == 20 and isinstance(bad, DecodeError) and torch.equal(good, last)
    assert difference(good, cpu.decode(data, info, wanted))[0] <= 2


@pytest.mark.parametrize("codec", sorted(CLIPS))
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_clip_inserted_truncated_is_refused_or_shows_the_frames_it_has(decoder, codec, share):
    data = CLIPS[codec][0][: int(len(CLIPS[codec][0]) * share)]
    try:
        info = encode(ColumnType("VIDEO"), data, where="test").info
    except MediaError:
        return
    whole = decoder.decode_videos([data], [info], Video(), [None])[0]
    assert 0 < info.num_frames < 20
    try:
        expected = cpu.decode(data, info, Video())
    except DecodeError as error:
        assert str(whole) == str(error)
    else:
        mean, most = difference(whole, expected)
        assert mean <= 2 and most <= 32


def test_a_clip_whose_frames_dali_numbers_otherwise_is_the_cpu_engines(decoder):
    data, info = CLIPS["vp9"]
    short = dataclasses.replace(info, num_frames=12, keyframes=None)  # as if eight were left out by an edit list
    transform = Video(num_frames=4)
    [ours] = decoder.decode_videos([data], [short], transform, [None])
    assert np.array_equal(ours.numpy(), cpu.decode(data, short, transform))


def test_a_frame_past_the_end_is_refused_as_by_the_cpu_engine(decoder):
    data, info = CLIPS["vp8"]
    good, bad = decoder.decode_videos([data] * 2, [info] * 2, Video(frame_indices=(20,)), [None] * 2)
    assert isinstance(good, DecodeError) and "20 frames" in str(bad)


def test_a_clip_too_large_to_hold_whole_is_the_cpu_engines(decoder, monkeypatch):
    data, info = CLIPS["vp9"]
    monkeypatch.setattr(dali, "MAX_ITEM_BYTES", 3 * 96 * 64 * 20)  # 19 frames and the one past the end
    few, all_ = Video(frame_indices=tuple(range(19))), Video()
    for transform, equal in ((few, False), (all_, True)):
        [ours] = decoder.decode_videos([data], [info], transform, [None])
        assert np.array_equal(ours.numpy(), cpu.decode(data, info, transform)) is equal


def test_black_frames_of_a_clip_are_not_mistaken_for_missing_ones(decoder):
    file = io.BytesIO()
    with av.open(file, "w", format="webm") as out:
        stream = out.add_stream("libvpx-vp9", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(6):
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    item = encode(ColumnType("VIDEO"), file.getvalue(), where="test")
    [ours] = decoder.decode_videos([item.data], [item.info], Video(num_frames=6), [None])
    assert not isinstance(ours, DecodeError) and ours.max() <= 2


# chips


def facts(codec: str, pixel_format: str = "yuv420p", width: int = 1280, height: int = 720) -> MediaInfo:
    return MediaInfo("video", codec=codec, pixel_format=pixel_format, width=width, height=height, num_frames=9)


@pytest.mark.parametrize(
    ("chip", "capability", "av1", "high10", "main10"),
    [
        ("Pascal", (6, 1), False, False, False),
        ("Volta", (7, 0), False, False, True),
        ("Turing", (7, 5), False, False, True),
        ("GA100", (8, 0), False, False, True),
        ("GA10x", (8, 6), True, False, True),
        ("Ada", (8, 9), True, False, True),
        ("Hopper", (9, 0), False, False, True),
        ("Blackwell", (10, 0), True, True, True),
        ("Blackwell GeForce", (12, 0), True, True, True),
    ],
)
def test_what_a_chip_decodes(chip, capability, av1, high10, main10):
    assert nvdec.decodes(capability, facts("av1")) is av1
    assert nvdec.decodes(capability, facts("h264", "yuv420p10le")) is high10
    assert nvdec.decodes(capability, facts("hevc", "yuv420p10le")) is main10
    assert nvdec.decodes(capability, facts("h264")) is (capability >= (7, 0))
    never = [("h264", "yuv422p"), ("hevc", "yuv444p"), ("vp9", "yuva420p"), ("h264", "gray"), ("prores", "yuv422p10le")]
    for info in [*(facts(*each) for each in never), facts("h264", width=161), MediaInfo("video", codec="h264")]:
        assert not nvdec.decodes(capability, info), info


class Recorder(dali._Host):
    """Stands for a CUDA device: decodes on the CPU, and writes down what is done on its stream."""

    def __init__(self, index: int = 0) -> None:
        self.index, self.capability, self.inside, self.finished = index, (9, 0), 0, 0
        self.watched: list[weakref.ref] = []

    @contextmanager
    def scope(self):
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def finish(self) -> None:
        assert self.inside and all(memory() is not None for memory in self.watched)
        self.watched.clear()
        self.finished += 1


@pytest.fixture
def chip(monkeypatch) -> tuple[DaliDecoder, Recorder]:
    monkeypatch.setattr(dali, "_Cuda", Recorder)
    made = DaliDecoder("gpu", 0, num_threads=1)
    return made, made._place


def test_copies_out_of_dalis_memory_have_ended_before_it_is_let_go(chip, monkeypatch):
    made, place = chip
    real = dali._tensors
    pointers = set()

    def watched(batch):
        place.watched.append(weakref.ref(batch))
        found = real(batch)
        pointers.update(t.data_ptr() for t in found)
        return found

    monkeypatch.setattr(dali, "_tensors", watched)
    found = made.decode_images(JPEGS, Image(size=32), [None] * 8)
    assert place.finished == 1 and not place.inside
    assert not pointers & {t.data_ptr() for t in found}
    monkeypatch.setattr(nvdec, "decodes", lambda capability, info: True)
    out = made.empty((2, 4, 3, 32, 32))
    data, info = CLIPS["vp9"]
    made.decode_videos([data, data], [info, info], Video(num_frames=4, size=32), [None] * 2, out)
    assert place.finished == 2 and difference(out[1], cpu.decode(data, info, Video(num_frames=4, size=32)))[0] <= 2


def test_a_hopper_leaves_av1_odd_sizes_turned_clips_and_frames_without_times_to_the_cpu(chip):
    made, _ = chip
    timed = dataclasses.replace(CLIPS["vp9"][1], codec="h264")
    assert made.takes_video(b"", timed)
    for change in ({"codec": "av1"}, {"gops": None}, {"width": 161}, {"rotation": 90}, {"num_frames": None}):
        assert not made.takes_video(b"", dataclasses.replace(timed, **change)), change


def test_a_clip_with_frames_before_its_zero_is_the_cpu_engines(decoder):
    data, info = CLIPS["vp9"]
    table = unpack(info.gops)
    early = pack(dataclasses.replace(table, times=table.times - 100))
    assert decoder.takes_video(data, info)
    assert not decoder.takes_video(data, dataclasses.replace(info, gops=early))


def test_a_clip_by_time_has_the_same_frames(decoder):
    data, info = CLIPS["vp8"]
    transform = Video(fps=5, start=0.4, end=1.6, size=32)
    [ours] = decoder.decode_videos([data], [info], transform, [None])
    assert ours.shape[0] == 6 and difference(ours, cpu.decode(data, info, transform))[0] <= 2


# choosing


def test_auto_is_the_cpu_engine_on_a_cpu_and_dali_only_where_asked(fresh_engine):
    assert engine.choose_engine(torch.device("cpu")) is None
    assert engine.choose_engine(torch.device("cuda"), "cpu") is None
    first = engine.choose_engine(torch.device("cpu"), "dali")
    assert first is not None and engine.choose_engine(torch.device("cpu"), "dali") is first


def test_without_dali_auto_says_once_that_it_decodes_on_the_cpu(fresh_engine, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "nvidia.dali.experimental.dynamic", None)
    with caplog.at_level(logging.WARNING, "deeplake_loader.decode"):
        assert engine.choose_engine(torch.device("cuda", 0)) is None
        assert engine.choose_engine(torch.device("cuda", 0)) is None
    assert len(caplog.records) == 1
    assert "decoded on the CPU and copied" in caplog.text and "deeplake-loader[dali]" in caplog.text
    with pytest.raises(InputError, match=r"deeplake-loader\[dali\]"):
        engine.choose_engine(torch.device("cpu"), "dali")


def test_a_driver_that_dali_cannot_use_is_said_and_worked_around(fresh_engine, monkeypatch, caplog):
    class TooOld(Recorder):
        def context(self, dynamic, num_threads):
            raise RuntimeError("CUDA driver version is insufficient for CUDA runtime version")

    monkeypatch.setattr(dali, "_Cuda", TooOld)
    with caplog.at_level(logging.WARNING, "deeplake_loader.decode"):
        assert engine.choose_engine(torch.device("cuda", 0)) is None
    assert "driver version is insufficient" in caplog.text
    with pytest.raises(InputError, match="driver version is insufficient"):
        engine.choose_engine(torch.device("cuda", 0), "dali")


def run(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints, within a minute."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_using_dali_after_a_fork_raises_at_once():
    code = """
import io, os, sys, numpy, torch
from PIL import Image as Pillow
from torch.utils.data import DataLoader, IterableDataset
from deeplake_loader.decode import engine
from deeplake_loader.decode.transforms import Image
from deeplake_loader.errors import InputError

file = io.BytesIO()
Pillow.new("RGB", (32, 32)).save(file, "JPEG")

class Pixels(IterableDataset):
    def __iter__(self):
        try:
            made = engine.choose_engine(torch.device("cpu"), "dali")
            yield made.decode_images([file.getvalue()], Image(), [None])[0].shape
        except InputError as error:
            yield str(error)

loader = DataLoader(Pixels(), batch_size=None, num_workers=1, multiprocessing_context="fork")
print("worker:", next(iter(loader)), flush=True)
made = engine.choose_engine(torch.device("cpu"), "dali")
made.decode_images([file.getvalue()], Image(), [None])
child = os.fork()
if not child:
    for attempt in (lambda: made.decode_images([file.getvalue()], Image(), [None]),
                    lambda: engine.choose_engine(torch.device("cpu"), "dali")):
        try:
            attempt()
        except InputError as error:
            print("child:", error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print("parent:", made.decode_images([file.getvalue()], Image(), [None])[0].shape)
"""
    lines = run(code).splitlines()
    assert [line.split(":")[0] for line in lines] == ["worker", "child", "child", "parent"]
    assert all("'spawn' or 'forkserver'" in line for line in lines[:3])
    assert "torch.Size([3, 32, 32])" in lines[3]


# streams


@pytest.fixture
def photos(tmp_path) -> deeplake.Database:
    """24 photos, every fifth a PNG, and a clip to each; keys from 100 on."""
    with deeplake.connect(tmp_path / "store") as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, photo IMAGE, clip VIDEO)")
        clips = [*CLIPS.values(), clip("libx264", 8)]
        rows = [
            {"id": 100 + i, "photo": saved(photo(i), "PNG" if i % 5 == 4 else "JPEG"), "clip": clips[i % 4][0]}
            for i in range(24)
        ]
        db.insert("t", rows)
        yield db


TRANSFORMS = {
    "photo": Image(size=64, crop="random_resized", flip=0.5),
    "clip": Video(num_frames=4, size=(32, 48), crop="random_resized", flip=0.5, sampling="segments"),
}


def batches(db: deeplake.Database, **options: object) -> list[dict]:
    options = {"batch_size": 7, "shuffle": True, "seed": 3, "transforms": TRANSFORMS, "num_threads": 2, **options}
    return list(db.stream("SELECT id, photo, clip FROM t", **options))


def test_a_stream_gives_the_same_batches_from_either_engine(photos):
    for ours, theirs in zip(batches(photos, engine="dali"), batches(photos), strict=True):
        assert ours["id"].tolist() == theirs["id"].tolist() and ours["_cursor"] == theirs["_cursor"]
        for name, allowed in (("photo", 0.3), ("clip", 2)):
            assert difference(ours[name], theirs[name].numpy())[0] <= allowed
        png = ours["id"] % 5 == 4
        assert torch.equal(ours["photo"][png], theirs["photo"][png])


def test_floats_of_a_stream_are_made_of_dalis_bytes(photos):
    photo = dataclasses.replace(TRANSFORMS["photo"], dtype="float32", normalize=((0.5,), (0.25,)))
    for ours, plain in zip(
        batches(photos, engine="dali", transforms={**TRANSFORMS, "photo": photo}), batches(photos, engine="dali"),
        strict=True,
    ):  # fmt: skip
        expected = (plain["photo"].float() / 255 - 0.5) / 0.25
        assert ours["photo"].dtype == torch.float32 and torch.allclose(ours["photo"], expected, atol=1e-5)
        assert torch.equal(ours["clip"], plain["clip"])


def test_a_function_may_give_the_value_of_a_bad_sample(photos):
    photos.insert("t", [{"id": 99, "photo": DAMAGED["stub"], "clip": None}], validate="none")
    grey = torch.full((3, 64, 64), 0.25)
    transform = Image(size=64, dtype="float32")
    stream = photos.stream(
        "SELECT photo FROM t ORDER BY id", batch_size=5, transforms={"photo": transform}, engine="dali",
        on_error=lambda sample: grey,
    )  # fmt: skip
    assert torch.equal(next(iter(stream))["photo"][0], grey)


def test_what_a_stream_does_with_dalis_results_has_ended_before_they_are_handed_on(photos, fresh_engine, monkeypatch):
    monkeypatch.setattr(dali, "_Host", Recorder)
    transforms = {"photo": dataclasses.replace(TRANSFORMS["photo"], dtype="float32")}
    stream = photos.stream("SELECT photo FROM t", batch_size=8, transforms=transforms, engine="dali", prefetch=0)
    place = engine.choose_engine(torch.device("cpu"), "dali")._place
    done = []
    for batch in stream:
        assert batch["photo"].dtype == torch.float32
        done.append((place.finished, place.inside))
    assert done == [(2, 0), (4, 0), (6, 0)]  # after DALI's copies, and after the floats were made


def test_functions_of_the_user_see_batches_on_the_host(photos):
    query, chosen = "SELECT photo FROM t", {"photo": Image(size=64)}
    stream = photos.stream(query, batch_size=8, transforms=chosen).map(lambda batch: batch)
    cuda = dataclasses.replace(stream._options, device=torch.device("cuda"))
    mover = types.SimpleNamespace(device=torch.device("cuda", 0))
    assert passes._decoder(stream._sources, cuda, mover) is None
    with pytest.raises(InputError, match="engine='auto'"):
        passes._decoder(stream._sources, dataclasses.replace(cuda, engine="dali"), mover)


def test_whole_batches_are_decoded_on_one_thread_of_their_own(photos, monkeypatch):
    seen = set()
    real = DaliDecoder.decode_images

    def noted(self, items, *rest):
        seen.add((threading.current_thread().name, len(items)))
        return real(self, items, *rest)

    monkeypatch.setattr(DaliDecoder, "decode_images", noted)
    batches(photos, engine="dali")
    assert {name for name, _ in seen} == {"deeplake-whole"} and max(count for _, count in seen) >= 5
    assert not any(thread.name == "deeplake-whole" for thread in threading.enumerate())
    batches(photos)
    assert len({name for name, _ in seen}) == 1


@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_a_bad_sample_of_a_stream_costs_no_other(photos, policy):
    photos.insert("t", [{"id": 99, "photo": DAMAGED["huffman table broken"], "clip": None}], validate="none")
    options = {"batch_size": 25, "transforms": {"photo": Image(size=64)}, "on_error": policy}
    query = "SELECT id, photo FROM t ORDER BY id"
    [ours], [theirs] = (list(photos.stream(query, engine=e, **options)) for e in ("dali", "cpu"))
    assert ours["id"].tolist() == theirs["id"].tolist() and len(ours["_bad"]) == 1 == len(theirs["_bad"])
    assert difference(ours["photo"], theirs["photo"].numpy())[0] < 0.3
    with pytest.raises(DecodeError, match="'photo'"):
        list(photos.stream(query, batch_size=25, transforms={"photo": Image(size=64)}, engine="dali"))


def test_images_of_their_own_sizes_and_nullable_columns_are_the_cpu_engines(photos):
    for ours, theirs in zip(batches(photos, engine="dali", transforms={}), batches(photos, transforms={}), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours["photo"], theirs["photo"], strict=True))
    photos.insert("t", [{"id": 1, "photo": None, "clip": None}])
    found = batches(photos, engine="dali", batch_size=30)[0]["photo"]
    assert sum(value is None for value in found) == 1


def test_an_engine_of_another_name_is_refused(photos):
    with pytest.raises(InputError, match="auto, cpu, dali"):
        photos.stream("SELECT photo FROM t", batch_size=2, engine="gpu")


def test_dali_is_imported_only_where_it_is_asked_for(photos):
    code = """
import sys
import threading

class Blocked:
    asked = False

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[:2] == ["nvidia", "dali"]:
            self.asked = True
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

blocked = Blocked()
sys.meta_path.insert(0, blocked)
import deeplake_loader as deeplake
import deeplake_loader.decode.dali
db = deeplake.connect(sys.argv[1])
stream = db.stream("SELECT photo FROM t", batch_size=8, transforms={"photo": deeplake.Image(size=32)})
print(sum(len(batch["photo"]) for batch in stream), blocked.asked)
try:
    next(iter(db.stream("SELECT photo FROM t", batch_size=8, engine="dali")))
except deeplake.errors.InputError as error:
    print(error)
"""
    count, message = run(code, photos.root).splitlines()
    assert count == "24 False" and "deeplake-loader[dali]" in message


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_dataloader_decode_by_dali_if_they_are_spawned(photos, method):
    stream = photos.stream(
        "SELECT id, photo FROM t", batch_size=8, transforms={"photo": TRANSFORMS["photo"]}, engine="dali"
    )
    loader = torch.utils.data.DataLoader(
        stream, batch_size=None, num_workers=1, multiprocessing_context=method, timeout=300
    )
    if method == "fork":
        with pytest.raises(InputError, match="'spawn' or 'forkserver'"):
            next(iter(loader))
    else:
        assert next(iter(loader))["photo"].shape == (8, 3, 64, 64)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_checks_of_a_gpu_hold():
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_media.py", "--device", "gpu"],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
