"""The functions that compiled statements call on SQLite: PostgreSQL's, where SQLite's own differ or are missing.

An error inside one reaches the caller as SQLite's "user-defined function raised exception"; `take_error` has the typed
one.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import random
import re
import sqlite3
import threading
import uuid
from collections.abc import Callable
from decimal import ROUND_CEILING, ROUND_DOWN, ROUND_FLOOR, ROUND_HALF_UP, Decimal, DivisionByZero, InvalidOperation

from deeplake_loader.errors import DeeplakeError, SQLError
from deeplake_loader.sql import aggregates, documents, moments

MAX_SERIES = 10_000_000
"""Longest generate_series; it is one text in memory."""
MAX_TEXT = 256 << 20
"""Longest text that repeat, lpad and rpad make, in characters."""

LIMITS = {"SMALLINT": 1 << 15, "INTEGER": 1 << 31, "BIGINT": 1 << 63}
Number = int | float


_last = threading.local()


def take_error() -> DeeplakeError | None:
    """The error that made this thread's last statement fail inside a function, once; None if no function of ours did."""
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


def _guard(function: Callable[..., object]) -> Callable[..., object]:
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


# -- conversions ---------------------------------------------------------------------------------------------------


def whole(value: Number | str, kind: str) -> int:
    """A cast to a whole number: fractions round half to even, as PostgreSQL rounds floats."""
    if isinstance(value, str):
        if not re.fullmatch(r"\s*[+-]?\d+\s*", value):
            raise SQLError(f"{value!r} is no {kind}")
        return _in_range(int(value), kind)
    if isinstance(value, float) and not math.isfinite(value):
        raise SQLError(f"{value!r} is out of range for {kind}")
    return _in_range(round(value), kind)


def whole_numeric(value: Number, kind: str) -> int:
    """A cast of NUMERIC: halves round away from zero."""
    return _in_range(int(_decimal(value).quantize(Decimal(1), ROUND_HALF_UP)), kind)


def _in_range(number: int, kind: str) -> int:
    if not -LIMITS[kind] <= number < LIMITS[kind]:
        raise SQLError(f"{number} is out of range for {kind}")
    return number


def double(value: Number | str) -> float:
    if isinstance(value, str) and not re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", value):
        raise SQLError(f"{value!r} is no DOUBLE PRECISION")
    return float(value)


def _decimal(value: Number | str) -> Decimal:
    try:
        number = Decimal(repr(value) if isinstance(value, float) else str(value).strip())
    except InvalidOperation:
        raise SQLError(f"{value!r} is no NUMERIC") from None
    if not number.is_finite():
        raise SQLError(f"{value!r} is no NUMERIC")
    return number


def _plain(number: Decimal) -> Number:
    """A decimal as SQLite keeps it: a whole number where it is one, else a float (15 digits are exact)."""
    if number == number.to_integral_value() and abs(number) < 2**53:
        return int(number)
    return float(number)


def numeric(value: Number | str, precision: int | None = None, scale: int = 0) -> Number:
    number = _decimal(value)
    if precision is None:
        return _plain(number)
    number = number.quantize(Decimal(1).scaleb(-scale), ROUND_HALF_UP)
    if number and number.adjusted() + 1 > precision - scale:
        raise SQLError(f"{value!r} does not fit NUMERIC({precision}, {scale})")
    return _plain(number)


def numeric_text(value: Number, scale: int) -> str:
    return format(_decimal(value).quantize(Decimal(1).scaleb(-scale), ROUND_HALF_UP), "f")


def double_text(value: Number) -> str:
    """PostgreSQL's text of a float: no trailing .0, an exponent from 1e15 and below 1e-4."""
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        return str(int(value))
    digits = Decimal(repr(value))
    if -5 < digits.adjusted() < 15:
        return format(digits.normalize(), "f")
    mantissa, _, exponent = f"{digits.normalize():e}".partition("e")
    return f"{mantissa}e{exponent[0]}{int(exponent[1:]):02d}"


def text(value: object) -> str:
    """A parameter as text."""
    if isinstance(value, bytes):
        raise SQLError("bytes are no text; decode them in Python")
    return double_text(value) if isinstance(value, float) else str(value)


def boolean(value: object) -> int:
    from deeplake_loader.sql.words import BOOLEAN_WORDS

    if isinstance(value, int) and value in (0, 1):
        return value
    found = BOOLEAN_WORDS.get(str(value).strip().lower())
    if found is None:
        raise SQLError(f"{value!r} is no BOOLEAN")
    return found


