"""Kernels of a device against the specification: in Triton's interpreter, by torch alone, and on a device with one.

The interpreter decides when Triton is first imported, so it has a process of its own; so has the compiler.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deeplake_loader.kernels.triton import plain, search

from deeplake_loader import kernels
from deeplake_loader.decode.normalize import Normalize, as_array
from deeplake_loader.errors import DimensionError, InputError, TypeMismatchError
from deeplake_loader.kernels import reference
from deeplake_loader.kernels import triton as device_kernels

Call = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]
METRICS = ("cosine", "l2", "inner")
DTYPES = ("float32", "float16", "bfloat16", "int8")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HOPPER_SHARED = 232_448
"""Bytes of shared memory that a program can have on compute capability 9.0."""


def _missing() -> str:
    """Why neither the interpreter nor the compiler can be used here; empty where they can."""
    try:
        found = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "Triton is not installed"
    old = tuple(map(int, found.split(".")[:2])) < (3, 9)
    return f"the interpreter of Triton {found} does not go with NumPy 2.4; that of 3.9 does" if old else ""


no_triton = pytest.mark.skipif(bool(_missing()), reason=_missing())


def _elsewhere(interpret: str, folder: Path) -> Iterator[Call]:
    """Calls functions in another process, whose Triton interprets or compiles."""
    with ProcessPoolExecutor(1, get_context("spawn"), _prepare, (interpret, str(folder))) as pool:
        yield lambda function, *args, **options: pool.submit(function, *args, **options).result()


def _prepare(interpret: str, folder: str) -> None:
    os.environ.update(TRITON_INTERPRET=interpret, TRITON_CACHE_DIR=folder)
    np.seterr(all="ignore")  # the interpreter computes lanes beyond the last row too


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    yield from _elsewhere("1", tmp_path_factory.mktemp("triton"))


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    yield from _elsewhere("0", tmp_path_factory.mktemp("triton"))


@pytest.fixture(
    params=[pytest.param("interpreter", marks=no_triton), "torch", pytest.param("cuda", marks=pytest.mark.gpu)]
)
def engine(request: pytest.FixtureRequest) -> Call:
    """Calls one of the functions below with the device that it is to use."""
    if request.param == "interpreter":
        run = request.getfixturevalue("interpreter")
        return lambda function, *args, **options: run(function, "cpu", *args, **options)
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    name = "cuda" if request.param == "cuda" else "cpu"
    return lambda function, *args, **options: function(name, *args, **options)


@pytest.fixture
def plainly() -> Call:
    """Calls one of the functions below with the CPU, in this process."""
    return lambda function, *args, **options: function("cpu", *args, **options)


def tensor(array: np.ndarray | None, device: str) -> torch.Tensor | None:
    """The array on the device; 16-bit integers are bfloat16."""
    if array is None:
        return None
    made = torch.from_numpy(array.view(np.int16) if array.dtype == np.uint16 else array)
    return (made.view(torch.bfloat16) if array.dtype == np.uint16 else made).to(device)


def run_topk(
    device: str, matrix: np.ndarray, queries: np.ndarray, k: int, metric: str, norms: bool = False, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    held, asked = tensor(matrix, device), tensor(queries, device)
    chosen = {name: tensor(value, device) for name, value in options.items()}
    known = device_kernels.row_norms(held, chosen.get("scale")) if norms else None
    rows, scores = device_kernels.topk(held, asked, k, metric, norms=known, **chosen)
    return rows.cpu().numpy(), scores.cpu().numpy()


def stored(floats: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """The matrix in one of the stored types, and the scale that int8 needs."""
    if dtype == "bfloat16":
        return {"matrix": (floats.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)}
    if dtype == "int8":
        scale = (np.abs(floats).max(axis=1, initial=1e-3) / 127).astype(np.float32)
        return {"matrix": np.rint(floats / scale[:, None]).clip(-128, 127).astype(np.int8), "scale": scale}
    return {"matrix": floats.astype(dtype)}


def vectors(rows: int, dimension: int, queries: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.standard_normal((rows, dimension)), random.standard_normal((queries, dimension)).astype(np.float32)


def same(
    engine: Call, matrix: np.ndarray, queries: np.ndarray, k: int, metric: str, *, norms: bool = False, **options: Any
) -> np.ndarray:
    """Asserts that rows and scores are the specification's, to the last bit; gives the rows."""
    rows, scores = engine(run_topk, matrix, queries, k, metric, norms, **options)
    expected, exact = reference.topk(matrix, np.atleast_2d(queries), k, metric, **options)
    assert (rows.dtype, scores.dtype) == (np.int64, np.float64)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(scores, exact)
    return rows


