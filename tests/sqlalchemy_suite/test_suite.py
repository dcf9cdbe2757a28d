"""All of SQLAlchemy's suite for dialects, but for 10 tests whose tables come with a view, which a store has not."""

from sqlalchemy.testing.suite import *  # noqa: F403

del HasTableTest  # noqa: F821
