"""Other people's data as tables: tars adopted where they lie, folders, tables, matrices, datasets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deeplake_loader.ingest.report import IngestReport, Skipped

if TYPE_CHECKING:
    from deeplake_loader.ingest.loading import infer

__all__ = ["IngestReport", "Skipped", "infer"]


def __getattr__(name: str) -> Any:
    if name != "infer":
        raise AttributeError(f"module 'deeplake_loader.ingest' has no attribute {name!r}")
    from deeplake_loader.ingest.loading import infer  # with it numpy and the codecs, for which a query does not wait

    return infer
