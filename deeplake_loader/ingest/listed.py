"""Folders whose tables name the files of their rows: a row per line, not a row per file.

As Hugging Face's folders have it: in ``metadata.jsonl`` (or .csv, .parquet) ``<column>_file_name`` is the file of that
column, relative to the table. An export writes such a folder, and beside it what its columns are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplake_loader.adopted import file_url
from deeplake_loader.codecs.info import MAX_BLOB_BYTES
from deeplake_loader.errors import DeeplakeError, InputError
from deeplake_loader.ingest import members
from deeplake_loader.ingest.sources import Source, files_below, is_text
from deeplake_loader.ingest.tables import TableReading
from deeplake_loader.ingest.told import FOLDER, MAX_BYTES, Told
from deeplake_loader.store import file_errors
from deeplake_loader.types import ColumnType

if TYPE_CHECKING:
    from deeplake_loader.ingest.target import Batch, Known, Reading, Target

_TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_ENDING = "_file_name"
_SEEN = 200  # rows that are looked at to know which columns name files
_LOOKED = 64  # files of a column that its type is known by
_ROWS = 250
_MAX_VECTOR = 1 << 20  # bytes of a file with 65,536 numbers of 8 bytes, and its header


def tables_of(source: Source) -> list[TableReading]:
    """The tables in a folder that name their rows' files; none where a file is a row.

    Raises:
        InputError, CorruptionError: a table, or what an export wrote beside it, that cannot be read.
    """
    folder = str(source.path)
    told = _beside(folder)
    found: list[TableReading] = []
    for name in ["metadata.jsonl"] if told else files_below(folder):
        if os.path.basename(name).lower() not in _TABLES:
            continue
        path = os.path.join(folder, name)
        with file_errors("read", path):
            facts = os.stat(path)
        table = replace(
            source, name=path, url=file_url(path), path=path, form="table", nbytes=facts.st_size,
            stamp=f"{facts.st_size}:{facts.st_mtime_ns}",
        )  # fmt: skip
        files = _files_told(told) if told else _files_named(table)
        if told or files.keys() - {"file_name"}:
            found.append(_ListedTable(table, files, told))
    return found


def _beside(folder: str) -> Told | None:
    """What an export wrote of its columns."""
    path = os.path.join(folder, FOLDER)
    if not os.path.isfile(path):
        return None
    with file_errors("read", path), open(path, "rb") as file:
        return Told.parse(file.read(MAX_BYTES), path)


def _files_told(told: Told) -> dict[str, str]:
    return {field: told.names[field] for field, kind in told.types.items() if not kind.is_scalar}


def _files_named(table: Source) -> dict[str, str]:
    """{field: column} of the fields that name files which are there."""
    folder, found = os.path.dirname(str(table.path)), dict[str, str]()
    for row in islice(TableReading(table).rows(), _SEEN):
        for field, value in row.items():
            names = field == "file_name" or field[1:].endswith(_ENDING)
            if names and field not in found and isinstance(value, str) and os.path.isfile(os.path.join(folder, value)):
                found[field] = _column(field, value)
    return found


def _column(field: str, value: str) -> str:
    if field != "file_name":
        return field.removesuffix(_ENDING)
    kind = members.media_type(value)
    return "file" if kind is None else kind.name.lower()


class ListedReading(TableReading):
    """The folder; its tables are read one a commit."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._tables: list[TableReading] | None = None

    def tables(self) -> list[TableReading]:
        """Its tables, looked for once."""
        if self._tables is None:
            self._tables = tables_of(self.source)
        return self._tables

    def observe(self) -> Iterator[Mapping[str, ColumnType | None]]:
        for table in self.tables():
            yield from table.observe()
            self.told = table.told if table is self.tables()[0] or table.told == self.told else None

    def split(self, known: Known) -> Iterator[Reading]:
        for table in self.tables():
            if not known(table.source):
                yield table


class _ListedTable(TableReading):
    """One table, the files of whose rows lie in its folder. ``files``: {field: column} of what names them."""

    def __init__(self, source: Source, files: Mapping[str, str], told: Told | None) -> None:
        super().__init__(source)
        self._files = files
        self._told = told or Told(files)
        self._folder = os.path.realpath(os.path.dirname(str(source.path)))
        self._seen: set[str] = set()

    def observe(self) -> Iterator[Mapping[str, ColumnType | None]]:
        for sample in super().observe():
            yield {field: kind for field, kind in sample.items() if field not in self._files}
        self.told = self._told
        if not self._told.types:
            for row in islice(self.rows(), _LOOKED):
                yield {field: self._looked_at(row.get(field)) for field in self._files}

    def _looked_at(self, name: Any) -> ColumnType | None:
        """The type of a file's content; None where there is no such file."""
        if not isinstance(name, str):
            return None
        try:
            path = self._path(name)
        except InputError:
            return None  # told when the row is read
        if name.endswith(".npy") and os.path.getsize(path) <= MAX_BLOB_BYTES:
            with suppress(ValueError):
                return members.array_type(members.vector(path.read_bytes()))
        return members.media_type(name) or ColumnType("BLOB")

    def _path(self, name: str) -> Path:
        """The file of that name.

        Raises:
            InputError: it is not there, or not in the folder.
        """
        if "\0" in name or not is_text(name):
            raise InputError(f"names the file {name!r:.200}, which no file is called")
        path = os.path.realpath(os.path.join(self._folder, name))
        if os.path.isabs(name) or os.path.commonpath((self._folder, path)) != self._folder:
            raise InputError(f"names the file {name!r:.200}, which is not in the table's folder")
        if not os.path.isfile(path):
            raise InputError(f"names the file {name!r:.200}, which is not there")
        self._seen.add(os.path.relpath(os.path.join(self._folder, os.path.normpath(name)), self._folder))
        return Path(path)

    def batches(self, target: Target) -> Iterator[Batch]:
        for names, columns in super().batches(target):
            for start in range(0, len(names), _ROWS):
                part = slice(start, start + _ROWS)
                yield self._filled(names[part], {n: values[part] for n, values in columns.items()}, target)
        tables = {os.path.basename(str(self.source.path)), FOLDER}
        for name in files_below(self._folder):
            if os.path.basename(name) not in tables and name not in self._seen:
                target.unused(os.path.splitext(name)[1] or name)

    def _filled(self, names: Sequence[str], columns: Mapping[str, Sequence[Any]], target: Target) -> Batch:
        """The rows with their files instead of their files' names; those that have no such files are told."""
        filled = {name: list(values) for name, values in columns.items()}
        bad: set[int] = set()
        for field, kind in self._wanted.items():
            values = filled.get(self._names[field], []) if field in self._files and not kind.is_scalar else []
            for i, value in enumerate(values):
                try:
                    values[i] = None if value is None else self._content(value, kind)
                except (DeeplakeError, ValueError) as error:
                    bad.add(i)
                    target.skip(names[i], str(error), cause=error)
        kept = [i for i in range(len(names)) if i not in bad]
        return [names[i] for i in kept], {n: [values[i] for i in kept] for n, values in filled.items()}

    def _content(self, name: Any, kind: ColumnType) -> Any:
        if not isinstance(name, str):
            raise InputError(f"has {name!r:.100} where a file's name is expected")
        path = self._path(name)
        if not kind.is_vector:
            return path
        if path.stat().st_size > _MAX_VECTOR:
            raise InputError(f"names the file {name!r:.200}, which is too large for a vector")
        return members.vector(path.read_bytes())
