"""The catalog: one commit point, settled outcomes, typed errors, forks, threads, damaged and foreign files."""

from __future__ import annotations

import os
import pickle
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from deeplake_loader import catalog as catalog_module
from deeplake_loader.catalog import Catalog, Participant
from deeplake_loader.driver_errors import translate_error
from deeplake_loader.errors import (
    ConstraintError,
    CorruptionError,
    InputError,
    LockedError,
    NotFoundError,
    SQLError,
    StoreError,
)
from deeplake_loader.sqlite_catalog import SqliteCatalog
from deeplake_loader.types import Column, ColumnType, Table


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[SqliteCatalog]:
    made = SqliteCatalog.open(tmp_path / "store", timeout_s=0.2)
    with made.transaction("create"):
        made.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL CHECK (name <> 'bad'))")
    yield made
    made.close()


def names(catalog: Catalog) -> list[str]:
    return [name for (name,) in catalog.fetchall("SELECT name FROM t ORDER BY id")]


def add(catalog: Catalog, name: str) -> None:
    catalog.execute("INSERT INTO t (name) VALUES (?)", (name,))


class Recorder(Participant):
    """Writes down which hook was called, and fails in ``prepare`` when told to."""

    def __init__(self, catalog: Catalog) -> None:
        self.calls: list[Any] = []
        self.fail = False
        self.catalog = catalog
        catalog.participants.append(self)

    def savepoint(self) -> object:
        self.calls.append("savepoint")
        return len(self.calls)

    def rollback_to(self, token: object) -> None:
        self.calls.append(("rollback_to", token))

    def prepare(self) -> None:
        self.calls.append("prepare")
        assert self.catalog.connection.in_transaction
        if self.fail:
            raise StoreError("no room")

    def committed(self) -> None:
        assert not self.catalog.in_transaction
        self.calls.append("committed")

    def rolled_back(self) -> None:
        assert not self.catalog.connection.in_transaction
        self.calls.append("rolled_back")


class Faulty:
    """A connection whose COMMIT reports an error, before or after it was carried out."""

    def __init__(self, connection: sqlite3.Connection, *, commit_first: bool, also: str = "never") -> None:
        self._connection, self._commit_first, self._also = connection, commit_first, also
        self.faults = 1

    def execute(self, sql: str, *params: object) -> sqlite3.Cursor:
        if self.faults and (sql == "COMMIT" or self._also in sql):
            if sql == "COMMIT" and self._commit_first:
                self._connection.execute(sql)
            self.faults -= sql == "COMMIT" and self._also == "never"
            raise sqlite3.OperationalError("disk I/O error")
        return self._connection.execute(sql, *params)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


# -- commits ---------------------------------------------------------------------------------------------------------


def test_every_transaction_that_changed_something_is_one_numbered_commit(catalog: Catalog) -> None:
    assert catalog.head() == 1
    with catalog.transaction("add two") as tx:
        add(catalog, "a")
        add(catalog, "b")
    with catalog.transaction() as empty:
        names(catalog)
    with catalog.transaction("marked"):
        pass
    rows = catalog.fetchall("SELECT seq, id, message FROM _dl_commits ORDER BY seq")
    assert [(seq, message) for seq, _, message in rows] == [(1, "create"), (2, "add two"), (3, "marked")]
    assert (tx.seq, tx.id, empty.seq, catalog.head()) == (2, rows[1][1], None, 3)


def test_ddl_alone_is_a_commit(catalog: Catalog) -> None:
    with catalog.transaction():
        catalog.execute("CREATE INDEX by_name ON t (name)")
    assert catalog.head() == 2


def test_an_exception_leaves_nothing_and_participants_hear_of_it(catalog: Catalog) -> None:
    recorder = Recorder(catalog)
    with pytest.raises(ZeroDivisionError), catalog.transaction():
        add(catalog, "a")
        1 / 0  # noqa: B018
    assert recorder.calls == ["rolled_back"]
    recorder.fail = True
    with pytest.raises(StoreError, match="no room"), catalog.transaction():
        add(catalog, "a")
    assert recorder.calls == ["rolled_back", "prepare", "rolled_back"]
    assert names(catalog) == [] and catalog.head() == 1 and not catalog.in_transaction


