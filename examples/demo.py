"""Build a small generative-video store, query it, branch it, train on a stream of it, and look at what came out.

    python examples/demo.py                     # clips drawn on the spot
    python examples/demo.py --data FOLDER       # your own videos, images and prompts (.txt, .csv, .tsv, .json, .jsonl)

Everything it writes lies in --store (default ./demo-store), which is made anew each time.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from PIL import ImageDraw
from pyarrow import parquet
from torch import nn

import deeplake_loader as deeplake

DIMENSION = 384
VIDEOS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".flv", ".m2v", ".3gp", ".ts"}
IMAGES = {".jpg", ".jpeg", ".png", ".webp"}
COLOURS = {"red": (220, 50, 47), "green": (60, 160, 60), "blue": (50, 90, 220), "yellow": (240, 200, 40),
           "white": (245, 245, 245), "violet": (150, 70, 200)}  # fmt: skip
SHAPES = ("circle", "square", "triangle")
MOTIONS = {"drifting left": (-1, 0), "drifting right": (1, 0), "rising": (0, -1), "falling": (0, 1)}
TABLE = """CREATE TABLE generations (id BIGINT PRIMARY KEY, prompt TEXT NOT NULL, prompt_embedding VECTOR(384),
           frames VIDEO, thumbnail IMAGE, latent TENSOR(float16, 4, 12, 16), model_version TEXT, cfg_scale REAL,
           steps INTEGER, source TEXT, created_at TIMESTAMP DEFAULT NOW())"""
QUERY = """SELECT id, prompt, frames, thumbnail, model_version, cfg_scale, steps,
                  cosine_similarity(prompt_embedding, :query) AS score
           FROM generations WHERE (frames IS NOT NULL OR thumbnail IS NOT NULL) AND steps >= :steps
           ORDER BY score DESC LIMIT 8"""


def embed(text: str) -> np.ndarray:
    """A (384,) unit vector of the words' hashes: near texts share words. Stands in for a real text encoder."""
    vector = np.zeros(DIMENSION, np.float32)
    for word in text.lower().replace(",", " ").split():
        state = zlib.crc32(word.encode())
        for _ in range(8):
            state = (state * 1664525 + 1013904223) % 2**32
            vector[state % DIMENSION] += 1 if state >> 31 else -1
    norm = float(np.linalg.norm(vector))
    return vector / norm if norm else vector


def draw_clip(colour: str, shape: str, motion: str, seed: int) -> np.ndarray:
    """(24, 96, 128, 3) uint8 frames of one moving shape."""
    generator = np.random.default_rng(seed)
    (dx, dy), background = MOTIONS[motion], tuple(generator.integers(10, 90, 3).tolist())
    x, y, radius = 64 - 40 * dx, 48 - 30 * dy, int(generator.integers(10, 18))
    frames = []
    for t in range(24):
        image = Pillow.new("RGB", (128, 96), background)
        pen, cx, cy = ImageDraw.Draw(image), x + 3.4 * dx * t, y + 2.6 * dy * t
        box = (cx - radius, cy - radius, cx + radius, cy + radius)
        if shape == "circle":
            pen.ellipse(box, fill=COLOURS[colour])
        elif shape == "square":
            pen.rectangle(box, fill=COLOURS[colour])
        else:
            pen.polygon([(cx, cy - radius), (cx - radius, cy + radius), (cx + radius, cy + radius)], COLOURS[colour])
        frames.append(np.asarray(image))
    return np.stack(frames)


def drawn_rows(count: int) -> Iterator[dict[str, Any]]:
    """Generations made on the spot: every combination of colour, shape and motion, with a sampler's parameters."""
    kinds = [(c, s, m) for c in COLOURS for s in SHAPES for m in MOTIONS]
    for i in range(count):
        colour, shape, motion = kinds[i * 29 % len(kinds)]
        prompt, frames = f"a {colour} {shape} {motion}, take {i}", draw_clip(colour, shape, motion, i)
        yield {
            "prompt": prompt,
            "prompt_embedding": embed(prompt),
            "frames": frames,
            "thumbnail": frames[12],
            "latent": np.random.default_rng(i).normal(size=(4, 12, 16)).astype(np.float16),
            "model_version": ("sdxl-1.0", "sd3", "wan-2")[i % 3],
            "cfg_scale": 4.0 + i % 5,
            "steps": 20 + 5 * (i % 5),
            "source": "drawn",
        }


