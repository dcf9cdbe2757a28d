"""A stream as the source of a torchdata.nodes pipeline: `StreamNode`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torchdata.nodes import BaseNode

if TYPE_CHECKING:
    from deeplake_loader.stream import Stream


class StreamNode(BaseNode):  # type: ignore[misc]
    """A node whose items are the stream's batches and whose state is the stream's, exact below any node.

    Every ``reset()`` is the next epoch (a ``Loader`` resets at each ``iter``), a reset to a state goes on there. The
    stream is the node's while it lasts: iterate it nowhere else.

    >>> from torchdata.nodes import Loader, Prefetcher                                  # doctest: +SKIP
    >>> loader = Loader(Prefetcher(StreamNode(stream), prefetch_factor=2))              # doctest: +SKIP
    >>> for batch in loader: state = loader.state_dict()                                # doctest: +SKIP
    """

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream
        self._batches: Iterator[dict[str, Any]] = iter(())
        self._state: dict[str, Any] | None = None

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        """Begins the next epoch, or what is left of the one that a state was taken in.

        Raises:
            StateError: the state is of another query, order, seed or set of rows.
        """
        super().reset(initial_state)
        if initial_state is not None:
            self.stream.load_state_dict(initial_state)
        elif self._state is not None and self._state["position"]:  # left in mid-epoch: the state must say so at once
            self.stream.set_epoch(self._state["epoch"] + 1)
        self._batches, self._state = iter(self.stream), None

    def next(self) -> dict[str, Any]:
        """The next batch."""
        batch = next(self._batches)
        self._state = self.stream.state_at(batch)
        return batch

    def get_state(self) -> dict[str, Any]:
        """Where the next batch begins."""
        return self.stream.state_dict() if self._state is None else self._state
