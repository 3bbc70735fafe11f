"""`epwatch note`: what is to be read beside the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from jobs.commands.baseline import who_and_why
from jobs.options import format_options, history_option
from jobs.places import open_history
from jobs.tables import Column, Format, say, show, to_the_second

if TYPE_CHECKING:
    from regress_db.history import History
    from regress_db.notes import Note

_ID_SHOWN = 12


@click.command()
@click.argument("text", required=False)
@click.option("--case", metavar="CASE", help="About this case: its key, or a pattern that only one case matches.")
@click.option("--platform", metavar="KEY", help="About this platform.")
@click.option("--phase", type=click.Choice(["dispatch", "combine"]), help="About this phase.")
@click.option("--night", metavar="ID", help="About this night; `latest` is the newest.")
@click.option("--run", metavar="ID", help="About this run: the head of its id, or `latest`.")
@click.option(
    "--at",
    metavar="TIME",
    help="The moment it speaks of: 2026-11-22, 2026-11-22T02:00, 7d. Default: the start of the run or night, else now.",
)
@click.option("--list", "listed", is_flag=True, help="Show the notes, also of one case, night or run; change nothing.")
@click.option("--withdraw", type=int, metavar="NO", help="Take back the note of this number; it stays on record.")
@who_and_why(required=False)
@history_option
@format_options
def note(
    text: str | None,
    case: str | None,
    platform: str | None,
    phase: Any,
    night: str | None,
    run: str | None,
    at: str | None,
    listed: bool,
    withdraw: int | None,
    who: str,
    why: str | None,
    db: str | None,
    form: Format,
) -> None:
    """Write TEXT beside the numbers: of a moment, a night, a run or a series.

    Notes stand in `epwatch show`, `epwatch nights`, `epwatch trend --plot` and on the web page. A note is never edited,
    only withdrawn.
    """
    from regress_db import notes
    from regress_db.filters import parse_moment

    if listed:
        if text is not None or withdraw is not None or at is not None:
            raise click.UsageError("--list shows notes: TEXT, --at and --withdraw do not go with it")
        with open_history(db) as history:
            found = notes.notes(
                history,
                case=_case(history, case),
                platform=platform,
                phase=phase,
                night=_night(history, night),
                run=_run(history, run),
                withdrawn=True,
            )
        show(found, _columns(), form, empty="there is no note")
        return
    if withdraw is not None:
        if text is not None:
            raise click.UsageError("a note is withdrawn or written, not both: leave TEXT or --withdraw out")
        if not why:
            raise click.UsageError("--why is missing: a note is withdrawn for a reason")
        with open_history(db) as history:
            notes.withdraw_note(history, withdraw, who=who, why=why)
        say(f"note {withdraw} is withdrawn")
        return
    if text is None:
        raise click.UsageError("TEXT is missing: what is to be noted?")
    if why is not None:
        raise click.UsageError("--why goes with --withdraw: a note's reason stands in its TEXT")
    moment = None if at is None else parse_moment(at)
    with open_history(db) as history:
        made = notes.add_note(
            history,
            text,
            who=who,
            at=moment,
            case=_case(history, case),
            platform=platform,
            phase=phase,
            night=night,
            run=run,
        )
    show([made], _columns(), form)


def _case(history: History, text: str | None) -> str | None:
    """The key that was meant. Raises `UsageError` where none or several match."""
    if text is None:
        return None
    from regress_db.filters import Filter
    from regress_db.selection import Selection
    from regress_db.triage import cases_of

    found = cases_of(history, Selection(filters=(Filter("case", "~", (text,)),)))
    if text in found:
        return text
    if len(found) != 1:
        several = f"{len(found)} cases match" if found else "no case with a run matches"
        raise click.UsageError(f"--case {text}: {several}; a note is about one case, or leave --case out")
    return found[0]


def _night(history: History, text: str | None) -> str | None:
    if text is None:
        return None
    from regress_db import lookup

    with history.read() as connection:
        return str(lookup.night(connection, text).name)


def _run(history: History, text: str | None) -> str | None:
    if text is None:
        return None
    from regress_db import lookup

    with history.read() as connection:
        return lookup.run(connection, text)[1]


def _columns() -> list[Column[Note]]:
    return [
        Column("number", lambda row: row.number, "no.", right=True),
        Column("at", lambda row: to_the_second(row.at), "at (UTC)"),
        Column("who", lambda row: row.who, "by"),
        Column("text", lambda row: row.text, "note", long=True),
        Column("about", lambda row: about(row), "about"),
        Column("case", lambda row: row.case),
        Column("platform", lambda row: row.platform),
        Column("phase", lambda row: row.phase),
        Column("night", lambda row: row.night),
        Column("run_id", lambda row: row.run_id),
        Column("written_at", lambda row: to_the_second(row.written_at)),
        Column("withdrawn_by", lambda row: row.withdrawn_by, "withdrawn by"),
        Column("withdrawn_at", lambda row: to_the_second(row.withdrawn_at)),
        Column("withdrawn_reason", lambda row: row.withdrawn_reason),
    ]


def about(row: Note) -> str:
    """What a note is about, in words; of a run, the run alone."""
    if row.run_id is not None:
        return f"run {row.run_id[:_ID_SHOWN]}{f', {row.phase}' if row.phase else ''}"
    told = [
        f"night {row.night}" if row.night else "",
        row.phase or "",
        row.case or "",
        f"on {row.platform}" if row.platform else "",
    ]
    return ", ".join(text for text in told if text) or "everything"
