"""Media to tensors on the CPU: images and clips to 224 x 224, beside the bare decoders and the libraries around them.

The figure is CPU time for an item, of all threads together, except where the claim is a time of memory or of cores. The
pictures are made here; `--photos FOLDER` takes the JPEGs of a folder instead. What every contestant gives is compared
before it is timed. A peer runs where it can be imported; torchcodec and spdl need FFmpeg's libraries beside them.
"""

from __future__ import annotations

import importlib
import io
import itertools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import harness
import numpy as np

from deeplake_loader import kernels
from deeplake_loader.codecs import MediaInfo, encode
from deeplake_loader.database import Database, connect
from deeplake_loader.decode import cpu, video
from deeplake_loader.decode.transforms import Image, Video
from deeplake_loader.types import ColumnType

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Maker = Callable[[bytes, Pixels], None]
"""Fills a (3, 224, 224) slot from a JPEG's centre."""
Turns = dict[str, Callable[[], float]]

SIDE = 224
FRAMES = 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_ANY, _ASKED = MediaInfo("image"), Image(size=SIDE)


def cpu_seconds(action: Callable[[], object], items: int = 1) -> float:
    """Of all threads of this process, for one of the items."""
    start = time.process_time()
    action()
    return (time.process_time() - start) / items


# images


@cache
def made_photos(count: int, height: int, width: int) -> list[bytes]:
    """Different JPEGs with detail of every size, about 2.5 bits a pixel."""
    from PIL import Image as Pillow

    generator, found = np.random.default_rng(5), []
    for _ in range(count):
        pixels = np.zeros((height, width, 3))
        for cells in (4, 16, 64, 256):
            noise = generator.integers(0, 256, (cells, cells, 3), np.uint8)
            pixels += (
                np.asarray(Pillow.fromarray(noise).resize((width, height), Pillow.Resampling.BICUBIC)) / cells**0.5
            )
        file = io.BytesIO()
        Pillow.fromarray((pixels * (255 / pixels.max())).astype(np.uint8)).save(file, "JPEG", quality=88)
        found.append(file.getvalue())
    return found


def photos(folder: str | None, count: int, height: int, width: int, least: float, most: float) -> list[bytes]:
    """JPEGs whose shorter side is ``least`` to ``most`` times the target's: those of the folder, or made ones."""
    if folder is None:
        return made_photos(count, height, width)
    import simplejpeg

    files = [p.read_bytes() for p in sorted(Path(folder).iterdir()) if p.suffix.lower() in (".jpg", ".jpeg")]
    colour = [(f, simplejpeg.decode_jpeg_header(f)) for f in files]
    return [f for f, h in colour if h[2] != "Gray" and least <= min(h[:2]) / SIDE < most][:count]


def centre(height: int, width: int) -> tuple[float, float, float, float]:
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def ours(data: bytes, slot: Pixels) -> None:
    cpu.decode_into(data, _ANY, _ASKED, slot)


def bare_own_resize(data: bytes, slot: Pixels) -> None:
    import simplejpeg

    pixels = simplejpeg.decode_jpeg(data, "RGB")
    kernels.resize_into(pixels, slot, box=centre(*pixels.shape[:2]))


def bare_torch_resize(data: bytes, slot: Pixels) -> None:
    import simplejpeg
    import torch

    pixels = simplejpeg.decode_jpeg(data, "RGB")
    x0, y0, x1, y1 = (round(edge) for edge in centre(*pixels.shape[:2]))
    part = torch.from_numpy(pixels)[y0:y1, x0:x1].permute(2, 0, 1)[None]
    slot[...] = torch.nn.functional.interpolate(part, (SIDE, SIDE), mode="bilinear", antialias=True)[0].numpy()


def bare_pillow_resize(data: bytes, slot: Pixels) -> None:
    import simplejpeg
    from PIL import Image as Pillow

    pixels = simplejpeg.decode_jpeg(data, "RGB")
    picture = Pillow.fromarray(pixels)
    resized = picture.resize((SIDE, SIDE), Pillow.Resampling.BILINEAR, box=centre(*pixels.shape[:2]))
    slot[...] = np.asarray(resized).transpose(2, 0, 1)


def pillow(data: bytes, slot: Pixels) -> None:
    from PIL import Image as Pillow

    with Pillow.open(io.BytesIO(data)) as picture:
        box = centre(picture.height, picture.width)
        resized = picture.convert("RGB").resize((SIDE, SIDE), Pillow.Resampling.BILINEAR, box=box)
    slot[...] = np.asarray(resized).transpose(2, 0, 1)


def cv2_no_antialias(data: bytes, slot: Pixels) -> None:
    import cv2

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    x0, y0, x1, y1 = (round(edge) for edge in centre(*pixels.shape[:2]))
    slot[...] = cv2.resize(pixels[y0:y1, x0:x1], (SIDE, SIDE)).transpose(2, 0, 1)


