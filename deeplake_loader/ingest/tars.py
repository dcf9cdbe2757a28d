"""WebDataset tars: scanned once, their samples as rows. A plain tar stays where it is and only an index is written; a
compressed one is unpacked beside the store for the time it takes to copy its samples into shards, and so is one on the
web that comes only as a whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import count, islice
from typing import IO, TYPE_CHECKING, Any

from deeplake_loader import adopted, store
from deeplake_loader.errors import CorruptionError, InputError
from deeplake_loader.ingest import members
from deeplake_loader.ingest.scanning import INDEX, Scan, scan
from deeplake_loader.ingest.sources import Reader, Source, fetch, form_of
from deeplake_loader.ingest.tar_walk import Comment, Member, Problem, Read, walk
from deeplake_loader.ingest.target import Whole
from deeplake_loader.ingest.told import PREFIX, Told
from deeplake_loader.ingest.unpacking import unpack
from deeplake_loader.inserts import insert_columns
from deeplake_loader.rows import StoredBlobs
from deeplake_loader.types import ColumnType, pack_address

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.ingest.inference import Proposal
    from deeplake_loader.ingest.target import Batch, Target

_OBSERVED = 2_000  # members that a schema is inferred from, per source
_ROWS = 65_536
_COPIED_ROWS = 1_024  # whose bytes are in memory
_STEP = 8 << 20
_Found = Member | Problem | Comment


class TarSource(Whole):
    """A plain tar, adopted where it lies."""

    has_keys, plain_names = True, True

    def __init__(self, source: Source) -> None:
        self.source = source
        self._found: Scan | None = None

    def observe(self) -> Iterator[Mapping[str, ColumnType | None]]:
        """{field: type} of the first samples."""
        with Reader(self.source) as read:
            yield from _observe(self._listening(walk(read, self.source.nbytes)), self.source.name)

    def _listening(self, walked: Iterator[_Found]) -> Iterator[_Found]:
        """The same, what an export tells of its columns noted."""
        for item in walked:
            if isinstance(item, Comment) and item.text.startswith(PREFIX):
                self.told = Told.parse(item.text.removeprefix(PREFIX), self.source.name)
            yield item

    def prepare(self, proposal: Proposal) -> None:
        """Reads the whole tar; on any thread."""
        with Reader(self.source) as read:
            self._found = scan(read, self.source.nbytes, proposal, self.source.name, fd=read.fd)
            read.check_unchanged()

    def batches(self, target: Target) -> Iterator[Batch]:
        """The rows in columns, the index of their blobs written first, in the caller's transaction."""
        found = self._told(target)
        file = _register(target, self.source, found) if found.index else 0
        kinds = {c.name: c.type for c in target.db.tables()[target.table].columns}
        for keys, columns in _parts(found, _ROWS):
            yield keys, {name: _adopted(target.db, kinds[name], file, values) for name, values in columns.items()}

    def _told(self, target: Target) -> Scan:
        """What `prepare` found, once, its problems told."""
        found, self._found = self._found, None
        if found is None:
            raise InputError(f"{self.source.name} has not been read")
        if found.fatal is not None:
            raise CorruptionError(f"{self.source.name}: {found.fatal}; nothing of it was taken in")
        for member, reason in found.problems:
            target.skip(member, reason)
        for extension, samples in found.unused.items():
            target.unused(extension, samples)
        return found


class PackedSource(TarSource):
    """A compressed tar, whose samples are copied into the store's shards."""

    _file: IO[bytes]

    def observe(self) -> Iterator[Mapping[str, ColumnType | None]]:
        with Reader(self.source) as read, unpack(self.source.url, self.source.nbytes, read) as stream:
            yield from _observe(self._listening(walk(stream, None)), self.source.name)

    def prepare(self, proposal: Proposal) -> None:
        """Unpacks into a file without a name, which goes away by itself."""
        with Reader(self.source) as read:
            self._file = _unpacked(self.source, read)
        self._scan(proposal)

    def _scan(self, proposal: Proposal) -> None:
        fd = self._file.fileno()
        self._found = scan(self._read, os.fstat(fd).st_size, proposal, self.source.name, fd=fd)

    def _read(self, offset: int, length: int) -> bytes:
        return _read_of(self._file.fileno(), offset, length)

    def batches(self, target: Target) -> Iterator[Batch]:
        found = self._told(target)
        kinds = {c.name: c.type for c in target.db.tables()[target.table].columns}
        extents = {ordinal: (offset, length) for ordinal, _, _, _, offset, length, _, _ in found.index.rows()}
        with self._file:
            for keys, columns in _parts(found, _COPIED_ROWS):
                yield (
                    keys,
                    {
                        name: [self._bytes(extents, v) for v in values] if kinds[name].is_blob else values
                        for name, values in columns.items()
                    },
                )

    def _bytes(self, extents: Mapping[int, tuple[int, int]], ordinal: int | None) -> bytes | None:
        if ordinal is None:
            return None
        return store.read_at(self._file.fileno(), *extents[ordinal], self.source.name)


