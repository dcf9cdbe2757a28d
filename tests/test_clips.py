"""Which frames a clip takes, how frames are encoded, and the bulk jobs: transcoding, clips, shots."""

from __future__ import annotations

import io
import wave
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import deeplake_loader as deeplake
from deeplake_loader.clips import even_spans, find_shots
from deeplake_loader.codecs import encode
from deeplake_loader.codecs.gops import unpack
from deeplake_loader.decode import cpu
from deeplake_loader.decode.sampling import places
from deeplake_loader.decode.transforms import Audio, Draw, Video
from deeplake_loader.errors import DecodeError, DimensionError, InputError, MediaError
from deeplake_loader.types import ColumnType


def moving(frames: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Slow gradients, which every codec keeps nearly as they are; the mean brightness tells the frame."""
    y, x = np.mgrid[0:height, 0:width]
    grey = (x + y)[None] * 0.3 + 20 + 4 * np.arange(frames)[:, None, None]
    return np.repeat(grey[..., None], 3, axis=3).clip(0, 255).astype(np.uint8)


def stored(kind: str, value: object):
    return encode(ColumnType.parse(kind), value, where="x")


def shifted(ticks: list[int], base: Fraction = Fraction(1, 1000), format: str = "mp4") -> bytes:
    """A file whose frame i is shown at ticks[i]."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base = base
        for tick, pixels in zip(ticks, moving(len(ticks)), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = tick, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


@given(st.integers(1, 80), st.integers(1, 90), st.integers(0, 20))
def test_segments_give_one_frame_of_each_part_and_random_gives_different_ones(count, wanted, sample):
    draw = Draw(0, 0, sample, "x").uniforms
    for sampling in ("segments", "random"):
        chosen = places(count, wanted, sampling, 1, draw)
        assert len(chosen) == wanted and chosen == sorted(chosen) and chosen[0] >= 0 and chosen[-1] < count
        if wanted <= count and sampling == "random":
            assert len(set(chosen)) == wanted
        if wanted <= count and sampling == "segments":
            assert all(i * count <= (n + 1) * wanted and n * wanted <= (i + 1) * count for i, n in enumerate(chosen))


def test_every_set_of_random_frames_comes_equally_often():
    found: dict[tuple[int, ...], int] = {}
    for sample in range(3000):
        key = tuple(places(5, 2, "random", 1, Draw(0, 0, sample, "x").uniforms))
        found[key] = found.get(key, 0) + 1
    assert len(found) == 10 and min(found.values()) > 230 and max(found.values()) < 370


def test_rates_are_picked_by_the_times_of_a_file_of_variable_rate():
    ticks = [0, 40, 50, 60, 400, 410, 800, 990]
    item = stored("VIDEO", shifted(ticks))
    assert item.info.num_frames == 8
    out = cpu.decode(item.data, item.info, Video(fps=10, end=0.95))
    shown = [max(i for i, t in enumerate(ticks) if t <= moment * 100) for moment in range(10)][: len(out)]
    expected = cpu.decode(item.data, item.info, Video(frame_indices=tuple(shown)))
    assert np.array_equal(out, expected) and len(out) in (9, 10)
    part = cpu.decode(item.data, item.info, Video(start=0.05, end=0.41))
    assert np.array_equal(part, cpu.decode(item.data, item.info, Video(frame_indices=(2, 3, 4))))
    assert len(cpu.decode(item.data, item.info, Video(start=0.1, end=0.2))) == 1


def test_durations_are_drawn_parts_of_a_length_known_beforehand():
    item = stored("VIDEO(fps=10)", moving(40))
    transform = Video(fps=5, duration=1.0)
    assert cpu.output(None, Video(fps=5, duration=1.0, size=8)) == ("uint8", (5, 3, 8, 8))
    middle = cpu.decode(item.data, item.info, transform)
    assert np.array_equal(middle, cpu.decode(item.data, item.info, Video(frame_indices=(15, 17, 19, 21, 23))))
    starts = {cpu.decode(item.data, item.info, transform, draw=Draw(0, 0, i, "x"))[0].mean() for i in range(12)}
    assert len(starts) > 6
    short = cpu.decode(item.data, item.info, Video(fps=5, duration=10.0))
    assert len(short) == 50 and np.array_equal(short[-1], short[25])


def test_too_few_frames_are_repeated_or_an_error():
    item = stored("VIDEO(fps=10)", moving(5))
    assert len(cpu.decode(item.data, item.info, Video(num_frames=9))) == 9
    for transform in (
        Video(num_frames=6, pad="error"), Video(num_frames=3, stride=3, sampling="contiguous", pad="error"),
        Video(fps=10, duration=2, pad="error"),
    ):  # fmt: skip
        with pytest.raises(DecodeError, match="frames were asked of a clip that gives"):
            cpu.decode(item.data, item.info, transform)
    assert len(cpu.decode(item.data, item.info, Video(num_frames=5, pad="error"))) == 5
    with pytest.raises(DecodeError, match="part from 9 s"):
        cpu.decode(item.data, item.info, Video(start=9.0))


@pytest.mark.parametrize(
    "options",
    [
        {"fps": 0}, {"duration": -1}, {"start": -1}, {"start": True}, {"start": 2, "end": 1}, {"pad": "black"},
        {"stream": -1}, {"timeout_s": 0}, {"sampling": "all"}, {"fps": 2, "frame_indices": (1,)}, {"start": ""},
    ],
)  # fmt: skip
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(InputError):
        Video(**options)


def test_decoding_ends_at_its_time_limit():
    item = stored("VIDEO", moving(30))
    with pytest.raises(DecodeError, match="longer than 1e-09 s"):
        cpu.decode(item.data, item.info, Video(timeout_s=1e-9))
    sound = stored("AUDIO(sample_rate=8000)", np.zeros(8000, "f4"))
    with pytest.raises(DecodeError, match="longer"):
        cpu.decode(sound.data, sound.info, Audio(timeout_s=1e-9))


def test_sound_is_cut_by_seconds():
    sound = np.arange(16000, dtype="f4")[None] / 16000
    item = stored("AUDIO(sample_rate=8000)", sound)
    assert np.array_equal(cpu.decode(item.data, item.info, Audio(start=0.5, end=1.0)), sound[:, 4000:8000])
    assert np.array_equal(cpu.decode(item.data, item.info, Audio(start=0.5, duration=0.5)), sound[:, 8000:12000])
    with pytest.raises(DecodeError, match="part from 3 s"):
        cpu.decode(item.data, item.info, Audio(start=3.0))


@pytest.mark.parametrize(("space", "full"), [("ITU709", False), ("ITU709", True), ("ITU601", False), ("ITU601", True)])
def test_colours_are_what_the_tags_say(space, full):
    from av.video.reformatter import ColorRange, Colorspace

    file = io.BytesIO()
    colours = np.array([[200, 30, 40], [20, 180, 60], [40, 60, 210], [255, 255, 255], [0, 0, 0]], np.uint8)
    pixels = np.repeat(np.repeat(colours[None], 32, axis=0), 32, axis=1)
    reach = ColorRange.JPEG if full else ColorRange.MPEG
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = pixels.shape[0], pixels.shape[1], "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = 1 if space == "ITU709" else 6, reach
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame = frame.reformat(format="yuv444p", dst_colorspace=Colorspace[space], dst_color_range=reach)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    item = stored("VIDEO", file.getvalue())
    back = cpu.decode(item.data, item.info, Video(layout="THWC"))[0]
    assert np.abs(back.astype(int) - pixels).max() <= 3


def test_the_stream_asked_for_is_the_one_decoded():
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        streams = [container.add_stream("ffv1", rate=10) for _ in range(2)]
        for stream, side in zip(streams, (32, 48), strict=True):
            stream.width = stream.height = side
            stream.pix_fmt = "bgr0"
        for stream, level in zip(streams, (50, 200), strict=True):
            pixels = np.full((stream.height, stream.width, 3), level, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="bgr0")
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    item = stored("VIDEO", file.getvalue())
    for number, (side, level) in enumerate([(32, 50), (48, 200)]):
        out = cpu.decode(item.data, item.info, Video(stream=number))
        assert out.shape == (1, 3, side, side) and (out == level).all()
    with pytest.raises(DecodeError, match="holds 2 video streams"):
        cpu.decode(item.data, item.info, Video(stream=2))


LOWEST = {"h264": 40, "hevc": 40, "vp9": 38, "av1": 38}
"""PSNR in dB of slow gradients at each codec's default quality; 4:2:0 colour and rounding cost the most."""


@pytest.mark.parametrize("codec", [*LOWEST, "ffv1"])
@pytest.mark.parametrize("gop", [1, 8])
def test_frames_of_every_codec_come_back(codec, gop):
    frames = moving(16)
    item = stored(f"VIDEO(codec='{codec}', gop={gop}, fps='30000/1001')", frames)
    assert (item.info.codec, item.info.num_frames) == (codec, 16) and item.info.fps == pytest.approx(29.97, abs=0.01)
    keys = item.info.keyframes
    assert keys == tuple(range(16)) if gop == 1 else keys[0] == 0 and max(b - a for a, b in pairwise((*keys, 16))) <= 8
    out = cpu.decode(item.data, item.info, Video(layout="THWC")).astype(float)
    error = ((out - frames) ** 2).mean()
    if codec == "ffv1":
        assert error == 0
    else:
        assert 10 * np.log10(255**2 / error) > LOWEST[codec]


def test_ffv1_keeps_noise_of_odd_size_exactly():
    frames = np.random.default_rng(0).integers(0, 256, (3, 45, 63, 3), np.uint8)
    item = stored("VIDEO(codec='ffv1')", frames)
    assert np.array_equal(cpu.decode(item.data, item.info, Video(layout="THWC")), frames)


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("VIDEO(codec='prores')", "h264, hevc, vp9, av1, ffv1"), ("VIDEO(pixel_format='abc')", "libx264 writes"),
        ("VIDEO(crf=60)", "crf 60"), ("VIDEO(fps=0)", "fps"), ("VIDEO(fps='x')", "no number"),
        ("VIDEO(quality=3)", "no option quality"), ("VIDEO(codec='ffv1', preset='slow')", "has none"),
    ],
)  # fmt: skip
def test_encoding_options_that_cannot_be_had_name_those_that_can(kind, match):
    with pytest.raises(InputError, match=match):
        stored(kind, moving(2))


