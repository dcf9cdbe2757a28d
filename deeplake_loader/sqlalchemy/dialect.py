"""The dialect: how SQLAlchemy connects to a store, writes statements for it and looks at its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sqlalchemy import exc, pool
from sqlalchemy.engine import default, interfaces, reflection

from deeplake_loader import database, dbapi
from deeplake_loader.sqlalchemy.compiler import (
    COLSPECS,
    Compiler,
    DDLCompiler,
    PGIdentifierPreparer,
    PostgresCompiler,
    TypeCompiler,
)  # fmt: skip
from deeplake_loader.sqlalchemy.types import reflected

with suppress(ImportError):  # Alembic is no dependency; where it is installed it looks for this class
    from deeplake_loader.sqlalchemy import migrations as _migrations  # noqa: F401

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection

    from deeplake_loader.catalog import Location
    from deeplake_loader.database import Database
    from deeplake_loader.inspection import Description

SCHEMA = "public"
"""The one schema there is."""

OPTIONS: dict[str, Callable[[str], object]] = {
    "branch": str, "storage": str, "read_only": lambda text: _flag(text), "create": lambda text: _flag(text),
    "timeout_s": float,
}  # fmt: skip
"""What a URL's query may say, of `deeplake_loader.connect`'s options."""


class DeeplakeDialect(default.DefaultDialect):
    """``deeplake://<folder>?branch=main``."""

    name = "deeplake"
    driver = "deeplake"
    default_paramstyle = "numeric_dollar"
    statement_compiler: type[PostgresCompiler] = Compiler
    ddl_compiler, type_compiler_cls = DDLCompiler, TypeCompiler
    preparer = PGIdentifierPreparer
    colspecs = COLSPECS
    bind_typing = interfaces.BindTyping.RENDER_CASTS
    max_identifier_length = 63
    default_schema_name = SCHEMA

    supports_statement_cache = True
    supports_alter = False  # of constraints: they are part of CREATE TABLE
    supports_sane_rowcount = supports_sane_multi_rowcount = True
    supports_native_boolean = supports_native_decimal = supports_native_uuid = True
    supports_smallserial = supports_identity_columns = supports_virtual_generated_columns = True
    supports_default_values = supports_multivalues_insert = supports_default_metavalue = True
    supports_sequences = supports_comments = supports_native_enum = supports_schemas = False
    insert_returning = update_returning = delete_returning = True
    use_insertmanyvalues = True
    insertmanyvalues_page_size = 200  # a statement is compiled for each number of rows
    postfetch_lastrowid = favor_returning_over_lastrowid = True
    tuple_in_values = True
    returns_native_bytes = True
    _backslash_escapes = False
    _supports_create_index_concurrently = _supports_drop_index_concurrently = False
    _supports_jsonb_subscripting = False

    def __init__(
        self,
        json_serializer: Callable[[Any], str] | None = None,
        json_deserializer: Callable[[str], Any] | None = None,
        **options: Any,
    ) -> None:
        # $1 needs no escapes: % and : stay what they are in texts and operators
        super().__init__(**{"paramstyle": "numeric_dollar", **options})
        self._json_serializer, self._json_deserializer = json_serializer, json_deserializer

    @classmethod
    def import_dbapi(cls) -> ModuleType:
        return dbapi

    def create_connect_args(self, url: URL) -> tuple[list[Any], dict[str, Any]]:
        unknown = set(url.query) - set(OPTIONS)
        if unknown or not url.database:
            wrong = f"the option {min(unknown)!r}" if unknown else "no store"
            raise exc.ArgumentError(
                f"{url!r} names {wrong}; write deeplake:///folder, deeplake://org/name or "
                f"deeplake+postgresql://..., with the options {', '.join(OPTIONS)}"
            )
        return [_store_of(url)], taken(url.query)

    def connect(self, *arguments: Any, location: Location | None = None, **options: Any) -> Any:
        """A connection to the store of a URL; an engine of `Database.engine` says itself where its catalog is."""
        return dbapi.connect(*arguments, **options) if location is None else dbapi.reconnect(location, **options)

    @classmethod
    def get_dialect_cls(cls, url: URL) -> type[DeeplakeDialect]:
        """The dialect of the store in a folder, by its catalog."""
        if url.database and database.has_own_server(_store_of(url)):
            from deeplake_loader.sqlalchemy.postgres import PostgresDialect

            return PostgresDialect
        return cls

    @classmethod
    def get_pool_class(cls, url: URL) -> type[pool.Pool]:
        return pool.QueuePool

    # -- transactions ----------------------------------------------------------------------------------------------

    def get_isolation_level_values(self, dbapi_conn: Any) -> list[interfaces.IsolationLevel]:
        return ["SERIALIZABLE", "AUTOCOMMIT"]

    def get_default_isolation_level(self, dbapi_conn: Any) -> interfaces.IsolationLevel:
        return "SERIALIZABLE"

    def get_isolation_level(self, dbapi_connection: Any) -> interfaces.IsolationLevel:
        return "AUTOCOMMIT" if dbapi_connection.autocommit else "SERIALIZABLE"

    def set_isolation_level(self, dbapi_connection: Any, level: interfaces.IsolationLevel) -> None:
        dbapi_connection.autocommit = level == "AUTOCOMMIT"

    # -- what there is ---------------------------------------------------------------------------------------------

    def has_table(self, connection: Connection, table_name: str, schema: str | None = None, **kw: Any) -> bool:
        return table_name in self.get_table_names(connection, schema)

    def get_table_names(self, connection: Connection, schema: str | None = None, **kw: Any) -> list[str]:
        return [table.name for table in _store(connection).tables().values()] if schema in (None, SCHEMA) else []

    def get_schema_names(self, connection: Connection, **kw: Any) -> list[str]:
        return [SCHEMA]

    def has_schema(self, connection: Connection, schema_name: str, **kw: Any) -> bool:
        return schema_name == SCHEMA

    def get_view_names(self, connection: Connection, schema: str | None = None, **kw: Any) -> list[str]:
        return []

    get_temp_table_names = get_temp_view_names = get_sequence_names = get_materialized_view_names = get_view_names

    def get_view_definition(self, connection: Connection, view_name: str, schema: str | None = None, **kw: Any) -> str:
        raise exc.NoSuchTableError(view_name)

    @reflection.cache
    def has_index(
        self, connection: Connection, table_name: str, index_name: str, schema: str | None = None, **kw: Any
    ) -> bool:
        if not self.has_table(connection, table_name, schema):
            return False
        found = self._described(connection, table_name, schema, **kw)
        return any(index.name == index_name for index in found.indexes)

    @reflection.cache
    def _described(self, connection: Connection, table_name: str, schema: str | None = None, **kw: Any) -> Description:
        if not self.has_table(connection, table_name, schema):
            raise exc.NoSuchTableError(f"{schema}.{table_name}" if schema else table_name)
        return _store(connection).describe(table_name)

    def get_columns(
        self, connection: Connection, table_name: str, schema: str | None = None, **kw: Any
    ) -> list[interfaces.ReflectedColumn]:
        found = self._described(connection, table_name, schema, **kw)
        return list(_columns(found))

    def get_pk_constraint(
        self, connection: Connection, table_name: str, schema: str | None = None, **kw: Any
    ) -> interfaces.ReflectedPrimaryKeyConstraint:
        found = self._described(connection, table_name, schema, **kw)
        return {"constrained_columns": [] if found.added_key else list(found.table.primary_key), "name": found.key_name}

    def get_foreign_keys(
        self, connection: Connection, table_name: str, schema: str | None = None, **kw: Any
    ) -> list[interfaces.ReflectedForeignKeyConstraint]:
        found = self._described(connection, table_name, schema, **kw)
        return [
            {
                "name": key.name,
                "constrained_columns": list(key.columns),
                "referred_schema": schema,
                "referred_table": key.table,
                "referred_columns": list(key.targets),
                "options": _options(onupdate=key.on_update, ondelete=key.on_delete)
                | ({"deferrable": True, "initially": "DEFERRED"} if key.deferred else {}),
            }
            for key in found.foreign_keys
        ]

    def get_unique_constraints(
        self, connection: Connection, table_name: str, schema: str | None = None, **kw: Any
    ) -> list[interfaces.ReflectedUniqueConstraint]:
        found = self._described(connection, table_name, schema, **kw)
        return [{"name": key.name, "column_names": list(key.columns)} for key in found.unique]

    def get_check_constraints(
        self, connection: Connection, table_name: str, schema: str | None = None, **kw: Any
    ) -> list[interfaces.ReflectedCheckConstraint]:
        found = self._described(connection, table_name, schema, **kw)
        return [{"name": check.name, "sqltext": check.condition} for check in found.checks]

    def get_indexes(
        self, connection: Connection, table_name: str, schema: str | None = None, **kw: Any
    ) -> list[interfaces.ReflectedIndex]:
        found = self._described(connection, table_name, schema, **kw)
        return list(_indexes(found))


