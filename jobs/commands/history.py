"""`epwatch trend`, `runs`, `nights`, `show`, `compare`, `report`: asking the history."""

from __future__ import annotations

import dataclasses
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.case import PHASES
from jobs.options import format_options, history_option, selection_options
from jobs.places import open_history
from jobs.tables import Column, Format, as_json, change, figure, number, print_table, say, show, to_the_second

if TYPE_CHECKING:
    from regress_db.aggregation import TrendGroup
    from regress_db.details import RankDetail
    from regress_db.environments import Difference
    from regress_db.queries import NightLine, RunLine, TrendPoint
    from regress_db.selection import Selection
    from regress_db.sides import ComparedSeries, ComparedValue, RunComparison, SetComparison

_ID_SHOWN = 12
_GROUP_SHOWN = 30
_FEW_SERIES = 4
"""So many are drawn on a terminal unasked: two cases, both phases."""


@click.command()
@selection_options
@click.option("--phase", type=click.Choice(["dispatch", "combine"]), help="Only this phase.")
@click.option("--metric", default="latency_us", show_default=True, help="What to follow.")
@click.option(
    "--by",
    type=click.Choice(["night", "week", "commit", "node", "environment"]),
    help="One number for all runs of a series that share this, instead of one for each run.",
)
@click.option(
    "--as",
    "aggregate",
    type=click.Choice(["median", "min", "max", "mean", "count"]),
    default="median",
    show_default=True,
    help="Which number, with --by.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the newest N runs, or groups, of each series.")
@click.option(
    "--plot/--no-plot",
    default=None,
    help="Draw the series instead of listing their runs. Default: on a terminal, where they are few.",
)
@history_option
@format_options
def trend(
    selection: Selection,
    phase: Any,
    metric: str,
    by: Any,
    aggregate: Any,
    limit: int | None,
    plot: bool | None,
    db: str | None,
    form: Format,
) -> None:
    """Show a metric through time, series by series, oldest first.

    CASE is a pattern on the case's key: * is any text, ? any character, and one with neither matches every key that
    contains it. FILTER is a field, an operator (= != ~ >= <= > <) and a value: mode=ll 'ranks>=16' dtype=bf16,fp8
    node~gpu0*. Quote > and <, which the shell would take.
    """
    selection = dataclasses.replace(selection, limit=limit)
    if plot and form != "table":
        raise click.UsageError("--plot is for people; --json, --csv and --parquet are for programs: choose one")
    if plot is not False and form == "table":
        drawn = _drawn(selection, phase, metric, by, aggregate, db, asked=plot is True)
        if drawn:
            say(drawn)
            return
    if by is not None:
        _trend_by(selection, phase, metric, by, aggregate, db, form)
        return
    from regress_db.queries import trend as ask

    with open_history(db) as history:
        points = ask(history, selection, metric=metric, phase=phase)
    columns: list[Column[TrendPoint]] = [
        Column("case", lambda row: row.case, "case", long=True),
        Column("platform", lambda row: row.platform),
        Column("phase", lambda row: row.phase, "phase"),
        Column("started_at", lambda row: to_the_second(row.started_at), "started (UTC)"),
        Column("night", lambda row: row.night),
        Column("run_id", lambda row: row.run_id, "run", lambda row: row.run_id[:_ID_SHOWN]),
        Column("commit", lambda row: row.commit, "commit", lambda row: row.commit[:_ID_SHOWN]),
        Column("environment", lambda row: row.environment),
        Column("metric", lambda row: row.metric),
        Column("value", lambda row: row.value, metric, lambda row: figure(row.value), right=True),
    ]
    show(points, columns, form, empty="no run matches")


