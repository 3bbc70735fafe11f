"""`epwatch plan check`: what a plan would do, without doing it."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.record import PlannedRun
from jobs.options import format_options, history_option
from jobs.packing import PackedJob
from jobs.tables import Column, Format, as_json, as_objects, number, say, show
from regress_db.wording import AUTO

if TYPE_CHECKING:
    from jobs.night_session import Expectations
    from jobs.plan import Plan


@dataclass(frozen=True)
class JobCost:
    """What one job would ask for. expected_min, limit_min: of its time; node_min: hosts times the expected minutes."""

    job: str
    cluster: str
    hosts: int
    tasks_per_host: int
    gpus_per_host: int
    runs: int
    expected_min: float
    limit_min: float

    @property
    def node_min(self) -> float:
        """What it is expected to cost."""
        return self.hosts * self.expected_min

    @property
    def most_node_min(self) -> float:
        """What it can cost at most by its limit; no less than what it is expected to."""
        return max(self.node_min, self.hosts * self.limit_min)


@click.group()
def plan() -> None:
    """Check a nightly plan without running it."""


@plan.command(short_help="Say what a plan would do, or what is wrong with it.")
@click.argument("file", metavar="PLAN.toml", type=click.Path(path_type=Path))
@click.option("--runs", "list_runs", is_flag=True, help="List every run, not the jobs.")
@history_option
@format_options
def check(file: Path, list_runs: bool, db: str | None, form: Format) -> None:
    """Read PLAN.toml, say what is wrong with it or which jobs a night of it would submit, and what they would cost.

    What a case takes is known from the history, where it has a past on that cluster; else the plan says. Nothing is
    submitted. --csv and --parquet give the runs, --json both.
    """
    from jobs import waivers
    from jobs.night_session import planned_jobs
    from jobs.plan import load

    read = load(file)
    waivers.of_plan(read)
    _warn_of_unknown_backends(read)
    expected_s = _expectations(read, db)
    jobs = planned_jobs(read, "", read.measure.seed or 0, expected_s)
    costs = [_cost(read, job, expected_s) for job in jobs]
    rows = [(job, run) for job in jobs for run in job.runs]
    columns = _run_columns(read)
    if form == "json":
        head = {"plan": read.name, "baseline": read.baseline_name}
        say(as_json({**head, "runs": as_objects(rows, columns), "jobs": as_objects(costs, _JOB_COLUMNS)}))
    elif form == "table" and not list_runs:
        show(costs, _JOB_COLUMNS, form)
    else:
        show(rows, columns, form)
    if form == "table":
        say(f"\nplan {read.name}: {_summary(read, costs)}; {_judged_against(read.baseline_name)}")


def _expectations(plan: Plan, db: str | None) -> Expectations:
    """By the history, where there is one. One that cannot be reached is said on stderr, unless it was asked for."""
    from jobs.night_session import expectations
    from jobs.places import open_history
    from regress_db.errors import NotFoundError, UnreachableError

    try:
        with open_history(db, plan) as history:
            return expectations(plan, history)
    except NotFoundError:
        if db is not None:
            raise
    except UnreachableError as error:
        if db is not None:
            raise
        _warn(f"{error}; what cases take is what the plan says")
    return expectations(plan, None)


def _warn_of_unknown_backends(plan: Plan) -> None:
    """Backends are found where they are installed: those that are not here may be where the plan runs."""
    from harness import backends

    known = backends.names()
    for name in dict.fromkeys(planned.case.backend for planned in plan.cases):
        if name not in known:
            there = [planned.clusters for planned in plan.cases if planned.case.backend == name]
            clusters = dict.fromkeys(one for several in there for one in several)
            _warn(
                f"backend {name!r} is not known on this machine (known are {', '.join(known) or 'none'}): it has to be "
                f"installed on cluster {', '.join(clusters)}"
            )


def _warn(words: str) -> None:
    print(f"epwatch: warning: {words}", file=sys.stderr)


def _cost(plan: Plan, job: PackedJob, expected_s: Expectations) -> JobCost:
    from jobs.packing import job_expected_s

    section = plan.cluster(job.cluster)
    local = section.kind == "local"
    return JobCost(
        job=job.name,
        cluster=job.cluster,
        hosts=section.hosts(job.world),
        tasks_per_host=section.tasks_on_a_host(job.world),
        gpus_per_host=section.gpus_on_a_host(job.world),
        runs=len(job.runs),
        expected_min=job_expected_s(job, expected_s[job.cluster]) / 60,
        limit_min=plan.measure.job_deadline_s / 60 if local else section.limit_min(plan.measure.job_deadline_s),
    )


def _summary(plan: Plan, costs: list[JobCost]) -> str:
    """How much there is to do, where, and what it costs."""
    runs = sum(cost.runs for cost in costs)
    parts = []
    for section in plan.clusters:
        here = [cost for cost in costs if cost.cluster == section.name]
        at_once = "one at a time" if section.kind == "local" else f"{section.jobs_at_once} at a time at most"
        minutes = math.fsum(cost.node_min for cost in here)
        most = math.fsum(cost.most_node_min for cost in here)
        parts.append(
            f"{len(here)} jobs on cluster {section.name} ({section.kind}), {at_once}, about {minutes:,.1f} "
            f"node-minutes, and at most {math.ceil(most):,} by the jobs' limits"
        )
    return (
        f"{len(plan.cases)} cases x {plan.runs_of_a_case} repeats = {runs} runs in {'; '.join(parts)}; re-runs and new "
        "attempts come on top"
    )


_JOB_COLUMNS: list[Column[JobCost]] = [
    Column("job", lambda row: row.job, "job"),
    Column("cluster", lambda row: row.cluster, "cluster"),
    Column("hosts", lambda row: row.hosts, "nodes", right=True),
    Column("tasks_per_host", lambda row: row.tasks_per_host, "ranks a node", right=True),
    Column("gpus_per_host", lambda row: row.gpus_per_host, "GPUs a node", right=True),
    Column("runs", lambda row: row.runs, "runs", right=True),
    Column("expected_min", lambda row: row.expected_min, "minutes", lambda row: number(row.expected_min), right=True),
    Column("limit_min", lambda row: row.limit_min, "limit", lambda row: number(row.limit_min), right=True),
    Column("node_min", lambda row: row.node_min, "node-minutes", lambda row: number(row.node_min), right=True),
    Column(
        "most_node_min", lambda row: row.most_node_min, "at most", lambda row: number(row.most_node_min), right=True
    ),
]


def _run_columns(plan: Plan) -> list[Column[tuple[PackedJob, PlannedRun]]]:
    floors = plan.floors
    return [
        Column("job", lambda row: row[0].name, "job"),
        Column("cluster", lambda row: row[0].cluster, "cluster"),
        Column("repeat", lambda row: row[1].repeat, "repeat", right=True),
        Column("ranks", lambda row: row[1].case.ranks, "ranks", right=True),
        Column("case", lambda row: row[1].case.key, "case", long=True),
        Column("floor", lambda row: floors[row[1].case.key], "floor", lambda row: f"{floors[row[1].case.key]:.0%}"),
    ]


def _judged_against(baseline: str | None) -> str:
    if baseline == AUTO:
        return "judged against each series' own past"
    return f"judged against baseline {baseline}" if baseline else "not judged"
