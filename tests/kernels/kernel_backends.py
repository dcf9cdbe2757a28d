"""Every implementation of the kernels that this machine can run, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from deeplake_loader.errors import InputError
from deeplake_loader.kernels import library

NAMES = ("python", "portable", "avx2", "avx512")


@contextmanager
def using(name: str) -> Iterator[None]:
    """Runs the block on one implementation; skips the test, saying why, where it cannot run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPLAKE_KERNELS", name)
        library.choice.cache_clear()
        try:
            library.choice()
        except InputError as error:
            pytest.skip(str(error))
        try:
            yield
        finally:
            library.choice.cache_clear()


def available() -> list[str]:
    """The implementations that run here."""
    best = library.choice()
    return ["python"] if best.library is None else ["python", *library.LEVELS[: int(best.library.dl_level()) + 1]]
