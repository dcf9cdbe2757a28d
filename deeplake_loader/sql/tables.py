"""CREATE TABLE, CREATE INDEX, DROP, ALTER TABLE as SQLite text, and the table definition that follows.

VECTOR and the blob types are stored as addresses: BIGINT with a CHECK on the type. Everything in a definition must run
in any SQLite tool, so it may use SQLite's own functions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, count

from deeplake_loader.codecs import check_options
from deeplake_loader.errors import InputError
from deeplake_loader.sql import tree
from deeplake_loader.sql.casts import CONSTANT, assign
from deeplake_loader.sql.ordering import order_text
from deeplake_loader.sql.queries import QueryCompiler
from deeplake_loader.sql.scope import Scope, Visible, table_fields
from deeplake_loader.sql.tree import Name
from deeplake_loader.sql.values import WHOLE, Context, Target, identifier
from deeplake_loader.types import BLOBS, RESERVED_PREFIX, Column, ColumnType, Table, VectorIndex

STORED = {
    "DOUBLE": "DOUBLE PRECISION", "JSON": "JSON TEXT", "UUID": "UUID TEXT", "VECTOR": "BIGINT",
    **dict.fromkeys(BLOBS, "BIGINT"),
}  # fmt: skip
"""Type -> what SQLite is told; the others keep their name. JSON and UUID alone would have numeric affinity."""

NOW = "(strftime('%Y-%m-%d %H:%M:%f000', 'now'))"
DEFAULT_NOW = {"TIMESTAMP": NOW, "TIMESTAMPTZ": "(strftime('%Y-%m-%d %H:%M:%f000+00:00', 'now'))",
               "DATE": "(strftime('%Y-%m-%d', 'now'))"}  # fmt: skip
DEFAULT_UUID = (
    "(lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-' || "
    "substr('89ab', 1 + (abs(random()) % 4), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6))))"
)

ADDED_KEY = f"{RESERVED_PREFIX}added_key"
"""The constraint's name by which a key is known that the table was given because it had none."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A compiled definition: its text, the name it is about, the table as it is afterwards."""

    sql: str
    target: str
    table: Table | None = None
    renames: tuple[tuple[str, str], ...] = ()


