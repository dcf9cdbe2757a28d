"""A writer that does everything a writer can do, in numbered steps, and the check of what it left behind.

Run as a script it is killed at every call that changes the disk, once before the call and once in the middle of a
write, and what is left is checked each time.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from deeplake_loader.catalog import Catalog
from deeplake_loader.shards import Member, Shards
from deeplake_loader.sqlite_catalog import SqliteCatalog

MAX_RESTING_SHARD = 60_000  # so that resting blobs move within a short run
MAX_SHARD_BYTES = 150_000
TABLE = "samples"


def payload(row: int, column: str) -> bytes:
    """The bytes of a row's column, the same in every process."""
    source = random.Random(f"{row} {column}")
    return source.randbytes(source.choice((0, 1, 511, 512, 513, 5_000, 17_000)))


def large(row: int) -> bytes:
    return random.Random(row).randbytes(70_000)


def open_store(root: str) -> tuple[Catalog, Shards]:
    catalog = SqliteCatalog.open(root)
    return catalog, Shards(catalog, max_shard_bytes=MAX_SHARD_BYTES, max_resting_bytes=MAX_RESTING_SHARD)


def insert(catalog: Catalog, shards: Shards, rows: list[int], *, bulk: bool = False, big: bool = False) -> None:
    """Inserts rows with two blobs each, every fourth with one, as the facade does: stage, SQL, write."""
    with catalog.transaction():
        blobs = [
            [Member("image", large(row) if big else payload(row, "image"), "jpg", json.dumps({"row": row}))]
            + ([Member("clip.v1", payload(row, "clip.v1"), "mp4")] if row % 4 else [])
            for row in rows
        ]
        staged = shards.stage(TABLE, blobs, bulk=bulk)
        values = [
            (row, *found, *([None] * (2 - len(found)))) for row, found in zip(rows, staged.addresses, strict=True)
        ]
        catalog.executemany(f"INSERT INTO {TABLE} VALUES (?, ?, ?)", values)
        shards.write(staged, [{"id": row, "text": f"row {row} ä"} for row in rows], behind=bulk)


class Abort(Exception):
    pass


def abort_after(catalog: Catalog, shards: Shards, rows: list[int], *, bulk: bool) -> None:
    try:
        with catalog.transaction():
            insert(catalog, shards, rows, bulk=bulk)
            raise Abort
    except Abort:
        pass


def create(catalog: Catalog) -> None:
    with catalog.transaction():
        catalog.execute(f"CREATE TABLE IF NOT EXISTS {TABLE} (id INTEGER PRIMARY KEY, image INTEGER, clip INTEGER)")


def several(catalog: Catalog, shards: Shards, first: int) -> None:
    """One transaction: a statement that stays, one that fails and goes (bulk, over a shard's end), one that stays."""
    with catalog.transaction():
        insert(catalog, shards, [first])
        abort_after(catalog, shards, list(range(first + 50, first + 65)), bulk=True)
        insert(catalog, shards, [first + 1], bulk=True)


Step = tuple[list[int], Callable[[Catalog, Shards], object]]


def steps() -> list[Step]:
    """(the rows a step adds, the step)"""
    return [
        ([100], lambda c, s: insert(c, s, [100])),
        (list(range(200, 212)), lambda c, s: insert(c, s, list(range(200, 212)), bulk=True)),
        ([300, 301, 302], lambda c, s: insert(c, s, [300, 301, 302])),
        ([400, 401], lambda c, s: several(c, s, 400)),
        ([], lambda c, s: abort_after(c, s, list(range(500, 520)), bulk=True)),
        ([600, 601, 602, 603], lambda c, s: insert(c, s, [600, 601, 602, 603])),
        ([700, 701], lambda c, s: insert(c, s, [700, 701], big=True)),
        ([], lambda c, s: s.seal()),
        ([800], lambda c, s: insert(c, s, [800])),
    ]


def run(root: str, acknowledge: Callable[[int], None]) -> None:
    catalog, shards = open_store(root)
    create(catalog)
    for number, (_, step) in enumerate(steps()):
        step(catalog, shards)
        acknowledge(number)
    shards.close()
    catalog.close()


def blobs_of(row: int) -> dict[str, bytes]:
    found = {"image.jpg": large(row) if 700 <= row < 800 else payload(row, "image")}
    if row % 4:
        found["clip%2Ev1.mp4"] = payload(row, "clip.v1")
    return found


def verify(root: str, acknowledged: int) -> None:
    """Raises AssertionError unless the store holds the acknowledged steps, maybe one more, whole, and nothing else."""
    catalog, shards = open_store(root)
    create(catalog)
    rows = {row: addresses for row, *addresses in catalog.fetchall(f"SELECT * FROM {TABLE}")}
    done = steps()
    allowed = [
        {row for ids, _ in done[:n] for row in ids} for n in range(acknowledged, min(acknowledged + 1, len(done)) + 1)
    ]
    assert set(rows) in allowed, (acknowledged, sorted(rows))
    check_bytes(shards, rows)
    assert catalog.fetchone("SELECT count(*), max(seq) FROM _dl_commits") == (catalog.head(), catalog.head())
    insert(catalog, shards, [901])  # the store goes on without repair: dead shards are adopted and cut
    insert(catalog, shards, [902, 903], bulk=True)
    shards.seal()
    assert catalog.fetchone("SELECT count(*) FROM _dl_files WHERE state = 'open' AND size > 0") == (0,)
    assert catalog.fetchone("SELECT count(*) FROM _dl_resting") == (0,)
    rows = {row: addresses for row, *addresses in catalog.fetchall(f"SELECT * FROM {TABLE}")}
    check_bytes(shards, rows)
    check_tars(root, catalog, set(rows))
    shards.close()
    catalog.close()


