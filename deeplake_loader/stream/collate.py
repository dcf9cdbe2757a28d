"""What becomes of a batch's values before they leave the loader: ragged columns, the user's `collate` and `map`.

It runs in the loader's threads, on the host, before the copy to a device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from deeplake_loader.decode import transforms
from deeplake_loader.errors import DimensionError, InputError
from deeplake_loader.stream.columns import OWN_KEYS, Column, Scalars
from deeplake_loader.stream.device import Batch
from deeplake_loader.stream.media import Media

_NAMED = 8
"""Keys that a message names."""

MapBatch = Callable[[Batch], Mapping[str, Any]]
Collate = Callable[[list[dict[str, Any]]], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Pad:
    """Ragged items as one tensor, filled up behind their ends, and ``<column>_length``.

    ``value``: what fills; ``multiple``: every padded dimension is rounded up to a multiple of it, which keeps the
    number of distinct shapes small. ``<column>_length`` is int64: (N,) for items of one dimension, else (N, D), the
    size of each item in each of its D dimensions.

    >>> Pad(value=-100, multiple=8).multiple
    8
    """

    value: float = 0
    multiple: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.multiple, bool) or not isinstance(self.multiple, int) or self.multiple < 1:
            raise InputError(f"Pad(multiple={self.multiple!r}): expected a positive integer")


Ragged = Literal["pad", "list", "nested"] | Pad


@dataclass(frozen=True, slots=True)
class Rule:
    """How one column's items become a value; ``axes``: dimensions taken as ragged also where all items agree."""

    how: Ragged
    axes: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True)
class Shaping:
    """The steps, in their order: ragged columns by ``rules`` or the user's ``collate``, then every one of ``maps``.

    ``names`` of the sources of a mix replace their numbers.
    """

    rules: Mapping[str, Rule] = field(default_factory=dict)
    collate: Collate | None = None
    maps: tuple[MapBatch, ...] = ()
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for given, what in ((self.collate, "collate"), *((fn, "map") for fn in self.maps)):
            if not callable(given) and (given is not None or what == "map"):
                raise InputError(f"{what} takes a function, got {given!r}")
        if self.collate is not None and self.rules:
            raise InputError("collate= makes the batch of samples; drop ragged=")

    def mapped(self, fn: MapBatch) -> Shaping:
        """The same with another function behind the others."""
        return replace(self, maps=(*self.maps, fn))

    def apply(self, batch: Batch) -> Batch:
        """The batch as the user wants it. Keys of our own that a function leaves out are put back.

        Raises:
            InputError: a function gave no dict. What a function raises has a note with the keys of the batch.
        """
        if self.names is not None and "_source" in batch:
            batch["_source"] = [self.names[i] for i in batch["_source"].tolist()]
        if self.collate is not None:
            batch = _called(self.collate, samples(batch), batch)
        for name, rule in self.rules.items():
            batch.update(shaped(name, batch[name], rule))
        for fn in self.maps:
            batch = _called(fn, dict(batch), batch)
        return batch


def make_rules(columns: Sequence[Column], ragged: Ragged | Mapping[str, Ragged] | None) -> dict[str, Rule]:
    """The rule of every column that has one; a single choice goes for all decoded media columns.

    Raises:
        InputError: no such choice, no such column, one whose items cannot be ragged or are NULL in some rows.
    """
    if ragged is None:
        return {}
    media = [c for c in columns if isinstance(c, Media) and isinstance(c.transform, transforms.Transform)]
    if not isinstance(ragged, Mapping):
        ragged = {column.name: ragged for column in media}
    known = {column.name: column for column in columns}
    rules = {}
    for name, how in ragged.items():
        if how not in ("pad", "list", "nested") and not isinstance(how, Pad):
            raise InputError(f"ragged={how!r} is none of 'pad', 'list', 'nested' and Pad(...)")
        if name not in known:
            raise InputError(f"ragged has {name!r}, but the query's columns are {', '.join(known)}")
        _check_column(known[name], how, known)
        rules[name] = Rule(Pad() if how == "pad" else how, _axes(known[name]))
    return rules


def _axes(column: Column) -> tuple[int, ...]:
    """Samples of sound, height and width of an image, frames of a video, the first dimension of a tensor."""
    transform = column.transform if isinstance(column, Media) else None
    if isinstance(transform, transforms.Image):
        return (1, 2) if transform.layout == "CHW" else (0, 1)
    if isinstance(transform, transforms.Video) and transform.layout == "CTHW":
        return (1,)
    return (1,) if isinstance(transform, transforms.Audio) else (0,)


