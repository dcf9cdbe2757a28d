"""The walk through a tar: ranges of bytes in, members or problems out. Nothing is extracted, nothing is left unsaid.

Tar has no checksum over data and no table of contents, so common readers end silently at a damaged header or a zero
block, and lose what lies behind. Here every byte of the archive is accounted for: each header's checksum is verified,
sizes are held against what is left of the file, the end-of-archive mark must be there and only zeros may follow it.

Read are v7, ustar, pax and GNU headers with long names and base-256 numbers (POSIX.1-2017 pax; GNU tar manual, "Basic
Tar Format"). Plain ustar headers, nearly all there are, are read many at a time and their checksums verified by numpy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, overload

from deeplake_loader.codecs.info import MAX_BLOB_BYTES

if TYPE_CHECKING:
    from deeplake_loader.kernels import Run

BLOCK = 512
_STEP = 1 << 23  # read at once
_MAX_PAX = 1 << 20
_MAX_NAME = 1 << 16
_MAX_CHAIN = 16  # extended headers before one member
_ZEROS = bytes(BLOCK)
_OCTAL = re.compile(rb"[0-7]+\Z")
_PAX_LENGTH = re.compile(rb"(\d{1,8}) ")
_NO_DATA = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a FIFO"}
_REGULAR = (b"0", b"\0", b"7")
_SILENT = (b"V", b"D")  # a volume's label, GNU's list of a folder's names: no file's content
_FEW = 4
_SHORT_STEP = 1 << 16  # read at once where the compiled scan reads the most
_SHORT_RUN = 32
_PAUSE = 1 << 18

Read = Callable[[int, int], bytes]
"""(offset, length) -> the bytes there, fewer only at the end of the file."""


Runs = Callable[[int], "Run | None"]
"""(position) -> the plain members from there on; None where nothing can find them."""


class Member(NamedTuple):
    """A regular file in the archive: its name, where its data begins, how long it is, and the data."""

    name: str
    offset: int
    size: int
    data: bytes


class Problem(NamedTuple):
    """What is not there to be had: the header's offset, the member's name where it is known, why. After a ``fatal`` one
    the rest of the archive is unknown."""

    offset: int
    name: str | None
    reason: str
    fatal: bool


class Comment(NamedTuple):
    """What a global header says to whoever reads it, and means nothing to others."""

    text: str


class Header(NamedTuple):
    """One header block as it stands."""

    name: str
    size: int
    kind: bytes
    extended: bool


class _FatalError(ValueError):
    """The walk cannot go on."""


@overload
def walk(read: Read, size: int | None) -> Iterator[Member | Problem]: ...
@overload
def walk(read: Read, size: int | None, *, runs: Runs | None) -> Iterator[Member | Problem | Comment | Run]: ...


def walk(read: Read, size: int | None, *, runs: Runs | None = None) -> Iterator[Member | Problem | Comment | Run]:
    """The archive's regular files in order, and what else it holds or lacks. Folders are passed over.

    Args:
        read: gives ranges of the file; they are asked for in ascending order.
        size: of the file in bytes; None where it is not known before its end, as of a compressed one.
        runs: the compiled scan of the same file; where it finds plain members, they come as its `kernels.Run`.

    >>> import io, tarfile
    >>> file = io.BytesIO()
    >>> with tarfile.open(fileobj=file, mode="w") as tar:
    ...     info = tarfile.TarInfo("a.txt")
    ...     info.size = 2
    ...     tar.addfile(info, io.BytesIO(b"hi"))
    >>> data = file.getvalue()
    >>> list(walk(lambda offset, length: data[offset : offset + length], len(data)))
    [Member(name='a.txt', offset=512, size=2, data=b'hi')]
    """
    return _Walk(_Window(read, size, _STEP if runs is None else _SHORT_STEP), runs).run()


class _Window:
    """The file from ``position`` on, read in large steps."""

    def __init__(self, read: Read, size: int | None, step: int) -> None:
        self._read, self.size, self._step = read, size, step
        self.position = self.start = 0
        self.buffer = b""

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes, fewer at the end."""
        at = self.position - self.start
        if at + count > len(self.buffer):
            if count > self._step:  # not kept beside the copy that is handed out
                self.buffer, self.start = b"", self.position
                data = self._read(self.position, count)
                self.position += len(data)
                return data
            self.buffer, self.start, at = self._read(self.position, self._step), self.position, 0
        data = self.buffer[at : at + count]
        self.position += len(data)
        return data

    def skip(self, count: int) -> None:
        """Passes over bytes, which may lie behind the end."""
        self.position += count

    def require(self, count: int) -> None:
        """Refuses a size that the file cannot hold, before anything is made of that size."""
        if self.size is not None and count > self.size - self.position:
            raise _cut(count, max(0, self.size - self.position))


