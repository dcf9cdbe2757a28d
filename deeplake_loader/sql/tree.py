"""The syntax tree: what the parser makes of a statement before any name is looked up; nodes know their position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Literal

from deeplake_loader.types import ColumnType


@dataclass(frozen=True, slots=True)
class Name:
    """An identifier, folded to lower case unless it was quoted."""

    text: str
    quoted: bool = False
    pos: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class TypeName:
    """A type in a cast or a column definition; ``length`` of VARCHAR(n), ``serial``, ``array`` for T[]."""

    type: ColumnType
    pos: int = field(compare=False)
    length: int | None = None
    serial: bool = False
    array: bool = False


# -- expressions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Literal_:
    kind: Literal["string", "number", "null", "boolean"]
    text: str
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Parameter:
    source: int | str
    text: str
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class ColumnRef:
    """``name`` or ``table.name``; with ``schema`` when three parts were written."""

    name: Name
    table: Name | None
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Star:
    table: Name | None
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Unary:
    operator: str
    operand: Expression
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Binary:
    operator: str
    left: Expression
    right: Expression
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Is:
    operand: Expression
    what: Literal["null", "true", "false", "unknown"]
    negated: bool
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class DistinctFrom:
    left: Expression
    right: Expression
    negated: bool
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class In:
    operand: Expression
    items: tuple[Expression, ...] | Query
    negated: bool
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Between:
    operand: Expression
    low: Expression
    high: Expression
    negated: bool
    symmetric: bool
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Like:
    operand: Expression
    pattern: Expression
    escape: Expression | None
    negated: bool
    insensitive: bool
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Quantified:
    """``operand op ANY (array or query)`` or ``ALL``."""

    operand: Expression
    operator: str
    every: bool
    right: Expression | Query
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class OrderKey:
    expression: Expression
    descending: bool
    nulls: Literal["first", "last"] | None
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Frame:
    """A window frame as words SQLite also reads, with the offsets of its ends."""

    unit: str
    start: tuple[str, Expression | None]
    end: tuple[str, Expression | None] | None
    exclude: str | None


@dataclass(frozen=True, slots=True)
class Window:
    base: Name | None
    partition: tuple[Expression, ...]
    order: tuple[OrderKey, ...]
    frame: Frame | None
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    arguments: tuple[Expression, ...]
    pos: int = field(compare=False)
    star: bool = False
    distinct: bool = False
    order: tuple[OrderKey, ...] = ()
    within: tuple[OrderKey, ...] = ()
    filter: Expression | None = None
    window: Window | None = None


@dataclass(frozen=True, slots=True)
class Cast:
    operand: Expression
    to: TypeName
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Case:
    subject: Expression | None
    whens: tuple[tuple[Expression, Expression], ...]
    default: Expression | None
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Exists:
    query: Query
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Scalar:
    """A subquery that stands for one value."""

    query: Query
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Tuple_:
    items: tuple[Expression, ...]
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Array:
    items: tuple[Expression, ...]
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class AtZone:
    operand: Expression
    zone: Expression
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Default:
    pos: int = field(compare=False)


Expression = (
    Literal_ | Parameter | ColumnRef | Star | Unary | Binary | Is | DistinctFrom | In | Between | Like | Quantified
    | Call | Cast | Case | Exists | Scalar | Tuple_ | Array | AtZone | Default
)  # fmt: skip


# -- queries -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of a select list or RETURNING."""

    expression: Expression
    alias: Name | None


@dataclass(frozen=True, slots=True)
class TableRef:
    name: Name
    alias: Name | None
    columns: tuple[Name, ...]
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Derived:
    query: Query
    alias: Name | None
    columns: tuple[Name, ...]
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class TableCall:
    call: Call
    alias: Name | None
    columns: tuple[Name, ...]
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Join:
    kind: Literal["comma", "cross", "inner", "left", "right", "full"]
    left: Source
    right: Source
    on: Expression | None
    using: tuple[Name, ...]
    pos: int = field(compare=False)


Source = TableRef | Derived | TableCall | Join


