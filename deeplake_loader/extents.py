"""Where the bytes of many blobs lie, as arrays: what a reader needs to fetch a batch without asking the catalog."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Extents:
    """One entry per requested address, in the same order, repeats included.

    Fields: ``paths``, the absolute paths of the files; ``file`` (int32), the index into ``paths``, -1 where the address
    is 0 (NULL); ``offset`` (int64) of the first byte, -1 while a small blob still rests in the catalog (read it through
    ``Shards.read``); ``length`` (int64) in bytes; ``check`` (int64), the crc32c of the whole blob, -1 where it is kept
    per block of 1 MB (blobs over 4 MB: read them through ``Shards.read_range``); ``address`` (int64).
    """

    paths: tuple[str, ...]
    file: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    check: np.ndarray
    address: np.ndarray

    def __len__(self) -> int:
        return len(self.address)

    def __repr__(self) -> str:
        return f"<Extents of {len(self)} blobs in {len(self.paths)} files>"
