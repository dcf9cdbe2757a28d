"""VIDEO values: files kept byte for byte once every packet was demuxed, frames encoded by PyAV, and frames read by
number.

Frame numbers count the frames a player shows, in showing order. Packets that hold a frame and are not discarded by an
edit list are counted, because what containers declare is often wrong (13 of 54 public clips) and decoding all costs
100 times more; the two counts agreed on every one of those clips.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deeplake_loader.codecs.containers import open_container
from deeplake_loader.codecs.info import MAX_PIXELS, BadMedia, MediaInfo

if TYPE_CHECKING:
    from fractions import Fraction

    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

SEEK_GAP = 16
"""Frames that are decoded and dropped rather than sought over: a seek costs about as much as that many frames."""


@dataclass(frozen=True, slots=True)
class Packets:
    """The frames of a stream before decoding: presentation times in showing order (None where they are missing or
    repeated), which frames are key frames, and the length in seconds (None where unknown)."""

    count: int
    times: tuple[int, ...] | None
    keyframes: tuple[int, ...]
    duration: float | None


def video_stream(container: Any) -> Any:
    """The first moving-picture stream, set to one decoding thread: clips are decoded in parallel, not their slices."""
    from av.stream import Disposition

    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise BadMedia("the file holds no video stream")
    stream = streams[0]
    context = stream.codec_context
    if context is None:
        raise BadMedia("the video codec is unknown")
    check_size(context.width, context.height)
    context.thread_count = 1
    return stream


def check_size(width: int, height: int) -> None:
    """Raises BadMedia for frames over MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise BadMedia(f"frames of {width}x{height} pixels are more than the limit of {MAX_PIXELS}")


def scan_packets(data: bytes | memoryview) -> Packets:
    """What the packets tell, all of them read. Raises BadMedia."""
    with open_container(data) as container:
        stream = video_stream(container)
        found, total = [], 0
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise BadMedia(f"the file is cut short in packet {total} of the video")
            if packet.size:
                total += 1
                if not packet.is_discard:
                    found.append((packet.pts, packet.is_keyframe, packet.duration or 0))
        # an MP4's sample table lists every frame; other containers' counts are guesses
        if container.format.name.startswith("mov") and stream.frames > total:
            raise BadMedia(f"the file is cut short: {total} of {stream.frames} frames are in it")
        base, declared, seekable = stream.time_base, stream.duration, _is_seekable(stream.codec_context)
    if not found:
        raise BadMedia("the video stream holds no frames")
    if any(pts is None for pts, _, _ in found) or len({pts for pts, _, _ in found}) < len(found):
        keys = tuple(i for i, (_, key, _) in enumerate(found) if key)
        return Packets(len(found), None, keys, float(declared * base) if declared and base else None)
    found.sort()
    return Packets(
        len(found),
        tuple(pts for pts, _, _ in found) if seekable else None,
        tuple(i for i, (_, key, _) in enumerate(found) if key),
        _duration(found, base),
    )


def _is_seekable(context: Any) -> bool:
    """False for H.264 4:4:4: older x264 files decode only after a note in their very first packet was read."""
    return not (context.name == "h264" and (context.pix_fmt or "").startswith(("yuv444", "yuvj444")))


def _duration(found: Sequence[tuple[int, bool, int]], base: Fraction | None) -> float | None:
    if base is None:
        return None
    last = found[-1][2] or (found[-1][0] - found[-2][0] if len(found) > 1 else 0)
    return float((found[-1][0] - found[0][0] + last) * base) or None


def inspect_video(data: bytes, *, decode_all: bool) -> MediaInfo:
    """Facts of a video file: every packet demuxed, the first frame (or all of them) decoded. Raises BadMedia."""
    packets = scan_packets(data)
    with open_container(data) as container:
        stream = video_stream(container)
        frames = _sound_frames(container, stream)
        first = next(frames, None)
        if first is None:
            raise BadMedia("no frame of the video can be decoded")
        if decode_all and (decoded := 1 + sum(1 for _ in frames)) != packets.count:
            raise BadMedia(f"{packets.count} packets hold frames, but {decoded} frames can be decoded")
        codec = stream.codec_context.codec.canonical_name
    return MediaInfo(
        "video", codec=codec, pixel_format=first.format.name, width=first.width, height=first.height,
        num_frames=packets.count, fps=round(packets.count / packets.duration, 6) if packets.duration else None,
        duration=round(packets.duration, 6) if packets.duration else None, rotation=_rotation(first) or None,
        keyframes=packets.keyframes,
    )  # fmt: skip


