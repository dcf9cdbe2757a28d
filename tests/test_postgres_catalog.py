"""The shared catalog: its bookkeeping, transactions and snapshots in a PostgreSQL database, asked through psycopg."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from conftest import Store

from deeplake_loader.errors import SQLError
from deeplake_loader.postgres.catalog import PostgresCatalog

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
