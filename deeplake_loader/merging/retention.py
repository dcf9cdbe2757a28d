"""What may go: undo logs older than anything can ask for, overlays of deleted branches, files that no row reaches.

A point of history stays readable as long as a branch stands on it, a tag names it, a merge may need it as a base, or it
lies within the time to keep. Bytes stay as long as an address of theirs is in a declared column of a table, an overlay
or an undo log; and then until the age limit, so that a query that began before keeps its blobs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import TYPE_CHECKING

from deeplake_loader import store
from deeplake_loader.branches import (
    HISTORY_FROM,
    MAIN,
    Branches,
    Point,
    branches_of,
    first_number,
    log_name,
    overlay_name,
    shadow_name,
)
from deeplake_loader.errors import InputError
from deeplake_loader.merging.graph import Graph
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


# -- undo logs ---------------------------------------------------------------------------------------------------------


def horizon(catalog: Catalog, keep: timedelta) -> tuple[int, set[int]]:
    """(oldest commit of main that must stay readable, branches whose overlays must stay)."""
    branches = branches_of(catalog)
    live = [branch.id for branch in branches.all()]
    points = {*_merge_bases(branches), *_tagged(catalog), *_recent(catalog, branches, live, keep)}
    oldest = min(branches.fork_at(p.branch, p.seq) for p in points)
    return oldest, {p.branch for p in points} | set(live)


def _merge_bases(branches: Branches) -> Iterator[Point]:
    graph = Graph(branches.parents())
    for a, b in combinations(branches.all(), 2):
        yield from map(branches.point_of, graph.reachable_bases(a.head, b.head))


def _tagged(catalog: Catalog) -> Iterator[Point]:
    for branch, seq, node in catalog.fetchall("SELECT branch, seq, node FROM _dl_tags"):
        yield Point(branch, seq)
        yield branches_of(catalog).point_of(node)


def _recent(catalog: Catalog, branches: Branches, live: list[int], keep: timedelta) -> Iterator[Point]:
    """Where each branch stood when the time to keep begins, and where it stands now."""
    begin = (datetime.now(UTC) - keep).strftime("%Y-%m-%d %H:%M:%S.%f")
    first = catalog.fetchone("SELECT max(seq) FROM _dl_commits WHERE created_at <= ?", (begin,))[0] or 0
    for branch in live:
        born = 0 if branch == MAIN else branches.forks(branch)[0][0]
        yield Point(branch, max(born, first))
        yield Point(branch, max(born, catalog.head()))


def prune(catalog: Catalog, keep: timedelta) -> int:
    """How many rows of undo logs were removed (caller's transaction); `history_from` then says what is left."""
    oldest, needed = horizon(catalog, keep)
    gone = _drop_overlays(catalog, needed)
    if oldest <= int(catalog.meta(HISTORY_FROM) or 0):
        return gone
    for real in _reals(catalog):
        gone += _prune_log(catalog, real, oldest)
    catalog.set_meta(HISTORY_FROM, str(oldest))
    return gone


def _prune_log(catalog: Catalog, real: str, oldest: int) -> int:
    """The last row stays, because numbers of the log must never begin anew; but it no longer holds an image."""
    shape = catalog.history.shape(real)
    name, last = catalog.history.real(shape.log), "(SELECT max(_dl_n) FROM {})"
    held = [f"{quote_identifier(c.name)} = NULL" for c in shape.columns if not c.key]
    emptied = ", ".join(("_dl_op = 'I'", *held))
    catalog.execute(
        f"UPDATE {name} SET {emptied} WHERE _dl_n = {last.format(name)} AND _dl_seq < ? AND _dl_op <> 'I'", (oldest,)
    )
    return catalog.execute(
        f"DELETE FROM {name} WHERE _dl_n < {last.format(name)} AND _dl_n < ?",
        (first_number(catalog, shape.log, oldest),),
    ).rowcount


def _reals(catalog: Catalog) -> list[str]:
    tables = [table.name for table in catalog.tables().values()]
    return [*tables, *(overlay_name(*row) for row in catalog.fetchall("SELECT branch, table_name FROM _dl_overlays"))]


def _drop_overlays(catalog: Catalog, needed: set[int]) -> int:
    """Overlays of deleted branches that no point needs any more; gives the rows of their undo logs."""
    gone = 0
    listed = ", ".join("?" * len(needed))  # a branch without a head has no readable past
    catalog.execute(f"UPDATE _dl_branches SET head = 0 WHERE id NOT IN ({listed})", tuple(needed))
    for branch, table in catalog.fetchall("SELECT branch, table_name FROM _dl_overlays"):
        if branch in needed:
            continue
        overlay = overlay_name(branch, table)
        gone += int(catalog.fetchone(f"SELECT count(*) FROM {catalog.history.real(log_name(overlay))}")[0])
        for name in (log_name(overlay), overlay, shadow_name(branch, table)):
            catalog.execute(f"DROP TABLE {catalog.history.real(name)}")
        catalog.execute("DELETE FROM _dl_overlays WHERE branch = ? AND table_name = ?", (branch, table))
    return gone


# -- files -------------------------------------------------------------------------------------------------------------


def unreached(catalog: Catalog, older_than_s: float) -> tuple[list[tuple[int, str]], list[str]]:
    """(number and URL of sealed files without a reachable address, files on disk that the catalog does not know)."""
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
        columns = [quote_identifier(c.name) for c in (*table.blobs, *table.vectors)]
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
