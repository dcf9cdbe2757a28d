"""Types of samples joined into a table: the narrowest that holds all of them."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeplake_loader.errors import InputError
from deeplake_loader.ingest import members
from deeplake_loader.ingest.inference import kind_of, propose, unify
from deeplake_loader.types import ColumnType

TYPES = [
    *map(ColumnType, ("TEXT", "BIGINT", "DOUBLE", "NUMERIC", "BOOLEAN", "TIMESTAMP", "DATE", "JSON", "IMAGE", "BLOB")),
    ColumnType("VECTOR", "float32", (3,)), ColumnType("VECTOR", "float32", (4,)), ColumnType("TENSOR", "int64", (2, 2)),
]  # fmt: skip
types = st.sampled_from([None, *TYPES])


@given(types, types, types)
def test_joining_types_does_not_depend_on_their_order(
    a: ColumnType | None, b: ColumnType | None, c: ColumnType | None
) -> None:
    assert unify(a, b) == unify(b, a)
    assert unify(a, a) == a
    assert unify(unify(a, b), c) == unify(a, unify(b, c))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2], "BIGINT"), ([1, 2.5], "DOUBLE"), ([True, False], "BOOLEAN"), ([True, 1], "JSON"), ([1, "a"], "JSON"),
        ([None, "a"], "TEXT"), ([1 << 70, 1], "NUMERIC"), ([[1], {}], "JSON"), ([dt.datetime(2024, 1, 1)], "TIMESTAMP"),
    ],
)  # fmt: skip
def test_values_get_the_narrowest_type(values: list[object], expected: str) -> None:
    proposal = propose("t", [{"x": kind_of(v)} for v in values], has_keys=False)
    assert [str(c.column.type) for c in proposal.choices] == [expected]


def test_vectors_of_different_lengths_are_tensors_with_a_free_side() -> None:
    found = unify(ColumnType("VECTOR", "float32", (3,)), ColumnType("VECTOR", "float32", (4,)))
    assert str(found) == "TENSOR(float32, *)"


def test_columns_are_named_after_extensions_and_the_entries_of_documents() -> None:
    text = ColumnType("TEXT")
    sample = {
        "jpg": ColumnType("IMAGE"), "seg.png": ColumnType("IMAGE"), "json": ColumnType("JSON"),
        "json.Caption Text": text, "json.key": text, "json.txt": text, "txt": text, "cls.gz": ColumnType("BIGINT"),
    }  # fmt: skip
    fields = {c.column.name: c.field for c in propose("t", [sample], has_keys=True).choices}
    assert fields == {
        "key": "", "jpg": "jpg", "seg": "seg.png", "caption_text": "json.Caption Text", "json_key": "json.key",
        "txt": "json.txt", "txt_2": "txt", "cls": "cls.gz",
    }  # fmt: skip


def test_a_document_of_too_many_entries_is_kept_whole() -> None:
    sample: dict[str, ColumnType | None] = {"json": ColumnType("JSON")}
    sample |= {f"json.{i}": ColumnType("TEXT") for i in range(500)}
    proposal = propose("t", [sample], has_keys=True)
    assert [c.field for c in proposal.choices] == ["", "json"] and "kept whole" in proposal.notes[0]


def test_the_key_is_a_number_of_its_own_unless_one_is_named() -> None:
    sample = {"id": ColumnType("BIGINT"), "name": ColumnType("TEXT")}
    assert propose("t", [sample], has_keys=False).primary_key == "row_id"
    assert '"name" TEXT PRIMARY KEY' in propose("t", [sample], has_keys=False, key="name").sql()
    with pytest.raises(InputError, match="no column 'nothing'"):
        propose("t", [sample], has_keys=False, key="nothing")


def test_columns_that_no_sample_has_are_refused_with_the_fields_there_are() -> None:
    with pytest.raises(InputError, match="fields: __key__, jpg"):
        propose("t", [{"jpg": ColumnType("IMAGE")}], has_keys=True, columns={"image": "png"})
    with pytest.raises(InputError, match="nothing was found"):
        propose("t", [], has_keys=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", ("a", "jpg")), ("train/0.SEG.png", ("train/0", "seg.png")), ("a.b/c.txt", ("a.b/c", "txt")),
        ("README", None), (".hidden", None), ("d/.hidden.txt", None), ("a.", None), ("x\ny.txt", ("x\ny", "txt")),
    ],
)  # fmt: skip
def test_names_are_split_as_webdataset_splits_them(name: str, expected: tuple[str, str] | None) -> None:
    from webdataset.tariterators import base_plus_ext

    assert members.split_name(name) == expected
    if expected is not None and "\n" not in name:
        key, extension = base_plus_ext(name)
        assert (key, extension.lower()) == expected


def test_pickles_and_archives_of_arrays_are_bytes_and_never_opened() -> None:
    data = b"cos\nsystem\n(S'touch /tmp/owned'\ntR."
    for extension in ("pkl", "pickle", "pyd", "pth", "npz", "pt"):
        assert [str(kind) for _, kind in members.observe(extension, data)] == ["BLOB"]
    assert [str(kind) for _, kind in members.observe("npy", data)] == ["BLOB"]


def test_deep_json_and_swelling_gzip_are_refused() -> None:
    import gzip

    with pytest.raises(ValueError, match="nested too deeply"):
        members.read_json("[" * 200_000)
    with pytest.raises(ValueError, match="unpacks to more"):
        members.values("txt.gz", gzip.compress(bytes(members.MAX_TEXT + 1)))
    assert members.values("json", b'{"a": NaN}')[1] == ("json.a", None)
