"""Which store and branch a command works on, and how it opens them.

A branch that was checked out is remembered per user and store, in a file named by the digest of the store's URL in
``$XDG_STATE_HOME/deeplake_loader`` (default ``~/.local/state``), so no URL and no password is written anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from deeplake_loader.cli.interrupts import stopping_on_interrupt
from deeplake_loader.errors import NotFoundError

if TYPE_CHECKING:
    from deeplake_loader.database import Database


@dataclass(frozen=True, slots=True, repr=False)
class Session:
    """The store's URL, the branch that was asked for, and whether the store was named at all."""

    store: str
    branch: str | None
    named: bool

    @contextmanager
    def open(self, *, read_only: bool = True, at: str | None = None) -> Iterator[Database]:
        """The store on its branch, or at a tag, a commit id or a time of that branch, for a block; none is made.

        Raises:
            NotFoundError: no store there, no such branch, no such point.
        """
        with self._connect(read_only) as db, stopping_on_interrupt(db):
            self._checkout(db)
            if at is None:
                yield db
                return
            with db.at(at) as then, stopping_on_interrupt(then):
                yield then

    def _connect(self, read_only: bool) -> Database:
        from deeplake_loader.database import connect

        try:
            return connect(self.store, create=False, read_only=read_only)
        except NotFoundError as error:
            if self.named:
                raise
            raise NotFoundError(f"{error}; name a store by --store or $DEEPLAKE_STORE") from error

    def _checkout(self, db: Database) -> None:
        name = self.branch or os.environ.get("DEEPLAKE_BRANCH")
        if name:
            db.checkout(name)
        elif (remembered := self.remembered()) is not None:
            try:
                db.checkout(remembered)
            except NotFoundError as error:
                raise NotFoundError(f"{error}; it was checked out here: deeplake-loader checkout main") from error

    def remembered(self) -> str | None:
        """The branch that was checked out, None for main."""
        try:
            return self._memory().read_text("utf-8").strip() or None
        except FileNotFoundError:
            return None

    def remember(self, branch: str) -> None:
        """Keeps the branch for later commands on this store."""
        path = self._memory()
        if branch == "main":
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(f"{branch}\n", "utf-8")

    def _memory(self) -> Path:
        url = self.store if "://" in self.store else os.path.realpath(os.path.expanduser(self.store))
        return state_folder() / sha256(os.fsencode(url)).hexdigest()[:32]


def state_folder() -> Path:
    """Where the command line keeps what a user would miss; it need not be there."""
    folder = os.environ.get("XDG_STATE_HOME") or os.path.join("~", ".local", "state")
    return Path(folder).expanduser() / "deeplake_loader"


def locate(store: str | None, branch: str | None) -> Session:
    """The session of what was named: by an option, by ``$DEEPLAKE_STORE``, else the working folder."""
    named = store or os.environ.get("DEEPLAKE_STORE")
    return Session(named or ".", branch, named is not None)