def _check_column(column: Column, how: Ragged, known: Mapping[str, Column]) -> None:
    name = column.name
    decoded = isinstance(column, Media) and isinstance(column.transform, transforms.Transform)
    lists = isinstance(column, Scalars) and not isinstance(column.values, np.ndarray)
    if not decoded and not lists:
        raise InputError(f"ragged={{{name!r}: ...}}: the column's items have one shape or are bytes; drop it")
    if how == "list":
        return
    nulls = any(v is None for v in column.values) if isinstance(column, Scalars) else column.nullable
    if nulls:
        raise InputError(f"column {name!r} is NULL in some rows, which have no shape; add WHERE {name} IS NOT NULL")
    if how != "nested" and f"{name}_length" in known:
        raise InputError(f"padding {name!r} adds the key '{name}_length'; rename the column of that name with AS")


def samples(batch: Batch) -> list[dict[str, Any]]:
    """The rows of a batch, each a dict of its columns' items.

    >>> samples({"a": torch.tensor([1, 2]), "b": ["x", "y"], "_cursor": (0, 2)})
    [{'a': tensor(1), 'b': 'x'}, {'a': tensor(2), 'b': 'y'}]
    """
    columns = {name: value for name, value in batch.items() if name not in OWN_KEYS}
    return [dict(zip(columns, items, strict=True)) for items in zip(*columns.values(), strict=True)]


def shaped(name: str, value: Any, rule: Rule) -> dict[str, Any]:
    """The keys that a ragged column gives a batch.

    >>> shaped("t", [torch.tensor([1, 2]), torch.tensor([3])], Rule(Pad()))
    {'t': tensor([[1, 2],
            [3, 0]]), 't_length': tensor([2, 1])}
    """
    items = [_item(name, item) for item in value] if rule.how != "list" else list(value)
    if rule.how == "list":
        return {name: items}
    if len({item.dim() for item in items}) > 1 or len({item.dtype for item in items}) > 1:
        found = ", ".join(sorted({f"{item.dim()}-dimensional {item.dtype}" for item in items}))
        raise DimensionError(f"column {name!r} has items of different kinds in one batch ({found}); use ragged='list'")
    if items[0].dim() == 0:
        raise DimensionError(f"column {name!r} has items of no dimension, which are not ragged; drop it from ragged=")
    if isinstance(rule.how, Pad):
        return _padded(name, items, rule.how, rule.axes)
    return {name: _nested(name, items, rule.axes[0])}


def _item(name: str, item: Any) -> torch.Tensor:
    if isinstance(item, torch.Tensor):
        return item
    try:
        return torch.tensor(item)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"column {name!r} holds {type(item).__name__} values that make no tensor: {error}") from error


def _padded(name: str, items: Sequence[torch.Tensor], pad: Pad, axes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    sizes = torch.tensor([item.shape for item in items], dtype=torch.int64)
    widest = sizes.amax(0).tolist()
    for d, size in enumerate(widest):
        if d in axes or bool((sizes[:, d] != size).any()):
            widest[d] = -(-size // pad.multiple) * pad.multiple
    out = torch.full((len(items), *widest), pad.value, dtype=items[0].dtype)
    for row, item in zip(out, items, strict=True):
        row[tuple(slice(size) for size in item.shape)] = item
    return {name: out, f"{name}_length": sizes[:, 0] if sizes.shape[1:] == (1,) else sizes}


def _nested(name: str, items: Sequence[torch.Tensor], axis: int) -> torch.Tensor:
    """A jagged tensor: (N, *, ...) with one dimension that differs."""
    ragged = [d for d in range(items[0].dim()) if len({item.shape[d] for item in items}) > 1]
    if len(ragged) > 1:
        raise DimensionError(
            f"column {name!r} differs in dimensions {ragged} of {items[0].dim()}; a nested tensor has one ragged "
            "dimension: use 'pad' or 'list', or give the column a size"
        )
    axis = ragged[0] if ragged else min(axis, items[0].dim() - 1)
    sizes = torch.tensor([0, *(item.shape[axis] for item in items)])
    return torch.nested.nested_tensor_from_jagged(torch.cat(list(items), axis), sizes.cumsum(0), jagged_dim=axis + 1)


def _called(fn: Callable[[Any], Any], given: Any, batch: Batch) -> Batch:
    """What a function of the user's makes, with the keys of our own."""
    own = {key: batch[key] for key in OWN_KEYS if key in batch}
    try:
        made = fn(given)
    except Exception as error:
        error.add_note(f"in {_name(fn)}, on {_named(own)}")
        raise
    if not isinstance(made, Mapping):
        raise InputError(f"{_name(fn)} gave {type(made).__name__} for a batch; it must return a dict")
    return {**own, **made, "_cursor": own["_cursor"]}


def _name(fn: object) -> str:
    return f"the function {getattr(fn, '__qualname__', fn)!s}"


def _named(own: Mapping[str, Any]) -> str:
    values = own.get("_keys", own["_rows"])
    keys = values.tolist() if isinstance(values, torch.Tensor) else list(values)
    what = "keys" if "_keys" in own else "row numbers"
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return f"the batch with {what} {', '.join(map(repr, keys[:_NAMED]))}{more}"
