"""Expressions of PostgreSQL, parsed by its own precedence table.

From loose to tight: OR, AND, NOT, IS, comparisons (no chains), BETWEEN IN LIKE, every other operator, + -, * / %, ^,
AT TIME ZONE, unary minus, ::. Words beyond what is read here are refused by name and position, never skipped.
"""

from __future__ import annotations

from typing import Literal

from deeplake_loader.errors import SQLError
from deeplake_loader.sql import tree
from deeplake_loader.sql.cursor import TypeParser
from deeplake_loader.sql.reader import RESERVED, Token
from deeplake_loader.sql.tree import Expression, Name

OR, AND, NOT, IS, COMPARE, RANGE, OTHER, SUM, PRODUCT, POWER, ZONE, MINUS = range(1, 13)
COMPARISONS = {"=", "<", ">", "<=", ">=", "<>", "!="}
OTHERS = {"||", "->", "->>", "#>", "#>>", "@>", "<@", "?", "?|", "?&", "~", "~*", "!~", "!~*", "<->", "<=>", "<#>",
          "&", "|", "#", "<<", ">>", "#-", "&&", "@@", "@?", "^@", "~~", "~~*", "!~~", "!~~*"}  # fmt: skip
MAX_DEPTH = 120
"""Nesting of expressions and queries; deeper text would exhaust Python's stack."""

TYPED_LITERALS = {"date", "timestamp", "timestamptz", "time", "interval", "json", "jsonb", "uuid", "numeric", "bytea"}
CURRENT = {"current_timestamp": "now", "current_date": "current_date", "localtimestamp": "localtimestamp",
           "current_time": "current_time", "localtime": "localtime"}  # fmt: skip


