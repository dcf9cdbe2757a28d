"""A real Trainer over a DataModule: every row once however it is stopped, exact validation, nothing warned of."""

from __future__ import annotations

import gc
import json
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import deeplake_loader as deeplake
from deeplake_loader.errors import InputError, NotFoundError, StateError
from deeplake_loader.lightning import DataModule

ROWS, HELD_OUT, BATCH = 103, 27, 8
STEPS = -(-ROWS // BATCH)
TRAIN = "SELECT id, x, prompt FROM samples WHERE split = 'train'"
VAL = "SELECT id, x FROM samples WHERE split = 'val' ORDER BY id DESC"
HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("store")
    count = ROWS + HELD_OUT
    with deeplake.connect(folder) as db:
        db.execute("CREATE TABLE samples (id BIGINT PRIMARY KEY, x VECTOR(4), split TEXT, prompt TEXT)")
        vectors = np.arange(count * 4, dtype=np.float32).reshape(count, 4) / count
        splits = ["train"] * ROWS + ["val"] * HELD_OUT
        prompts = [f"prompt {i}" for i in range(count)]
        db.insert("samples", {"id": range(count), "x": vectors, "split": splits, "prompt": prompts})
        db.tag("v1")
    return str(folder)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert [t.name for t in threading.enumerate() if t.name.startswith("deeplake")] == []


class Model(pl.LightningModule):
    """Remembers the ids of every batch."""

    def __init__(self, *, die_at: int | None = None) -> None:
        super().__init__()
        self.net, self.die_at = torch.nn.Linear(4, 1), die_at
        self.seen: list[list[int]] = []
        self.validated: list[list[int]] = []

    def training_step(self, batch: dict[str, Any], _index: int) -> torch.Tensor:
        if len(self.seen) == self.die_at:
            raise InterruptedError("killed")
        self.seen.append(batch["id"].tolist())
        loss: torch.Tensor = self.net(batch["x"]).square().mean()
        return loss

    def validation_step(self, batch: dict[str, Any], _index: int) -> None:
        valid = batch.get("valid", torch.ones(len(batch["id"]), dtype=torch.bool))
        self.validated.append(batch["id"][valid].tolist())

    test_step = validation_step

    def predict_step(self, batch: dict[str, Any], _index: int) -> list[int]:
        found: list[int] = batch["id"].tolist()
        return found

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def trainer(folder: Path, *, every: int | None = None, **options: Any) -> pl.Trainer:
    saving = [ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=every)] if every else []
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"default_root_dir": folder, "enable_checkpointing": bool(saving), "max_epochs": 2}
    return pl.Trainer(callbacks=saving, **{**quiet, **options})


def data(root: str, **options: Any) -> DataModule:
    return DataModule(root, **{"train": TRAIN, "val": VAL, "batch_size": BATCH, **options})


def fit(
    folder: Path, module: DataModule, *, ckpt: str | None = None, die_at: int | None = None, **options: Any
) -> Model:
    model = Model(die_at=die_at)
    try:
        trainer(folder, **options).fit(model, datamodule=module, ckpt_path=ckpt and folder / f"{ckpt}.ckpt")
    except InterruptedError:
        assert die_at is not None
    return model


def flat(batches: list[list[int]]) -> list[int]:
    return [i for batch in batches for i in batch]


def orders(root: str, epochs: int) -> list[int]:
    """The ids of the first epochs, as a plain loop over the stream gives them."""
    with deeplake.connect(root) as db:
        stream = db.stream(TRAIN, batch_size=BATCH, shuffle=True)
        return [i for _ in range(epochs) for batch in stream for i in batch["id"].tolist()]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fit_sees_every_row_once_an_epoch_in_the_streams_own_order(root: str, tmp_path: Path, workers: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of torch
        model = fit(tmp_path, data(root, num_workers=workers))
    assert flat(model.seen) == orders(root, 2)
    assert [len(batch) for batch in model.seen[:STEPS]] == [BATCH] * (STEPS - 1) + [ROWS - BATCH * (STEPS - 1)]


def test_validation_sees_exactly_its_rows_in_the_order_asked_for(root: str, tmp_path: Path) -> None:
    model = fit(tmp_path, data(root, eval_options={"batch_size": 5}), num_sanity_val_steps=2)
    asked = list(range(ROWS + HELD_OUT - 1, ROWS - 1, -1))
    assert [len(batch) for batch in model.validated[:2]] == [5, 5]
    assert flat(model.validated[2:]) == asked * 2


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 5, STEPS - 1, STEPS, STEPS + 4])
def test_a_killed_fit_goes_on_with_the_very_next_sample(root: str, tmp_path: Path, workers: int, stop: int) -> None:
    killed = fit(tmp_path, data(root, num_workers=workers), every=stop, die_at=min(stop + 2, 2 * STEPS - 1))
    assert len(killed.seen) > stop
    resumed = fit(tmp_path, data(root, num_workers=2 - workers), ckpt=f"step={stop}")
    assert flat(killed.seen[:stop] + resumed.seen) == orders(root, 2)


