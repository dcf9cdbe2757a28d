"""Bytes that lie elsewhere: objects by url on any store fsspec reaches, retried and counted, behind a local cache."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from deeplake_loader.errors import InputError
from deeplake_loader.store import Root


def open_root(
    folder: str | None,
    storage: str | os.PathLike[str] | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_bytes: int | None = None,
) -> Root:
    """The root of a store whose catalog lies in ``folder`` (None: in a database) and whose bytes lie in ``storage``.

    Args:
        storage: a url, a folder's path, or None for the catalog's own folder.
        options: of fsspec's filesystem; never stored.
        cache_dir: where copies of remote objects lie; by default ``$DEEPLAKE_CACHE`` or ``~/.cache/deeplake_loader``.
        cache_bytes: what they may take; by default ``$DEEPLAKE_CACHE_BYTES`` or 20 GB.

    Raises:
        InputError: neither folder nor storage, or a url with credentials in it.

    >>> open_root("/tmp/store", "memory://bucket/prefix").place("shards/a.tar")
    'memory://bucket/prefix/shards/a.tar'
    """
    text = None if storage is None else os.fspath(storage)
    if text is not None and is_remote(text):
        from deeplake_loader.storage.cache import Limits
        from deeplake_loader.storage.mirror import Mirror

        mirror = Mirror(text, options=options, limits=Limits.of(cache_dir, cache_bytes))
        return Root(folder or mirror.folder, mirror)
    if text is not None:
        text = os.path.abspath(os.path.expanduser(text.removeprefix("file://")))
    if folder is None and text is None:
        raise InputError("a catalog in a database needs storage=: a folder or a url for shards and vectors")
    return Root(folder or text or "", data=text)


def is_remote(url: str) -> bool:
    """Whether a url is read through the cache; a path and ``file://`` are not.

    >>> is_remote("s3://bucket/a"), is_remote("file:///data/a"), is_remote("/data/a")
    (True, False, False)
    """
    return "://" in url and not url.startswith("file://")
