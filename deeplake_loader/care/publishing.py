"""A store published below a url: its files, a snapshot of its catalog, and last of all the one object that names it.

    <url>/shards/...  vectors/...        the files that the snapshot names, put there unless they are
    <url>/published/<name>.sqlite        the catalog as of one commit, sealed and immutable
    <url>/published/<name>.json          the names of the snapshot's files, which gc keeps
    <url>/published.json                 the pointer, replaced only if it still is what was read: see `published`

A version once published never changes; whoever opened it reads on until `gc` takes it, and until it is published a
lease (`leases`) keeps what it names. What the snapshot names lies
below the url: open shards of other processes are copied as far as they are committed, local tars that were adopted are
copied, and what is the publisher's own business (where its bytes lie, adopted folders, its statements) is left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count, zip_longest
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from deeplake_loader import adopted, ownership, store
from deeplake_loader.blobs import place_of
from deeplake_loader.care import leases
from deeplake_loader.care.contents import COLUMNS, FileRow, hash_file, opened
from deeplake_loader.driver_errors import translate_error
from deeplake_loader.errors import CorruptionError, InputError, LockedError, NotFoundError
from deeplake_loader.merging import retention
from deeplake_loader.progress import progress_bar
from deeplake_loader.shard_file import sidecar_path, write_sidecar
from deeplake_loader.storage.objects import Objects, open_folder
from deeplake_loader.storage.published import FOLDER, Pointer, read_pointer
from deeplake_loader.store import POINTER
from deeplake_loader.tar import END

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog

_ATTEMPTS = 5
_STEP = 8 << 20


@dataclass(frozen=True, slots=True)
class Publication:
    """What `publish` made: ``url`` to give to `connect`, ``version`` from 1, id of the ``commit`` it shows, how many
    ``files`` it names, how many of them were ``copied`` now, and the ``nbytes`` written."""

    url: str
    version: int
    commit: str
    files: int
    copied: int
    nbytes: int


Copying = Callable[["Catalog", str], AbstractContextManager["Catalog"]]
"""Makes the snapshot of a catalog as a file at a path; gives the catalog whose vector files it names."""


@contextmanager
def copied(catalog: Catalog, path: str) -> Iterator[Catalog]:
    """The snapshot of a catalog in a file: its copy."""
    with catalog.snapshot():
        copy_file(catalog, path)
    yield catalog


def publish(
    catalog: Catalog, url: str | None, options: Mapping[str, Any] | None, *, progress: bool, copy: Copying = copied
) -> Publication:
    """See `verbs.CareVerbs.publish`."""
    own = retention.objects_of(catalog)
    target = own if url is None else open_folder(os.fspath(url), options=options)
    target = own if target.url == own.url else target
    if target is not own:
        ownership.check_free(target, catalog)
    if target is own and catalog.read_only:
        raise InputError(f"{catalog.name} was opened read-only, so nothing is published beside its files; give a url")
    with nullcontext() if catalog.read_only else leases.hold(catalog) as lease:
        return _publish(catalog, own, target, lease, copy, progress=progress)


def _publish(
    catalog: Catalog, own: Objects, target: Objects, lease: leases.Lease | None, copy: Copying, *, progress: bool
) -> Publication:
    """The same, while gc leaves what is needed; only a store that was opened ``read_only`` has no lease, so that its
    files may go while they are copied, which is an error then."""
    stem = f"{FOLDER}/{store.unique_name()}"
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "snapshot.sqlite")
        with copy(catalog, path) as made:
            put = _Placing(catalog, made, own, target, path)
            if lease is not None:
                lease.narrow([*put.names, *put.copied_from, f"{stem}.sqlite"])
            put.place(path, progress=progress)
        commit = _commit(path)
        digest = _seal(path, catalog)
        target.upload(f"{stem}.sqlite", path)
        size = os.path.getsize(path)
    target.write(f"{stem}.json", json.dumps({"files": put.names}).encode())
    if lease is not None and target is own:
        lease.renew()
    version = _point(target, f"{stem}.sqlite", size, digest, commit)
    return Publication(target.url, version, commit, len(put.names), put.copied, put.nbytes + size)


def copy_file(catalog: Catalog, path: str) -> None:
    """The database as this snapshot sees it."""
    try:
        with closing(sqlite3.connect(path)) as copy:
            catalog.connection.backup(copy)
    except sqlite3.Error as error:
        raise translate_error(error) from error


def _commit(path: str) -> str:
    """The id of a snapshot's newest commit."""
    with closing(sqlite3.connect(path)) as snapshot:
        found = snapshot.execute("SELECT id FROM _dl_commits ORDER BY seq DESC LIMIT 1").fetchone()
    return "" if found is None else str(found[0])


