"""`epwatch calibrate`: how often the plan's own history gives a false alarm, and the level that keeps to its budget."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.commands.baseline import user
from jobs.options import format_options, history_option
from jobs.places import open_history
from jobs.tables import Column, Format, as_json, as_objects, say, show

if TYPE_CHECKING:
    from jobs.plan import Plan
    from regress_db.calibration import Calibration, SeriesRate
    from regress_db.history import History

_SHOWN = 10


@click.command()
@click.argument("plan", required=False, metavar="[PLAN]")
@click.option(
    "--shuffles", type=click.IntRange(20), default=200, show_default=True, metavar="N", help="Nights to judge."
)
@click.option("--seed", type=int, metavar="N", help="Of the shuffles. Default: a new one each time, which is told.")
@click.option(
    "--budget",
    type=click.FloatRange(0, min_open=True),
    metavar="X",
    help="False alarms a night over all series that are put up with. Default: the plan's, else 1/30.",
)
@click.option(
    "--nights", "newest", type=click.IntRange(1), default=200, show_default=True, metavar="N", help="The newest N."
)
@click.option("--who", default=user, help="Who does this. Default: the user's name.")
@history_option
@format_options
def calibrate(
    plan: str | None,
    shuffles: int,
    seed: int | None,
    budget: float | None,
    newest: int,
    who: str,
    db: str | None,
    form: Format,
) -> None:
    """Shuffle the settled history of PLAN, judge it, and record the level that keeps to the budget of false alarms.

    PLAN is a plan's file, whose floors, controls and budget are used, or the name of one. It may be left out where the
    history has nights of one plan alone. From then on, nights of the plan are judged at the level that was recorded.
    """
    from regress_db.calibration import calibrate as find

    written = _written(plan)
    options: dict[str, Any] = {}
    if written is not None:
        options = {
            "floor": written.floors,
            "confirmations": written.verdict.confirmations,
            "controls": tuple(written.verdict.controls),
            "budget": written.level,
        }
    if budget is not None:
        options["budget"] = budget
    with open_history(db, written) as history:
        name = written.name if written is not None else plan or _only_plan(history)
        found = find(
            history,
            name,
            who=who,
            seed=secrets.randbits(32) if seed is None else seed,
            shuffles=shuffles,
            newest=newest,
            **options,
        )
    if form == "json":
        head = {field: getattr(found, field) for field in found.__dataclass_fields__ if field != "series"}
        say(as_json({**head, "series": as_objects(found.series, SERIES_COLUMNS)}))
        return
    if form == "csv":
        show(found.series, SERIES_COLUMNS, form)
        return
    _print(found)


def _written(plan: str | None) -> Plan | None:
    """The plan where its file was named."""
    if plan is None or not (plan.endswith(".toml") or Path(plan).is_file()):
        return None
    from jobs.plan import load

    return load(Path(plan))


def _only_plan(history: History) -> str:
    from regress_db.calibration import plans

    known = plans(history)
    if len(known) != 1:
        there = f"it has nights of {', '.join(known)}" if known else "it has no night yet"
        raise click.UsageError(f"say which plan of the history {history.where} is to be calibrated: {there}")
    return known[0]


def _print(found: Calibration) -> None:
    """The series that sound most, and all of it in words."""
    sounding = [one for one in found.series if one.alarms][:_SHOWN]
    if sounding:
        show(sounding, SERIES_COLUMNS, "table")
        say()
    say(found.sentence)
    if found.left_out:
        say(f"{found.left_out} series have too few nights at one level and were left out.")
    if found.series and found.level is not None:
        say(
            f"At the method's own level of {found.default_level:.4f} it would be {found.default_per_night:.4f} false "
            f"alarms a night. Recorded: nights of plan {found.plan} are judged at {found.level:.3g} from now on."
        )


SERIES_COLUMNS: list[Column[SeriesRate]] = [
    Column("case", lambda row: row.case, "case", long=True),
    Column("platform", lambda row: row.platform),
    Column("phase", lambda row: row.phase, "phase"),
    Column("nights", lambda row: row.nights, "nights", right=True),
    Column("shuffles", lambda row: row.shuffles, "judged", right=True),
    Column("alarms", lambda row: row.alarms, "false alarms", right=True),
    Column("rate", lambda row: row.rate, "rate [95 %]", lambda row: _rate(row), right=True),
    Column("low", lambda row: row.low),
    Column("high", lambda row: row.high),
]
"""The columns of the table, JSON and CSV: one row a series, with the share of judged nights on which it sounded."""


def _rate(row: SeriesRate) -> str:
    return f"{row.rate:.2%} [{row.low:.2%}..{row.high:.2%}]"
