"""What the streams are made of: photographs as JPEGs of 60 KB, each with a caption, a label and a 768-d embedding.

`DISTINCT` pictures are made once and repeat, which no contestant makes use of: every row is stored with bytes of its
own. The label is the row's number, so that an epoch can be checked sample by sample.
"""

from __future__ import annotations

import glob
import io
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

DISTINCT = 600
BATCH = 64
SIZE = 224


@dataclass(frozen=True)
class Rows:
    """The rows below a folder that `prepare` has filled."""

    folder: str

    @cached_property
    def pictures(self) -> list[bytes]:
        return [open(path, "rb").read() for path in sorted(glob.glob(os.path.join(self.folder, "pictures", "*.jpg")))]

    @cached_property
    def embeddings(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        found: np.ndarray[Any, np.dtype[np.float32]] = np.load(os.path.join(self.folder, "embeddings.npy"))
        return found

    @cached_property
    def captions(self) -> list[str]:
        return [f"a photograph of harbour {i % 97} in soft light, take {i}" for i in range(len(self))]

    def __len__(self) -> int:
        return len(self.embeddings)

    def picture(self, i: int) -> bytes:
        return self.pictures[i % len(self.pictures)]

    def columns(self, first: int, last: int) -> dict[str, Any]:
        """A stretch of the rows by column."""
        return {
            "photo": [self.picture(i) for i in range(first, last)],
            "caption": self.captions[first:last],
            "label": np.arange(first, last),
            "embedding": self.embeddings[first:last],
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """One dict per row."""
        for i in range(len(self)):
            yield {
                "photo": self.picture(i),
                "caption": self.captions[i],
                "label": i,
                "embedding": self.embeddings[i],
            }


def prepare(folder: str, rows: int, photos: str | None) -> None:
    """Makes the pictures, cut from the photographs of the folder ``photos`` or drawn, and the embeddings."""
    import workload  # which brings deeplake_loader; a peer's environment has none

    os.mkdir(os.path.join(folder, "pictures"))
    sources = _photographs(photos) if photos else _drawings()
    generator = np.random.default_rng(11)
    for i in range(min(rows, DISTINCT)):
        with open(os.path.join(folder, "pictures", f"{i:04d}.jpg"), "wb") as file:
            file.write(_cut(sources[i % len(sources)], generator))
    np.save(os.path.join(folder, "embeddings.npy"), workload.columns(rows)["clip_embedding"])


def _photographs(folder: str) -> list[Any]:
    """The photographs with sides of 640 pixels or more."""
    from PIL import Image

    paths = sorted(glob.glob(os.path.join(folder, "*.jp*g")))
    found = [image.convert("RGB") for image in map(Image.open, paths) if min(image.size) >= 640]
    if not found:
        raise SystemExit(f"{folder} holds no JPEG photographs of 640 x 640 pixels or more")
    return found


def _drawings() -> list[Any]:
    """Pictures with a photograph's share of fine detail."""
    from PIL import Image

    generator, drawn = np.random.default_rng(5), []
    for _ in range(16):
        pixels = np.zeros((800, 800, 3))
        for side, weight in ((6, 90), (40, 50), (160, 18), (800, 7)):
            coarse = generator.integers(0, 256, (side, side, 3), np.uint8)
            pixels += weight / 128 * (np.asarray(Image.fromarray(coarse).resize((800, 800))) - 128.0)
        drawn.append(Image.fromarray(np.clip(pixels + 128, 0, 255).astype(np.uint8)))
    return drawn


def _cut(source: Any, generator: np.random.Generator) -> bytes:
    """A part of 400 to 640 pixels, brought to 500 x 400 or 400 x 500, as a JPEG of quality 95."""
    side = int(generator.integers(400, 641))
    left, top = (int(generator.integers(0, edge - side + 1)) for edge in source.size)
    size = (500, 400) if generator.random() < 0.5 else (400, 500)
    buffer = io.BytesIO()
    source.crop((left, top, left + side, top + side)).resize(size).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


class Tally:
    """Counts samples, and sums a checksum of each, so that the order does not matter."""

    def __init__(self) -> None:
        self.samples = self.payloads = self.vectors = 0

    def add(self, batch: Mapping[str, Any]) -> None:
        """A batch; one without embeddings leaves ``vectors`` as it is."""
        labels = np.asarray(batch["label"]).tolist()
        for label, photo, caption in zip(labels, batch["photo"], batch["caption"], strict=True):
            self.payloads += zlib.crc32(caption.encode(), zlib.crc32(photo, label))
        self.samples += len(labels)
        for label, vector in zip(labels, np.asarray(batch["embedding"]) if "embedding" in batch else (), strict=False):
            self.vectors += zlib.crc32(vector.tobytes(), label)

    def figures(self) -> dict[str, int]:
        return {"samples": self.samples, "payloads": self.payloads, "vectors": self.vectors}


def expected(rows: Rows) -> dict[str, int]:
    """The tally of one whole epoch."""
    tally = Tally()
    for first in range(0, len(rows), 1000):
        tally.add(rows.columns(first, min(first + 1000, len(rows))))
    return tally.figures()
