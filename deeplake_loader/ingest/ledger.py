"""Which sources a table has taken in already, as seen from the branch that a handle is on.

A row of `_dl_sources` is written in the transaction that adds the source's rows and names its commit. It counts for a
branch when that commit is part of the branch's history: made on it, or on a branch it was forked from or that was
merged into it, at or before the point where the two meet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog


class Ledger:
    """The sources of one table."""

    def __init__(self, catalog: Catalog, table: str, branch: int) -> None:
        self._catalog, self._table, self._branch = catalog, table, branch
        self._known: dict[str, tuple[str, int]] = {}
        self._learn("", ())

    def find(self, url: str) -> tuple[str, int] | None:
        """(stamp, rows) of a source that was taken in; None for a new one."""
        return self._known.get(url)

    def look_again(self, url: str) -> None:
        """Learns whether somebody else has taken in the source meanwhile."""
        self._learn(" AND s.url = ?", (url,))

    def _learn(self, condition: str, bound: tuple[str, ...]) -> None:
        rows = self._catalog.fetchall(
            "SELECT s.url, s.stamp, s.added, c.branch, c.seq FROM _dl_sources s "
            f"LEFT JOIN _dl_commits c ON c.id = s.commit_id WHERE s.table_name = ?{condition}",
            (self._table, *bound),
        )
        reach = _reach(self._catalog, self._branch) if rows else {}
        for url, stamp, added, made_on, seq in rows:
            if made_on is None or made_on == self._branch or seq <= reach.get(made_on, -1):
                self._known[url] = (stamp, added)

    def note(self, url: str, stamp: str, added: int, commit: str) -> None:
        """Writes down a source in the transaction that adds its rows."""
        self._catalog.execute(
            "INSERT INTO _dl_sources (table_name, url, commit_id, stamp, added) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (table_name, url, commit_id) DO UPDATE SET stamp = excluded.stamp, added = excluded.added",
            (self._table, url, commit, stamp, added),
        )
        self._known[url] = (stamp, added)


def _reach(catalog: Catalog, branch: int) -> dict[int, int]:
    """The newest commit of every other branch that the branch's history holds, by branch."""
    nodes = {row[0]: row[1:] for row in catalog.fetchall("SELECT id, branch, seq, parent, other FROM _dl_nodes")}
    row = catalog.fetchone("SELECT head FROM _dl_branches WHERE id = ?", (branch,))
    todo, reach = [row[0] if row else None], dict[int, int]()
    seen: set[int] = set()
    while todo:
        at = todo.pop()
        if at is None or at in seen or at not in nodes:
            continue
        seen.add(at)
        made_on, seq, parent, other = nodes[at]
        reach[made_on] = max(seq, reach.get(made_on, -1))
        todo += [parent, other]
    return reach