def spdl(data: bytes, slot: Pixels) -> None:
    import spdl.io

    packets = spdl.io.demux_image(data)
    crop = f"crop='min(iw,ih)':'min(iw,ih)',scale={SIDE}:{SIDE}:flags=bilinear,format=pix_fmts=rgb24"
    frames = spdl.io.decode_packets(packets, filter_desc=crop)
    slot[...] = spdl.io.to_numpy(spdl.io.convert_frames(frames)).reshape(SIDE, SIDE, 3).transpose(2, 0, 1)


BARE: dict[str, Maker] = {
    "simplejpeg_own_resize": bare_own_resize,
    "simplejpeg_torch_resize": bare_torch_resize,
    "simplejpeg_pillow_resize": bare_pillow_resize,
}
PEERS: dict[str, Maker] = {"pillow": pillow, "cv2_no_antialias": cv2_no_antialias, "spdl": spdl}


def works(maker: Maker, data: bytes, mean: float) -> bool:
    """Whether it gives about Pillow's picture; False where it cannot run here."""
    expected, found = np.empty((2, 3, SIDE, SIDE), np.uint8)
    pillow(data, expected)
    try:
        maker(data, found)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        print(f"# {maker.__name__} cannot run: {str(error)[:200]!r}", flush=True)
        return False
    gap = np.abs(found.astype(int) - expected).mean()
    assert gap <= mean, f"{maker.__name__}: {gap:.2f} grey levels from Pillow's picture in the mean"
    return True


def fill(pool: ThreadPoolExecutor, maker: Maker, files: Sequence[bytes], room: Pixels) -> None:
    """The batch, made by the pool's threads, eight images to a task."""

    def some(first: int) -> None:
        for i in range(first, min(first + 8, len(files))):
            maker(files[i], room[i])

    list(pool.map(some, range(0, len(files), 8)))


def batch_turn(pool: ThreadPoolExecutor, maker: Maker, files: Sequence[bytes], room: Pixels) -> float:
    return cpu_seconds(lambda: fill(pool, maker, files, room), len(files))


def dali_turn(files: Sequence[bytes]) -> Callable[[], float] | None:
    """DALI's CPU engine as the package drives it."""
    from deeplake_loader.decode.dali import DaliDecoder
    from deeplake_loader.errors import InputError

    try:
        decoder = DaliDecoder("cpu", num_threads=harness.cores())
    except InputError as error:
        print(f"# dali cannot run: {str(error)[:200]!r}", flush=True)
        return None
    draws = [None] * len(files)
    return lambda: cpu_seconds(lambda: decoder.decode_images(files, _ASKED, draws), len(files))


def images(files: Sequence[bytes], rounds: int) -> None:
    """The whole way of a JPEG into its place in a batch."""
    makers = {name: maker for name, maker in {**BARE, **PEERS}.items() if works(maker, files[0], 12.0)}
    assert works(ours, files[0], 1.0)
    room = np.empty((len(files), 3, SIDE, SIDE), np.uint8)
    with ThreadPoolExecutor(harness.cores()) as pool:
        turns: Turns = {name: partial(batch_turn, pool, maker, files, room) for name, maker in makers.items()}
        turns["ours"] = partial(batch_turn, pool, ours, files, room)
        if (dali := dali_turn(files)) is not None:
            turns["dali_cpu"] = dali
        times = harness.take_turns(turns, rounds)
    harness.report(
        "JPEG to its place in a 224x224 uint8 batch, antialiased",
        times,
        unit="CPU ms an image",
        peers=[*PEERS, "dali_cpu"],
        limits=list(BARE),
        goal={"the fastest simplejpeg": 1 / 1.05},
        kilobytes=harness.short(sum(map(len, files)) / len(files) / 1e3),
        images=len(files),
    )


def shrunk(files: Sequence[bytes], rounds: int, larger: str, goal: float | None) -> None:
    """Sources several times as large as the target."""
    full, found = np.empty((2, len(files), 3, SIDE, SIDE), np.uint8)
    for i, data in enumerate(files):
        bare_own_resize(data, full[i])
        ours(data, found[i])
    gaps = np.abs(full.astype(int) - found).mean(axis=(1, 2, 3))
    with ThreadPoolExecutor(harness.cores()) as pool:
        turns = {
            "ours": partial(batch_turn, pool, ours, files, found),
            "decoded_in_full": partial(batch_turn, pool, bare_own_resize, files, full),
        }
        times = harness.take_turns(turns, rounds)
    harness.report(
        f"JPEG {larger} times as large as the target, shrunk while it is decoded",
        times,
        unit="CPU ms an image",
        limits=["decoded_in_full"],
        goal={} if goal is None else {"decoded_in_full": goal},
        levels_apart={"mean": harness.short(gaps.mean()), "most": harness.short(gaps.max())},
        images=len(files),
    )


