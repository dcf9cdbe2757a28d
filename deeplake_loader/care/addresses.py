"""Addresses in tables, overlays and undo logs that lead nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from deeplake_loader.branches import log_name, overlay_name
from deeplake_loader.care.report import Finding, Problem
from deeplake_loader.dialects import dialect
from deeplake_loader.errors import NotFoundError
from deeplake_loader.types import MAX_ORDINAL, ORDINAL_BITS, Table, quote_identifier, unpack_address

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog

_BLOB = f"SELECT 1 FROM _dl_members m WHERE m.file = {{0}} >> {ORDINAL_BITS} AND m.ordinal = {{0}} & {MAX_ORDINAL}"
_VECTOR = (
    f"SELECT 1 FROM _dl_files f WHERE f.id = {{0}} >> {ORDINAL_BITS} AND f.kind = 'vector' "
    f"AND ({{0}} & {MAX_ORDINAL}) < f.count"
)
_FEW = 3


def check(catalog: Catalog) -> tuple[int, list[Finding]]:
    """(addresses looked at, a finding for each column that holds some which lead nowhere), within a snapshot."""
    count, found = 0, []
    for real, column, exists in _columns(catalog):
        name, table = f"t.{quote_identifier(column)}", catalog.history.real(real)
        count += int(catalog.fetchone(f"SELECT count({name}) FROM {table} t")[0])
        lost = f"FROM {table} t WHERE {name} IS NOT NULL AND NOT EXISTS ({exists.format(name)})"
        total = int(catalog.fetchone(f"SELECT count(*) {lost}")[0])
        if total:
            few = [address for (address,) in catalog.fetchall(f"SELECT DISTINCT {name} {lost} ORDER BY 1 LIMIT {_FEW}")]
            shown = ", ".join(f"{a} (file {unpack_address(a)[0]})" for a in few)
            what = f"{total:,} addresses lead nowhere, such as {shown}"
            remedy = "update those rows, or restore the catalog from a copy"
            finding = Problem("address", f"{real}.{column}", what, remedy=remedy)
            found.append(Finding(finding, partial(_look_again, catalog, lost, remedy)))
    return count, found


def _look_again(catalog: Catalog, lost: str, remedy: str) -> None:
    """After other repairs: they may have brought back what the addresses lead to."""
    if int(catalog.fetchone(f"SELECT count(*) {lost}")[0]):
        raise NotFoundError(f"no sidecar knows where they led; {remedy}")


def _columns(catalog: Catalog) -> Iterator[tuple[str, str, str]]:
    """(real table, column, what must exist for its address) of all that hold addresses."""
    overlays: dict[str, list[int]] = {}
    for branch, table in catalog.fetchall("SELECT branch, table_name FROM _dl_overlays"):
        overlays.setdefault(table.lower(), []).append(branch)
    for table in catalog.tables().values():
        own = [table.name, *(overlay_name(b, table.name) for b in overlays.get(table.name.lower(), ()))]
        for real in (*own, *map(log_name, own)):
            yield from ((real, column, exists) for column, exists in _addressed(catalog, table))


def _addressed(catalog: Catalog, table: Table) -> Iterator[tuple[str, str]]:
    yield from ((column.name, _BLOB) for column in table.blobs)
    if not dialect(catalog.dialect).stores_vectors:
        yield from ((column.name, _VECTOR) for column in table.vectors)
