"""Dates, times and intervals as the catalog's text: reading what PostgreSQL reads, and its arithmetic.

Timestamps are 'YYYY-MM-DD HH:MM:SS.ffffff', with '+00:00' behind those with a time zone. An interval, which no column
can hold, is the text 'months days microseconds', as PostgreSQL keeps the three apart.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable

from deeplake_loader.errors import SQLError

DAY = 86_400_000_000
"""Microseconds."""

_TIME = r"(\d{1,2}):(\d{2})(?::(\d{2})(?:\.(\d{1,9}))?)?"
_ZONE = r"\s*(Z|UTC|[+-]\d{1,2}(?::?\d{2})?)?"
_TIMESTAMP = re.compile(rf"\s*(\d{{4}})-(\d{{1,2}})-(\d{{1,2}})(?:(?:[T\s]\s*){_TIME}{_ZONE})?\s*", re.IGNORECASE)
_CLOCK = re.compile(rf"\s*{_TIME}\s*")
_PART = re.compile(r"\s*([+-]?)(?:(\d+):(\d{2})(?::(\d{2}(?:\.\d+)?))?|(\d*\.?\d+)\s*([a-z]*))", re.IGNORECASE)
_CANONICAL = re.compile(r"-?\d+ -?\d+ -?\d+")

_UNITS: dict[str, tuple[str, int]] = {
    "millennium": ("months", 12_000), "century": ("months", 1200), "decade": ("months", 120), "year": ("months", 12),
    "month": ("months", 1), "week": ("days", 7), "day": ("days", 1), "hour": ("us", 3_600_000_000),
    "minute": ("us", 60_000_000), "second": ("us", 1_000_000), "millisecond": ("us", 1000), "microsecond": ("us", 1),
}  # fmt: skip
_SHORT = {
    "millennia": "millennium", "centuries": "century", "y": "year", "yr": "year", "yrs": "year", "mon": "month",
    "mons": "month", "w": "week", "d": "day", "h": "hour", "hr": "hour", "hrs": "hour", "m": "minute", "min": "minute",
    "mins": "minute", "s": "second", "sec": "second", "secs": "second", "ms": "millisecond", "msec": "millisecond",
    "us": "microsecond", "usec": "microsecond", "": "second",
}  # fmt: skip

Interval = tuple[int, int, int]


def timestamp(text: str, zone: bool = False) -> str:
    """The catalog's form of a timestamp in ISO form; without ``zone`` a zone in the text is ignored, as in PostgreSQL.

    >>> timestamp("2026-11-01 10:00"), timestamp("2026-11-01T10:00+02", zone=True)
    ('2026-11-01 10:00:00.000000', '2026-11-01 08:00:00.000000+00:00')
    """
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise SQLError(f"cannot read {text!r} as a timestamp; write '2026-11-22 10:00:00'")
    year, month, day, hour, minute, second = (int(match[i] or 0) for i in range(1, 7))
    try:
        moment = dt.datetime(year, month, day, *_clock(hour, minute, second)[:3])
        moment += dt.timedelta(days=hour // 24 if (hour, minute, second) == (24, 0, 0) else 0)
        moment += dt.timedelta(microseconds=_fraction(match[7]))
        if zone:
            moment -= _offset(match[8])
    except (ValueError, OverflowError) as error:
        raise SQLError(f"{text!r} is no timestamp: {error}") from None
    return show(moment) + ("+00:00" if zone else "")


def _clock(hour: int, minute: int, second: int) -> tuple[int, int, int]:
    return (0, 0, 0) if (hour, minute, second) == (24, 0, 0) else (hour, minute, second)


def _fraction(digits: str | None) -> int:
    return round(int((digits or "0").ljust(9, "0")) / 1000)


def _offset(zone: str | None) -> dt.timedelta:
    if zone is None or zone.upper() in ("Z", "UTC"):
        return dt.timedelta()
    digits = zone[1:].replace(":", "")
    hours, minutes = int(digits[:2]), int(digits[2:] or 0)
    return dt.timedelta(hours=hours, minutes=minutes) * (-1 if zone[0] == "-" else 1)


def date(text: str) -> str:
    """The catalog's form of a date; a time behind it is dropped, as in PostgreSQL."""
    return timestamp(text)[:10]


