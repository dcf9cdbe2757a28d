"""Small sealed files made into larger ones, for whom an address stays what it was.

    a.tar (row 5) + b.tar (row 9)  ->  c.tar: row 5 is "c.tar#0", row 9 is "c.tar#<first byte>", its offsets moved
    a.npy (row 6) + b.npy (row 7)  ->  c.npy: row 6 is "c.npy#0", row 7 is "c.npy#<first row>"

An address names a row of the file table and a place in it; only the file table and the offsets of members change. The
new file is written and durable before one transaction makes the rows name it, if they still are what was read; killed
before that, it is a file that nothing names. The old files stay until `gc` takes them, an age limit after they were
emptied, so a stream that has looked up its places reads on; after that it asks again, and is told the new ones.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from deeplake_loader import adopted, ann, store
from deeplake_loader.care import digests, leases
from deeplake_loader.care.contents import (
    FileRow,
    Member,
    block_checks,
    file_rows,
    hash_file,
    members_of,
    opened,
)
from deeplake_loader.errors import CorruptionError, NotFoundError
from deeplake_loader.matrices import HEADER, Layout
from deeplake_loader.merging import retention
from deeplake_loader.shard_file import sidecar_path, write_sidecar
from deeplake_loader.shards import MAX_SHARD_BYTES
from deeplake_loader.tar import END

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.matrices import Dtype

_SMALL = 64 << 20  # a quarter of a full shard: larger files stay as they are
_STEP = 8 << 20


@dataclass(frozen=True, slots=True)
class Whole:
    """One file and all rows that name it."""

    rows: tuple[FileRow, ...]

    @property
    def name(self) -> str:
        return self.rows[0].name

    @property
    def size(self) -> int:
        return self.rows[0].size

    def begin(self, row: FileRow) -> int:
        """Where a row's part of it begins."""
        return int(row.url.partition("#")[2] or 0)


def merge_small(catalog: Catalog, *, small: int = _SMALL, full: int | None = None) -> int:
    """How many files went into larger ones, a commit for each of those. Outside of any transaction.

    Args:
        small: bytes up to which a file is one.
        full: bytes up to which a larger one grows; by default what a shard may have.
    """
    limit = full or int(catalog.meta("max_shard_bytes") or MAX_SHARD_BYTES)
    chosen = [portion for group in _groups(catalog, small) for portion in _portions(group, limit)]
    uploads = catalog.root.storage is not None and bool(chosen)
    with leases.hold(catalog, ()) if uploads else nullcontext():  # gc gives up uploads that nobody can be at
        return sum(_merge(catalog, portion) for portion in chosen)


def _groups(catalog: Catalog, small: int) -> Iterator[list[Whole]]:
    """Small files that may become one, in the order of their numbers."""
    objects: dict[str, list[FileRow]] = {}
    for row in file_rows(catalog):
        if row.state == "sealed" and not adopted.is_adopted(row.url):
            objects.setdefault(row.name, []).append(row)
    groups: dict[tuple[Any, ...], list[Whole]] = {}
    for rows in objects.values():
        first = rows[0]
        # a vector file with copies and lists beside it stays; one of fewer rows never gets any
        if first.size <= small and (first.kind == "shard" or all(row.count < ann.MIN_ROWS for row in rows)):
            key = (first.kind, first.table, first.column, first.dtype, first.dimension)
            groups.setdefault(key, []).append(Whole(tuple(rows)))
    yield from groups.values()


def _portions(group: list[Whole], limit: int) -> Iterator[list[Whole]]:
    """What becomes one file: at least two, none over twice all others together, so that a byte moves few times."""
    found: list[Whole] = []
    for whole in [*group, None]:
        if whole is None or sum(w.size for w in found) + whole.size > limit:
            chosen = _balanced(found)
            if len(chosen) > 1:
                yield chosen
            found = []
        if whole is not None:
            found.append(whole)


def _balanced(found: list[Whole]) -> list[Whole]:
    kept = sorted(found, key=lambda whole: whole.size)
    while len(kept) > 1 and kept[-1].size > 2 * sum(whole.size for whole in kept[:-1]):
        kept.pop()
    return [whole for whole in found if whole in kept]


@dataclass(slots=True)
class _Made:
    """The new file: ``begins`` of each row's part, ``members`` of shards as they lie there."""

    url: str
    size: int = 0
    sha256: str = ""
    checks: bytes | None = None
    begins: dict[int, int] = field(default_factory=dict)
    moved: dict[int, int] = field(default_factory=dict)
    members: list[tuple[FileRow, Member]] = field(default_factory=list)


def _merge(catalog: Catalog, chosen: Sequence[Whole]) -> int:
    kind, first = chosen[0].rows[0].kind, chosen[0].rows[0]
    folder = first.name.rpartition("/")[0]
    made = _Made(f"{folder}/{store.unique_name()}{'.tar' if kind == 'shard' else '.npy'}")
    catalog.root.make_folder(folder)
    path = catalog.root.path(made.url)
    try:
        (_write_shard if kind == "shard" else _write_vectors)(catalog, chosen, made, path)
    except (CorruptionError, NotFoundError) as error:
        _discard(path)
        warnings.warn(f"small files stay apart: {error}; db.verify() says more", RuntimeWarning, stacklevel=4)
        return 0
    except BaseException:
        _discard(path)
        raise
    if catalog.root.storage is not None:
        catalog.root.storage.upload(made.url, path)
        if kind == "shard":
            catalog.root.storage.upload(sidecar_path(made.url), sidecar_path(path))
            os.unlink(sidecar_path(path))
    if not _switch(catalog, chosen, made):  # somebody else changed them meanwhile: gc takes what was made
        return 0
    if catalog.root.storage is not None:
        catalog.root.storage.keep(made.url, made.size + (len(END) if kind == "shard" else 0))
    return len(chosen)


