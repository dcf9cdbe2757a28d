"""The DB-API: the public compliance suite, and what PEP 249 leaves open: transactions, threads, forks, both trees."""

from __future__ import annotations

import datetime as dt
import decimal
import os
import pickle
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Store

import deeplake_loader as deeplake
from deeplake_loader import dbapi, errors

dbapi20 = pytest.importorskip("dbapi20")
pytestmark = pytest.mark.both_catalogs
Opens = Callable[..., dbapi.Connection]


class TestCompliance(dbapi20.DatabaseAPI20Test):  # type: ignore[misc]
    """dbapi-compliance 1.15. A table without a key would get an id as its first column, hence the keys."""

    driver = dbapi
    ddl1 = "create table dbapi20test_booze (name varchar(20) primary key)"
    ddl2 = "create table dbapi20test_barflys (name varchar(20), drink varchar(30), primary key (name))"

    @pytest.fixture(autouse=True)
    def _store(self, place: Store) -> None:
        self.connect_args = (place.url,)
        self.connect_kw_args = {"storage": place.folder} if place.kind == "postgres" else {}

    def test_nextset(self) -> None:
        assert not hasattr(dbapi.Cursor, "nextset")  # one statement gives one result

    def test_setoutputsize(self) -> None:
        with self._connect() as connection:
            cursor = connection.cursor()
            cursor.setoutputsize(1)
            assert cursor.execute("SELECT 'whole'").fetchone() == ("whole",)


@pytest.fixture
def opened(place: Store) -> Opens:
    """Opens connections to one store."""
    own = {"storage": place.folder} if place.kind == "postgres" else {}
    return lambda **options: dbapi.connect(place.url, **own, **options)


@pytest.fixture
def connection(opened: Opens) -> Iterator[dbapi.Connection]:
    made = opened(timeout_s=0.2)
    made.cursor().execute("CREATE TABLE notes (id BIGINT PRIMARY KEY, text TEXT UNIQUE, score NUMERIC(6, 2))")
    made.commit()
    yield made
    made.close()


def texts(connection: dbapi.Connection) -> list[str]:
    return [row.text for row in connection.cursor().execute("SELECT text FROM notes ORDER BY id")]


def add(connection: dbapi.Connection, text: str) -> dbapi.Cursor:
    return connection.cursor().execute("INSERT INTO notes (text) VALUES (%s)", [text])


# -- transactions --------------------------------------------------------------------------------------------------


def test_a_transaction_begins_with_the_first_change_and_another_connection_sees_it_after_the_commit(
    connection: dbapi.Connection, opened: Opens
) -> None:
    with opened(timeout_s=0.2) as other:
        assert texts(connection) == [] and not connection.in_transaction
        add(connection, "first")
        assert connection.in_transaction and texts(connection) == ["first"] and texts(other) == []
        connection.commit()
        assert texts(other) == ["first"]
        add(connection, "second")
        connection.rollback()
        assert texts(connection) == texts(other) == ["first"]


@pytest.mark.sqlite_only("in PostgreSQL writers of different rows do not wait for each other")
def test_a_reader_keeps_no_writer_out_and_a_writer_does(connection: dbapi.Connection, opened: Opens) -> None:
    with opened(timeout_s=0.2) as other:
        connection.cursor().execute("SELECT count(*) FROM notes")
        add(other, "free")
        with pytest.raises(dbapi.OperationalError, match="another writer"):
            add(connection, "waits")
        assert not connection.in_transaction
        other.commit()
        add(connection, "now")
        connection.rollback()


def test_one_commit_holds_what_a_transaction_did_through_sql_and_through_the_handle(
    connection: dbapi.Connection,
) -> None:
    before = len(connection.database.log())
    add(connection, "by sql")
    connection.database.insert("notes", [{"text": "in bulk"}])
    connection.commit()
    assert texts(connection) == ["by sql", "in bulk"] and len(connection.database.log()) == before + 1


def test_a_statement_that_fails_takes_only_itself_back(connection: dbapi.Connection) -> None:
    add(connection, "kept")
    with pytest.raises(dbapi.IntegrityError):
        add(connection, "kept")
    connection.commit()
    assert texts(connection) == ["kept"]


