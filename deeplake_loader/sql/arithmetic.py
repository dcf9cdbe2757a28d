"""Numbers and conversions as PostgreSQL computes them: NUMERIC in decimals, its roundings, its texts, its errors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Context, Decimal, DivisionByZero, InvalidOperation

from deeplake_loader.errors import SQLError
from deeplake_loader.sql.words import BOOLEAN_WORDS

LIMITS = {"SMALLINT": 1 << 15, "INTEGER": 1 << 31, "BIGINT": 1 << 63}
Number = int | float
_WIDE = Context(prec=1_400)  # a float has up to 309 digits before its point, a NUMERIC up to 1,000 behind it


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
    return _in_range(int(_decimal(value).quantize(Decimal(1), ROUND_HALF_UP, _WIDE)), kind)


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
    number = number.quantize(Decimal(1).scaleb(-scale), ROUND_HALF_UP, _WIDE)
    if number and number.adjusted() + 1 > precision - scale:
        raise SQLError(f"{value!r} does not fit NUMERIC({precision}, {scale})")
    return _plain(number)


def numeric_text(value: Number, scale: int) -> str:
    return format(_decimal(value).quantize(Decimal(1).scaleb(-scale), ROUND_HALF_UP, _WIDE), "f")


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


def rounded(value: Number, digits: int, mode: str) -> Number:
    return _plain(_decimal(value).quantize(Decimal(1).scaleb(-digits), mode, _WIDE))


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


def extreme(choose: Callable[..., object]) -> Callable[..., object]:
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
