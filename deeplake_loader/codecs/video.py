"""VIDEO values: files kept byte for byte once every packet was demuxed, and frames read by number.

Frame numbers count the frames a player shows, in showing order. Packets that hold a frame and are not discarded by an
edit list are counted, because what containers declare is often wrong (13 of 54 public clips) and decoding all costs
100 times more; the two counts agreed on every one of those clips.

Colours become RGB as the file's tags say (matrix and range); without a tag by swscale's default, BT.601 of limited
range. Alpha is dropped, deeper samples are rounded to 8 bits.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from deeplake_loader.codecs.containers import Deadline, Source, open_container, sniff_container
from deeplake_loader.codecs.info import MAX_PIXELS, BadMedia, MediaInfo

if TYPE_CHECKING:
    import numpy as np

    from deeplake_loader.codecs.gops import GopTable, Range

    Array = np.ndarray[Any, np.dtype[Any]]
    Take = Callable[[int, Array], None]

_INDEXED = ("mov", "matroska", "avi")
_MAX_INDEX_SHARE = 0.5
"""Files of which opening and seeking read more than this are as well read whole."""

_PROGRESSIVE = 1  # FFmpeg's AV_FIELD_PROGRESSIVE: every packet is a frame, none a field


@dataclass(frozen=True, slots=True)
class Packets:
    """The frames of a stream before decoding: how many, which are key frames, the length in seconds and the declared
    frames per second (None where unknown), and where each lies (None where presentation times are missing or
    repeated, and in AVI files whose frames lie in another order than they are shown in: AVI holds no such times, and
    FFmpeg's guesses are wrong for H.264 and for packed MPEG-4)."""

    count: int
    keyframes: tuple[int, ...]
    duration: float | None
    rate: Fraction | None
    table: GopTable | None

    @property
    def fps(self) -> float | None:
        """Frames by duration; the declared rate where it gives the same number of frames, as times may be rounded."""
        if not self.duration:
            return None
        exact = self.rate is not None and abs(self.rate * self.duration - self.count) < 1
        return round(float(self.rate or 0) if exact else self.count / self.duration, 6)


def video_stream(container: Any, index: int = 0) -> Any:
    """A moving-picture stream, set to one decoding thread: clips are decoded in parallel, not their slices. Packets of
    the other streams are left unread."""
    from av.stream import Discard, Disposition

    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if index >= len(streams):
        raise BadMedia(f"video stream {index} was asked for; the file holds {len(streams)} video streams")
    stream = streams[index]
    context = stream.codec_context
    if context is None:
        raise BadMedia("the video codec is unknown")
    check_size(context.width, context.height)
    context.thread_count = 1
    context.options = {"max_pixels": str(MAX_PIXELS)}  # a later header may ask for larger frames than the first
    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all
    return stream


def check_size(width: int, height: int) -> None:
    """Raises BadMedia for frames over MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise BadMedia(f"frames of {width}x{height} pixels are more than the limit of {MAX_PIXELS}")


@dataclass(frozen=True, slots=True)
class _Packet:
    pts: int | None
    duration: int
    position: int
    size: int
    is_keyframe: bool
    is_shown: bool


def scan_packets(data: Source, stream: int = 0) -> Packets:
    """What the packets tell, all of them read. Raises BadMedia."""
    with open_container(data) as container:
        chosen = video_stream(container, stream)
        # an MP4's sample table lists every frame, those that an edit list leaves out are taken from its index; other
        # containers' counts are guesses
        listed = min(chosen.frames, len(chosen.index_entries)) if container.format.name.startswith("mov") else 0
        found = list(_packets(container, chosen))
        if listed > len(found):
            raise BadMedia(f"the file is cut short: {len(found)} of {listed} frames are in it")
        base, declared, context = chosen.time_base, chosen.duration, chosen.codec_context
        rate = chosen.average_rate
        seekable, skippable = _is_seekable(context), _is_skippable(context)
        guessed = container.format.name == "avi" and context.has_b_frames
    shown = [p for p in found if p.is_shown]
    if not shown:
        raise BadMedia("the video stream holds no frames")
    if guessed or not _are_times(shown):
        keys = tuple(i for i, p in enumerate(shown) if p.is_keyframe)
        return Packets(len(shown), keys, float(declared * base) if declared and base else None, rate, None)
    shown.sort(key=lambda p: p.pts or 0)
    keys = tuple(i for i, p in enumerate(shown) if p.is_keyframe)
    table = _table(found, shown, keys, base, skippable) if seekable and base else None
    return Packets(len(shown), keys, _duration(shown, base), rate, table)


def _packets(container: Any, stream: Any) -> Iterator[_Packet]:
    for number, packet in enumerate(container.demux(stream)):
        if packet.is_corrupt:
            raise BadMedia(f"the file is cut short in packet {number} of the video")
        if packet.size:
            position = -1 if packet.pos is None else packet.pos
            yield _Packet(
                packet.pts, packet.duration or 0, position, packet.size, packet.is_keyframe, not packet.is_discard
            )


def _are_times(shown: Sequence[_Packet]) -> bool:
    """Whether every frame has a presentation time of its own."""
    return all(p.pts is not None for p in shown) and len({p.pts for p in shown}) == len(shown)


def _is_seekable(context: Any) -> bool:
    """False for H.264 4:4:4: older x264 files decode only after a note in their very first packet was read."""
    return not (context.name == "h264" and (context.pix_fmt or "").startswith(("yuv444", "yuvj444")))


def _is_skippable(context: Any) -> bool:
    """Whether the decoder can leave out frames that nothing refers to without a change of any other."""
    return bool(context.name == "mpeg4" or (context.name == "h264" and context.field_order == _PROGRESSIVE))


def _duration(shown: Sequence[_Packet], base: Fraction | None) -> float | None:
    if base is None:
        return None
    times = [p.pts or 0 for p in shown]
    last = shown[-1].duration or (times[-1] - times[-2] if len(times) > 1 else 0)
    return float((times[-1] - times[0] + last) * base) or None


def _table(
    found: Sequence[_Packet], shown: Sequence[_Packet], keys: Sequence[int], base: Fraction, skippable: bool
) -> GopTable:
    """Times and key frames, and the bytes of each group where every packet tells its place."""
    import numpy as np

    from deeplake_loader.codecs.gops import GopTable, spans

    times, keyframes = np.array([p.pts for p in shown], np.int64), np.array(keys, np.int64)
    starts = stops = np.empty(0, np.int64)
    if len(keys) and all(p.position >= 0 for p in found):
        places = {id(p): number for number, p in enumerate(shown)}
        numbers = np.array([places.get(id(p), -1) for p in found])
        positions, sizes = np.array([(p.position, p.size) for p in found], np.int64).T
        starts, stops = spans(numbers, positions, sizes, keyframes)
    return GopTable(base, times, keyframes, starts, stops, 1, (), skippable)


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
        num_frames=packets.count, fps=packets.fps, rotation=_rotation(first) or None,
        duration=round(packets.duration, 6) if packets.duration else None,
        keyframes=packets.keyframes, gops=_packed(data, packets.table),
    )  # fmt: skip


def _packed(data: bytes, table: GopTable | None) -> str | None:
    from dataclasses import replace

    import numpy as np

    from deeplake_loader.codecs.gops import pack

    if table is None:
        return None
    index = _index_ranges(data, table) if len(table.starts) else None
    none = np.empty(0, np.int64)
    return pack(replace(table, index=index) if index else replace(table, starts=none, stops=none))


def _index_ranges(data: bytes, table: GopTable) -> tuple[Range, ...] | None:
    """The bytes that opening the file and seeking to its last key frame read; None where that is most of the file."""
    from deeplake_loader.codecs.gops import merge

    format = sniff_container(data)
    if format is None or format.demuxer not in _INDEXED:
        return None
    file = _Recording(data)
    with open_container(file, quick=True) as container:
        stream = video_stream(container)
        container.seek(int(table.times[table.keyframes[-1]]), stream=stream, backward=True)
    ranges = merge(file.ranges, gap=4096)
    return tuple(ranges) if sum(b - a for a, b in ranges) <= max(_MAX_INDEX_SHARE * len(data), 1 << 16) else None


class _Recording(io.BytesIO):
    """A file that remembers which bytes were read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.ranges: list[Range] = []
        self._length = len(data)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> bytes:
        return bytes(self.getbuffer()[part])

    def read(self, size: int | None = -1) -> bytes:
        start = self.tell()
        data = super().read(size)
        self.ranges.append((start, start + len(data)))
        return data


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
    data: Source,
    wanted: Sequence[int],
    take: Take,
    *,
    table: GopTable | None = None,
    stream: int = 0,
    timeout_s: float | None = None,
) -> None:
    """Calls ``take(number, pixels)`` for each wanted frame: (height, width, 3) uint8 RGB, upright.

    ``wanted``: frame numbers, ascending, each once; ``table``: recorded at insert, which spares a scan. A frame may be
    given twice. Raises BadMedia where a wanted frame is missing or damaged, and after ``timeout_s``.
    """
    deadline = Deadline(timeout_s)
    table = table or scan_packets(data, stream).table
    if (
        table is None
        or wanted[-1] >= len(table.times)
        or not _read_by_time(data, wanted, take, table, stream, deadline)
    ):
        _read_in_order(data, wanted, take, stream, deadline)