def test_a_first_statement_that_fails_leaves_no_lock(connection: dbapi.Connection, opened: Opens) -> None:
    add(connection, "one")
    connection.commit()
    with pytest.raises(dbapi.IntegrityError):
        add(connection, "one")
    with opened(timeout_s=0) as other:
        add(other, "two")


def test_the_context_commits_or_rolls_back(connection: dbapi.Connection) -> None:
    with connection:
        add(connection, "kept")
    with pytest.raises(KeyError), connection:
        add(connection, "lost")
        raise KeyError
    assert texts(connection) == ["kept"]


def test_autocommit_commits_each_statement(connection: dbapi.Connection, opened: Opens) -> None:
    connection.autocommit = True
    add(connection, "at once")
    assert not connection.in_transaction
    connection.cursor().execute("BEGIN")
    add(connection, "together")
    with pytest.raises(dbapi.ProgrammingError, match="inside a transaction"):
        connection.autocommit = False
    connection.rollback()
    assert texts(connection) == ["at once"]


@pytest.mark.sqlite_only("in PostgreSQL writers of different rows do not wait for each other")
def test_begin_takes_the_lock_before_the_first_read(connection: dbapi.Connection, opened: Opens) -> None:
    with opened(timeout_s=0) as other:
        connection.cursor().execute("begin transaction;")
        with pytest.raises(dbapi.OperationalError):
            add(other, "later")
        with pytest.raises(dbapi.ProgrammingError, match="open already"):
            connection.cursor().execute("BEGIN")
        connection.cursor().execute("COMMIT")
        add(other, "later")


def test_savepoints_nest_and_a_name_means_the_newest(connection: dbapi.Connection) -> None:
    run = connection.cursor().execute
    add(connection, "a")
    run("SAVEPOINT s")
    add(connection, "b")
    run('SAVEPOINT "s"')
    add(connection, "c")
    run("ROLLBACK TO SAVEPOINT s")
    assert texts(connection) == ["a", "b"]
    add(connection, "d")
    run("RELEASE s")
    run("SAVEPOINT inner")
    add(connection, "e")
    run("rollback to s")  # takes the savepoint behind it along
    assert texts(connection) == ["a"]
    with pytest.raises(dbapi.ProgrammingError, match="no savepoint 'inner'"):
        run("RELEASE inner")
    add(connection, "f")
    run("SAVEPOINT open_to_the_end")
    connection.commit()
    assert texts(connection) == ["a", "f"]


def test_branches_have_connections_of_their_own(connection: dbapi.Connection, opened: Opens) -> None:
    add(connection, "main")
    connection.commit()
    connection.database.branch("idea")
    connection.database.checkout("main")
    with opened(branch="idea") as branch:
        assert add(branch, "only here").lastrowid == 2
        assert branch.cursor().execute("UPDATE notes SET text = upper(text)").rowcount == 2
        branch.commit()
        assert texts(branch) == ["MAIN", "ONLY HERE"] and texts(connection) == ["main"]


# -- cursors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [("%s", [5]), ("%(x)s", {"x": 5}), ("?", (5,)), (":x", {"x": 5}), ("$1", [5])],
)
def test_every_style_of_placeholder_is_read(connection: dbapi.Connection, sql: str, parameters: Any) -> None:
    assert connection.cursor().execute(f"SELECT {sql}::int + 1", parameters).fetchall() == [(6,)]


def test_a_cursor_tells_rowcount_lastrowid_and_rownumber(connection: dbapi.Connection) -> None:
    cursor = connection.cursor()
    assert (cursor.rowcount, cursor.lastrowid, cursor.description, cursor.rownumber) == (-1, None, None, None)
    rows = [{"text": text} for text in "abcde"]
    assert cursor.executemany("INSERT INTO notes (text) VALUES (%(text)s)", rows).rowcount == 5
    assert add(connection, "f").lastrowid == 6
    cursor.execute("SELECT text FROM notes ORDER BY id")
    assert cursor.rowcount == 6 and cursor.fetchone() == ("a",) and cursor.rownumber == 1
    assert cursor.fetchmany() == [("b",)] and cursor.fetchmany(2) == [("c",), ("d",)]
    assert [row.text for row in cursor] == ["e", "f"] and cursor.fetchall() == []
    with pytest.raises(dbapi.ProgrammingError):
        connection.cursor().fetchall()
    with pytest.raises(dbapi.ProgrammingError, match="no rows to fetch"):
        add(connection, "g").fetchone()


