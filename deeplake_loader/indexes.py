"""Vector indexes: which columns have one, their lists file by file, and when lists may serve a search.

An index is a row of the catalog's table ``_dl_indexes`` (made when it is first needed) and belongs to the store, like
the schema: it serves every branch, because lists only choose among a file's rows, and which rows are live is always
asked of SQL. Lists are made outside of any transaction, as files of vectors never change once they are sealed.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from deeplake_loader import ann
from deeplake_loader.branches import overlay_name
from deeplake_loader.catalog import Catalog, Participant
from deeplake_loader.errors import CorruptionError, InputError, NotFoundError
from deeplake_loader.progress import progress_bar
from deeplake_loader.types import MAX_ORDINAL, ORDINAL_BITS, VectorIndex, quote_identifier

if TYPE_CHECKING:
    from deeplake_loader.scoring import Metric
    from deeplake_loader.vectors import Vectors

_TABLE = (
    "CREATE TABLE IF NOT EXISTS main._dl_indexes (name TEXT PRIMARY KEY COLLATE NOCASE, table_name TEXT NOT NULL, "
    "column_name TEXT NOT NULL, kind TEXT NOT NULL, metric TEXT NOT NULL, lists INTEGER)"
)
_COLUMNS = "name, table_name, column_name, kind, metric, lists"
_FILE = "SELECT url, sha256, count, dimension FROM _dl_files WHERE id = ? AND kind = 'vector' AND state = 'sealed'"


class Indexes(Participant):
    """The vector indexes of one store, and their lists as this process has read them."""

    def __init__(self, catalog: Catalog, vectors: Vectors) -> None:
        self._catalog, self._vectors = catalog, vectors
        self._lists: dict[tuple[int, str], ann.Lists] = {}
        self._gone: list[str] = []  # files of lists that a dropped index leaves behind
        catalog.participants.append(self)

    # -- definitions ---------------------------------------------------------------------------------------------------

    def all(self) -> list[VectorIndex]:
        """Every vector index of the store, by name."""
        if self._catalog.fetchone("SELECT 1 FROM main.sqlite_master WHERE name = '_dl_indexes'") is None:
            return []
        return [VectorIndex(*row) for row in self._catalog.fetchall(f"SELECT {_COLUMNS} FROM _dl_indexes ORDER BY 1")]

    def named(self, name: str) -> VectorIndex | None:
        return next((index for index in self.all() if index.name.lower() == name.lower()), None)

    def on(self, table: str, column: str) -> VectorIndex | None:
        """The index of a column; None where it has none."""
        wanted = table.lower(), column.lower()
        return next((i for i in self.all() if (i.table.lower(), i.column.lower()) == wanted), None)

    def create(self, index: VectorIndex) -> None:
        """Records an index, within the open transaction; its lists are made by `build`.

        Raises:
            InputError: the name is taken, the column has an index, or faiss is not installed.
        """
        ann.require()
        taken = "SELECT 1 FROM main.sqlite_master WHERE name = ? COLLATE NOCASE"
        if self.named(index.name) is not None or self._catalog.fetchone(taken, (index.name,)) is not None:
            raise InputError(f"there is already a table or an index named {index.name!r}; choose another name")
        known = self.on(index.table, index.column)
        if known is not None:
            raise InputError(f"column {index.column!r} of {index.table!r} has the index {known.name!r}; drop it first")
        self._catalog.execute(_TABLE)
        row = (index.name, index.table, index.column, index.kind, index.metric, index.lists)
        self._catalog.execute(f"INSERT INTO _dl_indexes ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", row)

    def drop(self, index: VectorIndex) -> None:
        """Forgets an index, within the open transaction, and removes its lists once that is committed."""
        self._gone += [ann.path_of(path) for _, path, _ in self._files(index)]
        self._catalog.execute("DELETE FROM _dl_indexes WHERE name = ?", (index.name,))

    def table_changed(self, table: str, kept: Callable[[str], str | None]) -> None:
        """Follows a table's change, before its rows go: ``kept`` gives a column's new name, or None where it goes."""
        for index in self.all():
            if index.table != table:
                continue
            column = kept(index.column)
            if column is None:
                self.drop(index)
            elif column != index.column:
                self._catalog.execute("UPDATE _dl_indexes SET column_name = ? WHERE name = ?", (column, index.name))

    def savepoint(self) -> int:
        return len(self._gone)

    def rollback_to(self, token: object) -> None:
        del self._gone[cast(int, token) :]

    def committed(self) -> None:
        gone, self._gone = self._gone, []
        if gone:
            self._lists.clear()
        for path in gone:
            with suppress(OSError):  # what stays is ignored, and gc takes it with the file it was made of
                os.unlink(path)

    def rolled_back(self) -> None:
        self._gone.clear()

    def forked(self) -> None:
        self._gone.clear()

    def finder(self, table: str, column: str, metric: str) -> Callable[[int], ann.Lists | None] | None:
        """Gives the lists of a column's files by number; None where no index serves searches by this metric."""
        index = self.on(table, column)
        if index is None or index.metric != metric:
            return None
        return lambda file: self.lists(index, file)

    # -- lists ---------------------------------------------------------------------------------------------------------

    def lists(self, index: VectorIndex, file: int) -> ann.Lists | None:
        """The lists of the vector file of that number; None where it has none (yet) and is to be scanned."""
        metric = _metric(index)
        known = self._lists.get((file, metric))
        if known is None:
            row = self._catalog.fetchone(_FILE, (file,))
            known = None if row is None or row[2] < ann.MIN_ROWS else self._load(row, metric)
            if known is not None:
                self._lists[file, metric] = known
        return known

    def _load(self, row: tuple[Any, ...], metric: Metric) -> ann.Lists | None:
        url, sha256, count, dimension = row
        try:
            return ann.load(self._catalog.root.path(url), sha256, count, dimension, metric)
        except CorruptionError as error:
            warnings.warn(f"{error}; until then the file is scanned", RuntimeWarning, stacklevel=2)
            return None

    def build(self, index: VectorIndex, *, progress: bool = False) -> int:
        """Makes the lists that an index lacks; gives the number of files that got some.

        A file of fewer than 8,192 rows gets none, nor does what rests in the catalog (`Database.optimize` seals it).

        Raises:
            InputError: faiss is not installed, or a transaction is open.
        """
        if self._catalog.in_transaction:
            raise InputError("lists are made outside of a transaction; leave it, then call db.optimize()")
        metric = _metric(index)
        todo = [(f, path, row) for f, path, row in self._files(index) if self._lacks(row, metric)]
        total = sum(row[2] for *_, row in todo)
        with progress_bar(total, progress, unit=" rows", description="lists") as bar:
            for file, path, row in todo:
                ann.save(path, ann.make(self._vectors.matrix(file, 0), metric, index.lists, bar), row[1])
        return len(todo)

    def damaged(self, index: VectorIndex) -> Iterator[tuple[str, str]]:
        """(path, what is wrong) of the lists of an index whose bytes are not what was written."""
        for _, path, (_, sha256, count, dimension) in self._files(index):
            try:
                ann.load(path, sha256, count, dimension, _metric(index))
            except CorruptionError as error:
                yield ann.path_of(path), str(error)

    def forget(self) -> None:
        """Reads lists again when they are next asked for."""
        self._lists.clear()

    def _lacks(self, row: tuple[Any, ...], metric: Metric) -> bool:
        url, sha256, count, dimension = row
        if count < ann.MIN_ROWS:
            return False
        try:
            return ann.load(self._catalog.root.path(url), sha256, count, dimension, metric) is None
        except CorruptionError:
            return True

    def _files(self, index: VectorIndex) -> list[tuple[int, str, tuple[Any, ...]]]:
        """(number, path, row of the catalog) of every sealed file that the column's rows lead to, on any branch."""
        with self._catalog.snapshot():
            rows = ((file, self._catalog.fetchone(_FILE, (file,))) for file in self._reached(index))
            return [(file, self._catalog.root.path(row[0]), row) for file, row in rows if row is not None]

    def _reached(self, index: VectorIndex) -> list[int]:
        branches = self._catalog.fetchall("SELECT branch FROM _dl_overlays WHERE table_name = ?", (index.table,))
        found: set[int] = set()
        column = quote_identifier(index.column)
        for real in (index.table, *(overlay_name(branch, index.table) for (branch,) in branches)):
            # from file to file by the column's own index: a look-up each, however many rows there are
            sql = f"SELECT min({column}) FROM main.{quote_identifier(real)} WHERE {column} > ?"
            address = self._catalog.fetchone(sql, (0,))[0]
            while address is not None:
                found.add(address >> ORDINAL_BITS)
                address = self._catalog.fetchone(sql, (address | MAX_ORDINAL,))[0]
        return sorted(found)


