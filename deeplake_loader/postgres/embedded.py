"""The catalog of a store that brings its own PostgreSQL server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deeplake_loader import store
from deeplake_loader.catalog import check_timeout
from deeplake_loader.errors import NotFoundError
from deeplake_loader.postgres import bookkeeping
from deeplake_loader.postgres.catalog import PostgresCatalog
from deeplake_loader.postgres.connection import Address, Connection
from deeplake_loader.postgres.server import Server, is_there
from deeplake_loader.storage import Access, open_root


@dataclass(frozen=True, slots=True)
class ServerLocation:
    """The folder of a store with a server of its own."""

    root: store.Root

    def open(self, *, create: bool = False, read_only: bool = False, timeout_s: float = 30.0) -> EmbeddedPostgres:
        """Its catalog."""
        return EmbeddedPostgres.start(
            self.root.folder, root=self.root, create=create, read_only=read_only, timeout_s=timeout_s
        )

    def url(self) -> dict[str, Any]:
        return {"drivername": "deeplake", "database": self.root.folder}


class EmbeddedPostgres(PostgresCatalog):
    """One process's handle on the catalog of a store in a folder; its server runs while any process has one."""

    def __init__(
        self, server: Server, address: Address, root: store.Root, *, read_only: bool, timeout_s: float
    ) -> None:
        self._server: Server | None = server
        super().__init__(address, root, read_only=read_only, timeout_s=timeout_s)

    @classmethod
    def start(
        cls, folder: str, *, storage: str | None = None, access: Access | None = None, root: store.Root | None = None,
        create: bool = True, read_only: bool = False, timeout_s: float = 30.0,
    ) -> EmbeddedPostgres:  # fmt: skip
        """The catalog of the store in ``folder``, made there when ``create`` and there is none; starts the server.

        Args:
            storage: where the bytes lie, by default in the folder; ``access``, how they are reached; ``root``, the
                same, opened before.
        """
        check_timeout(timeout_s)
        if not is_there(folder):
            if not create or read_only:
                raise NotFoundError(f"there is no store with a PostgreSQL server in {folder}; check the path")
            with store.file_errors("make the store's folder", folder):
                store.make_folder(folder)
        server = Server.join(folder)
        try:
            address = server.address()
            connection = address.dial(read_only=read_only, timeout_s=timeout_s)
            may = create and not read_only
            kept = bookkeeping.prepare(connection, address, storage, create=may, default=bookkeeping.OWN_FOLDER)
            own = kept.storage == bookkeeping.OWN_FOLDER
            root = root or open_root(folder, None if own else kept.storage, access)
            made = cls(server, address, root, read_only=read_only, timeout_s=timeout_s)
            made._connection = connection
            made._remember(kept, storage, access, default=bookkeeping.OWN_FOLDER)
        except BaseException:
            server.leave()
            raise
        return made

    @property
    def location(self) -> ServerLocation:  # type: ignore[override]  # another form of the same
        return ServerLocation(self.root)

    def _connect(self) -> Connection:
        if self._server is not None:
            self.address = self._server.address()  # it may have been killed and started again
        return super()._connect()

    def close(self) -> None:
        super().close()
        server, self._server = self._server, None
        if server is not None:
            server.leave()
