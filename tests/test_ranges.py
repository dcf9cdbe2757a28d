"""S3 read past s3fs: signatures and hosts as botocore makes them, answers in every shape, what is left to s3fs."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from object_store import BUCKET, Proxy, fresh_url, s3_server

from deeplake_loader.errors import StoreError
from deeplake_loader.storage.ranges import Ranges, RefusedError, UnusualError
from deeplake_loader.storage.remote import Remote
from deeplake_loader.storage.requests import Policy
from deeplake_loader.storage.signing import Access, access_of

NOW = datetime.datetime(2024, 2, 29, 23, 59, 58, tzinfo=datetime.UTC)
BODY = bytes(range(256)) * 10_000
QUICK = Policy(backoff_s=0.01, hedge_s=30.0)
LOCAL = Access("127.0.0.1", 0, False, "/bucket", "us-east-1", "key", "secret")


@pytest.fixture(scope="module")
def s3() -> Iterator[Proxy]:
    with s3_server() as proxy:
        yield proxy


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name.startswith(("AWS_", "FSSPEC_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in (("ACCESS_KEY_ID", "the-key"), ("SECRET_ACCESS_KEY", "hidden"), ("DEFAULT_REGION", "eu-west-3")):
        monkeypatch.setenv(f"AWS_{name}", value)
    return monkeypatch


# -- signatures and hosts ----------------------------------------------------------------------------------------------


def parse(request: bytes) -> tuple[str, dict[str, str]]:
    head, _, rest = request.decode().partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    assert not rest and first.startswith("GET ") and first.endswith(" HTTP/1.1")
    return first.split(" ")[1], dict(line.split(": ", 1) for line in lines)


@given(
    name=st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1),
    token=st.none() | st.just("a/session+token=="),
    start=st.integers(0, 1 << 40),
)
def test_a_request_has_the_signature_that_botocore_gives_it(name: str, token: str | None, start: int) -> None:
    auth, awsrequest = pytest.importorskip("botocore.auth"), pytest.importorskip("botocore.awsrequest")
    from botocore.credentials import Credentials

    access = Access("host.example", 9_000, False, "/bucket", "eu-west-3", "the-key", "hidden", token)
    path, headers = parse(access.request(name, start, start + 10, NOW))
    given = {"range": f"bytes={start}-{start + 9}", "x-amz-content-sha256": headers["x-amz-content-sha256"]}
    request = awsrequest.AWSRequest("GET", f"http://host.example:9000{path}", headers=given)
    request.context["timestamp"] = headers["x-amz-date"]
    if token is not None:
        request.headers["x-amz-security-token"] = token
    request.headers["x-amz-date"] = headers["x-amz-date"]
    signer = auth.S3SigV4Auth(Credentials("the-key", "hidden", token), "s3", "eu-west-3")
    text = signer.string_to_sign(request, signer.canonical_request(request))
    assert headers["authorization"].endswith(f"Signature={signer.signature(text, request)}")
    assert f"Credential=the-key/{signer.scope(request).partition('/')[2]}," in headers["authorization"]


@pytest.mark.parametrize(
    ("endpoint", "by_option"),
    [(None, False), ("http://127.0.0.1:9000", False), ("https://minio.example", True), ("http://[::1]:8080/", True)],
)
def test_an_object_is_asked_where_botocore_asks(
    plain_environment: pytest.MonkeyPatch, endpoint: str | None, by_option: bool
) -> None:
    session = pytest.importorskip("botocore.session").get_session()
    if endpoint and not by_option:
        plain_environment.setenv("AWS_ENDPOINT_URL", endpoint)
    found: list[str] = []
    client = session.create_client("s3", endpoint_url=endpoint if by_option else None)
    client.meta.events.register("before-send.s3", lambda request, **_: found.append(request.url) or _sent(request))
    client.get_object(Bucket="my-bucket", Key="a folder/ä+b.tar")
    access = access_of("my-bucket", {"endpoint_url": endpoint} if by_option else {})
    assert access is not None
    path, headers = parse(access.request("a folder/ä+b.tar", 0, 1, NOW))
    assert found == [f"{'https' if access.tls else 'http'}://{headers['host']}{path}"]
    assert (access.key, access.secret, access.token, access.region) == ("the-key", "hidden", None, "eu-west-3")
    assert "hidden" not in repr(access)


def _sent(request: Any) -> Any:
    from botocore.awsrequest import AWSResponse

    class Raw:
        def stream(self, **_: Any) -> Iterator[bytes]:
            return iter(())

    return AWSResponse(request.url, 200, {}, Raw())


@pytest.mark.parametrize(
    ("variables", "options", "bucket"),
    [
        ({"AWS_PROFILE": "other"}, {}, "bucket"),
        ({"AWS_S3_ADDRESSING_STYLE": "virtual"}, {}, "bucket"),
        ({"HTTPS_PROXY": "http://proxy"}, {}, "bucket"),
        ({"FSSPEC_S3_KEY": "other"}, {}, "bucket"),
        ({"AWS_DEFAULT_REGION": "cn-north-1"}, {}, "bucket"),
        ({"AWS_DEFAULT_REGION": "x\r\nevil: 1"}, {}, "bucket"),
        ({"AWS_DEFAULT_REGION": "aws-global"}, {}, "bucket"),
        ({"AWS_DEFAULT_REGION": "fips-us-gov-west-1"}, {}, "bucket"),
        ({"AWS_DEFAULT_REGION": "eusc-de-east-1"}, {}, "bucket"),
        ({"FSSPEC_s3_anon": "true"}, {}, "bucket"),
        ({"AWS_CREDENTIAL_EXPIRATION": "2030-01-01T00:00:00Z"}, {}, "bucket"),
        ({}, {"requester_pays": True}, "bucket"),
        ({}, {}, "express--use1-az4--x-s3"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, {}, "bucket"),
        ({"AWS_ENDPOINT_URL": "http://host/below"}, {}, "bucket"),
        ({"AWS_ENDPOINT_URL": "http://host:port"}, {}, "bucket"),
        ({}, {"anon": True}, "bucket"),
        ({}, {"key": "only"}, "bucket"),
        ({}, {"token": "a\r\nb", "key": "k", "secret": "s"}, "bucket"),
        ({}, {"client_kwargs": {"verify": False}}, "bucket"),
        ({}, {}, "with.dots"),
        ({}, {}, "Upper"),
        ({}, {}, "arn:aws:s3:::x"),
    ],
)
def test_what_is_not_plain_is_left_to_s3fs(
    plain_environment: pytest.MonkeyPatch, variables: dict[str, str], options: dict[str, Any], bucket: str
) -> None:
    assert access_of("bucket", {}) is not None
    for name, value in variables.items():
        plain_environment.setenv(name, value)
    assert access_of(bucket, options) is None


def test_files_of_settings_are_left_to_s3fs(plain_environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text("[default]\n")
    assert access_of("bucket", {}) is None


# -- answers -----------------------------------------------------------------------------------------------------------

Script = Callable[[int], list[bytes | None]]
"""What a server sends after the n-th request of all; None closes the connection."""


@contextmanager
def scripted(script: Script, context: ssl.SSLContext | None = None) -> Iterator[tuple[asyncio.AbstractEventLoop, int]]:
    """A loop on a thread and the port of a server there that answers by the script."""
    asked, made, ended = [0], Future[tuple[asyncio.AbstractEventLoop, int]](), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                asked[0] += 1
                for part in script(asked[0]):
                    if part is None:
                        return
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, OSError):
            return
        finally:
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        made.set_result((asyncio.get_running_loop(), server.sockets[0].getsockname()[1]))
        await ended.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    loop, port = made.result(60)
    try:
        yield loop, port
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(60)


def ranges_at(port: int, **more: Any) -> Ranges:
    return Ranges(Access("127.0.0.1", port, *(more.pop("tls", False), "/bucket", "us-east-1", "key", "secret"), **more))


def got(loop: asyncio.AbstractEventLoop, ranges: Ranges, start: int, stop: int) -> bytes:
    body = bytearray(stop - start)

    def take(offset: int, piece: memoryview) -> None:
        body[offset : offset + len(piece)] = piece

    count = asyncio.run_coroutine_threadsafe(ranges.get("name", start, stop, take), loop).result(60)
    return bytes(body[:count])


def answer(body: bytes, *more: str, status: str = "206 Partial Content", length: int | None = None) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *more]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


@given(cuts=st.lists(st.integers(0, 400), max_size=12), size=st.integers(0, 300))
def test_an_answer_may_come_in_any_pieces(cuts: list[int], size: int) -> None:
    whole = answer(BODY[:size])
    ends = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    parts = [whole[a:b] for a, b in pairwise(ends)]
    with scripted(lambda _: list(parts)) as (loop, port):
        ranges = ranges_at(port)
        assert [got(loop, ranges, 0, 300) for _ in range(2)] == [BODY[:size]] * 2


def test_a_body_of_several_pieces_is_given_in_order_and_a_connection_is_used_again() -> None:
    opened: list[int] = []

    def script(number: int) -> list[bytes | None]:
        opened.append(number)
        return [answer(BODY)]

    with scripted(script) as (loop, port):
        ranges = ranges_at(port)
        assert [got(loop, ranges, 5, 5 + len(BODY)) for _ in range(3)] == [BODY] * 3
        assert len(ranges._idle) == 1 and opened == [1, 2, 3]


@pytest.mark.parametrize("closing", [[None], [answer(b"abc", "Connection: close"), None]])
def test_a_connection_that_was_closed_meanwhile_is_opened_anew(closing: list[bytes | None]) -> None:
    """The second request meets the end of the first one's connection, or a server that says that it closes."""
    says = closing[0] is not None
    with scripted(lambda n: closing if n == (1 if says else 2) else [answer(b"abc")]) as (loop, port):
        ranges = ranges_at(port)
        assert [got(loop, ranges, 0, 3) for _ in range(2)] == [b"abc"] * 2


