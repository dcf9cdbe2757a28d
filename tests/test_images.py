"""Images to tensors: filters, crops, floats and streams of them, beside Pillow, torch and plain numpy."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageFilter, ImageOps

import deeplake_loader as deeplake
from deeplake_loader.codecs import MediaInfo
from deeplake_loader.decode import cpu, images
from deeplake_loader.decode.normalize import Normalize, as_array, scratch, to_bytes
from deeplake_loader.decode.transforms import Draw, Image, Video, crop_box
from deeplake_loader.errors import DecodeError, InputError
from deeplake_loader.stream.late import late_floats
from deeplake_loader.stream.media import Media
from deeplake_loader.stream.options import Options
from deeplake_loader.stream.source import Source

ANY = MediaInfo("image")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def smooth(height: int, width: int, seed: int = 0) -> Pillow.Image:
    """Noise without the finest detail, as photographs are."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Pillow.fromarray(noise).filter(ImageFilter.GaussianBlur(2))


def jpeg(image: Pillow.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 95, **options})
    return file.getvalue()


def png(image: Pillow.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("name", ["nearest", "area", "bilinear", "bicubic", "lanczos"])
def test_every_filter_is_pillows(name: str):
    image = smooth(90, 120)
    kind = Pillow.Resampling["BOX" if name == "area" else name.upper()]
    expected = np.asarray(image.resize((40, 30), kind)).astype(int)
    out = cpu.decode(png(image), ANY, Image(size=(30, 40), interpolation=name, layout="HWC"))
    assert np.abs(out - expected).max() <= 1
    plain = cpu.decode(png(image), ANY, Image(size=(30, 40), interpolation=name, layout="HWC", antialias=False))
    assert np.array_equal(plain, out) == (name == "nearest")


@pytest.mark.parametrize("larger", [2.9, 3.0, 5.0, 6.0, 11.0, 20.0])
def test_large_jpegs_are_shrunk_and_come_out_the_same_but_for_a_little_sharpness(larger, monkeypatch):
    size = 48
    data = jpeg(smooth(int(size * larger), int(size * larger * 1.3), seed=int(larger)))
    found = cpu.decode(data, ANY, Image(size=size)).astype(int)
    calls = []
    real = images.decode_jpeg
    monkeypatch.setattr(images, "decode_jpeg", lambda *a: calls.append(a[2]) or real(*a))
    cpu.decode(data, ANY, Image(size=size))
    assert calls == [1 if larger < 3 else 2 if larger < 6 else 4 if larger < 20 else 8]
    monkeypatch.setattr(images, "SHRINKS", ())
    gap = np.abs(found - cpu.decode(data, ANY, Image(size=size)))
    assert gap.mean() <= 1.5 and (larger >= 3 or not gap.any())


def test_shrunk_jpegs_keep_orientation_crop_and_mirror():
    exif = Pillow.Exif()
    exif[0x0112] = 6
    data = jpeg(smooth(601, 803), exif=exif)
    transform, draw = Image(size=(40, 30), crop="random_resized", scale=(0.7, 1), flip=1.0), Draw(0, 0, 5, "x")
    found = cpu.decode(data, ANY, transform, draw=draw).astype(int)
    upright = cpu.decode(data, ANY, Image(layout="HWC"))
    box, mirrored = crop_box(transform, upright.shape[1], upright.shape[0], (40, 30), draw)
    assert mirrored
    expected = np.asarray(Pillow.fromarray(upright).resize((30, 40), Pillow.Resampling.BILINEAR, box=box))[:, ::-1]
    assert np.abs(found - expected.transpose(2, 0, 1)).mean() <= 1.5
    for options in ({"interpolation": "nearest"}, {"antialias": False}):
        out = cpu.decode(data, ANY, Image(size=(40, 30), **options))
        assert out.shape == (3, 40, 30) and images.shrink(Image(**options), box, (40, 30)) == 1


@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 64), st.integers(1, 64), st.integers(0, 99))
def test_a_shrunk_picture_holds_its_crop(width: int, height: int, rows: int, columns: int, sample: int):
    transform = Image(size=(rows, columns), crop="random_resized")
    box, _ = crop_box(transform, width, height, (rows, columns), Draw(0, 0, sample, "x"))
    factor = images.shrink(transform, box, (rows, columns))
    assert factor == 1 or min((box[2] - box[0]) / columns, (box[3] - box[1]) / rows) / factor >= 1.5


