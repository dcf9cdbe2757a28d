"""Values of blob and vector columns to bytes and back: what is stored, and the facts measured from it at insert.

Nothing heavy is imported here, because a query's vector is part of the cold start: each medium's module comes with its
first value, and with it numpy, Pillow, PyAV or simplejpeg.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Literal

from deeplake_loader.codecs.info import MAX_BLOB_BYTES, MAX_PIXELS, BadMedia, Encoded, MediaInfo
from deeplake_loader.codecs.sources import describe, read_source
from deeplake_loader.codecs.tensors import decode_tensor, encode_tensor, tensor_to_torch
from deeplake_loader.codecs.vectors import encode_vector, encode_vectors
from deeplake_loader.errors import InputError, MediaError, TypeMismatchError
from deeplake_loader.types import ColumnType

__all__ = [
    "MAX_BLOB_BYTES",
    "MAX_PIXELS",
    "Encoded",
    "MediaInfo",
    "Validate",
    "check_options",
    "decode_tensor",
    "encode",
    "encode_many",
    "encode_vector",
    "encode_vectors",
    "tensor_to_torch",
]

Validate = Literal["structure", "decode", "none"]


def encode(type: ColumnType, value: object, *, validate: Validate = "structure", where: str) -> Encoded:
    """The value as a blob column stores it, with its facts.

    ``value``: a file's bytes (bytes, bytearray, memoryview) or its path (str, PathLike; a BLOB column takes no str),
    kept byte for byte; a Pillow image or uint8 array for IMAGE; uint8 frames (T, H, W, 3) or a list of frames for
    VIDEO; float32 or int16 samples for AUDIO; a numpy array or torch tensor for TENSOR. ``validate``: "structure"
    reads headers and end markers, demuxes every packet and decodes a video's first frame; "decode" decodes
    everything; "none" looks at the first bytes only. ``where`` names the column and row in errors.

    Raises TypeMismatchError, MediaError (bytes that are no such media), DimensionError, NotFoundError and StoreError
    (path).

    >>> encode(ColumnType("BLOB"), b"abc", where="column 'b' of 't', row 0").extension
    'bin'
    """
    if type.name == "IMAGE":
        from deeplake_loader.codecs.images import encode_image

        return encode_image(type, value, where, validate=validate)
    if type.name == "TENSOR":
        return encode_tensor(type, value, where, check=validate != "none")
    if type.name == "VIDEO":
        from deeplake_loader.codecs.encoding import encode_frames
        from deeplake_loader.codecs.video import inspect_video

        return _encode_file(type, value, where, validate, encode_frames, inspect_video)
    if type.name == "AUDIO":
        from deeplake_loader.codecs.audio import encode_samples, inspect_audio

        return _encode_file(type, value, where, validate, encode_samples, inspect_audio)
    if type.name == "BLOB":
        return _encode_blob(type, value, where)
    raise InputError(f"{where}: {type} is not a blob column")


def check_options(type: ColumnType, where: str) -> None:
    """Nothing, where values can be encoded by the options of a column's type.

    Raises InputError, saying which can be had: when a table is made, and not when its first array comes.

    >>> check_options(ColumnType.parse("VIDEO(codec='vp9', crf=30)"), "column 'clip'")
    """
    if not type.options or not type.is_blob:
        return
    if type.name == "IMAGE":
        from deeplake_loader.codecs.images import check_options as check
    elif type.name == "VIDEO":
        from deeplake_loader.codecs.encoding import check_options as check
    elif type.name == "AUDIO":
        from deeplake_loader.codecs.audio import check_options as check
    else:
        raise InputError(f"{where}: {type.name} has no options, got {type}")
    check(type, where)


def _encode_blob(type: ColumnType, value: object, where: str) -> Encoded:
    data = read_source(value, where, text_is_path=False)
    if data is None:
        raise TypeMismatchError(
            f"{where} expects {type}, got {describe(value)}; pass bytes, or pathlib.Path(...) to store a file"
        )
    return Encoded(data, "bin", MediaInfo("bytes"))


def _encode_file(
    type: ColumnType,
    value: object,
    where: str,
    validate: Validate,
    encode_array: Callable[[ColumnType, object, str], tuple[bytes, str]],
    inspect: Callable[..., MediaInfo],
) -> Encoded:
    from deeplake_loader.codecs.containers import sniff_container

    data = read_source(value, where)
    if data is None:
        data, extension = encode_array(type, value, where)
        validate = "structure"  # facts of what we wrote ourselves are measured too
    else:
        format = sniff_container(data)
        if format is None:
            raise MediaError(f"{where} expects {type}, got {len(data)} bytes of no known {type.name.lower()} format")
        extension = format.extension
    if validate == "none":
        return Encoded(data, extension, MediaInfo("video" if type.name == "VIDEO" else "audio"))
    try:
        return Encoded(data, extension, inspect(data, decode_all=validate == "decode"))
    except BadMedia as error:
        raise MediaError(
            f"{where} expects {type}, got {len(data)} bytes ({extension}) that no {type.name.lower()} "
            f"can be read from: {error}"
        ) from error


def encode_many(
    type: ColumnType,
    values: Sequence[object],
    *,
    validate: Validate = "structure",
    where: str,
    threads: int | None = None,
    first_row: int = 0,
) -> list[Encoded | None]:
    """``encode`` of every value, None kept as None, on ``threads`` threads (default: one per core) where that pays:
    decoding and encoding let go of Python's lock, header walks do not.

    The error of the first bad row is raised, its row counted from ``first_row``.
    """
    from concurrent.futures import ThreadPoolExecutor

    def one(item: tuple[int, object]) -> Encoded | None:
        row, value = item
        return (
            None if value is None else encode(type, value, validate=validate, where=f"{where}, row {first_row + row}")
        )

    if all(value is None for value in values):  # every one has its address already
        return [None] * len(values)
    threads = threads or _cores()
    if threads == 1 or len(values) < 2 or not _is_parallel(type, values, validate):
        return [one(item) for item in enumerate(values)]
    with ThreadPoolExecutor(min(threads, len(values)), thread_name_prefix="deeplake-encode") as pool:
        try:
            return list(pool.map(one, enumerate(values)))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_parallel(type: ColumnType, values: Sequence[object], validate: Validate) -> bool:
    if type.name in ("VIDEO", "AUDIO"):
        return validate != "none"
    return type.name == "IMAGE" and (
        validate == "decode" or not isinstance(values[0], (bytes, bytearray, memoryview, str))
    )
