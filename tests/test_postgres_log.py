"""The undo log in PostgreSQL where one statement's triggers and foreign keys change what the statement changed: every
state is read back as it was."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deeplake_loader as deeplake

psycopg = pytest.importorskip("psycopg")
pytestmark = [pytest.mark.both_catalogs, pytest.mark.postgres_only("SQLite logs row by row")]

TABLE = (
    "CREATE TABLE h (id BIGINT PRIMARY KEY, up BIGINT REFERENCES h (id) ON UPDATE CASCADE ON DELETE SET NULL "
    "DEFERRABLE INITIALLY DEFERRED, v INTEGER NOT NULL)"
)
TRIGGERS = {
    "none": "",
    "the row itself after an insert": """
        CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          UPDATE h SET v = v + 1000 WHERE id = NEW.id AND v < 1000; RETURN NULL; END $$;
        CREATE TRIGGER a AFTER INSERT ON h FOR EACH ROW EXECUTE FUNCTION f()""",
    "other rows after an update": """
        CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          IF pg_trigger_depth() < 4 THEN UPDATE h SET v = v + 1 WHERE id BETWEEN NEW.id AND NEW.id + 1; END IF;
          RETURN NULL; END $$;
        CREATE TRIGGER a AFTER UPDATE OF v ON h FOR EACH ROW EXECUTE FUNCTION f()""",
    "an older row before an insert": """
        CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          DELETE FROM h WHERE id = NEW.id; RETURN NEW; END $$;
        CREATE TRIGGER z BEFORE INSERT ON h FOR EACH ROW EXECUTE FUNCTION f()""",
    "the row is moved away": """
        CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          UPDATE h SET id = id + 20 WHERE id = NEW.id AND id < 20; DELETE FROM h WHERE id = NEW.id + 21;
          RETURN NULL; END $$;
        CREATE TRIGGER a AFTER INSERT OR UPDATE OF v ON h FOR EACH ROW EXECUTE FUNCTION f()""",
    "the row is deleted again": """
        CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          DELETE FROM h WHERE id = NEW.id AND v % 2 = 0; RETURN NULL; END $$;
        CREATE TRIGGER a AFTER INSERT OR UPDATE ON h FOR EACH ROW EXECUTE FUNCTION f()""",
}
STATEMENTS = [
    "INSERT INTO h VALUES ({a}, NULL, {v})",
    "INSERT INTO h VALUES ({a}, {b}, {v}), ({b}, {b}, {v})",
    "INSERT INTO h VALUES ({a}, NULL, {v}) ON CONFLICT (id) DO UPDATE SET v = excluded.v + 1",
    "UPDATE h SET v = {v} WHERE id IN ({a}, {b})",
    "UPDATE h SET id = id + 10 WHERE id = {a}",
    "UPDATE h SET id = id - 10 WHERE id > 10",
    "UPDATE h SET up = id WHERE id IN ({a}, {b})",
    "DELETE FROM h WHERE id IN ({a}, {b})",
    "WITH d AS (DELETE FROM h WHERE id = {a}) UPDATE h SET v = v + 1 WHERE id = {b}",
]
STEP = st.tuples(st.sampled_from(STATEMENTS), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))


def run(session: Any, turn: int, steps: list[tuple[str, int, int, int]]) -> None:
    """One transaction; a statement that is refused takes back only itself. No two statements bring equal values."""
    with session.transaction():
        for number, (text, a, b, even) in enumerate(steps):
            v = (turn * 10 + number) * 4 + even
            try:
                with session.transaction():
                    session.execute(text.format(a=a, b=b, v=v))
                    session.execute("SET CONSTRAINTS ALL IMMEDIATE")
            except psycopg.Error:
                pass


@pytest.mark.parametrize("kind", TRIGGERS)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(transactions=st.lists(st.lists(STEP, min_size=1, max_size=4), min_size=1, max_size=5))
def test_every_state_is_read_back_whatever_triggers_did(
    place: Any, kind: str, transactions: list[list[tuple[str, int, int, int]]]
) -> None:
    with place.connect() as db, psycopg.connect(place.url, autocommit=True) as session:
        db.execute("DROP TABLE IF EXISTS h")
        session.execute("DROP FUNCTION IF EXISTS f")
        db.execute(TABLE)
        session.execute(TRIGGERS[kind].encode() or b"SELECT 1")
        states = []
        for turn, steps in enumerate(transactions):
            run(session, turn, steps)
            states.append((db.commit("then").seq, session.execute("SELECT * FROM h ORDER BY id").fetchall()))
        for seq, rows in states:
            assert then(db, seq) == rows


def then(db: deeplake.Database, seq: int) -> list[Any]:
    from deeplake_loader.branches import MAIN, Point

    rows, params = db._catalog.history.select("h", Point(MAIN, seq))
    return db._catalog.fetchall(f"SELECT * FROM ({rows}) r ORDER BY id", params)