def test_participants_prepare_before_the_commit_and_hear_of_it_after(catalog: Catalog) -> None:
    recorder = Recorder(catalog)
    with catalog.transaction():
        add(catalog, "a")
        assert recorder.calls == []
    assert recorder.calls == ["prepare", "committed"]


def test_a_nested_block_that_fails_takes_back_only_itself(catalog: Catalog) -> None:
    recorder = Recorder(catalog)
    with catalog.transaction():
        add(catalog, "a")
        with pytest.raises(ZeroDivisionError), catalog.transaction():
            add(catalog, "b")
            with catalog.transaction():
                add(catalog, "c")
            1 / 0  # noqa: B018
        with catalog.transaction():
            add(catalog, "d")
    assert names(catalog) == ["a", "d"] and catalog.head() == 2
    assert recorder.calls == ["savepoint", "savepoint", ("rollback_to", 1), "savepoint", "prepare", "committed"]


def test_a_statement_that_rolls_everything_back_cannot_be_committed_over(catalog: Catalog) -> None:
    with pytest.raises(StoreError, match="rolled this transaction back"), catalog.transaction():
        add(catalog, "a")
        with pytest.raises(ConstraintError):
            catalog.execute("INSERT OR ROLLBACK INTO t (name) VALUES ('a')")
        add(catalog, "b")
    assert catalog.head() == 1 and not catalog.in_transaction


@pytest.mark.parametrize("commit_first", [True, False])
def test_an_error_of_commit_is_settled_by_looking_for_the_commit(catalog: Catalog, commit_first: bool) -> None:
    recorder = Recorder(catalog)
    catalog._connection = Faulty(catalog.connection, commit_first=commit_first)  # type: ignore[assignment]
    if commit_first:
        with catalog.transaction() as tx:
            add(catalog, "a")
        assert tx.seq == 2 and recorder.calls == ["prepare", "committed"]
    else:
        with pytest.raises(SQLError, match="disk I/O error"), catalog.transaction():
            add(catalog, "a")
        assert recorder.calls == ["prepare", "rolled_back"]
    assert names(catalog) == ["a"] * commit_first
    with catalog.transaction():
        add(catalog, "b")
    assert names(catalog) == ["a"] * commit_first + ["b"]


@pytest.mark.parametrize("commit_first", [True, False])
def test_while_an_outcome_is_unknown_participants_hear_nothing(catalog: Catalog, commit_first: bool) -> None:
    recorder, healthy = Recorder(catalog), catalog.connection
    faulty = Faulty(healthy, commit_first=commit_first, also="settled")
    catalog._connection = faulty  # type: ignore[assignment]
    with pytest.raises(StoreError, match="cannot yet tell"), catalog.transaction():
        add(catalog, "a")
    with pytest.raises(SQLError), catalog.transaction():
        add(catalog, "b")
    assert recorder.calls == ["prepare"]
    faulty.faults = 0
    with catalog.transaction():
        add(catalog, "c")
    assert recorder.calls == ["prepare", "committed" if commit_first else "rolled_back", "prepare", "committed"]
    assert names(catalog) == ["a"] * commit_first + ["c"]


def test_the_clock_stands_still_in_a_transaction_and_in_a_snapshot(catalog: Catalog) -> None:
    for block in (catalog.transaction, catalog.snapshot):
        with block():
            first = catalog.now()
            time.sleep(0.001)
            assert catalog.now() == first
        assert catalog.now() > first
    datetime.strptime(first, "%Y-%m-%d %H:%M:%S.%f")


def test_a_snapshot_does_not_see_later_commits(catalog: Catalog, tmp_path: Path) -> None:
    other = SqliteCatalog.open(tmp_path / "store")
    with catalog.snapshot() as seq, catalog.snapshot():
        with other.transaction():
            add(other, "later")
        assert names(catalog) == [] and seq == catalog.head() == 1
    assert names(catalog) == ["later"] and catalog.head() == 2
    with catalog.transaction(), catalog.snapshot():
        add(catalog, "inside")
        assert names(catalog) == ["later", "inside"]
    with catalog.snapshot(), pytest.raises(InputError, match="snapshot"), catalog.transaction():
        pass
    other.close()


