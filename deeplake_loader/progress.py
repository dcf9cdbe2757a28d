"""The progress bar of long work, where one is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    total: int | None, show: bool, *, unit: str, scale: bool = True, description: str | None = None
) -> Iterator[Callable[[int], object]]:
    """A function that advances the bar by so many, and does nothing where none is shown.

    Args:
        total: of all the work, None where it is not known.
        unit: what is counted, with a space before it.
        scale: whether large counts are told in thousands and millions.
        description: what the bar begins with.
    """
    if not show:
        yield lambda _count: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, unit_scale=scale, desc=description) as bar:
        yield bar.update
