"""What a search gives back: the rows, best first, with their scores and the addresses of their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deeplake_loader.errors import InputError
from deeplake_loader.rows import RowSet, Source

if TYPE_CHECKING:
    import numpy as np

    from deeplake_loader.types import ColumnType


class SearchResult(RowSet):
    """The rows of one search, best first, whose last column is ``score``.

    ``exact``: no row that was left out has a better score; ``rows_examined``: how many vectors were scored (for a
    volatile condition, of which every query chooses its own rows: how many came).
    """

    exact: bool
    rows_examined: int

    def __init__(
        self,
        names: Sequence[str],
        types: Sequence[ColumnType | None],
        records: list[tuple[Any, ...]],
        *,
        column: str,
        exact: bool,
        rows_examined: int,
        source: Source | None = None,
        decoded: bool = False,
    ) -> None:
        super().__init__(names, types, records, source=source, decoded=decoded)
        self.exact, self.rows_examined, self._column = exact, rows_examined, column

    @property
    def addresses(self) -> np.ndarray:
        """(n,) int64: the addresses of the rows' vectors, which `Database.vectors` reads.

        Raises:
            InputError: the store is in PostgreSQL, whose rows hold their vectors themselves.
        """
        import numpy as np

        if self.decoded:
            raise InputError(
                f"vectors in PostgreSQL have no address; take row[{self._column!r}], which holds the numbers"
            )
        return np.array(self.raw(self.names.index(self._column)), np.int64)

    @property
    def scores(self) -> np.ndarray:
        """(n,) float64: the rows' scores, NaN where a vector has none."""
        import numpy as np

        return np.array(self.raw(len(self.names) - 1), np.float64)

    def without(self, names: Sequence[str], key: tuple[Any, ...], k: int) -> SearchResult:
        """The first ``k`` rows, leaving out the one that has this key."""
        places = [self.names.index(name) for name in names]
        kept = [record for row, record in zip(self, self._records, strict=True) if tuple(row[i] for i in places) != key]
        return SearchResult(
            self.names, self.types, kept[:k], column=self._column, exact=self.exact,
            rows_examined=self.rows_examined, source=self._source, decoded=self.decoded,
        )  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        own = {"column": self._column, "exact": self.exact, "rows_examined": self.rows_examined}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        names = ("names", "types", "records", "column", "exact", "rows_examined", "decoded")
        self.__init__(**{name: state[name] for name in names})  # type: ignore[misc]
