"""The undo log: before-images of every change to a main table, written by triggers that live in the database.

Because the triggers are stored, a change made by any other tool is logged too. One log table per table:

    _dl_log_<table>(_dl_n INTEGER PRIMARY KEY, _dl_seq INTEGER, _dl_op TEXT, <the table's stored columns>)

``_dl_seq`` is the number of the last commit when the change was made, so changes after commit p carry p or more;
``_dl_op`` is I (the key did not exist before: only the key is kept), U or D (the whole row as it was). Only the first
image per key and number is kept. The table as of commit p is then: rows whose key has no log row numbered p or more,
plus the earliest such image of the others, unless that is an I.

What the obvious triggers miss, and these do not: REPLACE and INSERT/UPDATE OR REPLACE delete rows without firing DELETE
triggers (the default of every SQLite tool), so guards before INSERT and UPDATE log what would be replaced; a key change
logs the new key as well; log columns carry the table's types and the keys' collations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from deeplake_loader.errors import InputError
from deeplake_loader.types import RESERVED_PREFIX, quote_identifier, quote_identifiers

if TYPE_CHECKING:
    from deeplake_loader.branches import Branches, Point
    from deeplake_loader.catalog import Catalog

LOG_PREFIX = RESERVED_PREFIX + "log_"
SEQ = f"(SELECT coalesce(max(seq), 0) FROM {RESERVED_PREFIX}commits)"
NOT_BULK = f"(SELECT bulk FROM {RESERVED_PREFIX}head) = 0"
"""Bulk inserts of our own switch the insert triggers off inside their transaction and log the new keys at its end."""


@dataclass(frozen=True, slots=True)
class StoredColumn:
    """One column as SQLite stores it: declared type, default expression, place in the key (0: none), collation."""

    name: str
    declared: str
    default: str | None
    key: int
    collation: str = "BINARY"


@dataclass(frozen=True, slots=True)
class Term:
    """One term of a unique index: a column, or an expression over unqualified columns, and the index's collation."""

    column: str | None
    expression: str
    collation: str

    def stored(self) -> str:
        """The term over the table's rows. BINARY is left out: a column's looser collation only finds more rows."""
        return self.expression if self.collation == "BINARY" else f"{self.expression} COLLATE {self.collation}"

    def of(self, side: str, columns: Sequence[StoredColumn]) -> str:
        """The term over NEW or OLD; an expression is evaluated over a one-row copy, so its text serves as it is."""
        if self.column is not None:
            return f"{side}.{quote_identifier(self.column)}"
        row = ", ".join(f"{side}.{q} AS {q}" for q in (quote_identifier(c.name) for c in columns))
        return f"(SELECT {self.expression} FROM (SELECT {row}))"


@dataclass(frozen=True, slots=True)
class Shape:
    """What the triggers need to know of a table: its stored columns and the terms of each unique index (key first)."""

    table: str
    columns: tuple[StoredColumn, ...]
    uniques: tuple[tuple[Term, ...], ...]

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(c.name for c in sorted(self.columns, key=lambda c: c.key) if c.key)

    @property
    def log(self) -> str:
        return LOG_PREFIX + self.table

    @property
    def names(self) -> str:
        return quote_identifiers(c.name for c in self.columns)

    def names_of(self, alias: str) -> str:
        """The columns of ``alias``. Unqualified, SQLite takes a name that a table lacks for a text in quotes."""
        return ", ".join(f"{alias}.{q} AS {q}" for q in (quote_identifier(c.name) for c in self.columns))


Query = tuple[str, tuple[Any, ...]]
"""A statement of ours, each parameter a ``?``, and its parameters."""


class History(Protocol):
    """What a catalog remembers of its tables: their shapes, undo logs, and rows at any point.

    `states.SqliteHistory` and `postgres.history.PostgresHistory` are the two; a catalog's own is ``catalog.history``.
    Every SELECT stands by itself and may be put in parentheses.
    """

    @property
    def branches(self) -> Branches:
        """The branches, tags and nodes of the store."""
        ...

    def shape(self, table: str) -> Shape:
        """The table as the database describes it."""
        ...

    def real(self, name: str) -> str:
        """A real table (main's, an overlay, a shadow, an undo log) as SQL names it, whatever the handle shows."""
        ...

    def install(self, table: str) -> None:
        """Follow a new table (caller's transaction)."""
        ...

    def rebuild(self, table: str) -> None:
        """Follow a table that was altered (caller's transaction)."""
        ...

    def rename_column(self, table: str, old: str, new: str) -> None:
        """Rename the column in what follows the table; the caller renames it there and rebuilds."""
        ...

    def drop(self, table: str) -> None:
        """Forget a table that is dropped (caller's transaction)."""
        ...

    def select(self, table: str, point: Point) -> Query:
        """A SELECT of the table's stored columns at a point; valid until something is written."""
        ...

    def base(self, table: str, point: Point) -> Query:
        """The part of `select` that is main's: rows as of the fork that the branch had not taken over."""
        ...

    def own(self, table: str, point: Point) -> Query:
        """The part of `select` that is the branch's own; the branch has an overlay of the table."""
        ...

    def candidate_keys(self, table: str, points: Sequence[Point]) -> Query:
        """A SELECT of the keys on which the table can differ between the points: some twice, some that do not."""
        ...

    def around(self, branch: int, seq: int) -> tuple[Point, Point]:
        """The points just before and after a commit of a branch: what differs between them is what it changed."""
        ...