def _cut(wanted: int, found: int) -> _FatalError:
    return _FatalError(f"declares {wanted} bytes and {found} are left: the archive is cut")


class _Walk:
    def __init__(self, window: _Window, runs: Runs | None) -> None:
        self._window, self._runs = window, runs
        self._again = 0  # where the compiled scan is asked next
        self._pax: dict[str, str] = {}
        self._long: str | None = None
        self._chain = 0

    def run(self) -> Iterator[Member | Problem | Comment | Run]:
        start, name = 0, None
        try:
            while True:
                if not self._chain:
                    yield from self._scanned()
                    yield from self._plain()
                start, name = self._window.position, None
                block = self._window.take(BLOCK)
                if block == _ZEROS:
                    self._check_end()
                    return
                header = parse_header(self._whole(block, start))
                name = header.name or None
                yield from self._member(header, block, start)
        except _FatalError as error:
            yield Problem(start, name, str(error), fatal=True)

    def _whole(self, block: bytes, start: int) -> bytes:
        if len(block) == BLOCK:
            return block
        if block:
            raise _FatalError(f"{len(block)} bytes at the end are no whole header: the archive is cut")
        if not start:
            raise _FatalError("the file is empty")
        raise _FatalError("ends without an end-of-archive mark: members behind this point may be lost")

    def _check_end(self) -> None:
        """Only zeros may follow the first block of zeros."""
        if self._chain:
            raise _FatalError("an extended header is followed by no member")
        while data := self._window.take(_STEP):
            if data.count(0) != len(data):
                at = self._window.position - len(data.lstrip(b"\0"))
                raise _FatalError(
                    f"holds more behind the end-of-archive mark (at byte {at}): a header was lost, or archives were "
                    "joined; take it apart with 'tar --ignore-zeros'"
                )

    def _member(self, header: Header, block: bytes, start: int) -> Iterator[Member | Problem | Comment]:
        if header.kind in (b"x", b"X", b"g", b"L", b"K"):
            yield from self._extend(header)
            return
        name, size, sparse = self._resolve(header)
        self._chain, self._pax, self._long = 0, {}, None
        if header.kind == b"5" or (header.kind == b"\0" and name.endswith("/")):
            return
        if header.kind in _NO_DATA:
            yield Problem(start, name, f"is {_NO_DATA[header.kind]}, which holds no data of its own", fatal=False)
            return
        if header.extended:
            self._skip_sparse_map(block)
        self._window.require(size)
        reason = _refused(header.kind, name, size, sparse)
        if reason is None:
            yield Member(name, self._window.position, size, self._data(size))
        else:
            self._pass(size)
            if header.kind not in _SILENT:
                yield Problem(start, name, reason, fatal=False)

    def _data(self, size: int) -> bytes:
        data = self._window.take(size)
        if len(data) < size:
            raise _cut(size, len(data))
        self._window.skip(-size % BLOCK)
        return data

    def _pass(self, size: int) -> None:
        """Passes over data; where the file's size is not known, its last byte must be there."""
        if self._window.size is None and size:
            self._window.skip(size - 1)
            if not self._window.take(1):
                raise _cut(size, 0)
        else:
            self._window.skip(size)
        self._window.skip(-size % BLOCK)

    def _extend(self, header: Header) -> Iterator[Comment]:
        """Keeps what an extended header says of the next member."""
        self._chain += 1
        limit = _MAX_NAME if header.kind in (b"L", b"K") else _MAX_PAX
        if header.size > limit:
            raise _FatalError(f"an extended header of {header.size} bytes is beyond the limit of {limit}")
        if self._chain > _MAX_CHAIN:
            raise _FatalError(f"more than {_MAX_CHAIN} extended headers before one member")
        self._window.require(header.size)
        data = self._data(header.size)
        if header.kind == b"L":
            self._long = _text(data.partition(b"\0")[0])
        elif header.kind == b"g":
            records = parse_pax(data)
            if taken := {"path", "size", "linkpath"}.intersection(records):
                raise _FatalError(f"a global header gives all members the same {', '.join(sorted(taken))}")
            self._chain = self._chain if self._pax or self._long else 0
            if "comment" in records:
                yield Comment(records["comment"])
        elif header.kind != b"K":
            self._pax |= parse_pax(data)

    def _resolve(self, header: Header) -> tuple[str, int, bool]:
        """(name, size, whether the data is a sparse file's map and pieces) with the extended headers' say."""
        name = self._pax.get("path") or self._long or header.name
        text = self._pax.get("size")
        if text is not None and not (text.isascii() and text.isdigit() and len(text) < 20):
            raise _FatalError(f"a pax header gives the size {text[:40]!r}")
        sparse = header.kind == b"S" or any(key.startswith("GNU.sparse.") for key in self._pax)
        return name, header.size if text is None else int(text), sparse

    def _skip_sparse_map(self, block: bytes) -> None:
        more = block[482]
        while more:
            following = self._window.take(BLOCK)
            if len(following) < BLOCK:
                raise _FatalError("a sparse file's map is cut")
            more = following[504]

    # -- many at once ----------------------------------------------------------------------------------------------

    def _scanned(self) -> Iterator[Run]:
        """The plain members that the compiled scan finds from here on; behind a short run it is left out for a while,
        because a call costs as much as some members."""
        while self._runs is not None and self._window.position >= self._again:
            run = self._runs(self._window.position)
            if run is None:
                self._runs = None
                return
            self._window.position = run.stop
            if run.table:
                yield run
            if not run.more:
                self._again = run.stop + (1 if len(run.keys) >= _SHORT_RUN else _PAUSE)

    def _plain(self) -> Iterator[Member]:
        """The plain ustar members that lie whole in what was read; the rest is left to the walk block by block."""
        window = self._window
        buffer, base = window.buffer, window.start
        heads, sizes, _ = _plain_headers(buffer, window.position - base)
        if len(heads) < _FEW:
            return
        count = _good(buffer, heads)
        for at, size in zip(heads[:count], sizes[:count], strict=True):
            begin = at + BLOCK
            window.position = base + begin + size + -size % BLOCK
            name = _text(buffer[at : at + 100].partition(b"\0")[0])
            yield Member(name, base + begin, size, buffer[begin : begin + size])


