"""Other tools find the bytes behind a table's blobs by plain SQL."""

from __future__ import annotations

import io
import os
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Store
from PIL import Image

import deeplake_loader as deeplake

pytestmark = pytest.mark.both_catalogs
Tool = Callable[[str], list[tuple[object, ...]]]
LOOK = "SELECT url, member, byte_offset, byte_length FROM {}_files WHERE column_name = 'photo' ORDER BY id"


def photos(count: int, side: int = 200) -> list[np.ndarray]:
    """Pictures of noise, too large to rest in the catalog."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]


@pytest.fixture
def other_tool(place: Store) -> Tool:
    """Runs SQL past this package."""

    def run(sql: str) -> list[tuple[object, ...]]:
        if place.kind == "sqlite":
            with sqlite3.connect(place.folder / "catalog.sqlite") as plain:
                return plain.execute(sql).fetchall()
        import psycopg

        with psycopg.connect(place.url) as connection:
            return connection.execute(sql.encode()).fetchall()

    return run


def views(place: Store, tool: Tool) -> list[str]:
    """The names of the views beside the tables."""
    sql = {"sqlite": "SELECT name FROM sqlite_master WHERE type = 'view'",
           "postgres": "SELECT viewname FROM pg_views WHERE schemaname = 'public'"}  # fmt: skip
    return sorted(str(name) for (name,) in tool(sql[place.kind]))


def test_url_offset_and_length_lead_to_the_bytes(db: deeplake.Database, other_tool: Tool) -> None:
    db.execute("CREATE TABLE g (id BIGINT PRIMARY KEY, photo IMAGE, mask IMAGE)")
    pictures = photos(3)
    db.insert("g", {"photo": pictures, "mask": [None, pictures[0], None]})
    found = other_tool(LOOK.format("g"))
    assert len(found) == 3
    for (url, member, offset, length), picture in zip(found, pictures, strict=True):
        with open(os.path.join(db.root, str(url)), "rb") as file:
            file.seek(int(str(offset)))
            data = file.read(int(str(length)))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), picture)
        with tarfile.open(os.path.join(db.root, str(url))) as tar:
            assert tar.extractfile(str(member)).read() == data  # type: ignore[union-attr]
    assert other_tool("SELECT count(*), count(address) FROM g_files") == [(4, 4)]


def test_a_blob_that_rests_in_the_catalog_has_no_offset(db: deeplake.Database, other_tool: Tool) -> None:
    db.execute("CREATE TABLE g (id BIGINT PRIMARY KEY, photo IMAGE)")
    db.execute("INSERT INTO g (photo) VALUES (%s)", photos(1, side=8))
    assert [row[2] for row in other_tool(LOOK.format("g"))] == [None]


def test_an_adopted_tar_is_named_whole_and_its_members_by_their_bytes(
    db: deeplake.Database, other_tool: Tool, tmp_path: Path
) -> None:
    data = io.BytesIO()
    Image.fromarray(photos(1)[0]).save(data, "PNG")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("one.png", "one.seg.png"):
            member = tarfile.TarInfo(name)
            member.size = data.getbuffer().nbytes
            tar.addfile(member, io.BytesIO(data.getvalue()))
    db.ingest("g", tmp_path / "a.tar", columns={"photo": "png", "seg": "seg.png"})
    ((url, member, offset, length),) = other_tool(LOOK.format("g"))
    assert (url, member) == ((tmp_path / "a.tar").as_uri(), None)
    assert (tmp_path / "a.tar").read_bytes()[int(str(offset)) :][: int(str(length))] == data.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE g ADD COLUMN note TEXT",
        "ALTER TABLE g RENAME COLUMN other TO note",
        "ALTER TABLE g DROP COLUMN other",
    ],
)
def test_the_view_follows_its_table(db: deeplake.Database, other_tool: Tool, change: str) -> None:
    db.execute("CREATE TABLE g (id BIGINT PRIMARY KEY, photo IMAGE, other IMAGE)")
    db.insert("g", {"photo": photos(2)})
    db.execute(change)
    assert len(other_tool(LOOK.format("g"))) == 2


def test_the_view_goes_with_its_table(db: deeplake.Database, place: Store, other_tool: Tool) -> None:
    db.execute("CREATE TABLE g (id BIGINT PRIMARY KEY, photo IMAGE)")
    assert views(place, other_tool) == ["g_files"]
    db.execute("DROP TABLE g")
    assert views(place, other_tool) == []


def test_a_users_table_may_have_the_views_name(db: deeplake.Database, place: Store, other_tool: Tool) -> None:
    db.execute("CREATE TABLE g (id BIGINT PRIMARY KEY, photo IMAGE)")
    db.insert("g", {"photo": photos(1)})
    db.execute("CREATE TABLE g_files (id BIGINT PRIMARY KEY, note TEXT)")
    db.execute("INSERT INTO g_files (note) VALUES ('mine')")
    assert db.execute("SELECT note FROM g_files").scalar() == "mine"
    assert len(other_tool('SELECT * FROM "g_files~"')) == 1
    db.execute("ALTER TABLE g ADD COLUMN note TEXT")
    assert views(place, other_tool) == ["g_files~"]
    db.execute("DROP TABLE g_files")
    db.execute("DROP TABLE g")
    assert views(place, other_tool) == []


def test_tables_without_blobs_have_none(db: deeplake.Database, place: Store, other_tool: Tool) -> None:
    db.execute("CREATE TABLE n (id BIGINT PRIMARY KEY, a TEXT, e VECTOR(2))")
    db.execute("ALTER TABLE n ADD COLUMN photo IMAGE")
    assert views(place, other_tool) == ["n_files"]
    db.execute("ALTER TABLE n DROP COLUMN photo")
    assert views(place, other_tool) == []


def test_a_name_that_postgresql_would_cut_gets_no_view(db: deeplake.Database, place: Store, other_tool: Tool) -> None:
    for name in ("a" * 56, "b" * 57):
        db.execute(f"CREATE TABLE {name} (id BIGINT PRIMARY KEY, photo IMAGE)")
        db.execute(f"ALTER TABLE {name} ADD COLUMN note TEXT")
    assert views(place, other_tool) == ["a" * 56 + "_files"]


@pytest.mark.postgres_only("SQLite has no rights")
def test_those_who_may_read_the_table_may_read_where_its_bytes_lie(db: deeplake.Database, place: Store) -> None:
    import psycopg

    with psycopg.connect(place.url, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS looker")
        admin.execute("CREATE ROLE looker")
        db.execute("CREATE TABLE g (id BIGINT PRIMARY KEY, photo IMAGE)")
        db.insert("g", {"photo": photos(1)})
        admin.execute("GRANT SELECT ON g TO looker")
        db.execute("ALTER TABLE g ADD COLUMN note TEXT")
        admin.execute("SET ROLE looker")
        assert admin.execute("SELECT count(byte_offset) FROM g_files").fetchone() == (1,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            admin.execute("SELECT * FROM _dl._dl_members")
        admin.execute("RESET ROLE")
        admin.execute("DROP OWNED BY looker")
        admin.execute("DROP ROLE looker")


@pytest.mark.postgres_only("SQLite has one schema")
def test_each_team_has_its_own_view(db: deeplake.Database, place: Store, other_tool: Tool) -> None:
    db.execute("CREATE TABLE g (id BIGINT PRIMARY KEY, photo IMAGE)")
    db.insert("g", {"photo": photos(1)})
    mark = "&" if "?" in place.url else "?"
    with deeplake.connect(f"{place.url}{mark}schema=team", storage=f"{place.folder}-team") as team:
        team.execute("CREATE TABLE g (id BIGINT PRIMARY KEY, photo IMAGE)")
        team.execute("ALTER TABLE g ADD COLUMN note TEXT")
        team.insert("g", {"photo": photos(2)})
        team.execute("CREATE TABLE n (a TEXT)")
        team.execute("DROP TABLE n")
    assert (len(other_tool("SELECT * FROM g_files")), len(other_tool("SELECT * FROM team.g_files"))) == (1, 2)
