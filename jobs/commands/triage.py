"""`epwatch triage`, `epwatch ack`: what has regressed and what has become of it; and saying that one knows."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import click

from jobs.commands.baseline import who_and_why
from jobs.options import format_options, history_option
from jobs.places import open_history
from jobs.tables import Column, Format, change, say, show, to_the_second

if TYPE_CHECKING:
    from regress_db.triage import Decision, Regression

_STATES = ("open", "acknowledged", "expected", "fixed")


def day(_: click.Context, __: click.Parameter, text: str | None) -> date | None:
    """A day as it is written: 2026-12-31."""
    if text is None:
        return None
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        raise click.BadParameter(f"{text!r} is no day: write 2026-12-31") from None


@click.command()
@click.argument("texts", nargs=-1, metavar="[CASE|FILTER]...")
@click.option("--state", "states", type=click.Choice(_STATES), multiple=True, help="Only these; may be given again.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, metavar="N", help="The first N.")
@history_option
@format_options
def triage(texts: tuple[str, ...], states: tuple[str, ...], limit: int, db: str | None, form: Format) -> None:
    """List regressions by what has become of them: open, acknowledged, expected, fixed; the newest first.

    open: nobody has said anything, or it has got worse than what was acknowledged, or the day of that has passed.
    acknowledged: by `epwatch ack`. expected: by `epwatch accept`, or in a baseline that was set since. fixed: a later
    night of the series is unchanged or faster. CASE and FILTER choose cases and platforms as for `epwatch trend`.
    """
    from regress_db.triage import regressions, series_of

    with open_history(db) as history:
        found = regressions(history)
        if texts:
            from regress_db.selection import Selection

            wanted = set(series_of(history, Selection.of(*texts)))
            found = [one for one in found if (one.case, one.platform) in wanted]
    chosen = [one for one in found if not states or one.state in states]
    show(chosen[:limit], _regression_columns(), form, empty="nothing that matches has regressed")


def _regression_columns() -> list[Column[Regression]]:
    return [
        Column("state", lambda row: row.state, "state"),
        Column("case", lambda row: row.case, "case", long=True),
        Column("platform", lambda row: row.platform),
        Column("phase", lambda row: row.phase, "phase"),
        Column("effect", lambda row: row.effect, "change", lambda row: change(row.effect), right=True),
        Column("low", lambda row: row.low),
        Column("high", lambda row: row.high),
        Column("since", lambda row: row.since, "since night"),
        Column("night", lambda row: row.night, "last in night"),
        Column("gone_in", lambda row: row.gone_in, "gone in night"),
        Column("by", lambda row: row.by, "by"),
        Column("at", lambda row: to_the_second(row.at)),
        Column("until", lambda row: _written(row.until), "until"),
        Column("number", lambda row: row.number, "no.", right=True),
        Column("why", lambda row: row.why or row.remark or None, "why"),
        Column("remark", lambda row: row.remark or None),
    ]


@click.command()
@click.argument("texts", nargs=-1, metavar="CASE|FILTER...")
@click.option("--phase", type=click.Choice(["dispatch", "combine"]), help="Only this phase.")
@click.option(
    "--until",
    metavar="DAY",
    callback=day,
    help="The last day (UTC) on which it passes: 2026-12-31. Without one it passes until it is fixed.",
)
@click.option("--list", "listed", is_flag=True, help="Show what has been acknowledged, and change nothing.")
@click.option("--withdraw", type=int, metavar="NO", help="Take back the decision of this number; it stays on record.")
@who_and_why(required=False)
@history_option
@format_options
def ack(
    texts: tuple[str, ...],
    phase: Any,
    until: date | None,
    listed: bool,
    withdraw: int | None,
    who: str,
    why: str | None,
    db: str | None,
    form: Format,
) -> None:
    """Say that the open regressions of these cases are known: they do not fail the night or the gate.

    They fail again when they get worse (the whole interval lies above what was acknowledged by more than the floor),
    when their day has passed, and when they come back after they were fixed. Until then they are shown as regressed,
    and as acknowledged. CASE and FILTER choose cases and platforms as for `epwatch trend`.
    """
    from regress_db import triage as decided

    if listed:
        with open_history(db) as history:
            made = decided.decisions(history, withdrawn=True, kind="acknowledged")
        show(made, _columns(), form, empty="nothing has been acknowledged")
        return
    if not why:
        raise click.UsageError("--why is missing: a regression is acknowledged for a reason")
    if withdraw is not None:
        with open_history(db) as history:
            decided.withdraw(history, withdraw, who=who, why=why, kind="acknowledged")
        say(f"decision {withdraw} is withdrawn")
        return
    if not texts:
        raise click.UsageError("say which cases: a CASE or FILTER is missing; `backend=*` is all of them")
    if until is not None and until < (today := datetime.now(UTC).date()):
        raise click.UsageError(f"--until {until} is past: name today ({today}, UTC) or a later day")
    from regress_db.selection import Selection

    with open_history(db) as history:
        series = decided.series_of(history, Selection.of(*texts))
        if not series:
            raise click.UsageError(f"no case with a run matches {' '.join(texts)}")
        made = decided.acknowledge_series(history, series, who=who, why=why, until=until, phase=phase)
    show(made, _columns(), form)


def _columns() -> list[Column[Decision]]:
    return [
        Column("number", lambda row: row.number, "no.", right=True),
        Column("case", lambda row: row.case, "case", long=True),
        Column("phase", lambda row: row.phase, "phase"),
        Column("platform", lambda row: row.platform),
        Column("effect", lambda row: row.effect, "at", lambda row: change(row.effect), right=True),
        Column("from_time", lambda row: to_the_second(row.from_time)),
        Column("until", lambda row: _written(row.until), "until"),
        Column("decided_by", lambda row: row.decided_by, "by"),
        Column("decided_at", lambda row: to_the_second(row.decided_at), "on (UTC)"),
        Column("reason", lambda row: row.reason, "why"),
        Column("withdrawn_by", lambda row: row.withdrawn_by, "withdrawn by"),
        Column("withdrawn_at", lambda row: to_the_second(row.withdrawn_at)),
        Column("withdrawn_reason", lambda row: row.withdrawn_reason),
    ]


def _written(until: date | None) -> str | None:
    return None if until is None else until.isoformat()