def _plain_headers(buffer: bytes, at: int) -> tuple[list[int], list[int], int]:
    """Where plain headers begin whose data lies whole in the buffer, and their sizes; checksums not yet looked at."""
    heads: list[int] = []
    sizes: list[int] = []
    end = len(buffer)
    while 0 <= at <= end - BLOCK:
        digits = buffer[at + 124 : at + 135]
        if (
            buffer[at + 156] != 48
            or buffer[at + 345]
            or not buffer[at]
            or buffer[at + 257 : at + 262] != b"ustar"
            or buffer[at + 135] not in (0, 32)
            or _OCTAL.match(digits) is None
        ):
            break
        size = int(digits, 8)
        if at + BLOCK + size > end:
            break
        heads.append(at)
        sizes.append(size)
        at += BLOCK + size + -size % BLOCK
    return heads, sizes, at


def _good(buffer: bytes, heads: list[int]) -> int:
    """How many of the headers, from the first on, have their right checksum, written as most programs write it."""
    import numpy as np

    found = np.frombuffer(buffer, np.uint8)
    blocks = found[np.array(heads)[:, None] + np.arange(BLOCK)]
    digits = blocks[:, 148:154].astype(np.int64) - ord("0")
    usual = ((digits >= 0) & (digits <= 7)).all(axis=1)
    stored = digits @ (8 ** np.arange(5, -1, -1))
    own = blocks[:, 148:156].sum(axis=1, dtype=np.int64)
    right = usual & (blocks.sum(axis=1, dtype=np.int64) - own + 8 * ord(" ") == stored)
    return len(heads) if right.all() else int(np.argmin(right))


