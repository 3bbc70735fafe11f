"""`epwatch collect`: bring records home, and go on with a night that was submitted and left."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.options import format_options, history_option, judging_options, spool_option
from jobs.places import open_history, spool_folder
from jobs.tables import Column, Format, say, show

if TYPE_CHECKING:
    from jobs.plan import Plan
    from regress_db.history import History

_EXIT_QUARANTINE = 3


@click.command()
@click.argument("file", metavar="[PLAN.toml]", type=click.Path(path_type=Path), required=False)
@judging_options
@history_option
@spool_option
@format_options
def collect(
    file: Path | None,
    baseline: str | None,
    strict: bool,
    report_path: str | None,
    no_report: bool,
    db: str | None,
    spool: str | None,
    form: Format,
) -> int:
    """Ingest the records that lie in the spool; with a plan, go one look further with its unfinished night.

    That settles jobs that have ended, submits what is still owed, and when all is measured judges the night and exits
    as `epwatch nightly` would; what is missing of a night that is too old to go on with, or whose plan or code have
    changed since, stays missing. Without a plan it exits 3 when a record could not be read and went to quarantine.
    """
    if no_report and report_path:
        raise click.UsageError("--report and --no-report exclude each other")
    if file is None and (baseline or strict or report_path or no_report):
        raise click.UsageError("--baseline, --strict, --report and --no-report are about a night: name its PLAN.toml")
    from jobs.plan import load

    if file is None:
        folder = spool_folder(spool)
        if spool and not folder.is_dir():
            raise click.UsageError(f"there is no spool at {folder}")
        with open_history(db, create=True) as history:
            return _ingest(history, folder, form)
    plan = load(file)
    with open_history(db, plan, create=True) as history:
        report = None if no_report else report_path or plan.plan.report
        return _go_on(history, plan, spool_folder(spool, plan), baseline, strict, report, form)


def _ingest(history: History, folder: Path, form: Format) -> int:
    from regress_db.ingest import collect as ingest

    done = ingest(history, folder)
    rows = [(run, "accepted", "") for run in done.accepted] + [(run, "already", "") for run in done.already]
    rows += [(file.name, "quarantine", reason) for file, reason in done.quarantined]
    columns: list[Column[tuple[str, str, str]]] = [
        Column("record", lambda row: row[0], "record"),
        Column("outcome", lambda row: row[1], "outcome"),
        Column("reason", lambda row: row[2], "reason", long=True),
    ]
    show(rows, columns, form, empty=f"no records lie in {folder}")
    return _EXIT_QUARANTINE if done.quarantined else 0


def _go_on(
    history: History,
    plan: Plan,
    folder: Path,
    baseline: str | None,
    strict: bool,
    report: str | None,
    form: Format,
) -> int:
    from jobs.commands.judged_night import judge_and_show
    from jobs.commands.night_status import JOB_COLUMNS
    from jobs.exclusive import one_night
    from jobs.judging import cases_to_confirm
    from jobs.night_session import LeftNight, advance_once, end_left, finish, jobs_folder_of, take_up
    from jobs.spool import bring_home

    bring_home(history, folder)
    with one_night(jobs_folder_of(plan)):
        left = end_left(plan, history, folder)
        if left is None:
            night = take_up(plan, history, folder, lambda night: cases_to_confirm(history, plan, night, baseline))
            if night is None:
                where = jobs_folder_of(plan)
                print(
                    f"epwatch: plan {plan.name} has no unfinished night in {where}: start one with `epwatch nightly`",
                    file=sys.stderr,
                )
                return 0
            while not (over := advance_once(night, history)) and night.in_doubt:
                time.sleep(night.poll_s)
            if not over:
                views = night.views()
                show(views, JOB_COLUMNS, form)
                if form == "table":
                    done, total = sum(view.done for view in views), sum(view.total for view in views)
                    say(f"\nnight {night.name} goes on: {done} of {total} runs done")
                return 0
            left = LeftNight(night.folder, "")
        code = judge_and_show(
            history, plan, left.folder.name, baseline=baseline, strict=strict, report=report, form=form
        )
        finish(left.folder, left.given_up)
        return code