def test_a_body_that_is_broken_off_is_an_error_of_the_connection() -> None:
    with scripted(lambda _: [answer(b"abc", length=10), None]) as (loop, port), pytest.raises(ConnectionError):
        got(loop, ranges_at(port), 0, 10)


@pytest.mark.parametrize(
    "said",
    [
        answer(b"", "Location: http://elsewhere/", status="307 Temporary Redirect"),
        answer(b"<Code>AccessDenied</Code>", status="403 Forbidden"),
        answer(b"", status="100 Continue"),
        answer(b"abcd"),  # more than was asked for
        answer(b"abc", status="200 OK"),  # a server without ranges
        answer(b"abc", "Content-Encoding: gzip"),
        b"HTTP/1.1 206 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 206 OK\r\n\r\nabc",
        b"HTTP/1.1 206 OK\r\nContent-Length: many\r\n\r\nabc",
        b"HTTP/1.1 206 OK\r\nContent-Length: 2\r\n\r\nabc",
        b"x" * 100_000,
        b"\r\n\r\n",
    ],
)
def test_an_unusual_answer_is_left_to_s3fs(said: bytes) -> None:
    with scripted(lambda _: [said]) as (loop, port), pytest.raises(UnusualError):
        got(loop, ranges_at(port), 2, 5)


