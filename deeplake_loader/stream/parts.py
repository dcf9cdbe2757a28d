"""One column's rows of one step, on their way to the value that the batch holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from deeplake_loader.errors import DeeplakeError, InputError
from deeplake_loader.stream.payloads import Payloads

Indices = npt.NDArray[np.int64]


class Part(Protocol):
    """One column's rows of one step."""

    @property
    def tasks(self) -> Sequence[Callable[[], None]]:
        """What the decoding threads have to do."""

    @property
    def errors(self) -> Mapping[int, DeeplakeError]:
        """Rows that could not be read or decoded, by place; complete once the tasks are done."""

    @property
    def nbytes(self) -> int:
        """Bytes that were read for it, all of them verified."""

    @property
    def retries(self) -> int:
        """Rows that had to be read a second time."""

    def put(self, place: int, value: Any) -> None:
        """Gives a row that has an error this value instead.

        Raises:
            InputError: it does not fit beside the others.
        """

    def value(self, keep: Indices | None) -> Any:
        """The value for the batch: of the rows at these places, or of all."""

    def release(self) -> None:
        """Gives the bytes read for it back."""


@dataclass(slots=True)
class Ready:
    """A part that needs no decoding."""

    content: torch.Tensor | Payloads | list[Any]
    errors: dict[int, DeeplakeError] = field(default_factory=dict)
    nbytes: int = 0
    retries: int = 0
    tasks: Sequence[Callable[[], None]] = ()

    def put(self, place: int, value: Any) -> None:
        self.content = replaced(self.content, place, value)

    def value(self, keep: Indices | None) -> Any:
        return kept(self.content, keep)

    def release(self) -> None:
        """Nothing is held beyond the content."""


def replaced(content: Any, place: int, value: Any) -> Any:
    """The content with another row at that place: the same object, or for payloads a new one.

    Raises:
        InputError: the value does not fit beside the others.
    """
    if isinstance(content, Payloads):
        if not isinstance(value, bytes | bytearray | memoryview):
            raise InputError(f"on_error gave a {type(value).__name__}, the column holds bytes; return bytes for it")
        return content.replaced(place, value)
    if not isinstance(content, torch.Tensor):
        content[place] = value
        return content
    row = content[place]
    try:
        found = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"on_error gave a {type(value).__name__}, the batch needs a tensor: {error}") from error
    if found.shape != row.shape:
        raise InputError(f"on_error gave a value of shape {tuple(found.shape)}, the batch needs {tuple(row.shape)}")
    row.copy_(found)
    return content


def kept(content: Any, keep: Indices | None) -> Any:
    """The tensor's, payloads' or list's values at these places."""
    if keep is None:
        return content
    if isinstance(content, torch.Tensor):
        return content[torch.from_numpy(keep)]
    return content.take(keep) if isinstance(content, Payloads) else [content[i] for i in keep.tolist()]


class Joined:
    """One column of a batch whose rows are of several sources: each part with the places of its rows."""

    def __init__(self, parts: Sequence[tuple[Part, Indices]], count: int) -> None:
        self._parts, self._count = parts, count
        self.tasks: Sequence[Callable[[], None]] = [task for part, _ in parts for task in part.tasks]
        self.nbytes, self.retries = sum(p.nbytes for p, _ in parts), sum(p.retries for p, _ in parts)

    @property
    def errors(self) -> Mapping[int, DeeplakeError]:
        return {int(places[i]): error for part, places in self._parts for i, error in part.errors.items()}

    def put(self, place: int, value: Any) -> None:
        for part, places in self._parts:
            for i in np.flatnonzero(places == place).tolist():
                part.put(i, value)

    def value(self, keep: Indices | None) -> Any:
        """A tensor where the sources' values are tensors that fit together; a list in every other case."""
        wanted = np.arange(self._count) if keep is None else keep
        values = [(part.value(own), out) for part, own, out in self._chosen(wanted)]
        kinds = {(v.dtype, v.shape[1:]) if isinstance(v, torch.Tensor) else None for v, _ in values}
        first = values[0][0]
        if len(kinds) == 1 and isinstance(first, torch.Tensor):
            return _joined([(value, torch.from_numpy(out)) for value, out in values], len(wanted))
        items: list[Any] = [None] * len(wanted)
        for value, out in values:
            for place, item in zip(out.tolist(), value, strict=True):
                items[place] = item
        return items

    def _chosen(self, wanted: Indices) -> Iterator[tuple[Part, Indices, Indices]]:
        """Each part that has some of the wanted places: its own numbers of them, and where in the batch they go."""
        for part, places in self._parts:
            own = np.full(self._count, -1, np.int64)
            own[places] = np.arange(len(places))
            out = np.flatnonzero(own[wanted] >= 0)
            if len(out):
                yield part, own[wanted[out]], out

    def release(self) -> None:
        self.tasks = ()
        for part, _ in self._parts:
            part.release()


def _joined(values: Sequence[tuple[torch.Tensor, torch.Tensor]], count: int) -> torch.Tensor:
    """The rows of several tensors, each at its places; on a GPU complete when this returns."""
    first = values[0][0]
    # the default stream would make this wait for the consumer's computation
    stream = torch.cuda.Stream(first.device) if first.is_cuda else None  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):  # does nothing for None
        joined = first.new_empty((count, *first.shape[1:]), pin_memory=first.is_pinned())
        for value, places in values:
            joined[places] = value
    if stream is not None:
        stream.synchronize()
    return joined
