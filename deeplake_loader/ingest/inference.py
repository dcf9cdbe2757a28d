"""From samples to a proposed table: the types of what was seen, joined; the names of its columns. Pure."""

from __future__ import annotations

import datetime as dt
import decimal
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from deeplake_loader.errors import InputError
from deeplake_loader.ingest.told import Told
from deeplake_loader.types import RESERVED_PREFIX, Column, ColumnType, Table, quote_identifier

MAX_FIELDS = 200
"""Entries of a JSON member that become columns of their own; of more, the whole document becomes one JSON column."""

_TEXT, _JSON, _BLOB = ColumnType("TEXT"), ColumnType("JSON"), ColumnType("BLOB")
_NUMBERS = ("BOOLEAN", "BIGINT", "NUMERIC", "DOUBLE")
_SPELLING = {"DOUBLE": "DOUBLE PRECISION"}
_INT64 = 1 << 63


@dataclass(frozen=True, slots=True)
class Choice:
    """One column and the field of the source that fills it; ``field`` is "" for the sample's key."""

    column: Column
    field: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """A table for some sources. ``str()`` is the CREATE TABLE statement, with what fills each column as a comment.

    Fields: ``table``, ``choices`` in the order of the columns, ``primary_key``, ``notes`` on what was decided.
    """

    table: str
    choices: tuple[Choice, ...]
    primary_key: str
    notes: tuple[str, ...] = ()

    @property
    def fields(self) -> dict[str, Column]:
        """The column that each field fills."""
        return {choice.field: choice.column for choice in self.choices}

    def sql(self) -> str:
        """The CREATE TABLE statement."""
        lines = [self._declare(choice.column) for choice in self.choices]
        if all(choice.column.name != self.primary_key for choice in self.choices):
            lines.insert(0, f"{quote_identifier(self.primary_key)} BIGINT PRIMARY KEY")
        return f"CREATE TABLE {quote_identifier(self.table)} (\n  " + ",\n  ".join(lines) + "\n)"

    def _declare(self, column: Column) -> str:
        kind = _SPELLING.get(column.type.name, str(column.type))
        key = " PRIMARY KEY" if column.name == self.primary_key else "" if column.nullable else " NOT NULL"
        return f"{quote_identifier(column.name)} {kind}{key}"

    def __str__(self) -> str:
        filled = [f"-- {c.column.name}: {c.field or 'the key of the sample'}" for c in self.choices]
        return "\n".join((f"{self.sql()};", *filled, *(f"-- {note}" for note in self.notes)))


def kind_of(value: object) -> ColumnType | None:
    """The type that holds a Python value; None for None.

    >>> str(kind_of(7)), str(kind_of([1, 2])), kind_of(None)
    ('BIGINT', 'JSON', None)
    """
    if value is None:
        return None
    if isinstance(value, bool):
        return ColumnType("BOOLEAN")
    if isinstance(value, int):
        return ColumnType("BIGINT" if -_INT64 <= value < _INT64 else "NUMERIC")
    for classes, name in _KINDS:
        if isinstance(value, classes):
            return ColumnType(name)
    if isinstance(value, dt.datetime):
        return ColumnType("TIMESTAMP" if value.tzinfo is None else "TIMESTAMPTZ")
    return _JSON


_KINDS: tuple[tuple[tuple[type, ...], str], ...] = (
    ((str,), "TEXT"), ((float,), "DOUBLE"), ((bytes, bytearray), "BLOB"), ((decimal.Decimal,), "NUMERIC"),
    ((uuid.UUID,), "UUID"), ((dt.time,), "TIME"), ((dt.timedelta,), "INTERVAL"),
)  # fmt: skip


def unify(a: ColumnType | None, b: ColumnType | None) -> ColumnType | None:
    """The narrowest type that holds values of both exactly.

    >>> str(unify(ColumnType("BIGINT"), ColumnType("DOUBLE"))), str(unify(ColumnType("TEXT"), ColumnType("BIGINT")))
    ('DOUBLE', 'JSON')
    """
    if a is None or b is None or a == b:
        return a or b
    if a.is_scalar and b.is_scalar:
        return _unify_scalars(a, b)
    if {a.name, b.name} <= {"VECTOR", "TENSOR"}:
        return _unify_arrays(a, b)
    return _BLOB


def _unify_scalars(a: ColumnType, b: ColumnType) -> ColumnType:
    names = {a.name, b.name}
    if names <= {"BIGINT", "NUMERIC", "DOUBLE"}:
        return ColumnType(max(names, key=_NUMBERS.index))
    return ColumnType("TIMESTAMP") if names == {"DATE", "TIMESTAMP"} else _JSON


def _unify_arrays(a: ColumnType, b: ColumnType) -> ColumnType:
    if a.dtype != b.dtype or a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return ColumnType("TENSOR", a.dtype if a.dtype == b.dtype else None)
    return ColumnType("TENSOR", a.dtype, tuple(m if m == n else None for m, n in zip(a.shape, b.shape, strict=True)))


