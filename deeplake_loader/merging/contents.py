"""Whether two addresses hold the same bytes: merges and diffs decide by value, and an address is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deeplake_loader.shards import Shards
    from deeplake_loader.types import ColumnType
    from deeplake_loader.vectors import Vectors


@dataclass(frozen=True, slots=True)
class Contents:
    """Compares blobs and vectors of one store."""

    shards: Shards
    vectors: Vectors

    def same(self, type: ColumnType, a: int | None, b: int | None) -> bool:
        """Whether both are NULL, or hold equal bytes; errors of reading them are raised as they are."""
        if a is None or b is None or a == b:
            return a == b
        read = self.vectors.get if type.is_vector else self.shards.read
        return read(a) == read(b)
