"""How many rows each commit added, changed and removed, read from the undo logs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deeplake_loader.branches import HISTORY_FROM, MAIN, branches_of, first_number, log_name
from deeplake_loader.merging.comparison import Comparison
from deeplake_loader.merging.diff import Counts
from deeplake_loader.types import quote_identifier

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deeplake_loader.catalog import Catalog
    from deeplake_loader.types import Table


def commit_counts(catalog: Catalog, branch: int, seq: int) -> dict[str, Counts] | None:
    """Rows added, changed and removed by a commit of a branch, by table; None when its undo log was pruned."""
    if min(seq - 1, branches_of(catalog).fork_at(branch, seq - 1)) < int(catalog.meta(HISTORY_FROM) or 0):
        return None
    found = {
        table.name: _count_main(catalog, table, seq) if branch == MAIN else _count_branch(catalog, table, branch, seq)
        for table in catalog.tables().values()
    }
    return {name: counts for name, counts in found.items() if counts != Counts()}


def _count_main(catalog: Catalog, table: Table, seq: int) -> Counts:
    """The first image of a key says whether it was there before, the next one (or the table) whether it was after."""
    log = log_name(table.name)
    first, end = (first_number(catalog, log, number) for number in (seq - 1, seq))
    if first == end:
        return Counts()
    key, name = catalog.history.shape(table.name).key, catalog.history.real(log)
    after = f"SELECT n._dl_op <> 'I' FROM {name} n WHERE {_equal('n', 'l', key)} AND n._dl_seq >= ? "
    now = f"SELECT 1 FROM {catalog.history.real(table.name)} t WHERE {_equal('t', 'l', key)}"
    rows = catalog.fetchall(
        f"SELECT l._dl_op <> 'I', coalesce(({after} ORDER BY n._dl_seq LIMIT 1), EXISTS ({now})), count(*) "
        f"FROM {name} l WHERE l._dl_n >= ? AND l._dl_n < ? GROUP BY 1, 2",
        (seq, first, end),
    )
    return _counts({(bool(had), bool(has)): count for had, has, count in rows})


def _count_branch(catalog: Catalog, table: Table, branch: int, seq: int) -> Counts:
    """Between the points before and after: a branch's rows change through its overlay and through its fork."""
    before, after = catalog.history.around(branch, seq)
    if branches_of(catalog).forks(branch)[0][0] > before.seq:
        return Counts()
    return _counts(Comparison(catalog, table).tally(before, after))


def _counts(found: Mapping[tuple[bool, bool], int]) -> Counts:
    return Counts(found.get((False, True), 0), found.get((True, True), 0), found.get((True, False), 0))


def _equal(a: str, b: str, key: tuple[str, ...]) -> str:
    return " AND ".join(f"{a}.{quote_identifier(k)} = {b}.{quote_identifier(k)}" for k in key)