class IndexVerbs:
    """What Database inherits."""

    _catalog: Catalog
    _indexes: Indexes

    def create_index(
        self,
        table: str,
        column: str,
        *,
        kind: str = "ivf",
        name: str | None = None,
        lists: int | None = None,
        metric: Metric = "cosine",
        progress: bool = False,
    ) -> int:
        """The number of vector files that got lists: an index for approximate searches (``exact=False``).

        SQL, and searches with ``exact=True``, do not use it and stay exact. Vectors that are inserted later are scanned
        until the next `optimize`, which makes the lists that are missing. One index a column.

        Args:
            kind: ``ivf``: inverted lists, made by faiss (the extra ``ann``).
            name: default ``<table>_<column>_idx``.
            lists: per file; None takes a list per 1,000 rows, above a million rows the root of their number.
            metric: of the searches that the index serves: ``cosine``, ``l2`` or ``inner``.
            progress: show a progress bar.

        Raises:
            InputError: the name or the column has an index already, a wrong option, faiss is not installed, or the
                catalog is in PostgreSQL, whose indexes CREATE INDEX ... USING hnsw makes.
            NotFoundError: no such table or column.

        >>> db.create_index("generations", "clip_embedding", lists=1000)                # doctest: +SKIP
        1
        """
        if kind != "ivf":
            raise InputError(f"kind={kind!r} is not supported; write kind='ivf'")
        if metric not in ("cosine", "l2", "inner"):
            raise InputError(f"metric={metric!r} is none of cosine, l2, inner")
        if lists is not None and (type(lists) is not int or not 1 <= lists <= ann.MAX_LISTS):
            raise InputError(f"lists={lists!r}: expected a whole number from 1 to {ann.MAX_LISTS}, or None")
        found = self._catalog.tables().get(table)
        known = None if found is None else found.column(column)
        if found is None or known is None:
            raise NotFoundError(f"there is no column {column!r} in a table {table!r}; see db.tables()")
        if not known.type.is_vector:
            raise InputError(f"an index of this kind is for VECTOR columns; {column!r} is {known.type}")
        index = VectorIndex(name or f"{found.name}_{known.name}_idx", found.name, known.name, kind, metric, lists)
        with self._catalog.transaction():
            self._indexes.create(index)
        return self._indexes.build(index, progress=progress)

    def drop_index(self, name: str) -> None:
        """Forget a vector index and its lists; searches scan, as before it was made.

        Raises:
            NotFoundError: no vector index has this name.
        """
        with self._catalog.transaction():
            index = self._indexes.named(name)
            if index is None:
                known = ", ".join(i.name for i in self._indexes.all()) or "none"
                raise NotFoundError(f"there is no vector index {name!r}; vector indexes: {known}")
            self._indexes.drop(index)

    def indexes(self) -> list[VectorIndex]:
        """The vector indexes, each with name, table, column, kind, metric and lists."""
        return self._indexes.all()


def _metric(index: VectorIndex) -> Metric:
    known: dict[str, Metric] = {"cosine": "cosine", "l2": "l2", "inner": "inner"}
    return known[index.metric]
