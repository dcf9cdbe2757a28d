"""What a handle reads that is not on main as it is now: TEMP views, named like the tables, on its own connection.

The view of a table is

    main's rows whose key is not hidden   UNION ALL   before-images   UNION ALL   the branch's own rows

where *hidden* (TEMP ``_dl_hid_<table>``: every key that main changed since the fork or the branch took over) and the
*before-images* (TEMP ``_dl_pre_<table>``, with the user's indexes) are filled from the undo log once, and extended
before each statement in the same read transaction: a later change on main can never leak in. How far they reach stands
in a TEMP table as well, so that a rollback takes both back together. A table that neither side changed has no view.

At a fixed point the branch's own rows are read as of that point by the same means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from deeplake_loader import history
from deeplake_loader.branches import MAIN, Branches, Point, first_number, overlay_name, shadow_name
from deeplake_loader.catalog import Catalog, Participant
from deeplake_loader.errors import NotFoundError
from deeplake_loader.history import Shape, Term
from deeplake_loader.sql.plan import less_name, more_name
from deeplake_loader.store import encode_name
from deeplake_loader.table_text import copied_index, copied_table
from deeplake_loader.types import RESERVED_PREFIX, quote_identifier, quote_identifiers

_MARKS = "temp._dl_marks"
"""One row per view: the schema it was made for, the fork, and the log and shadow rows it has taken in."""
COPYING = "temp._dl_copying"
"""Holds a row while rows are copied up on purpose: they collide with themselves."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One real table read as of a commit: rows of ``real`` whose key is not in ``hidden``, and ``images``."""

    real: str
    shape: Shape

    @property
    def log(self) -> str:
        return f"main.{quote_identifier(history.LOG_PREFIX + self.real)}"

    @property
    def hidden(self) -> str:
        return f"temp.{quote_identifier(self.hidden_name)}"

    @property
    def hidden_name(self) -> str:
        return f"{RESERVED_PREFIX}hid_{self.real}"

    @property
    def images(self) -> str:
        return f"temp.{quote_identifier(self.images_name)}"

    @property
    def images_name(self) -> str:
        return f"{RESERVED_PREFIX}pre_{self.real}"

    @property
    def key(self) -> str:
        return quote_identifiers(self.shape.key)

    def shown(self, row: str) -> str:
        """That a row's key is not hidden. NOT IN a bare key table costs one look-up per row and keeps points fast."""
        key = self.shape.key
        if len(key) == 1:
            return f"{row}.{quote_identifier(key[0])} NOT IN (SELECT {self.key} FROM {self.hidden})"
        return f"NOT EXISTS (SELECT 1 FROM {self.hidden} h WHERE {same_key('h', row, key)})"

    def arms(self, columns: str) -> list[str]:
        """The SELECTs of ``columns``, qualified by ``t``, whose union are the rows."""
        table = f"main.{quote_identifier(self.real)}"
        return [f"SELECT {columns} FROM {table} t WHERE {self.shown('t')}", f"SELECT {columns} FROM {self.images} t"]


@dataclass(frozen=True, slots=True)
class View:
    """One table as this handle shows it. ``base`` and ``own`` are None where the table is read from main directly."""

    table: str
    version: int
    fork: int
    log_end: int
    base: Layer | None = None
    own: Layer | None = None
    overlay: str | None = None


