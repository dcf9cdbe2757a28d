"""One file of a store against its rows in the catalog, and against its sidecar where it is a shard of ours.

sha256 as recorded    members as recorded    what is wrong, and mended
yes                   no                     the catalog's index: from the sidecar, whose checksums fit
no                    yes                    the recorded sha256, if the sidecar has the file's; else headers or scalars
no                    no                     the file
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from deeplake_loader import adopted, store
from deeplake_loader.blobs import place_of
from deeplake_loader.care import digests
from deeplake_loader.care.contents import (
    FileRow,
    Member,
    block_checks,
    damaged,
    hash_file,
    members_of,
    opened,
    read_sidecar,
)
from deeplake_loader.care.report import Finding, Kind, Problem
from deeplake_loader.errors import CorruptionError, DeeplakeError, NotFoundError
from deeplake_loader.matrices import BLOCK, HEADER, Layout
from deeplake_loader.shard_file import sidecar_path, write_sidecar
from deeplake_loader.storage.shelves import find_mirror
from deeplake_loader.tar import END

if TYPE_CHECKING:
    from deeplake_loader.care.digests import Digest
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.matrices import Dtype

_REMEDY = "put the file back from a copy"
_Fix = Callable[[], object]


@dataclass(slots=True)
class Checked:
    """What was found of one file."""

    findings: list[Finding] = field(default_factory=list)
    files: int = 0
    blobs: int = 0
    vectors: int = 0
    nbytes: int = 0

    def add(self, kind: Kind, where: str, what: str, *, fix: _Fix | None = None, remedy: str = _REMEDY) -> None:
        self.findings.append(Finding(Problem(kind, where, what, remedy=remedy), fix))


def check(catalog: Catalog, parts: Sequence[FileRow], taken: Mapping[int, Digest], *, data: bool) -> Checked:
    """What is wrong with one file.

    Args:
        parts: the rows that name it.
        taken: the digests of the index by file number.
        data: read its bytes; else only look whether it is there whole.
    """
    found, row = Checked(), parts[0]
    if row.state == "open" and (row.kind == "vector" or catalog.root.storage is not None):
        return found  # its bytes are in the catalog
    found.files = 1
    try:
        if not data:
            _check_size(found, row, _size(catalog, row))
            return found
        with opened(catalog, row.url) as (fd, size):
            found.nbytes = size
            if row.kind == "vector":
                _check_vectors(catalog, found, parts, fd, size)
            elif row.state == "open":
                _check_open(catalog, found, row, fd, size)
            else:
                _ShardCheck(catalog, found, parts, taken).run(fd, size)
    except NotFoundError:
        found.add("file", row.name, "it is gone")
    except DeeplakeError as error:
        found.add("file", row.name, str(error))
    return found


def _size(catalog: Catalog, row: FileRow) -> int:
    place = place_of(row.url, catalog)
    if "://" in place:
        mirror, name = find_mirror(place, catalog.root)
        return mirror.objects.size(name)
    with store.file_errors("look at", place):
        return os.stat(place).st_size


def _whole(row: FileRow) -> int:
    """The bytes that the file should have."""
    return row.size + (len(END) if row.kind == "shard" and not adopted.is_adopted(row.url) else 0)


def _check_size(found: Checked, row: FileRow, size: int) -> None:
    wanted = _whole(row)
    if size < wanted or (size > wanted and row.state == "sealed"):
        found.add("file", row.name, f"{size:,} bytes where {wanted:,} should be")


def _setter(catalog: Catalog, row: FileRow, column: str, value: object) -> _Fix:
    return lambda: catalog.execute(f"UPDATE _dl_files SET {column} = ? WHERE id = ?", (value, row.id))


# -- shards ------------------------------------------------------------------------------------------------------------


def _check_open(catalog: Catalog, found: Checked, row: FileRow, fd: int, size: int) -> None:
    """An open shard up to its committed end; what lies behind that, a writer may be about to commit."""
    _check_size(found, row, size)
    members = [member for member in members_of(catalog, row.id) if member.offset is not None]
    found.blobs += len(members)
    for place in sorted(damaged(fd, members)):
        found.add("blob", f"{row.name}: {members[place].shown}", "its bytes are not what its checksum says")


_Place = tuple[int, int]  # (file, ordinal)


class _ShardCheck:
    """A sealed shard, ours or adopted."""

    def __init__(self, catalog: Catalog, found: Checked, parts: Sequence[FileRow], taken: Mapping[int, Digest]) -> None:
        self._catalog, self._found, self._parts, self._taken = catalog, found, parts, taken
        self._row, self._name = parts[0], parts[0].name
        rows = ((row.id, m) for row in parts for m in members_of(catalog, row.id))
        self._index = {(file, m.ordinal): m for file, m in rows if m.offset is not None}  # the others rest
        found.blobs += len(self._index)

    def run(self, fd: int, size: int) -> None:
        places, members = list(self._index), list(self._index.values())
        bad = {places[i] for i in damaged(fd, members)}
        if adopted.is_adopted(self._row.url):
            _check_size(self._found, self._row, size)
            self._tell_bad(bad)
            self._check_digests(set())
            return
        sha256 = hash_file(fd, size, self._name)
        sidecar, facts = self._sidecar()
        explained = bad - self._compare(fd, sidecar, bad) if sidecar is not None else bad
        self._check_whole(fd, size, sha256, facts, bad)
        self._tell_bad(explained)
        self._check_digests({file for file, _ in bad} if sidecar is None else set())

    def _check_whole(self, fd: int, size: int, sha256: str, facts: Mapping[str, str], bad: set[_Place]) -> None:
        found, row = self._found, self._row
        intact = all(part.sha256 == sha256 for part in self._parts)
        if size != _whole(row):
            fix = _setter(self._catalog, row, "size", size - len(END)) if intact and len(self._parts) == 1 else None
            found.add("file", self._name, f"{size:,} bytes where the catalog says {_whole(row):,}", fix=fix)
        if size < len(END) or store.read_at(fd, size - len(END), len(END), self._name) != END:
            found.add("file", self._name, "it has no end-of-archive mark: tar readers may miss its end")
        if intact:
            return
        if facts.get("sha256") == sha256:
            for part in self._parts:
                if part.sha256 != sha256:
                    what = "the catalog's sha256 is not the file's, and the sidecar's is"
                    found.add("catalog", self._name, what, fix=_setter(self._catalog, part, "sha256", sha256))
        elif not bad:
            found.add(
                "file", self._name, "its sha256 is another one: tar headers or scalars changed, every blob is sound"
            )

    def _tell_bad(self, bad: set[_Place]) -> None:
        for place in sorted(bad):
            what = "its bytes are not what its checksum says"
            self._found.add("blob", f"{self._name}: {self._index[place].shown}", what)

    def _check_digests(self, known: set[int]) -> None:
        for row in self._parts:
            wrong = self._wrong(row.id)
            if wrong and row.id not in known and not self._found.findings:
                self._found.add("digest", f"the index of {self._name}", wrong, remedy="restore the catalog from a copy")

    def _wrong(self, file: int) -> str | None:
        digest = self._taken.get(file)
        try:
            return None if digest is None else digests.difference(self._catalog, digest)
        except LookupError:
            return None

    # -- the sidecar ---------------------------------------------------------------------------------------------------

    def _sidecar(self) -> tuple[dict[_Place, Member] | None, dict[str, str]]:
        """The sidecar's rows by place, None where there is none that can be read."""
        try:
            members, facts = read_sidecar(_read(self._catalog, sidecar_path(self._name)), sidecar_path(self._name))
        except NotFoundError:
            self._rewrite("the sidecar is missing")
        except CorruptionError as error:
            self._rewrite(str(error))
        else:
            return {(self._file_at(m.offset or 0), m.ordinal): m for m in members}, facts
        return None, {}

    def _file_at(self, offset: int) -> int:
        """The number of the file whose part of the object holds this byte."""
        begins = sorted((int(row.url.partition("#")[2] or 0), row.id) for row in self._parts)
        return next((file for begin, file in reversed(begins) if begin <= offset), begins[0][1])

    def _rewrite(self, what: str) -> None:
        where = sidecar_path(self._name)
        self._found.add("index", where, what, fix=lambda: write_index(self._catalog, self._parts), remedy="")

    def _compare(self, fd: int, sidecar: dict[_Place, Member], bad: set[_Place]) -> set[_Place]:
        """Tells how catalog and sidecar differ; gives those of ``bad`` that the sidecar explains."""
        differ = [p for p in {**self._index, **sidecar} if self._index.get(p) != sidecar.get(p)]
        theirs = [p for p in differ if p in sidecar]
        worse = {theirs[i] for i in damaged(fd, [sidecar[p] for p in theirs])}
        distrusted = {row.id for row in self._parts if differ and self._wrong(row.id) is not None}
        stale, explained = 0, set()
        for place in differ:
            if (
                place in theirs
                and place not in worse
                and (place not in self._index or place in bad or place[0] in distrusted)
            ):
                explained.add(place)
                self._tell_index(place, sidecar[place])
            elif (
                place in self._index
                and place not in bad
                and (place in worse or place[0] in self._taken or place not in sidecar)
            ):
                stale += 1
            elif place in theirs and place not in worse:
                what = "catalog and sidecar say different things of it, and both may be true"
                self._found.add("index", f"{self._name}: {sidecar[place].shown}", what, remedy="compare them by hand")
        if stale:
            self._rewrite(f"{stale:,} of its rows are not the catalog's, whose checksums fit")
        return explained

    def _tell_index(self, place: _Place, member: Member) -> None:
        what = "the catalog's row of it is not the one that was sealed, or is gone"
        fix = lambda: _put_member(self._catalog, place[0], member)  # noqa: E731
        self._found.add("index", f"{self._name}: {member.shown}", what, fix=fix, remedy="")


