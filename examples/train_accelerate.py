"""Hugging Face Accelerate over a query, on any number of processes. Stop it, run it again: it goes on where it stood.

python examples/train_accelerate.py runs/accelerate
accelerate launch --num_processes 2 examples/train_accelerate.py runs/accelerate
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

import deeplake_loader as deeplake

EPOCHS, SAVE_EVERY = 2, 5


def make_store(folder: Path) -> None:
    """Embeddings with a score that a linear model can learn."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(400, 16)).astype(np.float32)
    with deeplake.connect(folder) as db:
        db.execute("CREATE TABLE prompts (id BIGINT PRIMARY KEY, embedding VECTOR(16), liking REAL)")
        db.insert("prompts", {"embedding": vectors, "liking": vectors[:, :4].sum(1)})


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/accelerate")
    accelerator = Accelerator()
    with accelerator.main_process_first():
        if not (folder / "store").exists():
            make_store(folder / "store")

    # The stream knows its rank and puts batches on the device itself, so it does not go through accelerator.prepare(),
    # which would read everything on one process and send it around.
    with deeplake.connect(folder / "store", read_only=True) as db:
        stream = db.stream(
            "SELECT id, embedding, liking FROM prompts",
            batch_size=16,
            shuffle=True,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            device=accelerator.device,
        )

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(stream)  # its state goes into every save_state()
    checkpoint = folder / "checkpoint"
    if checkpoint.exists():
        accelerator.load_state(str(checkpoint))
        accelerator.print(f"going on in epoch {stream.state_dict()['epoch']} at row {stream.state_dict()['position']}")

    step = 0
    while (epoch := stream.state_dict()["epoch"]) < EPOCHS:
        for batch in stream:
            predicted = model(batch["embedding"])[:, 0]
            weight = batch["valid"].float() if "valid" in batch else torch.ones_like(predicted)  # 0 for repeated rows
            loss = (weight * (predicted - batch["liking"]).square()).mean()
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            step += 1
            if step % SAVE_EVERY == 0:
                accelerator.save_state(str(checkpoint))
                accelerator.print(f"epoch {epoch} step {step} loss {loss.item():.4f}", flush=True)
    accelerator.print(f"done after {step} steps")
    accelerator.end_training()


if __name__ == "__main__":
    main()
