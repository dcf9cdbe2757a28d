"""The vector columns of a store: rows of matrices, by address.

Vectors of small transactions rest in the catalog (one value per append, under an ordinal of the column's open file) and
move to one sealed .npy at 1 MB; an append of 1 MB or more goes to a .npy at once, the one that the same transaction
began, if any. Either way the address was given at the append and never changes: sealing moves bytes, not rows.

    append < 1 MB -> _dl_tail --- 1 MB or seal() ---.
    append >= 1 MB ---------------------------------+-> vectors/<table>/<column>/<name>.npy
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from deeplake_loader import scoring, store
from deeplake_loader.catalog import Catalog, Participant, weakly
from deeplake_loader.errors import (
    CorruptionError,
    DeeplakeError,
    DimensionError,
    InputError,
    NotFoundError,
    TypeMismatchError,
)
from deeplake_loader.matrices import HEADER, Layout, Matrix, Part, Sealed, Tail, Written, pack_run, unpack_run
from deeplake_loader.scoring import ScoreFunction
from deeplake_loader.types import MAX_ORDINAL, ORDINAL_BITS, ColumnType, pack_address, unpack_address

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Buffer

    Array = np.ndarray[Any, np.dtype[Any]]

BULK = 1 << 20
"""Bytes from which one append goes to a file at once."""

LARGEST = 256 << 20
"""Bytes up to which a transaction's further appends extend the file that it began."""

TAIL = 1 << 20
"""Bytes of resting vectors at which a column's tail is sealed: every process that opens the store reads them all."""

RUN, RUN_BYTES = 256, 64 << 10
"""Rows, or bytes, at which resting values become one: reading a value costs as much as reading 10 KB."""

_Key = tuple[str, str, Layout]
_FILE = (
    "SELECT kind, table_name, column_name, url, state, count, size, checks, dtype, dimension FROM _dl_files "
    "WHERE id = ?"
)

_RUNS = "SELECT address, data FROM _dl_tail WHERE address BETWEEN ? AND ? ORDER BY address"


