"""From Python values to what SQL stores: every value of a statement is encoded before its first write.

A scalar becomes a SQL value, a vector an address in a vector file, a blob an address in a shard. Addresses are given
out inside the running transaction, so a statement that fails takes its bytes back with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from deeplake_loader import codecs, inserts, scalars
from deeplake_loader.errors import InputError, NotFoundError, TypeMismatchError
from deeplake_loader.rows import Blob, StoredBlobs, Vector
from deeplake_loader.scalar_columns import encode_column
from deeplake_loader.shards import Member
from deeplake_loader.sql.plan import WINNERS
from deeplake_loader.types import Column, ColumnType, Table, quote_identifier, quote_identifiers

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.rows import Source
    from deeplake_loader.shards import Shards, Staged
    from deeplake_loader.sql.plan import Bind, Plan
    from deeplake_loader.vectors import Vectors

Validate = Literal["structure", "decode", "none"]
_one_a_line = json.JSONEncoder(ensure_ascii=False, separators=("\n", ":")).encode


@dataclass(frozen=True, slots=True)
class Typed:
    """A parameter whose place in the statement gives it no column type, with the type it shall have.

    >>> Typed([0.1, 0.2], "VECTOR(2)").type.dimension
    2
    """

    value: object
    type: ColumnType

    def __init__(self, value: object, type: ColumnType | str) -> None:
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "type", ColumnType.parse(type) if isinstance(type, str) else type)


@dataclass(slots=True)
class _Sample:
    """The blobs and scalars that one row of a statement brings."""

    members: list[Member] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    scalars: dict[str, object] = field(default_factory=dict)
    columns: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Bound:
    """A statement's values in bind order, ready for SQLite, and the samples whose bytes wait to be written."""

    values: list[Any]
    staged: Staged | None = None
    samples: list[_Sample] = field(default_factory=list)


