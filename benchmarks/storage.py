"""Stores on S3: requests and bytes of what a training set is used for, streams beside the local disk, faults.

The server is moto's behind a proxy with 20 ms before every answer (`storage_server.py`), in a process of its own on the
same machine; it sends the bodies of objects by sendfile, since moto's 25 MB/s would hide everything else. Requests are
those that the proxy saw. Each contestant (`storage_contestants.py`) is a process of its own per turn, and begins with
nothing in a local cache. Epochs are compared sample by sample, the rows of queries with numpy's, before they count.

    python benchmarks/storage.py                               # 5,000 photographs (111 MB), 10,000 rows: minutes
    python benchmarks/storage.py --small                       # 1,000 and 2,000: a quick try
    python benchmarks/storage.py --python mosaicml=/envs/mds/bin/python

    python benchmarks/storage.py --claims stream --peers none  # only the streams beside the local disk

What bandwidth allows is measured in the same rounds: a bare client (threads and sockets, no library) fetches the ranges
that our stream asked for, as many at once, and throws them away, or writes them to the cache's disk. The goal of a
stream is 0.8 of the slower one of local disk and bare client. The ranges of these 111 MB all belong to the first batch,
since an epoch is shuffled over the whole set in 15 GETs: nothing of the network's time can hide behind stored bytes, so
that both times one after the other are the limit there, while pixels are decoded long after the bytes have come.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import harness
import numpy as np
import storage_contestants
import storage_server
import workload

LATENCY_S = 0.02
PEERS = ("deeplake", "lancedb", "litdata", "mosaicml")
CLAIMS = ("epoch", "query", "writes", "stream", "refused")
WRITES = ("insert", "insert_large", "branch", "merge")

Counted = dict[str, Any]


class Contest:
    """Runs contestants against a server."""

    def __init__(self, server: storage_server.Server, folder: str, pythons: Mapping[str, str], rounds: int) -> None:
        self.server, self.folder, self.pythons, self.rounds = server, folder, pythons, rounds
        self.url = f"s3://{storage_server.BUCKET}/store"

    def ask(self, name: str, action: str, *, local: bool = False) -> Counted:
        """What a fresh process of the contestant answers, with the requests that it sent meanwhile."""
        script = os.path.abspath(storage_contestants.__file__)
        python = self.pythons.get(name, sys.executable)
        command = [python, script, name, action, self.folder, "" if local else self.url]
        self.server.clear()
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        line = done.stdout.strip().rpartition("\n")[2]
        if done.returncode or not line.startswith("{"):
            raise RuntimeError(f"{name} {action} ended with status {done.returncode}: {done.stderr[-2_000:]}")
        answer: Counted = json.loads(line)
        answer["requests"] = self.server.counts()
        print(f"{name} {action} {answer}", file=sys.stderr, flush=True)
        return answer

    def usable(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if self.ask(name, "usable")["usable"]]

    def counted(self, names: Sequence[str], action: str) -> dict[str, Counted]:
        """One turn of each contestant that does this; a peer that fails says so in the claim."""
        found: dict[str, Counted] = {}
        for name in names:
            try:
                found[name] = self.ask(name, action)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                if name == "ours":
                    raise
                print(error, file=sys.stderr)
        return found


def describe(answer: Counted) -> Counted:
    """The requests of one turn, their bytes and its seconds."""
    requests = dict(answer["requests"])
    size = requests.pop("bytes", 0)
    return {"requests": requests, "mb": harness.short(size / 1e6), "s": harness.short(answer["seconds"])}


def emit(claim: str, found: Mapping[str, Counted], **more: object) -> None:
    figures = {name: describe(answer) for name, answer in found.items()}
    ours = figures.pop("ours")
    harness.emit(claim, unit="requests", ours=ours, peer=figures, latency_ms=LATENCY_S * 1e3, **more)


# -- claims ------------------------------------------------------------------------------------------------------------


def epoch(contest: Contest, peers: Sequence[str], rows: int) -> None:
    found = contest.counted(["ours", *peers], "epoch")
    emit("a shuffled epoch of stored photographs, cold, every sample compared", found, goal_gets=30, samples=rows)


def query(contest: Contest, peers: Sequence[str], rows: int) -> None:
    chosen = [name for name in peers if hasattr(storage_contestants.CONTESTANTS[name], "ask")]
    found = contest.counted(["ours", *chosen], "ask")
    emit("the hybrid query, cold, recall 1.0", found, goal_gets=10, rows=2 * rows)


def writes(contest: Contest, peers: Sequence[str]) -> None:
    goals = {"insert": {"PUT": 3}, "insert_large": {"PUT": 3}, "branch": {"writes": 2}, "merge": {"writes": 2}}
    claims = {
        "insert": "an insert of one row with a photograph of 22 KB",
        "insert_large": "an insert of one row with a photograph of 88 KB",
        "branch": "a branch",
        "merge": "one row changed on a branch, and the merge",
    }
    for action in WRITES:
        chosen = [name for name in peers if hasattr(storage_contestants.CONTESTANTS[name], action.partition("_")[0])]
        found = contest.counted(["ours", *chosen], action)
        emit(f"{claims[action]}, in a process of its own", found, goal=goals[action])


def stream(contest: Contest, rows: int) -> None:
    for action, what, goal in (("pixels", "224 x 224 pixels", 0.8), ("stream", "stored bytes", 0.8)):
        turns = {
            "ours": partial(_seconds, contest, action, rows, local=False),
            "local_disk": partial(_seconds, contest, action, rows, local=True),
            "bare_client": partial(_bare_seconds, contest, "fetched"),
            "bare_client_to_disk": partial(_bare_seconds, contest, "landed"),
        }
        note_ranges(contest)
        times = harness.take_turns(turns, contest.rounds)
        both = list(zip(times["local_disk"], times["bare_client_to_disk"], strict=True))
        times |= {"slower_of_disk_and_bare_client": list(map(max, both)), "one_after_the_other": list(map(sum, both))}
        harness.report(
            f"a cold stream of {what} from S3, beside the local disk",
            times,
            unit="samples/s",
            work=rows,
            limits=[name for name in times if name != "ours"],
            goal={"slower_of_disk_and_bare_client": goal},
            latency_ms=LATENCY_S * 1e3,
        )
    contest.ask("ours", "stream")  # which fills the cache
    turns = {
        "ours": partial(_seconds, contest, "kept", rows, local=False),
        "local_disk": partial(_seconds, contest, "stream", rows, local=True),
    }
    times = harness.take_turns(turns, contest.rounds)
    harness.report(
        "a stream of stored bytes whose objects lie in the cache, beside the local disk",
        times,
        unit="samples/s",
        work=rows,
        limits=["local_disk"],
        goal={"local_disk": 0.9},
    )


def _seconds(contest: Contest, action: str, rows: int, *, local: bool) -> float:
    answer = contest.ask("ours", action, local=local)
    if answer["samples"] != rows or bool(answer["requests"]) is (local or action == "kept"):
        raise AssertionError(f"{action} gave {answer}, not {rows} samples, or asked for what is here")
    seconds: float = answer["seconds"]
    return seconds


def note_ranges(contest: Contest) -> None:
    """Writes down which ranges our stream asks for, for the bare client."""
    contest.ask("ours", "stream")
    ranges = [(path, start, start + size) for method, path, size, start in contest.server.log() if method == "GET"]
    with open(os.path.join(contest.folder, storage_contestants.RANGES), "w") as file:
        json.dump(ranges, file)


def _bare_seconds(contest: Contest, action: str) -> float:
    seconds: float = contest.ask("bare", action)["seconds"]
    return seconds


def refused(contest: Contest, rows: int) -> None:
    """Each epoch is compared sample by sample: each id once."""
    plain = [_requests(contest.ask("ours", "epoch")) for _ in range(contest.rounds)]
    contest.server.set(latency_s=LATENCY_S, refused=0.1)
    spoiled = [_requests(contest.ask("ours", "epoch")) for _ in range(3 * contest.rounds)]
    contest.server.set(latency_s=LATENCY_S)
    harness.emit(
        "an epoch while one request in ten is refused with 503, every sample once",
        unit="requests",
        ours=harness.spread(spoiled),
        limit={"none refused": harness.spread(plain)},
        times_as_many=harness.short(statistics.mean(spoiled) / statistics.mean(plain)),
        goal={"none refused": 1.3},
        samples=rows,
    )


def _requests(answer: Counted) -> int:
    return sum(count for kind, count in answer["requests"].items() if kind != "bytes")


# -- the whole ---------------------------------------------------------------------------------------------------------


def prepare(folder: str, rows: int) -> None:
    """The photographs, all of them different, and embeddings that `stream_data.Rows` reads."""
    os.mkdir(os.path.join(folder, "pictures"))
    for i, data in enumerate(workload.jpegs(rows)):
        with open(os.path.join(folder, "pictures", f"{i:04d}.jpg"), "wb") as file:
            file.write(data)
    np.save(os.path.join(folder, "embeddings.npy"), workload.columns(rows)["clip_embedding"])


def store(contest: Contest, chosen: Sequence[str]) -> list[str]:
    """Writes the rows in every contestant's way; the names of those that are there."""
    found = contest.usable([name for name in PEERS if name in chosen or not chosen])
    for name in ("ours", *PEERS):
        if name != "ours" and name not in found:
            print(f"{name}: not installed, skipped", file=sys.stderr)
    return [name for name in contest.counted(["ours", *found], "write") if name != "ours"]


