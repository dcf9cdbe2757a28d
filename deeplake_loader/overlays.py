"""Writes on a branch: rows are copied up into the branch's own table first, then the user's own statement runs there.

The overlay of a table is a real table made from the user's CREATE TABLE, so NOT NULL, CHECK, UNIQUE, defaults, upserts,
row counts and RETURNING are the database's own. It is made at the branch's first write. Foreign keys are the one
constraint it cannot carry: the parents are on the branch, not in a table (see `references`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from deeplake_loader import history, states
from deeplake_loader.branches import MAIN, Branch, Branches, Point, overlay_name, shadow_name
from deeplake_loader.catalog import Catalog
from deeplake_loader.errors import NotFoundError
from deeplake_loader.sql.plan import CHOSEN_KEYS, Plan
from deeplake_loader.table_text import copied_index, copied_table
from deeplake_loader.types import RESERVED_PREFIX, quote_identifier, quote_identifiers
from deeplake_loader.views import COPYING, Views, base_name


class BranchWriter:
    """Prepares the tables of the branch that a handle shows for its statements; main needs no preparation."""

    def __init__(self, catalog: Catalog, views: Views) -> None:
        self._catalog, self._views, self._branches = catalog, views, Branches(catalog)

    def target(self, table: str) -> str:
        """The real table that a statement on ``table`` writes: the table itself on main, else the branch's overlay."""
        return table if self._views.on_main else overlay_name(self._views.branch, table)

    def ensure(self, branch: int, table: str) -> str:
        """The branch's overlay of a table, made if this is its first write there; main's is the table itself.

        For the branch that the handle shows, the view is up to date afterwards.
        """
        if branch == MAIN:
            return table
        shown = branch == self._views.branch
        if shown:
            self._views.refresh([table])
        if shown and self._views.has_overlay(table):
            return overlay_name(branch, table)
        if table not in self._branches.overlays(branch):
            create_overlay(self._catalog, branch, table)
            create_public_view(self._catalog, branch, table, self._branches.by_id(branch).name)
            if shown:
                self._views.refresh([table])
        return overlay_name(branch, table)

    def copy_up(
        self, branch: int, table: str, keys_sql: str, params: Sequence[Any] = (), *, user_sql: str | None = None
    ) -> None:
        """Take over main's rows among the keys that a query gives, shadow and overlay (`ensure` ran before)."""
        shape = history.read_shape(self._catalog, table)
        key = quote_identifiers(shape.key)
        keys = key if len(shape.key) == 1 else f"({key})"
        overlay, shadow = (f"main.{quote_identifier(name(branch, table))}" for name in (overlay_name, shadow_name))
        last = int(self._catalog.fetchone(f"SELECT max(_dl_n) FROM {shadow}")[0] or 0)
        shown = branch == self._views.branch
        free, free_params = (
            self._free_rows(branch, table) if not shown else (f"temp.{quote_identifier(base_name(table))}", ())
        )
        chosen = f"SELECT {key}, ? FROM {free} WHERE {keys} IN ({keys_sql})"
        sql = f"INSERT INTO {shadow} ({key}, _dl_seq) {chosen}"
        values = (self._catalog.head(), *free_params, *params)
        if not self._catalog.execute(sql, values, user_sql=user_sql).rowcount:
            return
        rows, row_params = self._fork_rows(branch, table) if not shown else (free, ())
        taken = f"SELECT {key} FROM {shadow} WHERE _dl_n > ?"
        sql = f"INSERT INTO {overlay} ({shape.names}) SELECT {shape.names} FROM {rows} WHERE {keys} IN ({taken})"
        if not shown:
            self._catalog.execute(sql, (*row_params, last))
            return
        with self._catalog.private():
            self._catalog.execute(f"INSERT INTO {COPYING} VALUES (1)")
        self._catalog.execute(sql, (*row_params, last))
        with self._catalog.private():
            self._catalog.execute(f"DELETE FROM {COPYING}")
        self._views.refresh([table])

    def _free_rows(self, branch: int, table: str) -> tuple[str, tuple[int, ...]]:
        """What the branch has not taken over, where its view is not at hand."""
        sql, params = states.base_sql(self._catalog, table, Point(branch, self._catalog.head() + 1))
        return f"({sql})", params

    def _fork_rows(self, branch: int, table: str) -> tuple[str, tuple[int, ...]]:
        fork = self._branches.fork_at(branch, self._catalog.head() + 1)
        sql, params = states.select_sql(self._catalog, table, Point(MAIN, fork))
        return f"({sql})", params

    def before(self, plan: Plan, key_values: Callable[[], Sequence[Any]], sql: str) -> None:
        """Make the overlay ready for a statement: its own table, the rows it chooses, its next id, what it reads."""
        table, branch = plan.target or "", self._views.branch
        self.ensure(branch, table)
        self._views.refresh(plan.reads)
        if plan.keys_sql is not None:
            self._copy_chosen(plan, table, key_values(), sql)
        if plan.kind == "insert":
            self.raise_ids(table)

    def _copy_chosen(self, plan: Plan, table: str, values: Sequence[Any], sql: str) -> None:
        keys = plan.keys_sql or ""
        if plan.keys_once:
            with self._catalog.private():
                self._catalog.execute(f"DROP TABLE IF EXISTS {CHOSEN_KEYS}")
                self._catalog.execute(f"CREATE TABLE {CHOSEN_KEYS} AS {keys}", values, user_sql=sql)
            keys, values = f"SELECT * FROM {CHOSEN_KEYS}", ()
        self.copy_up(self._views.branch, table, keys, values, user_sql=sql)

    def after(self, plan: Plan) -> None:
        """Once the statement has run: main's ids follow the branch's."""
        if plan.kind == "insert":
            self.return_ids(plan.target or "")

    # -- a branch's beginning and end ------------------------------------------------------------------------------

    def created(self, start: Point, made: Branch) -> None:
        """Give a new branch what its parent had where it starts (caller's transaction)."""
        copy_overlays(self._catalog, start, made)

    def renamed(self, before: Branch, after: Branch) -> None:
        """Give what other tools see of a branch its new name (caller's transaction)."""
        drop_public_views(self._catalog, before)
        for table in self._branches.overlays(after.id):
            create_public_view(self._catalog, after.id, table, after.name)

    def deleted(self, branch: Branch) -> None:
        """Take away what other tools see of a branch (caller's transaction)."""
        drop_public_views(self._catalog, branch)

    # -- ids -------------------------------------------------------------------------------------------------------

    def raise_ids(self, table: str) -> None:
        """Before an INSERT: the overlay's next id follows every id that main ever gave."""
        self._raise(overlay_name(self._views.branch, table), table)

    def return_ids(self, table: str) -> None:
        """After an INSERT: main's next id follows the overlay's, whoever inserts there."""
        self._raise(table, overlay_name(self._views.branch, table))

    def _raise(self, low: str, high: str) -> None:
        sql = (
            "UPDATE main.sqlite_sequence SET seq = h.seq FROM (SELECT seq FROM main.sqlite_sequence WHERE name = ?) h "
            "WHERE name = ? AND main.sqlite_sequence.seq < h.seq"
        )
        self._catalog.execute(sql, (high, low))


