"""The verb: sources found, a table agreed on, each source read ahead on threads and written in one commit of its own.

A source whose commit is there is not read again, so an ingestion that was stopped goes on where it was, and one that is
run twice adds nothing.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

from deeplake_loader.errors import (
    ConstraintError,
    DeeplakeError,
    InputError,
    LockedError,
    NotFoundError,
)
from deeplake_loader.ingest.datasets import DatasetReading
from deeplake_loader.ingest.episodes import EpisodesReading
from deeplake_loader.ingest.folders import FolderReading, together
from deeplake_loader.ingest.inference import Proposal, of_table, propose
from deeplake_loader.ingest.ledger import Ledger
from deeplake_loader.ingest.listed import ListedReading
from deeplake_loader.ingest.report import IngestReport, Tally
from deeplake_loader.ingest.sources import Source, find
from deeplake_loader.ingest.tables import TableReading, TextReading
from deeplake_loader.ingest.target import Make, OnError, Reading, Store, Target, Whole
from deeplake_loader.ingest.tars import FetchedSource, PackedSource, TarSource
from deeplake_loader.ingest.told import Told
from deeplake_loader.ingest.vectors import VectorsReading
from deeplake_loader.progress import progress_bar
from deeplake_loader.types import ColumnType, Table, quote_identifier

if TYPE_CHECKING:
    from os import PathLike

_READINGS: dict[str, Make] = {
    "tar": TarSource, "packed": PackedSource, "fetched": FetchedSource, "table": TableReading, "text": TextReading,
    "vectors": VectorsReading, "media": FolderReading, "dataset": DatasetReading,
    "episodes": EpisodesReading, "listed": ListedReading,
}  # fmt: skip
_OBSERVED = 12  # sources that a schema is inferred from

Columns = Mapping[str, str] | Sequence[str]
Schema = str | Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked of one ingestion; see `Database.ingest`."""

    table: str
    schema: Schema | None
    columns: Columns | None
    on_error: OnError
    workers: int
    progress: bool
    key: str | None


def infer(
    sources: str | PathLike[str] | Iterable[str | PathLike[str]],
    *,
    table: str = "samples",
    columns: Columns | None = None,
    key: str | None = None,
) -> Proposal:
    """The table that `Database.ingest` would make for these sources; ``str()`` of it is the CREATE TABLE statement.

    Up to 12 of the sources, spread over all, are looked into.

    Args:
        sources, columns, key: as for `Database.ingest`.
        table: the name in the statement.

    Raises:
        InputError, NotFoundError: no such sources, or nothing in them that makes a table.

    >>> print(infer("shards-{0000..0099}.tar"))                                     # doctest: +SKIP
    CREATE TABLE "samples" (
      "id" BIGINT PRIMARY KEY,
      "key" TEXT NOT NULL,
      "jpg" IMAGE,
      "caption" TEXT
    );
    """
    return _infer(_readings(find(sources)), table, columns, key, strict=True)


def _readings(sources: Sequence[Source]) -> list[Reading]:
    """What reads them; single media files that follow each other in one folder are read together."""
    found: list[Reading] = []
    for (form, folder), group in groupby(sources, lambda s: (s.form, _folder_of(s))):
        if folder is None:
            found += map(_READINGS[form], group)
        else:
            files = list(group)
            source = replace(files[0], nbytes=sum(file.nbytes for file in files))
            found.append(FolderReading(source, together(files)))
    return found


def _folder_of(source: Source) -> str | None:
    """The folder of a single media file; None of anything else."""
    single = source.form == "media" and source.path is not None and not os.path.isdir(source.path)
    return os.path.dirname(source.path) if single and source.path is not None else None


def ingest(
    db: Store, request: Request, sources: str | PathLike[str] | Iterable[str | PathLike[str]], *, dry_run: bool
) -> IngestReport:
    """What `Database.ingest` does."""
    begun = time.monotonic()
    found = find(sources)
    readings = _readings(found)
    proposal = _agree(db, request, readings)
    tally = Tally(sources=len(found), nbytes=sum(source.nbytes for source in found))
    if not dry_run:
        _Run(db, request, proposal, tally).take(readings)
    return tally.report(proposal, _shown(db, request, proposal), time.monotonic() - begun, dry_run=dry_run)


def _shown(db: Store, request: Request, proposal: Proposal) -> str:
    if isinstance(request.schema, str) and request.table not in db.tables():
        return request.schema
    return str(proposal)


# -- which table -------------------------------------------------------------------------------------------------------


