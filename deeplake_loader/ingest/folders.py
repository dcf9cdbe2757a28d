"""Folders of images, videos and sounds: a row per file, with its label, its caption and what a table beside it says.

As torchvision's ImageFolder and Hugging Face's imagefolder have it: the first folder of a path is the label; a
``metadata.csv`` (or .jsonl, .parquet) whose ``file_name`` is relative to it gives more columns, and so does webui's
``log.csv``; ``a.txt`` beside ``a.png`` is a caption; settings in a PNG's text chunks are columns.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplake_loader.adopted import file_url
from deeplake_loader.errors import CorruptionError
from deeplake_loader.ingest.generations import settings_of
from deeplake_loader.ingest.inference import kind_of
from deeplake_loader.ingest.members import media_type
from deeplake_loader.ingest.sources import Source, files_below, is_text
from deeplake_loader.ingest.tables import TableReading
from deeplake_loader.store import file_errors
from deeplake_loader.types import ColumnType

if TYPE_CHECKING:
    from deeplake_loader.ingest.inference import Proposal
    from deeplake_loader.ingest.target import Batch, Known, Reading, Target

_GROUP = 1_000  # files of one commit
_ROWS = 250
_SEEN = 200
_TABLES = {"metadata.csv": "file_name", "metadata.jsonl": "file_name", "metadata.parquet": "file_name",
           "log.csv": "filename"}  # fmt: skip
_MAX_CAPTION = 1 << 20


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder's media files by relative path.

    Fields: ``facts``, what the tables in it say of a file; ``lost``, files that only a table names; ``others``, files
    that are neither media nor belong to one, and tables that name no file; ``labelled``, whether the first folder of a
    path is its label; ``unnamed``, files whose names are no UTF-8, as they can be shown.
    """

    path: str
    files: tuple[str, ...]
    facts: Mapping[str, Mapping[str, Any]]
    lost: tuple[str, ...]
    others: tuple[str, ...]
    labelled: bool
    unnamed: tuple[str, ...] = ()


def look(source: Source) -> Folder:
    """What a folder holds; a single file is a folder of one."""
    path = str(source.path)
    if os.path.isfile(path):
        return Folder(os.path.dirname(path), (os.path.basename(path),), {}, (), (), labelled=False)
    found = list(files_below(path))
    every = [name for name in found if is_text(name)]
    unnamed = tuple(os.fsencode(name).decode("utf-8", "backslashreplace") for name in found if not is_text(name))
    files = tuple(name for name in every if media_type(name))
    facts: dict[str, Mapping[str, Any]] = {}
    tables = set()
    for name in every:
        column = _TABLES.get(os.path.basename(name).lower())
        if column is not None and (told := _facts(source, path, name, column)):
            facts |= told
            tables.add(name)
    lost = tuple(sorted(facts.keys() - set(files)))
    labelled = all("/" in name for name in files) and not facts
    stems = {name.rpartition(".")[0] for name in files}
    others = tuple(
        name for name in every if not media_type(name) and name not in tables
        and not (name.endswith(".txt") and name.rpartition(".")[0] in stems)
    )  # fmt: skip
    return Folder(path, files, facts, lost, others, labelled, unnamed)


def _facts(source: Source, root: str, name: str, column: str) -> dict[str, dict[str, Any]]:
    """{file: its row} of a table in the folder."""
    path = os.path.join(root, name)
    table = TableReading(replace(source, name=path, path=path, form="table", nbytes=os.path.getsize(path)))
    folder = os.path.dirname(name)
    found = {}
    for row in table.rows():
        if isinstance(row.get(column), str):
            file = os.path.normpath(os.path.join(folder, row[column])).replace(os.sep, "/")
            found[file] = {key: value for key, value in row.items() if key != column and value is not None}
    return found


def together(sources: Sequence[Source]) -> Folder:
    """Single files of one folder as one, so that they are written in few commits."""
    path = os.path.dirname(str(sources[0].path))
    return Folder(path, tuple(os.path.basename(str(s.path)) for s in sources), {}, (), (), labelled=False)