class TableCompiler:
    def __init__(self, context: Context) -> None:
        self.context, self.queries = context, QueryCompiler(context)

    # -- CREATE TABLE ----------------------------------------------------------------------------------------------

    def create(self, node: tree.CreateTable) -> Definition:
        self._free(node.name)
        keys = self._key(node)
        columns = [self._column(column, keys) for column in node.columns]
        numbered = None if keys else self._free_key(columns)
        if numbered is not None:
            columns.insert(0, Column(numbered, ColumnType("BIGINT"), False))
            keys = (numbered,)
        table = Table(node.name.text, tuple(columns), keys)
        self._distinct_names(node)
        auto = self._counts(node, table)
        parts = [f"{numbered} INTEGER CONSTRAINT {ADDED_KEY} PRIMARY KEY AUTOINCREMENT"] if numbered else []
        parts += [self._column_text(table, column, auto) for column in node.columns]
        parts += [text for c in node.constraints if (text := self._constraint(table, c, auto))]
        missing = "IF NOT EXISTS " if node.missing_ok else ""
        return Definition(f"CREATE TABLE {missing}{identifier(table.name)} ({', '.join(parts)})", table.name, table)

    def _free_key(self, columns: Sequence[Column]) -> str:
        """The name of the key of a table that was given none."""
        taken = {column.name.lower() for column in columns}
        names = chain(("id", "row_id"), (f"row_id_{i}" for i in count(2)))
        return next(name for name in names if name not in taken)

    def _free(self, name: Name) -> None:
        if name.text.lower().startswith((RESERVED_PREFIX, "sqlite_")):
            self.context.fail(f"names that begin with {RESERVED_PREFIX} or sqlite_ are reserved", name.pos)

    def _distinct_names(self, node: tree.CreateTable) -> None:
        seen: set[str] = set()
        for column in node.columns:
            if column.name.text.lower() in seen:
                self.context.fail(f"two columns are named {column.name.text!r} (whatever the case)", column.pos)
            seen.add(column.name.text.lower())

    def _key(self, node: tree.CreateTable) -> tuple[str, ...]:
        found: list[tuple[str, ...]] = [(c.name.text,) for c in node.columns if c.primary_key]
        found += [tuple(n.text for n in c.columns) for c in node.constraints if c.kind == "primary"]
        if len(found) > 1:
            self.context.fail("a table has one primary key", node.pos)
        names = {column.name.text for column in node.columns}
        for key in found[0] if found else ():
            if key not in names:
                self.context.fail(f"the primary key names {key!r}, which is no column", node.pos)
        return found[0] if found else ()

    def _column(self, node: tree.ColumnDefinition, keys: tuple[str, ...]) -> Column:
        self._free(node.name)
        kind = node.type.type
        if node.name.text.lower() in ("rowid", "oid", "_rowid_"):
            self.context.refuse(f"a column cannot be named {node.name.text!r} here; choose another name", node.pos)
        if node.type.array or kind.name == "INTERVAL":
            hint = "keep lists in JSON" if node.type.array else "keep seconds as a number"
            self.context.refuse(f"{kind}{'[]' * node.type.array} columns are not supported; {hint}", node.type.pos)
        if node.type.length == 0:
            self.context.fail("VECTOR needs its dimension: VECTOR(768)", node.type.pos)
        try:
            check_options(kind, f"column {node.name.text!r}")
        except InputError as error:
            self.context.fail(str(error), node.type.pos)
        key = node.name.text in keys
        if key and not kind.is_scalar:
            self.context.fail(f"{kind} cannot be a primary key", node.pos)
        return Column(node.name.text, kind, not (node.not_null or key))

    def _counts(self, node: tree.CreateTable, table: Table) -> str | None:
        """The primary key that SQLite counts: one whole-number column."""
        auto = None
        for column in node.columns:
            alone = table.primary_key == (column.name.text,) and column.type.type.name in WHOLE
            if alone and column.default is None and column.reference is None:
                auto = column.name.text
            elif column.type.serial or column.identity:
                self.context.refuse("SERIAL and IDENTITY are for a primary key of one column", column.pos)
        return auto

    def _column_text(self, table: Table, node: tree.ColumnDefinition, auto: str | None) -> str:
        name, kind = identifier(node.name.text), node.type.type
        if node.name.text == auto:
            checks = self._checks(table, node)
            return f"{name} INTEGER PRIMARY KEY AUTOINCREMENT{checks}"
        parts = [f"{name} {STORED.get(kind.name, str(kind))}"]
        key = table.primary_key == (node.name.text,) and node.primary_key
        parts.append(" NOT NULL" if node.not_null or node.name.text in table.primary_key else "")
        parts.append(" PRIMARY KEY" if key else "")
        parts.append(" UNIQUE" if node.unique and self._comparable(kind, node.pos) else "")
        parts.append(self._default(table, node))
        if node.generated is not None:
            parts.append(f" GENERATED ALWAYS AS ({self._portable(table, node.generated, kind)}) STORED")
        parts.append(self._checks(table, node))
        if node.reference is not None:
            parts.append(f" {self._reference(node.reference)}")
        return "".join(parts)

    def _comparable(self, kind: ColumnType, pos: int) -> bool:
        if not kind.is_scalar or kind.name == "JSON":
            self.context.refuse(f"{kind} values are not compared, so they cannot be unique or indexed", pos)
        return True

    def _default(self, table: Table, node: tree.ColumnDefinition) -> str:
        if node.default is None:
            return ""
        kind, value = node.type.type, node.default
        if not kind.is_scalar and not (isinstance(value, tree.Literal_) and value.kind == "null"):
            self.context.refuse(f"a default for {kind} is not supported", value.pos)
        if isinstance(value, tree.Call) and value.name in ("now", "localtimestamp", "current_date"):
            if kind.name not in DEFAULT_NOW:
                self.context.fail(f"the default of column {node.name.text!r} is a time, its type {kind}", value.pos)
            return f" DEFAULT {DEFAULT_NOW[kind.name]}"
        if isinstance(value, tree.Call) and value.name in ("gen_random_uuid", "uuidv4") and kind.name == "UUID":
            return f" DEFAULT {DEFAULT_UUID}"
        sql = self._portable(Table(table.name, (), ()), value, kind)
        simple = isinstance(value, tree.Literal_) or CONSTANT.fullmatch(sql) is not None
        return f" DEFAULT {sql}" if simple else f" DEFAULT ({sql})"

    def _portable(self, table: Table, node: tree.Expression, kind: ColumnType | None) -> str:
        """An expression that any SQLite tool can run; of one type where a type is given."""
        scope = Scope(place="a table's definition")
        scope.sources.append(Visible(table.name, table_fields(table), table))
        for part in tree.walk(node):
            if isinstance(part, tree.Parameter):
                self.context.fail("a definition takes no parameters; write the value", part.pos)
            if isinstance(part, tree.Query):
                self.context.refuse("a definition cannot hold a subquery", part.pos)
        if kind is None:
            value = self.queries.condition(scope, node, "CHECK")
        else:
            target = Target(kind, "")
            value = assign(self.context, self.queries.expression(scope, node, target), target, node.pos)
        if "_dl_" in value.sql or value.score:
            self.context.refuse(
                "this expression needs functions that other SQLite tools lack, so it cannot stand in a definition; "
                "check the value in Python, or use simple comparisons", node.pos,
            )  # fmt: skip
        return value.sql

    def _checks(self, table: Table, node: tree.ColumnDefinition) -> str:
        name, kind = identifier(node.name.text), node.type.type
        parts = []
        for label, check in node.checks:
            named = f"CONSTRAINT {identifier(label.text)} " if label is not None else ""
            parts.append(f" {named}CHECK ({self._portable(table, check, None)})")
        if not kind.is_scalar:
            parts.append(f" CHECK (typeof({name}) IN ('integer','null'))")
        if node.type.length is not None and kind.name == "TEXT":
            parts.append(f" CHECK (length({name}) <= {node.type.length})")
        return "".join(parts)

    def _reference(self, node: tree.Reference) -> str:
        table = node.table.text
        if table in self.context.schema:
            table = self.context.schema[table].name
        columns = f" ({', '.join(identifier(name.text) for name in node.columns)})" if node.columns else ""
        return f"REFERENCES {identifier(table)}{columns}{node.actions}"

    def _constraint(self, table: Table, node: tree.TableConstraint, auto: str | None) -> str:
        name = f"CONSTRAINT {identifier(node.name.text)} " if node.name is not None else ""
        columns = []
        for column in node.columns:
            found = table.column(column.text)
            if found is None:
                self.context.fail(f"the constraint names {column.text!r}, which is no column", column.pos)
            if node.kind in ("primary", "unique"):
                self._comparable(found.type, column.pos)
            columns.append(identifier(found.name))
        listed = ", ".join(columns)
        if node.kind == "primary":
            return "" if auto is not None else f"{name}PRIMARY KEY ({listed})"
        if node.kind == "unique":
            return f"{name}UNIQUE ({listed})"
        if node.kind == "check" and node.check is not None:
            return f"{name}CHECK ({self._portable(table, node.check, None)})"
        assert node.reference is not None
        return f"{name}FOREIGN KEY ({listed}) {self._reference(node.reference)}"

    # -- indexes, DROP, ALTER --------------------------------------------------------------------------------------

    def index(self, node: tree.CreateIndex) -> Definition:
        table = self.context.table(node.table)
        scope = Scope(place="an index")
        scope.sources.append(Visible(table.name, table_fields(table), table))
        keys = []
        for key in node.keys:
            value = self.queries.expression(scope, key.expression)
            if value.type is not None:
                self._comparable(value.type, key.pos)
            if "_dl_" in value.sql:
                self.context.refuse("an index on this expression would need functions of ours; index a column", key.pos)
            plain = replace(value, nullable=False)  # SQLite's indexes take no NULLS FIRST; it changes no result
            text = order_text(self.context, key, plain)
            column = isinstance(key.expression, tree.ColumnRef)
            keys.append(text if column else text.replace(value.sql, f"({value.sql})", 1))
        name = node.name.text if node.name is not None else self._index_name(table, node)
        if name.lower().startswith((RESERVED_PREFIX, "sqlite_")):
            self.context.fail(f"names that begin with {RESERVED_PREFIX} or sqlite_ are reserved", node.pos)
        where = "" if node.where is None else f" WHERE {self._portable(table, node.where, None)}"
        head = f"CREATE {'UNIQUE ' if node.unique else ''}INDEX {'IF NOT EXISTS ' if node.missing_ok else ''}"
        sql = f"{head}{identifier(name)} ON {identifier(table.name)} ({', '.join(keys)}){where}"
        return Definition(sql, name, table)

    def vector_index(self, node: tree.CreateVectorIndex) -> VectorIndex:
        table = self.context.table(node.table)
        column = table.column(node.column.text)
        if column is None:
            self.context.fail(f"table {table.name!r} has no column {node.column.text!r}", node.column.pos)
        if not column.type.is_vector:
            self.context.fail(f"USING ivf is for VECTOR columns; {column.name!r} is {column.type}", node.column.pos)
        name = node.name.text if node.name is not None else f"{table.name}_{column.name}_idx"
        self._free(node.name or Name(name, pos=node.pos))
        return VectorIndex(name, table.name, column.name, "ivf", node.metric, node.lists)

    def _index_name(self, table: Table, node: tree.CreateIndex) -> str:
        names = [k.expression.name.text if isinstance(k.expression, tree.ColumnRef) else "expr" for k in node.keys]
        return "_".join([table.name, *names, "idx"])

    def drop(self, node: tree.Drop) -> Definition:
        name = node.name.text
        if node.what == "table" and (not node.missing_ok or name.lower() in self.context.schema):
            name = self.context.table(node.name).name
        if name.lower().startswith((RESERVED_PREFIX, "sqlite_")):
            self.context.fail(f"{name!r} is not the user's", node.name.pos)
        missing = "IF EXISTS " if node.missing_ok else ""
        return Definition(f"DROP {node.what.upper()} {missing}{identifier(name)}", name)

    def alter(self, node: tree.AlterTable) -> Definition:
        table = self.context.table(node.table)
        if node.action == "add" and node.column is not None:
            return self._add(table, node.column, node)
        assert node.old is not None
        found = table.column(node.old.text)
        if found is None:
            self.context.fail(f"table {table.name!r} has no column {node.old.text!r}", node.old.pos)
        head = f"ALTER TABLE {identifier(table.name)}"
        if node.action == "rename" and node.new is not None:
            self._free(node.new)
            new = node.new.text
            columns = tuple(replace_name(c, new) if c is found else c for c in table.columns)
            keys = tuple(new if key == found.name else key for key in table.primary_key)
            sql = f"{head} RENAME COLUMN {identifier(found.name)} TO {identifier(new)}"
            return Definition(sql, table.name, Table(table.name, columns, keys), ((found.name, new),))
        if found.name in table.primary_key:
            self.context.refuse("the primary key cannot be dropped", node.old.pos)
        kept = Table(table.name, tuple(c for c in table.columns if c is not found), table.primary_key)
        return Definition(f"{head} DROP COLUMN {identifier(found.name)}", table.name, kept)

    def _add(self, table: Table, column: tree.ColumnDefinition, node: tree.AlterTable) -> Definition:
        if column.primary_key or column.unique or column.identity or column.type.serial or column.generated is not None:
            self.context.refuse("an added column cannot be a key, unique or generated; add a UNIQUE INDEX", node.pos)
        if column.not_null and column.default is None:
            self.context.fail("an added NOT NULL column needs a DEFAULT", column.pos)
        if table.column(column.name.text) is not None:
            self.context.fail(f"table {table.name!r} has a column {column.name.text!r} already", column.pos)
        new = self._column(column, ())
        after = Table(table.name, (*table.columns, new), table.primary_key)
        text = self._column_text(after, column, None)
        if column.default is not None and " DEFAULT (" in text:
            self.context.refuse("the default of an added column must be a constant", column.pos)
        return Definition(f"ALTER TABLE {identifier(table.name)} ADD COLUMN {text}", table.name, after)


def replace_name(column: Column, name: str) -> Column:
    return Column(name, column.type, column.nullable)
