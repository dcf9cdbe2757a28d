"""Tars on web servers: adopted where the server gives ranges, copied where it does not or the url is signed."""

from __future__ import annotations

import gzip
import io
import logging
import re
import socket
import sqlite3
import tarfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import deeplake_loader as deeplake
from deeplake_loader.adopted import TRUSTED_HOSTS, allowed, may_be_asked
from deeplake_loader.errors import CorruptionError, DeeplakeError, InputError, NotFoundError, StoreError
from deeplake_loader.ingest.sources import find
from deeplake_loader.storage.cache import Limits
from deeplake_loader.storage.mirror import Mirror
from deeplake_loader.storage.objects import open_object
from deeplake_loader.storage.remote import Remote
from deeplake_loader.storage.requests import Policy

SECRET = "s3cr3t%2Fsignature/tail=="
COUNT = 20


def packed(count: int = COUNT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for i in range(count):
            for kind, data in (("bin", bytes([i]) * 3_000), ("txt", b"text %d" % i)):
                info = tarfile.TarInfo(f"{i:04d}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


class Web(ThreadingHTTPServer):
    """A server of files in memory, which gives ranges where ``ranges`` is set, and asks for the signature below
    /signed/."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.ranges, self.says_length = True, True
        self.sent, self.leads_to = 0, ""
        self.asked: list[tuple[str, str | None]] = []
        self.credentials: list[str | None] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class _Handler(BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        path, _, query = self.path.lstrip("/").partition("?")
        span = self.headers.get("Range")
        self.server.asked.append((self.path, span))
        self.server.credentials.append(self.headers.get("Authorization"))
        if path.startswith("signed/") and query != f"X-Signature={SECRET}":
            self._head(403, 0)
        elif path == "moved.tar" or self.server.leads_to:
            self.send_response(302)
            self.send_header("Location", self.server.leads_to or "/a.tar")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif path.removesuffix("/") == "list":
            self._body(200, "".join(f'<a href="{n}">{n}</a>' for n in ("x-0.tar", "x-1.tar", "y")).encode(), html=True)
        elif path not in self.server.files:
            self._head(404, 0)
        elif self.server.ranges and span:
            self._part(self.server.files[path], span)
        else:
            self._body(200, self.server.files[path])

    def _part(self, data: bytes, span: str) -> None:
        first, last = map(int, re.findall(r"\d+", span))
        if first >= len(data):
            self._head(416, 0, f"bytes */{len(data)}")
            return
        body = data[first : last + 1]
        self._body(206, body, f"bytes {first}-{first + len(body) - 1}/{len(data)}")

    def _head(self, status: int, length: int, placed: str | None = None, *, html: bool = False) -> None:
        self.send_response(status)
        if self.server.says_length or status >= 300:
            self.send_header("Content-Length", str(length))
        if placed:
            self.send_header("Content-Range", placed)
        self.send_header("Content-Type", "text/html" if html else "application/x-tar")
        self.end_headers()

    def _body(self, status: int, body: bytes, placed: str | None = None, *, html: bool = False) -> None:
        self._head(status, len(body), placed, html=html)
        try:
            self.wfile.write(body)
            self.server.sent += len(body)
        except ConnectionError:  # who hears from the status that it is no range goes away
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def serving(server: Web) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    server = Web()
    server.files = {"a.tar": packed(), "b.tar.gz": gzip.compress(packed()), "signed/a.tar": packed(), "empty.tar": b""}
    server.files |= {f"list/x-{n}.tar": packed(5) for n in range(2)}
    monkeypatch.setenv(TRUSTED_HOSTS, f"elsewhere.test, 127.0.0.1:{server.server_port}")
    with serving(server):
        yield server


@pytest.fixture
def other() -> Iterator[Web]:
    """A second server, which nobody trusts."""
    server = Web()
    server.files = {"a.tar": packed()}
    with serving(server):
        yield server


def rows(db: deeplake.Database) -> list[tuple[str, bytes]]:
    return [(r.txt, r.bin.bytes()) for r in db.execute("SELECT key, txt, bin FROM t ORDER BY key")]


WANTED = [(f"text {i}", bytes([i]) * 3_000) for i in range(COUNT)]


def files(db: deeplake.Database) -> list[str]:
    return [row[0] for row in db._catalog.fetchall("SELECT url FROM _dl_files WHERE kind = 'shard'")]


def test_a_tar_on_a_server_with_ranges_is_adopted_in_place(db: deeplake.Database, web: Web) -> None:
    assert db.ingest("t", web.url("a.tar")).added == COUNT
    assert files(db) == [web.url("a.tar")] and db.ingest("t", web.url("a.tar")).present == COUNT
    assert rows(db) == WANTED
    assert all(span for _, span in web.asked)  # never the whole file
    assert db.verify().problems == ()


def test_a_tar_on_a_server_without_ranges_is_copied(db: deeplake.Database, web: Web) -> None:
    web.ranges = False
    assert db.ingest("t", web.url("a.tar")).added == COUNT
    assert not any("://" in url for url in files(db))
    assert db.ingest("t", web.url("a.tar")).present == COUNT
    web.files.clear()
    assert rows(db) == WANTED


@pytest.mark.parametrize("ranges", [True, False])
def test_a_compressed_tar_is_copied_either_way(db: deeplake.Database, web: Web, ranges: bool) -> None:
    web.ranges = ranges
    assert db.ingest("t", web.url("b.tar.gz")).added == COUNT
    web.files.clear()
    assert rows(db) == WANTED


def test_a_signed_url_is_copied_and_its_signature_kept_nowhere(
    web: Web, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    signed = f"{web.url('signed/a.tar')}?X-Signature={SECRET}"
    caplog.set_level(logging.DEBUG, "deeplake_loader")
    with deeplake.connect(tmp_path / "store") as db:
        report = db.ingest("t", signed)
        assert report.added == COUNT and rows(db) == WANTED
        assert db.ingest("t", signed).present == COUNT
        said = f"{report!r} {report} {db.ingest('t', signed, dry_run=True)} {list(db.log())} {caplog.text}"
        said += "\n".join(db._catalog.connection.iterdump())
    with sqlite3.connect(tmp_path / "store" / "catalog.sqlite") as raw:
        assert raw.execute("SELECT url FROM _dl_sources").fetchall() == [(web.url("signed/a.tar"),)]
    stored = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert "s3cr3t" not in said and b"s3cr3t" not in stored
    assert "s3cr3t" not in repr(find(signed))
    assert any(SECRET in path for path, _ in web.asked)  # as it was given, letter by letter


def told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("signed/a.tar?X-Signature=s3cr3t", StoreError), ("none.tar?X-Signature=s3cr3t", NotFoundError),
     ("a.zip?X-Signature=s3cr3t", InputError), ("*/a.tar?X-Signature=s3cr3t", InputError),
     ("a.tar#s3cr3t", InputError), ("../a.tar?s3cr3t", InputError)],
)  # fmt: skip
def test_no_error_quotes_a_signature(db: deeplake.Database, web: Web, name: str, kind: type[DeeplakeError]) -> None:
    with pytest.raises(kind) as caught:
        db.ingest("t", web.url(name))
    assert "s3cr3t" not in told(caught.value)


def test_no_error_quotes_a_password(db: deeplake.Database, web: Web) -> None:
    url = web.url("a.tar").replace("//", "//me:s3cr3t@")
    with pytest.raises(InputError, match="user name or password") as caught:
        db.ingest("t", url)
    assert "s3cr3t" not in told(caught.value)


def test_an_unreachable_server_is_told_without_the_signature(
    db: deeplake.Database, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deeplake_loader.storage.requests.Policy.__init__.__defaults__", (2, 10.0, 0.01, 0.5, 16))
    url = f"{web.url('a.tar')}?X-Signature=s3cr3t"
    web.shutdown()
    web.server_close()
    with pytest.raises(StoreError, match="check the network") as caught:
        db.ingest("t", url)
    assert "s3cr3t" not in told(caught.value)


def test_a_server_that_stops_giving_ranges_is_told_before_its_file_is_read(db: deeplake.Database, web: Web) -> None:
    web.files["a.tar"] = packed() + bytes(30 << 20)
    db.ingest("t", web.url("a.tar"))
    objects, name = open_object(web.url("a.tar"))
    web.ranges, web.sent = False, 0
    with pytest.raises(StoreError, match="answers no ranges"):
        objects.read(name, 512, 1_024)
    assert len(web.files["a.tar"]) > web.sent


def test_a_server_that_says_no_length_is_refused(db: deeplake.Database, web: Web) -> None:
    web.ranges = web.says_length = False
    with pytest.raises(StoreError, match="does not say how long"):
        db.ingest("t", web.url("a.tar"))


def test_a_file_that_grows_between_two_requests_is_refused(web: Web) -> None:
    objects, name = open_object(web.url("a.tar"))
    with pytest.raises(DeeplakeError, match="announced and more came"):
        objects.fetch(name, io.BytesIO(), len(web.files["a.tar"]) - 1)  # type: ignore[attr-defined]
    with pytest.raises(DeeplakeError, match=r"announced and [0-9]+ came"):
        objects.fetch(name, io.BytesIO(), len(web.files["a.tar"]) + 1)  # type: ignore[attr-defined]


def test_redirects_listings_and_empty_files(db: deeplake.Database, web: Web) -> None:
    assert db.ingest("t", web.url("list/x-*.tar"), columns={"key": "__key__", "bin": "bin", "txt": "txt"}).added == 10
    assert db.ingest("t", web.url("moved.tar")).added == COUNT
    with pytest.raises(DeeplakeError, match="empty"):
        db.ingest("t", web.url("empty.tar"))


@pytest.mark.parametrize("named", ["", "localhost", "127.0.0.1:1", "27.0.0.1"])
def test_a_host_that_is_not_public_is_asked_only_where_the_environment_names_it(
    db: deeplake.Database, web: Web, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    db.ingest("t", web.url("a.tar"))
    monkeypatch.setenv(TRUSTED_HOSTS, named)
    before = len(web.asked)
    with pytest.raises(InputError, match="not public"):
        db.ingest("u", web.url("a.tar"))
    with pytest.raises(StoreError, match="never adopted"):
        rows(db)
    assert len(web.asked) == before


def test_a_redirect_to_a_host_that_is_not_public_is_not_followed(
    db: deeplake.Database, web: Web, other: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither when a catalog's file is read nor when one is ingested, listed or looked at."""
    db.ingest("t", web.url("a.tar"))
    web.leads_to = other.url("a.tar") + f"?X-Signature={SECRET}"
    objects, name = open_object(web.url("a.tar"))
    asking: list[Callable[[], object]] = [
        lambda: rows(db),
        lambda: db.ingest("u", web.url("b.tar")),
        lambda: db.ingest("u", web.url("list/*.tar")),
        lambda: objects.read(name, 0, 512),
        lambda: objects.size(name),
        lambda: objects.read_tagged(name, 1 << 20),
        lambda: deeplake.connect(web.url("store")),
    ]
    for ask in asking:
        with pytest.raises(InputError, match=f"not public, '127.0.0.1:{other.server_port}'") as caught:
            ask()
        assert "s3cr3t" not in told(caught.value)
    assert other.asked == []
    monkeypatch.setenv(TRUSTED_HOSTS, "127.0.0.1")
    assert rows(db) == WANTED and other.asked


def test_a_redirect_that_never_ends_is_given_up(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeplake_loader.storage.requests.Policy.__init__.__defaults__", (2, 10.0, 0.01, 0.5, 16))
    web.leads_to = "/a.tar"
    objects, name = open_object(web.url("a.tar"))
    with pytest.raises(StoreError):
        objects.read(name, 0, 512)
    assert len(web.asked) < 50


def test_a_server_that_the_caller_names_is_read_and_a_credential_for_it_goes_nowhere_else(
    web: Web, other: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TRUSTED_HOSTS)
    client = {"headers": {"Authorization": "Bearer s3cr3t"}}
    monkeypatch.setitem(pytest.importorskip("fsspec.config").conf, "https", {"client_kwargs": client})
    objects, name = open_object(web.url("a.tar"))
    assert objects.read(name, 0, 512) == web.files["a.tar"][:512]
    web.leads_to = other.url("a.tar")
    monkeypatch.setenv(TRUSTED_HOSTS, f"127.0.0.1:{other.server_port}")
    assert objects.read(name, 0, 512) == other.files["a.tar"][:512]
    assert web.credentials == ["Bearer s3cr3t"] * 2 and other.credentials == [None]


@pytest.mark.parametrize(
    "host",
    ["127.1", "0x7f.1", "0177.0.0.1", "2130706433", "0.0", "１２７.０.０.１", "127。0。0。1", "169.254.169.254",
     "[::1]", "[::ffff:10.0.0.1]", "[64:ff9b::a00:1]", "[2002:a00:1::]", "[fd00:ec2::254]", "224.0.0.1"],
)  # fmt: skip
def test_no_spelling_of_an_address_that_is_not_public_may_be_asked(host: str) -> None:
    """Each is one to the system, without a name being looked up."""
    assert socket.getaddrinfo(host.strip("[]"), 80)
    assert not may_be_asked(host) and not may_be_asked(f"{host}:8080")


@pytest.mark.parametrize(
    "host", ["localhost", "localhost.", "a.localhost.", "127.0.0.1.", "db.internal", "", "a..", "."]
)
def test_no_name_of_this_machine_or_network_may_be_asked(host: str) -> None:
    assert not may_be_asked(host)


@pytest.mark.parametrize(
    "host", ["example.org", "Example.ORG.:443", "münchen.example", "1.1.1.1", "[2606:4700::1111]:80"]
)
def test_public_hosts_may_be_asked(host: str) -> None:
    assert may_be_asked(host)


@pytest.mark.parametrize("url", ["http://[::1/a.tar", "http://[x]/a.tar", "http://a℀b/a.tar"])
def test_a_url_that_cannot_be_read_is_refused(db: deeplake.Database, url: str) -> None:
    with pytest.raises(InputError):
        db.ingest("t", url)
    assert not allowed(url, [url])


@pytest.mark.parametrize("status", [204, 300, 304])
def test_an_answer_that_is_no_file_is_an_error(web: Web, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr("deeplake_loader.storage.requests.Policy.__init__.__defaults__", (2, 10.0, 0.01, 0.5, 16))
    monkeypatch.setattr(_Handler, "_part", lambda self, *_: self._head(status, 0))
    objects, name = open_object(web.url("a.tar"))
    for ask in (lambda: objects.read(name, 0, 512), lambda: objects.size(name)):
        with pytest.raises(StoreError):
            ask()


def test_a_size_that_no_file_has_is_refused(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeplake_loader.storage.requests.Policy.__init__.__defaults__", (2, 10.0, 0.01, 0.5, 16))
    monkeypatch.setattr(_Handler, "_part", lambda self, *_: self._body(206, b"x", f"bytes 0-0/{10**25}"))
    objects, name = open_object(web.url("a.tar"))
    with pytest.raises(StoreError, match="EFBIG"):
        objects.size(name)


@pytest.mark.parametrize("size", [0, 100])
def test_a_file_that_was_cut_is_told_also_far_behind_its_end(web: Web, tmp_path: Path, size: int) -> None:
    web.files["a.tar"] = bytes(size)
    mirror = Mirror(web.url("").rstrip("/"), limits=Limits.of(str(tmp_path / "cache")))
    for start in (size, 1 << 20, 100 << 20):
        with pytest.raises(CorruptionError, match="cut"):
            mirror.read("a.tar", start, start + 10)


def test_a_body_that_stays_short_is_told_by_a_policy_of_few_attempts(web: Web) -> None:
    folder = Remote(web.url("").rstrip("/"), policy=Policy(attempts=1))
    with pytest.raises(CorruptionError, match="cut"):
        folder.read("a.tar", len(web.files["a.tar"]) - 1, len(web.files["a.tar"]) + 1)
