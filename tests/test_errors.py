"""The error tree: one root, stable kinds, builtin parents, messages that stay short, pickles."""

from __future__ import annotations

import pickle

import pytest

from deeplake_loader import errors


def every_class() -> list[type[errors.DeeplakeError]]:
    return [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.DeeplakeError)]


def test_every_error_has_a_kind_of_its_own_below_one_root() -> None:
    kinds = [c.kind for c in every_class()]
    assert len(kinds) == len(set(kinds)) >= 15


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.InputError, ValueError),
        (errors.TypeMismatchError, TypeError),
        (errors.NotFoundError, KeyError),
        (errors.StoreError, OSError),
    ],
)
def test_builtin_parents_are_kept(kind: type[errors.DeeplakeError], builtin: type[Exception]) -> None:
    with pytest.raises(builtin, match="what happened"):
        raise kind("what happened")


def test_a_position_is_shown_below_its_line() -> None:
    text = str(errors.SQLError("no such thing", sql="SELECT a\nFROM nowhere", position=14))
    assert text.splitlines() == ["no such thing", "  line 2: FROM nowhere", "               ^"]
    assert text.splitlines()[1].index("nowhere") == text.splitlines()[2].index("^")


def test_a_huge_statement_is_quoted_in_part() -> None:
    sql = "SELECT " + "x" * 1_000_000
    for position in (None, 0, 500_000, 1_000_000):
        assert len(str(errors.SQLError("wrong", sql=sql, position=position))) < 600


@pytest.mark.parametrize("error", [errors.SQLError("a", sql="b", position=1), errors.DecodeError("c", key="k"),
                                   errors.StoreError("d"), errors.NotFoundError("e")])  # fmt: skip
def test_errors_survive_pickling(error: errors.DeeplakeError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)
