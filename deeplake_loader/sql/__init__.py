"""PostgreSQL's language on the embedded catalog: `compile_statement` makes a `Plan` of a statement and a schema.

`plan` and `shims` are all that running a compiled statement needs; the compiler is imported only to compile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deeplake_loader.sql.plan import Plan
    from deeplake_loader.types import Table


def compile_statement(sql: str, schema: Mapping[str, Table], *, physical: Mapping[str, str] | None = None) -> Plan:
    """The plan of one statement against these tables; see `deeplake_loader.sql.compile`."""
    from deeplake_loader.sql.compile import compile_statement as compile_

    return compile_(sql, schema, physical=physical)


def compile_stream(sql: str, schema: Mapping[str, Table]) -> Plan:
    """The plan of a SELECT with the rows' primary keys as hidden last columns, where it has such keys."""
    from deeplake_loader.sql.compile import stream_keys

    return stream_keys(sql, schema)
