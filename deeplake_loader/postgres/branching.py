"""Which branch or point a handle shows, and its writes there.

A branch is shown by the search path: its schema of views comes before main's. A point of history is shown by TEMP views
of the tables' names, which come before everything and last as long as the transaction that reads them. Writes of this
package go to the overlay itself, so that upserts, row counts and constraints are the database's own:

    UPDATE t SET ... WHERE w      main's rows among SELECT key FROM t WHERE w are taken over;
                                  then UPDATE <overlay> AS t SET ... WHERE w

What cannot be put so (MERGE, changes inside WITH, volatile conditions) runs on the view as psql would run it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from deeplake_loader.branches import MAIN, Branch, Point, overlay_name, shadow_name
from deeplake_loader.errors import LockedError, NotFoundError, UnsupportedSQLError
from deeplake_loader.overlays import BranchWriter
from deeplake_loader.postgres.names import physical
from deeplake_loader.references import References
from deeplake_loader.sql.reader import read
from deeplake_loader.types import RESERVED_PREFIX, quote_identifier, quote_identifiers
from deeplake_loader.views import Views

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deeplake_loader.postgres import rewriting
    from deeplake_loader.postgres.catalog import PostgresCatalog
    from deeplake_loader.postgres.history import PostgresHistory
    from deeplake_loader.sql.plan import Plan

_GIVEN = f"{RESERVED_PREFIX}given"


_SAME_CONSTRAINT = """
SELECT quote_ident(o.conname) FROM pg_constraint m JOIN pg_constraint o ON o.contype = m.contype
  AND o.conrelid = to_regclass(?) AND _dl_names(o.conrelid, o.conkey) = _dl_names(m.conrelid, m.conkey)
WHERE m.conrelid = to_regclass(?) AND m.conname = ?
"""
RunMany = Callable[[str, Sequence[Sequence[Any]]], object]
"""Runs a statement of text with ``$1``, ``$2`` for each row of values."""


class PostgresViews(Views):
    """What one handle shows, by other means than the TEMP tables of `views.Views`, of which nothing is used here."""

    _catalog: PostgresCatalog

    def __init__(self, catalog: PostgresCatalog, history: PostgresHistory) -> None:
        self._catalog, self._history = catalog, history
        self.branch, self.fixed = MAIN, False
        self._seq = 0
        self._past: Point | None = None
        self._texts: dict[str, str] = {}
        self._made: tuple[int, int, set[str]] = (-1, -1, set())  # the schema's number, the block's, the views there
        self._committed = self.point
        catalog.participants.append(self)

    @property
    def on_main(self) -> bool:
        """Whether the tables themselves are what is shown."""
        return self.branch == MAIN and not self.fixed

    @property
    def point(self) -> tuple[int, bool, int]:
        """What is shown: the branch, whether as of a fixed commit, and which."""
        return self.branch, self.fixed, self._seq

    def show(self, branch: int) -> None:
        """Show a branch as it is from now on."""
        self._go(branch)
        if not self._catalog.in_transaction:
            self._committed = self.point

    def _go(self, branch: int) -> None:
        query = "SELECT place FROM _dl_branches WHERE id = ?"  # of a deleted one, too: `refresh` says so
        path = () if branch == MAIN else self._catalog.fetchone(query, (branch,))
        self.branch = self._catalog.branch = branch
        self._catalog.set_path(*path)

    def show_point(self, point: Point) -> None:
        """Show a point of history, which never changes, on a handle that shows nothing else from now on."""
        self.branch, self.fixed, self._seq = point.branch, True, point.seq
        self._catalog.branch = point.branch
        self._committed, self._past = self.point, point
        self._catalog.make_views_while_reading()

    def _make_views_of_point(self, tables: set[str]) -> None:
        """TEMP views in the block that reads them, with which they go: one that stayed would keep everybody else from
        dropping a column of its table."""
        version = self._catalog.schema_version(), self._catalog.block
        if version[0] != self._made[0]:
            self._texts.clear()
        made = self._made[2] if version == self._made[:2] else set[str]()
        for table in self._catalog.tables().values():
            if table.name in made or (tables and table.name not in tables):
                continue
            if table.name not in self._texts and self._past is not None:
                self._texts[table.name] = self._history.whole(table.name, self._past)
            self._catalog.execute(f"CREATE TEMP VIEW {quote_identifier(table.name)} AS {self._texts[table.name]}")
            made.add(table.name)
        self._made = *version, made

    @contextmanager
    def showing(self, branch: int) -> Iterator[None]:
        """Show a branch for the length of a block."""
        before = self.branch
        if before == branch and not self.fixed:
            yield
            return
        self._go(branch)
        try:
            yield
        finally:
            self._go(before)

    def refresh(self, tables: Iterable[str]) -> None:
        """Make sure that the branch's views are where this handle looks for them: inside the block that reads them,
        until whose end nobody renames or deletes the branch."""
        if self.fixed:
            self._make_views_of_point(set(tables))
            return
        if self.branch == MAIN:
            return
        row = self._catalog.fetchone(
            "SELECT b.place, b.deleted_at IS NULL, to_regnamespace(quote_ident(b.place)) IS NOT NULL, b.name "
            "FROM pg_advisory_xact_lock_shared(?, ?) l, _dl_branches b WHERE b.id = ?",
            (*lock_of(self._catalog), self.branch),
        )
        if not row[1]:
            raise NotFoundError(f"the branch {row[3].rpartition('~')[0]!r} was deleted; check another one out")
        if not row[2]:
            raise LockedError(f"the branch {row[3]!r} was renamed just now; run the statement again")
        if self._catalog.path != (row[0],):
            self._catalog.set_path(row[0])

    def has_overlay(self, table: str) -> bool:
        """Whether the branch has rows of its own."""
        return self.branch != MAIN and table in self._history.branches.overlays(self.branch)

    def in_parts(self, _table: str) -> bool:
        """PostgreSQL's planner reads the parts of a view itself."""
        return False

    def clear(self) -> None:
        """The views are the database's, and follow every change of a table with it."""

    # -- taking part in transactions -------------------------------------------------------------------------------

    def savepoint(self) -> tuple[int, bool, int]:
        return self.point

    def rollback_to(self, token: object) -> None:
        if isinstance(token, tuple) and not self.fixed:
            self._go(token[0])

    def committed(self) -> None:
        self._committed = self.point

    def rolled_back(self) -> None:
        if self.point != self._committed:
            self._go(self._committed[0])

    def forked(self) -> None:
        """The child's own connection gets the same search path."""


