"""Whether two addresses hold the same bytes: SQL functions for merges and diffs, which decide by value."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING

from deeplake_loader.catalog import weakly
from deeplake_loader.errors import DeeplakeError

if TYPE_CHECKING:
    from deeplake_loader.shards import Shards
    from deeplake_loader.vectors import Vectors

SAME_BLOB, SAME_VECTOR = "_dl_same_blob", "_dl_same_vector"


class Contents:
    """Compares blobs and vectors of one store; an error inside a SQL function is kept for `take_error`."""

    def __init__(self, shards: Shards, vectors: Vectors) -> None:
        self._readers = {SAME_BLOB: shards.read, SAME_VECTOR: vectors.get}
        self._error: DeeplakeError | None = None

    def register(self, connection: sqlite3.Connection) -> None:
        """Give the connection the functions ``same(address, address) -> 0 or 1``."""
        for name, read in self._readers.items():
            connection.create_function(name, 2, self._compare(read))

    def _compare(self, read: Callable[[int], bytes]) -> Callable[[int | None, int | None], int]:
        keep, read = weakly(self._keep), weakly(read)

        def same(a: int | None, b: int | None) -> int:
            if a is None or b is None:
                return int(a is b)
            try:
                return int(read(a) == read(b))
            except DeeplakeError as error:
                keep(error)
                raise

        return same

    def _keep(self, error: DeeplakeError) -> None:
        self._error = error

    def take_error(self) -> DeeplakeError | None:
        """The error that made a function fail since the last call."""
        error, self._error = self._error, None
        return error
