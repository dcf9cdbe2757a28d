"""A position in a statement's tokens, the small matches every parser is made of, and the reader of type names."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, TypeVar

from deeplake_loader.errors import InputError, SQLError, UnsupportedSQLError
from deeplake_loader.sql import tree
from deeplake_loader.sql.reader import HALF_RESERVED, RESERVED, Reading, Token
from deeplake_loader.sql.tree import Name
from deeplake_loader.types import BLOBS, MAX_DIMENSION, ColumnType

SIMPLE_TYPES = {
    "text": "TEXT", "varchar": "TEXT", "smallint": "SMALLINT", "int2": "SMALLINT", "integer": "INTEGER",
    "int": "INTEGER", "int4": "INTEGER", "bigint": "BIGINT", "int8": "BIGINT", "real": "REAL", "float4": "REAL",
    "float8": "DOUBLE", "double": "DOUBLE", "numeric": "NUMERIC", "decimal": "NUMERIC", "dec": "NUMERIC",
    "boolean": "BOOLEAN", "bool": "BOOLEAN", "timestamp": "TIMESTAMP", "timestamptz": "TIMESTAMPTZ",
    "date": "DATE", "time": "TIME", "interval": "INTERVAL", "json": "JSON", "jsonb": "JSON", "uuid": "UUID",
    "bytea": "BYTEA", "float": "DOUBLE", "vector": "VECTOR", "halfvec": "VECTOR",
}  # fmt: skip
SERIALS = {"serial": "INTEGER", "serial4": "INTEGER", "bigserial": "BIGINT", "serial8": "BIGINT",
           "smallserial": "SMALLINT", "serial2": "SMALLINT"}  # fmt: skip
KNOWN_TYPES = (
    "TEXT, INTEGER, BIGINT, REAL, DOUBLE PRECISION, NUMERIC, BOOLEAN, TIMESTAMP, TIMESTAMPTZ, DATE, TIME, JSON, UUID, "
    f"BYTEA, VECTOR(n), {', '.join(BLOBS)}"
)
NO_NAMES = RESERVED | HALF_RESERVED

T = TypeVar("T")


class Cursor:
    """A position in the tokens, and the small matches everything else is made of."""

    def __init__(self, reading: Reading) -> None:
        self.reading, self.tokens, self.at, self.depth = reading, reading.tokens, 0, 0

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    def peek(self, ahead: int = 1) -> Token:
        return self.tokens[min(self.at + ahead, len(self.tokens) - 1)]

    def fail(self, message: str, pos: int | None = None) -> NoReturn:
        raise SQLError(message, sql=self.reading.sql, position=self.token.start if pos is None else pos)

    def refuse(self, message: str, pos: int | None = None) -> NoReturn:
        raise UnsupportedSQLError(message, sql=self.reading.sql, position=self.token.start if pos is None else pos)

    def next(self) -> Token:
        token = self.tokens[self.at]
        self.at = min(self.at + 1, len(self.tokens) - 1)
        return token

    def is_word(self, *words: str) -> bool:
        token = self.token
        return token.kind == "word" and token.text in words

    def is_operator(self, *operators: str) -> bool:
        token = self.token
        return token.kind == "operator" and token.text in operators

    def words(self, *words: str) -> bool:
        """Takes these words if they come next, all of them."""
        for ahead, word in enumerate(words):
            token = self.peek(ahead)
            if token.kind != "word" or token.text != word:
                return False
        self.at += len(words)
        return True

    def operator(self, text: str) -> bool:
        if self.is_operator(text):
            self.at += 1
            return True
        return False

    def expect(self, text: str) -> Token:
        """The next token, which must be this word or operator."""
        token = self.token
        if token.kind not in ("word", "operator") or token.text != text:
            self.fail(f"expected {text.upper()}, found {self.found()}")
        return self.next()

    def found(self) -> str:
        token = self.token
        return "the end of the statement" if token.kind == "end" else repr(self.reading.sql[token.start : token.stop])

    def name(self, what: str = "a name", *, label: bool = False) -> Name:
        token = self.token
        if token.kind == "name":
            return self._name(self.next())
        if token.kind == "word" and (label or token.text not in NO_NAMES):
            return self._name(self.next())
        self.fail(f"expected {what}, found {self.found()}")

    def _name(self, token: Token) -> Name:
        return Name(token.text, token.kind == "name", token.start)

    def listed(self, one: Callable[[], T]) -> tuple[T, ...]:
        items = [one()]
        while self.operator(","):
            items.append(one())
        return tuple(items)

    def parenthesised(self, one: Callable[[], T]) -> T:
        self.expect("(")
        found = one()
        self.expect(")")
        return found

    def integer(self, what: str) -> int:
        token = self.next()
        if token.kind != "number" or not token.text.isdigit():
            self.fail(f"expected {what} as a whole number", token.start)
        return int(token.text)


class TypeParser(Cursor):
    """Reads a type as SQL spells it."""

    def type_name(self) -> tree.TypeName:
        """A type as SQL spells it, ours (VECTOR, TENSOR, IMAGE ...) included."""
        token = self.next()
        if token.kind not in ("word", "name"):
            self.fail("expected a type", token.start)
        if token.text == "pg_catalog" and self.operator("."):
            token = self.next()
        try:
            found = self._type(token)
        except InputError as error:
            if isinstance(error, SQLError):
                raise
            raise SQLError(str(error), sql=self.reading.sql, position=token.start) from None
        return self._array_suffix(found)

    def _array_suffix(self, found: tree.TypeName) -> tree.TypeName:
        array = self.words("array")
        while self.operator("["):
            self.expect("]")
            array = True
        return tree.TypeName(found.type, found.pos, found.length, found.serial, array)

    def _type(self, token: Token) -> tree.TypeName:
        word = token.text
        if word.upper() in BLOBS:
            return tree.TypeName(self._parsed_type(token), token.start)
        if word in SERIALS:
            return tree.TypeName(ColumnType(SERIALS[word]), token.start, serial=True)
        if word in ("character", "char", "nchar", "bpchar"):
            return self._character(token)
        if word not in SIMPLE_TYPES:
            self.refuse(f"there is no type {word.upper()} here; known are {KNOWN_TYPES}", token.start)
        name = SIMPLE_TYPES[word]
        if name == "VECTOR":
            return self._vector(token)
        if word == "double":
            self.words("precision")
        if name in ("TIMESTAMP", "TIME", "TIMESTAMPTZ", "INTERVAL"):
            return self._temporal(name, token)
        length = self._arguments(1)[0] if word in ("varchar", "float") and self.is_operator("(") else None
        if word == "float" and length is not None:
            return tree.TypeName(ColumnType("REAL" if length <= 24 else "DOUBLE"), token.start)
        if name == "NUMERIC":
            return tree.TypeName(self._numeric(), token.start)
        return tree.TypeName(ColumnType(name), token.start, length)

    def _vector(self, token: Token) -> tree.TypeName:
        if not self.is_operator("("):  # a cast of a literal: the dimension is the other side's business
            return tree.TypeName(ColumnType("VECTOR", "float32", (MAX_DIMENSION,)), token.start, length=0)
        kind = self._parsed_type(token)
        kind = ColumnType("VECTOR", "float16", kind.shape) if token.text == "halfvec" else kind
        return tree.TypeName(kind, token.start)

    def _character(self, token: Token) -> tree.TypeName:
        if token.text == "character" and self.words("varying"):
            length = self._arguments(1)[0] if self.is_operator("(") else None
            return tree.TypeName(ColumnType("TEXT"), token.start, length)
        self.refuse("CHAR(n) pads with spaces and is not supported; write VARCHAR(n) or TEXT", token.start)

    def _temporal(self, name: str, token: Token) -> tree.TypeName:
        if self.is_operator("(") and self._arguments(1)[0] != 6:
            self.refuse(f"{token.text.upper()} keeps microseconds; leave the precision away", token.start)
        if name == "TIMESTAMP" and self.words("with", "time", "zone"):
            name = "TIMESTAMPTZ"
        elif name == "TIME" and self.is_word("with") and self.peek().text == "time":
            self.refuse("TIME WITH TIME ZONE is not supported; use TIMESTAMPTZ", token.start)
        else:
            self.words("without", "time", "zone")
        return tree.TypeName(ColumnType(name), token.start)

    def _numeric(self) -> ColumnType:
        if not self.is_operator("("):
            return ColumnType("NUMERIC")
        pos = self.token.start
        numbers = self._arguments(2)
        precision, scale = numbers[0], numbers[1] if len(numbers) == 2 else 0
        if not 1 <= precision <= 15 or not 0 <= scale <= precision:
            self.refuse(f"NUMERIC({precision}, {scale}): at most 15 digits are kept exactly here", pos)
        return ColumnType("NUMERIC", options=(("precision", precision), ("scale", scale)))

    def _arguments(self, most: int) -> tuple[int, ...]:
        numbers = self.parenthesised(lambda: self.listed(lambda: self.integer("a length")))
        if len(numbers) > most:
            self.fail("too many numbers in the type's parentheses")
        return numbers

    def _parsed_type(self, token: Token) -> ColumnType:
        """One of our own types, by the text up to its closing parenthesis."""
        stop = token.stop
        if self.is_operator("("):
            while not self.is_operator(")"):
                if self.next().kind == "end":
                    self.fail("this type is never closed", token.start)
            stop = self.next().stop
        text = self.reading.sql[token.start : stop]
        return ColumnType.parse(text.lower().replace("halfvec", "vector", 1) if token.text == "halfvec" else text)
