"""The fast path: which block of a query can have its similarity scores computed at once, and the two texts for it.

The condition, for one SELECT block: a literal or bound LIMIT; the first ORDER BY key is one score of one stored
column against one parameter or literal, NULLs last; no DISTINCT, GROUP BY, HAVING, aggregate, window, set operation or
volatile function in the block; not inside a correlated place.
"""

from __future__ import annotations

from dataclasses import dataclass

from deeplake_loader.sql import tree
from deeplake_loader.sql.aggregation import is_aggregate
from deeplake_loader.sql.functions import METRICS, SCORE_OPERATORS, VOLATILE
from deeplake_loader.sql.plan import WINNERS, Bind, FastPath, Metric
from deeplake_loader.sql.queries import Block, QueryCompiler
from deeplake_loader.sql.scope import resolve
from deeplake_loader.sql.tree import Expression
from deeplake_loader.sql.values import Context, bound, identifier
from deeplake_loader.types import ColumnType


@dataclass(frozen=True, slots=True)
class Scored:
    """The score a block is ordered by; ``alias``, the name that its table goes by in the block."""

    table: str
    alias: str
    column: str
    place: str
    type: ColumnType
    metric: Metric
    largest: bool
    query: Bind


@dataclass(frozen=True, slots=True)
class ScoredBlock:
    """A block that meets the condition: what it is ordered by, and how many of its rows are wanted."""

    block: Block
    scored: Scored
    limit: Bind | int
    offset: Bind | int

    @property
    def by_operator(self) -> bool:
        """Whether the score is written as an operator."""
        return isinstance(_meant(self.block, self.block.query.order[0].expression), tree.Binary)

    @property
    def whole(self) -> bool:
        """Whether every vector of the table is a candidate."""
        return _whole(self.block, self.scored)


def scored_block(context: Context, blocks: list[Block]) -> ScoredBlock | None:
    """The first block that meets the condition, or None."""
    for block in blocks:
        scored = _scored(context, block)
        limit, offset = _count(block.query.limit), _count(block.query.offset)
        if scored is not None and limit is not None and (offset is not None or block.query.offset is None):
            return ScoredBlock(block, scored, limit, 0 if offset is None else offset)
    return None


def fast_path(context: Context, query: tree.Query, blocks: list[Block], *, hidden: bool = False) -> FastPath | None:
    """The fast path of the first block that meets the condition, or None."""
    found = scored_block(context, blocks)
    if found is None:
        return None
    block, scored = found.block, found.scored
    condition = f" WHERE {block.where}" if block.where else ""
    first, first_binds = context.finish(
        f"{block.ctes}SELECT group_concat({scored.place}) FROM {block.source}{condition}"
    )
    again = Context(context.reading, context.schema)
    winners = bound(again.mark(Bind(WINNERS)))
    inject = (block.node.pos, f"{scored.place} IN (SELECT value FROM json_each({winners}))")
    final, final_binds = again.finish(QueryCompiler(again, inject, hidden=hidden).query(query, top=True).sql)
    return FastPath(
        first, first_binds, final, final_binds, scored.table, scored.column, scored.metric, scored.largest,
        found.limit, found.offset, scored.query, found.whole,
    )  # fmt: skip


def _whole(block: Block, scored: Scored) -> bool:
    """Whether every row of the table is a candidate: one table, and no condition but that the column is not NULL."""
    node = block.node
    if not isinstance(node.source, tree.TableRef) or node.source.name.text.lower() != scored.table.lower():
        return False
    condition = node.where
    if isinstance(condition, tree.Is) and condition.what == "null" and condition.negated:
        operand = condition.operand
        return isinstance(operand, tree.ColumnRef) and operand.name.text.lower() == scored.column.lower()
    return condition is None


