"""A tar's samples as rows of a proposed table, with the index of their blobs: columns in memory, nothing written.

Members that the compiled scan delivers by the thousand are put into columns by the thousand; each one that it leaves
to us, or cannot tell the size of, goes through the codecs by itself. Both ways give the same rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from deeplake_loader import codecs, kernels
from deeplake_loader.blobs import checksums
from deeplake_loader.codecs.headers import Header
from deeplake_loader.errors import DeeplakeError
from deeplake_loader.ingest import members
from deeplake_loader.ingest.tar_walk import Comment, Member, Problem, Read, walk
from deeplake_loader.types import Column, ColumnType

if TYPE_CHECKING:
    from deeplake_loader.ingest.inference import Proposal

_CODE, _OFFSET, _SIZE, _CRC, _FACTS, _KEPT, _NAME, _KEY, _FIELDS = range(9)  # the numbers of a member in a run's table
_NO_EXTENSION = "has no extension, so it belongs to no sample"


INDEX = ("ordinal", "key", "column_name", "extension", "offset", "length", "checks", "info")
"""The columns of an index, as the catalog names them."""


class Index:
    """Blobs by column: a tuple for each would cost the garbage collector as much as taking them in."""

    def __init__(self) -> None:
        self.columns: tuple[list[Any], ...] = tuple([] for _ in INDEX)

    def __len__(self) -> int:
        return len(self.columns[0])

    def add(self, values: Sequence[Iterable[Any]]) -> None:
        """More blobs, their values by column."""
        for column, more in zip(self.columns, values, strict=True):
            column.extend(more)

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The blobs one by one."""
        return zip(*self.columns, strict=True)

    def settle(self, bad: Container[str]) -> None:
        """Leaves out the blobs of these keys and puts the others in the order of their numbers."""
        numbers, keys = self.columns[:2]
        chosen = [i for i, key in enumerate(keys) if key not in bad] if bad else range(len(numbers))
        order = sorted(chosen, key=numbers.__getitem__)
        if order != list(range(len(numbers))):
            self.columns = tuple([column[i] for i in order] for column in self.columns)


@dataclass(slots=True)
class Scan:
    """What a walk through one tar found.

    Fields: ``names`` of the columns; ``keys`` of the rows in the order of their first members; ``columns``, their
    values, a number for a blob; ``index``, the blobs for the catalog by that number, without their file;
    ``problems``, (member, reason); ``fatal``, why the archive cannot be trusted as a whole, or None; ``unused``,
    extensions no column takes, with their members.
    """

    names: tuple[str, ...]
    keys: list[str] = field(default_factory=list)
    columns: list[list[Any]] = field(default_factory=list)
    index: Index = field(default_factory=Index)
    problems: list[tuple[str, str]] = field(default_factory=list)
    fatal: str | None = None
    unused: dict[str, int] = field(default_factory=dict)


