"""INSERT, UPDATE, DELETE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from deeplake_loader.sql import sources, tree
from deeplake_loader.sql.functions import VOLATILE
from deeplake_loader.sql.plan import CHOSEN_KEYS, ResultColumn
from deeplake_loader.sql.queries import QueryCompiler, Wanted, output_name
from deeplake_loader.sql.scope import Scope, Visible, table_fields
from deeplake_loader.sql.tree import Name
from deeplake_loader.sql.values import Context, Target, Value, identifier
from deeplake_loader.types import Column, Table


@dataclass(frozen=True, slots=True)
class Write:
    """A compiled change: its text, its table, the columns an INSERT fills, what RETURNING gives; for a table whose rows
    lie elsewhere also the keys it chooses, and whether they may be asked for only ``once``."""

    sql: str
    table: Table
    columns: tuple[str, ...]
    results: tuple[ResultColumn, ...]
    keys: str | None = None
    once: bool = False


class WriteCompiler:
    def __init__(self, context: Context) -> None:
        self.context, self.queries = context, QueryCompiler(context)

    # -- INSERT ----------------------------------------------------------------------------------------------------

    def insert(self, node: tree.Insert) -> Write:
        scope = Scope()
        head = self.queries.with_text(scope, node.ctes, node.recursive)
        table = self.context.table(node.table.name)
        columns = self._insert_columns(table, node)
        source, columns = self._without_defaults(node, columns)
        body = "DEFAULT VALUES"
        if source is not None and columns:
            targets = [Target(column.type, column.name) for column in columns]
            found = self.queries.query(source, scope, Wanted(targets))
            sql = found.sql
            if node.conflict is not None and isinstance(source.body, tree.Select) and source.body.where is None:
                sql = f"SELECT * FROM ({sql}) WHERE TRUE"  # without WHERE SQLite reads ON as a join's
            listed = ", ".join(identifier(column.name) for column in columns)
            body = f"({listed}) {sql}" if node.columns or len(columns) < len(table.columns) else sql
        conflict = "" if node.conflict is None else self._conflict(scope, node, table, node.conflict)
        returning, results = self._returning(scope, node.returning, node.table, table)
        text = f"{head}INSERT INTO {self._written(table, node.table)} {body}{conflict}{returning}"
        return Write(text, table, tuple(column.name for column in columns), results)

    def _written(self, table: Table, ref: tree.TableRef) -> str:
        """The table that is written, under the name that the statement gives it."""
        real = table.name if self.context.physical is None else self.context.physical[table.name]
        alias = ref.alias.text if ref.alias is not None else table.name
        return identifier(real) if real == alias else f"{identifier(real)} AS {identifier(alias)}"

    def _insert_columns(self, table: Table, node: tree.Insert) -> list[Column]:
        if node.columns:
            return self._columns(table, node.columns)
        width = self._width(node.source)
        if width is not None and width > len(table.columns):
            self.context.fail(f"{width} values for the {len(table.columns)} columns of {table.name!r}", node.table.pos)
        return list(table.columns[:width])

    def _width(self, source: tree.Query | None) -> int | None:
        """How many values a row has, where that can be counted: PostgreSQL fills the first columns."""
        if source is not None and isinstance(source.body, tree.Values):
            return len(source.body.rows[0])
        if source is not None and isinstance(source.body, tree.Select):
            items = source.body.items
            return None if any(isinstance(item.expression, tree.Star) for item in items) else len(items)
        return None

    def _columns(self, table: Table, names: Sequence[Name]) -> list[Column]:
        found = [self.column(table, name) for name in names]
        twice = next((name for i, name in enumerate(names) if found[i] in found[:i]), None)
        if twice is not None:
            self.context.fail(f"column {twice.text!r} is named twice", twice.pos)
        return found

    def column(self, table: Table, name: Name) -> Column:
        found = table.column(name.text)
        if found is None or (name.quoted and found.name != name.text):
            known = ", ".join(column.name for column in table.columns)
            self.context.fail(f"table {table.name!r} has no column {name.text!r}; columns are {known}", name.pos)
        return found

    def _without_defaults(self, node: tree.Insert, columns: list[Column]) -> tuple[tree.Query | None, list[Column]]:
        """DEFAULT for a column in every row means to leave the column away; SQLite has no DEFAULT in VALUES."""
        source = node.source
        if source is None or not isinstance(source.body, tree.Values):
            return source, columns
        rows = source.body.rows
        width = len(columns)
        for row in rows:
            if len(row) != width:
                self.context.fail(f"a row of {len(row)} values for {width} columns", row[0].pos)
        default = [[isinstance(cell, tree.Default) for cell in row] for row in rows]
        dropped = [all(row[i] for row in default) for i in range(width)]
        for row, flags in zip(rows, default, strict=True):
            for i, cell in enumerate(row):
                if flags[i] and not dropped[i]:
                    self.context.refuse("DEFAULT in some rows only is not supported; use two INSERTs", cell.pos)
        if not any(dropped):
            return source, columns
        if len(rows) > 1 and all(dropped):
            self.context.refuse("several rows of nothing but DEFAULT are not supported", rows[0][0].pos)
        kept = tuple(tuple(c for c, drop in zip(row, dropped, strict=True) if not drop) for row in rows)
        return replace(source, body=replace(source.body, rows=kept)), [
            column for column, drop in zip(columns, dropped, strict=True) if not drop
        ]

    def _conflict(self, outer: Scope, node: tree.Insert, table: Table, conflict: tree.OnConflict) -> str:
        columns = self._columns(table, conflict.columns)
        scope = Scope(outer)
        alias = node.table.alias.text if node.table.alias is not None else table.name
        scope.add(self.context, Visible(alias, table_fields(table), table), conflict.pos)
        text = f" ON CONFLICT ({', '.join(identifier(c.name) for c in columns)})" if columns else " ON CONFLICT"
        if conflict.target_where is not None:
            text += f" WHERE {self.queries.condition(scope, conflict.target_where, 'WHERE').sql}"
        if conflict.assignments is None:
            return f"{text} DO NOTHING"
        proposed = Scope(scope)  # unqualified names mean the row that is there, as in PostgreSQL
        proposed.sources = [*scope.sources]
        excluded = Visible("excluded", table_fields(table), table)
        outermost = Scope(outer)
        outermost.sources = [excluded]
        scope.parent = outermost
        text += f" DO UPDATE SET {self._assignments(scope, table, conflict.assignments)}"
        if conflict.where is not None:
            text += f" WHERE {self.queries.condition(scope, conflict.where, 'WHERE').sql}"
        return text

    # -- UPDATE and DELETE -----------------------------------------------------------------------------------------

    def _assignments(self, scope: Scope, table: Table, assignments: Sequence[tree.Assignment]) -> str:
        scope.place = "SET"
        seen: set[str] = set()
        parts = []
        for assignment in assignments:
            columns = self._columns(table, assignment.columns)
            for column in columns:
                if column.name in seen:
                    self.context.fail(f"column {column.name!r} is set twice", assignment.pos)
                seen.add(column.name)
            parts.append(self._assignment(scope, columns, assignment))
        scope.place = ""
        return ", ".join(parts)

    def _assignment(self, scope: Scope, columns: list[Column], node: tree.Assignment) -> str:
        targets = [Target(column.type, column.name) for column in columns]
        value = node.value
        if isinstance(value, tree.Default):
            self.context.refuse("SET column = DEFAULT is not supported; write the value", value.pos)
        if len(columns) == 1 and not isinstance(value, tree.Tuple_):
            return f"{identifier(columns[0].name)} = {self.queries.assigned(scope, value, targets[0]).sql}"
        names = ", ".join(identifier(column.name) for column in columns)
        if isinstance(value, tree.Scalar):
            found = self.queries.query(value.query, scope, Wanted(targets))
            if not found.single:
                self.context.refuse("SET (a, b) = (query) needs a query of one row: add LIMIT 1", node.pos)
            return f"({names}) = ({found.sql})"
        if not isinstance(value, tree.Tuple_) or len(value.items) != len(columns):
            self.context.fail(f"SET of {len(columns)} columns needs as many values", node.pos)
        pairs = zip(value.items, targets, strict=True)
        return f"({names}) = ({', '.join(self.queries.assigned(scope, item, target).sql for item, target in pairs)})"

    def update(self, node: tree.Update) -> Write:
        scope = Scope()
        head = self.queries.with_text(scope, node.ctes, node.recursive)
        table = self.context.table(node.table.name)
        block = Scope(scope)
        target = sources.table_text(self.queries, block, node.table)
        source = "" if node.source is None else sources.source_text(self.queries, block, node.source)
        sets = self._assignments(block, table, node.assignments)
        where = self._where(block, node.where)
        keys, where = self._keys(node, block, head, f"{target}, {source}" if source else target, where)
        returning, results = self._returning(scope, node.returning, node.table, table)
        self._forget_read(table, node)
        written = self._written(table, node.table)
        source = f" FROM {source}" if source else ""
        text = f"{head}UPDATE {written} SET {sets}{source}{where}{returning}"
        return Write(text, table, (), results, keys, self._volatile(node))

    def _keys(
        self, node: tree.Update | tree.Delete, scope: Scope, head: str, source: str, where: str
    ) -> tuple[str | None, str]:
        """The keys that the statement chooses, and the condition it has when they were taken before it runs."""
        if self.context.physical is None:
            return None, where
        table = self.context.table(node.table.name)
        if not self._volatile(node):
            return f"{head}SELECT {self._key_list(scope, table)} FROM {source}{where}", where
        if not isinstance(node, tree.Delete) and node.source is not None:
            self.context.refuse("UPDATE ... FROM with a volatile condition is not supported on a branch", node.pos)
        names = self._key_list(scope, table)
        plain = ", ".join(identifier(key) for key in table.primary_key)
        left = names if len(table.primary_key) == 1 else f"({names})"
        chosen = f" WHERE {left} IN (SELECT {plain} FROM {CHOSEN_KEYS})"
        return f"{head}SELECT DISTINCT {names} FROM {source}{where}", chosen

    def _key_list(self, scope: Scope, table: Table) -> str:
        alias = identifier(scope.sources[0].alias)
        return ", ".join(f"{alias}.{identifier(key)}" for key in table.primary_key)

    def _volatile(self, node: tree.Update | tree.Delete) -> bool:
        """Whether the same WHERE could choose other rows when it is asked again."""
        if self.context.physical is None:
            return False
        parts = [node.where, *node.ctes, getattr(node, "source", None), getattr(node, "using", None)]
        calls = (n for part in parts if part is not None for n in tree.walk(part) if isinstance(n, tree.Call))
        return any(call.name in VOLATILE for call in calls)

    def _forget_read(self, table: Table, node: tree.Statement) -> None:
        """The written table counts as read only where the statement mentions it again."""
        mentions = [n for n in tree.walk(node) if isinstance(n, tree.TableRef) and n.name.text == table.name]
        if len(mentions) < 2:
            self.context.reads.pop(table.name, None)

    def _where(self, scope: Scope, where: tree.Expression | None) -> str:
        if where is None:
            return ""
        scope.place = "WHERE"
        return f" WHERE {self.queries.condition(scope, where, 'WHERE').sql}"

    def delete(self, node: tree.Delete) -> Write:
        scope = Scope()
        head = self.queries.with_text(scope, node.ctes, node.recursive)
        table = self.context.table(node.table.name)
        block = Scope(scope)
        target = sources.table_text(self.queries, block, node.table)
        if node.using is None:
            where = self._where(block, node.where)
            keys, where = self._keys(node, block, head, target, where)
        else:
            where, listed = self._using(block, node, table, target)
            keys, where = self._keys(node, block, head, *listed)[0], where
            if self._volatile(node):
                self.context.refuse("DELETE ... USING with a volatile condition is not supported on a branch", node.pos)
        returning, results = self._returning(scope, node.returning, node.table, table)
        self._forget_read(table, node)
        text = f"{head}DELETE FROM {self._written(table, node.table)}{where}{returning}"
        return Write(text, table, (), results, keys, self._volatile(node))

    def _using(self, scope: Scope, node: tree.Delete, table: Table, target: str) -> tuple[str, tuple[str, str]]:
        """DELETE ... USING as a list of keys, which SQLite has instead; and what that list is taken from."""
        if not table.primary_key or node.using is None:
            self.context.refuse("DELETE ... USING needs a primary key", node.pos)
        other = sources.source_text(self.queries, scope, node.using)
        where = self._where(scope, node.where)
        keys = [identifier(key) for key in table.primary_key]
        listed = self._key_list(scope, table)
        names = keys[0] if len(keys) == 1 else f"({', '.join(keys)})"
        source = f"{target}, {other}"
        return f" WHERE {names} IN (SELECT {listed} FROM {source}{where})", (source, where)

    # -- RETURNING -------------------------------------------------------------------------------------------------

    def _returning(
        self, outer: Scope, items: tuple[tree.Item, ...], ref: tree.TableRef, table: Table
    ) -> tuple[str, tuple[ResultColumn, ...]]:
        """RETURNING over the written table; SQLite reads no alias and no other table there, so names stand bare."""
        if not items:
            return "", ()
        scope = Scope(outer)
        alias = ref.alias.text if ref.alias is not None else table.name
        scope.add(self.context, Visible(alias, table_fields(table), table), ref.pos)
        scope.place = "RETURNING"
        texts, results = [], []
        for item in items:
            for expression in self._expanded(scope, item):
                value = whole_as_float(self.queries.expression(scope, unqualified(expression)))
                name = item.alias.text if item.alias is not None else output_name(expression)
                texts.append(f"{value.sql} AS {identifier(item.alias.text)}" if item.alias is not None else value.sql)
                results.append(ResultColumn(name, value.type))
        star = len(items) == 1 and isinstance(items[0].expression, tree.Star) and items[0].expression.table is None
        star = star and not any(column.type.name in ("REAL", "DOUBLE") for column in table.columns)
        return f" RETURNING {'*' if star else ', '.join(texts)}", tuple(results)

    def _expanded(self, scope: Scope, item: tree.Item) -> list[tree.Expression]:
        if not isinstance(item.expression, tree.Star):
            for part in tree.walk(item.expression):
                if isinstance(part, tree.Query):
                    self.context.refuse("a subquery in RETURNING is not supported", part.pos)
                if isinstance(part, tree.ColumnRef) and part.table and part.table.text != scope.sources[0].alias:
                    self.context.refuse("RETURNING of another table's column is not supported", part.pos)
            return [item.expression]
        return list(sources.star_columns(self.context, scope, item.expression))


def whole_as_float(value: Value) -> Value:
    """SQLite 3.40 may show a REAL column's 3.0 in RETURNING as the 3 it packs it into; reading the table does not."""
    return replace(value, sql=f"CAST({value.sql} AS REAL)") if value.name in ("REAL", "DOUBLE") else value


def unqualified(node: tree.Expression) -> tree.Expression:
    """The expression with bare column names."""
    found = _unqualified(node)
    return found  # type: ignore[return-value]


def _unqualified(node: object) -> object:
    from dataclasses import fields

    if isinstance(node, tree.ColumnRef):
        return replace(node, table=None)
    if isinstance(node, tuple):
        return tuple(map(_unqualified, node))
    if hasattr(node, "__dataclass_fields__"):
        changes = {f.name: _unqualified(getattr(node, f.name)) for f in fields(node)}  # type: ignore[arg-type]
        return replace(node, **changes)  # type: ignore[type-var]
    return node
