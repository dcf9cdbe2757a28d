"""Foreign keys on a branch, whose rows lie partly on main and partly in overlays, where no constraint can see them.

TEMP triggers on the overlays note the rows that a statement brought or changed (children to check) and the referenced
values that it took away (parents whose children must be looked after). When the statement has run, CASCADE, SET NULL
and SET DEFAULT are carried out as writes on the branch, until nothing changes; then every noted child needs its parent
on the branch, and no child may be left of a value that is gone. A deferred key waits for the transaction's end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from deeplake_loader import history
from deeplake_loader.branches import overlay_name
from deeplake_loader.catalog import Catalog, Participant
from deeplake_loader.errors import ConstraintError
from deeplake_loader.overlays import BranchWriter
from deeplake_loader.store import encode_name
from deeplake_loader.table_text import deferred_columns
from deeplake_loader.types import RESERVED_PREFIX, quote_identifier, quote_identifiers
from deeplake_loader.views import Views, same_key


@dataclass(frozen=True, slots=True)
class Reference:
    """``table (columns)`` references ``parent (referenced)``."""

    table: str
    columns: tuple[str, ...]
    parent: str
    referenced: tuple[str, ...]
    on_update: str
    on_delete: str
    deferred: bool

    @property
    def gone(self) -> str:
        """The TEMP table of referenced values that were taken away: old ones, and new ones of an update."""
        return f"{RESERVED_PREFIX}gone.{'.'.join(map(encode_name, (self.table, self.parent, *self.columns)))}"

    def has_parent(self, child: str) -> str:
        """That a row of the branch is the parent of row ``child``."""
        pairs = zip(self.referenced, self.columns, strict=True)
        same = " AND ".join(f"p.{quote_identifier(r)} = {child}.{quote_identifier(c)}" for r, c in pairs)
        return f"EXISTS (SELECT 1 FROM {quote_identifier(self.parent)} p WHERE {same})"

    def given(self, child: str) -> str:
        """That no column is NULL: such a row needs no parent."""
        return " AND ".join(f"{child}.{quote_identifier(c)} IS NOT NULL" for c in self.columns)


class References(Participant):
    """The foreign keys of the branch that a handle shows."""

    def __init__(self, catalog: Catalog, views: Views, writer: BranchWriter) -> None:
        self._catalog, self._views, self._writer = catalog, views, writer
        self._known: tuple[int, list[Reference]] | None = None
        self._deferred: set[tuple[int, Reference]] = set()
        views.watch(self._watch)
        catalog.participants.append(self)

    def all(self) -> list[Reference]:
        """Every foreign key of the store's tables."""
        version = self._catalog.schema_version()
        if self._known is None or self._known[0] != version:
            self._known = version, list(self._read())
        return self._known[1]

    def _read(self) -> Iterator[Reference]:
        tables = {table.name.lower(): table for table in self._catalog.tables().values()}
        for table in tables.values():
            rows = self._catalog.fetchall(f"PRAGMA main.foreign_key_list({quote_identifier(table.name)})")
            if not rows:
                continue
            query = "SELECT sql FROM main.sqlite_master WHERE type = 'table' AND name = ?"
            deferred = deferred_columns(self._catalog.fetchone(query, (table.name,))[0])
            for number in sorted({row[0] for row in rows}):
                parts = sorted((row for row in rows if row[0] == number), key=lambda row: row[1])
                parent = tables.get(parts[0][2].lower())
                if parent is None:
                    continue
                columns = tuple(row[3] for row in parts)
                referenced = tuple(row[4] for row in parts) if parts[0][4] is not None else parent.primary_key
                late = tuple(c.lower() for c in columns) in deferred
                yield Reference(table.name, columns, parent.name, referenced, parts[0][5], parts[0][6], late)

    # -- noting what a statement does ------------------------------------------------------------------------------

    def _watch(self, table: str, overlay: str) -> None:
        """Put the triggers on a table's overlay, when its view is made."""
        found = self.all()
        on, key = f"main.{quote_identifier(overlay)}", history.read_shape(self._catalog, table).key
        quiet = "WHEN NOT EXISTS (SELECT 1 FROM _dl_copying)"
        if any(r.table == table for r in found):
            born = _born(table)
            self._catalog.execute(f"CREATE TEMP TABLE IF NOT EXISTS {born} ({quote_identifiers(key)})")
            new = ", ".join(f"NEW.{quote_identifier(k)}" for k in key)
            for event in ("INSERT", "UPDATE"):
                name = quote_identifier(f"{RESERVED_PREFIX}born_{event.lower()}_{table}")
                body = f"INSERT INTO {born} VALUES ({new}); END"
                self._catalog.execute(f"CREATE TEMP TRIGGER {name} AFTER {event} ON {on} {quiet} BEGIN {body}")
        for i, r in enumerate(r for r in found if r.parent == table):
            self._watch_parent(r, i, on, quiet)

    def _watch_parent(self, r: Reference, number: int, on: str, quiet: str) -> None:
        gone, count = quote_identifier(r.gone), len(r.columns)
        columns = ", ".join(f"{side}{i}" for side in "on" for i in range(count))
        for name in (r.gone, r.gone + ".."):
            self._catalog.execute(f"CREATE TEMP TABLE IF NOT EXISTS {quote_identifier(name)} (op, {columns})")
        old, new = (", ".join(f"{s}.{quote_identifier(c)}" for c in r.referenced) for s in ("OLD", "NEW"))
        moved = " OR ".join(f"OLD.{q} IS NOT NEW.{q}" for q in map(quote_identifier, r.referenced))
        bodies = {
            "DELETE": (f"INSERT INTO {gone} VALUES ('D', {old}{', NULL' * count})", ""),
            "UPDATE": (f"INSERT INTO {gone} VALUES ('U', {old}, {new})", f" AND ({moved})"),
        }
        for event, (body, condition) in bodies.items():
            name = quote_identifier(f"{RESERVED_PREFIX}gone_{event.lower()}_{number}_{r.parent}")
            self._catalog.execute(
                f"CREATE TEMP TRIGGER {name} AFTER {event} ON {on} {quiet}{condition} BEGIN {body}; END"
            )

    # -- after a statement -----------------------------------------------------------------------------------------

    def settle(self, table: str) -> None:
        """Carry out the actions that a write to a table of the branch calls for, and check what it left."""
        if self._views.on_main or not any(table in (r.table, r.parent) for r in self.all()):
            return
        pending, touched = [table], {table: None}
        while pending:
            parent = pending.pop()
            for r in self.all():
                if r.parent == parent and self._act(r):
                    pending.append(r.table)
                    touched[r.table] = None
        for written in touched:
            self._check_born(written)

    def _act(self, r: Reference) -> bool:
        """Look after the children of values that are gone; whether any was changed."""
        noted, gone = f"temp.{quote_identifier(r.gone)}", f"temp.{quote_identifier(r.gone + '..')}"
        if self._catalog.fetchone(f"SELECT 1 FROM {noted} LIMIT 1") is None:
            return False
        with self._catalog.private():  # what follows may take more values away from the same table
            self._catalog.execute(f"DELETE FROM {gone}")
            self._catalog.execute(f"INSERT INTO {gone} SELECT * FROM {noted}")
            self._catalog.execute(f"DELETE FROM {noted}")
        self._views.refresh([r.table, r.parent])
        old = " AND ".join(f"p.{quote_identifier(c)} = g.o{i}" for i, c in enumerate(r.referenced))
        with self._catalog.private():
            still = f"SELECT 1 FROM {quote_identifier(r.parent)} p WHERE {old}"
            self._catalog.execute(f"DELETE FROM {gone} AS g WHERE EXISTS ({still})")
        acted = [self._act_on(r, gone, op, action) for op, action in (("D", r.on_delete), ("U", r.on_update))]
        return any(acted)

    def _act_on(self, r: Reference, gone: str, op: str, action: str) -> bool:
        same = " AND ".join(f"c.{quote_identifier(name)} = g.o{i}" for i, name in enumerate(r.columns))
        lost = f"EXISTS (SELECT 1 FROM {gone} g WHERE g.op = '{op}' AND {same})"
        values = ", ".join(f"o{i}" for i in range(len(r.columns)))
        columns = quote_identifiers(r.columns)
        row = columns if len(r.columns) == 1 else f"({columns})"
        key = quote_identifiers(history.read_shape(self._catalog, r.table).key)
        chosen = f"{row} IN (SELECT {values} FROM {gone} WHERE op = '{op}')"
        children = f"SELECT {key} FROM {quote_identifier(r.table)} WHERE {chosen}"
        if self._catalog.fetchone(f"{children} LIMIT 1") is None:
            return False
        if action in ("NO ACTION", "RESTRICT"):
            if r.deferred and action == "NO ACTION":
                self._deferred.add((self._views.branch, r))
                return False
            raise _broken(r, r.parent)
        overlay = f"main.{quote_identifier(self._writer.ensure(self._views.branch, r.table))}"
        self._writer.copy_up(self._views.branch, r.table, children)
        if action == "CASCADE" and op == "D":
            self._catalog.execute(f"DELETE FROM {overlay} AS c WHERE {lost}")
        else:
            sets = self._new_values(r, gone, action, same)
            self._catalog.execute(f"UPDATE {overlay} AS c SET {sets} WHERE {lost}")
        self._views.refresh([r.table])
        return True

    def _new_values(self, r: Reference, gone: str, action: str, same: str) -> str:
        """SET's right side for the columns of the children."""
        if action == "CASCADE":
            found = (f"(SELECT g.n{i} FROM {gone} g WHERE g.op = 'U' AND {same})" for i in range(len(r.columns)))
        elif action == "SET NULL":
            found = ("NULL" for _ in r.columns)
        else:
            defaults = {c.name: c.default for c in history.read_shape(self._catalog, r.table).columns}
            found = (defaults.get(c) or "NULL" for c in r.columns)
        return ", ".join(f"{quote_identifier(c)} = {v}" for c, v in zip(r.columns, found, strict=True))

    def _check_born(self, table: str) -> None:
        own = [r for r in self.all() if r.table == table]
        if not own:
            return
        born = f"temp.{_born(table)}"
        if self._catalog.fetchone(f"SELECT 1 FROM {born} LIMIT 1") is None:
            return
        self._views.refresh([table, *(r.parent for r in own)])
        shape = history.read_shape(self._catalog, table)
        overlay = f"main.{quote_identifier(overlay_name(self._views.branch, table))}"
        for r in own:
            query = (
                f"SELECT 1 FROM {born} b JOIN {overlay} c ON {same_key('c', 'b', shape.key)} "
                f"WHERE {r.given('c')} AND NOT {r.has_parent('c')} LIMIT 1"
            )
            if self._catalog.fetchone(query) is None:
                continue
            if not r.deferred:
                raise _broken(r, r.table)
            self._deferred.add((self._views.branch, r))
        with self._catalog.private():
            self._catalog.execute(f"DELETE FROM {born}")

    # -- the end of a transaction ----------------------------------------------------------------------------------

    def prepare(self) -> None:
        pending, self._deferred = self._deferred, set()
        for branch, r in pending:
            with self._views.showing(branch):
                self._views.refresh([r.table, r.parent])
                child = quote_identifier(r.table)
                lost = f"SELECT 1 FROM {child} c WHERE {r.given('c')} AND NOT {r.has_parent('c')} LIMIT 1"
                if self._catalog.fetchone(lost) is not None:
                    raise _broken(r, r.table)

    def rolled_back(self) -> None:
        self._deferred.clear()

    def forked(self) -> None:
        self._deferred.clear()


def _born(table: str) -> str:
    return quote_identifier(f"{RESERVED_PREFIX}born_{table}")


def _broken(r: Reference, table: str) -> ConstraintError:
    names = ", ".join(r.columns)
    return ConstraintError(
        f"FOREIGN KEY constraint refused the statement: {r.table} ({names}) references {r.parent} "
        f"({', '.join(r.referenced)}); a row of {table!r} breaks it on this branch",
        constraint="FOREIGN KEY",
    )