@pytest.mark.parametrize("size", [4, 5, 16, 200])
@pytest.mark.parametrize("stop", [5, STEPS])
def test_another_batch_size_goes_on_at_the_same_row_and_ends_the_epochs_where_they_end(
    root: str, tmp_path: Path, size: int, stop: int
) -> None:
    killed = fit(tmp_path, data(root), every=stop, die_at=stop + 1)
    resumed = fit(tmp_path, data(root, batch_size=size), ckpt=f"step={stop}", max_epochs=3)
    assert flat(killed.seen[:stop] + resumed.seen) == orders(root, 3)


def test_several_kills_in_one_epoch_lose_and_repeat_nothing(root: str, tmp_path: Path) -> None:
    fit(tmp_path, data(root), every=1, die_at=4)
    for done in (3, 4, 9):
        model = fit(tmp_path, data(root), ckpt=f"step={done}", every=1, die_at=6)
        assert flat(model.seen) == orders(root, 2)[done * BATCH :][: len(flat(model.seen))]


def test_an_epoch_cut_short_by_a_limit_is_followed_by_the_next_also_after_a_resume(root: str, tmp_path: Path) -> None:
    whole = fit(tmp_path, data(root), every=4, max_epochs=3, limit_train_batches=4)
    order = orders(root, 3)
    assert flat(whole.seen) == [i for e in range(3) for i in order[e * ROWS :][: 4 * BATCH]]
    resumed = fit(tmp_path, data(root), ckpt="step=8", max_epochs=3, limit_train_batches=4)
    assert whole.seen[8:] == resumed.seen
    fit(tmp_path, data(root), every=3, max_epochs=3, limit_train_batches=4, die_at=7)
    resumed = fit(tmp_path, data(root), ckpt="step=6", max_epochs=3, limit_train_batches=4)
    assert whole.seen[6:] == resumed.seen


def test_a_fit_that_max_steps_ended_goes_on_in_mid_epoch(root: str, tmp_path: Path) -> None:
    first = fit(tmp_path, data(root), every=6, max_steps=6, max_epochs=-1)
    second = fit(tmp_path, data(root), ckpt="step=6", max_steps=20, max_epochs=-1)
    assert flat(first.seen + second.seen) == orders(root, 2)[: 19 * BATCH - 1 + BATCH]


def test_validation_in_mid_epoch_leaves_training_where_it_was(root: str, tmp_path: Path) -> None:
    model = fit(tmp_path, data(root), val_check_interval=5, every=7)
    assert flat(model.seen) == orders(root, 2) and len(model.validated) > 4 * HELD_OUT // BATCH
    resumed = fit(tmp_path, data(root), ckpt="step=7", val_check_interval=5)
    assert model.seen[7:] == resumed.seen


def test_gradient_accumulation_changes_neither_order_nor_resume(root: str, tmp_path: Path) -> None:
    fit(tmp_path, data(root), every=2, accumulate_grad_batches=3, die_at=8)
    resumed = fit(tmp_path, data(root), ckpt="step=2", accumulate_grad_batches=3)
    assert flat(resumed.seen) == orders(root, 2)[6 * BATCH :]


def test_a_second_fit_of_one_trainer_goes_on_with_the_next_epoch(root: str, tmp_path: Path) -> None:
    module, model, runner = data(root), Model(), trainer(tmp_path, max_epochs=1)
    runner.fit(model, datamodule=module)
    runner.fit_loop.max_epochs = 2
    runner.fit(model, datamodule=module)
    assert flat(model.seen) == orders(root, 2)


def test_overfitting_repeats_the_same_batches(root: str, tmp_path: Path) -> None:
    model = fit(tmp_path, data(root), overfit_batches=2, max_epochs=3)
    assert model.seen == model.seen[:2] * 3


def test_testing_and_prediction_see_their_rows_once(root: str, tmp_path: Path) -> None:
    runner, model = trainer(tmp_path), Model()
    module = data(
        root, test=VAL, predict="SELECT id, x FROM samples WHERE id < :n", params={"predict": {"n": 30}}, train=None
    )
    runner.test(model, datamodule=module, verbose=False)
    assert sorted(flat(model.validated)) == list(range(ROWS, ROWS + HELD_OUT))
    assert flat(runner.predict(model, datamodule=module)) == list(range(30))  # type: ignore[arg-type]


def test_stages_without_a_query_have_no_data(root: str, tmp_path: Path) -> None:
    model = fit(tmp_path, data(root, val=None), max_epochs=1)
    assert len(model.seen) == STEPS and model.validated == []
    with pytest.raises(InputError, match="no test query"):
        trainer(tmp_path).test(Model(), datamodule=data(root), verbose=False)


