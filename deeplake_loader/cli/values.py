"""How values are shown: short in a table, whole for a program, parameters as they are typed."""

from __future__ import annotations

import datetime as dt
import decimal
import io
import json
import math
import re
import uuid
from pathlib import Path
from typing import Any

from deeplake_loader.errors import InputError, NotFoundError, StoreError
from deeplake_loader.rows import Blob, Vector

NULL = "NULL"
_SHOWN = 3  # numbers of a vector
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What could move a terminal's cursor, change its colours, or turn its text around."""


def cell(value: Any) -> str:
    """One line for a person: a vector's first numbers, a blob's facts.

    >>> cell("two\\nlines"), cell(None), cell(True)
    ('two\\\\nlines', 'NULL', 'true')
    """
    if value is None:
        return NULL
    if isinstance(value, Vector):
        return vector_text(value)
    if isinstance(value, Blob):
        return repr(value).strip("<>")
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        return f"\\x{data[:16].hex()}{'…' if len(data) > 16 else ''}"
    return printable(text_of(value))


def vector_text(vector: Vector) -> str:
    """The first numbers of a vector, and how many there are."""
    numbers = vector.tolist()
    shown = ", ".join(f"{n:.4g}" for n in numbers[:_SHOWN])
    return f"[{shown}{', …' if len(numbers) > _SHOWN else ''}] {len(numbers)}"


def printable(text: str) -> str:
    """The text with control characters escaped, so that data cannot drive the terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def text_of(value: Any) -> str:
    """The whole value as text, as CSV has it: JSON for documents and vectors, URL and key of a blob, hex for bytes."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"\\x{bytes(value).hex()}"
    if isinstance(value, Blob):
        return f"{value.url}#{value.key}"
    if isinstance(value, Vector | list | dict | tuple):
        return json.dumps(plain(value), ensure_ascii=False, separators=(",", ":"))
    return str(value)


def plain(value: Any) -> Any:
    """The value as JSON has it: a vector as numbers, a blob as where it lies and what it is, NaN as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Vector):
        return [plain(number) for number in value.tolist()]
    if isinstance(value, Blob):
        return _place(value)
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, decimal.Decimal | dt.datetime | dt.date | dt.time | dt.timedelta | uuid.UUID):
        return str(value)
    return text_of(value)


def _place(blob: Blob) -> dict[str, Any]:
    info = blob.info
    names = ("codec", "width", "height", "num_frames", "fps", "duration", "sample_rate", "channels", "dtype", "shape")
    facts = {name: plain(found) for name in names if (found := getattr(info, name)) is not None}
    return {"url": blob.url, "key": blob.key, "media": info.media, "bytes": info.nbytes, **facts}


def dumps(value: Any, *, indent: int | None = None) -> str:
    """JSON of whatever `plain` knows; text stays readable, half of a surrogate pair is escaped."""
    text = json.dumps(plain(value), ensure_ascii=False, indent=indent, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(plain(value), indent=indent, allow_nan=False)
    return text


def parameter(text: str) -> tuple[str, Any]:
    """(name, value) of ``name=value``: JSON where it is JSON (numbers, true, null, lists, "text"), ``@file`` the bytes
    of a file or the array of a ``.npy``, else the text itself.

    >>> parameter("steps=25"), parameter("prompt=a red fox"), parameter('code="25"')
    (('steps', 25), ('prompt', 'a red fox'), ('code', '25'))
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"the parameter {text!r} is no name=value; write for example -p steps=25")
    if value.startswith("@"):
        return name, file_value(value[1:])
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def read_file(path: str) -> bytes:
    """A file's bytes.

    Raises:
        NotFoundError: no such file. StoreError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}; check the path") from error
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path}: {error}; check the path and its permissions") from error


def file_value(path: str) -> Any:
    """The array of a ``.npy`` file, the bytes of any other.

    Raises:
        NotFoundError: no such file. StoreError: it cannot be read. InputError: no array of numbers.
    """
    data = read_file(path)
    if not path.endswith(".npy"):
        return data
    import numpy as np

    try:
        found = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path} is no .npy of numbers: {error}") from error
    if found.dtype.kind not in "fiub":
        raise InputError(f"{path} holds {found.dtype} of shape {found.shape}; expected numbers")
    return found
