"""The parts of a Database over a PostgreSQL catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deeplake_loader.errors import StoreError
from deeplake_loader.parts import Parts
from deeplake_loader.plans import Plans
from deeplake_loader.postgres import results
from deeplake_loader.postgres.branching import PostgresBranchWriter, PostgresReferences, PostgresViews
from deeplake_loader.postgres.catalog import PostgresCatalog
from deeplake_loader.postgres.history import PostgresHistory
from deeplake_loader.postgres.matrices import Matrices
from deeplake_loader.postgres.schema import PostgresSchema
from deeplake_loader.postgres.search import PostgresIndexes, PostgresStatements
from deeplake_loader.postgres.statements import PostgresRunner
from deeplake_loader.postgres.vectors import register
from deeplake_loader.postgres.writing import PostgresWriter
from deeplake_loader.search.candidates import LiveRows
from deeplake_loader.search.copies import Copies
from deeplake_loader.search.engine import Searcher
from deeplake_loader.shards import Shards
from deeplake_loader.vectors import Vectors

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.rows import Source


def assemble(catalog: Catalog, source: Source) -> Parts:
    """The parts of the handle ``source`` on a store whose catalog is a PostgreSQL database."""
    if not isinstance(catalog, PostgresCatalog):
        raise StoreError(f"{catalog!r} is no catalog in a PostgreSQL database")
    catalog.history = history = PostgresHistory(catalog)
    shards, vectors = Shards(catalog), Vectors(catalog)
    indexes, views = PostgresIndexes(catalog, vectors), PostgresViews(catalog, history)
    overlays, references = PostgresBranchWriter(catalog, views, history), PostgresReferences()
    schema = PostgresSchema(catalog, history)
    writer = PostgresWriter(catalog, shards, vectors, source, overlays.target)
    copies = Copies(catalog, vectors.matrix)
    searcher = Searcher(vectors.matrix, vectors.gather, copies)
    statements = PostgresStatements(
        catalog, writer, searcher, LiveRows(catalog, views), Matrices(catalog), lambda: views.on_main,
        lambda *given: runner.rows(*given),
    )  # fmt: skip
    catalog.add_hook(register)
    catalog.add_hook(results.register)
    runner = PostgresRunner(catalog, source, Plans(catalog), writer, schema, views, overlays, references, statements)
    return Parts(
        shards, vectors, indexes, views, overlays, references, writer, copies, searcher, statements, runner
    )  # fmt: skip
