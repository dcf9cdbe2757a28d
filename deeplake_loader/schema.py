"""Changes of tables, for main and every branch in one transaction.

The schema belongs to the store. What adds something appears everywhere; what would take rows or values from a branch
or a tag is refused by its name. A table has an undo log with its triggers (`history`), an index on every vector column,
by which the fast path's last statement finds its winners, and a recorded definition.
"""

from __future__ import annotations

from collections.abc import Iterator

from deeplake_loader import file_views, history
from deeplake_loader.branches import MAIN, Branch, Branches, Point, overlay_name, shadow_name
from deeplake_loader.catalog import Catalog
from deeplake_loader.errors import ConstraintError, InputError, SQLError, UnsupportedSQLError
from deeplake_loader.indexes import Indexes
from deeplake_loader.overlays import copy_indexes, create_public_view, drop_public_views
from deeplake_loader.sql.plan import Plan
from deeplake_loader.states import select_sql
from deeplake_loader.store import encode_name
from deeplake_loader.table_text import copied_alter
from deeplake_loader.types import RESERVED_PREFIX, Table, quote_identifier
from deeplake_loader.views import Views


class Schema:
    """Runs CREATE, ALTER and DROP for one handle."""

    def __init__(self, catalog: Catalog, views: Views, indexes: Indexes) -> None:
        self._catalog, self._views, self._branches = catalog, views, Branches(catalog)
        self._vector_indexes = indexes

    def change(self, plan: Plan, sql: str) -> None:
        """Do what the plan of a definition says, or nothing where IF EXISTS or IF NOT EXISTS leaves nothing to do.

        Raises:
            SQLError: SQLite refuses the statement, or a table's name differs from another one's in case alone.
            UnsupportedSQLError: a table would get another name.
            InputError: a branch or a tag would lose rows or values.
            ConstraintError: a unique index that the rows of a branch break.
        """
        self._views.clear()  # SQLite would take the view for the table
        if plan.missing_ok and self._is_settled(plan):
            return
        run = {
            "create_table": self._create_table, "drop_table": self._drop_table, "alter_table": self._alter,
            "create_index": self._create_index, "drop_index": self._drop_index,
        }[plan.kind]  # fmt: skip
        run(plan, sql)

    def _is_settled(self, plan: Plan) -> bool:
        """IF EXISTS and IF NOT EXISTS: nothing is left to do."""
        if plan.kind in ("create_index", "drop_index"):
            return self._has_index(plan.target or "") == (plan.kind == "create_index")
        exists = self._catalog.table(plan.target or "") is not None
        return (plan.kind == "create_table" and exists) or (plan.kind == "drop_table" and not exists)

    # -- tables ----------------------------------------------------------------------------------------------------

    def _create_table(self, plan: Plan, sql: str) -> None:
        table = plan.definition
        if table is None:
            return
        known = self._catalog.table(table.name)
        if known is not None and known.name != table.name:  # SQLite takes Ä and ä for two names, this catalog for one
            raise SQLError(f"there is already a table {known.name!r}; names must differ in more than case", sql=sql)
        file_views.make_way(self._catalog, table.name)
        self._catalog.execute(plan.sql, user_sql=sql)
        history.install(self._catalog, table.name)
        self._catalog.put_table(table, sql)
        file_views.create(self._catalog, table)
        self._index_vectors(table)

    def _drop_table(self, plan: Plan, sql: str) -> None:
        table = plan.target or ""
        self._refuse_loss(table, "1", f"the rows of {table!r}", "drop the table")
        self._vector_indexes.table_changed(table, lambda _: None)
        with self._public_views_aside(table):
            for branch in self._holders(table):
                for name in (overlay_name(branch, table), shadow_name(branch, table)):
                    self._catalog.execute(f"DROP TABLE main.{quote_identifier(name)}")
                history.drop(self._catalog, overlay_name(branch, table))
            self._catalog.execute("DELETE FROM _dl_overlays WHERE table_name = ?", (table,))
            self._catalog.execute(plan.sql, user_sql=sql)
            history.drop(self._catalog, table)
            self._catalog.drop_table(table)

    def _alter(self, plan: Plan, sql: str) -> None:
        table, after = plan.target or "", plan.definition
        before = self._catalog.table(table)
        if before is None or after is None or after.name != table:
            raise UnsupportedSQLError(
                "ALTER TABLE ... RENAME TO is not supported: shards and logs carry the name", sql=sql
            )
        for column in before.columns if len(after.columns) < len(before.columns) else ():
            if after.column(column.name) is None:
                given = f"{quote_identifier(column.name)} IS NOT NULL"
                self._refuse_loss(table, given, f"values of {column.name!r}", "drop the column")
        names = dict(plan.renames)
        self._vector_indexes.table_changed(table, lambda c: name if after.column(name := names.get(c, c)) else None)
        with self._public_views_aside(table):
            for index in _vector_indexes(before):
                self._catalog.execute(f"DROP INDEX IF EXISTS main.{quote_identifier(index)}")
            self._alter_copies(plan, table)
            history.drop_triggers(self._catalog, table)
            self._catalog.execute(plan.sql, user_sql=sql)
            self._rebuild(plan, table)
            self._catalog.put_table(after, sql)
            self._index_vectors(after)
            for branch in self._holders(table):
                copy_indexes(self._catalog, branch, table)

    def _alter_copies(self, plan: Plan, table: str) -> None:
        for branch in self._holders(table):
            overlay = overlay_name(branch, table)
            for index in self._indexes(overlay):
                self._catalog.execute(f"DROP INDEX main.{quote_identifier(index)}")
            history.drop_triggers(self._catalog, overlay)
            self._catalog.execute(copied_alter(plan.sql, overlay))
            shadow = shadow_name(branch, table)
            keys = {row[1] for row in self._catalog.execute(f"PRAGMA main.table_info({quote_identifier(shadow)})")}
            for old, new in plan.renames:
                if old in keys:
                    names = f"{quote_identifier(old)} TO {quote_identifier(new)}"
                    self._catalog.execute(f"ALTER TABLE main.{quote_identifier(shadow)} RENAME COLUMN {names}")
            self._rebuild(plan, overlay)

    def _rebuild(self, plan: Plan, real: str) -> None:
        for old, new in plan.renames:
            history.rename_column(self._catalog, real, old, new)
        history.rebuild(self._catalog, real)

    def _index_vectors(self, table: Table) -> None:
        for column, index in zip(table.vectors, _vector_indexes(table), strict=True):
            where = f"{quote_identifier(table.name)} ({quote_identifier(column.name)})"
            self._catalog.execute(f"CREATE INDEX {quote_identifier(index)} ON {where}")

    # -- indexes ---------------------------------------------------------------------------------------------------

    def _create_index(self, plan: Plan, sql: str) -> None:
        if plan.index is not None:
            self._vector_indexes.create(plan.index)
            return
        if self._vector_indexes.named(plan.target or "") is not None:
            raise SQLError(f"there is already an index {plan.target!r}; choose another name", sql=sql)
        self._catalog.execute(plan.sql, user_sql=sql)
        table = self._indexed_table(plan.target or "") or ""
        for branch in self._live():
            self._refuse_duplicates(plan.target or "", table, branch)
        for number in self._holders(table):
            copy_indexes(self._catalog, number, table, only=plan.target)
            history.rebuild(self._catalog, overlay_name(number, table))
        history.rebuild(self._catalog, table)  # the log's guards know the table's unique indexes

    def _refuse_duplicates(self, index: str, table: str, branch: Branch) -> None:
        """A unique index holds on every branch or is not made."""
        found = history.unique_terms(self._catalog, table, index)
        if found is None:
            return
        terms, predicate = found
        rows, params = select_sql(self._catalog, table, self._branches.present(branch.id))
        listed = ", ".join(t.stored() for t in terms)
        where = " AND ".join([f"({t.stored()}) IS NOT NULL" for t in terms] + ([f"({predicate})"] if predicate else []))
        query = f"SELECT 1 FROM ({rows}) WHERE {where} GROUP BY {listed} HAVING count(*) > 1 LIMIT 1"
        if self._catalog.fetchone(query, params):
            raise ConstraintError(
                f"the unique index {index!r} cannot be made: on branch {branch.name!r} rows of {table!r} have equal "
                "values; change them there, or delete the branch",
                constraint="UNIQUE",
                table=table,
            )

    def _drop_index(self, plan: Plan, sql: str) -> None:
        index = plan.target or ""
        vector_index = self._vector_indexes.named(index)
        if vector_index is not None:
            self._vector_indexes.drop(vector_index)
            return
        table = self._indexed_table(index)
        self._catalog.execute(plan.sql, user_sql=sql)
        if table is None:
            return
        for branch in self._holders(table):
            self._catalog.execute(
                f"DROP INDEX IF EXISTS main.{quote_identifier(f'{RESERVED_PREFIX}b{branch}_{index}')}"
            )
            history.rebuild(self._catalog, overlay_name(branch, table))
        history.rebuild(self._catalog, table)

    def _has_index(self, name: str) -> bool:
        return self._indexed_table(name) is not None or self._vector_indexes.named(name) is not None

    def _indexed_table(self, index: str) -> str | None:
        query = "SELECT tbl_name FROM main.sqlite_master WHERE type = 'index' AND name = ?"
        row = self._catalog.fetchone(query, (index,))
        return None if row is None else str(row[0])

    def _indexes(self, real: str) -> list[str]:
        query = "SELECT name FROM main.sqlite_master WHERE type = 'index' AND tbl_name = ? AND sql IS NOT NULL"
        return [name for (name,) in self._catalog.fetchall(query, (real,))]

    # -- branches --------------------------------------------------------------------------------------------------

    def _live(self) -> list[Branch]:
        return [branch for branch in self._branches.all() if branch.id != MAIN]

    def _holders(self, table: str) -> list[int]:
        """Every branch with an overlay of the table, deleted ones whose rows are kept included."""
        rows = self._catalog.fetchall("SELECT branch FROM _dl_overlays WHERE table_name = ? ORDER BY branch", (table,))
        return [branch for (branch,) in rows]

    def _public_views_aside(self, table: str) -> _ViewsAside:
        live = [branch for branch in self._live() if branch.id in self._holders(table)]
        return _ViewsAside(self._catalog, table, live)

    def _refuse_loss(self, table: str, condition: str, what: str, deed: str) -> None:
        for kind, name, point in self._points():
            rows, params = select_sql(self._catalog, table, point)
            if self._catalog.fetchone(f"SELECT 1 FROM ({rows}) WHERE {condition} LIMIT 1", params):
                remedy = "delete the branch" if kind == "branch" else "untag it"
                raise InputError(f"{kind} {name!r} still holds {what}: {remedy} first, then {deed}")

    def _points(self) -> Iterator[tuple[str, str, Point]]:
        for branch in self._live():
            yield "branch", branch.name, self._branches.present(branch.id)
        for tag in self._branches.tags():
            yield "tag", tag.name, self._branches.resolve(tag.name)


class _ViewsAside:
    """The public views of a table are away for the length of the block: SQLite checks them against every change."""

    def __init__(self, catalog: Catalog, table: str, branches: list[Branch]) -> None:
        self._catalog, self._table, self._holders = catalog, table, branches

    def __enter__(self) -> None:
        file_views.drop(self._catalog, self._table)
        for branch in self._holders:
            drop_public_views(self._catalog, branch)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        table = self._catalog.table(self._table)
        if kind is None and table is not None:
            file_views.create(self._catalog, table)
        if kind is None:
            for branch in self._holders:
                for overlaid in Branches(self._catalog).overlays(branch.id):
                    create_public_view(self._catalog, branch.id, overlaid, branch.name)


def _vector_indexes(table: Table) -> list[str]:
    """A name per vector column that no other table's columns can give, as encoded names hold no dot."""
    return [f"{RESERVED_PREFIX}vector.{encode_name(table.name)}.{encode_name(c.name)}" for c in table.vectors]
