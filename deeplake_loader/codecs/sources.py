"""Where the bytes of a value come from: buffers as they are, paths read as regular files under a size limit."""

from __future__ import annotations

import os
import stat
import sys
from typing import TYPE_CHECKING, Any, TypeGuard

from deeplake_loader.codecs.info import MAX_BLOB_BYTES
from deeplake_loader.errors import MediaError, NotFoundError, StoreError, TypeMismatchError

if TYPE_CHECKING:
    import numpy as np


def read_source(value: object, where: str, *, text_is_path: bool = True) -> bytes | None:
    """The bytes of a buffer or of the file that a path names; None where the value is neither (an array, an image).

    ``text_is_path``: whether a str names a file. Raises NotFoundError, StoreError, or MediaError for what is no regular
    file or is larger than MAX_BLOB_BYTES.
    """
    if isinstance(value, bytes):
        return _limited(value, where)
    if isinstance(value, (bytearray, memoryview)):
        return _limited(bytes(value), where)
    if isinstance(value, os.PathLike) or (text_is_path and isinstance(value, str)):
        return _read_file(os.fspath(value), where)
    return None


def _limited(data: bytes, where: str) -> bytes:
    if len(data) > MAX_BLOB_BYTES:
        raise MediaError(
            f"{where}: {len(data)} bytes are more than the limit of {MAX_BLOB_BYTES} per value; split the value"
        )
    return data


def _read_file(path: str | bytes, where: str) -> bytes:
    if isinstance(path, str) and "://" in path:
        raise MediaError(f"{where}: {path!r} is a URL; only local files are read here, so pass the bytes themselves")
    try:
        # O_NONBLOCK: opening a pipe must not wait for its other end
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(
            f"{where}: there is no file {path!r}; pass an existing path or the bytes themselves"
        ) from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{where}: cannot open {path!r}: {error}") from error
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise MediaError(f"{where}: {path!r} is not a regular file; pass the path of a file or its bytes")
        if facts.st_size > MAX_BLOB_BYTES:
            raise MediaError(f"{where}: {path!r} has {facts.st_size} bytes; the limit is {MAX_BLOB_BYTES} per value")
        with open(fd, "rb", closefd=False) as file:
            return _limited(file.read(MAX_BLOB_BYTES + 1), where)
    except OSError as error:
        raise StoreError(f"{where}: cannot read {path!r}: {error}") from error
    finally:
        os.close(fd)


def is_torch(value: object) -> bool:
    """Whether the value is a torch tensor, told without importing torch."""
    return _is_instance(value, "torch", "Tensor")


def is_numpy(value: object) -> TypeGuard[np.ndarray[Any, np.dtype[Any]]]:
    """Whether the value is a numpy array, told without importing numpy."""
    return _is_instance(value, "numpy", "ndarray")


def _is_instance(value: object, module: str, name: str) -> bool:
    kind = getattr(sys.modules.get(module), name, None)  # None as well while another thread is importing the module
    return kind is not None and isinstance(value, kind)


def to_array(value: object, where: str) -> np.ndarray[Any, np.dtype[Any]] | None:
    """A numpy or torch value as a numpy array (bfloat16 as its two raw bytes, dtype 'V2'); None for anything else."""
    if is_numpy(value):
        if hasattr(value, "mask") and value.mask.any():
            raise TypeMismatchError(f"{where}: a masked array has values that are missing; fill them, or store NULL")
        # numpy builds a dtype's name anew each time (20 us); only a foreign type like bfloat16 is of kind V
        return value.view("V2") if value.dtype.kind == "V" and value.dtype.name == "bfloat16" else value
    return _from_torch(value, where) if is_torch(value) else None


def _from_torch(value: Any, where: str) -> np.ndarray[Any, np.dtype[Any]]:
    import torch

    if value.is_meta:
        raise TypeMismatchError(f"{where}: a tensor on the device 'meta' has no data; pass one that has")
    if value.layout != torch.strided or value.is_quantized:
        raise TypeMismatchError(f"{where}: a {value.layout} tensor has no plain layout; pass value.to_dense()")
    plain = value.detach().cpu().resolve_conj().resolve_neg()
    if plain.dtype == torch.bfloat16:
        array: np.ndarray[Any, np.dtype[Any]] = plain.contiguous().view(torch.uint16).numpy().view("V2")
        return array
    try:
        array = plain.numpy()
    except TypeError as error:
        raise TypeMismatchError(
            f"{where}: tensors of {value.dtype} cannot be stored; convert to a numpy dtype"
        ) from error
    return array


def describe(value: object) -> str:
    """The value as an error shows it: its type, and dtype and shape where it has them; never its content."""
    kind = f"{type(value).__module__.partition('.')[0]}.{type(value).__qualname__}".removeprefix("builtins.")
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return kind if shape is None else f"{kind} of dtype {dtype}, shape {tuple(shape)}"
