"""PostgreSQL's aggregates that SQLite lacks or computes otherwise."""

from __future__ import annotations

import math
import sqlite3
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from functools import cmp_to_key
from typing import Any

from deeplake_loader.errors import SQLError
from deeplake_loader.sql import documents

Guard = Callable[[Callable[..., object]], Callable[..., object]]


def register(connection: sqlite3.Connection, guard: Guard) -> None:
    """Registers every aggregate under ``_dl_<name>``."""
    for name, (count, kind) in AGGREGATES.items():
        connection.create_aggregate(f"_dl_{name}", count, _guarded(kind, guard))
    for name, window in WINDOWS.items():
        connection.create_window_function(f"_dl_{name}", 1, _guarded(window, guard))


def _guarded(kind: type, guard: Guard) -> Any:
    names = ("step", "finalize", "value", "inverse")
    methods = {name: guard(getattr(kind, name)) for name in names if hasattr(kind, name)}
    return type(kind.__name__, (kind,), methods)


def _exact(value: int | float) -> Decimal:
    return Decimal(repr(value) if isinstance(value, float) else value)


def _plain(number: Decimal) -> int | float:
    return int(number) if number == number.to_integral_value() and abs(number) < 2**53 else float(number)


class Sum:
    """sum of NUMERIC in decimals; also over a sliding window."""

    def __init__(self) -> None:
        self.total, self.count = Decimal(0), 0

    def step(self, value: int | float | None) -> None:
        if value is not None:
            self.total += _exact(value)
            self.count += 1

    def inverse(self, value: int | float | None) -> None:
        if value is not None:
            self.total -= _exact(value)
            self.count -= 1

    def value(self) -> int | float | None:
        return _plain(self.total) if self.count else None

    def finalize(self) -> int | float | None:
        return self.value()


class Average(Sum):
    """avg of whole numbers or NUMERIC."""

    def value(self) -> int | float | None:
        return _plain(self.total / self.count) if self.count else None


class Single:
    """The one value of a subquery; PostgreSQL refuses a second row."""

    def __init__(self) -> None:
        self.found: list[object] = []

    def step(self, value: object) -> None:
        if self.found:
            raise SQLError("more than one row returned by a subquery used as an expression; add LIMIT 1 or a condition")
        self.found.append(value)

    def finalize(self) -> object:
        return self.found[0] if self.found else None


class Collect:
    """string_agg, array_agg, json_agg: mode, distinct, separator, value, then (descending, nulls first, key) each."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self.mode, self.distinct, self.separator = "", 0, ""

    def step(self, mode: str, distinct: int, separator: str, value: object, *keys: object) -> None:
        self.mode, self.distinct, self.separator = mode, distinct, separator
        if mode != "text" or value is not None:
            self.rows.append((value, separator, *keys))

    def finalize(self) -> str | None:
        if not self.rows:
            return None
        rows = self.rows
        if self.distinct:
            rows = sorted({row[0]: row for row in rows}.values(), key=cmp_to_key(_by_value))
        rows = sorted(rows, key=cmp_to_key(_by_keys)) if len(rows[0]) > 2 else rows
        if self.mode == "text":
            return "".join(f"{'' if i == 0 else row[1] or ''}{row[0]}" for i, row in enumerate(rows))
        return documents.compact([documents.member(self.mode, row[0]) for row in rows])


def _by_value(a: tuple[Any, ...], b: tuple[Any, ...]) -> int:
    return compare(a[0], b[0])


def compare(a: Any, b: Any) -> int:
    """-1, 0, 1; NULL is the largest."""
    if a is None or b is None:
        return (a is None) - (b is None)
    return int(a > b) - int(a < b)


def _by_keys(a: tuple[Any, ...], b: tuple[Any, ...]) -> int:
    for i in range(2, len(a), 3):
        descending, nulls_first, x, y = a[i], a[i + 1], a[i + 2], b[i + 2]
        if (x is None) != (y is None):
            return (-1 if x is None else 1) * (1 if nulls_first else -1)
        found = compare(x, y)
        if found:
            return -found if descending else found
    return 0


class ObjectOf:
    """json_object_agg over type, key, type, value."""

    def __init__(self) -> None:
        self.pairs: dict[str, object] = {}
        self.any = False

    def step(self, _: str, key: object, kind: str, value: object) -> None:
        if key is None:
            raise SQLError("field name must not be null")
        self.pairs[str(key)], self.any = documents.member(kind, value), True

    def finalize(self) -> str | None:
        return documents.compact(self.pairs) if self.any else None


class Spread:
    """Welford's running mean and squared deviation; the classes below read it off."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def step(self, value: float | None) -> None:
        if value is not None:
            self.count += 1
            delta = value - self.mean
            self.mean += delta / self.count
            self.squares += delta * (value - self.mean)

    def over(self, lost: int) -> float | None:
        return self.squares / (self.count - lost) if self.count > lost else None


