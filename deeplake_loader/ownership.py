"""Whose bytes lie below a storage: one store's, which says so in an object there, and how a store moves to another.

`gc` removes what its catalog does not name, so two stores below one prefix would remove each other's bytes. The first
to connect writes ``store.json`` below its storage, ``{"store": "<32 hex digits>"}`` with its own number, by a put that
cannot overwrite; its catalog remembers that it did (_dl_meta "claimed"), so later connections ask nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deeplake_loader import adopted, store
from deeplake_loader.errors import CorruptionError, DeeplakeError, InputError, NotFoundError, StoreError
from deeplake_loader.storage import Access
from deeplake_loader.storage.objects import Local, Objects, open_folder
from deeplake_loader.store import object_of
from deeplake_loader.tar import END

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog

OWNER = "store.json"
"""Name of the object that tells whose the others are."""


def claim(catalog: Catalog, storage: str | None = None) -> None:
    """Makes the storage this store's, unless it is; nothing for a store whose bytes lie in its own folder.

    Args:
        storage: what a new store's catalog is to remember as its storage, at once with the claim, so that it remembers
            none that could not be used.

    Raises:
        InputError: another store's bytes lie there. NotFoundError: there is no such bucket.
        StoreError: it is out of reach, or may not be written.
    """
    root, facts = catalog.root, dict[str, str]()
    if (root.storage is not None or root.data is not None) and _fact(catalog, "claimed") is None:
        _claim(_objects(catalog), _fact(catalog, "store_id"))
        facts["claimed"] = "yes"
    if storage is not None:
        facts["storage"] = storage
    if facts:  # outside of any transaction: no commit of the store's history
        places = ", ".join("(?, ?)" for _ in facts)
        sql = f"INSERT INTO _dl_meta (key, value) VALUES {places} ON CONFLICT (key) DO NOTHING"
        catalog.execute(sql, [text for fact in facts.items() for text in fact])


def check_free(objects: Objects, catalog: Catalog) -> None:
    """Refuses a place that is not this store's and is another one's, whose gc would remove what it does not know.

    Raises:
        InputError: it is.
    """
    found = _owner(objects)
    if found not in (None, _mark(_fact(catalog, "store_id"))) or _holds_catalog(objects):
        raise InputError(
            f"another store lies in {objects.url}, and its gc would remove what is put there; choose another"
        )


def _holds_catalog(objects: Objects) -> bool:
    if not isinstance(objects, Local):
        return False
    server = os.path.join(objects.url, "postgres", "data", "PG_VERSION")
    return os.path.exists(store.Root(objects.url).catalog) or os.path.exists(server)


def _mark(store_id: str | None) -> bytes:
    """What a store writes below its storage."""
    return json.dumps({"store": store_id}).encode()


def check_options(root: store.Root, access: Access | None) -> None:
    """Refuses options of a storage where there is none that they are for."""
    if access is not None and access.options and root.storage is None:
        raise InputError(
            f"storage_options= reach an object storage, and this store's bytes lie in {root.base}; "
            'give storage="s3://bucket/prefix" when it is made'
        )


def relocate(catalog: Catalog, place: str, options: Mapping[str, Any] | None) -> None:
    """See `warming.StorageVerbs.relocate`."""
    objects = open_folder(place, options=options)
    with catalog.transaction("the storage moved") as _:
        files = catalog.fetchall("SELECT url, size, kind, state FROM _dl_files ORDER BY id")
        if any(state != "sealed" for *_, state in files):
            raise InputError("shards of this store are still written to; call optimize(), copy the files, then move")
        _check_whole(objects, [(url, size, kind) for url, size, kind, _ in files if not adopted.is_adopted(url)])
        _claim(objects, _fact(catalog, "store_id"))
        catalog.execute("DELETE FROM _dl_meta WHERE key IN ('storage', 'claimed')")
        catalog.execute("INSERT INTO _dl_meta (key, value) VALUES ('storage', ?), ('claimed', 'yes')", (place,))


def _check_whole(objects: Objects, files: list[tuple[str, int, str]]) -> None:
    """Raises NotFoundError unless each of these is there in its length."""
    there = {found.name: found.size for top in (store.SHARDS, store.VECTORS) for found in objects.list(f"{top}/")}
    needed: dict[str, int] = {}
    for url, size, kind in files:
        needed[object_of(url)] = size + len(END) * (kind == "shard")  # the same for every part of one
    lacking = [name for name, size in needed.items() if there.get(name, -1) < size]
    if lacking:
        raise NotFoundError(
            f"{objects.url} lacks {len(lacking)} of the store's {len(needed)} files, or has them shorter, {lacking[0]} "
            "first; copy shards/ and vectors/ there whole, then move"
        )


def _claim(objects: Objects, store_id: str | None) -> None:
    if store_id is None:
        raise CorruptionError("the catalog does not say which store it is of; restore it from a copy")
    try:
        objects.write(OWNER, _mark(store_id))
    except StoreError as error:
        if isinstance(error, NotFoundError) or _owner(objects) is None:
            raise
        raise InputError(
            f"{objects.url} holds another store's bytes, or those of one whose catalog was lost, and gc would remove "
            f"them; choose another folder or prefix (or remove {objects.url}/{OWNER} if nothing there is needed)"
        ) from error


def _owner(objects: Objects) -> bytes | None:
    try:
        return objects.read(OWNER)
    except DeeplakeError:
        return None


def _objects(catalog: Catalog) -> Objects:
    from deeplake_loader.storage.mirror import Mirror

    root = catalog.root
    return root.storage.objects if isinstance(root.storage, Mirror) else open_folder(root.base)


def _fact(catalog: Catalog, key: str) -> str | None:
    row = catalog.fetchone("SELECT value FROM _dl_meta WHERE key = ?", (key,))
    return None if row is None else str(row[0])
