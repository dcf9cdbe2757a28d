"""``tables``, ``describe``, ``head``: what tables there are, what one is made of, its first rows."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from deeplake_loader.cli.formats import chosen_format, format_option, write_rows
from deeplake_loader.cli.output import amount, print_json, print_table
from deeplake_loader.cli.program import Session, verb
from deeplake_loader.errors import NotFoundError
from deeplake_loader.types import Table, quote_identifier, quote_identifiers

if TYPE_CHECKING:
    from deeplake_loader.database import Database
    from deeplake_loader.inspection import Description


@verb("tables", example="deeplake-loader tables")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON.")
def tables_command(session: Session, as_json: bool) -> None:
    """The tables with their rows on this branch, and the bytes of their shards and vector files."""
    with session.open() as db:
        found = db.info().tables
    if as_json:
        print_json([asdict(table) for table in found])
        return
    rows = [[t.name, f"{t.rows:,}", amount(t.bytes), f"{len(t.columns)}"] for t in found]
    print_table(["table", "rows", "files", "columns"], rows, right=[1, 2, 3])


@verb("describe", example="deeplake-loader describe generations")
@click.argument("table")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON.")
def describe_command(session: Session, table: str, as_json: bool) -> None:
    """The columns of TABLE, its keys, constraints and indexes."""
    with session.open() as db:
        known = db.describe(find_table(db, table).name)
    if as_json:
        print_json(_described(known))
        return
    print_description(known)


def print_description(known: Description) -> None:
    """A table's columns, then a line for each key, constraint and index."""
    columns: list[dict[str, Any]] = _described(known)["columns"]
    rows = [[c["name"], c["type"], "" if c["nullable"] else "NOT NULL", c["default"] or ""] for c in columns]
    print_table(["column", "type", "null", "default"], rows)
    for line in _constraints(known):
        click.echo(line)


def find_table(db: Database, name: str) -> Table:
    """The definition of a table, whatever the case of its name.

    Raises:
        NotFoundError: there is none; lists those there are.
    """
    tables = db.tables()
    found = next((t for t in tables.values() if t.name.lower() == name.lower()), None)
    if found is None:
        raise NotFoundError(f"there is no table {name!r}; tables: {', '.join(tables) or 'none yet'}")
    return found


def _described(known: Description) -> dict[str, Any]:
    table = known.table
    columns = [
        {"name": c.name, "type": str(c.type), "nullable": c.nullable and c.name not in table.primary_key,
         "default": known.defaults.get(c.name), "generated": known.generated.get(c.name)}
        for c in table.columns
    ]  # fmt: skip
    return {
        "table": table.name, "columns": columns, "primary_key": table.primary_key,
        "unique": [asdict(u) for u in known.unique], "foreign_keys": [asdict(f) for f in known.foreign_keys],
        "checks": [asdict(c) for c in known.checks], "indexes": [asdict(i) for i in known.indexes],
    }  # fmt: skip


def _constraints(known: Description) -> list[str]:
    """A line for each key, constraint and index, as SQL writes it."""
    lines = [f"PRIMARY KEY ({quote_identifiers(known.table.primary_key)})"] if known.table.primary_key else []
    lines += [f"UNIQUE ({quote_identifiers(u.columns)})" for u in known.unique]
    lines += [
        f"FOREIGN KEY ({quote_identifiers(f.columns)}) REFERENCES {quote_identifier(f.table)}"
        f" ({quote_identifiers(f.targets)})"
        for f in known.foreign_keys
    ]
    lines += [f"CHECK ({c.condition})" for c in known.checks]
    for index in known.indexes:
        kind = f"{'UNIQUE ' if index.unique else ''}INDEX {quote_identifier(index.name)}"
        using = f" USING {index.using}" if index.using else ""
        lines.append(f"{kind}{using} ({', '.join(index.expressions)}){f' WHERE {index.where}' if index.where else ''}")
    return lines


@verb("head", example="deeplake-loader head generations -n 3 --where \"model_version = 'sdxl-1.0'\"")
@click.argument("table")
@click.option("-n", "count", default=10, show_default=True, type=click.IntRange(0, 1_000_000), help="Rows.")
@click.option("--columns", "-c", metavar="A,B", help="These columns alone.")
@click.option("--where", metavar="SQL", help="A condition on the rows.")
@format_option
@click.option("--at", metavar="REF", help="Read as of a tag, a commit id or a UTC time.")
def head_command(
    session: Session, table: str, count: int, columns: str | None, where: str | None, format_: str | None,
    output: str | None, at: str | None,
) -> None:  # fmt: skip
    """The first rows of TABLE in the order of its key. `show` draws their pictures."""
    with session.open(at=at) as db:
        definition = find_table(db, table)
        chosen = quote_identifiers(listed_columns(definition, columns)) if columns else "*"
        rows = db.execute(f"SELECT {chosen} {first_rows(definition, where)} LIMIT {count}")
        write_rows([rows], chosen_format(format_, output), output)


def listed_columns(table: Table, columns: str) -> list[str]:
    """The names of ``a,b`` as the table declares them.

    Raises:
        NotFoundError: the table has no such column.
    """
    found = []
    for name in columns.split(","):
        column = table.column(name.strip())
        if column is None:
            known = ", ".join(c.name for c in table.columns)
            raise NotFoundError(f"{table.name} has no column {name.strip()!r}; its columns are {known}")
        found.append(column.name)
    return found


def first_rows(table: Table, where: str | None) -> str:
    """``FROM ... ORDER BY the key``, with a condition that is given as SQL."""
    condition = f" WHERE ({where}\n)" if where else ""  # a comment at its end ends there
    return f"FROM {quote_identifier(table.name)}{condition} ORDER BY {quote_identifiers(table.primary_key)}"
