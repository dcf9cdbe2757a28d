"""The matrices that searches scan: a VECTOR column's numbers once more, as files beside the shards.

    matrices/<table>/<column>/<name>.npy    the vectors in order of their keys: a .npy as `matrices` has it
    matrices/<table>/<column>/<name>.keys   their primary keys: a .npy of int64, ascending

Both are derived: `Matrices.build` makes them from the table in one snapshot, and nothing is lost with them. The catalog
keeps, beside the checksums, the pg_snapshot they were read at. Which of their rows may have changed since is what the
undo log names behind that snapshot, whoever wrote it; those are asked for anew by every search. A table that was
rewritten, truncated or dropped has another file in the database, whose number is kept as well.
"""

from __future__ import annotations

import math
import os
import struct
import time
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from deeplake_loader import kernels, store
from deeplake_loader.branches import HISTORY_FROM
from deeplake_loader.catalog import Participant
from deeplake_loader.errors import CorruptionError, DeeplakeError
from deeplake_loader.history import LOG_PREFIX
from deeplake_loader.matrices import BLOCK, HEADER, Layout, Sealed
from deeplake_loader.postgres.vectors import rows_from_wire, stored_form, width_of
from deeplake_loader.types import Table, quote_identifier

if TYPE_CHECKING:
    import numpy as np

    from deeplake_loader.matrices import Dtype
    from deeplake_loader.postgres.catalog import PostgresCatalog
    from deeplake_loader.types import Column

    Array = np.ndarray[Any, np.dtype[Any]]

WORTH = 10_000
"""Rows from which a column gets a matrix: PostgreSQL scores fewer by itself in the same time."""

ARRAYS_WORTH = 40
"""So many times fewer rows are worth one in a column of ``real[]``: scores of those are computed in SQL, 10,000 x 768
in 2.2 s where pgvector takes 50 ms."""

STALE = 8
"""A matrix of which this share of the rows has changed is made anew by `optimize`."""

SHORTEST, LONGEST = 1e-15, 1e15
"""Lengths of vectors whose scores PostgreSQL computes without under- or overflow: it multiplies in float32."""

FOLDER = "matrices"
"""Beside ``shards`` and ``vectors``, where every file holds what is nowhere else."""

_DECLARATION = (
    "CREATE TABLE IF NOT EXISTS _dl_matrices (id INTEGER PRIMARY KEY AUTOINCREMENT, table_name TEXT NOT NULL, "
    "column_name TEXT NOT NULL, url TEXT NOT NULL, count INTEGER NOT NULL, checks BLOB NOT NULL, dtype TEXT NOT NULL, "
    "dimension INTEGER NOT NULL, filenode INTEGER NOT NULL, snapshot TEXT NOT NULL, pruned TEXT NOT NULL, "
    "longest DOUBLE PRECISION NOT NULL, keys_check INTEGER NOT NULL)"
)
_COLUMNS = "url, count, checks, dtype, dimension, filenode, snapshot, pruned, longest, keys_check"
_NEWEST = f"SELECT id, {_COLUMNS} FROM _dl_matrices WHERE table_name = ? AND column_name = ? ORDER BY id DESC LIMIT 1"
_TABLE = "SELECT pg_relation_filenode(c.oid), c.relrowsecurity FROM pg_class c WHERE c.oid = ?::regclass"
_COPY_HEAD = 19
_ABANDONED_S = 86_400.0
_CHUNK = 16 << 20


@dataclass(frozen=True, slots=True)
class Held:
    """One column's matrix: ``keys`` int64, ascending, of its rows; ``snapshot`` it was read at; ``longest`` vector."""

    file: int
    matrix: Sealed
    keys: Array
    snapshot: str
    longest: float


