"""Decoding on the CPU: the right pixels, frames and samples in the right places, and never a made-up one."""

from __future__ import annotations

import io
import pickle
import struct

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageOps
from test_codecs import clip, parse, picture, saved

from deeplake_loader.codecs import MediaInfo, encode
from deeplake_loader.decode import cpu
from deeplake_loader.decode.transforms import Audio, Draw, Image, Tensor, Video, choose, crop_box
from deeplake_loader.errors import DecodeError, InputError, TypeMismatchError

DRAW = Draw(seed=1, epoch=2, sample=3, column="x")


def stored(kind: str, value: object):
    return encode(parse(kind), value, where="column 'x' of 't', row 0")


def decoded(kind: str, value: object, transform: object = None, **options: object) -> np.ndarray:
    item = stored(kind, value)
    return cpu.decode(item.data, item.info, transform, **options)


# images


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1"])
def test_every_mode_becomes_what_pillow_converts_it_to(mode):
    image = picture(mode=mode)
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(decoded("IMAGE", saved(image, "PNG")), expected)
    assert np.array_equal(decoded("IMAGE", image), expected)


def test_cmyk_jpegs_and_16_bit_greys_follow_the_rule():
    cmyk = saved(picture(mode="CMYK"), "JPEG")
    assert np.array_equal(decoded("IMAGE", cmyk)[0], np.asarray(Pillow.open(io.BytesIO(cmyk)).convert("RGB"))[:, :, 0])
    deep = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    out = decoded("IMAGE", saved(Pillow.fromarray(deep), "PNG"))
    assert out.shape == (3, 32, 32) and np.array_equal(out[1], np.round(deep / 257).astype(np.uint8))
    floats = saved(Pillow.fromarray(np.zeros((4, 4), np.float32)), "TIFF")
    with pytest.raises(TypeMismatchError, match="TENSOR"):
        stored("IMAGE", floats)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_come_out_upright(format, orientation):
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    data = saved(picture(), format, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Pillow.open(io.BytesIO(data))).convert("RGB")).transpose(2, 0, 1)
    item = stored("IMAGE", data)
    out = cpu.decode(item.data, item.info)
    assert np.array_equal(out, expected)
    assert cpu.output(item.info, Image()) == ("uint8", out.shape)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("interpolation", "antialias"), [("nearest", True), ("area", False)])
def test_of_two_equally_near_pixels_a_turned_jpeg_takes_the_one_that_any_other_format_takes(
    orientation, interpolation, antialias
):
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    data = saved(picture(64, 48), "JPEG", exif=exif)
    upright = saved(Pillow.fromarray(cpu.decode(data, MediaInfo("image"), Image(layout="HWC"))), "PNG")
    transform = Image(size=(8, 12), crop="none", interpolation=interpolation, antialias=antialias)
    turned, plain = (cpu.decode(file, MediaInfo("image"), transform) for file in (data, upright))
    assert np.array_equal(turned, plain)


@pytest.mark.parametrize("crop", ["center", "none"])
@pytest.mark.parametrize("size", [(20, 30), (100, 40), 24])
def test_resized_images_are_within_one_level_of_pillow(size, crop):
    image = picture(122, 94)
    height, width = (size, size) if isinstance(size, int) else size
    scale = min(122 / width, 94 / height)
    left, top = (122 - width * scale) / 2, (94 - height * scale) / 2
    box = (left, top, 122 - left, 94 - top) if crop == "center" else (0, 0, 122, 94)
    expected = np.asarray(image.resize((width, height), Pillow.Resampling.BILINEAR, box=box)).transpose(2, 0, 1)
    out = decoded("IMAGE", image, Image(size=size, crop=crop))
    assert np.abs(out.astype(int) - expected).max() <= 1
    mirrored = decoded("IMAGE", image, Image(size=size, crop=crop, flip=1.0), draw=DRAW)
    assert np.abs(mirrored.astype(int) - expected[:, :, ::-1]).max() <= 1


