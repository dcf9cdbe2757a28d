"""Bytes that lie elsewhere: objects by url on any store fsspec reaches, retried and counted, behind a local cache."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deeplake_loader.errors import InputError
from deeplake_loader.store import Root


@dataclass(frozen=True, slots=True)
class Access:
    """How a storage is reached from here; never stored.

    Fields: ``options`` of fsspec's filesystem (``endpoint_url``, ``key``, ``secret`` and so on); ``cache_dir``, where
    copies of remote objects lie, by default ``$DEEPLAKE_CACHE`` or ``~/.cache/deeplake_loader``; ``cache_bytes``, what
    they may take, by default ``$DEEPLAKE_CACHE_BYTES`` or 20 GB.
    """

    options: Mapping[str, Any] | None = field(default=None, repr=False)
    cache_dir: str | os.PathLike[str] | None = None
    cache_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.options is not None and not isinstance(self.options, Mapping):
            raise InputError(f"storage_options= is a dict of options, got a {type(self.options).__name__}")


def open_root(folder: str | None, storage: str | None, access: Access | None = None) -> Root:
    """The root of a store whose catalog lies in ``folder`` (None: in a database) and whose bytes lie in ``storage``, a
    url, a folder's path, or None for the catalog's own folder.

    Raises:
        InputError: neither folder nor storage, or a url with credentials in it.

    >>> open_root("/tmp/store", "memory://bucket/prefix").place("shards/a.tar")
    'memory://bucket/prefix/shards/a.tar'
    """
    if storage is not None and is_remote(storage):
        from deeplake_loader.storage.cache import Limits
        from deeplake_loader.storage.mirror import Mirror

        access = access or Access()
        limits = Limits.of(access.cache_dir, access.cache_bytes)
        mirror = Mirror(storage, options=access.options, limits=limits)
        return Root(folder or mirror.folder, mirror)
    if folder is None and storage is None:
        raise InputError("a catalog in a database needs storage=: a folder or a url for shards and vectors")
    return Root(folder or storage or "", data=storage)


def named(storage: str | os.PathLike[str]) -> str:
    """A storage as the catalog remembers it: a url without credentials, or a folder's absolute path.

    Raises:
        InputError: a url with credentials in it.

    >>> named("s3://bucket/prefix/"), named("/data/shards")
    ('s3://bucket/prefix', '/data/shards')
    """
    text = os.fspath(storage)
    if is_remote(text):
        from deeplake_loader.storage.objects import clean_url

        return clean_url(text)
    return os.path.abspath(os.path.expanduser(text.removeprefix("file://")))


def is_remote(url: str) -> bool:
    """Whether a url is read through the cache; a path and ``file://`` are not.

    >>> is_remote("s3://bucket/a"), is_remote("file:///data/a"), is_remote("/data/a")
    (True, False, False)
    """
    return "://" in url and not url.startswith("file://")
