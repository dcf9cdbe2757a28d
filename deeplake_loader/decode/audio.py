"""Audio items decoded on the CPU: the stretch of sound asked for."""

from __future__ import annotations

import numpy as np

from deeplake_loader.codecs.audio import decode_samples
from deeplake_loader.codecs.containers import Source
from deeplake_loader.codecs.info import MediaInfo
from deeplake_loader.decode.sampling import window
from deeplake_loader.decode.slots import Array
from deeplake_loader.decode.transforms import Audio, Draw


def audio_output(info: MediaInfo | None, transform: Audio) -> tuple[str, tuple[int, ...]] | None:
    rate = transform.sample_rate or (info.sample_rate if info else None)
    channels = transform.channels or (info.channels if info else None)
    if transform.duration is None or rate is None or channels is None:
        return None
    return "float32", (channels, max(1, round(transform.duration * rate)))


def decode_audio(data: Source, transform: Audio, draw: Draw | None) -> Array:
    """See `decode.cpu.decode`."""
    samples, rate = decode_samples(
        data, sample_rate=transform.sample_rate, channels=transform.channels,
        until_s=transform.end if isinstance(transform.end, int | float) else None, timeout_s=transform.timeout_s,
    )  # fmt: skip
    low, high = window(samples.shape[1] / rate, transform.start, transform.end, None, None)
    part = samples[:, round(low * rate) : round(high * rate)]
    if transform.duration is None:
        return part
    wanted = max(1, round(transform.duration * rate))
    spare = part.shape[1] - wanted
    if spare <= 0:
        return np.pad(part, ((0, 0), (0, -spare)))
    start = spare // 2 if draw is None else int(draw.uniforms(1, "start")[0] * (spare + 1))
    return part[:, start : start + wanted]
