"""CREATE TABLE, CREATE INDEX, DROP, ALTER TABLE, and the statement itself: which one it is, and that it ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from deeplake_loader.sql import tree
from deeplake_loader.sql.reader import Reading
from deeplake_loader.sql.statements import QueryParser
from deeplake_loader.sql.tree import Name

REFUSED = {
    "begin": "use `with db.transaction():`",
    "start": "use `with db.transaction():`",
    "commit": "use `with db.transaction():`; leaving the block commits",
    "end": "use `with db.transaction():`; leaving the block commits",
    "rollback": "use `with db.transaction():`; an exception that leaves the block rolls back",
    "abort": "use `with db.transaction():`; an exception that leaves the block rolls back",
    "savepoint": "nest `with db.transaction():`",
    "release": "nest `with db.transaction():`",
    "copy": "use db.insert(table, rows), or fetch the rows of a SELECT",
    "pragma": "the catalog's settings are not the user's; there is nothing to set",
    "attach": "a database holds its own tables only; open the other one with connect()",
    "detach": "a database holds its own tables only",
    "truncate": "write DELETE FROM table",
    "merge": "write INSERT ... ON CONFLICT (key) DO UPDATE",
    "replace": "write INSERT ... ON CONFLICT (key) DO UPDATE",
    "explain": "SQLite's plans are not PostgreSQL's; there is nothing to compare",
    "analyze": "there are no statistics to gather",
    "vacuum": "free pages are used for later rows; db.optimize() seals open files",
    "reindex": "drop the index and create it again",
    "lock": "use `with db.transaction():`, which keeps other writers out",
    "set": "there are no session settings; timestamps are UTC",
    "reset": "there are no session settings",
    "show": "there are no session settings",
    "grant": "access is that of the files",
    "revoke": "access is that of the files",
    "comment": "comments on tables are not kept",
    "call": "there are no stored procedures",
    "do": "there are no anonymous blocks; write Python",
    "prepare": "every statement is compiled once and kept",
    "execute": "every statement is compiled once and kept",
    "declare": "iterate over the rows of db.execute()",
    "listen": "there are no notifications",
    "notify": "there are no notifications",
}
"""Statements that are refused, and what to do instead."""

HINTS = {
    "VIEW": "write the SELECT as a WITH query", "TEMPORARY": "use a table, and drop it", "TEMP": "use a table",
    "EXTENSION": "vectors and UUIDs need no extension", "OR": "drop it first", "UNLOGGED": "leave it away",
    "SEQUENCE": "BIGINT PRIMARY KEY counts by itself", "TYPE": "use TEXT with a CHECK",
}  # fmt: skip


INDEX_HINTS = {
    "hnsw": "; write USING ivf (column) WITH (lists = 100), which db.search uses with exact=False, or no index at all: "
    "searches are exact and fast without",
    "diskann": "; write USING ivf (column) WITH (lists = 100), or no index at all",
    "hash": "; a plain index serves equality as well",
}
"""Index methods that PostgreSQL or its extensions have, and what to do instead."""

OPERATOR_CLASSES: dict[str, Literal["cosine", "l2", "inner"]] = {
    "vector_cosine_ops": "cosine", "vector_l2_ops": "l2", "vector_ip_ops": "inner",
    "halfvec_cosine_ops": "cosine", "halfvec_l2_ops": "l2", "halfvec_ip_ops": "inner",
}  # fmt: skip
"""pgvector's operator classes, and the metric of each; without one, cosine."""

MAX_LISTS = 32_768


def parse(reading: Reading) -> tree.Statement:
    """The statement's syntax tree; SQLError names position and what was expected."""
    parser = StatementParser(reading)
    statement = parser.statement()
    if parser.token.kind != "end":
        parser.fail(f"the statement should end here, found {parser.found()}")
    return statement


