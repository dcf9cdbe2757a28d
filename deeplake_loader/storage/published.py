"""A published store as its readers find it: the pointer, and the snapshot that it names, fetched once into the cache.

The pointer is read anew by every `connect`; a snapshot is fetched when its sha256 is not in the cache yet, and verified
whenever it is opened. Nothing of it is trusted: the pointer's fields are checked, a snapshot may name files below the
published url and adopted remote ones, never one of this machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, dataclass

from deeplake_loader import store
from deeplake_loader.errors import CorruptionError, NotFoundError, StoreError
from deeplake_loader.storage import Access, is_remote
from deeplake_loader.storage.cache import Limits
from deeplake_loader.storage.mirror import Mirror
from deeplake_loader.storage.objects import Local, Objects
from deeplake_loader.store import POINTER

FOLDER = "published"

_FORMAT = 1
_SNAPSHOT = re.compile(rf"{FOLDER}/[0-9a-f-]{{1,64}}\.sqlite\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_MAX_SIZE = 1 << 40
_MAX_POINTER = 1 << 16
_STEP = 8 << 20
_UNUSED_S = 7 * 86_400.0  # snapshots of older versions that nobody opened for so long are removed


@dataclass(frozen=True, slots=True)
class Pointer:
    """The published version: its ``snapshot`` with ``size`` and ``sha256``, and the id of the ``commit`` it shows."""

    version: int
    snapshot: str
    size: int
    sha256: str
    commit: str

    def to_json(self) -> bytes:
        return json.dumps({"format": _FORMAT, **asdict(self)}).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Pointer:
        """The pointer of ``to_json``.

        Raises:
            CorruptionError: the bytes are none. StoreError: a later release wrote it.
        """
        try:
            fields = json.loads(data)
            layout = fields.pop("format")
            found = cls(**fields)
            good = _SNAPSHOT.match(found.snapshot) and _DIGEST.match(found.sha256) and isinstance(found.commit, str)
            good = good and all(type(n) is int and 0 < n < _MAX_SIZE for n in (found.version, found.size, layout))
        except (ValueError, TypeError, KeyError, AttributeError):
            good = None
        if not good:
            raise CorruptionError(f"{where} is no pointer to a published store; publish again")
        if layout > _FORMAT:
            raise StoreError(
                f"{where} has format {layout}, this release reads up to {_FORMAT}; upgrade deeplake_loader"
            )
        return found


def read_pointer(objects: Objects) -> tuple[Pointer | None, str | None]:
    """(the pointer, the tag by which it can be replaced); None where nothing was published yet."""
    try:
        data, tag = objects.read_tagged(POINTER, _MAX_POINTER)
    except NotFoundError:
        return None, None
    return Pointer.from_json(data, f"{objects.url}/{POINTER}"), tag


def open_published(url: str, access: Access) -> store.Root:
    """The root of the store that was last published below a url, its snapshot in the cache.

    Raises:
        NotFoundError: nothing was published there. CorruptionError: the snapshot is not what was published.
        StoreError: it cannot be reached.
    """
    limits = Limits.of(access.cache_dir, access.cache_bytes)
    mirror = Mirror(url, options=access.options, limits=limits) if is_remote(url) else None
    objects: Objects = Local(url) if mirror is None else mirror.objects
    pointer, _ = read_pointer(objects)
    if pointer is None:
        raise NotFoundError(f"nothing was published at {objects.url} ({POINTER} is missing); db.publish(url) does that")
    versions = os.path.join(limits.folder, FOLDER, hashlib.sha256(objects.url.encode()).hexdigest()[:24])
    folder = os.path.join(versions, pointer.sha256)
    root = store.Root(folder, mirror, data=None if mirror else url, foreign=True)
    if not _is_whole(root.catalog, pointer):
        _fetch(objects, pointer, root.catalog)
        _sweep(versions, pointer.sha256)
    with suppress(OSError):
        os.utime(folder)
    return root


def _is_whole(path: str, pointer: Pointer) -> bool:
    """Whether the snapshot is here, bit for bit: SQLite itself would not notice most flipped bits."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return False
    return digest == pointer.sha256


def _fetch(objects: Objects, pointer: Pointer, path: str) -> None:
    with store.file_errors("keep the published catalog as", path):
        store.make_folder(os.path.dirname(path))
        partial = f"{path}.{store.unique_name()}"
        try:
            for _ in range(2):  # a wrong body is fetched once more
                _download(objects, pointer, partial)
                if _is_whole(partial, pointer):
                    os.replace(partial, path)
                    return
        finally:
            with suppress(FileNotFoundError):
                os.unlink(partial)
    raise CorruptionError(
        f"{objects.url}/{pointer.snapshot} is not what was published (its sha256 is another one); publish again"
    )


def _download(objects: Objects, pointer: Pointer, path: str) -> None:
    with open(path, "wb") as file:
        for start in range(0, pointer.size, _STEP):
            file.write(objects.read(pointer.snapshot, start, min(start + _STEP, pointer.size)))


def _sweep(versions: str, current: str) -> None:
    """Removes snapshots of older versions that were not opened lately."""
    with suppress(OSError):
        for entry in os.scandir(versions):
            if entry.name != current and entry.stat().st_mtime < time.time() - _UNUSED_S:
                shutil.rmtree(entry.path, ignore_errors=True)
