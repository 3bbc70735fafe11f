"""`epwatch changes`: where series changed their level, since when, and what else changed there."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from jobs.options import format_options, history_option, selection_options
from jobs.places import open_history
from jobs.tables import Column, Format, change, show, to_the_second

if TYPE_CHECKING:
    from regress_db.changes import ChangeLine
    from regress_db.selection import Selection

_COMMIT_SHOWN = 10
_DIFFERENCES_SHOWN = 3


@click.command()
@selection_options
@click.option("--phase", type=click.Choice(["dispatch", "combine"]), help="Only this phase.")
@click.option("--metric", default="slowest_p50_us", show_default=True, help="What to follow.")
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(["step", "drift", "transient"]),
    multiple=True,
    help="Only this kind; repeat for more. Default: step and drift.",
)
@click.option("--all", "every", is_flag=True, help="Every kind, also what went away by itself after a night or two.")
@click.option(
    "--floor",
    type=click.FloatRange(0, max_open=False),
    metavar="PERCENT",
    default=1.0,
    show_default=True,
    help="The smallest change worth telling.",
)
@click.option("--keep", is_flag=True, help="Also write what is found into the history's tables, for SQL.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the newest N changes.")
@history_option
@format_options
def changes(
    selection: Selection,
    phase: Any,
    metric: str,
    kinds: tuple[Any, ...],
    every: bool,
    floor: float,
    keep: bool,
    limit: int | None,
    db: str | None,
    form: Format,
) -> None:
    """Show where series changed their level, newest first: looked for now, in whole series, whatever --since says.

    CASE and FILTER are those of `epwatch trend`; --since and --until choose among the changes. A change of every run
    since then is a step; one that took many nights is a drift; one that went away after a night or two is a transient.
    """
    from regress_db.changes import DEFAULT_KINDS
    from regress_db.changes import changes as ask

    if every and kinds:
        raise click.UsageError("--all and --kind exclude each other")
    wanted = ("step", "drift", "transient") if every else kinds or DEFAULT_KINDS
    chosen = dataclasses.replace(selection, limit=limit)
    with open_history(db) as history:
        lines = ask(history, chosen, metric=metric, phase=phase, kinds=wanted, floor=floor / 100, keep=keep)
    columns: list[Column[ChangeLine]] = [
        Column("case", lambda row: row.case, "case", long=True),
        Column("platform", lambda row: row.platform),
        Column("phase", lambda row: row.phase, "phase"),
        Column("metric", lambda row: row.metric),
        Column("kind", lambda row: row.kind, "kind"),
        Column("at", lambda row: to_the_second(row.at), "since (UTC)", lambda row: f"{row.at:%Y-%m-%d %H:%M}"),
        Column("night", lambda row: row.night),
        Column("effect", lambda row: row.effect, "change", lambda row: change(row.effect), right=True),
        Column("low", lambda row: row.low, "from", lambda row: change(row.low), right=True),
        Column("high", lambda row: row.high, "to", lambda row: change(row.high), right=True),
        Column("p_value", lambda row: row.p_value, "p", lambda row: f"{row.p_value:.1g}", right=True),
        Column("cause", lambda row: row.cause, "cause"),
        Column("commit_before", lambda row: row.commit_before, "commits", _commits),
        Column("commit_after", lambda row: row.commit_after),
        Column("commits", lambda row: list(row.commits)),
        Column("run_before", lambda row: row.run_before),
        Column("run_after", lambda row: row.run_after),
        Column("earliest", lambda row: to_the_second(row.earliest)),
        Column("latest", lambda row: to_the_second(row.latest)),
        Column("differences", lambda row: _differences(row, None), "differs", lambda row: _in_words(row)),
        Column("points", lambda row: row.points),
    ]
    show(lines, columns, form, empty="no change was found")


def _commits(row: ChangeLine) -> str:
    """The range to look at, as git writes it: after the first, up to the second."""
    before, after = (commit[:_COMMIT_SHOWN] for commit in (row.commit_before, row.commit_after))
    return before if before == after else f"{before}..{after}"


def _differences(row: ChangeLine, most: int | None) -> list[str]:
    other = [one for one in row.differences if not one.name.startswith("code.")]
    return [f"{one.name}: {one.first} -> {one.second}" for one in other[:most]]


def _in_words(row: ChangeLine) -> str:
    rest = len(_differences(row, None)) - _DIFFERENCES_SHOWN
    return "; ".join(_differences(row, _DIFFERENCES_SHOWN)) + (f"; and {rest} more" if rest > 0 else "")