def test_layouts_modes_and_slots_hold_the_same_pixels():
    item = stored("IMAGE", picture())
    chw = cpu.decode(item.data, item.info, Image(size=32))
    assert np.array_equal(cpu.decode(item.data, item.info, Image(size=32, layout="HWC")).transpose(2, 0, 1), chw)
    batch = np.zeros((2, 3, 32, 32), np.uint8)
    cpu.decode_into(memoryview(item.data), item.info, Image(size=32), batch[1])
    assert np.array_equal(batch[1], chw) and not batch[0].any()
    grey = cpu.decode(item.data, item.info, Image(mode="L"))
    assert np.array_equal(grey[0], np.asarray(picture().convert("L")))
    with pytest.raises(DecodeError, match="room for"):
        cpu.decode_into(item.data, item.info, Image(size=31), batch[1])


@pytest.mark.parametrize(
    ("format", "size"), [("PNG", (8, 8)), ("PNG", (50, 60)), ("JPEG", (50, 60)), ("JPEG", (300, 200))]
)
@pytest.mark.parametrize("layout", ["CHW", "HWC"])
def test_grey_images_are_resized_as_pillow_resizes_grey(format, size, layout):
    data = saved(picture(122, 94), format)
    grey = Pillow.open(io.BytesIO(data)).convert("RGB").convert("L")
    expected = np.asarray(grey.resize(size[::-1], Pillow.Resampling.BILINEAR))
    transform = Image(size=size, mode="L", crop="none", layout=layout)
    out = cpu.decode(data, MediaInfo("image"), transform)
    assert out.shape == cpu.output(None, transform)[1] == ((1, *size) if layout == "CHW" else (*size, 1))
    assert np.abs(out.reshape(size).astype(int) - expected).max() <= 1


def test_random_crops_depend_on_the_sample_and_nothing_else():
    item, random = stored("IMAGE", picture(200, 150)), Image(size=32, crop="random_resized", flip=0.5)
    draws = [Draw(0, 0, i, "x") for i in range(8)]
    first = [cpu.decode(item.data, item.info, random, draw=d) for d in draws]
    again = [cpu.decode(item.data, item.info, random, draw=d) for d in reversed(draws)][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({a.tobytes() for a in first}) == 8
    for other in (Draw(1, 0, 0, "x"), Draw(0, 1, 0, "x"), Draw(0, 0, 0, "y")):
        assert not np.array_equal(cpu.decode(item.data, item.info, random, draw=other), first[0])


@given(
    st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 500), st.integers(1, 500), st.integers(),
    st.sampled_from(["center", "none", "random_resized"]),
)  # fmt: skip
def test_every_crop_lies_inside_its_picture(width, height, rows, columns, sample, crop):
    for draw in (None, Draw(0, 0, sample, "x")):
        (x0, y0, x1, y1), _ = crop_box(Image(size=(rows, columns), crop=crop), width, height, (rows, columns), draw)
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height


def test_drawn_numbers_are_even_and_never_change():
    assert Draw(1, 2, 3, "frames").uniforms(2) == FROZEN
    numbers = np.array([Draw(0, 0, i, "x").uniforms(3) for i in range(4000)])
    assert np.abs(numbers.mean(axis=0) - 0.5).max() < 0.02 and numbers.min() >= 0 and numbers.max() < 1
    assert Draw(0, 0, "7", "x").uniforms(1) != Draw(0, 0, 7, "x").uniforms(1)


FROZEN = [0.345006157633012, 0.518491896400232]


