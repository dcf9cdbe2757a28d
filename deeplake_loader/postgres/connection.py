"""Where a database is, and how a connection to it is set up; the password is kept out of every text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import conninfo

from deeplake_loader.errors import InputError
from deeplake_loader.postgres import triggers
from deeplake_loader.postgres.failures import open_error
from deeplake_loader.postgres.names import bookkeeping_schema, check_identifier
from deeplake_loader.types import quote_identifiers

Connection = psycopg.Connection[tuple[Any, ...]]

_OWN = "schema"
_SECRET = ("password", "sslpassword", "passfile", "oauth_client_secret", "scram_client_key", "scram_server_key")
_MAX_MS = 2_147_483_647  # PostgreSQL counts milliseconds in 31 bits
_KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
"""A server that has vanished without a word is found out after 25 s of silence, not after two hours."""


@dataclass(frozen=True, slots=True)
class Address:
    """A database and the schema of its main branch: what libpq needs to connect, which may hold a password.

    >>> Address.parse("postgresql://me:secret@host/db?schema=team")
    Address(schema='team', shown='postgresql://me@host/db?schema=team')
    """

    conninfo: str = field(repr=False)
    schema: str
    shown: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """The address that a URL names.

        Raises:
            InputError: no URL that libpq understands, or a schema that cannot be main.
        """
        plain, schema = _take_schema(url)
        try:
            parts: dict[str, Any] = conninfo.conninfo_to_dict(plain)
        except psycopg.Error:
            raise InputError(
                "the URL of the database cannot be read; write postgresql://user:password@host:port/database, with "
                "special characters of the password percent-encoded"
            ) from None  # the driver's message quotes parts of the URL
        if schema.startswith(("_dl", "pg_")) or schema == "information_schema" or not schema:
            raise InputError(f"the schema {schema!r} is the database's own; choose another one for main")
        check_identifier(schema, "schema")
        return cls(conninfo.make_conninfo(**parts), schema, _shown(parts, schema))

    @classmethod
    def of(cls, parts: Mapping[str, str], *, shown: str) -> Address:
        """The address of a store's own server."""
        return cls(conninfo.make_conninfo(**parts), "public", shown)

    @property
    def bookkeeping(self) -> str:
        """The schema of the store's own tables."""
        return bookkeeping_schema(self.schema)

    def url(self) -> dict[str, Any]:
        """The parts of its URL as SQLAlchemy names them, without a password."""
        parts = {k: v for k, v in conninfo.conninfo_to_dict(self.conninfo).items() if v and k not in _SECRET}
        names = {"username": "user", "database": "dbname"}
        found: dict[str, Any] = {name: parts.pop(key, None) for name, key in names.items()}
        return found | {"query": {key: str(value) for key, value in parts.items()} | {_OWN: self.schema}}

    def secrets(self) -> tuple[str, ...]:
        """What must not be shown: passwords, as they are and as a URL has them."""
        parts = conninfo.conninfo_to_dict(self.conninfo)
        found = [str(parts[key]) for key in _SECRET if parts.get(key)]
        return tuple(text for value in found for text in (value, quote(value, safe="")) if len(text) > 0)

    def dial(self, *, read_only: bool, timeout_s: float, path: tuple[str, ...] = ()) -> Connection:
        """A connection in autocommit mode, its search path set.

        Args:
            timeout_s: for the connection itself (rounded up to 2 s, libpq's least) and for locks.
            path: schemas before main's.

        Raises:
            StoreError, NotFoundError: no such server or database, or it refuses the role.
        """
        parts = conninfo.conninfo_to_dict(self.conninfo)
        options: dict[str, object] = {"connect_timeout": max(2, round(timeout_s)), **_KEEPALIVE}
        options["fallback_application_name"] = "deeplake_loader"
        options |= {key: value for key, value in parts.items() if value is not None}
        try:
            connection = psycopg.connect(**options, autocommit=True)  # type: ignore[arg-type]
            try:
                self._set_up(connection, read_only, timeout_s, path)
            except BaseException:
                connection.close()
                raise
        except psycopg.Error as error:
            raise open_error(error, self.shown, self.secrets()) from None
        return connection

    def _set_up(self, connection: Connection, read_only: bool, timeout_s: float, path: tuple[str, ...]) -> None:
        settings = {
            "search_path": self.search_path(path),
            "lock_timeout": str(max(1, min(_MAX_MS, round(timeout_s * 1000)))),
            "timezone": "UTC",
            "datestyle": "ISO",
            triggers.CLIENT: "1",  # it numbers its commits itself
            "cursor_tuple_fraction": "1",  # every cursor of ours is read to its end
            "default_transaction_read_only": "on" if read_only else "off",
        }
        calls = ", ".join(["set_config(%s, %s, false)"] * len(settings))
        connection.execute(f"SELECT {calls}", [text for item in settings.items() for text in item])

    def search_path(self, before: tuple[str, ...] = ()) -> str:
        """The search path of a handle: ``before``, main's schema, the bookkeeping, public (where extensions are)."""
        return quote_identifiers(dict.fromkeys((*before, self.schema, self.bookkeeping, "public")))


@lru_cache(maxsize=64)
def _take_schema(url: str) -> tuple[str, str]:
    """The URL without our own parameter, and main's schema."""
    from urllib.parse import parse_qsl, urlencode

    head, mark, query = url.partition("?")
    if not mark:
        return url, "public"
    given = parse_qsl(query, keep_blank_values=True)
    schema = next((value for key, value in given if key == _OWN), "public")
    rest = [(key, value) for key, value in given if key != _OWN]
    return (f"{head}?{urlencode(rest, quote_via=quote)}" if rest else head), schema


def _shown(parts: dict[str, Any], schema: str) -> str:
    user = f"{parts['user']}@" if parts.get("user") else ""
    host, port = str(parts.get("host") or ""), f":{parts['port']}" if parts.get("port") else ""
    address = f"postgresql://{user}{quote(host, safe=',:[]')}{port}/{parts.get('dbname') or ''}"
    return address if schema == "public" else f"{address}?schema={schema}"
