"""What a store holds, by SQL over its catalog: rows, values, bytes, codecs, sizes, durations. No media byte is read."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from deeplake_loader import adopted, store
from deeplake_loader.errors import InputError, NotFoundError
from deeplake_loader.types import MAX_ORDINAL, ORDINAL_BITS, Column, Table, quote_identifier

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.rows import RowSet
    from deeplake_loader.views import Views

Quantity = Literal["value", "bytes", "seconds", "frames"]

_CHUNK = 4_096  # index rows a step
_COMMON = 5
_NUMBERS = ("SMALLINT", "INTEGER", "BIGINT", "REAL", "DOUBLE", "NUMERIC")
_ORDERED = (*_NUMBERS, "TEXT", "DATE", "TIME", "TIMESTAMP", "TIMESTAMPTZ")
_LISTED = ("TEXT", "BOOLEAN")
_ITEM_BYTES = {"float32": 4, "float16": 2}


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many values lie in each of some equal parts of their range: ``counts[i]`` from ``edges[i]`` up to below
    ``edges[i + 1]``, the last one with its upper edge (whole numbers have whole edges); ``quantity`` names what was
    counted, in its own unit."""

    quantity: Quantity
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    minimum: float
    maximum: float
    mean: float
    median: float


@dataclass(frozen=True, slots=True)
class ColumnStatistics:
    """One column of the rows that a handle sees.

    ``values`` that are not NULL, of ``rows``; ``bytes`` they take in shards or vector files, each once, None for
    scalars; ``distinct`` values, ``minimum``, ``maximum`` and ``mean`` of scalars that have them; ``common``, the most
    frequent values of text and booleans with their counts. Of media: ``codecs`` (of tensors: dtypes) and ``sizes``
    ("640x480", stored pixels) with their counts, most frequent first. ``histograms`` of numbers, of bytes a value,
    seconds and frames.
    """

    name: str
    type: str
    rows: int
    values: int
    bytes: int | None = None
    distinct: int | None = None
    minimum: Any = None
    maximum: Any = None
    mean: float | None = None
    common: tuple[tuple[Any, int], ...] = ()
    codecs: tuple[tuple[str, int], ...] = ()
    sizes: tuple[tuple[str, int], ...] = ()
    histograms: tuple[Histogram, ...] = ()


@dataclass(frozen=True, slots=True)
class TableStatistics:
    """A table's rows and columns as a handle sees them."""

    table: str
    rows: int
    columns: tuple[ColumnStatistics, ...]


@dataclass(frozen=True, slots=True)
class Files:
    """Shards or vector files: how many there are, how many of them still take rows, the values and bytes in them, and
    the bytes that rest in the catalog until a file is written."""

    files: int = 0
    open: int = 0
    values: int = 0
    bytes: int = 0
    resting: int = 0


@dataclass(frozen=True, slots=True)
class TableInfo:
    """A table: its rows as a handle sees them, its columns as they are declared, and all the bytes of its files, those
    of other branches and of old rows included."""

    name: str
    rows: int
    columns: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """A store at a glance: where it lies, when it was made (UTC), the handle's branch, tables, files; ``commits`` in
    all; ``catalog_bytes`` of an embedded catalog, None for another."""

    location: str
    created_at: str
    format: int
    branch: str
    tables: tuple[TableInfo, ...]
    shards: Files
    vectors: Files
    commits: int
    branches: int
    tags: int
    catalog_bytes: int | None


