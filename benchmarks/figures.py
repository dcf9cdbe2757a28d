"""Writes benchmarks/FIGURES.md, and README's shorter table, from the lines that the benchmarks printed.

    python benchmarks/cold_start.py >> results.jsonl
    python benchmarks/figures.py results.jsonl

The last line of each claim counts. What is written is what was measured: a median with its quantiles 20 and 80, and
beside every peer and limit how many times faster ours was, as the median over rounds (below 1: slower).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parents[1] / "README.md"
FIGURES = Path(__file__).resolve().parent / "FIGURES.md"
BEGIN, END = "<!-- figures -->\n", "<!-- /figures -->"


def load(paths: list[str]) -> list[dict[str, Any]]:
    """The newest line of each claim, in the order in which the claims first came."""
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        for line in Path(path).read_text().splitlines():
            if line.startswith("{"):
                result = json.loads(line)
                found[result["claim"]] = result
    return list(found.values())


def number(value: float) -> str:
    """Four digits at most, thousands grouped.

    >>> number(166123.0), number(0.0271), number(46.0)
    ('166,100', '0.0271', '46')
    """
    rounded = float(f"{value:.4g}")
    return f"{rounded:,.0f}" if rounded == int(rounded) else f"{rounded:g}"


def figure(value: object) -> str:
    """A spread, a number, a remark, or several of them by name."""
    if isinstance(value, dict) and "median" in value:
        return f"{number(value['median'])} ({number(value['q20'])} to {number(value['q80'])})"
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {figure(part)}" for name, part in value.items()) or "none"
    return number(value) if isinstance(value, int | float) else str(value)


def others(result: dict[str, Any]) -> str:
    """Peers and limits, each with how many times faster ours was."""
    cells = []
    for name, value in {**result.get("peer", {}), **result.get("limit", {})}.items():
        ratio = result.get("ratio", {}).get(name)
        times = f": ours {number(ratio['median'])}x" if ratio else ""
        cells.append(f"{name.replace('_', ' ')} {figure(value)}{recall(result, name)}{times}")
    return "<br>".join(cells)


def recall(result: dict[str, Any], who: str) -> str:
    """The share of the true rows that a contestant found, where one was measured."""
    found = result.get("recall")
    if isinstance(found, dict):
        found = found.get(who)
    elif who != "ours":
        found = None
    return "" if found is None else f", recall {number(found)}"


def ours(result: dict[str, Any]) -> str:
    return figure(result["ours"]) + recall(result, "ours")


def table(results: list[dict[str, Any]]) -> str:
    """The text of a table, and the machines it was measured on."""
    rows = ["| claim | unit | ours | against |", "|---|---|---|---|"]
    for result in results:
        rows.append(f"| {result['claim']} | {result.get('unit', '')} | {ours(result)} | {others(result)} |")
    machines = {describe(result["machine"]): None for result in results}
    return "\n".join([*rows, "", *(f"Measured on {machine}." for machine in machines)]) + "\n"


def against_others(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The claims that are measured against somebody else's software: what README shows."""
    return [result for result in results if result.get("peer")]


def describe(machine: dict[str, Any]) -> str:
    versions = [f"{name} {version}" for name, version in machine["packages"].items() if version]
    system = machine["system"].partition("-")[0]
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {system}, Python {machine['python']}, "
        f"SQLite {machine['sqlite']}, {', '.join(versions)}, commit {machine['commit']}"
    )


def fill(text: str, block: str) -> str:
    """The README's text with another block between the markers."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + block + END + rest.split(END, 1)[1]


def main() -> None:
    results = load(sys.argv[1:])
    if not results:
        print(f"no results; usage: {sys.argv[0]} FILE.jsonl ...", file=sys.stderr)
        return
    README.write_text(fill(README.read_text(), table(against_others(results))))
    FIGURES.write_text(
        f"# Figures\n\nWritten by `benchmarks/figures.py`; see README for how to measure.\n\n{table(results)}"
    )


if __name__ == "__main__":
    main()
