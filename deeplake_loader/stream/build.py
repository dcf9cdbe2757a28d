"""From the rows of a query and the options of a call to a `Stream`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from deeplake_loader.columnar import ColumnarRows, columnar
from deeplake_loader.order import LANES, Order, Share, Tail
from deeplake_loader.rows import RowSet
from deeplake_loader.stream.dataset import Stream
from deeplake_loader.stream.failures import OnError
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
    rows: RowSet | ColumnarRows,
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
    max_errors: int | None = 100,
    timeout_s: float | None = 120.0,
    progress: bool = False,
    lanes: int = LANES,
) -> Stream:
    """The stream of one row set.

    Args:
        root: folder of the store.
        rows: as one query gave them.
        query: the query's text; part of the state.
        commit: the commit it was read at; told in the state.
        batch_size: rows in one rank's batch.
        shuffle: another order in every epoch, by ``seed``; else the rows in order.
        ordered: the order of ``rows`` was asked for (ORDER BY) and an unshuffled stream keeps it; else rows are read
            in the order they are stored in.
        transforms: by column, deeplake.Image, Video, Audio or Tensor; deeplake.Raw for the stored bytes.
        device: "cpu" or "cuda[:n]"; batches are copied there beside the computation.
        rank, world_size: this process among the data-parallel ones; every rank gets as many batches. By default they
            are found: see `ranks.find_ranks`. They are read now; copies of the stream in other processes keep them.
        mesh, mesh_dim, process_group: say them under model parallelism, whose ranks share data.
        tail: "drop", "pad" or "short", see `order.Share`; by default "short" for one rank, "pad" for several.
        num_threads: decoding threads of a process, by default one per core, shared among DataLoader's workers.
        prefetch: batches made ahead.
        on_error: a sample that is damaged or cannot be decoded raises its error ("raise"), is left out of its batch
            ("skip"), or is replaced by another one of the batch ("replace"), marked in ``valid``. Or a function of the
            `BadSample`, called on a thread of the stream, that gives one of these words or a value to put in the
            column's place. Positions never move. A batch without one good sample repeats the next good row of the
            stream instead, all of it marked as not valid (one row under "skip").
        max_errors: bad samples in a row after which `SampleErrors` lists their keys; None for no limit.
        timeout_s: seconds without any progress on the next batch, as with a storage that hangs, after which
            `StalledError` names its rows, files and stage; None to wait for ever.
        progress: show a progress bar over the epoch (tqdm).
        lanes: of the order; part of the state.

    Raises:
        InputError: an option out of range, columns that a batch cannot hold under one name.
        TypeMismatchError: a transform of another medium than its column.
    """
    if isinstance(rows, RowSet):
        rows = columnar(rows)
    seed = whole("seed", seed)
    options = Options(torch_device(device), prefetch, num_threads, on_error, seed, max_errors, timeout_s, progress)
    lanes = whole("lanes", lanes) if shuffle else 1
    ranks = find_ranks(rank=rank, world_size=world_size, mesh=mesh, mesh_dim=mesh_dim, process_group=process_group)
    share = Share(
        count=len(rows),
        batch_size=whole("batch_size", batch_size),
        rank=ranks.rank,
        world_size=ranks.world_size,
        lanes=lanes,
        tail=tail or ("short" if ranks.world_size == 1 else "pad"),
    )
    keep_order = ordered and not shuffle
    source = make_source(root, rows, transforms=transforms or {}, keep_order=keep_order, query=query, commit=commit)
    picker = Ordered(Order(source.starts, lanes, shuffle=shuffle), seed)
    return Stream((source,), RowSchedule(picker, share), options)
