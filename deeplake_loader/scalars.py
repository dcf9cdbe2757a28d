"""Scalar values between Python and the embedded catalog: what a type accepts, how SQLite holds it, what comes back.

SQLite has five storage classes and no dates, so the conventions below are part of the format:

    BOOLEAN       0 or 1
    TIMESTAMP     'YYYY-MM-DD HH:MM:SS.ffffff', always six digits, so that text order is time order
    TIMESTAMPTZ   the same in UTC, followed by '+00:00'
    DATE, TIME    'YYYY-MM-DD', 'HH:MM:SS.ffffff'
    NUMERIC(p,s)  a number rounded half away from zero to s digits; at most 15 significant digits (exact in a double)
    JSON          compact text;  UUID: lower-case text with dashes;  BYTEA: a blob
    INTERVAL      'months days microseconds', only as the value of an expression: no column holds it

NaN is refused because SQLite stores it as NULL.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import numbers
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from functools import lru_cache
from uuid import UUID

from deeplake_loader.errors import CorruptionError, TypeMismatchError
from deeplake_loader.types import ColumnType

SQLValue = int | float | str | bytes | None
Encoder = Callable[[object, str], SQLValue]
Decoder = Callable[[object], object]

INTEGER_BITS = {"SMALLINT": 15, "INTEGER": 31, "BIGINT": 63}
NUMERIC_DIGITS = 15
_NUMERIC_WHOLE = 308  # digits before the point that a double reaches
UTC = dt.UTC


@lru_cache(maxsize=256)
def to_sql(kind: ColumnType) -> Encoder:
    """A function (value, where) -> what SQLite stores for a column of this scalar type.

    None passes as NULL. ``where`` names column and row in the TypeMismatchError for a value that does not fit.

    >>> to_sql(ColumnType("DATE"))(dt.date(2026, 1, 2), "column 'day'")
    '2026-01-02'
    """
    if kind.name in INTEGER_BITS:
        return _integer(kind.name, INTEGER_BITS[kind.name])
    if kind.name == "NUMERIC":
        return _numeric(kind)
    return _ENCODERS[kind.name]


def from_sql(kind: ColumnType) -> Decoder | None:
    """The function that turns a stored value (never NULL) into the Python value, or None when they are the same."""
    if kind.name == "NUMERIC":
        return _decode_numeric(kind)
    return _DECODERS.get(kind.name)


def plain(value: object, where: str) -> SQLValue:
    """A Python scalar for a placeholder that no column types: numbers, text, bytes, dates; anything else is refused.

    >>> plain(True, "parameter 1")
    1
    """
    if isinstance(value, float):
        return _finite(float(value), where)
    if value is None or isinstance(value, str | bytes):
        return value
    for kind, encode in _PLAIN:
        if isinstance(value, kind):
            return encode(value, where)
    scalar = _numpy_scalar(value)
    if scalar is not None and type(scalar) is not type(value):
        return plain(scalar, where)
    raise TypeMismatchError(
        f"{where} is a {type(value).__name__}, and nothing at its place in the statement says which type it has; "
        "pass a plain scalar here, put the placeholder where a column's value stands, or force a type: "
        "deeplake.Typed(value, 'VECTOR(768)')"
    )


def jsonable(value: SQLValue) -> object:
    """A stored value as JSON can hold it: bytes as {"base64": ...}, infinities as text."""
    if isinstance(value, bytes):
        import base64

        return {"base64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def format_timestamp(value: dt.datetime) -> str:
    """The catalog's text of a naive timestamp."""
    return value.isoformat(" ", "microseconds")


def _numpy_scalar(value: object) -> object | None:
    """The Python scalar inside a numpy or torch scalar, without importing either."""
    item = getattr(value, "item", None)
    if item is None or getattr(value, "shape", None) != ():
        return None
    scalar: object = item()
    return scalar


def _refuse(value: object, expected: str, where: str) -> TypeMismatchError:
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    return TypeMismatchError(f"{where} expects {expected}, got {type(value).__name__} {shown}")


