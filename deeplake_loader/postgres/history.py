"""The history of a PostgreSQL catalog: points are snapshots, and the database itself writes the SELECTs of the past.

A commit's number names a state (see `triggers`): numbers follow what is seen, a state that sees another one has the
greater number, but of two transactions that ran side by side neither state holds the other's changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from deeplake_loader.branches import (
    HISTORY_FROM,
    MAIN,
    Branch,
    Branches,
    Point,
    State,
    log_name,
    overlay_name,
    shadow_name,
)
from deeplake_loader.errors import ConstraintError, InputError, NotFoundError
from deeplake_loader.history import Query, Shape, StoredColumn, Term
from deeplake_loader.postgres.names import bookkeeping_schema, physical
from deeplake_loader.types import RESERVED_PREFIX, quote_identifier, quote_identifiers

if TYPE_CHECKING:
    from deeplake_loader.postgres.catalog import PostgresCatalog

_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod), pg_get_expr(d.adbin, d.adrelid),
  coalesce(array_position(_dl_key(a.attrelid::regclass), a.attname::text), 0),
  CASE WHEN a.attcollation IN (0, t.typcollation) THEN 'BINARY' ELSE quote_ident(c.collname) END
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_collation c ON c.oid = a.attcollation
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = to_regclass(?) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum
"""
_UNIQUES = """
SELECT array_agg(CASE WHEN i.indkey[n - 1] = 0 THEN NULL ELSE a.attname::text END ORDER BY n),
  array_agg(pg_get_indexdef(i.indexrelid, n, true) ORDER BY n)
FROM pg_index i CROSS JOIN LATERAL generate_series(1, i.indnkeyatts) n
LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[n - 1]
WHERE i.indrelid = to_regclass(?) AND i.indisunique GROUP BY i.indexrelid, i.indisprimary
ORDER BY i.indisprimary DESC, i.indexrelid
"""
_STATE = "SELECT snapshot, xid::text, step FROM _dl_commits WHERE seq = ?"
_BRANCH = (
    "SELECT b.name, b.head, (SELECT n.seq FROM _dl_nodes n WHERE n.branch = b.id ORDER BY n.seq, n.id LIMIT 1), "
    "(SELECT value FROM _dl_meta WHERE key = ?) FROM _dl_branches b WHERE b.id = ?"
)
_MAX_STATES = 10_000  # a state takes some 300 bytes
_NOW = "SELECT pg_current_snapshot()::text, coalesce(pg_current_xact_id_if_assigned()::text, '0'), _dl_step()"