# -- errors ----------------------------------------------------------------------------------------------------------


def test_constraint_errors_name_constraint_table_and_column(catalog: Catalog) -> None:
    with catalog.transaction():
        add(catalog, "a")
        catalog.execute("CREATE TABLE child (parent INTEGER REFERENCES t (id), x INTEGER, y INTEGER, UNIQUE (x, y))")
        catalog.execute("INSERT INTO child VALUES (1, 1, 1)")
    cases: list[tuple[str, str, str | None, tuple[str, ...]]] = [
        ("INSERT INTO t (name) VALUES ('a')", "UNIQUE", "t", ("name",)),
        ("INSERT INTO t (id, name) VALUES (1, 'z')", "UNIQUE", "t", ("id",)),
        ("INSERT INTO child VALUES (1, 1, 1)", "UNIQUE", "child", ("x", "y")),
        ("INSERT INTO t (name) VALUES (NULL)", "NOT NULL", "t", ("name",)),
        ("INSERT INTO t (name) VALUES ('bad')", "CHECK", None, ()),
        ("INSERT INTO child VALUES (99, 2, 2)", "FOREIGN KEY", None, ()),
    ]
    for sql, kind, table, columns in cases:
        with pytest.raises(ConstraintError, match=kind) as caught:
            catalog.execute(sql)
        assert (caught.value.constraint, caught.value.table, caught.value.columns) == (kind, table, columns)
        assert pickle.loads(pickle.dumps(caught.value)).columns == columns


def test_sql_errors_quote_the_users_text(catalog: Catalog) -> None:
    with pytest.raises(SQLError, match=r"(?s)no such column: nme.*in: SELECT nme") as caught:
        catalog.execute("SELECT nme AS _x FROM t", user_sql="SELECT nme FROM t")
    assert caught.value.sql == "SELECT nme FROM t"
    bad: list[tuple[str, object]] = [
        ("SELECT ?", ()),
        ("SELECT ?", (object(),)),
        ("SELECT ?", (2**70,)),
        ("SELECT ?", ("\ud800",)),
        ("SELECT 1; SELECT 2", ()),
        ("SELEC", ()),
    ]
    for sql, params in bad:
        with pytest.raises(SQLError):
            catalog.fetchall(sql, params)  # type: ignore[arg-type]
    with pytest.raises(SQLError):
        catalog.executemany("INSERT INTO t (name) VALUES (?)", [("ok",), ([],)])


def test_a_second_writer_waits_and_then_gets_a_typed_error(catalog: Catalog, tmp_path: Path) -> None:
    other = SqliteCatalog.open(tmp_path / "store", timeout_s=0.1)
    with catalog.transaction():
        add(catalog, "a")
        started = time.monotonic()
        with pytest.raises(LockedError, match="timeout_s"), other.transaction():
            pass
        assert 0.05 < time.monotonic() - started < 5
        assert names(other) == []  # readers never wait
    with other.transaction():
        add(other, "b")
    assert names(catalog) == ["a", "b"]
    other.close()


def test_driver_errors_map_to_what_a_caller_can_do() -> None:
    def error(code: int) -> sqlite3.OperationalError:
        made = sqlite3.OperationalError("text")
        made.sqlite_errorcode = code
        return made

    for code, expected in [
        (sqlite3.SQLITE_BUSY, LockedError),
        (sqlite3.SQLITE_IOERR, StoreError),
        (sqlite3.SQLITE_FULL, StoreError),
        (sqlite3.SQLITE_CORRUPT, CorruptionError),
        (sqlite3.SQLITE_TOOBIG, InputError),
        (sqlite3.SQLITE_ERROR, SQLError),
    ]:
        assert type(translate_error(error(code), "SELECT 1")) is expected
        assert type(translate_error(error(code | 3 << 8))) is expected  # extended codes too


# -- threads and processes -------------------------------------------------------------------------------------------


