"""What goes into blob and vector columns: kept or encoded right, measured right, refused with a typed error."""

from __future__ import annotations

import array
import contextlib
import io
import json
import math
import os
import random
import struct
import subprocess
import sys
import wave
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deeplake_loader.codecs import (
    MediaInfo,
    audio,
    decode_tensor,
    encode,
    encode_many,
    encode_vector,
    encode_vectors,
    sources,
    tensor_to_torch,
    tensors,
    video,
)
from deeplake_loader.codecs.images import decode_rgb
from deeplake_loader.codecs.info import BadMedia
from deeplake_loader.errors import (
    CorruptionError,
    DimensionError,
    InputError,
    MediaError,
    NotFoundError,
    TypeMismatchError,
)
from deeplake_loader.types import ColumnType

WHERE = "column 'x' of 't', row 3"


def parse(text: str) -> ColumnType:
    return ColumnType.parse(text)


def picture(width: int = 61, height: int = 47, mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 4 % 256, y * 5 % 256, (x + y) * 3 % 256], -1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def clip(frames: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack(
        [np.stack([(x * 2 + 5 * i) % 200, y * 3 % 200, np.full_like(x, 10 * i)], -1) for i in range(frames)]
    ).astype(np.uint8)


# vectors


def test_a_vector_is_the_same_bytes_from_every_kind_of_value():
    kind = parse("VECTOR(4)")
    numbers = [0.5, -1.25, 3.0, 0.0]
    expected = np.array(numbers, "<f4").tobytes()
    values = [
        numbers, tuple(numbers), array.array("d", numbers), np.array(numbers), np.array(numbers, np.float16),
        np.array(numbers, ">f8"), torch.tensor(numbers), torch.tensor(numbers, dtype=torch.bfloat16),
        torch.tensor(numbers, requires_grad=True), "[0.5, -1.25, 3, 0]", [np.float32(v) for v in numbers],
    ]  # fmt: skip
    for value in values:
        assert encode_vector(kind, value, WHERE) == expected, type(value)
    assert encode_vector(parse("VECTOR(4, float16)"), numbers, WHERE) == np.array(numbers, "<f2").tobytes()


def test_a_list_of_floats_becomes_a_vector_without_numpy():
    code = (
        "import sys; from deeplake_loader.codecs import encode_vector, encode;"
        "from deeplake_loader.types import ColumnType;"
        "encode_vector(ColumnType.parse('VECTOR(2)'), [1.0, 2.0], 'w'); encode(ColumnType('BLOB'), b'', where='w');"
        "print([m for m in ('numpy', 'torch', 'PIL', 'av', 'simplejpeg') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_lists_and_arrays_agree_with_numpy(numbers):
    kind = parse(f"VECTOR({len(numbers)})")
    expected = np.array(numbers, "<f4").tobytes()
    assert encode_vector(kind, numbers, WHERE) == expected == encode_vector(kind, np.array(numbers), WHERE)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("make", [list, np.array, torch.tensor, lambda v: np.array(v, np.float16)])
def test_vectors_that_are_not_finite_are_refused_naming_the_place(bad, make):
    with pytest.raises(TypeMismatchError, match=r"row 3.*at index 1"):
        encode_vector(parse("VECTOR(3)"), make([1.0, bad, 2.0]), WHERE)


def test_vectors_that_overflow_their_dtype_are_refused():
    for kind, value in (("VECTOR(2)", 1e39), ("VECTOR(2, float16)", 70000.0)):
        for make in (list, np.array):
            with pytest.raises(TypeMismatchError, match="beyond"):
                encode_vector(parse(kind), make([1.0, value]), WHERE)
    large = [3e38] * 3  # their float32 sum overflows, they do not
    assert encode_vector(parse("VECTOR(3)"), np.array(large, "f4"), WHERE) == np.array(large, "<f4").tobytes()


@pytest.mark.parametrize(
    "value", [[1.0, 2.0], np.zeros(4), np.zeros((1, 3)), torch.zeros(2), "[1, 2]", [], np.float32(3)]
)
def test_vectors_of_another_length_are_refused(value):
    with pytest.raises((DimensionError, TypeMismatchError), match="row 3"):
        encode_vector(parse("VECTOR(3)"), value, WHERE)


@pytest.mark.parametrize(
    "value", [b"\0" * 12, "a, b, c", "{}", 5, None, ["a", "b", "c"], [1, None, 2], {1: 2}, np.array(["a", "b", "c"])]
)
def test_values_that_are_no_vector_are_refused(value):
    with pytest.raises(TypeMismatchError, match="expects VECTOR"):
        encode_vector(parse("VECTOR(3)"), value, WHERE)


def test_many_vectors_are_one_buffer_and_errors_name_the_row():
    kind, matrix = parse("VECTOR(5)"), np.random.default_rng(0).standard_normal((7, 5)).astype("<f4")
    assert bytes(encode_vectors(kind, matrix, WHERE)) == matrix.tobytes()
    view = encode_vectors(kind, matrix, WHERE)
    assert isinstance(view, memoryview) and np.shares_memory(np.frombuffer(view, "<f4"), matrix)
    assert bytes(encode_vectors(kind, matrix.astype("f8")[::-1], WHERE)) == matrix[::-1].tobytes()
    assert bytes(encode_vectors(kind, list(matrix), WHERE)) == matrix.tobytes()
    assert bytes(encode_vectors(kind, matrix.tolist(), WHERE)) == matrix.tobytes()
    assert bytes(encode_vectors(kind, torch.from_numpy(matrix), WHERE)) == matrix.tobytes()
    assert encode_vectors(kind, matrix[:0], WHERE) == encode_vectors(kind, [], WHERE) == b""
    damaged = matrix.copy()
    damaged[4, 2] = np.nan
    for values in (damaged, list(damaged), damaged.tolist()):
        with pytest.raises(TypeMismatchError, match="row 104"):
            encode_vectors(kind, values, "column 'x' of 't'", first_row=100)
    with pytest.raises(DimensionError):
        encode_vectors(kind, matrix[:, :4], WHERE)


# tensors


@pytest.mark.parametrize("dtype", [d for d in tensors._NAMES.values() if d != "bfloat16"])
@pytest.mark.parametrize("shape", [(), (3,), (0, 2), (2, 3, 4)])
def test_a_tensor_is_what_numpy_save_writes_and_comes_back_bit_exact(dtype, shape):
    source = np.frombuffer(np.random.default_rng(1).bytes(16 * max(1, math.prod(shape))), np.uint8)
    value = source[: np.dtype(dtype).itemsize * math.prod(shape)].copy()
    value = (value & 1 if dtype == "bool" else value).view(dtype).reshape(shape)
    file = io.BytesIO()
    np.save(file, value)
    stored = encode(parse("TENSOR"), value, where=WHERE)
    assert stored.data == file.getvalue() and stored.extension == "npy"
    assert (stored.info.dtype, stored.info.shape) == (dtype, shape)
    assert decode_tensor(stored.data).tobytes() == value.tobytes()
    assert tensor_to_torch(decode_tensor(stored.data)).numpy().tobytes() == value.tobytes()


def test_bfloat16_comes_back_bit_exact_and_numpy_reads_its_bytes():
    value = torch.randn(3, 5).to(torch.bfloat16)
    stored = encode(parse("TENSOR(bfloat16, 3, *)"), value.T.contiguous().T, where=WHERE)
    back = tensor_to_torch(decode_tensor(stored.data))
    assert back.dtype == torch.bfloat16 and torch.equal(back, value)
    assert np.load(io.BytesIO(stored.data)).tobytes() == value.view(torch.uint16).numpy().tobytes()


def test_strided_and_big_endian_tensors_keep_their_values():
    for value in (np.arange(12.0).reshape(3, 4).T, np.arange(6, dtype=">i4")[::2], torch.arange(12).view(3, 4)[:, ::2]):
        back = decode_tensor(encode(parse("TENSOR"), value, where=WHERE).data)
        assert np.array_equal(back, np.asarray(value)) and back.dtype == np.asarray(value).dtype.newbyteorder("=")


def test_tensors_of_another_dtype_or_shape_are_refused_naming_both():
    kind = parse("TENSOR(float16, 4, *, 64)")
    assert encode(kind, np.zeros((4, 9, 64), "f2"), where=WHERE).info.shape == (4, 9, 64)
    with pytest.raises(TypeMismatchError, match=r"row 3 expects TENSOR\(float16, 4, \*, 64\), got dtype float32"):
        encode(kind, np.zeros((4, 9, 64), "f4"), where=WHERE)
    for shape in ((4, 64), (5, 9, 64), (4, 9, 63)):
        with pytest.raises(DimensionError, match="got shape"):
            encode(kind, np.zeros(shape, "f2"), where=WHERE)
    for value in ([1, 2], 3.0, np.array(["a"]), np.array([object()]), torch.eye(3).to_sparse(), None):
        with pytest.raises(TypeMismatchError):
            encode(parse("TENSOR"), value, where=WHERE)


def test_npy_files_are_kept_and_pickled_or_cut_ones_refused(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    stored = encode(parse("TENSOR(float64, 2, 3)"), path, where=WHERE)
    assert stored.data == path.read_bytes()
    assert np.array_equal(decode_tensor(stored.data), np.load(path))
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    record = io.BytesIO()
    np.save(record, np.zeros(2, [("a", "f4"), ("b", "i4")]))
    huge = b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,), }".ljust(
        117
    )
    for data in (pickled.getvalue(), record.getvalue(), path.read_bytes()[:-1], b"PK\3\4", b"", huge + b"\n"):
        with pytest.raises(TypeMismatchError):
            encode(parse("TENSOR"), data, where=WHERE)
        with pytest.raises(CorruptionError):
            decode_tensor(data)


