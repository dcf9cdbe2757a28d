"""The rows a user hands to a bulk insert, whatever holds them, as batches of columns.

Taken are: an iterable of dicts (or of Rows), a dict of columns, a pyarrow Table, RecordBatch or reader of batches, a
pandas DataFrame. Neither pyarrow nor pandas is imported: an object of theirs brings its library along.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

from deeplake_loader.errors import DimensionError, InputError, TypeMismatchError


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows by column: every column is a sequence (list or array) of ``count`` values, None for NULL."""

    columns: Mapping[str, Sequence[Any]]
    count: int


def batches(rows: object, *, size: int) -> Iterator[Batch]:
    """The rows in batches of at most ``size``; rows given as dicts are cut where their keys change.

    >>> [b.count for b in batches([{"a": 1}, {"a": 2}, {"b": 3}], size=10)]
    [2, 1]
    """
    if isinstance(rows, str | bytes):
        raise TypeMismatchError(
            f"rows must be dicts, columns, an Arrow table or a DataFrame, got {type(rows).__name__}"
        )
    library = type(rows).__module__.partition(".")[0]
    if library == "pyarrow" and hasattr(rows, "schema"):
        yield from _from_arrow(rows, size)
    elif library == "pandas" and hasattr(rows, "columns"):
        yield from _from_pandas(rows, size)
    elif library in ("pyarrow", "pandas"):
        raise TypeMismatchError(f"rows of {library} come as a table or a DataFrame, got {type(rows).__name__}")
    elif isinstance(rows, Mapping):
        yield from _from_columns(rows, size)
    elif isinstance(rows, Iterable):
        yield from _from_dicts(rows, size)
    else:
        raise TypeMismatchError(
            f"rows must be dicts, columns, an Arrow table or a DataFrame, got {type(rows).__name__}"
        )


def known_length(rows: object) -> int | None:
    """The number of rows if the object tells it, for a progress bar; None also for what ``batches`` will refuse."""
    measured = next(iter(rows.values()), ()) if isinstance(rows, Mapping) else rows
    return len(measured) if isinstance(measured, Sized) else None


def _from_columns(columns: Mapping[str, Any], size: int) -> Iterator[Batch]:
    for name, values in columns.items():
        if isinstance(values, str | bytes | Mapping) or not (
            hasattr(values, "__len__") and hasattr(values, "__getitem__")
        ):
            raise TypeMismatchError(
                f"column {name!r} must be a list or an array of values, got {type(values).__name__}"
            )
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DimensionError(f"the columns have different lengths: {lengths}; every row needs a value or None")
    for start in range(0, max(lengths.values(), default=0), size):
        part = {name: values[start : start + size] for name, values in columns.items()}
        yield Batch(part, len(next(iter(part.values()))))


def _from_dicts(rows: Iterable[Any], size: int) -> Iterator[Batch]:
    iterator = iter(rows)
    names: tuple[str, ...] = ()
    pending: list[Any] = []
    for row in iterator:
        if not hasattr(row, "keys"):
            raise TypeMismatchError(f"a row must be a dict of column values, got {type(row).__name__}")
        found = tuple(row.keys())
        if found != names or len(pending) >= size:
            if pending:
                yield _transpose(names, pending)
            names, pending = found, []
        pending.append(row)
    if pending:
        yield _transpose(names, pending)


def _transpose(names: tuple[str, ...], rows: list[Any]) -> Batch:
    return Batch({name: [row[name] for row in rows] for name in names}, len(rows))


def _from_arrow(rows: Any, size: int) -> Iterator[Batch]:
    _require_distinct(rows.schema.names)
    if type(rows).__name__ == "Table":
        rows = rows.to_batches(max_chunksize=size)
    for batch in [rows] if type(rows).__name__ == "RecordBatch" else rows:
        for start in range(0, batch.num_rows, size):
            part = batch.slice(start, size)
            named = zip(part.schema.names, part.columns, strict=True)
            yield Batch({name: _arrow_column(column) for name, column in named}, part.num_rows)


def _require_distinct(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two columns are named {', '.join(map(repr, twice))}; drop one or name them apart")


def _arrow_column(column: Any) -> Sequence[Any]:
    """A fixed-size list of floats without NULLs as one (n, d) array, anything else as Python values."""
    size = getattr(column.type, "list_size", None)
    if size and column.null_count == 0:
        flat = column.flatten()
        if flat.null_count == 0 and str(flat.type) in ("float", "halffloat", "double"):
            matrix: Sequence[Any] = flat.to_numpy().reshape(-1, size)
            return matrix
    values: Sequence[Any] = column.to_pylist()
    return values


def _from_pandas(frame: Any, size: int) -> Iterator[Batch]:
    _require_distinct([str(name) for name in frame.columns])
    for start in range(0, len(frame), size):
        part = frame.iloc[start : start + size]
        columns = {str(name): _pandas_column(part.iloc[:, i]) for i, name in enumerate(part.columns)}
        yield Batch(columns, len(part))


def _pandas_column(series: Any) -> list[Any]:
    """pandas writes a missing value as NaN, NaT or NA: each becomes NULL."""
    missing = series.isna().tolist()
    return [None if gone else value for value, gone in zip(series.tolist(), missing, strict=True)]