class _Slots:
    """What is done with a member of each extension: which column it fills, and how."""

    def __init__(self, proposal: Proposal) -> None:
        self.columns = tuple(choice.column for choice in proposal.choices)
        self.key = next((i for i, choice in enumerate(proposal.choices) if choice.field == ""), None)
        self.fields = {choice.field: i for i, choice in enumerate(proposal.choices) if choice.field}

    def blob(self, extension: str) -> tuple[int, Column] | None:
        """The blob column that this extension fills, and its place."""
        place = self._place(extension)
        return (place, self.columns[place]) if place is not None and self.columns[place].type.is_blob else None

    def _place(self, extension: str) -> int | None:
        """The place of the column that a member fills, by its extension or by a field that stands for several."""
        names = (extension, f"{extension}.*", f"{extension.rpartition('.')[0]}.*")
        return next((self.fields[name] for name in names if name in self.fields), None)

    def text(self, extension: str) -> int | None:
        """The place of the column that takes such members as text and nothing else of them."""
        plain = members.is_text_extension(extension) and not any(f.startswith(f"{extension}.") for f in self.fields)
        place = self.fields.get(extension) if plain else None
        return place if place is not None and self.columns[place].type.is_scalar else None

    def takes(self, extension: str) -> bool:
        return self._place(extension) is not None or any(f.startswith(f"{extension}.") for f in self.fields)

    def values(self, extension: str, data: bytes) -> Iterator[tuple[int, Any]]:
        """(column, value) of a member that fills scalar and vector columns."""
        place = self._place(extension)
        if place is not None and self.columns[place].type.is_vector:
            yield place, members.vector(data)
        elif place is not None and not members.is_scalar_extension(extension):
            yield place, data.decode() if self.columns[place].type.name == "TEXT" else data
        else:
            for name, value in members.values(extension, data):
                if name in self.fields:
                    yield self.fields[name], self._document(extension, self.fields[name], value)

    def _document(self, extension: str, place: int, value: Any) -> Any:
        """A text of a JSON document as a column takes it whose other values are no texts: as JSON again."""
        if not isinstance(value, str) or not members.is_document_extension(extension):
            return value
        kind = self.columns[place].type.name
        return json.dumps(value) if kind == "JSON" else members.bytes_of(value) if kind == "BYTEA" else value

    def actions(self) -> dict[str, kernels.Action]:
        """What the compiled scan does with each extension that is taken; {} where there are too many of them."""
        parts = {f[:i] for f in self.fields for i, c in enumerate(f) if c == "."}
        parts |= {f for f in self.fields if not f.endswith(".*")}
        usual = {"IMAGE": ("jpg", "png", "webp"), "BLOB": ("bin",)}
        for name, place in self.fields.items():
            if name.endswith(".*"):
                parts |= {name[:-1] + extension for extension in usual.get(self.columns[place].type.name, ())}
        found: dict[str, kernels.Action] = {}
        for name in sorted(n for n in parts if n and len(n) < 100 and n.isascii() and n == n.lower() and "\0" not in n):
            blob = self.blob(name)
            kind = None if blob is None else blob[1].type.name
            if blob is None:
                found[name] = "keep"
            elif kind in ("IMAGE", "BLOB"):
                found[name] = "picture" if kind == "IMAGE" else "sum"
        return found if len(found) <= kernels.MAX_ACTIONS else {}


def scan(read: Read, size: int, proposal: Proposal, where: str, *, fd: int = -1) -> Scan:
    """The samples of a tar as rows of the proposed table; pure but for reading.

    Members of one key make one row, wherever in the archive they are. A sample with a member that cannot be stored, or
    one that is there twice, is left out and listed.

    Args:
        read: gives ranges of the file.
        size: of the file in bytes.
        fd: the file, where it is a local one: the compiled scan reads it then.
    """
    scanner = _Scanner(read, proposal, where)
    return scanner.run(walk(read, size, runs=scanner.runs(fd, size) if fd >= 0 else None))


