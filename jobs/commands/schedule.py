"""`epwatch nightly install` and `uninstall`: a plan that runs every night by itself.

Where Slurm's scrontab is on, it is used; elsewhere what cron or systemd needs is printed, to be pasted. Either way the
history knows from then on when a night is due, so that one that did not happen is seen.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from jobs.commands.baseline import user
from jobs.options import Command, history_option
from jobs.places import open_history
from jobs.tables import say

if TYPE_CHECKING:
    from jobs.schedule import Schedule

How = Literal["scrontab", "crontab", "systemd"]

_PLAN = click.argument("file", metavar="PLAN.toml", type=click.Path(path_type=Path))


def _named(_: click.Context, __: click.Parameter, who: str) -> str:
    if not who.strip():
        raise click.UsageError("--who is empty: say who does this")
    return who


_WHO = click.option("--who", default=user, callback=_named, help="Who does this. Default: the user's name.")


def _way(command: Command) -> Command:
    """`--scrontab`, `--crontab` and `--systemd`; the command gets `how`."""

    def choose(ctx: click.Context, option: click.Parameter, wanted: bool) -> None:
        if wanted and ctx.params.get("how") is not None:
            raise click.UsageError("--scrontab, --crontab and --systemd exclude each other")
        ctx.params.setdefault("how", None)
        if wanted:
            ctx.params["how"] = option.name

    for name, what in (
        ("systemd", "Print a systemd timer, to be pasted."),
        ("crontab", "Print a line of a crontab, to be pasted."),
        ("scrontab", "By Slurm's scrontab, or not at all."),
    ):
        command = click.option(f"--{name}", is_flag=True, expose_value=False, callback=choose, help=what)(command)
    return command


@click.command(short_help="Run a plan every night at a time.")
@_PLAN
@click.option(
    "--at", required=True, metavar="HH:MM", help="The time of day, by this machine's clock; scrontab's is Slurm's."
)
@_way
@click.option("--partition", metavar="NAME", help="Of the scrontab's job. Default: the cluster's.")
@click.option(
    "--time-limit",
    type=click.IntRange(min=1),
    metavar="MIN",
    help="Of the scrontab's job, which lives as long as its night. Default: the partition's.",
)
@_WHO
@history_option
def install(
    file: Path,
    at: str,
    how: How | None,
    partition: str | None,
    time_limit: int | None,
    who: str,
    db: str | None,
) -> None:
    """Run PLAN.toml every night at a time, in the folder that this is called in.

    Slurm's scrontab is used where it is on; doing so again replaces the plan's entry and touches no other line. Else a
    line for a crontab is printed. --db goes into the schedule; what the environment says here does not.
    """
    if (partition or time_limit) and how in ("crontab", "systemd"):
        raise click.UsageError(f"--partition and --time-limit are Slurm's, and go with --scrontab, not with --{how}")
    from jobs.plan import load
    from jobs.schedule import Schedule, nightly_command, shell_line, time_of_day

    plan = load(file)
    schedule = Schedule(plan.name, time_of_day(at), Path.cwd(), nightly_command(sys.executable, file, db))
    shell_line(schedule)

    from regress_db.schedules import set_schedule

    zone = local_zone()
    with open_history(db, plan, create=True) as history:
        if how in (None, "scrontab"):
            how = _into_scrontab(
                schedule, partition, time_limit, strict=how == "scrontab" or bool(partition or time_limit)
            )
        if how == "crontab":
            _print_crontab(schedule)
        elif how == "systemd":
            _print_units(schedule)
        set_schedule(history, plan.name, f"{schedule.at:%H:%M}", zone, who)
    _note(f"a night of plan {plan.name} is now due every day at {schedule.at:%H:%M}, time zone {zone or 'unknown'}")
    _note(f"it runs in {schedule.folder} and writes to {schedule.log}")
    if db is None and os.environ.get("EPWATCH_DB"):
        _note("EPWATCH_DB is set here, but the night has an environment of its own: set it there too, or give --db")


@click.command(short_help="Take back what install did.")
@_PLAN
@_WHO
@history_option
def uninstall(file: Path, who: str, db: str | None) -> None:
    """Take back what `install` did for PLAN.toml: its entry in the scrontab, and that nights of it are due."""
    from jobs.plan import load
    from jobs.schedule import ScheduleError

    plan = load(file)
    removed = _out_of_scrontab(plan.name)
    if removed:
        say(f"the entry of plan {plan.name} is gone from the scrontab")

    from regress_db.errors import NotFoundError
    from regress_db.schedules import retire_schedule

    retired = False
    with contextlib.suppress(NotFoundError), open_history(db, plan) as history:
        retired = retire_schedule(history, plan.name, who)
    if retired:
        say(f"no night of plan {plan.name} is due any more")
    if not removed and not retired:
        raise ScheduleError(f"plan {plan.name} is not installed")
    if not removed:
        _note(f"a line in a crontab, or the units epwatch-{plan.name}.*, are yours to remove")


def local_zone() -> str:
    """The name of this machine's time zone, "" where it has none."""
    from tzlocal import get_localzone_name

    try:
        return get_localzone_name() or ""
    except (LookupError, ValueError, OSError):
        return ""


def _into_scrontab(schedule: Schedule, partition: str | None, time_limit: int | None, *, strict: bool) -> How:
    """Enter the schedule into Slurm's scrontab; which way is left where there is none that can be used.

    strict: there is no other way.
    """
    from jobs.schedule import scrontab_lines, with_block
    from jobs.scrontab import NoScrontabError, read_table, write_table

    block = scrontab_lines(schedule, partition=partition, time_limit_min=time_limit)
    try:
        table = read_table()
    except NoScrontabError as error:
        if strict:
            raise
        _note(f"{error}; here is a line for a crontab")
        return "crontab"
    write_table(with_block(table, schedule.plan, block))
    say(f"Slurm's scrontab runs plan {schedule.plan} every day at {schedule.at:%H:%M} by the clock of its controller")
    return "scrontab"


def _out_of_scrontab(plan: str) -> bool:
    """Remove the plan's entry; whether there was one."""
    from jobs.schedule import without_block
    from jobs.scrontab import NoScrontabError, read_table, write_table

    try:
        table = read_table()
    except NoScrontabError:
        return False
    without = without_block(table, plan)
    if without == table:
        return False
    write_table(without)
    return True


def _print_crontab(schedule: Schedule) -> None:
    from jobs.schedule import crontab_lines

    say("\n".join(crontab_lines(schedule)))
    _note("paste these lines into the table that `crontab -e` shows; variables the night needs go above them")


def _print_units(schedule: Schedule) -> None:
    from jobs.schedule import systemd_units

    units = systemd_units(schedule)
    say("\n".join(f"# ~/.config/systemd/user/{name}\n{text}" for name, text in units.items()).rstrip())
    _note(
        f"put these into the files they name, then: systemctl --user daemon-reload && "
        f"systemctl --user enable --now {list(units)[1]} && loginctl enable-linger"
    )


def _note(words: str) -> None:
    """What goes with the text to be pasted, and must not get into it."""
    print(f"epwatch: {words}", file=sys.stderr)