def _store_of(url: URL) -> str:
    return f"deeplake://{url.host}/{url.database}" if url.host else str(url.database)


def taken(query: Mapping[str, object]) -> dict[str, Any]:
    """The options of a URL's query, read."""
    return {name: OPTIONS[name](str(value)) for name, value in query.items()}


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise exc.ArgumentError(f"{text!r} is neither true nor false")
    return text.lower() in ("true", "1")


def _options(**given: Any) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _store(connection: Connection) -> Database:
    """The handle below a connection: the catalog knows its tables better than SQL could tell."""
    found: Database = connection.connection.dbapi_connection.database  # type: ignore[union-attr]
    return found


def _columns(found: Description) -> Iterator[interfaces.ReflectedColumn]:
    for column in found.table.columns:
        if column.name == found.added_key:  # nobody wrote it, and a tool that compares tables would drop it
            continue
        made: interfaces.ReflectedColumn = {
            "name": column.name,
            "type": reflected(column.type, found.lengths.get(column.name)),
            "nullable": column.nullable,
            "default": found.defaults.get(column.name),
            "autoincrement": column.name == found.counted,
        }
        if column.name in found.generated:
            made["computed"] = {"sqltext": found.generated[column.name], "persisted": True}
        yield made


def _indexes(found: Description) -> Iterator[interfaces.ReflectedIndex]:
    for index in found.indexes:
        made: interfaces.ReflectedIndex = {
            "name": index.name,
            "column_names": list(index.columns),
            "unique": index.unique,
            "dialect_options": _options(postgresql_where=index.where, postgresql_using=index.using),
        }
        if None in index.columns:
            made["expressions"] = list(index.expressions)
        yield made