class VarianceOf(Spread):
    def finalize(self) -> float | None:
        return self.over(1)


class VarianceOfAll(Spread):
    def finalize(self) -> float | None:
        return self.over(0)


class DeviationOf(Spread):
    def finalize(self) -> float | None:
        found = self.over(1)
        return None if found is None else math.sqrt(found)


class DeviationOfAll(Spread):
    def finalize(self) -> float | None:
        found = self.over(0)
        return None if found is None else math.sqrt(found)


class Pairs:
    """Running sums of two variables together."""

    def __init__(self) -> None:
        self.count, self.x, self.y, self.xx, self.yy, self.xy = 0, 0.0, 0.0, 0.0, 0.0, 0.0

    def step(self, y: float | None, x: float | None) -> None:
        if x is None or y is None:
            return
        self.count += 1
        dx, dy = x - self.x, y - self.y
        self.x += dx / self.count
        self.y += dy / self.count
        self.xx += dx * (x - self.x)
        self.yy += dy * (y - self.y)
        self.xy += dx * (y - self.y)


class Correlation(Pairs):
    def finalize(self) -> float | None:
        return self.xy / math.sqrt(self.xx * self.yy) if self.xx and self.yy else None


class Covariance(Pairs):
    def finalize(self) -> float | None:
        return self.xy / (self.count - 1) if self.count > 1 else None


class CovarianceOfAll(Pairs):
    def finalize(self) -> float | None:
        return self.xy / self.count if self.count else None


class Values:
    """The sorted non-NULL values of an ordered-set aggregate."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.fraction: float | None = 0.0
        self.descending = 0

    def step(self, fraction: float | None, value: object, descending: int) -> None:
        if fraction is not None and not 0 <= fraction <= 1:
            raise SQLError(f"percentile value {fraction} is not between 0 and 1")
        self.fraction, self.descending = fraction, descending
        if value is not None:
            self.values.append(value)

    def ready(self) -> list[Any]:
        return sorted(self.values, reverse=bool(self.descending)) if self.fraction is not None else []


class PercentileCont(Values):
    def finalize(self) -> float | None:
        found = self.ready()
        if not found or self.fraction is None:
            return None
        place = self.fraction * (len(found) - 1)
        low, high = found[math.floor(place)], found[math.ceil(place)]
        return float(low + (high - low) * (place - math.floor(place)))


class PercentileDisc(Values):
    def finalize(self) -> object:
        found = self.ready()
        if not found or self.fraction is None:
            return None
        return found[max(math.ceil(self.fraction * len(found)) - 1, 0)]


class Mode:
    """The most frequent value; of several the first in order."""

    def __init__(self) -> None:
        self.counts: Counter[Any] = Counter()
        self.descending = 0

    def step(self, value: object, descending: int) -> None:
        self.descending = descending
        if value is not None:
            self.counts[value] += 1

    def finalize(self) -> object:
        if not self.counts:
            return None
        most = max(self.counts.values())
        found = [value for value, count in self.counts.items() if count == most]
        return max(found) if self.descending else min(found)


class Bits:
    """bit_and and bit_or."""

    def __init__(self) -> None:
        self.bits: int | None = None

    def finalize(self) -> int | None:
        return self.bits


class AllBits(Bits):
    def step(self, value: int | None) -> None:
        if value is not None:
            self.bits = value if self.bits is None else self.bits & value


class AnyBits(Bits):
    def step(self, value: int | None) -> None:
        if value is not None:
            self.bits = value if self.bits is None else self.bits | value


AGGREGATES: dict[str, tuple[int, type]] = {
    "single": (1, Single), "collect": (-1, Collect), "json_object_agg": (4, ObjectOf), "stddev": (1, DeviationOf),
    "stddev_pop": (1, DeviationOfAll), "variance": (1, VarianceOf), "var_pop": (1, VarianceOfAll),
    "corr": (2, Correlation), "covar_samp": (2, Covariance), "covar_pop": (2, CovarianceOfAll),
    "percentile_cont": (3, PercentileCont), "percentile_disc": (3, PercentileDisc), "mode": (2, Mode),
    "bit_and": (1, AllBits), "bit_or": (1, AnyBits),
}  # fmt: skip
WINDOWS: dict[str, type] = {"sum": Sum, "avg": Average}