class PostgresHistory:
    """See `history.History`."""

    def __init__(self, catalog: PostgresCatalog) -> None:
        self._catalog = catalog
        self.branches: PostgresBranches = PostgresBranches(catalog)
        self._shapes: dict[tuple[str, int], Shape] = {}

    # -- tables ----------------------------------------------------------------------------------------------------

    def real(self, name: str) -> str:
        main = self._catalog.address.schema
        schema = bookkeeping_schema(main) if name.startswith(RESERVED_PREFIX) else main
        return f"{quote_identifier(schema)}.{quote_identifier(physical(name))}"

    def shape(self, table: str) -> Shape:
        key = table, self._catalog.schema_version()
        found = self._shapes.get(key)
        if found is None:
            found = self._read_shape(table)
            if not self._catalog.in_transaction:  # a rolled-back number comes back for another schema
                self._shapes[key] = found
        return found

    def _read_shape(self, table: str) -> Shape:
        real = self.real(table)
        columns = tuple(StoredColumn(*row) for row in self._catalog.fetchall(_COLUMNS, (real,)))
        uniques = tuple(
            tuple(Term(n, quote_identifier(n) if n else f"({e})", "BINARY") for n, e in zip(names, texts, strict=True))
            for names, texts in self._catalog.fetchall(_UNIQUES, (real,))
        )
        return Shape(table, columns, uniques)

    def install(self, table: str) -> None:
        try:
            self._catalog.fetchone("SELECT _dl_follow(?, ?, 1)", (self._catalog.address.schema, table))
            log = self.real(f"{RESERVED_PREFIX}log_{table}")
            self._catalog.execute(f"REVOKE EXECUTE ON FUNCTION {log}() FROM PUBLIC")
        except ConstraintError as error:
            raise InputError(str(error)) from error
        for branch in self._live():
            self._catalog.fetchone("SELECT _dl_show(?, ?)", (branch, table))

    def rebuild(self, table: str) -> None:
        self.aside(table)
        self._catalog.fetchone("SELECT _dl_follow(?, ?, 1)", (self._catalog.address.schema, table))
        live = self._live()
        for branch in self.holders(table):
            self._remake(branch, table)
            if branch in live:
                self._catalog.fetchone("SELECT _dl_watch(?, ?)", (branch, table))
            else:
                schema, own = bookkeeping_schema(self._catalog.address.schema), overlay_name(branch, table)
                self._catalog.fetchone("SELECT _dl_follow(?, ?, ?)", (schema, own, branch))
        for branch in live:
            self._catalog.fetchone("SELECT _dl_show(?, ?)", (branch, table))
            self._refuse_duplicates(table, branch)

    def _remake(self, branch: int, table: str) -> None:
        name = self.branches.by_id(branch).name
        try:
            self._catalog.fetchone("SELECT _dl_remake(?, ?)", (branch, table))
        except ConstraintError as error:
            raise self._broken(name, table, str(error)) from error

    @staticmethod
    def _broken(branch: str, table: str, why: str) -> ConstraintError:
        return ConstraintError(
            f"rows of {table!r} on branch {branch!r} do not allow it ({why}); change them there, or delete the branch",
            constraint="UNIQUE",
            table=table,
        )

    def _refuse_duplicates(self, table: str, branch: int) -> None:
        """A unique index holds on every branch or is not made."""
        if table not in self.branches.overlays(branch):
            return
        view = self.real(f"{RESERVED_PREFIX}v{branch}_{table}")
        for terms in self.shape(table).uniques[1:]:
            listed = ", ".join(t.expression for t in terms)
            given = " AND ".join(f"({t.expression}) IS NOT NULL" for t in terms)
            query = f"SELECT 1 FROM {view} WHERE {given} GROUP BY {listed} HAVING count(*) > 1 LIMIT 1"
            if self._catalog.fetchone(query):
                raise self._broken(self.branches.by_id(branch).name, table, f"equal values of {listed}")

    def aside(self, table: str) -> None:
        """Take a table's views away, which a change of its columns would break; `rebuild` makes them anew."""
        for branch in self._live():
            self._catalog.fetchone("SELECT _dl_hide(?, ?)", (branch, table))
        for branch in self.holders(table):
            view = self.real(f"{RESERVED_PREFIX}f{branch}_{table}")
            self._catalog.execute(f"DROP VIEW IF EXISTS {view}")

    def rename_column(self, table: str, old: str, new: str) -> None:
        names = f"{quote_identifier(old)} TO {quote_identifier(new)}"
        reals = [log_name(table)]
        for branch in self.holders(table):
            reals += [overlay_name(branch, table), log_name(overlay_name(branch, table))]
            if old in self.shape(shadow_name(branch, table)).key:
                reals.append(shadow_name(branch, table))
        for name in reals:
            self._catalog.execute(f"ALTER TABLE {self.real(name)} RENAME COLUMN {names}")

    def drop(self, table: str) -> None:
        self.aside(table)
        for branch in self.holders(table):
            self._catalog.fetchone("SELECT _dl_close(?, ?)", (branch, table))
        self._catalog.fetchone("SELECT _dl_unfollow(?)", (table,))

    def holders(self, table: str) -> list[int]:
        """Every branch with an overlay of the table, deleted ones whose rows are kept included."""
        rows = self._catalog.fetchall("SELECT branch FROM _dl_overlays WHERE table_name = ? ORDER BY branch", (table,))
        return [branch for (branch,) in rows]

    def refuse_loss(self, table: str, condition: str, what: str, deed: str) -> None:
        """InputError where a branch or a tag has rows that meet a condition."""
        points = [("branch", b.name, self.branches.present(b.id)) for b in self.branches.all() if b.id != MAIN]
        points += [("tag", tag.name, self.branches.resolve(tag.name)) for tag in self.branches.tags()]
        for kind, name, point in points:
            rows, params = self.select(table, point)
            if self._catalog.fetchone(f"SELECT 1 FROM ({rows}) r WHERE {condition} LIMIT 1", params):
                remedy = "delete the branch" if kind == "branch" else "untag it"
                raise InputError(f"{kind} {name!r} still holds {what}: {remedy} first, then {deed}")

    def _live(self) -> list[int]:
        return [branch.id for branch in self.branches.all() if branch.id != MAIN]

    # -- rows at a point -------------------------------------------------------------------------------------------

    def select(self, table: str, point: Point) -> Query:
        base, _ = self.base(table, point)
        if point.branch == MAIN or table not in self.branches.overlays(point.branch):
            return base, ()
        return f"{base} UNION ALL {self.own(table, point)[0]}", ()

    def base(self, table: str, point: Point) -> Query:
        state = self.branches.state(point)
        fork = self.branches.fork_state(point)
        values = (table, point.branch, *_values(fork), *_values(state))
        text = self._catalog.fetchone("SELECT _dl_main_part(?, ?, ?, ?, ?, false, ?, ?, ?)", values)[0]
        return text, ()

    def own(self, table: str, point: Point) -> Query:
        schema = bookkeeping_schema(self._catalog.address.schema)
        values = (table, schema, overlay_name(point.branch, table), *_values(self.branches.state(point)))
        return self._catalog.fetchone("SELECT _dl_asof(?, ?, ?, ?, ?, ?, false, NULL)", values)[0], ()

    def whole(self, table: str, point: Point) -> str:
        """A SELECT of all columns at a point, generated ones too, as SELECT * gives them."""
        state, fork = self.branches.state(point), self.branches.fork_state(point)
        values = (table, point.branch, *_values(fork), *_values(state))
        text = str(self._catalog.fetchone("SELECT _dl_main_part(?, ?, ?, ?, ?, true, ?, ?, ?)", values)[0])
        if point.branch == MAIN or table not in self.branches.overlays(point.branch):
            return text
        own = (table, bookkeeping_schema(self._catalog.address.schema), overlay_name(point.branch, table))
        found = self._catalog.fetchone("SELECT _dl_asof(?, ?, ?, ?, ?, ?, true, NULL)", (*own, *_values(state)))
        return f"{text} UNION ALL {found[0]}"

    def held(self, point: Point, row: str) -> str:
        """That a log's or a shadow's row belongs to a point."""
        return seen(self.branches.state(point), row)

    def candidate_keys(self, table: str, points: Sequence[Point]) -> Query:
        key = quote_identifiers(self.shape(table).key)
        forks = list(dict.fromkeys(map(self.branches.fork_state, points)))
        parts = [between(f"SELECT {key} FROM {self.real(log_name(table))} l", forks)] if len(forks) > 1 else []
        alone = len({p.branch for p in points}) == 1 and len(forks) == 1
        for branch in sorted({p.branch for p in points} - {MAIN}):
            if table not in self.branches.overlays(branch):
                continue
            own, shadow = overlay_name(branch, table), self.real(shadow_name(branch, table))
            texts = [f"SELECT {key} FROM {self.real(name)} l" for name in (log_name(own), shadow_name(branch, table))]
            if alone:
                states = list(dict.fromkeys(map(self.branches.state, points)))
                parts += [between(text, states) for text in texts] if len(states) > 1 else []
            else:
                parts += [*texts, f"SELECT {key} FROM {self.real(own)}", f"SELECT {key} FROM {shadow}"]
        return " UNION ALL ".join(parts) or f"SELECT {key} FROM {self.real(table)} WHERE false", ()

    def around(self, branch: int, seq: int) -> tuple[Point, Point]:
        after = self.branches.state(Point(branch, seq))
        return Point(branch, seq - 1, replace(after, step=after.step - 1)), Point(branch, seq, after)


