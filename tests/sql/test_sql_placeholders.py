"""Placeholders: four spellings, look-alikes, the value path by which they take a column's type, and plans as JSON."""

from __future__ import annotations

import subprocess
import sys

import pytest
from playground import Playground, filled

from deeplake_loader.errors import InputError, SQLError, UnsupportedSQLError
from deeplake_loader.sql import compile_statement
from deeplake_loader.sql.plan import Bind, Plan
from deeplake_loader.sql.reader import read

DDL = """CREATE TABLE g (id BIGINT PRIMARY KEY, img IMAGE, vec VECTOR(4), big VECTOR(8), t TENSOR(float16, 4, *),
         name TEXT, n INTEGER, at TIMESTAMP, ok BOOLEAN)"""


@pytest.fixture(scope="module")
def schema() -> dict:
    table = compile_statement(DDL, {}).definition
    return {"g": table}


@pytest.fixture(scope="module")
def ground() -> Playground:
    return filled()


@pytest.mark.parametrize(
    ("sql", "style", "parameters", "text"),
    [
        ("SELECT 1 FROM g WHERE id = %s AND n = %s", "positional", (0, 1), "SELECT 1 FROM g WHERE id = ? AND n = ?"),
        ("SELECT 1 FROM g WHERE id = ? AND n = ?", "positional", (0, 1), "SELECT 1 FROM g WHERE id = ? AND n = ?"),
        ("SELECT name FROM g WHERE id=%s", "positional", (0,), "SELECT name FROM g WHERE id=?"),
        ("SELECT 1 FROM g WHERE id = $2 AND n = $1", "positional", (0, 1), "SELECT 1 FROM g WHERE id = ? AND n = ?"),
        ("SELECT name FROM g WHERE id = :a AND n = :a", "named", ("a",), "SELECT name FROM g WHERE id = ? AND n = ?"),
        ("SELECT name FROM g WHERE id = %(a b)s", "named", ("a b",), "SELECT name FROM g WHERE id = ?"),
        ("SELECT '%s :x ? $1' FROM g -- %s\n", "none", (), "SELECT '%s :x ? $1' FROM g"),
        ("SELECT name FROM g WHERE n %% 2 = %s", "positional", (0,), "SELECT name FROM g WHERE n % ? = ?"),
        ("SELECT n::text FROM g WHERE id = :a", "named", ("a",), "SELECT CAST(n AS TEXT) FROM g WHERE id = ?"),
    ],
)
def test_each_spelling_becomes_a_question_mark(sql, style, parameters, text, schema) -> None:
    plan = compile_statement(sql, schema)
    assert (plan.style, plan.parameters) == (style, parameters)
    if "%%" in sql:
        text = "SELECT name FROM g WHERE n % 2 = ?"
    assert plan.sql == text
    assert len(plan.binds) == plan.sql.replace("' ", "").count("?") - ("? $1" in sql)


def test_numbered_parameters_keep_their_numbers(schema) -> None:
    plan = compile_statement("SELECT name FROM g WHERE id = $2 AND n = $1", schema)
    assert plan.resolve(["first", "second"]) == ["second", "first"]


def test_the_json_operator_and_the_placeholder_are_told_apart(ground) -> None:
    assert ground.run("SELECT id FROM generations WHERE meta ? 'a' AND id = ?", [1]) == [(1,)]
    assert ground.run("SELECT id FROM generations WHERE meta->'a' ? ? LIMIT ?", ["b", 1]) == [(1,)]


@pytest.mark.parametrize(
    "sql",
    ["SELECT %s, :x", "SELECT ?, %s", "SELECT %(a)s, :a", "SELECT $1, ?", "SELECT 1; SELECT 2", "", "  -- nothing", ";",
     "SELECT 'open", 'SELECT "open', "SELECT /* open", "SELECT $a$ open", "SELECT 1 FROM \x00", "SELECT 12abc",
     "SELECT $0", "SELECT 'a' 'b'", "SELECT B'101'", "SELECT {x}"],
)  # fmt: skip
def test_text_that_is_no_single_statement_is_refused(sql) -> None:
    with pytest.raises(SQLError):
        read(sql)