class Writer:
    """Encodes parameters and rows for one store."""

    def __init__(
        self, catalog: Catalog, shards: Shards, vectors: Vectors, source: Source, target: Callable[[str], str]
    ) -> None:
        """``target`` names the real table in which a table's rows are written: on a branch another one."""
        self._catalog, self._shards, self._vectors, self._source = catalog, shards, vectors, source
        self._target = target

    # -- single statements -----------------------------------------------------------------------------------------

    def bind(
        self,
        plan: Plan,
        params: object,
        *,
        binds: Sequence[Bind] | None = None,
        winners: str = "",
        row: int | None = None,
    ) -> Bound:
        """The statement's values; vectors are stored and blobs staged in the running transaction."""
        chosen = plan.binds if binds is None else binds
        given = plan.resolve(params, chosen, winners=winners)
        bound, at = Bound([None] * len(chosen)), "" if row is None else f", row {row}"
        for i, (bind, value) in enumerate(zip(chosen, given, strict=True)):
            where = _where(plan, bind) + at
            kind = value.type if isinstance(value, Typed) else bind.type
            value = value.value if isinstance(value, Typed) else value
            if bind.column is not None or bind.source is None:
                self._keep_column(bound, i, plan, bind, kind, value, where)
            else:
                bound.values[i] = self._loose(bind, kind, value, where)
        self._stage(bound, plan.target)
        return bound

    def _keep_column(
        self, bound: Bound, i: int, plan: Plan, bind: Bind, kind: ColumnType | None, value: object, where: str
    ) -> None:
        if kind is None or bind.score or bind.many or value is None or kind.is_scalar:
            bound.values[i] = self._loose(bind, kind, value, where)
            if bind.column is not None and not bind.score and not bind.many:
                sample_of(bound, bind.column).scalars[bind.column] = scalars.jsonable(bound.values[i])
        elif kind.is_vector:
            bound.values[i] = self._store_vector(plan.target, bind.column, kind, value, where)
            if bind.column is not None:
                sample_of(bound, bind.column).scalars.setdefault("_dl", {})[bind.column] = bound.values[i]  # type: ignore[index]
        else:
            self._collect_blob(bound, i, bind.column or "value", kind, value, where)

    def _loose(self, bind: Bind, kind: ColumnType | None, value: object, where: str) -> scalars.SQLValue:
        """A value that no column keeps: a comparison's scalar, a score's query vector, a list for = ANY."""
        if bind.source == WINNERS:
            return str(value)
        if bind.many:
            return self._many(kind, value, where)
        if value is None:
            return None
        if kind is not None and not kind.is_scalar:
            return self._query_vector(kind, value, where) if kind.is_vector else self._blob_address(value, where)
        return scalars.plain(value, where) if kind is None else scalars.to_sql(kind)(value, where)

    def _query_vector(self, kind: ColumnType, value: object, where: str) -> bytes:
        vector = value.array() if isinstance(value, Vector) else value
        return codecs.encode_vector(ColumnType("VECTOR", "float32", kind.shape), vector, where)

    def _blob_address(self, value: object, where: str) -> int:
        address = value.address_in(self._source) if isinstance(value, Blob) else None
        if address is None:
            raise TypeMismatchError(
                f"{where} compares a blob column: pass a handle that a query of this store returned"
            )
        return address

    def _many(self, kind: ColumnType | None, value: object, where: str) -> str:
        if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
            raise TypeMismatchError(f"{where} expects a list, got {type(value).__name__}")
        encode = scalars.plain if kind is None else scalars.to_sql(kind)
        return json.dumps([encode(item, where) for item in value])

    def _store_vector(self, table: str | None, column: str | None, kind: ColumnType, value: object, where: str) -> int:
        if isinstance(value, Vector) and value.type == kind:
            address = value.address_in(self._source)
            if address is not None:
                return address
        data = codecs.encode_vector(kind, value.array() if isinstance(value, Vector) else value, where)
        return self._vectors.append(table or "", column or "", kind, data, 1)[0]

    def _collect_blob(self, bound: Bound, i: int, column: str, kind: ColumnType, value: object, where: str) -> None:
        bound.values[i] = self._own_address(kind, value)
        if bound.values[i] is not None:
            return
        sample = sample_of(bound, column)
        sample.members.append(_member(column, codecs.encode(kind, _content(value), where=where)))
        sample.slots.append(i)

    def _own_address(self, kind: ColumnType, value: object) -> int | None:
        """The address of a handle of this store that the column may hold as it is: stored again without a copy."""
        if not isinstance(value, Blob) or value.type.name != kind.name:
            return None
        if kind.name == "TENSOR" and kind.dtype is not None and value.type != kind:
            return None  # another dtype or shape was declared: to be checked like any tensor
        return value.address_in(self._source)

    def _stage(self, bound: Bound, table: str | None) -> None:
        bound.samples = [s for s in bound.samples if s.members]
        if not bound.samples:
            return
        bound.staged = self._shards.stage(table or "", [s.members for s in bound.samples])
        for sample, addresses in zip(bound.samples, bound.staged.addresses, strict=True):
            for slot, address in zip(sample.slots, addresses, strict=True):
                bound.values[slot] = address

    def finish(self, bound: Bound, plan: Plan, *, rowcount: int, lastrowid: int | None) -> None:
        """Write the staged bytes beside their scalars, after the statement has run."""
        if bound.staged is None:
            return
        described = [sample.scalars for sample in bound.samples]
        if plan.kind == "insert" and rowcount == 1 and len(described) == 1 and lastrowid is not None and plan.target:
            described = [self._read_back(plan.target, lastrowid, bound) or described[0]]
        self._shards.write(bound.staged, described)

    def _read_back(self, table: str, rowid: int, bound: Bound) -> dict[str, object] | None:
        """The row as inserted, defaults and generated id included; None if that rowid is not this statement's row."""
        definition, sample = self._catalog.tables()[table.lower()], bound.samples[0]
        kept = [c for c in definition.columns if c.type.is_scalar]
        first = quote_identifier(sample.members[0].column)
        names = quote_identifiers(c.name for c in kept) or "1"
        row = self._catalog.fetchone(
            f"SELECT {names} FROM main.{quote_identifier(self._target(table))} WHERE rowid = ? AND {first} = ?",
            (rowid, bound.values[sample.slots[0]]),
        )
        if row is None:
            return None
        found = {c.name: scalars.jsonable(v) for c, v in zip(kept, row, strict=False)}
        return {**found, **({"_dl": sample.scalars["_dl"]} if "_dl" in sample.scalars else {})}

    # -- bulk ------------------------------------------------------------------------------------------------------

    def insert_columns(
        self,
        table: Table,
        columns: Mapping[str, Any],
        count: int,
        *,
        first_row: int,
        validate: Validate,
        key: str | None,
        after_rowid: int | None,
    ) -> None:
        """Insert ``count`` rows given by column, in the running transaction; ``settle`` waits for their last bytes.

        ``key`` is the column that is the rowid, if there is one; ``after_rowid``, a rowid that all new ones are above,
        or None where they may lie anywhere.
        """
        chosen = _columns(table, columns)
        encoded: dict[str, Sequence[Any]] = {}
        blobs: dict[str, list[codecs.Encoded | None]] = {}
        for column, values in zip(chosen, columns.values(), strict=True):
            where = f"column {column.name!r} of {table.name!r}"
            if column.type.is_scalar:
                encoded[column.name] = self._scalar_column(column.type, values, where, first_row)
            elif column.type.is_vector:
                encoded[column.name] = self._vector_column(table.name, column, values, where, first_row)
            elif (stored := self._stored(column, values)) is not None:
                encoded[column.name] = stored
            else:
                encoded[column.name] = [self._own_address(column.type, v) for v in values]
                both = zip(values, encoded[column.name], strict=True)
                fresh = [_content(v) if a is None else None for v, a in both]
                blobs[column.name] = codecs.encode_many(
                    column.type, fresh, validate=validate, where=where, first_row=first_row
                )
        encoded, staged, kept = self._stage_columns(table, encoded, blobs, count)
        if not encoded:
            raise InputError(f"rows for {table.name!r} that name no column; give a column of each row, None for NULL")
        self._insert_rows(table, encoded)
        if staged is not None:
            filled = {} if after_rowid is None else self._defaults(table, encoded, key, after_rowid)
            documents = _documents(table, self._documented(table, {**encoded, **filled}), kept)
            self._shards.write(staged, documents, behind=True)

    def _stored(self, column: Column, values: object) -> Sequence[int | None] | None:
        """The addresses of blobs that are given as a whole column and are this store's."""
        return values.addresses_in(self._source, column.type) if isinstance(values, StoredBlobs) else None

    def _scalar_column(self, kind: ColumnType, values: Any, where: str, first_row: int) -> Sequence[Any]:
        return encode_column(kind, values, where, first_row=first_row)

    def _insert_rows(self, table: Table, encoded: Mapping[str, Sequence[Any]]) -> None:
        inserts.insert_columns(self._catalog, self._target(table.name), encoded)

    def _documented(self, _table: Table, columns: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
        """The columns as a sample's document has them."""
        return columns

    def settle(self) -> None:
        """Waits until the bytes of ``insert_columns`` are the system's: from then on the values may change."""
        self._vectors.settle()
        self._shards.settle()

    def _defaults(
        self, table: Table, encoded: Mapping[str, Sequence[Any]], key: str | None, after_rowid: int
    ) -> dict[str, Sequence[Any]]:
        """The scalar columns that the database filled in, in the order of the inserted rows."""
        given = {name.lower() for name in encoded}
        missing = [c.name for c in table.columns if c.type.is_scalar and c.name.lower() not in given]
        if not missing:
            return {}
        rows = self._catalog.fetchall(
            f"SELECT rowid, {quote_identifiers(missing)} FROM main.{quote_identifier(self._target(table.name))} "
            "WHERE rowid > ? ORDER BY rowid",
            (after_rowid,),
        )
        by_id = {row[0]: row[1:] for row in rows}
        ids = next((v for n, v in encoded.items() if key is not None and n.lower() == key.lower()), by_id)
        return {name: [by_id[i][place] for i in ids] for place, name in enumerate(missing)}

    def _vector_column(
        self, table: str, column: Column, values: Sequence[Any], where: str, first_row: int
    ) -> Sequence[Any]:
        present = values
        holes = not hasattr(values, "dtype") and any(v is None for v in values)
        if holes:
            present = [v for v in values if v is not None]
        if not len(present):
            return [None] * len(values)
        try:
            data = codecs.encode_vectors(column.type, present, where=where, first_row=first_row)
        except InputError:
            if holes:  # rows were counted without the NULLs: find the bad one by its own number
                for row, value in enumerate(values, first_row):
                    if value is not None:
                        codecs.encode_vector(column.type, value, f"{where}, row {row}")
            raise
        addresses = iter(self._vectors.append(table, column.name, column.type, data, len(present), behind=True))
        return [None if v is None else next(addresses) for v in values] if holes else list(addresses)

    def _stage_columns(
        self, table: Table, encoded: dict[str, Sequence[Any]], blobs: dict[str, list[codecs.Encoded | None]], count: int
    ) -> tuple[dict[str, Sequence[Any]], Staged | None, list[int]]:
        """The columns with the blobs' addresses, and what is staged for which rows."""
        if not blobs:
            return encoded, None, []
        samples = [
            [_member(name, item) for name, items in blobs.items() if (item := items[row]) is not None]
            for row in range(count)
        ]
        kept = [row for row, members in enumerate(samples) if members]
        if not kept:
            return encoded, None, []
        staged = self._shards.stage(table.name, [samples[row] for row in kept], bulk=True)
        filled = {name: list(encoded[name]) for name in blobs}
        for row, addresses in zip(kept, staged.addresses, strict=True):
            for member, address in zip(samples[row], addresses, strict=True):
                filled[member.column][row] = address
        return {**encoded, **filled}, staged, kept


def _documents(table: Table, encoded: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> list[bytes]:
    """Each row's scalars and vectors' addresses as the JSON of its sample, put together column by column."""
    kinds = {name: _column(table, name).type for name in encoded}
    scalar = [name for name, kind in kinds.items() if kind.is_scalar]
    vector = [name for name, kind in kinds.items() if kind.is_vector]
    fields = [f"{json.dumps(name, ensure_ascii=False)}:".replace("%", "%%") + "%s" for name in (*scalar, *vector)]
    inner = fields[len(scalar) :]
    template = ",".join((*fields[: len(scalar)], *([f'"_dl":{{{",".join(inner)}}}'] if inner else [])))
    texts = [_json_texts([encoded[name][row] for row in rows]) for name in (*scalar, *vector)]
    filled = map(f"{{{template}}}".__mod__, zip(*texts, strict=True)) if texts else ["{}"] * len(rows)
    return [text.encode() for text in filled]


def _json_texts(values: list[scalars.SQLValue]) -> list[str]:
    """The JSON of each value, by one call for all: JSON has no line breaks inside a scalar, so they can part them."""
    if not {bytes, float}.isdisjoint(map(type, values)):
        values = list(map(scalars.jsonable, values))  # type: ignore[arg-type]
    return _one_a_line(values)[1:-1].split("\n")


def _columns(table: Table, names: Iterable[object]) -> list[Column]:
    """The columns of these names, each given once."""
    chosen = [_column(table, name) for name in names]
    for column in chosen:
        if chosen.count(column) > 1:
            raise InputError(f"column {column.name!r} of {table.name!r} is given twice")
    return chosen


def _column(table: Table, name: object) -> Column:
    column = table.column(name) if isinstance(name, str) else None
    if column is None:
        known = ", ".join(c.name for c in table.columns)
        raise NotFoundError(f"table {table.name!r} has no column {name!r}; it has {known}")
    return column


def sample_of(bound: Bound, column: str) -> _Sample:
    """The sample that the next value of this column belongs to: a column's second value begins a second row."""
    if not bound.samples or column in bound.samples[-1].columns:
        bound.samples.append(_Sample())
    bound.samples[-1].columns.add(column)
    return bound.samples[-1]


def _content(value: object) -> object:
    """What a handle stands for, to be stored as a new blob: a tensor's values, other media's bytes."""
    if not isinstance(value, Blob):
        return value
    return value.decode() if value.type.name == "TENSOR" else value.bytes()


def _member(column: str, encoded: codecs.Encoded) -> Member:
    return Member(column, encoded.data, encoded.extension, encoded.info.to_json())


def _where(plan: Plan, bind: Bind) -> str:
    name = f"parameter {bind.source + 1}" if isinstance(bind.source, int) else f"parameter {bind.source!r}"
    if bind.column is None:
        return name
    return f"column {bind.column!r} of {plan.target!r} ({name})"
