from __future__ import annotations

import doctest
import importlib
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_backends import available, using

from deeplake_loader import kernels
from deeplake_loader.errors import InputError
from deeplake_loader.kernels import library


def test_backend_names_what_runs_and_why():
    for name in available():
        with using(name):
            found = kernels.backend()
            others = {"backend", "score_error", "topk_error", "unpack_facts", "MAX_ACTIONS", "Action", "Run"}
            assert set(found) == {*kernels.__all__, "reason"} - others
            assert found["reason"] == f"DEEPLAKE_KERNELS={name}"
            assert found["scores"] == ("numpy" if name == "python" else f"native-{name}")


def test_an_unknown_choice_is_refused():
    with pytest.raises(InputError, match="DEEPLAKE_KERNELS is 'fast'"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPLAKE_KERNELS", "fast")
        library.choice.__wrapped__()


def test_a_missing_or_foreign_library_falls_back_unless_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    monkeypatch.delenv("DEEPLAKE_KERNELS", raising=False)
    assert library.choice.__wrapped__().library is None
    assert "was not built" in library.choice.__wrapped__().reason
    (tmp_path / "_kernels.so").write_bytes(b"not a library")
    assert "cannot be loaded" in library.choice.__wrapped__().reason
    monkeypatch.setenv("DEEPLAKE_KERNELS", "native")
    with pytest.raises(InputError, match=r"DEEPLAKE_KERNELS is 'native', but .* cannot be loaded"):
        library.choice.__wrapped__()


def test_a_library_of_another_interface_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    built = Path(library.__file__).with_name("_kernels.so")
    if not built.exists():
        pytest.skip("no compiled library here")
    shutil.copy(built, tmp_path / "_kernels.so")
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    monkeypatch.setattr(library, "ABI", library.ABI + 1)
    monkeypatch.delenv("DEEPLAKE_KERNELS", raising=False)
    assert "was built from other sources" in library.choice.__wrapped__().reason


def test_search_and_checksums_need_no_numpy_where_the_library_is():
    if library.choice().library is None:
        pytest.skip("no compiled library here")
    program = """
import sys
from array import array
from deeplake_loader import kernels
row = array("f", [1, 2, 3])
found = kernels.scores(row, 1, 3, "float32", row, "cosine", array("q", [0]))
assert kernels.at_least(found, kernels.kth_best(found, 1, True), True).tolist() == kernels.parse_integers("0").tolist()
assert kernels.crc32c(b"123456789") == 0xE3069283
assert "numpy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(library.__file__).parents[1])


def test_the_examples_in_the_documentation_run():
    names = [found.name for found in pkgutil.iter_modules(kernels.__path__) if not found.name.startswith("_")]
    modules = [importlib.import_module(f"{kernels.__name__}.{name}") for name in names]
    results = [doctest.testmod(module) for module in modules]
    assert sum(result.attempted for result in results) > 10
    assert not any(result.failed for result in results)
