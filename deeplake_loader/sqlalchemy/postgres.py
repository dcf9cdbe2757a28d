"""The dialect over a catalog in PostgreSQL: SQLAlchemy's own SQL runs there as it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sqlalchemy import exc
from sqlalchemy.engine import interfaces

from deeplake_loader.sqlalchemy.compiler import PostgresCompiler, PostgresTypeCompiler
from deeplake_loader.sqlalchemy.dialect import OPTIONS, DeeplakeDialect, taken

if TYPE_CHECKING:
    from sqlalchemy import URL

_SECRET = ("password", "sslpassword", "oauth_client_secret")


class PostgresDialect(DeeplakeDialect):
    """``deeplake+postgresql://user:password@host/database?branch=main``, and ``deeplake:///folder`` of a store with a
    server of its own."""

    driver = "postgresql"
    supports_statement_cache = True  # said anew by every class
    statement_compiler, type_compiler_cls = PostgresCompiler, PostgresTypeCompiler
    supports_alter = True

    def create_connect_args(self, url: URL) -> tuple[list[Any], dict[str, Any]]:
        if url.get_driver_name() != "postgresql" or "+" not in url.drivername:
            return super().create_connect_args(url)
        secret = next((name for name in _SECRET if name in url.query), None)
        if secret is not None or not url.database:
            wrong = f"{secret!r} in its query, where texts show it" if secret else "no database"
            raise exc.ArgumentError(
                f"the URL has {wrong}; write deeplake+postgresql://user:password@host:port/database, with the options "
                f"{', '.join(OPTIONS)}, schema and libpq's own"
            )
        options = {name: value for name, value in url.query.items() if name in OPTIONS}
        plain = url.difference_update_query(options).set(drivername="postgresql", database=quote(url.database, safe=""))
        return [plain.render_as_string(hide_password=False)], taken(options)

    # -- transactions ----------------------------------------------------------------------------------------------

    def get_isolation_level_values(self, dbapi_conn: Any) -> list[interfaces.IsolationLevel]:
        return ["READ COMMITTED", "AUTOCOMMIT"]

    def get_default_isolation_level(self, dbapi_conn: Any) -> interfaces.IsolationLevel:
        return "READ COMMITTED"

    def get_isolation_level(self, dbapi_connection: Any) -> interfaces.IsolationLevel:
        return "AUTOCOMMIT" if dbapi_connection.autocommit else "READ COMMITTED"