class StatementParser(QueryParser):
    def statement(self) -> tree.Statement:
        token = self.token
        word = token.text if token.kind == "word" else ""
        if word in REFUSED:
            self.refuse(f"{word.upper()} is not run from SQL here: {REFUSED[word]}")
        if word in ("create", "drop", "alter"):
            return self._definition(self.next().text)
        if word == "with":
            return self._with()
        if word in ("insert", "update", "delete"):
            return self._change((), False)
        if not self.at_query() and word != "table":
            self.fail(f"a statement cannot begin with {self.found()}")
        return self.query()

    def _with(self) -> tree.Statement:
        pos = self.token.start
        ctes, recursive = self.with_clause()
        if self.is_word("insert", "update", "delete"):
            return self._change(ctes, recursive)
        return self._query_tail(ctes, recursive, pos)

    def _change(self, ctes: tuple[tree.CTE, ...], recursive: bool) -> tree.Statement:
        word = self.token.text
        if word == "insert":
            return self.insert(ctes, recursive)
        return self.update(ctes, recursive) if word == "update" else self.delete(ctes, recursive)

    def _definition(self, verb: str) -> tree.Statement:
        pos = self.token.start
        if verb == "create" and self.is_word("unique", "index"):
            return self._create_index(pos)
        if verb == "create" and self.words("table"):
            return self._create_table(pos)
        if verb == "drop" and self.is_word("table", "index"):
            return self._drop(pos)
        if verb == "alter" and self.words("table"):
            return self._alter(pos)
        what = self.token.text.upper()
        hint = HINTS.get(what)
        self.refuse(f"{verb.upper()} {what} is not supported{'; ' + hint if hint else ''}")

    # -- tables ----------------------------------------------------------------------------------------------------

    def _missing_ok(self, *words: str) -> bool:
        return self.words("if", *words, "exists")

    def _create_table(self, pos: int) -> tree.CreateTable:
        missing_ok = self._missing_ok("not")
        name = self.table_name()
        if self.is_word("as"):
            self.refuse("CREATE TABLE AS is not supported; CREATE TABLE, then INSERT ... SELECT")
        self.expect("(")
        columns: list[tree.ColumnDefinition] = []
        constraints: list[tree.TableConstraint] = []
        while True:
            if self.is_word("constraint", "primary", "unique", "check", "foreign", "exclude", "like"):
                constraints.append(self._table_constraint())
            else:
                columns.append(self.column_definition())
            if not self.operator(","):
                break
        self.expect(")")
        if self.token.kind != "end":
            self.refuse(f"{self.token.text.upper()} after the columns is not supported")
        return tree.CreateTable(name, missing_ok, tuple(columns), tuple(constraints), pos)

    def column_definition(self) -> tree.ColumnDefinition:
        pos = self.token.start
        column = tree.ColumnDefinition(self.name("a column"), self.type_name(), pos)
        while True:
            constraint = self.name("a constraint") if self.words("constraint") else None
            changed = self._column_constraint(column, constraint)
            if changed is None:
                if constraint is not None:
                    self.fail(f"expected a constraint, found {self.found()}")
                return column
            column = changed

    def _column_constraint(self, column: tree.ColumnDefinition, name: Name | None) -> tree.ColumnDefinition | None:
        if self.words("not", "null"):
            return replace(column, not_null=True)
        if self.words("null"):
            return column
        if self.words("primary", "key"):
            self._autoincrement()
            return replace(column, primary_key=True)
        if self.words("unique"):
            return replace(column, unique=True)
        if self.words("default"):
            return replace(column, default=self.expression(7))
        if self.words("check"):
            return replace(column, checks=(*column.checks, (name, self.parenthesised(self.expression))))
        if self.is_word("references"):
            return replace(column, reference=self._reference_clause())
        if self.words("generated"):
            return self._generated(column)
        if self.is_word("collate"):
            self.next()
            self.name("a collation", label=True)
            self.refuse('text is ordered by its bytes, COLLATE "C"; other collations are not supported')
        return None

    def _autoincrement(self) -> None:
        if self.is_word("autoincrement"):
            self.refuse("AUTOINCREMENT is SQLite's; BIGINT PRIMARY KEY counts by itself")

    def _generated(self, column: tree.ColumnDefinition) -> tree.ColumnDefinition:
        if self.words("by", "default", "as", "identity") or self.words("always", "as", "identity"):
            if self.is_operator("("):
                self.refuse("sequence options are not supported; identities count from 1")
            return replace(column, identity=True)
        self.expect("always")
        self.expect("as")
        value = self.parenthesised(self.expression)
        if not self.words("stored"):
            self.words("virtual")
        return replace(column, generated=value)

    def _reference_clause(self) -> tree.Reference:
        pos = self.expect("references").start
        table = self.table_name()
        columns = self._names() if self.is_operator("(") else ()
        actions: list[str] = []
        while self.is_word("on", "match", "deferrable", "initially", "not"):
            if self.is_word("not") and self.peek().text != "deferrable":
                break
            actions.append(self._reference_action())
        return tree.Reference(table, columns, "".join(f" {action}" for action in actions if action), pos)

    def _reference_action(self) -> str:
        if self.words("match"):
            if not self.words("simple"):
                self.refuse("only MATCH SIMPLE is supported")
            return ""
        if self.words("not", "deferrable"):
            return ""
        if self.words("deferrable"):
            return "DEFERRABLE"
        if self.words("initially"):
            word = self.next().text
            if word not in ("deferred", "immediate"):
                self.fail("expected DEFERRED or IMMEDIATE")
            return f"INITIALLY {word.upper()}"
        self.expect("on")
        event = self.next().text
        if event not in ("delete", "update"):
            self.fail("expected DELETE or UPDATE")
        for action in ("SET NULL", "SET DEFAULT", "CASCADE", "RESTRICT", "NO ACTION"):
            if self.words(*action.lower().split()):
                return f"ON {event.upper()} {action}"
        self.fail(f"expected CASCADE, RESTRICT, SET NULL, SET DEFAULT or NO ACTION, found {self.found()}")

    def _table_constraint(self) -> tree.TableConstraint:
        pos = self.token.start
        name = self.name("a constraint") if self.words("constraint") else None
        if self.words("primary", "key"):
            return tree.TableConstraint("primary", name, self._names(), None, None, pos)
        if self.words("unique"):
            if self.is_word("nulls"):
                self.refuse("UNIQUE NULLS NOT DISTINCT is not supported; make the columns NOT NULL")
            return tree.TableConstraint("unique", name, self._names(), None, None, pos)
        if self.words("check"):
            return tree.TableConstraint("check", name, (), self.parenthesised(self.expression), None, pos)
        if self.words("foreign", "key"):
            columns = self._names()
            return tree.TableConstraint("foreign", name, columns, None, self._reference_clause(), pos)
        self.refuse(f"{self.token.text.upper()} is not supported in CREATE TABLE")

    # -- indexes, DROP, ALTER --------------------------------------------------------------------------------------

    def _create_index(self, pos: int) -> tree.CreateIndex | tree.CreateVectorIndex:
        unique = self.words("unique")
        self.expect("index")
        self.words("concurrently")
        missing_ok = self._missing_ok("not")
        name = None if self.is_word("on") else self.name("an index")
        self.expect("on")
        table = self.table_name()
        if self.words("using"):
            method = self.name("an index method")
            if method.text in ("ivf", "ivfflat"):
                if unique:
                    self.fail("an index on vectors cannot be UNIQUE")
                return self._vector_index(name, table, missing_ok, pos)
            if method.text != "btree":
                self.refuse(f"USING {method.text} is not supported{INDEX_HINTS.get(method.text, '')}", method.pos)
        keys = self.parenthesised(lambda: self.listed(self._index_key))
        where = self.expression() if self.words("where") else None
        return tree.CreateIndex(name, table, unique, missing_ok, keys, where, pos)

    def _vector_index(self, name: Name | None, table: Name, missing_ok: bool, pos: int) -> tree.CreateVectorIndex:
        self.expect("(")
        column = self.name("a vector column")
        metric: Literal["cosine", "l2", "inner"] = "cosine"
        if self.token.kind == "word":
            operators = self.name("an operator class")
            if operators.text not in OPERATOR_CLASSES:
                known = ", ".join(OPERATOR_CLASSES)
                self.refuse(f"operator class {operators.text} is not supported; known are {known}", operators.pos)
            metric = OPERATOR_CLASSES[operators.text]
        self.expect(")")
        lists = self.parenthesised(self._lists) if self.words("with") else None
        return tree.CreateVectorIndex(name, table, missing_ok, column, metric, lists, pos)

    def _lists(self) -> int:
        option = self.name("an option")
        if option.text != "lists":
            self.refuse(f"the option {option.text} is not supported; WITH (lists = 100) is", option.pos)
        self.expect("=")
        token = self.next()
        text = token.text.strip("'")  # PostgreSQL takes both
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_LISTS:
            self.fail(f"expected a number of lists from 1 to {MAX_LISTS}, found {token.text}")
        return int(text)

    def _index_key(self) -> tree.OrderKey:
        key = self.order_key()
        if self.token.kind == "word":
            self.refuse(f"operator class {self.token.text} is not supported in an index")
        return key

    def _drop(self, pos: int) -> tree.Drop:
        what = self.next().text
        missing_ok = self._missing_ok()
        name = self.table_name()
        if self.is_operator(","):
            self.refuse(f"drop one {what} per statement")
        if self.words("cascade"):
            self.refuse("DROP ... CASCADE is not supported; drop what depends on it first")
        self.words("restrict")
        return tree.Drop("table" if what == "table" else "index", name, missing_ok, pos)

    def _alter(self, pos: int) -> tree.AlterTable:
        if self._missing_ok():
            self.refuse("ALTER TABLE IF EXISTS is not supported; look it up in db.tables()")
        self.words("only")
        table = self.table_name()
        statement = self._alteration(table, pos)
        if self.is_operator(","):
            self.refuse("one change per ALTER TABLE; run them inside `with db.transaction():`")
        return statement

    def _alteration(self, table: Name, pos: int) -> tree.AlterTable:
        if self.words("add"):
            if self.is_word("constraint", "primary", "unique", "check", "foreign"):
                self.refuse("a constraint cannot be added later; a UNIQUE INDEX can, others belong in CREATE TABLE")
            self.words("column")
            missing_ok = self._missing_ok("not")
            return tree.AlterTable(table, "add", self.column_definition(), None, None, missing_ok, pos)
        if self.words("drop"):
            if self.is_word("constraint"):
                self.refuse("DROP CONSTRAINT is not supported")
            self.words("column")
            missing_ok = self._missing_ok()
            return tree.AlterTable(table, "drop", None, self.name("a column"), None, missing_ok, pos)
        if self.words("rename", "to"):
            self.refuse("a table keeps its name: its shards and history are filed under it")
        if self.words("rename"):
            self.words("column")
            old = self.name("a column")
            self.expect("to")
            return tree.AlterTable(table, "rename", None, old, self.name("a column"), False, pos)
        self.refuse(f"ALTER TABLE ... {self.token.text.upper()} is not supported; ADD, DROP and RENAME COLUMN are")
