"""What a pass counts, how it reports it, and that its memory stays within the bound."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stream_store import ROWS, Clock, Store, wait_until
from torch.utils.data import DataLoader

import deeplake_loader as deeplake
from deeplake_loader.decode import cpu
from deeplake_loader.errors import InputError
from deeplake_loader.stream import Stats
from deeplake_loader.stream.stats import Board

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*set_vital")


@pytest.fixture
def store(catalog_kind: str, shared: Callable[..., Any]) -> Store:
    made: Store = shared(catalog_kind, Store.at)
    return made


def stored_bytes(store: Store) -> int:
    blobs: int = sum(store.shards.locate(r[i]).length for r in store.records for i in (0, 1))
    return blobs + 16 * ROWS  # and the vectors


@pytest.mark.both_catalogs
def test_a_pass_counts_what_it_delivered_and_verified(store: Store) -> None:
    stream = store.stream(batch_size=10)
    assert stream.stats == Stats() and stream.report() == "nothing was read yet"
    batches = iter(stream)
    for _ in range(3):
        next(batches)
    part = stream.stats
    assert (part.samples, part.batches, part.epoch, part.position) == (30, 3, 0, 30)
    assert part.prefetch == 2 and part.threads == 2 and part.queue <= 3
    for _ in batches:
        pass
    whole = stream.stats
    assert (whole.samples, whole.batches, whole.bytes) == (ROWS, 11, stored_bytes(store))
    assert (whole.epoch, whole.position, whole.bad, whole.retries, whole.skipped) == (1, 0, 0, 0, ())
    assert 0 < whole.read_s < whole.seconds and whole.decode_s > 0 and whole.finish_s > 0
    assert whole.samples_per_s == pytest.approx(ROWS / whole.seconds)
    assert part.samples == 30  # a snapshot does not change
    list(stream)
    assert stream.stats.samples == ROWS  # of the newest pass alone


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_add_up_in_the_main_process(store: Store, context: str) -> None:
    stream = store.stream(["photo", "id"], batch_size=10)
    loader = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context=context)
    assert sum(len(batch["id"]) for batch in loader) == ROWS
    stats = stream.stats
    assert (stats.samples, stats.batches, stats.workers) == (ROWS, 11, 2)
    assert "2" in stream.report() or "samples/s" in stream.report()
    list(stream)  # and then this process by itself
    assert stream.stats.workers == 0 and stream.stats.samples == ROWS


def test_the_report_names_what_holds_the_pass_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, real = Clock(monkeypatch), cpu.decode_into
    stream = store.stream(["photo", "id"], shuffle=False, prefetch=2)
    for _ in stream:
        wait_until(lambda: stream.stats.queue == min(2, 13 - stream.stats.batches), "the next batches are ready")
        clock.advance(0.1)
    assert stream.report().startswith("step-bound: a batch lay ready for 100%")
    assert stream.stats.early_s > stream.stats.late_s

    def slow(*arguments: Any, **named: Any) -> None:
        clock.advance(0.002)
        real(*arguments, **named)

    monkeypatch.setattr(cpu, "decode_into", slow)
    stream = store.stream(["photo", "id"], transforms={"photo": deeplake.Image(size=4)}, prefetch=0)
    list(stream)
    assert stream.report().startswith("decode-bound") and f"{ROWS} samples in 13 batches" in stream.report()
    assert stream.stats.late > 0.5


def test_lines_of_workers_are_added_and_old_passes_left_out() -> None:
    board = Board()
    assert board.read() == Stats()
    for worker in range(3):
        board.write(worker, Stats(samples=100, seconds=9, workers=3))
    board.write(0, Stats(samples=5, seconds=2.5, threads=2, workers=2, epoch=1))
    board.write(1, Stats(samples=6, seconds=2.0, threads=2, workers=2, epoch=1))
    total = board.read()
    assert (total.samples, total.seconds, total.threads, total.workers, total.epoch) == (11, 2.5, 4, 2, 1)


def test_a_progress_bar_enters_the_epoch_where_it_is_resumed(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    stream = store.stream(["id"], progress=True)
    batches = iter(stream)
    for _ in range(5):
        next(batches)
    state = stream.state_dict()
    batches.close()
    capsys.readouterr()
    other = store.stream(["id"], progress=True)
    other.load_state_dict(state)
    assert len(list(other)) == 8
    shown = capsys.readouterr().err
    assert "5/13" in shown and "13/13" in shown and "epoch 0" in shown


def test_a_profile_measures_stages_and_what_the_loader_costs_a_step(store: Store) -> None:
    stream = store.stream(["photo", "id"], transforms={"photo": deeplake.Image(size=4)})
    seen: list[int] = []
    found = deeplake.profile(stream, batches=20, step=lambda batch: seen.append(len(batch["id"])))
    assert found.batches == 20 and 0 < found.batch_size <= 8 and found.rate > 0
    assert found.decode_rate is not None and found.first_batch_s > 0
    assert len(seen) == 41 and found.overhead is not None  # once to warm up, 20 cached, 20 from the stream
    assert found.wait_s(found.loader_s / 2) == pytest.approx(found.loader_s / 2) and found.wait_s(1e3) == 0
    assert "bottleneck" in str(found) and "cached batch" in str(found)
    assert stream.state_dict()["position"] == 0  # the stream itself did not move
    assert "does not wait" in str(deeplake.profile(stream, batches=2))
    with pytest.raises(InputError, match="batches"):
        deeplake.profile(stream, batches=0)
    with pytest.raises(InputError, match="no rows"):
        deeplake.profile(deeplake.stream.build_stream(store.where, store.rowset(records=[]), batch_size=4))


def run(code: str, *arguments: str) -> str:
    """Its output, with one arena for malloc: with one per thread glibc keeps tens of MB that nobody holds."""
    here = Path(__file__).resolve().parent
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]), "MALLOC_ARENA_MAX": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


MEMORY = """
    import logging, sys, resource
    import numpy as np
    import deeplake_loader as deeplake
    from pathlib import Path
    logging.disable()
    db = deeplake.connect(sys.argv[1])
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, data BLOB, photo IMAGE)")
    noise, picture = np.random.default_rng(0).bytes(200_000), np.zeros((64, 64, 3), np.uint8)
    db.insert("t", [{"data": noise, "photo": picture} for _ in range(40)])
    db.optimize()
    if sys.argv[2] == "bad":
        for path in Path(db.root).rglob("*.tar"):
            data = bytearray(path.read_bytes())
            for place in (db.locate(r.data.address_in(db)) for r in db.execute("SELECT data FROM t WHERE id % 2 = 0")):
                data[place.offset + 9] ^= 1
            path.write_bytes(data)

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    stream = db.stream("SELECT data, photo FROM t", batch_size=4, shuffle=True, on_error="replace", max_errors=None,
                       transforms={"data": deeplake.Raw()} if sys.argv[3] == "raw" else None)
    count, marks, bad = 0, [], 0
    while count < int(sys.argv[4]):
        for batch in stream:
            count += 1
            bad += len(batch["_bad"])
            if count % (int(sys.argv[4]) // 10) == 0:
                marks.append(resident())
    print(max(marks[5:]) - max(marks[:5]), bad)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    ("kind", "how", "batches"), [("good", "raw", 1_000), ("good", "copied", 1_000), ("bad", "raw", 400)]
)
def test_memory_stays_flat_over_many_batches(tmp_path: Path, kind: str, how: str, batches: int) -> None:
    grown, bad = map(int, run(MEMORY, str(tmp_path / "store"), kind, how, str(batches)).split())
    assert grown < 6 << 20  # a pass holds at most 7 batches of 0.8 MB; those of the second half are 160 MB and more
    assert bad == (batches * 2 if kind == "bad" else 0)
