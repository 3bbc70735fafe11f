"""`epwatch baseline`: named sets of runs against which others are judged."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from jobs.options import format_options, history_option
from jobs.places import open_history
from jobs.tables import Column, Format, as_json, as_objects, say, show, to_the_second

if TYPE_CHECKING:
    from regress_db.baselines import Baseline, BaselineSeries

Command = TypeVar("Command", bound=Callable[..., Any])


def who_and_why(required: bool = True) -> Callable[[Command], Command]:
    """`--who` and `--why`: what is normal never changes without a name and a reason."""

    def add(command: Command) -> Command:
        command = click.option("--why", required=required, help="The reason; kept in the history.")(command)
        return click.option("--who", default=user, help="Who does this. Default: the user's name.")(command)

    return add


def user() -> str:
    """The name of the user, or of nobody in particular where the system has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def _baseline_columns() -> list[Column[Baseline]]:
    return [
        Column("name", lambda row: row.name, "baseline"),
        Column("series", lambda row: len(row.series), "series", right=True),
        Column("runs", lambda row: row.runs, "runs", right=True),
        Column("set_at", lambda row: to_the_second(row.set_at), "set at (UTC)"),
        Column("set_by", lambda row: row.set_by, "by"),
        Column("reason", lambda row: row.reason, "why", long=True),
        Column("retired_at", lambda row: to_the_second(row.retired_at), "retired at (UTC)"),
        Column("retired_by", lambda row: row.retired_by, "by"),
        Column("retired_reason", lambda row: row.retired_reason, "why", long=True),
    ]


@click.group()
def baseline() -> None:
    """Set, list, show and retire baselines."""


@baseline.command("set", short_help="Make a baseline of runs.")
@click.argument("name")
@click.option("--night", metavar="ID", help="Take the night's ok runs; `latest` is the newest night.")
@click.option("--run", "runs", multiple=True, metavar="RUN", help="Take this run (the head of its id will do); repeat.")
@click.option("--latest", type=int, metavar="N", help="Take the latest N ok runs of each series.")
@click.option("--replace", is_flag=True, help="Retire the baseline that has the name now.")
@who_and_why()
@history_option
def set_(
    name: str,
    night: str | None,
    runs: tuple[str, ...],
    latest: int | None,
    replace: bool,
    who: str,
    why: str,
    db: str | None,
) -> None:
    """Make the baseline NAME of a night's runs, of given runs, or of each series' latest."""
    from regress_db.baselines import set_baseline

    with open_history(db) as history:
        made = set_baseline(
            history, name, who=who, why=why, night=night, runs=list(runs) or None, latest=latest, replace=replace
        )
    say(f"baseline {made.name}: {made.runs} runs in {len(made.series)} series")


@baseline.command("list")
@click.option("--retired", is_flag=True, help="Also those that were retired.")
@history_option
@format_options
def list_(retired: bool, db: str | None, form: Format) -> None:
    """List baselines."""
    from regress_db.baselines import list_baselines

    with open_history(db) as history:
        rows = list_baselines(history, retired=retired)
    columns = _baseline_columns()
    if form == "table" and not retired:
        columns = [column for column in columns if not column.name.startswith("retired")]
    show(rows, columns, form, empty="no baseline has been set")


@baseline.command("show", short_help="Show a baseline and its runs.")
@click.argument("name")
@history_option
@format_options
def show_(name: str, db: str | None, form: Format) -> None:
    """Show the baseline NAME: who set it, when, why, and its runs."""
    from regress_db.baselines import show_baseline

    with open_history(db) as history:
        found = show_baseline(history, name)
    columns: list[Column[BaselineSeries]] = [
        Column("case", lambda row: row.case, "case", long=True),
        Column("platform", lambda row: row.platform, "platform", long=True),
        Column("runs", lambda row: len(row.run_ids), "runs", right=True),
        Column("run_ids", lambda row: list(row.run_ids), "newest run", lambda row: row.run_ids[-1][:12]),
    ]
    if form == "json":
        head = as_objects([found], _baseline_columns())[0]
        say(as_json({**head, "series": as_objects(found.series, columns)}))
        return
    show(found.series, columns, form)
    if form == "table":
        say(f"\nset {found.set_at:%Y-%m-%dT%H:%M:%SZ} by {found.set_by}: {found.reason}")


@baseline.command(short_help="Retire a baseline.")
@click.argument("name")
@who_and_why()
@history_option
def retire(name: str, who: str, why: str, db: str | None) -> None:
    """Retire the baseline NAME: it stays in the history, and nothing is judged against it any more."""
    from regress_db.baselines import retire_baseline

    with open_history(db) as history:
        retire_baseline(history, name, who=who, why=why)
    say(f"baseline {name} is retired")
