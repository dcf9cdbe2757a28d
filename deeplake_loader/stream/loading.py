"""From a step of the order to a batch: every column read, decoded and put together, bad samples dealt with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from deeplake_loader.decode import transforms
from deeplake_loader.errors import CorruptionError, DecodeError, DeeplakeError
from deeplake_loader.extents import Extents
from deeplake_loader.reader import Reader
from deeplake_loader.stream.columns import Column, Media, Part, Scalars, Vectors
from deeplake_loader.stream.device import Batch, Mover, Sent
from deeplake_loader.stream.schedule import Step

OnError = Literal["raise", "skip", "replace"]

log = logging.getLogger("deeplake_loader.stream")


@dataclass(frozen=True, slots=True)
class Loader:
    """Reads steps of one stream in one process.

    Fields: ``extents``, where the blobs of each media column lie; ``seed`` of the augmentation; ``mover``, None to
    leave batches on the host.
    """

    reader: Reader
    columns: Sequence[Column]
    extents: Mapping[str, Extents]
    seed: int
    on_error: OnError
    mover: Mover | None

    def read(self, step: Step) -> BatchWork:
        """Every column's bytes, and the decoding that is left to do."""
        parts: dict[str, Part] = {}
        try:
            for column in self.columns:
                parts[column.name] = self._part(column, step)
        except BaseException:
            for part in parts.values():
                part.release()
            raise
        return BatchWork(self, step, parts)

    def _part(self, column: Column, step: Step) -> Part:
        if isinstance(column, Scalars):
            return column.part(step.rows)
        if isinstance(column, Vectors):
            return column.part(step.rows, self.reader)

        def draw(row: int) -> transforms.Draw:
            return transforms.Draw(self.seed, step.epoch, row, column.name)

        return column.part(step.rows, self.extents[column.name], self.reader, draw, pin=self.mover is not None)

    def key(self, column: str, row: int) -> str:
        """The key of a row's sample, for messages."""
        address = next(c.addresses[row] for c in self.columns if isinstance(c, Media) and c.name == column)
        return self.reader.keys(np.array([address], np.int64))[0] or f"row {row}"


class BatchWork:
    """A step that has been read: see `pipeline.Work`."""

    def __init__(self, loader: Loader, step: Step, parts: Mapping[str, Part]) -> None:
        self._loader, self._step, self._parts = loader, step, parts
        self.tasks: Sequence[Callable[[], None]] = [task for part in parts.values() for task in part.tasks]

    def finish(self) -> Batch | Sent:
        """The batch, or its copy to the device under way."""
        bad = {i: name for name, part in self._parts.items() for i in part.errors}
        keep, valid = self._mend(sorted(bad)) if bad else (None, self._step.valid)
        if valid is None and self._loader.on_error == "replace":
            valid = np.ones(len(self._step.rows), np.bool_)
        batch: Batch = {name: part.value(keep) for name, part in self._parts.items()}
        batch["_rows"] = torch.from_numpy(self._step.rows if keep is None else self._step.rows[keep])
        batch["_cursor"] = self._step.after
        if valid is not None:
            batch["valid"] = torch.from_numpy(valid)
        if self._loader.on_error != "raise":
            batch["_bad"] = self._report(bad)
        return batch if self._loader.mover is None else self._loader.mover.send(batch)

    def _mend(self, bad: Sequence[int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_] | None]:
        """Places to take the batch's rows from, and their ``valid``; raises the first error if that is the policy."""
        count = len(self._step.rows)
        good = np.setdiff1d(np.arange(count), np.array(bad))
        if self._loader.on_error == "raise" or not len(good):
            raise self._named(bad[0])
        valid = self._step.valid
        if self._loader.on_error == "skip":
            return good, None if valid is None else valid[good]
        keep = np.arange(count)
        keep[list(bad)] = good[np.searchsorted(good, np.array(bad)) % len(good)]
        fresh = np.ones(count, np.bool_) if valid is None else valid.copy()
        fresh[list(bad)] = False
        return keep, fresh

    def _report(self, bad: Mapping[int, str]) -> list[str]:
        keys = []
        for i in sorted(bad):
            error = self._named(i)
            keys.append(getattr(error, "key", None) or self._loader.key(bad[i], int(self._step.rows[i])))
            log.warning("%s: %s", "left out" if self._loader.on_error == "skip" else "replaced", error)
        return keys

    def _named(self, place: int) -> DeeplakeError:
        """The error of the row at that place, with its column and key."""
        name, error = next((n, p.errors[place]) for n, p in self._parts.items() if place in p.errors)
        if isinstance(error, CorruptionError):
            return error
        key = self._loader.key(name, int(self._step.rows[place]))
        named = DecodeError(f"column {name!r}, sample {key!r}: {error}", key=key)
        named.__cause__ = error
        return named

    def release(self) -> None:
        """Gives the read buffers back."""
        for part in self._parts.values():
            part.release()