def test_threads_take_turns_and_never_enter_each_others_transaction(tmp_path: Path) -> None:
    catalog = SqliteCatalog.open(tmp_path / "store")
    with catalog.transaction():
        catalog.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT)")
    seen: list[int] = []

    def write(thread: int) -> None:
        for i in range(10):
            with catalog.transaction():
                add(catalog, f"{thread} {i} a")
                add(catalog, f"{thread} {i} b")
            seen.append(len(names(catalog)) % 2)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [0] * 40 and catalog.head() == 41
    assert all(a[:-1] == b[:-1] for a, b in zip(names(catalog)[::2], names(catalog)[1::2], strict=True))
    catalog.close()


def test_a_thread_that_waits_too_long_for_another_gets_a_typed_error(catalog: Catalog) -> None:
    caught: list[BaseException] = []

    def read() -> None:
        try:
            names(catalog)
        except LockedError as error:
            caught.append(error)

    with catalog.transaction():
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
    assert "thread" in str(caught[0])


FORK = """
import os, sys
from deeplake_loader.catalog import Catalog
from deeplake_loader.sqlite_catalog import SqliteCatalog
from deeplake_loader.errors import StoreError
catalog = SqliteCatalog.open(sys.argv[1])
registered = []
catalog.add_hook(lambda connection: connection.create_function("who", 0, lambda: os.getpid()))
with catalog.transaction():
    catalog.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT)")
parent = catalog.connection
with catalog.transaction():
    catalog.execute("INSERT INTO t VALUES (1, 'parent')")
    child = os.fork()
    if child == 0:
        assert catalog.connection is not parent and not catalog.in_transaction
        assert catalog.fetchall("SELECT name FROM t") == []
        assert catalog.fetchone("SELECT who()") == (os.getpid(),)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
child = os.fork()
if child == 0:
    with catalog.transaction():
        catalog.execute("INSERT INTO t VALUES (2, 'child')")
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
inside = os.getpid()
try:
    with catalog.transaction():
        catalog.execute("INSERT INTO t VALUES (3, 'again')")
        os.fork()
except StoreError as error:
    assert os.getpid() != inside and "parent" in str(error)
    os._exit(0)
assert os.wait()[1] == 0
assert catalog.fetchall("SELECT name FROM t") == [("parent",), ("child",), ("again",)]
"""


def test_a_forked_child_has_its_own_connection_and_no_part_in_the_parents_transaction(tmp_path: Path) -> None:
    run_script(FORK, tmp_path / "store")


def test_the_catalog_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = ["torch", "numpy", "pyarrow", "sqlalchemy", "fsspec", "webdataset", "sqlglot"]
    code = f"""
import sys
from deeplake_loader.sqlite_catalog import SqliteCatalog
catalog = SqliteCatalog.open(sys.argv[1])
with catalog.transaction(): catalog.execute("CREATE TABLE t (a)")
assert not set({heavy}) & set(sys.modules), set({heavy}) & set(sys.modules)
"""
    run_script(code, tmp_path / "store")


def run_script(code: str, *arguments: object) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# -- opening ---------------------------------------------------------------------------------------------------------


def test_a_store_is_durable_wal_and_full_sync(catalog: Catalog) -> None:
    found = [catalog.fetchone(f"PRAGMA {name}")[0] for name in ("journal_mode", "synchronous", "foreign_keys")]
    assert found == ["wal", 2, 1]


def test_opening_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no store"):
        SqliteCatalog.open(tmp_path / "none", create=False)
    with pytest.raises(NotFoundError, match="no store"):
        SqliteCatalog.open(tmp_path / "none", read_only=True)
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        SqliteCatalog.open(tmp_path / "file" / "store")


def test_a_creation_that_never_finished_is_healed_by_the_next_writer(tmp_path: Path) -> None:
    (tmp_path / "catalog.sqlite").write_bytes(b"")
    with pytest.raises(StoreError, match="never finished"):
        SqliteCatalog.open(tmp_path, create=False)
    SqliteCatalog.open(tmp_path).close()
    assert SqliteCatalog.open(tmp_path, create=False).head() == 0


