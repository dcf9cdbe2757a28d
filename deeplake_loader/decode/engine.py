"""Which engine decodes which item: DALI where batches go to a CUDA device and it can, else the CPU engine."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from deeplake_loader.codecs.info import MediaInfo
from deeplake_loader.decode.forks import check_process
from deeplake_loader.decode.transforms import Draw, Image, Transform, Video
from deeplake_loader.errors import InputError

if TYPE_CHECKING:
    import torch

    from deeplake_loader.decode.dali import DaliDecoder, Data, Decoded, Slots

Engine = Literal["auto", "cpu", "dali"]
"""``auto``: DALI for batches on a CUDA device, where it is installed, and the CPU engine for all others: on a CPU
simplejpeg and our own resize take 1.9 ms for an image that takes DALI 3.8."""

log = logging.getLogger("deeplake_loader.decode")

_lock = threading.Lock()
_decoders: dict[tuple[str, int], DaliDecoder] = {}
_told: set[str] = set()


def choose_engine(device: torch.device, engine: Engine = "auto") -> DaliDecoder | None:
    """The process's DALI decoder for batches on that device, or None where the CPU engine decodes.

    A decoder is made once for each device and kept. ``auto`` without a usable DALI says so once, in the log.

    Raises:
        InputError: ``dali`` was asked for and cannot be had.
    """
    if engine == "cpu" or (engine == "auto" and device.type != "cuda"):
        return None
    try:
        return _decoder("gpu" if device.type == "cuda" else "cpu", device.index or 0)
    except InputError as error:
        if engine == "dali":
            raise
        _tell(f"images and clips for {device} are decoded on the CPU and copied: {error}")
        return None


def _decoder(device: Literal["gpu", "cpu"], index: int) -> DaliDecoder:
    from deeplake_loader.decode.dali import DaliDecoder

    check_process()
    with _lock:
        key = (device, index)
        if key not in _decoders:
            _decoders[key] = DaliDecoder(device, index)
        return _decoders[key]


def _tell(message: str) -> None:
    if message not in _told:
        _told.add(message)
        log.warning("%s", message)


def takes(
    decoder: DaliDecoder, transform: Transform | None, infos: Sequence[MediaInfo], items: Sequence[Data | None]
) -> list[int]:
    """The places of the items that DALI decodes; the CPU engine has the others."""
    if not isinstance(transform, Image | Video) or not decoder.takes(transform):
        return []
    pairs = [(i, data, info) for i, (data, info) in enumerate(zip(items, infos, strict=True)) if data is not None]
    if isinstance(transform, Image):
        return [i for i, data, _ in pairs if decoder.takes_image(data)]
    return [i for i, data, info in pairs if decoder.takes_video(data, info)]


def decode_batch(
    decoder: DaliDecoder,
    items: Sequence[Data],
    infos: Sequence[MediaInfo],
    transform: Image | Video,
    draws: Sequence[Draw | None],
    out: Slots | None = None,
) -> list[Decoded]:
    """What DALI makes of the items, in their order: `DaliDecoder.decode_images` or ``decode_videos``."""
    if isinstance(transform, Image):
        return decoder.decode_images(items, transform, draws, out)
    return decoder.decode_videos(items, infos, transform, draws, out)
