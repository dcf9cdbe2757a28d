"""Compiled statements by their text: in this process, and in the catalog for the next one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from deeplake_loader.catalog import Participant
from deeplake_loader.errors import InputError
from deeplake_loader.sql.plan import Plan
from deeplake_loader.types import Table

if TYPE_CHECKING:
    from deeplake_loader.catalog import Catalog

_MAX_PLANS = 1_000
Compile = Callable[[str, Mapping[str, Table]], Plan]


class Plans(Participant):
    """The plans of one handle by text and schema number; a rolled-back number comes back for another schema.

    ``state`` changes whenever plans that were given do not count any more; ``version`` is the schema's number in it.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog, self._known, self.version = catalog, dict[tuple[str, int], Plan](), -1
        self.state = 0
        catalog.participants.append(self)

    def get(self, key: str, sql: str, compile_: Compile) -> Plan:
        """The plan kept under ``key``, else what ``compile_`` makes of the statement and the tables.

        Raises InputError for a statement that is no text.
        """
        if not isinstance(sql, str):
            raise InputError(f"a statement is a str, got {type(sql).__name__}")
        version = self._catalog.schema_version()
        if version != self.version:
            self.version, self.state = version, self.state + 1
        plan = self._known.get((key, version))
        if plan is None:
            stored = self._catalog.plan(key)
            plan = None if stored is None else Plan.from_json(stored)
            if plan is None:
                plan = compile_(sql, self._catalog.tables())
                self._catalog.put_plan(key, plan.to_json())
            if len(self._known) >= _MAX_PLANS:
                self._known.clear()
            self._known[key, version] = plan
        return plan

    def _forget(self) -> None:
        self._known.clear()
        self.version, self.state = -1, self.state + 1

    def rollback_to(self, _token: object) -> None:
        self._forget()

    def rolled_back(self) -> None:
        self._forget()

    def forked(self) -> None:
        self._forget()
