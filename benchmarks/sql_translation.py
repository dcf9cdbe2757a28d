"""PostgreSQL's statements on SQLite: the project's compiler against sqlglot's postgres -> sqlite translation.

Three lines: what a fresh process pays to import each, what the hybrid query costs to compile, and what both make of
the statements in tests/sql/postgres.jsonl, whose answers PostgreSQL 18 gave. The statements were collected for the
compiler's own tests, so its count is no surprise; what a translation by syntax alone does with them is the figure.
Values are compared leniently (a boolean may come as 0 or 1, a timestamp or a document as text), column names not at
all. `silently_wrong` ran and gave another answer, or ran where PostgreSQL raises an error.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import sqlite3
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

import harness
import sqlglot
import workload

from deeplake_loader import scalars
from deeplake_loader.database import Database, connect
from deeplake_loader.errors import DeeplakeError
from deeplake_loader.sql import compile_statement

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "sql"))

RIGHT, WRONG, REFUSED = "right", "silently_wrong", "refused_or_fails"
Outcome = tuple[str, str]
Run = Callable[[str, Any], list[Any]]

SETUP = (
    "CREATE TABLE runs (id INTEGER PRIMARY KEY, name TEXT, embedding VECTOR(2))",
    "INSERT INTO runs VALUES (1, 'a', '[1, 0]'), (2, 'b', '[0, 1]'), (3, 'a', NULL)",
)
ERROR = "an error"
EXAMPLES: tuple[tuple[str, object], ...] = (
    ("SELECT 7 / 2", 3),
    ("SELECT 'a' LIKE 'A'", False),
    ("SELECT upper('é')", "É"),
    ("SELECT E'it\\'s'", "it's"),
    ("SELECT 1.239::numeric(10,2)", Decimal("1.24")),
    ("SELECT random() BETWEEN 0 AND 1", True),
    ("SELECT (now() AT TIME ZONE 'UTC')::date - 7", dt.datetime.now(dt.UTC).date() - dt.timedelta(7)),
    ("SELECT DATE '2026-01-31' + INTERVAL '1 month'", dt.datetime(2026, 2, 28)),
    ("SELECT date_trunc('month', TIMESTAMP '2026-11-22 10:30')", dt.datetime(2026, 11, 1)),
    ("SELECT DISTINCT ON (name) id, name FROM runs ORDER BY name, id DESC", [(3, "a"), (2, "b")]),
    ("SELECT string_agg(name, ',' ORDER BY id DESC) FROM runs", "a,b,a"),
    ("INSERT INTO runs (id, name) VALUES (1, 'z') ON CONFLICT (id) DO NOTHING RETURNING id", []),
    ("SELECT id FROM runs WHERE id = ANY(ARRAY[2, 3]) ORDER BY id", [(2,), (3,)]),
    ("SELECT name ~ '^a' FROM runs WHERE id = 1", True),
    ("SELECT id FROM runs ORDER BY embedding <=> '[0, 1]' LIMIT 1", 2),
    ("SELECT 1 / 0", ERROR),
    ("SELECT name, count(*) FROM runs", ERROR),
)
"""Statements and PostgreSQL's answers (with pgvector for <=>): a value, the rows, or ERROR."""

IMPORTS = {
    "ours": "from deeplake_loader.sql.compile import compile_statement\nprint(1, flush=True)",
    "sqlglot": "import sqlglot\nsqlglot.transpile('SELECT 1', read='postgres', write='sqlite')\nprint(1, flush=True)",
    "python": "print(1, flush=True)",
}


def translate(sql: str) -> str:
    """The statement as sqlglot writes it for SQLite, refusing what it knows it cannot say."""
    found = sqlglot.transpile(sql, read="postgres", write="sqlite", unsupported_level=sqlglot.ErrorLevel.RAISE)
    if len(found) != 1:
        raise sqlglot.errors.UnsupportedError(f"{len(found)} statements of one")
    return found[0]


def plain(value: Any) -> Any:
    """A parameter in the form that the tables hold."""
    if isinstance(value, dict | list):
        return json.dumps(value, default=str)
    return str(value) if isinstance(value, dt.timedelta) else scalars.plain(value, "a parameter")


def by_sqlglot(connection: sqlite3.Connection, sql: str, params: Any = None) -> list[Any]:
    """The rows of the translation, run and rolled back; the row count for a change that returns none."""
    values = {k: plain(v) for k, v in params.items()} if isinstance(params, dict) else [plain(v) for v in params or ()]
    text = translate(sql.replace("%%", "%") if params else sql)
    connection.execute("BEGIN")
    try:
        cursor = connection.execute(text, values)
        rows = cursor.fetchall()
        return rows if cursor.description else [(cursor.rowcount,)]
    finally:
        connection.execute("ROLLBACK")


