"""Random histories of branches against a model of plain dicts: rows, diffs, merges, conflicts, tags, the past.

The model keeps a whole copy of the rows for every node of history and merges them by the rule itself; the store keeps
undo logs, overlays and forks. Whatever the store saves must not be seen.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import deeplake_loader as deeplake
from deeplake_loader.branches import check_name
from deeplake_loader.errors import ConflictError, InputError, NotFoundError

pytestmark = pytest.mark.both_catalogs

Rows = dict[tuple[str, Any], tuple[Any, ...]]
AMBIGUOUS = ("ambiguous",)

TABLES = {
    "plain": "CREATE TABLE plain (id BIGINT PRIMARY KEY, a TEXT, n INTEGER)",
    "it's": 'CREATE TABLE "it\'s" ("the key" TEXT PRIMARY KEY, a TEXT, n INTEGER)',
}
KEY = {"plain": "id", "it's": '"the key"'}
MAX_BRANCHES = 5


def is_name(text: str) -> bool:
    try:
        return bool(check_name(text))
    except InputError:
        return False


NAMES = st.text(st.sampled_from("ab/.-_'\"%?;{}()é字🙂`$&|<>=,!#"), min_size=1, max_size=12).filter(is_name)
KEYS = st.one_of(
    st.tuples(st.just("plain"), st.integers(1, 5)), st.tuples(st.just("it's"), st.sampled_from(["k", "K", "q'\"", "é"]))
)
VALUES = st.tuples(st.sampled_from(["x", "X", "", None]), st.sampled_from([0, 1, None]))
INDEX = st.integers(0, 1_000)


@dataclass
class Model:
    rows: dict[str, Rows] = field(default_factory=lambda: {"main": {}})
    heads: dict[str, int] = field(default_factory=lambda: {"main": 1})
    nodes: dict[int, tuple[Rows, tuple[int, ...]]] = field(default_factory=lambda: {1: ({}, ())})
    touched: set[str] = field(default_factory=set)
    tags: dict[str, tuple[int, Rows]] = field(default_factory=dict)

    def add(self, rows: Rows, *parents: int) -> int:
        self.nodes[len(self.nodes) + 1] = dict(rows), parents
        return len(self.nodes)

    def node(self, branch: str) -> int:
        if branch in self.touched:
            self.touched.discard(branch)
            self.heads[branch] = self.add(self.rows[branch], self.heads[branch])
        return self.heads[branch]

    def reach(self, node: int) -> set[int]:
        return {node}.union(*map(self.reach, self.nodes[node][1]))

    def bases(self, a: int, b: int) -> list[int]:
        common = self.reach(a) & self.reach(b)
        return sorted(n for n in common if not any(n != o and n in self.reach(o) for o in common))

    def base(self, a: int, b: int, key: Any) -> Any:
        first, *others = self.bases(a, b)
        found: Any = self.nodes[first][0].get(key)
        for other in others:
            value = self.nodes[other][0].get(key)
            if value != found:
                under = self.base(first, other, key)
                found = value if found == under else found if value == under else AMBIGUOUS
        return found

    def branch(self, start: int, name: str) -> None:
        self.rows[name] = dict(self.nodes[start][0])
        self.heads[name] = self.add(self.rows[name], start)

    def merge(self, source: str, target: str, on_conflict: str) -> tuple[bool, dict[Any, Any]]:
        """(whether anything is done, conflicts as key -> (base, ours, theirs)); raises nothing, changes rows."""
        theirs, ours = self.node(source), self.node(target)
        a, b = self.rows[source], self.rows[target]
        differing = [key for key in {*a, *b} if a.get(key) != b.get(key)]
        if theirs in self.reach(ours) or (not differing and ours in self.reach(theirs)):
            return False, {}
        result, conflicts = dict(b), {}
        for key in differing:
            base = self.base(ours, theirs, key)
            if a.get(key) == base:
                continue
            if b.get(key) != base:
                conflicts[key] = (None if base == AMBIGUOUS else base, b.get(key), a.get(key))
            if b.get(key) == base or on_conflict == "theirs":
                result.pop(key, None)
                if key in a:
                    result[key] = a[key]
        if not conflicts or on_conflict != "raise":
            self.rows[target] = result
            self.heads[target] = self.add(result, ours, theirs)
        return True, conflicts


class Histories(RuleBasedStateMachine):
    make: Callable[[], Any]
    """Gives the place of a store that nothing is in yet."""

    @initialize()
    def begin(self) -> None:
        self.place = self.make()
        self.handles = [self.place.connect() for _ in range(2)]
        for statement in TABLES.values():
            self.handles[0].execute(statement)
        self.model = Model()
        self.past: list[tuple[str, Rows]] = []
        self.pruned = False

    def teardown(self) -> None:
        if hasattr(self, "handles"):
            for handle in self.handles:
                handle.close()
            shutil.rmtree(self.place.folder)

    # -- help --------------------------------------------------------------------------------------------------------

    def handle(self, index: int) -> tuple[deeplake.Database, str]:
        db = self.handles[index % len(self.handles)]
        if db.current_branch not in self.model.rows:
            db.checkout("main")
        return db, db.current_branch

    def pick(self, index: int) -> str:
        return sorted(self.model.rows)[index % len(self.model.rows)]

    def changed(self, branch: str, key: Any, value: tuple[Any, ...] | None) -> None:
        self.model.rows[branch].pop(key, None)
        if value is not None:
            self.model.rows[branch][key] = value
        self.model.touched.add(branch)

    def read(self, db: deeplake.Database) -> Rows:
        found: Rows = {}
        for table in TABLES:
            for row in db.execute(f'SELECT * FROM "{table}"'):
                assert (table, row[0]) not in found
                found[table, row[0]] = tuple(row[1:])
        return found

    # -- statements --------------------------------------------------------------------------------------------------

    @rule(handle=INDEX, key=KEYS, value=VALUES)
    def upsert(self, handle: int, key: Any, value: Any) -> None:
        db, branch = self.handle(handle)
        table, k = key
        db.execute(
            f'INSERT INTO "{table}" VALUES (%s, %s, %s) ON CONFLICT ({KEY[table]}) DO UPDATE '
            "SET a = excluded.a, n = excluded.n",
            [k, *value],
        )
        self.changed(branch, key, value)

    @rule(handle=INDEX, key=KEYS, value=VALUES)
    def update(self, handle: int, key: Any, value: Any) -> None:
        db, branch = self.handle(handle)
        table, k = key
        done = db.execute(f'UPDATE "{table}" SET a = %s, n = %s WHERE {KEY[table]} = %s', [*value, k])
        assert done.rowcount == (key in self.model.rows[branch])
        if done.rowcount:
            self.changed(branch, key, value)

    @rule(handle=INDEX, key=KEYS)
    def delete(self, handle: int, key: Any) -> None:
        db, branch = self.handle(handle)
        table, k = key
        done = db.execute(f'DELETE FROM "{table}" WHERE {KEY[table]} = %s', [k])
        assert done.rowcount == (key in self.model.rows[branch])
        if done.rowcount:
            self.changed(branch, key, None)

    @rule(handle=INDEX, table=st.sampled_from(sorted(TABLES)))
    def update_all(self, handle: int, table: str) -> None:
        db, branch = self.handle(handle)
        done = db.execute(f"UPDATE \"{table}\" SET n = coalesce(n, 0) + 1 WHERE a <> ''")
        hit = [key for key, value in self.model.rows[branch].items() if key[0] == table and value[0]]
        assert done.rowcount == len(hit)
        for key in hit:
            a, n = self.model.rows[branch][key]
            self.changed(branch, key, (a, (n or 0) + 1))

    @rule(handle=INDEX, key=KEYS, value=VALUES)
    def roll_back(self, handle: int, key: Any, value: Any) -> None:
        db, _ = self.handle(handle)
        table, k = key
        try:
            with db.transaction():
                db.execute(f'DELETE FROM "{table}"')
                db.execute(f'INSERT INTO "{table}" VALUES (%s, %s, %s)', [k, *value])
                raise InterruptedError
        except InterruptedError:
            pass

    # -- branches ----------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.model.rows) < MAX_BRANCHES)
    @rule(handle=INDEX, source=INDEX, name=NAMES)
    def branch(self, handle: int, source: int, name: str) -> None:
        db, _ = self.handle(handle)
        if name in self.model.rows or name in self.model.tags:
            return
        start = self.pick(source)
        db.branch(name, from_=start)
        self.model.branch(self.model.node(start), name)

    @precondition(lambda self: self.model.tags and len(self.model.rows) < MAX_BRANCHES)
    @rule(handle=INDEX, tag=INDEX, name=NAMES)
    def branch_from_tag(self, handle: int, tag: int, name: str) -> None:
        db, _ = self.handle(handle)
        if name in self.model.rows or name in self.model.tags:
            return
        chosen = sorted(self.model.tags)[tag % len(self.model.tags)]
        db.branch(name, from_=chosen)
        self.model.branch(self.model.tags[chosen][0], name)

    @rule(handle=INDEX, branch=INDEX)
    def checkout(self, handle: int, branch: int) -> None:
        self.handles[handle % 2].checkout(self.pick(branch))

    @rule(branch=INDEX)
    def delete_branch(self, branch: int) -> None:
        name = self.pick(branch)
        if name == "main":
            return
        for handle in self.handles:
            if handle.current_branch == name:
                handle.checkout("main")
        self.handles[0].delete_branch(name)
        del self.model.rows[name], self.model.heads[name]
        self.model.touched.discard(name)

    @rule(branch=INDEX, name=NAMES)
    def rename_branch(self, branch: int, name: str) -> None:
        old = self.pick(branch)
        if old == "main" or name in self.model.rows or name in self.model.tags:
            return
        self.handles[1].rename_branch(old, name)
        for kept in (self.model.rows, self.model.heads):
            kept[name] = kept.pop(old)  # type: ignore[attr-defined]
        if old in self.model.touched:
            self.model.touched ^= {old, name}

    @precondition(lambda self: len(self.model.rows) > 1)
    @rule(handle=INDEX, source=INDEX, into=INDEX, on_conflict=st.sampled_from(["raise", "raise", "ours", "theirs"]))
    def merge(self, handle: int, source: int, into: int, on_conflict: Any) -> None:
        db, _ = self.handle(handle)
        a, b = self.pick(source), self.pick(into)
        if a == b:
            return
        before = dict(self.model.rows[b])
        shown = db.merge(a, b, on_conflict=on_conflict, dry_run=True)
        does, conflicts = self.model.merge(a, b, on_conflict)
        assert self.named(shown.conflicts) == conflicts
        try:
            done = db.merge(a, b, on_conflict=on_conflict)
        except ConflictError as error:
            assert on_conflict == "raise"
            assert self.named(error.conflicts) == conflicts
            assert conflicts
            return
        assert (done.commit is not None) == does
        assert self.named(done.conflicts) == conflicts
        after = self.model.rows[b]
        assert done.added == len(after.keys() - before.keys())
        assert done.removed == len(before.keys() - after.keys())
        assert done.changed == sum(before[key] != after[key] for key in before.keys() & after.keys())
        assert {(c.table, c.key) for c in shown.diff or ()} == {
            key for key in {*before, *after} if before.get(key) != after.get(key)
        }
        assert db.merge(a, b).commit is None

    def named(self, conflicts: Any) -> dict[Any, Any]:
        def values(row: dict[str, Any] | None) -> tuple[Any, ...] | None:
            return None if row is None else (row["a"], row["n"])

        return {(c.table, c.key): (values(c.base), values(c.ours), values(c.theirs)) for c in conflicts}

    # -- history -----------------------------------------------------------------------------------------------------

    @rule(handle=INDEX, branch=INDEX, name=NAMES)
    def tag(self, handle: int, branch: int, name: str) -> None:
        db, _ = self.handle(handle)
        if name in self.model.rows or name in self.model.tags:
            return
        chosen = self.pick(branch)
        db.tag(name, chosen)
        self.model.tags[name] = self.model.node(chosen), dict(self.model.rows[chosen])

    @precondition(lambda self: self.model.tags)
    @rule(tag=INDEX)
    def untag(self, tag: int) -> None:
        name = sorted(self.model.tags)[tag % len(self.model.tags)]
        self.handles[0].untag(name)
        del self.model.tags[name]

    @rule(handle=INDEX, message=st.text(max_size=5))
    def commit(self, handle: int, message: str) -> None:
        db, branch = self.handle(handle)
        self.past.append((db.commit(message).id, dict(self.model.rows[branch])))

    @precondition(lambda self: self.model.tags)
    @rule(tag=INDEX)
    def at_tag(self, tag: int) -> None:
        name = sorted(self.model.tags)[tag % len(self.model.tags)]
        with self.handles[0].at(name) as then:
            assert self.read(then) == self.model.tags[name][1]

    @precondition(lambda self: self.past)
    @rule(index=INDEX)
    def at_commit(self, index: int) -> None:
        commit, rows = self.past[index % len(self.past)]
        try:
            with self.handles[1].at(commit) as then:
                assert self.read(then) == rows
        except NotFoundError:
            assert self.pruned

    @precondition(lambda self: self.model.tags)
    @rule(handle=INDEX, tag=INDEX)
    def revert(self, handle: int, tag: int) -> None:
        db, branch = self.handle(handle)
        name = sorted(self.model.tags)[tag % len(self.model.tags)]
        done = db.revert(name)
        assert (done.commit is not None) == (self.model.rows[branch] != self.model.tags[name][1])
        if done.commit is not None:
            self.model.rows[branch] = dict(self.model.tags[name][1])
            self.model.touched.add(branch)

    @rule(a=INDEX, b=INDEX)
    def diff(self, a: int, b: int) -> None:
        first, second = self.pick(a), self.pick(b)
        before, after = self.model.rows[first], self.model.rows[second]
        found = {(c.table, c.key): (c.before, c.after) for c in self.handles[0].diff(first, second)}
        assert found.keys() == {key for key in {*before, *after} if before.get(key) != after.get(key)}
        for key, sides in found.items():
            shown = [None if side is None else (side["a"], side["n"]) for side in sides]
            assert shown == [before.get(key), after.get(key)]

    # -- care --------------------------------------------------------------------------------------------------------

    @rule(handle=INDEX, branch=INDEX)
    def reopen(self, handle: int, branch: int) -> None:
        place = handle % 2
        self.handles[place].close()
        self.handles[place] = self.place.connect(branch=self.pick(branch))

    @rule()
    def optimize(self) -> None:
        self.handles[0].optimize(keep=0)
        self.pruned = True

    @rule()
    def collect(self) -> None:
        self.handles[1].gc(dry_run=False, older_than_s=0)

    # -- by a plain random generator -----------------------------------------------------------------------------------

    def step(self, draw: random.Random) -> None:
        """One weighted step: half statements, a third merges."""
        index = draw.randrange
        key = "plain", draw.randrange(1, 4)
        value = draw.choice(["x", "y"]), draw.randrange(2)
        self.checkout(index(2), index(100))
        chance = draw.random()
        if chance < 0.4:
            self.upsert(index(2), key, value)
        elif chance < 0.5:
            self.delete(index(2), key)
        elif chance < 0.6 and len(self.model.rows) < MAX_BRANCHES:
            self.branch(index(2), index(100), f"b{len(self.model.nodes)}")
        elif chance < 0.95 and len(self.model.rows) > 1:
            self.merge(index(2), index(100), index(100), draw.choice(["raise", "ours", "theirs", "theirs"]))
        elif chance < 0.97:
            self.delete_branch(index(100))
        else:
            self.optimize()

    # -- always ------------------------------------------------------------------------------------------------------

    @invariant()
    def the_handles_show_their_branches(self) -> None:
        for index in range(len(getattr(self, "handles", ()))):
            db, branch = self.handle(index)
            assert self.read(db) == self.model.rows[branch]

    @invariant()
    def the_branches_are_known(self) -> None:
        if hasattr(self, "handles"):
            assert {b.name for b in self.handles[0].branches()} == set(self.model.rows)


def over(new_store: Callable[[], Any]) -> type[Histories]:
    class Chosen(Histories):
        make = staticmethod(new_store)

    return Chosen


@pytest.mark.parametrize("seed", range(6))
def test_histories_full_of_merges_equal_the_model(seed: int, new_store: Callable[[], Any], catalog_kind: str) -> None:
    """Few keys, many merges each way: the bases move and cross, which random rules alone seldom reach."""
    if catalog_kind == "postgres" and seed > 1:
        pytest.skip("a step takes ten times as long there")
    draw, machine = random.Random(seed), over(new_store)()
    machine.begin()
    try:
        for _ in range(120 if catalog_kind == "sqlite" else 50):
            machine.step(draw)
            machine.the_handles_show_their_branches()
    finally:
        machine.teardown()


def test_random_histories_equal_the_model(new_store: Callable[[], Any], catalog_kind: str) -> None:
    long, few = settings().max_examples >= 1_000, catalog_kind == "postgres"
    chosen = settings(
        max_examples=400 if long else 3 if few else 25,
        stateful_step_count=60 if long else 20 if few else 40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(over(new_store), settings=chosen)
