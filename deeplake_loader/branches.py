"""Branches, tags and the graph of nodes: which line of history a name means, and where it left the others.

A point is a branch and a commit number: the branch's rows as of that commit. A node is a point in the graph of history,
made where it matters (a fork, a merge, a tag): ``parent`` is the node before it on its branch or the one it was forked
from, ``other`` what was merged into it. The nodes of one branch are a chain in the order of their numbers, so a node
for an earlier point is put in between. A branch's fork, the commit of main on which it stands, moves when main is
merged into it: row (branch, seq, main_seq) holds from commit ``seq`` on.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deeplake_loader.errors import InputError, NotFoundError
from deeplake_loader.types import RESERVED_PREFIX, quote_identifier

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog

MAIN = 1
"""Main's number; its tables are the real ones."""

HISTORY_FROM = "history_from"
"""Fact in _dl_meta: the oldest commit number whose state can still be read, set when the undo log is pruned."""

_ILLEGAL = re.compile(r"\.\.|@\{|//|[\x00-\x20\x7f~^:?*\[\\]|^[-/.]|/\.|\.lock(/|$)|[/.]$|^@$")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")  # so begins a time; a commit's id has no dash
_COLUMNS = "id, name, head, created_at"


@dataclass(frozen=True, slots=True)
class State:
    """A moment of a PostgreSQL database: the changes that ``snapshot`` (a pg_snapshot) sees, and those of transaction
    ``xid`` up to the commit that it closed as number ``step``."""

    snapshot: str
    xid: str
    step: int


@dataclass(frozen=True, slots=True)
class Point:
    """A branch's rows as of commit ``seq``: what was logged under that number or a later one is undone. On PostgreSQL
    a point that no commit has numbered carries its ``state``."""

    branch: int
    seq: int
    state: State | None = None


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch's row: ``head`` is its newest node, 0 once a deleted branch's rows were forgotten."""

    id: int
    name: str
    head: int
    created_at: str


@dataclass(frozen=True, slots=True)
class Tag:
    """A name for a point: ``branch`` is the name of the branch it was set on."""

    name: str
    branch: str
    seq: int
    created_at: str
    message: str | None


def overlay_name(branch: int, table: str) -> str:
    """The real table that holds the branch's own rows of ``table``."""
    return f"{RESERVED_PREFIX}b{branch}_{table}"


def shadow_name(branch: int, table: str) -> str:
    """The table of main's keys that the branch has taken over: ``_dl_n``, the key columns, ``_dl_seq`` since when."""
    return f"{RESERVED_PREFIX}s{branch}_{table}"


def log_name(table: str) -> str:
    """The undo log of a real table, an overlay included."""
    return f"{RESERVED_PREFIX}log_{table}"


def check_name(name: object, what: str = "branch") -> str:
    """The name, if git would take it for a branch; InputError else.

    >>> check_name("experiment/ddim-scheduler")
    'experiment/ddim-scheduler'
    """
    if not isinstance(name, str) or not name:
        raise InputError(f"a {what} needs a name, got {name!r}")
    found = _ILLEGAL.search(name)
    if found is not None:
        raise InputError(
            f"{name!r} cannot name a {what}: git forbids {found[0]!r} there; use letters, digits and - _ . / between"
        )
    return name


def branches_of(catalog: Catalog) -> Branches:
    """The branches, tags and nodes of the store, as its kind of catalog keeps them."""
    return catalog.history.branches


