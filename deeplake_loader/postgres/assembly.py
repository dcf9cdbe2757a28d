"""The parts of a Database over a PostgreSQL catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deeplake_loader.errors import StoreError

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.parts import Parts
    from deeplake_loader.rows import Source


def assemble(catalog: Catalog, source: Source) -> Parts:
    """The parts of the handle ``source`` on a store whose catalog is a PostgreSQL database."""
    raise StoreError(f"{source!r}: statements on {catalog!r} are not run yet")
