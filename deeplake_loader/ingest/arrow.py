"""Arrow data as rows: the column types of its fields, its columns as Python values."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deeplake_loader.codecs.headers import sniff_image
from deeplake_loader.errors import InputError
from deeplake_loader.ingest.members import bytes_of
from deeplake_loader.types import MAX_DIMENSION, ColumnType

FEATURES = {"Image": "IMAGE", "Audio": "AUDIO", "Video": "VIDEO"}
"""Hugging Face's features that hold media, as {bytes, path}."""

_FLOATS = {"float": "float32", "halffloat": "float16"}
_NAMED = {
    "bool": "BOOLEAN", "uint64": "NUMERIC", "float": "DOUBLE", "halffloat": "DOUBLE", "double": "DOUBLE",
    "string": "TEXT", "large_string": "TEXT", "string_view": "TEXT", "null": None,
}  # fmt: skip


def types_of(schema: Any, example: Any) -> dict[str, ColumnType | None]:
    """{field: type} of a pyarrow schema; ``example`` is a batch of its first rows, which tell what bytes are."""
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise InputError(f"two columns are named {', '.join(map(repr, twice[:3]))}; a first line must name the columns")
    media = {n: ColumnType(FEATURES[f["_type"]]) for n, f in _features(schema).items() if f.get("_type") in FEATURES}
    media |= dict.fromkeys(_labels(schema), ColumnType("TEXT"))
    return {
        field.name: media.get(field.name) or _type(field.type, None if example is None else example.column(i))
        for i, field in enumerate(schema)
    }


def columns_of(batch: Any, wanted: Mapping[str, ColumnType], folder: str) -> dict[str, Sequence[Any]]:
    """The batch's columns of these fields, as values that their column types take; files that the batch names are
    looked for in the folder."""
    labels = _labels(schema := batch.schema)
    return {
        name: _names(batch.column(name), labels[name]) if name in labels and kind.name == "TEXT"
        else _values(batch.column(name), kind, folder)
        for name, kind in wanted.items() if name in schema.names
    }  # fmt: skip


def _features(schema: Any) -> dict[str, Mapping[str, Any]]:
    """What Hugging Face wrote beside the schema, by column."""
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        found = json.loads(text)["info"]["features"] if text else {}
        return {name: feature for name, feature in found.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _labels(schema: Any) -> dict[str, list[str]]:
    """The names of the classes of columns that hold their numbers."""
    found = {n: f.get("names") for n, f in _features(schema).items() if f.get("_type") == "ClassLabel"}
    return {
        n: names for n, names in found.items() if isinstance(names, list) and all(isinstance(t, str) for t in names)
    }


def _names(column: Any, names: Sequence[str]) -> list[str | None]:
    """The class of each row; NULL where it has none, which is -1."""
    numbers: list[Any] = column.to_pylist()
    wrong = next((n for n in numbers if isinstance(n, int) and not -1 <= n < len(names)), None)
    if wrong is not None:
        raise InputError(f"a row is of class {wrong}, and {len(names)} classes have names")
    return [None if n is None or n < 0 else names[n] for n in numbers]


def _type(kind: Any, column: Any) -> ColumnType | None:
    import pyarrow.types as is_

    text = str(kind)
    if text in _NAMED:
        name = _NAMED[text]
        return None if name is None else ColumnType(name)
    if is_.is_integer(kind):
        return ColumnType("BIGINT")
    if is_.is_dictionary(kind):
        return _type(kind.value_type, None)
    for test, name in _TESTS:
        if getattr(is_, test)(kind):
            return ColumnType(name)
    if is_.is_timestamp(kind):
        return ColumnType("TIMESTAMP" if kind.tz is None else "TIMESTAMPTZ")
    if is_.is_binary(kind) or is_.is_large_binary(kind) or is_.is_fixed_size_binary(kind):
        return _bytes_type(column)
    if is_.is_struct(kind) and {kind.field(i).name for i in range(kind.num_fields)} == {"bytes", "path"}:
        return _bytes_type(None if column is None else column.field("bytes"))
    if is_.is_list(kind) or is_.is_large_list(kind) or is_.is_fixed_size_list(kind):
        return _list_type(kind, column)
    return ColumnType("JSON")


_TESTS = (
    ("is_decimal", "NUMERIC"), ("is_date", "DATE"), ("is_time", "TIME"), ("is_duration", "INTERVAL"),
)  # fmt: skip


def _bytes_type(column: Any) -> ColumnType:
    values = [] if column is None else [v for v in column.slice(0, 64).to_pylist() if v]
    return ColumnType("IMAGE" if values and all(sniff_image(v) for v in values) else "BLOB")


def _list_type(kind: Any, column: Any) -> ColumnType:
    """VECTOR where every list has the same number of float32 or float16."""
    dtype = _FLOATS.get(str(kind.value_type))
    size = getattr(kind, "list_size", None)
    if dtype is None:
        return ColumnType("JSON")
    if size is None and column is not None:
        lengths = {len(v) for v in column.to_pylist() if v is not None}
        size = lengths.pop() if len(lengths) == 1 else None
    return ColumnType("VECTOR", dtype, (size,)) if size and size <= MAX_DIMENSION else ColumnType("JSON")


def _file(value: Mapping[str, Any] | None, folder: str) -> bytes | Path | None:
    """The bytes of a medium, or its file where it has only a path."""
    if value is None or value.get("bytes") is not None or not value.get("path"):
        return None if value is None else value.get("bytes")
    base = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(base, value["path"]))
    if os.path.commonpath((base, path)) != base:
        raise InputError(
            f"a row names the file {value['path']!r}, which is not in the dataset's folder, and not its bytes; "
            "write the dataset again with its files embedded (to_parquet does), or ingest the files' folder"
        )
    return Path(path)


def _values(column: Any, kind: ColumnType, folder: str) -> Sequence[Any]:
    import pyarrow.types as is_

    if is_.is_struct(column.type) and kind.is_blob:
        names = [field.name for field in column.type]
        if not {"bytes", "path"} & set(names):
            raise InputError(
                f"a row holds ({', '.join(names)}) where bytes or a file are expected; references of an export are no "
                "bytes: export again with blobs='inline'"
            )
        return [_file(v, folder) for v in column.to_pylist()]
    values: list[Any] = column.to_pylist()
    if kind.name == "VECTOR" and values and None not in values:
        import numpy as np

        if len({len(v) for v in values}) == 1:
            matrix: Sequence[Any] = np.asarray(values, kind.dtype)  # type: ignore[assignment]
            return matrix
    if kind.name == "TEXT" and not all(v is None or isinstance(v, str) for v in values):
        return [v if v is None or isinstance(v, str) else str(v) for v in values]
    if kind.name == "BYTEA":
        return [bytes_of(v) if isinstance(v, str) else v for v in values]
    if kind.name == "REAL":  # the shortest number that is the same in 32 bits, as PostgreSQL shows it
        return [v if not isinstance(v, float) else _shortest(v) for v in values]
    if kind.name == "JSON":
        return [_document(v) if isinstance(v, str) else v for v in values]
    return values


def _shortest(value: float) -> float:
    import numpy as np

    return float(str(np.float32(value)))


def _document(text: str) -> str:
    """A text as JSON: of a column that holds numbers in one file and words in another, a word is a JSON string."""
    try:
        json.loads(text)
    except ValueError:
        return text if text.lstrip()[:1] in ("{", "[", '"') else json.dumps(text, ensure_ascii=False)
    return text