def install(catalog: Catalog, table: str) -> None:
    """Create the table's log and triggers, inside the caller's transaction, right after CREATE TABLE."""
    shape = read_shape(catalog, table)
    if not shape.key:
        raise InputError(f"table {table!r} has no primary key, so its rows cannot be followed; declare one")
    catalog.execute(_create_log(shape))
    key = quote_identifiers(shape.key)
    index, log = quote_identifier(f"{RESERVED_PREFIX}key.{table}"), quote_identifier(shape.log)
    catalog.execute(f"CREATE INDEX {index} ON {log} ({key}, _dl_seq)")
    _create_triggers(catalog, shape)


def rebuild(catalog: Catalog, table: str) -> None:
    """Bring log and triggers in line with the table after an ALTER or a new unique index (caller's transaction)."""
    shape = read_shape(catalog, table)
    drop_triggers(catalog, table)
    known = {row[1].lower() for row in catalog.execute(f"PRAGMA main.table_info({quote_identifier(shape.log)})")}
    for column in shape.columns:
        if column.name.lower() not in known:
            catalog.execute(f"ALTER TABLE {quote_identifier(shape.log)} ADD COLUMN {_declare(column)}")
    _create_triggers(catalog, shape)


def drop_triggers(catalog: Catalog, table: str) -> None:
    """Remove the triggers: SQLite refuses to drop or rename columns that a trigger names."""
    for name in _trigger_names(table):
        catalog.execute(f"DROP TRIGGER IF EXISTS {quote_identifier(name)}")


def rename_column(catalog: Catalog, table: str, old: str, new: str) -> None:
    """Rename the column in the log, too; the caller renames it in the table and rebuilds."""
    log = quote_identifier(LOG_PREFIX + table)
    catalog.execute(f"ALTER TABLE {log} RENAME COLUMN {quote_identifier(old)} TO {quote_identifier(new)}")


def drop(catalog: Catalog, table: str) -> None:
    """Drop the log with its table (the triggers go with the table)."""
    catalog.execute(f"DROP TABLE IF EXISTS {quote_identifier(LOG_PREFIX + table)}")


def log_bulk_insert(catalog: Catalog, table: str, *, after_rowid: int) -> None:
    """Log as inserted every row with a larger rowid: what the insert trigger would have written one by one."""
    shape = read_shape(catalog, table)
    key = quote_identifiers(shape.key)
    catalog.execute(
        f"INSERT INTO {quote_identifier(shape.log)} (_dl_seq, _dl_op, {key}) "
        f"SELECT {SEQ}, 'I', {key} FROM main.{quote_identifier(table)} WHERE rowid > ?",
        (after_rowid,),
    )


def as_of_sql(catalog: Catalog, table: str) -> str:
    """A SELECT of the table's stored columns as of a commit, whose number it binds once, as ?1."""
    shape = read_shape(catalog, table)
    t, log = quote_identifier(table), quote_identifier(shape.log)
    changed = f"SELECT 1 FROM {log} l WHERE {_equal('l', 't', shape.key)} AND l._dl_seq >= ?1"
    earlier = f"SELECT 1 FROM {log} e WHERE {_equal('e', 'l', shape.key)} AND e._dl_seq >= ?1 AND e._dl_n < l._dl_n"
    return (
        f"SELECT {shape.names} FROM main.{t} t WHERE NOT EXISTS ({changed}) UNION ALL "
        f"SELECT {shape.names} FROM {log} l WHERE l._dl_seq >= ?1 AND l._dl_op <> 'I' AND NOT EXISTS ({earlier})"
    )


