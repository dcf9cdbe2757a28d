"""Queries: FROM, WHERE, GROUP BY, set operations, WITH; every block is checked as PostgreSQL would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from deeplake_loader.sql import grouping, sources, tree
from deeplake_loader.sql.casts import common, settle
from deeplake_loader.sql.expressions import ExpressionCompiler, wrapped
from deeplake_loader.sql.ordering import order_text
from deeplake_loader.sql.plan import Bind
from deeplake_loader.sql.scope import Field, Scope
from deeplake_loader.sql.tree import Expression, Name
from deeplake_loader.sql.values import TEXT, Context, Target, Value, bound, identifier
from deeplake_loader.types import ColumnType


@dataclass(frozen=True, slots=True)
class Output:
    """A compiled query: its text, its columns, whether it gives at most one row."""

    sql: str
    fields: tuple[Field, ...]
    single: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """One column of a select list: the tree it came from, its value, its name, and the alias if one was written."""

    node: Expression
    value: Value
    name: str
    alias: Name | None
    text: str
    untyped: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """A SELECT that was compiled, with what the fast path and hidden keys need to know of it."""

    node: tree.Select
    query: tree.Query
    scope: Scope
    ctes: str | None
    source: str
    where: str
    cells: tuple[Cell, ...]
    grouped: bool


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the columns of a query are for: the columns they fill, or the types they share with another query."""

    targets: Sequence[Target | None] = ()
    types: Sequence[ColumnType | None] = ()

    def target(self, index: int) -> Target | None:
        return self.targets[index] if index < len(self.targets) else None

    def type(self, index: int) -> ColumnType | None:
        return self.types[index] if index < len(self.types) else None


ANYTHING = Wanted()

Key = tuple[tree.OrderKey, Expression, str, bool]
"""An ORDER BY key, the expression it means, its text, and whether it is a column of the select list."""


