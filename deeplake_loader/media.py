"""The verbs of a Database that work through a column of videos: transcode, clips."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from deeplake_loader.errors import InputError
from deeplake_loader.types import ColumnType

if TYPE_CHECKING:  # imported where it is used: a plain query needs none of it
    from deeplake_loader.transcoding import JobResult, Store


class MediaVerbs:
    """What Database inherits."""

    def transcode(
        self: Store,
        table: str,
        column: str,
        into: str,
        *,
        codec: str = "h264",
        gop: int = 1,
        crf: int | None = None,
        preset: str | int | None = None,
        size: int | tuple[int, int] | None = None,
        fps: float | None = None,
        where: str | None = None,
        params: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> JobResult:
        """The videos of ``column`` encoded anew into the column ``into`` of the same rows, which is added if it is not
        there; gives the number of rows written and the rows that could not be (they keep a NULL).

        A few rows are one commit; rows that have a video in ``into`` are left out, so calling again goes on. Frames
        come out upright and when they were shown; sound is left out.

        Args:
            codec, gop, crf, preset: as for ``VIDEO(codec='h264', gop=1)``; a gop of 1 makes every frame a key frame,
                so that any frame is decoded alone.
            size: None keeps it; s makes the shorter side s (both sides even); (height, width) is exact.
            fps: None keeps each frame's time; else the frame that is shown at each moment of that rate.
            where: an SQL condition on the table, its parameters as ``:name`` in ``params``.
            progress: show a progress bar.

        >>> db.transcode("generations", "frames", "frames_small", size=256, fps=8)    # doctest: +SKIP
        JobResult(rows=1200, bad=())
        """
        from deeplake_loader.codecs import check_options
        from deeplake_loader.transcoding import Recipe, transcode

        if fps is not None and not (isinstance(fps, int | float) and 0 < fps <= 1000):
            raise InputError(f"fps={fps!r}: expected frames per second, above 0 and at most 1000")
        sides = (size,) if isinstance(size, int) else size or (2,)
        if not all(type(s) is int and 2 <= s <= 16_384 for s in sides):
            raise InputError(f"size={size!r}: expected one side or (height, width), each 2..16384")
        given: dict[str, str | int | None] = {"codec": codec, "gop": gop, "crf": crf, "preset": preset}
        kind = ColumnType("VIDEO", options=tuple(sorted((k, v) for k, v in given.items() if v is not None)))
        check_options(kind, f"{table}.{into}")
        rate = None if fps is None else Fraction(fps).limit_denominator(100_000)
        recipe = Recipe(kind, size, rate)
        return transcode(self, table, column, into, recipe, where=where, params=params, progress=progress)

    def clips(
        self: Store,
        table: str,
        column: str,
        into: str = "clips",
        *,
        seconds: float = 2.0,
        shots: bool | float = False,
        where: str | None = None,
        params: Mapping[str, Any] | None = None,
        progress: bool = False,
    ) -> JobResult:
        """A table of clips of the videos in ``column``: one row per clip with the video (the same stored bytes), its
        ``clip_start`` and ``clip_end`` in seconds and the source's key as ``source_<key>``; gives the number of clips
        and the videos that none could be made of.

        The table is made if it is not there; videos that have clips in it are left out.

        Args:
            seconds: length of a clip; a last one of less than half of it joins the one before.
            shots: cut where the picture changes instead: True, or the threshold (0..1, default 0.4); every frame is
                then decoded. See `deeplake_loader.clips`.
            where: an SQL condition on ``table``, its parameters as ``:name`` in ``params``.
            progress: show a progress bar.

        >>> db.clips("films", "video", seconds=2.0)                                 # doctest: +SKIP
        >>> clip = Video(num_frames=16, start="clip_start", end="clip_end", size=224)
        >>> stream = db.stream("SELECT video, clip_start, clip_end FROM clips", batch_size=8,
        ...                    transforms={"video": clip})                          # doctest: +SKIP
        """
        from deeplake_loader.clips import make_clips

        return make_clips(
            self, table, column, into, seconds=seconds, shots=shots, where=where, params=params, progress=progress
        )
