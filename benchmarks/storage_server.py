"""The S3 of benchmarks/storage.py: moto's server behind a proxy that counts requests and answers them late.

    python storage_server.py            prints its URL, and serves until its standard input ends

Bodies of objects are the proxy's, since moto sends 25 MB/s: each lies in a file without a name, from which the kernel
sends it (sendfile), so that the server's share of the cores is small. Everything else is moto's. The proxy speaks
HTTP/1.1 on a thread for each connection. What is under ``/-/`` steers it: ``/-/set?latency=0.02&refused=0.1``,
``/-/clear`` and ``/-/log``, which gives [method, path and query, bytes of the body sent, the first one's place in the
object] of every request.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

BUCKET = "bucket"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}
_REFUSED = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_OF_ONE_ANSWER = ("transfer-encoding", "connection", "content-length", "content-range")

Headers = list[tuple[str, str]]
Entry = tuple[str, str, int, int]


class Server:
    """A running server, in a process of its own."""

    def __init__(self, url: str) -> None:
        self.url = url

    def set(self, *, latency_s: float = 0.0, refused: float = 0.0) -> None:
        """From now on: seconds before every answer, and the share of requests answered with 503."""
        self._ask(f"set?latency={latency_s}&refused={refused}")

    def clear(self) -> None:
        self._ask("clear")

    def log(self) -> list[Entry]:
        """(method, path, bytes of the answer, its first byte's place) of every request since `clear`."""
        return [(method, path, size, start) for method, path, size, start in json.loads(self._ask("log"))]

    def counts(self) -> dict[str, int]:
        """Requests by kind: listings are GETs of a bucket, uploads in parts POST twice. ``bytes`` were sent."""
        found: Counter[str] = Counter()
        for method, path, size, _ in self.log():
            listing = method == "GET" and ("list-type" in path or "prefix=" in path or path.count("/") < 2)
            found["LIST" if listing else method] += 1
            found["bytes"] += size
        return dict(found)

    def _ask(self, what: str) -> bytes:
        with urllib.request.urlopen(f"{self.url}/-/{what}") as answer:
            body: bytes = answer.read()
        return body


@contextmanager
def running() -> Iterator[Server]:
    """A server with an empty bucket, which the environment names for the block."""
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    url = process.stdout.readline().strip()
    if not url:
        raise SystemExit("the server did not start; its error is above")
    os.environ |= {**ENVIRONMENT, "AWS_ENDPOINT_URL": url, "S3_ENDPOINT_URL": url}
    try:
        request = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request).close()
        yield Server(url)
    finally:
        process.stdin.close()
        process.wait()


class Object:
    """An object's bytes in a file without a name, and the headers of its answers."""

    def __init__(self, body: bytes, headers: Headers) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  as long as the object
        self.size, self.headers = len(body), headers
        self.file.write(body)
        self.file.flush()

    def send(self, connection: socket.socket, start: int, stop: int) -> None:
        while start < stop:
            start += os.sendfile(connection.fileno(), self.file.fileno(), start, stop - start)


class State:
    """What the proxy was told, has seen and holds."""

    def __init__(self, host: str, port: int) -> None:
        self.upstream = host, port
        self.latency_s = self.refused = 0.0
        self.log: list[Entry] = []
        self.objects: dict[str, Object] = {}
        self.lock, self.random = threading.Lock(), random.Random(17)

    def steer(self, path: str) -> bytes:
        parts = urlsplit(path)
        if parts.path == "/-/set":
            asked = parse_qs(parts.query)
            self.latency_s, self.refused = float(asked["latency"][0]), float(asked["refused"][0])
        elif parts.path == "/-/clear":
            self.log = []
        return json.dumps(self.log).encode()

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Headers, bytes]:
        connection = http.client.HTTPConnection(*self.upstream, timeout=120)
        try:
            connection.request(method, path, body, {**headers, "Content-Length": str(len(body))})
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def object(self, path: str, signature: str) -> Object | None:
        """An object, asked for once; moto gives some only to those who sign, with whatever signature."""
        with self.lock:
            if path not in self.objects:
                status, headers, body = self.forward("GET", path, {"Authorization": signature}, b"")
                if status != 200:
                    return None
                self.objects[path] = Object(body, [(n, v) for n, v in headers if n.lower() not in _OF_ONE_ANSWER])
            return self.objects[path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: State

    def handle_any(self) -> None:
        body = self._body()
        if self.path.startswith("/-/"):
            self._send(200, [], self.state.steer(self.path))
            return
        time.sleep(self.state.latency_s)
        if self.state.random.random() < self.state.refused:
            self._count(len(_REFUSED))
            self._send(503, [("Content-Type", "application/xml")], _REFUSED)
        elif self.command == "GET" and "?" not in self.path and self.path.count("/") > 1:
            self._send_object()
        else:
            self._pass_on(body)

    def _send_object(self) -> None:
        found = self.state.object(self.path, self.headers.get("Authorization", ""))
        if found is None:
            self._pass_on(b"")
            return
        headers = found.headers
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        first, _, last = asked.partition("-")
        start = found.size - int(last) if asked and not first else int(first or 0)
        stop = min(int(last) + 1, found.size) if first and last else found.size
        if asked:
            headers = [*headers, ("Content-Range", f"bytes {start}-{stop - 1}/{found.size}")]
        self._count(stop - start, start)
        self._send_head(206 if asked else 200, headers, stop - start)
        found.send(self.connection, start, stop)

    def _pass_on(self, body: bytes) -> None:
        if self.command in ("PUT", "POST", "DELETE"):
            with self.state.lock:
                self.state.objects.pop(self.path.partition("?")[0], None)
        headers = {n: v for n, v in self.headers.items() if n.lower() not in ("transfer-encoding", "expect")}
        status, found, answer = self.state.forward(self.command, self.path, headers, body)
        self._count(len(answer))
        kept = [(n, v) for n, v in found if n.lower() not in ("transfer-encoding", "connection")]
        self._send(status, kept, answer)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _count(self, size: int, start: int = 0) -> None:
        self.state.log.append((self.command, self.path, size, start))

    def _send(self, status: int, headers: Headers, body: bytes) -> None:
        self._send_head(status, headers, len(body))
        if self.command != "HEAD":
            self.connection.sendall(body)

    def _send_head(self, status: int, headers: Headers, size: int) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if self.command == "HEAD" or name.lower() != "content-length":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(size))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Silence."""

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any


class Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """Clients that go away are no news."""


def main() -> None:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    Handler.state = State(*moto.get_host_and_port())
    front = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=front.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{front.server_address[1]}", flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