class QueryCompiler(ExpressionCompiler):
    """Compiles queries; ``inject`` adds a condition to the block that begins at a position."""

    def __init__(self, context: Context, inject: tuple[int, str] | None = None, *, hidden: bool = False) -> None:
        super().__init__(context)
        self.inject, self.hidden = inject, hidden
        self.blocks: list[Block] = []
        self.ctes: list[str] = []
        self.cte_names: list[str] = []
        self.recursive = False

    def subquery(self, scope: Scope, query: tree.Query, targets: Sequence[Target | None] = ()) -> Output:
        return self.query(query, scope, Wanted(targets))

    def query(
        self, query: tree.Query, parent: Scope | None = None, wanted: Wanted = ANYTHING, *, top: bool = False
    ) -> Output:
        """The query's text and columns. At the top, columns need no names: the plan holds them."""
        scope = Scope(parent)
        head, kept = self.with_text(scope, query.ctes, query.recursive), len(query.ctes)
        body = query.body
        if isinstance(body, tree.Select):
            found = self._select(query, body, scope, wanted, top)
        else:
            found = self._compound(query, body, scope, wanted)
        if kept:
            del self.ctes[-kept:], self.cte_names[-kept:]
        return replace(found, sql=head + found.sql)

    # -- WITH ------------------------------------------------------------------------------------------------------

    def with_text(self, scope: Scope, ctes: tuple[tree.CTE, ...], recursive: bool) -> str:
        """WITH ..., each query registered in the scope."""
        if not ctes:
            return ""
        texts = [self._cte(scope, cte, recursive) for cte in ctes]
        return f"WITH {'RECURSIVE ' if recursive else ''}{', '.join(texts)} "

    def _cte(self, scope: Scope, cte: tree.CTE, recursive: bool) -> str:
        name = cte.name.text
        itself = any(isinstance(n, tree.TableRef) and n.name.text == name for n in tree.walk(cte.query))
        if name in scope.ctes:
            self.context.fail(f"two WITH queries are named {name!r}", cte.pos)
        if itself and not recursive:
            self.context.refuse(f"the WITH query {name!r} reads a table of its own name; name it differently", cte.pos)
        if itself:
            self._anchor(scope, cte)
        found = self.query(cte.query, scope)
        scope.ctes[name] = self._renamed(found.fields, cte.columns, cte.pos)
        columns = f"({', '.join(identifier(f.name) for f in scope.ctes[name])})" if cte.columns or itself else ""
        text = f"{identifier(name)}{columns} AS{cte.hint} ({found.sql})"
        self.ctes.append(text)
        self.cte_names.append(name)
        self.recursive = self.recursive or recursive
        return text

    def _anchor(self, scope: Scope, cte: tree.CTE) -> None:
        """The columns of a recursive query are those of its first part."""
        body = cte.query.body
        if not isinstance(body, tree.SetOperation) or body.operator != "union":
            self.context.fail(f"the recursive query {cte.name.text!r} must be: start UNION [ALL] step", cte.pos)
        first = self._part(body.left, scope, ANYTHING)
        scope.ctes[cte.name.text] = self._renamed(first.fields, cte.columns, cte.pos)

    def _renamed(self, fields: tuple[Field, ...], names: tuple[Name, ...], pos: int) -> tuple[Field, ...]:
        if len(names) > len(fields):
            self.context.fail(f"{len(names)} column names for {len(fields)} columns", pos)
        new = [replace(field, name=name.text) for field, name in zip(fields, names, strict=False)]
        return (*new, *fields[len(new) :])

    # -- one SELECT ------------------------------------------------------------------------------------------------

    def _select(self, query: tree.Query, node: tree.Select, outer: Scope, wanted: Wanted, top: bool) -> Output:
        scope = Scope(outer)
        source = "" if node.source is None else sources.source_text(self, scope, node.source)
        scope.aliases = frozenset(item.alias.text for item in node.items if item.alias is not None)
        scope.windows = {name.text: window for name, window in node.windows}
        where = self._where(scope, node)
        scope.captured.clear()
        cells = self._cells(scope, node, wanted, top)
        group = self._group(scope, node, cells)
        having = None if node.having is None else self.condition(scope, node.having, "HAVING")
        order = [(key, *self._order_key(scope, key, cells)) for key in query.order]
        grouped = bool(node.group) or having is not None or scope.aggregates
        if grouped:
            checked = [*(c.node for c in cells), *(n for _, n, _, own in order if not own)]
            grouping.check(self, scope, [key for key, _ in group], [*checked, *([node.having] if node.having else [])])
        if node.distinct_on:
            return self._distinct_on(query, node, scope, cells, order, source, where, grouped)
        self._check_distinct(scope, node, cells, order)
        self.blocks.append(Block(node, query, scope, self._with_so_far(), source, where, tuple(cells), grouped))
        parts = ["SELECT ", "DISTINCT " if node.distinct else "", self._list_text(cells, top, scope, grouped)]
        parts.append(f" FROM {source}" if source else "")
        parts.append(f" WHERE {self._injected(node, where)}" if where or self._injects(node) else "")
        parts.append(f" GROUP BY {', '.join(text for _, text in group)}" if group else "")
        parts.append("" if having is None else f" HAVING {having.sql}")
        parts.append(" ORDER BY " + ", ".join(text for _, _, text, _ in order) if order else "")
        parts.append(self.limit_text(query))
        single = self._single(query, node, scope, grouped)
        return Output("".join(parts), tuple(_field(cell) for cell in cells), single)

    def _with_so_far(self) -> str | None:
        """The WITH queries visible here as one clause; None where an inner name hides an outer one."""
        if len(set(self.cte_names)) != len(self.cte_names):
            return None
        if not self.ctes:
            return ""
        return f"WITH {'RECURSIVE ' if self.recursive else ''}{', '.join(self.ctes)} "

    def _where(self, scope: Scope, node: tree.Select) -> str:
        if node.where is None:
            return ""
        scope.place = "WHERE"
        found = self.condition(scope, node.where, "WHERE")
        scope.place = ""
        return found.sql

    def _injects(self, node: tree.Select) -> bool:
        return self.inject is not None and self.inject[0] == node.pos

    def _injected(self, node: tree.Select, where: str) -> str:
        if self.inject is None or not self._injects(node):
            return where
        if not where:
            return self.inject[1]
        # of one table, the + keeps SQLite from reading thousands of rows by an index of the user's
        return f"{'+' * isinstance(node.source, tree.TableRef)}({where}) AND {self.inject[1]}"

    def _list_text(self, cells: list[Cell], top: bool, scope: Scope, grouped: bool) -> str:
        texts = list(dict.fromkeys(cell.text for cell in cells if cell.text.endswith("*")))
        out: list[str] = []
        for cell in cells:
            if cell.text.endswith("*"):
                if cell.text in texts:
                    out.append(cell.text)
                    texts.remove(cell.text)
            else:
                out.append(cell.text)
        hidden = sources.key_columns(scope) if top and self.hidden and not grouped else []
        out += [f"{sql} AS _dl_key_{number}" for number, sql in enumerate(hidden)]
        return ", ".join(out) or "NULL"

    def _cells(self, scope: Scope, node: tree.Select, wanted: Wanted, top: bool) -> list[Cell]:
        cells: list[Cell] = []
        plain = not (scope.merged or node.group or wanted.targets or wanted.types or node.distinct_on)
        for item in node.items:
            if isinstance(item.expression, tree.Star):
                cells += self._star(scope, item.expression, plain and len(node.items) == 1, wanted, len(cells))
            else:
                cells.append(self._cell(scope, item, wanted, len(cells), top))
        if wanted.targets and len(cells) != len(wanted.targets):
            self.context.fail(f"{len(cells)} values for {len(wanted.targets)} columns", node.pos)
        return cells

    def _star(self, scope: Scope, star: tree.Star, plain: bool, wanted: Wanted, start: int) -> list[Cell]:
        if not scope.sources:
            self.context.fail("* needs a FROM", star.pos)
        plain = plain and not any(f.sql_name for s in scope.sources for f in s.columns)
        out: list[Cell] = []
        for ref in sources.star_columns(self.context, scope, star):
            cell = self._cell(scope, tree.Item(ref, None), wanted, start + len(out), False)
            text = cell.text if not plain else f"{identifier(star.table.text)}.*" if star.table else "*"
            out.append(replace(cell, text=text))
        return out

    def _cell(self, scope: Scope, item: tree.Item, wanted: Wanted, index: int, top: bool) -> Cell:
        node, target, kind = item.expression, wanted.target(index), wanted.type(index)
        untyped = isinstance(node, tree.Literal_) and node.kind == "string"
        value = self.expression(scope, node, target) if target is None else self.assigned(scope, node, target)
        if target is None and kind is not None and (value.untyped or value.type != kind):
            value = settle(self.context, value, kind, node.pos, bare=True) if value.untyped else self.widened(
                value, kind, node.pos)  # fmt: skip
        elif target is None and value.literal is not None:
            value = settle(self.context, value, TEXT, node.pos)
        name = item.alias.text if item.alias is not None else output_name(node)
        text = value.sql
        if item.alias is not None or (not top and text != identifier(name)):
            text = f"{text} AS {identifier(name)}"
        return Cell(node, value, name, item.alias, text, untyped)

    def _group(self, scope: Scope, node: tree.Select, cells: list[Cell]) -> list[tuple[Expression, str]]:
        scope.place = "GROUP BY"
        found = []
        for key in node.group:
            expression = self._group_expression(scope, key, cells)
            value = self.expression(scope, expression)
            if value.type is not None and (not value.type.is_scalar or value.name in ("JSON", "INTERVAL")):
                self.context.refuse(f"GROUP BY of {value.type} is not supported: values are not compared", key.pos)
            found.append((expression, value.sql if not value.sql.isdigit() else f"+{value.sql}"))
        scope.place = ""
        return found

    def _group_expression(self, scope: Scope, key: Expression, cells: list[Cell]) -> Expression:
        if isinstance(key, tree.Literal_) and key.kind == "number":
            return self._ordinal(key, cells).node
        if isinstance(key, tree.ColumnRef) and key.table is None:
            named = [cell for cell in cells if cell.alias is not None and cell.alias.text == key.name.text]
            known = any(source.column(key.name) for source in scope.sources) or key.name.text in scope.merged
            if named and not known:
                return named[0].node
        return key

    def _ordinal(self, key: tree.Literal_, cells: list[Cell]) -> Cell:
        if not key.text.isdigit() or not 1 <= int(key.text) <= len(cells):
            self.context.fail(f"position {key.text} is not in the select list of {len(cells)} columns", key.pos)
        return cells[int(key.text) - 1]

    def _order_key(self, scope: Scope, key: tree.OrderKey, cells: list[Cell]) -> tuple[Expression, str, bool]:
        """(tree, text, whether it is a column of the select list)."""
        node = key.expression
        if isinstance(node, tree.Literal_):
            if node.kind != "number":
                self.context.fail("ORDER BY of a constant", node.pos)
            cell = self._ordinal(node, cells)
            sql = node.text if cell.value.name != "INTERVAL" else cell.value.sql
            return cell.node, order_text(self.context, key, replace(cell.value, sql=sql)), True
        cell_found = self._output_column(node, cells)
        if cell_found is None:
            return node, order_text(self.context, key, self.expression(scope, node)), False
        sql = cell_found.value.sql
        if cell_found.alias is not None and cell_found.value.name != "INTERVAL":
            sql = identifier(cell_found.alias.text)
        return cell_found.node, order_text(self.context, key, replace(cell_found.value, sql=sql)), True

    def _output_column(self, node: Expression, cells: list[Cell]) -> Cell | None:
        if not isinstance(node, tree.ColumnRef) or node.table is not None:
            return None
        found = [cell for cell in cells if cell.name == node.name.text]
        if len({cell.value.sql for cell in found}) > 1:
            self.context.fail(f"ORDER BY {node.name.text!r} could be several columns; give them aliases", node.pos)
        return found[0] if found else None

    def _check_distinct(self, scope: Scope, node: tree.Select, cells: list[Cell], order: list[Key]) -> None:
        if not node.distinct:
            return
        self.check_comparable([_field(cell) for cell in cells], "DISTINCT", node.pos)
        listed = {grouping.canonical(self, scope, cell.node) for cell in cells}
        for key, expression, _, own in order:
            if not own and grouping.canonical(self, scope, expression) not in listed:
                self.context.fail("with SELECT DISTINCT, ORDER BY must name columns of the select list", key.pos)

    def check_comparable(self, fields: Sequence[Field], what: str, pos: int) -> None:
        for field in fields:
            if field.type is not None and (not field.type.is_scalar or field.type.name in ("JSON", "INTERVAL")):
                self.context.refuse(f"{what} of {field.name!r}: {field.type} values are not compared", pos)

    def _distinct_on(
        self, query: tree.Query, node: tree.Select, scope: Scope, cells: list[Cell],
        order: list[Key], source: str, where: str, grouped: bool,
    ) -> Output:  # fmt: skip
        """The first row of each group by row_number(): SQLite has no DISTINCT ON."""
        if grouped:
            self.context.refuse("DISTINCT ON with GROUP BY or aggregates is not supported; use a subquery", node.pos)
        on = [self._output_column(key, cells) for key in node.distinct_on]
        keys = [key if cell is None else cell.node for key, cell in zip(node.distinct_on, on, strict=True)]
        canonical = {grouping.canonical(self, scope, key) for key in keys}
        if {grouping.canonical(self, scope, node) for _, node, _, _ in order[: len(canonical)]} - canonical:
            self.context.fail("the expressions of DISTINCT ON must come first in ORDER BY", node.pos)
        partition = ", ".join(self.expression(scope, key).sql for key in keys)
        values = [self.expression(scope, expression) for _, expression, _, _ in order]
        inner = [f"{cell.value.sql} AS _dl_c{i}" for i, cell in enumerate(cells)]
        inner += [f"{value.sql} AS _dl_o{i}" for i, value in enumerate(values)]
        sorting = ", ".join(order_text(self.context, key, v) for (key, *_), v in zip(order, values, strict=True))
        over = f"PARTITION BY {partition}{' ORDER BY ' + sorting if sorting else ''}"
        inner.append(f"row_number() OVER ({over}) AS _dl_n")
        body = f"SELECT {', '.join(inner)}{' FROM ' + source if source else ''}{' WHERE ' + where if where else ''}"
        outer = ", ".join(f"_dl_c{i} AS {identifier(cell.name)}" for i, cell in enumerate(cells))
        final = [order_text(self.context, key, replace(value, sql=f"_dl_o{i}"))
                 for i, ((key, *_), value) in enumerate(zip(order, values, strict=True))]  # fmt: skip
        tail = f" ORDER BY {', '.join(final)}" if final else ""
        sql = f"SELECT {outer} FROM ({body}) WHERE _dl_n = 1{tail}{self.limit_text(query)}"
        return Output(sql, tuple(_field(cell) for cell in cells))

    def _single(self, query: tree.Query, node: tree.Select, scope: Scope, grouped: bool) -> bool:
        if isinstance(query.limit, tree.Literal_) and query.limit.text in ("0", "1"):
            return True
        if grouped and not node.group:
            return True
        return not scope.sources or (len(scope.sources) == 1 and grouping.one_row(self, scope, node.where))

    # -- set operations, VALUES ------------------------------------------------------------------------------------

    def _compound(self, query: tree.Query, body: tree.Body, scope: Scope, wanted: Wanted) -> Output:
        if isinstance(body, tree.Query) and not (query.order or query.limit or query.offset):
            return self.query(body, scope, wanted)
        found = self._part(body, scope, wanted)
        names = [field.name for field in found.fields]
        order = []
        for key in query.order:
            position = self._compound_position(key, names)
            field = found.fields[position]
            value = Value(str(position + 1), field.type, nullable=field.nullable, score=field.score)
            order.append(order_text(self.context, key, value))
        tail = f" ORDER BY {', '.join(order)}" if order else ""
        return Output(found.sql + tail + self.limit_text(query), found.fields)

    def _compound_position(self, key: tree.OrderKey, names: list[str]) -> int:
        node = key.expression
        if isinstance(node, tree.Literal_) and node.text.isdigit() and 1 <= int(node.text) <= len(names):
            return int(node.text) - 1
        if isinstance(node, tree.ColumnRef) and node.table is None and names.count(node.name.text) == 1:
            return names.index(node.name.text)
        self.context.fail("ORDER BY after UNION or VALUES takes a column's name or position only", key.pos)

    def _part(self, body: tree.Body, scope: Scope, wanted: Wanted) -> Output:
        if isinstance(body, tree.Values):
            return self._values(body, scope, wanted)
        if isinstance(body, tree.SetOperation):
            return self._set_operation(body, scope, wanted)
        if isinstance(body, tree.Query):
            found = self.query(body, scope, wanted)
            bare = not (body.ctes or body.order or body.limit or body.offset)
            bare = bare and not isinstance(body.body, tree.SetOperation)
            return found if bare else replace(found, sql=wrapped(found.sql))
        return self._select(tree.Query((), False, body, (), None, None, body.pos), body, scope, wanted, False)

    def _set_operation(self, node: tree.SetOperation, scope: Scope, wanted: Wanted) -> Output:
        if node.all and node.operator != "union":
            self.context.refuse(f"{node.operator.upper()} ALL is not supported", node.pos)
        left, right = self._part(node.left, scope, wanted), self._part(node.right, scope, wanted)
        if len(left.fields) != len(right.fields):
            self.context.fail(f"{len(left.fields)} columns on the left of {node.operator.upper()}, "
                              f"{len(right.fields)} on the right", node.pos)  # fmt: skip
        if not wanted.targets:
            types = [self._met(a, b, node) for a, b in zip(left.fields, right.fields, strict=True)]
            if types != [f.type for f in left.fields] or types != [f.type for f in right.fields]:
                shared = Wanted(types=types)
                left, right = self._part(node.left, scope, shared), self._part(node.right, scope, shared)
        fields = [
            replace(a, type=a.type or b.type, nullable=a.nullable or b.nullable, score=a.score or b.score)
            for a, b in zip(left.fields, right.fields, strict=True)
        ]
        if not node.all:
            self.check_comparable(fields, node.operator.upper(), node.pos)
        operator = node.operator.upper() + (" ALL" if node.all else "")
        second = wrapped(right.sql) if isinstance(node.right, tree.SetOperation) else right.sql
        return Output(f"{left.sql} {operator} {second}", tuple(fields))

    def _met(self, left: Field, right: Field, node: tree.SetOperation) -> ColumnType | None:
        if left.type is None or right.type is None:
            return left.type or right.type
        if left.untyped != right.untyped:
            return right.type if left.untyped else left.type
        kind = common(left.type, right.type) if left.type != right.type else left.type
        if kind is None:
            self.context.fail(
                f"{node.operator.upper()} of {left.type} and {right.type} in column {left.name!r}; cast one", node.pos
            )
        return kind

    def _values(self, node: tree.Values, scope: Scope, wanted: Wanted) -> Output:
        width = len(wanted.targets) or len(node.rows[0])
        for row in node.rows:
            if len(row) != width:
                self.context.fail(f"a row of {len(row)} values where {width} are needed", row[0].pos)
        scope.place = "VALUES"
        if wanted.targets:
            rows = [[self._cell_value(scope, c, wanted.target(i)) for i, c in enumerate(row)] for row in node.rows]
        else:
            columns = [self._values_column(scope, [row[i] for row in node.rows], wanted.type(i)) for i in range(width)]
            rows = [list(row) for row in zip(*columns, strict=True)]
        scope.place = ""
        text = ", ".join(f"({', '.join(v.sql for v in row)})" for row in rows)
        fields = tuple(
            Field(f"column{i + 1}", next((row[i].type for row in rows if row[i].type is not None), None),
                  any(row[i].nullable for row in rows)) for i in range(width)
        )  # fmt: skip
        return Output(f"VALUES {text}", fields, len(rows) == 1)

    def _cell_value(self, scope: Scope, node: Expression, target: Target | None) -> Value:
        return self.expression(scope, node) if target is None else self.assigned(scope, node, target)

    def _values_column(self, scope: Scope, nodes: list[Expression], kind: ColumnType | None) -> list[Value]:
        values = self.unified([self.expression(scope, node) for node in nodes], nodes[0].pos, "VALUES")
        if kind is None:
            return values
        return [settle(self.context, v, kind, n.pos, bare=True) if v.untyped or v.type is None
                else self.widened(v, kind, n.pos) for v, n in zip(values, nodes, strict=True)]  # fmt: skip

    # -- LIMIT -----------------------------------------------------------------------------------------------------

    def limit_text(self, query: tree.Query) -> str:
        """LIMIT and OFFSET; SQLite would read a negative count as none, and needs a LIMIT before an OFFSET."""
        if query.limit is None and query.offset is None:
            return ""
        limit = "-1" if query.limit is None else self._row_count(query.limit, "LIMIT")
        return f" LIMIT {limit}" + (
            "" if query.offset is None else f" OFFSET {self._row_count(query.offset, 'OFFSET')}"
        )

    def _row_count(self, node: Expression, what: str) -> str:
        if isinstance(node, tree.Literal_) and node.kind == "null":
            return "-1" if what == "LIMIT" else "0"
        if isinstance(node, tree.Literal_) and node.kind == "number" and node.text.isdigit():
            return node.text
        if isinstance(node, tree.Parameter):
            return f"_dl_count('{what}', {bound(self.context.mark(Bind(node.source)))})"
        if any(isinstance(part, tree.ColumnRef) for part in tree.walk(node)):
            self.context.fail(f"{what} cannot depend on a column", node.pos)
        value = self.expression(Scope(), node)
        if value.name not in ("SMALLINT", "INTEGER", "BIGINT"):
            self.context.fail(f"{what} needs a whole number", node.pos)
        return f"_dl_count('{what}', {value.sql})"


