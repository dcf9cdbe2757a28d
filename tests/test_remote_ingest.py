"""Tars on S3 are adopted where they lie, and exports go there."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import boto3
import pytest
from object_store import BUCKET, Proxy, fresh_url, s3_server

import deeplake_loader as deeplake
from deeplake_loader.errors import InputError, NotFoundError


@pytest.fixture(scope="module")
def s3() -> Iterator[Proxy]:
    with s3_server() as proxy:
        yield proxy


def packed(start: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for i in range(start, start + 20):
            for kind, data in (("bin", bytes([i]) * 3_000), ("txt", b"text %d" % i)):
                info = tarfile.TarInfo(f"{i:04d}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def test_tars_on_s3_are_adopted_in_place(db: deeplake.Database, s3: Proxy) -> None:
    url = fresh_url()
    prefix = url.removeprefix(f"s3://{BUCKET}/")
    client = boto3.client("s3")
    for n in range(2):
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/train-{n:02d}.tar", Body=packed(20 * n))
    assert db.ingest("t", f"{url}/train-{{00..01}}.tar").added == 40
    assert db.ingest("t", f"{url}/train-*.tar").present == 40
    rows = db.execute("SELECT key, txt, bin FROM t ORDER BY key")
    assert [(r.txt, r.bin.bytes()) for r in rows] == [(f"text {i}", bytes([i]) * 3_000) for i in range(40)]
    report = db.export("SELECT key, bin FROM t", to=f"{url}/out")
    body = client.get_object(Bucket=BUCKET, Key=f"{prefix}/out/{report.files[0]}")["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        assert len(tar.getmembers()) == 40
    with pytest.raises(NotFoundError):
        db.ingest("t", f"{url}/none-*.tar")


@pytest.mark.parametrize(
    "url", ["pipe:cat /etc/passwd", "http://169.254.169.254/a.tar", "http://localhost/a.tar", "ftp://host/a.tar",
            "s3://user:secret@bucket/a.tar", "s3://bucket/../a.tar"]
)  # fmt: skip
def test_what_may_not_be_adopted_is_not_asked_for(db: deeplake.Database, url: str) -> None:
    with pytest.raises((InputError, NotFoundError)) as caught:
        db.ingest("t", url)
    assert "secret" not in str(caught.value)
