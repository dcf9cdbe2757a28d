"""The functions of PostgreSQL that run here, as data: argument types -> result type: SQLite expression.

A line reads ``text, int -> TEXT: substr({0}, {1})``. Argument words: text, int (a whole number), small
(SMALLINT or INTEGER), numeric (int or
NUMERIC), double (any number), bool, timestamp, timestamptz, date, time, interval, json, uuid, any; ``word*`` takes the
rest, joined by commas in ``{rest}``. The first line whose arguments fit without conversion wins, else the first that
fits with PostgreSQL's implicit ones. Result ``=`` is the type of the first argument.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from deeplake_loader.sql.values import MOMENTS, NUMBERS, WHOLE
from deeplake_loader.types import ColumnType


@dataclass(frozen=True, slots=True)
class Signature:
    arguments: tuple[str, ...]
    rest: str | None
    result: ColumnType | None
    template: str


WORDS: dict[str, tuple[str, ...]] = {
    "text": ("TEXT",), "int": WHOLE, "small": ("SMALLINT", "INTEGER"), "numeric": ("NUMERIC",),
    "double": ("REAL", "DOUBLE"), "bool": ("BOOLEAN",),
    "timestamp": ("TIMESTAMP",), "timestamptz": ("TIMESTAMPTZ",), "date": ("DATE",), "time": ("TIME",),
    "interval": ("INTERVAL",), "json": ("JSON",), "uuid": ("UUID",),
}  # fmt: skip
"""Argument word -> the types it takes as they are."""

IMPLICIT: dict[str, tuple[str, ...]] = {
    "numeric": WHOLE, "double": (*WHOLE, "NUMERIC"), "timestamp": ("DATE",), "timestamptz": ("TIMESTAMP", "DATE"),
}  # fmt: skip
"""Argument word -> the types PostgreSQL converts to it by itself."""

PREFERRED = {"text": "TEXT", "int": "INTEGER", "small": "INTEGER", "numeric": "NUMERIC", "double": "DOUBLE",
             "bool": "BOOLEAN",
             "timestamp": "TIMESTAMP", "timestamptz": "TIMESTAMPTZ", "date": "DATE", "time": "TIME",
             "interval": "INTERVAL", "json": "JSON", "uuid": "UUID"}  # fmt: skip
"""The type an untyped argument takes."""

VOLATILE = frozenset({"random", "gen_random_uuid", "clock_timestamp", "uuidv4", "setseed", "statement_timestamp"})
"""Functions that answer differently for each row; a block with one never takes the fast path."""

_SCALAR = """
length char_length character_length: text -> INTEGER: length({0})
octet_length: text -> INTEGER: length(CAST({0} AS BLOB))
lower: text -> TEXT: _dl_lower({0})
upper: text -> TEXT: _dl_upper({0})
initcap: text -> TEXT: _dl_initcap({0})
btrim: text -> TEXT: trim({0}, ' ')
btrim: text, text -> TEXT: trim({0}, {1})
trim: text -> TEXT: trim({0}, ' ')
ltrim: text -> TEXT: ltrim({0}, ' ')
ltrim: text, text -> TEXT: ltrim({0}, {1})
rtrim: text -> TEXT: rtrim({0}, ' ')
rtrim: text, text -> TEXT: rtrim({0}, {1})
replace: text, text, text -> TEXT: replace({0}, {1}, {2})
strpos position: text, text -> INTEGER: instr({0}, {1})
substring substr: text, int -> TEXT: _dl_substring({0}, {1})
substring substr: text, int, int -> TEXT: _dl_substring({0}, {1}, {2})
substring: text, text -> TEXT: _dl_regex_part({0}, {1})
left: text, int -> TEXT: _dl_left({0}, {1})
right: text, int -> TEXT: _dl_right({0}, {1})
lpad: text, int -> TEXT: _dl_pad(1, {0}, {1}, ' ')
lpad: text, int, text -> TEXT: _dl_pad(1, {0}, {1}, {2})
rpad: text, int -> TEXT: _dl_pad(0, {0}, {1}, ' ')
rpad: text, int, text -> TEXT: _dl_pad(0, {0}, {1}, {2})
repeat: text, int -> TEXT: _dl_repeat({0}, {1})
reverse: text -> TEXT: _dl_reverse({0})
split_part: text, text, int -> TEXT: _dl_split_part({0}, {1}, {2})
translate: text, text, text -> TEXT: _dl_translate({0}, {1}, {2})
overlay: text, text, int -> TEXT: _dl_overlay({0}, {1}, {2})
overlay: text, text, int, int -> TEXT: _dl_overlay({0}, {1}, {2}, {3})
starts_with: text, text -> BOOLEAN: (substr({0}, 1, length({1})) = {1})
ascii: text -> INTEGER: _dl_ascii({0})
chr: int -> TEXT: _dl_chr({0})
md5: text -> TEXT: _dl_md5({0})
to_hex: int -> TEXT: _dl_to_hex({0})
quote_literal: text -> TEXT: _dl_quote_literal({0})
regexp_replace: text, text, text -> TEXT: _dl_regex_replace({0}, {1}, {2}, '')
regexp_replace: text, text, text, text -> TEXT: _dl_regex_replace({0}, {1}, {2}, {3})
regexp_like: text, text -> BOOLEAN: _dl_regex({0}, {1}, 0)
regexp_count: text, text -> INTEGER: _dl_regex_count({0}, {1})
regexp_substr: text, text -> TEXT: _dl_regex_whole({0}, {1})

