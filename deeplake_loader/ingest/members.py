"""What the members of a WebDataset sample are: the key and column in a name, the type of its content, its value.

A name is ``<key>.<extension>``, split at the first dot behind the last slash, as webdataset does. Nothing here runs
what it reads: pickles, archives of arrays and unknown formats stay bytes.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections.abc import Iterator
from typing import Any

from deeplake_loader.codecs import decode_tensor
from deeplake_loader.codecs.headers import sniff_image
from deeplake_loader.errors import CorruptionError
from deeplake_loader.ingest.inference import kind_of
from deeplake_loader.types import ColumnType

IMAGES = frozenset(("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "jp2", "avif"))
VIDEOS = frozenset(("mp4", "webm", "mkv", "mov", "avi", "m4v", "mpg", "mpeg", "3gp", "flv", "wmv", "m2v"))
AUDIO = frozenset(("wav", "flac", "mp3", "ogg", "opus", "m4a", "aac", "aif", "aiff"))
WHOLE_NUMBERS = frozenset(("cls", "cls2", "class", "count", "index", "inx", "id"))
DOCUMENTS = frozenset(("json", "jsn"))
TEXTS = frozenset(
    ("txt", "text", "caption", "transcript", "csv", "tsv", "xml", "html", "yaml", "yml", "md", "srt", "vtt")
)
MAX_TEXT = 64 << 20
"""The longest member that becomes a scalar; a longer one, and a compressed one that swells beyond it, is refused."""

_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)\Z", re.DOTALL)
_INTEGER = re.compile(r"\s*([+-]?\d{1,4000})\s*\Z")


def split_name(name: str) -> tuple[str, str] | None:
    """(key, extension in lower case) of a member; None for one that belongs to no sample.

    >>> split_name("train/000.seg.png"), split_name("README")
    (('train/000', 'seg.png'), None)
    """
    match = _NAME.match(name)
    return None if match is None else (match[1], match[2].lower())


def media_type(extension: str) -> ColumnType | None:
    """The blob type that a file's extension stands for; None where it stands for none."""
    last = extension.rpartition(".")[2].lower()
    for names, kind in ((IMAGES, "IMAGE"), (VIDEOS, "VIDEO"), (AUDIO, "AUDIO")):
        if last in names:
            return ColumnType(kind)
    return None


def is_scalar_extension(extension: str) -> bool:
    """Whether such members are read and become scalar columns."""
    plain = extension.removesuffix(".gz").rpartition(".")[2]
    return plain in WHOLE_NUMBERS or plain in DOCUMENTS or plain in TEXTS


def is_text_extension(extension: str) -> bool:
    """Whether such a member is a text that becomes one value as it stands."""
    return extension.rpartition(".")[2] in TEXTS


def is_document_extension(extension: str) -> bool:
    """Whether such a member is a JSON document."""
    return extension.removesuffix(".gz").rpartition(".")[2] in DOCUMENTS


def observe(extension: str, data: bytes) -> Iterator[tuple[str, ColumnType | None]]:
    """(field, type) of a member: one, or one per entry of a JSON object; None for a text that cannot be read, which
    says nothing of the others."""
    if is_scalar_extension(extension):
        try:
            yield from ((field, kind_of(value)) for field, value in values(extension, data))
        except ValueError:
            yield extension, None
    elif extension.rpartition(".")[2] == "npy":
        yield extension, _array_type(data)
    else:
        yield extension, media_type(extension) if _is_media(extension, data) else ColumnType("BLOB")


def values(extension: str, data: bytes) -> list[tuple[str, Any]]:
    """(field, value) of a member that becomes scalars: its text, or its number where it is one by its extension, or the
    entries of its JSON object, each as ``<extension>.<entry>``, and the whole object under the extension itself.

    Raises:
        ValueError: it is not what its extension says.
    """
    if len(data) > MAX_TEXT:
        raise ValueError(f"holds {len(data)} bytes, a text at most {MAX_TEXT}")
    plain = extension.removesuffix(".gz")
    text = (data if plain == extension else _inflate(data)).decode()
    last = plain.rpartition(".")[2]
    if last in WHOLE_NUMBERS:
        match = _INTEGER.match(text)
        return [(extension, text if match is None else int(match[1]))]
    if last not in DOCUMENTS:
        return [(extension, text)]
    document = read_json(text)
    if not isinstance(document, dict):
        return [(extension, document)]
    return [(extension, document), *((f"{extension}.{name}", value) for name, value in document.items())]


def read_json(text: str) -> Any:
    """The document; NaN and the infinities, which JSON lacks, are NULL.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except RecursionError:
        raise ValueError("is JSON nested too deeply to be read") from None


def bytes_of(text: str) -> bytes | str:
    """The bytes that a text of JSON stands for in a BYTEA column, in base64; what is none stays as it is, and is
    refused where it is stored.

    >>> bytes_of("AAE="), bytes_of("no bytes")
    (b'\\x00\\x01', 'no bytes')
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return text


def vector(data: bytes) -> Any:
    """The array of a .npy member.

    Raises:
        ValueError: it is none of plain numbers; pickled objects are never read.
    """
    try:
        return decode_tensor(data)
    except CorruptionError as error:
        raise ValueError(f"is no array of plain numbers: {error}") from None


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj(wbits=31)
    try:
        found = inflater.decompress(data, MAX_TEXT)
    except zlib.error as error:
        raise ValueError(f"is no gzip file: {error}") from None
    if inflater.unconsumed_tail or not inflater.eof:
        raise ValueError(f"is cut, or unpacks to more than {MAX_TEXT} bytes")
    return found


def _array_type(data: bytes) -> ColumnType:
    try:
        array = vector(data)
    except ValueError:
        return ColumnType("BLOB")
    return array_type(array)


def array_type(array: Any) -> ColumnType:
    """VECTOR for one axis of float32 or float16, TENSOR for anything else."""
    dtype = "bfloat16" if array.dtype.kind == "V" else array.dtype.name
    if array.ndim == 1 and dtype in ("float32", "float16") and 1 <= len(array) <= 65_536:
        return ColumnType("VECTOR", dtype, (len(array),))
    return ColumnType("TENSOR", dtype, tuple(array.shape) or None)


def _is_media(extension: str, data: bytes) -> bool:
    """Whether the bytes begin as some file of the extension's medium; a wrong one would be refused as media."""
    kind = media_type(extension)
    if kind is None:
        return False
    if kind.name == "IMAGE":
        return sniff_image(data) is not None
    from deeplake_loader.codecs.containers import sniff_container

    return sniff_container(data) is not None