def _unwrapped(encode: Encoder) -> Encoder:
    """NULL passes; numpy scalars are unwrapped once the plain types did not match."""

    def wrapped(value: object, where: str) -> SQLValue:
        if value is None:
            return None
        scalar = _numpy_scalar(value)
        return encode(value if scalar is None else scalar, where)

    return wrapped


def _integer(name: str, bits: int) -> Encoder:
    low, high = -(1 << bits), (1 << bits) - 1

    def encode(value: object, where: str) -> SQLValue:
        if type(value) is not int:
            if isinstance(value, bool):
                raise _refuse(value, f"{name} (write int({value}) if a number is meant)", where)
            if not isinstance(value, numbers.Integral) and not _is_whole(value):
                raise _refuse(value, name, where)
        number = int(value)  # type: ignore[call-overload]
        if not low <= number <= high:
            raise _refuse(value, f"{name} within {low}..{high}", where)
        return int(number)

    slow = _unwrapped(encode)
    return lambda value, where: value if type(value) is int and low <= value <= high else slow(value, where)


def _is_whole(value: object) -> bool:
    return isinstance(value, float | Decimal) and math.isfinite(value) and value == math.floor(value)


def _real(value: object, where: str) -> SQLValue:
    if isinstance(value, bool) or not isinstance(value, numbers.Real | Decimal):
        raise _refuse(value, "a number", where)
    try:
        number = float(value)
    except OverflowError:
        raise _refuse(value, "a number within the range of a double", where) from None
    if math.isinf(number) and number != value:
        raise _refuse(value, "a number within the range of a double", where)
    if number != number:
        raise _refuse(value, "a number or NULL (SQLite cannot hold NaN: it would be stored as NULL)", where)
    return number


def _numeric(kind: ColumnType) -> Encoder:
    scale = kind.option("scale") if kind.option("precision") is not None else None
    precision = kind.option("precision") or NUMERIC_DIGITS
    quantum = Decimal(1).scaleb(-int(scale or 0)) if kind.option("precision") is not None else None

    def encode(value: object, where: str) -> SQLValue:
        if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
            raise _refuse(value, str(kind), where)
        try:
            number = Decimal(repr(value) if isinstance(value, float) else value)
            number = number.quantize(quantum, ROUND_HALF_UP) if quantum is not None else number
        except InvalidOperation:
            raise _refuse(value, str(kind), where) from None
        digits = len(number.normalize().as_tuple().digits) if number.is_finite() else NUMERIC_DIGITS + 1
        whole = max(number.adjusted() + 1, 0) if number.is_finite() and number else 0
        if (
            digits > NUMERIC_DIGITS
            or whole > _NUMERIC_WHOLE
            or (quantum is not None and whole > int(precision) - int(scale or 0))
        ):
            raise _refuse(value, f"{kind} of at most {NUMERIC_DIGITS} significant digits", where)
        return int(number) if number == number.to_integral_value() and abs(number) < 2**53 else float(number)

    return _unwrapped(encode)


def _quick_text(value: object, where: str) -> SQLValue:
    """Plain ASCII text passes at once: half of the cost of a bulk insert's text column was the checks."""
    if type(value) is str and value.isascii() and "\0" not in value:
        return value
    return _slow_text(value, where)


def _quick_timestamp(value: object, where: str) -> SQLValue:
    if type(value) is dt.datetime and value.tzinfo is None:
        return value.isoformat(" ", "microseconds")
    return _slow_timestamp(value, where)


def _text(value: object, where: str) -> SQLValue:
    if not isinstance(value, str):
        raise _refuse(value, "text", where)
    if "\0" in value:
        raise _refuse(value, "text without a NUL character", where)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _refuse(value, "text that UTF-8 can hold (this has lone surrogates)", where) from None
    return str(value)


def _boolean(value: object, where: str) -> SQLValue:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str) and value.strip().lower() in _BOOLEAN_WORDS:
        return int(_BOOLEAN_WORDS[value.strip().lower()])
    raise _refuse(value, "BOOLEAN (True, False)", where)


