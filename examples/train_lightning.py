"""A Lightning Trainer fed by queries. Stop it at any step, run it again: it goes on with the very next sample.

python examples/train_lightning.py runs/lightning
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import deeplake_loader as deeplake
from deeplake_loader.lightning import DataModule


def make_store(folder: Path) -> None:
    """Embeddings with a score that a linear model can learn."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(500, 16)).astype(np.float32)
    with deeplake.connect(folder) as db:
        db.execute("CREATE TABLE prompts (id BIGINT PRIMARY KEY, embedding VECTOR(16), liking REAL, split TEXT)")
        split = np.where(np.arange(500) % 5 == 0, "val", "train").tolist()
        db.insert("prompts", {"embedding": vectors, "liking": vectors[:, :4].sum(1), "split": split})


class Liking(pl.LightningModule):
    """How well a prompt is liked, from its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 1))

    def training_step(self, batch: dict[str, Any], _index: int) -> torch.Tensor:
        loss = nn.functional.mse_loss(self.net(batch["embedding"])[:, 0], batch["liking"])
        self.log("loss", loss, batch_size=len(batch["liking"]))
        return loss

    def validation_step(self, batch: dict[str, Any], _index: int) -> None:
        error = (self.net(batch["embedding"])[:, 0] - batch["liking"]).square()
        if "valid" in batch:  # with several devices some repeat a row, to stay in step with the others
            error = error[batch["valid"]]
        self.log("val_loss", error.mean(), batch_size=len(error), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-2)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/lightning")
    store = folder / "store"
    if not store.exists():
        make_store(store)

    # Every rank runs the queries when the Trainer sets it up, and reads its own share.
    data = DataModule(
        store,
        train="SELECT embedding, liking FROM prompts WHERE split = 'train'",
        val="SELECT embedding, liking FROM prompts WHERE split = 'val' ORDER BY id",
        batch_size=32,
        eval_options={"batch_size": 64},
    )
    # The data's state is in every checkpoint, also in those of mid-epoch.
    saving = ModelCheckpoint(folder / "checkpoints", save_last=True, every_n_train_steps=5)
    trainer = pl.Trainer(
        max_epochs=3, accelerator="auto", callbacks=[saving], logger=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Liking(), datamodule=data, ckpt_path="last")
    print(f"{trainer.global_step} steps, val_loss {trainer.callback_metrics['val_loss'].item():.4f}")


if __name__ == "__main__":
    main()