class FolderReading:
    """A folder, or some of its files."""

    has_keys, plain_names = True, True

    def __init__(self, source: Source, folder: Folder | None = None) -> None:
        self.source = source
        self._folder = folder
        self._names: dict[str, str] = {}
        self._kinds: dict[str, ColumnType] = {}

    @property
    def folder(self) -> Folder:
        """What it holds, looked at once."""
        if self._folder is None:
            self._folder = look(self.source)
        return self._folder

    def split(self, known: Known) -> Iterator[Reading]:
        """The files that are new, some of them a commit."""
        folder = self.folder
        fresh: list[str] = []
        for name in folder.files:
            if not known(self._source_of(name)):
                fresh.append(name)
        for start in range(0, len(fresh), _GROUP):
            names = tuple(fresh[start : start + _GROUP])
            part = replace(
                folder, files=names, lost=folder.lost if start == 0 else (), others=folder.others if start == 0 else (),
                unnamed=folder.unnamed if start == 0 else (),
            )  # fmt: skip
            nbytes = sum(os.path.getsize(os.path.join(folder.path, name)) for name in names)
            yield FolderReading(replace(self.source, nbytes=nbytes), part)

    def entries(self, added: Mapping[str, int]) -> Iterator[tuple[str, str, int]]:
        """What the ledger notes: every file that became a row."""
        for name in self.folder.files:
            if name in added:
                found = self._source_of(name)
                yield found.url, found.stamp, added[name]

    def _source_of(self, name: str) -> Source:
        path = os.path.join(self.folder.path, name)
        with file_errors("read", path):
            facts = os.stat(path)
        stamp = f"{facts.st_size}:{facts.st_mtime_ns}"
        return replace(self.source, name=path, url=file_url(path), path=path, stamp=stamp)

    def observe(self) -> Iterator[Mapping[str, ColumnType | None]]:
        files = self.folder.files
        step = max(1, len(files) // _SEEN)
        for name in files[::step]:
            row = self._row(name)
            kind = media_type(name)
            yield {field: kind if isinstance(value, Path) else kind_of(value) for field, value in row.items() if field}

    def prepare(self, proposal: Proposal) -> None:
        self._names = {choice.field: choice.column.name for choice in proposal.choices}
        self._kinds = {choice.field: choice.column.type for choice in proposal.choices}

    def batches(self, target: Target) -> Iterator[Batch]:
        for name in self.folder.unnamed:
            target.skip(name, "has a name that is no UTF-8 text; rename it")
        for lost in self.folder.lost:
            target.skip(lost, "is named by a table of the folder and is not there")
        for other in self.folder.others:
            target.unused(os.path.splitext(other)[1] or os.path.basename(other))
        files = self.folder.files
        for start in range(0, len(files), _ROWS):
            names = files[start : start + _ROWS]
            rows = [self._row(name) for name in names]
            for row in rows:
                for field in row.keys() - self._names.keys():
                    if field:
                        target.unused(field)
            columns = {
                column: [_fitting(row.get(field), self._kinds[field]) for row in rows]
                for field, column in self._names.items()
            }
            yield names, columns

    def _row(self, name: str) -> dict[str, Any]:
        path = os.path.join(self.folder.path, name)
        kind = media_type(name)
        row: dict[str, Any] = {"": name, "image" if kind is None else kind.name.lower(): Path(path)}
        if self.folder.labelled:
            row["label"] = name.partition("/")[0]
        caption = _caption(path)
        if caption is not None:
            row["caption"] = caption
        if name.lower().endswith(".png"):
            row |= settings_of(path)
        return row | {field: value for field, value in self.folder.facts.get(name, {}).items() if field not in row}


def _caption(path: str) -> str | None:
    beside = path.rpartition(".")[0] + ".txt"
    if not os.path.isfile(beside) or os.path.getsize(beside) > _MAX_CAPTION:
        return None
    with file_errors("read", beside), open(beside, "rb") as file:
        try:
            return file.read().decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise CorruptionError(f"{beside} is no UTF-8 text: {error}") from error


def _fitting(value: Any, kind: ColumnType) -> Any:
    return value if value is None or kind.name != "TEXT" or isinstance(value, str) else str(value)