def test_two_statements_name_the_transaction_api() -> None:
    with pytest.raises(UnsupportedSQLError, match=r"db.transaction\(\)"):
        compile_statement("SELECT 1; DROP TABLE g", {})
    assert compile_statement("SELECT 1;  ;", {}).sql == "SELECT 1"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (None, "2 placeholders and got 0"),
        ([1], "2 placeholders and got 1"),
        ([1, 2, 3], "2 placeholders and got 3"),
        ({"a": 1}, "pass a list"),
        ("ab", "list or tuple"),
        (5, "list or tuple"),
        ({1, 2}, "list or tuple"),
    ],
)
def test_wrong_parameters_are_typed_errors(params, message, schema) -> None:
    with pytest.raises(InputError, match=message):
        compile_statement("SELECT name FROM g WHERE id = %s AND n = %s", schema).resolve(params)


def test_missing_names_are_named(schema) -> None:
    plan = compile_statement("SELECT name FROM g WHERE id = :id AND n = :n", schema)
    with pytest.raises(InputError, match="no value for the parameters n; got id, m"):
        plan.resolve({"id": 1, "m": 2})
    with pytest.raises(InputError, match="pass a dict, got list"):
        plan.resolve([1, 2])
    assert plan.resolve({"n": 5, "id": 1, "other": 0}) == [1, 5]
    with pytest.raises(InputError, match="has 0 placeholders"):
        compile_statement("SELECT 1", {}).resolve([1])


@pytest.mark.parametrize(
    ("sql", "columns"),
    [
        ("INSERT INTO g(id,vec,img) VALUES (%s,%s,%s)", ["id", "vec", "img"]),
        ("INSERT INTO g VALUES (%s,%s)", ["id", "img"]),
        ("INSERT INTO g(id,vec,img) VALUES (%s,%s,%s), (%s,%s,NULL)", ["id", "vec", "img", "id", "vec"]),
        ("INSERT INTO g SELECT %s, x.img, %s, NULL FROM g x WHERE n = %s", ["id", "vec", None]),
        ("INSERT INTO g(vec) SELECT %s UNION ALL SELECT %s", ["vec", "vec"]),
        ("UPDATE g SET vec=COALESCE(%s,vec), img=CASE WHEN id=%s THEN %s ELSE img END WHERE id=%s",
         ["vec", None, "img", None]),
        ("UPDATE g SET img = CASE n WHEN %s THEN %s ELSE (%s) END", [None, "img", "img"]),
        ("INSERT INTO g(id,vec) VALUES(%s,%s) ON CONFLICT(id) DO UPDATE SET vec=%s, img=excluded.img WHERE g.n > %s",
         ["id", "vec", "vec", None]),
        ("UPDATE g SET (vec,img)=(%s,%s) WHERE id=%s", ["vec", "img", None]),
        ("UPDATE g SET (n, name) = (SELECT %s, %s)", ["n", "name"]),
        ("UPDATE g SET vec = %s::vector(4)", ["vec"]),
        ("INSERT INTO g(vec) VALUES ((%s))", ["vec"]),
        ("SELECT * FROM g WHERE name=%s AND at > %s AND n IN (%s, %s)", [None, None, None, None]),
        ("SELECT COALESCE(name, %s), upper(%s) FROM g LIMIT %s", [None, None, None]),
        ("UPDATE g SET name = upper(%s), n = n + %s", [None, None]),
        ("UPDATE g SET n = (SELECT max(n) FROM g WHERE name = %s)", [None]),
    ],
)  # fmt: skip
def test_a_placeholder_takes_a_columns_type_only_on_a_value_path(sql, columns, schema) -> None:
    plan = compile_statement(sql, schema)
    assert [bind.column for bind in plan.binds] == columns
    for bind in plan.binds:
        if bind.column is not None:
            assert bind.type == schema["g"].column(bind.column).type


def test_a_derived_table_is_no_value_path(schema) -> None:
    for sql in ("INSERT INTO g(id,name) SELECT v.i, v.e FROM (VALUES(%s,%s)) AS v(i,e)",
                "WITH n(i,e) AS (SELECT %s,%s) INSERT INTO g(id,name) SELECT i,e FROM n"):  # fmt: skip
        assert [bind.column for bind in compile_statement(sql, schema).binds] == [None, None]


def test_comparisons_with_dates_are_written_in_the_catalogs_form(schema) -> None:
    plan = compile_statement("SELECT 1 FROM g WHERE at > %s AND n > %s AND name = ANY(%s)", schema)
    assert [(b.column, str(b.type), b.many) for b in plan.binds] == [
        (None, "TIMESTAMP", False), (None, "None", False), (None, "None", True)]  # fmt: skip