@settings(max_examples=200)
@given(st.binary(max_size=150))
def test_no_bytes_make_the_npy_reader_fail_in_its_own_way(tail):
    with pytest.raises(CorruptionError):
        decode_tensor(b"\x93NUMPY\x01\x00" + tail[:1] + b"\0" + tail)


# images


@pytest.mark.parametrize(
    ("format", "extension"),
    [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tif"),
     ("JPEG2000", "jp2"), ("AVIF", "avif")],
)  # fmt: skip
def test_image_files_are_kept_byte_for_byte_with_their_facts(format, extension, tmp_path):
    data = saved(picture(), format)
    path = tmp_path / "anything"
    path.write_bytes(data)
    for value in (data, bytearray(data), memoryview(data), path, str(path)):
        for validate in ("structure", "decode", "none"):
            stored = encode(parse("IMAGE"), value, validate=validate, where=WHERE)
            assert (stored.data, stored.extension) == (data, extension)
    assert encode(parse("IMAGE"), data, where=WHERE).info.width == 61


def refused(action: Callable[[], object], error: type[Exception]) -> str | None:
    try:
        action()
    except error as found:
        return str(found)
    return None


def test_validating_by_decoding_refuses_exactly_what_a_full_decode_refuses():
    noisy = Image.fromarray(np.random.default_rng(5).integers(0, 256, (40, 56, 3), np.uint8))
    files = [saved(noisy, "JPEG"), saved(noisy, "JPEG", progressive=True), saved(noisy.convert("CMYK"), "JPEG"),
             saved(noisy, "JPEG", restart_marker_blocks=3), saved(noisy.convert("L"), "JPEG")]  # fmt: skip
    chosen, kept = random.Random(2), 0
    for turn in range(400):
        data = bytearray(files[turn % len(files)])
        place = chosen.randrange(3, len(data))
        if turn % 4 == 0:
            data[place] ^= 1 << chosen.randrange(8)
        elif turn % 4 == 1:
            del data[place : place + chosen.randrange(1, 40)]
        elif turn % 4 == 2:
            data[place : place + 20] = chosen.randbytes(20)
        else:
            data[place:] = b"\xff\xd9"
        full = refused(lambda data=bytes(data): decode_rgb(data, "jpg"), BadMedia)
        quick = refused(lambda data=bytes(data): encode(parse("IMAGE"), data, validate="decode", where=""), MediaError)
        assert (quick or "").endswith(full or "") and (quick is None) == (full is None)
        kept += full is None
    assert 40 < kept < 360


