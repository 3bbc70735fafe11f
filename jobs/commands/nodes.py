"""`epwatch nodes`: which nodes make their runs slow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from jobs.options import format_options, history_option, selection_options
from jobs.places import open_history
from jobs.tables import Column, Format, change, say, show, to_the_second

if TYPE_CHECKING:
    from regress_db.nodes import NodeEffect
    from regress_db.selection import Selection


@click.command()
@selection_options
@click.option("--cluster", metavar="NAME", help="Only the nodes of this cluster.")
@click.option(
    "--level",
    type=click.FloatRange(0, 0.5, min_open=True),
    default=0.01,
    show_default=True,
    help="The chance that any node of a cluster is called slow or fast where none is.",
)
@history_option
@format_options
def nodes(selection: Selection, cluster: str | None, level: float, db: str | None, form: Format) -> None:
    """Rank nodes by how slow they make their runs against other nodes, slowest first.

    The newest 30 nights of each cluster are looked at, unless --since says otherwise. CASE and FILTER are those of
    `epwatch trend`, and so is --at. A run is compared with runs of the same series and night on other nodes, or, where
    there are none, with those of like series, each against its own level: neither a commit nor a night counts as a
    node's. Intervals are 95 %.
    """
    from regress_db.nodes import node_effects
    from regress_db.nodewords import sentences

    with open_history(db) as history:
        found = node_effects(history, selection, cluster=cluster, level=level)
    columns: list[Column[NodeEffect]] = [
        Column("hostname", lambda row: row.hostname, "node"),
        Column("cluster", lambda row: row.cluster, "cluster"),
        Column("effect", lambda row: row.effect, "slower by", lambda row: change(row.effect), right=True),
        Column("low", lambda row: row.low, "from", lambda row: change(row.low), right=True),
        Column("high", lambda row: row.high, "to", lambda row: change(row.high), right=True),
        Column("p_value", lambda row: row.p_value, "p", _p_value, right=True),
        Column("verdict", lambda row: row.verdict, "verdict"),
        Column("since", lambda row: row.since, "since night"),
        Column("runs", lambda row: row.runs, "runs", right=True),
        Column("nights", lambda row: row.nights, "nights", right=True),
        Column("series", lambda row: row.series, "series", right=True),
        Column("last_seen", lambda row: to_the_second(row.last_seen), "last run (UTC)"),
        Column("alike", lambda row: list(row.alike), "cannot be told from", lambda row: ", ".join(row.alike)),
    ]
    show(found, columns, form, empty="no run matches")
    if form == "table" and found:
        say()
        for sentence in sentences(found):
            say(sentence)


def _p_value(row: NodeEffect) -> str:
    return "" if row.p_value is None else f"{row.p_value:.1g}"
