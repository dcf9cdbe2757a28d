"""Paths stay under the root, names survive, writes and reads are exact."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeplake_loader import store
from deeplake_loader.errors import CorruptionError, InputError, NotFoundError, StoreError


@pytest.mark.parametrize(
    "url", ["", ".", "..", "/etc/passwd", "a/../../b", "../x", "a//b", "a/", "file:///x", "pipe:cat", "a\0b", "a\\b"]
)
def test_a_url_that_is_no_plain_path_under_the_root_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(StoreError, match="refused"):
        store.Root(str(tmp_path)).path(url)


def test_a_link_that_leads_outside_is_refused_and_one_inside_is_not(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "real").mkdir(parents=True)
    (root / "out").symlink_to(tmp_path)
    (root / "in").symlink_to(root / "real")
    assert store.Root(str(root)).path("in/x") == str(root / "in" / "x")
    with pytest.raises(StoreError, match="outside"):
        store.Root(str(root)).path("out/x")


def test_a_root_that_is_itself_a_link_works(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert store.Root(str(tmp_path / "link")).path("a/b") == str(tmp_path / "link" / "a" / "b")


def test_a_relative_root_is_refused() -> None:
    with pytest.raises(InputError, match="absolute"):
        store.Root("here")


def test_folders_are_made_with_their_parents_and_may_exist(tmp_path: Path) -> None:
    root = store.Root(str(tmp_path))
    assert root.make_folder("a/b/c") == root.make_folder("a/b/c") == str(tmp_path / "a" / "b" / "c")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="file/x"):
        root.make_folder("file/x")


@given(name=st.text(st.characters(codec="utf-8"), min_size=1))
def test_names_survive_encoding_and_are_plain(name: str) -> None:
    encoded = store.encode_name(name)
    assert store.decode_name(encoded) == name
    assert set(encoded) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_%")


def test_names_of_files_are_unique_and_sort_by_time() -> None:
    names = [store.unique_name() for _ in range(1000)]
    assert len(set(names)) == 1000
    assert [n[:12] for n in names] == sorted(n[:12] for n in names)


def test_writing_many_buffers_gives_their_bytes(tmp_path: Path) -> None:
    buffers = [bytes([i % 256]) * (i % 5) for i in range(5000)]
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    end = store.write_at(fd, buffers, 7, "f")
    data = b"".join(buffers)
    assert end == 7 + len(data) and (tmp_path / "f").read_bytes() == bytes(7) + data
    assert store.read_at(fd, 7, len(data), "f") == data
    with pytest.raises(CorruptionError, match="f: cut"):
        store.read_at(fd, 7, len(data) + 1, "f")
    os.close(fd)


def test_errors_of_the_system_name_the_file_and_the_remedy() -> None:
    with pytest.raises(StoreError, match=r"cannot write x: .*free space"), store.file_errors("write", "x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StoreError, match="permissions"), store.file_errors("write", "x"):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(NotFoundError, match="x"), store.file_errors("read", "x"):
        raise FileNotFoundError


def test_a_lock_is_held_by_one_open_file(tmp_path: Path) -> None:
    first, second = (os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT) for _ in range(2))
    assert store.try_lock(first) and not store.try_lock(second)
    os.close(first)
    assert store.try_lock(second)
    os.close(second)