def test_the_description_names_types_that_equal_the_type_objects(connection: dbapi.Connection) -> None:
    run = connection.cursor().execute
    run("CREATE TABLE kinds (t TEXT, j JSON, u UUID, n NUMERIC(6, 2), b BOOLEAN, d DATE, z TIMESTAMPTZ, y BYTEA, "
        "v VECTOR(2), i IMAGE)")  # fmt: skip
    described = run("SELECT t, j, u, n, b, d, z, y, v, i, id FROM kinds").description
    assert described is not None
    found = [next(name for name in ("STRING", "NUMBER", "DATETIME", "BINARY") if code == getattr(dbapi, name))
             for _, code, *_ in described]  # fmt: skip
    assert found == [*["STRING"] * 3, *["NUMBER"] * 2, *["DATETIME"] * 2, *["BINARY"] * 3, "NUMBER"]
    assert described[3][4:6] == (6, 2) and described[0][0] == "t"
    assert all(code != dbapi.ROWID for _, code, *_ in described)


def test_values_come_back_as_python_has_them_and_vectors_as_handles(connection: dbapi.Connection) -> None:
    run = connection.cursor().execute
    run("CREATE TABLE kinds (id BIGINT PRIMARY KEY, n NUMERIC(6, 2), at TIMESTAMP, y BYTEA, v VECTOR(2))")
    given = [decimal.Decimal("1.50"), dbapi.Timestamp(2026, 1, 2, 3, 4, 5), dbapi.Binary(b"\0\xff"), [1.0, 2.0]]
    run("INSERT INTO kinds (n, at, y, v) VALUES (%s, %s, %s, %s)", given)
    n, at, y, v = run("SELECT n, at, y, v FROM kinds").fetchone() or ()
    assert [n, at, y] == given[:3] and isinstance(n, decimal.Decimal)
    np.testing.assert_array_equal(np.asarray(v), np.float32([1, 2]))


def test_ticks_are_local_time() -> None:
    ticks = time.mktime((2026, 1, 2, 3, 4, 5, 0, 0, -1))
    assert dbapi.TimestampFromTicks(ticks) == dt.datetime(2026, 1, 2, 3, 4, 5)
    assert (dbapi.DateFromTicks(ticks), dbapi.TimeFromTicks(ticks)) == (dt.date(2026, 1, 2), dt.time(3, 4, 5))


def test_arrow_tables_hold_the_rows_that_no_fetch_returned(connection: dbapi.Connection) -> None:
    for text in "abc":
        add(connection, text)
    cursor = connection.cursor().execute("SELECT id, text FROM notes ORDER BY id")
    cursor.fetchone()
    assert cursor.fetch_arrow_table().to_pydict() == {"id": [2, 3], "text": ["b", "c"]}
    assert cursor.fetchall() == []


@pytest.mark.parametrize("most", [1, 2, 65_536])
def test_record_batches_hold_the_same_as_the_table(connection: dbapi.Connection, most: int) -> None:
    for text in "abc":
        add(connection, text)
    sql = "SELECT id, text, score FROM notes ORDER BY id"
    table = connection.cursor().execute(sql).fetch_arrow_table()
    reader = connection.cursor().execute(sql).fetch_record_batch(most)
    batches = list(reader)
    assert reader.schema == table.schema and [b.num_rows for b in batches] == {1: [1, 1, 1], 2: [2, 1]}.get(most, [3])
    assert [row for batch in batches for row in batch.to_pylist()] == table.to_pylist()
    cursor = connection.cursor().execute(sql)
    cursor.fetchone()
    assert cursor.fetch_record_batch(most).read_all().to_pylist() == table.slice(1).to_pylist()
    assert cursor.fetchall() == []
    with pytest.raises(dbapi.ProgrammingError):
        connection.cursor().execute(sql).fetch_record_batch(0)