abs: int -> =: abs({0})
abs: numeric -> =: abs({0})
abs: double -> =: abs({0})
sign: double -> DOUBLE: CAST(sign({0}) AS REAL)
sign: numeric -> NUMERIC: sign({0})
ceil ceiling: double -> DOUBLE: _dl_ceil_double({0})
ceil ceiling: numeric -> NUMERIC: _dl_ceil({0})
floor: double -> DOUBLE: _dl_floor_double({0})
floor: numeric -> NUMERIC: _dl_floor({0})
round: double -> DOUBLE: _dl_round_double({0})
round: numeric -> NUMERIC: _dl_round({0}, 0)
round: numeric, int -> NUMERIC: _dl_round({0}, {1})
trunc: double -> DOUBLE: _dl_trunc_double({0})
trunc: numeric -> NUMERIC: _dl_trunc({0}, 0)
trunc: numeric, int -> NUMERIC: _dl_trunc({0}, {1})
mod: int, int -> =: {0} % _dl_nonzero({1})
mod: numeric, numeric -> NUMERIC: _dl_numeric_op('%', {0}, {1})
div: numeric, numeric -> NUMERIC: _dl_numeric_op('//', {0}, {1})
power pow: double, double -> DOUBLE: _dl_power({0}, {1})
power pow: numeric, numeric -> NUMERIC: _dl_power({0}, {1})
sqrt: double -> DOUBLE: _dl_math('sqrt', {0})
sqrt: numeric -> NUMERIC: _dl_math('sqrt', {0})
cbrt: double -> DOUBLE: _dl_math('cbrt', {0})
exp: double -> DOUBLE: _dl_math('exp', {0})
exp: numeric -> NUMERIC: _dl_math('exp', {0})
ln: double -> DOUBLE: _dl_math('ln', {0})
ln: numeric -> NUMERIC: _dl_math('ln', {0})
log log10: double -> DOUBLE: _dl_math('log', {0})
log log10: numeric -> NUMERIC: _dl_math('log', {0})
sin: double -> DOUBLE: _dl_math('sin', {0})
cos: double -> DOUBLE: _dl_math('cos', {0})
tan: double -> DOUBLE: _dl_math('tan', {0})
asin: double -> DOUBLE: _dl_math('asin', {0})
acos: double -> DOUBLE: _dl_math('acos', {0})
atan: double -> DOUBLE: _dl_math('atan', {0})
atan2: double, double -> DOUBLE: _dl_atan2({0}, {1})
radians: double -> DOUBLE: _dl_math('radians', {0})
degrees: double -> DOUBLE: _dl_math('degrees', {0})
pi: -> DOUBLE: 3.141592653589793
random: -> DOUBLE: _dl_random()
gen_random_uuid uuidv4: -> UUID: _dl_random_uuid()