# clips


@cache
def made_clip(seconds: int, gop: int, height: int = 720, width: int = 1280) -> bytes:
    """H.264 of 30 frames a second: a picture with detail under a moving window."""
    import av
    from PIL import Image as Pillow

    noise = np.random.default_rng(9).integers(0, 256, (height // 6, width // 6, 3), np.uint8)
    ground = np.asarray(Pillow.fromarray(noise).resize((width * 2, height * 2), Pillow.Resampling.BICUBIC))
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "27", "g": str(gop), "keyint_min": str(gop), "sc_threshold": "0"}
        for i in range(seconds * 30):
            x, y = (3 * i) % width, (2 * i) % height
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(ground[y : y + height, x : x + width]), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def even(count: int) -> list[int]:
    return [(2 * i + 1) * count // (2 * FRAMES) for i in range(FRAMES)]


def by_pyav(data: bytes, numbers: Sequence[int]) -> Pixels:
    """A plain loop: frames in order, one thread, those wanted to RGB and to size."""
    import av

    out, wanted = np.empty((len(numbers), 3, SIDE, SIDE), np.uint8), {n: i for i, n in enumerate(numbers)}
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                pixels = frame.to_ndarray(format="rgb24", threads=1)
                kernels.resize_into(pixels, out[wanted[number]], box=centre(*pixels.shape[:2]))
            if number == numbers[-1]:
                break
    return out


def by_torchcodec(data: bytes, numbers: Sequence[int]) -> Pixels:
    import torch
    from torchcodec.decoders import VideoDecoder

    frames = VideoDecoder(data, num_ffmpeg_threads=1, seek_mode="exact").get_frames_at(list(numbers)).data
    height, width = frames.shape[-2:]
    x0, y0, x1, y1 = (round(edge) for edge in centre(height, width))
    size = (SIDE, SIDE)
    out = torch.nn.functional.interpolate(frames[..., y0:y1, x0:x1], size, mode="bilinear", antialias=True)
    pixels: Pixels = out.numpy()
    return pixels


Loop = Callable[[bytes, Sequence[int]], Pixels]


def clip_loops(data: bytes, numbers: Sequence[int], found: Pixels) -> dict[str, Loop]:
    """Those that run here; each gives about our frames."""
    loops: dict[str, Loop] = {"pyav": by_pyav}
    try:
        importlib.import_module("torchcodec.decoders")  # it loads FFmpeg
    except (ImportError, RuntimeError, OSError) as error:
        print(f"# torchcodec cannot run: {str(error)[:200]!r}", flush=True)
    else:
        loops["torchcodec"] = by_torchcodec
    for name, loop in loops.items():
        gap = np.abs(loop(data, numbers).astype(int) - found).mean()
        assert gap < 3, f"{name}: {gap:.2f} grey levels from our frames in the mean"
    return loops


def stored(data: bytes) -> MediaInfo:
    return encode(ColumnType("VIDEO"), data, where="clip", validate="structure").info


def even_frames(gop: int, rounds: int) -> None:
    data, numbers = made_clip(10, gop), even(300)
    info, asked = stored(data), Video(num_frames=FRAMES, size=SIDE)
    loops = clip_loops(data, numbers, cpu.decode(data, info, asked))
    turns: Turns = {name: partial(cpu_seconds, partial(loop, data, numbers)) for name, loop in loops.items()}
    turns["ours"] = lambda: cpu_seconds(lambda: cpu.decode(data, info, asked))
    harness.report(
        f"16 even frames of a 10 s 720p H.264 clip to 224x224, a key frame every {gop}",
        harness.take_turns(turns, rounds),
        unit="CPU ms a clip",
        peers=["torchcodec"],
        limits=["pyav"],
        goal={"pyav": 1 / 1.05, "torchcodec": 1.0},
    )


def window(folder: str, rounds: int) -> None:
    """16 neighbouring frames from the middle of a stored minute, read and decoded from the key frame before them."""
    data, first = made_clip(60, 30), 1000
    asked = Video(num_frames=FRAMES, sampling="contiguous", start=first / 30, end=(first + FRAMES) / 30, size=SIDE)
    with connect(os.path.join(folder, "clips")) as db:
        db.execute("CREATE TABLE clips (id BIGINT PRIMARY KEY, clip VIDEO)")
        db.insert("clips", [{"id": 1, "clip": data}])
        handle = next(iter(db.execute("SELECT clip FROM clips"))).clip
        numbers = range(first, first + FRAMES)
        found = handle.decode(asked).numpy()
        loops = clip_loops(data, numbers, found)
        turns: Turns = {name: partial(cpu_seconds, partial(loop, data, numbers)) for name, loop in loops.items()}
        turns["ours"] = lambda: cpu_seconds(lambda: handle.decode(asked))
        times = harness.take_turns(turns, rounds)
    ranges = video.needed_ranges(stored(data), asked, None, len(data)) or [(0, len(data))]
    harness.report(
        "16 neighbouring frames of a stored 60 s 720p H.264 clip to 224x224",
        times,
        unit="CPU ms a clip",
        peers=["torchcodec"],
        limits=["pyav"],
        bytes_needed=sum(stop - start for start, stop in ranges),
        bytes_of_the_file=len(data),
    )


# floats


def normalize(rounds: int) -> None:
    """Against a copy that moves as many bytes: one read and one written for each byte of its length."""
    import torch

    pixels = np.random.default_rng(1).integers(0, 256, (64, SIDE, SIDE, 3), np.uint8)
    done = np.zeros((64, 3, SIDE, SIDE), np.float32)
    half = (pixels.nbytes + done.nbytes) // 2
    source, target = np.ones(half, np.uint8), np.zeros(half, np.uint8)

    def by_torch() -> torch.Tensor:
        planes = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32).div_(255)
        return planes.sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(STD).view(3, 1, 1)).contiguous()

    def by_kernel() -> None:
        kernels.normalize(pixels, MEAN, STD, "float32", "CHW", source="HWC", out=done, threads=1)

    by_kernel()
    assert np.abs(by_torch().numpy() - done).max() < 1e-5
    torch.set_num_threads(1)
    turns = {
        "ours": lambda: cpu_seconds(by_kernel),
        "torch": lambda: cpu_seconds(by_torch),
        "memcpy": lambda: cpu_seconds(lambda: np.copyto(target, source)),
    }
    harness.report(
        "64 uint8 images of 224x224 to normalised float32, channels first",
        harness.take_turns(turns, rounds * 5),
        unit="CPU ms a batch",
        peers=["torch"],
        limits=["memcpy"],
        goal={"memcpy": 1 / 1.5},
    )


