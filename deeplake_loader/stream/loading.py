"""From a step of the order to a batch: every column read, decoded and put together, bad samples dealt with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from deeplake_loader.decode import transforms
from deeplake_loader.errors import DecodeError, DeeplakeError, InputError
from deeplake_loader.extents import Extents
from deeplake_loader.reader import DAMAGE, Reader
from deeplake_loader.stream.collate import Shaping
from deeplake_loader.stream.columns import HeldVectors, Scalars, Vectors
from deeplake_loader.stream.device import Batch, Mover, Sent
from deeplake_loader.stream.failures import BadSample, Mended, OnError, Verdict, mend
from deeplake_loader.stream.media import Media
from deeplake_loader.stream.parts import Joined, Part
from deeplake_loader.stream.schedule import Step
from deeplake_loader.stream.source import Source
from deeplake_loader.stream.windows import Windows

if TYPE_CHECKING:
    from deeplake_loader.decode.dali import DaliDecoder

Indices = npt.NDArray[np.int64]

_NAMED = 8
"""Rows and files that a message names."""

log = logging.getLogger("deeplake_loader.stream")


@dataclass(frozen=True, slots=True)
class Feed:
    """One source as this process reads it; ``extents`` say where the blobs of each media column lie."""

    source: Source
    reader: Reader
    extents: Mapping[str, Extents]

    def parts(
        self, rows: Indices, draw: Callable[[int, str], transforms.Draw], *, pin: bool, decoder: DaliDecoder | None
    ) -> dict[str, Part]:
        """Every column's bytes, read in one go, and the decoding that is left to do."""
        columns = [column.at(rows) if isinstance(column, Media) else column for column in self.source.columns]
        media = [column for column in columns if isinstance(column, Media)]
        draws = {column.name: _draw_of(column.name, draw) for column in media}
        windows = {c.name: c.windows(rows, self.extents[c.name], self.reader, draws[c.name]) for c in media}
        read = self.reader.read([_rest(self.extents[c.name], rows, windows[c.name]) for c in media]) if media else []
        items = dict(zip((column.name for column in media), read, strict=True))
        parts: dict[str, Part] = {}
        for column in columns:
            if isinstance(column, Scalars | HeldVectors):
                parts[column.name] = column.part(rows)
            elif isinstance(column, Vectors):
                parts[column.name] = column.part(rows, self.reader)
            else:
                name = column.name
                parts[name] = column.part(rows, items[name], self.reader, draws[name], pin, decoder, windows[name])
        return parts

    def identity(self, row: int) -> int | str:
        """What stays the row's own in any row set: its primary key, if it has one."""
        keys = [column[row] for column in self.source.keys]
        if len(keys) == 1 and isinstance(keys[0], int | str):
            return keys[0]
        return repr(tuple(keys)) if keys else row

    def bad(self, name: str, row: int, error: DeeplakeError) -> BadSample:
        """What is known of a row that failed in this column."""
        addresses = {c.name: int(c.addresses[row]) for c in self.source.columns if isinstance(c, Vectors | Media)}
        media = [c.name for c in self.source.columns if isinstance(c, Media) and addresses[c.name]]
        key = self._shard_key(addresses[name if name in media else media[0]]) if media else None
        return BadSample(key or f"row {self.identity(row)}", name, error, row, addresses.get(name, 0))

    def _shard_key(self, address: int) -> str | None:
        try:
            return self.reader.keys(np.array([address], np.int64))[0]
        except DeeplakeError:  # the catalog does not know the address either, which is in the sample's own error
            return None

    def describe(self, rows: Indices) -> str:
        """The rows and the files that hold them, for messages; asks nobody, for whoever is asked may be what hangs."""
        named = ", ".join(str(self.identity(row)) for row in rows[:_NAMED].tolist())
        paths = {e.paths[f] for e in self.extents.values() for f in np.unique(e.file[rows]).tolist() if f >= 0}
        more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
        listed = ", ".join(sorted(paths)[:_NAMED]) + (f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else "")
        return f"rows {named}{more}" + (f" of {listed}" if paths else f" of {self.source.location.root.folder}")


def _rest(extents: Extents, rows: Indices, windows: Windows | None) -> tuple[Extents, Indices]:
    return (extents, rows) if windows is None else windows.rest(extents, rows)


def _draw_of(name: str, draw: Callable[[int, str], transforms.Draw]) -> Callable[[int], transforms.Draw]:
    return lambda place: draw(place, name)