def test_processes_that_create_one_store_at_once_agree(tmp_path: Path) -> None:
    code = """
import sys
from deeplake_loader.sqlite_catalog import SqliteCatalog
sys.stdin.read()
catalog = SqliteCatalog.open(sys.argv[1])
with catalog.transaction():
    catalog.execute("CREATE TABLE IF NOT EXISTS t (a)")
    catalog.execute("INSERT INTO t VALUES (1)")
print(catalog.meta("store_id"))
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", code, str(tmp_path / "store")]
    pipe = subprocess.PIPE
    writers = [subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(4)]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
        writer.stdin = None
    done = [writer.communicate(timeout=60) for writer in writers]
    assert [errors for _, errors in done] == [""] * 4
    assert len({output for output, _ in done}) == 1
    assert SqliteCatalog.open(tmp_path / "store").fetchone("SELECT count(*) FROM t") == (4,)


def test_another_programs_database_and_a_newer_format_are_refused_untouched(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "catalog.sqlite") as foreign:
        foreign.execute("CREATE TABLE accounts (a)")
    foreign.close()
    before = (tmp_path / "catalog.sqlite").read_bytes()
    with pytest.raises(StoreError, match="accounts"):
        SqliteCatalog.open(tmp_path)
    assert sqlite3.connect(tmp_path / "catalog.sqlite").execute("SELECT count(*) FROM sqlite_master").fetchone() == (1,)
    assert len(before) == (tmp_path / "catalog.sqlite").stat().st_size
    newer = SqliteCatalog.open(tmp_path / "newer")
    newer.set_meta("format", "2")
    newer.close()
    with pytest.raises(StoreError, match=r"format 2.*upgrade"):
        SqliteCatalog.open(tmp_path / "newer")


def test_a_damaged_catalog_is_a_typed_error(tmp_path: Path) -> None:
    catalog = SqliteCatalog.open(tmp_path / "store")
    with catalog.transaction():
        catalog.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)")
        catalog.executemany("INSERT INTO t (data) VALUES (?)", [(os.urandom(3000),) for _ in range(200)])
    catalog.close()
    path = tmp_path / "store" / "catalog.sqlite"
    whole = path.read_bytes()
    for damaged in (
        b"garbage" * 1000,
        b"\0" * 4096 + whole[4096:],
        whole[: len(whole) // 2],
        whole[:4096] + b"\xff" * 9000,
    ):
        path.write_bytes(damaged)
        with pytest.raises((CorruptionError, StoreError)):
            found = SqliteCatalog.open(tmp_path / "store")
            assert len(found.fetchall("SELECT * FROM t")) == 200


def test_read_only_reads_and_never_writes(catalog: Catalog, tmp_path: Path) -> None:
    with catalog.transaction():
        add(catalog, "a")
    reader = SqliteCatalog.open(tmp_path / "store", read_only=True)
    assert names(reader) == ["a"]
    with pytest.raises(StoreError, match="read-only"), reader.transaction():
        pass
    with pytest.raises(StoreError):
        add(reader, "b")
    reader.put_plan("SELECT 1", "{}")
    assert reader.plan("SELECT 1") == "{}"
    with catalog.transaction():
        add(catalog, "b")
    assert names(reader) == ["a", "b"]
    reader.close()


def test_a_cleanly_closed_store_is_readable_in_a_read_only_folder(tmp_path: Path) -> None:
    store = tmp_path / "store"
    made = SqliteCatalog.open(store)
    with made.transaction():
        made.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT)")
        add(made, "a")
    made.close()
    code = """
import os, sys
from deeplake_loader.catalog import Catalog
from deeplake_loader.sqlite_catalog import SqliteCatalog
from deeplake_loader.errors import StoreError
os.setgid(65534); os.setuid(65534)
assert SqliteCatalog.open(sys.argv[1], read_only=True).fetchall("SELECT name FROM t") == [("a",)]
try:
    SqliteCatalog.open(sys.argv[1])
except StoreError as error:
    sys.exit()
