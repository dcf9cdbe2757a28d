"""What is on the disk after the power went: a file system of its own is shut down without flushing anything.

Needs root, loop devices and ext4; run by DEEPLAKE_POWER_LOSS=1 because it mounts.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import shard_workload as workload

EXT4_SHUTDOWN, WITHOUT_FLUSH = 0x8004587D, struct.pack("I", 2)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("DEEPLAKE_POWER_LOSS") or os.getuid() != 0 or not shutil.which("mkfs.ext4"),
        reason="set DEEPLAKE_POWER_LOSS=1 and run as root where mkfs.ext4 and loop devices are",
    ),
]


class Disk:
    """A small ext4 in a file, mounted."""

    def __init__(self, folder: Path) -> None:
        self.image, self.mount = folder / "image", folder / "mount"
        self.mount.mkdir()

    def fresh(self) -> None:
        self.unmount()
        self.image.write_bytes(b"")
        os.truncate(self.image, 64 << 20)
        _run("mkfs.ext4", "-q", "-F", self.image)
        self.remount()

    def remount(self) -> None:
        self.unmount()
        _run("mount", "-o", "loop", self.image, self.mount)

    def unmount(self) -> None:
        if self.mount.is_mount():
            _run("umount", self.mount)

    def lose_power(self) -> None:
        fd = os.open(self.mount, os.O_RDONLY)
        fcntl.ioctl(fd, EXT4_SHUTDOWN, WITHOUT_FLUSH)
        os.close(fd)


def _run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    yield made
    made.unmount()


@pytest.mark.parametrize("carry_out", [False, True], ids=["before", "after"])
def test_acknowledged_rows_survive_a_power_loss_at_every_call(disk: Disk, carry_out: bool) -> None:
    def act(name: str, original: Callable[..., object], arguments: tuple[object, ...]) -> None:
        if carry_out:
            with suppress(OSError):  # a file to unlink may not be there
                original(*arguments)
        disk.lose_power()
        os.kill(os.getpid(), signal.SIGKILL)

    number, ended = 0, False
    while not ended:
        number += 1
        disk.fresh()
        root = str(disk.mount / "store")
        acknowledged, ended = workload.killed_run(root, number, act)
        disk.remount()
        workload.verify(root, acknowledged)
    assert number > 40