def propose(
    table: str,
    samples: Iterable[Mapping[str, ColumnType | None]],
    *,
    has_keys: bool,
    key: str | None = None,
    columns: Mapping[str, str] | Sequence[str] | None = None,
    plain_names: bool = True,
    told: Told | None = None,
) -> Proposal:
    """A table for samples of which the types of their fields are known.

    Args:
        samples: {field: type} of each; a JSON object's entries come as ``<field>.<entry>`` beside the object.
        has_keys: whether a sample has a key, which then fills the column ``key``.
        key: the column that is the primary key; default: a number, ``id``.
        columns: the columns wanted, {column: field}, or their fields alone; default: all.
        plain_names: make column names of letters, digits and _ out of the fields; else the fields are the names.
        told: what an export tells of its columns; other fields stand behind them.

    Raises:
        InputError: no sample, a column of ``columns`` or the key that no sample has.
    """
    seen: dict[str, ColumnType | None] = {}
    mixed: dict[str, str] = {}
    count = 0
    for sample in samples:
        count += 1
        for field, kind in sample.items():
            before = seen.get(field)
            seen[field] = unify(before, kind)
            if seen[field] == _JSON and before not in (None, _JSON):
                mixed[field] = f"{before} in some samples, {kind} in others"
    if not count:
        raise InputError("nothing was found that a table could be made of; name sources that hold samples")
    notes: list[str] = []
    told = told or Told()
    if columns is not None:
        wanted = _chosen(columns, seen, has_keys)
    else:
        wanted = _named(seen, has_keys, plain_names, notes, told)
    seen |= told.types
    choices = tuple(
        Choice(Column(name, _TEXT if field == "" else seen.get(field) or _TEXT, nullable=field != ""), field)
        for name, field in wanted.items()
    )
    notes += [f"{c.column.name}: no value was seen; TEXT" for c in choices if c.field and seen.get(c.field) is None]
    notes += [f"{c.column.name}: {mixed[c.field]}; JSON" for c in choices if c.field in mixed]
    names = {c.column.name.lower() for c in choices}
    if key is None and columns is None and told.primary_key.lower() in names:
        key = told.primary_key
    elif key is None:
        key = next(name for name in ("id", "row_id", "sample_id", "_row_id") if name not in names)
    elif key.lower() not in names:
        raise InputError(f"there is no column {key!r} to be the key; columns: {', '.join(wanted)}")
    return Proposal(table, choices, key, tuple(notes))


def _chosen(columns: Mapping[str, str] | Sequence[str], seen: Mapping[str, object], has_keys: bool) -> dict[str, str]:
    """{column: field} as it was asked for."""
    if isinstance(columns, str):
        raise InputError(f"columns={columns!r}: give a list of fields, or a dict of column names and fields")
    given = dict(columns) if isinstance(columns, Mapping) else {_plain(field): field for field in columns}
    wanted = {name: "" if field == "__key__" else field for name, field in given.items()}
    missing = [field for field in wanted.values() if field not in seen and not (field == "" and has_keys)]
    if missing:
        known = ", ".join((*(["__key__"] if has_keys else ()), *seen))
        raise InputError(f"no sample has the field {missing[0]!r}; fields: {known}")
    return wanted


def _named(
    seen: Mapping[str, object], has_keys: bool, plain_names: bool, notes: list[str], told: Told
) -> dict[str, str]:
    """{column: field} of every field: the entries of JSON objects instead of the objects where there are few."""
    entries: dict[str, list[str]] = {}
    for field in seen:
        for parent in _parents(field, seen):
            entries.setdefault(parent, []).append(field)
    expanded = {parent for parent, found in entries.items() if len(found) <= MAX_FIELDS and seen[parent] == _JSON}
    dropped = {field for parent, found in entries.items() for field in found if parent not in expanded}
    names = {name: field for field, name in told.names.items()}
    if has_keys and not told:
        names["key"] = ""
    used = {name.lower() for name in names}
    for field in seen:
        if field in expanded or field in dropped or told.covers(field):
            continue
        name = _column_name(field, expanded) if plain_names else field
        name = _distinct(name, field, used)
        names[name] = field
        used.add(name.lower())
    notes += [f"{field}: a JSON object of more than {MAX_FIELDS} entries, kept whole" for field in entries
              if field not in expanded and seen[field] == _JSON]  # fmt: skip
    return names


def _parents(field: str, seen: Mapping[str, object]) -> list[str]:
    at = [i for i, letter in enumerate(field) if letter == "."]
    found = [field[:i] for i in at if field[:i] in seen and field[:i].rpartition(".")[2] in ("json", "jsn", "gz")]
    return found[:1]


def _column_name(field: str, expanded: set[str]) -> str:
    parent = next((p for p in expanded if field.startswith(f"{p}.")), None)
    if parent is not None:
        return _plain(field[len(parent) + 1 :])
    field = field.removesuffix(".gz")
    before, dot, _ = field.rpartition(".")
    return _plain(before if dot else field)


def _plain(name: str) -> str:
    """A name of small letters, digits and _ that begins with a letter."""
    plain = re.sub(r"\W+", "_", name.lower()).strip("_") or "value"
    plain = f"c_{plain}" if plain[0].isdigit() else plain
    return plain if not plain.startswith(RESERVED_PREFIX) else f"x{plain}"


def _distinct(name: str, field: str, used: set[str]) -> str:
    """A name that is not taken: the field's whole name, or a number behind it."""
    for candidate in (name, _plain(field), *(f"{name}_{n}" for n in range(2, 10_000))):
        if candidate.lower() not in used:
            return candidate
    raise InputError(f"no name is left for the field {field!r}; give columns={{name: field}}")


def of_table(table: Table, fields: Mapping[str, str]) -> Proposal:
    """What fills the columns of a table that is there already.

    Args:
        fields: {column: field}, of the columns that some field fills.
    """
    choices = tuple(Choice(c, fields[c.name]) for c in table.columns if c.name in fields)
    return Proposal(table.name, choices, table.primary_key[0] if len(table.primary_key) == 1 else "")