def alike(found: Any, expected: Any) -> bool:
    """Whether a value says the same, whatever type it has in Python."""
    if isinstance(expected, list | tuple):
        found = _document(found)
        same = isinstance(found, list | tuple) and len(found) == len(expected)
        return same and all(map(alike, found, expected))
    if expected is None or found is None:
        return found is expected
    if isinstance(expected, dict):
        return bool(_document(found) == expected)
    if isinstance(expected, bool | int | float | Decimal):
        return isinstance(found, int | float | Decimal) and math.isclose(float(found), float(expected), rel_tol=1e-9)
    if isinstance(expected, dt.datetime | dt.date):
        return _moment(found) == _moment(expected)
    if isinstance(expected, dt.time):
        return str(found)[: len(str(expected))] == str(expected)
    return str(found).lower() == str(expected) if isinstance(expected, uuid.UUID) else bool(found == expected)


def _document(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _moment(value: Any) -> dt.datetime | None:
    try:
        at = dt.datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=dt.UTC)


def judge(run: Run, sql: str, params: Any, expected: object) -> Outcome:
    """What became of a statement, and the answer or the error."""
    try:
        rows = run(sql, params)
    except (DeeplakeError, sqlglot.errors.SqlglotError, sqlite3.Error, sqlite3.Warning) as error:
        return (RIGHT if expected is ERROR else REFUSED), str(error).splitlines()[0]
    shown = str(rows[0][0] if len(rows) == 1 and len(rows[0]) == 1 else [tuple(row) for row in rows])
    wanted = expected if isinstance(expected, list) else [(expected,)]
    return (RIGHT if expected is not ERROR and alike(rows, wanted) else WRONG), shown


def counted() -> dict[str, dict[str, int]]:
    """Outcomes over the recorded statements; both sides run on the same tables."""
    from cases import load
    from playground import filled

    counts: dict[str, Counter[str]] = {"ours": Counter(), "sqlglot": Counter()}
    for case in load():
        expected = ERROR if "error" in case else case["rows"]
        ground = filled()
        other = sqlite3.connect(":memory:", isolation_level=None)
        ground.connection.backup(other)
        counts["ours"][judge(ground.run, case["sql"], case["params"], expected)[0]] += 1
        counts["sqlglot"][judge(partial(by_sqlglot, other), case["sql"], case["params"], expected)[0]] += 1
        other.close()
    return {name: {kind: found[kind] for kind in (RIGHT, WRONG, REFUSED)} for name, found in counts.items()}


def examples(folder: str) -> list[dict[str, object]]:
    """The named statements one by one, on a store and on its own catalog file."""
    out: list[dict[str, object]] = []
    with connect(folder) as db:
        for sql in SETUP:
            db.execute(sql)
        other = sqlite3.connect(os.path.join(folder, "catalog.sqlite"), isolation_level=None)
        for sql, expected in EXAMPLES:
            ours, theirs = (judge(run, sql, None, expected) for run in (_by_ours(db), partial(by_sqlglot, other)))
            out.append({"sql": sql, "postgresql": str(expected), "ours": ours, "sqlglot": theirs})
        other.close()
    return out


def _by_ours(db: Database) -> Run:
    return lambda sql, params: [tuple(row) for row in db.execute(sql, params)]


def compiling(rounds: int) -> harness.Times:
    """Seconds per compilation of the hybrid query, both warm."""
    with harness.scratch(None) as folder, connect(folder) as db:
        db.execute(workload.TABLE)
        schema = dict(db.tables())
    work = {"ours": lambda: compile_statement(workload.QUERY, schema), "sqlglot": lambda: translate(workload.QUERY)}
    return harness.take_turns({n: partial(_repeated, action) for n, action in work.items()}, rounds)


def _repeated(action: Callable[[], object], times: int = 50) -> float:
    action()
    start = time.perf_counter()
    for _ in range(times):
        action()
    return (time.perf_counter() - start) / times


def importing(rounds: int) -> harness.Times:
    turns = {name: partial(_first_line, code) for name, code in IMPORTS.items()}
    harness.take_turns(turns, 1)
    return harness.take_turns(turns, rounds)


def _first_line(code: str) -> float:
    return harness.first_line(code)[0]


def main() -> None:
    options = harness.arguments(__doc__, rows=0, rounds=11).parse_args()
    facts = {"sqlglot_version": sqlglot.__version__}
    imports = importing(options.rounds)
    harness.report("fresh process to an imported SQL compiler", imports, unit="ms", peers=["sqlglot"],
                   limits=["python"], **facts)  # fmt: skip
    harness.report("compiling the hybrid query once", compiling(options.rounds), unit="ms", peers=["sqlglot"], **facts)
    counts = counted()
    with harness.scratch(options.folder) as folder:
        harness.emit(
            "PostgreSQL's own answers to its statements on SQLite",
            statements=sum(counts["ours"].values()), ours=counts["ours"], peer={"sqlglot": counts["sqlglot"]},
            examples=examples(folder), **facts,
        )  # fmt: skip


if __name__ == "__main__":
    main()
