"""What an export wrote."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExportReport:
    """The result of `Database.export`; ``str()`` is a line to read.

    Fields: ``rows``; ``to``, where they are; ``files``, their names there, without those of a folder's media;
    ``nbytes`` of all of them; ``commit``, the number of the commit whose rows they are; ``seconds``.
    """

    rows: int
    to: str
    files: tuple[str, ...]
    nbytes: int
    commit: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows of commit {self.commit} in {self.to}: {len(self.files)} files, {self.nbytes:,} bytes, "
            f"{self.seconds:.1f} s"
        )
