"""Inverted lists of one sealed vector file: which of its rows lie near which of a few hundred centres.

The lists choose rows, and nothing more: whatever they choose is scored exactly, from the matrix itself. They lie beside
the file they were made of as ``<name>.ivf``, carry its sha256, and can be made again at any time, so a file that is
missing, damaged or of another source is as good as none: the rows are then scanned.

    magic 8 | header length 4 | header (JSON) | 0 ... 64 | centres f32 (lists, d) | bounds i64 | rows u32 | depths i32

*rows* are the file's row numbers list by list, those of list i from ``bounds[i]`` to ``bounds[i + 1]``. *depths* come
from a sample of the file's own rows taken as queries: for each of their ten nearest rows, how many lists lie nearer to
the query than the one it is in. They say how many lists a wanted recall takes.

Only making lists needs faiss (the extra ``ann``); it clusters and assigns the rows. Source of the method: Jégou, Douze,
Schmid, "Product quantization for nearest neighbor search", 2011, section IV (inverted file, without the quantizer).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deeplake_loader import kernels, store
from deeplake_loader.errors import CorruptionError, InputError
from deeplake_loader.matrices import Matrix

if TYPE_CHECKING:
    import numpy as np

    from deeplake_loader.scoring import Metric

    Array = np.ndarray[Any, np.dtype[Any]]

SUFFIX = "ivf"
MIN_ROWS = 8_192
"""Rows from which a file gets lists: fewer of 768 float32 are scanned in the time that choosing lists takes."""

MAX_LISTS = 32_768
"""As many as pgvector allows."""

_MAGIC = b"dl-ivf\x01\n"
_MAX_HEADER = 1 << 16
_ALIGN = 64
_PER_LIST = 39  # faiss: fewer points than this do not settle a centre
_TRAINED = 64  # rows per centre that the clustering sees: twice as many gained 0.2 % recall at 100,000 x 768
_TRAINED_BYTES = 512 << 20
_CHUNK = 64 << 20  # bytes of float32 rows assigned at a time
_SAMPLE, _NEAREST = 128, 10  # queries, and nearest rows of each, from which the depths are measured
_ROUNDS = 10


@dataclass(frozen=True, slots=True)
class Lists:
    """The lists of one file of ``len(rows)`` vectors, in memory: 4 bytes a row and 4 bytes a centre's element."""

    metric: Metric
    centres: Array
    bounds: Array
    rows: Array
    depths: Array

    def __len__(self) -> int:
        return len(self.centres)

    def probes(self, recall: float) -> int:
        """How many lists to look into for a mean recall of ``recall`` (0..1) among the ten nearest, as measured."""
        if recall >= 1 or not len(self.depths):
            return len(self)
        return int(self.depths[int(recall * len(self.depths))]) + 1

    def ranked(self, query: Array) -> Array:
        """The numbers of all lists, nearest to ``query`` (float32) first."""
        import numpy as np

        return np.argsort(_distances(self.centres, query[None], self.metric)[0], kind="stable")

    def members(self, chosen: Array) -> Array:
        """The rows of these lists, ascending, int64."""
        import numpy as np

        parts = [self.rows[self.bounds[i] : self.bounds[i + 1]] for i in chosen]
        return np.sort(np.concatenate(parts)).astype(np.int64)


def choose(lists: Lists, query: Array, k: int, nprobe: int, wanted: Callable[[Array], Array]) -> Array | None:
    """The rows (ascending, int64) to score for the ``k`` nearest: the wanted ones of the ``nprobe`` nearest lists, or
    of as many more as it takes to have ``k`` at all; None where that would be every list.

    Args:
        query: float32; one that is not finite chooses nothing, so None.
        wanted: gives those of some rows, ascending, that may be found.
    """
    import numpy as np

    if not np.isfinite(query).all():
        return None
    order, found, start, step = lists.ranked(query), np.empty(0, np.int64), 0, nprobe
    while len(found) < k or not start:
        if start + step >= len(order):
            return None
        found = np.concatenate([found, wanted(lists.members(order[start : start + step]))])
        start += step
        step = start  # twice as many in all: few live rows must not cost a round for each list
    return np.sort(found)


