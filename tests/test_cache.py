"""The local cache of remote objects: shared by processes, bounded, killed, damaged, full."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from object_store import Proxy, fresh_url, s3_server

from deeplake_loader.errors import InputError
from deeplake_loader.storage.cache import Limits
from deeplake_loader.storage.mirror import Mirror
from deeplake_loader.storage.pages import PAGE, SEGMENT, Copy, runs

BODY = np.random.default_rng(0).bytes(3 * SEGMENT + PAGE // 3)
SEGMENTS = 4

READ_ALL = """
import sys
import numpy as np
from deeplake_loader.storage.cache import Limits
from deeplake_loader.storage.mirror import Mirror
url, folder, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
mirror = Mirror(url, limits=Limits(folder))
sys.stdin.readline()
data = b"".join(mirror.read("big.tar", start, min(start + (1 << 20), size)) for start in range(0, size, 1 << 20))
import hashlib
print(hashlib.sha256(data).hexdigest(), mirror.traffic.bytes_read)
"""


@pytest.fixture(scope="module")
def s3() -> Iterator[Proxy]:
    with s3_server() as proxy:
        yield proxy


@pytest.fixture
def proxy(s3: Proxy) -> Iterator[Proxy]:
    s3.clear()
    s3.released.clear()
    yield s3
    s3.latency_s = 0.0


def mirror_of(tmp_path: Path, *, max_bytes: int = 1 << 30, fresh_s: float = 30.0, body: bytes = BODY) -> Mirror:
    """A mirror of an object ``big.tar``, in memory."""
    mirror = Mirror(f"memory://{tmp_path}", limits=Limits(str(tmp_path / "cache"), max_bytes, fresh_s))
    mirror.objects.write("big.tar", body)
    return mirror


def held(folder: Path) -> int:
    """Bytes on the disk of all copies in a cache."""
    return sum(p.stat().st_blocks * 512 for p in folder.rglob("*") if p.suffix in (".tar", ".npy"))


def spans(*pairs: tuple[int, int]) -> np.ndarray:
    return np.array(pairs, np.int64)


@given(st.lists(st.tuples(st.integers(0, len(BODY) - 1), st.integers(1, 700_000)), max_size=12))
def test_any_ranges_read_back_exactly_and_are_fetched_once(ranges: list[tuple[int, int]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        mirror = mirror_of(Path(folder))
        wanted = [(start, min(start + length, len(BODY))) for start, length in ranges]
        for start, stop in wanted:
            assert mirror.read("big.tar", start, stop) == BODY[start:stop]
        before = mirror.traffic
        touched = {page for start, stop in wanted for page in range(start // PAGE, -(-stop // PAGE))}
        assert before.bytes_read <= len(touched) * PAGE + len(wanted) * (1 << 20)
        for start, stop in wanted:
            assert mirror.read("big.tar", start, stop) == BODY[start:stop]
        assert mirror.traffic.gets == before.gets


def test_all_that_is_missing_of_many_segments_is_one_request_each(tmp_path: Path) -> None:
    mirror = mirror_of(tmp_path)
    everything = np.ones(-(-len(BODY) // PAGE), np.bool_)
    mirror.fetch({"big.tar": spans((5, 10), (SEGMENT + 5, SEGMENT + 10))}, {"big.tar": everything})
    assert mirror.traffic.gets == 2
    assert mirror.traffic.bytes_read == 2 * SEGMENT
    mirror.fetch({"big.tar": spans((0, 2 * SEGMENT))})
    assert mirror.traffic.gets == 2


def test_found_are_the_bytes_of_ranges_that_were_there_whole_when_they_were_read(tmp_path: Path) -> None:
    mirror = mirror_of(tmp_path)
    mirror.fetch({"big.tar": spans((0, 10), (3 * PAGE, 3 * PAGE + 10))})
    assert mirror.traffic.hits == 0
    half = {"big.tar": spans((5, PAGE), (PAGE - 5, PAGE + 5), (3 * PAGE, 4 * PAGE), (9 * PAGE, 9 * PAGE + 1))}
    mirror.fetch(half, keep_only=True)
    assert mirror.traffic.hits == 0, "nobody has read them yet"
    mirror.fetch(half)
    assert mirror.traffic.hits == PAGE - 5 + 10 + PAGE + 1
    mirror.fetch({"big.tar": spans((7 * PAGE, 7 * PAGE + 1), (0, 3))})
    assert mirror.traffic.hits == PAGE - 5 + 10 + PAGE + 1 + 3, "of two ranges, one had to be fetched"


def test_a_second_mirror_finds_what_the_first_fetched(tmp_path: Path) -> None:
    mirror_of(tmp_path).read("big.tar", 0, SEGMENT)
    second = Mirror(f"memory://{tmp_path}", limits=Limits(str(tmp_path / "cache")))
    assert second.read("big.tar", 100, 200) == BODY[100:200]
    assert second.traffic.gets == 0 and second.traffic.heads == 0


def start_reader(url: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", READ_ALL, url, str(folder), str(len(BODY))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_processes_that_share_a_cache_fetch_each_byte_once(proxy: Proxy, tmp_path: Path) -> None:
    import hashlib

    url = fresh_url()
    Mirror(url, limits=Limits(str(tmp_path / "other"))).objects.write("big.tar", BODY)
    proxy.latency_s = 0.01
    readers = [start_reader(url, tmp_path / "cache") for _ in range(2)]
    answers = [reader.communicate("\n", timeout=300)[0].split() for reader in readers]
    assert [digest for digest, _ in answers] == [hashlib.sha256(BODY).hexdigest()] * 2
    assert sum(int(fetched) for _, fetched in answers) == len(BODY)


def test_a_reader_killed_while_filling_leaves_a_cache_that_reads_right(proxy: Proxy, tmp_path: Path) -> None:
    url = fresh_url()
    mirror = Mirror(url, limits=Limits(str(tmp_path / "cache")))
    mirror.objects.write("big.tar", BODY)
    proxy.latency_s = 0.02
    proxy.log.clear()
    reader = start_reader(url, tmp_path / "cache")
    assert reader.stdin is not None
    reader.stdin.write("\n")
    reader.stdin.flush()
    while len(proxy.gets) < 4:
        time.sleep(0.005)
    os.kill(reader.pid, signal.SIGKILL)
    reader.communicate()
    assert mirror.read("big.tar", 0, len(BODY)) == BODY


def test_a_cache_smaller_than_an_object_reads_past_itself_and_keeps_its_limit(tmp_path: Path) -> None:
    limit = 4 << 20
    mirror = mirror_of(tmp_path, max_bytes=limit, fresh_s=3_600.0)
    rng = np.random.default_rng(1)
    total = 0
    for start in rng.integers(0, len(BODY) - 20_000, 400).tolist():
        assert mirror.read("big.tar", start, start + 20_000) == BODY[start : start + 20_000]
        total += 20_000
    traffic = mirror.traffic
    assert held(tmp_path / "cache") <= limit
    assert traffic.bytes_read <= limit + total, "what has no room is read exactly, and nothing is given up for it"
    assert traffic.evicted == 0


def test_what_was_not_used_lately_is_given_up_first(tmp_path: Path) -> None:
    mirror = mirror_of(tmp_path, max_bytes=2 * SEGMENT, fresh_s=0.0)
    for segment in (0, 1):
        mirror.fetch({"big.tar": spans((segment * SEGMENT, (segment + 1) * SEGMENT))})
    copy = mirror.copy("big.tar")
    assert copy is not None
    copy._stamps[0], copy._stamps[1] = int(time.time()) - 100, int(time.time()) - 50
    mirror.fetch({"big.tar": spans((2 * SEGMENT, 2 * SEGMENT + 3 * PAGE))})
    assert not copy.pages[: SEGMENT // PAGE].any()
    assert copy.pages[SEGMENT // PAGE : 2 * SEGMENT // PAGE].all()
    assert held(tmp_path / "cache") <= 2 * SEGMENT
    assert mirror.read("big.tar", 10, 20) == BODY[10:20]


def test_a_mapped_file_is_given_up_whole_and_stays_what_it_was_for_its_readers(tmp_path: Path) -> None:
    from deeplake_loader.storage.mapped import Mapped

    mirror = mirror_of(tmp_path, max_bytes=SEGMENT + PAGE, fresh_s=0.0)
    mirror.objects.write("v.npy", BODY[:SEGMENT])
    mapped = Mapped(mirror, "v.npy", SEGMENT)
    mapped.load([(0, SEGMENT)])
    copy = mirror.copy("v.npy")
    assert copy is not None
    copy._stamps[:] = int(time.time()) - 100
    mirror.fetch({"big.tar": spans((0, 4 * PAGE))})
    assert copy.given_up and not Path(copy.path).exists()
    assert mapped.memory[:] == BODY[:SEGMENT]
    mapped.load([(0, 100)])
    assert mapped.memory[:SEGMENT] == BODY[:SEGMENT]


def test_no_cache_at_all_reads_the_same(tmp_path: Path) -> None:
    mirror = mirror_of(tmp_path, max_bytes=0)
    assert mirror.read("big.tar", 7, 70_000) == BODY[7:70_000]
    assert mirror.traffic.bytes_read == 70_000 - 7
    assert not held(tmp_path / "cache")


def test_a_cache_folder_that_cannot_be_made_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file is in the way")
    assert mirror_of(tmp_path).read("big.tar", 7, 70_000) == BODY[7:70_000]


def test_a_full_disk_is_done_without(tmp_path: Path) -> None:
    code = f"""
