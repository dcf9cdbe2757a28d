"""What names mean: the tables and columns a block sees, its own and those of the blocks around it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field

from deeplake_loader.sql import tree
from deeplake_loader.sql.tree import Name
from deeplake_loader.sql.values import Context, Value, identifier
from deeplake_loader.types import ColumnType, Table


@dataclass(frozen=True, slots=True)
class Field:
    """A column that a query or a table offers; ``sql_name`` where SQLite calls it otherwise, ``untyped`` for a string
    literal, whose type UNION may still choose."""

    name: str
    type: ColumnType | None
    nullable: bool = True
    score: bool = False
    sql_name: str | None = None
    untyped: bool = False


@dataclass(slots=True)
class Visible:
    """One entry of FROM.

    Fields: its alias, its columns, the table it is (None for a subquery), ``optional``, whether an outer join may
    fill it with NULLs; ``merged``, the columns that USING shows once, in front of the others.
    """

    alias: str
    columns: tuple[Field, ...]
    table: Table | None = None
    optional: bool = False
    merged: frozenset[str] = frozenset()

    def column(self, name: Name) -> Field | None:
        wanted = name.text if name.quoted else name.text.lower()
        for column in self.columns:
            if column.name == wanted or (not name.quoted and column.name.lower() == wanted):
                return column
        return None


@dataclass(slots=True)
class Found:
    """What a column reference turned out to be: ``depth`` 0 for this block, 1 for the block around it ..."""

    source: Visible
    column: Field
    depth: int


@dataclass(slots=True)
class Scope:
    """One block: its sources, what it is nested in, what was met while it was compiled."""

    parent: Scope | None = None
    ctes: dict[str, tuple[Field, ...]] = field(default_factory=dict)
    sources: list[Visible] = field(default_factory=list)
    merged: dict[str, tuple[str, Field]] = field(default_factory=dict)
    windows: dict[str, tree.Window] = field(default_factory=dict)
    aliases: frozenset[str] = frozenset()
    aggregates: bool = False
    captured: list[tuple[Found, int]] = field(default_factory=list)
    place: str = ""
    inside_aggregate: bool = False
    inside_window: bool = False

    def outward(self) -> Iterator[Scope]:
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent

    def cte(self, name: Name) -> tuple[Field, ...] | None:
        for scope in self.outward():
            if name.text in scope.ctes:
                return scope.ctes[name.text]
        return None

    def add(self, context: Context, source: Visible, pos: int) -> None:
        if any(other.alias == source.alias for other in self.sources):
            context.fail(f"table name {source.alias!r} is there twice; give one an alias", pos)
        self.sources.append(source)


def resolve(context: Context, scope: Scope, ref: tree.ColumnRef) -> tuple[Value, Found | None]:
    """The column a reference means, as SQL, and where it was found (None for a column merged by USING)."""
    for depth, level in enumerate(scope.outward()):
        merged = level.merged.get(ref.name.text) if ref.table is None else None
        if merged is not None:
            sql, column = merged
            return Value(sql, column.type, nullable=column.nullable, score=column.score), None
        found = _in_level(context, level, ref, depth)
        if found is not None:
            if depth:
                level.captured.append((found, ref.pos))
            return _value(scope, ref, found), found
    _unknown(context, scope, ref)
    raise AssertionError


def _in_level(context: Context, scope: Scope, ref: tree.ColumnRef, depth: int) -> Found | None:
    hits = [
        Found(source, column, depth)
        for source in scope.sources
        if ref.table is None or source.alias == ref.table.text
        for column in [source.column(ref.name)]
        if column is not None
    ]
    if len(hits) > 1:
        tables = " and ".join(hit.source.alias for hit in hits)
        context.fail(f"column {ref.name.text!r} is in {tables}; write {hits[0].source.alias}.{ref.name.text}", ref.pos)
    if hits and sum(column.name == hits[0].column.name for column in hits[0].source.columns) > 1:
        context.fail(f"column {ref.name.text!r} is there twice in {hits[0].source.alias!r}; name them apart", ref.pos)
    return hits[0] if hits else None


def _value(scope: Scope, ref: tree.ColumnRef, found: Found) -> Value:
    column = found.column
    name = column.sql_name or identifier(column.name)
    hidden = column.name in scope.aliases or found.depth > 0 or column.sql_name is not None
    if ref.table is not None or hidden:
        name = f"{identifier(found.source.alias)}.{name}"
    return Value(name, column.type, nullable=column.nullable or found.source.optional, score=column.score)


def _unknown(context: Context, scope: Scope, ref: tree.ColumnRef) -> None:
    sources = [source for level in scope.outward() for source in level.sources]
    if ref.table is not None and all(source.alias != ref.table.text for source in sources):
        known = ", ".join(source.alias for source in sources) or "none"
        context.fail(f"there is no table {ref.table.text!r} in this query's FROM; there are {known}", ref.pos)
    names = [c.name for s in sources for c in s.columns if ref.table is None or s.alias == ref.table.text]
    near = difflib.get_close_matches(ref.name.text, names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; columns are {', '.join(dict.fromkeys(names)) or 'none'}"
    if ref.name.quoted and not near:
        hint += " (double quotes name columns; text stands in single quotes)"
    context.fail(f"there is no column {ref.name.text!r}{hint}", ref.pos)


def table_fields(table: Table) -> tuple[Field, ...]:
    return tuple(Field(column.name, column.type, column.nullable) for column in table.columns)