@pytest.mark.parametrize("status", ["503 Slow Down", "500 Internal", "429 Too Many", "416 Range"])
@pytest.mark.parametrize("chunked", [False, True])
def test_what_is_refused_has_its_status_and_the_next_request_goes_through(status: str, chunked: bool) -> None:
    said = answer(b"<Error><Code>SlowDown</Code></Error>", status=status)
    if chunked:
        said = f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n".encode()
    with scripted(lambda n: [said if n == 1 else answer(b"abc")]) as (loop, port):
        ranges = ranges_at(port)
        with pytest.raises(RefusedError) as caught:
            got(loop, ranges, 0, 3)
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == int(status[:3])
        assert caught.value.response["Error"]["Code"] == ("" if chunked else "SlowDown")
        assert got(loop, ranges, 0, 3) == b"abc"


def test_a_server_is_trusted_by_the_named_certificate_alone(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    with scripted(lambda _: [answer(BODY)], context) as (loop, port):
        assert got(loop, ranges_at(port, tls=True, trusted=str(certificate)), 0, len(BODY)) == BODY
        for trusted in (None, str(tmp_path / "none.pem")):
            with pytest.raises(UnusualError):
                got(loop, ranges_at(port, tls=True, trusted=trusted), 0, len(BODY))


def self_signed(folder: Path) -> Path:
    """A file of a new key and its certificate for 127.0.0.1."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = made.add_extension(x509.SubjectAlternativeName([address]), critical=True)
    text = serialization.Encoding.PEM
    (folder / "own.pem").write_bytes(
        key.private_bytes(text, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.sign(key, hashes.SHA256()).public_bytes(text)
    )
    return folder / "own.pem"


def test_connections_that_nobody_uses_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server here never closes one."""
    monkeypatch.setattr("deeplake_loader.storage.ranges._IDLE_S", 0.1)
    with scripted(lambda _: [answer(b"abc")]) as (loop, port):
        ranges = ranges_at(port)

        async def closed() -> bool:
            assert [await ranges.get("name", 0, 3, lambda *_: None) for _ in range(3)] == [3] * 3
            kept = list(ranges._idle)
            while ranges._idle:
                await asyncio.sleep(0.01)
            return len(kept) == 1 and not any(connection.usable for connection in kept) and ranges._watch is None

        assert asyncio.run_coroutine_threadsafe(closed(), loop).result(60)


def test_a_host_with_an_address_that_does_not_answer_is_reached_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(lambda _: [answer(b"abc")]) as (loop, port):
        connect = loop.sock_connect

        async def found(*_: object, **__: object) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.2", "127.0.0.1")]

        async def connecting(sock: socket.socket, address: Any) -> None:
            if address[0] == "127.0.0.2":
                await asyncio.Event().wait()
            await connect(sock, address)

        monkeypatch.setattr(loop, "getaddrinfo", found)
        monkeypatch.setattr(loop, "sock_connect", connecting)
        ranges = Ranges(Access("two.example", port, False, "/bucket", "us-east-1", "key", "secret"))
        assert got(loop, ranges, 0, 3) == b"abc"


# -- beside s3fs -------------------------------------------------------------------------------------------------------


def test_both_ways_read_the_same_bytes(s3: Proxy) -> None:
    url = fresh_url()
    direct, plain = Remote(url, policy=QUICK), Remote(url, options={"anon": False}, policy=QUICK)
    plain.write("ä b/x", BODY)
    spans = [(0, len(BODY)), (5, 6), (7, 7), (100, 2_000_000), (len(BODY) - 1, len(BODY))]
    assert direct.read_many("ä b/x", spans) == plain.read_many("ä b/x", spans) == [BODY[a:b] for a, b in spans]
    assert direct._link.ranges is not None and plain._link.ranges is None


def test_a_range_that_s3fs_has_to_ask_for_is_read_all_the_same(s3: Proxy) -> None:
    folder = Remote(fresh_url(), policy=QUICK)
    folder.write("x", b"body")
    s3.clear()
    s3.fault = lambda number, request: "400 ExpiredToken" if len(s3.gets) == 1 else None
    try:
        assert folder.read("x", 1, 3) == b"od"
    finally:
        s3.clear()
    assert folder._link.ranges is None


def test_what_fsspec_was_configured_with_is_left_to_s3fs(s3: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Remote(fresh_url(), policy=QUICK)
    folder.write("x", b"body")
    assert folder._link.ranges is not None
    monkeypatch.setitem(pytest.importorskip("fsspec.config").conf, "s3", {"default_fill_cache": False})
    other = Remote(folder._full, policy=QUICK)
    assert other.read("x", 1, 3) == b"od" and other._link.ranges is None


def test_a_client_that_could_not_be_made_once_is_made_the_next_time(s3: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Remote(fresh_url(), policy=QUICK)
    folder._connect().open()
    monkeypatch.setattr(folder._link.plain, "set_session", _refused, raising=True)
    with pytest.raises(StoreError):
        folder.write("x", b"body")
    monkeypatch.undo()
    folder.write("x", b"body")
    assert folder.read("x", 1, 3) == b"od"


async def _refused() -> None:
    raise OSError(24, "too many open files")


READING = """
import sys
from deeplake_loader.storage.remote import Remote
assert Remote(sys.argv[1]).read("x", 1, 3) == b"od"
assert not {"s3fs", "aiohttp", "botocore"} & set(sys.modules), "reading went through s3fs"
assert Remote(sys.argv[1]).size("x") == 4 and "s3fs" in sys.modules
"""


def test_reading_does_not_import_s3fs(s3: Proxy, tmp_path: Path) -> None:
    url = fresh_url()
    assert url.startswith(f"s3://{BUCKET}/")
    Remote(url, policy=QUICK).write("x", b"body")
    environment = {n: v for n, v in os.environ.items() if not n.lower().endswith("_proxy")} | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", READING, url], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
