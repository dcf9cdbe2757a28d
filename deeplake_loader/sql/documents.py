"""JSON on text: PostgreSQL's jsonb operators, and jsonb's own way of writing a document."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Sequence

from deeplake_loader.errors import SQLError

Document = object


class Number(str):
    """A number as it is written in the document, so that 1.50 stays 1.50."""

    __slots__ = ()


def load(text: object) -> Document:
    """The document, its fractions as Number."""
    try:
        return json.loads(text, parse_float=Number)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        raise SQLError(f"{_short(text)} is no JSON") from None


def compact(document: Document) -> str:
    """The catalog's form: no spaces."""
    return _write(document, ",", ":", lambda keys: keys)


def show(document: Document) -> str:
    """jsonb's text: a space behind , and :, keys by length, then bytes."""
    return _write(document, ", ", ": ", lambda keys: sorted(keys, key=lambda key: (len(key.encode()), key.encode())))


def _write(document: Document, comma: str, colon: str, order: Callable[[Sequence[str]], Sequence[str]]) -> str:
    if isinstance(document, Number):
        return _plain_number(document)
    if isinstance(document, dict):
        members = (f"{json.dumps(k, ensure_ascii=False)}{colon}{_write(document[k], comma, colon, order)}"
                   for k in order(list(document)))  # fmt: skip
        return "{" + comma.join(members) + "}"
    if isinstance(document, list):
        return "[" + comma.join(_write(item, comma, colon, order) for item in document) + "]"
    return json.dumps(document, ensure_ascii=False)


def _plain_number(number: Number) -> str:
    """jsonb writes numbers without an exponent."""
    if "e" not in number.lower():
        return str(number)
    from decimal import Decimal

    return format(Decimal(number), "f")


def _short(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def text_of(document: Document) -> str | None:
    """->>: a string's own text, NULL for null, jsonb's text for the rest."""
    if document is None:
        return None
    return document if isinstance(document, str) and not isinstance(document, Number) else show(document)


MISSING = object()


def _get(document: Document, key: object) -> Document:
    if isinstance(key, int) and isinstance(document, list):
        return document[key] if -len(document) <= key < len(document) else MISSING
    if isinstance(key, str) and isinstance(document, dict):
        return document.get(key, MISSING)
    return MISSING


def get(text: str, key: object) -> str | None:
    """text -> key, as compact JSON."""
    found = _get(load(text), key)
    return None if found is MISSING else compact(found)


def get_text(text: str, key: object) -> str | None:
    """text ->> key."""
    found = _get(load(text), key)
    return None if found is MISSING else text_of(found)


def _walk(document: Document, path: str) -> Document:
    for part in json.loads(path):
        key: object = part
        if isinstance(document, list):
            if not part.lstrip("-").isdigit():
                return MISSING
            key = int(part)
        document = _get(document, key)
        if document is MISSING:
            return MISSING
    return document


def path(text: str, parts: str) -> str | None:
    """text #> path."""
    found = _walk(load(text), parts)
    return None if found is MISSING else compact(found)


def path_text(text: str, parts: str) -> str | None:
    """text #>> path."""
    found = _walk(load(text), parts)
    return None if found is MISSING else text_of(found)


def contains(text: str, part: str) -> int:
    """text @> part."""
    return int(_contains(_loose(text), _loose(part), top=True))


def _loose(text: str) -> Document:
    from decimal import Decimal

    try:
        return json.loads(text, parse_float=Decimal)
    except (ValueError, TypeError):
        raise SQLError(f"{_short(text)} is no JSON") from None


def _contains(whole: Document, part: Document, *, top: bool = False) -> bool:
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(k in whole and _contains(whole[k], v) for k, v in part.items())
    if isinstance(part, list):
        return isinstance(whole, list) and all(any(_contains(item, wanted) for item in whole) for wanted in part)
    if isinstance(whole, list):
        return top and any(_same(item, part) for item in whole)
    return _same(whole, part)


def _same(a: Document, b: Document) -> bool:
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def has(text: str, key: str) -> int:
    """text ? key: a top-level key, or a string in an array."""
    document = load(text)
    if isinstance(document, list):
        return int(any(isinstance(item, str) and not isinstance(item, Number) and item == key for item in document))
    return int(key in document if isinstance(document, dict) else document == key)


def has_any(text: str, keys: str) -> int:
    return int(any(has(text, key) for key in json.loads(keys)))


def has_all(text: str, keys: str) -> int:
    return int(all(has(text, key) for key in json.loads(keys)))


def kind(text: str) -> str:
    """jsonb_typeof."""
    document = load(text)
    if document is None:
        return "null"
    if isinstance(document, bool):
        return "boolean"
    if isinstance(document, int | Number):
        return "number"
    if isinstance(document, str):
        return "string"
    return "object" if isinstance(document, dict) else "array"


def length(text: str) -> int:
    """jsonb_array_length."""
    return len(_array(text))


def _array(text: str) -> list[Document]:
    document = load(text)
    if not isinstance(document, list):
        raise SQLError(f"{_short(text)} is no JSON array")
    return document


def items(text: str) -> str:
    """The elements, each as JSON text, in one array for json_each."""
    return json.dumps([compact(item) for item in _array(text)], ensure_ascii=False)


def item_texts(text: str) -> str:
    return json.dumps([text_of(item) for item in _array(text)], ensure_ascii=False)


def keys(text: str) -> str:
    document = load(text)
    if not isinstance(document, dict):
        raise SQLError(f"{_short(text)} is no JSON object")
    return json.dumps(sorted(document, key=lambda key: (len(key.encode()), key.encode())), ensure_ascii=False)


def pretty(text: str) -> str:
    return json.dumps(json.loads(show(load(text))), ensure_ascii=False, indent=4)


def number(text: str) -> int | float:
    """A JSON number for a cast."""
    document = load(text)
    if isinstance(document, bool) or not isinstance(document, int | Number):
        raise SQLError(f"cannot cast the JSON value {_short(text)} to a number")
    return document if isinstance(document, int) else float(document)


def boolean(text: str) -> int:
    document = load(text)
    if not isinstance(document, bool):
        raise SQLError(f"cannot cast the JSON value {_short(text)} to BOOLEAN")
    return int(document)


def member(type_name: str, value: object) -> Document:
    """A SQL value inside a document that is being built."""
    if value is None:
        return None
    if type_name == "JSON":
        return load(value)
    if type_name == "BOOLEAN":
        return bool(value)
    if type_name in ("TIMESTAMP", "TIMESTAMPTZ"):
        moment = dt.datetime.fromisoformat(str(value))
        return moment.isoformat()
    if isinstance(value, float):
        return Number(repr(value).removesuffix(".0"))
    if isinstance(value, bytes):
        raise SQLError("bytes have no form in JSON")
    return value


def object_of(*pairs: object) -> str:
    """json_build_object over type, value, type, value ..."""
    out: dict[str, Document] = {}
    for i in range(0, len(pairs), 4):
        _, key, type_name, value = pairs[i : i + 4]
        if key is None:
            raise SQLError("a key of a JSON object cannot be NULL")
        out[str(key)] = member(str(type_name), value)
    return compact(out)


def array_of(*pairs: object) -> str:
    return compact([member(str(pairs[i]), pairs[i + 1]) for i in range(0, len(pairs), 2)])


def of(type_name: str, value: object) -> str | None:
    return None if value is None else compact(member(type_name, value))
