"""What a table is made of beside its columns, as PostgreSQL's catalog tells it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deeplake_loader.inspection import Check, Description, ForeignKey, Index, UniqueKey
from deeplake_loader.postgres.declarations import ADDED_KEY
from deeplake_loader.types import RESERVED_PREFIX, Table, quote_identifier

if TYPE_CHECKING:
    from deeplake_loader.postgres.catalog import PostgresCatalog

_COLUMNS = """
    SELECT a.attname, pg_get_expr(d.adbin, d.adrelid), a.attidentity <> '' OR pg_get_expr(d.adbin, d.adrelid) LIKE
      'nextval(%%', a.attgenerated <> '', CASE WHEN a.atttypid = 1043 AND a.atttypmod > 4 THEN a.atttypmod - 4 END
    FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
_NAMES = "ARRAY(SELECT a.attname::text FROM unnest({}) WITH ORDINALITY k(n, i) JOIN pg_attribute a ON a.attrelid = {} AND a.attnum = k.n ORDER BY k.i)"  # fmt: skip # noqa: E501
_CONSTRAINTS = f"""
    SELECT c.contype::text, c.conname, {_NAMES.format("c.conkey", "c.conrelid")}, f.relname,
      {_NAMES.format("c.confkey", "c.confrelid")}, c.confupdtype::text, c.confdeltype::text, c.condeferred,
      pg_get_constraintdef(c.oid, true)
    FROM pg_constraint c LEFT JOIN pg_class f ON f.oid = c.confrelid
    WHERE c.conrelid = %s::regclass AND c.contype IN ('p', 'u', 'f', 'c') ORDER BY c.conname
"""
_INDEXES = """
    SELECT i.relname, x.indisunique, pg_get_expr(x.indpred, x.indrelid, true), m.amname,
      ARRAY(SELECT pg_get_indexdef(x.indexrelid, n, true) FROM generate_series(1, x.indnkeyatts) n),
      ARRAY(SELECT a.attname::text FROM unnest(x.indkey::int2[]) WITH ORDINALITY k(n, i)
        LEFT JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.n AND k.n > 0
        WHERE k.i <= x.indnkeyatts ORDER BY k.i)
    FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_am m ON m.oid = i.relam
    WHERE x.indrelid = %s::regclass
      AND NOT EXISTS (SELECT 1 FROM pg_constraint c WHERE c.conindid = x.indexrelid AND c.contype IN ('p', 'u', 'x'))
    ORDER BY i.relname
"""
_ACTIONS = {"c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT", "r": "RESTRICT"}


def describe(catalog: PostgresCatalog, table: Table) -> Description:
    """The description of one table, which is the same on every branch."""
    name = f"{quote_identifier(catalog.address.schema)}.{quote_identifier(table.name)}"

    def rows(sql: str) -> list[Any]:
        return catalog.fetchall(sql, (name,), native=True)

    columns, constraints = rows(_COLUMNS), rows(_CONSTRAINTS)
    counted = [column for column, _, counts, _, _ in columns if counts and column in table.primary_key]
    key_name = next((row[1] for row in constraints if row[0] == "p"), None)
    is_added = key_name is not None and key_name.startswith(ADDED_KEY)
    return Description(
        table=table,
        key_name=None if is_added else key_name,
        counted=counted[0] if counted else None,
        added_key=counted[0] if counted and is_added else None,
        defaults={c: text for c, text, counts, made, _ in columns if text is not None and not counts and not made},
        generated={c: text for c, text, _, made, _ in columns if made},
        lengths={c: length for c, _, _, _, length in columns if length is not None},
        unique=tuple(UniqueKey(row[1], tuple(row[2])) for row in constraints if row[0] == "u"),
        foreign_keys=tuple(map(_foreign_key, (row for row in constraints if row[0] == "f"))),
        checks=tuple(Check(row[1], _condition(row[8])) for row in constraints if row[0] == "c" and _is_own(row, table)),
        indexes=tuple(_index(row) for row in rows(_INDEXES) if not row[0].startswith(RESERVED_PREFIX)),
    )


def _foreign_key(row: Any) -> ForeignKey:
    _, name, columns, target, targets, on_update, on_delete, deferred, _ = row
    return ForeignKey(
        name, tuple(columns), target, tuple(targets), _ACTIONS.get(on_update), _ACTIONS.get(on_delete), deferred
    )


def _condition(definition: str) -> str:
    """What stands between the parentheses of CHECK (...)."""
    text = definition.removeprefix("CHECK ").removesuffix(" NOT VALID")
    return text[1:-1] if text.startswith("(") and text.endswith(")") else text


def _is_own(row: Any, table: Table) -> bool:
    """Whether a CHECK is the user's: not the one by which a list of numbers keeps a vector's length."""
    vectors = {c.name for c in table.vectors}
    return not (set(row[2]) <= vectors and "cardinality(" in row[8] and "array_ndims(" in row[8])


def _index(row: Any) -> Index:
    name, unique, where, method, expressions, columns = row
    using = None if method == "btree" else method
    return Index(name, tuple(columns), tuple(expressions), unique, where, using)