def widened(lists: Lists, nprobe: int, selectivity: float) -> int:
    """How many lists to look into where only a share of the rows is wanted: as many wanted rows are then scored as
    without a filter, because the nearest of the wanted ones lie that much farther away."""
    return min(len(lists), -int(-nprobe // max(selectivity, 1e-9)))


# -- making lists ------------------------------------------------------------------------------------------------------


def default_lists(count: int) -> int:
    """How many lists suit a file of ``count`` rows: pgvector's rule.

    >>> default_lists(100_000), default_lists(1_000_000), default_lists(4_000_000)
    (100, 1000, 2000)
    """
    return max(1, count // 1000 if count <= 1_000_000 else int(count**0.5))


def make(matrix: Matrix, metric: Metric, lists: int | None, progress: Callable[[int], object] | None = None) -> Lists:
    """The lists of a sealed file; ``lists`` of them, or as many as suit (at most a list per 39 rows).

    Args:
        progress: called with the number of rows that were assigned since the last call.

    Raises:
        InputError: faiss is not installed.
        CorruptionError: bytes of the file changed.
    """
    import numpy as np

    faiss = require()
    count, dimension = matrix.count, matrix.layout.dimension
    wanted = min(lists or default_lists(count), max(1, count // _PER_LIST), MAX_LISTS)
    matrix.verify(range(count))
    flat = np.frombuffer(matrix.view, matrix.layout.dtype).reshape(count, dimension)
    spherical = metric == "cosine"
    trained = min(count, max(wanted, min(_TRAINED * wanted, _TRAINED_BYTES // (4 * dimension))))
    chosen = np.sort(np.random.default_rng(0).choice(count, trained, replace=False))
    means = faiss.Kmeans(
        dimension, wanted, niter=_ROUNDS, seed=1, spherical=spherical, min_points_per_centroid=1,
        max_points_per_centroid=_TRAINED,
    )  # fmt: skip
    means.train(_points(flat[chosen], spherical))
    centres = np.ascontiguousarray(means.centroids, np.float32).reshape(wanted, dimension)
    index = faiss.IndexFlatL2(dimension)
    index.add(centres)
    queries = _points(flat[chosen[:: max(1, trained // _SAMPLE)][:_SAMPLE]], spherical)
    nearest = _Nearest(queries, metric)
    owner = np.empty(count, np.int64)
    for start, points in _chunks(flat, spherical):
        owner[start : start + len(points)] = index.search(points, 1)[1][:, 0]
        nearest.add(points, start)
        if progress is not None:
            progress(len(points))
    bounds = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=wanted))]).astype(np.int64)
    rows = np.argsort(owner, kind="stable").astype(np.uint32)
    return Lists(metric, centres, bounds, rows, _depths(centres, queries, owner, nearest.rows, metric))


class _Nearest:
    """The nearest rows of some queries, kept while the rows pass by in chunks."""

    __slots__ = ("_distances", "_metric", "_queries", "rows")

    def __init__(self, queries: Array, metric: Metric) -> None:
        import numpy as np

        self._queries, self._metric = queries, metric
        self.rows = np.zeros((len(queries), 0), np.int64)
        self._distances = np.zeros((len(queries), 0), np.float32)

    def add(self, points: Array, first: int) -> None:
        import numpy as np

        distances = _distances(points, self._queries, self._metric)
        keep = min(_NEAREST + 1, len(points))  # one more: a query is its own nearest row
        near = np.argpartition(distances, keep - 1, axis=1)[:, :keep]
        rows = np.concatenate([self.rows, near + first], axis=1)
        far = np.concatenate([self._distances, np.take_along_axis(distances, near, axis=1)], axis=1)
        order = np.argsort(far, axis=1, kind="stable")[:, : _NEAREST + 1]
        self.rows, self._distances = np.take_along_axis(rows, order, 1), np.take_along_axis(far, order, 1)


def _depths(centres: Array, queries: Array, owner: Array, nearest: Array, metric: Metric) -> Array:
    import numpy as np

    order = np.argsort(_distances(centres, queries, metric), axis=1, kind="stable")
    place = np.argsort(order, axis=1)  # the rank of each list for each query
    found = np.take_along_axis(place, owner[nearest[:, 1:]], axis=1)
    return np.sort(found, axis=None).astype(np.int32)


def _distances(points: Array, queries: Array, metric: Metric) -> Array:
    """(queries, points) float32 numbers that order points as their distances do, nearest smallest."""
    import numpy as np

    products = queries @ points.T
    if metric != "l2":  # centres of a cosine index have length 1
        return np.asarray(-products)
    return np.asarray(np.einsum("ij,ij->i", points, points)[None, :] - 2 * products)


def _points(rows: Array, spherical: bool) -> Array:
    import numpy as np

    points = np.ascontiguousarray(rows, np.float32)
    if not spherical:
        return points
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    return np.asarray(points / np.where(lengths > 0, lengths, 1))


def _chunks(flat: Array, spherical: bool) -> Iterator[tuple[int, Array]]:
    step = max(1, _CHUNK // (4 * flat.shape[1]))
    for start in range(0, len(flat), step):
        yield start, _points(flat[start : start + step], spherical)


def require() -> Any:
    """The module faiss, which makes lists; InputError where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise InputError(
            "making the lists of an ivf index needs faiss, which is not installed: pip install 'deeplake-loader[ann]'"
        ) from error
    return faiss


# -- the file ----------------------------------------------------------------------------------------------------------


def path_of(path: str) -> str:
    """Where the lists of the vector file at ``path`` lie."""
    return f"{path.rpartition('.')[0]}.{SUFFIX}"


def save(path: str, lists: Lists, source: str) -> None:
    """Writes the lists of the vector file at ``path``, whose sha256 is ``source``: whole, or not at all."""
    parts = [lists.centres, lists.bounds, lists.rows, lists.depths]
    data = b"".join(part.tobytes() for part in parts)
    header = {
        "source": source, "metric": lists.metric, "count": len(lists.rows), "dimension": lists.centres.shape[1],
        "lists": len(lists), "depths": len(lists.depths), "crc32c": kernels.crc32c(data),
    }  # fmt: skip
    text = json.dumps(header).encode()
    head = _MAGIC + len(text).to_bytes(4, "little") + text
    final = path_of(path)
    fresh = f"{final}.{store.unique_name()}"
    with store.file_errors("write", fresh):
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            store.write_at(fd, [head.ljust(-(-len(head) // _ALIGN) * _ALIGN, b"\0"), memoryview(data)], 0, fresh)
            os.fsync(fd)
            os.replace(fresh, final)
        except BaseException:
            with suppress(OSError):
                os.unlink(fresh)
            raise
        finally:
            os.close(fd)


def load(path: str, source: str, count: int, dimension: int, metric: Metric) -> Lists | None:
    """The lists of the vector file at ``path``; None where there are none, or those of other bytes or another metric.

    Raises:
        CorruptionError: the file is there and is not what was written.
    """
    name = path_of(path)
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        size = os.fstat(fd).st_size
        header, begin = _read_header(fd, name, size)
        if (header["source"], header["metric"]) != (source, metric):
            return None
        sizes = _sizes(header, name)
        if (header["count"], header["dimension"]) != (count, dimension) or size != begin + sum(sizes):
            raise CorruptionError(f"{name}: {size} bytes do not hold the lists of {count} x {dimension}{_REMEDY}")
        data = store.read_at(fd, begin, size - begin, name)
    finally:
        os.close(fd)
    if kernels.crc32c(data) != header["crc32c"]:
        raise CorruptionError(f"{name}: its crc32c is not {header['crc32c']:08x} as written{_REMEDY}")
    return _checked(data, header, sizes, name)


_REMEDY = "; remove it, and db.optimize() makes it again"
_FIELDS = {"source": str, "metric": str, "count": int, "dimension": int, "lists": int, "depths": int, "crc32c": int}


def _read_header(fd: int, name: str, size: int) -> tuple[dict[str, Any], int]:
    """(the header, where the arrays begin)."""
    start = store.read_at(fd, 0, min(size, 12), name)
    length = int.from_bytes(start[8:12], "little")
    if start[:8] != _MAGIC or not 0 < length <= min(_MAX_HEADER, size):
        raise CorruptionError(f"{name} begins with {start!r}, so it holds no lists of this release{_REMEDY}")
    try:
        header = json.loads(store.read_at(fd, 12, length, name))
    except ValueError as error:
        raise CorruptionError(f"{name}: its header is no JSON ({error}){_REMEDY}") from error
    if not isinstance(header, dict) or any(type(header.get(k)) is not kind for k, kind in _FIELDS.items()):
        raise CorruptionError(f"{name}: its header lacks one of {', '.join(_FIELDS)}{_REMEDY}")
    return header, -(-(12 + length) // _ALIGN) * _ALIGN


def _sizes(header: dict[str, Any], name: str) -> tuple[int, int, int, int]:
    """Bytes of the four arrays."""
    count, dimension, lists, depths = (header[k] for k in ("count", "dimension", "lists", "depths"))
    if not (0 < lists <= min(count, MAX_LISTS) and dimension > 0 and 0 <= depths <= _SAMPLE * _NEAREST * 2):
        raise CorruptionError(f"{name}: {lists} lists of {count} x {dimension} with {depths} depths{_REMEDY}")
    return 4 * lists * dimension, 8 * (lists + 1), 4 * count, 4 * depths


def _checked(data: bytes, header: dict[str, Any], sizes: tuple[int, ...], name: str) -> Lists:
    import numpy as np

    parts, at = [], 0
    for size, dtype in zip(sizes, ("<f4", "<i8", "<u4", "<i4"), strict=True):
        parts.append(np.frombuffer(data, dtype, size // int(dtype[2]), at))
        at += size
    centres, bounds, rows, depths = parts
    count = header["count"]
    if bounds[0] != 0 or bounds[-1] != count or (np.diff(bounds) < 0).any() or int(rows.max()) >= count:
        raise CorruptionError(f"{name}: its lists do not part the {count} rows{_REMEDY}")
    return Lists(header["metric"], centres.reshape(header["lists"], -1), bounds, rows, depths)