def read_shape(catalog: Catalog, table: str) -> Shape:
    """The table as SQLite itself describes it."""
    quoted = quote_identifier(table)  # "main.": a handle on a branch has a TEMP view of that name
    info = catalog.execute(f"PRAGMA main.table_xinfo({quoted})").fetchall()
    indexes = [row for row in catalog.execute(f"PRAGMA main.index_list({quoted})") if row[2]]
    terms = {row[1]: _index_terms(catalog, row[1]) for row in indexes}
    collations = {t.column: t.collation for row in indexes if row[3] == "pk" for t in terms[row[1]]}
    columns = tuple(
        StoredColumn(name, declared, default, key, collations.get(name, "BINARY"))
        for _, name, declared, _, default, key, hidden in info
        if hidden == 0
    )
    uniques = tuple(tuple(terms[row[1]]) for row in indexes if row[3] != "pk")
    key = sorted((c for c in columns if c.key), key=lambda c: c.key)
    return Shape(table, columns, (tuple(Term(c.name, quote_identifier(c.name), c.collation) for c in key), *uniques))


def unique_terms(catalog: Catalog, table: str, index: str) -> tuple[list[Term], str | None] | None:
    """The terms of a unique index and the condition of a partial one; None where the index is not unique."""
    rows = catalog.fetchall(f"PRAGMA main.index_list({quote_identifier(table)})")
    if not any(row[1] == index and row[2] for row in rows):
        return None
    query = "SELECT sql FROM main.sqlite_master WHERE type = 'index' AND name = ?"
    statement = catalog.fetchone(query, (index,))[0]
    return _index_terms(catalog, index), index_predicate(statement)


def index_predicate(statement: str) -> str | None:
    """The condition of a CREATE INDEX statement, None where it covers every row.

    >>> index_predicate("CREATE UNIQUE INDEX i ON t (lower(a), b) WHERE c > 0")
    'c > 0'
    """
    depth, quote = 0, ""
    for i, c in enumerate(statement):
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"`":
            quote = c
        else:
            depth += (c == "(") - (c == ")")
            if depth == 0 and c == ")":
                rest = statement[i + 1 :].strip()
                return rest[5:].strip() if rest[:5].upper() == "WHERE" else None
    return None


def _index_terms(catalog: Catalog, index: str) -> list[Term]:
    """The terms an index compares: columns by name, expressions by their text in the CREATE INDEX statement."""
    rows = [r for r in catalog.execute(f"PRAGMA main.index_xinfo({quote_identifier(index)})") if r[5]]
    written: list[str] = []
    if any(name is None for _, _, name, *_ in rows):
        query = "SELECT sql FROM main.sqlite_master WHERE type = 'index' AND name = ?"
        written = split_index_terms(catalog.execute(query, (index,)).fetchone()[0])
    return [
        Term(name, quote_identifier(name) if name is not None else written[i], collation)
        for i, (_, _, name, _, collation, _) in enumerate(rows)
    ]


def split_index_terms(statement: str) -> list[str]:
    """The parenthesised expressions of a CREATE INDEX statement, without ASC, DESC and COLLATE.

    >>> split_index_terms('CREATE UNIQUE INDEX i ON t (lower(a) DESC, b) WHERE c > 0')
    ['(lower(a))', '(b)']
    """
    parts, depth, start, quote = [], 0, -1, ""
    for i, c in enumerate(statement):
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"`":
            quote = c
        elif c == "(":
            depth, start = depth + 1, i + 1 if depth == 0 else start
        elif (c == ")" and depth == 1) or (c == "," and depth == 1):
            parts.append(statement[start:i])
            start = i + 1
        if c == ")" and not quote:
            depth -= 1
            if depth == 0:
                break
    return [f"({_strip_order(p)})" for p in parts]


def _strip_order(term: str) -> str:
    words = term.strip().split()
    if words and words[-1].upper() in ("ASC", "DESC"):
        words = words[:-1]
    if len(words) > 2 and words[-2].upper() == "COLLATE":
        words = words[:-2]
    return " ".join(words)


def _declare(column: StoredColumn) -> str:
    """The column as the log declares it: same type, key collation and default, none of its constraints."""
    parts = [quote_identifier(column.name), column.declared]
    if column.collation != "BINARY":
        parts.append(f"COLLATE {column.collation}")
    if column.default is not None and _is_constant(column.default):
        parts.append(f"DEFAULT ({column.default})")
    return " ".join(parts)


def _is_constant(default: str) -> bool:
    """ADD COLUMN takes only constant defaults, and only those can ever be needed for rows logged before the column."""
    return default[:1] in "'0123456789-+xX" or default.upper() in ("NULL", "TRUE", "FALSE")


def _create_log(shape: Shape) -> str:
    columns = ", ".join(map(_declare, shape.columns))
    return (
        f"CREATE TABLE {quote_identifier(shape.log)} "
        f"(_dl_n INTEGER PRIMARY KEY, _dl_seq INTEGER NOT NULL, _dl_op TEXT NOT NULL, {columns})"
    )


