"""Digests of the catalog's own rows, because SQLite has no checksums of its pages: a flipped bit in a row is silent.

`db.optimize()` and `db.publish()` take them, in a transaction at their end; inserts pay nothing. A digest is of rows
that can be asked for again later, whatever was written since: a table as of a commit, an undo log up to a row, commits
up to a number, the index of a sealed file. So a digest stands until the next is taken, and only what has changed since
is read for that.

    _dl_digests (kind, name, upto, count, digest, shape)      shape: the columns that were read
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deeplake_loader.branches import HISTORY_FROM, MAIN, Point, first_number, log_name, overlay_name
from deeplake_loader.types import quote_identifier, quote_identifiers

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog

TABLE = "_dl_digests"
_DECLARATION = (
    f"CREATE TABLE IF NOT EXISTS {TABLE} (kind TEXT NOT NULL, name TEXT NOT NULL, upto INTEGER NOT NULL, "
    "count INTEGER NOT NULL, digest TEXT NOT NULL, shape TEXT NOT NULL, PRIMARY KEY (kind, name))"
)
MEMBERS = ("ordinal", "key", "column_name", "extension", "offset", "length", "checks", "info")
_COMMITS = ("seq", "id", "created_at", "author", "message", "branch")
_ROWS = 20_000
_COMMA = " || ',' || "
_GROUP = 50  # columns in parentheses: SQLite takes expressions of 1,000 steps, which 500 columns in one row of || have


@dataclass(frozen=True, slots=True)
class Digest:
    """One digest: ``kind`` (table, log, commits, members), ``name`` of what, ``upto`` which commit or row, the
    ``count`` of its rows, their ``digest``, and the ``shape`` they had."""

    kind: str
    name: str
    upto: int
    count: int
    digest: str
    shape: str


def recorded(catalog: Catalog) -> list[Digest]:
    """The digests that were taken last."""
    if not catalog.has_own(TABLE):
        return []
    return [Digest(*row) for row in catalog.fetchall(f"SELECT kind, name, upto, count, digest, shape FROM {TABLE}")]


def record(catalog: Catalog, *, afresh: bool = False) -> int:
    """How many digests were taken, in the caller's transaction: of all that has changed since the last ones.

    Args:
        afresh: history was pruned, so what older ones were taken of is not there any more.
    """
    if not catalog.has_own(TABLE):
        catalog.declare(_DECLARATION)
    known = {} if afresh else {(d.kind, d.name): d for d in recorded(catalog)}
    present = list(_present(catalog))
    names = {(kind, name) for kind, name, _ in present}
    for digest in recorded(catalog):
        if (digest.kind, digest.name) not in names:
            catalog.execute(f"DELETE FROM {TABLE} WHERE kind = ? AND name = ?", (digest.kind, digest.name))
    taken = 0
    for kind, name, upto in present:
        old = known.get((kind, name))
        if old is None or _is_stale(catalog, old, upto):
            _put(catalog, take(catalog, kind, name, upto))
            taken += 1
    return taken


def _is_stale(catalog: Catalog, old: Digest, upto: int) -> bool:
    """Whether what an old digest was taken of has grown or changed since."""
    if old.kind == "members":
        return False
    if old.kind != "table":
        return old.upto != upto
    if (
        quote_identifiers(_query(catalog, old.kind, old.name, old.upto)[0]) != old.shape
        or catalog.dialect == "postgres"
    ):
        return True
    log = log_name(_real(old.name))
    last = f"SELECT 1 FROM {catalog.history.real(log)} WHERE _dl_n >= ? LIMIT 1"
    return catalog.fetchone(last, (first_number(catalog, log, old.upto),)) is not None


def forget_members(catalog: Catalog, file: int) -> None:
    """The index of a file is about to change, within the caller's transaction."""
    if catalog.has_own(TABLE):
        catalog.execute(f"DELETE FROM {TABLE} WHERE kind = 'members' AND name = ?", (str(file),))


def forget_history(catalog: Catalog) -> None:
    """History was pruned within the caller's transaction: what was taken of it tells nothing until the next."""
    if catalog.has_own(TABLE):
        catalog.execute(f"DELETE FROM {TABLE} WHERE kind <> 'members'")


def _put(catalog: Catalog, digest: Digest) -> None:
    catalog.execute(
        f"INSERT INTO {TABLE} (kind, name, upto, count, digest, shape) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT "
        "(kind, name) DO UPDATE SET upto = excluded.upto, count = excluded.count, digest = excluded.digest, "
        "shape = excluded.shape",
        (digest.kind, digest.name, digest.upto, digest.count, digest.digest, digest.shape),
    )


