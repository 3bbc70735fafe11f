"""A night that is over is judged, shown, reported and told of: the end of `epwatch nightly` and `epwatch collect`."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.plan_tell import filled
from jobs.tables import Format, as_json, as_objects, say, show

if TYPE_CHECKING:
    from jobs.judging import Judged
    from jobs.night_session import LeftNight
    from jobs.plan import Plan
    from regress_db.history import History


def judge_and_show(
    history: History,
    plan: Plan,
    night: str,
    *,
    baseline: str | None = None,
    strict: bool = False,
    report: str | None,
    form: Format,
) -> int:
    """Judge the night, print one table, worst first, write the report, tell; the exit code.

    baseline: overrides the plan's policy. report: where the HTML goes, `{night}` and `{plan}` filled in.
    """
    from jobs.judging import SERIES_COLUMNS, judge_planned

    judged = judge_planned(history, plan, night, baseline=baseline, strict=strict)
    written = _report(history, plan, night, report) if report else None
    if form == "json":
        say(as_json({**_head(judged, written), "series": as_objects(judged.verdict.series, SERIES_COLUMNS)}))
    else:
        show(judged.verdict.series, SERIES_COLUMNS, form)
    if form == "table":
        for one in judged.told_in_words:
            say(f"\n{one}")
        say(f"\n{judged.summary}")
        if judged.told_in_words:
            say(f"logs: {Path(plan.plan.jobs) / night}")
        if written:
            say(f"report: {written}")
    _tell(history, plan, judged, written)
    return judged.exit_code


def judge_left(
    history: History, plan: Plan, left: LeftNight, *, baseline: str | None, strict: bool, report: str | None
) -> int:
    """Judge a night that an earlier command left, before this command's own, whose table stdout is for: a line on
    stderr, the report, tell. The exit code; 0 for a night that was given up, since a new one takes its place.
    """
    from jobs.judging import judge_planned
    from jobs.night_session import finish

    judged = judge_planned(history, plan, left.folder.name, baseline=baseline, strict=strict)
    written = _report(history, plan, left.folder.name, report) if report else None
    print(f"epwatch: {judged.summary}{f' Report: {written}' if written else ''}", file=sys.stderr)
    _tell(history, plan, judged, written)
    finish(left.folder, left.given_up)
    return 0 if left.given_up else judged.exit_code


def _tell(history: History, plan: Plan, judged: Judged, report: Path | None) -> None:
    """Tell those whom the plan names, where there is something to say."""
    from jobs.tell import tell
    from regress_db.nights import hosts_of_night, judged_before
    from regress_db.nightverdict import stored_verdict
    from regress_db.schedules import absent_before

    night = judged.verdict.night
    earlier = judged_before(history, night)
    tell(
        plan.name,
        plan.tell,
        judged,
        report=report,
        environ=os.environ,
        before=None if earlier is None else stored_verdict(history, earlier),
        hosts=hosts_of_night(history, night),
        logs=Path(plan.plan.jobs) / night,
        absent=absent_before(history, night),
    )


def _report(history: History, plan: Plan, night: str, path: str) -> Path | None:
    """Write the HTML report; where it is, None where that failed."""
    from regress_db.errors import HistoryError
    from regress_db.web.report import write_report

    where = filled(path, night=night, plan=plan.name)
    try:
        return write_report(history, night, where, command=shlex.join(["epwatch", "nightly", plan.path]))
    except HistoryError as error:
        # The verdict stands without its report.
        print(f"epwatch: {error}", file=sys.stderr)
        return None


def _head(judged: Judged, report: Path | None) -> dict[str, object]:
    """The night's part of the JSON."""
    verdict = judged.verdict
    return {
        "night": verdict.night,
        "plan": verdict.plan,
        "baseline": verdict.baseline,
        "baseline_made": judged.baseline_made,
        "judge": verdict.judge,
        "headline": verdict.headline,
        "level": verdict.level,
        "aa_series": verdict.aa_series,
        "aa_alarms": verdict.aa_alarms,
        "remarks": verdict.remarks,
        "findings": [dataclasses.asdict(finding) for finding in verdict.findings],
        "exit_code": judged.exit_code,
        "report": None if report is None else str(report),
    }