def _drawn(
    selection: Selection, phase: Any, metric: str, by: Any, aggregate: Any, db: str | None, *, asked: bool
) -> str:
    """The series as plots; "" where the table is to be shown instead. Raises `UsageError` where a plot was asked for
    that cannot be.
    """
    from jobs import plots

    if not asked and not (sys.stdout.isatty() and plots.can_draw()):
        return ""
    from regress_db.queries import metric_numbers
    from regress_db.web.views import asked as asking
    from regress_db.web.views.serieslines import MOST_SERIES, Asked, gather

    why_not = ""
    if by not in (None, "night", "commit") or aggregate != "median":
        why_not = "--plot draws runs, or medians by night or commit"
    elif selection.limit is not None or any(one.field not in asking.OF_SERIES for one in selection.filters):
        why_not = "--plot draws whole series: choose them by fields of the case or by platform, and times by --since"
    elif not plots.can_draw():
        why_not = f"--plot needs a terminal in UTF-8, this one is in {sys.stdout.encoding}"
    if why_not:
        if asked:
            raise click.UsageError(why_not)
        return ""
    with open_history(db) as history:
        with history.read() as connection:
            metric_numbers(connection, metric)
            pairs = [
                pair
                for pair in asking.pairs(connection)
                if asking.accepted(selection.filters, pair.case, pair.platform)
            ]
        names = asking.names_of(pairs, PHASES if phase is None else (phase,))
        if not names or len(names) > (MOST_SERIES if asked else _FEW_SERIES):
            if asked:
                raise click.UsageError(f"{len(names)} series match; --plot draws 1 to {MOST_SERIES}: choose among them")
            return ""
        view = gather(
            history,
            Asked(names=tuple(names), metric=metric, by=by or "run", since=selection.since, until=selection.until),
        )
    return plots.drawn(view)


def _trend_by(
    selection: Selection, phase: Any, metric: str, by: Any, aggregate: Any, db: str | None, form: Format
) -> None:
    """The trend in groups."""
    from regress_db.aggregation import trend_by

    with open_history(db) as history:
        groups = trend_by(history, by, selection, aggregate=aggregate, metric=metric, phase=phase)
    columns: list[Column[TrendGroup]] = [
        Column("case", lambda row: row.case, "case", long=True),
        Column("platform", lambda row: row.platform),
        Column("phase", lambda row: row.phase, "phase"),
        Column("by", lambda row: row.by),
        Column("group", lambda row: row.group, by, lambda row: row.group[:_GROUP_SHOWN] or "(none)"),
        Column("started_at", lambda row: to_the_second(row.started_at), "first run (UTC)"),
        Column("runs", lambda row: row.runs, "runs", right=True),
        Column("metric", lambda row: row.metric),
        Column("aggregate", lambda row: row.aggregate),
        Column("value", lambda row: row.value, f"{aggregate} {metric}", lambda row: figure(row.value), right=True),
    ]
    show(groups, columns, form, empty="no run matches")


@click.command()
@selection_options
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, metavar="N", help="The newest N.")
@history_option
@format_options
def runs(selection: Selection, limit: int, db: str | None, form: Format) -> None:
    """List runs, newest first. CASE and FILTER are as for `epwatch trend`; outcome=failed lists what went wrong."""
    from regress_db.queries import runs as ask

    with open_history(db) as history:
        lines = ask(history, dataclasses.replace(selection, limit=limit))
    columns: list[Column[RunLine]] = [
        Column("run_id", lambda row: row.run_id, "run", lambda row: row.run_id[:_ID_SHOWN]),
        Column("started_at", lambda row: to_the_second(row.started_at), "started (UTC)"),
        Column("night", lambda row: row.night),
        Column("case", lambda row: row.case, "case", long=True),
        Column("platform", lambda row: row.platform),
        Column("hosts", lambda row: list(row.hosts)),
        Column("commit", lambda row: row.commit, "commit", lambda row: row.commit[:_ID_SHOWN]),
        Column(
            "dispatch_us", lambda row: row.dispatch_us, "dispatch µs", lambda row: number(row.dispatch_us), right=True
        ),
        Column("combine_us", lambda row: row.combine_us, "combine µs", lambda row: number(row.combine_us), right=True),
        Column("dispatch_gbs", lambda row: row.dispatch_gbs),
        Column("combine_gbs", lambda row: row.combine_gbs),
        Column("outcome", lambda row: row.outcome, "outcome"),
        Column("failure", lambda row: row.failure),
    ]
    show(lines, columns, form, empty="no run matches")