def _read_in_order(data: Source, wanted: Sequence[int], take: Take, stream: int, deadline: Deadline) -> None:
    remaining = iter(wanted)
    target, number, damaged = next(remaining, None), -1, False
    with open_container(data) as container:
        for number, frame in enumerate(container.decode(video_stream(container, stream))):
            deadline.check()
            damaged = frame.is_corrupt or (damaged and not frame.key_frame)
            if number == target:
                if damaged:
                    raise BadMedia(f"frame {number}, or one that it is made from, is damaged")
                take(number, _pixels(frame))
                target = next(remaining, None)
            if target is None:
                return
    raise BadMedia(f"frame {target} is missing: the file ends after {number + 1} frames")


def _read_by_time(
    data: Source, wanted: Sequence[int], take: Take, table: GopTable, index: int, deadline: Deadline
) -> bool:
    """Whether every wanted frame was met, sound, by its presentation time; else the caller decodes in order."""
    try:
        with open_container(data, quick=True) as container:
            stream = video_stream(container, index)
            for start, numbers in table.segments(wanted):
                if start:
                    container.seek(int(table.times[start]), stream=stream, backward=True)
                due = dict(zip(table.times[numbers].tolist(), numbers, strict=True))
                if not _read_segment(container, stream, int(table.times[start]), due, take, table.skippable, deadline):
                    return False
    except BadMedia:
        deadline.check()
        return False
    return True