def create_overlay(catalog: Catalog, branch: int, table: str) -> None:
    """The branch's own table, its undo log, and the list of main's keys it has taken over; all empty."""
    _create_table(catalog, branch, table)
    history.install(catalog, overlay_name(branch, table))


def _create_table(catalog: Catalog, branch: int, table: str) -> None:
    overlay, shadow = overlay_name(branch, table), shadow_name(branch, table)
    row = catalog.fetchone("SELECT sql FROM main.sqlite_master WHERE type = 'table' AND name = ?", (table,))
    if row is None:
        raise NotFoundError(f"there is no table {table!r}")
    catalog.execute(copied_table(row[0], table, overlay))
    copy_indexes(catalog, branch, table)
    shape = history.read_shape(catalog, table)
    keys = ", ".join(
        f"{quote_identifier(c.name)} {c.declared} NOT NULL COLLATE {c.collation}" for c in shape.columns if c.key
    )
    catalog.execute(
        f"CREATE TABLE main.{quote_identifier(shadow)} (_dl_n INTEGER PRIMARY KEY, {keys}, _dl_seq INTEGER NOT NULL, "
        f"UNIQUE ({quote_identifiers(shape.key)}))"
    )
    if "AUTOINCREMENT" in row[0].upper():
        for name in (table, overlay):
            sql = "INSERT INTO main.sqlite_sequence (name, seq) SELECT ?1, 0 WHERE NOT EXISTS "
            catalog.execute(f"{sql}(SELECT 1 FROM main.sqlite_sequence WHERE name = ?1)", (name,))
    catalog.execute("INSERT INTO _dl_overlays (branch, table_name) VALUES (?, ?)", (branch, table))


