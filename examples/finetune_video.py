"""Fine-tune a small video denoiser on the clips that a query picks, on a branch of the data.

python examples/finetune_video.py runs/video --branch experiment/no-blue

Kill it whenever you like (also with SIGKILL) and run the same line again: it goes on from the last checkpoint, and on
the CPU every later loss has the same bits as in a run that was never killed.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import deeplake_loader as deeplake

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 230), "white": (240, 240, 240)}
MOTIONS = {"rising": (-2, 0), "falling": (2, 0), "drifting left": (0, -2), "drifting right": (0, 2)}
WORDS = {word: np.random.default_rng(i).normal(size=16) for i, word in enumerate([*COLOURS, *MOTIONS])}
QUERY = """SELECT frames, clip_embedding FROM generations
           WHERE quality >= :quality AND model_version = 'toy-1' AND frames IS NOT NULL"""


def embed(colour: str, motion: str) -> np.ndarray:
    """(16,) float32: stands in for CLIP's embedding of the prompt."""
    return (WORDS[colour] + WORDS[motion]).astype(np.float32)


def draw(colour: str, motion: str, seed: int) -> np.ndarray:
    """(12, 48, 48, 3) uint8: a square that moves over a dark ground."""
    y, x = np.random.default_rng(seed).integers(14, 24, 2)
    frames = np.full((12, 48, 48, 3), 30, np.uint8)
    for t, frame in enumerate(frames):
        top, left = y + MOTIONS[motion][0] * t // 2, x + MOTIONS[motion][1] * t // 2
        frame[top : top + 12, left : left + 12] = COLOURS[colour]
    return frames


def make_store(folder: Path) -> None:
    pairs = [(colour, motion) for colour in COLOURS for motion in MOTIONS] * 3
    with deeplake.connect(folder) as db:
        db.execute("""CREATE TABLE generations (id BIGINT PRIMARY KEY, prompt TEXT NOT NULL, clip_embedding VECTOR(16),
                      frames VIDEO, model_version TEXT, quality REAL)""")
        rows = [
            {
                "prompt": f"a {colour} square {motion}",
                "clip_embedding": embed(colour, motion),
                "frames": draw(colour, motion, seed),
                "model_version": "toy-1",
                "quality": 0.5 + seed % 7 / 10,
            }
            for seed, (colour, motion) in enumerate(pairs)
        ]
        db.insert("generations", rows)


def open_branch(store: Path, name: str) -> deeplake.Database:
    """A handle on the branch; made and cleaned up there first, if it is new. main never notices."""
    db = deeplake.connect(store)
    if name in [branch.name for branch in db.branches()]:
        db.checkout(name)
    else:
        db.branch(name)
        db.execute("UPDATE generations SET quality = 0 WHERE prompt LIKE '%blue%'")
    return db


class Denoiser(nn.Module):
    """Predicts the noise in a clip: 3-D convolutions, attention over time, told the time step and the prompt."""

    def __init__(self, width: int = 16, embedding: int = 16) -> None:
        super().__init__()
        self.inside = nn.Conv3d(3, width, 3, padding=1)
        self.told = nn.Sequential(nn.Linear(embedding + 1, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width))
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.outside = nn.Conv3d(width, 3, 3, padding=1)

    def forward(self, clip: torch.Tensor, time: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        """``clip`` (N, 3, T, H, W), ``time`` (N,) in 0..1, ``prompt`` (N, D); as large as the clip."""
        scale, shift = self.told(torch.cat([prompt, time[:, None]], 1))[..., None, None, None].chunk(2, 1)
        hidden = nn.functional.silu(self.inside(clip) * (1 + scale) + shift)
        frames = hidden.mean((3, 4)).transpose(1, 2)  # (N, T, width): what each frame shows, for the others
        seen = self.attention(frames, frames, frames, need_weights=False)[0].transpose(1, 2)
        noise: torch.Tensor = self.outside(hidden + seen[..., None, None])
        return noise


def loss_of(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """The error of the predicted noise, at a random time of the diffusion for each clip."""
    clips = batch["frames"].float().div(127.5).sub(1)
    time, noise = torch.rand(len(clips)), torch.randn_like(clips)
    angle = (time * math.pi / 2).view(-1, 1, 1, 1, 1)
    noisy = clips * angle.cos() + noise * angle.sin()
    return nn.functional.mse_loss(model(noisy, time, batch["clip_embedding"]), noise)


def save(path: Path, **parts: Any) -> None:
    """The file is the old one or the new one, never half of one, whenever the process or the machine stops."""
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        torch.save(parts, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def stream_of(db: deeplake.Database, quality: float) -> deeplake.Stream:
    """Clips of at least that quality: a part drawn anew in every epoch, cropped, perhaps mirrored."""
    clip = deeplake.Video(
        num_frames=8, sampling="random", size=32, crop="random_resized", scale=(0.6, 1), layout="CTHW"
    )
    return db.stream(QUERY, {"quality": quality}, batch_size=6, shuffle=True, seed=1, transforms={"frames": clip})


def pretrain(store: Path, path: Path) -> None:
    """The checkpoint that fine-tuning starts from: a few steps on all clips of main."""
    torch.manual_seed(0)
    model = Denoiser()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    with deeplake.connect(store) as db:
        stream = stream_of(db, quality=0)
    for batch in stream:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    save(path, model=model.state_dict())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder: its checkpoint, and unless said otherwise the store")
    parser.add_argument("--store", type=Path, help="the store; made if it is not there")
    parser.add_argument("--branch", default="main", help="train on this branch of the data; made if it is not there")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=4, help="steps between checkpoints")
    given = parser.parse_args()
    store, checkpoint = given.store or given.run / "store", given.run / "checkpoint.pt"
    given.run.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the same sums in the same order, so the same bits
    torch.use_deterministic_algorithms(True)

    if not store.exists():
        make_store(store)
    base = store.parent / "base.pt"
    if not base.exists():
        pretrain(store, base)
    with open_branch(store, given.branch) as db:
        stream = stream_of(db, quality=0.6)  # pinned to the rows as they are now
    print(f"{stream!r} of {given.branch}")

    model = Denoiser()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    if checkpoint.exists():
        parts = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(parts["model"])
        optimizer.load_state_dict(parts["optimizer"])
        stream.load_state_dict(parts["stream"])
        torch.set_rng_state(parts["rng"])
        step = parts["step"]
        print(f"going on after step {step}")
    else:
        model.load_state_dict(torch.load(base, weights_only=True)["model"])
        torch.manual_seed(2)
        step = 0

    while (epoch := stream.state_dict()["epoch"]) < given.epochs:
        for batch in stream:
            loss = loss_of(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            print(f"epoch {epoch} step {step} loss {loss.item():.4f} = {loss.item().hex()}", flush=True)
            if step % given.save_every == 0:
                save(
                    checkpoint,
                    model=model.state_dict(),
                    optimizer=optimizer.state_dict(),
                    stream=stream.state_dict(),
                    rng=torch.get_rng_state(),  # noise and times of the diffusion; crops come from the stream's state
                    step=step,
                )
    print(f"done after {step} steps")


if __name__ == "__main__":
    main()