class InventoryVerbs:
    """What Database inherits."""

    _catalog: Catalog
    _views: Views

    if TYPE_CHECKING:  # what Database itself is asked for

        @property
        def current_branch(self) -> str: ...
        def execute(self, sql: str, params: Any = None) -> RowSet: ...
        def tables(self) -> Mapping[str, Table]: ...

    def info(self) -> StoreInfo:
        """The store at a glance: tables, rows, files, bytes, commits.

        >>> db.info().shards.bytes                                                  # doctest: +SKIP
        111149056
        """
        catalog = self._catalog
        with catalog.snapshot():
            held = _files_by_table(catalog)
            tables = tuple(self._table_info(table, held) for table in self.tables().values())
            count = "SELECT (SELECT count(*) FROM _dl_commits), (SELECT count(*) FROM _dl_branches WHERE deleted_at "
            commits, branches, tags = catalog.fetchone(f"{count}IS NULL), (SELECT count(*) FROM _dl_tags)")
            return StoreInfo(
                location=catalog.name, created_at=str(catalog.meta("created_at")),
                format=int(catalog.meta("format") or 0),
                branch=self.current_branch, tables=tables, shards=_files(catalog, "shard"),
                vectors=_files(catalog, "vector"), commits=commits, branches=branches, tags=tags,
                catalog_bytes=_size_of(catalog.root.catalog),
            )  # fmt: skip

    def _table_info(self, table: Table, held: Mapping[str, int]) -> TableInfo:
        rows = self.execute(f"SELECT count(*) FROM {quote_identifier(table.name)}").scalar()
        columns = tuple(f"{column.name} {column.type}" for column in table.columns)
        return TableInfo(table.name, int(rows), columns, held.get(table.name, 0))

    def statistics(self, table: str, columns: Sequence[str] | None = None, *, bins: int = 16) -> TableStatistics:
        """What the columns of a table hold, as the handle sees it: on its branch, or at its point in history.

        Args:
            columns: these alone.
            bins: parts of each histogram, 1..1000.

        Raises:
            NotFoundError: no such table or column.

        >>> db.statistics("generations", ["frames"]).columns[0].codecs              # doctest: +SKIP
        (('h264', 54),)
        """
        if not isinstance(bins, int) or not 1 <= bins <= 1000:
            raise InputError(f"bins={bins!r}: expected 1..1000 parts of a histogram")
        definition = next((t for name, t in self.tables().items() if name.lower() == str(table).lower()), None)
        if definition is None:
            raise NotFoundError(f"there is no table {table!r}; tables: {', '.join(self.tables()) or 'none yet'}")
        chosen = [_column(definition, name) for name in columns] if columns is not None else definition.columns
        with self._catalog.snapshot():
            rows = int(self.execute(f"SELECT count(*) FROM {quote_identifier(definition.name)}").scalar())
            found = tuple(self._column_statistics(definition, column, rows, bins) for column in chosen)
        return TableStatistics(definition.name, rows, found)

    def _column_statistics(self, table: Table, column: Column, rows: int, bins: int) -> ColumnStatistics:
        if column.type.is_blob:
            return self._blob_statistics(table, column, rows, bins)
        name, held = quote_identifier(column.name), quote_identifier(table.name)
        values = int(self.execute(f"SELECT count({name}) FROM {held}").scalar())
        found = ColumnStatistics(column.name, str(column.type), rows, values)
        if column.type.is_vector:
            size = column.type.dimension * _ITEM_BYTES[column.type.dtype or "float32"]
            return replace(found, bytes=values * size)
        if column.type.name not in (*_ORDERED, *_LISTED) or not values:
            return found
        return self._scalar_statistics(found, held, name, column, bins)

    def _scalar_statistics(
        self, found: ColumnStatistics, held: str, name: str, column: Column, bins: int
    ) -> ColumnStatistics:
        kind = column.type.name
        facts: dict[str, Any] = {"distinct": self.execute(f"SELECT count(DISTINCT {name}) FROM {held}").scalar()}
        if kind in _ORDERED:
            facts["minimum"], facts["maximum"] = self.execute(f"SELECT min({name}), max({name}) FROM {held}")[0]
        grouped = f"SELECT {name}, count(*) AS n FROM {held} WHERE {name} IS NOT NULL GROUP BY {name}"
        if kind in _LISTED:
            listed = self.execute(f"{grouped} ORDER BY n DESC, {name} LIMIT {_COMMON}")
            facts["common"] = tuple((value, count) for value, count in listed)
        if kind in _NUMBERS:
            histogram = histogram_of("value", ((float(v), n) for v, n in self.execute(grouped)), bins)
            facts |= {"histograms": (histogram,), "mean": histogram.mean} if histogram else {}
        return replace(found, **facts)

    def _blob_statistics(self, table: Table, column: Column, rows: int, bins: int) -> ColumnStatistics:
        values, size, codecs, sizes = 0, 0, Counter[str](), Counter[str]()
        counted: dict[Quantity, Counter[float]] = {"bytes": Counter(), "seconds": Counter(), "frames": Counter()}
        for info, length, times in self._members(table, column):
            facts = _facts(info)
            values, size = values + times, size + length
            codecs.update({facts.codec: times} if facts.codec else {})
            sizes.update({facts.size: times} if facts.size else {})
            for quantity, value in (("bytes", length), ("seconds", facts.seconds), ("frames", facts.frames)):
                if value is not None:
                    counted[quantity][float(value)] += times  # type: ignore[index]
        made = (histogram_of(quantity, found.items(), bins) for quantity, found in counted.items())
        return ColumnStatistics(
            column.name, str(column.type), rows, values, size,
            codecs=tuple(codecs.most_common()), sizes=tuple(sizes.most_common()), histograms=tuple(filter(None, made)),
        )  # fmt: skip

    def _members(self, table: Table, column: Column) -> Iterator[tuple[str | None, int, int]]:
        """(media facts, length, rows that hold it) of each stored value of a column."""
        name = quote_identifier(column.name)
        self._views.refresh([table.name])
        sql = (
            f"SELECT m.info, m.length, v.times FROM (SELECT {name} AS address, count(*) AS times "
            f"FROM {quote_identifier(table.name)} WHERE {name} IS NOT NULL GROUP BY {name}) v "
            f"JOIN _dl_members m ON m.file = (v.address >> {ORDINAL_BITS}) AND m.ordinal = (v.address & {MAX_ORDINAL})"
        )
        for part in self._catalog.chunks(sql, (), size=_CHUNK):
            yield from part