# what a stream adds


def share_of_cores(action: Callable[[], object], shares: list[float], items: int) -> float:
    """CPU seconds an item; what part of all cores' time that was is added to ``shares``."""
    start = time.perf_counter()
    seconds = cpu_seconds(action)
    shares.append(seconds / (time.perf_counter() - start) / harness.cores())
    return seconds / items


def consume(db: Database, count: int) -> None:
    stream = db.stream("SELECT id, photo FROM photos", batch_size=32, transforms={"photo": _ASKED}, engine="cpu")
    assert sum(len(batch["id"]) for batch in stream) == count


def streams(folder: str, files: Sequence[bytes], rounds: int) -> None:
    """The decoder alone on a pool of threads, beside a stream: reading, checksums, order, batches and the loop."""
    many = list(itertools.islice(itertools.cycle(files), max(1_024, len(files))))
    room = np.empty((len(many), 3, SIDE, SIDE), np.uint8)
    shares: dict[str, list[float]] = {"ours": [], "decoder_alone": []}
    with connect(os.path.join(folder, "photos")) as db, ThreadPoolExecutor(harness.cores()) as pool:
        db.execute("CREATE TABLE photos (id BIGINT PRIMARY KEY, photo IMAGE)")
        db.insert("photos", [{"id": i, "photo": data} for i, data in enumerate(many)])
        actions = {"ours": partial(consume, db, len(many)), "decoder_alone": partial(fill, pool, ours, many, room)}
        turns: Turns = {n: partial(share_of_cores, action, shares[n], len(many)) for n, action in actions.items()}
        times = harness.take_turns(turns, rounds)
    harness.report(
        "a stream of JPEGs decoded to 224x224, beside its decoder alone",
        times,
        unit="CPU ms an image",
        limits=["decoder_alone"],
        goal={"decoder_alone": 1 / 1.05},
        share_of_the_cores={name: harness.spread(found) for name, found in shares.items()},
        goal_share=0.95,
        images=len(many),
    )


def main() -> None:
    parser = harness.arguments(__doc__, rows=256, rounds=7)
    parser.add_argument("--photos", help="a folder of JPEGs (default: made pictures)")
    options = parser.parse_args()
    usual = photos(options.photos, options.rows, 380, 560, 1.2, 3.0)
    with harness.scratch(options.folder) as folder:
        images(usual, options.rounds)
        streams(folder, usual, options.rounds)
        shrunk(photos(options.photos, 48, 800, 1100, 3.0, 6.0), options.rounds, "3 to 6", 1.5)
        shrunk(photos(options.photos, 24, 1500, 2000, 6.0, 20.0), options.rounds, "6 to 20", 1.5)
        normalize(options.rounds)
        even_frames(30, options.rounds)
        even_frames(250, options.rounds)
        window(folder, options.rounds)


if __name__ == "__main__":
    main()
