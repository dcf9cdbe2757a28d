"""From the rows of a query and the options of a call to a `Stream`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from deeplake_loader.catalog import Location
from deeplake_loader.columnar import ColumnarRows, columnar
from deeplake_loader.decode.engine import Engine
from deeplake_loader.errors import InputError, TypeMismatchError
from deeplake_loader.order import LANES, Order, Share, Tail
from deeplake_loader.rows import RowSet
from deeplake_loader.stream.buckets import BinSchedule, Bucketed, Budget, bucket_codes, checked_costs
from deeplake_loader.stream.collate import Collate, Ragged, Shaping, make_rules
from deeplake_loader.stream.columns import Column, Scalars
from deeplake_loader.stream.dataset import Stream
from deeplake_loader.stream.failures import OnError
from deeplake_loader.stream.media import Media, Variants
from deeplake_loader.stream.options import Options, torch_device, whole
from deeplake_loader.stream.picks import Indices, Ordered, Picker
from deeplake_loader.stream.ranks import find_ranks
from deeplake_loader.stream.schedule import RowSchedule
from deeplake_loader.stream.source import Source, make_source
from deeplake_loader.stream.weights import weighted

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


def build_stream(
    where: str | Location,
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
    engine: Engine = "auto",
    lanes: int = LANES,
    weight: str | None = None,
    num_samples: int | None = None,
    bucket_by: str | None = None,
    budget: Budget | None = None,
    group: int = 1,
    ragged: Ragged | Mapping[str, Ragged] | None = None,
    collate: Collate | None = None,
) -> Stream:
    """The stream of one row set.

    Args:
        where: the store's location, or its folder.
        rows: as one query gave them.
        query: the query's text; part of the state.
        commit: the commit it was read at; told in the state.
        batch_size: rows in one rank's batch.
        shuffle: another order in every epoch, by ``seed``; else the rows in order.
        ordered: the order of ``rows`` was asked for (ORDER BY) and an unshuffled stream keeps it; else rows are read
            in the order they are stored in.
        transforms: by column, deeplake.Image, Video, Audio or Tensor; deeplake.Raw for the stored bytes. With
            ``bucket_by`` also {bucket: transform}, so that every bucket has a shape of its own.
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
            column's place. Positions never move. A batch without one good sample repeats a good row from
            further on instead, all of it marked as not valid (one row under "skip").
        max_errors: bad samples in a row after which `SampleErrors` lists their keys, counted in each DataLoader worker
            by itself; None for no limit.
        timeout_s: seconds without any progress on the next batch, as with a storage that hangs, after which
            `StalledError` names its rows, files and stage; None to wait for ever.
        progress: show a progress bar over the epoch (tqdm).
        engine: what decodes images and clips. "auto": DALI for batches on a CUDA device, where it is installed (the
            extra ``dali``), and for what it cannot decode, and everywhere else, the CPU engine; "cpu": never DALI;
            "dali": DALI also for batches on the CPU, an error without it. Crops, flips and frames are the same.
        lanes: of the order; part of the state.
        weight: a column: rows are drawn with replacement, in proportion to it, ``num_samples`` (default: as many as
            there are rows) an epoch. `Database.stream` takes a SQL expression, too.
        bucket_by: a column: every batch holds rows of one value of it. Batches are formed of the whole epoch's order,
            so that they are the same for any number of ranks; the last ones of an epoch may be short.
        budget: `Budget`, a most of some cost in every batch, which then has up to ``batch_size`` rows.
        group: batches of one bucket come in runs of this many; a world size that divides it has one bucket in every
            step of all ranks.
        ragged: "pad", "list", "nested" or `Pad`, by column or for all decoded ones: how items of different shapes make
            a batch. By default a tensor where the shapes of a batch agree, else a list.
        collate: makes the batch of a list of samples, each a dict of its columns, instead of all that.

    Raises:
        InputError: an option out of range, columns that a batch cannot hold under one name.
        TypeMismatchError: a transform of another medium than its column.

    Classes are balanced by their share, counted in the query itself:

    >>> db.stream("SELECT photo, label, 1.0 / COUNT(*) OVER (PARTITION BY label) AS share FROM photos",
    ...           batch_size=64, weight="share")                                        # doctest: +SKIP

    A metric over ranks is exactly that of one process with ``tail="short"`` and without ``on_error="skip"``: every rank
    has as many batches, and rows that only repeat are marked (``valid`` is there with several ranks).

    >>> for batch in db.stream(sql, batch_size=64, tail="short"):                       # doctest: +SKIP
    ...     right += (model(batch["photo"]).argmax(1) == batch["label"])[batch["valid"]].sum()
    ...     seen += batch["valid"].sum()
    >>> torch.distributed.all_reduce(right), torch.distributed.all_reduce(seen)         # doctest: +SKIP
    """
    if isinstance(rows, RowSet):
        rows = columnar(rows)
    if not isinstance(shuffle, bool | np.bool_):
        raise InputError(f"shuffle must be True or False, got {shuffle!r}")
    seed = whole("seed", seed)
    options = Options(
        torch_device(device), prefetch, num_threads, on_error, seed, max_errors, timeout_s, progress, engine=engine
    )
    ranks = find_ranks(rank=rank, world_size=world_size, mesh=mesh, mesh_dim=mesh_dim, process_group=process_group)
    keep_order, by_bucket = ordered and not shuffle, _by_bucket({} if transforms is None else transforms, bucket_by)
    fixed = {name: chosen for name, chosen in (transforms or {}).items() if name not in by_bucket}
    source = make_source(where, rows, transforms=fixed, keep_order=keep_order, query=query, commit=commit)
    options = replace(options, shaping=Shaping(make_rules(source.columns, ragged), collate))
    order = Order(source.starts, whole("lanes", lanes) if shuffle else 1, shuffle=bool(shuffle))
    picker = _picker(source, order, seed, weight, num_samples)
    share = Share(
        count=picker.count,
        batch_size=whole("batch_size", batch_size),
        rank=ranks.rank,
        world_size=ranks.world_size,
        lanes=picker.lanes,
        tail=("short" if ranks.world_size == 1 else "pad") if tail is None else tail,
    )
    if bucket_by is None and group != 1:
        raise InputError(f"group={group!r} goes with bucket_by=, whose buckets come in groups of batches")
    if bucket_by is None and budget is None:
        return Stream((source,), RowSchedule(picker, share), options)
    buckets, numbers = (None, {}) if bucket_by is None else bucket_codes(_values(source, bucket_by, "bucket_by"))
    source = replace(source, columns=_with_variants(source, by_bucket, buckets, numbers))
    binner = Bucketed(picker, share.batch_size, buckets, group=whole("group", group))
    if budget is not None:
        binner = _budgeted(binner, source, budget)
    return Stream((source,), _of_bins(binner, share), options)


def _of_bins(binner: Bucketed, share: Share) -> BinSchedule:
    """The schedule of the bins; refused where "drop" would leave a whole set out without a word."""
    schedule = BinSchedule(binner, share.rank, share.world_size, share.tail)
    if share.tail == "drop" and binner.picker.count and not schedule.steps((0, 0)):
        raise InputError(
            f"tail='drop' would leave nothing of {binner.picker.count} rows: no step of {share.world_size} ranks has "
            f"a full batch of {share.batch_size} rows of one bucket for each; use tail='short' or 'pad'"
        )
    return schedule


def check_names(options: Mapping[str, Any]) -> None:
    """Raises TypeError, as Python does, for an option that `build_stream` does not have, and names the nearest."""
    known = [name for name in inspect.signature(build_stream).parameters if name not in ("where", "rows")]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise TypeError(f"stream() got an unexpected keyword argument {name!r}; {hint}")


def _picker(source: Source, order: Order, seed: int, weight: str | None, num_samples: int | None) -> Picker:
    """Every row once, or draws by weight."""
    if weight is not None:
        count = None if num_samples is None else whole("num_samples", num_samples)
        return weighted(_values(source, weight, "weight"), source.keys, count=count, seed=seed)
    if num_samples is not None:
        raise InputError("num_samples goes with weight=; for fewer rows of every epoch use stream.limit(n)")
    return Ordered(order, seed)


def _budgeted(binner: Bucketed, source: Source, budget: Budget) -> Bucketed:
    """The same with a most of some cost in every bin."""
    if not isinstance(budget, Budget):
        raise InputError(f"budget must be a Budget(cost, limit), got {budget!r}")
    costs = checked_costs(_values(source, budget.cost, "budget"), source.keys, budget)
    return replace(binner, costs=costs, limit=budget.limit, padded=budget.padded)


def _values(source: Source, name: str, option: str) -> npt.NDArray[Any] | list[Any]:
    """A column of SQL values, one per row of the source."""
    column = next((c for c in source.columns if c.name == name), None)
    if not isinstance(column, Scalars):
        known = ", ".join(c.name for c in source.columns if isinstance(c, Scalars))
        raise InputError(f"{option} needs a column of SQL values, and {name!r} is none; the query has {known}")
    return column.values if isinstance(column.values, np.ndarray) else list(column.values)


def _by_bucket(transforms: Mapping[str, object], bucket_by: str | None) -> dict[str, Mapping[Any, object]]:
    """The columns whose transform depends on the bucket."""
    if not isinstance(transforms, Mapping):
        raise InputError(f"transforms must be {{column: transform}}, got {transforms!r}")
    found = {name: chosen for name, chosen in transforms.items() if isinstance(chosen, Mapping)}
    if found and bucket_by is None:
        raise InputError(f"transforms[{next(iter(found))!r}] has a transform for every bucket; say bucket_by=")
    return found


def _with_variants(
    source: Source, chosen: Mapping[str, Mapping[Any, object]], buckets: Indices | None, numbers: Mapping[Any, int]
) -> tuple[Column, ...]:
    """The source's columns, with these transforms by the value of the bucket."""
    unknown = [name for name in chosen if name not in {column.name for column in source.columns}]
    if unknown:
        raise InputError(f"transforms has {unknown[0]!r}, which is no column of the query")
    return tuple(
        _with_variant(column, chosen[column.name], buckets, numbers)
        if buckets is not None and column.name in chosen
        else column
        for column in source.columns
    )


def _with_variant(column: Column, chosen: Mapping[Any, object], buckets: Indices, numbers: Mapping[Any, int]) -> Column:
    if not isinstance(column, Media) or column.transform is None:
        raise TypeMismatchError(f"transforms[{column.name!r}]: the column is not decoded")
    missing = [value for value in numbers if value not in chosen]
    if missing:
        known = ", ".join(map(repr, chosen))
        raise InputError(f"transforms[{column.name!r}] lacks the bucket {missing[0]!r}; it has {known}")
    in_order = sorted(numbers, key=lambda value: numbers[value])
    for value in in_order:
        if not isinstance(chosen[value], type(column.transform)):
            expected = type(column.transform).__name__
            raise TypeMismatchError(
                f"transforms[{column.name!r}][{value!r}]: expected {expected}(...), got {chosen[value]!r}"
            )
    picked = tuple(chosen[value] for value in in_order)
    return replace(column, variants=Variants(buckets, picked))  # type: ignore[arg-type]