@click.command()
@click.option("--limit", type=click.IntRange(1), default=30, show_default=True, metavar="N", help="The newest N.")
@history_option
@format_options
def nights(limit: int, db: str | None, form: Format) -> None:
    """List nights, newest first: what was planned, what came of it, what is missing, and which did not happen."""
    from regress_db.queries import nights as ask

    with open_history(db) as history:
        lines = ask(history, limit, now=datetime.now(UTC))
    columns: list[Column[NightLine]] = [
        Column("night", lambda row: row.night, "night"),
        Column("plan", lambda row: row.plan, "plan"),
        Column("started_at", lambda row: to_the_second(row.started_at), "started (UTC)"),
        Column("finished_at", lambda row: to_the_second(row.finished_at), "finished (UTC)"),
        Column("judged_at", lambda row: to_the_second(row.judged_at)),
        Column("planned", lambda row: row.planned, "planned", right=True),
        Column("ok", lambda row: row.ok, "ok", right=True),
        Column("not_ok", lambda row: row.not_ok, "not ok", right=True),
        Column("missing", lambda row: row.missing, "missing", right=True),
        Column("state", lambda row: row.state, "state", lambda row: _state(row)),
        Column("expected_at", lambda row: to_the_second(row.expected_at)),
        Column(
            "notes",
            lambda row: list(row.notes),
            "notes" if any(line.notes for line in lines) else None,
            lambda row: "; ".join(row.notes),
        ),
    ]
    show(lines, columns, form, empty="there is no night yet")


def _state(row: NightLine) -> str:
    """A night's state; of one that did not happen, when it was to."""
    return row.state if row.expected_at is None else f"{row.state}, expected {row.expected_at:%Y-%m-%d %H:%M} UTC"


def _metric_columns() -> list[Column[tuple[str, str, float]]]:
    """Phase, metric and value, one number a line."""
    return [
        Column("phase", lambda row: row[0], "phase"),
        Column("metric", lambda row: row[1], "metric"),
        Column("value", lambda row: row[2], "value", lambda row: figure(row[2]), right=True),
    ]


@click.command("show")
@click.argument("run", metavar="RUN")
@history_option
@format_options
def show_(run: str, db: str | None, form: Format) -> None:
    """Show everything about RUN but its samples; the head of its id will do, or `latest`."""
    from regress_db.details import show as ask
    from regress_db.environments import flatten

    with open_history(db) as history:
        found = ask(history, run)
    values = [(phase.phase, name, value) for phase in found.phases for name, value in phase.values.items()]
    if form == "json":
        say(as_json(found))
        return
    if form != "table":
        show(values, _metric_columns(), form)
        return
    facts: dict[str, Any] = {
        "run": found.run_id,
        "case": found.case,
        "platform": found.platform,
        "night": f"{found.night}, repeat {found.repeat}" if found.night else None,
        "time": f"{found.started_at:%Y-%m-%dT%H:%M:%SZ} to {found.ended_at:%Y-%m-%dT%H:%M:%SZ}",
        "hosts": ", ".join(f"{host} (ranks {', '.join(map(str, ranks))})" for host, ranks in found.ranks_on.items()),
        "launched by": found.launcher,
        "job": found.scheduler_job,
        "attempt": None if found.attempt is None else str(found.attempt),
        "protocol": f"{found.warmup} warm-up, {found.iters} timed iterations",
        "outcome": found.outcome,
        "notes": "; ".join(found.notes) or None,
        **{f"note {one.number}": f"{one.text} ({one.who}, {one.at:%Y-%m-%d})" for one in found.said},
        **{f"check {check.when}": _check(check.passed, check.rows, check.detail) for check in found.checks},
    }
    if found.failure is not None:
        rank = "" if found.failure.rank < 0 else f", rank {found.failure.rank}"
        facts["failure"] = f"{found.failure.kind} at {found.failure.step!r}{rank}: {found.failure.message}"
    facts |= {name: f"{value:g}" for name, value in found.conditions.items()}
    facts |= flatten(found.environment)
    widest = max(map(len, facts))
    for name, fact in facts.items():
        if fact is not None:
            say(f"{name:<{widest}}  {fact}")
    if any(one.cpus for one in found.ranks):
        say()
        print_table(found.ranks, _rank_columns())
    if values:
        say()
        print_table(values, _metric_columns())
    if found.failure is not None and found.failure.log_tail:
        say(f"\nthe end of the log:\n{found.failure.log_tail}")


def _rank_columns() -> list[Column[RankDetail]]:
    """Where each rank ran."""
    return [
        Column("rank", lambda row: row.rank, "rank", right=True),
        Column("node", lambda row: row.node, "node"),
        Column("cpus", lambda row: row.cpus, "CPUs"),
        Column("numa", lambda row: row.numa, "NUMA nodes"),
    ]