def _seal(path: str, catalog: Catalog) -> str:
    """Makes the snapshot one file without what is the publisher's own business; gives its sha256."""
    with closing(sqlite3.connect(path, isolation_level=None)) as copy:
        roots = adopted.roots(catalog)
        local = [root for root in roots if root.startswith("file:")]
        kept = [root for root in roots if root not in local]
        copy.execute("UPDATE _dl_meta SET value = ? WHERE key = ?", (json.dumps(kept), adopted.ROOTS))
        copy.execute("DELETE FROM _dl_meta WHERE key = 'storage'")
        for prefix in leases.PREFIXES:
            copy.execute("DELETE FROM _dl_meta WHERE key LIKE ?", (f"{prefix}%",))
        copy.execute("DELETE FROM _dl_sources WHERE url LIKE '/%' OR url LIKE 'file:%'")
        copy.execute("DELETE FROM _dl_plans")  # statements as the publisher wrote them, values and all
        _hide_folders(copy, {*local, *(unquote(url.removeprefix("file://")) for url in local), *_folders(catalog)})
        copy.execute("PRAGMA journal_mode = DELETE").fetchone()
        copy.execute("VACUUM")
    fd = os.open(path, os.O_RDONLY)
    try:
        return hash_file(fd, os.fstat(fd).st_size, path)
    finally:
        os.close(fd)


def _folders(catalog: Catalog) -> set[str]:
    """The folders of this machine that messages about the store's files begin with."""
    own = {catalog.root.folder, catalog.root.base}
    return {f"{folder}/" for folder in own | {os.path.realpath(folder) for folder in own}}


def _hide_folders(copy: sqlite3.Connection, folders: set[str]) -> None:
    """Why samples were set aside, told without these."""
    if copy.execute("SELECT 1 FROM sqlite_master WHERE name = '_dl_quarantine'").fetchone():
        for folder in sorted(folders, key=len, reverse=True):  # what lies in another goes first
            copy.execute("UPDATE _dl_quarantine SET reason = replace(reason, ?, '')", (folder,))