def _discard(path: str) -> None:
    for name in (path, sidecar_path(path)):
        with suppress(OSError):
            os.unlink(name)


# -- writing -----------------------------------------------------------------------------------------------------------


def _write_shard(catalog: Catalog, chosen: Sequence[Whole], made: _Made, path: str) -> None:
    with store.file_errors("make the shard", path), open(path, "xb", buffering=0) as file:
        at = 0
        for whole in chosen:
            _append(catalog, whole, 0, whole.size, file.fileno(), at)
            for row in whole.rows:
                made.begins[row.id], made.moved[row.id] = at + whole.begin(row), at
                made.members += [(row, member) for member in members_of(catalog, row.id)]
            at += whole.size
        store.write_at(file.fileno(), [END], at, path)
        made.size = at
        made.sha256 = _finished(file.fileno(), at + len(END), path)
    rows = sorted(
        (m.ordinal, m.key, m.column, m.extension, m.offset + made.moved[row.id], m.length, m.checks, m.info)
        for row, m in made.members
        if m.offset is not None
    )
    parts = [[row.id, made.begins[row.id], row.count] for whole in chosen for row in whole.rows]
    facts = {"format": "1", "table": chosen[0].rows[0].table, "shard": os.path.basename(path), "sha256": made.sha256}
    write_sidecar(path, sorted(rows, key=lambda row: row[4]), {**facts, "parts": json.dumps(parts)})


def _write_vectors(catalog: Catalog, chosen: Sequence[Whole], made: _Made, path: str) -> None:
    first = chosen[0].rows[0]
    layout = Layout(first.dimension or 0, cast("Dtype", first.dtype))
    total = sum(whole.size - HEADER for whole in chosen) // layout.stride
    with store.file_errors("make the vectors", path), open(path, "x+b", buffering=0) as file:
        at = store.write_at(file.fileno(), [layout.header(total)], 0, path)
        for whole in chosen:
            for row in whole.rows:
                made.begins[row.id] = (at - HEADER) // layout.stride + whole.begin(row)
            _append(catalog, whole, HEADER, whole.size, file.fileno(), at)
            at += whole.size - HEADER
        made.size, made.sha256 = at, _finished(file.fileno(), at, path)
        made.checks = block_checks(file.fileno(), at, path)


def _append(catalog: Catalog, whole: Whole, start: int, stop: int, fd: int, at: int) -> None:
    """Copies a file's bytes behind what is there, once it is what was sealed."""
    with opened(catalog, whole.name) as (source, size):
        if hash_file(source, size, whole.name) != whole.rows[0].sha256:
            raise CorruptionError(f"{whole.name} is not what was sealed")
        for begin in range(start, stop, _STEP):
            piece = store.read_at(source, begin, min(_STEP, stop - begin), whole.name)
            store.write_at(fd, [piece], at + begin - start, whole.name)


def _finished(fd: int, size: int, path: str) -> str:
    """The sha256 of the durable file."""
    os.fsync(fd)
    store.sync_folder(os.path.dirname(path))
    reader = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return hash_file(reader, size, path)
    finally:
        os.close(reader)


class _LostError(Exception):
    """Somebody else was faster."""


# -- the switch --------------------------------------------------------------------------------------------------------


def _switch(catalog: Catalog, chosen: Sequence[Whole], made: _Made) -> bool:
    """Makes the rows name the new file, in one commit; False if they are not what was read any more, or if a gc, which
    saw a file that nothing named, is about to remove it."""
    with suppress(_LostError), catalog.transaction() as tx:
        rows = [row for whole in chosen for row in whole.rows]
        if not _unchanged(catalog, rows):
            raise _LostError
        for row in rows:
            if made.moved.get(row.id):
                move = 'UPDATE _dl_members SET "offset" = "offset" + ? WHERE file = ? AND "offset" IS NOT NULL'
                catalog.execute(move, (made.moved[row.id], row.id))
            catalog.execute(
                "UPDATE _dl_files SET url = ?, size = ?, sha256 = ?, checks = ? WHERE id = ?",
                (f"{made.url}#{made.begins[row.id]}", made.size, made.sha256, made.checks, row.id),
            )
            digests.forget_members(catalog, row.id)
        names = [whole.name for whole in chosen]
        retention.retire(catalog, [*names, *(sidecar_path(name) for name in names if name.endswith(".tar"))])
        if retention.is_condemned(catalog, made.url):
            raise _LostError
        tx.message = tx.message or "optimize"
        return True
    return False


def _unchanged(catalog: Catalog, rows: Sequence[FileRow]) -> bool:
    """Whether these rows, which are locked now, still say where the bytes were read."""
    where, bound = catalog.one_of("id", [row.id for row in rows])
    found = catalog.fetchall(f"SELECT id, url, sha256 FROM _dl_files WHERE {where}{catalog.row_lock}", bound)
    return {tuple(row) for row in found} == {(row.id, row.url, row.sha256) for row in rows}