# -- headers -----------------------------------------------------------------------------------------------------------


def parse_header(block: bytes) -> Header:
    """What one header block says, its checksum verified.

    Raises:
        ValueError: it is no tar header.
    """
    field = block[148:156]
    try:
        stored = _number(field)
    except ValueError:
        stored = -1
    rest = block[:148] + b" " * 8 + block[156:]
    if stored != sum(rest) and stored != sum(b - 256 if b > 127 else b for b in rest):  # early writers summed signed
        raise _FatalError("is no tar header: its checksum is wrong, and what lies behind it cannot be found")
    try:
        size = _number(block[124:136])
    except ValueError as error:
        raise _FatalError(f"a header gives an impossible size: {error}") from error
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0":
        room = 131 if block[508:512] == b"tar\0" else 155  # star keeps times behind a shorter prefix
        prefix = block[345 : 345 + room].partition(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    kind = block[156:157]
    return Header(_text(name), 0 if kind in _NO_DATA else size, kind, kind == b"S" and bool(block[482]))


def parse_pax(data: bytes) -> dict[str, str]:
    """The records of a pax header, ``<length> <key>=<value>\\n`` each; an empty value takes its key back.

    Raises:
        ValueError: it holds something else.
    """
    records: dict[str, str] = {}
    at = 0
    while at < len(data) and data[at]:
        match = _PAX_LENGTH.match(data, at)
        end = at + int(match[1]) if match else 0
        key, equals, value = data[match.end() if match else at : max(end - 1, 0)].partition(b"=")
        if match is None or not equals or not key or end > len(data) or data[end - 1 : end] != b"\n" or b"\0" in key:
            raise _FatalError(f"a pax header is malformed at byte {at} of {len(data)}")
        if key in (b"path", b"size") and b"\0" in value:
            raise _FatalError(f"a pax header gives a {key.decode()} with a NUL")
        records[_text(key)] = _text(value)
        at = end
    return records


def _refused(kind: bytes, name: str, size: int, sparse: bool) -> str | None:
    """Why a member with data is left out, or None."""
    if sparse:
        return "is a sparse file, whose holes the archive does not store; write it again without --sparse"
    if kind == b"M":
        return "goes on from another volume of the archive"
    if kind not in _REGULAR:
        return f"is of the unknown kind {kind!r}"
    if not name:
        return "has no name"
    return f"holds {size} bytes, more than the limit of {MAX_BLOB_BYTES}" if size > MAX_BLOB_BYTES else None


def _number(field: bytes) -> int:
    """A header's number: octal digits, or base 256 where the first bit is set."""
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise ValueError("it is negative")
        value = int.from_bytes(bytes((field[0] & 0x3F,)) + field[1:], "big")
        if value >= 1 << 62:
            raise ValueError(f"{value} bytes")
        return value
    text = field.lstrip(b" ").partition(b"\0")[0].rstrip(b" ")
    if text and _OCTAL.match(text) is None:
        raise ValueError(f"{text!r} is no octal number")
    return int(text or b"0", 8)


def _text(name: bytes) -> str:
    """A name in UTF-8, or in Latin-1 where it is no UTF-8."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("latin-1")
