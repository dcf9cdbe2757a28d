"""The functions that compiled statements call on SQLite: PostgreSQL's, where SQLite's own differ or are missing.

An error inside one reaches the caller as SQLite's "user-defined function raised exception"; `take_error` has the typed
one.
"""

from __future__ import annotations

import functools
import json
import math
import re
import sqlite3
import threading
import uuid
from collections.abc import Callable
from decimal import ROUND_CEILING, ROUND_DOWN, ROUND_FLOOR, ROUND_HALF_UP
from typing import Any

from deeplake_loader.errors import DeeplakeError, SQLError
from deeplake_loader.sql import aggregates, arithmetic, documents, moments, strings

MAX_SERIES = 10_000_000
"""Longest generate_series; it is one text in memory."""


_last = threading.local()


def take_error() -> DeeplakeError | None:
    """The error that made this thread's last statement fail inside a function, once; None if none did."""
    error: DeeplakeError | None = getattr(_last, "error", None)
    _last.error = None
    return error


def register(connection: sqlite3.Connection, clock: Callable[[], str]) -> None:
    """Makes the compiler's functions known to the connection; ``clock`` gives the transaction's UTC time as text."""

    def now() -> str:
        return clock()[:26] + "+00:00"

    for name, (count, function) in FUNCTIONS.items():
        guarded = _guard(_null_in_null_out(function) if name not in NULL_AWARE else function)
        connection.create_function(f"_dl_{name}", count, guarded, deterministic=name not in VOLATILE)
    connection.create_function("_dl_now", 0, _guard(now), deterministic=True)
    aggregates.register(connection, _guard)


def _guard(function: Callable[..., object]) -> Callable[..., Any]:
    """The function, its errors kept; what goes wrong in Python's arithmetic is an error of the values."""

    @functools.wraps(function)
    def guarded(*arguments: object) -> object:
        try:
            return function(*arguments)
        except DeeplakeError as error:
            _last.error = error
            raise
        except (ValueError, TypeError, ArithmeticError, AttributeError, re.error) as error:
            _last.error = SQLError(f"{function.__name__.strip('_')} of {arguments!r:.200}: {error}")
            raise

    return guarded


def _null_in_null_out(function: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(function)
    def strict(*arguments: object) -> object:
        return None if None in arguments else function(*arguments)

    return strict


# -- time and rows -------------------------------------------------------------------------------------------------


def from_epoch(seconds: int | float) -> str:
    import datetime as dt

    try:
        at = dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=round(seconds * 1_000_000))
    except OverflowError:
        raise SQLError(f"timestamp out of range: {seconds!r}") from None
    return moments.show(at) + "+00:00"


def wall_clock() -> str:
    import datetime as dt

    return moments.show(dt.datetime.now(dt.UTC).replace(tzinfo=None)) + "+00:00"


def add_days(day: str, count: int, direction: int) -> str:
    if not isinstance(count, int):
        raise SQLError(f"a date takes whole days, got {count!r}; add an INTERVAL")
    return moments.shift(day + " 00:00:00", f"0 {count} 0", direction)[:10]


def days(later: str, earlier: str) -> int:
    return (moments.moment(later) - moments.moment(earlier)).days


def make_date(year: int, month: int, day: int) -> str:
    return moments.date(f"{year:04d}-{month:02d}-{day:02d}")


def series(start: int, stop: int, step: int) -> str:
    if step == 0:
        raise SQLError("step size cannot equal zero")
    found = range(start, stop + (1 if step > 0 else -1), step)
    if len(found) > MAX_SERIES:
        raise SQLError(f"generate_series of {len(found)} rows; at most {MAX_SERIES}")
    return "[" + ",".join(map(str, found)) + "]"


def moment_series(start: str, stop: str, step: str) -> str:
    forward = moments.span(step)
    if forward == 0:
        raise SQLError("step size cannot equal zero")
    found = []
    at = start
    while (at <= stop) if forward > 0 else (at >= stop):
        found.append(at)
        if len(found) > MAX_SERIES:
            raise SQLError(f"generate_series of more than {MAX_SERIES} rows")
        at = moments.shift(at, step, 1)
    return json.dumps(found)


NULL_AWARE = {"greatest", "least", "concat", "concat_ws", "json_object", "json_array", "to_json", "count"}
"""Functions that see NULLs; all others give NULL for one."""


def _random() -> float:
    from random import random  # its hashes would cost every cold query 3 ms

    return random()


def _md5(text: str) -> str:
    from hashlib import md5

    return md5(text.encode(), usedforsecurity=False).hexdigest()


VOLATILE = {"random", "random_uuid", "clock"}

