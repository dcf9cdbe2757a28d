"""A small store of every kind of column for the tests of the command line, and how they call it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result
from conftest import moving_frames

import deeplake_loader as deeplake
from deeplake_loader import cli

ROOT = Path(__file__).resolve().parents[1]
ROWS, WIDTH = 6, 8
VECTORS = np.random.default_rng(5).normal(size=(ROWS, WIDTH)).astype(np.float32)


def wav(seconds: float = 0.2, rate: int = 8_000) -> bytes:
    """A sine of 440 Hz as 16-bit mono."""
    import io
    import wave

    samples = (np.sin(np.arange(int(seconds * rate)) * 2 * np.pi * 440 / rate) * 20_000).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(samples.tobytes())
    return file.getvalue()


def build(folder: Path) -> None:
    """A store of these rows in a folder."""
    with deeplake.connect(folder) as db:
        fill(db)


def fill(db: deeplake.Database) -> None:
    """Rows 1..6: the last one has no thumbnail, the fifth no document; tag v1, and a branch experiment with one row
    changed and one more."""
    db.execute(
        "CREATE TABLE generations (id BIGINT PRIMARY KEY, prompt TEXT NOT NULL, "
        f"clip_embedding VECTOR({WIDTH}), frames VIDEO, thumbnail IMAGE, sound AUDIO, "
        "latent TENSOR(float16, 2, 4), model_version TEXT DEFAULT 'sdxl-1.0', steps INTEGER CHECK (steps > 0), "
        "cfg DOUBLE PRECISION, meta JSON, raw BYTEA, created_at TIMESTAMP)"
    )
    db.insert("generations", [row(i) for i in range(ROWS)])
    db.tag("v1", message="first rows")
    with db.branch("experiment"):
        db.execute("UPDATE generations SET steps = 99 WHERE id = 2")
        db.execute("INSERT INTO generations (id, prompt, steps) VALUES (77, 'new', 5)")


def row(i: int) -> dict[str, Any]:
    return {
        "prompt": f'take {i}, "é" 漢', "clip_embedding": VECTORS[i], "frames": moving_frames(12 + i, seed=i),
        "thumbnail": moving_frames(1, seed=7 * i)[0] if i < 5 else None, "sound": wav() if i == 0 else None,
        "latent": np.full((2, 4), i, np.float16), "steps": 20 + i, "cfg": i / 3,
        "meta": {"a": [i, None]} if i != 4 else None, "raw": bytes([i, 255]),
        "created_at": f"2026-01-0{i + 1} 10:00:00",
    }  # fmt: skip


def run(store: Path | str | None, *arguments: str, text: str | None = None) -> Result:
    """The command line in this process."""
    named = () if store is None else ("--store", str(store))
    return CliRunner().invoke(cli.program, [*named, *arguments], input=text)


def ran(store: Path | str, *arguments: str, text: str | None = None) -> str:
    """What a command that works prints."""
    done = run(store, *arguments, text=text)
    assert done.exit_code == 0, (arguments, done.output, done.exception)
    return done.stdout


def start(store: Path | str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """The command line as a process of its own, with pipes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DEEPLAKE_STORE": str(store)}
    command = [sys.executable, "-m", "deeplake_loader.cli", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command, env=environment, **pipes)
