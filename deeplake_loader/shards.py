"""Blobs in tar shards: staged, written and committed with the rows that name them; read back verified.

Every process appends to one open shard per table, which it holds under flock; a dead process's open shard is adopted
under its lock. An append is members and end-of-archive written over the old end-of-archive at the shard's end. The
catalog holds the committed end and the index of members, so a shard whose writer died or rolled back is cut back to
that end. Small blobs of small statements rest in the catalog until about 8 MB of them move into the shard together:
such an insert then costs the catalog's fsync alone. On a storage a shard is written to a local file, sealed and
uploaded when its transaction ends, and the file becomes the object's copy in the cache.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from deeplake_loader import store
from deeplake_loader.blobs import BlobReader, Found, checksums
from deeplake_loader.catalog import Catalog, Participant
from deeplake_loader.errors import InputError, NotFoundError, StoreError
from deeplake_loader.inserts import insert_columns
from deeplake_loader.shard_file import Mark, ShardFile, sidecar_path, write_sidecar
from deeplake_loader.tar import BLOCK, END, Headers, padded, padding
from deeplake_loader.types import MAX_ORDINAL, ORDINAL_BITS, pack_address

MAX_SHARD_BYTES = 256 << 20
MAX_RESTING_BLOB = 64 << 10
MAX_RESTING_STATEMENT = 1 << 20
MAX_RESTING_SHARD = 8 << 20

_JSON_GUESS = 1 << 10  # what a row's scalars are taken for when a shard is chosen; their real size comes with write()
_EXTENSION = re.compile(r"[a-z0-9]{1,16}\Z")
_MEMBER = ("file", "ordinal", "key", "column_name", "extension", "offset", "length", "checks", "info")
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Member:
    """One value of a blob column: its bytes, the member's extension ("jpg"), and its media facts as JSON or None."""

    column: str
    data: bytes | memoryview
    extension: str
    info: str | None = None


@dataclass(slots=True)
class Part:
    """The rows of one statement that go into one shard; ``firsts``, each row's first ordinal there."""

    shard: ShardFile
    rows: Sequence[Sequence[Member]]
    firsts: list[int]
    planned: int
    rests: bool


@dataclass(slots=True)
class Staged:
    """Reserved addresses, ``addresses[row][blob]`` as the blobs were given, to be followed by ``Shards.write``."""

    addresses: list[list[int]]
    parts: list[Part]


