"""ORDER BY keys with PostgreSQL's place for NULLs: behind everything ascending, before everything descending.

A similarity score is the exception: rows without one come last either way, unless NULLS FIRST is written.
"""

from __future__ import annotations

from deeplake_loader.sql import tree
from deeplake_loader.sql.values import Context, Value


def order_text(context: Context, key: tree.OrderKey, value: Value) -> str:
    """One key as SQLite text; SQLite takes NULL for the smallest value."""
    if value.type is not None and (not value.type.is_scalar or value.name == "JSON"):
        context.refuse(f"{value.type} values have no order", key.pos)
    sql = f"_dl_span({value.sql})" if value.name == "INTERVAL" else value.sql
    direction = " DESC" if key.descending else ""
    first = nulls_first(key, value)
    if not value.nullable or first is not key.descending:
        return sql + direction
    return f"{sql}{direction} NULLS {'FIRST' if first else 'LAST'}"


def nulls_first(key: tree.OrderKey, value: Value) -> bool:
    if key.nulls is not None:
        return key.nulls == "first"
    return key.descending and not value.score
