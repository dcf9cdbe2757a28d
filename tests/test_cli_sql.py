"""`deeplake-loader sql`: statements cut as SQLite's shell cuts them, rows as csv, json, pyarrow and psql have them."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from cli_store import ROWS, VECTORS, build, ran, run
from hypothesis import given
from hypothesis import strategies as st

import deeplake_loader as deeplake
from deeplake_loader.cli.statements import split_statements
from deeplake_loader.cli.values import dumps


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sql") / "store"
    build(folder)
    return folder


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    with deeplake.connect(tmp_path / "empty") as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, x TEXT, n INTEGER)")
    return tmp_path / "empty"


QUERY = "SELECT id, prompt, steps, cfg, meta, created_at FROM generations ORDER BY id"


# -- statements --------------------------------------------------------------------------------------------------------

PIECES = ["SELECT 1", "'a;b'", '"x;y"', "'it''s;'", "/* c; */", "-- d;\n", " ", "\n", "x", "$$ e; $$", "$t$ ; $$ ; $t$"]


@given(st.lists(st.lists(st.sampled_from(PIECES), min_size=1, max_size=5), max_size=5))
def test_a_text_is_cut_where_it_was_put_together(parts: list[list[str]]) -> None:
    texts = ["  ".join(part) for part in parts]
    found = [statement.text for statement in split_statements(";".join(texts))]
    bare = [p for part in parts if any(piece.strip() and piece[:2] not in ("--", "/*") for piece in part)
            for p in ["  ".join(part)]]  # fmt: skip
    assert len(found) == len(bare)
    assert all(have and have in want for have, want in zip(found, bare, strict=True))


@given(st.lists(st.sampled_from(["SELECT 1", "'a;b'", '"x;y"', "/* c; */", "-- d;\n", " ", ";", "'", "x"]), max_size=8))
def test_nothing_is_cut_that_sqlite_holds_for_unfinished(pieces: list[str]) -> None:
    text = " ".join(pieces)
    for statement in split_statements(text)[:-1]:
        assert sqlite3.complete_statement(statement.text + "\n;")


def test_the_line_of_a_statement_is_where_it_begins_behind_comments() -> None:
    found = split_statements("-- one\n\nSELECT 1; /* two\n; */ SELECT\n 2 ;;\n ; E'\\';' ; a$b;$c")
    assert [(s.text, s.line) for s in found] == [
        ("SELECT 1", 3), ("SELECT\n 2", 4), ("E'\\';'", 6), ("a$b", 6), ("$c", 6),
    ]  # fmt: skip
    assert [s.word for s in split_statements("/* x */ insert into t; (select 1)")] == ["INSERT", "SELECT"]
    assert split_statements("/* a /* nested */ ; */ -- all\n;") == []


def test_several_statements_are_one_transaction(empty: Path, tmp_path: Path) -> None:
    (tmp_path / "f.sql").write_text("INSERT INTO t (x) VALUES ('a');\nINSERT INTO t (x) VALUES ('b');\nSELECT nope;\n")
    done = run(empty, "sql", "-f", str(tmp_path / "f.sql"))
    assert done.exit_code == 2 and "in statement 3, which begins in line 3" in done.stderr
    assert ran(empty, "sql", "SELECT count(*) FROM t", "--no-header") == "0\n"
    done = run(empty, "sql", "--each", "-f", str(tmp_path / "f.sql"))
    assert done.exit_code == 2
    assert ran(empty, "sql", "SELECT count(*) FROM t", "--no-header") == "2\n"
    assert len(json.loads("[" + ran(empty, "log", "--json").replace("\n", ",")[:-1] + "]")) == 3


def test_statements_come_from_stdin_a_file_or_an_argument(empty: Path, tmp_path: Path) -> None:
    (tmp_path / "q.sql").write_text("\ufeffSELECT 1 AS one", "utf-8")
    assert ran(empty, "sql", "-f", str(tmp_path / "q.sql")) == ran(empty, "sql", "SELECT 1 AS one")
    for arguments in ((), ("-",), ("-f", "-")):
        assert ran(empty, "sql", *arguments, text="SELECT 1 AS one;\n") == "one\n---\n  1\n"
    assert run(empty, "sql", text="  -- nothing\n").exit_code == 2
    assert run(empty, "sql", "SELECT 1", "-f", "x").exit_code == 2
    (tmp_path / "bad.sql").write_bytes(b"SELECT '\xff'")
    bad = run(empty, "sql", "-f", str(tmp_path / "bad.sql"))
    assert bad.exit_code == 2 and "UTF-8" in bad.stderr


def test_changed_rows_are_counted_on_stderr_and_rows_alone_are_on_stdout(empty: Path) -> None:
    done = run(empty, "sql", "INSERT INTO t (x) VALUES ('a'), ('b'); UPDATE t SET n = 1; DELETE FROM t WHERE x = 'b'; "
                      "SELECT x FROM t; CREATE TABLE u (id BIGINT PRIMARY KEY)")  # fmt: skip
    assert done.exit_code == 0 and done.stdout == "x\n-\na\n"
    assert done.stderr.splitlines() == ["INSERT 2", "UPDATE 2", "DELETE 1", "CREATE"]
    assert run(empty, "sql", "-q", "DELETE FROM t").stderr == ""
    returned = run(empty, "sql", "INSERT INTO t (x) VALUES ('c') RETURNING id, x", "-F", "csv")
    assert returned.stdout == "id,x\n3,c\n" and returned.stderr == ""


def test_read_only_refuses_what_writes(empty: Path) -> None:
    assert run(empty, "sql", "--read-only", "INSERT INTO t (x) VALUES ('a')").exit_code != 0
    assert ran(empty, "sql", "--read-only", "SELECT 1; SELECT 2", "--no-header") == "1\n2\n"
    assert ran(empty, "sql", "SELECT count(*) FROM t", "--no-header") == "0\n"


# -- parameters --------------------------------------------------------------------------------------------------------


def test_parameters_are_json_files_or_text(empty: Path, tmp_path: Path) -> None:
    query = "SELECT :a AS a, :b AS b, :c AS c, %(d)s AS d"
    (tmp_path / "bytes").write_bytes(b"\x00\xff")
    given_ = ["-p", "a=25", "-p", 'b="25"', "-p", "c=a red fox", "-p", "d=null"]
    named = query.replace("%(d)s", ":d")
    found = json.loads(ran(empty, "sql", named, *given_, "-F", "jsonl"))
    assert found == {"a": 25, "b": "25", "c": "a red fox", "d": None}
    with deeplake.connect(empty) as db:
        db.execute("CREATE TABLE v (id BIGINT PRIMARY KEY, e VECTOR(3), raw BYTEA)")
    np.save(tmp_path / "e.npy", np.array([1, 2.5, -3], np.float32))
    insert = "INSERT INTO v (e, raw) VALUES (:e, :raw)"
    ran(empty, "sql", insert, "-p", f"e=@{tmp_path / 'e.npy'}", "-p", f"raw=@{tmp_path / 'bytes'}")
    ran(empty, "sql", insert, "-p", "e=[0, 0.5, 1]", "-p", "raw=null")
    rows = [
        json.loads(line) for line in ran(empty, "sql", "SELECT e, raw FROM v ORDER BY id", "-F", "jsonl").splitlines()
    ]
    assert rows == [{"e": [1.0, 2.5, -3.0], "raw": "\\x00ff"}, {"e": [0.0, 0.5, 1.0], "raw": None}]


@pytest.mark.parametrize("given_", [["-p", "x"], ["-p", "=1"], ["-p", "y=1"], ["-p", "x=@no-such.npy"]])
def test_a_parameter_that_is_none_is_refused(empty: Path, given_: list[str]) -> None:
    done = run(empty, "sql", "SELECT :x", *given_)
    assert done.exit_code in (2, 3) and done.stderr.count("\n") == 1 and given_[1].lstrip("x=@")[:1] in done.stderr


# -- formats -----------------------------------------------------------------------------------------------------------


def test_csv_is_what_csv_and_pandas_read(store: Path) -> None:
    text = ran(store, "sql", QUERY, "-F", "csv")
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == ["id", "prompt", "steps", "cfg", "meta", "created_at"] and len(rows) == ROWS + 1
    assert rows[1][1] == 'take 0, "é" 漢' and json.loads(rows[1][4]) == {"a": [0, None]} and rows[5][4] == ""
    frame = pd.read_csv(io.StringIO(text), parse_dates=["created_at"])
    with deeplake.connect(store, read_only=True) as db:
        expected = db.execute(QUERY).to_pandas()
    for name in ("id", "prompt", "steps", "cfg", "created_at"):
        assert frame[name].tolist() == expected[name].tolist()
    assert ran(store, "sql", QUERY, "-F", "csv", "--no-header").splitlines() == text.splitlines()[1:]
    assert ran(store, "sql", "SELECT NULL AS a, '' AS b, ' x' AS c, true AS d", "-F", "csv") == 'a,b,c,d\n,"", " x",true\n'.replace(" \" x", "\" x")  # noqa: E501  # fmt: skip
    assert ran(store, "sql", "SELECT NULL AS a", "-F", "csv", "--null", "\\N").splitlines()[1] == "\\N"


def test_json_and_json_lines_hold_every_value(store: Path) -> None:
    query = "SELECT id, prompt, clip_embedding, frames, thumbnail, latent, cfg, meta, raw, created_at FROM generations"
    listed = json.loads(ran(store, "sql", f"{query} ORDER BY id", "-F", "json"))
    lines = ran(store, "sql", f"{query} ORDER BY id", "-F", "jsonl").splitlines()
    assert [json.loads(line) for line in lines] == listed and len(listed) == ROWS
    first = listed[0]
    np.testing.assert_array_equal(np.array(first["clip_embedding"], np.float32), VECTORS[0])
    assert first["meta"] == {"a": [0, None]} and first["raw"] == "\\x00ff" and listed[5]["thumbnail"] is None
    assert first["created_at"] == "2026-01-01 10:00:00" and first["prompt"] == 'take 0, "é" 漢'
    with deeplake.connect(store, read_only=True) as db:
        blob = db.execute("SELECT frames FROM generations WHERE id = 1").scalar()
        expected = blob.url, blob.key, len(blob.bytes())
    frames = first["frames"]
    assert (frames["url"], frames["key"], frames["bytes"]) == expected
    assert (frames["num_frames"], frames["width"], frames["codec"]) == (12, 64, "h264")
    assert "address" not in json.dumps(listed) and first["latent"]["shape"] == [2, 4]
    assert json.loads(ran(store, "sql", "SELECT 1 AS a WHERE false", "-F", "json")) == []
    assert ran(store, "sql", "SELECT 1 AS a WHERE false", "-F", "jsonl") == ""


def test_arrow_is_a_file_with_output_and_a_stream_in_a_pipe(store: Path, tmp_path: Path) -> None:
    query = "SELECT id, clip_embedding, frames FROM generations ORDER BY id"
    done = run(store, "sql", query, "-F", "arrow")
    streamed = pa.ipc.open_stream(done.stdout_bytes).read_all()
    ran(store, "sql", query, "-o", str(tmp_path / "rows.arrow"))
    with pa.ipc.open_file(tmp_path / "rows.arrow") as file:
        assert file.read_all().equals(streamed)
    with deeplake.connect(store, read_only=True) as db:
        assert db.execute(query).to_arrow().equals(streamed)
    np.testing.assert_array_equal(np.stack(streamed["clip_embedding"].to_numpy(zero_copy_only=False)), VECTORS)
    several = run(store, "sql", "SELECT 1 AS a; SELECT 2 AS a", "-F", "arrow")
    assert several.exit_code == 2 and several.stdout == ""


def test_a_table_is_aligned_as_psql_aligns_it(store: Path) -> None:
    lines = ran(
        store, "sql", "SELECT id * 5 AS n, prompt, thumbnail IS NULL AS bare FROM generations ORDER BY id"
    ).splitlines()
    assert lines[0] == " n | prompt         | bare" and set(lines[1]) == set("-+")
    assert lines[2] == ' 5 | take 0, "é" 漢 | false' and lines[7].startswith("30 | ") and lines[7].endswith("| true")
    assert len(lines) == ROWS + 2
    shown = ran(store, "sql", "SELECT clip_embedding, thumbnail, meta FROM generations WHERE id IN (1, 6) ORDER BY id")
    first = ", ".join(f"{n:.4g}" for n in VECTORS[0, :3].tolist())
    assert f"[{first}, …] 8" in shown and "IMAGE png 64x48" in shown and "NULL" in shown
    assert "-" in ran(store, "sql", "SELECT NULL AS a", "--null", "-").splitlines()[-1]


def test_output_takes_its_format_from_the_extension_and_an_error_leaves_the_old_file(
    store: Path, tmp_path: Path
) -> None:
    for extension in ("csv", "json", "jsonl"):
        path = tmp_path / f"rows.{extension}"
        ran(store, "sql", QUERY, "-o", str(path))
        assert path.read_text() == ran(store, "sql", QUERY, "-F", extension)
    old = (tmp_path / "rows.csv").read_text()
    assert run(store, "sql", "SELECT nope", "-o", str(tmp_path / "rows.csv")).exit_code == 2
    assert (tmp_path / "rows.csv").read_text() == old and len(list(tmp_path.iterdir())) == 3
    ran(store, "sql", QUERY, "-o", str(tmp_path / "rows.txt"))
    assert (tmp_path / "rows.txt").read_text() == ran(store, "sql", QUERY)


def test_numbers_that_json_lacks_are_null_and_wide_ones_stay_exact(store: Path) -> None:
    assert ran(store, "sql", "SELECT 9007199254740993 AS a", "-F", "jsonl") == '{"a": 9007199254740993}\n'
    assert dumps({"a": [float("nan"), float("-inf"), 0.1]}) == '{"a": [null, null, 0.1]}'
    assert json.loads(dumps("half \ud83d")) == "half \ud83d" and dumps("\ud83d").isascii()
    assert ran(store, "sql", "SELECT CAST(1.10 AS NUMERIC(6, 2)) AS a", "-F", "jsonl") == '{"a": "1.10"}\n'


def test_rows_of_another_branch_and_of_another_time(store: Path) -> None:
    count = ["sql", "SELECT count(*) AS n, max(steps) AS most FROM generations", "-F", "csv"]
    assert ran(store, *count) == "n,most\n6,25\n"
    assert ran(store, *count, "-b", "experiment") == "n,most\n7,99\n"
    assert ran(store, *count, "-b", "experiment", "--at", "v1") == "n,most\n6,25\n"
    with deeplake.connect(store) as db:
        time = str(db.tags()[0].created_at)
    assert ran(store, *count, "--at", time) == "n,most\n6,25\n"