class Shards(BlobReader, Participant):
    """The blobs of one store.

    >>> import tempfile
    >>> catalog = SqliteCatalog.open(tempfile.mkdtemp())
    >>> shards = Shards(catalog)
    >>> with catalog.transaction():
    ...     staged = shards.stage("photos", [[Member("photo", b"...", "jpg")]])
    ...     shards.write(staged, [{"title": "a photo"}])
    >>> shards.read(staged.addresses[0][0])
    b'...'
    """

    def __init__(
        self, catalog: Catalog, *, max_shard_bytes: int | None = None, max_resting_bytes: int = MAX_RESTING_SHARD
    ) -> None:
        super().__init__(catalog)
        self.catalog = catalog
        self.max_shard_bytes = max_shard_bytes or int(catalog.meta("max_shard_bytes") or MAX_SHARD_BYTES)
        self.max_resting_bytes = max_resting_bytes
        self._current: dict[str, ShardFile] = {}
        self._touched: dict[int, ShardFile] = {}
        self._storage = catalog.root.storage
        self._retired: list[ShardFile] = []  # after a failed sync: held, so that nobody appends to them
        catalog.participants.append(self)

    # -- writing ---------------------------------------------------------------------------------------------------

    def stage(self, table: str, rows: Sequence[Sequence[Member]], *, bulk: bool = False) -> Staged:
        """Addresses for the blobs of rows about to be inserted, within the open transaction; nothing is written yet.

        Args:
            rows: the blobs of each row, NULLs left out.
            bulk: write even small blobs straight into the shard.
        """
        if not self.catalog.in_transaction:
            raise InputError("blobs can be staged only inside a transaction")
        for blob in {(b.column, b.extension): b for row in rows for b in row}.values():
            if not _EXTENSION.match(blob.extension):
                raise InputError(
                    f"{blob.extension!r} is no file extension (a-z, 0-9, up to 16) in column {blob.column!r}"
                )
        sizes = [sum(len(blob.data) for blob in row) for row in rows]
        rests = not bulk and sum(sizes) < MAX_RESTING_STATEMENT
        rests = rests and all(rows) and all(len(blob.data) < MAX_RESTING_BLOB for row in rows for blob in row)
        staged = Staged([], [])
        for shard, start, stop, planned in self._split(table, rows, sizes, rests):
            self._reserve(staged, shard, rows[start:stop], planned, rests)
        return staged

    def _split(
        self, table: str, rows: Sequence[Sequence[Member]], sizes: list[int], rests: bool
    ) -> Iterator[tuple[ShardFile, int, int, int]]:
        """(shard, first row, end row, bytes) of each part: a shard takes rows until the next would pass its limit."""
        shard, start, planned = self._open_shard(table), 0, 0
        if rests and shard.mark.resting + sum(sizes) > self.max_resting_bytes:
            self._move_resting(shard)
        for i, row in enumerate(rows):
            size = sizes[i] + (len(row) + 1) * 2 * BLOCK + _JSON_GUESS
            if shard.used + planned + size > self.max_shard_bytes and (shard.used or planned):
                if planned:
                    yield shard, start, i, planned
                self._roll(shard)
                shard, start, planned = self._open_shard(table), i, 0
            planned += size
        if start < len(rows):
            yield shard, start, len(rows), planned

    def _reserve(
        self, staged: Staged, shard: ShardFile, rows: Sequence[Sequence[Member]], planned: int, rests: bool
    ) -> None:
        ordinal, base = shard.mark.count, pack_address(shard.id, 0)
        firsts = []
        for row in rows:
            firsts.append(ordinal)
            staged.addresses.append(list(range(base + ordinal, base + ordinal + len(row))))
            ordinal += max(len(row), 1)  # a row without blobs takes a number, too: its key has it
        if ordinal > MAX_ORDINAL:
            raise InputError(f"a shard holds at most {MAX_ORDINAL} blobs; lower max_shard_bytes")
        shard.mark = Mark(shard.mark.end, ordinal, shard.mark.resting)
        shard.planned += planned
        shard.pending += 1
        self._touched[shard.id] = shard
        staged.parts.append(Part(shard, rows, firsts, planned, rests))

    def write(self, staged: Staged, scalars: Sequence[Mapping[str, object] | bytes], *, behind: bool = False) -> None:
        """Writes the staged blobs with each row's scalars, in the same transaction.

        Args:
            scalars: per staged row what its ``<key>.json`` holds: a JSON-able mapping, or the file's bytes.
            behind: return while a thread still writes; the blobs' buffers may change again after ``settle``.
        """
        if len(scalars) != len(staged.addresses):
            raise InputError(f"{len(staged.addresses)} rows were staged, got the scalars of {len(scalars)}")
        parts, staged.parts = staged.parts, []
        start = 0
        for part in parts:
            documents = [_document(row) for row in scalars[start : start + len(part.rows)]]
            start += len(part.rows)
            if part.rests:
                self._rest(part, documents)
            else:
                self._append(part, documents, behind)
            part.shard.pending -= 1
            part.shard.planned -= part.planned
            if part.shard.rolled and not part.shard.pending:
                self._complete(part.shard)

    def settle(self) -> None:
        """Waits for what ``write`` left behind.

        Raises:
            StoreError: the disk is full or refuses.
        """
        for shard in self._touched.values():
            shard.behind.wait()

    def _find(self, address: int) -> Found:
        self.settle()  # what this transaction wrote can be read
        return super()._find(address)

    def _append(self, part: Part, documents: Sequence[bytes], behind: bool) -> None:
        shard = part.shard
        keys = [f"{shard.name}-{first:06d}" for first in part.firsts]
        buffers, places, size = _lay_out(shard.mark.end, keys, part.rows, documents)
        shard.append(buffers, size, behind=behind)
        self._insert_members(
            [
                (shard.id, ordinal, key, b.column, b.extension, place, len(b.data), checksums(b.data), b.info)
                for key, row, first, offsets in zip(keys, part.rows, part.firsts, places, strict=True)
                for ordinal, b, place in zip(range(first, first + len(row)), row, offsets, strict=True)
            ]
        )

    def _insert_members(self, members: Sequence[tuple[Any, ...]]) -> None:
        if members:
            columns = dict(zip(_MEMBER, zip(*members, strict=True), strict=True))
            insert_columns(self.catalog, "_dl_members", columns)

    def _rest(self, part: Part, documents: Sequence[bytes]) -> None:
        shard, members, resting = part.shard, [], []
        for row, first, document in zip(part.rows, part.firsts, documents, strict=True):
            key = f"{shard.name}-{first:06d}"
            for ordinal, blob in enumerate(row, first):
                facts = (blob.column, blob.extension, None, len(blob.data), checksums(blob.data), blob.info)
                members.append((shard.id, ordinal, key, *facts))
                last = document if ordinal == first + len(row) - 1 else None
                resting.append((pack_address(shard.id, ordinal), blob.data, last))
        self._insert_members(members)
        self.catalog.executemany("INSERT INTO _dl_resting (address, data, document) VALUES (?, ?, ?)", resting)
        size = sum(len(blob.data) for row in part.rows for blob in row) + sum(map(len, documents))
        shard.mark = Mark(shard.mark.end, shard.mark.count, shard.mark.resting + size)

    def _move_resting(self, shard: ShardFile) -> None:
        """Moves a shard's resting blobs from the catalog into the file, under the addresses they have."""
        if not shard.mark.resting:
            return
        self._touched[shard.id] = shard
        rows = self.catalog.fetchall(
            "SELECT m.ordinal, m.key, m.column_name, m.extension, r.data, r.document FROM _dl_members m "
            "JOIN _dl_resting r ON r.address = m.file << ? | m.ordinal "
            'WHERE m.file = ? AND m."offset" IS NULL ORDER BY m.ordinal',
            (ORDINAL_BITS, shard.id),
        )
        moved, offset, headers, between = [], shard.mark.end, Headers(), b""
        buffers: list[bytes | memoryview] = []
        for ordinal, key, column, extension, data, document in rows:
            head = headers.header(f"{key}.{store.encode_name(column)}.{extension}", len(data))
            buffers += between + head, data
            offset += len(head)
            moved.append((offset, shard.id, ordinal))
            between = padding(len(data))
            if document is not None:  # it stands behind the last blob of its row
                head = headers.header(f"{key}.json", len(document))
                between = b"".join((between, head, document, padding(len(document))))
            offset += len(data) + len(between)
        shard.append([*buffers, between], offset - shard.mark.end)
        shard.mark = Mark(shard.mark.end, shard.mark.count, 0)
        self.catalog.executemany('UPDATE _dl_members SET "offset" = ? WHERE file = ? AND ordinal = ?', moved)
        first = pack_address(shard.id, 0)
        self.catalog.execute("DELETE FROM _dl_resting WHERE address BETWEEN ? AND ?", (first, first + MAX_ORDINAL))

    # -- open shards -----------------------------------------------------------------------------------------------

    def _open_shard(self, table: str) -> ShardFile:
        shard = self._current.get(table)
        if shard is not None and self._taken_over(shard):
            self._current.pop(table).close()
            shard = None
        if shard is None:
            shard = next(self._adoptable(table), None) or self._create(table)
            self._current[table] = shard
        return shard

    def _taken_over(self, shard: ShardFile) -> bool:
        """Whether another machine, which does not see the lock, went on with an open shard on a storage."""
        ours = self._storage is None or shard.id in self._touched
        return not ours and self._committed(shard.id) != shard.committed

    def _adoptable(self, table: str) -> Iterator[ShardFile]:
        held = {shard.id for shard in (*self._current.values(), *self._touched.values(), *self._retired)}
        rows = self.catalog.fetchall(
            "SELECT id, url FROM _dl_files WHERE table_name = ? AND kind = 'shard' AND state = 'open' ORDER BY id",
            (table,),
        )
        for file, url in rows:
            if file not in held:
                path, make = self.catalog.root.path(url), self._storage is not None
                shard = ShardFile.adopt(file, table, url, path, partial(self._committed, file), make=make)
                if shard is not None:
                    yield shard

    def _committed(self, file: int) -> Mark | None:
        """Where the last commit left an open shard, asked under its lock: its owner may have committed once more since
        it was listed, or be gone while the database still holds its commit (the row is locked then: None)."""
        query = "SELECT size, count, resting FROM _dl_files WHERE id = ? AND state = 'open'" + self.catalog.row_lock
        row = self.catalog.fetchone(query, (file,))
        return None if row is None else Mark(*row)

    def _create(self, table: str) -> ShardFile:
        shard = ShardFile.create(self.catalog.root, f"{store.SHARDS}/{store.encode_name(table)}", table)
        try:
            row = self.catalog.fetchone(
                "INSERT INTO _dl_files (kind, table_name, url, state, count, size) "
                "VALUES ('shard', ?, ?, 'open', 0, 0) RETURNING id",
                (table, shard.url),
            )
        except BaseException:
            shard.discard()
            raise
        shard.id = int(row[0])
        self._touched[shard.id] = shard
        return shard

    def _roll(self, shard: ShardFile) -> None:
        """No more rows go into this shard; it is sealed when the transaction ends."""
        self._current.pop(shard.table, None)
        self._touched[shard.id] = shard
        shard.rolled = True
        if not shard.pending:
            self._complete(shard)

    def _complete(self, shard: ShardFile) -> None:
        self._move_resting(shard)
        for other in self._touched.values():
            if other.finisher is not None:
                other.finisher.join()  # one at a time: the writer never runs further ahead than one shard
        shard.start_finishing(self._storage)

    def seal(self, table: str | None = None) -> int:
        """How many open shards (of one table, or of all) became sealed; those that live processes hold stay open."""
        with self.catalog.transaction():
            names = [table]
            if table is None:
                rows = self.catalog.fetchall(
                    "SELECT DISTINCT table_name FROM _dl_files WHERE kind = 'shard' AND state = 'open'"
                )
                names = [name for (name,) in rows]
            found = [shard for name in names for shard in self._obtainable(str(name))]
            for shard in found:
                self._roll(shard)
        return len(found)

    def _obtainable(self, table: str) -> Iterator[ShardFile]:
        current = self._current.get(table)
        for shard in (*([current] if current else []), *self._adoptable(table)):
            if shard.mark.end or shard.mark.resting:
                yield shard
            elif shard is not current:
                shard.close()

    def close(self) -> None:
        """Gives back files and locks; open shards wait for the next process to adopt them. What a transaction that is
        still open wrote goes away."""
        if self.catalog.in_transaction:
            self.rolled_back()
        for shard in (*self._current.values(), *self._touched.values(), *self._retired):
            shard.close()
        self._current, self._touched, self._retired = {}, {}, []
        self.close_files()

    # -- the transaction's hooks -----------------------------------------------------------------------------------

    def savepoint(self) -> object:
        self.settle()
        states = {s: (s.mark, s.rolled, s.finisher, s.pending, s.planned) for s in self._touched.values()}
        return dict(self._current), states

    def rollback_to(self, token: Any) -> None:
        current, states = token
        undone = []
        for shard in list(self._touched.values()):
            if shard not in states:
                undone.append(self._undo(shard))
                continue
            mark, rolled, finisher, shard.pending, shard.planned = states[shard]
            if shard.finisher is not finisher:
                shard.reopen()
            shard.rolled = rolled
            self._cut(shard, mark)
        untouched = (shard for shard in self._current.values() if shard.id not in self._touched)
        self._current = {}
        self._keep((*current.values(), *undone, *untouched))

    def prepare(self) -> None:
        for shard in list(self._touched.values()):
            if self._storage is not None and shard.mark.end and not shard.rolled:
                self._roll(shard)  # an object is never added to: one for each transaction
            if shard.rolled:
                self._seal(shard)
            else:
                if shard.dirty or shard.committed is None:
                    shard.sync()
                row = (shard.mark.count, shard.mark.end, shard.mark.resting, shard.id)
                self.catalog.execute("UPDATE _dl_files SET count = ?, size = ?, resting = ? WHERE id = ?", row)

    def _seal(self, shard: ShardFile) -> None:
        if shard.finisher is None:  # staged rows were never written
            self._complete(shard)
        digest = shard.finish()
        members = self.catalog.fetchall(
            'SELECT ordinal, key, column_name, extension, "offset", length, checks, info FROM _dl_members '
            'WHERE file = ? ORDER BY "offset"',
            (shard.id,),
        )
        facts = {"format": "1", "table": shard.table, "shard": os.path.basename(shard.url), "sha256": digest}
        write_sidecar(shard.path, members, facts)
        if self._storage is not None and shard.sent is not None:
            self._storage.upload(sidecar_path(shard.sent), sidecar_path(shard.path))
            with suppress(OSError):
                os.unlink(sidecar_path(shard.path))
        row = (shard.sent or shard.url, shard.mark.count, shard.mark.end, digest, shard.id)
        self.catalog.execute(
            "UPDATE _dl_files SET state = 'sealed', url = ?, count = ?, size = ?, resting = 0, sha256 = ? WHERE id = ?",
            row,
        )

    def committed(self) -> None:
        for shard in self._touched.values():
            shard.settle()
            if shard.rolled:
                shard.close()
                if self._storage is not None and shard.sent is not None:
                    with suppress(OSError):
                        os.replace(shard.path, self.catalog.root.path(shard.sent))
                    self._storage.keep(shard.sent, shard.mark.end + len(END))
        self._touched = {}

    def rolled_back(self) -> None:
        untouched = [shard for shard in self._current.values() if shard.id not in self._touched]
        undone = [self._undo(shard) for shard in list(self._touched.values())]
        self._current = {}
        self._keep((*untouched, *undone))

    def forked(self) -> None:
        self.close()  # the lock stays with the parent, whose descriptor is still open

    def _keep(self, shards: Iterable[ShardFile]) -> None:
        """Makes these the open shards, the first of each table; others of the same table are left to be adopted."""
        for shard in shards:
            if not shard.failed and shard.fd >= 0 and self._current.setdefault(shard.table, shard) is not shard:
                shard.close()

    def _undo(self, shard: ShardFile) -> ShardFile:
        """Takes a shard back to its last commit; one that never had a commit goes away."""
        del self._touched[shard.id]
        if shard.committed is None:
            shard.discard()
            return shard
        shard.reopen()
        self._cut(shard, shard.committed)
        shard.settle()
        return shard

    def _cut(self, shard: ShardFile, mark: Mark) -> None:
        with suppress(StoreError, NotFoundError):
            shard.cut(mark)
            if not shard.failed:
                return
        shard.failed = True
        self._retired.append(shard)