def test_arrays_and_pillow_images_are_stored_without_loss_by_default():
    pixels = np.asarray(picture())
    for value in (pixels, torch.from_numpy(pixels.copy()), picture(), pixels.transpose(2, 0, 1)):
        stored = encode(parse("IMAGE"), value, where=WHERE)
        assert stored.extension == "png" and np.array_equal(np.asarray(Image.open(io.BytesIO(stored.data))), pixels)
    grey = encode(parse("IMAGE"), pixels[:, :, 0], where=WHERE)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(grey.data))), pixels[:, :, 0])
    small = encode(parse("IMAGE(codec='jpeg', quality=30)"), pixels, where=WHERE)
    large = encode(parse("IMAGE(codec='jpeg')"), pixels, where=WHERE)
    assert small.extension == "jpg" and len(small.data) < len(large.data) and small.info.codec == "jpeg"


def test_a_pillow_image_is_stored_upright():
    data = saved(picture(), "JPEG", exif=_exif(6))
    stored = encode(parse("IMAGE"), Image.open(io.BytesIO(data)), where=WHERE)
    assert Image.open(io.BytesIO(stored.data)).size == (47, 61)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((4, 4), "f4"),
        np.zeros((5, 4, 2), "u1"),
        np.zeros((0, 4, 3), "u1"),
        np.zeros(4, "u1"),
        5,
        [[1, 2]],
        None,
    ],
)
def test_arrays_that_are_no_image_are_refused(value):
    with pytest.raises((TypeMismatchError, DimensionError), match="row 3 expects IMAGE"):
        encode(parse("IMAGE"), value, where=WHERE)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF"])
