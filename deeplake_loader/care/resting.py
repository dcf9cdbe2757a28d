"""Blobs and vectors that rest in the catalog: their checksums, and whether all are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from deeplake_loader.blobs import checksums
from deeplake_loader.care.report import Finding, Problem
from deeplake_loader.errors import CorruptionError
from deeplake_loader.matrices import Layout, unpack_run
from deeplake_loader.types import MAX_ORDINAL, ORDINAL_BITS, pack_address

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog

_REMEDY = "restore the catalog from a copy"
_BLOBS = (
    'SELECT r.address, r.data, m.checks, m."offset" IS NULL, m.key FROM _dl_resting r LEFT JOIN _dl_members m '
    f"ON m.file = r.address >> {ORDINAL_BITS} AND m.ordinal = r.address & {MAX_ORDINAL} ORDER BY r.address"
)
_LOST = (
    'SELECT m.file, m.ordinal, m.key FROM _dl_members m WHERE m."offset" IS NULL AND NOT EXISTS '
    f"(SELECT 1 FROM _dl_resting r WHERE r.address = m.file << {ORDINAL_BITS} | m.ordinal) ORDER BY 1, 2"
)


def check(catalog: Catalog) -> list[Finding]:
    """What is wrong with them, within a snapshot."""
    return [*_blobs(catalog), *_lost(catalog), *_tails(catalog)]


def _blobs(catalog: Catalog) -> Iterator[Finding]:
    for rows in catalog.chunks(_BLOBS, size=256):
        for address, data, checks, rests, key in rows:
            if checks is None or not rests:  # it has moved into its shard, or was never named
                problem = Problem("resting", f"address {address}", "bytes that nothing reads are still in the catalog")
                yield Finding(problem, _remover(catalog, address))
            elif checksums(data) != bytes(checks):
                what = "the bytes that rest in the catalog are not what their checksum says"
                yield Finding(Problem("resting", f"address {address}, key {key!r}", what, remedy=_REMEDY))


def _remover(catalog: Catalog, address: int) -> Callable[[], object]:
    return lambda: catalog.execute("DELETE FROM _dl_resting WHERE address = ?", (address,))


def _lost(catalog: Catalog) -> Iterator[Finding]:
    for file, ordinal, key in catalog.fetchall(_LOST):
        where = f"address {pack_address(file, ordinal)}, key {key!r}"
        yield Finding(Problem("resting", where, "its bytes are neither in the catalog nor in a shard", remedy=_REMEDY))


def _tails(catalog: Catalog) -> Iterator[Finding]:
    files = "SELECT id, url, count, dtype, dimension FROM _dl_files WHERE kind = 'vector' AND state = 'open'"
    for file, url, count, dtype, dimension in catalog.fetchall(files):
        first, held = pack_address(file, 0), 0
        runs = "SELECT address, data FROM _dl_tail WHERE address BETWEEN ? AND ? ORDER BY address"
        for address, data in catalog.fetchall(runs, (first, first + MAX_ORDINAL)):
            try:
                held += len(unpack_run(data, f"address {address}")) // Layout(dimension, dtype).stride
            except CorruptionError as error:
                yield Finding(Problem("resting", url, str(error), remedy=_REMEDY))
        if held != count:
            what = f"{held:,} readable vectors rest in the catalog where {count:,} should"
            yield Finding(Problem("resting", url, what, remedy=_REMEDY))
