"""Which rows that a merge brings would break a constraint of the target: unique values and foreign keys.

What the database would check is checked here first, over the merged keys alone and against the rows as they will be, so
that every offence is named by the row that brings it. It is also the only check where the database can have none: on a
branch, whose rows lie partly on main, and on SQLite, where replay runs with foreign keys off, because their actions
would reach beyond the merge (a parent deleted on one side must not take the children that the other side added).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deeplake_loader.merging.comparison import PRESENT
from deeplake_loader.merging.constraints import ForeignKey, UniqueIndex, unique_indexes
from deeplake_loader.types import quote_identifier

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.merging.part import Part
    from deeplake_loader.merging.target import Target


def unique_clashes(catalog: Catalog, part: Part, target: Target) -> Iterator[Any]:
    """Keys of incoming rows whose values, in some unique index, another row of the target holds and keeps."""
    images = part.images
    columns = images.shape.columns
    for index in unique_indexes(catalog, images.shape):
        rows, begin = f"{target.rows(part.name)} x", ""
        if catalog.dialect == "postgres":
            rows, begin = "x", f"WITH x AS MATERIALIZED ({_rivals(part, index, rows)}) "
        yield from catalog.fetchall(
            f"{begin}SELECT {images.keys_of('i')} FROM {part.coming('i')} AND {index.covers('i', columns)} AND EXISTS "
            f"(SELECT 1 FROM {rows} WHERE {index.equal('i', columns)} AND NOT {part.is_taken('x')})"
        )


def _rivals(part: Part, index: UniqueIndex, rows: str) -> str:
    """The target's rows that hold an incoming value in the index's first column: no join reaches into the arms of a
    branch's view, but an array of values does."""
    name = index.columns[0]
    if name is None or index.nulls_equal:
        return f"SELECT * FROM {rows}"
    column = quote_identifier(name)
    values = f"SELECT i.{column} FROM {part.coming('i')}"
    return f"SELECT * FROM {rows} WHERE {part.images.dialect.among([f'x.{column}'], values)}"


def orphans(catalog: Catalog, parts: Mapping[str, Part], foreign: ForeignKey, target: Target) -> list[Any]:
    """Keys of incoming rows that reference a row which the target will not have."""
    part = parts[foreign.table]
    own = [f"i.{quote_identifier(c)}" for c in foreign.columns]
    given = " AND ".join(f"{c} IS NOT NULL" for c in own)
    has_parent = _will_have(parts, foreign, target, own)
    query = f"SELECT {part.images.keys_of('i')} FROM {part.coming('i')} AND {given} AND NOT {has_parent}"
    return catalog.fetchall(query)


def widowed(catalog: Catalog, parts: Mapping[str, Part], foreign: ForeignKey, target: Target) -> list[Any]:
    """Keys of rows whose removal or change leaves children in the target without their parent."""
    part = parts[foreign.parent]
    images = part.images
    referenced = [quote_identifier(c) for c in foreign.referenced]
    kept = " AND ".join(f"i.{c} = o.{c}" for c in referenced)
    gone = images.create()
    still = _will_have(parts, foreign, target, [f"o.{c}" for c in referenced])
    catalog.execute(
        f"INSERT INTO {gone} ({images.key}) SELECT {images.keys_of('o')} FROM {part.taken('i')} "
        f"AND o._dl_state = {PRESENT} AND (i._dl_state <> {PRESENT} OR ({kept}) IS NOT TRUE) AND NOT {still}"
    )
    if catalog.fetchone(f"SELECT 1 FROM {gone} LIMIT 1") is None:
        return []
    lost = f"SELECT {', '.join(referenced)} FROM {part.ours} WHERE {images.contains('', gone)}"
    held = " UNION ALL ".join(_children(parts, foreign, target, lost))
    return catalog.fetchall(
        f"SELECT {images.key} FROM {part.ours} WHERE {images.contains('', gone)} AND {_row(referenced)} IN ({held})"
    )


def _will_have(parts: Mapping[str, Part], foreign: ForeignKey, target: Target, values: Sequence[str]) -> str:
    """A condition: after the merge some row of the parent table holds these values."""
    pairs = zip(foreign.referenced, values, strict=True)
    equal = " AND ".join(f"x.{quote_identifier(r)} = {value}" for r, value in pairs)
    stays = f"EXISTS (SELECT 1 FROM {target.rows(foreign.parent)} x WHERE {equal}"
    part = parts.get(foreign.parent)
    if part is None:
        return f"{stays})"
    return f"({stays} AND NOT {part.is_taken('x')}) OR EXISTS (SELECT 1 FROM {part.coming('x')} AND {equal}))"


def _children(parts: Mapping[str, Part], foreign: ForeignKey, target: Target, lost: str) -> Iterator[str]:
    """SELECTs of the values by which rows that the target will have reference one of the ``lost``."""
    part = parts.get(foreign.table)
    columns = [f"x.{quote_identifier(c)}" for c in foreign.columns]
    select, among = f"SELECT {', '.join(columns)} FROM", f"{_row(columns)} IN ({lost})"
    kept = "" if part is None else f" AND NOT {part.is_taken('x')}"
    yield f"{select} {target.rows(foreign.table)} x WHERE {among}{kept}"
    if part is not None:
        yield f"{select} {part.coming('x')} AND {among}"


def _row(columns: Sequence[str]) -> str:
    return columns[0] if len(columns) == 1 else f"({', '.join(columns)})"