def test_image_files_cut_short_are_refused_or_decode_the_same(format):
    data = saved(picture(), format)
    whole = decode_rgb(data)
    for end in range(0, len(data) - 1, max(1, len(data) // 60)):
        try:
            stored = encode(parse("IMAGE"), data[:end], where=WHERE)
        except MediaError as error:
            assert "row 3 expects IMAGE" in str(error)
        else:
            assert np.array_equal(decode_rgb(stored.data), whole), end


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP"]),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=20),
)
def test_flipped_bytes_never_raise_anything_but_our_error(format, flips):
    data = bytearray(saved(picture(16, 12), format))
    for place, value in flips:
        data[int(place * len(data))] = value
    with contextlib.suppress(MediaError):
        encode(parse("IMAGE"), bytes(data), validate="decode", where=WHERE)


def test_bombs_and_scripts_are_refused_before_anything_is_allocated():
    width = struct.pack(">II", 200_000, 200_000)
    png = saved(picture(4, 4), "PNG")
    bomb = png[:16] + width + png[24:]
    jpeg = saved(picture(4, 4), "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    for data in (bomb, jpeg[:at] + b"\xff\xff\xff\xff" + jpeg[at + 4 :], b"%!PS-Adobe-3.0 EPSF-3.0\n", b"", b"<svg/>"):
        with pytest.raises(MediaError):
            encode(parse("IMAGE"), data, where=WHERE)


def test_a_jpeg_whose_pixels_are_missing_is_refused_when_decoded():
    data = saved(picture(640, 480), "JPEG")
    cut = data[: len(data) // 2] + b"\xff\xd9"
    with pytest.raises(MediaError, match="premature end"):
        encode(parse("IMAGE"), cut, validate="decode", where=WHERE)


# video and audio


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9"])
@pytest.mark.parametrize("size", [(48, 64), (45, 63)])
def test_frames_come_back_in_number_size_and_nearly_in_colour(codec, size):
    frames = clip(12, *size)
    stored = encode(parse(f"VIDEO(codec='{codec}', fps=12)"), frames, where=WHERE)
    info = stored.info
    assert (info.codec, info.height, info.width, info.num_frames) == (codec, *size, 12)
    assert info.fps == pytest.approx(12, rel=0.01) and info.keyframes[0] == 0
    back: dict[int, np.ndarray] = {}
    video.read_frames(stored.data, range(12), back.__setitem__)
    assert np.abs(np.stack([back[i] for i in range(12)]).astype(int) - frames).mean() < 4


def test_frames_are_taken_from_tensors_channel_first_arrays_and_lists():
    frames = clip()
    values = [
        torch.from_numpy(frames), frames.transpose(0, 3, 1, 2), list(frames), [Image.fromarray(f) for f in frames],
        [torch.from_numpy(f) for f in frames],
    ]  # fmt: skip
    for value in values:
        stored, back = encode(parse("VIDEO"), value, where=WHERE), {}
        video.read_frames(stored.data, range(12), back.__setitem__)
        assert np.abs(np.stack([back[i] for i in range(12)]).astype(int) - frames).mean() < 4


@pytest.mark.parametrize(
    "value",
    [
        clip().astype("f4"),
        clip()[0],
        clip()[:0],
        np.zeros((3, 4, 4, 4), "u1"),
        [],
        7,
        [clip()[0], clip()[0][:5]],
        ["a"],
    ],
)
def test_values_that_are_no_clip_are_refused(value):
    with pytest.raises((TypeMismatchError, DimensionError), match="row 3"):
        encode(parse("VIDEO"), value, where=WHERE)


def test_video_files_are_kept_and_cut_ones_refused():
    data = encode(parse("VIDEO"), clip(30, 96, 128), where=WHERE).data
    stored = encode(parse("VIDEO"), data, validate="decode", where=WHERE)
    assert stored.data == data and stored.extension == "mp4" and stored.info.num_frames == 30
    for kind, source in (("VIDEO", data), ("VIDEO", encode(parse("VIDEO(codec='vp9')"), clip(30), where=WHERE).data)):
        for share in (0.02, 0.3, 0.6, 0.95):
            with pytest.raises(MediaError, match="row 3 expects VIDEO"):
                encode(parse(kind), source[: int(len(source) * share)], where=WHERE)


def test_media_of_another_kind_than_the_column_are_refused():
    jpeg, mp4 = saved(picture(), "JPEG"), encode(parse("VIDEO"), clip(), where=WHERE).data
    wav = encode(parse("AUDIO(sample_rate=8000)"), np.zeros(800, "f4"), where=WHERE).data
    npy = encode(parse("TENSOR"), np.zeros(3), where=WHERE).data
    right = {"IMAGE": jpeg, "VIDEO": mp4, "AUDIO": wav, "TENSOR": npy}
    for kind in right:
        for other, data in right.items():
            if kind != other:
                with pytest.raises(MediaError, match=f"expects {kind}"):
                    encode(parse(kind), data, where=WHERE)


def test_playlists_that_would_open_other_files_are_never_opened():
    for data in (b"#EXTM3U\n/etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd\n", b"<MPD></MPD>"):
        with pytest.raises(MediaError):
            encode(parse("VIDEO"), data, where=WHERE)


def test_samples_become_wav_or_flac_and_come_back():
    sound = np.sin(np.arange(1600) / 20).astype("f4") * 0.5
    stereo = np.stack([sound, -sound])
    stored = encode(parse("AUDIO(sample_rate=16000)"), stereo, where=WHERE)
    assert (stored.extension, stored.info.sample_rate, stored.info.channels) == ("wav", 16000, 2)
    assert stored.info.duration == pytest.approx(0.1)
    back, rate = audio.decode_samples(stored.data)
    assert rate == 16000 and np.array_equal(back, stereo)
    whole = (stereo * 32767).astype("i2")
    with wave.open(io.BytesIO(encode(parse("AUDIO(sample_rate=16000)"), whole, where=WHERE).data)) as file:
        assert np.array_equal(np.frombuffer(file.readframes(1600), "<i2").reshape(-1, 2).T, whole)
    flac = encode(parse("AUDIO(sample_rate=16000, codec='flac')"), whole, where=WHERE)
    assert np.array_equal(audio.decode_samples(flac.data)[0] * 32768, whole)
    with pytest.raises(InputError, match="sample_rate"):
        encode(parse("AUDIO"), sound, where=WHERE)
    with pytest.raises(TypeMismatchError):
        encode(parse("AUDIO(sample_rate=16000)"), sound.astype("f8"), where=WHERE)


@pytest.mark.parametrize("channels", [1, 6, 7, 8, 9, 33, 64])
def test_every_number_of_channels_comes_back_in_order(channels):
    sound = (np.arange(channels)[:, None] * 400 + np.arange(3000) % 300).astype("i2")
    stored = encode(parse("AUDIO(sample_rate=48000)"), sound, where=WHERE)
    back, rate = audio.decode_samples(stored.data)
    assert rate == 48000 and np.array_equal(back * 32768, sound)


# sources, facts, batches


def test_paths_must_name_regular_files_within_the_limit(tmp_path, monkeypatch):
    with pytest.raises(NotFoundError, match="row 3"):
        encode(parse("IMAGE"), tmp_path / "none.jpg", where=WHERE)
    os.mkfifo(tmp_path / "pipe")
    for value in (tmp_path, tmp_path / "pipe", "https://example.org/a.jpg"):
        with pytest.raises(MediaError):
            encode(parse("IMAGE"), value, where=WHERE)
    monkeypatch.setattr(sources, "MAX_BLOB_BYTES", 10)
    (tmp_path / "large").write_bytes(b"x" * 11)
    for value in (tmp_path / "large", b"x" * 11):
        with pytest.raises(MediaError, match="limit"):
            encode(parse("BLOB"), value, where=WHERE)


def test_a_blob_takes_bytes_and_paths_but_no_text(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert encode(parse("BLOB"), tmp_path / "file", where=WHERE).data == b"abc"
    assert encode(parse("BLOB"), memoryview(b"abc"), where=WHERE).info == MediaInfo("bytes")
    for value in (str(tmp_path / "file"), 5, None, np.zeros(3)):
        with pytest.raises(TypeMismatchError):
            encode(parse("BLOB"), value, where=WHERE)


def test_facts_survive_json_and_later_fields_are_ignored():
    info = encode(parse("VIDEO"), clip(), where=WHERE).info
    assert MediaInfo.from_json(info.to_json()) == info
    assert MediaInfo.from_json(json.dumps({**json.loads(info.to_json()), "future": 1})) == info
    assert "null" not in info.to_json()
    for text in ("", "[]", "{}", "nonsense"):
        with pytest.raises(CorruptionError):
            MediaInfo.from_json(text)


@pytest.mark.parametrize("validate", ["structure", "decode", "none"])
def test_many_values_keep_their_order_and_the_first_bad_row_is_named(validate):
    images = [saved(picture(20 + i, 30), "JPEG") for i in range(40)]
    stored = encode_many(parse("IMAGE"), [*images, None], validate=validate, where="column 'x' of 't'", threads=3)
    assert [s.data for s in stored[:-1]] == images and stored[-1] is None
    images[17] = images[31] = b"broken"
    with pytest.raises(MediaError, match="column 'x' of 't', row 117 "):
        encode_many(parse("IMAGE"), images, validate=validate, where="column 'x' of 't'", threads=3, first_row=100)
