from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_backends import NAMES, using

from deeplake_loader import kernels
from deeplake_loader.errors import DimensionError, InputError, TypeMismatchError
from deeplake_loader.kernels import reference

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHAPES = [
    (1, 1, 1),
    (2, 3, 5),
    (1, 1, 16),
    (3, 16, 17),
    (2, 31, 33),
    (1, 7, 61),
    (4, 224, 224),
    (1, 300, 400),
    (0, 4, 4),
]


@pytest.fixture(params=NAMES, scope="module", autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with using(request.param):
        yield request.param


def bytes_of(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def as_float(values: np.ndarray) -> np.ndarray:
    """float64; bfloat16 is told by its upper half of a float32."""
    if values.dtype.kind == "V":
        return (values.view("<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
    return values.astype(np.float64)


def rounded(exact: np.ndarray, dtype: str) -> np.ndarray:
    """By torch's own conversion, from float32."""
    return torch.from_numpy(exact.astype(np.float32)).to(getattr(torch, dtype)).double().numpy()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_layout_holds_the_reference_values(shape: tuple[int, ...], channels: int, dtype: str):
    batch = bytes_of(*shape, channels)
    mean, std = [0.485, 0.456, 0.406, 0.5][:channels], [0.229, 0.224, 0.225, 0.5][:channels]
    exact = reference.normalize(batch, mean, std)
    steps = {"float32": 2.0**-22, "float16": 2.0**-9, "bfloat16": 2.0**-6}[dtype]  # of numbers below 4
    for source, given_pixels in (("HWC", batch), ("CHW", np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))):
        for layout in ("HWC", "CHW"):
            found = kernels.normalize(given_pixels, mean, std, dtype, layout, source=source)
            pixels = as_float(found if layout == "HWC" else found.transpose(0, 2, 3, 1))
            assert pixels.shape == exact.shape
            assert not exact.size or np.abs(pixels - exact).max() <= steps, (source, layout)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_form_gives_the_bits_of_one_multiply_add_and_one_rounding(dtype: str):
    batch = np.arange(256, dtype=np.uint8).reshape(1, 1, 256, 1).repeat(3, axis=3)
    a = (1 / (255 * np.array(STD))).astype(np.float32).astype(np.float64)
    b = (-np.array(MEAN) / np.array(STD)).astype(np.float32).astype(np.float64)
    expected = rounded(np.arange(256)[None, None, :, None] * a + b, dtype)  # the product and the sum are exact
    for layout in ("HWC", "CHW"):
        found = as_float(kernels.normalize(batch, MEAN, STD, dtype, layout))
        assert np.array_equal(found if layout == "HWC" else found.transpose(0, 2, 3, 1), expected)


@given(st.data())
def test_any_strides_any_offset_and_any_number_of_threads_give_the_same_bits(data: st.DataObject):
    count, height, width = (data.draw(st.integers(1, 40)) for _ in range(3))
    dtype = data.draw(st.sampled_from(["float32", "float16", "bfloat16"]))
    layout = data.draw(st.sampled_from(["HWC", "CHW"]))
    offset = data.draw(st.integers(0, 7))
    room = bytes_of(offset + count * height * width * 3)
    batch = room[offset:].reshape(count, height, width, 3)
    expected = kernels.normalize(batch.copy(), MEAN, STD, dtype, layout)
    assert kernels.normalize(batch, MEAN, STD, dtype, layout, threads=3).tobytes() == expected.tobytes()
    wide = np.zeros((count, height * 2, width, 3), np.uint8)
    wide[:, ::2] = batch
    assert kernels.normalize(wide[:, ::2], MEAN, STD, dtype, layout).tobytes() == expected.tobytes()
    mirrored = np.ascontiguousarray(batch[:, :, ::-1])[:, :, ::-1]
    assert kernels.normalize(mirrored, MEAN, STD, dtype, layout).tobytes() == expected.tobytes()
    slots = np.zeros((2, *expected.shape), expected.dtype)
    assert kernels.normalize(batch, MEAN, STD, dtype, layout, out=slots[1]) is not None
    assert slots[1].tobytes() == expected.tobytes() and not slots[0].view(np.uint8).any()
    room = np.zeros(expected.nbytes + 1, np.uint8)[1:]  # an odd address
    odd = room.view(expected.dtype).reshape(expected.shape)
    kernels.normalize(batch, MEAN, STD, dtype, layout, out=odd)
    assert odd.tobytes() == expected.tobytes()


def test_out_of_any_strides_is_filled_in_place():
    batch = bytes_of(2, 9, 11, 3)
    expected = kernels.normalize(batch, MEAN, STD)
    room = np.zeros((2, 3, 9, 22), np.float32)
    kernels.normalize(batch, MEAN, STD, out=room[:, :, :, ::2])
    assert np.array_equal(room[..., ::2], expected) and not room[..., 1::2].any()


@pytest.mark.parametrize("std", [1e-4, 1e-3, 40.0, 3e4])
def test_float16_rounds_as_numpy_does_down_to_subnormals_and_up_to_infinity(std: float):
    batch = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    found = kernels.normalize(batch, 0.25, std, "float16", "HWC")
    single = kernels.normalize(batch, 0.25, std, "float32", "HWC")
    with np.errstate(over="ignore"):
        assert np.array_equal(found, single.astype(np.float16))


def test_arguments_that_do_not_fit_are_refused():
    batch = bytes_of(2, 4, 4, 3)
    with pytest.raises(TypeMismatchError, match="4-D uint8"):
        kernels.normalize(batch[0], 0, 1)
    with pytest.raises(DimensionError, match="5 channels"):
        kernels.normalize(bytes_of(1, 2, 2, 5), 0, 1)
    for mean, std in [((0, 0), 1), (0, 0), (0, -1), (float("nan"), 1), (0, 1e-40)]:
        with pytest.raises(InputError, match=r"mean|std"):
            kernels.normalize(batch, mean, std)
    for options in ({"dtype": "float64"}, {"layout": "CWH"}, {"source": "NHWC"}):
        with pytest.raises(InputError, match="expected"):
            kernels.normalize(batch, 0, 1, **options)  # type: ignore[arg-type]
    with pytest.raises(DimensionError, match="out is"):
        kernels.normalize(batch, 0, 1, out=np.zeros((2, 4, 4, 3), np.float32))
    with pytest.raises(TypeMismatchError, match="out is float64"):
        kernels.normalize(batch, 0, 1, out=np.zeros((2, 3, 4, 4)))


# video frames


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("range", ["limited", "full"])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (5, 7), (48, 64)])
def test_yuv_frames_become_the_reference_rgb(size: tuple[int, int], matrix: str, range: str):
    height, width = size
    y, chroma = bytes_of(3, height, width), bytes_of(3, (height + 1) // 2, (width + 1) // 2, 2, seed=1)
    u, v = chroma[..., 0], chroma[..., 1]  # NV12
    exact = reference.normalize(reference.yuv_to_rgb(y, u, v, matrix, range), MEAN, STD)
    for planes in ((y, u, v), (y, u.copy(), v.copy())):
        found = kernels.normalize_yuv(*planes, MEAN, STD, matrix=matrix, range=range, threads=2)
        assert np.abs(found.transpose(0, 2, 3, 1) - exact).max() <= 1e-5 / min(STD)
        half = as_float(kernels.normalize_yuv(*planes, MEAN, STD, "bfloat16", "HWC", matrix=matrix, range=range))
        assert np.abs(half - exact).max() <= 2.0**-6


def test_black_white_and_grey_are_what_the_range_says():
    grey = np.full((1, 1, 1), 128, np.uint8)
    for range, levels in (("limited", {16: 0, 235: 1, 0: 0, 255: 1}), ("full", {0: 0, 255: 1})):
        for level, expected in levels.items():
            y = np.full((1, 2, 2), level, np.uint8)
            found = kernels.normalize_yuv(y, grey, grey, 0, 1, matrix="bt709", range=range)
            assert np.abs(found - expected).max() < 1e-6
    with pytest.raises(InputError, match="matrix is 'bt2020'"):
        kernels.normalize_yuv(y, grey, grey, 0, 1, matrix="bt2020", range="full")
    with pytest.raises(DimensionError, match="do not go with y"):
        kernels.normalize_yuv(y, grey, np.zeros((1, 2, 2), np.uint8), 0, 1, matrix="bt709", range="full")
