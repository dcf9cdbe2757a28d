"""The verbs of a Database about branches, tags and commits: which line of history the handle reads and writes."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from deeplake_loader.branches import MAIN, Tag, branches_of
from deeplake_loader.errors import InputError
from deeplake_loader.merging.counts import commit_counts
from deeplake_loader.merging.diff import Counts

if TYPE_CHECKING:
    from types import TracebackType

    from deeplake_loader.catalog import Catalog
    from deeplake_loader.overlays import BranchWriter
    from deeplake_loader.views import Views

Ref = str | dt.datetime
Handle = TypeVar("Handle", bound="BranchVerbs")


@dataclass(frozen=True, slots=True)
class BranchInfo:
    """A branch: its name, when it was made (UTC), and whether the handle is on it."""

    name: str
    created_at: dt.datetime
    current: bool


@dataclass(frozen=True, slots=True)
class CommitInfo:
    """A commit: ``changes`` gives the rows added, changed and removed by table, None where that history was pruned."""

    id: str
    seq: int
    created_at: dt.datetime
    author: str | None
    message: str | None
    branch: str
    changes: Mapping[str, Counts] | None = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TagInfo:
    """A tag: the point it names, as a branch and a commit number of it, and when it was set (UTC)."""

    name: str
    branch: str
    seq: int
    created_at: dt.datetime
    message: str | None


class Checkout(Generic[Handle]):
    """What `branch` and `checkout` give back: as a context it returns the handle to where it was."""

    def __init__(self, handle: Handle, before: int) -> None:
        self._handle, self._before = handle, before

    def __enter__(self) -> Handle:
        return self._handle

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle._switch(self._before)


class BranchVerbs:
    """What Database inherits."""

    _catalog: Catalog
    _views: Views
    _overlays: BranchWriter

    @property
    def current_branch(self) -> str:
        """The branch that the handle reads and writes."""
        return branches_of(self._catalog).by_id(self._views.branch).name

    def branch(self: Handle, name: str, *, from_: Ref | None = None) -> Checkout[Handle]:
        """Make a branch and switch the handle to it: main, or where it starts, is untouched by what follows.

        Args:
            name: any name that git allows for a branch.
            from_: a branch, a tag, a commit id or a time; default: the handle's own branch as it is now.

        >>> db.branch("experiment/ddim-scheduler")                                  # doctest: +SKIP
        >>> with db.branch("idea"):                     # returns to where the handle was  # doctest: +SKIP
        ...     db.execute("DELETE FROM generations WHERE steps < 20")
        """
        before, branches = self._views.branch, branches_of(self._catalog)
        with self._catalog.transaction() as tx:
            start = branches.resolve(branches.present(before) if from_ is None else from_, branch=before)
            made = branches.create(name, start)
            self._overlays.created(start, made)
            if not self._catalog.nested:
                tx.branch = made.id
        self._switch(made.id)
        return Checkout(self, before)

    def checkout(self: Handle, name: str) -> Checkout[Handle]:
        """Switch the handle to a branch; as a context, return to where it was at the end."""
        before = self._views.branch
        self._switch(branches_of(self._catalog).get(name).id)
        return Checkout(self, before)

    def _switch(self, branch: int) -> None:
        if self._views.fixed:
            raise InputError("this handle shows a fixed point of history; check the branch out on a handle of its own")
        tx = self._catalog.open_transaction
        if tx is not None and tx.branch != branch:  # one commit belongs to one branch
            branches_of(self._catalog).present(tx.branch)
            tx.branch = branch
        self._views.show(branch)

    def branches(self) -> list[BranchInfo]:
        """Every branch, main first, then by age."""
        current = self._views.branch
        return [BranchInfo(b.name, _time(b.created_at), b.id == current) for b in branches_of(self._catalog).all()]

    def delete_branch(self, name: str) -> None:
        """Forget a branch. What was merged stays merged; `gc` and `optimize` free what nothing else reaches."""
        branches = branches_of(self._catalog)
        with self._catalog.transaction() as tx:
            branch = branches.get(name)
            if branch.id == self._views.branch and branch.id != MAIN:
                raise InputError(f"the handle is on branch {name!r}; check another one out first")
            branches.delete(name)
            self._overlays.deleted(branch)
            tx.branch = self._views.branch

    def rename_branch(self, old: str, new: str) -> None:
        """Give a branch another name; handles that are on it stay there."""
        branches = branches_of(self._catalog)
        with self._catalog.transaction():
            before = branches.get(old)
            self._overlays.renamed(before, branches.rename(old, new))

    # -- commits and tags ------------------------------------------------------------------------------------------

    def commit(self, message: str) -> CommitInfo:
        """A commit with a message, of what another tool changed since the last one, or of nothing; its id names this
        state for `at`, `branch` and `diff`. Inside a transaction it closes what was done so far."""
        with self._catalog.transaction() as tx:
            seq = self._catalog.seal(self._views.branch, message)
            tx.message = tx.message if self._catalog.nested else None
        return next(self._infos(limit=1, first=seq))

    def log(self, branch: str | None = None, limit: int | None = None) -> list[CommitInfo]:
        """The commits of a branch (default: the handle's own) back to where it began, newest first."""
        with self._catalog.snapshot():
            chosen = self._views.branch if branch is None else branches_of(self._catalog).get(branch).id
            return list(self._infos(branch=chosen, limit=limit))

    def _infos(
        self, *, branch: int | None = None, limit: int | None = None, first: int | None = None
    ) -> Iterator[CommitInfo]:
        branches = branches_of(self._catalog)
        names: dict[int, str] = {}
        for seq, id_, created_at, author, message, number in branches.commits(branch, limit=limit, newest=first):
            name = names.setdefault(number, branches.by_id(number).name)
            changes = commit_counts(self._catalog, number, seq)
            yield CommitInfo(id_, seq, _time(created_at), author, message, name, changes)

    def tag(self, name: str, at: Ref | None = None, *, message: str | None = None) -> TagInfo:
        """Name a point of history (default: the handle's branch as it is now), which then stays readable."""
        branches, current = branches_of(self._catalog), self._views.branch
        with self._catalog.transaction():
            point = branches.resolve(branches.present(current) if at is None else at, branch=current)
            return _tag_info(branches.tag(name, point, message))

    def untag(self, name: str) -> None:
        """Forget a tag."""
        with self._catalog.transaction():
            branches_of(self._catalog).untag(name)

    def tags(self) -> list[TagInfo]:
        """Every tag, oldest first."""
        return [_tag_info(tag) for tag in branches_of(self._catalog).tags()]


def _tag_info(tag: Tag) -> TagInfo:
    return TagInfo(tag.name, tag.branch, tag.seq, _time(tag.created_at), tag.message)


def _time(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)
