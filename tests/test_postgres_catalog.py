"""The shared catalog: its bookkeeping, transactions and snapshots in a PostgreSQL database, asked through psycopg."""

from __future__ import annotations

import logging
import os
import pickle
import pwd
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from conftest import Server, Store
from psycopg.conninfo import conninfo_to_dict

import deeplake_loader as deeplake
from deeplake_loader import ownership
from deeplake_loader.catalog import Catalog
from deeplake_loader.errors import (
    CorruptionError,
    DeeplakeError,
    InputError,
    NotFoundError,
    SQLError,
    StoreError,
    UnsupportedSQLError,
)
from deeplake_loader.postgres.catalog import PostgresCatalog, PostgresLocation
from deeplake_loader.postgres.connection import Address
from deeplake_loader.postgres.names import physical
from deeplake_loader.store import Root

pytestmark = pytest.mark.postgres_only("the catalog in a PostgreSQL database")


@pytest.fixture
def catalog(place: Store) -> Iterator[PostgresCatalog]:
    made = PostgresCatalog.open(place.url, storage=place.folder)
    yield made
    made.close()


def test_the_bookkeeping_is_made_once_and_main_stays_empty(catalog: PostgresCatalog, place: Store) -> None:
    PostgresCatalog.open(place.url).close()
    with psycopg.connect(place.url) as plain:
        names = plain.execute("SELECT tablename FROM pg_tables WHERE schemaname = '_dl'").fetchall()
        assert {"_dl_meta", "_dl_commits", "_dl_branches", "_dl_files", "_dl_members"} <= {n for (n,) in names}
        assert plain.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
        assert plain.execute("SELECT name FROM _dl._dl_branches").fetchall() == [("main",)]


def test_a_failed_statement_takes_back_only_itself_in_a_nested_block(catalog: PostgresCatalog) -> None:
    with catalog.transaction() as tx:
        catalog.execute("CREATE TABLE t (a BIGINT)")
        with pytest.raises(SQLError), catalog.transaction():
            catalog.execute("INSERT INTO missing VALUES (1)")
        with pytest.raises(SQLError), catalog.snapshot():
            catalog.fetchall("SELECT * FROM missing")
        catalog.execute("INSERT INTO t VALUES (?)", (1,))
    assert tx.seq == 1 and catalog.fetchall("SELECT a FROM t") == [(1,)]


# -- names, addresses, secrets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x", "x" * 63, "x" * 64, "é" * 40, "generations" * 12])
def test_a_physical_name_is_one_that_postgres_keeps(postgres_server: Server, name: str) -> None:
    found = physical(name)
    with psycopg.connect(postgres_server.url("postgres")) as plain:
        assert plain.execute(f'SELECT 1 AS "{found}"').description[0].name == found  # type: ignore[index]
    assert (found == name) == (len(name.encode()) <= 63)


