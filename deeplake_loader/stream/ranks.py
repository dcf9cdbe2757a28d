"""Which part of the data is this process's: its rank among the data-parallel ones, and how many there are.

Under tensor, pipeline or context parallelism the processes of one model replica must read the same data, so the global
rank is the wrong one: only a mesh or a process group tells the right one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from deeplake_loader.errors import InputError
from deeplake_loader.stream.options import whole

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

DATA_DIMENSIONS = frozenset(
    ("dp", "data", "data_parallel", "ddp", "fsdp", "dp_replicate", "dp_shard", "replicate", "shard")
)
"""Names of mesh dimensions along which ranks read different data, as torch, torchtitan, Lightning and Accelerate give
them; a mesh that has several of them (HSDP's dp_replicate and dp_shard) is flattened in its own order."""

log = logging.getLogger("deeplake_loader.stream")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the data-parallel ones, and who said so."""

    rank: int
    world_size: int
    origin: str


def find_ranks(
    *,
    rank: int | None = None,
    world_size: int | None = None,
    mesh: DeviceMesh | None = None,
    mesh_dim: int | str | Sequence[int | str] | None = None,
    process_group: ProcessGroup | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ranks:
    """The ranks, from the first of these that is there.

    1. ``rank`` and ``world_size``.
    2. ``mesh``: its dimension ``mesh_dim`` (name or number, or several, flattened in the given order), by default the
       ones named as in `DATA_DIMENSIONS`, or the only one of a mesh without names.
    3. ``process_group``: this process's rank in it.
    4. torch.distributed's default group, if it is initialized. It counts every process, so under tensor or pipeline
       parallelism give a mesh.
    5. RANK and WORLD_SIZE of ``environment``, by default the process's, as torchrun sets them.
    6. Rank 0 of 1.

    Raises:
        InputError: only half is given, two ways at once, or the mesh does not tell.

    >>> find_ranks(environment={"RANK": "3", "WORLD_SIZE": "8"})
    Ranks(rank=3, world_size=8, origin='RANK and WORLD_SIZE')
    """
    _check_one_way(rank is not None or world_size is not None, mesh, mesh_dim, process_group)
    if rank is not None or world_size is not None:
        found = _given(rank, world_size)
    elif mesh is not None:
        found = _of_mesh(mesh, mesh_dim)
    elif process_group is not None or (torch.distributed.is_available() and torch.distributed.is_initialized()):
        found = _of_group(process_group)
    else:
        found = _of_environment(os.environ if environment is None else environment)
    if not 0 <= found.rank < found.world_size:
        raise InputError(f"rank {found.rank} of {found.world_size} ({found.origin}): 0 <= rank < world_size must hold")
    log.debug("rank %d of %d, by %s", found.rank, found.world_size, found.origin)
    return found


def _check_one_way(numbers: bool, mesh: object, mesh_dim: object, group: object) -> None:
    given = {"rank and world_size": numbers, "mesh": mesh is not None, "process_group": group is not None}
    ways = [name for name, there in given.items() if there]
    if len(ways) > 1:
        raise InputError(f"{', '.join(ways)}: give one of them, they all say which rank this is")
    if mesh_dim is not None and mesh is None:
        raise InputError(f"mesh_dim={mesh_dim!r} without mesh; give the DeviceMesh too")


def _given(rank: int | None, world_size: int | None) -> Ranks:
    if rank is None or world_size is None:
        missing, there = ("world_size", f"rank={rank}") if world_size is None else ("rank", f"world_size={world_size}")
        raise InputError(f"{there} without {missing}; give both, or neither to have them found")
    return Ranks(whole("rank", rank), whole("world_size", world_size), "arguments")


def _of_mesh(mesh: DeviceMesh, mesh_dim: int | str | Sequence[int | str] | None) -> Ranks:
    """Row-major over the chosen dimensions, as DeviceMesh flattens."""
    if not hasattr(mesh, "get_coordinate"):
        raise InputError(f"mesh={mesh!r}: expected a DeviceMesh, as torch.distributed.init_device_mesh makes it")
    numbers = _dimensions(mesh, mesh_dim)
    place = mesh.get_coordinate()
    if place is None:
        raise InputError("this process is not in the mesh; make the stream only in processes that train")
    rank, world_size = 0, 1
    for number in numbers:
        rank, world_size = rank * mesh.size(number) + place[number], world_size * mesh.size(number)
    names = mesh.mesh_dim_names
    return Ranks(rank, world_size, f"mesh dimension {', '.join(str(names[n] if names else n) for n in numbers)}")


def _dimensions(mesh: DeviceMesh, chosen: int | str | Sequence[int | str] | None) -> list[int]:
    names = tuple(mesh.mesh_dim_names or ())
    if chosen is None:
        found = [i for i, name in enumerate(names) if name in DATA_DIMENSIONS]
        if found or (not names and mesh.ndim == 1):
            return found or [0]
        raise InputError(
            f"the mesh does not tell its data-parallel dimension: it has {', '.join(names) or f'{mesh.ndim} unnamed'}; "
            "name it with mesh_dim=, or give rank=0, world_size=1 where every process reads the same"
        )
    wanted = [chosen] if isinstance(chosen, (int, str)) else list(chosen)
    known: dict[Any, int] = {**{name: i for i, name in enumerate(names)}, **{i: i for i in range(mesh.ndim)}}
    missing = [w for w in wanted if w not in known]
    if missing or not wanted or len(set(wanted)) < len(wanted):
        raise InputError(f"mesh_dim={chosen!r}: the mesh's dimensions are {', '.join(map(str, known))}, each once")
    return [known[w] for w in wanted]


def _of_group(group: ProcessGroup | None) -> Ranks:
    try:
        rank, world_size = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
    except (ValueError, RuntimeError, TypeError) as error:  # torch has no type of its own for what is no live group
        raise InputError(
            f"process_group={group!r} has no ranks: {error}; give a group of torch.distributed.new_group()"
        ) from error
    if rank < 0 or world_size < 1:
        raise InputError("this process is not in process_group; make the stream only in its members")
    return Ranks(rank, world_size, "torch.distributed" if group is None else "process_group")


def _of_environment(environment: Mapping[str, str]) -> Ranks:
    texts = {name: environment[name] for name in ("RANK", "WORLD_SIZE") if environment.get(name)}
    if not texts:
        return Ranks(0, 1, "default")
    said = ", ".join(f"{name}={text!r}" for name, text in texts.items())
    try:
        return Ranks(int(texts["RANK"]), int(texts["WORLD_SIZE"]), "RANK and WORLD_SIZE")
    except KeyError as error:
        raise InputError(f"the environment has {said} without {error.args[0]}; set both, or give rank=") from error
    except ValueError as error:
        raise InputError(f"the environment has {said}, which are no integers; set them, or give rank=") from error
