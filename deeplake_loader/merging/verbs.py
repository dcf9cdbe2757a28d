"""The verbs of a Database that look at several points of history at once: diff, merge, revert, gc, optimize."""

from __future__ import annotations

import datetime as dt
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from deeplake_loader.branches import MAIN, Point, branches_of
from deeplake_loader.errors import NotFoundError
from deeplake_loader.merging.contents import Contents

if TYPE_CHECKING:  # the rest is imported where it is used: a plain query needs none of it
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.indexes import Indexes
    from deeplake_loader.merging.diff import Diff
    from deeplake_loader.merging.merge import MergeResult, OnConflict
    from deeplake_loader.merging.retention import Garbage
    from deeplake_loader.overlays import BranchWriter
    from deeplake_loader.rows import Source
    from deeplake_loader.search.copies import Copies
    from deeplake_loader.search.statements import Statements
    from deeplake_loader.shards import Shards
    from deeplake_loader.types import Table
    from deeplake_loader.vectors import Vectors
    from deeplake_loader.views import Views

Ref = str | dt.datetime


class MergingVerbs:
    """What Database inherits; `_begin_merging` gets the parts that the verbs work on."""

    _catalog: Catalog
    _shards: Shards
    _vectors: Vectors
    _views: Views
    _overlays: BranchWriter
    _indexes: Indexes
    _copies: Copies
    _statements: Statements

    def _begin_merging(self, source: Source) -> None:
        self._contents = Contents(self._shards, self._vectors)
        self._handles = source

    def diff(self, a: Ref, b: Ref, table: str | None = None) -> Diff:
        """The rows that differ between two points, in one snapshot: what was added, changed and removed on the way
        from ``a`` to ``b``.

        Args:
            a, b: a branch, a tag, a commit id or a time on the handle's branch, in any combination.
            table: this table alone.

        >>> db.diff("main", "experiment").counts                                    # doctest: +SKIP
        {'generations': Counts(added=3, changed=1, removed=0)}
        """
        from deeplake_loader.merging.diff import compare

        tables = list(self._catalog.tables().values()) if table is None else [self._named(table)]
        with self._catalog.snapshot():
            return compare(self._catalog, tables, self._point(a), self._point(b), self._handles, self._contents)

    def merge(
        self,
        source: str,
        into: str | None = None,
        *,
        on_conflict: OnConflict = "raise",
        dry_run: bool = False,
        message: str | None = None,
    ) -> MergeResult:
        """Bring what branch ``source`` changed into branch ``into`` (default: the handle's own), in one commit.

        Rows are compared by key over the best common ancestors of the branches. A row that both changed, differently,
        is a conflict; so is one that would break a unique value or a foreign key of the target. Merging again does
        nothing, and merging main into a branch brings the branch up to date.

        Args:
            on_conflict: ``raise``: ConflictError, nothing is changed; ``ours``: the target's row stays; ``theirs``: the
                source's row comes, except where it would break a constraint.
            dry_run: change nothing, and give the diff and the conflicts.
            message: the commit's message.

        Raises:
            ConflictError: its ``conflicts`` list table, key, base, ours and theirs of each row.
            InputError: a transaction is open, or both names are the same.

        >>> db.merge("experiment/ddim-scheduler", into="main").added                # doctest: +SKIP
        3
        """
        from deeplake_loader.merging.merge import Merger

        target = into if into is not None else branches_of(self._catalog).by_id(self._views.branch).name
        with self._writing(target):
            merger = Merger(self._catalog, self._handles, self._contents, self._overlays)
            return merger.merge(source, target, on_conflict=on_conflict, dry_run=dry_run, message=message)

    def revert(self, to: Ref, *, message: str | None = None) -> MergeResult:
        """Give the handle's branch the rows that it, or another branch, had at ``to``, in a commit of its own: history
        goes on, nothing is lost.

        Args:
            to: a tag, a commit id, a time on this branch, or another branch.
        """
        from deeplake_loader.merging.merge import Merger

        branch = branches_of(self._catalog).by_id(self._views.branch)
        with self._writing(branch.name):
            merger = Merger(self._catalog, self._handles, self._contents, self._overlays)
            return merger.revert(to, branch, message=message or f"revert to {to}")

    def gc(self, *, dry_run: bool = True, older_than_s: float = 86_400.0) -> Garbage:
        """Remove sealed files without a reachable blob or vector, and files that no catalog row names; by default only
        say which.

        Rows on any branch, at any tag and in the undo logs keep their bytes: `optimize` with ``keep`` lets old history
        go first.

        Args:
            older_than_s: leave files that were last written less than so many seconds ago, because a query that
                began before may still read them, and a writer may be about to commit them.
        """
        from deeplake_loader.merging import retention

        context = self._catalog.snapshot() if dry_run else self._catalog.transaction("gc")
        with context:
            dead, strays = retention.unreached(self._catalog, older_than_s)
            found = dict(retention.with_sidecars(self._catalog, [*(url for _, url in dead), *strays]))
            if not dry_run:
                retention.forget(self._catalog, dead)
        if not dry_run:
            retention.remove(self._catalog, tuple(found))
        return retention.Garbage(tuple(found), sum(found.values()), dry_run)

    def optimize(self, *, keep: dt.timedelta | float | None = None, scan_copies: bool = False) -> None:
        """Seal open shards and the vectors that still rest in the catalog, so that every file stands by itself; then
        make the lists that vector indexes lack, and over PostgreSQL the matrices that searches scan.

        Args:
            keep: also forget history older than this (a timedelta, or seconds) that no branch, tag or merge base needs;
                None keeps all. `log` then gives no counts for commits that are older, and `at` refuses them.
            scan_copies: also keep every float32 vector file of 8,192 rows or more in float16 beside itself: half as
                much again on the disk, half as much to read in a search, whose results stay the same to the last bit.
        """
        from deeplake_loader.merging import pruning, retention

        with self._catalog.transaction("optimize"):
            self._shards.seal()
            self._vectors.seal()
            if keep is not None:
                pruning.prune(self._catalog, retention.period(keep, "keep"))
        for index in () if self._catalog.in_transaction else self._indexes.all():
            self._indexes.build(index)
        if not self._catalog.in_transaction:
            self._statements.optimize()
        if scan_copies:
            self._copies.build()

    # -- help ------------------------------------------------------------------------------------------------------

    def _point(self, ref: Ref) -> Point:
        branches = branches_of(self._catalog)
        if self._catalog.in_transaction:  # reading must not cut the transaction in two commits
            for branch in branches.all():
                if branch.name == ref:
                    return branches.now(branch.id)
        return branches.resolve(ref, branch=self._views.branch)

    def _named(self, table: str) -> Table:
        found = self._catalog.tables().get(table)
        if found is None:
            raise NotFoundError(f"there is no table {table!r}; tables: {', '.join(self._catalog.tables()) or 'none'}")
        return found

    def _writing(self, target: str) -> AbstractContextManager[object]:
        """A merge into the branch that this handle shows writes under its views, which are made anew afterwards."""
        shown = branches_of(self._catalog).by_id(self._views.branch).name
        return self._views.showing(MAIN) if target == shown else nullcontext()
