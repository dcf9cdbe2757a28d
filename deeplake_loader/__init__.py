"""A database you can train from: SQL over scalars, embeddings, images, video and tensors, streamed into a GPU.

>>> import deeplake_loader as deeplake
>>> db = deeplake.connect("./video-pipeline")                                       # doctest: +SKIP

Names are imported when they are first used, so that a query in a fresh process does not wait for torch.
"""

from __future__ import annotations

import os as _os
from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

# In a checkout the folder kernels/ lies beside this package; installed, setup.py has put it inside.
_root = _os.path.dirname(_os.path.dirname(_os.path.abspath(__file__)))
if _os.path.isfile(_os.path.join(_root, "setup.py")) and _os.path.isfile(
    _os.path.join(_root, "kernels", "__init__.py")
):
    __path__.append(_root)

if TYPE_CHECKING:
    from deeplake_loader.database import Database, connect
    from deeplake_loader.decode.transforms import Audio, Image, Raw, Tensor, Video
    from deeplake_loader.errors import DeeplakeError
    from deeplake_loader.stream import Budget, Pad, Stream, mix
    from deeplake_loader.stream.profile import profile
    from deeplake_loader.writing import Typed

__version__ = "0.1.0"
__all__ = [
    "Audio", "Budget", "Database", "DeeplakeError", "Image", "Pad", "Raw", "Stream", "Tensor", "Typed", "Video",
    "connect", "mix", "profile",
]  # fmt: skip

_HOMES = {
    "Audio": "decode.transforms",
    "Budget": "stream",
    "Database": "database",
    "DeeplakeError": "errors",
    "Image": "decode.transforms",
    "Raw": "decode.transforms",
    "Pad": "stream",
    "Stream": "stream",
    "Tensor": "decode.transforms",
    "Typed": "writing",
    "Video": "decode.transforms",
    "connect": "database",
    "mix": "stream",
    "profile": "stream.profile",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'deeplake_loader' has no attribute {name!r}")
    value = getattr(_import_module(f"deeplake_loader.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