def _put_member(catalog: Catalog, file: int, m: Member) -> None:
    catalog.execute("DELETE FROM _dl_members WHERE file = ? AND ordinal = ?", (file, m.ordinal))
    catalog.execute(
        'INSERT INTO _dl_members (file, ordinal, key, column_name, extension, "offset", length, checks, info) '
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (file, m.ordinal, m.key, m.column, m.extension, m.offset, m.length, m.checks, m.info),
    )


def _read(catalog: Catalog, name: str) -> bytes:
    place = catalog.root.place(name)
    if "://" in place:
        mirror, below = find_mirror(place, catalog.root)
        return mirror.objects.read(below)
    with store.file_errors("read", place), open(place, "rb") as file:
        return file.read()


def write_index(catalog: Catalog, parts: Sequence[FileRow]) -> None:
    """Writes the sidecar of a shard, all of its parts', from the catalog."""
    rows = sorted(_index_rows(catalog, parts), key=lambda row: row[4])
    first, name = parts[0], sidecar_path(parts[0].name)
    facts = {"format": "1", "table": first.table, "shard": os.path.basename(first.name), "sha256": first.sha256 or ""}
    if len(parts) > 1:
        facts["parts"] = json.dumps([[row.id, int(row.url.partition("#")[2] or 0), row.count] for row in parts])
    if catalog.root.storage is None:
        write_sidecar(catalog.root.path(first.name), rows, facts)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, os.path.basename(first.name))
        write_sidecar(path, rows, facts)
        mirror, below = find_mirror(catalog.root.place(name), catalog.root)
        with open(sidecar_path(path), "rb") as file:
            mirror.objects.write(below, file.read(), exclusive=False)