class FetchedSource(PackedSource):
    """A tar on the web that cannot be read in place: fetched whole, compressed or not, its samples copied."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._there = False

    def observe(self) -> Iterator[Mapping[str, ColumnType | None]]:
        self._fetch()
        walked = walk(self._read, os.fstat(self._file.fileno()).st_size)
        yield from _observe(self._listening(walked), self.source.name)

    def prepare(self, proposal: Proposal) -> None:
        self._fetch()
        self._scan(proposal)
        self._there = False  # whoever copies the samples closes the file

    def _fetch(self) -> None:
        if self._there:
            return
        file = tempfile.TemporaryFile()  # noqa: SIM115 closed behind the last batch
        fetch(self.source, file)
        if form_of(self.source.url) == "packed":
            with file:
                read = partial(_read_of, file.fileno())
                self._file = _unpacked(self.source, read)
        else:
            self._file = file
        self._there = True


def _read_of(fd: int, offset: int, length: int) -> bytes:
    return os.pread(fd, length, offset)


def _unpacked(source: Source, read: Read) -> IO[bytes]:
    """A nameless file with what is in the compressed one."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 the caller's to close
    with unpack(source.url, source.nbytes, read) as stream, store.file_errors("unpack", source.name):
        at = 0
        while data := stream(at, _STEP):
            file.write(data)
            at += len(data)
        file.flush()
    return file


def _observe(walked: Iterator[_Found], where: str) -> Iterator[Mapping[str, ColumnType | None]]:
    samples: dict[str, dict[str, ColumnType | None]] = {}
    reason = "no member has an extension"
    for item in islice(walked, _OBSERVED):
        split = members.split_name(item.name) if isinstance(item, Member) else None
        if split is not None and isinstance(item, Member):
            sample = samples.setdefault(split[0], {})
            for name, kind in members.observe(split[1], item.data):
                sample[name] = kind
        elif isinstance(item, Problem):
            reason = f"{item.name or f'byte {item.offset}'} {item.reason}"
            if item.fatal and not samples:
                raise CorruptionError(f"{where}: {reason}")
    if not samples:
        raise InputError(f"{where} holds no samples: {reason}")
    yield from samples.values()


def _parts(found: Scan, size: int) -> Iterator[tuple[list[str], dict[str, list[Any]]]]:
    """(keys, columns) of some rows at a time."""
    for start in range(0, len(found.keys), size):
        columns = (column[start : start + size] for column in found.columns)
        yield found.keys[start : start + size], dict(zip(found.names, columns, strict=True))


def _adopted(db: Any, kind: ColumnType, file: int, values: Sequence[Any]) -> Sequence[Any]:
    """The values as they are inserted: blobs, which come as their numbers in the file, by their addresses."""
    if not kind.is_blob:
        return values
    first = pack_address(file, 0) if file else 0  # a tar without one blob is not registered
    return StoredBlobs(db, kind, [None if value is None else first + value for value in values])


def _register(target: Target, source: Source, found: Scan) -> int:
    """The number of the adopted file, with the index of its blobs written."""
    catalog = target.db._catalog
    catalog.line_up(f"adopt {source.url}")  # of two that give it to two tables, one comes second
    adopted.add_roots(catalog, [adopted.root_of(source.url)])
    number = next(n for n in count(1) if not _is_known(catalog, adopted.numbered(source.url, n)))
    row = (target.table, adopted.numbered(source.url, number), len(found.index), source.nbytes)
    file = int(
        catalog.fetchone(
            "INSERT INTO _dl_files (kind, table_name, url, state, count, size) VALUES ('shard', ?, ?, 'sealed', ?, ?) "
            "RETURNING id",
            row,
        )[0]
    )
    columns = dict(zip(INDEX, found.index.columns, strict=True))
    insert_columns(catalog, "_dl_members", {"file": [file] * len(found.index), **columns})
    return file


def _is_known(catalog: Catalog, url: str) -> bool:
    return catalog.fetchone("SELECT 1 FROM _dl_files WHERE url = ?", (url,)) is not None
