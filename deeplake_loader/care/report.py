"""What `Database.verify` found, as values that print well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["catalog", "digest", "address", "file", "blob", "index", "vector", "resting", "derived"]
"""catalog: the database itself, or its bookkeeping; digest: rows differ from those that a digest was taken of; address:
one that leads nowhere; file: a shard or vector file as a whole; blob, vector: some of its bytes; index: a shard's
sidecar differs from the catalog; resting: bytes kept in the catalog; derived: what is made of vector files."""

_SHOWN = 20  # problems in the text of a report


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: of which ``kind``, ``where`` (a file's url, a table, an address), ``what`` is wrong
    there, whether it was ``repaired``, and where it cannot be, the ``remedy``."""

    kind: Kind
    where: str
    what: str
    repaired: bool = False
    remedy: str = ""

    def __str__(self) -> str:
        end = "; repaired" if self.repaired else f"; {self.remedy}" if self.remedy else ""
        return f"{self.kind}: {self.where}: {self.what}{end}"


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem, and what would mend it, where anything can."""

    problem: Problem
    fix: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was looked at and what is wrong with it.

    Fields: ``problems``; ``orphans``, files that no catalog row names, which `gc` removes (no damage: a writer that was
    killed leaves such); ``unchecked``, what could not be compared, with the reason; ``files``, ``blobs``, ``vectors``,
    ``addresses``, ``digests`` and ``nbytes`` that were read; ``seconds``.
    """

    problems: tuple[Problem, ...]
    orphans: tuple[str, ...]
    unchecked: tuple[str, ...]
    files: int
    blobs: int
    vectors: int
    addresses: int
    digests: int
    nbytes: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, or everything that was is repaired."""
        return all(problem.repaired for problem in self.problems)

    def __str__(self) -> str:
        lines = [
            f"{self.files:,} files, {self.blobs:,} blobs, {self.vectors:,} vectors, {self.addresses:,} addresses and "
            f"{self.digests:,} digests checked, {self.nbytes:,} bytes in {self.seconds:.1f} s: {self._verdict()}"
        ]
        lines += [f"  {problem}" for problem in self.problems[:_SHOWN]]
        if len(self.problems) > _SHOWN:
            lines.append(f"  and {len(self.problems) - _SHOWN:,} more")
        lines += [f"  not checked: {text}" for text in self.unchecked]
        if self.orphans:
            lines.append(f"  {len(self.orphans):,} files that nothing names; gc removes them")
        return "\n".join(lines)

    def _verdict(self) -> str:
        if not self.problems:
            return "sound"
        mended = sum(problem.repaired for problem in self.problems)
        return f"{len(self.problems):,} problems" + (f", {mended:,} repaired" if mended else "")
