"""A table's rows at any point of history, as one SELECT.

Main's rows at commit p are its present rows whose key was not changed under p or later, plus the first before-image of
the others. A branch's are main's at its fork where the branch has not taken the key over, plus its overlay's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deeplake_loader import history
from deeplake_loader.branches import MAIN, Branches, Point, first_number, overlay_name, shadow_name
from deeplake_loader.history import Query
from deeplake_loader.types import quote_identifier, quote_identifiers

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog


class SqliteHistory:
    """The history of the embedded catalog; see `history.History`."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog, self.branches = catalog, Branches(catalog)

    def shape(self, table: str) -> history.Shape:
        return history.read_shape(self._catalog, table)

    def real(self, name: str) -> str:
        return f"main.{quote_identifier(name)}"

    def install(self, table: str) -> None:
        history.install(self._catalog, table)

    def rebuild(self, table: str) -> None:
        history.rebuild(self._catalog, table)

    def rename_column(self, table: str, old: str, new: str) -> None:
        history.rename_column(self._catalog, table, old, new)

    def drop(self, table: str) -> None:
        history.drop(self._catalog, table)

    def select(self, table: str, point: Point) -> Query:
        return select_sql(self._catalog, table, point)

    def base(self, table: str, point: Point) -> Query:
        return base_sql(self._catalog, table, point)

    def own(self, table: str, point: Point) -> Query:
        return overlay_sql(self._catalog, table, point)

    def candidate_keys(self, table: str, points: Sequence[Point]) -> Query:
        return candidate_keys_sql(self._catalog, table, points)

    def around(self, branch: int, seq: int) -> tuple[Point, Point]:
        return Point(branch, seq - 1), Point(branch, seq)


def select_sql(catalog: Catalog, table: str, point: Point) -> Query:
    """A SELECT of the table's stored columns at a point, and its parameters; valid until something is written.

    A condition on the key around it reaches the tables themselves, so a few keys cost a few look-ups.
    """
    base, first = base_sql(catalog, table, point)
    if point.branch == MAIN or table not in Branches(catalog).overlays(point.branch):
        return base, first
    own, second = overlay_sql(catalog, table, point)
    return f"{base} UNION ALL {own}", (*first, *second)


def base_sql(catalog: Catalog, table: str, point: Point) -> Query:
    """The part of `select_sql` that is main's: rows as of the fork that the branch had not taken over."""
    shape, branches = history.read_shape(catalog, table), Branches(catalog)
    fork = branches.fork_at(point.branch, point.seq)
    if point.branch == MAIN or table not in branches.overlays(point.branch):
        return _real_at(catalog, shape, table, fork, "", ())
    shadow = quote_identifier(shadow_name(point.branch, table))
    hidden = f" AND NOT EXISTS (SELECT 1 FROM main.{shadow} s WHERE {{}} AND s._dl_seq < ?)"
    return _real_at(catalog, shape, table, fork, hidden, (point.seq,))


def overlay_sql(catalog: Catalog, table: str, point: Point) -> Query:
    """The part of `select_sql` that is the branch's own."""
    shape = history.read_shape(catalog, table)
    return _real_at(catalog, shape, overlay_name(point.branch, table), point.seq, "", ())


def _real_at(
    catalog: Catalog, shape: history.Shape, real: str, seq: int, condition: str, params: tuple[int, ...]
) -> Query:
    """The rows of a real table as of a commit; ``condition`` takes the comparison of a key with ``s``."""
    log = history.LOG_PREFIX + real
    start = first_number(catalog, log, seq)
    name, quoted, key = quote_identifier(real), quote_identifier(log), shape.key
    live = f"SELECT {shape.names_of('t')} FROM main.{name} t WHERE 1{condition.format(_equal('s', 't', key))}"
    if catalog.fetchone(f"SELECT 1 FROM main.{quoted} WHERE _dl_n >= ? LIMIT 1", (start,)) is None:
        return live, params
    changed = f"SELECT 1 FROM main.{quoted} l WHERE {_equal('l', 't', key)} AND l._dl_seq >= ?"
    earlier = f"SELECT 1 FROM main.{quoted} e WHERE {_equal('e', 'l', key)} AND e._dl_seq >= ? AND e._dl_n < l._dl_n"
    return (
        f"{live} AND NOT EXISTS ({changed}) UNION ALL SELECT {shape.names_of('l')} FROM main.{quoted} l "
        f"WHERE l._dl_n >= ? AND l._dl_op <> 'I' AND NOT EXISTS ({earlier}){condition.format(_equal('s', 'l', key))}"
    ), (*params, seq, start, seq, *params)


def candidate_keys_sql(catalog: Catalog, table: str, points: Sequence[Point]) -> Query:
    """A SELECT of the keys on which a table's rows can differ between these points: some twice, some that do not."""
    shape, branches = history.read_shape(catalog, table), Branches(catalog)
    key = quote_identifiers(shape.key)
    forks = [branches.fork_at(p.branch, p.seq) for p in points]
    parts, params = [], []
    if min(forks) < max(forks):
        log = history.LOG_PREFIX + table
        parts.append(f"SELECT {key} FROM main.{quote_identifier(log)} WHERE _dl_n >= ? AND _dl_n < ?")
        params += [first_number(catalog, log, min(forks)), first_number(catalog, log, max(forks))]
    alone = len({p.branch for p in points}) == 1 and min(forks) == max(forks)
    for branch in sorted({p.branch for p in points} - {MAIN}):
        if table in branches.overlays(branch):
            seqs = [p.seq for p in points if p.branch == branch]
            text, values = _overlay_keys(catalog, branch, table, key, seqs if alone else None)
            parts.append(text)
            params += values
    return " UNION ALL ".join(parts) or f"SELECT {key} FROM main.{quote_identifier(table)} WHERE 0", tuple(params)


def _overlay_keys(catalog: Catalog, branch: int, table: str, key: str, seqs: list[int] | None) -> tuple[str, list[int]]:
    """Keys the branch ever took over or made; between two points of one branch only those logged between them."""
    overlay = overlay_name(branch, table)
    log = quote_identifier(history.LOG_PREFIX + overlay)
    if seqs is not None:
        bounds = [first_number(catalog, history.LOG_PREFIX + overlay, seq) for seq in (min(seqs), max(seqs))]
        return f"SELECT {key} FROM main.{log} WHERE _dl_n >= ? AND _dl_n < ?", bounds
    real, shadow = quote_identifier(overlay), quote_identifier(shadow_name(branch, table))
    return (
        f"SELECT {key} FROM main.{real} UNION ALL SELECT {key} FROM main.{shadow} "
        f"UNION ALL SELECT {key} FROM main.{log}"
    ), []


def _equal(a: str, b: str, key: Sequence[str]) -> str:
    return " AND ".join(f"{a}.{quote_identifier(k)} = {b}.{quote_identifier(k)}" for k in key)