class _Scanner:
    def __init__(self, read: Read, proposal: Proposal, where: str) -> None:
        self._read, self._slots, self._where = read, _Slots(proposal), where
        self._found = Scan(tuple(column.name for column in self._slots.columns))
        self._rows: dict[str, int] = {}
        self._columns: list[list[Any]] = [[] for _ in self._found.names]
        self._blobs: dict[str, tuple[int, Column] | None] = {}
        self._bad: set[str] = set()
        self._empty: set[str] = set()  # keys whose row may have no value
        self._problems: list[tuple[int, str, str]] = []
        self._ordinal = 0

    def runs(self, fd: int, size: int) -> Callable[[int], kernels.Run | None] | None:
        """The compiled scan from a position on, where it can be used."""
        actions = self._slots.actions()
        return None if not actions else lambda position: kernels.scan_tar(fd, position, size, actions)

    def run(self, walked: Iterable[Member | Problem | Comment | kernels.Run]) -> Scan:
        for item in walked:
            if type(item) is Member:
                self._take(item)
            elif type(item) is kernels.Run:
                self._take_run(item)
            elif isinstance(item, Problem):
                if item.fatal:
                    name = f"member {item.name!r} " if item.name else ""
                    self._found.fatal = f"{name}at byte {item.offset} {item.reason}"
                    break
                self._problems.append((item.offset, item.name or f"byte {item.offset}", item.reason))
        return self._finish()

    def _finish(self) -> Scan:
        found = self._found
        found.problems = [problem[1:] for problem in sorted(self._problems)]
        found.keys, found.columns = list(self._rows), [self._column(i) for i in range(len(self._columns))]
        self._bad |= {key for key in self._empty if all(c[self._rows[key]] is None for c in self._columns)}
        if self._slots.key is not None:
            found.columns[self._slots.key] = list(found.keys)
        if self._bad:
            chosen = [i for i, key in enumerate(found.keys) if key not in self._bad]
            found.keys = [found.keys[i] for i in chosen]
            found.columns = [[column[i] for i in chosen] for column in found.columns]
        found.index.settle(self._bad)
        return found

    # -- one member ------------------------------------------------------------------------------------------------

    def _take(self, member: Member) -> None:
        split = members.split_name(member.name)
        if split is None:
            self._problems.append((member.offset, member.name, _NO_EXTENSION))
            return
        key, extension = split
        blob = self._blob(extension)
        if blob is None and not self._slots.takes(extension):
            self._found.unused[extension] = self._found.unused.get(extension, 0) + 1
            return
        self._rows.setdefault(key, len(self._rows))
        if blob is not None:
            self._ordinal += 1
            self._store(key, blob, member, self._ordinal - 1)
        else:
            self._read_values(key, extension, member)

    def _blob(self, extension: str) -> tuple[int, Column] | None:
        try:
            return self._blobs[extension]
        except KeyError:
            return self._blobs.setdefault(extension, self._slots.blob(extension))

    def _refuse(self, key: str, member: Member, reason: object) -> None:
        self._bad.add(key)
        self._problems.append((member.offset, member.name, str(reason)))

    def _store(self, key: str, blob: tuple[int, Column], member: Member, ordinal: int) -> None:
        place, column = blob
        try:
            encoded = codecs.encode(column.type, member.data, where=f"{self._where}: {member.name}")
            self._put(key, place, ordinal)
        except (DeeplakeError, ValueError) as error:
            self._refuse(key, member, error)
            return
        self._found.index.add((
            [ordinal], [key], [column.name], [encoded.extension], [member.offset], [member.size],
            [checksums(member.data)], [encoded.info.to_json()],
        ))  # fmt: skip

    def _read_values(self, key: str, extension: str, member: Member) -> None:
        try:
            put = False
            for place, value in self._slots.values(extension, member.data):
                self._put(key, place, value)
                put = True
            if not put:
                self._empty.add(key)
        except (DeeplakeError, ValueError) as error:
            self._refuse(key, member, error)

    def _put(self, key: str, place: int, value: Any) -> None:
        row, column = self._rows[key], self._column(place)
        if column[row] is not None:
            raise ValueError(self._second(key, place))
        column[row] = value

    def _column(self, place: int) -> list[Any]:
        """The column with a place for every row."""
        column = self._columns[place]
        column.extend(repeat(None, len(self._rows) - len(column)))
        return column

    def _second(self, key: str, place: int) -> str:
        return f"the sample {key!r} has a second value for the column {self._found.names[place]!r}"

    # -- many members ----------------------------------------------------------------------------------------------

    def _take_run(self, run: kernels.Run) -> None:
        """Each extension's members at once; rows and blobs are numbered in the archive's order."""
        import numpy as np

        table = np.frombuffer(run.table, np.int64).reshape(-1, _FIELDS)
        codes = table[:, _CODE]
        takes = np.array([self._takes(extension) for extension in run.extensions])[codes]
        rows = self._rows_of(run.keys, table[:, _KEY][takes])
        is_blob = np.array([self._blob(extension) is not None for extension in run.extensions])[codes]
        ordinals = self._ordinal + is_blob.cumsum() - 1
        self._ordinal += int(is_blob.sum())
        for code in np.unique(codes).tolist():
            chosen = codes == code
            part = table[chosen]
            self._take_part(_Part(run, run.extensions[code], part, rows[part[:, _KEY]], ordinals[chosen]))

    def _rows_of(self, keys: Sequence[str], wanted: Any) -> Any:
        """The row of each key, a new one for each that is wanted and has none."""
        import numpy as np

        rows, found = self._rows, np.zeros(len(keys) + 1, np.int64)  # one more, for members without a key
        numbers = np.unique(wanted)
        texts = keys if len(numbers) == len(keys) else [keys[i] for i in numbers.tolist()]
        found[numbers] = [rows.setdefault(key, len(rows)) for key in texts]
        return found

    def _takes(self, extension: str) -> bool:
        return bool(extension) and self._slots.takes(extension)

    def _take_part(self, part: _Part) -> None:
        blob = self._blob(part.extension)
        if not part.extension:
            for i in range(len(part.table)):
                self._problems.append((int(part.table[i, _OFFSET]), part.name(i), _NO_EXTENSION))
        elif blob is not None:
            self._store_part(part, *blob)
        elif self._slots.takes(part.extension):
            self._read_part(part)
        else:
            self._found.unused[part.extension] = self._found.unused.get(part.extension, 0) + len(part.table)

    def _store_part(self, part: _Part, place: int, column: Column) -> None:
        """Blobs whose facts the scan has measured, then one by one the others."""
        wanted = {"IMAGE": _FACTS, "BLOB": _CRC}.get(column.type.name)
        known = part.table[:, _SIZE] < 0 if wanted is None else part.table[:, wanted] >= 0
        if not known.all() and len(set(part.rows.tolist())) < len(part.rows):
            known[:] = False  # which of two values is the second one is told in the archive's order
        whole = part.where(known)
        self._put_part(whole, place, whole.ordinals.tolist())
        described = _describe(column.type, whole)
        sums = whole.table[:, _CRC].astype("<u4").view("V4")  # as which numpy gives bytes
        self._found.index.add((
            whole.ordinals.tolist(), whole.keys(), repeat(column.name, len(described)), map(itemgetter(0), described),
            whole.table[:, _OFFSET].tolist(), whole.table[:, _SIZE].tolist(), sums.tolist(),
            map(itemgetter(1), described),
        ))  # fmt: skip
        rest = part.where(~known)
        for i, key in enumerate(rest.keys()):
            self._store(key, (place, column), self._member(rest, i), int(rest.ordinals[i]))

    def _read_part(self, part: _Part) -> None:
        place = self._slots.text(part.extension)
        if place is not None:
            try:
                self._put_part(part, place, part.kept_texts())
            except ValueError:  # one is no text, or was too long to be kept: they are told one by one
                place = None
        if place is None:
            for i, key in enumerate(part.keys()):
                self._read_values(key, part.extension, self._member(part, i))

    def _put_part(self, part: _Part, place: int, values: Sequence[Any]) -> None:
        column, rows = self._columns[place], part.rows
        if len(rows) and rows[0] == len(column) and (rows[1:] - rows[:-1] == 1).all():  # one behind the other, all new
            column.extend(values)
            return
        column = self._column(place)
        for i, (row, value) in enumerate(zip(rows.tolist(), values, strict=True)):
            if column[row] is None:
                column[row] = value
            else:
                key = part.keys()[i]
                self._refuse(key, Member(part.name(i), int(part.table[i, _OFFSET]), 0, b""), self._second(key, place))

    def _member(self, part: _Part, i: int) -> Member:
        _, offset, size, _, _, kept, _, _ = part.table[i].tolist()
        data = part.run.kept[kept : kept + size] if kept >= 0 else self._read(offset, size)
        return Member(part.name(i), offset, size, data)


