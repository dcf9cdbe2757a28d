"""Vectors by address: what was appended comes back, scores agree with numpy, and what is damaged is found."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import sqlite3
import subprocess
import sys
import textwrap
from array import array
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deeplake_loader import kernels, matrices, scoring, vectors
from deeplake_loader.catalog import Catalog
from deeplake_loader.errors import (
    CorruptionError,
    DimensionError,
    InputError,
    NotFoundError,
    SQLError,
    StoreError,
    TypeMismatchError,
)
from deeplake_loader.matrices import Layout, Sealed, Tail
from deeplake_loader.scoring import Metric
from deeplake_loader.search.candidates import Candidates
from deeplake_loader.search.engine import Searcher
from deeplake_loader.sqlite_catalog import SqliteCatalog
from deeplake_loader.types import ColumnType, unpack_address
from deeplake_loader.vectors import Vectors

D = 24
F32 = ColumnType.parse(f"VECTOR({D})")
F16 = ColumnType.parse(f"VECTOR({D}, float16)")
METRICS = {"cosine": True, "l2": False, "inner": True}


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = SqliteCatalog.open(tmp_path / "store")
    yield catalog
    catalog.close()


@pytest.fixture
def store(catalog: Catalog) -> Vectors:
    return connect(catalog)


def connect(catalog: Catalog) -> Vectors:
    store = Vectors(catalog)
    catalog.add_hook(store.register)
    return store


def matrix(count: int, *, seed: int = 0, dtype: str = "float32", dimension: int = D) -> np.ndarray:
    """Vectors with exact repeats, as real prompt embeddings have them."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, dimension)).astype(dtype)
    rows[rng.integers(0, count, count // 4)] = rows[: count // 4]
    return rows


def append(store: Vectors, rows: np.ndarray, column: str = "v") -> list[int]:
    kind = ColumnType("VECTOR", dtype=rows.dtype.name, shape=(rows.shape[1],))
    with store._catalog.transaction():
        return list(store.append("t", column, kind, rows, len(rows)))


def winners(store: Vectors, metric: str, addresses: Sequence[int], query: bytes, k: int, largest: bool) -> Any:
    """What a search over these candidates chooses."""
    candidates = Candidates.parse(",".join(map(str, addresses)))
    return Searcher(store.matrix, store.gather).winners(cast(Metric, metric), candidates, query, k, largest)


def truth(rows: np.ndarray, query: np.ndarray, metric: str) -> np.ndarray:
    """float64 scores as numpy computes them."""
    x, q = rows.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        return np.linalg.norm(x - q, axis=1)
    dots = x @ q
    with np.errstate(invalid="ignore", divide="ignore"):
        return dots if metric == "inner" else dots / (np.linalg.norm(x, axis=1) * np.linalg.norm(q))


def files(catalog: Catalog) -> list[str]:
    return sorted(str(p.relative_to(catalog.root.folder)) for p in Path(catalog.root.folder).rglob("*.npy"))


def bulk_rows() -> int:
    return vectors.BULK // (4 * D) + 1


def test_what_was_appended_comes_back_by_address(store: Vectors) -> None:
    small, half, big = matrix(5), matrix(7, dtype="float16"), matrix(bulk_rows())
    for rows, column in ((small, "v"), (half, "h"), (big, "v")):
        addresses = append(store, rows, column)
        assert len(set(addresses)) == len(rows)
        assert store.get(addresses[3]) == rows[3].tobytes()
        assert store.array(addresses[-1]).tolist() == rows[-1].tolist()
        order = np.random.default_rng(1).integers(0, len(rows), 40)
        assert np.array_equal(store.gather(np.array(addresses)[order]), rows[order])


def test_a_small_append_rests_in_the_catalog_and_a_bulk_append_is_one_file(store: Vectors, catalog: Catalog) -> None:
    append(store, matrix(5))
    assert files(catalog) == []
    rows = matrix(bulk_rows())
    append(store, rows)
    (name,) = files(catalog)
    assert name.startswith("vectors/t/v/")
    path = Path(catalog.root.folder, name)
    loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    assert np.array_equal(loaded, rows)
    assert loaded.offset % 64 == 0
    sha, size, checks = catalog.fetchone("SELECT sha256, size, checks FROM _dl_files WHERE state = 'sealed'")
    assert sha == hashlib.sha256(path.read_bytes()).hexdigest()
    assert size == path.stat().st_size
    assert len(checks) == 4 * -(-size // (1 << 20))


def test_bulk_appends_of_one_transaction_share_a_file(store: Vectors, catalog: Catalog) -> None:
    rows = matrix(4 * bulk_rows())
    parts = np.array_split(rows, 3)
    with catalog.transaction():
        addresses = []
        for part in parts:
            addresses += store.append("t", "v", F32, part, len(part))
            assert store.get(addresses[-1]) == part[-1].tobytes()  # readable before the commit, and extended after
            assert store.get(addresses[0]) == rows[0].tobytes()
    (path,) = (Path(catalog.root.folder, f) for f in files(catalog))
    assert addresses == list(range(addresses[0], addresses[0] + len(rows)))
    assert np.array_equal(np.load(path, allow_pickle=False), rows)
    sha, size, checks = catalog.fetchone("SELECT sha256, size, checks FROM _dl_files")
    assert (sha, size) == (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    assert checks == kernels.crc32c_blocks(path.read_bytes())
    assert np.array_equal(connect(catalog).gather(np.array(addresses)), rows)
    append(store, rows)
    assert len(files(catalog)) == 2


def test_a_file_is_extended_up_to_a_limit(store: Vectors, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "LARGEST", 5 << 19)
    rows = matrix(bulk_rows())
    with catalog.transaction():
        addresses = [a for _ in range(4) for a in store.append("t", "v", F32, rows, len(rows))]
    assert len(files(catalog)) == 2
    assert np.array_equal(store.gather(np.array(addresses)), np.concatenate([rows] * 4))


@given(st.lists(st.integers(1, 2_000_000), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_checksums_grow_with_the_file(sizes: list[int]) -> None:
    whole = np.random.default_rng(0).integers(0, 256, sum(sizes), dtype=np.uint8).tobytes()
    checks, end = b"", 0
    for size in sizes:
        checks = matrices._more_checks(checks, end, memoryview(whole)[end : end + size])
        end += size
    assert checks == kernels.crc32c_blocks(whole)


@pytest.mark.parametrize("refused", ["fsync", "preadv", "pwritev"])
def test_a_disk_that_refuses_leaves_nothing(
    store: Vectors, catalog: Catalog, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    rows = matrix(bulk_rows())

    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    (kept, *_) = append(store, rows[:1])
    with (
        pytest.raises(StoreError, match=r"No space left.*free space"),
        catalog.transaction(),
        monkeypatch.context() as patch,
    ):
        patch.setattr(os, refused, full)
        store.append("t", "v", F32, rows, len(rows))
        store.prepare()
    assert files(catalog) == []
    assert catalog.fetchone("SELECT count(*) FROM _dl_files")[0] == 1
    assert np.array_equal(store.gather(np.array(append(store, rows))), rows)
    assert store.get(kept) == rows[0].tobytes()


def test_what_is_written_behind_can_be_read_at_once_and_its_buffer_reused_once_settled(
    store: Vectors, catalog: Catalog
) -> None:
    rows = matrix(bulk_rows())
    given = rows.copy()
    with catalog.transaction():
        first = store.append("t", "v", F32, given, len(given), behind=True)
        assert np.array_equal(store.gather(np.array(first)), rows)
        store.settle()
        given[:] = 0
        second = store.append("t", "v", F32, rows, len(rows), behind=True)
    assert np.array_equal(store.gather(np.array([*first, *second])), np.concatenate([rows, rows]))


def test_a_disk_that_refuses_behind_fails_the_transaction(
    store: Vectors, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = matrix(bulk_rows())
    with pytest.raises(StoreError), catalog.transaction(), monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
        store.append("t", "v", F32, rows, len(rows), behind=True)
        for _ in range(2):
            with pytest.raises(StoreError):
                store.settle()
    assert files(catalog) == []


def test_a_half_extended_file_is_never_committed(
    store: Vectors, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = matrix(bulk_rows())
    with pytest.raises(StoreError), catalog.transaction():
        store.append("t", "v", F32, rows, len(rows))
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
            with pytest.raises(StoreError):
                store.append("t", "v", F32, rows, len(rows))
    assert files(catalog) == []


def test_closing_inside_a_transaction_takes_its_files_back(store: Vectors, catalog: Catalog) -> None:
    append(store, matrix(bulk_rows()))
    with catalog.transaction():
        store.append("t", "v", F32, matrix(bulk_rows()), bulk_rows())
        store.close()
        assert len(files(catalog)) == 1


def test_names_with_slashes_and_dots_stay_under_the_root(store: Vectors, catalog: Catalog) -> None:
    with catalog.transaction():
        store.append("../../evil", "a/b.c", F32, matrix(bulk_rows()), bulk_rows())
    (name,) = files(catalog)
    assert name.count("/") == 3
    assert ".." not in name


def test_a_tail_of_one_megabyte_becomes_a_file_and_addresses_stay(store: Vectors, catalog: Catalog) -> None:
    rows = matrix(-(-vectors.TAIL // (5000 * 4 * D)) * 5000)
    addresses = [a for start in range(0, len(rows), 5000) for a in append(store, rows[start : start + 5000])]
    assert len(files(catalog)) == 1
    assert catalog.fetchone("SELECT count(*) FROM _dl_files WHERE state = 'open'")[0] == 0
    more = append(store, rows[:10])
    assert unpack_address(more[0])[0] != unpack_address(addresses[0])[0]
    assert np.array_equal(store.gather(np.array(addresses + more)), np.concatenate([rows, rows[:10]]))


@pytest.mark.parametrize("sizes", [[1], [3, 1], [100, 1, 1], [700, 1, 255]])
def test_resting_vectors_are_few_values_and_every_handle_reads_them(
    store: Vectors, catalog: Catalog, sizes: list[int]
) -> None:
    reader, rows = connect(SqliteCatalog.open(catalog.root.folder)), matrix(1500)
    addresses: list[int] = []
    for size in itertools.cycle(sizes):
        if len(addresses) + size > len(rows):
            break
        addresses += append(store, rows[len(addresses) : len(addresses) + size])
        if len(addresses) % 7 == 0:  # what it remembers ends anywhere in what later becomes one value
            assert reader.get(addresses[-1]) == rows[len(addresses) - 1].tobytes()
    assert catalog.fetchone("SELECT count(*) FROM _dl_tail")[0] <= 2 * len(rows) // vectors.RUN + vectors.RUN
    for handle in (reader, store, connect(SqliteCatalog.open(catalog.root.folder))):
        assert np.array_equal(handle.gather(np.array(addresses)), rows[: len(addresses)])
    store.seal()
    assert np.array_equal(connect(catalog).gather(np.array(addresses)), rows[: len(addresses)])


def test_seal_moves_every_tail_in_one_commit(store: Vectors, catalog: Catalog) -> None:
    rows = matrix(50)
    addresses = append(store, rows) + append(store, rows)
    other = append(store, rows, "w")
    before = catalog.head()
    assert store.seal() == 2
    assert catalog.head() == before + 1
    assert catalog.fetchone("SELECT count(*) FROM _dl_tail")[0] == 0
    assert len(files(catalog)) == 2
    assert np.array_equal(store.gather(np.array(addresses)), np.concatenate([rows, rows]))
    assert np.array_equal(connect(catalog).gather(np.array(other)), rows)
    assert store.seal() == 0
    assert store.seal("no such table") == 0


def test_a_fresh_process_reads_tail_and_files(store: Vectors, catalog: Catalog) -> None:
    rows = matrix(bulk_rows())
    addresses = append(store, rows) + append(store, rows[:9])
    again = connect(SqliteCatalog.open(catalog.root.folder))
    assert np.array_equal(again.gather(np.array(addresses)), np.concatenate([rows, rows[:9]]))


def test_a_reader_follows_rows_that_another_handle_appends_and_seals(store: Vectors, catalog: Catalog) -> None:
    reader = connect(SqliteCatalog.open(catalog.root.folder, read_only=True))
    rows = matrix(30)
    for i in range(0, 30, 10):
        (first, *_) = append(store, rows[i : i + 10])
        assert reader.get(first) == rows[i].tobytes()
    store.seal()
    assert reader.get(first + 9) == rows[29].tobytes()
    assert np.array_equal(reader.gather(np.array(append(store, rows))), rows)


def test_two_writers_share_a_tail_without_sharing_an_address(store: Vectors, catalog: Catalog) -> None:
    other = connect(SqliteCatalog.open(catalog.root.folder))
    rows = matrix(40)
    found = {}
    for i in range(40):
        (address,) = append(store if i % 2 else other, rows[i : i + 1])
        found[address] = rows[i].tobytes()
        if i == 20:
            other.seal()
    assert len(found) == 40
    assert all(store.get(a) == data and other.get(a) == data for a, data in found.items())


def test_rollback_leaves_no_vector_no_file_and_no_memory_of_them(store: Vectors, catalog: Catalog) -> None:
    kept = append(store, matrix(4))
    rows, query = matrix(bulk_rows(), seed=1), matrix(1, seed=2)[0]

    class Stop(Exception):
        pass

    with pytest.raises(Stop), catalog.transaction():
        small = store.append("t", "v", F32, rows[:4], 4)
        big = store.append("t", "v", F32, rows, len(rows))
        for address in (small[0], big[0]):  # remembered scores and matrices must go too
            assert store.get(address) == rows[0].tobytes()
            for _ in range(40):
                catalog.fetchone("SELECT cosine_similarity(?, ?)", (address, query.tobytes()))
        raise Stop
    assert files(catalog) == []
    with pytest.raises(NotFoundError):
        store.get(big[0])
    with pytest.raises(NotFoundError):
        store.get(small[0])
    other = matrix(bulk_rows(), seed=3)
    again, more = append(store, other), append(store, other[:4])
    assert (again[0], more[0]) == (big[0], small[0])
    assert store.get(again[0]) == store.get(more[0]) == other[0].tobytes()
    (score,) = catalog.fetchone("SELECT cosine_similarity(?, ?)", (again[0], query.tobytes()))
    assert score == pytest.approx(truth(other[:1], query, "cosine")[0])
    assert store.get(kept[0]) == matrix(4)[0].tobytes()


def test_a_failed_savepoint_takes_back_only_its_own(store: Vectors, catalog: Catalog) -> None:
    rows = matrix(bulk_rows())
    with catalog.transaction():
        first = store.append("t", "v", F32, rows, len(rows))
        small = store.append("t", "v", F32, rows[:3], 3)
        with pytest.raises(InputError), catalog.transaction():
            store.append("t", "v", F32, rows, len(rows))
            store.append("t", "v", F32, rows[:3], 3)
            raise InputError("no")
        later = store.append("t", "v", F32, rows[5:8], 3)
    assert len(files(catalog)) == 1
    assert later[0] == small[0] + 3
    assert np.array_equal(store.gather(np.array([first[9], small[2], later[0]])), rows[[9, 2, 5]])


@pytest.mark.parametrize("moment", ["append", "prepare"])
@pytest.mark.parametrize("stop", [4, 5, 6])
def test_a_killed_writer_leaves_only_what_was_acknowledged(catalog: Catalog, moment: str, stop: int) -> None:
    """Killed with bytes written and with bytes synced, in a small append, in a bulk append and in a seal."""
    script = textwrap.dedent("""
        import os, sys
        import numpy as np
        from deeplake_loader.catalog import Catalog, Participant
        from deeplake_loader.sqlite_catalog import SqliteCatalog
        from deeplake_loader.types import ColumnType
        from deeplake_loader.vectors import Vectors
        class Killer(Participant):
            def prepare(self):
                if (i, "prepare") == (int(sys.argv[2]), sys.argv[3]): os.kill(os.getpid(), 9)
        catalog = SqliteCatalog.open(sys.argv[1]); store = Vectors(catalog); kind = ColumnType.parse("VECTOR(64)")
        catalog.participants.append(Killer())
        for i in range(1, 100):
            with catalog.transaction():
                rows = np.full((5000 if i % 2 else 3, 64), i, np.float32)
                addresses = store.append("t", "v", kind, rows, len(rows))
                if i == 6: store.seal()
                if (i, "append") == (int(sys.argv[2]), sys.argv[3]): os.kill(os.getpid(), 9)
            print(addresses[0], addresses[-1], flush=True)
    """)
    command = [sys.executable, "-c", script, catalog.root.folder, str(stop), moment]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == -9, ran.stderr
    acknowledged = [tuple(map(int, line.split())) for line in ran.stdout.splitlines()]
    assert len(acknowledged) == stop - 1
    store = connect(SqliteCatalog.open(catalog.root.folder))
    for sealed in (False, True):
        for i, (first, last) in enumerate(acknowledged, 1):
            assert set(store.gather(np.array([first, last])).reshape(-1)) == {i}
        with pytest.raises(NotFoundError):
            store.get(max(acknowledged)[1] + 1)
        assert sealed or store.seal() == 1


def test_appending_outside_a_transaction_is_refused(store: Vectors) -> None:
    with pytest.raises(InputError, match="transaction"):
        store.append("t", "v", F32, matrix(1), 1)


def test_a_buffer_of_another_size_is_refused_and_nothing_is_written(store: Vectors, catalog: Catalog) -> None:
    with catalog.transaction(), pytest.raises(DimensionError, match="24"):
        store.append("t", "v", F32, matrix(3), 4)
    assert catalog.fetchone("SELECT count(*) FROM _dl_files")[0] == 0


def test_no_vectors_need_no_addresses(store: Vectors, catalog: Catalog) -> None:
    with catalog.transaction():
        assert list(store.append("t", "v", F32, b"", 0)) == []


def test_the_callers_buffer_may_change_once_append_returned(store: Vectors, catalog: Catalog) -> None:
    rows = matrix(40 * bulk_rows())
    expected = rows.copy()
    with catalog.transaction():
        addresses = store.append("t", "v", F32, rows, len(rows))
        rows[:] = 0
    assert np.array_equal(store.gather(np.array(addresses)), expected)
    (path,) = (Path(catalog.root.folder, f) for f in files(catalog))
    assert catalog.fetchone("SELECT sha256 FROM _dl_files")[0] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("address", [0, -5, 1 << 40, (1 << 30) + 7, 1 << 62])
def test_an_unknown_address_is_a_typed_error(store: Vectors, address: int) -> None:
    append(store, matrix(5))
    with pytest.raises(NotFoundError):
        store.get(address)
    with pytest.raises(NotFoundError):
        store.gather(np.array([address]))


def test_rollback_forgets_scores_of_queries_long_out_of_use(store: Vectors, catalog: Catalog) -> None:
    queries = [row.tobytes() for row in matrix(12, seed=8)]
    ask = "SELECT inner_product(?, ?)"

    class Stop(Exception):
        pass

    with pytest.raises(Stop), catalog.transaction():
        (address, *_) = store.append("t", "v", F32, matrix(2, seed=1), 2)
        for query in queries:
            for _ in range(20):
                catalog.fetchone(ask, (address, query))
        raise Stop
    other = matrix(2, seed=2)
    assert append(store, other)[0] == address
    for query in queries:
        expected = truth(other[:1], np.frombuffer(query, np.float32), "inner")[0]
        assert catalog.fetchone(ask, (address, query))[0] == pytest.approx(expected, abs=1e-12)


def test_the_address_of_a_blob_is_a_typed_error(store: Vectors, catalog: Catalog) -> None:
    with catalog.transaction():
        sql = "INSERT INTO _dl_files (kind, url, state, count, size) VALUES ('shard', 's.tar', 'open', 9, 9)"
        file = catalog.execute(sql).lastrowid
    with pytest.raises(TypeMismatchError, match="blobs"):
        store.get(file << 30)


def test_gather_refuses_columns_of_different_kinds(store: Vectors) -> None:
    addresses = append(store, matrix(2)) + append(store, matrix(2, dtype="float16"), "h")
    with pytest.raises(DimensionError, match="one column"):
        store.gather(np.array(addresses))


# -- damage ------------------------------------------------------------------------------------------------------------


def damage(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


@pytest.fixture
def broken(store: Vectors, catalog: Catalog) -> tuple[Vectors, list[int], Path]:
    """A second handle, addresses and the file of 4 MB of vectors, which nobody has mapped yet."""
    addresses = append(store, matrix(4 * bulk_rows()))
    (name,) = files(catalog)
    return connect(SqliteCatalog.open(catalog.root.folder)), addresses, Path(catalog.root.folder, name)


def test_a_flipped_bit_is_found_whoever_reads_it_and_other_blocks_stay_readable(
    broken: tuple[Vectors, list[int], Path],
) -> None:
    fresh, addresses, path = broken
    row = (5 << 19) // (4 * D)
    damage(path, 128 + row * 4 * D + 11)
    query = matrix(1, seed=5)[0].tobytes()
    assert fresh.get(addresses[0]) == matrix(4 * bulk_rows())[0].tobytes()
    for read in (
        lambda: fresh.get(addresses[row]),
        lambda: fresh.gather(np.array(addresses[:100] + addresses[row : row + 1])),
        lambda: winners(fresh, "cosine", array("q", addresses), query, 5, True),
    ):
        with pytest.raises(CorruptionError, match=r"block 2 .*rows \d+ to \d+.*crc32c"):
            read()
    with pytest.raises(SQLError):
        fresh._catalog.fetchone("SELECT l2_distance(?, ?)", (addresses[row], query))
    assert isinstance(fresh.take_error(), CorruptionError)
    assert fresh.take_error() is None


def test_a_truncated_file_is_a_typed_error(broken: tuple[Vectors, list[int], Path]) -> None:
    fresh, addresses, path = broken
    os.truncate(path, path.stat().st_size - 4096)
    with pytest.raises(CorruptionError, match="cut"):
        fresh.get(addresses[0])


def test_a_file_with_another_header_is_a_typed_error(broken: tuple[Vectors, list[int], Path]) -> None:
    fresh, addresses, path = broken
    damage(path, 64)
    with pytest.raises(CorruptionError, match="header"):
        fresh.get(addresses[0])


def test_a_missing_file_is_a_typed_error(broken: tuple[Vectors, list[int], Path]) -> None:
    fresh, addresses, path = broken
    path.unlink()
    with pytest.raises(NotFoundError, match="npy"):
        winners(fresh, "l2", array("q", addresses), bytes(4 * D), 5, False)


def test_a_url_that_leaves_the_root_is_refused(broken: tuple[Vectors, list[int], Path]) -> None:
    fresh, addresses, _ = broken
    fresh._catalog.execute("UPDATE _dl_files SET url = '../../etc/passwd'")
    with pytest.raises(OSError, match="plain path"):
        fresh.get(addresses[0])


def test_resting_vectors_are_verified_too(store: Vectors, catalog: Catalog) -> None:
    (address,) = append(store, matrix(1))
    data = bytearray(catalog.fetchone("SELECT data FROM _dl_tail")[0])
    data[5] ^= 1
    catalog.execute("UPDATE _dl_tail SET data = ?", (bytes(data),))
    with pytest.raises(CorruptionError, match="resting"):
        connect(catalog).get(address)


@given(st.integers(1, 5000), st.lists(st.integers(0, 1999), min_size=1, max_size=30))
def test_the_blocks_of_rows_are_those_that_hold_their_bytes(stride: int, wanted: list[int]) -> None:
    rows = sorted(wanted)
    sealed = object.__new__(Sealed)
    sealed.layout = Layout(stride, "float16")
    expected = set()
    for row in rows:
        start = 128 + row * 2 * stride
        expected |= set(range(start >> 20, (start + 2 * stride - 1 >> 20) + 1))
    assert list(sealed._blocks(rows)) == sorted(expected)


# -- scores ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(store: Vectors, catalog: Catalog) -> tuple[np.ndarray, list[int]]:
    """Table t(id, v): 11,000 rows over a sealed file, a sealed tail and a tail; every 50th repeats an address."""
    rows = matrix(bulk_rows() + 2000, seed=7)
    rows[3] = 0
    parts = [rows[: bulk_rows()], rows[bulk_rows() : bulk_rows() + 900], rows[bulk_rows() + 900 :]]
    addresses = append(store, parts[0]) + append(store, parts[1])
    store.seal()
    addresses += append(store, parts[2])
    held = [addresses[i - 1] if i % 50 == 49 else a for i, a in enumerate(addresses)]
    catalog.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v INTEGER)")
    with catalog.transaction():
        catalog.executemany("INSERT INTO t VALUES (?, ?)", enumerate(held))
    position = {a: i for i, a in enumerate(addresses)}
    return rows[[position[a] for a in held]], held


@pytest.mark.parametrize("name", scoring.FUNCTIONS)
def test_sql_scores_are_those_of_numpy(catalog: Catalog, mixed: tuple[np.ndarray, list[int]], name: str) -> None:
    rows, _ = mixed
    query = matrix(1, seed=9)[0]
    metric = scoring.FUNCTIONS[name][0]
    expected = truth(rows, query, metric)
    expected = {"cosine_distance": 1 - expected, "negative_inner_product": -expected}.get(name, expected)
    for sql in (f"SELECT {name}(v, ?) FROM t ORDER BY id", f"SELECT {name}(?, v) FROM t ORDER BY id"):
        found = [score for (score,) in catalog.fetchall(sql, (query.tobytes(),))]
        assert (found[3] is None) == ("cosine" in name)  # the zero vector has no direction
        assert np.allclose(np.array(found, np.float64), expected, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_a_score_has_the_same_bits_alone_and_in_a_scan(catalog: Catalog, mixed: tuple[np.ndarray, list[int]]) -> None:
    query = (matrix(1, seed=9)[0].tobytes(),)
    scanned = catalog.fetchall("SELECT v, cosine_similarity(v, ?) FROM t ORDER BY id", query)
    fresh = connect(SqliteCatalog.open(catalog.root.folder))
    for address, score in scanned[::997]:
        assert fresh._catalog.fetchone("SELECT cosine_similarity(?, ?)", (address, *query))[0] == score


def test_scores_of_a_float16_column(store: Vectors, catalog: Catalog) -> None:
    rows, query = matrix(6000, dtype="float16"), matrix(1, seed=3)[0]
    addresses = append(store, rows, "h")
    found = [catalog.fetchone("SELECT l2_distance(?, ?)", (a, query.tobytes()))[0] for a in addresses]
    assert np.allclose(found, truth(rows, query, "l2"), rtol=1e-12)
    between = catalog.fetchone("SELECT cosine_similarity(?, ?)", (addresses[0], addresses[1]))[0]
    assert between == pytest.approx(truth(rows[:1], rows[1], "cosine")[0], rel=1e-12)


def test_scores_between_two_columns(catalog: Catalog, mixed: tuple[np.ndarray, list[int]]) -> None:
    rows, _ = mixed
    sql = "SELECT a.id, b.id, cosine_similarity(a.v, b.v) FROM t a JOIN t b ON a.id < b.id WHERE b.id < 60"
    found = catalog.fetchall(sql)
    x = rows[:60].astype(np.float64)
    norms = np.linalg.norm(x, axis=1)
    with np.errstate(invalid="ignore"):
        expected = x @ x.T / np.outer(norms, norms)
    assert len(found) == 60 * 59 // 2
    for a, b, score in found:
        assert score is None if 3 in (a, b) else score == pytest.approx(expected[a, b], abs=1e-12)


def test_a_score_between_addresses_is_symmetric_to_the_bit(store: Vectors, catalog: Catalog) -> None:
    addresses = append(store, matrix(60))
    for name in scoring.FUNCTIONS:
        for a, b in pairwise(addresses):
            forth, back = catalog.fetchone(f"SELECT {name}(?1, ?2), {name}(?2, ?1)", (a, b))
            assert forth == back


def test_two_queries_in_one_statement(catalog: Catalog, mixed: tuple[np.ndarray, list[int]]) -> None:
    rows, _ = mixed
    one, two = matrix(2, seed=11)
    sql = "SELECT inner_product(v, ?) - inner_product(v, ?) FROM t ORDER BY id"
    found = [score for (score,) in catalog.fetchall(sql, (one.tobytes(), two.tobytes()))]
    assert np.allclose(found, truth(rows, one, "inner") - truth(rows, two, "inner"), atol=1e-12)


def test_queries_in_turn_cost_one_scan_each(
    catalog: Catalog, mixed: tuple[np.ndarray, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    kernel = kernels.scores
    monkeypatch.setattr(kernels, "scores", lambda *a, **k: calls.append(1) or kernel(*a, **k))
    queries = [row.tobytes() for row in matrix(3, seed=12)]
    catalog.fetchall("SELECT l2_distance(v, ?) + l2_distance(v, ?) + l2_distance(v, ?) FROM t", queries)
    assert len(calls) <= 3 * 5 * scoring._TRIES


def test_text_and_values_without_a_column(catalog: Catalog, store: Vectors) -> None:
    (address,) = append(store, np.array([[3, 4]], np.float32))
    one = lambda sql, *params: catalog.fetchone(f"SELECT {sql}", params)[0]  # noqa: E731
    assert one("l2_distance(?, '[0, 0]')", address) == 5
    assert one("l2_distance('[0, 0]', ?)", address) == 5
    assert one("inner_product('[1, 2]', '[3, 4]')") == 11
    assert one("cosine_distance(?, '[1, 0]')", array("f", [1, 0]).tobytes()) == 0
    assert one("cosine_similarity('[0, 0]', '[1, 0]')") is None


def test_null_scores_null(catalog: Catalog, store: Vectors) -> None:
    (address,) = append(store, matrix(1))
    query = matrix(1)[0].tobytes()
    for name in scoring.FUNCTIONS:
        for values in ((None, query), (address, None), (None, None)):
            assert catalog.fetchone(f"SELECT {name}(?, ?)", values) == (None,)


def test_a_query_that_holds_nan_scores_null(catalog: Catalog, store: Vectors) -> None:
    (address,) = append(store, matrix(1))
    query = np.full(D, np.nan, np.float32).tobytes()
    assert catalog.fetchone("SELECT l2_distance(?, ?)", (address, query)) == (None,)
    assert winners(store, "l2", [address], query, 1, False) is None


@pytest.mark.parametrize("bad", [b"abcd", b"abc", matrix(1, dimension=D + 1)[0].tobytes(), "[1, 2]", 1.5, "[1,", "[]"])
def test_a_misfit_in_sql_is_a_typed_error(catalog: Catalog, store: Vectors, bad: object) -> None:
    (address,) = append(store, matrix(1))
    with pytest.raises(SQLError):
        catalog.fetchone("SELECT cosine_similarity(?, ?)", (address, bad))
    assert isinstance(store.take_error(), (DimensionError, TypeMismatchError))


def test_an_unknown_address_in_sql_is_a_typed_error(catalog: Catalog, store: Vectors) -> None:
    for address in (0, -1, 1 << 35):
        with pytest.raises(SQLError):
            catalog.fetchone("SELECT cosine_similarity(?, '[1]')", (address,))
        assert isinstance(store.take_error(), NotFoundError)


def test_rows_added_to_a_run_that_was_scanned_are_scored(catalog: Catalog, store: Vectors) -> None:
    query = matrix(1, seed=4)[0]
    rows = matrix(300)
    for start in range(0, 300, 50):
        for address, row in zip(append(store, rows[start : start + 50]), rows[start : start + 50], strict=True):
            (score,) = catalog.fetchone("SELECT inner_product(?, ?)", (address, query.tobytes()))
            assert score == pytest.approx(truth(row[None], query, "inner")[0], abs=1e-12)


def test_remembered_runs_are_bounded(catalog: Catalog, store: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_MAX_RUNS", 1)
    addresses = append(store, matrix(bulk_rows()))
    query = matrix(1)[0].tobytes()
    assert len(addresses) > 2 * 4096
    for address in addresses[:20] + addresses[5000:5020] + addresses[:20]:
        catalog.fetchone("SELECT cosine_similarity(?, ?)", (address, query))
    (function,) = [f for f in store._functions if f._name == "cosine_similarity"]
    assert len(function._queries[query].runs) == 1


# -- winners -----------------------------------------------------------------------------------------------------------


def expected_winners(
    rows: np.ndarray, held: list[int], query: np.ndarray, metric: str, k: int, largest: bool
) -> tuple[set[int], set[int]] | None:
    """(must be there, may be there) by float64 scores: ties inside 1e-9 may fall either way."""
    scores = truth(rows, query, metric)
    known = np.sort(scores[~np.isnan(scores)])
    if len(known) < k:
        return None
    kth = known[-k] if largest else known[k - 1]
    better = scores - kth if largest else kth - scores
    return {held[i] for i in np.flatnonzero(better > 1e-9)}, {held[i] for i in np.flatnonzero(better > -1e-9)}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_winners_hold_every_tie_of_the_kth_candidate_row(
    store: Vectors, mixed: tuple[np.ndarray, list[int]], data: st.DataObject
) -> None:
    rows, held = mixed
    metric = data.draw(st.sampled_from(sorted(METRICS)))
    largest = data.draw(st.booleans())
    size = data.draw(st.integers(1, 400))
    chosen = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, len(held), size)
    k = data.draw(st.integers(1, 450))
    query = rows[data.draw(st.integers(4, 300))]
    found = winners(store, metric, [held[i] for i in chosen], query.tobytes(), k, largest)
    _, first = np.unique([held[i] for i in chosen], return_index=True)
    once = chosen[first]  # a vector that several rows name is one
    expected = expected_winners(rows[once], [held[i] for i in once], query, metric, k, largest)
    if expected is None or (metric == "l2" and largest):  # the farthest rows are left to the plain statement
        assert found is None
    else:
        assert found is not None
        assert found == sorted(set(found))
        assert expected[0] <= set(found) <= expected[1]


def test_winners_agree_with_the_sql_function_to_the_bit(
    store: Vectors, catalog: Catalog, mixed: tuple[np.ndarray, list[int]]
) -> None:
    _, held = mixed
    query = matrix(1, seed=21)[0].tobytes()
    for name, largest in (("cosine_similarity", True), ("l2_distance", False), ("cosine_distance", False)):
        order = "DESC" if largest else "ASC"
        sql = f"SELECT v, {name}(v, ?1) FROM t WHERE 1 {{}} ORDER BY 2 {order} NULLS LAST, id LIMIT 25"
        plain = catalog.fetchall(sql.format(""), (query,))
        metric = scoring.FUNCTIONS[name][0]
        chosen = winners(store, metric, array("q", held), query, 25, largest or name == "cosine_distance")
        assert chosen is not None
        inside = "AND v IN (SELECT value FROM json_each(?2))"
        assert catalog.fetchall(sql.format(inside), (query, str(chosen))) == plain


def test_fewer_scored_candidates_than_k_have_no_winners(store: Vectors) -> None:
    rows = np.zeros((4, D), np.float32)
    rows[0, 0] = rows[1, 1] = 1
    addresses = append(store, rows)
    query = rows[0].tobytes()
    assert winners(store, "cosine", addresses, query, 3, True) is None
    assert winners(store, "cosine", addresses, query, 2, True) == addresses[:2]
    assert winners(store, "cosine", [addresses[0]] * 2, query, 2, True) is None
    assert winners(store, "cosine", [addresses[0]] * 2, query, 1, True) == addresses[:1]
    assert winners(store, "cosine", [], query, 1, True) is None
    assert winners(store, "cosine", addresses, query, 0, True) == []


def test_too_many_ties_have_no_winners(store: Vectors) -> None:
    rows = np.ones((10_010, D), np.float32)
    assert winners(store, "cosine", append(store, rows), rows[0].tobytes(), 5, True) is None


def test_a_query_of_another_dimension_is_refused(store: Vectors) -> None:
    with pytest.raises(DimensionError, match="24"):
        winners(store, "cosine", append(store, matrix(3)), bytes(4 * D + 4), 1, True)


def test_a_forked_child_reads_on_and_leaves_the_parents_files(store: Vectors, catalog: Catalog) -> None:
    rows = matrix(bulk_rows())
    addresses = append(store, rows)
    store.get(addresses[0])
    with catalog.transaction():
        store.append("t", "v", F32, rows, len(rows))
        child = os.fork()
        if child == 0:
            ok = store.get(addresses[5]) == rows[5].tobytes()
            store.rolled_back()
            os._exit(0 if ok else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert len(files(catalog)) == 2


def test_the_cold_path_imports_no_numpy() -> None:
    script = textwrap.dedent("""
        import sys, tempfile
        from array import array
        from deeplake_loader.sqlite_catalog import SqliteCatalog
        from deeplake_loader.types import ColumnType
        from deeplake_loader.vectors import Vectors
        catalog = SqliteCatalog.open(tempfile.mkdtemp())
        store = Vectors(catalog)
        catalog.add_hook(store.register)
        with catalog.transaction():
            addresses = store.append("t", "v", ColumnType.parse("VECTOR(2)"), array("f", range(8)), 4)
        query = array("f", [0, 0]).tobytes()
        from deeplake_loader import kernels
        native = all(name.startswith("native") for name in kernels.backend().values())
        assert catalog.fetchone("SELECT l2_distance(?, ?)", (addresses[0], query)) == (1,)
        from deeplake_loader.search.candidates import Candidates
        from deeplake_loader.search.engine import Searcher
        candidates = Candidates.parse(",".join(map(str, addresses)))
        assert Searcher(store.matrix, store.gather).winners("l2", candidates, query, 1, False) == [addresses[0]]
        heavy = {"torch", "pyarrow", "sqlalchemy", "fsspec", "webdataset", "sqlglot"} | ({"numpy"} if native else set())
        print(sorted(heavy & set(sys.modules)))
    """)
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "[]", ran.stderr


def test_a_tail_is_one_immutable_copy() -> None:
    tail = Tail(Layout(2, "float32"), bytes(24))
    assert (tail.count, len(tail.view)) == (3, 24)


def test_the_header_is_what_numpy_writes() -> None:
    import io

    for layout, count in ((Layout(768, "float32"), 100_000), (Layout(65_536, "float16"), 1 << 30)):
        shape = (count, layout.dimension)
        header = layout.header(count)
        assert len(header) == 128
        stream = io.BytesIO(header)
        assert np.lib.format.read_magic(stream) == (1, 0)
        assert np.lib.format.read_array_header_1_0(stream) == (shape, False, np.dtype(layout.dtype))
        assert stream.tell() == matrices.HEADER


def test_sqlite_may_not_call_a_score_with_one_argument(catalog: Catalog, store: Vectors) -> None:
    with pytest.raises(sqlite3.OperationalError, match="wrong number"):
        catalog.connection.execute("SELECT cosine_similarity(1)")