def test_a_branch_and_a_tag_are_read_where_they_are_named(root: str, tmp_path: Path) -> None:
    with deeplake.connect(root) as db, db.branch("short"):
        db.execute("DELETE FROM samples WHERE id >= 10")
    on_branch = fit(tmp_path, data(root, branch="short", val=None), max_epochs=1)
    at_tag = fit(tmp_path, data(root, at="v1", val=None), max_epochs=1)
    assert (sorted(flat(on_branch.seen)), sorted(flat(at_tag.seen))) == (list(range(10)), list(range(ROWS)))
    with pytest.raises(NotFoundError):
        data(root, branch="nowhere").setup()


def test_a_state_is_small_plain_and_refused_for_other_rows(root: str, tmp_path: Path) -> None:
    module = data(root)
    module.setup("fit")
    state = module.state_dict()
    assert json.loads(json.dumps(state)) == state and len(json.dumps(state)) < 1024
    other = data(root, train="SELECT id, x FROM samples WHERE id < 50")
    other.load_state_dict(state)  # kept until the rows are known
    with pytest.raises(StateError, match="query"):
        other.setup("fit")
    with pytest.raises(StateError):
        data(root, seed=1).load_state_dict(state) or fit(tmp_path, _loaded(data(root, seed=1), state))


def _loaded(module: DataModule, state: dict[str, Any]) -> DataModule:
    module.load_state_dict(state)
    return module


def test_a_state_loaded_before_or_after_setup_goes_on_there(root: str) -> None:
    module = data(root)
    module.setup("fit")
    batches = iter(module.train_dataloader())
    seen = [next(batches)["id"].tolist() for _ in range(3)]
    state = module.state_dict()
    early = _loaded(data(root), state)
    assert early.state_dict() == state
    late = data(root)
    late.setup("fit")
    for other in (early, _loaded(late, state), pickle.loads(pickle.dumps(module))):
        rest = [batch["id"].tolist() for batch in other.train_dataloader()]
        assert flat(seen + rest) == orders(root, 1)


def test_what_cannot_work_is_refused(root: str) -> None:
    with pytest.raises(InputError, match="needs a query"):
        DataModule(root, batch_size=4)
    with pytest.raises(InputError, match="params for test"):
        data(root, params={"test": [1]})
    with pytest.raises(InputError, match="rank: the Trainer"):
        data(root, rank=1)


def test_the_lightning_that_is_loaded_is_the_one_that_is_used() -> None:
    assert issubclass(DataModule, pl.LightningDataModule)
    code = """
        import sys
        {given}
        try:
            from deeplake_loader.lightning import DataModule
        except ValueError as error:
            print(error)
        else:
            print(DataModule.__mro__[1].__module__.partition(".")[0])
    """
    other = run(code.format(given="import pytorch_lightning"))
    assert other.stdout.strip() == "pytorch_lightning", other.stderr
    missing = run(code.format(given="sys.modules.update({'lightning.pytorch': None, 'pytorch_lightning': None})"))
    assert "pip install 'deeplake-loader[lightning]'" in missing.stdout, missing.stderr


def run(code: str, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": path},
    )


# -- two processes -----------------------------------------------------------------------------------------------------


class Diary(Model):
    """Writes each rank's ids to a file of its own, because the processes of a strategy end with it."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__()
        self.folder, self.name = folder, name

    def on_train_end(self) -> None:
        told = {"seen": self.seen, "validated": self.validated}
        (self.folder / f"{self.name}-{self.global_rank}.json").write_text(json.dumps(told))


def read(folder: Path, name: str, rank: int, what: str) -> list[list[int]]:
    found: list[list[int]] = json.loads((folder / f"{name}-{rank}.json").read_text())[what]
    return found


def test_two_processes_share_every_epoch_and_one_goes_on_from_their_checkpoint(root: str, tmp_path: Path) -> None:
    pair = {"strategy": "ddp_spawn", "devices": 2, "num_sanity_val_steps": 0}
    trainer(tmp_path, every=4, max_epochs=1, **pair).fit(Diary(tmp_path, "pair"), datamodule=data(root))
    ranks = [read(tmp_path, "pair", r, "seen") for r in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == -(-ROWS // (2 * BATCH))
    together = [flat(pair) for pair in zip(*ranks, strict=True)]
    order = orders(root, 2)
    for step, got in enumerate(together[:-1]):
        assert sorted(got) == sorted(order[step * 2 * BATCH :][: 2 * BATCH])
    assert set(flat(together)) == set(range(ROWS))
    validated = [i for r in range(2) for i in flat(read(tmp_path, "pair", r, "validated"))]
    assert sorted(validated) == list(range(ROWS, ROWS + HELD_OUT))

    alone = fit(tmp_path, data(root), ckpt="step=4")
    assert flat(alone.seen) == order[4 * 2 * BATCH :]