def moment_text(value: str) -> str:
    """PostgreSQL's text of a timestamp: no trailing zeros, the zone as +00."""
    head, zone = (value[:-6], "+00") if value.endswith("+00:00") else (value, "")
    return head.rstrip("0").rstrip(".") + zone if "." in head else head + zone


def nonzero(value: Number) -> Number:
    if value == 0:
        raise SQLError("division by zero")
    return value


def numeric_op(operator: str, a: Number, b: Number) -> Number:
    """Arithmetic of NUMERIC in decimals; the result keeps 15 significant digits beyond exact ones."""
    x, y = _decimal(a), _decimal(b)
    try:
        found = {"+": x.__add__, "-": x.__sub__, "*": x.__mul__, "/": x.__truediv__, "%": x.__mod__,
                 "//": x.__floordiv__}[operator](y)  # fmt: skip
    except (DivisionByZero, InvalidOperation):
        raise SQLError("division by zero") from None
    return _plain(found)


def _rounded(value: Number, digits: int, mode: str) -> Number:
    return _plain(_decimal(value).quantize(Decimal(1).scaleb(-digits), mode))


def power(base: Number, exponent: Number) -> float:
    if base == 0 and exponent < 0:
        raise SQLError("zero raised to a negative power is undefined")
    if base < 0 and exponent != int(exponent):
        raise SQLError("a negative number raised to a non-integer power yields a complex result")
    return math.pow(base, exponent)


MATH: dict[str, Callable[[float], float]] = {
    "sqrt": math.sqrt, "cbrt": math.cbrt, "exp": math.exp, "ln": math.log, "log": math.log10, "sin": math.sin,
    "cos": math.cos, "tan": math.tan, "asin": math.asin, "acos": math.acos, "atan": math.atan,
    "radians": math.radians, "degrees": math.degrees,
}  # fmt: skip


def mathematics(name: str, value: float) -> float:
    try:
        return MATH[name](float(value))
    except ValueError:
        raise SQLError(f"{name}({value!r}) is not defined") from None


def _extreme(choose: Callable[..., object]) -> Callable[..., object]:
    def greatest_or_least(*values: object) -> object:
        known = [value for value in values if value is not None]
        return choose(known) if known else None

    return greatest_or_least


def single_count(what: str, value: object) -> int:
    """LIMIT or OFFSET; NULL is none."""
    if value is None:
        return -1 if what == "LIMIT" else 0
    if not isinstance(value, int):
        raise SQLError(f"{what} needs a whole number, got {value!r}")
    if value < 0:
        raise SQLError(f"{what} must not be negative, got {value}")
    return value


# -- text ----------------------------------------------------------------------------------------------------------


def _cased(change: Callable[[str], str]) -> Callable[[str], str]:
    """Letter by letter: a letter whose other case is two letters stays, as in PostgreSQL."""

    def cased(value: str) -> str:
        changed = change(value)
        if len(changed) == len(value):
            return changed
        return "".join(new if len(new := change(char)) == 1 else char for char in value)

    return cased


def initcap(value: str) -> str:
    return re.sub(r"[^\W_]+", lambda m: upper(m[0][0]) + lower(m[0][1:]), value)


upper, lower = _cased(str.upper), _cased(str.lower)


def substring(value: str, start: int, count: int | None = None) -> str:
    """Positions count from 1 and may lie outside; a negative length is an error."""
    if count is None:
        return value[max(start - 1, 0) :]
    if count < 0:
        raise SQLError("negative substring length not allowed")
    return value[max(start - 1, 0) : max(start - 1 + count, 0)]


def right(value: str, count: int) -> str:
    if count >= 0:
        return value[max(len(value) - count, 0) :]
    return value[-count:]


def _sized(count: int) -> int:
    if count > MAX_TEXT:
        raise SQLError(f"a text of {count} characters is too long")
    return max(count, 0)