@dataclass(frozen=True, slots=True)
class _Part:
    """The members of a run that have one extension: the rows of its table, their rows in ours, the blobs' numbers."""

    run: kernels.Run
    extension: str
    table: Any
    rows: Any
    ordinals: Any

    def where(self, chosen: Any) -> _Part:
        if chosen.all():
            return self
        return replace(self, table=self.table[chosen], rows=self.rows[chosen], ordinals=self.ordinals[chosen])

    def keys(self) -> list[str]:
        """The key of each."""
        keys, wanted = self.run.keys, self.table[:, _KEY]
        if len(wanted) == len(keys) and (wanted[1:] > wanted[:-1]).all():  # every key has such a member
            return list(keys)
        return [keys[i] for i in wanted.tolist()]

    def name(self, i: int) -> str:
        """The name of one as it stands in the archive."""
        return self.run.name(int(self.table[i, _NAME]))

    def kept_texts(self) -> list[str]:
        """The text of each.

        Raises:
            ValueError: one was not kept, or is none.
        """
        starts, sizes = self.table[:, _KEPT], self.table[:, _SIZE]
        if (starts < 0).any():
            raise ValueError("was not kept")
        spans, kept = zip(starts.tolist(), (starts + sizes).tolist(), strict=True), self.run.kept
        if kept.isascii():  # a letter a byte: decoded at once
            text = kept.decode()
            return [text[a:b] for a, b in spans]
        return [kept[a:b].decode() for a, b in spans]


def _describe(kind: ColumnType, part: _Part) -> list[tuple[str, str]]:
    """(extension, facts as JSON) of blobs, few of which differ."""
    if kind.name != "IMAGE":
        return [("bin", codecs.MediaInfo("bytes").to_json())] * len(part.table)
    from deeplake_loader.codecs.images import image_info

    facts = part.table[:, _FACTS].tolist()
    told = {}
    for each in set(facts):
        extension, width, height, mode, orientation = kernels.unpack_facts(each)
        told[each] = (extension, image_info(Header(width, height, mode, orientation), extension).to_json())
    return [told[each] for each in facts]