def time(text: str) -> str:
    """The catalog's form of a time of day."""
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise SQLError(f"cannot read {text!r} as a time; write '10:00:00'")
    try:
        found = dt.time(int(match[1]), int(match[2]), int(match[3] or 0), _fraction(match[4]))
    except ValueError as error:
        raise SQLError(f"{text!r} is no time: {error}") from None
    return found.isoformat("microseconds")


def show(moment: dt.datetime) -> str:
    """The catalog's text of a timestamp without a zone."""
    return moment.isoformat(" ", "microseconds")


def moment(text: str) -> dt.datetime:
    """The timestamp (or date) in the catalog's text, its zone left away."""
    return dt.datetime.fromisoformat(text[:26])


# -- intervals -----------------------------------------------------------------------------------------------------


def interval(text: str) -> str:
    """The catalog's form of an interval: '1 month 2 days 03:00' becomes '1 2 10800000000'.

    >>> interval("1 year 2 mons"), interval("1.5 days"), interval("-01:30")
    ('14 0 0', '0 1 43200000000', '0 0 -5400000000')
    """
    if _CANONICAL.fullmatch(text):
        return text
    body = re.sub(r"\s*\bago\s*$", "", text, flags=re.IGNORECASE)
    at, total = 0, (0, 0, 0)
    while at < len(body) and body[at:].strip():
        match = _PART.match(body, at)
        if match is None or match.end() == at:
            raise SQLError(f"cannot read {text!r} as an interval; write '1 day 02:30:00' or '3 months'")
        total = _plus(total, _part(match, text))
        at = match.end()
    if at == 0:
        raise SQLError(f"cannot read {text!r} as an interval; write '1 day 02:30:00' or '3 months'")
    return interval_text(total if body == text else _times(total, -1))


def _part(match: re.Match[str], text: str) -> Interval:
    sign = -1 if match[1] == "-" else 1
    if match[2] is not None:
        us = (int(match[2]) * 3600 + int(match[3]) * 60) * 1_000_000 + round(float(match[4] or 0) * 1_000_000)
        return 0, 0, sign * us
    unit = match[6].lower()
    unit = _SHORT.get(unit, unit.removesuffix("s"))
    if unit not in _UNITS:
        raise SQLError(f"cannot read {text!r} as an interval: {match[6]!r} is no unit of time")
    field, size = _UNITS[unit]
    return _times(_scaled(field, float(match[5]) * size), sign)


def _scaled(field: str, amount: float) -> Interval:
    if field == "us":
        return 0, 0, round(amount)
    whole = int(amount)
    rest = amount - whole
    if field == "days":
        return 0, whole, round(rest * DAY)
    return (whole, *_scaled("days", round(rest * 30, 9))[1:])


def interval_text(value: Interval) -> str:
    return " ".join(map(str, value))


def interval_of(text: str) -> Interval:
    """(months, days, microseconds) of the catalog's text."""
    months, days, us = text.split(" ")
    return int(months), int(days), int(us)


def _plus(a: Interval, b: Interval) -> Interval:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def _times(a: Interval, factor: int) -> Interval:
    return a[0] * factor, a[1] * factor, a[2] * factor


def add_intervals(a: str, b: str, sign: int) -> str:
    return interval_text(_plus(interval_of(a), _times(interval_of(b), sign)))


def multiply_interval(text: str, factor: float) -> str:
    """Each of the three parts times the factor; fractions go down to days and microseconds, as in PostgreSQL."""
    months, days, us = interval_of(text)
    total = _plus(_scaled("months", months * factor), _scaled("days", days * factor))
    return interval_text(_plus(total, (0, 0, round(us * factor))))


def span(text: str) -> int:
    """An interval as microseconds with months of 30 days: how PostgreSQL compares intervals."""
    months, days, us = interval_of(text)
    return (months * 30 + days) * DAY + us


