"""Where DALI may run: its threads do not come along into a forked process, where the first call would wait for ever."""

from __future__ import annotations

import os

import torch

from deeplake_loader.errors import InputError

_used_by: int | None = None  # the process that used DALI first, also in the ones forked from it
_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_note_fork)


def note_use() -> None:
    """Tells that this process uses DALI from now on."""
    global _used_by
    _used_by = os.getpid()


def check_process() -> None:
    """Raises InputError in a process where DALI would hang: one forked after DALI was used, or a forked worker of a
    DataLoader, whose parent may or may not have used it."""
    inherited = _used_by not in (None, os.getpid())
    if inherited or (_forked and torch.utils.data.get_worker_info() is not None):
        raise InputError(
            "DALI does not work in a process that was forked from one that uses it: its threads do not exist here, and "
            "the first call would wait for ever; start workers with multiprocessing_context='spawn' or 'forkserver', "
            "or iterate the stream without workers (it decodes in threads of its own)"
        )
