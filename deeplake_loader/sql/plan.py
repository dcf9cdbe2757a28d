"""A compiled statement: the SQLite text, what each ``?`` takes, what each result column is. Pure data, no parser.

A plan is a function of the statement's text and the schema alone, so the catalog keeps it as JSON and a second process
runs the statement without compiling it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal

from deeplake_loader.errors import InputError
from deeplake_loader.types import RESERVED_PREFIX, ColumnType, Table, VectorIndex

Kind = Literal[
    "select", "insert", "update", "delete", "create_table", "create_index", "drop_table", "drop_index", "alter_table",
    "other",
]  # fmt: skip
Style = Literal["none", "positional", "named"]
Metric = Literal["cosine", "l2", "inner"]
Constant = str | int | float | None

WINNERS = "_dl_winners"
"""Source of the bind that takes the fast path's winners: a JSON array of addresses."""

CHOSEN_KEYS = "temp._dl_chosen"
"""The TEMP table in which a statement that chooses its rows by a volatile function finds their keys.

Its columns are the primary key's."""

PLAN_VERSION = 5
"""Plans of another version are compiled again."""


@dataclass(frozen=True, slots=True)
class Bind:
    """What one ``?`` takes.

    Fields: ``source``, the position (from 0) or name of the user's parameter, ``WINNERS``, or None for ``constant``;
    ``type``, how the value is written for SQLite (None: a plain scalar); ``column``, the column on whose value path
    it stands (None: a comparison, so bytes, paths and arrays have no business here); ``score``, a score's query vector
    (written as float32 of the type's dimension); ``many``, a list of such values, written as one JSON array.
    """

    source: int | str | None
    type: ColumnType | None = None
    column: str | None = None
    score: bool = False
    many: bool = False
    constant: Constant = None

    def to_data(self) -> list[Any]:
        kind = None if self.type is None else str(self.type)
        return [self.source, kind, self.column, int(self.score), int(self.many), self.constant]

    @classmethod
    def from_data(cls, data: Sequence[Any]) -> Bind:
        source, kind, column, score, many, constant = data
        return cls(source, _type(kind), column, bool(score), bool(many), constant)


@dataclass(frozen=True, slots=True)
class ResultColumn:
    """One result column: its name as PostgreSQL gives it, its type (None: as SQLite returns it)."""

    name: str
    type: ColumnType | None


