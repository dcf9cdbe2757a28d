"""The state of a stream: what it says, and when it belongs to a stream."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


_WORKERS_OWN = ("next", "workers", "step", "steps")
_SNAPSHOT, _DATASET_STATE = "_snapshot", "dataset_state"  # torchdata's keys, with workers and without


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which steps of a pass are one process's: number ``first``, ``first + stride`` ..., counted from ``base``."""

    epoch: int
    base: int
    first: int = 0
    stride: int = 1


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
    if _SNAPSHOT in state or _DATASET_STATE in state:
        raise StateError(
            "this is the state of a StatefulDataLoader; load it into such a loader, or give the stream "
            "state_from_loader(state)"
        )
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


def of_worker(state: Mapping[str, Any], assigned: Assignment, schedule: Schedule) -> dict[str, Any]:
    """One DataLoader worker's part: where its pass began, the next step it gives, and what that number rests on."""
    return {
        **state,
        "next": assigned.first,
        "workers": assigned.stride,
        "step": schedule.pace,
        "steps": schedule.steps((assigned.epoch, assigned.base)),
    }


def to_worker(state: Mapping[str, Any], cursor: Cursor, workers: int, schedule: Schedule) -> Assignment:
    """The pass that a worker goes on with, where steps still have the same numbers.

    Raises:
        StateError: another number of workers, or another size of a step.
    """
    for key, present in (("workers", workers), ("step", schedule.pace)):
        if state.get(key) != present:
            raise StateError(
                f"a DataLoader's state goes on only as it was taken: {key} was {state.get(key)!r} and is {present} "
                "(step: batch_size x world_size); to change that, load stream.state_at(batch) or "
                "state_from_loader(state) into the stream before the loader is made"
            )
    return Assignment(*cursor, int(state["next"]), workers)


def state_from_loader(loader_state: Mapping[str, Any]) -> dict[str, Any]:
    """The stream's state in the state of a torchdata StatefulDataLoader, for any number of workers and ranks.

    A loader's own ``load_state_dict`` goes on with as many workers and the same batches only, because its state holds
    each worker's part; this folds the parts into what `Stream.state_dict` gives in one process.

    Args:
        loader_state: what ``StatefulDataLoader(stream, batch_size=None, ...).state_dict()`` gave, with any
            ``snapshot_every_n_steps``; of one rank, for all.

    Raises:
        StateError: it is no such state, or of a loader with ``in_order=False``, whose workers are not in step.

    >>> loader = StatefulDataLoader(stream, batch_size=None, num_workers=4)             # doctest: +SKIP
    >>> stream.load_state_dict(state_from_loader(saved))                                # doctest: +SKIP
    """
    try:
        if _SNAPSHOT not in loader_state:
            return dict(loader_state[_DATASET_STATE])
        snapshots = loader_state[_SNAPSHOT]["_worker_snapshots"].values()
        parts = [dict(snapshot[_DATASET_STATE]) for snapshot in snapshots]
        since, following = int(loader_state["_steps_since_snapshot"]), [int(part.pop("next")) for part in parts]
        workers, size, steps = (int(parts[0][key]) for key in ("workers", "step", "steps"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StateError(
            "this is no state of a StatefulDataLoader over a stream; pass what its state_dict() gave "
            f"({type(error).__name__}: {error})"
        ) from error
    if any(part != parts[0] for part in parts):
        raise StateError("the workers of this loader's state read different passes; it cannot be folded into one")
    done = min(following)  # workers take turns: so many steps of the pass were delivered
    if sorted(following) != list(range(done, done + workers)):
        raise StateError(
            f"the loader's workers were not in step: their next batches are {sorted(following)}; make the loader with "
            "in_order=True, or take stream.state_at(batch)"
        )
    state = {key: value for key, value in parts[0].items() if key not in _WORKERS_OWN}
    if done + since >= steps:
        return {**state, "epoch": state["epoch"] + 1, "position": 0}
    return {**state, "position": state["position"] + (done + since) * size}
