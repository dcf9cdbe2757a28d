"""PostgreSQL text to tokens: strings, identifiers, operators, and the four spellings of a placeholder.

A placeholder is ``%s``, ``%(name)s``, ``:name``, ``?`` or ``$1``; look-alikes in strings and comments are left alone.
``?`` is PostgreSQL's JSON operator where an operand ends before it, else a placeholder. As in psycopg, ``%%`` stands
for one ``%`` (in literals too) when the statement has a ``%s`` or ``%(name)s``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple, NoReturn

from deeplake_loader.errors import InputError, SQLError, UnsupportedSQLError
from deeplake_loader.sql.plan import Style

MAX_STATEMENT = 64 << 20
"""Longest statement in characters; rows belong in parameters."""

TokenKind = Literal["word", "name", "string", "number", "operator", "parameter", "end"]


class Token(NamedTuple):
    """``text`` is the folded word, the name, the decoded string, the digits, the operator; ``source`` a parameter's."""

    kind: TokenKind
    text: str
    start: int
    stop: int
    source: int | str | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """One statement: its text, its tokens (the last has kind "end"), and how it takes parameters."""

    sql: str
    tokens: tuple[Token, ...]
    style: Style
    parameters: tuple[int | str, ...]
    percent: bool


_RESERVED_WORDS = """
    all analyse analyze and any array as asc asymmetric both case cast check collate column constraint create
    current_catalog current_date current_role current_time current_timestamp current_user default deferrable desc
    distinct do else end except false fetch for foreign from grant group having in initially intersect into lateral
    leading limit localtime localtimestamp not null offset on only or order placing primary references returning
    select session_user some symmetric system_user table then to trailing true union unique user using variadic when
    where window with
"""
RESERVED = frozenset(_RESERVED_WORDS.split())
"""Words that are no names in PostgreSQL."""

_HALF_RESERVED_WORDS = """
    authorization binary collation concurrently cross current_schema freeze full ilike inner is isnull join left
    like natural notnull outer overlaps right similar tablesample verbose
"""
HALF_RESERVED = frozenset(_HALF_RESERVED_WORDS.split())
"""Words that may name a function, but no column or table."""

_BEFORE_OPERAND = (RESERVED | HALF_RESERVED | {"between", "by", "values", "set", "row", "escape"}) - {
    "null", "true", "false", "default", "end", "current_date", "current_time", "current_timestamp", "localtime",
    "localtimestamp", "current_user",
}  # fmt: skip

_SPACE = re.compile(r"(?:\s+|--[^\n]*)+")
_WORD = re.compile(r"[A-Za-z_\u0080-\U0010ffff][\w$]*")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_NAME = re.compile(r'"((?:[^"]|"")*)"')
_STRING = re.compile(r"'((?:[^']|'')*)'")
_ESCAPED = re.compile(r"'((?:[^'\\]|\\.|'')*)'", re.DOTALL)
_DOLLAR = re.compile(r"\$((?:[A-Za-z_\u0080-\U0010ffff]\w*)?)\$")
_PERCENT = re.compile(r"%s(?![A-Za-z0-9_])|%\(([^()%]*)\)s")
_NAMED = re.compile(r":([A-Za-z_]\w*)")
_NUMBERED = re.compile(r"\$(\d+)")
_OPERATOR = re.compile(r"[-+*/<>=~!@#%^&|`?]+")
_STRAY_PERCENT = re.compile(r"%(?!%)")
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|x([0-9A-Fa-f]{1,2})|([0-7]{1,3})|(.))", re.DOTALL)
_UNICODE = re.compile(r"\\(?:([0-9A-Fa-f]{4})|\+([0-9A-Fa-f]{6})|(\\))")


def read(sql: str, *, native: bool = False) -> Reading:
    """The one statement in ``sql`` as tokens; ``native``: PostgreSQL itself reads it, so what only it knows (bit
    strings, names by code points) passes.

    Raises SQLError for text that is no SQL, for no statement or several, and for mixed placeholder styles.

    >>> [t.text for t in read("SELECT a FROM t WHERE b = %s").tokens if t.kind != "end"]
    ['select', 'a', 'from', 't', 'where', 'b', '=', '%s']
    """
    if len(sql) > MAX_STATEMENT:
        raise SQLError(f"the statement has {len(sql)} characters, more than {MAX_STATEMENT}; pass values as parameters")
    if "\0" in sql:
        raise SQLError("the statement holds a NUL character", sql=sql.replace("\0", " "), position=sql.index("\0"))
    scanner = _Scanner(sql, native)
    tokens = _one_statement(sql, _joined(sql, scanner.scan()))
    if scanner.percent:
        tokens = [_unescaped_percent(token) for token in tokens]
    style, parameters = _style(sql, tokens)
    return Reading(sql, tuple(tokens), style, parameters, scanner.percent)