_BOOLEAN_WORDS = {"t": True, "true": True, "yes": True, "on": True, "1": True,
                  "f": False, "false": False, "no": False, "off": False, "0": False}  # fmt: skip


def _timestamp(value: object, where: str) -> SQLValue:
    moment = _moment(value, "TIMESTAMP", where)
    return format_timestamp(_in_utc(moment, where) if moment.tzinfo else moment)


def _timestamptz(value: object, where: str) -> SQLValue:
    moment = _moment(value, "TIMESTAMPTZ", where)
    return format_timestamp(_in_utc(moment, where) if moment.tzinfo else moment) + "+00:00"


def _in_utc(moment: dt.datetime, where: str) -> dt.datetime:
    try:
        return moment.astimezone(UTC).replace(tzinfo=None)
    except OverflowError:
        raise _refuse(moment, "a time whose UTC lies in the years 1 to 9999", where) from None


def _moment(value: object, name: str, where: str) -> dt.datetime:
    if isinstance(value, dt.datetime):
        try:
            return dt.datetime(*value.timetuple()[:6], value.microsecond, value.tzinfo)  # drops pandas' nanoseconds
        except ValueError:  # pandas' NaT, which is a datetime without a time
            raise _refuse(value, f"{name} (or None where there is none)", where) from None
    if isinstance(value, dt.date):
        return dt.datetime(value.year, value.month, value.day)
    if isinstance(value, str):
        try:
            return dt.datetime.fromisoformat(value.strip())
        except ValueError:
            raise _refuse(value, f"{name} text such as '2026-11-22 10:00:00'", where) from None
    if isinstance(value, int) and type(value).__name__ == "int" and abs(value) > 10**15:
        raise _refuse(value, f"{name} (a datetime, not nanoseconds: cast numpy.datetime64 to 'M8[us]')", where)
    raise _refuse(value, f"{name} (a datetime or ISO text)", where)


def _date(value: object, where: str) -> SQLValue:
    if isinstance(value, dt.datetime):
        raise _refuse(value, "DATE (write value.date())", where)
    if isinstance(value, dt.date):
        return value.isoformat()
    if isinstance(value, str):
        try:
            return dt.date.fromisoformat(value.strip()).isoformat()
        except ValueError:
            pass
    raise _refuse(value, "DATE (a date or text such as '2026-11-22')", where)


def _time(value: object, where: str) -> SQLValue:
    if isinstance(value, str):
        try:
            value = dt.time.fromisoformat(value.strip())
        except ValueError:
            raise _refuse(value, "TIME text such as '10:00:00'", where) from None
    if not isinstance(value, dt.time) or value.tzinfo is not None:
        raise _refuse(value, "TIME without a time zone", where)
    return value.isoformat("microseconds")


def _json(value: object, where: str) -> SQLValue:
    """Text is taken as a JSON document, as PostgreSQL takes it; other values are dumped."""
    try:
        document = json.loads(value) if isinstance(value, str) else value
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise TypeMismatchError(f"{where} expects JSON: {error}; pass a dict, a list or JSON text") from None


def _uuid(value: object, where: str) -> SQLValue:
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, str):
        try:
            return str(UUID(value))
        except ValueError:
            pass
    raise _refuse(value, "UUID", where)


def _bytea(value: object, where: str) -> SQLValue:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise _refuse(value, "bytes", where)


def _interval(value: object, where: str) -> SQLValue:
    raise _refuse(value, "a type that a column can have (INTERVAL cannot be stored; keep seconds as a number)", where)


def _finite(value: object, where: str) -> SQLValue:
    return value if type(value) is float and value == value else _slow_real(value, where)