def _scored(context: Context, block: Block) -> Scored | None:
    node, query = block.node, block.query
    plain = block.ctes is not None and not (node.distinct or node.distinct_on or block.grouped or node.windows)
    if not plain or not query.order or query.limit is None or _correlated(block) or _disturbed(block):
        return None
    key = query.order[0]
    if key.nulls == "first":
        return None
    expression = _meant(block, key.expression)
    name, sides = _score_sides(expression)
    if name is None:
        return None
    return _column_and_query(context, block, name, sides, key.descending)


def _meant(block: Block, node: Expression) -> Expression:
    """The expression behind a select list position or alias."""
    if isinstance(node, tree.Literal_) and node.text.isdigit() and 1 <= int(node.text) <= len(block.cells):
        return block.cells[int(node.text) - 1].node
    if isinstance(node, tree.ColumnRef) and node.table is None:
        for cell in block.cells:
            if cell.name == node.name.text:
                return cell.node
    return node


def _score_sides(node: Expression) -> tuple[str | None, tuple[Expression, ...]]:
    if isinstance(node, tree.Call) and node.name in METRICS and len(node.arguments) == 2:
        return node.name, node.arguments
    if isinstance(node, tree.Binary) and node.operator in SCORE_OPERATORS:
        return SCORE_OPERATORS[node.operator], (node.left, node.right)
    return None, ()


def _column_and_query(
    context: Context, block: Block, name: str, sides: tuple[Expression, ...], descending: bool
) -> Scored | None:
    columns = [side for side in sides if isinstance(side, tree.ColumnRef)]
    others = [_uncast(side) for side in sides if not isinstance(side, tree.ColumnRef)]
    if len(columns) != 1 or len(others) != 1:
        return None
    found = resolve(context, block.scope, columns[0])[1]
    if found is None or found.depth or found.source.table is None or found.column.type is None:
        return None
    bind = _query_bind(others[0], found.column.type)
    if bind is None or not found.column.type.is_vector:
        return None
    metric = METRICS[name][0]
    distance = name in ("cosine_distance", "negative_inner_product")
    best = descending if not distance else not descending  # a large similarity is a small distance
    place = f"{identifier(found.source.alias)}.{identifier(found.column.name)}"
    table = found.source.table.name
    return Scored(table, found.source.alias, found.column.name, place, found.column.type, _metric(metric), best, bind)


def _metric(name: str) -> Metric:
    return "cosine" if name == "cosine" else "l2" if name == "l2" else "inner"


def _uncast(node: Expression) -> Expression:
    return node.operand if isinstance(node, tree.Cast) and node.to.type.is_vector else node


def _query_bind(node: Expression, kind: ColumnType) -> Bind | None:
    if isinstance(node, tree.Parameter):
        return Bind(node.source, kind, score=True)
    if isinstance(node, tree.Literal_) and node.kind == "string":
        return Bind(None, kind, score=True, constant=node.text)
    return None


def _correlated(block: Block) -> bool:
    """Whether the block stands where the rows of another block are visible."""
    parent = block.scope.parent
    return parent is not None and any(scope.sources for scope in parent.outward())


def _disturbed(block: Block) -> bool:
    """Volatile functions, windows and aggregates in this block; those of its subqueries are their own business."""
    node = block.node
    parts: list[object] = [node.items, node.where, [k.expression for k in block.query.order], node.source]
    return any(
        isinstance(n, tree.Call) and (n.name in VOLATILE or n.window is not None or is_aggregate(n))
        for part in parts
        for n in _own(part)
    )


def _own(node: object) -> list[object]:
    """The nodes of this block; below a subquery only volatile calls still count, so it is walked whole."""
    if isinstance(node, list):
        return [n for part in node for n in _own(part)]
    if isinstance(node, tree.Query):
        return [n for n in tree.walk(node) if isinstance(n, tree.Call) and n.name in VOLATILE]
    out = [node]
    for child in tree.children(node):
        out += _own(child)
    return out


def _count(node: Expression | None) -> Bind | int | None:
    if isinstance(node, tree.Literal_) and node.text.isdigit():
        return int(node.text)
    if isinstance(node, tree.Parameter):
        return Bind(node.source)
    return None
