"""What is made of vectors and can be made again: scan copies, lists of vector indexes, matrices over PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from deeplake_loader.care.report import Finding, Problem

if TYPE_CHECKING:
    from deeplake_loader.indexes import Indexes
    from deeplake_loader.search.copies import Copies
    from deeplake_loader.search.statements import Statements


@dataclass(frozen=True, slots=True)
class Derived:
    """The parts of a handle that make them."""

    copies: Copies
    indexes: Indexes
    statements: Statements


def check(made: Derived) -> list[Finding]:
    """What is wrong with them; what is merely not there is no problem."""
    matrices = (Finding(Problem("derived", url, what), mend) for url, what, mend in made.statements.damaged())
    return [*_copies(made.copies), *_lists(made.indexes), *matrices]


def _copies(copies: Copies) -> Iterator[Finding]:
    for path, wrong, form in copies.damaged():
        yield Finding(Problem("derived", path, wrong), _remade(path, copies.close, partial(copies.build, form)))


def _lists(indexes: Indexes) -> Iterator[Finding]:
    for index in indexes.all():
        for path, wrong in indexes.damaged(index):
            made = lambda index=index: indexes.build(index)  # noqa: E731
            yield Finding(Problem("derived", path, wrong), _remade(path, indexes.forget, made))


def _remade(path: str, forget: Callable[[], object], build: Callable[[], object]) -> Callable[[], object]:
    def mend() -> None:
        with suppress(FileNotFoundError):
            os.unlink(path)
        forget()
        build()

    return mend
