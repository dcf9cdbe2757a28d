"""The state of a stream: what it says, and when it belongs to a stream."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from deeplake_loader.errors import StateError
from deeplake_loader.stream.schedule import Cursor, Schedule
from deeplake_loader.stream.source import Source

MEANINGS = {
    "order_version": "the version of the order",
    "seed": "the seed",
    "query": "the query's hash",
    "rows": "the number of rows",
    "digest": "the digest of the rows",
}
"""Words for the parts of an identity whose names do not say it."""


def identity(sources: Sequence[Source], schedule: Schedule) -> dict[str, Any]:
    """What must agree between a state and a stream. The commit need not, and is not in it: equal rows are enough."""
    return {**schedule.identity(), **_of_sources(sources)}


def _of_sources(sources: Sequence[Source]) -> dict[str, Any]:
    if len(sources) == 1:
        (source,) = sources
        return {"query": source.query, "rows": source.count, "digest": source.digest}
    queries = hashlib.sha256("\n".join(s.query for s in sources).encode()).hexdigest()[:16]
    digest = hashlib.sha256("\n".join(s.digest for s in sources).encode()).hexdigest()
    return {"query": queries, "rows": sum(s.count for s in sources), "digest": digest}


def commits(sources: Sequence[Source]) -> int | str | None:
    """The commit that the rows were read at; of several sources, all of them in one word."""
    known = [s.commit for s in sources]
    return known[0] if len(known) == 1 else hashlib.sha256(repr(known).encode()).hexdigest()[:16]


def check(state: Mapping[str, Any], own: Mapping[str, Any], *, commit: object, strict: bool) -> Cursor:
    """The cursor of a state that belongs to a stream of this identity.

    Raises:
        StateError: it is no state, or it differs; with ``strict=False`` a difference is only warned of.
    """
    if not isinstance(state, Mapping):
        raise StateError(f"this is no state of a stream but a {type(state).__name__}; pass what state_dict() gave")
    missing = [key for key in (*own, "epoch", "position") if key not in state]
    if missing and (strict or "epoch" in missing or "position" in missing):
        raise StateError(f"this is no state of a stream: {', '.join(missing)} missing; it has {', '.join(state)}")
    _compare(state, own, commit, strict)
    epoch, position = state["epoch"], state["position"]
    if not (isinstance(epoch, int) and isinstance(position, int)):
        raise StateError(f"epoch {epoch!r} and position {position!r} of the state must be integers")
    return epoch, position


def _compare(state: Mapping[str, Any], own: Mapping[str, Any], commit: object, strict: bool) -> None:
    differences = [
        f"{MEANINGS.get(key, key)} was {state.get(key)!r} and is {value!r}"
        for key, value in own.items()
        if state.get(key) != value
    ]
    if not differences:
        return
    said = (
        f"the state belongs to another stream: {'; '.join(differences)} "
        f"(taken at commit {state.get('commit')!r}, this stream reads commit {commit!r})"
    )
    if strict:
        raise StateError(f"{said}; load_state_dict(state, strict=False) goes on at its epoch and position all the same")
    warnings.warn(said, stacklevel=4)
