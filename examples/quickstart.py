"""The whole way in one page: create, insert, query across modalities, stream into a training step.

python examples/quickstart.py
"""

from __future__ import annotations

import os
import tempfile

import numpy as np
import torch

import deeplake_loader as deeplake

os.environ.setdefault("DEEPLAKE_HOME", tempfile.mkdtemp())
generator = np.random.default_rng(0)

# A store of your own: a folder below $DEEPLAKE_HOME, no server and no account.
db = deeplake.connect("deeplake://my-org/video-pipeline")

db.execute("""CREATE TABLE generations (id BIGINT PRIMARY KEY, prompt TEXT NOT NULL, clip_embedding VECTOR(768),
              frames VIDEO, thumbnail IMAGE, latent TENSOR(float16, 4, 64, 64), model_version TEXT, cfg_scale REAL,
              steps INTEGER, created_at TIMESTAMP)""")

# One generation as a sampler returns it: frames (T, H, W, 3) uint8, encoded as H.264 on the way in.
prompt_text = "a paper boat drifting down a rain-lit street"
clip_vector = generator.normal(size=768).astype(np.float32)
frame_tensors = torch.from_numpy(generator.integers(0, 255, (24, 64, 96, 3), dtype=np.uint8))

db.execute(
    """INSERT INTO generations (prompt, clip_embedding, frames, model_version, cfg_scale, steps, created_at)
       VALUES (%s, %s, %s, %s, %s, %s, NOW())""",
    [prompt_text, clip_vector, frame_tensors, "sdxl-1.0", 7.5, 30],
)

# Many at once: dicts, columns, an Arrow table or a DataFrame; one transaction.
db.insert(
    "generations",
    [
        {
            "prompt": f"a paper boat, take {i}",
            "clip_embedding": clip_vector + generator.normal(size=768).astype(np.float32) * i / 4,
            "frames": generator.integers(0, 255, (24, 64, 96, 3), dtype=np.uint8),
            "thumbnail": generator.integers(0, 255, (64, 96, 3), dtype=np.uint8),
            "latent": generator.normal(size=(4, 64, 64)).astype(np.float16),
            "model_version": "sdxl-1.0" if i % 4 else "sd3",
            "cfg_scale": 7.5,
            "steps": 20 + 5 * (i % 5),
        }
        for i in range(40)
    ],
)

# One statement over embeddings and metadata. The frames are handles: nothing is read before you ask.
rows = db.execute(
    """SELECT prompt, frames, cosine_similarity(clip_embedding, :query_vec) AS score FROM generations
       WHERE model_version = 'sdxl-1.0' AND steps >= 25 ORDER BY score DESC LIMIT 20""",
    {"query_vec": clip_vector},
)
for row in rows[:3]:
    print(f"{row.score:.3f}  {row.prompt}  {row.frames!r}  {tuple(row.frames.decode(num_frames=16).shape)}")

# Any query is a stream: shuffled, decoded in threads, resumable to the sample.
stream = db.stream(
    "SELECT frames, prompt, clip_embedding FROM generations WHERE steps >= %s",
    [25],
    batch_size=8,
    shuffle=True,
    seed=0,
    transforms={"frames": deeplake.Video(num_frames=16, size=(32, 32))},
)
for batch in stream:
    print(tuple(batch["frames"].shape), tuple(batch["clip_embedding"].shape), batch["prompt"][0])

# A branch per experiment: no row and no byte is copied, and main does not see what follows.
db.branch("experiment/ddim-scheduler")
db.execute("UPDATE generations SET cfg_scale = 5.0 WHERE steps >= %s", [25])
changed = [change.key for change in db.diff("main", "experiment/ddim-scheduler")]
print(f"{len(changed)} rows changed on {db.current_branch!r}")
db.merge("experiment/ddim-scheduler", into="main")  # a conflict would raise, and list its rows
db.checkout("main")
db.delete_branch("experiment/ddim-scheduler")

state = stream.state_dict()
stream.load_state_dict(state)
print(db, "state:", len(repr(state)), "bytes")
