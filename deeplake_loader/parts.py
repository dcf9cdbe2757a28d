"""What a Database is put together from: the seam between its verbs and the two kinds of catalog.

`embedded.assemble` gives the parts over a SQLite file, `postgres.assembly.assemble` those over a PostgreSQL database.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from deeplake_loader.batches import Batch
    from deeplake_loader.columnar import ColumnarRows
    from deeplake_loader.indexes import Indexes
    from deeplake_loader.inspection import Description
    from deeplake_loader.overlays import BranchWriter
    from deeplake_loader.references import References
    from deeplake_loader.rows import RowSet
    from deeplake_loader.search.copies import Copies
    from deeplake_loader.search.engine import Searcher
    from deeplake_loader.search.statements import Statements
    from deeplake_loader.shards import Shards
    from deeplake_loader.sql.plan import Plan
    from deeplake_loader.types import Table
    from deeplake_loader.vectors import Vectors
    from deeplake_loader.views import Views
    from deeplake_loader.writing import Validate, Writer


class Runner(Protocol):
    """Plans and runs the statements of one handle, on main or on the branch that it shows."""

    def plan(self, sql: str) -> Plan:
        """What a statement is."""
        ...

    def stream_plan(self, sql: str) -> Plan:
        """The plan of a SELECT with the keys of its rows as hidden columns."""
        ...

    def execute(self, sql: str, params: object) -> RowSet:
        """One statement of any kind, in a snapshot or a transaction of its own unless one is open."""
        ...

    def executemany(self, sql: str, rows: Iterable[Any]) -> int:
        """The number of rows that one change made for every row of parameters, all or nothing."""
        ...

    def select(self, plan: Plan, params: object, sql: str) -> RowSet:
        """A SELECT's rows, within an open snapshot."""
        ...

    def columnar(self, plan: Plan, params: object, sql: str) -> ColumnarRows:
        """A SELECT's rows column by column, within an open snapshot."""
        ...

    def insert_batch(self, table: Table, batch: Batch, first_row: int, validate: Validate) -> None:
        """New rows of one table, given by column, within an open transaction."""
        ...

    def typed_errors(self) -> AbstractContextManager[None]:
        """Gives errors of the block that the database reports without their cause the cause."""
        ...

    def describe(self, table: Table) -> Description:
        """What a table is made of beside its columns, within an open snapshot."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one Database, each made for its catalog."""

    shards: Shards
    vectors: Vectors
    indexes: Indexes
    views: Views
    overlays: BranchWriter
    references: References
    writer: Writer
    copies: Copies
    searcher: Searcher
    statements: Statements
    runner: Runner
