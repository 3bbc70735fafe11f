"""`epwatch accept`: a change is here to stay, and what comes after it is the new normal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from jobs.commands.baseline import who_and_why
from jobs.options import format_options, history_option, selection_options
from jobs.places import open_history
from jobs.tables import Column, Format, say, show, to_the_second

if TYPE_CHECKING:
    from regress_db.selection import Selection
    from regress_db.triage import Decision


def _columns() -> list[Column[Decision]]:
    return [
        Column("number", lambda row: row.number, "no.", right=True),
        Column("case", lambda row: row.case, "case", long=True),
        Column("phase", lambda row: row.phase, "phase", lambda row: row.phase or "both"),
        Column("platform", lambda row: row.platform),
        Column("from_time", lambda row: to_the_second(row.from_time), "from (UTC)"),
        Column("decided_by", lambda row: row.decided_by, "by"),
        Column("decided_at", lambda row: to_the_second(row.decided_at), "on (UTC)"),
        Column("reason", lambda row: row.reason, "why"),
        Column("withdrawn_by", lambda row: row.withdrawn_by),
        Column("withdrawn_at", lambda row: to_the_second(row.withdrawn_at)),
        Column("withdrawn_reason", lambda row: row.withdrawn_reason),
    ]


@click.command()
@selection_options
@click.option("--phase", type=click.Choice(["dispatch", "combine"]), help="Only this phase.")
@click.option(
    "--from",
    "start",
    metavar="NIGHT|TIME",
    default="latest",
    show_default=True,
    help="From when on the new level is normal: a night's id, `latest`, or a time as for --since.",
)
@click.option("--list", "listed", is_flag=True, help="Show what has been accepted, and change nothing.")
@click.option("--withdraw", type=int, metavar="NO", help="Take back the decision of this number; it stays on record.")
@who_and_why(required=False)
@history_option
@format_options
def accept(
    selection: Selection,
    phase: Any,
    start: str,
    listed: bool,
    withdraw: int | None,
    who: str,
    why: str | None,
    db: str | None,
    form: Format,
) -> None:
    """Say that the level which the named cases have had since a night is the normal one from now on.

    The automatic baseline of these series starts there; their spread is still taken from before. CASE and FILTER choose
    cases as for `epwatch trend`. A decision names who took it and why, and is never edited.
    """
    from regress_db import triage

    if listed:
        with open_history(db) as history:
            made = triage.decisions(history, withdrawn=True, kind="accepted")
        show(made, _columns(), form, empty="nothing has been accepted")
        return
    if not why:
        raise click.UsageError("--why is missing: a change is accepted for a reason")
    if withdraw is None and not selection.filters:
        raise click.UsageError("say which cases: a CASE or FILTER is missing; `backend=*` is all of them")
    with open_history(db) as history:
        if withdraw is not None:
            triage.withdraw(history, withdraw, who=who, why=why, kind="accepted")
            say(f"decision {withdraw} is withdrawn")
            return
        cases = triage.cases_of(history, selection)
        made = triage.accept(history, cases, since=triage.moment_of(history, start), who=who, why=why, phase=phase)
    show(made, _columns(), form)