sys.exit("a store in a read-only folder was opened for writing")
"""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    public = Path("/tmp") / f"dl-read-only-{os.getpid()}"
    shutil.copytree(store, public)
    try:
        public.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IROTH | stat.S_IXOTH)
        run_script(code, public)
    finally:
        shutil.rmtree(public)


def test_a_closed_catalog_says_so(catalog: Catalog) -> None:
    catalog.close()
    catalog.close()
    with pytest.raises(StoreError, match="closed"):
        catalog.head()


# -- definitions and plans -------------------------------------------------------------------------------------------


def definition(name: str, *columns: str) -> Table:
    return Table(name, tuple(Column(c, ColumnType.parse("VECTOR(3)")) for c in columns), ("id",))


def test_definitions_are_shared_and_follow_rollbacks(catalog: Catalog, tmp_path: Path) -> None:
    other = SqliteCatalog.open(tmp_path / "store")
    assert catalog.tables() == {} == other.tables()

    def make(table: Table) -> None:
        catalog.execute(f"CREATE TABLE {table.name} (id INTEGER)")
        catalog.put_table(table, "the user's text")

    with pytest.raises(ZeroDivisionError), catalog.transaction():
        make(definition("First", "a"))
        assert list(catalog.tables()) == ["first"]
        1 / 0  # noqa: B018
    assert catalog.tables() == {}
    with catalog.transaction():
        make(definition("Second", "b"))
    for each in (catalog, other):
        assert each.tables() == {"second": definition("Second", "b")}
    with catalog.transaction():
        with pytest.raises(ZeroDivisionError), catalog.transaction():
            make(definition("Third", "c"))
            1 / 0  # noqa: B018
        make(definition("Fourth", "d"))
    assert list(catalog.tables()) == ["fourth", "second"]
    with catalog.transaction():
        catalog.execute("DROP TABLE second")
        catalog.drop_table("SECOND")
    assert list(catalog.tables()) == list(other.tables()) == ["fourth"]
    other.close()


def test_plans_outlive_the_process_but_not_the_schema(catalog: Catalog, tmp_path: Path) -> None:
    assert catalog.plan("SELECT 1") is None
    catalog.put_plan("SELECT 1", '{"a": 1}')
    other = SqliteCatalog.open(tmp_path / "store")
    assert other.plan("SELECT 1") == '{"a": 1}' == catalog.plan("SELECT 1")
    with catalog.transaction():
        catalog.execute("CREATE TABLE u (a)")
        catalog.put_plan("SELECT a FROM u", "{}")
    assert other.plan("SELECT 1") is None and other.plan("SELECT a FROM u") == "{}"
    assert catalog.fetchone("PRAGMA synchronous") == (2,)
    other.close()


def test_plans_of_a_rolled_back_schema_are_forgotten(catalog: Catalog) -> None:
    with pytest.raises(ZeroDivisionError), catalog.transaction():
        catalog.execute("CREATE TABLE u (a)")
        catalog.put_plan("SELECT * FROM u", "one column")
        1 / 0  # noqa: B018
    with catalog.transaction():
        catalog.execute("CREATE TABLE u (a, b)")
        assert catalog.plan("SELECT * FROM u") is None


def test_keeping_a_plan_waits_for_nobody_and_never_fails(catalog: Catalog, tmp_path: Path) -> None:
    other = SqliteCatalog.open(tmp_path / "store", timeout_s=20)
    with catalog.transaction():
        add(catalog, "a")
        started = time.monotonic()
        other.put_plan("SELECT 1", "{}")
        assert time.monotonic() - started < 1
    assert other.plan("SELECT 1") == "{}" and catalog.plan("SELECT 1") is None
    assert other.fetchone("PRAGMA busy_timeout") == (20_000,)
    other.close()


def test_the_number_of_kept_plans_is_bounded(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "MAX_PLANS", 10)
    for i in range(25):
        catalog.put_plan(f"SELECT {i}", "{}")
    catalog.put_plan("SELECT " + "x" * 200_000, "{}")
    assert catalog.fetchone("SELECT count(*), max(text) FROM _dl_plans") == (10, "SELECT 24")


def test_facts_about_the_store_are_kept(catalog: Catalog) -> None:
    with catalog.transaction():
        catalog.set_meta("max_shard_bytes", "1000")
    assert catalog.meta("max_shard_bytes") == "1000" and catalog.meta("nothing") is None
    assert len(str(catalog.meta("store_id"))) == 32
