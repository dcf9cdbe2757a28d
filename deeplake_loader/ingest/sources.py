"""What a list of sources names: braces and wildcards expanded, folders looked into, each file told by its form."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, Literal
from urllib.parse import urlsplit

from deeplake_loader.adopted import file_url
from deeplake_loader.errors import InputError, NotFoundError, StoreError
from deeplake_loader.ingest.lerobot import is_dataset
from deeplake_loader.ingest.members import media_type
from deeplake_loader.store import file_errors, read_at

Form = Literal["tar", "packed", "fetched", "table", "vectors", "text", "media", "dataset", "episodes", "listed"]
"""tar: read where it lies; packed: a compressed tar; fetched: a tar that can be had only as a whole; media: a folder of
files; dataset: Hugging Face's, on disk; episodes: LeRobot's; listed: a folder whose tables name their rows' files."""

MAX_SOURCES = 1_000_000
_FORMS: tuple[tuple[tuple[str, ...], Form], ...] = (
    ((".tar",), "tar"),
    ((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"), "packed"),
    ((".parquet", ".arrow", ".feather", ".csv", ".tsv", ".csv.gz", ".tsv.gz", ".jsonl", ".ndjson", ".jsonl.gz",
      ".json"), "table"),
    ((".npy", ".fvecs", ".fbin"), "vectors"),
    ((".txt",), "text"),
)  # fmt: skip
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(\d+))?\Z")


@dataclass(frozen=True, slots=True)
class Source:
    """One file or folder to take in: ``name`` as the user wrote it, absolute ``url``, local ``path`` or None, its
    ``form``, ``nbytes``, and a ``stamp`` that changes when its content does. Of a url with a query, which may be a
    signature, ``query`` alone has that part."""

    name: str
    url: str
    path: str | None
    form: Form
    nbytes: int
    stamp: str
    query: str = field(default="", repr=False)

    @property
    def label(self) -> str:
        """What a commit's message calls it, which others read where the store is published: no folder of this machine,
        and of a url neither credentials nor a query.

        >>> Source("~/a/b.tar", "file:///home/me/a/b.tar", "/home/me/a/b.tar", "tar", 1, "").label
        'b.tar'
        >>> Source("", "https://me:pass@example.com/a/b.tar?key=1", None, "tar", 1, "").label
        'https://example.com/a/b.tar'
        """
        if self.path is not None:
            return os.path.basename(self.path) or os.sep
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def find(sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Source]:
    """Every source named, each once, in order.

    Raises:
        InputError: a name whose form is not known, braces that expand to too many.
        NotFoundError: a file that is not there, a pattern that nothing matches.
    """
    names = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    if not all(isinstance(name, str | os.PathLike) for name in names):
        wrong = next(name for name in names if not isinstance(name, str | os.PathLike))
        raise InputError(f"sources are paths, urls or patterns of them, got {wrong!r:.200}")
    found: dict[str, Source] = {}
    for name in names:
        for each in expand_braces(os.fspath(name)):
            for source in _matches(each):
                found.setdefault(source.url, source)
    if not found:
        raise InputError("no sources were named")
    return list(found.values())


def expand_braces(text: str) -> Iterator[str]:
    """The names that a shell makes of ``{0000..0099}`` and ``{a,b}``.

    >>> list(expand_braces("a-{08..10}.{tar,txt}"))[:3]
    ['a-08.tar', 'a-08.txt', 'a-09.tar']
    """
    match = next((m for m in _BRACES.finditer(text) if "," in m[1] or _RANGE.match(m[1])), None)
    if match is None:
        yield text
        return
    for choice in _choices(match[1]):
        yield from expand_braces(text[: match.start()] + choice + text[match.end() :])


def _choices(text: str) -> list[str]:
    match = _RANGE.match(text)
    if match is None:
        return text.split(",")
    first, last, step = int(match[1]), int(match[2]), int(match[3] or 1) or 1
    if abs(last - first) // step >= MAX_SOURCES:
        raise InputError(f"{{{text}}} stands for more than {MAX_SOURCES} names")
    padded = any(len(t.lstrip("-")) > 1 and t.lstrip("-").startswith("0") for t in (match[1], match[2]))
    width = max(len(match[1]), len(match[2])) if padded else 0
    return [
        f"{n:0{width}d}" for n in range(first, last + (1 if last >= first else -1), step if last >= first else -step)
    ]


def _matches(name: str) -> Iterator[Source]:
    if "\0" in name or not name:
        raise InputError(f"{name!r} names no file")
    scheme, found, _ = name.partition("://")
    if found and scheme != "file":
        yield from _remote(name)
        return
    path = os.path.abspath(os.path.expanduser(name.removeprefix("file://")))
    if os.path.lexists(path) or not re.search(r"[*?\[]", path):
        yield from _local(name, path)
        return
    import glob

    paths = sorted(glob.glob(path, recursive=True))
    if not paths:
        raise NotFoundError(f"nothing matches {name!r}")
    for each in paths:
        yield from _local(each, each)


def is_text(name: str) -> bool:
    """Whether a file's name is text that can be written down: some systems allow any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _local(name: str, path: str) -> Iterator[Source]:
    if not is_text(path):
        raise InputError(f"{os.fsencode(name)!r} has a name that is no UTF-8 text; rename it")
    with file_errors("read", path):
        facts = os.stat(path)
    if os.path.isdir(path):
        yield from _folder(name, path)
        return
    if not os.path.isfile(path):
        raise InputError(f"{name!r} is no regular file")
    form = form_of(path)
    if form is None:
        form = "media" if media_type(path) else _sniff(path)
    if form is None:
        raise InputError(
            f"{name!r} is of no known form: expected a tar, a table ({', '.join(_FORMS[2][0])}), vectors "
            f"({', '.join(_FORMS[3][0])}), .txt, an image, video or sound, or a folder of them"
        )
    yield Source(name, file_url(path), path, form, facts.st_size, f"{facts.st_size}:{facts.st_mtime_ns}")


def form_of(name: str) -> Form | None:
    """The form that a file's name tells; None for a medium or an unknown one."""
    lower = name.lower()
    return next((form for suffixes, form in _FORMS if lower.endswith(suffixes)), None)


def _sniff(path: str) -> Form | None:
    """A tar without a telling name."""
    with file_errors("read", path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        head = read_at(fd, 0, min(os.fstat(fd).st_size, 512), path)
    finally:
        os.close(fd)
    return "tar" if head[257:262] == b"ustar" else None


def _folder(name: str, path: str) -> Iterator[Source]:
    """A folder is one source when it is a dataset or holds media; else its files are sources of their own."""
    names = sorted(os.listdir(path))
    if "dataset_dict.json" in names:
        for part in names:
            if os.path.isfile(os.path.join(path, part, "dataset_info.json")):
                yield from _folder(os.path.join(name, part), os.path.join(path, part))
        return
    if is_dataset(path):
        yield _folder_source(name, path, "episodes")
        return
    if "dataset_info.json" in names or "state.json" in names:
        yield _folder_source(name, path, "dataset")
        return
    inside = list(files_below(path))
    listed = _listed(name, path)
    if listed is not None:
        yield listed
        return
    if any(media_type(each) for each in inside):
        yield _folder_source(name, path, "media")
        return
    known = [each for each in inside if form_of(each) is not None]
    if not known:
        raise NotFoundError(f"the folder {name!r} holds no tars, tables, vectors, images, videos or sounds")
    for each in known:
        yield from _local(os.path.join(path, each), os.path.join(path, each))


def _listed(name: str, path: str) -> Source | None:
    """The folder, where its tables name the files of their rows."""
    from deeplake_loader.ingest.listed import tables_of

    source = Source(name, file_url(path), path, "listed", 0, "")
    return _folder_source(name, path, "listed") if tables_of(source) else None


def files_below(path: str) -> Iterator[str]:
    """The regular files below a folder, hidden ones left out, by their relative paths in order."""
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for each in sorted(names):
            full = os.path.join(folder, each)
            if not each.startswith(".") and os.path.isfile(full):
                yield os.path.relpath(full, path).replace(os.sep, "/")


def _folder_source(name: str, path: str, form: Form) -> Source:
    """A folder's stamp is made of the names, sizes and times of all its files."""
    import hashlib

    digest, total = hashlib.sha256(), 0
    for each in files_below(path):
        facts = os.stat(os.path.join(path, each))
        digest.update(f"{each}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        total += facts.st_size
    return Source(name, file_url(path), path, form, total, digest.hexdigest())


def _remote(name: str) -> Iterator[Source]:
    from deeplake_loader.adopted import check_url
    from deeplake_loader.storage.objects import SIGNED, open_object

    on_web = name.partition("://")[0].lower() in SIGNED
    address, _, query = name.partition("?") if on_web else (name, "", "")
    check_url(address)
    if "#" in address:
        url = address.partition("#")[0]
        raise InputError(f"{url!r} is followed by '#', by which the catalog numbers files; name the file otherwise")
    folder, _, last = address.rpartition("/")
    objects, _ = open_object(f"{folder}/x")
    if _is_pattern(folder):
        raise InputError(f"{address!r}: only the last part of a url may hold a pattern")
    names = [last]
    if not query and (not last or _is_pattern(last)):
        names = [s.name for s in objects.list() if "/" not in s.name and fnmatch.fnmatchcase(s.name, last or "*.tar")]
        if not names:
            raise NotFoundError(f"nothing matches {address!r}")
    for each in names:
        form, url = form_of(each), f"{folder}/{each}"
        if form not in ("tar", "packed"):
            raise InputError(f"{url!r}: only tars are read from afar; download it, then ingest the file")
        if on_web:
            yield _on_web(objects, each, query, url, form)
        else:
            size = objects.size(each)
            yield Source(url, url, None, form, size, f"{size}")


def _is_pattern(text: str) -> bool:
    return re.search(r"[*?\[]", text) is not None


def _on_web(objects: Any, name: str, query: str, url: str, form: Form) -> Source:
    """A tar on a web server: fetched whole where it gives no ranges, or where the url is good for a while only."""
    found = objects.look(f"{name}?{query}" if query else name)
    if found.size is None:
        raise StoreError(
            f"{url} has no size: the server does not say how long it is; download it, then ingest the file"
        )
    form = form if found.ranges and not query else "fetched"
    return Source(url, url, None, form, found.size, f"{found.size}", query)


def fetch(source: Source, file: IO[bytes]) -> None:
    """Writes a remote source as a whole into a local file."""
    from deeplake_loader.storage.objects import open_object

    objects, name = open_object(source.url)
    fetching: Any = objects
    fetching.fetch(f"{name}?{source.query}" if source.query else name, file, source.nbytes)
    file.flush()


class Reader:
    """Reads ranges of one file, local or remote: fewer bytes only at its end."""

    def __init__(self, source: Source) -> None:
        self._source, self._fd = source, -1
        if source.path is not None:
            with file_errors("open", source.path):
                self._fd = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC)
        else:
            from deeplake_loader.storage.objects import open_object

            self._objects, self._name = open_object(source.url)

    @property
    def fd(self) -> int:
        """The open file; -1 of a remote one."""
        return self._fd

    def __call__(self, offset: int, length: int) -> bytes:
        stop = min(offset + length, self._source.nbytes)
        if stop <= offset:
            return b""
        if self._fd >= 0:
            return read_at(self._fd, offset, stop - offset, self._source.name)
        data: bytes = self._objects.read(self._name, offset, stop)
        return data

    def check_unchanged(self) -> None:
        """Refuses a local file that grew or shrank while it was read."""
        if self._fd >= 0 and os.fstat(self._fd).st_size != self._source.nbytes:
            raise StoreError(
                f"{self._source.name} changed while it was read; wait for its writer, then ingest it again"
            )

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