def test_arrow_reads_stored_values_as_python_does(connection: dbapi.Connection) -> None:
    run = connection.cursor().execute
    run("CREATE TABLE times (id BIGINT PRIMARY KEY, b BOOLEAN, at TIMESTAMP, z TIMESTAMPTZ, d DATE, t TIME)")
    first = [True, dt.datetime(2026, 1, 2, 3, 4, 5, 250_000), dt.datetime(1900, 1, 1, tzinfo=dt.UTC)]
    last = [False, dt.datetime(1, 1, 1), dt.datetime(2026, 7, 1, 12, tzinfo=dt.UTC), dt.date(1, 1, 1), dt.time()]
    given = [[*first, dt.date(9999, 12, 31), dt.time(1, 2, 3)], [None] * 5, last]
    connection.cursor().executemany("INSERT INTO times (b, at, z, d, t) VALUES (%s, %s, %s, %s, %s)", given)
    rows = run("SELECT b, at, z, d, t FROM times ORDER BY id").fetchall()
    table = run("SELECT b, at, z, d, t FROM times ORDER BY id").fetch_arrow_table()
    assert [str(field.type) for field in table.schema] == [
        "bool", "timestamp[us]", "timestamp[us, tz=UTC]", "date32[day]", "time64[us]",
    ]  # fmt: skip
    assert [tuple(row.values()) for row in table.to_pylist()] == [tuple(row) for row in rows]


@pytest.mark.sqlite_only("PostgreSQL's types take no other form")
def test_arrow_takes_what_another_tool_wrote_in_another_form(connection: dbapi.Connection, place: Store) -> None:
    connection.cursor().execute("CREATE TABLE times (id BIGINT PRIMARY KEY, at TIMESTAMP)")
    connection.commit()
    with sqlite3.connect(place.folder / "catalog.sqlite") as plain:
        plain.execute("INSERT INTO times (at) VALUES ('2026-01-02')")
    cursor = connection.cursor().execute("SELECT at FROM times")
    assert cursor.fetch_arrow_table().to_pydict() == {"at": [dt.datetime(2026, 1, 2)]}


# -- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "parameters", "pep", "own"),
    [
        ("SELEC 1", None, "ProgrammingError", "SQLError"),
        ("SELECT * FROM nowhere", None, "ProgrammingError", "SQLError"),
        ("SELECT %s", None, "ProgrammingError", "InputError"),
        ("VACUUM", None, "NotSupportedError", "UnsupportedSQLError"),
        ("INSERT INTO notes (id) VALUES (%s)", ["word"], "DataError", "TypeMismatchError"),
        ("INSERT INTO notes (id) VALUES (1), (1)", None, "IntegrityError", "ConstraintError"),
    ],
)
def test_an_error_is_of_both_trees(connection: dbapi.Connection, sql: str, parameters: Any, pep: str, own: str) -> None:
    with pytest.raises(getattr(dbapi, pep)) as caught:
        connection.cursor().execute(sql, parameters)
    error = caught.value
    assert isinstance(error, getattr(errors, own)) and isinstance(error, dbapi.DatabaseError)
    assert type(error).__name__ == own and error.kind == getattr(errors, own).kind
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, getattr(dbapi, pep)) and isinstance(again, getattr(errors, own))
    assert str(again) == str(error)


def test_every_error_of_the_package_has_a_counterpart() -> None:
    waiting, seen = [errors.DeeplakeError], []
    while waiting:
        own = waiting.pop()
        waiting += own.__subclasses__()
        seen.append(own)
        if own.__module__ == "deeplake_loader.errors" and not issubclass(own, dbapi.Error):
            error = dbapi._converted(own("what happened"))
            assert isinstance(error, own) and isinstance(error, dbapi.DatabaseError) and str(error) == "what happened"
    assert len(seen) > 15


