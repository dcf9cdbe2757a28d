"""Column types between this package and PostgreSQL: what CREATE TABLE says, and what a table's columns turn out to be.

    ours                                  PostgreSQL's
    scalars                               its own types, JSON and JSONB both jsonb (json has no equality)
    VECTOR(n), VECTOR(n, float16)         vector(n), halfvec(n); real[] with a CHECK without pgvector
    IMAGE VIDEO AUDIO TENSOR BLOB         bigint: an address

A type of PostgreSQL's that has no counterpart (text[], inet, an enum) is ``TEXT(native='text[]')``: its values pass
through as psycopg takes and gives them.
"""

from __future__ import annotations

from deeplake_loader.types import ColumnType

OIDS = {
    16: "BOOLEAN", 17: "BYTEA", 18: "TEXT", 19: "TEXT", 20: "BIGINT", 21: "SMALLINT", 23: "INTEGER", 25: "TEXT",
    114: "JSON", 700: "REAL", 701: "DOUBLE", 1042: "TEXT", 1043: "TEXT", 1082: "DATE", 1083: "TIME", 1114: "TIMESTAMP",
    1184: "TIMESTAMPTZ", 1186: "INTERVAL", 1700: "NUMERIC", 2950: "UUID", 3802: "JSON",
}  # fmt: skip
"""PostgreSQL's numbers of its own types, which are the same in every database."""

NATIVE = "native"
_MAX_PRECISION = 1_000


def is_native(kind: ColumnType) -> bool:
    """Whether it is a type of PostgreSQL's that this package only passes through."""
    return kind.name == "TEXT" and kind.option(NATIVE) is not None


def type_of(oid: int, modifier: int, spelled: str) -> ColumnType:
    """The type of a column by PostgreSQL's number, its modifier (-1: none) and its spelling.

    >>> str(type_of(1700, (10 << 16 | 2) + 4, "numeric(10,2)")), str(type_of(1009, -1, "text[]"))
    ('NUMERIC(10, 2)', "TEXT(native='text[]')")
    """
    name = OIDS.get(oid)
    if name is None:
        return ColumnType("TEXT", options=((NATIVE, spelled),))
    if name == "NUMERIC" and modifier >= 4:
        precision, scale = (modifier - 4) >> 16, (modifier - 4) & 0x7FF
        if precision <= _MAX_PRECISION and scale <= precision:
            return ColumnType(name, options=(("precision", precision), ("scale", scale)))
    return ColumnType(name)