now transaction_timestamp: -> TIMESTAMPTZ: _dl_now()
statement_timestamp: -> TIMESTAMPTZ: _dl_now()
clock_timestamp: -> TIMESTAMPTZ: _dl_clock()
localtimestamp: -> TIMESTAMP: substr(_dl_now(), 1, 26)
current_date: -> DATE: substr(_dl_now(), 1, 10)
localtime: -> TIME: substr(_dl_now(), 12, 15)
to_timestamp: double -> TIMESTAMPTZ: _dl_from_epoch({0})
make_date: int, int, int -> DATE: _dl_make_date({0}, {1}, {2})
date: text -> DATE: _dl_date({0})
date: timestamptz -> DATE: substr({0}, 1, 10)

json_typeof jsonb_typeof: json -> TEXT: _dl_json_typeof({0})
json_array_length jsonb_array_length: json -> INTEGER: _dl_json_length({0})
jsonb_pretty: json -> TEXT: _dl_json_pretty({0})
json_extract_path jsonb_extract_path: json, text* -> JSON: _dl_json_path({0}, json_array({rest}))
json_extract_path_text jsonb_extract_path_text: json, text* -> TEXT: _dl_json_path_text({0}, json_array({rest}))
pg_typeof: any -> TEXT: !pg_typeof
"""

_AGGREGATES = """
sum: small -> BIGINT: sum({0})
sum: int -> NUMERIC: sum({0})
sum: numeric -> NUMERIC: _dl_sum({0})
sum: double -> =: sum({0})
avg: numeric -> NUMERIC: _dl_avg({0})
avg: double -> DOUBLE: avg({0})
bool_and every: bool -> BOOLEAN: min({0})
bool_or: bool -> BOOLEAN: max({0})
bit_and: int -> =: _dl_bit_and({0})
bit_or: int -> =: _dl_bit_or({0})
stddev stddev_samp: numeric -> NUMERIC: _dl_stddev({0})
stddev stddev_samp: double -> DOUBLE: _dl_stddev({0})
stddev_pop: numeric -> NUMERIC: _dl_stddev_pop({0})
stddev_pop: double -> DOUBLE: _dl_stddev_pop({0})
variance var_samp: numeric -> NUMERIC: _dl_variance({0})
variance var_samp: double -> DOUBLE: _dl_variance({0})
var_pop: numeric -> NUMERIC: _dl_var_pop({0})
var_pop: double -> DOUBLE: _dl_var_pop({0})
corr: double, double -> DOUBLE: _dl_corr({0}, {1})
covar_samp: double, double -> DOUBLE: _dl_covar_samp({0}, {1})
covar_pop: double, double -> DOUBLE: _dl_covar_pop({0}, {1})
json_object_agg jsonb_object_agg: text, any -> JSON: _dl_json_object_agg({0}, {1})
"""

WINDOWS: dict[str, tuple[int, int, str]] = {
    "row_number": (0, 0, "BIGINT"), "rank": (0, 0, "BIGINT"), "dense_rank": (0, 0, "BIGINT"),
    "percent_rank": (0, 0, "DOUBLE"), "cume_dist": (0, 0, "DOUBLE"), "ntile": (1, 1, "INTEGER"), "lag": (1, 3, "="),
    "lead": (1, 3, "="), "first_value": (1, 1, "="), "last_value": (1, 1, "="), "nth_value": (2, 2, "="),
}  # fmt: skip
"""Window functions: fewest and most arguments, result type."""

COLLECTORS = {"string_agg", "array_agg", "json_agg", "jsonb_agg"}
ORDERED = {"percentile_cont", "percentile_disc", "mode"}
SPECIAL_AGGREGATES = {"count", "min", "max"} | COLLECTORS | ORDERED


def _read(text: str) -> dict[str, list[Signature]]:
    found: dict[str, list[Signature]] = {}
    for line in filter(None, text.splitlines()):
        match = re.fullmatch(r"([\w ]+): ?(.*?) ?-> (\w+|=): (.*)", line)
        assert match is not None, line
        words = [word.strip() for word in match[2].split(",") if word.strip()]
        rest = words.pop()[:-1] if words and words[-1].endswith("*") else None
        result = None if match[3] == "=" else ColumnType(match[3])
        for name in match[1].split():
            found.setdefault(name, []).append(Signature(tuple(words), rest, result, match[4]))
    return found


FUNCTIONS = _read(_SCALAR)
AGGREGATES = _read(_AGGREGATES)
AGGREGATE_NAMES = frozenset(AGGREGATES) | SPECIAL_AGGREGATES

METRICS = {
    "cosine_similarity": ("cosine", True), "inner_product": ("inner", True), "l2_distance": ("l2", False),
    "cosine_distance": ("cosine", False), "negative_inner_product": ("inner", False),
}  # fmt: skip
"""Score function -> (metric, whether the best score is the largest)."""

SCORE_OPERATORS = {"<=>": "cosine_distance", "<->": "l2_distance", "<#>": "negative_inner_product"}

HINTS = {
    "age": "subtract the timestamps: now() - created_at",
    "generate_series": "use it in FROM",
    "unnest": "use it in FROM, or value = ANY(array)",
    "json_array_elements": "use it in FROM", "jsonb_array_elements": "use it in FROM",
    "json_array_elements_text": "use it in FROM", "jsonb_array_elements_text": "use it in FROM",
    "json_each": "use it in FROM", "jsonb_each": "use it in FROM",
    "currval": "write INSERT ... RETURNING id", "lastval": "write INSERT ... RETURNING id",
    "nextval": "BIGINT PRIMARY KEY counts by itself", "ifnull": "write COALESCE", "nvl": "write COALESCE",
    "group_concat": "write string_agg(value, ',')", "instr": "write strpos(text, part)",
    "strftime": "write to_char, date_trunc or EXTRACT", "datetime": "write value::timestamp",
    "julianday": "write EXTRACT(EPOCH FROM value)", "iif": "write CASE", "substring_index": "write split_part",
    "load_extension": "extensions are not loaded from SQL", "setseed": "pass random numbers as parameters",
    "rand": "write random()", "typeof": "write pg_typeof", "char": "write chr", "hex": "write to_hex",
    "json_extract": "write value -> 'key' or value ->> 'key'", "total": "write COALESCE(sum(value), 0)",
    "array_length": "keep lists in JSON: jsonb_array_length", "regexp_matches": "write regexp_substr",
    "current_setting": "there are no settings", "version": "print deeplake_loader.__version__",
}  # fmt: skip
"""Functions that are not here, and what to write."""


def fits(word: str, kind: str, *, implicit: bool) -> bool:
    """Whether an argument of this type fits the word."""
    if word == "any" or kind in WORDS[word]:
        return True
    return implicit and kind in IMPLICIT.get(word, ())


__all__ = [
    "AGGREGATES", "AGGREGATE_NAMES", "COLLECTORS", "FUNCTIONS", "HINTS", "METRICS", "MOMENTS", "NUMBERS", "ORDERED",
    "PREFERRED", "SCORE_OPERATORS", "VOLATILE", "WINDOWS", "Signature", "fits",
]  # fmt: skip