@dataclass(frozen=True, slots=True)
class _Facts:
    codec: str | None
    size: str | None
    seconds: float | None
    frames: int | None


@lru_cache(maxsize=4096)  # equal facts come in runs: a column's images are of few sizes
def _facts(info: str | None) -> _Facts:
    """What is counted of a value's media facts; its table of groups of pictures is not unpacked."""
    known: dict[str, Any] = {} if info is None else json.loads(info)
    size = f"{known['width']}x{known['height']}" if "width" in known and "height" in known else None
    if "shape" in known:
        size = "x".join(map(str, known["shape"])) or "scalar"
    frames = known.get("num_frames") if known.get("media") == "video" else None
    return _Facts(known.get("dtype") or known.get("codec"), size, known.get("duration"), frames)


def histogram_of(quantity: Quantity, counted: Iterable[tuple[float, int]], bins: int) -> Histogram | None:
    """The histogram of finite values that come with their counts; None of none. Equal values make one bar.

    >>> histogram_of("seconds", [(0.5, 1), (2.5, 2), (4.5, 1)], 2).counts
    (1, 3)
    >>> histogram_of("frames", [(3, 1), (8, 2)], 3).edges
    (3.0, 5.0, 7.0, 9.0)
    """
    pairs = sorted((float(v), n) for v, n in counted if float("-inf") < v < float("inf"))
    if not pairs:
        return None
    low, high, total = pairs[0][0], pairs[-1][0], sum(n for _, n in pairs)
    edges = _edges(low, high, bins, whole=all(v.is_integer() for v, _ in pairs))
    counts = [0] * (len(edges) - 1)
    for value, n in pairs:
        counts[min(bisect_right(edges, value), len(counts)) - 1] += n
    mean = sum(v * n for v, n in pairs) / total
    return Histogram(quantity, tuple(edges), tuple(counts), low, high, mean, _median(pairs, total))


def _edges(low: float, high: float, bins: int, *, whole: bool) -> list[float]:
    """Ascending edges of equal parts; whole numbers get whole edges, up to one behind the largest."""
    if whole and high - low < 2**53:
        step = -(-(int(high) - int(low) + 1) // bins)
        return [float(low + i) for i in range(0, int(high - low) + 1 + step, step)]
    bins = bins if low < high else 1
    return [low + (high - low) * i / bins for i in range(bins)] + [high]


def _median(pairs: Sequence[tuple[float, int]], total: int) -> float:
    """Of ascending values with their counts: the middle one, or the mean of the two."""
    seen, lower = 0, None
    for value, n in pairs:
        seen += n
        if lower is not None:
            return (lower + value) / 2
        if 2 * seen == total:
            lower = value
        elif 2 * seen > total:
            return value
    return pairs[-1][0]


def _column(table: Table, name: str) -> Column:
    found = table.column(name)
    if found is None:
        known = ", ".join(column.name for column in table.columns)
        raise NotFoundError(f"{table.name} has no column {name!r}; its columns are {known}")
    return found


def _files_by_table(catalog: Catalog) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for table, size in _objects(catalog.fetchall("SELECT url, table_name, size + resting FROM _dl_files")).values():
        if table is not None:
            sizes[table] = sizes.get(table, 0) + int(size)
    return sizes


def _files(catalog: Catalog, kind: str) -> Files:
    rows = catalog.fetchall("SELECT url, state, count, size, resting FROM _dl_files WHERE kind = ?", (kind,))
    found = _objects([(url, state, size) for url, state, _, size, _ in rows]).values()
    return Files(
        len(found), sum(state == "open" for state, _ in found), sum(count for *_, count, _, _ in rows),
        sum(size for _, size in found), sum(resting for *_, resting in rows),
    )  # fmt: skip


def _objects(rows: Iterable[Any]) -> dict[str, Any]:
    """The rows by the file that each names first, one for each: several rows may name parts of one."""
    return {url if adopted.is_adopted(url) else store.object_of(url): rest for url, *rest in rows}


def _size_of(path: str) -> int | None:
    return os.path.getsize(path) if os.path.isfile(path) else None
