"""Files outside the store that its catalog may name: tars adopted where they lie.

A file of the store has a url relative to the store's root; an adopted one an absolute url (``file:///data/a.tar``,
``s3://bucket/a.tar``). Such a url is opened only when its scheme is one of `SCHEMES` and it lies below a root that
ingesting has recorded in the catalog (`_dl_meta`, "adopted_roots"): a row that names any other file is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Protocol
from urllib.parse import SplitResult, quote, unquote, urlsplit

from deeplake_loader.errors import InputError, StoreError

SCHEMES = ("file", "http", "https", "s3", "gs", "az")
ROOTS = "adopted_roots"
"""Fact in _dl_meta: a JSON list of the urls, each ending in '/', below which adopted files lie."""


TRUSTED_HOSTS = "DEEPLAKE_TRUSTED_HOSTS"
"""Environment: hosts, with or without a port, commas between them, that need not be public. The reader's say, never the
catalog's: a catalog made elsewhere could else have files of the reader's network read."""

_NAT64 = ip_network("64:ff9b::/96")
_OWN = (".local", ".internal", ".localhost", ".localdomain")


class Facts(Protocol):
    """What is asked of the catalog."""

    def meta(self, key: str, /) -> str | None: ...


class Writes(Facts, Protocol):
    """The same with a transaction."""

    def set_meta(self, key: str, value: str, /) -> None: ...


def is_adopted(url: str) -> bool:
    """Whether a url of the catalog names a file outside the store: ours to read, never to change or delete."""
    return "://" in url


def file_url(path: str) -> str:
    """The url of a local file.

    >>> file_url("/data/my shard.tar")
    'file:///data/my%20shard.tar'
    """
    return "file://" + quote(os.path.realpath(path))


def numbered(url: str, number: int) -> str:
    """The url by which the catalog names the same file once more: with its number behind it, which no reading sees.

    >>> numbered("file:///data/a.tar", 2)
    'file:///data/a.tar#2'
    """
    return url if number == 1 else f"{url}#{number}"


def root_of(url: str) -> str:
    """The folder that holds the file, as a url.

    >>> root_of("s3://bucket/a/b.tar")
    's3://bucket/a/'
    """
    return url.rpartition("/")[0] + "/"


def roots(facts: Facts) -> tuple[str, ...]:
    """The recorded roots."""
    text = facts.meta(ROOTS)
    return tuple(json.loads(text)) if text else ()


def add_roots(facts: Writes, urls: Iterable[str]) -> None:
    """Records more roots, in the caller's transaction.

    Raises:
        InputError: a scheme that is not opened, or a host that is not public.
    """
    for url in urls:
        check_url(url)
    known = roots(facts)
    wanted = sorted({*known, *urls})
    if len(wanted) > len(known):
        facts.set_meta(ROOTS, json.dumps(wanted))


def check_url(url: str) -> None:
    """Refuses what no adopted file may be: another scheme, credentials in the url, a host that is not public."""
    parts = _split(url)
    if parts.scheme not in SCHEMES:
        raise InputError(f"{_shown(url)} cannot be adopted: its scheme is none of {', '.join(SCHEMES)}")
    if parts.username or parts.password:
        raise InputError(f"{_shown(url)} holds a user name or password; give credentials by the environment")
    if any(part in (".", "..") for part in unquote(parts.path).split("/")) or "\0" in unquote(parts.path):
        raise InputError(f"{_shown(url)} is no plain path: it holds '.', '..' or a NUL")
    if parts.scheme in ("http", "https") and not may_be_asked(parts.netloc):
        raise InputError(
            f"{_shown(url)} lies on a host that is not public; name it in ${TRUSTED_HOSTS} where you trust it, or "
            "download the file, then ingest it"
        )


def may_be_asked(netloc: str) -> bool:
    """Whether a host, perhaps with a port, is public or one that the environment trusts.

    >>> may_be_asked("data.example.org"), may_be_asked("127.0.0.1:80"), may_be_asked("127.1")
    (True, False, False)
    """
    return _is_public(_split(f"//{netloc}").hostname or "") or _is_trusted(netloc)


def allowed(url: str, below: Iterable[str]) -> bool:
    """Whether the url is well formed and lies below one of these roots."""
    try:
        check_url(url)
    except InputError:
        return False
    return any(url.startswith(root) for root in below)


def place(url: str, facts: Facts) -> str:
    """The path of an adopted local file, the url of a remote one, by its url as the catalog names it.

    Raises:
        StoreError: as `local_path`.
    """
    if url.startswith("file:"):
        return local_path(url, facts)
    if not allowed(url, roots(facts)):
        raise StoreError(f"the catalog names the file {_shown(url)}, which was never adopted; refused")
    return url.partition("#")[0]


def local_path(url: str, facts: Facts) -> str:
    """The path of an adopted local file, by its url as the catalog names it.

    Raises:
        StoreError: the url is not below a recorded root, or a link leads out of it.
    """
    below = roots(facts)
    if not url.startswith("file:///") or not allowed(url, below):
        raise StoreError(f"the catalog names the file {_shown(url)}, which was never adopted; refused")
    path = os.path.realpath(unquote(url.removeprefix("file://").partition("#")[0]))
    if not allowed(file_url(path), below):
        raise StoreError(f"the adopted file {_shown(url)} leads to {path}, which was never adopted; refused")
    return path


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        raise InputError("the host of a url cannot be read; write https://host/path or https://[::1]/path") from None


def _shown(url: str) -> str:
    """The url without what may be a secret in it."""
    parts = urlsplit(url)
    return repr(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl())


def _is_trusted(netloc: str) -> bool:
    named = [name.strip().lower() for name in os.environ.get(TRUSTED_HOSTS, "").split(",") if name.strip()]
    host = netloc.lower()
    return host in named or host.rpartition(":")[0] in named


def _is_public(host: str) -> bool:
    """Whether a name or address is not plainly one of this machine or network; a name is looked up when it is read."""
    try:
        host = (host if host.isascii() else host.encode("idna").decode()).lower().rstrip(".")
    except UnicodeError:
        return False
    try:
        return _is_public_address(ip_address(host))
    except ValueError:
        name, _, last = host.rpartition(".")
    # no domain's last part begins with a digit, but C libraries read 127.1, 0x7f.1 and 0177.0.0.1 as addresses
    return bool(name) and last[0].isalpha() and not host.endswith(_OWN)


def _is_public_address(address: IPv4Address | IPv6Address) -> bool:
    """Those of IPv6 that stand for one of IPv4 are not: that one may be anything."""
    stands_for = isinstance(address, IPv6Address) and (
        address in _NAT64 or address.ipv4_mapped or address.sixtofour or address.teredo
    )
    return address.is_global and not address.is_multicast and not stands_for
