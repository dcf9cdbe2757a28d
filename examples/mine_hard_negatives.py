"""Find the prompts a model fails on, stream the nearest ones it has never seen, and fine-tune it on them.

python examples/mine_hard_negatives.py runs/mining

A small classifier of prompt embeddings knows only the common prompts. Each round asks which checked prompts it gets
wrong, and for each of several failures streams the prompts of a big unseen pool that lie nearest to it: hard negatives,
chosen by one query, without an index and without a copy. A twin is trained on as many prompts picked at random.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

import deeplake_loader as deeplake

WIDTH, CLASSES, BATCH = 32, 4, 32
ROUNDS, STEPS, FAILURES, NEIGHBOURS = 3, 40, 8, 24
NEAREST = f"""SELECT embedding, class, cosine_similarity(embedding, :failed) AS score FROM prompts
              WHERE split = 'pool' ORDER BY score DESC LIMIT {NEIGHBOURS}"""


def make_store(folder: Path) -> None:
    """Prompts of four classes: most lie about their class's centre, a few in a small island near another's."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(CLASSES, WIDTH)) * 1.2
    islands = centres[[1, 2, 3, 0]] + generator.normal(size=(CLASSES, WIDTH)) * 0.9
    rows = []
    for i in range(6_000):
        kind, split = i % CLASSES, "train" if i < 400 else "check" if i < 2_000 else "pool"
        rare = split != "train" and generator.random() < 0.03  # what the model has never seen
        middle, name = (islands[kind], "odd") if rare else (centres[kind], "plain")
        rows.append({
            "prompt": f"{name} prompt {i} of class {kind}",
            "embedding": (middle + generator.normal(size=WIDTH) * 0.5).astype(np.float32),
            "class": kind,
            "split": split,
        })  # fmt: skip
    with deeplake.connect(folder) as db:
        db.execute(f"""CREATE TABLE prompts (id BIGINT PRIMARY KEY, prompt TEXT, embedding VECTOR({WIDTH}),
                       class INTEGER, split TEXT)""")
        db.insert("prompts", rows)


def new_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, CLASSES))


def train(model: nn.Module, stream: deeplake.Stream, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    while steps > 0:
        for batch in stream:  # iterating again is the next epoch, in another order
            loss = nn.functional.cross_entropy(model(batch["embedding"]), batch["class"].long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps -= 1
            if not steps:
                return


@torch.no_grad()
def failures(model: nn.Module, db: deeplake.Database) -> tuple[float, np.ndarray]:
    """(share of the checked prompts that the model gets right, embeddings of those it gets wrong)."""
    right, wrong = 0, []
    stream = db.stream("SELECT embedding, class FROM prompts WHERE split = 'check'", batch_size=200)
    for batch in stream:
        good = model(batch["embedding"]).argmax(1) == batch["class"]
        right += int(good.sum())
        wrong.append(batch["embedding"][~good])
    failed = torch.cat(wrong)
    return right / (right + len(failed)), failed.numpy()


def nearest_to(db: deeplake.Database, failed: np.ndarray, seed: int) -> list[deeplake.Stream]:
    """A stream for each of some failures: its neighbours in the pool."""
    chosen = np.random.default_rng(seed).permutation(failed)[:FAILURES]
    return [db.stream(NEAREST, {"failed": one}, batch_size=BATCH, shuffle=True, seed=seed) for one in chosen]


def at_random(db: deeplake.Database, seed: int) -> list[deeplake.Stream]:
    """As many prompts of the pool, without looking."""
    sql = f"""SELECT embedding, class, 0.0 AS score FROM prompts WHERE split = 'pool'
              ORDER BY md5(id || '-{seed}') LIMIT {FAILURES * NEIGHBOURS}"""
    return [db.stream(sql, batch_size=BATCH, shuffle=True, seed=seed)]


def beside(easy: deeplake.Stream, new: list[deeplake.Stream]) -> deeplake.Stream:
    """As many easy prompts as new ones, lest the model forget; a shorter stream begins again."""
    return deeplake.mix({**dict.fromkeys(new, 1), easy: len(new)}, stop="cycle")


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/mining")
    if not folder.exists():
        make_store(folder)
    with deeplake.connect(folder) as db:
        known = "SELECT embedding, class, 0.0 AS score FROM prompts WHERE split = 'train'"
        easy = db.stream(known, batch_size=BATCH, shuffle=True)
        model, twin = new_model(), new_model()
        for each in (model, twin):
            train(each, easy, steps=100)
        share, failed = failures(model, db)
        print(f"before: {share:.4f} right, {len(failed)} failures")
        mined: list[deeplake.Stream] = []
        random: list[deeplake.Stream] = []
        for turn in range(ROUNDS):
            mined += nearest_to(db, failed, turn)  # those of the rounds before stay in the mix
            random += at_random(db, turn)
            train(model, beside(easy, mined), steps=STEPS)
            train(twin, beside(easy, random), steps=STEPS)
            share, failed = failures(model, db)
            chance, _ = failures(twin, db)
            print(f"round {turn + 1}: {share:.4f} right, {chance:.4f} with random prompts", flush=True)
            if not len(failed):
                break


if __name__ == "__main__":
    main()