class Matrices(Participant):
    """The matrices of one store as this process has opened them."""

    def __init__(self, catalog: PostgresCatalog) -> None:
        self._catalog = catalog
        self._open: dict[int, Held] = {}
        self._bad: set[int] = set()
        self._declared = False
        catalog.participants.append(self)

    # -- reading -------------------------------------------------------------------------------------------------------

    def of(self, table: str, column: str) -> Held | None:
        """The newest matrix of a column of main; None where there is none that fits the table. Inside a snapshot."""
        if not self._known():
            return None
        row = self._catalog.fetchone(_NEWEST, (table, column))
        if row is None or row[0] in self._bad or not self._fits(table, *row[6:9]):
            return None
        if row[0] not in self._open:
            try:
                self._open[row[0]] = self._load(row)
            except DeeplakeError:  # derived: what is gone or damaged is made anew by optimize
                return None
        return self._open[row[0]]

    def damaged(self) -> list[tuple[Held, str]]:
        """The matrices that searches use whose bytes are not what was written, and what is wrong."""
        found = []
        with self._catalog.snapshot():
            used = [self.of(t.name, column.name) for t in self._catalog.tables().values() for column in t.vectors]
        for held in filter(None, used):
            try:
                held.matrix.verify(range(held.matrix.count))
            except CorruptionError as error:
                found.append((held, str(error)))
        return found

    def give_up(self, held: Held) -> None:
        """Uses a matrix no more whose bytes turned out to be damaged; the next `build` makes another one."""
        self._bad.add(held.file)
        self._open.pop(held.file, None)

    def _known(self) -> bool:
        if not self._declared:
            self._declared = self._catalog.fetchone("SELECT to_regclass('_dl_matrices')")[0] is not None
        return self._declared

    def _fits(self, table: str, filenode: int, _snapshot: str, pruned: str) -> bool:
        """Whether the table is the one that was read, its undo log reaches back so far, and all rows may be seen."""
        found = self._catalog.fetchone(_TABLE, (self._catalog.history.real(table),))
        return found == (filenode, False) and (self._catalog.meta(HISTORY_FROM) or "") == pruned

    def _load(self, row: Any) -> Held:
        file, url, count, checks, dtype, dimension, _, snapshot, _, longest, keys_check = row
        matrix = Sealed(self._catalog.root.path(url), url, Layout(dimension, dtype), count, bytes(checks))
        keys = _read_keys(self._catalog.root.path(_keys_url(url)), count, keys_check)
        return Held(file, matrix, keys, snapshot, longest)

    def changed(self, table: str, key: str, held: Held) -> Array:
        """The keys, ascending, of rows that may differ from the matrix: all that were written since its snapshot."""
        import numpy as np

        log, name = self._catalog.history.real(LOG_PREFIX + table), quote_identifier(key)
        rows = self._catalog.fetchone(
            f"SELECT array_agg(DISTINCT {name}::bigint) FROM {log} WHERE _dl_xid >= pg_snapshot_xmin(?::pg_snapshot) "
            "AND NOT pg_visible_in_snapshot(_dl_xid, ?::pg_snapshot)",
            (held.snapshot, held.snapshot),
        )
        return np.array(rows[0] or [], np.int64)

    # -- making --------------------------------------------------------------------------------------------------------

    def build(self) -> int:
        """Makes the matrices that are lacking or stale; gives the number of columns that got one.

        Raises:
            StoreError: the disk is full or refuses.
        """
        self._sweep()
        columns = [(table, column) for table in self._catalog.tables().values() for column in table.vectors]
        return sum([self.build_one(table, column) for table, column in columns])

    def build_one(self, table: Table, column: Column) -> bool:
        """Makes one column's matrix; False where there is a good one, or it would not be worth it."""
        key = key_of(table)
        if key is None or self._catalog.read_only or self._catalog.in_transaction:
            return False
        with self._catalog.snapshot():
            held = self.of(table.name, column.name)
            if held is not None and len(self.changed(table.name, key, held)) * STALE < len(held.keys):
                return False
            made = self._copied(table, column, key)
        return made is not None and self._record(table, column, made)

    def _copied(self, table: Table, column: Column, key: str) -> _Made | None:
        """The files of the column as of the open snapshot; None for too few rows, or vectors that scores over- or
        underflow for."""
        real = self._catalog.history.real(table.name)
        filenode, hidden = self._catalog.fetchone(_TABLE, (real,))
        name, key = quote_identifier(column.name), quote_identifier(key)
        chosen = f"FROM {real} WHERE {name} IS NOT NULL"
        form = stored_form(self._catalog.fetchone, real, column.name)
        least = WORTH // ARRAYS_WORTH if form == "real[]" else WORTH
        if hidden or self._catalog.fetchone(f"SELECT count(*) {chosen}")[0] < least:
            return None
        snapshot = self._catalog.fetchone("SELECT pg_current_snapshot()::text")[0]
        url = "/".join((FOLDER, *map(store.encode_name, (table.name, column.name)), store.unique_name()))
        self._catalog.root.make_folder(url.rpartition("/")[0])
        layout = Layout(column.type.dimension, cast("Dtype", column.type.dtype))
        copy = f"COPY (SELECT {key}::bigint, {name} {chosen} ORDER BY 1) TO STDOUT (FORMAT binary)"
        writing = _Writing(self._catalog.root.path(f"{url}.npy"), layout)
        try:
            for piece in _pieces(self._catalog.connection, copy, width_of(form, layout.dimension)):
                rows = rows_from_wire(piece[:, 18:], form, layout.dimension)
                writing.add(piece[:, 6:14], rows.astype(layout.dtype, copy=False))
            return writing.finish(f"{url}.npy", int(filenode), str(snapshot), self._catalog.meta(HISTORY_FROM) or "")
        except BaseException:
            writing.discard()
            raise

    def _record(self, table: Table, column: Column, made: _Made) -> bool:
        where = (table.name, column.name)
        values = (
            made.url, made.count, made.checks, made.layout.dtype, made.layout.dimension, made.filenode, made.snapshot,
            made.pruned, made.longest, made.keys_check,
        )  # fmt: skip
        marks = ", ".join("?" * (2 + len(values)))
        try:
            with self._catalog.transaction():
                if not self._known():
                    self._catalog.declare(_DECLARATION)
                old = self._forget(*where)
                insert = f"INSERT INTO _dl_matrices (table_name, column_name, {_COLUMNS}) VALUES ({marks})"
                self._catalog.execute(insert, (*where, *values))
        except BaseException:
            self._remove(made.url)
            raise
        for url in old:
            self._remove(url)
        return True

    def _forget(self, table: str, column: str) -> list[str]:
        rows = self._catalog.fetchall(
            "DELETE FROM _dl_matrices WHERE table_name = ? AND column_name = ? RETURNING url", (table, column)
        )
        return [url for (url,) in rows]

    def _sweep(self) -> None:
        """Lets go of the matrices of columns that are gone, and of files that a killed process left a day ago."""
        if not self._known() or self._catalog.read_only:
            return
        held = self._catalog.fetchall("SELECT table_name, column_name, url FROM _dl_matrices")
        columns = {(table.name, column.name) for table in self._catalog.tables().values() for column in table.vectors}
        for table, column, url in held:
            if (table, column) not in columns:
                with self._catalog.transaction():
                    self._forget(table, column)
                self._remove(url)
        known = {url.rpartition(".")[0] for _, _, url in held}
        root = self._catalog.root.folder
        for folder, _, names in os.walk(os.path.join(root, FOLDER)):
            for name in names:
                path = os.path.join(folder, name)
                url = os.path.relpath(path, root).replace(os.sep, "/")
                if url.rpartition(".")[0] not in known and time.time() - os.stat(path).st_mtime > _ABANDONED_S:
                    self._remove(url)

    def _remove(self, url: str) -> None:
        for name in (url, _keys_url(url)):
            with suppress(OSError):  # whoever has it mapped keeps it; what stays is gc's
                os.unlink(self._catalog.root.path(name))

    def close(self) -> None:
        """Lets go of every mapped file."""
        self._open.clear()

    def rollback_to(self, _token: object) -> None:
        self._declared = False

    def rolled_back(self) -> None:
        self._declared = False


