"""PostgreSQL's SQL as SQLAlchemy writes it, with parameters that say their type, for the store's compiler to read."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql.base import PGCompiler, PGDDLCompiler, PGIdentifierPreparer, PGTypeCompiler
from sqlalchemy.sql import sqltypes

__all__ = [
    "COLSPECS", "Compiler", "DDLCompiler", "PGIdentifierPreparer", "PostgresCompiler", "PostgresTypeCompiler",
    "TypeCompiler",
]  # fmt: skip


class PostgresCompiler(PGCompiler):
    """Statements for PostgreSQL."""

    _bare = False

    def render_bind_cast(self, type_: Any, dbapi_type: Any, sqltext: str) -> str:
        if self._bare:
            return sqltext
        text: str = super().render_bind_cast(type_, dbapi_type, sqltext)  # type: ignore[no-untyped-call]
        return text

    def limit_clause(self, select: Any, **kw: Any) -> str:
        self._bare = True  # a bound LIMIT takes the fast path of a search, an expression does not
        text: str = super().limit_clause(select, **kw)  # type: ignore[no-untyped-call]
        self._bare = False
        return text


class Compiler(PostgresCompiler):
    """Statements for SQLite."""

    def visit_frame_clause(self, frameclause: Any, **kw: Any) -> str:
        self._bare = True  # SQLite wants a plain number
        text: str = super().visit_frame_clause(frameclause, **kw)  # type: ignore[no-untyped-call]
        self._bare = False
        return text

    def visit_json_path_getitem_op_binary(
        self, binary: Any, operator: Any, _cast_applied: bool = False, **kw: Any
    ) -> str:
        kw |= {"literal_execute": True, "_cast_applied": _cast_applied}  # a path is compiled into the statement
        text: str = super().visit_json_path_getitem_op_binary(binary, operator, **kw)  # type: ignore[no-untyped-call]
        return text


class DDLCompiler(PGDDLCompiler):
    """Definitions."""


class TypeCompiler(PGTypeCompiler):
    """Type names. CHAR(n), whose blanks no other database counts alike, is kept as VARCHAR(n)."""

    def visit_CHAR(self, type_: Any, **kw: Any) -> str:
        text: str = self.visit_VARCHAR(type_, **kw)
        return text

    visit_NCHAR = visit_NVARCHAR = visit_CHAR

    def visit_uuid(self, type_: Any, **kw: Any) -> str:
        return "UUID" if type_.native_uuid else "VARCHAR(32)"


class PostgresTypeCompiler(TypeCompiler):
    """The same for PostgreSQL, where JSON is jsonb as a store has it: json has no equality."""

    def visit_JSON(self, type_: Any, **kw: Any) -> str:
        text: str = self.visit_JSONB(type_, **kw)  # type: ignore[no-untyped-call]
        return text


class _Typed:
    """A parameter that says its type: ``$1::DATE``. Where nothing else does, it would come back as it is stored."""

    render_bind_cast = True


class _String(_Typed, sa.String):
    pass


class _Text(_Typed, sa.Text):
    pass


class _Integer(_Typed, sa.Integer):
    pass


class _SmallInteger(_Typed, sa.SmallInteger):
    pass


class _BigInteger(_Typed, sa.BigInteger):
    pass


class _Float(_Typed, sa.Float[Any]):
    pass


class _Numeric(_Typed, sa.Numeric[Any]):
    pass


class _Boolean(_Typed, sa.Boolean):
    pass


class _Date(_Typed, sa.Date):
    def bind_processor(self, dialect: Any) -> Any:
        return lambda value: value.date() if isinstance(value, dt.datetime) else value


class _DateTime(_Typed, sa.DateTime):
    pass


class _Time(_Typed, sa.Time):
    pass


class _Uuid(_Typed, sa.Uuid[Any]):
    pass


class _Binary(_Typed, sa.LargeBinary):
    pass


class _JSON(_Typed, sa.JSON):
    def result_processor(self, dialect: Any, coltype: object) -> Any:
        """Documents come back read; only an engine's own ``json_deserializer`` gets them as text once more."""
        read = dialect._json_deserializer
        return None if read is None else lambda value: None if value is None else read(json.dumps(value))


COLSPECS: dict[type[Any], type[Any]] = {
    sa.Enum: sa.Enum, sa.String: _String, sa.Text: _Text, sa.Integer: _Integer, sa.SmallInteger: _SmallInteger,
    sa.BigInteger: _BigInteger, sa.Numeric: _Numeric, sa.Float: _Float, sa.Boolean: _Boolean, sa.Date: _Date,
    sa.DateTime: _DateTime, sa.Time: _Time, sa.Uuid: _Uuid, sa.LargeBinary: _Binary, sa.JSON: _JSON,
    sqltypes.JSON.JSONPathType: postgresql.json.JSONPathType,
}  # fmt: skip