def _check(passed: bool, rows: int, detail: str) -> str:
    """One pass of the oracle in words."""
    return f"{'passed' if passed else 'failed'}, {rows} rows{': ' + detail if detail else ''}"


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@selection_options
@click.option("--phase", type=click.Choice(["dispatch", "combine"]), help="Only this phase.")
@click.option("--metric", default="slowest_p50_us", show_default=True, help="What to compare; two runs: everything.")
@history_option
@format_options
def compare(
    first: str, second: str, selection: Selection, phase: Any, metric: str, db: str | None, form: Format
) -> None:
    """Compare A with B: each is a run, a night, a commit or a baseline, or `latest`, the newest run.

    Two runs: every value of both, the change from the first, and where their environments differ. Anything else: the
    medians of each series' runs and their change, the largest increase first; CASE and FILTER choose among the runs.
    Where a name may be several things, run:, night:, commit: or baseline: before it says which.

    A change here says nothing about chance: a verdict takes `epwatch nightly`, with repeats.
    """
    from regress_db.selection import EVERYTHING
    from regress_db.sides import compare_runs, compare_sides, side

    with open_history(db) as history:
        one, other = side(history, first), side(history, second)
        if one.kind == other.kind == "run":
            if selection != EVERYTHING:
                raise click.UsageError("A and B are one run each: there is nothing to choose from them")
            runs_ = compare_runs(history, one.name, other.name)
        else:
            sets = compare_sides(history, one, other, selection, metric=metric, phase=phase)
    if one.kind == other.kind == "run":
        _show_runs(runs_, form)
    else:
        _show_sets(sets, metric, form)


def _show_runs(found: RunComparison, form: Format) -> None:
    columns: list[Column[ComparedValue]] = [
        Column("phase", lambda row: row.phase, "phase"),
        Column("metric", lambda row: row.metric, "metric"),
        Column(
            "first", lambda row: row.first, found.first.run_id[:_ID_SHOWN], lambda row: figure(row.first), right=True
        ),
        Column(
            "second",
            lambda row: row.second,
            found.second.run_id[:_ID_SHOWN],
            lambda row: figure(row.second),
            right=True,
        ),
        Column("change", lambda row: row.change, "change", lambda row: change(row.change), right=True),
    ]
    if form == "json":
        say(as_json(found))
        return
    show(found.values, columns, form, empty="neither run has a value")
    if form == "table":
        differing: list[Column[Difference]] = [
            Column("name", lambda row: row.name, "differs"),
            Column("first", lambda row: row.first, "first", long=True),
            Column("second", lambda row: row.second, "second", long=True),
        ]
        say()
        if found.differences:
            print_table(found.differences, differing)
        else:
            say("case, platform, hosts and environment are the same")


def _show_sets(found: SetComparison, metric: str, form: Format) -> None:
    columns: list[Column[ComparedSeries]] = [
        Column("case", lambda row: row.case, "case", long=True),
        Column("platform", lambda row: row.platform),
        Column("phase", lambda row: row.phase, "phase"),
        Column("metric", lambda row: row.metric),
        Column("first_runs", lambda row: row.first_runs, "runs", right=True),
        Column("first", lambda row: row.first, "A", lambda row: figure(row.first), right=True),
        Column("second_runs", lambda row: row.second_runs, "runs", right=True),
        Column("second", lambda row: row.second, "B", lambda row: figure(row.second), right=True),
        Column("change", lambda row: row.change, "change", lambda row: change(row.change), right=True),
    ]
    show(found.series, columns, form, empty="neither has a run that matches")
    if form == "table" and found.series:
        say(f"\n{metric}, medians over runs; A is {found.first}, B is {found.second}")


@click.command()
@click.argument("night", default="latest", metavar="[NIGHT]")
@click.option("--output", "-o", type=click.Path(path_type=Path), metavar="PATH", help="Default: NIGHT.html, here.")
@history_option
def report(night: str, output: Path | None, db: str | None) -> None:
    """Write the HTML report of NIGHT, the latest where none is given: one file that opens without a network."""
    from regress_db.nightverdict import stored_verdict
    from regress_db.web.report import write_report

    with open_history(db) as history:
        name = stored_verdict(history, night).night
        path = output or Path(f"{name}.html")
        write_report(history, name, path)
    say(str(path))