@pytest.mark.parametrize(
    "sql",
    ["SELECT * FROM _dl_commits", "SELECT * FROM sqlite_master", "UPDATE _dl_head SET bulk = 1", "DROP TABLE _dl_meta",
     "PRAGMA journal_mode", "ATTACH 'other' AS o", "SELECT load_extension('x')",
     "SELECT * FROM pragma_table_info('notes')",
     "VACUUM INTO 'copy'", "SELECT writefile('x', 'y')", "CREATE TRIGGER t AFTER INSERT ON notes BEGIN SELECT 1; END",
     "SELECT 1; DROP TABLE notes", "CREATE TABLE _dl_mine (a INT)"],
)  # fmt: skip
def test_the_stores_own_tables_and_sqlites_levers_are_out_of_reach(connection: dbapi.Connection, sql: str) -> None:
    with pytest.raises(dbapi.ProgrammingError if "_dl_" in sql else dbapi.DatabaseError) as caught:
        connection.cursor().execute(sql)
    assert isinstance(caught.value, errors.SQLError) and not connection.in_transaction
    assert texts(connection) == []


def test_a_constraint_says_what_it_is_on(connection: dbapi.Connection) -> None:
    add(connection, "x")
    with pytest.raises(errors.ConstraintError) as caught:
        add(connection, "x")
    assert (caught.value.table, caught.value.columns, caught.value.constraint) == ("notes", ("text",), "UNIQUE")


def test_what_cannot_be_opened_is_an_operational_error(tmp_path: Path) -> None:
    with pytest.raises(dbapi.OperationalError):
        dbapi.connect(tmp_path / "none", create=False)
    deeplake.connect(tmp_path / "store").close()
    with dbapi.connect(tmp_path / "store", read_only=True) as connection, pytest.raises(dbapi.OperationalError):
        connection.cursor().execute("CREATE TABLE t (a INT)")
    with pytest.raises(dbapi.OperationalError), dbapi.connect(tmp_path / "store", branch="none"):
        pass


def test_a_closed_connection_refuses_everything_and_has_rolled_back(opened: Opens) -> None:
    connection = opened()
    cursor = connection.cursor()
    cursor.execute("CREATE TABLE notes (id BIGINT PRIMARY KEY, text TEXT)")
    connection.close()
    for call in (connection.commit, connection.rollback, connection.cursor, lambda: cursor.execute("SELECT 1")):
        with pytest.raises(dbapi.InterfaceError):
            call()
    cursor.close()
    with opened() as other:
        assert dict(other.database.tables()) == {}


# -- threads and forks -----------------------------------------------------------------------------------------------


def in_thread(work: Any) -> BaseException | None:
    caught: list[BaseException | None] = [None]

    def run() -> None:
        try:
            work()
        except BaseException as error:
            caught[0] = error

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return caught[0]


def test_an_open_transaction_belongs_to_its_thread(connection: dbapi.Connection) -> None:
    assert dbapi.threadsafety == 1
    assert in_thread(lambda: texts(connection)) is None  # between transactions a connection may change threads
    add(connection, "mine")
    for call in (lambda: texts(connection), connection.commit, connection.rollback, connection.close):
        error = in_thread(call)
        assert isinstance(error, dbapi.ProgrammingError) and "another thread's transaction" in str(error)
    connection.commit()
    assert texts(connection) == ["mine"]


def test_threads_with_a_connection_each_wait_for_each_other(opened: Opens) -> None:
    with opened() as first:
        first.cursor().execute("CREATE TABLE notes (id BIGINT PRIMARY KEY, text TEXT)")

    def work() -> None:
        with opened() as mine:
            for i in range(20):
                add(mine, str(i))
                mine.commit()
        mine.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts(first)) == sorted(4 * [str(i) for i in range(20)])
    first.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_no_part_in_the_transaction_and_may_begin_its_own(connection: dbapi.Connection) -> None:
    add(connection, "parent")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            refused = 0
            for call in (connection.commit, lambda: texts(connection), lambda: add(connection, "lost")):
                try:
                    call()
                except dbapi.OperationalError:
                    refused += 1
            connection.rollback()
            if refused == 3 and texts(connection) == []:
                status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    connection.commit()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            add(connection, "child")
            connection.commit()
            connection.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert texts(connection) == ["parent", "child"]