def _field(cell: Cell) -> Field:
    return Field(cell.name, cell.value.type, cell.value.nullable, cell.value.score, untyped=cell.untyped)


def output_name(node: Expression) -> str:
    """The name PostgreSQL gives a column without an alias."""
    return _named(node)[0]


def _named(node: Expression) -> tuple[str, bool]:
    """(name, whether a cast around it keeps the name)."""
    if isinstance(node, tree.ColumnRef):
        return node.name.text, True
    if isinstance(node, tree.Call):
        return node.name, True
    if isinstance(node, tree.Cast):
        inner, kept = _named(node.operand)
        name = "varchar" if node.to.length is not None else TYPE_NAMES.get(node.to.type.name, "?column?")
        return (inner, True) if kept else (name, False)
    if isinstance(node, tree.Case):
        inner, kept = ("", False) if node.default is None else _named(node.default)
        return (inner, True) if kept else ("case", False)
    if isinstance(node, tree.Scalar):
        return _subquery_name(node.query), True
    if isinstance(node, tree.AtZone):
        return "timezone", True
    if isinstance(node, tree.Exists):
        return "exists", True
    if isinstance(node, tree.Literal_) and node.kind == "boolean":
        return "bool", False
    return ("row", True) if isinstance(node, tree.Tuple_) else ("?column?", False)


def _subquery_name(query: tree.Query) -> str:
    body = query.body
    if not isinstance(body, tree.Select) or not body.items:
        return "column1" if isinstance(body, tree.Values) else "?column?"
    item = body.items[0]
    return item.alias.text if item.alias is not None else output_name(item.expression)


TYPE_NAMES = {
    "TEXT": "text", "SMALLINT": "int2", "INTEGER": "int4", "BIGINT": "int8", "REAL": "float4", "DOUBLE": "float8",
    "NUMERIC": "numeric", "BOOLEAN": "bool", "TIMESTAMP": "timestamp", "TIMESTAMPTZ": "timestamptz", "DATE": "date",
    "TIME": "time", "INTERVAL": "interval", "JSON": "jsonb", "UUID": "uuid", "BYTEA": "bytea",
}  # fmt: skip