class Branches:
    """The branches, tags and nodes of one store."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    # -- names -----------------------------------------------------------------------------------------------------

    def get(self, name: str) -> Branch:
        """The branch of that name; NotFoundError where there is none."""
        query = f"SELECT {_COLUMNS} FROM _dl_branches WHERE name = ? AND deleted_at IS NULL"
        row = self._catalog.fetchone(query, (name,))
        if row is None:
            raise NotFoundError(f"there is no branch {name!r}; branches: {', '.join(b.name for b in self.all())}")
        return Branch(*row)

    def by_id(self, branch: int) -> Branch:
        """The branch of that number, a deleted one included."""
        row = self._catalog.fetchone(f"SELECT {_COLUMNS} FROM _dl_branches WHERE id = ?", (branch,))
        if row is None:
            raise NotFoundError(f"there is no branch number {branch}")
        return Branch(*row)

    def all(self) -> list[Branch]:
        """Every branch that was not deleted, main first, then by age."""
        rows = self._catalog.fetchall(f"SELECT {_COLUMNS} FROM _dl_branches WHERE deleted_at IS NULL ORDER BY id")
        return [Branch(*row) for row in rows]

    def tags(self) -> list[Tag]:
        """Every tag, oldest first."""
        rows = self._catalog.fetchall(
            "SELECT t.name, b.name, t.seq, t.created_at, t.message FROM _dl_tags t JOIN _dl_branches b "
            "ON b.id = t.branch ORDER BY t.created_at, t.name"
        )
        return [Tag(*row) for row in rows]

    def _check_free(self, name: str, what: str) -> None:
        check_name(name, what)
        for kind, table in (("branch", "_dl_branches"), ("tag", "_dl_tags")):
            if self._catalog.fetchone(f"SELECT 1 FROM {table} WHERE name = ?", (name,)):
                raise InputError(f"there is a {kind} {name!r} already; choose another name")

    # -- making and removing (within the caller's transaction) -----------------------------------------------------

    def create(self, name: str, at: Point) -> Branch:
        """A new branch at a point; copying the overlays of a parent other than main is the caller's part."""
        self._check_free(name, "branch")
        parent = self.node(at)
        fork = at.seq if at.branch == MAIN else self.fork_at(at.branch, at.seq)
        seq, now = self._catalog.head(), self._catalog.now()
        return self._insert(name, now, (seq, parent, fork))

    def _insert(self, name: str, now: str, start: tuple[int, int, int]) -> Branch:
        """The rows of a new branch, whose first node is (number, parent) and which stands on main's commit ``fork``."""
        seq, parent, fork = start
        sql = "INSERT INTO _dl_branches (name, head, created_at) VALUES (?, 0, ?) RETURNING id"
        branch = self._catalog.fetchone(sql, (name, now))[0]
        sql = "INSERT INTO _dl_nodes (branch, seq, parent) VALUES (?, ?, ?) RETURNING id"
        head = self._catalog.fetchone(sql, (branch, seq, parent))[0]
        self._catalog.execute("UPDATE _dl_branches SET head = ? WHERE id = ?", (head, branch))
        self._catalog.execute("INSERT INTO _dl_forks (branch, seq, main_seq) VALUES (?, ?, ?)", (branch, 0, fork))
        return self.by_id(branch)

    def rename(self, old: str, new: str) -> Branch:
        """Give the branch another name."""
        branch = self.get(old)
        self._refuse_main(branch, "renamed")
        self._check_free(new, "branch")
        self._catalog.execute("UPDATE _dl_branches SET name = ? WHERE id = ?", (new, branch.id))
        return self.by_id(branch.id)

    def delete(self, name: str) -> Branch:
        """Take the branch's name away; its rows stay until no merge base, tag or branch can reach them."""
        branch = self.get(name)
        self._refuse_main(branch, "deleted")
        sql = "UPDATE _dl_branches SET deleted_at = ?, name = ? WHERE id = ?"  # git allows no ~ in a name
        self._catalog.execute(sql, (self._catalog.now(), f"{name}~{branch.id}", branch.id))
        return branch

    def _refuse_main(self, branch: Branch, verb: str) -> None:
        if branch.id == MAIN:
            raise InputError(f"main cannot be {verb}: its tables are the store's own")

    def tag(self, name: str, at: Point, message: str | None = None) -> Tag:
        """Name a point."""
        self._check_free(name, "tag")
        row = (name, at.branch, at.seq, self.node(at), self._catalog.now(), message)
        columns = "name, branch, seq, node, created_at, message"
        self._catalog.execute(f"INSERT INTO _dl_tags ({columns}) VALUES (?, ?, ?, ?, ?, ?)", row)
        return Tag(name, self.by_id(at.branch).name, at.seq, row[4], message)

    def untag(self, name: str) -> None:
        """Forget a tag."""
        if self._catalog.execute("DELETE FROM _dl_tags WHERE name = ?", (name,)).rowcount == 0:
            raise NotFoundError(f"there is no tag {name!r}; tags: {', '.join(t.name for t in self.tags()) or 'none'}")

    # -- points ----------------------------------------------------------------------------------------------------

    def present(self, branch: int) -> Point:
        """The branch's state now. Inside a transaction it is sealed, so that what follows does not belong to it."""
        head = self._catalog.head()
        if any(last >= head for last in self._last_changes(branch)):
            if self._catalog.in_transaction:
                return Point(branch, self._catalog.seal(branch))
            return Point(branch, head + 1)  # another tool's changes that no commit has numbered yet
        return Point(branch, head)

    def now(self, branch: int) -> Point:
        """The branch's state now, what the open transaction did included; sealed for nobody else to build on."""
        return Point(branch, self._catalog.head() + 1)

    def reaches(self, point: Point) -> bool:
        """Whether the history is kept that tells the rows at a point."""
        return min(point.seq, self.fork_at(point.branch, point.seq)) >= int(self._catalog.meta(HISTORY_FROM) or 0)

    def resolve(self, ref: str | dt.datetime | Point, *, branch: int = MAIN) -> Point:
        """The point that a branch's or tag's name, a commit's id (or its first 7 digits) or a time on ``branch`` means.

        A time is a datetime or its text, as "2026-03-02 18:30"; without a zone it is UTC, as NOW() gives it.
        """
        if isinstance(ref, Point):
            return self._kept(ref)
        if isinstance(ref, dt.datetime):
            return self._kept(Point(branch, self._commit_at(ref)))
        if not isinstance(ref, str):
            raise InputError(f"expected a branch, a tag, a commit id or a datetime, got {type(ref).__name__}")
        row = self._catalog.fetchone("SELECT id FROM _dl_branches WHERE name = ? AND deleted_at IS NULL", (ref,))
        if row is not None:
            return self.present(row[0])
        row = self._catalog.fetchone("SELECT branch, seq FROM _dl_tags WHERE name = ?", (ref,))
        if row is None and (time := _time(ref)) is not None:
            return self.resolve(time, branch=branch)
        return self._kept(Point(*(row or self._commit(ref))))

    def _commit(self, ref: str) -> tuple[int, int]:
        rows = []
        if re.fullmatch(r"[0-9a-f]{7,32}", ref):
            query = "SELECT branch, seq FROM _dl_commits WHERE id >= ? AND id < ? LIMIT 2"
            rows = self._catalog.fetchall(query, (ref, ref + "g"))
        if len(rows) != 1:
            none = "there is no branch, tag or commit of that name, and it is no time such as 2026-03-02 18:30"
            problem = "several commits begin so" if rows else none
            raise NotFoundError(f"cannot tell what {ref!r} means: {problem}")
        return int(rows[0][0]), int(rows[0][1])

    def _commit_at(self, time: dt.datetime) -> int:
        if time.tzinfo is not None:
            time = time.astimezone(dt.UTC).replace(tzinfo=None)
        text = time.isoformat(sep=" ", timespec="microseconds")  # strftime writes the year 26 as "26", after "2026"
        query = "SELECT max(seq) FROM _dl_commits WHERE created_at <= ?"
        return int(self._catalog.fetchone(query, (text,))[0] or 0)

    def _kept(self, point: Point) -> Point:
        oldest, branch = int(self._catalog.meta(HISTORY_FROM) or 0), self.by_id(point.branch)
        if self._first(point.branch)[1] > point.seq:
            raise NotFoundError(f"branch {branch.name!r} was not there at commit {point.seq}")
        if not self.reaches(point):
            raise NotFoundError(f"commit {point.seq} is older than the history that is kept, which begins at {oldest}")
        if branch.head == 0:
            raise NotFoundError(f"branch {branch.name!r} was deleted, and optimize has forgotten its rows")
        return point

    def forks(self, branch: int) -> list[tuple[int, int]]:
        """(from commit, main's commit) pairs of a branch, oldest first; the first counts from the branch's start."""
        return self._catalog.fetchall("SELECT seq, main_seq FROM _dl_forks WHERE branch = ? ORDER BY seq", (branch,))

    def fork_at(self, branch: int, seq: int) -> int:
        """The commit of main on which the branch stood at ``seq``; for main itself that number."""
        if branch == MAIN:
            return seq
        query = "SELECT main_seq FROM _dl_forks WHERE branch = ? AND seq <= ? ORDER BY seq DESC LIMIT 1"
        row = self._catalog.fetchone(query, (branch, seq))
        if row is None:
            raise NotFoundError(f"branch number {branch} was not there at commit {seq}")
        return int(row[0])

    def overlays(self, branch: int) -> list[str]:
        """The tables of which the branch has an overlay."""
        query = "SELECT table_name FROM _dl_overlays WHERE branch = ? ORDER BY table_name"
        return [name for (name,) in self._catalog.fetchall(query, (branch,))]

    # -- nodes -----------------------------------------------------------------------------------------------------

    def node(self, at: Point) -> int:
        """The node of a point, made in the chain of its branch where there is none (caller's transaction)."""
        query = "SELECT id, seq FROM _dl_nodes WHERE branch = ? AND seq <= ? ORDER BY seq DESC, id DESC LIMIT 1"
        before, seq = self._catalog.fetchone(query, (at.branch, at.seq)) or self._first(at.branch)
        if not self._changed(at.branch, seq, at.seq):
            return int(before)
        return self.add_node(at, before)

    def _first(self, branch: int) -> tuple[int, int]:
        row = self._catalog.fetchone("SELECT id, seq FROM _dl_nodes WHERE branch = ? ORDER BY seq, id", (branch,))
        return int(row[0]), int(row[1])

    def add_node(self, at: Point, parent: int, other: int | None = None) -> int:
        """A node after ``parent`` on the same branch; the branch's head when parent was it."""
        sql = "INSERT INTO _dl_nodes (branch, seq, parent, other) VALUES (?, ?, ?, ?) RETURNING id"
        node = int(self._catalog.fetchone(sql, (at.branch, at.seq, parent, other))[0])
        sql = "UPDATE _dl_nodes SET parent = ? WHERE parent = ? AND branch = ? AND id <> ?"
        self._catalog.execute(sql, (node, parent, at.branch, node))
        self._catalog.execute("UPDATE _dl_branches SET head = ? WHERE id = ? AND head = ?", (node, at.branch, parent))
        return node

    def point_of(self, node: int) -> Point:
        """The point that a node stands for."""
        return Point(*self._catalog.fetchone("SELECT branch, seq FROM _dl_nodes WHERE id = ?", (node,)))

    def ancestors(self, node: int) -> set[int]:
        """The node and all before it."""
        rows = self._catalog.fetchall(
            "WITH RECURSIVE edges (child, id) AS (SELECT id, parent FROM _dl_nodes WHERE parent IS NOT NULL UNION ALL "
            "SELECT id, other FROM _dl_nodes WHERE other IS NOT NULL), found (id) AS (SELECT CAST(? AS BIGINT) UNION "
            "SELECT e.id FROM found f JOIN edges e ON e.child = f.id) SELECT id FROM found",
            (node,),
        )
        return {int(found) for (found,) in rows}

    def parents(self) -> dict[int, tuple[int, ...]]:
        """The parents of every node: the graph of history."""
        rows = self._catalog.fetchall("SELECT id, parent, other FROM _dl_nodes")
        return {node: tuple(p for p in parents if p is not None) for node, *parents in rows}

    def logs(self, branch: int) -> list[str]:
        """The undo logs that tell what changed on a branch."""
        if branch == MAIN:
            return [log_name(table.name) for table in self._catalog.tables().values()]
        return [log_name(overlay_name(branch, table)) for table in self.overlays(branch)]

    def _last_changes(self, branch: int) -> Iterator[int]:
        for log in self.logs(branch):
            query = f"SELECT _dl_seq FROM main.{quote_identifier(log)} ORDER BY _dl_n DESC LIMIT 1"
            row = self._catalog.fetchone(query)
            if row is not None:
                yield int(row[0])

    def _changed(self, branch: int, since: int, until: int) -> bool:
        """Whether anything was logged on the branch, or its fork moved, between two commits."""
        if since >= until:
            return False
        moved = "SELECT 1 FROM _dl_forks WHERE branch = ? AND seq > ? AND seq <= ?"
        if self._catalog.fetchone(moved, (branch, since, until)):
            return True
        for log in self.logs(branch):
            start = first_number(self._catalog, log, since)
            query = f"SELECT _dl_seq FROM main.{quote_identifier(log)} WHERE _dl_n >= ? ORDER BY _dl_n LIMIT 1"
            row = self._catalog.fetchone(query, (start,))
            if row is not None and row[0] < until:
                return True
        return False

    # -- commits ---------------------------------------------------------------------------------------------------

    def commits(
        self, branch: int | None = None, *, limit: int | None = None, newest: int | None = None
    ) -> list[tuple[Any, ...]]:
        """(seq, id, created_at, author, message, branch) newest first, of one branch or of all, from ``newest`` on."""
        given = {"branch = ?": branch, "seq <= ?": newest}
        where = " AND ".join(("branch > 0", *(condition for condition, value in given.items() if value is not None)))
        query = f"SELECT seq, id, created_at, author, message, branch FROM _dl_commits WHERE {where} ORDER BY seq DESC"
        values = tuple(value for value in (*given.values(), limit) if value is not None)
        return self._catalog.fetchall(query if limit is None else f"{query} LIMIT ?", values)


def _time(text: str) -> dt.datetime | None:
    """The time that a text is, None of any other text."""
    if not _DAY.match(text):
        return None
    try:
        return dt.datetime.fromisoformat(text)
    except ValueError:
        return None


def first_number(catalog: Catalog, log: str, seq: int) -> int:
    """The number (_dl_n) of the first log row under commit ``seq`` or a later one; past the end where there is none.

    Both numbers only grow, so the row is found by bisection and the log needs no index by commit.
    """
    name = quote_identifier(log)
    # two questions: asked at once, min and max would read the whole log
    ends = f"SELECT (SELECT min(_dl_n) FROM main.{name}), (SELECT max(_dl_n) + 1 FROM main.{name})"
    low, high = catalog.fetchone(ends)
    if low is None:
        return 1
    query = f"SELECT _dl_n, _dl_seq FROM main.{name} WHERE _dl_n >= ? ORDER BY _dl_n LIMIT 1"
    while low < high:
        middle = (low + high) // 2
        number, found = catalog.fetchone(query, (middle,))
        if found >= seq:
            high = middle
        else:
            low = number + 1
    return int(low)
