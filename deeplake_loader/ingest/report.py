"""What an ingestion did, or would do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deeplake_loader.ingest.inference import Proposal

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that did not become a row: its ``source`` (url or path), the ``member`` or row in it ("" for the source
    as a whole), and the ``reason``."""

    source: str
    member: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source}{f', {self.member}' if self.member else ''}: {self.reason}"


@dataclass(frozen=True, slots=True)
class IngestReport:
    """The result of `Database.ingest`; ``str()`` is a summary to read.

    Fields: ``table``; ``added``, rows that are new; ``present``, rows that were there already; ``skipped``, what was
    left out and why; ``unused``, fields that no column takes, with how many samples have each; ``schema``, the
    CREATE TABLE statement of the table; ``sources``, how many were read; ``nbytes`` of them; ``seconds``; ``dry_run``,
    whether nothing was written.
    """

    table: str
    added: int
    present: int
    skipped: tuple[Skipped, ...]
    unused: dict[str, int]
    schema: str
    sources: int
    nbytes: int
    seconds: float
    dry_run: bool = False

    def __str__(self) -> str:
        did = "would be read" if self.dry_run else "read"
        lines = [f"{self.table}: {self.sources} sources {did}, {self.nbytes:,} bytes, {self.seconds:.1f} s"]
        if not self.dry_run:
            lines.append(f"  {self.added:,} rows added, {self.present:,} there already, {len(self.skipped):,} skipped")
        lines += [f"  skipped {item}" for item in self.skipped[:_SHOWN]]
        if len(self.skipped) > _SHOWN:
            lines.append(f"  ... and {len(self.skipped) - _SHOWN:,} more in .skipped")
        lines += [f"  no column takes {name!r}, which {count:,} samples have" for name, count in self.unused.items()]
        return "\n".join((*lines, *(f"  {line}" for line in self.schema.splitlines())))


@dataclass(slots=True)
class Tally:
    """A report while it grows."""

    added: int = 0
    present: int = 0
    nbytes: int = 0
    sources: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    unused: dict[str, int] = field(default_factory=dict)

    def report(self, proposal: Proposal, schema: str, seconds: float, *, dry_run: bool) -> IngestReport:
        return IngestReport(
            proposal.table, self.added, self.present, tuple(self.skipped), dict(sorted(self.unused.items())), schema,
            self.sources, self.nbytes, seconds, dry_run,
        )  # fmt: skip
