"""Clips of a stream's rows: each row's own start and end, and long videos of which only a clip's bytes are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deeplake_loader.codecs import MediaInfo
from deeplake_loader.codecs.sparse import SparseFile
from deeplake_loader.decode.transforms import Audio, Draw, Video
from deeplake_loader.decode.video import open_clip
from deeplake_loader.errors import CorruptionError, DecodeError, DeeplakeError, InputError
from deeplake_loader.extents import Extents

if TYPE_CHECKING:
    from deeplake_loader.columnar import ColumnarRows
    from deeplake_loader.reader import Reader

Indices = npt.NDArray[np.int64]
Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where each row's clip starts and ends, in seconds; NaN and None where the transform's own value holds."""

    start: Seconds | None
    end: Seconds | None

    def of(self, transform: Video | Audio, row: int) -> Video | Audio:
        """The transform of that row. Raises InputError for seconds that are no part of a clip."""
        given = {"start": self.start, "end": self.end}
        own: dict[str, Any] = {
            name: None if np.isnan(column[row]) else float(column[row])
            for name, column in given.items()
            if column is not None
        }
        return replace(transform, **own)


def bounds_of(rowset: ColumnarRows, name: str, transform: object) -> Bounds | None:
    """The columns that a clip's transform names. Raises InputError where there is none, or none of numbers."""
    if not isinstance(transform, Video | Audio) or not {str} & {type(transform.start), type(transform.end)}:
        return None
    return Bounds(_seconds(rowset, name, transform.start), _seconds(rowset, name, transform.end))


def _seconds(rowset: ColumnarRows, name: str, column: float | str | None) -> Seconds | None:
    if not isinstance(column, str):
        return None
    if column not in rowset.names:
        raise InputError(
            f"transforms[{name!r}] takes seconds from {column!r}; the query's columns are {', '.join(rowset.names)}"
        )
    values: Any = rowset.column(rowset.names.index(column))
    try:
        return np.array([np.nan if v is None else float(v) for v in values], np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"transforms[{name!r}] takes seconds from {column!r}, which holds no numbers: {error}"
        ) from error


@dataclass(frozen=True, slots=True)
class Windows:
    """What is known of a step's clips before their bytes are read: per row its facts and its transform, ``files`` the
    long videos that are open in parts, by place, and ``errors`` what was wrong with some."""

    infos: Sequence[MediaInfo]
    transforms: Sequence[Video | Audio]
    files: Mapping[int, SparseFile] = field(default_factory=dict)
    errors: Mapping[int, DeeplakeError] = field(default_factory=dict)

    def rest(self, extents: Extents, rows: Indices) -> tuple[Extents, Indices]:
        """What is left to be read whole."""
        if not self.files and not self.errors:
            return extents, rows
        taken = np.array(sorted({*self.files, *self.errors}), np.int64)
        parts = {name: getattr(extents, name)[rows] for name in ("file", "offset", "length", "check", "address")}
        parts["address"][taken] = parts["length"][taken] = 0
        return Extents(extents.paths, **parts), np.arange(len(rows))


def open_windows(
    transform: Video | Audio,
    bounds: Bounds | None,
    infos: Sequence[MediaInfo],
    draws: Sequence[Draw],
    extents: Extents,
    rows: Indices,
    reader: Reader,
) -> Windows:
    """Reads the parts that the clips of long videos need."""
    chosen, files = [transform] * len(rows), {}
    errors: dict[int, DeeplakeError] = {}
    for place, row in enumerate(rows.tolist()):
        try:
            if bounds is not None:
                chosen[place] = bounds.of(transform, row)
            info = replace(infos[place], nbytes=int(extents.length[row]))
            file = open_clip(reader, int(extents.address[row]), info, chosen[place], draws[place])
            if file is not None:
                files[place] = file
        except InputError as error:
            errors[place] = DecodeError(str(error))
        except CorruptionError as error:
            errors[place] = error
    return Windows(infos, chosen, files, errors)
