"""The verbs of a Database that look at several points of history at once: diff, merge, revert."""

from __future__ import annotations

import datetime as dt
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from deeplake_loader.branches import MAIN, Point, branches_of
from deeplake_loader.errors import NotFoundError
from deeplake_loader.merging.contents import Contents

if TYPE_CHECKING:  # the rest is imported where it is used: a plain query needs none of it
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.merging.diff import Diff
    from deeplake_loader.merging.merge import MergeResult, OnConflict
    from deeplake_loader.overlays import BranchWriter
    from deeplake_loader.rows import Source
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
