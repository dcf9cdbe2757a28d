"""How many rows each commit added, changed and removed, read from the undo logs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deeplake_loader.branches import MAIN, branches_of, first_number, log_name
from deeplake_loader.merging.comparison import Comparison
from deeplake_loader.merging.diff import Counts
from deeplake_loader.types import quote_identifier, quote_identifiers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deeplake_loader.catalog import Catalog
    from deeplake_loader.types import Table


def commit_counts(catalog: Catalog, branch: int, seq: int) -> dict[str, Counts] | None:
    """Rows added, changed and removed by a commit of a branch, by table; None when its undo log was pruned."""
    if not branches_of(catalog).reaches(catalog.history.around(branch, seq)[0]):
        return None
    found = {
        table.name: _count_main(catalog, table, seq) if branch == MAIN else _count_branch(catalog, table, branch, seq)
        for table in catalog.tables().values()
    }
    return {name: counts for name, counts in found.items() if counts != Counts()}


def _count_main(catalog: Catalog, table: Table, seq: int) -> Counts:
    """The first image of a key says whether it was there before, the next one (or the table) whether it was after."""
    images = _postgres_images if catalog.dialect == "postgres" else _sqlite_images
    found = images(catalog, table, seq)
    if found is None:
        return Counts()
    key, log = catalog.history.shape(table.name).key, catalog.history.real(log_name(table.name))
    first, later, params = found
    after = f"SELECT n._dl_op <> 'I' FROM {log} n WHERE {_equal('n', 'l', key)} AND {later}"
    now = f"SELECT 1 FROM {catalog.history.real(table.name)} t WHERE {_equal('t', 'l', key)}"
    rows = catalog.fetchall(
        f"SELECT l._dl_op <> 'I' AS had, coalesce(({after} LIMIT 1), EXISTS ({now})) AS has, count(*) "
        f"FROM {first} GROUP BY 1, 2",
        params,
    )
    return _counts({(bool(had), bool(has)): count for had, has, count in rows})


_Images = tuple[str, str, tuple[int, ...]]
"""FROM text of a commit's first images ``l``, a condition on (and the order of) later images ``n`` of
their keys, and parameters."""


def _sqlite_images(catalog: Catalog, table: Table, seq: int) -> _Images | None:
    """One image per key and number."""
    log = log_name(table.name)
    first, end = (first_number(catalog, log, number) for number in (seq - 1, seq))
    if first == end:
        return None
    return (
        f"{catalog.history.real(log)} l WHERE l._dl_n >= ? AND l._dl_n < ?",
        "n._dl_seq >= ? ORDER BY n._dl_seq",
        (seq, first, end),
    )


def _postgres_images(catalog: Catalog, table: Table, seq: int) -> _Images | None:
    """A commit is a transaction's step, which may have logged a key more than once."""
    xid, step = catalog.fetchone(
        "SELECT CAST(CAST(xid AS text) AS bigint), step FROM _dl_commits WHERE seq = ?", (seq,)
    )
    log, key = catalog.history.real(log_name(table.name)), quote_identifiers(catalog.history.shape(table.name).key)
    own = f"_dl_xid = CAST('{int(xid)}' AS xid8) AND _dl_step = {int(step)}"
    first = f"SELECT DISTINCT ON ({key}) {key}, _dl_op, _dl_n FROM {log} WHERE {own} ORDER BY {key}, _dl_n"
    later = f"n._dl_n > l._dl_n AND NOT (n.{own.replace(' AND ', ' AND n.', 1)}) ORDER BY n._dl_n"
    return f"({first}) l", later, ()


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
