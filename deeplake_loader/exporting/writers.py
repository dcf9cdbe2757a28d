"""The three forms of an export: WebDataset tars, Parquet files, a folder. Each writes into a folder that is empty."""

from __future__ import annotations

import base64
import datetime as dt
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from deeplake_loader import store
from deeplake_loader.codecs.tensors import encode_tensor
from deeplake_loader.errors import InputError
from deeplake_loader.ingest.told import FOLDER, PARQUET, PREFIX, Told
from deeplake_loader.tar import BLOCK, END, Headers, global_comment, padded, padding
from deeplake_loader.types import ColumnType

if TYPE_CHECKING:
    import pyarrow as pa

    from deeplake_loader.exporting.chunks import Chunk, Sheet
    from deeplake_loader.extents import Extents

Blobs = Literal["inline", "reference"]
METADATA = "metadata.jsonl"
_OWN_MEMBERS = frozenset(("txt", "text", "transcript", "cls", "cls2", "class", "xml", "html", "csv", "tsv"))
"""Scalar columns that are members of their own, as their names are usual extensions."""


class Writer(Protocol):
    """Takes the rows in order; ``files`` are what it wrote, once it is closed."""

    files: list[str]

    def write(self, chunk: Chunk) -> None: ...
    def close(self) -> None: ...


# -- WebDataset --------------------------------------------------------------------------------------------------------


class TarWriter:
    """Tars of ``<key>.<column>.<extension>`` per blob and vector, ``<key>.txt`` or the like for a column of that name,
    and ``<key>.json`` with the other scalars."""

    def __init__(self, folder: str, sheet: Sheet, shard_bytes: int, primary_key: str) -> None:
        self.files: list[str] = []
        self._folder, self._sheet, self._limit = folder, sheet, shard_bytes
        self._fd, self._size = -1, 0
        self._texts = [n for n in sheet.scalars if n.lower() in _OWN_MEMBERS]
        unsaid = {"__key__"} if "__key__" in sheet.scalars or not _are_keys(sheet, "key") else {"key"}
        self._fields = [n for n in sheet.scalars if n not in self._texts and n not in unsaid]
        self._head = global_comment(PREFIX + Told(*self._told(), primary_key).text())

    def write(self, chunk: Chunk) -> None:
        samples = [list(self._members(chunk, row)) for row in range(chunk.start, chunk.stop)]
        names = [name for members in samples for name, _ in members]
        heads: Iterator[Any] = iter(Headers().many(names, [len(data) for members in samples for _, data in members]))
        for members in samples:
            size = sum(BLOCK + padded(len(data)) for _, data in members)
            if self._fd >= 0 and self._size + size > self._limit:
                self._finish()
            if self._fd < 0:
                self._begin()
            buffers: list[bytes | memoryview] = []
            for _, data in members:
                buffers += [next(heads), data, padding(len(data))]
            self._size = store.write_at(self._fd, buffers, self._size, self.files[-1])

    def _members(self, chunk: Chunk, row: int) -> Iterator[tuple[str, bytes | memoryview]]:
        sheet, key, place = self._sheet, self._sheet.keys[row], row - chunk.start
        for name, values in chunk.blobs.items():
            data = values[place]
            if data is not None:
                yield f"{key}.{_suffix(name, sheet.blobs[name].extensions[row] or 'bin')}", data
        for name, vectors in sheet.vectors.items():
            if vectors[row] is not None:
                yield f"{key}.{_suffix(name, 'npy')}", npy(vectors[row])
        for name in self._texts:
            value = sheet.scalars[name][row]
            if value is not None:
                yield f"{key}.{name.lower()}", str(value).encode()
        if self._fields or not (chunk.blobs or sheet.vectors or self._texts):
            document = {name: plain(sheet.scalars[name][row]) for name in self._fields}
            yield f"{key}.json", json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()

    def _told(self) -> tuple[dict[str, str], dict[str, ColumnType]]:
        fields = {n: f"{store.encode_name(n).lower()}.*" for n in (*self._sheet.blobs, *self._sheet.vectors)}
        fields |= {n: n.lower() for n in self._texts} | {n: f"json.{n}" for n in self._fields}
        names = {fields.get(n, ""): n for n in self._sheet.types if n in fields or n == "key"}
        if "__key__" in self._sheet.scalars and "key" not in self._sheet.types:
            names[""] = "key"
        return names, told_types(names, self._sheet)

    def _begin(self) -> None:
        name = f"{len(self.files):06d}.tar"
        path = os.path.join(self._folder, name)
        with store.file_errors("make", path):
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self.files.append(name)
        self._size = store.write_at(self._fd, [self._head], 0, name)

    def _finish(self) -> None:
        fd, self._fd = self._fd, -1
        with store.file_errors("write", self.files[-1]):
            try:
                store.write_at(fd, [END], self._size, self.files[-1])
                store.sync_data(fd)
            finally:
                os.close(fd)

    def close(self) -> None:
        if self._fd < 0 and not self.files:
            self._begin()
        if self._fd >= 0:
            self._finish()


