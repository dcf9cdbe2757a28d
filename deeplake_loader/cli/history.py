"""Branches, tags and commits: ``branch``, ``branches``, ``checkout``, ``merge``, ``diff``, ``log``, ``tag``, ``tags``,
``revert``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from deeplake_loader.cli.codes import Code
from deeplake_loader.cli.output import note, print_facts, print_json, print_table
from deeplake_loader.cli.program import Session, verb
from deeplake_loader.cli.values import cell
from deeplake_loader.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deeplake_loader.merging.diff import Change, Counts
    from deeplake_loader.merging.merge import Conflict, MergeResult

_JSON = click.option("--json", "as_json", is_flag=True, help="A line of JSON.")


@verb("branch", example="deeplake-loader branch experiment/ddim --from main --checkout")
@click.argument("name")
@click.option("--from", "from_", metavar="REF", help="A branch, tag, commit id or time. Default: this branch as it is.")
@click.option("--checkout", "switch", is_flag=True, help="And check it out.")
@click.option("--delete", "-d", is_flag=True, help="Forget the branch instead.")
@click.option("--rename", "-m", metavar="NEW", help="Give the branch another name instead.")
def branch_command(
    session: Session, name: str, from_: str | None, switch: bool, delete: bool, rename: str | None
) -> None:
    """Make branch NAME; it copies no rows and no bytes."""
    if sum((delete, rename is not None, from_ is not None or switch)) > 1:
        raise click.UsageError("give one of --delete, --rename, or --from and --checkout")
    with session.open(read_only=False) as db:
        if delete:
            if db.current_branch == name != "main":
                db.checkout("main")
            db.delete_branch(name)
            if session.remembered() == name:
                session.remember("main")
        elif rename is not None:
            db.rename_branch(name, rename)
            if session.remembered() == name:
                session.remember(rename)
        else:
            db.branch(name, from_=from_)
    if switch:
        session.remember(name)


@verb("branches", example="deeplake-loader branches")
@_JSON
def branches_command(session: Session, as_json: bool) -> None:
    """Every branch, main first; * marks the one that commands work on."""
    with session.open() as db:
        found = db.branches()
    if as_json:
        print_json([asdict(branch) for branch in found])
        return
    rows = [["*" if b.current else "", b.name, f"{b.created_at:%Y-%m-%d %H:%M:%S}"] for b in found]
    print_table(["", "branch", "made (UTC)"], rows)


@verb("checkout", example="deeplake-loader checkout main")
@click.argument("name")
def checkout_command(session: Session, name: str) -> None:
    """Let later commands on this store work on branch NAME.

    Remembered for your user, in $XDG_STATE_HOME/deeplake_loader; --branch and $DEEPLAKE_BRANCH go before it.
    """
    with Session(session.store, name, session.named).open():
        session.remember(name)
    note(f"on branch {name}")


@verb(
    "merge", example="deeplake-loader merge experiment --into main --dry-run",
    no="the branches conflict: nothing was changed, the rows are listed",
)  # fmt: skip
@click.argument("source")
@click.option("--into", metavar="BRANCH", help="Default: this branch.")
@click.option(
    "--on-conflict", type=click.Choice(["raise", "ours", "theirs"]), default="raise", show_default=True,
    help="Whose row stays where both changed it: the target's is ours.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Change nothing, tell what would be.")
@click.option("--message", "-m", help="The commit's message.")
@_JSON
def merge_command(
    session: Session, source: str, into: str | None, on_conflict: Any, dry_run: bool, message: str | None, as_json: bool
) -> int:
    """Bring what branch SOURCE changed into another, in one commit: three-way, row by row."""
    with session.open(read_only=False) as db:
        try:
            result = db.merge(source, into, on_conflict=on_conflict, dry_run=dry_run, message=message)
        except ConflictError as error:
            _print_conflicts(error.conflicts, as_json)  # type: ignore[arg-type]
            note(f"Error: {' '.join(str(error).split())}; --on-conflict ours or theirs settles them")
            return Code.NO
        _print_merge(result, as_json, dry_run)
        return Code.NO if dry_run and result.conflicts and on_conflict == "raise" else Code.DONE


def _print_merge(result: MergeResult, as_json: bool, dry_run: bool) -> None:
    if as_json:
        counts = {name: asdict(found) for name, found in result.tables.items()}
        conflicts = [_conflict(c) for c in result.conflicts]
        print_json({"commit": result.commit, "added": result.added, "changed": result.changed,
                    "removed": result.removed, "tables": counts, "conflicts": conflicts})  # fmt: skip
        return
    what = "dry run" if dry_run else result.commit or "nothing to merge"
    print_facts([("commit", what), ("added", f"{result.added:,}"), ("changed", f"{result.changed:,}"),
                 ("removed", f"{result.removed:,}")])  # fmt: skip
    if result.conflicts:
        click.echo()
        _print_conflicts(result.conflicts, as_json=False)


def _print_conflicts(conflicts: Sequence[Conflict], as_json: bool) -> None:
    if as_json:
        print_json({"commit": None, "conflicts": [_conflict(c) for c in conflicts]})
        return
    rows = [[c.table, cell(c.key), c.reason, _changed(c.base, c.ours), _changed(c.base, c.theirs)] for c in conflicts]
    print_table(["table", "key", "reason", "ours", "theirs"], rows)


def _conflict(conflict: Conflict) -> dict[str, Any]:
    names = ("table", "key", "reason", "base", "ours", "theirs")
    return {name: getattr(conflict, name) for name in names}


def _changed(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    """The columns of a row that differ from its base."""
    if after is None:
        return "removed"
    return ", ".join(f"{k}={cell(v)}" for k, v in after.items() if before is None or before.get(k) != v) or "unchanged"


@verb("diff", example="deeplake-loader diff main experiment --rows", no="with --exit-code: they differ")
@click.argument("a")
@click.argument("b")
@click.option("--table", "-t", help="This table alone.")
@click.option("--rows", is_flag=True, help="Each row that differs, not their counts.")
@click.option("--exit-code", is_flag=True, help="End with 1 where anything differs.")
@click.option("--json", "as_json", is_flag=True, help="JSON: a line of counts, or a line a row.")
def diff_command(
    session: Session, a: str, b: str, table: str | None, rows: bool, exit_code: bool, as_json: bool
) -> int:
    """What was added, changed and removed from A to B: branches, tags, commit ids or UTC times."""
    with session.open() as db:
        found = db.diff(a, b, table)
        if rows:
            _print_changes(list(found), as_json)
        elif as_json:
            print_json({name: asdict(counts) for name, counts in found.counts.items()})
        else:
            _print_counts(found.counts)
        return Code.NO if exit_code and len(found) else Code.DONE


def _print_counts(counts: Mapping[str, Counts]) -> None:
    listed = [[name, f"{c.added:,}", f"{c.changed:,}", f"{c.removed:,}"] for name, c in counts.items()]
    print_table(["table", "added", "changed", "removed"], listed, right=[1, 2, 3])


def _print_changes(changes: Sequence[Change], as_json: bool) -> None:
    if as_json:
        names = ("table", "key", "kind", "before", "after")
        for change in changes:
            print_json({name: getattr(change, name) for name in names})
        return
    rows = [[c.table, cell(c.key), c.kind, _told(c)] for c in changes]
    print_table(["table", "key", "change", "columns"], rows)


def _told(change: Change) -> str:
    """The columns of a row that were set."""
    return "" if change.after is None else _changed(change.before, change.after)


@verb("log", example="deeplake-loader log -n 5")
@click.argument("name", required=False, metavar="[BRANCH]")
@click.option("-n", "count", type=click.IntRange(min=1), help="The newest so many.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON a commit.")
def log_command(session: Session, name: str | None, count: int | None, as_json: bool) -> None:
    """The commits of a branch, newest first, with the rows each one added, changed and removed."""
    with session.open() as db:
        commits = db.log(name, limit=count)
    if as_json:
        for commit in commits:
            changes = None if commit.changes is None else {t: asdict(c) for t, c in commit.changes.items()}
            names = ("id", "seq", "created_at", "author", "branch", "message")
            print_json({**{n: getattr(commit, n) for n in names}, "changes": changes})
        return
    rows = [
        [c.id[:12], f"{c.created_at:%Y-%m-%d %H:%M:%S}", cell(c.author or ""), c.branch, _counts(c.changes),
         cell(c.message or "")]
        for c in commits
    ]  # fmt: skip
    print_table(["commit", "time (UTC)", "author", "branch", "changes", "message"], rows)


def _counts(changes: Mapping[str, Counts] | None) -> str:
    if changes is None:
        return "forgotten"
    return ", ".join(f"{name} +{c.added} ~{c.changed} -{c.removed}" for name, c in changes.items())


@verb("tag", example='deeplake-loader tag release-1 --at main -m "the first set"')
@click.argument("name")
@click.option("--at", metavar="REF", help="A branch, tag, commit id or UTC time. Default: this branch as it is.")
@click.option("--message", "-m", help="Kept beside it.")
@click.option("--delete", "-d", is_flag=True, help="Forget the tag instead.")
def tag_command(session: Session, name: str, at: str | None, message: str | None, delete: bool) -> None:
    """Name a point of history, which then stays readable."""
    if delete and (at is not None or message is not None):
        raise click.UsageError("--delete takes no --at and no --message")
    with session.open(read_only=False) as db:
        if delete:
            db.untag(name)
        else:
            db.tag(name, at, message=message)


@verb("tags", example="deeplake-loader tags")
@_JSON
def tags_command(session: Session, as_json: bool) -> None:
    """Every tag, oldest first."""
    with session.open() as db:
        found = db.tags()
    if as_json:
        print_json([asdict(tag) for tag in found])
        return
    rows = [[t.name, t.branch, f"{t.seq}", f"{t.created_at:%Y-%m-%d %H:%M:%S}", cell(t.message or "")] for t in found]
    print_table(["tag", "branch", "commit", "set (UTC)", "message"], rows, right=[2])


@verb("revert", example="deeplake-loader revert v1")
@click.argument("to", metavar="REF")
@click.option("--message", "-m", help="The commit's message.")
@_JSON
def revert_command(session: Session, to: str, message: str | None, as_json: bool) -> None:
    """Give the branch the rows it had at REF, in a commit of its own; history goes on."""
    with session.open(read_only=False) as db:
        _print_merge(db.revert(to, message=message), as_json, dry_run=False)