def _document(scalars: Mapping[str, object] | bytes) -> bytes:
    if isinstance(scalars, bytes):
        return scalars
    try:
        return _encode(scalars).encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"a row's scalars cannot be written as JSON ({error}): {list(scalars)}") from error


def _lay_out(
    end: int, keys: Sequence[str], rows: Sequence[Sequence[Member]], documents: Sequence[bytes]
) -> tuple[list[bytes | memoryview], list[list[int]], int]:
    """(what to write from ``end`` on, each blob's offset per row, bytes in all); the blobs' own buffers, not copied."""
    heads = iter(_headers(keys, rows, documents))
    buffers: list[bytes | memoryview] = []
    places: list[list[int]] = []
    offset, between = end, b""
    for row, document in zip(rows, documents, strict=True):
        offsets = []
        for blob in row:
            size = len(blob.data)
            head = next(heads)
            buffers += b"".join((between, head)), blob.data
            offset += len(head)
            offsets.append(offset)
            offset, between = offset + padded(size), padding(size)
        head = next(heads)
        between = b"".join((between, head, document, padding(len(document))))
        offset += len(head) + padded(len(document))
        places.append(offsets)
    buffers.append(between)
    return buffers, places, offset - end


def _headers(
    keys: Sequence[str], rows: Sequence[Sequence[Member]], documents: Sequence[bytes]
) -> Sequence[bytes | memoryview]:
    """The header of every member in order: a row's blobs, then its document."""
    columns = {b.column: store.encode_name(b.column) for row in rows for b in row}
    names, sizes = [], []
    for key, row, document in zip(keys, rows, documents, strict=True):
        for blob in row:
            names.append(f"{key}.{columns[blob.column]}.{blob.extension}")
            sizes.append(len(blob.data))
        names.append(f"{key}.json")
        sizes.append(len(document))
    return Headers().many(names, sizes)