class PostgresBranches(Branches):
    """Branches, tags and nodes where a commit's number names a snapshot."""

    _catalog: PostgresCatalog

    def __init__(self, catalog: PostgresCatalog) -> None:
        super().__init__(catalog)
        self._states: dict[int, State] = {}

    # -- states ----------------------------------------------------------------------------------------------------

    def state(self, point: Point) -> State:
        """What the point's changes are told by; of a number that no commit has yet: everything so far."""
        known = point.state or self._states.get(point.seq)
        if known is not None:
            return known
        row = self._catalog.fetchone(_STATE, (point.seq,))
        if row is None:
            return State(*self._catalog.fetchone(_NOW))
        if len(self._states) >= _MAX_STATES:
            self._states.clear()
        # numbers come from a sequence, so one that was rolled back never comes back for another state
        return self._states.setdefault(point.seq, State(*row))

    def fork_state(self, point: Point) -> State:
        """The state of main on which the branch stood at a point; for main itself the point's."""
        if point.branch == MAIN:
            return self.state(point)
        return self.state(Point(MAIN, self._fork(point)))

    def fork_at(self, branch: int, seq: int) -> int:
        return seq if branch == MAIN else self._fork(Point(branch, seq))

    def _fork(self, point: Point) -> int:
        state = self.state(point)
        query = f"SELECT main_seq FROM _dl_forks c WHERE branch = ? AND (seq = 0 OR {_HELD}) ORDER BY seq DESC LIMIT 1"
        row = self._catalog.fetchone(query, (point.branch, *_held(state)))
        if row is None:
            raise NotFoundError(f"branch number {point.branch} was not there at commit {point.seq}")
        return int(row[0])

    def now(self, branch: int) -> Point:
        return Point(branch, self._catalog.head(), State(*self._catalog.fetchone(_NOW)))

    def reaches(self, point: Point) -> bool:
        oldest = int(self._catalog.meta(HISTORY_FROM) or 0)
        return not oldest or self._reaches(point, oldest)

    def _reaches(self, point: Point, oldest: int) -> bool:
        return self._holds(Point(MAIN, 0, self.fork_state(point)), oldest)

    def present(self, branch: int) -> Point:
        if not self._catalog.in_transaction:
            return self.now(branch)
        # what this transaction has changed on the branch becomes a commit; else the state only gets a number
        return Point(branch, self._catalog.seal(branch if self._has_own_changes(branch) else 0))

    def _has_own_changes(self, branch: int) -> bool:
        # in the order of the index: without statistics yet, the planner would read a million rows for the first
        own = (
            "_dl_xid >= pg_current_xact_id_if_assigned() AND _dl_xid::text = pg_current_xact_id_if_assigned()::text "
            "AND _dl_step = _dl_step() ORDER BY _dl_xid LIMIT 1"
        )
        if not self._catalog.fetchone("SELECT pg_current_xact_id_if_assigned() IS NOT NULL")[0]:
            return False
        real = self._catalog.history.real
        return self._any(f"SELECT 1 FROM {real(log)} WHERE {own}" for log in self.logs(branch))

    def _any(self, selects: Iterable[str]) -> bool:
        """Whether one of some SELECTs of 1, whose values are our own numbers, gives a row."""
        text = " OR ".join(f"({select}) = 1" for select in selects)  # EXISTS would forget the order
        return bool(text) and self._catalog.fetchone(f"SELECT coalesce({text}, false)")[0] is True

    def _kept(self, point: Point) -> Point:
        name, head, first, kept_from = self._catalog.fetchone(_BRANCH, (HISTORY_FROM, point.branch))
        if not self._holds(point, first):
            raise NotFoundError(f"branch {name!r} was not there at commit {point.seq}")
        if kept_from is not None and not self._reaches(point, int(kept_from)):
            raise NotFoundError(
                f"commit {point.seq} is older than the history that is kept, which begins at {kept_from}"
            )
        if head == 0:
            raise NotFoundError(f"branch {name!r} was deleted, and optimize has forgotten its rows")
        return point

    def _holds(self, point: Point, seq: int) -> bool:
        """Whether the point's state holds the changes of a commit."""
        query = f"SELECT {_HELD} FROM _dl_commits c WHERE c.seq = ?"
        row = self._catalog.fetchone(query, (*_held(self.state(point)), seq))
        return row is None or bool(row[0])

    # -- nodes -----------------------------------------------------------------------------------------------------

    def node(self, at: Point) -> int:
        query = (
            "SELECT n.id, n.seq FROM _dl_nodes n JOIN _dl_commits c ON c.seq = n.seq "
            f"WHERE n.branch = ? AND {_HELD} ORDER BY n.seq DESC, n.id DESC LIMIT 1"
        )
        found = self._catalog.fetchone(query, (at.branch, *_held(self.state(at)))) or self._first(at.branch)
        before, seq = int(found[0]), int(found[1])
        return self.add_node(at, before) if self._changed(at.branch, seq, at.seq) else before

    def _changed(self, branch: int, since: int, until: int) -> bool:
        """Whether the states of two commits differ on a branch."""
        states = [self.state(Point(branch, seq)) for seq in (since, until)]
        if states[0] == states[1]:
            return False
        if branch != MAIN and self._fork(Point(branch, since)) != self._fork(Point(branch, until)):
            return True
        names = [*self.logs(branch), *(shadow_name(branch, t) for t in self.overlays(branch) if branch != MAIN)]
        real = self._catalog.history.real
        return self._any(
            between(f"SELECT 1 FROM {real(name)} l", states) + " ORDER BY l._dl_xid LIMIT 1" for name in names
        )

    # -- making and removing ---------------------------------------------------------------------------------------

    def create(self, name: str, at: Point) -> Branch:
        self._check_free(name, "branch")
        parent = self.node(at)
        fork = at.seq if at.branch == MAIN else self._fork(at)
        values = (name, self._catalog.now(), self._catalog.seal(0), parent, fork)
        try:
            return Branch(*self._catalog.fetchone("SELECT * FROM _dl_begin(?, ?, ?, ?, ?)", values))
        except ConstraintError as error:  # another process was first
            raise InputError(f"there is a branch {name!r} already; choose another name") from error

    def place(self, branch: int) -> str:
        """The schema of a branch's views."""
        row = self._catalog.fetchone("SELECT place FROM _dl_branches WHERE id = ? AND deleted_at IS NULL", (branch,))
        if row is None:
            raise NotFoundError(f"the branch {self.by_id(branch).name.rpartition('~')[0]!r} was deleted")
        return str(row[0])


