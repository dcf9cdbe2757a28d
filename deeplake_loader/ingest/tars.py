"""WebDataset tars: scanned once, their samples as rows. A plain tar stays where it is and only an index is written; a
compressed one is unpacked beside the store for the time it takes to copy its samples into shards."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import IO, TYPE_CHECKING, Any

from deeplake_loader import adopted, codecs, store
from deeplake_loader.blobs import checksums
from deeplake_loader.errors import CorruptionError, DeeplakeError, InputError
from deeplake_loader.ingest import members
from deeplake_loader.ingest.sources import Reader, Source
from deeplake_loader.ingest.tar_walk import Member, Problem, walk
from deeplake_loader.ingest.target import Whole
from deeplake_loader.ingest.unpacking import unpack
from deeplake_loader.inserts import insert_columns
from deeplake_loader.rows import Blob
from deeplake_loader.types import ColumnType, pack_address

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.ingest.inference import Proposal
    from deeplake_loader.ingest.target import Batch, Target

_OBSERVED = 2_000  # members that a schema is inferred from, per source
_ROWS = 1_024
_STEP = 8 << 20
_MEMBER = ("ordinal", "key", "column_name", "extension", "offset", "length", "checks", "info")


@dataclass(slots=True)
class Scan:
    """What a walk through one tar found.

    Fields: ``names`` of the columns; ``rows``, a value per column for each key in the order of their first members,
    an `Extent` for a blob; ``index``, the blobs' rows for the catalog, without their file; ``problems``, (member,
    reason); ``fatal``, why the archive cannot be trusted as a whole, or None; ``unused``, extensions no column takes.
    """

    names: tuple[str, ...]
    rows: dict[str, list[Any]] = field(default_factory=dict)
    index: list[tuple[Any, ...]] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    fatal: str | None = None
    unused: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Extent:
    """A blob in the scanned tar."""

    ordinal: int
    offset: int
    length: int


class _Slots:
    """What is done with a member of each extension: which column it fills, and how."""

    def __init__(self, proposal: Proposal) -> None:
        self.columns = tuple(choice.column for choice in proposal.choices)
        self.key = next((i for i, choice in enumerate(proposal.choices) if choice.field == ""), None)
        self.fields = {choice.field: i for i, choice in enumerate(proposal.choices) if choice.field}

    def blob(self, extension: str) -> int | None:
        """The blob column that this extension fills."""
        place = self.fields.get(extension)
        return place if place is not None and self.columns[place].type.is_blob else None

    def takes(self, extension: str) -> bool:
        return extension in self.fields or any(f.startswith(f"{extension}.") for f in self.fields)

    def values(self, extension: str, data: bytes) -> Iterator[tuple[int, Any]]:
        """(column, value) of a member that fills scalar and vector columns."""
        place = self.fields.get(extension)
        if place is not None and self.columns[place].type.is_vector:
            yield place, members.vector(data)
        elif place is not None and not members.is_scalar_extension(extension):
            yield place, data.decode() if self.columns[place].type.name == "TEXT" else data
        else:
            for name, value in members.values(extension, data):
                if name in self.fields:
                    yield self.fields[name], value


def scan(read: Callable[[int, int], bytes], size: int, proposal: Proposal, where: str) -> Scan:
    """The samples of a tar as rows of the proposed table; pure but for reading.

    Members of one key make one row, wherever in the archive they are. A sample with a member that cannot be stored, or
    one that is there twice, is left out and listed.
    """
    return _Scanner(proposal, where).run(walk(read, size))


class _Scanner:
    def __init__(self, proposal: Proposal, where: str) -> None:
        self._slots, self._where = _Slots(proposal), where
        self._found = Scan(tuple(column.name for column in self._slots.columns))
        self._empty: list[Any] = [None] * len(self._found.names)
        self._blobs: dict[str, tuple[int, str, ColumnType] | None] = {}
        self._bad: set[str] = set()
        self._ordinal = 0

    def run(self, walked: Iterator[Member | Problem]) -> Scan:
        found = self._found
        for item in walked:
            if type(item) is Member:
                self._take(item)
            elif isinstance(item, Problem):
                if item.fatal:
                    found.fatal = f"{f'member {item.name!r} ' if item.name else ''}at byte {item.offset} {item.reason}"
                    return found
                found.problems.append((item.name or f"byte {item.offset}", item.reason))
        for key in self._bad:
            found.rows.pop(key, None)
        if self._bad:
            found.index = [row for row in found.index if row[1] not in self._bad]
        return found

    def _take(self, member: Member) -> None:
        split = members.split_name(member.name)
        if split is None:
            self._found.problems.append((member.name, "has no extension, so it belongs to no sample"))
            return
        key, extension = split
        try:
            blob = self._blobs[extension]
        except KeyError:
            blob = self._blobs[extension] = self._blob(extension)
        try:
            if blob is not None:
                self._keep(key, blob, member)
            elif self._slots.takes(extension):
                for place, value in self._slots.values(extension, member.data):
                    self._put(key, place, value)
            else:
                self._found.unused[extension] = self._found.unused.get(extension, 0) + 1
        except (DeeplakeError, ValueError) as error:
            self._bad.add(key)
            self._found.problems.append((member.name, str(error)))

    def _blob(self, extension: str) -> tuple[int, str, ColumnType] | None:
        place = self._slots.blob(extension)
        if place is None:
            return None
        column = self._slots.columns[place]
        return place, column.name, column.type

    def _keep(self, key: str, blob: tuple[int, str, ColumnType], member: Member) -> None:
        place, column, kind = blob
        encoded = codecs.encode(kind, member.data, where=f"{self._where}: {member.name}")
        extent = Extent(self._ordinal, member.offset, member.size)
        self._put(key, place, extent)
        facts = encoded.info.to_json()
        checks = checksums(member.data)
        row = (self._ordinal, key, column, encoded.extension, member.offset, member.size, checks, facts)
        self._found.index.append(row)
        self._ordinal += 1

    def _put(self, key: str, place: int, value: Any) -> None:
        row = self._found.rows.get(key)
        if row is None:
            row = self._found.rows[key] = self._empty.copy()
            if self._slots.key is not None:
                row[self._slots.key] = key
        if row[place] is not None:
            raise ValueError(f"the sample {key!r} has a second value for the column {self._found.names[place]!r}")
        row[place] = value


# -- sources -----------------------------------------------------------------------------------------------------------


class TarSource(Whole):
    """A plain tar, adopted where it lies."""

    has_keys, plain_names = True, True

    def __init__(self, source: Source) -> None:
        self.source = source
        self._found: Scan | None = None

    def observe(self) -> Iterator[Mapping[str, ColumnType | None]]:
        """{field: type} of the first samples."""
        with Reader(self.source) as read:
            yield from _observe(walk(read, self.source.nbytes), self.source.name)

    def prepare(self, proposal: Proposal) -> None:
        """Reads the whole tar; on any thread."""
        with Reader(self.source) as read:
            self._found = scan(read, self.source.nbytes, proposal, self.source.name)
            read.check_unchanged()

    def batches(self, target: Target) -> Iterator[Batch]:
        """The rows in columns, the index of their blobs written first, in the caller's transaction."""
        found = self._told(target)
        file = _register(target, self.source, found) if found.index else 0
        kinds = {c.name: c.type for c in target.db.tables()[target.table].columns}
        for keys, columns in _parts(found):
            yield keys, {n: [_handle(target.db, kinds[n], file, v) for v in values] for n, values in columns.items()}

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
            yield from _observe(walk(stream, None), self.source.name)

    def prepare(self, proposal: Proposal) -> None:
        """Unpacks into a file without a name, which goes away by itself."""
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 closed behind the last batch
        with Reader(self.source) as read, unpack(self.source.url, self.source.nbytes, read) as stream:
            at = 0
            while data := stream(at, _STEP):
                with store.file_errors("unpack", self.source.name):
                    self._file.write(data)
                at += len(data)
        self._file.flush()
        self._found = scan(self._read, at, proposal, self.source.name)

    def _read(self, offset: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, offset)

    def batches(self, target: Target) -> Iterator[Batch]:
        with self._file:
            for keys, columns in _parts(self._told(target)):
                yield keys, {name: [self._bytes(v) for v in values] for name, values in columns.items()}

    def _bytes(self, value: Any) -> Any:
        if not isinstance(value, Extent):
            return value
        return store.read_at(self._file.fileno(), value.offset, value.length, self.source.name)