def pad(left: int, value: str, count: int, fill: str) -> str:
    count = _sized(count)
    if len(value) >= count or not fill:
        return value[:count]
    missing = count - len(value)
    padding = (fill * (missing // len(fill) + 1))[:missing]
    return padding + value if left else value + padding


def repeat(value: str, count: int) -> str:
    _sized(count * len(value))
    return value * max(count, 0)


def split_part(value: str, separator: str, position: int) -> str:
    if position == 0:
        raise SQLError("field position must not be zero")
    parts = value.split(separator) if separator else [value]
    index = position - 1 if position > 0 else len(parts) + position
    return parts[index] if 0 <= index < len(parts) else ""


def translate(value: str, old: str, new: str) -> str:
    table: dict[str, str] = {}
    for i, char in enumerate(old):
        table.setdefault(char, new[i] if i < len(new) else "")
    return "".join(table.get(char, char) for char in value)


def overlay(value: str, new: str, start: int, count: int | None = None) -> str:
    if start <= 0:
        raise SQLError("negative substring length not allowed")
    stop = start - 1 + (len(new) if count is None else count)
    return value[: start - 1] + new + value[max(stop, 0) :]


def to_hex(value: int) -> str:
    return format(value % (1 << 32) if -(1 << 31) <= value < 0 else value % (1 << 64), "x")


def concat_ws(separator: str | None, *values: str | None) -> str | None:
    return None if separator is None else separator.join(value for value in values if value is not None)


def quote_literal(value: str) -> str:
    quoted = "'" + value.replace("'", "''").replace("\\", "\\\\") + "'"
    return f"E{quoted}" if "\\" in value else quoted


def character(code: int) -> str:
    if code == 0:
        raise SQLError("null character not permitted")
    return chr(code)


@functools.lru_cache(maxsize=256)
def _like_pattern(pattern: str, escape: str, insensitive: int) -> re.Pattern[str]:
    if len(escape) > 1:
        raise SQLError(f"the escape {escape!r} must be one character or empty")
    out, characters = [], iter(lower(pattern) if insensitive else pattern)
    for char in characters:
        if escape and char == escape:
            char = next(characters, "")
            if not char:
                raise SQLError("a LIKE pattern must not end with the escape character")
            out.append(re.escape(char))
        else:
            out.append({"%": ".*", "_": "."}.get(char) or re.escape(char))
    return re.compile("".join(out), re.DOTALL)


def like(value: str, pattern: str, escape: str, insensitive: int) -> int:
    found = _like_pattern(pattern, escape, insensitive)
    return int(found.fullmatch(lower(value) if insensitive else value) is not None)


# -- regular expressions -------------------------------------------------------------------------------------------

_CLASSES = {"alpha": "a-zA-Z", "digit": "0-9", "alnum": "a-zA-Z0-9", "upper": "A-Z", "lower": "a-z", "space": r"\s",
            "punct": r"!-/:-@\[-`{-~", "xdigit": "0-9A-Fa-f", "blank": r" \t", "word": r"\w"}  # fmt: skip
_SPECIAL = re.compile(r"\[:(\w+):\]|\\([mMyYAZ])|(\\.)|(\$)|(\(\?<?[P=!])", re.DOTALL)


@functools.lru_cache(maxsize=256)
def _regular(pattern: str, flags: str) -> re.Pattern[str]:
    """A PostgreSQL pattern as Python's: word marks and [:classes:] rewritten, . matches a line break, $ only the end."""

    def one(match: re.Match[str]) -> str:
        if match[1] is not None:
            if match[1] not in _CLASSES:
                raise SQLError(f"[:{match[1]}:] is no character class")
            return _CLASSES[match[1]]
        if match[2] is not None:
            return {"m": r"\b(?=\w)", "M": r"\b(?<=\w)", "y": r"\b", "Y": r"\B", "A": r"\A", "Z": r"\Z"}[match[2]]
        return match[0] if match[4] is None else r"\Z"

    if set(flags) - set("gic"):
        raise SQLError(f"regular expression flags {flags!r} are not supported; i, c and g are")
    if pattern.startswith("***") or "(?P" in pattern:
        raise SQLError(f"the regular expression {pattern!r} is not supported")
    try:
        return re.compile(_SPECIAL.sub(one, pattern), re.DOTALL | (re.IGNORECASE if "i" in flags else 0))
    except re.error as error:
        raise SQLError(f"invalid regular expression {pattern!r}: {error}") from None


def regex(value: str, pattern: str, insensitive: int) -> int:
    return int(_regular(pattern, "i" if insensitive else "").search(value) is not None)


def regex_part(value: str, pattern: str) -> str | None:
    match = _regular(pattern, "").search(value)
    if match is None:
        return None
    return match[1] if match.re.groups else match[0]


def regex_whole(value: str, pattern: str) -> str | None:
    match = _regular(pattern, "").search(value)
    return None if match is None else match[0]


def regex_count(value: str, pattern: str) -> int:
    return sum(1 for _ in _regular(pattern, "").finditer(value))


def regex_replace(value: str, pattern: str, new: str, flags: str) -> str:
    def one(match: re.Match[str]) -> str:
        def part(found: re.Match[str]) -> str:
            if found[1] == "&":
                return match[0]
            return (match[int(found[1])] or "") if found[1].isdigit() and int(found[1]) <= match.re.groups else found[1]

        return re.sub(r"\\(.)", part, new)

    return _regular(pattern, flags).sub(one, value, count=0 if "g" in flags else 1)


# -- time and rows -------------------------------------------------------------------------------------------------


def from_epoch(seconds: Number) -> str:
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

VOLATILE = {"random", "random_uuid", "clock"}

FUNCTIONS: dict[str, tuple[int, Callable[..., object]]] = {
    "whole": (2, whole), "whole_numeric": (2, whole_numeric), "double": (1, double), "numeric": (-1, numeric),
    "numeric_text": (2, numeric_text), "double_text": (1, double_text), "text": (1, text), "boolean": (1, boolean),
    "moment_text": (1, moment_text), "nonzero": (1, nonzero), "numeric_op": (3, numeric_op), "power": (2, power),
    "math": (2, mathematics), "atan2": (2, math.atan2), "greatest": (-1, _extreme(max)), "least": (-1, _extreme(min)),
    "count": (2, single_count), "random": (0, random.random), "random_uuid": (0, lambda: str(uuid.uuid4())),
    "ceil": (1, lambda v: _rounded(v, 0, ROUND_CEILING)), "floor": (1, lambda v: _rounded(v, 0, ROUND_FLOOR)),
    "round": (2, lambda v, n: _rounded(v, n, ROUND_HALF_UP)), "trunc": (2, lambda v, n: _rounded(v, n, ROUND_DOWN)),
    "ceil_double": (1, lambda v: float(math.ceil(v))), "floor_double": (1, lambda v: float(math.floor(v))),
    "round_double": (1, lambda v: float(round(v))), "trunc_double": (1, lambda v: float(math.trunc(v))),
    "lower": (1, lower), "upper": (1, upper), "initcap": (1, initcap), "substring": (-1, substring),
    "left": (2, lambda v, n: v[:n]), "right": (2, right), "pad": (4, pad), "repeat": (2, repeat),
    "reverse": (1, lambda v: v[::-1]), "split_part": (3, split_part), "translate": (3, translate),
    "overlay": (-1, overlay), "ascii": (1, lambda v: ord(v[0]) if v else 0), "chr": (1, character),
    "md5": (1, lambda v: hashlib.md5(v.encode(), usedforsecurity=False).hexdigest()), "to_hex": (1, to_hex),
    "concat": (-1, lambda *values: "".join(v for v in values if v is not None)), "concat_ws": (-1, concat_ws),
    "quote_literal": (1, quote_literal), "like": (4, like), "regex": (3, regex), "regex_part": (2, regex_part),
    "regex_whole": (2, regex_whole), "regex_count": (2, regex_count), "regex_replace": (4, regex_replace),
    "timestamp": (1, lambda v: moments.timestamp(v)), "timestamptz": (1, lambda v: moments.timestamp(v, zone=True)),
    "date": (1, moments.date), "time": (1, moments.time), "interval": (1, moments.interval),
    "span": (1, moments.span), "shift": (3, moments.shift), "between": (2, moments.between),
    "interval_add": (3, moments.add_intervals), "interval_times": (2, moments.multiply_interval),
    "add_days": (3, add_days), "days": (2, days), "truncate": (2, moments.truncate), "extract": (2, moments.extract),
    "extract_interval": (2, moments.extract_interval), "to_char": (2, moments.to_char), "make_date": (3, make_date),
    "from_epoch": (1, from_epoch), "clock": (0, wall_clock), "series": (3, series), "moments": (3, moment_series),
    "uuid": (1, lambda v: str(uuid.UUID(v))), "json": (1, lambda v: documents.compact(documents.load(v))),
    "json_show": (1, lambda v: documents.show(documents.load(v))), "json_get": (2, documents.get),
    "json_text": (2, documents.get_text), "json_path": (2, documents.path), "json_path_text": (2, documents.path_text),
    "json_contains": (2, documents.contains), "json_contained": (2, lambda a, b: documents.contains(b, a)),
    "json_has": (2, documents.has), "json_has_any": (2, documents.has_any), "json_has_all": (2, documents.has_all),
    "json_typeof": (1, documents.kind), "json_length": (1, documents.length), "json_items": (1, documents.items),
    "json_item_texts": (1, documents.item_texts), "json_keys": (1, documents.keys), "json_pretty": (1, documents.pretty),
    "json_number": (1, documents.number), "json_boolean": (1, documents.boolean),
    "json_object": (-1, documents.object_of), "json_array": (-1, documents.array_of), "to_json": (2, documents.of),
}  # fmt: skip