@dataclass(frozen=True, slots=True)
class FastPath:
    """The same result by scoring only once and in one go.

    ``candidates_sql`` gives one row, one text: the addresses of every row that the block's own FROM and WHERE let
    through, joined by commas, repeats kept (NULL when there is none). K = limit + offset of them win; ``final_sql`` is
    the user's statement with the winners' addresses as one more condition of that block. ``whole``: the candidates are
    every vector in the table's column.
    """

    candidates_sql: str
    candidate_binds: tuple[Bind, ...]
    final_sql: str
    final_binds: tuple[Bind, ...]
    table: str
    column: str
    metric: Metric
    largest: bool
    limit: Bind | int
    offset: Bind | int
    query: Bind
    whole: bool = False

    def to_data(self) -> list[Any]:
        limit, offset = (n if isinstance(n, int) else n.to_data() for n in (self.limit, self.offset))
        first, final = ([b.to_data() for b in binds] for binds in (self.candidate_binds, self.final_binds))
        return [self.candidates_sql, first, self.final_sql, final, self.table, self.column,
                self.metric, int(self.largest), limit, offset, self.query.to_data(), int(self.whole)]  # fmt: skip

    @classmethod
    def from_data(cls, data: Sequence[Any]) -> FastPath:
        candidates, first, final, last, table, column, metric, largest, limit, offset, query, whole = data
        return cls(
            candidates, _binds(first), final, _binds(last), table, column, metric, bool(largest),
            _count(limit), _count(offset), Bind.from_data(query), bool(whole),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Counted:
    """The same counts over the parts of a table whose rows lie in several places."""

    table: str
    sql: str
    binds: tuple[Bind, ...]

    def to_data(self) -> list[Any]:
        return [self.table, self.sql, [b.to_data() for b in self.binds]]

    @classmethod
    def from_data(cls, data: Sequence[Any]) -> Counted:
        table, sql, binds = data
        return cls(table, sql, _binds(binds))


@dataclass(frozen=True, slots=True)
class Plan:
    """One compiled statement.

    Fields: ``kind``; ``sql`` for SQLite, each parameter a ``?``; ``binds``, one per ``?`` in order; ``style`` and
    ``parameters``, how and which parameters the user passes; ``results``, empty when no rows come back; ``target``, the
    table written, made or dropped; ``insert_columns``, the columns an INSERT fills, in order; ``returning``; ``fast``;
    ``reads``, the tables read; ``definition``, a table as it is after CREATE or ALTER (None for DROP); ``missing_ok``,
    IF EXISTS / IF NOT EXISTS was written; ``renames``, (old, new) column names of ALTER TABLE; ``ordered``, a SELECT
    with an ORDER BY of its own; ``index``, the vector index that CREATE INDEX makes.
    """

    kind: Kind
    sql: str
    binds: tuple[Bind, ...] = ()
    style: Style = "none"
    parameters: tuple[int | str, ...] = ()
    results: tuple[ResultColumn, ...] = ()
    target: str | None = None
    insert_columns: tuple[str, ...] = ()
    returning: bool = False
    fast: FastPath | None = None
    reads: tuple[str, ...] = ()
    definition: Table | None = None
    missing_ok: bool = False
    renames: tuple[tuple[str, str], ...] = ()
    keys_sql: str | None = None
    keys_binds: tuple[Bind, ...] = ()
    keys_once: bool = False
    counted: Counted | None = None
    ordered: bool = False
    index: VectorIndex | None = None

    @property
    def writes(self) -> bool:
        """Whether it changes rows or tables."""
        return self.kind != "select"

    @property
    def table_sql(self) -> str | None:
        """CREATE TABLE as SQLite is given it; None for other statements."""
        return self.sql if self.kind == "create_table" else None

    def resolve(self, params: object = None, binds: Sequence[Bind] | None = None, *, winners: str = "") -> list[object]:
        """The user's value for each bind (default: the plan's own), not yet encoded.

        Raises InputError for parameters of the wrong kind, number or names.

        >>> Plan("select", "SELECT ?", (Bind(0),), "positional", (0,)).resolve(["x"])
        ['x']
        """
        values = self._checked(params)
        return [_value(bind, values, winners) for bind in (self.binds if binds is None else binds)]

    def _checked(self, params: object) -> Mapping[int | str, object]:
        if self.style == "named":
            return self._named(params)
        given = _positional(params, len(self.parameters))
        if len(given) != len(self.parameters):
            raise InputError(
                f"the statement has {len(self.parameters)} placeholders and got {len(given)} parameters; "
                "pass one value per placeholder, in order"
            )
        return dict(enumerate(given))

    def _named(self, params: object) -> Mapping[int | str, object]:
        names = ", ".join(str(name) for name in self.parameters)
        if not isinstance(params, Mapping):
            raise InputError(f"the statement names its parameters ({names}); pass a dict, got {type(params).__name__}")
        missing = [str(name) for name in self.parameters if name not in params]
        if missing:
            found = ", ".join(map(str, params)) or "none"
            raise InputError(f"no value for the parameters {', '.join(missing)}; got {found}")
        return params

    def to_json(self) -> str:
        """The plan as the catalog keeps it."""
        return json.dumps(
            {
                "version": PLAN_VERSION,
                "kind": self.kind,
                "sql": self.sql,
                "binds": [b.to_data() for b in self.binds],
                "style": self.style,
                "parameters": self.parameters,
                "results": [[r.name, None if r.type is None else str(r.type)] for r in self.results],
                "target": self.target,
                "insert_columns": self.insert_columns,
                "returning": self.returning,
                "fast": None if self.fast is None else self.fast.to_data(),
                "reads": self.reads,
                "definition": None if self.definition is None else self.definition.to_json(),
                "missing_ok": self.missing_ok,
                "renames": self.renames,
                "keys_sql": self.keys_sql,
                "keys_binds": [b.to_data() for b in self.keys_binds],
                "keys_once": self.keys_once,
                "counted": None if self.counted is None else self.counted.to_data(),
                "ordered": self.ordered,
                "index": None if self.index is None else astuple(self.index),
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> Plan | None:
        """The plan that ``to_json`` wrote, or None when another version of this package wrote it."""
        data = json.loads(text)
        if data["version"] != PLAN_VERSION:
            return None
        return cls(
            kind=data["kind"],
            sql=data["sql"],
            binds=_binds(data["binds"]),
            style=data["style"],
            parameters=tuple(data["parameters"]),
            results=tuple(ResultColumn(name, _type(kind)) for name, kind in data["results"]),
            target=data["target"],
            insert_columns=tuple(data["insert_columns"]),
            returning=data["returning"],
            fast=None if data["fast"] is None else FastPath.from_data(data["fast"]),
            reads=tuple(data["reads"]),
            definition=None if data["definition"] is None else Table.from_json(data["definition"]),
            missing_ok=data["missing_ok"],
            renames=tuple((old, new) for old, new in data["renames"]),
            keys_sql=data["keys_sql"],
            keys_binds=_binds(data["keys_binds"]),
            keys_once=data["keys_once"],
            counted=None if data["counted"] is None else Counted.from_data(data["counted"]),
            ordered=data["ordered"],
            index=None if data["index"] is None else VectorIndex(*data["index"]),
        )


def _positional(params: object, expected: int) -> Sequence[object]:
    if params is None or (isinstance(params, Mapping) and not params):
        return ()
    if isinstance(params, Mapping):
        raise InputError(f"the statement has {expected} positional placeholders; pass a list, not a dict of names")
    if isinstance(params, str | bytes) or not isinstance(params, Sequence):
        raise InputError(f"parameters must be a list or tuple, got {type(params).__name__}; write [value]")
    return params


def less_name(table: str) -> str:
    """The TEMP view of main's rows that are hidden on a branch."""
    return f"{RESERVED_PREFIX}less_{table}"


def more_name(table: str) -> str:
    """The TEMP view of the rows that are shown besides main's."""
    return f"{RESERVED_PREFIX}more_{table}"


def _value(bind: Bind, values: Mapping[int | str, object], winners: str) -> object:
    if bind.source is None:
        return bind.constant
    return winners if bind.source == WINNERS else values[bind.source]


def _type(text: str | None) -> ColumnType | None:
    return None if text is None else ColumnType.parse(text)


def _binds(data: Sequence[Sequence[Any]]) -> tuple[Bind, ...]:
    return tuple(map(Bind.from_data, data))


def _count(data: Any) -> Bind | int:
    return data if isinstance(data, int) else Bind.from_data(data)