def test_one_parameter_cannot_be_of_two_types(schema) -> None:
    with pytest.raises(SQLError, match="use two parameters"):
        compile_statement("INSERT INTO g(vec, big) VALUES (:v, :v)", schema)
    with pytest.raises(SQLError, match="use two parameters"):
        compile_statement("UPDATE g SET img = $1, name = $1", schema)
    plan = compile_statement("INSERT INTO g(id, n) VALUES (:v, :v)", schema)
    assert plan.resolve({"v": 3}) == [3, 3]


def test_literals_for_vectors_and_blobs_are_constants_to_be_encoded(schema) -> None:
    plan = compile_statement("INSERT INTO g(vec, img) VALUES ('[1,2,3,4]', 'cat.jpg')", schema)
    assert plan.binds == (
        Bind(None, schema["g"].column("vec").type, "vec", constant="[1,2,3,4]"),
        Bind(None, schema["g"].column("img").type, "img", constant="cat.jpg"),
    )
    assert plan.resolve() == ["[1,2,3,4]", "cat.jpg"]


@pytest.mark.parametrize(
    "sql",
    ["SELECT name,  n\nFROM g WHERE n>=25 AND name = 'x' ORDER BY id", "select NAME from G where ID=1",
     "SELECT count(*) FROM g", "DELETE FROM g WHERE id = 1", "UPDATE g SET name = 'x', n = 2 WHERE id = 3",
     "INSERT INTO g (id, name) VALUES (1, 'it''s')", "SELECT a.id FROM g a JOIN g b ON a.id = b.id",
     "SELECT * FROM g WHERE n IS NULL OR NOT ok", "SELECT n + 1 AS m FROM g WHERE n BETWEEN 1 AND 2 LIMIT 3"],
)  # fmt: skip
def test_what_needs_no_translation_runs_byte_for_byte(sql, schema) -> None:
    if " a JOIN" in sql:  # the compiler writes AS
        assert compile_statement(sql, schema).sql == "SELECT a.id FROM g AS a JOIN g AS b ON a.id = b.id"
        return
    assert compile_statement(sql, schema).sql == sql


def test_result_types_are_inferred_through_everything(schema) -> None:
    plan = compile_statement(
        "WITH c AS (SELECT img AS i, vec, n, at FROM g) SELECT t.i, vec, max_n, a, ok, d, s, x, h FROM "
        "(SELECT i, vec, (SELECT max(n) FROM c) max_n, COALESCE(at, now()::timestamp) a, n > 3 AS ok, at::date d, "
        "vec <-> '[1,2,3,4]' AS s, CASE WHEN n = 1 THEN 1 ELSE 2.5 END AS x, now() AS h FROM c) t",
        schema,
    )
    assert [f"{r.name} {r.type}" for r in plan.results] == [
        "i IMAGE", "vec VECTOR(4)", "max_n INTEGER", "a TIMESTAMP", "ok BOOLEAN", "d DATE", "s DOUBLE", "x NUMERIC",
        "h TIMESTAMPTZ"]  # fmt: skip
    assert plan.reads == ("g",)


def test_now_is_the_clock_that_was_given(ground) -> None:
    rows = ground.run("SELECT now()::text, current_date::text, localtimestamp::text, now() = current_timestamp")
    assert rows == [("2026-11-22 10:00:00.123456+00", "2026-11-22", "2026-11-22 10:00:00.123456", True)]


def test_volatile_functions_differ_per_row(ground) -> None:
    rows = ground.run("SELECT random() AS r, gen_random_uuid() AS u FROM generations")
    assert len(set(rows)) == 4 and all(0 <= r < 1 for r, _ in rows)
    assert ground.run("SELECT count(*) FROM generations WHERE random() < 0") == [(0,)]


def test_a_plan_of_another_version_is_not_used(schema) -> None:
    text = compile_statement("SELECT 1", schema).to_json()
    assert Plan.from_json(text.replace('"version":', '"version":9')) is None


def test_running_a_plan_needs_no_compiler_and_nothing_heavy() -> None:
    program = (
        "import sys\nfrom deeplake_loader.sql import plan, shims\nimport sqlite3\n"
        "shims.register(sqlite3.connect(':memory:'), lambda: '')\n"
        "heavy = {'sqlglot', 'numpy', 'torch', 'pyarrow', 'sqlalchemy', 'deeplake_loader.sql.compile',"
        " 'deeplake_loader.sql.reader', 'deeplake_loader.sql.tree'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