def _are_keys(sheet: Sheet, name: str) -> bool:
    """Whether a column is what the samples are called by, and nothing more can be said of it."""
    kind = sheet.types.get(name)
    return kind is not None and kind.name == "TEXT" and list(sheet.scalars[name]) == list(sheet.keys)


def told_types(names: Mapping[str, str], sheet: Sheet) -> dict[str, ColumnType]:
    """{field: type} of the columns whose type is known and is one that a table can have."""
    kinds = {field: sheet.types.get(name) for field, name in names.items()}
    return {field: kind for field, kind in kinds.items() if kind is not None and kind.name != "INTERVAL"}


def _suffix(column: str, extension: str) -> str:
    """What stands behind the key: the extension alone where the column is named so.

    >>> _suffix("jpg", "jpg"), _suffix("seg", "png")
    ('jpg', 'seg.png')
    """
    name = store.encode_name(column)
    return extension if name == extension else f"{name}.{extension}"


# -- Parquet -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class References:
    """Where the blobs of a column lie, by url, for those who read them there."""

    extents: Extents
    urls: Sequence[str]
    keys: Sequence[str | None]


class ParquetWriter:
    """Parquet files: scalars by type, vectors as fixed-size lists, blobs as their bytes or as
    struct(url, offset, length, key)."""

    def __init__(
        self, folder: str, sheet: Sheet, shard_bytes: int, references: Mapping[str, References] | None,
        primary_key: str,
    ) -> None:  # fmt: skip
        self.files: list[str] = []
        self._folder, self._sheet, self._limit, self._references = folder, sheet, shard_bytes, references
        self._writer: Any = None
        self._scalars = {n: _scalars(values, sheet.types[n]) for n, values in sheet.scalars.items()}
        names = {name: name for name in sheet.types}
        types = {n: kind for n, kind in told_types(names, sheet).items() if n not in (references or {})}
        self._told = Told(names, types, primary_key).text().encode()

    def write(self, chunk: Chunk) -> None:
        import pyarrow as pa

        sheet = self._sheet
        columns = {n: v.slice(chunk.start, chunk.stop - chunk.start) for n, v in self._scalars.items()}
        columns |= {n: _lists(v[chunk.start : chunk.stop], sheet.types[n]) for n, v in sheet.vectors.items()}
        if self._references is None:
            columns |= {n: pa.array(v, pa.large_binary()) for n, v in chunk.blobs.items()}
        else:
            columns |= {n: _structs(r, chunk.start, chunk.stop) for n, r in self._references.items()}
        self._put(pa.table({n: columns[n] for n in sheet.types}).replace_schema_metadata({PARQUET: self._told}))

    def _put(self, table: pa.Table) -> None:
        import pyarrow.parquet as pq

        path = os.path.join(self._folder, self.files[-1]) if self._writer is not None else ""
        if path and os.path.getsize(path) + table.nbytes > self._limit:
            self._writer.close()
            self._writer = None
        if self._writer is None:
            self.files.append(f"{len(self.files):06d}.parquet")
            path = os.path.join(self._folder, self.files[-1])
            with store.file_errors("make", path):
                self._writer = pq.ParquetWriter(path, table.schema, compression="zstd", write_page_checksum=True)
        with store.file_errors("write", path):
            self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is not None:
            with store.file_errors("write", self.files[-1]):
                self._writer.close()
            self._writer = None
        for name in self.files:
            _sync(os.path.join(self._folder, name))


def _scalars(values: Sequence[Any], kind: ColumnType | None) -> Any:
    import pyarrow as pa

    found = _ARROW.get("" if kind is None else kind.name)
    if kind is not None and kind.name in ("JSON", "UUID", "INTERVAL"):
        text = _document if kind.name == "JSON" else str
        return pa.array([None if v is None else text(v) for v in values], pa.string())
    try:
        return pa.array(values, None if found is None else pa.type_for_alias(found))
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # an expression whose values are of several types
        return pa.array([None if v is None else str(v) for v in values], pa.string())


def _document(value: Any) -> str:
    return json.dumps(plain(value), ensure_ascii=False)


_ARROW = {
    "TEXT": "string", "SMALLINT": "int16", "INTEGER": "int32", "BIGINT": "int64", "REAL": "float32",
    "DOUBLE": "float64", "BOOLEAN": "bool", "TIMESTAMP": "timestamp[us]", "DATE": "date32", "BYTEA": "binary",
}  # fmt: skip