def _observe(walked: Iterator[Member | Problem], where: str) -> Iterator[Mapping[str, ColumnType | None]]:
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


def _parts(found: Scan) -> Iterator[tuple[list[str], dict[str, Sequence[Any]]]]:
    """(keys, columns) of some rows at a time."""
    keys, rows = list(found.rows), list(found.rows.values())
    for start in range(0, len(rows), _ROWS):
        columns = zip(*rows[start : start + _ROWS], strict=True)
        yield keys[start : start + _ROWS], dict(zip(found.names, columns, strict=True))


def _handle(db: Any, kind: ColumnType, file: int, value: Any) -> Any:
    return Blob(db, kind, pack_address(file, value.ordinal)) if type(value) is Extent else value


def _register(target: Target, source: Source, found: Scan) -> int:
    """The number of the adopted file, with the index of its blobs written."""
    catalog = target.db._catalog
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
    columns: dict[str, Sequence[Any]] = dict(zip(_MEMBER, zip(*found.index, strict=True), strict=True))
    insert_columns(catalog, "_dl_members", {"file": [file] * len(found.index), **columns})
    return file


def _is_known(catalog: Catalog, url: str) -> bool:
    return catalog.fetchone("SELECT 1 FROM _dl_files WHERE url = ?", (url,)) is not None
