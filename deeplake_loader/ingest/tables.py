"""Tables and texts as rows: CSV, TSV, JSON lines, JSON, Parquet, Arrow; a text file's lines."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

from deeplake_loader.errors import CorruptionError, InputError
from deeplake_loader.ingest.arrow import columns_of, types_of
from deeplake_loader.ingest.inference import kind_of
from deeplake_loader.ingest.members import bytes_of, read_json
from deeplake_loader.ingest.target import Whole
from deeplake_loader.ingest.told import PARQUET, Told
from deeplake_loader.store import file_errors
from deeplake_loader.types import ColumnType

if TYPE_CHECKING:
    from deeplake_loader.ingest.inference import Proposal
    from deeplake_loader.ingest.sources import Source
    from deeplake_loader.ingest.target import Batch, Target

_ROWS = 8_192
_SEEN = 1_000
_BLOCK = 16 << 20  # of a CSV file; types are inferred from the first
MAX_LINE = 64 << 20
MAX_JSON = 1 << 30
_ARROW = {"DOUBLE": "float64", "BIGINT": "int64", "BOOLEAN": "bool", "TEXT": "string", "JSON": "string"}


class TableReading(Whole):
    """A file of rows."""

    has_keys, plain_names = False, False

    def __init__(self, source: Source) -> None:
        self.source = source
        self._wanted: dict[str, ColumnType] = {}
        self._names: dict[str, str] = {}

    def observe(self) -> Iterator[Mapping[str, ColumnType | None]]:
        with self._errors():
            if _is_json(self.source):
                rows = islice(self._documents(lambda *_: None), _SEEN)
                yield from ({name: kind_of(value) for name, value in row.items()} for _, row in rows)
            else:
                batch = next(self._arrow(None, lambda *_: None), None)
                if batch is not None:
                    text = (batch.schema.metadata or {}).get(PARQUET)
                    self.told = None if text is None else Told.parse(text, self.source.name)
                    yield types_of(batch.schema, batch.slice(0, _SEEN))

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Every row, as the file has it; those that cannot be read are left out."""
        with self._errors():
            if _is_json(self.source):
                yield from (row for _, row in self._documents(lambda *_: None))
            else:
                for batch in self._arrow(None, lambda *_: None):
                    yield from batch.to_pylist()

    def prepare(self, proposal: Proposal) -> None:
        self._wanted = {choice.field: choice.column.type for choice in proposal.choices}
        self._names = {choice.field: choice.column.name for choice in proposal.choices}

    def batches(self, target: Target) -> Iterator[Batch]:
        with self._errors():
            yield from self._from_json(target) if _is_json(self.source) else self._from_arrow(target)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What a file's library or decompressor says, as an error that names the file."""
        import pyarrow as pa

        name = self.source.name
        with file_errors("read", name):
            try:
                yield
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError) as error:
                raise InputError(f"{name} cannot be read as a table: {str(error)[:400]}") from error
            except (EOFError, gzip.BadGzipFile, UnicodeDecodeError, pa.ArrowException) as error:
                raise CorruptionError(f"{name} is damaged or cut: {str(error)[:400]}") from error

    # -- Arrow: CSV, Parquet, Arrow ----------------------------------------------------------------------------------

    def _from_arrow(self, target: Target) -> Iterator[Batch]:
        line = 0
        for batch in self._arrow(self._wanted, target.skip):
            for name in batch.schema.names:
                if name not in self._wanted:
                    target.unused(name, batch.num_rows)
            for start in range(0, batch.num_rows, _ROWS):
                part = batch.slice(start, _ROWS)
                found = columns_of(part, self._wanted, os.path.dirname(str(self.source.path)))
                if found:
                    names = [f"row {line + i}" for i in range(part.num_rows)]
                    yield names, {self._names[field]: values for field, values in found.items()}
                line += part.num_rows

    def _arrow(self, wanted: Mapping[str, ColumnType] | None, skip: Any) -> Iterator[Any]:
        """Record batches of the file."""
        import pyarrow as pa

        path, lower = str(self.source.path), str(self.source.path).lower()
        if lower.endswith(".parquet"):
            import pyarrow.parquet as pq

            with pq.ParquetFile(path) as file:
                metadata = file.schema_arrow.metadata
                for batch in file.iter_batches(_ROWS):
                    yield batch.replace_schema_metadata(metadata)
        elif lower.endswith((".arrow", ".feather")):
            with open(path, "rb") as raw:
                is_file = raw.read(6) == b"ARROW1"
                raw.seek(0)
                with (pa.ipc.open_file if is_file else pa.ipc.open_stream)(raw) as reader:
                    count = reader.num_record_batches if is_file else None
                    yield from (reader.get_batch(i) for i in range(count)) if count is not None else reader
        else:
            yield from self._csv(path, wanted, skip)

    def _csv(self, path: str, wanted: Mapping[str, ColumnType] | None, skip: Any) -> Iterator[Any]:
        import pyarrow as pa
        from pyarrow import csv

        tabs = path.lower().removesuffix(".gz").endswith(".tsv")
        delimiter = "\t" if tabs else _delimiter(self.source)

        def wrong(row: Any) -> str:
            bad.append(
                (f"row {row.number or '?'}", f"has {row.actual_columns} fields, expected {row.expected_columns}")
            )
            return "skip"

        bad: list[tuple[str, str]] = []
        parse = csv.ParseOptions(
            delimiter=delimiter, quote_char=False if tabs else '"',  # TSV has no quotes
            newlines_in_values=not tabs, invalid_row_handler=wrong,
        )  # fmt: skip
        types = {n: pa.type_for_alias(_ARROW[t.name]) for n, t in (wanted or {}).items() if t.name in _ARROW and n}
        convert = csv.ConvertOptions(column_types=types, strings_can_be_null=True, quoted_strings_can_be_null=False)
        # one thread: else the numbers of wrong rows are not known
        for batch in csv.open_csv(path, csv.ReadOptions(block_size=_BLOCK, use_threads=False), parse, convert):
            while bad:
                skip(*bad.pop(0))
            _check_texts(self.source, batch.schema)
            yield batch
        while bad:
            skip(*bad.pop(0))

    # -- JSON --------------------------------------------------------------------------------------------------------

    def _from_json(self, target: Target) -> Iterator[Batch]:
        rows = self._documents(target.skip)
        while part := list(islice(rows, _ROWS)):
            for _, row in part:
                for name in row.keys() - self._wanted.keys():
                    target.unused(name)
            columns = {
                self._names[field]: [_fitting(row.get(field), kind) for _, row in part]
                for field, kind in self._wanted.items()
            }
            yield [name for name, _ in part], columns

    def _documents(self, skip: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """(name, object) of every row."""
        with _open(self.source) as file:
            if str(self.source.path).lower().endswith(".json"):
                yield from _whole(file, self.source)
                return
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), 1):
                if len(line) > MAX_LINE:
                    raise InputError(f"{self.source.name}, line {number}: longer than {MAX_LINE} bytes")
                if not line.strip():
                    continue
                try:
                    row = read_json(line.decode("utf-8-sig"))
                    if not isinstance(row, dict):
                        raise ValueError("is no JSON object")
                except ValueError as error:
                    skip(f"line {number}", str(error))
                    continue
                yield f"line {number}", row