FUNCTIONS: dict[str, tuple[int, Callable[..., object]]] = {
    "whole": (2, arithmetic.whole), "whole_numeric": (2, arithmetic.whole_numeric), "double": (1, arithmetic.double),
    "numeric": (-1, arithmetic.numeric), "numeric_text": (2, arithmetic.numeric_text),
    "double_text": (1, arithmetic.double_text), "text": (1, arithmetic.text), "boolean": (1, arithmetic.boolean),
    "moment_text": (1, arithmetic.moment_text), "nonzero": (1, arithmetic.nonzero),
    "numeric_op": (3, arithmetic.numeric_op), "power": (2, arithmetic.power), "math": (2, arithmetic.mathematics),
    "atan2": (2, math.atan2), "greatest": (-1, arithmetic.extreme(max)), "least": (-1, arithmetic.extreme(min)),
    "count": (2, arithmetic.single_count), "random": (0, _random),
    "random_uuid": (0, lambda: str(uuid.uuid4())), "ceil": (1, lambda v: arithmetic.rounded(v, 0, ROUND_CEILING)),
    "floor": (1, lambda v: arithmetic.rounded(v, 0, ROUND_FLOOR)),
    "round": (2, lambda v, n: arithmetic.rounded(v, n, ROUND_HALF_UP)),
    "trunc": (2, lambda v, n: arithmetic.rounded(v, n, ROUND_DOWN)),
    "ceil_double": (1, lambda v: float(math.ceil(v))), "floor_double": (1, lambda v: float(math.floor(v))),
    "round_double": (1, lambda v: float(round(v))), "trunc_double": (1, lambda v: float(math.trunc(v))),
    "lower": (1, strings.lower), "upper": (1, strings.upper), "initcap": (1, strings.initcap),
    "substring": (-1, strings.substring), "left": (2, lambda v, n: v[:n]), "right": (2, strings.right),
    "pad": (4, strings.pad), "repeat": (2, strings.repeat), "reverse": (1, lambda v: v[::-1]),
    "split_part": (3, strings.split_part), "translate": (3, strings.translate), "overlay": (-1, strings.overlay),
    "ascii": (1, lambda v: ord(v[0]) if v else 0), "chr": (1, strings.character),
    "md5": (1, _md5), "to_hex": (1, strings.to_hex),
    "concat": (-1, lambda *values: "".join(v for v in values if v is not None)),
    "concat_ws": (-1, strings.concat_ws), "quote_literal": (1, strings.quote_literal), "like": (4, strings.like),
    "regex": (3, strings.regex), "regex_part": (2, strings.regex_part), "regex_whole": (2, strings.regex_whole),
    "regex_count": (2, strings.regex_count), "regex_replace": (4, strings.regex_replace),
    "timestamp": (1, lambda v: moments.timestamp(v)), "timestamptz": (1, lambda v: moments.timestamp(v, zone=True)),
    "date": (1, moments.date), "time": (1, moments.time), "interval": (1, moments.interval),
    "span": (1, moments.span), "shift": (3, moments.shift), "between": (2, moments.between),
    "interval_add": (3, moments.add_intervals), "interval_times": (2, moments.multiply_interval),
    "add_days": (3, add_days), "days": (2, days), "truncate": (2, moments.truncate), "extract": (2, moments.extract),
    "extract_interval": (2, moments.extract_interval), "to_char": (2, moments.to_char), "make_date": (3, make_date),
    "from_epoch": (1, from_epoch), "clock": (0, wall_clock), "series": (3, series), "moments": (3, moment_series),
    "uuid": (1, lambda v: str(uuid.UUID(v))), "json": (1, lambda v: documents.compact(documents.load(v))),
    "json_show": (1, lambda v: documents.show(documents.load(v))), "json_get": (2, documents.get),
    "json_text": (2, documents.get_text), "json_path": (2, documents.path),
    "json_path_text": (2, documents.path_text), "json_contains": (2, documents.contains),
    "json_contained": (2, lambda a, b: documents.contains(b, a)), "json_has": (2, documents.has),
    "json_has_any": (2, documents.has_any), "json_has_all": (2, documents.has_all),
    "json_typeof": (1, documents.kind), "json_length": (1, documents.length), "json_items": (1, documents.items),
    "json_item_texts": (1, documents.item_texts), "json_keys": (1, documents.keys),
    "json_pretty": (1, documents.pretty), "json_number": (1, documents.number),
    "json_boolean": (1, documents.boolean), "json_object": (-1, documents.object_of),
    "json_array": (-1, documents.array_of), "to_json": (2, documents.of),
}  # fmt: skip