def _read_segment(
    container: Any, stream: Any, start: int, due: dict[int, int], take: Take, skippable: bool, deadline: Deadline
) -> bool:
    """Frames are decoded from where the file stands until the last one due is out of the decoder."""
    context, unfed, skips = stream.codec_context, len(due), False
    for packet in container.demux(stream):
        deadline.check()
        is_due = packet.pts in due
        if skippable and skips == is_due:
            skips = not is_due
            context.skip_frame = "NONREF" if skips else "DEFAULT"
        unfed -= is_due
        frames = packet.decode()
        if not unfed and packet.size:
            frames += context.decode(None)
        for frame in frames:
            if frame.is_corrupt and (
                frame.pts is None or frame.pts >= start
            ):  # those before it were made from frames that were not read
                return False
            number = due.pop(frame.pts, None)
            if number is not None:
                take(number, _pixels(frame))
        if not due or not unfed:
            return not due
    return False


def _pixels(frame: Any, *, width: int | None = None, height: int | None = None) -> Array:
    import numpy as np

    check_size(frame.width, frame.height)
    # threads=1: swscale would otherwise start one thread per core for every clip
    pixels: Array = frame.to_ndarray(format="rgb24", threads=1, width=width, height=height)
    return np.rot90(pixels, _rotation(frame) // 90)


def iterate_frames(data: Source, *, size: tuple[int, int] | None = None) -> Iterator[Array]:
    """Every frame in showing order: (height, width, 3) uint8 RGB, upright. Raises BadMedia where one is damaged.

    ``size``: (height, width) to which swscale shrinks it, bilinearly, before it is turned upright.
    """
    height, width = size or (None, None)
    with open_container(data) as container:
        for frame in _sound_frames(container, video_stream(container)):
            yield _pixels(frame, width=width, height=height)