def _infer(
    readings: Sequence[Reading], table: str, columns: Columns | None, key: str | None, *, strict: bool
) -> Proposal:
    step = max(1, len(readings) // _OBSERVED)
    looked = readings if all(isinstance(r, TableReading) for r in readings) else readings[::step][: _OBSERVED + 1]
    samples = list(_observed(looked, strict=strict))
    return propose(
        table, samples, has_keys=any(r.has_keys for r in readings), key=key, columns=columns,
        plain_names=all(r.plain_names for r in readings), told=_told(looked),
    )  # fmt: skip


def _told(readings: Sequence[Reading]) -> Told | None:
    """What all of them tell of their columns; None where they do not agree, or none tells it."""
    found = [reading.told if isinstance(reading, Whole) else None for reading in readings]
    return found[0] if found and all(each == found[0] for each in found) else None


def _observed(readings: Sequence[Reading], *, strict: bool) -> Iterator[Mapping[str, ColumnType | None]]:
    """The samples of the sources that can be read; unless ``strict``, an error only where none can."""
    errors: list[DeeplakeError] = []
    for reading in readings:
        try:
            yield from reading.observe()
        except DeeplakeError as error:
            if strict:
                raise
            errors.append(error)
    if errors and len(errors) == len(readings):
        raise errors[0]


def _agree(db: Store, request: Request, readings: Sequence[Reading]) -> Proposal:
    """What fills which column, of the table that is there or of the one to be made."""
    if not isinstance(request.table, str) or not request.table:
        raise InputError(f"a table is named by a str, got {request.table!r}")
    known = next((t for name, t in db.tables().items() if name.lower() == request.table.lower()), None)
    if known is None and request.schema is None:
        return _infer(readings, request.table, request.columns, request.key, strict=request.on_error == "raise")
    if known is None and isinstance(request.schema, str):
        known = _declared(db, request)
    found = _infer(readings, request.table, None, None, strict=request.on_error == "raise")
    if known is None:
        return _typed(request, found)
    return of_table(known, _fields(known.name, [c.name for c in known.columns], found, request.columns))


def _declared(db: Store, request: Request) -> Table:
    """The table of the CREATE TABLE statement that was given."""
    from deeplake_loader.sql import compile_statement

    plan = compile_statement(str(request.schema), db.tables())
    if plan.kind != "create_table" or plan.definition is None or plan.target != request.table:
        raise InputError(f"schema= is to be CREATE TABLE {quote_identifier(request.table)} (...), or {{column: type}}")
    return plan.definition


def _typed(request: Request, found: Proposal) -> Proposal:
    """The table of the {column: type} that was given."""
    given = {name: ColumnType.parse(kind) for name, kind in dict(request.schema or {}).items()}  # type: ignore[arg-type]
    fields = _fields(request.table, list(given), found, request.columns)
    samples = [{field: given[name] for name, field in fields.items() if field}]
    wanted = {name: field or "__key__" for name, field in fields.items()}
    return propose(request.table, samples, has_keys=True, key=request.key, columns=wanted)


def _fields(table: str, names: Sequence[str], found: Proposal, columns: Columns | None) -> dict[str, str]:
    """{column: field} of a table's columns that a field fills."""
    if isinstance(columns, Mapping):
        unknown = [name for name in columns if name not in names]
        if unknown:
            raise NotFoundError(f"the table {table!r} has no column {unknown[0]!r}; it has {', '.join(names)}")
        return {name: "" if field == "__key__" else field for name, field in columns.items()}
    by_name = {c.column.name.lower(): c.field for c in found.choices}
    by_name |= {field.lower(): field for field in found.fields if field}
    fields = {name: by_name[name.lower()] for name in names if name.lower() in by_name}
    if columns is not None:
        fields = {name: field for name, field in fields.items() if field in columns}
    if not fields:
        raise InputError(
            f"no column of {table!r} ({', '.join(names)}) is named like a field of the sources "
            f"({', '.join(by_name)}); pass columns={{column: field}}"
        )
    return fields


# -- one source after the other ----------------------------------------------------------------------------------------


class _Run:
    def __init__(self, db: Store, request: Request, proposal: Proposal, tally: Tally) -> None:
        self._db, self._request, self._proposal, self._tally = db, request, proposal, tally
        self._ledger = Ledger(db._catalog, proposal.table, db._catalog.branch)
        self._added: dict[str, int] = {}  # rows of the source that is being written, by name

    def take(self, readings: Sequence[Reading]) -> None:
        """Every source, read ahead by the threads and written in order."""
        total = sum(r.source.nbytes for r in readings)
        fresh = chain.from_iterable(reading.split(self._known) for reading in readings)
        with (
            progress_bar(total, self._request.progress, unit="B", description=self._proposal.table) as bar,
            ThreadPoolExecutor(self._request.workers, thread_name_prefix="deeplake-ingest") as pool,
        ):
            ahead: deque[tuple[Reading, Future[None]]] = deque()
            try:
                for reading in chain(fresh, [None]):
                    if reading is not None:
                        ahead.append((reading, pool.submit(reading.prepare, self._proposal)))
                    while ahead and (reading is None or len(ahead) > self._request.workers):
                        first, future = ahead.popleft()
                        self._write(first, future)
                        bar(first.source.nbytes)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _known(self, source: Source) -> bool:
        """Whether the source is not to be read: it was taken in, or has changed since."""
        found = self._ledger.find(source.url)
        if found is None:
            return False
        stamp, added = found
        if stamp != source.stamp:
            if self._request.key is not None:
                return False
            self._target(source).skip(
                "", "has changed since it was taken in; pass key= to add its new rows, or ingest it under another name"
            )
        else:
            self._tally.present += added
        return True

    def _known_now(self, source: Source) -> bool:
        """The same, asked under the catalog's lock: another process may be taking in the same sources."""
        self._ledger.look_again(source.url)
        return self._known(source)

    def _target(self, source: Source) -> Target:
        return Target(self._db, self._proposal.table, source, self._request.on_error, self._tally)

    def _write(self, reading: Reading, future: Future[None]) -> None:
        """One source in one commit; with on_error="skip", a source that cannot be read leaves nothing behind."""
        source, before = reading.source, len(self._tally.skipped)
        added, present = self._tally.added, self._tally.present
        try:
            future.result()
            with self._db.transaction(f"ingest {source.label}"):
                self._db._catalog.line_up(f"ingest into {self._proposal.table}")
                self._make_table()
                for part in reading.split(self._known_now):
                    if part is not reading:
                        part.prepare(self._proposal)
                    self._added = {}
                    for names, columns in part.batches(self._target(source)):
                        self._insert(source, names, dict(columns))
                    self._note(part)
        except LockedError:
            raise
        except DeeplakeError as error:
            self._tally.added, self._tally.present = added, present
            if self._request.on_error == "raise":
                raise
            del self._tally.skipped[before:]
            self._target(source).skip("", str(error))

    def _make_table(self) -> None:
        if self._proposal.table in self._db.tables():
            return
        schema = self._request.schema
        self._db.execute(schema if isinstance(schema, str) else self._proposal.sql())

    def _note(self, reading: Reading) -> None:
        transaction = self._db._catalog.open_transaction
        if transaction is not None:
            for url, stamp, added in reading.entries(self._added):
                self._ledger.note(url, stamp, added, transaction.id)

    def _insert(self, source: Source, names: Sequence[str], columns: dict[str, Sequence[Any]]) -> None:
        chosen = self._fresh(columns)
        self._tally.present += len(names) - len(chosen)
        if len(chosen) < len(names):
            names = [names[i] for i in chosen]
            columns = {name: [values[i] for i in chosen] for name, values in columns.items()}
        self._insert_or_halve(source, names, columns)

    def _fresh(self, columns: Mapping[str, Sequence[Any]]) -> Sequence[int]:
        """The rows whose key neither the table nor an earlier row of the batch has."""
        key = self._request.key
        count = len(next(iter(columns.values())))
        if key is None:
            return range(count)
        values = next(values for name, values in columns.items() if name.lower() == key.lower())
        sql = f"SELECT {quote_identifier(key)} FROM {quote_identifier(self._proposal.table)} WHERE "
        sql += f"{quote_identifier(key)} = ANY(%s)"
        wanted = [v for v in dict.fromkeys(values) if v is not None]
        seen = {row[0] for row in self._db.execute(sql, [wanted])} if wanted else set()
        chosen = []
        for i, value in enumerate(values):
            if value not in seen:
                chosen.append(i)
                seen.add(value)
        return chosen

    def _insert_or_halve(self, source: Source, names: Sequence[str], columns: dict[str, Sequence[Any]]) -> None:
        """Inserts the rows; where one is refused and may be skipped, halves them until it is found."""
        if not names:
            return
        try:
            with self._db.transaction():
                self._db.insert(self._proposal.table, columns)
            self._tally.added += len(names)
            self._added.update(dict.fromkeys(names, 1))
        except (InputError, ConstraintError, NotFoundError) as error:
            if self._request.on_error == "raise":
                self._target(source).skip(f"rows from {names[0]!r} on" if len(names) > 1 else names[0], str(error),
                                          cause=error)  # fmt: skip
            if len(names) == 1:
                self._target(source).skip(names[0], str(error), cause=error)
                return
            half = len(names) // 2
            for part in (slice(0, half), slice(half, None)):
                self._insert_or_halve(source, names[part], {n: values[part] for n, values in columns.items()})