def _fitting(value: Any, kind: ColumnType) -> Any:
    """A value of JSON as its column takes it: where some values are texts and some are not, all are kept as JSON."""
    if kind.name == "JSON" and isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if kind.name == "BYTEA" and isinstance(value, str):
        return bytes_of(value)
    if value is None or kind.name != "TEXT" or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _whole(file: IO[bytes], source: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of one JSON document: a list of objects, or an object of objects, whose names then fill ``key``."""
    if source.nbytes > MAX_JSON:
        raise InputError(f"{source.name}: {source.nbytes} bytes are too many for one JSON document; write JSON lines")
    try:
        document = read_json(file.read().decode("utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{source.name} cannot be read as JSON: {error}") from error
    if isinstance(document, list) and all(isinstance(row, dict) for row in document):
        yield from ((f"item {i}", row) for i, row in enumerate(document))
    elif isinstance(document, dict) and document and all(isinstance(row, dict) for row in document.values()):
        yield from ((str(name), {"key": name, **row}) for name, row in document.items())
    else:
        raise InputError(f"{source.name} is no table: expected a list of objects, or an object of objects")


def _delimiter(source: Source) -> str:
    """What parts the fields of a CSV file: a semicolon or a tab where its first line has no comma."""
    with _open(source) as file:
        line = file.readline(1 << 20)
    return "," if b"," in line else next((c for c in ";\t" if c.encode() in line), ",")


def _check_texts(source: Source, schema: Any) -> None:
    """Refuses a CSV file whose text is in another encoding, which would come as bytes."""
    import pyarrow.types as is_

    name = next((field.name for field in schema if is_.is_binary(field.type)), None)
    if name is not None:
        raise InputError(f"{source.name}: the column {name!r} holds bytes that are no UTF-8; convert it, as with iconv")


def _is_json(source: Source) -> bool:
    return str(source.path).lower().removesuffix(".gz").endswith((".json", ".jsonl", ".ndjson"))


def _open(source: Source) -> IO[bytes]:
    path = str(source.path)
    if path.lower().endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return open(path, "rb")


class TextReading(TableReading):
    """A text file whose lines are rows, in the column ``text``."""

    def observe(self) -> Iterator[Mapping[str, ColumnType | None]]:
        yield {"text": ColumnType("TEXT")}

    def batches(self, _target: Target) -> Iterator[Batch]:
        with self._errors(), io.TextIOWrapper(_open(self.source), "utf-8-sig", newline="\n") as file:
            lines = enumerate(iter(lambda: file.readline(MAX_LINE), ""), 1)
            while part := list(islice(lines, _ROWS)):
                kept: Sequence[tuple[int, str]] = [(n, t.rstrip("\r\n")) for n, t in part if t.strip()]
                if kept:
                    yield [f"line {n}" for n, _ in kept], {self._names["text"]: [text for _, text in kept]}
