"""Reading blobs by address: looked up in the catalog, read by pread, verified against their checksums.

A blob of up to 4 MB has one crc32c; a longer one has one per 1 MB, so that a part of it can be verified alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from deeplake_loader import adopted, kernels, store
from deeplake_loader.errors import CorruptionError, NotFoundError, StoreError
from deeplake_loader.extents import Extents
from deeplake_loader.storage.shelves import OpenFiles, find_mirror
from deeplake_loader.tar import END
from deeplake_loader.types import MAX_ORDINAL, ORDINAL_BITS, unpack_address

if TYPE_CHECKING:
    import numpy as np

    from deeplake_loader.catalog import Dialect
    from deeplake_loader.codecs.sparse import SparseFile

CHECK_BLOCK = 1 << 20
MAX_WHOLE_CHECK = 4 << 20

_PLACES: dict[Dialect, str] = {
    "sqlite": "SELECT group_concat(ordinal), group_concat(at), group_concat(length), group_concat(word, '') FROM "
    '(SELECT ordinal, ifnull("offset", -1) AS at, length, hex(substr(checks, 1, 4)) AS word '
    "FROM _dl_members WHERE {} ORDER BY ordinal)",
    "postgres": "SELECT string_agg(ordinal::text, ','), string_agg(at::text, ','), string_agg(length::text, ','), "
    "string_agg(word, '') FROM (SELECT ordinal, coalesce(\"offset\", -1) AS at, length, "
    "encode(substr(checks, 1, 4), 'hex') AS word FROM _dl_members WHERE {} ORDER BY ordinal) found",
}
_DENSE = 4  # where more than one in so many of a file's blobs is wanted, its index is read as a range


class Queries(Protocol):
    """What reading needs of the catalog."""

    dialect: Dialect

    @property
    def root(self) -> store.Root: ...
    def one_of(self, expression: str, values: Sequence[int], /) -> tuple[str, tuple[object, ...]]: ...
    def fetchone(self, sql: str, params: Sequence[Any] = ()) -> Any: ...
    def fetchall(self, sql: str, params: Sequence[Any] = ()) -> list[Any]: ...
    def meta(self, key: str, /) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Location:
    """Where a blob lies: shard ``url`` below the store's root, sample ``key``, ``column``, first byte ``offset`` and
    ``length``; ``offset`` is -1 while a small blob still rests in the catalog."""

    url: str
    key: str
    column: str
    offset: int
    length: int

    def __str__(self) -> str:
        where = f"offset {self.offset}" if self.offset >= 0 else "resting in the catalog"
        return f"{self.url}: key {self.key!r}, column {self.column!r}, {where}, {self.length} bytes"


@dataclass(frozen=True, slots=True)
class Found:
    """What the index says of a blob, with its bytes where they still rest in the catalog."""

    place: Location
    checks: bytes
    info: str | None
    resting: bytes | None


def place_of(url: str, queries: Queries) -> str:
    """The path, or the full url, of a file of the store or of one that was adopted where it lies.

    Raises:
        StoreError: a file that the catalog may not name.
    """
    if not adopted.is_adopted(url):
        return queries.root.place(url)
    if queries.root.foreign and url.startswith("file:"):
        raise StoreError(f"the published catalog names a file of this machine ({url.partition('#')[0]!r}); refused")
    return adopted.place(url, queries)


def checksums(data: bytes | memoryview) -> bytes:
    """The crc32c of a blob as stored: 4 bytes little-endian, or 4 for each 1 MB of a blob over 4 MB."""
    if len(data) <= MAX_WHOLE_CHECK:
        return kernels.crc32c(data).to_bytes(4, "little")
    return kernels.crc32c_blocks(data, CHECK_BLOCK)


def _block_checksums(data: bytes | memoryview) -> bytes:
    return kernels.crc32c_blocks(data, CHECK_BLOCK)


class BlobReader:
    """Verified reads of one store's blobs; threads may share it."""

    def __init__(self, catalog: Queries) -> None:
        self._queries = catalog
        self._files = OpenFiles(catalog.root, self._path)

    def read(self, address: int) -> bytes:
        """The blob's bytes, verified.

        Raises:
            NotFoundError: no blob has this address.
            CorruptionError: the stored bytes differ from what was written; names file, key and offset.
        """
        member = self._find(address)
        place, data = member.place, member.resting
        if data is None:
            return self._read_verified(place, place.offset, place.length, member.checks, 0)
        if checksums(data) != member.checks:
            self._raise_corrupt(place, data, member.checks, 0)
        return data

    def _read_verified(self, place: Location, offset: int, length: int, checks: bytes, first: int) -> bytes:
        """Bytes that have these checksums; a copy that has not is fetched once more. ``first``: block of the blob."""
        sums = checksums if place.length <= MAX_WHOLE_CHECK else _block_checksums
        file = self._files.get(place.url)
        data = file.read(offset, length, str(place))
        if sums(data) != checks:
            data = file.reread(offset, length) or data
            if sums(data) != checks:
                self._raise_corrupt(place, data, checks, first)
        return data

    def read_range(self, address: int, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop`` of the blob (cut at its length), verified; of a blob over 4 MB only the 1 MB
        blocks that hold them are read."""
        member = self._find(address)
        place = member.place
        start, stop = max(0, start), min(stop, place.length)
        if start >= stop:
            return b""
        if place.length <= MAX_WHOLE_CHECK:
            return self.read(address)[start:stop]
        first, last = start // CHECK_BLOCK, -(-stop // CHECK_BLOCK)
        begin, end = first * CHECK_BLOCK, min(last * CHECK_BLOCK, place.length)
        return self._read_blocks(member, begin, end)[start - begin : stop - begin]

    def open_parts(self, address: int) -> SparseFile | None:
        """The blob as a file that reads only the 1 MB blocks it is asked for, each verified; None for one of up to
        4 MB, which is verified whole."""
        from deeplake_loader.codecs.sparse import SparseFile

        member = self._find(address)
        if member.place.length <= MAX_WHOLE_CHECK:
            return None
        return SparseFile(member.place.length, partial(self._read_blocks, member), block=CHECK_BLOCK)

    def _read_blocks(self, member: Found, begin: int, end: int) -> bytes:
        """From a multiple of CHECK_BLOCK to another one or the end, verified."""
        place, first = member.place, begin // CHECK_BLOCK
        checks = member.checks[first * 4 : -(-end // CHECK_BLOCK) * 4]
        return self._read_verified(place, place.offset + begin, end - begin, checks, first)

    def info(self, address: int) -> str | None:
        """The media facts stored with the blob, as JSON; None where there are none."""
        return self._find(address).info

    def locate(self, address: int) -> Location:
        """Where the blob lies."""
        return self._find(address).place

    def resolve(self, addresses: np.ndarray) -> Extents:
        """Where many blobs lie (int64 addresses, repeats and 0 for NULL allowed), in one pass over the index.

        Raises:
            NotFoundError: one of the addresses is unknown.
        """
        import numpy as np

        addresses = np.ascontiguousarray(addresses, np.int64)
        back: Any = slice(None)
        wanted = addresses
        if not (addresses[1:] > addresses[:-1]).all():  # a query in the order of storage spares the sort
            wanted, back = np.unique(addresses, return_inverse=True)
            back = back.reshape(-1)
        file = np.full(len(wanted), -1, np.int32)
        table = np.full((3, len(wanted)), -1, np.int64)
        paths: dict[str, int] = {}  # several files may have become one
        for number, ordinals, chosen in _by_file(wanted):
            url, table[:, chosen] = self._places(number, ordinals)
            path = self._path(url)
            if "://" in path and path not in paths:
                self._learn(number, path)
            file[chosen] = paths.setdefault(path, len(paths))
        offset, length, check = table
        length[wanted == 0] = 0
        return Extents(tuple(paths), file[back], offset[back], length[back], check[back], addresses)

    def _path(self, url: str) -> str:
        """The path, or the full url, of a file of the store or of one that was adopted where it lies."""
        return place_of(url, self._queries)

    def _learn(self, number: int, url: str) -> None:
        """Tells the cache how long a sealed shard is, which it would ask the storage for."""
        row = self._queries.fetchone("SELECT url, size FROM _dl_files WHERE id = ? AND state = 'sealed'", (number,))
        if row is not None and not adopted.is_adopted(row[0]):
            mirror, name = find_mirror(url, self._queries.root)
            mirror.learn(name, int(row[1]) + len(END))

    def infos(self, addresses: np.ndarray) -> list[str | None]:
        """The media facts of many blobs as JSON, in order; None for NULL and where there are none."""
        return self._values(addresses, "info")

    def keys(self, addresses: np.ndarray) -> list[str | None]:
        """The sample keys of many blobs, in order; None for NULL."""
        return self._values(addresses, "key")

    def extensions(self, addresses: np.ndarray) -> list[str | None]:
        """The file extensions of many blobs as they were stored, in order; None for NULL."""
        return self._values(addresses, "extension")

    def checks(self, addresses: np.ndarray) -> list[bytes]:
        """The checksums of many blobs as stored, in order."""
        return self._values(addresses, "checks")

    def resting(self, addresses: np.ndarray) -> list[bytes | None]:
        """The bytes of many blobs that rest in the catalog, in order, unverified; None for one that rests elsewhere."""
        where, bound = self._queries.one_of("address", addresses.tolist())
        held: dict[int, bytes] = dict(
            self._queries.fetchall(f"SELECT address, data FROM _dl_resting WHERE {where}", bound)
        )
        return [held.get(address) for address in addresses.tolist()]

    def close_files(self) -> None:
        """Forgets the files that are open for reading; later reads open them again."""
        self._files = OpenFiles(self._queries.root, self._path)

    def _values(self, addresses: np.ndarray, column: str) -> list[Any]:
        import numpy as np

        wanted, back = np.unique(np.asarray(addresses, np.int64), return_inverse=True)
        values = np.full(len(wanted), None, object)
        for file, ordinals, chosen in _by_file(wanted):
            _, where, bound = self._choose(file, ordinals)
            rows = self._queries.fetchall(f"SELECT ordinal, {column} FROM _dl_members WHERE {where}", bound)
            by_ordinal = dict(rows)
            _require(file, ordinals, by_ordinal.keys())
            values[chosen] = [by_ordinal[o] for o in ordinals.tolist()]
        found: list[Any] = values[back.reshape(-1)].tolist()
        return found

    def _places(self, file: int, ordinals: np.ndarray) -> tuple[str, np.ndarray]:
        """(url, offset, length and crc32c of each), each column out of the database as one text: 7 times as fast as
        rows out of SQLite."""
        import numpy as np

        url, where, bound = self._choose(file, ordinals)
        texts = self._queries.fetchone(_PLACES[self._queries.dialect].format(where), bound)
        found, offset, length = (np.frombuffer(kernels.parse_integers(text or ""), np.int64) for text in texts[:3])
        order = np.argsort(found, kind="stable")
        ascending = found[order]
        place = np.searchsorted(ascending, ordinals)
        if int(place.max()) == len(found) or (ascending[place] != ordinals).any():
            _require(file, ordinals, found.tolist())
        kept = order[place]
        check = np.frombuffer(bytes.fromhex(texts[3] or ""), "<u4").astype(np.int64)
        check[length > MAX_WHOLE_CHECK] = -1
        return url, np.stack((offset[kept], length[kept], check[kept]))

    def _choose(self, file: int, ordinals: np.ndarray) -> tuple[str, str, tuple[object, ...]]:
        """(url, condition, its values) for the index rows of some blobs of a file, ascending and distinct."""
        row = self._queries.fetchone("SELECT url, count FROM _dl_files WHERE id = ? AND kind = 'shard'", (file,))
        url, count = row if row is not None else ("", 0)
        if len(ordinals) * _DENSE > count:
            return url, "file = ? AND ordinal BETWEEN ? AND ?", (file, int(ordinals[0]), int(ordinals[-1]))
        where, listed = self._queries.one_of("ordinal", ordinals.tolist())
        return url, f"file = ? AND {where}", (file, *listed)

    def _find(self, address: int) -> Found:
        file, ordinal = unpack_address(address)
        row = self._queries.fetchone(
            'SELECT f.url, m.key, m.column_name, m."offset", m.length, m.checks, m.info, r.data FROM _dl_members m '
            'JOIN _dl_files f ON f.id = m.file LEFT JOIN _dl_resting r ON m."offset" IS NULL AND r.address = ? '
            "WHERE m.file = ? AND m.ordinal = ?",
            (address, file, ordinal),
        )
        if row is None:
            raise NotFoundError(f"no blob has the address {address}; addresses come from blob columns of this store")
        url, key, column, offset, length, checks, info, resting = row
        name = url if adopted.is_adopted(url) else store.object_of(url)
        place = Location(name, key, column, -1 if offset is None else offset, length)
        if offset is None and resting is None:
            raise CorruptionError(f"{place}: its bytes are not in the catalog; restore the catalog from a copy")
        return Found(place, checks, info, resting)

    @staticmethod
    def _raise_corrupt(place: Location, data: bytes, expected: bytes, first: int) -> None:
        whole = place.length <= MAX_WHOLE_CHECK
        found = checksums(data) if whole else kernels.crc32c_blocks(data, CHECK_BLOCK)
        longest = max(len(expected), len(found))
        bad = next(i for i in range(0, longest, 4) if expected[i : i + 4] != found[i : i + 4])
        raise CorruptionError(
            f"{place}: the bytes read differ from what was written (block {first + bad // 4}, crc32c "
            f"{found[bad : bad + 4].hex()} instead of {expected[bad : bad + 4].hex()}); restore the shard from a copy"
        )


def _by_file(wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray, slice]]:
    """(file, ordinals, place in ``wanted``) of the sorted, distinct addresses; 0 is left out."""
    import numpy as np

    start = int(np.searchsorted(wanted, 0, "right"))
    if start and wanted[0] < 0:
        raise NotFoundError(f"{wanted[0]} is no address; addresses come from blob columns of this store")
    numbers = wanted[start:] >> ORDINAL_BITS
    cuts = [start, *(np.flatnonzero(np.diff(numbers)) + start + 1).tolist(), len(wanted)]
    for first, last in pairwise(cuts):
        if first < last:
            yield int(wanted[first] >> ORDINAL_BITS), wanted[first:last] & MAX_ORDINAL, slice(first, last)


def _require(file: int, ordinals: np.ndarray, found: Iterable[int]) -> None:
    missing = set(ordinals.tolist()).difference(found)
    if missing:
        unknown = file << ORDINAL_BITS | min(missing)
        raise NotFoundError(f"no blob has the address {unknown} ({len(missing)} such in file {file})")