@dataclass(frozen=True, slots=True)
class Made:
    """A batch that is ready, and what the pass's statistics want to know of it."""

    batch: Batch | Sent
    samples: int
    nbytes: int
    retries: int
    bad: Mapping[int, BadSample]

    def receive(self) -> Batch:
        """The batch, on the device where it was sent to one."""
        return self.batch.receive() if isinstance(self.batch, Sent) else self.batch


@dataclass(frozen=True, slots=True)
class Loader:
    """Reads steps of one stream in one process.

    Fields: ``feeds``, one for each source; ``seed`` of the augmentation; ``mover``, None to leave batches on the host;
    ``decoder`` of whole batches, None where the CPU engine decodes all; ``shaping``, what becomes of a batch at last.
    """

    feeds: Sequence[Feed]
    seed: int
    on_error: OnError
    mover: Mover | None
    decoder: DaliDecoder | None = None
    shaping: Shaping = field(default_factory=Shaping)

    def read(self, step: Step) -> BatchWork:
        """Every column's bytes, and the decoding that is left to do."""
        return BatchWork(self, step, self.parts(step))

    def parts(self, step: Step) -> dict[str, Part]:
        """The columns of a step's rows, each source's read together and then joined."""
        if step.sources is None or len(self.feeds) == 1:
            return self._parts_of(0, step, np.arange(len(step.rows)))
        shares = [np.flatnonzero(step.sources == s) for s in range(len(self.feeds))]
        found = [(self._parts_of(s, step, own), own) for s, own in enumerate(shares) if len(own)]
        if len(found) == 1:
            return found[0][0]
        names = found[0][0]
        return {name: Joined([(parts[name], own) for parts, own in found], len(step.rows)) for name in names}

    def _parts_of(self, source: int, step: Step, places: Indices) -> dict[str, Part]:
        feed, rows = self.feeds[source], step.rows[places]
        epochs = None if step.epochs is None else step.epochs[places]

        def draw(place: int, column: str) -> transforms.Draw:
            epoch = step.epoch if epochs is None else int(epochs[place])
            return transforms.Draw(self.seed, epoch, feed.identity(int(rows[place])), column)

        return feed.parts(rows, draw, pin=self.mover is not None, decoder=self.decoder)

    def stand_in(self, step: Step) -> tuple[Step, dict[str, Part]]:
        """A good row in place of a batch that has none: 1, 2, 4, 8 ... rows behind its own, the first that is good, so
        the same one in every run, and soon out of a stretch of damage.

        Raises:
            DeeplakeError: none of these is good; the error of the last.
        """
        source = 0 if step.sources is None else int(step.sources[0])
        feed, last = self.feeds[source], int(step.rows[-1])
        error: DeeplakeError | None = None
        for k in range(feed.source.count.bit_length()):
            row = np.array([(last + (1 << k)) % feed.source.count], np.int64)
            own = Step(row, None, step.epoch, step.after, None if step.sources is None else np.array([source]))
            parts = self.parts(own)
            for part in parts.values():
                for task in part.tasks:
                    task()
            failed = [(name, e) for name, part in parts.items() for e in part.errors.values()]
            if not failed:
                return own, parts
            for part in parts.values():
                part.release()
            name, error = failed[0]
            error = named(feed.bad(name, int(row[0]), error))
        raise error or InputError("a stream without rows has no batches")

    def describe(self, step: Step) -> str:
        """The step's rows and files, for messages."""
        if step.sources is None:
            return self.feeds[0].describe(step.rows)
        shares = [(feed, step.rows[step.sources == s]) for s, feed in enumerate(self.feeds)]
        return "; ".join(feed.describe(rows) for feed, rows in shares if len(rows))

    def bad(self, step: Step, place: int, name: str, error: DeeplakeError) -> BadSample:
        """What is known of the bad sample at that place."""
        source = 0 if step.sources is None else int(step.sources[place])
        return self.feeds[source].bad(name, int(step.rows[place]), error)

    def answer(self, sample: BadSample) -> Any:
        """What is to become of a bad sample; what the user's function raises has a note that names it."""
        if not callable(self.on_error):
            return self.on_error
        try:
            return self.on_error(sample)
        except Exception as error:
            error.add_note(f"in on_error, on sample {sample.key!r}, column {sample.column!r}: {sample.reason}")
            raise

    def keys(self, step: Step) -> torch.Tensor | list[Any]:
        """The primary keys of the step's rows: int64 where they are integers, tuples where they are of several
        columns, None in sources without."""
        if step.sources is None or len(self.feeds) == 1:
            found = self.feeds[0].source.keys_at(step.rows)
            return torch.from_numpy(found) if isinstance(found, np.ndarray) else found
        keys: list[Any] = [None] * len(step.rows)
        for s in np.unique(step.sources).tolist():
            own, source = np.flatnonzero(step.sources == s), self.feeds[s].source
            for place, key in zip(own.tolist(), source.keys_at(step.rows[own]) if source.keys else (), strict=False):
                keys[place] = key
        return torch.tensor(keys) if all(isinstance(key, np.integer) for key in keys) else keys


