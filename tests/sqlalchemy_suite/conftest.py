"""SQLAlchemy's own test suite for dialects, pointed at this one: see test_sqlalchemy.py, which runs it."""

import pytest

import deeplake_loader.sqlalchemy  # noqa: F401

pytest.register_assert_rewrite("sqlalchemy.testing.assertions")

from sqlalchemy.testing.plugin.pytestplugin import *  # noqa: E402, F403

DIGITS = "NUMERIC keeps 15 digits exactly on SQLite, and refuses more"
SCHEMA = "a store has one schema"
REFUSED = {
    "test_check_constraint_inline[True": SCHEMA,
    "test_check_constraint_mixed[True": SCHEMA,
    "test_check_constraint_no_constraint[True": SCHEMA,
    "test_check_constraint_parenthesized_expressions[True": SCHEMA,
    "test_check_constraint_standalone[True": SCHEMA,
    "test_string_length_reflection[CHAR": "CHAR(n) is kept as VARCHAR(n), without its blanks",
    "test_get_view_names": "a store keeps tables; a view is a query written with WITH",
    "test_dialect_user_setting_is_restored": "needs two isolation levels beside AUTOCOMMIT; there is one",
    "test_without_metadata[plain": "CREATE TABLE AS is not supported",
}
"""What no requirement covers: the beginning of a test's name, and why it is not run."""

REFUSED_ON_SQLITE = {
    "test_numeric_reflection": DIGITS,
    "test_truediv_divisor[numeric_38_digit": DIGITS,
    "test_truediv_divisor[numeric_tiny": DIGITS,
    "test_reflect_expression_based_indexes": "an index on lower(x) would need functions that other SQLite tools lack",
}
"""The same, where the catalog is SQLite's."""


def pytest_runtest_protocol(item: pytest.Item) -> None:
    """At the last moment: SQLAlchemy's plugin collects its tests anew for each database."""
    import requirements
    from sqlalchemy.testing import config

    refused = REFUSED | (REFUSED_ON_SQLITE if requirements.on_sqlite(config) else {})
    reason = next((reason for name, reason in refused.items() if item.name.startswith(name)), None)
    if reason is not None:
        item.add_marker(pytest.mark.skip(reason=reason))