def test_damage_is_an_error_that_names_the_item():
    jpeg = stored("IMAGE", saved(picture(640, 480), "JPEG"))
    half = jpeg.data[: len(jpeg.data) // 2] + b"\xff\xd9"
    for data in (half, b"", b"garbage", jpeg.data[:100], jpeg.data[:-2]):
        with pytest.raises(DecodeError, match="image k7 cannot be decoded") as caught:
            cpu.decode(data, jpeg.info, Image(size=8), key="k7")
        assert caught.value.key == "k7"


# video


def painted(frames: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Each frame is one grey level that tells its number."""
    levels = (np.arange(frames) * 37 % 40 * 5 + 20).astype(np.uint8)  # 40 levels, far from their neighbours
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()


def numbers_of(out: np.ndarray, source: np.ndarray) -> list[int]:
    means, levels = out.reshape(len(out), -1).mean(axis=1), source[:, 0, 0, 0].astype(int)
    return [int(np.abs(levels - m).argmin()) for m in means]


@pytest.mark.parametrize("codec", ["h264", "vp9"])
@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (Video(num_frames=4), [5, 15, 25, 35]),
        (Video(num_frames=50), [*range(40), *[39] * 10]),
        (Video(stride=10), [0, 10, 20, 30]),
        (Video(num_frames=3, sampling="contiguous", stride=4), [15, 19, 23]),
        (Video(frame_indices=(39, 0, 39, 38)), [39, 0, 39, 38]),
        (Video(frame_indices=(30,)), [30]),
        (Video(num_frames=1), [20]),
    ],
)
def test_the_frames_asked_for_are_the_frames_given(codec, transform, expected):
    source = painted(40)
    item = stored(f"VIDEO(codec='{codec}', gop=10)", source)
    out = cpu.decode(item.data, item.info, transform)
    assert out.shape == (len(expected), 3, 64, 96) and numbers_of(out, source) == expected
    bare = cpu.decode(item.data, MediaInfo("video"), transform)
    assert np.array_equal(bare, out)
    assert cpu.output(item.info, transform) == ("uint8", out.shape)


def test_random_frames_are_in_order_and_drawn_per_sample():
    transform = Video(num_frames=6, sampling="random")
    chosen = {tuple(transform.frame_numbers(60, Draw(0, 0, i, "x"))) for i in range(50)}
    assert len(chosen) == 50 and all(list(c) == sorted(set(c)) and c[0] >= 0 and c[-1] < 60 for c in chosen)
    starts = {Video(num_frames=6, sampling="contiguous").frame_numbers(9, Draw(0, 0, i, "x"))[0] for i in range(50)}
    assert starts == {0, 1, 2, 3}


@given(st.integers(1, 200), st.integers(1, 300), st.integers(0, 9))
def test_chosen_frames_always_exist(count, wanted, sample):
    for sampling in ("uniform", "random", "contiguous"):
        for draw in (None, Draw(0, 0, sample, "x")):
            numbers = Video(num_frames=wanted, sampling=sampling).frame_numbers(count, draw)
            assert len(numbers) == wanted and numbers == sorted(numbers) and numbers[0] >= 0 and numbers[-1] < count


def test_layouts_sizes_and_slots_of_clips():
    item = stored("VIDEO", clip(10))
    out = cpu.decode(item.data, item.info, Video(num_frames=4, size=(24, 32)))
    assert out.shape == (4, 3, 24, 32)
    for layout, axes in (("CTHW", (1, 0, 2, 3)), ("THWC", (0, 2, 3, 1))):
        transform = Video(num_frames=4, size=(24, 32), layout=layout)
        slot = np.zeros((2, *cpu.output(None, transform)[1]), np.uint8)
        cpu.decode_into(item.data, item.info, transform, slot[1])
        assert np.array_equal(slot[1], out.transpose(axes)) and not slot[0].any()
    assert cpu.output(None, Video(num_frames=4)) is None and cpu.output(None, Video(size=8)) is None


def test_rotation_is_applied():
    source = np.full((3, 48, 64, 3), 20, np.uint8)
    source[:, 24:] = 200  # dark above, bright below
    item = stored("VIDEO", source)
    # the display matrix of the track header, turned by 90 degrees counterclockwise
    upright, turned = struct.pack(">5i", 65536, 0, 0, 0, 65536), struct.pack(">5i", 0, -65536, 0, 65536, 0)
    at = item.data.index(upright, item.data.index(b"tkhd"))
    data = item.data[:at] + turned + item.data[at + 20 :]
    with av.open(io.BytesIO(data)) as container:
        rotation = next(container.decode(video=0)).rotation
    assert rotation in (90, -90)
    again = stored("VIDEO", data)
    out = cpu.decode(again.data, again.info)
    assert again.info.rotation == rotation and out.shape == (3, 3, 64, 48) == cpu.output(again.info, Video())[1]
    bright = out[0, 0].mean(axis=0)
    assert (bright[40] > bright[5]) == (rotation == 90)


def test_a_clip_that_lacks_frames_is_an_error_and_never_black():
    item = stored("VIDEO(gop=5)", painted(20))
    with pytest.raises(DecodeError, match="20 frames"):
        cpu.decode(item.data, item.info, Video(frame_indices=(20,)))
    wrong = MediaInfo("video", num_frames=30, keyframes=(0,))
    with pytest.raises(DecodeError, match="missing"):
        cpu.decode(item.data, wrong, Video(num_frames=30))
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(DecodeError):
            cpu.decode(item.data[: int(len(item.data) * share)], item.info, Video(num_frames=20))


# audio, tensors, contracts


def test_audio_is_resampled_mixed_cut_and_filled_with_silence():
    sound = np.stack([np.sin(np.arange(16000) / 30), np.cos(np.arange(16000) / 30)]).astype("f4") * 0.5
    kind = "AUDIO(sample_rate=16000)"
    assert np.array_equal(decoded(kind, sound), sound)
    assert decoded(kind, sound, Audio(channels=1)).shape == (1, 16000)
    assert decoded(kind, sound, Audio(sample_rate=8000)).shape[1] == pytest.approx(8000, abs=20)
    middle = decoded(kind, sound, Audio(duration=0.5))
    assert np.array_equal(middle, sound[:, 4000:12000])
    longer = decoded(kind, sound, Audio(duration=2))
    assert np.array_equal(longer[:, :16000], sound) and not longer[:, 16000:].any()
    item = stored(kind, sound)
    assert (
        cpu.output(item.info, Audio(duration=0.5)) == ("float32", (2, 8000)) and cpu.output(item.info, Audio()) is None
    )


def test_tensors_come_as_stored_or_converted_and_own_their_memory():
    value = torch.randn(2, 3).to(torch.bfloat16)
    item = stored("TENSOR", value)
    assert torch.equal(cpu.to_torch(cpu.decode(item.data, item.info)), value)
    assert np.array_equal(cpu.decode(item.data, item.info, Tensor("float32")), value.float().numpy())
    data = bytearray(stored("TENSOR", np.arange(4.0)).data)
    out = cpu.decode(memoryview(data), MediaInfo("tensor"))
    data[-1] ^= 0xFF
    assert np.array_equal(out, np.arange(4.0)) and cpu.to_torch(out).data_ptr() == out.ctypes.data
    assert cpu.output(stored("TENSOR", np.zeros((2, 3), "f2")).info, Tensor()) == ("float16", (2, 3))


SLICES = [
    np.s_[:2], np.s_[1:, ::2], np.s_[..., -1], np.s_[0], np.s_[0, 1, 2], np.s_[::-1, ..., 1:2], np.s_[5:], np.s_[:, :0],
    np.s_[...], np.s_[-2:, 0, 1::2],
]  # fmt: skip


@pytest.mark.parametrize("part", SLICES, ids=repr)
@pytest.mark.parametrize("dtype", [None, "float64"])
def test_a_slice_of_a_tensor_is_numpys(part, dtype):
    whole = np.arange(60, dtype="f4").reshape(3, 4, 5)
    for value in (whole, np.asfortranarray(whole), torch.from_numpy(whole).to(torch.bfloat16)):
        item = stored("TENSOR", value)
        transform = Tensor(dtype, slice=part)
        found = cpu.to_torch(cpu.decode(item.data, item.info, transform))
        assert tuple(found.shape) == whole[part].shape and np.array_equal(found.float().numpy(), whole[part])
        known = cpu.output(item.info, transform)
        if item.info.dtype == "bfloat16" and dtype is None:
            assert known is None
            continue
        assert known == (dtype or "float32", whole[part].shape)
        out = np.empty(known[1], known[0])
        cpu.decode_into(item.data, item.info, transform, out)
        assert np.array_equal(out, whole[part])
        assert choose("tensor", transform, {}) == transform == choose("tensor", Tensor(dtype), {"slice": part})
        assert hash(transform) == hash(pickle.loads(pickle.dumps(transform)))


@pytest.mark.parametrize("part", [np.s_[3], np.s_[-4], np.s_[0, 0, 0, 0], np.s_[:, :, :, :1]], ids=repr)
def test_a_slice_that_a_tensor_does_not_have_is_an_error_of_the_item(part):
    item = stored("TENSOR", np.zeros((3, 4, 5), "f4"))
    assert cpu.output(item.info, Tensor(slice=part)) is None
    with pytest.raises(DecodeError, match=r"x7 cannot be decoded: its shape is \(3, 4, 5\), and slice="):
        cpu.decode(item.data, item.info, Tensor(slice=part), key="x7")


def test_a_single_bfloat16_stays_one_number_when_it_is_converted():
    item = stored("TENSOR", torch.tensor(1.5, dtype=torch.bfloat16))
    assert cpu.decode(item.data, item.info, Tensor("float32")).shape == cpu.output(item.info, Tensor("float32"))[1]


def test_transforms_are_checked_when_they_are_made_and_against_their_media():
    bad = [
        (Image, {"size": 0}), (Image, {"size": (1, 2, 3)}), (Image, {"size": 2.5}), (Image, {"crop": "left"}),
        (Image, {"crop": "random_resized"}), (Image, {"scale": (0, 1)}), (Image, {"flip": 2}),
        (Image, {"layout": "TCHW"}), (Image, {"flip": None}), (Image, {"flip": "x"}), (Video, {"flip": True}),
        (Image, {"size": (7,)}), (Image, {"ratio": [1, 2]}), (Video, {"num_frames": 10**9}),
        (Video, {"num_frames": 0}), (Video, {"stride": 0}), (Video, {"num_frames": 2, "stride": 2}),
        (Video, {"frame_indices": (-1,)}), (Video, {"frame_indices": (1,), "num_frames": 1}),
        (Audio, {"channels": 3}),
        (Audio, {"duration": 0}), (Tensor, {"dtype": "bfloat16"}), (Tensor, {"dtype": "object"}),
        (Tensor, {"slice": "1"}), (Tensor, {"slice": [0]}), (Tensor, {"slice": (..., ...)}), (Tensor, {"slice": True}),
        (Tensor, {"slice": slice(None, None, 0)}), (Tensor, {"slice": slice(0.5)}), (Tensor, {"slice": (None,)}),
    ]  # fmt: skip
    for kind, options in bad:
        with pytest.raises(InputError, match=kind.__name__):
            kind(**options)
    assert choose("image", Image(size=5), {"flip": 0.5}) == Image(size=5, flip=0.5) and choose("bytes") is None
    for call in (("image", Video()), ("bytes", Image()), ("video", None, {"num_frame": 3})):
        with pytest.raises(InputError):
            choose(*call)
    with pytest.raises(TypeMismatchError):
        decoded("IMAGE", picture(), Video())
    assert decoded("BLOB", b"abc").tolist() == [97, 98, 99]