def test_random_crops_are_the_largest_of_their_shape_at_a_drawn_place():
    boxes = [
        crop_box(Image(size=(10, 20), crop="random"), 100, 100, (10, 20), Draw(0, 0, i, "x"))[0] for i in range(64)
    ]
    assert {(b[2] - b[0], round(b[3] - b[1])) for b in boxes} == {(100, 50)}
    tops = [b[1] for b in boxes]
    assert len(set(tops)) == 64 and min(tops) < 10 and max(tops) > 40 and {b[0] for b in boxes} == {0}
    centred = crop_box(Image(size=(10, 20), crop="random"), 100, 100, (10, 20), None)[0]
    assert centred == crop_box(Image(size=(10, 20)), 100, 100, (10, 20), None)[0]


# what becomes of colours, depths, transparency and animations


def reread(image: Pillow.Image, format: str, **options: object) -> tuple[bytes, np.ndarray]:
    """The file, and its pixels as Pillow converts them to RGB."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue(), np.asarray(Pillow.open(io.BytesIO(file.getvalue())).convert("RGB"))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_kind_of_jpeg_equals_pillow_bit_for_bit(subsampling: str, progressive: bool, mode: str):
    extra = {"subsampling": subsampling} if mode == "RGB" else {}
    data, expected = reread(
        smooth(37, 53).convert(mode), "JPEG", progressive=progressive, restart_marker_rows=1, **extra
    )
    assert np.array_equal(cpu.decode(data, ANY, Image(layout="HWC")), expected)
    assert cpu.decode(data, ANY, Image(size=4)).shape == (3, 4, 4)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_dropped_and_not_blended(format: str):
    image = smooth(20, 30)
    expected = np.asarray(image)
    image.putalpha(Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)))
    data, _ = reread(image, format, **({"lossless": True, "exact": True} if format == "WEBP" else {}))
    assert np.array_equal(cpu.decode(data, ANY, Image(layout="HWC")), expected)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_its_first_frame(format: str):
    frames = [Pillow.new("RGB", (16, 12), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    options = {"lossless": True} if format == "WEBP" else {}
    data, _ = reread(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(cpu.decode(data, ANY, Image(layout="HWC")), np.asarray(frames[0]))


def test_palettes_bits_lab_and_cmyk_follow_pillow():
    for mode, format in (("P", "PNG"), ("1", "PNG"), ("1", "TIFF"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("L", "PNG")):
        data, expected = reread(smooth(20, 30).convert(mode), format)
        assert np.array_equal(cpu.decode(data, ANY, Image(layout="HWC")), expected), (mode, format)
    lab, _ = reread(Pillow.new("LAB", (4, 4), (255, 128, 128)), "TIFF")
    assert cpu.decode(lab, ANY, Image()).min() >= 250


# floats


def by_hand(pixels: np.ndarray, dtype: str, normalize: object, channel_axis: int = 0) -> torch.Tensor:
    """The usual torch code."""
    values = torch.from_numpy(pixels.astype(np.float64)) / 255
    if normalize is not None:
        shape = [1] * values.ndim
        shape[channel_axis] = -1
        mean, std = (torch.tensor(v, dtype=torch.float64).reshape(shape) for v in normalize)
        values = (values - mean) / std
    return values.to(FLOATS[dtype])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("normalize", [None, (MEAN, STD), ((0.5,), (0.5,))])
@pytest.mark.parametrize("layout", ["CHW", "HWC"])
def test_floats_are_the_pixels_normalised_in_every_layout(dtype: str, normalize: object, layout: str):
    data = jpeg(smooth(70, 90))
    plain = Image(size=(32, 50), layout=layout)
    transform = Image(size=(32, 50), layout=layout, dtype=dtype, normalize=normalize)
    expected = by_hand(cpu.decode(data, ANY, plain), dtype, normalize, 0 if layout == "CHW" else 2)
    found = cpu.to_torch(cpu.decode(data, ANY, transform))
    assert found.dtype == FLOATS[dtype]
    torch.testing.assert_close(found, expected, rtol=2.0**-7 if dtype == "bfloat16" else 2.0**-10, atol=2.0**-10)
    assert cpu.output(ANY, transform) == (dtype, found.shape) and to_bytes(transform) == plain
    batch = torch.zeros(2, *found.shape, dtype=found.dtype)
    cpu.decode_into(data, ANY, transform, as_array(batch[1]))
    assert torch.equal(batch[1], found) and not batch[0].any()


def test_grey_images_and_clips_are_normalised_too():
    data = jpeg(smooth(40, 40))
    grey = cpu.decode(data, ANY, Image(mode="L", dtype="float32", normalize=((0.5,), (0.25,))))
    expected = by_hand(cpu.decode(data, ANY, Image(mode="L")), "float32", ((0.5,), (0.25,)))
    torch.testing.assert_close(torch.from_numpy(grey), expected, rtol=0, atol=1e-6)
    clip = np.random.default_rng(0).integers(0, 256, (4, 3, 6, 8), dtype=np.uint8)
    for layout, axes in (("TCHW", (0, 1, 2, 3)), ("CTHW", (1, 0, 2, 3)), ("THWC", (0, 2, 3, 1))):
        step = Normalize.of(Video(dtype="float32", normalize=(MEAN, STD), layout=layout))
        laid = np.ascontiguousarray(clip.transpose(axes))
        expected = by_hand(laid, "float32", (MEAN, STD), layout.index("C"))
        torch.testing.assert_close(torch.from_numpy(step.apply(laid)), expected, rtol=0, atol=1e-6)
        pair = np.stack([laid, laid])
        assert np.array_equal(step.apply(pair)[1], step.apply(laid))
        torch.testing.assert_close(step.on_device(torch.from_numpy(laid)), expected, rtol=0, atol=2e-6)
        assert torch.equal(step.floats(torch.from_numpy(laid)), torch.from_numpy(step.apply(laid)))


def test_float_transforms_are_checked_and_stay_values():
    bad = [
        {"normalize": (MEAN, STD)}, {"dtype": "float64"}, {"dtype": "float32", "normalize": MEAN},
        {"dtype": "float32", "normalize": ((0, 0), STD)}, {"dtype": "float32", "normalize": (MEAN, (1, 1, 0))},
        {"dtype": "float32", "normalize": ((float("nan"),), STD)}, {"interpolation": "cubic"}, {"antialias": 1},
        {"mode": "L", "dtype": "float32", "normalize": (MEAN, STD)}, {"crop": "random"}, {"scale": 0.5},
        {"ratio": (1, float("inf"))},
    ]  # fmt: skip
    for options in bad:
        with pytest.raises(InputError, match="Image"):
            Image(**options)
    lists = Image(dtype="float32", normalize=(list(MEAN), list(STD)))
    assert lists == Image(dtype="float32", normalize=(MEAN, STD)) and hash(lists) is not None
    assert Image(dtype="float32", normalize=(0.5, 0.5)).normalize == ((0.5,), (0.5,))


def test_damage_is_the_same_error_for_floats():
    data = jpeg(smooth(64, 64))
    with pytest.raises(DecodeError, match="image k cannot be decoded"):
        cpu.decode(data[:500] + b"\xff\xd9", ANY, Image(size=8, dtype="float32"), key="k")


def test_bytes_of_one_thread_do_not_reach_another_items_result():
    first = cpu.decode(jpeg(smooth(32, 32, 1)), ANY, Image(dtype="float32"))
    kept = first.copy()
    cpu.decode_into(jpeg(smooth(32, 32, 2)), ANY, Image(dtype="float32"), np.zeros((3, 32, 32), np.float32))
    assert np.array_equal(first, kept) and scratch((2, 3)).shape == (2, 3)


# streams

RANDOM = {"size": 16, "crop": "random_resized", "flip": 0.5, "dtype": "float16", "normalize": (MEAN, STD)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    db = deeplake.connect(str(tmp_path_factory.mktemp("images") / "store"))
    db.execute("CREATE TABLE photos (id BIGINT PRIMARY KEY, photo IMAGE)")
    db.insert("photos", [{"id": i, "photo": jpeg(smooth(40 + i, 60, seed=i))} for i in range(24)])
    yield db
    db.close()


def by_id(stream: object, epochs: int = 1) -> dict[tuple[int, int], bytes]:
    found = {}
    for epoch in range(epochs):
        for batch in stream:
            assert batch["photo"].dtype == torch.float16
            for number, pixels in zip(batch["id"].tolist(), batch["photo"], strict=True):
                found[epoch, number] = pixels.numpy().tobytes()
    return found


def test_augmented_floats_are_equal_for_any_batch_size_threads_order_and_resume(store):
    query, options = "SELECT id, photo FROM photos", {"transforms": {"photo": Image(**RANDOM)}, "seed": 3}
    expected = by_id(store.stream(query, batch_size=5, shuffle=True, **options), epochs=2)
    assert len(expected) == 48 and len(set(expected.values())) == 48
    assert by_id(store.stream(query, batch_size=24, shuffle=False, num_threads=1, **options), epochs=2) == expected
    stream = store.stream(query, batch_size=7, shuffle=True, **options)
    next(iter(stream))
    resumed = store.stream(query, batch_size=7, shuffle=True, **options)
    resumed.load_state_dict(stream.state_dict())
    rest = by_id(resumed)
    assert 0 < len(rest) < 24 and all(expected[key] == pixels for key, pixels in rest.items())
    fewer = by_id(store.stream(query + " WHERE id > 11", batch_size=5, shuffle=True, **options))
    assert len(fewer) == 12 and all(expected[key] == pixels for key, pixels in fewer.items())


def test_dataloader_workers_draw_the_same(store):
    query, options = "SELECT id, photo FROM photos", {"transforms": {"photo": Image(**RANDOM)}, "seed": 3}
    expected = by_id(store.stream(query, batch_size=6, **options))
    loader = torch.utils.data.DataLoader(store.stream(query, batch_size=6, **options), batch_size=None, num_workers=2)
    assert by_id(loader) == expected


def test_a_handle_decodes_what_a_stream_gives(store):
    transform = Image(size=20, dtype="float32", normalize=(MEAN, STD))
    batches = list(
        store.stream("SELECT id, photo FROM photos ORDER BY id", batch_size=24, transforms={"photo": transform})
    )
    rows = store.execute("SELECT photo FROM photos ORDER BY id").fetchall()
    assert all(
        torch.equal(row[0].decode(transform), pixels) for row, pixels in zip(rows, batches[0]["photo"], strict=True)
    )


def test_columns_go_to_a_device_as_bytes_unless_the_host_sees_their_floats(store):
    column = Media("photo", np.ones(3, np.int64), False, Image(size=4, dtype="bfloat16", normalize=(MEAN, STD)))
    source = Source("root", (column,), 3, np.zeros(1, np.int64), "d")
    sources, steps = late_floats([source, source], Options(device=torch.device("cuda", 0)))
    assert [s.columns[0].transform for s in sources] == [Image(size=4)] * 2
    pixels = torch.arange(96, dtype=torch.uint8).reshape(2, 3, 4, 4)
    expected = by_hand(pixels.numpy(), "bfloat16", (MEAN, STD), 1)
    torch.testing.assert_close(steps["photo"](pixels), expected, rtol=2.0**-7, atol=2.0**-10)
    other = Source("root", (Media("photo", np.ones(3, np.int64), False, Image(size=4)),), 3, np.zeros(1, np.int64), "d")
    assert late_floats([source, other], Options(device=torch.device("cuda", 0)))[1] == {}
    asked = Options(device=torch.device("cuda", 0), on_error=lambda bad: "skip")
    assert late_floats([source], asked) == ([source], {})


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("crop", ["none", "center", "random_resized"])
def test_turned_jpegs_are_resized_as_if_they_had_been_turned_first(orientation: int, crop: str):
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    data = jpeg(smooth(90, 131, seed=orientation), exif=exif)
    turned = png(ImageOps.exif_transpose(Pillow.open(io.BytesIO(data))))
    for layout, interpolation in (("CHW", "bilinear"), ("HWC", "lanczos"), ("CHW", "nearest")):
        asked = Image(size=(30, 44), crop=crop, flip=0.5, layout=layout, interpolation=interpolation)
        for sample in range(4):
            draw = Draw(0, 0, sample, "x")
            found, expected = (cpu.decode(d, ANY, asked, draw=draw).astype(int) for d in (data, turned))
            assert np.abs(found - expected).max() <= (0 if interpolation == "nearest" else 1)
    assert np.array_equal(cpu.decode(data, ANY, Image()), cpu.decode(turned, ANY, Image()))
