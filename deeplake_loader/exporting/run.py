"""The export: one snapshot's rows, written beside the target and put there by one rename: what is there is whole.

An interrupted export leaves a folder whose name ends in ``.part-`` and letters; nothing reads it and it can be removed.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from deeplake_loader import store
from deeplake_loader.adopted import file_url, is_adopted
from deeplake_loader.errors import InputError, StoreError
from deeplake_loader.exporting.chunks import Sheet, chunks, read_sheet
from deeplake_loader.exporting.report import ExportReport
from deeplake_loader.exporting.writers import Blobs, FolderWriter, ParquetWriter, References, TarWriter, Writer
from deeplake_loader.reader import Reader
from deeplake_loader.types import quote_identifier

if TYPE_CHECKING:
    from deeplake_loader.rows import RowSet

Form = Literal["webdataset", "parquet", "folder"]


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked of one export; see `Database.export`."""

    query: str
    params: Sequence[Any] | Mapping[str, Any] | None
    to: str
    form: Form
    shard_bytes: int
    blobs: Blobs


def export(db: Any, request: Request) -> ExportReport:
    """What `Database.export` does."""
    begun = time.monotonic()
    remote = "://" in request.to and not request.to.startswith("file://")
    target = os.path.abspath(os.path.expanduser(request.to.removeprefix("file://")))
    if not remote:
        _check_target(target)
    commit, rows = _query(db, request)
    sheet = read_sheet(db, rows, dots=request.form != "webdataset")
    references = _references(db, sheet, rows) if request.blobs == "reference" else None
    partial = _partial_folder(None if remote else target)
    try:
        names = _write(db, request, sheet, references, partial)
        nbytes = sum(os.path.getsize(os.path.join(f, n)) for f, _, found in os.walk(partial) for n in found)
        if remote:
            _upload(partial, request.to, names)
        else:
            _place(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    seconds = time.monotonic() - begun
    return ExportReport(len(sheet), request.to if remote else target, tuple(names), nbytes, commit, seconds)


def _query(db: Any, request: Request) -> tuple[int, RowSet]:
    """(commit, rows) of the query, or of the whole table of that name."""
    query = request.query
    if query in db.tables():
        query = f"SELECT * FROM {quote_identifier(query)}"
    if db.compiled(query).kind != "select":
        raise InputError("an export needs a SELECT, or the name of a table")
    if db._catalog.in_transaction:
        raise InputError("an export cannot begin inside a transaction, whose rows its readers do not see; commit first")
    with db._catalog.snapshot() as commit:
        return int(commit), db.execute(query, request.params)


def _write(
    db: Any, request: Request, sheet: Sheet, references: Mapping[str, References] | None, folder: str
) -> list[str]:
    writer: Writer
    key = _primary_key(db, request)
    if request.form == "webdataset":
        writer = TarWriter(folder, sheet, request.shard_bytes, key)
    elif request.form == "parquet":
        writer = ParquetWriter(folder, sheet, request.shard_bytes, references, key)
    else:
        writer = FolderWriter(folder, sheet, key)
    reader = Reader(db._catalog.location)
    try:
        if references is not None:  # their bytes stay where they are
            bare = Sheet(sheet.keys, sheet.scalars, sheet.types, sheet.vectors, {})
            for chunk in chunks(bare, reader):
                writer.write(chunk)
        else:
            for chunk in chunks(sheet, reader):
                writer.write(chunk)
        writer.close()
    finally:
        reader.close()
    return writer.files


def _primary_key(db: Any, request: Request) -> str:
    """The column that is the key of the table that is exported; "" of other queries."""
    table = db.tables().get(request.query)
    return table.primary_key[0] if table is not None and len(table.primary_key) == 1 else ""


def _references(db: Any, sheet: Sheet, rows: RowSet) -> dict[str, References]:
    """Where the blobs lie, by absolute urls."""
    found = {}
    for name, places in sheet.blobs.items():
        extents, addresses = places.extents, rows.column(rows.names.index(name))
        if ((extents.offset < 0) & (extents.address != 0)).any():
            raise InputError(
                f"some blobs of {name!r} still rest in the catalog, where no url leads; run optimize(), or export them "
                "with blobs='inline'"
            )
        urls = [path if is_adopted(path) else file_url(path) for path in extents.paths]
        found[name] = References(extents, urls, db._shards.keys(addresses))
    return found


# -- where it goes -----------------------------------------------------------------------------------------------------


def _check_target(target: str) -> None:
    if os.path.lexists(target) and not (os.path.isdir(target) and not os.listdir(target)):
        raise InputError(f"{target} is there already; export into a folder that is new or empty")


def _partial_folder(target: str | None) -> str:
    import tempfile

    if target is None:
        return tempfile.mkdtemp(prefix="deeplake-export-")
    folder = f"{target.rstrip('/')}.part-{os.urandom(4).hex()}"
    with store.file_errors("make the folder", folder):
        os.makedirs(folder)
    return folder


def _place(partial: str, target: str) -> None:
    """Gives the finished folder its name."""
    with store.file_errors("write", target):
        store.sync_folder(partial)
        with suppress(FileNotFoundError):
            os.rmdir(target)
        os.rename(partial, target)
        store.sync_folder(os.path.dirname(target))


def _upload(folder: str, url: str, names: list[str]) -> None:
    """Every file below the folder as an object, those that list the others last."""
    from deeplake_loader.storage.objects import open_folder

    objects = open_folder(url.rstrip("/"))
    if next(iter(objects.list()), None) is not None:
        raise InputError(f"{objects.url} holds objects already; export to a prefix that is empty")
    every = [os.path.relpath(os.path.join(f, n), folder) for f, _, found in os.walk(folder) for n in found]
    done: list[str] = []
    try:
        for name in sorted(every, key=lambda n: (n in names, n)):
            objects.upload(name.replace(os.sep, "/"), os.path.join(folder, name))
            done.append(name.replace(os.sep, "/"))
    except BaseException:
        with suppress(StoreError):
            objects.delete(done)
        raise