def condition(where: str | None) -> str:
    """A caller's condition as the first part of a WHERE, on lines of its own, so that a comment ends with it.

    Raises InputError for what is none, or more than one.

    >>> condition("steps > 20 -- long ones") + "prompt IS NOT NULL"
    '(steps > 20 -- long ones\\n) AND prompt IS NOT NULL'
    """
    if where is None or where == "":
        return ""
    if not isinstance(where, str):
        raise InputError(f"where={where!r}: expected the text of an SQL condition")
    depth = 0
    for token in read(where).tokens if ")" in where else ():
        depth += (token.kind == "operator") * ((token.text == "(") - (token.text == ")"))
        if depth < 0:
            raise InputError(f"where={where!r} closes a parenthesis that it does not open; give one condition")
    return f"({where}\n) AND "


class _Scanner:
    def __init__(self, sql: str, native: bool) -> None:
        self.sql, self.at, self.tokens, self.native = sql, 0, list[Token](), native
        self.percent = False
        self.count = 0

    def scan(self) -> list[Token]:
        while True:
            self._skip()
            if self.at >= len(self.sql):
                self.tokens.append(Token("end", "", self.at, self.at))
                return self.tokens
            self._next()

    def fail(self, message: str, at: int | None = None) -> NoReturn:
        raise SQLError(message, sql=self.sql, position=self.at if at is None else at)

    def _skip(self) -> None:
        while True:
            if match := _SPACE.match(self.sql, self.at):
                self.at = match.end()
            if not self.sql.startswith("/*", self.at):
                return
            self._skip_comment()

    def _skip_comment(self) -> None:
        start, depth = self.at, 0
        for match in re.compile(r"/\*|\*/").finditer(self.sql, self.at):
            depth += 1 if match[0] == "/*" else -1
            if depth == 0:
                self.at = match.end()
                return
        self.fail("this comment is never closed", start)

    def _add(self, kind: TokenKind, text: str, stop: int, source: int | str | None = None) -> None:
        self.tokens.append(Token(kind, text, self.at, stop, source))
        self.at = stop

    def _next(self) -> None:
        sql, at = self.sql, self.at
        char = sql[at]
        if match := _WORD.match(sql, at):
            self._word(match)
        elif char.isdigit() or (char == "." and sql[at + 1 : at + 2].isdigit()):
            self._number()
        elif char == "'":
            self._string(at, _STRING)
        elif char == '"':
            self._quoted_name()
        elif char == "$":
            self._dollar()
        elif char == ":":
            self._colon()
        elif char in "(),;.[]":
            self._add("operator", char, at + 1)
        elif match := _OPERATOR.match(sql, at):
            self._operator(match[0])
        else:
            self.fail(f"unexpected character {char!r}")

    def _word(self, match: re.Match[str]) -> None:
        word, after = match[0], self.sql[match.end() : match.end() + 2]
        if after.startswith("'") and len(word) == 1 and word in "eEbBxXnN":
            return self._prefixed(word.lower(), match.end())
        if word in "uU" and after.startswith("&") and self.sql[match.end() + 1 : match.end() + 2] == "'":
            return self._prefixed("u", match.end() + 1)
        if word in "uU" and after == '&"' and self.native:
            return self._quoted_name(match.end() + 1)
        if word in "uU" and after == '&"':
            self.fail('U&"..." names are not read; write the name itself in double quotes')
        self._add("word", fold(word), match.end())

    def _prefixed(self, prefix: str, quote: int) -> None:
        if prefix in "bx" and not self.native:
            self.fail("bit strings are not supported; write a number, or bytes as a parameter")
        if prefix == "e":
            self._string(quote, _ESCAPED, _unescape)
        elif prefix == "u":
            self._string(quote, _STRING, _from_unicode)
        else:
            self._string(quote, _STRING)

    def _string(self, quote: int, pattern: re.Pattern[str], decode: object = None) -> None:
        match = pattern.match(self.sql, quote)
        if match is None:
            self.fail("this string is never closed", quote)
        text = match[1].replace("''", "'")
        if callable(decode):
            text = str(decode(text))
        if "\0" in text:
            self.fail("a string may not hold a NUL character")
        self._add("string", text, match.end())

    def _number(self) -> None:
        match = _NUMBER.match(self.sql, self.at)
        if match is None or _WORD.match(self.sql, match.end()):
            self.fail("this number runs into a word")
        self._add("number", match[0].replace("_", ""), match.end())

    def _quoted_name(self, quote: int | None = None) -> None:
        match = _NAME.match(self.sql, self.at if quote is None else quote)
        if match is None or not match[1]:
            self.fail("this quoted name is empty or never closed")
        self._add("name", match[1].replace('""', '"'), match.end())

    def _dollar(self) -> None:
        if match := _NUMBERED.match(self.sql, self.at):
            if not 1 <= int(match[1]) <= 32_766:
                self.fail("parameters are numbered from $1")
            return self._add("parameter", match[0], match.end(), int(match[1]) - 1)
        tag = _DOLLAR.match(self.sql, self.at)
        end = self.sql.find(tag[0], tag.end()) if tag else -1
        if tag is None or end < 0:
            self.fail("this dollar-quoted string is never closed")
        self._add("string", self.sql[tag.end() : end], end + len(tag[0]))

    def _colon(self) -> None:
        if self.sql.startswith("::", self.at):
            return self._add("operator", "::", self.at + 2)
        match = _NAMED.match(self.sql, self.at)
        if match is None:
            return self._add("operator", ":", self.at + 1)
        self._add("parameter", match[0], match.end(), match[1])

    def _operator(self, run: str) -> None:
        if match := _PERCENT.match(self.sql, self.at):
            return self._percent(match)
        if run[0] == "?" and not self._after_operand():
            self.count += 1
            return self._add("parameter", "?", self.at + 1, self.count - 1)
        self._add("operator", operator := self._longest(run), self.at + len(operator))

    def _percent(self, match: re.Match[str]) -> None:
        self.percent = True
        if match[1] is not None:
            return self._add("parameter", match[0], match.end(), match[1])
        self.count += 1
        self._add("parameter", match[0], match.end(), self.count - 1)

    def _longest(self, run: str) -> str:
        """As long as possible, but + or - ends an operator only beside one of ~ ! @ # % ^ & | ` ?, as in PostgreSQL."""
        for index in range(1, len(run)):
            rest = self.at + index
            if self.sql.startswith(("--", "/*"), rest) or _PERCENT.match(self.sql, rest):
                run = run[:index]
                break
            if run[index] == "?" and run[:index] != "@":
                run = run[:index]
                break
        while len(run) > 1 and run[-1] in "+-" and not re.search(r"[~!@#%^&|`?]", run):
            run = run[:-1]
        return run

    def _after_operand(self) -> bool:
        if not self.tokens:
            return False
        last = self.tokens[-1]
        if last.kind == "word":
            return last.text not in _BEFORE_OPERAND
        return last.kind != "operator" or last.text in (")", "]")


