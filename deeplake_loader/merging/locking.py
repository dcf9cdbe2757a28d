"""What a merge keeps still on PostgreSQL, where others write at the same time; SQLite has one writer anyway.

Other mergers into or from the same branches wait at their rows of `_dl_branches`, so that nodes are added one by one.
Of main, the rows that the merge may change are locked in key order before their values are compared: a row that another
transaction changed first is then seen as changed. A branch's rows lie partly on main, where nobody may be held up, so
its own tables are locked against writers as a whole; readers go on. A row inserted meanwhile under a merged key, or one
that takes a merged unique value, makes the replay fail, and the merge is run again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deeplake_loader.branches import MAIN, branches_of, overlay_name, shadow_name

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.merging.images import Images

_OPENING = (
    "SELECT pg_advisory_xact_lock(hashtextextended(format('%s.%s.%s', n.nspname, CAST(? AS bigint), "
    "CAST(? AS text)), 0)) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
    "WHERE c.oid = CAST('_dl_branches' AS regclass)"
)
"""What the first write of a branch to a table holds, too."""


def lock_branches(catalog: Catalog, *branches: int) -> None:
    """Wait for every other merge with these branches, and keep new ones waiting (caller's transaction)."""
    if catalog.dialect == "postgres":
        chosen, params = catalog.one_of("id", sorted(branches))
        catalog.fetchall(f"SELECT id FROM _dl_branches WHERE {chosen} ORDER BY id FOR UPDATE", params)


def lock_rows(catalog: Catalog, branch: int, images: Images, keys: str) -> None:
    """Keep the branch's rows of a key set as they are until the transaction's end."""
    if branch != MAIN:
        _lock_overlay(catalog, branch, images.table.name)
        return
    chosen = images.contains("t", keys)
    rows = f"SELECT 1 FROM {catalog.history.real(images.table.name)} t WHERE {chosen} ORDER BY {images.keys_of('t')}"
    catalog.fetchone(f"SELECT count(*) FROM ({rows} FOR UPDATE) s")


def _lock_overlay(catalog: Catalog, branch: int, table: str) -> None:
    catalog.fetchone(_OPENING, (branch, table))
    if table in branches_of(catalog).overlays(branch):
        both = ", ".join(catalog.history.real(name(branch, table)) for name in (overlay_name, shadow_name))
        catalog.execute(f"LOCK TABLE {both} IN SHARE ROW EXCLUSIVE MODE")