class Views(Participant):
    """The TEMP views of one handle; on main it does nothing at all."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog, self._branches = catalog, Branches(catalog)
        self.branch, self.fixed = MAIN, False
        self._seq = 0
        self._committed = self._shown()
        self._views: dict[str, View] = {}
        self._stamp, self._fresh = (-1, -1), set[str]()
        self._watcher: Callable[[str, str], None] = lambda _table, _overlay: None
        catalog.participants.append(self)

    # -- what is shown ---------------------------------------------------------------------------------------------

    @property
    def on_main(self) -> bool:
        """Whether the tables themselves are what is shown."""
        return self.branch == MAIN and not self.fixed

    @property
    def point(self) -> tuple[int, bool, int]:
        """What is shown: the branch, whether as of a fixed commit, and which."""
        return self._shown()

    def _shown(self) -> tuple[int, bool, int]:
        return self.branch, self.fixed, self._seq

    def _set(self, branch: int, fixed: bool, seq: int) -> None:
        self.branch, self.fixed, self._seq = branch, fixed, seq
        self._catalog.branch = branch
        if not self._catalog.in_transaction:
            self._committed = self._shown()

    def show(self, branch: int) -> None:
        """Show a branch as it is from now on."""
        self.clear()
        self._set(branch, False, 0)

    def show_point(self, point: Point) -> None:
        """Show a point of history, which never changes."""
        self.clear()
        self._set(point.branch, True, point.seq)

    @contextmanager
    def showing(self, branch: int) -> Iterator[None]:
        """Show a branch for the length of a block."""
        before = self._shown()
        if before == (branch, False, 0):
            yield
            return
        self.show(branch)
        try:
            yield
        finally:
            self.clear()
            self._set(*before)

    def has_overlay(self, table: str) -> bool:
        """Whether the branch has rows of its own, as of the last `refresh`."""
        view = self._views.get(table)
        return view is not None and view.overlay is not None

    def in_parts(self, table: str) -> bool:
        """Whether the table is shown as main's rows, less some, plus others."""
        view = self._views.get(table)
        return view is not None and view.base is not None

    def watch(self, watcher: Callable[[str, str], None]) -> None:
        """Call ``watcher(table, overlay)`` whenever a table that the branch writes gets its view: to add triggers."""
        self._watcher = watcher

    def refresh(self, tables: Iterable[str]) -> None:
        """Bring the views of these tables up to date, inside the transaction or snapshot that reads them."""
        if self.on_main:
            return
        stamp = self._catalog.changes()
        if stamp != self._stamp:
            self._fresh.clear()
        stale = [table for table in tables if table not in self._fresh]
        if not stale:
            return
        try:
            with self._catalog.private():
                version = self._catalog.schema_version()
                for table in stale:
                    self._refresh(table, version)
        except BaseException:
            self._forget()
            raise
        self._stamp = self._catalog.changes()
        self._fresh.update(stale)

    def _forget(self) -> None:
        self._views.clear()
        self._fresh.clear()

    def _refresh(self, table: str, version: int) -> None:
        view = self._views.get(table)
        if view is not None and view.version == version and self._is_settled(view):
            return
        if view is None or view.version != version:
            view = self._found(table, version)
        fork, alive = self._fork()
        if not alive:
            name = self._branches.by_id(self.branch).name.rpartition("~")[0]
            raise NotFoundError(f"the branch {name!r} was deleted; check another one out")
        if view is not None and view.base is None and view.log_end != self._end(view.table):
            view = None  # main has moved since the table needed no view
        if view is None or view.fork != fork:
            view = self._make(table, version, fork)
        self._views[table] = view
        if view.base is not None:
            self._extend(view, view.base)

    def _is_settled(self, view: View) -> bool:
        """One look at everything that could call for more work: it is asked before every write."""
        if view.overlay is None or self.fixed:
            return False
        log = quote_identifier(history.LOG_PREFIX + view.table)
        shadow = quote_identifier(shadow_name(self.branch, view.table))
        row = self._catalog.fetchone(
            f"SELECT log_n = (SELECT coalesce(max(_dl_n), 0) FROM main.{log}) "
            f"AND shadow_n = (SELECT coalesce(max(_dl_n), 0) FROM main.{shadow}) "
            "AND fork = (SELECT main_seq FROM main._dl_forks WHERE branch = ?1 ORDER BY seq DESC LIMIT 1) "
            "AND (SELECT deleted_at IS NULL FROM main._dl_branches WHERE id = ?1) "
            f"FROM {_MARKS} WHERE name = ?2",
            (self.branch, view.table),
        )
        return row is not None and bool(row[0])

    def _fork(self) -> tuple[int, bool]:
        if self.fixed:
            return self._branches.fork_at(self.branch, self._seq), True
        query = (
            "SELECT main_seq, (SELECT deleted_at IS NULL FROM main._dl_branches WHERE id = ?1) FROM main._dl_forks "
            "WHERE branch = ?1 ORDER BY seq DESC LIMIT 1"
        )
        fork, alive = self._catalog.fetchone(query, (self.branch,)) or (0, False)
        return int(fork), bool(alive)

    def _end(self, real: str) -> int:
        log = quote_identifier(history.LOG_PREFIX + real)
        return int(self._catalog.fetchone(f"SELECT max(_dl_n) FROM main.{log}")[0] or 0)

    # -- making ----------------------------------------------------------------------------------------------------

    def _found(self, table: str, version: int) -> View | None:
        """The view as an earlier statement made it, if a rollback has left it in place."""
        if not self._has_marks():
            return None
        row = self._catalog.fetchone(f"SELECT fork FROM {_MARKS} WHERE name = ? AND version = ?", (table, version))
        return None if row is None else self._described(table, version, row[0])

    def _described(self, table: str, version: int, fork: int) -> View:
        shape = history.read_shape(self._catalog, table)
        overlay = overlay_name(self.branch, table) if table in self._branches.overlays(self.branch) else None
        own = Layer(overlay, shape) if overlay is not None and self.fixed else None
        return View(table, version, fork, 0, Layer(table, shape), own, overlay)

    def _make(self, table: str, version: int, fork: int) -> View:
        self._drop(table)
        view = self._described(table, version, fork)
        end = self._end(table)
        start = first_number(self._catalog, history.LOG_PREFIX + table, fork)
        if view.overlay is None and start > end:
            return View(table, version, fork, end)
        if not self._has_marks():
            self._catalog.execute(
                f"CREATE TABLE {_MARKS} (name TEXT PRIMARY KEY, version INTEGER NOT NULL, fork INTEGER NOT NULL, "
                "log_n INTEGER NOT NULL, shadow_n INTEGER NOT NULL, own_n INTEGER NOT NULL)"
            )
            self._catalog.execute(f"CREATE TABLE {COPYING} (yes INTEGER PRIMARY KEY)")
        assert view.base is not None
        own_start = 0
        self._make_layer(table, view.base)
        if view.own is not None:
            self._make_layer(table, view.own)
            own_start = first_number(self._catalog, history.LOG_PREFIX + view.own.real, self._seq) - 1
        self._catalog.execute(
            f"INSERT INTO {_MARKS} VALUES (?, ?, ?, ?, 0, ?)", (table, version, fork, start - 1, own_start)
        )
        self._make_views(view, view.base)
        return view

    def _make_layer(self, table: str, layer: Layer) -> None:
        keys = [c for c in layer.shape.columns if c.key]
        if len(keys) == 1 and keys[0].declared.upper() == "INTEGER":
            body, kind = f"{layer.key} INTEGER PRIMARY KEY", ""
        else:
            named = (f"{quote_identifier(c.name)} {c.declared} COLLATE {c.collation}" for c in keys)
            body, kind = f"{', '.join(named)}, PRIMARY KEY ({layer.key})", " WITHOUT ROWID"
        self._catalog.execute(f"CREATE TABLE {layer.hidden} ({body}){kind}")
        query = "SELECT type, name, sql FROM main.sqlite_master WHERE tbl_name = ? AND type IN ('table', 'index')"
        found = self._catalog.fetchall(f"{query} AND sql IS NOT NULL ORDER BY type DESC, name", (table,))
        for kind, name, sql in found:
            if kind == "table":
                self._catalog.execute(copied_table(sql, table, layer.images_name, temporary=True))
            else:
                index = f"{RESERVED_PREFIX}index.{encode_name(layer.real)}.{encode_name(name)}"
                self._catalog.execute(copied_index(sql, index, layer.images_name, schema="temp", unique=False))

    def _make_views(self, view: View, base: Layer) -> None:
        columns = self._columns(view.table)
        listed = ", ".join(f"t.{column} AS {column}" for column in columns)
        arms = base.arms(listed)
        name = quote_identifier(base_name(view.table))
        self._catalog.execute(f"CREATE TEMP VIEW {name} AS {' UNION ALL '.join(arms)}")
        if view.own is not None:
            arms += view.own.arms(listed)
        elif view.overlay is not None:
            arms.append(f"SELECT {listed} FROM main.{quote_identifier(view.overlay)} t")
            if not self._catalog.read_only:
                self._make_triggers(view, base, view.overlay)
                self._watcher(view.table, view.overlay)
        self._catalog.execute(f"CREATE TEMP VIEW {quote_identifier(view.table)} AS {' UNION ALL '.join(arms)}")
        less, more = (quote_identifier(name(view.table)) for name in (less_name, more_name))
        same = same_key("h", "t", base.shape.key)
        hidden = f"{base.hidden} h CROSS JOIN main.{quote_identifier(view.table)} t ON {same}"  # few look-ups
        self._catalog.execute(f"CREATE TEMP VIEW {less} AS SELECT {listed} FROM {hidden}")
        self._catalog.execute(f"CREATE TEMP VIEW {more} AS {' UNION ALL '.join(arms[1:])}")

    def _columns(self, table: str) -> list[str]:
        """Every column that SELECT * gives, generated ones included, quoted."""
        rows = self._catalog.fetchall(f"PRAGMA main.table_xinfo({quote_identifier(table)})")
        return [quote_identifier(row[1]) for row in rows if row[6] != 1]

    # -- rows that a write could collide with ----------------------------------------------------------------------

    def _make_triggers(self, view: View, base: Layer, overlay: str) -> None:
        """Before a row enters the overlay, main's rows that it could collide with are taken over, so that the user's
        own constraint decides."""
        shape, table = base.shape, view.table
        from_base = quote_identifier(base_name(table))
        clashes = [_clash(terms, shape) for terms in shape.uniques]
        hits = [f"EXISTS (SELECT 1 FROM {from_base} x WHERE {clash})" for clash in clashes]
        where = " OR ".join(clashes)
        shadow = quote_identifier(shadow_name(self.branch, table))
        body = (
            "INSERT INTO _dl_copying VALUES (1); "
            f"INSERT INTO {quote_identifier(overlay)} ({shape.names}) "
            f"SELECT {shape.names} FROM {from_base} x WHERE {where}; "
            f"INSERT INTO {shadow} ({base.key}, _dl_seq) "
            f"SELECT {base.key}, {history.SEQ} FROM {from_base} x WHERE {where}; "
            f"INSERT INTO {quote_identifier(base.hidden_name)} ({base.key}) "
            f"SELECT {base.key} FROM main.{quote_identifier(table)} x WHERE ({where}) AND {base.shown('x')}; "
            f"DELETE FROM {quote_identifier(base.images_name)} WHERE {where}; DELETE FROM _dl_copying;"
        )
        counted = len(shape.uniques) == 1 and [c.declared.upper() for c in shape.columns if c.key] == ["INTEGER"]
        bulk = f"{history.NOT_BULK} AND " if counted else ""  # bulk ids follow every id there is
        conditions = {"INSERT": f"{bulk}({' OR '.join(hits)})", "UPDATE": history.touches_unique(shape, hits)}
        for event, found in conditions.items():
            condition = f"NOT EXISTS (SELECT 1 FROM _dl_copying) AND ({found})"
            name = quote_identifier(f"{RESERVED_PREFIX}up_{event.lower()}_{table}")
            on = f"main.{quote_identifier(overlay)}"
            self._catalog.execute(
                f"CREATE TEMP TRIGGER {name} BEFORE {event} ON {on} WHEN {condition} BEGIN {body} END"
            )

    # -- extending -------------------------------------------------------------------------------------------------

    def _extend(self, view: View, base: Layer) -> None:
        log_n, shadow_n, own_n = self._catalog.fetchone(
            f"SELECT log_n, shadow_n, own_n FROM {_MARKS} WHERE name = ?", (view.table,)
        )
        ends = self._end(view.table), shadow_n, own_n
        if view.overlay is not None:
            shadow = f"main.{quote_identifier(shadow_name(self.branch, view.table))}"
            last = int(self._catalog.fetchone(f"SELECT max(_dl_n) FROM {shadow}")[0] or 0)
            if last > shadow_n:
                self._take_shadow(base, shadow, shadow_n)
            ends = ends[0], last, self._end(view.own.real) if view.own is not None else own_n
        if ends == (log_n, shadow_n, own_n):
            return
        if ends[0] > log_n:
            self._take_log(base, log_n)
        if view.own is not None and ends[2] > own_n:
            self._take_log(view.own, own_n)
        sql = f"UPDATE {_MARKS} SET log_n = ?, shadow_n = ?, own_n = ? WHERE name = ?"
        self._catalog.execute(sql, (*ends, view.table))

    def _take_shadow(self, base: Layer, shadow: str, after: int) -> None:
        until = f" AND s._dl_seq < {int(self._seq)}" if self.fixed else ""
        fresh = f"FROM {shadow} s WHERE s._dl_n > ?{until}"
        self._catalog.execute(f"INSERT OR IGNORE INTO {base.hidden} ({base.key}) SELECT {base.key} {fresh}", (after,))
        keys = base.key if len(base.shape.key) == 1 else f"({base.key})"
        self._catalog.execute(f"DELETE FROM {base.images} WHERE {keys} IN (SELECT {base.key} {fresh})", (after,))

    def _take_log(self, layer: Layer, after: int) -> None:
        """The first image of every key that was not hidden before, then the keys."""
        shape, log = layer.shape, layer.log
        earlier = f"SELECT 1 FROM {log} e WHERE {same_key('e', 'l', shape.key)} AND e._dl_n > ?1 AND e._dl_n < l._dl_n"
        self._catalog.execute(
            f"INSERT INTO {layer.images} ({shape.names}) SELECT {shape.names_of('l')} FROM {log} l "
            f"WHERE l._dl_n > ?1 AND l._dl_op <> 'I' AND {layer.shown('l')} AND NOT EXISTS ({earlier})",
            (after,),
        )
        self._catalog.execute(
            f"INSERT OR IGNORE INTO {layer.hidden} ({layer.key}) SELECT {layer.key} FROM {log} WHERE _dl_n > ?",
            (after,),
        )

    # -- dropping --------------------------------------------------------------------------------------------------

    def _has_marks(self) -> bool:
        return self._catalog.fetchone("SELECT 1 FROM temp.sqlite_master WHERE name = '_dl_marks'") is not None

    def clear(self) -> None:
        """Drop every view: before another branch is shown, and before tables change."""
        self._forget()
        if self._has_marks():
            with self._catalog.private():
                for (table,) in self._catalog.fetchall(f"SELECT name FROM {_MARKS}"):
                    self._drop(table)

    def _drop(self, table: str) -> None:
        if not self._has_marks():
            return
        if self._catalog.execute(f"DELETE FROM {_MARKS} WHERE name = ?", (table,)).rowcount == 0:
            return
        for name in (table, base_name(table), less_name(table), more_name(table)):
            self._catalog.execute(f"DROP VIEW IF EXISTS temp.{quote_identifier(name)}")
        query = "SELECT name FROM temp.sqlite_master WHERE type = 'trigger' AND tbl_name = ?"
        for (name,) in self._catalog.fetchall(query, (overlay_name(self.branch, table),)):
            # IF EXISTS: SQLite has forgotten it already when another process dropped the overlay
            self._catalog.execute(f"DROP TRIGGER IF EXISTS temp.{quote_identifier(name)}")
        pattern = f"{RESERVED_PREFIX}%"
        query = "SELECT name FROM temp.sqlite_master WHERE type = 'table' AND name LIKE ?"
        reals = {table, *(overlay_name(b, table) for b in (self.branch,))}
        for (name,) in self._catalog.fetchall(query, (pattern,)):
            if name in {f"{RESERVED_PREFIX}{kind}_{real}" for kind in ("hid", "pre") for real in reals}:
                self._catalog.execute(f"DROP TABLE temp.{quote_identifier(name)}")

    # -- taking part in transactions -------------------------------------------------------------------------------

    def savepoint(self) -> tuple[int, bool, int]:
        return self._shown()

    def rollback_to(self, token: object) -> None:
        self._forget()  # the marks tell which of them are left
        if isinstance(token, tuple):
            self.branch, self.fixed, self._seq = token
            self._catalog.branch = self.branch

    def committed(self) -> None:
        self._committed = self._shown()

    def rolled_back(self) -> None:
        self.rollback_to(self._committed)

    def forked(self) -> None:
        self._forget()


def base_name(table: str) -> str:
    """The TEMP view of what the branch has not taken over: main's rows as of its fork."""
    return f"{RESERVED_PREFIX}base_{table}"


def same_key(a: str, b: str, key: Sequence[str]) -> str:
    """That two rows have the same key."""
    return " AND ".join(f"{a}.{quote_identifier(k)} = {b}.{quote_identifier(k)}" for k in key)


def _clash(terms: Sequence[Term], shape: Shape) -> str:
    return "(" + " AND ".join(f"{t.stored()} = {t.of('NEW', shape.columns)}" for t in terms) + ")"
