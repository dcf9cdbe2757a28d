"""Text functions, LIKE and regular expressions as PostgreSQL has them."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from deeplake_loader.errors import SQLError

MAX_TEXT = 256 << 20
"""Longest text that repeat, lpad and rpad make, in characters."""


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
    """A PostgreSQL pattern as Python's: word marks and [:classes:] rewritten, . takes a line break, $ only the end."""

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