# search


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_best_rows_and_their_scores_are_those_of_the_specification(engine: Call, dtype: str, metric: str):
    floats, queries = vectors(300, 52, 2)  # 52: no tile's width, no multiple of 16 bytes
    same(engine, **stored(floats, dtype), queries=queries, k=5, metric=metric)


@pytest.mark.parametrize(("dtype", "dimension"), [("float16", 64), ("int8", 128), ("float32", 32)])
def test_many_queries_and_whole_tiles(engine: Call, dtype: str, dimension: int):
    floats, queries = vectors(90, dimension, 33)
    same(engine, **stored(floats, dtype), queries=queries, k=1, metric="cosine", norms=True)


def test_more_queries_than_a_scan_takes(plainly: Call):
    floats, queries = vectors(1000, 16, 70)
    same(plainly, floats.astype(np.float16), queries, 20, "l2")


@pytest.mark.parametrize(("rows", "k"), [(1, 1), (1, 4), (33, 256), (129, 7)])
def test_few_rows_and_more_asked_for_than_there_are(engine: Call, rows: int, k: int):
    floats, queries = vectors(rows, 5, 2)
    same(engine, floats.astype(np.float16), queries, k, "l2")
    same(engine, floats.astype(np.float16), queries[0], k, "inner")


def test_nothing_to_search_or_nothing_asked_gives_nothing(engine: Call):
    floats, queries = vectors(9, 4, 2)
    same(engine, floats[:0].astype(np.float32), queries, 3, "cosine")
    rows, scores = engine(run_topk, floats.astype(np.float32), queries[:0], 3, "l2")
    assert rows.shape == scores.shape == (0, 3)
    same(engine, floats.astype(np.float32), queries, 3, "l2", rows=np.zeros(0, np.int64))


@pytest.mark.parametrize("share", [0.0, 0.005, 0.5, 1.0])
def test_filters_by_list_and_by_bitmap_choose_the_same_rows(engine: Call, share: float):
    floats, queries = vectors(400, 24, 2)
    random = np.random.default_rng(1)
    live = random.random(400) < share
    bitmap = np.packbits(live, bitorder="little")
    listed = random.permutation(np.repeat(np.flatnonzero(live), 2)).astype(np.int64)
    by_bits = same(engine, floats.astype(np.float16), queries, 2, "inner", bitmap=bitmap)
    by_list = same(engine, floats.astype(np.float16), queries, 2, "inner", rows=listed)
    np.testing.assert_array_equal(by_bits, by_list)


def test_the_last_row_alone(engine: Call):
    floats, queries = vectors(601, 24, 1)
    only = np.zeros(601, bool)
    only[600] = True
    same(engine, floats.astype(np.float32), queries, 3, "l2", bitmap=np.packbits(only, bitorder="little"))
    same(engine, floats.astype(np.float32), queries, 3, "l2", rows=np.array([600]))


def test_equal_scores_go_to_the_lowest_rows_however_many_groups_hold_them(engine: Call):
    matrix = np.ones((500, 8), np.float16)
    matrix[300:] = 2
    for metric in METRICS:
        rows = same(engine, matrix, np.full((1, 8), 1.5, np.float32), 3, metric)
        assert rows[0].tolist() == list(range(300, 303) if metric == "inner" else range(3))


def test_rows_nearer_to_each_other_than_the_scan_can_tell_are_told_apart(engine: Call):
    random = np.random.default_rng(2)
    matrix = (1 + random.random((400, 40)) * 1e-6).astype(np.float32)
    for metric in METRICS:
        same(engine, matrix, np.ones((1, 40), np.float32), 2, metric)


def test_a_scan_in_doubt_is_followed_by_a_second_look(plainly: Call, monkeypatch: pytest.MonkeyPatch):
    looks = []
    again = search._search_again
    monkeypatch.setattr(search, "_search_again", lambda *args: looks.append(1) or again(*args))
    floats, queries = vectors(3000, 16, 2)
    same(plainly, floats.astype(np.float32), queries, 3, "cosine")
    assert not looks
    same(plainly, np.ones((3000, 16), np.float32), queries, 3, "cosine")
    assert looks