def main() -> None:
    options = parse()
    pythons = dict(pair.split("=", 1) for pair in options.python)
    with harness.scratch(options.folder) as folder, storage_server.running() as server:
        prepare(folder, options.rows)
        contest = Contest(server, folder, pythons, options.rounds)
        peers = store(contest, options.peers)
        server.set(latency_s=LATENCY_S)
        steps: dict[str, Callable[[], None]] = {
            "epoch": partial(epoch, contest, peers, options.rows),
            "query": partial(query, contest, peers, options.rows),
            "stream": partial(stream, contest, options.rows),
            "refused": partial(refused, contest, options.rows),
            "writes": partial(writes, contest, peers),  # last: they change what the others read
        }
        for name in steps:
            if name in options.claims:
                steps[name]()


def parse() -> argparse.Namespace:
    parser = harness.arguments(__doc__, rows=5_000, rounds=5)
    parser.add_argument("--small", action="store_true", help="1,000 photographs, 2 turns")
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PATH", help="a peer's interpreter")
    parser.add_argument("--peers", nargs="*", default=[], help="only these peers; 'none' for none")
    parser.add_argument("--claims", nargs="*", default=CLAIMS, choices=CLAIMS, help="only these")
    options = parser.parse_args()
    if options.small:
        options.rows, options.rounds = 1_000, 2
    return options


if __name__ == "__main__":
    main()
