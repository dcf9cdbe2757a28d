"""Queries as a LightningDataModule: `DataModule` gives a Trainer its streams, and its checkpoints their state.

Lightning is not imported by anything else here; the extra ``lightning`` installs it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from deeplake_loader.database import connect
from deeplake_loader.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deeplake_loader.stream import Stream

_STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


def _lightning() -> Any:
    """Lightning under the name that the program has imported it by, because the two names' classes are strangers."""
    names = ("lightning.pytorch", "pytorch_lightning")
    for name in sorted(names, key=lambda n: n not in sys.modules):
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in ("lightning", "pytorch_lightning"):
                raise
    raise InputError(
        "deeplake_loader.lightning needs Lightning, which is not installed: pip install 'deeplake-loader[lightning]'"
    )


class DataModule(_lightning().LightningDataModule):  # type: ignore[misc]
    """One query per stage, streamed to each rank's Trainer; its state goes into every checkpoint.

    A batch is a dict as `Stream` makes it, on the Trainer's device. A fit with ``ckpt_path`` goes on with the very next
    sample, also in mid-epoch and with another batch size, number of workers or of devices. Training rows come shuffled;
    those of the other stages in order, each exactly once over all ranks (what a rank repeats to stay in step is False
    in ``batch["valid"]``), and with the same augmentation in every pass.

    Args:
        url: the store, as for `connect`.
        train, val, test, predict: SELECT statements; stages without one have no data.
        params: values of their placeholders, by stage: ``{"train": [25], "val": {"steps": 25}}``.
        batch_size: rows in one rank's batch.
        num_workers: DataLoader processes. With 0 the stream decodes in threads and copies to the device beside the
            computation, which is faster unless a training step holds the interpreter for long.
        branch: the branch that is read.
        at: a tag, commit or time to read instead of the branch's newest rows.
        eval_options: what differs from ``options`` in val, test and predict, like ``transforms`` or ``batch_size``.
        options: of the streams: ``transforms``, ``seed``, ``shuffle``, ``on_error`` and so on, see `Database.stream`.

    Raises:
        InputError: Lightning is not installed (at import), no query, an option that is no stream's.
        StateError: a checkpoint of other rows, or rows that changed while the ranks ran the query (read a tag then).

    >>> data = DataModule("./video-pipeline", batch_size=32,                            # doctest: +SKIP
    ...     train="SELECT frames, prompt FROM generations WHERE split = 'train'",
    ...     val="SELECT frames, prompt FROM generations WHERE split = 'val' ORDER BY id")
    >>> Trainer(max_epochs=2).fit(model, datamodule=data, ckpt_path="last")             # doctest: +SKIP
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        predict: str | None = None,
        params: Mapping[str, Sequence[Any] | Mapping[str, Any]] | None = None,
        batch_size: int,
        num_workers: int = 0,
        branch: str = "main",
        at: str | None = None,
        eval_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        given = {"train": train, "val": val, "test": test, "predict": predict}
        self._queries = {name: sql for name, sql in given.items() if sql is not None}
        if not self._queries:
            raise InputError("a DataModule needs a query: pass train=, val=, test= or predict=")
        refused = {"rank", "world_size"} & {*options, *(eval_options or {})}
        if refused:
            raise InputError(f"{' and '.join(sorted(refused))}: the Trainer says which rank this is; leave it out")
        unknown = {*(params or {})} - {*self._queries}
        if unknown:
            raise InputError(f"params for {', '.join(sorted(unknown))}, but the queries are {', '.join(self._queries)}")
        self._url, self._params, self._branch, self._at = url, dict(params or {}), branch, at
        self._options = {"batch_size": batch_size, "shuffle": True, **options}
        self._eval_options = {**self._options, "shuffle": False, "tail": "short", **(eval_options or {})}
        self._num_workers = num_workers
        self._loaders: dict[str, _Loader] = {}
        self._place: dict[str, Any] = {}
        self._pending: dict[str, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without loaders, which hold processes: another process makes its own, and goes on where these stand."""
        return {**self.__dict__, "_loaders": {}, "_place": {}, "_pending": self.state_dict().get("train")}

    # -- what the Trainer calls ------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Runs the stage's queries, once for every rank and Trainer."""
        place = self._placed()
        if place != self._place:
            self._pending, self._place = self.state_dict().get("train"), place
            self._loaders.clear()
        names = [name for name in _STAGES.get(stage or "", self._queries) if name in self._queries]
        for name in names:
            if name not in self._loaders:
                self._loaders[name] = self._loader(name)
        if "train" in names and self._pending is not None:
            self._train.load_state_dict(self._pending)
            self._pending = None

    def train_dataloader(self) -> Iterable[dict[str, Any]]:
        loader = self._made("train")
        if self.trainer is not None and self.trainer.fit_loop.restarting:
            _recount(self.trainer, self._train)
        return loader

    def val_dataloader(self) -> Iterable[dict[str, Any]]:
        return self._made("val") if "val" in self._queries else []

    def test_dataloader(self) -> Iterable[dict[str, Any]]:
        return self._made("test")

    def predict_dataloader(self) -> Iterable[dict[str, Any]]:
        return self._made("predict")

    def teardown(self, stage: str | None = None) -> None:  # noqa: ARG002 Lightning passes it
        """Ends worker processes; what follows starts new ones and goes on where these stood."""
        for loader in self._loaders.values():
            loader.close()

    def on_exception(self, exception: BaseException) -> None:  # noqa: ARG002 Lightning passes it
        """Like `teardown`, which the Trainer leaves out then."""
        self.teardown()

    def state_dict(self) -> dict[str, Any]:
        """Where training stands: after the last batch that a training step was given."""
        state = self._train.state_dict() if "train" in self._loaders else self._pending
        return {} if state is None else {"train": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Makes training go on there, at once or as soon as `setup` has made the stream.

        Raises:
            StateError: the state is of other rows, another query or order.
        """
        state = state_dict.get("train")
        if "train" in self._loaders and state is not None:
            self._train.load_state_dict(state)
        else:
            self._pending = state

    # -- streams ---------------------------------------------------------------------------------------------------

    @property
    def _train(self) -> _TrainLoader:
        loader = self._loaders["train"]
        assert isinstance(loader, _TrainLoader)
        return loader

    def _made(self, name: str) -> _Loader:
        if name not in self._queries:
            raise InputError(f"this DataModule has no {name} query (it has {', '.join(self._queries)}); pass {name}=")
        if name not in self._loaders:
            self.setup()
        return self._loaders[name]

    def _placed(self) -> dict[str, Any]:
        """This process among the data-parallel ones, and its device; nothing of it without a Trainer."""
        if self.trainer is None:
            return {}
        ranks = self.trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        device = self.trainer.strategy.root_device if self._num_workers == 0 else None
        on_cuda = device is not None and device.type == "cuda"
        return {"rank": ranks["rank"], "world_size": ranks["num_replicas"], **({"device": device} if on_cuda else {})}

    def _loader(self, name: str) -> _Loader:
        options = self._options if name == "train" else self._eval_options
        stream = self._stream(name, {**self._place, **options})
        if self._place.get("world_size", 1) > 1:
            stream.load_state_dict(self.trainer.strategy.broadcast(stream.state_dict()))
        if name != "train":
            return _Loader(stream, self._num_workers, fixed=True)
        return _TrainLoader(stream, self._num_workers, self.trainer)

    def _stream(self, name: str, options: Mapping[str, Any]) -> Stream:
        sql, params = self._queries[name], self._params.get(name)
        with connect(self._url, branch=self._branch, create=False, read_only=True) as db:
            if self._at is None:
                return db.stream(sql, params, **options)
            with db.at(self._at) as then:
                return then.stream(sql, params, **options)


class _Loader:
    """What Lightning iterates. It is no DataLoader, which Lightning would give a sampler, take apart or warn about.

    A pass begins with its first batch, because Lightning makes iterators that it never uses. A ``fixed`` one is epoch
    0 again every time.
    """

    def __init__(self, stream: Stream, workers: int, *, fixed: bool) -> None:
        self.stream, self._fixed = stream, fixed
        self._workers = _workers(stream, workers) if workers else None

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self._fixed:
            self.stream.set_epoch(0)
        yield from self.stream if self._workers is None else self._workers

    def close(self) -> None:
        """Ends the worker processes. Left to the garbage collector, torch waits 5 s for each and kills it then."""
        iterator = None if self._workers is None else self._workers._iterator
        if self._workers is not None and iterator is not None:
            iterator._shutdown_workers()
            self._workers._iterator = None


class _TrainLoader(_Loader):
    """Also tells its state, which Lightning asks loaders for as well as DataModules."""

    def __init__(self, stream: Stream, workers: int, trainer: Any) -> None:
        super().__init__(stream, workers, fixed=trainer is not None and trainer.overfit_batches > 0)
        self._trainer = trainer
        self._last: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in super().__iter__():
            self._last = {"_cursor": batch["_cursor"]}
            yield batch

    def state_dict(self) -> dict[str, Any]:
        if self._last is None:
            return self.stream.state_dict()
        state = self.stream.state_at(self._last)
        if state["position"] and self._trainer is not None and _epoch_is_over(self._trainer):
            state.update(epoch=state["epoch"] + 1, position=0)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state)
        self._last = None


def _workers(stream: Stream, count: int) -> Any:
    """A DataLoader whose processes live through all epochs."""
    import torch
    from torch.utils.data import DataLoader

    pinned = torch.cuda.is_available()
    return DataLoader(stream, batch_size=None, num_workers=count, persistent_workers=True, pin_memory=pinned)


def _epoch_is_over(trainer: Any) -> bool:
    """Whether the Trainer had its last batch of an epoch, which ``limit_train_batches`` may end before the stream."""
    return bool(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)


def _recount(trainer: Any, loader: _Loader) -> None:
    """Tells Lightning how many batches of the present size the epoch has had.

    It ends an epoch by counting batches: those of a checkpoint were larger or smaller ones if the batch size or the
    number of ranks was another, and the epoch would end too early.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    left = 0 if progress.is_last_batch else loader.stream.remaining()
    added = len(loader) - left - progress.current.ready
    if trainer.limit_train_batches == 1.0:
        for count in ("ready", "started", "processed", "completed"):
            setattr(progress.current, count, getattr(progress.current, count) + added)
