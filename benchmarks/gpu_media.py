"""Checks of decoding by DALI on a CUDA device; without one the same checks on its CPU twin, which says so.

Formats and clips against the CPU engine, AV1 on a chip without it, a consumer that comes late to a batch, a damaged
item and the batch after it, memory over 200 batches. Every check prints its figures and whether they hold; the exit
status is 1 if one does not.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator

import harness
import numpy as np
import torch

from deeplake_loader.codecs import MediaInfo, encode
from deeplake_loader.database import Database, connect
from deeplake_loader.decode import cpu
from deeplake_loader.decode.dali import DaliDecoder
from deeplake_loader.decode.transforms import Draw, Image, Video
from deeplake_loader.errors import DecodeError
from deeplake_loader.types import ColumnType

Figures = dict[str, object]
Check = Callable[[DaliDecoder], Figures]

BATCHES = 200
CLIP_CODECS = {
    "h264": ("libx264", "mp4", "yuv420p"),
    "h264 10-bit": ("libx264", "mp4", "yuv420p10le"),
    "h264 4:4:4": ("libx264", "mp4", "yuv444p"),
    "hevc": ("libx265", "mp4", "yuv420p"),
    "hevc 10-bit": ("libx265", "mp4", "yuv420p10le"),
    "av1": ("libsvtav1", "mp4", "yuv420p"),
    "vp8": ("libvpx", "webm", "yuv420p"),
    "vp9": ("libvpx-vp9", "webm", "yuv420p"),
    "mjpeg": ("mjpeg", "avi", "yuvj420p"),
    "mpeg4": ("mpeg4", "mp4", "yuv420p"),
}


def photo(seed: int, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8 without sharp edges."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    angle = 2 * np.pi * (x / width + y / height) * (1 + seed % 3) + seed
    return (128 + 100 * np.stack([np.sin(angle), np.cos(angle), np.sin(2 * angle)], -1)).astype(np.uint8)


def image_file(seed: int, format: str = "JPEG", mode: str = "RGB", size: int = 300, **options: object) -> bytes:
    from PIL import Image as Pillow

    file = io.BytesIO()
    Pillow.fromarray(photo(seed, size + 40, size)).convert(mode).save(file, format, **options)
    return file.getvalue()


def images() -> dict[str, bytes]:
    from PIL import Image as Pillow

    turned = Pillow.Exif()
    turned[0x0112] = 6
    return {
        "jpeg": image_file(0, quality=90),
        "jpeg progressive": image_file(1, quality=90, progressive=True),
        "jpeg 4:4:4": image_file(2, quality=95, subsampling=0),
        "jpeg grey": image_file(3, mode="L"),
        "jpeg cmyk": image_file(4, mode="CMYK"),
        "jpeg turned": image_file(5, exif=turned),
        "jpeg of odd size": image_file(6, size=301),
        "png": image_file(7, "PNG"),
        "webp": image_file(8, "WEBP", quality=90),
    }


def clip(name: str, frames: int = 24, width: int = 320, height: int = 240) -> tuple[bytes, MediaInfo]:
    """A clip of a moving wave and its facts."""
    import av

    encoder, container, pixels = CLIP_CODECS[name]
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(encoder, rate=12)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, pixels, 8
        stream.bit_rate = 4_000_000
        for t in range(frames):
            picture = av.VideoFrame.from_ndarray(np.roll(photo(1, width, height), 9 * t, axis=1), "rgb24")
            for packet in stream.encode(picture):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    item = encode(ColumnType("VIDEO"), file.getvalue(), where=name)
    return item.data, item.info


def apart(ours: torch.Tensor | DecodeError, reference: np.ndarray) -> tuple[float, int]:
    """(mean, largest) of the grey levels between them."""
    if isinstance(ours, DecodeError):
        raise ours
    levels = np.abs(ours.cpu().numpy().astype(np.int64) - reference)
    return harness.short(float(levels.mean())), int(levels.max())


def check_images(decoder: DaliDecoder) -> Figures:
    """Every image format, whole and resized, against the CPU engine."""
    found: Figures = {}
    for name, data in images().items():
        for size in (None, 128):
            transform = Image(size=size, crop="random_resized" if size else "center", flip=0.5)
            draw = Draw(0, 0, name, "photo")
            [ours] = decoder.decode_images([data], transform, [draw])
            found[f"{name}, {size or 'whole'}"] = apart(
                ours, cpu.decode(data, MediaInfo("image"), transform, draw=draw)
            )
    holds = all(mean <= 2 and most <= 32 for mean, most in found.values())  # type: ignore[misc]
    return {"holds": holds, "grey levels apart (mean, largest)": found}


def check_clips(decoder: DaliDecoder) -> Figures:
    """Every codec, decoded by DALI where the chip can, against PyAV."""
    found: Figures = {}
    for name in CLIP_CODECS:
        data, info = clip(name)
        transform = Video(num_frames=6, size=128)
        [ours] = decoder.decode_videos([data], [info], transform, [None])
        by = "dali" if decoder.takes_video(data, info) else "pyav"
        found[name] = (by, *apart(ours, cpu.decode(data, info, transform)))
    holds = all(mean <= 2 and most <= 32 for _, mean, most in found.values())  # type: ignore[misc]
    return {"holds": holds, "engine, grey levels apart (mean, largest)": found}


def check_av1(decoder: DaliDecoder) -> Figures:
    """AV1 comes out right on any chip; on one without it (Hopper, GA100) from the CPU engine."""
    data, info = clip("av1")
    capability = torch.cuda.get_device_capability(decoder.device) if decoder.device.type == "cuda" else None
    taken = decoder.takes_video(data, info)
    [ours] = decoder.decode_videos([data], [info], Video(num_frames=4, size=128), [None])
    mean, most = apart(ours, cpu.decode(data, info, Video(num_frames=4, size=128)))
    has_av1 = capability is not None and (capability >= (10, 0) or (8, 6) <= capability < (9, 0))
    return {"holds": taken == has_av1 and mean <= 2, "capability": capability, "by dali": taken, "apart": (mean, most)}


def check_corrupt(decoder: DaliDecoder) -> Figures:
    """One damaged item is one error, at any place, and the next batch is whole."""
    good = [image_file(i) for i in range(8)]
    expected = [cpu.decode(data, MediaInfo("image"), Image(size=64)) for data in good]
    wrong = 0
    for place in (0, 3, 7):
        for damage in (good[place][: len(good[place]) // 2], good[place][:100], b"no image", b""):
            items = [*good[:place], damage, *good[place + 1 :]]
            found = decoder.decode_images(items, Image(size=64), [None] * 8)
            wrong += sum(isinstance(f, DecodeError) != (i == place) for i, f in enumerate(found))
            after = decoder.decode_images(good, Image(size=64), [None] * 8)
            wrong += sum(apart(f, e)[0] > 2 for f, e in zip(after, expected, strict=True))
    return {"holds": wrong == 0, "wrong items": wrong}


def check_memory(decoder: DaliDecoder) -> Figures:
    """Memory after 200 batches of images of many sizes and clips, above what it was after the first 50."""
    items = [image_file(i, size=200 + 37 * (i % 9)) for i in range(16)]
    data, info = clip("vp9")

    def work(batches: int) -> int:
        for i in range(batches):
            decoder.decode_images(items[i % 5 :], Image(size=128), [None] * (16 - i % 5))
            decoder.decode_videos([data], [info], Video(num_frames=4, size=64), [None])
        return used(decoder.device)

    before = work(BATCHES // 4)
    after = work(BATCHES - BATCHES // 4)
    return {"holds": after - before < 64 << 20, "MiB more": harness.short((after - before) / 2**20)}


def used(device: torch.device) -> int:
    """Bytes in use: on a GPU by everybody, DALI's pool and torch's together."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        free, total = torch.cuda.mem_get_info(device)
        return total - free
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def store(folder: str, rows: int) -> Database:
    """Images with, every eighth, one that DALI leaves to the CPU engine."""
    db = connect(folder)
    db.execute("CREATE TABLE photos (id BIGINT PRIMARY KEY, photo IMAGE)")
    files = [image_file(i, "PNG" if i % 8 == 5 else "JPEG", size=120 + i % 50) for i in range(rows)]
    db.insert("photos", [{"id": i, "photo": data} for i, data in enumerate(files)])
    return db