def fold(word: str) -> str:
    """An unquoted name as PostgreSQL reads it: ASCII letters in lower case.

    >>> fold("createdAt")
    'createdat'
    """
    return word.lower() if word.isascii() else "".join(c.lower() if c.isascii() else c for c in word)


def _unescape(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        for group, base in ((1, 16), (2, 16), (3, 16), (4, 8)):
            if match[group]:
                return chr(int(match[group], base))
        return _ESCAPES.get(match[5], match[5])

    return _ESCAPE.sub(one, text)


def _from_unicode(text: str) -> str:
    return _UNICODE.sub(lambda m: "\\" if m[3] else chr(int(m[1] or m[2], 16)), text)


def _joined(sql: str, tokens: list[Token]) -> list[Token]:
    """Strings with only a line break between them are one string, as the standard has it."""
    out: list[Token] = []
    for token in tokens:
        last = out[-1] if out else None
        if token.kind == "string" and last is not None and last.kind == "string":
            if "\n" not in sql[last.stop : token.start]:
                raise SQLError("two strings side by side; write || between them", sql=sql, position=token.start)
            out[-1] = Token("string", last.text + token.text, last.start, token.stop)
        else:
            out.append(token)
    return out


def _one_statement(sql: str, tokens: list[Token]) -> list[Token]:
    ends = [i for i, token in enumerate(tokens) if token.kind == "operator" and token.text == ";"]
    kept = [token for token in tokens[:-1] if not (token.kind == "operator" and token.text == ";")]
    if not kept:
        raise SQLError("there is no statement in this text", sql=sql)
    if ends and any(i > ends[0] and token.kind != "end" and token.text != ";" for i, token in enumerate(tokens)):
        raise UnsupportedSQLError(
            "two statements in one text; run them one by one, inside `with db.transaction():` to commit them together",
            sql=sql,
            position=tokens[ends[0] + 1].start,
        )
    return [*kept, tokens[-1]]


def _unescaped_percent(token: Token) -> Token:
    if token.kind not in ("string", "operator", "name") or "%%" not in token.text:
        return token
    return token._replace(text=token.text.replace("%%", "%"))


def _style(sql: str, tokens: list[Token]) -> tuple[Style, tuple[int | str, ...]]:
    found = [token for token in tokens if token.kind == "parameter"]
    spellings = {re.sub(r"[\w]+(?=\)|$)", "", token.text) if token.text != "%s" else "%s" for token in found}
    if len(spellings) > 1:
        raise SQLError(
            f"placeholders of several styles: {', '.join(sorted({t.text for t in found}))}; use one style",
            sql=sql,
            position=found[-1].start,
        )
    sources = list(dict.fromkeys(token.source for token in found if token.source is not None))
    if not sources:
        return "none", ()
    if isinstance(sources[0], str):
        return "named", tuple(sources)
    return "positional", tuple(range(1 + max(s for s in sources if isinstance(s, int))))
