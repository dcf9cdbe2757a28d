"""Merging: what one branch has and another lacks, decided key by key over their best common ancestors, then replayed.

    keys that can differ -> rows of both sides -> keys that do differ -> base rows -> keep, take or conflict
                         -> constraints -> replay in one transaction -> a node with two parents

Per key: equal on both sides, or unchanged on the source: keep. Unchanged on the target: take. Else a conflict; equal
changes are none. All of it is SQL over TEMP tables, so the cost follows what changed, never the size of the tables.

A merge of main into a branch also moves the branch's fork to main's present: keys that the branch never took over then
simply show main's rows, and only those where the branch keeps another row are copied into its overlay first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from deeplake_loader.branches import MAIN, Branch, Point, branches_of
from deeplake_loader.errors import ConflictError, ConstraintError, InputError
from deeplake_loader.merging import integrity
from deeplake_loader.merging.comparison import PRESENT
from deeplake_loader.merging.constraints import foreign_keys
from deeplake_loader.merging.diff import Columns, Counts, Diff, TableDiff
from deeplake_loader.merging.graph import Graph
from deeplake_loader.merging.images import Images
from deeplake_loader.merging.locking import lock_branches, lock_rows
from deeplake_loader.merging.part import CONFLICT, KEEP, TAKE, Part
from deeplake_loader.merging.replay import Replay
from deeplake_loader.merging.target import Target

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.merging.contents import Contents
    from deeplake_loader.overlays import BranchWriter
    from deeplake_loader.rows import Source
    from deeplake_loader.types import Table

OnConflict = Literal["raise", "ours", "theirs"]
Reason = Literal["changed on both", "unique value taken", "parent missing", "children left"]


@dataclass(frozen=True, slots=True)
class Conflict:
    """One row on which a merge cannot decide.

    ``key``: its primary key (a tuple where that has several columns). ``base``, ``ours`` (the target) and ``theirs``
    (the source): the row's columns by name, None where there is no such row; ``base`` is None, too, when the histories
    crossed and their ancestors disagree. ``reason``: both sides changed the row; or taking theirs would break a unique
    value, lack its parent row, or leave children of the target without theirs.
    """

    table: str
    key: Any
    base: dict[str, Any] | None
    ours: dict[str, Any] | None
    theirs: dict[str, Any] | None
    reason: Reason = "changed on both"


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What a merge did: the id of its commit (None when there was nothing to do, or in a dry run), rows added, changed
    and removed in the target in all and by table, the conflicts that ``on_conflict`` settled (in a dry run: all there
    are), and in a dry run the diff."""

    commit: str | None = None
    added: int = 0
    changed: int = 0
    removed: int = 0
    tables: dict[str, Counts] = field(default_factory=dict)
    conflicts: tuple[Conflict, ...] = ()
    diff: Diff | None = None


class _RolledBack(Exception):
    """Leaves the transaction of a merge that shall leave nothing behind."""


_Offence = tuple[Part, Reason, list[Any]]
"""Rows that would break a constraint: their part, the reason and their keys."""


_ATTEMPTS = 3  # of a merge whose replay a constraint stops