class Vectors(Participant):
    """The vectors of one store; takes part in its catalog's transactions and answers for every address it gave.

    >>> import tempfile
    >>> from array import array
    >>> catalog = SqliteCatalog.open(tempfile.mkdtemp())
    >>> vectors = Vectors(catalog)
    >>> with catalog.transaction():
    ...     first, second = vectors.append("t", "v", ColumnType.parse("VECTOR(2)"), array("f", [1, 0, 0, 2]), 2)
    >>> array("f", vectors.get(second)).tolist()
    [0.0, 2.0]
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._matrices: dict[int, Matrix] = {}
        self._merged: dict[str, Sealed] = {}  # files that hold the rows of several
        self._open: dict[_Key, int] = {}
        self._written: list[tuple[int, Written]] = []
        self._unsettled: list[tuple[int, Written]] = []  # of these, the catalog has no checksums yet
        self._growing: dict[_Key, tuple[int, int, Written]] = {}  # (file, rows, file being written)
        self._error: DeeplakeError | None = None
        find, keep = weakly(self.matrix), weakly(self._keep_error)
        self._functions = [ScoreFunction(name, find, keep) for name in scoring.FUNCTIONS]
        catalog.participants.append(self)

    # -- writing -------------------------------------------------------------------------------------------------------

    def append(
        self, table: str, column: str, type: ColumnType, data: Buffer, count: int, *, behind: bool = False
    ) -> range:
        """The addresses of ``count`` new vectors, consecutive, in order.

        ``data``: any contiguous buffer of ``count * type.dimension`` elements of ``type.dtype``, little-endian, checked
        to be finite by whoever encoded it. It may be reused as soon as the call returns, or, with ``behind``, once
        ``settle`` did: a thread writes large vectors meanwhile. Runs inside ``catalog.transaction()``, with which the
        vectors come or go.

        Raises:
            DimensionError: the buffer's size is not that of ``count`` vectors.
            StoreError: the disk is full or refuses.
        """
        layout, flat = Layout.of(type), _flat(data)
        if len(flat) != count * layout.stride:
            raise DimensionError(
                f"column {column!r} of {table!r}: {len(flat)} bytes for {count} vectors of {type}, which are "
                f"{count * layout.stride}"
            )
        if not self._catalog.in_transaction:
            raise InputError("append vectors inside catalog.transaction(): rows and vectors commit as one")
        if not count:
            return range(0)
        key = (table, column, layout)
        if len(flat) < BULK:
            return self._append_tail(key, flat, count)
        growing = self._growing.get(key)
        if growing is not None and growing[2].size + len(flat) <= LARGEST:
            return self._extend_file(key, flat, count)
        addresses = self._append_file(key, flat, count)
        if not behind:
            self.settle()
        return addresses

    def settle(self) -> None:
        """Waits until what ``append`` left behind is written, and records its checksums.

        Raises:
            StoreError: the disk is full or refuses.
        """
        for file, written in self._unsettled:
            self._catalog.execute("UPDATE _dl_files SET checks = ? WHERE id = ?", (written.checks, file))
        self._unsettled.clear()

    def _append_file(self, key: _Key, data: memoryview, count: int) -> range:
        table, column, layout = key
        pack_address(1, count - 1)
        url = _new_url(table, column)
        written = self._write(url, layout, data, count)
        file = self._insert_file((table, column, url, "sealed", count, written.size, None), layout, written)
        self._unsettled.append((file, written))
        self._growing[key] = file, count, written
        first = pack_address(file, 0)
        return range(first, first + count)

    def _extend_file(self, key: _Key, data: memoryview, count: int) -> range:
        self.settle()
        file, held, written = self._growing[key]
        total = held + count
        first = pack_address(file, total - 1) - count + 1
        written.extend(key[2].header(total), data)
        self._growing[key] = file, total, written
        sql = "UPDATE _dl_files SET count = ?, size = ?, checks = ? WHERE id = ?"
        self._catalog.execute(sql, (total, written.size, written.checks, file))
        self._matrices.pop(file, None)  # mapped with the header of fewer rows
        return range(first, first + count)

    def _write(self, url: str, layout: Layout, data: memoryview, count: int) -> Written:
        self._catalog.root.make_folder(url.rpartition("/")[0])
        return Written(self._catalog.root.path(url), layout.header(count), data)

    def _insert_file(self, values: Sequence[object], layout: Layout, written: Written | None) -> int:
        sql = (
            "INSERT INTO _dl_files (kind, table_name, column_name, url, state, count, size, checks, dtype, dimension) "
            "VALUES ('vector', ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id"
        )
        try:
            file = int(self._catalog.fetchone(sql, (*values, layout.dtype, layout.dimension))[0])
        except BaseException:
            if written is not None:
                written.discard()
            raise
        if written is not None:
            self._written.append((file, written))
        return file

    def _append_tail(self, key: _Key, data: memoryview, count: int) -> range:
        total, size = self._reserve(key, count, len(data)) or self._new_tail(key, count, len(data))
        file = self._open[key]
        first = pack_address(file, total - count)
        self._catalog.execute("INSERT INTO _dl_tail (address, data) VALUES (?, ?)", (first, pack_run(data)))
        if size >= TAIL:
            self._seal(file)
        else:
            self._merge(file, key[2], total, count)
        return range(first, first + count)

    def _reserve(self, key: _Key, count: int, size: int) -> tuple[int, int] | None:
        """(rows, bytes) of the column's open file once ``count`` rows were added; None where none is open."""
        file = self._open.get(key) or self._find_open(*key)
        if file is None:
            return None
        sql = (
            "UPDATE _dl_files SET count = count + ?, size = size + ? WHERE id = ? AND state = 'open' "
            "RETURNING count, size"
        )
        row = self._catalog.fetchone(sql, (count, size, file))
        if row is None:  # another process sealed it
            self._open.pop(key, None)
            return self._reserve(key, count, size) if self._find_open(*key) else None
        self._open[key] = file
        return int(row[0]), int(row[1])

    def _find_open(self, table: str, column: str, layout: Layout) -> int | None:
        sql = (
            "SELECT id FROM _dl_files WHERE table_name = ? AND kind = 'vector' AND state = 'open' AND column_name = ? "
            "AND dtype = ? AND dimension = ? ORDER BY id LIMIT 1"
        )
        row = self._catalog.fetchone(sql, (table, column, layout.dtype, layout.dimension))
        return None if row is None else int(row[0])

    def _new_tail(self, key: _Key, count: int, size: int) -> tuple[int, int]:
        table, column, layout = key
        values = (table, column, _new_url(table, column), "open", count, size, None)
        self._open[key] = self._insert_file(values, layout, None)
        return count, size

    def seal(self, table: str | None = None) -> int:
        """The number of tails that moved from the catalog to .npy files, of one table or of all, in one commit."""
        sql = "SELECT id FROM _dl_files WHERE kind = 'vector' AND state = 'open' AND count > 0"
        with self._catalog.transaction():
            if table is None:
                rows = self._catalog.fetchall(sql)
            else:
                rows = self._catalog.fetchall(f"{sql} AND table_name = ?", (table,))
            for (file,) in rows:
                self._seal(file)
        return len(rows)

    def _merge(self, file: int, layout: Layout, total: int, added: int) -> None:
        """Once a run of the file's ``total`` rows is whole, makes one value of those that begin in it or behind it."""
        run = min(RUN, RUN_BYTES // layout.stride)
        if run < 16 or total // run == (total - added) // run:  # few long vectors make a tail: not worth a copy
            return
        begin, end = pack_address(file, (total // run - 1) * run), pack_address(file, total)
        rows = self._catalog.fetchall(_RUNS, (begin, end))
        if len(rows) > 1:
            data = b"".join([unpack_run(data, f"file {file}, address {a}") for a, data in rows])
            self._catalog.execute("DELETE FROM _dl_tail WHERE address BETWEEN ? AND ?", (begin, end))
            values = (rows[0][0], pack_run(memoryview(data)))
            self._catalog.execute("INSERT INTO _dl_tail (address, data) VALUES (?, ?)", values)

    def _seal(self, file: int) -> None:
        """Moves an open file's rows from the catalog into its .npy; addresses stay."""
        row = self._file_row(file)
        layout, first = Layout(row["dimension"], row["dtype"]), pack_address(file, 0)
        data = memoryview(b"".join(self._runs(row["url"], first, first + MAX_ORDINAL)))
        count = len(data) // layout.stride
        if count != row["count"]:
            raise CorruptionError(f"{row['url']}: the catalog holds {count} resting vectors of {row['count']}")
        url = _new_url(row["table_name"], row["column_name"])  # never one that a killed seal may have begun
        written = self._write(url, layout, data, count)
        self._written.append((file, written))
        self._catalog.execute("DELETE FROM _dl_tail WHERE address BETWEEN ? AND ?", (first, first + MAX_ORDINAL))
        sql = "UPDATE _dl_files SET state = 'sealed', url = ?, size = ?, checks = ? WHERE id = ?"
        self._catalog.execute(sql, (url, written.size, written.checks, file))
        self._matrices.pop(file, None)
        self._open = {key: number for key, number in self._open.items() if number != file}

    # -- the transaction -----------------------------------------------------------------------------------------------

    def savepoint(self) -> int:
        self.settle()
        self._growing.clear()  # what a savepoint may undo goes to files of its own
        return len(self._written)

    def rollback_to(self, token: object) -> None:
        kept = cast(int, token)
        undone, self._written = self._written[kept:], self._written[:kept]
        self._growing.clear()
        for file, written in undone:
            self._matrices.pop(file, None)
            written.discard()
        self._forget()

    def prepare(self) -> None:
        """Waits until every file of the transaction is on the disk, and records its sha256."""
        self.settle()
        self._growing.clear()
        for file, written in self._written:
            self._catalog.execute("UPDATE _dl_files SET sha256 = ? WHERE id = ?", (written.finish(), file))
        if self._catalog.root.storage is not None:
            for _, written in self._written:
                self._catalog.root.storage.upload(self._name(written), written.path)

    def _name(self, written: Written) -> str:
        return os.path.relpath(written.path, self._catalog.root.base).replace(os.sep, "/")

    def committed(self) -> None:
        if self._catalog.root.storage is not None:
            for _, written in self._written:
                self._catalog.root.storage.keep(self._name(written), written.size)
        self._written.clear()

    def rolled_back(self) -> None:
        self.rollback_to(0)

    def forked(self) -> None:
        """The parent's open transaction may yet roll back: its rows are not ours to remember."""
        self.rollback_to(0)

    def close(self) -> None:
        """Lets go of every mapped file, and removes those of a transaction that is still open."""
        if self._catalog.in_transaction:
            self.rolled_back()
        self._matrices.clear()
        self._merged.clear()

    def _forget(self) -> None:
        """Drops what may have come from rows that are gone; a rolled-back address is given out again."""
        self._unsettled.clear()
        self._matrices = {file: matrix for file, matrix in self._matrices.items() if not isinstance(matrix, Tail)}
        self._open.clear()
        for function in self._functions:
            function.forget()

    # -- reading -------------------------------------------------------------------------------------------------------

    def get(self, address: int) -> bytes:
        """One vector's bytes, little-endian, verified.

        Raises:
            NotFoundError: no vector has this address.
            CorruptionError: its bytes changed on disk.
        """
        file, ordinal = unpack_address(address)
        matrix = self.matrix(file, ordinal)
        matrix.verify(range(ordinal, ordinal + 1))
        stride = matrix.layout.stride
        return bytes(matrix.view[ordinal * stride : (ordinal + 1) * stride])

    def array(self, address: int) -> Array:
        """One vector as a writable array of its own, float32 or float16 as the column has it."""
        import numpy as np

        file, ordinal = unpack_address(address)
        dtype = self.matrix(file, ordinal).layout.dtype
        return np.frombuffer(bytearray(self.get(address)), dtype)

    def gather(self, addresses: Array) -> Array:
        """The vectors of one column as an (n, dimension) array, in the order of ``addresses`` (int64, repeats allowed).

        Raises:
            DimensionError: the addresses belong to columns of different dimension or dtype.
            NotFoundError: an address without a vector; 0, which stands for NULL, is one.
        """
        import numpy as np

        wanted = np.asarray(addresses, np.int64)
        if not len(wanted):
            raise InputError("gather needs at least one address: an empty list has no dimension")
        if (wanted >> ORDINAL_BITS == wanted[0] >> ORDINAL_BITS).all():
            return self._rows(int(wanted[0] >> ORDINAL_BITS), wanted & MAX_ORDINAL)
        order = np.argsort(wanted)  # one sort, or each of many files would look through all addresses
        ordinals, files = wanted[order] & MAX_ORDINAL, wanted[order] >> ORDINAL_BITS
        cuts = [0, *(np.flatnonzero(files[1:] != files[:-1]) + 1).tolist(), len(wanted)]
        layout = _one_layout([self.matrix(int(files[b - 1]), int(ordinals[b - 1])) for b in cuts[1:]])
        out = np.empty((len(wanted), layout.dimension), layout.dtype)
        for a, b in pairwise(cuts):
            out[order[a:b]] = self._rows(int(files[a]), ordinals[a:b])
        return out

    def _rows(self, file: int, ordinals: Array) -> Array:
        """A copy of these rows of one file, verified."""
        import numpy as np

        matrix = self.matrix(file, int(ordinals.max()))
        try:
            matrix.verify_array(ordinals)
        except NotFoundError:  # its rows were moved into another file, and gc took this one
            self._matrices.pop(file, None)
            self._merged.clear()
            matrix = self.matrix(file, int(ordinals.max()))
            matrix.verify_array(ordinals)
        rows = np.frombuffer(matrix.view, matrix.layout.dtype).reshape(matrix.count, matrix.layout.dimension)
        return rows.take(ordinals, axis=0)

    def matrix(self, file: int, ordinal: int) -> Matrix:
        """The file of that number as a matrix that holds at least row ``ordinal``; bytes not yet verified."""
        known = self._matrices.get(file)
        if known is None or ordinal >= known.count:
            with self._catalog.snapshot():  # another process may seal the file between two reads
                known = self._matrices[file] = self._load(file, known)
        if ordinal >= known.count:
            raise NotFoundError(f"file {file} of the vectors holds {known.count} rows; row {ordinal} was never written")
        return known

    def _load(self, file: int, known: Matrix | None) -> Matrix:
        self.settle()
        row = self._file_row(file)
        layout = Layout(row["dimension"], row["dtype"])
        if row["state"] == "sealed":
            name, is_part, begin = row["url"].partition("#")
            if not is_part:
                return self._sealed(name, layout, row["count"], row["checks"])
            if name not in self._merged:
                total = (row["size"] - HEADER) // layout.stride
                self._merged[name] = self._sealed(name, layout, total, row["checks"])
            return Part(self._merged[name], int(begin), row["count"])
        held = known.data if isinstance(known, Tail) else b""
        first = pack_address(file, 0)
        after = first + len(held) // layout.stride
        # the value that holds the next row may begin before it: another process may have made one of several
        sql = "SELECT max(address) FROM _dl_tail WHERE address BETWEEN ? AND ?"
        begin = self._catalog.fetchone(sql, (first, after))
        start = after if begin[0] is None else int(begin[0])
        fresh = b"".join(self._runs(row["url"], start, first + MAX_ORDINAL))
        return Tail(layout, held + fresh[(after - start) * layout.stride :])

    def _sealed(self, url: str, layout: Layout, count: int, checks: bytes) -> Sealed:
        root, source = self._catalog.root, None
        if root.storage is not None:
            from deeplake_loader.storage.mapped import open_mapped

            source = open_mapped(root, url, layout.size(count))
        return Sealed(root.path(url), url, layout, count, checks, source=source)

    def _file_row(self, file: int) -> dict[str, Any]:
        row = self._catalog.fetchone(_FILE, (file,))
        if row is None:
            raise NotFoundError(f"no file has the number {file}, so this address was not given by this store")
        names = ("kind", "table_name", "column_name", "url", "state", "count", "size", "checks", "dtype", "dimension")
        named = dict(zip(names, row, strict=True))
        if named["kind"] != "vector":
            raise TypeMismatchError(f"file {file} ({named['url']}) holds blobs; a score needs the address of a vector")
        return named

    def _runs(self, url: str, first: int, last: int) -> Iterable[memoryview]:
        return [unpack_run(data, f"{url}, address {a}") for a, data in self._catalog.fetchall(_RUNS, (first, last))]

    # -- scores --------------------------------------------------------------------------------------------------------

    def register(self, connection: sqlite3.Connection) -> None:
        """Gives a connection the score functions: cosine_similarity, cosine_distance, l2_distance, inner_product and
        negative_inner_product, of (address | float32 blob | text '[0.1, 0.2]' | NULL), NULL where there is no score.

        An error inside SQLite loses its type; ``take_error`` has it.
        """
        for function in self._functions:
            function.register(connection)

    def take_error(self) -> DeeplakeError | None:
        """The error that a score function raised since the last call, or None."""
        error, self._error = self._error, None
        return error

    def _keep_error(self, error: DeeplakeError) -> None:
        self._error = error


def _flat(data: Buffer) -> memoryview:
    view = memoryview(data)
    if view.format == "e":  # memoryview.cast takes no half floats before Python 3.14; whoever holds them has numpy
        import numpy as np

        return np.frombuffer(view, np.uint8).data
    return view.cast("B")


def _new_url(table: str, column: str) -> str:
    names = map(store.encode_name, (table, column))
    return "/".join((store.VECTORS, *names, f"{store.unique_name()}.npy"))


def _one_layout(matrices: Sequence[Matrix]) -> Layout:
    layout = matrices[0].layout
    if any(matrix.layout != layout for matrix in matrices):
        found = ", ".join(sorted({f"{m.layout.dimension} {m.layout.dtype}" for m in matrices}))
        raise DimensionError(f"the addresses belong to vectors of different kinds ({found}); gather one column a call")
    return layout
