"""What SQLAlchemy's suite may expect of the dialect: what its defaults get wrong, with the reason for each refusal."""

from typing import Any

from sqlalchemy.testing import exclusions
from sqlalchemy.testing.requirements import SuiteRequirements

_SUPPORTED = """
uuid_data_type table_ddl_if_exists index_ddl_if_exists boolean_col_expressions nullsordering intersect except_
window_functions window_range ctes ctes_with_update_delete ctes_with_values dbapi_lastrowid emulated_lastrowid
foreign_key_constraint_name_reflection foreign_key_constraint_option_reflection_ondelete
fk_constraint_option_reflection_ondelete_restrict foreign_key_constraint_option_reflection_onupdate
indexes_with_expressions reflect_indexes_with_expressions inline_check_constraint_reflection
check_constraint_reflection unicode_ddl datetime_literals datetime_timezone timestamp_microseconds datetime_historic
date_historic autocommit isolation_level json_type json_array_indexes server_defaults expression_server_defaults
aggregate_order_by infinity_floats savepoints update_from delete_from mod_operator_as_percent_sign
percent_schema_names computed_columns computed_columns_stored computed_columns_reflect_persisted
computed_columns_default_persisted supports_distinct_on regexp_match regexp_replace fetch_first fetch_no_order_by
fetch_expression supports_bitwise_or supports_bitwise_and supports_bitwise_not tuple_in implicit_default_schema
table_value_constructor
"""
SUPPORTED = _SUPPORTED.split()
"""Closed in the suite's defaults, and right here."""

REFUSED = {
    "schemas": "a store has one schema",
    "views": "a store keeps tables; a view is a query written with WITH",
    "temporary_tables": "tables belong to the store and its history",
    "temp_table_reflection": "tables belong to the store and its history",
}
"""Open in the suite's defaults, and not here."""

REFUSED_ON_SQLITE = {
    "reflects_pk_names": "a constraint without a name stays without one",
    "implicitly_named_constraints": "a constraint without a name stays without one",
    "precision_numerics_general": "NUMERIC keeps 15 digits exactly on SQLite, and refuses more",
    "precision_numerics_enotation_large": "NUMERIC keeps 15 digits exactly on SQLite, and refuses more",
    "cast_precision_numerics_many_significant_digits": "NUMERIC keeps 15 digits exactly on SQLite, and refuses more",
}
"""Of PostgreSQL's that SQLite has not."""


def on_sqlite(config: Any) -> bool:
    """Whether the catalog of the store that is tested is SQLite's."""
    return bool(config.db.dialect.driver == "deeplake")


class Requirements(SuiteRequirements):
    pass


def _requirement(verdict: Any) -> property:
    return property(lambda self: verdict)


for _name in SUPPORTED:
    setattr(Requirements, _name, _requirement(exclusions.open()))
for _name, _reason in REFUSED.items():
    setattr(Requirements, _name, _requirement(exclusions.closed(_reason)))
for _name, _reason in REFUSED_ON_SQLITE.items():
    setattr(Requirements, _name, _requirement(exclusions.skip_if(on_sqlite, _reason)))