class Merger:
    """Merges and reverts for one store's catalog."""

    def __init__(self, catalog: Catalog, source: Source, contents: Contents, writer: BranchWriter) -> None:
        self._catalog, self._source, self._contents, self._writer = catalog, source, contents, writer
        self._branches = branches_of(catalog)

    def merge(
        self, source: str, into: str, *, on_conflict: OnConflict, dry_run: bool, message: str | None
    ) -> MergeResult:
        """Merge branch ``source`` into branch ``into``: see Database.merge."""
        return self._again(lambda: self._merge(source, into, on_conflict=on_conflict, dry_run=dry_run, message=message))

    def _merge(
        self, source: str, into: str, *, on_conflict: OnConflict, dry_run: bool, message: str | None
    ) -> MergeResult:
        if on_conflict not in ("raise", "ours", "theirs"):
            raise InputError(f"on_conflict is 'raise', 'ours' or 'theirs', got {on_conflict!r}")
        if source == into:
            raise InputError(f"cannot merge branch {source!r} into itself")
        result = MergeResult()
        with suppress(_RolledBack), self._alone(message or f"merge {source!r} into {into!r}") as tx:
            theirs, ours = self._branches.get(source), self._branches.get(into)
            tx.branch = ours.id
            run = _Run(self, ours, theirs, on_conflict, dry_run)
            result = run.merge()
            if dry_run or result.commit is None:
                raise _RolledBack
            run.close()
            result = replace(result, commit=tx.id)
        return result

    def revert(self, to: str | datetime, branch: Branch, *, message: str) -> MergeResult:
        """Give the branch the rows of another point, as a new commit."""
        return self._again(lambda: self._revert(to, branch, message))

    def _revert(self, to: str | datetime, branch: Branch, message: str) -> MergeResult:
        result = MergeResult()
        with suppress(_RolledBack), self._alone(message) as tx:
            tx.branch = branch.id
            run = _Run(self, branch, branch, "theirs", False)
            result = run.revert(to)
            if result.commit is None:
                raise _RolledBack
            run.close()
            result = replace(result, commit=tx.id)
        return result

    def _again(self, work: Callable[[], MergeResult]) -> MergeResult:
        """What ``work`` gives; run again where another transaction came between its look at the target and its
        replay, which a constraint then stops."""
        for _ in range(_ATTEMPTS - 1 if self._catalog.dialect == "postgres" else 0):
            with suppress(ConstraintError):
                return self._catalog.retry(work)
        return self._catalog.retry(work)

    @contextmanager
    def _alone(self, message: str) -> Iterator[Any]:
        """A transaction of its own, without SQLite's foreign keys, whose actions would reach beyond the merge."""
        if self._catalog.in_transaction:
            raise InputError("a merge or revert is a commit of its own; end the open transaction first")
        with self._catalog.without_foreign_keys(), self._catalog.transaction(message) as tx:
            yield tx


