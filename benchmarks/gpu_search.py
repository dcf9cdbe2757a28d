"""Search and normalising on a CUDA device, against the bandwidth of a copy measured in the same run.

Peers: torch.mm(out_dtype=float32) and topk for float16, torch's usual form of normalising. Every result is compared
with its reference before it is timed. Without a device nothing is timed: the kernels run in Triton's interpreter on
small inputs, and the line says whether they agree with the specification.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterator

import harness
import numpy as np
import torch

Search = tuple[torch.Tensor, torch.Tensor]

DIMENSION = 768
GOALS = {
    "search, up to 16 queries": ">= 85 % of copy bandwidth (10M x 768: float16 <= 4.2 ms, int8 <= 2.1 ms)",
    "search, 64 queries": ">= 75 % of copy bandwidth (10M x 768: float16 <= 4.8 ms, int8 <= 2.4 ms)",
    "row list": "<= 0.3 ms + 1.2 x share x full scan",
    "peer": "faster than torch.mm(out_dtype=float32) + topk",
    "normalise": ">= 80 % of copy bandwidth",
}


def milliseconds(action: Callable[[], object], rounds: int) -> float:
    """The median time of a call, waiting included."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for turn in range(rounds + 3):
        begin.record()
        action()
        end.record()
        end.synchronize()
        if turn >= 3:  # the first compile, and warm the allocator
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def copy_rate(rounds: int) -> float:
    """Bytes read and written in a second by a copy of 4 GiB within the device."""
    source = torch.empty(4 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / milliseconds(lambda: target.copy_(source), rounds) * 1e3


def made(rows: int, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Random rows, a part at a time, and the scale that int8 needs."""
    matrix = torch.empty(rows, DIMENSION, dtype=kind, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    for start in range(0, rows, 1 << 18):
        part = matrix[start : start + (1 << 18)]
        floats = torch.randn(part.shape, device="cuda", generator=generator)
        part.copy_((floats * 28).round().clamp(-127, 127) if kind == torch.int8 else floats)
    scale = torch.full((rows,), 1 / 28, device="cuda") if kind == torch.int8 else None
    return matrix, scale


def checked(matrix: torch.Tensor, queries: torch.Tensor, found: Search, **options: torch.Tensor | None) -> bool:
    """Whether ids and scores are those of the specification, on the rows that were found and 20,000 others."""
    from deeplake_loader.kernels import reference

    some = torch.randperm(len(matrix), device="cuda")[:20_000]
    if options.get("rows") is not None:
        some = some[torch.isin(some, options["rows"])]
    rows = torch.cat([found[0].flatten(), some]).unique()
    scale = options.get("scale")
    part = None if scale is None else scale[rows].cpu().numpy()
    held = matrix[rows].cpu().numpy()
    ids, scores = reference.topk(held, queries.cpu().numpy(), found[0].shape[1], "cosine", scale=part)
    same = np.array_equal(rows.cpu().numpy()[ids], found[0].cpu().numpy())
    return same and np.array_equal(scores, found[1].cpu().numpy())


def by_torch(matrix: torch.Tensor, norms: torch.Tensor, queries: torch.Tensor, k: int) -> Search:
    """Cosine as users of torch write it, with scores in float32."""
    asked = (queries / queries.norm(dim=1, keepdim=True)).to(matrix.dtype)
    scores = torch.mm(asked, matrix.T, out_dtype=torch.float32)
    best: Search = scores.div_(norms).topk(k, dim=1)
    return best


def search(rows: int, kind: torch.dtype, rate: float, rounds: int) -> Iterator[dict[str, object]]:
    from deeplake_loader.kernels import triton as kernels

    matrix, scale = made(rows, kind)
    norms = kernels.row_norms(matrix, scale)
    floor = matrix.numel() * matrix.element_size() / rate * 1e3
    for count in (1, 16, 64):
        queries = torch.randn(count, DIMENSION, device="cuda")
        for k in (10, 256):

            def run(**filters: torch.Tensor) -> Search:
                return kernels.topk(matrix, queries, k, "cosine", scale=scale, norms=norms, **filters)  # noqa: B023

            right = checked(matrix, queries, run(), scale=scale)
            took = milliseconds(run, rounds)
            figures = {"rows": rows, "type": str(kind), "queries": count, "k": k, "right": right, "ms": took}
            figures |= {"floor_ms": floor, "of_copy": floor / took}
            if kind == torch.float16 and rows * count <= 640_000_000:  # float32 scores of the peer: 2.6 GB
                figures["torch_ms"] = milliseconds(lambda: by_torch(matrix, norms, queries, k), rounds)  # noqa: B023
            yield figures
            if count == 16 and k == 10:
                yield from filtered(run, matrix, (queries, scale), took, rounds)


def filtered(
    run: Callable[..., Search],
    matrix: torch.Tensor,
    others: tuple[torch.Tensor, torch.Tensor | None],
    full: float,
    rounds: int,
) -> Iterator[dict[str, object]]:
    """Random filters as a row list and as a bitmap, 16 queries, k = 10."""
    for share in (0.001, 0.1, 0.5):
        live = torch.rand(len(matrix), device="cuda") < share
        listed = live.nonzero().ravel()
        bitmap = torch.from_numpy(np.packbits(live.cpu().numpy(), bitorder="little")).cuda()
        right = checked(matrix, others[0], run(rows=listed), scale=others[1], rows=listed)
        equal = torch.equal(run(rows=listed)[0], run(bitmap=bitmap)[0])
        yield {
            "rows": len(matrix),
            "type": str(matrix.dtype),
            "filter": share,
            "right": right and equal,
            "list_ms": milliseconds(lambda: run(rows=listed), rounds),  # noqa: B023
            "bitmap_ms": milliseconds(lambda: run(bitmap=bitmap), rounds),  # noqa: B023
            "goal_ms": 0.3 + 1.2 * share * full,
        }


def pixels(rate: float, rounds: int) -> Iterator[dict[str, object]]:
    """64 batches of 64 x 224 x 224 x 3, and as many bytes of 1080p frames."""
    from deeplake_loader.kernels import reference
    from deeplake_loader.kernels import triton as kernels

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    batch = torch.randint(0, 256, (4096, 224, 224, 3), dtype=torch.uint8, device="cuda")
    y = torch.randint(0, 256, (200, 1080, 1920), dtype=torch.uint8, device="cuda")
    chroma = torch.randint(0, 256, (200, 540, 960, 2), dtype=torch.uint8, device="cuda")
    exact = reference.normalize(batch[:2].cpu().numpy(), list(mean), list(std)).transpose(0, 3, 1, 2)
    a, b = (torch.tensor(v, device="cuda").view(3, 1, 1) for v in (mean, std))
    for dtype, size, error in (("float16", 2, 2e-3), ("float32", 4, 1e-5)):
        found = kernels.normalize(batch[:2], mean, std, dtype)
        right = bool(np.abs(found.double().cpu().numpy() - exact).max() <= error)
        kind = getattr(torch, dtype)
        took = milliseconds(lambda: kernels.normalize(batch, mean, std, dtype), rounds)  # noqa: B023
        usual = milliseconds(lambda: batch[:64].permute(0, 3, 1, 2).float().div_(255).sub_(a).div_(b).to(kind), rounds)  # noqa: B023
        floor = batch.numel() * (1 + size) / rate * 1e3
        yield {"normalise": dtype, "right": right, "ms": took, "of_copy": floor / took, "torch_ms": usual * 64}
        options = {"matrix": "bt709", "range": "limited"}
        took = milliseconds(
            lambda: kernels.normalize_yuv(y, chroma[..., 0], chroma[..., 1], mean, std, dtype, **options),  # noqa: B023
            rounds,
        )
        yield {"nv12": dtype, "ms": took, "of_copy": y.numel() * (1.5 + 3 * size) / rate * 1e3 / took}


def on_device(options: argparse.Namespace) -> None:
    rate = copy_rate(options.rounds)
    about = {"device": torch.cuda.get_device_name(), "copy_gb_s": harness.short(rate / 1e9), "goals": GOALS}
    harness.emit("gpu search", **about)
    for rows in options.rows:
        for kind in (torch.float16, torch.int8):
            for figures in search(rows, kind, rate, options.rounds):
                harness.emit("gpu search", **figures)
            torch.cuda.empty_cache()
    for figures in pixels(rate, options.rounds):
        harness.emit("gpu pixels", **figures)


def interpreted() -> None:
    """The kernels on small inputs, in Triton's interpreter."""
    from deeplake_loader.kernels import reference
    from deeplake_loader.kernels import triton as kernels

    random = np.random.default_rng(0)
    matrix = random.standard_normal((300, 48)).astype(np.float16)
    queries = random.standard_normal((3, 48)).astype(np.float32)
    agree = {"engine": kernels.engine_of(torch.zeros(1))}
    for metric in ("cosine", "l2", "inner"):
        with np.errstate(all="ignore"):  # lanes of a tile beyond the last row
            rows, scores = kernels.topk(torch.from_numpy(matrix), torch.from_numpy(queries), 5, metric)
        ids, exact = reference.topk(matrix, queries, 5, metric)
        agree[metric] = np.array_equal(rows.numpy(), ids) and np.array_equal(scores.numpy(), exact)
    batch = random.integers(0, 256, (2, 9, 20, 3), dtype=np.uint8)
    floats = kernels.normalize(torch.from_numpy(batch), 0.5, 0.25).numpy().transpose(0, 2, 3, 1)
    agree["normalise"] = bool(np.abs(floats - reference.normalize(batch, [0.5] * 3, [0.25] * 3)).max() < 1e-6)
    harness.emit("gpu search", result="not run: no device", agrees_with_the_reference=agree, goals=GOALS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    if torch.cuda.is_available():
        on_device(options)
        return
    if harness.installed("triton"):
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    interpreted()


if __name__ == "__main__":
    main()
