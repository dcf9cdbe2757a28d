"""Expressions to SQLite text: each node of the tree has one method here, and what has none cannot be compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deeplake_loader.sql import calls, operators, tree
from deeplake_loader.sql.casts import as_boolean, assign, cast, common, convert, settle
from deeplake_loader.sql.plan import Bind
from deeplake_loader.sql.scope import Scope, resolve
from deeplake_loader.sql.tree import Expression
from deeplake_loader.sql.values import (
    AND,
    BIGINT,
    BOOLEAN,
    EQUAL,
    INTEGER,
    LESS,
    NOT,
    NUMERIC,
    OR,
    TEXT,
    UNARY,
    Context,
    Target,
    Value,
    bound,
    quoted_text,
)
from deeplake_loader.types import ColumnType

if TYPE_CHECKING:
    from deeplake_loader.sql.queries import Output


class ExpressionCompiler:
    """Compiles expressions of one statement; `Queries` adds the subqueries."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.methods: dict[type, Callable[[Scope, Any], Value]] = {
            tree.Literal_: self._literal, tree.ColumnRef: self._column, tree.Unary: self._unary,
            tree.Binary: self._binary, tree.Is: self._is, tree.DistinctFrom: self._distinct_from, tree.In: self._in,
            tree.Between: self._between, tree.Like: self._like, tree.Quantified: self._quantified,
            tree.Exists: self._exists, tree.AtZone: self._at_zone, tree.Star: self._misplaced,
            tree.Default: self._misplaced, tree.Tuple_: self._misplaced, tree.Array: self._misplaced,
        }  # fmt: skip

    def subquery(self, scope: Scope, query: tree.Query, targets: Sequence[Target | None] = ()) -> Output:
        raise NotImplementedError

    def expression(self, scope: Scope, node: Expression, target: Target | None = None) -> Value:
        """The node as SQL. With a target, parameters on the value path take its type, but nothing is converted."""
        if isinstance(node, tree.Parameter):
            return self._parameter(node, target)
        if isinstance(node, tree.Case):
            return self._case(scope, node, target)
        if isinstance(node, tree.Call):
            return calls.call(self, scope, node, target)
        if isinstance(node, tree.Cast):
            return self._cast(scope, node, target)
        if isinstance(node, tree.Scalar):
            return self._scalar(scope, node, target)
        return self.methods[type(node)](scope, node)

    def assigned(self, scope: Scope, node: Expression, target: Target) -> Value:
        """The node as a value to be stored in the target column."""
        return assign(self.context, self.expression(scope, node, target), target, node.pos)

    def condition(self, scope: Scope, node: Expression, what: str) -> Value:
        return as_boolean(self.context, self.expression(scope, node), node.pos, what)

    def text(self, scope: Scope, node: Expression) -> Value:
        """The node, which must be text."""
        value = self.expression(scope, node)
        if value.untyped:
            return settle(self.context, value, TEXT, node.pos, bare=True)
        if value.name not in ("TEXT", ""):
            self.context.fail(f"expected text, found {value.type}; cast it: value::text", node.pos)
        return value

    # -- atoms -----------------------------------------------------------------------------------------------------

    def _literal(self, _: Scope, node: tree.Literal_) -> Value:
        if node.kind == "string":
            return Value(quoted_text(node.text), literal=node.text, nullable=False)
        if node.kind == "null":
            return Value("NULL", null=True)
        if node.kind == "boolean":
            return Value(node.text.upper(), BOOLEAN, nullable=False)
        if not node.text.isdigit() and node.text[:2].lower() != "0x":
            digits = node.text.partition(".")[2]
            scale = (("precision", 15), ("scale", len(digits))) if digits.isdigit() and len(digits) <= 15 else ()
            return Value(node.text, ColumnType("NUMERIC", options=scale) if scale else NUMERIC, nullable=False)
        number = int(node.text, 0) if node.text[:2].lower() == "0x" else int(node.text)
        if number >= 2**63:
            self.context.refuse("more than 63 bits in a whole number; write 1e20::float8", node.pos)
        return Value(node.text, INTEGER if number < 2**31 else BIGINT, nullable=False)

    def _parameter(self, node: tree.Parameter, target: Target | None) -> Value:
        number = self.context.mark(Bind(node.source))
        value = Value(bound(number), bind=number)
        return value if target is None else assign(self.context, value, target, node.pos)

    def _column(self, scope: Scope, node: tree.ColumnRef) -> Value:
        return resolve(self.context, scope, node)[0]

    def _misplaced(self, _: Scope, node: Expression) -> Value:
        hints: dict[type, str] = {
            tree.Star: "* stands alone in a select list, or in count(*)",
            tree.Default: "DEFAULT stands alone as a value of INSERT or UPDATE",
            tree.Tuple_: "a row of values can only be compared with another row",
            tree.Array: "an array can only be searched: value = ANY(ARRAY[...]); keep lists in JSON",
        }
        self.context.refuse(hints[type(node)], node.pos)

    # -- operators -------------------------------------------------------------------------------------------------

    def _unary(self, scope: Scope, node: tree.Unary) -> Value:
        if node.operator == "not":
            value = self.condition(scope, node.operand, "the operand of NOT")
            return Value(f"NOT {value.at(NOT)}", BOOLEAN, NOT, nullable=value.nullable)
        return operators.sign(self.context, node, self.expression(scope, node.operand))

    def _binary(self, scope: Scope, node: tree.Binary) -> Value:
        if node.operator in ("and", "or"):
            return self._chain(scope, node)
        if isinstance(node.left, tree.Tuple_) or isinstance(node.right, tree.Tuple_):
            return self._row_comparison(scope, node)
        if node.operator in calls.SCORE_OPERATORS:
            return calls.score(self, scope, calls.SCORE_OPERATORS[node.operator], (node.left, node.right), node.pos)
        left, right = self.expression(scope, node.left), self.expression(scope, node.right)
        return operators.binary(self.context, node, left, right)

    def _chain(self, scope: Scope, node: tree.Binary) -> Value:
        """a AND b AND c ... in one go: generated conditions run to hundreds, more than Python nests calls."""
        word, level = node.operator.upper(), AND if node.operator == "and" else OR
        parts: list[Expression] = [node.right]
        first = node.left
        while isinstance(first, tree.Binary) and first.operator == node.operator:
            parts.append(first.right)
            first = first.left
        values = [self.condition(scope, part, f"an operand of {word}") for part in (first, *reversed(parts))]
        texts = [value.at(level if i == 0 else level + 1) for i, value in enumerate(values)]
        return Value(f" {word} ".join(texts), BOOLEAN, level, nullable=any(value.nullable for value in values))

    def _row_comparison(self, scope: Scope, node: tree.Binary) -> Value:
        left, right = node.left, node.right
        if not isinstance(left, tree.Tuple_) or node.operator not in ("=", "<>", "<", "<=", ">", ">="):
            self.context.refuse("a row of values can only be compared with another row", node.pos)
        if not isinstance(right, tree.Tuple_) or len(left.items) != len(right.items):
            self.context.fail("both rows must have the same number of values", node.pos)
        pairs = [
            operators.matched(self.context, self.expression(scope, a), self.expression(scope, b), node.pos)
            for a, b in zip(left.items, right.items, strict=True)
        ]
        first, second = (", ".join(pair[side].sql for pair in pairs) for side in (0, 1))
        level = EQUAL if node.operator in ("=", "<>") else LESS
        return Value(f"({first}) {node.operator} ({second})", BOOLEAN, level)

    def _is(self, scope: Scope, node: tree.Is) -> Value:
        negation = " NOT" if node.negated else ""
        if node.what == "null":
            if isinstance(node.operand, tree.Tuple_):
                self.context.refuse("IS NULL of a row is not supported; test each value", node.pos)
            value = self.expression(scope, node.operand)
            return Value(f"{value.at(LESS)} IS{negation} NULL", BOOLEAN, EQUAL, nullable=False)
        value = self.condition(scope, node.operand, f"the operand of IS {node.what.upper()}")
        what = "NULL" if node.what == "unknown" else node.what.upper()
        return Value(f"{value.at(LESS)} IS{negation} {what}", BOOLEAN, EQUAL, nullable=False)

    def _distinct_from(self, scope: Scope, node: tree.DistinctFrom) -> Value:
        left, right = self.expression(scope, node.left), self.expression(scope, node.right)
        left, right = operators.matched(self.context, left, right, node.pos)
        if right.sql in ("TRUE", "FALSE"):  # SQLite reads IS TRUE as a test of truth
            right = replace(right, sql=str(int(right.sql == "TRUE")))
        word = "IS" if node.negated else "IS NOT"
        return Value(f"{left.at(LESS)} {word} {right.at(LESS)}", BOOLEAN, EQUAL, nullable=False)

    def _between(self, scope: Scope, node: tree.Between) -> Value:
        value, low, high = (self.expression(scope, part) for part in (node.operand, node.low, node.high))
        value, low = operators.matched(self.context, value, low, node.pos)
        value, high = operators.matched(self.context, value, high, node.pos)
        value, low = operators.matched(self.context, value, low, node.pos)
        negation = "NOT " if node.negated else ""
        subject = value.at(LESS)
        sql = f"{subject} {negation}BETWEEN {low.at(LESS)} AND {high.at(LESS)}"
        if node.symmetric:
            word = "AND" if node.negated else "OR"
            sql = f"{sql} {word} {subject} {negation}BETWEEN {high.at(LESS)} AND {low.at(LESS)}"
            return Value(sql, BOOLEAN, AND if node.negated else OR)
        return Value(sql, BOOLEAN, EQUAL)

    def _like(self, scope: Scope, node: tree.Like) -> Value:
        value, pattern = self.text(scope, node.operand), self.expression(scope, node.pattern)
        escape = None if node.escape is None else self.expression(scope, node.escape)
        return operators.like(self.context, node, value, pattern, escape)

    def _at_zone(self, scope: Scope, node: tree.AtZone) -> Value:
        value, zone = self.expression(scope, node.operand), self.expression(scope, node.zone)
        if zone.literal is None or zone.literal.upper() not in ("UTC", "GMT", "Z", "ETC/UTC"):
            self.context.refuse("AT TIME ZONE takes 'UTC' only; convert other zones in Python", node.pos)
        if value.name not in ("TIMESTAMP", "TIMESTAMPTZ", "DATE"):
            self.context.fail(f"AT TIME ZONE needs a timestamp, not {value.type}; cast it", node.pos)
        kind = "TIMESTAMP" if value.name != "TIMESTAMP" else "TIMESTAMPTZ"
        return convert(self.context, value, ColumnType(kind), node.pos)

    # -- lists and subqueries --------------------------------------------------------------------------------------

    def _in(self, scope: Scope, node: tree.In) -> Value:
        negation = "NOT " if node.negated else ""
        if isinstance(node.operand, tree.Tuple_):
            return self._row_in(scope, node, node.operand)
        value = self.expression(scope, node.operand)
        if isinstance(node.items, tree.Query):
            (value,), sql = self._columns_query(scope, [value], node.items)
        else:
            items = []
            for item in node.items:
                value, found = operators.matched(self.context, value, self.expression(scope, item), item.pos)
                items.append(found)
            sql = ", ".join(item.sql for item in items)
        return Value(f"{value.at(LESS)} {negation}IN ({sql})", BOOLEAN, EQUAL)

    def _columns_query(self, scope: Scope, values: list[Value], query: tree.Query) -> tuple[list[Value], str]:
        """A subquery whose columns are compared with the values."""
        found = self.subquery(scope, query)
        if len(found.fields) != len(values):
            found_here = f"{len(found.fields)} columns, and {len(values)} are compared"
            self.context.fail(f"the subquery has {found_here}", query.pos)
        out = []
        for value, field in zip(values, found.fields, strict=True):
            other = Value("x", field.type)
            matched, converted = operators.matched(self.context, value, other, query.pos)
            if converted.sql != "x":
                self.context.refuse(f"the subquery gives {other.type}, compared with {value.type}; cast one", query.pos)
            out.append(matched)
        return out, found.sql

    def _row_in(self, scope: Scope, node: tree.In, operand: tree.Tuple_) -> Value:
        values = [self.expression(scope, item) for item in operand.items]
        negation = "NOT " if node.negated else ""
        if isinstance(node.items, tree.Query):
            values, sql = self._columns_query(scope, values, node.items)
            return Value(f"({', '.join(v.sql for v in values)}) {negation}IN ({sql})", BOOLEAN, EQUAL)
        rows = []
        for row in node.items:
            if not isinstance(row, tree.Tuple_) or len(row.items) != len(values):
                self.context.fail(f"each row must have {len(values)} values", row.pos)
            cells = [self.expression(scope, item) for item in row.items]
            pairs = [operators.matched(self.context, v, c, row.pos) for v, c in zip(values, cells, strict=True)]
            values = [pair[0] for pair in pairs]
            rows.append(f"({', '.join(pair[1].sql for pair in pairs)})")
        left = ", ".join(value.sql for value in values)
        return Value(f"({left}) {negation}IN (VALUES {', '.join(rows)})", BOOLEAN, EQUAL)

    def _quantified(self, scope: Scope, node: tree.Quantified) -> Value:
        same = (node.operator, node.every) == ("=", False)
        if not same and (node.operator, node.every) != ("<>", True):
            word = "ALL" if node.every else "ANY"
            self.context.refuse(f"{node.operator} {word} is not supported; compare with min() or max()", node.pos)
        value = self.expression(scope, node.operand)
        if isinstance(node.right, tree.Query):
            (value,), sql = self._columns_query(scope, [value], node.right)
        else:
            value, sql = self._array(scope, value, node.right)
        return Value(f"{value.at(LESS)} {'' if same else 'NOT '}IN ({sql})", BOOLEAN, EQUAL)

    def _array(self, scope: Scope, value: Value, node: Expression) -> tuple[Value, str]:
        """What stands in ANY(...): ARRAY[...], a '{...}' literal, or a list parameter."""
        kind = None
        if isinstance(node, tree.Cast) and node.to.array:
            kind, node = node.to.type, node.operand
        if isinstance(node, tree.Array):
            items = []
            for item in node.items:
                value, found = operators.matched(self.context, value, self.expression(scope, item), item.pos)
                items.append(found.sql)
            return value, ", ".join(items)
        if isinstance(node, tree.Parameter):
            kind = kind or (value.type if value.name in operators.LISTED else None)
            number = self.context.mark(Bind(node.source, kind, many=True))
            if value.untyped:
                value = settle(self.context, value, kind or TEXT, node.pos, bare=True)
            return value, f"SELECT value FROM json_each({bound(number)})"
        self.context.refuse("ANY takes a parameter, ARRAY[...] or a subquery here", node.pos)

    def _exists(self, scope: Scope, node: tree.Exists) -> Value:
        return Value(f"EXISTS ({self.subquery(scope, node.query).sql})", BOOLEAN, UNARY, nullable=False)

    def _scalar(self, scope: Scope, node: tree.Scalar, target: Target | None) -> Value:
        found = self.subquery(scope, node.query, () if target is None else (target,))
        if len(found.fields) != 1:
            self.context.fail(f"a subquery used as a value must have one column, not {len(found.fields)}", node.pos)
        column = found.fields[0]
        sql = f"({found.sql})"
        if not found.single:  # PostgreSQL fails on a second row, SQLite would take the first
            named = f"SELECT NULL AS _dl_value WHERE 0 UNION ALL {wrapped(found.sql)}"
            sql = f"(SELECT _dl_single(_dl_value) FROM ({named}))"
        return Value(sql, column.type, score=column.score)

    # -- CASE and CAST ---------------------------------------------------------------------------------------------

    def _case(self, scope: Scope, node: tree.Case, target: Target | None) -> Value:
        subject = None if node.subject is None else self.expression(scope, node.subject)
        conditions: list[Value] = []
        for when, _ in node.whens:
            if subject is None:
                conditions.append(self.condition(scope, when, "the condition of WHEN"))
            else:
                subject, value = operators.matched(self.context, subject, self.expression(scope, when), when.pos)
                conditions.append(value)
        results = [self.expression(scope, then, target) for _, then in node.whens]
        if node.default is not None:
            results.append(self.expression(scope, node.default, target))
        results = self.unified(results, node.pos, "CASE")
        parts = [f" WHEN {c.sql} THEN {r.sql}" for c, r in zip(conditions, results, strict=False)]
        default = f" ELSE {results[-1].sql}" if node.default is not None else ""
        head = "CASE" if subject is None else f"CASE {subject.sql}"
        nullable = node.default is None or any(r.nullable for r in results)
        kind = results[0].type
        return Value(f"{head}{''.join(parts)}{default} END", kind, UNARY, nullable=nullable,
                     score=any(r.score for r in results))  # fmt: skip

    def unified(self, values: list[Value], pos: int, what: str) -> list[Value]:
        """The values as one type, the way CASE, COALESCE, VALUES and UNION choose it."""
        kind: ColumnType | None = None
        for value in values:
            if value.type is None or value.untyped:
                continue
            met = value.type if kind is None else common(kind, value.type)
            if met is None:
                self.context.fail(f"{what} has results of the types {kind} and {value.type}; cast one", pos)
            kind = met
        if kind is None:
            kind = TEXT if any(value.literal is not None for value in values) else None
        if kind is None:
            return values
        settled = [settle(self.context, v, kind, pos, bare=True) if v.untyped else v for v in values]
        return [v if v.type is None or v.type == kind else self.widened(v, kind, pos) for v in settled]

    def widened(self, value: Value, kind: ColumnType, pos: int) -> Value:
        if value.null or value.sql == "NULL" or kind.is_blob or kind.is_vector:
            return replace(value, type=kind)
        if value.name == "NUMERIC" == kind.name:
            return replace(value, type=kind)
        return convert(self.context, value, kind, pos)

    def _cast(self, scope: Scope, node: tree.Cast, target: Target | None) -> Value:
        if node.to.array:
            self.context.refuse("array types only stand in value = ANY(%s::int[]); keep lists in JSON", node.pos)
        kind = node.to.type
        if target is not None and target.type.name == kind.name and isinstance(node.operand, tree.Parameter):
            return self.expression(scope, node.operand, target)
        value = self.expression(scope, node.operand)
        if kind.is_vector or kind.is_blob:
            if value.literal is not None or value.bind is not None:
                return value
            self.context.refuse(f"cannot cast {value.type} to {kind}", node.pos)
        return cast(self.context, value, kind, node.pos, node.to.length)


def wrapped(sql: str) -> str:
    """A query as an operand of UNION ALL, which takes no ORDER BY or LIMIT of its own."""
    return f"SELECT * FROM ({sql})"
