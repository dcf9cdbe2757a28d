from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_backends import NAMES, using
from PIL import Image

from deeplake_loader import kernels
from deeplake_loader.errors import DimensionError, InputError, TypeMismatchError
from deeplake_loader.kernels import reference


@pytest.fixture(params=NAMES, scope="module", autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with using(request.param):
        yield request.param


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def resized(source: np.ndarray, size: tuple[int, int], **options: object) -> np.ndarray:
    """(H, W, C), by way of a CHW slot."""
    slot = np.zeros((source.shape[2], *size), np.uint8)
    kernels.resize_into(source, slot, **options)
    return slot.transpose(1, 2, 0)


FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def pillow(
    source: np.ndarray, size: tuple[int, int], box: tuple[float, ...] | None = None, filter: str = "bilinear"
) -> np.ndarray:
    image = Image.fromarray(source[:, :, 0] if source.shape[2] == 1 else source)
    return np.asarray(image.resize(size[::-1], FILTERS[filter], box=box)).reshape(*size, -1)


def gap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float64) - b).max())


SIZES = [((375, 500), (224, 224)), ((480, 640), (33, 47)), ((50, 40), (224, 200)), ((7, 9), (1, 1)), ((1, 1), (5, 3)),
         ((1200, 30), (8, 8)), ((64, 64), (64, 64)), ((9, 2000), (16, 31))]  # fmt: skip


