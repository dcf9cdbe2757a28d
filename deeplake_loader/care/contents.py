"""The bytes of one file of a store, wherever it lies, held against what the catalog says of them.

A remote object is read past the cache, from the storage itself, into a file without a name; a local one where it is.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from deeplake_loader import kernels, store
from deeplake_loader.blobs import CHECK_BLOCK, MAX_WHOLE_CHECK, place_of
from deeplake_loader.errors import CorruptionError
from deeplake_loader.matrices import BLOCK
from deeplake_loader.storage.shelves import find_mirror

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog

_STEP = 8 << 20
_BATCH = 32 << 20  # bytes of blobs that one native call verifies


@dataclass(frozen=True, slots=True)
class FileRow:
    """A row of _dl_files. Several rows name parts of one object: the same ``url`` up to the ``#``."""

    id: int
    kind: str
    table: str
    column: str | None
    url: str
    state: str
    count: int
    size: int
    sha256: str | None
    checks: bytes | None
    dtype: str | None
    dimension: int | None

    @property
    def name(self) -> str:
        """The object's, without the part."""
        return store.object_of(self.url)


COLUMNS = "id, kind, table_name, column_name, url, state, count, size, sha256, checks, dtype, dimension"


def file_rows(catalog: Catalog) -> list[FileRow]:
    """Every file that the catalog knows."""
    return [FileRow(*row) for row in catalog.fetchall(f"SELECT {COLUMNS} FROM _dl_files ORDER BY id")]


@dataclass(frozen=True, slots=True)
class Member:
    """A row of _dl_members, or of a sidecar."""

    ordinal: int
    key: str
    column: str
    extension: str
    offset: int | None
    length: int
    checks: bytes
    info: str | None

    @property
    def shown(self) -> str:
        return f"key {self.key!r}, column {self.column!r}"


def members_of(catalog: Catalog, file: int) -> list[Member]:
    """The index of a shard, by ordinal."""
    rows = catalog.fetchall(
        'SELECT ordinal, key, column_name, extension, "offset", length, checks, info FROM _dl_members '
        "WHERE file = ? ORDER BY ordinal",
        (file,),
    )
    return [Member(n, key, name, ext, at, size, bytes(checks), i) for n, key, name, ext, at, size, checks, i in rows]


@contextmanager
def opened(catalog: Catalog, url: str) -> Iterator[tuple[int, int]]:
    """(descriptor, bytes) of a file's bytes as they are stored.

    Raises:
        NotFoundError: it is gone. StoreError: it cannot be read, or may not be.
    """
    place = place_of(url, catalog)
    if "://" in place:
        with _fetched(catalog, place) as file:
            yield file.fileno(), os.fstat(file.fileno()).st_size
        return
    with store.file_errors("open", place):
        fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd, os.fstat(fd).st_size
    finally:
        os.close(fd)


@contextmanager
def _fetched(catalog: Catalog, place: str) -> Iterator[IO[bytes]]:
    mirror, name = find_mirror(place, catalog.root)
    size = mirror.objects.size(name)
    with tempfile.TemporaryFile() as file:
        for start in range(0, size, _STEP):
            with store.file_errors("write a temporary copy of", place):
                file.write(mirror.objects.read(name, start, min(start + _STEP, size)))
        file.flush()
        yield file


def hash_file(fd: int, size: int, where: str) -> str:
    """The sha256 of the whole file."""
    digest = hashlib.sha256()
    for start in range(0, size, _STEP):
        digest.update(store.read_at(fd, start, min(_STEP, size - start), where))
    return digest.hexdigest()


def block_checks(fd: int, size: int, where: str) -> bytes:
    """The crc32c of every 1 MB of a vector file."""
    parts = [
        kernels.crc32c_blocks(store.read_at(fd, start, min(_STEP, size - start), where), BLOCK)
        for start in range(0, size, _STEP)
    ]
    return b"".join(parts)


def damaged(fd: int, members: Sequence[Member]) -> set[int]:
    """The places in ``members`` of those whose bytes are not what their checksums say, or are not there."""
    bad: set[int] = set()
    pieces: list[tuple[int, int, int, int]] = []
    held = 0
    for place, member in enumerate(members):
        found = _pieces(member)
        if found is None:
            bad.add(place)
            continue
        pieces += [(place, *piece) for piece in found]
        held += member.length
        if held >= _BATCH:
            bad |= _compare(fd, pieces)
            pieces, held = [], 0
    return bad | _compare(fd, pieces)


def _pieces(member: Member) -> list[tuple[int, int, int]] | None:
    """(offset, length, crc32c) of what is compared at once; None for a row that cannot be true."""
    checks = array("I", member.checks[: len(member.checks) // 4 * 4])
    step = member.length if member.length <= MAX_WHOLE_CHECK else CHECK_BLOCK
    starts = range(0, member.length, step) if step else range(1)
    if member.offset is None or member.offset < 0 or member.length < 0 or len(checks) * 4 != len(member.checks):
        return None
    if len(starts) != len(checks) or member.length > 1 << 42:
        return None
    return [(member.offset + at, min(step, member.length - at), c) for at, c in zip(starts, checks, strict=True)]


def _compare(fd: int, pieces: Sequence[tuple[int, int, int, int]]) -> set[int]:
    """The first numbers of the pieces that are bad; one that is too long for a buffer is none of the file's."""
    if not pieces:
        return set()
    end = os.fstat(fd).st_size
    bad = {place for place, offset, length, _ in pieces if offset + length > end}
    good = [piece for piece in pieces if piece[0] not in bad]
    longest = max((piece[2] for piece in good), default=0)
    columns: list[Any] = [array("q", column) for column in zip(*good, strict=True)] if good else []
    if not good:
        return bad
    places, offsets, lengths, checks = columns
    # every piece goes to the same bytes of the buffer: only the verdicts are wanted, so one thread
    status = kernels.read_batch(
        array("i", [fd]) * len(good), offsets, lengths, checks, bytearray(longest), array("q", bytes(8 * len(good))), 1
    )
    return bad | {places[i] for i, verdict in enumerate(status) if verdict}


def read_sidecar(data: bytes, where: str) -> tuple[list[Member], dict[str, str]]:
    """(the members, the facts) of a shard's sidecar.

    Raises:
        CorruptionError: it is none.
    """
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
        table.validate(full=True)
        columns = [column.to_pylist() for column in table.columns]
        facts = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        return [Member(*row) for row in zip(*columns, strict=True)], facts
    except (pa.ArrowException, TypeError, ValueError, OSError) as error:
        raise CorruptionError(f"{where}: no readable sidecar ({type(error).__name__})") from error