def test_rows_and_queries_without_a_score_never_appear(engine: Call):
    floats, queries = vectors(100, 12, 6)
    matrix = floats.astype(np.float32)
    matrix[::3, 4], matrix[1::9, 0], matrix[2::9] = np.nan, np.inf, 0
    matrix[5], matrix[8] = -0.0, -np.inf
    queries[1, 3], queries[2, 0], queries[3], queries[4, 1] = np.nan, np.inf, 0, -np.inf
    for metric in METRICS:
        same(engine, matrix, queries, 60, metric)


@pytest.mark.parametrize("size", [1e-38, 1e-20, 1e30])
def test_numbers_at_the_ends_of_float32(engine: Call, size: float):
    floats, queries = vectors(330, 12, 1)
    matrix = (floats * size).astype(np.float32)
    for metric in METRICS:
        same(engine, matrix, queries, 1, metric)
        same(engine, matrix, queries * np.float32(size), 1, metric)


def test_strides_and_odd_addresses_change_nothing(engine: Call):
    floats, queries = vectors(200, 30, 2)
    room = np.zeros(1 + 200 * 37, np.float16)
    matrix = room[1:].reshape(200, 37)[:, 3:33]
    matrix[:] = floats
    same(engine, matrix, queries, 5, "cosine")
    same(engine, matrix[::2], queries[::-1].copy(), 5, "l2")


def run_bounds(device: str, matrix: np.ndarray, queries: np.ndarray, metric: str, **options: Any) -> np.ndarray:
    """(q, groups): how far each group's bound lies above its best exact score, in the scan's units."""
    held, asked = tensor(matrix, device), tensor(queries, device)
    scale = tensor(options.get("scale"), device)
    norms = device_kernels.row_norms(held, scale)
    problem = search.Problem(held, asked, metric, norms, scale, None, None)
    chosen = search._engine(problem)
    keys, facts = chosen.scan(problem)
    every = torch.arange(problem.groups, device=held.device).expand(len(asked), problem.groups).contiguous()
    exact = chosen.rescore(problem, every).reshape(len(asked), problem.groups, -1).amax(dim=2)
    units = torch.stack([search._in_scan_units(column, facts, metric) for column in exact.T], dim=1)
    return (search._bounds(keys).double() - units).cpu().numpy()


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_score_exceeds_its_groups_bound_and_bounds_are_close(engine: Call, dtype: str):
    floats, queries = vectors(130, 40, 2, seed=3)
    for metric in METRICS:
        above = engine(run_bounds, **stored(floats, dtype), queries=queries, metric=metric)
        assert above.min() >= 0
        assert above.max() <= 2e-3 * 40  # lengths of about 6 each: a thousandth of what scores may be


def test_row_norms_are_lengths_and_tell_rows_without_scores(engine: Call):
    floats, _ = vectors(50, 20, 1)
    matrix = floats.astype(np.float32)
    matrix[3, 2], matrix[4, 1], matrix[5], matrix[6] = np.nan, np.inf, 0, 1e38
    found = engine(run_norms, matrix)
    exact = np.linalg.norm(matrix.astype(np.float64), axis=1)
    assert np.isnan(found[3:5]).all() and found[5] == 0 and np.isinf(found[6])
    np.testing.assert_allclose(np.delete(found, [3, 4, 6]), np.delete(exact, [3, 4, 6]), rtol=1e-7)


def run_norms(device: str, matrix: np.ndarray) -> np.ndarray:
    return device_kernels.row_norms(tensor(matrix, device)).cpu().numpy()