@dataclass(frozen=True, slots=True)
class _Made:
    url: str
    layout: Layout
    count: int
    checks: bytes
    filenode: int
    snapshot: str
    pruned: str
    longest: float
    keys_check: int


class _Writing:
    """The two files while rows come."""

    def __init__(self, path: str, layout: Layout) -> None:
        self._path, self._layout = path, layout
        self._keys, self._size = array("q"), HEADER
        self._longest, self._fits = 0.0, True
        with store.file_errors("make the matrix", path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def add(self, keys: Array, rows: Array) -> None:
        import numpy as np

        squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
        longest, positive = math.sqrt(squares.max()), squares[squares > 0]
        shortest = math.sqrt(positive.min()) if len(positive) else 1.0
        self._fits = self._fits and shortest > SHORTEST and longest < LONGEST
        self._longest = max(self._longest, longest)
        self._keys.frombytes(np.ascontiguousarray(keys).view(">i8").astype("<i8").tobytes())
        data = rows.reshape(-1).view(np.uint8).data
        self._size = store.write_at(self._fd, [data], self._size, self._path)

    def finish(self, url: str, filenode: int, snapshot: str, pruned: str) -> _Made | None:
        count, layout = len(self._keys), self._layout
        if not self._fits or count < 1:
            self.discard()
            return None
        store.write_at(self._fd, [layout.header(count)], 0, self._path)
        checks = b"".join(
            kernels.crc32c(store.read_at(self._fd, at, min(BLOCK, self._size - at), self._path)).to_bytes(4, "little")
            for at in range(0, self._size, BLOCK)
        )
        with store.file_errors("sync", self._path):
            os.fsync(self._fd)
        os.close(self._fd)
        self._fd = -1
        check = _write_keys(_keys_url(self._path), self._keys)
        return _Made(url, layout, count, checks, filenode, snapshot, pruned, self._longest, check)

    def discard(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        for path in (self._path, _keys_url(self._path)):
            with suppress(OSError):
                os.unlink(path)


def _keys_url(url: str) -> str:
    return f"{url.rpartition('.')[0]}.keys"


def _keys_header(count: int) -> bytes:
    text = f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({count},), }}"
    return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + text.encode().ljust(HEADER - 11) + b"\n"