@pytest.mark.parametrize(("held", "size"), SIZES)
def test_noise_is_within_one_level_of_pillow_and_of_the_exact_result(held: tuple[int, int], size: tuple[int, int]):
    source = picture(*held)
    found = resized(source, size)
    assert gap(found, pillow(source, size)) <= 1
    assert gap(found, reference.resize(source, size, (0, 0, held[1], held[0]))) <= 1.01


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize(("held", "size"), SIZES)
def test_every_filter_is_within_one_level_of_pillow_and_nearest_equals_it(
    held: tuple[int, int], size: tuple[int, int], filter: str, backend: str
):
    source = picture(*held) // 3 + 80  # the lobes stay inside the range: where they do not, the order of passes counts
    found = resized(source, size, interpolation=filter)
    assert gap(found, pillow(source, size, filter=filter)) <= (0 if filter == "nearest" else 1)
    box = (0, 0, held[1], held[0])
    if backend != "python":
        for hard in (source, picture(*held, seed=1) // 128 * 255):
            assert gap(resized(hard, size, interpolation=filter), reference.resize(hard, size, box, filter)) <= 1.01


@pytest.mark.parametrize("filter", ["area", "bilinear", "bicubic", "lanczos"])
def test_without_antialias_only_the_pixels_at_the_centre_count(filter: str):
    source = picture(120, 90) // 3 + 80
    found = resized(source, (33, 41), interpolation=filter, antialias=False)
    assert gap(found, reference.resize(source, (33, 41), (0, 0, 90, 120), filter, antialias=False)) <= 1.01
    grown = resized(source, (200, 150), interpolation=filter, antialias=False)
    assert gap(grown, resized(source, (200, 150), interpolation=filter)) <= 1  # the same filter; rounded elsewhere
    if filter == "bilinear":
        pixels = torch.from_numpy(source.transpose(2, 0, 1)[None]).double()
        expected = torch.nn.functional.interpolate(pixels, (33, 41), mode="bilinear", align_corners=False)
        assert gap(found.transpose(2, 0, 1), expected[0].numpy()) <= 0.51


@given(st.data())
def test_any_crop_of_any_picture_is_within_one_level_of_pillow(data: st.DataObject):
    height, width, out_h, out_w = (data.draw(st.integers(1, 90)) for _ in range(4))
    channels = data.draw(st.sampled_from([1, 3]))
    x0, x1 = sorted((data.draw(st.floats(0, width)), data.draw(st.floats(0, width))))
    y0, y1 = sorted((data.draw(st.floats(0, height)), data.draw(st.floats(0, height))))
    box = (x0, y0, x1, y1) if x1 - x0 > 0.01 and y1 - y0 > 0.01 else None
    source = picture(height, width, channels, data.draw(st.integers(0, 9)))
    filter = data.draw(st.sampled_from(list(FILTERS)))
    if filter in ("bicubic", "lanczos"):
        source = source // 3 + 80
    found = resized(source, (out_h, out_w), box=box, interpolation=filter)
    assert gap(found, pillow(source, (out_h, out_w), box, filter)) <= 1


def test_a_picture_of_its_own_size_and_a_flat_one_do_not_change():
    source = picture(61, 83)
    assert np.array_equal(resized(source, (61, 83)), source)
    for level in (0, 1, 127, 254, 255):
        assert (resized(np.full((333, 77, 3), level, np.uint8), (50, 120)) == level).all()


def test_every_compiled_form_gives_the_same_bytes(backend: str):
    if backend == "python":
        pytest.skip("Pillow rounds between its passes")
    for channels in (1, 2, 3, 4):
        for held, size in SIZES:
            source = picture(*held, channels)
            for filter in FILTERS:
                here = resized(source, size, interpolation=filter)
                with using("portable"):
                    assert np.array_equal(resized(source, size, interpolation=filter), here)


def test_flip_mirrors_and_layouts_and_strides_hold_the_same_pixels():
    source = picture(70, 90)
    expected = resized(source, (40, 30))
    assert np.array_equal(resized(source, (40, 30), flip=True), expected[:, ::-1])
    assert np.array_equal(resized(source, (40, 30), box=(0, 0, 90, 70)), expected)
    batch = np.zeros((2, 40, 30, 3), np.uint8)
    kernels.resize_into(source, batch[1], layout="HWC")
    assert np.array_equal(batch[1], expected) and not batch[0].any()
    clip = np.zeros((3, 5, 40, 30), np.uint8)  # one frame of a (C, T, H, W) clip
    kernels.resize_into(source, clip[:, 2], layout="CHW")
    assert np.array_equal(clip[:, 2].transpose(1, 2, 0), expected) and not clip[:, 1].any() and not clip[:, 3].any()
    wide = picture(70, 200)
    assert np.array_equal(resized(wide[:, 10:100], (40, 30)), resized(wide[:, 10:100].copy(), (40, 30)))


def test_strides_of_sides_of_one_do_not_matter():
    grey = picture(9, 7, 1)
    for source in (grey[:, :, 0][:, :, None], grey[:, :1], picture(7, 9, 1).transpose(1, 0, 2)[:, :1], grey[3:4]):
        same = np.array(source.tolist(), np.uint8)
        assert np.array_equal(resized(np.ascontiguousarray(source), (4, 5)), resized(same, (4, 5)))


def test_arguments_that_do_not_fit_are_refused():
    source, slot = picture(10, 10), np.zeros((3, 4, 4), np.uint8)
    with pytest.raises(TypeMismatchError, match="source is 3-D float32"):
        kernels.resize_into(source.astype(np.float32), slot)
    with pytest.raises(DimensionError, match="cannot fill HWC"):
        kernels.resize_into(source, slot, layout="HWC")
    with pytest.raises(DimensionError, match="contiguous pixels"):
        kernels.resize_into(source[:, ::2], slot)
    with pytest.raises(DimensionError, match="expected sides of"):
        kernels.resize_into(source, np.zeros((3, 0, 4), np.uint8))
    for box in [(0, 0, 11, 10), (-1, 0, 5, 5), (5, 5, 5, 6), (0, 0, float("nan"), 5)]:
        with pytest.raises(InputError, match="is not inside an image of 10 x 10"):
            kernels.resize_into(source, slot, box=box)
    with pytest.raises(InputError, match="interpolation is 'cubic'"):
        kernels.resize_into(source, slot, interpolation="cubic")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="layout is 'NCHW'"):
        kernels.resize_into(source, slot, layout="NCHW")  # type: ignore[arg-type]
    slot.flags.writeable = False
    with pytest.raises(TypeMismatchError, match="target is read-only"):
        kernels.resize_into(source, slot)
