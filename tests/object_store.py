"""S3 on loopback for tests: moto's server, and a proxy in front of it that counts requests and spoils answers."""

from __future__ import annotations

import http.client
import itertools
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

BUCKET = "bucket"
_numbers = itertools.count()

Fault = Callable[[int, "Request"], str | None]
"""What happens to a request, by its number: "503", "reset", "short" (Content-Length matches), "cut" (it does not),
"flip", "stall", a status with S3's code for it ("403 InvalidAccessKeyId"), or None."""


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    bytes_range: str | None

    @property
    def is_get(self) -> bool:
        """Whether it asks for an object's bytes, not for a listing."""
        return self.method == "GET" and "?" not in self.path


def first_get(fault: str) -> Fault:
    """That fault for the first request of an object's bytes alone, also where two come at once."""
    left = iter([fault])
    return lambda number, request: next(left, None) if request.is_get else None


@dataclass
class Proxy:
    """``log`` of all requests, ``fault`` for the next ones, ``latency_s`` of every answer."""

    url: str = ""
    fault: Fault | None = None
    latency_s: float = 0.0
    log: list[Request] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def gets(self) -> list[Request]:
        return [request for request in list(self.log) if request.is_get]

    def counts(self) -> Counter[str]:
        return Counter(request.method for request in list(self.log))

    def clear(self) -> None:
        self.log.clear()
        self.fault = None


def _handler(proxy: Proxy, host: str, port: int) -> type[BaseHTTPRequestHandler]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            request = Request(self.command, self.path, self.headers.get("Range"))
            with lock:
                proxy.log.append(request)
                number = len(proxy.log)
            spoiled = proxy.fault(number, request) if proxy.fault else None
            body = self._body()
            if proxy.latency_s:
                time.sleep(proxy.latency_s)
            if spoiled and spoiled[0].isdigit():
                status, _, code = spoiled.partition(" ")
                body = f"<Error><Code>{code or 'SlowDown'}</Code></Error>".encode()
                self._answer(int(status), [("Content-Type", "application/xml")], body)
            elif spoiled == "reset":
                self.close_connection = True
                self.connection.close()
            else:
                self._forward(body, spoiled)

        def _body(self) -> bytes:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                while self.rfile.readline().strip():
                    pass
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _forward(self, body: bytes, spoiled: str | None) -> None:
            upstream = http.client.HTTPConnection(host, port, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "expect")}
            headers["Content-Length"] = str(len(body))
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            data = answer.read()
            kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in ("transfer-encoding", "connection")]
            upstream.close()
            if spoiled == "flip" and data:
                data = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
            if spoiled == "short":
                data = data[: len(data) // 2]
            self._answer(answer.status, kept, data, spoiled)

        def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, spoiled: str | None = None) -> None:
            self.send_response(status)
            has_length = False
            for name, value in headers:
                has_length = has_length or name.lower() == "content-length"
                own = name.lower() == "content-length" and self.command != "HEAD"
                self.send_header(name, str(len(data)) if own else value)
            if not has_length:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if spoiled in ("cut", "stall"):
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                if spoiled == "stall":
                    proxy.released.wait(30)
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Silence."""

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    return Handler


@contextmanager
def s3_server() -> Iterator[Proxy]:
    """A bucket behind a proxy; the environment names both for the block."""
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import boto3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    proxy = Proxy()

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A connection that a test reset is no news."""

    front = Quiet(("127.0.0.1", 0), _handler(proxy, host, port))
    threading.Thread(target=front.serve_forever, daemon=True).start()
    proxy.url = f"http://127.0.0.1:{front.server_address[1]}"
    named = {
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "a-secret-key",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": proxy.url,
    }
    before = {name: os.environ.get(name) for name in named}
    os.environ.update(named)
    try:
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield proxy
    finally:
        proxy.released.set()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
        front.shutdown()
        front.server_close()
        server.stop()


def fresh_url() -> str:
    """A prefix that nothing was written below."""
    return f"s3://{BUCKET}/p{next(_numbers)}"