class _Placing:
    """Puts below the target what a snapshot names, and makes the snapshot name what lies there."""

    def __init__(self, catalog: Catalog, made: Catalog, own: Objects, target: Objects, path: str) -> None:
        """``path``: of the snapshot, whose files get their names here; ``made``: the catalog with its vector files."""
        self._catalog, self._made, self._own, self._target = catalog, made, own, target
        self._there = {
            found.name: found.size for top in (store.SHARDS, store.VECTORS) for found in target.list(f"{top}/")
        }
        self._condemned = retention.condemned(catalog)
        with closing(sqlite3.connect(path)) as snapshot:
            self._rows = [FileRow(*row) for row in snapshot.execute(f"SELECT {COLUMNS} FROM _dl_files ORDER BY id")]
        self._names = {row.id: name for row in self._rows if (name := self._name(row)) is not None}
        shards = (n for row in self._rows if row.kind == "shard" and (n := self._names.get(row.id)) is not None)
        self.names = list(dict.fromkeys([*self._names.values(), *map(sidecar_path, shards)]))
        self.copied_from = [row.url for row in self._rows if row.state != "sealed" and row.id in self._names]
        self._done: set[str] = set()
        self.copied = self.nbytes = 0

    def _name(self, row: FileRow) -> str | None:
        """Under which name a file lies below the target; None of what is read elsewhere, or rests in the catalog."""
        folder = f"{store.SHARDS}/{store.encode_name(row.table)}"
        if adopted.is_adopted(row.url):
            if not row.url.startswith("file:"):
                return None
            path = place_of(row.url, self._catalog)
            parts = (f"{path} {row.id} {row.size}{' ' * n}" for n in count())  # another one while gc removes a copy
            names = (f"{folder}/adopted-{hashlib.sha256(part.encode()).hexdigest()[:20]}.tar" for part in parts)
            return next(name for name in names if name not in self._condemned)
        if row.state == "sealed":
            return row.name
        kept = row.kind == "shard" and row.size and self._catalog.root.storage is None
        return f"{folder}/{store.unique_name()}.tar" if kept else None

    def place(self, path: str, *, progress: bool) -> None:
        """Every file that the snapshot at ``path`` names."""
        with (
            closing(sqlite3.connect(path, isolation_level=None)) as snapshot,
            progress_bar(sum(row.size for row in self._rows), progress, unit="B", description="publish") as bar,
        ):
            for row in self._rows:
                name = self._names.get(row.id)
                changes = {} if name is None else self._place(row, name, snapshot)
                for column, value in changes.items():
                    snapshot.execute(f"UPDATE _dl_files SET {column} = ? WHERE id = ?", (value, row.id))
                bar(row.size)

    def _place(self, row: FileRow, name: str, snapshot: sqlite3.Connection) -> dict[str, object]:
        """What the snapshot's row of a file has to say instead."""
        if adopted.is_adopted(row.url):
            return self._place_adopted(row, name, snapshot)
        if row.state != "sealed":
            return self._place_open(row, name, snapshot)
        self._take(name, self._made if row.kind == "vector" else self._catalog, sha256=row.sha256)
        if row.kind == "shard":
            self._take(sidecar_path(name), self._catalog, lacking=True)
        return {}

    def _take(self, name: str, source: Catalog, *, sha256: str | None = None, lacking: bool = False) -> None:
        """Copies one of the store's own files as it was written, unless it is there; one may be ``lacking`` that can be
        made anew."""
        if name not in self._done and (self._target is not self._own or source is not self._catalog):
            self._done.add(name)
            try:
                with opened(source, name) as (fd, size):
                    self._send(name, fd, size, sha256)
            except NotFoundError:
                if not lacking:
                    raise

    def _place_open(self, row: FileRow, name: str, snapshot: sqlite3.Connection) -> dict[str, object]:
        """A shard that a process holds open: its committed part, as a sealed one."""
        with tempfile.NamedTemporaryFile() as file:
            with opened(self._catalog, row.url) as (fd, _):
                _copy(fd, row.size, file.fileno(), row.url)
            store.write_at(file.fileno(), [END], row.size, file.name)
            return self._sent(row, name, file.name, snapshot)

    def _place_adopted(self, row: FileRow, name: str, snapshot: sqlite3.Connection) -> dict[str, object]:
        """A tar of this machine's: a copy below the target."""
        path = place_of(row.url, self._catalog)
        with store.file_errors("look at", path):
            size = os.path.getsize(path)
        if size != row.size:
            raise CorruptionError(f"{path} has {size} bytes, {row.size} when it was adopted; put the original back")
        return self._sent(row, name, path, snapshot)

    def _sent(self, row: FileRow, name: str, path: str, snapshot: sqlite3.Connection) -> dict[str, object]:
        """Puts a shard there under a new name, with a sidecar."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            self._send(name, fd, size)
            digest = hash_file(fd, size, path)
        finally:
            os.close(fd)
        facts = {"format": "1", "table": row.table, "shard": os.path.basename(name), "sha256": digest}
        members = snapshot.execute(
            'SELECT ordinal, key, column_name, extension, "offset", length, checks, info FROM _dl_members '
            'WHERE file = ? AND "offset" IS NOT NULL ORDER BY "offset"',
            (row.id,),
        ).fetchall()
        with tempfile.TemporaryDirectory() as folder:
            write_sidecar(os.path.join(folder, "shard.tar"), members, facts)
            with open(os.path.join(folder, "shard.idx"), "rb") as file:
                self._target.write(sidecar_path(name), file.read(), exclusive=False)
        return {"url": name, "state": "sealed", "size": size - len(END), "sha256": digest}

    def _send(self, name: str, fd: int, size: int, sha256: str | None = None) -> None:
        if self._there.get(name) == size:
            return
        with tempfile.NamedTemporaryFile() as file:  # what is uploaded is what was read, whatever happens to the file
            _copy(fd, size, file.fileno(), name)
            if sha256 is not None and hash_file(file.fileno(), size, name) != sha256:
                raise CorruptionError(
                    f"{name} is not as it was written (its sha256 differs); nothing was published: run "
                    "verify(repair=True), put the file back from a copy, or delete the rows that verify names"
                )
            self._target.upload(name, file.name)
        self.copied, self.nbytes = self.copied + 1, self.nbytes + size
        self._there[name] = size


def _copy(source: int, size: int, target: int, where: str) -> None:
    for start in range(0, size, _STEP):
        store.write_at(target, [store.read_at(source, start, min(_STEP, size - start), where)], start, where)


def _point(target: Objects, snapshot: str, size: int, digest: str, commit: str) -> int:
    """Makes the pointer name the snapshot; the version that it is."""
    for _ in range(_ATTEMPTS):
        old, tag = read_pointer(target)
        version = 1 if old is None else old.version + 1
        pointer = Pointer(version, snapshot, size, digest, commit)
        if target.replace(POINTER, pointer.to_json(), tag):
            return version
    raise LockedError(f"{target.url}/{POINTER} was replaced by others {_ATTEMPTS} times meanwhile; publish again")


# -- what gc keeps -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Versions:
    """Of the versions published beside a store's own files: the ``kept`` files of those that may be read, and the
    ``stale`` objects, with their bytes, of those that were replaced long enough ago."""

    kept: list[str]
    stale: dict[str, int]


def versions(catalog: Catalog, older_than_s: float) -> Versions:
    """What was published beside the store's own files, or is being."""
    objects, held = retention.objects_of(catalog), leases.held(catalog).names
    limit = time.time() - retention.period(older_than_s, "older_than_s").total_seconds()
    found = {stored.name: stored for stored in objects.list(f"{FOLDER}/")}
    manifests = sorted((s for name, s in found.items() if name.endswith(".json")), key=lambda s: (s.modified, s.name))
    pointer = read_pointer(objects)[0] if found else None
    current = "" if pointer is None else pointer.snapshot.rpartition(".")[0]
    kept = list(held)
    live = {current, *(name.rpartition(".")[0] for name in held)}
    for stored, successor in zip_longest(manifests, manifests[1:]):
        stem = stored.name.rpartition(".")[0]
        if stem == current or (successor or stored).modified > limit:
            live.add(stem)
            kept += _files(objects.read(stored.name), stored.name)
    stale = {n: s.size for n, s in found.items() if n.rpartition(".")[0] not in live and s.modified <= limit}
    return Versions(kept, stale)


def _files(manifest: bytes, name: str) -> Sequence[str]:
    try:
        return [str(file) for file in json.loads(manifest)["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptionError(f"{name} is no list of published files; publish again, then remove it") from error