def _write_keys(path: str, keys: array[int]) -> int:
    data = _keys_header(len(keys)) + keys.tobytes()
    with store.file_errors("write the keys of a matrix", path), open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return kernels.crc32c(data)


def _read_keys(path: str, count: int, check: int) -> Array:
    import numpy as np

    with store.file_errors("read the keys of a matrix", path), open(path, "rb") as file:
        data = file.read(HEADER + 8 * count + 1)
    if len(data) != HEADER + 8 * count or kernels.crc32c(data) != check:
        raise CorruptionError(f"{path} holds other keys than were written; db.optimize() makes the matrix anew")
    return np.frombuffer(data, "<i8", count, HEADER)


def _pieces(connection: Any, copy: str, width: int) -> Iterator[Array]:
    """The rows of COPY (key, vector) in binary, some at a time: (n, bytes of a row) uint8, the key at 6, the vector at
    18. Every row is as wide as the others, so they are cut without looking into them."""
    import numpy as np

    row = struct.calcsize("!h i q i") + width
    held = bytearray()
    with connection.cursor() as cursor, cursor.copy(copy) as reading:
        for data in reading:
            held += data
            if len(held) >= _CHUNK:
                whole = (len(held) - _COPY_HEAD) // row * row  # the last bytes may be the trailer
                yield np.frombuffer(bytes(held[_COPY_HEAD : _COPY_HEAD + whole]), np.uint8).reshape(-1, row)
                held = held[:_COPY_HEAD] + held[_COPY_HEAD + whole :]
    if (len(held) - _COPY_HEAD - 2) % row or not held.endswith(b"\xff\xff"):
        raise CorruptionError("PostgreSQL sent rows of different widths; the column holds vectors of another dimension")
    if len(held) > _COPY_HEAD + 2:
        yield np.frombuffer(bytes(held[_COPY_HEAD:-2]), np.uint8).reshape(-1, row)


def key_of(table: Table) -> str | None:
    """The key column by which a table's rows find theirs in a matrix; None for one that is no single whole number."""
    names = table.primary_key
    column = table.column(names[0]) if len(names) == 1 else None
    return column.name if column is not None and column.type.name in ("SMALLINT", "INTEGER", "BIGINT") else None