_HELD = "CASE WHEN c.xid = ?::xid8 THEN c.step <= ? ELSE pg_visible_in_snapshot(c.xid, ?::pg_snapshot) END"
"""That row ``c`` belongs to a state; a snapshot leaves its own transaction out of those in progress, so it would pass
for a finished one."""


def _values(state: State) -> tuple[str, str, int]:
    return state.snapshot, state.xid, state.step


def _held(state: State) -> tuple[str, int, str]:
    """The values of `_HELD`."""
    return state.xid, state.step, state.snapshot


def seen(state: State, row: str) -> str:
    """That a log's or a shadow's row belongs to a state; the state's parts are our own numbers."""
    return (
        f"CASE WHEN {row}._dl_xid = '{state.xid}'::xid8 THEN {row}._dl_step <= {state.step:d} "
        f"ELSE pg_visible_in_snapshot({row}._dl_xid, '{state.snapshot}'::pg_snapshot) END"
    )


def between(select: str, states: Sequence[State]) -> str:
    """The rows ``l`` of a SELECT without a WHERE that some of the states hold and others do not."""
    first = min(int(state.snapshot.partition(":")[0]) for state in states)
    held = [f"({seen(state, 'l')})" for state in states]
    return f"{select} WHERE l._dl_xid >= '{first}'::xid8 AND ({' OR '.join(held)}) AND NOT ({' AND '.join(held)})"