def _sound_frames(container: Any, stream: Any) -> Iterator[Any]:
    for number, frame in enumerate(container.decode(stream)):
        if frame.is_corrupt:
            raise BadMedia(f"frame {number} is damaged")
        yield frame


def _rotation(frame: Any) -> int:
    """Degrees counterclockwise that show the frame upright: 0, 90, -90 or 180; other angles count as 0."""
    rotation: int = frame.rotation
    return {90: 90, -90: -90, 180: 180, -180: 180, 270: -90, -270: 90}.get(rotation, 0)


def read_frames(
    data: bytes | memoryview,
    wanted: Sequence[int],
    take: Callable[[int, Array], None],
    *,
    keyframes: Sequence[int] | None = None,
) -> None:
    """Calls ``take(number, pixels)`` for each wanted frame: (height, width, 3) uint8 RGB, upright.

    ``wanted``: frame numbers, ascending, each once; ``keyframes``: the numbers recorded at insert, which spare a scan
    where no seek pays. A frame may be given twice. Raises BadMedia where a wanted frame is missing or damaged.
    """
    if keyframes is not None and len(_segments(wanted, keyframes)) == 1 and _segments(wanted, keyframes)[0][0] == 0:
        return _read_in_order(data, wanted, take)
    packets = scan_packets(data)
    segments = _segments(wanted, packets.keyframes) if packets.times else [(0, list(wanted))]
    if (segments[0][0] == 0 and len(segments) == 1) or not _read_segments(data, packets, segments, take):
        _read_in_order(data, wanted, take)
    return None


def _segments(wanted: Sequence[int], keyframes: Sequence[int]) -> list[tuple[int, list[int]]]:
    """(frame to start decoding at, frames wanted from there): a new start where a key frame skips more than
    SEEK_GAP."""
    segments: list[tuple[int, list[int]]] = []
    position = 0
    for number in wanted:
        place = bisect_right(keyframes, number) - 1
        key = keyframes[place] if place >= 0 else 0
        if key - position > SEEK_GAP:
            segments.append((key, []))
        elif not segments:
            segments.append((0, []))
        segments[-1][1].append(number)
        position = number + 1
    return segments


def _read_in_order(data: bytes | memoryview, wanted: Sequence[int], take: Callable[[int, Array], None]) -> None:
    remaining = iter(wanted)
    target, number = next(remaining, None), -1
    with open_container(data) as container:
        for number, frame in enumerate(container.decode(video_stream(container))):
            if number == target:
                take(number, _pixels(frame, number))
                target = next(remaining, None)
            if target is None:
                return
    raise BadMedia(f"frame {target} is missing: the file ends after {number + 1} frames")


def _read_segments(
    data: bytes | memoryview,
    packets: Packets,
    segments: list[tuple[int, list[int]]],
    take: Callable[[int, Array], None],
) -> bool:
    """Whether every wanted frame was met, sound, by its presentation time; else the caller decodes in order."""
    times = packets.times or ()
    numbers = {time: number for number, time in enumerate(times)}
    try:
        with open_container(data) as container:
            stream = video_stream(container)
            return all(
                _read_segment(container, stream, times[start], numbers, wanted, take) for start, wanted in segments
            )
    except BadMedia:
        return False


def _read_segment(
    container: Any,
    stream: Any,
    time: int,
    numbers: dict[int, int],
    wanted: list[int],
    take: Callable[[int, Array], None],
) -> bool:
    missing = set(wanted)
    container.seek(time, stream=stream, backward=True)
    for frame in container.decode(stream):
        number = numbers.get(frame.pts, -1)
        if number in missing:
            take(number, _pixels(frame, number))
            missing.discard(number)
            if not missing:
                return True
        if number < 0 or number > wanted[-1]:
            break
    return False


def _pixels(frame: Any, number: int) -> Array:
    import numpy as np

    if frame.is_corrupt:
        raise BadMedia(f"frame {number} is damaged")
    check_size(frame.width, frame.height)
    # threads=1: swscale would otherwise start one thread per core for every clip
    pixels: Array = frame.to_ndarray(format="rgb24", threads=1)
    return np.rot90(pixels, _rotation(frame) // 90)