def read_prompts(folder: Path, limit: int) -> Iterator[tuple[str, str]]:
    """(prompt, file name) of every text in the folder's .txt, .csv, .tsv, .json and .jsonl files."""
    seen: set[str] = set()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in {".txt", ".csv", ".tsv", ".json", ".jsonl"}):
        for text in _texts(path):
            clean = " ".join(text.replace("\0", "").split())
            if clean and clean not in seen and len(seen) < limit:
                seen.add(clean)
                yield clean, path.name


def _texts(path: Path) -> Iterator[str]:
    body = path.read_text(errors="replace", encoding="utf-8-sig")
    if path.suffix == ".txt":
        yield from body.splitlines()
    elif path.suffix in (".csv", ".tsv"):
        tabs = path.suffix == ".tsv"
        quoting = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
        reader = csv.DictReader(body.splitlines(keepends=True), delimiter="\t" if tabs else ",", quoting=quoting)
        names = [n for n in reader.fieldnames or () if n.lower() in ("prompt", "text", "caption", "input.caption")]
        yield from (row[names[0]] or "" for row in reader if names)
    else:
        found = [json.loads(line) for line in body.splitlines()] if path.suffix == ".jsonl" else json.loads(body)
        items = found.values() if isinstance(found, dict) else found
        for item in items:
            if isinstance(item, dict):
                yield next((str(item[k]) for k in ("prompt", "prompt_en", "text", "caption") if k in item), "")


def found_rows(folder: Path, limit: int) -> Iterator[dict[str, Any]]:
    """Rows of a folder's files, stored untouched: videos and images under their names, and prompts without media."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEOS | IMAGES)
    files = [p for p in files if not {"corrupt", "tricky"} & set(p.parts)]
    prompts = list(read_prompts(folder, limit))
    print(f"   found {len(files)} media files and {len(prompts)} prompts in {folder}")
    named = [
        (" ".join(re.findall(r"[A-Za-z]+", p.stem.partition("__")[2] or p.stem)) or p.stem, p.name, p) for p in files
    ]
    for i, (prompt, source, path) in enumerate([*named, *((text, name, None) for text, name in prompts)]):
        video = path is not None and path.suffix.lower() in VIDEOS
        yield {
            "prompt": prompt,
            "prompt_embedding": embed(prompt),
            "frames": path if video else None,
            "thumbnail": None if video else path,
            "model_version": ("sdxl-1.0", "sd3", "wan-2")[i % 3],
            "cfg_scale": 4.0 + i % 5,
            "steps": 20 + 5 * (i % 5),
            "source": source,
        }


def find_embeddings(folder: Path) -> Iterator[tuple[list[str], np.ndarray]]:
    """Texts with ready vectors: NAME.parquet with a text column beside NAME.npy with as many float rows."""
    for path in sorted(folder.rglob("*.npy")):
        table = path.with_suffix(".parquet")
        if table.exists():
            columns = parquet.read_table(table)
            texts = next(
                (columns[n].to_pylist() for n in ("prompt", "text", "caption") if n in columns.column_names), []
            )
            vectors = np.load(path, allow_pickle=False)
            if len(texts) == len(vectors) and vectors.ndim == 2:
                yield texts, vectors.astype(np.float32)


def search_embeddings(db: deeplake.Database, folder: Path) -> None:
    """Real sentence vectors, if the folder has some: which prompts mean nearly the same as one of them?"""
    for number, (texts, vectors) in enumerate(find_embeddings(folder)):
        name = f"texts_{number}"
        db.execute(f"CREATE TABLE {name} (id BIGINT PRIMARY KEY, text TEXT, embedding VECTOR({vectors.shape[1]}))")
        db.insert(name, {"text": texts, "embedding": vectors})
        row = db.execute(f"SELECT text, embedding FROM {name} ORDER BY (text ILIKE %s) DESC, id LIMIT 1", ["%a cat %"])[
            0
        ]
        print(f"   {len(texts)} ready vectors of {vectors.shape[1]}; nearest in meaning to {row.text[:60]!r}:")
        for hit in db.search(name, "embedding", row.embedding, k=4):
            print(f"   {hit.score:.3f}  {hit.text[:90]}")


def insert_all(db: deeplake.Database, rows: Iterator[dict[str, Any]]) -> tuple[int, list[str]]:
    """Rows inserted, and the refusals: a file that is not what it claims to be is refused by name, never swallowed."""
    inserted, refused, pending = 0, [], []
    for row in rows:
        if row.get("latent") is not None or not (row["frames"] or row["thumbnail"]):
            pending.append(row)
            continue
        try:
            inserted += db.insert("generations", [row], validate="decode")
        except deeplake.DeeplakeError as error:
            refused.append(f"{row['source']}: {str(error).splitlines()[0]}")
    return inserted + db.insert("generations", pending, progress=True), refused


def branch_and_merge(db: deeplake.Database) -> None:
    """Change rows on a branch, look at the difference, merge."""
    started = time.perf_counter()
    db.branch("experiment/lower-cfg")
    made = (time.perf_counter() - started) * 1e3
    db.execute("UPDATE generations SET cfg_scale = cfg_scale / 2 WHERE model_version = %s", ["sd3"])
    mean = "SELECT avg(cfg_scale) FROM generations WHERE model_version = 'sd3'"
    there, changes = db.execute(mean).scalar(), len(db.diff("main", "experiment/lower-cfg"))
    db.checkout("main")
    here, started = db.execute(mean).scalar(), time.perf_counter()
    db.merge("experiment/lower-cfg", into="main")
    print(f"   made in {made:.1f} ms; mean cfg of sd3 {there:.2f} there, {here:.2f} on main; {changes} rows differ")
    print(f"   merged in {(time.perf_counter() - started) * 1e3:.1f} ms; now {db.execute(mean).scalar():.2f} on main")


class Denoiser(nn.Module):
    """The smallest video denoiser that learns something: two 3-D convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv3d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv3d(16, 3, 3, padding=1))

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        noise: torch.Tensor = self.net(clip)
        return noise


