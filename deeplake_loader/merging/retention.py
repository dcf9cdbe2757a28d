"""Files that no row reaches.

Bytes stay as long as an address of theirs is in a declared column of a table, an overlay or an undo log, or a published
snapshot names them; and then until the age limit, so that a query that began before keeps its blobs. A file whose rows
`optimize` moved into a larger one counts from then, not from when it was written. Adopted files are never touched.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from deeplake_loader import adopted, store
from deeplake_loader.branches import (
    log_name,
    overlay_name,
)
from deeplake_loader.dialects import dialect
from deeplake_loader.errors import InputError
from deeplake_loader.types import MAX_ORDINAL, ORDINAL_BITS, pack_address, quote_identifier

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.storage.objects import Objects, Stored

RETIRED = "_dl_retired"
_DECLARATION = f"CREATE TABLE IF NOT EXISTS {RETIRED} (url TEXT PRIMARY KEY, retired_at INTEGER NOT NULL)"
_CENTURY = timedelta(days=36_525)  # no store is older, and the calendar goes back so far


@dataclass(frozen=True, slots=True)
class Garbage:
    """What `gc` removed, or in a dry run would remove: files by URL below the store's root, and their bytes;
    ``uploads``, how many unfinished uploads to an object storage it gave up (never in a dry run); ``held``, how many
    publications and optimizations were under way, whose files it left: all of them in the moment one begins."""

    files: tuple[str, ...]
    size: int
    dry_run: bool
    uploads: int = 0
    held: int = 0


@dataclass(frozen=True, slots=True)
class Unreached:
    """``rows`` of _dl_files (number, URL) to which no address leads, and ``files`` with their bytes that nothing needs
    once those are gone; ``stored``, the names of all files there are."""

    rows: list[tuple[int, str]]
    files: dict[str, int]
    stored: frozenset[str] = frozenset()


def period(value: object, name: str) -> timedelta:
    """A duration that was given as one or in seconds; InputError for what is none, or negative."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not isinstance(seconds, int | float) or not seconds >= 0:
        raise InputError(f"{name} is a timedelta or a number of seconds, zero or more, got {value!r}")
    return timedelta(seconds=min(seconds, _CENTURY.total_seconds()))


def objects_of(catalog: Catalog) -> Objects:
    """The files of a store, wherever they lie."""
    from deeplake_loader.storage.mirror import Mirror
    from deeplake_loader.storage.objects import Local

    root = catalog.root
    return root.storage.objects if isinstance(root.storage, Mirror) else Local(root.base)


def keep_writers_out(catalog: Catalog) -> None:
    """Waits for writers that are at their files, and lets none begin, until the open transaction ends."""
    if catalog.dialect == "postgres" and catalog.in_transaction:  # SQLite has one writer anyway
        catalog.execute("LOCK TABLE _dl_files IN SHARE ROW EXCLUSIVE MODE")


def unreached(catalog: Catalog, older_than_s: float, kept: Iterable[str] = ()) -> Unreached:
    """What may go.

    Args:
        kept: files that something else than the catalog needs.
    """
    limit = time.time() - period(older_than_s, "older_than_s").total_seconds()
    reached, stored, retired = _reached(catalog), _stored(catalog), _retired(catalog)
    rows = catalog.fetchall("SELECT id, url, state FROM _dl_files")

    def is_old(name: str) -> bool:
        found = stored.get(name)
        return max(0.0 if found is None else found.modified, retired.get(name, 0.0)) <= limit

    gone = {
        file: url
        for file, url, state in rows
        if state == "sealed" and file not in reached and is_old(store.object_of(url))
    }
    needed = {_stem(store.object_of(url)) for file, url, _ in rows if file not in gone} | set(map(_stem, kept))
    dead = {_stem(store.object_of(url)) for url in gone.values() if not adopted.is_adopted(url)} - needed
    files = {
        name: found.size
        for name, found in stored.items()
        if _stem(name) not in needed and (_stem(name) in dead or is_old(name))
    }
    return Unreached(list(gone.items()), files, frozenset(stored))


def strays(catalog: Catalog, kept: Iterable[str] = ()) -> list[str]:
    """Files that no row of the catalog names."""
    rows = catalog.fetchall("SELECT url FROM _dl_files")
    needed = {_stem(store.object_of(url)) for (url,) in rows} | set(map(_stem, kept))
    return [name for name in _stored(catalog) if _stem(name) not in needed]


def _stem(name: str) -> str:
    """What a file shares with those derived from it."""
    return name.rpartition(".")[0]


