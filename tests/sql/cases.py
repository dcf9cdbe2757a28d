"""The table of statements with PostgreSQL 18's own answers (postgres.jsonl), and how it is recorded.

    python tests/sql/cases.py postgresql://user@host/scratch     # runs each statement there and rewrites the answers

Each line: sql, params, and either rows with the column names, or the error PostgreSQL gave.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("postgres.jsonl")


def load() -> list[dict[str, Any]]:
    return [_plain(json.loads(line)) for line in FILE.read_text().splitlines()]


def save(cases: list[dict[str, Any]]) -> None:
    FILE.write_text("".join(json.dumps(_tagged(case), ensure_ascii=False) + "\n" for case in cases))


def _tagged(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tagged(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_tagged(v) for v in value]
    if isinstance(value, dt.timedelta):
        return {"$timedelta": [value.days, value.seconds, value.microseconds]}
    if isinstance(value, dt.datetime | dt.date | dt.time | Decimal | uuid.UUID):
        return {f"${type(value).__name__}": str(value)}
    return value


_READERS: dict[str, Any] = {
    "$timedelta": lambda v: dt.timedelta(*v), "$datetime": dt.datetime.fromisoformat, "$date": dt.date.fromisoformat,
    "$time": dt.time.fromisoformat, "$Decimal": Decimal, "$UUID": uuid.UUID,
}  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        tag = next(iter(value), "")
        return _READERS[tag](value[tag]) if tag in _READERS else {k: _plain(v) for k, v in value.items()}
    return value


def record(url: str) -> None:
    """Asks PostgreSQL again for every statement in the table."""
    import psycopg
    from playground import SETUP

    out = []
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS generations, runs")
        connection.execute("SET timezone = 'UTC'")
        for sql in SETUP:
            connection.execute(sql)
        connection.execute("SELECT setval(pg_get_serial_sequence('generations', 'id'), 4)")
        for case in load():
            with connection.transaction(force_rollback=True):
                out.append(_answer(connection, case["sql"], case["params"]))
    save(out)


def _answer(connection: Any, sql: str, params: Any) -> dict[str, Any]:
    import psycopg

    try:
        with connection.transaction():
            cursor = connection.execute(sql, params)
            rows = [list(row) for row in cursor.fetchall()] if cursor.description else [[cursor.rowcount]]
            names = [column.name for column in cursor.description or ()]
            return {"sql": sql, "params": params, "rows": rows, "names": names}
    except psycopg.Error as error:
        return {"sql": sql, "params": params, "error": str(error).splitlines()[0]}


if __name__ == "__main__":
    record(sys.argv[1])
