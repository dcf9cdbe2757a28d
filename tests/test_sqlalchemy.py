"""SQLAlchemy over a store: ORM and Core on main and on branches, reflection, pandas, Alembic, and its own suite."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from conftest import Server, Store
from sqlalchemy import exc
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

import deeplake_loader as deeplake
from deeplake_loader import errors
from deeplake_loader.sqlalchemy import Audio, Blob, Image, Tensor, Vector, Video

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.both_catalogs


class Base(DeclarativeBase):
    pass


class Run(Base):
    __tablename__ = "runs"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(20), unique=True)
    meta: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON)
    photos: Mapped[list[Photo]] = relationship(back_populates="run", cascade="all, delete-orphan")


class Photo(Base):
    __tablename__ = "photos"
    __table_args__ = (sa.CheckConstraint("stars BETWEEN 0 AND 5", name="few_stars"), sa.Index("by_stars", "stars"))
    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    caption: Mapped[str | None]
    stars: Mapped[int] = mapped_column(default=3)
    clip: Mapped[Any] = mapped_column(Vector(3), nullable=True)
    thumb: Mapped[Any] = mapped_column(Tensor("uint8", 2, None), nullable=True)
    run_id: Mapped[int] = mapped_column(sa.ForeignKey("runs.id", ondelete="CASCADE", name="of_run"))
    run: Mapped[Run] = relationship(back_populates="photos")


@pytest.fixture
def db(place: Store) -> Iterator[deeplake.Database]:
    with place.connect(timeout_s=1) as made:
        Base.metadata.create_all(made.engine)
        yield made


def fill(session: Session) -> Run:
    clips = [[3.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 2.0, 0.0]]
    run = Run(
        name="first",
        meta={"k": [1, None]},
        photos=[Photo(caption=c, clip=v) for c, v in zip("abc", clips, strict=True)],
    )
    session.add(run)
    session.commit()
    return run


@pytest.fixture(params=["main", "idea"])
def engine(request: pytest.FixtureRequest, db: deeplake.Database) -> sa.Engine:
    """Main, and a branch that begins empty."""
    if request.param != "main":
        db.branch(request.param)
    return db.engine


# -- the ORM -------------------------------------------------------------------------------------------------------


def test_objects_are_inserted_changed_and_deleted_with_right_ids_and_row_counts(engine: sa.Engine) -> None:
    with Session(engine) as session:
        run = fill(session)
        assert run.id == 1 and [photo.id for photo in run.photos] == [1, 2, 3]
        run.photos[0].caption = "changed"
        session.delete(run.photos[2])
        run.photos.append(Photo(caption="new", stars=5))
        session.commit()  # a wrong row count would raise StaleDataError
        found = sorted((p.id, p.caption, p.stars) for p in run.photos)
        assert found == [(1, "changed", 3), (2, "b", 3), (4, "new", 5)]
        assert session.get(Run, 1) is run and run.meta == {"k": [1, None]}
        assert session.execute(sa.update(Photo).values(stars=4)).rowcount == 3  # type: ignore[attr-defined]
        session.rollback()
        session.delete(run)
        session.commit()
        assert session.scalar(sa.select(sa.func.count()).select_from(Photo)) == 0


def test_a_branch_keeps_its_objects_to_itself_until_it_is_merged(db: deeplake.Database) -> None:
    main = db.engine
    with Session(main) as session:
        fill(session)
    db.branch("idea")
    assert db.engine is not main
    with Session(db.engine) as there, Session(main) as here:
        there.get_one(Photo, 1).caption = "there"
        there.add(Photo(caption="more", run_id=1))
        there.commit()
        assert here.scalars(sa.select(Photo.caption).order_by(Photo.id)).all() == ["a", "b", "c"]
    db.checkout("main")
    db.merge("idea")
    with Session(db.engine) as session:
        assert session.scalars(sa.select(Photo.caption).order_by(Photo.id)).all() == ["there", "b", "c", "more"]


def test_many_rows_come_back_with_their_ids_in_order(engine: sa.Engine) -> None:
    with Session(engine, expire_on_commit=False) as session:
        runs = [Run(name=f"run {i}") for i in range(450)]
        session.add_all(runs)
        session.commit()
        stored = dict(session.execute(sa.select(Run.id, Run.name)).all())
    assert [stored[run.id] for run in runs] == [f"run {i}" for i in range(450)]


def test_a_savepoint_takes_only_its_own_back(engine: sa.Engine) -> None:
    with Session(engine) as session:
        fill(session)
        session.add(Run(name="second"))
        with pytest.raises(exc.IntegrityError), session.begin_nested():
            session.add(Run(name="first"))
            session.flush()
        session.commit()
        assert session.scalars(sa.select(Run.name).order_by(Run.id)).all() == ["first", "second"]


def test_returning_upserts_and_joins_are_postgresqls(engine: sa.Engine) -> None:
    from sqlalchemy.dialects.postgresql import insert

    with engine.begin() as connection:
        made = connection.execute(sa.insert(Run).returning(Run.id, Run.name), [{"name": "a"}, {"name": "b"}]).all()
        assert made == [(1, "a"), (2, "b")]
        upsert = insert(Run).values(name="a", meta={"again": True})
        upsert = upsert.on_conflict_do_update(index_elements=[Run.name], set_={"meta": upsert.excluded.meta})
        assert connection.execute(upsert.returning(Run.id, Run.meta)).all() == [(1, {"again": True})]
        gone = connection.execute(sa.delete(Run).where(Run.name.ilike("B")).returning(Run.id)).scalars().all()
        assert gone == [2]
        joined = sa.select(Run.name, sa.func.count(Photo.id)).join(Photo, isouter=True).group_by(Run.name)
        assert connection.execute(joined).all() == [("a", 0)]


# -- vectors and media ---------------------------------------------------------------------------------------------


def test_comparators_score_as_numpy_does_and_take_the_fast_path(engine: sa.Engine) -> None:
    q = np.float32([1.0, 2.0, 0.0])
    with Session(engine) as session:
        photos = fill(session).photos
        clips = np.stack([np.asarray(photo.clip) for photo in photos])
        wanted = {
            "cosine_similarity": clips @ q / np.linalg.norm(clips, axis=1) / np.linalg.norm(q),
            "l2_distance": np.linalg.norm(clips - q, axis=1),
            "inner_product": clips @ q,
        }
        for name, scores in wanted.items():
            found = session.scalars(sa.select(getattr(Photo.clip, name)(q)).order_by(Photo.id)).all()
            np.testing.assert_allclose(found, scores, rtol=1e-6)
        score = Photo.clip.cosine_similarity(q)
        query = sa.select(Photo).where(Photo.stars >= 3).order_by(score.desc()).limit(2)
        assert [p.caption for p in session.scalars(query)] == ["b", "c"]
        other = sa.select(Photo.id).order_by(Photo.clip.l2_distance(Photo.clip), Photo.id)
        assert session.scalars(other).all() == [1, 2, 3]
    text = str(query.compile(engine))
    with engine.connect() as connection:
        assert connection.connection.dbapi_connection.database.compiled(text).fast is not None  # type: ignore[union-attr]


def test_arrays_and_media_go_in_as_they_are_and_come_out_as_handles(engine: sa.Engine) -> None:
    table = sa.Table("media", sa.MetaData(), sa.Column("id", sa.BigInteger, primary_key=True), sa.Column("i", Image()),
                     sa.Column("b", Blob()), sa.Column("x", Tensor()), sa.Column("raw", sa.LargeBinary))  # fmt: skip
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    thumb = np.arange(6, dtype=np.int16)
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(table.insert(), {"i": picture, "b": b"bytes", "x": thumb, "raw": b"\0raw"})
        row = connection.execute(sa.select(table)).one()
    assert row.i.decode().shape == (3, 4, 4) and row.b.bytes() == b"bytes" and row.raw == b"\0raw"
    np.testing.assert_array_equal(row.x.array(), thumb)


# -- looking at tables ---------------------------------------------------------------------------------------------


def test_the_inspector_sees_keys_constraints_and_indexes(db: deeplake.Database, catalog_kind: str) -> None:
    few = (
        "stars BETWEEN 0 AND 5" if catalog_kind == "sqlite" else "stars >= 0 AND stars <= 5"
    )  # as each database has it
    inspector = sa.inspect(db.engine)
    assert sorted(inspector.get_table_names()) == ["photos", "runs"] and inspector.has_table("runs")
    columns = {column["name"]: column for column in inspector.get_columns("photos")}
    assert {name: str(column["type"]) for name, column in columns.items()} == {
        "id": "BIGINT", "caption": "TEXT", "stars": "INTEGER", "clip": "VECTOR(3)", "thumb": "TENSOR(uint8, 2, *)",
        "run_id": "INTEGER",
    }  # fmt: skip
    assert [name for name, column in columns.items() if not column["nullable"]] == ["id", "stars", "run_id"]
    assert inspector.get_pk_constraint("photos")["constrained_columns"] == ["id"]
    (key,) = inspector.get_foreign_keys("photos")
    assert (key["name"], key["constrained_columns"], key["referred_table"]) == ("of_run", ["run_id"], "runs")
    assert key["referred_columns"] == ["id"] and key["options"] == {"ondelete": "CASCADE"}
    assert [key["column_names"] for key in inspector.get_unique_constraints("runs")] == [["name"]]
    assert inspector.get_check_constraints("photos") == [{"name": "few_stars", "sqltext": few}]
    assert [(i["name"], i["column_names"]) for i in inspector.get_indexes("photos")] == [("by_stars", ["stars"])]
    with pytest.raises(exc.NoSuchTableError):
        inspector.get_columns("nowhere")


def test_every_type_is_reflected_as_it_was_declared(db: deeplake.Database) -> None:
    kinds = [sa.SmallInteger(), sa.Integer(), sa.BigInteger(), sa.REAL(), sa.Double(), sa.Numeric(10, 2), sa.Boolean(),
             sa.String(7), sa.Text(), sa.Date(), sa.Time(), sa.DateTime(), sa.DateTime(timezone=True), sa.JSON(),
             sa.Uuid(), sa.LargeBinary(), Vector(4), Vector(4, "float16"), Tensor(), Tensor("float32", 2, None),
             Image(codec="jpeg", quality=90), Video(codec="h264"), Audio(), Blob()]  # fmt: skip
    table = sa.Table("kinds", sa.MetaData(), sa.Column("id", sa.BigInteger, primary_key=True),
                     *(sa.Column(f"c{i}", kind) for i, kind in enumerate(kinds)))  # fmt: skip
    table.create(db.engine)
    again = sa.Table("kinds", sa.MetaData(), autoload_with=db.engine)
    spelled = [[column.type.compile(db.engine.dialect) for column in t.columns] for t in (table, again)]
    assert spelled[0] == spelled[1]
    assert [type(column.type).__name__ for column in list(again.columns)[-4:]] == ["Image", "Video", "Audio", "Blob"]


def test_a_table_without_a_key_shows_only_its_own_columns(db: deeplake.Database) -> None:
    for columns in (["a"], ["id", "a"]):
        table = sa.Table("plain", sa.MetaData(), *(sa.Column(name, sa.Integer) for name in columns))
        table.create(db.engine)
        inspector = sa.inspect(db.engine)
        assert [column["name"] for column in inspector.get_columns("plain")] == columns
        assert inspector.get_pk_constraint("plain")["constrained_columns"] == []
        table.drop(db.engine)


def test_alembic_sees_no_change_where_there_is_none_and_the_change_where_there_is(db: deeplake.Database) -> None:
    migration = pytest.importorskip("alembic.migration")
    from alembic.autogenerate import compare_metadata

    extra = sa.MetaData()
    sa.Table("tags", extra, sa.Column("photo", sa.BigInteger), sa.Column("tag", sa.String(9)))
    extra.create_all(db.engine)
    with db.engine.connect() as connection:
        context = migration.MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, [Base.metadata, extra]) == []
        changed = sa.MetaData()
        for table in (*Base.metadata.tables.values(), *extra.tables.values()):
            table.to_metadata(changed)
        changed.tables["runs"].append_column(sa.Column("note", sa.Text))
        found = compare_metadata(context, changed)
    assert [(change[0], change[3].name) for change in found] == [("add_column", "note")]


def test_alembic_operations_run_in_one_transaction(db: deeplake.Database) -> None:
    migration = pytest.importorskip("alembic.migration")
    from alembic.operations import Operations

    with pytest.raises(KeyError), db.engine.begin() as connection:
        operations = Operations(migration.MigrationContext.configure(connection))
        operations.add_column("runs", sa.Column("note", sa.Text))
        raise KeyError
    with db.engine.begin() as connection:
        operations = Operations(migration.MigrationContext.configure(connection))
        operations.add_column("runs", sa.Column("remark", sa.Text))
        operations.alter_column("runs", "remark", new_column_name="comment")
        operations.create_index("by_comment", "runs", ["comment"])
        operations.create_table("more", sa.Column("id", sa.Integer, primary_key=True))
    table = db.tables()["runs"]
    assert table.column("note") is None and table.column("comment") is not None and "more" in db.tables()


# -- pandas --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [["id", "name", "at", "x"], ["name", "at", "x"]])
def test_pandas_writes_and_reads_a_frame(engine: sa.Engine, columns: list[str]) -> None:
    times = pd.to_datetime(["2026-01-01 00:00:00", "2026-01-02 03:04:05", None])
    values = {"id": [7, 8, 9], "name": ["a", "ß", None], "x": [1.5, np.nan, 3.0], "at": times}
    frame = pd.DataFrame(values)[columns]
    frame.to_sql("frames", engine, index=False)
    frame.to_sql("frames", engine, index=False, if_exists="append", method="multi")
    twice = pd.concat([frame, frame], ignore_index=True)
    for found in (pd.read_sql_table("frames", engine), pd.read_sql(f"SELECT {', '.join(columns)} FROM frames", engine)):
        pd.testing.assert_frame_equal(found, twice, check_dtype=False)
    counted = pd.read_sql(sa.text("SELECT count(*) AS n FROM frames WHERE x > :x"), engine, params={"x": 2})
    assert counted.n.tolist() == [2]


# -- engines -------------------------------------------------------------------------------------------------------


def test_urls_name_stores_and_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPLAKE_HOME", str(tmp_path / "home"))
    deeplake.connect("deeplake://org/name").close()
    with sa.create_engine("deeplake://org/name?create=false").connect() as connection:
        assert connection.connection.dbapi_connection.database.root.startswith(str(tmp_path))  # type: ignore[union-attr]
    for wrong in ("deeplake://", f"deeplake:///{tmp_path}?speed=9", f"deeplake:///{tmp_path}?read_only=maybe"):
        with pytest.raises(exc.ArgumentError):
            sa.create_engine(wrong).connect()
    with pytest.raises(exc.OperationalError):
        sa.create_engine(f"deeplake:///{tmp_path / 'none'}?create=false").connect()


def url_of(place: Store) -> sa.URL:
    """The URL of a store as a user would write it."""
    return sa.make_url(f"deeplake:///{place.folder}" if place.kind == "sqlite" else f"deeplake+{place.url}")


def test_the_options_of_a_url_choose_branch_and_mode(place: Store) -> None:
    with place.connect() as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, a INT)")
        db.branch("b/c")
        db.execute("INSERT INTO t (a) VALUES (5)")
    url = url_of(place)
    for query, rows in (({}, 0), ({"branch": "b/c"}, 1), ({"branch": "b/c", "read_only": "true"}, 1)):
        engine = sa.create_engine(url.update_query_dict(query))
        with engine.connect() as connection:
            assert connection.execute(sa.text("SELECT count(*) FROM t")).scalar() == rows
        engine.dispose()
    engine = sa.create_engine(url.update_query_dict({"read_only": "1"}))
    with pytest.raises(exc.OperationalError), engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO t (a) VALUES (1)"))
    engine.dispose()


@pytest.mark.postgres_only("SQLite knows no passwords")
def test_a_password_is_used_and_never_shown(place: Store, postgres_server: Server, tmp_path: Path) -> None:
    import psycopg

    with psycopg.connect(place.url, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS orm_user")
        admin.execute("CREATE ROLE orm_user SUPERUSER LOGIN PASSWORD 'p@ss:w/0rd'")
    url = url_of(place).set(username="orm_user", password="p@ss:w/0rd").update_query_dict({"storage": str(tmp_path)})
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT current_user")).scalar() == "orm_user"
        inner = connection.connection.dbapi_connection.database.engine  # type: ignore[union-attr]
        with inner.connect() as again:
            assert again.execute(sa.text("SELECT current_user")).scalar() == "orm_user"
        inner.dispose()
    engine.dispose()
    for shown in (repr(engine), repr(inner), str(inner.url), repr(engine.url)):
        assert "0rd" not in shown and "orm_user" in shown
    for wrong in (url.update_query_dict({"password": "p@ss:w/0rd"}), "deeplake+postgresql://orm_user:w%2F0rd@host"):
        with pytest.raises(exc.ArgumentError) as caught:
            sa.create_engine(wrong).connect()
        assert "w/0rd" not in str(caught.value) and "w%2F0rd" not in str(caught.value)


@pytest.mark.postgres_only("the schema of another team's main")
def test_a_url_names_the_schema_of_main(place: Store, tmp_path: Path) -> None:
    url = url_of(place).update_query_dict({"schema": "team", "storage": str(tmp_path)})
    engine = sa.create_engine(url)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.insert(Run), {"name": "a"})
        assert connection.execute(sa.text("SELECT name FROM team.runs")).all() == [("a",)]
    engine.dispose()


@pytest.mark.postgres_only("an engine finds out by the folder which catalog it has")
def test_a_folder_with_a_server_of_its_own_is_recognised(tmp_path: Path) -> None:
    with deeplake.connect(tmp_path / "own", catalog="postgres") as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, a JSON)")
        engine = sa.create_engine(f"deeplake:///{tmp_path / 'own'}")
        assert engine.dialect.driver == db.engine.dialect.driver == "postgresql"
        with engine.begin() as connection:
            t = sa.Table("t", sa.MetaData(), autoload_with=connection)
            connection.execute(t.insert(), {"a": {"b": [1]}})
            assert connection.execute(sa.select(t.c.id).where(t.c.a == {"b": [1]})).scalars().all() == [1]
        engine.dispose()


def test_autocommit_and_the_errors_of_both_trees(db: deeplake.Database) -> None:
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.insert(Run), {"name": "kept"})
    assert db.execute("SELECT name FROM runs").fetchall() == [("kept",)]
    with db.engine.connect() as connection, pytest.raises(exc.IntegrityError) as caught:
        connection.execute(sa.insert(Run), {"name": "kept"})
    assert isinstance(caught.value.orig, errors.ConstraintError)


def test_an_engine_belongs_to_its_branch_and_ends_with_its_handle(place: Store) -> None:
    with place.connect() as db:
        main = db.engine
        assert db.engine is main and main.url.query["branch"] == "main"
        db.tag("v1")
        with db.at("v1") as then, pytest.raises(errors.InputError, match="no engine"):
            _ = then.engine
        with main.connect():
            pass
        assert main.pool.checkedin() == 1  # type: ignore[attr-defined]
    assert main.pool is not None and db._engines == {}


def test_the_package_announces_the_dialect() -> None:
    assert re.search(
        r'"deeplake = deeplake_loader\.sqlalchemy\.dialect:DeeplakeDialect"', (ROOT / "setup.py").read_text()
    )


# -- SQLAlchemy's own suite ------------------------------------------------------------------------------------------

PASSED = 1_100
"""Of SQLAlchemy 2.1; its other versions have about as many."""


def run_suite(url: str) -> None:
    """SQLAlchemy's own suite on a store that is made there."""
    folder = ROOT / "tests" / "sqlalchemy_suite"
    command = [sys.executable, "-m", "pytest", "-c", "setup.cfg", "--rootdir", ".", "-p", "no:cacheprovider",
               "test_suite.py", "--dburi", url, "--tb=short"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (\w+)", done.stdout.splitlines()[-1])}
    assert not counts.keys() & {"failed", "error", "errors"}, done.stdout[-10_000:]
    assert counts["passed"] >= PASSED


@pytest.mark.sqlite_only("on PostgreSQL it runs by make test-long: half a minute or more")
def test_sqlalchemys_own_suite_passes(tmp_path: Path) -> None:
    memory = Path("/dev/shm")  # hundreds of tables are made, and each is synced
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as place:
        run_suite(f"deeplake:///{place}/store")


@pytest.mark.slow
@pytest.mark.postgres_only("the same on PostgreSQL")
def test_sqlalchemys_own_suite_passes_on_postgresql(place: Store, pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("hypothesis_profile", None) != "long":
        pytest.skip("a minute; make test-long runs it")
    url = url_of(place).update_query_dict({"storage": str(place.folder)})
    run_suite(url.render_as_string(hide_password=False))
