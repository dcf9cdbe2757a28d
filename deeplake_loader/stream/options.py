"""How a stream makes its batches: nothing here changes which rows come, or when."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import get_args

import torch

from deeplake_loader.decode.engine import Engine
from deeplake_loader.errors import InputError
from deeplake_loader.stream.collate import Shaping
from deeplake_loader.stream.failures import OnError, check_policy


@dataclass(frozen=True, slots=True)
class Options:
    """Checked as they are made; see `build_stream` for what each means.

    Raises:
        InputError: an option out of range.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    prefetch: int = 2
    num_threads: int | None = None
    on_error: OnError = "raise"
    seed: int = 0
    max_errors: int | None = 100
    timeout_s: float | None = 120.0
    progress: bool = False
    shaping: Shaping = field(default_factory=Shaping)
    engine: Engine = "auto"

    def __post_init__(self) -> None:
        if self.device.type not in ("cpu", "cuda"):
            raise InputError(f"device={str(self.device)!r}: batches go to 'cpu' or 'cuda[:n]'")
        for name in ("prefetch", "num_threads", "seed", "max_errors"):
            value = getattr(self, name)
            if value is not None or name in ("prefetch", "seed"):
                object.__setattr__(self, name, whole(name, value))  # numpy's integers are not Python's everywhere
        if self.prefetch < 0:
            raise InputError(f"prefetch must be 0 or more, got {self.prefetch}")
        if self.num_threads is not None and self.num_threads < 1:
            raise InputError(f"num_threads must be at least 1, got {self.num_threads}")
        check_policy(self.on_error)
        if self.engine not in get_args(Engine):
            raise InputError(f"engine={self.engine!r} is none of {', '.join(get_args(Engine))}")
        if self.max_errors is not None and self.max_errors < 0:
            raise InputError(f"max_errors must be 0 or more, or None for no limit, got {self.max_errors}")
        if self.timeout_s is not None and not (isinstance(self.timeout_s, int | float) and self.timeout_s > 0):
            raise InputError(f"timeout_s must be above 0, or None to wait for ever, got {self.timeout_s!r}")


def whole(name: str, value: object) -> int:
    """The option as an int, also where numpy holds it; True and False are none."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise InputError(f"{name} must be an integer, got {value!r}")


def torch_device(device: str | torch.device | None) -> torch.device:
    """The device of that name; None is the CPU."""
    try:
        return torch.device(device or "cpu")
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device={device!r} is no device: {str(error).splitlines()[0]}") from error