@pytest.fixture
def db(tmp_path):
    with deeplake.connect(tmp_path) as handle:
        handle.execute("CREATE TABLE films (id BIGINT PRIMARY KEY, film VIDEO(fps=10))")
        handle.insert("films", {"film": [moving(20), shifted([0, 40, 50, 400, 800]), None, moving(12, 48, 64)]})
        yield handle


def test_a_column_is_transcoded_and_a_second_call_does_what_is_left(db):
    done = db.transcode("films", "film", "small", size=32, progress=False, where="id < :n", params={"n": 3})
    assert (done.rows, done.bad) == (2, ())
    commits = len(db.log())
    assert db.transcode("films", "film", "small", size=32, progress=False).rows == 1
    assert len(db.log()) == commits + 1
    assert db.transcode("films", "film", "small", size=32, progress=False).rows == 0
    for row in db.execute("SELECT film, small FROM films WHERE film IS NOT NULL"):
        old, new = row.film.info, row.small.info
        assert min(new.width, new.height) == 32 and new.num_frames == old.num_frames == len(new.keyframes)
        assert unpack(new.gops).seconds == pytest.approx(unpack(old.gops).seconds, abs=0.002)
        wide = row.film.decode(Video(size=(new.height, new.width), crop="none")).float()
        assert (wide - row.small.decode().float()).abs().mean() < 4
    assert db.execute("SELECT small FROM films WHERE id = 3").scalar() is None


