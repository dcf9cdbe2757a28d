"""Other tools find the bytes behind a table's blobs by plain SQL."""

from __future__ import annotations

import io
import os
import sqlite3
import tarfile

import numpy as np
import pytest
from PIL import Image

import deeplake_loader as deeplake

LOOK = "SELECT url, member, byte_offset, byte_length FROM {}_files WHERE column_name = 'photo' ORDER BY id"


def photos(count: int, side: int = 200) -> list[np.ndarray]:
    """Pictures of noise, too large to rest in the catalog."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]


def other_tool(db: deeplake.Database, sql: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(os.path.join(db.root, "catalog.sqlite")) as plain:
        return plain.execute(sql).fetchall()


def test_url_offset_and_length_lead_to_the_bytes(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE g (id BIGINT PRIMARY KEY, photo IMAGE, mask IMAGE)")
    pictures = photos(3)
    db.insert("g", {"photo": pictures, "mask": [None, pictures[0], None]})
    found = other_tool(db, LOOK.format("g"))
    assert len(found) == 3
    for (url, member, offset, length), picture in zip(found, pictures, strict=True):
        with open(os.path.join(db.root, str(url)), "rb") as file:
            file.seek(int(str(offset)))
            data = file.read(int(str(length)))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), picture)
        with tarfile.open(os.path.join(db.root, str(url))) as tar:
            assert tar.extractfile(str(member)).read() == data  # type: ignore[union-attr]
    assert other_tool(db, "SELECT count(*), count(address) FROM g_files") == [(4, 4)]


def test_a_blob_that_rests_in_the_catalog_has_no_offset(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE g (id BIGINT PRIMARY KEY, photo IMAGE)")
    db.execute("INSERT INTO g (photo) VALUES (%s)", photos(1, side=8))
    assert [row[2] for row in other_tool(db, LOOK.format("g"))] == [None]


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE g ADD COLUMN note TEXT",
        "ALTER TABLE g RENAME COLUMN other TO note",
        "ALTER TABLE g DROP COLUMN other",
    ],
)
def test_the_view_follows_its_table(db: deeplake.Database, change: str) -> None:
    db.execute("CREATE TABLE g (id BIGINT PRIMARY KEY, photo IMAGE, other IMAGE)")
    db.insert("g", {"photo": photos(2)})
    db.execute(change)
    assert len(other_tool(db, LOOK.format("g"))) == 2


def test_the_view_goes_with_its_table(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE g (id BIGINT PRIMARY KEY, photo IMAGE)")
    db.execute("DROP TABLE g")
    assert other_tool(db, "SELECT name FROM sqlite_master WHERE name LIKE 'g%'") == []


def test_a_users_table_may_have_the_views_name(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE g (id BIGINT PRIMARY KEY, photo IMAGE)")
    db.insert("g", {"photo": photos(1)})
    db.execute("CREATE TABLE g_files (id BIGINT PRIMARY KEY, note TEXT)")
    db.execute("INSERT INTO g_files (note) VALUES ('mine')")
    assert db.execute("SELECT note FROM g_files").scalar() == "mine"
    assert len(other_tool(db, 'SELECT * FROM "g_files~"')) == 1


def test_tables_without_blobs_have_none(db: deeplake.Database) -> None:
    db.execute("CREATE TABLE n (id BIGINT PRIMARY KEY, a TEXT, e VECTOR(2))")
    assert other_tool(db, "SELECT name FROM sqlite_master WHERE type = 'view'") == []