def _present(catalog: Catalog) -> Iterator[tuple[str, str, int]]:
    """(kind, name, up to where it goes now) of all there is."""
    head = catalog.head()
    for branch, table in _real_tables(catalog):
        yield "table", f"{branch}:{table}", head
        if catalog.dialect == "sqlite":  # PostgreSQL's pages have checksums of their own
            real = table if branch == MAIN else overlay_name(branch, table)
            last = catalog.fetchone(f"SELECT coalesce(max(_dl_n), 0) FROM {catalog.history.real(log_name(real))}")
            yield "log", real, int(last[0])
    yield "commits", "", head
    for (file,) in catalog.fetchall("SELECT id FROM _dl_files WHERE kind = 'shard' AND state = 'sealed'"):
        yield "members", str(file), 0


def _real(name: str) -> str:
    """The real table of a table's digest."""
    branch, _, table = name.partition(":")
    return table if int(branch) == MAIN else overlay_name(int(branch), table)


def _real_tables(catalog: Catalog) -> Iterator[tuple[int, str]]:
    names = {table.name.lower(): table.name for table in catalog.tables().values()}
    yield from ((MAIN, name) for name in names.values())
    for branch, table in catalog.fetchall("SELECT branch, table_name FROM _dl_overlays ORDER BY branch, table_name"):
        if table.lower() in names:
            yield branch, names[table.lower()]


def take(catalog: Catalog, kind: str, name: str, upto: int) -> Digest:
    """The digest of what is there now."""
    names, query, params = _query(catalog, kind, name, upto)
    count, digest = _of(catalog, names, query, params)
    return Digest(kind, name, upto, count, digest, quote_identifiers(names))


def difference(catalog: Catalog, old: Digest) -> str | None:
    """What differs from an old digest, None where nothing does.

    Raises:
        LookupError: it cannot be compared any more; says why.
    """
    if old.kind == "table" and old.upto < int(catalog.meta(HISTORY_FROM) or 0):
        raise LookupError("its history was pruned since the digest was taken; optimize takes a new one")
    names, query, params = _query(catalog, old.kind, old.name, old.upto)
    if quote_identifiers(names) != old.shape:
        raise LookupError("its columns were changed since the digest was taken; optimize takes a new one")
    count, digest = _of(catalog, names, query, params)
    if count != old.count:
        return f"{count:,} rows where {old.count:,} were"
    return None if digest == old.digest else f"some of its {count:,} rows are not what they were"


def comparable(catalog: Catalog) -> list[Digest]:
    """The digests of what is still there: not of tables that were dropped and files that gc took."""
    known = {(d.kind, d.name): d for d in recorded(catalog)}
    return [known[kind, name] for kind, name, _ in _present(catalog) if (kind, name) in known] if known else []


def _query(catalog: Catalog, kind: str, name: str, upto: int) -> tuple[tuple[str, ...], str, tuple[Any, ...]]:
    """(columns, SELECT of them, its parameters) of what a digest is of."""
    if kind == "commits":
        return _COMMITS, f"SELECT {', '.join(_COMMITS)} FROM _dl_commits WHERE seq <= ? ORDER BY seq", (upto,)
    if kind == "members":
        columns = quote_identifiers(MEMBERS)
        return MEMBERS, f"SELECT {columns} FROM _dl_members WHERE file = ? ORDER BY ordinal", (int(name),)
    if kind == "log":
        names = ("_dl_n", "_dl_seq", "_dl_op", *(c.name for c in catalog.history.shape(name).columns))
        log = catalog.history.real(log_name(name))
        return names, f"SELECT {quote_identifiers(names)} FROM {log} WHERE _dl_n <= ? ORDER BY _dl_n", (upto,)
    number, _, table = name.partition(":")
    point, shape = Point(int(number), upto), catalog.history.shape(table)
    rows, params = (catalog.history.select if point.branch == MAIN else catalog.history.own)(table, point)
    return (
        tuple(c.name for c in shape.columns),
        f"SELECT * FROM ({rows}) x ORDER BY {quote_identifiers(shape.key)}",
        params,
    )


def _of(catalog: Catalog, names: tuple[str, ...], query: str, params: tuple[Any, ...]) -> tuple[int, str]:
    if catalog.dialect == "postgres":
        each = "md5(CAST(r AS text))"
        row = catalog.fetchone(f"SELECT count(*), md5(string_agg({each}, '' ORDER BY {each})) FROM ({query}) r", params)
        return int(row[0]), str(row[1])
    quoted = [f"quote(y.{quote_identifier(name)})" for name in names]
    parts = (quoted[start : start + _GROUP] for start in range(0, len(quoted), _GROUP))
    texts = _COMMA.join(f"({_COMMA.join(part)})" for part in parts)
    found = catalog.chunks(f"SELECT {texts} FROM ({query}) y", params, size=_ROWS)
    return digest_of(text for rows in found for (text,) in rows)


def digest_of(texts: Iterable[str]) -> tuple[int, str]:
    """(count, sha256) of rows as SQLite's quote() writes them."""
    sha256, count = hashlib.sha256(), 0
    for text in texts:
        sha256.update(f"{text}\n".encode())
        count += 1
    return count, sha256.hexdigest()
