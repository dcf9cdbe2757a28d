"""The verbs of storage: what was asked of it, bytes brought into the local cache before they are needed, moving."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deeplake_loader import adopted, store
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

    def relocate(self, storage: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None) -> None:
        """Make the catalog say that the store's bytes lie in ``storage`` from now on: after its ``shards/`` and
        ``vectors/`` were copied there by any other program, or a bucket was given another name. Looks first whether
        every file is there in its length. Handles that are open keep to the old place: close them, and connect again.

        Args:
            storage: a folder or a url, as of `connect`.
            storage_options: of fsspec's filesystem; by default the environment has them.

        Raises:
            NotFoundError: files are not there, or shorter; nothing was changed. InputError: another store's bytes lie
                there, or this one's shards are still written to (`optimize` seals them).

        >>> db.optimize(); db.close()                                               # doctest: +SKIP
        >>> # aws s3 sync store/shards s3://bucket/birds/shards; the same with vectors
        >>> connect("./store").relocate("s3://bucket/birds")                        # doctest: +SKIP
        """
        from deeplake_loader.ownership import relocate
        from deeplake_loader.storage import named

        if self._catalog.in_transaction:
            raise InputError("relocate is a transaction of its own; call it outside of one")
        relocate(self._catalog, named(storage), storage_options)

    def _mirror(self) -> Mirror | None:
        root = self._catalog.root
        return None if root.storage is None else find_mirror(f"{root.storage.url}/", root)[0]

    def _warm_files(self) -> None:
        mirror = self._mirror()
        files = self._catalog.fetchall("SELECT url, size, kind FROM _dl_files WHERE state = 'sealed' ORDER BY id")
        own = {store.object_of(url): (int(size), kind) for url, size, kind in files if not adopted.is_adopted(url)}
        if mirror is None:
            return
        for url, (size, kind) in own.items():
            mirror.learn(url, size + len(END) if kind == "shard" else size)
        mirror.prewarm(list(own))

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
