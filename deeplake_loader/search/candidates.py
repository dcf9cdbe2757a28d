"""Which rows of which vector files a search looks at: as SQL chose them, or every row that a table holds.

SQL gives its choice as one text of addresses: of the ways out of SQLite that need no code of ours inside it, the
cheapest. Of a table that is searched whole, the rows are known from before: a bitmap for each file, brought up to date
from the undo log, so that rows that were deleted, replaced or belong to another branch are never scored, and a search
costs no walk through the table.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deeplake_loader import history, kernels
from deeplake_loader.branches import HISTORY_FROM, first_number
from deeplake_loader.catalog import Catalog, Participant
from deeplake_loader.types import ORDINAL_BITS, quote_identifier, quote_identifiers

if TYPE_CHECKING:
    from deeplake_loader.views import Views

_FEW = 8  # a share of the rows, from which on a bitmap is made anew instead of brought up to date


@dataclass(frozen=True, slots=True)
class Part:
    """The candidates in one file: ``rows``, ascending, or ``bitmap``, in which bit i % 8 of byte i // 8 is row i;
    ``count`` of them, the last being row ``last``."""

    file: int
    count: int
    last: int
    rows: array[int] | None = None
    bitmap: bytearray | None = None


@dataclass(frozen=True, slots=True)
class Candidates:
    """All rows that a search looks at, file by file."""

    parts: tuple[Part, ...]

    @property
    def count(self) -> int:
        """How many there are, each once."""
        return sum(part.count for part in self.parts)

    @classmethod
    def parse(cls, text: str | None) -> Candidates:
        """The candidates of ``"12,34,12"``, addresses as SQL joined them; None stands for none.

        >>> [(part.file, part.rows.tolist()) for part in Candidates.parse("1073741825,2147483651,1073741825").parts]
        [(1, [1]), (2, [3])]
        """
        split = kernels.split(kernels.parse_integers(text or ""), ORDINAL_BITS)
        return cls(tuple(Part(file, len(rows), rows[-1], rows) for file, rows in split))


@dataclass(frozen=True, slots=True)
class _Whole:
    """The rows of one column as of commit ``head`` and the catalog's mark ``stamp``.

    ``shared``: two rows hold the same vector, so that a bit may not be cleared with one of them. ``clean``: each
    change until then has a commit of its own; one that has none may be changed again without a trace in the log.
    """

    candidates: Candidates
    bitmaps: Mapping[int, bytearray]
    head: int
    stamp: tuple[object, ...]
    shared: bool
    clean: bool


class LiveRows(Participant):
    """The candidates of tables that are searched whole, kept for one handle and right in every snapshot of it."""

    def __init__(self, catalog: Catalog, views: Views) -> None:
        self._catalog, self._views = catalog, views
        self._known: dict[tuple[str, str], _Whole] = {}
        catalog.participants.append(self)

    def candidates(self, table: str, column: str) -> Candidates:
        """Every vector that the handle's table holds now; inside a snapshot or transaction, its view refreshed."""
        stamp, known = self._stamp(), self._known.get((table, column))
        if known is None or known.stamp != stamp:
            known = self._extended(known, table, column, stamp) or self._read(table, column, stamp)
            self._known[table, column] = known
        return known.candidates

    def _stamp(self) -> tuple[object, ...]:
        """What stays equal while no row can change; a branch's own TEMP tables are no change."""
        version, point = self._catalog.schema_version(), self._views.point
        if self._views.fixed:
            return point, version
        other, own = self._catalog.changes()
        quiet = not self._views.on_main and not self._catalog.in_transaction
        return point, version, other, self._catalog.head() if quiet else own

    def _read(self, table: str, column: str, stamp: tuple[object, ...]) -> _Whole:
        name = quote_identifier(column)
        sql = f"SELECT group_concat({name}), count({name}) FROM {quote_identifier(table)}"
        text, rows = self._catalog.fetchone(sql)
        found, bitmaps = Candidates.parse(text), dict[int, bytearray]()
        _mark(bitmaps, found, on=True)
        return self._whole(table, bitmaps, stamp, shared=found.count < rows)

    def _whole(
        self, table: str, bitmaps: Mapping[int, bytearray], stamp: tuple[object, ...], *, shared: bool
    ) -> _Whole:
        head, log = self._catalog.head(), history.LOG_PREFIX + table
        clean = self._views.on_main and first_number(self._catalog, log, head) > self._end(log)
        return _Whole(_filled(bitmaps), bitmaps, head, stamp, shared, clean)

    def _extended(self, known: _Whole | None, table: str, column: str, stamp: tuple[object, ...]) -> _Whole | None:
        """What is known brought up to date from the undo log, or None where the table has to be read anew."""
        if known is None or known.shared or not known.clean or known.stamp[:2] != stamp[:2]:
            return None
        if int(self._catalog.meta(HISTORY_FROM) or 0) > known.head:
            return None  # the log no longer reaches back so far
        log = history.LOG_PREFIX + table
        first = first_number(self._catalog, log, known.head)
        if self._end(log) - first > known.candidates.count // _FEW:
            return None
        bitmaps = {file: bytearray(bitmap) for file, bitmap in known.bitmaps.items()}
        shared = self._take(bitmaps, table, column, first)
        return self._whole(table, bitmaps, stamp, shared=shared)

    def _take(self, bitmaps: dict[int, bytearray], table: str, column: str, first: int) -> bool:
        """Takes in the log from number ``first`` on; whether two rows are seen to hold the same vector."""
        name, log = quote_identifier(column), f"main.{quote_identifier(history.LOG_PREFIX + table)}"
        keys = quote_identifiers(history.read_shape(self._catalog, table).key)
        old = self._catalog.fetchone(
            f"SELECT group_concat({name}) FROM {log} WHERE _dl_n >= ? AND _dl_op <> 'I'", (first,)
        )
        _mark(bitmaps, Candidates.parse(old[0]), on=False)
        chosen = f"({keys}) IN (SELECT {keys} FROM {log} WHERE _dl_n >= ?)"
        sql = f"SELECT group_concat({name}), count({name}) FROM main.{quote_identifier(table)} WHERE {chosen}"
        text, rows = self._catalog.fetchone(sql, (first,))
        return bool(_mark(bitmaps, Candidates.parse(text), on=True) < rows)

    def _end(self, log: str) -> int:
        return int(self._catalog.fetchone(f"SELECT max(_dl_n) FROM main.{quote_identifier(log)}")[0] or 0)

    def rollback_to(self, _token: object) -> None:
        self._known.clear()

    def rolled_back(self) -> None:
        self._known.clear()

    def forked(self) -> None:
        self._known.clear()


def _mark(bitmaps: dict[int, bytearray], rows: Candidates, *, on: bool) -> int:
    """Sets or clears the bits of some rows, the bitmaps growing as needed; how many bits changed."""
    changed = 0
    for part in rows.parts:
        bitmap = bitmaps.setdefault(part.file, bytearray())
        bitmap.extend(bytes(max(0, part.last // 8 + 1 - len(bitmap))))
        changed += kernels.set_bits(bitmap, part.rows or array("q"), on=on)
    return changed


def _filled(bitmaps: Mapping[int, bytearray]) -> Candidates:
    """The bitmaps as candidates, files without a row left out."""
    numbers = ((file, bitmap, int.from_bytes(bitmap, "little")) for file, bitmap in sorted(bitmaps.items()))
    return Candidates(
        tuple(Part(file, n.bit_count(), n.bit_length() - 1, bitmap=bitmap) for file, bitmap, n in numbers if n)
    )
