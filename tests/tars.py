"""Small tars for the tests that take them in."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path


def tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar of these members, in order."""
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path
