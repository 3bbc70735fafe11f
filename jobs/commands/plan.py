"""`epwatch plan check`: what a plan would do, without doing it."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.options import format_options
from jobs.tables import Column, Format, as_json, as_objects, say, show
from regress_db.wording import AUTO


@click.group()
def plan() -> None:
    """Check a nightly plan without running it."""


@plan.command()
@click.argument("file", metavar="PLAN.toml", type=click.Path(path_type=Path))
@format_options
def check(file: Path, form: Format) -> None:
    """Read PLAN.toml, say what is wrong with it or which jobs a night of it would run."""
    from harness.record import PlannedRun
    from jobs import waivers
    from jobs.packing import pack, plan_runs
    from jobs.plan import load

    read = load(file)
    if read.waivers_file is not None:
        waivers.load(read.waivers_file)
    cases = [planned.case for planned in read.cases]
    jobs = pack(plan_runs(cases, read.runs_of_a_case, ""), read.measure.seed or 0)
    floors = read.floors
    rows = [(job.name, run) for job in jobs for run in job.runs]
    columns: list[Column[tuple[str, PlannedRun]]] = [
        Column("job", lambda row: row[0], "job"),
        Column("repeat", lambda row: row[1].repeat, "repeat", right=True),
        Column("ranks", lambda row: row[1].case.ranks, "ranks", right=True),
        Column("case", lambda row: row[1].case.key, "case", long=True),
        Column(
            "floor",
            lambda row: floors[row[1].case.key],
            "floor",
            lambda row: f"{floors[row[1].case.key]:.0%}",
        ),
    ]
    if form == "json":
        say(as_json({"plan": read.name, "baseline": read.baseline_name, "runs": as_objects(rows, columns)}))
        return
    show(rows, columns, form)
    if form == "table":
        say(
            f"\nplan {read.name}: {len(cases)} cases x {read.runs_of_a_case} repeats = {len(rows)} runs "
            f"in {len(jobs)} jobs on cluster {read.cluster.name} ({read.cluster.kind}), one at a time; "
            + _judged_against(read.baseline_name)
        )


def _judged_against(baseline: str | None) -> str:
    if baseline == AUTO:
        return "judged against each series' own past"
    return f"judged against baseline {baseline}" if baseline else "not judged"
