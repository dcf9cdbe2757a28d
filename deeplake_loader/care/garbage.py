"""What nothing needs, taken out of the catalog in one transaction and then removed."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from deeplake_loader.care import leases, publishing
from deeplake_loader.merging import retention
from deeplake_loader.merging.retention import Garbage

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog


def collect(catalog: Catalog, older_than_s: float, *, dry_run: bool) -> Garbage:
    """See `verbs.CareVerbs.gc`."""
    retention.period(older_than_s, "older_than_s")
    uploads, leftovers = 0, list[str]()
    with catalog.snapshot() if dry_run else catalog.transaction("gc"):
        retention.keep_writers_out(catalog)
        held = leases.held(catalog)
        if held.everything:
            return Garbage((), 0, dry_run, held=held.count)
        published = publishing.versions(catalog, older_than_s)
        found = retention.unreached(catalog, older_than_s, published.kept)
        found.files.update(published.stale)
        if not dry_run:
            leases.forget_dead(catalog)
            retention.forget(catalog, found)
        if not dry_run and not held.count:  # nobody can be writing what these are
            uploads = retention.objects_of(catalog).abort_uploads(older_than_s)
            leftovers = list(retention.leftovers(catalog, older_than_s))
    if not dry_run:
        retention.remove(catalog, found.files)
        for name in leftovers:
            with suppress(OSError):
                os.unlink(catalog.root.path(name))
    return Garbage(tuple(found.files), sum(found.files.values()), dry_run, uploads, held.count)
