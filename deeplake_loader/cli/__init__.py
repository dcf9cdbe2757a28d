"""The command ``deeplake-loader``: a module for each group of commands, imported when one of them is called.

A command is a thin edge over a verb of `Database`: it reads options, calls the verb, prints what came back. Answers go
to stdout, errors and progress to stderr; ``--json`` answers are for programs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from deeplake_loader.cli.program import program

__all__ = ["main", "program"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; ends the process with one of the documented codes."""
    _open_closed_streams()
    program.main(args=None if arguments is None else list(arguments), prog_name="deeplake-loader")


def _open_closed_streams() -> None:
    """What the caller closed (``<&-``, some schedulers) reads as empty and swallows what is written; opened first, so
    that no file of the store takes its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
