"""Which rows that a merge brings would break a constraint of the target: unique values and foreign keys.

Replay runs with SQLite's own foreign keys off, because their actions would delete or change rows outside the merge: a
parent deleted on one side must not take the children that the other side added. What the database would have checked is
checked here, over the merged keys alone, and every offence is named by the row that brings it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deeplake_loader.merging.images import PRESENT, TAKE
from deeplake_loader.types import quote_identifier, quote_identifiers

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog
    from deeplake_loader.history import Term
    from deeplake_loader.merging.images import Images
    from deeplake_loader.merging.target import Target


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """``table (columns)`` references ``parent (referenced)``."""

    table: str
    columns: tuple[str, ...]
    parent: str
    referenced: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Incoming:
    """What a merge does to one table: images of both sides and the TEMP table of choices by key."""

    images: Images
    ours: str
    theirs: str
    choices: str


def unique_clashes(catalog: Catalog, incoming: Incoming, target: Target) -> Iterator[str]:
    """Per unique index a SELECT's key rows: incoming rows whose values another row of the target holds and keeps."""
    images = incoming.images
    taken = f"SELECT {images.key} FROM {incoming.choices} WHERE choice = {TAKE}"
    rows = target.rows(images.table.name)
    for terms, predicate in _unique_indexes(catalog, images):
        equal = " AND ".join(f"{t.expression} COLLATE {t.collation} = {t.of('i', images.shape.columns)}" for t in terms)
        here, there = ("", "")
        if predicate is not None:
            row = ", ".join(f"i.{q} AS {q}" for q in (quote_identifier(c.name) for c in images.shape.columns))
            here, there = f" AND ({predicate})", f" AND (SELECT {predicate} FROM (SELECT {row}))"
        key = f"({images.key})" if len(images.shape.key) > 1 else images.key
        yield from catalog.fetchall(
            f"SELECT {images.keys_of('i')} FROM {_taken(incoming, 'i')} AND i._dl_state = {PRESENT}{there} AND EXISTS "
            f"(SELECT 1 FROM {rows} x WHERE {equal}{here} AND {key} NOT IN ({taken}))"
        )


def orphans(catalog: Catalog, incoming: Incoming, foreign: ForeignKey, target: Target) -> list[Any]:
    """Keys of incoming rows that reference a row which the target does not have."""
    own = [f"i.{quote_identifier(c)}" for c in foreign.columns]
    given = " AND ".join(f"{c} IS NOT NULL" for c in own)
    equal = " AND ".join(f"x.{quote_identifier(r)} = {c}" for r, c in zip(foreign.referenced, own, strict=True))
    return catalog.fetchall(
        f"SELECT {incoming.images.keys_of('i')} FROM {_taken(incoming, 'i')} AND i._dl_state = {PRESENT} "
        f"AND {given} AND NOT EXISTS (SELECT 1 FROM {target.rows(foreign.parent)} x WHERE {equal})"
    )


def widowed(catalog: Catalog, incoming: Incoming, foreign: ForeignKey, target: Target) -> list[Any]:
    """Keys of rows whose removal or change leaves children of the target without their parent."""
    images = incoming.images
    referenced = [quote_identifier(c) for c in foreign.referenced]
    moved = " OR ".join(f"i.{c} IS NOT o.{c}" for c in referenced)
    still = " AND ".join(f"x.{c} = o.{c}" for c in referenced)
    gone = images.create()
    catalog.execute(
        f"INSERT INTO {gone} SELECT {images.keys_of('o')} FROM {_taken(incoming, 'i')} "
        f"AND o._dl_state = {PRESENT} AND (i._dl_state <> {PRESENT} OR {moved}) "
        f"AND NOT EXISTS (SELECT 1 FROM {target.rows(foreign.parent)} x WHERE {still})"
    )
    if catalog.fetchone(f"SELECT 1 FROM {gone} LIMIT 1") is None:
        return []
    lost = f"SELECT {', '.join(referenced)} FROM {incoming.ours} WHERE {images.within(gone)}"
    columns = quote_identifiers(foreign.columns)
    held = f"SELECT {columns} FROM {target.rows(foreign.table)} WHERE {_row(columns, foreign.columns)} IN ({lost})"
    return catalog.fetchall(
        f"SELECT {images.key} FROM {incoming.ours} WHERE {images.within(gone)} "
        f"AND {_row(', '.join(referenced), referenced)} IN ({held})"
    )


def foreign_keys(catalog: Catalog, tables: Sequence[str]) -> list[ForeignKey]:
    """Every foreign key of these tables."""
    found = []
    for table in tables:
        rows = catalog.fetchall(f"PRAGMA main.foreign_key_list({quote_identifier(table)})")
        for number in sorted({row[0] for row in rows}):
            parts = sorted((row for row in rows if row[0] == number), key=lambda row: row[1])
            parent = next((t for t in tables if t.lower() == parts[0][2].lower()), parts[0][2])
            referenced = tuple(row[4] for row in parts)
            if None in referenced:
                referenced = _primary_key(catalog, parent)
            found.append(ForeignKey(table, tuple(row[3] for row in parts), parent, referenced))
    return found


def _primary_key(catalog: Catalog, table: str) -> tuple[str, ...]:
    info = catalog.fetchall(f"PRAGMA main.table_info({quote_identifier(table)})")
    return tuple(row[1] for row in sorted((row for row in info if row[5]), key=lambda row: row[5]))


def _taken(incoming: Incoming, alias: str) -> str:
    """FROM text of the merged keys: ``alias`` their rows on the source, o on the target; ends in a WHERE."""
    images = incoming.images
    return (
        f"{incoming.choices} v {images.join('v', incoming.theirs, alias)} {images.join('v', incoming.ours, 'o')} "
        f"WHERE v.choice = {TAKE}"
    )


def _unique_indexes(catalog: Catalog, images: Images) -> Iterator[tuple[tuple[Term, ...], str | None]]:
    """Terms and WHERE of each unique index but the primary key's."""
    listed = catalog.fetchall(f"PRAGMA main.index_list({quote_identifier(images.table.name)})")
    indexes = [row for row in listed if row[2] and row[3] != "pk"]
    for row, terms in zip(indexes, images.shape.uniques[1:], strict=True):
        yield terms, _predicate(catalog, row[1]) if row[4] else None


def _predicate(catalog: Catalog, index: str) -> str:
    """The WHERE of a partial index: what follows the parenthesis that closes its terms."""
    query = "SELECT sql FROM main.sqlite_master WHERE type = 'index' AND name = ?"
    text = str(catalog.fetchone(query, (index,))[0])
    depth, quote = 0, ""
    for i, c in enumerate(text):
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"`":
            quote = c
        elif c in "()":
            depth += 1 if c == "(" else -1
            if depth == 0:
                return text[i + 1 :].strip()[len("WHERE") :].strip()
    return "1"


def _row(text: str, columns: Sequence[str]) -> str:
    return f"({text})" if len(columns) > 1 else text