def _lists(values: Sequence[Any], kind: ColumnType | None) -> Any:
    import numpy as np
    import pyarrow as pa

    width = len(next((v for v in values if v is not None), ())) or (kind.dimension if kind is not None else 1)
    dtype = np.dtype(kind.dtype if kind is not None and kind.dtype else "float32")
    matrix = np.stack([np.zeros(width, dtype) if v is None else np.asarray(v, dtype) for v in values])
    mask = pa.array([v is None for v in values])
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), width, mask=mask)


def _structs(found: References, start: int, stop: int) -> Any:
    import pyarrow as pa

    extents = found.extents
    rows = [
        None if extents.address[i] == 0 else {
            "url": found.urls[extents.file[i]], "offset": int(extents.offset[i]), "length": int(extents.length[i]),
            "key": found.keys[i],
        }
        for i in range(start, stop)
    ]  # fmt: skip
    fields = [("url", pa.string()), ("offset", pa.int64()), ("length", pa.int64()), ("key", pa.string())]
    return pa.array(rows, pa.struct(fields))


# -- a folder ----------------------------------------------------------------------------------------------------------


class FolderWriter:
    """A file per blob and vector, ``<column>/<key>.<extension>``, and ``metadata.jsonl`` with a line per row: the
    scalars, and each file's name under ``file_name`` (``<column>_file_name`` where there are several columns)."""

    def __init__(self, folder: str, sheet: Sheet, primary_key: str) -> None:
        self.files: list[str] = [METADATA]
        self._folder, self._sheet = folder, sheet
        columns = (*sheet.blobs, *sheet.vectors)
        alone = len(columns) == 1 and "file_name" not in sheet.types
        self._columns = {name: "file_name" if alone else f"{name}_file_name" for name in columns}
        self._describe(primary_key)
        path = os.path.join(folder, METADATA)
        with store.file_errors("make", path):
            self._lines = open(path, "x", encoding="utf-8")  # noqa: SIM115 closed by close()

    def write(self, chunk: Chunk) -> None:
        sheet = self._sheet
        for row in range(chunk.start, chunk.stop):
            line: dict[str, Any] = {}
            for name, field in self._columns.items():
                line[field] = self._file(chunk, name, row)
            line |= {name: plain(values[row]) for name, values in sheet.scalars.items()}
            self._lines.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _describe(self, primary_key: str) -> None:
        """Writes what the columns are beside their rows."""
        twice = sorted(self._sheet.types.keys() & set(self._columns.values()))
        if twice:
            raise InputError(f"the column {twice[0]!r} is named like what names a file; name it apart with AS")
        names = {self._columns.get(name, name): name for name in self._sheet.types}
        path = os.path.join(self._folder, FOLDER)
        with store.file_errors("write", path), open(path, "x", encoding="utf-8") as file:
            file.write(Told(names, told_types(names, self._sheet), primary_key).text())
            file.flush()
            store.sync_data(file.fileno())

    def _file(self, chunk: Chunk, name: str, row: int) -> str | None:
        sheet = self._sheet
        if name in sheet.blobs:
            data: bytes | memoryview | None = chunk.blobs[name][row - chunk.start]
            extension = sheet.blobs[name].extensions[row] or "bin"
        else:
            vector = sheet.vectors[name][row]
            data, extension = None if vector is None else npy(vector), "npy"
        if data is None:
            return None
        key, ending = sheet.keys[row], f".{extension}"
        file = f"{store.encode_name(name)}/{key if key.endswith(ending) else key + ending}"
        path = os.path.join(self._folder, *file.split("/"))
        with store.file_errors("write", path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "xb") as out:
                out.write(data)
                out.flush()
                store.sync_data(out.fileno())
        return file

    def close(self) -> None:
        with store.file_errors("write", METADATA), self._lines as file:
            file.flush()
            store.sync_data(file.fileno())


# -- values ------------------------------------------------------------------------------------------------------------


def npy(vector: Any) -> bytes:
    """A vector as a .npy file."""
    return encode_tensor(ColumnType("TENSOR"), vector, "a vector").data


def plain(value: Any) -> Any:
    """A value as JSON holds it: times in ISO 8601, exact numbers and unknown things as text, bytes in base64, NaN and
    the infinities as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | dict | list):
        return value
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, bytes | memoryview):
        return base64.b64encode(value).decode()
    return str(value)


def _sync(path: str) -> None:
    with store.file_errors("sync", path):
        fd = os.open(path, os.O_RDONLY)
        try:
            store.sync_data(fd)
        finally:
            os.close(fd)
