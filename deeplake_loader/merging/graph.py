"""History as a graph: nodes with up to two parents, and the best common ancestors of two of them.

A node stands for a branch's rows at one commit; a merge has two parents, the target's node first. A three-way merge
against the fork point alone goes wrong as soon as branches merge twice or crosswise, so its base is found here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

R = TypeVar("R")


class Graph:
    """The nodes by number, each with its parents.

    >>> crossed = Graph({1: (), 2: (1,), 3: (1,), 4: (2, 3), 5: (3, 2)})
    >>> crossed.bases(4, 5)
    (2, 3)
    """

    def __init__(self, parents: Mapping[int, tuple[int, ...]]) -> None:
        self._parents = parents
        self._ancestors: dict[int, frozenset[int]] = {}

    def ancestors(self, node: int) -> frozenset[int]:
        """The node and everything it came from."""
        found = self._ancestors.get(node)
        if found is None:
            seen, todo = set(), [node]
            while todo:
                at = todo.pop()
                if at not in seen:
                    seen.add(at)
                    todo += self._parents[at]
            found = self._ancestors[node] = frozenset(seen)
        return found

    def bases(self, a: int, b: int) -> tuple[int, ...]:
        """The common ancestors that no other common ancestor comes from, in ascending order; several after merges
        that crossed, none for histories that share nothing."""
        common = self.ancestors(a) & self.ancestors(b)
        passed = {parent for node in common for parent in self._parents[node]}
        return tuple(sorted(common - passed))

    def virtual_base(self, a: int, b: int, read: Callable[[int], R], merge: Callable[[R, R, R], R]) -> R:
        """The base of a merge of ``a`` and ``b``: its one best common ancestor, or several merged into one, each pair
        over its own base in turn.

        Args:
            read: a node's rows.
            merge: (rows so far, rows of the next ancestor, their base) -> merged rows, ambiguous where both changed.
        """
        first, *others = self.bases(a, b)
        rows = read(first)
        for other in others:
            rows = merge(rows, read(other), self.virtual_base(first, other, read, merge))
        return rows

    def reachable_bases(self, a: int, b: int) -> frozenset[int]:
        """Every node that `virtual_base` would read."""
        first, *others = self.bases(a, b)
        found = {first, *others}
        for other in others:
            found |= self.reachable_bases(first, other)
        return frozenset(found)