def check_stream(decoder: DaliDecoder) -> Figures:
    """A consumer that comes late: batches of a stream, each kept busy on the consumer's own stream while ten more are
    made, hold what the CPU engine gives."""
    device = decoder.device
    with harness.scratch(None) as folder, store(folder, 96) as db:
        options = {"batch_size": 8, "transforms": {"photo": Image(size=96, crop="random_resized", flip=0.5)}}
        expected = [b["photo"].numpy() for b in db.stream("SELECT id, photo FROM photos", engine="cpu", **options)]
        stream = db.stream("SELECT id, photo FROM photos", engine="dali", device=device, prefetch=10, **options)
        found = [late(batch["photo"]) for batch in stream]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        differences = [apart(ours, reference) for ours, reference in zip(found, expected, strict=True)]
    worst = max(differences)
    return {"holds": worst[0] <= 2 and len(found) == 12, "apart": worst}


def late(pixels: torch.Tensor) -> torch.Tensor:
    """The pixels as a kernel sees them that begins a tenth of a second after the batch was handed out."""
    if pixels.is_cuda:
        torch.cuda._sleep(200_000_000)  # type: ignore[no-untyped-call]  # clock ticks
    return pixels + 0


CHECKS: dict[str, Check] = {
    "image formats": check_images,
    "clip codecs": check_clips,
    "av1": check_av1,
    "damaged item": check_corrupt,
    "late consumer": check_stream,
    "memory": check_memory,
}


def run(decoder: DaliDecoder) -> Iterator[bool]:
    for name, check in CHECKS.items():
        figures = check(decoder)
        harness.emit(f"gpu media: {name}", device=str(decoder.device), **figures)
        yield bool(figures["holds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("gpu", "cpu"), help="default: gpu where torch sees one")
    options = parser.parse_args()
    device = options.device or ("gpu" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        harness.emit(
            "gpu media", result="gpu checks not run: no device" if not options.device else "cpu twin asked for"
        )
    sys.exit(0 if all(list(run(DaliDecoder(device)))) else 1)


if __name__ == "__main__":
    main()