class _Run:
    """One merge, inside its transaction."""

    def __init__(self, merger: Merger, ours: Branch, theirs: Branch, on_conflict: OnConflict, dry_run: bool) -> None:
        self._catalog, self._source, self._branches = merger._catalog, merger._source, merger._branches
        self._contents, self._writer = merger._contents, merger._writer
        self._ours, self._theirs, self._on_conflict, self._dry_run = ours, theirs, on_conflict, dry_run
        self._conflicts: list[Conflict] = []
        self._made: list[Images] = []

    def close(self) -> None:
        """Drop the TEMP tables of a run that ends in a commit; a rollback takes them with it."""
        for images in self._made:
            images.close()

    def _images(self, table: Table) -> Images:
        images = Images(self._catalog, table, self._contents)
        self._made.append(images)
        return images

    def merge(self) -> MergeResult:
        lock_branches(self._catalog, self._ours.id, self._theirs.id)
        here, there = self._branches.present(self._ours.id), self._branches.present(self._theirs.id)
        target, source = self._branches.node(here), self._branches.node(there)
        if source in Graph(self._branches.parents()).ancestors(target):
            return MergeResult()
        sets = self._candidates(here, there)
        if self._lock(sets):
            here = self._branches.present(self._ours.id)
            target = self._branches.node(here)
        nodes = Graph(self._branches.parents()), target, source
        parts = [part for found in sets if (part := self._decide(*found, here, there, nodes)) is not None]
        if not parts and target in nodes[0].ancestors(source):
            return MergeResult()  # the source only took in what the target has
        result = self._settle(parts, there if self._theirs.id == MAIN else None)
        if not self._dry_run:
            self._branches.add_node(Point(self._ours.id, self._catalog.number_commit()), target, source)
        return result

    def revert(self, to: str | datetime) -> MergeResult:
        lock_branches(self._catalog, self._ours.id)
        here, there = self._branches.present(self._ours.id), self._branches.resolve(to, branch=self._ours.id)
        sets = self._candidates(here, there)
        if self._lock(sets):
            here = self._branches.present(self._ours.id)
        parts = [part for found in sets if (part := self._take_all(*found, here, there)) is not None]
        return self._settle(parts, None) if parts else MergeResult()

    def _candidates(self, here: Point, there: Point) -> list[tuple[Images, str]]:
        """The keys on which the points can differ, of each table that has such."""
        found = ((images, images.candidates((here, there))) for images in map(self._images, self._tables()))
        return [(images, keys) for images, keys in found if keys is not None]

    def _lock(self, sets: Sequence[tuple[Images, str]]) -> bool:
        """Keep the target's rows as they are, from now on; False where nobody else could change them anyway."""
        if self._catalog.dialect == "sqlite" or self._dry_run:
            return False
        for images, keys in sorted(sets, key=lambda found: found[0].table.name):
            lock_rows(self._catalog, self._ours.id, images, keys)
        return True

    def _tables(self) -> list[Table]:
        return list(self._catalog.tables().values())

    # -- deciding ------------------------------------------------------------------------------------------------------

    def _decide(
        self, images: Images, keys: str, here: Point, there: Point, nodes: tuple[Graph, int, int]
    ) -> Part | None:
        compared = self._compare(images, keys, here, there)
        if compared is None:
            return None
        (ours, theirs, differing), (graph, target, source) = compared, nodes
        known = {target: ours, source: theirs}

        def read(node: int) -> str:
            if node not in known:
                known[node] = images.read(self._branches.point_of(node), differing)
            return known[node]

        base = graph.virtual_base(target, source, read, images.merge)
        choices = images.create(("choice INTEGER NOT NULL",))
        self._catalog.execute(
            f"INSERT INTO {choices} ({images.key}, choice) SELECT {images.keys_of('d')}, "
            f"CASE WHEN {images.same('t', 'b')} THEN {KEEP} "
            f"WHEN {images.same('o', 'b')} THEN {TAKE} ELSE {CONFLICT} END FROM {differing} d "
            f"{images.join('d', ours, 'o')} {images.join('d', theirs, 't')} {images.join('d', base, 'b')}"
        )
        return Part(images, ours, theirs, base, choices)

    def _take_all(self, images: Images, keys: str, here: Point, to: Point) -> Part | None:
        compared = self._compare(images, keys, here, to)
        if compared is None:
            return None
        ours, theirs, differing = compared
        choices = images.create(("choice INTEGER NOT NULL",))
        every = f"SELECT {images.key}, {TAKE} FROM {differing}"
        self._catalog.execute(f"INSERT INTO {choices} ({images.key}, choice) {every}")
        return Part(images, ours, theirs, ours, choices)

    def _compare(self, images: Images, keys: str, here: Point, there: Point) -> tuple[str, str, str] | None:
        """The images of both points and the keys on which they differ; None where they are equal."""
        ours, theirs = images.read(here, keys), images.read(there, keys)
        differing = self._differing(images, ours, theirs)
        return None if differing is None else (ours, theirs, differing)

    def _differing(self, images: Images, ours: str, theirs: str) -> str | None:
        differing = images.create()
        self._catalog.execute(
            f"INSERT INTO {differing} ({images.key}) SELECT {images.keys_of('o')} FROM {ours} o "
            f"{images.join('o', theirs, 't')} WHERE NOT ({images.same('o', 't')})"
        )
        return differing if self._catalog.fetchone(f"SELECT 1 FROM {differing} LIMIT 1") else None

    # -- settling ------------------------------------------------------------------------------------------------------

    def _settle(self, parts: Sequence[Part], moved_to: Point | None) -> MergeResult:
        """Settle conflicts as asked, replay, and say what was done."""
        for part in parts:
            self._conflicts += self._list(part, f"v.choice = {CONFLICT}", "changed on both")
            choice = TAKE if self._on_conflict == "theirs" else KEEP
            self._catalog.execute(f"UPDATE {part.choices} SET choice = {choice} WHERE choice = {CONFLICT}")
        if self._on_conflict == "raise" and not self._dry_run:
            self._raise_conflicts()
        self._make_lawful(parts)
        if not self._dry_run:
            Replay(self._catalog, self._writer, self._ours, moved_to).write(parts)
        counts = {part.name: found for part in parts if (found := self._count(part)) != Counts()}
        total = sum(counts.values(), Counts())
        diff = Diff([self._diff(part) for part in parts]) if self._dry_run else None
        commit = None if self._dry_run else ""
        return MergeResult(commit, total.added, total.changed, total.removed, counts, tuple(self._conflicts), diff)

    # -- constraints ---------------------------------------------------------------------------------------------------

    def _make_lawful(self, parts: Sequence[Part]) -> None:
        """Rows that would break a constraint are conflicts, which only "ours" (and a dry run) can settle; without them
        others may break one, so it is asked again."""
        target = Target(self._catalog, self._ours.id, self._images)
        while found := self._clashes(parts, target) or self._offences(parts, target):
            for part, reason, keys in found:
                self._refuse(part, reason, keys)
            if self._on_conflict != "ours" and not self._dry_run:
                self._raise_conflicts()

    def _clashes(self, parts: Sequence[Part], target: Target) -> list[_Offence]:
        found = ((part, list(integrity.unique_clashes(self._catalog, part, target))) for part in parts)
        return [(part, "unique value taken", keys) for part, keys in found if keys]

    def _offences(self, parts: Sequence[Part], target: Target) -> list[_Offence]:
        by_name = {part.name: part for part in parts}
        found: list[_Offence] = []
        for foreign in foreign_keys(self._catalog, [table.name for table in self._tables()]):
            if foreign.table in by_name:
                keys = integrity.orphans(self._catalog, by_name, foreign, target)
                found.append((by_name[foreign.table], "parent missing", keys))
            if foreign.parent in by_name:
                keys = integrity.widowed(self._catalog, by_name, foreign, target)
                found.append((by_name[foreign.parent], "children left", keys))
        return [offence for offence in found if offence[2]]

    def _refuse(self, part: Part, reason: Reason, keys: list[Any]) -> None:
        images = part.images
        chosen = images.create()
        places = ", ".join("?" * len(images.shape.key))
        sql = f"INSERT INTO {chosen} ({images.key}) VALUES ({places}) ON CONFLICT DO NOTHING"
        self._catalog.executemany(sql, keys)
        self._conflicts += self._list(part, f"v.choice = {TAKE} AND {images.contains('v', chosen)}", reason)
        self._catalog.execute(f"UPDATE {part.choices} SET choice = {KEEP} WHERE {images.contains('', chosen)}")

    # -- conflicts -----------------------------------------------------------------------------------------------------

    def _list(self, part: Part, where: str, reason: Reason) -> list[Conflict]:
        images, columns, width = part.images, self._columns(part.images), len(part.images.shape.columns)
        sides = ("b", "o", "t")
        records = self._catalog.fetchall(
            f"SELECT {', '.join(f'{s}._dl_state' for s in sides)}, {', '.join(map(images.columns, sides))} "
            f"FROM {part.choices} v {images.join('v', part.base, 'b')} {images.join('v', part.ours, 'o')} "
            f"{images.join('v', part.theirs, 't')} WHERE {where} ORDER BY {images.order('v')}"
        )
        rows = [columns.rows([r[3 + i * width : 3 + (i + 1) * width] for r in records]) for i in range(3)]
        found = []
        for record, *images_of_row in zip(records, *rows, strict=True):
            base, ours, theirs = (
                row._asdict() if state == PRESENT else None for state, row in zip(record, images_of_row, strict=False)
            )
            found.append(Conflict(images.table.name, columns.key(images_of_row[1]), base, ours, theirs, reason))
        return found

    def _raise_conflicts(self) -> None:
        if not self._conflicts:
            return
        shown = ", ".join(f"{c.table} {c.key!r} ({c.reason})" for c in self._conflicts[:3])
        more = f" and {len(self._conflicts) - 3} more" if len(self._conflicts) > 3 else ""
        raise ConflictError(
            f"cannot merge {self._theirs.name!r} into {self._ours.name!r}, {len(self._conflicts)} rows are in "
            f"conflict: {shown}{more}; nothing was changed. See the error's conflicts, or pass on_conflict='ours' or "
            "'theirs'",
            conflicts=tuple(self._conflicts),
        )

    # -- results -------------------------------------------------------------------------------------------------------

    def _columns(self, images: Images) -> Columns:
        return Columns(images, self._source)

    def _count(self, part: Part) -> Counts:
        images = part.images
        rows = self._catalog.fetchall(
            f"SELECT o._dl_state, t._dl_state, count(*) FROM {part.choices} v {images.join('v', part.ours, 'o')} "
            f"{images.join('v', part.theirs, 't')} WHERE v.choice = {TAKE} GROUP BY 1, 2"
        )
        found = {(ours == PRESENT, theirs == PRESENT): count for ours, theirs, count in rows}
        return Counts(found.get((False, True), 0), found.get((True, True), 0), found.get((True, False), 0))

    def _diff(self, part: Part) -> TableDiff:
        taken = part.images.chosen(part.choices, f"choice = {TAKE}")
        return TableDiff(self._columns(part.images), part.images.pairs(part.ours, part.theirs, taken))
