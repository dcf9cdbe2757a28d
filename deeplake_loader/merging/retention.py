"""Files that no row reaches.

Bytes stay as long as an address of theirs is in a declared column of a table, an overlay or an undo log; and then until
the age limit, so that a query that began before keeps its blobs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from deeplake_loader import store
from deeplake_loader.branches import (
    log_name,
    overlay_name,
)
from deeplake_loader.dialects import dialect
from deeplake_loader.errors import InputError
from deeplake_loader.types import MAX_ORDINAL, ORDINAL_BITS, pack_address, quote_identifier

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog

_CENTURY = timedelta(days=36_525)  # no store is older, and the calendar goes back so far


@dataclass(frozen=True, slots=True)
class Garbage:
    """What `gc` removed, or in a dry run would remove: files by URL below the store's root, and their bytes."""

    files: tuple[str, ...]
    size: int
    dry_run: bool


def period(value: object, name: str) -> timedelta:
    """A duration that was given as one or in seconds; InputError for what is none, or negative."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not isinstance(seconds, int | float) or not seconds >= 0:
        raise InputError(f"{name} is a timedelta or a number of seconds, zero or more, got {value!r}")
    return timedelta(seconds=min(seconds, _CENTURY.total_seconds()))


def unreached(catalog: Catalog, older_than_s: float) -> tuple[list[tuple[int, str]], list[str]]:
    """(number and URL of sealed files without a reachable address, files on disk that the catalog does not know).

    In a transaction that will remove them, writers that are at their files are waited for and kept out.
    """
    if catalog.dialect == "postgres" and catalog.in_transaction:  # SQLite has one writer anyway
        catalog.execute("LOCK TABLE _dl_files IN SHARE ROW EXCLUSIVE MODE")
    reached = _reached(catalog)
    rows = catalog.fetchall("SELECT id, url, state FROM _dl_files")
    limit = time.time() - period(older_than_s, "older_than_s").total_seconds()
    dead = [
        (file, url)
        for file, url, state in rows
        if state == "sealed" and file not in reached and _age(catalog, url) <= limit
    ]
    known = {url.rpartition(".")[0] for _, url, _ in rows}
    strays = [u for u in _stored(catalog) if u.rpartition(".")[0] not in known and _age(catalog, u) <= limit]
    return dead, strays


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


def _stored(catalog: Catalog) -> Iterator[str]:
    root = catalog.root.folder
    for top in (store.SHARDS, store.VECTORS):
        for folder, _, names in os.walk(os.path.join(root, top)):
            for name in names:
                yield os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")


def _age(catalog: Catalog, url: str) -> float:
    try:
        return os.stat(catalog.root.path(url)).st_mtime
    except OSError:
        return 0.0


def forget(catalog: Catalog, files: list[tuple[int, str]]) -> None:
    """Take files out of the catalog (caller's transaction); their bytes go after the commit."""
    for file, _ in files:
        first = pack_address(file, 0)
        for table in ("_dl_resting", "_dl_tail"):
            catalog.execute(f"DELETE FROM {table} WHERE address BETWEEN ? AND ?", (first, first + MAX_ORDINAL))
        catalog.execute("DELETE FROM _dl_members WHERE file = ?", (file,))
        catalog.execute("DELETE FROM _dl_files WHERE id = ?", (file,))


def with_sidecars(catalog: Catalog, urls: list[str]) -> Iterator[tuple[str, int]]:
    """(URL, bytes) of these files and of those derived from them, which share their name up to the suffix."""
    stems = {url.rpartition(".")[0] for url in urls}
    for url in _stored(catalog):
        if url.rpartition(".")[0] in stems:
            with suppress(OSError):
                yield url, os.stat(catalog.root.path(url)).st_size


def remove(catalog: Catalog, urls: Iterator[str] | tuple[str, ...]) -> None:
    """Remove files; one that is gone already is no error."""
    for url in urls:
        with suppress(FileNotFoundError), store.file_errors("remove", url):
            os.remove(catalog.root.path(url))
