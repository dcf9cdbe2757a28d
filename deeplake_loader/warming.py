"""The verbs of storage: what was asked of it, and bringing bytes into the local cache before they are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deeplake_loader import adopted
from deeplake_loader.errors import InputError
from deeplake_loader.storage.shelves import find_mirror
from deeplake_loader.storage.traffic import Traffic
from deeplake_loader.tar import END

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.columnar import ColumnarRows
    from deeplake_loader.parts import Runner
    from deeplake_loader.sql.plan import Plan
    from deeplake_loader.storage.mirror import Mirror

_ROWS = 4_096  # rows asked for together


class StorageVerbs:
    """What Database inherits."""

    _catalog: Catalog

    if TYPE_CHECKING:

        def _plan_stream(self, sql: str) -> Plan: ...

        _runner: Runner

    @property
    def stats(self) -> Traffic:
        """Requests and bytes between this process and the store's object storage so far, by all of its handles that
        share a cache: all zero for a local store. See `storage.traffic.Traffic`; two of them subtract.

        >>> before = db.stats; db.execute(query); print(db.stats - before)          # doctest: +SKIP
        Traffic(gets=4, bytes_read=30720128)
        """
        mirror = self._mirror()
        return Traffic() if mirror is None else mirror.traffic

    def prewarm(self, sql: str | None = None, params: Sequence[Any] | Mapping[str, Any] | None = None) -> int:
        """The bytes that were fetched, so that what a query reads lies in the local cache: its blobs and vectors, or
        without a query every file of the store. 0 for a local store. Stops where the cache has no room.

        Raises:
            SQLError: the query cannot be read. StoreError: the storage is out of reach.

        >>> db.prewarm("SELECT frames FROM generations WHERE steps >= 25")         # doctest: +SKIP
        """
        if self._mirror() is None and sql is None:
            return 0
        before = self.stats
        if sql is None:
            self._warm_files()
        else:
            plan = self._plan_stream(sql)
            with self._catalog.snapshot():
                if self._catalog.in_transaction:
                    raise InputError("prewarm reads what is committed; call it outside of a transaction")
                rows = self._runner.columnar(plan, params, sql)
            self._warm_rows(rows)
        return (self.stats - before).bytes_read

    def _mirror(self) -> Mirror | None:
        root = self._catalog.root
        return None if root.storage is None else find_mirror(f"{root.storage.url}/", root)[0]

    def _warm_files(self) -> None:
        mirror = self._mirror()
        files = self._catalog.fetchall("SELECT url, size, kind FROM _dl_files WHERE state = 'sealed' ORDER BY id")
        own = [(str(url), int(size), kind) for url, size, kind in files if not adopted.is_adopted(url)]
        if mirror is None:
            return
        for url, size, kind in own:
            mirror.learn(url, size + len(END) if kind == "shard" else size)
        mirror.prewarm([url for url, _, _ in own])

    def _warm_rows(self, rows: ColumnarRows) -> None:
        import numpy as np

        from deeplake_loader.reader import Reader

        reader = Reader(self._catalog.location)
        try:
            for addresses in rows.addresses():
                present = np.unique(addresses[addresses != 0])
                if not len(present):
                    continue
                if self._is_vectors(int(present[0])):
                    for start in range(0, len(present), _ROWS):
                        reader.vectors(present[start : start + _ROWS])
                    continue
                extents = reader.resolve(present)
                reader.expect(extents)
                for start in range(0, len(present), _ROWS):
                    reader.prefetch([(extents, np.arange(start, min(start + _ROWS, len(present))))])
        finally:
            reader.close()

    def _is_vectors(self, address: int) -> bool:
        from deeplake_loader.types import unpack_address

        row = self._catalog.fetchone("SELECT kind FROM _dl_files WHERE id = ?", (unpack_address(address)[0],))
        return row is not None and row[0] == "vector"
