"""Samples that streams leave out: a table of addresses, for values whose bytes are damaged or cannot be decoded.

An address means the same on every branch and at every point of history, so one table serves the whole store. The
table `_dl_quarantine` is made when it is first needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from deeplake_loader.errors import InputError, NotFoundError

if TYPE_CHECKING:
    import numpy as np

    from deeplake_loader.catalog import Catalog

_TABLE = (
    "CREATE TABLE IF NOT EXISTS _dl_quarantine (address INTEGER PRIMARY KEY, key TEXT NOT NULL, "
    "reason TEXT NOT NULL, created_at TEXT NOT NULL)"
)


class Bad(Protocol):
    """A sample that a stream found to be bad; `stream.BadSample` is one."""

    @property
    def key(self) -> str: ...
    @property
    def address(self) -> int: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One value that streams leave out: its sample's ``key``, its ``address``, why and since when (UTC)."""

    key: str
    address: int
    reason: str
    created_at: str


class QuarantineVerbs:
    """What Database inherits."""

    _catalog: Catalog

    def quarantine(self, samples: Iterable[str | Bad] | str | Bad, *, reason: str | None = None) -> int:
        """The number of values newly set aside: streams made from now on, on any branch, leave their rows out.

        A stream's state belongs to its set of rows, so one from before is refused by a stream without them, unless it
        is loaded with ``strict=False``. SQL goes on showing the rows.

        Args:
            samples: keys of samples (``Blob.key``), of which every blob is set aside, or what ``stream.stats.skipped``
                lists, of which the one that was found bad is: a query without that column still gives the row. Under
                DataLoader workers that list is empty; each batch's ``_bad`` has the keys.
            reason: kept beside each; by default the sample's own.

        Raises:
            InputError: neither a key nor a bad sample.
            NotFoundError: a key that no sample of this store has; nothing was set aside then.

        >>> db.quarantine(stream.stats.skipped)                                         # doctest: +SKIP
        3
        """
        listed = list(samples) if isinstance(samples, Iterable) and not isinstance(samples, str) else [samples]
        wrong = [sample for sample in listed if not isinstance(sample, str) and not hasattr(sample, "address")]
        if wrong:
            raise InputError(
                f"{wrong[0]!r} names no sample; give keys, as Blob.key and a batch's _bad hold them, or what "
                "stream.stats.skipped lists"
            )
        with self._catalog.transaction(f"quarantine {len(listed)} samples"):
            rows = [(b.address, b.key, b.reason) for b in listed if not isinstance(b, str)]
            rows += [(address, key, "") for address, key in self._addresses([k for k in listed if isinstance(k, str)])]
            if any(address <= 0 for address, _, _ in rows):
                raise InputError("a sample without an address cannot be set aside; DELETE its row instead")
            before = self.quarantined()
            self._catalog.declare(_TABLE)
            since = f"{self._catalog.now().replace(' ', 'T')[:23]}Z"
            self._catalog.executemany(
                "INSERT INTO _dl_quarantine (address, key, reason, created_at) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (address) DO NOTHING",
                [(address, key, own if reason is None else reason, since) for address, key, own in rows],
            )
            return len(self.quarantined()) - len(before)

    def quarantined(self) -> list[Quarantined]:
        """What is set aside, the oldest first."""
        if not self._has_quarantine():
            return []
        sql = "SELECT key, address, reason, created_at FROM _dl_quarantine ORDER BY created_at, address"
        return [Quarantined(*row) for row in self._catalog.fetchall(sql)]

    def release(self, keys: Iterable[str] | str | None = None) -> int:
        """The number of values that streams give again: of the samples with these keys, or all."""
        if not self._has_quarantine():
            return 0
        with self._catalog.transaction("release from quarantine"):
            if keys is None:
                return int(self._catalog.execute("DELETE FROM _dl_quarantine").rowcount)
            where, listed = self._catalog.one_of("key", [keys] if isinstance(keys, str) else list(keys))
            return int(self._catalog.execute(f"DELETE FROM _dl_quarantine WHERE {where}", listed).rowcount)

    def _has_quarantine(self) -> bool:
        return self._catalog.has_own("_dl_quarantine")

    def _addresses(self, keys: list[str]) -> list[tuple[int, str]]:
        """(address, key) of every blob of the samples with these keys."""
        from deeplake_loader.types import pack_address

        where, listed = self._catalog.one_of("key", keys)
        sql = f"SELECT file, ordinal, key FROM _dl_members WHERE {where}"
        found = self._catalog.fetchall(sql, listed) if keys else []
        missing = sorted(set(keys) - {key for _, _, key in found})
        if missing:
            raise NotFoundError(f"no sample of this store has the key {missing[0]!r} ({len(missing)} such)")
        return [(pack_address(file, ordinal), key) for file, ordinal, key in found]

    def _kept(self, columns: Iterable[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any] | None:
        """The rows none of whose addresses is set aside, or None where all stay."""
        import numpy as np

        if not self._has_quarantine():
            return None
        found = [row[0] for row in self._catalog.fetchall("SELECT address FROM _dl_quarantine")]
        hit = [np.isin(addresses, found) for addresses in columns] if found else []
        if not hit or not (bad := np.logical_or.reduce(hit)).any():
            return None
        kept: np.ndarray[Any, Any] = np.flatnonzero(~bad)
        return kept
