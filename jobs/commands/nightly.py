"""`epwatch nightly`: run a plan, judge it, report."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.options import format_options, history_option, spool_option
from jobs.tables import Format, as_json, as_objects, say, show
from regress_db.wording import AUTO

if TYPE_CHECKING:
    from jobs.judging import Judged
    from jobs.plan import Plan
    from regress_db.history import History


@click.command()
@click.argument("file", metavar="PLAN.toml", type=click.Path(path_type=Path))
@click.option("--baseline", metavar="NAME", help="Judge against this baseline, whatever the plan says.")
@click.option("--strict", is_flag=True, help="Exit 4 where a series stayed inconclusive.")
@click.option(
    "--report", "report_path", metavar="PATH", help="Where the HTML report goes, instead of the plan's place."
)
@click.option("--no-report", is_flag=True, help="Write no HTML report.")
@history_option
@spool_option
@format_options
def nightly(
    file: Path,
    baseline: str | None,
    strict: bool,
    report_path: str | None,
    no_report: bool,
    db: str | None,
    spool: str | None,
    form: Format,
) -> int:
    """Run the plan PLAN.toml on its cluster, judge it against its baseline, print one table, worst first, and report.

    Exits 0 when nothing regressed, 1 when something did, 3 when something planned has no valid result, 4 (--strict)
    when something stayed undecided.
    """
    if no_report and report_path:
        raise click.UsageError("--report and --no-report exclude each other")
    from jobs.plan import load

    plan = load(file)

    from jobs.busy import warn_if_busy
    from jobs.judging import SERIES_COLUMNS, cases_to_confirm, judge_planned, rules_of
    from jobs.nightly import measure_night
    from jobs.places import open_history, spool_folder
    from jobs.progress import progress

    with open_history(db, plan, create=True) as history:
        _check_baseline(history, plan, baseline)
        rules_of(history, plan)
        warn_if_busy()
        total = len(plan.cases) * plan.runs_of_a_case
        with progress(total, plan.name) as update:
            night = measure_night(
                plan,
                history,
                spool_folder(spool, plan),
                update,
                lambda night: cases_to_confirm(history, plan, night, baseline),
            ).night
        judged = judge_planned(history, plan, night, baseline=baseline, strict=strict)
        written = None if no_report else _report(history, plan, night, report_path)
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
    return judged.exit_code


def _check_baseline(history: History, plan: Plan, baseline: str | None) -> None:
    """Find out before the measuring, not after, that a baseline to judge against is not there."""
    from regress_db.baselines import show_baseline

    name = baseline or (plan.baseline_name if plan.baseline.policy == "named" else None)
    if name is not None and name != AUTO:
        show_baseline(history, name)


def _report(history: History, plan: Plan, night: str, path: str | None) -> Path | None:
    """Write the HTML report; where it is, or None where the plan wants none."""
    from regress_db.errors import HistoryError
    from regress_db.report import write_report

    where = path or plan.plan.report.format(night=night, plan=plan.name)
    if not where:
        return None
    try:
        return write_report(history, night, Path(where), command=shlex.join(["epwatch", "nightly", plan.path]))
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
