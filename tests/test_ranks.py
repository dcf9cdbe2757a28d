"""The data-parallel rank: from arguments, a mesh, a process group or the environment, and real gloo processes."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from stream_store import ROWS, Store

from deeplake_loader.errors import InputError
from deeplake_loader.stream.ranks import Ranks, find_ranks


class Mesh:
    """What find_ranks asks of a DeviceMesh."""

    def __init__(self, names: tuple[str, ...] | None, shape: tuple[int, ...], place: tuple[int, ...] | None) -> None:
        self.mesh_dim_names, self._shape, self._place, self.ndim = names, shape, place, len(shape)

    def get_coordinate(self) -> tuple[int, ...] | None:
        return self._place

    def size(self, dimension: int) -> int:
        return self._shape[dimension]


def found(**options: Any) -> tuple[int, int]:
    ranks = find_ranks(**{"environment": {}, **options})
    return ranks.rank, ranks.world_size


def test_arguments_come_first_and_nothing_is_rank_0_of_1() -> None:
    environment = {"RANK": "3", "WORLD_SIZE": "8"}
    assert found() == (0, 1)
    assert found(environment=environment) == (3, 8)
    assert found(environment=environment, rank=1, world_size=2) == (1, 2)
    assert find_ranks(environment=environment) == Ranks(3, 8, "RANK and WORLD_SIZE")
    assert found(environment={"RANK": "", "WORLD_SIZE": ""}) == (0, 1)


@pytest.mark.parametrize(
    ("names", "shape", "place", "options", "expected"),
    [
        (("dp", "tp"), (2, 4), (1, 3), {}, (1, 2)),
        (("pp", "data", "tp"), (2, 3, 4), (1, 2, 0), {}, (2, 3)),
        (("pp", "dp_replicate", "dp_shard", "cp", "tp"), (1, 2, 4, 2, 2), (0, 1, 2, 1, 1), {}, (6, 8)),
        (("data_parallel", "tensor_parallel"), (4, 2), (3, 1), {}, (3, 4)),
        (("outer", "tp"), (2, 2), (1, 0), {"mesh_dim": "outer"}, (1, 2)),
        (("a", "b", "tp"), (2, 3, 2), (1, 2, 0), {"mesh_dim": ("a", "b")}, (5, 6)),
        (("dp", "tp"), (2, 4), (1, 3), {"mesh_dim": 1}, (3, 4)),
        (None, (4,), (2,), {}, (2, 4)),
        (None, (4, 2), (2, 1), {"mesh_dim": 0}, (2, 4)),
    ],
)
def test_a_mesh_tells_the_data_parallel_rank(
    names: Any, shape: Any, place: Any, options: dict[str, Any], expected: tuple[int, int]
) -> None:
    assert found(mesh=Mesh(names, shape, place), **options) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 1}, "rank=1 without world_size"),
        ({"world_size": 2}, "world_size=2 without rank"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"rank": "x", "world_size": 2}, "rank must be an integer"),
        ({"environment": {"RANK": "1"}}, "RANK='1' without WORLD_SIZE"),
        ({"environment": {"WORLD_SIZE": "1"}}, "without RANK"),
        ({"environment": {"RANK": "a", "WORLD_SIZE": "2"}}, "no integers"),
        ({"environment": {"RANK": "2", "WORLD_SIZE": "2"}}, "rank 2 of 2"),
        ({"rank": 0, "world_size": 1, "mesh": Mesh(("dp",), (1,), (0,))}, "rank and world_size, mesh"),
        ({"mesh_dim": "dp"}, "without mesh"),
        ({"mesh": Mesh(("tp", "pp"), (2, 2), (0, 0))}, "it has tp, pp; name it with mesh_dim"),
        ({"mesh": Mesh(None, (2, 2), (0, 0))}, "2 unnamed"),
        ({"mesh": Mesh(("dp",), (2,), None)}, "not in the mesh"),
        ({"mesh": Mesh(("dp",), (2,), (0,)), "mesh_dim": "cp"}, "dimensions are dp, 0"),
        ({"mesh": Mesh(("dp",), (2,), (0,)), "mesh_dim": ("dp", "dp")}, "each once"),
        ({"mesh": (2, 4)}, r"mesh=\(2, 4\): expected a DeviceMesh"),
        ({"process_group": "dp"}, "process_group='dp' has no ranks: "),
    ],
)
def test_half_an_answer_or_two_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        found(**options)


def test_a_stream_takes_the_environments_rank_when_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, 20)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    stream = store.stream(["id"])
    monkeypatch.setenv("RANK", "0")
    assert "rank 1 of 2" in repr(stream)
    mine = [i for b in stream for i in b["id"].tolist()]
    other = [i for b in store.stream(["id"], rank=1, world_size=2) for i in b["id"].tolist()]
    assert mine == other and "rank" not in repr(store.stream(["id"], rank=0, world_size=1))


# -- real processes ----------------------------------------------------------------------------------------------------

WORKER = """
    import json, pickle, sys
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from deeplake_loader.stream import build_stream

    root, rows, rendezvous, rank, size = sys.argv[1:]
    rank, size = int(rank), int(size)
    dist.init_process_group("gloo", init_method="file://" + rendezvous, rank=rank, world_size=size)
    ways = {"default": {}}
    if size == 4:
        ways["mesh"] = {"mesh": init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))}
        ways["group"] = {"process_group": [dist.new_group([0, 1]), dist.new_group([2, 3])][rank // 2]}
    with open(rows, "rb") as file:
        rowset = pickle.load(file)

    def report(options):
        stream = build_stream(root, rowset, batch_size=4, shuffle=True, query="q", num_threads=1, **options)
        steps, ids, states = torch.zeros(1), [], []
        for _ in range(2):
            epoch = []
            for batch in stream:
                valid = batch.get("valid", torch.ones(len(batch["id"]), dtype=torch.bool))
                epoch += batch["id"][valid].tolist()
                dist.all_reduce(torch.ones(1))  # hangs where a rank has fewer batches
                steps += 1
                states.append(stream.state_dict())
            ids.append(epoch)
        least, most = steps.clone(), steps.clone()
        dist.all_reduce(least, dist.ReduceOp.MIN), dist.all_reduce(most, dist.ReduceOp.MAX)
        return {"ids": ids, "states": states, "steps": [int(least), int(most)], "repr": repr(stream)}

    print(json.dumps({way: report(options) for way, options in ways.items()}))
    dist.destroy_process_group()
"""


def run_ranks(store: Store, folder: Path, size: int) -> list[dict[str, Any]]:
    """What each of ``size`` gloo processes reports."""
    rows = folder / "rows"
    rows.write_bytes(pickle.dumps(store.rowset(["id"])))
    here = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(WORKER), store.root, str(rows), str(folder / "rendezvous")]
    started = [
        subprocess.Popen([*command, str(rank), str(size)], stdout=subprocess.PIPE, text=True, env=environment)
        for rank in range(size)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started)
    return [json.loads(text) for text in outputs]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize("size", [2, 4])
def test_every_id_comes_once_an_epoch_and_all_ranks_keep_step(size: int, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    reports = run_ranks(store, tmp_path, size)
    default = [r["default"] for r in reports]
    for epoch in range(2):
        assert sorted(i for r in default for i in r["ids"][epoch]) == list(range(ROWS))
    steps = 2 * -(-ROWS // (4 * size))
    assert all(r["steps"] == [steps, steps] and r["states"] == default[0]["states"] for r in default)
    assert [f"rank {rank} of {size}" in r["repr"] for rank, r in enumerate(default)] == [True] * size
    if size == 4:
        check_replicas([r["mesh"] for r in reports], [(0, 1), (2, 3)])
        check_replicas([r["group"] for r in reports], [(0, 2), (1, 3)])


def check_replicas(reports: list[dict[str, Any]], peers: list[tuple[int, int]]) -> None:
    """Processes of one model replica read the same rows, and the replicas share out each epoch."""
    assert all(reports[a]["ids"] == reports[b]["ids"] for a, b in peers)
    ids = [reports[a]["ids"] for a, _ in peers]
    for epoch in range(2):
        assert sorted(ids[0][epoch] + ids[1][epoch]) == list(range(ROWS))
