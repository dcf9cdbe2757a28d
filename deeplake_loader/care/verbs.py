"""The verbs of a Database that look after its store: verify, optimize, gc, publish."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from deeplake_loader.errors import InputError

if TYPE_CHECKING:
    from deeplake_loader.care.publishing import Publication
    from deeplake_loader.care.report import VerifyReport
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.indexes import Indexes
    from deeplake_loader.merging.retention import Garbage
    from deeplake_loader.search.copies import Copies
    from deeplake_loader.search.statements import Statements
    from deeplake_loader.shards import Shards
    from deeplake_loader.vectors import Vectors


class CareVerbs:
    """What Database inherits."""

    _catalog: Catalog
    _shards: Shards
    _vectors: Vectors
    _indexes: Indexes
    _copies: Copies
    _statements: Statements

    def verify(self, *, repair: bool = False, data: bool = True, progress: bool = False) -> VerifyReport:
        """What is wrong with the store, as a report that prints well; ``report.ok`` is False while anything is.

        Looked at: the database's own consistency, digests of its rows as `optimize` and `publish` last took them,
        every address of every branch and of history, every file's size, sha256 and end, the checksum of every blob and
        of every block of vectors, sidecars, what rests in the catalog, scan copies and lists. Reads everything, on
        threads, remote objects past the cache. Readers and writers may work meanwhile.

        Args:
            repair: make anew what can be: sidecars, rows of the index of a shard whose sidecar has them, checksums
                that a sound file contradicts, scan copies, lists, resting bytes that nothing reads. Blobs and vectors
                themselves cannot be made anew; the report says where each was.
            data: False looks at the catalog alone, and whether each file is there with its size.
            progress: show a progress bar.

        Raises:
            InputError: a transaction is open.

        >>> print(db.verify())                                                      # doctest: +SKIP
        12 files, 10,000 blobs, 5,000 vectors, 15,000 addresses and 9 digests checked, 223,104,512 bytes in 0.4 s: sound
        """
        from deeplake_loader.care.derived import Derived
        from deeplake_loader.care.verify import verify

        made = Derived(self._copies, self._indexes, self._statements)
        return verify(self._catalog, made, data=data, repair=repair, progress=progress)

    def gc(self, *, dry_run: bool = True, older_than_s: float = 86_400.0) -> Garbage:
        """Remove sealed files without a reachable blob or vector, and files that no catalog row names; by default only
        say which.

        Rows on any branch, at any tag and in the undo logs keep their bytes: `optimize` with ``keep`` lets old history
        go first; so do versions published here that a newer one replaced. On an object storage unfinished uploads go,
        too. Adopted files are never touched.

        Args:
            older_than_s: leave files that were last written, emptied by `optimize` or replaced by `publish` less than
                so many seconds ago, because a query that began before may still read them. With 0, a query, stream or
                export that is under way may meet a missing file, which is an error; writers, optimize and publish,
                wherever they run, keep what they need.
        """
        from deeplake_loader.care.garbage import collect

        return collect(self._catalog, older_than_s, dry_run=dry_run)

    def optimize(
        self,
        *,
        keep: dt.timedelta | float | None = None,
        scan_copies: bool | Literal["float16", "int8"] = False,
        snapshot: bool = False,
    ) -> None:
        """Seal open shards and the vectors that still rest in the catalog, so that every file stands by itself; merge
        small files into larger ones, under the addresses they have; take digests of the catalog's rows, which `verify`
        holds them against; make the lists that vector indexes lack, over PostgreSQL the matrices that searches scan.

        Readers and writers may work meanwhile. The files that were merged stay until `gc` takes them.

        Args:
            keep: also forget history older than this (a timedelta, or seconds) that no branch, tag or merge base needs;
                None keeps all. `log` then gives no counts for commits that are older, and `at` refuses them.
            scan_copies: also keep every float32 vector file of 8,192 rows or more in float16 beside itself (True or
                "float16"): half as much again on the disk, half as much to read in a search, whose results stay the
                same to the last bit. "int8": in a byte an element, a quarter of each, for searches by one query;
                results stay the same too. A file may have both. What there is already stays.
            snapshot: at the end put a snapshot of the catalog beside the shards, as `publish` without a url does: from
                that a lost catalog comes back.
        """
        from deeplake_loader.care import compaction
        from deeplake_loader.merging import retention
        from deeplake_loader.search.forms import form_of

        form = form_of(scan_copies)
        self._seal("optimize", None if keep is None else retention.period(keep, "keep"))
        if not self._catalog.in_transaction:
            compaction.merge_small(self._catalog)
        self._take_digests(afresh=keep is not None)
        for index in () if self._catalog.in_transaction else self._indexes.all():
            self._indexes.build(index)
        if not self._catalog.in_transaction:
            self._statements.optimize()
        if form is not None:
            self._copies.build(form)
        if snapshot:
            self.publish()

    def publish(
        self,
        url: str | os.PathLike[str] | None = None,
        *,
        storage_options: Mapping[str, Any] | None = None,
        progress: bool = False,
    ) -> Publication:
        """Make the store as it is now readable by whoever has the url: ``connect(url)`` opens it read-only, with all
        branches and history, streams and searches it through the local cache, and needs no server.

        The catalog's snapshot goes beside the shards, which are copied where they are not there yet; one small object
        that names the snapshot is put last, so that readers see the version before or this one. Publishing again makes
        a new version; whoever opened an older one reads on until `gc` takes it. Of a catalog in PostgreSQL main is
        published, as a file, without branches and history, and each table without its defaults, checks, indexes and
        foreign keys, which only writers need; its vectors are written anew with every version.

        Args:
            url: ``s3://bucket/prefix`` or any other of fsspec's, or a folder; default: where the store's own bytes lie,
                so that only the snapshot is written.
            storage_options: of fsspec's filesystem; by default the environment has them.
            progress: show a progress bar.

        Raises:
            InputError: a transaction is open; another store lies at the url; a table in PostgreSQL has no primary key.
            DeeplakeError: a column in PostgreSQL has a type, or a value, that a catalog in a file has not.
            StoreError: the url cannot be written. LockedError: others published there again and again meanwhile.

        >>> db.publish("s3://bucket/birds").version                                 # doctest: +SKIP
        1
        >>> deeplake.connect("s3://bucket/birds").execute("SELECT count(*) FROM photos").scalar()  # doctest: +SKIP
        10000
        """
        from deeplake_loader.care import publishing
        from deeplake_loader.care.crossing import crossed

        if self._catalog.in_transaction:
            raise InputError("publish shows what is committed; call it outside of a transaction")
        if self._catalog.dialect == "sqlite" and not self._catalog.read_only:
            self._seal("publish", keep=None)
            self._take_digests()
        place, copy = None if url is None else os.fspath(url), publishing.copied
        if self._catalog.dialect == "postgres":
            copy = partial(crossed, type(self))
        return publishing.publish(self._catalog, place, storage_options, progress=progress, copy=copy)

    def _seal(self, message: str, keep: dt.timedelta | None) -> None:
        from deeplake_loader.care import digests
        from deeplake_loader.merging import pruning

        with self._catalog.transaction(message):
            self._shards.seal()
            self._vectors.seal()
            if keep is not None:
                pruning.prune(self._catalog, keep)
                digests.forget_history(self._catalog)

    def _take_digests(self, *, afresh: bool = False) -> None:
        from deeplake_loader.care import digests

        with self._catalog.transaction() as tx:
            if digests.record(self._catalog, afresh=afresh):
                tx.message = tx.message or "digests"