def _reached(catalog: Catalog) -> set[int]:
    """Numbers of the files that an address in a declared column leads to."""
    overlays: dict[str, list[int]] = {}
    for branch, table in catalog.fetchall("SELECT branch, table_name FROM _dl_overlays"):
        overlays.setdefault(table.lower(), []).append(branch)
    found: set[int] = set()
    for table in catalog.tables().values():
        addressed = table.blobs if dialect(catalog.dialect).stores_vectors else (*table.blobs, *table.vectors)
        columns = [quote_identifier(c.name) for c in addressed]
        real = [table.name, *(overlay_name(b, table.name) for b in overlays.get(table.name.lower(), ()))]
        for name in (*real, *map(log_name, real)):
            for column in columns:
                sql = f"SELECT DISTINCT {column} >> {ORDINAL_BITS} FROM {catalog.history.real(name)}"
                found |= {file for (file,) in catalog.fetchall(sql) if file is not None}
    return found


def _stored(catalog: Catalog) -> Mapping[str, Stored]:
    """Every file of shards and vectors by its name."""
    objects = objects_of(catalog)
    return {found.name: found for top in (store.SHARDS, store.VECTORS) for found in objects.list(f"{top}/")}


# -- files that optimize emptied ---------------------------------------------------------------------------------------


def retire(catalog: Catalog, names: Iterable[str]) -> None:
    """Files that no row names any more from the caller's transaction on; readers that began before may still read
    them until `gc` takes them."""
    _note(catalog, names, int(time.time() * 1000))


def is_condemned(catalog: Catalog, name: str) -> bool:
    """Whether `gc` is about to remove a file, which then must not be named: it may have found one that was just made.
    To be asked at the end of the transaction that names it."""
    query = f"SELECT 1 FROM {RETIRED} WHERE url = ? AND retired_at = 0"
    return catalog.has_own(RETIRED) and catalog.fetchone(query, (name,)) is not None


def condemned(catalog: Catalog) -> frozenset[str]:
    """The files that `gc` has removed or is about to."""
    if not catalog.has_own(RETIRED):
        return frozenset()
    return frozenset(url for (url,) in catalog.fetchall(f"SELECT url FROM {RETIRED} WHERE retired_at = 0"))


def _note(catalog: Catalog, names: Iterable[str], at: int) -> None:
    if not catalog.has_own(RETIRED):
        catalog.declare(_DECLARATION)
    insert = f"INSERT INTO {RETIRED} (url, retired_at) VALUES (?, ?) ON CONFLICT (url) DO UPDATE SET retired_at = "
    catalog.executemany(f"{insert}excluded.retired_at", [(name, at) for name in names])


def _retired(catalog: Catalog) -> dict[str, float]:
    if not catalog.has_own(RETIRED):
        return {}
    return {url: at / 1000 for url, at in catalog.fetchall(f"SELECT url, retired_at FROM {RETIRED}")}


# -- removing ----------------------------------------------------------------------------------------------------------


def forget(catalog: Catalog, found: Unreached) -> None:
    """Take files out of the catalog (caller's transaction); their bytes go after the commit."""
    for file, _ in found.rows:
        first = pack_address(file, 0)
        for table in ("_dl_resting", "_dl_tail"):
            catalog.execute(f"DELETE FROM {table} WHERE address BETWEEN ? AND ?", (first, first + MAX_ORDINAL))
        catalog.execute("DELETE FROM _dl_members WHERE file = ?", (file,))
        catalog.execute("DELETE FROM _dl_files WHERE id = ?", (file,))
    if catalog.has_own(RETIRED):
        gone = [(name,) for name in _retired(catalog) if name not in found.stored]
        catalog.executemany(f"DELETE FROM {RETIRED} WHERE url = ?", gone)
    if found.files:
        _note(catalog, found.files, 0)


def remove(catalog: Catalog, names: Iterable[str]) -> None:
    """Remove files; one that is gone already is no error."""
    chosen = [name for name in names if catalog.root.path(name)]
    objects_of(catalog).delete(chosen)
    if catalog.root.storage is not None:
        for name in chosen:
            for path in (catalog.root.path(name), catalog.root.path(name) + ".map"):
                with suppress(OSError):
                    os.unlink(path)


def leftovers(catalog: Catalog, older_than_s: float) -> Iterator[str]:
    """Local files of writers to a storage that were killed before their upload: no copies, named by no open file."""
    if catalog.root.storage is None:
        return
    from deeplake_loader.storage.objects import Local

    limit = time.time() - period(older_than_s, "older_than_s").total_seconds()
    known = {_stem(url) for (url,) in catalog.fetchall("SELECT url FROM _dl_files WHERE state = 'open'")}
    found = {one.name: one for top in (store.SHARDS, store.VECTORS) for one in Local(catalog.root.base).list(f"{top}/")}
    for name, one in found.items():
        is_copy = name.endswith(".map") or f"{name}.map" in found
        if not is_copy and _stem(name) not in known and one.modified <= limit:
            yield name
