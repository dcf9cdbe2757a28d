"""Queries and data changes, parsed. Definitions of tables are read by the subclass in `definitions`."""

from __future__ import annotations

from typing import Literal

from deeplake_loader.sql import tree
from deeplake_loader.sql.grammar import MAX_DEPTH, ExpressionParser
from deeplake_loader.sql.reader import RESERVED
from deeplake_loader.sql.tree import Name

NEEDS_AS = frozenset({"day", "filter", "hour", "minute", "month", "over", "second", "within", "year"})
"""Words that PostgreSQL takes as a result column's name only behind AS."""

JOINS: dict[str, Literal["inner", "left", "right", "full"]] = {
    "join": "inner", "inner": "inner", "left": "left", "right": "right", "full": "full",
}  # fmt: skip


class QueryParser(ExpressionParser):
    """SELECT, VALUES, WITH, set operations, INSERT, UPDATE, DELETE."""

    def query(self) -> tree.Query:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(f"queries nested deeper than {MAX_DEPTH}")
        pos = self.token.start
        ctes, recursive = self.with_clause()
        found = self._query_tail(ctes, recursive, pos)
        self.depth -= 1
        return found

    def with_clause(self) -> tuple[tuple[tree.CTE, ...], bool]:
        if not self.words("with"):
            return (), False
        recursive = self.words("recursive")
        return self.listed(self._cte), recursive

    def _cte(self) -> tree.CTE:
        name = self.name("a name for the WITH query")
        columns = self._names() if self.is_operator("(") else ()
        self.expect("as")
        hint = " NOT MATERIALIZED" if self.words("not", "materialized") else ""
        hint = hint or (" MATERIALIZED" if self.words("materialized") else "")
        self.expect("(")
        if self.is_word("insert", "update", "delete", "merge"):
            self.refuse("a data change inside WITH is not supported; run it first, with RETURNING, in one transaction")
        query = self.query()
        self.expect(")")
        if self.is_word("search", "cycle"):
            self.refuse(f"{self.token.text.upper()} is not supported; carry the path in a column")
        return tree.CTE(name, columns, hint, query, name.pos)

    def _names(self) -> tuple[Name, ...]:
        return self.parenthesised(lambda: self.listed(lambda: self.name("a column")))

    def _query_tail(self, ctes: tuple[tree.CTE, ...], recursive: bool, pos: int) -> tree.Query:
        body = self._set_operations(0)
        order = self.order_by()
        limit, offset = self._limits()
        if self.is_word("for"):
            self.refuse("FOR UPDATE / FOR SHARE: rows are not locked one by one here; run the statements inside "
                        "`with db.transaction():`, which keeps other writers out")  # fmt: skip
        return tree.Query(ctes, recursive, body, order, limit, offset, pos)

    def _limits(self) -> tuple[tree.Expression | None, tree.Expression | None]:
        limit: tree.Expression | None = None
        offset: tree.Expression | None = None
        while True:
            if self.words("limit"):
                limit = None if self.words("all") else self.expression()
            elif self.words("offset"):
                offset = self.expression()
                self.words("rows") or self.words("row")
            elif self.words("fetch"):
                limit = self._fetch()
            else:
                return limit, offset

    def _fetch(self) -> tree.Expression:
        if not self.words("first"):
            self.expect("next")
        pos = self.token.start
        count = tree.Literal_("number", "1", pos) if self.is_word("row", "rows") else self.expression(12)
        if not self.words("rows"):
            self.expect("row")
        if self.is_word("with"):
            self.refuse("FETCH ... WITH TIES is not supported; use rank() in a subquery")
        self.expect("only")
        return count

    def _set_operations(self, floor: int) -> tree.Body:
        """INTERSECT binds tighter than UNION and EXCEPT."""
        left = self._query_primary()
        while self.is_word("union", "except", "intersect"):
            token = self.token
            level = 2 if token.text == "intersect" else 1
            if level <= floor:
                break
            self.next()
            every = self.words("all")
            if not every:
                self.words("distinct")
            right = self._set_operations(level)
            left = tree.SetOperation(token.text, every, left, right, token.start)  # type: ignore[arg-type]
        return left

    def _query_primary(self) -> tree.Body:
        pos = self.token.start
        if self.operator("("):
            inner = self.query()
            self.expect(")")
            return inner
        if self.words("values"):
            return tree.Values(self.listed(self._values_row), pos)
        if self.is_word("table"):
            self.refuse("TABLE name is not supported; write SELECT * FROM name")
        self.expect("select")
        return self._select(pos)

    def _values_row(self) -> tuple[tree.Expression, ...]:
        return self.parenthesised(lambda: self.listed(self.expression))

    def _select(self, pos: int) -> tree.Select:
        distinct, on = self._distinct()
        items = () if self._at_clause() else self.listed(self.item)
        if self.is_word("into"):
            self.refuse("SELECT INTO is not supported; CREATE TABLE, then INSERT ... SELECT")
        source = self.source() if self.words("from") else None
        where = self.expression() if self.words("where") else None
        group = self._group()
        having = self.expression() if self.words("having") else None
        windows = self.listed(self._named_window) if self.words("window") else ()
        return tree.Select(items, distinct, on, source, where, group, having, windows, pos)

    def _at_clause(self) -> bool:
        return self.token.kind == "end" or self.is_word("from", "where") or self.is_operator(")")

    def _distinct(self) -> tuple[bool, tuple[tree.Expression, ...]]:
        if not self.words("distinct"):
            self.words("all")
            return False, ()
        if not self.words("on"):
            return True, ()
        return False, self.parenthesised(lambda: self.listed(self.expression))

    def item(self) -> tree.Item:
        expression = self.expression()
        if self.words("as"):
            return tree.Item(expression, self.name("a column name", label=True))
        token = self.token
        bare = token.kind == "name" or (token.kind == "word" and token.text not in RESERVED | NEEDS_AS)
        if bare and not isinstance(expression, tree.Star):
            return tree.Item(expression, self.name("a column name", label=True))
        return tree.Item(expression, None)

    def _group(self) -> tuple[tree.Expression, ...]:
        if not self.words("group", "by"):
            return ()
        if self.is_word("all", "distinct"):
            self.refuse(f"GROUP BY {self.token.text.upper()} is not supported; list the columns")
        return self.listed(self._group_key)

    def _group_key(self) -> tree.Expression:
        if self.is_word("rollup", "cube", "grouping") and self.peek().text in ("(", "sets"):
            self.refuse(f"{self.token.text.upper()} is not supported; write one query per grouping, and UNION ALL")
        if self.is_operator("(") and self.peek().text == ")":
            self.refuse("GROUP BY () is not supported; leave GROUP BY away")
        return self.expression()

    def _named_window(self) -> tuple[Name, tree.Window]:
        name = self.name("a window name")
        self.expect("as")
        return name, self.parenthesised(self.window)

    # -- FROM ------------------------------------------------------------------------------------------------------

    def source(self) -> tree.Source:
        left = self._joined()
        while self.is_operator(","):
            pos = self.next().start
            left = tree.Join("comma", left, self._joined(), None, (), pos)
        return left

    def _joined(self) -> tree.Source:
        left = self._source_primary()
        while self.is_word("join", "inner", "left", "right", "full", "cross", "natural"):
            left = self._join(left)
        return left

    def _join(self, left: tree.Source) -> tree.Source:
        token = self.next()
        if token.text == "natural":
            self.refuse("NATURAL JOIN is not supported; write JOIN ... USING (columns)", token.start)
        if token.text == "cross":
            self.expect("join")
            return tree.Join("cross", left, self._source_primary(), None, (), token.start)
        if token.text != "join":
            self.words("outer")
            self.expect("join")
        right = self._source_primary()
        kind = JOINS[token.text]
        if self.words("using"):
            return tree.Join(kind, left, right, None, self._names(), token.start)
        self.expect("on")
        return tree.Join(kind, left, right, self.expression(), (), token.start)

    def _source_primary(self) -> tree.Source:
        token = self.token
        if self.is_word("lateral"):
            self.refuse("LATERAL is not supported; use a window function (row_number) or a scalar subquery")
        if self.is_word("only"):
            self.refuse("ONLY is not supported; there is no table inheritance here")
        if self.is_operator("("):
            return self._parenthesised_source()
        if token.kind == "word" and self.peek().text == "(" and self.peek().kind == "operator":
            return self._table_call()
        return self.table_ref()

    def _parenthesised_source(self) -> tree.Source:
        pos = self.token.start
        if not self.at_query():
            self.refuse("a join in parentheses is not supported; write the joins in a row, or a subquery")
        self.expect("(")
        query = self.query()
        self.expect(")")
        alias, columns = self._alias()
        return tree.Derived(query, alias, columns, pos)

    def _table_call(self) -> tree.Source:
        token = self.token
        call = self._reference()
        if not isinstance(call, tree.Call):
            self.fail("expected a table or a function", token.start)
        if self.is_word("with"):
            self.refuse("WITH ORDINALITY is not supported; use row_number() OVER ()")
        alias, columns = self._alias()
        return tree.TableCall(call, alias, columns, token.start)

    def table_ref(self, *, aliased: bool = True) -> tree.TableRef:
        """``[public.]name [[AS] alias]``."""
        pos = self.token.start
        name = self.table_name()
        if self.is_operator("*"):
            self.refuse("name * is not supported; there is no table inheritance here")
        alias, columns = self._alias() if aliased else (None, ())
        if self.is_word("tablesample"):
            self.refuse("TABLESAMPLE is not supported; write WHERE random() < 0.1")
        return tree.TableRef(name, alias, columns, pos)

    def table_name(self) -> Name:
        name = self.name("a table")
        if not self.operator("."):
            return name
        if name.text in ("information_schema", "pg_catalog"):
            self.refuse(f"{name.text} is not there; db.tables() lists the tables and their columns", name.pos)
        self._public(name)
        return self.name("a table")

    def _alias(self) -> tuple[Name | None, tuple[Name, ...]]:
        if not self.words("as") and not self._at_alias():
            return None, ()
        alias = self.name("an alias")
        return alias, self._names() if self.is_operator("(") else ()

    def _at_alias(self) -> bool:
        token = self.token
        if token.kind == "word" and token.text in ("set", "values") and self.peek().kind != "end":
            return False
        return token.kind == "name" or (token.kind == "word" and token.text not in self._no_names)

    _no_names = frozenset(RESERVED) | {"cross", "full", "inner", "join", "left", "natural", "right", "tablesample"}

    # -- INSERT, UPDATE, DELETE ------------------------------------------------------------------------------------

    def insert(self, ctes: tuple[tree.CTE, ...], recursive: bool) -> tree.Insert:
        pos = self.next().start
        if self.is_word("or"):
            self.refuse("INSERT OR ... is SQLite's; write INSERT ... ON CONFLICT")
        self.expect("into")
        table_pos, name = self.token.start, self.table_name()
        alias = self.name("an alias") if self.words("as") else None
        columns = self._names() if self.is_operator("(") and not self.at_query() else ()
        if self.is_word("overriding"):
            self.refuse("OVERRIDING is not supported; an identity column takes a value as it is")
        source = None if self.words("default", "values") else self.query()
        conflict = self._on_conflict() if self.is_word("on") else None
        table = tree.TableRef(name, alias, (), table_pos)
        return tree.Insert(ctes, recursive, table, columns, source, conflict, self.returning(), pos)

    def _on_conflict(self) -> tree.OnConflict:
        pos = self.next().start
        self.expect("conflict")
        if self.is_word("on"):
            self.refuse("ON CONFLICT ON CONSTRAINT is not supported; name the columns: ON CONFLICT (id)")
        columns = self._names() if self.is_operator("(") else ()
        target_where = self.expression() if columns and self.words("where") else None
        self.expect("do")
        if self.words("nothing"):
            return tree.OnConflict(columns, target_where, None, None, pos)
        if not columns:
            self.fail("ON CONFLICT DO UPDATE needs the columns: ON CONFLICT (id) DO UPDATE ...", pos)
        self.expect("update")
        self.expect("set")
        assignments = self.listed(self._assignment)
        where = self.expression() if self.words("where") else None
        return tree.OnConflict(columns, target_where, assignments, where, pos)

    def _assignment(self) -> tree.Assignment:
        pos = self.token.start
        columns = self._names() if self.is_operator("(") else (self.name("a column"),)
        if self.is_operator("[", "."):
            self.refuse("SET of a part of a column is not supported; write the whole value")
        self.expect("=")
        return tree.Assignment(columns, self.expression(), pos)

    def update(self, ctes: tuple[tree.CTE, ...], recursive: bool) -> tree.Update:
        pos = self.next().start
        if self.is_word("or"):
            self.refuse("UPDATE OR ... is SQLite's and has no counterpart in PostgreSQL")
        table = self.table_ref()
        self.expect("set")
        assignments = self.listed(self._assignment)
        source = self.source() if self.words("from") else None
        where = self._where()
        return tree.Update(ctes, recursive, table, assignments, source, where, self.returning(), pos)

    def delete(self, ctes: tuple[tree.CTE, ...], recursive: bool) -> tree.Delete:
        pos = self.next().start
        self.expect("from")
        table = self.table_ref()
        using = self.source() if self.words("using") else None
        where = self._where()
        return tree.Delete(ctes, recursive, table, using, where, self.returning(), pos)

    def _where(self) -> tree.Expression | None:
        if not self.words("where"):
            return None
        if self.is_word("current") and self.peek().text == "of":
            self.refuse("WHERE CURRENT OF is not supported; name the row by its key")
        return self.expression()

    def returning(self) -> tuple[tree.Item, ...]:
        return self.listed(self.item) if self.words("returning") else ()