def lock_of(catalog: PostgresCatalog) -> tuple[int, int]:
    """The advisory lock that a branch's readers share and that a rename or a deletion has alone."""
    return catalog.branch, 7_340_033


class PostgresBranchWriter(BranchWriter):
    """Writes on the branch that a handle shows; main needs no preparation."""

    _catalog: PostgresCatalog

    def __init__(self, catalog: PostgresCatalog, views: PostgresViews, history: PostgresHistory) -> None:
        self._catalog, self._views, self._history = catalog, views, history

    def target(self, table: str) -> str:
        """The real table that a statement on ``table`` writes, as SQL names it."""
        return self._history.real(table if self._views.on_main else overlay_name(self._views.branch, table))

    def ensure(self, branch: int, table: str) -> str:
        """The branch's overlay of a table, made if this is its first write there; main's is the table itself."""
        if branch == MAIN:
            return table
        self._catalog.fetchone("SELECT _dl_open(?, ?)", (branch, table))
        return physical(overlay_name(branch, table))

    def copy_up(
        self, branch: int, table: str, keys_sql: str, params: Sequence[Any] = (), *, user_sql: str | None = None
    ) -> None:
        """Take over main's rows among the keys that a query gives, with ``?`` for its values (`ensure` ran before)."""
        self._catalog.execute(self._taking(branch, table, keys_sql), params, user_sql=user_sql)

    def _taking(self, branch: int, table: str, keys_sql: str) -> str:
        """One statement that takes over the keys of a SELECT; what it brings needs no looking after.

        The keys come as an array, which reaches the indexes below the view: a join would read the whole table.
        """
        shape, real = self._history.shape(table), self._history.real
        names = [quote_identifier(k) for k in shape.key]
        key, first = ", ".join(names), names[0]
        free = real(f"{RESERVED_PREFIX}f{branch}_{table}")
        chosen = taken = ""
        if len(names) > 1:
            same = (" AND ".join(f"f.{k} = {other}.{k}" for k in names) for other in ("w", "k"))
            chosen, taken = (
                f" AND EXISTS (SELECT 1 FROM {o} WHERE {s})" for o, s in zip(("w", "k"), same, strict=True)
            )
        return (
            f"WITH q AS MATERIALIZED (SELECT set_config('deeplake.copying', '1', true)), "
            f"w ({key}) AS MATERIALIZED ({keys_sql}), k AS (INSERT INTO {real(shadow_name(branch, table))} ({key}) "
            f"SELECT {key} FROM {free} f WHERE (SELECT count(*) FROM q) = 1 "
            f"AND f.{first} = ANY (ARRAY(SELECT {first} FROM w)){chosen} ON CONFLICT DO NOTHING RETURNING {key}) "
            f"INSERT INTO {real(overlay_name(branch, table))} ({shape.names}) SELECT {shape.names_of('f')} "
            f"FROM {free} f WHERE f.{first} = ANY (ARRAY(SELECT {first} FROM k)){taken}"
        )

    # -- statements ------------------------------------------------------------------------------------------------

    def prepare(self, plan: Plan, text: str, values: Sequence[Any], run: Callable[[str, Sequence[Any]], Any]) -> str:
        """The text of a change with ``$1``, ``$2`` as it is to be run on the branch, whose overlay is ready for it.

        Args:
            run: runs a statement of such text with its values.
        """
        if plan.kind == "other" and not self._views.on_main and read(text).tokens[0].text == "truncate":
            raise UnsupportedSQLError(
                f"TRUNCATE empties tables of main and cannot be told a branch; on one write DELETE FROM {plan.target}"
            )
        found = self._change(plan, text)
        if found is None:
            return text
        self._take_chosen(plan, found, [values], lambda text, rows: run(text, rows[0]))
        return self._on_overlay(plan, found)

    def prepare_many(self, plan: Plan, rows: Sequence[Sequence[Any]], run: RunMany) -> str | None:
        """As `prepare`, of a change that is run for many rows of values; None where each needs its own preparation,
        because what one changed may decide which rows the next one chooses.

        Args:
            run: runs a statement of such text for rows of values, in one go.
        """
        found = self._change(plan, plan.sql)
        if found is None:
            return plan.sql
        if found.looks_elsewhere():
            return None
        self._take_chosen(plan, found, rows, run)
        return self._on_overlay(plan, found)

    def _change(self, plan: Plan, text: str) -> rewriting.Change | None:
        """The statement taken apart and the overlay ready for it; None where it is to be run as it is."""
        table = self._catalog.table(plan.target or "")
        if self._views.on_main or table is None or plan.kind not in ("insert", "update", "delete"):
            return None
        from deeplake_loader.postgres import rewriting  # which knows the compiler's functions

        found = rewriting.change_of(text, table.name)
        if found is not None:
            self.ensure(self._views.branch, table.name)
        return found

    def _on_overlay(self, plan: Plan, found: rewriting.Change) -> str:
        own, constraint = self.target(plan.target or ""), None
        if found.constraint is not None:
            real = self._history.real(plan.target or "")
            row = self._catalog.fetchone(_SAME_CONSTRAINT, (own, real, found.constraint.text))
            constraint = None if row is None else row[0]
        return found.on(own, constraint)

    def _take_chosen(self, plan: Plan, found: rewriting.Change, rows: Sequence[Sequence[Any]], run: RunMany) -> None:
        """Take over main's rows that a change is going to meet."""
        branch, table = self._views.branch, self._catalog.tables()[(plan.target or "").lower()].name
        if found.chosen is not None:
            key = [quote_identifier(k) for k in self._history.shape(table).key]
            keys, used = found.keys(key)
            run(self._taking(branch, table, keys), [[values[i] for i in used] for values in rows])
            self._catalog.execute("SELECT set_config('deeplake.copying', '', true)")
        if found.given is not None:
            text, used = found.rows_into(_GIVEN)
            self._take_given(branch, table, lambda: run(text, [[values[i] for i in used] for values in rows]))

    def _take_given(self, branch: int, table: str, bring: Callable[[], object]) -> None:
        """Take over the rows that an upsert's rows collide with, before it runs."""
        own = self._history.real(overlay_name(branch, table))
        self._catalog.execute(f"CREATE TEMP TABLE {_GIVEN} ON COMMIT DROP AS SELECT * FROM {own} WITH NO DATA")
        bring()
        self._catalog.fetchone("SELECT set_config('deeplake.copying', '1', true)")
        self._catalog.fetchone("SELECT _dl_take_given(?, ?, ?)", (branch, table, _GIVEN))
        self._catalog.fetchone("SELECT set_config('deeplake.copying', '', true)")
        self._catalog.execute(f"DROP TABLE {_GIVEN}")

    def raise_ids(self, table: str) -> None:
        """Nothing to do: main and every branch draw their ids from one sequence."""

    def return_ids(self, table: str) -> None:
        """Nothing to do, as before."""

    # -- a branch's beginning and end ------------------------------------------------------------------------------

    def created(self, start: Point, made: Branch) -> None:
        """The branch's schema and its views; what its parent had where it starts is copied (caller's transaction)."""
        tables = [table.name for table in self._catalog.tables().values()]
        self._catalog.fetchone("SELECT _dl_place(?, ?)", (made.id, tables))
        if start.branch == MAIN:
            return
        for table in self._history.branches.overlays(start.branch):
            self._copy(start, made.id, table)

    def _copy(self, start: Point, child: int, table: str) -> None:
        shape, real = self._history.shape(table), self._history.real
        self._catalog.fetchone("SELECT _dl_make_overlay(?, ?)", (child, table))
        rows, params = self._history.own(table, start)
        self._catalog.execute(f"INSERT INTO {real(overlay_name(child, table))} ({shape.names}) {rows}", params)
        held = self._history.held(start, "s")
        key = quote_identifiers(shape.key)
        self._catalog.execute(  # it has no past of its own: whatever state is asked for, these keys are taken over
            f"INSERT INTO {real(shadow_name(child, table))} ({key}, _dl_xid) SELECT {key}, '1'::xid8 "
            f"FROM {real(shadow_name(start.branch, table))} s WHERE {held}"
        )
        self._catalog.fetchone("SELECT _dl_watch(?, ?)", (child, table))

    def renamed(self, before: Branch, after: Branch) -> None:
        """Give the branch's schema its new name (caller's transaction)."""
        self._alone(before.id)
        old = self._history.branches.place(before.id)
        new = self._catalog.fetchone("SELECT _dl_name_place(?)", (after.id,))[0]
        self._catalog.execute(f"ALTER SCHEMA {quote_identifier(old)} RENAME TO {quote_identifier(new)}")

    def deleted(self, branch: Branch) -> None:
        """Take the branch's schema away, its rows stay; what else lies in it is kept under another name."""
        self._alone(branch.id)
        place = self._catalog.fetchone("SELECT place FROM _dl_branches WHERE id = ?", (branch.id,))[0]
        for table in self._catalog.tables().values():
            self._catalog.fetchone("SELECT _dl_hide(?, ?)", (branch.id, table.name))
        query = "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = ?"
        schema = quote_identifier(place)
        if self._catalog.fetchone(query, (place,))[0]:
            left = quote_identifier(physical(f"{place}~{branch.id}"))
            self._catalog.execute(f"ALTER SCHEMA {schema} RENAME TO {left}")
        else:
            self._catalog.execute(f"DROP SCHEMA {schema}")

    def _alone(self, branch: int) -> None:
        _, number = lock_of(self._catalog)
        self._catalog.fetchone("SELECT pg_advisory_xact_lock(?, ?)", (branch, number))


class PostgresReferences(References):
    """Foreign keys of a branch are checked by triggers on its overlays, so there is nothing to settle from here."""

    def __init__(self) -> None:
        """Nothing is kept."""

    def settle(self, table: str) -> None:
        """Nothing: the statement has already failed or done what its actions ask for."""
