"""`epwatch tell`: tell of a judged night again, or see what would be told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.errors import EpwatchError
from jobs.options import history_option
from jobs.places import open_history
from jobs.tables import say

if TYPE_CHECKING:
    from jobs.plan import Plan
    from jobs.summary import NightSummary
    from regress_db.history import History


class NotToldError(EpwatchError):
    """Somebody who was to be told was not."""


@click.command()
@click.argument("night")
@click.argument("file", metavar="PLAN.toml", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Print what would be told, and to which services; tell nobody.")
@history_option
def tell(night: str, file: Path, dry_run: bool, db: str | None) -> None:
    """Tell of the night NIGHT (an id, or `latest` for the plan's newest) as [tell] of PLAN.toml says, now and whatever
    its `when` says.
    """
    from jobs.plan import load
    from jobs.plan_tell import filled
    from jobs.tell import message_of, services
    from jobs.tell import tell as tell_all

    plan = load(file)
    with open_history(db, plan) as history:
        summary = _summary(history, plan, None if night == "latest" else night)
    if dry_run:
        message = message_of(summary)
        say(f"{message.title}\n\n{message.text}\n")
        for one in services(plan.tell, os.environ):
            say(f"would not reach {one.to}: {one.why}" if one.why else f"would tell {one.to}")
        for name in filter(None, (plan.tell.markdown, plan.tell.junit)):
            say(f"would write {filled(name, night=summary.judged.verdict.night, plan=plan.name)}")
        return
    import msgspec

    told = tell_all(
        plan.name,
        msgspec.structs.replace(plan.tell, when="always"),
        summary.judged,
        report=summary.report,
        environ=os.environ,
        before=summary.before,
        hosts=summary.hosts,
        logs=summary.logs,
        absent=summary.absent,
    )
    for one in told:
        if not one.why:
            say(one.sentence)
    if not told:
        raise NotToldError(f"there is nobody to tell: {' and '.join(plan.tell.to_env) or 'tell.to_env'} holds no URL")
    missed = sum(bool(one.why) for one in told)
    if missed:
        raise NotToldError(f"{missed} of {len(told)} could not be told")


def _summary(history: History, plan: Plan, night: str | None) -> NightSummary:
    """The night and what belongs to it, from the history."""
    from jobs.judging import Judged, settle_night
    from jobs.plan_tell import filled
    from jobs.summary import NightSummary
    from regress_db.nights import hosts_of_night, judged_before
    from regress_db.nightverdict import stored_verdict
    from regress_db.schedules import absent_before

    if plan.baseline_name is None:
        verdict = stored_verdict(history, night or "latest")
    else:
        verdict = settle_night(history, plan, night, None)
    earlier = judged_before(history, verdict.night)
    report = filled(plan.plan.report, night=verdict.night, plan=plan.name) if plan.plan.report else None
    logs = Path(plan.plan.jobs) / verdict.night
    return NightSummary(
        plan=plan.name,
        judged=Judged(verdict, None, plan.verdict.strict),
        before=None if earlier is None else stored_verdict(history, earlier),
        hosts=hosts_of_night(history, verdict.night),
        report=report if report is not None and report.is_file() else None,
        logs=logs if logs.is_dir() else None,
        absent=absent_before(history, verdict.night),
    )
