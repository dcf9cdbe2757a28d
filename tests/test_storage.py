"""Objects on S3 and elsewhere: read, written once, listed, deleted; under faults; errors without secrets."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from object_store import BUCKET, Proxy, first_get, fresh_url, s3_server

from deeplake_loader.errors import CorruptionError, DeeplakeError, InputError, NotFoundError, StoreError
from deeplake_loader.storage.objects import Objects, open_folder, open_object, shown
from deeplake_loader.storage.remote import Remote
from deeplake_loader.storage.requests import Policy

CALM = Policy(backoff_s=0.01, hedge_s=60.0, deadline_s=60.0)  # however busy the machine: nothing is sent twice
BODY = bytes(range(256)) * 4_000


@pytest.fixture(scope="module")
def s3() -> Iterator[Proxy]:
    with s3_server() as proxy:
        yield proxy


@pytest.fixture
def proxy(s3: Proxy) -> Proxy:
    s3.clear()
    s3.released.clear()
    return s3


@pytest.fixture(params=["s3", "memory", "folder"])
def objects(request: pytest.FixtureRequest, proxy: Proxy, tmp_path: Path) -> Objects:
    urls = {"s3": fresh_url(), "memory": f"memory://{tmp_path}", "folder": str(tmp_path / "objects")}
    return open_folder(urls[request.param])


def remote(policy: Policy = CALM) -> Remote:
    return Remote(fresh_url(), policy=policy)


def test_what_was_written_reads_back_whole_and_in_parts(objects: Objects) -> None:
    objects.write("a/b.bin", BODY)
    assert objects.size("a/b.bin") == len(BODY)
    assert objects.read("a/b.bin") == BODY
    assert objects.read("a/b.bin", 10, 300) == BODY[10:300]
    assert objects.read_many("a/b.bin", [(5, 6), (0, 3), (900, 1_000)]) == [BODY[5:6], BODY[:3], BODY[900:1_000]]


def test_a_listing_names_what_is_below_a_prefix_in_order(objects: Objects) -> None:
    for name in ("b/2", "a/1", "b/1", "bc/3"):
        objects.write(name, name.encode())
    assert [(found.name, found.size) for found in objects.list()] == [("a/1", 3), ("b/1", 3), ("b/2", 3), ("bc/3", 4)]
    assert [found.name for found in objects.list("b/")] == ["b/1", "b/2"]
    assert all(abs(found.modified - time.time()) < 60 for found in objects.list())
    assert not list(objects.list("nothing/"))


def test_deleting_twice_is_no_error(objects: Objects) -> None:
    objects.write("x", b"1")
    objects.delete(["x", "never"])
    objects.delete(["x"])
    assert not list(objects.list())
    with pytest.raises(NotFoundError, match="x"):
        objects.read("x", 0, 1)
    with pytest.raises(NotFoundError, match="x"):
        objects.size("x")


def test_a_name_is_written_by_one_writer(objects: Objects) -> None:
    objects.write("n", b"first")
    with pytest.raises(StoreError, match="another writer"):
        objects.write("n", b"second")
    assert objects.read("n") == b"first"
    objects.write("n", b"third", exclusive=False)
    assert objects.read("n") == b"third"


def test_reading_beyond_the_end_is_a_typed_error(objects: Objects) -> None:
    objects.write("short", b"12345")
    with pytest.raises(CorruptionError, match="short"):
        objects.read("short", 0, 50)


def test_other_clients_see_the_bytes(proxy: Proxy) -> None:
    folder = open_folder(fresh_url())
    folder.write("a.tar", BODY)
    key = f"{folder.url.removeprefix(f's3://{BUCKET}/')}/a.tar"
    assert boto3.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read() == BODY


def test_a_large_file_goes_up_in_parts_and_reads_back(proxy: Proxy, tmp_path: Path) -> None:
    big = os.urandom(66 << 20)
    (tmp_path / "big").write_bytes(big)
    folder = remote()
    folder.upload("big", str(tmp_path / "big"))
    assert proxy.counts()["POST"] == 2 and proxy.counts()["PUT"] == 3
    assert folder.read("big", 0, len(big)) == big


def test_an_upload_that_was_left_is_given_up(proxy: Proxy) -> None:
    folder = remote()
    prefix = folder.url.removeprefix(f"s3://{BUCKET}/")
    client = boto3.client("s3")
    client.create_multipart_upload(Bucket=BUCKET, Key=f"{prefix}/left")
    assert folder.abort_uploads(3_600 * 24 * 365 * 100) == 0, "it is younger than that (moto says 2010)"
    assert folder.abort_uploads(0) == 1
    assert not client.list_multipart_uploads(Bucket=BUCKET).get("Uploads")


@pytest.mark.parametrize("kind", ["503", "reset", "cut", "short"])
def test_an_answer_that_is_spoiled_once_is_asked_for_again(proxy: Proxy, kind: str) -> None:
    folder = remote()
    folder.write("x", BODY)
    proxy.clear()
    proxy.fault = first_get(kind)
    assert folder.read("x", 0, len(BODY)) == BODY
    assert len(proxy.gets) == 2
    if kind != "reset":  # that of a connection that is used again, the HTTP client sends anew by itself
        assert folder.counters.snapshot().retries == 1


@pytest.mark.parametrize("method", ["PUT", "HEAD", "GET"])
def test_every_kind_of_request_survives_a_503(proxy: Proxy, method: str) -> None:
    folder = remote()
    seen: list[str] = []

    def once(number: int, request: object) -> str | None:
        first = proxy.log[-1].method == method and not seen
        seen.extend([method] if first else [])
        return "503" if first else None

    proxy.fault = once
    folder.write("x", b"body")
    assert folder.size("x") == 4
    assert [found.name for found in folder.list()] == ["x"]
    assert folder.read("x", 0, 4) == b"body"
    assert seen == [method]


def test_a_straggler_is_raced_by_a_second_request(proxy: Proxy) -> None:
    folder = remote(Policy(hedge_s=0.1, deadline_s=60.0))
    folder.write("x", BODY)
    proxy.clear()
    proxy.fault = first_get("stall")
    assert folder.read("x", 0, len(BODY)) == BODY
    traffic = folder.counters.snapshot()
    assert (traffic.hedges, traffic.retries, len(proxy.gets)) == (1, 0, 2)


def test_a_storage_that_never_answers_is_a_typed_error_in_time(proxy: Proxy) -> None:
    folder = remote()
    folder.write("x", b"12")
    proxy.fault = lambda number, request: "stall" if request.is_get else None
    hasty = Remote(folder.url, policy=Policy(attempts=2, backoff_s=0.01, hedge_s=0.1, deadline_s=0.3))
    with pytest.raises(StoreError, match="no answer"):
        hasty.read("x", 0, 2)


def test_a_put_whose_answer_was_lost_is_known_by_its_bytes(proxy: Proxy) -> None:
    folder = remote()
    lost: list[int] = []

    def lose(number: int, request: object) -> str | None:
        if proxy.log[-1].method == "PUT" and not lost:
            lost.append(number)
            boto3.client("s3", endpoint_url=proxy.url).put_object(Bucket=BUCKET, Key=key, Body=b"mine")
            return "reset"
        return None

    key = f"{folder.url.removeprefix(f's3://{BUCKET}/')}/commit"
    proxy.fault = lose
    folder.write("commit", b"mine")
    assert lost and folder.read("commit", 0, 4) == b"mine"


def test_refused_access_says_what_to_check_and_shows_no_secret(proxy: Proxy) -> None:
    folder = Remote(fresh_url(), options={"key": "the-key", "secret": "the-secret"}, policy=CALM)
    with pytest.raises(DeeplakeError) as caught:
        folder.read("nothing", 0, 1)
    for text in (str(caught.value), repr(folder), repr(caught.value)):
        assert "the-secret" not in text and "the-key" not in text


def test_credentials_in_a_url_are_refused_and_not_shown() -> None:
    with pytest.raises(InputError, match="storage_options") as caught:
        open_folder("s3://me:hidden@bucket/x")
    assert "hidden" not in str(caught.value)
    assert shown("https://host/a.tar?X-Amz-Signature=abc") == "https://host/a.tar"


def test_a_pickled_folder_reads_the_same(proxy: Proxy) -> None:
    folder = remote()
    folder.write("x", b"body")
    assert pickle.loads(pickle.dumps(folder)).read("x", 0, 4) == b"body"


def test_an_object_is_opened_by_its_url(proxy: Proxy, tmp_path: Path) -> None:
    url = fresh_url()
    open_folder(url).write("a.tar", b"abc")
    (tmp_path / "b.tar").write_bytes(b"def")
    for full, expected in (
        (f"{url}/a.tar", b"abc"),
        (str(tmp_path / "b.tar"), b"def"),
        (f"file://{tmp_path}/b.tar", b"def"),
    ):
        folder, name = open_object(full)
        assert folder.read(name) == expected


def test_a_forked_child_reads_too(proxy: Proxy) -> None:
    folder = remote()
    folder.write("x", b"body")
    assert folder.read("x", 0, 4) == b"body"
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if folder.read("x", 1, 3) == b"od" else 1
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_an_environment_that_was_mended_counts_from_the_next_connection_on(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = fresh_url()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="endpoint"):
        Remote(url, policy=Policy(attempts=1)).write("x", b"body")
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    Remote(url, policy=CALM).write("x", b"body")
    assert Remote(url, policy=CALM).read("x", 0, 4) == b"body"


@pytest.mark.parametrize(
    ("answer", "kind", "hint"),
    [
        ("404", NotFoundError, "does not exist"), ("403", StoreError, "access was refused"),
        ("503", StoreError, "status 503"), ("reset", StoreError, "network"),
    ],
)  # fmt: skip
def test_a_web_server_that_fails_is_not_one_without_the_file(
    proxy: Proxy, answer: str, kind: type[DeeplakeError], hint: str
) -> None:
    proxy.fault = lambda _number, _request: answer
    with pytest.raises(kind, match=hint):
        Remote(f"{proxy.url}/{BUCKET}", policy=Policy(attempts=1, hedge_s=60.0, deadline_s=60.0)).read_tagged("x", 100)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        ("403 RequestTimeTooSkewed", "clock of this machine"),
        ("400 AuthorizationHeaderMalformed", "another region"),
        ("403 SignatureDoesNotMatch", "secret key"),
        ("400 ExpiredToken", "token has expired"),
        ("403 AccessDenied", "access was refused"),
        ("404 NoSuchBucket", "does not exist"),
        ("416 InvalidRange", "cut"),
    ],
)
def test_what_the_storage_refuses_is_an_error_with_its_reason(proxy: Proxy, answer: str, hint: str) -> None:
    folder = remote()
    folder.write("x", b"body")
    proxy.fault = lambda number, request: answer
    proxy.log.clear()
    with pytest.raises(DeeplakeError, match=hint):
        folder.read("x", 0, 4)
    assert len(proxy.log) <= 3, "asking again changes nothing"