def test_names_that_only_differ_behind_the_cut_stay_different() -> None:
    assert len({physical("t" * 70 + str(i)) for i in range(100)}) == 100


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:top%20secret@host/db?schema=team",
        "postgresql://me@host:5433/db?password=top%20secret",
        "postgres://host/db?user=me&password=top%20secret&sslmode=require",
    ],
)
def test_no_text_of_an_address_shows_its_password(url: str) -> None:
    address = Address.parse(url)
    location = PostgresLocation(address, Root("/tmp/store"))
    for text in (repr(address), str(address), repr(location), address.shown):
        assert "secret" not in text and "me@" in text
    assert conninfo_to_dict(pickle.loads(pickle.dumps(location)).address.conninfo)["password"] == "top secret"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@host:notaport/db",
        "postgresql://me:hunter2@host/db?nonsense=hunter2",
        "postgresql://me:hunter2%zz@host/db",
        "postgresql://me:hunter2@host/db?schema=_dl",
        "postgresql://me:hunter2@host/db?schema=pg_catalog",
        "postgresql://me:hunter2@127.0.0.1:1/db",
        "postgresql://me:hunter2@no.such.host.invalid/db",
    ],
)
def test_an_address_that_leads_nowhere_is_a_typed_error_without_the_password(
    tmp_path: Path, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(DeeplakeError) as caught:
        PostgresCatalog.open(url, storage=tmp_path, timeout_s=1)
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert "hunter2" not in shown.replace(url, "")


def test_the_storage_is_remembered_and_another_one_refused(place: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="storage="):
        PostgresCatalog.open(place.url)
    PostgresCatalog.open(place.url, storage=place.folder).close()
    again = PostgresCatalog.open(place.url)
    assert again.root.folder == str(place.folder)
    again.close()
    with pytest.raises(InputError, match="leave storage= out"):
        PostgresCatalog.open(place.url, storage=tmp_path / "other")


@pytest.mark.parametrize("refused", ["another store's", "unwritable", "no bucket", "options"])
def test_a_refused_storage_is_not_remembered(place: Store, tmp_path: Path, refused: str) -> None:
    options: dict[str, Any] = {"storage": tmp_path / "taken"}
    if refused == "another store's":
        deeplake.connect(tmp_path / "other", storage=tmp_path / "taken").close()
    elif refused == "unwritable":
        (tmp_path / "taken").write_text("a file")
    elif refused == "no bucket":
        options = {"storage": "s4://bucket/x"}
    else:
        options["storage_options"] = {"key": "forgotten"}
    with pytest.raises(DeeplakeError):
        deeplake.connect(place.url, **options)
    with pytest.raises(InputError, match="needs storage="):
        deeplake.connect(place.url)
    with pytest.raises(NotFoundError, match="no store"):
        deeplake.connect(place.url, read_only=True)
    with deeplake.connect(place.url, storage=place.folder) as db:
        assert db._catalog.root.base == str(place.folder)
    with deeplake.connect(place.url) as db:
        assert db._catalog.root.base == str(place.folder)


def test_a_store_with_its_own_server_remembers_no_refused_storage(tmp_path: Path) -> None:
    deeplake.connect(tmp_path / "other", storage=tmp_path / "taken").close()
    with pytest.raises(InputError, match="another store"):
        deeplake.connect(tmp_path / "s", catalog="postgres", storage=tmp_path / "taken")
    with deeplake.connect(tmp_path / "s", catalog="postgres") as db:
        assert db._catalog.root.base == str(tmp_path / "s")


def test_of_two_that_make_a_store_with_two_storages_at_once_one_is_refused(
    place: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = ownership.claim

    def claim(catalog: Catalog, storage: str | None = None) -> None:
        monkeypatch.setattr(ownership, "claim", known)
        PostgresCatalog.open(place.url, storage=place.folder).close()
        known(catalog, storage)

    monkeypatch.setattr(ownership, "claim", claim)
    with pytest.raises(InputError, match="leave storage= out"):
        PostgresCatalog.open(place.url, storage=tmp_path / "late")
    with deeplake.connect(place.url) as db:
        assert db._catalog.root.base == str(place.folder)


def test_bytes_without_their_catalog_are_no_new_store(place: Store) -> None:
    (place.folder / "shards").mkdir(parents=True)
    with pytest.raises(CorruptionError, match="another store"):
        PostgresCatalog.open(place.url, storage=place.folder)
    with pytest.raises(NotFoundError, match="no store"):
        PostgresCatalog.open(place.url, create=False)


def test_a_newer_format_is_refused(catalog: PostgresCatalog, place: Store) -> None:
    with catalog.transaction():
        catalog.set_meta("format", "99")
    with pytest.raises(StoreError, match="upgrade"):
        PostgresCatalog.open(place.url)


def test_two_stores_in_two_schemas_of_one_database_do_not_meet(place: Store, tmp_path: Path) -> None:
    url = place.url + "&schema=team"
    first, second = PostgresCatalog.open(place.url, storage=tmp_path / "a"), PostgresCatalog.open(url, storage=tmp_path)
    with first.transaction():
        first.execute("CREATE TABLE t (a BIGINT)")
    with second.transaction():
        second.execute("CREATE TABLE t (b BIGINT)")
        second.execute("INSERT INTO t VALUES (1)")
    assert first.fetchall("SELECT * FROM public.t") == [] and second.fetchall("SELECT b FROM team.t") == [(1,)]
    assert (first.head(), second.head()) == (1, 1)
    first.close()
    second.close()


# -- roles -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def reader_url(catalog: PostgresCatalog, place: Store, postgres_server: Server) -> Iterator[str]:
    """The store as a role that may only SELECT."""
    with catalog.transaction():
        catalog.execute("CREATE TABLE t (a BIGINT)")
        catalog.execute("INSERT INTO t VALUES (1)")
    with psycopg.connect(place.url, autocommit=True) as owner:
        owner.execute("CREATE ROLE reader LOGIN")
        owner.execute("GRANT USAGE ON SCHEMA public, _dl TO reader")
        owner.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public, _dl TO reader")
    yield place.url.replace("postgres:@", "reader@")
    with psycopg.connect(place.url, autocommit=True) as owner:
        owner.execute("DROP OWNED BY reader")
        owner.execute("DROP ROLE reader")


def test_a_role_that_may_only_read_opens_the_store_read_only(reader_url: str) -> None:
    catalog = PostgresCatalog.open(reader_url, read_only=True)
    with catalog.snapshot() as head:
        assert head == 1 and catalog.fetchall("SELECT a FROM t") == [(1,)]
    catalog.put_plan("SELECT 1", "{}")
    with pytest.raises(StoreError, match="read-only"), catalog.transaction():
        pass
    with pytest.raises(StoreError, match="read-only"):
        catalog.execute("INSERT INTO t VALUES (2)")
    catalog.close()


def test_a_role_that_may_only_read_is_told_so_when_it_writes(reader_url: str) -> None:
    catalog = PostgresCatalog.open(reader_url)
    with pytest.raises(StoreError, match="privilege"), catalog.transaction():
        catalog.execute("INSERT INTO t VALUES (2)")
    assert catalog.fetchall("SELECT a FROM t") == [(1,)]
    catalog.close()


def test_a_reader_reads_searches_and_streams_through_the_whole_package(place: Store) -> None:
    with place.connect() as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, name TEXT, photo BLOB, v VECTOR(2))")
        db.insert("t", [{"name": f"n{i}", "photo": b"x" * i, "v": [1.0, float(i)]} for i in range(5)])
        with psycopg.connect(place.url, autocommit=True) as owner:
            owner.execute("DROP ROLE IF EXISTS viewer")
            owner.execute("CREATE ROLE viewer LOGIN")
            owner.execute("GRANT USAGE ON SCHEMA public, _dl TO viewer")
            owner.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public, _dl TO viewer")
        with deeplake.connect(place.url.replace("postgres:@", "viewer@"), read_only=True) as viewer:
            rows = viewer.execute("SELECT name, photo FROM t ORDER BY id").fetchall()
            assert [r[1].bytes() for r in rows] == [b"x" * i for i in range(5)]
            assert [r.name for r in viewer.search("t", "v", [1.0, 9.0], k=1)] == ["n4"]
            batches = list(viewer.stream("SELECT name, v FROM t", batch_size=2))
            assert [name for batch in batches for name in batch["name"]] == [f"n{i}" for i in range(5)]
            for write in ("INSERT INTO t (name) VALUES ('x')", "CREATE TABLE u (a INTEGER)", "DELETE FROM t"):
                with pytest.raises(DeeplakeError):
                    viewer.execute(write)
    with psycopg.connect(place.url, autocommit=True) as owner:
        owner.execute("DROP OWNED BY viewer")
        owner.execute("DROP ROLE viewer")


# -- a system's PostgreSQL, without pgvector -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain_server() -> Iterator[str]:
    """The URL of a server of the PostgreSQL that is installed here, or a skip."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        pytest.skip("no PostgreSQL is installed here")
    binaries, user = found[-1].parent, []
    with tempfile.TemporaryDirectory(prefix="dl", dir="/tmp", ignore_cleanup_errors=True) as folder:
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(folder, account.pw_uid, account.pw_gid)
            user = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
        data, quiet = f"{folder}/data", {"check": True, "capture_output": True}
        subprocess.run([*user, binaries / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "-N"], **quiet)
        options = f"-c listen_addresses='' -c fsync=off -k {folder}"
        control = [*user, binaries / "pg_ctl", "-D", data, "-w"]
        subprocess.run([*control, "-l", f"{folder}/log", "-o", options, "start"], check=True, stdout=subprocess.DEVNULL)
        yield f"postgresql://postgres@/postgres?host={folder}"
        subprocess.run([*control, "-m", "immediate", "stop"], **quiet)


def test_everything_but_pgvectors_operators_works_without_it(plain_server: str, tmp_path: Path) -> None:
    with deeplake.connect(plain_server, storage=tmp_path) as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, name TEXT, photo BLOB, v VECTOR(2))")
        db.insert("t", [{"name": f"n{i}", "photo": b"x" * i, "v": [1.0, float(i)]} for i in range(5)])
        assert [row.photo.bytes() for row in db.execute("SELECT photo FROM t ORDER BY id")] == [
            b"x" * i for i in range(5)
        ]
        scored = "SELECT name, cosine_similarity(v, %s) AS s FROM t ORDER BY s DESC LIMIT 2"
        query = np.array([1.0, 9.0], np.float32)
        assert [row.name for row in db.execute(scored, [query])] == ["n4", "n3"]
        assert [row.name for row in db.search("t", "v", query, k=2)] == ["n4", "n3"]
        db.branch("idea")
        db.execute("UPDATE t SET name = 'z' WHERE id = 1")
        db.checkout("main")
        assert db.execute("SELECT name FROM t WHERE id = 1").scalar() == "n0"
        assert db.merge("idea").changed == 1
        stream = db.stream("SELECT name FROM t ORDER BY id", batch_size=2)
        assert [name for batch in stream for name in batch["name"]] == ["z", "n1", "n2", "n3", "n4"]
        with pytest.raises(UnsupportedSQLError, match="pgvector"):
            db.execute("SELECT name FROM t ORDER BY v <=> %s LIMIT 2", [query])


# -- a server of the store's own -------------------------------------------------------------------------------------

USER = """
import sys
from deeplake_loader.postgres.embedded import EmbeddedPostgres
catalog = EmbeddedPostgres.start(sys.argv[1])
with catalog.transaction(sys.argv[2]):
    pass
print(catalog.head(), flush=True)
sys.stdin.read()
if sys.argv[2] != "killed":
    catalog.close()
"""


def test_a_stores_own_server_is_shared_and_stops_with_its_last_user(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    postmaster = folder / "postgres" / "data" / "postmaster.pid"

    def user(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", USER, str(folder), name]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    first, second = user("first"), user("second")  # both find no store, and make one
    heads = sorted(int(p.stdout.readline()) for p in (first, second))  # type: ignore[union-attr]
    assert heads in ([1, 2], [2, 2])
    server = postmaster.read_text().split()[0]
    first.communicate("")
    assert postmaster.read_text().split()[0] == server  # the second one still uses it
    killed = user("killed")
    assert killed.stdout is not None and killed.stdout.readline() == "3\n"
    killed.kill()
    killed.communicate()
    second.communicate("")
    assert not postmaster.exists()
    with deeplake.connect(folder) as db:  # found out without catalog=
        assert len(db.log()) == 3
        assert not (folder / "catalog.sqlite").exists()
    with pytest.raises(InputError, match="postgres catalog"):
        deeplake.connect(folder, catalog="sqlite")
    moved = folder.rename(tmp_path / "moved")
    with deeplake.connect(moved) as db:
        assert db.root == str(moved)


def test_the_server_of_a_folder_is_no_address_of_its_store(tmp_path: Path) -> None:
    with deeplake.connect(tmp_path / "store", catalog="postgres"):
        socket = (tmp_path / "store" / "postgres" / "data" / "postmaster.pid").read_text().splitlines()[4]
        with pytest.raises(InputError, match="connect to the folder"):
            deeplake.connect(f"postgresql://postgres@/postgres?host={socket}")


def test_a_store_in_a_file_gets_no_server(tmp_path: Path) -> None:
    deeplake.connect(tmp_path).close()
    with pytest.raises(InputError, match="sqlite catalog"):
        deeplake.connect(tmp_path, catalog="postgres")
    with pytest.raises(InputError, match="none of"):
        deeplake.connect(tmp_path, catalog="mysql")  # type: ignore[arg-type]
