"""From the rows of a query and the options of a call to a `Stream`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from deeplake_loader.order import LANES, Order, Share, Tail
from deeplake_loader.rows import RowSet
from deeplake_loader.stream.dataset import Stream
from deeplake_loader.stream.loading import OnError
from deeplake_loader.stream.options import Options, torch_device, whole
from deeplake_loader.stream.picks import Ordered
from deeplake_loader.stream.ranks import find_ranks
from deeplake_loader.stream.schedule import RowSchedule
from deeplake_loader.stream.source import make_source

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


def build_stream(
    root: str,
    rowset: RowSet,
    *,
    batch_size: int,
    query: str = "",
    commit: int | str | None = None,
    shuffle: bool = False,
    seed: int = 0,
    ordered: bool = True,
    transforms: Mapping[str, object] | None = None,
    device: str | torch.device | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    mesh: DeviceMesh | None = None,
    mesh_dim: int | str | Sequence[int | str] | None = None,
    process_group: ProcessGroup | None = None,
    tail: Tail | None = None,
    num_threads: int | None = None,
    prefetch: int = 2,
    on_error: OnError = "raise",
    lanes: int = LANES,
) -> Stream:
    """The stream of one row set.

    Args:
        root: folder of the store.
        rowset: the rows, as one query gave them.
        query: the query's text; part of the state.
        commit: the commit it was read at; told in the state.
        batch_size: rows in one rank's batch.
        shuffle: another order in every epoch, by ``seed``; else the rows in order.
        ordered: the order of ``rowset`` was asked for (ORDER BY) and an unshuffled stream keeps it; else rows are read
            in the order they are stored in.
        transforms: by column, deeplake.Image, Video, Audio or Tensor.
        device: "cpu" or "cuda[:n]"; batches are copied there beside the computation.
        rank, world_size: this process among the data-parallel ones; every rank gets as many batches. By default they
            are found: see `ranks.find_ranks`. They are read now; copies of the stream in other processes keep them.
        mesh, mesh_dim, process_group: say them under model parallelism, whose ranks share data.
        tail: "drop", "pad" or "short", see `order.Share`; by default "short" for one rank, "pad" for several.
        num_threads: decoding threads of a process, by default one per core, shared among DataLoader's workers.
        prefetch: batches made ahead.
        on_error: a sample that is damaged or cannot be decoded raises its error ("raise"), is left out of its batch
            ("skip"), or is replaced by another one of the batch, marked in ``valid`` ("replace"); a batch without one
            good sample raises under each of them.
        lanes: of the order; part of the state.

    Raises:
        InputError: an option out of range, columns that a batch cannot hold under one name.
        TypeMismatchError: a transform of another medium than its column.
    """
    seed = whole("seed", seed)
    options = Options(torch_device(device), prefetch, num_threads, on_error, seed)
    lanes = whole("lanes", lanes) if shuffle else 1
    ranks = find_ranks(rank=rank, world_size=world_size, mesh=mesh, mesh_dim=mesh_dim, process_group=process_group)
    share = Share(
        count=len(rowset),
        batch_size=whole("batch_size", batch_size),
        rank=ranks.rank,
        world_size=ranks.world_size,
        lanes=lanes,
        tail=tail or ("short" if ranks.world_size == 1 else "pad"),
    )
    keep_order = ordered and not shuffle
    source = make_source(root, rowset, transforms=transforms or {}, keep_order=keep_order, query=query, commit=commit)
    picker = Ordered(Order(source.starts, lanes, shuffle=shuffle), seed)
    return Stream((source,), RowSchedule(picker, share), options)
