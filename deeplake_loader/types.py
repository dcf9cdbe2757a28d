"""Column types, table definitions and addresses: the words the whole package is written in. Imports nothing heavy."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from deeplake_loader.errors import InputError

SCALARS = (
    "TEXT", "SMALLINT", "INTEGER", "BIGINT", "REAL", "DOUBLE", "NUMERIC", "BOOLEAN",
    "TIMESTAMP", "TIMESTAMPTZ", "DATE", "TIME", "INTERVAL", "JSON", "UUID", "BYTEA",
)  # fmt: skip
BLOBS = ("IMAGE", "VIDEO", "AUDIO", "TENSOR", "BLOB")
VECTOR_DTYPES = ("float32", "float16")
TENSOR_DTYPES = (
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
    "float16", "bfloat16", "float32", "float64", "complex64", "complex128",
)  # fmt: skip
_STORED_APART = frozenset((*BLOBS, "VECTOR"))
MAX_DIMENSION = 65_536

RESERVED_PREFIX = "_dl_"
"""Tables, columns and functions that begin so are ours; the user's may not."""

ORDINAL_BITS = 30
FILE_BITS = 23
MAX_FILE = (1 << FILE_BITS) - 1
MAX_ORDINAL = (1 << ORDINAL_BITS) - 1


def pack_address(file: int, ordinal: int) -> int:
    """The integer by which SQL names a blob or a vector: ``file << 30 | ordinal``, always below 2**53.

    >>> pack_address(3, 7)
    3221225479
    """
    if not 1 <= file <= MAX_FILE:
        raise InputError(f"file number {file} is outside 1..{MAX_FILE}")
    if not 0 <= ordinal <= MAX_ORDINAL:
        raise InputError(f"ordinal {ordinal} is outside 0..{MAX_ORDINAL}")
    return file << ORDINAL_BITS | ordinal


def unpack_address(address: int) -> tuple[int, int]:
    """(file number, ordinal) of an address."""
    return address >> ORDINAL_BITS, address & MAX_ORDINAL


@dataclass(frozen=True, slots=True)
class ColumnType:
    """One column's type.

    Fields: ``name`` in the canonical spelling above (VECTOR and the blob types included); ``dtype`` of a VECTOR
    (float32, float16) or TENSOR; ``shape`` of a TENSOR (None for a free dimension) or (n,) of a VECTOR; ``options``,
    the sorted (name, value) pairs in ``VIDEO(codec='h264', crf=18)`` or the numbers of ``NUMERIC(10, 2)`` under
    ``precision`` and ``scale``.
    """

    name: str
    dtype: str | None = None
    shape: tuple[int | None, ...] | None = None
    options: tuple[tuple[str, str | int], ...] = ()

    def __post_init__(self) -> None:
        if self.name not in (*SCALARS, *BLOBS, "VECTOR"):
            raise InputError(f"unknown column type {self.name!r}; known are {', '.join((*SCALARS, *BLOBS, 'VECTOR'))}")
        if self.name == "VECTOR":
            self._check_vector()
        elif self.name == "TENSOR" and self.dtype is not None and self.dtype not in TENSOR_DTYPES:
            raise InputError(f"TENSOR of {self.dtype!r}: the dtype must be one of {', '.join(TENSOR_DTYPES)}")

    def _check_vector(self) -> None:
        if self.dtype not in VECTOR_DTYPES:
            raise InputError(f"VECTOR of {self.dtype!r}: the dtype must be one of {', '.join(VECTOR_DTYPES)}")
        if (
            self.shape is None
            or len(self.shape) != 1
            or self.shape[0] is None
            or not 1 <= self.shape[0] <= MAX_DIMENSION
        ):
            raise InputError(f"VECTOR needs a dimension of 1..{MAX_DIMENSION}, got {self.shape}; write VECTOR(768)")

    @property
    def is_vector(self) -> bool:
        return self.name == "VECTOR"

    @property
    def is_blob(self) -> bool:
        return self.name in BLOBS

    @property
    def is_scalar(self) -> bool:
        return self.name not in _STORED_APART

    @property
    def dimension(self) -> int:
        """Length of a VECTOR; an error for other types."""
        if self.name != "VECTOR" or self.shape is None or self.shape[0] is None:
            raise InputError(f"{self} has no dimension")
        return self.shape[0]

    def option(self, name: str) -> str | int | None:
        return dict(self.options).get(name)

    def refuse_other_options(self, known: Collection[str], where: str) -> None:
        """Raises InputError for an option that is none of these."""
        unknown = sorted({name for name, _ in self.options} - set(known))
        if unknown:
            raise InputError(f"{where}: {self} has no option {', '.join(unknown)}; it has {', '.join(known)}")

    def __str__(self) -> str:
        """The SQL spelling: ``VECTOR(768)``, ``TENSOR(float16, 4, *, *)``, ``VIDEO(codec='h264', crf=18)``."""
        parts: list[str] = []
        if self.name == "VECTOR":
            parts = [str(self.dimension)] + ([self.dtype] if self.dtype and self.dtype != "float32" else [])
        elif self.name == "TENSOR" and self.dtype is not None:
            parts = [self.dtype, *("*" if d is None else str(d) for d in self.shape or ())]
        elif self.name == "NUMERIC":
            parts = [str(v) for _, v in self.options]
        else:
            parts = [f"{k}={v}" if isinstance(v, int) else f"{k}='{v}'" for k, v in self.options]
        return f"{self.name}({', '.join(parts)})" if parts else self.name

    @classmethod
    def parse(cls, text: str) -> ColumnType:
        """The type that ``str(type)`` spelled, any case.

        >>> ColumnType.parse("tensor(float16, 4, *, *)").shape
        (4, None, None)
        """
        match = re.fullmatch(r"\s*([A-Za-z]+)\s*(?:\((.*)\))?\s*", text, re.DOTALL)
        if match is None:
            raise InputError(
                f"cannot read the column type {text!r}; write for example VECTOR(768) or TENSOR(float16, 4, 64, 64)"
            )
        name, arguments = match[1].upper(), [a.strip() for a in match[2].split(",")] if match[2] else []
        if name == "VECTOR":
            return cls._vector(arguments, text)
        if name == "TENSOR":
            return cls._tensor(arguments, text)
        if name == "NUMERIC":
            return cls(name, options=tuple(zip(("precision", "scale"), map(int, arguments), strict=False)))
        return cls(name, options=tuple(sorted(map(_option, arguments))))

    @classmethod
    def _vector(cls, arguments: list[str], text: str) -> ColumnType:
        if len(arguments) not in (1, 2) or not arguments[0].isdigit():
            raise InputError(f"cannot read {text.strip()!r}; write VECTOR(768) or VECTOR(768, float16)")
        return cls(
            "VECTOR", dtype=arguments[1].lower() if len(arguments) == 2 else "float32", shape=(int(arguments[0]),)
        )

    @classmethod
    def _tensor(cls, arguments: list[str], text: str) -> ColumnType:
        if not arguments:
            return cls("TENSOR")
        dims = arguments[1:]
        if any(d != "*" and not d.isdigit() for d in dims):
            raise InputError(f"cannot read {text.strip()!r}; write TENSOR(float16, 4, 64, 64), * for a free dimension")
        return cls(
            "TENSOR", dtype=arguments[0].lower(), shape=tuple(None if d == "*" else int(d) for d in dims) or None
        )


