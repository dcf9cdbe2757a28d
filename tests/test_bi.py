"""examples/bi.md shows what its statements give: each is run, by psql and by SQLite, and compared."""

from __future__ import annotations

import contextlib
import io
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Psql, Store

Block = tuple[str, str, str]
TEXT = (Path(__file__).parents[1] / "examples" / "bi.md").read_text()
_FENCED = re.compile(r"```(python|sql|sqlite)\n(.*?)```\n(?:\n```text\n(.*?)```)?", re.DOTALL)


def blocks(text: str) -> list[Block]:
    """(language, what is run, what it gives) of each fenced block."""
    found = _FENCED.findall(text)
    assert sum(bool(shown) for _, _, shown in found) >= 2
    return found


def ran(code: str, names: dict[str, object]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "bi.md", "exec"), names)
    return out.getvalue()


def list_mode(names: list[str], rows: list[tuple[object, ...]]) -> str:
    """Rows as ``sqlite3 -header`` prints them."""
    lines = [names, *[["" if v is None else str(v) for v in row] for row in rows]]
    return "".join("|".join(line) + "\n" for line in lines)


def by_sqlite(file: Path) -> Callable[[str], str]:
    def run(sql: str) -> str:
        with sqlite3.connect(file) as plain:
            cursor = plain.execute(sql)
            return list_mode([column[0] for column in cursor.description], cursor.fetchall())

    return run


def shared(place: Store, psql: Psql) -> Iterator[tuple[Block, str]]:
    """Each block about PostgreSQL, and what it gives here."""
    names: dict[str, object] = {"URL": place.url, "FOLDER": place.folder}
    for block in blocks(TEXT.partition("## A store in a folder")[0]):
        yield block, ran(block[1], names) if block[0] == "python" else psql(block[1], aligned=True)
    names["db"].close()  # type: ignore[attr-defined]


def in_folder(folder: Path) -> Iterator[tuple[Block, str]]:
    """Each block about a store in a folder, and what it gives here."""
    names: dict[str, object] = {"FOLDER": folder}
    run = by_sqlite(folder / "catalog.sqlite")
    for block in blocks(TEXT.partition("## A store in a folder")[2]):
        yield block, ran(block[1], names) if block[0] == "python" else run(block[1])
    names["db"].close()  # type: ignore[attr-defined]


@pytest.mark.postgres_only("psql is PostgreSQL's")
def test_psql_gives_what_the_page_shows(place: Store, psql: Psql) -> None:
    try:
        for (_, code, shown), given in shared(place, psql):
            assert given.rstrip() == shown.rstrip(), code
    finally:
        psql("DROP OWNED BY dashboard; DROP ROLE dashboard")


def test_sqlite_gives_what_the_page_shows(tmp_path: Path) -> None:
    for (_, code, shown), given in in_folder(tmp_path / "store"):
        assert given.rstrip() == shown.rstrip(), code
