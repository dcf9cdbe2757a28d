"""A plain training loop over a query. Stop it at any step, run it again: it goes on with the very next sample.

python examples/train_loop.py runs/loop
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import deeplake_loader as deeplake

EPOCHS, SAVE_EVERY = 2, 4
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 230)}


def make_store(folder: Path) -> None:
    """Pictures of one colour under noise, each with its colour's number."""
    generator = np.random.default_rng(0)
    with deeplake.connect(folder) as db, db.transaction():
        db.execute("CREATE TABLE photos (id BIGINT PRIMARY KEY, picture IMAGE, colour INTEGER, quality REAL)")
        rows = []
        for i in range(120):
            clean = np.full((40, 48, 3), list(COLOURS.values())[i % 3])
            picture = np.clip(clean + generator.normal(0, 60, clean.shape), 0, 255).astype(np.uint8)
            rows.append({"picture": picture, "colour": i % 3, "quality": generator.random()})
        db.insert("photos", rows)


def save(path: Path, **parts: Any) -> None:
    """The file is the old one or the new one, never half of one, whenever the process or the machine stops."""
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        torch.save(parts, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/loop")
    folder.mkdir(parents=True, exist_ok=True)
    store, checkpoint = folder / "store", folder / "checkpoint.pt"
    if not store.exists():
        make_store(store)

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    optimizer = torch.optim.AdamW(model.parameters(), 2e-2)
    step = 0

    # The query picks the rows; the stream shuffles, decodes and crops them in threads.
    with deeplake.connect(store) as db:
        stream = db.stream(
            "SELECT picture, colour FROM photos WHERE quality >= %s",
            [0.1],
            batch_size=8,
            shuffle=True,
            transforms={"picture": deeplake.Image(size=32, crop="random_resized", flip=0.5)},
        )

    if checkpoint.exists():
        parts = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(parts["model"])
        optimizer.load_state_dict(parts["optimizer"])
        torch.set_rng_state(parts["rng"])
        stream.load_state_dict(parts["stream"])  # the rows left of the epoch come, each once
        step = parts["step"]
        print(f"going on after step {step}")

    while (epoch := stream.state_dict()["epoch"]) < EPOCHS:
        for batch in stream:  # iterating again is the next epoch, in another order
            pictures = batch["picture"].float().div(127.5).sub(1)
            loss = nn.functional.cross_entropy(model(pictures), batch["colour"].long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            print(f"epoch {epoch} step {step} loss {loss.item():.4f}", flush=True)
            if step % SAVE_EVERY == 0:
                save(
                    checkpoint,
                    model=model.state_dict(),
                    optimizer=optimizer.state_dict(),
                    rng=torch.get_rng_state(),
                    stream=stream.state_dict(),  # counts what this loop was given, not what was decoded ahead
                    step=step,
                )
    print(f"done after {step} steps")


if __name__ == "__main__":
    main()