def shift(text: str, by: str, sign: int) -> str:
    """A timestamp (or date) plus ``sign`` times an interval, in the timestamp's own form."""
    months, days, us = _times(interval_of(by), sign)
    at = moment(text)
    try:
        number = at.year * 12 + at.month - 1 + months
        year, month = number // 12, number % 12 + 1
        at = at.replace(year=year, month=month, day=min(at.day, _days(year, month)))
        return show(at + dt.timedelta(days=days, microseconds=us)) + text[26:]
    except (ValueError, OverflowError):
        raise SQLError(f"timestamp out of range: {text} {'+' if sign > 0 else '-'} {by}") from None


def _days(year: int, month: int) -> int:
    from calendar import monthrange  # with it comes locale: 2 ms of a cold query

    return monthrange(year, month)[1]


def between(later: str, earlier: str) -> str:
    """The interval from one timestamp to another, in days and microseconds."""
    delta = moment(later) - moment(earlier)
    us = (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
    days = abs(us) // DAY * (1 if us >= 0 else -1)
    return interval_text((0, days, us - days * DAY))


# -- fields --------------------------------------------------------------------------------------------------------


def _week_start(at: dt.datetime) -> dt.datetime:
    return _floor(at, hour=0) - dt.timedelta(days=at.weekday())


def _floor(at: dt.datetime, **fields: int) -> dt.datetime:
    order = {"month": 1, "day": 1, "hour": 0, "minute": 0, "second": 0, "microsecond": 0}
    names = list(order)
    first = names.index(next(iter(fields)))
    return at.replace(**{**{name: order[name] for name in names[first:]}, **fields})  # type: ignore[arg-type]


TRUNCATIONS: dict[str, Callable[[dt.datetime], dt.datetime]] = {
    "microseconds": lambda at: at,
    "milliseconds": lambda at: at.replace(microsecond=at.microsecond // 1000 * 1000),
    "second": lambda at: at.replace(microsecond=0),
    "minute": lambda at: _floor(at, second=0),
    "hour": lambda at: _floor(at, minute=0),
    "day": lambda at: _floor(at, hour=0),
    "week": _week_start,
    "month": lambda at: _floor(at, day=1),
    "quarter": lambda at: _floor(at, month=(at.month - 1) // 3 * 3 + 1),
    "year": lambda at: _floor(at, month=1),
    "decade": lambda at: _floor(at, month=1).replace(year=at.year // 10 * 10),
    "century": lambda at: _floor(at, month=1).replace(year=(at.year - 1) // 100 * 100 + 1),
}


def truncate(field: str, text: str) -> str:
    """date_trunc: the timestamp cut to the field, in its own form."""
    return show(TRUNCATIONS[field](moment(text))) + text[26:]


FIELDS: dict[str, Callable[[dt.datetime], int | float]] = {
    "century": lambda at: (at.year - 1) // 100 + 1,
    "day": lambda at: at.day,
    "decade": lambda at: at.year // 10,
    "dow": lambda at: at.isoweekday() % 7,
    "doy": lambda at: at.timetuple().tm_yday,
    "epoch": lambda at: _seconds(round((at - dt.datetime(1970, 1, 1)) / dt.timedelta(microseconds=1))),
    "hour": lambda at: at.hour,
    "isodow": lambda at: at.isoweekday(),
    "isoyear": lambda at: at.isocalendar()[0],
    "microseconds": lambda at: at.second * 1_000_000 + at.microsecond,
    "milliseconds": lambda at: (at.second * 1_000_000 + at.microsecond) / 1000,
    "minute": lambda at: at.minute,
    "month": lambda at: at.month,
    "quarter": lambda at: (at.month - 1) // 3 + 1,
    "second": lambda at: _seconds(at.second * 1_000_000 + at.microsecond),
    "week": lambda at: at.isocalendar()[1],
    "year": lambda at: at.year,
}
CLOCK_FIELDS = {"hour", "minute", "second", "milliseconds", "microseconds", "epoch"}
"""What EXTRACT takes from a TIME; a DATE has the others, and epoch."""


def _seconds(us: int) -> int | float:
    return us // 1_000_000 if us % 1_000_000 == 0 else us / 1_000_000


def extract(field: str, text: str) -> int | float:
    """EXTRACT(field FROM a timestamp, date or time)."""
    if text[2:3] == ":":
        text = f"1970-01-01 {text}"
    return FIELDS[field](moment(text))


def extract_interval(field: str, text: str) -> int | float:
    """EXTRACT(field FROM an interval)."""
    months, days, us = interval_of(text)
    sign = -1 if us < 0 else 1
    seconds = abs(us) % 60_000_000 * sign
    if field == "epoch":
        years, rest = int(months / 12), months - int(months / 12) * 12
        return _seconds(round((years * 365.25 + rest * 30 + days) * DAY) + us)
    found: dict[str, int | float] = {
        "year": int(months / 12), "month": months - int(months / 12) * 12, "day": days,
        "hour": abs(us) // 3_600_000_000 * sign, "minute": abs(us) // 60_000_000 % 60 * sign,
        "second": _seconds(seconds), "milliseconds": seconds / 1000, "microseconds": seconds,
    }  # fmt: skip
    return found[field]


INTERVAL_FIELDS = {"epoch", "year", "month", "day", "hour", "minute", "second", "milliseconds", "microseconds"}

_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
           "November", "December")  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_FORMATS: dict[str, Callable[[dt.datetime], str]] = {
    "YYYY": lambda at: f"{at.year:04d}", "YY": lambda at: f"{at.year % 100:02d}",
    "IYYY": lambda at: f"{at.isocalendar()[0]:04d}", "IW": lambda at: f"{at.isocalendar()[1]:02d}",
    "MM": lambda at: f"{at.month:02d}", "DDD": lambda at: f"{at.timetuple().tm_yday:03d}",
    "DD": lambda at: f"{at.day:02d}", "HH24": lambda at: f"{at.hour:02d}",
    "HH12": lambda at: f"{(at.hour - 1) % 12 + 1:02d}", "HH": lambda at: f"{(at.hour - 1) % 12 + 1:02d}",
    "MI": lambda at: f"{at.minute:02d}", "SS": lambda at: f"{at.second:02d}",
    "MS": lambda at: f"{at.microsecond // 1000:03d}", "US": lambda at: f"{at.microsecond:06d}",
    "AM": lambda at: "AM" if at.hour < 12 else "PM", "PM": lambda at: "AM" if at.hour < 12 else "PM",
    "Month": lambda at: _MONTHS[at.month - 1].ljust(9), "Mon": lambda at: _MONTHS[at.month - 1][:3],
    "MON": lambda at: _MONTHS[at.month - 1][:3].upper(), "mon": lambda at: _MONTHS[at.month - 1][:3].lower(),
    "Day": lambda at: _DAYS[at.weekday()].ljust(9), "Dy": lambda at: _DAYS[at.weekday()][:3],
    "DY": lambda at: _DAYS[at.weekday()][:3].upper(), "dy": lambda at: _DAYS[at.weekday()][:3].lower(),
    "D": lambda at: str(at.isoweekday() % 7 + 1), "Q": lambda at: str((at.month - 1) // 3 + 1),
}  # fmt: skip
_FORMAT = re.compile(r'"([^"]*)"|(' + "|".join(sorted(_FORMATS, key=len, reverse=True)) + r")|([^A-Za-z\"\\])")


def check_format(text: str) -> None:
    """Raises SQLError for a to_char pattern that is not fully understood."""
    at = 0
    while at < len(text):
        match = _FORMAT.match(text, at)
        if match is None:
            raise SQLError(
                f"to_char format {text!r}: {text[at:]!r} is not supported; known are {', '.join(sorted(_FORMATS))} and "
                'text in "double quotes"'
            )
        at = match.end()


def to_char(text: str, pattern: str) -> str:
    """The timestamp by a checked to_char pattern."""
    at = moment(text)
    return _FORMAT.sub(lambda m: _FORMATS[m[2]](at) if m[2] else m[1] if m[1] is not None else m[3], pattern)