def test_transcoding_keeps_variable_times_or_makes_an_even_rate(db):
    db.transcode("films", "film", "same", gop=4, progress=False)
    db.transcode("films", "film", "even", fps=5, codec="ffv1", progress=False)
    same, even, old = db.execute("SELECT same, even, film FROM films WHERE id = 2").fetchone()
    for moment in (0.0, 0.045, 0.39, 0.41, 0.79):
        transform = Video(fps=1, start=moment, end=moment + 0.001)
        assert (same.decode(transform).float() - old.decode(transform).float()).abs().mean() < 3
    assert even.info.fps == pytest.approx(5) and even.info.num_frames == old.decode(Video(fps=5)).shape[0]
    assert (even.decode() == old.decode(Video(fps=5))).all()


def test_a_bad_row_is_told_and_the_others_are_done(db):
    data = db.execute("SELECT film FROM films WHERE id = 1").scalar().bytes()
    place = data.index(b"mdat") + 400
    broken = data[:place] + bytes(len(data[place : place + 3000])) + data[place + 3000 :]
    db.insert("films", {"id": [9], "film": [broken]}, validate="none")
    done = db.transcode("films", "film", "small", progress=False)
    assert done.rows == 3 and [bad.key for bad in done.bad] == [(9,)]
    assert isinstance(done.bad[0].error, deeplake.errors.DeeplakeError)
    for arguments, match in (
        (("films", "id", "x"), "takes a VIDEO"), (("none", "film", "x"), "no table"), (("films", "a", "x"), "columns"),
    ):  # fmt: skip
        with pytest.raises((InputError, deeplake.errors.NotFoundError), match=match):
            db.transcode(*arguments, progress=False)
    with pytest.raises(InputError, match="av1, ffv1"):
        db.transcode("films", "film", "y", codec="prores", progress=False)
    assert "y" not in [c.name for c in db.tables()["films"].columns]


def test_the_condition_of_a_job_is_one_and_may_end_in_a_comment(db):
    for job in (db.transcode, db.clips):
        with pytest.raises(InputError, match="closes a parenthesis"):
            job("films", "film", into="more", where="id = 1) OR (1 = 1")
    assert "more" not in db.tables() and db.tables()["films"].column("more") is None
    assert db.transcode("films", "film", into="more", where="id = 1 -- the first", progress=False).rows == 1
    assert db.clips("films", "film", into="parts", seconds=1, where="id = 1 -- the first").rows == 2


