"""A Hugging Face dataset as `save_to_disk` writes it: Arrow files, named in state.json, and the features' names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deeplake_loader.errors import CorruptionError, InputError
from deeplake_loader.ingest.members import read_json
from deeplake_loader.ingest.sources import Source
from deeplake_loader.ingest.tables import TableReading
from deeplake_loader.store import file_errors

if TYPE_CHECKING:
    from deeplake_loader.ingest.target import Known, Reading
    from deeplake_loader.types import ColumnType


class DatasetReading(TableReading):
    """The folder; its Arrow files are read one a commit."""

    def files(self) -> list[Source]:
        """The Arrow files in the dataset's order.

        Raises:
            CorruptionError: state.json names a file that is not there, or one outside the folder.
        """
        folder = str(self.source.path)
        names = _named(folder)
        if names is None:
            names = sorted(name for name in os.listdir(folder) if name.endswith(".arrow"))
        found = []
        for name in names:
            path = os.path.join(folder, name)
            if os.path.basename(name) != name or not os.path.isfile(path):
                raise CorruptionError(f"{self.source.name}: its state.json names {name!r}, which is not there")
            facts = os.stat(path)
            stamp = f"{facts.st_size}:{facts.st_mtime_ns}"
            found.append(
                replace(self.source, name=path, url=f"{self.source.url}/{name}", path=path, form="table",
                        nbytes=facts.st_size, stamp=stamp)
            )  # fmt: skip
        if not found:
            raise InputError(f"{self.source.name} holds no Arrow files")
        return found

    def observe(self) -> Iterator[Mapping[str, ColumnType | None]]:
        for file in self.files():
            yield from TableReading(file).observe()

    def split(self, known: Known) -> Iterator[Reading]:
        for file in self.files():
            if not known(file):
                yield TableReading(file)


def _named(folder: str) -> list[str] | None:
    path = os.path.join(folder, "state.json")
    if not os.path.isfile(path):
        return None
    with file_errors("read", path), open(path, "rb") as file:
        text = file.read(1 << 20)
    try:
        listed: Any = read_json(text.decode())
        return [str(each["filename"]) for each in listed["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptionError(f"{path} is not what save_to_disk writes: {error}") from error
