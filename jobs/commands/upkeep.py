"""`epwatch history`: copy, verify, prune and back up a history."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.options import history_option
from jobs.tables import say

if TYPE_CHECKING:
    from regress_db.history import History

_EXIT_FAULTS = 3


def _open(option: str | None) -> History:
    """The history that the option names, as it is: neither made nor migrated."""
    from regress_db.history import History
    from regress_db.locations import default_location

    return History.open(default_location(option).where, create=False, migrate_older=False)


@click.group()
def history() -> None:
    """Copy, verify, prune and back up the history."""


@history.command(short_help="Copy a history into another place.")
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
def copy(source: str, target: str) -> None:
    """Copy the history FROM into TO: files or PostgreSQL URLs, either way.

    TO must be new or an empty history. All or nothing: what was copied is read back and compared before it is kept.
    """
    from regress_db.upkeep import copy as copy_

    with _open(source) as opened:
        done = copy_(opened, target)
    say(f"copied {done.rows['runs']:,} runs, {sum(done.rows.values()):,} rows in all; content {done.digest[:16]}")


@history.command(short_help="Check a history for damage.")
@click.argument("where", required=False)
@history_option
def verify(where: str | None, db: str | None) -> int:
    """Check the history WHERE, else the one that --db names: pages, references, samples, nights.

    Says what is wrong, a sentence a line, and exits 3 then. Nothing is changed.
    """
    from regress_db.upkeep_verify import verify as verify_

    with _open(where or db) as opened:
        found = verify_(opened)
        name = opened.where
    for fault in found.faults:
        say(fault)
    size = f"{found.runs:,} runs, {found.values:,} values, {found.packed_phases:,} packed phases"
    say(f"{name}: {size}: {_counted(len(found.faults), 'fault') if found.faults else 'in order'}")
    return _EXIT_FAULTS if found.faults else 0


@history.command()
@click.option("--older-than", required=True, metavar="AGE", help="Of runs started before then: 90d, 12w or a date.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@history_option
def prune(older_than: str, dry_run: bool, db: str | None) -> None:
    """Drop the samples of old runs. Values, verdicts and everything else of those runs stay for good."""
    from regress_db.filters import parse_moment
    from regress_db.upkeep import prune as prune_

    before = parse_moment(older_than)
    with _open(db) as opened:
        done = prune_(opened, before, dry_run=dry_run)
    of_what = f"the samples of {_counted(done.runs, 'run')} from before {before:%Y-%m-%d %H:%M} UTC"
    say(f"{'would drop' if dry_run else 'dropped'} {of_what}: {_counted(done.packed_bytes, 'byte')}")
    if done.packed_bytes and not dry_run:
        say("the history reuses their room; `epwatch history copy` makes one that is smaller at once")


@history.command(short_help="Copy the history while others write to it.")
@click.argument("target", metavar="TO", type=click.Path(path_type=Path))
@history_option
def backup(target: Path, db: str | None) -> None:
    """Copy the history to the new file TO while others write to it."""
    from regress_db.locations import default_location
    from regress_db.upkeep import back_up

    size_bytes = back_up(default_location(db).where, target)
    say(f"{target}: {_counted(size_bytes, 'byte')}")


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
