"""Work under way that needs files which no row may name any more: `gc` leaves them until the work ends.

    _dl_meta "lease <name>"  when it was last renewed, milliseconds since 1970     "held <name>"  a JSON list of files

A lease is taken in the catalog before the work looks at it, so a `gc` either came before and its removals are seen, or
sees the lease. At first it holds every file; `narrow` names those it goes on needing. A thread renews it; one that was
not renewed for 15 minutes (its process was killed, its machine is gone) holds nothing. The clock is PostgreSQL's; that
of a catalog in a file is the machine's, which those who share one have to have set alike. Leases are no commits.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deeplake_loader import store
from deeplake_loader.errors import DeeplakeError, LockedError

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog

LIFE_S = 900.0
"""Seconds for which a lease holds unless it is renewed."""

PREFIXES = ("lease ", "held ")
"""How the keys of all these facts begin."""

_RENEWED_S = 60.0
_LEASE, _HELD = PREFIXES
_SET = "INSERT INTO _dl_meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
_RENEW = "UPDATE _dl_meta SET value = ? WHERE key = ?"
_FORGET = "DELETE FROM _dl_meta WHERE key IN (?, ?)"


@dataclass(frozen=True, slots=True)
class Held:
    """What is held now: by how many leases (``count``), whether ``everything`` by one, and these ``names``."""

    count: int
    everything: bool
    names: frozenset[str]


class Lease:
    """One lease of this process."""

    def __init__(self, catalog: Catalog, name: str) -> None:
        self._catalog, self._name = catalog, name

    def narrow(self, names: Iterable[str]) -> None:
        """Holds only these files from now on, and what is derived from them."""
        self._catalog.execute(_SET, (_HELD + self._name, json.dumps(sorted(names))))

    def renew(self) -> None:
        """Holds for a further 15 minutes.

        Raises:
            LockedError: it was given up meanwhile, and what it held may be gone.
        """
        if self._catalog.execute(_RENEW, (_now(self._catalog), _LEASE + self._name)).rowcount != 1:
            raise LockedError("this process stood still for so long that gc no longer waited for it; do it again")


@contextmanager
def hold(catalog: Catalog, files: Iterable[str] | None = None) -> Iterator[Lease]:
    """A lease on these files, by default on every one, for the block; outside of any transaction."""
    name = store.unique_name()
    lease = Lease(catalog, name)
    if files is not None:
        lease.narrow(files)
    catalog.execute(_SET, (_LEASE + name, _now(catalog)))
    if catalog.dialect == "postgres":  # where a gc that did not see the lease may still be on its way
        with catalog.transaction():
            catalog.connection.execute("LOCK TABLE _dl_files IN ROW EXCLUSIVE MODE")
    ended = threading.Event()
    thread = threading.Thread(target=_keep, args=(catalog, name, ended), name="renewing a lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        ended.set()
        thread.join()
        with suppress(DeeplakeError):  # it ends by itself
            catalog.execute(_FORGET, (_LEASE + name, _HELD + name))


def _keep(catalog: Catalog, name: str, ended: threading.Event) -> None:
    """Renews a lease, on a connection of its own: the handle may be busy for long."""
    while not ended.wait(_RENEWED_S):
        with suppress(DeeplakeError, OSError), closing(catalog.location.open()) as own:
            own.execute(_RENEW, (_now(own), _LEASE + name))


def held(catalog: Catalog) -> Held:
    """What is held by the leases that live."""
    names = [name for name, lives in _facts(catalog) if lives]
    lists = [catalog.meta(_HELD + name) for name in names]
    return Held(len(names), None in lists, frozenset(file for text in lists if text for file in json.loads(text)))


def forget_dead(catalog: Catalog) -> None:
    """Takes the others out of the catalog, within the transaction of the gc that does not wait for them."""
    for name, lives in _facts(catalog):
        if not lives:
            catalog.execute(_FORGET, (_LEASE + name, _HELD + name))


def _facts(catalog: Catalog) -> list[tuple[str, bool]]:
    """Every lease's name, and whether it lives."""
    rows = catalog.fetchall("SELECT key, value FROM _dl_meta WHERE key LIKE ?", (f"{_LEASE}%",))
    limit = int(_now(catalog)) - LIFE_S * 1000
    return [(key.removeprefix(_LEASE), int(value) >= limit) for key, value in rows]


def _now(catalog: Catalog) -> str:
    """Milliseconds since 1970 by the clock that all who share the catalog read."""
    if catalog.dialect == "postgres":
        return str(catalog.fetchone("SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)")[0])
    return str(int(time.time() * 1000))
