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
VERDICTS = Path(__file__).with_name("verdicts.jsonl")
"""Ordinary statements of PostgreSQL's, each with its answer and under ``sqlite`` the words of the refusal there; null
where the embedded catalog gives the same answer."""


def load(file: Path = FILE) -> list[dict[str, Any]]:
    return [_plain(json.loads(line)) for line in file.read_text().splitlines()]


def save(cases: list[dict[str, Any]], file: Path = FILE) -> None:
    file.write_text("".join(json.dumps(_tagged(case), ensure_ascii=False) + "\n" for case in cases))


def _tagged(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tagged(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_tagged(v) for v in value]
    if isinstance(value, bytes):
        return {"$bytes": value.hex()}
    if isinstance(value, dt.timedelta):
        return {"$timedelta": [value.days, value.seconds, value.microseconds]}
    if isinstance(value, dt.datetime | dt.date | dt.time | Decimal | uuid.UUID):
        return {f"${type(value).__name__}": str(value)}
    return value


_READERS: dict[str, Any] = {
    "$timedelta": lambda v: dt.timedelta(*v), "$datetime": dt.datetime.fromisoformat, "$date": dt.date.fromisoformat,
    "$time": dt.time.fromisoformat, "$Decimal": Decimal, "$UUID": uuid.UUID,
    "$bytes": bytes.fromhex,
}  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        tag = next(iter(value), "")
        return _READERS[tag](value[tag]) if tag in _READERS else {k: _plain(v) for k, v in value.items()}
    return value


def record(url: str) -> None:
    """Asks PostgreSQL again for every statement in both tables."""
    import psycopg
    from playground import SETUP

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS generations, runs")
        connection.execute("SET timezone = 'UTC'")
        for sql in SETUP:
            connection.execute(sql)
        connection.execute("SELECT setval(pg_get_serial_sequence('generations', 'id'), 4)")
        for file in (FILE, VERDICTS):
            save([case | _rolled_back(connection, case) for case in load(file)], file)


def _rolled_back(connection: Any, case: dict[str, Any]) -> dict[str, Any]:
    with connection.transaction(force_rollback=True):
        return _answer(connection, case["sql"], case["params"])


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
