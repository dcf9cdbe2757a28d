"""Everything a store holds, held against everything it says of itself; what can be made anew is, where that is wanted.

    catalog: the database's own check, digests, addresses -> files, on threads: size, end, sha256, the checksums of
    every member and block, the sidecar -> rows that rest in the catalog -> copies and lists made of files -> orphans

A file has three witnesses: its bytes, the catalog, and for a shard the sidecar. Where two agree the third is mended.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from deeplake_loader import adopted
from deeplake_loader.care import addresses, derived, digests, files, publishing, resting
from deeplake_loader.care.contents import FileRow, file_rows
from deeplake_loader.care.report import Finding, Problem, VerifyReport
from deeplake_loader.errors import DeeplakeError, InputError
from deeplake_loader.merging import retention
from deeplake_loader.progress import progress_bar

if TYPE_CHECKING:
    from deeplake_loader.care.derived import Derived
    from deeplake_loader.care.digests import Digest
    from deeplake_loader.catalog import Catalog

_MOST_THREADS = 8
_RESTORE = "restore the catalog from a copy; db.publish() keeps some"
_MOST_SAID = 100  # lines of SQLite's own check
_LONG = 1e9  # seconds: every version that is still there


@dataclass(slots=True)
class _Seen:
    """What was looked at so far."""

    found: list[Finding] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    files: int = 0
    blobs: int = 0
    vectors: int = 0
    addresses: int = 0
    digests: int = 0
    nbytes: int = 0


def verify(catalog: Catalog, made: Derived, *, data: bool, repair: bool, progress: bool) -> VerifyReport:
    """See `verbs.CareVerbs.verify`."""
    if catalog.in_transaction:
        raise InputError("verify looks at what is committed; call it outside of a transaction")
    began, seen = time.monotonic(), _Seen()
    with catalog.snapshot():
        _check_catalog(catalog, seen, data=data)
        known = file_rows(catalog)
        taken = {int(d.name): d for d in digests.comparable(catalog) if d.kind == "members"}
    _check_files(catalog, known, taken, seen, data=data, progress=progress)
    with catalog.snapshot(), _told(catalog, seen):
        seen.found += resting.check(catalog)
    if data:
        seen.found += derived.check(made)
    orphans = tuple(retention.strays(catalog, publishing.versions(catalog, _LONG).kept)) if data else ()
    seen.found.sort(key=lambda finding: finding.problem.kind == "address")  # mended by what mends indexes
    problems = [_mended(catalog, finding) if repair else finding.problem for finding in seen.found]
    return VerifyReport(
        tuple(problems), orphans, tuple(seen.unchecked), seen.files, seen.blobs, seen.vectors, seen.addresses,
        seen.digests, seen.nbytes, time.monotonic() - began,
    )  # fmt: skip


def _mended(catalog: Catalog, finding: Finding) -> Problem:
    if finding.fix is None:
        return finding.problem
    alone = finding.problem.kind == "derived"  # made outside of any transaction
    try:
        with nullcontext() if alone else catalog.transaction("repair"):
            finding.fix()
    except DeeplakeError as error:
        return replace(finding.problem, remedy=f"the repair failed: {error}")
    return replace(finding.problem, repaired=True)


def _check_catalog(catalog: Catalog, seen: _Seen, *, data: bool) -> None:
    with _told(catalog, seen):
        seen.found += [Finding(Problem("catalog", catalog.name, text, remedy=_RESTORE)) for text in _own_check(catalog)]
    for digest in digests.comparable(catalog):
        if data and digest.kind == "members":  # compared with the file's sidecar, which can mend them
            seen.digests += 1
            continue
        where = f"{digest.kind} {digest.name}".strip()
        try:
            wrong = digests.difference(catalog, digest)
        except DeeplakeError as error:
            wrong = str(error)
        except LookupError as error:
            seen.unchecked.append(f"the digest of {where}: {error}")
            continue
        seen.digests += 1
        if wrong is not None:
            what = f"{wrong} (as of commit {digest.upto})"
            seen.found.append(Finding(Problem("digest", where, what, remedy=_RESTORE)))
    with _told(catalog, seen):
        count, lost = addresses.check(catalog)
        seen.addresses += count
        seen.found += lost


@contextmanager
def _told(catalog: Catalog, seen: _Seen) -> Iterator[None]:
    """Makes a problem of what the database cannot even read."""
    try:
        yield
    except DeeplakeError as error:
        seen.found.append(Finding(Problem("catalog", catalog.name, str(error), remedy=_RESTORE)))


def _own_check(catalog: Catalog) -> Iterator[str]:
    """What the database itself finds wrong with it."""
    if catalog.dialect == "postgres":
        return  # its pages have checksums, which it verifies when it reads them
    for (text,) in catalog.fetchall(f"PRAGMA integrity_check({_MOST_SAID})"):
        if text != "ok":
            yield str(text)
    for table, row, parent, _ in catalog.fetchall("PRAGMA foreign_key_check"):
        yield f"row {row} of {table} refers to no row of {parent}"


def _check_files(
    catalog: Catalog, known: Sequence[FileRow], taken: Mapping[int, Digest], seen: _Seen, *, data: bool, progress: bool
) -> None:
    groups: dict[str, list[FileRow]] = {}
    for row in known:
        groups.setdefault(row.url if adopted.is_adopted(row.url) else row.name, []).append(row)
    total = sum(parts[0].size for parts in groups.values())
    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    with progress_bar(total, progress, unit="B", description="verify") as bar, ThreadPoolExecutor(threads) as pool:

        def checked(parts: list[FileRow]) -> files.Checked:
            return _steady(catalog, parts, lambda rows: files.check(catalog, rows, taken, data=data))

        for found in pool.map(checked, groups.values()):
            bar(found.nbytes)
            seen.found += found.findings
            seen.files += found.files
            seen.blobs, seen.vectors = seen.blobs + found.blobs, seen.vectors + found.vectors
            seen.nbytes += found.nbytes


def _steady(catalog: Catalog, parts: list[FileRow], check: Callable[[list[FileRow]], files.Checked]) -> files.Checked:
    """What was found of a file that nobody changed meanwhile: a shard may be sealed, and optimize and gc may work."""
    for _ in range(3):
        found = check(parts)
        if not found.findings:
            return found
        numbers = {row.id for row in parts}
        now = [row for row in file_rows(catalog) if row.id in numbers]
        if now == parts:
            return found
        parts = now
        if not parts:
            return files.Checked()
    return found