def check_bytes(shards: Shards, rows: dict[int, list[int | None]]) -> None:
    for row, addresses in rows.items():
        found = [shards.read(address) for address in addresses if address is not None]
        assert found == list(blobs_of(row).values()), row


def check_tars(root: str, catalog: Catalog, rows: set[int]) -> None:
    """Every sample of every shard, read by tarfile alone, is one of ``rows``, complete, and there once."""
    seen: list[int] = []
    for (url,) in catalog.fetchall("SELECT url FROM _dl_files WHERE kind = 'shard'"):
        for sample in samples_of(os.path.join(root, url)):
            row = json.loads(sample.pop("json"))
            assert row["text"] == f"row {row['id']} ä"
            assert sample == blobs_of(row["id"]), row["id"]
            seen.append(row["id"])
    assert sorted(seen) == sorted(rows)


def samples_of(path: str) -> Iterator[dict[str, bytes]]:
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            key, _, name = member.name.partition(".")
            assert name not in samples.setdefault(key, {})
            samples[key][name] = archive.extractfile(member).read()  # type: ignore[union-attr]
    return iter(samples.values())


PWRITE = os.pwrite
CHANGES = ("pwritev", "pwrite", "ftruncate", "fsync", "fdatasync", "replace", "unlink", "mkdir", "open")


class At:
    """Counts the calls that change the disk and lets ``act(name, call, arguments)`` replace the chosen one."""

    def __init__(self, number: int, act: Callable[..., object]) -> None:
        self.number, self.act, self.count, self.names = number, act, 0, [""]
        self.lock = threading.Lock()
        self.originals = {name: getattr(os, name) for name in CHANGES}

    def install(self) -> None:
        for name in CHANGES:
            setattr(os, name, self._wrap(name, self.originals[name]))

    def remove(self) -> None:
        for name, original in self.originals.items():
            setattr(os, name, original)

    def _wrap(self, name: str, original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            if name == "open" and not int(arguments[1]) & os.O_CREAT:  # type: ignore[call-overload]
                return original(*arguments, **options)
            with self.lock:
                self.count += 1
                self.names.append(name)
                chosen = self.count == self.number
            if chosen:
                return self.act(name, original, arguments)
            return original(*arguments, **options)

        return call


def die(name: str, original: Callable[..., object], arguments: tuple[object, ...]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_the_middle(name: str, original: Callable[..., object], arguments: tuple[object, ...]) -> None:
    if name == "pwritev":
        fd, buffers, offset = arguments
        data = b"".join(buffers)  # type: ignore[arg-type]
        PWRITE(fd, data[: len(data) // 2], offset)
    else:  # killed right after the other calls; a file to unlink may not be there
        with suppress(OSError):
            original(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)


def killed_run(root: str, number: int, act: Callable[..., object], *, after: float | None = None) -> tuple[int, bool]:
    """(steps acknowledged, whether it ended by itself) of a child killed at a call, or ``after`` so many seconds."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        At(number, act).install()
        try:
            run(root, lambda n: os.write(write, b"."))
            os._exit(0)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(3)
    os.close(write)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(read, "rb") as pipe:
        acknowledged = len(pipe.read())
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        return acknowledged, True
    return acknowledged, False


def kill_everywhere(folder: str) -> int:
    """How many kill points were tried: before every call and in the middle of it."""
    tried = offset = 0
    for act in (die, die_in_the_middle):
        ended = False
        while not ended:
            tried += 1
            root = os.path.join(folder, f"{act.__name__}-{tried}")
            acknowledged, ended = killed_run(root, tried if act is die else tried - offset, act)
            verify(root, acknowledged)
            shutil.rmtree(root)
        offset = tried
    return tried


def kill_at_random(folder: str, rounds: int) -> int:
    """Like ``kill_everywhere`` at any instant, SQLite's own writes included."""
    source = random.Random(1)
    for i in range(rounds):
        root = os.path.join(folder, f"random-{i}")
        acknowledged, _ = killed_run(root, 0, die, after=source.uniform(0, 0.06))
        verify(root, acknowledged)
        shutil.rmtree(root)
    return rounds


def run_retrying(root: str, at: At) -> list[Exception]:
    """The errors met by a writer that simply repeats what failed; the fault is gone at the second try."""
    errors: list[Exception] = []

    def twice(action: Callable[[], object]) -> object:
        try:
            return action()
        except Exception as error:
            errors.append(error)
            return action()

    at.install()
    try:
        catalog, shards = twice(lambda: open_store(root))  # type: ignore[misc]
        twice(lambda: create(catalog))
        for _, step in steps():
            twice(lambda step=step: step(catalog, shards))  # type: ignore[misc]
    finally:
        at.remove()
    shards.close()
    catalog.close()
    return errors


if __name__ == "__main__":
    print(kill_everywhere(sys.argv[1]), kill_at_random(sys.argv[1], int(sys.argv[2])))  # noqa: T201
