"""Where rows go: the store, the table, and what is done with what cannot go in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from deeplake_loader.errors import InputError
from deeplake_loader.ingest.report import Skipped, Tally

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.ingest.inference import Proposal
    from deeplake_loader.ingest.sources import Source
    from deeplake_loader.ingest.told import Told
    from deeplake_loader.rows import RowSet
    from deeplake_loader.types import ColumnType, Table

OnError = Literal["raise", "skip"]
Known = Callable[["Source"], bool]
"""Whether a source was taken in before, or is to be left out."""

Batch = tuple[Sequence[str], Mapping[str, Sequence[Any]]]
"""A name for each row (a sample's key, a line's number), for messages; and the rows in columns."""


class Store(Protocol):
    """What ingesting needs of a Database."""

    _catalog: Catalog

    def execute(self, sql: str, params: Any = None) -> RowSet: ...
    def insert(self, table: str, rows: object) -> int: ...
    def tables(self) -> Mapping[str, Table]: ...
    def transaction(self, message: str | None = None) -> AbstractContextManager[None]: ...


class Reading(Protocol):
    """One source being taken in. ``has_keys``: samples have keys; ``plain_names``: column names are made of fields."""

    source: Source
    has_keys: bool
    plain_names: bool

    def observe(self) -> Iterator[Mapping[str, ColumnType | None]]:
        """{field: type} of some samples."""

    def prepare(self, proposal: Proposal) -> None:
        """What can be read before the transaction begins; on any thread."""

    def batches(self, target: Target) -> Iterator[Batch]:
        """The rows, some at a time, in the caller's transaction."""

    def split(self, known: Known) -> Iterator[Reading]:
        """What is new of it, each part to be one commit."""

    def entries(self, added: Mapping[str, int]) -> Iterator[tuple[str, str, int]]:
        """(url, stamp, rows) that the ledger notes, given the rows that were added by their names."""


class Whole:
    """A source that is one commit. ``told``: what an export wrote of its columns, known once samples were observed."""

    source: Source
    told: Told | None = None

    def split(self: Any, known: Known) -> Iterator[Reading]:
        """Itself, where it is new."""
        if not known(self.source):
            yield self

    def entries(self, added: Mapping[str, int]) -> Iterator[tuple[str, str, int]]:
        """Itself."""
        yield self.source.url, self.source.stamp, sum(added.values())


@dataclass(slots=True)
class Target:
    """One source on its way into a table."""

    db: Any
    table: str
    source: Source
    on_error: OnError
    tally: Tally

    def skip(self, member: str, reason: str, *, cause: BaseException | None = None) -> None:
        """Lists what is left out, or refuses it.

        Raises:
            InputError: with ``on_error="raise"``.
        """
        item = Skipped(self.source.name, member, reason)
        if self.on_error == "raise":
            raise InputError(f"{item}; on_error='skip' leaves it out and lists it") from cause
        self.tally.skipped.append(item)

    def unused(self, name: str, count: int = 1) -> None:
        """Counts samples with a field that no column takes."""
        self.tally.unused[name] = self.tally.unused.get(name, 0) + count


Make = Callable[["Source"], Reading]
