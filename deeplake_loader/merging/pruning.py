"""What may go of history: undo logs older than anything can ask for, and overlays of deleted branches.

A point stays readable as long as a branch stands on it, a tag names it, a merge may need it as a base, or it lies
within the time to keep. SQLite's log rows carry commit numbers, and those before the oldest such number go.
PostgreSQL's carry their transaction: those go that a commit sees which every such point sees, so that none of them
needs their before-images.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import TYPE_CHECKING

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
from deeplake_loader.merging.graph import Graph
from deeplake_loader.types import quote_identifier

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog


def prune(catalog: Catalog, keep: timedelta) -> int:
    """How many rows of undo logs were removed (caller's transaction); `history_from` then says what is left."""
    branches = branches_of(catalog)
    begin = (datetime.now(UTC) - keep).strftime("%Y-%m-%d %H:%M:%S.%f")
    live = {branch.id for branch in branches.all()}
    points = {*_merge_bases(branches), *_tagged(catalog), *_recent(catalog, branches, sorted(live), begin)}
    gone = _drop_overlays(catalog, {p.branch for p in points} | live)
    forks = {branches.fork_at(p.branch, p.seq) for p in points}
    if catalog.dialect == "postgres":
        oldest = _behind_all(catalog, sorted(forks | {p.seq for p in points}), begin)
    else:
        oldest = min(forks)
    if oldest <= int(catalog.meta(HISTORY_FROM) or 0):
        return gone
    for real in _reals(catalog):
        gone += _prune_log(catalog, real, oldest)
    catalog.set_meta(HISTORY_FROM, str(oldest))
    return gone


# -- what is needed ----------------------------------------------------------------------------------------------------


def _merge_bases(branches: Branches) -> Iterator[Point]:
    graph = Graph(branches.parents())
    for a, b in combinations(branches.all(), 2):
        yield from map(branches.point_of, graph.reachable_bases(a.head, b.head))


def _tagged(catalog: Catalog) -> Iterator[Point]:
    for branch, seq, node in catalog.fetchall("SELECT branch, seq, node FROM _dl_tags"):
        yield Point(branch, seq)
        yield branches_of(catalog).point_of(node)


def _recent(catalog: Catalog, branches: Branches, live: list[int], begin: str) -> Iterator[Point]:
    """Where each branch stood when the time to keep begins, and where it stands now."""
    first = catalog.fetchone("SELECT max(seq) FROM _dl_commits WHERE created_at <= ?", (begin,))[0] or 0
    for branch in live:
        born = 0 if branch == MAIN else branches.forks(branch)[0][0]
        yield Point(branch, max(born, first))
        yield Point(branch, max(born, catalog.head()))


def _behind_all(catalog: Catalog, numbers: list[int], begin: str) -> int:
    """The newest commit whose transaction every one of these commits sees, those since a time do, and everybody now."""
    needed, params = catalog.one_of("seq", numbers)
    oldest = (
        "SELECT x FROM (SELECT pg_snapshot_xmin(CAST(snapshot AS pg_snapshot)) AS x "
        f"FROM _dl_commits WHERE {needed} OR created_at > ? "
        "UNION ALL SELECT pg_snapshot_xmin(pg_current_snapshot())) s ORDER BY x LIMIT 1"
    )
    row = catalog.fetchone(f"SELECT coalesce(max(seq), 0) FROM _dl_commits WHERE xid < ({oldest})", (*params, begin))
    return int(row[0])


# -- what goes ---------------------------------------------------------------------------------------------------------


def _prune_log(catalog: Catalog, real: str, oldest: int) -> int:
    log = catalog.history.real(log_name(real))
    if catalog.dialect == "postgres":
        # a snapshot leaves its own transaction out of those in progress, so it would pass for a finished one
        seen = (
            "CASE WHEN l._dl_xid = c.xid THEN l._dl_step <= c.step "
            "ELSE pg_visible_in_snapshot(l._dl_xid, CAST(c.snapshot AS pg_snapshot)) END"
        )
        return catalog.execute(
            f"DELETE FROM {log} l USING _dl_commits c WHERE c.seq = ? AND {seen}", (oldest,)
        ).rowcount
    _empty_last(catalog, real, oldest)
    first = first_number(catalog, log_name(real), oldest)
    last = f"(SELECT max(_dl_n) FROM {log})"
    return catalog.execute(f"DELETE FROM {log} WHERE _dl_n < {last} AND _dl_n < ?", (first,)).rowcount


def _empty_last(catalog: Catalog, real: str, oldest: int) -> None:
    """The last row stays, because numbers of SQLite's log must never begin anew; but it no longer holds an image."""
    shape, log = catalog.history.shape(real), catalog.history.real(log_name(real))
    held = [f"{quote_identifier(c.name)} = NULL" for c in shape.columns if not c.key]
    emptied = ", ".join(("_dl_op = 'I'", *held))
    last = f"_dl_n = (SELECT max(_dl_n) FROM {log})"
    catalog.execute(f"UPDATE {log} SET {emptied} WHERE {last} AND _dl_seq < ? AND _dl_op <> 'I'", (oldest,))


def _reals(catalog: Catalog) -> list[str]:
    tables = [table.name for table in catalog.tables().values()]
    return [*tables, *(overlay_name(*row) for row in catalog.fetchall("SELECT branch, table_name FROM _dl_overlays"))]


def _drop_overlays(catalog: Catalog, needed: set[int]) -> int:
    """Overlays of deleted branches that no point needs any more; gives the rows of their undo logs."""
    gone = 0
    kept, params = catalog.one_of("id", sorted(needed))  # a branch without a head has no readable past
    catalog.execute(f"UPDATE _dl_branches SET head = 0 WHERE NOT ({kept})", params)
    for branch, table in catalog.fetchall("SELECT branch, table_name FROM _dl_overlays"):
        if branch not in needed:
            log = catalog.history.real(log_name(overlay_name(branch, table)))
            gone += int(catalog.fetchone(f"SELECT count(*) FROM {log}")[0])
            _drop_overlay(catalog, branch, table)
    return gone


def _drop_overlay(catalog: Catalog, branch: int, table: str) -> None:
    if catalog.dialect == "postgres":
        catalog.execute("SELECT _dl_close(?, ?)", (branch, table))
        return
    overlay = overlay_name(branch, table)
    for name in (log_name(overlay), overlay, shadow_name(branch, table)):
        catalog.execute(f"DROP TABLE {catalog.history.real(name)}")
    catalog.execute("DELETE FROM _dl_overlays WHERE branch = ? AND table_name = ?", (branch, table))