class ExpressionParser(TypeParser):
    """Reads one expression; queries inside it are read by the subclass."""

    def query(self) -> tree.Query:
        raise NotImplementedError

    def expression(self, floor: int = OR) -> Expression:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(f"expressions nested deeper than {MAX_DEPTH}")
        left = self._prefix()
        ceiling = MINUS
        while (level := self._level()) and floor <= level:
            if level > ceiling or (level == ceiling and level in (COMPARE, RANGE)):
                self.fail(f"{self.found()} cannot follow here without parentheses")
            left = self._infix(left, level)
            ceiling = level if level in (COMPARE, RANGE) else MINUS
        self.depth -= 1
        return left

    # -- what may stand between two operands -----------------------------------------------------------------------

    def _level(self) -> int:
        token = self.token
        if token.kind == "operator":
            return self._operator_level(token.text)
        if token.kind != "word":
            return 0
        word = token.text
        if word == "not":
            return RANGE if self.peek().text in ("in", "like", "ilike", "between", "similar") else 0
        simple = {"or": OR, "and": AND, "is": IS, "isnull": IS, "notnull": IS, "in": RANGE, "like": RANGE,
                  "ilike": RANGE, "between": RANGE, "similar": RANGE, "collate": ZONE, "at": ZONE}  # fmt: skip
        level = simple.get(word, 0)
        return 0 if word == "at" and self.peek().text not in ("time", "local") else level

    def _operator_level(self, text: str) -> int:
        if text in COMPARISONS:
            return COMPARE
        if text in OTHERS:
            return OTHER
        levels = {"+": SUM, "-": SUM, "*": PRODUCT, "/": PRODUCT, "%": PRODUCT, "^": POWER, "::": MINUS, "[": MINUS}
        if text not in levels and text not in (")", "]", ",", ".", ";", ":", "("):
            self.fail(f"unknown operator {text}")
        return levels.get(text, 0)

    def _infix(self, left: Expression, level: int) -> Expression:
        token = self.token
        if token.kind == "operator":
            return self._operation(left, level)
        word = token.text
        if word in ("and", "or"):
            self.next()
            return tree.Binary(word, left, self.expression(level + 1), token.start)
        if word in ("is", "isnull", "notnull"):
            return self._is(left)
        if word == "at":
            self.next()
            if not self.words("time", "zone"):
                self.refuse("AT LOCAL is not supported; write AT TIME ZONE 'UTC'", token.start)
            return tree.AtZone(left, self.expression(MINUS), token.start)
        if word == "collate":
            return self._collate(left)
        negated = self.words("not")
        return self._range(left, negated, token.start)

    def _operation(self, left: Expression, level: int) -> Expression:
        token = self.next()
        if token.text == "::":
            return tree.Cast(left, self.type_name(), token.start)
        if token.text == "[":
            self.refuse("array subscripts are not supported; keep lists in JSON and write value -> 0", token.start)
        if self.is_word("any", "some", "all") and level in (COMPARE, OTHER) and self.peek().text == "(":
            return self._quantified(left, token)
        operator = "<>" if token.text == "!=" else token.text
        right = self.expression(level + 1)
        like = {"~~": (False, False), "~~*": (False, True), "!~~": (True, False), "!~~*": (True, True)}.get(operator)
        if like is not None:
            return tree.Like(left, right, None, like[0], like[1], token.start)
        return tree.Binary(operator, left, right, token.start)

    def _quantified(self, left: Expression, token: Token) -> Expression:
        every = self.next().text == "all"
        self.expect("(")
        right = self.query() if self.at_query() else self.expression()
        self.expect(")")
        return tree.Quantified(left, "<>" if token.text == "!=" else token.text, every, right, token.start)

    def _is(self, left: Expression) -> Expression:
        token = self.next()
        if token.text in ("isnull", "notnull"):
            return tree.Is(left, "null", token.text == "notnull", token.start)
        negated = self.words("not")
        if self.words("distinct", "from"):
            return tree.DistinctFrom(left, self.expression(RANGE), negated, token.start)
        what = self.next()
        if what.text in ("null", "true", "false", "unknown") and what.kind == "word":
            return tree.Is(left, what.text, negated, token.start)  # type: ignore[arg-type]
        self.refuse(f"IS {what.text.upper()} is not supported", what.start)

    def _collate(self, left: Expression) -> Expression:
        token = self.next()
        name = self.name("a collation", label=True)
        if name.text not in ("C", "POSIX", "ucs_basic") or not name.quoted:
            self.refuse('text is ordered by its bytes, COLLATE "C"; other collations are not supported', token.start)
        return left

    def _range(self, left: Expression, negated: bool, pos: int) -> Expression:
        word = self.next().text
        if word == "in":
            return self._in(left, negated, pos)
        if word == "between":
            symmetric = self.words("symmetric")
            if not symmetric:
                self.words("asymmetric")
            low = self.expression(OTHER)
            self.expect("and")
            return tree.Between(left, low, self.expression(OTHER), negated, symmetric, pos)
        if word == "similar":
            self.refuse("SIMILAR TO is not supported; write a regular expression: value ~ '^...$'", pos)
        pattern = self.expression(OTHER)
        escape = self.expression(OTHER) if self.words("escape") else None
        return tree.Like(left, pattern, escape, negated, word == "ilike", pos)

    def _in(self, left: Expression, negated: bool, pos: int) -> Expression:
        if self.token.kind == "parameter":
            self.refuse("IN takes a list in parentheses; for a list parameter write value = ANY(%s)", pos)
        self.expect("(")
        items = self.query() if self.at_query() else self.listed(self.expression)
        self.expect(")")
        return tree.In(left, items, negated, pos)

    # -- what may begin an operand ---------------------------------------------------------------------------------

    def _prefix(self) -> Expression:
        token = self.token
        if token.kind in ("string", "number"):
            self.next()
            return tree.Literal_("string" if token.kind == "string" else "number", token.text, token.start)
        if token.kind == "parameter" and token.source is not None:
            self.next()
            return tree.Parameter(token.source, token.text, token.start)
        if token.kind == "operator":
            return self._prefix_operator()
        if token.kind == "end":
            self.fail("the statement ends where a value was expected")
        return self._prefix_word() if token.kind == "word" else self._reference()

    def _prefix_operator(self) -> Expression:
        token = self.next()
        if token.text == "(":
            return self._parenthesis(token)
        if token.text in ("-", "+"):
            return tree.Unary(token.text, self.expression(MINUS), token.start)
        if token.text == "~":
            return tree.Unary("~", self.expression(OTHER), token.start)
        if token.text == "*":
            return tree.Star(None, token.start)
        self.fail(f"{token.text} cannot begin a value", token.start)

    def _parenthesis(self, token: Token) -> Expression:
        if self.at_query() and (query := self._enclosed_query()) is not None:
            return tree.Scalar(query, token.start)
        items = self.listed(self.expression)
        self.expect(")")
        return items[0] if len(items) == 1 else tree.Tuple_(items, token.start)

    def _enclosed_query(self) -> tree.Query | None:
        """The query up to the closing parenthesis; None for an expression that begins with one: ((SELECT 1) + 1)."""
        start, depth, sure = self.at, self.depth, not self.is_operator("(")
        try:
            query = self.query()
            self.expect(")")
        except SQLError:
            if sure:
                raise
            self.at, self.depth = start, depth
            return None
        return query

    def _prefix_word(self) -> Expression:
        token = self.token
        word, after = token.text, self.peek()
        reader = {"case": self._case, "cast": self._cast, "exists": self._exists, "array": self._array,
                  "row": self._row, "not": self._not}.get(word)  # fmt: skip
        if reader is not None and not (word in ("row", "exists") and after.text != "("):
            self.next()
            return reader(token.start)
        if word in ("null", "true", "false"):
            self.next()
            return tree.Literal_("null" if word == "null" else "boolean", word, token.start)
        if word == "default":
            self.next()
            return tree.Default(token.start)
        if word in CURRENT:
            return self._current(token)
        if after.kind == "string" and word in TYPED_LITERALS:
            return self._typed_literal()
        if word in ("timestamp", "time") and after.kind == "word" and after.text in ("with", "without"):
            return self._typed_literal()
        return self._reference()

    def _not(self, pos: int) -> Expression:
        return tree.Unary("not", self.expression(NOT), pos)

    def _typed_literal(self) -> Expression:
        kind = self.type_name()
        literal = self.next()
        if literal.kind != "string":
            self.fail("expected a string after the type", literal.start)
        value = tree.Cast(tree.Literal_("string", literal.text, literal.start), kind, kind.pos)
        if kind.type.name == "INTERVAL" and self.is_word("year", "month", "day", "hour", "minute", "second"):
            unit = self.next().text
            if self.is_word("to"):
                self.refuse(f"INTERVAL ... {unit.upper()} TO ... is not supported; write INTERVAL '1 day 02:00'")
            return tree.Cast(tree.Literal_("string", f"{literal.text} {unit}", literal.start), kind, kind.pos)
        return value

    def _current(self, token: Token) -> Expression:
        self.next()
        if self.is_operator("("):
            self.refuse(f"{token.text.upper()} takes no precision here; cast it, or use date_trunc")
        return tree.Call(CURRENT[token.text], (), token.start)

    def _case(self, pos: int) -> Expression:
        subject = None if self.is_word("when") else self.expression()
        whens = []
        while self.words("when"):
            condition = self.expression()
            self.expect("then")
            whens.append((condition, self.expression()))
        if not whens:
            self.fail("CASE needs at least one WHEN")
        default = self.expression() if self.words("else") else None
        self.expect("end")
        return tree.Case(subject, tuple(whens), default, pos)

    def _cast(self, pos: int) -> Expression:
        self.expect("(")
        operand = self.expression()
        self.expect("as")
        kind = self.type_name()
        self.expect(")")
        return tree.Cast(operand, kind, pos)

    def _exists(self, pos: int) -> Expression:
        return tree.Exists(self.parenthesised(self.query), pos)

    def _array(self, pos: int) -> Expression:
        if not self.operator("["):
            self.refuse("ARRAY(query) is not supported; use array_agg, or IN (query)", pos)
        items = () if self.is_operator("]") else self.listed(self.expression)
        self.expect("]")
        return tree.Array(items, pos)

    def _row(self, pos: int) -> Expression:
        return tree.Tuple_(self.parenthesised(lambda: self.listed(self.expression)), pos)

    def _reference(self) -> Expression:
        token = self.token
        after = self.peek()
        if token.kind == "word" and after.kind == "operator" and after.text == "(" and token.text not in RESERVED:
            return self._call()
        first = self.name("a column")
        if not self.operator("."):
            return tree.ColumnRef(first, None, token.start)
        if self.operator("*"):
            return tree.Star(first, token.start)
        second = self.name("a column", label=True)
        if self.is_operator("("):
            return self._schema_call(first)
        if not self.is_operator("."):
            return tree.ColumnRef(second, first, token.start)
        self._public(first)
        self.next()
        return tree.ColumnRef(self.name("a column", label=True), second, token.start)

    def _public(self, schema: Name) -> None:
        if schema.text != "public":
            self.refuse(f"there is only the schema public, not {schema.text!r}; leave the schema away", schema.pos)

    def _schema_call(self, schema: Name) -> Expression:
        if schema.text not in ("pg_catalog", "public"):
            self.refuse(f"there is no schema {schema.text!r}; leave the schema away", schema.pos)
        self.at -= 1
        return self._call()

    # -- calls -----------------------------------------------------------------------------------------------------

    def _call(self) -> Expression:
        token = self.next()
        self.expect("(")
        special = {"extract": self._extract, "position": self._position, "substring": self._substring,
                   "trim": self._trim, "overlay": self._overlay}.get(token.text)  # fmt: skip
        call = special(token.start) if special is not None else self._plain_call(token)
        return self._call_suffixes(call)

    def _plain_call(self, token: Token) -> tree.Call:
        if self.operator("*"):
            self.expect(")")
            return tree.Call(token.text, (), token.start, star=True)
        distinct = self.words("distinct")
        if not distinct:
            self.words("all")
        arguments: tuple[Expression, ...] = ()
        if not self.is_operator(")"):
            arguments = self.listed(self._argument)
        order = self.order_by()
        self.expect(")")
        return tree.Call(token.text, arguments, token.start, distinct=distinct, order=order)

    def _argument(self) -> Expression:
        if self.is_word("variadic"):
            self.refuse("VARIADIC is not supported; write the arguments one by one")
        value = self.expression()
        if self.is_operator("=>", ":="):
            self.refuse("named arguments are not supported; write the arguments in order")
        return value

    def _extract(self, pos: int) -> tree.Call:
        field = self.next()
        if field.kind not in ("word", "string"):
            self.fail("expected a field such as YEAR", field.start)
        self.expect("from")
        value = self.expression()
        self.expect(")")
        return tree.Call("extract", (tree.Literal_("string", field.text.lower(), field.start), value), pos)

    def _position(self, pos: int) -> tree.Call:
        part = self.expression(OTHER)
        self.expect("in")
        whole = self.expression()
        self.expect(")")
        return tree.Call("position", (whole, part), pos)

    def _substring(self, pos: int) -> tree.Call:
        value = self.expression()
        arguments = [value]
        if self.words("from"):
            arguments.append(self.expression())
        elif self.is_word("for"):
            arguments.append(tree.Literal_("number", "1", pos))
        elif self.is_word("similar"):
            self.refuse("SUBSTRING ... SIMILAR is not supported; write substring(value from 'regular expression')")
        if self.words("for"):
            arguments.append(self.expression())
        while self.operator(","):
            arguments.append(self.expression())
        self.expect(")")
        return tree.Call("substring", tuple(arguments), pos)

    def _trim(self, pos: int) -> tree.Call:
        side = self.next().text if self.is_word("both", "leading", "trailing") else "both"
        name = {"both": "btrim", "leading": "ltrim", "trailing": "rtrim"}[side]
        if self.words("from"):
            arguments: tuple[Expression, ...] = (self.expression(),)
        else:
            first = self.expression()
            if self.words("from"):
                arguments = (self.expression(), first)
            else:
                arguments = (first, self.expression()) if self.operator(",") else (first,)
        self.expect(")")
        return tree.Call(name, arguments, pos)

    def _overlay(self, pos: int) -> tree.Call:
        arguments = [self.expression()]
        for word in ("placing", "from"):
            self.expect(word)
            arguments.append(self.expression())
        if self.words("for"):
            arguments.append(self.expression())
        self.expect(")")
        return tree.Call("overlay", tuple(arguments), pos)

    def _call_suffixes(self, call: tree.Call) -> tree.Call:
        within: tuple[tree.OrderKey, ...] = ()
        if self.words("within", "group"):
            within = self.parenthesised(self.order_by)
        where = None
        if self.is_word("filter") and self.peek().text == "(":
            self.next()
            self.expect("(")
            self.expect("where")
            where = self.expression()
            self.expect(")")
        if self.is_word("respect", "ignore"):
            self.refuse("IGNORE NULLS is not supported")
        window = self._over() if self.words("over") else None
        return tree.Call(
            call.name, call.arguments, call.pos, call.star, call.distinct, call.order, within, where, window
        )

    def _over(self) -> tree.Window:
        if not self.is_operator("("):
            name = self.name("a window")
            return tree.Window(name, (), (), None, name.pos)
        return self.parenthesised(self.window)

    def window(self) -> tree.Window:
        """What stands in the parentheses of OVER (...) or WINDOW name AS (...)."""
        pos = self.token.start
        plain = self.token.kind == "name" or not self.is_word("partition", "order", "rows", "range", "groups")
        base = self.name("a window") if plain and not self.is_operator(")") else None
        partition = self.listed(self.expression) if self.words("partition", "by") else ()
        order = self.order_by()
        frame = self._frame() if self.is_word("rows", "range", "groups") else None
        return tree.Window(base, partition, order, frame, pos)

    def _frame(self) -> tree.Frame:
        unit = self.next().text
        if self.words("between"):
            start = self._bound()
            self.expect("and")
            end: tuple[str, Expression | None] | None = self._bound()
        else:
            start, end = self._bound(), None
        exclude = None
        if self.words("exclude"):
            exclude = " ".join(self.next().text for _ in range(2 if self.is_word("current", "no") else 1))
            if exclude not in ("current row", "group", "ties", "no others"):
                self.fail(f"EXCLUDE {exclude.upper()} is not known")
        return tree.Frame(unit, start, end, exclude)

    def _bound(self) -> tuple[str, Expression | None]:
        if self.words("current", "row"):
            return "current row", None
        for side in ("preceding", "following"):
            if self.words("unbounded", side):
                return f"unbounded {side}", None
        offset = self.expression()
        if not self.is_word("preceding", "following"):
            self.fail(f"expected PRECEDING or FOLLOWING, found {self.found()}")
        return self.next().text, offset

    def order_by(self) -> tuple[tree.OrderKey, ...]:
        return self.listed(self.order_key) if self.words("order", "by") else ()

    def order_key(self) -> tree.OrderKey:
        pos = self.token.start
        value = self.expression()
        descending = self.words("desc")
        if not descending and not self.words("asc") and self.is_word("using"):
            self.refuse("ORDER BY ... USING is not supported; write ASC or DESC")
        nulls: Literal["first", "last"] | None = None
        if self.words("nulls"):
            nulls = "first" if self.words("first") else "last"
            if nulls == "last":
                self.expect("last")
        return tree.OrderKey(value, descending, nulls, pos)

    def at_query(self) -> bool:
        """Whether a query begins here, behind any number of opening parentheses."""
        ahead = 0
        while self.peek(ahead).kind == "operator" and self.peek(ahead).text == "(":
            ahead += 1
        token = self.peek(ahead)
        return token.kind == "word" and token.text in ("select", "with", "values")