def train(db: deeplake.Database, steps: int) -> tuple[list[float], float, int]:
    """Losses, seconds and samples of a short run on the stream of all clips."""
    torch.manual_seed(0)
    model = Denoiser()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    stream = db.stream(
        "SELECT frames, prompt_embedding FROM generations WHERE frames IS NOT NULL",
        batch_size=8,
        shuffle=True,
        seed=0,
        transforms={"frames": deeplake.Video(num_frames=8, size=(64, 64))},
    )
    losses, samples, started = [], 0, time.perf_counter()
    while len(stream) and len(losses) < steps:
        for batch in stream:  # iterating again is the next epoch, in another order
            clips = batch["frames"].float().div(127.5).sub(1).transpose(1, 2)
            noise = torch.randn_like(clips)
            loss = nn.functional.mse_loss(model(clips + noise), noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            samples += len(clips)
            if len(losses) == steps:
                break
    return losses, time.perf_counter() - started, samples


def out_and_in(db: deeplake.Database, folder: Path) -> None:
    """Clips out as tars that webdataset reads, and back in as a table over those very files."""
    query = """SELECT id AS key, frames AS mp4, prompt, steps FROM generations
               WHERE frames IS NOT NULL AND steps >= 30 ORDER BY id LIMIT 100"""
    exported = db.export(query, to=folder)
    print(f"   out: {exported.rows} rows, {exported.nbytes / 1e6:.1f} MB in {len(exported.files)} tars in {folder}")
    started = time.perf_counter()
    report = db.ingest("adopted", folder / "*.tar", on_error="skip")
    milliseconds = (time.perf_counter() - started) * 1e3
    print(f"   in: {report.added} rows indexed where they lie, in {milliseconds:.0f} ms; {len(report.skipped)} skipped")


def contact_sheet(rows: deeplake.RowSet, path: Path) -> None:
    """A PNG with one row per hit: six frames of the clip (or the picture) and the prompt below."""
    width, height, caption = 160, 120, 18
    sheet = Pillow.new("RGB", (6 * width, len(rows) * (height + caption)), (24, 24, 28))
    pen = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        top = i * (height + caption)
        if row.frames is not None:
            pictures = row.frames.decode(num_frames=6, size=(height, width))
        else:
            pictures = row.thumbnail.decode(size=(height, width))[None]
        for j, picture in enumerate(pictures):
            sheet.paste(Pillow.fromarray(picture.permute(1, 2, 0).numpy()), (j * width, top))
        text = f"{row.score:.3f}  #{row.id}  {row.prompt}".encode("ascii", "replace").decode()
        pen.text((4, top + height + 2), text[:150], fill=(220, 220, 220))
    sheet.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of real videos, images and prompt files")
    parser.add_argument("--store", type=Path, default=Path("demo-store"), help="where the store is made (replaced)")
    parser.add_argument("--clips", type=int, default=240, help="how many clips to draw without --data")
    parser.add_argument("--steps", type=int, default=40, help="training steps")
    options = parser.parse_args()
    if options.data and not options.data.is_dir():
        parser.error(f"--data {options.data} is no folder")
    began = time.perf_counter()
    if (options.store / "catalog.sqlite").exists():
        shutil.rmtree(options.store)

    print("1. build a store")
    db = deeplake.connect(options.store)
    db.execute(TABLE)
    rows = found_rows(options.data, 12_000) if options.data else drawn_rows(options.clips)
    started = time.perf_counter()
    inserted, refused = insert_all(db, rows)
    db.optimize()
    seconds = time.perf_counter() - started
    print(f"   {inserted} rows in {seconds:.1f} s, durable, checked; {len(refused)} refused")
    for line in refused[:10]:
        print(f"   refused {line}")

    print("2. ask it: embeddings and metadata in one statement")
    wanted = "a red circle rising" if options.data is None else "cat walking"
    started = time.perf_counter()
    hits = db.execute(QUERY, {"query": embed(wanted), "steps": 25})
    print(f"   nearest to {wanted!r}, {(time.perf_counter() - started) * 1e3:.0f} ms:")
    for row in hits:
        media = row.frames if row.frames is not None else row.thumbnail
        print(f"   {row.score:.3f}  {row.prompt[:60]:60}  {row.model_version:9} {row.steps:3} steps  {media!r}")
    print("   by model version:")
    for row in db.execute(
        """SELECT model_version, count(*) AS n, round(avg(cfg_scale)::numeric, 2) AS cfg FROM generations
           GROUP BY model_version ORDER BY model_version"""
    ):
        print(f"   {row.model_version:9} {row.n:6} rows, mean cfg {row.cfg}")

    if options.data:
        search_embeddings(db, options.data)

    print("3. branch it: an experiment that main does not see until it is merged")
    branch_and_merge(db)

    print("4. train on a stream of it")
    losses, seconds, samples = train(db, options.steps)
    if losses:
        print(f"   {len(losses)} steps, loss {losses[0]:.3f} -> {losses[-1]:.3f}")
        print(f"   {samples / seconds:.0f} clips/s decoded and trained on")
    else:
        print("   no clip to train on")

    print("5. take it out and in again")
    if losses:
        out_and_in(db, options.store / "exported")
    else:
        print("   no clip to export")

    print("6. look at it")
    sheet = options.store / "hits.png"
    if hits:
        contact_sheet(hits, sheet)
    size = sum(f.stat().st_size for f in options.store.rglob("*") if f.is_file())
    print(f"   frames of the hits: {sheet if hits else 'none, nothing was found'}")
    print(f"   {size / 1e6:.1f} MB on disk, all of it open formats:")
    print(f"     sqlite3 {options.store}/catalog.sqlite 'SELECT prompt, steps FROM generations LIMIT 5'")
    for shard in list(options.store.glob("shards/generations/*.tar"))[:1]:
        print(f"     tar -tf {shard} | head")
    print("   and from the command line:")
    command = Path(sys.executable).parent / "deeplake-loader"
    print(f"     {command} --store {options.store} info")
    print(f"     {command} --store {options.store} head generations -n 3")
    print(f"     {command} --store {options.store} show generations -n 4 --frames 4")
    print(f"done in {time.perf_counter() - began:.0f} s")
    db.close()


if __name__ == "__main__":
    main()
