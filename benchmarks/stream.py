"""Streams: samples/s of stored bytes and of pixels, first batches, random access, resuming, planning, memory.

The contestants are in `stream_contestants.py`, each a process of its own per turn; for one in another environment its
interpreter is named, `--python mosaicml=/envs/mds/bin/python`. Before a time counts, every contestant goes
through an epoch that is compared sample by sample with what was stored, and its first decoded batch with Pillow's.
All files are in the page cache. Ours verifies every payload's checksum, the peers none.

    python benchmarks/stream.py                                  # minutes
    python benchmarks/stream.py --peers litdata wids             # a few of them
    python benchmarks/stream.py --full --photos FOLDER           # 40,000 rows: 2.4 GB per contestant

The goal against the best peer counts the best of all, at its best number of workers. FFCV is no contestant: its last
release needs headers of OpenCV and libturbojpeg, and it stores JPEGs encoded anew.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import harness
import stream_contestants
import stream_data
import stream_probes

FULL = {"rows": 40_000, "rounds": 3, "plan_rows": 10_000_000}
SMALL = {"rows": 4_096, "rounds": 3, "plan_rows": 1_000_000}
RAW = (
    "dataloader_files",
    "dataloader_files_2_workers",
    "torchdata_nodes",
    "spdl",
    "webdataset",
    "webdataset_2_workers",
    "wids",
    "litdata",
    "mosaicml",
    "lancedb",
    "huggingface",
    "deeplake",
)
OWN_DECODERS = (
    "dataloader_files",
    "torchdata_nodes",
    "spdl",
    "webdataset",
    "litdata",
    "mosaicml",
    "lancedb",
    "huggingface",
    "deeplake",
)
WITH_CV2 = ("dataloader_cv2", "torchdata_nodes_cv2", "spdl_cv2")
CLAIMS = ("raw", "decoded", "first", "access", "resume", "plan")


class Contest:
    """Runs contestants on the rows of one folder."""

    def __init__(self, folder: str, pythons: dict[str, str], rounds: int) -> None:
        self.folder, self.pythons, self.rounds = folder, pythons, rounds

    def command(self, name: str, action: str) -> list[str]:
        script = os.path.abspath(stream_contestants.__file__)
        return [self.pythons.get(name, sys.executable), script, name, action, self.folder]

    def ask(self, name: str, action: str) -> dict[str, Any]:
        """What a fresh process of the contestant answers; raises with the end of its output when it fails."""
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        done = subprocess.run(self.command(name, action), capture_output=True, text=True, env=environment)
        line = done.stdout.strip().rpartition("\n")[2]
        if done.returncode or not line.startswith("{"):
            raise RuntimeError(f"{name} {action} ended with status {done.returncode}: {done.stderr[-2_000:]}")
        print(f"{name} {action} {line}", file=sys.stderr, flush=True)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def usable(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if self.ask(name, "usable")["usable"]]

    def turns(self, names: Sequence[str], action: str) -> dict[str, list[dict[str, Any]]]:
        """What each contestant answers, round by round; every round begins with another one."""
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}

        def turn(name: str) -> float:
            answers[name].append(self.ask(name, action))
            return 0.0

        harness.take_turns({name: partial(turn, name) for name in names}, self.rounds)
        return answers


# -- claims ------------------------------------------------------------------------------------------------------------


def raw(contest: Contest, peers: Sequence[str], rows: int) -> None:
    limits = ("sequential_read", "memory_copy")
    answers = contest.turns(["ours", *contest.usable(peers), *limits], "raw")
    firsts = {name: [a["epochs_s"][0] for a in given] for name, given in answers.items()}
    later = {name: [statistics.mean(a["epochs_s"][1:]) for a in given] for name, given in answers.items()}
    show = partial(harness.report, unit="samples/s", work=rows, peers=peers, limits=limits, rows=rows)
    goals = {"first": {"best_peer": 1.4, "webdataset": 8.0}, "later": {"best_peer": 1.3, "webdataset": 15.0}}
    cpu = {name: harness.short(statistics.median(a["cpu_us"] for a in given)) for name, given in answers.items()}
    claim = "stream of stored bytes with caption, label and vector, shuffled, verified"
    show(f"{claim}: first epoch of a process", firsts, goal=goals["first"])
    show(f"{claim}: later epochs", later, goal=goals["later"], cpu_us_per_sample=cpu)
    harness.emit(
        "first batch of stored bytes after the stream is made",
        unit="ms",
        ours=milliseconds(answers["ours"], "first_batch_s"),
        peer={n: milliseconds(answers[n], "first_batch_s") for n in answers if n not in ("ours", *limits)},
        goal_ms=30,
    )


def decoded(contest: Contest, peers: Sequence[str]) -> None:
    answers = contest.turns(["ours", *contest.usable(peers), "bare_decoder"], "decoded")
    seconds = {name: [a["epochs_s"][0] for a in given] for name, given in answers.items()}
    samples = stream_contestants.DECODED_SAMPLES
    harness.report(
        "stream of 224 x 224 pixels, antialiased, shuffled",
        seconds,
        unit="samples/s",
        work=samples,
        peers=peers,
        limits=["bare_decoder"],
        goal={"bare_decoder": 0.97, "best_peer": 1.0},
        samples=samples,
    )
    named = [name for name in answers if name not in ("ours", "bare_decoder")]
    harness.emit(
        "first batch of pixels after the stream is made",
        unit="ms",
        ours=milliseconds(answers["ours"], "first_batch_s"),
        peer={name: milliseconds(answers[name], "first_batch_s") for name in named},
        goal_ms=120,
    )
    harness.emit(
        "peak memory over imported torch while batches of 64 are decoded, without worker processes",
        unit="MB",
        ours=harness.spread([a["rss_mb"] for a in answers["ours"]]),
        peer={n: harness.spread([a["rss_mb"] for a in answers[n]]) for n in named if n in ("lancedb", "spdl")},
        goal_mb=300,
    )


def milliseconds(answers: Sequence[dict[str, Any]], field: str) -> dict[str, float | int]:
    found: dict[str, float | int] = harness.spread([answer[field] * 1e3 for answer in answers])
    return found


def first(contest: Contest, peers: Sequence[str]) -> None:
    chosen: dict[str, Callable[[], float]] = {
        name: partial(started, contest.command(name, "first")) for name in ("ours", *contest.usable(peers))
    }
    chosen["import_torch"] = partial(started, [sys.executable, "-c", "import torch; print(1, flush=True)"])
    times = harness.take_turns(chosen, max(5, contest.rounds))
    beyond = [ours - torch for ours, torch in zip(times["ours"], times["import_torch"], strict=True)]
    harness.report(
        "fresh process to its first batch of stored bytes",
        times,
        unit="ms",
        peers=peers,
        limits=["import_torch"],
        goal_ms_beyond_torch=300,
        beyond_torch=harness.spread([seconds * 1e3 for seconds in beyond]),
    )


def started(command: Sequence[str]) -> float:
    """Seconds until a process has printed a line."""

    def run() -> None:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError(f"{command} printed nothing")

    seconds: float = harness.timed(run)
    return seconds


def access(contest: Contest) -> None:
    turns = {
        "ours": partial(harness.in_process, stream_probes.samples, contest.folder),
        "ours_gets_of_64": partial(harness.in_process, stream_probes.takes, contest.folder),
    }
    if contest.usable(["wids"]):
        turns["wids"] = partial(harness.in_process, stream_probes.by_wids, contest.folder)
    harness.report(
        "random access by primary key, one sample a call",
        harness.take_turns(turns, contest.rounds),
        unit="samples/s",
        work=stream_probes.DRAWS,
        peers=["wids"],
        limits=["ours_gets_of_64"],
        goal={"wids": 2.5},
        goal_samples_per_s=30_000,
    )


def resume(contest: Contest) -> None:
    found = [harness.in_process(stream_probes.resuming, contest.folder) for _ in range(contest.rounds)]
    harness.report(
        "a state loaded at 90 % of an epoch, to the first batch",
        {"ours": [late for _, late, _ in found], "from_the_start": [early for early, _, _ in found]},
        unit="ms",
        limits=["from_the_start"],
        goal={"from_the_start": 1.0},
        state_bytes=found[0][2],
        goal_state_bytes=1_024,
    )


def plan(contest: Contest, rows: int) -> None:
    found = [harness.in_process(stream_probes.planning, contest.folder, rows) for _ in range(contest.rounds)]
    harness.emit(
        "planning a stream beyond its SQL",
        unit="s",
        ours=harness.spread([own for _, own, _, _ in found]),
        limit={"sql": harness.spread([sql for sql, _, _, _ in found])},
        to_the_first_step=harness.spread([step for _, _, step, _ in found]),
        goal_s=1.0,
        rows=found[0][3],
    )


# -- the whole ---------------------------------------------------------------------------------------------------------


def main() -> None:
    options = parse()
    pythons = dict(pair.split("=", 1) for pair in options.python)
    with harness.scratch(options.folder) as folder:
        stream_data.prepare(folder, options.rows, options.photos)
        contest = Contest(folder, pythons, options.rounds)
        peers = store(contest, options.peers)
        raws = [name for name in RAW if name in options.peers or not options.peers]
        by_own = [name for name in (*OWN_DECODERS, *WITH_CV2) if name in options.peers or not options.peers]
        steps: dict[str, Callable[[], None]] = {
            "raw": partial(raw, contest, raws, options.rows),
            "decoded": partial(decoded, contest, by_own),
            "first": partial(first, contest, [n for n in ("webdataset", "wids", "dataloader_files") if n in peers]),
            "access": partial(access, contest),
            "resume": partial(resume, contest),
            "plan": partial(plan, contest, options.plan_rows),
        }
        for name in options.claims:
            steps[name]()


def store(contest: Contest, chosen: Sequence[str]) -> list[str]:
    """Writes the rows in every contestant's way and checks what each gives; the names of those that are there."""
    names = [n for n in dict.fromkeys((*RAW, *OWN_DECODERS, *WITH_CV2)) if n in chosen or not chosen]
    found = ["ours", *contest.usable(names)]
    for name in names:
        if name not in found:
            print(f"{name}: not installed, skipped", file=sys.stderr)
    written: set[str] = set()
    for name in found:
        stored = stream_contestants.CONTESTANTS[name].stored
        if stored not in written:
            contest.ask(name, "write")
            written.add(stored)
        contest.ask(name, "check")
    return found


def parse() -> argparse.Namespace:
    parser: argparse.ArgumentParser = harness.arguments(__doc__, rows=SMALL["rows"], rounds=SMALL["rounds"])
    parser.add_argument("--full", action="store_true", help=f"{FULL['rows']} rows, and {FULL['plan_rows']} to plan")
    parser.add_argument("--photos", help="a folder of JPEG photographs to cut the pictures from (default: drawn ones)")
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PATH", help="a peer's interpreter")
    parser.add_argument("--peers", nargs="*", default=[], help="only these peers")
    parser.add_argument("--claims", nargs="*", default=CLAIMS, choices=CLAIMS, help="only these")
    parser.add_argument("--plan-rows", type=int, default=SMALL["plan_rows"])
    options: argparse.Namespace = parser.parse_args()
    if options.full:
        options.rows, options.plan_rows = FULL["rows"], FULL["plan_rows"]
    if options.rows < stream_contestants.DECODED_SAMPLES:
        parser.error(f"--rows must be at least {stream_contestants.DECODED_SAMPLES}")
    return options


if __name__ == "__main__":
    main()
