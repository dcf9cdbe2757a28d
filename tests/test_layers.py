"""Imports go only downwards, without cycles, and heavy libraries only where they belong."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "deeplake_loader"

RANKS = {
    "errors": 0,
    "types": 0,
    "scalars": 1,
    "codecs": 1,
    "store": 1,
    "driver_errors": 1,
    "dialects": 1,
    "authorizer": 1,
    "kernels": 1,
    "tar": 1,
    "rows": 2,
    "columnar": 3,
    "scalar_columns": 2,
    "inserts": 2,
    "behind": 1,
    "progress": 1,
    "extents": 2,
    "adopted": 1,
    "storage": 2,
    "batches": 2,
    "matrices": 2,
    "catalog_file": 2,
    "catalog": 3,
    "sqlite_catalog": 4,
    "blobs": 3,
    "shard_file": 3,
    "scoring": 3,
    "ann": 3,
    "indexes": 5,
    "branches": 4,
    "history": 4,
    "file_views": 4,
    "states": 5,
    "table_text": 1,
    "views": 5,
    "overlays": 6,
    "shards": 4,
    "vectors": 4,
    "sql": 4,
    "order": 5,
    "fetching": 3,
    "ownership": 4,
    "reader": 5,
    "decode": 5,
    "writing": 5,
    "stream": 6,
    "merging": 7,
    "transcoding": 6,
    "search": 6,
    "clips": 7,
    "media": 8,
    "warming": 8,
    "checkout": 8,
    "recall": 8,
    "inventory": 8,
    "pictures": 8,
    "quarantine": 4,
    "schema": 7,
    "references": 7,
    "postgres": 8,
    "database": 9,
    "lightning": 10,
    "nodes": 10,
    "dbapi": 10,
    "sqlalchemy": 11,
    "inspection": 5,
    "plans": 5,
    "parts": 7,
    "embedded": 8,
    "cli": 10,
    "ingest": 7,
    "exporting": 8,
    "care": 8,
}
SAME_RANK_ALLOWED = {("types", "errors")}
DEVICE_KERNELS = ROOT / "kernels" / "triton"
"""Imported only when a tensor on a device is to be worked on."""
TENSOR_WING = {"stream", "decode", "order", "reader"}


def modules() -> dict[Path, str]:
    """Every source file and the name of the room it belongs to."""
    files = {path: path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    files |= dict.fromkeys((ROOT / "kernels").rglob("*.py"), "kernels")
    return {path: room for path, room in files.items() if room != "__init__" and "__pycache__" not in path.parts}


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Dotted names that the file imports, the ones for type checking left out."""
    tree = ast.parse(path.read_text())
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in tree.body if top_level_only else ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                room = path.relative_to(ROOT).parts[:-1]
                module = ".".join((*room, module)) if module else ".".join(room)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def rooms(names: Iterator[str]) -> set[str]:
    return {
        name.split(".")[1] if name.startswith("deeplake_loader.") else "kernels"
        for name in names
        if name.startswith(("deeplake_loader.", "kernels."))
    }


def test_every_module_has_a_rank() -> None:
    assert set(modules().values()) == set(RANKS)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_only_downwards(path: Path) -> None:
    room = modules()[path]
    wrong = {
        other
        for other in rooms(imports(path))
        if other != room and RANKS[other] >= RANKS[room] and (room, other) not in SAME_RANK_ALLOWED
    }
    assert not wrong, f"{path.name} (rank {RANKS[room]}) imports {wrong}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_torch_stays_in_the_tensor_wing(path: Path) -> None:
    if modules()[path] not in TENSOR_WING and DEVICE_KERNELS not in path.parents:
        assert "torch" not in {name.split(".")[0] for name in imports(path, top_level_only=True)}


def test_no_module_imports_itself_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in modules():
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        name = name.replace("deeplake_loader.", "", 1)
        found = {i.replace("deeplake_loader.", "", 1) for i in imports(path, top_level_only=True)}
        graph[name] = found
    known = set(graph)
    edges = {
        name: {k for i in found for k in (i, i.rpartition(".")[0]) if k in known and k != name}
        for name, found in graph.items()
    }
    state: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert state.get(name) != 1, f"import cycle: {' -> '.join((*trail, name))}"
        if state.get(name) != 2:
            state[name] = 1
            for other in edges[name]:
                if not name.startswith(other + "."):  # a package's __init__ may name its parts
                    visit(other, (*trail, name))
            state[name] = 2

    for name in known:
        visit(name, ())