def _trigger_names(table: str) -> dict[str, str]:
    kinds = ("insert", "update", "delete", "insert_guard", "update_guard")
    return {f"{RESERVED_PREFIX}{table}_{kind}": kind for kind in kinds}


def _create_triggers(catalog: Catalog, shape: Shape) -> None:
    bodies = {
        "insert": _insert_trigger(shape),
        "update": _update_trigger(shape),
        "delete": _delete_trigger(shape),
        "insert_guard": _guard(shape, "INSERT"),
        "update_guard": _guard(shape, "UPDATE"),
    }
    for name, kind in _trigger_names(shape.table).items():
        catalog.execute(f"CREATE TRIGGER {quote_identifier(name)} {bodies[kind]}")


def _equal(a: str, b: str, key: Sequence[str]) -> str:
    return " AND ".join(f"{a}.{quote_identifier(k)} = {b}.{quote_identifier(k)}" for k in key)


def _unlogged(shape: Shape, row: str) -> str:
    """No image of this row's key yet under the current number (an outer OR REPLACE overrides OR IGNORE)."""
    log = quote_identifier(shape.log)
    return f"NOT EXISTS (SELECT 1 FROM {log} l WHERE {_equal('l', row, shape.key)} AND l._dl_seq = {SEQ})"


def _log_key(shape: Shape) -> str:
    key = quote_identifiers(shape.key)
    new = ", ".join(f"NEW.{quote_identifier(k)}" for k in shape.key)
    return f"INSERT INTO {quote_identifier(shape.log)} (_dl_seq, _dl_op, {key}) SELECT {SEQ}, 'I', {new}"


def _log_image(shape: Shape, op: str) -> str:
    old = ", ".join(f"OLD.{quote_identifier(c.name)}" for c in shape.columns)
    return f"INSERT INTO {quote_identifier(shape.log)} (_dl_seq, _dl_op, {shape.names}) SELECT {SEQ}, '{op}', {old}"


def _insert_trigger(shape: Shape) -> str:
    condition = f"{NOT_BULK} AND {_unlogged(shape, 'NEW')}"
    return f"AFTER INSERT ON {quote_identifier(shape.table)} WHEN {condition} BEGIN {_log_key(shape)}; END"


def _update_trigger(shape: Shape) -> str:
    moved = " OR ".join(f"NEW.{q} IS NOT OLD.{q}" for q in map(quote_identifier, shape.key))
    return (
        f"AFTER UPDATE ON {quote_identifier(shape.table)} BEGIN "
        f"{_log_image(shape, 'U')} WHERE {_unlogged(shape, 'OLD')}; "
        f"{_log_key(shape)} WHERE ({moved}) AND {_unlogged(shape, 'NEW')}; END"
    )


def _delete_trigger(shape: Shape) -> str:
    return (
        f"AFTER DELETE ON {quote_identifier(shape.table)} WHEN {_unlogged(shape, 'OLD')} "
        f"BEGIN {_log_image(shape, 'D')}; END"
    )


def _guard(shape: Shape, event: str) -> str:
    """Before INSERT or UPDATE: log the rows that an OR REPLACE would delete in favour of NEW.

    A statement without OR REPLACE fails on such rows and takes the log rows back with it; an upsert's extra image of an
    unchanged row is harmless.
    """
    table, log = quote_identifier(shape.table), quote_identifier(shape.log)
    clashes = [
        "(" + " AND ".join(f"{t.stored()} = {t.of('NEW', shape.columns)}" for t in terms) + ")"
        for terms in shape.uniques
    ]
    hits = [f"EXISTS (SELECT 1 FROM {table} WHERE {clash})" for clash in clashes]
    condition = f"{NOT_BULK} AND ({' OR '.join(hits)})" if event == "INSERT" else touches_unique(shape, hits)
    other = "" if event == "INSERT" else f"AND NOT ({_equal('x', 'OLD', shape.key)})"
    return (
        f"BEFORE {event} ON {table} WHEN {condition} BEGIN "
        f"INSERT INTO {log} (_dl_seq, _dl_op, {shape.names}) SELECT {SEQ}, 'D', {shape.names} FROM {table} x "
        f"WHERE ({' OR '.join(clashes)}) {other} AND {_unlogged(shape, 'x')}; END"
    )


def touches_unique(shape: Shape, hits: Sequence[str]) -> str:
    """An update that leaves an index's terms as they were cannot clash on it; that test is cheap and comes first."""
    changed = [
        " OR ".join(f"{t.of('NEW', shape.columns)} IS NOT {t.of('OLD', shape.columns)}" for t in terms)
        for terms in shape.uniques
    ]
    return " OR ".join(f"(({c}) AND {h})" for c, h in zip(changed, hits, strict=True))