def _index_rows(catalog: Catalog, parts: Sequence[FileRow]) -> Iterator[tuple[Any, ...]]:
    for row in parts:
        for m in members_of(catalog, row.id):
            yield m.ordinal, m.key, m.column, m.extension, m.offset, m.length, m.checks, m.info


# -- vectors -----------------------------------------------------------------------------------------------------------


def _check_vectors(catalog: Catalog, found: Checked, parts: Sequence[FileRow], fd: int, size: int) -> None:
    name, row = parts[0].name, parts[0]
    found.vectors += sum(part.count for part in parts)
    sha256, blocks = hash_file(fd, size, name), block_checks(fd, size, name)
    layout = Layout(row.dimension or 0, cast("Dtype", row.dtype))
    for part in parts:
        _check_part(catalog, found, part, sha256, blocks)
    rows = (size - HEADER) // layout.stride if layout.stride else 0
    sound = any(part.sha256 == sha256 or bytes(part.checks or b"") == blocks for part in parts)
    if sound and store.read_at(fd, 0, min(HEADER, size), name) != layout.header(rows):
        found.add("catalog", name, f"the catalog says {row.dtype} of {row.dimension}, and the file's header does not")
    for part in parts if sound else ():
        begin = int(part.url.partition("#")[2] or 0)
        if part.size != size:
            fix = _setter(catalog, part, "size", size)
            found.add("catalog", name, f"{size:,} bytes where the catalog says {part.size:,}", fix=fix)
        if begin + part.count > rows or (len(parts) == 1 and begin + part.count != rows):
            mend = _setter(catalog, part, "count", rows - begin) if len(parts) == 1 else None
            found.add("catalog", name, f"{rows:,} rows, but the catalog says {part.count:,} from {begin:,}", fix=mend)


def _check_part(catalog: Catalog, found: Checked, part: FileRow, sha256: str, blocks: bytes) -> None:
    recorded = bytes(part.checks or b"")
    if part.sha256 == sha256 and recorded == blocks:
        return
    if part.sha256 == sha256:
        what = "the catalog's checksums are not the file's, whose sha256 is as recorded"
        found.add("catalog", part.name, what, fix=_setter(catalog, part, "checks", blocks))
    elif recorded == blocks:
        what = "the catalog's sha256 is not the file's, whose checksums are as recorded"
        found.add("catalog", part.name, what, fix=_setter(catalog, part, "sha256", sha256))
    else:
        longest = max(len(blocks), len(recorded))
        bad = [i // 4 for i in range(0, longest, 4) if blocks[i : i + 4] != recorded[i : i + 4]]
        shown = ", ".join(f"{b} (bytes {b * BLOCK:,} to {(b + 1) * BLOCK:,})" for b in bad[:3])
        found.add("vector", part.name, f"{len(bad):,} blocks are not what was written: {shown}")
