"""AUDIO values: files kept byte for byte once every packet was demuxed, samples written as WAV or FLAC."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any

from deeplake_loader.codecs.containers import Deadline, Source, open_container, reason
from deeplake_loader.codecs.info import MAX_DECODED_BYTES, BadMedia, MediaInfo
from deeplake_loader.codecs.sources import describe, to_array
from deeplake_loader.errors import DimensionError, InputError, MediaError, TypeMismatchError
from deeplake_loader.types import ColumnType

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

_MAX_CHANNELS = 64
_MAX_RATE = 768_000
_MOST_RAISED = 128
"""From 6 kHz to the largest rate; a file of 40 KB that claims one sample a second would become gigabytes."""
_RESAMPLER_TAIL_S = 0.1  # its filter looks ahead by a few milliseconds


def audio_stream(container: Any) -> Any:
    """The first audio stream. Raises BadMedia where there is none, or where the file is a video."""
    from av.stream import Disposition

    if any(not s.disposition & Disposition.attached_pic for s in container.streams.video):
        raise BadMedia("the file holds moving pictures; it belongs in a VIDEO column")
    if not container.streams.audio:
        raise BadMedia("the file holds no audio stream")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise BadMedia("the audio codec is unknown")
    return stream


def inspect_audio(data: bytes, *, decode_all: bool) -> MediaInfo:
    """Facts of an audio file: every packet demuxed, the first frame (or all, then samples are counted) decoded."""
    with open_container(data) as container:
        stream = audio_stream(container)
        length, packets = 0, 0
        for packet in container.demux(stream):
            length, packets = length + (packet.duration or 0), packets + bool(packet.size)
        base = stream.time_base
    with open_container(data) as container:
        stream = audio_stream(container)
        frames = container.decode(stream)
        first = next(frames, None)
        if first is None or not packets:
            raise BadMedia("no sound can be decoded from the file")
        samples = first.samples + sum(frame.samples for frame in frames) if decode_all else None
        codec = stream.codec_context.codec.canonical_name
    return MediaInfo(
        "audio", codec=codec, duration=round(float(length * base), 6) if base and length else None, num_frames=samples,
        channels=len(first.layout.channels), sample_rate=first.sample_rate,
    )  # fmt: skip


def encode_samples(type: ColumnType, value: object, where: str) -> tuple[bytes, str]:
    """(file bytes, extension) of (samples,) or (channels, samples) float32 or int16, by the options sample_rate,
    codec."""
    array = to_array(value, where)
    if array is None:
        raise TypeMismatchError(
            f"{where} expects {type}, got {describe(value)}; "
            "pass the file's bytes or path, or float32 samples (channels, samples)"
        )
    if array.dtype.str not in ("<f4", "<i2"):
        raise TypeMismatchError(
            f"{where} expects {type} of float32 or int16 samples, got {describe(value)}; convert the samples"
        )
    samples = array[None] if array.ndim == 1 else array
    if samples.ndim != 2 or not samples.size or samples.shape[0] > _MAX_CHANNELS:
        raise DimensionError(
            f"{where} expects {type} samples as (samples,) or (channels, samples), at most {_MAX_CHANNELS} channels, "
            f"got {describe(value)}"
        )
    rate, codec = _settings(type, where)
    if rate is None:
        raise InputError(f"{where}: samples need their rate; declare the column AUDIO(sample_rate=16000)")
    return (_wav(samples, rate) if codec == "wav" else _flac(samples, rate, where)), codec


def check_options(type: ColumnType, where: str) -> None:
    """Raises InputError for an AUDIO column by whose options no samples could be encoded."""
    _settings(type, where)


def _settings(type: ColumnType, where: str) -> tuple[int | None, str]:
    """(samples a second, codec) that the column asks for; a column that takes whole files needs no rate."""
    rate, codec = type.option("sample_rate"), str(type.option("codec") or "wav").lower()
    if rate is not None and not (isinstance(rate, int) and 1 <= rate <= _MAX_RATE):
        raise InputError(f"{where}: {type} asks for sample_rate {rate!r}; it must be 1..{_MAX_RATE}")
    if codec not in ("wav", "flac"):
        raise InputError(f"{where}: {type} asks for codec {codec!r}; samples are written as wav or flac")
    type.refuse_other_options(("codec", "sample_rate"), where)
    return rate, codec


def _wav(samples: Array, rate: int) -> bytes:
    """A RIFF file: format 1 (integers) or 3 (floats), samples of the channels interleaved."""
    kind, width = (3, 4) if samples.dtype.kind == "f" else (1, 2)
    channels, data = samples.shape[0], samples.T.tobytes()
    body = struct.pack(
        "<4sIHHIIHH", b"fmt ", 16, kind, channels, rate, rate * channels * width, channels * width, width * 8
    )
    pad = b"\0" * (len(data) % 2)
    return b"".join(
        (
            struct.pack("<4sI4s", b"RIFF", 4 + len(body) + 8 + len(data) + len(pad), b"WAVE"),
            body,
            struct.pack("<4sI", b"data", len(data)),
            data,
            pad,
        )
    )


def _flac(samples: Array, rate: int, where: str) -> bytes:
    import av
    import numpy as np

    if samples.dtype.kind == "f":
        raise TypeMismatchError(f"{where}: FLAC holds integers; pass int16 samples or declare AUDIO(codec='wav')")
    if samples.shape[0] > 8:
        raise DimensionError(
            f"{where}: FLAC holds at most 8 channels, got {samples.shape[0]}; declare AUDIO(codec='wav')"
        )
    file = io.BytesIO()
    layout = {1: "mono", 2: "stereo"}.get(samples.shape[0], f"{samples.shape[0]} channels")
    try:
        with av.open(file, "w", format="flac") as container:
            stream = container.add_stream("flac", rate=rate, layout=layout, format="s16")
            interleaved = np.ascontiguousarray(samples.T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(interleaved, format="s16", layout=layout)
            frame.sample_rate = rate
            for packet in (*stream.encode(frame), *stream.encode(None)):
                container.mux(packet)
    except (OSError, ValueError, RuntimeError) as error:
        raise MediaError(
            f"{where}: samples of shape {samples.shape} cannot be written as FLAC: {reason(error)}"
        ) from error
    return file.getvalue()


def decode_samples(
    data: Source,
    *,
    sample_rate: int | None = None,
    channels: int | None = None,
    until_s: float | None = None,
    timeout_s: float | None = None,
) -> tuple[Array, int]:
    """((channels, samples) float32 in [-1, 1], samples per second), resampled and mixed as asked, from the beginning
    to ``until_s`` (a little more may come) or to the end. Raises BadMedia, also after ``timeout_s``."""
    import numpy as np
    from av.audio.resampler import AudioResampler

    layout = {None: None, 1: "mono", 2: "stereo"}[channels]
    resampler, parts, rate, found = AudioResampler(format="flt", layout=layout, rate=sample_rate), [], 0, 0
    deadline, seconds, size = Deadline(timeout_s), 0.0, 0
    with open_container(data) as container:
        for frame in container.decode(audio_stream(container)):
            deadline.check()
            if rate and (frame.sample_rate, len(frame.layout.channels)) != (rate, found):
                raise BadMedia("the sample rate or the number of channels changes within the file")
            rate, found = frame.sample_rate, len(frame.layout.channels)
            size += _size_of(frame, sample_rate, channels)
            if size > MAX_DECODED_BYTES:
                raise BadMedia(f"the sound is more than {MAX_DECODED_BYTES} bytes of samples")
            parts += [_samples(part) for part in resampler.resample(frame)]
            seconds += frame.samples / rate
            if until_s is not None and seconds > until_s + _RESAMPLER_TAIL_S:
                break
        if parts:
            parts += [_samples(part) for part in resampler.resample(None)]
    if not parts:
        raise BadMedia("no sound can be decoded from the file")
    return np.concatenate(parts, axis=1, dtype=np.float32), sample_rate or rate


def _samples(frame: Any) -> Array:
    """(channels, samples). Frames whose samples of all channels are interleaved are asked for, because PyAV 18 reads
    past the end of the list of planes where there are eight or more."""
    samples: Array = frame.to_ndarray().reshape(-1, len(frame.layout.channels)).T
    return samples


def _size_of(frame: Any, sample_rate: int | None, channels: int | None) -> int:
    """Bytes of the frame's samples as asked for. Raises BadMedia for a rate raised beyond _MOST_RAISED."""
    if sample_rate is not None and sample_rate > _MOST_RAISED * frame.sample_rate:
        raise BadMedia(
            f"{frame.sample_rate} samples a second were asked for as {sample_rate}; at most {_MOST_RAISED} times as "
            "many can be made of them"
        )
    samples = frame.samples * (sample_rate or frame.sample_rate) // frame.sample_rate
    return 4 * int(samples) * (channels or len(frame.layout.channels))
