"""`epwatch nightly`: run a plan, judge it, report; and see, end or schedule its nights."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.commands.night_status import cancel, status
from jobs.commands.schedule import install, uninstall
from jobs.options import format_options, history_option, judging_options, spool_option
from jobs.tables import Format, say
from regress_db.wording import AUTO

if TYPE_CHECKING:
    from harness.case import Case
    from jobs.nightly import Night
    from jobs.plan import Plan
    from jobs.progress import Update
    from regress_db.history import History


class _PlanOrCommand(click.Group):
    """A group whose commands may be left out: `epwatch nightly PLAN.toml` runs the plan."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Anything but a command's name, or a plea for help, is for `run`."""
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            if re.fullmatch(r"\w[\w-]*", args[0]) and not Path(args[0]).exists():
                commands = ", ".join(sorted(self.commands))
                raise click.UsageError(f"there is no plan or command {args[0]!r}; commands are {commands}", ctx)
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Both ways of calling it."""
        formatter.write_usage("epwatch nightly", "PLAN.toml [OPTIONS]")
        formatter.write_usage("epwatch nightly", "COMMAND [ARGS]...", prefix="       ")


@click.group(cls=_PlanOrCommand)
def nightly() -> None:
    """Run the nightly plan PLAN.toml on its clusters, judge it and report; or see and steer its nights.

    `epwatch nightly run --help` tells the options of a night.
    """


@nightly.command(short_help="Run a plan, judge it and report.")
@click.argument("file", metavar="PLAN.toml", type=click.Path(path_type=Path))
@judging_options
@click.option("--new", is_flag=True, help="Begin a new night, and give up one that was left unfinished.")
@click.option("--no-wait", is_flag=True, help="Submit the jobs and leave; `epwatch collect PLAN.toml` does the rest.")
@click.option("--watch", is_flag=True, help="Show every job of the night, live.")
@history_option
@spool_option
@format_options
def run(
    file: Path,
    baseline: str | None,
    strict: bool,
    report_path: str | None,
    no_report: bool,
    new: bool,
    no_wait: bool,
    watch: bool,
    db: str | None,
    spool: str | None,
    form: Format,
) -> int:
    """Run the plan PLAN.toml on its clusters, judge it against its baseline, print one table, worst first, and report.

    A night whose command was killed is gone on with, unless --new is given; one that makes no sense any more is judged
    first, and a new one begun. Exits 0 when nothing regressed, 1 when something did, 3 when something planned has no
    valid result, 4 (--strict) when something stayed undecided.
    """
    if no_report and report_path:
        raise click.UsageError("--report and --no-report exclude each other")
    if no_wait and watch:
        raise click.UsageError("--no-wait and --watch exclude each other")
    if no_wait and (baseline or strict or report_path or no_report):
        raise click.UsageError(
            "--no-wait leaves judging to `epwatch collect`: give --baseline, --strict, --report or --no-report to that"
        )
    from jobs.plan import load

    plan = load(file)
    if no_wait and any(cluster.kind == "local" for cluster in plan.clusters):
        raise click.UsageError("--no-wait needs a queue, and the plan has a cluster of kind local, which has none")

    from jobs.busy import warn_if_busy
    from jobs.commands.judged_night import judge_and_show, judge_left
    from jobs.exclusive import one_night
    from jobs.judging import cases_to_confirm, rules_of, worst
    from jobs.night_session import begin, end_left, finish, jobs_folder_of, take_up
    from jobs.places import open_history, spool_folder

    with open_history(db, plan, create=True) as history:
        _check_baseline(history, plan, baseline)
        rules_of(history, plan)
        if any(cluster.kind == "local" for cluster in plan.clusters):
            warn_if_busy()
        where = spool_folder(spool, plan)

        def candidates(night: str) -> list[Case]:
            return cases_to_confirm(history, plan, night, baseline)

        with one_night(jobs_folder_of(plan)):
            codes = []
            left = end_left(plan, history, where, new=new)
            if left is not None:
                report = None if no_report else plan.plan.report
                codes = [judge_left(history, plan, left, baseline=baseline, strict=strict, report=report)]
            night = take_up(plan, history, where, candidates) or begin(plan, history, where, candidates)
            if no_wait:
                if not _submitted(night, history):
                    say(
                        f"night {night.name} is submitted: `epwatch nightly status {file}` shows it, "
                        f"`epwatch collect {file}` brings its results home and, when all are there, judges it"
                    )
                    return worst(codes)
            else:
                _wait(night, history, watch)
            report = None if no_report else report_path or plan.plan.report
            codes.append(
                judge_and_show(history, plan, night.name, baseline=baseline, strict=strict, report=report, form=form)
            )
            finish(night.folder)
            return worst(codes)


def _submitted(night: Night, history: History) -> bool:
    """Return when the clusters have the night's jobs; whether it is over already."""
    from jobs.night_session import advance_once
    from jobs.progress import progress

    with _left_as_told(night, history), progress(len(list(night.manifest.runs)), night.plan.name) as update:
        while not (over := advance_once(night, history)) and night.refusal:
            update(night.done, _what_goes_on(night))
            time.sleep(night.poll_s)
    return over


def _wait(night: Night, history: History, watch: bool) -> None:
    """Drive the night to its end."""
    from jobs.night_session import advance_once
    from jobs.progress import live, progress

    total = len(list(night.manifest.runs))
    shown: AbstractContextManager[Update] = live(night) if watch else progress(total, night.plan.name)
    with _left_as_told(night, history), shown as update:
        while not advance_once(night, history):
            update(night.done, _what_goes_on(night))
            time.sleep(night.poll_s)
        update(night.done, "measured")


@contextmanager
def _left_as_told(night: Night, history: History) -> Iterator[None]:
    """What interrupts the block leaves the night as it says it does."""
    from jobs.night_session import end

    try:
        yield
    except KeyboardInterrupt as interrupt:
        if night.measures_here or not night.begun:
            night.cancel()
            end(night.folder, history, "interrupted")
            words = f"night {night.name} keeps what it has measured, the rest is missing"
            if not night.begun:
                words = f"night {night.name} had no job in any queue yet, and is over"
        else:
            words = (
                f"the jobs of night {night.name} go on in the queue: run the plan again to go on with it, "
                f"`epwatch nightly cancel {night.plan.path}` to end it"
            )
        raise type(interrupt)(words) from None


def _what_goes_on(night: Night) -> str:
    """The night in a few words: the job that runs, or how many wait and run, or why none can be submitted."""
    if night.refusal:
        return f"{night.refusal}; it is tried again"
    views = night.views()
    flying = [view for view in views if view.state in ("running", "pending")]
    if len(flying) == 1 and night.measures_here:
        return f"{flying[0].job}, {flying[0].total} cases"
    running = sum(view.state == "running" for view in flying)
    waiting = sum(view.state in ("pending", "to be submitted") for view in views)
    return f"jobs: {running} running, {waiting} waiting"


def _check_baseline(history: History, plan: Plan, baseline: str | None) -> None:
    """Find out before the measuring, not after, that a baseline to judge against is not there."""
    from regress_db.baselines import show_baseline

    name = baseline or (plan.baseline_name if plan.baseline.policy == "named" else None)
    if name is not None and name != AUTO:
        show_baseline(history, name)


nightly.add_command(status)
nightly.add_command(cancel)
nightly.add_command(install)
nightly.add_command(uninstall)
