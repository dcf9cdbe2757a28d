"""The plain members of a tar, many in one call, and the sizes of pictures: what taking in other people's tars costs."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from deeplake_loader.errors import InputError

from .buffers import Pin
from .library import address, choice

if TYPE_CHECKING:
    from typing_extensions import Buffer

Action = Literal["skip", "keep", "sum", "picture"]
_ACTIONS: tuple[Action, ...] = ("skip", "keep", "sum", "picture")
_FIELDS = 8
_ROWS = 16_384  # members of one call
_NAMES = 64 * _ROWS
_KEPT = 4 << 20
_EXTENSIONS = 1 << 15
MAX_ACTIONS = 64
"""Extensions that the caller may give; as many again may be found."""


class Run(NamedTuple):
    """Plain members that follow each other in a tar.

    Fields: ``stop``, where the first header behind them begins; ``more``, whether they ended because there was no room
    for more, not at an unusual header; ``extensions`` in lower case, the first one "" for names without; ``keys``, each
    once for neighbours that share it; ``table``, int64, eight numbers a member: its extension's number, the offset and
    size of its data, its CRC-32C, its `image_facts`, where its data is in ``kept``, where its name is in ``names``, its
    key's number. The CRC, the facts and the place in ``kept`` are -1 where they were not taken, the key's number is -1
    without an extension.
    """

    stop: int
    more: bool
    extensions: list[str]
    keys: list[str]
    names: bytes
    table: array[int]
    kept: bytes

    def name(self, at: int) -> str:
        """The name that begins there in ``names``."""
        return self.names[at : self.names.index(0, at)].decode()


def scan_tar(fd: int, position: int, end: int, actions: Mapping[str, Action], *, threads: int = 2) -> Run | None:
    """The plain members of an open tar from the header at ``position`` on; None where the compiled library is missing.

    Plain are regular files of v7, ustar, pax and GNU headers, also with long names, in UTF-8; folders are passed over.
    An extension begins at the first dot behind the last slash. The first header that is anything else, or damaged,
    ends the run, and so does the file's ``end``. What is done with the data follows ``actions`` by the extension in
    lower case: ``skip`` (also for all others), ``keep`` it (up to 64 KB), ``sum`` it (up to 4 MB), or that and read a
    ``picture``'s header.

    >>> import io, tarfile, tempfile
    >>> with tempfile.TemporaryFile() as file:
    ...     with tarfile.open(fileobj=file, mode="w") as tar:
    ...         info = tarfile.TarInfo("a.TXT")
    ...         info.size = 2
    ...         tar.addfile(info, io.BytesIO(b"hi"))
    ...     run = scan_tar(file.fileno(), 0, file.tell(), {"txt": "keep"})
    >>> run and (run.name(0), run.keys, run.extensions, run.kept, list(run.table))
    ('a.TXT', ['a'], ['', 'txt'], b'hi', [1, 512, 2, -1, -1, 0, 0, 0])
    """
    if len(actions) > MAX_ACTIONS or any("\0" in name or not name for name in actions):
        raise InputError(f"actions names {len(actions)} extensions; expected at most {MAX_ACTIONS}, none empty")
    chosen = choice()
    if chosen.library is None:
        return None
    known = {"": "skip", **actions}
    texts = b"".join(name.encode() + b"\0" for name in known)
    if len(texts) > _EXTENSIONS // 2:
        raise InputError(f"the extensions of actions take {len(texts)} bytes; expected at most {_EXTENSIONS // 2}")
    state = array("q", [fd, position, end, _ROWS, _NAMES, _KEPT, len(known), _EXTENSIONS, *(0,) * 6])
    extensions = bytearray(texts.ljust(_EXTENSIONS, b"\0"))
    codes = bytearray(bytes(map(_ACTIONS.index, known.values())).ljust(256, b"\0"))
    # what is not touched of them costs nothing
    rows, names, keys, kept = (bytearray(size) for size in (8 * _FIELDS * _ROWS, _NAMES, _NAMES, _KEPT))
    with (
        Pin("extensions", extensions, writable=True) as a,
        Pin("actions", codes, writable=True) as b,
        Pin("rows", rows, writable=True) as c,
        Pin("names", names, writable=True) as d,
        Pin("keys", keys, writable=True) as e,
        Pin("kept", kept, writable=True) as f,
    ):
        chosen.library.dl_scan_tar(
            chosen.level, address(state), a.address, b.address, c.address, d.address, e.address, f.address, threads
        )
    count, names_used, keys_used, _, kept_used, stopped = state[8:]
    table = array("q")
    table.frombytes(memoryview(rows)[: 8 * _FIELDS * count])
    found = extensions.decode().split("\0")[: state[6]]
    told = keys[:keys_used].decode().split("\0")[:-1]
    return Run(state[1], not stopped, found, told, bytes(names[:names_used]), table, bytes(kept[:kept_used]))


def image_facts(data: Buffer) -> int:
    """Size, mode, orientation and format of a JPEG or PNG in one number, as `unpack_facts` takes it apart; -1 where it
    is neither, is damaged, has something rare in it, or the compiled library is missing.

    >>> image_facts(b"no picture")
    -1
    """
    chosen = choice()
    if chosen.library is None:
        return -1
    with Pin("data", data) as pin:
        return int(chosen.library.dl_image_facts(pin.address, pin.nbytes))


def unpack_facts(facts: int) -> tuple[str, int, int, str, int]:
    """(extension, width, height, Pillow's name of the mode, EXIF orientation) of `image_facts`.

    >>> unpack_facts(3 << 40 | 1 << 32 | 480 << 16 | 640)
    ('jpg', 640, 480, 'RGB', 1)
    """
    extension, modes = _FORMATS[facts >> 48]
    mode = modes[facts >> 40 & 0xFF]
    return extension, facts & 0xFFFF, facts >> 16 & 0xFFFF, mode, facts >> 32 & 0xFF


_FORMATS: tuple[tuple[str, Mapping[int, str]], ...] = (
    ("jpg", {1: "L", 3: "RGB", 4: "CMYK"}),
    (
        "png",
        {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA", 7: "1", 8: "L;16", 10: "RGB;16", 12: "LA;16", 14: "RGBA;16"},
    ),
)