import resource, sys
import numpy as np
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_cache import BODY, mirror_of, spans
mirror = mirror_of(Path({str(tmp_path)!r}))
copy = mirror.copy("big.tar")  # sparse: its pages have no room any more
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
fetched = mirror.fetch({{"big.tar": spans((0, 100), (3 << 20, (3 << 20) + 50))}})
assert bytes(fetched.find("big.tar", 3 << 20, (3 << 20) + 50)) == BODY[3 << 20 : (3 << 20) + 50]
assert mirror.read("big.tar", 0, len(BODY)) == BODY
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_a_damaged_map_is_made_anew(tmp_path: Path) -> None:
    mirror = mirror_of(tmp_path)
    mirror.read("big.tar", 0, 1_000)
    (path,) = (tmp_path / "cache").rglob("*.map")
    path.write_bytes(b"garbage")
    again = Mirror(f"memory://{tmp_path}", limits=Limits(str(tmp_path / "cache")))
    assert again.read("big.tar", 0, 1_000) == BODY[:1_000]


def test_a_size_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="cache_bytes"):
        Limits.of(cache_bytes=-1)
    monkeypatch.setenv("DEEPLAKE_CACHE_BYTES", "lots")
    with pytest.raises(InputError, match="lots"):
        Limits.of()


def test_pages_become_requests_that_stay_inside_a_segment() -> None:
    per = SEGMENT // PAGE
    pages = np.array([per - 2, per - 1, per, per + 1, per + 8], np.int64)
    assert runs(pages, 4 * SEGMENT, gap=PAGE) == [
        (SEGMENT - 2 * PAGE, SEGMENT),
        (SEGMENT, SEGMENT + 2 * PAGE),
        (SEGMENT + 8 * PAGE, SEGMENT + 9 * PAGE),
    ]