class BatchWork:
    """A step that has been read: see `pipeline.Work`."""

    def __init__(self, loader: Loader, step: Step, parts: Mapping[str, Part]) -> None:
        self._loader, self._step, self._parts = loader, step, parts
        self.tasks: Sequence[Callable[[], None]] = [task for part in parts.values() for task in part.tasks]

    def finish(self) -> Made:
        """The batch, or its copy to the device under way."""
        step, parts, mover = self._step, self._parts, self._loader.mover
        bad, mended = self._judge()
        keep, valid = (None, step.valid) if mended is None else (mended.keep, mended.valid)
        if mended is not None and mended.elsewhere:
            step, parts = self._loader.stand_in(step)
        batch: Batch = {name: part.value(keep) for name, part in parts.items()}
        batch |= self._own_keys(step, keep)
        if self._loader.on_error != "raise":
            batch["_bad"] = [sample.key for sample in bad.values()]
            valid = np.ones(len(step.rows), np.bool_) if valid is None else valid
        if valid is not None:
            batch["valid"] = torch.from_numpy(valid)
        if parts is not self._parts:
            for part in parts.values():
                part.release()
        batch = self._loader.shaping.apply(batch)
        nbytes, retries = (sum(getattr(p, what) for p in self._parts.values()) for what in ("nbytes", "retries"))
        return Made(batch if mover is None else mover.send(batch), len(self._step.rows), nbytes, retries, bad)

    def _own_keys(self, step: Step, keep: Indices | None) -> Batch:
        """What a batch holds beside the columns."""
        chosen = step if keep is None else Step(step.rows[keep], None, step.epoch, step.after, _at(step.sources, keep))
        own: Batch = {"_rows": torch.from_numpy(chosen.rows), "_cursor": step.after}
        if any(feed.source.keys for feed in self._loader.feeds):
            own["_keys"] = self._loader.keys(chosen)
        if chosen.sources is not None and len(self._loader.feeds) > 1:
            own["_source"] = torch.from_numpy(chosen.sources)
        return own

    def _judge(self) -> tuple[dict[int, BadSample], Mended | None]:
        """The bad samples by place, and where the batch takes its rows from if some are skipped or replaced.

        Raises the first one's error if that is the policy.
        """
        bad: dict[int, BadSample] = {}
        verdicts: dict[int, Verdict] = {}
        failed = {place for part in self._parts.values() for place in part.errors}
        for place in sorted(failed):
            for name, part in self._parts.items():
                if place in part.errors:
                    sample = self._loader.bad(self._step, place, name, part.errors[place])
                    bad.setdefault(place, sample)
                    verdict = self._verdict(sample, part, place)
                    if verdict is not None and verdicts.get(place) != "skip":
                        verdicts[place] = verdict
        if not verdicts:
            return bad, None
        first = named(bad[min(verdicts)])
        log.warning(
            "%d bad samples in the batch at %s were left out or replaced: %s", len(bad), self._step.after, first
        )
        return bad, mend(len(self._step.rows), verdicts, self._step.valid)

    def _verdict(self, sample: BadSample, part: Part, place: int) -> Verdict | None:
        """What becomes of the place; None where a function gave its value."""
        answer = self._loader.answer(sample)
        if isinstance(answer, str) and answer == "raise":
            raise named(sample)
        if isinstance(answer, str) and answer in ("skip", "replace"):
            return "skip" if answer == "skip" else "replace"
        if answer is None:
            raise InputError("on_error gave None; return 'skip', 'replace', 'raise' or a value for the column")
        part.put(place, answer)
        return None

    def release(self) -> None:
        """Gives the read buffers back."""
        self.tasks = ()
        for part in self._parts.values():
            part.release()


def named(sample: BadSample) -> DeeplakeError:
    """The sample's error, with its column and key."""
    error = sample.error
    if isinstance(error, DAMAGE):
        if sample.key not in str(error):  # a file that is gone speaks of itself alone
            error.add_note(f"column {sample.column!r}, sample {sample.key!r}; restore the file, or on_error='skip'")
        return error
    found = DecodeError(f"column {sample.column!r}, sample {sample.key!r}: {error}", key=sample.key)
    found.__cause__ = error
    return found


def _at(values: Indices | None, places: Indices) -> Indices | None:
    return None if values is None else values[places]
