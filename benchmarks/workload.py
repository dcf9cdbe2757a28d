"""What the benchmarks insert and ask: generated images of a text-to-image model, with prompts, parameters, embeddings.

The embeddings are 1,000 directions with noise, as embeddings of real prompts cluster; 15 % of the rows pass the
query's WHERE. The peers get the same rows; deeplake 4 has no timestamps, so it gets microseconds as integers.
"""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np

from deeplake_loader.database import Database, connect

DIMENSION = 768
TOP = 20
SCALARS = ("id", "prompt", "model_version", "cfg_scale", "steps", "created_at")
TABLE = """CREATE TABLE generations (id BIGINT PRIMARY KEY, prompt TEXT NOT NULL, clip_embedding VECTOR(768),
           image IMAGE, model_version TEXT, cfg_scale REAL, steps INTEGER, created_at TIMESTAMP)"""
WITHOUT_IMAGES = TABLE.replace("image IMAGE, ", "")
PLAIN_TABLE = WITHOUT_IMAGES.replace("clip_embedding VECTOR(768),", "")
WHERE = "model_version = 'sdxl-1.0' AND steps >= 25"
QUERY = f"""SELECT id, prompt, cosine_similarity(clip_embedding, :query_vec) AS score FROM generations
            WHERE {WHERE} ORDER BY score DESC LIMIT {TOP}"""

Columns = dict[str, Any]
Vector = np.ndarray[Any, np.dtype[np.float32]]

_WORDS = ("castle", "harbour", "fox", "orchid", "robot", "glacier", "violin", "market", "desert", "lantern")
_STYLES = ("oil on canvas", "35mm photograph", "isometric render", "watercolour", "low poly", "charcoal sketch")
_VERSIONS = ("sdxl-1.0", "sd-3.5", "flux-dev", "wan-2")
_STEPS = (15, 20, 25, 30, 40)


def columns(rows: int, *, first: int = 0) -> Columns:
    """The rows by column, without images; the same numbers always give the same rows."""
    generator = np.random.default_rng(7 + first)
    number = np.arange(first, first + rows)
    return {
        "id": number + 1,
        "prompt": [_prompt(i) for i in range(first, first + rows)],
        "clip_embedding": _embeddings(rows, generator),
        "model_version": [_VERSIONS[i] for i in generator.integers(0, len(_VERSIONS), rows)],
        "cfg_scale": generator.integers(2, 24, rows).astype(np.float32) / 2,
        "steps": np.array(_STEPS, np.int32)[generator.integers(0, len(_STEPS), rows)],
        "created_at": np.datetime64("2025-01-01T00:00:00", "us") + number * np.timedelta64(1_000_001, "us"),
    }


def _prompt(i: int) -> str:
    return f"a {_WORDS[i % 10]} beside a {_WORDS[i // 10 % 10]}, {_STYLES[i // 100 % 6]}, soft light, take {i}"


def _embeddings(rows: int, generator: np.random.Generator) -> Vector:
    directions = np.random.default_rng(1).standard_normal((1000, DIMENSION), dtype=np.float32)
    out = generator.standard_normal((rows, DIMENSION), dtype=np.float32)
    out *= 0.7
    out += directions[generator.integers(0, len(directions), rows)]
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    return out


def query_vectors(count: int) -> list[Vector]:
    return list(_embeddings(count, np.random.default_rng(99)))


def passing(given: Columns) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The rows that the query's WHERE lets through."""
    result: np.ndarray[Any, np.dtype[np.bool_]] = (np.array(given["model_version"]) == "sdxl-1.0") & (
        given["steps"] >= 25
    )
    return result


def check_top(given: Columns, query: Vector, found: list[int], who: str) -> None:
    """Recall 1.0, and best first: every score reaches the K-th best of a float64 brute force (ties to 1e-6)."""
    rows = np.flatnonzero(passing(given))
    exact = given["clip_embedding"][rows].astype(np.float64)
    scores = exact @ query.astype(np.float64) / np.linalg.norm(exact, axis=1) / np.linalg.norm(query.astype(np.float64))
    by_id = dict(zip(given["id"][rows].tolist(), scores.tolist(), strict=True))
    best = np.sort(scores)[::-1][:TOP]
    got = [by_id.get(i, -2.0) for i in found]
    if len(set(found)) != TOP or not np.allclose(got, best, rtol=0, atol=1e-6):
        raise AssertionError(f"{who}: recall is not 1.0 over {len(rows)} rows: ids {found}, scores {got}, not {best}")


@cache
def jpegs(count: int) -> list[bytes]:
    """``count`` different 256x256 JPEGs of 22 KB on average."""
    from PIL import Image

    generator, made = np.random.default_rng(3), []
    for _ in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (16, 16, 3), np.uint8)).resize(
            (256, 256), Image.Resampling.BICUBIC
        )
        noise = generator.normal(0, 8, (256, 256, 1))
        pixels = np.clip(np.asarray(coarse, np.float64) + noise, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
        made.append(buffer.getvalue())
    return made


def scalar_bytes(given: Columns) -> bytes:
    """The scalars as plain text: what a plain file would hold of them."""
    values = zip(*(given[n].tolist() if hasattr(given[n], "tolist") else given[n] for n in SCALARS), strict=True)
    return "\n".join(map(str, values)).encode()


# -- stores ------------------------------------------------------------------------------------------------------------


def new_store(folder: str, *, images: bool = False) -> Database:
    """An empty store of ours with the table."""
    db = connect(folder)
    db.execute(TABLE if images else WITHOUT_IMAGES)
    return db


def new_deeplake(folder: str, *, images: bool = False, creds: dict[str, str] | None = None) -> Any:
    """An empty deeplake dataset with the same columns."""
    import deeplake

    dataset = deeplake.create(folder, creds=creds)
    kinds = {
        "id": "int64",
        "prompt": "text",
        "clip_embedding": deeplake.types.Embedding(DIMENSION),
        "model_version": "text",
        "cfg_scale": "float32",
        "steps": "int32",
        "created_at": "int64",
    }
    if images:
        kinds["image"] = deeplake.types.Image(dtype="uint8", sample_compression="jpeg")
    for name, kind in kinds.items():
        dataset.add_column(name, kind)
    dataset.commit()
    return dataset


def for_deeplake(given: Columns) -> Columns:
    return {**given, "created_at": given["created_at"].astype(np.int64)}


def append_deeplake(dataset: Any, given: Columns, *, batch: int = 10_000) -> None:
    """Appends in the batch that suits deeplake best (10,000 rows: 1.0-1.4 of one call, 1.0-2.0 of 1,000), commits."""
    for start in range(0, len(given["id"]), batch):
        dataset.append({name: values[start : start + batch] for name, values in given.items()})
    dataset.commit()


def deeplake_query(query: Vector) -> str:
    """The query in deeplake's language: no parameters, and no ORDER BY of an alias."""
    score = f"cosine_similarity(clip_embedding, ARRAY[{','.join(f'{x:.9g}' for x in query.tolist())}])"
    return f"SELECT id, prompt, {score} AS score WHERE {WHERE} ORDER BY {score} DESC LIMIT {TOP}"