def test_a_copy_counts_what_it_holds(tmp_path: Path) -> None:
    copy = Copy(str(tmp_path / "x.tar"), PAGE + 10)
    copy.put(PAGE, b"1234567890")
    assert copy.held == 10
    copy.put(0, bytes(PAGE))
    assert copy.held == PAGE + 10


def test_a_disk_that_is_full_in_the_middle_of_a_body_costs_no_byte(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, limit, write = fresh_url(), SEGMENT + (3 << 20) + 1, Copy.write
    mirror = Mirror(url, limits=Limits(str(tmp_path / "cache")))
    mirror.objects.write("big.tar", BODY)

    def fill(copy: Copy, start: int, piece: memoryview) -> None:
        if start + len(piece) > limit:
            raise OSError(errno.ENOSPC, "full")
        write(copy, start, piece)

    monkeypatch.setattr(Copy, "write", fill)
    copy = mirror.copy("big.tar")
    assert copy is not None
    assert mirror.read("big.tar", 0, len(BODY)) == BODY
    assert copy.pages[: SEGMENT // PAGE].all() and not copy.pages[SEGMENT // PAGE :].any()
    monkeypatch.setattr(Copy, "write", write)
    assert mirror.read("big.tar", 0, len(BODY)) == BODY and copy.pages.all()


@pytest.mark.parametrize("kind", ["cut", "short", "reset"])
def test_a_body_that_broke_off_is_marked_when_it_has_come_whole(proxy: Proxy, tmp_path: Path, kind: str) -> None:
    mirror = Mirror(fresh_url(), limits=Limits(str(tmp_path / "cache")))
    mirror.objects.write("big.tar", BODY)
    copy = mirror.copy("big.tar")
    assert copy is not None
    marked: list[int] = []

    def spoil(number: int, request: object) -> str | None:
        marked.append(int(copy.pages.sum()))
        return kind if len(proxy.gets) == 1 else None

    proxy.clear()
    proxy.fault = spoil
    assert mirror.read("big.tar", 0, SEGMENT) == BODY[:SEGMENT]
    assert len(marked) >= 2 and not any(marked), "one answer was spoiled, and nothing of it counted"
    assert int(copy.pages.sum()) == SEGMENT // PAGE