def _option(argument: str) -> tuple[str, str | int]:
    name, equals, value = argument.partition("=")
    if not equals:
        raise InputError(
            f"cannot read the type option {argument!r}; write name=value, for example VIDEO(codec='h264', crf=18)"
        )
    value = value.strip()
    return name.strip().lower(), int(value) if re.fullmatch(r"-?\d+", value) else value.strip("'\"")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: its name as the user wrote it, its type, and whether it may be NULL."""

    name: str
    type: ColumnType
    nullable: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """A table's definition: columns in order and the primary key's column names."""

    name: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]
    _by_name: dict[str, Column] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._by_name.update((c.name.lower(), c) for c in self.columns)

    def column(self, name: str) -> Column | None:
        """The column of that name, compared without case as SQL does; None where there is none."""
        return self._by_name.get(name.lower())

    @property
    def blobs(self) -> tuple[Column, ...]:
        return tuple(c for c in self.columns if c.type.is_blob)

    @property
    def vectors(self) -> tuple[Column, ...]:
        return tuple(c for c in self.columns if c.type.is_vector)

    def to_json(self) -> str:
        """The definition as the catalog stores it."""
        columns = [[c.name, str(c.type), c.nullable] for c in self.columns]
        return json.dumps({"name": self.name, "columns": columns, "primary_key": self.primary_key})

    @classmethod
    def from_json(cls, text: str) -> Table:
        data = json.loads(text)
        columns = tuple(Column(name, ColumnType.parse(kind), nullable) for name, kind, nullable in data["columns"])
        return cls(data["name"], columns, tuple(data["primary_key"]))


@dataclass(frozen=True, slots=True)
class VectorIndex:
    """An index on a vector column: its name, what it is on, its ``kind`` ("ivf"), the ``metric`` of the searches it
    serves ("cosine", "l2" or "inner"), and how many ``lists`` a file gets (None: as many as suit its rows)."""

    name: str
    table: str
    column: str
    kind: str = "ivf"
    metric: str = "cosine"
    lists: int | None = None


def quote_identifier(name: str) -> str:
    """The name as a double-quoted SQL identifier; a NUL is refused because SQLite would cut the name there."""
    if "\0" in name:
        raise InputError(f"a name may not hold a NUL character: {name!r}")
    return '"' + name.replace('"', '""') + '"'


def quote_identifiers(names: Iterable[str]) -> str:
    """Several quoted identifiers, joined by commas."""
    return ", ".join(map(quote_identifier, names))
