"""Loaders of a stream inside the wrappers of Lightning and Accelerate: nothing is lost, repeated or resharded."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from lightning.pytorch.callbacks import ModelCheckpoint
from stream_store import ROWS, Store
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

FEW = ["id", "embedding"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    yield
    gc.collect()


def flat(batches: Any) -> list[int]:
    return [int(i) for batch in batches for i in batch["id"]]


def epochs(store: Store, count: int) -> list[int]:
    stream = store.stream(FEW)
    return [i for _ in range(count) for i in flat(stream)]


# -- Accelerate --------------------------------------------------------------------------------------------------------


def prepared(loader: Any, **options: Any) -> Any:
    configuration = DataLoaderConfiguration(**options)
    return Accelerator(cpu=True, dataloader_config=configuration).prepare(loader)


LOADERS = [
    pytest.param({"num_workers": 0}, id="in the process"),
    pytest.param({"num_workers": 1}, id="1 worker"),
    pytest.param({"num_workers": 3}, id="3 workers"),
    pytest.param({"num_workers": 2, "persistent_workers": True}, id="persistent"),
    pytest.param(
        {"num_workers": 2, "multiprocessing_context": "forkserver", "persistent_workers": True}, id="forkserver"
    ),
]


@pytest.mark.parametrize("options", LOADERS)
def test_a_loader_that_accelerate_prepared_gives_the_streams_own_epochs(store: Store, options: dict[str, Any]) -> None:
    loader = prepared(DataLoader(store.stream(FEW), batch_size=None, **options))
    assert [flat(loader) for _ in range(2)] == [epochs(store, 2)[:ROWS], epochs(store, 2)[ROWS:]]


def test_accelerate_fetches_one_batch_ahead_and_state_at_tells_what_was_trained(store: Store) -> None:
    stream = store.stream(FEW)
    loader = prepared(DataLoader(stream, batch_size=None))
    for _, batch in zip(range(4), loader, strict=False):
        state = stream.state_at(batch)
    assert state["position"] == 4 * 8 and stream.state_dict()["position"] == 5 * 8
    again = store.stream(FEW)
    again.load_state_dict(state)
    assert flat(prepared(DataLoader(again, batch_size=None))) == epochs(store, 1)[4 * 8 :]


@pytest.mark.parametrize("workers", [0, 2])
def test_accelerates_stateful_loaders_give_the_state_of_what_was_trained(store: Store, workers: int) -> None:
    def make() -> Any:
        return prepared(
            DataLoader(store.stream(FEW), batch_size=None, num_workers=workers), use_stateful_dataloader=True
        )

    loader = make()
    for _, _ in zip(range(5), loader, strict=False):
        state = loader.state_dict()
    again = make()
    again.load_state_dict(state)
    assert flat(again) == epochs(store, 1)[5 * 8 :]


def test_a_stream_among_accelerates_checkpoints_goes_on_where_it_stood(store: Store, tmp_path: Path) -> None:
    accelerator, stream = Accelerator(cpu=True), store.stream(FEW)
    accelerator.register_for_checkpointing(stream)
    seen = flat(batch for _, batch in zip(range(6), stream, strict=False))
    accelerator.save_state(str(tmp_path / "saved"))
    other = store.stream(FEW)
    accelerator = Accelerator(cpu=True)
    accelerator.register_for_checkpointing(other)
    accelerator.load_state(str(tmp_path / "saved"))
    assert seen + flat(other) == epochs(store, 1)


# -- Lightning ---------------------------------------------------------------------------------------------------------


class Model(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(4, 1)
        self.seen: list[int] = []

    def training_step(self, batch: dict[str, Any], _index: int) -> torch.Tensor:
        self.seen += flat([batch])
        loss: torch.Tensor = self.net(batch["embedding"]).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-9)


def fit(folder: Path, loader: Any, *, ckpt: Path | None = None, **options: Any) -> list[int]:
    saving = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=5)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    model = Model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl.Trainer(callbacks=[saving], **{"max_epochs": 2, **quiet, **options}).fit(model, loader, ckpt_path=ckpt)
    end_workers(loader)
    return model.seen


def end_workers(loader: Any) -> None:
    """Left in a reference cycle to the garbage collector, torch waits 5 s for each."""
    iterator = getattr(loader, "_iterator", None)
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()


@pytest.mark.parametrize("options", LOADERS)
def test_a_plain_loader_in_a_trainer_gives_the_streams_own_epochs(
    store: Store, tmp_path: Path, options: dict[str, Any]
) -> None:
    assert fit(tmp_path, DataLoader(store.stream(FEW), batch_size=None, **options)) == epochs(store, 2)


@pytest.mark.parametrize("workers", [None, 0, 2])
def test_a_bare_stream_or_a_stateful_loader_in_a_trainer_resumes_exactly(
    store: Store, tmp_path: Path, workers: int | None
) -> None:
    def make() -> Any:
        stream = store.stream(FEW)
        return stream if workers is None else StatefulDataLoader(stream, batch_size=None, num_workers=workers)

    fit(tmp_path, make(), max_steps=7)
    rest = fit(tmp_path / "again", make(), ckpt=tmp_path / "step=5.ckpt")
    assert rest == epochs(store, 2)[5 * 8 :]