@dataclass(frozen=True, slots=True)
class Select:
    items: tuple[Item, ...]
    distinct: bool
    distinct_on: tuple[Expression, ...]
    source: Source | None
    where: Expression | None
    group: tuple[Expression, ...]
    having: Expression | None
    windows: tuple[tuple[Name, Window], ...]
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Values:
    rows: tuple[tuple[Expression, ...], ...]
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class SetOperation:
    operator: Literal["union", "intersect", "except"]
    all: bool
    left: Body
    right: Body
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class CTE:
    name: Name
    columns: tuple[Name, ...]
    hint: str
    query: Query
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Query:
    ctes: tuple[CTE, ...]
    recursive: bool
    body: Body
    order: tuple[OrderKey, ...]
    limit: Expression | None
    offset: Expression | None
    pos: int = field(compare=False)


Body = Select | Values | SetOperation | Query


# -- other statements ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Assignment:
    columns: tuple[Name, ...]
    value: Expression
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class OnConflict:
    columns: tuple[Name, ...]
    target_where: Expression | None
    assignments: tuple[Assignment, ...] | None
    where: Expression | None
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Insert:
    ctes: tuple[CTE, ...]
    recursive: bool
    table: TableRef
    columns: tuple[Name, ...]
    source: Query | None
    conflict: OnConflict | None
    returning: tuple[Item, ...]
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Update:
    ctes: tuple[CTE, ...]
    recursive: bool
    table: TableRef
    assignments: tuple[Assignment, ...]
    source: Source | None
    where: Expression | None
    returning: tuple[Item, ...]
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Delete:
    ctes: tuple[CTE, ...]
    recursive: bool
    table: TableRef
    using: Source | None
    where: Expression | None
    returning: tuple[Item, ...]
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Reference:
    """REFERENCES table (columns) with its actions as SQL words."""

    table: Name
    columns: tuple[Name, ...]
    actions: str
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class ColumnDefinition:
    name: Name
    type: TypeName
    pos: int = field(compare=False)
    not_null: bool = False
    primary_key: bool = False
    unique: bool = False
    identity: bool = False
    default: Expression | None = None
    generated: Expression | None = None
    checks: tuple[tuple[Name | None, Expression], ...] = ()
    reference: Reference | None = None


@dataclass(frozen=True, slots=True)
class TableConstraint:
    kind: Literal["primary", "unique", "check", "foreign"]
    name: Name | None
    columns: tuple[Name, ...]
    check: Expression | None
    reference: Reference | None
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class CreateTable:
    name: Name
    missing_ok: bool
    columns: tuple[ColumnDefinition, ...]
    constraints: tuple[TableConstraint, ...]
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class CreateIndex:
    name: Name | None
    table: Name
    unique: bool
    missing_ok: bool
    keys: tuple[OrderKey, ...]
    where: Expression | None
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class CreateVectorIndex:
    name: Name | None
    table: Name
    missing_ok: bool
    column: Name
    metric: Literal["cosine", "l2", "inner"]
    lists: int | None
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Drop:
    what: Literal["table", "index"]
    name: Name
    missing_ok: bool
    pos: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class AlterTable:
    table: Name
    action: Literal["add", "drop", "rename"]
    column: ColumnDefinition | None
    old: Name | None
    new: Name | None
    missing_ok: bool
    pos: int = field(compare=False)


Statement = Query | Insert | Update | Delete | CreateTable | CreateIndex | CreateVectorIndex | Drop | AlterTable


def children(node: object) -> Iterator[object]:
    """The nodes directly below this one."""
    if isinstance(node, tuple):
        yield from (part for part in node if isinstance(part, tuple) or hasattr(part, "__dataclass_fields__"))
    elif hasattr(node, "__dataclass_fields__"):
        for part in fields(node):  # type: ignore[arg-type]
            value = getattr(node, part.name)
            if isinstance(value, tuple) or hasattr(value, "__dataclass_fields__"):
                yield value


def walk(node: object) -> Iterator[object]:
    """The node and everything below it."""
    waiting = [node]
    while waiting:
        found = waiting.pop()
        yield found
        waiting.extend(children(found))