_slow_real, _slow_text, _slow_timestamp = map(_unwrapped, (_real, _text, _timestamp))
_ENCODERS: dict[str, Encoder] = {
    "TEXT": _quick_text, "REAL": _finite, "DOUBLE": _finite, "BOOLEAN": _unwrapped(_boolean),
    "TIMESTAMP": _quick_timestamp, "TIMESTAMPTZ": _unwrapped(_timestamptz), "DATE": _unwrapped(_date),
    "TIME": _unwrapped(_time), "JSON": lambda value, where: None if value is None else _json(value, where),
    "UUID": _unwrapped(_uuid), "BYTEA": lambda value, where: None if value is None else _bytea(value, where),
    "INTERVAL": _interval,
}  # fmt: skip
_PLAIN: tuple[tuple[type | tuple[type, ...], Encoder], ...] = (
    (bool, lambda value, _where: int(bool(value))),
    (int, _integer("BIGINT", 63)),
    ((bytearray, memoryview), _bytea),
    (dt.datetime, lambda value, where: (_timestamptz if getattr(value, "tzinfo", None) else _timestamp)(value, where)),
    (dt.date, _date),
    (dt.time, _time),
    (UUID, _uuid),
    (Decimal, _real),
    (dt.timedelta, lambda value, _where: _plain_interval(value)),  # type: ignore[arg-type]
    ((dict, list), lambda value, where: _json(value, where)),
)


def _decoding(name: str, decode: Decoder) -> Decoder:
    def checked(value: object) -> object:
        try:
            return decode(value)
        except (ValueError, TypeError, AttributeError, InvalidOperation) as error:
            raise CorruptionError(
                f"the catalog holds {value!r} in a {name} column ({error}); another tool wrote it: UPDATE it"
            ) from None

    return checked


def _decode_timestamp(value: object) -> dt.datetime:
    moment = dt.datetime.fromisoformat(value)  # type: ignore[arg-type]  # non-text raises TypeError, which is typed above
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


def _decode_timestamptz(value: object) -> dt.datetime:
    moment = dt.datetime.fromisoformat(value)  # type: ignore[arg-type]
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _decode_interval(value: object) -> dt.timedelta:
    """'months days microseconds' as psycopg reads an interval: a year is 365 days, a month 30."""
    months, days, microseconds = map(int, value.split())  # type: ignore[attr-defined]
    years = int(months / 12)
    return dt.timedelta(days=years * 365 + (months - years * 12) * 30 + days, microseconds=microseconds)


def _plain_interval(value: dt.timedelta) -> str:
    return f"0 {value.days} {value.seconds * 1_000_000 + value.microseconds}"


def _decode_boolean(value: object) -> bool:
    if value not in (0, 1):
        raise ValueError("neither 0 nor 1")
    return bool(value)


def _decode_numeric(kind: ColumnType) -> Decoder:
    scale = int(kind.option("scale") or 0)
    quantum = Decimal(1).scaleb(-scale) if kind.option("precision") is not None else None
    wide = Context(prec=int(kind.option("precision") or 0) + 1)  # PostgreSQL's have up to 1,000 digits, Python's own 28

    def decode(value: object) -> Decimal:
        number = Decimal(repr(value) if isinstance(value, float) else value)  # type: ignore[arg-type]
        return number.quantize(quantum, ROUND_HALF_UP, wide) if quantum is not None else number

    return _decoding(str(kind), decode)


_DECODERS: dict[str, Decoder] = {
    "BOOLEAN": _decoding("BOOLEAN", _decode_boolean),
    "TIMESTAMP": _decoding("TIMESTAMP", _decode_timestamp),
    "TIMESTAMPTZ": _decoding("TIMESTAMPTZ", _decode_timestamptz),
    "DATE": _decoding("DATE", dt.date.fromisoformat),  # type: ignore[arg-type]
    "TIME": _decoding("TIME", dt.time.fromisoformat),  # type: ignore[arg-type]
    "JSON": _decoding("JSON", json.loads),  # type: ignore[arg-type]
    "UUID": _decoding("UUID", UUID),  # type: ignore[arg-type]
    "INTERVAL": _decoding("INTERVAL", _decode_interval),
}