def test_jobs_write_into_a_place_of_their_own(db):
    with pytest.raises(InputError, match="into='Film' is the column itself"):
        db.transcode("films", "film", into="Film", progress=False)
    with pytest.raises(InputError, match="'films' is there and has no column 'source_id'"):
        db.clips("films", "film", into="films", seconds=1)


@given(st.floats(0.05, 500), st.floats(0.1, 60))
def test_even_spans_cover_a_clip_without_gaps(length, seconds):
    spans = list(even_spans(length, seconds))
    assert spans[0][0] == 0 and spans[-1][1] == length
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert all(b - a <= 1.5 * seconds + 1e-6 for a, b in spans) and all(a < b for a, b in spans)


def test_shots_are_cut_where_the_colours_change_at_once(db):
    scenes = [np.full((12, 64, 96, 3), colour, np.uint8) for colour in ((200, 20, 20), (20, 200, 20), (30, 30, 220))]
    db.insert("films", {"id": [20], "film": [np.concatenate(scenes)]})
    film = db.execute("SELECT film FROM films WHERE id = 20").scalar()
    assert np.allclose(find_shots(film), [(0.0, 1.2), (1.2, 2.4), (2.4, 3.6)])
    assert find_shots(db.execute("SELECT film FROM films WHERE id = 1").scalar()) == [(0.0, pytest.approx(2.0))]
    before = db.execute("SELECT count(*) FROM films").scalar()
    assert db.clips("films", "film", "shots", shots=True, where="id = 20").rows == 3
    rows = db.execute("SELECT source_id, clip_start, clip_end, film FROM shots ORDER BY clip_start").fetchall()
    assert [r.source_id for r in rows] == [20] * 3 and all(r.film == film for r in rows)
    assert db.execute("SELECT count(*) FROM films").scalar() == before
    for options in ({"seconds": 0}, {"shots": 2.0}, {"shots": "yes"}):
        with pytest.raises(InputError):
            db.clips("films", "film", "other", **options)


def test_frames_that_are_not_there_are_asked_of_no_clip():
    with pytest.raises(DimensionError, match="does not tell when"):
        Video(fps=2).frame_numbers(10, None)


def test_frames_that_an_edit_list_leaves_out_are_not_taken_for_a_cut_file():
    """What a trimmed recording is: all its frames in the file, of which a player shows those from 0 on."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        track = container.add_stream("libx264", rate=30)
        track.width, track.height, track.pix_fmt = 96, 64, "yuv420p"
        track.options = {"g": "5", "bf": "0"}
        for pts, pixels in zip(range(-20, 10), moving(30), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, 30)
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    data = file.getvalue()
    with av.open(io.BytesIO(data)) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].frames == 30 and len(shown) == 10
    item = stored("VIDEO", data)
    assert item.info.num_frames == 10
    assert np.array_equal(cpu.decode(data, item.info, Video(layout="THWC")), shown)
    last = Video(frame_indices=(9, 0), layout="THWC")
    assert np.array_equal(cpu.decode(data, item.info, last), [shown[9], shown[0]])


def test_a_file_that_lists_more_frames_than_it_holds_is_refused(tmp_path):
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        track = container.add_stream("libx264", rate=30)
        track.width, track.height, track.pix_fmt = 96, 64, "yuv420p"
        for pixels in moving(30):
            container.mux(track.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(track.encode(None))
    data = path.read_bytes()
    with pytest.raises(MediaError, match="cut short"):
        stored("VIDEO", data[: data.index(b"mdat") + 600])


def test_a_file_that_claims_to_last_for_ages_is_an_error_not_an_endless_list():
    data = shifted([0, 10**12 // 2, 10**12], Fraction(1, 30), format="matroska")
    item = stored("VIDEO", data)
    assert item.info.duration is not None and item.info.duration > 1e10
    with pytest.raises(DecodeError, match="the clip k cannot be decoded") as refused:
        cpu.decode(data, item.info, Video(fps=30, num_frames=4), key="the clip k")
    assert "more than the limit of 1048576 frames" in str(refused.value)
    assert cpu.decode(data, item.info, Video(num_frames=3, size=8)).shape == (3, 3, 8, 8)


def test_sound_of_a_false_rate_is_not_blown_up():
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(1)
        sound.writeframes(bytes(40_000))
    item = stored("AUDIO", file.getvalue())
    assert cpu.decode(item.data, item.info, Audio()).shape == (1, 20_000)
    with pytest.raises(DecodeError, match="at most 128 times as many"):
        cpu.decode(item.data, item.info, Audio(sample_rate=48_000))