def copy_indexes(catalog: Catalog, branch: int, table: str, *, only: str | None = None) -> None:
    """Give the overlay the table's indexes, or one of them."""
    query = "SELECT name, sql FROM main.sqlite_master WHERE tbl_name = ? AND type = 'index' AND sql IS NOT NULL"
    for name, sql in catalog.fetchall(query, (table,)):
        if only in (None, name):
            index, overlay = f"{RESERVED_PREFIX}b{branch}_{name}", overlay_name(branch, table)
            catalog.execute(copied_index(sql, index, overlay, schema="main"))


def create_public_view(catalog: Catalog, branch: int, table: str, branch_name: str) -> None:
    """The branch's rows for other tools, as a stored view ``table@branch``: exact, though not fast.

    Where a table or another branch's view has that name, as SQLite compares names without their case, the view is
    called ``table@branch~number``.
    """
    name = f"{table}@{branch_name}"
    if catalog.fetchone("SELECT 1 FROM main.sqlite_master WHERE name = ? COLLATE NOCASE", (name,)):
        name = f"{name}~{branch}"
    shape = history.read_shape(catalog, table)
    log, real = quote_identifier(shape.log), quote_identifier(table)
    overlay, shadow = quote_identifier(overlay_name(branch, table)), quote_identifier(shadow_name(branch, table))
    fork = f"(SELECT main_seq FROM _dl_forks WHERE branch = {branch:d} ORDER BY seq DESC LIMIT 1)"
    same = [" AND ".join(f"{a}.{q} = {b}.{q}" for q in map(quote_identifier, shape.key)) for a, b in _PAIRS]
    own = f"NOT EXISTS (SELECT 1 FROM {shadow} s WHERE "
    changed = f"SELECT 1 FROM {log} l WHERE {same[0]} AND l._dl_seq >= {fork}"
    earlier = f"SELECT 1 FROM {log} e WHERE {same[1]} AND e._dl_seq >= {fork} AND e._dl_n < l._dl_n"
    catalog.execute(
        f"CREATE VIEW main.{quote_identifier(name)} AS "
        f"SELECT {shape.names} FROM {real} t WHERE {own}{same[2]}) AND NOT EXISTS ({changed}) UNION ALL "
        f"SELECT {shape.names} FROM {log} l WHERE l._dl_seq >= {fork} AND l._dl_op <> 'I' AND {own}{same[3]}) "
        f"AND NOT EXISTS ({earlier}) UNION ALL SELECT {shape.names} FROM {overlay}"
    )


_PAIRS = (("l", "t"), ("e", "l"), ("s", "t"), ("s", "l"))


def drop_public_views(catalog: Catalog, branch: Branch) -> None:
    """Remove the branch's stored views, whatever they are called: each one ends with its overlay's name."""
    query = "SELECT name FROM main.sqlite_master WHERE type = 'view' AND substr(sql, -length(?1)) = ?1"
    for table in Branches(catalog).overlays(branch.id):
        ending = f" FROM {quote_identifier(overlay_name(branch.id, table))}"
        for (name,) in catalog.fetchall(query, (ending,)):
            catalog.execute(f"DROP VIEW main.{quote_identifier(name)}")


def copy_overlays(catalog: Catalog, parent: Point, child: Branch) -> None:
    """Give a new branch the rows that its parent had where it starts, unlogged: it has no past of its own."""
    if parent.branch == MAIN:
        return
    for table in Branches(catalog).overlays(parent.branch):
        rows, params = states.overlay_sql(catalog, table, parent)
        _create_table(catalog, child.id, table)
        shape = history.read_shape(catalog, table)
        target = quote_identifier(overlay_name(child.id, table))
        catalog.execute(f"INSERT INTO main.{target} ({shape.names}) {rows}", params)
        key = quote_identifiers(shape.key)
        old, new = (quote_identifier(shadow_name(b, table)) for b in (parent.branch, child.id))
        catalog.execute(
            f"INSERT INTO main.{new} ({key}, _dl_seq) SELECT {key}, _dl_seq FROM main.{old} WHERE _dl_seq < ?",
            (parent.seq,),
        )
        history.install(catalog, overlay_name(child.id, table))
        create_public_view(catalog, child.id, table, child.name)
