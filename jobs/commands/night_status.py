"""`epwatch nightly status` and `epwatch nightly cancel`: a night on its way, and ending one for good."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.options import format_options, history_option, spool_option
from jobs.tables import Column, Format, as_json, as_objects, say, show

if TYPE_CHECKING:
    from jobs.night_jobs import JobView

plan_argument = click.argument("file", metavar="PLAN.toml", type=click.Path(path_type=Path))


@click.command(short_help="Show the jobs of the newest night.")
@plan_argument
@spool_option
@format_options
def status(file: Path, spool: str | None, form: Format) -> None:
    """Show the jobs of the plan's newest night: waiting, running, done, failed, and why in words.

    It reads only, and can be asked while the night runs or long after.
    """
    from jobs.night_session import clusters_of, jobs_folder_of, newest, own_plan
    from jobs.night_status import look_at
    from jobs.places import spool_folder
    from jobs.plan import load

    plan = load(file)
    folder = newest(jobs_folder_of(plan), plan.name)
    own = own_plan(folder, plan)
    seen = look_at(folder, own, clusters_of(own), spool_folder(spool, plan))
    if form == "json":
        head = {"night": folder.name, "state": seen.state, "done": seen.done, "total": seen.total}
        say(as_json({**head, "jobs": as_objects(seen.jobs, JOB_COLUMNS)}))
        return
    show(seen.jobs, JOB_COLUMNS, form)
    if form == "table":
        say(f"\nnight {folder.name} of plan {plan.name} is {seen.state}: {seen.done} of {seen.total} runs done")


@click.command(short_help="End the unfinished night for good.")
@plan_argument
@history_option
@spool_option
def cancel(file: Path, db: str | None, spool: str | None) -> None:
    """End the plan's unfinished night: its jobs are cancelled, what it measured is kept, the rest stays missing."""
    from jobs.exclusive import one_night
    from jobs.night_session import NoNight, give_up, jobs_folder_of, unfinished
    from jobs.places import open_history, spool_folder
    from jobs.plan import load

    plan = load(file)
    with open_history(db, plan, create=True) as history, one_night(jobs_folder_of(plan)):
        left = unfinished(jobs_folder_of(plan), plan.name)
        if left is None:
            raise NoNight(f"plan {plan.name} has no unfinished night in {jobs_folder_of(plan)}")
        give_up(left, plan, history, spool_folder(spool, plan), "cancelled")
        say(f"night {left.name} is cancelled; what it measured is kept")


JOB_COLUMNS: list[Column[JobView]] = [
    Column("job", lambda row: row.job, "job"),
    Column("cluster", lambda row: row.cluster, "cluster"),
    Column("state", lambda row: row.state, "state"),
    Column("attempt", lambda row: row.attempt, "attempt", right=True),
    Column("scheduler_id", lambda row: row.scheduler_id, "Slurm job"),
    Column("hosts", lambda row: list(row.hosts), "nodes", lambda row: ",".join(row.hosts)),
    Column("done", lambda row: row.done, "runs done", lambda row: f"{row.done} of {row.total}", right=True),
    Column("total", lambda row: row.total),
    Column("words", lambda row: row.words, "why", long=True),
]
"""The columns of a night's jobs."""