def test_arguments_of_a_search_that_do_not_fit_are_refused():
    matrix, query = torch.zeros(10, 4), torch.zeros(4)
    find = device_kernels.topk
    with pytest.raises(TypeMismatchError, match="float64"):
        find(matrix.double(), query, 1, "l2")
    with pytest.raises(TypeMismatchError, match="contiguous rows"):
        find(torch.zeros(4, 10).T, query, 1, "l2")
    with pytest.raises(TypeMismatchError, match=r"queries are torch\.float64"):
        find(matrix, query.double(), 1, "l2")
    for bad in (torch.zeros(5), torch.zeros(1, 1, 4)):
        with pytest.raises(DimensionError, match="queries are"):
            find(matrix, bad, 1, "l2")
    both = {"rows": torch.tensor([1]), "bitmap": torch.zeros(2).byte()}
    beyond = ({"rows": torch.tensor([10])}, {"rows": torch.tensor([3, -1])})
    for options in ({"k": 0}, {"metric": "dot"}, {"scale": torch.ones(10)}, both, *beyond):
        with pytest.raises(InputError):
            find(**{"matrix": matrix, "queries": query, "k": 1, "metric": "l2", **options})
    with pytest.raises(InputError, match="scale is None"):
        find(matrix.to(torch.int8), query, 1, "l2")
    with pytest.raises(TypeMismatchError, match="rows is 1-D"):
        find(matrix, query, 1, "l2", rows=torch.zeros(2))
    with pytest.raises(DimensionError, match="bitmap holds 1 bytes"):
        find(matrix, query, 1, "l2", bitmap=torch.zeros(1).byte())
    with pytest.raises(DimensionError, match="norms is"):
        find(matrix, query, 1, "l2", norms=torch.zeros(9))


# pixels


def run_normalize(device: str, batch: np.ndarray, *args: Any, **options: Any) -> np.ndarray:
    return as_array(device_kernels.normalize(tensor(batch, device), *args, **options).cpu()).view(np.uint8)


def run_yuv(device: str, y: np.ndarray, chroma: np.ndarray, *args: Any, **options: Any) -> np.ndarray:
    of = tensor(chroma, device)
    made = device_kernels.normalize_yuv(tensor(y, device), of[..., 0], of[..., 1], *args, **options)
    return made.float().cpu().numpy()


def run_step(device: str, pixels: np.ndarray, step: Normalize) -> np.ndarray:
    return step.on_device(tensor(pixels, device)).cpu().numpy()


