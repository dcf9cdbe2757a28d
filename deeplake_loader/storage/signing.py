"""How a bucket is asked without a client library: its host, and the signature of a GET (AWS Signature Version 4).

s3fs needs half a second before its first request, for imports and botocore's models: longer than 100 MB need to come.
Only what options and environment say in so many words is understood here: a key and its secret, a region, an endpoint.
Profiles, roles, files of settings, proxies and every other variable or option are left to s3fs.
Source: docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

_NO_BODY = hashlib.sha256(b"").hexdigest()
_ALGORITHM = "AWS4-HMAC-SHA256"
_KNOWN = {
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ALLOW_HTTP",
    "AWS_CA_BUNDLE",
}
_OPTIONS = {"key", "secret", "token", "endpoint_url", "client_kwargs"}
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_OTHER_CLOUDS = ("cn-", "us-iso", "eu-iso")  # whose hosts are not below amazonaws.com
_AT_AMAZON = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")  # none of the aliases that botocore resolves: aws-global, fips-...
_LABEL = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_REGION = re.compile(r"[a-z0-9-]+")


@dataclass(frozen=True, slots=True)
class Access:
    """Where a bucket's objects are asked for, and by whom.

    Fields: ``host`` and ``port``, ``tls``; ``folder``, what stands before an object's key in a path: nothing where the
    bucket is part of the host's name, else it; ``trusted``, the file of certificates that vouch for the host, None for
    the system's.
    """

    host: str
    port: int
    tls: bool
    folder: str
    region: str
    key: str
    secret: str = field(repr=False)
    token: str | None = field(repr=False, default=None)
    trusted: str | None = None

    def request(self, name: str, start: int, stop: int, now: datetime) -> bytes:
        """The signed GET of these bytes of an object, as it is sent."""
        path = quote(f"{self.folder}/{name}", safe="/-_.~")
        headers = self._headers(start, stop, now)
        headers["authorization"] = self._authorization(path, headers, now)
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def _headers(self, start: int, stop: int, now: datetime) -> dict[str, str]:
        """In the order of their names, which the signature asks for."""
        usual = self.port == (443 if self.tls else 80)
        host = f"[{self.host}]" if ":" in self.host else self.host
        found = {
            "host": host if usual else f"{host}:{self.port}",
            "range": f"bytes={start}-{stop - 1}",
            "x-amz-content-sha256": _NO_BODY,
            "x-amz-date": f"{now:%Y%m%dT%H%M%SZ}",
        }
        return found if self.token is None else {**found, "x-amz-security-token": self.token}

    def _authorization(self, path: str, headers: Mapping[str, str], now: datetime) -> str:
        signed = ";".join(headers)
        listed = "".join(f"{name}:{value}\n" for name, value in headers.items())
        asked = f"GET\n{path}\n\n{listed}\n{signed}\n{_NO_BODY}"
        scope = f"{now:%Y%m%d}/{self.region}/s3/aws4_request"
        text = f"{_ALGORITHM}\n{now:%Y%m%dT%H%M%SZ}\n{scope}\n{hashlib.sha256(asked.encode()).hexdigest()}"
        secret = f"AWS4{self.secret}".encode()
        for part in scope.split("/"):
            secret = hmac.digest(secret, part.encode(), "sha256")
        signature = hmac.digest(secret, text.encode(), "sha256").hex()
        return f"{_ALGORITHM} Credential={self.key}/{scope}, SignedHeaders={signed}, Signature={signature}"


def utc() -> datetime:
    """The time as signatures have it."""
    return datetime.now(UTC)


def access_of(bucket: str, options: Mapping[str, Any]) -> Access | None:
    """How this bucket is asked, by options of s3fs and the environment; None where that is for s3fs to find out."""
    given = _given(options)
    if given is None or not _is_plain() or not _LABEL.fullmatch(bucket):
        return None
    key, secret, region = given["key"], given["secret"], given["region"]
    texts = (key, secret, region, given["token"] or "", given["endpoint"] or "")
    if not key or not secret or not region or any(not t.isascii() or not t.isprintable() or " " in t for t in texts):
        return None
    if not _REGION.fullmatch(region):
        return None
    place = _at_endpoint(given["endpoint"], bucket) if given["endpoint"] else _at_amazon(bucket, region)
    if place is None:
        return None
    return Access(*place, region, key, secret, given["token"], os.environ.get("AWS_CA_BUNDLE") or None)


def _given(options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Key, secret, token, region and endpoint, options before the environment; None if there is more to it."""
    client: Any = options.get("client_kwargs") or {}
    if not _OPTIONS.issuperset(options) or not isinstance(client, Mapping):
        return None
    if not {"endpoint_url", "region_name"}.issuperset(client):
        return None
    said, own = os.environ.get, bool(options.get("key") or options.get("secret") or options.get("token"))
    found: dict[str, Any] = {
        "key": options.get("key") if own else said("AWS_ACCESS_KEY_ID"),
        "secret": options.get("secret") if own else said("AWS_SECRET_ACCESS_KEY"),
        "token": (options.get("token") if own else said("AWS_SESSION_TOKEN")) or None,
        "region": client.get("region_name") or said("AWS_DEFAULT_REGION"),
        "endpoint": options.get("endpoint_url")
        or client.get("endpoint_url")
        or said("AWS_ENDPOINT_URL_S3")
        or said("AWS_ENDPOINT_URL"),
    }
    return found if all(value is None or isinstance(value, str) for value in found.values()) else None


def _is_plain() -> bool:
    """Whether nothing but what is known here says how requests are sent."""
    for name in os.environ:
        if name.startswith("AWS_") and name not in _KNOWN:
            return False
        if name.upper().startswith("FSSPEC_S3") or name.lower() in _PROXIES:
            return False
    home = os.path.expanduser("~")
    files = (".aws/config", ".aws/credentials", ".boto", ".config/fsspec")
    return not any(os.path.exists(os.path.join(home, file)) for file in files)


_Place = tuple[str, int, bool, str]  # the first four fields of an Access


def _at_amazon(bucket: str, region: str) -> _Place | None:
    """A bucket is a host of its own; one with two dashes ("--x-s3", "--ol-s3") is no plain one."""
    if region.startswith(_OTHER_CLOUDS) or not _AT_AMAZON.fullmatch(region) or "--" in bucket:
        return None
    return f"{bucket}.s3.{region}.amazonaws.com", 443, True, ""


def _at_endpoint(url: str, bucket: str) -> _Place | None:
    """A server of one's own, where buckets are folders."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        return None
    more = parts.path.strip("/") or parts.query or parts.fragment or parts.username or parts.password
    if parts.scheme not in ("http", "https") or not parts.hostname or more:
        return None
    tls = parts.scheme == "https"
    return parts.hostname, port or (443 if tls else 80), tls, f"/{bucket}"
