"""What an export tells of its columns, so that they come in again as they were: names, types, the primary key.

Rows in JSON have texts where the table had times, bytes or exact numbers, so the types are written beside them: in a
tar as the comment of a pax global header, which every reader passes over (POSIX.1-2017 pax), in Parquet in the schema's
metadata, in a folder in a hidden file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deeplake_loader.errors import CorruptionError, InputError
from deeplake_loader.types import ColumnType

PREFIX = "deeplake_loader "
"""How the comment of a tar begins."""
PARQUET = b"deeplake_loader"
"""The key in the metadata of a Parquet file's schema."""
FOLDER = ".deeplake_loader.json"
"""The file in an exported folder."""
MAX_BYTES = 1 << 19


@dataclass(frozen=True, slots=True)
class Told:
    """The columns in their order.

    Fields: ``names``, {field: column}, where the field ``img.*`` stands for ``img.png`` and all other extensions;
    ``types``, {field: type} of those whose type is known; ``primary_key``, "" where it is not known.

    >>> told = Told({"img.*": "img", "json.made": "made"}, {"json.made": ColumnType("DATE")})
    >>> told.covers("img.png"), told.covers("img"), told.covers("seg.png")
    (True, True, False)
    >>> Told.parse(told.text(), "a file") == told
    True
    """

    names: Mapping[str, str] = field(default_factory=dict)
    types: Mapping[str, ColumnType] = field(default_factory=dict)
    primary_key: str = ""

    def __bool__(self) -> bool:
        return bool(self.names)

    def covers(self, name: str) -> bool:
        """Whether a field found is one of these."""
        return any(each in self.names for each in (name, f"{name}.*", f"{name.rpartition('.')[0]}.*"))

    def text(self) -> str:
        """As it is written, one line of JSON."""
        columns = [
            {"name": name, "field": each} | ({"type": str(self.types[each])} if each in self.types else {})
            for each, name in self.names.items()
        ]
        return json.dumps({"format": 1, "columns": columns, "primary_key": self.primary_key})

    @classmethod
    def parse(cls, text: str | bytes, where: str) -> Told:
        """What ``text`` wrote.

        Raises:
            CorruptionError: it is something else; names ``where``.
        """
        try:
            found: Any = json.loads(text)
            if found["format"] != 1:
                raise ValueError(f"format {found['format']!r:.50}, expected 1")
            columns = [(str(c["field"]), str(c["name"]), c.get("type")) for c in found["columns"]]
            types = {each: ColumnType.parse(kind) for each, _, kind in columns if kind is not None}
            return cls({each: name for each, name, _ in columns}, types, str(found["primary_key"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InputError) as error:
            raise CorruptionError(
                f"{where}: what an export wrote of its columns cannot be read ({error!s:.200}); export again"
            ) from error