def bytes_of(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def numbers_of(raw: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    kind = torch.from_numpy(raw.copy()).view(getattr(torch, dtype))
    return kind.double().numpy().reshape(shape)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pixels_in_every_layout_hold_the_reference_values(engine: Call, dtype: str, channels: int):
    batch = bytes_of(2, 37, 33, channels)
    mean, std = [0.485, 0.456, 0.406, 0.5][:channels], [0.229, 0.224, 0.225, 0.5][:channels]
    exact = reference.normalize(batch, mean, std)
    step = {"float32": 2.0**-20, "float16": 2.0**-9, "bfloat16": 2.0**-6}[dtype]  # of numbers below 4
    planes = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
    for source, given in (("HWC", batch), ("CHW", planes)):
        for layout, expected in (("HWC", exact), ("CHW", exact.transpose(0, 3, 1, 2))):
            raw = engine(run_normalize, given, mean, std, dtype, layout, source=source)
            assert np.abs(numbers_of(raw, dtype, expected.shape) - expected).max() <= step, (source, layout)


@no_triton
@pytest.mark.parametrize("dtype", ["float32", "float16"])  # the interpreter cuts bfloat16 off instead of rounding it
def test_the_kernel_gives_the_bits_of_the_cpu_kernel(interpreter: Call, dtype: str):
    batch = bytes_of(3, 16, 40, 3)
    for layout in ("HWC", "CHW"):
        expected = kernels.normalize(batch, MEAN, STD, dtype, layout).tobytes()
        assert interpreter(run_normalize, "cpu", batch, MEAN, STD, dtype, layout).tobytes() == expected


def test_pixels_of_rows_with_gaps_are_right(engine: Call):
    batch = bytes_of(2, 10, 33, 3)
    exact = reference.normalize(batch[:, ::2], MEAN, STD).transpose(0, 3, 1, 2)
    raw = engine(run_gaps, batch)
    np.testing.assert_allclose(numbers_of(raw, "float32", exact.shape), exact, rtol=0, atol=2e-6)


def run_gaps(device: str, batch: np.ndarray) -> np.ndarray:
    pixels = tensor(batch, device)[:, ::2]
    out = torch.empty(2, 3, 5, 33, device=device)
    assert device_kernels.normalize(pixels, MEAN, STD, out=out) is out
    return as_array(out.cpu()).view(np.uint8)


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("range", ["limited", "full"])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (32, 48)])
def test_nv12_frames_become_the_reference_rgb(engine: Call, size: tuple[int, int], matrix: str, range: str):
    height, width = size
    y, chroma = bytes_of(3, height, width), bytes_of(3, (height + 1) // 2, (width + 1) // 2, 2, seed=1)
    exact = reference.normalize(reference.yuv_to_rgb(y, chroma[..., 0], chroma[..., 1], matrix, range), MEAN, STD)
    found = engine(run_yuv, y, chroma, MEAN, STD, matrix=matrix, range=range)
    assert np.abs(found.transpose(0, 2, 3, 1) - exact).max() <= 1e-5 / min(STD)
    half = engine(run_yuv, y, chroma, MEAN, STD, "float16", "HWC", matrix=matrix, range=range)
    assert np.abs(half - exact).max() <= 2.0**-9


@pytest.mark.parametrize("layout", ["CHW", "TCHW", "CTHW", "HWC", "THWC"])
def test_the_second_step_of_decoding_is_the_same_behind_the_copy(engine: Call, layout: str):
    shape = [3 if axis == "C" else {"T": 2, "H": 5, "W": 9}[axis] for axis in layout]
    pixels = bytes_of(4, *shape)
    step = Normalize(MEAN, STD, "float32", layout)
    np.testing.assert_allclose(engine(run_step, pixels, step), step.apply(pixels), rtol=0, atol=2e-6)


def test_pixels_that_do_not_fit_are_refused():
    batch = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    with pytest.raises(TypeMismatchError, match="4-D uint8"):
        device_kernels.normalize(batch.float(), 0, 1)
    with pytest.raises(DimensionError, match="5 channels"):
        device_kernels.normalize(torch.zeros(1, 2, 2, 5, dtype=torch.uint8), 0, 1)
    for options in ({"dtype": "float64"}, {"layout": "CWH"}, {"source": "NHWC"}):
        with pytest.raises(InputError, match="expected"):
            device_kernels.normalize(batch, 0, 1, **options)  # type: ignore[arg-type]
    with pytest.raises(DimensionError, match="out is"):
        device_kernels.normalize(batch, 0, 1, out=torch.zeros(2, 4, 4, 3))
    with pytest.raises(TypeMismatchError, match="expected contiguous"):
        device_kernels.normalize(batch, 0, 1, out=torch.zeros(2, 4, 4, 3).permute(0, 3, 1, 2))
    grey = torch.zeros(1, 1, 1, dtype=torch.uint8)
    with pytest.raises(DimensionError, match="do not go with y"):
        device_kernels.normalize_yuv(batch[0], grey, grey, 0, 1, matrix="bt709", range="full")


# ahead of time


def _compiled(function: Any, types: dict[str, str], constants: dict[str, Any]) -> dict[str, Any]:
    """What becomes of a kernel for compute capability 9.0, whose pointers and row stride are multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    options = {k: constants[k] for k in ("num_warps", "num_stages", "enable_fp_fusion") if k in constants}
    signature = {name: types.get(name, "constexpr") for name in function.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(function.arg_names)
        if signature[name].startswith("*") or name in ("row_stride", "size", "out_channel", "in_image", "out_image")
    }
    source = ASTSource(function, signature, {k: v for k, v in constants.items() if k not in options}, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(made.asm["ptx"])
        file.flush()
        command = [get_ptxas(90).path, "-v", "--gpu-name=sm_90a", file.name, "-o", os.devnull]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = re.search(r"(\d+) bytes spill stores", log)
    assert found, log
    return {"shared": made.metadata.shared, "spilled": int(found[1]), "ptx": made.asm["ptx"]}


def _problem(dtype: str, queries: int, metric: str, *, rows: bool = False, bits: bool = False) -> search.Problem:
    kind = getattr(torch, dtype)
    return search.Problem(
        torch.empty(64, 768, dtype=kind), torch.empty(queries, 768), metric, torch.empty(64),
        torch.empty(64) if dtype == "int8" else None, torch.empty(1).long() if rows else None,
        torch.empty(8).byte() if bits else None,
    )  # fmt: skip


def _type(dtype: str) -> str:
    return {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16", "int8": "*i8"}[dtype]


_COMMON = {
    "NORMS": "*fp32", "SCALE": "*fp32", "BITS": "*u8", "ROWS": "*i64", "positions": "i64", "row_stride": "i32",
    "FACTS": "*fp64", "SLACK": "*fp32", "queries": "i32",
}  # fmt: skip


def compile_scan(dtype: str, queries: int, metric: str, **filters: bool) -> dict[str, Any]:
    from deeplake_loader.kernels.triton import scan

    types = {**_COMMON, "X": _type(dtype), "PARTS_IN": _type(dtype), "KEYS": "*i64", "groups": "i64"}
    return _compiled(scan.scan_kernel, types, scan.scan_constants(_problem(dtype, queries, metric, **filters)))


def compile_rescore(dtype: str, metric: str) -> dict[str, Any]:
    from deeplake_loader.kernels.triton import scan

    types = {**_COMMON, "X": _type(dtype), "QUERIES": "*fp32", "GROUPS": "*i64", "OUT": "*fp64", "taken": "i32"}
    return _compiled(scan.rescore_kernel, types, scan.rescore_constants(_problem(dtype, 16, metric)))


def compile_pixels() -> dict[str, Any]:
    from deeplake_loader.kernels.triton import pixels

    numbers = {f"{name}{i}": "fp32" for name in "ab" for i in range(4)}
    strides = dict.fromkeys(("size", "in_image", "in_pixel", "out_image", "out_channel"), "i32")
    constants = {"CHANNELS": 3, "BLOCK": pixels._RUN, "in_channel": 1, "out_pixel": 1, "enable_fp_fusion": True}
    return _compiled(pixels.moving_kernel, {**numbers, **strides, "PIXELS": "*u8", "OUT": "*fp16"}, constants)


@pytest.fixture
def ahead_of_time(compiler: Call) -> Call:
    """Compiles for a GPU that need not be there."""
    problem = compiler(_no_assembler)
    if problem:
        pytest.skip(problem)
    return compiler


def _no_assembler() -> str:
    try:
        from triton.backends.nvidia.compiler import get_ptxas

        return "" if os.path.exists(get_ptxas(90).path) else "ptxas is missing"
    except (ImportError, RuntimeError) as error:
        return f"Triton's assembler ptxas cannot be used: {error}"


@no_triton
@pytest.mark.parametrize("queries", [16, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scan_fits_hopper_and_keeps_its_tensor_cores_fed(ahead_of_time: Call, dtype: str, queries: int):
    made = ahead_of_time(compile_scan, dtype, queries, "cosine")
    assert made["shared"] <= (HOPPER_SHARED // 3 if queries == 16 else HOPPER_SHARED)  # three programs at a time
    assert made["spilled"] == 0
    assert "wgmma.mma_async" in made["ptx"] and re.search(r"cp\.async\.cg\.shared\.global.*, 0x10", made["ptx"])


@no_triton
@pytest.mark.parametrize("filters", [{"rows": True}, {"bits": True}])
def test_a_filtered_scan_is_still_loaded_ahead(ahead_of_time: Call, filters: dict[str, bool]):
    made = ahead_of_time(compile_scan, "float16", 16, "l2", **filters)
    assert made["spilled"] == 0 and "wgmma.mma_async" in made["ptx"] and "cp.async.cg" in made["ptx"]


@no_triton
@pytest.mark.parametrize("metric", METRICS)
def test_exact_scores_are_rounded_as_ieee_754_says(ahead_of_time: Call, metric: str):
    made = ahead_of_time(compile_rescore, "float16", metric)
    rounded = {"cosine": ("sqrt.rn.f64", "div.rn.f64"), "l2": ("sqrt.rn.f64",), "inner": ()}[metric]
    assert made["spilled"] == 0 and "fma.rn.f64" not in made["ptx"]
    assert all(operation in made["ptx"] for operation in rounded) and "approx" not in made["ptx"]


@no_triton
def test_pixels_are_written_in_vectors(ahead_of_time: Call):
    made = ahead_of_time(compile_pixels)
    assert made["spilled"] == 0 and "st.global.v2.b32" in made["ptx"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_benchmark_finds_every_result_right_on_the_device():
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_search.py", "--rows", "200000", "--rounds", "3"],
        capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    results = [line["right"] for line in lines if "right" in line]
    assert len(results) >= 20 and all(results), done.stdout


def test_engine_of_says_what_runs():
    assert device_kernels.engine_of(torch.zeros(1)) == "torch"
    assert search._engine(_problem("float16", 1, "l2")) is plain
